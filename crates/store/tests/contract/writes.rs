//! The write ledger: who may run a guarded write, and what it leaves behind. PROTOCOL.md, "The write ledger".

use std::time::Duration;

use evergrant_domain::Timestamp;
use evergrant_domain::write_ledger::Meeting;
use evergrant_store::Store;
use evergrant_store::contract::{Reserved, Revoke, StoredAnswer, WriteEnd, WriteReservation, WriteTicket};
use futures_util::future::join_all;

use crate::fixture::*;

const KEEP: i64 = 10_000;

/// A reservation of the request `r` by this owner, with a minute to leave in.
fn by(owner: &str, now: i64) -> WriteReservation {
    WriteReservation {
        connection: id("c1"),
        key: "k1".into(),
        request: "r".into(),
        owner: owner.into(),
        deadline: at(now + 60),
        keep_until: at(KEEP),
    }
}

fn answer(body: &[u8]) -> StoredAnswer {
    StoredAnswer {
        status: 201,
        headers: vec![
            ("content-type".into(), "application/json".into()),
            ("x-odd".into(), "\u{e9} \"quoted\"\t".into()),
        ],
        body: Some(body.to_vec()),
    }
}

async fn reserve(store: &impl Store, reservation: WriteReservation, now: i64) -> Reserved {
    store.reserve_write(reservation, at(now)).await.unwrap()
}

async fn take(store: &impl Store, reservation: WriteReservation, now: i64) -> WriteTicket {
    match reserve(store, reservation, now).await {
        Reserved::Yours(ticket) => ticket,
        other => panic!("it is free: {other:?}"),
    }
}

async fn meets(store: &impl Store, reservation: WriteReservation, now: i64) -> Meeting {
    match reserve(store, reservation, now).await {
        Reserved::Yours(ticket) => panic!("it is taken: {ticket:?}"),
        Reserved::Unknown(_) => Meeting::Unknown,
        Reserved::Met(meeting, answer) => {
            assert_eq!(
                answer.is_some(),
                meeting == Meeting::Done,
                "an answer comes where there is one: {meeting:?}"
            );
            meeting
        }
    }
}

async fn replayed(store: &impl Store, reservation: WriteReservation, now: i64) -> StoredAnswer {
    match reserve(store, reservation, now).await {
        Reserved::Met(Meeting::Done, Some(answer)) => answer,
        other => panic!("it is done: {other:?}"),
    }
}

async fn leaves(store: &impl Store, ticket: &WriteTicket, now: i64) -> bool {
    store.write_leaves(ticket, at(now + 60), at(now)).await.unwrap()
}

async fn end(store: &impl Store, ticket: &WriteTicket, end: WriteEnd, now: i64) -> bool {
    store.end_write(ticket, end, at(now)).await.unwrap()
}

/// Many processes' reservations at one moment: those who got the place, and what the others met.
async fn at_once(stores: &[impl Store], owner: &str, now: i64) -> (Vec<WriteTicket>, Vec<Meeting>) {
    warm(stores).await;
    let asked = (0..40).map(|number| {
        let store = &stores[number % stores.len()];
        reserve(store, by(&format!("{owner}-{number}"), now), now)
    });
    let (mut got, mut met) = (Vec::new(), Vec::new());
    for answer in join_all(asked).await {
        match answer {
            Reserved::Yours(ticket) => got.push(ticket),
            Reserved::Unknown(_) => met.push(Meeting::Unknown),
            Reserved::Met(meeting, _) => met.push(meeting),
        }
    }
    (got, met)
}

pub(crate) async fn one_of_many_at_once_gets_a_place(fixture: &impl Fixture) {
    let stores = [fixture.open().await, fixture.open().await, fixture.open().await];
    let (got, met) = at_once(&stores, "a", 0).await;
    assert_eq!(got.len(), 1);
    assert!(
        met.iter().all(|met| matches!(met, Meeting::InProgress { .. })),
        "{met:?}"
    );
    assert!(leaves(&stores[0], &got[0], 1).await);
}

