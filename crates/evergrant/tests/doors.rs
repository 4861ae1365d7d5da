//! Programs that have an HTTP client of their own: the tower layer and the reqwest middleware, each claim for both.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop where it is"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use evergrant::{
    App, ConnectionId, Customer, Error, Evergrant, EvergrantLayer, EvergrantMiddleware, Outgoing,
    RequestExt as _, VaultKey,
};
use evergrant_domain::{AccessToken, AccountId, AppName, RefreshToken};
use evergrant_keeper::{Clock as _, Import, ImportTokens, SystemClock};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hubspot_sim::{Fault, FaultKind, SimApp, SimConfig, Simulator};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tower::{Layer as _, ServiceExt as _};
use url::Url;

const CONTACTS: &str = "crm/v3/objects/contacts";
const HUB: u64 = 1001;

/// Which client a program has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Tower,
    Reqwest,
}

const DOORS: [Door; 2] = [Door::Tower, Door::Reqwest];

/// An engine with one connection.
struct World {
    hubspot: Simulator,
    base: String,
    engine: Evergrant,
    id: ConnectionId,
    access_token: String,
    key: VaultKey,
    folder: tempfile::TempDir,
}

async fn engine(folder: &tempfile::TempDir, key: &VaultKey, base: &str) -> Evergrant {
    let app = SimApp::default();
    Evergrant::builder()
        .store(folder.path().join("evergrant.db").display().to_string())
        .vault_key(key.clone())
        .app(
            App::hubspot("crm")
                .client_id(app.client_id)
                .client_secret(app.client_secret)
                .hosted_at(&Url::parse(base).unwrap()),
        )
        .build()
        .await
        .unwrap()
}

/// An answer, read whole.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl World {
    /// With the simulator as its API.
    async fn new() -> Self {
        Self::at(None).await
    }

    /// With another API; the grant still comes from the simulator.
    async fn at(base: Option<&str>) -> Self {
        let hubspot = Simulator::start(SimConfig::default()).await.unwrap();
        let base = base.map_or_else(|| hubspot.base_url(), str::to_owned);
        let folder = tempfile::tempdir().unwrap();
        let key = VaultKey::generate();
        let engine = engine(&folder, &key, &base).await;
        let grant = hubspot.grant(&SimApp::default().client_id, HUB).unwrap();
        let import = Import {
            id: Some(ConnectionId::parse("acme-crm").unwrap()),
            app: AppName::parse("crm").unwrap(),
            customer: Customer::parse("acme").unwrap(),
            tokens: ImportTokens::OAuth {
                refresh_token: RefreshToken::new(grant.refresh_token),
                access_token: Some(AccessToken::new(grant.access_token.clone())),
                expires_at: Some(SystemClock.now().after(grant.expires_in)),
                scopes: None,
            },
            account: Some(AccountId::parse(&HUB.to_string()).unwrap()),
            labels: vec![],
        };
        let id = engine.keeper().import(import).await.unwrap().id;
        Self {
            hubspot,
            base: format!("{}/", base.trim_end_matches('/')),
            engine,
            id,
            access_token: grant.access_token,
            key,
            folder,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn layer(&self) -> EvergrantLayer {
        self.engine.layer().for_connection(self.id.clone())
    }

    fn middleware(&self) -> EvergrantMiddleware {
        // As a program may have said before: it does not count.
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::limited(10));
        self.engine
            .reqwest(client)
            .unwrap()
            .for_connection(self.id.clone())
    }

    /// Sends a request with the program's own client.
    async fn send(&self, door: Door, request: Request<&'static str>) -> Result<Answer, Error> {
        let answer = match door {
            Door::Tower => {
                let client: Client<HttpConnector, Outgoing> =
                    Client::builder(TokioExecutor::new()).build_http();
                let request = request.map(|body| Full::new(Bytes::from_static(body.as_bytes())));
                let answer = self.layer().layer(client).oneshot(request).await?;
                answer.map(http_body_util::BodyExt::boxed_unsync)
            }
            Door::Reqwest => {
                let connection = request.extensions().get::<ConnectionId>().cloned();
                let (parts, body) = request.into_parts();
                let client = self.middleware().into_client();
                let mut asked = client
                    .request(parts.method, parts.uri.to_string())
                    .headers(parts.headers)
                    .body(body);
                if let Some(connection) = connection {
                    asked = asked.with_extension(connection);
                }
                let answer = asked.send().await.map_err(ours)?;
                assert_eq!(
                    answer.url().as_str(),
                    Url::parse(&parts.uri.to_string()).unwrap().as_str()
                );
                let answer = http::Response::<reqwest::Body>::from(answer);
                answer.map(|body| {
                    let whole = http_body_util::combinators::UnsyncBoxBody::new;
                    whole(body.map_err(|error| panic!("{error}")))
                })
            }
        };
        let (parts, body) = answer.into_parts();
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body: body.collect().await.unwrap().to_bytes(),
        })
    }

    async fn get(&self, door: Door, url: &str) -> Result<Answer, Error> {
        self.send(door, Request::get(url).body("").unwrap()).await
    }

    async fn create(&self, door: Door, email: &'static str) -> Result<Answer, Error> {
        self.send(door, self.creation().body(email).unwrap()).await
    }

    fn creation(&self) -> http::request::Builder {
        Request::post(self.url(CONTACTS)).header("content-type", "application/json")
    }
}

