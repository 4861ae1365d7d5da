//! Everything that this process counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::AppName;
use parking_lot::Mutex;

use crate::exposition::{Exposition, Kind};
use crate::histogram::{Counted, Histogram};
use crate::series::{self, AppSeries};
use crate::shards::{Apart, Shards};

/// Everything that this process counts. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    apps: Mutex<BTreeMap<Option<AppName>, AppSeries>>,
    here: Shards<Here>,
}

/// What is counted for no app.
struct Here {
    enqueue_delay: Delay,
}

/// In milliseconds.
type Delay = Histogram<11, 1000>;

/// From a queue that keeps up to one that was away for a day.
static DELAYS: [u64; 11] = [
    100, 1_000, 10_000, 60_000, 300_000, 900_000, 1_800_000, 3_600_000, 10_800_000, 43_200_000, 86_400_000,
];

impl Default for Here {
    fn default() -> Self {
        Self {
            enqueue_delay: Histogram::new(&DELAYS),
        }
    }
}

/// A call that is in flight for as long as this lives.
pub struct InFlight {
    /// Counted by holding it: one addition when it begins and one when it ends, whichever threads these are on.
    _here: Arc<Apart<Here>>,
}

impl Metrics {
    /// A call begins.
    pub fn begin(&self) -> InFlight {
        InFlight {
            _here: self.inner.here.here().clone(),
        }
    }

    /// A call's job was put into its queue so long ago.
    pub fn enqueued(&self, delay: Duration) {
        self.inner.here.here().0.enqueue_delay.observe(delay);
    }

    /// The series of an app, or of what ended before its app was known. Looks it up: not for every call.
    pub fn app(&self, name: Option<&AppName>) -> AppSeries {
        let mut apps = self.inner.apps.lock();
        match apps.get(&name.cloned()) {
            Some(series) => series.clone(),
            None => apps.entry(name.cloned()).or_default().clone(),
        }
    }

    /// Writes all of it.
    pub fn write(&self, text: &mut Exposition) {
        const IN_FLIGHT: &str = "evergrant_calls_in_flight";
        const ENQUEUE_DELAY: &str = "evergrant_enqueue_delay_seconds";
        let apps: Vec<(Option<AppName>, AppSeries)> = {
            let apps = self.inner.apps.lock();
            apps.iter()
                .map(|(name, series)| (name.clone(), series.clone()))
                .collect()
        };
        let named: Vec<(&str, AppSeries)> = apps
            .iter()
            .map(|(name, series)| (name.as_ref().map_or("", AppName::as_str), series.clone()))
            .collect();
        series::write(&named, text);
        text.family(
            IN_FLIGHT,
            Kind::Gauge,
            "Calls that have begun and whose answers have not been passed on to their end.",
        );
        text.sample(IN_FLIGHT, &[], self.inner.here.holders());
        text.family(
            ENQUEUE_DELAY,
            Kind::Histogram,
            "How long ago the jobs of calls were put into their queues, where Evergrant-Enqueued-At says so.",
        );
        let delays = self.inner.here.all().map(|here| &here.enqueue_delay);
        text.histogram(ENQUEUE_DELAY, &[], &Counted::of(delays));
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for InFlight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InFlight").finish_non_exhaustive()
    }
}
