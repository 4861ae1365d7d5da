//! The store in a PostgreSQL database, for any number of processes on any number of machines.
//!
//! What each redemption does is one statement, which is its own transaction: an `UPDATE` at READ COMMITTED that had to wait for
//! another one judges the row as that left it. One whose answer is lost is asked for again, so each finds what it did before.
//! Every other write is a transaction that locks its connection's row first: what it reads afterwards stands until it commits,
//! so "one statement" in PROTOCOL.md reads "one transaction under the row's lock" there. Transactions on different connections
//! do not wait for each other. Guarded writes lock nothing: each of their statements names the owner and the state that it goes on
//! from. What nobody can lock, a row that is not there yet, the unique indexes judge; whoever came second
//! begins anew and sees the first.
//!
//! Start reading at `redeeming` for leases and answers, at `connections` for the rest of a connection's life, at `write_ledger` and
//! `call_budget` for calls, at `db` for what a failure means and when a transaction is repeated, at `open` for what is refused.

mod access;
mod address;
mod apps;
mod call_budget;
mod conditions;
mod connections;
mod db;
mod hints;
mod history;
mod open;
mod redeeming;
mod tls;
mod upkeep;
mod webhooks;
mod write_ledger;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use deadpool_postgres::Pool;
use evergrant_domain::access::Limits;
use evergrant_domain::breaker::Breaker;
use evergrant_domain::call_budget::{Claim, Grant, Standing};
use evergrant_domain::connection::{Account, RefreshTrouble};
use evergrant_domain::event::Event;
use evergrant_domain::refresh_policy::Jitter;
use evergrant_domain::{
    AppName, Connection, ConnectionId, Customer, ReconnectReason, RefreshToken, Timestamp, TokenSet, Version,
};
use parking_lot::Mutex;

pub(crate) use self::db::describe;
use self::db::{Db, Purpose, Tries};
use self::hints::Hints;
pub use self::open::OpenError;
pub(crate) use self::open::sessions;
use self::write_ledger::SealedEnd;
use crate::contract::{
    ApiKey, AppState, Authorization, BudgetName, Change, ConnectSession, Connected, ConnectionCount,
    ConnectionFilter, CooldownAnswer, CredentialsRejected, DeadLetters, Delivery, DeliveryFilter,
    DeliverySweep, DueQuery, EventPage, EventQuery, EventTrim, Held, Journal, JournalStep, Landed, Lease,
    LeaseAnswer, LeaseOn, NewConnection, NewDelivery, Presented, Pulse, RecordSays, RefreshCount, Refreshed,
    Replaced, Reserved, Revocation, RevocationState, Revoke, Schema, SessionOutcome, Store, StoreError,
    Tallied, TriedDelivery, TryEnd, Usage, WriteEnd, WriteReservation, WriteTicket,
};
use crate::record::{HighestSeen, SealedAnswer, this_process};
use crate::vault::Vault;

/// The store in a PostgreSQL database.
pub struct PostgresStore {
    pool: Pool,
    vault: Arc<Vault>,
    /// The name under which this instance holds leases, for people who look into the table.
    me: Arc<str>,
    /// The name under which it writes the history.
    process: Arc<str>,
    /// How often it asked for one, so that a lease whose answer was lost is known again.
    askings: AtomicI64,
    hints: Hints,
    feed: Mutex<HighestSeen>,
}

impl PostgresStore {
    /// Opens the database that a `postgres://` URL names, and brings its schema up to date. Which protection the connection
    /// gets is said by `sslmode`; where the URL says nothing, a server elsewhere must prove itself (`verify-full`).
    pub async fn open(url: &str, vault: Arc<Vault>) -> Result<Self, OpenError> {
        let (pool, door) = open::open(url, &vault).await?;
        let me: Arc<str> = uuid::Uuid::now_v7().to_string().into();
        Ok(Self {
            pool,
            vault,
            hints: Hints::new(door, Arc::clone(&me)),
            me,
            process: this_process(),
            askings: AtomicI64::new(0),
            feed: Mutex::default(),
        })
    }

