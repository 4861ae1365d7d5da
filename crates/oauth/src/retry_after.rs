//! `Retry-After` (RFC 9110 §10.2.3) and `Date` (§6.6.1).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use evergrant_domain::Timestamp;
use http::HeaderMap;
use http::header::{DATE, RETRY_AFTER};

/// How long a pause the answer asks for, at most a day: HubSpot's 477 asks for up to that, and nobody may silence us longer.
///
/// A date counts from the answer's own `Date`, so no clock of ours has a say. Without that, and for nonsense, `None`.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    pause(headers, None)
}

/// The same, where a date that comes without `Date` counts from `now` by our own clock.
pub fn retry_after_from(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let since = Duration::from_millis(u64::try_from(now.millis()).ok()?);
    pause(headers, Some(UNIX_EPOCH + since))
}

/// What an answer says of the time at which it was made, to the second: `Date` (RFC 9110 §6.6.1).
pub(crate) fn date(headers: &HeaderMap) -> Option<Timestamp> {
    let date = httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()?;
    let since = date.duration_since(UNIX_EPOCH).ok()?;
    Some(Timestamp::from_millis(i64::try_from(since.as_millis()).ok()?))
}

fn pause(headers: &HeaderMap, now: Option<SystemTime>) -> Option<Duration> {
    const PAUSE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?;
    let pause = if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        let until = httpdate::parse_http_date(value).ok()?;
        let date = headers.get(DATE).and_then(|date| date.to_str().ok());
        let now = date
            .and_then(|date| httpdate::parse_http_date(date).ok())
            .or(now)?;
        until.duration_since(now).unwrap_or_default()
    };
    Some(pause.min(PAUSE_MAX))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn check(retry_after: &str, date: Option<&str>, seconds: Option<u64>) {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_str(retry_after).unwrap());
        if let Some(date) = date {
            headers.insert(DATE, HeaderValue::from_str(date).unwrap());
        }
        let pause = super::retry_after(&headers);
        assert_eq!(
            pause,
            seconds.map(Duration::from_secs),
            "{retry_after:?} {date:?}"
        );
    }

    #[test]
    fn seconds_are_read_and_capped() {
        check("0", None, Some(0));
        check("120", None, Some(120));
        check("86400", None, Some(86_400));
        check("86401", None, Some(86_400));
        check("99999999999999999999999999", None, Some(86_400));
    }

    #[test]
    fn a_date_counts_from_the_answers_own_date() {
        let date = Some("Wed, 21 Oct 2026 07:28:00 GMT");
        check("Wed, 21 Oct 2026 07:30:00 GMT", date, Some(120));
        check("Wednesday, 21-Oct-26 07:30:00 GMT", date, Some(120));
        check("Wed, 21 Oct 2026 07:27:00 GMT", date, Some(0));
        check("Fri, 21 Oct 2033 07:28:00 GMT", date, Some(86_400));
        check("Wed, 21 Oct 2026 07:30:00 GMT", None, None);
        check("Wed, 21 Oct 2026 07:30:00 GMT", Some("yesterday"), None);
    }

    #[test]
    fn nonsense_asks_for_nothing() {
        for nonsense in ["", "-1", "+5", "1.5", "soon", "1e3", "\u{663}"] {
            check(nonsense, Some("Wed, 21 Oct 2026 07:28:00 GMT"), None);
        }
        assert_eq!(super::retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn where_the_answer_has_no_date_ours_counts() {
        let check = |date: Option<&'static str>, seconds| {
            let mut headers = HeaderMap::new();
            let until = HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT");
            headers.insert(RETRY_AFTER, until);
            if let Some(date) = date {
                headers.insert(DATE, HeaderValue::from_static(date));
            }
            // Seven seconds before.
            let now = Timestamp::from_millis(784_111_770_000);
            let pause = retry_after_from(&headers, now);
            assert_eq!(pause, Some(Duration::from_secs(seconds)), "{date:?}");
        };
        check(None, 7);
        check(Some("Sun, 06 Nov 1994 08:49:34 GMT"), 3);
        check(Some("nonsense"), 7);
    }
}