/// Our own error, out of what reqwest's chain made of it.
fn ours(error: reqwest_middleware::Error) -> Error {
    match error {
        reqwest_middleware::Error::Middleware(error) => error.downcast().unwrap(),
        reqwest_middleware::Error::Reqwest(error) => panic!("{error}"),
    }
}

impl Answer {
    fn attempts(&self) -> &str {
        self.headers["evergrant-attempts"].to_str().unwrap()
    }
}

const ADA: &str = r#"{"properties":{"email":"ada@example.com"}}"#;
const BOB: &str = r#"{"properties":{"email":"bob@example.com"}}"#;

/// A server that counts who connects, and answers what it is told.
struct Other {
    base: String,
    seen: Arc<AtomicUsize>,
}

impl Other {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(AtomicUsize::new(0));
        let counted = seen.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                drop(stream);
            }
        });
        Self { base, seen }
    }

    fn seen(&self) -> usize {
        self.seen.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn a_request_gets_a_token_and_is_repeated_once_where_the_token_was_refused() {
    for door in DOORS {
        let world = World::new().await;
        let first = world.create(door, ADA).await.unwrap();
        assert_eq!(
            (first.status, first.attempts()),
            (StatusCode::CREATED, "1"),
            "{door:?}"
        );
        world.hubspot.expire_access_tokens(HUB);
        let second = world.create(door, BOB).await.unwrap();
        assert_eq!(
            (second.status, second.attempts()),
            (StatusCode::CREATED, "2"),
            "{door:?}"
        );
        assert!(
            std::str::from_utf8(&second.body)
                .unwrap()
                .contains("bob@example.com"),
            "{door:?}"
        );
        let ledger = world.hubspot.ledger();
        assert_eq!(
            (
                ledger.creates_executed,
                ledger.refreshes_accepted,
                ledger.unauthorized.missing
            ),
            (2, 1, 0),
            "{door:?} {ledger:?}"
        );
    }
}

#[tokio::test]
async fn a_request_for_anywhere_else_is_refused_and_nothing_leaves() {
    for door in DOORS {
        let world = World::new().await;
        let other = Other::new().await;
        let base = Url::parse(&world.base).unwrap();
        let port = base.port().unwrap();
        for elsewhere in [
            format!("{}/{CONTACTS}", other.base),
            format!("https://127.0.0.1:{port}/{CONTACTS}"),
            format!("http://127.0.0.1:1/{CONTACTS}"),
            format!("http://127.0.0.1.evil.test:{port}/{CONTACTS}"),
        ] {
            let error = world.get(door, &elsewhere).await.err().unwrap();
            let Error::OutsideApiBase { api_base } = &error else {
                panic!("{door:?} {elsewhere}: {error:?}")
            };
            assert_eq!(*api_base, world.base);
            assert!(error.to_string().contains(&world.base), "{error}");
        }
        assert_eq!(other.seen(), 0, "{door:?}");
        assert_eq!(world.hubspot.ledger().api_calls, 0, "{door:?}");
    }
    // reqwest has no such URLs.
    let world = World::new().await;
    let relative = world
        .get(Door::Tower, &format!("/{CONTACTS}"))
        .await
        .err()
        .unwrap();
    assert!(
        matches!(&relative, Error::Refused { what } if what.contains("whole")),
        "{relative:?}"
    );
}

#[tokio::test]
async fn a_request_in_clear_stays_on_this_machine() {
    // 192.0.2.0/24 is nobody's (RFC 5737).
    for door in DOORS {
        let world = World::at(Some("http://192.0.2.1/")).await;
        let error = world.get(door, &world.url("x")).await.err().unwrap();
        assert!(matches!(error, Error::Unavailable { .. }), "{door:?} {error:?}");
    }
}

#[tokio::test]
async fn no_proxy_is_given_a_token_in_clear() {
    let world = World::new().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    let client = reqwest::Client::builder().proxy(reqwest::Proxy::all(proxy).unwrap());
    let middleware = world.engine.reqwest(client).unwrap();
    let answer = middleware
        .for_connection(world.id.clone())
        .into_client()
        .get(world.url("crm/v3/objects/contacts"))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(
        listener.accept().unwrap_err().kind(),
        std::io::ErrorKind::WouldBlock,
        "nobody asked the proxy"
    );
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_is_not_followed_with_the_token() {
    for door in DOORS {
        let world = World::new().await;
        let other = Other::new().await;
        world.hubspot.arm(Fault::api(FaultKind::Status {
            code: 307,
            location: Some(format!("{}/stolen", other.base)),
        }));
        let answer = world.get(door, &world.url(CONTACTS)).await.unwrap();
        assert_eq!(answer.status, StatusCode::TEMPORARY_REDIRECT, "{door:?}");
        assert_eq!(answer.headers["location"], format!("{}/stolen", other.base));
        assert_eq!(other.seen(), 0, "{door:?}");
    }
}

#[tokio::test]
async fn the_connection_is_the_requests_own_before_the_clients() {
    for door in DOORS {
        let world = World::new().await;
        let mut request = Request::get(world.url(CONTACTS)).body("").unwrap();
        request
            .extensions_mut()
            .insert(ConnectionId::parse("nobody").unwrap());
        let error = world.send(door, request).await.err().unwrap();
        assert!(matches!(error, Error::UnknownConnection), "{door:?} {error:?}");
    }
    let world = World::new().await;
    let client = world
        .engine
        .reqwest(reqwest::Client::builder())
        .unwrap()
        .into_client();
    let nobodys = ours(client.get(world.url(CONTACTS)).send().await.unwrap_err());
    assert!(
        matches!(&nobodys, Error::Refused { what } if what.contains("ConnectionId")),
        "{nobodys:?}"
    );
}

#[tokio::test]
async fn an_error_says_what_to_do_next() {
    for door in DOORS {
        let world = World::new().await;
        world.hubspot.arm(Fault::api(FaultKind::AnswerLostAfterIssue));
        let lost = world.create(door, ADA).await.err().unwrap();
        assert!(matches!(lost, Error::OutcomeUnknown { .. }), "{door:?} {lost:?}");
        world.hubspot.uninstall(&SimApp::default().client_id, HUB);
        let gone = world.get(door, &world.url(CONTACTS)).await.err().unwrap();
        assert!(
            matches!(gone, Error::ReconnectRequired { .. }),
            "{door:?} {gone:?}"
        );

        // Nobody listens there: a write that surely did not leave may be sent again.
        let world = World::at(Some("http://127.0.0.1:1/")).await;
        let unsent = world.create(door, ADA).await.err().unwrap();
        assert!(matches!(unsent, Error::Unavailable { .. }), "{door:?} {unsent:?}");
    }
}

#[tokio::test]
async fn what_a_client_says_is_taken_for_a_cut_unless_it_is_known_that_nothing_left() {
    #[derive(Debug, thiserror::Error)]
    #[error("no")]
    struct No;

    let world = World::new().await;
    let failing = || {
        let fails = async |_: Request<Outgoing>| Err::<http::Response<Full<Bytes>>, _>(No);
        tower::service_fn(move |request| Box::pin(fails(request)))
    };
    let request = || {
        world
            .creation()
            .body(Full::new(Bytes::from_static(ADA.as_bytes())))
            .unwrap()
    };
    let cut = world
        .layer()
        .layer(failing())
        .oneshot(request())
        .await
        .unwrap_err();
    assert!(matches!(cut, Error::OutcomeUnknown { .. }), "{cut:?}");
    let layer = world.layer().unsent_on(<dyn std::error::Error>::is::<No>);
    let unsent = layer.layer(failing()).oneshot(request()).await.unwrap_err();
    assert!(matches!(unsent, Error::Unavailable { .. }), "{unsent:?}");
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    for door in DOORS {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let world = World::at(Some(&format!("http://{}/", listener.local_addr().unwrap()))).await;
        // Each side sends its second half only once the other side has seen the first.
        let (asked, answered) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (half_asked, half_answered) = (asked.clone(), answered.clone());
        let provider = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = Vec::new();
            let mut until = async |stream: &mut tokio::net::TcpStream, end: &str| {
                while !String::from_utf8_lossy(&seen).contains(end) {
                    assert!(stream.read_buf(&mut seen).await.unwrap() > 0);
                }
            };
            until(&mut stream, "first half").await;
            half_asked.notify_one();
            until(&mut stream, "second half").await;
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream
                .write_all(format!("{head}3\r\none\r\n").as_bytes())
                .await
                .unwrap();
            half_answered.notified().await;
            stream.write_all(b"3\r\ntwo\r\n0\r\n\r\n").await.unwrap();
            String::from_utf8_lossy(&seen).into_owned()
        });
        let halves = futures_util::stream::unfold((0, asked), async |(half, asked)| {
            let text = match half {
                0 => "first half",
                1 => {
                    asked.notified().await;
                    "second half"
                }
                _ => return None,
            };
            let frame = http_body::Frame::data(Bytes::from_static(text.as_bytes()));
            Some((Ok::<_, std::io::Error>(frame), (half + 1, asked)))
        });
        let body = StreamBody::new(Box::pin(halves));
        let mut answer = match door {
            Door::Tower => {
                let client: Client<HttpConnector, Outgoing> =
                    Client::builder(TokioExecutor::new()).build_http();
                let request = Request::post(world.url("x")).body(body).unwrap();
                let answer = world.layer().layer(client).oneshot(request).await.unwrap();
                answer.into_body().map_err(evergrant_error).boxed_unsync()
            }
            Door::Reqwest => {
                let body = reqwest::Body::wrap(Shared(std::sync::Mutex::new(body)));
                let asked = world.middleware().into_client().post(world.url("x")).body(body);
                let answer = http::Response::<reqwest::Body>::from(asked.send().await.unwrap());
                answer.into_body().map_err(evergrant_error).boxed_unsync()
            }
        };
        let mut next = async || answer.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(next().await, "one", "{door:?}");
        answered.notify_one();
        assert_eq!(next().await, "two", "{door:?}");
        let seen = provider.await.unwrap();
        assert!(seen.contains("transfer-encoding: chunked"), "{door:?} {seen}");
    }
}