    /// How far the schema of the database that a `postgres://` URL names is. Changes nothing.
    pub async fn schema(url: &str) -> Result<Schema, OpenError> {
        open::schema(url).await
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PostgresStore(..)")
    }
}

/// Does its work in a session, again and again as far as [`Tries`] allows. A macro, because a closure that returns a future
/// cannot yet say that this future is `Send`.
macro_rules! in_session {
    ($store:expr, $purpose:expr, $db:ident => $work:expr) => {{
        let mut tries = Tries::new($purpose, &$store.pool);
        loop {
            let tried = async {
                let session = Db::take(&$store.pool, &$store.vault, &$store.me, &$store.process).await?;
                if $purpose == Purpose::Transaction {
                    session.begin().await?;
                }
                let $db = &session;
                let done = $work.await;
                match (&done, $purpose) {
                    (Ok(_), Purpose::Transaction) => session.commit().await?,
                    (Err(_), Purpose::Transaction | Purpose::OwnTransaction) => session.rollback().await,
                    _ => {}
                }
                if session.has_fed() {
                    $store.hints.tell();
                }
                done
            };
            match tried.await {
                Ok(done) => break Ok(done),
                Err(failure) => tries.another(failure).await?,
            }
        }
    }};
}

#[async_trait]
impl Store for PostgresStore {
    async fn create(&self, new: NewConnection, now: Timestamp) -> Result<Connected, StoreError> {
        in_session!(self, Purpose::Transaction, db => db.create(&new, now))
    }

    async fn reconnect(
        &self,
        id: &ConnectionId,
        account: Option<Account>,
        tokens: TokenSet,
        event: Event,
        now: Timestamp,
    ) -> Result<Connected, StoreError> {
        in_session!(self, Purpose::Transaction, db => db.reconnect(id, account.as_ref(), &tokens, &event, now))
    }

    async fn replace_older(
        &self,
        new: NewConnection,
        says: RecordSays,
        replaced: Event,
        now: Timestamp,
    ) -> Result<Replaced, StoreError> {
        in_session!(self, Purpose::Transaction, db => db.replace_older(&new, says, &replaced, now))
    }

    async fn supersede(
        &self,
        new: NewConnection,
        retired: Event,
        now: Timestamp,
    ) -> Result<Connected, StoreError> {
        in_session!(self, Purpose::Transaction, db => db.supersede(&new, &retired, now))
    }

    async fn held(&self, id: &ConnectionId) -> Result<Option<Held>, StoreError> {
        in_session!(self, Purpose::Read, db => db.held(id))
    }

    async fn connection(&self, id: &ConnectionId) -> Result<Option<Connection>, StoreError> {
        in_session!(self, Purpose::Read, db => db.connection(id))
    }

    async fn find(
        &self,
        app: &AppName,
        customer: &Customer,
        account: &str,
    ) -> Result<Option<Connection>, StoreError> {
        in_session!(self, Purpose::Read, db => db.find(app, customer, account))
    }

    async fn list(&self, filter: ConnectionFilter) -> Result<Vec<Connection>, StoreError> {
        in_session!(self, Purpose::Read, db => db.list(&filter))
    }

    async fn patch(
        &self,
        id: &ConnectionId,
        customer: Option<Customer>,
        labels: Option<Vec<(String, String)>>,
        now: Timestamp,
    ) -> Result<Connected, StoreError> {
        in_session!(self, Purpose::Transaction, db => db.patch(id, customer.as_ref(), labels.as_deref(), now))
    }

    async fn take_lease(
        &self,
        id: &ConnectionId,
        version: Version,
        lasts: Duration,
        on: LeaseOn,
        now: Timestamp,
    ) -> Result<LeaseAnswer, StoreError> {
        let asking = self.askings.fetch_add(1, Ordering::Relaxed);
        in_session!(self, Purpose::Statement, db => db.take_lease(id, version, lasts, on, asking, now))
    }

