//! What is refused, and how it is said.

use std::sync::Arc;

use evergrant_store::postgres::OpenError;
use evergrant_store::{PostgresStore, Vault, VaultKey};
use futures_util::future::join_all;

use crate::database::*;
use crate::proxy::Proxy;

#[tokio::test(flavor = "multi_thread")]
async fn many_processes_open_a_new_database_at_once() {
    let database = Database::new();
    let opened = join_all((0..8).map(|_| async { database.open().await })).await;
    assert_eq!(opened.len(), 8);
    let first = "SELECT count(*) FROM evergrant_schema_history WHERE version = 1";
    assert_eq!(database.sql(first), "1");
    create(&opened[0], new("c1")).await;
    assert_eq!(version(&opened[7], "c1").await, 1);
}

#[tokio::test]
async fn a_database_of_a_newer_schema_is_refused_and_not_touched() {
    let database = Database::new();
    drop(database.open().await);
    database.sql("INSERT INTO evergrant_schema_history VALUES (99, 'later', '', '0')");
    let before = database.server.dump(&database.name);
    let error = database.try_open(&database.url()).await.unwrap_err();
    assert!(
        matches!(error, OpenError::NewerSchema { found: 99, known: 1 }),
        "{error}"
    );
    assert_eq!(database.server.dump(&database.name), before);
}

#[tokio::test]
async fn tables_of_another_program_are_refused_and_not_touched() {
    let database = Database::new();
    database.sql("CREATE TABLE connections (theirs TEXT)");
    let error = database.try_open(&database.url()).await.unwrap_err();
    assert!(matches!(error, OpenError::NotOurs { .. }), "{error}");
    assert_eq!(
        database.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"),
        "1"
    );
}

#[tokio::test]
async fn another_vault_key_is_refused_at_the_start() {
    let database = Database::new();
    drop(database.open().await);
    let other = Arc::new(Vault::new(VaultKey::generate()));
    let error = PostgresStore::open(&database.url(), other).await.unwrap_err();
    assert!(matches!(error, OpenError::WrongKey), "{error}");
}

#[tokio::test]
async fn a_server_that_loses_commits_is_refused() {
    let database = Database::new();
    database.sql(&format!(
        "ALTER DATABASE {} SET synchronous_commit = off",
        database.name
    ));
    let error = database.try_open(&database.url()).await.unwrap_err();
    assert!(matches!(error, OpenError::NotDurable { .. }), "{error}");
    assert!(
        error.to_string().contains("SET synchronous_commit = on"),
        "{error}"
    );
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(database.sql(tables), "0", "nothing was made");
}

#[tokio::test]
async fn what_is_wrong_with_a_url_is_said_without_its_password() {
    let database = Database::new();
    let proxy = Proxy::before(database.server.socket()).await;
    let good = proxy
        .url(&database.name)
        .replace("evergrant@", "evergrant:hunter2@");
    let refused = async |url: String| {
        let error = database.try_open(&url).await.unwrap_err();
        let said = format!("{error} {error:?}");
        assert!(!said.contains("hunter2"), "{said}");
        error
    };
    drop(database.try_open(&good).await.unwrap());

    let error = refused(good.replace(&database.name, "elsewhere")).await;
    assert!(matches!(error, OpenError::NoDatabase { .. }), "{error}");
    let error = refused(good.replace("evergrant:", "nobody:")).await;
    assert!(matches!(error, OpenError::LoginRefused { .. }), "{error}");
    let error = refused(format!("{good}?sslmode=require")).await;
    assert!(matches!(error, OpenError::Tls { .. }), "{error}");
    let error = refused(format!("{good}?sslmode=verify-full&sslrootcert=/nowhere.pem")).await;
    assert!(matches!(error, OpenError::Roots { .. }), "{error}");
    let error = refused("postgres://evergrant:hunter2@127.0.0.1:1/evergrant".to_owned()).await;
    assert!(matches!(error, OpenError::Unavailable { .. }), "{error}");
    let error = refused("postgres://evergrant:hunter2@127.0.0.1:nowhere/evergrant".to_owned()).await;
    assert!(matches!(error, OpenError::Url { .. }), "{error}");
}

#[tokio::test]
async fn a_user_who_may_not_make_tables_is_told_so() {
    let database = Database::new();
    let user = format!("{}_reader", database.name);
    database.sql(&format!("CREATE ROLE {user} LOGIN"));
    let error = database
        .try_open(&database.url().replace("evergrant@", &format!("{user}@")))
        .await
        .unwrap_err();
    assert!(matches!(error, OpenError::NotAllowed { .. }), "{error}");
}