pub(crate) async fn one_of_many_at_once_takes_over_a_place(fixture: &impl Fixture) {
    let stores = [fixture.open().await, fixture.open().await, fixture.open().await];
    let dead = take(&stores[0], by("dead", 0), 0).await;
    let (got, met) = at_once(&stores, "heir", 60).await;
    assert_eq!(got.len(), 1);
    assert!(
        met.iter().all(|met| matches!(met, Meeting::InProgress { .. })),
        "{met:?}"
    );
    assert!(!leaves(&stores[0], &dead, 61).await);
    assert!(leaves(&stores[1], &got[0], 61).await);
}

pub(crate) async fn another_request_under_a_key_is_a_mismatch(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let ticket = take(&store, by("a", 0), 0).await;
    let other = |now| WriteReservation {
        request: "other".into(),
        ..by("b", now)
    };
    assert_eq!(meets(&store, other(1), 1).await, Meeting::Mismatch);
    assert!(leaves(&store, &ticket, 1).await);
    assert_eq!(meets(&store, other(2), 2).await, Meeting::Mismatch);
    assert_eq!(meets(&store, other(500), 500).await, Meeting::Mismatch);
    assert!(end(&store, &ticket, WriteEnd::Done(answer(b"x")), 501).await);
    assert_eq!(meets(&store, other(502), 502).await, Meeting::Mismatch);
}

pub(crate) async fn the_same_key_of_another_connection_is_another_place(fixture: &impl Fixture) {
    let store = fixture.open().await;
    take(&store, by("a", 0), 0).await;
    let elsewhere = WriteReservation {
        connection: id("c2"),
        ..by("b", 0)
    };
    let other = take(&store, elsewhere, 0).await;
    assert!(leaves(&store, &other, 1).await);
    let unheld = WriteTicket {
        owner: "b".into(),
        ..other
    };
    let mixed_up = WriteTicket {
        connection: id("c1"),
        ..unheld
    };
    assert!(!leaves(&store, &mixed_up, 1).await);
}

pub(crate) async fn an_answer_is_replayed_byte_for_byte_by_every_process(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    let every_byte: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let ticket = take(&a, by("a", 0), 0).await;
    assert!(leaves(&a, &ticket, 1).await);
    assert!(end(&a, &ticket, WriteEnd::Done(answer(&every_byte)), 2).await);
    drop(a);
    for now in [3, KEEP - 1] {
        assert!(replayed(&b, by("b", now), now).await == answer(&every_byte));
    }
    assert!(replayed(&fixture.open().await, by("c", 5), 5).await == answer(&every_byte));

    let empty = WriteReservation {
        key: "k2".into(),
        ..by("d", 0)
    };
    let ticket = take(&b, empty.clone(), 0).await;
    assert!(end(&b, &ticket, WriteEnd::Done(answer(b"")), 2).await);
    let found = replayed(&b, empty, 3).await;
    assert_eq!(found.body, Some(vec![]), "empty is not missing");
}

pub(crate) async fn an_answer_without_its_body_keeps_status_and_headers(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let ticket = take(&store, by("a", 0), 0).await;
    assert!(leaves(&store, &ticket, 1).await);
    let too_large = StoredAnswer {
        body: None,
        ..answer(b"")
    };
    assert!(end(&store, &ticket, WriteEnd::Done(too_large.clone()), 2).await);
    assert!(replayed(&store, by("b", 3), 3).await == too_large);
}

