//! Transactions that meet.

use std::time::Duration;

use evergrant_domain::Version;
use evergrant_domain::write_ledger::Meeting;
use evergrant_store::Store;
use evergrant_store::contract::{
    Change, Connected, CooldownAnswer, DueQuery, EventOrder, EventQuery, Landed, NewConnection, Reserved,
    RevocationState, Revoke,
};
use futures_util::future::join_all;

use crate::database::*;

#[tokio::test(flavor = "multi_thread")]
async fn of_two_connections_made_at_once_one_is_told_what_the_other_one_took() {
    let database = Database::new();
    let (a, b) = (database.open().await, database.open().await);
    let told = async |one: NewConnection, other: NewConnection| {
        let (first, second) = tokio::join!(a.create(one, NOW), b.create(other, NOW));
        match (first.unwrap(), second.unwrap()) {
            (Connected::Stored(_), told) | (told, Connected::Stored(_)) => told,
            neither => panic!("one of them comes first: {neither:?}"),
        }
    };
    for round in 0..20 {
        let with_account = |name: &str| NewConnection {
            customer: "acme".parse().unwrap(),
            account: Some(account(&round.to_string())),
            ..new(&format!("{name}-{round}"))
        };
        let taken = told(with_account("a"), with_account("b")).await;
        assert!(matches!(taken, Connected::AccountTaken { .. }), "{taken:?}");

        let with_grant = |name: &str| NewConnection {
            tokens: tokens(&format!("grant-{round}")),
            ..new(&format!("{name}-{round}"))
        };
        let taken = told(with_grant("c"), with_grant("d")).await;
        assert!(matches!(taken, Connected::GrantTaken { .. }), "{taken:?}");

        let name = format!("e-{round}");
        let other = NewConnection {
            tokens: tokens(&format!("other-{round}")),
            ..new(&name)
        };
        let taken = told(new(&name), other).await;
        assert!(matches!(taken, Connected::IdTaken), "{taken:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_leave_an_account_at_once_the_last_ones_grant_is_revoked() {
    let database = Database::new();
    let (a, b) = (database.open().await, database.open().await);
    for round in 0..20 {
        let names = [format!("a-{round}"), format!("b-{round}")];
        for name in &names {
            let new = NewConnection {
                account: Some(account(&round.to_string())),
                ..new(name)
            };
            create(&a, new).await;
        }
        let (one, other) = (id(&names[0]), id(&names[1]));
        let leave = async |store: &evergrant_store::PostgresStore, id| {
            let left = store.disconnect(id, Revoke::Auto, None, event(), NOW).await;
            left.unwrap().expect("it was created").1
        };
        let states = tokio::join!(leave(&a, &one), leave(&b, &other));
        assert!(
            matches!(
                states,
                (RevocationState::Shared, RevocationState::Pending)
                    | (RevocationState::Pending, RevocationState::Shared)
            ),
            "{states:?}"
        );
    }
}

#[tokio::test]
async fn of_two_401s_at_once_one_begins_the_cooldown() {
    let database = Database::new();
    let (a, b) = (database.open().await, database.open().await);
    create(&a, new("c1")).await;
    let id = id("c1");
    let (one, other) = database
        .meet(
            "c1",
            a.begin_cooldown(&id, Version::FIRST, NOW),
            b.begin_cooldown(&id, Version::FIRST, NOW),
        )
        .await;
    let answers = (one.unwrap(), other.unwrap());
    assert!(
        matches!(
            answers,
            (CooldownAnswer::Began(_), CooldownAnswer::Holds(_))
                | (CooldownAnswer::Holds(_), CooldownAnswer::Began(_))
        ),
        "{answers:?}"
    );
}

// PROTOCOL.md, "Disconnect": whichever comes first, the newest refresh token is revoked and none is left.
#[tokio::test]
async fn an_answer_and_a_disconnect_that_meet_leave_no_grant_behind() {
    let database = Database::new();
    let (a, b) = (database.open().await, database.open().await);
    for round in 0..10 {
        let (name, newest) = (format!("c{round}"), format!("newest-{round}"));
        create(&a, new(&name)).await;
        let lease = lease(&a, &name).await;
        let id = id(&name);
        let (landed, left) = database
            .meet(
                &name,
                a.land(&lease, refreshed(&newest), NOW),
                b.disconnect(&id, Revoke::Always, None, event(), NOW),
            )
            .await;
        let landed = landed.unwrap();
        assert!(
            matches!(landed, Landed::Stored(_) | Landed::Disconnected),
            "{landed:?}"
        );
        assert!(left.unwrap().is_some());
        let held = a.held(&id).await.unwrap().expect("it was created");
        assert_eq!(held.connection.status.as_str(), "disconnected");
        assert!(held.tokens.is_none());
        let queued = a.claim_revocations(10, LEASE, NOW).await.unwrap();
        let newest = tokens(&newest).refresh_token.unwrap();
        assert!(
            queued
                .iter()
                .any(|revocation| revocation.refresh_token.expose() == newest.expose()),
            "{landed:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_look_for_work_at_once_share_it() {
    let database = Database::new();
    let (a, b) = (database.open().await, database.open().await);
    for number in 0..40 {
        create(&a, new(&format!("c{number}"))).await;
    }
    let query = DueQuery {
        now: NOW,
        apps: vec![("crm".parse().unwrap(), None)],
        limit: 10,
        push: Duration::from_secs(60),
    };
    let claims = [&a, &b, &a, &b, &a, &b].map(|store| store.claim_due(query.clone()));
    let mut claimed: Vec<String> = join_all(claims)
        .await
        .into_iter()
        .flat_map(Result::unwrap)
        .map(|id| id.as_str().to_owned())
        .collect();
    let all = claimed.len();
    claimed.sort();
    claimed.dedup();
    assert_eq!(claimed.len(), all, "nothing was claimed twice");
    assert_eq!(all, 40, "what one passes over another one claims");
}

#[tokio::test]
async fn a_change_that_is_committed_late_is_told_all_the_same() {
    let database = Database::new();
    let store = database.open().await;
    let start = store.change_head().await.unwrap();
    // It draws its number first and commits last.
    let slow = database.session().await;
    slow.batch_execute("BEGIN; INSERT INTO changes (kind) VALUES ('keys')")
        .await
        .unwrap();
    create(&store, new("c1")).await;
    let (changes, read_to) = store.changes(start).await.unwrap();
    assert!(
        matches!(&changes[..], [Change::Connection { .. }]),
        "what is there is told at once: {changes:?}"
    );
    slow.batch_execute("COMMIT").await.unwrap();
    let (changes, read_to) = store.changes(read_to).await.unwrap();
    assert!(changes.contains(&Change::Keys), "{changes:?}");
    assert_eq!(store.changes(read_to).await.unwrap(), (vec![], read_to));
}

// The stream, the feed and the outbox of webhooks go on from where such a page ends.
#[tokio::test]
async fn an_event_that_is_committed_late_is_read_all_the_same() {
    let database = Database::new();
    let store = database.open().await;
    let start = store.event_head().await.unwrap();
    let read = async |after| {
        let asked = EventQuery::all(EventOrder::OldestFirst { after }, 100);
        let page = store.find_events(asked).await.unwrap();
        let told: Vec<_> = page.events.into_iter().map(|event| event.detail).collect();
        (told, page.read_on.unwrap_or(after))
    };
    // It draws its number first and commits last.
    let slow = database.session().await;
    slow.batch_execute(
        "BEGIN; INSERT INTO events (at, app, kind, detail) VALUES (0, 'crm', 'credentials_accepted', 'the late one')",
    )
    .await
    .unwrap();
    create(&store, new("c1")).await;
    let (told, read_to) = read(start).await;
    assert!(told.is_empty(), "what comes behind it waits for it: {told:?}");
    slow.batch_execute("COMMIT").await.unwrap();
    let (told, read_to) = read(read_to).await;
    assert_eq!(told, ["the late one", "because a test says so"]);
    assert_eq!(read(read_to).await, (vec![], read_to));
    // One that is rolled back holds nobody up.
    slow.batch_execute(
        "BEGIN; INSERT INTO events (at, app, kind, detail) VALUES (0, 'crm', 'revoked', 'never'); ROLLBACK",
    )
    .await
    .unwrap();
    create(&store, new("c2")).await;
    assert_eq!(read(read_to).await.0, ["because a test says so"]);
}

#[tokio::test]
async fn the_feed_waits_for_no_other_programs_transaction() {
    let database = Database::new();
    let store = database.open().await;
    let other = database.session().await;
    other
        .batch_execute("BEGIN; CREATE TABLE theirs (); SELECT pg_advisory_xact_lock(1)")
        .await
        .unwrap();
    create(&store, new("c1")).await;
    let (changes, read_to) = store.changes(0).await.unwrap();
    assert_eq!(changes.len(), 1);
    assert_eq!(store.changes(read_to).await.unwrap(), (vec![], read_to));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_reaches_a_reader_whatever_order_they_are_committed_in() {
    let database = Database::new();
    let (a, reader) = (database.open().await, database.open().await);
    let writing = join_all((0..200).map(|number| {
        let a = &a;
        async move { create(a, new(&format!("c{number}"))).await }
    }));
    let mut told = std::collections::HashSet::new();
    let mut read_to = 0;
    let mut read = async || {
        let (changes, head) = reader.changes(read_to).await.unwrap();
        assert!(head >= read_to, "it never goes back");
        read_to = head;
        for change in changes {
            if let Change::Connection { id, .. } = change {
                told.insert(id.as_str().to_owned());
            }
        }
    };
    tokio::pin!(writing);
    while tokio::time::timeout(Duration::from_millis(1), &mut writing)
        .await
        .is_err()
    {
        read().await;
    }
    read().await;
    assert_eq!(told.len(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_without_end_wait_for_a_connection_and_none_is_lost() {
    let database = Database::new();
    let store = database.open().await;
    create(&store, new("c1")).await;
    let id = id("c1");
    let asked = (0..300).map(|_| store.held(&id));
    assert!(
        join_all(asked)
            .await
            .iter()
            .all(|held| matches!(held, Ok(Some(_))))
    );
}

// The owner is late, and somebody takes its place over as it leaves.
#[tokio::test]
async fn a_place_is_taken_over_or_its_write_leaves_and_never_both() {
    let database = Database::new();
    let (a, b) = (database.open().await, database.open().await);
    let watcher = database.session().await;
    let late = NOW.after(Duration::from_secs(10));
    let mut left = 0;
    for round in 0..10 {
        let key = format!("k{round}");
        let ticket = reserve(&a, &key, "late").await;
        // Who comes second begins once the first one waits.
        let second = async || {
            while database.waiting(&watcher).await == 0 {
                tokio::task::yield_now().await;
            }
        };
        let leaving = async {
            if round % 2 == 1 {
                second().await;
            }
            a.write_leaves(&ticket, late.after(LEASE), late).await
        };
        let taking = async {
            if round % 2 == 0 {
                second().await;
            }
            b.reserve_write(reservation(&key, "heir", late), late).await
        };
        let row = format!("writes WHERE key = '{key}'");
        let (leaves, taken) = database.meet_at(&row, leaving, taking).await;
        match (leaves.unwrap(), taken.unwrap()) {
            (true, Reserved::Met(Meeting::InProgress { .. }, None)) => left += 1,
            (false, Reserved::Yours(_)) => {}
            both => panic!("one of them: {both:?}"),
        }
    }
    assert_eq!(left, 5, "each comes first at times");
}

#[tokio::test]
async fn a_late_answer_counts_though_it_is_judged_unknown_at_that_moment() {
    let database = Database::new();
    let (a, b) = (database.open().await, database.open().await);
    let late = NOW.after(Duration::from_secs(10));
    for round in 0..10 {
        let key = format!("k{round}");
        let ticket = reserve(&a, &key, "a").await;
        assert!(a.write_leaves(&ticket, NOW, NOW).await.unwrap());
        let (ended, met) = database
            .meet_at(
                &format!("writes WHERE key = '{key}'"),
                a.end_write(&ticket, answered(), late),
                b.reserve_write(reservation(&key, "b", late), late),
            )
            .await;
        assert!(ended.unwrap());
        let met = met.unwrap();
        assert!(
            matches!(met, Reserved::Unknown(_) | Reserved::Met(Meeting::Done, Some(_))),
            "{met:?}"
        );
        let after = b.reserve_write(reservation(&key, "c", late), late).await;
        assert!(
            matches!(after, Ok(Reserved::Met(Meeting::Done, Some(_)))),
            "{after:?}"
        );
    }
}

// Two that add up the same bodies would both drop what is too much.
#[tokio::test]
async fn one_process_at_a_time_makes_room() {
    let database = Database::new();
    let store = database.open().await;
    let ticket = reserve(&store, "k1", "a").await;
    assert!(store.end_write(&ticket, answered(), NOW).await.unwrap());
    let other = database.session().await;
    other
        .batch_execute("SELECT pg_advisory_lock(17750, 2)")
        .await
        .unwrap();
    let bodies = || database.sql("SELECT count(body) FROM writes");
    store.sweep_writes(NOW, 0).await.unwrap();
    assert_eq!(bodies(), "1");
    other
        .batch_execute("SELECT pg_advisory_unlock(17750, 2)")
        .await
        .unwrap();
    store.sweep_writes(NOW, 0).await.unwrap();
    assert_eq!(bodies(), "0");
}

#[tokio::test]
async fn more_than_is_swept_at_once_is_swept_in_turns() {
    let database = Database::new();
    let store = database.open().await;
    let rows = "INSERT INTO writes (connection, key, request, owner, state, keep_until, changed_at, answer, body, body_bytes)
                SELECT 'c1', number, 'r', 'o', 'done', number, number, 'x', 'y', 1 FROM generate_series(1, 12000) AS number";
    database.sql(rows);
    store.sweep_writes(NOW, 500).await.unwrap();
    let kept = "SELECT count(*) || ' ' || count(body) FROM writes";
    assert_eq!(database.sql(kept), "12000 500");
    let oldest = "SELECT min(changed_at) FROM writes WHERE body IS NOT NULL";
    assert_eq!(database.sql(oldest), "11501");
    let later = NOW.after(Duration::from_millis(11_900));
    store.sweep_writes(later, 500).await.unwrap();
    assert_eq!(database.sql(kept), "100 100");
}
