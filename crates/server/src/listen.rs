//! The listeners: accept, speak TLS where that is configured, serve HTTP/1.1 and HTTP/2, drain.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use evergrant_config::TlsFiles;
use futures_util::future::select_all;
use http::request::Parts;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::answer::AnswerBody;
use crate::by_turns::{self, HEADERS_READ_MAX, Hyper};
use crate::draining::Draining;
use crate::guest::{Stay, Strangers, Turn};
use crate::leftover;
use crate::rarely::Rarely;
use crate::service::{Peer, Reach, Service};
use crate::threads::Threads;
use crate::tls::{Certificates, TlsError};

/// How long a client may take for its TLS handshake, and for the first bytes by which HTTP/2 is told from HTTP/1.1.
const GREETING_TIMEOUT: Duration = Duration::from_secs(15);
/// Calls at a time in one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;
/// How often a quiet HTTP/2 connection is asked whether anyone is there.
const PING_EVERY: Duration = Duration::from_secs(30);
/// How often it is tried to make room while there is none.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// After an `accept` that failed, most likely for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// What every HTTP/2 connection without TLS begins with (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Where and how to listen.
#[derive(Debug, Clone)]
pub struct ListenSettings {
    /// The address. 127.0.0.1 is served as `localhost`: on `::1`, too, where there is one; the reverse likewise.
    pub address: SocketAddr,
    /// With TLS, or plain.
    pub tls: Option<TlsFiles>,
    /// How long calls in flight may take to finish once the service was told to stop.
    pub drain_timeout: Duration,
}

impl From<&evergrant_config::Server> for ListenSettings {
    fn from(server: &evergrant_config::Server) -> Self {
        Self {
            address: server.listen,
            tls: server.tls.clone(),
            drain_timeout: server.drain_timeout,
        }
    }
}