    async fn renew_lease(&self, lease: &Lease, lasts: Duration) -> Result<bool, StoreError> {
        in_session!(self, Purpose::Statement, db => db.renew_lease(lease, lasts))
    }

    async fn lease_lasts(&self, lease: &Lease, at_least: Duration) -> Result<bool, StoreError> {
        in_session!(self, Purpose::Read, db => db.lease_lasts(lease, at_least))
    }

    async fn land(&self, lease: &Lease, refreshed: Refreshed, now: Timestamp) -> Result<Landed, StoreError> {
        if refreshed.account.is_none() {
            let landed: Result<_, StoreError> =
                in_session!(self, Purpose::Statement, db => db.land_at_once(lease, &refreshed, now));
            if let Some(held) = landed? {
                return Ok(Landed::Stored(held));
            }
        }
        in_session!(self, Purpose::Transaction, db => db.land(lease, &refreshed, now))
    }

    async fn restore(
        &self,
        id: &ConnectionId,
        shown: Version,
        version: Version,
        tokens: TokenSet,
        event: Event,
        now: Timestamp,
    ) -> Result<Option<Held>, StoreError> {
        in_session!(self, Purpose::Statement, db => db.restore(id, shown, version, &tokens, &event, now))
    }

    async fn give_up(
        &self,
        lease: &Lease,
        presented: Presented,
        trouble: Option<RefreshTrouble>,
        event: Option<Event>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        in_session!(self, Purpose::Statement, db => db.give_up(lease, presented, trouble.as_ref(), event.as_ref(), now))
    }

    async fn condemn(
        &self,
        lease: &Lease,
        reason: ReconnectReason,
        event: Event,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        in_session!(self, Purpose::Statement, db => db.condemn(lease, reason, &event, now))
    }

    async fn mark_uninstalled(
        &self,
        id: &ConnectionId,
        at: Timestamp,
        event: Event,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        in_session!(self, Purpose::Statement, db => db.mark_uninstalled(id, at, &event, now))
    }

    async fn begin_cooldown(
        &self,
        id: &ConnectionId,
        version: Version,
        now: Timestamp,
    ) -> Result<CooldownAnswer, StoreError> {
        in_session!(self, Purpose::Transaction, db => db.begin_cooldown(id, version, now))
    }

    async fn claim_forced_refresh(
        &self,
        id: &ConnectionId,
        every: Duration,
        event: Event,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        in_session!(self, Purpose::Statement, db => db.claim_forced_refresh(id, every, &event, now))
    }

    async fn disconnect(
        &self,
        id: &ConnectionId,
        revoke: Revoke,
        superseded_by: Option<ConnectionId>,
        event: Event,
        now: Timestamp,
    ) -> Result<Option<(Connection, RevocationState)>, StoreError> {
        in_session!(self, Purpose::Transaction, db => db.disconnect(id, revoke, superseded_by.as_ref(), &event, now))
    }

    async fn purge(&self, id: &ConnectionId) -> Result<(), StoreError> {
        in_session!(self, Purpose::Transaction, db => db.purge(id))
    }

    async fn claim_revocations(
        &self,
        limit: u32,
        push: Duration,
        now: Timestamp,
    ) -> Result<Vec<Revocation>, StoreError> {
        in_session!(self, Purpose::Transaction, db => db.claim_revocations(limit, push, now))
    }

    async fn queue_revocation(
        &self,
        connection: &ConnectionId,
        app: &AppName,
        refresh_token: RefreshToken,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        in_session!(self, Purpose::Transaction, db => db.queue_revocation(connection, app, &refresh_token, now))
    }

