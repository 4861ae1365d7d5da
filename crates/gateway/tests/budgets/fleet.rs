//! Gateways on one store, each a process of its own, on a clock that stands still while anybody works.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use evergrant_domain::app::{ClientAuth, Dialect};
use evergrant_domain::call_budget::{Lane, Setting};
use evergrant_domain::{
    AccessToken, AccountId, App, AppName, ClientSecret, ConnectionId, Customer, KeepFresh,
    Provider as Endpoints, RefreshPolicy, RefreshToken, Rotation, Timestamp,
};
use evergrant_gateway::{Answer, Gateway, GatewayLimits, Refusal, RefusalKind, Terms};
use evergrant_keeper::{Asker, Clock, Import, ImportTokens, Keeper, KeeperParts, Surroundings};
use evergrant_oauth::{TlsRoots, TokenEndpoint};
use evergrant_store::sqlite::simulated::{Clocks, Like, SimulatedDatabase};
use evergrant_store::{ByLease, SqliteStore, Vault, VaultKey};
use http::Request;
use http_body_util::Full;
use tokio::time::Instant;
use url::Url;

use crate::provider::Provider;
use crate::store::{Claims, Counted};

pub(crate) const PATH: &str = "/crm/v3/objects/contacts/1";
pub(crate) const SEARCH: &str = "/crm/v3/objects/contacts/search";

pub(crate) struct Fleet {
    pub(crate) processes: Vec<Process>,
    pub(crate) provider: Provider,
    pub(crate) claims: Arc<Claims>,
    pub(crate) began: Instant,
}

#[derive(Clone)]
pub(crate) struct Process {
    pub(crate) keeper: Keeper,
    gateway: Gateway<Provider>,
}

/// One call, and what it says about itself.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) connection: &'static str,
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    pub(crate) lane: Option<&'static str>,
    pub(crate) max_wait: Option<u32>,
    /// An idempotency key.
    pub(crate) guard: Option<&'static str>,
    pub(crate) caller: &'static str,
    pub(crate) key_lane: Option<Lane>,
    pub(crate) key_max_wait: Option<Duration>,
}

impl Default for Ask {
    fn default() -> Self {
        Self {
            connection: "c1",
            method: "GET",
            path: PATH,
            lane: None,
            max_wait: None,
            guard: None,
            caller: "a",
            key_lane: None,
            key_max_wait: None,
        }
    }
}

struct PausedClock {
    began: Instant,
}

impl Clock for PausedClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_700_000_000_000).after(self.began.elapsed())
    }

    fn boot(&self) -> Duration {
        Duration::from_secs(3600) + self.began.elapsed()
    }
}

impl Fleet {
    pub(crate) async fn of(processes: usize, provider: Provider) -> Self {
        Self::with(processes, provider, |_| {}).await
    }

    /// With another app.
    pub(crate) async fn with(processes: usize, provider: Provider, change: fn(&mut App)) -> Self {
        let began = Instant::now();
        let clock = Arc::new(PausedClock { began });
        let (boot, wall) = (clock.clone(), clock.clone());
        let clocks = Clocks {
            boot: Arc::new(move || i64::try_from(boot.boot().as_millis()).unwrap()),
            wall: Arc::new(move || wall.now().millis()),
        };
        let database = SimulatedDatabase::new(clocks, Like::Sqlite).unwrap();
        let vault = Arc::new(Vault::new(VaultKey::generate()));
        let claims = Arc::new(Claims::default());
        let mut app = app();
        change(&mut app);
        let processes = (0..processes)
            .map(|n| {
                let holder = database.holder(&n.to_string());
                let inner = SqliteStore::simulated(&database, vault.clone(), &holder).unwrap();
                let keeper = Keeper::new(KeeperParts {
                    apps: vec![app.clone()],
                    store: Arc::new(Counted {
                        inner,
                        claims: claims.clone(),
                    }),
                    vault: vault.clone(),
                    endpoint: TokenEndpoint::new(TlsRoots::Only(vec![])),
                    surroundings: Surroundings {
                        clock: clock.clone(),
                        ..Surroundings::default()
                    },
                    coordination: Arc::new(ByLease),
                    lifeboat: None,
                    max_stale: Duration::from_secs(3600),
                });
                let limits = GatewayLimits {
                    body_kept: 1024,
                    body_max: None,
                    headers_max: 64 * 1024,
                    upstream_timeout: Duration::from_secs(60),
                };
                let gateway = Gateway::over(provider.clone(), keeper.clone(), limits);
                Process { keeper, gateway }
            })
            .collect::<Vec<_>>();
        for (id, account) in [("c1", "1001"), ("c2", "1002")] {
            let import = Import {
                id: Some(ConnectionId::parse(id).unwrap()),
                app: AppName::parse("crm").unwrap(),
                customer: Customer::parse("acme").unwrap(),
                tokens: ImportTokens::OAuth {
                    refresh_token: RefreshToken::new(format!("refresh-{id}")),
                    access_token: Some(AccessToken::new(format!("access-{id}"))),
                    expires_at: Some(clock.now().after(Duration::from_secs(86_400))),
                    scopes: None,
                },
                account: Some(AccountId::parse(account).unwrap()),
                labels: vec![],
            };
            processes[0].keeper.import(import).await.unwrap();
        }
        Self {
            processes,
            provider,
            claims,
            began,
        }
    }

