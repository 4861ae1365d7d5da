//! Looking first whether what a write would bring is already there.

use std::sync::Arc;

use evergrant_domain::event::EventKind;
use evergrant_gateway::{Answer, Refusal, RefusalKind};
use hubspot_sim::{Fault, FaultKind};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::scripted::{Reply, Scripted, Seen, reply};
use crate::world::{CONTACTS, World, body, gist, refused, text};

const ADA: &str =
    "{\"properties\":{\"email\":\"ada@example.com\",\"firstname\":\"Ada\"},\"associations\":[]}";
const BY_EMAIL: (&str, &str) = ("evergrant-guard", "read-before-write;property=email");
const AHEAD: (&str, &str) = ("evergrant-guard", "read-before-write");
const KEY: (&str, &str) = ("idempotency-key", "k1");
const JSON: (&str, &str) = ("content-type", "application/json");

async fn create(world: &World, headers: &[(&str, &str)], body: &str) -> Result<Answer, Refusal> {
    let mut all = vec![JSON];
    all.extend_from_slice(headers);
    world.send_with("POST", CONTACTS, &all, body.to_owned()).await
}

fn replayed(answer: &Answer) -> &str {
    text(answer.response.headers(), "evergrant-replayed")
}

async fn json_of(answer: Answer) -> Value {
    serde_json::from_slice(&body(answer).await).unwrap()
}