    async fn finish_revocation(
        &self,
        id: i64,
        state: RevocationState,
        event: Option<Event>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        in_session!(self, Purpose::Transaction, db => db.finish_revocation(id, state, event.as_ref(), now))
    }

    async fn claim_due(&self, query: DueQuery) -> Result<Vec<ConnectionId>, StoreError> {
        in_session!(self, Purpose::Statement, db => db.claim_due(&query))
    }

    async fn note_usage(&self, usage: Vec<Usage>, now: Timestamp) -> Result<(), StoreError> {
        in_session!(self, Purpose::Transaction, db => db.note_usage(&usage, now))
    }

    async fn note_event(&self, id: &ConnectionId, event: Event, now: Timestamp) -> Result<(), StoreError> {
        in_session!(self, Purpose::Transaction, db => db.record_event(id, &event, now))
    }

    async fn note_app_event(&self, app: &AppName, event: Event, now: Timestamp) -> Result<(), StoreError> {
        in_session!(self, Purpose::Transaction, db => db.note_app_event(app, &event, now))
    }

    async fn find_events(&self, query: EventQuery) -> Result<EventPage, StoreError> {
        in_session!(self, Purpose::Read, db => db.find_events(&query))
    }

    async fn event_head(&self) -> Result<i64, StoreError> {
        in_session!(self, Purpose::Read, db => db.event_head())
    }

    async fn count_refreshes(&self, id: &ConnectionId, since: Timestamp) -> Result<RefreshCount, StoreError> {
        in_session!(self, Purpose::Read, db => db.count_refreshes(id, since))
    }

    async fn trim_events(&self, trim: EventTrim) -> Result<Option<ConnectionId>, StoreError> {
        in_session!(self, Purpose::Transaction, db => db.trim_events(&trim))
    }

    async fn tallies(&self, id: &ConnectionId, since: Timestamp) -> Result<Vec<Tallied>, StoreError> {
        in_session!(self, Purpose::Read, db => db.tallies(id, since))
    }

    async fn app_tallies(&self, app: &AppName, since: Timestamp) -> Result<Vec<Tallied>, StoreError> {
        in_session!(self, Purpose::Read, db => db.app_tallies(app, since))
    }

    async fn count_connections(
        &self,
        limits: Limits,
        quiet_time: Duration,
        now: Timestamp,
    ) -> Result<Vec<ConnectionCount>, StoreError> {
        in_session!(self, Purpose::Read, db => db.count_connections(&limits, quiet_time, now))
    }

    async fn change_head(&self) -> Result<i64, StoreError> {
        in_session!(self, Purpose::Read, db => db.change_head())
    }

    async fn changes(&self, after: i64) -> Result<(Vec<Change>, i64), StoreError> {
        in_session!(self, Purpose::Read, db => db.changes(after))
    }

    async fn app_state(&self, app: &AppName) -> Result<AppState, StoreError> {
        in_session!(self, Purpose::Read, db => db.app_state(app))
    }

    async fn reject_app(
        &self,
        app: &AppName,
        rejected: CredentialsRejected,
        event: Event,
    ) -> Result<(), StoreError> {
        in_session!(self, Purpose::Statement, db => db.reject_app(app, &rejected, &event))
    }

    async fn accept_app(
        &self,
        app: &AppName,
        secret_fingerprint: String,
        event: Event,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        in_session!(self, Purpose::Statement, db => db.accept_app(app, &secret_fingerprint, &event, now))
    }

    async fn claim_probe(
        &self,
        app: &AppName,
        connection: &ConnectionId,
        every: Duration,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        in_session!(self, Purpose::Statement, db => db.claim_probe(app, connection, every, now))
    }

    async fn endpoint_failed(
        &self,
        app: &AppName,
        code: String,
        retry_after: Option<Duration>,
        jitter: Jitter,
        now: Timestamp,
    ) -> Result<Breaker, StoreError> {
        in_session!(self, Purpose::Transaction, db => db.endpoint_failed(app, &code, retry_after, jitter, now))
    }

