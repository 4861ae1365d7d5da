//! Two versions side by side, and migrations that end half way: RELIABILITY.md, check 25.

use std::time::Duration;

use evergrant_domain::connection::LastSeen;
use evergrant_domain::refresh_policy::Jitter;
use evergrant_domain::tally::Tally;
use evergrant_domain::{AppName, ReconnectReason, Version};
use evergrant_store::contract::{
    BudgetName, Connected, DueQuery, Landed, LeaseAnswer, LeaseOn, Presented, Reserved, Revoke, Schema, Usage,
};
use evergrant_store::postgres::OpenError;
use evergrant_store::{PostgresStore, Store};
use futures_util::future::join_all;

use crate::database::*;

/// The next version's schema: a column more in every table, one table more.
const NEXT_VERSION: &str = "
    DO $$
    DECLARE named text;
    BEGIN
        FOR named IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP
            EXECUTE format('ALTER TABLE %I ADD COLUMN of_the_future TEXT NOT NULL DEFAULT %L', named, 'x');
        END LOOP;
    END
    $$;
    CREATE TABLE things_of_the_future (id TEXT PRIMARY KEY)";

/// A connection's whole life, in one process.
async fn live(store: &PostgresStore, name: &str) {
    let crm: AppName = "crm".parse().unwrap();
    create(store, new(name)).await;
    let stepped_back = lease(store, name).await;
    store
        .give_up(&stepped_back, Presented::No, None, Some(event()), NOW)
        .await
        .unwrap();
    let landing = lease(store, name).await;
    assert!(store.lease_lasts(&landing, Duration::ZERO).await.unwrap());
    assert!(store.renew_lease(&landing, LEASE).await.unwrap());
    let landed = store
        .land(&landing, refreshed(&format!("{name}-2")), NOW)
        .await
        .unwrap();
    assert!(matches!(landed, Landed::Stored(_)), "{landed:?}");
    store
        .begin_cooldown(&id(name), Version::new(2), NOW)
        .await
        .unwrap();
    let due = DueQuery {
        now: NOW,
        apps: vec![(crm.clone(), None)],
        limit: 100,
        push: LEASE,
    };
    store.claim_due(due).await.unwrap();
    let usage = Usage {
        connection: id(name),
        last: LastSeen {
            call_at: Some(NOW),
            ..LastSeen::default()
        },
        app: AppName::parse("crm").unwrap(),
        tally: Tally::default(),
    };
    store.note_usage(vec![usage], NOW).await.unwrap();
    let restored = store
        .restore(
            &id(name),
            Version::new(2),
            Version::new(5),
            tokens(name),
            event(),
            NOW,
        )
        .await;
    assert!(restored.unwrap().is_some());
    store.claim_probe(&crm, &id(name), LEASE, NOW).await.unwrap();
    store.claim_exchanges(&crm, 1, 10, NOW).await.unwrap();
    store
        .endpoint_failed(&crm, "503".into(), None, Jitter::NONE, NOW)
        .await
        .unwrap();
    store.endpoint_works(&crm).await.unwrap();
    store.accept_app(&crm, name.into(), event(), NOW).await.unwrap();
    let answer = store
        .take_lease(&id(name), Version::new(5), LEASE, LeaseOn::Active, NOW)
        .await;
    let Ok(LeaseAnswer::Taken { lease, .. }) = answer else {
        panic!("it is free: {answer:?}");
    };
    let refused = ReconnectReason::GrantRefused;
    assert!(store.condemn(&lease, refused, event(), NOW).await.unwrap());
    let again = store
        .reconnect(&id(name), None, tokens(&format!("{name}-6")), event(), NOW)
        .await;
    assert!(matches!(again, Ok(Connected::Stored(_))), "{again:?}");
    store
        .disconnect(&id(name), Revoke::Always, None, event(), NOW)
        .await
        .unwrap();
    let queued = store.claim_revocations(10, LEASE, NOW).await.unwrap();
    assert_eq!(queued.len(), 1);
    assert!(!store.events(&id(name), 10).await.unwrap().is_empty());
    assert!(!store.changes(0).await.unwrap().0.is_empty());
    let ticket = reserve(store, name, name).await;
    assert!(store.write_leaves(&ticket, NOW, NOW).await.unwrap());
    assert!(store.end_write(&ticket, answered(), NOW).await.unwrap());
    let met = store.reserve_write(reservation(name, "later", NOW), NOW).await;
    assert!(matches!(met, Ok(Reserved::Met(_, Some(_)))), "{met:?}");
    let budget = BudgetName::Calls {
        app: crm,
        account: name.into(),
    };
    let granted = store.claim_calls(&budget, wanted(1), NOW).await.unwrap();
    assert_eq!(granted.granted, 1);
    store.sweep_writes(NOW, u64::MAX).await.unwrap();
}

