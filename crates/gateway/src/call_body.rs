//! The body of a call: streamed on as it comes, and kept meanwhile up to a limit, so that the call can be sent again.
//!
//! A repeat may come before the first sending has read everything: a 401 is often answered to the head alone. So both read
//! from one [`Source`]: what is kept first, then what is still to come.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use crate::record::RefusalKind;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The caller did not send all of it.
pub(crate) const BROKEN_OFF: RefusalKind = RefusalKind::BadRequest {
    what: "the call's body broke off",
};

/// The body of a call. Each sending gets an [`Outgoing`] of it.
pub(crate) struct CallBody {
    /// `None`: there is no body.
    source: Option<Arc<Mutex<Source>>>,
    length: Option<u64>,
}

/// How a call's body came to an end before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is over the limit.
    TooLarge,
    /// The caller stopped sending it.
    Broken,
}

struct Source {
    /// What the caller still sends.
    rest: Box<dyn Body<Data = Bytes, Error = BoxError> + Send + Unpin>,
    ended: bool,
    /// What was read of it so far; `None` once that is over what may be kept.
    kept: Option<Vec<u8>>,
    kept_max: usize,
    passed: u64,
    body_max: Option<u64>,
    /// Which sending may read. An earlier one that is still under way is over.
    sending: u32,
    /// Whom the caller's next bytes wake.
    waiting: Option<Waker>,
    /// When the last bytes were handed on.
    moved_at: Instant,
    fault: Option<Fault>,
}

impl CallBody {
    /// `body_max` is judged here where the length is known, and while the body passes where it is not.
    pub(crate) fn new<B>(body: B, kept_max: usize, body_max: Option<u64>) -> Result<Self, RefusalKind>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let length = body.size_hint().exact();
        if body.is_end_stream() || length == Some(0) {
            return Ok(Self {
                source: None,
                length: Some(0),
            });
        }
        if let Some(limit) = body_max
            && body.size_hint().lower() > limit
        {
            return Err(RefusalKind::BodyTooLarge { limit });
        }
        // A body that will not fit is not kept for a while either.
        let kept = match length.map(usize::try_from) {
            Some(Ok(length)) if length <= kept_max => Some(Vec::with_capacity(length)),
            Some(_) => None,
            None => Some(Vec::new()),
        };
        let source = Source {
            rest: Box::new(Bodied(body)),
            ended: false,
            kept,
            kept_max,
            passed: 0,
            body_max,
            sending: 0,
            waiting: None,
            moved_at: Instant::now(),
            fault: None,
        };
        Ok(Self {
            source: Some(Arc::new(Mutex::new(source))),
            length,
        })
    }

    /// Its length, where that is known beforehand.
    pub(crate) fn length(&self) -> Option<u64> {
        self.length
    }

    /// Whether another sending would send the same bytes.
    pub(crate) fn can_be_sent_again(&self) -> bool {
        self.source.as_ref().is_none_or(|source| {
            let source = source.lock();
            source.fault.is_none() && (source.kept.is_some() || source.passed == 0)
        })
    }

    /// Reads it to its end. `None` where it is larger than what is kept; it can still be sent then. `silence_max` is how long
    /// the caller may send nothing.
    pub(crate) async fn whole(&self, silence_max: Duration) -> Result<Option<Bytes>, RefusalKind> {
        if self.source.is_none() {
            return Ok(Some(Bytes::new()));
        }
        if !self.is_kept() {
            return Ok(None);
        }
        let mut reading = self.send();
        loop {
            match timeout(silence_max, reading.frame()).await {
                Ok(None) => return Ok(self.kept()),
                Ok(Some(Ok(_))) if self.is_kept() => {}
                Ok(Some(Ok(_))) => return Ok(None),
                Ok(Some(Err(_))) if self.fault() == Some(Fault::TooLarge) => {
                    let limit = self.source.as_ref().and_then(|source| source.lock().body_max);
                    return Err(RefusalKind::BodyTooLarge {
                        limit: limit.unwrap_or_default(),
                    });
                }
                Ok(Some(Err(_))) | Err(_) => return Err(BROKEN_OFF),
            }
        }
    }

    /// The whole of it, where it was read to its end and kept.
    pub(crate) fn kept(&self) -> Option<Bytes> {
        let Some(source) = &self.source else {
            return Some(Bytes::new());
        };
        source.lock().whole(self.length)
    }

    fn is_kept(&self) -> bool {
        self.source
            .as_ref()
            .is_none_or(|source| source.lock().kept.is_some())
    }

    /// The body for the next sending, from its beginning. The sending before is over.
    pub(crate) fn send(&self) -> Outgoing {
        let sending = self.source.as_ref().map_or(0, |source| {
            let mut source = source.lock();
            source.sending += 1;
            source.moved_at = Instant::now();
            if let Some(waiting) = source.waiting.take() {
                // It learns that it is over, and lets go of its connection.
                waiting.wake();
            }
            source.sending
        });
        Outgoing {
            source: self.source.clone(),
            sending,
            position: 0,
            length: self.length,
        }
    }

    /// How the body broke off, if it did.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.source.as_ref().and_then(|source| source.lock().fault)
    }

    /// When its last bytes were handed on.
    pub(crate) fn moved_at(&self) -> Option<Instant> {
        self.source.as_ref().map(|source| source.lock().moved_at)
    }

    /// Whether more of it is expected from the caller.
    pub(crate) fn waits_for_the_caller(&self) -> bool {
        self.source
            .as_ref()
            .is_some_and(|source| source.lock().waiting.is_some())
    }
}