    async fn endpoint_works(&self, app: &AppName) -> Result<(), StoreError> {
        in_session!(self, Purpose::Statement, db => db.endpoint_works(app))
    }

    async fn claim_exchanges(
        &self,
        app: &AppName,
        wanted: u32,
        per_second: u32,
        _now: Timestamp,
    ) -> Result<u32, StoreError> {
        in_session!(self, Purpose::Statement, db => db.claim_exchanges(app, wanted, per_second))
    }

    async fn reserve_write(
        &self,
        reservation: WriteReservation,
        now: Timestamp,
    ) -> Result<Reserved, StoreError> {
        in_session!(self, Purpose::Statement, db => db.reserve_write(&reservation, now))
    }

    async fn write_leaves(
        &self,
        ticket: &WriteTicket,
        deadline: Timestamp,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        in_session!(self, Purpose::Statement, db => db.write_leaves(ticket, deadline, now))
    }

    async fn hold_write(&self, ticket: &WriteTicket, deadline: Timestamp) -> Result<bool, StoreError> {
        in_session!(self, Purpose::Statement, db => db.hold_write(ticket, deadline))
    }

    async fn end_write(
        &self,
        ticket: &WriteTicket,
        end: WriteEnd,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let end = match end {
            WriteEnd::NotApplied => SealedEnd::NotApplied,
            WriteEnd::Done(answer) => SealedEnd::Done(SealedAnswer::new(&self.vault, ticket, &answer)?),
            WriteEnd::Unknown => SealedEnd::Unknown,
        };
        in_session!(self, Purpose::Statement, db => db.end_write(ticket, &end, now))
    }

    async fn claim_calls(
        &self,
        budget: &BudgetName,
        claim: Claim,
        _now: Timestamp,
    ) -> Result<Grant, StoreError> {
        in_session!(self, Purpose::OwnTransaction, db => db.claim_calls(budget, claim))
    }

    async fn budget_standing(
        &self,
        budget: &BudgetName,
        _now: Timestamp,
    ) -> Result<Option<Standing>, StoreError> {
        in_session!(self, Purpose::Read, db => db.budget_standing(budget))
    }

    async fn switch_to_single_use(&self, app: &AppName, now: Timestamp) -> Result<bool, StoreError> {
        in_session!(self, Purpose::Transaction, db => db.switch_to_single_use(app, now))
    }

    async fn create_key(&self, key: ApiKey, hash: [u8; 32]) -> Result<(), StoreError> {
        in_session!(self, Purpose::Transaction, db => db.create_key(&key, hash))
    }

    async fn keys(&self) -> Result<Vec<ApiKey>, StoreError> {
        in_session!(self, Purpose::Read, db => db.keys())
    }

    async fn key_by_hash(&self, hash: [u8; 32]) -> Result<Option<ApiKey>, StoreError> {
        in_session!(self, Purpose::Read, db => db.key_by_hash(hash))
    }

    async fn revoke_key(&self, id: &str, now: Timestamp) -> Result<bool, StoreError> {
        in_session!(self, Purpose::Transaction, db => db.revoke_key(id, now))
    }

    async fn create_session(&self, session: ConnectSession) -> Result<(), StoreError> {
        in_session!(self, Purpose::Transaction, db => db.create_session(&session))
    }

    async fn session(&self, id: &str) -> Result<Option<ConnectSession>, StoreError> {
        in_session!(self, Purpose::Read, db => db.session(id))
    }

    async fn finish_session(&self, id: &str, outcome: SessionOutcome) -> Result<(), StoreError> {
        in_session!(self, Purpose::Transaction, db => db.finish_session(id, &outcome))
    }

    async fn begin_authorization(&self, authorization: Authorization) -> Result<(), StoreError> {
        in_session!(self, Purpose::Transaction, db => db.begin_authorization(&authorization))
    }

