//! One session with the database: statements, transactions, and what their failures mean.

use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool_postgres::{Client, Object, Pool, PoolError, TimeoutType};
use evergrant_domain::event::Event;
use evergrant_domain::{Connection, ConnectionId, Timestamp};
use tokio::time::timeout;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;

use crate::contract::{Held, StoreError};
use crate::record::{
    Before, Columns, SELECT_CONNECTION, Stored, context, read_connection, read_held, strange,
};
use crate::vault::Vault;

/// How long an answer may take. The server ends a statement sooner than that: this is for one that is not there any more.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(8);
/// How often a transaction is tried that another one got in the way of.
const TRIES: u32 = 4;
/// How long the first repeat waits; each later one waits twice as long.
const REPEAT_AFTER: Duration = Duration::from_millis(10);

/// What came of a statement, or of a whole transaction.
pub(super) type Tried<T> = Result<T, Failure>;

/// Why a transaction did not do what it was asked. Nothing was changed, except where the error says otherwise.
#[derive(Debug)]
pub(super) enum Failure {
    /// Another transaction got in its way, or the session was stale: the same may work now.
    Again(StoreError),
    /// The session is of no use any more, and its siblings may be as well; with new ones the same may work.
    Anew(StoreError),
    /// Nobody answers, in a session that looked alive: its siblings are of no use either. Who waited so long for nothing is
    /// told at once.
    Silent(StoreError),
    /// It will not work by being repeated at once.
    Final(StoreError),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Final(error)
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        let unavailable = StoreError::Unavailable {
            what: describe(&error),
            outcome_unknown: false,
        };
        let Some(code) = error.code() else {
            return if is_about_the_connection(&error) {
                Self::Anew(unavailable)
            } else {
                // What is left names parameters, columns and types, never values.
                Self::Final(StoreError::Corrupt {
                    what: error.to_string(),
                })
            };
        };
        match (code, &code.code()[..2]) {
            // An index or a reference speaks where two came at once; the next try sees what the one that came first has done.
            (&SqlState::UNIQUE_VIOLATION | &SqlState::FOREIGN_KEY_VIOLATION, _) => {
                Self::Again(StoreError::Corrupt {
                    what: describe(&error),
                })
            }
            (&SqlState::LOCK_NOT_AVAILABLE, _) | (_, "40") => Self::Again(unavailable),
            // A newer Evergrant has changed a table that a statement was prepared for, or this is a standby now.
            (&SqlState::FEATURE_NOT_SUPPORTED | &SqlState::READ_ONLY_SQL_TRANSACTION, _) | (_, "08") => {
                Self::Anew(unavailable)
            }
            (_, "57") if code != &SqlState::QUERY_CANCELED => Self::Anew(unavailable),
            (&SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT, _) => Self::Anew(unavailable),
            (_, "53" | "54" | "55" | "57" | "58") => Self::Final(unavailable),
            _ => Self::Final(StoreError::Corrupt {
                what: describe(&error),
            }),
        }
    }
}

impl From<PoolError> for Failure {
    fn from(error: PoolError) -> Self {
        let what = match error {
            PoolError::Timeout(TimeoutType::Wait) => "every connection to PostgreSQL is in use".to_owned(),
            PoolError::Timeout(_) => "PostgreSQL did not answer in time".to_owned(),
            PoolError::Backend(error) => describe(&error),
            PoolError::Closed | PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_) => {
                "the store is closed".to_owned()
            }
        };
        Self::Final(StoreError::Unavailable {
            what,
            outcome_unknown: false,
        })
    }
}

fn is_about_the_connection(error: &tokio_postgres::Error) -> bool {
    error.is_closed()
        || error
            .source()
            .is_some_and(<dyn std::error::Error>::is::<io::Error>)
}

