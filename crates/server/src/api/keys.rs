//! API keys: made, listed, revoked. A key is shown once, when it is made; its hash is all that is kept.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use evergrant_domain::access::{Limits, Role};
use evergrant_domain::{AppName, ConnectionId, Customer};
use evergrant_store::contract::ApiKey;
use evergrant_store::vault::random_token;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::access::{Caller, new_key};
use crate::input::{self, NoQuery, PathName, Query};
use crate::lists::page;
use crate::problem::{Code, Problem, ProblemView};
use crate::service::{Shared, no_store};
use crate::views::{KeyView, List};

/// A key to be made. Limits: AND between the kinds, OR within one; an empty kind limits nothing.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewKey {
    /// For people.
    name: String,
    /// `gateway`, `tokens`, `support`, `metrics` or `admin`.
    role: String,
    #[serde(default)]
    apps: Vec<String>,
    #[serde(default)]
    customers: Vec<String>,
    #[serde(default)]
    connections: Vec<String>,
    /// Seconds from now; without it the key does not expire.
    expires_in: Option<u64>,
    /// The lane its calls take: `interactive`, `sync` or `backfill`.
    lane: Option<String>,
    /// Seconds its calls may wait for budget, at most 60.
    max_wait: Option<u32>,
}

/// A key that was made.
#[derive(Serialize, ToSchema)]
pub(crate) struct MadeKey {
    /// The key itself. It is shown this once.
    key: String,
    #[serde(flatten)]
    view: KeyView,
}

/// Names of keys are for people; limits are lists, not databases.
const NAME_MAX: usize = 128;
const LIMITS_MAX: usize = 1000;
const MAX_WAIT_MAX: u32 = 60;

/// Makes an API key.
///
/// Role: `admin`.
#[utoipa::path(
    post, path = "/v1/keys", operation_id = "createKey", tag = "keys", request_body = NewKey,
    responses((status = 201, body = MadeKey), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn create(
    State(shared): State<Shared>,
    caller: Caller,
    _: NoQuery,
    input::Json(new): input::Json<NewKey>,
) -> Result<Response, Problem> {
    caller.require(Role::Admin)?;
    let now = shared.now();
    let limits = Limits {
        apps: each("apps", &new.apps, AppName::parse)?,
        customers: each("customers", &new.customers, Customer::parse)?,
        connections: each("connections", &new.connections, ConnectionId::parse)?,
    };
    if !caller.may_grant(&limits) {
        return Err(Problem::because(
            Code::Forbidden,
            "a key cannot make another that reaches further than itself",
        ));
    }
    if new.name.trim().is_empty() || new.name.len() > NAME_MAX || new.name.chars().any(char::is_control) {
        return Err(Problem::bad_request(format!(
            "`name`: expected 1 to {NAME_MAX} bytes without control characters"
        )));
    }
    if new
        .lane
        .as_deref()
        .is_some_and(|lane| !matches!(lane, "interactive" | "sync" | "backfill"))
    {
        return Err(Problem::bad_request(
            "`lane`: expected interactive, sync or backfill",
        ));
    }
    if new.max_wait.is_some_and(|seconds| seconds > MAX_WAIT_MAX) {
        return Err(Problem::bad_request(format!(
            "`max_wait`: expected seconds from 0 to {MAX_WAIT_MAX}"
        )));
    }
    if new.expires_in == Some(0) {
        return Err(Problem::bad_request("`expires_in`: expected at least one second"));
    }
    let role = Role::from_word(&new.role)
        .ok_or_else(|| Problem::bad_request("`role`: expected gateway, tokens, support, metrics or admin"))?;
    let stored = ApiKey {
        id: format!("key_{}", random_token(9)),
        name: new.name,
        role,
        limits,
        lane: new.lane,
        max_wait: new.max_wait,
        created_at: now,
        expires_at: new
            .expires_in
            .map(|seconds| now.after(Duration::from_secs(seconds))),
        revoked_at: None,
    };
    let (key, hash) = new_key();
    let view = KeyView::from(&stored);
    shared.keeper().store().create_key(stored, hash).await?;
    tracing::info!(event = "key_created", key_id = %view.id, by = %caller.shown(), "an API key was made");
    let mut response = (StatusCode::CREATED, Json(MadeKey { key, view })).into_response();
    no_store(response.headers_mut());
    Ok(response)
}

fn each<T, E: std::fmt::Display>(
    member: &str,
    texts: &[String],
    read: impl Fn(&str) -> Result<T, E>,
) -> Result<Vec<T>, Problem> {
    if texts.len() > LIMITS_MAX {
        return Err(Problem::bad_request(format!(
            "`{member}`: expected at most {LIMITS_MAX}"
        )));
    }
    let refused = |error: E| Problem::bad_request(format!("`{member}`: {error}"));
    texts.iter().map(|text| read(text).map_err(refused)).collect()
}

/// Lists the API keys, revoked and expired ones too.
///
/// By creation, then id.
///
/// Role: `admin`.
#[utoipa::path(
    get, path = "/v1/keys", operation_id = "listKeys", tag = "keys",
    params(("limit" = Option<u32>, Query, minimum = 1, maximum = 1000), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = List<KeyView>), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn list(
    State(shared): State<Shared>,
    caller: Caller,
    query: Query,
) -> Result<Json<List<KeyView>>, Problem> {
    caller.require(Role::Admin)?;
    let mut keys = shared.keeper().store().keys().await?;
    keys.retain(|key| caller.may_grant(&key.limits));
    let page = page(keys, |key| (key.created_at, key.id.clone()), query)?;
    Ok(Json(page.map(|key| KeyView::from(&key))))
}

/// Revokes an API key. It is refused everywhere within a second.
///
/// Role: `admin`.
#[utoipa::path(
    delete, path = "/v1/keys/{id}", operation_id = "revokeKey", tag = "keys",
    params(("id" = String, Path)),
    responses((status = 204), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn revoke(
    State(shared): State<Shared>,
    caller: Caller,
    _: NoQuery,
    PathName(id): PathName,
) -> Result<StatusCode, Problem> {
    caller.require(Role::Admin)?;
    let store = shared.keeper().store();
    // A key that reaches further than this caller does not exist for it.
    let is_seen = caller.limits().is_none()
        || store
            .keys()
            .await?
            .iter()
            .any(|key| key.id == id && caller.may_grant(&key.limits));
    if !is_seen || !store.revoke_key(&id, shared.now()).await? {
        return Err(Problem::new(Code::UnknownKey));
    }
    shared.keys.forget(&id);
    tracing::info!(event = "key_revoked", key_id = %id, by = %caller.shown(), "an API key was revoked");
    Ok(StatusCode::NO_CONTENT)
}
