//! Deliveries of webhooks: listed, sent again, tried out.

use axum::Json;
use axum::extract::State;
use evergrant_domain::ConnectionId;
use evergrant_domain::access::Role;
use evergrant_store::contract::{Delivery, DeliveryFilter, DeliveryState};
use serde::Serialize;
use utoipa::ToSchema;

use crate::access::Caller;
use crate::input::{NoQuery, PathName, Query};
use crate::lists::{limit, not_a_cursor};
use crate::problem::{Code, Problem, ProblemView};
use crate::service::Shared;
use crate::views::{List, time};

/// A notice to one receiver, and how its sending went.
#[derive(Serialize, ToSchema)]
#[schema(as = Delivery)]
pub(crate) struct DeliveryView {
    /// The `webhook-id` that the receiver sees, the same on each try.
    id: String,
    /// What is told.
    #[serde(rename = "type")]
    kind: String,
    /// Where to, without its query.
    url: String,
    /// `pending`, `delivered` or `dead`: not taken, and not tried again by itself.
    state: &'static str,
    app: String,
    /// `null` for a notice of an app.
    connection: Option<String>,
    customer: Option<String>,
    /// The event of the history that is told of.
    event: i64,
    /// When that happened.
    at: String,
    tries: u32,
    last_try_at: Option<String>,
    /// The status that was answered last.
    last_status: Option<u16>,
    /// Why it was not taken.
    last_error: Option<String>,
    next_try_at: Option<String>,
    finished_at: Option<String>,
}

impl From<Delivery> for DeliveryView {
    fn from(delivery: Delivery) -> Self {
        Self {
            id: delivery.id,
            kind: delivery.kind,
            url: delivery.url,
            state: delivery.state.as_str(),
            app: delivery.app.to_string(),
            connection: delivery.connection.map(|id| id.to_string()),
            customer: delivery.customer.map(|customer| customer.to_string()),
            event: delivery.event,
            at: time(delivery.at),
            tries: delivery.tries,
            last_try_at: delivery.last_try_at.map(time),
            last_status: delivery.last_status,
            last_error: delivery.last_error,
            next_try_at: delivery.next_try_at.map(time),
            finished_at: delivery.finished_at.map(time),
        }
    }
}

/// Lists deliveries of webhooks, the newest first. What was taken is kept for three days, what was given up for thirty.
///
/// Role: `support`.
#[utoipa::path(
    get, path = "/v1/webhooks/deliveries", operation_id = "listDeliveries", tag = "webhooks",
    params(
        ("state" = Option<Vec<String>>, Query, description = "`pending`, `delivered` or `dead`."),
        ("connection" = Option<Vec<String>>, Query),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000), ("cursor" = Option<String>, Query),
    ),
    responses((status = 200, body = List<DeliveryView>), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn list(
    State(shared): State<Shared>,
    caller: Caller,
    mut query: Query,
) -> Result<Json<List<DeliveryView>>, Problem> {
    caller.require(Role::Support)?;
    let read_state = |word: &str| DeliveryState::from_word(word).ok_or("expected pending, delivered or dead");
    let states = query.each("state", read_state)?;
    let connections = query.each("connection", ConnectionId::parse)?;
    let limit = limit(&mut query)?;
    let before = query.one("cursor")?;
    if before.as_deref().is_some_and(|id| !id.starts_with("msg_")) {
        return Err(not_a_cursor());
    }
    query.done()?;
    let filter = DeliveryFilter {
        id: None,
        states,
        connections,
        limits: caller.filter(),
        limit: limit + 1,
        before,
    };
    let mut found = shared.keeper().store().deliveries(filter).await?;
    let is_last = found.len() <= limit as usize;
    found.truncate(limit as usize);
    let next_cursor = found.last().filter(|_| !is_last).map(|last| last.id.clone());
    Ok(Json(List {
        items: found.into_iter().map(DeliveryView::from).collect(),
        next_cursor,
    }))
}

/// Has a delivery sent again, from its first try on, whatever came of it before.
///
/// Role: `support`.
#[utoipa::path(
    post, path = "/v1/webhooks/deliveries/{id}/resend", operation_id = "resendDelivery", tag = "webhooks",
    params(("id" = String, Path)),
    responses((status = 200, body = DeliveryView), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn resend(
    State(shared): State<Shared>,
    caller: Caller,
    _: NoQuery,
    PathName(id): PathName,
) -> Result<Json<DeliveryView>, Problem> {
    caller.require(Role::Support)?;
    let store = shared.keeper().store();
    let filter = DeliveryFilter {
        id: Some(id.clone()),
        limits: caller.filter(),
        limit: 1,
        ..DeliveryFilter::default()
    };
    let unknown = || Problem::new(Code::UnknownDelivery);
    store.deliveries(filter).await?.pop().ok_or_else(unknown)?;
    let delivery = store
        .resend_delivery(&id, shared.now())
        .await?
        .ok_or_else(unknown)?;
    Ok(Json(delivery.into()))
}

/// What one receiver answered to a notice that was sent for trying it out.
#[derive(Serialize, ToSchema)]
pub(crate) struct TriedReceiver {
    /// Where to, without its query.
    url: String,
    /// Whether it was taken.
    delivered: bool,
    /// The status that was answered.
    status: Option<u16>,
    /// Why it was not taken.
    error: Option<String>,
}

/// What every receiver answered.
#[derive(Serialize, ToSchema)]
pub(crate) struct TriedOut {
    items: Vec<TriedReceiver>,
}

/// Sends every configured receiver one notice of the type `evergrant.test`, signed like any other, and says what each answered. It is
/// not tried again.
///
/// Role: `admin`.
#[utoipa::path(
    post, path = "/v1/webhooks/test", operation_id = "testWebhooks", tag = "webhooks",
    responses((status = 200, body = TriedOut), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn test(
    State(shared): State<Shared>,
    caller: Caller,
    _: NoQuery,
) -> Result<Json<TriedOut>, Problem> {
    caller.require(Role::Admin)?;
    if caller.limits().is_some_and(|limits| !limits.apps.is_empty()) {
        return Err(Problem::because(
            Code::Forbidden,
            "the key is limited to some apps, and receivers are told of others, too",
        ));
    }
    let webhooks = shared.webhooks.clone();
    let tried = shared.to_the_end(async move { webhooks.try_out().await }).await?;
    let items = tried
        .into_iter()
        .map(|tried| TriedReceiver {
            delivered: tried.error.is_none(),
            url: tried.url,
            status: tried.status,
            error: tried.error,
        })
        .collect();
    Ok(Json(TriedOut { items }))
}
