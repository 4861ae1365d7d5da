//! What becomes of an answer, and of a verdict: PROTOCOL.md, rules 11 and 14 to 16.

use evergrant_domain::connection::{Landing, RefreshTrouble};
use evergrant_domain::event::{Circumstances, Event, EventKind};
use evergrant_domain::{ConnectionStatus, ReconnectReason, Version};
use evergrant_store::Store;
use evergrant_store::contract::{Landed, LeaseAnswer, Presented, Refreshed, RevocationState, Revoke};

use crate::fixture::*;

pub(crate) async fn a_refreshed_set_is_stored_whole_and_settles_everything(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let first = lease(&store, "c1", 1, LEASE).await;
    store
        .give_up(&first, Presented::No, Some(trouble()), None, at(1))
        .await
        .unwrap();
    let lease = lease(&store, "c1", 1, LEASE).await;
    let Landed::Stored(held) = land(&store, &lease, "two").await else {
        panic!("the version stands");
    };
    let connection = &held.connection;
    assert_eq!(connection.version, Version::new(2));
    assert_eq!(connection.status, ConnectionStatus::Active);
    assert_eq!(connection.last.refresh_at, Some(at(2)));
    assert!(!connection.unproven, "one attempt of known outcome");
    assert_eq!(
        (
            &connection.trouble,
            &connection.intent,
            connection.refresh_in_progress_until
        ),
        (&None, &None, None)
    );
    assert_eq!(token_name(&store, "c1").await, "two");
    assert!(matches!(
        take(&store, "c1", 2, LEASE).await,
        LeaseAnswer::Taken { .. }
    ));
}

// Rule 14: WHERE version = n.
pub(crate) async fn an_answer_for_another_version_changes_nothing(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    create(&a, new("c1")).await;
    let slow = lease(&a, "c1", 1, NO_TIME).await;
    let quick = lease(&b, "c1", 1, LEASE).await;
    land(&b, &quick, "newer").await;
    let Landed::Moved(held) = land(&a, &slow, "older").await else {
        panic!("the version has moved");
    };
    assert_eq!(held.connection.version, Version::new(2));
    assert_eq!(token_name(&a, "c1").await, "newer");
}

// Rule 15: it frees the lease only where the fence is its own. Rule 16: more than one attempt makes it unproven.
pub(crate) async fn a_late_answer_whose_version_stands_is_stored_unproven_beside_the_newer_lease(
    fixture: &impl Fixture,
) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    create(&a, new("c1")).await;
    let slow = lease(&a, "c1", 1, NO_TIME).await;
    let newer = lease(&b, "c1", 1, LEASE).await;
    let Landed::Stored(held) = land(&a, &slow, "late").await else {
        panic!("a late answer whose version stands is the newest");
    };
    assert!(held.connection.unproven && held.tokens.unwrap().unproven);
    assert!(
        matches!(take(&a, "c1", 2, LEASE).await, LeaseAnswer::Busy),
        "the newer holder has its lease still"
    );
    b.give_up(&newer, Presented::Unknown, None, None, at(3))
        .await
        .unwrap();
    let next = lease(&a, "c1", 2, LEASE).await;
    let Landed::Stored(held) = land(&a, &next, "sure").await else {
        panic!("nobody came between");
    };
    assert!(
        !held.connection.unproven,
        "a set of one sure attempt is proven again"
    );
}

pub(crate) async fn an_answer_of_the_old_grant_does_not_survive_a_reconnect(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let old = lease(&store, "c1", 1, LEASE).await;
    stored(
        store
            .reconnect(&id("c1"), None, tokens("new-grant"), event(), at(2))
            .await
            .unwrap(),
    );
    assert!(matches!(land(&store, &old, "old-grant").await, Landed::Moved(_)));
    assert_eq!(token_name(&store, "c1").await, "new-grant");
    let verdict = store
        .condemn(&old, ReconnectReason::GrantRefused, event(), at(3))
        .await;
    assert!(!verdict.unwrap(), "nor does a verdict on it");
}

// Rule 16.
pub(crate) async fn a_late_answer_revives_what_was_condemned_for_want_of_it(fixture: &impl Fixture) {
    let store = fixture.open().await;
    for reason in ReconnectReason::ALL {
        let name = reason.as_str().replace('_', "-");
        create(&store, new(&name)).await;
        let lease = lease(&store, &name, 1, LEASE).await;
        assert!(store.condemn(&lease, reason, event(), at(2)).await.unwrap());
        let condemned = held(&store, &name).await.connection.status;
        let Landed::Stored(held) = land(&store, &lease, &format!("{name}-late")).await else {
            panic!("{reason:?}: the version stands");
        };
        let (status, unproven) = match condemned.after_token_set_landed() {
            Landing::ActiveUnproven => (ConnectionStatus::Active, true),
            Landing::StaysAsItIs => (condemned, false),
            other => panic!("not of a condemned one: {other:?}"),
        };
        assert_eq!(
            (&held.connection.status, held.connection.unproven),
            (&status, unproven),
            "{reason:?}"
        );
        assert_eq!(
            token_name(&store, &name).await,
            format!("{name}-late"),
            "{reason:?}"
        );
    }
}

