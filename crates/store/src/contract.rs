//! What the engine asks of persistence: one contract, whichever database keeps it.
//!
//! Every method is one transaction. A change of a connection's state and the event that tells of it are written together.
//! Leases are judged by the store's own clock alone; the `now` that callers pass is wall time, for what is recorded.

use std::time::Duration;

use async_trait::async_trait;
use evergrant_domain::access::{Limits, Role};
use evergrant_domain::breaker::Breaker;
use evergrant_domain::call_budget::{Claim, Grant, Standing};
use evergrant_domain::connection::{Account, LastSeen, RefreshTrouble};
use evergrant_domain::event::{Circumstances, Event};
use evergrant_domain::redemption::Intent;
use evergrant_domain::refresh_policy::Jitter;
use evergrant_domain::rejection::Cooldown;
use evergrant_domain::tally::Tally;
use evergrant_domain::write_ledger::Meeting;
use evergrant_domain::{
    AppName, CodeVerifier, Connection, ConnectionId, ConnectionStatus, Customer, Fence, Health, Kind,
    ReconnectReason, RefreshToken, Timestamp, TokenSet, Version,
};

/// Why the store did not do what it was asked. Nothing was changed, except where it says otherwise.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Busy, full, unreachable: it may pass. `outcome_unknown` where the commit itself failed and may have happened.
    #[error("the store is not available: {what}")]
    Unavailable {
        /// What the database said, without values.
        what: String,
        /// Whether the change may have been made all the same.
        outcome_unknown: bool,
    },
    /// A record does not open with the vault key, or was tampered with. Only this record is affected.
    #[error(
        "the {field} of {record} does not open with the vault key: the record was changed, moved or sealed with another key"
    )]
    Unreadable {
        /// Which record.
        record: String,
        /// Which field.
        field: &'static str,
    },
    /// The database holds something that this version cannot read: a bug, or another program's writing.
    #[error("the store holds a value that cannot be read: {what}")]
    Corrupt {
        /// What and where.
        what: String,
    },
}

/// How far the schema of a database is that this program may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schema {
    /// The database's version; 0 where there is none yet.
    pub found: i64,
    /// The newest one that this program knows.
    pub known: i64,
}

impl Schema {
    /// A newer program has made it, and says that this one may use it as it is.
    pub fn is_newer(self) -> bool {
        self.found > self.known
    }
}

/// A connection with its token set, as read in one go. The token set is gone once it is disconnected.
#[derive(Debug, Clone)]
pub struct Held {
    /// The record.
    pub connection: Connection,
    /// `None` for a disconnected connection.
    pub tokens: Option<TokenSet>,
    /// The cooldown that the last redemption because of a 401 began.
    pub cooldown: Option<Cooldown>,
}

/// A connection to be made.
#[derive(Debug, Clone)]
pub struct NewConnection {
    /// Its id.
    pub id: ConnectionId,
    /// Its app.
    pub app: AppName,
    /// The caller's reference.
    pub customer: Customer,
    /// Whether there is anything to refresh.
    pub kind: Kind,
    /// The provider's account, where it is known.
    pub account: Option<Account>,
    /// Its first token set.
    pub tokens: TokenSet,
    /// The caller's labels.
    pub labels: Vec<(String, String)>,
    /// What the history says.
    pub event: Event,
}

/// What came of making or reconnecting a connection.
#[derive(Debug)]
pub enum Connected {
    /// It is stored.
    Stored(Box<Held>),
    /// The id is taken.
    IdTaken,
    /// Another live connection has this app, customer and account.
    AccountTaken {
        /// Which.
        by: ConnectionId,
    },
    /// Another live connection of this app holds this refresh token.
    GrantTaken {
        /// Which.
        by: ConnectionId,
    },
    /// There is no such connection (reconnect only).
    Missing,
}

/// What a record says beside the token set that it brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordSays {
    /// Whether it names the connection's id, which then is meant and no other.
    pub names_id: bool,
    /// When its access token ends, where it says so and is believed.
    pub ends_at: Option<Timestamp>,
}

/// What came of [`Store::replace_older`].
#[derive(Debug)]
pub enum Replaced {
    /// None was meant: it was made, or refused.
    Made(Connected),
    /// The one that was meant holds the record's token set now, or was kept from it by another one.
    Replaced(Connected),
    /// The one that is meant holds a token set that does not end before the record's.
    NotOlder {
        /// Which.
        by: ConnectionId,
    },
    /// The refresh token of the one that is meant is being redeemed, or nobody knows yet how that ended.
    UnderWay {
        /// Which.
        by: ConnectionId,
    },
}

/// The right to redeem one version's refresh token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    connection: ConnectionId,
    version: Version,
    fence: Fence,
}

impl Lease {
    /// A right as it was taken. Whoever kept an answer across a restart names the lease that brought it; what counts is decided
    /// by the statement that lands it, never by this value.
    pub fn new(connection: ConnectionId, version: Version, fence: Fence) -> Self {
        Self {
            connection,
            version,
            fence,
        }
    }

    /// Whose refresh token may be redeemed.
    pub fn connection(&self) -> &ConnectionId {
        &self.connection
    }

    /// The version it holds for.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Its number.
    pub fn fence(&self) -> Fence {
        self.fence
    }
}

/// Which connections a lease may be taken on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseOn {
    /// One that is `active`.
    Active,
    /// Also one that needs reconnecting because an outcome was lost: a person asked for one more try.
    LostOutcome,
}

impl LeaseOn {
    /// Whether a connection of this status is meant.
    pub fn allows(self, status: &ConnectionStatus) -> bool {
        match status {
            ConnectionStatus::Active => true,
            ConnectionStatus::ReconnectRequired { reason, .. } => {
                self == Self::LostOutcome && *reason == ReconnectReason::RedemptionOutcomeLost
            }
            ConnectionStatus::Disconnected { .. } => false,
        }
    }
}

