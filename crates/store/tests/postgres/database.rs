//! A database of a test's own, and what is put into it.

#[path = "../sets/mod.rs"]
mod sets;

use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::call_budget::{Claim, Lane, Learnt, Unused};
use evergrant_domain::connection::Account;
use evergrant_domain::event::{Circumstances, Event, EventKind};
use evergrant_domain::{AccountId, ConnectionId, Kind, Timestamp, Version};
use evergrant_store::contract::{
    Connected, Lease, LeaseAnswer, LeaseOn, NewConnection, Refreshed, Reserved, StoredAnswer, WriteEnd,
    WriteReservation, WriteTicket,
};
use evergrant_store::postgres::OpenError;
use evergrant_store::{PostgresStore, Store, Vault, VaultKey};
use test_postgres::Server;

pub(crate) use self::sets::{NOW, tokens};

/// The newest schema that this version knows.
pub(crate) const KNOWN: i64 = 4;
pub(crate) const LEASE: Duration = Duration::from_secs(60);

pub(crate) struct Database<'a> {
    pub(crate) server: &'a Server,
    pub(crate) name: String,
    pub(crate) vault: Arc<Vault>,
}

impl Database<'static> {
    pub(crate) fn new() -> Self {
        Self::on(Server::shared())
    }
}

impl<'a> Database<'a> {
    pub(crate) fn on(server: &'a Server) -> Self {
        Self {
            server,
            name: server.database(),
            vault: Arc::new(Vault::new(VaultKey::generate())),
        }
    }

    pub(crate) fn url(&self) -> String {
        self.server.url(&self.name)
    }

    pub(crate) async fn try_open(&self, url: &str) -> Result<PostgresStore, OpenError> {
        PostgresStore::open(url, Arc::clone(&self.vault)).await
    }

    pub(crate) async fn open(&self) -> PostgresStore {
        self.try_open(&self.url()).await.unwrap()
    }

    /// A store whose locks and statements end after this many milliseconds.
    pub(crate) async fn open_impatient(&self, millis: u32) -> PostgresStore {
        let options = format!("options=-c%20lock_timeout%3D{millis}ms%20-c%20statement_timeout%3D{millis}ms");
        self.try_open(&format!("{}?{options}", self.url())).await.unwrap()
    }

    /// The database as another program sees it.
    pub(crate) fn sql(&self, statements: &str) -> String {
        self.server.sql(&self.name, statements)
    }

    /// Lets two pieces of work on one connection meet: both have begun, and wait for its row, before either goes on.
    pub(crate) async fn meet<A, B>(
        &self,
        name: &str,
        one: impl Future<Output = A>,
        other: impl Future<Output = B>,
    ) -> (A, B) {
        self.meet_at(&format!("connections WHERE id = '{name}'"), one, other)
            .await
    }

    /// The same, at another row.
    pub(crate) async fn meet_at<A, B>(
        &self,
        row: &str,
        one: impl Future<Output = A>,
        other: impl Future<Output = B>,
    ) -> (A, B) {
        let (holder, watcher) = (self.session().await, self.session().await);
        let lock = format!("BEGIN; SELECT * FROM {row} FOR UPDATE");
        holder.batch_execute(&lock).await.unwrap();
        let release = async {
            while self.waiting(&watcher).await < 2 {
                tokio::task::yield_now().await;
            }
            holder.batch_execute("ROLLBACK").await.unwrap();
        };
        let (one, other, ()) = tokio::join!(one, other, release);
        (one, other)
    }

    /// How many sessions wait for a lock.
    pub(crate) async fn waiting(&self, watcher: &tokio_postgres::Client) -> i64 {
        let waiting = "SELECT count(*) FROM pg_stat_activity
                        WHERE datname = current_database() AND wait_event_type = 'Lock'";
        watcher.query_one(waiting, &[]).await.unwrap().get(0)
    }

    /// A session of another program, for transactions that stay open.
    pub(crate) async fn session(&self) -> tokio_postgres::Client {
        let connected = tokio_postgres::connect(&self.url(), tokio_postgres::NoTls).await;
        let (client, connection) = connected.unwrap();
        tokio::spawn(connection);
        client
    }
}

pub(crate) fn id(text: &str) -> ConnectionId {
    text.parse().unwrap()
}

pub(crate) fn event() -> Event {
    Event::new(EventKind::Connected, "because a test says so")
}

pub(crate) fn account(text: &str) -> Account {
    Account {
        id: AccountId::parse(text).unwrap(),
        domain: None,
        user: None,
    }
}

pub(crate) fn new(name: &str) -> NewConnection {
    NewConnection {
        id: id(name),
        app: "crm".parse().unwrap(),
        customer: name.parse().unwrap(),
        kind: Kind::OAuth,
        account: None,
        tokens: tokens(name),
        labels: vec![],
        event: event(),
    }
}

/// What the first presentation of a refresh token has brought.
pub(crate) fn refreshed(name: &str) -> Refreshed {
    Refreshed {
        tokens: tokens(name),
        mismatch: None,
        account: None,
        event: event().during(Circumstances {
            failures_before: Some(0),
            ..Circumstances::default()
        }),
    }
}

/// A reservation of connection `c1`, made at `now`, that has a second to leave in.
pub(crate) fn reservation(key: &str, owner: &str, now: Timestamp) -> WriteReservation {
    WriteReservation {
        connection: id("c1"),
        key: key.into(),
        request: "request".into(),
        owner: owner.into(),
        deadline: now.after(Duration::from_secs(1)),
        keep_until: now.after(Duration::from_secs(3600)),
    }
}

pub(crate) async fn reserve(store: &PostgresStore, key: &str, owner: &str) -> WriteTicket {
    match store.reserve_write(reservation(key, owner, NOW), NOW).await {
        Ok(Reserved::Yours(ticket)) => ticket,
        other => panic!("it is free: {other:?}"),
    }
}

pub(crate) fn answered() -> WriteEnd {
    WriteEnd::Done(StoredAnswer {
        status: 201,
        headers: vec![("x-secret".into(), "canary-in-header".into())],
        body: Some(b"canary-in-body".to_vec()),
    })
}

pub(crate) fn wanted(calls: u32) -> Claim {
    Claim {
        wanted: calls,
        lane: Lane::Sync,
        returned: Unused::default(),
        unasked: 0,
        learnt: Learnt::default(),
    }
}

pub(crate) async fn create(store: &PostgresStore, new: NewConnection) {
    let made = store.create(new, NOW).await.unwrap();
    assert!(matches!(made, Connected::Stored(_)), "{made:?}");
}

pub(crate) async fn take(store: &PostgresStore, name: &str) -> LeaseAnswer {
    store
        .take_lease(&id(name), Version::FIRST, LEASE, LeaseOn::Active, NOW)
        .await
        .unwrap()
}

pub(crate) async fn lease(store: &PostgresStore, name: &str) -> Lease {
    match take(store, name).await {
        LeaseAnswer::Taken { lease, .. } => lease,
        other => panic!("no lease: {other:?}"),
    }
}

pub(crate) async fn version(store: &PostgresStore, name: &str) -> i64 {
    let connection = store.connection(&id(name)).await.unwrap();
    connection.expect("it was created").version.number()
}