pub(crate) async fn what_was_taken_over_cannot_leave_and_its_owner_cannot_end_it(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    let late = take(&a, by("late", 0), 0).await;
    // Another request may take it, too: the first one never left.
    let other = WriteReservation {
        request: "other".into(),
        ..by("heir", 60)
    };
    let heir = take(&b, other.clone(), 60).await;
    assert!(!leaves(&a, &late, 61).await);
    for ending in [
        WriteEnd::NotApplied,
        WriteEnd::Unknown,
        WriteEnd::Done(answer(b"late")),
    ] {
        assert!(!end(&a, &late, ending, 62).await);
    }
    assert!(leaves(&b, &heir, 63).await);
    assert!(!end(&a, &late, WriteEnd::NotApplied, 64).await);
    assert!(end(&b, &heir, WriteEnd::Done(answer(b"heir")), 65).await);
    assert!(!end(&a, &late, WriteEnd::Done(answer(b"late")), 66).await);
    assert!(replayed(&a, other, 67).await == answer(b"heir"));
}

pub(crate) async fn what_leaves_leaves_once(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let ticket = take(&store, by("a", 0), 0).await;
    assert!(leaves(&store, &ticket, 1).await);
    assert!(!leaves(&store, &ticket, 2).await);
    assert!(end(&store, &ticket, WriteEnd::Unknown, 3).await);
    assert!(!leaves(&store, &ticket, 4).await);
    assert!(end(&store, &ticket, WriteEnd::NotApplied, 5).await);
    assert!(!leaves(&store, &ticket, 6).await);
}

pub(crate) async fn what_was_sent_and_is_late_is_unknown_until_its_owner_settles_it(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    let ticket = take(&a, by("a", 0), 0).await;
    assert!(leaves(&a, &ticket, 1).await);
    assert!(matches!(
        meets(&b, by("b", 60), 60).await,
        Meeting::InProgress { .. }
    ));
    assert_eq!(meets(&b, by("b", 61), 61).await, Meeting::Unknown);
    // On record: a clock that goes back does not make it under way again.
    assert_eq!(meets(&b, by("c", 2), 2).await, Meeting::Unknown);
    assert!(end(&a, &ticket, WriteEnd::Done(answer(b"it was done")), 90).await);
    assert!(replayed(&b, by("d", 91), 91).await == answer(b"it was done"));
}

pub(crate) async fn whoever_meets_an_unknown_write_may_settle_it(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    let unknown = async |owner: &str, now| match reserve(&b, by(owner, now), now).await {
        Reserved::Unknown(ticket) => ticket,
        other => panic!("nobody knows: {other:?}"),
    };
    let ticket = take(&a, by("a", 0), 0).await;
    assert!(leaves(&a, &ticket, 1).await);
    // The one who judges it, and whoever comes after.
    let first = unknown("b", 61).await;
    assert_eq!(first, ticket);
    let later = unknown("c", 62).await;
    assert!(end(&b, &later, WriteEnd::Done(answer(b"found")), 63).await);
    assert!(replayed(&a, by("d", 64), 64).await == answer(b"found"));
    // Its owner and the others come too late.
    for ticket in [&ticket, &first] {
        assert!(!end(&a, ticket, WriteEnd::Done(answer(b"late")), 65).await);
        assert!(!end(&a, ticket, WriteEnd::NotApplied, 65).await);
    }
    assert!(replayed(&a, by("e", 66), 66).await == answer(b"found"));
    // Not what is another's by now.
    assert!(matches!(
        reserve(&b, by("f", KEEP), KEEP).await,
        Reserved::Yours(_)
    ));
    assert!(!end(&a, &later, WriteEnd::Done(answer(b"late")), KEEP + 1).await);
}

pub(crate) async fn what_is_done_stays_done(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let ticket = take(&store, by("a", 0), 0).await;
    assert!(leaves(&store, &ticket, 1).await);
    assert!(end(&store, &ticket, WriteEnd::Done(answer(b"first")), 2).await);
    for ending in [
        WriteEnd::NotApplied,
        WriteEnd::Unknown,
        WriteEnd::Done(answer(b"second")),
    ] {
        assert!(!end(&store, &ticket, ending, 3).await);
    }
    assert!(replayed(&store, by("b", 4), 4).await == answer(b"first"));
}

