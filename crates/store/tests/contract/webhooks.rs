//! Deliveries of webhooks, and places in journals.

use std::time::Duration;

use evergrant_domain::access::Limits;
use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::{ConnectionStatus, ReconnectReason};
use evergrant_store::Store;
use evergrant_store::contract::{
    DeadLetters, Delivery, DeliveryFilter, DeliveryState, DeliverySweep, JournalStep, NewDelivery, Revoke,
    TriedDelivery, TryEnd, Uninstall,
};
use futures_util::future::join_all;

use crate::fixture::*;

const PUSH: Duration = Duration::from_secs(60);

fn delivery(number: i64) -> NewDelivery {
    NewDelivery {
        id: format!("msg_{number:03}"),
        endpoint: "there".into(),
        url: "https://there.example/".into(),
        event: number,
        kind: "connection.connected".into(),
        app: app("crm"),
        customer: Some(customer("acme")),
        connection: Some(id("c1")),
        at: at(1),
        data: "{\"why\":\"because\"}".into(),
    }
}

async fn made(store: &impl Store, numbers: impl IntoIterator<Item = i64>) {
    let deliveries: Vec<_> = numbers.into_iter().map(delivery).collect();
    let from = store.webhook_position().await.unwrap();
    let to = from.unwrap_or(0) + 1;
    assert!(store.add_deliveries(from, to, deliveries, at(10)).await.unwrap());
}

async fn claimed(store: &impl Store, second: i64) -> Vec<Delivery> {
    store
        .claim_deliveries("there", 100, PUSH, at(second))
        .await
        .unwrap()
}

async fn listed(store: &impl Store, filter: DeliveryFilter) -> Vec<String> {
    let filter = DeliveryFilter { limit: 100, ..filter };
    let found = store.deliveries(filter).await.unwrap();
    found.into_iter().map(|delivery| delivery.id).collect()
}

async fn ended(store: &impl Store, delivery: &Delivery, end: TryEnd, second: i64) -> bool {
    let tried = TriedDelivery {
        id: delivery.id.clone(),
        tries: delivery.tries,
        status: Some(503),
        error: Some("status 503".into()),
    };
    store.end_try(tried, end, at(second)).await.unwrap()
}

pub(crate) async fn deliveries_are_kept_with_how_far_the_events_were_read_or_not_at_all(
    fixture: &impl Fixture,
) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    assert_eq!(a.webhook_position().await.unwrap(), None);
    assert!(a.add_deliveries(None, 5, vec![], at(10)).await.unwrap());
    assert!(
        !b.add_deliveries(None, 9, vec![delivery(9)], at(10))
            .await
            .unwrap(),
        "another was first"
    );
    assert!(
        a.add_deliveries(Some(5), 7, vec![delivery(6), delivery(7)], at(10))
            .await
            .unwrap()
    );
    assert!(
        !b.add_deliveries(Some(5), 7, vec![delivery(8)], at(10))
            .await
            .unwrap(),
        "it has moved on"
    );
    assert_eq!(b.webhook_position().await.unwrap(), Some(7));
    assert_eq!(
        listed(&b, DeliveryFilter::default()).await,
        ["msg_007", "msg_006"]
    );
    // One for each receiver and event, whoever makes it.
    let again = NewDelivery {
        id: "msg_900".into(),
        ..delivery(7)
    };
    let elsewhere = NewDelivery {
        id: "msg_901".into(),
        endpoint: "elsewhere".into(),
        ..delivery(7)
    };
    assert!(
        a.add_deliveries(Some(7), 8, vec![again, elsewhere], at(10))
            .await
            .unwrap()
    );
    assert_eq!(
        listed(&b, DeliveryFilter::default()).await,
        ["msg_901", "msg_007", "msg_006"]
    );
}

