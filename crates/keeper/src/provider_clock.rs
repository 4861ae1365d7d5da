//! How far this machine's clock is off by the providers', as their answers show it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::Timestamp;
use evergrant_oauth::ClockSeen;
use parking_lot::Mutex;

use crate::clock::Clock;
use crate::keeper::Keeper;

/// Of so many answers the one in the middle counts: a slow one, or one that a cache kept, says nothing alone.
const SAMPLES: usize = 5;

/// An answer whose way was longer says too little.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(5);

/// What was seen so long ago says nothing about now.
const COUNTS_FOR: Duration = Duration::from_secs(3600);

/// More hosts than anybody has configured; answers of others are not listened to.
const HOSTS_MAX: usize = 64;

/// `Date` is cut off to the second: half of one later is as near as can be told.
const CUT_OFF_MS: i64 = 500;

/// What the providers' clocks showed.
pub(crate) struct ProviderClocks {
    machine: Arc<dyn Clock>,
    seen: Mutex<BTreeMap<String, VecDeque<Sample>>>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Timestamp,
    boot: Duration,
}

impl ProviderClocks {
    pub(crate) fn new(machine: Arc<dyn Clock>) -> Self {
        Self {
            machine,
            seen: Mutex::default(),
        }
    }

    /// Takes what an answer showed half-way between its request and itself.
    pub(crate) fn take(&self, seen: ClockSeen) {
        if seen.round_trip > ROUND_TRIP_MAX {
            return;
        }
        let boot = self.machine.boot().saturating_sub(seen.ago + seen.round_trip / 2);
        let at = Timestamp::from_millis(seen.date.millis().saturating_add(CUT_OFF_MS));
        let mut hosts = self.seen.lock();
        if hosts.len() >= HOSTS_MAX && !hosts.contains_key(&seen.host) {
            return;
        }
        let samples = hosts.entry(seen.host).or_default();
        if samples.len() == SAMPLES {
            samples.pop_front();
        }
        samples.push_back(Sample { at, boot });
    }

    /// By how many milliseconds the machine's clock is ahead of the provider's that it is furthest from; negative where it is
    /// behind. `None` where none was seen lately.
    pub(crate) fn machine_ahead_ms(&self) -> Option<i64> {
        let (now, boot) = (self.machine.now().millis(), self.machine.boot());
        let hosts = self.seen.lock();
        let offsets = hosts.values().filter_map(|samples| {
            let ages = samples
                .iter()
                .map(|sample| (sample, boot.saturating_sub(sample.boot)));
            let mut ahead: Vec<i64> = ages
                .filter(|(_, age)| *age < COUNTS_FOR)
                .map(|(sample, age)| now.saturating_sub(sample.at.after(age).millis()))
                .collect();
            ahead.sort_unstable();
            ahead.get(ahead.len() / 2).copied()
        });
        offsets.max_by_key(|offset| offset.unsigned_abs())
    }
}

impl Keeper {
    /// By how many milliseconds this machine's clock is ahead of the provider's, to half a second; negative where it is behind.
    /// Where there are several providers, of the one that it is furthest from. `None` where none has answered lately.
    pub fn provider_clock_offset_ms(&self) -> Option<i64> {
        self.inner.provider_clocks.machine_ahead_ms()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wall and boot time, in milliseconds, as a test sets them.
    #[derive(Default)]
    struct Hands(Mutex<(i64, u64)>);

    impl Clock for Hands {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(self.0.lock().0)
        }

        fn boot(&self) -> Duration {
            Duration::from_millis(self.0.lock().1)
        }
    }

    fn seen(host: &str, date_ms: i64, round_trip_ms: u64) -> ClockSeen {
        ClockSeen {
            host: host.to_owned(),
            date: Timestamp::from_millis(date_ms),
            round_trip: Duration::from_millis(round_trip_ms),
            ago: Duration::ZERO,
        }
    }

    #[test]
    fn the_offset_is_the_middle_one_with_half_the_way_and_half_a_second_taken_off() {
        let hands = Arc::new(Hands(Mutex::new((1_000_000, 50_000))));
        let clocks = ProviderClocks::new(hands.clone());
        assert_eq!(clocks.machine_ahead_ms(), None);
        clocks.take(seen("a", 995_000, 200));
        // Now is 1,000,000; half-way was 999,900; the provider's clock then showed 995,500.
        assert_eq!(clocks.machine_ahead_ms(), Some(4_400));
        // One that lay in a cache for an hour, and one whose way was far too long.
        clocks.take(seen("a", 995_000, 200));
        clocks.take(seen("a", -2_600_000, 200));
        clocks.take(seen("a", 0, 6_000));
        assert_eq!(clocks.machine_ahead_ms(), Some(4_400));
        // The machine's clock is set: no answer is needed to see it.
        *hands.0.lock() = (4_610_000, 60_000);
        assert_eq!(clocks.machine_ahead_ms(), Some(3_604_400));
    }

    #[test]
    fn of_several_providers_the_furthest_counts_and_what_is_old_does_not() {
        let hands = Arc::new(Hands(Mutex::new((1_000_000, 5_000_000))));
        let clocks = ProviderClocks::new(hands.clone());
        clocks.take(seen("a", 999_500, 0));
        clocks.take(seen("b", 1_008_500, 0));
        assert_eq!(clocks.machine_ahead_ms(), Some(-9_000));
        let mut hour = hands.0.lock();
        *hour = (hour.0 + 3_600_000, hour.1 + 3_600_000);
        drop(hour);
        assert_eq!(clocks.machine_ahead_ms(), None);
    }
}
