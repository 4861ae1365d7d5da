//! One connection, and the call that has it.
//!
//! Nothing runs beside the call: whoever waits for the answer or reads its body also moves the connection on. So a call costs no task
//! and no message between two, and a connection whose call was given up is closed with it.
//!
//! A connection begins with the short way (`short`). The first call that needs more makes it one that hyper speaks, for good.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::HOST;
use http::{HeaderValue, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::runtime::Handle;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout};

use crate::call_body::{BoxError, Outgoing};
use crate::transport::Leaving;
use crate::upstream::connect::Stream;
use crate::upstream::shelf::Shelf;
use crate::upstream::short::{self, Heard, Replay, ShortBody, Unheard};

/// A connection to a provider.
pub(crate) struct Line {
    way: Way,
    home: Weak<Shelf>,
    is_tls: bool,
    /// What it is told to be, as `Host`.
    origin: HeaderValue,
    /// Since when it waits for the next call; `None` before its first.
    idle_since: Option<Instant>,
    /// For how long it had waited when that was last asked.
    waited: Duration,
}

/// How calls go over it.
enum Way {
    Short(Stream),
    Hyper(Box<ByHyper>),
}

/// hyper has it.
struct ByHyper {
    sender: SendRequest<Outgoing>,
    /// `None` once it has ended.
    connection: Option<Connection<TokioIo<Replay>, Outgoing>>,
}

/// There is no answer.
pub(crate) struct Failed<'a> {
    pub(crate) error: BoxError,
    /// The call, where surely no byte of it was written.
    pub(crate) unwritten: Option<Leaving<'a>>,
}

#[expect(
    clippy::unnecessary_box_returns,
    reason = "it is an error's way of being small"
)]
impl<'a> Failed<'a> {
    fn before(call: Leaving<'a>, error: impl Into<BoxError>) -> Box<Self> {
        Box::new(Self {
            error: error.into(),
            unwritten: Some(call),
        })
    }

    /// In doubt it left.
    fn in_doubt(error: impl Into<BoxError>) -> Box<Self> {
        Box::new(Self {
            error: error.into(),
            unwritten: None,
        })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the connection had ended, or something came that nobody had asked for")]
struct NoGood;

impl ByHyper {
    async fn begin(stream: Replay) -> Result<Box<Self>, hyper::Error> {
        /// What a connection reads ahead at most while its caller is slow; larger brings little, and many are slow at once.
        const BUFFER_MAX: usize = 128 * 1024;
        let (sender, connection) = Builder::new()
            .max_buf_size(BUFFER_MAX)
            .handshake(TokioIo::new(stream))
            .await?;
        Ok(Box::new(Self {
            sender,
            connection: Some(connection),
        }))
    }

    /// Moves the connection on, as far as it goes.
    fn poll(&mut self, cx: &mut Context<'_>) {
        if let Some(connection) = &mut self.connection
            && Pin::new(connection).poll(cx).is_ready()
        {
            // Dropped, it hands back what it did not begin to write.
            self.connection = None;
        }
    }

    /// Whether both sides of the call before are over, so that there may be another.
    fn is_free(&self) -> bool {
        self.connection.is_some() && self.sender.is_ready()
    }
}

impl Line {
    #[expect(clippy::unnecessary_box_returns, reason = "it stays where it is all its life")]
    /// A new one, which waits here between its calls. `origin`: what it is told to be.
    pub(crate) fn begin(stream: Stream, home: &Arc<Shelf>, is_tls: bool, origin: HeaderValue) -> Box<Self> {
        Box::new(Self {
            way: Way::Short(stream),
            home: Arc::downgrade(home),
            is_tls,
            origin,
            idle_since: None,
            waited: Duration::ZERO,
        })
    }

    pub(crate) fn origin(&self) -> &HeaderValue {
        &self.origin
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.is_tls
    }

    pub(crate) fn was_kept(&self) -> bool {
        self.idle_since.is_some()
    }

    /// For how long it has waited for its next call.
    pub(crate) fn has_waited(&mut self, now: Instant) -> Duration {
        self.waited = self
            .idle_since
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.waited
    }

    /// Sends a call and waits for the head of its answer.
    ///
    /// Before anything is written, it is read: a connection that has ended meanwhile, or on which something came that nobody asked
    /// for, gives the request back.
    pub(crate) async fn exchange(
        mut self: Box<Self>,
        call: Leaving<'_>,
    ) -> Result<Response<Remaining>, Box<Failed<'_>>> {
        /// After a wait that short, the runtime has heard of an end as early as anybody can.
        const HEARD_WITHIN: Duration = Duration::from_secs(1);
        if self.waited > HEARD_WITHIN {
            // The runtime asks the kernel what happened to its sockets. It may not have for long, if the machine or the process slept.
            yield_now().await;
        }
        let Way::Short(stream) = &mut self.way else {
            return Box::pin(self.exchange_by_hyper(call)).await;
        };
        let replay = if let Some(body) = call.body.at_hand(short::SENT_MAX) {
            match short::ask(stream, &self.origin, &call, &body).await {
                Ok(Heard::Answer(answer)) => {
                    return Ok(answer.map(|body| Remaining::new(Coming::Short(body), self)));
                }
                Ok(Heard::Odd(read)) => Some(read),
                Err(Unheard::Before) => return Err(Failed::before(call, NoGood)),
                Err(Unheard::After(error)) => return Err(Failed::in_doubt(error)),
            }
        } else {
            None
        };
        Box::pin(self.change_over(call, replay)).await
    }

    /// From here on hyper speaks, beginning with this call. `replay`: it was written already, and so much of an answer read.
    async fn change_over(
        self: Box<Self>,
        call: Leaving<'_>,
        replay: Option<BytesMut>,
    ) -> Result<Response<Remaining>, Box<Failed<'_>>> {
        let was_written = replay.is_some();
        let Self {
            way,
            home,
            is_tls,
            origin,
            idle_since,
            waited,
        } = *self;
        let way = match way {
            Way::Short(stream) => {
                let stream = match replay {
                    Some(read) => Replay::of(stream, read),
                    None => Replay::nothing(stream),
                };
                Way::Hyper(ByHyper::begin(stream).await.map_err(Failed::in_doubt)?)
            }
            Way::Hyper(hyper) => Way::Hyper(hyper),
        };
        let line = Box::new(Self {
            way,
            home,
            is_tls,
            origin,
            idle_since,
            waited,
        });
        line.exchange_by_hyper(call).await.map_err(|mut failed| {
            if was_written {
                failed.unwritten = None;
            }
            failed
        })
    }

