//! What callers see of the engine's values. None of these holds a refresh token; one holds an access token.

use std::collections::BTreeMap;

use bytes::Bytes;
use evergrant_domain::api_answer::Class;
use evergrant_domain::app::AppHealth;
use evergrant_domain::call_budget::Standing;
use evergrant_domain::connection::RefreshTrouble;
use evergrant_domain::diagnosis::times;
use evergrant_domain::event::RefreshReason;
use evergrant_domain::redemption::QUIET_TIME;
use evergrant_domain::{
    App, Connection, ConnectionStatus, Health, Kind, ReconnectReason, ShownToken, Timestamp, Version,
};
use evergrant_keeper::Current;
use evergrant_store::contract::{ApiKey, ConnectSession, RefreshCount, SessionOutcome, StoredEvent};
use serde::Serialize;
use utoipa::ToSchema;

/// RFC 3339 in UTC.
pub(crate) fn time(at: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(at.millis())
        .unwrap_or(jiff::Timestamp::MAX)
        .to_string()
}

/// A page of a list.
#[derive(Serialize, ToSchema)]
pub(crate) struct List<T> {
    pub(crate) items: Vec<T>,
    /// For the next page; `null` on the last.
    pub(crate) next_cursor: Option<String>,
}

impl<T> List<T> {
    /// The same page, its entries shown.
    pub(crate) fn map<U>(self, show: impl FnMut(T) -> U) -> List<U> {
        List {
            items: self.items.into_iter().map(show).collect(),
            next_cursor: self.next_cursor,
        }
    }
}

/// A connection, without its tokens.
#[derive(Serialize, ToSchema)]
#[schema(as = Connection)]
pub(crate) struct Record {
    id: String,
    app: String,
    customer: String,
    /// `oauth` or `static`.
    kind: &'static str,
    /// `active`, `reconnect_required` or `disconnected`.
    status: &'static str,
    status_reason: Option<String>,
    status_since: Option<String>,
    /// `healthy`, `degraded`, `reconnect_required`, `ambiguous`, `unverified`; `null` once disconnected.
    health: Option<&'static str>,
    /// Why it is not healthy.
    why: Option<String>,
    account: Option<AccountView>,
    scopes: Vec<String>,
    /// Those of the app's scopes that were not granted.
    missing_scopes: Vec<String>,
    token_type: String,
    version: i64,
    /// When the token set was issued.
    issued_at: Option<String>,
    expires_at: Option<String>,
    seconds_remaining: Option<i64>,
    /// From here on a refresh runs behind the calls.
    soft_expires_at: Option<String>,
    /// From here on calls wait for the refresh.
    hard_expires_at: Option<String>,
    refresh_in_progress_until: Option<String>,
    /// An attempt to redeem the refresh token whose outcome is not on record yet.
    redemption: Option<RedemptionView>,
    created_at: String,
    connected_at: String,
    updated_at: String,
    last_call_at: Option<String>,
    last_success_at: Option<String>,
    last_refresh_at: Option<String>,
    last_refresh_error: Option<RefreshErrorView>,
    /// Refreshes that failed since the last one that worked.
    failures_since_success: u32,
    next_refresh_attempt_at: Option<String>,
    last_401_at: Option<String>,
    last_403_at: Option<String>,
    last_429_at: Option<String>,
    /// The share of refreshes that brought a token set, by its history; `null` in lists and where there was none.
    refresh_success_rate_24h: Option<f64>,
    /// How many calls may be made now; `null` in lists, and where the provider names no limit or none was used lately.
    budget: Option<BudgetView>,
    /// Restores the connection, or asks for its missing scopes; `null` where neither is needed.
    reconnect_url: Option<String>,
    labels: BTreeMap<String, String>,
}

/// What is left of the budgets that a connection's calls are counted by, as the whole fleet shares them.
#[derive(Serialize, ToSchema)]
#[schema(as = Budget)]
struct BudgetView {
    /// The app's calls to the account; `null` where nobody counts them.
    calls: Option<BudgetOf>,
    /// All apps' searches in the account; `null` where none was made lately.
    searches: Option<BudgetOf>,
}