/// The body of one sending: the caller's bytes, as they come.
pub struct Outgoing {
    source: Option<Arc<Mutex<Source>>>,
    sending: u32,
    position: usize,
    length: Option<u64>,
}

/// Why a sending's body ends before its end.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the call is being sent again")]
    Superseded,
    #[error("the body is over the limit")]
    TooLarge,
}

impl Outgoing {
    /// How much of what is kept is handed on at once.
    const PIECE: usize = 64 * 1024;

    /// All of it, where it is no longer than this, has come already and is kept. It can be read from its beginning all the same.
    pub(crate) fn at_hand(&self, length_max: u64) -> Option<Bytes> {
        let Some(source) = &self.source else {
            return Some(Bytes::new());
        };
        let length = self.length.filter(|length| *length <= length_max)?;
        let mut source = source.lock();
        if source.sending != self.sending || source.kept.is_none() {
            return None;
        }
        // Nobody waits here: what is still to come is for whoever reads it then.
        let mut nobody = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(Ok(_))) = source.poll_more(&mut nobody) {}
        source
            .whole(self.length)
            .filter(|whole| whole.len() as u64 == length)
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let Some(source) = &this.source else {
            return Poll::Ready(None);
        };
        let mut source = source.lock();
        if source.sending != this.sending {
            return Poll::Ready(Some(Err(Ended::Superseded.into())));
        }
        if let Some(kept) = &source.kept
            && this.position < kept.len()
        {
            let until = kept.len().min(this.position + Self::PIECE);
            let piece = Bytes::copy_from_slice(&kept[this.position..until]);
            this.position = until;
            source.moved_at = Instant::now();
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match source.poll_more(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error))),
            Poll::Ready(Some(Ok(data))) => {
                this.position += data.len();
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.length {
            Some(length) => SizeHint::with_exact(length.saturating_sub(self.position as u64)),
            None => SizeHint::default(),
        }
    }
}

impl Source {
    /// The whole of it, where it was read to its end and kept. Who knows how long it is does not ask for more than that, so its end
    /// need not have been seen.
    fn whole(&self, length: Option<u64>) -> Option<Bytes> {
        let is_whole = self.ended || length == Some(self.passed);
        let kept = self.kept.as_ref().filter(|_| is_whole && self.fault.is_none())?;
        Some(Bytes::copy_from_slice(kept))
    }

