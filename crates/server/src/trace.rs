//! How one request is named: in its answer, in the log, in the caller's own tracing.

use std::cell::RefCell;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

/// On every answer.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("evergrant-request-id");
const CALLERS_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// 96 bits: unique enough to find one request in a year of logs.
const REQUEST_ID_BYTES: usize = 12;

/// The names of one request.
#[derive(Debug, Clone)]
pub(crate) struct Trace {
    /// The caller's `X-Request-Id` where it is valid, else one of ours.
    pub(crate) request_id: HeaderValue,
    /// The trace that the caller's `traceparent` belongs to.
    pub(crate) trace_id: Option<String>,
}

impl Trace {
    /// Reads the names from the request's headers, or makes them.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let request_id = single(headers, &CALLERS_REQUEST_ID)
            .filter(|value| is_request_id(value.as_bytes()))
            .cloned()
            .unwrap_or_else(new_request_id);
        let trace_id = single(headers, &TRACEPARENT)
            .and_then(|value| value.to_str().ok())
            .and_then(trace_id_of)
            .map(str::to_owned);
        Self { request_id, trace_id }
    }

    /// The request id as text.
    pub(crate) fn request_id(&self) -> &str {
        self.request_id.to_str().unwrap_or_default()
    }
}

/// Ids are made by the hundred and lie side by side: making one by itself costs most of that.
fn new_request_id() -> HeaderValue {
    const AT_ONCE: usize = 64;
    const LENGTH: usize = REQUEST_ID_BYTES / 3 * 4;
    const {
        assert!(
            REQUEST_ID_BYTES.is_multiple_of(3),
            "ids must not share a character"
        );
    };
    thread_local! {
        static LEFT: RefCell<Bytes> = const { RefCell::new(Bytes::new()) };
    }
    let id = LEFT.with_borrow_mut(|left| {
        if left.is_empty() {
            let mut random = [0; AT_ONCE * REQUEST_ID_BYTES];
            aws_lc_rs::rand::fill(&mut random).expect("the system's random generator answers");
            *left = URL_SAFE_NO_PAD.encode(random).into();
        }
        left.split_to(LENGTH)
    });
    HeaderValue::from_maybe_shared(id).expect("base64url is visible ASCII")
}

/// The header's value, unless it is missing or there twice. Looked through from the first to the last: few requests have so many
/// headers that hashing the name would be worth it.
pub(crate) fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.iter().filter(|(found, _)| *found == name);
    let (_, value) = values.next()?;
    values.next().is_none().then_some(value)
}

/// 1 to 128 characters that are inert in a log line, a header and a page.
fn is_request_id(value: &[u8]) -> bool {
    (1..=128).contains(&value.len())
        && value
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=@~".contains(byte))
}

/// W3C Trace Context §3.2: `version-trace_id-parent_id-flags`, lower-case hex, the trace id not all zero.
fn trace_id_of(traceparent: &str) -> Option<&str> {
    let mut parts = traceparent.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let set = |text: &str| text.bytes().any(|byte| byte != b'0');
    let valid = hex(version, 2)
        && version != "ff"
        && hex(trace, 32)
        && set(trace)
        && hex(parent, 16)
        && set(parent)
        && hex(flags, 2)
        // Version 00 has exactly four parts; later ones may add some.
        && (version != "00" || parts.next().is_none());
    valid.then_some(trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: HeaderName, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).expect("a literal value"));
        headers
    }

    #[test]
    fn a_valid_request_id_is_taken_over_and_any_other_is_replaced() {
        let longest = "x".repeat(128);
        for taken in ["a", "req-1.2:3/4+5=6@7~8_9", &longest] {
            assert_eq!(Trace::of(&with(CALLERS_REQUEST_ID, taken)).request_id(), taken);
        }
        let too_long = "x".repeat(129);
        for replaced in ["", "a b", "<script>", "a\"b", "a,b", &too_long] {
            let made = Trace::of(&with(CALLERS_REQUEST_ID, replaced));
            assert_ne!(made.request_id(), replaced);
            assert_eq!(made.request_id().len(), 16);
        }
        let mut twice = with(CALLERS_REQUEST_ID, "a");
        twice.append(CALLERS_REQUEST_ID, HeaderValue::from_static("a"));
        assert_ne!(Trace::of(&twice).request_id(), "a");
    }

    #[test]
    fn only_a_valid_traceparent_names_a_trace() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let check = |traceparent: &str, expected: Option<&str>| {
            let found = Trace::of(&with(TRACEPARENT, traceparent)).trace_id;
            assert_eq!(found.as_deref(), expected, "{traceparent}");
        };
        check(&format!("00-{trace}-00f067aa0ba902b7-01"), Some(trace));
        check(&format!("01-{trace}-00f067aa0ba902b7-01-more"), Some(trace));
        check(&format!("00-{trace}-00f067aa0ba902b7-01-more"), None);
        check(&format!("ff-{trace}-00f067aa0ba902b7-01"), None);
        check(&format!("00-{}-00f067aa0ba902b7-01", trace.to_uppercase()), None);
        check(&format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)), None);
        check(&format!("00-{trace}-{}-01", "0".repeat(16)), None);
        check("00-4bf9-00f067aa0ba902b7-01", None);
        check("", None);
    }
}
