//! Events, tallies, the export and the overview, as their callers see them.

use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::House;

fn kinds(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap();
    items.iter().map(|item| item["type"].as_str().unwrap()).collect()
}

async fn json(house: &House, key: &str, path: &str) -> Value {
    house.get(key, path).await.expect(200).json()
}

/// A stream of events, read as it comes.
struct Stream {
    socket: TcpStream,
    read: String,
}

impl Stream {
    async fn open(house: &House, key: &str, path: &str, last: Option<i64>) -> Self {
        let mut socket = TcpStream::connect(house.address).await.unwrap();
        let last = last.map_or(String::new(), |id| format!("Last-Event-ID: {id}\r\n"));
        let asked = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost:8484\r\nAuthorization: Bearer {key}\r\n\
             Accept: text/event-stream\r\n{last}\r\n"
        );
        socket.write_all(asked.as_bytes()).await.unwrap();
        let read = String::new();
        Self { socket, read }
    }

    /// Until this was read; `false` where the stream ends before.
    async fn says(&mut self, text: &str) -> bool {
        let mut bytes = [0; 4096];
        while !self.read.contains(text) {
            match self.socket.read(&mut bytes).await {
                Ok(0) | Err(_) => return false,
                Ok(read) => self.read.push_str(&String::from_utf8_lossy(&bytes[..read])),
            }
        }
        true
    }
}

#[tokio::test]
async fn an_event_names_the_request_and_the_key_that_it_happened_for() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let made = house.made_key(json!({"name": "n", "role": "support"})).await;
    let (key, id) = (made["key"].as_str().unwrap(), made["id"].as_str().unwrap());
    let forced = json!({"force": true});
    house
        .post(key, "/v1/connections/c1/refresh", forced)
        .await
        .expect(200);
    let events = json(&house, key, "/v1/connections/c1/events").await;
    assert_eq!(kinds(&events), ["refreshed", "refresh_forced", "connected"]);
    let forced = &events["items"][1];
    assert_eq!(
        (&forced["by"], &forced["request_id"]),
        (&json!(id), &json!("the-same")),
        "{forced}"
    );
    let refreshed = &events["items"][0];
    for (field, said) in [
        ("by", json!(id)),
        ("request_id", json!("the-same")),
        ("reason", json!("forced")),
        ("version_before", json!(1)),
        ("version", json!(2)),
        ("attempt", json!(1)),
        ("failures_before", json!(0)),
        ("app", json!("crm")),
        ("connection", json!("c1")),
    ] {
        assert_eq!(refreshed[field], said, "{field} of {refreshed}");
    }
    assert!(
        refreshed["took_ms"].is_u64() && refreshed["seconds_remaining"].is_i64(),
        "{refreshed}"
    );
    let process = refreshed["process"].as_str().unwrap();
    assert!(
        process.ends_with(&format!(":{}", std::process::id())),
        "{process}"
    );
    assert_eq!(events["items"][2]["by"], "operator", "who imported it");
}

#[tokio::test]
async fn a_calls_event_says_what_was_called_and_with_which_token() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    house.sim.expire_access_tokens(1001);
    house
        .get(
            &house.admin,
            "/gateway/c1/crm/v3/objects/contacts/51?email=ann@example.com",
        )
        .await;
    // It is noted behind the call's answer.
    let told = loop {
        let path = "/v1/events?type=call_unauthorized&request_id=the-same";
        let found = json(&house, &house.admin, path).await;
        if let Some(told) = found["items"].get(0) {
            break told.clone();
        }
        tokio::task::yield_now().await;
    };
    for (field, said) in [
        ("class", json!("expired")),
        ("status_code", json!(401)),
        ("method", json!("GET")),
        ("endpoint", json!("/crm/v3/objects/contacts/{id}")),
        ("token_version", json!(1)),
    ] {
        assert_eq!(told[field], said, "{field} of {told}");
    }
    assert!(!told.to_string().contains("ann@example.com"), "{told}");
    let correlation = told["provider_correlation_id"].as_str().unwrap();
    let by_correlation = format!("/v1/events?provider_correlation_id={correlation}");
    assert!(kinds(&json(&house, &house.admin, &by_correlation).await).contains(&"call_unauthorized"));
}

