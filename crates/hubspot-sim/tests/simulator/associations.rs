//! Associations: made, made again, labelled, listed, read in a batch, removed.

use http::Method;
use serde_json::{Value, json};

use crate::browser::{Answer, World};

struct Crm {
    world: World,
    token: String,
    contact: String,
    company: String,
}

impl Crm {
    async fn new() -> Self {
        let world = World::new().await;
        let token = world.grant().access_token;
        let create = async |path: &str| {
            let body = json!({"properties": {}});
            world.call(&token, Method::POST, path, body).await.text_of("id")
        };
        let contact = create("/crm/v3/objects/contacts").await;
        let company = create("/crm/v3/objects/companies").await;
        Self {
            world,
            token,
            contact,
            company,
        }
    }

    async fn call(&self, method: Method, path: &str, body: Value) -> Answer {
        self.world.call(&self.token, method, path, body).await
    }

    async fn associated(&self, path: &str) -> Vec<(String, Vec<u64>)> {
        let answer = self.call(Method::GET, path, Value::Null).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let kinds = |result: &Value| {
            let kinds = result["associationTypes"].as_array().unwrap().iter();
            kinds.map(|kind| kind["typeId"].as_u64().unwrap()).collect()
        };
        let results = answer.json()["results"].clone();
        let results = results.as_array().unwrap().iter();
        results
            .map(|result| (result["toObjectId"].as_str().unwrap().to_owned(), kinds(result)))
            .collect()
    }
}

#[tokio::test]
async fn two_records_are_associated_once_and_seen_from_both_ends_under_either_version() {
    let crm = Crm::new().await;
    let (contact, company) = (&crm.contact, &crm.company);
    let v4 = format!("/crm/v4/objects/contact/{contact}/associations/default/companies/{company}");
    let dated = format!("/crm/objects/2026-03/contacts/{contact}/associations/default/company/{company}");
    for path in [&v4, &v4, &dated] {
        let answer = crm.call(Method::PUT, path, Value::Null).await;
        assert_eq!(answer.status, 200);
        let body = answer.json();
        assert_eq!(body["results"][0]["from"]["id"], contact.as_str());
        assert_eq!(body["results"][0]["associationSpec"]["associationTypeId"], 279);
    }
    let there = format!("/crm/v4/objects/contacts/{contact}/associations/companies");
    assert_eq!(crm.associated(&there).await, [(company.clone(), vec![279])]);
    let back = format!("/crm/objects/2026-09/companies/{company}/associations/contacts");
    assert_eq!(crm.associated(&back).await, [(contact.clone(), vec![280])]);

    let pair = format!("/crm/v4/objects/contacts/{contact}/associations/companies/{company}");
    assert_eq!(crm.call(Method::DELETE, &pair, Value::Null).await.status, 204);
    assert_eq!(crm.associated(&there).await, []);
    assert_eq!(crm.associated(&back).await, []);
}

#[tokio::test]
async fn a_label_is_one_more_type_of_the_same_association() {
    let crm = Crm::new().await;
    let (contact, company) = (&crm.contact, &crm.company);
    let path = format!("/crm/v4/objects/contacts/{contact}/associations/companies/{company}");
    let label = async |body: Value| crm.call(Method::PUT, &path, body).await;
    let labelled = label(json!([
        {"associationCategory": "USER_DEFINED", "associationTypeId": 36},
        {"associationCategory": "HUBSPOT_DEFINED", "associationTypeId": 279},
    ]))
    .await;
    assert_eq!(labelled.status, 201);
    assert_eq!(labelled.json()["toObjectTypeId"], "0-2");
    let there = format!("/crm/v4/objects/contacts/{contact}/associations/companies");
    assert_eq!(crm.associated(&there).await, [(company.clone(), vec![279, 36])]);
    assert_eq!(label(json!([])).await.status, 400);
    assert_eq!(label(json!([{"associationTypeId": 36}])).await.status, 400);
    let nobody = format!("/crm/v4/objects/contacts/{contact}/associations/default/companies/1");
    assert_eq!(crm.call(Method::PUT, &nobody, Value::Null).await.status, 404);
}

#[tokio::test]
async fn associations_are_paged_and_read_in_batches() {
    let crm = Crm::new().await;
    let contact = &crm.contact;
    let body = json!({"inputs": [{"properties": {}}, {"properties": {}}, {"properties": {}}]});
    let companies = crm
        .call(Method::POST, "/crm/v3/objects/companies/batch/create", body)
        .await
        .json();
    for company in companies["results"].as_array().unwrap() {
        let id = company["id"].as_str().unwrap();
        let path = format!("/crm/v4/objects/contacts/{contact}/associations/default/companies/{id}");
        assert_eq!(crm.call(Method::PUT, &path, Value::Null).await.status, 200);
    }
    let there = format!("/crm/v4/objects/contacts/{contact}/associations/companies");
    let page = crm
        .call(Method::GET, &format!("{there}?limit=2"), Value::Null)
        .await
        .json();
    assert_eq!(page["results"].as_array().unwrap().len(), 2);
    let after = page["paging"]["next"]["after"].as_str().unwrap();
    assert_eq!(
        crm.associated(&format!("{there}?limit=2&after={after}"))
            .await
            .len(),
        1
    );

    let read = async |ids: &[&str]| {
        let inputs: Vec<_> = ids.iter().map(|id| json!({"id": id})).collect();
        let path = "/crm/v4/associations/contacts/companies/batch/read";
        crm.call(Method::POST, path, json!({"inputs": inputs})).await
    };
    let answer = read(&[contact]).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["results"][0]["to"].as_array().unwrap().len(), 3);
    let answer = read(&[contact, "1"]).await;
    assert_eq!(answer.status, 207);
    assert_eq!(answer.json()["numErrors"], 1);
}
