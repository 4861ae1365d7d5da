//! What an API answer says about the token that was sent with it. **A 401 is judged here**, in [`judge`].
//!
//! The status decides first; the body only tells kinds of 401 and 403 apart. Every member of a HubSpot error body is
//! optional, so whatever is missing or unreadable falls back to the plain meaning of the status.
//!
//! Source: HubSpot, error handling; RFC 6750 §3.1; fixtures/api.

use std::time::Duration;

use serde_json::Value;

use crate::strict_json;

/// Why a call failed or was repeated: the same words in headers, logs, events and explanations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// The provider did what it was asked.
    Ok,
    /// 401 for a token older than the stored one.
    StaleToken,
    /// 401: the access token has ended.
    Expired,
    /// 401: the access token is not accepted, though nothing says that it ended.
    Rejected,
    /// 401 again with a token that was just refreshed, or within the cooldown after such a one.
    RejectedAfterRefresh,
    /// 401 whose expire time is the epoch: what was sent is not a token of this provider.
    MalformedToken,
    /// 401 on a connection that has nothing to refresh.
    StaticRejected,
    /// 403, or a 401 that asks for more scope.
    PermissionDenied,
    /// 429.
    RateLimited,
    /// 423, 477 or 5xx.
    Unavailable,
    /// No answer in time.
    Timeout,
    /// Any other 4xx: about the request, not about the token.
    ClientError,
}

impl Class {
    /// Every class, in the order of the HTTP reference.
    pub const ALL: [Self; 12] = [
        Self::Ok,
        Self::StaleToken,
        Self::Expired,
        Self::Rejected,
        Self::RejectedAfterRefresh,
        Self::MalformedToken,
        Self::StaticRejected,
        Self::PermissionDenied,
        Self::RateLimited,
        Self::Unavailable,
        Self::Timeout,
        Self::ClientError,
    ];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::StaleToken => "stale_token",
            Self::Expired => "expired",
            Self::Rejected => "rejected",
            Self::RejectedAfterRefresh => "rejected_after_refresh",
            Self::MalformedToken => "malformed_token",
            Self::StaticRejected => "static_rejected",
            Self::PermissionDenied => "permission_denied",
            Self::RateLimited => "rate_limited",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::ClientError => "client_error",
        }
    }

    /// Whether a refresh of the access token may mend it. Where it does not, it costs a redemption and hides the reason.
    pub fn refresh_helps(self) -> bool {
        matches!(self, Self::Expired | Self::Rejected)
    }
}

/// What is looked at in an API answer.
#[derive(Debug, Clone, Copy, Default)]
pub struct ApiAnswer<'a> {
    /// The HTTP status code.
    pub status: u16,
    /// `WWW-Authenticate`, where the answer has one.
    pub www_authenticate: Option<&'a str>,
    /// `Retry-After`, already turned into a duration.
    pub retry_after: Option<Duration>,
    /// As much of the body as was kept; a cut body reads as none.
    pub body: &'a [u8],
}

/// What an API answer means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// The class. Never [`Class::StaleToken`], [`Class::RejectedAfterRefresh`], [`Class::StaticRejected`] or
    /// [`Class::Timeout`]: those depend on more than the answer.
    pub class: Class,
    /// The scopes that a 403 says are missing.
    pub missing_scopes: Vec<String>,
    /// HubSpot's `policyName` of a 429.
    pub policy: Option<String>,
    /// How long the provider asked to wait.
    pub retry_after: Option<Duration>,
    /// HubSpot's `correlationId`.
    pub correlation_id: Option<String>,
}

/// Says what an API answer means for the token that was sent. **This is where a 401 is judged.**
pub fn judge(answer: ApiAnswer<'_>) -> Judgement {
    let body = if answer.status < 400 {
        None
    } else {
        strict_json::parse(answer.body)
    };
    let body = body.as_ref().unwrap_or(&Value::Null);
    let class = match answer.status {
        0..=399 => Class::Ok,
        401 => judge_unauthorized(answer.www_authenticate, body),
        403 => Class::PermissionDenied,
        429 => Class::RateLimited,
        423 | 477 | 500.. => Class::Unavailable,
        _ => Class::ClientError,
    };
    Judgement {
        class,
        missing_scopes: if class == Class::PermissionDenied {
            missing_scopes(body)
        } else {
            Vec::new()
        },
        policy: body["policyName"].as_str().map(clip),
        retry_after: answer.retry_after,
        correlation_id: body["correlationId"].as_str().map(clip),
    }
}