pub(crate) async fn what_was_not_applied_may_run_again(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    // Not even sent, sent, and judged unknown in between.
    let reserved = take(&a, by("a", 0), 0).await;
    assert!(end(&a, &reserved, WriteEnd::NotApplied, 1).await);
    let sent = take(&b, by("b", 2), 2).await;
    assert!(leaves(&b, &sent, 3).await);
    assert!(end(&b, &sent, WriteEnd::NotApplied, 4).await);
    let late = take(&a, by("c", 5), 5).await;
    assert!(leaves(&a, &late, 6).await);
    assert_eq!(meets(&b, by("d", 500), 500).await, Meeting::Unknown);
    assert!(end(&a, &late, WriteEnd::NotApplied, 501).await);
    let last = take(&b, by("e", 502), 502).await;
    assert!(!end(&a, &late, WriteEnd::NotApplied, 503).await);
    assert!(leaves(&b, &last, 504).await);
}

pub(crate) async fn what_is_over_its_time_may_run_again(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    let ends = [
        None,
        Some(WriteEnd::Unknown),
        Some(WriteEnd::Done(answer(b"old"))),
    ];
    for (number, ending) in ends.into_iter().enumerate() {
        let key = |owner: &str, now| WriteReservation {
            key: format!("k{number}"),
            ..by(owner, now)
        };
        let old = take(&a, key("a", 0), 0).await;
        assert!(leaves(&a, &old, 1).await);
        if let Some(ending) = ending {
            assert!(end(&a, &old, ending, 2).await);
        }
        meets(&b, key("b", KEEP - 1), KEEP - 1).await;
        let again = WriteReservation {
            request: "other".into(),
            keep_until: at(2 * KEEP),
            ..key("c", KEEP)
        };
        let new = take(&b, again.clone(), KEEP).await;
        assert!(!end(&a, &old, WriteEnd::Done(answer(b"old")), KEEP).await);
        assert!(leaves(&b, &new, KEEP + 1).await);
        assert!(end(&b, &new, WriteEnd::Done(answer(b"new")), KEEP + 2).await);
        assert!(replayed(&a, again, KEEP + 3).await == answer(b"new"));
    }
}

pub(crate) async fn a_write_that_is_under_way_is_waited_for(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let ticket = take(&store, by("a", 0), 0).await;
    let in_progress = |seconds| Meeting::InProgress {
        retry_after: Duration::from_secs(seconds),
    };
    assert_eq!(meets(&store, by("b", 57), 57).await, in_progress(3));
    assert!(leaves(&store, &ticket, 58).await);
    assert_eq!(meets(&store, by("b", 116), 116).await, in_progress(2));
    assert!(end(&store, &ticket, WriteEnd::Unknown, 117).await);
    assert_eq!(meets(&store, by("b", 118), 118).await, Meeting::Unknown);
}

pub(crate) async fn whoever_is_still_at_work_holds_on_to_its_place(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    let hold = async |ticket: &WriteTicket, until| a.hold_write(ticket, at(until)).await.unwrap();
    let in_progress = |met| matches!(met, Meeting::InProgress { .. });
    let ticket = take(&a, by("a", 0), 0).await;
    assert!(hold(&ticket, 100).await);
    assert!(in_progress(meets(&b, by("b", 99), 99).await));
    assert!(leaves(&a, &ticket, 99).await);
    assert!(hold(&ticket, 300).await);
    assert!(in_progress(meets(&b, by("b", 299), 299).await));
    // What was judged stays judged, and what is over or another's is not held.
    assert_eq!(meets(&b, by("b", 300), 300).await, Meeting::Unknown);
    assert!(!hold(&ticket, 900).await);
    assert_eq!(meets(&b, by("b", 301), 301).await, Meeting::Unknown);
    assert!(end(&a, &ticket, WriteEnd::NotApplied, 302).await);
    assert!(!hold(&ticket, 900).await);
    let late = take(&a, by("late", 303), 303).await;
    let heir = take(&b, by("heir", 363), 363).await;
    assert!(!hold(&late, 900).await);
    assert!(hold(&heir, 900).await);
    assert!(end(&b, &heir, WriteEnd::Done(answer(b"x")), 400).await);
    assert!(!hold(&heir, 900).await);
}