/// What came of asking for a lease.
#[derive(Debug)]
pub enum LeaseAnswer {
    /// Taken, and one attempt added to the intent, in one statement; `held` was read under it.
    Taken {
        /// The right.
        lease: Lease,
        /// The connection as it stands under the lease.
        held: Box<Held>,
        /// The intent as it was before this attempt was added.
        earlier: Option<Intent>,
        /// Whether another holder had it and is gone, or too slow.
        took_over: bool,
    },
    /// Another holder has it.
    Busy,
    /// The stored version is another one, or the connection is not `active`. Nothing was taken.
    Moved(Box<Held>),
    /// There is no such connection.
    Missing,
}

/// Whether a redemption that brought nothing may have reached the provider's grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presented {
    /// Nothing was presented, or the provider said definitely that it did nothing: the attempt is taken back.
    No,
    /// Nobody knows: the attempt stays counted.
    Unknown,
}

/// What came of storing a refreshed token set.
#[derive(Debug)]
pub enum Landed {
    /// It is the stored one now.
    Stored(Box<Held>),
    /// The stored version is another one; nothing was changed.
    Moved(Box<Held>),
    /// The connection was disconnected meanwhile; the new refresh token is in the revocation queue, unless the grant was
    /// to stay alive ([`Revoke::Never`], [`RevocationState::Shared`]).
    Disconnected,
    /// The connection was erased meanwhile, so nobody uses the grant any more. Nothing was stored: the new refresh token is
    /// the caller's to revoke ([`Store::queue_revocation`]).
    Purged,
    /// Another live connection of this app holds this refresh token. Nothing was stored: of two rows with one grant, one would
    /// present what the other one has redeemed.
    GrantTaken {
        /// Which.
        by: ConnectionId,
    },
}

/// A refreshed token set to be stored.
#[derive(Debug, Clone)]
pub struct Refreshed {
    /// The set, with the old refresh token where the answer brought none.
    pub tokens: TokenSet,
    /// The account that the answer named, where it is not the pinned one: stored with `account_mismatch`, never served.
    pub mismatch: Option<String>,
    /// The account, where the record had none pinned yet.
    pub account: Option<Account>,
    /// What the history says. How many failures came before, the store knows better than an answer that comes late, and says itself.
    pub event: Event,
}

/// What came of a cooldown that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CooldownAnswer {
    /// It begins now: one redemption may follow.
    Began(Cooldown),
    /// One holds already: no redemption.
    Holds(Cooldown),
    /// The stored version is another one.
    Moved,
}

/// When a refresh token is revoked on disconnecting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revoke {
    /// Only where no other live connection has that app and account.
    Auto,
    /// In any case.
    Always,
    /// Not at all.
    Never,
}

/// How far a disconnected connection's revocation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RevocationState {
    /// In the queue.
    Pending,
    /// The provider has revoked it.
    Done,
    /// The provider revokes no tokens, there was none, or it was not asked for.
    Unsupported,
    /// Kept alive: another live connection has that app and account.
    Shared,
}

impl RevocationState {
    /// Of a connection whose account another one took over: its grant, where it has one, stays alive with that.
    pub(crate) fn of_retired(had_grant: bool) -> Self {
        if had_grant {
            Self::Shared
        } else {
            Self::Unsupported
        }
    }

    /// The word in the store and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Done => "done",
            Self::Unsupported => "unsupported",
            Self::Shared => "shared",
        }
    }
}

/// A refresh token waiting to be revoked.
#[derive(Debug)]
pub struct Revocation {
    /// Its place in the queue.
    pub id: i64,
    /// Whose token it was.
    pub connection: ConnectionId,
    /// The app it was issued to.
    pub app: AppName,
    /// The token.
    pub refresh_token: RefreshToken,
    /// How often it was tried.
    pub attempts: u32,
}

/// Which connections to list: AND between kinds, OR within one; an empty kind asks for nothing.
#[derive(Debug, Clone, Default)]
pub struct ConnectionFilter {
    /// Of these apps.
    pub apps: Vec<AppName>,
    /// Of these customers.
    pub customers: Vec<Customer>,
    /// In these accounts.
    pub accounts: Vec<String>,
    /// With one of these status words.
    pub statuses: Vec<String>,
    /// Which do as is asked.
    pub healths: Option<HealthAsked>,
    /// Whose id, customer, account id or account domain contains this, ignoring ASCII case.
    pub q: Option<String>,
    /// Within these limits.
    pub limits: Limits,
    /// In which order.
    pub sort: Sort,
    /// At most so many.
    pub limit: u32,
    /// After this one, the last of the page before.
    pub after: Option<(SortKey, ConnectionId)>,
}

/// Connections by how they do, as [`Connection::health`] says.
#[derive(Debug, Clone)]
pub struct HealthAsked {
    /// One of these. A connection that was disconnected has none and is never meant.
    pub any_of: Vec<Health>,
    /// The time now.
    pub now: Timestamp,
    /// How long after an attempt's beginning its answer may still arrive.
    pub quiet_time: Duration,
}

/// In which order connections are listed; those that are equal, by id.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sort {
    /// By what.
    pub by: SortBy,
    /// From the largest to the smallest.
    pub descending: bool,
}

/// What connections are sorted by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SortBy {
    /// When the record was made.
    #[default]
    Created,
    /// The customer, by its bytes.
    Customer,
    /// When the access token ends.
    ExpiresAt,
    /// When it was last used; before everything else where it never was.
    LastCallAt,
    /// Since when it is not active; before everything else where it is.
    StatusSince,
}

impl SortBy {
    /// Every order.
    pub const ALL: [Self; 5] = [
        Self::Created,
        Self::Customer,
        Self::ExpiresAt,
        Self::LastCallAt,
        Self::StatusSince,
    ];

