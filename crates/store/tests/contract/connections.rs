//! A connection's life beside redeeming: made, restored, changed, disconnected, listed.

use evergrant_domain::access::Limits;
use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::{Connection, ConnectionStatus, Kind, ReconnectReason, Version};
use evergrant_store::Store;
use evergrant_store::contract::{
    Change, Connected, ConnectionFilter, Landed, NewConnection, Presented, RecordSays, Replaced,
    RevocationState, Revoke, SortKey,
};
use futures_util::future::join_all;

use crate::fixture::*;

fn in_account(name: &str, portal: &str) -> NewConnection {
    NewConnection {
        account: Some(account(portal)),
        ..new(name)
    }
}

async fn disconnect(store: &impl Store, name: &str, revoke: Revoke) -> RevocationState {
    let gone = store
        .disconnect(&id(name), revoke, None, event(), at(5))
        .await
        .unwrap();
    gone.expect("it was created").1
}

pub(crate) async fn what_is_created_is_read_back_whole(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let mut made = in_account("c1", "portal");
    made.labels = vec![("region".into(), "eu".into()), ("tier".into(), "\"gold\"".into())];
    create(&store, made).await;
    let read = held(&store, "c1").await;
    let connection = &read.connection;
    assert_eq!(connection.account, Some(account("portal")));
    assert_eq!(connection.status, ConnectionStatus::Active);
    assert_eq!(connection.version, Version::FIRST);
    assert_eq!(connection.scopes, tokens("c1").scopes);
    assert_eq!(
        (connection.issued_at, connection.ends),
        (at(0), tokens("c1").ends)
    );
    assert_eq!(connection.labels[1], ("tier".into(), "\"gold\"".into()));
    assert_eq!((connection.created_at, connection.connected_at), (at(0), at(0)));
    assert_eq!(token_name(&store, "c1").await, "c1");
    let alone = store.connection(&id("c1")).await.unwrap();
    assert_eq!(format!("{:?}", alone.unwrap()), format!("{connection:?}"));
    let found = store.find(&app("crm"), &customer("c1"), "portal").await.unwrap();
    assert_eq!(found.map(|found| found.id), Some(id("c1")));
    assert!(store.held(&id("nobody")).await.unwrap().is_none());
}

pub(crate) async fn two_live_connections_never_share_an_account(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, in_account("c1", "portal")).await;
    let same = || NewConnection {
        customer: customer("c1"),
        ..in_account("c2", "portal")
    };
    let answer = store.create(same(), at(0)).await.unwrap();
    assert!(
        matches!(&answer, Connected::AccountTaken { by } if *by == id("c1")),
        "{answer:?}"
    );
    assert!(store.connection(&id("c2")).await.unwrap().is_none());
    create(&store, in_account("of-another-customer", "portal")).await;
    create(
        &store,
        NewConnection {
            app: app("erp"),
            id: id("of-another-app"),
            ..same()
        },
    )
    .await;
    disconnect(&store, "c1", Revoke::Never).await;
    create(&store, same()).await;
}

pub(crate) async fn two_live_connections_of_an_app_never_share_a_refresh_token(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let same = |name: &str| NewConnection {
        tokens: tokens("c1"),
        ..new(name)
    };
    let answer = store.create(same("c2"), at(0)).await.unwrap();
    assert!(
        matches!(&answer, Connected::GrantTaken { by } if *by == id("c1")),
        "{answer:?}"
    );
    create(
        &store,
        NewConnection {
            app: app("erp"),
            ..same("of-another-app")
        },
    )
    .await;
    // A set that lands is held to it, too.
    create(&store, new("c3")).await;
    let lease = lease(&store, "c3", 1, LEASE).await;
    let landed = land(&store, &lease, "c1").await;
    assert!(
        matches!(&landed, Landed::GrantTaken { by } if *by == id("c1")),
        "{landed:?}"
    );
    assert_eq!(token_name(&store, "c3").await, "c3");
    disconnect(&store, "c1", Revoke::Never).await;
    create(&store, same("c2")).await;
}

pub(crate) async fn an_id_is_taken_once(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    disconnect(&store, "c1", Revoke::Never).await;
    let answer = store.create(new("c1"), at(9)).await.unwrap();
    assert!(matches!(answer, Connected::IdTaken), "{answer:?}");
}

