//! The CRM: records, batches, search.

use http::Method;
use serde_json::{Value, json};

use crate::browser::{Answer, CLIENT, HUB, World};

const CONTACTS: &str = "/crm/v3/objects/contacts";

struct Crm {
    world: World,
    token: String,
}

impl Crm {
    async fn new() -> Self {
        let world = World::new().await;
        let token = world.grant().access_token;
        Self { world, token }
    }

    async fn call(&self, method: Method, path: &str, body: Value) -> Answer {
        self.world.call(&self.token, method, path, body).await
    }

    async fn contact(&self, email: &str) -> String {
        let answer = self
            .call(Method::POST, CONTACTS, json!({"properties": {"email": email}}))
            .await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.text_of("id")
    }
}

#[tokio::test]
async fn a_record_is_created_read_changed_and_deleted() {
    let crm = Crm::new().await;
    let created = crm
        .call(
            Method::POST,
            CONTACTS,
            json!({"properties": {"email": "ada@example.com", "age": 36}}),
        )
        .await;
    assert_eq!(created.status, 201);
    let body = created.json();
    let id = created.text_of("id");
    assert_eq!(body["archived"], false);
    assert_eq!(body["properties"]["age"], "36", "properties are texts");
    assert_eq!(body["properties"]["hs_object_id"], id.as_str());
    assert_eq!(body["properties"]["createdate"], body["createdAt"]);

    let path = format!("{CONTACTS}/{id}");
    let changed = crm
        .call(Method::PATCH, &path, json!({"properties": {"age": "37"}}))
        .await;
    assert_eq!(
        (changed.status.as_u16(), &changed.json()["properties"]["age"]),
        (200, &json!("37"))
    );
    let by_email = format!("{CONTACTS}/ada%40example.com?idProperty=email");
    assert_eq!(
        crm.call(Method::GET, &by_email, Value::Null).await.text_of("id"),
        id
    );
    assert_eq!(crm.call(Method::DELETE, &path, Value::Null).await.status, 204);
    assert_eq!(crm.call(Method::GET, &path, Value::Null).await.status, 404);
}

#[tokio::test]
async fn contacts_are_unique_by_email_and_companies_by_nothing() {
    let crm = Crm::new().await;
    let id = crm.contact("ada@example.com").await;
    let again = crm
        .call(
            Method::POST,
            CONTACTS,
            json!({"properties": {"email": "ADA@example.com"}}),
        )
        .await;
    assert_eq!(again.status, 409);
    assert_eq!(again.json()["category"], "CONFLICT");
    assert_eq!(
        again.json()["message"],
        format!("Contact already exists. Existing ID: {id}")
    );
    for _ in 0..2 {
        let body = json!({"properties": {"name": "Acme", "email": "ada@example.com"}});
        let path = "/crm/objects/2026-03/companies";
        assert_eq!(crm.call(Method::POST, path, body).await.status, 201);
    }
}

#[tokio::test]
async fn a_property_that_is_declared_unique_finds_and_forbids() {
    let crm = Crm::new().await;
    let deals = "/crm/v3/objects/deals";
    let deal = |number: &str| json!({"properties": {"dealname": "Acme", "order_number": number}});
    let create = async |number: &str| crm.call(Method::POST, deals, deal(number)).await;
    let first = create("A-1").await.text_of("id");
    let by_number = format!("{deals}/A-1?idProperty=order_number");
    let look = async || crm.call(Method::GET, &by_number, Value::Null).await;
    assert_eq!(look().await.status, 400, "not unique yet");
    let declare = json!({"object_type": "deals", "property": "order_number"});
    assert_eq!(crm.world.post_json("/_sim/unique", declare).await.status, 200);
    assert_eq!(look().await.text_of("id"), first);

    let again = create("A-1").await;
    assert_eq!(again.status, 400);
    assert_eq!(again.json()["category"], "VALIDATION_ERROR");
    let message = again.text_of("message");
    assert!(
        message.contains("CONFLICTING_UNIQUE_VALUE") && message.contains(&first),
        "{message}"
    );
    assert_eq!(create("A-2").await.status, 201);
    let absent = format!("{deals}/A-3?idProperty=order_number");
    assert_eq!(crm.call(Method::GET, &absent, Value::Null).await.status, 404);
    let by_name = format!("{deals}/Acme?idProperty=dealname");
    assert_eq!(crm.call(Method::GET, &by_name, Value::Null).await.status, 400);
    // A write that is refused takes no value, and an archived object gives its own back.
    let path = format!("{deals}/{first}");
    assert_eq!(crm.call(Method::PATCH, &path, deal("A-2")).await.status, 400);
    assert_eq!(crm.call(Method::DELETE, &path, Value::Null).await.status, 204);
    assert_eq!(create("A-1").await.status, 201);
}

