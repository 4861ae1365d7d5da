//! The one sender: one request over one fresh connection.
//!
//! No pool, so no connection that died in waiting and no client that quietly tries again; no redirects; no content coding.
//! Connecting and sending are two steps of ours, so "not sent" is a fact and never a guess.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_ENCODING;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use url::{Host, Url};
use zeroize::Zeroizing;

use crate::request::TokenRequest;
use crate::retry_after::retry_after;
use crate::tls::Tls;

/// Why there is no answer, not even the head of one.
#[derive(Clone, Copy)]
pub(crate) enum NoAnswer {
    /// The last check said no: no byte left.
    SteppedBack,
    /// No byte left, and the word says why.
    NotSent(&'static str),
    /// Something may have left, nothing came back; the word says why.
    Lost(&'static str),
}

/// An answer, as far as it arrived.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) body: Body,
}

/// The body of an answer.
pub(crate) enum Body {
    Whole(Zeroizing<Vec<u8>>),
    /// It came, but is not to be read; the word says why.
    Unreadable(&'static str),
    /// It stopped coming; the word says why.
    Cut(&'static str),
}

/// Sends one request, once. `deadline` covers everything, connecting and `before_first_byte` included.
pub(crate) async fn send<F, G>(
    tls: &Tls,
    request: TokenRequest,
    deadline: Duration,
    before_first_byte: F,
) -> Result<Answer, NoAnswer>
where
    F: FnOnce() -> G + Send,
    G: Future<Output = bool> + Send,
{
    // More than a day is for ever, and an overflow would panic.
    const DEADLINE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
    let deadline = Instant::now() + deadline.min(DEADLINE_MAX);

    let mut stream = match timeout_at(deadline, connect(tls, request.url(), deadline)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(word)) => return Err(NoAnswer::NotSent(word)),
        Err(_) => return Err(NoAnswer::NotSent(TIMEOUT)),
    };
    let Some(request) = request.into_http() else {
        return Err(NoAnswer::NotSent(UNUSABLE_URL));
    };
    match timeout_at(deadline, before_first_byte()).await {
        Ok(true) => {}
        Ok(false) => return Err(NoAnswer::SteppedBack),
        Err(_) => return Err(NoAnswer::NotSent(TIMEOUT)),
    }
    if !waits(&mut stream).await {
        return Err(NoAnswer::NotSent(CONNECTION_LOST));
    }
    // A timeout looks at its clock only after a first try, and that would send.
    if Instant::now() >= deadline {
        return Err(NoAnswer::NotSent(TIMEOUT));
    }

    exchange(stream, request, deadline).await.map_err(NoAnswer::Lost)
}

const TIMEOUT: &str = "timeout";
const UNUSABLE_URL: &str = "unusable_url";
const CONNECTION_LOST: &str = "connection_lost";

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Up to where the first byte of the request could leave. The error is the word for it.
async fn connect(tls: &Tls, url: &Url, deadline: Instant) -> Result<Box<dyn Stream>, &'static str> {
    let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
        return Err(UNUSABLE_URL);
    };
    let mut addresses: Vec<SocketAddr> = match host {
        Host::Domain(name) => tokio::net::lookup_host((name, port))
            .await
            .map_err(|_| "name_not_resolved")?
            .collect(),
        Host::Ipv4(ip) => vec![(ip, port).into()],
        Host::Ipv6(ip) => vec![(ip, port).into()],
    };
    match url.scheme() {
        "https" => {
            let stream = connect_in_turn(&addresses, deadline).await?;
            Ok(Box::new(tls.connect(host, stream).await?))
        }
        "http" => {
            // The configuration refuses such URLs. Should one slip through, no secret leaves this machine in clear.
            addresses.retain(|address| address.ip().is_loopback());
            if addresses.is_empty() {
                return Err("plain_http_refused");
            }
            Ok(Box::new(connect_in_turn(&addresses, deadline).await?))
        }
        _ => Err(UNUSABLE_URL),
    }
}

/// The first address that takes us. Nothing was sent yet, so to try the next is no retry.
///
/// Each is given its share of the time that is left: one that swallows everything must not use it all up.
async fn connect_in_turn(addresses: &[SocketAddr], deadline: Instant) -> Result<TcpStream, &'static str> {
    let mut word = UNREACHABLE;
    for (address, to_try) in addresses.iter().zip((1..=addresses.len()).rev()) {
        let now = Instant::now();
        let left = deadline.saturating_duration_since(now);
        let share = left / u32::try_from(to_try).unwrap_or(u32::MAX);
        match timeout_at(now + share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // A request is one small packet; where this cannot be set, it only waits a little.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(_)) => word = UNREACHABLE,
            Err(_) => word = TIMEOUT,
        }
    }
    Err(word)
}

const UNREACHABLE: &str = "unreachable";

/// Whether the peer still waits for our request. If it left meanwhile, or speaks unasked, it is better not to begin: now it
/// is still certain that nothing was issued.
async fn waits(stream: &mut Box<dyn Stream>) -> bool {
    let mut byte = [0];
    let mut byte = ReadBuf::new(&mut byte);
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *stream).poll_read(cx, &mut byte).is_pending())).await
}