fn judge_unauthorized(www_authenticate: Option<&str>, body: &Value) -> Class {
    let challenge = www_authenticate.unwrap_or_default().to_ascii_lowercase();
    // RFC 6750 §3.1: more scope is a matter of permission, whichever status carries it.
    if challenge.contains("insufficient_scope") || body["category"] == "MISSING_SCOPES" {
        return Class::PermissionDenied;
    }
    let message = body["message"].as_str().unwrap_or_default().to_ascii_lowercase();
    let expired = body["category"] == "EXPIRED_AUTHENTICATION"
        || (message.contains("oauth") && message.contains("token") && message.contains("expired"))
        || (challenge.contains("invalid_token") && challenge.contains("expired"));
    if !expired {
        return Class::Rejected;
    }
    // HubSpot answers "expired 20705 day(s) ago" for what it cannot decode. Refreshing would never help.
    // Source: hubspot-api-php#363.
    if expire_times(body).any(|time| time.starts_with("1970-01-01T00:00"))
        || expired_since_the_epoch(&message)
    {
        Class::MalformedToken
    } else {
        Class::Expired
    }
}

fn expire_times(body: &Value) -> impl Iterator<Item = &str> {
    let times = &body["context"]["expire time"];
    times
        .as_array()
        .into_iter()
        .flatten()
        .chain(std::iter::once(times))
        .filter_map(Value::as_str)
}

/// "expired 20705 day(s) ago": more than thirty years is no age of a token, it is the distance to the epoch.
fn expired_since_the_epoch(message: &str) -> bool {
    let Some((before, _)) = message.split_once(" day(s) ago") else {
        return false;
    };
    before
        .rsplit(' ')
        .next()
        .and_then(|days| days.parse::<u32>().ok())
        .is_some_and(|days| days > 30 * 365)
}

/// HubSpot's `requiredGranularScopes`, or the older `requiredScopes`, of the error's parts and of the error itself.
fn missing_scopes(body: &Value) -> Vec<String> {
    let parts = body["errors"]
        .as_array()
        .into_iter()
        .flatten()
        .chain(std::iter::once(body));
    let mut found = Vec::new();
    for part in parts {
        for key in ["requiredGranularScopes", "requiredScopes"] {
            for scope in part["context"][key]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
            {
                if !found.iter().any(|known| known == scope) && found.len() < 64 {
                    found.push(clip(scope));
                }
            }
        }
    }
    found
}

