//! Alive and ready.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::service::Shared;

/// How long one look at the store answers everybody who asks: nobody needs a key to ask.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A store that takes longer is not there for those who ask whether it is.
const LOOK_FOR: Duration = Duration::from_secs(2);

/// What is known about the store. There is none of a store that was not opened: it was reached, its schema is current and the vault
/// key fits, or there would be no service. Whoever asks can only learn whether it is there now.
pub(crate) struct Health {
    /// When it was looked for last, and whether it was there.
    looked: Mutex<(Instant, bool)>,
}

impl Health {
    /// Of a store that has just been opened.
    pub(crate) fn opened() -> Self {
        Self {
            looked: Mutex::new((Instant::now(), true)),
        }
    }

    /// Whether the store answers, as of at most a second ago.
    async fn store_answers(&self, shared: &Shared) -> bool {
        let asked = {
            let mut looked = self.looked.lock();
            let (at, answered) = *looked;
            if at.elapsed() < LOOK_EVERY {
                return answered;
            }
            // Whoever asks while the look is on its way gets the last answer.
            *looked = (Instant::now(), answered);
            shared.keeper().store().clone()
        };
        let answered = matches!(tokio::time::timeout(LOOK_FOR, asked.ping()).await, Ok(Ok(())));
        *self.looked.lock() = (Instant::now(), answered);
        answered
    }
}

/// Whether it is alive.
#[derive(Serialize, ToSchema)]
pub(crate) struct Alive {
    /// `ok`
    status: &'static str,
    version: &'static str,
}

/// Whether it takes calls.
#[derive(Serialize, ToSchema)]
pub(crate) struct Ready {
    /// `ready` or `draining`.
    status: &'static str,
    /// `reachable` or `unreachable`. An outage after the start does not make a replica unready: cached tokens go on serving.
    store: &'static str,
}

/// The process answers.
#[utoipa::path(get, path = "/healthz", operation_id = "isAlive", tag = "health", security(()), responses((status = 200, body = Alive)))]
pub(crate) async fn healthz() -> Json<Alive> {
    Json(Alive {
        status: "ok",
        version: env!("CARGO_PKG_VERSION"),
    })
}

/// It takes calls: the store was opened with the right key and schema, which is what a service begins with, and it is not draining.
#[utoipa::path(
    get, path = "/readyz", operation_id = "isReady", tag = "health", security(()),
    responses((status = 200, body = Ready), (status = 503, body = Ready))
)]
pub(crate) async fn readyz(State(shared): State<Shared>) -> (StatusCode, Json<Ready>) {
    let answers = shared.health.store_answers(&shared).await;
    let store = if answers { "reachable" } else { "unreachable" };
    let (code, status) = if shared.is_draining() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining")
    } else {
        (StatusCode::OK, "ready")
    };
    (code, Json(Ready { status, store }))
}