#[tokio::test]
async fn the_version_before_goes_on_beside_this_one() {
    let database = Database::new();
    let first = include_str!("../../migrations-postgres/V1__first.sql");
    let before = [refinery::Migration::unapplied("V1__first", first).unwrap()];
    let mut runner = refinery::Runner::new(&before);
    runner.set_migration_table_name("evergrant_schema_history");
    runner.run_async(&mut database.session().await).await.unwrap();
    database.sql("INSERT INTO apps (name, secret_that_worked) VALUES ('crm', 'ours')");
    // As a program of version 1 does: in the middle of something.
    let old = database.session().await;
    old.batch_execute("BEGIN; UPDATE apps SET secret_that_worked = 'theirs'; SELECT * FROM connections")
        .await
        .unwrap();
    let store = database.open().await;
    old.batch_execute("COMMIT").await.unwrap();
    let state = store.app_state(&"crm".parse().unwrap()).await.unwrap();
    assert_eq!(state.secret_that_worked.as_deref(), Some("theirs"));
    live(&store, "a").await;
    // What the version before tells of an event, it tells still.
    database.sql(
        "INSERT INTO events (at, connection, kind, detail, version, provider_correlation_id)
         SELECT 1, id, 'revoked', 'as before', version, NULL FROM connections WHERE id = 'a'",
    );
    let told = &store.events(&id("a"), 1).await.unwrap()[0];
    assert_eq!(
        (told.app.as_str(), told.detail.as_str(), &told.process),
        ("crm", "as before", &None)
    );
    let schema = PostgresStore::schema(&database.url()).await.unwrap();
    assert_eq!(
        schema,
        Schema {
            found: KNOWN,
            known: KNOWN
        }
    );
    assert_eq!(
        database.sql("SELECT oldest FROM schema_use"),
        "1",
        "a program of version 1 may start"
    );
}

// A newer process changes tables under the statements that this one has prepared, in every session that it has.
#[tokio::test]
async fn what_the_next_version_adds_is_not_noticed() {
    let database = Database::new();
    let store = database.open().await;
    live(&store, "before").await;
    create(&store, new("c1")).await;
    // More sessions than there are tries, each with a statement prepared.
    assert_eq!(join_all((0..12).map(|_| version(&store, "c1"))).await, [1; 12]);
    database.sql(NEXT_VERSION);
    assert_eq!(version(&store, "c1").await, 1);
    live(&store, "after").await;
}

/// What the next version does first of all.
async fn upgrade(database: &Database<'_>) {
    let first = include_str!("../../migrations-postgres/V1__first.sql");
    let second = include_str!("../../migrations-postgres/V2__safe_calls.sql");
    let third = include_str!("../../migrations-postgres/V3__history.sql");
    let fourth = include_str!("../../migrations-postgres/V4__webhooks.sql");
    let migrations = [
        ("V1__first", first),
        ("V2__safe_calls", second),
        ("V3__history", third),
        ("V4__webhooks", fourth),
        ("V5__next", NEXT_VERSION),
    ]
    .map(|(name, sql)| refinery::Migration::unapplied(name, sql).unwrap());
    let mut runner = refinery::Runner::new(&migrations);
    runner.set_migration_table_name("evergrant_schema_history");
    let done = runner.run_async(&mut database.session().await).await.unwrap();
    let done = done.applied_migrations().iter().map(refinery::Migration::name);
    assert_eq!(done.collect::<Vec<_>>(), ["next"]);
}