/// Sends and reads. The error is the word for it: from here on a failure says nothing about what the peer has got.
async fn exchange(
    stream: Box<dyn Stream>,
    request: http::Request<Full<Bytes>>,
    deadline: Instant,
) -> Result<Answer, &'static str> {
    const HEAD_MAX: usize = 64 * 1024;
    let (mut sender, connection) = http1::Builder::new()
        .max_header_size(HEAD_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|_| CONNECTION_LOST)?;
    let mut answer = pin!(async {
        let response = match by(deadline, sender.send_request(request)).await {
            Some(Ok(response)) => response,
            Some(Err(error)) if error.is_parse() => return Err("unreadable"),
            Some(Err(_)) => return Err(CONNECTION_LOST),
            None => return Err(TIMEOUT),
        };
        Ok(Answer {
            status: response.status().as_u16(),
            retry_after: retry_after(response.headers()),
            body: by(deadline, read(response)).await.unwrap_or(Body::Cut(TIMEOUT)),
        })
    });
    // Nothing is spawned: who drops the exchange closes the connection.
    tokio::select! {
        answer = &mut answer => answer,
        // What the connection handed over before it ended is still to be read.
        _ = connection => answer.await,
    }
}

/// A deadline that a process which was stopped meanwhile does not miss.
///
/// Whoever wakes long after the deadline may have had its answer in the socket for as long, and a refresh token that was
/// replaced by it is dead: what lies there is read before it is called lost.
async fn by<T>(deadline: Instant, work: impl Future<Output = T>) -> Option<T> {
    const STOPPED: Duration = Duration::from_millis(100);
    const TO_READ: Duration = Duration::from_secs(1);
    let mut work = pin!(work);
    if let Ok(done) = timeout_at(deadline, &mut work).await {
        return Some(done);
    }
    let woke = Instant::now();
    if woke < deadline + STOPPED {
        return None;
    }
    timeout_at(woke + TO_READ, work).await.ok()
}

async fn read(response: http::Response<Incoming>) -> Body {
    /// A token answer has a few KiB.
    const BODY_MAX: usize = 1024 * 1024;
    const TOO_LONG: &str = "answer_too_long";
    // None was asked for, and to unpack it would invite a bomb.
    if response.headers().contains_key(CONTENT_ENCODING) {
        return Body::Unreadable("answer_encoded");
    }
    let mut incoming = response.into_body();
    let announced = incoming.size_hint().lower();
    if announced > BODY_MAX as u64 {
        return Body::Unreadable(TOO_LONG);
    }
    // Mostly enough, so that no half-filled buffer is left behind in growing.
    let room = usize::try_from(announced).unwrap_or(BODY_MAX).max(16 * 1024);
    let mut body = Zeroizing::new(Vec::with_capacity(room));
    while let Some(frame) = incoming.frame().await {
        let Ok(frame) = frame else {
            return Body::Cut(CONNECTION_LOST);
        };
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if body.len() + data.len() > BODY_MAX {
            return Body::Unreadable(TOO_LONG);
        }
        body.extend_from_slice(&data);
    }
    Body::Whole(body)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(9);

    async fn listener() -> TcpListener {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap()
    }

    async fn closed() -> SocketAddr {
        listener().await.local_addr().unwrap()
    }

    /// An address that answers nothing: its queue is full, so the kernel drops whoever knocks.
    struct BlackHole {
        address: SocketAddr,
        _queue: (TcpListener, Vec<TcpStream>),
    }

    impl BlackHole {
        async fn new() -> Self {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
            let listener = socket.listen(1).unwrap();
            let address = listener.local_addr().unwrap();
            let mut queued = Vec::new();
            let patience = Duration::from_secs(1);
            while let Ok(stream) = tokio::time::timeout(patience, TcpStream::connect(address)).await {
                queued.push(stream.unwrap());
            }
            Self {
                address,
                _queue: (listener, queued),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_address_is_tried_where_one_refuses_or_swallows() {
        let alive = listener().await;
        let hole = BlackHole::new().await;
        let addresses = [closed().await, hole.address, alive.local_addr().unwrap()];
        let begun = Instant::now();
        let stream = connect_in_turn(&addresses, begun + DEADLINE).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), addresses[2]);
        // Half of what was left to two addresses.
        assert!(
            begun.elapsed() <= DEADLINE / 2 + Duration::from_millis(2),
            "{:?}",
            begun.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_to_connect_says_whether_it_was_refused_or_swallowed() {
        let deadline = Instant::now() + DEADLINE;
        assert_eq!(
            connect_in_turn(&[closed().await], deadline).await.err(),
            Some("unreachable")
        );
        let hole = BlackHole::new().await;
        assert_eq!(
            connect_in_turn(&[hole.address], deadline).await.err(),
            Some("timeout")
        );
        assert_eq!(connect_in_turn(&[], deadline).await.err(), Some("unreachable"));
    }
}
