//! Who waits how for their turn at a connection: PROTOCOL rule 6.
//!
//! Nothing here decides who may redeem. The lease and the intent in the store do, whatever the mode, so processes with
//! different modes are one fleet; a mode that fails costs waiting and nothing else.

#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "postgres")]
pub mod row_lock;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use evergrant_domain::ConnectionId;

#[cfg(feature = "redis")]
pub use self::redis::ByRedis;
#[cfg(feature = "postgres")]
pub use self::row_lock::ByRowLock;

/// A way of waiting.
#[async_trait]
pub trait Coordination: Send + Sync + 'static {
    /// Waits for this process's turn at a connection, for at most `patience`.
    async fn turn(&self, id: &ConnectionId, patience: Duration) -> Turn;
}

/// What came of waiting.
#[derive(Debug)]
pub enum Turn {
    /// This process may ask the store for the lease.
    Mine(Guard),
    /// Somebody else's still. Look at the store again before waiting anew: what moved is used.
    NotYet,
}

/// A turn at a connection. Dropped, the next one has it.
#[must_use]
pub struct Guard(Option<Box<dyn FnOnce() + Send>>);

impl Guard {
    /// A turn that nobody waits for.
    pub fn nothing() -> Self {
        Self(None)
    }

    /// A turn that is given back by `give_back`.
    pub fn new(give_back: impl FnOnce() + Send + 'static) -> Self {
        Self(Some(Box::new(give_back)))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(give_back) = self.0.take() {
            give_back();
        }
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guard(..)")
    }
}

/// The mode `lease`: everybody asks the store, and whoever finds the lease taken asks again a little later.
#[derive(Debug, Clone, Copy, Default)]
pub struct ByLease;

#[async_trait]
impl Coordination for ByLease {
    async fn turn(&self, _id: &ConnectionId, _patience: Duration) -> Turn {
        Turn::Mine(Guard::nothing())
    }
}

/// When something that may happen at every call was told last.
#[cfg(any(feature = "postgres", feature = "redis"))]
#[derive(Debug, Default)]
struct Lately(Option<tokio::time::Instant>);

#[cfg(any(feature = "postgres", feature = "redis"))]
impl Lately {
    /// Once a minute.
    fn is_worth_telling(&mut self) -> bool {
        const ENOUGH: Duration = Duration::from_secs(60);
        let now = tokio::time::Instant::now();
        let worth = self.0.is_none_or(|told| now >= told + ENOUGH);
        if worth {
            self.0 = Some(now);
        }
        worth
    }
}
