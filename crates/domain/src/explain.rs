//! What a pasted answer means: an HTTP answer, a JSON error, the text of an exception, a log line.
//!
//! Whatever is pasted, status, headers and JSON body are found in it first; then the same functions judge it that judge
//! answers on the wire, [`judge`] and [`token_answer::read`]. Where Evergrant itself has said already what it was (a header, a
//! problem document, a line of its log), its word is kept. Nothing that was pasted is repeated but codes and scopes: people
//! paste tokens, too.

use std::time::Duration;

use serde_json::Value;

use crate::api_answer::{ApiAnswer, Class, judge};
use crate::app::Dialect;
use crate::strict_json;
use crate::token_answer::{self, Failure, RawAnswer, TokenAnswer};

/// What it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The word for it, the same as in headers and logs.
    pub class: Class,
    /// The code of the problem that it is or leads to, for an answer of Evergrant itself or of a token endpoint.
    pub problem: Option<String>,
    /// What happened: one or two sentences.
    pub cause: String,
    /// What to do.
    pub action: String,
    /// The HTTP status that was found.
    pub status: Option<u16>,
    /// The provider's error code that was found.
    pub code: Option<String>,
    /// The scopes that it says are missing.
    pub missing_scopes: Vec<String>,
    /// How long the provider asked to wait.
    pub retry_after: Option<Duration>,
    /// To quote to the provider's support.
    pub correlation_id: Option<String>,
}

impl Explanation {
    /// The path of the page about it.
    pub fn help_path(&self) -> String {
        match &self.problem {
            Some(code) => format!("/help/errors/{code}"),
            None => format!("/help/{}", self.class.as_str()),
        }
    }
}

/// What a class means, for a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct About {
    /// A few words.
    pub title: &'static str,
    /// What happened.
    pub cause: &'static str,
    /// What to do.
    pub action: &'static str,
}

/// What a class means, for a person.
pub fn about(class: Class) -> About {
    let (title, cause, action) = match class {
        Class::Ok => ("Success", "The provider did what it was asked.", "Nothing."),
        Class::StaleToken => (
            "An older token was sent",
            "The call was sent with an older access token than the stored one, so some copy of it is out of date.",
            "Nothing: the call is repeated with the newer token. A caller that keeps tokens itself should ask for one before each call.",
        ),
        Class::Expired => (
            "The access token has expired",
            "The access token had ended when the provider looked at it. The grant behind it is not affected.",
            "Refresh and repeat the call once; the gateway does that by itself. If it happens often, look for copies of tokens and for clocks that are wrong.",
        ),
        Class::Rejected => (
            "The access token is not accepted",
            "The provider does not accept the access token, though nothing says that it ended: it may be revoked, cut off, or of another app.",
            "Refresh and repeat the call once; the gateway does that by itself. If it stays, check that account, app and environment are the ones that are meant.",
        ),
        Class::RejectedAfterRefresh => (
            "A fresh access token is not accepted",
            "The provider rejects a token that was refreshed a short while ago. Refreshing again would not help.",
            "Check that the call goes to the account that is meant, that the app may do what is asked, and that the clocks are right.",
        ),
        Class::MalformedToken => (
            "What was sent is no token of this provider",
            "The provider could not decode the token: an expiry at the beginning of 1970 is how it says so.",
            "Look at how the token gets into the request: cut off by a column that is too short, quoted, encoded twice, or of another kind.",
        ),
        Class::StaticRejected => (
            "A static token is not accepted",
            "The connection holds a token that cannot be refreshed, and the provider does not accept it any more.",
            "Replace the token itself: issue another one at the provider and import it.",
        ),
        Class::PermissionDenied => (
            "A right is missing",
            "The token is valid, but it does not carry the right to do this. It has nothing to do with expiry.",
            "Add the missing scopes to the app and let the customer consent again; refreshing brings the same rights.",
        ),
        Class::RateLimited => (
            "Too many calls",
            "The provider limits how many calls may be made in a time. It has nothing to do with the token.",
            "Wait as long as Retry-After says and spread the calls; a daily limit ends at the provider's midnight.",
        ),
        Class::Unavailable => (
            "The provider is in trouble",
            "The provider could not answer properly. It has nothing to do with the token.",
            "Try again later with growing pauses; look first whether a write was carried out before repeating it.",
        ),
        Class::Timeout => (
            "No answer in time",
            "No answer came in time. Nobody knows whether the call was carried out.",
            "A read may be repeated. Look whether a write was carried out before repeating it.",
        ),
        Class::ClientError => (
            "The provider refuses the request",
            "The provider refuses the request itself, not the token.",
            "Read the provider's message and correct the request.",
        ),
    };
    About { title, cause, action }
}