/// Why nothing listens.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another program has the port.
    #[error(
        "{address} is in use by another program: stop it, or choose another address with [server] listen"
    )]
    InUse {
        /// The address.
        address: SocketAddr,
    },
    /// The address cannot be bound.
    #[error("{address} cannot be bound: {source}")]
    Address {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A service that listens.
pub struct Server {
    service: Service,
    listeners: Vec<TcpListener>,
    address: SocketAddr,
    reach: Reach,
    tls: Option<Arc<Certificates>>,
    drain_timeout: Duration,
    threads: usize,
}

impl Server {
    /// Binds. Connections are accepted from [`Server::run`] on.
    pub async fn bind(service: Service, settings: ListenSettings) -> Result<Self, BindError> {
        let tls = settings
            .tls
            .as_ref()
            .map(Certificates::load)
            .transpose()?
            .map(Arc::new);
        let first = bind(settings.address).await?;
        let address = first.local_addr().map_err(|source| BindError::Address {
            address: settings.address,
            source,
        })?;
        let mut listeners = vec![first];
        // Clients differ in which address of `localhost` they try first. A machine without the other one goes without.
        if let Some(other) = other_loopback(address.ip()) {
            match bind(SocketAddr::new(other, address.port())).await {
                Ok(listener) => listeners.push(listener),
                Err(error) => {
                    tracing::warn!(event = "half_of_localhost", %error, "localhost is served on {address} only");
                }
            }
        }
        let reach = if address.ip().to_canonical().is_loopback() {
            Reach::Loopback
        } else {
            Reach::Network
        };
        Ok(Self {
            service,
            listeners,
            address,
            reach,
            tls,
            drain_timeout: settings.drain_timeout,
            threads: 0,
        })
    }

    /// Serves connections on so many threads of its own, each of which stays with a connection from its first byte to its last.
    /// Without, they are served on the runtime that [`Server::run`] is called in.
    #[must_use]
    pub fn on_threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// Where it listens; the port is the real one where port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate that it shows, where it speaks TLS.
    pub fn certificates(&self) -> Option<Arc<Certificates>> {
        self.tls.clone()
    }

    /// Serves until told to stop; then finishes the calls in flight and the guarded writes whose callers hung up, within the drain
    /// timeout, and shuts the engine down.
    /// Redemptions in flight are saved whatever the timeout.
    pub async fn run(self, stop: CancellationToken) {
        let permits = Permits::new();
        let strangers = Arc::new(Strangers::default());
        let threads = Threads::start(self.threads);
        // Before the first request: what it changes is told.
        self.service.webhooks().begin().await;
        let told = tokio::spawn({
            let (webhooks, stop) = (self.service.webhooks().clone(), stop.clone());
            async move { webhooks.run(stop).await }
        });
        let (drain, draining) = watch::channel(());
        let mut connections = JoinSet::new();
        loop {
            let (stream, peer, permit) = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.accept(&permits, &strangers) => accepted,
            };
            while connections.try_join_next().is_some() {}
            let connection = Connection {
                stay: strangers.welcome(self.service.trusts(peer.ip())),
                header_timeout: self.service.limits().header_timeout,
                service: self.service.clone(),
                peer: Peer {
                    address: peer.ip(),
                    reach: self.reach,
                },
                draining: draining.clone(),
                stop: stop.clone(),
            };
            let tls = self.tls.clone();
            match threads.least_busy() {
                None => connections.spawn(async move {
                    connection.keep(stream, tls).await;
                    drop(permit);
                }),
                Some(thread) => {
                    // A socket belongs to the runtime that it was opened in.
                    let Ok(stream) = stream.into_std() else { continue };
                    let busy = thread.busy();
                    connections.spawn_on(
                        async move {
                            if let Ok(stream) = TcpStream::from_std(stream) {
                                connection.keep(stream, tls).await;
                            }
                            drop((permit, busy));
                        },
                        thread.runtime(),
                    )
                }
            };
        }
        let drained_at = Instant::now() + self.drain_timeout;
        self.service.begin_to_drain();
        drop(self.listeners);
        drop(draining);
        drain.send_replace(());
        if timeout(self.drain_timeout, drain.closed()).await.is_err() {
            tracing::warn!(
                event = "drain_timeout",
                "calls were still in flight at the end of drain_timeout and are cut off"
            );
        }
        connections.shutdown().await;
        let left = drained_at.saturating_duration_since(Instant::now());
        self.service.finish(left).await;
        // It was told to stop; what is on its way may still arrive, else it is sent again by whoever comes next.
        let left = drained_at.saturating_duration_since(Instant::now());
        let _ = timeout(left, told).await;
        let left = drained_at.saturating_duration_since(Instant::now());
        self.service.engine().shutdown_within(left).await;
        // Last: what a call began may still have run there.
        threads.stop().await;
    }

    /// The next connection, once there is room for one.
    async fn accept(&self, permits: &Permits, strangers: &Strangers) -> (TcpStream, SocketAddr, Permit) {
        let permit = loop {
            match permits.take(self.service.limits().connections) {
                Ok(permit) => break permit,
                Err(given_back) => {
                    strangers.make_room();
                    // Where nobody leaves, the next one waits in the kernel's queue.
                    let _ = timeout(LOOK_AGAIN, given_back).await;
                }
            }
        };
        loop {
            let (accepted, ..) =
                select_all(self.listeners.iter().map(|listener| Box::pin(listener.accept()))).await;
            match accepted {
                Ok((stream, peer)) => return (stream, peer, permit),
                Err(error) => {
                    tracing::warn!(event = "accept_failed", %error, "a connection could not be accepted");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Places for connections. How many there are may change meanwhile.
#[derive(Clone)]
struct Permits(Arc<Places>);

struct Places {
    taken: AtomicUsize,
    given_back: Notify,
}

/// One place, until it is dropped.
struct Permit(Permits);

impl Permits {
    fn new() -> Self {
        Self(Arc::new(Places {
            taken: AtomicUsize::new(0),
            given_back: Notify::new(),
        }))
    }

    /// One of so many, or what resolves when one is given back. There is one taker.
    fn take(&self, max: usize) -> Result<Permit, impl Future<Output = ()>> {
        let Places { taken, given_back } = &*self.0;
        if taken.load(Ordering::Acquire) >= max {
            return Err(given_back.notified());
        }
        taken.fetch_add(1, Ordering::AcqRel);
        Ok(Permit(self.clone()))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Places { taken, given_back } = &*self.0.0;
        taken.fetch_sub(1, Ordering::AcqRel);
        // Kept for the taker, should it not wait yet.
        given_back.notify_one();
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { address },
            _ => BindError::Address { address, source },
        })
}

fn other_loopback(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(Ipv4Addr::LOCALHOST) => Some(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::LOCALHOST) => Some(Ipv4Addr::LOCALHOST.into()),
        _ => None,
    }
}

/// Which protocol a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
}

struct Connection {
    stay: Arc<Stay>,
    header_timeout: Duration,
    service: Service,
    peer: Peer,
    /// Says that no more requests are taken. Held until the connection ends.
    draining: watch::Receiver<()>,
    stop: CancellationToken,
}

impl Connection {
    /// Serves the client until it leaves, or its place is needed by others.
    async fn keep(self, stream: TcpStream, tls: Option<Arc<Certificates>>) {
        let stay = self.stay.clone();
        tokio::select! {
            biased;
            () = Rarely::new(stay.asked_to_leave()) => tracing::debug!("a connection made room for others"),
            () = self.greet(stream, tls) => {}
        }
    }

    /// Finds out what the client speaks. One that takes too long is dropped: it costs a permit.
    async fn greet(self, stream: TcpStream, tls: Option<Arc<Certificates>>) {
        let _ = stream.set_nodelay(true);
        match tls {
            None => {
                if let Some(protocol) = self.greeted(protocol_of(&stream)).await {
                    self.serve(stream, protocol).await;
                }
            }
            Some(tls) => {
                if let Some(stream) = self.greeted(tls.acceptor().accept(stream)).await {
                    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    let protocol = if is_http2 {
                        Protocol::Http2
                    } else {
                        Protocol::Http1
                    };
                    self.serve(stream, protocol).await;
                }
            }
        }
    }

    /// Who has not even greeted when the service stops has asked for nothing, and is not waited for.
    async fn greeted<T>(&self, greeting: impl Future<Output = io::Result<T>>) -> Option<T> {
        tokio::select! {
            biased;
            greeted = timeout(GREETING_TIMEOUT, greeting) => greeted.ok()?.ok(),
            () = self.stop.cancelled() => None,
        }
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(self, stream: S, protocol: Protocol) {
        let desk = Desk {
            service: self.service,
            stay: self.stay,
            peer: self.peer,
        };
        let draining = Draining::heard_by(self.draining);
        let ended = match protocol {
            Protocol::Http1 => desk.serve_http1(stream, draining, self.header_timeout).await,
            Protocol::Http2 => desk.serve_http2(stream, draining).await,
        };
        if let Err(error) = ended {
            tracing::debug!(error = &*error, "a connection ended early");
        }
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Where the requests of one connection are answered.
#[derive(Clone)]
struct Desk {
    service: Service,
    stay: Arc<Stay>,
    peer: Peer,
}

impl Desk {
    async fn serve_http1<S: AsyncRead + AsyncWrite + Unpin + Send>(
        self,
        stream: S,
        draining: Draining,
        header_timeout: Duration,
    ) -> Result<(), BoxError> {
        let guest = &self.stay.guest;
        let plain = |head, body| self.answer(head, body, guest.turn());
        let odd = |request| {
            let (desk, turn) = (self.clone(), guest.turn());
            async move { desk.answer_watched(request, turn).await }
        };
        by_turns::serve(stream, guest, draining, header_timeout, plain, odd).await
    }

    async fn serve_http2<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        self,
        stream: S,
        mut draining: Draining,
    ) -> Result<(), BoxError> {
        let answer = service_fn(move |request| {
            let (desk, turn) = (self.clone(), self.stay.guest.turn());
            async move { Ok::<_, Infallible>(*desk.answer_watched(request, turn).await) }
        });
        let mut connection = pin!(http2().serve_connection(TokioIo::new(stream), answer));
        let mut hyper = Hyper::default();
        let ended = poll_fn(|cx| {
            hyper.poll(
                &mut draining,
                connection.as_mut(),
                http2::Connection::graceful_shutdown,
                cx,
            )
        });
        Ok(ended.await?)
    }

    /// Answers one request, whose caller's turn it is until the end of the answer's body.
    async fn answer<B>(&self, head: Box<Parts>, body: B, turn: Turn) -> Box<Response<AnswerBody>>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let mut answer = self.service.respond(head, body, Some(self.peer)).await;
        if answer.key_was_valid {
            self.stay.is_known_now();
        }
        answer.response.body_mut().keep_turn(turn);
        answer.response
    }

    /// The same for a request that may still be on its way.
    async fn answer_watched(&self, request: Request<Incoming>, turn: Turn) -> Box<Response<AnswerBody>> {
        let (request, leftover) = leftover::watch(request);
        let (head, body) = request.into_parts();
        let response = self.answer(Box::new(head), body, turn).await;
        if let Some(leftover) = leftover {
            leftover.throw_away().await;
        }
        response
    }
}

fn http2() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(HEADERS_READ_MAX).expect("a small constant"))
        .keep_alive_interval(PING_EVERY);
    builder
}

/// HTTP/2 with prior knowledge is told by its first bytes, which stay where they are.
async fn protocol_of(stream: &TcpStream) -> io::Result<Protocol> {
    /// Between two looks at a client that sends its greeting byte by byte.
    const AGAIN: Duration = Duration::from_millis(20);
    let mut bytes = [0; PREFACE.len()];
    loop {
        let read = stream.peek(&mut bytes).await?;
        if !PREFACE.starts_with(&bytes[..read]) || read == 0 {
            return Ok(Protocol::Http1);
        }
        if read == PREFACE.len() {
            return Ok(Protocol::Http2);
        }
        sleep(AGAIN).await;
    }
}
