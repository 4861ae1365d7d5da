//! A customer connects in a real browser.

use std::process::Command;

use http::Method;
use hubspot_sim::SimConfig;
use serde_json::{Value, json};

use crate::installation::{Installation, Service};
use crate::prepared::{client_script, prepared};

async fn visit(installation: &Installation, link: &str, portal: u64, decision: &str) -> Value {
    let mut node = Command::new("node");
    node.arg(client_script("node/connect.mjs"))
        .env("NODE_PATH", prepared("EVERGRANT_TEST_NODE_MODULES"))
        .env("CHROMIUM", prepared("EVERGRANT_TEST_CHROMIUM"))
        .env("LINK", link)
        .env("PORTAL", portal.to_string())
        .env("CHOOSE", decision);
    let output = tokio::task::spawn_blocking(move || node.output())
        .await
        .unwrap()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let report: Value = serde_json::from_str(printed.trim()).unwrap_or_else(|error| {
        panic!(
            "{error}: {printed} {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            installation.printed()
        )
    });
    assert_eq!(report["complaints"], json!([]), "the browser complains: {report}");
    report
}

async fn session(installation: &Installation, service: &Service, more: Value) -> Value {
    let mut body = json!({"app": "crm", "customer": "acme", "connection_id": "acme-crm"});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let made = installation
        .send(
            service,
            Method::POST,
            "/v1/connect-sessions",
            &installation.admin_key,
            Some(body),
        )
        .await;
    assert!(made.status.is_success(), "{made:?}");
    made.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customer_connects_in_a_browser_and_comes_back_after_a_revocation() {
    let installation = Installation::new(SimConfig::default()).await;
    let service = installation.serve();
    let begun = session(&installation, &service, json!({})).await;
    let report = visit(&installation, begun["url"].as_str().unwrap(), 1001, "grant").await;
    assert!(
        report["asked"].as_str().unwrap().contains("Acme Sync"),
        "{report}"
    );
    let path = format!("/v1/connect-sessions/{}", begun["id"].as_str().unwrap());
    let ended = installation
        .send(&service, Method::GET, &path, &installation.admin_key, None)
        .await
        .json();
    assert_eq!(ended["status"], "connected", "{ended}");
    let call =
        |path: &'static str| installation.send(&service, Method::GET, path, &installation.admin_key, None);
    assert_eq!(
        call("/gateway/acme-crm/crm/v3/objects/contacts").await.status,
        200
    );

    installation.hubspot.uninstall(crate::installation::CLIENT, 1001);
    installation.hubspot.expire_access_tokens(1001);
    // The call finds out, and from then on everybody is told what to do.
    call("/gateway/acme-crm/crm/v3/objects/contacts").await;
    let refused = call("/gateway/acme-crm/crm/v3/objects/contacts").await;
    assert_eq!(refused.status, 424, "{refused:?}");
    assert_eq!(refused.headers["evergrant-error"], "reconnect_required");
    let link = refused.json()["reconnect_url"].as_str().unwrap().to_owned();

    let wrong = visit(&installation, &link, 1002, "grant").await;
    assert_eq!(
        call("/gateway/acme-crm/crm/v3/objects/contacts").await.status,
        424,
        "{wrong}"
    );
    visit(&installation, &link, 1001, "grant").await;
    assert_eq!(
        call("/gateway/acme-crm/crm/v3/objects/contacts").await.status,
        200
    );
    let record = call("/v1/connections/acme-crm").await.json();
    assert_eq!(
        (record["id"].as_str(), record["status"].as_str()),
        (Some("acme-crm"), Some("active"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customer_who_declines_is_told_so_and_nothing_is_connected() {
    let installation = Installation::new(SimConfig::default()).await;
    let service = installation.serve();
    let begun = session(&installation, &service, json!({})).await;
    visit(&installation, begun["url"].as_str().unwrap(), 1001, "deny").await;
    let path = format!("/v1/connect-sessions/{}", begun["id"].as_str().unwrap());
    let ended = installation
        .send(&service, Method::GET, &path, &installation.admin_key, None)
        .await
        .json();
    assert_eq!(ended["status"], "failed", "{ended}");
    let record = installation
        .send(
            &service,
            Method::GET,
            "/v1/connections/acme-crm",
            &installation.admin_key,
            None,
        )
        .await;
    assert_eq!(record.status, 404, "{record:?}");
}
