//! An event is there exactly where its change is, whatever breaks between: a database that refuses one of the two, and processes that
//! are killed at any moment. On both databases.

#![expect(clippy::unwrap_used, reason = "a claim that cannot be made ends its test")]

mod broken;
mod killed;
#[path = "../sets/mod.rs"]
mod sets;

use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::{ConnectionId, Kind, Version};
use evergrant_store::contract::{Lease, LeaseAnswer, LeaseOn, NewConnection, Refreshed};
use evergrant_store::{PostgresStore, SqliteStore, Store, Vault, VaultKey};

use self::sets::{NOW, tokens};

fn vault(key: &str) -> Arc<Vault> {
    Arc::new(Vault::new(VaultKey::from_base64(key).unwrap()))
}

async fn sqlite(path: &str, key: &str) -> SqliteStore {
    SqliteStore::open(path.as_ref(), vault(key)).await.unwrap()
}

async fn postgres(url: &str, key: &str) -> PostgresStore {
    PostgresStore::open(url, vault(key)).await.unwrap()
}

fn id(name: &str) -> ConnectionId {
    name.parse().unwrap()
}

fn event(kind: EventKind) -> Event {
    Event::new(kind, "because a test says so")
}

fn new(name: &str) -> NewConnection {
    NewConnection {
        id: id(name),
        app: "crm".parse().unwrap(),
        customer: name.parse().unwrap(),
        kind: Kind::OAuth,
        account: None,
        tokens: tokens(name),
        labels: vec![],
        event: event(EventKind::Connected),
    }
}

fn refreshed(name: &str) -> Refreshed {
    Refreshed {
        tokens: tokens(name),
        mismatch: None,
        account: None,
        event: event(EventKind::Refreshed),
    }
}

async fn lease(store: &impl Store, name: &str, version: i64) -> Lease {
    let lasts = Duration::from_secs(3600);
    let answer = store
        .take_lease(&id(name), Version::new(version), lasts, LeaseOn::Active, NOW)
        .await
        .unwrap();
    match answer {
        LeaseAnswer::Taken { lease, .. } => lease,
        other => panic!("no lease: {other:?}"),
    }
}

/// What the history tells of a connection, the oldest first: what happened, and which version stood after it.
async fn told(store: &impl Store, name: &str) -> Vec<(String, i64)> {
    let events = store.events(&id(name), 1_000).await.unwrap();
    events
        .into_iter()
        .rev()
        .map(|event| (event.kind, event.version.unwrap().number()))
        .collect()
}

async fn version(store: &impl Store, name: &str) -> Option<i64> {
    let connection = store.connection(&id(name)).await.unwrap();
    connection.map(|connection| connection.version.number())
}
