//! What a token endpoint's answer means: one variant per next step.
//!
//! HubSpot's `status` is judged first, RFC 6749's `error` second: only three pairs of the two were ever seen together, and
//! the RFC's word alone does not tell a dead grant from a wrong client. Both the error format since January 2026 and the
//! older one without `error` are read.
//!
//! Source: RFC 6749 §5; HubSpot, OAuth API v1, v3, 2026-03; PROTOCOL rules 7 to 13.

use std::time::Duration;

use base64::Engine as _;
use serde_json::{Map, Value};

use crate::app::Dialect;
use crate::id::AccountId;
use crate::refresh_policy::lifetime_from_wire;
use crate::secret::{AccessToken, RefreshToken};
use crate::strict_json;

/// An answer as it came over the wire, read whole.
#[derive(Clone, Copy)]
pub struct RawAnswer<'a> {
    /// The HTTP status code.
    pub status: u16,
    /// `Retry-After`, in seconds or as a date, already turned into a duration.
    pub retry_after: Option<Duration>,
    /// The body; empty where there was none.
    pub body: &'a [u8],
}

/// What a redemption of a code or a refresh token brought. One variant per next step.
#[derive(Debug, Clone)]
pub enum TokenAnswer {
    /// A token set was issued.
    Issued(Box<Issued>),
    /// The provider did nothing: back off; what is at hand goes on serving.
    NotIssued(Failure),
    /// Nobody knows whether a token set was issued.
    Lost(Failure),
    /// The app's own credentials are refused. No connection is to blame.
    ClientRefused(Failure),
    /// The refresh token was issued to another client id.
    WrongClient(Failure),
    /// The grant is refused. Evidence, not a verdict: another process may have stored a newer set.
    GrantRefused(Failure),
    /// The authorization code is refused: the customer begins again.
    CodeRefused(Failure),
    /// The endpoint answered something else that is definite. It is at fault; nobody is condemned.
    EndpointFault(Failure),
}

/// Why there is no token set. Never holds anything of the body but the provider's error code and correlation id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// One word: the provider's code where it gave one, else a word of ours.
    pub code: String,
    /// The HTTP status, where there was an answer.
    pub http_status: Option<u16>,
    /// The provider asked for this long a pause.
    pub retry_after: Option<Duration>,
    /// To quote to the provider's support.
    pub correlation_id: Option<String>,
}

impl Failure {
    /// A failure without an answer of the provider behind it.
    pub fn without_answer(code: &str) -> Self {
        Self {
            code: code.to_owned(),
            http_status: None,
            retry_after: None,
            correlation_id: None,
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.code)?;
        match self.http_status {
            Some(status) => write!(f, " (HTTP {status})"),
            None => Ok(()),
        }
    }
}

/// A token set as issued, before it is given its ends.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The access token.
    pub access_token: AccessToken,
    /// `None` where none came, or an empty one: the old one stays (RFC 6749 §6).
    pub refresh_token: Option<RefreshToken>,
    /// As written; `bearer` where it is missing.
    pub token_type: String,
    /// `None` where the answer names none: as asked for (RFC 6749 §5.1).
    pub scopes: Option<Vec<String>>,
    /// How long it lives, counted from when the request was sent; nonsense already replaced by the default.
    pub lifetime: Duration,
    /// The account, where the answer or its `id_token` says it.
    pub account: Option<AccountId>,
}

