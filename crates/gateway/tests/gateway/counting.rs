//! What is counted of a call.

use bytes::Bytes;
use evergrant_domain::api_answer::Class;
use evergrant_domain::tally::{Counted, Tally};
use evergrant_domain::{ConnectionId, Timestamp};
use evergrant_gateway::RefusalKind;
use evergrant_keeper::KeepError;
use evergrant_metrics::Exposition;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hubspot_sim::{Fault, FaultKind};

use crate::faulty::Moment;
use crate::world::{CONTACTS, HUB, World, body, refused};

/// What is counted under this name and with these labels.
fn counted(world: &World, series: &str) -> Option<f64> {
    let mut text = Exposition::new();
    world.keeper.metrics().write(&mut text);
    let text = text.into_text();
    let found = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    found.map(|value| value.parse().unwrap())
}

#[tokio::test]
async fn a_call_is_counted_once_whatever_came_of_it_and_however_often_it_was_sent() {
    let world = World::new().await;
    body(world.get(CONTACTS).await.unwrap()).await;
    world.hubspot.expire_access_tokens(HUB);
    body(world.get(CONTACTS).await.unwrap()).await;
    world
        .hubspot
        .arm(Fault::api(FaultKind::AnswerLostAfterIssue).times(1));
    world.create("r1").await.unwrap_err();
    let unknown = ConnectionId::parse("nobody").unwrap();
    let request = Request::get("/").body(Full::new(Bytes::new())).unwrap();
    world.gateway.call(&unknown, CONTACTS, request).await.unwrap_err();
    for (series, expected) in [
        (
            "evergrant_calls_total{app=\"crm\",class=\"ok\",code_class=\"2xx\"}",
            1.0,
        ),
        (
            "evergrant_calls_total{app=\"crm\",class=\"expired\",code_class=\"2xx\"}",
            1.0,
        ),
        (
            "evergrant_calls_total{app=\"crm\",class=\"timeout\",code_class=\"none\"}",
            1.0,
        ),
        (
            "evergrant_calls_total{app=\"\",class=\"client_error\",code_class=\"refused\"}",
            1.0,
        ),
        ("evergrant_call_duration_seconds_count{app=\"crm\"}", 3.0),
        ("evergrant_upstream_duration_seconds_count{app=\"crm\"}", 3.0),
        ("evergrant_call_duration_seconds_count{app=\"\"}", 1.0),
        ("evergrant_call_token_ttl_seconds_count{app=\"crm\"}", 3.0),
        (
            "evergrant_call_token_ttl_seconds_bucket{app=\"crm\",le=\"600\"}",
            0.0,
        ),
        (
            "evergrant_call_token_ttl_seconds_bucket{app=\"crm\",le=\"1800\"}",
            3.0,
        ),
        ("evergrant_redemptions_total{app=\"crm\",outcome=\"issued\"}", 1.0),
        (
            "evergrant_redemptions_total{app=\"crm\",outcome=\"grant_refused\"}",
            0.0,
        ),
    ] {
        assert_eq!(counted(&world, series), Some(expected), "{series}");
    }
    assert_eq!(
        counted(&world, "evergrant_upstream_duration_seconds_count{app=\"\"}"),
        None
    );
}

#[tokio::test]
async fn a_call_is_in_flight_until_its_answer_has_been_read() {
    let world = World::new().await;
    let in_flight = || counted(&world, "evergrant_calls_in_flight").unwrap();
    let read = world.get(CONTACTS).await.unwrap();
    let dropped = world.get(CONTACTS).await.unwrap();
    assert!((in_flight() - 2.0).abs() < f64::EPSILON);
    read.response.into_body().collect().await.unwrap();
    assert!((in_flight() - 1.0).abs() < f64::EPSILON);
    drop(dropped);
    assert!(in_flight().abs() < f64::EPSILON);
}

