//! Who may do what, and what others see of it.

use evergrant_config::LogCalls;
use evergrant_domain::access::{Limits, Role};
use evergrant_store::contract::ApiKey;
use http::{Request, header};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::harness::{House, bare};

/// Every route that takes a key, with a body that is right, and the roles that may use it.
fn routes() -> Vec<(&'static str, &'static str, Option<Value>, &'static [&'static str])> {
    const TOKENS: &[&str] = &["tokens", "admin"];
    const SUPPORT: &[&str] = &["support", "admin"];
    const ADMIN: &[&str] = &["admin"];
    vec![
        ("GET", "/v1/connections", None, SUPPORT),
        ("GET", "/v1/connections/c1", None, SUPPORT),
        (
            "PATCH",
            "/v1/connections/c1",
            Some(json!({"labels": {"a": "b"}})),
            SUPPORT,
        ),
        ("GET", "/v1/connections/c1/events", None, SUPPORT),
        ("POST", "/v1/connections/c1/refresh", None, SUPPORT),
        ("POST", "/v1/connections/c1/reconnect-link", None, SUPPORT),
        ("GET", "/v1/connections/c1/token", None, TOKENS),
        (
            "POST",
            "/v1/connections/c1/token/rejected",
            Some(json!({"version": 1, "status": 429})),
            TOKENS,
        ),
        (
            "POST",
            "/v1/tokens/batch",
            Some(json!({"connections": ["c1"]})),
            TOKENS,
        ),
        (
            "POST",
            "/v1/connect-sessions",
            Some(json!({"app": "crm", "customer": "acme"})),
            TOKENS,
        ),
        ("GET", "/v1/connect-sessions/SESSION", None, TOKENS),
        (
            "POST",
            "/v1/connections",
            Some(json!({"app": "crm", "customer": "x", "kind": "static", "access_token": "TOKEN"})),
            TOKENS,
        ),
        ("GET", "/v1/apps", None, SUPPORT),
        ("POST", "/v1/apps/crm/check", None, SUPPORT),
        (
            "POST",
            "/v1/explain",
            Some(json!({"text": "HTTP/1.1 401"})),
            SUPPORT,
        ),
        ("GET", "/v1/keys", None, ADMIN),
        (
            "POST",
            "/v1/keys",
            Some(json!({"name": "n", "role": "gateway"})),
            ADMIN,
        ),
        (
            "GET",
            "/gateway/c1/crm/v3/objects/contacts",
            None,
            &["gateway", "tokens", "admin"],
        ),
        ("DELETE", "/v1/connections/c9", None, ADMIN),
        ("DELETE", "/v1/keys/KEY", None, ADMIN),
    ]
}

#[tokio::test]
async fn every_route_is_open_to_the_roles_of_the_table_and_closed_to_all_others() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let session = house
        .operate(
            "POST",
            "/v1/connect-sessions",
            Some(json!({"app": "crm", "customer": "acme"})),
        )
        .await;
    let session = session.json()["id"].as_str().unwrap().to_owned();
    for role in ["gateway", "tokens", "support", "metrics", "admin"] {
        let key = house.key(json!({"name": role, "role": role})).await;
        for (method, path, body, roles) in routes() {
            let doomed = house.made_key(json!({"name": "doomed", "role": "gateway"})).await;
            if path.ends_with("/c9") {
                house.operate("POST", "/v1/connections", Some(json!({
                    "app": "crm", "id": "c9", "customer": "y", "kind": "static", "access_token": "static-token-of-c9"
                }))).await;
            }
            let path = path
                .replace("SESSION", &session)
                .replace("KEY", doomed["id"].as_str().unwrap());
            let body = body.map(|body| {
                serde_json::from_str(&body.to_string().replace("TOKEN", &house.sim.static_token(1001)))
                    .unwrap()
            });
            let answer = house.call(&key, method, &path, body).await;
            if roles.contains(&role) {
                assert!(
                    answer.status.is_success(),
                    "{role} {method} {path}: {} {}",
                    answer.status,
                    answer.text()
                );
            } else {
                answer.refused(403, "forbidden");
            }
        }
    }
}

