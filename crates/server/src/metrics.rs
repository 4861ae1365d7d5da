//! `GET /metrics`: what this process counts, for Prometheus.
//!
//! What is counted is counted where it happens (`evergrant_metrics`); here it is added up and shown, with what the operating system
//! says about the process. On the main listener it takes a key of the role `metrics`; a listener of its own needs none.

mod listen;
mod looked_up;

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
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
use crate::problem::{Code, Problem, ProblemView};
use crate::service::{Inner, Shared};

use looked_up::LookedUp;

pub use listen::{MetricsBindError, MetricsServer};

/// How long one look at the process answers everybody who asks: it counts the open files one by one.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is shown beside the counts.
pub(crate) struct OfProcess {
    started_at: Timestamp,
    looked: Mutex<Option<(Instant, Process)>>,
    looked_up: LookedUp,
    problems: [AtomicU64; Code::ALL.len()],
}

impl OfProcess {
    pub(crate) fn since(started_at: Timestamp) -> Self {
        Self {
            started_at,
            looked: Mutex::default(),
            looked_up: LookedUp::default(),
            problems: array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// A request was answered with this problem of ours.
    pub(crate) fn answered_with(&self, code: Code) {
        self.problems[code as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn write_problems(&self, text: &mut Exposition) {
        const PROBLEMS: &str = "evergrant_problems_total";
        text.family(
            PROBLEMS,
            Kind::Counter,
            "Requests that were answered with a problem of our own, by its code.",
        );
        for code in Code::ALL {
            let answered = self.problems[*code as usize].load(Ordering::Relaxed);
            text.sample(PROBLEMS, &[("code", code.as_str())], answered);
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

/// Milliseconds as Prometheus's unit.
#[expect(
    clippy::cast_precision_loss,
    reason = "who reads this reads floating point numbers anyway"
)]
fn seconds(milliseconds: i64) -> f64 {
    milliseconds as f64 / 1000.0
}

/// What this process counts, in Prometheus's text format.
///
/// Each process of a fleet counts for itself; whoever reads adds up. No label names a customer, nor a connection that the
/// configuration does not name.
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
    Ok(page(&shared).await)
}

async fn page(shared: &Inner) -> Response {
    const BUILD_INFO: &str = "evergrant_build_info";
    const STARTED: &str = "process_start_time_seconds";
    const CLOCK_OFFSET: &str = "evergrant_clock_offset_seconds";
    let keeper = shared.keeper();
    let mut text = Exposition::new();
    text.family(
        BUILD_INFO,
        Kind::Gauge,
        "The version that runs; the number is always 1.",
    );
    text.sample(BUILD_INFO, &[("version", env!("CARGO_PKG_VERSION"))], 1);
    keeper.metrics().write(&mut text);
    shared.process.write_problems(&mut text);
    shared.process.looked_up.write(keeper, &mut text).await;
    text.family(
        CLOCK_OFFSET,
        Kind::Gauge,
        "By how much this machine's clock is ahead; negative where it is behind. The provider's is known to half a second.",
    );
    let offsets = [
        ("database", keeper.clock_offset_ms()),
        ("provider", keeper.provider_clock_offset_ms()),
    ];
    for (peer, offset_ms) in offsets {
        if let Some(offset_ms) = offset_ms {
            text.sample(CLOCK_OFFSET, &[("peer", peer)], seconds(offset_ms));
        }
    }
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
