//! Records: made, listed, read, changed, ended.

use serde_json::{Value, json};

use crate::harness::{House, PUBLIC, in_seconds};

#[tokio::test]
async fn a_record_shows_everything_but_tokens() {
    let house = House::build().await;
    let grant = house.sim.grant("sim-client", 1001).unwrap();
    let record = json!({
        "app": "crm", "id": "c1", "customer": "acme", "refresh_token": grant.refresh_token,
        "access_token": grant.access_token, "expires_at": crate::harness::in_seconds(1800), "labels": {"team": "eu"},
        "scopes": ["oauth"]
    });
    house
        .operate("POST", "/v1/connections", Some(record))
        .await
        .expect(201);
    let answer = house.get(&house.admin, "/v1/connections/c1").await.expect(200);
    assert!(!answer.text().contains(&grant.access_token) && !answer.text().contains(&grant.refresh_token));
    let record = answer.json();
    let mut members: Vec<_> = record.as_object().unwrap().keys().map(String::as_str).collect();
    members.sort_unstable();
    let mut expected = vec![
        "id",
        "app",
        "budget",
        "customer",
        "kind",
        "status",
        "status_reason",
        "status_since",
        "health",
        "why",
        "account",
        "scopes",
        "missing_scopes",
        "token_type",
        "version",
        "issued_at",
        "expires_at",
        "seconds_remaining",
        "soft_expires_at",
        "hard_expires_at",
        "refresh_in_progress_until",
        "redemption",
        "failures_since_success",
        "next_refresh_attempt_at",
        "created_at",
        "connected_at",
        "updated_at",
        "last_call_at",
        "last_success_at",
        "last_refresh_at",
        "last_refresh_error",
        "last_401_at",
        "last_403_at",
        "last_429_at",
        "refresh_success_rate_24h",
        "reconnect_url",
        "labels",
    ];
    expected.sort_unstable();
    assert_eq!(members, expected);
    assert_eq!(record["account"]["id"], "1001");
    assert_eq!(record["missing_scopes"], json!(["crm.objects.contacts.read"]));
    assert!(record["reconnect_url"].as_str().unwrap().starts_with(PUBLIC));
    assert_eq!(record["health"], "unverified");
    assert!(record["why"].is_string());
    assert_eq!(record["labels"], json!({"team": "eu"}));
    assert_eq!(
        (record["status"].as_str(), record["kind"].as_str()),
        (Some("active"), Some("oauth"))
    );
}

#[tokio::test]
async fn a_code_from_an_apps_own_callback_makes_a_connection_that_works() {
    let house = House::build().await;
    let redirect_uri = "https://app.example.com/oauth";
    let authorize = format!(
        "{}/oauth/authorize?client_id=sim-client&scope=oauth%20crm.objects.contacts.read&redirect_uri={redirect_uri}&_sim_hub_id=1001",
        house.sim.base_url()
    );
    let location = crate::connect::location_of(&authorize).await;
    let code = crate::connect::parameter(&location, "code").unwrap();
    let record =
        json!({"app": "crm", "customer": "acme", "id": "c1", "code": code, "redirect_uri": redirect_uri});
    let made = house
        .post(&house.admin, "/v1/connections", record.clone())
        .await
        .expect(201)
        .json();
    assert_eq!(
        (made["id"].as_str(), made["account"]["id"].as_str()),
        (Some("c1"), Some("1001"))
    );
    house
        .get(&house.admin, "/gateway/c1/crm/v3/objects/contacts")
        .await
        .expect(200);
    house
        .post(&house.admin, "/v1/connections", record)
        .await
        .refused(422, "code_refused");
}