pub(crate) async fn a_delivery_is_claimed_by_one_process_and_again_when_that_is_gone(fixture: &impl Fixture) {
    let stores = [fixture.open().await, fixture.open().await];
    warm(&stores).await;
    made(&stores[0], 1..=40).await;
    let claims = (0..8).map(|number| stores[number % 2].claim_deliveries("there", 10, PUSH, at(10)));
    let mut claims: Vec<_> = join_all(claims)
        .await
        .into_iter()
        .flat_map(|claimed| claimed.unwrap())
        .map(|delivery| (delivery.id, delivery.tries))
        .collect();
    claims.sort();
    claims.dedup();
    assert_eq!(claims.len(), 40, "each once");
    assert!(claims.iter().all(|(_, tries)| *tries == 1));
    assert!(claimed(&stores[0], 69).await.is_empty(), "somebody is at it");
    let again = claimed(&stores[1], 70).await;
    assert_eq!(again.len(), 40, "nobody ended it: whoever had it is gone");
    assert!(
        again
            .iter()
            .all(|delivery| delivery.tries == 2 && delivery.data.contains("because"))
    );
    assert!(
        stores[0]
            .claim_deliveries("nowhere", 10, PUSH, at(999))
            .await
            .unwrap()
            .is_empty()
    );
}

pub(crate) async fn a_try_ends_once_and_not_by_an_older_one(fixture: &impl Fixture) {
    let store = fixture.open().await;
    made(&store, [1, 2, 3]).await;
    let first = claimed(&store, 10).await;
    let at_second = |name: &str| first.iter().find(|delivery| delivery.id == name).unwrap().clone();
    let (taken, later, given_up) = (at_second("msg_001"), at_second("msg_002"), at_second("msg_003"));
    assert!(ended(&store, &taken, TryEnd::Delivered, 11).await);
    assert!(!ended(&store, &taken, TryEnd::Dead, 12).await, "it has ended");
    assert!(ended(&store, &later, TryEnd::Again { at: at(30) }, 11).await);
    assert!(ended(&store, &given_up, TryEnd::Dead, 11).await);
    assert!(claimed(&store, 29).await.is_empty());
    let again = claimed(&store, 30).await;
    assert_eq!((again.len(), again[0].tries), (1, 2));
    assert_eq!(again[0].last_status, Some(503));
    assert!(
        !ended(&store, &later, TryEnd::Dead, 31).await,
        "that was the try before"
    );
    let dead = |states: Vec<DeliveryState>| DeliveryFilter {
        states,
        ..DeliveryFilter::default()
    };
    assert_eq!(listed(&store, dead(vec![DeliveryState::Dead])).await, ["msg_003"]);
    assert_eq!(
        listed(
            &store,
            dead(vec![DeliveryState::Delivered, DeliveryState::Pending])
        )
        .await,
        ["msg_002", "msg_001"]
    );
}

pub(crate) async fn what_is_sent_again_begins_anew(fixture: &impl Fixture) {
    let store = fixture.open().await;
    made(&store, [1]).await;
    let first = claimed(&store, 10).await.pop().unwrap();
    ended(&store, &first, TryEnd::Dead, 11).await;
    assert!(claimed(&store, 9_999).await.is_empty());
    let again = store.resend_delivery("msg_001", at(20)).await.unwrap().unwrap();
    assert_eq!(
        (again.state, again.tries, again.began_at),
        (DeliveryState::Pending, 0, at(20))
    );
    assert_eq!(claimed(&store, 20).await.pop().unwrap().tries, 1);
    assert!(store.resend_delivery("msg_999", at(20)).await.unwrap().is_none());
}

pub(crate) async fn deliveries_are_listed_within_limits_page_by_page(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let of_app = NewDelivery {
        customer: None,
        connection: None,
        ..delivery(3)
    };
    let other = NewDelivery {
        app: app("erp"),
        customer: Some(customer("globex")),
        connection: Some(id("c2")),
        ..delivery(2)
    };
    store
        .add_deliveries(None, 1, vec![delivery(1), other, of_app], at(10))
        .await
        .unwrap();
    let within = |limits: Limits| DeliveryFilter {
        limits,
        ..DeliveryFilter::default()
    };
    let apps = Limits {
        apps: vec![app("crm")],
        ..Limits::default()
    };
    assert_eq!(listed(&store, within(apps)).await, ["msg_003", "msg_001"]);
    let customers = Limits {
        customers: vec![customer("globex")],
        ..Limits::default()
    };
    assert_eq!(
        listed(&store, within(customers)).await,
        ["msg_002"],
        "an app's notice is nobody's"
    );
    let connections = Limits {
        connections: vec![id("c1")],
        ..Limits::default()
    };
    assert_eq!(listed(&store, within(connections)).await, ["msg_001"]);
    let page = |before: Option<&str>| DeliveryFilter {
        limit: 2,
        before: before.map(str::to_owned),
        ..DeliveryFilter::default()
    };
    let ids = async |filter| -> Vec<String> {
        let found: Vec<Delivery> = store.deliveries(filter).await.unwrap();
        found.into_iter().map(|delivery| delivery.id).collect()
    };
    assert_eq!(ids(page(None)).await, ["msg_003", "msg_002"]);
    assert_eq!(ids(page(Some("msg_002"))).await, ["msg_001"]);
    let one = DeliveryFilter {
        id: Some("msg_002".into()),
        ..DeliveryFilter::default()
    };
    assert_eq!(listed(&store, one).await, ["msg_002"]);
}