#[tokio::test]
async fn events_are_read_as_they_came_and_only_within_a_keys_limits() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    house.import("c2", "globex", 1002).await;
    let limited = house
        .key(json!({"name": "n", "role": "support", "customers": ["globex"]}))
        .await;
    let all = json(&house, &house.admin, "/v1/events?after=0").await;
    assert_eq!(kinds(&all), ["connected", "connected"]);
    assert_eq!(all["next_cursor"], Value::Null, "nothing more for now");
    let last = all["items"][1]["id"].as_i64().unwrap();
    assert_eq!(all["read_to"], last);
    let none = json(&house, &house.admin, &format!("/v1/events?after={last}")).await;
    assert_eq!((kinds(&none).len(), &none["read_to"]), (0, &json!(last)));
    let own = json(&house, &limited, "/v1/events").await;
    assert_eq!(own["items"].as_array().unwrap().len(), 1);
    assert_eq!(own["items"][0]["connection"], "c2");
    let other = json(&house, &limited, "/v1/events?connection=c1").await;
    assert_eq!(kinds(&other).len(), 0, "as if it did not exist");
    house
        .get(&limited, "/v1/connections/c1/export")
        .await
        .refused(404, "unknown_connection");
    house
        .get(&house.admin, "/v1/events?type=nothing")
        .await
        .refused(400, "bad_request");
    let gateway = house.key(json!({"name": "n", "role": "gateway"})).await;
    house.get(&gateway, "/v1/events").await.refused(403, "forbidden");
}

#[tokio::test]
async fn a_stream_tells_the_same_events_and_goes_on_where_it_stopped() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let mut live = Stream::open(&house, &house.admin, "/v1/events", None).await;
    assert!(live.says(": still here").await);
    house.import("c2", "globex", 1002).await;
    assert!(live.says("\"connection\":\"c2\"").await);
    assert!(
        live.read.contains("content-type: text/event-stream"),
        "{}",
        live.read
    );
    assert!(live.read.contains("event: connected\n"), "{}", live.read);
    assert!(
        !live.read.contains("\"connection\":\"c1\""),
        "only what is new: {}",
        live.read
    );
    let all = json(&house, &house.admin, "/v1/events?after=0").await;
    let first = all["items"][0]["id"].as_i64().unwrap();
    let mut again = Stream::open(&house, &house.admin, "/v1/events", Some(first)).await;
    assert!(again.says(&format!("id: {}\n", all["items"][1]["id"])).await);
    assert!(!again.read.contains(&format!("id: {first}\n")), "{}", again.read);
}

#[tokio::test]
async fn a_stream_ends_with_its_key_and_with_the_service() {
    // The last chunk; the connection itself stays open for more.
    const END: &str = "\r\n0\r\n\r\n";
    let house = House::build().await;
    let made = house.made_key(json!({"name": "n", "role": "support"})).await;
    let mut own = Stream::open(&house, made["key"].as_str().unwrap(), "/v1/events", None).await;
    let mut another = Stream::open(&house, &house.admin, "/v1/events", None).await;
    assert!(own.says(": still here").await && another.says(": still here").await);
    let path = format!("/v1/keys/{}", made["id"].as_str().unwrap());
    house.call(&house.admin, "DELETE", &path, None).await.expect(204);
    assert!(
        own.says(END).await,
        "a revoked key reads no further: {}",
        own.read
    );
    house.stop().await;
    assert!(another.says(END).await, "{}", another.read);
}

#[tokio::test]
async fn what_calls_did_is_counted_and_shown_at_once() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    for _ in 0..3 {
        house
            .get(&house.admin, "/gateway/c1/crm/v3/objects/contacts")
            .await
            .expect(200);
    }
    house
        .get(&house.admin, "/v1/connections/c1/token")
        .await
        .expect(200);
    let tallies = json(&house, &house.admin, "/v1/connections/c1/tallies").await;
    let counts = &tallies["hours"][0]["counts"];
    assert_eq!(counts["class:ok"], 3, "{tallies}");
    assert_eq!(counts["ttl:below_1800"], 3, "{tallies}");
    assert_eq!(counts["handed_out"], 1, "{tallies}");
    let overview = json(&house, &house.admin, "/v1/overview").await;
    let app = &overview["apps"][0];
    assert_eq!(
        (&app["app"], &app["health"]),
        (&json!("crm"), &json!("ok")),
        "{overview}"
    );
    assert_eq!(app["connections"]["healthy"], 1, "{overview}");
    assert_eq!(app["calls_by_ttl_last_day"]["below_1800"], 3, "{overview}");
    assert_eq!(overview["reconnect_required"], 0);
    assert_eq!(overview["dead_letters"], json!({"count": 0, "oldest_at": null}));
}

