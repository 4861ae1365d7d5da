//! A replica that takes over without the last commits: PROTOCOL.md, rule 18; RELIABILITY.md, check 20.

use std::time::Duration;

use evergrant_domain::Version;
use evergrant_store::Store;
use evergrant_store::contract::{LeaseAnswer, Presented};
use test_postgres::Server;

use crate::database::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_without_the_last_commit_is_noticed_and_what_it_lacks_put_back() {
    let primary = Server::new();
    let database = Database::on(&primary);
    let standby = primary.asynchronous_standby();
    let url = format!(
        "postgres://evergrant@{},{}/{}",
        primary.host(),
        standby.host(),
        database.name
    );
    let (store, other) = (
        database.try_open(&url).await.unwrap(),
        database.try_open(&url).await.unwrap(),
    );
    create(&store, new("c1")).await;
    create(&store, new("c2")).await;
    let before = store.pulse().await.unwrap();
    assert!(before.now.is_some(), "its clock is the fleet's");
    standby.cut_off(&primary);
    let landing = lease(&store, "c1").await;
    store.land(&landing, refreshed("two"), NOW).await.unwrap();
    let lost = lease(&store, "c2").await;
    assert_eq!(store.pulse().await.unwrap().epoch, before.epoch);
    primary.crash();
    standby.promote();

    assert_eq!(version(&store, "c1").await, 1, "the replica never saw the second");
    assert_ne!(store.pulse().await.unwrap().epoch, before.epoch);
    let restored = store
        .restore(
            &id("c1"),
            Version::FIRST,
            Version::new(2),
            tokens("two"),
            event(),
            NOW,
        )
        .await
        .unwrap()
        .expect("the first stands");
    let set = restored.tokens.and_then(|tokens| tokens.refresh_token).unwrap();
    assert_eq!(set.expose(), "canary-refresh-two");

    // The lease that was lost has its fence given out again, to another process.
    let taken = lease(&other, "c2").await;
    assert_eq!(taken.fence(), lost.fence());
    assert!(!store.lease_lasts(&lost, Duration::ZERO).await.unwrap());
    assert!(!store.renew_lease(&lost, LEASE).await.unwrap());
    store
        .give_up(&lost, Presented::No, None, None, NOW)
        .await
        .unwrap();
    assert!(other.lease_lasts(&taken, Duration::ZERO).await.unwrap());
    let answer = take(&store, "c2").await;
    assert!(matches!(answer, LeaseAnswer::Busy), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_started_again_may_have_been_restored() {
    let server = Server::new();
    let database = Database::on(&server);
    let store = database.open().await;
    let before = store.pulse().await.unwrap();
    server.stop();
    server.start();
    let after = store.pulse().await.unwrap();
    assert_ne!(before.epoch, after.epoch);
    assert_eq!(store.pulse().await.unwrap().epoch, after.epoch);
    // A dump that was put back tells by the numbers of the feed.
    create(&store, new("c1")).await;
    let before = store.pulse().await.unwrap();
    database.sql("ALTER SEQUENCE changes_id_seq RESTART");
    assert_ne!(store.pulse().await.unwrap().epoch, before.epoch);
}
