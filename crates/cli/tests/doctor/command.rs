//! `evergrant doctor` as people and scripts use it, and what a key's limits leave of it.

use http::Method;
use hubspot_sim::SimConfig;
use serde_json::{Value, json};

use crate::installation::CLIENT;
use crate::practice::{CONTACTS, Practice, ago, fresh};

struct Ran {
    code: i32,
    printed: String,
    said: String,
}

fn doctor(practice: &Practice, arguments: &[&str]) -> Ran {
    let done = practice
        .evergrant()
        .arg("doctor")
        .args(arguments)
        .output()
        .unwrap();
    Ran {
        code: done.status.code().unwrap(),
        printed: String::from_utf8(done.stdout).unwrap(),
        said: String::from_utf8(done.stderr).unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_says_verdict_action_and_evidence_and_ends_with_the_code_for_it() {
    let practice = Practice::new(SimConfig::default()).await;
    let hubspot = &practice.installation.hubspot;
    let service = practice.serve();
    practice.connect(&service, "well", 1001).await;
    practice.works(&service, "well").await;
    practice.connect(&service, "gone", 1002).await;
    hubspot.uninstall(CLIENT, 1002);
    practice.connect(&service, "queue", 1003).await;
    for _ in 0..3 {
        let enqueued = ago(400);
        let headers = [("evergrant-enqueued-at", enqueued.as_str())];
        practice.call(&service, "queue", CONTACTS, &headers).await;
    }
    practice.is_named(&service, "queue", "queue_delay", "queue").await;
    for id in ["a", "b"] {
        let grant = hubspot
            .grant("other-client", if id == "a" { 1004 } else { 1005 })
            .unwrap();
        let mut record = fresh(&grant);
        record["app"] = json!("other");
        practice.import(&service, id, &grant, record).await;
    }
    drop(service);

    let ran = doctor(&practice, &["well"]);
    assert_eq!(ran.code, 0, "{}{}", ran.printed, ran.said);
    assert!(ran.printed.starts_with("well: healthy\n"), "{}", ran.printed);
    assert_eq!(ran.printed.matches("\nclear ").count(), 15, "{}", ran.printed);

    let ran = doctor(&practice, &["gone"]);
    assert_eq!(ran.code, 3, "{}{}", ran.printed, ran.said);
    assert!(
        ran.printed
            .starts_with("gone: The customer's grant is gone (grant_refused)\n"),
        "{}",
        ran.printed
    );
    assert!(
        ran.printed.contains("\nDo: Send the customer the reconnect link"),
        "{}",
        ran.printed
    );
    assert!(
        ran.printed.contains("\nStep by step: https://")
            && ran.printed.contains("/docs/runbooks/grant_refused.md"),
        "{}",
        ran.printed
    );
    assert!(
        ran.printed.contains("\nReconnect at: http://localhost:"),
        "{}",
        ran.printed
    );

    let ran = doctor(&practice, &["--customer", "queue", "--json"]);
    assert_eq!(ran.code, 6, "{}{}", ran.printed, ran.said);
    let answer: Value = serde_json::from_str(&ran.printed).unwrap();
    assert_eq!(answer["items"][0]["cause"], "queue_delay", "{answer:#}");

    let ran = doctor(&practice, &["--account", "1002", "--account", "1001"]);
    assert_eq!(ran.code, 3, "{}{}", ran.printed, ran.said);
    let lines: Vec<_> = ran.printed.lines().collect();
    assert!(
        lines[1].starts_with("gone\t") && lines[2].starts_with("well\t"),
        "{}",
        ran.printed
    );
    assert!(
        ran.said.contains("2 connections examined, 1 healthy."),
        "{}",
        ran.said
    );

    // What an app has against all of them is said once.
    hubspot.set_client_secret("other-client", "changed");
    let ran = doctor(&practice, &["--app", "other"]);
    assert_eq!(ran.code, 4, "{}{}", ran.printed, ran.said);
    assert_eq!(
        ran.printed
            .matches("The provider refuses the credentials of")
            .count(),
        1,
        "{}",
        ran.printed
    );
    assert_eq!(ran.printed.matches("see above").count(), 2, "{}", ran.printed);

    let ran = doctor(&practice, &["nobody"]);
    assert_ne!(ran.code, 0, "{}{}", ran.printed, ran.said);
    let ran = doctor(&practice, &["--customer", "nobody"]);
    assert_eq!((ran.code, ran.said.trim()), (0, "There are no such connections."));
    let ran = doctor(&practice, &["well", "--app", "crm"]);
    assert_eq!(ran.code, 2, "{}{}", ran.printed, ran.said);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_hears_of_its_own_connections_alone_and_never_a_token() {
    let practice = Practice::new(SimConfig::default()).await;
    let service = practice.serve();
    let hubspot = &practice.installation.hubspot;
    let scopes = ["oauth", "crm.objects.contacts.read", "crm.objects.contacts.write"];
    let grant = hubspot.grant_scopes(CLIENT, 1001, &scopes).unwrap();
    practice.import(&service, "mine", &grant, fresh(&grant)).await;
    practice
        .call(&service, "mine", "crm/v3/objects/deals?limit=1", &[])
        .await;
    // The one that would be a hint is not this key's.
    let all = [scopes.as_slice(), &["crm.objects.deals.read"]].concat();
    let other = hubspot.grant_scopes(CLIENT, 1002, &all).unwrap();
    let mut record = fresh(&other);
    record["customer"] = json!("mine");
    practice.import(&service, "theirs", &other, record).await;
    practice
        .is_named(
            &service,
            "mine",
            "missing_scopes",
            "connection theirs of the same customer",
        )
        .await;

    let body = json!({"name": "limited", "role": "support", "connections": ["mine"]});
    let made = practice
        .send(&service, Method::POST, "/v1/keys", Some(body))
        .await;
    let key = made.json()["key"].as_str().unwrap().to_owned();
    let ask = async |path: &str| {
        practice
            .installation
            .send(&service, Method::GET, path, &key, None)
            .await
    };
    let mine = ask("/v1/connections/mine/diagnosis").await;
    assert_eq!(mine.json()["cause"], "missing_scopes", "{mine:?}");
    assert!(!mine.text.contains("theirs"), "{mine:?}");
    for token in [&grant.access_token, &grant.refresh_token] {
        assert!(!mine.text.contains(token.as_str()), "a token is shown");
    }
    assert_eq!(ask("/v1/connections/theirs/diagnosis").await.status, 404);
    assert_eq!(ask("/v1/connections/nobody/diagnosis").await.status, 404);
    let listed = ask("/v1/diagnosis?customer=mine").await.json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 1, "{listed:#}");
    assert_eq!(listed["items"][0]["connection"], "mine", "{listed:#}");
    assert_eq!(
        ask("/v1/diagnosis?connection=theirs").await.json()["items"],
        json!([])
    );
    assert_eq!(ask("/v1/diagnosis?nonsense=1").await.status, 400);

    let body = json!({"name": "caller", "role": "gateway"});
    let made = practice
        .send(&service, Method::POST, "/v1/keys", Some(body))
        .await;
    let key = made.json()["key"].as_str().unwrap().to_owned();
    let refused = practice
        .installation
        .send(
            &service,
            Method::GET,
            "/v1/connections/mine/diagnosis",
            &key,
            None,
        )
        .await;
    assert_eq!(refused.status, 403, "{refused:?}");
}
