//! "Refresh and crash": checks 1 to 7.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use tokio::task::JoinSet;

use crate::provider::Rotation;
use crate::site::{Introspection, Service, Site, Store};
use crate::web::{Answer, eventually};

/// So many calls at once, dealt out to the services in turn; each under a name of its own.
async fn calls_at_once(
    site: &Arc<Site>,
    services: &[Arc<Service>],
    customer: &str,
    calls: usize,
) -> Vec<Answer> {
    let mut callers = JoinSet::new();
    for (number, service) in (0..calls).zip(services.iter().cycle()) {
        let (site, service, customer) = (site.clone(), service.clone(), customer.to_owned());
        callers.spawn(async move {
            let name = format!("{customer}-{number}");
            site.try_call(&service, &customer, &name).await.unwrap()
        });
    }
    callers.join_all().await
}

/// Checks 1 and 2.
async fn stampede(store: Store, services: usize) {
    let site = Arc::new(Site::new(store, Rotation::SingleUse, Introspection::Off).await);
    let services: Vec<_> = (0..services).map(|_| Arc::new(site.serve())).collect();
    site.connect(&services[0], "acme").await;
    for answer in calls_at_once(&site, &services, "acme", 200).await {
        assert_eq!(answer.status, 200, "{answer:?}\n{}", site.printed());
    }
    let ledger = site.provider.ledger().await;
    let grant = ledger.grant("acme");
    assert_eq!((grant.presented, grant.accepted), (1, 1), "{ledger:?}");
    assert_eq!(ledger.requests.len(), 200);
    assert!(ledger.requests.values().all(|seen| seen.deliveries == 1));
    ledger.is_clean(0);
}

// Check 1.
#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_callers_at_an_expiry_cost_one_redemption() {
    stampede(Store::Sqlite, 1).await;
}

// Check 2.
#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_callers_of_three_services_on_one_file_cost_one_redemption() {
    stampede(Store::Sqlite, 3).await;
}

// Check 2.
#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_callers_of_three_services_on_one_database_cost_one_redemption() {
    stampede(Store::postgres(), 3).await;
}

// Check 3.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_dies_before_its_time_costs_one_redemption_and_one_repeat_a_call() {
    let site = Arc::new(Site::new(Store::Sqlite, Rotation::SingleUse, Introspection::On).await);
    let service = Arc::new(site.serve());
    site.connect_fresh(&service, "acme").await;
    assert_eq!(site.call(&service, "acme").await.status, 200);
    site.provider.expire("acme").await;
    for answer in calls_at_once(&site, &[service], "acme", 50).await {
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let ledger = site.provider.ledger().await;
    let grant = ledger.grant("acme");
    assert_eq!((grant.presented, grant.accepted), (1, 1), "{ledger:?}");
    let named = ledger.requests.iter().filter(|(name, _)| !name.is_empty());
    for (name, seen) in named {
        assert!(seen.deliveries <= 2 && seen.served == 1, "{name}: {ledger:?}");
    }
    ledger.is_clean(0);
}

/// Check 5: whoever redeems is killed while others wait for it.
async fn holder_is_killed(store: Store) {
    let site = Arc::new(Site::new(store, Rotation::Grace, Introspection::Off).await);
    let holder = Arc::new(site.serve());
    let others = [Arc::new(site.serve()), Arc::new(site.serve())];
    site.connect(&holder, "acme").await;
    site.provider.fault(json!({"hold": true})).await;
    let doomed = tokio::spawn({
        let (site, holder) = (site.clone(), holder.clone());
        async move { site.try_call(&holder, "acme", "doomed").await }
    });
    site.provider.holds(1).await;
    let waiting = tokio::spawn({
        let (site, others) = (site.clone(), others.clone());
        async move { calls_at_once(&site, &others, "acme", 20).await }
    });
    holder.signal(Signal::KILL);
    assert!(doomed.await.unwrap().is_err());
    let lease_and_a_second = Duration::from_secs(31);
    let answers = tokio::time::timeout(lease_and_a_second, waiting).await;
    for answer in answers
        .expect("they need not wait for longer than the lease")
        .unwrap()
    {
        assert_eq!(answer.status, 200, "{answer:?}\n{}", site.printed());
    }
    let ledger = site.provider.ledger().await;
    let grant = ledger.grant("acme");
    // The answer was lost with the process; grace is for repeating just that.
    assert_eq!((grant.presented, grant.accepted), (2, 2), "{ledger:?}");
    ledger.is_clean(1);
}

// Check 5.
#[tokio::test(flavor = "multi_thread")]
async fn when_a_service_is_killed_as_it_redeems_those_who_wait_go_on_at_once_on_one_file() {
    holder_is_killed(Store::Sqlite).await;
}

// Check 5.
#[tokio::test(flavor = "multi_thread")]
async fn when_a_service_is_killed_as_it_redeems_those_who_wait_go_on_after_its_lease_on_one_database() {
    if crate::long("a lease of a killed service runs out") {
        holder_is_killed(Store::postgres()).await;
    }
}

// Check 6.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_told_to_stop_stores_what_it_redeems_and_begins_nothing_new() {
    let site = Arc::new(Site::new(Store::Sqlite, Rotation::SingleUse, Introspection::Off).await);
    let service = Arc::new(site.serve());
    for customer in ["acme", "globex"] {
        site.connect(&service, customer).await;
    }
    site.provider.fault(json!({"hold": true, "user": "acme"})).await;
    let call = tokio::spawn({
        let (site, service) = (site.clone(), service.clone());
        async move { site.call(&service, "acme").await }
    });
    site.provider.holds(1).await;
    service.signal(Signal::TERM);
    eventually("it takes no more calls", async || {
        site.try_call(&service, "globex", "late")
            .await
            .is_ok_and(|answer| answer.status == 503)
            || site.try_call(&service, "globex", "late").await.is_err()
    })
    .await;
    site.provider.heal().await;
    assert_eq!(call.await.unwrap().status, 200);
    let status = service.ended();
    assert!(status.success(), "{status}: {}", site.printed());
    let next = site.serve();
    assert_eq!(site.call(&next, "acme").await.status, 200);
    let ledger = site.provider.ledger().await;
    assert_eq!(ledger.grant("acme").presented, 1, "{ledger:?}");
    ledger.is_clean(0);
}

// Check 7.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_hangs_up_does_not_take_the_redemption_with_it() {
    let site = Arc::new(Site::new(Store::Sqlite, Rotation::SingleUse, Introspection::Off).await);
    let service = Arc::new(site.serve());
    site.connect(&service, "acme").await;
    site.provider.fault(json!({"hold": true})).await;
    let call = tokio::spawn({
        let (site, service) = (site.clone(), service.clone());
        async move { site.call(&service, "acme").await }
    });
    site.provider.holds(1).await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    site.provider.heal().await;
    eventually("what was redeemed is stored", async || {
        site.record(&service, "acme").await["version"] == 2
    })
    .await;
    assert_eq!(site.call(&service, "acme").await.status, 200);
    let ledger = site.provider.ledger().await;
    assert_eq!(ledger.grant("acme").presented, 1, "{ledger:?}");
    ledger.is_clean(0);
}
