//! A listener for metrics alone. Nobody needs a key there, so it answers nothing else, and what it costs is bounded: a few
//! connections at a time, one question each, soon over.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::{Method, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::page;
use crate::problem::{Code, Door, Problem};
use crate::service::{Peer, Reach, Service};
use crate::trace::{REQUEST_ID, Trace};

/// More than anyone has who reads metrics. The next ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 16;
/// From the first byte of a question to the last of its answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(15);
const HEADERS_MAX: usize = 16 * 1024;
/// After an `accept` that failed, most likely for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Why no metrics can be read.
#[derive(Debug, thiserror::Error)]
#[error("{address} cannot be bound for metrics: {source}; choose another address with [metrics] listen")]
pub struct MetricsBindError {
    address: SocketAddr,
    source: io::Error,
}

/// A listener that answers `GET /metrics` and nothing else, without a key.
pub struct MetricsServer {
    service: Service,
    listener: TcpListener,
    address: SocketAddr,
}

impl MetricsServer {
    /// Binds. Connections are accepted from [`MetricsServer::run`] on.
    pub async fn bind(service: Service, address: SocketAddr) -> Result<Self, MetricsBindError> {
        let refused = |source| MetricsBindError { address, source };
        let listener = TcpListener::bind(address).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        Ok(Self {
            service,
            listener,
            address,
        })
    }

    /// Where it listens; the port is the real one where port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until told to stop. An answer that is under way then is cut off: the next one says all that it did.
    pub async fn run(self, stop: CancellationToken) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut readers = JoinSet::new();
        let serving = async {
            loop {
                // It is never closed.
                let Ok(permit) = permits.clone().acquire_owned().await else {
                    return;
                };
                match self.listener.accept().await {
                    Ok((stream, peer)) => {
                        while readers.try_join_next().is_some() {}
                        let service = self.service.clone();
                        let peer = self.peer(peer);
                        readers.spawn(async move {
                            // What it came to is the reader's business.
                            let _ = timeout(ANSWERED_WITHIN, serve(stream, service, peer)).await;
                            drop(permit);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(event = "accept_failed", %error, "a connection could not be accepted");
                        sleep(PAUSE).await;
                    }
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = serving => {}
        }
    }

    fn peer(&self, peer: SocketAddr) -> Peer {
        let is_loopback = self.address.ip().to_canonical().is_loopback();
        Peer {
            address: peer.ip(),
            reach: if is_loopback {
                Reach::Loopback
            } else {
                Reach::Network
            },
        }
    }
}

async fn serve(stream: TcpStream, service: Service, peer: Peer) -> hyper::Result<()> {
    let answer = service_fn(|request: Request<Incoming>| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(answer(&service, request, peer).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ANSWERED_WITHIN)
        .max_buf_size(HEADERS_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer)
        .await
}

async fn answer(service: &Service, request: Request<Incoming>, peer: Peer) -> Response {
    let (head, _nothing) = request.into_parts();
    let trace = Trace::of(&head.headers);
    let problem = |code| Problem::new(code).write(trace.request_id(), Door::Api);
    let mut response = match service.admit(&head, peer) {
        Err(refused) => refused.write(trace.request_id(), Door::Api),
        Ok(()) if head.uri.path() != "/metrics" => problem(Code::NotFound),
        Ok(()) => match head.method {
            Method::GET => page(service.inner()).await,
            Method::HEAD => page(service.inner()).await.map(|_| Body::empty()),
            _ => problem(Code::MethodNotAllowed),
        },
    };
    response.headers_mut().insert(REQUEST_ID, trace.request_id);
    response
}
