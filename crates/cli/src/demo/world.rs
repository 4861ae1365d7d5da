//! Everything the demo needs, in a temporary folder and on free ports.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use evergrant::{App, Clock, Evergrant, VaultKey};
use evergrant_config::{Limits, LogCalls};
use evergrant_domain::{KeepFresh, RefreshPolicy};
use evergrant_server::{BindError, ListenSettings, Server, Service, ServiceSettings};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request};
use http_body_util::Full;
use hubspot_sim::{Ledger, RateLimits, Rotation, SimApp, SimConfig, Simulator};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::api::Api;
use crate::demo::faults::Fault;
use crate::demo::traffic::Tally;
use crate::demo::visitor;
use crate::failure::Failure;
use crate::network::{self, HttpClient};
use crate::output::text;

pub(crate) const CLIENT_ID: &str = "demo-client";
/// The simulator's own; no secret anywhere else.
const CLIENT_SECRET: &str = "demo-secret";
const APP: &str = "crm";
const SCOPES: [&str; 3] = ["oauth", "crm.objects.contacts.read", "crm.objects.contacts.write"];

/// How long access tokens live here. HubSpot's live 30 minutes.
pub(crate) const TOKEN_TTL: Duration = Duration::from_secs(3);

/// Who connects. The last two have their scenes: the stampede's, who does not call before it, and the one that leaves.
const CUSTOMERS: [(&str, u64); 5] = [
    ("acme", 1001),
    ("globex", 1002),
    ("umbrella", 100_000_001),
    ("hooli", 1004),
    ("initech", 1003),
];
const IDLE: usize = 3;
const LEAVING: usize = 4;

/// Somebody may take the free port before we do.
const PORTS_TRIED: usize = 5;

/// Somebody to look around with, who sees everything and no token.
const LOOKS_AROUND: &str = "support";

/// One customer of the demo's app.
pub(crate) struct Customer {
    /// Its name and its connection's id.
    pub(crate) name: &'static str,
    pub(crate) hub_id: u64,
    pub(crate) tally: Tally,
}

impl Customer {
    fn new((name, hub_id): (&'static str, u64)) -> Arc<Self> {
        Arc::new(Self {
            name,
            hub_id,
            tally: Tally::default(),
        })
    }
}

/// The simulator, the service and the customers.
pub(crate) struct World {
    pub(crate) hubspot: Simulator,
    pub(crate) client: HttpClient,
    /// The service's address.
    pub(crate) base: String,
    pub(crate) authorization: HeaderValue,
    pub(crate) customers: Vec<Arc<Customer>>,
    /// Those whose programs make a mistake, in the order of [`Fault::ALL`].
    pub(crate) mistaken: Vec<Arc<Customer>>,
    /// An API key for the dashboard. It opens nothing but this demo.
    pub(crate) dashboard_key: String,
    /// The service's.
    pub(crate) clock: Arc<dyn Clock>,
    operator: Api,
    stop: CancellationToken,
    running: JoinHandle<()>,
    folder: TempDir,
}

impl World {
    /// Starts everything and connects the customers.
    pub(crate) async fn build() -> Result<Self, Failure> {
        let folder = TempDir::with_prefix("evergrant-demo-")
            .map_err(|error| Failure::failed(format!("a temporary folder cannot be made: {error}")))?;
        let app = SimApp::new(CLIENT_ID, CLIENT_SECRET).required_scopes(SCOPES);
        let hubspot = Simulator::start(SimConfig {
            token_ttl: TOKEN_TTL,
            // Each refresh token works once: whoever redeems one twice is found out.
            rotation: Rotation::Always,
            apps: vec![app],
            ..SimConfig::default()
        })
        .await
        .map_err(|error| Failure::failed(format!("the simulator cannot listen: {error}")))?;
        // Here the point is the one redemption that a stampede costs, not how long it waits for HubSpot's 110 calls in 10 s.
        hubspot.set_rate_limits(RateLimits {
            calls_max: 1000,
            ..RateLimits::default()
        });
        let (operator, server, clock) = serve(folder.path(), &hubspot).await?;
        let base = format!("http://localhost:{}", server.address().port());
        let stop = CancellationToken::new();
        let running = tokio::spawn(server.run(stop.clone()));
        let key = api_key(&operator, "tokens").await?;
        let mut authorization = HeaderValue::try_from(format!("Bearer {key}")).map_err(Failure::failed)?;
        authorization.set_sensitive(true);
        let dashboard_key = api_key(&operator, LOOKS_AROUND).await?;
        let customers = CUSTOMERS.map(Customer::new).to_vec();
        let mistaken = Fault::ALL.map(|fault| Customer::new(fault.customer())).to_vec();
        let world = Self {
            hubspot,
            client: network::client()?,
            base,
            authorization,
            customers,
            mistaken,
            dashboard_key,
            clock,
            operator,
            stop,
            running,
            folder,
        };
        for customer in world.everybody() {
            visitor::connect(&world, APP, customer).await?;
        }
        Ok(world)
    }