pub(crate) async fn a_static_connection_has_an_access_token_and_nothing_else(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let mut made = new("c1");
    made.kind = Kind::Static;
    made.tokens.refresh_token = None;
    create(&store, made).await;
    let tokens = held(&store, "c1").await.tokens.unwrap();
    assert_eq!(tokens.access_token.expose(), "access-c1");
    assert!(tokens.refresh_token.is_none());
    assert_eq!(
        disconnect(&store, "c1", Revoke::Always).await,
        RevocationState::Unsupported
    );
}

pub(crate) async fn a_reconnect_voids_what_belonged_to_the_old_grant(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    store
        .begin_cooldown(&id("c1"), Version::FIRST, at(0))
        .await
        .unwrap();
    let first = lease(&store, "c1", 1, LEASE).await;
    store
        .give_up(&first, Presented::Unknown, Some(trouble()), None, at(1))
        .await
        .unwrap();
    let second = lease(&store, "c1", 1, LEASE).await;
    let fresh = stored(
        store
            .reconnect(
                &id("c1"),
                Some(account("portal")),
                tokens("again"),
                event(),
                at(9),
            )
            .await
            .unwrap(),
    );
    let connection = &fresh.connection;
    assert_eq!(
        (connection.version, connection.connected_at),
        (Version::new(2), at(9))
    );
    assert_eq!(connection.account, Some(account("portal")));
    assert_eq!(
        (
            &connection.trouble,
            &connection.intent,
            connection.refresh_in_progress_until,
            fresh.cooldown
        ),
        (&None, &None, None, None)
    );
    assert!(!store.lease_lasts(&second, NO_TIME).await.unwrap());
    lease(&store, "c1", 2, LEASE).await;
    assert_eq!(token_name(&store, "c1").await, "again");
}

pub(crate) async fn a_reconnect_keeps_the_rules_of_one_account_and_one_grant(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, in_account("c1", "portal")).await;
    create(
        &store,
        NewConnection {
            customer: customer("c1"),
            ..new("c2")
        },
    )
    .await;
    let again = async |name: &str, portal: Option<&str>, grant: &str| {
        store
            .reconnect(&id(name), portal.map(account), tokens(grant), event(), at(3))
            .await
            .unwrap()
    };
    let answer = again("c2", Some("portal"), "fresh").await;
    assert!(
        matches!(&answer, Connected::AccountTaken { by } if *by == id("c1")),
        "{answer:?}"
    );
    let answer = again("c2", None, "c1").await;
    assert!(
        matches!(&answer, Connected::GrantTaken { by } if *by == id("c1")),
        "{answer:?}"
    );
    assert!(matches!(again("nobody", None, "fresh").await, Connected::Missing));
    stored(again("c1", Some("portal"), "c1").await);
}

/// A consent of the customer `acme` for the account `portal`.
fn of_acme(name: &str, grant: &str) -> NewConnection {
    NewConnection {
        customer: customer("acme"),
        tokens: tokens(grant),
        ..in_account(name, "portal")
    }
}

fn retired() -> Event {
    Event::new(EventKind::Disconnected, "another one took its account over")
}

pub(crate) async fn what_takes_anothers_account_over_ends_it_and_is_named_by_it(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, of_acme("old", "g1")).await;
    let head = store.change_head().await.unwrap();
    let made = stored(
        store
            .supersede(of_acme("new", "g2"), retired(), at(5))
            .await
            .unwrap(),
    );
    assert_eq!(made.connection.status, ConnectionStatus::Active);
    assert_eq!(token_name(&store, "new").await, "g2");
    let old = held(&store, "old").await;
    assert_eq!(
        old.connection.status,
        ConnectionStatus::Disconnected {
            since: at(5),
            superseded_by: Some(id("new"))
        }
    );
    assert!(old.tokens.is_none(), "its tokens are erased");
    assert_eq!(
        old.connection.version,
        Version::new(2),
        "no late answer revives it"
    );
    // The account is connected still, so the old grant is not revoked.
    assert_eq!(
        disconnect(&store, "old", Revoke::Auto).await,
        RevocationState::Shared
    );
    assert!(queued(&store).await.is_empty());
    let (changes, _) = store.changes(head).await.unwrap();
    for name in ["old", "new"] {
        assert!(
            changes
                .iter()
                .any(|change| matches!(change, Change::Connection { id: told, .. } if *told == id(name))),
            "{name}: {changes:?}"
        );
    }
    // The very same grant is no hindrance: who installs again may get it back.
    stored(
        store
            .supersede(of_acme("newer", "g2"), retired(), at(6))
            .await
            .unwrap(),
    );
    assert_eq!(token_name(&store, "newer").await, "g2");
    assert!(queued(&store).await.is_empty());
    // Where nobody has the account it is a create.
    stored(
        store
            .supersede(in_account("alone", "elsewhere"), retired(), at(6))
            .await
            .unwrap(),
    );
}

