//! The network of a simulated process: streams in memory, and a witness on each.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use evergrant_oauth::{Network, Stream};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::time::Instant;
use url::{Url, form_urlencoded};

use crate::dice::Dice;
use crate::gate::Gate;
use crate::provider::Provider;
use crate::witness::Witness;

/// The way to the provider of one process.
pub(crate) struct Wire {
    pub(crate) process: String,
    pub(crate) gate: Gate,
    pub(crate) dice: Dice,
    pub(crate) provider: Arc<Provider>,
}

#[async_trait]
impl Network for Wire {
    async fn connect(&self, _url: &Url, deadline: Instant) -> Result<Box<dyn Stream>, &'static str> {
        tokio::time::sleep(self.dice.mostly_short(Duration::from_millis(50))).await;
        if self.provider.refuses_connections() {
            return Err("unreachable");
        }
        let witness = self.provider.witness().clone();
        let exchange = witness.connected(&self.process, &self.gate);
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let provider = Arc::clone(&self.provider);
        // The provider's own: it goes on whatever becomes of the process.
        tokio::spawn(async move { provider.serve(theirs, exchange, deadline).await });
        Ok(Box::new(Line {
            stream: ours,
            exchange,
            gate: self.gate.clone(),
            witness,
            request: Some(Vec::new()),
            deadline,
            heard: false,
        }))
    }
}

/// A process's end of a connection.
struct Line {
    stream: DuplexStream,
    exchange: usize,
    witness: Witness,
    /// What was written so far, until it says which refresh token it presents.
    request: Option<Vec<u8>>,
    gate: Gate,
    deadline: Instant,
    /// Whether anything came back, the end included.
    heard: bool,
}

impl Line {
    fn watch(&mut self, bytes: &[u8]) {
        let Some(request) = &mut self.request else {
            return;
        };
        request.extend_from_slice(bytes);
        let Some(body) = whole_body(request) else {
            return;
        };
        let field = |name: &str| {
            let mut fields = form_urlencoded::parse(body);
            fields
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.into_owned())
        };
        if field("grant_type").as_deref() == Some("refresh_token")
            && let Some(token) = field("refresh_token")
        {
            self.witness.sends(self.exchange, &token);
        }
        self.request = None;
    }
}

/// The body of an HTTP/1.1 request, once all of it is there.
pub(crate) fn whole_body(request: &[u8]) -> Option<&[u8]> {
    let head_ends = request.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&request[..head_ends]).ok()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().ok())?
    })?;
    request[head_ends..].get(..length)
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.watch(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let read = buffer.filled().len() - before;
        self.heard = true;
        if read > 0 {
            self.witness.reads(self.exchange, read);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Whoever is killed waits no more. Nobody else may leave before its time.
        let leaves = !self.heard && self.gate.is_running() && Instant::now() < self.deadline;
        self.witness.lets_go(self.exchange, leaves);
    }
}
