//! Everything that this process counts.

use std::array;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use evergrant_domain::{AppName, ConnectionId};
use parking_lot::Mutex;

use crate::exposition::{Exposition, Kind};
use crate::histogram::{Counted, Histogram};
use crate::series::{self, AppSeries, Labelled};
use crate::shards::{Apart, Shards};

/// Everything that this process counts. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    series: Mutex<BTreeMap<Whose, AppSeries>>,
    /// The connections that have series of their own, as the configuration names them.
    named: OnceLock<BTreeSet<ConnectionId>>,
    here: Shards<Here>,
    store_errors: Mutex<BTreeMap<&'static str, u64>>,
}

/// Whose series: an app's, or those of one of its connections that was named. No app is what ended before it was known.
type Whose = (Option<AppName>, Option<ConnectionId>);

/// What is counted for no app.
struct Here {
    enqueue_delay: Delay,
    refresh_took: Took,
    lease_waited: Took,
    double_redemptions: AtomicU64,
    deliveries: [AtomicU64; Delivery::ALL.len()],
}

/// In milliseconds.
type Delay = Histogram<11, 1000>;
type Took = Histogram<10, 1000>;

/// From a queue that keeps up to one that was away for a day.
static DELAYS: [u64; 11] = [
    100, 1_000, 10_000, 60_000, 300_000, 900_000, 1_800_000, 3_600_000, 10_800_000, 43_200_000, 86_400_000,
];
/// From a lease that is free, and an exchange with a provider nearby, to the longest that a refresh goes on.
static TOOK: [u64; 10] = [10, 50, 100, 250, 500, 1_000, 2_500, 10_000, 30_000, 60_000];

impl Default for Here {
    fn default() -> Self {
        Self {
            enqueue_delay: Histogram::new(&DELAYS),
            refresh_took: Histogram::new(&TOOK),
            lease_waited: Histogram::new(&TOOK),
            double_redemptions: AtomicU64::new(0),
            deliveries: array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

/// What came of one try at telling somebody's URL of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// It was taken.
    Delivered,
    /// It was not taken and is tried again.
    Failed,
    /// It was not taken and is not tried again.
    Dead,
}

impl Delivery {
    const ALL: [Self; 3] = [Self::Delivered, Self::Failed, Self::Dead];

    fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Dead => "dead",
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
            _here: self.inner.here.held_here().clone(),
        }
    }

    /// A call's job was put into its queue so long ago.
    pub fn enqueued(&self, delay: Duration) {
        self.inner.here.here().enqueue_delay.observe(delay);
    }

    /// A refresh ended after so long.
    pub fn refresh_took(&self, took: Duration) {
        self.inner.here.here().refresh_took.observe(took);
    }

    /// A refresh waited so long for the lease, whether it got it or found what another one had brought.
    pub fn lease_waited(&self, waited: Duration) {
        self.inner.here.here().lease_waited.observe(waited);
    }

    /// Two token sets were issued for one version.
    pub fn double_redemption(&self) {
        let here = self.inner.here.here();
        here.double_redemptions.fetch_add(1, Ordering::Relaxed);
    }

