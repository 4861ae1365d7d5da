//! The connections to providers, and what is known when no answer came: whether the call left.
//!
//! A pool of our own: hyper speaks HTTP/1.1, and everything around it is here. Start reading at [`Upstream`]'s `send`; `connect` makes
//! connections, `exchange` is one connection and the call that has it, `shelf` keeps those that wait for the next call.
//! Redirects are answers like any other here.

mod connect;
mod exchange;
mod shelf;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use evergrant_oauth::TlsRoots;
use http::header::HOST;
use http::{HeaderValue, Request, Response, Uri};
use tokio::time::timeout;

use crate::answer_body::Rest;
use crate::call_body::{BoxError, Outgoing};
use crate::transport::{NoAnswer, Transport};
use crate::upstream::connect::Connector;
use crate::upstream::exchange::{Failed, Line};
use crate::upstream::shelf::{Origin, Shelves};

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

    async fn connect(&self, to: Uri) -> Result<Box<Line>, BoxError> {
        let connect_max = Duration::from_millis(self.connect_max.load(Ordering::Relaxed));
        let stream = timeout(connect_max, self.connector.connect(to)).await??;
        Ok(Line::begin(stream).await?)
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

    async fn send(&self, request: Request<Outgoing>) -> Result<Response<Rest>, NoAnswer> {
        let (mut parts, body) = request.into_parts();
        let to = std::mem::take(&mut parts.uri);
        let (Some(origin), Some(path)) = (Origin::of(&to), to.path_and_query()) else {
            return Err(NoAnswer::NotSent);
        };
        parts.uri = Uri::from(path.clone());
        let home = self.shelves.here();
        let mut kept = home.take(origin);
        let host = match &kept {
            Some(kept) => kept.origin().clone(),
            None => match HeaderValue::from_str(origin.host) {
                Ok(host) => host,
                Err(_) => return Err(NoAnswer::NotSent),
            },
        };
        parts.headers.insert(HOST, host.clone());
        let mut request = Request::from_parts(parts, body);
        loop {
            let line = if let Some(line) = kept {
                line
            } else {
                let mut line = Box::pin(self.connect(to.clone())).await.map_err(|error| {
                    tracing::debug!(error = &*error, "the provider was not reached");
                    NoAnswer::NotSent
                })?;
                line.belongs(&home, origin.is_tls, host.clone());
                line
            };
            let was_kept = line.was_kept();
            let failed = match line.exchange(request).await {
                Ok(response) => return Ok(response.map(Rest::Own)),
                Err(failed) => failed,
            };
            let Failed { error, unwritten } = *failed;
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "no answer from the provider"
            );
            // In doubt it left. hyper gives back only what it did not begin to write (hyper 1.12, `client::dispatch` and
            // `proto::h1::dispatch`): such a call goes to another connection, unless this one was new.
            request = match unwritten {
                None => return Err(NoAnswer::Cut),
                Some(_) if !was_kept => return Err(NoAnswer::NotSent),
                Some(request) => request,
            };
            kept = home.take(origin);
        }
    }
}