    /// The next bytes of the caller. Trailers concern one connection only; they end here.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BoxError>>> {
        while !self.ended {
            let frame = match Pin::new(&mut self.rest).poll_frame(cx) {
                Poll::Pending => {
                    self.waiting = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Poll::Ready(frame) => frame,
            };
            self.waiting = None;
            let data = match frame {
                None => {
                    self.ended = true;
                    break;
                }
                Some(Err(error)) => {
                    self.ended = true;
                    self.fault = Some(Fault::Broken);
                    return Poll::Ready(Some(Err(error)));
                }
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            };
            if data.is_empty() {
                continue;
            }
            self.passed += data.len() as u64;
            self.moved_at = Instant::now();
            if self.body_max.is_some_and(|limit| self.passed > limit) {
                self.ended = true;
                self.fault = Some(Fault::TooLarge);
                return Poll::Ready(Some(Err(Ended::TooLarge.into())));
            }
            if let Some(kept) = &mut self.kept {
                if kept.len() + data.len() <= self.kept_max {
                    kept.extend_from_slice(&data);
                } else {
                    self.kept = None;
                }
            }
            return Poll::Ready(Some(Ok(data)));
        }
        Poll::Ready(None)
    }
}

/// A caller's body with its error made one of ours.
struct Bodied<B>(B);

