//! The short way of a plain request to a short answer: one read, one write, no state between the two.
//!
//! Most requests are such. Of all that HTTP/1.1 allows, only what can be read in one way is read here ([`read`]): a whole head, and a
//! body that is short and has come with it. Whatever else comes is for hyper to read, from its first byte on ([`Replay`]), so that
//! nothing odd is judged twice and differently; and whatever is not short, whole and plain of an answer is for hyper to write. Once it
//! has done so, the connection comes back here. What is answered, and to whom, is decided in neither.

mod read;
#[cfg(test)]
mod tests;
mod write;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::Instant;

use crate::draining::Draining;
use crate::guest::Guest;
use crate::patience::Patience;
use crate::short::read::{Plain, Read};
use crate::short::write::Framing;

/// Most requests fit into this.
const READ_FIRST: usize = 4 * 1024;
/// The longest head that is read here.
const HEAD_MAX: usize = 16 * 1024;
/// As many pieces a head may come in. Whoever sends it byte by byte must not have it looked through as often.
const PIECES_MAX: usize = 4;
/// Up to so many bytes, copying head and body together costs less than the kernel's looking at a list of them.
const JOINED_MAX: usize = 4 * 1024;
/// As much is kept for the next answer to be put together in.
const ROOM_MAX: usize = 64 * 1024;