    /// A webhook was tried once.
    pub fn webhook_delivery(&self, outcome: Delivery) {
        let here = self.inner.here.here();
        here.deliveries[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// What a store is asked for: counted from zero.
    pub fn store_ops(&self, ops: &[&'static str]) {
        let mut errors = self.inner.store_errors.lock();
        for op in ops {
            errors.entry(op).or_default();
        }
    }

    /// The store did not do what it was asked.
    pub fn store_error(&self, op: &'static str) {
        *self.inner.store_errors.lock().entry(op).or_default() += 1;
    }

    /// Gives these connections series of their own from now on, with a label `connection`: what they do counts there and not among
    /// their app's. To be said once, before the first is made.
    pub fn name_connections(&self, connections: impl IntoIterator<Item = ConnectionId>) {
        // Who says it again is not heard: a series must not move.
        let _ = self.inner.named.set(connections.into_iter().collect());
    }

    /// The series of an app, or of what ended before its app was known. Looks it up: not for every call.
    pub fn app(&self, name: Option<&AppName>) -> AppSeries {
        self.series((name.cloned(), None))
    }

    /// The series that what this connection of an app does counts in.
    pub fn of(&self, app: &AppName, connection: &ConnectionId) -> AppSeries {
        let is_named = |named: &BTreeSet<ConnectionId>| named.contains(connection);
        let connection = self
            .inner
            .named
            .get()
            .is_some_and(is_named)
            .then(|| connection.clone());
        self.series((Some(app.clone()), connection))
    }

    fn series(&self, whose: Whose) -> AppSeries {
        self.inner.series.lock().entry(whose).or_default().clone()
    }

    /// Writes all of it.
    pub fn write(&self, text: &mut Exposition) {
        const IN_FLIGHT: &str = "evergrant_calls_in_flight";
        const DOUBLE: &str = "evergrant_double_redemptions_total";
        const STORE_ERRORS: &str = "evergrant_store_errors_total";
        const DELIVERIES: &str = "evergrant_webhook_deliveries_total";
        let all = self.inner.series.lock().clone();
        let labelled: Vec<_> = all
            .iter()
            .map(|((app, connection), series)| Labelled {
                app: app.as_ref().map_or("", AppName::as_str),
                connection: connection.as_ref().map(ConnectionId::as_str),
                series,
            })
            .collect();
        series::write(&labelled, text);
        let here = || self.inner.here.all();
        let sum = |count: fn(&Here) -> &AtomicU64| -> u64 {
            here().map(|here| count(here).load(Ordering::Relaxed)).sum()
        };
        text.family(
            IN_FLIGHT,
            Kind::Gauge,
            "Calls that have begun and whose answers have not been passed on to their end.",
        );
        text.sample(IN_FLIGHT, &[], self.inner.here.holders());
        let mut histogram = |name: &str, help: &str, counted: Counted| {
            text.family(name, Kind::Histogram, help);
            text.histogram(name, &[], &counted);
        };
        histogram(
            "evergrant_enqueue_delay_seconds",
            "How long ago the jobs of calls were put into their queues, where Evergrant-Enqueued-At says so.",
            Counted::of(here().map(|here| &here.enqueue_delay)),
        );
        histogram(
            "evergrant_refresh_duration_seconds",
            "How long refreshes took, from when one began to what came of it.",
            Counted::of(here().map(|here| &here.refresh_took)),
        );
        histogram(
            "evergrant_lease_wait_seconds",
            "How long refreshes waited for the lease that says who may redeem.",
            Counted::of(here().map(|here| &here.lease_waited)),
        );
        text.family(
            DOUBLE,
            Kind::Counter,
            "Token sets that were issued although another one had been issued for the same version.",
        );
        text.sample(DOUBLE, &[], sum(|here| &here.double_redemptions));
        text.family(
            STORE_ERRORS,
            Kind::Counter,
            "What the store was asked and did not do, by what it was asked for.",
        );
        for (op, errors) in &*self.inner.store_errors.lock() {
            text.sample(STORE_ERRORS, &[("op", op)], errors);
        }
        text.family(
            DELIVERIES,
            Kind::Counter,
            "Tries at delivering webhooks, by what came of them.",
        );
        for outcome in Delivery::ALL {
            let tried = here().map(|here| here.deliveries[outcome as usize].load(Ordering::Relaxed));
            text.sample(DELIVERIES, &[("outcome", outcome.as_str())], tried.sum::<u64>());
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::{Redemption, Source};

    fn written(metrics: &Metrics) -> String {
        let mut text = Exposition::new();
        metrics.write(&mut text);
        text.into_text()
    }

    #[track_caller]
    fn check(text: &str, sample: &str) {
        assert!(text.lines().any(|line| line == sample), "{sample}: {text}");
    }

    #[test]
    fn a_named_connection_counts_apart_and_no_other_is_named() {
        let metrics = Metrics::default();
        let app = AppName::parse("crm").expect("a literal name");
        let id = |id| ConnectionId::parse(id).expect("a literal id");
        metrics.name_connections([id("acme")]);
        metrics.name_connections([id("beta")]);
        for connection in ["acme", "beta", "gamma"] {
            let series = metrics.of(&app, &id(connection)).here();
            series.redemption(Redemption::Issued);
            series.token_set_stored(Source::Refresh);
        }
        let text = written(&metrics);
        check(
            &text,
            r#"evergrant_redemptions_total{app="crm",outcome="issued"} 2"#,
        );
        check(
            &text,
            r#"evergrant_redemptions_total{app="crm",outcome="issued",connection="acme"} 1"#,
        );
        check(
            &text,
            r#"evergrant_token_sets_stored_total{app="crm",source="refresh",connection="acme"} 1"#,
        );
        assert!(!text.contains("beta") && !text.contains("gamma"), "{text}");
    }

    #[test]
    fn what_belongs_to_no_app_is_there_from_the_start() {
        let metrics = Metrics::default();
        metrics.store_ops(&["land", "held"]);
        metrics.store_error("land");
        metrics.double_redemption();
        metrics.webhook_delivery(Delivery::Dead);
        metrics.lease_waited(Duration::from_millis(20));
        let text = written(&metrics);
        for sample in [
            r#"evergrant_store_errors_total{op="held"} 0"#,
            r#"evergrant_store_errors_total{op="land"} 1"#,
            "evergrant_double_redemptions_total 1",
            r#"evergrant_webhook_deliveries_total{outcome="delivered"} 0"#,
            r#"evergrant_webhook_deliveries_total{outcome="dead"} 1"#,
            r#"evergrant_lease_wait_seconds_bucket{le="0.05"} 1"#,
            "evergrant_refresh_duration_seconds_count 0",
        ] {
            check(&text, sample);
        }
    }

    #[test]
    fn words_of_deliveries_stand_where_their_numbers_say_and_bounds_ascend() {
        for (index, outcome) in Delivery::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index, "{}", outcome.as_str());
        }
        assert!(DELAYS.is_sorted() && TOOK.is_sorted());
    }
}
