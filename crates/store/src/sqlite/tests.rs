//! What only SQLite promises: files, locks, full disks, dead holders. The contract itself is proven in `tests/contract`.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use evergrant_domain::call_budget::{Lane, Learnt, Unused};
use evergrant_domain::event::EventKind;
use evergrant_domain::refresh_policy::Ends;
use evergrant_domain::write_ledger::Meeting;
use evergrant_domain::{AccessToken, CodeVerifier, Fence, Kind};
use tempfile::TempDir;

use super::*;
use crate::contract::StoredAnswer;
use crate::vault::VaultKey;

const LEASE: Duration = Duration::from_secs(60);
const CANARIES: [&str; 6] = [
    "canary-access-1",
    "canary-refresh-1",
    "canary-refresh-2",
    "canary-verifier",
    "canary-in-header",
    "canary-in-body",
];

/// A database in a folder of its own, with the clocks and the patience that a test wants.
struct File {
    folder: TempDir,
    vault: Arc<Vault>,
    patience: Duration,
    boot: &'static str,
    boot_millis: Arc<AtomicI64>,
}

impl File {
    fn new() -> Self {
        Self {
            folder: TempDir::new().unwrap(),
            vault: Arc::new(Vault::new(VaultKey::generate())),
            patience: BUSY_TIMEOUT,
            boot: "this boot",
            boot_millis: Arc::default(),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("evergrant.db")
    }

    async fn try_open(&self) -> Result<SqliteStore, OpenError> {
        let millis = Arc::clone(&self.boot_millis);
        let boot = Boot {
            id: self.boot.into(),
            millis: Arc::new(move || millis.load(Ordering::Relaxed)),
        };
        let settings = Settings {
            busy_timeout: self.patience,
            boot,
        };
        SqliteStore::open_with(&self.path(), Arc::clone(&self.vault), settings).await
    }

    async fn open(&self) -> SqliteStore {
        self.try_open().await.unwrap()
    }

    /// The file as another program sees it.
    fn raw(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.path()).unwrap()
    }
}

fn now() -> Timestamp {
    Timestamp::from_millis(0)
}

fn id(text: &str) -> ConnectionId {
    text.parse().unwrap()
}

fn event() -> Event {
    Event::new(EventKind::Connected, "because a test says so")
}

fn tokens(name: &str) -> TokenSet {
    TokenSet {
        access_token: AccessToken::new(format!("canary-access-{name}")),
        refresh_token: Some(RefreshToken::new(format!("canary-refresh-{name}"))),
        token_type: "bearer".into(),
        scopes: vec![],
        issued_at: now(),
        ends: Ends {
            soft: now(),
            hard: now(),
            expires: now(),
        },
        unproven: false,
    }
}

async fn create(store: &SqliteStore, name: &str) {
    let new = NewConnection {
        id: id(name),
        app: "crm".parse().unwrap(),
        customer: "acme".parse().unwrap(),
        kind: Kind::OAuth,
        account: None,
        tokens: tokens(name),
        labels: vec![],
        event: event(),
    };
    let made = store.create(new, now()).await.unwrap();
    assert!(matches!(made, Connected::Stored(_)), "{made:?}");
}

async fn take(store: &SqliteStore, name: &str) -> LeaseAnswer {
    store
        .take_lease(&id(name), Version::FIRST, LEASE, LeaseOn::Active, now())
        .await
        .unwrap()
}

/// What a guarded write of connection `1` under this key meets.
async fn reserve(store: &SqliteStore, key: &str, owner: &str) -> Result<Reserved, StoreError> {
    let reservation = WriteReservation {
        connection: id("1"),
        key: key.into(),
        request: "request".into(),
        owner: owner.into(),
        deadline: Timestamp::from_millis(1000),
        keep_until: Timestamp::from_millis(2000),
    };
    store.reserve_write(reservation, now()).await
}

/// A guarded write with an answer.
async fn write(store: &SqliteStore, key: &str) {
    let reserved = reserve(store, key, key).await.unwrap();
    let Reserved::Yours(ticket) = reserved else {
        panic!("it is free: {reserved:?}");
    };
    let answer = StoredAnswer {
        status: 201,
        headers: vec![("x-secret".into(), "canary-in-header".into())],
        body: Some(b"canary-in-body".to_vec()),
    };
    let ended = store.end_write(&ticket, WriteEnd::Done(answer), now()).await;
    assert!(ended.unwrap());
}

fn taken(answer: &LeaseAnswer) -> bool {
    matches!(answer, LeaseAnswer::Taken { .. })
}

