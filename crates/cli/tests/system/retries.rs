//! HubSpot's own clients with their own retries on: what they repeat by themselves, and that a guarded create is executed once
//! all the same. The judge is what the simulator created, never what was answered.

use std::process::Command;

use hubspot_sim::{Fault, FaultKind, SimConfig};
use serde_json::{Value, json};

use crate::installation::{Installation, Service};
use crate::prepared::{client_script, prepared};

const PORTAL: u64 = 1001;
const COMPANIES: &str = "/crm/v3/objects/companies";

/// What happens to the first create that arrives.
#[derive(Debug, Clone, Copy)]
enum First {
    Answered,
    /// It is executed, and the connection ends without an answer.
    Cut,
    /// It is executed, and something between answers 502.
    BadGateway,
}

struct Clients {
    installation: Installation,
    service: Service,
    key: String,
    client: fn() -> Command,
}

impl Clients {
    async fn new(client: fn() -> Command) -> Self {
        let installation = Installation::new(SimConfig::default()).await;
        let service = installation.serve();
        installation.connected(&service, "acme", PORTAL).await;
        let key = installation.key(&service, "gateway").await;
        Self {
            installation,
            service,
            key,
            client,
        }
    }

    /// A job that runs twice: what it got each time, how many companies there are now, and how many calls HubSpot saw.
    async fn run_twice(&self, name: &str, first: First, headers: Value) -> (Vec<Value>, usize, u64) {
        let hubspot = &self.installation.hubspot;
        let kind = match first {
            First::Answered => None,
            First::Cut => Some(FaultKind::AnswerLostAfterIssue),
            First::BadGateway => Some(FaultKind::StatusAfterIssue { code: 502 }),
        };
        if let Some(kind) = kind {
            hubspot.arm(Fault::api(kind).method("POST").path(COMPANIES));
        }
        let calls = hubspot.ledger().api_calls;
        let mut client = (self.client)();
        client
            .env("GATEWAY", format!("{}/gateway/acme", self.service.address))
            .env("API_KEY", &self.key)
            .env("NAME", name)
            .env("HEADERS", headers.to_string());
        let output = tokio::task::spawn_blocking(move || client.output()).await;
        let output = output.unwrap().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let got = serde_json::from_str(printed.trim())
            .unwrap_or_else(|error| panic!("{error}: {printed} {}", String::from_utf8_lossy(&output.stderr)));
        let created = hubspot.created(PORTAL, "companies", "name", name);
        (got, created, hubspot.ledger().api_calls - calls)
    }

    /// Once under a guard, whatever became of the first answer; and what the job is told both times.
    async fn check_guarded(&self, guard: &str, headers: Value) {
        for first in [First::Answered, First::Cut, First::BadGateway] {
            let name = format!("{guard}-{first:?}");
            let mut headers = headers.clone();
            // One key for each write.
            if let Some(key) = headers.get_mut("Idempotency-Key") {
                *key = json!(format!("job-{name}"));
            }
            let (got, created, calls) = self.run_twice(&name, first, headers).await;
            let told = format!("{name}: {got:?}, {calls} calls");
            assert_eq!(created, 1, "{told}");
            assert_eq!(calls, 1, "nothing more leaves for HubSpot: {told}");
            match first {
                First::Answered => {
                    assert!(got[0]["id"].is_string(), "{told}");
                    assert_eq!(got[0], got[1], "the second run is told of the first: {told}");
                }
                First::Cut | First::BadGateway => {
                    for got in &got {
                        assert_eq!(*got, json!({"code": 424, "error": "outcome_unknown"}), "{told}");
                    }
                }
            }
        }
    }

    /// Why it takes a guard: the client repeats by itself.
    async fn check_unguarded(&self) {
        let (got, created, calls) = self.run_twice("no guard", First::BadGateway, json!({})).await;
        assert!(got[0]["id"].is_string(), "the client's retry hides it: {got:?}");
        assert_eq!(
            (created, calls),
            (3, 3),
            "two for the first run, one for the second: {got:?}"
        );
    }

    /// What the gateway does for everybody: it never repeats a write, and says so in a status that no client repeats.
    async fn check_cut_unguarded(&self) {
        let (got, created, _) = self.run_twice("cut", First::Cut, json!({})).await;
        assert_eq!(
            got[0],
            json!({"code": 424, "error": "outcome_unknown"}),
            "{got:?}"
        );
        assert_eq!(created, 2, "one for each run of the job: {got:?}");
    }
}

fn node() -> Command {
    let mut node = Command::new("node");
    node.arg(client_script("node/retries.mjs"))
        .env("NODE_PATH", prepared("EVERGRANT_TEST_NODE_MODULES"));
    node
}

fn python() -> Command {
    let mut python = Command::new(prepared("EVERGRANT_TEST_PYTHON"));
    python.arg(client_script("python/retries.py"));
    python
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_the_node_client_repeats_by_itself_is_executed_once_under_a_guard() {
    let clients = Clients::new(node).await;
    clients.check_guarded("key", json!({"Idempotency-Key": ""})).await;
    let fingerprint = json!({"Evergrant-Dedupe": "fingerprint;window=60"});
    clients.check_guarded("fingerprint", fingerprint).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_the_python_client_repeats_by_itself_is_executed_once_under_a_guard() {
    let clients = Clients::new(python).await;
    clients.check_guarded("key", json!({"Idempotency-Key": ""})).await;
    let fingerprint = json!({"Evergrant-Dedupe": "fingerprint;window=60"});
    clients.check_guarded("fingerprint", fingerprint).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_guard_the_node_clients_own_retry_creates_twice() {
    let clients = Clients::new(node).await;
    clients.check_unguarded().await;
    clients.check_cut_unguarded().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_guard_the_python_clients_own_retry_creates_twice() {
    let clients = Clients::new(python).await;
    clients.check_unguarded().await;
    clients.check_cut_unguarded().await;
}
