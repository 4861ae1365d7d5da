//! Tokens: exchange, refresh, rotation, introspection, revocation.

use std::time::Duration;

use http::Method;
use hubspot_sim::{Rotation, SimApp, SimConfig, Switch};
use serde_json::{Value, json};

use crate::browser::{CLIENT, HUB, REDIRECT_URI, World, value};

const CREDENTIALS: [(&str, &str); 2] = [("client_id", CLIENT), ("client_secret", "sim-secret")];

async fn rotating(rotation: Rotation) -> World {
    World::with(SimConfig {
        rotation,
        ..SimConfig::default()
    })
    .await
}

async fn introspect(world: &World, field: &str, token: &str) -> Value {
    let fields = [CREDENTIALS[0], CREDENTIALS[1], (field, token)];
    let answer = world.post_form("/oauth/2026-09/token/introspect", &fields).await;
    assert_eq!(answer.status, 200);
    answer.json()
}

#[tokio::test]
async fn a_code_is_exchanged_for_tokens_of_the_portal() {
    let world = World::new().await;
    let answer = world.exchange(&world.code().await, &[]).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let body = answer.json();
    assert_eq!(body["token_type"], "bearer");
    assert_eq!(body["token_use"], "access_token");
    assert_eq!(body["hub_id"], HUB);
    assert_eq!(body["scopes"], json!(["oauth"]));
    assert_eq!(body["expires_in"], 1800);
    assert!(body["refresh_token"].as_str().unwrap().starts_with("na1-"));
    assert_eq!(world.hubspot.ledger().code_exchanges, 1);
}

#[tokio::test]
async fn a_code_can_be_exchanged_only_once() {
    let world = World::new().await;
    let code = world.code().await;
    assert_eq!(world.exchange(&code, &[]).await.status, 200);
    assert_eq!(world.exchange(&code, &[]).await.refusal(), "BAD_AUTH_CODE");
    assert_eq!(
        world.exchange("na1-never-issued", &[]).await.refusal(),
        "BAD_AUTH_CODE"
    );
}

#[tokio::test]
async fn a_code_expires_after_a_minute() {
    let world = World::new().await;
    let code = world.code().await;
    world.hubspot.advance(Duration::from_secs(60));
    assert_eq!(world.exchange(&code, &[]).await.refusal(), "EXPIRED_AUTH_CODE");
}

#[tokio::test]
async fn a_code_is_bound_to_its_redirect_uri() {
    let world = World::new().await;
    let code = world.code().await;
    let elsewhere = [("redirect_uri", "https://app.example.com/other")];
    assert_eq!(
        world.exchange(&code, &elsewhere).await.refusal(),
        "MISMATCH_REDIRECT_URI_AUTH_CODE"
    );
    assert_eq!(
        world.exchange(&code, &[]).await.status,
        200,
        "a refusal does not use the code up"
    );
}

#[tokio::test]
async fn a_code_with_a_challenge_needs_its_verifier() {
    // RFC 7636, appendix B.
    let (verifier, challenge) = (
        "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
        "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",
    );
    let world = World::new().await;
    let pkce = [
        ("_sim_hub_id", "1"),
        ("code_challenge", challenge),
        ("code_challenge_method", "S256"),
    ];
    let redirect = world.consent(&pkce).await;
    let code = value(&redirect, "code").unwrap();
    assert_eq!(world.exchange(code, &[]).await.refusal(), "BAD_CODE_VERIFIER");
    assert_eq!(
        world
            .exchange(code, &[("code_verifier", "wrong")])
            .await
            .refusal(),
        "BAD_CODE_VERIFIER"
    );
    assert_eq!(
        world.exchange(code, &[("code_verifier", verifier)]).await.status,
        200
    );
}

#[tokio::test]
async fn every_version_has_a_token_endpoint_and_only_dated_ones_tell_the_token_use() {
    let world = World::new().await;
    let refresh_token = world.grant().refresh_token;
    for (version, tells) in [("v1", false), ("v3", false), ("2026-03", true), ("2026-09", true)] {
        let mut fields = CREDENTIALS.to_vec();
        fields.extend([
            ("grant_type", "refresh_token"),
            ("refresh_token", refresh_token.as_str()),
        ]);
        let answer = world.post_form(&format!("/oauth/{version}/token"), &fields).await;
        assert_eq!(answer.status, 200, "{version}");
        assert_eq!(answer.json().get("token_use").is_some(), tells, "{version}");
    }
    assert_eq!(world.post_form("/oauth/v2/token", &CREDENTIALS).await.status, 404);
}

