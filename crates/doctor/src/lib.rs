//! The doctor: gathers what is known of a connection, from the store, its history, what its calls did and live probes, and asks
//! [`evergrant_domain::diagnosis`] what is wrong with it.
//!
//! It changes nothing and redeems nothing. Whatever it asks has a deadline of its own, and a few seconds bound the whole: a store
//! or a provider that does not answer is what it finds, not what it hangs on. It knows nothing of HTTP, keys or pages.
//!
//! Start reading at [`Doctor::examine`]; `round` holds what is asked once for many connections, `patient` what is asked of each.

mod patient;
mod read;
mod round;

use std::time::Duration;

use evergrant_domain::Connection;
use evergrant_domain::access::Limits;
use evergrant_domain::diagnosis::{self, Diagnosis};
use evergrant_keeper::Keeper;
use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use crate::round::Round;

/// How long one look at the store may take before it counts as one that does not answer.
pub const STORE_ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// How long examining takes at most, however many are examined. What was not asked by then is skipped, and says so.
const EXAMINED_WITHIN: Duration = Duration::from_secs(6);

/// How many are examined at a time.
const AT_A_TIME: usize = 16;

/// Looks for what is wrong.
#[derive(Clone)]
pub struct Doctor {
    keeper: Keeper,
}

/// A connection that was examined.
#[derive(Debug, Clone)]
pub struct Examined {
    /// Its record as it was when it was looked at; as it was asked about, where the store did not answer.
    pub connection: Connection,
    /// What is wrong with it.
    pub diagnosis: Diagnosis,
}

impl Doctor {
    /// One who works with this keeper.
    pub fn new(keeper: Keeper) -> Self {
        Self { keeper }
    }

    /// Examines connections, in the order in which they are given. Other connections are named only within `limits`.
    pub async fn examine(&self, connections: Vec<Connection>, limits: &Limits) -> Vec<Examined> {
        let until = Instant::now() + EXAMINED_WITHIN;
        let round = Round::begin(&self.keeper, &connections, until).await;
        stream::iter(connections)
            .map(|connection| round.examine(connection, limits))
            .buffered(AT_A_TIME)
            .collect()
            .await
    }

    /// What is said where the store did not even give the record: `why` is what it did instead.
    pub fn without_store(why: &str) -> Diagnosis {
        diagnosis::without_store(why)
    }

    /// What this process has seen of connections and not written yet is written now, so that it counts.
    pub async fn catch_up(&self) {
        let (tell, told) = oneshot::channel();
        let keeper = self.keeper.clone();
        // Not given up half way: what had been counted would be lost.
        self.keeper.spawn(async move {
            keeper.flush_soon().await;
            // Nobody may wait any more.
            let _ = tell.send(());
        });
        // Whether it could be written shows in what is read next.
        let _ = timeout(STORE_ANSWERS_WITHIN, told).await;
    }
}
