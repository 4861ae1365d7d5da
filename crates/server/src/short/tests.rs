use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt as _;
use http::{Request, Version};
use http_body_util::{BodyExt as _, Empty, StreamBody, combinators::BoxBody};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{DuplexStream, duplex};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::guest::{Stay, Strangers};

const HEADERS: Duration = Duration::from_secs(15);
/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(100);

/// What is made of a request: method, target, headers, body and what is left; or a word.
fn made_of(bytes: &str) -> String {
    let mut buffer = BytesMut::from(bytes);
    let mut headers = HeaderMap::new();
    match read::read(&mut buffer, &mut headers) {
        Read::Whole(plain) => {
            assert_eq!(
                [&plain.whole[..], &buffer[..]].concat(),
                bytes.as_bytes(),
                "it can be read again"
            );
            let request = Request::from_parts(*plain.head, ());
            let body = plain.body.collect().now_or_never().unwrap().unwrap();
            format!(
                "{} {} {} {} {}",
                request.method(),
                request.uri(),
                request.headers().len(),
                String::from_utf8_lossy(&body.to_bytes()),
                String::from_utf8_lossy(&buffer)
            )
        }
        Read::Partial => {
            assert_eq!(buffer, bytes);
            "partial".into()
        }
        Read::Odd => {
            assert_eq!(buffer, bytes, "hyper reads it from its beginning");
            assert!(headers.is_empty());
            "odd".into()
        }
    }
}

#[test]
fn what_can_be_read_in_one_way_is_read() {
    let check = |bytes: &str, expected: &str| assert_eq!(made_of(bytes), expected, "{bytes:?}");
    check("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "GET / 1  ");
    check(
        "GET /a?b=%20c HTTP/1.1\r\nhost: x\r\nx-many: 1\r\nX-Many: 2\r\nConnection: Keep-Alive\r\n\r\nGET /n",
        "GET /a?b=%20c 4  GET /n",
    );
    check("DELETE //a/../b HTTP/1.1\r\nHost:\r\n\r\n", "DELETE //a/../b 1  ");
    check("BREW /pot HTTP/1.1\r\nHost: x\r\n\r\n", "BREW /pot 1  ");
    check(
        "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nfineGET",
        "POST /a 2 fine GET",
    );
    check(
        "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        "POST /a 2  ",
    );
    for partial in [
        "",
        "G",
        "GET / HTTP/1.1\r\nHost: x\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\n\r",
    ] {
        check(partial, "partial");
    }
}

#[test]
fn anything_else_is_for_hyper() {
    let long = "x".repeat(read::BODY_MAX + 1);
    for odd in [
        // Not at its beginning, not of this version, not of this form.
        "\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        " GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "get / HTTP/1.1\r\nHost: x\r\n\r\n",
        "\x16\x03\x01",
        "GET / HTTP/1.0\r\nHost: x\r\n\r\n",
        "GET / HTTP/2.0\r\nHost: x\r\n\r\n",
        "GET /\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        "CONNECT /x HTTP/1.1\r\nHost: x\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        // Without a host, or with two.
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nhost: x\r\n\r\n",
        // More than a request and its answer.
        "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, x-hop\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nConnection:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
        // Framed otherwise, or in two ways.
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 1\r\n\r\nx",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 1\r\n\r\nx",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\nx",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\nx",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x1\r\n\r\nx",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\nx",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\nx",
        // Lines that end as they should not.
        "GET / HTTP/1.1\nHost: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\n\n",
        "GET / HTTP/1.1\r\nHost: x\nx: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\rx: a\r\n\r\n",
        // Not all there.
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nfin",
        // No HTTP.
        "GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nx: a\r\n b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nx: a\0b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\n: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nnothing\r\n\r\n",
        "GET /\u{7f} HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        assert_eq!(made_of(odd), "odd", "{odd:?}");
    }
    let length = long.len();
    let long = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{long}");
    assert_eq!(made_of(&long), "odd", "a long body");
    let many = "x-many: 1\r\n".repeat(64);
    assert_eq!(
        made_of(&format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n")),
        "odd"
    );
}

type Answering = BoxBody<Bytes, io::Error>;

fn whole(body: &'static str) -> Answering {
    Full::from(body).map_err(|never| match never {}).boxed()
}

/// The body comes in these pieces, each as soon as it is asked for; or not at all.
fn pieces(pieces: &'static [&'static str], ends: bool) -> Answering {
    let mut pieces = pieces.iter();
    let stream = futures_util::stream::poll_fn(move |_| match pieces.next() {
        Some(piece) => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(piece.as_bytes()))))),
        None if ends => Poll::Ready(None),
        None => Poll::Pending,
    });
    http_body_util::BodyExt::boxed(StreamBody::new(stream))
}