/// Says what a pasted text means. `None` where there is neither a status, nor a JSON error, nor a message that is known.
///
/// `meaning` knows what Evergrant's own codes mean and what to do about them; an answer that says it itself is believed first.
pub fn explain(
    text: &str,
    meaning: impl Fn(&str) -> Option<(&'static str, &'static str)>,
) -> Option<Explanation> {
    // Enough for any answer worth reading; a paste of a whole log is cut.
    const TEXT_MAX: usize = 256 * 1024;
    let text = text.get(..floor(text, TEXT_MAX)).unwrap_or(text);
    let body = find_json(text);
    let status = find_status(text).or_else(|| body.as_ref().and_then(status_in));
    let retry_after = find_header(text, "retry-after").and_then(|value| {
        let digits: String = value.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok().map(Duration::from_secs)
    });
    let own_class = own_class(text);
    if let Some(code) = own_code(text, body.as_ref()) {
        let own = of_evergrant(&code, body.as_ref(), meaning);
        return Some(Explanation {
            class: own_class.unwrap_or(own.class),
            status,
            retry_after,
            ..own
        });
    }
    if own_class.is_none()
        && let Some(code) = body
            .as_ref()
            .and_then(token_endpoint_code)
            .or_else(|| known_word(text))
    {
        return Some(token_endpoint(&code, status, retry_after, body.as_ref()));
    }
    let Some(status) = status.or_else(|| body.as_ref().and_then(implied_status)) else {
        return own_class.or_else(|| class_without_status(text)).map(bare);
    };
    let challenge = find_header(text, "www-authenticate");
    let bytes = body.as_ref().map(Value::to_string).unwrap_or_default();
    let judged = judge(ApiAnswer {
        status,
        www_authenticate: challenge,
        retry_after,
        // Exceptions often carry the message and not the body around it.
        body: if bytes.is_empty() {
            message_as_body(text)
        } else {
            bytes
        }
        .as_bytes(),
    });
    let class = own_class.unwrap_or(judged.class);
    let mut cause = about(class).cause.to_owned();
    if !judged.missing_scopes.is_empty() {
        cause = format!("{cause} Missing: {}.", judged.missing_scopes.join(", "));
    }
    if let Some(policy) = &judged.policy {
        cause = format!("{cause} The limit is {policy}.");
    }
    Some(Explanation {
        cause,
        status: Some(status),
        code: body.as_ref().and_then(|body| body["category"].as_str()).map(clip),
        missing_scopes: judged.missing_scopes,
        retry_after: judged.retry_after,
        correlation_id: judged.correlation_id,
        ..bare(class)
    })
}

/// What a class says by itself.
fn bare(class: Class) -> Explanation {
    let about = about(class);
    Explanation {
        class,
        problem: None,
        cause: about.cause.to_owned(),
        action: about.action.to_owned(),
        status: None,
        code: None,
        missing_scopes: Vec::new(),
        retry_after: None,
        correlation_id: None,
    }
}

