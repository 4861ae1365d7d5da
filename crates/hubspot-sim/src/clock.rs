//! The simulator's own clock: real time plus an offset that tests move.
//!
//! Every expiry is judged by it, and the `Date` header follows it, so from outside an advanced clock looks
//! like a HubSpot whose clock runs ahead.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::fmt::strtime;
use jiff::{SignedDuration, Timestamp};

/// The farthest that one step may move the clock: a century, far from where timestamps end.
const STEP_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Real time plus an offset in milliseconds.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    offset_ms: AtomicI64,
}

impl Clock {
    /// The simulator's present, to the millisecond.
    pub(crate) fn now(&self) -> Timestamp {
        let real = Timestamp::now().as_millisecond();
        let now = real.saturating_add(self.offset_ms.load(Ordering::Relaxed));
        Timestamp::from_millisecond(now).unwrap_or(Timestamp::MAX)
    }

    /// Moves the clock forward by `step`, at most a century.
    pub(crate) fn advance(&self, step: Duration) {
        let step_ms = i64::try_from(step.min(STEP_MAX).as_millis()).unwrap_or(i64::MAX);
        let _ = self
            .offset_ms
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |offset_ms| {
                Some(offset_ms.saturating_add(step_ms))
            });
    }

    /// Back to real time.
    pub(crate) fn reset(&self) {
        self.offset_ms.store(0, Ordering::Relaxed);
    }

    /// How far ahead of real time the clock is.
    pub(crate) fn offset(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.offset_ms.load(Ordering::Relaxed)).unwrap_or(0))
    }
}

/// `from` plus `duration`; an unreasonably long duration ends at the end of time.
pub(crate) fn after(from: Timestamp, duration: Duration) -> Timestamp {
    SignedDuration::try_from(duration)
        .ok()
        .and_then(|duration| from.checked_add(duration).ok())
        .unwrap_or(Timestamp::MAX)
}

/// As HubSpot writes times: ISO 8601 in UTC, milliseconds included.
pub(crate) fn iso(at: Timestamp) -> String {
    format!("{at:.3}")
}

/// As HTTP writes times: RFC 9110 §5.6.7, IMF-fixdate.
pub(crate) fn httpdate(at: Timestamp) -> String {
    strtime::format("%a, %d %b %Y %H:%M:%S GMT", at).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_only_moves_forward_by_what_it_is_told() {
        let clock = Clock::default();
        let before = clock.now();
        clock.advance(Duration::from_secs(90));
        assert!(clock.now() >= after(before, Duration::from_secs(90)));
        assert_eq!(clock.offset(), Duration::from_secs(90));
        clock.advance(Duration::MAX);
        clock.advance(Duration::MAX);
        assert!(clock.now() > before, "the end of time is not a panic");
    }

    #[test]
    fn times_are_written_with_milliseconds() {
        let at: Timestamp = "2026-03-10T23:04:41.164Z".parse().unwrap();
        assert_eq!(iso(at), "2026-03-10T23:04:41.164Z");
        assert_eq!(iso(Timestamp::UNIX_EPOCH), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn dates_are_written_as_http_wants_them() {
        let at = Timestamp::from_second(784_111_777).unwrap();
        assert_eq!(httpdate(at), "Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
