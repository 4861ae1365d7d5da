//! What time it is: the machine's clock, and the fleet's where the store has one.

use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::Timestamp;
use parking_lot::Mutex;

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

/// A sample whose round trip took longer says too little.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(1);

/// The common timeline of a fleet: the last sample of the store's clock, and boot time since. A jump of the machine's own clock
/// moves it nowhere; before the first sample the machine's clock is all there is.
pub(crate) struct Timeline {
    machine: Arc<dyn Clock>,
    sample: Mutex<Option<Sample>>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Timestamp,
    boot: Duration,
}

impl Timeline {
    pub(crate) fn new(machine: Arc<dyn Clock>) -> Self {
        Self {
            machine,
            sample: Mutex::default(),
        }
    }

    /// Takes what the store's clock showed in answer to a question that was asked at `asked` and answered now, both in boot
    /// time. It showed it half-way, as far as anybody knows. `false` where the way was too long to tell.
    pub(crate) fn sample(&self, at: Timestamp, asked: Duration) -> bool {
        let round_trip = self.machine.boot().saturating_sub(asked);
        let tells = round_trip <= ROUND_TRIP_MAX;
        if tells {
            *self.sample.lock() = Some(Sample {
                at,
                boot: asked + round_trip / 2,
            });
        }
        tells
    }

    /// By how many milliseconds the machine's clock is ahead of the store's; negative where it is behind. `None` while nobody
    /// knows, or where the machine's is the only one.
    pub(crate) fn machine_ahead_ms(&self) -> Option<i64> {
        let sample = (*self.sample.lock())?;
        let ours = self.machine.now().millis();
        Some(ours.saturating_sub(sample.now(self.machine.boot()).millis()))
    }
}

impl Sample {
    fn now(self, boot: Duration) -> Timestamp {
        self.at.after(boot.saturating_sub(self.boot))
    }
}

impl Clock for Timeline {
    fn now(&self) -> Timestamp {
        match *self.sample.lock() {
            Some(sample) => sample.now(self.machine.boot()),
            None => self.machine.now(),
        }
    }

    fn boot(&self) -> Duration {
        self.machine.boot()
    }
}

#[cfg(test)]
mod tests {
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