#[tokio::test]
async fn what_was_created_is_counted_whatever_became_of_it_and_of_its_answer() {
    let crm = Crm::new().await;
    let companies = "/crm/v3/objects/companies";
    let create = async || {
        let body = json!({"properties": {"name": "Acme"}});
        let bearer = format!("Bearer {}", crm.token);
        let headers = [
            ("authorization", bearer.as_str()),
            ("content-type", "application/json"),
        ];
        crm.world
            .send(Method::POST, companies, &headers, body.to_string())
            .await
    };
    let id = create().await.unwrap().text_of("id");
    let cut = hubspot_sim::Fault::api(hubspot_sim::FaultKind::AnswerLostAfterIssue);
    crm.world.hubspot.arm(cut.method("POST").path(companies));
    let path = format!("{companies}/{id}");
    assert_eq!(crm.call(Method::DELETE, &path, Value::Null).await.status, 204);
    assert!(create().await.is_err());
    assert_eq!(crm.world.hubspot.created(HUB, "companies", "name", "Acme"), 2);
    let asked = format!("/_sim/created?hub_id={HUB}&object_type=company&property=name&value=Acme");
    assert_eq!(crm.world.get(&asked).await.json(), json!({"created": 2}));
    assert_eq!(crm.world.hubspot.created(HUB, "companies", "name", "Globex"), 0);
}

#[tokio::test]
async fn a_changed_email_frees_the_old_one() {
    let crm = Crm::new().await;
    let id = crm.contact("old@example.com").await;
    let other = crm.contact("other@example.com").await;
    let path = format!("{CONTACTS}/{id}");
    let change = async |email: &str| {
        crm.call(Method::PATCH, &path, json!({"properties": {"email": email}}))
            .await
            .status
            .as_u16()
    };
    assert_eq!(change("other@example.com").await, 409);
    assert_eq!(change("new@example.com").await, 200);
    assert_eq!(change("NEW@example.com").await, 200);
    let next = crm.contact("old@example.com").await;
    assert!(next != id && next != other);
}

#[tokio::test]
async fn lists_are_paged_with_a_cursor_and_a_link_to_hubspot_itself() {
    let crm = Crm::new().await;
    for index in 0..5 {
        crm.contact(&format!("{index}@example.com")).await;
    }
    let mut after = String::new();
    let mut seen = 0;
    loop {
        let page = crm
            .call(
                Method::GET,
                &format!("{CONTACTS}?limit=2&properties=email{after}"),
                Value::Null,
            )
            .await
            .json();
        seen += page["results"].as_array().unwrap().len();
        let Some(next) = page.get("paging") else { break };
        let cursor = next["next"]["after"].as_str().unwrap();
        let link = format!("https://api.hubapi.com{CONTACTS}?properties=email&limit=2&after={cursor}");
        assert_eq!(next["next"]["link"], link);
        after = format!("&after={cursor}");
    }
    assert_eq!(seen, 5);
    assert_eq!(
        crm.call(Method::GET, &format!("{CONTACTS}?limit=101"), Value::Null)
            .await
            .status,
        400
    );
}

#[tokio::test]
async fn searches_filter_and_count() {
    let crm = Crm::new().await;
    for (email, city) in [
        ("ada@example.com", "London"),
        ("bob@example.org", "Berlin"),
        ("eve@example.org", ""),
    ] {
        let body = json!({"properties": {"email": email, "city": city}});
        assert_eq!(crm.call(Method::POST, CONTACTS, body).await.status, 201);
    }
    let check = async |filter: Value, expected: u64| {
        let body = json!({"filterGroups": [{"filters": [filter]}], "limit": 1});
        let answer = crm.call(Method::POST, &format!("{CONTACTS}/search"), body).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.json()["total"], expected, "{answer:?}");
    };
    check(
        json!({"propertyName": "email", "operator": "EQ", "value": "ada@example.com"}),
        1,
    )
    .await;
    check(
        json!({"propertyName": "email", "operator": "NEQ", "value": "ada@example.com"}),
        2,
    )
    .await;
    check(
        json!({"propertyName": "email", "operator": "CONTAINS_TOKEN", "value": "*example.org"}),
        2,
    )
    .await;
    check(json!({"propertyName": "city", "operator": "HAS_PROPERTY"}), 2).await;
    check(json!({"propertyName": "city", "operator": "NOT_HAS_PROPERTY"}), 1).await;
    check(
        json!({"propertyName": "city", "operator": "IN", "values": ["London", "Berlin"]}),
        2,
    )
    .await;
    let body =
        json!({"filterGroups": [{"filters": [{"propertyName": "city", "operator": "LIKE", "value": ""}]}]});
    assert_eq!(
        crm.call(Method::POST, &format!("{CONTACTS}/search"), body)
            .await
            .status,
        400
    );
}

