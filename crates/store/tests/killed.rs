//! Processes that are killed: in the middle of a redemption, where the system frees the lease with them, and in the middle of a
//! guarded write, which stays on record.

#![cfg(feature = "sqlite")]
#![expect(clippy::unwrap_used, reason = "a claim that cannot be made ends its test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::refresh_policy::Ends;
use evergrant_domain::write_ledger::Meeting;
use evergrant_domain::{AccessToken, ConnectionId, Kind, Timestamp, TokenSet, Version};
use evergrant_store::contract::{LeaseAnswer, LeaseOn, NewConnection, Reserved, WriteReservation};
use evergrant_store::{SqliteStore, Store, Vault, VaultKey};

const DATABASE: &str = "KILLED_TEST_DATABASE";
const KEY: &str = "KILLED_TEST_KEY";
const STEPS: &str = "KILLED_TEST_STEPS";
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

/// What a guarded write meets that is reserved at this second, with five more to leave in.
async fn reserve(store: &SqliteStore, owner: &str, second: u64) -> Reserved {
    let now = NOW.after(Duration::from_secs(second));
    let reservation = WriteReservation {
        connection: "c1".parse().unwrap(),
        key: "key".into(),
        request: "request".into(),
        owner: owner.into(),
        deadline: now.after(Duration::from_secs(5)),
        keep_until: now.after(Duration::from_secs(3600)),
    };
    store.reserve_write(reservation, now).await.unwrap()
}

/// What others meet after a process was killed that made so many steps: during the time that its write had, and after.
async fn after_a_kill(steps: &str) -> (Reserved, Reserved) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("evergrant.db");
    let key = VaultKey::generate().to_base64();
    drop(open(&path, &key).await);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_process_begins_a_guarded_write", "--nocapture"])
        .env(DATABASE, &path)
        .env(KEY, key.as_str())
        .env(STEPS, steps)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("begun")), "it got there");
    child.kill().unwrap();
    child.wait().unwrap();
    let store = open(&path, &key).await;
    (
        reserve(&store, "second", 4).await,
        reserve(&store, "third", 5).await,
    )
}

#[tokio::test]
async fn a_write_whose_process_was_killed_before_it_left_runs_once_its_time_is_over() {
    let (during, after) = after_a_kill("reserve").await;
    assert!(
        matches!(during, Reserved::Met(Meeting::InProgress { .. }, None)),
        "{during:?}"
    );
    assert!(matches!(after, Reserved::Yours(_)), "{after:?}");
}

#[tokio::test]
async fn a_write_whose_process_was_killed_after_it_left_never_runs_again_by_itself() {
    let (during, after) = after_a_kill("reserve leave").await;
    assert!(
        matches!(during, Reserved::Met(Meeting::InProgress { .. }, None)),
        "{during:?}"
    );
    assert!(matches!(after, Reserved::Unknown(_)), "{after:?}");
}

/// The other process of the tests above, which say where the store is and how far it goes; without that, one that goes all the way.
#[tokio::test]
async fn a_process_begins_a_guarded_write() {
    let folder = tempfile::tempdir().unwrap();
    let asked = |name| std::env::var(name).ok();
    let path = asked(DATABASE).unwrap_or_else(|| format!("{}/evergrant.db", folder.path().display()));
    let key = asked(KEY).unwrap_or_else(|| VaultKey::generate().to_base64().to_string());
    let store = open(Path::new(&path), &key).await;
    let Reserved::Yours(ticket) = reserve(&store, "first", 0).await else {
        panic!("it is free");
    };
    let steps = asked(STEPS);
    if steps.as_deref() != Some("reserve") {
        let deadline = NOW.after(Duration::from_secs(5));
        assert!(store.write_leaves(&ticket, deadline, NOW).await.unwrap());
    }
    if steps.is_some() {
        println!("begun");
        std::io::stdout().flush().unwrap();
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    }
}
