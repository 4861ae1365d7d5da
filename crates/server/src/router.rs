//! Which handler answers what. The gateway and a connection's token never get here: the service answers them itself.

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::{delete, get, post};

use crate::api::{apps, connections, diagnosis, explain, history, import, keys, sessions, tokens, webhooks};
use crate::problem::{Code, Problem};
use crate::service::Shared;
use crate::{connect, dashboard, health, help, metrics, openapi, pages};

pub(crate) fn router(shared: Shared) -> Router {
    let api = Router::new()
        .route("/v1/connect-sessions", post(sessions::create))
        .route("/v1/connect-sessions/{id}", get(sessions::read))
        .route("/v1/connections", get(connections::list).post(import::create))
        .route(
            "/v1/connections/{id}",
            get(connections::read)
                .patch(connections::patch)
                .delete(connections::disconnect),
        )
        // Answered before the router; here for the methods that it does not have.
        .route("/v1/connections/{id}/token", get(not_here))
        .route("/v1/connections/{id}/token/rejected", post(tokens::rejected))
        .route("/v1/connections/{id}/refresh", post(tokens::refresh))
        .route(
            "/v1/connections/{id}/reconnect-link",
            post(connections::reconnect_link),
        )
        .route("/v1/connections/{id}/events", get(history::of_connection))
        .route("/v1/connections/{id}/tallies", get(history::tallies))
        .route("/v1/connections/{id}/export", get(history::export))
        .route("/v1/events", get(history::all))
        .route("/v1/overview", get(history::overview))
        .route("/v1/connections/{id}/diagnosis", get(diagnosis::one))
        .route("/v1/diagnosis", get(diagnosis::many))
        .route("/v1/tokens/batch", post(tokens::batch))
        .route("/v1/apps", get(apps::list))
        .route("/v1/apps/{app}/check", post(apps::check))
        .route("/v1/explain", post(explain::answer))
        .route("/v1/keys", get(keys::list).post(keys::create))
        .route("/v1/keys/{id}", delete(keys::revoke))
        .route("/v1/webhooks/deliveries", get(webhooks::list))
        .route("/v1/webhooks/deliveries/{id}/resend", post(webhooks::resend))
        .route("/v1/webhooks/test", post(webhooks::test))
        .route("/connect/{session}", get(connect::open).post(connect::begin))
        .route(
            "/install/{app}",
            get(connect::install).post(connect::begin_install),
        )
        .route(
            "/oauth/callback",
            get(connect::callback::callback).head(connect::callback::look_at_callback),
        )
        .route("/help", get(help::index))
        .route("/help/reconnect", get(help::reconnect))
        .route("/help/errors/{code}", get(help::error))
        .route("/help/{class}", get(help::class))
        .route("/metrics", get(metrics::answer))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/openapi.json", get(openapi::json))
        .route("/docs", get(openapi::docs))
        .route("/assets/style.css", get(pages::style))
        .layer(from_fn(observe))
        .fallback(not_here)
        .with_state(shared.clone());
    dashboard::beside(shared, api)
}

async fn not_here() -> Problem {
    Problem::new(Code::NotFound)
}

/// The route that answered, for the log: its pattern, which holds no ids.
#[derive(Clone)]
pub(crate) enum Endpoint {
    /// As the router matched it.
    Matched(MatchedPath),
    /// Answered before the router.
    Known(&'static str),
}

impl Endpoint {
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Matched(path) => path.as_str(),
            Self::Known(path) => path,
        }
    }
}

pub(crate) async fn observe(request: Request, next: Next) -> Response {
    let endpoint = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    if let Some(endpoint) = endpoint {
        response.extensions_mut().insert(Endpoint::Matched(endpoint));
    }
    response
}
