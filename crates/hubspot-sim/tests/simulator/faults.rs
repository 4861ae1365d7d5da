//! Every fault, as a caller meets it.

use std::time::Duration;

use http::Method;
use hubspot_sim::{Fault, FaultKind, RateLimitPolicy, Rotation, SimConfig};
use serde_json::{Value, json};

use crate::browser::{CLIENT, HUB, World};

async fn rotating() -> World {
    World::with(SimConfig {
        rotation: Rotation::Always,
        ..SimConfig::default()
    })
    .await
}

#[tokio::test]
async fn an_answer_lost_after_issue_leaves_the_old_refresh_token_dead() {
    let world = rotating().await;
    let grant = world.grant();
    world.hubspot.arm(Fault::token(FaultKind::AnswerLostAfterIssue));
    world.try_refresh(&grant.refresh_token).await.unwrap_err();
    assert_eq!(
        world.refresh(&grant.refresh_token).await.refusal(),
        "BAD_REFRESH_TOKEN"
    );
    let ledger = world.hubspot.ledger();
    assert_eq!(
        (ledger.answers_lost, ledger.refreshes_accepted, ledger.replays),
        (1, 1, 1)
    );
}

#[tokio::test]
async fn a_cut_before_issue_leaves_the_refresh_token_alive() {
    let world = rotating().await;
    let grant = world.grant();
    world.hubspot.arm(Fault::token(FaultKind::CutBeforeIssue));
    world.try_refresh(&grant.refresh_token).await.unwrap_err();
    assert_eq!(world.refresh(&grant.refresh_token).await.status, 200);
    let record = world.hubspot.ledger().refresh_token("rt-1").unwrap().clone();
    assert_eq!((record.presented, record.accepted, record.refused), (2, 1, 0));
}

#[tokio::test]
async fn an_answer_that_is_of_no_use_was_issued_all_the_same() {
    let world = rotating().await;
    let grant = world.grant();
    world
        .hubspot
        .arm(Fault::token(FaultKind::TruncatedJsonAfterIssue));
    world.try_refresh(&grant.refresh_token).await.unwrap_err();
    assert_eq!(
        world.refresh(&grant.refresh_token).await.refusal(),
        "BAD_REFRESH_TOKEN"
    );

    let grant = world.grant();
    world.hubspot.arm(Fault::token(FaultKind::EmptyBody));
    let answer = world.refresh(&grant.refresh_token).await;
    assert_eq!((answer.status.as_u16(), answer.text.as_str()), (200, ""));
    assert_eq!(
        world.refresh(&grant.refresh_token).await.refusal(),
        "BAD_REFRESH_TOKEN"
    );

    let grant = world.grant();
    world
        .hubspot
        .arm(Fault::token(FaultKind::StatusAfterIssue { code: 502 }));
    assert_eq!(world.refresh(&grant.refresh_token).await.status, 502);
    assert_eq!(
        world.refresh(&grant.refresh_token).await.refusal(),
        "BAD_REFRESH_TOKEN"
    );
    assert_eq!(world.hubspot.ledger().answers_lost, 3);
}

#[tokio::test]
async fn platform_trouble_issues_nothing() {
    let world = rotating().await;
    let grant = world.grant();
    let check = async |kind: FaultKind, status: u16, header: Option<(&str, &str)>| {
        world.hubspot.arm(Fault::token(kind.clone()));
        let answer = world.refresh(&grant.refresh_token).await;
        assert_eq!(answer.status, status, "{kind:?}");
        if let Some((name, value)) = header {
            assert_eq!(answer.header(name), Some(value), "{kind:?}");
        }
    };
    let limited = |retry_after| FaultKind::RateLimited {
        policy: RateLimitPolicy::TenSecondly,
        retry_after,
    };
    check(limited(Some(3)), 429, Some(("retry-after", "3"))).await;
    check(limited(None), 429, None).await;
    check(FaultKind::Locked, 423, None).await;
    check(
        FaultKind::Migrating { retry_after: 3600 },
        477,
        Some(("retry-after", "3600")),
    )
    .await;
    for code in [502, 503, 504, 524] {
        check(FaultKind::Status { code, location: None }, code, None).await;
    }
    let moved = FaultKind::Status {
        code: 301,
        location: None,
    };
    check(moved, 301, Some(("location", "https://api.hubapi.com/moved"))).await;
    check(
        FaultKind::Html { code: 502 },
        502,
        Some(("content-type", "text/html;charset=utf-8")),
    )
    .await;
    let custom = FaultKind::CustomBody {
        code: 400,
        body: "[]".into(),
        content_type: None,
    };
    check(
        custom,
        400,
        Some(("content-type", "application/json;charset=utf-8")),
    )
    .await;
    assert_eq!(
        world.refresh(&grant.refresh_token).await.status,
        200,
        "the refresh token was never redeemed"
    );
    assert_eq!(world.hubspot.ledger().refreshes_accepted, 1);
}

