//! Calls with access tokens: credentials, scopes, limits, headers.

use std::time::Duration;

use http::Method;
use hubspot_sim::{Fault, FaultKind, RateLimits, Switch};
use serde_json::{Value, json};

use crate::browser::{CLIENT, HUB, World};

#[tokio::test]
async fn missing_and_malformed_credentials_are_invalid_authentication() {
    let world = World::new().await;
    let token = world.grant().access_token;
    for authorization in [
        None,
        Some(format!("Bearer Bearer {token}")),
        Some(token),
        Some("Bearer ".to_owned()),
    ] {
        let headers: Vec<_> = authorization
            .iter()
            .map(|value| ("authorization", value.as_str()))
            .collect();
        let path = "/crm/v3/objects/contacts";
        let answer = world.send(Method::GET, path, &headers, "").await.unwrap();
        assert_eq!(answer.status, 401);
        assert_eq!(answer.json()["category"], "INVALID_AUTHENTICATION");
        assert_eq!(answer.header("x-hubspot-auth-failure"), Some("401 Unauthorized"));
    }
    assert_eq!(world.hubspot.ledger().unauthorized.missing, 4);
}

#[tokio::test]
async fn an_expired_token_is_told_since_when() {
    let world = World::new().await;
    let grant = world.grant();
    world.hubspot.advance(Duration::from_secs(1800 + 92 * 60));
    let answer = world.list(&grant.access_token).await;
    assert_eq!(answer.status, 401);
    let body = answer.json();
    assert_eq!(body["category"], "EXPIRED_AUTHENTICATION");
    assert_eq!(
        body["message"],
        "The OAuth token used to make this call expired 92 minute(s) ago."
    );
    assert!(body["context"]["expire time"][0].as_str().unwrap().ends_with('Z'));
    let ledger = world.hubspot.ledger();
    assert_eq!((ledger.unauthorized.expired, ledger.arrived_expired()), (1, 1));
    assert_eq!(ledger.grant(CLIENT, HUB).unwrap().unauthorized, 1);
}

#[tokio::test]
async fn a_token_that_was_never_issued_expired_in_1970() {
    let world = World::new().await;
    let answer = world.list("garbage").await;
    let body = answer.json();
    assert_eq!(
        (answer.status.as_u16(), &body["category"]),
        (401, &json!("EXPIRED_AUTHENTICATION"))
    );
    assert_eq!(body["context"]["expire time"], json!(["1970-01-01T00:00:00Z"]));
    let days = world.hubspot.now().as_second() / 86_400;
    assert!(
        body["message"]
            .as_str()
            .unwrap()
            .contains(&format!("expired {days} day(s) ago"))
    );
    assert_eq!(world.hubspot.ledger().unauthorized.garbage, 1);
}

#[tokio::test]
async fn a_grant_without_the_scope_is_refused_with_403() {
    let world = World::new().await;
    let grant = world
        .hubspot
        .grant_scopes(CLIENT, HUB, &["oauth", "crm.objects.contacts.read"])
        .unwrap();
    assert_eq!(world.list(&grant.access_token).await.status, 200);
    let body = json!({"properties": {}});
    let answer = world
        .call(
            &grant.access_token,
            Method::POST,
            "/crm/v3/objects/contacts",
            body,
        )
        .await;
    assert_eq!(answer.status, 403);
    let body = answer.json();
    assert_eq!(body["category"], "MISSING_SCOPES");
    let required = &body["errors"][0]["context"]["requiredGranularScopes"];
    assert_eq!(*required, json!(["crm.objects.contacts.write"]));
}

#[tokio::test]
async fn every_answer_has_a_correlation_id_and_only_searches_have_no_limit_headers() {
    let world = World::new().await;
    let token = world.grant().access_token;
    let listed = world.list(&token).await;
    assert_eq!(listed.header("x-hubspot-ratelimit-max"), Some("110"));
    assert_eq!(listed.header("x-hubspot-ratelimit-remaining"), Some("109"));
    assert_eq!(
        listed.header("x-hubspot-ratelimit-interval-milliseconds"),
        Some("10000")
    );
    assert_eq!(
        world.list(&token).await.header("x-hubspot-ratelimit-remaining"),
        Some("108")
    );
    let search = "/crm/v3/objects/contacts/search";
    let searched = world.call(&token, Method::POST, search, json!({})).await;
    assert_eq!(searched.header("x-hubspot-ratelimit-max"), None);
    let ids: Vec<_> = [&listed, &searched]
        .map(|answer| answer.header("x-hubspot-correlation-id").unwrap())
        .into();
    assert_ne!(ids[0], ids[1]);
}

#[tokio::test]
async fn limits_are_counted_but_enforced_only_when_switched_on() {
    let world = World::new().await;
    let token = world.grant().access_token;
    for _ in 0..115 {
        assert_eq!(world.list(&token).await.status, 200);
    }
    assert_eq!(world.hubspot.ledger().rate_limited.total(), 0);
    world.hubspot.turn_on(Switch::EnforceRateLimits);
    let refused = world.list(&token).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.json()["policyName"], "TEN_SECONDLY_ROLLING");
    assert_eq!(refused.header("retry-after"), None);
    assert_eq!(refused.header("x-hubspot-ratelimit-remaining"), Some("0"));
    let ledger = world.hubspot.ledger();
    assert_eq!(
        (ledger.rate_limited.ten_secondly, ledger.api_executed),
        (1, 115),
        "what is refused is not executed"
    );
    assert_eq!(ledger.grant(CLIENT, HUB).unwrap().rate_limited, 1);
    world.hubspot.advance(Duration::from_secs(10));
    assert_eq!(world.list(&token).await.status, 200);
}

