//! Alive and ready.

use std::sync::atomic::{AtomicBool, Ordering};
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

/// What is known about the store.
#[derive(Default)]
pub(crate) struct Health {
    reached_once: AtomicBool,
    looked: Mutex<Option<(Instant, bool)>>,
}

impl Health {
    /// Whether the store answers, as of at most a second ago.
    async fn store_answers(&self, shared: &Shared) -> bool {
        let asked = {
            let mut looked = self.looked.lock();
            match *looked {
                Some((at, answered)) if at.elapsed() < LOOK_EVERY => return answered,
                last => {
                    // Whoever asks while the look is on its way gets the last answer.
                    let before = last.is_some_and(|(_, answered)| answered);
                    *looked = Some((Instant::now(), before));
                }
            }
            shared.keeper().store().clone()
        };
        let answered = matches!(tokio::time::timeout(LOOK_FOR, asked.ping()).await, Ok(Ok(())));
        *self.looked.lock() = Some((Instant::now(), answered));
        if answered {
            self.reached_once.store(true, Ordering::Release);
        }
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
    /// `ready`, `starting` or `draining`.
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

/// It takes calls: the store was opened with the right key and schema and was reached once, and it is not draining.
#[utoipa::path(
    get, path = "/readyz", operation_id = "isReady", tag = "health", security(()),
    responses((status = 200, body = Ready), (status = 503, body = Ready))
)]
pub(crate) async fn readyz(State(shared): State<Shared>) -> (StatusCode, Json<Ready>) {
    let answers = shared.health.store_answers(&shared).await;
    let store = if answers { "reachable" } else { "unreachable" };
    let (code, status) = if shared.is_draining() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining")
    } else if shared.health.reached_once.load(Ordering::Acquire) {
        (StatusCode::OK, "ready")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting")
    };
    (code, Json(Ready { status, store }))
}
