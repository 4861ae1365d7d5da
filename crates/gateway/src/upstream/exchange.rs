//! One connection, and the call that has it.
//!
//! Nothing runs beside the call: whoever waits for the answer or reads its body also moves the connection on. So a call costs no task
//! and no message between two, and a connection whose call was given up is closed with it.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use tokio::runtime::Handle;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout};

use crate::call_body::{BoxError, Outgoing};
use crate::upstream::connect::Stream;
use crate::upstream::shelf::Shelf;

/// A connection to a provider.
pub(crate) struct Line {
    sender: SendRequest<Outgoing>,
    /// `None` once it has ended.
    connection: Option<Connection<Stream, Outgoing>>,
    home: Weak<Shelf>,
    is_tls: bool,
    /// What it is told to be, as `Host`.
    origin: HeaderValue,
    /// Since when it waits for the next call; `None` before its first.
    idle_since: Option<Instant>,
}

/// There is no answer.
pub(crate) struct Failed {
    pub(crate) error: hyper::Error,
    /// The request, where surely no byte of it was written.
    pub(crate) unwritten: Option<Request<Outgoing>>,
}

impl Line {
    pub(crate) async fn begin(stream: Stream) -> Result<Box<Self>, hyper::Error> {
        /// What a connection reads ahead at most while its caller is slow; larger brings little, and many are slow at once.
        const BUFFER_MAX: usize = 128 * 1024;
        let (sender, connection) = Builder::new().max_buf_size(BUFFER_MAX).handshake(stream).await?;
        Ok(Box::new(Self {
            sender,
            connection: Some(connection),
            home: Weak::new(),
            is_tls: false,
            origin: HeaderValue::from_static(""),
            idle_since: None,
        }))
    }

    /// Says where it waits for its next call, and under which name.
    pub(crate) fn belongs(&mut self, home: &Arc<Shelf>, is_tls: bool, origin: HeaderValue) {
        self.home = Arc::downgrade(home);
        self.is_tls = is_tls;
        self.origin = origin;
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

    pub(crate) fn idle_since(&self) -> Option<Instant> {
        self.idle_since
    }

    /// Sends a call and waits for the head of its answer.
    ///
    /// Before anything is written, hyper reads: a connection that has ended meanwhile, or on which something came that nobody asked
    /// for, gives the request back.
    pub(crate) async fn exchange(
        mut self: Box<Self>,
        request: Request<Outgoing>,
    ) -> Result<Response<Remaining>, Box<Failed>> {
        /// After a wait that short, the runtime has heard of an end as early as anybody can.
        const HEARD_WITHIN: Duration = Duration::from_secs(1);
        if self
            .idle_since
            .is_some_and(|since| since.elapsed() > HEARD_WITHIN)
        {
            // The runtime asks the kernel what happened to its sockets. It may not have for long, if the machine or the process slept.
            yield_now().await;
        }
        let mut answer = pin!(self.sender.try_send_request(request));
        let answer = poll_fn(|cx| {
            self.poll(cx);
            // What it brought is looked for right after it was moved on, so nobody else need wake us.
            answer.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        })
        .await;
        match answer {
            Ok(answer) => Ok(answer.map(|incoming| Remaining::new(incoming, self))),
            Err(mut failed) => Err(Box::new(Failed {
                unwritten: failed.take_message(),
                error: failed.into_error(),
            })),
        }
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

    /// Whether it has ended, as far as is known by now.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.poll(&mut Context::from_waker(Waker::noop()));
        self.connection.is_none()
    }

    /// Whether both sides of the call before are over, so that there may be another.
    fn is_free(&self) -> bool {
        self.connection.is_some() && self.sender.is_ready()
    }

    /// The answer has been read to its end.
    fn answered(self: Box<Self>) {
        /// How long a call's body may still move on after its answer.
        const BODY_MAX: Duration = Duration::from_secs(60);
        if self.is_free() {
            self.put_away();
        } else if self.connection.is_some()
            && let Ok(runtime) = Handle::try_current()
        {
            // The provider answered before it read the whole call. A caller that is still sending must not find its connection
            // closed for that; it reads the answer afterwards.
            runtime.spawn(timeout(BODY_MAX, self.to_the_end()));
        }
    }

    async fn to_the_end(mut self: Box<Self>) {
        poll_fn(|cx| {
            self.poll(cx);
            if self.connection.is_none() || self.is_free() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
        if self.is_free() {
            self.put_away();
        }
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
    incoming: Incoming,
    line: Option<Box<Line>>,
    has_begun: bool,
}

impl Remaining {
    fn new(incoming: Incoming, line: Box<Line>) -> Self {
        let mut remaining = Self {
            incoming,
            line: Some(line),
            has_begun: false,
        };
        remaining.look_for_the_end();
        remaining
    }

    fn look_for_the_end(&mut self) {
        if self.incoming.is_end_stream()
            && let Some(line) = self.line.take()
        {
            line.answered();
        }
    }

    fn poll_incoming(&mut self) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        // As above: only the connection moves this.
        let mut nobody = Context::from_waker(Waker::noop());
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(&mut nobody));
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
}

impl Body for Remaining {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if !self.has_begun {
            self.has_begun = true;
            // The connection waits until somebody wants the body and would wake us for wanting it, who are here already.
            if let Some(line) = &mut self.line {
                line.poll(&mut Context::from_waker(Waker::noop()));
            }
        }
        let mut frame = self.poll_incoming();
        if frame.is_pending()
            && let Some(line) = &mut self.line
        {
            line.poll(cx);
            frame = self.poll_incoming();
        }
        frame.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