#[tokio::test]
async fn only_v1_takes_parameters_from_the_query_string() {
    let world = World::new().await;
    let query = format!(
        "grant_type=refresh_token&client_id={CLIENT}&client_secret=sim-secret&refresh_token={}",
        world.grant().refresh_token
    );
    assert_eq!(
        world
            .post_form(&format!("/oauth/v1/token?{query}"), &[])
            .await
            .status,
        200
    );
    assert_eq!(
        world
            .post_form(&format!("/oauth/v3/token?{query}"), &[])
            .await
            .refusal(),
        "BAD_GRANT_TYPE"
    );
}

#[tokio::test]
async fn a_json_body_is_a_bad_grant_type() {
    let world = World::new().await;
    let body = json!({"grant_type": "refresh_token", "refresh_token": world.grant().refresh_token});
    assert_eq!(
        world.post_json("/oauth/v3/token", body).await.refusal(),
        "BAD_GRANT_TYPE"
    );
}

#[tokio::test]
async fn refusals_come_in_the_format_of_2026() {
    let world = World::new().await;
    assert_eq!(
        world.refresh("na1-never-issued").await.json(),
        json!({
            "error": "invalid_grant",
            "error_description": "refresh token is invalid, expired or revoked",
            "status": "BAD_REFRESH_TOKEN",
            "message": "refresh token is invalid, expired or revoked",
        })
    );
}

#[tokio::test]
async fn refusals_come_in_the_old_format_when_switched() {
    let world = World::new().await;
    world.hubspot.turn_on(Switch::OldErrorFormat);
    let answer = world.refresh("na1-never-issued").await;
    assert_eq!(answer.refusal(), "BAD_REFRESH_TOKEN");
    let body = answer.json();
    assert_eq!(body["message"], "missing or invalid refresh token");
    assert_eq!(body.get("error"), None);
    assert_eq!(
        body["correlationId"],
        answer.header("x-hubspot-correlation-id").unwrap()
    );
}

#[tokio::test]
async fn the_client_is_judged_before_the_grant() {
    let world = World::new().await;
    world
        .hubspot
        .add_app(SimApp::new("other", "other-secret"))
        .unwrap();
    let refresh_token = world.grant().refresh_token;
    let refresh_as = async |client_id: &str, client_secret: &str| {
        let fields = [
            ("grant_type", "refresh_token"),
            ("client_id", client_id),
            ("client_secret", client_secret),
            ("refresh_token", refresh_token.as_str()),
        ];
        world.post_form("/oauth/2026-09/token", &fields).await.refusal()
    };
    assert_eq!(refresh_as("nobody", "sim-secret").await, "BAD_CLIENT_ID");
    assert_eq!(refresh_as("", "sim-secret").await, "BAD_CLIENT_ID");
    assert_eq!(refresh_as(CLIENT, "wrong").await, "BAD_CLIENT_SECRET");
    assert_eq!(
        refresh_as("other", "other-secret").await,
        "MISMATCH_REFRESH_TOKEN_CLIENT"
    );
    world.hubspot.set_client_secret(CLIENT, "new-secret");
    assert_eq!(refresh_as(CLIENT, "sim-secret").await, "BAD_CLIENT_SECRET");
    assert_eq!(world.hubspot.ledger().client_refusals, 4);
}

#[tokio::test]
async fn without_rotation_the_refresh_token_stays_the_same() {
    let world = rotating(Rotation::Never).await;
    let grant = world.grant();
    for _ in 0..3 {
        assert_eq!(
            world.refresh(&grant.refresh_token).await.text_of("refresh_token"),
            grant.refresh_token
        );
    }
    let ledger = world.hubspot.ledger();
    assert_eq!(
        (ledger.refreshes_accepted, ledger.replays, ledger.accepted_max()),
        (3, 0, 3)
    );
}

#[tokio::test]
async fn an_omitted_refresh_token_stays_good() {
    let world = rotating(Rotation::Omit).await;
    let grant = world.grant();
    for _ in 0..2 {
        let answer = world.refresh(&grant.refresh_token).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.json().get("refresh_token"), None);
    }
}

#[tokio::test]
async fn a_rotated_refresh_token_dies_at_once_and_presenting_it_is_a_replay() {
    let world = rotating(Rotation::Always).await;
    let grant = world.grant();
    let second = world.refresh(&grant.refresh_token).await.text_of("refresh_token");
    assert_ne!(second, grant.refresh_token);
    assert_eq!(
        world.refresh(&grant.refresh_token).await.refusal(),
        "BAD_REFRESH_TOKEN"
    );
    assert_eq!(
        world.refresh(&second).await.status,
        200,
        "the successor is not touched by the replay"
    );
    let ledger = world.hubspot.ledger();
    let first = ledger.refresh_token("rt-1").unwrap();
    assert_eq!(
        (first.presented, first.accepted, first.refused, first.replays),
        (2, 1, 1, 1)
    );
    assert_eq!((ledger.replays, ledger.accepted_max()), (1, 1));
}