/// The class that Evergrant named: in the header `Evergrant-Class` of an answer, or as `class` in a line of its log.
fn own_class(text: &str) -> Option<Class> {
    let lower = text.to_ascii_lowercase();
    ["evergrant-class", "class"].into_iter().find_map(|name| {
        lower.match_indices(name).find_map(|(at, _)| {
            let is_part_of_a_word =
                lower[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || "_-.".contains(c));
            let rest = lower[at + name.len()..].trim_start_matches(['"', '\'', '\\', ' ']);
            let value = rest
                .strip_prefix([':', '='])?
                .trim_start_matches(['"', '\'', '\\', ' ', '[']);
            let word = value
                .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                .next()?;
            Class::ALL
                .into_iter()
                .find(|class| !is_part_of_a_word && class.as_str() == word)
        })
    })
}

/// The code of an answer that Evergrant itself made: in its problem document, or in the header `Evergrant-Error`.
fn own_code(text: &str, body: Option<&Value>) -> Option<String> {
    let in_body = body
        .and_then(|body| body["type"].as_str())
        .and_then(|kind| kind.strip_prefix("urn:evergrant:problem:"));
    let in_header = || {
        find_header(text, "evergrant-error")?
            .split(|c: char| !(c.is_ascii_lowercase() || c == '_'))
            .next()
    };
    let is_code = |code: &&str| {
        !code.is_empty()
            && code.len() <= 64
            && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    };
    in_body
        .filter(is_code)
        .or_else(|| in_header().filter(is_code))
        .map(str::to_owned)
}

/// An answer that Evergrant itself made says what it means, or its code does.
fn of_evergrant(
    code: &str,
    body: Option<&Value>,
    meaning: impl Fn(&str) -> Option<(&'static str, &'static str)>,
) -> Explanation {
    let said = |member: &str| body.and_then(|body| body[member].as_str()).map(clip_sentence);
    let known = meaning(code);
    Explanation {
        cause: said("detail")
            .or_else(|| known.map(|(cause, _)| cause.to_owned()))
            .or_else(|| said("title"))
            .unwrap_or_else(|| format!("Evergrant itself answered this, with the code {code}.")),
        action: said("action")
            .or_else(|| known.map(|(_, action)| action.to_owned()))
            .unwrap_or_else(|| "Look at the page of this code.".to_owned()),
        correlation_id: body
            .and_then(|body| body["provider_correlation_id"].as_str())
            .map(clip),
        code: Some(code.to_owned()),
        problem: Some(code.to_owned()),
        ..bare(class_of_problem(code))
    }
}

/// The class that the log gives to a call that was answered with a code of Evergrant's own.
fn class_of_problem(code: &str) -> Class {
    match code {
        "upstream_timeout" | "outcome_unknown" => Class::Timeout,
        "upstream_unreachable"
        | "provider_unavailable"
        | "store_unavailable"
        | "overloaded"
        | "idempotency_in_progress"
        | "internal" => Class::Unavailable,
        "budget_exhausted" => Class::RateLimited,
        _ => Class::ClientError,
    }
}

/// Codes that only a token endpoint answers with.
const TOKEN_ENDPOINT_CODES: [&str; 15] = [
    "BAD_REFRESH_TOKEN",
    "BAD_HUB",
    "BAD_CLIENT_ID",
    "BAD_CLIENT_SECRET",
    "BAD_AUTH_CODE",
    "EXPIRED_AUTH_CODE",
    "BAD_CODE_VERIFIER",
    "BAD_GRANT_TYPE",
    "BAD_SCOPES",
    "MISMATCH_REDIRECT_URI_AUTH_CODE",
    "MISMATCH_REFRESH_TOKEN_CLIENT",
    "invalid_grant",
    "invalid_client",
    "unauthorized_client",
    "unsupported_grant_type",
];

fn token_endpoint_code(body: &Value) -> Option<String> {
    ["status", "error"]
        .into_iter()
        .filter_map(|member| body[member].as_str())
        .find(|word| TOKEN_ENDPOINT_CODES.contains(word))
        .map(str::to_owned)
}

/// The same codes in a text without JSON.
fn known_word(text: &str) -> Option<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !is_part(c))
        .find(|word| TOKEN_ENDPOINT_CODES.contains(word))
        .map(str::to_owned)
}