/// One budget.
#[derive(Serialize, ToSchema)]
struct BudgetOf {
    /// So many calls in each window; `null` where only the rest below is known.
    limit: Option<u32>,
    /// How long a window is.
    per_seconds: Option<f64>,
    /// How many of the window's calls are left to be taken now. What a process has taken and not used counts as used for up to a
    /// second.
    left: Option<u32>,
    /// A 429 said that nothing should be sent before this.
    rest_until: Option<String>,
}

impl From<Standing> for BudgetOf {
    fn from(standing: Standing) -> Self {
        Self {
            limit: standing.limit.map(|limit| limit.calls),
            per_seconds: standing.limit.map(|limit| limit.per.as_secs_f64()),
            left: standing.left,
            rest_until: standing.rest_until.map(time),
        }
    }
}

/// The provider's account.
#[derive(Serialize, ToSchema)]
#[schema(as = Account)]
struct AccountView {
    id: String,
    domain: Option<String>,
    user: Option<String>,
}

/// An open attempt to redeem a refresh token.
#[derive(Serialize, ToSchema)]
#[schema(as = Redemption)]
struct RedemptionView {
    /// Whose refresh token was presented.
    version: i64,
    attempts: u32,
    first_at: String,
    last_at: String,
}

/// Why refreshing fails, or why it failed for the last time.
#[derive(Serialize, ToSchema)]
#[schema(as = RefreshError)]
struct RefreshErrorView {
    at: String,
    code: String,
}

impl Record {
    /// Shows a connection as it stands at `now`. `app` is `None` where it is not configured any more.
    pub(crate) fn new(connection: &Connection, app: Option<&App>, now: Timestamp) -> Self {
        let (status_reason, status_since) = match &connection.status {
            ConnectionStatus::Active => (None, Some(connection.connected_at)),
            ConnectionStatus::ReconnectRequired { reason, since } => {
                (Some(reason.as_str().to_owned()), Some(*since))
            }
            ConnectionStatus::Disconnected { since, superseded_by } => (
                superseded_by.as_ref().map(|by| format!("superseded_by {by}")),
                Some(*since),
            ),
        };
        let health = connection.health(now, QUIET_TIME);
        // A static token has no end that anyone knows, a disconnected connection no token.
        let ends = match (&connection.status, connection.kind) {
            (ConnectionStatus::Disconnected { .. }, _) | (_, Kind::Static) => None,
            _ => Some(connection.ends),
        };
        let last = &connection.last;
        Self {
            id: connection.id.to_string(),
            app: connection.app.to_string(),
            customer: connection.customer.to_string(),
            kind: connection.kind.as_str(),
            status: connection.status.as_str(),
            status_reason,
            status_since: status_since.map(time),
            health: health.map(Health::as_str),
            why: why(connection, app, health),
            account: connection.account.as_ref().map(|account| AccountView {
                id: account.id.to_string(),
                domain: account.domain.clone(),
                user: account.user.clone(),
            }),
            missing_scopes: missing_scopes(connection, app),
            scopes: connection.scopes.clone(),
            token_type: connection.token_type.clone(),
            version: connection.version.number(),
            issued_at: ends.map(|_| time(connection.issued_at)),
            expires_at: ends.map(|ends| time(ends.expires)),
            seconds_remaining: ends.map(|ends| ends.expires.seconds_from(now)),
            soft_expires_at: ends.map(|ends| time(ends.soft)),
            hard_expires_at: ends.map(|ends| time(ends.hard)),
            refresh_in_progress_until: connection
                .refresh_in_progress_until
                .filter(|until| *until > now)
                .map(time),
            redemption: connection
                .intent
                .as_ref()
                .filter(|intent| intent.attempts > 0)
                .map(|intent| RedemptionView {
                    version: intent.version.number(),
                    attempts: intent.attempts,
                    first_at: time(intent.first_at),
                    last_at: time(intent.last_at),
                }),
            created_at: time(connection.created_at),
            connected_at: time(connection.connected_at),
            updated_at: time(connection.updated_at),
            last_call_at: last.call_at.map(time),
            last_success_at: last.success_at.map(time),
            last_refresh_at: last.refresh_at.map(time),
            last_refresh_error: last_refresh_error(connection),
            failures_since_success: connection.trouble.as_ref().map_or(0, |trouble| trouble.failures),
            next_refresh_attempt_at: connection
                .trouble
                .as_ref()
                .map(|trouble| time(trouble.next_attempt_at)),
            last_401_at: last.unauthorized_at.map(time),
            last_403_at: last.forbidden_at.map(time),
            last_429_at: last.rate_limited_at.map(time),
            refresh_success_rate_24h: None,
            budget: None,
            reconnect_url: None,
            labels: connection.labels.iter().cloned().collect(),
        }
    }