pub(crate) async fn a_restored_connection_takes_its_account_over_too(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, of_acme("first", "g1")).await;
    stored(
        store
            .supersede(of_acme("second", "g2"), retired(), at(5))
            .await
            .unwrap(),
    );
    let restored = stored(
        store
            .supersede(of_acme("first", "g3"), retired(), at(6))
            .await
            .unwrap(),
    );
    assert_eq!(restored.connection.status, ConnectionStatus::Active);
    assert_eq!(restored.connection.version, Version::new(3));
    let second = held(&store, "second").await.connection;
    assert!(
        matches!(&second.status, ConnectionStatus::Disconnected { superseded_by: Some(by), .. } if *by == id("first")),
        "{second:?}"
    );
}

pub(crate) async fn what_may_not_take_an_account_over_ends_nothing(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, of_acme("old", "g1")).await;
    // Of another customer, with a grant of its own and its own account.
    create(&store, in_account("other", "elsewhere")).await;
    let take = async |new: NewConnection| store.supersede(new, retired(), at(5)).await.unwrap();
    // Its grant is held by another one than the one it would replace.
    let answer = take(of_acme("new", "other")).await;
    assert!(
        matches!(&answer, Connected::GrantTaken { by } if *by == id("other")),
        "{answer:?}"
    );
    // Its id is of another customer, or pinned to another account.
    let answer = take(of_acme("other", "g2")).await;
    assert!(matches!(answer, Connected::IdTaken), "{answer:?}");
    create(
        &store,
        NewConnection {
            customer: customer("acme"),
            ..in_account("pinned", "third")
        },
    )
    .await;
    let answer = take(of_acme("pinned", "g2")).await;
    assert!(matches!(answer, Connected::IdTaken), "{answer:?}");
    assert_eq!(
        held(&store, "old").await.connection.status,
        ConnectionStatus::Active
    );
    assert_eq!(token_name(&store, "old").await, "g1");
    assert!(store.connection(&id("new")).await.unwrap().is_none());
}

pub(crate) async fn of_many_that_take_an_account_over_at_once_one_lives(fixture: &impl Fixture) {
    const MANY: usize = 8;
    let stores = [fixture.open().await, fixture.open().await];
    warm(&stores).await;
    create(&stores[0], of_acme("old", "old")).await;
    let names: Vec<String> = (0..MANY).map(|number| format!("n{number}")).collect();
    let taken = names
        .iter()
        .enumerate()
        .map(|(number, name)| stores[number % 2].supersede(of_acme(name, name), retired(), at(5)));
    for answer in join_all(taken).await {
        stored(answer.unwrap());
    }
    let mut living = 0;
    for name in names.iter().map(String::as_str).chain(["old"]) {
        let connection = held(&stores[0], name).await.connection;
        match connection.status {
            ConnectionStatus::Disconnected { superseded_by, .. } => {
                let by = superseded_by.expect("its successor is named");
                assert!(
                    stores[0].connection(&by).await.unwrap().is_some(),
                    "{name} by {by}"
                );
            }
            _ => living += 1,
        }
    }
    assert_eq!(living, 1);
}