fn token_endpoint(
    code: &str,
    status: Option<u16>,
    retry_after: Option<Duration>,
    body: Option<&Value>,
) -> Explanation {
    let bytes = match body {
        Some(body) if token_endpoint_code(body).is_some() => body.to_string(),
        _ => serde_json::json!({ "status": code, "error": code }).to_string(),
    };
    // A code without its status is read as the refusal that it is.
    let read = token_answer::read(
        RawAnswer {
            status: status.unwrap_or(400),
            retry_after,
            body: bytes.as_bytes(),
        },
        Dialect::HubSpot,
        "hub_id",
    );
    let (problem, cause, action, failure) = match read {
        TokenAnswer::GrantRefused(failure) => (
            "reconnect_required",
            "The provider refuses the refresh token: the app was uninstalled, the grant revoked, or the account deleted. It may also be an older copy of a token that was replaced.",
            "Send the customer through consent again (a reconnect link). If it happens to many at once, look for two programs that redeem the same refresh tokens.",
            failure,
        ),
        TokenAnswer::WrongClient(failure) => (
            "reconnect_required",
            "The refresh token was issued to another client id than the one that presents it.",
            "Check which app the connection belongs to, in which environment; then let the customer consent to the right one.",
            failure,
        ),
        TokenAnswer::ClientRefused(failure) => (
            "app_credentials_rejected",
            "The provider refuses the app's client id or secret. No customer's grant is lost.",
            "Correct client id and secret in the configuration; `evergrant apps check` asks the provider whether they are right.",
            failure,
        ),
        TokenAnswer::CodeRefused(failure) => (
            "code_refused",
            "The provider refuses the authorization code: it was used, has expired, or belongs to another redirect URI or verifier.",
            "Begin the consent again. If it always happens, compare the redirect URI with the registered one, letter by letter.",
            failure,
        ),
        TokenAnswer::NotIssued(failure) => (
            "provider_unavailable",
            "The token endpoint issued nothing and asks to wait.",
            "Wait; the token at hand goes on serving until it ends.",
            failure,
        ),
        TokenAnswer::Lost(failure) => (
            "provider_unavailable",
            "The token endpoint failed, and nobody can tell whether it issued a token set before it did.",
            "Wait. Evergrant looks whether the old refresh token still lives before it is presented again.",
            failure,
        ),
        TokenAnswer::EndpointFault(failure) => (
            "provider_unavailable",
            "The token endpoint refuses the request itself. It says nothing about the grant.",
            "Compare the endpoint's URL and version, and the parameters, with the provider's documentation.",
            failure,
        ),
        TokenAnswer::Issued(_) => (
            "provider_unavailable",
            "The answer holds both a token set and an error.",
            "Look at the answer as a whole: the error counts.",
            Failure::without_answer(code),
        ),
    };
    Explanation {
        class: class_of_problem(problem),
        problem: Some(problem.to_owned()),
        cause: cause.to_owned(),
        action: action.to_owned(),
        status,
        code: Some(code.to_owned()),
        missing_scopes: Vec::new(),
        retry_after: failure.retry_after,
        correlation_id: failure.correlation_id,
    }
}

/// An exception or log line without any status: what the words say.
fn class_without_status(text: &str) -> Option<Class> {
    let lower = text.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let class = if says(&["timed out", "timeout", "etimedout", "deadline exceeded"]) {
        Class::Timeout
    } else if says(&[
        "econnrefused",
        "econnreset",
        "enotfound",
        "eai_again",
        "socket hang up",
        "connection re",
        "getaddrinfo",
    ]) {
        Class::Unavailable
    } else if lower.contains("token") && says(&["expired", "is expired"]) {
        let body = message_as_body(text);
        judge(ApiAnswer {
            status: 401,
            body: body.as_bytes(),
            ..ApiAnswer::default()
        })
        .class
    } else if says(&[
        "unauthorized",
        "invalid_token",
        "authentication credentials not found",
    ]) {
        Class::Rejected
    } else if says(&[
        "missing_scopes",
        "insufficient_scope",
        "required scope",
        "forbidden",
    ]) {
        Class::PermissionDenied
    } else if says(&["too many requests", "rate limit", "ten_secondly_rolling"]) {
        Class::RateLimited
    } else {
        return None;
    };
    Some(class)
}