    /// Adds the link that restores it, where it needs one.
    #[must_use]
    pub(crate) fn with_link(mut self, link: impl FnOnce() -> Option<String>) -> Self {
        let scopes_are_missing = self.status == "active" && !self.missing_scopes.is_empty();
        if self.status == "reconnect_required" || scopes_are_missing {
            self.reconnect_url = link();
        }
        self
    }

    /// Says where its app's own credentials keep it from being refreshed.
    #[must_use]
    pub(crate) fn with_app_health(mut self, health: Option<&AppHealth>) -> Self {
        if self.status == "active"
            && let Some(AppHealth::CredentialsRejected { code, since }) = health
        {
            self.why = Some(format!(
                "the provider refuses the credentials of app {} ({code}) since {}, so no token can be refreshed",
                self.app,
                time(*since)
            ));
        }
        self
    }

    /// Adds how the budgets stand that its calls are counted by.
    #[must_use]
    pub(crate) fn with_budget(mut self, calls: Option<Standing>, searches: Option<Standing>) -> Self {
        self.budget = (calls.is_some() || searches.is_some()).then(|| BudgetView {
            calls: calls.map(BudgetOf::from),
            searches: searches.map(BudgetOf::from),
        });
        self
    }

    /// Adds how its refreshes of the last 24 hours ended.
    #[must_use]
    pub(crate) fn with_refreshes(mut self, refreshes: RefreshCount) -> Self {
        let RefreshCount { done, failed } = refreshes;
        if done > 0 || failed > 0 {
            self.refresh_success_rate_24h = Some(f64::from(done) / (f64::from(done) + f64::from(failed)));
        }
        self
    }
}

/// Why refreshing fails: trouble that may pass, or the refusal that ended the grant.
fn last_refresh_error(connection: &Connection) -> Option<RefreshErrorView> {
    let (at, code) = match (&connection.trouble, &connection.status) {
        (Some(trouble), _) => (trouble.failed_at, trouble.code.clone()),
        (
            None,
            ConnectionStatus::ReconnectRequired {
                reason:
                    reason @ (ReconnectReason::GrantRefused
                    | ReconnectReason::RedemptionOutcomeLost
                    | ReconnectReason::WrongClient),
                since,
            },
        ) => (*since, reason.as_str().to_owned()),
        // The other reasons end a grant without a refresh that failed.
        (None, _) => return None,
    };
    Some(RefreshErrorView { at: time(at), code })
}

fn missing_scopes(connection: &Connection, app: Option<&App>) -> Vec<String> {
    match (connection.kind, app) {
        // Nobody knows what a static token may do.
        (Kind::Static, _) | (_, None) => Vec::new(),
        (Kind::OAuth, Some(app)) => app
            .scopes
            .iter()
            .filter(|scope| !connection.scopes.contains(scope))
            .cloned()
            .collect(),
    }
}

fn failing(trouble: &RefreshTrouble) -> String {
    format!(
        "refreshing failed {} in a row ({}); the next try is at {}",
        times(trouble.failures.into()),
        trouble.code,
        time(trouble.next_attempt_at)
    )
}