pub(crate) async fn a_sweep_erases_what_is_over_its_time_alone(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let ticket = take(&store, by("a", 0), 0).await;
    assert!(leaves(&store, &ticket, 1).await);
    store.sweep_writes(at(KEEP - 1), u64::MAX).await.unwrap();
    assert!(end(&store, &ticket, WriteEnd::Done(answer(b"x")), 2).await);
    store.sweep_writes(at(KEEP - 1), u64::MAX).await.unwrap();
    assert!(replayed(&store, by("b", 3), 3).await == answer(b"x"));
    // What is under way stays, also past its time.
    let short = |owner: &str| WriteReservation {
        key: "k2".into(),
        keep_until: at(30),
        ..by(owner, 0)
    };
    let ticket = take(&store, short("d"), 0).await;
    store.sweep_writes(at(40), u64::MAX).await.unwrap();
    assert!(leaves(&store, &ticket, 41).await);
    store.sweep_writes(at(100), u64::MAX).await.unwrap();
    assert!(matches!(
        meets(&store, short("e"), 42).await,
        Meeting::InProgress { .. }
    ));
    store.sweep_writes(at(101), u64::MAX).await.unwrap();
    take(&store, short("f"), 43).await;
    // Whose clock is behind finds nothing any more.
    store.sweep_writes(at(KEEP), u64::MAX).await.unwrap();
    take(&store, by("c", 4), 4).await;
}

pub(crate) async fn a_sweep_drops_the_oldest_bodies_and_keeps_what_was_said(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let key = |number: i64| WriteReservation {
        key: format!("k{number}"),
        ..by(&format!("o{number}"), number)
    };
    // Ended in another order than they were reserved in.
    for number in [3, 1, 2, 0] {
        let ticket = take(&store, key(number), number).await;
        assert!(leaves(&store, &ticket, number).await);
        assert!(end(&store, &ticket, WriteEnd::Done(answer(&[7; 10_000])), number + 10).await);
    }
    let bodies = async |now| -> Vec<bool> {
        let mut found = Vec::new();
        for number in 0..4 {
            let answer = replayed(&store, key(number), now).await;
            assert_eq!((answer.status, answer.headers.len()), (201, 2));
            found.push(answer.body.is_some());
        }
        found
    };
    store.sweep_writes(at(20), 41_000).await.unwrap();
    assert_eq!(bodies(21).await, [true; 4], "there is room for all of them");
    store.sweep_writes(at(20), 21_000).await.unwrap();
    assert_eq!(bodies(22).await, [false, false, true, true]);
    store.sweep_writes(at(20), 20_000).await.unwrap();
    assert_eq!(bodies(23).await, [false, false, false, true]);
    store.sweep_writes(at(20), 0).await.unwrap();
    assert_eq!(bodies(24).await, [false; 4]);
}

pub(crate) async fn a_purge_erases_a_connections_writes_and_a_disconnect_does_not(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    create(&store, new("c2")).await;
    let elsewhere = |owner: &str| WriteReservation {
        connection: id("c2"),
        ..by(owner, 0)
    };
    for reservation in [by("a", 0), elsewhere("b")] {
        let ticket = take(&store, reservation, 0).await;
        assert!(end(&store, &ticket, WriteEnd::Done(answer(b"x")), 1).await);
    }
    let still_there = async |reservation| {
        let found = replayed(&store, reservation, 3).await;
        assert!(found == answer(b"x"));
    };
    store.purge(&id("c1")).await.unwrap();
    still_there(by("c", 2)).await;
    let now: Timestamp = at(2);
    store
        .disconnect(&id("c1"), Revoke::Never, None, event(), now)
        .await
        .unwrap();
    still_there(by("d", 3)).await;
    store.purge(&id("c1")).await.unwrap();
    take(&store, by("e", 4), 4).await;
    still_there(elsewhere("f")).await;
}