#[tokio::test]
async fn held_requests_wait_for_their_release_and_count_as_overlapping() {
    let world = World::new().await;
    let grant = world.grant();
    world.hubspot.arm(Fault::token(FaultKind::HoldBeforeIssue));
    world.hubspot.arm(Fault::token(FaultKind::HoldAfterIssue));
    let release = async {
        world.hubspot.wait_for_held(2).await;
        let ledger = world.hubspot.ledger();
        world.hubspot.release_held();
        ledger
    };
    let (one, other, while_held) = tokio::join!(
        world.refresh(&grant.refresh_token),
        world.refresh(&grant.refresh_token),
        release
    );
    assert_eq!((one.status.as_u16(), other.status.as_u16()), (200, 200));
    assert_eq!(
        while_held.refreshes_accepted, 1,
        "one is held before, one after issue"
    );
    let ledger = world.hubspot.ledger();
    assert_eq!(
        (
            ledger.presentations_in_flight_max(),
            ledger.refresh_tokens[0].overlaps
        ),
        (2, 1)
    );
    assert_eq!((ledger.refreshes_accepted, world.hubspot.held()), (2, 0));
}

#[tokio::test]
async fn a_caller_that_hangs_up_does_not_undo_what_was_issued() {
    let world = rotating().await;
    let grant = world.grant();
    world.hubspot.arm(Fault::token(FaultKind::HoldBeforeIssue));
    tokio::select! {
        _ = world.refresh(&grant.refresh_token) => panic!("held"),
        () = world.hubspot.wait_for_held(1) => {}
    }
    world.hubspot.release_held();
    while world.hubspot.ledger().refreshes_accepted == 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_slow_answer_was_issued_before_it_came() {
    let world = rotating().await;
    let grant = world.grant();
    world
        .hubspot
        .arm(Fault::token(FaultKind::Slow { delay_ms: 3_600_000 }));
    let issued = async {
        while world.hubspot.ledger().refreshes_accepted == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = world.refresh(&grant.refresh_token) => panic!("an hour is not over"),
        () = issued => {}
    }
}

#[tokio::test]
async fn a_trickle_never_ends_and_a_huge_body_is_huge() {
    let world = World::new().await;
    let grant = world.grant();
    world.hubspot.arm(Fault::token(FaultKind::HugeBody { mib: 2 }));
    let huge = world.refresh(&grant.refresh_token).await;
    assert_eq!(huge.json().as_str().unwrap().len(), 2 * 1024 * 1024);

    world
        .hubspot
        .arm(Fault::token(FaultKind::Trickle { interval_ms: 0 }));
    let refresh = world.refresh(&grant.refresh_token);
    let patience = async {
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = refresh => panic!("the body ended"),
        () = patience => {}
    }
}

#[tokio::test]
async fn a_fault_can_be_confined_to_one_portal() {
    let world = World::new().await;
    let (here, elsewhere) = (world.grant(), world.hubspot.grant(CLIENT, 2002).unwrap());
    world
        .hubspot
        .arm(Fault::token(FaultKind::Locked).hub(2002).times(0));
    assert_eq!(world.refresh(&here.refresh_token).await.status, 200);
    assert_eq!(world.refresh(&elsewhere.refresh_token).await.status, 423);
    world.hubspot.clear_faults();
    assert_eq!(world.refresh(&elsewhere.refresh_token).await.status, 200);
}

#[tokio::test]
async fn a_cut_after_execute_has_written_and_a_cut_before_has_not() {
    let world = World::new().await;
    let token = world.grant().access_token;
    let create = async || {
        let body = json!({"properties": {"name": "Acme"}});
        world
            .try_call(&token, Method::POST, "/crm/v3/objects/companies", body)
            .await
    };
    world.hubspot.arm(Fault::api(FaultKind::CutBeforeIssue));
    create().await.unwrap_err();
    assert_eq!(world.hubspot.ledger().creates_executed, 0);
    world.hubspot.arm(Fault::api(FaultKind::AnswerLostAfterIssue));
    create().await.unwrap_err();
    assert_eq!(world.hubspot.ledger().creates_executed, 1);
}

#[tokio::test]
async fn a_token_called_expired_too_early_works_on_the_next_call() {
    let world = World::new().await;
    let token = world.grant().access_token;
    world.hubspot.arm(Fault::api(FaultKind::UnauthorizedEarly));
    assert_eq!(
        world.list("garbage").await.status,
        401,
        "only valid tokens meet this fault"
    );
    let early = world.list(&token).await;
    assert_eq!(
        (early.status.as_u16(), &early.json()["category"]),
        (401, &json!("EXPIRED_AUTHENTICATION"))
    );
    assert_eq!(world.list(&token).await.status, 200);
    assert_eq!(world.hubspot.ledger().unauthorized.injected, 1);
}

#[tokio::test]
async fn a_token_that_expires_mid_request_stays_expired() {
    let world = World::new().await;
    let token = world.grant().access_token;
    world.hubspot.arm(Fault::api(FaultKind::ExpireMidRequest));
    for _ in 0..2 {
        let answer = world.list(&token).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["category"]),
            (401, &json!("EXPIRED_AUTHENTICATION"))
        );
    }
    let ledger = world.hubspot.ledger();
    assert_eq!(
        (ledger.unauthorized.injected, ledger.unauthorized.expired),
        (1, 1)
    );
}

