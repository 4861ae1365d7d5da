//! The one sender: one request over one fresh connection.
//!
//! No pool, so no connection that died in waiting and no client that quietly tries again; no redirects; no content coding.
//! A watch on the stream says whether a byte of the request left, so "not sent" is a fact and never a guess.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
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
    /// Something left, nothing came back; the word says why.
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

    let stream = match timeout_at(deadline, connect(tls, request.url(), deadline)).await {
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
    // A timeout looks at its clock only after a first try, and that would send.
    if Instant::now() >= deadline {
        return Err(NoAnswer::NotSent(TIMEOUT));
    }

    let begun = AtomicBool::new(false);
    let mut head = None;
    let exchange = exchange(
        Watched {
            stream,
            begun: &begun,
        },
        request,
        &mut head,
    );
    let body = timeout_at(deadline, exchange).await.unwrap_or(Body::Cut(TIMEOUT));
    match (head, body) {
        (Some(Head { status, retry_after }), body) => Ok(Answer {
            status,
            retry_after,
            body,
        }),
        (None, Body::Cut(word)) if !begun.into_inner() => Err(NoAnswer::NotSent(word)),
        (None, Body::Cut(word) | Body::Unreadable(word)) => Err(NoAnswer::Lost(word)),
        (None, Body::Whole(_)) => Err(NoAnswer::Lost(CONNECTION_LOST)),
    }
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
    for (address, to_try) in addresses.iter().zip((1..=addresses.len()).rev()) {
        let now = Instant::now();
        let left = deadline.saturating_duration_since(now);
        let share = left / u32::try_from(to_try).unwrap_or(u32::MAX);
        if let Ok(Ok(stream)) = timeout_at(now + share, TcpStream::connect(address)).await {
            // A request is one small packet; where this cannot be set, it only waits a little.
            let _ = stream.set_nodelay(true);
            return Ok(stream);
        }
    }
    Err("unreachable")
}

/// What the status line and the headers say.
struct Head {
    status: u16,
    retry_after: Option<Duration>,
}

/// Sends and reads. `head` is set as soon as there is one, so that whoever gives up on the rest still has it.
async fn exchange(stream: Watched<'_>, request: http::Request<Full<Bytes>>, head: &mut Option<Head>) -> Body {
    const HEAD_MAX: usize = 64 * 1024;
    let connected = http1::Builder::new()
        .max_header_size(HEAD_MAX)
        .handshake(TokioIo::new(stream))
        .await;
    let Ok((mut sender, connection)) = connected else {
        return Body::Cut(CONNECTION_LOST);
    };
    let mut answer = pin!(async {
        match sender.send_request(request).await {
            Ok(response) => {
                *head = Some(Head {
                    status: response.status().as_u16(),
                    retry_after: retry_after(response.headers()),
                });
                read(response).await
            }
            Err(error) if error.is_parse() => Body::Unreadable("unreadable"),
            Err(_) => Body::Cut(CONNECTION_LOST),
        }
    });
    // Nothing is spawned: who drops the exchange closes the connection.
    tokio::select! {
        body = &mut answer => body,
        // What the connection handed over before it ended is still to be read.
        _ = connection => answer.await,
    }
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

/// A stream that remembers whether anyone began to write to it.
struct Watched<'a> {
    stream: Box<dyn Stream>,
    begun: &'a AtomicBool,
}

impl Watched<'_> {
    /// Noted before the attempt: whether a write that failed sent something, nobody knows.
    fn begin(&mut self) -> Pin<&mut Box<dyn Stream>> {
        self.begun.store(true, Ordering::Relaxed);
        Pin::new(&mut self.stream)
    }
}

impl AsyncRead for Watched<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.begin().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.begin().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
