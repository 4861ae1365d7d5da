//! What runs behind the calls: claims, use, the change feed, what is known about apps.

use std::time::Duration;

use evergrant_domain::connection::LastSeen;
use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::tally::Tally;
use evergrant_domain::{Kind, ReconnectReason, Version};
use evergrant_store::Store;
use evergrant_store::contract::{Change, DueQuery, Presented, RevocationState, Revoke, Usage};

use crate::fixture::*;

fn due(now: i64) -> DueQuery {
    DueQuery {
        now: at(now),
        apps: vec![(app("crm"), None)],
        limit: 10,
        push: Duration::from_secs(60),
    }
}

// "Due rows are claimed by the statement that reads them."
pub(crate) async fn a_due_connection_is_claimed_once(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    create(&a, new("c1")).await;
    let (one, other) = tokio::join!(a.claim_due(due(100)), b.claim_due(due(100)));
    assert_eq!([one.unwrap(), other.unwrap()].concat(), [id("c1")]);
    assert!(a.claim_due(due(159)).await.unwrap().is_empty());
    assert_eq!(
        b.claim_due(due(160)).await.unwrap(),
        [id("c1")],
        "the claimant may have died"
    );
    let lease = lease(&a, "c1", 1, LEASE).await;
    land(&a, &lease, "two").await;
    assert_eq!(
        a.claim_due(due(161)).await.unwrap(),
        [id("c1")],
        "a new set is due by its own ends"
    );
}

pub(crate) async fn only_what_is_due_is_claimed(fixture: &impl Fixture) {
    let store = fixture.open().await;
    for name in ["healthy", "troubled", "condemned", "left"] {
        create(&store, new(name)).await;
    }
    let mut fixed = new("static");
    fixed.kind = Kind::Static;
    fixed.tokens.refresh_token = None;
    create(&store, fixed).await;
    let mut elsewhere = new("elsewhere");
    elsewhere.app = app("erp");
    create(&store, elsewhere).await;
    let failing = lease(&store, "troubled", 1, LEASE).await;
    store
        .give_up(&failing, Presented::No, Some(trouble()), None, at(10))
        .await
        .unwrap();
    let refused = lease(&store, "condemned", 1, LEASE).await;
    store
        .condemn(&refused, ReconnectReason::GrantRefused, event(), at(10))
        .await
        .unwrap();
    store
        .disconnect(&id("left"), Revoke::Never, None, event(), at(10))
        .await
        .unwrap();

    assert!(
        store.claim_due(due(99)).await.unwrap().is_empty(),
        "not before the soft end"
    );
    let used = |since| DueQuery {
        apps: vec![(app("crm"), Some(at(since)))],
        ..due(100)
    };
    assert!(store.claim_due(used(50)).await.unwrap().is_empty(), "never used");
    let last = LastSeen {
        call_at: Some(at(50)),
        ..LastSeen::default()
    };
    let usage = |name| Usage {
        connection: id(name),
        app: app("crm"),
        last: last.clone(),
        tally: Tally::default(),
    };
    store
        .note_usage(vec![usage("healthy"), usage("nobody")], at(50))
        .await
        .unwrap();
    assert!(store.claim_due(used(51)).await.unwrap().is_empty(), "not lately");
    let none = DueQuery { limit: 0, ..due(100) };
    assert!(store.claim_due(none).await.unwrap().is_empty());
    assert_eq!(store.claim_due(used(50)).await.unwrap(), [id("healthy")]);
    assert!(
        store.claim_due(due(150)).await.unwrap().is_empty(),
        "trouble says when next"
    );
    let mut later = store.claim_due(due(500)).await.unwrap();
    later.sort();
    assert_eq!(later, [id("healthy"), id("troubled")]);
}

