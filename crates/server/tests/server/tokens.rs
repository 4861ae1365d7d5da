//! Access tokens handed out, and what follows when one is refused.

use std::time::Duration;

use serde_json::json;

use crate::harness::House;

#[tokio::test]
async fn a_token_is_the_providers_and_nobody_may_keep_the_answer() {
    let house = House::build().await;
    let grant = house.sim.grant("sim-client", 1001).unwrap();
    let record = json!({
        "app": "crm", "id": "c1", "customer": "acme", "account": "1001", "refresh_token": grant.refresh_token,
        "access_token": grant.access_token, "expires_at": crate::harness::in_seconds(1800)
    });
    house
        .operate("POST", "/v1/connections", Some(record))
        .await
        .expect(201);
    let key = house.key(json!({"name": "n", "role": "tokens"})).await;
    let answer = house.get(&key, "/v1/connections/c1/token").await.expect(200);
    assert_eq!(answer.header("cache-control"), "no-store");
    let token = answer.json();
    assert_eq!(token["access_token"], grant.access_token);
    assert_eq!(token["version"], 1);
    assert!(token["seconds_remaining"].as_i64().unwrap() > 1700);
    assert!(token["expires_at"].as_str().unwrap().ends_with('Z'));
    let events = house
        .get(&house.admin, "/v1/connections/c1/events")
        .await
        .expect(200)
        .text();
    assert!(!events.contains(&grant.access_token));
}

#[tokio::test]
async fn a_minimum_lifetime_that_the_token_does_not_have_brings_a_newer_one() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    house
        .get(&house.admin, "/v1/connections/c1/token?min_ttl=60")
        .await
        .expect(200);
    assert_eq!(house.sim.ledger().refreshes_accepted, 0);
    for wrong in [
        "min_ttl=soon",
        "min_ttl=-1",
        "min_ttl=1&min_ttl=2",
        "min_tll=1",
        "min_ttl=",
    ] {
        let path = format!("/v1/connections/c1/token?{wrong}");
        house.get(&house.admin, &path).await.refused(400, "bad_request");
    }
}

#[tokio::test]
async fn a_batch_answers_every_item_in_its_place() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    house.import("c2", "globex", 1002).await;
    let key = house
        .key(json!({"name": "n", "role": "tokens", "customers": ["acme"]}))
        .await;
    let wish = json!({"connections": ["c1", "none", "c2", "a/b", "c1"], "min_ttl": 60});
    let answer = house.post(&key, "/v1/tokens/batch", wish).await.expect(200);
    assert_eq!(answer.header("cache-control"), "no-store");
    let items = answer.json()["items"].clone();
    assert_eq!(items.as_array().unwrap().len(), 5);
    assert_eq!(items[0]["connection"], "c1");
    assert!(items[0]["access_token"].is_string() && items[0] == items[4]);
    assert_eq!(items[1]["code"], "unknown_connection");
    assert_eq!(items[2]["code"], "unknown_connection");
    assert_eq!(items[3]["code"], "bad_request");
    let too_many = json!({"connections": vec!["c1"; 1001]});
    house
        .post(&key, "/v1/tokens/batch", too_many)
        .await
        .refused(400, "bad_request");
    let empty = house
        .post(&key, "/v1/tokens/batch", json!({"connections": []}))
        .await
        .expect(200);
    assert_eq!(empty.json()["items"], json!([]));
}

#[tokio::test]
async fn a_rejected_token_is_replaced_once_and_an_older_one_is_answered_with_the_current() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    house.sim.expire_access_tokens(1001);
    let body = json!({"status": "error", "message": "The OAuth token used to make this call expired 5 second(s) ago.", "category": "EXPIRED_AUTHENTICATION"});
    let report = json!({"version": 1, "status": 401, "body": body});
    let first = house
        .post(&house.admin, "/v1/connections/c1/token/rejected", report.clone())
        .await
        .expect(200);
    assert_eq!(first.header("cache-control"), "no-store");
    let first = first.json();
    assert_eq!(
        (first["class"].as_str(), first["version"].as_i64()),
        (Some("expired"), Some(2))
    );
    let again = house
        .post(&house.admin, "/v1/connections/c1/token/rejected", report)
        .await
        .expect(200)
        .json();
    assert_eq!(again["class"], "stale_token");
    assert_eq!(again["access_token"], first["access_token"]);
    let current = json!({"version": 2, "status": 401});
    let stays = house
        .post(&house.admin, "/v1/connections/c1/token/rejected", current)
        .await
        .expect(200)
        .json();
    assert_eq!(
        (stays["class"].as_str(), stays["access_token"].is_null()),
        (Some("rejected_after_refresh"), true)
    );
    assert_eq!(house.sim.ledger().refreshes_accepted, 1);
}

#[tokio::test]
async fn an_answer_that_is_not_about_the_tokens_life_redeems_nothing() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    for (status, class) in [
        (403, "permission_denied"),
        (429, "rate_limited"),
        (503, "unavailable"),
        (404, "client_error"),
        (200, "ok"),
    ] {
        let report = json!({"version": 1, "status": status, "body": "<html>"});
        let answer = house
            .post(&house.admin, "/v1/connections/c1/token/rejected", report)
            .await
            .expect(200)
            .json();
        assert_eq!(
            (answer["class"].as_str(), answer["access_token"].is_null()),
            (Some(class), true)
        );
    }
    assert_eq!(house.sim.ledger().refreshes_accepted, 0);
}