/// What the newest event says of the failures before it.
async fn told_failures(store: &impl Store, name: &str) -> Option<u32> {
    let events = store.events(&id(name), 1).await.unwrap();
    events[0].circumstances.failures_before
}

pub(crate) async fn a_set_that_lands_is_told_of_with_the_failures_that_it_ends(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let first = lease(&store, "c1", 1, LEASE).await;
    land(&store, &first, "two").await;
    assert_eq!(told_failures(&store, "c1").await, Some(0));
    let failing = lease(&store, "c1", 2, LEASE).await;
    let troubled = RefreshTrouble {
        failures: 3,
        ..trouble()
    };
    store
        .give_up(&failing, Presented::No, Some(troubled), None, at(3))
        .await
        .unwrap();
    // Its answer was under way, or in a lifeboat, since before there was any trouble.
    let lease = lease(&store, "c1", 2, LEASE).await;
    let late = Refreshed {
        event: event().during(Circumstances {
            failures_before: Some(0),
            ..Circumstances::default()
        }),
        ..refreshed("three")
    };
    let landed = store.land(&lease, late, at(4)).await.unwrap();
    assert!(matches!(landed, Landed::Stored(_)), "{landed:?}");
    assert_eq!(told_failures(&store, "c1").await, Some(3));
}

pub(crate) async fn a_set_that_brings_a_connection_back_is_told_of_as_the_end_of_a_failure(
    fixture: &impl Fixture,
) {
    let store = fixture.open().await;
    for (name, reason, failures) in [
        ("back", ReconnectReason::GrantRefused, 1),
        // It stays as it is: nothing is over.
        ("gone", ReconnectReason::Uninstalled, 0),
    ] {
        create(&store, new(name)).await;
        let lease = lease(&store, name, 1, LEASE).await;
        assert!(store.condemn(&lease, reason, event(), at(2)).await.unwrap());
        let landed = land(&store, &lease, &format!("{name}-late")).await;
        assert!(matches!(landed, Landed::Stored(_)), "{landed:?}");
        assert_eq!(told_failures(&store, name).await, Some(failures), "{name}");
    }
}

// Rule 14: the mismatch is stored in the same statement. Rule 16: nothing that lands later brings it back.
pub(crate) async fn an_answer_for_another_account_is_stored_and_never_serves(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let slow = lease(&store, "c1", 1, NO_TIME).await;
    let foreign = Refreshed {
        mismatch: Some("another account".into()),
        ..refreshed("foreign")
    };
    let Landed::Stored(held) = store.land(&slow, foreign, at(7)).await.unwrap() else {
        panic!("it is stored");
    };
    let mismatch = ConnectionStatus::ReconnectRequired {
        reason: ReconnectReason::AccountMismatch,
        since: at(7),
    };
    assert_eq!(held.connection.status, mismatch);
    assert_eq!(token_name(&store, "c1").await, "foreign");
    assert!(matches!(
        take(&store, "c1", 2, LEASE).await,
        LeaseAnswer::Moved(_)
    ));
}

pub(crate) async fn an_answer_for_a_disconnected_connection_goes_into_the_revocation_queue(
    fixture: &impl Fixture,
) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    create(&a, new("c1")).await;
    let lease = lease(&a, "c1", 1, LEASE).await;
    b.disconnect(&id("c1"), Revoke::Always, None, event(), at(2))
        .await
        .unwrap();
    assert!(matches!(land(&a, &lease, "late").await, Landed::Disconnected));
    let held = held(&a, "c1").await;
    assert!(matches!(
        held.connection.status,
        ConnectionStatus::Disconnected { .. }
    ));
    assert!(held.tokens.is_none());
    assert_eq!(queued(&a).await, ["refresh-c1", "refresh-late"]);
}

