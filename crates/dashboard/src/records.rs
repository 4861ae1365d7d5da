//! The API's answers, as far as the pages show them. What a page can do without may be missing: an older or newer process of the
//! same fleet may answer with less or more.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

/// A page of a list.
#[derive(Debug, Deserialize)]
pub(crate) struct List<T> {
    pub(crate) items: Vec<T>,
    pub(crate) next_cursor: Option<String>,
}

/// `GET /v1/connections/{id}`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Connection {
    pub(crate) id: String,
    pub(crate) app: String,
    pub(crate) customer: String,
    pub(crate) kind: String,
    pub(crate) status: String,
    pub(crate) status_reason: Option<String>,
    pub(crate) status_since: Option<Timestamp>,
    pub(crate) health: Option<String>,
    pub(crate) why: Option<String>,
    pub(crate) account: Option<Account>,
    pub(crate) scopes: Vec<String>,
    pub(crate) missing_scopes: Vec<String>,
    pub(crate) version: i64,
    pub(crate) issued_at: Option<Timestamp>,
    pub(crate) soft_expires_at: Option<Timestamp>,
    pub(crate) hard_expires_at: Option<Timestamp>,
    pub(crate) expires_at: Option<Timestamp>,
    pub(crate) refresh_in_progress_until: Option<Timestamp>,
    pub(crate) redemption: Option<Redemption>,
    pub(crate) created_at: Option<Timestamp>,
    pub(crate) connected_at: Option<Timestamp>,
    pub(crate) last_call_at: Option<Timestamp>,
    pub(crate) last_success_at: Option<Timestamp>,
    pub(crate) last_refresh_at: Option<Timestamp>,
    pub(crate) last_refresh_error: Option<RefreshError>,
    pub(crate) failures_since_success: u32,
    pub(crate) next_refresh_attempt_at: Option<Timestamp>,
    #[serde(rename = "last_401_at")]
    pub(crate) last_unauthorized_at: Option<Timestamp>,
    #[serde(rename = "last_403_at")]
    pub(crate) last_forbidden_at: Option<Timestamp>,
    #[serde(rename = "last_429_at")]
    pub(crate) last_rate_limited_at: Option<Timestamp>,
    pub(crate) refresh_success_rate_24h: Option<f64>,
    pub(crate) budget: Option<Budgets>,
    pub(crate) labels: BTreeMap<String, String>,
}

impl Connection {
    pub(crate) fn is_disconnected(&self) -> bool {
        self.status == "disconnected"
    }

    /// Whether its token comes from consent, and so can be refreshed and restored.
    pub(crate) fn is_oauth(&self) -> bool {
        self.kind == "oauth"
    }
}

/// The provider's account.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Account {
    pub(crate) id: String,
    pub(crate) domain: Option<String>,
    pub(crate) user: Option<String>,
}

/// Why refreshing fails.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RefreshError {
    pub(crate) at: Option<Timestamp>,
    pub(crate) code: String,
}

/// An attempt to redeem that is open.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Redemption {
    pub(crate) version: i64,
    pub(crate) attempts: u32,
    pub(crate) first_at: Option<Timestamp>,
    pub(crate) last_at: Option<Timestamp>,
}

/// What is left of the budgets that a connection's calls are counted by.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Budgets {
    pub(crate) calls: Option<Budget>,
    pub(crate) searches: Option<Budget>,
}

/// A limit of calls, and what is left of it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Budget {
    pub(crate) limit: Option<u64>,
    pub(crate) per_seconds: Option<f64>,
    pub(crate) left: Option<u64>,
    pub(crate) rest_until: Option<Timestamp>,
}

/// One line of a history.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Event {
    pub(crate) id: i64,
    pub(crate) at: Option<Timestamp>,
    pub(crate) connection: Option<String>,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) detail: String,
    pub(crate) version: Option<i64>,
    pub(crate) version_before: Option<i64>,
    pub(crate) provider_correlation_id: Option<String>,
    pub(crate) request_id: Option<String>,
    pub(crate) by: Option<String>,
    pub(crate) process: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) status_code: Option<u16>,
    pub(crate) method: Option<String>,
    pub(crate) endpoint: Option<String>,
    pub(crate) attempt: Option<u32>,
    pub(crate) seconds_remaining: Option<i64>,
    pub(crate) fingerprint: Option<String>,
}