pub(crate) async fn a_revocation_is_claimed_once_and_erased_when_done(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    create(&a, new("c1")).await;
    a.disconnect(&id("c1"), Revoke::Always, None, event(), at(5))
        .await
        .unwrap();
    for token in ["late", "late"] {
        let token = tokens(token).refresh_token.unwrap();
        a.queue_revocation(&id("c1"), &app("crm"), token, at(6))
            .await
            .unwrap();
    }
    let push = Duration::from_secs(60);
    let first = a.claim_revocations(1, push, at(10)).await.unwrap();
    assert_eq!((first.len(), first[0].attempts), (1, 0));
    assert_eq!((&first[0].connection, &first[0].app), (&id("c1"), &app("crm")));
    assert_eq!(first[0].refresh_token.expose(), "refresh-c1");
    let second = b.claim_revocations(10, push, at(10)).await.unwrap();
    assert_eq!(
        second.len(),
        1,
        "each once, and the same token is not queued twice"
    );
    assert_eq!(second[0].refresh_token.expose(), "refresh-late");
    let again = b.claim_revocations(10, push, at(70)).await.unwrap();
    assert_eq!(again.iter().map(|one| one.attempts).collect::<Vec<_>>(), [1, 1]);
    let told = a.events(&id("c1"), 10).await.unwrap().len();
    for (store, state) in [(&a, RevocationState::Done), (&b, RevocationState::Unsupported)] {
        // The second has come too late, and says nothing.
        for revocation in &again {
            let revoked = Event::new(EventKind::Revoked, "because a test says so");
            store
                .finish_revocation(revocation.id, state, Some(revoked), at(71))
                .await
                .unwrap();
        }
    }
    let history = a.events(&id("c1"), 10).await.unwrap();
    assert_eq!(history.len(), told + 2, "each is told of once: {history:?}");
    assert!(a.claim_revocations(10, push, at(9999)).await.unwrap().is_empty());
}

pub(crate) async fn use_is_merged_and_the_later_time_wins(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let note = async |last| {
        let usage = Usage {
            connection: id("c1"),
            app: app("crm"),
            last,
            tally: Tally::default(),
        };
        store.note_usage(vec![usage], at(50)).await.unwrap();
        held(&store, "c1").await.connection.last
    };
    let first = LastSeen {
        call_at: Some(at(10)),
        success_at: Some(at(9)),
        rate_limited_at: Some(at(3)),
        ..LastSeen::default()
    };
    assert_eq!(note(first.clone()).await, first);
    let second = LastSeen {
        call_at: Some(at(8)),
        success_at: Some(at(11)),
        unauthorized_at: Some(at(4)),
        ..LastSeen::default()
    };
    let merged = LastSeen {
        call_at: Some(at(10)),
        success_at: Some(at(11)),
        unauthorized_at: Some(at(4)),
        ..first
    };
    assert_eq!(note(second).await, merged);
}

pub(crate) async fn the_change_feed_tells_every_process_what_changed(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    let start = b.change_head().await.unwrap();
    assert_eq!(b.changes(start).await.unwrap(), (vec![], start));
    create(&a, new("c1")).await;
    let first = lease(&a, "c1", 1, LEASE).await;
    land(&a, &first, "two").await;
    let second = lease(&a, "c1", 2, LEASE).await;
    a.condemn(&second, ReconnectReason::GrantRefused, event(), at(3))
        .await
        .unwrap();
    a.disconnect(&id("c1"), Revoke::Never, None, event(), at(4))
        .await
        .unwrap();
    a.switch_to_single_use(&app("crm"), at(4)).await.unwrap();
    a.revoke_key("nobody", at(5)).await.unwrap();
    let (changes, head) = b.changes(start).await.unwrap();
    let connection = |version| Change::Connection {
        id: id("c1"),
        version: Version::new(version),
    };
    let told = [
        connection(1),
        connection(2),
        connection(2),
        connection(3),
        Change::App(app("crm")),
    ];
    assert_eq!(changes, told);
    assert_eq!(b.change_head().await.unwrap(), head);
    assert_eq!(b.changes(head).await.unwrap(), (vec![], head));
}

pub(crate) async fn a_sweep_forgets_what_has_ended_and_never_turns_the_feed_back(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let head = store.change_head().await.unwrap();
    store.sweep(at(0)).await.unwrap();
    assert_eq!(
        store.changes(0).await.unwrap().0.len(),
        1,
        "it is younger than that"
    );
    store.sweep(at(100_000_000_000)).await.unwrap();
    assert_eq!(store.changes(0).await.unwrap(), (vec![], head));
    assert_eq!(token_name(&store, "c1").await, "c1");
    create(&store, new("c2")).await;
    assert_eq!(store.changes(head).await.unwrap().0.len(), 1);
}