fn why(connection: &Connection, app: Option<&App>, health: Option<Health>) -> Option<String> {
    if let ConnectionStatus::ReconnectRequired { reason, .. } = &connection.status {
        return Some(reason.meaning().to_owned());
    }
    let Some(health) = health else {
        return Some("its owner disconnected it".to_owned());
    };
    if app.is_none() {
        return Some(format!(
            "its app {} is not in the configuration, so it cannot be used or refreshed",
            connection.app
        ));
    }
    match (health, &connection.trouble) {
        (Health::Degraded, Some(trouble)) => Some(failing(trouble)),
        (Health::Ambiguous, _) => Some(
            "a redemption is past its deadline and nobody knows how it ended; the token at hand still serves"
                .to_owned(),
        ),
        (Health::Unverified, _) => Some("no call has succeeded since it was connected".to_owned()),
        (Health::Degraded, None) => Some(match connection.kind {
            Kind::Static => {
                "the last call came back 401: the static token is no longer accepted and must be replaced"
                    .to_owned()
            }
            Kind::OAuth => "the last call came back 401 and no call has succeeded since".to_owned(),
        }),
        (Health::Healthy | Health::ReconnectRequired, _) => None,
    }
}

/// An access token.
#[derive(Serialize, ToSchema)]
#[schema(as = Token)]
pub(crate) struct TokenView<'a> {
    pub(crate) access_token: &'a str,
    pub(crate) token_type: &'a str,
    /// `null` for a static token, whose end nobody knows.
    pub(crate) expires_at: Option<String>,
    pub(crate) seconds_remaining: Option<i64>,
    pub(crate) version: i64,
}

impl<'a> TokenView<'a> {
    /// Shows a token. Only answers to keys of the role `tokens` may hold one.
    pub(crate) fn new(token: &'a Current, now: Timestamp) -> Self {
        let ends = token.kind == Kind::OAuth;
        Self {
            access_token: token.access_token.expose(),
            token_type: &token.token_type,
            expires_at: ends.then(|| time(token.expires_at)),
            seconds_remaining: ends.then(|| token.seconds_remaining(now)),
            version: token.version.number(),
        }
    }

    /// The token as JSON: the one view that is asked for as often as tokens are. Put together once, up to what changes by the second.
    pub(crate) fn written(token: &Current, now: Timestamp) -> Bytes {
        let begin = token.shown(|token| ShownToken::new(TokenView::new(token, now).up_to_seconds()));
        let ends = token.kind == Kind::OAuth;
        let seconds = ends.then(|| token.seconds_remaining(now));
        with_seconds(begin.expose(), seconds, token.version.number())
    }

    fn up_to_seconds(&self) -> String {
        let mut json = serde_json::to_string(self).expect("text and numbers are plain data");
        let end = json.rfind(SECONDS).map_or(0, |at| at + SECONDS.len());
        json.truncate(end);
        json
    }
}

const SECONDS: &str = "\"seconds_remaining\":";

fn with_seconds(begin: &str, seconds: Option<i64>, version: i64) -> Bytes {
    let [mut one, mut other] = [itoa::Buffer::new(); 2];
    let seconds = seconds.map_or("null", |seconds| one.format(seconds));
    // No longer than that: then it need not be moved to become the answer.
    [begin, seconds, ",\"version\":", other.format(version), "}"]
        .concat()
        .into()
}

/// One line of a history. What does not apply is left out.
#[derive(Serialize, ToSchema)]
#[schema(as = Event)]
pub(crate) struct EventView {
    /// Grows with time: what is committed later has a higher one than what was read of the feed.
    pub(crate) id: i64,
    at: String,
    /// `null` for an event of an app.
    connection: Option<String>,
    app: String,
    #[serde(rename = "type")]
    kind: String,
    detail: String,
    /// The version that stood before it.
    version_before: Option<i64>,
    /// The version that stood after it.
    version: Option<i64>,
    /// The keyed fingerprint of the refresh token that stood after it: two events with one have one token.
    fingerprint: Option<String>,
    /// Who wrote it: host and process id.
    process: Option<String>,
    /// Who asked: an API key's id, or `operator`, `scheduler`, `customer`.
    by: Option<String>,
    /// Why a refresh was made: `due`, `waited_for`, `rejected`, `asked` or `forced`.
    reason: Option<&'static str>,
    class: Option<&'static str>,
    attempt: Option<u32>,
    /// The provider's.
    status_code: Option<u16>,
    method: Option<String>,
    /// The path with ids and query removed.
    endpoint: Option<String>,
    /// Of the token that was used; below zero where it had ended.
    seconds_remaining: Option<i64>,
    /// The version of the token set that was used.
    token_version: Option<i64>,
    /// In a row.
    failures_before: Option<u32>,
    took_ms: Option<u64>,
    request_id: Option<String>,
    provider_correlation_id: Option<String>,
}