pub(crate) async fn dead_letters_are_counted_within_limits_from_the_first_on(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let of = async |limits: Limits| store.dead_letters(limits).await.unwrap();
    assert_eq!(of(Limits::default()).await, DeadLetters::default());
    let from = Some(5);
    assert!(store.add_deliveries(None, 5, vec![], at(10)).await.unwrap());
    let of_the_app = NewDelivery {
        customer: None,
        connection: None,
        ..delivery(3)
    };
    let told = vec![delivery(1), delivery(2), of_the_app, delivery(4)];
    assert!(store.add_deliveries(from, 6, told, at(10)).await.unwrap());
    for (number, delivery) in claimed(&store, 10).await.iter().enumerate() {
        let second = 20 + i64::try_from(number).unwrap();
        let end = if delivery.event == 4 {
            TryEnd::Delivered
        } else {
            TryEnd::Dead
        };
        assert!(ended(&store, delivery, end, second).await);
    }
    let all = of(Limits::default()).await;
    assert_eq!(all.count, 3, "one of the four was taken");
    assert!(all.oldest_at.is_some_and(|oldest| oldest < at(24)), "{all:?}");
    let own = Limits {
        customers: vec![customer("acme")],
        ..Limits::default()
    };
    assert_eq!(
        of(own).await.count,
        2,
        "a notice of an app is nobody's customer's"
    );
    let others = Limits {
        apps: vec![app("other")],
        ..Limits::default()
    };
    assert_eq!(of(others).await, DeadLetters::default());
}

pub(crate) async fn a_sweep_forgets_what_is_old_and_gives_up_what_is_for_nobody(fixture: &impl Fixture) {
    let store = fixture.open().await;
    made(&store, [1, 2, 3, 4]).await;
    let first = claimed(&store, 10).await;
    for delivery in &first {
        let end = match delivery.id.as_str() {
            "msg_001" => TryEnd::Delivered,
            "msg_002" => TryEnd::Dead,
            _ => TryEnd::Again { at: at(50) },
        };
        ended(&store, delivery, end, 20).await;
    }
    let sweep = |delivered, dead, unclaimed, endpoints: &[&str]| DeliverySweep {
        delivered_before: at(delivered),
        dead_before: at(dead),
        unclaimed_before: at(unclaimed),
        endpoints: endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect(),
        unclaimed: "for nobody".into(),
    };
    store
        .sweep_deliveries(sweep(20, 20, 1000, &["there"]), at(30))
        .await
        .unwrap();
    assert_eq!(listed(&store, DeliveryFilter::default()).await.len(), 4);
    store
        .sweep_deliveries(sweep(21, 20, 50, &[]), at(30))
        .await
        .unwrap();
    assert_eq!(
        listed(&store, DeliveryFilter::default()).await,
        ["msg_004", "msg_003", "msg_002"],
        "what was taken goes first"
    );
    store
        .sweep_deliveries(sweep(21, 21, 51, &["elsewhere"]), at(60))
        .await
        .unwrap();
    let left = store
        .deliveries(DeliveryFilter {
            limit: 9,
            ..DeliveryFilter::default()
        })
        .await
        .unwrap();
    assert_eq!(left.len(), 2);
    assert!(left.iter().all(|delivery| {
        delivery.state == DeliveryState::Dead && delivery.last_error.as_deref() == Some("for nobody")
    }));
}

