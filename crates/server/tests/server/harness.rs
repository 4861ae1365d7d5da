//! A service with everything around it: simulator, store in a folder of its own, a client that sends exactly what it is told.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use evergrant::{Evergrant, VaultKey};
use evergrant_config::{Limits, LogCalls};
use evergrant_domain::app::{ClientAuth, Dialect};
use evergrant_domain::{App, AppName, ClientSecret, KeepFresh, Provider, RefreshPolicy, Rotation};
use evergrant_server::{ListenSettings, Server, Service, ServiceSettings};
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hubspot_sim::{SimConfig, Simulator};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use url::Url;

pub(crate) const PUBLIC: &str = "http://localhost:8484";

/// Everything that was logged by anyone in this test binary, at every level.
pub(crate) static LOG: LazyLock<Log> = LazyLock::new(|| {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    tracing_subscriber::util::SubscriberInitExt::try_init(subscriber).unwrap();
    log
});

#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A running service.
pub(crate) struct House {
    pub(crate) sim: Simulator,
    pub(crate) service: Service,
    pub(crate) address: SocketAddr,
    pub(crate) admin: String,
    stop: CancellationToken,
    running: JoinHandle<()>,
    folder: TempDir,
    key: VaultKey,
}

/// An answer, read whole.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The code of the problem that it is.
    pub(crate) fn code(&self) -> String {
        assert_eq!(
            self.header("content-type"),
            "application/problem+json",
            "{} {}",
            self.status,
            self.text()
        );
        let problem = self.json();
        assert_eq!(problem["status"], self.status.as_u16(), "{problem}");
        assert_eq!(
            problem["request_id"],
            self.header("evergrant-request-id"),
            "{problem}"
        );
        problem["code"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        self
    }

    #[track_caller]
    pub(crate) fn refused(self, status: u16, code: &str) -> Self {
        assert_eq!(
            (self.status.as_u16(), self.code().as_str()),
            (status, code),
            "{}",
            self.text()
        );
        self
    }
}

pub(crate) fn app(sim: &Simulator) -> App {
    let base = Url::parse(&sim.base_url()).unwrap();
    let at = |path: &str| base.join(path).unwrap();
    App {
        name: AppName::parse("crm").unwrap(),
        provider: Provider {
            dialect: Dialect::HubSpot,
            authorize_url: at("/oauth/authorize"),
            token_url: at("/oauth/2026-09/token"),
            introspect_url: Some(at("/oauth/2026-09/token/introspect")),
            revoke_url: Some(at("/oauth/2026-09/token/revoke")),
            api_base: at("/"),
            client_auth: ClientAuth::Post,
            pkce: false,
            rotation: Rotation::Never,
            account_claim: "hub_id".to_owned(),
        },
        client_id: "sim-client".to_owned(),
        client_secrets: vec![ClientSecret::new("sim-secret")],
        redirect_uri: format!("{PUBLIC}/oauth/callback"),
        scopes: vec!["oauth".to_owned(), "crm.objects.contacts.read".to_owned()],
        optional_scopes: vec![],
        refresh_policy: RefreshPolicy::Queue,
        keep_fresh: KeepFresh::Off,
        return_urls: vec!["https://app.example.com/*".to_owned()],
        display_name: Some("Acme <CRM>".to_owned()),
        support_url: Some("https://support.example.com/".to_owned()),
        public_install: true,
        budget: evergrant_domain::call_budget::Setting::Learnt,
        max_wait: None,
    }
}

impl House {
    pub(crate) async fn build() -> Self {
        Self::with(|_| {}).await
    }

    /// Two apps, `crm` and `other`, both of the simulator; `change` has the last word on the first.
    pub(crate) async fn with(change: impl FnOnce(&mut App)) -> Self {
        LazyLock::force(&LOG);
        let sim = Simulator::start(SimConfig::default()).await.unwrap();
        let folder = TempDir::new().unwrap();
        let mut crm = app(&sim);
        change(&mut crm);
        let other = App {
            name: AppName::parse("other").unwrap(),
            public_install: false,
            budget: evergrant_domain::call_budget::Setting::Learnt,
            max_wait: None,
            ..app(&sim)
        };
        let key = VaultKey::generate();
        let service = service(&folder, key.clone(), vec![crm, other], LogCalls::All).await;
        let server = Server::bind(service.clone(), loopback()).await.unwrap();
        let address = server.address();
        let stop = CancellationToken::new();
        let running = tokio::spawn(server.run(stop.clone()));
        let mut house = Self {
            sim,
            service,
            address,
            admin: String::new(),
            stop,
            running,
            folder,
            key,
        };
        house.admin = house.key(json!({"name": "admin", "role": "admin"})).await;
        house
    }

