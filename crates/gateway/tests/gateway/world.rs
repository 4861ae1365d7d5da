//! A gateway with one connection.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use evergrant_domain::app::{ClientAuth, Dialect};
use evergrant_domain::event::EventKind;
use evergrant_domain::{
    AccessToken, AccountId, App, AppName, ClientSecret, ConnectionId, Customer, KeepFresh, Provider,
    RefreshPolicy, RefreshToken, Rotation,
};
use evergrant_gateway::{Answer, Gateway, GatewayLimits, Refusal, RefusalKind};
use evergrant_keeper::{Clock as _, Import, ImportTokens, Keeper, KeeperParts, Surroundings, SystemClock};
use evergrant_oauth::{TlsRoots, TokenEndpoint};
use evergrant_store::{ByLease, SqliteStore, Vault, VaultKey};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use hubspot_sim::{SimConfig, Simulator};
use tempfile::TempDir;
use url::Url;

use crate::faulty::{Faults, Faulty};

pub(crate) const HUB: u64 = 1001;

pub(crate) struct World {
    pub(crate) hubspot: Simulator,
    pub(crate) keeper: Keeper,
    pub(crate) gateway: Gateway,
    pub(crate) id: ConnectionId,
    /// What of the store fails.
    pub(crate) faults: Arc<Faults>,
    vault: Arc<Vault>,
    app: App,
    folder: TempDir,
}

/// What may be different from world to world.
pub(crate) struct Settings {
    pub(crate) limits: GatewayLimits,
    pub(crate) roots: TlsRoots,
    pub(crate) tokens: fn(&Simulator) -> ImportTokens,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limits: GatewayLimits {
                body_kept: 2 * 1024 * 1024,
                body_max: None,
                headers_max: 64 * 1024,
                upstream_timeout: Duration::from_secs(60),
            },
            roots: TlsRoots::Only(vec![]),
            tokens: granted,
        }
    }
}

/// A grant that is fresh.
pub(crate) fn granted(hubspot: &Simulator) -> ImportTokens {
    let grant = hubspot.grant("sim-client", HUB).unwrap();
    ImportTokens::OAuth {
        refresh_token: RefreshToken::new(grant.refresh_token),
        access_token: Some(AccessToken::new(grant.access_token)),
        expires_at: Some(SystemClock.now().after(grant.expires_in)),
        scopes: None,
    }
}

/// A private app's token.
pub(crate) fn fixed(hubspot: &Simulator) -> ImportTokens {
    ImportTokens::Static {
        access_token: AccessToken::new(hubspot.static_token(HUB)),
    }
}

impl World {
    /// With the simulator as its API.
    pub(crate) async fn new() -> Self {
        Self::with(None, Settings::default()).await
    }

    /// With another API; the tokens still come from the simulator.
    pub(crate) async fn at(api_base: &str) -> Self {
        Self::with(Some(api_base), Settings::default()).await
    }

    pub(crate) async fn with(api_base: Option<&str>, settings: Settings) -> Self {
        let hubspot = Simulator::start(SimConfig::default()).await.unwrap();
        let app = app(&hubspot.base_url(), api_base.unwrap_or(&hubspot.base_url()));
        let folder = tempfile::tempdir().unwrap();
        let vault = Arc::new(Vault::new(VaultKey::generate()));
        let faults = Arc::new(Faults::default());
        let keeper = keeper(&folder, &vault, &app, &faults).await;
        let import = Import {
            id: Some(ConnectionId::parse("c1").unwrap()),
            app: app.name.clone(),
            customer: Customer::parse("acme").unwrap(),
            tokens: (settings.tokens)(&hubspot),
            account: Some(AccountId::parse(&HUB.to_string()).unwrap()),
            labels: vec![],
        };
        let id = keeper.import(import).await.unwrap().id;
        Self {
            gateway: Gateway::trusting(settings.roots, keeper.clone(), settings.limits),
            hubspot,
            keeper,
            id,
            faults,
            vault,
            app,
            folder,
        }
    }

    /// Another process on the same store.
    pub(crate) async fn another_keeper(&self) -> Keeper {
        keeper(&self.folder, &self.vault, &self.app, &Arc::default()).await
    }

    /// Sends a request; of its URI, path and query count, as the test wrote them.
    pub(crate) async fn send(
        &self,
        method: &str,
        target: &str,
        body: impl Into<Bytes>,
    ) -> Result<Answer, Refusal> {
        self.send_with(method, target, &[], body).await
    }

