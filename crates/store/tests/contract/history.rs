//! What happened and how often: events, tallies, how the connections do. RELIABILITY.md, I7.

use std::time::Duration;

use evergrant_domain::access::Limits;
use evergrant_domain::api_answer::Class;
use evergrant_domain::connection::LastSeen;
use evergrant_domain::event::{Circumstances, Event, EventKind, RefreshReason};
use evergrant_domain::tally::{Counted, Tally};
use evergrant_domain::{Health, ReconnectReason, Version};
use evergrant_store::Store;
use evergrant_store::contract::{
    Connected, ConnectionFilter, CredentialsRejected, EventOrder, EventQuery, EventTrim, HealthAsked, Landed,
    NewConnection, Presented, RefreshCount, Revoke, Sort, SortBy, StoredEvent, Usage,
};

use crate::fixture::*;

const NEWEST_FIRST: EventOrder = EventOrder::NewestFirst { before: None };
const FROM_THE_BEGINNING: EventOrder = EventOrder::OldestFirst { after: 0 };

fn says(kind: EventKind) -> Event {
    Event::new(kind, "why")
}

async fn kinds(store: &impl Store, query: EventQuery) -> Vec<String> {
    let page = store.find_events(query).await.unwrap();
    page.events.into_iter().map(|event| event.kind).collect()
}

// Every word of an event is read back, and what the store alone knows is there.
pub(crate) async fn an_event_tells_who_why_and_what_stood_around_it(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let circumstances = Circumstances {
        provider_correlation_id: Some("correlation".into()),
        request_id: Some("request".into()),
        by: Some("key-1".into()),
        reason: Some(RefreshReason::WaitedFor),
        class: Some(Class::Expired),
        attempt: Some(2),
        status_code: Some(401),
        method: Some("GET".into()),
        endpoint: Some("/crm/v3/objects/contacts/{id}".into()),
        seconds_remaining: Some(-3),
        token_version: Some(Version::FIRST),
        failures_before: Some(0),
        took: Some(Duration::from_millis(120)),
    };
    let mut refreshed = refreshed("two");
    refreshed.event = says(EventKind::Refreshed).during(circumstances.clone());
    let lease = lease(&store, "c1", 1, LEASE).await;
    store.land(&lease, refreshed, at(2)).await.unwrap();

    let told = store.events(&id("c1"), 10).await.unwrap();
    let [landed, made] = told.as_slice() else {
        panic!("two events: {told:?}")
    };
    assert_eq!(landed.circumstances, circumstances);
    assert_eq!(
        (landed.version_before, landed.version),
        (Some(Version::FIRST), Some(Version::new(2)))
    );
    assert_eq!((made.version_before, made.version), (None, Some(Version::FIRST)));
    assert_eq!(
        (landed.app.as_str(), landed.at, landed.detail.as_str()),
        ("crm", at(2), "why")
    );
    let fingerprints = [&made.fingerprint, &landed.fingerprint].map(|one| one.clone().unwrap());
    assert_ne!(fingerprints[0], fingerprints[1]);
    assert!(fingerprints.iter().all(|one| !one.contains("refresh")));
    assert!(
        landed
            .process
            .as_deref()
            .is_some_and(|process| !process.is_empty())
    );
    assert_eq!(landed.process, made.process);
}