#[tokio::test]
async fn without_a_valid_key_every_route_answers_401_and_nothing_goes_upstream() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let calls_before = house.sim.ledger().api_calls;
    let valid = house.key(json!({"name": "n", "role": "admin"})).await;
    for (method, path, body, _) in routes() {
        house
            .call("", method, path, body)
            .await
            .refused(401, "invalid_api_key");
    }
    let unknown = format!("evg_{}", "A".repeat(43));
    let too_long = format!("{valid}{}", "A".repeat(10_000));
    for key in [
        unknown.as_str(),
        &valid[..valid.len() - 1],
        &too_long,
        "evg_",
        "x",
        "null",
        "[]",
    ] {
        house
            .get(key, "/gateway/c1/crm/v3/objects/contacts")
            .await
            .refused(401, "invalid_api_key");
        house
            .get(key, "/v1/connections")
            .await
            .refused(401, "invalid_api_key");
    }
    let bearer = format!("Bearer {valid}");
    let twice = Request::get("/v1/connections")
        .header(header::AUTHORIZATION, &bearer)
        .header(header::AUTHORIZATION, &bearer)
        .body(Full::default())
        .unwrap();
    house.send(twice).await.refused(401, "invalid_api_key");
    let elsewhere = [
        ("x-api-key", valid.as_str()),
        ("cookie", &format!("authorization={bearer}")),
        ("authorization", &format!("Basic {valid}")),
        ("user-agent", "kube-probe/1.30"),
    ];
    for (name, value) in elsewhere {
        let request = Request::get(format!("/v1/connections?api_key={valid}")).header(name, value);
        house
            .send(request.body(Full::default()).unwrap())
            .await
            .refused(401, "invalid_api_key");
    }
    for path in [
        "/v1",
        "/v1/",
        "/v1/nothing",
        "/gateway",
        "/gateway/",
        "/gateway/c1/healthz",
        "/v1/../healthz",
    ] {
        house
            .send(bare("GET", path))
            .await
            .refused(401, "invalid_api_key");
    }
    assert_eq!(house.sim.ledger().api_calls, calls_before);
}

#[tokio::test]
async fn an_answer_to_a_missing_key_says_what_is_wanted() {
    let house = House::build().await;
    let answer = house
        .send(bare("GET", "/gateway/c1/x"))
        .await
        .refused(401, "invalid_api_key");
    assert_eq!(answer.header("www-authenticate"), "Bearer");
    assert_eq!(answer.header("evergrant-error"), "invalid_api_key");
    assert_eq!(answer.header("x-should-retry"), "false");
    let answer = house
        .send(bare("GET", "/v1/connections"))
        .await
        .refused(401, "invalid_api_key");
    assert_eq!(answer.header("evergrant-error"), "");
}

#[tokio::test]
async fn what_lies_outside_a_keys_limits_looks_exactly_like_what_does_not_exist() {
    let house = House::build().await;
    house.import("mine", "acme", 1001).await;
    house.import_into("other", "theirs-app", "acme", 1001).await;
    house.import("theirs-customer", "globex", 1002).await;
    for limits in [
        json!({"apps": ["crm"], "customers": ["acme"]}),
        json!({"connections": ["mine"]}),
    ] {
        for role in ["gateway", "tokens", "support", "admin"] {
            let mut wish = json!({"name": "limited", "role": role});
            wish.as_object_mut()
                .unwrap()
                .extend(limits.as_object().unwrap().clone());
            let key = house.key(wish).await;
            for (method, path, body) in [
                ("GET", "/v1/connections/ID", None),
                ("PATCH", "/v1/connections/ID", Some(json!({"customer": "acme"}))),
                ("DELETE", "/v1/connections/ID", None),
                ("GET", "/v1/connections/ID/events", None),
                ("GET", "/v1/connections/ID/token", None),
                (
                    "POST",
                    "/v1/connections/ID/token/rejected",
                    Some(json!({"version": 1, "status": 401})),
                ),
                ("POST", "/v1/connections/ID/refresh", None),
                ("POST", "/v1/connections/ID/reconnect-link", None),
                ("GET", "/gateway/ID/crm/v3/objects/contacts", None),
            ] {
                // Of the same length, so that the answers can be compared as they are.
                let ask = async |id: &str| {
                    let answer = house
                        .call(&key, method, &path.replace("ID", id), body.clone())
                        .await;
                    let mut headers = answer.headers.clone();
                    headers.remove("date");
                    (answer.status, headers, answer.text().replace(id, "ID"))
                };
                let nothing = ask("nothing-here--x").await;
                assert_eq!(ask("theirs-customer").await, nothing, "{role} {method} {path}");
                let nothing = ask("nothing-xx").await;
                assert_eq!(ask("theirs-app").await, nothing, "{role} {method} {path}");
                let expected = if path.starts_with("/gateway") { 424 } else { 404 };
                assert_eq!(nothing.0.as_u16(), expected, "{role} {method} {path}");
            }
        }
        let mut wish = json!({"name": "limited", "role": "support"});
        wish.as_object_mut()
            .unwrap()
            .extend(limits.as_object().unwrap().clone());
        let key = house.key(wish).await;
        let list = house.get(&key, "/v1/connections").await.expect(200).json();
        let ids: Vec<_> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["id"].as_str().unwrap())
            .collect();
        assert_eq!(ids, ["mine"]);
    }
    let apps = house
        .key(json!({"name": "n", "role": "support", "apps": ["other"]}))
        .await;
    let list = house.get(&apps, "/v1/apps").await.expect(200).json();
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    house
        .post(&apps, "/v1/apps/crm/check", json!({}))
        .await
        .refused(404, "unknown_app");
    house
        .post(&apps, "/v1/apps/none/check", json!({}))
        .await
        .refused(404, "unknown_app");
}

