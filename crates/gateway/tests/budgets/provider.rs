//! A provider that answers in simulated time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use evergrant_gateway::{Leaving, NoAnswer, Rest, Transport};
use http::Response;
use http_body_util::{BodyExt as _, Full};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

/// What comes back: a status, headers and a body, or nothing.
pub(crate) type Reply = Result<(u16, Vec<(&'static str, String)>, String), NoAnswer>;

type Script = dyn Fn(&Arrived, &[Arrived]) -> Reply + Send + Sync;

/// A call as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Arrived {
    pub(crate) at: Instant,
    pub(crate) method: String,
    /// Whether it was answered with less than 400; not known while the script runs.
    pub(crate) accepted: bool,
    /// What the caller calls itself.
    pub(crate) caller: String,
}

#[derive(Clone)]
pub(crate) struct Provider {
    arrived: Arc<Mutex<Vec<Arrived>>>,
    script: Arc<Script>,
    latency: Duration,
    /// Answers wait for a permit each.
    gate: Option<Arc<Semaphore>>,
}

impl Provider {
    pub(crate) fn new(script: impl Fn(&Arrived, &[Arrived]) -> Reply + Send + Sync + 'static) -> Self {
        Self {
            arrived: Arc::default(),
            script: Arc::new(script),
            latency: Duration::from_millis(30),
            gate: None,
        }
    }

    /// Counts calls in a rolling window, says so on every answer, and refuses what is too much.
    pub(crate) fn counting(calls: usize, per: Duration) -> Self {
        Self::new(move |call, before| {
            let since = |at: Instant| call.at.saturating_duration_since(at);
            let used = before
                .iter()
                .rev()
                .take_while(|other| since(other.at) < per)
                .filter(|other| other.accepted)
                .count();
            if used >= calls {
                return too_many("TEN_SECONDLY_ROLLING");
            }
            let left = calls - used - 1;
            Ok((200, says(calls, left, per), "{}".to_owned()))
        })
    }

    /// Answers wait for a permit each.
    pub(crate) fn behind(mut self, gate: &Arc<Semaphore>) -> Self {
        self.gate = Some(gate.clone());
        self
    }

    pub(crate) fn arrived(&self) -> Vec<Arrived> {
        self.arrived.lock().clone()
    }

    pub(crate) fn refusals(&self) -> usize {
        self.arrived.lock().iter().filter(|call| !call.accepted).count()
    }

    /// The most calls in any window of this length.
    pub(crate) fn most_within(&self, per: Duration) -> usize {
        let arrived = self.arrived.lock();
        let within = |(index, first): (usize, &Arrived)| {
            arrived[index..]
                .iter()
                .take_while(|call| call.at - first.at < per)
                .count()
        };
        arrived.iter().enumerate().map(within).max().unwrap_or(0)
    }
}

/// HubSpot's headers.
pub(crate) fn says(max: usize, left: usize, per: Duration) -> Vec<(&'static str, String)> {
    vec![
        ("x-hubspot-ratelimit-max", max.to_string()),
        ("x-hubspot-ratelimit-remaining", left.to_string()),
        (
            "x-hubspot-ratelimit-interval-milliseconds",
            per.as_millis().to_string(),
        ),
    ]
}

/// HubSpot's 429, without `Retry-After`.
#[expect(clippy::unnecessary_wraps, reason = "it is a reply")]
pub(crate) fn too_many(policy: &str) -> Reply {
    let body = format!(
        "{{\"status\":\"error\",\"message\":\"You have reached your limit.\",\"errorType\":\"RATE_LIMIT\",\"policyName\":\"{policy}\"}}"
    );
    Ok((429, vec![], body))
}

impl Transport for Provider {
    async fn send(&self, call: Leaving<'_>) -> Result<Response<Rest>, NoAnswer> {
        let request = call.request();
        let header = |name| request.headers().get(name).map(|value| value.to_str().unwrap());
        let mut call = Arrived {
            at: Instant::now(),
            method: request.method().to_string(),
            accepted: false,
            caller: header("x-caller").unwrap_or_default().to_owned(),
        };
        let reply = {
            let mut arrived = self.arrived.lock();
            let reply = (self.script)(&call, &arrived);
            call.accepted = reply.as_ref().is_ok_and(|(status, ..)| *status < 400);
            arrived.push(call);
            reply
        };
        sleep(self.latency).await;
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
        }
        let (status, headers, body) = reply?;
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(name, value);
        }
        let body = Full::new(Bytes::from(body)).map_err(|never: Infallible| match never {});
        Ok(response.body(Rest::Foreign(Box::pin(body))).unwrap())
    }
}
