//! The embedded store and its disk: checks 17 to 19, and 24 as far as a file can be locked.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::process::Signal;
use serde_json::json;

use crate::disturb::{Strace, empty_disk, fill_disk};
use crate::provider::{Rotation, prepared};
use crate::site::{Introspection, Service, Site, Store};
use crate::web::eventually;

async fn begin() -> Arc<Site> {
    Arc::new(Site::new(Store::Sqlite, Rotation::SingleUse, Introspection::Off).await)
}

// Check 17.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_tokens_serve_and_no_redemption_is_begun() {
    let site = begin().await;
    let service = site.serve_with_patience_for_full_disks();
    site.connect_fresh(&service, "fresh").await;
    site.connect(&service, "due").await;
    fill_disk(&service);
    for _ in 0..3 {
        assert_eq!(site.call(&service, "fresh").await.status, 200);
        let answer = site.call(&service, "due").await;
        assert_eq!(
            (answer.status.as_u16(), answer.error()),
            (503, "store_unavailable"),
            "{answer:?}"
        );
        assert!(!answer.header("retry-after").is_empty(), "{answer:?}");
    }
    assert_eq!(site.provider.ledger().await.token_requests, 0);
    empty_disk(&service);
    site.call_until_served(&service, "due").await;
    let ledger = site.provider.ledger().await;
    assert_eq!(ledger.grant("due").presented, 1, "{ledger:?}");
    ledger.is_clean(0);
}

// Check 17: it fills up while the provider answers.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_redeemed_as_the_disk_filled_up_is_stored_when_there_is_room() {
    let site = begin().await;
    let service = Arc::new(site.serve_with_patience_for_full_disks());
    with_an_answer_in_hand(&site, &service, fill_disk, |()| empty_disk(&service)).await;
}

// Check 18.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_disk_does_not_confirm_nothing_counts_as_stored() {
    let site = begin().await;
    let service = Arc::new(site.serve());
    let unconfirmed = |service: &Service| Strace::inject(service, "fsync,fdatasync:error=EIO");
    with_an_answer_in_hand(&site, &service, unconfirmed, drop).await;
}