impl From<StoredEvent> for EventView {
    fn from(event: StoredEvent) -> Self {
        let circumstances = event.circumstances;
        Self {
            id: event.id,
            at: time(event.at),
            connection: event.connection.map(|id| id.to_string()),
            app: event.app.to_string(),
            kind: event.kind,
            detail: event.detail,
            version_before: event.version_before.map(Version::number),
            version: event.version.map(Version::number),
            fingerprint: event.fingerprint,
            process: event.process,
            by: circumstances.by,
            reason: circumstances.reason.map(RefreshReason::as_str),
            class: circumstances.class.map(Class::as_str),
            attempt: circumstances.attempt,
            status_code: circumstances.status_code,
            method: circumstances.method,
            endpoint: circumstances.endpoint,
            seconds_remaining: circumstances.seconds_remaining,
            token_version: circumstances.token_version.map(Version::number),
            failures_before: circumstances.failures_before,
            took_ms: circumstances
                .took
                .map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
            request_id: circumstances.request_id,
            provider_correlation_id: circumstances.provider_correlation_id,
        }
    }
}

/// A customer's way through consent.
#[derive(Serialize, ToSchema)]
#[schema(as = ConnectSession)]
pub(crate) struct SessionView {
    id: String,
    app: String,
    customer: String,
    /// `pending`, `connected` or `failed`.
    status: &'static str,
    /// The connection, once there is one or where it was named.
    connection: Option<String>,
    /// Why it failed, as one word.
    code: Option<String>,
    /// Why it failed, as one sentence.
    detail: Option<String>,
    expires_at: String,
}

impl SessionView {
    /// Shows a session; one that ran out without an outcome has failed.
    pub(crate) fn new(session: ConnectSession, now: Timestamp) -> Self {
        let named = session.connection;
        let (status, connection, code, detail) = match session.outcome {
            SessionOutcome::Connected(id) => ("connected", Some(id), None, None),
            SessionOutcome::Failed { code, detail } => ("failed", named, Some(code), Some(detail)),
            SessionOutcome::Pending if session.expires_at <= now => {
                let detail = "nobody finished it in time".to_owned();
                ("failed", named, Some("expired".to_owned()), Some(detail))
            }
            SessionOutcome::Pending => ("pending", named, None, None),
        };
        Self {
            id: session.id,
            app: session.app.to_string(),
            customer: session.customer.to_string(),
            status,
            connection: connection.map(|id| id.to_string()),
            code,
            detail,
            expires_at: time(session.expires_at),
        }
    }
}

/// An app, without its secrets.
#[derive(Serialize, ToSchema)]
#[schema(as = App)]
pub(crate) struct AppView {
    name: String,
    display_name: Option<String>,
    /// `hubspot` or `generic`.
    provider: &'static str,
    client_id: String,
    /// To be registered at the provider, exactly like this.
    redirect_uri: String,
    authorize_url: String,
    token_url: String,
    introspect_url: Option<String>,
    revoke_url: Option<String>,
    api_base: String,
    scopes: Vec<String>,
    optional_scopes: Vec<String>,
    /// Where installs from a marketplace begin, where the app allows them.
    install_url: Option<String>,
    health: AppHealthView,
}

/// Whether the provider accepts the app's own credentials.
#[derive(Serialize, ToSchema)]
#[schema(as = AppHealth)]
pub(crate) struct AppHealthView {
    /// `ok` or `credentials_rejected`.
    status: &'static str,
    /// The provider's code.
    code: Option<String>,
    since: Option<String>,
}

