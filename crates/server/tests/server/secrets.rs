//! No secret shows anywhere but in the answers that exist to hand one out.

use hubspot_sim::Grant;
use serde_json::{Value, json};

use crate::connect::{Browser, parameter};
use crate::dashboard::Visitor;
use crate::harness::{Answer, House, LOG};

/// Everything that an answer says, for a search.
fn whole(answer: &Answer) -> String {
    format!("{:?}\n{}", answer.headers, answer.text())
}

fn import(grant: &Grant) -> Value {
    json!({
        "app": "crm", "id": "c2", "customer": "globex", "refresh_token": grant.refresh_token,
        "access_token": grant.access_token, "account": 1002
    })
}

/// Calls of every kind; one has a token pasted into it.
fn calls(token: &str) -> [(&'static str, &'static str, Option<Value>); 13] {
    [
        ("GET", "/v1/connections", None),
        ("GET", "/v1/keys", None),
        ("GET", "/v1/apps", None),
        ("GET", "/gateway/c1/crm/v3/objects/contacts", None),
        ("GET", "/gateway/c2/crm/v3/objects/none", None),
        ("POST", "/v1/connections/c1/refresh", Some(json!({"force": true}))),
        (
            "POST",
            "/v1/explain",
            Some(json!({"text": format!("HTTP/1.1 401\nAuthorization: Bearer {}", token)})),
        ),
        ("GET", "/v1/connections/c1/events", None),
        ("GET", "/v1/events?after=0&limit=1000", None),
        ("GET", "/v1/connections/c1/export?customer=true", None),
        ("GET", "/v1/connections/c1/tallies", None),
        ("GET", "/v1/overview", None),
        ("POST", "/v1/apps/crm/check", None),
    ]
}

/// The dashboard's pages, and what its forms say.
async fn shown_to_operators(house: &House, key: &str) -> Vec<String> {
    let mut said = Vec::new();
    let mut visitor = Visitor::with_key(house, key).await;
    for page in [
        "",
        "/connections",
        "/connections/c1",
        "/connections/c1/diagnosis",
        "/connections/c2/diagnosis",
        "/diagnosis",
        "/connections/c1/disconnect",
        "/connections/c1/export",
        "/apps",
        "/webhooks",
    ] {
        said.push(whole(&visitor.open(house, &format!("/dashboard{page}")).await));
    }
    for form in ["connections/c1/refresh", "apps/crm/check"] {
        said.push(whole(
            &visitor
                .submit(house, &format!("/dashboard/{form}"))
                .await
                .expect(303),
        ));
    }
    said
}

#[tokio::test]
#[expect(
    clippy::too_many_lines,
    reason = "a walk past every answer, one after another"
)]
async fn no_secret_is_in_any_answer_but_a_tokens_or_in_any_line_of_the_log() {
    let house = House::build().await;
    let grant = house.sim.grant("sim-client", 1002).unwrap();
    let key = house.key(json!({"name": "n", "role": "admin"})).await;
    let mut secrets = vec![
        grant.refresh_token.clone(),
        grant.access_token.clone(),
        key.clone(),
    ];
    let mut said = Vec::new();

    let wish = json!({"app": "crm", "customer": "acme", "connection_id": "c1"});
    let session = house.post(&key, "/v1/connect-sessions", wish).await.expect(201);
    let link = session.json()["url"].as_str().unwrap().to_owned();
    let mut browser = Browser::default();
    let callback = browser.go_to_callback(&house, &link, "_sim_hub_id=1001").await;
    secrets.extend([
        parameter(&callback, "code").unwrap(),
        parameter(&callback, "state").unwrap(),
    ]);
    said.push(whole(&session));
    for _ in 0..2 {
        said.push(whole(&browser.send(&house, "GET", &callback).await));
    }

    let import = import(&grant);
    said.push(whole(
        &house
            .post(&key, "/v1/connections", import.clone())
            .await
            .expect(201),
    ));
    said.push(whole(
        &house
            .post(&key, "/v1/connections", import.clone())
            .await
            .refused(409, "id_taken"),
    ));
    // A secret in the wrong place, and of the wrong shape.
    for member in [
        "app",
        "id",
        "kind",
        "expires_at",
        "scopes",
        "refresh_token",
        "account",
        "code",
    ] {
        for value in [json!([[grant.refresh_token]]), json!({"a": grant.refresh_token})] {
            let mut wrong = import.clone();
            wrong[member] = value;
            said.push(whole(
                &house
                    .post(&key, "/v1/connections", wrong)
                    .await
                    .refused(400, "bad_request"),
            ));
        }
    }
    for (method, path, body) in calls(&grant.access_token) {
        said.push(whole(&house.call(&key, method, path, body).await));
    }
    said.extend(shown_to_operators(&house, &key).await);
    for id in ["c1", "c2"] {
        let token = house
            .get(&key, &format!("/v1/connections/{id}/token"))
            .await
            .expect(200)
            .json();
        secrets.push(token["access_token"].as_str().unwrap().to_owned());
        said.push(whole(
            &house
                .get(&key, &format!("/v1/connections/{id}"))
                .await
                .expect(200),
        ));
        said.push(whole(
            &house
                .get(&key, &format!("/v1/connections/{id}/events"))
                .await
                .expect(200),
        ));
        said.push(whole(
            &house
                .call(&key, "DELETE", &format!("/v1/connections/{id}"), None)
                .await
                .expect(202),
        ));
    }
    house.stop().await;

    let log = LOG.text();
    assert!(
        log.contains("\"event\":\"call\"") && log.contains("/v1/connections/{id}"),
        "the log holds no calls"
    );
    for secret in &secrets {
        assert!(secret.len() >= 16, "too short to be searched for: {secret}");
        if let Some(line) = log.lines().find(|line| line.contains(secret.as_str())) {
            panic!("a secret is in the log: {line}");
        }
        if let Some(answer) = said.iter().find(|answer| answer.contains(secret.as_str())) {
            panic!("a secret is in an answer: {answer}");
        }
    }
}