#[tokio::test]
async fn a_database_is_made_for_its_owner_alone() {
    let file = File::new();
    let store = file.open().await;
    create(&store, "1").await;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(file.folder.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{:?} is readable by others", entry.path());
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    let expected = [
        "evergrant.db",
        "evergrant.db-shm",
        "evergrant.db-wal",
        "evergrant.db.holders",
    ];
    assert_eq!(names, expected);
}

#[tokio::test]
async fn what_was_committed_is_there_when_it_is_opened_again() {
    let file = File::new();
    create(&file.open().await, "1").await;
    let held = file.open().await.held(&id("1")).await.unwrap().unwrap();
    assert_eq!(held.tokens.unwrap().access_token.expose(), "canary-access-1");
}

#[tokio::test]
async fn a_write_that_was_asked_for_is_done_before_the_store_is_gone() {
    let file = File::new();
    let store = file.open().await;
    create(&store, "1").await;
    // Its caller asks, and stops waiting.
    let one = id("1");
    let asked = store.note_event(&one, event(), now());
    tokio::select! {
        biased;
        _ = asked => {}
        () = std::future::ready(()) => {}
    }
    drop(store);
    let events = file.open().await.events(&id("1"), 10).await.unwrap();
    assert_eq!(events.len(), 2);
}

#[tokio::test]
async fn a_torn_log_loses_its_last_commit_and_nothing_before() {
    let file = File::new();
    let store = file.open().await;
    create(&store, "1").await;
    let log = |file: &File| file.folder.path().join("evergrant.db-wal");
    let whole = std::fs::metadata(log(&file)).unwrap().len();
    create(&store, "2").await;
    let torn = File {
        vault: Arc::clone(&file.vault),
        ..File::new()
    };
    std::fs::copy(file.path(), torn.path()).unwrap();
    let bytes = std::fs::read(log(&file)).unwrap();
    let cut = usize::try_from(whole).unwrap() + 5000;
    assert!(cut < bytes.len(), "in the middle of the second commit");
    std::fs::write(log(&torn), &bytes[..cut]).unwrap();
    let recovered = torn.open().await;
    let held = recovered.held(&id("1")).await.unwrap().unwrap();
    assert_eq!(
        held.tokens.unwrap().refresh_token.unwrap().expose(),
        "canary-refresh-1"
    );
    assert!(recovered.held(&id("2")).await.unwrap().is_none());
    create(&recovered, "2").await;
}

#[tokio::test]
async fn many_processes_open_a_new_database_at_once() {
    let file = File::new();
    let (a, b, c, d) = tokio::join!(file.try_open(), file.try_open(), file.try_open(), file.try_open());
    for opened in [a, b, c, d] {
        opened.unwrap().ping().await.unwrap();
    }
}

#[tokio::test]
async fn a_database_of_a_newer_schema_is_refused_and_not_touched() {
    let file = File::new();
    drop(file.open().await);
    let raw = file.raw();
    raw.execute_batch(
        "INSERT INTO refinery_schema_history VALUES (99, 'later', '', '0');
         UPDATE schema_use SET oldest = 99;
         PRAGMA journal_mode = delete",
    )
    .unwrap();
    drop(raw);
    let before = std::fs::read(file.path()).unwrap();
    for error in [
        file.try_open().await.unwrap_err(),
        SqliteStore::schema(&file.path()).await.unwrap_err(),
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
    assert!(std::fs::read(file.path()).unwrap() == before);
}

/// What the next version knows: this version's schema, and a column more in most tables, and one table more.
/// The newest schema that this version knows.
const KNOWN: i64 = 4;

fn next_version() -> refinery::Runner {
    let first = include_str!("../../migrations-sqlite/V1__first.sql");
    let second = include_str!("../../migrations-sqlite/V2__safe_calls.sql");
    let third = include_str!("../../migrations-sqlite/V3__history.sql");
    let fourth = include_str!("../../migrations-sqlite/V4__webhooks.sql");
    let next = "ALTER TABLE connections ADD COLUMN of_the_future TEXT NOT NULL DEFAULT 'x';
                ALTER TABLE events ADD COLUMN of_the_future TEXT NOT NULL DEFAULT 'x';
                ALTER TABLE changes ADD COLUMN of_the_future TEXT NOT NULL DEFAULT 'x';
                ALTER TABLE apps ADD COLUMN of_the_future TEXT NOT NULL DEFAULT 'x';
                ALTER TABLE schema_use ADD COLUMN of_the_future TEXT NOT NULL DEFAULT 'x';
                CREATE TABLE things_of_the_future (id INTEGER PRIMARY KEY) STRICT";
    let migrations = [
        ("V1__first", first),
        ("V2__safe_calls", second),
        ("V3__history", third),
        ("V4__webhooks", fourth),
        ("V5__next", next),
    ]
    .map(|(name, sql)| refinery::Migration::unapplied(name, sql).unwrap());
    refinery::Runner::new(&migrations)
}

/// A connection is made, redeemed, refreshed and ended.
async fn live(store: &SqliteStore, name: &str) {
    create(store, name).await;
    let LeaseAnswer::Taken { lease, .. } = take(store, name).await else {
        panic!("it is free");
    };
    let refreshed = Refreshed {
        tokens: tokens(&format!("{name}-2")),
        mismatch: None,
        account: None,
        event: event(),
    };
    let landed = store.land(&lease, refreshed, now()).await.unwrap();
    assert!(matches!(landed, Landed::Stored(_)), "{landed:?}");
    store
        .disconnect(&id(name), Revoke::Always, None, event(), now())
        .await
        .unwrap();
    assert!(!store.events(&id(name), 10).await.unwrap().is_empty());
    assert!(!store.changes(0).await.unwrap().0.is_empty());
    write(store, name).await;
    let met = reserve(store, name, "later").await.unwrap();
    assert!(matches!(met, Reserved::Met(Meeting::Done, Some(_))), "{met:?}");
    let budget = BudgetName::Searches { account: name.into() };
    let claim = Claim {
        wanted: 1,
        lane: Lane::Sync,
        returned: Unused::default(),
        unasked: 0,
        learnt: Learnt::default(),
    };
    assert_eq!(store.claim_calls(&budget, claim, now()).await.unwrap().granted, 1);
    store.sweep_writes(now(), u64::MAX).await.unwrap();
}

#[tokio::test]
async fn the_version_before_goes_on_beside_this_one() {
    let file = File::new();
    let first = include_str!("../../migrations-sqlite/V1__first.sql");
    let before = [refinery::Migration::unapplied("V1__first", first).unwrap()];
    let mut old = file.raw();
    refinery::Runner::new(&before).run(&mut old).unwrap();
    let used = "INSERT INTO apps (name, secret_that_worked) VALUES ('crm', 'ours')";
    old.execute_batch(used).unwrap();
    let store = file.open().await;
    let state = store.app_state(&"crm".parse().unwrap()).await.unwrap();
    assert_eq!(state.secret_that_worked.as_deref(), Some("ours"));
    live(&store, "1").await;
    // What the version before tells of an event, it tells still.
    old.execute_batch(
        "INSERT INTO events (at, connection, kind, detail, version, provider_correlation_id)
         SELECT 1, id, 'revoked', 'as before', version, NULL FROM connections WHERE id = '1'",
    )
    .unwrap();
    let told = &store.events(&id("1"), 1).await.unwrap()[0];
    assert_eq!(
        (told.app.as_str(), told.detail.as_str(), &told.process),
        ("crm", "as before", &None)
    );
    let schema = SqliteStore::schema(&file.path()).await.unwrap();
    assert_eq!(
        schema,
        Schema {
            found: KNOWN,
            known: KNOWN
        }
    );
    let oldest: i64 = old
        .query_row("SELECT oldest FROM schema_use", [], |row| row.get(0))
        .unwrap();
    assert_eq!(oldest, 1, "a program of version 1 may start");
}

#[tokio::test]
async fn a_newer_schema_that_may_be_used_is_left_alone() {
    let file = File::new();
    drop(file.open().await);
    let mut raw = file.raw();
    next_version().run(&mut raw).unwrap();
    raw.pragma_update(None, "journal_mode", "delete").unwrap();
    drop(raw);
    let before = std::fs::read(file.path()).unwrap();
    let schema = SqliteStore::schema(&file.path()).await.unwrap();
    assert_eq!(
        schema,
        Schema {
            found: KNOWN + 1,
            known: KNOWN
        }
    );
    drop(file.open().await);
    assert!(std::fs::read(file.path()).unwrap() == before);
}

#[tokio::test]
async fn an_old_process_restarts_beside_a_new_one() {
    let file = File::new();
    let (one, other) = (file.open().await, file.open().await);
    create(&one, "1").await;
    let mut new = file.raw();
    new.busy_timeout(BUSY_TIMEOUT).unwrap();
    next_version().run(&mut new).unwrap();
    let newer_work = std::thread::spawn(move || {
        for number in 0..100 {
            let worked = new.execute_batch(&format!(
                "BEGIN IMMEDIATE;
                 INSERT INTO things_of_the_future VALUES ({number});
                 UPDATE connections SET of_the_future = '{number}' WHERE id = '1';
                 COMMIT"
            ));
            worked.unwrap();
        }
        new
    });
    drop(one);
    let one = file.open().await;
    for (store, name) in [(&one, "2"), (&other, "3"), (&one, "4"), (&other, "5")] {
        live(store, name).await;
    }
    let new = newer_work.join().unwrap();
    let worked = "SELECT count(*) || ' ' || (SELECT of_the_future FROM connections WHERE id = '1') FROM things_of_the_future";
    let worked: String = new.query_row(worked, [], |row| row.get(0)).unwrap();
    assert_eq!(worked, "100 99");
    assert!(taken(&take(&one, "1").await));
    assert!(!taken(&take(&other, "1").await));
}

#[tokio::test]
async fn a_process_that_waited_for_a_newer_one_finds_the_newer_schema() {
    let file = File::new();
    drop(file.open().await);
    let folder = format!(
        "{}.holders",
        std::fs::canonicalize(file.path()).unwrap().display()
    );
    let lock = std::fs::File::open(Path::new(&folder).join(holder::MIGRATION_LOCK)).unwrap();
    lock.lock().unwrap();
    let holders = || -> BTreeSet<_> {
        let files = std::fs::read_dir(&folder).unwrap();
        files.map(|file| file.unwrap().file_name()).collect()
    };
    let before = holders();
    let newer = async {
        // It has looked at the schema once it shows that it lives.
        while holders().is_subset(&before) {
            tokio::task::yield_now().await;
        }
        next_version().run(&mut file.raw()).unwrap();
        lock.unlock().unwrap();
    };
    let (opened, ()) = tokio::join!(file.try_open(), newer);
    live(&opened.unwrap(), "1").await;
}

#[tokio::test]
async fn a_schema_is_made_whole_or_not_at_all() {
    let file = File::new();
    file.raw()
        .execute_batch(
            "CREATE TABLE refinery_schema_history (version INTEGER PRIMARY KEY, name, applied_on, checksum);
             CREATE TRIGGER stop BEFORE INSERT ON refinery_schema_history BEGIN SELECT raise(ABORT, 'stopped'); END",
        )
        .unwrap();
    let error = file.try_open().await.unwrap_err();
    assert!(
        matches!(&error, OpenError::Unavailable { what, .. } if what.contains("stopped")),
        "{error}"
    );
    file.raw().execute_batch("DROP TRIGGER stop").unwrap();
    live(&file.open().await, "1").await;
}

#[tokio::test]
async fn what_is_not_our_database_is_refused_and_not_touched() {
    let file = File::new();
    let text = "this is no database, it only lies where one should be. ".repeat(40);
    std::fs::write(file.path(), &text).unwrap();
    let error = file.try_open().await.unwrap_err();
    assert!(matches!(error, OpenError::NotADatabase { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(file.path()).unwrap(), text);

    let file = File::new();
    file.raw()
        .execute_batch("CREATE TABLE someone_elses (x)")
        .unwrap();
    let error = file.try_open().await.unwrap_err();
    assert!(matches!(error, OpenError::NotADatabase { .. }), "{error}");
}

#[tokio::test]
async fn a_missing_folder_is_named() {
    let vault = Arc::new(Vault::new(VaultKey::generate()));
    let error = SqliteStore::open(Path::new("/nowhere/evergrant.db"), vault)
        .await
        .unwrap_err();
    assert!(matches!(error, OpenError::NoFolder { .. }));
    assert!(error.to_string().contains("/nowhere"), "{error}");
}

#[tokio::test]
async fn another_vault_key_is_refused_at_the_start() {
    let mut file = File::new();
    drop(file.open().await);
    let right = std::mem::replace(&mut file.vault, Arc::new(Vault::new(VaultKey::generate())));
    let error = file.try_open().await.unwrap_err();
    assert!(matches!(error, OpenError::WrongKey), "{error}");
    file.vault = right;
    file.open().await;
}

#[tokio::test]
async fn a_locked_database_is_an_error_and_not_a_hang() {
    let hurried = || File {
        patience: Duration::from_millis(50),
        ..File::new()
    };
    let file = hurried();
    let store = file.open().await;
    create(&store, "1").await;
    let raw = file.raw();
    raw.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = store.note_event(&id("1"), event(), now()).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Unavailable { what, outcome_unknown: false } if what.contains("locked")),
        "{error:?}"
    );
    store.held(&id("1")).await.unwrap().expect("reading goes on");
    raw.execute_batch("ROLLBACK").unwrap();
    store.note_event(&id("1"), event(), now()).await.unwrap();

    drop(store);
    let locked = hurried();
    let raw = locked.raw();
    raw.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let error = locked.try_open().await.unwrap_err();
    assert!(
        matches!(&error, OpenError::Unavailable { what, .. } if what.contains("locked")),
        "{error}"
    );
}

#[tokio::test]
async fn a_full_disk_fails_writes_and_keeps_what_there_is() {
    let file = File::new();
    let store = file.open().await;
    create(&store, "1").await;
    store
        .write(|db| {
            let pages: i64 = db.sql.query_row("PRAGMA page_count", [], |row| row.get(0))?;
            db.sql
                .query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))?;
            Ok(())
        })
        .await
        .unwrap();
    let long = || Event::new(EventKind::Connected, "x".repeat(100_000));
    // Beside it in the same commit there may be one that needs no room: each is told the truth.
    let one = &id("1");
    let (full, small) = tokio::join!(
        store.note_event(one, long(), now()),
        store.note_event(one, event(), now())
    );
    let error = full.unwrap_err();
    assert!(
        matches!(&error, StoreError::Unavailable { what, outcome_unknown: false } if what.contains("full")),
        "{error:?}"
    );
    let kept = store.events(&id("1"), 10).await.unwrap().len();
    assert_eq!(kept, 1 + usize::from(small.is_ok()));
    assert!(store.held(&id("1")).await.unwrap().is_some());
}