    /// The word in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Customer => "customer",
            Self::ExpiresAt => "expires_at",
            Self::LastCallAt => "last_call_at",
            Self::StatusSince => "status_since",
        }
    }

    /// What a connection is sorted by.
    pub fn key_of(self, connection: &Connection) -> SortKey {
        let or_never = |at: Option<Timestamp>| SortKey::Time(at.unwrap_or(Timestamp::from_millis(0)));
        match self {
            Self::Created => SortKey::Time(connection.created_at),
            Self::Customer => SortKey::Text(connection.customer.as_str().to_owned()),
            Self::ExpiresAt => SortKey::Time(connection.ends.expires),
            Self::LastCallAt => or_never(connection.last.call_at),
            Self::StatusSince => or_never(match connection.status {
                ConnectionStatus::Active => None,
                ConnectionStatus::ReconnectRequired { since, .. }
                | ConnectionStatus::Disconnected { since, .. } => Some(since),
            }),
        }
    }
}

/// Where a connection stands in an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SortKey {
    /// By a time.
    Time(Timestamp),
    /// By a text.
    Text(String),
}

/// How many connections of an app do like this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionCount {
    /// Which app.
    pub app: AppName,
    /// How they do; `None` for those that were disconnected.
    pub health: Option<Health>,
    /// How many.
    pub count: u64,
}

/// Which connections are due for a refresh that nobody waits for.
#[derive(Debug, Clone)]
pub struct DueQuery {
    /// The time now.
    pub now: Timestamp,
    /// Per app: those used since then; `None` for all of them.
    pub apps: Vec<(AppName, Option<Timestamp>)>,
    /// At most so many.
    pub limit: u32,
    /// How far their next attempt is pushed on by this very statement, so that no other process claims them too.
    pub push: Duration,
}

/// What a connection's use left behind since it was last told; merged, the later time wins.
#[derive(Debug, Clone)]
pub struct Usage {
    /// Which connection.
    pub connection: ConnectionId,
    /// Its app.
    pub app: AppName,
    /// What was seen.
    pub last: LastSeen,
    /// What was counted.
    pub tally: Tally,
}

/// What was counted in an hour, or in a minute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tallied {
    /// When that began.
    pub at: Timestamp,
    /// What was counted.
    pub tally: Tally,
}

/// What changed, as the change feed tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A connection's version or status.
    Connection {
        /// Which.
        id: ConnectionId,
        /// Its version now.
        version: Version,
    },
    /// An app's health or rotation.
    App(AppName),
    /// An API key was made or revoked.
    Keys,
}

/// What is known about an app beyond its configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppState {
    /// The provider refused this set of client credentials.
    pub rejected: Option<CredentialsRejected>,
    /// The app's token endpoint fails, for no reason of a connection.
    pub endpoint: Option<Breaker>,
    /// The provider was seen to rotate although it was not expected to.
    pub single_use_since: Option<Timestamp>,
    /// The fingerprint of the client secret that worked last.
    pub secret_that_worked: Option<String>,
}

/// What a store tells of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulse {
    /// Its clock, where it is the common timeline of a fleet; `None` where the machine's own is.
    pub now: Option<Timestamp>,
    /// Another one after all that may have cost the store commits which it had confirmed: failover, a restored backup. What is
    /// at hand is then compared with what the store holds.
    pub epoch: String,
}

/// A refusal of an app's credentials. It counts only while the configured credentials are the refused ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialsRejected {
    /// The provider's error code.
    pub code: String,
    /// Since when.
    pub since: Timestamp,
    /// Of client id and secrets.
    pub credentials_fingerprint: String,
}

/// An API key as stored: its hash is kept, never the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Its id, for listing and revoking.
    pub id: String,
    /// A name for people.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// On what.
    pub limits: Limits,
    /// The lane its calls take, where it is fixed.
    pub lane: Option<String>,
    /// How long its calls may wait for budget, in seconds.
    pub max_wait: Option<u32>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// A guarded write that means to run: its place in the ledger, by connection and key.
#[derive(Debug, Clone)]
pub struct WriteReservation {
    /// Whose call it is.
    pub connection: ConnectionId,
    /// What it is known by: a keyed fingerprint of the caller's key, or of the request itself.
    pub key: String,
    /// A keyed fingerprint of the request.
    pub request: String,
    /// Who reserves it: a value of this one try, which nobody else ever has.
    pub owner: String,
    /// Until when it must have left.
    pub deadline: Timestamp,
    /// Until when its outcome is kept. A write that is under way counts until its deadline, also past this.
    pub keep_until: Timestamp,
}

/// A place in the ledger that somebody holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteTicket {
    /// Whose call it is.
    pub connection: ConnectionId,
    /// What it is known by.
    pub key: String,
    /// Who reserved it.
    pub owner: String,
}

/// What came of reserving a write.
#[derive(Debug)]
pub enum Reserved {
    /// It may run.
    Yours(WriteTicket),
    /// It left, and nobody knows what became of it. Whoever finds out settles it with this ticket.
    Unknown(WriteTicket),
    /// There is something else under its key, which says what to do; never [`Meeting::Free`]. With [`Meeting::Done`] the answer.
    Met(Meeting, Option<StoredAnswer>),
}

/// The answer to a guarded write, as it is kept. Sealed at rest.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredAnswer {
    /// The status.
    pub status: u16,
    /// The headers that say something about the content.
    pub headers: Vec<(String, String)>,
    /// `None`: it was over the limit, or was dropped to make room; status and headers are kept.
    pub body: Option<Vec<u8>>,
}

impl std::fmt::Debug for StoredAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredAnswer")
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

/// How a guarded write ended.
#[derive(Debug, Clone)]
pub enum WriteEnd {
    /// It was not carried out: its place is free again.
    NotApplied,
    /// It was answered.
    Done(StoredAnswer),
    /// Nobody knows.
    Unknown,
}

/// Which budget of calls, by what it is counted by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum BudgetName {
    /// An app's calls to an account, or to a connection where the account is not known.
    Calls {
        /// The app.
        app: AppName,
        /// The account, or the connection's id.
        account: String,
    },
    /// All apps' searches in an account.
    Searches {
        /// The account.
        account: String,
    },
}