/// Foreign words are bounded before they are stored, logged or shown.
fn clip(word: &str) -> String {
    word.chars().filter(|c| !c.is_control()).take(128).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! fixture {
        ($name:literal) => {
            include_str!(concat!("../fixtures/api/", $name))
        };
    }

    fn check(status: u16, body: &str, expected: Class) {
        let judged = judge(ApiAnswer {
            status,
            body: body.as_bytes(),
            ..ApiAnswer::default()
        });
        assert_eq!(judged.class, expected, "HTTP {status} {body}");
    }

    fn check_challenge(challenge: &str, expected: Class) {
        let judged = judge(ApiAnswer {
            status: 401,
            www_authenticate: Some(challenge),
            ..ApiAnswer::default()
        });
        assert_eq!(judged.class, expected, "{challenge}");
    }

    #[test]
    fn an_expired_token_is_told_apart_from_a_rejected_one() {
        check(401, fixture!("expired_seconds.json"), Class::Expired);
        check(401, fixture!("expired_minutes.json"), Class::Expired);
        check(401, fixture!("expired_older_format.json"), Class::Expired);
        check(401, fixture!("credentials_not_found.json"), Class::Rejected);
        check(401, "", Class::Rejected);
        check(401, "<html>Unauthorized</html>", Class::Rejected);
        check(401, "{\"category\":\"EXPIRED_AUTH", Class::Rejected);
        check_challenge(
            "Bearer error=\"invalid_token\", error_description=\"The access token expired\"",
            Class::Expired,
        );
        check_challenge("Bearer realm=\"api\"", Class::Rejected);
    }

    #[test]
    fn an_expire_time_at_the_epoch_is_a_malformed_token() {
        check(401, fixture!("malformed_token.json"), Class::MalformedToken);
        check(
            401,
            fixture!("malformed_token_without_context.json"),
            Class::MalformedToken,
        );
        check(401, fixture!("expired_days.json"), Class::Expired);
    }

    #[test]
    fn a_401_that_asks_for_scope_is_a_matter_of_permission() {
        check_challenge(
            "Bearer error=\"insufficient_scope\", scope=\"read\"",
            Class::PermissionDenied,
        );
        check(401, r#"{"category":"MISSING_SCOPES"}"#, Class::PermissionDenied);
    }

    #[test]
    fn a_403_never_reads_as_expiry_and_names_the_missing_scopes() {
        let judged = |body: &str| {
            judge(ApiAnswer {
                status: 403,
                body: body.as_bytes(),
                ..ApiAnswer::default()
            })
        };
        let granular = judged(fixture!("missing_scopes.json"));
        assert_eq!(granular.class, Class::PermissionDenied);
        assert_eq!(
            granular.missing_scopes,
            ["crm.schemas.deals.read", "crm.objects.deals.read"]
        );
        assert_eq!(
            judged(fixture!("missing_scopes_older_key.json")).missing_scopes,
            ["contacts"]
        );
        assert_eq!(
            judged(fixture!("expired_seconds.json")).class,
            Class::PermissionDenied
        );
        assert_eq!(judged("").missing_scopes, Vec::<String>::new());
    }

    #[test]
    fn a_429_names_its_policy_and_is_never_expiry() {
        for (body, policy) in [
            (fixture!("rate_limited_ten_secondly.json"), "TEN_SECONDLY_ROLLING"),
            (fixture!("rate_limited_secondly.json"), "SECONDLY"),
            (fixture!("rate_limited_daily.json"), "DAILY"),
        ] {
            let judged = judge(ApiAnswer {
                status: 429,
                body: body.as_bytes(),
                ..ApiAnswer::default()
            });
            assert_eq!(
                (judged.class, judged.policy.as_deref()),
                (Class::RateLimited, Some(policy))
            );
        }
        check(429, "", Class::RateLimited);
    }

    #[test]
    fn every_other_status_has_its_class() {
        for status in [200, 201, 204, 207, 301, 302, 304] {
            check(status, fixture!("expired_seconds.json"), Class::Ok);
        }
        for status in [423, 477, 500, 502, 503, 504, 521, 522, 523, 524, 525, 526] {
            check(status, "", Class::Unavailable);
        }
        for status in [400, 402, 404, 405, 409, 413, 414, 415, 422] {
            check(status, fixture!("conflict.json"), Class::ClientError);
        }
    }

    #[test]
    fn the_correlation_id_is_kept_and_bounded() {
        let judged = judge(ApiAnswer {
            status: 409,
            body: fixture!("conflict.json").as_bytes(),
            ..ApiAnswer::default()
        });
        assert_eq!(judged.correlation_id.as_deref(), Some("c-409"));
        let long = format!(r#"{{"correlationId":"{}\n"}}"#, "x".repeat(1000));
        let judged = judge(ApiAnswer {
            status: 500,
            body: long.as_bytes(),
            ..ApiAnswer::default()
        });
        assert_eq!(judged.correlation_id.map(|id| id.len()), Some(128));
    }

    #[test]
    fn every_class_has_one_word() {
        let words: std::collections::HashSet<_> = Class::ALL.iter().map(|class| class.as_str()).collect();
        assert_eq!(words.len(), Class::ALL.len());
    }
}