fn evergrant_error(
    error: impl std::error::Error + Send + Sync + 'static,
) -> Box<dyn std::error::Error + Send + Sync> {
    Box::new(error)
}

/// As reqwest wants a body.
struct Shared<B>(std::sync::Mutex<B>);

impl<B: http_body::Body + Unpin> http_body::Body for Shared<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<B::Data>, B::Error>>> {
        std::pin::Pin::new(self.0.get_mut().unwrap()).poll_frame(cx)
    }
}

#[tokio::test]
async fn a_timeout_of_the_request_itself_counts_and_says_what_is_known() {
    let world = World::new().await;
    let client = world.middleware().into_client();
    let slow = || {
        let fault = FaultKind::Slow { delay_ms: 60_000 };
        world.hubspot.arm(Fault::api(fault));
    };
    let patience = Duration::from_millis(100);
    slow();
    let read = client.get(world.url(CONTACTS)).timeout(patience).send().await;
    assert!(matches!(ours(read.unwrap_err()), Error::Unavailable { .. }));
    slow();
    let write = client
        .post(world.url(CONTACTS))
        .body(ADA)
        .timeout(patience)
        .send()
        .await;
    assert!(matches!(ours(write.unwrap_err()), Error::OutcomeUnknown { .. }));
}

#[tokio::test]
async fn no_token_shows_in_what_is_printed() {
    for door in DOORS {
        let world = World::new().await;
        let secret = &world.access_token;
        let client: Client<HttpConnector, Outgoing> = Client::builder(TokioExecutor::new()).build_http();
        let mut shown = vec![
            format!("{:?} {:?}", world.layer(), world.middleware()),
            format!("{:?}", world.layer().layer(client)),
        ];
        world.hubspot.arm(Fault::api(FaultKind::AnswerLostAfterIssue));
        let errors = [
            world.create(door, ADA).await.err().unwrap(),
            world.get(door, "http://127.0.0.1:1/x").await.err().unwrap(),
        ];
        shown.extend(errors.map(|error| format!("{error} {error:?}")));
        let shown = shown.join("\n");
        assert!(
            !shown.contains(secret.as_str()) && !shown.contains("Bearer"),
            "{shown}"
        );
    }
}