pub(crate) async fn a_purge_erases_what_was_told_and_leaves_what_is_to_be_told(fixture: &impl Fixture) {
    let store = fixture.open().await;
    create(&store, new("c1")).await;
    made(&store, [1, 2]).await;
    let first = claimed(&store, 10).await;
    let taken = first.iter().find(|delivery| delivery.id == "msg_001").unwrap();
    ended(&store, taken, TryEnd::Delivered, 11).await;
    store.purge(&id("c1")).await.unwrap();
    assert_eq!(
        listed(&store, DeliveryFilter::default()).await.len(),
        2,
        "it lives"
    );
    store
        .disconnect(&id("c1"), Revoke::Never, None, event(), at(12))
        .await
        .unwrap();
    store.purge(&id("c1")).await.unwrap();
    assert_eq!(listed(&store, DeliveryFilter::default()).await, ["msg_002"]);
}

fn step(from: Option<&str>, to: &str, uninstalls: &[(&str, i64)]) -> JournalStep {
    JournalStep {
        from: from.map(str::to_owned),
        to: Some(to.to_owned()),
        uninstalls: uninstalls
            .iter()
            .map(|(name, second)| Uninstall {
                connection: id(name),
                at: at(*second),
                event: Event::new(EventKind::ReconnectRequired, "the app was uninstalled"),
            })
            .collect(),
        notes: vec![],
    }
}

pub(crate) async fn a_journal_is_read_by_one_process_at_a_time(fixture: &impl Fixture) {
    let stores = [fixture.open().await, fixture.open().await];
    warm(&stores).await;
    let crm = app("crm");
    let claims = (0..8).map(|number| stores[number % 2].claim_journal(&crm, PUSH, at(10)));
    let claims = join_all(claims).await;
    assert_eq!(
        claims
            .iter()
            .filter(|claim| claim.as_ref().unwrap().is_some())
            .count(),
        1
    );
    assert!(
        stores[1]
            .claim_journal(&crm, PUSH, at(69))
            .await
            .unwrap()
            .is_none()
    );
    let journal = stores[1]
        .claim_journal(&crm, PUSH, at(70))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((journal.position, journal.is_subscribed), (None, false));
    stores[1].journal_subscribed(&crm, at(71)).await.unwrap();
    assert!(
        stores[0]
            .claim_journal(&app("erp"), PUSH, at(71))
            .await
            .unwrap()
            .is_some()
    );
    let journal = stores[0]
        .claim_journal(&crm, PUSH, at(200))
        .await
        .unwrap()
        .unwrap();
    assert!(journal.is_subscribed);
}

pub(crate) async fn a_page_of_a_journal_counts_once_and_with_its_place(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    let crm = app("crm");
    create(&a, new("c1")).await;
    create(&a, new("c2")).await;
    a.claim_journal(&crm, PUSH, at(10)).await.unwrap();
    let first = a
        .advance_journal(&crm, step(None, "p1", &[("c1", 5), ("c2", 0)]), at(11))
        .await
        .unwrap();
    assert_eq!(
        first,
        Some(vec![id("c1")]),
        "the second consented at that very moment"
    );
    let stale = b
        .advance_journal(&crm, step(None, "p1", &[("c2", 5)]), at(12))
        .await
        .unwrap();
    assert_eq!(stale, None, "somebody has moved on: nothing of it counts");
    assert_eq!(held(&b, "c2").await.connection.status, ConnectionStatus::Active);
    assert_eq!(
        held(&b, "c1").await.connection.status,
        ConnectionStatus::ReconnectRequired {
            reason: ReconnectReason::Uninstalled,
            since: at(11)
        }
    );
    let journal = b.claim_journal(&crm, PUSH, at(100)).await.unwrap().unwrap();
    assert_eq!(journal.position.as_deref(), Some("p1"));
    let lost = JournalStep {
        to: None,
        ..step(Some("p1"), "", &[])
    };
    assert_eq!(
        b.advance_journal(&crm, lost, at(101)).await.unwrap(),
        Some(vec![])
    );
    let journal = b.claim_journal(&crm, PUSH, at(200)).await.unwrap().unwrap();
    assert_eq!(journal.position, None);
}