impl BudgetName {
    /// Those that a connection's calls are counted by: the app's calls to its account, and searches there.
    pub fn of_connection(connection: &Connection) -> (Self, Self) {
        let account = match &connection.account {
            Some(account) => account.id.as_str(),
            None => connection.id.as_str(),
        };
        let calls = Self::Calls {
            app: connection.app.clone(),
            account: account.to_owned(),
        };
        let searches = Self::Searches {
            account: account.to_owned(),
        };
        (calls, searches)
    }
}

/// A customer's way through the provider's consent, as begun by a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectSession {
    /// Its id, the last part of its link.
    pub id: String,
    /// The app to be connected.
    pub app: AppName,
    /// For this customer.
    pub customer: Customer,
    /// The connection to be made or reconnected, where the caller named it.
    pub connection: Option<ConnectionId>,
    /// Narrower than the app's; empty for the app's own.
    pub scopes: Vec<String>,
    /// Where the browser goes afterwards.
    pub return_url: Option<String>,
    /// Until when it may be used.
    pub expires_at: Timestamp,
    /// What came of it.
    pub outcome: SessionOutcome,
}

/// What came of a connect session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionOutcome {
    /// Nothing yet.
    Pending,
    /// A connection.
    Connected(ConnectionId),
    /// Nothing, and why.
    Failed {
        /// One word.
        code: String,
        /// One sentence.
        detail: String,
    },
}

/// One authorization request on its way: what its `state` stands for. Single use.
#[derive(Debug, Clone)]
pub struct Authorization {
    /// What it is looked up by: SHA-256 of the state and of the cookie that the browser must bring back with it.
    pub state_hash: [u8; 32],
    /// The session it belongs to; `None` for reconnect links and installs from a marketplace.
    pub session: Option<String>,
    /// The app to be connected.
    pub app: AppName,
    /// For this customer.
    pub customer: Customer,
    /// The connection to be made or reconnected.
    pub connection: Option<ConnectionId>,
    /// What was asked for.
    pub scopes: Vec<String>,
    /// Where the browser goes afterwards.
    pub return_url: Option<String>,
    /// RFC 7636, where it is used.
    pub code_verifier: Option<CodeVerifier>,
    /// Until when it may come back.
    pub expires_at: Timestamp,
}

/// An event as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// Grows with time.
    pub id: i64,
    /// When it was recorded.
    pub at: Timestamp,
    /// Whose; `None` for an event of an app.
    pub connection: Option<ConnectionId>,
    /// Of which app.
    pub app: AppName,
    /// [`evergrant_domain::event::EventKind`] as a word.
    pub kind: String,
    /// Why.
    pub detail: String,
    /// What stood around it.
    pub circumstances: Circumstances,
    /// Who wrote it: host and process id.
    pub process: Option<String>,
    /// The version that stood before it.
    pub version_before: Option<Version>,
    /// The version that stood after it.
    pub version: Option<Version>,
    /// The keyed fingerprint of the refresh token that stood after it.
    pub fingerprint: Option<String>,
}

/// Which events to read: AND between kinds, OR within one; an empty kind asks for nothing.
#[derive(Debug, Clone)]
pub struct EventQuery {
    /// Of these connections.
    pub connections: Vec<ConnectionId>,
    /// Of these customers' connections.
    pub customers: Vec<Customer>,
    /// Of these apps.
    pub apps: Vec<AppName>,
    /// Of one of these kinds, by their words.
    pub kinds: Vec<String>,
    /// In one of these requests.
    pub request_ids: Vec<String>,
    /// With one of these correlation ids of the provider.
    pub provider_correlation_ids: Vec<String>,
    /// Recorded then or later.
    pub since: Option<Timestamp>,
    /// Within these limits. Events of an app are beyond those that name customers or connections.
    pub limits: Limits,
    /// In which order, and from where on.
    pub order: EventOrder,
    /// At most so many.
    pub limit: u32,
}

impl EventQuery {
    /// Every event in this order.
    pub fn all(order: EventOrder, limit: u32) -> Self {
        Self {
            connections: vec![],
            customers: vec![],
            apps: vec![],
            kinds: vec![],
            request_ids: vec![],
            provider_correlation_ids: vec![],
            since: None,
            limits: Limits::default(),
            order,
            limit,
        }
    }
}

/// In which order events are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventOrder {
    /// Backwards, from the newest on or before this id.
    NewestFirst {
        /// Only ids below this.
        before: Option<i64>,
    },
    /// As they came: a feed. Whatever is committed later has a higher id than everything that was read.
    OldestFirst {
        /// Only ids above this.
        after: i64,
    },
}

/// What was read of the events. There may be fewer than asked for, or none, and more behind them: one look goes through a bounded
/// number of events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventPage {
    /// The events.
    pub events: Vec<StoredEvent>,
    /// From where to read on: as `after`, or as `before`. `None` where nothing older is left; a feed never ends.
    pub read_on: Option<i64>,
}

/// How often a connection's refreshes ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RefreshCount {
    /// With a token set that was stored.
    pub done: u32,
    /// With none.
    pub failed: u32,
}

/// How much history is kept.
#[derive(Debug, Clone)]
pub struct EventTrim {
    /// Forget what was recorded before this.
    pub before: Timestamp,
    /// Keep so many of each connection's newest.
    pub keep_per_connection: u32,
    /// Count those of the connections behind this one: `read_on` of the bite before, `None` from the beginning.
    pub from: Option<ConnectionId>,
}

/// A notice to be sent to one receiver.
#[derive(Debug, Clone)]
pub struct NewDelivery {
    /// Its id, which grows with time; the same on each try.
    pub id: String,
    /// A fingerprint of where to.
    pub endpoint: String,
    /// Where to, for people.
    pub url: String,
    /// The event that it tells of: one delivery for each receiver and event, whoever makes it.
    pub event: i64,
    /// [`evergrant_domain::webhook::Notice`] as a word.
    pub kind: String,
    /// Of which app.
    pub app: AppName,
    /// Of whom, where it is of a connection.
    pub customer: Option<Customer>,
    /// Of which connection, where it is of one.
    pub connection: Option<ConnectionId>,
    /// When it happened.
    pub at: Timestamp,
    /// What is told: JSON, without secrets.
    pub data: String,
}

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryState {
    /// It is to be sent.
    Pending,
    /// It was taken.
    Delivered,
    /// It was not, and is not tried again by itself.
    Dead,
}