#[tokio::test]
async fn a_batch_that_fails_in_part_is_a_207() {
    let crm = Crm::new().await;
    crm.contact("ada@example.com").await;
    let path = format!("{CONTACTS}/batch/create");
    let inputs = json!({"inputs": [
        {"properties": {"email": "new@example.com"}},
        {"properties": {"email": "ada@example.com"}, "objectWriteTraceId": "t1"},
    ]});
    let answer = crm.call(Method::POST, &path, inputs).await;
    let body = answer.json();
    assert_eq!(answer.status, 207);
    assert_eq!(
        (body["results"].as_array().unwrap().len(), &body["numErrors"]),
        (1, &json!(1))
    );
    assert_eq!(body["errors"][0]["category"], "CONFLICT");
    assert_eq!(body["errors"][0]["context"]["objectWriteTraceId"], json!(["t1"]));
    let inputs = json!({"inputs": [{"properties": {"email": "newer@example.com"}}]});
    assert_eq!(crm.call(Method::POST, &path, inputs).await.status, 201);
    assert_eq!(
        crm.world
            .hubspot
            .ledger()
            .grant(CLIENT, HUB)
            .unwrap()
            .creates_executed,
        3
    );
}

#[tokio::test]
async fn batches_read_update_upsert_and_archive() {
    let crm = Crm::new().await;
    let id = crm.contact("ada@example.com").await;
    let batch = async |act: &str, body: Value| {
        crm.call(Method::POST, &format!("{CONTACTS}/batch/{act}"), body)
            .await
    };

    let updated = batch(
        "update",
        json!({"inputs": [{"id": id, "properties": {"city": "London"}}]}),
    )
    .await;
    assert_eq!(
        (
            updated.status.as_u16(),
            &updated.json()["results"][0]["properties"]["city"]
        ),
        (200, &json!("London"))
    );
    let inputs = json!({"inputs": [
        {"id": "ada@example.com", "idProperty": "email", "properties": {"city": "Paris"}},
        {"id": "bob@example.com", "idProperty": "email", "properties": {"city": "Bern"}},
    ]});
    let upserted = batch("upsert", inputs).await.json();
    assert_eq!(
        (&upserted["results"][0]["new"], &upserted["results"][1]["new"]),
        (&json!(false), &json!(true))
    );
    let read = json!({"idProperty": "email", "inputs": [{"id": "bob@example.com"}], "properties": ["city"]});
    let read = batch("read", read).await;
    assert_eq!(
        (
            read.status.as_u16(),
            &read.json()["results"][0]["properties"]["city"]
        ),
        (200, &json!("Bern"))
    );
    assert_eq!(batch("read", json!({"inputs": [{"id": "1"}]})).await.status, 207);
    assert_eq!(
        batch("archive", json!({"inputs": [{"id": id}]})).await.status,
        204
    );
    assert_eq!(
        crm.call(Method::GET, &format!("{CONTACTS}/{id}"), Value::Null)
            .await
            .status,
        404
    );
    let many: Vec<_> = (0..101).map(|_| json!({"properties": {}})).collect();
    assert_eq!(batch("create", json!({"inputs": many})).await.status, 400);
}

#[tokio::test]
async fn broken_json_is_a_validation_error() {
    let crm = Crm::new().await;
    let bearer = format!("Bearer {}", crm.token);
    let headers = [("authorization", bearer.as_str())];
    let answer = crm
        .world
        .send(Method::POST, CONTACTS, &headers, "{\"properties\":")
        .await
        .unwrap();
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["category"]),
        (400, &json!("VALIDATION_ERROR"))
    );
    assert_eq!(crm.world.hubspot.ledger().creates_executed, 0);
}

#[tokio::test]
async fn portals_do_not_see_each_others_records() {
    let crm = Crm::new().await;
    let id = crm.contact("ada@example.com").await;
    let elsewhere = crm.world.hubspot.grant(CLIENT, 2002).unwrap().access_token;
    let path = format!("{CONTACTS}/{id}");
    assert_eq!(
        crm.world
            .call(&elsewhere, Method::GET, &path, Value::Null)
            .await
            .status,
        404
    );
}
