//! Operators see and repair in a real browser.

use std::process::Command;

use http::Method;
use hubspot_sim::{Fault, FaultKind, SimConfig};
use serde_json::{Value, json};

use crate::installation::{CLIENT, Installation, Service};
use crate::prepared::{client_script, prepared};

/// More than one page of the list holds.
const CROWD: u64 = 48;

/// A house with connections in every state that can be had at once: named after how they stand.
struct House {
    installation: Installation,
    service: Service,
}

impl House {
    async fn build() -> Self {
        let installation = Installation::new(SimConfig::default()).await;
        let service = installation.serve();
        let house = Self {
            installation,
            service,
        };
        house.import("calls-well", "Customer of calls-well", 1001).await;
        house
            .import("lost-its-grant", "lost-its-grant & Sons", 1002)
            .await;
        house.import("cannot-refresh", "cannot-refresh Inc.", 1003).await;
        house.import("leaves", "leaves GmbH", 1004).await;
        house
            .import(
                "hostile",
                "<img src=x onerror=alert(1)>\"'</title><script>alert(2)</script>",
                1005,
            )
            .await;
        house
            .import("right-to-left", "شركة الأمل للتجارة (ש.ל.) GmbH", 1007)
            .await;
        house.import("long", &"Konsortium-".repeat(18), 1008).await;
        house.import("was-disconnected", "Former Customer", 1006).await;
        for number in 0..CROWD {
            let id = format!("crowd-{number:02}");
            house
                .import(
                    &id,
                    NAMES[usize::try_from(number).unwrap() % NAMES.len()],
                    2000 + number,
                )
                .await;
        }
        house.bring_into_their_states().await;
        house
    }

    async fn bring_into_their_states(&self) {
        let hubspot = &self.installation.hubspot;
        let call = |id: &str| format!("/gateway/{id}/crm/v3/objects/contacts");
        for id in ["calls-well", "hostile"] {
            self.ask(Method::GET, &call(id), None).await;
        }
        for number in 0..CROWD {
            if number % 5 != 4 {
                self.ask(Method::GET, &call(&format!("crowd-{number:02}")), None)
                    .await;
            }
        }
        for (id, portal) in [("lost-its-grant", 1002), ("crowd-07", 2007), ("crowd-19", 2019)] {
            hubspot.uninstall(CLIENT, portal);
            hubspot.expire_access_tokens(portal);
            self.ask(Method::GET, &call(id), None).await;
        }
        for (id, portal) in [("cannot-refresh", 1003), ("crowd-11", 2011)] {
            let fault = FaultKind::Status {
                code: 503,
                location: None,
            };
            hubspot.arm(Fault::token(fault).hub(portal).times(100));
            let path = format!("/v1/connections/{id}/refresh");
            self.ask(Method::POST, &path, Some(json!({"force": true}))).await;
        }
        self.ask(Method::DELETE, "/v1/connections/was-disconnected", None)
            .await;
    }

    async fn import(&self, id: &str, customer: &str, portal: u64) {
        let grant = self.installation.hubspot.grant(CLIENT, portal).unwrap();
        let now = jiff::Timestamp::now();
        let lasts = jiff::SignedDuration::from_secs(200 + i64::try_from(portal * 37 % 1600).unwrap());
        let mut record = json!({
            "id": id, "app": "crm", "customer": customer, "refresh_token": grant.refresh_token,
            "access_token": grant.access_token, "account": portal, "scopes": grant.scopes,
            "expires_at": (now + lasts).to_string(),
        });
        if portal % 9 == 5 {
            record["scopes"] = json!(["oauth", "crm.objects.contacts.read"]);
        }
        let answer = self.ask(Method::POST, "/v1/connections", Some(record)).await;
        assert_eq!(answer, 201);
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> u16 {
        let key = &self.installation.admin_key;
        let answer = self
            .installation
            .send(&self.service, method, path, key, body)
            .await;
        answer.status.as_u16()
    }

    /// What held in the browser.
    async fn visit(&self, steps: &str) -> Vec<String> {
        let support = self.installation.key(&self.service, "support").await;
        let mut node = Command::new("node");
        node.arg(client_script("node/dashboard.mjs"))
            .env("NODE_PATH", prepared("EVERGRANT_TEST_NODE_MODULES"))
            .env("CHROMIUM", prepared("EVERGRANT_TEST_CHROMIUM"))
            .env("BASE", self.installation.public_url())
            .env("SUPPORT", support)
            .env("ADMIN", &self.installation.admin_key)
            .env("STEPS", steps);
        if let Some(folder) = std::env::var_os("EVERGRANT_TEST_SHOTS") {
            node.env("SHOTS", folder);
        }
        let output = tokio::task::spawn_blocking(move || node.output())
            .await
            .unwrap()
            .unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let report: Value = serde_json::from_str(printed.trim()).unwrap_or_else(|_| {
            panic!("{printed} {}", String::from_utf8_lossy(&output.stderr));
        });
        serde_json::from_value(report["held"].clone()).unwrap()
    }
}

const NAMES: [&str; 12] = [
    "Northwind Traders",
    "Blue Fjord Logistics",
    "Café Solheim",
    "Hartmann & Partner",
    "Lumen Analytics",
    "Osprey Outdoor",
    "Quiet Harbor Yoga",
    "Riverbend Dental",
    "Stellar Bikes",
    "Tanuki Games",
    "Verde Coffee Roasters",
    "Zephyr Travel",
];

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_finds_what_stopped_and_repairs_it_with_the_customer() {
    let house = House::build().await;
    let held = house.visit("repair").await;
    assert_eq!(held.len(), 15, "{held:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_is_for_everyone() {
    let house = House::build().await;
    let held = house.visit("everyone").await;
    assert_eq!(held.len(), 8, "{held:?}");
}