#[tokio::test]
async fn an_import_that_does_not_fit_is_refused_and_changes_nothing() {
    let house = House::build().await;
    let first = house.import("c1", "acme", 1001).await;
    let create = async |body: Value| house.post(&house.admin, "/v1/connections", body).await;
    create(json!({"app": "crm", "customer": "a", "refresh_token": "made-up"}))
        .await
        .refused(422, "grant_inactive");
    create(json!({"app": "crm", "customer": "a", "id": "c1", "kind": "static", "access_token": "t"}))
        .await
        .refused(409, "id_taken");
    create(json!({"app": "none", "customer": "a", "refresh_token": "r"}))
        .await
        .refused(404, "unknown_app");
    for wrong in [
        json!({"app": "crm", "customer": "a"}),
        json!({"app": "crm", "customer": ""}),
        json!({"app": "CRM", "customer": "a", "refresh_token": "r"}),
        json!({"app": "crm", "customer": "a", "refresh_token": "line\nbreak"}),
        json!({"app": "crm", "customer": "a", "refresh_token": "r", "expires_at": "tomorrow"}),
        json!({"app": "crm", "customer": "a", "refresh_token": "r", "kind": "basic"}),
        json!({"app": "crm", "customer": "a", "kind": "static", "refresh_token": "r"}),
        json!({"app": "crm", "customer": "a", "kind": "static"}),
        json!({"app": "crm", "customer": "a", "code": "c"}),
        json!({"app": "crm", "customer": "a", "code": "c", "redirect_uri": "u", "refresh_token": "r"}),
        json!({"app": "crm", "customer": "a", "refresh_token": "r", "id": "../etc"}),
        json!({"app": "crm", "customer": "a", "refresh_token": "r", "tokens": []}),
        json!({"app": "crm", "customer": "a", "refresh_token": 7}),
    ] {
        create(wrong).await.refused(400, "bad_request");
    }
    let half = create(json!({"app": "crm", "customer": "a", "refresh_token": "r", "account": 1.5})).await;
    assert_eq!(
        half.json()["detail"],
        "`account`: expected text or a whole number"
    );
    let list = house
        .get(&house.admin, "/v1/connections")
        .await
        .expect(200)
        .json();
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert_eq!(list["items"][0]["version"], first["version"]);
}

#[tokio::test]
async fn a_dry_run_refuses_what_an_import_would_and_changes_nothing() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let asked_before = house.sim.ledger().introspections;
    let dry = async |record: Value| {
        house
            .operate("POST", "/v1/connections?dry_run=true", Some(record))
            .await
    };
    let record = |id: &str, customer: &str, account: u64| json!({"app": "crm", "customer": customer, "id": id, "refresh_token": "x", "account": account});
    dry(record("c2", "globex", 1002)).await.expect(204);
    dry(json!({"app": "crm", "customer": "globex", "refresh_token": "x"}))
        .await
        .expect(204);
    dry(record("c1", "acme", 1002)).await.refused(409, "id_taken");
    dry(record("c2", "acme", 1001))
        .await
        .refused(409, "account_taken");
    dry(json!({"app": "nope", "customer": "x", "refresh_token": "x"}))
        .await
        .refused(404, "unknown_app");
    dry(json!({"app": "crm", "customer": "x"}))
        .await
        .refused(400, "bad_request");
    dry(json!({"app": "crm", "customer": "x", "code": "c", "redirect_uri": "http://localhost"}))
        .await
        .refused(400, "bad_request");
    assert_eq!(house.sim.ledger().introspections, asked_before);
    let listed = house
        .get(&house.admin, "/v1/connections")
        .await
        .expect(200)
        .json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_newer_record_replaces_and_a_verified_one_is_asked_about() {
    let house = House::build().await;
    let grant = house.sim.grant("sim-client", 1001).unwrap();
    let bring = async |query: &str, record: Value| {
        house
            .operate("POST", &format!("/v1/connections?{query}"), Some(record))
            .await
    };
    let record = |refresh_token: &str, ends_in: i64| json!({"app": "crm", "customer": "acme", "id": "c1", "refresh_token": refresh_token, "access_token": grant.access_token, "account": 1001, "expires_at": in_seconds(ends_in)});
    let asked = || house.sim.ledger().introspections;
    let before = asked();
    bring("on_conflict=newer", record("first", 900)).await.expect(201);
    bring("on_conflict=newer", record("older", 800))
        .await
        .refused(409, "not_newer");
    bring("on_conflict=newer&dry_run=true", record("older", 800))
        .await
        .refused(409, "not_newer");
    bring("on_conflict=newer&dry_run=true", record("newer", 1700))
        .await
        .expect(204);
    assert_eq!(asked(), before);
    // Found dead before anything is compared or replaced.
    for query in ["on_conflict=newer&verify=true", "verify=true&dry_run=true"] {
        bring(query, record("never-issued", 1700))
            .await
            .refused(422, "grant_inactive");
    }
    assert_eq!(asked(), before + 2);
    let replaced = bring(
        "on_conflict=newer&verify=true",
        record(&grant.refresh_token, 1700),
    )
    .await
    .expect(200)
    .json();
    assert_eq!((&replaced["id"], &replaced["version"]), (&json!("c1"), &json!(2)));
    assert_eq!(asked(), before + 3);
    bring("on_conflict=skip", record("x", 900))
        .await
        .refused(400, "bad_request");
    bring(
        "verify=true",
        json!({"app": "crm", "customer": "x", "code": "c", "redirect_uri": "http://localhost"}),
    )
    .await
    .refused(400, "bad_request");
    let mut of_another = record("x", 1750);
    of_another["customer"] = json!("globex");
    for query in ["on_conflict=newer", "on_conflict=newer&dry_run=true"] {
        bring(query, of_another.clone()).await.refused(409, "id_taken");
    }
    let told = house
        .get(&house.admin, "/v1/connections/c1/events?type=reconnected")
        .await
        .expect(200)
        .json();
    assert_eq!(told["items"][0]["detail"], "a newer record was imported");
}