#[tokio::test]
async fn a_write_that_fails_takes_no_other_with_it() {
    let file = File::new();
    let store = file.open().await;
    create(&store, "1").await;
    let broken = store.write(|db| -> Result<(), StoreError> {
        db.append_event(&id("1"), Before::Unchanged, &event(), now())?;
        Err(StoreError::Corrupt {
            what: "a test".into(),
        })
    });
    let one = &id("1");
    let (first, broken, last) = tokio::join!(
        store.note_event(one, event(), now()),
        broken,
        store.note_event(one, event(), now())
    );
    assert!(first.is_ok() && broken.is_err() && last.is_ok());
    assert_eq!(store.events(&id("1"), 10).await.unwrap().len(), 3);
}

#[tokio::test]
async fn two_processes_race_for_a_lease_and_one_wins() {
    let file = File::new();
    let (a, b) = (file.open().await, file.open().await);
    for round in 0..20 {
        let name = format!("{round}");
        create(&a, &name).await;
        let (one, other) = tokio::join!(take(&a, &name), take(&b, &name));
        assert!(taken(&one) != taken(&other), "{one:?} {other:?}");
    }
}

#[tokio::test]
async fn a_dead_holders_lease_is_free_at_once() {
    let file = File::new();
    let (dying, living) = (file.open().await, file.open().await);
    create(&living, "1").await;
    assert!(taken(&take(&dying, "1").await));
    assert!(matches!(take(&living, "1").await, LeaseAnswer::Busy));
    drop(dying);
    let answer = take(&living, "1").await;
    assert!(
        matches!(answer, LeaseAnswer::Taken { took_over: true, .. }),
        "{answer:?}"
    );
}