    /// Another process on the same store, as far as the store can tell.
    pub(crate) async fn neighbour(&self, calls: LogCalls) -> Service {
        service(&self.folder, self.key.clone(), vec![app(&self.sim)], calls).await
    }

    /// Does to the database what nobody should.
    pub(crate) fn tamper(&self, sql: &str) {
        let database = rusqlite::Connection::open(self.folder.path().join("evergrant.db")).unwrap();
        database.execute(sql, ()).unwrap();
    }

    /// Makes a key, as the operator.
    pub(crate) async fn key(&self, wish: Value) -> String {
        self.made_key(wish).await["key"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn made_key(&self, wish: Value) -> Value {
        self.operate("POST", "/v1/keys", Some(wish))
            .await
            .expect(201)
            .json()
    }

    /// Asks in the process itself, with all rights.
    pub(crate) async fn operate(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let answer = self
            .service
            .operator()
            .call(request.body(Full::new(body)).unwrap())
            .await;
        let (parts, body) = answer.into_parts();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: body.collect().await.unwrap().to_bytes(),
        }
    }

    /// Imports a connection of the portal.
    pub(crate) async fn import(&self, id: &str, customer: &str, hub_id: u64) -> Value {
        self.import_into("crm", id, customer, hub_id).await
    }

    pub(crate) async fn import_into(&self, app: &str, id: &str, customer: &str, hub_id: u64) -> Value {
        let grant = self.sim.grant("sim-client", hub_id).unwrap();
        let record = json!({
            "app": app, "id": id, "customer": customer, "refresh_token": grant.refresh_token,
            "access_token": grant.access_token, "account": hub_id, "scopes": grant.scopes,
            "expires_at": in_seconds(1800),
        });
        self.operate("POST", "/v1/connections", Some(record))
            .await
            .expect(201)
            .json()
    }

    /// Sends a request as it is, on a connection of its own.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        send_to(self.address, request).await
    }

    pub(crate) async fn get(&self, key: &str, path: &str) -> Answer {
        self.call(key, "GET", path, None).await
    }

    pub(crate) async fn post(&self, key: &str, path: &str, body: Value) -> Answer {
        self.call(key, "POST", path, Some(body)).await
    }

    pub(crate) async fn call(&self, key: &str, method: &str, path: &str, body: Option<Value>) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("x-request-id", "the-same");
        if !key.is_empty() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        self.send(request.body(Full::new(body)).unwrap()).await
    }

    /// Tells it to stop and waits until it has.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap();
    }

    /// As [`House::stop`], while calls are in flight.
    pub(crate) fn begin_to_stop(&self) {
        self.stop.cancel();
    }
}

async fn service(folder: &TempDir, key: VaultKey, apps: Vec<App>, calls: LogCalls) -> Service {
    let engine = Evergrant::builder()
        .store(folder.path().join("evergrant.db").to_str().unwrap())
        .vault_key(key)
        .public_url(Url::parse(PUBLIC).unwrap())
        .apps(apps)
        .build()
        .await
        .unwrap();
    let settings = ServiceSettings {
        calls,
        trusted_proxies: vec![],
        limits: Limits::default(),
    };
    Service::new(engine, settings)
}

pub(crate) fn loopback() -> ListenSettings {
    ListenSettings {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        tls: None,
        drain_timeout: Duration::from_secs(10),
    }
}

pub(crate) fn in_seconds(seconds: i64) -> String {
    use evergrant::Clock as _;
    let now = evergrant::SystemClock.now().millis();
    jiff::Timestamp::from_millisecond(now + seconds * 1000)
        .unwrap()
        .to_string()
}

/// One request over HTTP/1.1. A host is named where the request names none.
pub(crate) async fn send_to(address: SocketAddr, mut request: Request<Full<Bytes>>) -> Answer {
    if !request.headers().contains_key(header::HOST) {
        request
            .headers_mut()
            .insert(header::HOST, "localhost:8484".parse().unwrap());
    }
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let driver = tokio::spawn(connection);
    let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    driver.abort();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body,
    }
}

/// One request over HTTP/2 with prior knowledge.
pub(crate) async fn send_h2(address: SocketAddr, request: Request<Full<Bytes>>) -> Answer {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let driver = tokio::spawn(connection);
    let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    driver.abort();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body,
    }
}

/// A request without key or body.
pub(crate) fn bare(method: &str, path: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .method(Method::from_bytes(method.as_bytes()).unwrap())
        .uri(path)
        .body(Full::default())
        .unwrap()
}
