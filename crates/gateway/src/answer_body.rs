//! The body of a provider's answer: what was read of it to judge it, then the rest, as it comes.

use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use evergrant_metrics::InFlight;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

use crate::call_body::BoxError;
use crate::upstream::Remaining;

/// A stream may last for hours, but one that is silent for this long is taken for dead.
const SILENCE_MAX: Duration = Duration::from_secs(300);

/// The body of a provider's answer, unchanged. Dropping it ends the exchange with the provider.
///
/// An error means that the provider's answer broke off; whoever passes it on must break off, too, so that nobody takes a
/// part for the whole.
pub struct GatewayBody {
    begun: VecDeque<Bytes>,
    rest: Option<Rest>,
    broken: Option<BrokenOff>,
    silence: Option<Pin<Box<Sleep>>>,
    silent: bool,
    /// The call is in flight until its answer has been passed on.
    in_flight: Option<InFlight>,
}

/// What is still to come of a provider's answer.
pub enum Rest {
    /// Over one of the gateway's own connections.
    Own(Remaining),
    /// By way of somebody else's client.
    Foreign(Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>),
}

impl Body for Rest {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::Own(body) => Pin::new(body).poll_frame(cx),
            Self::Foreign(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Foreign(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Foreign(body) => body.size_hint(),
        }
    }
}

impl std::fmt::Debug for Rest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rest").finish_non_exhaustive()
    }
}

/// Why a provider's answer ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BrokenOff {
    /// The connection to the provider ended.
    #[error("the provider's answer broke off")]
    Upstream(#[source] BoxError),
    /// Nothing came for a long time.
    #[error("the provider's answer stopped coming")]
    Silent,
}

impl GatewayBody {
    pub(crate) fn new(rest: Rest) -> Self {
        Self {
            begun: VecDeque::new(),
            rest: Some(rest),
            broken: None,
            silence: None,
            silent: false,
            in_flight: None,
        }
    }

    pub(crate) fn keep(&mut self, in_flight: InFlight) {
        self.in_flight = Some(in_flight);
    }

    /// A body of ours.
    pub(crate) fn whole(body: Bytes) -> Self {
        Self {
            begun: [body].into_iter().filter(|body| !body.is_empty()).collect(),
            rest: None,
            broken: None,
            silence: None,
            silent: false,
            in_flight: None,
        }
    }

    /// Reads ahead as far as judging an answer needs.
    pub(crate) async fn read_ahead(&mut self) -> Option<Bytes> {
        const READ_MAX: usize = 64 * 1024;
        const READ_FOR: Duration = Duration::from_secs(2);
        self.read_whole(READ_MAX, READ_FOR).await
    }

    /// Reads up to a limit in bytes and time. Returns the body where it is whole by then; either way nothing is lost.
    pub(crate) async fn read_whole(&mut self, read_max: usize, read_for: Duration) -> Option<Bytes> {
        let until = Instant::now() + read_for;
        let mut length = self.begun.iter().map(Bytes::len).sum::<usize>();
        while let Some(rest) = &mut self.rest {
            if length > read_max || rest.size_hint().lower() > read_max as u64 {
                return None;
            }
            match timeout_at(until, rest.frame()).await {
                Err(_) => return None,
                Ok(None) => self.rest = None,
                Ok(Some(Err(error))) => {
                    self.rest = None;
                    self.broken = Some(BrokenOff::Upstream(error));
                    return None;
                }
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        length += data.len();
                        self.begun.push_back(data);
                    }
                }
            }
        }
        if self.broken.is_some() || length > read_max {
            return None;
        }
        Some(match &self.begun {
            begun if begun.len() == 1 => begun[0].clone(),
            begun => {
                let mut whole = BytesMut::with_capacity(length);
                for data in begun {
                    whole.extend_from_slice(data);
                }
                whole.freeze()
            }
        })
    }

    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let silence = self
            .silence
            .get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + SILENCE_MAX)));
        if !self.silent {
            self.silent = true;
            silence.as_mut().reset(Instant::now() + SILENCE_MAX);
        }
        silence.as_mut().poll(cx)
    }
}

impl Body for GatewayBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let this = &mut *self;
        if let Some(data) = this.begun.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(broken) = this.broken.take() {
            return Poll::Ready(Some(Err(broken)));
        }
        while let Some(rest) = &mut this.rest {
            let frame = match Pin::new(rest).poll_frame(cx) {
                Poll::Pending if this.poll_silence(cx).is_ready() => {
                    this.rest = None;
                    return Poll::Ready(Some(Err(BrokenOff::Silent)));
                }
                Poll::Pending => return Poll::Pending,
                Poll::Ready(frame) => frame,
            };
            this.silent = false;
            match frame {
                None => this.rest = None,
                Some(Err(error)) => {
                    this.rest = None;
                    return Poll::Ready(Some(Err(BrokenOff::Upstream(error))));
                }
                // Trailers concern one connection only; they end here.
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.begun.is_empty() && self.broken.is_none() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let begun = self.begun.iter().map(|data| data.len() as u64).sum::<u64>();
        let rest = self
            .rest
            .as_ref()
            .map_or(SizeHint::with_exact(0), Body::size_hint);
        let mut hint = SizeHint::new();
        hint.set_lower(begun + rest.lower());
        if let Some(upper) = rest.upper()
            && self.broken.is_none()
        {
            hint.set_upper(begun + upper);
        }
        hint
    }
}

impl std::fmt::Debug for GatewayBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GatewayBody").finish_non_exhaustive()
    }
}
