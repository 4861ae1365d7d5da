//! What HubSpot's own clients throw, piped into `evergrant explain` in an empty folder, as somebody does who has never seen either.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use hubspot_sim::{Fault, FaultKind, RateLimitPolicy, SimConfig, Simulator};
use serde_json::Value;

use crate::prepared::{client_script, prepared};

const PORTAL: u64 = 1001;

/// What goes wrong, and what is to be said of it: the problem or class, the status, whether a refresh helps.
fn armed() -> Vec<(FaultKind, &'static str, u16, bool)> {
    let limited = |policy| FaultKind::RateLimited {
        policy,
        retry_after: None,
    };
    vec![
        (FaultKind::UnauthorizedEarly, "expired", 401, true),
        (FaultKind::Forbidden, "permission_denied", 403, false),
        (limited(RateLimitPolicy::TenSecondly), "rate_limited", 429, false),
        (limited(RateLimitPolicy::Daily), "rate_limited", 429, false),
        (FaultKind::Locked, "unavailable", 423, false),
        (
            FaultKind::Migrating { retry_after: 60 },
            "unavailable",
            477,
            false,
        ),
        (FaultKind::Html { code: 502 }, "unavailable", 502, false),
        (
            FaultKind::Status {
                code: 504,
                location: None,
            },
            "unavailable",
            504,
            false,
        ),
    ]
}

/// What comes of the calls after those.
const BY_ITSELF: [(&str, u16, bool); 4] = [
    ("client_error", 409, false),
    ("malformed_token", 401, false),
    ("reconnect_required", 400, false),
    ("app_credentials_rejected", 400, false),
];

fn explained(text: &str, folder: &Path) -> Value {
    let mut explain = Command::new(env!("CARGO_BIN_EXE_evergrant"))
        .args(["explain", "-", "--json"])
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    explain.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = explain.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}\n{text}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn check(mut client: Command) {
    let hubspot = Simulator::start(SimConfig::default()).await.unwrap();
    for (kind, ..) in armed() {
        hubspot.arm(Fault::api(kind));
    }
    let token = hubspot.static_token(PORTAL);
    client
        .env("BASE", hubspot.base_url())
        .env("TOKEN", &token)
        .env("CALLS", armed().len().to_string());
    let output = tokio::task::spawn_blocking(move || client.output()).await;
    let output = output.unwrap().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let thrown: Vec<Vec<String>> = serde_json::from_str(printed.trim())
        .unwrap_or_else(|error| panic!("{error}: {printed} {}", String::from_utf8_lossy(&output.stderr)));
    let expected: Vec<_> = armed()
        .into_iter()
        .map(|(_, word, status, helps)| (word, status, helps))
        .chain(BY_ITSELF)
        .collect();
    assert_eq!(thrown.len(), expected.len(), "{thrown:?}");
    let folder = tempfile::tempdir().unwrap();
    for (texts, (word, status, helps)) in thrown.iter().zip(expected) {
        assert!(!texts.is_empty(), "nothing was thrown for {word}");
        for text in texts {
            let said = explained(text, folder.path());
            let found = said["problem"].as_str().or(said["class"].as_str());
            assert_eq!(
                (found, said["status"].as_u64(), said["refresh_helps"].as_bool()),
                (Some(word), Some(status.into()), Some(helps)),
                "{said}\n{text}"
            );
            assert!(said["documentation_url"].is_string(), "{said}");
            assert!(!said.to_string().contains(&token), "a token is repeated");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_node_client_throws_is_understood() {
    let mut node = Command::new("node");
    node.arg(client_script("node/exceptions.mjs"))
        .env("NODE_PATH", prepared("EVERGRANT_TEST_NODE_MODULES"));
    check(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_python_client_raises_is_understood() {
    let mut python = Command::new(prepared("EVERGRANT_TEST_PYTHON"));
    python.arg(client_script("python/exceptions.py"));
    check(python).await;
}