#[tokio::test]
async fn a_newer_schema_that_may_be_used_is_left_alone() {
    let database = Database::new();
    drop(database.open().await);
    upgrade(&database).await;
    let before = database.server.dump(&database.name);
    let schema = PostgresStore::schema(&database.url()).await.unwrap();
    assert_eq!(
        schema,
        Schema {
            found: KNOWN + 1,
            known: KNOWN
        }
    );
    drop(database.open().await);
    assert_eq!(database.server.dump(&database.name), before);
}

#[tokio::test]
async fn an_old_process_restarts_beside_a_new_one() {
    let database = Database::new();
    let (one, other) = (database.open().await, database.open().await);
    create(&one, new("c1")).await;
    upgrade(&database).await;
    let new = database.session().await;
    let newer_work = async {
        for number in 0..100 {
            let work = format!(
                "BEGIN;
                 INSERT INTO things_of_the_future VALUES ('{number}');
                 UPDATE connections SET of_the_future = '{number}' WHERE id = 'c1';
                 COMMIT"
            );
            new.batch_execute(&work).await.unwrap();
        }
    };
    let older_work = async {
        drop(one);
        let one = database.open().await;
        for (store, name) in [(&one, "a"), (&other, "b"), (&one, "c"), (&other, "d")] {
            live(store, name).await;
        }
        one
    };
    let (one, ()) = tokio::join!(older_work, newer_work);
    let worked = "SELECT count(*) || ' ' || (SELECT of_the_future FROM connections WHERE id = 'c1') FROM things_of_the_future";
    assert_eq!(database.sql(worked), "100 99");
    lease(&one, "c1").await;
    let second = take(&other, "c1").await;
    assert!(!matches!(second, LeaseAnswer::Taken { .. }), "{second:?}");
}

#[tokio::test]
async fn a_process_that_waited_for_a_newer_one_finds_the_newer_schema() {
    let database = Database::new();
    drop(database.open().await);
    let newer = database.session().await;
    newer
        .batch_execute("SELECT pg_advisory_lock(17750, 1)")
        .await
        .unwrap();
    let url = database.url();
    let going_first = async {
        let waiting = "SELECT count(*) FROM pg_stat_activity
                        WHERE datname = current_database() AND wait_event_type = 'Lock'";
        while newer.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) < 1 {
            tokio::task::yield_now().await;
        }
        upgrade(&database).await;
        newer
            .batch_execute("SELECT pg_advisory_unlock(17750, 1)")
            .await
            .unwrap();
    };
    let (opened, ()) = tokio::join!(database.try_open(&url), going_first);
    live(&opened.unwrap(), "c1").await;
}

#[tokio::test]
async fn a_migration_that_is_killed_half_way_begins_again() {
    let database = Database::new();
    let other = database.session().await;
    // The last tables wait for this one, which may or may not come to be.
    other
        .batch_execute("BEGIN; CREATE TABLE authorizations (theirs TEXT)")
        .await
        .unwrap();
    let url = database.url();
    let opening = database.try_open(&url);
    let killing = async {
        let killed = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let watcher = database.session().await;
        while watcher.query_one(killed, &[]).await.unwrap().get::<_, i64>(0) < 1 {
            tokio::task::yield_now().await;
        }
        other.batch_execute("ROLLBACK").await.unwrap();
    };
    let (opened, ()) = tokio::join!(opening, killing);
    let error = opened.unwrap_err();
    assert!(matches!(error, OpenError::Unavailable { .. }), "{error}");
    assert_eq!(database.sql("SELECT to_regclass('connections') IS NULL"), "t");
    live(&database.open().await, "c1").await;
}