#[tokio::test]
async fn a_holder_that_died_without_a_word_is_swept_away() {
    let file = File::new();
    let store = file.open().await;
    let holders = file.folder.path().join("evergrant.db.holders");
    // What a killed process leaves: its file, and no lock on it.
    std::fs::write(holders.join("killed"), "").unwrap();
    let files = || std::fs::read_dir(&holders).unwrap().count();
    assert_eq!(files(), 3, "the living, the dead, and the lock of the schema");
    let other = file.open().await;
    assert_eq!(files(), 3, "two that live, and the lock");
    drop((store, other));
    assert_eq!(files(), 1);
}

#[tokio::test]
async fn a_living_holders_lease_lasts_until_its_cap_on_the_boot_time_clock() {
    let file = File::new();
    let (slow, waiting) = (file.open().await, file.open().await);
    create(&slow, "1").await;
    let LeaseAnswer::Taken { lease, .. } = take(&slow, "1").await else {
        panic!("nobody has it");
    };
    file.boot_millis.store(59_999, Ordering::Relaxed);
    assert!(matches!(take(&waiting, "1").await, LeaseAnswer::Busy));
    assert!(slow.lease_lasts(&lease, Duration::from_millis(1)).await.unwrap());
    assert!(!slow.lease_lasts(&lease, Duration::from_millis(2)).await.unwrap());
    file.boot_millis.store(60_000, Ordering::Relaxed);
    assert!(taken(&take(&waiting, "1").await));
}