impl<B> Body for Bodied<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.0)
            .poll_frame(cx)
            .map(|frame| frame.map(|frame| frame.map_err(Into::into)))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full, StreamBody};
    use tokio::sync::mpsc;

    use super::*;

    /// A body that comes as it is fed.
    fn fed() -> (
        mpsc::UnboundedSender<Result<Frame<Bytes>, BoxError>>,
        impl Body<Data = Bytes, Error = BoxError> + Send + Unpin + 'static,
    ) {
        let (feed, mut food) = mpsc::unbounded_channel();
        let stream = futures_util::stream::poll_fn(move |cx| food.poll_recv(cx));
        (feed, StreamBody::new(stream))
    }

    /// A body that says how long it is.
    struct OfLength<B>(B, u64);

    impl<B: Body + Unpin> Body for OfLength<B> {
        type Data = B::Data;
        type Error = B::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
            Pin::new(&mut self.0).poll_frame(cx)
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.1)
        }
    }

    fn data(text: &'static [u8]) -> Frame<Bytes> {
        Frame::data(Bytes::from_static(text))
    }

    async fn all(body: Outgoing) -> Vec<u8> {
        body.collect().await.unwrap().to_bytes().to_vec()
    }

    #[tokio::test]
    async fn a_repeat_sends_the_same_bytes() {
        for length in [0, 1, 1000, 1024 * 1024] {
            let bytes: Vec<u8> = (0..length)
                .map(|at: usize| u8::try_from(at % 251).unwrap())
                .collect();
            let body = CallBody::new(Full::new(Bytes::from(bytes.clone())), length, None).unwrap();
            assert_eq!(body.length(), Some(length as u64));
            for _ in 0..3 {
                assert!(body.can_be_sent_again());
                assert_eq!(all(body.send()).await, bytes);
            }
        }
    }

    #[tokio::test]
    async fn a_repeat_takes_over_in_the_middle_and_the_first_sending_is_over() {
        let (feed, stream) = fed();
        let body = CallBody::new(stream, 100, None).unwrap();
        let mut first = body.send();
        feed.send(Ok(data(b"one "))).unwrap();
        assert_eq!(first.frame().await.unwrap().unwrap().into_data().unwrap(), "one ");
        let waiting = tokio::spawn(async move { first.frame().await.unwrap().is_err() });
        while !body.waits_for_the_caller() {
            tokio::task::yield_now().await;
        }
        let second = body.send();
        assert!(waiting.await.unwrap(), "the first sending goes on");
        feed.send(Ok(data(b"two "))).unwrap();
        feed.send(Ok(data(b"three"))).unwrap();
        drop(feed);
        assert_eq!(all(second).await, b"one two three");
        assert_eq!(all(body.send()).await, b"one two three");
    }

    #[tokio::test]
    async fn what_has_come_is_at_hand_and_can_be_read_all_the_same() {
        let bytes = Bytes::from_static(b"12345");
        let body = CallBody::new(Full::new(bytes.clone()), 5, None).unwrap();
        for _ in 0..2 {
            let sending = body.send();
            assert_eq!(sending.at_hand(4), None, "it is too long");
            assert_eq!(sending.at_hand(5).as_ref(), Some(&bytes));
            assert_eq!(all(sending).await, bytes);
        }
        let first = body.send();
        let _second = body.send();
        assert_eq!(first.at_hand(5), None, "it is over");
        let not_kept = CallBody::new(Full::new(bytes.clone()), 4, None).unwrap();
        let sending = not_kept.send();
        assert_eq!(sending.at_hand(5), None);
        assert_eq!(all(sending).await, bytes);
        let none = CallBody::new(Full::new(Bytes::new()), 0, None).unwrap();
        assert_eq!(none.send().at_hand(0), Some(Bytes::new()));
    }

    #[tokio::test]
    async fn what_is_still_to_come_is_not_at_hand_and_not_lost() {
        let (feed, stream) = fed();
        let stream = OfLength(stream, 7);
        let body = CallBody::new(stream, 100, None).unwrap();
        feed.send(Ok(data(b"one "))).unwrap();
        let sending = body.send();
        assert_eq!(sending.at_hand(100), None);
        feed.send(Ok(data(b"two"))).unwrap();
        drop(feed);
        assert_eq!(all(sending).await, b"one two");
    }

    #[tokio::test]
    async fn what_is_over_the_limit_for_keeping_is_sent_once() {
        let (feed, stream) = fed();
        let body = CallBody::new(stream, 5, None).unwrap();
        feed.send(Ok(data(b"12345"))).unwrap();
        let mut sending = body.send();
        sending.frame().await.unwrap().unwrap();
        assert!(body.can_be_sent_again());
        feed.send(Ok(data(b"6"))).unwrap();
        sending.frame().await.unwrap().unwrap();
        assert!(!body.can_be_sent_again());
        let known = CallBody::new(Full::new(Bytes::from_static(b"123456")), 5, None).unwrap();
        assert!(known.can_be_sent_again(), "nothing of it was read yet");
        assert_eq!(all(known.send()).await, b"123456");
        assert!(!known.can_be_sent_again());
    }

    #[tokio::test]
    async fn a_body_of_known_length_is_whole_once_so_much_was_sent() {
        let (feed, stream) = fed();
        let announced = http_body_util::Limited::new(stream, 100);
        let unknown = CallBody::new(announced, 100, None).unwrap();
        feed.send(Ok(data(b"12345"))).unwrap();
        unknown.send().frame().await.unwrap().unwrap();
        assert_eq!(unknown.kept(), None, "there may be more");
        let known = CallBody::new(Full::new(Bytes::from_static(b"12345")), 100, None).unwrap();
        assert_eq!(known.kept(), None, "nothing of it was read yet");
        known.send().frame().await.unwrap().unwrap();
        assert_eq!(known.kept(), Some(Bytes::from_static(b"12345")));
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_at_once_or_broken_off() {
        let known = CallBody::new(Full::new(Bytes::from_static(b"123456")), 5, Some(5));
        assert!(matches!(known, Err(RefusalKind::BodyTooLarge { limit: 5 })));
        let (feed, stream) = fed();
        let body = CallBody::new(stream, 5, Some(5)).unwrap();
        feed.send(Ok(data(b"12345"))).unwrap();
        feed.send(Ok(data(b"6"))).unwrap();
        let mut sending = body.send();
        sending.frame().await.unwrap().unwrap();
        assert!(sending.frame().await.unwrap().is_err());
        assert_eq!(body.fault(), Some(Fault::TooLarge));
        assert!(!body.can_be_sent_again());
    }

    #[tokio::test]
    async fn a_caller_that_breaks_off_is_told_apart() {
        let (feed, stream) = fed();
        let body = CallBody::new(stream, 5, None).unwrap();
        feed.send(Err("gone".into())).unwrap();
        assert!(body.send().frame().await.unwrap().is_err());
        assert_eq!(body.fault(), Some(Fault::Broken));
    }
}