    async fn exchange_by_hyper(
        mut self: Box<Self>,
        call: Leaving<'_>,
    ) -> Result<Response<Remaining>, Box<Failed<'_>>> {
        let Way::Hyper(hyper) = &mut self.way else {
            return Err(Failed::before(call, NoGood));
        };
        let Leaving {
            method,
            uri,
            headers,
            bearer,
            at,
            ..
        } = call;
        let mut request = call.request();
        // The origin is said by `Host` alone (RFC 9112 §3.2.1).
        let path = uri.path_and_query().cloned();
        *request.uri_mut() = path.map(Uri::from).unwrap_or_default();
        request.headers_mut().insert(HOST, self.origin.clone());
        let mut answer = pin!(hyper.sender.try_send_request(request));
        let answer = poll_fn(|cx| {
            hyper.poll(cx);
            // What it brought is looked for right after it was moved on, so nobody else need wake us.
            answer.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        })
        .await;
        match answer {
            Ok(answer) => Ok(answer.map(|incoming| Remaining::new(Coming::Hyper(incoming), self))),
            Err(mut failed) => Err(Box::new(Failed {
                unwritten: failed.take_message().map(|request| Leaving {
                    method,
                    uri,
                    headers,
                    bearer,
                    at,
                    body: request.into_body(),
                }),
                error: failed.into_error().into(),
            })),
        }
    }

    /// Whether it has ended, as far as is known by now.
    pub(crate) fn has_ended(&mut self) -> bool {
        let mut nobody = Context::from_waker(Waker::noop());
        match &mut self.way {
            Way::Short(stream) => !short::is_silent(stream, &mut nobody),
            Way::Hyper(hyper) => {
                hyper.poll(&mut nobody);
                hyper.connection.is_none()
            }
        }
    }

    /// The answer has been read to its end.
    fn answered(self: Box<Self>) {
        /// How long a call's body may still move on after its answer.
        const BODY_MAX: Duration = Duration::from_secs(60);
        match &self.way {
            Way::Hyper(hyper) if !hyper.is_free() => {
                if hyper.connection.is_some()
                    && let Ok(runtime) = Handle::try_current()
                {
                    // The provider answered before it read the whole call. A caller that is still sending must not find its connection
                    // closed for that; it reads the answer afterwards.
                    runtime.spawn(timeout(BODY_MAX, self.to_the_end()));
                }
            }
            Way::Short(_) | Way::Hyper(_) => self.put_away(),
        }
    }

    async fn to_the_end(mut self: Box<Self>) {
        if let Way::Hyper(hyper) = &mut self.way {
            poll_fn(|cx| {
                hyper.poll(cx);
                if hyper.connection.is_none() || hyper.is_free() {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
            .await;
            if !hyper.is_free() {
                return;
            }
        }
        self.put_away();
    }

    fn put_away(mut self: Box<Self>) {
        // Until now it would wake the call that had it. While it waits nobody need be woken, least of all that call.
        if self.has_ended() {
            return;
        }
        if let Some(home) = self.home.upgrade() {
            self.idle_since = Some(Instant::now());
            home.put(self);
        }
    }
}

/// What is still to come of an answer, with the connection that it comes over.
///
/// The connection is kept for the next call once all of it has come; dropped before, it is closed.
pub struct Remaining {
    coming: Coming,
    line: Option<Box<Line>>,
    has_begun: bool,
}

/// How it comes.
enum Coming {
    Short(ShortBody),
    Hyper(Incoming),
}

impl Remaining {
    fn new(coming: Coming, line: Box<Line>) -> Self {
        let mut remaining = Self {
            coming,
            line: Some(line),
            has_begun: false,
        };
        remaining.look_for_the_end();
        remaining
    }

    fn look_for_the_end(&mut self) {
        let has_come = match &self.coming {
            Coming::Short(body) => body.left() == 0,
            Coming::Hyper(incoming) => incoming.is_end_stream(),
        };
        if has_come && let Some(line) = self.line.take() {
            match &self.coming {
                Coming::Short(body) if !body.lets_stay() => {}
                Coming::Short(_) | Coming::Hyper(_) => line.answered(),
            }
        }
    }

    /// The next piece of the short way.
    fn poll_short(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Coming::Short(body) = &mut self.coming else {
            return Poll::Ready(None);
        };
        let stream = self.line.as_mut().and_then(|line| match &mut line.way {
            Way::Short(stream) => Some(stream),
            Way::Hyper(_) => None,
        });
        match ready!(body.poll_piece(stream, cx)) {
            Some(Ok(piece)) => {
                self.look_for_the_end();
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            Some(Err(error)) => {
                self.line = None;
                Poll::Ready(Some(Err(error.into())))
            }
            None => Poll::Ready(None),
        }
    }

    fn poll_incoming(&mut self) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Coming::Hyper(incoming) = &mut self.coming else {
            return Poll::Ready(None);
        };
        // As above: only the connection moves this.
        let mut nobody = Context::from_waker(Waker::noop());
        let frame = ready!(Pin::new(incoming).poll_frame(&mut nobody));
        match &frame {
            Some(Ok(_)) => self.look_for_the_end(),
            None => {
                if let Some(line) = self.line.take() {
                    line.answered();
                }
            }
            Some(Err(_)) => self.line = None,
        }
        Poll::Ready(frame)
    }

    /// Moves the connection on.
    fn poll_line(&mut self, cx: &mut Context<'_>) {
        if let Some(line) = &mut self.line
            && let Way::Hyper(hyper) = &mut line.way
        {
            hyper.poll(cx);
        }
    }
}

impl Body for Remaining {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if matches!(self.coming, Coming::Short(_)) {
            return self.poll_short(cx);
        }
        if !self.has_begun {
            self.has_begun = true;
            // The connection waits until somebody wants the body and would wake us for wanting it, who are here already.
            self.poll_line(&mut Context::from_waker(Waker::noop()));
        }
        let mut frame = self.poll_incoming();
        if frame.is_pending() {
            self.poll_line(cx);
            frame = self.poll_incoming();
        }
        frame.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.coming {
            Coming::Short(body) => body.left() == 0,
            Coming::Hyper(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.coming {
            Coming::Short(body) => SizeHint::with_exact(body.left() as u64),
            Coming::Hyper(incoming) => incoming.size_hint(),
        }
    }
}