#[tokio::test]
async fn a_refresh_spends_only_what_it_must() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let refresh = async |body| house.post(&house.admin, "/v1/connections/c1/refresh", body).await;
    let young = refresh(json!({})).await.expect(200).json();
    assert_eq!(
        young,
        json!({"redeemed": false, "version_before": 1, "version": 1, "why": "the token set is younger than 60 s"})
    );
    let other = refresh(json!({"if_version": 7, "force": true}))
        .await
        .expect(200)
        .json();
    assert_eq!(other["redeemed"], false);
    let forced = refresh(json!({"force": true, "if_version": 1}))
        .await
        .expect(200)
        .json();
    assert_eq!(
        forced,
        json!({"redeemed": true, "version_before": 1, "version": 2, "why": null})
    );
    let again = refresh(json!({"force": true})).await.expect(200).json();
    assert_eq!(again["redeemed"], false);
    let without_body = house
        .call(&house.admin, "POST", "/v1/connections/c1/refresh", None)
        .await
        .expect(200);
    assert_eq!(without_body.json()["redeemed"], false);
    assert_eq!(house.sim.ledger().refreshes_accepted, 1);
}

#[tokio::test]
async fn a_dead_grant_is_answered_with_the_link_that_restores_it() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    house.sim.uninstall("sim-client", 1001);
    let refused = house
        .post(&house.admin, "/v1/connections/c1/refresh", json!({"force": true}))
        .await
        .refused(424, "reconnect_required")
        .json();
    let link = refused["reconnect_url"].as_str().unwrap();
    assert!(link.starts_with("http://localhost:8484/connect/r."), "{link}");
    let through = house
        .get(&house.admin, "/gateway/c1/crm/v3/objects/contacts")
        .await
        .refused(424, "reconnect_required");
    assert_eq!(through.header("evergrant-error"), "reconnect_required");
    assert!(through.json()["reconnect_url"].is_string());
    let record = house
        .get(&house.admin, "/v1/connections/c1")
        .await
        .expect(200)
        .json();
    assert_eq!(
        (record["status"].as_str(), record["status_reason"].as_str()),
        (Some("reconnect_required"), Some("grant_refused"))
    );
    assert!(record["reconnect_url"].is_string() && record["why"].is_string());
}

#[tokio::test]
async fn wrong_client_credentials_are_the_apps_fault_and_show_there() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    house.sim.set_client_secret("sim-client", "another");
    let refresh = house
        .post(&house.admin, "/v1/connections/c1/refresh", json!({"force": true}))
        .await;
    assert!(!refresh.status.is_success());
    let checked = house
        .post(&house.admin, "/v1/apps/crm/check", json!({}))
        .await
        .expect(200)
        .json();
    assert_eq!(checked["result"], "refused");
    let apps = house.get(&house.admin, "/v1/apps").await.expect(200).json();
    assert_eq!(apps["items"][0]["health"]["status"], "credentials_rejected");
    let record = house
        .get(&house.admin, "/v1/connections/c1")
        .await
        .expect(200)
        .json();
    assert_eq!(record["status"], "active");
    house.sim.set_client_secret("sim-client", "sim-secret");
    let checked = house
        .post(&house.admin, "/v1/apps/crm/check", json!({}))
        .await
        .expect(200)
        .json();
    assert_eq!(checked["result"], "accepted");
}

#[tokio::test]
async fn five_hundred_callers_at_one_expired_token_make_one_redemption() {
    let house = House::build().await;
    let grant = house.sim.grant("sim-client", 1001).unwrap();
    let record = json!({"app": "crm", "id": "c1", "customer": "acme", "account": 1001, "refresh_token": grant.refresh_token});
    house
        .operate("POST", "/v1/connections", Some(record))
        .await
        .expect(201);
    let callers = (0..500).map(|_| house.operate("GET", "/v1/connections/c1/token", None));
    let answers = tokio::time::timeout(Duration::from_secs(60), futures_util::future::join_all(callers))
        .await
        .unwrap();
    assert!(
        answers.iter().all(|answer| answer.status == 200),
        "{:?}",
        answers.iter().find(|a| a.status != 200)
    );
    assert_eq!(house.sim.ledger().refreshes_accepted, 1);
}

#[tokio::test]
async fn a_static_token_is_handed_out_without_an_end() {
    let house = House::build().await;
    let record = json!({"app": "crm", "id": "c1", "customer": "acme", "kind": "static", "access_token": "static-token", "account": 1001});
    house
        .operate("POST", "/v1/connections", Some(record))
        .await
        .expect(201);
    let endless = |token: &serde_json::Value| {
        assert_eq!(token["access_token"], "static-token");
        assert!(
            token["expires_at"].is_null() && token["seconds_remaining"].is_null(),
            "{token}"
        );
        assert!(token.as_object().unwrap().contains_key("expires_at"), "{token}");
    };
    endless(
        &house
            .get(&house.admin, "/v1/connections/c1/token")
            .await
            .expect(200)
            .json(),
    );
    let batch = json!({"connections": ["c1"]});
    let batch = house
        .post(&house.admin, "/v1/tokens/batch", batch)
        .await
        .expect(200);
    endless(&batch.json()["items"][0]);
    let why = house
        .post(&house.admin, "/v1/connections/c1/refresh", json!({"force": true}))
        .await
        .expect(200)
        .json();
    assert!(why["why"].as_str().unwrap().contains("static"), "{why}");
}

#[tokio::test]
async fn a_report_that_cannot_be_true_is_refused_and_redeems_nothing() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    for report in [
        json!({"version": 2, "status": 401}),
        json!({"version": 99, "status": 200}),
        json!({"version": 0, "status": 401}),
        json!({"version": 1, "status": 99}),
        json!({"version": 1, "status": 1000}),
    ] {
        house
            .post(&house.admin, "/v1/connections/c1/token/rejected", report)
            .await
            .refused(400, "bad_request");
    }
    assert_eq!(house.sim.ledger().refreshes_accepted, 0);
}