/// Says how long it is, and comes later.
struct Later(Answering, u64);

impl Body for Later {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let frame = Pin::new(&mut self.0).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            self.1 -= frame.data_ref().map_or(0, Bytes::len) as u64;
        }
        frame
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.1)
    }
}

fn response(status: u16, headers: &[(&'static str, &'static str)], body: Answering) -> Response<Answering> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body).unwrap()
}

/// What is left of a connection, and how its serving ended.
type Ended = (Short<DuplexStream>, io::Result<Option<Odd<Answering>>>);

/// A connection that is served, its client's end, and what becomes of it.
struct Table {
    client: DuplexStream,
    stay: Arc<Stay>,
    says: watch::Sender<()>,
    served: JoinHandle<Ended>,
    asked: Arc<AtomicUsize>,
}

impl Table {
    fn lay<F>(answer: impl Fn(Request<Full<Bytes>>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<Answering>> + Send + 'static,
    {
        Self::with_room(64 * 1024, answer)
    }

    fn with_room<F>(room: usize, answer: impl Fn(Request<Full<Bytes>>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<Answering>> + Send + 'static,
    {
        let (client, ours) = duplex(room);
        let stay = Arc::new(Strangers::default()).welcome(false);
        let guest = stay.guest.clone();
        let (says, hears) = watch::channel(());
        let asked = Arc::new(AtomicUsize::new(0));
        let served = tokio::spawn({
            let asked = asked.clone();
            async move {
                let mut draining = Draining::heard_by(hears);
                let mut short = Short::new(ours, guest.clone(), Patience::with(guest), HEADERS);
                let ended = short
                    .serve(&mut draining, |head, body| {
                        asked.fetch_add(1, Ordering::Relaxed);
                        answer(Request::from_parts(*head, body)).map(Box::new)
                    })
                    .await;
                (short, ended)
            }
        });
        Self {
            client,
            stay,
            says,
            served,
            asked,
        }
    }

    /// Reads until this many answers have come that end with this.
    async fn heard(&mut self, answers: usize, end: &str) -> String {
        let mut heard = String::new();
        let mut bytes = [0; 1024];
        while heard.matches(end).count() < answers {
            let read = self.client.read(&mut bytes).await.unwrap();
            assert_ne!(read, 0, "{heard}");
            heard.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
        }
        heard
    }

    async fn say(&mut self, bytes: &str) {
        self.client.write_all(bytes.as_bytes()).await.unwrap();
    }

    async fn ended(self) -> io::Result<Option<Odd<Answering>>> {
        let ended = timeout(PATIENCE, self.served).await;
        ended.expect("it ends").unwrap().1
    }
}

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

async fn fine(_: Request<Full<Bytes>>) -> Response<Answering> {
    response(200, &[], whole("fine"))
}

#[tokio::test]
async fn requests_are_answered_one_after_the_other_however_they_come() {
    let mut table = Table::lay(async |request| {
        let body = request.uri().path().to_owned();
        let body = Full::from(body).map_err(|never| match never {}).boxed();
        response(200, &[], body)
    });
    table.say(GET).await;
    table.heard(1, "\r\n\r\n/").await;
    // Two in one piece, and the beginning of a third, which then comes in two more.
    let get = |path| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    table
        .say(&format!("{}{}GET /thi", get("/first"), get("/second")))
        .await;
    let heard = table.heard(2, "HTTP/1.1 200 OK").await;
    let (first, second) = (heard.find("/first"), heard.find("/second"));
    assert!(first.is_some() && first < second, "{heard}");
    table.say("rd HTTP/1.1\r\nHos").await;
    tokio::task::yield_now().await;
    table.say("t: x\r\n\r\n").await;
    table.heard(1, "/third").await;
    table.client.shutdown().await.unwrap();
    assert!(table.ended().await.unwrap().is_none());
}

#[tokio::test]
async fn an_odd_request_is_left_as_it_came_with_all_that_came_after_it() {
    let odd = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nGET /more";
    let mut table = Table::lay(fine);
    table.say(&format!("{GET}{odd}")).await;
    table.heard(1, "fine").await;
    let asked = table.asked.clone();
    let left = table.ended().await.unwrap().unwrap();
    assert_eq!(left.read, odd);
    assert!(left.answer.is_none());
    assert_eq!(asked.load(Ordering::Relaxed), 1, "it was not answered");
}

#[tokio::test]
async fn a_head_that_comes_in_many_pieces_is_for_hyper_and_has_no_more_time_for_that() {
    let mut table = Table::lay(fine);
    let begun = Instant::now();
    for byte in "GET / HTTP".chars() {
        table.say(&byte.to_string()).await;
        tokio::task::yield_now().await;
    }
    let left = table.ended().await.unwrap().unwrap();
    assert!(left.read.len() >= PIECES_MAX);
    let until = left.until.unwrap();
    assert!(
        until <= begun + HEADERS + Duration::from_secs(5),
        "from its first byte on"
    );
}

#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_come_in_time_ends_the_connection() {
    for begun in ["", "GET / HT"] {
        let mut table = Table::lay(fine);
        table.say(GET).await;
        table.heard(1, "fine").await;
        table.say(begun).await;
        let since = Instant::now();
        let ended = table.ended().await.map(|_| ());
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(since.elapsed(), HEADERS);
    }
    // Whoever has shown a key is waited for longer.
    let mut table = Table::lay(fine);
    table.stay.is_known_now();
    table.say(GET).await;
    table.heard(1, "fine").await;
    let since = Instant::now();
    assert!(table.ended().await.is_err());
    assert_eq!(since.elapsed(), HEADERS + Duration::from_secs(60));
}

#[tokio::test]
async fn a_call_whose_caller_hangs_up_is_dropped() {
    struct Dropped(Arc<Notify>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let (begun, dropped) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let answer = {
        let (begun, dropped) = (begun.clone(), dropped.clone());
        move |_| {
            let (begun, dropped) = (begun.clone(), Dropped(dropped.clone()));
            async move {
                let _dropped = dropped;
                begun.notify_one();
                std::future::pending().await
            }
        }
    };
    let mut table = Table::lay(answer);
    table.say(GET).await;
    begun.notified().await;
    drop(table.client);
    let is_dropped = timeout(PATIENCE, dropped.notified()).await;
    assert!(is_dropped.is_ok(), "it goes on");
    assert!(table.served.await.unwrap().1.is_err());
}

#[tokio::test(start_paused = true)]
async fn who_takes_nothing_of_an_answer_is_not_waited_for_without_end() {
    let mut table = Table::with_room(64, fine);
    table.say(GET).await;
    let since = Instant::now();
    let served = timeout(PATIENCE, table.served).await;
    assert!(served.expect("it ends").unwrap().1.is_err());
    assert_eq!(since.elapsed(), HEADERS);
}

#[tokio::test]
async fn an_answer_that_is_taken_slowly_comes_whole() {
    let mut table = Table::with_room(7, async |_| {
        response(200, &[("date", "now")], whole("as long as it takes"))
    });
    table.client.write_all(GET.as_bytes()).await.unwrap();
    let heard = table.heard(1, "takes").await;
    assert_eq!(
        heard,
        "HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: 19\r\n\r\nas long as it takes"
    );
}

#[tokio::test]
async fn a_drain_ends_an_idle_connection_at_once_and_another_with_its_answer() {
    let table = Table::lay(fine);
    tokio::task::yield_now().await;
    table.says.send_replace(());
    assert!(table.ended().await.unwrap().is_none());

    let goes_on = Arc::new(Notify::new());
    let answer = {
        let goes_on = goes_on.clone();
        move |_| {
            let goes_on = goes_on.clone();
            async move {
                goes_on.notified().await;
                response(200, &[], whole("fine"))
            }
        }
    };
    let mut table = Table::lay(answer);
    table.say(GET).await;
    while table.asked.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    table.says.send_replace(());
    goes_on.notify_one();
    let heard = table.heard(1, "fine").await;
    assert!(heard.contains("\r\nconnection: close\r\n"), "{heard}");
    assert_eq!(table.client.read(&mut [0]).await.unwrap(), 0);
    assert!(table.ended().await.unwrap().is_none());

    // A request that had begun is read and answered; no other is.
    let mut table = Table::lay(fine);
    table.say("GET / HTTP/1.1\r\n").await;
    tokio::task::yield_now().await;
    table.says.send_replace(());
    tokio::task::yield_now().await;
    table.say("Host: x\r\n\r\n").await;
    table.say(GET).await;
    let heard = table.heard(1, "fine").await;
    assert!(heard.contains("\r\nconnection: close\r\n"), "{heard}");
    assert!(table.ended().await.unwrap().is_none());
}

#[tokio::test]
async fn an_answer_that_is_not_short_and_whole_is_left_to_hyper_with_its_request() {
    type Make = fn() -> Answering;
    let cases: [(&str, Make, Option<&str>); 7] = [
        ("of unknown length", || pieces(&["a", "b"], true), Some("ab")),
        (
            "in pieces",
            || Later(pieces(&["a", "b"], true), 2).boxed(),
            Some("ab"),
        ),
        ("not there yet", || Later(pieces(&[], false), 2).boxed(), None),
        ("too short", || Later(pieces(&["a"], true), 2).boxed(), Some("a")),
        ("without end", || pieces(&["a"], false), None),
        (
            "in an empty piece first",
            || Later(pieces(&["", "ab"], true), 2).boxed(),
            Some("ab"),
        ),
        (
            "long",
            || {
                let long = Full::from(vec![b'x'; write::BODY_MAX + 1]);
                long.map_err(|never| match never {}).boxed()
            },
            None,
        ),
    ];
    for (what, body, expected) in cases {
        let mut table = Table::lay(move |_| async move { response(200, &[], body()) });
        let post = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nxyGET";
        table.say(post).await;
        let left = table.ended().await.unwrap().unwrap();
        assert_eq!(left.read, post, "{what}");
        let body = left.answer.unwrap().into_body();
        if let Some(expected) = expected {
            let hint = body.size_hint();
            assert!(hint.exact().is_none_or(|length| length == 2), "{what}: {hint:?}");
            let body = body.collect().await.unwrap().to_bytes();
            assert_eq!(body, expected, "{what}: nothing of it is lost");
        }
    }
    for headers in [
        ("transfer-encoding", "chunked"),
        ("connection", "x-hop"),
        ("trailer", "x-sum"),
        ("content-length", "5"),
        ("content-length", "+4"),
    ] {
        let mut table = Table::lay(move |_| async move { response(200, &[headers], whole("fine")) });
        table.say(GET).await;
        let left = table.ended().await.unwrap().unwrap();
        assert!(left.answer.is_some(), "{headers:?}");
    }
    let mut table = Table::lay(async |_| {
        let mut response = response(200, &[], whole("fine"));
        *response.version_mut() = Version::HTTP_10;
        response
    });
    table.say(GET).await;
    assert!(table.ended().await.unwrap().unwrap().answer.is_some());
}

/// What hyper writes of an answer.
async fn by_hyper(request: &str, answer: impl Fn() -> Response<Answering> + Send + 'static) -> String {
    let (mut client, ours) = duplex(256 * 1024);
    let service = service_fn(move |_| std::future::ready(Ok::<_, Infallible>(answer())));
    client.write_all(request.as_bytes()).await.unwrap();
    client.shutdown().await.unwrap();
    let connection = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .serve_connection(TokioIo::new(ours), service);
    connection.await.unwrap();
    let mut heard = String::new();
    client.read_to_string(&mut heard).await.unwrap();
    heard
}

#[tokio::test]
async fn an_answer_is_written_to_the_byte_as_hyper_writes_it() {
    type Make = fn() -> Response<Answering>;
    let answers: [Make; 16] = [
        || response(200, &[("date", "d")], whole("fine")),
        || response(200, &[("date", "d"), ("content-length", "4")], whole("fine")),
        || {
            response(
                200,
                &[
                    ("content-length", "4"),
                    ("x-many", "1"),
                    ("date", "d"),
                    ("x-many", "2"),
                ],
                whole("fine"),
            )
        },
        || response(200, &[("date", "d")], whole("")),
        || response(200, &[("date", "d"), ("content-length", "0")], whole("")),
        || response(200, &[("date", "d")], Later(pieces(&[], true), 0).boxed()),
        || {
            response(
                201,
                &[("date", "d"), ("set-cookie", "a"), ("set-cookie", "b")],
                whole("fine"),
            )
        },
        || response(404, &[("date", "d")], whole("no")),
        || response(431, &[("date", "d")], whole("no")),
        || response(503, &[("date", "d"), ("date", "e")], whole("no")),
        || {
            response(
                204,
                &[("date", "d")],
                Empty::new().map_err(|never| match never {}).boxed(),
            )
        },
        || response(204, &[("date", "d"), ("content-length", "0")], whole("")),
        || response(304, &[("date", "d"), ("etag", "\"x\"")], whole("")),
        || response(304, &[("date", "d"), ("content-length", "9")], whole("")),
        || {
            response(
                200,
                &[("date", "d"), ("content-type", "text/\u{e9}")],
                whole("\u{e9}"),
            )
        },
        || response(200, &[("date", "d"), ("x-empty", "")], whole("fine")),
    ];
    let heads: [Make; 2] = [
        || response(200, &[("date", "d"), ("content-length", "9")], whole("")),
        || response(404, &[("date", "d")], whole("no")),
    ];
    for (method, makes) in [
        ("GET", &answers[..]),
        ("POST", &answers[..]),
        ("HEAD", &answers[..3]),
        ("HEAD", &heads[..]),
    ] {
        for make in makes {
            let request = format!("{method} / HTTP/1.1\r\nHost: x\r\n\r\n");
            let make = *make;
            let expected = by_hyper(&request, make).await;
            let mut table = Table::lay(move |_| async move { make() });
            table.say(&request).await;
            let mut heard = vec![0; expected.len()];
            let came = timeout(Duration::from_secs(20), table.client.read_exact(&mut heard)).await;
            assert!(came.is_ok(), "{expected}: {}", String::from_utf8_lossy(&heard));
            assert_eq!(String::from_utf8_lossy(&heard), expected);
            table.client.shutdown().await.unwrap();
            assert!(
                table.ended().await.unwrap().is_none(),
                "and nothing more: {expected}"
            );
        }
    }
}

#[tokio::test]
async fn an_answer_says_when_it_was_written() {
    let mut table = Table::lay(fine);
    table.say(GET).await;
    let heard = table.heard(1, "fine").await;
    let date = heard
        .lines()
        .find_map(|line| line.strip_prefix("date: "))
        .unwrap_or_else(|| panic!("{heard}"));
    let date = httpdate::parse_http_date(date).unwrap();
    assert!(date.elapsed().unwrap() < Duration::from_secs(60));
}

#[tokio::test]
async fn what_was_read_comes_first_and_what_is_left_can_be_had_back() {
    let (mut client, ours) = duplex(64);
    let guest: Arc<Guest> = Arc::default();
    let mut short = Short::new(ours, guest.clone(), Patience::with(guest), HEADERS);
    client.write_all(b" and then").await.unwrap();
    let mut replay = short.replay(BytesMut::from("first"));
    let mut bytes = [0; 3];
    replay.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"fir");
    let left = replay.left();
    assert_eq!(left, "st");
    let mut replay = short.replay(left);
    let mut bytes = [0; 11];
    replay.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"st and then");
    assert_eq!(replay.left(), "");
}
