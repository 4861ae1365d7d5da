//! `GET /metrics`: what this process counts, for Prometheus.
//!
//! What is counted is counted where it happens (`evergrant_metrics`); here it is added up and shown, with what the operating system
//! says about the process. On the main listener it takes a key of the role `metrics`; a listener of its own needs none.

mod listen;

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use evergrant_domain::Timestamp;
use evergrant_domain::access::Role;
use evergrant_metrics::{Exposition, Kind, Process};
use http::{HeaderValue, header};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::access::Caller;
use crate::input::NoQuery;
use crate::problem::{Problem, ProblemView};
use crate::service::{Inner, Shared};

pub use listen::{MetricsBindError, MetricsServer};

/// How long one look at the process answers everybody who asks: it counts the open files one by one.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is shown beside the counts.
pub(crate) struct OfProcess {
    started_at: Timestamp,
    looked: Mutex<Option<(Instant, Process)>>,
}

impl OfProcess {
    pub(crate) fn since(started_at: Timestamp) -> Self {
        Self {
            started_at,
            looked: Mutex::default(),
        }
    }

    /// The process as of at most a second ago.
    fn look(&self) -> Process {
        let mut looked = self.looked.lock();
        match *looked {
            Some((at, process)) if at.elapsed() < LOOK_EVERY => process,
            _ => {
                let process = Process::look();
                *looked = Some((Instant::now(), process));
                process
            }
        }
    }
}

/// What this process counts, in Prometheus's text format.
///
/// Each process of a fleet counts for itself; whoever reads adds up. No label names a connection or a customer.
///
/// Role: `metrics`.
#[utoipa::path(
    get, path = "/metrics", operation_id = "readMetrics", tag = "metrics",
    responses(
        (status = 200, description = "The counts.", body = String, content_type = "text/plain"),
        (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn answer(
    State(shared): State<Shared>,
    caller: Caller,
    _: NoQuery,
) -> Result<Response, Problem> {
    caller.require(Role::Metrics)?;
    Ok(page(&shared))
}

fn page(shared: &Inner) -> Response {
    const BUILD_INFO: &str = "evergrant_build_info";
    const STARTED: &str = "process_start_time_seconds";
    let mut text = Exposition::new();
    text.family(
        BUILD_INFO,
        Kind::Gauge,
        "The version that runs; the number is always 1.",
    );
    text.sample(BUILD_INFO, &[("version", env!("CARGO_PKG_VERSION"))], 1);
    shared.keeper().metrics().write(&mut text);
    shared.process.look().write(&mut text);
    text.family(
        STARTED,
        Kind::Gauge,
        "When the service began, in seconds since the Unix epoch.",
    );
    text.sample(STARTED, &[], shared.process.started_at.millis() / 1000);
    let mut response = Response::new(Body::from(text.into_text()));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(Exposition::CONTENT_TYPE),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