// "A process whose answer is refused because of a disconnect puts its new refresh token into that queue."
pub(crate) async fn an_answer_for_an_erased_connection_is_the_callers_to_revoke(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let lease = lease(&store, "c1", 1, LEASE).await;
    store
        .disconnect(&id("c1"), Revoke::Never, None, event(), at(2))
        .await
        .unwrap();
    store.purge(&id("c1")).await.unwrap();
    assert!(matches!(land(&store, &lease, "late").await, Landed::Purged));
    assert_eq!(queued(&store).await, [""; 0]);
    let token = tokens("late").refresh_token.unwrap();
    store
        .queue_revocation(&id("c1"), &app("crm"), token, at(3))
        .await
        .unwrap();
    assert_eq!(queued(&store).await, ["refresh-late"]);
}

pub(crate) async fn an_answer_does_not_revoke_a_grant_that_was_to_stay_alive(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let lease = lease(&store, "c1", 1, LEASE).await;
    store
        .disconnect(&id("c1"), Revoke::Never, None, event(), at(2))
        .await
        .unwrap();
    assert!(matches!(land(&store, &lease, "late").await, Landed::Disconnected));
    assert_eq!(queued(&store).await, [""; 0]);
}

pub(crate) async fn an_account_is_pinned_where_none_was_and_nobody_else_has_it(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let pinning = |name: &str, portal: &str| Refreshed {
        account: Some(account(portal)),
        ..refreshed(name)
    };
    create(&store, new("c1")).await;
    for (version, portal) in [(1, "portal"), (2, "elsewhere")] {
        let lease = lease(&store, "c1", version, LEASE).await;
        let tokens = format!("c1-{version}");
        store.land(&lease, pinning(&tokens, portal), at(2)).await.unwrap();
        assert_eq!(
            held(&store, "c1").await.connection.account,
            Some(account("portal"))
        );
    }
    let mut same_customer = new("c2");
    same_customer.customer = customer("c1");
    create(&store, same_customer).await;
    let lease = lease(&store, "c2", 1, LEASE).await;
    store
        .land(&lease, pinning("kept", "portal"), at(2))
        .await
        .unwrap();
    assert_eq!(held(&store, "c2").await.connection.account, None);
    assert_eq!(
        token_name(&store, "c2").await,
        "kept",
        "the tokens are stored in any case"
    );
}

// Rule 11: WHERE version = n.
pub(crate) async fn a_verdict_holds_only_for_the_version_it_was_made_on(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let slow = lease(&store, "c1", 1, NO_TIME).await;
    let refused = lease(&store, "c1", 1, LEASE).await;
    land(&store, &slow, "winner").await;
    let verdict = store
        .condemn(&refused, ReconnectReason::GrantRefused, event(), at(3))
        .await;
    assert!(
        !verdict.unwrap(),
        "its refusal was the echo of the winner's redemption"
    );
    assert_eq!(
        held(&store, "c1").await.connection.status,
        ConnectionStatus::Active
    );
    assert!(
        matches!(take(&store, "c1", 2, LEASE).await, LeaseAnswer::Taken { .. }),
        "and its lease is free"
    );
}

// Rule 11: AND fence = mine.
pub(crate) async fn a_verdict_holds_only_under_its_own_lease(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    create(&a, new("c1")).await;
    let slow = lease(&a, "c1", 1, NO_TIME).await;
    lease(&b, "c1", 1, LEASE).await;
    let verdict = a
        .condemn(&slow, ReconnectReason::GrantRefused, event(), at(3))
        .await;
    assert!(!verdict.unwrap());
    assert_eq!(held(&a, "c1").await.connection.status, ConnectionStatus::Active);
    assert!(matches!(take(&a, "c1", 1, LEASE).await, LeaseAnswer::Busy));
}

// Rule 11: AND status = 'active'.
pub(crate) async fn a_verdict_holds_only_for_an_active_connection(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let lease = lease(&store, "c1", 1, LEASE).await;
    let judge = async |reason| store.condemn(&lease, reason, event(), at(3)).await.unwrap();
    assert!(judge(ReconnectReason::GrantRefused).await);
    assert!(!judge(ReconnectReason::RedemptionOutcomeLost).await);
    let expected = ConnectionStatus::ReconnectRequired {
        reason: ReconnectReason::GrantRefused,
        since: at(3),
    };
    assert_eq!(held(&store, "c1").await.connection.status, expected);
    let gone = store
        .disconnect(&id("c1"), Revoke::Never, None, event(), at(4))
        .await
        .unwrap();
    assert_eq!(gone.map(|(_, state)| state), Some(RevocationState::Unsupported));
    assert!(!judge(ReconnectReason::GrantRefused).await);
}

fn uninstalled() -> Event {
    Event::new(EventKind::ReconnectRequired, "the app was uninstalled")
}

fn gone_since(second: i64) -> ConnectionStatus {
    ConnectionStatus::ReconnectRequired {
        reason: ReconnectReason::Uninstalled,
        since: at(second),
    }
}

