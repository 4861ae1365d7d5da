//! One connection of HTTP/1.1: plain requests by the short way, the others by hyper, each as it comes.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::CONNECTION;
use http::request::Parts;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::draining::Draining;
use crate::guest::Guest;
use crate::own_words::OwnWords;
use crate::patience::Patience;
use crate::short::{Begun, Short};

/// What is read of headers before hyper itself refuses; the service refuses less, with a problem document. As much is held of an
/// answer whose client is slow.
pub(crate) const HEADERS_READ_MAX: usize = 128 * 1024;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Serves a connection to its end.
///
/// # Errors
///
/// When it ended in the middle of something.
pub(crate) async fn serve<S, B, P, O>(
    stream: S,
    guest: &Arc<Guest>,
    mut draining: Draining,
    header_timeout: Duration,
    plain: impl Fn(Box<Parts>, Full<Bytes>) -> P,
    odd: impl Fn(Request<Incoming>) -> O,
) -> Result<(), BoxError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    B: Body<Data = Bytes, Error: Into<BoxError> + Unpin> + Unpin + 'static,
    P: Future<Output = Box<Response<B>>>,
    O: Future<Output = Box<Response<B>>>,
{
    let patience = Patience::with(guest.clone());
    let mut short = Short::new(stream, guest.clone(), patience.clone(), header_timeout);
    while let Some(left) = short.serve(&mut draining, &plain).await? {
        patience.hand_over(left.until);
        let closes = poll_fn(|cx| Poll::Ready(draining.is_said(cx))).await;
        let ready = Mutex::new(left.answer);
        let answer = service_fn(|request: Request<Incoming>| {
            let answering = match ready.lock().take() {
                Some(ready) => Err((ready, request.into_body())),
                None => Ok(odd(request)),
            };
            async move {
                let mut response = match answering {
                    Ok(answering) => (*answering.await).map(Begun::not_yet),
                    // Its request has been read before, and is short.
                    Err((ready, again)) => {
                        let _ = again.collect().await;
                        ready
                    }
                };
                if closes {
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(CONNECTION, close);
                }
                Ok::<_, Infallible>(response)
            }
        });
        let io = OwnWords::new(TokioIo::new(short.replay(left.read)), guest.clone());
        let mut connection = by_hyper(patience.clone(), header_timeout).serve_connection(io, answer);
        let mut hyper = Hyper::default();
        let ended = poll_fn(|cx| {
            let take_no_more = http1::Connection::graceful_shutdown;
            match hyper.poll(&mut draining, Pin::new(&mut connection), take_no_more, cx) {
                Poll::Ready(ended) => Poll::Ready(Some(ended)),
                // Told to take no more, it ends by itself.
                Poll::Pending if hyper.is_told => Poll::Pending,
                Poll::Pending if guest.is_quiet() && patience.waits_for_another() => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        if let Some(ended) = ended {
            return Ok(ended?);
        }
        let parts = connection.into_parts();
        let mut read = BytesMut::from(parts.read_buf);
        read.extend_from_slice(&parts.io.into_inner().into_inner().left());
        short.take_back(read);
    }
    Ok(())
}

fn by_hyper(timer: Patience, header_timeout: Duration) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(timer)
        // Their number is left to hyper, which takes 100: with a number of our own it makes two tables of that size for each request.
        .header_read_timeout(header_timeout)
        .max_buf_size(HEADERS_READ_MAX);
    builder
}

/// A connection in hyper's hands, which lets it take no more requests once that is said.
#[derive(Default)]
pub(crate) struct Hyper {
    is_told: bool,
    has_begun: bool,
}

impl Hyper {
    pub(crate) fn poll<C: Future>(
        &mut self,
        draining: &mut Draining,
        mut connection: Pin<&mut C>,
        take_no_more: impl Fn(Pin<&mut C>),
        cx: &mut Context<'_>,
    ) -> Poll<C::Output> {
        if !self.is_told && draining.is_said(cx) {
            // What it was handed to begin with is a request that came before; told before it has read that, it would end at once.
            if !self.has_begun {
                let ended = connection.as_mut().poll(cx);
                if ended.is_ready() {
                    return ended;
                }
            }
            self.is_told = true;
            take_no_more(connection.as_mut());
        }
        self.has_begun = true;
        connection.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http_body_util::Channel;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::sync::{Notify, watch};
    use tokio::task::{JoinHandle, yield_now};
    use tokio::time::Instant;

    use super::*;
    use crate::answer::AnswerBody;
    use crate::guest::{Strangers, Turn};

    const HEADERS: Duration = Duration::from_secs(15);
    const NEARLY: Duration = Duration::from_secs(14);

    type Answering = Box<Response<AnswerBody>>;

    /// A connection, and how many requests went which way. Each answer is the path; `/long` comes in two pieces, the second when told.
    struct Table {
        client: DuplexStream,
        counts: Arc<[AtomicUsize; 2]>,
        goes_on: Arc<Notify>,
        says: watch::Sender<()>,
        served: JoinHandle<Result<(), BoxError>>,
    }

    fn answer(path: &str, turn: Turn, goes_on: &Arc<Notify>) -> Answering {
        let body = if path == "/long" {
            let (mut feed, body) = Channel::new(1);
            let goes_on = goes_on.clone();
            tokio::spawn(async move {
                feed.send_data(Bytes::from_static(b"begun")).await.ok()?;
                goes_on.notified().await;
                feed.send_data(Bytes::from_static(b"ended")).await.ok()
            });
            body.boxed_unsync()
        } else {
            let body = Full::from(path.to_owned());
            body.map_err(|never| match never {}).boxed_unsync()
        };
        let mut response = Response::new(AnswerBody::routed(axum::body::Body::new(body)));
        response.body_mut().keep_turn(turn);
        Box::new(response)
    }

    impl Table {
        fn lay() -> Self {
            let (client, ours) = duplex(64 * 1024);
            let guest = Arc::new(Strangers::default()).welcome(false).guest.clone();
            let (says, hears) = watch::channel(());
            let (counts, goes_on) = (Arc::<[AtomicUsize; 2]>::default(), Arc::<Notify>::default());
            let served = tokio::spawn({
                let (guest, counts, goes_on) = (guest.clone(), counts.clone(), goes_on.clone());
                async move {
                    let plain = |head: Box<Parts>, _: Full<Bytes>| {
                        counts[0].fetch_add(1, Ordering::Relaxed);
                        ready(answer(head.uri.path(), guest.turn(), &goes_on))
                    };
                    let odd = |request: Request<Incoming>| {
                        counts[1].fetch_add(1, Ordering::Relaxed);
                        let (turn, goes_on) = (guest.turn(), goes_on.clone());
                        async move {
                            let path = request.uri().path().to_owned();
                            request.into_body().collect().await.expect("it is whole");
                            answer(&path, turn, &goes_on)
                        }
                    };
                    serve(ours, &guest, Draining::heard_by(hears), HEADERS, plain, odd).await
                }
            });
            Self {
                client,
                counts,
                goes_on,
                says,
                served,
            }
        }

        async fn say(&mut self, bytes: &str) {
            self.client.write_all(bytes.as_bytes()).await.unwrap();
        }

        /// Reads until this has come.
        async fn heard(&mut self, end: &str) -> String {
            let mut heard = Vec::new();
            while !String::from_utf8_lossy(&heard).ends_with(end) {
                assert_ne!(self.client.read_buf(&mut heard).await.unwrap(), 0, "{end}");
            }
            String::from_utf8(heard).unwrap()
        }

        /// What comes until the end.
        async fn rest(&mut self) -> String {
            let mut rest = String::new();
            self.client.read_to_string(&mut rest).await.unwrap();
            rest
        }

        /// How many were plain, and how many odd.
        fn counts(&self) -> [usize; 2] {
            [0, 1].map(|way| self.counts[way].load(Ordering::Relaxed))
        }
    }

    fn plain(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
    }

    fn chunked(path: &str) -> String {
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n")
    }

    #[tokio::test]
    async fn the_connection_comes_back_once_hyper_has_answered() {
        let mut table = Table::lay();
        for (request, end, counts) in [
            (plain("/1"), "/1", [1, 0]),
            (chunked("/2"), "/2", [1, 1]),
            (plain("/3"), "/3", [2, 1]),
        ] {
            table.say(&request).await;
            table.heard(end).await;
            assert_eq!(table.counts(), counts);
        }
        // Also with half of the next request read by hyper already.
        table.say(&format!("{}GET /5 HT", chunked("/4"))).await;
        table.heard("/4").await;
        table.say("TP/1.1\r\nHost: x\r\n\r\n").await;
        table.heard("/5").await;
        assert_eq!(table.counts(), [3, 2]);
        // What came whole with the odd one is hyper's, and answered after it.
        table
            .say(&format!("{}{}{}", chunked("/6"), plain("/7"), plain("/8")))
            .await;
        let heard = table.heard("/8").await;
        assert!(
            heard.find("/6") < heard.find("/7") && heard.contains("/7"),
            "{heard}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_begins_when_the_answer_before_has_ended_whoever_wrote_it() {
        let mut table = Table::lay();
        for request in [plain("/1"), chunked("/2")] {
            table.say(&request[..request.len() - 2]).await;
            tokio::time::sleep(NEARLY).await;
            table.say("\r\n").await;
            table
                .heard(&request[..10][request.find('/').unwrap()..][..2])
                .await;
            tokio::time::sleep(NEARLY).await;
        }
        table.say(&plain("/3")).await;
        table.heard("/3").await;
    }

    #[tokio::test]
    async fn an_answer_in_pieces_is_written_by_hyper_as_they_come_and_asked_for_once() {
        let mut table = Table::lay();
        table.say(&format!("{}{}", plain("/long"), plain("/after"))).await;
        table.heard("\r\nbegun\r\n").await;
        table.goes_on.notify_one();
        let heard = table.heard("/after").await;
        assert!(
            heard.starts_with("5\r\nended\r\n0\r\n\r\nHTTP/1.1 200"),
            "{heard}"
        );
        assert_eq!(table.counts()[0], 1, "{:?}", table.counts());
        table.say(&plain("/more")).await;
        table.heard("/more").await;
        assert_eq!(table.counts().iter().sum::<usize>(), 3);
    }

    #[tokio::test]
    async fn a_drain_lets_an_answer_end_whoever_writes_it() {
        // Said while hyper writes.
        let mut table = Table::lay();
        table.say(&plain("/long")).await;
        table.heard("\r\nbegun\r\n").await;
        table.says.send_replace(());
        yield_now().await;
        table.goes_on.notify_one();
        assert_eq!(table.rest().await, "5\r\nended\r\n0\r\n\r\n");
        table.served.await.unwrap().unwrap();

        // Said before hyper was handed a request that had begun, or its answer.
        for request in [plain("/long"), chunked("/long")] {
            let mut table = Table::lay();
            let (begin, end) = request.split_at(5);
            table.say(begin).await;
            yield_now().await;
            table.says.send_replace(());
            yield_now().await;
            table.say(&format!("{end}{}", plain("/never"))).await;
            table.goes_on.notify_one();
            let heard = table.rest().await;
            assert!(heard.contains("\r\nconnection: close\r\n"), "{heard}");
            assert!(heard.ends_with("\r\nbegun\r\n5\r\nended\r\n0\r\n\r\n"), "{heard}");
            table.served.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn what_is_no_request_is_told_so_in_our_words_whatever_came_before() {
        for before in ["", "/1"] {
            let mut table = Table::lay();
            if !before.is_empty() {
                table.say(&plain(before)).await;
                table.heard(before).await;
            }
            table.say("GET  / HTTP/1.1\r\nHost: x\r\n\r\n").await;
            let heard = table.rest().await;
            assert!(heard.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{heard}");
            assert!(heard.contains("\r\nevergrant-error: bad_request\r\n"), "{heard}");
            assert!(table.served.await.unwrap().is_err());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_its_time_once_whoever_reads_it() {
        let mut table = Table::lay();
        table.say(&chunked("/1")).await;
        table.heard("/1").await;
        let begun = Instant::now();
        // Byte by byte it is handed to hyper on the way.
        for byte in "GET / HTTP/1.1".chars() {
            table.say(&byte.to_string()).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(table.rest().await, "");
        assert_eq!(begun.elapsed(), HEADERS);
        assert!(table.served.await.unwrap().is_err());
    }
}
