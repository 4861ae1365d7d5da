//! The webhooks journal: who may read it, what it holds, for how long.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use crate::browser::{Answer, CLIENT, HUB, World};

const SUBSCRIPTIONS: &str = "/webhooks-journal/subscriptions/2026-03";
const JOURNAL: &str = "/webhooks-journal/journal/2026-03";

async fn own_token(world: &World, scope: &str) -> String {
    let fields = [
        ("grant_type", "client_credentials"),
        ("client_id", CLIENT),
        ("client_secret", "sim-secret"),
        ("scope", scope),
    ];
    let answer = world.post_form("/oauth/2026-09/token", &fields).await.json();
    answer["access_token"].as_str().unwrap().to_owned()
}

async fn whole(world: &World) -> String {
    own_token(
        world,
        "developer.webhooks_journal.read developer.webhooks_journal.subscriptions.write",
    )
    .await
}

async fn subscribe(world: &World, token: &str) -> Answer {
    let wish =
        json!({"subscriptionType": "APP_LIFECYCLE_EVENT", "eventTypeId": "4-1916193", "properties": []});
    world.call(token, Method::POST, SUBSCRIPTIONS, wish).await
}

async fn at(world: &World, token: &str, place: &str) -> Answer {
    world
        .call(token, Method::GET, &format!("{JOURNAL}/{place}"), Value::Null)
        .await
}

#[tokio::test]
async fn an_uninstall_is_written_for_who_has_subscribed_and_read_page_by_page() {
    let world = World::new().await;
    let token = whole(&world).await;
    world.hubspot.uninstall(CLIENT, 7);
    assert_eq!(
        at(&world, &token, "earliest").await.status,
        204,
        "nobody had subscribed"
    );
    assert_eq!(subscribe(&world, &token).await.status, 201);
    assert_eq!(subscribe(&world, &token).await.status, 409);
    world.hubspot.uninstall(CLIENT, HUB);
    world.hubspot.uninstall(CLIENT, 2002);
    let first = at(&world, &token, "earliest").await.json();
    let url = first["url"]
        .as_str()
        .unwrap()
        .strip_prefix(&world.hubspot.base_url())
        .unwrap()
        .to_owned();
    let page = world.get(&url).await.json();
    assert_eq!(page["journalEvents"][0]["action"], "APP_UNINSTALL");
    assert_eq!(page["journalEvents"][0]["portalId"], HUB);
    assert_eq!(
        world.call(&token, Method::GET, &url, Value::Null).await.status,
        400,
        "no credentials"
    );
    let next = format!("offset/{}/next", first["currentOffset"].as_str().unwrap());
    let second = at(&world, &token, &next).await.json();
    assert_eq!(
        at(&world, &token, "latest").await.json()["currentOffset"],
        second["currentOffset"]
    );
    let next = format!("offset/{}/next", second["currentOffset"].as_str().unwrap());
    assert_eq!(at(&world, &token, &next).await.status, 204);
    let ledger = world.hubspot.ledger();
    assert_eq!((ledger.journal_subscriptions, ledger.journal_pages), (2, 1));
}

#[tokio::test]
async fn only_an_app_with_the_scopes_may_read_it() {
    let world = World::new().await;
    assert_eq!(world.get(&format!("{JOURNAL}/earliest")).await.status, 401);
    let grant = world.grant();
    assert_eq!(at(&world, &grant.access_token, "earliest").await.status, 403);
    let reads = own_token(&world, "developer.webhooks_journal.read").await;
    assert_eq!(at(&world, &reads, "earliest").await.status, 204);
    assert_eq!(subscribe(&world, &reads).await.status, 403);
    world.hubspot.advance(Duration::from_secs(1800));
    assert_eq!(at(&world, &reads, "earliest").await.status, 401);
}

#[tokio::test]
async fn what_is_three_days_old_is_gone_and_so_is_its_place() {
    let world = World::new().await;
    subscribe(&world, &whole(&world).await).await;
    world.hubspot.uninstall(CLIENT, HUB);
    let token = whole(&world).await;
    let first = at(&world, &token, "earliest").await.json();
    world.hubspot.advance(Duration::from_secs(3 * 24 * 3600));
    let token = whole(&world).await;
    assert_eq!(at(&world, &token, "earliest").await.status, 204);
    let next = format!("offset/{}/next", first["currentOffset"].as_str().unwrap());
    assert_eq!(at(&world, &token, &next).await.status, 404);
}
