//! What a caller is still sending when its call has been answered already.
//!
//! Closing a connection with bytes of its caller unread resets it, and many clients then report a broken connection and never read
//! the answer: a refusal would look like a write that was lost. So what is left of a body is read and thrown away first, within
//! bounds (RFC 9112 §9.6 has the same reason for closing in two steps).

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Version, header};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::timeout;

/// So much is thrown away. Whoever sends more has to live with a broken connection.
const READ_MAX: u64 = 64 * 1024 * 1024;
/// For so long.
const READ_FOR: Duration = Duration::from_secs(10);
/// Who has not sent anything for this long waits for the answer, and is given it.
const SILENCE_MAX: Duration = Duration::from_millis(500);

/// A body of which what is not read is left to [`Leftover`].
pub(crate) struct Watched<B> {
    /// `None` once it has ended.
    body: Option<B>,
    leftover: Option<Arc<Mutex<Option<B>>>>,
}

/// What nobody has read of a body.
pub(crate) struct Leftover<B>(Arc<Mutex<Option<B>>>);

/// Watches the body of a request, where anything can be left of it.
pub(crate) fn watch<B: Body>(request: Request<B>) -> (Request<Watched<B>>, Option<Leftover<B>>) {
    // Over HTTP/2 one call's end is no other's; and who asks before sending has not sent.
    let is_watched = request.version() < Version::HTTP_2
        && !request.body().is_end_stream()
        && !request.headers().contains_key(header::EXPECT);
    let leftover = is_watched.then(|| Arc::new(Mutex::new(None)));
    let watched = request.map(|body| Watched {
        body: Some(body),
        leftover: leftover.clone(),
    });
    (watched, leftover.map(Leftover))
}

impl<B> Drop for Watched<B> {
    fn drop(&mut self) {
        if let (Some(body), Some(leftover)) = (self.body.take(), &self.leftover) {
            *leftover.lock() = Some(body);
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Leftover<B> {
    /// Reads and throws away what is left, if the body is not being read by anybody any more.
    pub(crate) async fn throw_away(self) {
        let Some(mut body) = self.0.lock().take() else {
            return;
        };
        let reading = async {
            let mut read = 0;
            while read < READ_MAX
                && !body.is_end_stream()
                && let Ok(Some(Ok(frame))) =
                    timeout(SILENCE_MAX, poll_fn(|cx| Pin::new(&mut body).poll_frame(cx))).await
            {
                read += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
        };
        let _ = timeout(READ_FOR, reading).await;
    }
}

impl<B: Body + Unpin> Body for Watched<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let frame = Pin::new(body).poll_frame(cx);
        if let Poll::Ready(None | Some(Err(_))) = frame {
            self.body = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Channel};
    use tokio::time::Instant;

    use super::*;

    fn sending() -> (http_body_util::channel::Sender<Bytes>, Request<Channel<Bytes>>) {
        let (feed, body) = Channel::new(1);
        (feed, Request::new(body))
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_read_is_read_to_its_end() {
        let (mut feed, request) = sending();
        let (watched, leftover) = watch(request);
        let sender = tokio::spawn(async move {
            for _ in 0..100 {
                feed.send_data(Bytes::from_static(b"0123456789")).await.ok()?;
            }
            Some(())
        });
        let mut body = watched.into_body();
        body.frame().await.unwrap().unwrap();
        drop(body);
        leftover.unwrap().throw_away().await;
        assert_eq!(sender.await.unwrap(), Some(()), "its sender met a closed door");
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_nothing_or_without_end_is_not_waited_for() {
        let (_silent, request) = sending();
        let (watched, leftover) = watch(request);
        drop(watched);
        let began = Instant::now();
        leftover.unwrap().throw_away().await;
        assert_eq!(began.elapsed(), SILENCE_MAX);

        let (mut feed, request) = sending();
        let (watched, leftover) = watch(request);
        drop(watched);
        tokio::spawn(async move {
            while feed.send_data(Bytes::from_static(b"0123456789")).await.is_ok() {
                tokio::time::sleep(SILENCE_MAX / 2).await;
            }
        });
        let began = Instant::now();
        leftover.unwrap().throw_away().await;
        assert_eq!(began.elapsed(), READ_FOR);
    }

    #[tokio::test]
    async fn what_is_being_read_or_was_never_sent_is_left_alone() {
        let (_feed, request) = sending();
        let (watched, leftover) = watch(request);
        leftover.unwrap().throw_away().await;
        drop(watched);

        let (_feed, mut request) = sending();
        request
            .headers_mut()
            .insert(header::EXPECT, http::HeaderValue::from_static("100-continue"));
        assert!(watch(request).1.is_none());
    }
}
