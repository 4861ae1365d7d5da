//! What answers say about a budget.

use std::time::Duration;

use evergrant_domain::call_budget::Limit;
use http::{HeaderMap, HeaderName};

const MAX: HeaderName = HeaderName::from_static("x-hubspot-ratelimit-max");
const REMAINING: HeaderName = HeaderName::from_static("x-hubspot-ratelimit-remaining");
const INTERVAL: HeaderName = HeaderName::from_static("x-hubspot-ratelimit-interval-milliseconds");

/// A limit, as an answer names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(super) limit: Limit,
    pub(super) remaining: Option<u32>,
}

impl Heard {
    /// What these headers say; nothing where they name no limit.
    pub(crate) fn from(headers: &HeaderMap) -> Option<Self> {
        // Most answers of most providers have none, and it is asked for every one of them.
        let calls = number(headers, &MAX).filter(|calls| *calls > 0)?;
        Some(Self {
            limit: Limit {
                calls,
                per: window(headers).unwrap_or(Duration::from_secs(10)),
            },
            remaining: number(headers, &REMAINING),
        })
    }
}

/// The window that an answer names.
pub(crate) fn window(headers: &HeaderMap) -> Option<Duration> {
    const DAY: Duration = Duration::from_secs(86_400);
    let window = Duration::from_millis(number(headers, &INTERVAL)?.into());
    (!window.is_zero() && window <= DAY).then_some(window)
}

fn number(headers: &HeaderMap, name: &HeaderName) -> Option<u32> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn check(headers: &[(HeaderName, &'static str)], expected: Option<(u32, u64, Option<u32>)>) {
        let map: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_static(value)))
            .collect();
        let heard = Heard::from(&map).map(|heard| {
            let per = u64::try_from(heard.limit.per.as_millis()).unwrap();
            (heard.limit.calls, per, heard.remaining)
        });
        assert_eq!(heard, expected, "{headers:?}");
    }

    #[test]
    fn a_limit_is_named_by_its_number() {
        check(&[], None);
        check(&[(REMAINING, "3")], None);
        check(&[(MAX, "110")], Some((110, 10_000, None)));
        check(
            &[(MAX, "190"), (REMAINING, "0"), (INTERVAL, "5000")],
            Some((190, 5000, Some(0))),
        );
        check(&[(MAX, "110"), (INTERVAL, "0")], Some((110, 10_000, None)));
        check(&[(MAX, "0")], None);
        check(&[(MAX, "-1")], None);
        check(&[(MAX, "many")], None);
        check(&[(MAX, "99999999999")], None);
        check(&[(MAX, "110"), (REMAINING, "-1")], Some((110, 10_000, None)));
    }
}