/// Reads the answer to a redemption.
///
/// `account_claim` is the member that names the account.
pub fn read(answer: RawAnswer<'_>, dialect: Dialect, account_claim: &str) -> TokenAnswer {
    let body = strict_json::parse(answer.body);
    let members = body.as_ref().and_then(Value::as_object);
    let failure = |code: &str| Failure {
        code: code.to_owned(),
        http_status: Some(answer.status),
        retry_after: answer.retry_after,
        correlation_id: members.and_then(|m| text(m, "correlationId")).map(|id| clip(&id)),
    };
    match answer.status {
        429 => return TokenAnswer::NotIssued(failure("rate_limited")),
        423 => return TokenAnswer::NotIssued(failure("locked")),
        477 => return TokenAnswer::NotIssued(failure("account_migrating")),
        // An edge's 504 can follow a redemption, so no 5xx says that nothing was issued, whatever its body claims.
        500..=599 => return TokenAnswer::Lost(failure("server_error")),
        _ => {}
    }
    if (200..300).contains(&answer.status) {
        let Some(members) = members else {
            return TokenAnswer::Lost(failure("unreadable"));
        };
        // An error inside a 200 wins over whatever else stands there.
        if members.get("error").is_none_or(Value::is_null) {
            return match issued(members, account_claim) {
                Ok(issued) => TokenAnswer::Issued(Box::new(issued)),
                Err(word) => TokenAnswer::Lost(failure(word)),
            };
        }
    }
    let Some(code) = members.and_then(|members| error_code(members, dialect)) else {
        return TokenAnswer::EndpointFault(failure("unexpected_answer"));
    };
    let failure = failure(&code);
    match code.as_str() {
        "BAD_REFRESH_TOKEN" | "BAD_HUB" | "invalid_grant" => TokenAnswer::GrantRefused(failure),
        "MISMATCH_REFRESH_TOKEN_CLIENT" => TokenAnswer::WrongClient(failure),
        "BAD_CLIENT_ID" | "BAD_CLIENT_SECRET" | "invalid_client" | "unauthorized_client" => {
            TokenAnswer::ClientRefused(failure)
        }
        "BAD_AUTH_CODE" | "EXPIRED_AUTH_CODE" | "MISMATCH_REDIRECT_URI_AUTH_CODE" | "BAD_CODE_VERIFIER" => {
            TokenAnswer::CodeRefused(failure)
        }
        _ => TokenAnswer::EndpointFault(failure),
    }
}

/// The code that decides: HubSpot's `status` where it is one of its words, else RFC 6749's `error`.
fn error_code(members: &Map<String, Value>, dialect: Dialect) -> Option<String> {
    // HubSpot writes `"status": "error"` in its API errors; only the upper-case words are codes.
    let status = text(members, "status").filter(|word| {
        dialect == Dialect::HubSpot && word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
    });
    status
        .or_else(|| text(members, "error"))
        .filter(|code| !code.is_empty())
        .map(|code| clip(&code))
}

/// What an introspection says (RFC 7662). Only `active` is trusted.
#[derive(Debug, Clone)]
pub enum Introspected {
    /// The token lives.
    Active(Box<TokenFacts>),
    /// The provider does not know it, or not any more.
    Inactive,
    /// The app's own credentials are refused.
    ClientRefused(Failure),
    /// No usable answer; it says nothing about the token.
    Unknown(Failure),
}

/// What an introspection says about a living token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenFacts {
    /// The account it belongs to.
    pub account: Option<AccountId>,
    /// HubSpot's `hub_domain`.
    pub domain: Option<String>,
    /// HubSpot's `user`, or RFC 7662's `username`.
    pub user: Option<String>,
    /// What was granted.
    pub scopes: Option<Vec<String>>,
    /// How long it still lives.
    pub lifetime: Option<Duration>,
}

/// Reads the answer to an introspection.
pub fn read_introspection(answer: RawAnswer<'_>, dialect: Dialect, account_claim: &str) -> Introspected {
    let body = strict_json::parse(answer.body);
    let members = body.as_ref().and_then(Value::as_object);
    let failure = |code: String| Failure {
        code,
        http_status: Some(answer.status),
        retry_after: answer.retry_after,
        correlation_id: members.and_then(|m| text(m, "correlationId")).map(|id| clip(&id)),
    };
    if let (200, Some(members)) = (answer.status, members) {
        match members.get("active").and_then(Value::as_bool) {
            Some(false) => return Introspected::Inactive,
            Some(true) => {
                return Introspected::Active(Box::new(TokenFacts {
                    account: account(members, account_claim),
                    domain: text(members, "hub_domain").map(|domain| clip(&domain)),
                    user: text(members, "user")
                        .or_else(|| text(members, "username"))
                        .map(|user| clip(&user)),
                    scopes: scopes(members),
                    lifetime: number(members.get("expires_in"))
                        .map(|seconds| lifetime_from_wire(Some(seconds))),
                }));
            }
            None => {}
        }
    }
    match members.and_then(|members| error_code(members, dialect)) {
        Some(code)
            if (400..500).contains(&answer.status)
                && matches!(
                    code.as_str(),
                    "BAD_CLIENT_ID" | "BAD_CLIENT_SECRET" | "invalid_client" | "unauthorized_client"
                ) =>
        {
            Introspected::ClientRefused(failure(code))
        }
        Some(code) => Introspected::Unknown(failure(code)),
        None => Introspected::Unknown(failure("unexpected_answer".into())),
    }
}