#[tokio::test]
async fn searches_have_a_limit_of_their_own_which_all_apps_share() {
    let world = World::new().await;
    let other = hubspot_sim::SimApp::new("other-client", "other-secret");
    world.hubspot.add_app(other).unwrap();
    world.hubspot.turn_on(Switch::EnforceRateLimits);
    world.hubspot.set_rate_limits(RateLimits {
        searches_max: 1,
        calls_max: 1,
        ..RateLimits::default()
    });
    let tokens = [CLIENT, "other-client"].map(|app| world.hubspot.grant(app, HUB).unwrap().access_token);
    let search = async |token: &str| {
        let path = "/crm/v3/objects/contacts/search";
        world.call(token, Method::POST, path, json!({})).await
    };
    // Two within a second are one too many; a machine that is slower than that gets more tries.
    let mut refused = search(&tokens[0]).await;
    for token in tokens.iter().rev().cycle().take(200) {
        refused = search(token).await;
        if refused.status == 429 {
            break;
        }
    }
    assert_eq!(refused.status, 429);
    assert_eq!(refused.json()["policyName"], "SECONDLY");
    assert_eq!(refused.header("x-hubspot-ratelimit-remaining"), None);
    assert_eq!(
        world.list(&tokens[0]).await.status,
        200,
        "searches leave the calls alone"
    );
    assert_eq!(world.hubspot.ledger().rate_limited.secondly, 1);
}

#[tokio::test]
async fn a_refusal_says_when_to_come_back_in_the_form_that_is_asked_for() {
    let world = World::new().await;
    let token = world.grant().access_token;
    world.hubspot.turn_on(Switch::EnforceRateLimits);
    let refused = async |form: &str| {
        let settings = json!({"calls_max": 0, "retry_after": form});
        assert_eq!(world.post_json("/_sim/config", settings).await.status, 200);
        world.list(&token).await
    };
    assert_eq!(refused("absent").await.header("retry-after"), None);
    assert_eq!(refused("seconds").await.header("retry-after"), Some("10"));
    let date = refused("date").await.header("retry-after").unwrap().to_owned();
    assert!(date.ends_with(" GMT") && date.contains(", "), "{date}");
    world.hubspot.turn_off(Switch::EnforceRateLimits);
    let fault = Fault::api(FaultKind::RetryAt {
        code: 503,
        seconds: 7,
    });
    world.hubspot.arm(fault);
    let later = world.list(&token).await;
    assert_eq!(later.status, 503);
    assert!(later.header("retry-after").unwrap().ends_with(" GMT"));
}

#[tokio::test]
async fn a_static_token_never_expires_and_can_be_revoked() {
    let world = World::new().await;
    let token = world.hubspot.static_token(HUB);
    assert!(token.starts_with("pat-na1-"));
    world.hubspot.advance(Duration::from_secs(400 * 24 * 3600));
    assert_eq!(world.hubspot.expire_access_tokens(HUB), 0);
    assert_eq!(world.list(&token).await.status, 200);
    assert!(world.hubspot.revoke_static_token(&token));
    assert_eq!(world.list(&token).await.status, 401);
}

#[tokio::test]
async fn account_info_tells_the_portal() {
    let world = World::new().await;
    let token = world.grant().access_token;
    for version in ["v3", "2026-03"] {
        let path = format!("/account-info/{version}/details");
        let answer = world.call(&token, Method::GET, &path, Value::Null).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["portalId"]),
            (200, &json!(HUB))
        );
    }
}

#[tokio::test]
async fn echo_tells_what_arrived_but_not_the_token() {
    let world = World::new().await;
    let token = world.grant().access_token;
    let answer = world
        .call(&token, Method::PUT, "/echo/a%2Fb?x=1", json!({"n": 1}))
        .await;
    let body = answer.json();
    assert_eq!(
        (&body["method"], &body["path"], &body["query"]),
        (&json!("PUT"), &json!("/echo/a%2Fb"), &json!("x=1"))
    );
    assert_eq!(body["body"], r#"{"n":1}"#);
    assert!(!answer.text.contains(&token));
}

#[tokio::test]
async fn deliveries_and_executions_are_counted_for_each_request_id() {
    let world = World::new().await;
    let grant = world.grant();
    let bearer = format!("Bearer {}", grant.access_token);
    let create = async || {
        let headers = [("authorization", bearer.as_str()), ("x-req-id", "r1")];
        let body = r#"{"properties":{"name":"Acme"}}"#;
        world
            .send(Method::POST, "/crm/v3/objects/companies", &headers, body)
            .await
            .unwrap()
            .status
    };
    assert_eq!(create().await, 201);
    world.hubspot.expire_access_tokens(HUB);
    assert_eq!(create().await, 401);
    let ledger = world.hubspot.ledger();
    let request = &ledger.requests["r1"];
    assert_eq!(
        (request.deliveries, request.executed, request.creates_executed),
        (2, 1, 1)
    );
    assert_eq!(ledger.executed_more_than_once().count(), 0);
    assert_eq!(
        (ledger.api_calls, ledger.api_executed, ledger.creates_executed),
        (2, 1, 1)
    );
}

#[tokio::test]
async fn the_date_header_follows_the_moved_clock_unless_switched_off() {
    let world = World::new().await;
    world.hubspot.advance(Duration::from_secs(400 * 24 * 3600));
    let moved = world.get("/_sim/").await.header("date").unwrap().to_owned();
    world.hubspot.turn_off(Switch::DateFollowsClock);
    let real = world.get("/_sim/").await.header("date").unwrap().to_owned();
    assert_ne!(
        moved[12..16],
        real[12..16],
        "a year lies between {moved} and {real}"
    );
}
