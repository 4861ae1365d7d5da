//! Connections: listed, read, changed, ended, restored.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use evergrant_domain::access::Role;
use evergrant_domain::redemption::QUIET_TIME;
use evergrant_domain::{
    AppName, Connection, ConnectionId, ConnectionStatus, Customer, Health, Kind, Timestamp,
};
use evergrant_store::contract::{
    BudgetName, Connected, ConnectionFilter, HealthAsked, Revoke, Sort, SortBy, SortKey,
};
use serde::{Deserialize, Serialize};
use url::Url;
use utoipa::ToSchema;

use crate::access::Caller;
use crate::connect::link;
use crate::input::{self, NoQuery, OptionalJson, PathId, Query};
use crate::lists::{coded_cursor, decoded_cursor, limit, not_a_cursor};
use crate::problem::{Code, Problem, ProblemView};
use crate::service::Shared;
use crate::views::{List, Record, time};

/// Over which time the refresh success rate is counted.
const A_DAY: Duration = Duration::from_secs(24 * 3600);

/// Lists connections.
///
/// By creation, then id, or as `sort` says: `created`, `customer`, `expires_at`, `last_call_at` or `status_since`, with `-` before it
/// from the largest on. A repeated filter means OR, different filters AND. `q` looks for a part of the id, the customer, or the
/// account's id or domain.
///
/// Role: `support`.
#[utoipa::path(
    get, path = "/v1/connections", operation_id = "listConnections", tag = "connections",
    params(
        ("app" = Option<Vec<String>>, Query), ("customer" = Option<Vec<String>>, Query),
        ("account" = Option<Vec<String>>, Query), ("status" = Option<Vec<String>>, Query),
        ("health" = Option<Vec<String>>, Query), ("q" = Option<String>, Query), ("sort" = Option<String>, Query),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000), ("cursor" = Option<String>, Query),
    ),
    responses((status = 200, body = List<Record>), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn list(
    State(shared): State<Shared>,
    caller: Caller,
    mut query: Query,
) -> Result<Json<List<Record>>, Problem> {
    caller.require(Role::Support)?;
    let limit = limit(&mut query)?;
    let healths = query.each("health", |word| {
        Health::from_word(word)
            .ok_or("expected healthy, degraded, reconnect_required, ambiguous or unverified")
    })?;
    let sort = query
        .one("sort")?
        .as_deref()
        .map_or(Ok(Sort::default()), read_sort)?;
    if !healths.is_empty() {
        // What was seen a moment ago counts, too.
        shared.keeper().flush_soon().await;
    }
    let filter = ConnectionFilter {
        apps: query.each("app", AppName::parse)?,
        customers: query.each("customer", Customer::parse)?,
        accounts: query.all("account"),
        statuses: query.each("status", read_status)?,
        healths: (!healths.is_empty()).then(|| HealthAsked {
            any_of: healths,
            now: shared.now(),
            quiet_time: QUIET_TIME,
        }),
        q: query.one("q")?.filter(|q| !q.is_empty()),
        limits: caller.filter(),
        sort,
        // One more than shown says whether there is a next page.
        limit: limit + 1,
        after: query
            .one("cursor")?
            .as_deref()
            .map(|cursor| read_place(sort, cursor))
            .transpose()?,
    };
    query.done()?;
    let limit = limit as usize;
    let mut found = shared.keeper().store().list(filter).await?;
    let is_last = found.len() <= limit;
    found.truncate(limit);
    let next_cursor = found
        .last()
        .filter(|_| !is_last)
        .map(|last| write_place(sort, last));
    let items = found
        .into_iter()
        .map(|connection| shared.record(connection))
        .collect();
    Ok(Json(List { items, next_cursor }))
}

fn read_sort(text: &str) -> Result<Sort, Problem> {
    let (descending, word) = match text.strip_prefix('-') {
        Some(word) => (true, word),
        None => (false, text),
    };
    let by = SortBy::ALL.into_iter().find(|by| by.as_str() == word);
    let by = by.ok_or_else(|| {
        Problem::bad_request(
            "`sort`: expected created, customer, expires_at, last_call_at or status_since, with - before it for the largest first",
        )
    })?;
    Ok(Sort { by, descending })
}

/// The last connection of a page, as the next page's `cursor` names it.
pub(crate) fn write_place(sort: Sort, last: &Connection) -> String {
    let key = match sort.by.key_of(last) {
        SortKey::Time(at) => at.millis().to_string(),
        SortKey::Text(text) => text,
    };
    coded_cursor(&[sort.by.as_str(), last.id.as_str(), &key])
}

pub(crate) fn read_place(sort: Sort, cursor: &str) -> Result<(SortKey, ConnectionId), Problem> {
    let [by, id, key] = decoded_cursor(cursor)?;
    let key = match sort.by {
        SortBy::Customer => Some(SortKey::Text(key)),
        SortBy::Created | SortBy::ExpiresAt | SortBy::LastCallAt | SortBy::StatusSince => {
            key.parse().ok().map(Timestamp::from_millis).map(SortKey::Time)
        }
    };
    match (key, ConnectionId::parse(&id)) {
        (Some(key), Ok(id)) if by == sort.by.as_str() => Ok((key, id)),
        _ => Err(not_a_cursor()),
    }
}

fn read_status(word: &str) -> Result<String, &'static str> {
    match word {
        "active" | "reconnect_required" | "disconnected" => Ok(word.to_owned()),
        _ => Err("expected active, reconnect_required or disconnected"),
    }
}