#[tokio::test]
async fn with_family_revocation_a_replay_takes_the_successors_along() {
    let world = rotating(Rotation::Always).await;
    world.hubspot.turn_on(Switch::FamilyRevocation);
    let grant = world.grant();
    let second = world.refresh(&grant.refresh_token).await.text_of("refresh_token");
    assert_eq!(
        world.refresh(&grant.refresh_token).await.refusal(),
        "BAD_REFRESH_TOKEN"
    );
    assert_eq!(world.refresh(&second).await.refusal(), "BAD_REFRESH_TOKEN");
    assert_eq!(world.hubspot.ledger().grants_revoked, 1);
}

#[tokio::test]
async fn a_rotated_refresh_token_is_good_for_its_grace_period() {
    let world = rotating(Rotation::Grace(Duration::from_secs(30))).await;
    let grant = world.grant();
    let second = world.refresh(&grant.refresh_token).await.text_of("refresh_token");
    world.hubspot.advance(Duration::from_secs(29));
    let third = world.refresh(&grant.refresh_token).await.text_of("refresh_token");
    assert_ne!(second, third);
    world.hubspot.advance(Duration::from_secs(1));
    assert_eq!(
        world.refresh(&grant.refresh_token).await.refusal(),
        "BAD_REFRESH_TOKEN"
    );
    assert_eq!(world.refresh(&second).await.status, 200);
    assert_eq!(
        world
            .hubspot
            .ledger()
            .refresh_token("rt-1")
            .unwrap()
            .accepted_after_superseded,
        1
    );
}

#[tokio::test]
async fn older_access_tokens_survive_a_refresh() {
    let world = rotating(Rotation::Always).await;
    let grant = world.grant();
    let newer = world.refresh(&grant.refresh_token).await.text_of("access_token");
    assert_eq!(world.list(&grant.access_token).await.status, 200);
    assert_eq!(world.list(&newer).await.status, 200);
}

#[tokio::test]
async fn the_lifetime_of_new_access_tokens_can_be_changed() {
    let world = World::new().await;
    let grant = world.grant();
    world.hubspot.set_token_ttl(Duration::from_secs(20));
    assert_eq!(world.refresh(&grant.refresh_token).await.json()["expires_in"], 20);
}

#[tokio::test]
async fn an_uninstall_kills_every_token_and_a_reinstall_revives_none() {
    let world = World::new().await;
    let grant = world.grant();
    let elsewhere = world.hubspot.grant(CLIENT, 2002).unwrap();
    let path = "/appinstalls/2026-03/external-install";
    assert_eq!(
        world
            .call(&grant.access_token, Method::DELETE, path, Value::Null)
            .await
            .status,
        204
    );
    let again = world.grant();
    assert_eq!(
        world.refresh(&grant.refresh_token).await.refusal(),
        "BAD_REFRESH_TOKEN"
    );
    assert_eq!(world.list(&grant.access_token).await.status, 401);
    assert_eq!(world.refresh(&again.refresh_token).await.status, 200);
    assert_eq!(world.refresh(&elsewhere.refresh_token).await.status, 200);
}

#[tokio::test]
async fn a_deleted_portal_is_a_bad_hub() {
    let world = World::new().await;
    let grant = world.grant();
    world.hubspot.delete_portal(HUB);
    let answer = world.refresh(&grant.refresh_token).await;
    assert_eq!(answer.refusal(), "BAD_HUB");
    assert_eq!(answer.json()["error"], "access_denied");
    assert_eq!(world.hubspot.grant(CLIENT, HUB), None);
}

#[tokio::test]
async fn client_credentials_bring_a_token_without_a_refresh_token() {
    let world = World::new().await;
    let mut fields = CREDENTIALS.to_vec();
    fields.push(("grant_type", "client_credentials"));
    assert_eq!(
        world.post_form("/oauth/2026-03/token", &fields).await.refusal(),
        "BAD_SCOPES"
    );
    fields.push(("scope", "developer.webhooks_journal.read"));
    let body = world.post_form("/oauth/2026-03/token", &fields).await.json();
    assert_eq!(body["token_use"], "client_credentials");
    assert_eq!(body.get("refresh_token"), None);
    assert_eq!(body.get("hub_id"), None);
}

