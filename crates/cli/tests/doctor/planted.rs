//! Faults of single connections, side by side on one service.

use http::Method;
use hubspot_sim::{Fault, FaultKind, Rotation, SimConfig};
use serde_json::{Value, json};

use crate::installation::CLIENT;
use crate::practice::{CONTACTS, Practice, ago, check, fresh};

const DEALS: &str = "crm/v3/objects/deals?limit=1";
const LIMIT: FaultKind = FaultKind::RateLimited {
    policy: hubspot_sim::RateLimitPolicy::Daily,
    retry_after: None,
};

#[tokio::test(flavor = "multi_thread")]
async fn what_callers_do_wrong_is_named_for_the_connection_that_they_do_it_to() {
    let practice = Practice::new(SimConfig::default()).await;
    let hubspot = &practice.installation.hubspot;
    let service = practice.serve();
    practice.connect(&service, "well", 1000).await;
    practice.works(&service, "well").await;

    // Jobs that have waited for longer than the buffer of five minutes.
    practice.connect(&service, "queue", 1002).await;
    for _ in 0..3 {
        let enqueued = ago(400);
        let headers = [("evergrant-enqueued-at", enqueued.as_str())];
        assert_eq!(
            practice.call(&service, "queue", CONTACTS, &headers).await.status,
            200
        );
    }
    practice
        .is_named(&service, "queue", "queue_delay", "refresh_buffer = \"10m\"")
        .await;

    // 403, and a new token is asked for.
    let scopes = ["oauth", "crm.objects.contacts.read", "crm.objects.contacts.write"];
    for (id, portal) in [("forced", 1003), ("reported", 1004), ("scopes", 1005)] {
        let grant = hubspot.grant_scopes(CLIENT, portal, &scopes).unwrap();
        practice.import(&service, id, &grant, fresh(&grant)).await;
        assert_eq!(practice.call(&service, id, DEALS, &[]).await.status, 403);
    }
    practice
        .is_named(&service, "forced", "missing_scopes", "crm.objects.deals.read")
        .await;
    assert_eq!(practice.refresh(&service, "forced").await.status, 200);
    practice
        .is_named(&service, "forced", "misread_permission", "crm.objects.deals.read")
        .await;
    practice.reports(&service, "reported", 1, 403).await;
    practice
        .is_named(
            &service,
            "reported",
            "misread_permission",
            "reported as a rejected token once",
        )
        .await;

    // The scope is missing here, and another connection of the same customer has it.
    let found = practice
        .is_named(&service, "scopes", "missing_scopes", "Add crm.objects.deals.read")
        .await;
    assert!(found["reconnect_url"].is_string(), "{found:#}");
    let all = [scopes.as_slice(), &["crm.objects.deals.read"]].concat();
    let grant = hubspot.grant_scopes(CLIENT, 1006, &all).unwrap();
    let mut more = fresh(&grant);
    more["customer"] = json!("scopes");
    practice.import(&service, "sales", &grant, more).await;
    practice
        .is_named(
            &service,
            "scopes",
            "missing_scopes",
            "connection sales of the same customer",
        )
        .await;

    // 429, and then the same with a new token asked for.
    practice.connect(&service, "limited", 1007).await;
    hubspot.arm(Fault::api(LIMIT).hub(1007));
    let headers = [("evergrant-max-wait", "0")];
    assert_eq!(
        practice
            .call(&service, "limited", CONTACTS, &headers)
            .await
            .status,
        429
    );
    practice
        .is_named(&service, "limited", "rate_limited", "Retry-After")
        .await;
    assert_eq!(practice.refresh(&service, "limited").await.status, 200);
    practice
        .is_named(
            &service,
            "limited",
            "misread_rate_limit",
            "followed by a forced refresh",
        )
        .await;
    practice.is_healthy(&service, "well").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_grants_and_apps_is_named_before_and_after_a_refresh_meets_it() {
    let practice = Practice::new(SimConfig::default()).await;
    let hubspot = &practice.installation.hubspot;
    let service = practice.serve();
    practice.connect(&service, "well", 2000).await;
    practice.works(&service, "well").await;

    // The record says one account, the token is another one's.
    let grant = hubspot.grant(CLIENT, 2001).unwrap();
    let mut other = fresh(&grant);
    other["account"] = json!("2999");
    practice.import(&service, "account", &grant, other).await;
    practice
        .is_named(
            &service,
            "account",
            "wrong_account",
            "belongs to account 2001, and the record says 2999",
        )
        .await;
    practice.refresh(&service, "account").await;
    practice
        .is_named(&service, "account", "wrong_account", "another account than 2999")
        .await;

    // Uninstalled.
    practice.connect(&service, "gone", 2002).await;
    practice.works(&service, "gone").await;
    hubspot.uninstall(CLIENT, 2002);
    practice
        .is_named(
            &service,
            "gone",
            "grant_refused",
            "knows neither of its tokens any more",
        )
        .await;
    practice.refresh(&service, "gone").await;
    let found = practice
        .is_named(&service, "gone", "grant_refused", "uninstalled")
        .await;
    assert!(
        found["reconnect_url"].as_str().unwrap().contains("/connect/"),
        "{found:#}"
    );

    // Revoked by somebody who holds the grant and the app's secret: that is no customer.
    let grant = practice.connect(&service, "revoked", 2003).await;
    practice.is_healthy(&service, "revoked").await;
    practice
        .elsewhere("/oauth/2026-09/token/revoke", &[("token", &grant.refresh_token)])
        .await;
    practice
        .is_named(
            &service,
            "revoked",
            "raced_write",
            "replaced or revoked elsewhere",
        )
        .await;

    // The provider refuses the other app, and none of this one's.
    let grant = hubspot.grant("other-client", 2004).unwrap();
    let mut of_other = fresh(&grant);
    of_other["app"] = json!("other");
    practice.import(&service, "of-other", &grant, of_other).await;
    practice.is_healthy(&service, "of-other").await;
    hubspot.set_client_secret("other-client", "changed");
    practice
        .is_named(&service, "of-other", "app_credentials", "[apps.other]")
        .await;
    practice.refresh(&service, "of-other").await;
    let found = practice
        .is_named(&service, "of-other", "app_credentials", "Nobody has to reconnect")
        .await;
    assert_eq!(found["reconnect_url"], Value::Null, "{found:#}");

    // The token endpoint is in trouble.
    practice.connect(&service, "outage", 2005).await;
    hubspot.arm(
        Fault::token(FaultKind::Status {
            code: 503,
            location: None,
        })
        .hub(2005),
    );
    practice.refresh(&service, "outage").await;
    practice
        .is_named(&service, "outage", "provider_outage", "server_error")
        .await;

    // Its owner has disconnected it.
    practice.connect(&service, "ended", 2006).await;
    let answer = practice
        .send(&service, Method::DELETE, "/v1/connections/ended", None)
        .await;
    assert_eq!(answer.status, 202, "{answer:?}");
    practice
        .is_named(&service, "ended", "grant_refused", "--customer ended")
        .await;
    practice.is_healthy(&service, "well").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_environments_that_share_a_grant_are_told_so_and_not_that_the_customer_left() {
    let config = SimConfig {
        rotation: Rotation::Always,
        ..SimConfig::default()
    };
    let practice = Practice::new(config).await;
    let service = practice.serve();
    let grant = practice.connect(&service, "shared", 3001).await;
    practice.works(&service, "shared").await;
    practice.is_healthy(&service, "shared").await;
    // The other environment holds the same grant, and refreshes.
    let fields = [
        ("grant_type", "refresh_token"),
        ("refresh_token", &grant.refresh_token),
    ];
    practice.elsewhere("/oauth/2026-09/token", &fields).await;
    // Before this one refreshes, and after it was refused.
    practice
        .is_named(&service, "shared", "raced_write", "Two environments")
        .await;
    practice.refresh(&service, "shared").await;
    let found = practice
        .is_named(
            &service,
            "shared",
            "raced_write",
            "give each environment its own connection",
        )
        .await;
    assert!(found["reconnect_url"].is_string(), "{found:#}");
    assert_eq!(check(&found, "grant_refused")["result"], "found", "{found:#}");
    // Once the access token has ended nobody can tell the two apart, and nothing is said for certain.
    practice.installation.hubspot.expire_access_tokens(3001);
    let found = practice
        .is_named(
            &service,
            "shared",
            "grant_refused",
            "Either the customer's side ended it",
        )
        .await;
    assert!(
        found["summary"]
            .as_str()
            .unwrap()
            .contains("somebody else holds the same grant"),
        "{found:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_the_provider_refused_by_mistake_is_not_said_to_be_held_by_somebody_else() {
    let practice = Practice::new(SimConfig::default()).await;
    let service = practice.serve();
    practice.connect(&service, "mistake", 4001).await;
    practice.works(&service, "mistake").await;
    let refusal = FaultKind::CustomBody {
        code: 400,
        body: r#"{"status":"BAD_REFRESH_TOKEN"}"#.into(),
        content_type: Some("application/json".into()),
    };
    practice.installation.hubspot.arm(Fault::token(refusal).hub(4001));
    practice.refresh(&service, "mistake").await;
    practice
        .is_named(&service, "mistake", "grant_refused", "says now that it lives")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_faults_at_once_are_both_in_the_summary_and_all_of_it_is_plain_text() {
    let practice = Practice::new(SimConfig::default()).await;
    let service = practice.serve();
    let hubspot = &practice.installation.hubspot;
    let scopes = ["oauth", "crm.objects.contacts.read", "crm.objects.contacts.write"];
    let grant = hubspot.grant_scopes(CLIENT, 5001, &scopes).unwrap();
    practice.import(&service, "both", &grant, fresh(&grant)).await;
    assert_eq!(practice.call(&service, "both", DEALS, &[]).await.status, 403);
    hubspot.arm(Fault::api(LIMIT).hub(5001));
    let headers = [("evergrant-max-wait", "0")];
    assert_eq!(
        practice.call(&service, "both", CONTACTS, &headers).await.status,
        429
    );
    let found = practice
        .is_named(
            &service,
            "both",
            "missing_scopes",
            "Found beside it: The provider limits the calls.",
        )
        .await;
    assert!(
        found["runbook_url"]
            .as_str()
            .unwrap()
            .ends_with("/docs/runbooks/missing_scopes.md"),
        "{found:#}"
    );
    let text = found.to_string();
    assert!(!text.contains('`') && !text.contains("00Z"), "{found:#}");
}