/// What went wrong, without values: the server's own messages may quote them, so only its codes and names are told.
pub(crate) fn describe(error: &tokio_postgres::Error) -> String {
    let Some(answer) = error.as_db_error() else {
        return match error.source() {
            Some(source) => format!("PostgreSQL cannot be reached: {source}"),
            None if error.is_closed() => "the connection to PostgreSQL was lost".to_owned(),
            None => format!("PostgreSQL cannot be reached: {error}"),
        };
    };
    let code = answer.code();
    let meaning = match *code {
        SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN => "is shutting down",
        SqlState::CANNOT_CONNECT_NOW => "is starting or stopping",
        SqlState::TOO_MANY_CONNECTIONS => "has no connection left",
        SqlState::DISK_FULL => "has no space left on its disk",
        SqlState::QUERY_CANCELED => "took too long",
        SqlState::LOCK_NOT_AVAILABLE => "kept a row locked for too long",
        SqlState::T_R_DEADLOCK_DETECTED | SqlState::T_R_SERIALIZATION_FAILURE => {
            "had other transactions in the way"
        }
        SqlState::READ_ONLY_SQL_TRANSACTION => "takes no writes: it is a standby, or set to read only",
        SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => "refused the login",
        _ => "refused a statement",
    };
    let place = [answer.table(), answer.column(), answer.constraint()];
    let place: Vec<&str> = place.into_iter().flatten().collect();
    let place = if place.is_empty() {
        String::new()
    } else {
        format!(" at {}", place.join(" "))
    };
    format!("PostgreSQL {meaning} (SQLSTATE {}{place})", code.code())
}

impl Columns for Row {
    fn maybe_text(&self, column: &'static str) -> Stored<Option<String>> {
        self.try_get(column).map_err(|_| strange(column))
    }

    fn maybe_number(&self, column: &'static str) -> Stored<Option<i64>> {
        self.try_get(column).map_err(|_| strange(column))
    }

    fn maybe_bytes(&self, column: &'static str) -> Stored<Option<Vec<u8>>> {
        self.try_get(column).map_err(|_| strange(column))
    }

    fn flag(&self, column: &'static str) -> Stored<bool> {
        self.try_get(column).map_err(|_| strange(column))
    }
}

/// What a statement that changes a connection writes into its history. It names what it changed `changed`, with all columns, says
/// which version stood before, and begins its values with id, now, and the event's three ([`Told`]). No event, no line.
macro_rules! told {
    ($before:literal) => {
        concat!(
            "told AS (
             INSERT INTO events (at, connection, app, kind, detail, version_before, version, fingerprint,
                                 request_id, provider_correlation_id, process, context)
             SELECT $2, id, app, $3, $4, ",
            $before,
            ", version, refresh_token_fingerprint,
                    $5::text::jsonb ->> 'request_id', $5::text::jsonb ->> 'provider_correlation_id',
                    $5::text::jsonb ->> 'process', $5::text::jsonb ->> 'context'
               FROM changed WHERE $3::text IS NOT NULL)"
        )
    };
}
pub(super) use told;

/// What a statement that changes a connection goes on with: its history and the change feed, the one with the other. What it
/// must say is what [`told`] asks for.
macro_rules! recorded {
    ($before:literal) => {
        concat!(
            told!($before),
            ",
         fed AS (
             INSERT INTO changes (kind, connection, version) SELECT 'connection', id, version FROM changed)"
        )
    };
}
pub(super) use recorded;

/// An event as values.
pub(super) struct Told {
    pub(super) kind: &'static str,
    pub(super) detail: String,
    /// An object of everything else, in one value: so each statement has the same three, however much an event tells.
    pub(super) rest: String,
}

impl Told {
    pub(super) fn new(event: &Event, process: &str) -> Stored<Self> {
        let circumstances = &event.circumstances;
        let rest = serde_json::json!({
            "request_id": circumstances.request_id,
            "provider_correlation_id": circumstances.provider_correlation_id.as_deref().map(storable),
            "process": process,
            "context": storable(&context(event)?),
        });
        Ok(Self {
            kind: event.kind.as_str(),
            detail: storable(&event.detail),
            rest: rest.to_string(),
        })
    }
}