#[tokio::test]
async fn a_list_is_paged_in_order_whatever_filters_it() {
    let house = House::build().await;
    for (number, customer) in ["a", "b", "a", "b", "a", "a", "b"].iter().enumerate() {
        let record = json!({
            "app": if number == 3 { "other" } else { "crm" }, "id": format!("c{number}"), "customer": customer,
            "kind": "static", "access_token": format!("static-{number}"), "account": format!("acc-{number}")
        });
        house
            .operate("POST", "/v1/connections", Some(record))
            .await
            .expect(201);
    }
    let walk = async |filter: &str| {
        let mut found = Vec::new();
        let mut cursor = String::new();
        loop {
            let path = format!("/v1/connections?limit=2&{filter}{cursor}");
            let page = house.get(&house.admin, &path).await.expect(200).json();
            let items = page["items"].as_array().unwrap();
            assert!(items.len() <= 2);
            found.extend(items.iter().map(|item| item["id"].as_str().unwrap().to_owned()));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return found.join(" "),
            }
        }
    };
    assert_eq!(walk("").await, "c0 c1 c2 c3 c4 c5 c6");
    assert_eq!(walk("customer=a").await, "c0 c2 c4 c5");
    assert_eq!(walk("customer=a&customer=b").await, "c0 c1 c2 c3 c4 c5 c6");
    assert_eq!(walk("customer=b&app=other").await, "c3");
    assert_eq!(walk("account=acc-5&account=acc-1").await, "c1 c5");
    assert_eq!(walk("status=active").await, "c0 c1 c2 c3 c4 c5 c6");
    assert_eq!(walk("status=disconnected").await, "");
    assert_eq!(walk("q=ACC-6").await, "c6");
    assert_eq!(walk("health=unverified").await, "c0 c1 c2 c3 c4 c5 c6");
    assert_eq!(walk("health=healthy&health=degraded").await, "");
    house.get(&house.admin, "/gateway/c4/").await;
    for id in ["c1", "c2"] {
        house
            .call(&house.admin, "DELETE", &format!("/v1/connections/{id}"), None)
            .await
            .expect(202);
    }
    assert_eq!(walk("health=unverified").await, "c0 c3 c4 c5 c6");
    assert_eq!(
        walk("status=disconnected&status=reconnect_required").await,
        "c1 c2"
    );
    for wrong in [
        "limit=0",
        "limit=1001",
        "limit=x",
        "cursor=x",
        "health=well",
        "status=on",
        "app=CRM",
        "sort=id",
        "q=a&q=b",
    ] {
        house
            .get(&house.admin, &format!("/v1/connections?{wrong}"))
            .await
            .refused(400, "bad_request");
    }
}

