//! The one clock.

use std::time::Duration;

use evergrant_domain::Timestamp;

/// What time it is, in both of its meanings.
pub trait Clock: Send + Sync + 'static {
    /// Wall time, for what outlives the process.
    fn now(&self) -> Timestamp;

    /// Time since the machine booted, suspend included, for what must not move when someone sets the clock.
    fn boot(&self) -> Duration;
}

/// The machine's own clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Timestamp::from_millis(
            time.tv_sec
                .saturating_mul(1000)
                .saturating_add(time.tv_nsec / 1_000_000),
        )
    }

    fn boot(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(
            u64::try_from(time.tv_sec).unwrap_or(0),
            u32::try_from(time.tv_nsec).unwrap_or(0),
        )
    }
}
