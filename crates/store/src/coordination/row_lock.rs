//! The mode `row_lock`: whoever wants a turn locks the connection's row in a table of its own, `turns`, and keeps it locked in a
//! session of its own until the redemption has ended. PostgreSQL lets the others wait in the order in which they came, and
//! frees the row at once when its holder's session ends, as it does when its process dies.
//!
//! The store never sees this lock: intent and answer are committed in the store's own sessions.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use deadpool_postgres::{Client, Object, Pool, PoolError, Timeouts};
use evergrant_domain::ConnectionId;
use evergrant_domain::redemption::{LEASE, LEASE_MAX};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_postgres::error::SqlState;

use super::{Coordination, Guard, Lately, Turn};
use crate::postgres::{OpenError, describe, sessions};

/// How many turns this process holds or waits for at a time, each in a session. Whoever finds none free waits for one.
const SESSIONS: usize = 16;
/// How long a row stays locked whose holder does nothing any more: one that is stopped holds up the others no longer. Longer
/// than any lease may be renewed, so that nobody is passed over who redeems still.
const HELD_AT_MOST: Duration = Duration::from_secs(LEASE_MAX.as_secs() + LEASE.as_secs());
/// How much later than it should the server may answer, before it is taken for gone.
const GRACE: Duration = Duration::from_millis(500);
/// How long to wait for the server to take a lock back. Then the session is closed, which does it as well.
const GIVING_BACK: Duration = Duration::from_secs(2);
/// How long to wait before asking a server again that refused.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// Turns by row locks in the store's PostgreSQL database.
pub struct ByRowLock {
    pool: Pool,
    held_at_most: Duration,
    /// Where locks are held and given back, wherever their guards are dropped.
    runtime: Handle,
    told: Mutex<Lately>,
}

impl ByRowLock {
    /// For the database that a `postgres://` URL names. Its schema is there: the store has been opened. Asks the server nothing
    /// yet; needs a Tokio runtime.
    pub fn open(url: &str) -> Result<Self, OpenError> {
        Ok(Self {
            pool: sessions(url, SESSIONS)?,
            held_at_most: HELD_AT_MOST,
            runtime: Handle::current(),
            told: Mutex::default(),
        })
    }

    /// The same where a holder that does nothing any more is passed over after this time.
    #[must_use]
    pub fn held_at_most(mut self, held_at_most: Duration) -> Self {
        self.held_at_most = held_at_most;
        self
    }

    /// Waits for the row; `None` where it was not to be had in time.
    async fn lock(&self, id: &ConnectionId, ends: Instant) -> Result<Option<Session>, Trouble> {
        let left = || ends.saturating_duration_since(Instant::now());
        let timeouts = Timeouts {
            wait: Some(left()),
            create: Some(left()),
            recycle: Some(left()),
        };
        let session = Session(Some(self.pool.timeout_get(&timeouts).await?));
        loop {
            let begin = format!(
                "BEGIN; SET LOCAL lock_timeout = {wait}; SET LOCAL statement_timeout = {statement};
                 SET LOCAL idle_in_transaction_session_timeout = {held}",
                // Zero would be no limit at all.
                wait = left().as_millis().max(1),
                statement = (left() + GRACE).as_millis(),
                held = self.held_at_most.as_millis(),
            );
            session.client().batch_execute(&begin).await?;
            let lock = session
                .client()
                .prepare_cached("SELECT FROM turns WHERE connection = $1 FOR UPDATE");
            let locked = session.client().query_opt(&lock.await?, &[&id.as_str()]).await;
            match locked {
                Ok(Some(_)) => return Ok(Some(session)),
                // Nobody has had a turn at this connection yet. Its row is committed before it is locked: the others wait for the
                // lock, in order, and not for this transaction.
                Ok(None) => {
                    let add = "INSERT INTO turns (connection) VALUES ($1) ON CONFLICT DO NOTHING";
                    session.client().batch_execute("ROLLBACK").await?;
                    let add = session.client().prepare_cached(add).await?;
                    session.client().execute(&add, &[&id.as_str()]).await?;
                }
                Err(error)
                    if matches!(
                        error.code(),
                        Some(&SqlState::LOCK_NOT_AVAILABLE | &SqlState::QUERY_CANCELED)
                    ) =>
                {
                    session.give_back().await;
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Holds the row until its guard is dropped.
    fn hold(&self, session: Session) -> Guard {
        let (guard, dropped) = oneshot::channel::<()>();
        self.runtime.spawn(async move {
            let _ = dropped.await;
            session.give_back().await;
        });
        Guard::new(move || drop(guard))
    }
}

#[async_trait]
impl Coordination for ByRowLock {
    async fn turn(&self, id: &ConnectionId, patience: Duration) -> Turn {
        let ends = Instant::now() + patience;
        while Instant::now() < ends {
            match timeout_at(ends + GRACE, self.lock(id, ends)).await {
                Ok(Ok(Some(session))) => return Turn::Mine(self.hold(session)),
                Ok(Ok(None) | Err(Trouble::NoneFree)) | Err(_) => return Turn::NotYet,
                Ok(Err(Trouble::Server(what))) => {
                    if self.told.lock().is_worth_telling() {
                        tracing::warn!(
                            event = "row_lock_unavailable",
                            "turns cannot be waited for in PostgreSQL: {what}"
                        );
                    }
                    // The other sessions have met the same fate: a restart, a failover.
                    self.pool.retain(|_, _| false);
                    sleep_until(ends.min(Instant::now() + ASK_AGAIN)).await;
                }
            }
        }
        Turn::NotYet
    }
}

impl fmt::Debug for ByRowLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ByRowLock(..)")
    }
}

/// Why there is no lock, other than that somebody else has it.
enum Trouble {
    /// This process holds and waits for as many as it may.
    NoneFree,
    /// What the server said, or that it said nothing.
    Server(String),
}

impl From<tokio_postgres::Error> for Trouble {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Server(describe(&error))
    }
}

impl From<PoolError> for Trouble {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Timeout(deadpool_postgres::TimeoutType::Wait) => Self::NoneFree,
            PoolError::Backend(error) => error.into(),
            other => Self::Server(other.to_string()),
        }
    }
}

/// A session in which a row is locked, or waited for. Dropped in the middle of that it is closed, and the server rolls back.
struct Session(Option<Client>);

impl Session {
    fn client(&self) -> &Client {
        self.0.as_ref().expect("it is taken away on giving back alone")
    }

    /// Frees the row and keeps the session for the next turn, if that can be done soon.
    async fn give_back(mut self) {
        let rolled_back = timeout(GIVING_BACK, self.client().batch_execute("ROLLBACK")).await;
        if matches!(rolled_back, Ok(Ok(()))) {
            drop(self.0.take());
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            drop(Object::take(client));
        }
    }
}