impl DeliveryState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Pending, Self::Delivered, Self::Dead];

    /// The word in the store, the API and the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
        }
    }

    /// Reads that word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

/// A delivery as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Its id.
    pub id: String,
    /// A fingerprint of where to.
    pub endpoint: String,
    /// Where to, for people.
    pub url: String,
    /// The event that it tells of.
    pub event: i64,
    /// What kind of notice.
    pub kind: String,
    /// Of which app.
    pub app: AppName,
    /// Of whom.
    pub customer: Option<Customer>,
    /// Of which connection.
    pub connection: Option<ConnectionId>,
    /// When it happened.
    pub at: Timestamp,
    /// What is told: JSON.
    pub data: String,
    /// Where it stands.
    pub state: DeliveryState,
    /// How often it was tried, the try that it was claimed for included.
    pub tries: u32,
    /// When the first try was due.
    pub began_at: Timestamp,
    /// When the next one is.
    pub next_try_at: Option<Timestamp>,
    /// When it was tried last.
    pub last_try_at: Option<Timestamp>,
    /// What was answered last.
    pub last_status: Option<u16>,
    /// Why it was not taken.
    pub last_error: Option<String>,
    /// When it was taken or given up.
    pub finished_at: Option<Timestamp>,
}

/// One try at a delivery, and what came of it.
#[derive(Debug, Clone)]
pub struct TriedDelivery {
    /// Which.
    pub id: String,
    /// The try, by its number: one that was claimed anew meanwhile is not ended by an older one.
    pub tries: u32,
    /// The status that was answered, where one was.
    pub status: Option<u16>,
    /// Why it was not taken.
    pub error: Option<String>,
}

/// What follows from a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TryEnd {
    /// It was taken.
    Delivered,
    /// It is tried again.
    Again {
        /// When.
        at: Timestamp,
    },
    /// It is not.
    Dead,
}

/// Which deliveries to list, newest first: AND between kinds, OR within one; an empty kind asks for nothing.
#[derive(Debug, Clone, Default)]
pub struct DeliveryFilter {
    /// That one alone.
    pub id: Option<String>,
    /// In these states.
    pub states: Vec<DeliveryState>,
    /// Of these connections.
    pub connections: Vec<ConnectionId>,
    /// Within these limits. Notices of an app are beyond those that name customers or connections.
    pub limits: Limits,
    /// At most so many.
    pub limit: u32,
    /// Before this one, the last of the page before.
    pub before: Option<String>,
}

/// Deliveries that were given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeadLetters {
    /// How many.
    pub count: u64,
    /// When the first of them was given up; `None` where there is none.
    pub oldest_at: Option<Timestamp>,
}

/// Which deliveries are forgotten, and which are given up.
#[derive(Debug, Clone)]
pub struct DeliverySweep {
    /// Forget those that were taken before this.
    pub delivered_before: Timestamp,
    /// Forget those that were given up before this.
    pub dead_before: Timestamp,
    /// Give up those that were due before this and are for none of these receivers: nobody sends them.
    pub unclaimed_before: Timestamp,
    /// The receivers that there are.
    pub endpoints: Vec<String>,
    /// What is said of those that are given up.
    pub unclaimed: String,
}

/// How far an app's journal was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journal {
    /// The provider's name for the place; `None` before the first page.
    pub position: Option<String>,
    /// Whether the provider was asked to write it.
    pub is_subscribed: bool,
}

/// An uninstall, as a journal tells it.
#[derive(Debug, Clone)]
pub struct Uninstall {
    /// Of which connection's app.
    pub connection: ConnectionId,
    /// When it happened.
    pub at: Timestamp,
    /// What the history says, where it counts.
    pub event: Event,
}

/// What a page of a journal comes to.
#[derive(Debug, Clone)]
pub struct JournalStep {
    /// Where it was read from.
    pub from: Option<String>,
    /// From where to read on.
    pub to: Option<String>,
    /// What it tells: [`Store::mark_uninstalled`].
    pub uninstalls: Vec<Uninstall>,
    /// What the history says of what does not count.
    pub notes: Vec<(ConnectionId, Event)>,
}