    /// The same with headers.
    pub(crate) async fn send_with(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, Refusal> {
        let mut request = Request::builder().method(method);
        for &(name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        self.gateway.call(&self.id, target, request).await
    }

    pub(crate) async fn get(&self, target: &str) -> Result<Answer, Refusal> {
        self.send("GET", target, "").await
    }

    /// A create that the simulator's ledger can follow.
    pub(crate) async fn create(&self, request_id: &str) -> Result<Answer, Refusal> {
        let request = Request::post("/")
            .header("content-type", "application/json")
            .header("x-req-id", request_id)
            .body(Full::new(Bytes::from_static(
                b"{\"properties\":{\"firstname\":\"Ada\"}}",
            )))
            .unwrap();
        self.gateway.call(&self.id, CONTACTS, request).await
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.folder.path().join("evergrant.db")
    }

    /// All that lies on the disk.
    pub(crate) fn stored(&self) -> Vec<u8> {
        let files = std::fs::read_dir(self.folder.path()).unwrap();
        files
            .map(|file| file.unwrap().path())
            .filter(|path| path.is_file())
            .flat_map(|path| std::fs::read(path).unwrap())
            .collect()
    }

    /// The history's entries of a kind.
    pub(crate) async fn events(&self, kind: EventKind) -> Vec<String> {
        // What happened behind a call is written behind it.
        self.keeper.shutdown().await;
        let events = self.keeper.store().events(&self.id, 100).await.unwrap();
        events
            .into_iter()
            .filter(|event| event.kind == kind.as_str())
            .map(|event| event.detail)
            .collect()
    }
}

pub(crate) const CONTACTS: &str = "/crm/v3/objects/contacts";

async fn keeper(folder: &TempDir, vault: &Arc<Vault>, app: &App, faults: &Arc<Faults>) -> Keeper {
    let store = SqliteStore::open(&folder.path().join("evergrant.db"), vault.clone())
        .await
        .unwrap();
    Keeper::new(KeeperParts {
        apps: vec![app.clone()],
        store: Arc::new(Faulty {
            inner: Arc::new(store),
            faults: faults.clone(),
        }),
        vault: vault.clone(),
        endpoint: TokenEndpoint::new(TlsRoots::Only(vec![])),
        surroundings: Surroundings::default(),
        coordination: Arc::new(ByLease),
        lifeboat: None,
        max_stale: Duration::from_secs(60),
    })
}

fn app(tokens_at: &str, api_base: &str) -> App {
    let url = |path: &str| Url::parse(&format!("{tokens_at}{path}")).unwrap();
    App {
        name: AppName::parse("crm").unwrap(),
        provider: Provider {
            dialect: Dialect::HubSpot,
            authorize_url: url("/oauth/authorize"),
            token_url: url("/oauth/2026-09/token"),
            introspect_url: Some(url("/oauth/2026-09/token/introspect")),
            revoke_url: Some(url("/oauth/2026-09/token/revoke")),
            api_base: Url::parse(api_base).unwrap(),
            client_auth: ClientAuth::Post,
            pkce: false,
            rotation: Rotation::Never,
            account_claim: "hub_id".into(),
        },
        client_id: "sim-client".into(),
        client_secrets: vec![ClientSecret::new("sim-secret")],
        redirect_uri: "http://localhost:8484/oauth/callback".into(),
        scopes: vec!["oauth".into()],
        optional_scopes: vec![],
        refresh_policy: RefreshPolicy::Queue,
        keep_fresh: KeepFresh::Off,
        return_urls: vec![],
        display_name: None,
        support_url: None,
        public_install: false,
        budget: evergrant_domain::call_budget::Setting::Learnt,
        max_wait: None,
    }
}

/// What an answer says about itself: status, class, attempts.
pub(crate) fn gist(answer: &Answer) -> (u16, &str, u32) {
    let header = |name| text(answer.response.headers(), name);
    assert_eq!(header("evergrant-class"), answer.record.class.as_str());
    assert_eq!(header("evergrant-attempts"), answer.record.attempts.to_string());
    assert_eq!(answer.record.status_code, Some(answer.response.status().as_u16()));
    (
        answer.response.status().as_u16(),
        answer.record.class.as_str(),
        answer.record.attempts,
    )
}

/// A header's value, empty where it is missing.
pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |value| value.to_str().unwrap())
}

pub(crate) async fn body(answer: Answer) -> Bytes {
    answer.response.into_body().collect().await.unwrap().to_bytes()
}

/// Why there was no answer, and how often the call was sent.
pub(crate) fn refused(result: Result<Answer, Refusal>) -> (RefusalKind, u32) {
    let refusal = result.expect_err("a refusal");
    (refusal.kind, refusal.record.attempts)
}