// The version that stood before is told with each change, and where nothing changed both are the same.
pub(crate) async fn an_event_names_the_version_before_and_after(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let first = lease(&store, "c1", 1, LEASE).await;
    let failed = Some(says(EventKind::RefreshFailed));
    store
        .give_up(&first, Presented::No, None, failed, at(1))
        .await
        .unwrap();
    store
        .reconnect(
            &id("c1"),
            None,
            tokens("two"),
            says(EventKind::Reconnected),
            at(2),
        )
        .await
        .unwrap();
    let restored = store
        .restore(
            &id("c1"),
            Version::new(2),
            Version::new(7),
            tokens("seven"),
            says(EventKind::StoreRegressed),
            at(3),
        )
        .await
        .unwrap();
    assert!(restored.is_some());
    let left = says(EventKind::Disconnected);
    store
        .disconnect(&id("c1"), Revoke::Never, None, left, at(4))
        .await
        .unwrap();
    store
        .note_event(&id("c1"), says(EventKind::Revoked), at(5))
        .await
        .unwrap();
    let history = store.events(&id("c1"), 10).await.unwrap();
    let number = |version: Option<Version>| version.map_or(0, Version::number);
    let told: Vec<_> = history
        .iter()
        .rev()
        .map(|event: &StoredEvent| {
            (
                event.kind.as_str(),
                number(event.version_before),
                number(event.version),
                event.fingerprint.is_some(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("connected", 0, 1, true),
            ("refresh_failed", 1, 1, true),
            ("reconnected", 1, 2, true),
            ("store_regressed", 2, 7, true),
            ("disconnected", 7, 8, false),
            ("revoked", 8, 8, false),
        ]
    );
}

pub(crate) async fn events_are_found_by_what_is_asked_for(fixture: &impl Fixture) {
    let store = fixture.open().await;
    for (name, of_app) in [("c1", "crm"), ("c2", "crm"), ("c3", "erp")] {
        let made = NewConnection {
            app: app(of_app),
            ..new(name)
        };
        create(&store, made).await;
    }
    let in_request = says(EventKind::CallUnauthorized).during(Circumstances {
        request_id: Some("request".into()),
        provider_correlation_id: Some("correlation".into()),
        ..Circumstances::default()
    });
    store.note_event(&id("c1"), in_request, at(10)).await.unwrap();
    store
        .note_app_event(&app("erp"), says(EventKind::CredentialsRejected), at(11))
        .await
        .unwrap();
    let all = |order| EventQuery::all(order, 10);
    let everything = [
        "connected",
        "connected",
        "connected",
        "call_unauthorized",
        "credentials_rejected",
    ];
    assert_eq!(kinds(&store, all(FROM_THE_BEGINNING)).await, everything);
    let mut backwards = kinds(&store, all(NEWEST_FIRST)).await;
    backwards.reverse();
    assert_eq!(backwards, everything);

    let check = async |query: EventQuery, found: &[&str]| assert_eq!(kinds(&store, query).await, found);
    let asked = || all(FROM_THE_BEGINNING);
    check(
        EventQuery {
            connections: vec![id("c1"), id("c2")],
            kinds: vec!["connected".into()],
            ..asked()
        },
        &["connected", "connected"],
    )
    .await;
    check(
        EventQuery {
            apps: vec![app("erp")],
            ..asked()
        },
        &["connected", "credentials_rejected"],
    )
    .await;
    check(
        EventQuery {
            request_ids: vec!["request".into()],
            ..asked()
        },
        &["call_unauthorized"],
    )
    .await;
    check(
        EventQuery {
            provider_correlation_ids: vec!["correlation".into(), "other".into()],
            ..all(NEWEST_FIRST)
        },
        &["call_unauthorized"],
    )
    .await;
    check(
        EventQuery {
            since: Some(at(11)),
            ..asked()
        },
        &["credentials_rejected"],
    )
    .await;
    let within = |limits| EventQuery { limits, ..asked() };
    check(
        within(Limits {
            apps: vec![app("erp")],
            ..Limits::default()
        }),
        &["connected", "credentials_rejected"],
    )
    .await;
    check(
        within(Limits {
            customers: vec![customer("c1")],
            ..Limits::default()
        }),
        &["connected", "call_unauthorized"],
    )
    .await;
    check(
        within(Limits {
            connections: vec![id("c3")],
            ..Limits::default()
        }),
        &["connected"],
    )
    .await;
}

pub(crate) async fn pages_of_events_make_up_the_whole_in_both_directions(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    for _ in 0..4 {
        store
            .note_event(&id("c1"), says(EventKind::Revoked), at(1))
            .await
            .unwrap();
    }
    let whole: Vec<i64> = {
        let page = store
            .find_events(EventQuery::all(FROM_THE_BEGINNING, 10))
            .await
            .unwrap();
        assert_eq!(page.read_on, Some(store.event_head().await.unwrap()));
        page.events.iter().map(|event| event.id).collect()
    };
    assert_eq!(whole.len(), 5);
    let mut forward = Vec::new();
    let mut after = 0;
    while forward.len() < whole.len() {
        let page = store
            .find_events(EventQuery::all(EventOrder::OldestFirst { after }, 2))
            .await
            .unwrap();
        assert!(!page.events.is_empty());
        forward.extend(page.events.iter().map(|event| event.id));
        after = page.read_on.unwrap();
    }
    assert_eq!(forward, whole);
    let mut backward = Vec::new();
    let mut before = None;
    loop {
        let page = store
            .find_events(EventQuery::all(EventOrder::NewestFirst { before }, 2))
            .await
            .unwrap();
        backward.extend(page.events.iter().map(|event| event.id));
        before = page.read_on;
        if before.is_none() {
            break;
        }
    }
    backward.reverse();
    assert_eq!(backward, whole);
}

pub(crate) async fn an_apps_health_changes_with_its_event_and_no_event_without_a_change(
    fixture: &impl Fixture,
) {
    let store = fixture.open().await;
    let crm = app("crm");
    let refusal = |since, credentials: &str| CredentialsRejected {
        code: "BAD_CLIENT_SECRET".into(),
        since: at(since),
        credentials_fingerprint: credentials.into(),
    };
    let refuse = async |rejected| {
        store
            .reject_app(&crm, rejected, says(EventKind::CredentialsRejected))
            .await
            .unwrap();
    };
    let accept = async |secret: &str| {
        store
            .accept_app(&crm, secret.into(), says(EventKind::CredentialsAccepted), at(9))
            .await
            .unwrap();
    };
    accept("one").await;
    refuse(refusal(1, "a")).await;
    refuse(refusal(2, "a")).await;
    refuse(refusal(3, "b")).await;
    accept("one").await;
    accept("two").await;
    let page = store
        .find_events(EventQuery::all(FROM_THE_BEGINNING, 10))
        .await
        .unwrap();
    let told: Vec<_> = page
        .events
        .iter()
        .map(|event| {
            assert_eq!(
                (&event.connection, &event.version, &event.app),
                (&None, &None, &crm)
            );
            (event.kind.as_str(), event.at)
        })
        .collect();
    assert_eq!(
        told,
        [
            ("credentials_rejected", at(1)),
            ("credentials_rejected", at(3)),
            ("credentials_accepted", at(9))
        ]
    );
}

pub(crate) async fn what_did_not_happen_is_not_in_the_history(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let why = says(EventKind::ReconnectRequired);
    create(&store, new("c1")).await;
    create(&store, new("c2")).await;
    let stale = lease(&store, "c1", 1, LEASE).await;
    land(&store, &stale, "two").await;
    let every = Duration::from_secs(10);
    assert!(
        store
            .claim_forced_refresh(&id("c1"), every, why.clone(), at(3))
            .await
            .unwrap()
    );
    let told = async || {
        let all = EventQuery::all(EventOrder::NewestFirst { before: None }, 100);
        let events = store.find_events(all).await.unwrap().events;
        events.into_iter().map(|event| event.id).collect::<Vec<_>>()
    };
    let before = told().await;

    let again = store.create(new("c1"), at(4)).await.unwrap();
    assert!(matches!(again, Connected::IdTaken), "{again:?}");
    let grant_of_another = NewConnection {
        tokens: tokens("two"),
        ..new("c3")
    };
    let taken = store.create(grant_of_another.clone(), at(4)).await.unwrap();
    assert!(matches!(taken, Connected::GrantTaken { .. }), "{taken:?}");
    let taken = store
        .supersede(grant_of_another, why.clone(), at(4))
        .await
        .unwrap();
    assert!(matches!(taken, Connected::GrantTaken { .. }), "{taken:?}");
    let taken = store
        .reconnect(&id("c1"), None, tokens("c2"), why.clone(), at(4))
        .await
        .unwrap();
    assert!(matches!(taken, Connected::GrantTaken { .. }), "{taken:?}");
    let late = store.land(&stale, refreshed("three"), at(4)).await.unwrap();
    assert!(matches!(late, Landed::Moved(_)), "{late:?}");
    let (v1, v2) = (Version::FIRST, Version::new(2));
    let restored = store
        .restore(&id("c1"), v1, v2, tokens("four"), why.clone(), at(4))
        .await
        .unwrap();
    assert!(restored.is_none(), "{restored:?}");
    for refused in [
        store
            .condemn(&stale, ReconnectReason::GrantRefused, why.clone(), at(4))
            .await,
        store
            .mark_uninstalled(&id("c1"), at(-9), why.clone(), at(4))
            .await,
        store
            .claim_forced_refresh(&id("c1"), every, why.clone(), at(4))
            .await,
        store
            .claim_forced_refresh(&id("nobody"), every, why.clone(), at(4))
            .await,
    ] {
        assert!(!refused.unwrap());
    }
    let nobody = id("nobody");
    let left = store.disconnect(&nobody, Revoke::Never, None, why, at(4));
    assert!(left.await.unwrap().is_none());
    assert_eq!(told().await, before);
}

pub(crate) async fn history_is_kept_by_age_and_by_count(fixture: &impl Fixture) {
    let store = fixture.open().await;
    for name in ["c1", "c2"] {
        create(&store, new(name)).await;
    }
    for second in 1..=6 {
        store
            .note_event(&id("c1"), says(EventKind::Revoked), at(second))
            .await
            .unwrap();
    }
    let trim = async |before, keep_per_connection| {
        let trim = EventTrim {
            before: at(before),
            keep_per_connection,
            from: None,
        };
        let head = store.event_head().await.unwrap();
        assert_eq!(
            store.trim_events(trim).await.unwrap(),
            None,
            "two connections are one bite"
        );
        assert_eq!(
            store.event_head().await.unwrap(),
            head,
            "numbers are never given twice"
        );
        let seconds = async |name| -> Vec<i64> {
            let events = store.events(&id(name), 20).await.unwrap();
            events.iter().map(|event| event.at.millis() / 1000).collect()
        };
        (seconds("c1").await, seconds("c2").await)
    };
    assert_eq!(trim(0, 3).await, (vec![6, 5, 4], vec![0]));
    assert_eq!(trim(5, 3).await, (vec![6, 5], vec![]));
    assert_eq!(trim(7, 3).await, (vec![], vec![]));
}

pub(crate) async fn refreshes_are_counted_from_the_history(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    let told = [
        (1, EventKind::Refreshed),
        (2, EventKind::Refreshed),
        (2, EventKind::RefreshFailed),
        (3, EventKind::Refreshed),
        (3, EventKind::Revoked),
    ];
    for (second, kind) in told {
        store.note_event(&id("c1"), says(kind), at(second)).await.unwrap();
    }
    let count = store.count_refreshes(&id("c1"), at(2)).await.unwrap();
    assert_eq!(count, RefreshCount { done: 2, failed: 1 });
    let nobody = store.count_refreshes(&id("nobody"), at(0)).await.unwrap();
    assert_eq!(nobody, RefreshCount::default());
}

pub(crate) async fn what_is_counted_adds_up_over_all_processes(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    for name in ["c1", "c2"] {
        create(&a, new(name)).await;
    }
    let used = |name: &str, counted: Counted, times| {
        let mut tally = Tally::default();
        tally.add(counted, times);
        Usage {
            connection: id(name),
            app: app("crm"),
            last: LastSeen::default(),
            tally,
        }
    };
    let ok = Counted::Class(Class::Ok);
    let hour = 3600;
    a.note_usage(
        vec![
            used("c1", ok, 2),
            used("c1", Counted::Status(403), 1),
            used("c2", ok, 1),
            used("nobody", ok, 1),
        ],
        at(hour + 59),
    )
    .await
    .unwrap();
    b.note_usage(vec![used("c1", ok, 3)], at(hour + 61))
        .await
        .unwrap();
    b.note_usage(vec![used("c1", ok, 7)], at(2 * hour)).await.unwrap();

    let told = |tallied: Vec<evergrant_store::contract::Tallied>| -> Vec<(i64, u32, u32)> {
        tallied
            .iter()
            .map(|one| {
                (
                    one.at.millis() / 1000,
                    one.tally.times(ok),
                    one.tally.times(Counted::Status(403)),
                )
            })
            .collect()
    };
    let of = async |name| told(a.tallies(&id(name), at(hour)).await.unwrap());
    assert_eq!(of("c1").await, [(hour, 5, 1), (2 * hour, 7, 0)]);
    assert_eq!(of("c2").await, [(hour, 1, 0)]);
    assert_eq!(of("nobody").await, []);
    assert_eq!(
        told(a.app_tallies(&app("crm"), at(hour)).await.unwrap()),
        [(hour, 4, 1), (hour + 60, 3, 0), (2 * hour, 7, 0)]
    );
    assert_eq!(
        told(a.tallies(&id("c1"), at(2 * hour)).await.unwrap()),
        [(2 * hour, 7, 0)]
    );

    let day = 24 * 3600;
    a.sweep(at(2 * hour)).await.unwrap();
    assert_eq!(
        told(a.app_tallies(&app("crm"), at(0)).await.unwrap()),
        [(2 * hour, 7, 0)]
    );
    assert_eq!(
        of("c1").await.len(),
        2,
        "those of connections are kept a day longer"
    );
    a.sweep(at(2 * hour + day)).await.unwrap();
    assert_eq!(of("c1").await, [(2 * hour, 7, 0)]);
    disconnect(&a, "c1").await;
    a.purge(&id("c1")).await.unwrap();
    assert_eq!(of("c1").await, [], "a purge erases what was counted, too");
}

async fn disconnect(store: &impl Store, name: &str) {
    let left = says(EventKind::Disconnected);
    store
        .disconnect(&id(name), Revoke::Never, None, left, at(20))
        .await
        .unwrap();
}

// The store's own judgement of health is the domain's, whatever stands in the row.
#[expect(clippy::too_many_lines, reason = "one row for each way to be well or ill")]
pub(crate) async fn connections_are_counted_and_found_by_the_health_that_their_records_show(
    fixture: &impl Fixture,
) {
    const QUIET: Duration = Duration::from_secs(30);
    let now = at(1000);
    let store = fixture.open().await;
    let names = [
        "unused",
        "well",
        "rejected",
        "rejected_then_well",
        "rejected_then_refreshed",
        "troubled",
        "lost",
        "trying",
        "condemned",
        "left",
    ];
    for name in names {
        let made = NewConnection {
            app: app(if name == "well" { "erp" } else { "crm" }),
            ..new(name)
        };
        create(&store, made).await;
    }
    let seen = |name: &str, success, unauthorized, refresh| Usage {
        connection: id(name),
        app: app("crm"),
        last: LastSeen {
            success_at: success,
            unauthorized_at: unauthorized,
            refresh_at: refresh,
            ..LastSeen::default()
        },
        tally: Tally::default(),
    };
    let usage = vec![
        seen("well", Some(at(9)), None, None),
        seen("rejected", Some(at(9)), Some(at(10)), None),
        seen("rejected_then_well", Some(at(10)), Some(at(10)), None),
        seen("rejected_then_refreshed", Some(at(9)), Some(at(10)), Some(at(11))),
        seen("troubled", Some(at(9)), None, None),
        seen("lost", Some(at(9)), None, None),
        seen("trying", Some(at(9)), None, None),
        seen("condemned", Some(at(9)), None, None),
        seen("left", Some(at(9)), None, None),
    ];
    store.note_usage(usage, now).await.unwrap();
    let troubled = lease(&store, "troubled", 1, LEASE).await;
    store
        .give_up(&troubled, Presented::No, Some(trouble()), None, at(10))
        .await
        .unwrap();
    for (name, began) in [("lost", 969), ("trying", 970)] {
        store
            .take_lease(
                &id(name),
                Version::FIRST,
                LEASE,
                evergrant_store::contract::LeaseOn::Active,
                at(began),
            )
            .await
            .unwrap();
    }
    let condemned = lease(&store, "condemned", 1, LEASE).await;
    let verdict = says(EventKind::ReconnectRequired);
    let reason = evergrant_domain::ReconnectReason::GrantRefused;
    assert!(store.condemn(&condemned, reason, verdict, at(12)).await.unwrap());
    disconnect(&store, "left").await;

    let all = || ConnectionFilter {
        limit: 100,
        ..ConnectionFilter::default()
    };
    let mut expected = std::collections::BTreeMap::new();
    for connection in store.list(all()).await.unwrap() {
        let health = connection.health(now, QUIET);
        *expected
            .entry((connection.app.to_string(), health.map(Health::as_str)))
            .or_insert(0) += 1;
    }
    assert_eq!(expected.len(), 7, "every health is there: {expected:?}");
    let counted: std::collections::BTreeMap<_, _> = store
        .count_connections(Limits::default(), QUIET, now)
        .await
        .unwrap()
        .into_iter()
        .map(|count| {
            (
                (count.app.to_string(), count.health.map(Health::as_str)),
                count.count,
            )
        })
        .collect();
    assert_eq!(counted, expected);
    for health in Health::ALL {
        let asked = ConnectionFilter {
            healths: Some(HealthAsked {
                any_of: vec![health],
                now,
                quiet_time: QUIET,
            }),
            ..all()
        };
        let found = store.list(asked).await.unwrap();
        assert!(!found.is_empty(), "{}", health.as_str());
        for connection in found {
            assert_eq!(connection.health(now, QUIET), Some(health), "{}", connection.id);
        }
    }
    let limits = Limits {
        apps: vec![app("erp")],
        ..Limits::default()
    };
    let within = store.count_connections(limits, QUIET, now).await.unwrap();
    assert_eq!(within.len(), 1);
    assert_eq!((within[0].health, within[0].count), (Some(Health::Healthy), 1));
}

pub(crate) async fn pages_of_connections_make_up_the_whole_in_every_order(fixture: &impl Fixture) {
    let store = fixture.open().await;
    for (number, name) in ["b", "a", "C", "d", "é"].into_iter().enumerate() {
        let second = i64::try_from(number % 2).unwrap();
        let id = format!("c{number}");
        let mut made = NewConnection {
            customer: customer(name),
            ..new(&id)
        };
        made.tokens.ends.expires = at(200 - second);
        store.create(made, at(second)).await.unwrap();
        let usage = Usage {
            connection: id.parse().unwrap(),
            app: app("crm"),
            last: LastSeen {
                call_at: (number > 1).then(|| at(50 + second)),
                ..LastSeen::default()
            },
            tally: Tally::default(),
        };
        store.note_usage(vec![usage], at(60)).await.unwrap();
    }
    disconnect(&store, "c3").await;
    for by in SortBy::ALL {
        for descending in [false, true] {
            let sort = Sort { by, descending };
            let mut found = Vec::new();
            let mut after = None;
            loop {
                let filter = ConnectionFilter {
                    sort,
                    limit: 2,
                    after: after.clone(),
                    ..ConnectionFilter::default()
                };
                let page = store.list(filter).await.unwrap();
                let Some(last) = page.last() else { break };
                after = Some((by.key_of(last), last.id.clone()));
                found.extend(page);
            }
            let places: Vec<_> = found
                .iter()
                .map(|connection| match by.key_of(connection) {
                    evergrant_store::contract::SortKey::Time(at) => {
                        (at.millis(), String::new(), connection.id.clone())
                    }
                    evergrant_store::contract::SortKey::Text(text) => (0, text, connection.id.clone()),
                })
                .collect();
            assert_eq!(places.len(), 5, "{sort:?}");
            let in_order = if descending {
                places.is_sorted_by(|one, next| one > next)
            } else {
                places.is_sorted_by(|one, next| one < next)
            };
            assert!(in_order, "{sort:?}: {places:?}");
        }
    }
}