#[tokio::test]
async fn introspection_tells_about_both_kinds_of_token_under_every_field_name() {
    let world = World::new().await;
    let grant = world.grant();
    for (field, token) in [
        ("token", &grant.access_token),
        ("access_token", &grant.access_token),
        ("token", &grant.refresh_token),
        ("refresh_token", &grant.refresh_token),
    ] {
        let body = introspect(&world, field, token).await;
        let is_access = *token == grant.access_token;
        assert_eq!(body["active"], true, "{field}");
        assert_eq!(
            (&body["hub_id"], &body["client_id"]),
            (&json!(HUB), &json!(CLIENT))
        );
        assert_eq!(body["token_type"], "Bearer");
        assert_eq!(
            body["token_use"],
            if is_access {
                "access_token"
            } else {
                "refresh_token"
            }
        );
        assert_eq!(body.get("signed_access_token").is_some(), is_access);
        assert_eq!(body.get("expires_in").is_some(), is_access);
    }
    assert_eq!(world.hubspot.ledger().introspections, 4);
}

#[tokio::test]
async fn introspection_of_an_unusable_token_says_inactive_and_nothing_else() {
    let world = World::new().await;
    world.hubspot.add_app(SimApp::new("other", "secret")).unwrap();
    let foreign = world.hubspot.grant("other", HUB).unwrap();
    let grant = world.grant();
    world.hubspot.expire_access_tokens(HUB);
    for token in ["unknown", &grant.access_token, &foreign.refresh_token] {
        assert_eq!(introspect(&world, "token", token).await, json!({"active": false}));
    }
    let wrong = [
        ("client_id", CLIENT),
        ("client_secret", "wrong"),
        ("token", &grant.refresh_token),
    ];
    let answer = world.post_form("/oauth/v3/token/introspect", &wrong).await;
    assert_eq!(answer.refusal(), "BAD_CLIENT_SECRET");
}

#[tokio::test]
async fn revocation_kills_the_refresh_token_and_leaves_access_tokens_alone() {
    let world = World::new().await;
    let grant = world.grant();
    for token in [grant.refresh_token.as_str(), "unknown"] {
        let fields = [
            CREDENTIALS[0],
            CREDENTIALS[1],
            ("token", token),
            ("token_type_hint", "refresh_token"),
        ];
        assert_eq!(
            world
                .post_form("/oauth/2026-09/token/revoke", &fields)
                .await
                .status,
            200
        );
    }
    assert_eq!(
        world.refresh(&grant.refresh_token).await.refusal(),
        "BAD_REFRESH_TOKEN"
    );
    assert_eq!(
        introspect(&world, "token", &grant.refresh_token).await,
        json!({"active": false})
    );
    assert_eq!(world.list(&grant.access_token).await.status, 200);
    let ledger = world.hubspot.ledger();
    assert_eq!((ledger.revocations, ledger.grants_revoked), (2, 1));
}

#[tokio::test]
async fn v1_has_its_own_metadata_routes() {
    let world = World::new().await;
    let grant = world.grant();
    let about = world
        .get(&format!("/oauth/v1/access-tokens/{}", grant.access_token))
        .await
        .json();
    assert_eq!(
        (&about["token_type"], &about["hub_id"]),
        (&json!("access"), &json!(HUB))
    );
    assert!(about["app_id"].is_u64() && about["expires_in"].is_u64() && about["scopes"].is_array());
    let path = format!("/oauth/v1/refresh-tokens/{}", grant.refresh_token);
    assert_eq!(world.get(&path).await.json()["client_id"], CLIENT);
    assert_eq!(
        world.send(Method::DELETE, &path, &[], "").await.unwrap().status,
        204
    );
    assert_eq!(world.get(&path).await.status, 404);
}

#[tokio::test]
async fn a_retired_v1_is_not_found_and_the_others_stay() {
    let world = World::new().await;
    world.hubspot.turn_on(Switch::V1Retired);
    let grant = world.grant();
    assert_eq!(world.post_form("/oauth/v1/token", &CREDENTIALS).await.status, 404);
    assert_eq!(
        world
            .get(&format!("/oauth/v1/access-tokens/{}", grant.access_token))
            .await
            .status,
        404
    );
    assert_eq!(world.refresh(&grant.refresh_token).await.status, 200);
}

#[tokio::test]
async fn an_app_with_a_redirect_uri_that_hubspot_refuses_is_refused_at_the_start() {
    let apps = vec![
        SimApp::default()
            .redirect_uri(REDIRECT_URI)
            .redirect_uri("http://127.0.0.1/callback"),
    ];
    let error = hubspot_sim::Simulator::start(SimConfig {
        apps,
        ..SimConfig::default()
    })
    .await
    .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
}

#[tokio::test]
async fn the_seed_decides_the_tokens() {
    let (one, other) = (World::new().await, World::new().await);
    assert_eq!(one.grant(), other.grant());
}
