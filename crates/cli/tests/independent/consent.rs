//! The customer's way through consent, at the real authorization endpoint; and a consent in the middle of a refresh, check 21.

use std::sync::Arc;

use http::Method;
use serde_json::json;

use crate::provider::Rotation;
use crate::site::{Introspection, Service, Site, Store};

/// A browser's way: the page, its form, the provider, and back.
async fn consents(site: &Site, service: &Service, customer: &str) {
    let wish = json!({"app": "crm", "customer": customer, "connection_id": customer});
    let session = site
        .send(service, Method::POST, "/v1/connect-sessions", Some(wish))
        .await;
    let link = session.json()["url"].as_str().unwrap().to_owned();
    let page = site.web.send(Method::GET, &link, &[], None).await.unwrap();
    assert_eq!(page.status, 200, "{page:?}");
    let cookie = page.header("set-cookie").split(';').next().unwrap().to_owned();
    let headers = [
        ("cookie", cookie.as_str()),
        ("content-type", "application/x-www-form-urlencoded"),
    ];
    let form = site.web.send(Method::POST, &link, &headers, None).await.unwrap();
    assert_eq!(form.status, 303, "{form:?}");
    // The provider knows who is logged in.
    let login = format!("{}&user={customer}", form.header("location"));
    let consent = site.web.send(Method::GET, &login, &[], None).await.unwrap();
    assert_eq!(consent.status, 302, "{consent:?}");
    let headers = [("cookie", cookie.as_str())];
    let back = site
        .web
        .send(Method::GET, consent.header("location"), &headers, None)
        .await
        .unwrap();
    assert!(
        back.status.is_success() || back.status.is_redirection(),
        "{back:?}"
    );
}

// The whole flow, with PKCE, and what Authlib makes of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_customer_connects_refreshes_and_disconnects_at_a_server_that_others_wrote() {
    let site = Site::new(Store::Sqlite, Rotation::SingleUse, Introspection::On).await;
    let service = site.serve();
    consents(&site, &service, "acme").await;
    assert_eq!(site.call(&service, "acme").await.status, 200);
    let record = site.record(&service, "acme").await;
    assert_eq!(record["account"]["id"], "acme", "{record}");
    site.provider.expire("acme").await;
    assert_eq!(site.call(&service, "acme").await.status, 200);
    let gone = site
        .send(&service, Method::DELETE, "/v1/connections/acme", None)
        .await;
    assert_eq!(gone.status, 202, "{gone:?}");
    crate::web::eventually("the grant is revoked", async || {
        !site.provider.ledger().await.grant("acme").live
    })
    .await;
    let ledger = site.provider.ledger().await;
    assert_eq!((ledger.code_exchanges, ledger.revocations), (1, 1), "{ledger:?}");
    assert_eq!(ledger.grant("acme").accepted, 1, "{ledger:?}");
    ledger.is_clean(0);
}

// Check 21, with a consent as the winner: what is refused is the old grant, which nobody needs any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_what_has_been_replaced_meanwhile_condemns_nobody() {
    let site = Arc::new(Site::new(Store::Sqlite, Rotation::SingleUse, Introspection::Off).await);
    let (service, other) = (Arc::new(site.serve()), site.serve());
    site.connect(&service, "acme").await;
    site.provider
        .fault(json!({"before": true, "hold": true, "passes": true}))
        .await;
    let call = tokio::spawn({
        let (site, service) = (site.clone(), service.clone());
        async move { site.call(&service, "acme").await }
    });
    site.provider.holds(1).await;
    consents(&site, &other, "acme").await;
    site.provider.heal().await;
    let answer = call.await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}\n{}", site.printed());
    assert_eq!(site.status(&service, "acme").await, "active");
    let ledger = site.provider.ledger().await;
    let grant = ledger.grant("acme");
    assert_eq!(
        (grant.presented, grant.refused, grant.replays),
        (1, 1, 0),
        "{ledger:?}"
    );
    ledger.is_clean(0);
}