pub(crate) async fn a_patch_changes_what_it_names_and_keeps_the_account_rule(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, in_account("c1", "portal")).await;
    create(&store, in_account("c2", "portal")).await;
    let labels = vec![("a".to_owned(), "b".to_owned())];
    let patched = stored(
        store
            .patch(&id("c1"), None, Some(labels.clone()), at(3))
            .await
            .unwrap(),
    );
    assert_eq!(patched.connection.labels, labels);
    assert_eq!(
        (patched.connection.customer, patched.connection.updated_at),
        (customer("c1"), at(3))
    );
    let moved = stored(
        store
            .patch(&id("c1"), Some(customer("acme")), None, at(4))
            .await
            .unwrap(),
    );
    assert_eq!(
        (moved.connection.customer, moved.connection.labels),
        (customer("acme"), labels)
    );
    assert_eq!(
        moved.connection.version,
        Version::FIRST,
        "nobody holds anything else"
    );
    let answer = store
        .patch(&id("c1"), Some(customer("c2")), None, at(5))
        .await
        .unwrap();
    assert!(
        matches!(&answer, Connected::AccountTaken { by } if *by == id("c2")),
        "{answer:?}"
    );
    let answer = store.patch(&id("nobody"), None, None, at(5)).await.unwrap();
    assert!(matches!(answer, Connected::Missing), "{answer:?}");
}

pub(crate) async fn disconnecting_erases_the_tokens_and_queues_the_refresh_token(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let before = lease(&store, "c1", 1, LEASE).await;
    let successor = id("c2");
    let gone = store
        .disconnect(&id("c1"), Revoke::Auto, Some(successor.clone()), event(), at(5))
        .await
        .unwrap();
    let (connection, state) = gone.unwrap();
    assert_eq!(state, RevocationState::Pending);
    assert_eq!(connection.version, Version::new(2));
    let expected = ConnectionStatus::Disconnected {
        since: at(5),
        superseded_by: Some(successor),
    };
    assert_eq!(connection.status, expected);
    let held = held(&store, "c1").await;
    assert!(held.tokens.is_none() && held.connection.intent.is_none());
    assert!(!store.lease_lasts(&before, NO_TIME).await.unwrap());
    assert_eq!(queued(&store).await, ["refresh-c1"]);
    let missing = store
        .disconnect(&id("nobody"), Revoke::Auto, None, event(), at(5))
        .await;
    assert!(missing.unwrap().is_none());
}

pub(crate) async fn disconnecting_twice_is_disconnecting_once(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    disconnect(&store, "c1", Revoke::Auto).await;
    let events = store.events(&id("c1"), 10).await.unwrap().len();
    assert_eq!(
        disconnect(&store, "c1", Revoke::Never).await,
        RevocationState::Pending
    );
    assert_eq!(held(&store, "c1").await.connection.version, Version::new(2));
    assert_eq!(store.events(&id("c1"), 10).await.unwrap().len(), events);
    let queue = claim_revocations(&store).await;
    store
        .finish_revocation(queue[0].id, RevocationState::Done, None, at(6))
        .await
        .unwrap();
    assert_eq!(
        disconnect(&store, "c1", Revoke::Auto).await,
        RevocationState::Done
    );
}

// "Revoke only where no other live connection has that app and account."
pub(crate) async fn a_grant_that_others_use_is_not_revoked_unless_asked_for(fixture: &impl Fixture) {
    let store = fixture.open().await;
    for name in ["c1", "c2", "c3", "last"] {
        create(&store, in_account(name, "portal")).await;
    }
    assert_eq!(
        disconnect(&store, "c1", Revoke::Auto).await,
        RevocationState::Shared
    );
    assert_eq!(
        disconnect(&store, "c2", Revoke::Never).await,
        RevocationState::Unsupported
    );
    assert_eq!(queued(&store).await, [""; 0]);
    assert_eq!(
        disconnect(&store, "c3", Revoke::Always).await,
        RevocationState::Pending
    );
    assert_eq!(
        disconnect(&store, "last", Revoke::Auto).await,
        RevocationState::Pending
    );
    assert_eq!(queued(&store).await, ["refresh-c3", "refresh-last"]);
}

pub(crate) async fn a_grant_that_serves_again_is_not_revoked(fixture: &impl Fixture) {
    let store = fixture.open().await;
    for name in ["c1", "c2"] {
        create(&store, new(name)).await;
        disconnect(&store, name, Revoke::Always).await;
    }
    stored(
        store
            .reconnect(&id("c1"), None, tokens("c1"), event(), at(6))
            .await
            .unwrap(),
    );
    create(
        &store,
        NewConnection {
            tokens: tokens("c2"),
            ..new("c3")
        },
    )
    .await;
    assert_eq!(queued(&store).await, [""; 0]);
}

