//! What `row_lock` promises besides: order, and a server that frees what nobody holds any more.

use std::sync::{Arc, Mutex};

use evergrant_domain::Version;
use evergrant_store::ByRowLock;
use evergrant_store::Store as _;
use evergrant_store::contract::{LeaseAnswer, Revoke};
use evergrant_store::coordination::{Coordination as _, Turn};
use test_postgres::Server;
use tokio::task::{block_in_place, yield_now};
use tokio::time::timeout;

use crate::database::{Database, NOW, event, id};
use crate::fleet::{Fleet, LONG, Mode, SHORT};

/// Returns once so many sessions wait for a row of `turns`.
async fn until_so_many_wait(watcher: &tokio_postgres::Client, many: i64) {
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                      AND wait_event_type = 'Lock' AND query LIKE 'SELECT FROM turns%'";
    let until = async {
        while watcher.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) < many {
            yield_now().await;
        }
    };
    // By then whoever waited for a turn has given up: no more will come.
    timeout(LONG, until).await.expect("nobody waits any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_wait_are_served_in_the_order_in_which_they_came() {
    let fleet = Fleet::of(&[Mode::RowLock]).await;
    let watcher = fleet.database.session().await;
    let holder = fleet.process(0).await;
    let guard = holder.turn_at_last().await;
    let served = Arc::new(Mutex::new(Vec::new()));
    let mut waiting = Vec::new();
    for number in 0..5 {
        let (process, served) = (fleet.process(number).await, Arc::clone(&served));
        waiting.push(tokio::spawn(async move {
            let guard = process.turn_at_last().await;
            served.lock().unwrap().push(number);
            drop(guard);
        }));
        // It sleeps in the server: nobody asks again and again.
        until_so_many_wait(&watcher, i64::try_from(number).unwrap() + 1).await;
    }
    drop(guard);
    for one in waiting {
        one.await.unwrap();
    }
    assert_eq!(*served.lock().unwrap(), [0, 1, 2, 3, 4]);
}