#[tokio::test]
async fn a_lease_does_not_outlive_its_boot() {
    let mut file = File::new();
    let before = file.open().await;
    create(&before, "1").await;
    assert!(taken(&take(&before, "1").await));
    file.boot = "the next boot";
    let after = file.open().await;
    // `before` is alive only because this is a test: a restored snapshot of its machine would look the same.
    assert!(taken(&take(&after, "1").await));
}

// Rule 14: `AND status <> 'disconnected'`. No lease is given for a disconnected version, so one is forged here.
#[tokio::test]
async fn nothing_lands_on_a_disconnected_connection_whatever_its_version() {
    let file = File::new();
    let store = file.open().await;
    create(&store, "1").await;
    let gone = store
        .disconnect(&id("1"), Revoke::Never, None, event(), now())
        .await;
    let (gone, _) = gone.unwrap().unwrap();
    let refreshed = Refreshed {
        tokens: tokens("2"),
        mismatch: Some("another account".into()),
        account: None,
        event: event(),
    };
    let forged = Lease::new(id("1"), gone.version, Fence::new(9));
    let landed = store.land(&forged, refreshed, now()).await.unwrap();
    assert!(matches!(landed, Landed::Disconnected), "{landed:?}");
    let held = store.held(&id("1")).await.unwrap().unwrap();
    assert_eq!(
        (held.connection.status, held.tokens.is_none()),
        (gone.status, true)
    );
}

