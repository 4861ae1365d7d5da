use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::refresh_policy::Ends;
use evergrant_domain::{AccessToken, ConnectionId, Kind, RefreshToken, TokenSet, Version};

use super::*;
use crate::contract::{Landed, Lease, LeaseAnswer, LeaseOn, NewConnection, Refreshed, Store};
use crate::vault::VaultKey;

const LEASE: Duration = Duration::from_secs(60);

struct Simulation {
    database: SimulatedDatabase,
    vault: Arc<Vault>,
    millis: Arc<AtomicI64>,
}

impl Simulation {
    fn new(like: Like) -> Self {
        let millis = Arc::new(AtomicI64::new(0));
        let clock = |clock: &Arc<AtomicI64>| -> Millis {
            let clock = Arc::clone(clock);
            Arc::new(move || clock.load(Ordering::Relaxed))
        };
        let clocks = Clocks {
            boot: clock(&millis),
            wall: clock(&millis),
        };
        Self {
            database: SimulatedDatabase::new(clocks, like).unwrap(),
            vault: Arc::new(Vault::new(VaultKey::generate())),
            millis,
        }
    }

    fn process(&self, name: &str) -> (SqliteStore, SimulatedHolder) {
        let holder = self.database.holder(name);
        let store = SqliteStore::simulated(&self.database, Arc::clone(&self.vault), &holder).unwrap();
        (store, holder)
    }
}

/// The answer of the first poll; there is no second one.
fn at_once<T>(work: impl Future<Output = T>) -> T {
    match pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("it waits for something"),
    }
}

fn id() -> ConnectionId {
    "c1".parse().unwrap()
}

fn tokens(name: &str) -> TokenSet {
    let end = Timestamp::from_millis(100);
    TokenSet {
        access_token: AccessToken::new(name),
        refresh_token: Some(RefreshToken::new(name)),
        token_type: "bearer".into(),
        scopes: vec![],
        issued_at: Timestamp::from_millis(0),
        ends: Ends {
            soft: end,
            hard: end,
            expires: end,
        },
        unproven: false,
    }
}

fn event() -> Event {
    Event::new(EventKind::Connected, "because a test says so")
}

fn create(store: &SqliteStore) {
    let new = NewConnection {
        id: id(),
        app: "crm".parse().unwrap(),
        customer: "acme".parse().unwrap(),
        kind: Kind::OAuth,
        account: None,
        tokens: tokens("first"),
        labels: vec![],
        event: event(),
    };
    at_once(store.create(new, Timestamp::from_millis(0))).unwrap();
}

fn take(store: &SqliteStore) -> LeaseAnswer {
    at_once(store.take_lease(
        &id(),
        Version::FIRST,
        LEASE,
        LeaseOn::Active,
        Timestamp::from_millis(0),
    ))
    .unwrap()
}

fn land(store: &SqliteStore, lease: &Lease) -> Landed {
    let refreshed = Refreshed {
        tokens: tokens("second"),
        mismatch: None,
        account: None,
        event: event(),
    };
    at_once(store.land(lease, refreshed, Timestamp::from_millis(1))).unwrap()
}

fn version(store: &SqliteStore) -> i64 {
    let connection = at_once(store.connection(&id())).unwrap().unwrap();
    connection.version.number()
}

#[test]
fn everything_is_done_at_the_first_poll() {
    let simulation = Simulation::new(Like::Sqlite);
    let (store, _) = simulation.process("a");
    create(&store);
    let LeaseAnswer::Taken { lease, .. } = take(&store) else {
        panic!("nobody has it");
    };
    assert!(matches!(land(&store, &lease), Landed::Stored(_)));
    assert_eq!(version(&store), 2);
}

#[test]
fn a_dead_process_writes_nothing_and_its_lease_is_free_where_deaths_are_seen() {
    let simulation = Simulation::new(Like::Sqlite);
    let ((dying, holder), (living, _)) = (simulation.process("a"), simulation.process("b"));
    create(&living);
    assert!(matches!(take(&dying), LeaseAnswer::Taken { .. }));
    assert!(matches!(take(&living), LeaseAnswer::Busy));
    holder.die();
    assert!(at_once(dying.ping()).is_err());
    assert!(at_once(dying.pulse()).is_err());
    assert!(matches!(
        take(&living),
        LeaseAnswer::Taken { took_over: true, .. }
    ));
}

#[test]
fn a_dead_process_keeps_its_lease_to_its_end_where_deaths_are_not_seen() {
    let simulation = Simulation::new(Like::Postgres);
    let ((dying, _), (living, _)) = (simulation.process("a"), simulation.process("b"));
    create(&living);
    assert!(matches!(take(&dying), LeaseAnswer::Taken { .. }));
    drop(dying);
    simulation.millis.store(59_999, Ordering::Relaxed);
    assert!(matches!(take(&living), LeaseAnswer::Busy));
    simulation.millis.store(60_000, Ordering::Relaxed);
    assert!(matches!(take(&living), LeaseAnswer::Taken { .. }));
}

#[test]
fn a_replica_that_takes_over_lacks_what_came_after_it_and_tells_another_epoch() {
    let simulation = Simulation::new(Like::Postgres);
    let (store, _) = simulation.process("a");
    create(&store);
    let replica = simulation.database.snapshot();
    let LeaseAnswer::Taken { lease, .. } = take(&store) else {
        panic!("nobody has it");
    };
    land(&store, &lease);
    simulation.millis.store(5, Ordering::Relaxed);
    let before = at_once(store.pulse()).unwrap();
    assert_eq!(
        before.now,
        Some(Timestamp::from_millis(5)),
        "the database's clock is everybody's"
    );
    simulation.database.restore_snapshot(&replica);
    assert_eq!(version(&store), 1);
    assert_ne!(at_once(store.pulse()).unwrap().epoch, before.epoch);
    assert!(
        matches!(take(&store), LeaseAnswer::Taken { took_over: false, .. }),
        "the lease is lost, too"
    );
}

#[test]
fn the_feed_is_as_old_as_the_simulation_says() {
    let simulation = Simulation::new(Like::Sqlite);
    let (store, _) = simulation.process("a");
    simulation.millis.store(10_000, Ordering::Relaxed);
    create(&store);
    at_once(store.sweep(Timestamp::from_millis(10_000))).unwrap();
    assert_eq!(at_once(store.changes(0)).unwrap().0.len(), 1);
    at_once(store.sweep(Timestamp::from_millis(10_001))).unwrap();
    assert_eq!(at_once(store.changes(0)).unwrap().0.len(), 0);
}
