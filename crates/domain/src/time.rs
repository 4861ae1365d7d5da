//! Points in time as the store keeps them.

use std::fmt;
use std::time::Duration;

/// A point in wall time: milliseconds since the Unix epoch, UTC.
///
/// Wall time, because `expires_at` outlives the process. Whoever needs to wait uses the runtime's timers instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From milliseconds since the Unix epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub fn millis(self) -> i64 {
        self.0
    }

    /// This long after; stops at the end of time instead of overflowing.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(millis(duration)))
    }

    /// This long before; stops at the beginning of time instead of overflowing.
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(millis(duration)))
    }

    /// How long from `earlier` to here; zero where `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Whole seconds from `now` to here, negative where it lies behind; rounded down.
    pub fn seconds_from(self, now: Self) -> i64 {
        self.0.saturating_sub(now.0).div_euclid(1000)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_instead_of_overflowing() {
        let end = Timestamp::from_millis(i64::MAX);
        assert_eq!(end.after(Duration::MAX), end);
        assert_eq!(Timestamp::from_millis(0).since(end), Duration::ZERO);
        assert_eq!(
            Timestamp::from_millis(i64::MIN).before(Duration::MAX),
            Timestamp::from_millis(i64::MIN)
        );
    }

    #[test]
    fn seconds_left_are_rounded_down() {
        let now = Timestamp::from_millis(10_000);
        assert_eq!(Timestamp::from_millis(11_999).seconds_from(now), 1);
        assert_eq!(Timestamp::from_millis(9_999).seconds_from(now), -1);
    }
}