    /// One call by the first process.
    pub(crate) async fn call(&self, ask: Ask) -> Result<Answer, Refusal> {
        self.processes[0].call(ask).await
    }

    pub(crate) fn claims_made(&self) -> usize {
        self.claims.made.load(Ordering::Relaxed)
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}

impl Process {
    pub(crate) async fn call(&self, ask: Ask) -> Result<Answer, Refusal> {
        let mut request = Request::builder()
            .method(ask.method)
            .header("x-caller", ask.caller);
        if let Some(lane) = ask.lane {
            request = request.header("evergrant-lane", lane);
        }
        if let Some(seconds) = ask.max_wait {
            request = request.header("evergrant-max-wait", seconds.to_string());
        }
        if let Some(key) = ask.guard {
            request = request.header("idempotency-key", key);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        let body = Full::new(Bytes::from_static(b"{}"));
        let terms = Terms {
            caller: Some(ask.caller.into()),
            lane: ask.key_lane,
            max_wait: ask.key_max_wait,
            held: None,
        };
        let id = ConnectionId::parse(ask.connection).unwrap();
        self.gateway
            .call_on(&terms, Asker::UNKNOWN, &id, ask.path, &head, body)
            .await
    }

    /// The same beside the caller.
    pub(crate) fn spawn(&self, ask: Ask) -> tokio::task::JoinHandle<Result<Answer, Refusal>> {
        let process = self.clone();
        tokio::spawn(async move { process.call(ask).await })
    }
}

/// The status of the provider's answer.
pub(crate) fn status(result: &Result<Answer, Refusal>) -> u16 {
    match result {
        Ok(answer) => answer.response.status().as_u16(),
        Err(refusal) => panic!("no answer: {refusal}"),
    }
}

/// When to come again, and HubSpot's word for the limit.
pub(crate) fn exhausted(result: &Result<Answer, Refusal>) -> (Duration, &'static str) {
    match result.as_ref().map_err(|refusal| &refusal.kind) {
        Err(RefusalKind::BudgetExhausted { retry_after, policy }) => {
            (*retry_after, policy.unwrap_or_default())
        }
        other => panic!("not refused for its budget: {other:?}"),
    }
}

fn app() -> App {
    let url = |path: &str| Url::parse(&format!("http://127.0.0.1:9{path}")).unwrap();
    App {
        name: AppName::parse("crm").unwrap(),
        provider: Endpoints {
            dialect: Dialect::HubSpot,
            authorize_url: url("/oauth/authorize"),
            token_url: url("/oauth/2026-09/token"),
            introspect_url: None,
            revoke_url: None,
            api_base: url("/"),
            client_auth: ClientAuth::Post,
            pkce: false,
            rotation: Rotation::Never,
            account_claim: "hub_id".into(),
        },
        client_id: "id".into(),
        client_secrets: vec![ClientSecret::new("secret")],
        redirect_uri: "http://localhost:8484/oauth/callback".into(),
        scopes: vec!["oauth".into()],
        optional_scopes: vec![],
        refresh_policy: RefreshPolicy::Queue,
        keep_fresh: KeepFresh::Off,
        return_urls: vec![],
        display_name: None,
        support_url: None,
        public_install: false,
        budget: Setting::Learnt,
        max_wait: None,
    }
}