/// Every connection here was connected at second 0, or again at second 20.
async fn reconnect(store: &impl Store, name: &str) {
    let again = store
        .reconnect(&id(name), None, tokens("again"), event(), at(20))
        .await;
    stored(again.unwrap());
}

pub(crate) async fn an_uninstall_counts_against_the_consent_before_it_alone(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    reconnect(&store, "c1").await;
    let mark = async |second| {
        store
            .mark_uninstalled(&id("c1"), at(second), uninstalled(), at(30))
            .await
            .unwrap()
    };
    for earlier in [10, 20] {
        assert!(
            !mark(earlier).await,
            "the consent at second 20 came after it, or at the same moment"
        );
    }
    assert_eq!(
        held(&store, "c1").await.connection.status,
        ConnectionStatus::Active
    );
    let head = store.change_head().await.unwrap();
    assert!(mark(21).await);
    assert_eq!(held(&store, "c1").await.connection.status, gone_since(30));
    assert!(
        !store.changes(head).await.unwrap().0.is_empty(),
        "every process is told"
    );
    assert!(!mark(21).await, "once");
    // Nobody redeems for it any more.
    assert!(matches!(
        take(&store, "c1", 2, LEASE).await,
        LeaseAnswer::Moved(_)
    ));
    reconnect(&store, "c1").await;
    assert_eq!(
        held(&store, "c1").await.connection.status,
        ConnectionStatus::Active
    );
}

pub(crate) async fn an_answer_on_its_way_is_stored_and_does_not_undo_an_uninstall(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let pending = lease(&store, "c1", 1, LEASE).await;
    assert!(store.lease_lasts(&pending, NO_TIME).await.unwrap());
    assert!(
        store
            .mark_uninstalled(&id("c1"), at(10), uninstalled(), at(11))
            .await
            .unwrap()
    );
    assert!(
        !store.lease_lasts(&pending, NO_TIME).await.unwrap(),
        "who has not sent its request yet steps back"
    );
    let verdict = store
        .condemn(&pending, ReconnectReason::GrantRefused, event(), at(12))
        .await;
    assert!(!verdict.unwrap(), "its refusal says nothing new");
    // It was issued before the uninstall, and may be all that is left of the grant.
    assert!(matches!(land(&store, &pending, "late").await, Landed::Stored(_)));
    assert_eq!(held(&store, "c1").await.connection.status, gone_since(11));
    assert_eq!(token_name(&store, "c1").await, "late");
}

pub(crate) async fn an_uninstall_changes_nothing_for_who_has_left_or_must_reconnect_already(
    fixture: &impl Fixture,
) {
    let store = fixture.open().await;
    let mark = async |name: &str| {
        let marked = store
            .mark_uninstalled(&id(name), at(10), uninstalled(), at(30))
            .await;
        marked.unwrap()
    };
    create(&store, new("left")).await;
    store
        .disconnect(&id("left"), Revoke::Never, None, event(), at(5))
        .await
        .unwrap();
    assert!(!mark("left").await);
    create(&store, new("refused")).await;
    let refused = lease(&store, "refused", 1, LEASE).await;
    store
        .condemn(&refused, ReconnectReason::GrantRefused, event(), at(6))
        .await
        .unwrap();
    assert!(!mark("refused").await);
    // What was lost is known to be gone now, since when it was.
    create(&store, new("lost")).await;
    let lost = lease(&store, "lost", 1, LEASE).await;
    store
        .condemn(&lost, ReconnectReason::RedemptionOutcomeLost, event(), at(7))
        .await
        .unwrap();
    assert!(mark("lost").await);
    assert_eq!(held(&store, "lost").await.connection.status, gone_since(7));
    assert!(!mark("nobody").await);
}

pub(crate) async fn of_an_uninstall_and_a_consent_at_once_the_consent_stands(fixture: &impl Fixture) {
    let stores = [fixture.open().await, fixture.open().await];
    warm(&stores).await;
    for round in 0..20 {
        let name = format!("c{round}");
        create(&stores[0], new(&name)).await;
        let told = id(&name);
        let (marked, again) = futures_util::future::join(
            stores[round % 2].mark_uninstalled(&told, at(10), uninstalled(), at(20)),
            stores[1 - round % 2].reconnect(&told, None, tokens(&format!("again{round}")), event(), at(20)),
        )
        .await;
        marked.unwrap();
        stored(again.unwrap());
        let connection = held(&stores[0], &name).await.connection;
        assert_eq!(connection.status, ConnectionStatus::Active, "round {round}");
    }
}