    async fn spend_state(
        &self,
        state_hash: [u8; 32],
        now: Timestamp,
    ) -> Result<Option<Authorization>, StoreError> {
        in_session!(self, Purpose::Transaction, db => db.spend_state(state_hash, now))
    }

    async fn webhook_position(&self) -> Result<Option<i64>, StoreError> {
        in_session!(self, Purpose::Read, db => db.webhook_position())
    }

    async fn add_deliveries(
        &self,
        from: Option<i64>,
        to: i64,
        deliveries: Vec<NewDelivery>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        in_session!(self, Purpose::Transaction, db => db.add_deliveries(from, to, &deliveries, now))
    }

    async fn claim_deliveries(
        &self,
        endpoint: &str,
        limit: u32,
        push: Duration,
        now: Timestamp,
    ) -> Result<Vec<Delivery>, StoreError> {
        in_session!(self, Purpose::Transaction, db => db.claim_deliveries(endpoint, limit, push, now))
    }

    async fn end_try(&self, tried: TriedDelivery, end: TryEnd, now: Timestamp) -> Result<bool, StoreError> {
        in_session!(self, Purpose::Transaction, db => db.end_try(&tried, &end, now))
    }

    async fn deliveries(&self, filter: DeliveryFilter) -> Result<Vec<Delivery>, StoreError> {
        in_session!(self, Purpose::Read, db => db.deliveries(&filter))
    }

    async fn dead_letters(&self, limits: Limits) -> Result<DeadLetters, StoreError> {
        in_session!(self, Purpose::Read, db => db.dead_letters(&limits))
    }

    async fn resend_delivery(&self, id: &str, now: Timestamp) -> Result<Option<Delivery>, StoreError> {
        in_session!(self, Purpose::Transaction, db => db.resend_delivery(id, now))
    }

    async fn sweep_deliveries(&self, sweep: DeliverySweep, now: Timestamp) -> Result<(), StoreError> {
        in_session!(self, Purpose::Transaction, db => db.sweep_deliveries(&sweep, now))
    }

    async fn claim_journal(
        &self,
        app: &AppName,
        lasts: Duration,
        now: Timestamp,
    ) -> Result<Option<Journal>, StoreError> {
        in_session!(self, Purpose::Transaction, db => db.claim_journal(app, lasts, now))
    }

    async fn journal_subscribed(&self, app: &AppName, now: Timestamp) -> Result<(), StoreError> {
        in_session!(self, Purpose::Transaction, db => db.journal_subscribed(app, now))
    }

    async fn advance_journal(
        &self,
        app: &AppName,
        step: JournalStep,
        now: Timestamp,
    ) -> Result<Option<Vec<ConnectionId>>, StoreError> {
        in_session!(self, Purpose::Transaction, db => db.advance_journal(app, &step, now))
    }

    async fn sweep(&self, before: Timestamp) -> Result<(), StoreError> {
        in_session!(self, Purpose::Transaction, db => db.sweep(before))
    }

    async fn sweep_writes(&self, now: Timestamp, bodies_max: u64) -> Result<(), StoreError> {
        loop {
            let swept: Result<_, StoreError> =
                in_session!(self, Purpose::Transaction, db => db.sweep_writes(now, bodies_max));
            if !swept? {
                return Ok(());
            }
        }
    }

    async fn pulse(&self) -> Result<Pulse, StoreError> {
        let read: Result<_, StoreError> = in_session!(self, Purpose::Read, db => db.pulse());
        let (now, server, feed) = read?;
        let steps_back = self.feed.lock().note(feed);
        Ok(Pulse {
            now: Some(now),
            epoch: format!("{server} {steps_back}"),
        })
    }

    async fn hint(&self) {
        self.hints.told().await;
    }

    async fn ping(&self) -> Result<(), StoreError> {
        in_session!(self, Purpose::Read, db => db.rows("SELECT 1", &[])).map(drop)
    }
}