pub(crate) async fn a_purge_erases_the_disconnected_with_their_history_only(fixture: &impl Fixture) {
    let store = fixture.open().await;
    for name in ["c1", "c2"] {
        create(&store, new(name)).await;
    }
    disconnect(&store, "c1", Revoke::Always).await;
    for name in ["c1", "c2"] {
        store.purge(&id(name)).await.unwrap();
    }
    assert!(store.connection(&id("c1")).await.unwrap().is_none());
    assert!(store.events(&id("c1"), 10).await.unwrap().is_empty());
    assert_eq!(token_name(&store, "c2").await, "c2", "a live one stays");
    assert_eq!(
        queued(&store).await,
        ["refresh-c1"],
        "a revocation stays until it is done"
    );
}

pub(crate) async fn lists_run_by_creation_and_keep_filters_and_limits(fixture: &impl Fixture) {
    let store = fixture.open().await;
    for (name, portal, created) in [
        ("b", "one", 2),
        ("a", "two", 2),
        ("c", "Three", 1),
        ("d", "four", 3),
    ] {
        let made = NewConnection {
            app: app(if name == "d" { "erp" } else { "crm" }),
            ..in_account(name, portal)
        };
        store.create(made, at(created)).await.unwrap();
    }
    disconnect(&store, "a", Revoke::Never).await;
    let list = async |filter: ConnectionFilter| -> String {
        let found = store.list(filter).await.unwrap();
        found.iter().map(|found: &Connection| found.id.as_str()).collect()
    };
    let all = || ConnectionFilter {
        limit: 10,
        ..ConnectionFilter::default()
    };
    assert_eq!(list(all()).await, "cabd");
    assert_eq!(list(ConnectionFilter { limit: 2, ..all() }).await, "ca");
    let after = Some((SortKey::Time(at(2)), id("a")));
    assert_eq!(list(ConnectionFilter { after, ..all() }).await, "bd");
    assert_eq!(
        list(ConnectionFilter {
            apps: vec![app("erp"), app("x")],
            ..all()
        })
        .await,
        "d"
    );
    let customers = vec![customer("a"), customer("b")];
    assert_eq!(list(ConnectionFilter { customers, ..all() }).await, "ab");
    assert_eq!(
        list(ConnectionFilter {
            accounts: vec!["one".into()],
            ..all()
        })
        .await,
        "b"
    );
    assert_eq!(
        list(ConnectionFilter {
            statuses: vec!["active".into()],
            ..all()
        })
        .await,
        "cbd"
    );
    assert_eq!(
        list(ConnectionFilter {
            q: Some("tHREE".into()),
            ..all()
        })
        .await,
        "c"
    );
    assert_eq!(
        list(ConnectionFilter {
            q: Some("%".into()),
            ..all()
        })
        .await,
        ""
    );
    let limits = Limits {
        apps: vec![app("crm")],
        connections: vec![id("b"), id("d")],
        ..Limits::default()
    };
    assert_eq!(list(ConnectionFilter { limits, ..all() }).await, "b");
}

