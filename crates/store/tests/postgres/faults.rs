//! Servers that stop, answers that get lost, statements that fail.

use std::time::Duration;

use evergrant_domain::Version;
use evergrant_store::contract::{BudgetName, Landed, LeaseAnswer, LeaseOn, Presented, Reserved};
use evergrant_store::{Store, StoreError};
use futures_util::future::join_all;
use test_postgres::Server;

use crate::database::*;
use crate::proxy::{Lost, Proxy};

fn outcome_is_unknown(error: &StoreError) -> bool {
    match error {
        StoreError::Unavailable { outcome_unknown, .. } => *outcome_unknown,
        other => panic!("it may pass: {other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_restarted_is_found_again() {
    let server = Server::new();
    let database = Database::on(&server);
    let store = database.open().await;
    create(&store, new("c1")).await;
    for round in 1..=2 {
        server.stop();
        server.start();
        // With sessions in the pool that are dead and do not know it.
        let lease = store
            .take_lease(&id("c1"), Version::new(round), LEASE, LeaseOn::Active, NOW)
            .await;
        let Ok(LeaseAnswer::Taken { lease, .. }) = lease else {
            panic!("the server is there again: {lease:?}");
        };
        server.stop();
        let error = store.land(&lease, refreshed("late"), NOW).await.unwrap_err();
        assert!(!outcome_is_unknown(&error), "nothing was sent: {error}");
        server.start();
        let landed = store.land(&lease, refreshed("late"), NOW).await;
        assert!(matches!(landed, Ok(Landed::Stored(_))), "{landed:?}");
    }
}

// RELIABILITY.md, check 20, as far as the standby has every commit.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_takes_over_is_found_by_itself() {
    let primary = Server::new();
    let database = Database::on(&primary);
    let standby = primary.standby();
    // The standby first: it is passed over for as long as it takes no writes.
    let url = format!(
        "postgres://evergrant@{},{}/{}",
        standby.host(),
        primary.host(),
        database.name
    );
    let store = database.try_open(&url).await.unwrap();
    create(&store, new("c1")).await;
    let lease = lease(&store, "c1").await;
    primary.crash();
    let error = store.land(&lease, refreshed("two"), NOW).await.unwrap_err();
    assert!(!outcome_is_unknown(&error), "nothing was sent: {error}");
    standby.promote();
    let landed = store.land(&lease, refreshed("two"), NOW).await;
    assert!(matches!(landed, Ok(Landed::Stored(_))), "{landed:?}");
    let head = store.change_head().await.unwrap();
    assert_eq!(store.changes(0).await.unwrap().1, head);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_survives_a_crash_and_what_was_not_is_undone() {
    let server = Server::new();
    let database = Database::on(&server);
    let store = database.open().await;
    create(&store, new("c1")).await;
    let lease = lease(&store, "c1").await;
    // The landing waits for a row, in the middle of its statement, as the server goes.
    let other = database.session().await;
    other
        .batch_execute("BEGIN; SELECT * FROM connections FOR UPDATE")
        .await
        .unwrap();
    let landing = store.land(&lease, refreshed("two"), NOW);
    tokio::pin!(landing);
    let early = tokio::time::timeout(Duration::from_millis(200), &mut landing).await;
    assert!(early.is_err(), "it waits: {early:?}");
    server.crash();
    let error = landing.await.unwrap_err();
    assert!(
        outcome_is_unknown(&error),
        "nobody can say whether it came to its commit: {error}"
    );
    server.start();
    assert_eq!(version(&store, "c1").await, 1);
    assert!(store.lease_lasts(&lease, Duration::ZERO).await.unwrap());
    let landed = store.land(&lease, refreshed("two"), NOW).await;
    assert!(matches!(landed, Ok(Landed::Stored(_))), "{landed:?}");
}

// RELIABILITY.md, checks 15 and 16: the same error, and only a re-read tells.
#[tokio::test]
async fn a_lost_commit_and_a_lost_answer_are_told_as_an_unknown_outcome() {
    let database = Database::new();
    let proxy = Proxy::before(database.server.socket()).await;
    let store = database.try_open(&proxy.url(&database.name)).await.unwrap();
    create(&store, new("c1")).await;
    let c1 = id("c1");
    let reconnect = || store.reconnect(&c1, None, tokens("two"), event(), NOW);
    proxy.lose(Lost::Message, "COMMIT");
    let error = reconnect().await.unwrap_err();
    assert!(outcome_is_unknown(&error), "{error}");
    assert_eq!(version(&store, "c1").await, 1, "it did not reach the server");

    proxy.lose(Lost::Answer, "COMMIT");
    let error = reconnect().await.unwrap_err();
    assert!(outcome_is_unknown(&error), "{error}");
    assert_eq!(version(&store, "c1").await, 2, "the server did it");
}

// What stands alone is asked for again, and the lease that was taken is known by who asked for it.
#[tokio::test]
async fn a_statement_whose_answer_is_lost_is_repeated_and_not_done_twice() {
    let database = Database::new();
    let proxy = Proxy::before(database.server.socket()).await;
    let store = database.try_open(&proxy.url(&database.name)).await.unwrap();
    for (number, lost) in [(1, Lost::Message), (2, Lost::Answer)] {
        let name = format!("c{number}");
        create(&store, new(&name)).await;
        // Prepared before: then the id comes with the statement itself.
        store
            .give_up(&lease(&store, &name).await, Presented::No, None, None, NOW)
            .await
            .unwrap();
        proxy.lose(lost, if number == 1 { "c1" } else { "c2" });
        let answer = store
            .take_lease(&id(&name), Version::FIRST, LEASE, LeaseOn::Active, NOW)
            .await
            .unwrap();
        let LeaseAnswer::Taken {
            lease,
            held,
            earlier,
            took_over: false,
        } = answer
        else {
            panic!("it is free, or ours: {answer:?}");
        };
        assert_eq!((lease.fence().number(), earlier), (2, None));
        assert_eq!(held.connection.intent.map(|intent| intent.attempts), Some(1));

        proxy.lose(lost, "because a test says so");
        match store
            .land(&lease, refreshed(&format!("new {number}")), NOW)
            .await
            .unwrap()
        {
            Landed::Stored(held) | Landed::Moved(held) => {
                assert_eq!(held.connection.version.number(), 2);
                let stored = held.tokens.and_then(|tokens| tokens.refresh_token);
                assert_eq!(stored.unwrap().expose(), format!("canary-refresh-new {number}"));
            }
            other => panic!("it is there: {other:?}"),
        }
        let told = format!("SELECT count(*) FROM events WHERE connection = '{name}' AND version = 2");
        assert_eq!(database.sql(&told), "1");
    }
}

#[tokio::test]
async fn a_redemption_asks_the_server_three_times() {
    let database = Database::new();
    let proxy = Proxy::before(database.server.socket()).await;
    let store = database.try_open(&proxy.url(&database.name)).await.unwrap();
    create(&store, new("c1")).await;
    let redeem = async |version| {
        let answer = store
            .take_lease(&id("c1"), Version::new(version), LEASE, LeaseOn::Active, NOW)
            .await;
        let Ok(LeaseAnswer::Taken { lease, .. }) = answer else {
            panic!("it is free: {answer:?}");
        };
        assert!(store.lease_lasts(&lease, Duration::ZERO).await.unwrap());
        store
            .land(&lease, refreshed(&version.to_string()), NOW)
            .await
            .unwrap();
    };
    redeem(1).await; // Prepares the statements.
    let before = proxy.round_trips();
    redeem(2).await;
    assert_eq!(proxy.round_trips() - before, 3);
}

// Each step of a guarded write is asked for again where its answer was lost, and finds what it did before.
#[tokio::test]
async fn a_guarded_write_goes_on_whatever_is_lost_on_the_way_to_the_store() {
    let database = Database::new();
    let proxy = Proxy::before(database.server.socket()).await;
    let store = database.try_open(&proxy.url(&database.name)).await.unwrap();
    for (key, owner, lost) in [
        ("k1", "first-owner", Lost::Message),
        ("k2", "second-owner", Lost::Answer),
    ] {
        proxy.lose(lost, owner);
        let ticket = reserve(&store, key, owner).await;
        proxy.lose(lost, owner);
        assert!(store.write_leaves(&ticket, NOW, NOW).await.unwrap());
        proxy.lose(lost, owner);
        assert!(store.end_write(&ticket, answered(), NOW).await.unwrap());
        let met = store.reserve_write(reservation(key, "later", NOW), NOW).await;
        assert!(matches!(met, Ok(Reserved::Met(_, Some(_)))), "{met:?}");
    }
}

// A step whose answer was lost is asked for again. Its place may have been held on to in between.
#[tokio::test]
async fn a_write_leaves_though_its_place_was_held_before_it_was_asked_again() {
    let database = Database::new();
    let store = database.open().await;
    let ticket = reserve(&store, "k1", "a").await;
    let deadline = NOW.after(Duration::from_secs(30));
    assert!(store.write_leaves(&ticket, deadline, NOW).await.unwrap());
    let later = NOW.after(Duration::from_secs(40));
    assert!(store.hold_write(&ticket, later).await.unwrap());
    assert!(store.write_leaves(&ticket, deadline, NOW).await.unwrap());
}

// Nobody knows whether it stands on record, so it does not leave.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_left_is_on_record_after_a_crash() {
    let server = Server::new();
    let database = Database::on(&server);
    let store = database.open().await;
    let reserved = reserve(&store, "k1", "a").await;
    let left = reserve(&store, "k2", "b").await;
    assert!(store.write_leaves(&left, NOW, NOW).await.unwrap());
    server.crash();
    store.write_leaves(&reserved, NOW, NOW).await.unwrap_err();
    server.start();
    assert_eq!(
        database.sql("SELECT string_agg(state, ' ' ORDER BY key) FROM writes"),
        "reserved sent"
    );
}

#[tokio::test]
async fn a_guarded_write_asks_the_server_three_times_and_a_budget_twice() {
    let database = Database::new();
    let proxy = Proxy::before(database.server.socket()).await;
    let store = database.try_open(&proxy.url(&database.name)).await.unwrap();
    let write = async |key| {
        let ticket = reserve(&store, key, "a").await;
        assert!(store.write_leaves(&ticket, NOW, NOW).await.unwrap());
        assert!(store.end_write(&ticket, answered(), NOW).await.unwrap());
    };
    let budget = BudgetName::Searches { account: "1".into() };
    let claim = async || store.claim_calls(&budget, wanted(1), NOW).await.unwrap();
    // Prepares the statements.
    write("k1").await;
    claim().await;
    let before = proxy.round_trips();
    write("k2").await;
    let between = proxy.round_trips();
    claim().await;
    let claimed = proxy.round_trips() - between;
    assert_eq!((between - before, claimed), (3, 2));
}

#[tokio::test]
async fn a_claim_that_failed_leaves_nothing_behind() {
    let database = Database::new();
    let proxy = Proxy::before(database.server.socket()).await;
    let store = database.try_open(&proxy.url(&database.name)).await.unwrap();
    let budget = BudgetName::Searches { account: "1".into() };
    let claim = || store.claim_calls(&budget, wanted(1), NOW);
    claim().await.unwrap();
    for lost in [Lost::Message, Lost::Answer] {
        proxy.lose(lost, "COMMIT");
        let error = claim().await.unwrap_err();
        assert!(outcome_is_unknown(&error), "{error}");
        claim().await.unwrap();
    }
    // The last statement is refused: what the first one locked is free again.
    database.sql("ALTER TABLE budgets ADD CONSTRAINT stop CHECK (touched_at = 0) NOT VALID");
    claim().await.unwrap_err();
    let busy =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'";
    assert_eq!(database.sql(busy), "0");
    database.sql("ALTER TABLE budgets DROP CONSTRAINT stop");
    claim().await.unwrap();
}

// RELIABILITY.md, check 22: a half-open connection is one that nobody closes and nothing passes.
#[tokio::test]
async fn sessions_that_fell_silent_are_given_up_together() {
    let database = Database::new();
    let proxy = Proxy::before(database.server.socket()).await;
    let store = database.try_open(&proxy.url(&database.name)).await.unwrap();
    create(&store, new("c1")).await;
    assert_eq!(join_all((0..5).map(|_| version(&store, "c1"))).await, [1; 5]);
    proxy.silence_the_first(100);
    // Nothing else happens, so the clock jumps to the end of the wait.
    tokio::time::pause();
    let error = store.held(&id("c1")).await.unwrap_err();
    tokio::time::resume();
    assert!(!outcome_is_unknown(&error), "{error}");
    proxy.silence_the_first(7);
    assert_eq!(
        version(&store, "c1").await,
        1,
        "the first call after it is answered"
    );
}

#[tokio::test]
async fn a_transaction_that_others_got_in_the_way_of_is_repeated_a_few_times() {
    let database = Database::new();
    let store = database.open().await;
    database.sql(
        "CREATE SEQUENCE tries;
         CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF nextval('tries') <= 2 OR NEW.id = 'never' THEN
                 RAISE EXCEPTION 'canary' USING ERRCODE = 'serialization_failure';
             END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER conflicts BEFORE INSERT ON connections FOR EACH ROW EXECUTE FUNCTION conflict()",
    );
    create(&store, new("third")).await;
    let error = store.create(new("never"), NOW).await.unwrap_err();
    assert!(!outcome_is_unknown(&error), "{error}");
    assert!(!error.to_string().contains("canary"), "{error}");
    assert_eq!(
        database.sql("SELECT last_value FROM tries"),
        "7",
        "three tries and four"
    );
}

#[tokio::test]
async fn a_locked_row_holds_up_nobody_elses() {
    let database = Database::new();
    let store = database.open_impatient(50).await;
    create(&store, new("c1")).await;
    create(&store, new("c2")).await;
    let frozen = database.session().await;
    frozen
        .batch_execute("BEGIN; SELECT * FROM connections WHERE id = 'c1' FOR UPDATE")
        .await
        .unwrap();
    let answer = store
        .take_lease(&id("c1"), Version::FIRST, LEASE, LeaseOn::Active, NOW)
        .await;
    assert!(!outcome_is_unknown(&answer.unwrap_err()));
    let free = lease(&store, "c2").await;
    let landed = store.land(&free, refreshed("two"), NOW).await.unwrap();
    assert!(matches!(landed, Landed::Stored(_)), "{landed:?}");
    frozen.batch_execute("ROLLBACK").await.unwrap();
    lease(&store, "c1").await;
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_no_transaction_behind() {
    let database = Database::new();
    let store = database.open().await;
    create(&store, new("c1")).await;
    let lease = lease(&store, "c1").await;
    let other = database.session().await;
    other
        .batch_execute("BEGIN; LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    // Stopped with the connection's row locked, waiting for its history.
    let c1 = id("c1");
    let reconnecting = store.reconnect(&c1, None, tokens("two"), event(), NOW);
    let stopped = tokio::time::timeout(Duration::from_millis(200), reconnecting).await;
    assert!(stopped.is_err(), "it waits: {stopped:?}");
    other.batch_execute("COMMIT").await.unwrap();
    let impatient = database.open_impatient(1000).await;
    let landed = impatient.land(&lease, refreshed("three"), NOW).await;
    assert!(matches!(landed, Ok(Landed::Stored(_))), "{landed:?}");
    let busy =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'";
    assert_eq!(database.sql(busy), "0");
}

#[tokio::test]
async fn a_providers_nul_does_not_cost_a_token_set() {
    let database = Database::new();
    let store = database.open().await;
    create(&store, new("c1")).await;
    let lease = lease(&store, "c1").await;
    let mut refreshed = refreshed("two");
    refreshed.tokens.token_type = "bear\0er".into();
    refreshed.tokens.scopes = vec!["sc\0pe".into()];
    refreshed.event.detail = "because\0".into();
    refreshed.event.circumstances.provider_correlation_id = Some("\0".into());
    let landed = store.land(&lease, refreshed, NOW).await;
    let Ok(Landed::Stored(held)) = landed else {
        panic!("it must be stored: {landed:?}");
    };
    assert_eq!(held.connection.token_type, "bear\u{fffd}er");
    assert_eq!(held.connection.scopes, ["sc\0pe"]);
}
