//! The one sender: one request over one fresh connection.
//!
//! No pool, so no connection that died in waiting and no client that quietly tries again; no redirects; no content coding.
//! Connecting and sending are two steps of ours, so "not sent" is a fact and never a guess.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use evergrant_domain::Timestamp;
use http::header::CONTENT_ENCODING;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::time::{Instant, timeout_at};
use url::Url;
use zeroize::Zeroizing;

use crate::network::{Network, Stream, TIMEOUT, UNUSABLE_URL};
use crate::retry_after::{date, retry_after};

/// What is sent.
pub(crate) trait Outgoing: Send {
    /// Where to.
    fn url(&self) -> &Url;

    /// The request; `None` where its URL cannot be one's target.
    fn into_http(self) -> Option<http::Request<Full<Bytes>>>;
}

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
    /// When it was made, by its maker's clock.
    pub(crate) date: Option<Timestamp>,
    /// From the request's first byte to the answer's head.
    pub(crate) took: Duration,
    /// When its head was here.
    pub(crate) came_at: Instant,
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
    network: &dyn Network,
    request: impl Outgoing,
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

    let mut stream = match timeout_at(deadline, network.connect(request.url(), deadline)).await {
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

const CONNECTION_LOST: &str = "connection_lost";

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
    let sent_at = Instant::now();
    let mut answer = pin!(async {
        let response = match by(deadline, sender.send_request(request)).await {
            Some(Ok(response)) => response,
            Some(Err(error)) if error.is_parse() => return Err("unreadable"),
            Some(Err(_)) => return Err(CONNECTION_LOST),
            None => return Err(TIMEOUT),
        };
        let came_at = Instant::now();
        Ok(Answer {
            status: response.status().as_u16(),
            retry_after: retry_after(response.headers()),
            date: date(response.headers()),
            took: came_at.saturating_duration_since(sent_at),
            came_at,
            body: by(deadline, read(response)).await.unwrap_or(Body::Cut(TIMEOUT)),
        })
    });
    // Nothing is spawned: who drops the exchange closes the connection.
    tokio::select! {
        biased;
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