/// What the engine asks of persistence.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Makes a connection.
    async fn create(&self, new: NewConnection, now: Timestamp) -> Result<Connected, StoreError>;

    /// Restores a connection with a new grant. Unconditional: version and fence grow, lease, intent, trouble and cooldown
    /// are void, the status is `active`. An answer of the old grant then finds another version.
    async fn reconnect(
        &self,
        id: &ConnectionId,
        account: Option<Account>,
        tokens: TokenSet,
        event: Event,
        now: Timestamp,
    ) -> Result<Connected, StoreError>;

    /// Makes a connection from a record, or gives the one that the record means its token set, where the stored one ends before:
    /// [`Connection::against_record`] decides, in the same transaction. Meant is the connection of its id; where it names none, the
    /// live one of its app, customer and account, else the one that holds its refresh token. A replaced one moves on as by
    /// [`Store::reconnect`], with the event `replaced`; its labels stay.
    async fn replace_older(
        &self,
        new: NewConnection,
        says: RecordSays,
        replaced: Event,
        now: Timestamp,
    ) -> Result<Replaced, StoreError>;

    /// Makes a connection, or restores the one of this id as [`Store::reconnect`] does, in the place of whichever other live
    /// connection has its app, customer and account. That one ends in the same transaction, with the event `retired`, and names
    /// its successor; its grant is not revoked, for the successor has that account, too.
    ///
    /// [`Connected::IdTaken`] where the id is of another app or customer, or pinned to another account.
    async fn supersede(
        &self,
        new: NewConnection,
        retired: Event,
        now: Timestamp,
    ) -> Result<Connected, StoreError>;

    /// The record with its token set.
    async fn held(&self, id: &ConnectionId) -> Result<Option<Held>, StoreError>;

    /// The record alone; opens no secret.
    async fn connection(&self, id: &ConnectionId) -> Result<Option<Connection>, StoreError>;

    /// The live connection of an app, customer and account.
    async fn find(
        &self,
        app: &AppName,
        customer: &Customer,
        account: &str,
    ) -> Result<Option<Connection>, StoreError>;

    /// Lists records.
    async fn list(&self, filter: ConnectionFilter) -> Result<Vec<Connection>, StoreError>;

    /// Changes what the caller may change; `None` leaves a part as it is. A customer that would break the rule of one live
    /// connection per app, customer and account is answered with [`Connected::AccountTaken`].
    async fn patch(
        &self,
        id: &ConnectionId,
        customer: Option<Customer>,
        labels: Option<Vec<(String, String)>>,
        now: Timestamp,
    ) -> Result<Connected, StoreError>;

    /// Takes the lease on redeeming `version`, adds one attempt to its intent, and reads the connection under it.
    async fn take_lease(
        &self,
        id: &ConnectionId,
        version: Version,
        lasts: Duration,
        on: LeaseOn,
        now: Timestamp,
    ) -> Result<LeaseAnswer, StoreError>;

    /// Lets `lease` last at least this long from now, where it is still held: `false` where it is not. Changes nothing else.
    async fn renew_lease(&self, lease: &Lease, lasts: Duration) -> Result<bool, StoreError>;

    /// Whether `lease` is still held on the version that it was taken for, and lasts at least this long, by the store's clock.
    async fn lease_lasts(&self, lease: &Lease, at_least: Duration) -> Result<bool, StoreError>;

    /// Stores what a redemption brought, frees the lease where it is still this one, and settles intent and trouble.
    ///
    /// `WHERE version = n AND status <> 'disconnected'`. The status moves as
    /// [`evergrant_domain::ConnectionStatus::after_token_set_landed`] says; the set is unproven where it says so, and after
    /// more than one attempt.
    async fn land(&self, lease: &Lease, refreshed: Refreshed, now: Timestamp) -> Result<Landed, StoreError>;

    /// Puts back a token set that the store has lost: it shows a version below one that this process holds (a failover to a
    /// replica that lacks the last commits, a restored backup). PROTOCOL rule 18.
    ///
    /// `WHERE version = shown AND status <> 'disconnected'`; the version becomes `version`, the fence grows, lease, intent,
    /// trouble and cooldown are void, the status is `active`. `None` where that does not hold any more: re-read.
    async fn restore(
        &self,
        id: &ConnectionId,
        shown: Version,
        version: Version,
        tokens: TokenSet,
        event: Event,
        now: Timestamp,
    ) -> Result<Option<Held>, StoreError>;

    /// Records a redemption that brought nothing and frees the lease where it is still this one. The trouble is kept only
    /// where the version still stands.
    async fn give_up(
        &self,
        lease: &Lease,
        presented: Presented,
        trouble: Option<RefreshTrouble>,
        event: Option<Event>,
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// The verdict, in one statement: `WHERE version = n AND fence = mine` on a connection that is `active`, or whose outcome
    /// was lost ([`LeaseOn::LostOutcome`]), under the lease that `lease` is. `false` means that it did not hold any more:
    /// re-read. Frees the lease.
    async fn condemn(
        &self,
        lease: &Lease,
        reason: ReconnectReason,
        event: Event,
        now: Timestamp,
    ) -> Result<bool, StoreError>;

    /// The app was uninstalled in the account `at` this time, by the provider's word: the connection needs reconnecting, unless its
    /// customer gave consent at that time or later. One statement: `WHERE connected_at < at` on a connection that is `active`, or
    /// whose outcome was lost. Whoever redeems meanwhile finds it so; its answer is stored and revives nothing
    /// ([`evergrant_domain::ConnectionStatus::after_token_set_landed`]). `false`: it did not hold, and nothing was changed.
    async fn mark_uninstalled(
        &self,
        id: &ConnectionId,
        at: Timestamp,
        event: Event,
        now: Timestamp,
    ) -> Result<bool, StoreError>;

    /// Begins the cooldown of a redemption because of a 401, unless one holds.
    async fn begin_cooldown(
        &self,
        id: &ConnectionId,
        version: Version,
        now: Timestamp,
    ) -> Result<CooldownAnswer, StoreError>;

    /// Whether a forced refresh may be made now; at most one in `every`. One that may be made is in the history, with `event`.
    async fn claim_forced_refresh(
        &self,
        id: &ConnectionId,
        every: Duration,
        event: Event,
        now: Timestamp,
    ) -> Result<bool, StoreError>;

    /// Disconnects: status, version + 1, fence + 1, tokens erased, the refresh token moved to the revocation queue, all in
    /// one transaction. Idempotent. `None` where there is no such connection.
    async fn disconnect(
        &self,
        id: &ConnectionId,
        revoke: Revoke,
        superseded_by: Option<ConnectionId>,
        event: Event,
        now: Timestamp,
    ) -> Result<Option<(Connection, RevocationState)>, StoreError>;

    /// Erases a disconnected connection with its history. A revocation in the queue stays there until it is done.
    async fn purge(&self, id: &ConnectionId) -> Result<(), StoreError>;

    /// Claims revocations that are due, pushing their next try on by `push`.
    async fn claim_revocations(
        &self,
        limit: u32,
        push: Duration,
        now: Timestamp,
    ) -> Result<Vec<Revocation>, StoreError>;

    /// Puts a refresh token into the queue: an answer that came for a disconnected connection.
    async fn queue_revocation(
        &self,
        connection: &ConnectionId,
        app: &AppName,
        refresh_token: RefreshToken,
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// Ends a revocation; its token is erased. The event tells of it, once, in the history of its connection.
    async fn finish_revocation(
        &self,
        id: i64,
        state: RevocationState,
        event: Option<Event>,
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// Claims connections that are due and pushes their next attempt on, in the statement that reads them.
    async fn claim_due(&self, query: DueQuery) -> Result<Vec<ConnectionId>, StoreError>;

    /// Notes what connections were used for. Times are merged and may be told again; what was counted is added to the hour and
    /// the minute of `now`, so after an error that leaves the outcome unknown it must not be told again.
    async fn note_usage(&self, usage: Vec<Usage>, now: Timestamp) -> Result<(), StoreError>;

    /// What was counted of a connection in the hours since then, oldest first.
    async fn tallies(&self, id: &ConnectionId, since: Timestamp) -> Result<Vec<Tallied>, StoreError>;

    /// What was counted of an app in the minutes since then, oldest first.
    async fn app_tallies(&self, app: &AppName, since: Timestamp) -> Result<Vec<Tallied>, StoreError>;

    /// Appends an event that goes with no change of the record.
    async fn note_event(&self, id: &ConnectionId, event: Event, now: Timestamp) -> Result<(), StoreError>;

    /// Appends an event of an app that goes with no change of its state.
    async fn note_app_event(&self, app: &AppName, event: Event, now: Timestamp) -> Result<(), StoreError>;

    /// Reads events.
    async fn find_events(&self, query: EventQuery) -> Result<EventPage, StoreError>;

    /// From where the events are read on to miss nothing that is committed later.
    async fn event_head(&self) -> Result<i64, StoreError>;

    /// A connection's newest events, newest first.
    async fn events(&self, id: &ConnectionId, limit: u32) -> Result<Vec<StoredEvent>, StoreError> {
        let query = EventQuery {
            connections: vec![id.clone()],
            ..EventQuery::all(EventOrder::NewestFirst { before: None }, limit)
        };
        Ok(self.find_events(query).await?.events)
    }

    /// Counts a connection's refreshes since then by its events.
    async fn count_refreshes(&self, id: &ConnectionId, since: Timestamp) -> Result<RefreshCount, StoreError>;

    /// Forgets old history, one bite of it. Says behind which connection the next bite begins; `None` where this one came to the end.
    async fn trim_events(&self, trim: EventTrim) -> Result<Option<ConnectionId>, StoreError>;

    /// Counts the connections within these limits by app and health.
    async fn count_connections(
        &self,
        limits: Limits,
        quiet_time: Duration,
        now: Timestamp,
    ) -> Result<Vec<ConnectionCount>, StoreError>;

    /// From where the change feed is read on to miss nothing that is committed later.
    async fn change_head(&self) -> Result<i64, StoreError>;

    /// What changed after `after`, and from where to read on. Whatever is committed later comes after that; a change may be
    /// told more than once.
    async fn changes(&self, after: i64) -> Result<(Vec<Change>, i64), StoreError>;

    /// What is known about an app.
    async fn app_state(&self, app: &AppName) -> Result<AppState, StoreError>;

    /// The provider refused these credentials; keeps the first refusal's time. The event is written where that is news.
    async fn reject_app(
        &self,
        app: &AppName,
        rejected: CredentialsRejected,
        event: Event,
    ) -> Result<(), StoreError>;

    /// The provider accepted the credentials, with this secret. The event is written where they were refused before.
    async fn accept_app(
        &self,
        app: &AppName,
        secret_fingerprint: String,
        event: Event,
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// Whether this connection's redemption is the one that looks whether a refused app, or an endpoint at rest, does again:
    /// one in `every` in the whole fleet, each time for another connection than the last where that can be: the last one is
    /// let through again only where no other asked for twice as long.
    async fn claim_probe(
        &self,
        app: &AppName,
        connection: &ConnectionId,
        every: Duration,
        now: Timestamp,
    ) -> Result<bool, StoreError>;

    /// The app's token endpoint did not do what it was asked, for no reason of a connection: counted over the whole fleet by
    /// [`Breaker::next`].
    async fn endpoint_failed(
        &self,
        app: &AppName,
        code: String,
        retry_after: Option<Duration>,
        jitter: Jitter,
        now: Timestamp,
    ) -> Result<Breaker, StoreError>;

    /// The app's token endpoint works: nothing counts against it any more.
    async fn endpoint_works(&self, app: &AppName) -> Result<(), StoreError>;

    /// Takes up to `wanted` exchanges with the app's token endpoint out of this second's `per_second`, for this process to use
    /// before the second is over. The whole fleet shares them by the store's clock; `now` is that where it has none of its own.
    async fn claim_exchanges(
        &self,
        app: &AppName,
        wanted: u32,
        per_second: u32,
        now: Timestamp,
    ) -> Result<u32, StoreError>;

    /// Takes the place of a guarded write, where what is there lets it ([`evergrant_domain::write_ledger::meet`]): one statement
    /// decides, whoever else asks at the same moment.
    async fn reserve_write(
        &self,
        reservation: WriteReservation,
        now: Timestamp,
    ) -> Result<Reserved, StoreError>;

    /// Puts on record that a reserved write leaves now, with a new deadline for its answer. `false`: the place was taken over, and
    /// it must not leave. Committed when this returns; after an error it must not leave either.
    async fn write_leaves(
        &self,
        ticket: &WriteTicket,
        deadline: Timestamp,
        now: Timestamp,
    ) -> Result<bool, StoreError>;

    /// Gives whoever has a place until this deadline: it is still at work. `false`: it is over, judged, or somebody else's.
    async fn hold_write(&self, ticket: &WriteTicket, deadline: Timestamp) -> Result<bool, StoreError>;

    /// Puts a write's end on record. It counts where the place is still the ticket's, also when it was judged unknown meanwhile;
    /// `false` where it is not. What is done stays done: of those who hold the ticket of an unknown write the first one counts.
    async fn end_write(
        &self,
        ticket: &WriteTicket,
        end: WriteEnd,
        now: Timestamp,
    ) -> Result<bool, StoreError>;

    /// Takes calls out of a budget that the whole fleet shares: [`evergrant_domain::call_budget::Budget::claim`], in one
    /// transaction. Seconds are counted by the store's clock; `now` is that where it has none of its own. After an error that leaves
    /// the outcome unknown the claim may have been made: what it would have granted lapses, what it gave back was given back.
    async fn claim_calls(
        &self,
        budget: &BudgetName,
        claim: Claim,
        now: Timestamp,
    ) -> Result<Grant, StoreError>;

    /// How a budget stands, without taking of it: [`evergrant_domain::call_budget::Budget::standing`], by the clock that claims go
    /// by. `None` where nobody has claimed of it lately, or nobody has said a limit.
    async fn budget_standing(
        &self,
        budget: &BudgetName,
        now: Timestamp,
    ) -> Result<Option<Standing>, StoreError>;

    /// The provider was seen to rotate. `true` for the first to say so.
    async fn switch_to_single_use(&self, app: &AppName, now: Timestamp) -> Result<bool, StoreError>;

    /// Keeps an API key by its hash.
    async fn create_key(&self, key: ApiKey, hash: [u8; 32]) -> Result<(), StoreError>;

    /// Every API key, by creation.
    async fn keys(&self) -> Result<Vec<ApiKey>, StoreError>;

    /// The key with this hash.
    async fn key_by_hash(&self, hash: [u8; 32]) -> Result<Option<ApiKey>, StoreError>;

    /// Revokes a key; `false` where there is no such key.
    async fn revoke_key(&self, id: &str, now: Timestamp) -> Result<bool, StoreError>;

    /// Keeps a connect session.
    async fn create_session(&self, session: ConnectSession) -> Result<(), StoreError>;

    /// A connect session.
    async fn session(&self, id: &str) -> Result<Option<ConnectSession>, StoreError>;

    /// Says what came of a session. A connected one stays connected.
    async fn finish_session(&self, id: &str, outcome: SessionOutcome) -> Result<(), StoreError>;

    /// Keeps an authorization request until its state comes back.
    async fn begin_authorization(&self, authorization: Authorization) -> Result<(), StoreError>;

    /// Spends a state: the first to ask gets it, nobody else ever again. An expired one is spent, too, and not returned.
    async fn spend_state(
        &self,
        state_hash: [u8; 32],
        now: Timestamp,
    ) -> Result<Option<Authorization>, StoreError>;

    /// How far the events were read for making deliveries of them; `None` before the first time.
    async fn webhook_position(&self) -> Result<Option<i64>, StoreError>;

    /// Keeps deliveries and moves on from `from` to `to`, both or neither. `false`: another process has moved on meanwhile, and nothing
    /// was kept.
    async fn add_deliveries(
        &self,
        from: Option<i64>,
        to: i64,
        deliveries: Vec<NewDelivery>,
        now: Timestamp,
    ) -> Result<bool, StoreError>;

    /// Claims deliveries to a receiver that are due: one more try of each is counted, and its next one pushed on by `push`.
    async fn claim_deliveries(
        &self,
        endpoint: &str,
        limit: u32,
        push: Duration,
        now: Timestamp,
    ) -> Result<Vec<Delivery>, StoreError>;

    /// Ends a try. `false` where the delivery was claimed, ended or asked for anew meanwhile.
    async fn end_try(&self, tried: TriedDelivery, end: TryEnd, now: Timestamp) -> Result<bool, StoreError>;

    /// Lists deliveries, newest first.
    async fn deliveries(&self, filter: DeliveryFilter) -> Result<Vec<Delivery>, StoreError>;

    /// The deliveries within `limits` that were given up.
    async fn dead_letters(&self, limits: Limits) -> Result<DeadLetters, StoreError>;

    /// Has a delivery sent again, from its first try on. `None` where there is no such delivery.
    async fn resend_delivery(&self, id: &str, now: Timestamp) -> Result<Option<Delivery>, StoreError>;

    /// Forgets and gives up deliveries.
    async fn sweep_deliveries(&self, sweep: DeliverySweep, now: Timestamp) -> Result<(), StoreError>;

    /// Takes an app's journal for this process alone for so long. `None` where another one has it.
    async fn claim_journal(
        &self,
        app: &AppName,
        lasts: Duration,
        now: Timestamp,
    ) -> Result<Option<Journal>, StoreError>;

    /// The provider was asked to write the app's journal.
    async fn journal_subscribed(&self, app: &AppName, now: Timestamp) -> Result<(), StoreError>;

    /// Does what a page of an app's journal comes to and moves on, both or neither. The connections that need reconnecting because of
    /// it; `None` where another process has moved on meanwhile.
    async fn advance_journal(
        &self,
        app: &AppName,
        step: JournalStep,
        now: Timestamp,
    ) -> Result<Option<Vec<ConnectionId>>, StoreError>;

    /// Forgets sessions, authorizations, feed entries and what was counted of apps that ended before `before`, budgets that nobody
    /// claimed from since, and what was counted of connections a day before that.
    async fn sweep(&self, before: Timestamp) -> Result<(), StoreError>;

    /// Forgets guarded writes whose time is over and that are not under way. Where the bodies of all stored answers take more than
    /// `bodies_max` bytes, sealed, drops the oldest ones: status and headers stay.
    async fn sweep_writes(&self, now: Timestamp, bodies_max: u64) -> Result<(), StoreError>;

    /// What the store tells of itself: its clock and its epoch.
    async fn pulse(&self) -> Result<Pulse, StoreError>;

    /// Returns once the change feed may have something new: a hint to read it sooner, and no more. Never returns where nobody
    /// hints. What came between two calls is told by the second one at once; one at a time may wait.
    async fn hint(&self);

    /// Whether the store answers.
    async fn ping(&self) -> Result<(), StoreError>;
}
