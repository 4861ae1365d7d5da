//! What the engine touches of the world beside the store and the provider: time, chance, and where its work runs.
//!
//! A simulation puts its own in their place, and then a whole run hangs on one number.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use evergrant_domain::refresh_policy::Jitter;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::clock::{Clock, SystemClock};

/// Numbers that nobody foresees, for spreading work.
pub trait Chance: Send + Sync + 'static {
    /// The next.
    fn jitter(&self) -> Jitter;
}

/// The system's generator. Without randomness there is no jitter: everything still works, only less spread.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemChance;

impl Chance for SystemChance {
    fn jitter(&self) -> Jitter {
        let mut bytes = [0; 4];
        match aws_lc_rs::rand::fill(&mut bytes) {
            Ok(()) => Jitter::new(f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)),
            Err(_) => Jitter::NONE,
        }
    }
}

/// Work that runs beside whoever began it.
pub type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where work runs.
pub trait Runtime: Send + Sync + 'static {
    /// Runs it to its end.
    fn spawn(&self, work: Work);
}

/// The Tokio runtime that this was made on, else the one that the caller is on: calls may come in on other runtimes than the
/// engine's, and what they begin outlives them.
#[derive(Debug, Clone)]
pub struct TokioRuntime(Option<Handle>);

impl Default for TokioRuntime {
    fn default() -> Self {
        Self(Handle::try_current().ok())
    }
}

impl Runtime for TokioRuntime {
    fn spawn(&self, work: Work) {
        match &self.0 {
            Some(runtime) => runtime.spawn(work),
            None => tokio::spawn(work),
        };
    }
}

/// Everything of the world that a keeper is given.
#[derive(Clone)]
pub struct Surroundings {
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub chance: Arc<dyn Chance>,
    /// Where work runs.
    pub runtime: Arc<dyn Runtime>,
}

impl Default for Surroundings {
    /// This machine's.
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            chance: Arc::new(SystemChance),
            runtime: Arc::new(TokioRuntime::default()),
        }
    }
}

/// The work of one keeper that is not done yet.
pub(crate) struct Tasks {
    /// Redemptions, and what they brought: without their end a grant may be lost.
    redeeming: TaskTracker,
    /// Everything else.
    beside: TaskTracker,
    runtime: Arc<dyn Runtime>,
}

impl Tasks {
    pub(crate) fn new(runtime: Arc<dyn Runtime>) -> Self {
        Self {
            redeeming: TaskTracker::new(),
            beside: TaskTracker::new(),
            runtime,
        }
    }

    /// Runs what a redemption is made of to its end, whatever becomes of who began it and of the process's patience.
    pub(crate) fn redeem(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(Box::pin(self.redeeming.track_future(work)));
    }

    /// Runs other work to its end, whatever becomes of who began it.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(Box::pin(self.beside.track_future(work)));
    }

    /// Waits until no redemption runs any more.
    pub(crate) async fn redeemed(&self) {
        self.redeeming.close();
        self.redeeming.wait().await;
    }

    /// Waits until nothing else runs any more.
    pub(crate) async fn finished(&self) {
        self.beside.close();
        self.beside.wait().await;
    }
}