#[tokio::test]
async fn a_limited_key_connects_only_what_it_could_see() {
    let house = House::build().await;
    let key = house
        .key(json!({"name": "n", "role": "tokens", "apps": ["crm"], "customers": ["acme"]}))
        .await;
    let begin = async |body: Value| house.post(&key, "/v1/connect-sessions", body).await;
    begin(json!({"app": "crm", "customer": "acme"})).await.expect(201);
    begin(json!({"app": "crm", "customer": "globex"}))
        .await
        .refused(403, "forbidden");
    begin(json!({"app": "other", "customer": "acme"}))
        .await
        .refused(404, "unknown_app");
    begin(json!({"app": "none", "customer": "acme"}))
        .await
        .refused(404, "unknown_app");
    let named = house
        .key(json!({"name": "n", "role": "tokens", "connections": ["c1"]}))
        .await;
    house
        .post(
            &named,
            "/v1/connect-sessions",
            json!({"app": "crm", "customer": "acme"}),
        )
        .await
        .refused(403, "forbidden");
    let fits = json!({"app": "crm", "customer": "acme", "connection_id": "c1"});
    let session = house
        .post(&named, "/v1/connect-sessions", fits)
        .await
        .expect(201)
        .json();
    let path = format!("/v1/connect-sessions/{}", session["id"].as_str().unwrap());
    house.get(&named, &path).await.expect(200);
    house.get(&key, &path).await.expect(200);
    let stranger = house
        .key(json!({"name": "n", "role": "tokens", "customers": ["globex"]}))
        .await;
    house.get(&stranger, &path).await.refused(404, "unknown_session");
}

#[tokio::test]
async fn a_conflict_does_not_name_a_connection_that_the_key_may_not_see() {
    let house = House::build().await;
    let grant = house.sim.grant("sim-client", 1001).unwrap();
    let record = |customer: &str| json!({"app": "crm", "customer": customer, "refresh_token": grant.refresh_token, "account": 1001});
    let first = house
        .operate("POST", "/v1/connections", Some(record("globex")))
        .await
        .expect(201)
        .json();
    let first = first["id"].as_str().unwrap();
    let limited = house
        .key(json!({"name": "n", "role": "tokens", "customers": ["acme"]}))
        .await;
    let answer = house
        .post(&limited, "/v1/connections", record("acme"))
        .await
        .refused(409, "grant_taken");
    assert!(!answer.text().contains(first));
    let answer = house
        .post(&house.admin, "/v1/connections", record("acme"))
        .await
        .refused(409, "grant_taken");
    assert_eq!(answer.json()["connection"], first);
}

#[tokio::test]
async fn a_key_that_is_revoked_is_refused_at_once_where_it_was_revoked() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let made = house.made_key(json!({"name": "n", "role": "tokens"})).await;
    let (id, key) = (made["id"].as_str().unwrap(), made["key"].as_str().unwrap());
    house.get(key, "/v1/connections/c1/token").await.expect(200);
    house
        .call(&house.admin, "DELETE", &format!("/v1/keys/{id}"), None)
        .await
        .expect(204);
    house
        .get(key, "/v1/connections/c1/token")
        .await
        .refused(401, "invalid_api_key");
    house
        .call(&house.admin, "DELETE", "/v1/keys/none", None)
        .await
        .refused(404, "unknown_key");
    let list = house.get(&house.admin, "/v1/keys").await.expect(200);
    assert!(!list.text().contains(key) && list.text().contains(id));
}

#[tokio::test]
async fn a_key_ends_when_it_says() {
    let house = House::build().await;
    let keeper = house.service.engine().keeper();
    let now = keeper.clock().now();
    let second = std::time::Duration::from_secs(1);
    for (name, expires_at, status) in [
        ("past", now.before(second), 401),
        ("future", now.after(3600 * second), 200),
    ] {
        let key = format!("evg_{name:A<43}");
        let stored = ApiKey {
            id: name.to_owned(),
            name: name.to_owned(),
            role: Role::Admin,
            limits: Limits::default(),
            lane: None,
            max_wait: None,
            created_at: now,
            expires_at: Some(expires_at),
            revoked_at: None,
        };
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.as_bytes());
        let hash = hash.as_ref().try_into().unwrap();
        keeper.store().create_key(stored, hash).await.unwrap();
        house.get(&key, "/v1/connections").await.expect(status);
    }
}

/// The promise is a second; a machine that is busy with other tests may take longer.
const FELT_WITHIN: std::time::Duration = std::time::Duration::from_secs(10);