/// A text that says what HubSpot says in `message`, in the shape that [`judge`] reads.
fn message_as_body(text: &str) -> String {
    serde_json::json!({ "message": text }).to_string()
}

/// A three-digit status where one stands: after `HTTP/1.1`, `status`, `code`, in brackets, or before its reason phrase.
fn find_status(text: &str) -> Option<u16> {
    const BEFORE: [&str; 6] = ["http/", "http ", "status", "code", "http-", "resulted in a"];
    const AFTER: [&str; 12] = [
        "unauthorized",
        "forbidden",
        "too many requests",
        "bad request",
        "not found",
        "conflict",
        "bad gateway",
        "service unavailable",
        "gateway time",
        "internal server",
        "client error",
        "server error",
    ];
    let lower = text.to_ascii_lowercase();
    let bytes = lower.as_bytes();
    let is_word = |at: Option<&u8>| at.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'.');
    for start in 0..bytes.len().saturating_sub(2) {
        let digits = &bytes[start..start + 3];
        if !digits.iter().all(u8::is_ascii_digit)
            || (start > 0 && is_word(bytes.get(start - 1)))
            || is_word(bytes.get(start + 3))
        {
            continue;
        }
        let status: u16 = lower[start..start + 3].parse().ok()?;
        if !(100..600).contains(&status) {
            continue;
        }
        let before = &lower[ceil(&lower, start.saturating_sub(24))..start];
        let after = &lower[start + 3..floor(&lower, start + 32)];
        let after = after.trim_start_matches([' ', ':', '-', '`', '"', '\'', ')']);
        let in_brackets = before.trim_end().ends_with('(') && bytes.get(start + 3) == Some(&b')');
        if in_brackets
            || BEFORE.iter().any(|word| before.contains(word))
            || AFTER.iter().any(|word| after.starts_with(word))
        {
            return Some(status);
        }
    }
    None
}

/// The value of a header, wherever it is written as `name: value`, quoted or not.
fn find_header<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let at = text.to_ascii_lowercase().find(name)? + name.len();
    let rest = text.get(at..)?.trim_start_matches(['"', '\'', ' ']);
    let value = rest
        .strip_prefix([':', '='])?
        .trim_start_matches([' ', '"', '\'', '[']);
    value
        .lines()
        .next()
        .map(str::trim)
        .filter(|value| !value.is_empty())
}

/// Members by which an error body is known.
const KNOWN: [&str; 7] = [
    "category",
    "message",
    "error",
    "status",
    "correlationId",
    "errorType",
    "type",
];

/// The first JSON object in the text that looks like an error: alone, inside another one, or as a string within one.
fn find_json(text: &str) -> Option<Value> {
    find_object(text).or_else(|| {
        // A body inside a quoted string of a log line.
        text.contains("\\\"")
            .then(|| text.replace("\\\"", "\""))
            .and_then(|text| find_object(&text))
    })
}

fn find_object(text: &str) -> Option<Value> {
    // Each brace is one try, and each try reads on to the end.
    const TRIES: usize = 64;
    text.match_indices('{').take(TRIES).find_map(|(at, _)| {
        let mut values = serde_json::Deserializer::from_str(&text[at..]).into_iter::<Value>();
        let value = values.next()?.ok()?;
        let end = at + values.byte_offset();
        // Read once more without forgiveness: what could be read in two ways is no evidence.
        error_in(&strict_json::parse(&text.as_bytes()[at..end]).unwrap_or(value), 0)
    })
}