#[tokio::test]
async fn a_change_touches_what_it_names_and_keeps_one_connection_for_an_account() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let patch = async |id: &str, body: Value| {
        house
            .call(
                &house.admin,
                "PATCH",
                &format!("/v1/connections/{id}"),
                Some(body),
            )
            .await
    };
    let changed = patch("c1", json!({"labels": {"a": "1"}}))
        .await
        .expect(200)
        .json();
    assert_eq!(
        (changed["labels"].clone(), changed["customer"].as_str()),
        (json!({"a": "1"}), Some("acme"))
    );
    let changed = patch("c1", json!({"customer": "globex"}))
        .await
        .expect(200)
        .json();
    assert_eq!(
        (changed["labels"].clone(), changed["customer"].as_str()),
        (json!({"a": "1"}), Some("globex"))
    );
    patch("c1", json!({"customer": ""}))
        .await
        .refused(400, "bad_request");
    patch("c1", json!({"status": "active"}))
        .await
        .refused(400, "bad_request");
    patch("c1", json!({"labels": {"": "x"}}))
        .await
        .refused(400, "bad_request");
    patch("none", json!({})).await.refused(404, "unknown_connection");
    let limited = house
        .key(json!({"name": "n", "role": "support", "customers": ["globex"]}))
        .await;
    house
        .call(
            &limited,
            "PATCH",
            "/v1/connections/c1",
            Some(json!({"customer": "acme"})),
        )
        .await
        .refused(403, "forbidden");
}

#[tokio::test]
async fn a_disconnected_connection_serves_nothing_and_may_be_ended_twice() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    house
        .get(&house.admin, "/v1/connections/c1/token")
        .await
        .expect(200);
    let ended = house
        .call(&house.admin, "DELETE", "/v1/connections/c1", None)
        .await
        .expect(202)
        .json();
    assert!(
        ["pending", "done"].contains(&ended["revocation"].as_str().unwrap()),
        "{ended}"
    );
    assert!(ended["access_tokens_valid_until"].is_string());
    house
        .get(&house.admin, "/v1/connections/c1/token")
        .await
        .refused(424, "disconnected");
    house
        .get(&house.admin, "/gateway/c1/crm/v3/objects/contacts")
        .await
        .refused(424, "disconnected");
    house
        .call(&house.admin, "POST", "/v1/connections/c1/refresh", None)
        .await
        .refused(424, "disconnected");
    house
        .call(&house.admin, "POST", "/v1/connections/c1/reconnect-link", None)
        .await
        .refused(424, "disconnected");
    house
        .call(&house.admin, "DELETE", "/v1/connections/c1?revoke=never", None)
        .await
        .expect(202);
    let record = house
        .get(&house.admin, "/v1/connections/c1")
        .await
        .expect(200)
        .json();
    assert_eq!(
        (record["status"].as_str(), record["health"].is_null()),
        (Some("disconnected"), true)
    );
    for wrong in ["revoke=maybe", "purge=perhaps", "force=true"] {
        house
            .call(
                &house.admin,
                "DELETE",
                &format!("/v1/connections/c1?{wrong}"),
                None,
            )
            .await
            .refused(400, "bad_request");
    }
    house
        .call(&house.admin, "DELETE", "/v1/connections/c1?purge=true", None)
        .await
        .expect(202);
    house
        .get(&house.admin, "/v1/connections/c1")
        .await
        .refused(404, "unknown_connection");
    house
        .get(&house.admin, "/v1/connections/c1/events")
        .await
        .refused(404, "unknown_connection");
}

#[tokio::test]
async fn a_history_is_read_newest_first() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    house
        .post(&house.admin, "/v1/connections/c1/refresh", json!({"force": true}))
        .await
        .expect(200);
    let events = house
        .get(&house.admin, "/v1/connections/c1/events")
        .await
        .expect(200)
        .json();
    let kinds: Vec<_> = events["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["refreshed", "refresh_forced", "connected"]);
    let one = house
        .get(&house.admin, "/v1/connections/c1/events?limit=1")
        .await
        .expect(200)
        .json();
    assert_eq!(one["items"][0]["type"], "refreshed");
    let record = house
        .get(&house.admin, "/v1/connections/c1")
        .await
        .expect(200)
        .json();
    assert_eq!(record["refresh_success_rate_24h"], 1.0);
}