/// `GET /v1/apps`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct App {
    pub(crate) name: String,
    pub(crate) display_name: Option<String>,
    pub(crate) provider: String,
    pub(crate) client_id: String,
    pub(crate) redirect_uri: String,
    pub(crate) authorize_url: String,
    pub(crate) token_url: String,
    pub(crate) api_base: String,
    pub(crate) scopes: Vec<String>,
    pub(crate) optional_scopes: Vec<String>,
    pub(crate) install_url: Option<String>,
    pub(crate) health: AppHealth,
    pub(crate) endpoint: Option<EndpointTrouble>,
}

/// Whether the provider accepts the app's own credentials.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct AppHealth {
    pub(crate) status: String,
    pub(crate) code: Option<String>,
    pub(crate) since: Option<Timestamp>,
}

impl AppHealth {
    pub(crate) fn is_rejected(&self) -> bool {
        self.status == "credentials_rejected"
    }
}

/// A token endpoint that fails.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct EndpointTrouble {
    pub(crate) failures: u32,
    pub(crate) open_until: Option<Timestamp>,
}

/// `GET /v1/overview`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Overview {
    pub(crate) apps: Vec<AppOverview>,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) lifeboat_entries: Option<u64>,
}

/// Webhooks that were not taken and are not tried again.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct DeadLetters {
    pub(crate) count: u64,
    pub(crate) oldest_at: Option<Timestamp>,
}

/// An app's part of it. What the key may not know is empty.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct AppOverview {
    pub(crate) app: String,
    /// By health.
    pub(crate) connections: BTreeMap<String, u64>,
    /// By minute, oldest first; minutes in which nothing was counted are missing.
    pub(crate) calls_by_ttl_last_hour: Vec<Tallied>,
    pub(crate) refreshes_last_hour: Vec<Tallied>,
    /// All that was counted.
    pub(crate) last_day: BTreeMap<String, u64>,
}

/// What was counted in a minute.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Tallied {
    pub(crate) at: Timestamp,
    /// By the API's words.
    pub(crate) counts: BTreeMap<String, u64>,
}

/// `GET /v1/webhooks/deliveries`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Delivery {
    pub(crate) id: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) url: String,
    pub(crate) state: String,
    pub(crate) app: String,
    pub(crate) connection: Option<String>,
    pub(crate) customer: Option<String>,
    pub(crate) at: Option<Timestamp>,
    pub(crate) tries: u32,
    pub(crate) last_status: Option<u16>,
    pub(crate) last_error: Option<String>,
    pub(crate) next_try_at: Option<Timestamp>,
}

/// `POST /v1/connections/{id}/reconnect-link`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Link {
    pub(crate) url: String,
    pub(crate) expires_at: Option<Timestamp>,
}

/// `GET /v1/connections/{id}/diagnosis`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Diagnosis {
    pub(crate) connection: String,
    pub(crate) app: Option<String>,
    pub(crate) customer: Option<String>,
    pub(crate) account: Option<String>,
    pub(crate) verdict: String,
    pub(crate) cause: Option<String>,
    pub(crate) title: Option<String>,
    pub(crate) summary: String,
    pub(crate) action: Option<String>,
    pub(crate) checks: Vec<Check>,
}

/// One check of a diagnosis.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Check {
    pub(crate) id: String,
    pub(crate) result: String,
    pub(crate) evidence: Value,
}

/// `POST /v1/connections/{id}/refresh`
#[derive(Debug, Deserialize)]
pub(crate) struct Refreshed {
    pub(crate) redeemed: bool,
    pub(crate) version_before: i64,
    pub(crate) version: i64,
}

/// `DELETE /v1/connections/{id}`
#[derive(Debug, Deserialize)]
pub(crate) struct Ended {
    pub(crate) revocation: String,
    pub(crate) access_tokens_valid_until: Option<Timestamp>,
}

/// `POST /v1/apps/{app}/check`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Checked {
    pub(crate) result: String,
    pub(crate) code: Option<String>,
}
