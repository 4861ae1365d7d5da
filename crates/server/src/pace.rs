//! A call's body must come at a pace: who sends a byte now and then holds a connection, a call and a place in the provider's
//! queue for as long as he likes.
//!
//! Only the time counts that is spent waiting for the caller. Whoever is slow because the provider reads slowly has sent on
//! meanwhile, and has time to spare.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

/// What gives a second back. The slowest line that anybody works with brings a hundred times as much.
const BYTES_PER_SECOND: u32 = 100;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A caller's body that breaks off when it keeps us waiting for too long in all.
pub(crate) struct Paced<B> {
    body: B,
    /// What is left of the patience.
    left: Duration,
    patience: Duration,
    waiting_since: Option<Instant>,
    end: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug, thiserror::Error)]
#[error("the body came too slowly")]
struct TooSlow;

impl<B> Paced<B> {
    pub(crate) fn new(body: B, patience: Duration) -> Self {
        Self {
            body,
            left: patience,
            patience,
            waiting_since: None,
            end: None,
        }
    }
}

impl<B> Body for Paced<B>
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
        let this = &mut *self;
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(since) = this.waiting_since.take() {
                    let bytes = frame.data_ref().map_or(0, Bytes::len);
                    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
                    let earned = Duration::from_secs(1) * bytes / BYTES_PER_SECOND;
                    this.left = (this.left.saturating_sub(since.elapsed()) + earned).min(this.patience);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(ended) => Poll::Ready(ended.map(|frame| frame.map_err(Into::into))),
            Poll::Pending => {
                let left = this.left;
                let since = *this.waiting_since.get_or_insert_with(Instant::now);
                let until = since + left;
                let end = this.end.get_or_insert_with(|| Box::pin(sleep_until(until)));
                if end.deadline() != until {
                    end.as_mut().reset(until);
                }
                match end.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(Some(Err(TooSlow.into()))),
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, StreamBody};
    use tokio::sync::mpsc;
    use tokio::time::sleep;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// Sends this many bytes after each pause. Says how much came, and after how long it broke off.
    async fn sent(pieces: &'static [(u64, usize)]) -> (usize, Option<Duration>) {
        let (feed, mut food) = mpsc::unbounded_channel();
        let stream = futures_util::stream::poll_fn(move |cx| food.poll_recv(cx));
        let mut body = Paced::new(StreamBody::new(stream), PATIENCE);
        tokio::spawn(async move {
            for &(pause_s, length) in pieces {
                sleep(Duration::from_secs(pause_s)).await;
                let frame = Frame::data(Bytes::from(vec![b'x'; length]));
                if feed.send(Ok::<_, BoxError>(frame)).is_err() {
                    break;
                }
            }
        });
        let began = Instant::now();
        let mut came = 0;
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => came += frame.into_data().unwrap().len(),
                Err(_) => return (came, Some(began.elapsed())),
            }
        }
        (came, None)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_ends_with_the_patience() {
        assert_eq!(sent(&[(40, 1)]).await, (0, Some(PATIENCE)));
        let (came, after) = sent(&[(29, 1), (29, 1), (29, 1)]).await;
        assert_eq!(came, 1);
        assert!(after.unwrap() < PATIENCE + Duration::from_secs(1), "{after:?}");
        let (came, after) = sent(&[(5, 10); 100]).await;
        assert_eq!(came, 60, "10 bytes give back a tenth of a second");
        assert!(after.unwrap() < Duration::from_secs(32), "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_moves_may_take_as_long_as_it_likes() {
        assert_eq!(sent(&[(5, 600); 1000]).await, (600_000, None));
        assert_eq!(sent(&[(29, 100_000), (29, 100_000)]).await, (200_000, None));
    }
}