fn error_in(value: &Value, depth: u32) -> Option<Value> {
    const DEPTH_MAX: u32 = 4;
    if depth > DEPTH_MAX {
        return None;
    }
    match value {
        Value::Object(members) => {
            let inner = members.values().find_map(|member| error_in(member, depth + 1));
            inner.or_else(|| {
                let known = KNOWN.iter().filter(|name| members.contains_key(**name)).count();
                let decides = ["category", "error", "errorType"]
                    .iter()
                    .any(|name| members.get(*name).is_some_and(Value::is_string));
                (known >= 2 || decides).then(|| value.clone())
            })
        }
        Value::String(text) if text.trim_start().starts_with('{') => {
            error_in(&strict_json::parse(text.trim().as_bytes())?, depth + 1)
        }
        _ => None,
    }
}

fn status_in(body: &Value) -> Option<u16> {
    ["statusCode", "status_code", "httpStatus", "status", "code"]
        .into_iter()
        .filter_map(|member| body[member].as_u64())
        .find_map(|status| {
            u16::try_from(status)
                .ok()
                .filter(|status| (100..600).contains(status))
        })
}

/// The status that always goes with a category of HubSpot's.
fn implied_status(body: &Value) -> Option<u16> {
    if body["errorType"] == "RATE_LIMIT" {
        return Some(429);
    }
    match body["category"].as_str()? {
        "EXPIRED_AUTHENTICATION" | "INVALID_AUTHENTICATION" => Some(401),
        "MISSING_SCOPES" | "BANNED" => Some(403),
        "RATE_LIMITS" => Some(429),
        "OBJECT_NOT_FOUND" => Some(404),
        "CONFLICT" => Some(409),
        "VALIDATION_ERROR" => Some(400),
        _ => None,
    }
}

fn clip(word: &str) -> String {
    word.chars().filter(|c| !c.is_control()).take(128).collect()
}

fn clip_sentence(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(500).collect()
}

/// The last character boundary at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0)
}