#[tokio::test]
async fn a_connection_alone_tells_what_is_left_of_its_budgets() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let record = json(&house, &house.admin, "/v1/connections/c1").await;
    assert_eq!(record["budget"], Value::Null, "no call was made");
    let call = "/gateway/c1/crm/v3/objects/contacts";
    // The first answer names the limit, the second call is counted by it.
    for _ in 0..2 {
        house.get(&house.admin, call).await.expect(200);
    }
    let record = json(&house, &house.admin, "/v1/connections/c1").await;
    let calls = &record["budget"]["calls"];
    let (limit, left) = (calls["limit"].as_u64().unwrap(), calls["left"].as_u64().unwrap());
    assert!(left < limit, "{record}");
    assert_eq!(calls["per_seconds"], 10.0, "{record}");
    assert_eq!(
        (&calls["rest_until"], &record["budget"]["searches"]),
        (&Value::Null, &Value::Null)
    );
    let list = json(&house, &house.admin, "/v1/connections").await;
    assert_eq!(list["items"][0]["budget"], Value::Null);
}

#[tokio::test]
async fn an_export_holds_what_the_provider_needs_and_nothing_about_the_customer() {
    let house = House::build().await;
    house.import("c1", "acme-the-customer", 1001).await;
    house
        .post(&house.admin, "/v1/connections/c1/refresh", json!({"force": true}))
        .await
        .expect(200);
    let export = json(&house, &house.admin, "/v1/connections/c1/export").await;
    assert!(!export.to_string().contains("acme-the-customer"), "{export}");
    assert!(
        !export.to_string().contains("/connect/"),
        "a link gives a right: {export}"
    );
    assert_eq!(export["connection"]["account"]["id"], "1001");
    let versions: Vec<_> = export["versions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|version| version["version"].as_i64().unwrap())
        .collect();
    assert_eq!(versions, [2, 1]);
    assert_eq!(
        kinds(&json!({"items": export["events"]})),
        ["refreshed", "refresh_forced", "connected"]
    );
    let asked = json(&house, &house.admin, "/v1/connections/c1/export?customer=true").await;
    assert_eq!(asked["connection"]["customer"], "acme-the-customer");
}

#[tokio::test]
async fn connections_are_listed_by_what_people_look_for() {
    let house = House::build().await;
    for (id, customer, hub) in [("c1", "b", 1001), ("c2", "a", 1002), ("c3", "c", 1003)] {
        house.import(id, customer, hub).await;
    }
    let walk = async |sort: &str| -> String {
        let mut found = String::new();
        let mut cursor = String::new();
        loop {
            let path = format!("/v1/connections?sort={sort}&limit=1{cursor}");
            let page = json(&house, &house.admin, &path).await;
            found.push_str(page["items"][0]["id"].as_str().unwrap());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return found,
            }
        }
    };
    assert_eq!(walk("customer").await, "c2c1c3");
    assert_eq!(walk("-customer").await, "c3c1c2");
    assert_eq!(walk("created").await, "c1c2c3");
    let page = json(&house, &house.admin, "/v1/connections?sort=customer&limit=1").await;
    let cursor = page["next_cursor"].as_str().unwrap();
    house
        .get(
            &house.admin,
            &format!("/v1/connections?sort=created&cursor={cursor}"),
        )
        .await
        .refused(400, "bad_request");
    house
        .get(&house.admin, "/v1/connections?sort=luck")
        .await
        .refused(400, "bad_request");
}

