//! What time it is: the machine's clock, and the fleet's where the store has one.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
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

/// One look at both clocks: what belongs together is judged by one time.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Wall time.
    pub now: Timestamp,
    /// Boot time.
    pub boot: Duration,
}

/// A sample whose round trip took longer says too little.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(1);

/// The common timeline of a fleet: the last sample of the store's clock, and boot time since. A jump of the machine's own clock
/// moves it nowhere; before the first sample the machine's clock is all there is.
pub(crate) struct Timeline {
    machine: Arc<dyn Clock>,
    /// By how many microseconds the store's time is ahead of boot time, as last seen: a number, for every call reads it.
    ahead_of_boot: AtomicI64,
}

/// Nobody knows.
const NO_SAMPLE: i64 = i64::MIN;

impl Timeline {
    pub(crate) fn new(machine: Arc<dyn Clock>) -> Self {
        Self {
            machine,
            ahead_of_boot: AtomicI64::new(NO_SAMPLE),
        }
    }

    /// Takes what the store's clock showed in answer to a question that was asked at `asked` and answered now, both in boot
    /// time. It showed it half-way, as far as anybody knows. `false` where the way was too long to tell.
    pub(crate) fn sample(&self, at: Timestamp, asked: Duration) -> bool {
        let round_trip = self.machine.boot().saturating_sub(asked);
        let tells = round_trip <= ROUND_TRIP_MAX;
        if tells {
            let ahead = at.millis().saturating_mul(1000) - micros(asked + round_trip / 2);
            self.ahead_of_boot.store(ahead, Ordering::Relaxed);
        }
        tells
    }

    /// By how many milliseconds the machine's clock is ahead of the store's; negative where it is behind. `None` while nobody
    /// knows, or where the machine's is the only one.
    pub(crate) fn machine_ahead_ms(&self) -> Option<i64> {
        let theirs = self.by_sample(self.machine.boot())?;
        Some(self.machine.now().millis().saturating_sub(theirs.millis()))
    }

    /// Both times, when it is `boot` by the one.
    pub(crate) fn moment_at(&self, boot: Duration) -> Moment {
        let now = self.by_sample(boot).unwrap_or_else(|| self.machine.now());
        Moment { now, boot }
    }

    fn by_sample(&self, boot: Duration) -> Option<Timestamp> {
        let ahead = self.ahead_of_boot.load(Ordering::Relaxed);
        (ahead != NO_SAMPLE).then(|| {
            let now = micros(boot).saturating_add(ahead);
            Timestamp::from_millis(now.div_euclid(1000))
        })
    }
}

fn micros(boot: Duration) -> i64 {
    i64::try_from(boot.as_micros()).unwrap_or(i64::MAX)
}

impl Clock for Timeline {
    fn now(&self) -> Timestamp {
        if self.ahead_of_boot.load(Ordering::Relaxed) == NO_SAMPLE {
            return self.machine.now();
        }
        self.moment_at(self.machine.boot()).now
    }

    fn boot(&self) -> Duration {
        self.machine.boot()
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    /// Wall and boot time, in seconds, as a test sets them.
    #[derive(Default)]
    struct Hands(Mutex<(i64, u64)>);

    impl Clock for Hands {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(self.0.lock().0 * 1000)
        }

        fn boot(&self) -> Duration {
            Duration::from_secs(self.0.lock().1)
        }
    }

    fn timeline(wall: i64, boot: u64) -> (Arc<Hands>, Timeline) {
        let hands = Arc::new(Hands(Mutex::new((wall, boot))));
        (hands.clone(), Timeline::new(hands))
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    #[test]
    fn before_the_first_sample_the_machines_clock_counts() {
        let (_, time) = timeline(5000, 100);
        assert_eq!(time.now(), at(5000));
        assert_eq!(time.machine_ahead_ms(), None);
    }

    #[test]
    fn after_a_sample_the_stores_clock_counts_and_a_jump_of_the_machines_changes_nothing() {
        let (hands, time) = timeline(5000, 100);
        assert!(time.sample(at(1400), Duration::from_secs(100)));
        assert_eq!(time.now(), at(1400));
        assert_eq!(time.machine_ahead_ms(), Some(3_600_000));
        *hands.0.lock() = (9, 130);
        assert_eq!(time.now(), at(1430));
        assert_eq!(time.machine_ahead_ms(), Some(-1_421_000));
        assert_eq!(time.boot(), Duration::from_secs(130));
    }

    #[test]
    fn the_store_showed_its_time_half_way_and_a_way_too_long_tells_nothing() {
        let (hands, time) = timeline(0, 101);
        assert!(time.sample(at(50), Duration::from_secs(100)));
        assert_eq!(time.now(), Timestamp::from_millis(50_500));
        hands.0.lock().1 = 103;
        assert!(!time.sample(at(9000), Duration::from_millis(101_999)));
        assert_eq!(
            time.now(),
            Timestamp::from_millis(52_500),
            "the last sample stays"
        );
    }
}
