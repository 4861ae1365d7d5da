//! Who may redeem: PROTOCOL.md, rules 2 to 5, "Time", and what a 401 may cost.

use std::time::Duration;

use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::{ConnectionStatus, ReconnectReason, Version};
use evergrant_store::Store;
use evergrant_store::contract::{CooldownAnswer, Landed, Lease, LeaseAnswer, LeaseOn, Presented, Revoke};

use crate::fixture::*;

pub(crate) async fn one_of_two_processes_gets_the_lease(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    create(&a, new("c1")).await;
    for version in 1..20 {
        let (first, second) = tokio::join!(take(&a, "c1", version, LEASE), take(&b, "c1", version, LEASE));
        let lease = match (first, second) {
            (LeaseAnswer::Taken { lease, .. }, LeaseAnswer::Busy)
            | (LeaseAnswer::Busy, LeaseAnswer::Taken { lease, .. }) => lease,
            other => panic!("one gets it, the other waits: {other:?}"),
        };
        land(&a, &lease, &version.to_string()).await;
    }
}

// Rule 2: a takeover adds; it never replaces what the last holder recorded.
pub(crate) async fn a_takeover_adds_its_attempt_and_keeps_the_first_ones_time(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    create(&a, new("c1")).await;
    lease(&a, "c1", 1, NO_TIME).await;
    let answer = b
        .take_lease(&id("c1"), Version::FIRST, LEASE, LeaseOn::Active, at(50))
        .await
        .unwrap();
    let LeaseAnswer::Taken {
        held,
        earlier,
        took_over,
        ..
    } = answer
    else {
        panic!("the first lease has run out: {answer:?}");
    };
    assert!(took_over);
    let earlier = earlier.expect("what the first holder recorded");
    assert_eq!((earlier.attempts, earlier.first_at), (1, at(1)));
    let intent = held.connection.intent.expect("read under the lease");
    assert_eq!(
        (intent.attempts, intent.first_at, intent.version),
        (2, at(1), Version::FIRST)
    );
    assert_eq!(
        held.connection.refresh_in_progress_until,
        Some(at(50).after(LEASE))
    );
}

// Rule 2: a holder that steps back before its first byte takes its attempt back.
pub(crate) async fn stepping_back_takes_back_ones_own_attempt_and_no_other(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let first = lease(&store, "c1", 1, NO_TIME).await;
    let second = lease(&store, "c1", 1, NO_TIME).await;
    for _ in 0..2 {
        store
            .give_up(&first, Presented::No, None, None, at(2))
            .await
            .unwrap();
        let intent = held(&store, "c1").await.connection.intent.unwrap();
        assert_eq!(intent.attempts, 1, "however often the first one says so");
    }
    store
        .give_up(&second, Presented::No, None, None, at(2))
        .await
        .unwrap();
    assert_eq!(held(&store, "c1").await.connection.intent, None);
}

pub(crate) async fn an_attempt_of_unknown_outcome_is_seen_by_the_next_holder(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let first = lease(&store, "c1", 1, LEASE).await;
    store
        .give_up(&first, Presented::Unknown, None, None, at(2))
        .await
        .unwrap();
    let LeaseAnswer::Taken {
        earlier, took_over, ..
    } = take(&store, "c1", 1, LEASE).await
    else {
        panic!("the first one gave up");
    };
    assert_eq!(earlier.map(|intent| intent.attempts), Some(1));
    assert!(!took_over, "it was given up, not taken");
}

pub(crate) async fn an_intent_counts_only_for_its_version(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let first = lease(&store, "c1", 1, LEASE).await;
    store
        .give_up(&first, Presented::Unknown, None, None, at(2))
        .await
        .unwrap();
    let second = lease(&store, "c1", 1, LEASE).await;
    land(&store, &second, "two").await;
    assert_eq!(held(&store, "c1").await.connection.intent, None);
    let LeaseAnswer::Taken { earlier, held, .. } = take(&store, "c1", 2, LEASE).await else {
        panic!("it was freed on landing");
    };
    assert_eq!(earlier, None);
    assert_eq!(held.connection.intent.map(|intent| intent.attempts), Some(1));
}

