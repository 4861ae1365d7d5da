//! The clocks of a machine: boot time that only drifts, wall time that somebody sets.

use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::Timestamp;
use evergrant_keeper::Clock;
use parking_lot::Mutex;

use crate::trace::Trace;

/// Where wall time begins: a Monday in November 2026.
const EPOCH_MILLIS: i64 = 1_794_000_000_000;

/// One machine's clocks. Clones are the same ones.
#[derive(Clone)]
pub(crate) struct Clocks {
    trace: Trace,
    /// Boot time when the run began.
    booted: Duration,
    /// Parts in a million that it runs too fast.
    drift_ppm: i64,
    /// Milliseconds that wall time was set forward, or back.
    set: Arc<Mutex<i64>>,
}

impl Clocks {
    pub(crate) fn new(trace: &Trace, booted: Duration, drift_ppm: i64, ahead_millis: i64) -> Self {
        Self {
            trace: trace.clone(),
            booted,
            drift_ppm,
            set: Arc::new(Mutex::new(ahead_millis)),
        }
    }

    /// Somebody sets the wall clock.
    pub(crate) fn set_forward(&self, millis: i64) {
        *self.set.lock() += millis;
    }

    pub(crate) fn boot_millis(&self) -> i64 {
        let elapsed = signed_millis(self.trace.now());
        signed_millis(self.booted) + elapsed + elapsed * self.drift_ppm / 1_000_000
    }

    pub(crate) fn wall_millis(&self) -> i64 {
        EPOCH_MILLIS + self.boot_millis() - signed_millis(self.booted) + *self.set.lock()
    }
}

impl Clock for Clocks {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.wall_millis())
    }

    fn boot(&self) -> Duration {
        Duration::from_millis(self.boot_millis().unsigned_abs())
    }
}

fn signed_millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