/// The disk fails while the provider answers, and works again once others have seen that nothing counts as stored.
async fn with_an_answer_in_hand<T>(
    site: &Arc<Site>,
    service: &Arc<Service>,
    fail: impl FnOnce(&Service) -> T,
    mend: impl FnOnce(T),
) {
    site.connect(service, "acme").await;
    site.provider.fault(json!({"hold": true})).await;
    let call = tokio::spawn({
        let (site, service) = (site.clone(), service.clone());
        async move { site.call(&service, "acme").await }
    });
    site.provider.holds(1).await;
    let failing = fail(service);
    site.provider.heal().await;
    eventually("it says loudly that a token set is not stored", async || {
        site.printed().contains(r#""level":"error""#)
    })
    .await;
    let other = site.serve();
    assert_eq!(site.record(&other, "acme").await["version"], 1);
    mend(failing);
    stored_and_survives_a_kill(site, service, other).await;
    // Whoever asked was given the token, which serves, or told to come again.
    let told = call.await.unwrap().status;
    assert!(told == 200 || told == 503, "{told}");
    let ledger = site.provider.ledger().await;
    assert_eq!(ledger.grant("acme").presented, 1, "{ledger:?}");
    ledger.is_clean(0);
}

/// The token set that is in hand gets to where others see it, and the next process finds it there.
async fn stored_and_survives_a_kill(site: &Site, service: &Service, other: Service) {
    eventually("it is stored", async || {
        site.record(&other, "acme").await["version"] == 2
    })
    .await;
    drop(other);
    service.signal(Signal::KILL);
    service.ended();
    let next = site.serve();
    assert_eq!(site.record(&next, "acme").await["version"], 2);
    assert_eq!(site.call(&next, "acme").await.status, 200);
}

// Check 19.
#[tokio::test(flavor = "multi_thread")]
async fn a_torn_end_of_the_log_costs_nothing_that_was_committed() {
    let site = begin().await;
    let service = site.serve();
    site.connect(&service, "acme").await;
    assert_eq!(site.call(&service, "acme").await.status, 200);
    service.signal(Signal::KILL);
    service.ended();
    let log = site.path("evergrant.db-wal");
    let kept = std::fs::read(&log).unwrap();
    // The beginning of a frame that was never finished: its header looks like the last one's.
    let mut file = std::fs::OpenOptions::new().append(true).open(&log).unwrap();
    file.write_all(&kept[kept.len() - 4120..kept.len() - 2000])
        .unwrap();
    drop(file);
    let next = site.serve();
    assert_eq!(site.record(&next, "acme").await["version"], 2);
    assert_eq!(site.call(&next, "acme").await.status, 200);
    let ledger = site.provider.ledger().await;
    assert_eq!(ledger.grant("acme").presented, 1, "{ledger:?}");
}

// Check 19.
#[tokio::test(flavor = "multi_thread")]
async fn a_bit_that_flips_in_a_sealed_token_costs_that_connection_only() {
    let site = begin().await;
    let service = site.serve();
    for customer in ["acme", "globex"] {
        site.connect(&service, customer).await;
    }
    service.signal(Signal::TERM);
    assert!(service.ended().success());
    let flipped = python(
        &site,
        "import sqlite3\n\
         db = sqlite3.connect('evergrant.db')\n\
         db.row_factory = sqlite3.Row\n\
         row = db.execute(\"SELECT * FROM connections WHERE id = 'acme'\").fetchone()\n\
         for name in row.keys():\n\
         \x20   if isinstance(row[name], bytes) and row[name]:\n\
         \x20       blob = bytearray(row[name])\n\
         \x20       blob[len(blob) // 2] ^= 1\n\
         \x20       db.execute(f\"UPDATE connections SET {name} = ? WHERE id = 'acme'\", (bytes(blob),))\n\
         \x20       print(name)\n\
         db.commit()\n",
    );
    assert!(flipped.contains("refresh_token"), "{flipped}");
    let service = site.serve();
    let answer = site.call(&service, "acme").await;
    assert!(
        answer.status.as_u16() >= 500 || answer.status == 424,
        "{answer:?}"
    );
    assert!(!answer.error().is_empty(), "{answer:?}");
    assert_eq!(site.call(&service, "globex").await.status, 200);
    let ledger = site.provider.ledger().await;
    assert_eq!(
        (ledger.grant("acme").presented, ledger.grant("globex").presented),
        (0, 1)
    );
    ledger.is_clean(0);
}

// Check 24.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_keeps_the_file_locked_delays_redemptions_and_doubles_none() {
    let site = begin().await;
    let service = site.serve();
    site.connect_fresh(&service, "fresh").await;
    site.connect(&service, "due").await;
    let mut locker = Command::new(prepared("EVERGRANT_TEST_PYTHON"))
        .current_dir(site.path(""))
        .args([
            "-c",
            "import sqlite3, sys\n\
             db = sqlite3.connect('evergrant.db', isolation_level=None)\n\
             db.execute('BEGIN IMMEDIATE')\n\
             print('locked', flush=True)\n\
             sys.stdin.read()\n",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 6];
    std::io::Read::read_exact(locker.stdout.as_mut().unwrap(), &mut said).unwrap();
    assert_eq!(site.call(&service, "fresh").await.status, 200);
    let answer = site.call(&service, "due").await;
    assert_eq!(
        (answer.status.as_u16(), answer.error()),
        (503, "store_unavailable"),
        "{answer:?}"
    );
    assert!(!answer.header("retry-after").is_empty(), "{answer:?}");
    assert_eq!(site.provider.ledger().await.token_requests, 0);
    drop(locker.stdin.take());
    locker.wait().unwrap();
    site.call_until_served(&service, "due").await;
    let ledger = site.provider.ledger().await;
    assert_eq!(ledger.grant("due").presented, 1, "{ledger:?}");
    ledger.is_clean(0);
}

fn python(site: &Site, script: &str) -> String {
    let done = Command::new(prepared("EVERGRANT_TEST_PYTHON"))
        .current_dir(site.path(""))
        .args(["-c", script])
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}