#[tokio::test]
async fn how_long_a_job_was_queued_is_counted_where_its_call_says_so() {
    let world = World::new().await;
    let now = world.keeper.clock().now().millis();
    for enqueued_at in [Some(now - 3_000_000), Some(now + 60_000), None] {
        let mut request = Request::get("/");
        if let Some(at) = enqueued_at {
            request = request.header("evergrant-enqueued-at", at);
        }
        let request = request.body(Full::new(Bytes::new())).unwrap();
        body(world.gateway.call(&world.id, CONTACTS, request).await.unwrap()).await;
    }
    for (within, expected) in [("0.1", 1.0), ("1800", 1.0), ("3600", 2.0), ("+Inf", 2.0)] {
        let series = format!("evergrant_enqueue_delay_seconds_bucket{{le=\"{within}\"}}");
        assert_eq!(counted(&world, &series), Some(expected), "{series}");
    }
}

/// What the history counted of the connection's calls: how many ended in the provider's trouble, and which were refused here.
async fn provider_and_refused(world: &World) -> (u32, Vec<(Class, u32)>) {
    world.keeper.flush_soon().await;
    let hours = world.keeper.store().tallies(&world.id, Timestamp::from_millis(0));
    let mut tally = Tally::default();
    for hour in hours.await.unwrap() {
        tally.merge(&hour.tally);
    }
    let refused = |(counted, times)| match counted {
        Counted::Refused(class) => Some((class, times)),
        _ => None,
    };
    let trouble = [Class::Unavailable, Class::Timeout].map(|class| tally.times(Counted::Class(class)));
    (trouble.iter().sum(), tally.iter().filter_map(refused).collect())
}

// Whoever asks about one lost answer a hundred times must not read like a provider that is down.
#[tokio::test]
async fn to_be_told_again_what_nobody_knows_is_no_new_trouble() {
    let world = World::new().await;
    world.hubspot.arm(Fault::api(FaultKind::AnswerLostAfterIssue));
    for _ in 0..3 {
        world
            .send_with("POST", CONTACTS, &[("idempotency-key", "k1")], "{}")
            .await
            .unwrap_err();
    }
    assert_eq!(
        provider_and_refused(&world).await,
        (1, vec![(Class::ClientError, 2)])
    );
    for (series, expected) in [
        (
            "evergrant_calls_total{app=\"crm\",class=\"timeout\",code_class=\"none\"}",
            1.0,
        ),
        (
            "evergrant_calls_total{app=\"crm\",class=\"client_error\",code_class=\"refused\"}",
            2.0,
        ),
    ] {
        assert_eq!(counted(&world, series), Some(expected), "{series}");
    }
}

#[tokio::test]
async fn a_store_that_is_away_is_not_counted_as_the_providers_trouble_and_a_provider_that_is_is() {
    let world = World::new().await;
    let write = async |key: &str| {
        world
            .send_with("POST", CONTACTS, &[("idempotency-key", key)], "{}")
            .await
    };
    for step in ["reserve_write", "write_leaves"] {
        world.faults.fail(step, Moment::Before);
        let (kind, attempts) = refused(write(step).await);
        assert!(
            matches!(kind, RefusalKind::Keep(KeepError::StoreUnavailable { .. })) && attempts == 0,
            "{kind:?}"
        );
        world.faults.heal();
    }
    assert_eq!(
        provider_and_refused(&world).await,
        (0, vec![(Class::Unavailable, 2)])
    );
    let refused_here = "evergrant_calls_total{app=\"crm\",class=\"unavailable\",code_class=\"refused\"}";
    assert_eq!(counted(&world, refused_here), Some(2.0));
    world.hubspot.arm(
        Fault::api(FaultKind::Status {
            code: 503,
            location: None,
        })
        .times(1),
    );
    assert_eq!(write("answered").await.unwrap().response.status(), 503);
    world
        .hubspot
        .arm(Fault::api(FaultKind::AnswerLostAfterIssue).times(1));
    write("lost").await.unwrap_err();
    assert_eq!(
        provider_and_refused(&world).await,
        (2, vec![(Class::Unavailable, 2)])
    );
}