// I7: every change of state is in the history, in the same transaction.
pub(crate) async fn every_change_of_state_is_in_the_history(fixture: &impl Fixture) {
    use evergrant_domain::event::Event;
    let store = fixture.open().await;
    let says = |kind| Event::new(kind, "why").correlated(Some("correlation".into()));
    create(&store, new("c1")).await;
    let first = lease(&store, "c1", 1, LEASE).await;
    let failed = Some(says(EventKind::RefreshFailed));
    store
        .give_up(&first, Presented::No, None, failed, at(1))
        .await
        .unwrap();
    let second = lease(&store, "c1", 1, LEASE).await;
    land(&store, &second, "two").await;
    let third = lease(&store, "c1", 2, LEASE).await;
    let verdict = says(EventKind::ReconnectRequired);
    store
        .condemn(&third, ReconnectReason::GrantRefused, verdict.clone(), at(3))
        .await
        .unwrap();
    assert!(
        !store
            .condemn(&third, ReconnectReason::GrantRefused, verdict, at(3))
            .await
            .unwrap()
    );
    let again = says(EventKind::Reconnected);
    store
        .reconnect(&id("c1"), None, tokens("three"), again, at(4))
        .await
        .unwrap();
    let left = says(EventKind::Disconnected);
    store
        .disconnect(&id("c1"), Revoke::Never, None, left, at(5))
        .await
        .unwrap();
    store
        .note_event(&id("c1"), says(EventKind::Revoked), at(6))
        .await
        .unwrap();
    store
        .note_event(&id("nobody"), says(EventKind::Revoked), at(6))
        .await
        .unwrap();
    let history = store.events(&id("c1"), 10).await.unwrap();
    let told: Vec<_> = history
        .iter()
        .rev()
        .map(|event| (event.kind.as_str(), event.version.unwrap().number()))
        .collect();
    assert_eq!(
        told,
        [
            ("connected", 1),
            ("refresh_failed", 1),
            ("refreshed", 2),
            ("reconnect_required", 2),
            ("reconnected", 3),
            ("disconnected", 4),
            ("revoked", 4)
        ]
    );
    assert!(history.is_sorted_by(|newer, older| newer.id > older.id));
    let correlation_id = &history[0].circumstances.provider_correlation_id;
    assert_eq!(correlation_id.as_deref(), Some("correlation"));
    assert_eq!(store.events(&id("c1"), 2).await.unwrap(), history[..2]);
}

/// A record of this connection whose access token ends then.
fn record(name: &str, grant: &str, ends_at: i64) -> (NewConnection, RecordSays) {
    let mut tokens = tokens(grant);
    tokens.ends.expires = at(ends_at);
    let says = RecordSays {
        names_id: true,
        ends_at: Some(at(ends_at)),
    };
    (NewConnection { tokens, ..new(name) }, says)
}

async fn bring(store: &impl Store, (new, says): (NewConnection, RecordSays)) -> Replaced {
    store.replace_older(new, says, event(), at(3)).await.unwrap()
}

pub(crate) async fn a_newer_record_replaces_what_is_stored_once_and_an_older_one_never(
    fixture: &impl Fixture,
) {
    let store = fixture.open().await;
    let mut made = in_account("c1", "portal");
    made.labels = vec![("region".into(), "eu".into())];
    create(&store, made).await;
    // The stored one ends at 205.
    for ends_at in [204, 205] {
        let answer = bring(&store, record("c1", "older", ends_at)).await;
        assert!(
            matches!(&answer, Replaced::NotOlder { by } if *by == id("c1")),
            "{answer:?}"
        );
    }
    let (new, mut says) = record("c1", "endless", 900);
    says.ends_at = None;
    let answer = bring(&store, (new, says)).await;
    assert!(matches!(answer, Replaced::NotOlder { .. }), "{answer:?}");
    assert_eq!(token_name(&store, "c1").await, "c1");
    let before = store.change_head().await.unwrap();
    let Replaced::Replaced(Connected::Stored(replaced)) = bring(&store, record("c1", "newer", 206)).await
    else {
        panic!("it is newer");
    };
    assert_eq!(replaced.connection.version, Version::new(2));
    assert_eq!(token_name(&store, "c1").await, "newer");
    let connection = held(&store, "c1").await.connection;
    assert_eq!(connection.account, Some(account("portal")));
    assert_eq!(connection.labels.len(), 1);
    assert!(
        store.change_head().await.unwrap() > before,
        "nobody is told of it"
    );
    // Running it again is harmless, and what was there before comes back no more.
    for (grant, ends_at) in [("newer", 206), ("c1", 205)] {
        let answer = bring(&store, record("c1", grant, ends_at)).await;
        assert!(matches!(answer, Replaced::NotOlder { .. }), "{answer:?}");
    }
    assert_eq!(held(&store, "c1").await.connection.version, Version::new(2));
    // Where there is none it is made; what its owner ended no record brings back.
    let answer = bring(&store, record("c2", "c2", 300)).await;
    assert!(
        matches!(answer, Replaced::Made(Connected::Stored(_))),
        "{answer:?}"
    );
    disconnect(&store, "c2", Revoke::Never).await;
    let answer = bring(&store, record("c2", "again", 900)).await;
    assert!(
        matches!(answer, Replaced::Replaced(Connected::IdTaken)),
        "{answer:?}"
    );
    assert!(held(&store, "c2").await.tokens.is_none());
}

