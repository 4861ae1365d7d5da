//! What HTTP itself answers to a request that is none, in our own words.
//!
//! hyper answers what it cannot read by itself: a bare status line, of which nobody could say whether it is the provider's. It does
//! so only while no request of this connection is being answered, and then ends the connection. Between hyper and the connection
//! its words are told by exactly that, and replaced by a problem document; whatever belongs to an answer passes untouched,
//! whatever it may look like.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::response::Response;
use futures_util::FutureExt as _;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use hyper::rt::{Read, ReadBufCursor, Write};

use crate::guest::Guest;
use crate::problem::{Code, Door, Problem};
use crate::trace::{REQUEST_ID, Trace};

/// A connection of HTTP/1.1 on which every word is ours or the provider's.
pub(crate) struct OwnWords<I> {
    io: I,
    guest: Arc<Guest>,
    /// What is said in place of hyper's words, and how much of it has been written.
    instead: Option<(Vec<u8>, usize)>,
}

impl<I> OwnWords<I> {
    pub(crate) fn new(io: I, guest: Arc<Guest>) -> Self {
        Self {
            io,
            guest,
            instead: None,
        }
    }

    /// The connection below.
    pub(crate) fn into_inner(self) -> I {
        self.io
    }
}

impl<I: Write + Unpin> OwnWords<I> {
    /// Whether hyper speaks for itself, from here to the end.
    fn is_hypers(&mut self, words: &[u8]) -> bool {
        if self.instead.is_none()
            && self.guest.is_quiet()
            && let Some(status) = status_of(words)
        {
            self.instead = Some((ours(status), 0));
            self.guest.speaks_no_more();
        }
        self.instead.is_some()
    }

    fn poll_say(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some((words, said)) = &mut self.instead {
            while *said < words.len() {
                let written = ready!(Pin::new(&mut self.io).poll_write(cx, &words[*said..]))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                *said += written;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: Read + Unpin> Read for OwnWords<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<I: Write + Unpin> Write for OwnWords<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_hypers(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_say(cx))?;
        // hyper flushes when it has nothing left to write.
        if self.instead.is_none() {
            self.guest.flushed();
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_say(cx))?;
        self.guest.speaks_no_more();
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = parts.first().map_or(&[][..], |part| &**part);
        let length = parts.iter().map(|part| part.len()).sum();
        if self.is_hypers(first) {
            return Poll::Ready(Ok(length));
        }
        if length > JOINED_MAX {
            return Pin::new(&mut self.io).poll_write_vectored(cx, parts);
        }
        JOINED.with_borrow_mut(|joined| {
            joined.clear();
            for part in parts {
                joined.extend_from_slice(part);
            }
            Pin::new(&mut self.io).poll_write(cx, joined)
        })
    }
}

/// Up to so many bytes, copying parts together costs less than the kernel's looking at a list of them.
const JOINED_MAX: usize = 4 * 1024;

thread_local! {
    /// Where they are put together. Empty in between, but for what is overwritten next.
    static JOINED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The status of hyper's own answers: 400, 414 and 431.
fn status_of(words: &[u8]) -> Option<StatusCode> {
    let status = words
        .strip_prefix(b"HTTP/1.1 ")
        .or_else(|| words.strip_prefix(b"HTTP/1.0 "))?;
    let status = StatusCode::from_bytes(status.get(..3)?).ok()?;
    status.is_client_error().then_some(status)
}

fn ours(status: StatusCode) -> Vec<u8> {
    let problem = match status {
        StatusCode::URI_TOO_LONG | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Problem::because(
            Code::HeadersTooLarge,
            "the request line or the headers are over the limit",
        ),
        _ => Problem::bad_request("the request is not HTTP as it must be written"),
    };
    // Nothing could be read of the request, not even for which door it was.
    let trace = Trace::of(&HeaderMap::new());
    let mut response = problem.write(trace.request_id(), Door::Gateway);
    response.headers_mut().insert(REQUEST_ID, trace.request_id);
    written(response)
}

/// The last answer of a connection, as it is sent.
fn written(response: Response) -> Vec<u8> {
    let (parts, body) = response.into_parts();
    let body = body
        .collect()
        .now_or_never()
        .and_then(Result::ok)
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    let mut words = format!("HTTP/1.1 {}\r\n", parts.status).into_bytes();
    for (name, value) in &parts.headers {
        words.extend_from_slice(name.as_str().as_bytes());
        words.extend_from_slice(b": ");
        words.extend_from_slice(value.as_bytes());
        words.extend_from_slice(b"\r\n");
    }
    words
        .extend_from_slice(format!("content-length: {}\r\nconnection: close\r\n\r\n", body.len()).as_bytes());
    words.extend_from_slice(&body);
    words
}