/// What a revocation came to (RFC 7009).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revoked {
    /// The token is dead; RFC 7009 answers 200 for one it never knew, too.
    Done,
    /// It may still live: try again.
    TryAgain(Failure),
    /// An answer that is none to a revocation, as of another server: it may be that for a while, or the provider revokes nothing.
    Strange(Failure),
    /// The provider does not revoke such tokens.
    Unsupported(Failure),
}

/// Reads the answer to a revocation. RFC 7009 §2.2.1: after a 503 the token must be taken to exist.
pub fn read_revocation(answer: RawAnswer<'_>) -> Revoked {
    let failure = |code: &str| Failure {
        code: code.to_owned(),
        http_status: Some(answer.status),
        retry_after: answer.retry_after,
        correlation_id: None,
    };
    match answer.status {
        200..=299 => Revoked::Done,
        400 | 404 | 405 => {
            let body = strict_json::parse(answer.body);
            let code = body
                .as_ref()
                .and_then(Value::as_object)
                .and_then(|m| error_code(m, Dialect::HubSpot));
            match code.as_deref() {
                // A token it does not know is as dead as one that it revoked.
                Some("BAD_REFRESH_TOKEN" | "invalid_token" | "invalid_grant" | "BAD_HUB") => Revoked::Done,
                Some("BAD_CLIENT_ID" | "BAD_CLIENT_SECRET" | "invalid_client") => {
                    Revoked::TryAgain(failure("client_refused"))
                }
                // RFC 7009 §2.2.1.
                Some("unsupported_token_type") => Revoked::Unsupported(failure("unsupported")),
                _ => Revoked::Strange(failure("unexpected_answer")),
            }
        }
        _ => Revoked::TryAgain(failure("unavailable")),
    }
}

fn issued(members: &Map<String, Value>, account_claim: &str) -> Result<Issued, &'static str> {
    let access_token = text(members, "access_token").ok_or("no_access_token")?;
    if !is_token(&access_token) {
        return Err("unusable_access_token");
    }
    let refresh_token = text(members, "refresh_token").filter(|token| !token.is_empty());
    if refresh_token.as_deref().is_some_and(|token| !is_token(token)) {
        return Err("unusable_refresh_token");
    }
    let token_type = text(members, "token_type").unwrap_or_else(|| "bearer".into());
    if !token_type.eq_ignore_ascii_case("bearer") {
        return Err("unusable_token_type");
    }
    Ok(Issued {
        access_token: AccessToken::new(access_token),
        refresh_token: refresh_token.map(RefreshToken::new),
        token_type,
        scopes: scopes(members),
        lifetime: lifetime_from_wire(number(members.get("expires_in"))),
        account: account(members, account_claim).or_else(|| {
            text(members, "id_token").and_then(|token| account_of_id_token(&token, account_claim))
        }),
    })
}

/// RFC 6749 appendix A.12: a token is one or more visible ASCII characters. Anything else could not be sent in a header,
/// and line ends would split it.
fn is_token(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|b| (0x21..=0x7e).contains(&b))
}

/// HubSpot names a list `scopes`; RFC 6749 a string `scope`, separated by spaces.
fn scopes(members: &Map<String, Value>) -> Option<Vec<String>> {
    let words = |value: &Value| match value {
        Value::String(text) => Some(text.split_ascii_whitespace().map(clip).collect()),
        Value::Array(items) => Some(
            items
                .iter()
                .filter_map(Value::as_str)
                .map(clip)
                .collect::<Vec<_>>(),
        ),
        _ => None,
    };
    members
        .get("scopes")
        .and_then(words)
        .or_else(|| members.get("scope").and_then(words))
}