#[tokio::test]
async fn a_flipped_byte_spoils_its_own_record_only() {
    let file = File::new();
    let store = file.open().await;
    for name in ["1", "2"] {
        create(&store, name).await;
    }
    let raw = file.raw();
    for field in ["access_token", "refresh_token"] {
        let read = format!("SELECT {field} FROM connections WHERE id = '1'");
        let sealed: Vec<u8> = raw.query_row(&read, [], |row| row.get(0)).unwrap();
        let write = |bytes: &[u8]| {
            raw.execute(
                &format!("UPDATE connections SET {field} = ?1 WHERE id = '1'"),
                [bytes],
            )
            .unwrap();
        };
        for byte in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[byte] ^= 0x20;
            write(&flipped);
            let error = store.held(&id("1")).await.unwrap_err();
            let expected = matches!(&error, StoreError::Unreadable { record, field: at }
                if record == "connections 1" && *at == field);
            assert!(expected, "{field}, byte {byte}: {error}");
        }
        let lease = store
            .take_lease(&id("1"), Version::FIRST, LEASE, LeaseOn::Active, now())
            .await;
        assert!(matches!(lease, Err(StoreError::Unreadable { .. })), "{lease:?}");
        assert!(store.held(&id("2")).await.unwrap().unwrap().tokens.is_some());
        assert!(
            store.connection(&id("1")).await.unwrap().is_some(),
            "its record is readable"
        );
        write(&sealed);
        assert!(store.held(&id("1")).await.unwrap().unwrap().tokens.is_some());
    }
}

