//! What holds in every mode, and in a fleet of all of them. PROTOCOL.md rules 3 and 6.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use evergrant_domain::Version;
use evergrant_store::Store as _;
use evergrant_store::contract::LeaseAnswer;
use evergrant_store::coordination::Turn;
use futures_util::future::join_all;
use tokio::task::block_in_place;

use crate::database::{create, id, new, refreshed};
use crate::fleet::{Fleet, SHORT};

pub(crate) async fn however_many_call_one_redeems(fleet: &Fleet) {
    let processes = join_all((0..3).map(|number| fleet.process(number))).await;
    let redeeming = AtomicUsize::new(0);
    for version in 1..=4 {
        let version = Version::new(version);
        let callers = processes.iter().flat_map(|process| [process; 4]);
        let redeemed = join_all(callers.map(|process| process.call(version, &redeeming))).await;
        assert_eq!(redeemed.iter().filter(|one| **one).count(), 1, "{version:?}");
    }
    assert_eq!(processes[0].version().await, Version::new(5));
}

pub(crate) async fn a_turn_that_is_given_back_is_the_next_ones(fleet: &Fleet) {
    let (one, other) = (fleet.process(0).await, Arc::new(fleet.process(1).await));
    let first = one.turn_at_last().await;
    let waiting = tokio::spawn({
        let other = Arc::clone(&other);
        async move { other.turn_at_last().await }
    });
    // Wherever it is dropped: no runtime is needed for it.
    std::thread::spawn(move || drop(first)).join().unwrap();
    let second = waiting.await.unwrap();
    drop(second);
    let third = one.turn_at_last().await;
    drop(third);
}

pub(crate) async fn whoever_waited_in_vain_finds_what_moved(fleet: &Fleet) {
    let (one, other) = (fleet.process(0).await, fleet.process(1).await);
    let guard = one.turn_at_last().await;
    let LeaseAnswer::Taken { lease, .. } = one.take(Version::FIRST).await else {
        panic!("nobody else wants it");
    };
    // A turn, where one comes in this mode, is no lease.
    let turn = other.turn(SHORT).await;
    let asked = other.take(Version::FIRST).await;
    assert!(matches!(asked, LeaseAnswer::Busy), "{turn:?} {asked:?}");
    drop(turn);
    let landed = one
        .store
        .land(&lease, refreshed("newer"), crate::database::NOW)
        .await;
    landed.unwrap();
    let turn = other.turn(SHORT).await;
    assert_ne!(other.version().await, Version::FIRST);
    let asked = other.take(Version::FIRST).await;
    assert!(matches!(asked, LeaseAnswer::Moved(_)), "{turn:?} {asked:?}");
    drop(guard);
}

pub(crate) async fn a_killed_holders_turn_is_free_and_its_attempt_stays(fleet: &Fleet) {
    let (one, mut other) = (fleet.process(0).await, fleet.other_process(0));
    block_in_place(|| assert_eq!(other.say("take"), "taken"));
    let turn = one.turn(SHORT).await;
    assert!(
        matches!(one.take(Version::FIRST).await, LeaseAnswer::Busy),
        "{turn:?}"
    );
    drop(turn);
    block_in_place(|| other.kill());
    let guard = one.turn_at_last().await;
    let asked = one.take(Version::FIRST).await;
    assert!(
        matches!(asked, LeaseAnswer::Busy),
        "the store is the judge: {asked:?}"
    );
    block_in_place(|| fleet.end_leases());
    for attempts in 1..=2 {
        let LeaseAnswer::Taken {
            earlier, took_over, ..
        } = one.take(Version::FIRST).await
        else {
            panic!("it has run out");
        };
        assert!(took_over);
        let earlier = earlier.unwrap();
        assert_eq!(
            (earlier.attempts, earlier.first_at),
            (attempts, crate::database::NOW)
        );
        block_in_place(|| fleet.end_leases());
    }
    drop(guard);
}

pub(crate) async fn turns_at_different_connections_do_not_wait_for_each_other(fleet: &Fleet) {
    let process = fleet.process(0).await;
    let mut guards = Vec::new();
    for number in 0..10 {
        let name = format!("{}-{number}", fleet.name);
        create(&process.store, new(&name)).await;
        match process.turns.turn(&id(&name), crate::fleet::LONG).await {
            Turn::Mine(guard) => guards.push(guard),
            Turn::NotYet => panic!("nobody else wants it"),
        }
    }
    assert_eq!(guards.len(), 10);
}