pub(crate) async fn a_record_replaces_nothing_while_a_redemption_is_under_way(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let lease = lease(&store, "c1", 1, LEASE).await;
    let answer = bring(&store, record("c1", "newer", 900)).await;
    assert!(
        matches!(&answer, Replaced::UnderWay { by } if *by == id("c1")),
        "{answer:?}"
    );
    // Its answer counts, and is the older one no more than it says.
    let landed = store.land(&lease, refreshed("landed"), at(4)).await.unwrap();
    assert!(matches!(landed, Landed::Stored(_)), "{landed:?}");
    assert_eq!(token_name(&store, "c1").await, "landed");
    let answer = bring(&store, record("c1", "newer", 900)).await;
    assert!(
        matches!(answer, Replaced::Replaced(Connected::Stored(_))),
        "{answer:?}"
    );
    // Whoever still redeems what was replaced finds another version.
    let late = store.land(&lease, refreshed("late"), at(5)).await.unwrap();
    assert!(!matches!(late, Landed::Stored(_)), "{late:?}");
    assert_eq!(token_name(&store, "c1").await, "newer");
}

pub(crate) async fn a_record_means_the_connection_of_its_id_or_of_its_account_or_of_its_grant(
    fixture: &impl Fixture,
) {
    let store = fixture.open().await;
    create(&store, in_account("c1", "portal")).await;
    create(&store, new("c2")).await;
    let unnamed = |name: &str, of: &str, grant: &str, portal: Option<&str>| {
        let (new, mut says) = record(name, grant, 900);
        says.names_id = false;
        let new = NewConnection {
            customer: customer(of),
            account: portal.map(account),
            ..new
        };
        (new, says)
    };
    let replaced = |answer: &Replaced, name: &str| match answer {
        Replaced::Replaced(Connected::Stored(held)) => assert_eq!(held.connection.id, id(name)),
        other => panic!("{other:?}"),
    };
    replaced(
        &bring(&store, unnamed("made-1", "c1", "by-account", Some("portal"))).await,
        "c1",
    );
    assert_eq!(token_name(&store, "c1").await, "by-account");
    replaced(&bring(&store, unnamed("made-2", "c2", "c2", None)).await, "c2");
    // A grant of another customer's is refused, and so is an id of another customer's or account's, and an account of another id's.
    let answer = bring(&store, unnamed("made-3", "somebody", "c2", None)).await;
    assert!(
        matches!(&answer, Replaced::Replaced(Connected::GrantTaken { by }) if *by == id("c2")),
        "{answer:?}"
    );
    let (new, says) = record("c1", "other", 1900);
    let of_somebody = NewConnection {
        customer: customer("somebody"),
        ..new.clone()
    };
    let elsewhere = NewConnection {
        account: Some(account("elsewhere")),
        ..new
    };
    for record in [of_somebody, elsewhere] {
        let answer = bring(&store, (record, says)).await;
        assert!(
            matches!(answer, Replaced::Replaced(Connected::IdTaken)),
            "{answer:?}"
        );
    }
    let (new, says) = record("c9", "other", 1900);
    let new = NewConnection {
        customer: customer("c1"),
        account: Some(account("portal")),
        ..new
    };
    let answer = bring(&store, (new, says)).await;
    assert!(
        matches!(&answer, Replaced::Made(Connected::AccountTaken { by }) if *by == id("c1")),
        "{answer:?}"
    );
    assert_eq!(token_name(&store, "c1").await, "by-account");
}

pub(crate) async fn of_many_records_at_once_the_newest_stands(fixture: &impl Fixture) {
    let stores = [fixture.open().await, fixture.open().await];
    warm(&stores).await;
    create(&stores[0], new("c1")).await;
    let brought = (0..12).map(|nth| {
        let ends_at = 300 + (nth * 7) % 12;
        let store = &stores[usize::try_from(nth % 2).unwrap()];
        async move { bring(store, record("c1", &format!("ends-{ends_at}"), ends_at)).await }
    });
    for answer in join_all(brought).await {
        assert!(
            matches!(
                answer,
                Replaced::Replaced(Connected::Stored(_)) | Replaced::NotOlder { .. }
            ),
            "{answer:?}"
        );
    }
    assert_eq!(token_name(&stores[1], "c1").await, "ends-311");
}
