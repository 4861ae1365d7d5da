//! A database that refuses the event, or the change.

use evergrant_domain::ReconnectReason;
use evergrant_domain::event::EventKind;
use evergrant_store::contract::Revoke;
use evergrant_store::{Store, VaultKey};
use test_postgres::Server;

use super::*;

/// Statements that make the database refuse, and that mend it again.
struct Refusals {
    /// Every event.
    events: (&'static str, &'static str),
    /// Every change of a connection.
    changes: (&'static str, &'static str),
}

async fn neither_is_there_without_the_other(store: &impl Store, refusals: &Refusals, sql: impl Fn(&str)) {
    let forced = async || {
        let event = event(EventKind::RefreshForced);
        let every = Duration::from_secs(10);
        store.claim_forced_refresh(&id("c1"), every, event, NOW).await
    };
    let ended = event(EventKind::ReconnectRequired);
    let disconnect = async || {
        let left = event(EventKind::Disconnected);
        store.disconnect(&id("c1"), Revoke::Never, None, left, NOW).await
    };
    store.create(new("c1"), NOW).await.unwrap();
    let held = lease(store, "c1", 1).await;

    sql(refusals.events.0);
    assert!(store.create(new("c2"), NOW).await.is_err());
    assert!(store.land(&held, refreshed("second"), NOW).await.is_err());
    let condemned = store.condemn(&held, ReconnectReason::GrantRefused, ended.clone(), NOW);
    assert!(condemned.await.is_err());
    assert!(forced().await.is_err());
    assert!(disconnect().await.is_err());
    sql(refusals.events.1);
    assert_eq!(
        version(store, "c2").await,
        None,
        "no connection without its event"
    );
    let shown = store.connection(&id("c1")).await.unwrap().unwrap();
    assert_eq!((shown.version.number(), shown.status.as_str()), (1, "active"));

    sql(refusals.changes.0);
    assert!(store.land(&held, refreshed("second"), NOW).await.is_err());
    let condemned = store.condemn(&held, ReconnectReason::GrantRefused, ended, NOW);
    assert!(condemned.await.is_err());
    assert!(forced().await.is_err());
    assert!(disconnect().await.is_err());
    sql(refusals.changes.1);
    assert_eq!(
        told(store, "c1").await,
        [("connected".to_owned(), 1)],
        "no event without its change"
    );

    assert!(forced().await.unwrap(), "none was claimed before");
    store.land(&held, refreshed("second"), NOW).await.unwrap();
    let kinds = told(store, "c1").await;
    assert_eq!(
        kinds,
        [
            ("connected".to_owned(), 1),
            ("refresh_forced".to_owned(), 1),
            ("refreshed".to_owned(), 2)
        ]
    );
}

#[tokio::test]
async fn in_sqlite_neither_is_there_without_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("evergrant.db");
    let store = sqlite(path.to_str().unwrap(), &VaultKey::generate().to_base64()).await;
    let refusals = Refusals {
        events: (
            "CREATE TRIGGER refused BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'refused'); END",
            "DROP TRIGGER refused",
        ),
        changes: (
            "CREATE TRIGGER refused BEFORE UPDATE ON connections BEGIN SELECT RAISE(ABORT, 'refused'); END",
            "DROP TRIGGER refused",
        ),
    };
    neither_is_there_without_the_other(&store, &refusals, |statements| {
        let sql = rusqlite::Connection::open(&path).unwrap();
        sql.busy_timeout(Duration::from_secs(10)).unwrap();
        sql.execute_batch(statements).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_postgres_neither_is_there_without_the_other() {
    let server = Server::shared();
    let database = server.database();
    let store = postgres(&server.url(&database), &VaultKey::generate().to_base64()).await;
    server.sql(
        &database,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused'; END $$",
    );
    let refusals = Refusals {
        events: (
            "CREATE TRIGGER refused BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse()",
            "DROP TRIGGER refused ON events",
        ),
        changes: (
            "CREATE TRIGGER refused BEFORE UPDATE ON connections FOR EACH ROW EXECUTE FUNCTION refuse()",
            "DROP TRIGGER refused ON connections",
        ),
    };
    neither_is_there_without_the_other(&store, &refusals, |statements| {
        server.sql(&database, statements);
    })
    .await;
}