#[tokio::test]
async fn whole_urls_are_compared_by_send_too() {
    let world = World::new().await;
    let send = async |uri: &str| {
        let request = Request::get(uri).body("").unwrap();
        world.engine.send(&world.id, request).await
    };
    for ours in [format!("/{CONTACTS}"), world.url(CONTACTS)] {
        assert_eq!(send(&ours).await.unwrap().status(), StatusCode::OK, "{ours}");
    }
    let elsewhere = send("https://api.hubapi.com/crm/v3/objects/contacts").await;
    assert!(
        matches!(elsewhere, Err(Error::OutsideApiBase { .. })),
        "{elsewhere:?}"
    );
}

#[tokio::test]
async fn a_guarded_write_is_carried_out_once_by_every_door() {
    for door in DOORS {
        let world = World::new().await;
        let once = || world.creation().idempotency_key("order-4711");
        world.hubspot.arm(Fault::api(FaultKind::AnswerLostAfterIssue));
        let lost = world.send(door, once().body(ADA).unwrap()).await.err().unwrap();
        let Error::OutcomeUnknown { look_up } = &lost else {
            panic!("{door:?} {lost:?}")
        };
        assert!(look_up.is_some(), "{door:?}");
        assert!(!format!("{lost} {lost:?}").contains("ada"), "{lost:?}");
        let again = world.send(door, once().body(ADA).unwrap()).await;
        assert!(matches!(again, Err(Error::OutcomeUnknown { .. })), "{door:?}");
        let other = world.send(door, once().body(BOB).unwrap()).await.err().unwrap();
        assert!(matches!(other, Error::KeyMismatch), "{door:?} {other:?}");
        let replayed = || world.creation().dedupe_within(Duration::from_secs(60));
        for said in ["", "true"] {
            let answer = world.send(door, replayed().body(BOB).unwrap()).await.unwrap();
            assert_eq!(answer.status, StatusCode::CREATED, "{door:?}");
            let replayed = answer.headers.get("evergrant-replayed");
            assert_eq!(
                replayed.map_or("", |value| value.to_str().unwrap()),
                said,
                "{door:?}"
            );
        }
        let inapplicable = world.creation().read_before_write("firstname");
        let refused = world
            .send(door, inapplicable.body(ADA).unwrap())
            .await
            .err()
            .unwrap();
        assert!(
            matches!(refused, Error::GuardNotApplicable { .. } | Error::Refused { .. }),
            "{door:?} {refused:?}"
        );
        assert_eq!(world.hubspot.ledger().creates_executed, 2, "{door:?}");
    }
}

#[tokio::test]
async fn a_guarded_write_whose_caller_went_away_is_finished_before_the_engine_stops() {
    let world = World::new().await;
    world.hubspot.arm(Fault::api(FaultKind::Slow { delay_ms: 300 }));
    let request = world.creation().idempotency_key("order-4711").body(ADA).unwrap();
    let sending = world.send(Door::Tower, request);
    tokio::time::timeout(Duration::from_millis(100), sending)
        .await
        .err()
        .unwrap();
    world.engine.shutdown().await;
    // Whoever comes next finds the answer that nobody waited for.
    let next = engine(&world.folder, &world.key, &world.base).await;
    let request = world.creation().idempotency_key("order-4711").body(ADA).unwrap();
    let answer = next.send(&world.id, request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(answer.headers()["evergrant-replayed"], "true");
    assert_eq!(world.hubspot.ledger().creates_executed, 1);
}
