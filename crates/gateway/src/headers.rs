//! What of a message's headers goes on, in both directions, and the headers of our own.

use std::time::Duration;

use bytes::Bytes;
use evergrant_domain::api_answer::Class;
use evergrant_domain::call_budget::Lane;
use evergrant_domain::{Timestamp, Version};
use http::header::{CONNECTION, CONTENT_LENGTH};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::budget::MAX_WAIT_MAX;
use crate::guard::GuardsAsked;
use crate::record::RefusalKind;

const CLASS: HeaderName = HeaderName::from_static("evergrant-class");
const ATTEMPTS: HeaderName = HeaderName::from_static("evergrant-attempts");
const TOKEN_VERSION: HeaderName = HeaderName::from_static("evergrant-token-version");
const TOKEN_TTL: HeaderName = HeaderName::from_static("evergrant-token-ttl");
const OUTCOME: HeaderName = HeaderName::from_static("evergrant-outcome");
const REPLAYED: HeaderName = HeaderName::from_static("evergrant-replayed");
const NOT_REPEATED: HeaderName = HeaderName::from_static("evergrant-not-repeated");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Our own prefix: callers speak to us with it, and only we to them.
const OURS: &str = "evergrant-";

/// What is read of a caller's headers.
#[derive(Debug)]
pub(crate) struct Asked {
    /// What goes on to the provider. The bearer is not among it yet.
    pub(crate) headers: HeaderMap,
    /// The wish for a token that still lives that long.
    pub(crate) min_ttl: Option<Duration>,
    /// When its job was put into a queue.
    pub(crate) enqueued_at: Option<Timestamp>,
    /// How a write is to be guarded.
    pub(crate) guards: GuardsAsked,
    /// How urgent it is.
    pub(crate) lane: Option<Lane>,
    /// How long it may wait for budget.
    pub(crate) max_wait: Option<Duration>,
}

/// Takes a caller's headers apart.
///
/// What concerns one connection only stays behind (RFC 9110 §7.6.1), and so do the credentials of the caller, what is meant for
/// us, and what says where the call came from or should go instead. Framing follows from the body itself.
pub(crate) fn asked(headers: &HeaderMap, headers_max: usize) -> Result<Asked, RefusalKind> {
    let bad_request = |what| Err(RefusalKind::BadRequest { what });
    let named = Named::by(headers);
    let mut on = HeaderMap::new();
    let (mut min_ttl, mut enqueued_at) = (None, None);
    let mut guards = GuardsAsked::None;
    let (mut lane, mut max_wait) = (None, None);
    let mut size = 0;
    for (name, value) in headers {
        size += name.as_str().len() + value.len();
        if size > headers_max {
            return Err(RefusalKind::HeadersTooLarge);
        }
        match name.as_str() {
            "evergrant-min-ttl" => match value.to_str().ok().and_then(|text| text.trim().parse().ok()) {
                Some(seconds) => min_ttl = Some(Duration::from_secs(seconds)),
                None => return bad_request("Evergrant-Min-Ttl is not a whole number of seconds"),
            },
            "evergrant-lane" => match value.to_str().ok().and_then(Lane::parse) {
                Some(asked) => lane = Some(asked),
                None => return bad_request("Evergrant-Lane is none of interactive, sync and backfill"),
            },
            "evergrant-max-wait" => match seconds_to_wait(value) {
                Some(asked) => max_wait = Some(asked),
                None => return bad_request("Evergrant-Max-Wait is not a whole number of seconds up to 60"),
            },
            "evergrant-enqueued-at" => match time(value) {
                Some(at) => enqueued_at = Some(at),
                None => {
                    return bad_request(
                        "Evergrant-Enqueued-At is neither RFC 3339 nor milliseconds since the Unix epoch",
                    );
                }
            },
            "idempotency-key" | "evergrant-dedupe" | "evergrant-guard" => {
                guards.get_or_insert_default().take(name.as_str(), value)?;
            }
            "x-http-method-override" | "x-http-method" | "x-method-override" => {
                return bad_request(
                    "a call's method is the one it is sent with; it cannot be overridden by a header",
                );
            }
            // RFC 9110 §7.8: an upgrade may be ignored. To HTTP/2 nobody needs one; any other protocol cannot go through.
            "upgrade" => {
                if !value.as_bytes().eq_ignore_ascii_case(b"h2c") {
                    return bad_request("another protocol than HTTP cannot be sent through the gateway");
                }
            }
            "authorization" | "cookie" | "host" | "content-length" | "expect" | "forwarded" | "x-real-ip"
            | "x-original-url" | "x-rewrite-url" => {}
            other => {
                let stays = is_hop_by_hop(other)
                    || other.starts_with(OURS)
                    || other.starts_with("x-forwarded-")
                    || named.contains(other);
                if !stays {
                    on.append(name.clone(), value.clone());
                }
            }
        }
    }
    if let Some(guards) = &guards {
        guards.checked()?;
    }
    Ok(Asked {
        headers: on,
        min_ttl,
        enqueued_at,
        guards,
        lane,
        max_wait,
    })
}

