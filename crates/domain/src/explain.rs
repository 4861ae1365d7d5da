//! What a pasted answer means: an HTTP answer, a JSON error, the text of an exception, a log line.
//!
//! Whatever is pasted, status, headers and error are found in it first (`pasted`); then the same functions judge it that judge
//! answers on the wire, [`judge`] and [`token_answer::read`](crate::token_answer::read). Where Evergrant itself has said already
//! what it was (a header, a problem document, a line of its log), its word is kept (`own_words`). Nothing that was pasted is
//! repeated but codes, scopes and ids of answers: people paste tokens, too.

mod own_words;
mod pasted;
#[cfg(test)]
mod tests;
mod token_endpoint;

use std::time::Duration;

use serde_json::Value;

use self::pasted::Pasted;
use crate::api_answer::{ApiAnswer, Class, judge};

/// What it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The word for it, the same as in headers and logs.
    pub class: Class,
    /// The code of the problem that it is or leads to, for an answer of Evergrant itself or of a token endpoint.
    pub problem: Option<String>,
    /// What happened: one or two sentences.
    pub cause: String,
    /// Whether a refresh of the access token mends it.
    pub refresh_helps: bool,
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
    /// Where whoever made the answer documents it.
    pub documentation_url: &'static str,
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

/// Pages of HubSpot's documentation, and our own.
mod documentation {
    pub(super) const ERRORS: &str = "https://developers.hubspot.com/docs/api-reference/error-handling";
    pub(super) const OAUTH: &str = "https://developers.hubspot.com/docs/api-reference/auth-oauth-v3/guide";
    pub(super) const SCOPES: &str =
        "https://developers.hubspot.com/docs/apps/developer-platform/build-apps/authentication/scopes";
    pub(super) const LIMITS: &str = "https://developers.hubspot.com/docs/api/usage-details";
    pub(super) const OURS: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/docs/troubleshooting.md");
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
            "Wait as long as Retry-After says and spread the calls; a daily limit ends at midnight in the account's time zone.",
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

/// Says what a pasted text means. `None` where there is neither a status, nor an error, nor a message that is known.
///
/// `meaning` knows what Evergrant's own codes mean and what to do about them; an answer that says it itself is believed first.
pub fn explain(
    text: &str,
    meaning: impl Fn(&str) -> Option<(&'static str, &'static str)>,
) -> Option<Explanation> {
    // Of a long text, a whole log above all, the end is what somebody was looking at; the beginning is where an answer starts.
    pasted::ends(text)
        .into_iter()
        .flatten()
        .find_map(|text| explain_part(text, &meaning))
}

fn explain_part(
    text: &str,
    meaning: &impl Fn(&str) -> Option<(&'static str, &'static str)>,
) -> Option<Explanation> {
    let pasted = Pasted::read(text);
    if let Some(own) = own_words::problem(&pasted, meaning) {
        return Some(own);
    }
    if pasted.is_token_set() {
        return Some(Explanation {
            cause: "This is the answer of a token endpoint that issued tokens: nothing went wrong. Whoever can read it can use them.".to_owned(),
            action: "Keep such answers out of logs, tickets and chats; where this one was shown to others, disconnect the connection and connect it anew.".to_owned(),
            documentation_url: documentation::OAUTH,
            ..bare(Class::Ok)
        });
    }
    let own_class = own_words::class(&pasted);
    if own_class.is_none()
        && let Some(code) = token_endpoint::code(&pasted)
    {
        return Some(token_endpoint::explain(&pasted, code));
    }
    let implied = || {
        pasted
            .body()
            .and_then(implied_status)
            .or_else(|| limited_at_the_edge(&pasted))
    };
    let Some(status) = pasted.status().or_else(implied) else {
        return match own_class {
            Some(class) => Some(bare(class)),
            None => without_status(&pasted),
        };
    };
    let judged = judge(ApiAnswer {
        status,
        www_authenticate: pasted.header("www-authenticate"),
        retry_after: pasted.retry_after(),
        body: judged_body(&pasted).as_bytes(),
    });
    let class = own_class.unwrap_or(judged.class);
    let missing_scopes: Vec<String> = judged
        .missing_scopes
        .into_iter()
        .filter(|scope| is_word(scope))
        .collect();
    let policy = judged.policy.filter(|policy| is_word(policy));
    let (mut cause, mut action) = match special(status, policy.as_deref()).or_else(|| without_token(&pasted))
    {
        Some((cause, action)) if class == judged.class => (cause.to_owned(), action),
        _ => (about(class).cause.to_owned(), about(class).action),
    };
    if class == Class::PermissionDenied {
        if !missing_scopes.is_empty() {
            cause = format!("{cause} Missing: {}.", missing_scopes.join(", "));
        } else if own_class.is_none() && !says_that_scopes_are_missing(&pasted) {
            "The call is refused, and nothing in this text says for which right. It has nothing to do with expiry."
                .clone_into(&mut cause);
            action = "Look at the whole answer: where scopes are missing, it names them. Otherwise the user who installed the app may lack the right, the account's plan the feature, or something on the way refuses the call. Refreshing brings the same rights.";
        }
    }
    if let Some(policy) = &policy {
        cause = format!("{cause} The limit is {policy}.");
    }
    if pasted.is_page() && status >= 400 {
        cause = format!(
            "{cause} The answer is a page for browsers: it comes from something in front of the API."
        );
        if class == Class::PermissionDenied {
            action = "Find out what refuses the call on its way: a firewall of the provider, or a proxy of your own.";
        }
    }
    Some(Explanation {
        cause,
        action: action.to_owned(),
        status: Some(status),
        code: pasted
            .said("category")
            .or_else(|| pasted.said("errorType"))
            .filter(|code| is_word(code))
            .map(str::to_owned),
        missing_scopes,
        retry_after: judged.retry_after,
        correlation_id: correlation_id(&pasted),
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
        refresh_helps: class.refresh_helps(),
        action: about.action.to_owned(),
        status: None,
        code: None,
        missing_scopes: Vec::new(),
        retry_after: None,
        correlation_id: None,
        documentation_url: match class {
            Class::PermissionDenied => documentation::SCOPES,
            Class::RateLimited => documentation::LIMITS,
            Class::Unavailable | Class::Timeout | Class::ClientError | Class::Ok => documentation::ERRORS,
            Class::StaleToken | Class::RejectedAfterRefresh | Class::StaticRejected => documentation::OURS,
            Class::Expired | Class::Rejected | Class::MalformedToken => documentation::OAUTH,
        },
    }
}

/// What is to be said of an answer beyond its class.
fn special(status: u16, policy: Option<&str>) -> Option<(&'static str, &'static str)> {
    let (cause, action) = match status {
        207 => (
            "The provider carried out a part of the batch and refused the rest; its answer lists what it refused, and why.",
            "Read the list of errors in the answer, correct what was refused, and send only that again.",
        ),
        404 => (
            "There is no such thing in the account that was called.",
            "Check path and id, and that the connection is that of the account which is meant.",
        ),
        409 => (
            "The provider says that it exists already, or was changed meanwhile.",
            "Look for what is there, and update it instead of creating it again.",
        ),
        423 => (
            "The provider has locked what is to be written, because so much is written at once; such a lock lasts for seconds. It has nothing to do with the token.",
            "Repeat the call after two seconds, and write more slowly or in batches.",
        ),
        429 if policy.is_some_and(|policy| policy.contains("DAILY")) => (
            "The account's calls of this day are used up. It has nothing to do with the token.",
            "Stop calling until midnight in the account's time zone; then make fewer calls: in batches, from a cache.",
        ),
        477 => (
            "The provider is moving the account to another data centre. It has nothing to do with the token.",
            "Wait as long as Retry-After says; it may be up to a day.",
        ),
        _ => return None,
    };
    Some((cause, action))
}

/// Whether the text says in so many words that it is scopes that are missing.
fn says_that_scopes_are_missing(pasted: &Pasted<'_>) -> bool {
    [
        "missing_scopes",
        "insufficient_scope",
        "required scope",
        "scopes are required",
    ]
    .iter()
    .any(|word| pasted.lower().contains(word))
}

/// No token was found in the request at all, or two words where one should be.
fn without_token(pasted: &Pasted<'_>) -> Option<(&'static str, &'static str)> {
    pasted.lower().contains("authentication credentials not found").then_some((
        "The provider found no access token in the request: the header Authorization is missing, or is not \"Bearer\" and one token.",
        "Look at how the header is made: Bearer written twice, an empty variable, a proxy that removes it. Through the gateway none of it can happen; a refresh mends it only where no token was at hand.",
    ))
}

/// What [`judge`] reads. Exceptions often carry the message and not the body around it, and pages none at all.
fn judged_body(pasted: &Pasted<'_>) -> String {
    match pasted.body() {
        Some(body) if body["message"].is_string() || body["category"].is_string() => body.to_string(),
        _ if pasted.is_page() => String::new(),
        Some(Value::Object(members)) => {
            let mut members = members.clone();
            members.insert("message".to_owned(), pasted.text().into());
            Value::Object(members).to_string()
        }
        _ => message_as_body(pasted.text()),
    }
}

/// A text that says what HubSpot says in `message`, in the shape that [`judge`] reads.
fn message_as_body(text: &str) -> String {
    serde_json::json!({ "message": text }).to_string()
}

/// No answer came: what the words say of how far the call got.
fn without_answer(lower: &str) -> Option<Explanation> {
    let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let unconnected = [
        "econnrefused",
        "enotfound",
        "eai_again",
        "getaddrinfo",
        "connection refused",
        "could not resolve",
        "couldn't resolve",
        "name or service not known",
        "nodename nor servname",
        "temporary failure in name resolution",
        "unknownhostexception",
        "no such host",
        "no route to host",
        "network is unreachable",
        "certificate",
        "ssl error",
        "sslerror",
        "tls handshake",
        "ssl routines",
        "sslhandshakeexception",
        "x509:",
        "curl error 6",
        "curl error 7",
        "curl error 35",
        "curl error 60",
        "curl: (6)",
        "curl: (7)",
        "curl: (35)",
        "curl: (60)",
        "failed to open tcp connection",
        "failed to connect",
    ];
    let cut = [
        "econnreset",
        "epipe",
        "socket hang up",
        "connection reset",
        "connection aborted",
        "remote end closed",
        "server disconnected",
        "premature close",
        "empty reply from server",
        "stream was reset",
        "streamresetexception",
        "unexpected eof",
        "broken pipe",
        "fetch failed",
        "max retries exceeded",
        "failed to establish",
    ];
    // Of all that time out, these have not even connected.
    let timed_out_connecting = [
        "connect etimedout",
        "connect timed out",
        "connecttimeout",
        "connect timeout",
        "und_err_connect_timeout",
    ];
    let class = if says(&timed_out_connecting) {
        Some(Class::Timeout)
    } else {
        says(&unconnected).then_some(Class::Unavailable)
    };
    if let Some(class) = class {
        return Some(Explanation {
            cause: "No connection to the provider was made, so nothing was sent. It has nothing to do with the token.".to_owned(),
            action: "Look at the way there: the name and its resolution, a proxy, a firewall, certificates. Then repeat the call.".to_owned(),
            ..bare(class)
        });
    }
    if has_timed_out(lower) {
        return Some(bare(Class::Timeout));
    }
    if says(&cut) {
        return Some(Explanation {
            cause: "The connection failed before an answer was there. Nobody knows whether the call was carried out; it has nothing to do with the token.".to_owned(),
            action: "A read may be repeated. Look whether a write was carried out before repeating it.".to_owned(),
            ..bare(Class::Unavailable)
        });
    }
    None
}

/// An exception or log line without any status: what the words say.
fn without_status(pasted: &Pasted<'_>) -> Option<Explanation> {
    let lower = pasted.lower();
    if let Some(failed) = without_answer(lower) {
        return Some(failed);
    }
    let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let class = if lower.contains("token") && lower.contains("expired") {
        let body = message_as_body(pasted.text());
        judge(ApiAnswer {
            status: 401,
            body: body.as_bytes(),
            ..ApiAnswer::default()
        })
        .class
    } else if says(&[
        "unauthorizedexception",
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
    Some(bare(class))
}

/// Whether a timeout came to pass, and is not just set to something, as in what a client prints of its settings.
fn has_timed_out(lower: &str) -> bool {
    let says = [
        "timed out",
        "etimedout",
        "deadline exceeded",
        "curl error 28",
        "curl: (28)",
    ];
    says.iter().any(|word| lower.contains(word))
        || lower.match_indices("timeout").any(|(at, word)| {
            let after = lower[at + word.len()..].trim_start_matches(['"', '\\', '\'']);
            !lower[..at].ends_with(['_', '.', '-']) && !after.starts_with([':', '=', '_', '('])
        })
}

/// Cloudflare, in front of HubSpot, says so with a number of its own.
fn limited_at_the_edge(pasted: &Pasted<'_>) -> Option<u16> {
    pasted
        .lower()
        .contains("you are being rate limited")
        .then_some(429)
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

/// To quote to HubSpot's support: in the body, or in a header.
fn correlation_id(pasted: &Pasted<'_>) -> Option<String> {
    let in_header = || {
        pasted
            .header("x-hubspot-correlation-id")?
            .split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
            .next()
    };
    pasted
        .said("correlationId")
        .filter(|id| pasted::is_id(id))
        .or_else(|| in_header().filter(|id| pasted::is_id(id)))
        .map(str::to_owned)
}

/// Whether it is a word as codes and scopes are, in capitals or without any. Tokens mix them, or begin like tokens.
fn is_word(word: &str) -> bool {
    let is_of = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b':' | b'-');
    let has = |is: fn(&u8) -> bool| word.bytes().any(|byte| is(&byte));
    (1..=80).contains(&word.len())
        && word.bytes().all(is_of)
        && !(has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase))
        && !pasted::is_like_a_token(word)
}