#[tokio::test]
async fn fifty_racing_writes_leave_one_whole_record() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let writes = (0..50).map(|number| {
        let house = &house;
        async move {
            match number % 3 {
                0 => {
                    let body = json!({"labels": {"n": number.to_string()}});
                    house
                        .call(&house.admin, "PATCH", "/v1/connections/c1", Some(body))
                        .await
                }
                1 => {
                    house
                        .post(&house.admin, "/v1/connections/c1/refresh", json!({"force": true}))
                        .await
                }
                _ => house.get(&house.admin, "/v1/connections/c1/token").await,
            }
        }
    });
    let answers = futures_util::future::join_all(writes).await;
    assert!(
        answers.iter().all(|answer| answer.status == 200),
        "{:?}",
        answers.iter().find(|a| a.status != 200)
    );
    assert_eq!(house.sim.ledger().refreshes_accepted, 1);
    let ends = (0..10).map(|_| house.call(&house.admin, "DELETE", "/v1/connections/c1", None));
    assert!(
        futures_util::future::join_all(ends)
            .await
            .iter()
            .all(|answer| answer.status == 202)
    );
    let record = house
        .get(&house.admin, "/v1/connections/c1")
        .await
        .expect(200)
        .json();
    assert_eq!(
        (record["status"].as_str(), record["version"].as_i64()),
        (Some("disconnected"), Some(3))
    );
}

#[tokio::test]
async fn explain_reads_what_was_pasted() {
    let house = House::build().await;
    let text = "ApiException: HTTP-Code: 401\nBody: {\"status\":\"error\",\"message\":\"The OAuth token used to make this call expired 5 second(s) ago.\",\"category\":\"EXPIRED_AUTHENTICATION\",\"correlationId\":\"c-1\"}";
    let explained = house
        .post(&house.admin, "/v1/explain", json!({"text": text}))
        .await
        .expect(200)
        .json();
    assert_eq!(
        (explained["class"].as_str(), explained["status"].as_i64()),
        (Some("expired"), Some(401))
    );
    assert_eq!(explained["provider_correlation_id"], "c-1");
    assert_eq!(explained["help"], format!("{PUBLIC}/help/expired"));
    assert_eq!(explained["refresh_helps"], true);
    let documented = explained["documentation_url"].as_str().unwrap();
    assert!(
        documented.starts_with("https://developers.hubspot.com/"),
        "{documented}"
    );
    house
        .post(&house.admin, "/v1/explain", json!({"text": "good morning"}))
        .await
        .refused(400, "bad_request");
}

#[tokio::test]
async fn a_record_shows_what_this_process_has_just_seen() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    house
        .get(&house.admin, "/gateway/c1/crm/v3/objects/contacts")
        .await
        .expect(200);
    let record = house
        .get(&house.admin, "/v1/connections/c1")
        .await
        .expect(200)
        .json();
    assert_eq!(record["health"], "healthy", "{record}");
    assert!(
        record["last_call_at"].is_string()
            && record["last_success_at"].is_string()
            && record["why"].is_null()
    );
    let listed = house
        .get(&house.admin, "/v1/connections?health=healthy")
        .await
        .expect(200)
        .json();
    assert_eq!(listed["items"][0]["last_success_at"], record["last_success_at"]);
}

#[tokio::test]
async fn a_record_says_why_refreshing_fails() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    house.import("c2", "globex", 1002).await;
    let force = async |id: &str| {
        let path = format!("/v1/connections/{id}/refresh");
        house.post(&house.admin, &path, json!({"force": true})).await
    };
    let record = async |id: &str| {
        house
            .get(&house.admin, &format!("/v1/connections/{id}"))
            .await
            .expect(200)
            .json()
    };
    house.sim.uninstall("sim-client", 1001);
    force("c1").await.refused(424, "reconnect_required");
    let refused = record("c1").await;
    assert_eq!(refused["last_refresh_error"]["code"], "grant_refused");
    assert_eq!(refused["last_refresh_error"]["at"], refused["status_since"]);
    house.sim.set_client_secret("sim-client", "another");
    assert!(!force("c2").await.status.is_success());
    let why = record("c2").await["why"].as_str().unwrap().to_owned();
    assert!(why.contains("credentials of app crm"), "{why}");
}
