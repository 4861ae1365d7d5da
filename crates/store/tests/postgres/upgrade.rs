//! Two versions side by side, and migrations that end half way: RELIABILITY.md, check 25.

use std::time::Duration;

use evergrant_domain::connection::LastSeen;
use evergrant_domain::refresh_policy::Jitter;
use evergrant_domain::{AppName, ReconnectReason, Version};
use evergrant_store::contract::{
    Connected, DueQuery, Landed, LeaseAnswer, LeaseOn, Presented, Revoke, Usage,
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
    };
    store.note_usage(vec![usage]).await.unwrap();
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
    store.accept_app(&crm, name.into()).await.unwrap();
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
    let anew = database.open().await;
    live(&anew, "opened-after").await;
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
