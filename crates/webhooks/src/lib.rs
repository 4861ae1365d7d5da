//! Outgoing webhooks: whoever is configured is told when a connection needs its customer, and when it works again.
//!
//! The history is the outbox. An event is written with the change that it tells of; from the events a delivery is made for each receiver
//! that wants it, in one transaction with how far the events were read; deliveries are claimed, sent, and tried again by the
//! domain's times. So nothing that happened is forgotten, whoever is killed when; what was sent and not noted is sent once more.
//!
//! It knows nothing of HTTP's server side or of how a record is shown: that is [`Describe`]'s. Start reading at [`Webhooks`]; `making`
//! turns events into deliveries, `sending` sends them, `courier` is the wire, `signature` what receivers check.

mod courier;
mod making;
mod sending;
pub mod signature;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use evergrant_domain::webhook::{Endpoint, TRIED_FOR, refusal_of};
use evergrant_domain::{App, AppName, Connection, ConnectionId};
use evergrant_keeper::Keeper;
use evergrant_oauth::{Network, TlsRoots, machine};
use evergrant_store::StoreError;
use evergrant_store::contract::DeliverySweep;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::courier::Courier;
pub use crate::sending::TriedOut;

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long the store is waited for before the service begins.
const BEGINS_WITHIN: Duration = Duration::from_secs(2);
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// How long a delivery that was taken is kept, for people who ask whether it was.
const DELIVERED_KEPT: Duration = Duration::from_secs(3 * 24 * 3600);
/// How long one that was given up is kept, to be sent again by hand.
const DEAD_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// How records are shown to receivers: as the API shows them.
pub trait Describe: Send + Sync + 'static {
    /// The public part of a record.
    fn connection(&self, connection: &Connection) -> Value;

    /// The public part of an app.
    fn app(&self, name: &AppName, app: Option<&App>) -> Value;

    /// A link that restores a connection.
    fn reconnect_url(&self, connection: &ConnectionId) -> String;
}

/// Tells the receivers. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Webhooks {
    inner: Arc<Inner>,
}

struct Inner {
    keeper: Keeper,
    describe: Arc<dyn Describe>,
    courier: Courier,
    receivers: ArcSwap<Vec<Arc<Receiver>>>,
    /// How many deliveries are on their way to whom.
    on_their_way: Mutex<HashMap<String, u32>>,
    /// From where the events were read last, and to where, as long as nothing was found there to be kept.
    read: Mutex<(i64, i64)>,
    tasks: TaskTracker,
    /// There may be something to send before the next look.
    more: Notify,
    /// A delivery has ended.
    ended: Notify,
}

/// A receiver, and what its deliveries are known by.
struct Receiver {
    id: String,
    endpoint: Endpoint,
}

impl Webhooks {
    /// Nobody is told until [`Webhooks::tell`] says whom, and nothing runs by itself until [`Webhooks::run`].
    pub fn new(keeper: Keeper, describe: Arc<dyn Describe>) -> Self {
        /// Whatever name leads there.
        fn refuses(address: IpAddr) -> bool {
            refusal_of(address).is_some()
        }
        Self::over(machine(TlsRoots::Native, refuses), keeper, describe)
    }

    /// The same, by another way.
    pub fn over(network: Arc<dyn Network>, keeper: Keeper, describe: Arc<dyn Describe>) -> Self {
        Self {
            inner: Arc::new(Inner {
                keeper,
                describe,
                courier: Courier::new(network),
                receivers: ArcSwap::default(),
                on_their_way: Mutex::default(),
                read: Mutex::default(),
                tasks: TaskTracker::new(),
                more: Notify::new(),
                ended: Notify::new(),
            }),
        }
    }

    /// Tells these from now on. What is to be sent to others waits until they are there again, for a day.
    pub fn tell(&self, endpoints: Vec<Endpoint>) {
        let receivers = endpoints
            .into_iter()
            .map(|endpoint| {
                Arc::new(Receiver {
                    id: signature::fingerprint(&endpoint.url),
                    endpoint,
                })
            })
            .collect();
        self.inner.receivers.store(Arc::new(receivers));
        self.inner.more.notify_one();
    }

    /// To be done before anything is changed that somebody is to be told of: where nobody was ever told, the history counts from here
    /// on. A store that does not answer does not keep the service from beginning.
    pub async fn begin(&self) {
        match timeout(BEGINS_WITHIN, self.position()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(event = "store_error", %error, "from where on webhooks are made could not be noted; it is tried again");
            }
            Err(_) => {
                tracing::warn!(
                    event = "store_error",
                    "from where on webhooks are made could not be noted in time; it is tried again"
                );
            }
        }
    }

    /// Whether anybody is told at all.
    pub fn is_idle(&self) -> bool {
        self.inner.receivers.load().is_empty()
    }

    /// Works until it is told to stop, and waits then for what is on its way.
    pub async fn run(&self, stop: CancellationToken) {
        let mut looks = interval(LOOK_EVERY);
        let mut sweeps = interval(SWEEP_EVERY);
        for ticks in [&mut looks, &mut sweeps] {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            let done = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = sweeps.tick() => self.sweep().await,
                _ = looks.tick() => self.look().await,
                () = self.inner.more.notified() => self.look().await,
            };
            if let Err(error) = done {
                tracing::warn!(event = "store_error", %error, "webhooks could not be made or sent; it is tried again");
            }
        }
        self.finish().await;
    }

    /// Waits for what is on its way.
    pub async fn finish(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// Waits until nothing is on its way, for whoever looks by hand.
    pub async fn settle(&self) {
        while self.inner.on_their_way.lock().values().any(|count| *count > 0) {
            self.inner.ended.notified().await;
        }
    }

    /// Makes deliveries of what happened, and sends what is due.
    pub async fn look(&self) -> Result<(), StoreError> {
        if self.is_idle() {
            return Ok(());
        }
        self.make().await?;
        self.send_due().await
    }

    /// Forgets what is over its time, and gives up what is for nobody any more.
    pub async fn sweep(&self) -> Result<(), StoreError> {
        let now = self.inner.keeper.clock().now();
        let sweep = DeliverySweep {
            delivered_before: now.before(DELIVERED_KEPT),
            dead_before: now.before(DEAD_KEPT),
            unclaimed_before: now.before(TRIED_FOR),
            endpoints: self
                .inner
                .receivers
                .load()
                .iter()
                .map(|receiver| receiver.id.clone())
                .collect(),
            unclaimed: "this receiver is not in the configuration any more".to_owned(),
        };
        self.inner.keeper.store().sweep_deliveries(sweep, now).await
    }
}

impl std::fmt::Debug for Webhooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Webhooks").finish_non_exhaustive()
    }
}