thread_local! {
    /// Where answers are put together. Empty in between, but for what is overwritten next.
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A connection of HTTP/1.1 in its short way.
pub(crate) struct Short<S> {
    stream: S,
    /// What was read and not understood yet.
    read: BytesMut,
    /// An empty map with room.
    headers: HeaderMap,
    guest: Arc<Guest>,
    patience: Patience,
    header_timeout: Duration,
    /// What time it was when nobody had been waited for since.
    now: Option<Instant>,
}

/// What is for hyper.
pub(crate) struct Odd<B: Body> {
    /// A request from its first byte on, and what has come of it and after it.
    pub(crate) read: BytesMut,
    /// When its head must be there, should it not be.
    pub(crate) until: Option<Instant>,
    /// The answer, where it has one already.
    pub(crate) answer: Option<Response<Begun<B>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Short<S> {
    pub(crate) fn new(stream: S, guest: Arc<Guest>, patience: Patience, header_timeout: Duration) -> Self {
        Self {
            stream,
            read: BytesMut::new(),
            headers: HeaderMap::new(),
            guest,
            patience,
            header_timeout,
            now: None,
        }
    }

    /// The connection for hyper, which reads this first.
    pub(crate) fn replay(&mut self, read: BytesMut) -> Replay<'_, S> {
        Replay {
            stream: &mut self.stream,
            read,
        }
    }

    /// It comes back, and this has been read of it.
    pub(crate) fn take_back(&mut self, read: BytesMut) {
        self.read = read;
    }

    /// Answers plain requests until the connection's end (`None`), or until something comes that is for hyper.
    ///
    /// # Errors
    ///
    /// When the connection ended in the middle of something, or a head was not there in time.
    pub(crate) async fn serve<B, F>(
        &mut self,
        draining: &mut Draining,
        answer: impl Fn(Box<Parts>, Full<Bytes>) -> F,
    ) -> io::Result<Option<Odd<B>>>
    where
        B: Body<Data = Bytes> + Unpin,
        F: Future<Output = Box<Response<B>>>,
    {
        self.now = None;
        // hyper's last bytes may lie with TLS still.
        self.send(Vec::new(), Bytes::new()).await?;
        loop {
            let (mut until, mut pieces) = (None, 0);
            let plain = loop {
                match read::read(&mut self.read, &mut self.headers) {
                    Read::Whole(plain) => break plain,
                    Read::Partial if pieces < PIECES_MAX && self.read.len() <= HEAD_MAX => {}
                    Read::Partial | Read::Odd => return Ok(Some(self.odd(until))),
                }
                let until = *until.get_or_insert_with(|| {
                    let began = self.now.take().unwrap_or_else(Instant::now);
                    self.patience.until(began, self.header_timeout)
                });
                if !poll_fn(|cx| self.poll_more(draining, until, cx)).await? {
                    self.stream.shutdown().await?;
                    return Ok(None);
                }
                pieces += 1;
            };
            let Plain {
                head,
                body,
                whole,
                is_head,
            } = plain;
            let mut answering = pin!(answer(head, body));
            let mut response = poll_fn(|cx| {
                // First, for nearly always that is what there is to be done.
                if let Poll::Ready(response) = answering.as_mut().poll(cx) {
                    return Poll::Ready(Ok(response));
                }
                if self.has_hung_up(cx)? {
                    return Poll::Ready(Err(io::Error::from(io::ErrorKind::UnexpectedEof)));
                }
                Poll::Pending
            })
            .await?;
            let is_last = poll_fn(|cx| Poll::Ready(draining.is_said(cx))).await;
            let mut written = ROOM.take();
            written.clear();
            let now = Instant::now();
            let body = match write::head(&mut written, &response, is_head, is_last, now) {
                Some(Framing::Nothing) => Some(Bytes::new()),
                Some(Framing::Length(length)) => {
                    let first = poll_fn(|cx| Poll::Ready(Pin::new(response.body_mut()).poll_frame(cx))).await;
                    match whole_of::<B>(first, length) {
                        Ok(body) => Some(body),
                        Err(first) => {
                            return Ok(Some(self.odd_answer(&whole, *response, first)));
                        }
                    }
                }
                None => None,
            };
            let Some(mut body) = body else {
                return Ok(Some(self.odd_answer(&whole, *response, Poll::Pending)));
            };
            // What was asked and answered is over, whenever its last byte has been written.
            self.headers = std::mem::take(response.headers_mut());
            self.headers.clear();
            drop((response, whole));
            if written.len() + body.len() <= JOINED_MAX {
                written.extend_from_slice(&body);
                body.clear();
            }
            self.now = Some(now);
            self.send(written, body).await?;
            self.guest.flushed();
            if is_last {
                self.stream.shutdown().await?;
                return Ok(None);
            }
        }
    }

    fn odd<B: Body>(&mut self, until: Option<Instant>) -> Odd<B> {
        Odd {
            read: std::mem::take(&mut self.read),
            until,
            answer: None,
        }
    }

    /// A request whose answer is for hyper to write.
    fn odd_answer<B>(&mut self, whole: &[u8], response: Response<B>, begun: Look<B>) -> Odd<B>
    where
        B: Body<Data = Bytes>,
    {
        let mut read = BytesMut::with_capacity(whole.len() + self.read.len());
        read.extend_from_slice(whole);
        read.extend_from_slice(&self.read);
        self.read.clear();
        Odd {
            read,
            until: None,
            answer: Some(response.map(|body| Begun { body, begun })),
        }
    }

    /// Reads some more, while a request is waited for; `false` at the end of the connection.
    fn poll_more(
        &mut self,
        draining: &mut Draining,
        until: Instant,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<bool>> {
        if draining.is_said(cx) && self.read.is_empty() {
            return Poll::Ready(Ok(false));
        }
        if self.read.is_empty() {
            // At the buffer's beginning again, where nobody has kept anything of what was in it.
            self.read.reserve(READ_FIRST);
        }
        match self.poll_read(cx) {
            Poll::Ready(Ok(0)) if self.read.is_empty() => Poll::Ready(Ok(false)),
            Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            Poll::Ready(read) => Poll::Ready(read.map(|_| true)),
            Poll::Pending => self.poll_too_late(until, cx).map(Err),
        }
    }

    /// Whether the caller has left, while its call is on its way. Once it has sent more, that is not seen before it is answered.
    fn has_hung_up(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        if !self.read.is_empty() {
            return Ok(false);
        }
        match self.poll_read(cx) {
            Poll::Ready(read) => Ok(read? == 0),
            Poll::Pending => Ok(false),
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.read.capacity() == self.read.len() {
            self.read.reserve(READ_FIRST);
        }
        pin!(self.stream.read_buf(&mut self.read)).poll(cx)
    }

    fn poll_too_late(&self, until: Instant, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.patience
            .poll_over(until, cx)
            .map(|()| io::ErrorKind::TimedOut.into())
    }

    /// Writes all of it. Whoever takes none of it for as long as a head may take is not waited for.
    async fn send(&mut self, head: Vec<u8>, mut body: Bytes) -> io::Result<()> {
        let mut sent = 0;
        let mut until = None;
        poll_fn(|cx| {
            let done = poll_send(&mut self.stream, &head, &mut sent, &mut body, cx);
            if done.is_ready() {
                return done;
            }
            self.now = None;
            let until =
                *until.get_or_insert_with(|| self.patience.until(Instant::now(), self.header_timeout));
            self.poll_too_late(until, cx).map(Err)
        })
        .await?;
        if (1..=ROOM_MAX).contains(&head.capacity()) {
            ROOM.set(head);
        }
        Ok(())
    }
}

fn poll_send<S: AsyncWrite + Unpin>(
    stream: &mut S,
    head: &[u8],
    sent: &mut usize,
    body: &mut Bytes,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    let mut stream = Pin::new(stream);
    loop {
        let left = &head[*sent..];
        let written = match (left.is_empty(), body.is_empty()) {
            (true, true) => return stream.poll_flush(cx),
            (false, true) => ready!(stream.as_mut().poll_write(cx, left))?,
            (true, false) => ready!(stream.as_mut().poll_write(cx, body))?,
            (false, false) => {
                let parts = [IoSlice::new(left), IoSlice::new(body)];
                ready!(stream.as_mut().poll_write_vectored(cx, &parts))?
            }
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        let of_head = written.min(left.len());
        *sent += of_head;
        body.advance(written - of_head);
    }
}

/// The body that a first look found whole, or what that look found.
fn whole_of<B: Body<Data = Bytes>>(first: Look<B>, length: usize) -> Result<Bytes, Look<B>> {
    match first {
        Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
            Ok(data) if data.len() == length => Ok(data),
            Ok(data) => Err(Poll::Ready(Some(Ok(Frame::data(data))))),
            Err(frame) => Err(Poll::Ready(Some(Ok(frame)))),
        },
        other => Err(other),
    }
}

/// What a look at a body brings.
type Look<B> = Poll<Option<Result<Frame<<B as Body>::Data>, <B as Body>::Error>>>;

/// A body that was looked at once already.
pub(crate) struct Begun<B: Body> {
    body: B,
    /// What was found.
    begun: Look<B>,
}

impl<B: Body> Begun<B> {
    /// Nobody has looked.
    pub(crate) fn not_yet(body: B) -> Self {
        Self {
            body,
            begun: Poll::Pending,
        }
    }
}

impl<B: Body<Data = Bytes, Error: Unpin> + Unpin> Body for Begun<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match std::mem::replace(&mut self.begun, Poll::Pending) {
            Poll::Pending => Pin::new(&mut self.body).poll_frame(cx),
            found @ Poll::Ready(_) => found,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.begun.is_pending() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.body.size_hint();
        let Poll::Ready(Some(Ok(frame))) = &self.begun else {
            return hint;
        };
        let found = frame.data_ref().map_or(0, Bytes::len) as u64;
        let mut whole = SizeHint::new();
        if let Some(upper) = hint.upper() {
            whole.set_upper(upper + found);
        }
        whole.set_lower(hint.lower() + found);
        whole
    }
}

/// A connection as hyper sees it: what was read of it already comes first.
pub(crate) struct Replay<'a, S> {
    stream: &'a mut S,
    read: BytesMut,
}

impl<S> Replay<'_, S> {
    /// What nobody has read again.
    pub(crate) fn left(self) -> BytesMut {
        self.read
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replay<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut *self.stream).poll_read(cx, buffer);
        }
        let length = self.read.len().min(buffer.remaining());
        buffer.put_slice(&self.read[..length]);
        self.read.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replay<'_, S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream).poll_write_vectored(cx, parts)
    }
}
