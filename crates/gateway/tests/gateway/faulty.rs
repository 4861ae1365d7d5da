//! A store whose steps fail when a test says so, and whose places in the write ledger are taken over when it says so.

use std::path::PathBuf;
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

/// What fails, and what was asked.
#[derive(Default)]
pub(crate) struct Faults {
    away: Mutex<Vec<(&'static str, Moment)>>,
    asked: Mutex<Vec<&'static str>>,
    /// A step that waits, and for what.
    held: Mutex<Option<(&'static str, Arc<Semaphore>)>>,
    /// The database whose places are taken over.
    stolen: Mutex<Option<PathBuf>>,
}

/// When a step fails: before it happens, or with it done and nobody told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    Before,
    After,
}

impl Faults {
    /// From now on this step fails.
    pub(crate) fn fail(&self, step: &'static str, moment: Moment) {
        self.away.lock().push((step, moment));
    }

    /// From now on each place in this database is somebody else's by the time that its write leaves.
    pub(crate) fn steal(&self, database: PathBuf) {
        *self.stolen.lock() = Some(database);
    }

    /// From now on this step waits for a permit each time.
    pub(crate) fn hold(&self, step: &'static str) -> Arc<Semaphore> {
        let permits = Arc::new(Semaphore::new(0));
        *self.held.lock() = Some((step, permits.clone()));
        permits
    }

    async fn pass(&self, step: &str) {
        let held = self.held.lock().clone().filter(|(held, _)| *held == step);
        if let Some((_, permits)) = held {
            permits.acquire().await.unwrap().forget();
        }
    }

    /// Everything works again.
    pub(crate) fn heal(&self) {
        self.away.lock().clear();
    }

    /// How often a step was asked for.
    pub(crate) fn asked(&self, step: &str) -> usize {
        self.asked.lock().iter().filter(|asked| **asked == step).count()
    }

    /// How often anything was asked for.
    pub(crate) fn asked_in_all(&self) -> usize {
        self.asked.lock().len()
    }

    fn meet(&self, step: &'static str, moment: Moment) -> Result<(), StoreError> {
        if moment == Moment::Before {
            self.asked.lock().push(step);
            if step == "write_leaves"
                && let Some(database) = &*self.stolen.lock()
            {
                let sql = rusqlite::Connection::open(database).unwrap();
                assert_eq!(sql.execute("UPDATE writes SET owner = 'another'", []).unwrap(), 1);
            }
        }
        if self.away.lock().contains(&(step, moment)) {
            return Err(StoreError::Unavailable {
                what: "a test says so".into(),
                outcome_unknown: moment == Moment::After,
            });
        }
        Ok(())
    }
}

pub(crate) struct Faulty {
    pub(crate) inner: Arc<dyn Store>,
    pub(crate) faults: Arc<Faults>,
}

macro_rules! steps {
    ($(fn $name:ident($($arg:ident: $type:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl Store for Faulty {
            $(async fn $name(&self, $($arg: $type),*) -> Result<$answer, StoreError> {
                self.faults.meet(stringify!($name), Moment::Before)?;
                self.faults.pass(stringify!($name)).await;
                let answer = self.inner.$name($($arg),*).await;
                self.faults.meet(stringify!($name), Moment::After)?;
                answer
            })*

            async fn pulse(&self) -> Result<Pulse, StoreError> {
                self.inner.pulse().await
            }

            async fn hint(&self) {
                self.inner.hint().await;
            }
        }
    };
}

evergrant_store::for_plain_methods! { steps! {
    fn take_lease(id: &ConnectionId, version: Version, lasts: Duration, on: LeaseOn, now: Timestamp) -> LeaseAnswer;
    fn renew_lease(lease: &Lease, lasts: Duration) -> bool;
    fn lease_lasts(lease: &Lease, at_least: Duration) -> bool;
    fn give_up(lease: &Lease, presented: Presented, trouble: Option<RefreshTrouble>, event: Option<Event>, now: Timestamp) -> ();
} }