fn seconds_to_wait(value: &HeaderValue) -> Option<Duration> {
    let seconds = value.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds)).filter(|wait| *wait <= MAX_WAIT_MAX)
}

fn time(value: &HeaderValue) -> Option<Timestamp> {
    let text = value.to_str().ok()?.trim();
    let is_millis = !text.is_empty() && text.len() <= 15 && text.bytes().all(|byte| byte.is_ascii_digit());
    let millis = if is_millis {
        text.parse().ok()?
    } else {
        text.parse::<jiff::Timestamp>().ok()?.as_millisecond()
    };
    Some(Timestamp::from_millis(millis))
}

/// Removes from a provider's headers what is not for the caller: what concerns one connection only, what only we may say, and
/// what a browser or client would take as said by us: cookies, and other doors to the same service.
pub(crate) fn clean_answer(headers: &mut HeaderMap) {
    // One look at each, and no hash of a name: most answers have nothing to be removed.
    let (mut is_coded, mut names_some) = (false, false);
    let mut strangers = Vec::new();
    for name in headers.keys() {
        match name.as_str() {
            "set-cookie" | "alt-svc" => {}
            "connection" => names_some = true,
            "transfer-encoding" => is_coded = true,
            other if is_hop_by_hop(other) || other.starts_with(OURS) => {}
            _ => continue,
        }
        strangers.push(name.clone());
    }
    if is_coded {
        // The body's length was decided by the coding. Another length beside it must not reach anyone.
        strangers.push(CONTENT_LENGTH);
    }
    if names_some {
        let named = Named::by(headers);
        strangers.extend(
            headers
                .keys()
                .filter(|name| named.contains(name.as_str()))
                .cloned(),
        );
    }
    for name in strangers {
        headers.remove(name);
    }
}

/// RFC 9110 §7.6.1, and what is in use beside it.
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection" | "keep-alive" | "te" | "trailer" | "transfer-encoding" | "upgrade" | "http2-settings"
    ) || name.starts_with("proxy-")
}

/// The fields that `Connection` names as concerning one connection only.
struct Named(Vec<String>);

impl Named {
    fn by(headers: &HeaderMap) -> Self {
        let mut named = Vec::new();
        let values = headers.iter().filter(|(name, _)| **name == CONNECTION);
        for (_, value) in values {
            for name in value.to_str().unwrap_or_default().split(',').map(str::trim) {
                if !name.eq_ignore_ascii_case("keep-alive") && !name.eq_ignore_ascii_case("close") {
                    named.push(name.to_ascii_lowercase());
                }
            }
        }
        Self(named)
    }

    fn contains(&self, name: &str) -> bool {
        self.0.iter().any(|named| named == name)
    }
}

/// What we say about a call in the headers of its answer.
pub(crate) struct Said {
    pub(crate) class: Class,
    pub(crate) attempts: u32,
    pub(crate) version: Version,
    pub(crate) seconds_remaining: Option<i64>,
    pub(crate) outcome_unknown: bool,
    pub(crate) not_repeated: bool,
    pub(crate) token_took: Duration,
    /// How long it waited for its turn; nothing where nobody counts its calls.
    pub(crate) budget_wait: Option<Duration>,
    pub(crate) upstream_took: Duration,
}