#[tokio::test]
async fn more_than_is_swept_at_once_is_swept_in_turns() {
    let file = File::new();
    let store = file.open().await;
    let raw = file.raw();
    raw.execute_batch(
        "WITH RECURSIVE numbers (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < 12000)
         INSERT INTO writes (connection, key, request, owner, state, keep_until, changed_at, answer, body, body_bytes)
         SELECT '1', number, 'r', 'o', 'done', number, number, x'00', x'00', 1 FROM numbers",
    )
    .unwrap();
    let kept = || -> (i64, i64) {
        raw.query_row("SELECT count(*), count(body) FROM writes", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap()
    };
    store.sweep_writes(now(), 500).await.unwrap();
    assert_eq!(kept(), (12_000, 500));
    let oldest = "SELECT min(changed_at) FROM writes WHERE body IS NOT NULL";
    let oldest: i64 = raw.query_row(oldest, [], |row| row.get(0)).unwrap();
    assert_eq!(oldest, 11_501);
    store
        .sweep_writes(Timestamp::from_millis(11_900), 500)
        .await
        .unwrap();
    assert_eq!(kept(), (100, 100));
}

#[tokio::test]
async fn a_flipped_byte_spoils_its_own_answer_only() {
    let file = File::new();
    let store = file.open().await;
    for key in ["k1", "k2"] {
        write(&store, key).await;
    }
    let raw = file.raw();
    let is_read = async |key| match reserve(&store, key, "later").await {
        Ok(Reserved::Met(Meeting::Done, Some(answer))) => {
            assert_eq!(answer.body.as_deref(), Some(&b"canary-in-body"[..]));
        }
        other => panic!("{key} is done: {other:?}"),
    };
    for field in ["answer", "body"] {
        let sealed: Vec<u8> = raw
            .query_row(
                &format!("SELECT {field} FROM writes WHERE key = 'k1'"),
                [],
                |row| row.get(0),
            )
            .unwrap();
        let put = |bytes: &[u8]| {
            raw.execute(
                &format!("UPDATE writes SET {field} = ?1 WHERE key = 'k1'"),
                [bytes],
            )
            .unwrap();
        };
        let mut flipped = sealed.clone();
        flipped[30] ^= 1;
        let of_another: Vec<u8> = raw
            .query_row(
                &format!("SELECT {field} FROM writes WHERE key = 'k2'"),
                [],
                |row| row.get(0),
            )
            .unwrap();
        for spoilt in [flipped, of_another] {
            put(&spoilt);
            let error = reserve(&store, "k1", "later").await.unwrap_err();
            assert!(
                matches!(&error, StoreError::Unreadable { field: at, .. } if *at == field),
                "{field}: {error}"
            );
            assert!(!error.to_string().contains("canary"), "{error}");
            is_read("k2").await;
        }
        put(&sealed);
        is_read("k1").await;
    }
    raw.execute("UPDATE writes SET owner = 'another try' WHERE key = 'k1'", [])
        .unwrap();
    let error = reserve(&store, "k1", "later").await.unwrap_err();
    assert!(
        matches!(error, StoreError::Unreadable { .. }),
        "of another try: {error}"
    );
}

#[tokio::test]
async fn a_sealed_token_moved_elsewhere_is_refused() {
    let file = File::new();
    let store = file.open().await;
    for name in ["1", "2"] {
        create(&store, name).await;
    }
    let raw = file.raw();
    let moved = async |what: &str, sql: &str| {
        raw.execute_batch(&format!("SAVEPOINT moved; {sql}; RELEASE moved"))
            .unwrap();
        let error = store.held(&id("1")).await.unwrap_err();
        assert!(matches!(error, StoreError::Unreadable { .. }), "{what}: {error}");
    };
    raw.execute_batch("CREATE TABLE kept AS SELECT * FROM connections")
        .unwrap();
    let back = "UPDATE connections SET version = 1,
                       (access_token, refresh_token) = (SELECT access_token, refresh_token FROM kept WHERE id = '1')
                 WHERE id = '1'";
    moved(
        "from another row",
        "UPDATE connections SET access_token = (SELECT access_token FROM kept WHERE id = '2') WHERE id = '1'",
    )
    .await;
    raw.execute_batch(back).unwrap();
    moved(
        "from another field",
        "UPDATE connections SET access_token = refresh_token WHERE id = '1'",
    )
    .await;
    raw.execute_batch(back).unwrap();
    moved(
        "to another version",
        "UPDATE connections SET version = 2 WHERE id = '1'",
    )
    .await;
    raw.execute_batch(back).unwrap();
    assert!(store.held(&id("1")).await.unwrap().unwrap().tokens.is_some());
}

// I6: whoever has the file, its log and its shared memory has no token.
#[tokio::test]
async fn no_secret_is_found_in_any_file() {
    let file = File::new();
    let store = file.open().await;
    for name in ["1", "2"] {
        create(&store, name).await;
    }
    store
        .disconnect(&id("2"), Revoke::Always, None, event(), now())
        .await
        .unwrap();
    let authorization = Authorization {
        state_hash: [1; 32],
        session: None,
        app: "crm".parse().unwrap(),
        customer: "acme".parse().unwrap(),
        connection: None,
        scopes: vec![],
        return_url: None,
        code_verifier: Some(CodeVerifier::new("canary-verifier")),
        expires_at: now(),
    };
    store.begin_authorization(authorization).await.unwrap();
    write(&store, "k1").await;
    let search = |when: &str| {
        let mut files = 0;
        for entry in std::fs::read_dir(file.folder.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                continue;
            }
            files += 1;
            let bytes = std::fs::read(&path).unwrap();
            let found = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
            for canary in CANARIES {
                // Base64 of a longer text has one of three shapes, by where the secret begins in it.
                let mut shapes = vec![canary.as_bytes().to_vec()];
                for skipped in 0..3 {
                    let text = &canary.as_bytes()[skipped..skipped + 9];
                    shapes.push(STANDARD_NO_PAD.encode(text).into_bytes());
                    shapes.push(URL_SAFE_NO_PAD.encode(text).into_bytes());
                }
                let hex = crate::record::hex(canary.as_bytes());
                shapes.push(hex.to_uppercase().into_bytes());
                shapes.push(hex.into_bytes());
                assert!(
                    !shapes.iter().any(|shape| found(shape)),
                    "{canary} in {path:?}, {when}"
                );
            }
        }
        files
    };
    assert_eq!(search("while open"), 3, "database, log and shared memory");
    let raw = file.raw();
    drop(store);
    raw.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    assert!(search("after a checkpoint") >= 1);
    let stored: Vec<u8> = raw
        .query_row("SELECT access_token FROM connections WHERE id = '1'", [], |row| {
            row.get(0)
        })
        .unwrap();
    assert!(!stored.is_empty(), "there is something to find");
}