pub(crate) async fn fences_only_grow(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let mut fences = Vec::new();
    let first = lease(&store, "c1", 1, NO_TIME).await;
    store
        .give_up(&first, Presented::No, None, None, at(2))
        .await
        .unwrap();
    let second = lease(&store, "c1", 1, LEASE).await;
    land(&store, &second, "two").await;
    store
        .disconnect(&id("c1"), Revoke::Never, None, event(), at(3))
        .await
        .unwrap();
    store
        .reconnect(&id("c1"), None, tokens("three"), event(), at(4))
        .await
        .unwrap();
    let third = lease(&store, "c1", 4, LEASE).await;
    fences.extend([first.fence(), second.fence(), third.fence()]);
    assert!(fences.is_sorted_by(|a, b| a < b), "{fences:?}");
    assert!(
        third.fence().number() >= second.fence().number() + 3,
        "disconnect and reconnect make fences of their own: {fences:?}"
    );
}

pub(crate) async fn a_lease_is_given_for_the_stored_version_of_an_active_connection_only(
    fixture: &impl Fixture,
) {
    let store = fixture.open().await;
    assert!(matches!(take(&store, "c1", 1, LEASE).await, LeaseAnswer::Missing));
    create(&store, new("c1")).await;
    for other in [0, 2] {
        let LeaseAnswer::Moved(held) = take(&store, "c1", other, LEASE).await else {
            panic!("version {other} is not the stored one");
        };
        assert_eq!(held.connection.version, Version::FIRST);
        assert_eq!(held.connection.intent, None, "nothing was taken");
    }
    let lease = lease(&store, "c1", 1, LEASE).await;
    let condemned = store
        .condemn(&lease, ReconnectReason::GrantRefused, event(), at(2))
        .await;
    assert!(condemned.unwrap());
    assert!(matches!(
        take(&store, "c1", 1, LEASE).await,
        LeaseAnswer::Moved(_)
    ));
}

// Time: `now` is for what is recorded.
pub(crate) async fn a_jump_of_the_wall_clock_moves_no_lease(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    create(&a, new("c1")).await;
    lease(&a, "c1", 1, LEASE).await;
    for now in [at(-1_000_000_000), at(0), at(1_000_000_000)] {
        let answer = b
            .take_lease(&id("c1"), Version::FIRST, LEASE, LeaseOn::Active, now)
            .await
            .unwrap();
        assert!(matches!(answer, LeaseAnswer::Busy), "at {now}: {answer:?}");
    }
}

// Rule 4: enough of the lease must be left for the whole deadline.
pub(crate) async fn a_lease_lasts_as_long_as_it_was_taken_for(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let lease = lease(&store, "c1", 1, LEASE).await;
    let lasts = async |seconds| {
        store
            .lease_lasts(&lease, Duration::from_secs(seconds))
            .await
            .unwrap()
    };
    assert!(lasts(0).await);
    assert!(lasts(30).await);
    assert!(!lasts(61).await);
    store
        .give_up(&lease, Presented::No, None, None, at(2))
        .await
        .unwrap();
    assert!(!lasts(0).await);
}

// Rule 4: whoever is about to present a refresh token must see that its redemption has landed meanwhile.
pub(crate) async fn a_lease_ends_with_the_version_it_was_taken_for(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let slow = lease(&store, "c1", 1, NO_TIME).await;
    let next = lease(&store, "c1", 1, LEASE).await;
    assert!(
        !store.lease_lasts(&slow, NO_TIME).await.unwrap(),
        "it was taken over"
    );
    assert!(store.lease_lasts(&next, NO_TIME).await.unwrap());
    land(&store, &slow, "late").await;
    assert!(
        !store.lease_lasts(&next, NO_TIME).await.unwrap(),
        "its refresh token was redeemed"
    );
    create(&store, new("c2")).await;
    let lease = lease(&store, "c2", 1, LEASE).await;
    store
        .disconnect(&id("c2"), Revoke::Never, None, event(), at(3))
        .await
        .unwrap();
    assert!(
        !store.lease_lasts(&lease, NO_TIME).await.unwrap(),
        "its owner left"
    );
}

pub(crate) async fn giving_up_frees_ones_own_lease_and_no_other(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let first = lease(&store, "c1", 1, NO_TIME).await;
    let second = lease(&store, "c1", 1, LEASE).await;
    store
        .give_up(&first, Presented::Unknown, None, None, at(2))
        .await
        .unwrap();
    assert!(matches!(take(&store, "c1", 1, LEASE).await, LeaseAnswer::Busy));
    store
        .give_up(&second, Presented::Unknown, None, None, at(2))
        .await
        .unwrap();
    assert!(matches!(
        take(&store, "c1", 1, LEASE).await,
        LeaseAnswer::Taken { .. }
    ));
}

