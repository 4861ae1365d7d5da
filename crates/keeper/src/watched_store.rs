//! The way to the store, on which is counted what it did not do.

use std::sync::Arc;
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
use evergrant_metrics::Metrics;
#[allow(
    clippy::wildcard_imports,
    reason = "everything that the contract's methods name, and it is handed on"
)]
use evergrant_store::contract::*;

/// A store whose errors are counted, by what it was asked for.
pub(crate) struct WatchedStore {
    store: Arc<dyn Store>,
    metrics: Metrics,
}

macro_rules! watched {
    ($(fn $name:ident($($arg:ident: $type:ty),* $(,)?) -> $answer:ty;)*) => {
        impl WatchedStore {
            pub(crate) fn new(store: Arc<dyn Store>, metrics: Metrics) -> Self {
                metrics.store_ops(&[$(stringify!($name)),*]);
                Self { store, metrics }
            }
        }

        #[async_trait]
        impl Store for WatchedStore {
            $(async fn $name(&self, $($arg: $type),*) -> Result<$answer, StoreError> {
                let answer = self.store.$name($($arg),*).await;
                if answer.is_err() {
                    self.metrics.store_error(stringify!($name));
                }
                answer
            })*

            async fn hint(&self) {
                self.store.hint().await;
            }
        }
    };
}

evergrant_store::for_plain_methods! { watched! {
    fn take_lease(id: &ConnectionId, version: Version, lasts: Duration, on: LeaseOn, now: Timestamp) -> LeaseAnswer;
    fn renew_lease(lease: &Lease, lasts: Duration) -> bool;
    fn lease_lasts(lease: &Lease, at_least: Duration) -> bool;
    fn give_up(lease: &Lease, presented: Presented, trouble: Option<RefreshTrouble>, event: Option<Event>, now: Timestamp) -> ();
    fn pulse() -> Pulse;
} }