// RELIABILITY.md §3: a holder of FOR UPDATE that is stopped blocks others for ever, unless its server ends its transaction.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_holder_is_passed_over_and_its_late_answer_judged_by_the_lease() {
    let fleet = Fleet::of(&[Mode::RowLock]).await;
    let (one, mut other) = (fleet.process(0).await, fleet.other_process(0));
    block_in_place(|| {
        assert_eq!(other.say("take"), "taken");
        other.signal("STOP");
    });
    // While it is stopped, here for a second at most, its server ends its turn.
    let guard = one.turn_at_last().await;
    let asked = one.take(Version::FIRST).await;
    assert!(
        matches!(asked, LeaseAnswer::Busy),
        "its lease has not ended: {asked:?}"
    );
    block_in_place(|| fleet.end_leases());
    let LeaseAnswer::Taken { lease, earlier, .. } = one.take(Version::FIRST).await else {
        panic!("it has run out");
    };
    assert_eq!(earlier.unwrap().attempts, 1);
    one.land(&lease).await;
    drop(guard);
    block_in_place(|| {
        other.signal("CONT");
        assert_eq!(other.say("land"), "too late");
    });
    assert_eq!(one.version().await, Version::new(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_outlasts_what_other_transactions_may_take() {
    let database = Database::new();
    let store = database.open().await;
    let impatient = "options=-c%20idle_in_transaction_session_timeout%3D20ms";
    let turns = ByRowLock::open(&format!("{}?{impatient}", database.url())).unwrap();
    let Turn::Mine(guard) = turns.turn(&id("c1"), LONG).await else {
        panic!("nobody else wants it");
    };
    let asked = turns.turn(&id("c1"), SHORT).await;
    assert!(matches!(asked, Turn::NotYet), "{asked:?}");
    drop((guard, store));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_crashes_frees_every_row_and_whoever_waited_goes_on() {
    let server: &'static Server = Box::leak(Box::new(Server::new()));
    let fleet = Fleet::on(server, "redis://127.0.0.1:1", &[Mode::RowLock]).await;
    let watcher = fleet.database.session().await;
    let (one, other) = (fleet.process(0).await, fleet.process(1).await);
    let guard = one.turn_at_last().await;
    assert!(matches!(
        one.take(Version::FIRST).await,
        LeaseAnswer::Taken { .. }
    ));
    let waiting = tokio::spawn(async move {
        let guard = other.turn_at_last().await;
        (other, guard)
    });
    until_so_many_wait(&watcher, 1).await;
    block_in_place(|| {
        server.crash();
        server.start();
    });
    let (other, second) = waiting.await.unwrap();
    let asked = other.take(Version::FIRST).await;
    assert!(
        matches!(asked, LeaseAnswer::Busy),
        "a lease outlives a crash: {asked:?}"
    );
    // What the first one holds is nothing any more, and giving it back harms nobody.
    drop(guard);
    assert!(
        matches!(one.turn(SHORT).await, Turn::NotYet),
        "the second one has it"
    );
    drop(second);
    drop(one.turn_at_last().await);

    block_in_place(|| server.stop());
    assert!(
        matches!(one.turn(SHORT).await, Turn::NotYet),
        "without the lock nobody goes on"
    );
    block_in_place(|| server.start());
    drop(one.turn_at_last().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_finds_no_session_free_waits_for_one() {
    let database = Database::new();
    let store = database.open().await;
    let turns = Arc::new(ByRowLock::open(&database.url()).unwrap());
    let mut guards = Vec::new();
    let last = loop {
        let name = format!("c{}", guards.len());
        match turns.turn(&id(&name), SHORT).await {
            Turn::Mine(guard) => guards.push(guard),
            Turn::NotYet => break name,
        }
    };
    assert!(guards.len() >= 8, "{}", guards.len());
    let waiting = tokio::spawn(async move { turns.turn(&id(&last), LONG).await });
    drop(guards.pop());
    let turn = waiting.await.unwrap();
    assert!(matches!(turn, Turn::Mine(_)), "{turn:?}");
    drop(store);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_stops_waiting_keeps_nobody_waiting() {
    let fleet = Fleet::of(&[Mode::RowLock]).await;
    let watcher = fleet.database.session().await;
    let (one, connection) = (fleet.process(0).await, id(&fleet.name));
    let other = Arc::new(ByRowLock::open(&fleet.database.url()).unwrap());
    let guard = one.turn_at_last().await;
    let leaves = tokio::spawn({
        let (other, connection) = (Arc::clone(&other), connection.clone());
        async move { other.turn(&connection, LONG).await }
    });
    until_so_many_wait(&watcher, 1).await;
    leaves.abort();
    assert!(leaves.await.unwrap_err().is_cancelled());
    drop(guard);
    drop(one.turn_at_last().await);
    let turn = other.turn(&connection, LONG).await;
    assert!(matches!(turn, Turn::Mine(_)), "{turn:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_stands_in_nobodys_way_but_those_who_want_one() {
    let fleet = Fleet::of(&[Mode::RowLock]).await;
    let process = fleet.process(0).await;
    let id = id(&fleet.name);
    let guard = process.turn_at_last().await;
    let store = &process.store;
    let disconnected = store.disconnect(&id, Revoke::Never, None, event(), NOW).await;
    assert!(disconnected.unwrap().is_some());
    store.purge(&id).await.unwrap();
    assert!(store.connection(&id).await.unwrap().is_none());
    drop(guard);
    drop(process.turn_at_last().await);
    store.purge(&id).await.unwrap();
    let left = || block_in_place(|| fleet.database.sql("SELECT count(*) FROM turns"));
    // The turn above may still be on its way back at the first look.
    while left() != "0" {
        store.purge(&id).await.unwrap();
    }
}