fn account(members: &Map<String, Value>, claim: &str) -> Option<AccountId> {
    let id = match members.get(claim)? {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    AccountId::parse(&id).ok()
}

/// Reads a claim of an ID token (OpenID Connect Core §2) without checking its signature: it came straight from the token
/// endpoint over TLS, which §3.1.3.7 allows to stand in for the check.
fn account_of_id_token(id_token: &str, claim: &str) -> Option<AccountId> {
    let payload = id_token.split('.').nth(1)?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(payload)
        .ok()?;
    account(strict_json::parse(&bytes)?.as_object()?, claim)
}

fn number(value: Option<&Value>) -> Option<f64> {
    match value? {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn text(members: &Map<String, Value>, name: &str) -> Option<String> {
    members.get(name)?.as_str().map(str::to_owned)
}

/// Foreign words are bounded before they are stored, logged or shown.
fn clip(word: &str) -> String {
    word.chars().filter(|c| !c.is_control()).take(128).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &[u8]) -> RawAnswer<'_> {
        RawAnswer {
            status,
            retry_after: None,
            body,
        }
    }

    fn shown(answer: &TokenAnswer) -> String {
        match answer {
            TokenAnswer::Issued(_) => "issued".into(),
            TokenAnswer::NotIssued(f) => format!("not issued: {}", f.code),
            TokenAnswer::Lost(f) => format!("lost: {}", f.code),
            TokenAnswer::ClientRefused(f) => format!("client refused: {}", f.code),
            TokenAnswer::WrongClient(f) => format!("wrong client: {}", f.code),
            TokenAnswer::GrantRefused(f) => format!("grant refused: {}", f.code),
            TokenAnswer::CodeRefused(f) => format!("code refused: {}", f.code),
            TokenAnswer::EndpointFault(f) => format!("endpoint's fault: {}", f.code),
        }
    }

    fn check(status: u16, body: &str, expected: &str) {
        let read = read(answer(status, body.as_bytes()), Dialect::HubSpot, "hub_id");
        assert_eq!(shown(&read), expected, "HTTP {status} {body}");
    }

    macro_rules! fixture {
        ($name:literal) => {
            include_str!(concat!("../fixtures/token/", $name))
        };
    }

    #[test]
    fn a_dead_grant_is_refused_in_both_error_formats() {
        check(
            400,
            fixture!("bad_refresh_token.json"),
            "grant refused: BAD_REFRESH_TOKEN",
        );
        check(
            400,
            fixture!("bad_refresh_token_before_2026.json"),
            "grant refused: BAD_REFRESH_TOKEN",
        );
        check(400, fixture!("bad_hub.json"), "grant refused: BAD_HUB");
        check(
            403,
            fixture!("bad_hub_before_2026.json"),
            "grant refused: BAD_HUB",
        );
        check(
            400,
            fixture!("invalid_grant_rfc.json"),
            "grant refused: invalid_grant",
        );
    }

    #[test]
    fn a_refused_client_condemns_no_grant() {
        check(
            400,
            fixture!("bad_client_id.json"),
            "client refused: BAD_CLIENT_ID",
        );
        check(
            400,
            fixture!("bad_client_secret.json"),
            "client refused: BAD_CLIENT_SECRET",
        );
        check(
            401,
            fixture!("invalid_client_rfc.json"),
            "client refused: invalid_client",
        );
        check(
            400,
            r#"{"error":"unauthorized_client"}"#,
            "client refused: unauthorized_client",
        );
    }

    #[test]
    fn hubspots_status_is_judged_before_the_rfcs_error() {
        check(
            400,
            r#"{"error":"invalid_grant","status":"BAD_CLIENT_SECRET"}"#,
            "client refused: BAD_CLIENT_SECRET",
        );
        check(
            400,
            fixture!("mismatch_refresh_token_client.json"),
            "wrong client: MISMATCH_REFRESH_TOKEN_CLIENT",
        );
        check(
            400,
            r#"{"error":"invalid_grant","status":"error"}"#,
            "grant refused: invalid_grant",
        );
        let generic = read(
            answer(400, br#"{"error":"invalid_grant","status":"BAD_CLIENT_SECRET"}"#),
            Dialect::Generic,
            "sub",
        );
        assert_eq!(shown(&generic), "grant refused: invalid_grant");
    }

    #[test]
    fn a_refused_code_sends_the_customer_back_to_the_beginning() {
        for code in [
            "BAD_AUTH_CODE",
            "EXPIRED_AUTH_CODE",
            "MISMATCH_REDIRECT_URI_AUTH_CODE",
            "BAD_CODE_VERIFIER",
        ] {
            let body = format!(r#"{{"status":"{code}","message":"missing or unknown auth code"}}"#);
            check(400, &body, &format!("code refused: {code}"));
        }
    }

    #[test]
    fn not_issued_means_that_the_provider_did_nothing() {
        check(429, fixture!("rate_limited.json"), "not issued: rate_limited");
        check(423, "", "not issued: locked");
        check(477, "", "not issued: account_migrating");
    }

    #[test]
    fn no_5xx_says_that_nothing_was_issued() {
        for status in [500, 502, 503, 504, 521, 522, 524, 599] {
            check(status, "<html>", "lost: server_error");
            check(status, fixture!("bad_refresh_token.json"), "lost: server_error");
        }
    }

    #[test]
    fn an_unreadable_success_is_a_lost_answer() {
        check(200, "", "lost: unreadable");
        check(
            200,
            "<html><body>Welcome to the hotel WiFi</body></html>",
            "lost: unreadable",
        );
        check(
            200,
            r#"{"access_token":"abc","refresh_token":"#,
            "lost: unreadable",
        );
        check(200, "\u{feff}{\"access_token\":\"abc\"}", "lost: unreadable");
        check(
            200,
            r#"{"access_token":"abc","access_token":"abd"}"#,
            "lost: unreadable",
        );
        check(200, "[]", "lost: unreadable");
        check(200, "{}", "lost: no_access_token");
        check(200, r#"{"access_token":""}"#, "lost: unusable_access_token");
        check(
            200,
            r#"{"access_token":"a\r\nX-Evil: 1"}"#,
            "lost: unusable_access_token",
        );
        check(200, r#"{"access_token":"töken"}"#, "lost: unusable_access_token");
        check(
            200,
            r#"{"access_token":"a","refresh_token":"r\n"}"#,
            "lost: unusable_refresh_token",
        );
        check(
            200,
            r#"{"access_token":"a","token_type":"mac"}"#,
            "lost: unusable_token_type",
        );
        let invalid = read(
            answer(200, b"{\"access_token\":\"\xff\"}"),
            Dialect::HubSpot,
            "hub_id",
        );
        assert_eq!(shown(&invalid), "lost: unreadable");
    }

    #[test]
    fn an_error_inside_a_200_wins() {
        check(
            200,
            r#"{"error":"invalid_grant","access_token":"a"}"#,
            "grant refused: invalid_grant",
        );
        check(
            200,
            r#"{"error":"nonsense","access_token":"a"}"#,
            "endpoint's fault: nonsense",
        );
    }

    #[test]
    fn whatever_else_is_definite_is_the_endpoints_fault() {
        check(
            404,
            fixture!("retired_version.json"),
            "endpoint's fault: unexpected_answer",
        );
        check(
            400,
            "<html>Bad Request</html>",
            "endpoint's fault: unexpected_answer",
        );
        check(301, "", "endpoint's fault: unexpected_answer");
        check(
            400,
            r#"{"status":"BAD_GRANT_TYPE","message":"missing or unknown grant type"}"#,
            "endpoint's fault: BAD_GRANT_TYPE",
        );
        check(
            400,
            r#"{"error":"invalid_request"}"#,
            "endpoint's fault: invalid_request",
        );
        check(400, r#"{"status":"BAD_SCOPES"}"#, "endpoint's fault: BAD_SCOPES");
        check(
            401,
            r#"{"status":"error","category":"INVALID_AUTHENTICATION"}"#,
            "endpoint's fault: unexpected_answer",
        );
    }

    fn issued_from(body: &str) -> Issued {
        match read(answer(200, body.as_bytes()), Dialect::HubSpot, "hub_id") {
            TokenAnswer::Issued(issued) => *issued,
            other => panic!("{body}: {}", shown(&other)),
        }
    }

    #[test]
    fn hubspots_sample_answer_is_read_whole() {
        let issued = issued_from(fixture!("issued.json"));
        assert_eq!(issued.account.as_ref().map(AccountId::as_str), Some("1234567"));
        assert_eq!(issued.lifetime, Duration::from_secs(1800));
        assert_eq!(issued.scopes.as_deref().map(<[String]>::len), Some(3));
        assert_eq!(issued.token_type, "bearer");
        assert!(issued.refresh_token.is_some());
    }

    #[test]
    fn odd_but_harmless_answers_are_read_with_care() {
        let lifetime = |expires_in: &str| {
            issued_from(&format!(r#"{{"access_token":"a","expires_in":{expires_in}}}"#))
                .lifetime
                .as_secs()
        };
        assert_eq!(lifetime("\"3600\""), 3600);
        assert_eq!(lifetime("3599.9"), 3599);
        for nonsense in ["0", "-1", "1e18", "null", "[]", "\"soon\"", "{}"] {
            assert_eq!(lifetime(nonsense), 600, "{nonsense}");
        }
        let bare = issued_from(r#"{"access_token":"a"}"#);
        assert_eq!(
            (bare.lifetime.as_secs(), bare.token_type.as_str()),
            (600, "bearer")
        );
        assert!(bare.refresh_token.is_none() && bare.scopes.is_none() && bare.account.is_none());
        assert!(
            issued_from(r#"{"access_token":"a","refresh_token":""}"#)
                .refresh_token
                .is_none()
        );
        assert_eq!(
            issued_from(r#"{"access_token":"a","token_type":"BEARER"}"#).token_type,
            "BEARER"
        );
        let narrower = issued_from(r#"{"access_token":"a","scope":"read  write"}"#);
        assert_eq!(narrower.scopes, Some(vec!["read".to_owned(), "write".to_owned()]));
        let long = "x".repeat(65_536);
        assert_eq!(
            issued_from(&format!(r#"{{"access_token":"{long}"}}"#))
                .access_token
                .expose()
                .len(),
            65_536
        );
    }

    #[test]
    fn the_account_is_found_in_the_answer_or_its_id_token() {
        let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(r#"{"sub":"user-1"}"#);
        let body = format!(r#"{{"access_token":"a","id_token":"e30.{payload}.sig"}}"#);
        let TokenAnswer::Issued(issued) = read(answer(200, body.as_bytes()), Dialect::Generic, "sub") else {
            panic!("not issued")
        };
        assert_eq!(issued.account.as_ref().map(AccountId::as_str), Some("user-1"));
    }

    #[test]
    fn introspection_trusts_nothing_but_active() {
        let introspect = |status, body: &str| match read_introspection(
            answer(status, body.as_bytes()),
            Dialect::HubSpot,
            "hub_id",
        ) {
            Introspected::Active(facts) => format!(
                "active {}",
                facts.account.map_or(String::new(), |a| a.to_string())
            ),
            Introspected::Inactive => "inactive".into(),
            Introspected::ClientRefused(f) => format!("client refused: {}", f.code),
            Introspected::Unknown(f) => format!("unknown: {}", f.code),
        };
        assert_eq!(introspect(200, fixture!("introspected.json")), "active 1234567");
        assert_eq!(introspect(200, r#"{"active":false}"#), "inactive");
        assert_eq!(
            introspect(200, r#"{"active":"yes"}"#),
            "unknown: unexpected_answer"
        );
        assert_eq!(introspect(200, "<html>"), "unknown: unexpected_answer");
        assert_eq!(
            introspect(503, r#"{"active":false}"#),
            "unknown: unexpected_answer"
        );
        assert_eq!(
            introspect(400, fixture!("bad_client_secret.json")),
            "client refused: BAD_CLIENT_SECRET"
        );
        assert_eq!(
            introspect(404, fixture!("retired_version.json")),
            "unknown: unexpected_answer"
        );
    }

    #[test]
    fn a_revocation_is_done_only_when_the_provider_says_so() {
        let revoke = |status, body: &str| read_revocation(answer(status, body.as_bytes()));
        assert_eq!(revoke(200, ""), Revoked::Done);
        assert_eq!(revoke(204, ""), Revoked::Done);
        assert_eq!(revoke(400, fixture!("bad_refresh_token.json")), Revoked::Done);
        assert!(matches!(revoke(503, ""), Revoked::TryAgain(_)));
        assert!(matches!(revoke(429, ""), Revoked::TryAgain(_)));
        assert!(matches!(
            revoke(400, fixture!("bad_client_secret.json")),
            Revoked::TryAgain(_)
        ));
        assert!(matches!(
            revoke(400, r#"{"error":"unsupported_token_type"}"#),
            Revoked::Unsupported(_)
        ));
        for (status, body) in [
            (404, "<html>"),
            (405, ""),
            (400, r#"{"error":"invalid_request"}"#),
        ] {
            assert!(
                matches!(revoke(status, body), Revoked::Strange(_)),
                "{status} {body}"
            );
        }
    }

    #[test]
    fn nothing_of_a_body_but_codes_enters_a_failure() {
        let body = r#"{"error":"invalid_grant","error_description":"token canary-123 is dead","message":"canary-123"}"#;
        let read = read(answer(400, body.as_bytes()), Dialect::HubSpot, "hub_id");
        assert!(!format!("{read:?}").contains("canary"));
        let issued = read_issued_debug();
        assert!(!issued.contains("canary"), "{issued}");
    }

    fn read_issued_debug() -> String {
        let body = br#"{"access_token":"canary-a","refresh_token":"canary-r","id_token":"canary"}"#;
        format!("{:?}", read(answer(200, body), Dialect::HubSpot, "hub_id"))
    }
}
