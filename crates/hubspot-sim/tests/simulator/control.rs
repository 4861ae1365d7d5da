//! The control API: what the Rust API can do, for other processes.

use http::Method;
use serde_json::{Value, json};

use crate::browser::{CLIENT, HUB, World};

async fn control(world: &World, path: &str, body: Value) -> Value {
    let answer = world.post_json(&format!("/_sim/{path}"), body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

#[tokio::test]
async fn the_index_names_every_route() {
    let world = World::new().await;
    let index = world.get("/_sim/").await.text;
    for route in [
        "ledger",
        "clock",
        "config",
        "faults",
        "faults/release",
        "expire",
        "uninstall",
        "secret",
        "portals/delete",
        "apps",
        "grants",
        "static-tokens",
        "static-tokens/revoke",
        "reset",
    ] {
        assert!(index.contains(&format!("/_sim/{route} ")), "{route} is missing");
    }
}

#[tokio::test]
async fn a_grant_is_issued_without_consent() {
    let world = World::new().await;
    let grant = control(&world, "grants", json!({"hub_id": HUB})).await;
    assert_eq!(
        (&grant["client_id"], &grant["hub_id"]),
        (&json!(CLIENT), &json!(HUB))
    );
    assert_eq!(
        world.list(grant["access_token"].as_str().unwrap()).await.status,
        200
    );
    assert_eq!(
        world
            .refresh(grant["refresh_token"].as_str().unwrap())
            .await
            .status,
        200
    );
    let grant = control(
        &world,
        "grants",
        json!({"client_id": CLIENT, "hub_id": 5, "scopes": ["oauth"]}),
    )
    .await;
    assert_eq!(
        world.list(grant["access_token"].as_str().unwrap()).await.status,
        403
    );
}

#[tokio::test]
async fn the_clock_is_moved_and_tokens_expire() {
    let world = World::new().await;
    let token = world.grant().access_token;
    assert_eq!(
        control(&world, "clock", json!({"advance_seconds": 1800})).await["ahead_seconds"],
        1800.0
    );
    assert_eq!(world.list(&token).await.status, 401);
    let token = world.grant().access_token;
    assert_eq!(
        control(&world, "expire", json!({"hub_id": HUB})).await["expired"],
        1
    );
    assert_eq!(world.list(&token).await.status, 401);
}

#[tokio::test]
async fn the_configuration_is_changed_and_shown() {
    let world = World::new().await;
    let new = json!({"token_ttl_seconds": 60, "rotation": "grace:10", "v1_retired": true, "calls_max": 190});
    let shown = control(&world, "config", new).await;
    assert_eq!(shown, world.get("/_sim/config").await.json());
    assert_eq!(
        shown,
        json!({
            "token_ttl_seconds": 60, "rotation": "grace:10", "v1_retired": true, "family_revocation": false,
            "old_error_format": false, "enforce_rate_limits": false, "date_follows_clock": true,
            "rate_limits": {"calls_max": 190, "searches_max": 5, "retry_after": "absent"},
        })
    );
}

#[tokio::test]
async fn faults_are_armed_shown_and_cleared() {
    let world = World::new().await;
    let refresh_token = world.grant().refresh_token;
    let fault = json!({"at": "token", "fault": "rate_limited", "retry_after": 5, "times": 2, "hub_id": HUB});
    assert_eq!(control(&world, "faults", fault).await["armed"][0]["left"], 2);
    let answer = world.refresh(&refresh_token).await;
    assert_eq!(
        (answer.status.as_u16(), answer.header("retry-after")),
        (429, Some("5"))
    );
    let shown = world.get("/_sim/faults").await.json();
    assert_eq!(
        (&shown["armed"][0]["left"], &shown["armed"][0]["met"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(
        world
            .send(Method::DELETE, "/_sim/faults", &[], "")
            .await
            .unwrap()
            .json()["armed"],
        json!([])
    );
    assert_eq!(world.refresh(&refresh_token).await.status, 200);
}

#[tokio::test]
async fn installs_secrets_and_portals_are_taken_away() {
    let world = World::new().await;
    let grant = world.grant();
    control(&world, "uninstall", json!({"hub_id": HUB})).await;
    assert_eq!(
        world.refresh(&grant.refresh_token).await.refusal(),
        "BAD_REFRESH_TOKEN"
    );
    let grant = world.grant();
    control(&world, "portals/delete", json!({"hub_id": HUB})).await;
    assert_eq!(world.refresh(&grant.refresh_token).await.refusal(), "BAD_HUB");
    control(
        &world,
        "secret",
        json!({"client_id": CLIENT, "client_secret": "new"}),
    )
    .await;
    assert_eq!(
        world.refresh(&grant.refresh_token).await.refusal(),
        "BAD_CLIENT_SECRET"
    );
}

#[tokio::test]
async fn static_tokens_are_issued_and_revoked() {
    let world = World::new().await;
    let issued = control(&world, "static-tokens", json!({"hub_id": HUB})).await;
    let token = issued["access_token"].as_str().unwrap();
    assert_eq!(world.list(token).await.status, 200);
    control(&world, "static-tokens/revoke", json!({"token": token})).await;
    assert_eq!(world.list(token).await.status, 401);
}

#[tokio::test]
async fn apps_are_registered_by_hubspots_rules() {
    let world = World::new().await;
    let app = json!({"client_id": "a", "client_secret": "s", "redirect_uris": ["https://a.example.com/"]});
    assert_eq!(
        control(&world, "apps", app).await["apps"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    let app = json!({"client_id": "b", "client_secret": "s", "redirect_uris": ["http://127.0.0.1/"]});
    let refused = world.post_json("/_sim/apps", app).await;
    assert_eq!(refused.status, 400);
    assert!(refused.text_of("error").contains("localhost"));
}

#[tokio::test]
async fn bad_input_is_explained() {
    let world = World::new().await;
    let check = async |path: &str, body: Value, expected: &str| {
        let answer = world.post_json(&format!("/_sim/{path}"), body).await;
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(answer.text_of("error").contains(expected), "{answer:?}");
    };
    check("clock", json!({"advance_seconds": -1}), "advance_seconds").await;
    check("clock", json!({"advance": 1}), "advance").await;
    check("config", json!({"rotation": "sometimes"}), "sometimes").await;
    check("grants", json!({}), "hub_id").await;
    check("grants", json!({"client_id": "nobody", "hub_id": 1}), "nobody").await;
    check("faults", json!({"at": "token", "fault": "gremlins"}), "gremlins").await;
    check("static-tokens/revoke", json!({"token": "x"}), "static").await;
    assert_eq!(world.get("/_sim/nonsense").await.status, 404);
}

#[tokio::test]
async fn the_ledger_counts_and_never_shows_a_token() {
    let world = World::new().await;
    let grant = world.grant();
    let refreshed = world.refresh(&grant.refresh_token).await.text_of("access_token");
    world.list(&refreshed).await;
    let ledger = world.get("/_sim/ledger").await;
    let body = ledger.json();
    assert_eq!(
        (&body["token_requests"], &body["refreshes_accepted"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(body["refresh_tokens"][0]["label"], "rt-1");
    assert_eq!(body["grants"][0]["api_calls"], 1);
    for secret in [&grant.refresh_token, &grant.access_token, &refreshed] {
        assert!(!ledger.text.contains(secret.as_str()));
    }
}

#[tokio::test]
async fn reset_forgets_everything_and_issues_no_token_twice() {
    let world = World::new().await;
    let grant = world.grant();
    world.hubspot.advance(std::time::Duration::from_secs(60));
    control(&world, "reset", Value::Null).await;
    assert_eq!(
        world.refresh(&grant.refresh_token).await.refusal(),
        "BAD_REFRESH_TOKEN"
    );
    assert_eq!(world.get("/_sim/clock").await.json()["ahead_seconds"], 0.0);
    assert_ne!(world.grant().refresh_token, grant.refresh_token);
}