pub(crate) async fn trouble_is_kept_only_where_the_version_stands(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let slow = lease(&store, "c1", 1, NO_TIME).await;
    store
        .give_up(&slow, Presented::Unknown, Some(trouble()), Some(event()), at(2))
        .await
        .unwrap();
    assert_eq!(held(&store, "c1").await.connection.trouble, Some(trouble()));
    let next = lease(&store, "c1", 1, LEASE).await;
    land(&store, &next, "two").await;
    assert_eq!(
        held(&store, "c1").await.connection.trouble,
        None,
        "landing settles it"
    );
    store
        .give_up(&slow, Presented::Unknown, Some(trouble()), None, at(3))
        .await
        .unwrap();
    assert_eq!(held(&store, "c1").await.connection.trouble, None);
}

// "A 401 redeems at most once per connection and cooldown", over all processes.
pub(crate) async fn a_cooldown_allows_one_redemption_and_grows(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    create(&a, new("c1")).await;
    let ask = async |now| {
        let answer = a.begin_cooldown(&id("c1"), Version::FIRST, at(now)).await;
        answer.unwrap()
    };
    let CooldownAnswer::Began(first) = ask(0).await else {
        panic!("none held");
    };
    let other = b.begin_cooldown(&id("c1"), Version::FIRST, at(59)).await.unwrap();
    assert_eq!(other, CooldownAnswer::Holds(first));
    let CooldownAnswer::Began(second) = ask(60).await else {
        panic!("the first is over");
    };
    assert_eq!(second.lasts, first.lasts * 2);
    assert_eq!(held(&a, "c1").await.cooldown, Some(second));
    let moved = a
        .begin_cooldown(&id("c1"), Version::new(2), at(9999))
        .await
        .unwrap();
    assert_eq!(moved, CooldownAnswer::Moved);
}

pub(crate) async fn a_forced_refresh_is_claimed_once_in_its_time(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    create(&a, new("c1")).await;
    let every = Duration::from_secs(10);
    let claim = async |store: &_, name: &str, second| {
        let event = Event::new(EventKind::RefreshForced, "somebody asked for it");
        Store::claim_forced_refresh(store, &id(name), every, event, at(second))
            .await
            .unwrap()
    };
    assert!(claim(&a, "c1", 0).await);
    assert!(!claim(&b, "c1", 9).await);
    assert!(claim(&b, "c1", 10).await);
    assert!(!claim(&a, "nobody", 10).await);
    let history = a.events(&id("c1"), 10).await.unwrap();
    let told = history.iter().filter(|event| event.kind == "refresh_forced");
    let seconds: Vec<_> = told.map(|event| event.at.millis() / 1000).collect();
    assert_eq!(
        seconds,
        [10, 0],
        "what may be made is in the history, and nothing else"
    );
}

// Rule 5: renewal WHERE fence = mine, and only what is held.
pub(crate) async fn a_lease_that_is_still_held_is_renewed_and_nothing_else(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let slow = lease(&store, "c1", 1, NO_TIME).await;
    let renew = async |lease: &_, seconds| {
        store
            .renew_lease(lease, Duration::from_secs(seconds))
            .await
            .unwrap()
    };
    assert!(!renew(&slow, 60).await, "it has run out");
    let next = lease(&store, "c1", 1, LEASE).await;
    let before = held(&store, "c1").await.connection;
    assert!(!renew(&slow, 60).await, "another one has it");
    let after = held(&store, "c1").await.connection;
    assert_eq!(format!("{after:?}"), format!("{before:?}"));

    assert!(renew(&next, 300).await);
    assert!(renew(&next, 1).await, "it is not made shorter");
    assert!(store.lease_lasts(&next, Duration::from_secs(250)).await.unwrap());
    let mut after = held(&store, "c1").await.connection;
    let (shown, now_shown) = (
        before.refresh_in_progress_until.unwrap(),
        after.refresh_in_progress_until.unwrap(),
    );
    let longer = now_shown.since(shown);
    assert!(
        (239..=241).contains(&longer.as_secs()),
        "people see it, too: {longer:?}"
    );
    after.refresh_in_progress_until = before.refresh_in_progress_until;
    assert_eq!(format!("{after:?}"), format!("{before:?}"));

    // A late answer moved the version; whoever still speaks with the provider keeps others away all the same.
    land(&store, &slow, "late").await;
    assert!(renew(&next, 300).await);
    store
        .give_up(&next, Presented::Unknown, None, None, at(2))
        .await
        .unwrap();
    assert!(!renew(&next, 60).await, "it was given up");
}

