//! Processes that are killed around a commit: they leave a change with its event, or neither.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use evergrant_store::{Store, VaultKey};
use test_postgres::Server;

use super::*;

const DATABASE: &str = "HISTORIES_TEST_DATABASE";
const KEY: &str = "HISTORIES_TEST_KEY";
const CONNECTION: &str = "HISTORIES_TEST_CONNECTION";

/// How many processes are killed.
const KILLS: u64 = 12;

/// Has processes refresh connections of their own, one after the other, and kills each at another moment.
fn kill_some(database: &str, key: &str) {
    for round in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed::a_process_refreshes_on_and_on", "--nocapture"])
            .env(DATABASE, database)
            .env(KEY, key)
            .env(CONNECTION, format!("c{round}"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap()).lines();
        // Kept to its end: who writes to nobody would end by itself.
        let mut landed = said.map(Result::unwrap).filter(|line| line.contains("landed"));
        assert_eq!(landed.by_ref().take(2).count(), 2, "it got that far");
        // Somewhere in the next change.
        std::thread::sleep(Duration::from_micros(round * 397));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), None, "it did not end by itself: {status}");
        drop(landed);
    }
}

async fn each_change_has_its_event(store: &impl Store) {
    for round in 0..KILLS {
        let name = format!("c{round}");
        let version = version(store, &name)
            .await
            .expect("it was created before it landed");
        assert!(version > 2, "{name}: {version}");
        let refreshes = (2..=version).map(|version| ("refreshed".to_owned(), version));
        let expected: Vec<_> = std::iter::once(("connected".to_owned(), 1))
            .chain(refreshes)
            .collect();
        assert_eq!(told(store, &name).await, expected, "{name}");
    }
}

#[tokio::test]
async fn a_process_that_is_killed_leaves_changes_with_their_events_in_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("evergrant.db");
    let (path, key) = (path.to_str().unwrap(), VaultKey::generate().to_base64());
    let store = sqlite(path, &key).await;
    kill_some(path, &key);
    each_change_has_its_event(&store).await;
}

#[tokio::test]
async fn a_process_that_is_killed_leaves_changes_with_their_events_in_postgres() {
    let server = Server::shared();
    let (url, key) = (server.url(&server.database()), VaultKey::generate().to_base64());
    let store = postgres(&url, &key).await;
    kill_some(&url, &key);
    each_change_has_its_event(&store).await;
}

/// The other process of the tests above, which say where the store is; without that, there is nothing to do.
#[tokio::test]
async fn a_process_refreshes_on_and_on() {
    let asked = |name| std::env::var(name).ok();
    let (Some(database), Some(key), Some(name)) = (asked(DATABASE), asked(KEY), asked(CONNECTION)) else {
        return;
    };
    if database.starts_with("postgres") {
        refresh_on_and_on(&postgres(&database, &key).await, &name).await;
    } else {
        refresh_on_and_on(&sqlite(&database, &key).await, &name).await;
    }
}

async fn refresh_on_and_on(store: &impl Store, name: &str) {
    store.create(new(name), NOW).await.unwrap();
    // Whoever began it kills it, or is gone: then it ends by itself.
    for version in 1..2_000 {
        let lease = lease(store, name, version).await;
        store
            .land(&lease, refreshed(&format!("{name}-{version}")), NOW)
            .await
            .unwrap();
        println!("landed {version}");
        std::io::stdout().flush().unwrap();
    }
}
