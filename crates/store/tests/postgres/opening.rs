//! What is refused, and how it is said.

use std::io;
use std::sync::{Arc, Mutex};

use evergrant_store::postgres::OpenError;
use evergrant_store::{PostgresStore, Store, Vault, VaultKey};
use futures_util::future::join_all;
use test_postgres::Server;

use crate::database::*;
use crate::proxy::Proxy;

/// A certificate for 127.0.0.1 alone, with its key.
fn certificate() -> rcgen::CertifiedKey<rcgen::KeyPair> {
    rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap()
}

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
    database.sql("UPDATE schema_use SET oldest = 99");
    let before = database.server.dump(&database.name);
    for error in [
        database.try_open(&database.url()).await.unwrap_err(),
        PostgresStore::schema(&database.url()).await.unwrap_err(),
    ] {
        assert!(
            matches!(
                error,
                OpenError::NewerSchema {
                    found: 99,
                    oldest: 99,
                    known: KNOWN
                }
            ),
            "{error}"
        );
        let said = error.to_string();
        assert!(said.contains("use the newer Evergrant"), "{said}");
    }
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

// On one thread, as what is logged is caught on this thread alone.
#[tokio::test]
async fn standbys_that_commits_do_not_wait_for_are_named_in_the_log() {
    let server = Server::new();
    let database = Database::on(&server);
    let starts_with = async |commit: &str| {
        database.sql(&format!(
            "ALTER DATABASE {} SET synchronous_commit = {commit}",
            database.name
        ));
        let log = Arc::new(Log::default());
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(Arc::clone(&log))
            .finish();
        let caught = tracing::subscriber::set_default(subscriber);
        let store = database.open().await;
        store.ping().await.unwrap();
        drop(caught);
        log.text()
    };
    for commit in ["on", "local", "remote_write"] {
        assert_eq!(starts_with(commit).await, "", "without a standby: {commit}");
    }
    let _standby = server.standby();
    for commit in ["remote_write", "local"] {
        let said = starts_with(commit).await;
        let named = format!("synchronous_commit is {commit}");
        assert!(said.contains("WARN") && said.contains(&named), "{said}");
        let told = said.matches("event=\"failover_may_lose_commits\"").count();
        assert_eq!(told, 1, "{said}");
    }
    for commit in ["on", "remote_apply"] {
        assert_eq!(starts_with(commit).await, "", "{commit}");
    }
}

#[derive(Default)]
struct Log(Mutex<Vec<u8>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for &Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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

#[tokio::test(flavor = "multi_thread")]
async fn a_server_proves_to_be_the_one_that_was_named_or_is_refused() {
    let (its, anothers) = (certificate(), certificate());
    let server = Server::with_tls(&its.cert.pem(), &its.signing_key.serialize_pem());
    let database = Database::on(&server);
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, certificate: &rcgen::Certificate| {
        let path = folder.path().join(name);
        std::fs::write(&path, certificate.pem()).unwrap();
        path.display().to_string()
    };
    let (its_file, anothers_file) = (file("its.pem", &its.cert), file("anothers.pem", &anothers.cert));
    let url = |host: &str, mode: &str| {
        format!(
            "postgres://evergrant@{host}:{}/{}?sslmode={mode}",
            server.port(),
            database.name
        )
    };
    let protected = "SELECT count(*) > 0 FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                      WHERE ssl AND application_name = 'evergrant'";
    for good in [
        url("127.0.0.1", &format!("verify-full&sslrootcert={its_file}")),
        url("127.0.0.1", "require"),
        url("localhost", "require"),
        url("127.0.0.1", "prefer"),
    ] {
        let store = database.try_open(&good).await.unwrap();
        store.ping().await.unwrap();
        assert_eq!(database.sql(protected), "t", "{good}");
    }
    for bad in [
        url("127.0.0.1", &format!("verify-full&sslrootcert={anothers_file}")),
        url("localhost", &format!("verify-full&sslrootcert={its_file}")),
        // The system trusts nobody who signs for himself.
        url("127.0.0.1", "verify-full"),
    ] {
        let error = database.try_open(&bad).await.unwrap_err();
        assert!(matches!(error, OpenError::Tls { .. }), "{bad}: {error}");
    }
}
