//! A store that has lost what it had confirmed: PROTOCOL.md, rule 18.

use evergrant_domain::{ConnectionStatus, ReconnectReason, Version};
use evergrant_store::Store;
use evergrant_store::contract::{Change, Held, Landed, Presented, Revoke};

use crate::fixture::*;

async fn restore(store: &impl Store, name: &str, shown: i64, version: i64, set: &str) -> Option<Held> {
    store
        .restore(
            &id(name),
            Version::new(shown),
            Version::new(version),
            tokens(set),
            event(),
            at(9),
        )
        .await
        .unwrap()
}

pub(crate) async fn a_set_that_the_store_lost_is_put_back_whole(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    create(&a, new("c1")).await;
    let slow = lease(&b, "c1", 1, NO_TIME).await;
    b.give_up(&slow, Presented::Unknown, Some(trouble()), None, at(2))
        .await
        .unwrap();
    let lost = lease(&b, "c1", 1, LEASE).await;
    b.begin_cooldown(&id("c1"), Version::FIRST, at(2)).await.unwrap();
    let seen = a.change_head().await.unwrap();

    let held = restore(&a, "c1", 1, 5, "newest").await.expect("version 1 stands");
    let connection = &held.connection;
    assert_eq!(connection.version, Version::new(5));
    assert_eq!(connection.status, ConnectionStatus::Active);
    assert_eq!(
        (&connection.intent, &connection.trouble, held.cooldown),
        (&None, &None, None)
    );
    assert_eq!(connection.refresh_in_progress_until, None);
    assert_eq!(token_name(&b, "c1").await, "newest");
    let told = Change::Connection {
        id: id("c1"),
        version: Version::new(5),
    };
    assert_eq!(b.changes(seen).await.unwrap().0, [told]);
    let newest = &b.events(&id("c1"), 1).await.unwrap()[0];
    assert_eq!(newest.version, Some(Version::new(5)));

    assert!(
        !b.lease_lasts(&lost, NO_TIME).await.unwrap(),
        "its version was redeemed before"
    );
    assert!(matches!(land(&b, &lost, "late").await, Landed::Moved(_)));
    let next = lease(&b, "c1", 5, LEASE).await;
    assert!(next.fence() > lost.fence());
}

pub(crate) async fn nothing_is_put_back_over_what_moved_meanwhile(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    create(&a, new("c1")).await;
    let (one, other) = tokio::join!(
        restore(&a, "c1", 1, 4, "of one"),
        restore(&b, "c1", 1, 5, "of the other")
    );
    assert!(
        one.is_some() != other.is_some(),
        "both looked at the same: {one:?} {other:?}"
    );
    let stands = held(&a, "c1").await.connection.version.number();
    let (name, at_most) = (token_name(&a, "c1").await, stands);
    for version in [0, 1, at_most] {
        let older = restore(&a, "c1", stands, version, "older").await;
        assert!(older.is_none(), "{version} is not newer");
    }
    assert!(
        restore(&a, "c1", 1, stands + 1, "late").await.is_none(),
        "it looked at what is there no more"
    );
    assert!(restore(&a, "nobody", 1, 2, "x").await.is_none());
    assert_eq!(token_name(&a, "c1").await, name);
    // What another connection holds would be redeemed twice.
    create(&a, new("c2")).await;
    assert!(restore(&a, "c2", 1, 2, &name).await.is_none());
    a.disconnect(&id("c2"), Revoke::Never, None, event(), at(9))
        .await
        .unwrap();
    assert!(
        restore(&a, "c2", 2, 9, "gone").await.is_none(),
        "its owner's word is final"
    );
}

pub(crate) async fn what_is_put_back_needs_no_reconnecting(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let lease = lease(&store, "c1", 1, LEASE).await;
    let condemned = store
        .condemn(&lease, ReconnectReason::GrantRefused, event(), at(2))
        .await;
    assert!(condemned.unwrap());
    let held = restore(&store, "c1", 1, 2, "newest").await.unwrap();
    assert_eq!(held.connection.status, ConnectionStatus::Active);
}

pub(crate) async fn an_epoch_stands_as_long_as_nothing_is_lost(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let before = store.pulse().await.unwrap();
    create(&store, new("c1")).await;
    let lease = lease(&store, "c1", 1, LEASE).await;
    land(&store, &lease, "two").await;
    store.sweep(at(100_000_000_000)).await.unwrap();
    let after = store.pulse().await.unwrap();
    assert_eq!(before.epoch, after.epoch);
    assert!(before.now <= after.now);
}
