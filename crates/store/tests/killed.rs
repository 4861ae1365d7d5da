//! A process that is killed in the middle of a redemption: the system frees its lease with it.

#![cfg(feature = "sqlite")]
#![expect(clippy::unwrap_used, reason = "a claim that cannot be made ends its test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::refresh_policy::Ends;
use evergrant_domain::{AccessToken, ConnectionId, Kind, Timestamp, TokenSet, Version};
use evergrant_store::contract::{LeaseAnswer, LeaseOn, NewConnection};
use evergrant_store::{SqliteStore, Store, Vault, VaultKey};

const DATABASE: &str = "KILLED_TEST_DATABASE";
const KEY: &str = "KILLED_TEST_KEY";
const NOW: Timestamp = Timestamp::from_millis(0);

async fn open(path: &Path, key: &str) -> SqliteStore {
    let vault = Arc::new(Vault::new(VaultKey::from_base64(key).unwrap()));
    SqliteStore::open(path, vault).await.unwrap()
}

async fn take(store: &SqliteStore) -> LeaseAnswer {
    let id: ConnectionId = "c1".parse().unwrap();
    let lasts = Duration::from_secs(3600);
    store
        .take_lease(&id, Version::FIRST, lasts, LeaseOn::Active, NOW)
        .await
        .unwrap()
}

async fn create(store: &SqliteStore) {
    let new = NewConnection {
        id: "c1".parse().unwrap(),
        app: "crm".parse().unwrap(),
        customer: "acme".parse().unwrap(),
        kind: Kind::OAuth,
        account: None,
        tokens: TokenSet {
            access_token: AccessToken::new("a"),
            refresh_token: None,
            token_type: "bearer".into(),
            scopes: vec![],
            issued_at: NOW,
            ends: Ends {
                soft: NOW,
                hard: NOW,
                expires: NOW,
            },
            unproven: false,
        },
        labels: vec![],
        event: Event::new(EventKind::Connected, "because a test says so"),
    };
    store.create(new, NOW).await.unwrap();
}

#[tokio::test]
async fn a_killed_holders_lease_is_free_at_once_and_its_attempt_is_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("evergrant.db");
    let key = VaultKey::generate().to_base64();
    let store = open(&path, &key).await;
    create(&store).await;
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_process_takes_a_lease_that_is_free", "--nocapture"])
        .env(DATABASE, &path)
        .env(KEY, key.as_str())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(
        said.any(|line| line.unwrap().contains("taken")),
        "the child got it"
    );
    assert!(matches!(take(&store).await, LeaseAnswer::Busy));
    child.kill().unwrap();
    child.wait().unwrap();
    let answer = take(&store).await;
    let LeaseAnswer::Taken {
        earlier, took_over, ..
    } = answer
    else {
        panic!("its holder is dead: {answer:?}");
    };
    assert!(took_over);
    assert_eq!(earlier.map(|intent| intent.attempts), Some(1));
}

/// The other process of the test above, which says where the store is; without that, a process like any other.
#[tokio::test]
async fn a_process_takes_a_lease_that_is_free() {
    let (Ok(path), Ok(key)) = (std::env::var(DATABASE), std::env::var(KEY)) else {
        let folder = tempfile::tempdir().unwrap();
        let store = open(
            &folder.path().join("evergrant.db"),
            &VaultKey::generate().to_base64(),
        )
        .await;
        create(&store).await;
        assert!(matches!(take(&store).await, LeaseAnswer::Taken { .. }));
        return;
    };
    let store = open(Path::new(&path), &key).await;
    assert!(matches!(take(&store).await, LeaseAnswer::Taken { .. }));
    println!("taken");
    std::io::stdout().flush().unwrap();
    // Until it is killed, or whoever began it is gone.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}