/// Answers look-ups with `found`, and writes with 201.
async fn provider(found: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Scripted {
    Scripted::new(move |_, seen| {
        if seen.first_line().starts_with("GET") {
            found(seen)
        } else {
            reply("201 Created", JSON_HEADER, "{\"id\":\"8\"}")
        }
    })
    .await
}

const JSON_HEADER: &str = "Content-Type: application/json\r\n";

/// HubSpot's.
fn not_found() -> Reply {
    let said = "{\"status\":\"error\",\"message\":\"resource not found\",\"correlationId\":\"c\"}";
    reply("404 Not Found", JSON_HEADER, said)
}

fn methods(provider: &Scripted) -> Vec<String> {
    let first = |seen: &Seen| seen.first_line().split(' ').next().unwrap().to_owned();
    provider.seen().iter().map(first).collect()
}

#[tokio::test]
async fn a_contact_that_is_there_is_not_created_again() {
    let world = World::new().await;
    let first = create(&world, &[BY_EMAIL], ADA).await.unwrap();
    assert_eq!((gist(&first), replayed(&first)), ((201, "ok", 1), ""));
    let id = json_of(first).await["id"].clone();
    let again = create(&world, &[BY_EMAIL], ADA).await.unwrap();
    // Clients take a create that is answered otherwise for a failure.
    assert_eq!((gist(&again), replayed(&again)), ((201, "ok", 0), "true"));
    let found = json_of(again).await;
    assert_eq!(
        (&found["id"], &found["properties"]["firstname"]),
        (&id, &json!("Ada"))
    );
    assert_eq!(world.hubspot.ledger().creates_executed, 1);
    assert_eq!(world.events(EventKind::WriteSuppressed).await.len(), 1);
}

#[tokio::test]
async fn a_contact_that_is_there_otherwise_is_the_providers_to_refuse() {
    let world = World::new().await;
    create(&world, &[BY_EMAIL], ADA).await.unwrap();
    let other = create(&world, &[BY_EMAIL], &ADA.replace("Ada\"", "Eve\""))
        .await
        .unwrap();
    assert_eq!((gist(&other), replayed(&other)), ((409, "client_error", 1), ""));
}

#[tokio::test]
async fn a_property_that_is_not_unique_sends_nothing() {
    let world = World::new().await;
    let guard = ("evergrant-guard", "read-before-write;property=firstname");
    let (kind, attempts) = refused(create(&world, &[guard], ADA).await);
    assert!(matches!(kind, RefusalKind::GuardNotApplicable { .. }), "{kind:?}");
    assert_eq!((attempts, world.hubspot.ledger().creates_executed), (0, 0));
}

#[tokio::test]
async fn what_it_does_not_fit_is_refused_and_not_sent() {
    let provider = provider(|_| reply("404 Not Found", "", "")).await;
    let world = World::at(&provider.base).await;
    for (method, target, guard) in [
        ("PATCH", "/crm/v3/objects/contacts/7", BY_EMAIL),
        ("POST", "/crm/v3/objects/contacts/batch/create", BY_EMAIL),
        ("POST", CONTACTS, AHEAD),
        (
            "POST",
            CONTACTS,
            ("evergrant-guard", "read-before-write;property=phone"),
        ),
    ] {
        let (kind, _) = refused(world.send_with(method, target, &[guard, JSON], ADA).await);
        assert!(
            matches!(kind, RefusalKind::GuardNotApplicable { .. }),
            "{method} {target} {kind:?}"
        );
    }
    assert_eq!(provider.seen().len(), 0);
}

#[tokio::test]
async fn a_look_that_the_provider_refuses_is_the_writes_answer() {
    for (status, class) in [
        ("403 Forbidden", "permission_denied"),
        ("429 Too Many", "rate_limited"),
        ("423 Locked", "unavailable"),
        ("503 Unavailable", "unavailable"),
    ] {
        let provider = provider(move |_| reply(status, "Retry-After: 7\r\n", "why")).await;
        let world = World::at(&provider.base).await;
        for _ in 0..2 {
            // The place is free again each time.
            let answer = create(&world, &[BY_EMAIL, KEY], ADA).await.unwrap();
            let (status_code, found, attempts) = gist(&answer);
            assert!(
                status.starts_with(&status_code.to_string()),
                "{status} {status_code}"
            );
            assert_eq!((found, attempts), (class, 0));
            assert_eq!(text(answer.response.headers(), "retry-after"), "7");
            assert_eq!(text(answer.response.headers(), "evergrant-outcome"), "");
            assert_eq!(body(answer).await, "why");
        }
        assert!(
            methods(&provider).iter().all(|method| method == "GET"),
            "{status}"
        );
    }
}

#[tokio::test]
async fn a_look_that_is_not_answered_by_the_provider_itself_sends_nothing_and_may_be_tried_again() {
    for (status, said) in [
        ("404 Not Found", "<html>no such page</html>"),
        ("404 Not Found", ""),
        ("200 OK", "<html>welcome</html>"),
        ("200 OK", ""),
        ("400 Bad Request", "{\"message\":\"something else\"}"),
        ("302 Found", ""),
    ] {
        let provider = Scripted::new(move |nth, seen| match (nth, seen.first_line()) {
            (0, _) => reply(status, "", said),
            (_, line) if line.starts_with("GET") => not_found(),
            _ => reply("201 Created", JSON_HEADER, "{\"id\":\"8\"}"),
        })
        .await;
        let world = World::at(&provider.base).await;
        let (kind, attempts) = refused(create(&world, &[BY_EMAIL, KEY], ADA).await);
        assert!(
            matches!(kind, RefusalKind::LookUnclear { .. }),
            "{status} {said} {kind:?}"
        );
        assert_eq!((attempts, methods(&provider).len()), (0, 1));
        // Its place is free.
        let again = create(&world, &[BY_EMAIL, KEY], ADA).await.unwrap();
        assert_eq!((gist(&again), replayed(&again)), ((201, "ok", 1), ""));
    }
}

#[tokio::test]
async fn a_look_without_an_answer_sends_nothing() {
    let provider = provider(|_| Reply::Last(Vec::new())).await;
    let world = World::at(&provider.base).await;
    let (kind, attempts) = refused(create(&world, &[BY_EMAIL, KEY], ADA).await);
    assert!(matches!(kind, RefusalKind::UpstreamTimeout), "{kind:?}");
    assert_eq!(attempts, 0);
    assert_eq!(methods(&provider), ["GET", "GET"]);
}

#[tokio::test]
async fn a_create_whose_answer_was_lost_is_looked_for_and_found() {
    for headers in [&[BY_EMAIL][..], &[BY_EMAIL, KEY]] {
        for fault in [
            FaultKind::AnswerLostAfterIssue,
            FaultKind::StatusAfterIssue { code: 502 },
        ] {
            let world = World::new().await;
            world.hubspot.arm(Fault::api(fault.clone()).method("POST"));
            let first = create(&world, headers, ADA).await.unwrap();
            assert_eq!(
                (gist(&first), replayed(&first)),
                ((201, "ok", 1), "true"),
                "{fault:?}"
            );
            assert_eq!(text(first.response.headers(), "evergrant-outcome"), "");
            assert_eq!(json_of(first).await["properties"]["email"], "ada@example.com");
            let again = create(&world, headers, ADA).await.unwrap();
            assert_eq!((gist(&again), replayed(&again)), ((201, "ok", 0), "true"));
            assert_eq!(world.hubspot.ledger().creates_executed, 1);
        }
    }
}

#[tokio::test]
async fn an_unknown_outcome_is_settled_by_a_look_and_by_nothing_else() {
    let is_there = Arc::new(Mutex::new(false));
    let looked = is_there.clone();
    let provider = Scripted::new(move |_, seen| {
        if !seen.first_line().starts_with("GET") {
            return Reply::Last(Vec::new());
        }
        if *looked.lock() {
            let found = "{\"id\":\"7\",\"properties\":{\"email\":\"ada@example.com\",\"firstname\":\"Ada\"}}";
            reply("200 OK", JSON_HEADER, found)
        } else {
            not_found()
        }
    })
    .await;
    let world = World::at(&provider.base).await;
    let (first, _) = refused(create(&world, &[BY_EMAIL, KEY], ADA).await);
    assert!(matches!(first, RefusalKind::OutcomeUnknown { .. }), "{first:?}");
    // It may still be under way: not found proves nothing.
    let (again, _) = refused(create(&world, &[BY_EMAIL, KEY], ADA).await);
    assert!(
        matches!(again, RefusalKind::OutcomeStillUnknown { .. }),
        "{again:?}"
    );
    *is_there.lock() = true;
    let again = create(&world, &[BY_EMAIL, KEY], ADA).await.unwrap();
    assert_eq!((gist(&again), replayed(&again)), ((201, "ok", 0), "true"));
    // It is settled for whoever does not look, too.
    *is_there.lock() = false;
    let settled = create(&world, &[KEY], ADA).await.unwrap();
    assert_eq!((gist(&settled), replayed(&settled)), ((201, "ok", 0), "true"));
    let posts = methods(&provider)
        .iter()
        .filter(|method| *method == "POST")
        .count();
    assert_eq!(posts, 1);
}

#[tokio::test]
async fn an_association_that_is_there_is_not_made_again() {
    let page = |after: &str| {
        let results = "{\"toObjectId\":8,\"associationTypes\":[]}";
        format!("{{\"results\":[{results}],\"paging\":{{\"next\":{{\"after\":\"{after}\"}}}}}}")
    };
    let last = "{\"results\":[{\"toObjectId\":9,\"associationTypes\":[{\"category\":\"HUBSPOT_DEFINED\",\"typeId\":279,\"label\":null}]}]}";
    let provider = provider(move |seen| {
        let body = if seen.first_line().contains("after=p2") {
            last.to_owned()
        } else {
            page("p2")
        };
        reply("200 OK", JSON_HEADER, body)
    })
    .await;
    let world = World::at(&provider.base).await;
    let put = async |target, body: &'static str| world.send_with("PUT", target, &[AHEAD, JSON], body).await;
    let default = put("/crm/v4/objects/contacts/7/associations/default/companies/9", "")
        .await
        .unwrap();
    assert_eq!((gist(&default), replayed(&default)), ((200, "ok", 0), "true"));
    assert_eq!(json_of(default).await["results"][0]["to"]["id"], "9");
    let types = "[{\"associationCategory\":\"HUBSPOT_DEFINED\",\"associationTypeId\":279}]";
    let labelled = put("/crm/v4/objects/contacts/7/associations/companies/9", types)
        .await
        .unwrap();
    assert_eq!((gist(&labelled), replayed(&labelled)), ((201, "ok", 0), "true"));
    assert_eq!(json_of(labelled).await["toObjectId"], 9);
    assert_eq!(methods(&provider), ["GET"; 4]);
}

#[tokio::test]
async fn associations_are_not_looked_through_for_ever() {
    let page = "{\"results\":[],\"paging\":{\"next\":{\"after\":\"more\"}}}";
    let provider = provider(move |_| reply("200 OK", JSON_HEADER, page)).await;
    let world = World::at(&provider.base).await;
    let target = "/crm/v4/objects/contacts/7/associations/default/companies/9";
    let (kind, _) = refused(world.send_with("PUT", target, &[AHEAD], "").await);
    assert!(matches!(kind, RefusalKind::GuardNotApplicable { .. }), "{kind:?}");
    assert_eq!(methods(&provider), ["GET"; 20]);
}

#[tokio::test]
async fn an_association_at_the_simulator_is_made_once() {
    let world = World::new().await;
    let made = async |kind: &str, body: &'static str| {
        let target = format!("/crm/v3/objects/{kind}");
        let answer = world.send_with("POST", &target, &[JSON], body).await.unwrap();
        json_of(answer).await["id"].as_str().unwrap().to_owned()
    };
    let contact = made("contacts", ADA).await;
    let company = made("companies", "{\"properties\":{\"name\":\"Acme\"}}").await;
    let target = format!("/crm/v4/objects/contacts/{contact}/associations/default/companies/{company}");
    let put = || world.send_with("PUT", &target, &[AHEAD], "");
    let first = put().await.unwrap();
    assert_eq!((gist(&first), replayed(&first)), ((200, "ok", 1), ""));
    let again = put().await.unwrap();
    assert_eq!((gist(&again), replayed(&again)), ((200, "ok", 0), "true"));
    let [first, again] = [json_of(first).await, json_of(again).await];
    assert_eq!(first["results"][0]["to"], again["results"][0]["to"]);
}
