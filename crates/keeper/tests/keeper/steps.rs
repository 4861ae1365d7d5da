//! A store whose every step can be watched, failed, or made the last one of this process.

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
use evergrant_store::contract::*;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::world::MovedClock;

/// When a step is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    Before,
    After,
}

type Watch = dyn Fn(&'static str, Moment) -> Result<(), StoreError> + Send + Sync;

/// Hands everything on to `inner`, and asks `watch` before and after each step.
pub(crate) struct Steps {
    inner: Mutex<Arc<dyn Store>>,
    watch: Box<Watch>,
    /// Steps of this name wait for a permit each.
    gate: Option<(&'static str, Arc<Semaphore>)>,
    /// Its process is stopped right after it was told that its lease is enough, until the lease has ended.
    stopped: bool,
    /// The store's clock, where it has one, is moved like the machines' clocks are.
    moved: Option<Arc<MovedClock>>,
}

impl Steps {
    pub(crate) fn new(inner: Arc<dyn Store>) -> Self {
        Self {
            inner: Mutex::new(inner),
            watch: Box::new(|_, _| Ok(())),
            gate: None,
            stopped: false,
            moved: None,
        }
    }

    pub(crate) fn watched(
        inner: Arc<dyn Store>,
        watch: impl Fn(&'static str, Moment) -> Result<(), StoreError> + Send + Sync + 'static,
    ) -> Arc<dyn Store> {
        Arc::new(Self {
            watch: Box::new(watch),
            ..Self::new(inner)
        })
    }

    /// Whose steps of this name wait for a permit each.
    pub(crate) fn gated(
        inner: Arc<dyn Store>,
        name: &'static str,
        permits: Arc<Semaphore>,
    ) -> Arc<dyn Store> {
        Arc::new(Self {
            gate: Some((name, permits)),
            ..Self::new(inner)
        })
    }

    /// Of a process that is stopped right before its first byte, for longer than its lease.
    pub(crate) fn stopped(inner: Arc<dyn Store>) -> Arc<dyn Store> {
        Arc::new(Self {
            stopped: true,
            ..Self::new(inner)
        })
    }

    /// Whose clock is moved like that of the machines.
    pub(crate) fn moved(inner: Arc<dyn Store>, clock: Arc<MovedClock>) -> Arc<dyn Store> {
        Arc::new(Self {
            moved: Some(clock),
            ..Self::new(inner)
        })
    }

    /// As a failover does, or a backup that is put back: from now on `inner` answers.
    pub(crate) fn swap(&self, inner: Arc<dyn Store>) {
        *self.inner.lock() = inner;
    }

    /// Fails the first `times` steps of this name before they happen.
    pub(crate) fn failing(
        inner: Arc<dyn Store>,
        name: &'static str,
        times: usize,
        outcome_unknown: Moment,
    ) -> Arc<dyn Store> {
        let left = Mutex::new(times);
        Self::watched(inner, move |step, moment| {
            let mut left = left.lock();
            if step == name && moment == outcome_unknown && *left > 0 {
                *left -= 1;
                return Err(gone(moment == Moment::After));
            }
            Ok(())
        })
    }
}

pub(crate) fn gone(outcome_unknown: bool) -> StoreError {
    StoreError::Unavailable {
        what: "a test says so".into(),
        outcome_unknown,
    }
}

macro_rules! steps {
    ($(fn $name:ident($($arg:ident: $type:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl Store for Steps {
            $(async fn $name(&self, $($arg: $type),*) -> Result<$answer, StoreError> {
                (self.watch)(stringify!($name), Moment::Before)?;
                if let Some((name, permits)) = &self.gate
                    && *name == stringify!($name)
                {
                    permits.acquire().await.unwrap().forget();
                }
                let inner = self.inner.lock().clone();
                let answer = inner.$name($($arg),*).await;
                (self.watch)(stringify!($name), Moment::After)?;
                answer
            })*

            async fn pulse(&self) -> Result<Pulse, StoreError> {
                (self.watch)("pulse", Moment::Before)?;
                let inner = self.inner.lock().clone();
                let mut pulse = inner.pulse().await?;
                if let Some(clock) = &self.moved {
                    pulse.now = pulse.now.map(|now| now.after(clock.ahead()));
                }
                Ok(pulse)
            }

            async fn take_lease(&self, id: &ConnectionId, version: Version, lasts: Duration, on: LeaseOn, now: Timestamp) -> Result<LeaseAnswer, StoreError> {
                (self.watch)("take_lease", Moment::Before)?;
                let lasts = if self.stopped { Duration::from_millis(1) } else { lasts };
                let inner = self.inner.lock().clone();
                let answer = inner.take_lease(id, version, lasts, on, now).await;
                (self.watch)("take_lease", Moment::After)?;
                answer
            }

            async fn renew_lease(&self, lease: &Lease, lasts: Duration) -> Result<bool, StoreError> {
                (self.watch)("renew_lease", Moment::Before)?;
                let inner = self.inner.lock().clone();
                let renewed = !self.stopped && inner.renew_lease(lease, lasts).await?;
                (self.watch)("renew_lease", Moment::After)?;
                Ok(renewed)
            }

            async fn lease_lasts(&self, lease: &Lease, at_least: Duration) -> Result<bool, StoreError> {
                (self.watch)("lease_lasts", Moment::Before)?;
                let inner = self.inner.lock().clone();
                let lasts = self.stopped || inner.lease_lasts(lease, at_least).await?;
                (self.watch)("lease_lasts", Moment::After)?;
                Ok(lasts)
            }

            async fn hint(&self) {
                let inner = self.inner.lock().clone();
                inner.hint().await;
            }
        }
    };
}

evergrant_store::for_plain_methods! { steps! {
    fn give_up(lease: &Lease, presented: Presented, trouble: Option<RefreshTrouble>, event: Option<Event>, now: Timestamp) -> ();
} }
