//! The connections to providers, and what is known when no answer came: whether the call left.
//!
//! A pool of our own. Start reading at [`Upstream`]'s `send`; `connect` makes connections, `exchange` is one connection and the call
//! that has it, `short` speaks HTTP/1.1 where that is simple, and hyper where it is not; `shelf` keeps those that wait for the next
//! call.
//! Redirects are answers like any other here.

mod connect;
mod exchange;
mod shelf;
mod short;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use evergrant_oauth::TlsRoots;
use http::{HeaderValue, Response, Uri};
use tokio::time::timeout;

use crate::answer_body::Rest;
use crate::transport::{Leaving, NoAnswer, Transport};
use crate::upstream::connect::Connector;
use crate::upstream::exchange::{Failed, Line};
use crate::upstream::shelf::{Origin, Shelf, Shelves};

pub use exchange::Remaining;

/// Sends calls. One pool of connections for all providers.
pub struct Upstream {
    connector: Connector,
    /// In milliseconds.
    connect_max: AtomicU64,
    shelves: Arc<Shelves>,
}

impl Upstream {
    /// `patience` is how long a provider may take until the head of its answer.
    pub fn new(roots: TlsRoots, patience: Duration) -> Self {
        let upstream = Self {
            connector: Connector::new(roots),
            connect_max: AtomicU64::default(),
            shelves: Arc::default(),
        };
        upstream.wait_for(patience);
        upstream
    }

    async fn connect(&self, to: &Uri, origin: Origin<'_>, home: &Arc<Shelf>) -> Result<Box<Line>, NoAnswer> {
        let host = HeaderValue::from_str(origin.host).map_err(|_| NoAnswer::NotSent)?;
        let connect_max = Duration::from_millis(self.connect_max.load(Ordering::Relaxed));
        let stream = match timeout(connect_max, self.connector.connect(to.clone())).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(error = &*error, "the provider was not reached");
                return Err(NoAnswer::NotSent);
            }
            Err(_) => {
                tracing::debug!("the provider was not reached in time");
                return Err(NoAnswer::NotSent);
            }
        };
        Ok(Line::begin(stream, home, origin.is_tls, host))
    }
}

impl Transport for Upstream {
    /// Connecting ends well before patience does: what ran out of time while connecting is known not to have left.
    fn wait_for(&self, patience: Duration) {
        const CONNECT_MAX: Duration = Duration::from_secs(10);
        let connect_max = CONNECT_MAX.min(patience / 2).as_millis();
        self.connect_max
            .store(u64::try_from(connect_max).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    async fn send(&self, mut call: Leaving<'_>) -> Result<Response<Rest>, NoAnswer> {
        let to = call.uri;
        let Some(origin) = Origin::of(to) else {
            return Err(NoAnswer::NotSent);
        };
        let home = self.shelves.here();
        loop {
            let line = match home.take(origin, call.at) {
                Some(line) => line,
                None => Box::pin(self.connect(to, origin, &home)).await?,
            };
            let was_kept = line.was_kept();
            let failed = match line.exchange(call).await {
                Ok(response) => return Ok(response.map(Rest::Own)),
                Err(failed) => failed,
            };
            let Failed { error, unwritten } = *failed;
            tracing::debug!(error = &*error, "no answer from the provider");
            // In doubt it left. Only what was not begun to be written comes back, also from hyper (hyper 1.12, `client::dispatch`
            // and `proto::h1::dispatch`): such a call goes to another connection, unless this one was new.
            call = match unwritten {
                None => return Err(NoAnswer::Cut),
                Some(_) if !was_kept => return Err(NoAnswer::NotSent),
                Some(call) => call,
            };
        }
    }
}
