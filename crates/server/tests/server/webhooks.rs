//! What receivers are told by a running service, and what operators see of it.

use std::time::Duration;

use evergrant_domain::webhook::{Endpoint, Notice, WebhookSecret};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use url::Url;

use crate::harness::{House, LOG};

/// Somebody who is told, and answers with this status.
struct Receiver {
    url: Url,
    told: mpsc::UnboundedReceiver<Value>,
}

impl Receiver {
    async fn answering(status: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/in?key=canary-query", listener.local_addr().unwrap());
        let (tell, told) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut text = String::new();
                let told = loop {
                    let mut buffer = [0; 8192];
                    let read = stream.read(&mut buffer).await.unwrap();
                    text.push_str(&String::from_utf8_lossy(&buffer[..read]));
                    assert!(read > 0, "{text}");
                    // Whole as soon as it can be read: a part of an object is none.
                    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
                    if let Ok(told) = serde_json::from_str(body) {
                        break told;
                    }
                };
                tell.send(told).unwrap();
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Self {
            url: Url::parse(&url).unwrap(),
            told,
        }
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint {
            url: self.url.clone(),
            secrets: vec![WebhookSecret::parse("canary-canary-canary-canary").unwrap()],
            notices: Notice::ALL.to_vec(),
            apps: vec![],
        }
    }

    async fn next(&mut self) -> Value {
        let told = tokio::time::timeout(Duration::from_secs(20), self.told.recv()).await;
        told.expect("it is told").unwrap()
    }
}

/// Tells a receiver, once the service knows from where on.
async fn telling(house: &House, receiver: &Receiver) {
    house.service.tell(vec![receiver.endpoint()]);
    let store = house.service.engine().keeper().store().clone();
    while store.webhook_position().await.unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn listed(house: &House, key: &str, query: &str) -> Value {
    house
        .get(key, &format!("/v1/webhooks/deliveries{query}"))
        .await
        .expect(200)
        .json()["items"]
        .clone()
}

#[tokio::test]
async fn a_receiver_is_told_with_the_record_and_a_link_and_no_secret() {
    let house = House::build().await;
    let mut receiver = Receiver::answering("204 No Content").await;
    telling(&house, &receiver).await;
    house.import("c1", "acme", 1001).await;
    let told = receiver.next().await;
    assert_eq!(told["type"], "connection.connected");
    assert_eq!(told["data"]["connection"]["customer"], "acme");
    assert_eq!(told["data"]["connection"]["account"]["id"], "1001");
    let link = told["data"]["reconnect_url"].as_str().unwrap();
    house.sim.uninstall("sim-client", 1001);
    house
        .post(&house.admin, "/v1/connections/c1/refresh", json!({"force": true}))
        .await
        .refused(424, "reconnect_required");
    let told = receiver.next().await;
    assert_eq!(told["type"], "connection.reconnect_required");
    assert_eq!(told["data"]["connection"]["status_reason"], "grant_refused");
    assert!(told["data"]["action"].as_str().unwrap().contains("reconnect_url"));
    let page = crate::harness::bare("GET", link.strip_prefix(crate::harness::PUBLIC).unwrap());
    house.send(page).await.expect(200);
    // What is erased with its history is told of before.
    house
        .call(&house.admin, "DELETE", "/v1/connections/c1?purge=true", None)
        .await
        .expect(202);
    let told = receiver.next().await;
    assert_eq!(told["type"], "connection.disconnected");
    assert_eq!(told["data"]["connection"]["id"], "c1");
    assert!(!LOG.text().contains("canary-query") && !LOG.text().contains("canary-canary"));
}

#[tokio::test]
async fn dead_deliveries_are_listed_within_limits_and_sent_again() {
    let house = House::build().await;
    let mut receiver = Receiver::answering("410 Gone").await;
    telling(&house, &receiver).await;
    house.import("c1", "acme", 1001).await;
    receiver.next().await;
    let dead = loop {
        match listed(&house, &house.admin, "?state=dead")
            .await
            .as_array()
            .unwrap()
            .as_slice()
        {
            [dead] => break dead.clone(),
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    assert_eq!(
        (dead["last_status"].as_u64(), dead["tries"].as_u64()),
        (Some(410), Some(1))
    );
    assert_eq!(dead["connection"], "c1");
    assert!(!dead.to_string().contains("canary"), "{dead}");
    assert!(
        listed(&house, &house.admin, "?state=pending&state=delivered")
            .await
            .as_array()
            .unwrap()
            .is_empty()
    );
    let path = format!("/v1/webhooks/deliveries/{}/resend", dead["id"].as_str().unwrap());

    let limited = house
        .key(json!({"name": "n", "role": "support", "customers": ["globex"]}))
        .await;
    assert_eq!(listed(&house, &limited, "").await, json!([]));
    let overview = async |key: &str| house.get(key, "/v1/overview").await.expect(200).json();
    let letters = overview(&house.admin).await["dead_letters"].clone();
    assert_eq!(
        letters,
        json!({"count": 1, "oldest_at": dead["finished_at"]}),
        "what needs a person"
    );
    assert_eq!(overview(&limited).await["dead_letters"]["count"], 0);
    house
        .post(&limited, &path, json!({}))
        .await
        .refused(404, "unknown_delivery");
    let gateway = house.key(json!({"name": "n", "role": "gateway"})).await;
    house
        .get(&gateway, "/v1/webhooks/deliveries")
        .await
        .refused(403, "forbidden");
    house
        .post(&gateway, &path, json!({}))
        .await
        .refused(403, "forbidden");

    let support = house.key(json!({"name": "n", "role": "support"})).await;
    let again = house.post(&support, &path, json!({})).await.expect(200).json();
    assert_eq!(
        (again["state"].as_str(), again["tries"].as_u64()),
        (Some("pending"), Some(0))
    );
    receiver.next().await;
    house
        .post(&support, "/v1/webhooks/deliveries/msg_none/resend", json!({}))
        .await
        .refused(404, "unknown_delivery");
    house
        .get(&support, "/v1/webhooks/deliveries?state=lost")
        .await
        .refused(400, "bad_request");
    house
        .get(&support, "/v1/webhooks/deliveries?cursor=x")
        .await
        .refused(400, "bad_request");
}

#[tokio::test]
async fn receivers_are_tried_out_by_an_operator() {
    let house = House::build().await;
    let (mut takes, refuses) = (
        Receiver::answering("200 OK").await,
        Receiver::answering("500 No").await,
    );
    house.service.tell(vec![takes.endpoint(), refuses.endpoint()]);
    let tried = house
        .post(&house.admin, "/v1/webhooks/test", json!({}))
        .await
        .expect(200)
        .json();
    let results: Vec<_> = tried["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["delivered"].clone())
        .collect();
    assert_eq!(results, [json!(true), json!(false)]);
    assert_eq!(tried["items"][1]["status"], 500);
    assert_eq!(takes.next().await["type"], "evergrant.test");
    assert!(!tried.to_string().contains("canary"));
    let support = house.key(json!({"name": "n", "role": "support"})).await;
    house
        .post(&support, "/v1/webhooks/test", json!({}))
        .await
        .refused(403, "forbidden");
}
