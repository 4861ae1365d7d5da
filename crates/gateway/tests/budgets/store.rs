//! A store whose claims are counted, and may fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use evergrant_domain::access::Limits;
use evergrant_domain::breaker::Breaker;
use evergrant_domain::call_budget::{Claim, Grant};
use evergrant_domain::connection::{Account, RefreshTrouble};
use evergrant_domain::event::Event;
use evergrant_domain::refresh_policy::Jitter;
use evergrant_domain::{
    AppName, Connection, ConnectionId, Customer, ReconnectReason, RefreshToken, Timestamp, TokenSet, Version,
};
use evergrant_store::SqliteStore;
use evergrant_store::contract::*;
use tokio::time::sleep;

/// What happens to the claims of a fleet.
#[derive(Default)]
pub(crate) struct Claims {
    pub(crate) made: AtomicUsize,
    pub(crate) fail: AtomicBool,
    /// How long it takes to put on record that a write leaves, in milliseconds.
    pub(crate) leaving_ms: AtomicU64,
    /// Nothing is answered while it is so.
    pub(crate) hang: AtomicBool,
}

pub(crate) struct Counted {
    pub(crate) inner: SqliteStore,
    pub(crate) claims: Arc<Claims>,
}

macro_rules! steps {
    ($(fn $name:ident($($arg:ident: $type:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl Store for Counted {
            $(async fn $name(&self, $($arg: $type),*) -> Result<$answer, StoreError> {
                if stringify!($name) == "claim_calls" {
                    self.claims.made.fetch_add(1, Ordering::Relaxed);
                    while self.claims.hang.load(Ordering::Relaxed) {
                        sleep(Duration::from_millis(10)).await;
                    }
                    if self.claims.fail.load(Ordering::Relaxed) {
                        return Err(StoreError::Unavailable {
                            what: "a test says so".into(),
                            outcome_unknown: false,
                        });
                    }
                }
                if stringify!($name) == "write_leaves" {
                    sleep(Duration::from_millis(self.claims.leaving_ms.load(Ordering::Relaxed))).await;
                }
                self.inner.$name($($arg),*).await
            })*

            async fn pulse(&self) -> Result<Pulse, StoreError> {
                self.inner.pulse().await
            }

            async fn take_lease(&self, id: &ConnectionId, version: Version, lasts: Duration, on: LeaseOn, now: Timestamp) -> Result<LeaseAnswer, StoreError> {
                self.inner.take_lease(id, version, lasts, on, now).await
            }

            async fn renew_lease(&self, lease: &Lease, lasts: Duration) -> Result<bool, StoreError> {
                self.inner.renew_lease(lease, lasts).await
            }

            async fn lease_lasts(&self, lease: &Lease, at_least: Duration) -> Result<bool, StoreError> {
                self.inner.lease_lasts(lease, at_least).await
            }

            async fn hint(&self) {
                self.inner.hint().await;
            }
        }
    };
}

evergrant_store::for_plain_methods! { steps! {
    fn give_up(lease: &Lease, presented: Presented, trouble: Option<RefreshTrouble>, event: Option<Event>, now: Timestamp) -> ();
} }
