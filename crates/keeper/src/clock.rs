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
    /// Asked of the C library and not of the kernel, so that what sets the clock of one process (libfaketime) does so here.
    fn now(&self) -> Timestamp {
        let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    fn boot(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(
            u64::try_from(time.tv_sec).unwrap_or(0),
            u32::try_from(time.tv_nsec).unwrap_or(0),
        )
    }
}
