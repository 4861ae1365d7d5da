//! The gateway's door; what goes on behind it is tested with the gateway itself.

use http::{Request, header};
use http_body_util::Full;
use serde_json::json;

use crate::harness::House;

#[tokio::test]
async fn a_call_by_path_or_by_header_reaches_the_provider_and_comes_back_as_it_is() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let key = house.key(json!({"name": "n", "role": "gateway"})).await;
    let answer = house
        .get(&key, "/gateway/c1/crm/v3/objects/contacts?limit=1")
        .await
        .expect(200);
    assert_eq!(answer.header("evergrant-error"), "");
    assert!(answer.json()["results"].is_array());
    let request = Request::get("/gateway/-/crm/v3/objects/contacts")
        .header(header::AUTHORIZATION, format!("Bearer {key}"))
        .header("Evergrant-Connection", "c1");
    house
        .send(request.body(Full::default()).unwrap())
        .await
        .expect(200);
    let missing = house
        .get(&key, "/gateway/c1/crm/v3/objects/contacts/404404")
        .await;
    assert_eq!(
        (missing.status.as_u16(), missing.header("evergrant-error")),
        (404, "")
    );
    let refused = house.sim.ledger().unauthorized;
    assert_eq!((refused.expired, refused.garbage, refused.missing), (0, 0, 0));
}

#[tokio::test]
async fn what_evergrant_itself_says_there_is_never_taken_for_the_providers_word() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let key = house.key(json!({"name": "n", "role": "gateway"})).await;
    for (path, status, code) in [
        ("/gateway/none/crm/v3/objects/contacts", 424, "unknown_connection"),
        ("/gateway/a%2fb/crm/v3/objects/contacts", 400, "bad_request"),
        ("/gateway/c1@evil.test/x", 400, "bad_request"),
        ("/gateway/c1", 400, "bad_request"),
        ("/gateway/-/crm/v3/objects/contacts", 400, "bad_request"),
        ("/gateway/c1/oauth/v1/token", 424, "use_evergrant"),
        ("/gateway/c1/../../x", 400, "bad_request"),
    ] {
        let answer = house.get(&key, path).await.refused(status, code);
        assert_eq!(answer.header("evergrant-error"), code);
        assert_eq!(answer.header("x-should-retry"), "false");
    }
}