impl Said {
    /// Adds it.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        headers.insert(CLASS, HeaderValue::from_static(self.class.as_str()));
        headers.insert(ATTEMPTS, number(self.attempts.into()));
        if self.outcome_unknown {
            headers.insert(OUTCOME, HeaderValue::from_static("unknown"));
        }
        if self.not_repeated {
            headers.insert(NOT_REPEATED, HeaderValue::from_static("body-not-kept"));
        }
        // One after the other in one piece of memory.
        let mut digits = itoa::Buffer::new();
        let mut texts = String::with_capacity(128);
        texts.push_str(digits.format(self.version.number()));
        let version_end = texts.len();
        if let Some(seconds) = self.seconds_remaining {
            texts.push_str(digits.format(seconds));
        }
        let ttl_end = texts.len();
        for (step, took) in [
            ("token", Some(self.token_took)),
            ("budget", self.budget_wait),
            ("upstream", Some(self.upstream_took)),
        ] {
            let Some(took) = took else { continue };
            if texts.len() > ttl_end {
                texts.push_str(", ");
            }
            texts.push_str(step);
            texts.push_str(";dur=");
            push_millis(&mut texts, took);
        }
        let texts = Bytes::from(texts);
        let value = |from, to| HeaderValue::from_maybe_shared(texts.slice(from..to)).ok();
        if let Some(version) = value(0, version_end) {
            headers.insert(TOKEN_VERSION, version);
        }
        if self.seconds_remaining.is_some()
            && let Some(seconds) = value(version_end, ttl_end)
        {
            headers.insert(TOKEN_TTL, seconds);
        }
        if let Some(timing) = value(ttl_end, texts.len()) {
            headers.append(SERVER_TIMING, timing);
        }
    }
}

/// A number as a header's value. The smallest, which are nearly all, are at hand.
fn number(number: i64) -> HeaderValue {
    const SMALL: &str = "0123456789";
    match usize::try_from(number) {
        Ok(small) if small < SMALL.len() => HeaderValue::from_static(&SMALL[small..=small]),
        Ok(_) | Err(_) => HeaderValue::from(number),
    }
}

/// Writes milliseconds with two digits after the point. By hand: with the formatter it took a fortieth of a whole call.
fn push_millis(text: &mut String, took: Duration) {
    let hundredths = took
        .as_secs()
        .saturating_mul(100_000)
        .saturating_add((took.subsec_micros() / 10).into());
    let mut digits = [0; 24];
    let (mut at, mut left) = (digits.len(), hundredths);
    // At least `0.00`.
    while left > 0 || at > digits.len() - 4 {
        at -= 1;
        digits[at] = if at == digits.len() - 3 {
            b'.'
        } else {
            let digit = b"0123456789"[usize::try_from(left % 10).expect("a digit")];
            left /= 10;
            digit
        };
    }
    text.extend(digits[at..].iter().map(|&digit| char::from(digit)));
}

/// Says on an answer to a guarded write that it is the first one's, or was found: how often it was sent this time is said, too.
pub(crate) fn said_replayed(headers: &mut HeaderMap, class: Class, attempts: u32, replayed: &'static str) {
    headers.insert(CLASS, HeaderValue::from_static(class.as_str()));
    headers.insert(ATTEMPTS, HeaderValue::from(attempts));
    headers.insert(REPLAYED, HeaderValue::from_static(replayed));
}