/// The record of a connection.
///
/// Role: `support`.
#[utoipa::path(
    get, path = "/v1/connections/{id}", operation_id = "readConnection", tag = "connections",
    params(("id" = String, Path)),
    responses((status = 200, body = Record), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn read(
    State(shared): State<Shared>,
    caller: Caller,
    _: NoQuery,
    PathId(id): PathId,
) -> Result<Json<Record>, Problem> {
    let connection = caller.connection(shared.keeper(), &id, Role::Support).await?;
    let since = shared.now().before(A_DAY);
    let store = shared.keeper().store();
    let refreshes = store.count_refreshes(&id, since).await?;
    let (calls, searches) = BudgetName::of_connection(&connection);
    let calls = store.budget_standing(&calls, shared.now()).await?;
    let searches = store.budget_standing(&searches, shared.now()).await?;
    let record = shared.record_alone(connection).await;
    Ok(Json(
        record.with_refreshes(refreshes).with_budget(calls, searches),
    ))
}

/// What callers may change of a connection. What is left out stays as it is.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Patch {
    /// Your own reference.
    customer: Option<String>,
    /// Replaces all labels.
    labels: Option<BTreeMap<String, String>>,
}

/// Changes a connection.
///
/// Role: `support`.
#[utoipa::path(
    patch, path = "/v1/connections/{id}", operation_id = "changeConnection", tag = "connections", request_body = Patch,
    params(("id" = String, Path)),
    responses((status = 200, body = Record), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn patch(
    State(shared): State<Shared>,
    caller: Caller,
    _: NoQuery,
    PathId(id): PathId,
    input::Json(patch): input::Json<Patch>,
) -> Result<Json<Record>, Problem> {
    let connection = caller.connection(shared.keeper(), &id, Role::Support).await?;
    let customer = patch.customer.as_deref().map(read_customer).transpose()?;
    if let Some(customer) = &customer
        && !caller.sees_parts(&connection.app, customer, Some(&id))
    {
        return Err(Problem::because(
            Code::Forbidden,
            "the key is limited to other customers than this one",
        ));
    }
    let labels = patch.labels.map(read_labels).transpose()?;
    match shared
        .keeper()
        .store()
        .patch(&id, customer, labels, shared.now())
        .await?
    {
        Connected::Stored(held) => Ok(Json(shared.record_alone(held.connection).await)),
        Connected::AccountTaken { by } => Err(taken(&shared, &caller, Code::AccountTaken, &by).await),
        Connected::GrantTaken { by } => Err(taken(&shared, &caller, Code::GrantTaken, &by).await),
        Connected::IdTaken | Connected::Missing => Err(Problem::unknown_connection(&id)),
    }
}

/// A conflict names the other connection only to keys that may see it.
pub(crate) async fn taken(shared: &Shared, caller: &Caller, code: Code, by: &ConnectionId) -> Problem {
    let problem = Problem::new(code);
    match shared.keeper().store().connection(by).await {
        Ok(Some(other)) if caller.sees(&other) => problem.about(by),
        Ok(_) | Err(_) => problem,
    }
}

pub(crate) fn read_customer(text: &str) -> Result<Customer, Problem> {
    Customer::parse(text).map_err(|error| Problem::bad_request(format!("`customer`: {error}")))
}

/// Labels are for sorting and finding, not for keeping documents in.
pub(crate) fn read_labels(labels: BTreeMap<String, String>) -> Result<Vec<(String, String)>, Problem> {
    const LABELS_MAX: usize = 64;
    const TEXT_MAX: usize = 255;
    let is_label = |text: &str| text.len() <= TEXT_MAX && !text.chars().any(char::is_control);
    let valid = labels.len() <= LABELS_MAX
        && labels
            .iter()
            .all(|(name, value)| !name.is_empty() && is_label(name) && is_label(value));
    if valid {
        Ok(labels.into_iter().collect())
    } else {
        Err(Problem::bad_request(format!(
            "`labels`: expected at most {LABELS_MAX}, each name and value at most {TEXT_MAX} bytes without control characters"
        )))
    }
}

/// How a connection ended.
#[derive(Serialize, ToSchema)]
pub(crate) struct Ended {
    /// `pending`, `done`, `unsupported` or `shared`: another live connection has this app and account.
    revocation: &'static str,
    /// Access tokens that were handed out may serve until then: providers do not take them back. `null`: none does.
    access_tokens_valid_until: Option<String>,
}

/// Ends a connection.
///
/// Its tokens are erased at once. `revoke=auto` revokes the grant only where no other live connection has that app and
/// account. `purge` erases record and history, too. Doing it again changes nothing.
///
/// Role: `admin`.
#[utoipa::path(
    delete, path = "/v1/connections/{id}", operation_id = "disconnect", tag = "connections",
    params(
        ("id" = String, Path), ("revoke" = Option<String>, Query, description = "auto, always or never"),
        ("purge" = Option<bool>, Query)
    ),
    responses((status = 202, body = Ended), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn disconnect(
    State(shared): State<Shared>,
    caller: Caller,
    PathId(id): PathId,
    mut query: Query,
) -> Result<(StatusCode, Json<Ended>), Problem> {
    let before = caller.connection(shared.keeper(), &id, Role::Admin).await?;
    let revoke = match query.one("revoke")?.as_deref() {
        None | Some("auto") => Revoke::Auto,
        Some("always") => Revoke::Always,
        Some("never") => Revoke::Never,
        Some(_) => return Err(Problem::bad_request("`revoke`: expected auto, always or never")),
    };
    let purge = query.flag("purge")?;
    query.done()?;
    let work = {
        let shared = shared.clone();
        async move {
            let ended = shared
                .keeper()
                .disconnect_for(caller.asked(), &id, revoke)
                .await
                .map_err(|error| Problem::keep(error, &id))?;
            if purge {
                // With its history goes what webhooks would be made of: they are made before.
                shared.webhooks.make().await?;
                shared.keeper().store().purge(&id).await?;
            }
            Ok::<_, Problem>(ended)
        }
    };
    let (_, revocation) = shared.to_the_end(work).await??;
    let may_serve = before.kind == Kind::OAuth && before.ends.expires > shared.now();
    let ended = Ended {
        revocation: revocation.as_str(),
        access_tokens_valid_until: may_serve.then(|| time(before.ends.expires)),
    };
    Ok((StatusCode::ACCEPTED, Json(ended)))
}

/// How long a reconnect link is to last, and what follows it.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LinkWish {
    /// Seconds, up to 30 days; 7 days where nothing is said.
    expires_in: Option<u64>,
    /// Where the browser goes afterwards; must match the app's `return_urls`.
    return_url: Option<String>,
}

/// A reconnect link.
#[derive(Serialize, ToSchema)]
pub(crate) struct LinkAnswer {
    /// Send the customer there. It can only restore the account that the connection is pinned to.
    url: String,
    expires_at: String,
}

/// Makes a reconnect link.
///
/// Signed and expiring; nothing is stored.
///
/// Role: `support`.
#[utoipa::path(
    post, path = "/v1/connections/{id}/reconnect-link", operation_id = "makeReconnectLink", tag = "connections", request_body = LinkWish,
    params(("id" = String, Path)),
    responses((status = 200, body = LinkAnswer), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn reconnect_link(
    State(shared): State<Shared>,
    caller: Caller,
    _: NoQuery,
    PathId(id): PathId,
    OptionalJson(wish): OptionalJson<LinkWish>,
) -> Result<Json<LinkAnswer>, Problem> {
    let connection = caller.connection(shared.keeper(), &id, Role::Support).await?;
    if let ConnectionStatus::Disconnected { .. } = connection.status {
        return Err(Problem::new(Code::Disconnected).about(&id));
    }
    if connection.kind == Kind::Static {
        return Err(Problem::bad_request(
            "a static token is not issued by consent: replace the token itself",
        )
        .about(&id));
    }
    let app = shared
        .keeper()
        .app(&connection.app)
        .ok_or_else(|| Problem::new(Code::AppNotConfigured).about(&id))?;
    let lasts = match wish.expires_in {
        None => link::LASTS,
        Some(seconds) if seconds > 0 && seconds <= link::LASTS_MAX.as_secs() => Duration::from_secs(seconds),
        Some(_) => {
            let most = link::LASTS_MAX.as_secs();
            return Err(Problem::bad_request(format!(
                "`expires_in`: expected seconds from 1 to {most}"
            )));
        }
    };
    if let Some(url) = &wish.return_url
        && !Url::parse(url).is_ok_and(|url| app.allows_return_to(&url))
    {
        return Err(Problem::bad_request(
            "`return_url`: matches none of the app's return_urls",
        ));
    }
    Ok(Json(LinkAnswer {
        url: shared.reconnect_url(&id, lasts, wish.return_url),
        expires_at: time(shared.now().after(lasts)),
    }))
}