#[tokio::test]
async fn the_schema_keeps_each_status_to_its_own_fields() {
    let file = File::new();
    let store = file.open().await;
    create(&store, "1").await;
    let raw = file.raw();
    for wrong in [
        "status = 'disconnected'",
        "status = 'reconnect_required'",
        "status = 'reconnect_required', status_reason = 'grant_refused'",
        "status_since = 1",
        "access_token = NULL",
        "superseded_by = 'c2'",
        "lease_holder = 'someone'",
        "trouble_code = '503'",
        "refresh_token = NULL",
        "kind = 'static'",
        "version = 0",
        "customer = NULL",
    ] {
        let changed = raw.execute(&format!("UPDATE connections SET {wrong}"), []);
        assert!(changed.is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn a_commit_survives_the_loss_of_power() {
    let file = File::new();
    let store = file.open().await;
    let settings = store.write(|db| {
        let pragma =
            |name: &str| db.value::<String>(&format!("SELECT CAST({name} AS TEXT) FROM pragma_{name}"), []);
        Ok((
            pragma("synchronous")?,
            pragma("journal_mode")?,
            pragma("foreign_keys")?,
        ))
    });
    let full = |text: &str| Some(text.to_owned());
    assert_eq!(settings.await.unwrap(), (full("2"), full("wal"), full("1")));
}

#[tokio::test]
async fn no_error_shows_a_value() {
    let file = File::new();
    let store = file.open().await;
    create(&store, "1").await;
    file.raw()
        .execute(
            "UPDATE connections SET app = 'CANARY NAME', scopes = 'CANARY'",
            [],
        )
        .unwrap();
    let error = store.held(&id("1")).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }));
    assert!(!format!("{error} {error:?}").contains("CANARY"), "{error}");
}

// Rule 18: "failover, restored backup".
#[tokio::test]
async fn a_backup_that_was_put_back_or_another_file_is_another_epoch() {
    let file = File::new();
    let store = file.open().await;
    create(&store, "1").await;
    let epoch = async || store.pulse().await.unwrap().epoch;
    let first = epoch().await;
    create(&store, "2").await;
    assert_eq!(epoch().await, first);
    let shown = file.raw();
    shown
        .execute(
            "UPDATE sqlite_sequence SET seq = seq - 1 WHERE name = 'changes'",
            [],
        )
        .unwrap();
    let older = epoch().await;
    assert_ne!(older, first, "it was further before");
    assert_eq!(epoch().await, older);
    let copy = file.folder.path().join("copy");
    std::fs::copy(file.path(), &copy).unwrap();
    std::fs::rename(&copy, file.path()).unwrap();
    assert_ne!(epoch().await, older, "what is open is not what lies there");
}

#[tokio::test]
async fn a_clock_that_was_set_back_holds_up_no_exchanges() {
    let store = File::new().open().await;
    let crm = "crm".parse().unwrap();
    let claim = async |seconds: i64| {
        let now = Timestamp::from_millis(seconds * 1000);
        store.claim_exchanges(&crm, 7, 10, now).await.unwrap()
    };
    assert_eq!([claim(100).await, claim(100).await, claim(100).await], [7, 3, 0]);
    assert_eq!(claim(99).await, 0, "a process that is a little behind");
    assert_eq!(claim(101).await, 7);
    assert_eq!(claim(50).await, 7);
}
