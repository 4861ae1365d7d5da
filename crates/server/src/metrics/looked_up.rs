//! What is shown beside the counts and has to be looked up: in the store, in the lifeboat. Looked up behind the answers and not all
//! the time, so that neither who scrapes nor a store that hangs is in the other's way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::AppName;
use evergrant_domain::access::Limits;
use evergrant_domain::app::AppHealth;
use evergrant_domain::connection::Health;
use evergrant_domain::redemption::QUIET_TIME;
use evergrant_keeper::Keeper;
use evergrant_metrics::{Exposition, Kind};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

/// How long one look into the store answers everybody who scrapes.
const STORE_EVERY: Duration = Duration::from_secs(15);

/// The same for the lifeboat, a folder that is mostly empty.
const LIFEBOAT_EVERY: Duration = Duration::from_secs(5);

/// How long whoever finds nothing fresh waits for the look that it begins.
const PATIENCE: Duration = Duration::from_secs(1);

/// A look that takes longer is given up.
const LOOK_LASTS: Duration = Duration::from_secs(60);

/// What was seen so long ago is not shown any more: no number is better than a wrong one.
const COUNTS_FOR: Duration = Duration::from_secs(300);

/// Everything that is looked up.
#[derive(Default)]
pub(crate) struct LookedUp {
    fleet: Arc<Look<Fleet>>,
    lifeboat: Arc<Look<usize>>,
}

/// What the store shows of the whole fleet: the same in each process.
#[derive(Clone)]
struct Fleet {
    /// Whether the provider refuses an app's credentials.
    rejected: Vec<(AppName, bool)>,
    /// How many connections of an app do how; each configured app with each word, and no connection that was disconnected.
    connections: BTreeMap<(AppName, &'static str), u64>,
}

impl Fleet {
    async fn of(keeper: Keeper) -> Option<Self> {
        let mut rejected = Vec::new();
        for app in keeper.apps() {
            let health = keeper.app_health(&app.name).await.ok()?;
            let refused = matches!(health, AppHealth::CredentialsRejected { .. });
            rejected.push((app.name.clone(), refused));
        }
        let now = keeper.clock().now();
        let store = keeper.store();
        let counts = store
            .count_connections(Limits::default(), QUIET_TIME, now)
            .await
            .ok()?;
        let configured = keeper.apps();
        let words = configured
            .iter()
            .flat_map(|app| Health::ALL.map(|health| (app, health)));
        let mut connections: BTreeMap<_, _> = words
            .map(|(app, health)| ((app.name.clone(), health.as_str()), 0))
            .collect();
        for counted in counts {
            if let Some(health) = counted.health {
                connections.insert((counted.app, health.as_str()), counted.count);
            }
        }
        Some(Self {
            rejected,
            connections,
        })
    }
}

impl LookedUp {
    /// Writes what is known, looking it up where that is too old.
    pub(crate) async fn write(&self, keeper: &Keeper, text: &mut Exposition) {
        const CONNECTIONS: &str = "evergrant_connections";
        const REJECTED: &str = "evergrant_app_credentials_rejected";
        const LIFEBOAT: &str = "evergrant_lifeboat_entries";
        let fleet = Fleet::of(keeper.clone());
        let entries = {
            let keeper = keeper.clone();
            async move { keeper.lifeboat_entries().await }
        };
        let (fleet, entries) = tokio::join!(
            self.fleet.seen(STORE_EVERY, fleet),
            self.lifeboat.seen(LIFEBOAT_EVERY, entries)
        );
        text.family(
            CONNECTIONS,
            Kind::Gauge,
            "Connections by how they do. The same in each process of a fleet.",
        );
        for ((app, health), count) in fleet.iter().flat_map(|fleet| &fleet.connections) {
            text.sample(CONNECTIONS, &[("app", app.as_str()), ("health", health)], count);
        }
        text.family(
            REJECTED,
            Kind::Gauge,
            "1 while the provider refuses the app's credentials. The same in each process of a fleet.",
        );
        for (app, refused) in fleet.iter().flat_map(|fleet| &fleet.rejected) {
            text.sample(REJECTED, &[("app", app.as_str())], u8::from(*refused));
        }
        text.family(
            LIFEBOAT,
            Kind::Gauge,
            "Token sets that are in this process's lifeboat because the store has not taken them.",
        );
        if let Some(entries) = entries {
            text.sample(LIFEBOAT, &[], entries);
        }
    }
}

/// Something that is looked up by one at a time.
struct Look<T>(Mutex<State<T>>);

struct State<T> {
    seen: Option<(Instant, T)>,
    under_way: bool,
}

impl<T> Default for Look<T> {
    fn default() -> Self {
        Self(Mutex::new(State {
            seen: None,
            under_way: false,
        }))
    }
}

impl<T: Clone + Send + 'static> Look<T> {
    /// What was seen last. Whoever finds it older than `every` looks again, and waits for that a little while.
    async fn seen(
        self: &Arc<Self>,
        every: Duration,
        looking: impl Future<Output = Option<T>> + Send + 'static,
    ) -> Option<T> {
        if self.begins(every) {
            let under_way = UnderWay(self.clone());
            let look = tokio::spawn(async move {
                if let Ok(Some(seen)) = timeout(LOOK_LASTS, looking).await {
                    under_way.0.0.lock().seen = Some((Instant::now(), seen));
                }
                drop(under_way);
            });
            // It goes on all the same.
            let _ = timeout(PATIENCE, look).await;
        }
        let state = self.0.lock();
        let (at, seen) = state.seen.as_ref()?;
        (at.elapsed() < COUNTS_FOR).then(|| seen.clone())
    }

    /// Whether it is time to look, and nobody does.
    fn begins(&self, every: Duration) -> bool {
        let mut state = self.0.lock();
        let is_fresh = state.seen.as_ref().is_some_and(|(at, _)| at.elapsed() < every);
        let begins = !is_fresh && !state.under_way;
        state.under_way |= begins;
        begins
    }
}

/// A look, however it ends.
struct UnderWay<T>(Arc<Look<T>>);

impl<T> Drop for UnderWay<T> {
    fn drop(&mut self) {
        self.0.0.lock().under_way = false;
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_look_that_hangs_keeps_nobody_and_what_was_seen_stays_for_a_while() {
        let look = Arc::new(Look::default());
        let every = Duration::from_secs(15);
        assert_eq!(look.seen(every, async { Some(1) }).await, Some(1));
        // Fresh: nobody looks.
        assert_eq!(look.seen(every, async { Some(2) }).await, Some(1));
        tokio::time::advance(every).await;
        let began = Instant::now();
        assert_eq!(look.seen(every, pending()).await, Some(1));
        assert!(
            began.elapsed() <= PATIENCE + Duration::from_millis(2),
            "{:?}",
            began.elapsed()
        );
        // One look hangs: the next one who scrapes does not wait at all, and begins no second look.
        let began = Instant::now();
        assert_eq!(look.seen(every, async { Some(3) }).await, Some(1));
        assert_eq!(began.elapsed(), Duration::ZERO);
        // Given up, and begun anew.
        tokio::time::advance(LOOK_LASTS).await;
        tokio::task::yield_now().await;
        assert_eq!(look.seen(every, async { Some(4) }).await, Some(4));
        // The store is away for long: no number.
        tokio::time::advance(COUNTS_FOR).await;
        assert_eq!(look.seen(every, async { None }).await, None);
    }
}
