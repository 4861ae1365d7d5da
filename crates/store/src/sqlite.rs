//! The store in one SQLite file, for any number of processes on one machine.
//!
//! Every write is one `BEGIN IMMEDIATE … COMMIT`: SQLite lets one process write at a time, so what a transaction reads
//! stands until it commits, and "one statement" in PROTOCOL.md reads "one transaction" here. Start reading at
//! `redeeming` for leases and answers, at `connections` for the rest of a connection's life, at `write_ledger` and
//! `call_budget` for calls, at `threads` for how blocking work stays off the async runtime, at `transaction` for what shares
//! a commit, at `open` for what is refused.

mod access;
mod apps;
mod call_budget;
mod conditions;
mod connections;
mod epoch;
mod history;
mod holder;
mod open;
mod record;
mod redeeming;
#[cfg(feature = "simulation")]
pub mod simulated;
#[cfg(test)]
mod tests;
mod threads;
mod transaction;
mod upkeep;
mod webhooks;
mod write_ledger;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use evergrant_domain::access::Limits;
use evergrant_domain::breaker::Breaker;
use evergrant_domain::call_budget::{Claim, Grant, Standing};
use evergrant_domain::connection::{Account, RefreshTrouble};
use evergrant_domain::event::Event;
use evergrant_domain::refresh_policy::Jitter;
use evergrant_domain::{
    AppName, Connection, ConnectionId, Customer, ReconnectReason, RefreshToken, Timestamp, TokenSet, Version,
};

use self::epoch::FileEpoch;
use self::holder::{Alive, Boot};
pub use self::open::OpenError;
use self::open::{Opened, Settings};
use self::record::Db;
use self::threads::Threads;
use crate::contract::{
    ApiKey, AppState, Authorization, BudgetName, Change, ConnectSession, Connected, ConnectionCount,
    ConnectionFilter, CooldownAnswer, CredentialsRejected, DeadLetters, Delivery, DeliveryFilter,
    DeliverySweep, DueQuery, EventPage, EventQuery, EventTrim, Held, Journal, JournalStep, Landed, Lease,
    LeaseAnswer, LeaseOn, NewConnection, NewDelivery, Presented, Pulse, RecordSays, RefreshCount, Refreshed,
    Replaced, Reserved, Revocation, RevocationState, Revoke, Schema, SessionOutcome, Store, StoreError,
    Tallied, TriedDelivery, TryEnd, Usage, WriteEnd, WriteReservation, WriteTicket,
};
use crate::record::Before;
use crate::vault::Vault;

/// How long a write waits for another process's.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The store in an SQLite file. Dropped, it finishes what was asked of it, closes the database and frees its leases.
pub struct SqliteStore {
    runner: Runner,
}

/// Where the work is done.
enum Runner {
    /// In this order: the leases are free only once nothing can be written under them any more.
    Threads {
        writer: Threads,
        readers: Threads,
        epoch: Arc<FileEpoch>,
        _alive: Alive,
    },
    /// Where it is asked for, at once.
    #[cfg(feature = "simulation")]
    Inline(simulated::Inline),
}

impl SqliteStore {
    /// Opens the database at `path`, or makes one, and brings its schema up to date.
    pub async fn open(path: &Path, vault: Arc<Vault>) -> Result<Self, OpenError> {
        let boot = Boot::current().map_err(|source| OpenError::File {
            path: "/proc/sys/kernel/random/boot_id".into(),
            source,
        })?;
        let settings = Settings {
            busy_timeout: BUSY_TIMEOUT,
            boot,
        };
        Self::open_with(path, vault, settings).await
    }

    /// How far the schema of the database at `path` is. Changes nothing.
    pub async fn schema(path: &Path) -> Result<Schema, OpenError> {
        let owned = path.to_owned();
        let read = tokio::task::spawn_blocking(move || open::schema(&owned)).await;
        read.unwrap_or_else(|error| {
            Err(OpenError::Unavailable {
                path: path.to_owned(),
                what: error.to_string(),
            })
        })
    }