#[tokio::test]
async fn always_unauthorized_lasts_until_cleared() {
    let world = World::new().await;
    let token = world.grant().access_token;
    world.hubspot.arm(Fault::api(FaultKind::AlwaysUnauthorized));
    for _ in 0..3 {
        assert_eq!(world.list(&token).await.status, 401);
    }
    world.hubspot.clear_faults();
    assert_eq!(world.list(&token).await.status, 200);
}

#[tokio::test]
async fn the_api_names_the_limit_it_enforces() {
    let world = World::new().await;
    let token = world.grant().access_token;
    for (policy, name, message) in [
        (
            RateLimitPolicy::TenSecondly,
            "TEN_SECONDLY_ROLLING",
            "You have reached your ten_secondly_rolling limit.",
        ),
        (
            RateLimitPolicy::Secondly,
            "SECONDLY",
            "You have reached your secondly limit.",
        ),
        (
            RateLimitPolicy::Daily,
            "DAILY",
            "You have reached your daily limit.",
        ),
    ] {
        world.hubspot.arm(Fault::api(FaultKind::RateLimited {
            policy,
            retry_after: None,
        }));
        let body = world.list(&token).await.json();
        assert_eq!(
            (&body["policyName"], &body["message"]),
            (&json!(name), &json!(message))
        );
        assert_eq!(body["errorType"], "RATE_LIMIT");
        assert_eq!(body.get("requestId").is_some(), policy == RateLimitPolicy::Daily);
    }
}

#[tokio::test]
async fn forbidden_executes_nothing() {
    let world = World::new().await;
    let token = world.grant().access_token;
    world.hubspot.arm(
        Fault::api(FaultKind::Forbidden)
            .method("post")
            .path("/crm/v3/objects/deals"),
    );
    assert_eq!(world.list(&token).await.status, 200);
    let body = json!({"properties": {}});
    let answer = world
        .call(&token, Method::POST, "/crm/v3/objects/deals", body)
        .await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["category"]),
        (403, &json!("MISSING_SCOPES"))
    );
    assert_eq!(world.hubspot.ledger().creates_executed, 0);
}

#[tokio::test]
async fn introspection_is_spared_unless_its_path_is_named() {
    let world = World::new().await;
    let refresh_token = world.grant().refresh_token;
    let fields = [
        ("client_id", CLIENT),
        ("client_secret", "sim-secret"),
        ("token", refresh_token.as_str()),
    ];
    let introspect = async || {
        world
            .post_form("/oauth/2026-09/token/introspect", &fields)
            .await
            .status
            .as_u16()
    };
    world.hubspot.arm(Fault::token(FaultKind::Locked).times(0));
    assert_eq!(introspect().await, 200);
    world
        .hubspot
        .arm(Fault::token(FaultKind::Locked).path("/oauth/2026-09/token/introspect"));
    assert_eq!(introspect().await, 423);
}

#[tokio::test]
async fn faults_end_connections_over_http_2_as_well() {
    use http_body_util::{BodyExt, Empty};
    use hyper_util::rt::TokioExecutor;

    let world = World::new().await;
    let token = world.grant().access_token;
    let client: hyper_util::client::legacy::Client<_, Empty<hyper::body::Bytes>> =
        hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .http2_only(true)
            .build_http();
    let call = || {
        let request = http::Request::get(format!("{}/crm/v3/objects/contacts", world.hubspot.base_url()))
            .header("authorization", format!("Bearer {token}"));
        client.request(request.body(Empty::new()).unwrap())
    };
    let response = call().await.unwrap();
    assert_eq!(
        (response.status().as_u16(), response.version()),
        (200, http::Version::HTTP_2)
    );
    let body: Value =
        serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(body["results"], json!([]));
    world
        .hubspot
        .arm(Fault::api(FaultKind::AnswerLostAfterIssue).hub(HUB));
    call().await.unwrap_err();
    world.hubspot.advance(Duration::from_secs(1800));
    assert_eq!(call().await.unwrap().status(), 401);
}