    /// Every customer.
    pub(crate) fn everybody(&self) -> impl Iterator<Item = &Arc<Customer>> {
        self.customers.iter().chain(&self.mistaken)
    }

    /// Who does not call before the stampede.
    pub(crate) fn idle(&self) -> &Arc<Customer> {
        &self.customers[IDLE]
    }

    /// Who uninstalls the app.
    pub(crate) fn leaving(&self) -> &Arc<Customer> {
        &self.customers[LEAVING]
    }

    /// What the simulator saw.
    pub(crate) fn ledger(&self) -> Ledger {
        self.hubspot.ledger()
    }

    /// The record of a customer's connection.
    pub(crate) async fn record(&self, customer: &Customer) -> Result<Value, Failure> {
        self.operator
            .get(&format!("/v1/connections/{}", customer.name))
            .await
    }

    /// What the doctor says of it.
    pub(crate) async fn diagnosis(&self, customer: &Customer) -> Result<Value, Failure> {
        self.operator
            .get(&format!("/v1/connections/{}/diagnosis", customer.name))
            .await
    }

    /// Ends it in the order in which nothing is lost, and removes the folder.
    pub(crate) async fn end(self) {
        // Its idle connections would be waited for.
        drop(self.client);
        self.stop.cancel();
        // It ends because it was told to; a panic in it has been reported where it happened.
        let _ = self.running.await;
        self.hubspot.shutdown().await;
        drop(self.folder);
    }
}

/// The service in its own folder. Its public URL must be known before it listens, so a free port is looked for first.
async fn serve(folder: &Path, hubspot: &Simulator) -> Result<(Api, Server, Arc<dyn Clock>), Failure> {
    let mut tried = 0;
    loop {
        let address = free_address()?;
        let service = Service::new(engine(folder, hubspot, address).await?, settings());
        let listen = ListenSettings {
            address,
            tls: None,
            drain_timeout: Duration::from_secs(5),
        };
        tried += 1;
        match Server::bind(service.clone(), listen.clone()).await {
            Ok(server) => {
                let clock = service.engine().keeper().clock().clone();
                return Ok((Api::on(service, listen), server, clock));
            }
            Err(BindError::InUse { .. }) if tried < PORTS_TRIED => service.engine().shutdown().await,
            Err(error) => return Err(error.into()),
        }
    }
}

fn free_address() -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    listener.map_err(|error| Failure::failed(format!("no port is free: {error}")))
}

async fn engine(folder: &Path, hubspot: &Simulator, address: SocketAddr) -> Result<Evergrant, Failure> {
    let url = |text: &str| Url::parse(text).map_err(Failure::failed);
    let app = App::hubspot(APP)
        .client_id(CLIENT_ID)
        .client_secret(CLIENT_SECRET)
        .scopes(SCOPES)
        .hosted_at(&url(&hubspot.base_url())?)
        // Every token set is used to its end and nobody renews it ahead of time: the hard way.
        .refresh_policy(RefreshPolicy::Buffer(Duration::ZERO))
        .keep_fresh(KeepFresh::Off);
    let engine = Evergrant::builder()
        .store(folder.join("evergrant.db").to_string_lossy())
        .lifeboat(folder.join("lifeboat"))
        .vault_key(VaultKey::generate())
        .app(app)
        .public_url(url(&format!("http://localhost:{}", address.port()))?)
        .build()
        .await?;
    Ok(engine)
}

fn settings() -> ServiceSettings {
    ServiceSettings {
        calls: LogCalls::Failures,
        trusted_proxies: Vec::new(),
        limits: Limits::default(),
    }
}

/// A key for this app.
async fn api_key(operator: &Api, role: &str) -> Result<String, Failure> {
    let wish = json!({"name": format!("demo {role}"), "role": role, "apps": [APP]});
    let made = operator.post("/v1/keys", &wish).await?;
    Ok(text(&made, "/key"))
}

/// A request with a JSON body, if any.
pub(crate) fn request(
    method: Method,
    uri: &str,
    body: Option<&Value>,
) -> Result<Request<Full<Bytes>>, Failure> {
    let mut request = Request::builder().method(method).uri(uri);
    if body.is_some() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
    request.body(Full::new(body)).map_err(Failure::failed)
}

/// As [`request`], to the service, with the demo's API key.
pub(crate) fn authorized(
    world: &World,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Request<Full<Bytes>>, Failure> {
    let mut request = request(method, &format!("{}{path}", world.base), body)?;
    request
        .headers_mut()
        .insert(AUTHORIZATION, world.authorization.clone());
    Ok(request)
}