impl From<AppHealth> for AppHealthView {
    fn from(health: AppHealth) -> Self {
        match health {
            AppHealth::Ok => Self {
                status: "ok",
                code: None,
                since: None,
            },
            AppHealth::CredentialsRejected { code, since } => Self {
                status: "credentials_rejected",
                code: Some(code),
                since: Some(time(since)),
            },
        }
    }
}

impl AppView {
    /// Shows an app.
    pub(crate) fn new(app: &App, health: AppHealth, install_url: Option<String>) -> Self {
        let provider = &app.provider;
        Self {
            name: app.name.to_string(),
            display_name: app.display_name.clone(),
            provider: provider.dialect.as_str(),
            client_id: app.client_id.clone(),
            redirect_uri: app.redirect_uri.clone(),
            authorize_url: provider.authorize_url.to_string(),
            token_url: provider.token_url.to_string(),
            introspect_url: provider.introspect_url.as_ref().map(ToString::to_string),
            revoke_url: provider.revoke_url.as_ref().map(ToString::to_string),
            api_base: provider.api_base.to_string(),
            scopes: app.scopes.clone(),
            optional_scopes: app.optional_scopes.clone(),
            install_url,
            health: health.into(),
        }
    }
}

/// An API key, without the key.
#[derive(Serialize, ToSchema)]
#[schema(as = ApiKey)]
pub(crate) struct KeyView {
    pub(crate) id: String,
    name: String,
    /// `gateway`, `tokens`, `support`, `metrics` or `admin`.
    role: &'static str,
    apps: Vec<String>,
    customers: Vec<String>,
    connections: Vec<String>,
    lane: Option<String>,
    /// Seconds.
    max_wait: Option<u32>,
    created_at: String,
    expires_at: Option<String>,
    revoked_at: Option<String>,
}

impl From<&ApiKey> for KeyView {
    fn from(key: &ApiKey) -> Self {
        let words = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
        Self {
            id: key.id.clone(),
            name: key.name.clone(),
            role: key.role.as_str(),
            apps: words(
                key.limits
                    .apps
                    .iter()
                    .map(evergrant_domain::AppName::as_str)
                    .collect(),
            ),
            customers: words(
                key.limits
                    .customers
                    .iter()
                    .map(evergrant_domain::Customer::as_str)
                    .collect(),
            ),
            connections: words(
                key.limits
                    .connections
                    .iter()
                    .map(evergrant_domain::ConnectionId::as_str)
                    .collect(),
            ),
            lane: key.lane.clone(),
            max_wait: key.max_wait,
            created_at: time(key.created_at),
            expires_at: key.expires_at.map(time),
            revoked_at: key.revoked_at.map(time),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_often_refreshing_failed_reads_as_people_say_it() {
        for (failures, said) in [
            (1, "failed once in"),
            (2, "failed twice in"),
            (7, "failed 7 times in"),
        ] {
            let trouble = RefreshTrouble {
                failed_at: Timestamp::from_millis(0),
                failures,
                next_attempt_at: Timestamp::from_millis(60_000),
                code: "server_error".to_owned(),
            };
            let text = failing(&trouble);
            assert!(text.contains(said), "{text}");
        }
    }

    #[test]
    fn a_token_is_written_as_its_view_says() {
        for (access_token, token_type, expires_at, seconds_remaining, version) in [
            ("pat-na1-x", "bearer", Some("2026-11-24T17:40:30Z"), Some(1800), 7),
            ("a\"b\\c", "Béarer\n", Some(""), Some(-3), i64::MAX),
            ("", "", None, None, 0),
        ] {
            let view = TokenView {
                access_token,
                token_type,
                expires_at: expires_at.map(str::to_owned),
                seconds_remaining,
                version,
            };
            let written = with_seconds(&view.up_to_seconds(), seconds_remaining, version);
            assert_eq!(written, serde_json::to_vec(&view).unwrap());
        }
    }
}