// A replica that takes over without the last commits gives the same fence to another process.
pub(crate) async fn a_lease_is_its_holders_alone(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    create(&a, new("c1")).await;
    let lease = lease(&a, "c1", 1, LEASE).await;
    assert!(!b.lease_lasts(&lease, NO_TIME).await.unwrap());
    assert!(!b.renew_lease(&lease, LEASE).await.unwrap());
    let before = held(&a, "c1").await.connection;
    b.give_up(&lease, Presented::No, None, None, at(2)).await.unwrap();
    let after = held(&a, "c1").await.connection;
    assert_eq!(after.intent, before.intent, "its attempt stays counted");
    assert!(matches!(take(&b, "c1", 1, LEASE).await, LeaseAnswer::Busy));
}

// "A person may try once more with `refresh ID`."
pub(crate) async fn a_lost_outcome_may_be_tried_once_more_where_a_person_asks(fixture: &impl Fixture) {
    let store = fixture.open().await;
    for reason in ReconnectReason::ALL {
        let name = reason.as_str();
        create(&store, new(name)).await;
        let first = lease(&store, name, 1, LEASE).await;
        assert!(store.condemn(&first, reason, event(), at(2)).await.unwrap());
        let ask = async |on| {
            store
                .take_lease(&id(name), Version::FIRST, LEASE, on, at(3))
                .await
                .unwrap()
        };
        assert!(matches!(ask(LeaseOn::Active).await, LeaseAnswer::Moved(_)));
        let answer = ask(LeaseOn::LostOutcome).await;
        if reason != ReconnectReason::RedemptionOutcomeLost {
            assert!(matches!(answer, LeaseAnswer::Moved(_)), "{reason:?}: {answer:?}");
            continue;
        }
        let LeaseAnswer::Taken { lease, earlier, .. } = answer else {
            panic!("a person asked: {answer:?}");
        };
        assert_eq!(earlier.map(|intent| intent.attempts), Some(1));
        assert!(store.lease_lasts(&lease, NO_TIME).await.unwrap());
        assert!(store.renew_lease(&lease, LEASE).await.unwrap());
    }
}

async fn one_more_try(store: &impl Store, name: &str) -> Lease {
    create(store, new(name)).await;
    let first = lease(store, name, 1, LEASE).await;
    let lost = ReconnectReason::RedemptionOutcomeLost;
    assert!(store.condemn(&first, lost, event(), at(2)).await.unwrap());
    let answer = store
        .take_lease(&id(name), Version::FIRST, LEASE, LeaseOn::LostOutcome, at(3))
        .await;
    match answer.unwrap() {
        LeaseAnswer::Taken { lease, .. } => lease,
        other => panic!("a person asked: {other:?}"),
    }
}

pub(crate) async fn one_more_try_ends_as_any_other(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let since = |reason, since| ConnectionStatus::ReconnectRequired {
        reason,
        since: at(since),
    };
    let lost = ReconnectReason::RedemptionOutcomeLost;
    let status = async |name| held(&store, name).await.connection.status;

    let given_up = one_more_try(&store, "c1").await;
    store
        .give_up(
            &given_up,
            Presented::Unknown,
            Some(trouble()),
            Some(event()),
            at(4),
        )
        .await
        .unwrap();
    assert_eq!(status("c1").await, since(lost, 2), "it stays as it was");
    assert!(!store.lease_lasts(&given_up, NO_TIME).await.unwrap());

    let again = one_more_try(&store, "c2").await;
    assert!(store.condemn(&again, lost, event(), at(4)).await.unwrap());
    assert_eq!(status("c2").await, since(lost, 2), "for as long as before");
    let refused = ReconnectReason::GrantRefused;
    assert!(
        !store.condemn(&again, refused, event(), at(5)).await.unwrap(),
        "one verdict, one lease"
    );

    let lease = one_more_try(&store, "c3").await;
    assert!(store.condemn(&lease, refused, event(), at(4)).await.unwrap());
    assert_eq!(status("c3").await, since(refused, 4));

    let landing = one_more_try(&store, "c4").await;
    assert!(matches!(land(&store, &landing, "found").await, Landed::Stored(_)));
    assert_eq!(status("c4").await, ConnectionStatus::Active);
    assert!(
        held(&store, "c4").await.connection.unproven,
        "rule 16: nobody knows which attempt it is of"
    );
}