#[tokio::test]
async fn what_another_process_revokes_or_moves_is_felt_here() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let neighbour = house.neighbour(LogCalls::Off).await.operator();
    let there = async |method: &str, path: &str, body: Option<Value>| {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body.map(|body| body.to_string()).unwrap_or_default()))
            .unwrap();
        let answer = neighbour.call(request).await;
        assert!(
            answer.status().is_success(),
            "{method} {path}: {}",
            answer.status()
        );
    };
    let made = house
        .made_key(json!({"name": "n", "role": "tokens", "customers": ["acme"]}))
        .await;
    let key = made["key"].as_str().unwrap();
    let becomes = async |status: u16| {
        let asking = async { while house.get(key, "/v1/connections/c1/token").await.status != status {} };
        tokio::time::timeout(FELT_WITHIN, asking)
            .await
            .unwrap_or_else(|_| panic!("not {status} in time"));
    };
    becomes(200).await;
    there("PATCH", "/v1/connections/c1", Some(json!({"customer": "globex"}))).await;
    becomes(404).await;
    there("PATCH", "/v1/connections/c1", Some(json!({"customer": "acme"}))).await;
    becomes(200).await;
    let path = format!("/v1/keys/{}", made["id"].as_str().unwrap());
    there("DELETE", &path, None).await;
    becomes(401).await;
}

#[tokio::test]
async fn a_key_makes_and_sees_only_keys_that_reach_no_further_than_itself() {
    let house = House::build().await;
    let limited = house
        .made_key(json!({"name": "n", "role": "admin", "apps": ["crm"]}))
        .await;
    let key = limited["key"].as_str().unwrap();
    let make = async |body: Value| house.post(key, "/v1/keys", body).await;
    make(json!({"name": "n", "role": "admin"}))
        .await
        .refused(403, "forbidden");
    make(json!({"name": "n", "role": "admin", "apps": ["crm", "other"]}))
        .await
        .refused(403, "forbidden");
    make(json!({"name": "n", "role": "admin", "customers": ["acme"]}))
        .await
        .refused(403, "forbidden");
    make(json!({"name": "n", "role": "gateway", "apps": ["crm"], "customers": ["acme"]}))
        .await
        .expect(201);
    let list = house.get(key, "/v1/keys").await.expect(200).json();
    assert_eq!(list["items"].as_array().unwrap().len(), 2);
    let other = house.made_key(json!({"name": "n", "role": "gateway"})).await;
    let path = format!("/v1/keys/{}", other["id"].as_str().unwrap());
    house
        .call(key, "DELETE", &path, None)
        .await
        .refused(404, "unknown_key");
    house.call(&house.admin, "DELETE", &path, None).await.expect(204);
}

#[tokio::test]
async fn a_key_that_makes_no_sense_is_refused() {
    let house = House::build().await;
    for wrong in [
        json!({"name": "", "role": "admin"}),
        json!({"name": "n", "role": "root"}),
        json!({"name": "n", "role": "admin", "apps": ["CRM"]}),
        json!({"name": "n", "role": "admin", "connections": ["a/b"]}),
        json!({"name": "n", "role": "admin", "lane": "fast"}),
        json!({"name": "n", "role": "admin", "max_wait": 61}),
        json!({"name": "n", "role": "admin", "expires_in": 0}),
        json!({"name": "n", "role": "admin", "key": "evg_mine"}),
        json!({"name": "n"}),
    ] {
        house
            .post(&house.admin, "/v1/keys", wrong)
            .await
            .refused(400, "bad_request");
    }
}

#[tokio::test]
async fn keys_and_apps_are_listed_in_pages() {
    let house = House::build().await;
    for number in 0..3 {
        house
            .key(json!({"name": format!("n{number}"), "role": "gateway"}))
            .await;
    }
    for (list, id) in [("/v1/keys", "id"), ("/v1/apps", "name")] {
        let whole = house.get(&house.admin, list).await.expect(200).json();
        assert!(whole["next_cursor"].is_null());
        let whole: Vec<_> = whole["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item[id].clone())
            .collect();
        let mut paged = Vec::new();
        let mut path = format!("{list}?limit=1");
        loop {
            let page = house.get(&house.admin, &path).await.expect(200).json();
            let items = page["items"].as_array().unwrap();
            assert_eq!(items.len(), 1);
            paged.push(items[0][id].clone());
            let Some(cursor) = page["next_cursor"].as_str() else {
                break;
            };
            path = format!("{list}?limit=1&cursor={cursor}");
        }
        assert_eq!(paged, whole);
        for wrong in ["limit=0", "limit=1001", "cursor=x", "bogus=1"] {
            house
                .get(&house.admin, &format!("{list}?{wrong}"))
                .await
                .refused(400, "bad_request");
        }
    }
}