    async fn open_with(path: &Path, vault: Arc<Vault>, settings: Settings) -> Result<Self, OpenError> {
        let owned = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || open::open(&owned, &vault, settings)).await;
        let Opened {
            writer,
            readers,
            epoch,
            alive,
        } = opened.unwrap_or_else(|error| {
            Err(OpenError::Unavailable {
                path: path.to_owned(),
                what: error.to_string(),
            })
        })?;
        Ok(Self {
            runner: Runner::Threads {
                writer,
                readers,
                epoch: Arc::new(epoch),
                _alive: alive,
            },
        })
    }

    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Db) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        match &self.runner {
            Runner::Threads { writer, .. } => writer.run(work).await,
            #[cfg(feature = "simulation")]
            Runner::Inline(inline) => inline.write(work),
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Db) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        match &self.runner {
            Runner::Threads { readers, .. } => readers.run(work).await,
            #[cfg(feature = "simulation")]
            Runner::Inline(inline) => inline.read(work),
        }
    }

    /// A file goes by its machine's clock. A simulation may want another store's way.
    fn clock_of_its_own(&self) -> Option<Timestamp> {
        match &self.runner {
            Runner::Threads { .. } => None,
            #[cfg(feature = "simulation")]
            Runner::Inline(inline) => inline.clock_of_its_own(),
        }
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SqliteStore(..)")
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn create(&self, new: NewConnection, now: Timestamp) -> Result<Connected, StoreError> {
        self.write(move |db| db.create(&new, now)).await
    }

    async fn reconnect(
        &self,
        id: &ConnectionId,
        account: Option<Account>,
        tokens: TokenSet,
        event: Event,
        now: Timestamp,
    ) -> Result<Connected, StoreError> {
        let id = id.clone();
        self.write(move |db| db.reconnect(&id, account.as_ref(), &tokens, &event, now))
            .await
    }

    async fn replace_older(
        &self,
        new: NewConnection,
        says: RecordSays,
        replaced: Event,
        now: Timestamp,
    ) -> Result<Replaced, StoreError> {
        self.write(move |db| db.replace_older(&new, says, &replaced, now))
            .await
    }

    async fn supersede(
        &self,
        new: NewConnection,
        retired: Event,
        now: Timestamp,
    ) -> Result<Connected, StoreError> {
        self.write(move |db| db.supersede(&new, &retired, now)).await
    }

    async fn held(&self, id: &ConnectionId) -> Result<Option<Held>, StoreError> {
        let id = id.clone();
        self.read(move |db| db.held(&id)).await
    }

    async fn connection(&self, id: &ConnectionId) -> Result<Option<Connection>, StoreError> {
        let id = id.clone();
        self.read(move |db| db.connection(&id)).await
    }

    async fn find(
        &self,
        app: &AppName,
        customer: &Customer,
        account: &str,
    ) -> Result<Option<Connection>, StoreError> {
        let (app, customer, account) = (app.clone(), customer.clone(), account.to_owned());
        self.read(move |db| db.find(&app, &customer, &account)).await
    }

    async fn list(&self, filter: ConnectionFilter) -> Result<Vec<Connection>, StoreError> {
        self.read(move |db| db.list(&filter)).await
    }

    async fn patch(
        &self,
        id: &ConnectionId,
        customer: Option<Customer>,
        labels: Option<Vec<(String, String)>>,
        now: Timestamp,
    ) -> Result<Connected, StoreError> {
        let id = id.clone();
        self.write(move |db| db.patch(&id, customer.as_ref(), labels.as_deref(), now))
            .await
    }

    async fn take_lease(
        &self,
        id: &ConnectionId,
        version: Version,
        lasts: Duration,
        on: LeaseOn,
        now: Timestamp,
    ) -> Result<LeaseAnswer, StoreError> {
        let id = id.clone();
        self.write(move |db| db.take_lease(&id, version, lasts, on, now))
            .await
    }

    async fn renew_lease(&self, lease: &Lease, lasts: Duration) -> Result<bool, StoreError> {
        let lease = lease.clone();
        self.write(move |db| db.renew_lease(&lease, lasts)).await
    }

    async fn lease_lasts(&self, lease: &Lease, at_least: Duration) -> Result<bool, StoreError> {
        let lease = lease.clone();
        self.read(move |db| db.lease_lasts(&lease, at_least)).await
    }

    async fn land(&self, lease: &Lease, refreshed: Refreshed, now: Timestamp) -> Result<Landed, StoreError> {
        let lease = lease.clone();
        self.write(move |db| db.land(&lease, &refreshed, now)).await
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
        let id = id.clone();
        self.write(move |db| db.restore(&id, shown, version, &tokens, &event, now))
            .await
    }

    async fn give_up(
        &self,
        lease: &Lease,
        presented: Presented,
        trouble: Option<RefreshTrouble>,
        event: Option<Event>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let lease = lease.clone();
        self.write(move |db| db.give_up(&lease, presented, trouble.as_ref(), event.as_ref(), now))
            .await
    }

    async fn condemn(
        &self,
        lease: &Lease,
        reason: ReconnectReason,
        event: Event,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let lease = lease.clone();
        self.write(move |db| db.condemn(&lease, reason, &event, now))
            .await
    }

    async fn mark_uninstalled(
        &self,
        id: &ConnectionId,
        at: Timestamp,
        event: Event,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let id = id.clone();
        self.write(move |db| db.mark_uninstalled(&id, at, &event, now))
            .await
    }

    async fn begin_cooldown(
        &self,
        id: &ConnectionId,
        version: Version,
        now: Timestamp,
    ) -> Result<CooldownAnswer, StoreError> {
        let id = id.clone();
        self.write(move |db| db.begin_cooldown(&id, version, now)).await
    }

    async fn claim_forced_refresh(
        &self,
        id: &ConnectionId,
        every: Duration,
        event: Event,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let id = id.clone();
        self.write(move |db| db.claim_forced_refresh(&id, every, &event, now))
            .await
    }

    async fn disconnect(
        &self,
        id: &ConnectionId,
        revoke: Revoke,
        superseded_by: Option<ConnectionId>,
        event: Event,
        now: Timestamp,
    ) -> Result<Option<(Connection, RevocationState)>, StoreError> {
        let id = id.clone();
        self.write(move |db| db.disconnect(&id, revoke, superseded_by.as_ref(), &event, now))
            .await
    }

    async fn purge(&self, id: &ConnectionId) -> Result<(), StoreError> {
        let id = id.clone();
        self.write(move |db| db.purge(&id)).await
    }

    async fn claim_revocations(
        &self,
        limit: u32,
        push: Duration,
        now: Timestamp,
    ) -> Result<Vec<Revocation>, StoreError> {
        self.write(move |db| db.claim_revocations(limit, push, now)).await
    }

    async fn queue_revocation(
        &self,
        connection: &ConnectionId,
        app: &AppName,
        refresh_token: RefreshToken,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let (connection, app) = (connection.clone(), app.clone());
        self.write(move |db| db.queue_revocation(&connection, &app, &refresh_token, now))
            .await
    }

    async fn finish_revocation(
        &self,
        id: i64,
        state: RevocationState,
        event: Option<Event>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.write(move |db| db.finish_revocation(id, state, event.as_ref(), now))
            .await
    }

    async fn claim_due(&self, query: DueQuery) -> Result<Vec<ConnectionId>, StoreError> {
        self.write(move |db| db.claim_due(&query)).await
    }

    async fn note_usage(&self, usage: Vec<Usage>, now: Timestamp) -> Result<(), StoreError> {
        self.write(move |db| db.note_usage(&usage, now)).await
    }

    async fn note_event(&self, id: &ConnectionId, event: Event, now: Timestamp) -> Result<(), StoreError> {
        let id = id.clone();
        self.write(move |db| db.append_event(&id, Before::Unchanged, &event, now))
            .await
    }

    async fn note_app_event(&self, app: &AppName, event: Event, now: Timestamp) -> Result<(), StoreError> {
        let app = app.clone();
        self.write(move |db| db.note_app_event(&app, &event, now)).await
    }

    async fn find_events(&self, query: EventQuery) -> Result<EventPage, StoreError> {
        self.read(move |db| db.find_events(&query)).await
    }

    async fn event_head(&self) -> Result<i64, StoreError> {
        self.read(Db::event_head).await
    }

    async fn count_refreshes(&self, id: &ConnectionId, since: Timestamp) -> Result<RefreshCount, StoreError> {
        let id = id.clone();
        self.read(move |db| db.count_refreshes(&id, since)).await
    }

    async fn trim_events(&self, trim: EventTrim) -> Result<Option<ConnectionId>, StoreError> {
        self.write(move |db| db.trim_events(&trim)).await
    }

    async fn tallies(&self, id: &ConnectionId, since: Timestamp) -> Result<Vec<Tallied>, StoreError> {
        let id = id.clone();
        self.read(move |db| db.tallies(&id, since)).await
    }

    async fn app_tallies(&self, app: &AppName, since: Timestamp) -> Result<Vec<Tallied>, StoreError> {
        let app = app.clone();
        self.read(move |db| db.app_tallies(&app, since)).await
    }

    async fn count_connections(
        &self,
        limits: Limits,
        quiet_time: Duration,
        now: Timestamp,
    ) -> Result<Vec<ConnectionCount>, StoreError> {
        self.read(move |db| db.count_connections(&limits, quiet_time, now))
            .await
    }

    async fn change_head(&self) -> Result<i64, StoreError> {
        self.read(Db::change_head).await
    }

    async fn changes(&self, after: i64) -> Result<(Vec<Change>, i64), StoreError> {
        self.read(move |db| db.changes(after)).await
    }

    async fn app_state(&self, app: &AppName) -> Result<AppState, StoreError> {
        let app = app.clone();
        self.read(move |db| db.app_state(&app)).await
    }

    async fn reject_app(
        &self,
        app: &AppName,
        rejected: CredentialsRejected,
        event: Event,
    ) -> Result<(), StoreError> {
        let app = app.clone();
        self.write(move |db| db.reject_app(&app, &rejected, &event)).await
    }

    async fn accept_app(
        &self,
        app: &AppName,
        secret_fingerprint: String,
        event: Event,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let app = app.clone();
        self.write(move |db| db.accept_app(&app, &secret_fingerprint, &event, now))
            .await
    }

    async fn claim_probe(
        &self,
        app: &AppName,
        connection: &ConnectionId,
        every: Duration,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let (app, connection) = (app.clone(), connection.clone());
        self.write(move |db| db.claim_probe(&app, &connection, every, now))
            .await
    }

    async fn endpoint_failed(
        &self,
        app: &AppName,
        code: String,
        retry_after: Option<Duration>,
        jitter: Jitter,
        now: Timestamp,
    ) -> Result<Breaker, StoreError> {
        let app = app.clone();
        self.write(move |db| db.endpoint_failed(&app, &code, retry_after, jitter, now))
            .await
    }

    async fn endpoint_works(&self, app: &AppName) -> Result<(), StoreError> {
        let app = app.clone();
        self.write(move |db| db.endpoint_works(&app)).await
    }

    async fn claim_exchanges(
        &self,
        app: &AppName,
        wanted: u32,
        per_second: u32,
        now: Timestamp,
    ) -> Result<u32, StoreError> {
        let app = app.clone();
        let now = self.clock_of_its_own().unwrap_or(now);
        self.write(move |db| db.claim_exchanges(&app, wanted, per_second, now))
            .await
    }

    async fn reserve_write(
        &self,
        reservation: WriteReservation,
        now: Timestamp,
    ) -> Result<Reserved, StoreError> {
        self.write(move |db| db.reserve_write(&reservation, now)).await
    }

    async fn write_leaves(
        &self,
        ticket: &WriteTicket,
        deadline: Timestamp,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let ticket = ticket.clone();
        self.write(move |db| db.write_leaves(&ticket, deadline, now))
            .await
    }

    async fn hold_write(&self, ticket: &WriteTicket, deadline: Timestamp) -> Result<bool, StoreError> {
        let ticket = ticket.clone();
        self.write(move |db| db.hold_write(&ticket, deadline)).await
    }

    async fn end_write(
        &self,
        ticket: &WriteTicket,
        end: WriteEnd,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let ticket = ticket.clone();
        self.write(move |db| db.end_write(&ticket, &end, now)).await
    }

    async fn claim_calls(
        &self,
        budget: &BudgetName,
        claim: Claim,
        now: Timestamp,
    ) -> Result<Grant, StoreError> {
        let budget = budget.clone();
        let now = self.clock_of_its_own().unwrap_or(now);
        self.write(move |db| db.claim_calls(&budget, claim, now)).await
    }

    async fn budget_standing(
        &self,
        budget: &BudgetName,
        now: Timestamp,
    ) -> Result<Option<Standing>, StoreError> {
        let budget = budget.clone();
        let now = self.clock_of_its_own().unwrap_or(now);
        self.read(move |db| db.budget_standing(&budget, now)).await
    }

    async fn switch_to_single_use(&self, app: &AppName, now: Timestamp) -> Result<bool, StoreError> {
        let app = app.clone();
        self.write(move |db| db.switch_to_single_use(&app, now)).await
    }

    async fn create_key(&self, key: ApiKey, hash: [u8; 32]) -> Result<(), StoreError> {
        self.write(move |db| db.create_key(&key, hash)).await
    }

    async fn keys(&self) -> Result<Vec<ApiKey>, StoreError> {
        self.read(Db::keys).await
    }

    async fn key_by_hash(&self, hash: [u8; 32]) -> Result<Option<ApiKey>, StoreError> {
        self.read(move |db| db.key_by_hash(hash)).await
    }

    async fn revoke_key(&self, id: &str, now: Timestamp) -> Result<bool, StoreError> {
        let id = id.to_owned();
        self.write(move |db| db.revoke_key(&id, now)).await
    }

    async fn create_session(&self, session: ConnectSession) -> Result<(), StoreError> {
        self.write(move |db| db.create_session(&session)).await
    }

    async fn session(&self, id: &str) -> Result<Option<ConnectSession>, StoreError> {
        let id = id.to_owned();
        self.read(move |db| db.session(&id)).await
    }

    async fn finish_session(&self, id: &str, outcome: SessionOutcome) -> Result<(), StoreError> {
        let id = id.to_owned();
        self.write(move |db| db.finish_session(&id, &outcome)).await
    }

    async fn begin_authorization(&self, authorization: Authorization) -> Result<(), StoreError> {
        self.write(move |db| db.begin_authorization(&authorization)).await
    }

    async fn spend_state(
        &self,
        state_hash: [u8; 32],
        now: Timestamp,
    ) -> Result<Option<Authorization>, StoreError> {
        self.write(move |db| db.spend_state(state_hash, now)).await
    }

    async fn webhook_position(&self) -> Result<Option<i64>, StoreError> {
        self.read(Db::webhook_position).await
    }

    async fn add_deliveries(
        &self,
        from: Option<i64>,
        to: i64,
        deliveries: Vec<NewDelivery>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.write(move |db| db.add_deliveries(from, to, &deliveries, now))
            .await
    }

    async fn claim_deliveries(
        &self,
        endpoint: &str,
        limit: u32,
        push: Duration,
        now: Timestamp,
    ) -> Result<Vec<Delivery>, StoreError> {
        let endpoint = endpoint.to_owned();
        self.write(move |db| db.claim_deliveries(&endpoint, limit, push, now))
            .await
    }

    async fn end_try(&self, tried: TriedDelivery, end: TryEnd, now: Timestamp) -> Result<bool, StoreError> {
        self.write(move |db| db.end_try(&tried, &end, now)).await
    }

    async fn deliveries(&self, filter: DeliveryFilter) -> Result<Vec<Delivery>, StoreError> {
        self.read(move |db| db.deliveries(&filter)).await
    }

    async fn dead_letters(&self, limits: Limits) -> Result<DeadLetters, StoreError> {
        self.read(move |db| db.dead_letters(&limits)).await
    }

    async fn resend_delivery(&self, id: &str, now: Timestamp) -> Result<Option<Delivery>, StoreError> {
        let id = id.to_owned();
        self.write(move |db| db.resend_delivery(&id, now)).await
    }

    async fn sweep_deliveries(&self, sweep: DeliverySweep, now: Timestamp) -> Result<(), StoreError> {
        self.write(move |db| db.sweep_deliveries(&sweep, now)).await
    }

    async fn claim_journal(
        &self,
        app: &AppName,
        lasts: Duration,
        now: Timestamp,
    ) -> Result<Option<Journal>, StoreError> {
        let app = app.clone();
        self.write(move |db| db.claim_journal(&app, lasts, now)).await
    }

    async fn journal_subscribed(&self, app: &AppName, now: Timestamp) -> Result<(), StoreError> {
        let app = app.clone();
        self.write(move |db| db.journal_subscribed(&app, now)).await
    }

    async fn advance_journal(
        &self,
        app: &AppName,
        step: JournalStep,
        now: Timestamp,
    ) -> Result<Option<Vec<ConnectionId>>, StoreError> {
        let app = app.clone();
        self.write(move |db| db.advance_journal(&app, &step, now)).await
    }

    async fn sweep(&self, before: Timestamp) -> Result<(), StoreError> {
        self.write(move |db| db.sweep(before)).await
    }

    async fn sweep_writes(&self, now: Timestamp, bodies_max: u64) -> Result<(), StoreError> {
        while self.write(move |db| db.sweep_writes(now, bodies_max)).await? {}
        Ok(())
    }

    async fn pulse(&self) -> Result<Pulse, StoreError> {
        let epoch = match &self.runner {
            Runner::Threads { epoch, .. } => {
                let epoch = Arc::clone(epoch);
                self.read(move |db| epoch.now(db)).await?
            }
            #[cfg(feature = "simulation")]
            Runner::Inline(inline) => inline.epoch()?,
        };
        Ok(Pulse {
            now: self.clock_of_its_own(),
            epoch,
        })
    }

    /// Files tell nobody.
    async fn hint(&self) {
        std::future::pending::<()>().await;
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.read(|db| db.value::<i64>("SELECT 1", []).map(drop)).await
    }
}
