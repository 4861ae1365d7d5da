//! What a claim needs: a store, another one as another process would open it, and things to put into them.

use std::time::Duration;

use evergrant_domain::connection::{Account, RefreshTrouble};
use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::refresh_policy::Ends;
use evergrant_domain::{
    AccessToken, AccountId, AppName, ConnectionId, Customer, Kind, RefreshToken, Timestamp, TokenSet, Version,
};
use evergrant_store::Store;
use evergrant_store::contract::{
    Connected, Held, Landed, Lease, LeaseAnswer, LeaseOn, NewConnection, Refreshed, Revocation,
};
use futures_util::future::join_all;

/// One empty database.
pub(crate) trait Fixture: Sized {
    /// The store on it.
    type Store: Store;

    /// A new one.
    fn fresh() -> Self;

    /// Opens it, each time as one more process would.
    async fn open(&self) -> Self::Store;
}

pub(crate) const LEASE: Duration = Duration::from_secs(60);
/// A lease that has run out as soon as it is taken.
pub(crate) const NO_TIME: Duration = Duration::ZERO;

/// Lets these stores open what they need to do much at once: else the first is done before the last has begun.
pub(crate) async fn warm(stores: &[impl Store]) {
    let asked = (0..40).map(|number| stores[number % stores.len()].ping());
    assert!(join_all(asked).await.iter().all(Result::is_ok));
}

pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(seconds * 1000)
}

pub(crate) fn id(text: &str) -> ConnectionId {
    text.parse().unwrap()
}

pub(crate) fn app(text: &str) -> AppName {
    text.parse().unwrap()
}

pub(crate) fn customer(text: &str) -> Customer {
    text.parse().unwrap()
}

pub(crate) fn account(text: &str) -> Account {
    Account {
        id: AccountId::parse(text).unwrap(),
        domain: Some(format!("{text}.example")),
        user: None,
    }
}

pub(crate) fn event() -> Event {
    Event::new(EventKind::Refreshed, "because a test says so")
}

/// A token set that is due from second 100 on.
pub(crate) fn tokens(name: &str) -> TokenSet {
    TokenSet {
        access_token: AccessToken::new(format!("access-{name}")),
        refresh_token: Some(RefreshToken::new(format!("refresh-{name}"))),
        token_type: "bearer".into(),
        scopes: vec!["oauth".into(), "crm.read".into()],
        issued_at: at(0),
        ends: Ends {
            soft: at(100),
            hard: at(200),
            expires: at(205),
        },
        unproven: false,
    }
}

/// A connection of the app `crm` and a customer and a grant of its own, without an account.
pub(crate) fn new(name: &str) -> NewConnection {
    NewConnection {
        id: id(name),
        app: app("crm"),
        customer: customer(name),
        kind: Kind::OAuth,
        account: None,
        tokens: tokens(name),
        labels: vec![],
        event: Event::new(EventKind::Connected, "a customer gave consent"),
    }
}

pub(crate) fn refreshed(name: &str) -> Refreshed {
    Refreshed {
        tokens: tokens(name),
        mismatch: None,
        account: None,
        event: event(),
    }
}

pub(crate) fn trouble() -> RefreshTrouble {
    RefreshTrouble {
        failed_at: at(10),
        code: "503".into(),
        failures: 2,
        next_attempt_at: at(500),
    }
}

pub(crate) async fn create(store: &impl Store, new: NewConnection) -> Held {
    stored(store.create(new, at(0)).await.unwrap())
}

pub(crate) fn stored(connected: Connected) -> Held {
    match connected {
        Connected::Stored(held) => *held,
        other => panic!("not stored: {other:?}"),
    }
}

pub(crate) async fn held(store: &impl Store, name: &str) -> Held {
    store.held(&id(name)).await.unwrap().expect("it was created")
}

/// The name that [`tokens`] was called with, of the set that the store holds.
pub(crate) async fn token_name(store: &impl Store, name: &str) -> String {
    let tokens = held(store, name).await.tokens.expect("it is not disconnected");
    let refresh_token = tokens.refresh_token.expect("these tests have one");
    let name = refresh_token
        .expose()
        .strip_prefix("refresh-")
        .unwrap()
        .to_owned();
    assert_eq!(
        tokens.access_token.expose(),
        format!("access-{name}"),
        "a set is whole"
    );
    name
}

pub(crate) async fn lease(store: &impl Store, name: &str, version: i64, lasts: Duration) -> Lease {
    match take(store, name, version, lasts).await {
        LeaseAnswer::Taken { lease, .. } => lease,
        other => panic!("no lease: {other:?}"),
    }
}

pub(crate) async fn take(store: &impl Store, name: &str, version: i64, lasts: Duration) -> LeaseAnswer {
    store
        .take_lease(&id(name), Version::new(version), lasts, LeaseOn::Active, at(1))
        .await
        .unwrap()
}

pub(crate) async fn land(store: &impl Store, lease: &Lease, name: &str) -> Landed {
    store.land(lease, refreshed(name), at(2)).await.unwrap()
}

/// Every revocation that waits, by its token.
pub(crate) async fn queued(store: &impl Store) -> Vec<String> {
    claim_revocations(store)
        .await
        .iter()
        .map(|revocation| revocation.refresh_token.expose().to_owned())
        .collect()
}

pub(crate) async fn claim_revocations(store: &impl Store) -> Vec<Revocation> {
    store
        .claim_revocations(10, Duration::ZERO, at(1000))
        .await
        .unwrap()
}