/// The first character boundary at or after `at`.
fn ceil(text: &str, at: usize) -> usize {
    (at..=text.len())
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! api {
        ($name:literal) => {
            include_str!(concat!("../fixtures/api/", $name))
        };
    }
    macro_rules! token {
        ($name:literal) => {
            include_str!(concat!("../fixtures/token/", $name))
        };
    }

    fn explained(text: &str) -> Option<Explanation> {
        explain(text, |code| {
            (code == "reconnect_required").then_some(("The grant is gone.", "Send the link."))
        })
    }

    /// `word` is the problem, where there is one, else the class.
    fn check(text: &str, word: &str, status: Option<u16>) {
        let explained = explained(text).unwrap_or_else(|| panic!("nothing found in {text}"));
        let found = explained.problem.as_deref().unwrap_or(explained.class.as_str());
        assert_eq!((found, explained.status), (word, status), "{text}");
        assert!(
            !explained.cause.is_empty() && !explained.action.is_empty(),
            "{text}"
        );
    }

    #[test]
    fn every_fixture_is_explained_from_its_body_alone() {
        check(api!("expired_seconds.json"), "expired", Some(401));
        check(api!("expired_minutes.json"), "expired", Some(401));
        check(api!("expired_days.json"), "expired", Some(401));
        check(api!("malformed_token.json"), "malformed_token", Some(401));
        check(api!("credentials_not_found.json"), "rejected", Some(401));
        check(api!("missing_scopes.json"), "permission_denied", Some(403));
        check(
            api!("missing_scopes_older_key.json"),
            "permission_denied",
            Some(403),
        );
        check(api!("rate_limited_ten_secondly.json"), "rate_limited", Some(429));
        check(api!("rate_limited_daily.json"), "rate_limited", Some(429));
        check(api!("conflict.json"), "client_error", Some(409));
        check(token!("bad_refresh_token.json"), "reconnect_required", None);
        check(
            token!("bad_refresh_token_before_2026.json"),
            "reconnect_required",
            None,
        );
        check(token!("bad_hub.json"), "reconnect_required", None);
        check(token!("invalid_grant_rfc.json"), "reconnect_required", None);
        check(
            token!("mismatch_refresh_token_client.json"),
            "reconnect_required",
            None,
        );
        check(token!("bad_client_id.json"), "app_credentials_rejected", None);
        check(token!("bad_client_secret.json"), "app_credentials_rejected", None);
        check(
            token!("invalid_client_rfc.json"),
            "app_credentials_rejected",
            None,
        );
    }

    #[test]
    fn a_whole_http_answer_is_taken_apart() {
        let answer = format!(
            "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nRetry-After: 7\r\n\r\n{}",
            api!("rate_limited_secondly.json")
        );
        check(&answer, "rate_limited", Some(429));
        let explained = explained(&answer).expect("an answer");
        assert_eq!(explained.retry_after, Some(Duration::from_secs(7)));
        assert!(explained.cause.contains("SECONDLY"), "{}", explained.cause);
        check(
            "HTTP/2 401\nwww-authenticate: Bearer error=\"invalid_token\", error_description=\"The access token expired\"\n",
            "expired",
            Some(401),
        );
        check(
            "HTTP/1.1 502 Bad Gateway\n\n<html>502 Bad Gateway</html>",
            "unavailable",
            Some(502),
        );
        check(
            &format!("HTTP/1.1 503\n\n{}", token!("bad_refresh_token.json")),
            "provider_unavailable",
            Some(503),
        );
    }

    #[test]
    fn exceptions_of_hubspots_clients_are_understood() {
        let body = api!("expired_seconds.json");
        let node = format!(
            "ApiException: HTTP-Code: 401\nMessage: An error occurred.\nBody: {body}\nHeaders: {{\"date\":\"x\"}}"
        );
        check(&node, "expired", Some(401));
        let python = format!(
            "hubspot.crm.contacts.exceptions.UnauthorizedException: (401)\nReason: Unauthorized\nHTTP response headers: HTTPHeaderDict({{'Date': 'x', 'CF-RAY': '123-FRA'}})\nHTTP response body: {body}"
        );
        check(&python, "expired", Some(401));
        check(
            "Client error: `POST https://api.hubapi.com/oauth/v1/token` resulted in a `400 Bad Request` response: {\"status\":\"BAD_REFRESH_TOKEN\",\"message\":\"missing or unknown refresh token\"}",
            "reconnect_required",
            Some(400),
        );
        check(
            "Error: Request failed with status code 403",
            "permission_denied",
            Some(403),
        );
        check(
            "requests.exceptions.HTTPError: 401 Client Error: Unauthorized for url: https://api.hubapi.com/x",
            "rejected",
            Some(401),
        );
    }

    #[test]
    fn log_lines_and_bare_messages_are_understood() {
        check(
            r#"{"level":"error","msg":"call failed","response":{"statusCode":401,"body":"{\"status\":\"error\",\"message\":\"The OAuth token used to make this call expired 5 second(s) ago.\",\"category\":\"EXPIRED_AUTHENTICATION\"}"}}"#,
            "expired",
            Some(401),
        );
        check(
            "oauth2: \"invalid_grant\" \"refresh token is invalid\"",
            "reconnect_required",
            None,
        );
        check("connect ETIMEDOUT 104.17.1.1:443", "timeout", None);
        check("getaddrinfo ENOTFOUND api.hubapi.com", "unavailable", None);
        check(
            "The OAuth token used to make this call expired 20705 day(s) ago.",
            "malformed_token",
            None,
        );
        check(
            "2026-11-24 10:00:01 WARN GET /crm/v3/objects/contacts status=429 duration=31ms",
            "rate_limited",
            Some(429),
        );
    }

    #[test]
    fn an_answer_of_evergrant_says_what_it_says_itself() {
        let text = r#"{"type":"urn:evergrant:problem:reconnect_required","title":"t","status":424,"detail":"the grant is gone","code":"reconnect_required","action":"use the link"}"#;
        let explained = explained(text).expect("a problem");
        assert_eq!(explained.problem.as_deref(), Some("reconnect_required"));
        assert_eq!(explained.class, Class::ClientError);
        assert_eq!(
            (explained.cause.as_str(), explained.action.as_str()),
            ("the grant is gone", "use the link")
        );
    }

    #[test]
    fn evergrants_own_words_are_kept() {
        let class = |text: &str, class: Class, status: u16| {
            let explained = explained(text).unwrap_or_else(|| panic!("nothing found in {text}"));
            assert_eq!(
                (explained.class, explained.problem, explained.status),
                (class, None, Some(status)),
                "{text}"
            );
            assert_eq!(explained.action, about(class).action);
        };
        class(
            r#"{"event":"call","class":"rejected_after_refresh","status_code":401}"#,
            Class::RejectedAfterRefresh,
            401,
        );
        class(
            "WARN evergrant: event=\"call\" status_code=401 class=\"static_rejected\"",
            Class::StaticRejected,
            401,
        );
        class(
            &format!(
                "HTTP/1.1 401 Unauthorized\nEvergrant-Class: rejected_after_refresh\n\n{}",
                api!("expired_seconds.json")
            ),
            Class::RejectedAfterRefresh,
            401,
        );
        // A word of somebody else's that is none of ours.
        class(
            r#"{"class":"com.example.ApiException","status":403}"#,
            Class::PermissionDenied,
            403,
        );
    }

    #[test]
    fn an_answer_of_evergrant_is_known_by_its_code_alone() {
        let body =
            r#"{"type":"urn:evergrant:problem:reconnect_required","status":424,"code":"reconnect_required"}"#;
        for text in [
            format!("HTTP/1.1 424 Failed Dependency\nEvergrant-Error: reconnect_required\n\n{body}"),
            "HTTP/1.1 424\r\nevergrant-error: reconnect_required\r\n".to_owned(),
            body.to_owned(),
        ] {
            let explained = explained(&text).unwrap_or_else(|| panic!("nothing found in {text}"));
            assert_eq!(explained.problem.as_deref(), Some("reconnect_required"), "{text}");
            assert_eq!(explained.cause, "The grant is gone.", "{text}");
            assert_eq!(explained.help_path(), "/help/errors/reconnect_required");
        }
        check(
            "HTTP/1.1 424\nEvergrant-Error: from_the_future\n",
            "from_the_future",
            Some(424),
        );
    }

    #[test]
    fn a_bare_status_is_enough() {
        check("HTTP 503", "unavailable", Some(503));
        check("503 Service Unavailable", "unavailable", Some(503));
        check("HTTP/1.1 503", "unavailable", Some(503));
        check("http 401", "rejected", Some(401));
    }

    #[test]
    fn what_holds_nothing_is_not_explained_and_nothing_breaks() {
        let deep = "{\"a\":".repeat(5000);
        let umlauts = "ä".repeat(200);
        for text in [
            "",
            "hello",
            "{}",
            "{\"a\":1}",
            "[1,2,3]",
            "1234",
            "ä401ä",
            "v4.401.2",
            &deep,
            &umlauts,
        ] {
            assert_eq!(
                explained(text),
                None,
                "{}",
                text.chars().take(40).collect::<String>()
            );
        }
    }

    #[test]
    fn a_pasted_token_is_not_repeated() {
        let text = "HTTP/1.1 401 Unauthorized\nAuthorization: Bearer canary-token\n\n{\"status\":\"error\",\"message\":\"canary-token expired\",\"category\":\"INVALID_AUTHENTICATION\"}";
        assert!(!format!("{:?}", explained(text).expect("an answer")).contains("canary"));
    }

    #[test]
    fn every_class_says_what_happened_and_what_to_do() {
        for class in Class::ALL {
            let about = about(class);
            assert!(
                about.cause.ends_with('.') && about.action.ends_with('.'),
                "{}",
                class.as_str()
            );
        }
    }
}
