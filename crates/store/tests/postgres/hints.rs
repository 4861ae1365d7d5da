//! Hints that the change feed has something new.

use std::time::Duration;

use evergrant_store::{PostgresStore, Store};
use futures_util::FutureExt as _;

use crate::database::*;

async fn hinted(store: &PostgresStore) {
    let hint = tokio::time::timeout(Duration::from_secs(20), store.hint());
    hint.await.expect("somebody hints");
}

#[tokio::test]
async fn what_another_process_committed_is_hinted_and_ones_own_is_not() {
    let database = Database::new();
    let (writes, reads) = (database.open().await, database.open().await);
    // The first hint says that from now on there are some.
    hinted(&writes).await;
    hinted(&reads).await;
    for round in 1..=3 {
        let head = reads.change_head().await.unwrap();
        create(&writes, new(&format!("c{round}"))).await;
        hinted(&reads).await;
        assert_eq!(
            reads.changes(head).await.unwrap().0.len(),
            1,
            "it is there when it is told"
        );
        assert!(writes.hint().now_or_never().is_none());
    }
}

#[tokio::test]
async fn a_listener_that_was_cut_off_listens_again_and_may_have_missed_something() {
    let database = Database::new();
    let (writes, reads) = (database.open().await, database.open().await);
    hinted(&writes).await;
    hinted(&reads).await;
    let ended = database.sql(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
          WHERE datname = current_database() AND query LIKE 'LISTEN%'",
    );
    assert_eq!(ended, "2");
    hinted(&reads).await;
    hinted(&writes).await;
    create(&writes, new("c1")).await;
    hinted(&reads).await;
}