/// The values of a statement.
pub(super) type Values<'a> = &'a [&'a (dyn ToSql + Sync)];

/// A session taken from the pool. It goes back where it can be used again; one that was left in the middle of a statement
/// or a transaction, by whoever stopped waiting, is closed, and the server rolls back.
pub(super) struct Db {
    client: Option<Client>,
    unfinished: AtomicBool,
    in_transaction: AtomicBool,
    fed: AtomicBool,
    pub(super) vault: Arc<Vault>,
    /// The name under which this instance holds leases.
    pub(super) me: Arc<str>,
    /// The name under which it writes the history.
    pub(super) process: Arc<str>,
}

impl Drop for Db {
    fn drop(&mut self) {
        if (*self.unfinished.get_mut() || *self.in_transaction.get_mut())
            && let Some(client) = self.client.take()
        {
            drop(Object::take(client));
        }
    }
}

impl Db {
    pub(super) async fn take(
        pool: &Pool,
        vault: &Arc<Vault>,
        me: &Arc<str>,
        process: &Arc<str>,
    ) -> Tried<Self> {
        Ok(Self {
            client: Some(pool.get().await?),
            unfinished: AtomicBool::new(false),
            in_transaction: AtomicBool::new(false),
            fed: AtomicBool::new(false),
            vault: Arc::clone(vault),
            me: Arc::clone(me),
            process: Arc::clone(process),
        })
    }

    fn client(&self) -> &Client {
        self.client.as_ref().expect("it is taken away on dropping alone")
    }

    /// Waits for an answer; `None` where none comes, and the session is closed in the end.
    async fn answer<T>(&self, asked: impl Future<Output = T>) -> Option<T> {
        self.unfinished.store(true, Ordering::Relaxed);
        let answer = timeout(ANSWER_TIMEOUT, asked).await.ok()?;
        self.unfinished.store(false, Ordering::Relaxed);
        Some(answer)
    }

    async fn answered<T>(&self, asked: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Tried<T> {
        let answer = self.answer(asked).await;
        Ok(answer.ok_or_else(|| Failure::Silent(silence(false)))??)
    }

    pub(super) async fn begin(&self) -> Tried<()> {
        self.in_transaction.store(true, Ordering::Relaxed);
        self.answered(self.client().batch_execute("BEGIN")).await
    }

    /// Ends what [`Db::begin`] began. Nobody knows what came of a commit whose answer is lost.
    pub(super) async fn commit(&self) -> Tried<()> {
        let committed = self.answer(self.client().batch_execute("COMMIT")).await;
        let committed = committed.ok_or_else(|| Failure::Silent(silence(true)))?;
        committed.map_err(not_committed)?;
        self.in_transaction.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// [`Db::begin`] and the first statement, in one message.
    pub(super) async fn begin_with(&self, sql: &str, values: Values<'_>) -> Tried<Option<Row>> {
        self.in_transaction.store(true, Ordering::Relaxed);
        let asked = async {
            let client = self.client();
            let statement = client.prepare_cached(sql).await?;
            // Sent in this order: each is on its way once it is polled.
            let (begun, rows) = tokio::join!(client.batch_execute("BEGIN"), client.query(&statement, values));
            begun.and(rows)
        };
        Ok(self.answered(asked).await?.into_iter().next())
    }

    /// The last statement and [`Db::commit`], in one message. Where the statement fails, the commit undoes what was before it.
    pub(super) async fn commit_with(&self, sql: &str, values: Values<'_>) -> Tried<()> {
        let statement = self.answered(self.client().prepare_cached(sql)).await?;
        let asked = async {
            let client = self.client();
            tokio::join!(client.execute(&statement, values), client.batch_execute("COMMIT"))
        };
        let (done, committed) = self
            .answer(asked)
            .await
            .ok_or_else(|| Failure::Silent(silence(true)))?;
        match done {
            Err(error) if error.code().is_some() => return Err(error.into()),
            done => done.map(drop).and(committed).map_err(not_committed)?,
        }
        self.in_transaction.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Undoes a transaction that failed. Where that fails, too, the session is closed.
    pub(super) async fn rollback(&self) {
        if let Some(Ok(())) = self.answer(self.client().batch_execute("ROLLBACK")).await {
            self.in_transaction.store(false, Ordering::Relaxed);
        }
    }

    pub(super) async fn rows(&self, sql: &str, values: Values<'_>) -> Tried<Vec<Row>> {
        let asked = async {
            let statement = self.client().prepare_cached(sql).await?;
            self.client().query(&statement, values).await
        };
        self.answered(asked).await
    }

    /// The same for a statement that is put together from what is asked: prepared once, and not kept.
    pub(super) async fn rows_once(&self, sql: &str, values: Values<'_>) -> Tried<Vec<Row>> {
        self.answered(self.client().query(sql, values)).await
    }

    pub(super) async fn row(&self, sql: &str, values: Values<'_>) -> Tried<Option<Row>> {
        Ok(self.rows(sql, values).await?.into_iter().next())
    }

    /// How many rows a statement changed.
    pub(super) async fn execute(&self, sql: &str, values: Values<'_>) -> Tried<u64> {
        let asked = async {
            let statement = self.client().prepare_cached(sql).await?;
            self.client().execute(&statement, values).await
        };
        self.answered(asked).await
    }

    /// A statement that may write into the change feed; says what it changed.
    pub(super) async fn feed(&self, sql: &str, values: Values<'_>) -> Tried<Vec<Row>> {
        let changed = self.rows(sql, values).await?;
        self.fed.fetch_or(!changed.is_empty(), Ordering::Relaxed);
        Ok(changed)
    }

    /// Whether there is something new in the change feed, once what was done here is committed.
    pub(super) fn has_fed(&self) -> bool {
        self.fed.load(Ordering::Relaxed)
    }

    /// Keeps every other transaction from changing this connection until this one ends; `false` where there is none. What is
    /// read of it afterwards stands.
    pub(super) async fn lock(&self, id: &ConnectionId) -> Tried<bool> {
        let locked = self
            .row(
                "SELECT 1 FROM connections WHERE id = $1 FOR NO KEY UPDATE",
                &[&id.as_str()],
            )
            .await?;
        Ok(locked.is_some())
    }

    /// The record with its token set.
    pub(super) async fn held(&self, id: &ConnectionId) -> Tried<Option<Held>> {
        let row = self.connection_row(id).await?;
        Ok(row.map(|row| read_held(&self.vault, &row)).transpose()?)
    }

    /// The record that was just written.
    pub(super) async fn written(&self, id: &ConnectionId) -> Tried<Box<Held>> {
        let held = self.held(id).await?.map(Box::new);
        held.ok_or_else(|| {
            let what = format!("connection {id} is gone in the middle of its transaction");
            StoreError::Corrupt { what }.into()
        })
    }

    /// The record alone.
    pub(super) async fn connection(&self, id: &ConnectionId) -> Tried<Option<Connection>> {
        let row = self.connection_row(id).await?;
        Ok(row.map(|row| read_connection(&row)).transpose()?)
    }

    pub(super) async fn connection_row(&self, id: &ConnectionId) -> Tried<Option<Row>> {
        self.row(&format!("{SELECT_CONNECTION} WHERE c.id = $1"), &[&id.as_str()])
            .await
    }

    /// Writes the history and the change feed for a change of a connection's state: the one goes with the other.
    pub(super) async fn record_change(
        &self,
        id: &ConnectionId,
        before: Before,
        event: &Event,
        now: Timestamp,
    ) -> Tried<()> {
        let told = Told::new(event, &self.process)?;
        let (named, less) = before.columns();
        self.feed(
            concat!(
                "WITH changed AS (SELECT * FROM connections WHERE id = $1), ",
                recorded!("coalesce($6::bigint, version - $7::bigint)"),
                " SELECT 1 FROM changed"
            ),
            &[
                &id.as_str(),
                &now.millis(),
                &told.kind,
                &told.detail,
                &told.rest,
                &named,
                &less,
            ],
        )
        .await?;
        Ok(())
    }

    /// Appends to a connection's history what goes with no change of its version; nothing where there is no such connection.
    pub(super) async fn record_event(&self, id: &ConnectionId, event: &Event, now: Timestamp) -> Tried<()> {
        let told = Told::new(event, &self.process)?;
        self.execute(
            concat!(
                "WITH changed AS (SELECT * FROM connections WHERE id = $1), ",
                told!("version"),
                " SELECT 1"
            ),
            &[&id.as_str(), &now.millis(), &told.kind, &told.detail, &told.rest],
        )
        .await?;
        Ok(())
    }

    /// Tells every process that a connection changed.
    pub(super) async fn feed_connection(&self, id: &ConnectionId) -> Tried<()> {
        self.feed(
            "INSERT INTO changes (kind, connection, version)
             SELECT 'connection', id, version FROM connections WHERE id = $1
             RETURNING 1",
            &[&id.as_str()],
        )
        .await?;
        Ok(())
    }
}

fn not_committed(error: tokio_postgres::Error) -> Failure {
    match error.code() {
        // The server says that it rolled back.
        Some(code) if matches!(&code.code()[..2], "23" | "40") => error.into(),
        _ => Failure::Final(StoreError::Unavailable {
            what: describe(&error),
            outcome_unknown: true,
        }),
    }
}

fn silence(outcome_unknown: bool) -> StoreError {
    StoreError::Unavailable {
        what: "PostgreSQL did not answer in time".into(),
        outcome_unknown,
    }
}

/// A provider's text as PostgreSQL takes it. It refuses NUL, and an answer that holds one must be stored all the same.
pub(super) fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// What a session is taken for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To read: each statement stands alone.
    Read,
    /// To write with one statement, which is its own transaction and may be asked for again where its answer was lost: what was
    /// done already is not done twice.
    Statement,
    /// To write: in a transaction, which is repeated as a whole where another one got in its way.
    Transaction,
    /// The same, in a transaction that the work itself begins and commits ([`Db::begin_with`], [`Db::commit_with`]).
    OwnTransaction,
}

/// How often a transaction may be tried still.
pub(super) struct Tries {
    purpose: Purpose,
    made: u32,
    /// Whether an answer was lost that may have been a commit's.
    lost_one: bool,
    /// Where these transactions run.
    pool: Pool,
}

impl Tries {
    pub(super) fn new(purpose: Purpose, pool: &Pool) -> Self {
        Self {
            purpose,
            made: 0,
            lost_one: false,
            pool: pool.clone(),
        }
    }

    /// Whether another try is worth it: returns once it is time for it, or with what the caller is told.
    pub(super) async fn another(&mut self, failure: Failure) -> Result<(), StoreError> {
        self.made += 1;
        // What happened to one session happened to all of them: a restart, a failover, a changed table.
        let empty_the_pool = || self.pool.retain(|_, _| false);
        // A statement that stands alone commits with its answer, or without.
        let lost = self.purpose == Purpose::Statement;
        let (error, again) = match failure {
            Failure::Final(error) => (error, false),
            Failure::Silent(error) => {
                empty_the_pool();
                self.lost_one |= lost;
                (error, false)
            }
            Failure::Again(error) => (error, true),
            Failure::Anew(error) => {
                empty_the_pool();
                self.lost_one |= lost;
                (error, true)
            }
        };
        if !again || self.made >= TRIES {
            return Err(match error {
                StoreError::Unavailable {
                    what,
                    outcome_unknown,
                } => StoreError::Unavailable {
                    what,
                    outcome_unknown: outcome_unknown || self.lost_one,
                },
                other => other,
            });
        }
        tokio::time::sleep(REPEAT_AFTER * 2_u32.pow(self.made)).await;
        Ok(())
    }
}
