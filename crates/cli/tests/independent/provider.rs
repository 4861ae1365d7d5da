//! The server that others wrote, as a process of its own: `tests/clients/python/authserver.py`.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::web::{self, Web};

/// How the server treats a refresh token that was redeemed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rotation {
    /// It is dead, and whoever presents it again kills the whole family.
    SingleUse,
    /// It may be repeated for a while.
    Grace,
}

impl Rotation {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::SingleUse => "single_use",
            Self::Grace => "grace",
        }
    }
}

/// A running server. It ends when this is dropped.
pub(crate) struct Provider {
    process: Child,
    web: Web,
    pub(crate) url: String,
    pub(crate) client_id: String,
    pub(crate) client_secret: String,
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the server saw: its own ledger, the judge of every test here.
#[derive(Debug, Deserialize)]
pub(crate) struct Ledger {
    pub(crate) token_requests: u64,
    pub(crate) code_exchanges: u64,
    pub(crate) introspections: u64,
    pub(crate) revocations: u64,
    pub(crate) families_revoked: u64,
    pub(crate) unknown_refresh_tokens: u64,
    /// Requests that are held right now.
    pub(crate) held: u64,
    /// The most redemptions, of whichever grants, in flight at once.
    pub(crate) in_flight_max: u64,
    /// By customer.
    grants: BTreeMap<String, GrantRecord>,
    /// By `x-req-id`.
    pub(crate) requests: BTreeMap<String, RequestRecord>,
    /// Seconds, by the server's own clock.
    pub(crate) now: f64,
}

/// What became of one customer's grant.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct GrantRecord {
    pub(crate) presented: u64,
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    /// Presentations of a refresh token that had been replaced.
    pub(crate) replays: u64,
    /// Presentations while another one of the same grant was in flight.
    pub(crate) overlaps: u64,
    pub(crate) live: bool,
    pub(crate) refresh_tokens: Vec<RefreshTokenRecord>,
}

/// The life of one refresh token.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct RefreshTokenRecord {
    pub(crate) accepted: u64,
    pub(crate) presented_at: Vec<f64>,
}

/// What became of the API calls with one `x-req-id`.
#[derive(Debug, Deserialize)]
pub(crate) struct RequestRecord {
    pub(crate) deliveries: u64,
    pub(crate) served: u64,
}

impl Ledger {
    pub(crate) fn grant(&self, customer: &str) -> GrantRecord {
        self.grants.get(customer).cloned().unwrap_or_default()
    }

    /// I1 and I2 for every grant: never two presentations at once, and nothing presented again after it was accepted, but for
    /// so many replays as the test itself has made necessary by losing answers.
    pub(crate) fn is_clean(&self, replays: u64) {
        let seen: u64 = self.grants.values().map(|grant| grant.replays).sum();
        assert!(seen <= replays, "{seen} replays, {replays} excused: {self:?}");
        for (customer, grant) in &self.grants {
            assert_eq!(grant.overlaps, 0, "{customer}: {self:?}");
            let accepted = grant.refresh_tokens.iter().map(|token| token.accepted).max();
            assert!(accepted <= Some(1 + replays), "{customer}: {self:?}");
        }
        assert_eq!(self.unknown_refresh_tokens, 0, "{self:?}");
    }
}

impl GrantRecord {
    /// When its refresh tokens were presented, in order.
    pub(crate) fn presented_at(&self) -> Vec<f64> {
        let mut at: Vec<f64> = self
            .refresh_tokens
            .iter()
            .flat_map(|token| token.presented_at.clone())
            .collect();
        at.sort_by(f64::total_cmp);
        at
    }
}

impl Provider {
    pub(crate) async fn start(rotation: Rotation) -> Self {
        let python = prepared("EVERGRANT_TEST_PYTHON");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/clients/python/authserver.py");
        let mut process = Command::new(python)
            .arg("-B")
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut ready)
            .unwrap();
        let ready: Value = serde_json::from_str(&ready).expect("the server says where it is");
        let word = |name: &str| ready[name].as_str().unwrap().to_owned();
        let provider = Self {
            process,
            web: Web::new(),
            url: word("url"),
            client_id: word("client_id"),
            client_secret: word("client_secret"),
        };
        provider.settings(json!({"rotation": rotation.word()})).await;
        provider
    }

    /// A customer's grant as it is after consent: refresh token and access token.
    pub(crate) async fn grant(&self, customer: &str) -> Value {
        self.control("grant", json!({"user": customer})).await
    }

    /// The same, of a customer whose refresh token stays the same for ever.
    pub(crate) async fn grant_that_never_rotates(&self, customer: &str) -> Value {
        self.control("grant", json!({"user": customer, "rotates": false}))
            .await
    }

    /// `ttl` of access tokens, `rotation`, `grace`, and `advance` for its clock; all in seconds.
    pub(crate) async fn settings(&self, settings: Value) {
        self.control("settings", settings).await;
    }

    /// Kills access tokens before their time.
    pub(crate) async fn expire(&self, customer: &str) {
        self.control("expire", json!({"user": customer})).await;
    }

    /// What goes wrong from now on: see `authserver_wire.py`.
    pub(crate) async fn fault(&self, fault: Value) {
        self.control("fault", fault).await;
    }

    /// Nothing goes wrong any more, and what is held goes on.
    pub(crate) async fn heal(&self) {
        self.control("heal", json!({})).await;
    }

    /// Cuts every connection that waits for a next request.
    pub(crate) async fn drop_idle_connections(&self) -> u64 {
        self.control("drop", json!({})).await["dropped"].as_u64().unwrap()
    }

    pub(crate) async fn ledger(&self) -> Ledger {
        let ledger = self.control("ledger", json!({})).await;
        serde_json::from_value(ledger).unwrap()
    }

    /// Waits until so many requests are held.
    pub(crate) async fn holds(&self, requests: u64) {
        web::eventually("a request arrives and is held", async || {
            self.ledger().await.held >= requests
        })
        .await;
    }

    async fn control(&self, what: &str, wish: Value) -> Value {
        let url = format!("{}/_control/{what}", self.url);
        let answer = self.web.post(&url, &wish).await.unwrap();
        assert_eq!(answer.status, 200, "{what}: {answer:?}");
        answer.json()
    }
}

/// A folder or program that `cargo xtask test` prepares and names in the environment.
pub(crate) fn prepared(variable: &str) -> PathBuf {
    std::env::var_os(variable)
        .unwrap_or_else(|| {
            panic!("{variable} is not set: run `cargo xtask test`, which installs what these tests need")
        })
        .into()
}