#[tokio::test]
async fn more_streams_than_there_may_be_are_refused_and_hold_nobody_up() {
    let house = House::build().await;
    // None of them is read beyond its first words.
    let mut streams = Vec::new();
    for _ in 0..64 {
        let mut stream = Stream::open(&house, &house.admin, "/v1/events", None).await;
        assert!(stream.says(": still here").await);
        streams.push(stream);
    }
    let mut refused = Stream::open(&house, &house.admin, "/v1/events", None).await;
    assert!(refused.says("\r\n\r\n").await);
    let head = refused.read.to_ascii_lowercase();
    assert!(
        head.starts_with("http/1.1 503") && head.contains("retry-after: 1\r\n"),
        "{head}"
    );
    assert!(refused.says("\"code\":\"overloaded\"").await);
    // Pages are there for everybody, and so is a place that somebody leaves.
    house.import("c1", "acme", 1001).await;
    let page = json(&house, &house.admin, "/v1/events?after=0").await;
    assert_eq!(kinds(&page), ["connected"]);
    streams.pop();
    loop {
        let mut next = Stream::open(&house, &house.admin, "/v1/events?after=0", None).await;
        if next.says("\"connection\":\"c1\"").await {
            break;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_stream_that_goes_on_tells_each_event_once() {
    let house = House::build().await;
    let mut told: Vec<String> = Vec::new();
    let mut last = 0;
    for round in 0..4_u64 {
        let hub = 1001 + round;
        // While nobody reads, and while somebody does.
        house
            .import(&format!("away-{round}"), &format!("a{round}"), hub * 2)
            .await;
        let mut stream = Stream::open(&house, &house.admin, "/v1/events", Some(last)).await;
        assert!(stream.says(&format!("\"connection\":\"away-{round}\"")).await);
        house
            .import(&format!("there-{round}"), &format!("b{round}"), hub * 2 + 1)
            .await;
        assert!(stream.says(&format!("\"connection\":\"there-{round}\"")).await);
        let ids = stream.read.lines().filter_map(|line| line.strip_prefix("id: "));
        told.extend(ids.map(str::to_owned));
        last = told.last().unwrap().parse().unwrap();
    }
    let all = json(&house, &house.admin, "/v1/events?after=0").await;
    let all: Vec<_> = all["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["id"].to_string())
        .collect();
    assert_eq!((told, all.len()), (all.clone(), 8));
}

#[tokio::test]
async fn events_are_found_by_customer_and_since_a_time() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    house.import("c2", "globex", 1002).await;
    let of = async |query: &str| json(&house, &house.admin, &format!("/v1/events?{query}")).await;
    let found = of("customer=globex").await;
    assert_eq!(found["items"].as_array().unwrap().len(), 1);
    assert_eq!(found["items"][0]["connection"], "c2");
    assert_eq!(kinds(&of("customer=globex&customer=acme").await).len(), 2);
    assert_eq!(kinds(&of("since=2020-01-01T00:00:00Z").await).len(), 2);
    assert_eq!(kinds(&of("since=2200-01-01T00:00:00Z").await).len(), 0);
    let wrong = house.get(&house.admin, "/v1/events?since=yesterday").await;
    wrong.refused(400, "bad_request");
}

#[tokio::test]
async fn a_report_is_on_record_with_who_made_it_before_what_follows_from_it() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let made = house.made_key(json!({"name": "n", "role": "tokens"})).await;
    let (key, id) = (made["key"].as_str().unwrap(), &made["id"]);
    house.sim.expire_access_tokens(1001);
    let body = json!({"version": 1, "status": 401, "body": {"category": "EXPIRED_AUTHENTICATION"}});
    house
        .post(key, "/v1/connections/c1/token/rejected", body)
        .await
        .expect(200);
    let events = json(&house, &house.admin, "/v1/events?after=0&connection=c1").await;
    let told = kinds(&events);
    let place = |kind| told.iter().position(|told| *told == kind);
    assert!(
        place("token_reported") < place("refreshed") && place("token_reported").is_some(),
        "{told:?}"
    );
    let report = &events["items"][place("token_reported").unwrap()];
    assert_eq!(
        (&report["by"], &report["request_id"]),
        (id, &json!("the-same")),
        "{report}"
    );
}

#[tokio::test]
async fn a_write_that_is_not_sent_names_who_asked_for_it() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let made = house.made_key(json!({"name": "n", "role": "gateway"})).await;
    let create = || {
        let body = json!({"properties": {"email": "ada@example.com"}}).to_string();
        Request::post("/gateway/c1/crm/v3/objects/contacts")
            .header(
                "authorization",
                format!("Bearer {}", made["key"].as_str().unwrap()),
            )
            .header("content-type", "application/json")
            .header("evergrant-guard", "read-before-write;property=email")
            .body(Full::from(body))
            .unwrap()
    };
    for _ in 0..2 {
        house.send(create()).await.expect(201);
    }
    // It is noted behind the call's answer.
    let told = loop {
        let found = json(&house, &house.admin, "/v1/events?type=write_suppressed").await;
        if let Some(told) = found["items"].get(0) {
            break told.clone();
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(told["by"], made["id"], "{told}");
    assert!(told["request_id"].is_string(), "{told}");
}