/// Says on the provider's answer to a look-up that the write it was made for was not sent.
pub(crate) fn said_not_sent(headers: &mut HeaderMap) {
    headers.insert(ATTEMPTS, HeaderValue::from(0));
    headers.remove(OUTCOME);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn wishes_that_cannot_be_understood_are_refused_not_ignored() {
        let check = |name: &'static str, value: &'static str, taken: bool| {
            let asked = asked(&map(&[(name, value)]), 1024);
            assert_eq!(asked.is_ok(), taken, "{name}: {value}");
        };
        for (lane, taken) in [
            ("interactive", true),
            ("sync", true),
            ("backfill", true),
            ("bulk", false),
        ] {
            check("evergrant-lane", lane, taken);
        }
        for (wait, taken) in [
            ("0", true),
            ("60", true),
            ("61", false),
            ("-1", false),
            ("soon", false),
        ] {
            check("evergrant-max-wait", wait, taken);
        }
        for (at, taken) in [
            ("1795543368473", true),
            ("2026-11-24T17:40:30Z", true),
            ("yesterday", false),
            ("", false),
        ] {
            check("evergrant-enqueued-at", at, taken);
        }
        check("evergrant-min-ttl", "300", true);
        check("evergrant-min-ttl", "5m", false);
    }

    #[test]
    fn times_are_milliseconds_with_two_digits_after_the_point() {
        for (micros, written) in [
            (0, "0.00"),
            (9, "0.00"),
            (10, "0.01"),
            (990, "0.99"),
            (1_000, "1.00"),
            (12_345, "12.34"),
            (60_000_009, "60000.00"),
        ] {
            let mut text = String::new();
            push_millis(&mut text, Duration::from_micros(micros));
            assert_eq!(text, written, "{micros} µs");
        }
        push_millis(&mut String::new(), Duration::MAX);
    }

    #[test]
    fn what_concerns_one_connection_or_is_not_the_providers_business_stays_behind() {
        let headers = map(&[
            ("accept", "application/json"),
            ("accept", "text/plain"),
            ("authorization", "Bearer evg_x"),
            ("connection", "keep-alive, X-Once,authorization , te"),
            ("content-length", "5"),
            ("content-type", "text/plain"),
            ("cookie", "a=b"),
            ("evergrant-connection", "c1"),
            ("evergrant-lane", "sync"),
            ("evergrant-min-ttl", "120"),
            ("expect", "100-continue"),
            ("forwarded", "for=1"),
            ("evergrant-guard", "read-before-write"),
            ("host", "evil.test"),
            ("idempotency-key", "k"),
            ("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA"),
            ("keep-alive", "timeout=5"),
            ("proxy-authorization", "Basic x"),
            ("proxy-connection", "keep-alive"),
            ("te", "trailers"),
            ("trailer", "x-sum"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("x-forwarded-host", "evil.test"),
            ("x-once", "1"),
            ("x-original-url", "/oauth/v1/token"),
            ("x-request-id", "r1"),
        ]);
        let asked = asked(&headers, 4096).unwrap();
        assert_eq!(names(&asked.headers), ["accept", "content-type", "x-request-id"]);
        assert_eq!(asked.headers.get_all("accept").iter().count(), 2);
        assert_eq!(asked.min_ttl, Some(Duration::from_secs(120)));
    }

    #[test]
    fn what_cannot_be_kept_or_understood_is_refused_not_ignored() {
        let check = |field, value, expected: &str| {
            let refused = asked(&map(&[(field, value)]), 4096).unwrap_err();
            assert!(
                format!("{refused:?}").starts_with(expected),
                "{field}: {refused:?}"
            );
        };
        check("idempotency-key", "two words", "BadRequest");
        check("evergrant-dedupe", "fingerprint", "BadRequest");
        check("evergrant-guard", "write-before-read", "BadRequest");
        check("evergrant-min-ttl", "soon", "BadRequest");
        check("evergrant-min-ttl", "-1", "BadRequest");
        check("upgrade", "websocket", "BadRequest");
        check("x-http-method-override", "DELETE", "BadRequest");
        let large = map(&[("x-large", "0123456789")]);
        assert!(asked(&large, 17).is_ok());
        assert!(matches!(asked(&large, 16), Err(RefusalKind::HeadersTooLarge)));
    }

    #[test]
    fn an_answer_loses_what_is_not_for_the_caller_and_nothing_else() {
        let mut headers = map(&[
            ("alt-svc", "h3=\":443\""),
            ("connection", "x-once"),
            ("content-length", "7"),
            ("content-type", "text/plain"),
            ("evergrant-class", "ok"),
            ("evergrant-error", "reconnect_required"),
            ("keep-alive", "timeout=5"),
            ("proxy-authenticate", "Basic"),
            ("server-timing", "db;dur=1"),
            ("set-cookie", "a=b"),
            ("transfer-encoding", "chunked"),
            ("trailer", "x-sum"),
            ("upgrade", "h2c"),
            ("www-authenticate", "Bearer"),
            ("x-once", "1"),
        ]);
        clean_answer(&mut headers);
        assert_eq!(
            names(&headers),
            ["content-type", "server-timing", "www-authenticate"]
        );
        let mut framed = map(&[("content-length", "7")]);
        clean_answer(&mut framed);
        assert_eq!(names(&framed), ["content-length"]);
    }
}
