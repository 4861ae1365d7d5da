//! A simulated HubSpot, a store in a folder of its own, and keepers on it: each is a process of its own to the store.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use evergrant_domain::{
    AccessToken, AccountId, App, AppName, Connection, ConnectionId, Customer, RefreshToken, Timestamp,
};
use evergrant_keeper::{
    Clock, Import, ImportTokens, Keeper, KeeperParts, Lifeboat, Surroundings, SystemClock,
};
use evergrant_oauth::{TlsRoots, TokenEndpoint};
use evergrant_store::{ByLease, PostgresStore, SqliteStore, Store, Vault, VaultKey};
use hubspot_sim::{SimConfig, Simulator};

pub(crate) use crate::app::app;
use crate::steps::Steps;

pub(crate) const HUB: u64 = 1001;
pub(crate) const CLIENT: &str = "sim-client";
/// Longer than any token lives.
pub(crate) const PAST_EXPIRY: Duration = Duration::from_secs(1801);

/// The machine's clock, moved forward.
#[derive(Debug, Default)]
pub(crate) struct MovedClock(AtomicI64);

impl MovedClock {
    pub(crate) fn ahead(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst).unsigned_abs())
    }
}

impl Clock for MovedClock {
    fn now(&self) -> Timestamp {
        SystemClock.now().after(self.ahead())
    }

    fn boot(&self) -> Duration {
        SystemClock.boot() + self.ahead()
    }
}

pub(crate) struct World {
    pub(crate) hubspot: Simulator,
    pub(crate) clock: Arc<MovedClock>,
    folder: tempfile::TempDir,
    /// The database's URL, where the store is not in the folder.
    postgres: Option<String>,
    key: String,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(hubspot_sim::Rotation::Never).await
    }

    pub(crate) async fn with(rotation: hubspot_sim::Rotation) -> Self {
        let config = SimConfig {
            seed: 7,
            rotation,
            ..SimConfig::default()
        };
        Self {
            hubspot: Simulator::start(config).await.unwrap(),
            clock: Arc::default(),
            folder: tempfile::tempdir().unwrap(),
            postgres: None,
            key: VaultKey::generate().to_base64().to_string(),
        }
    }

    /// With a store in a PostgreSQL database of its own.
    pub(crate) async fn on_postgres(rotation: hubspot_sim::Rotation) -> Self {
        Self::with(rotation).await.on(test_postgres::Server::shared())
    }

    /// With a store in a database of its own on this server.
    pub(crate) fn on(self, server: &test_postgres::Server) -> Self {
        self.at(server.url(&server.database()))
    }

    /// With a store at this URL.
    pub(crate) fn at(self, url: String) -> Self {
        Self {
            postgres: Some(url),
            ..self
        }
    }

    /// Moves every clock but the store's.
    pub(crate) fn pass(&self, time: Duration) {
        self.hubspot.advance(time);
        self.clock
            .0
            .fetch_add(i64::try_from(time.as_millis()).unwrap(), Ordering::SeqCst);
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.folder.path().join("evergrant.db")
    }

    /// Where the store is, if it is not in the folder.
    pub(crate) fn database_url(&self) -> &str {
        self.postgres.as_deref().unwrap()
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    pub(crate) fn app(&self) -> App {
        app(&self.hubspot.base_url())
    }

    pub(crate) async fn store(&self) -> (Arc<dyn Store>, Arc<Vault>) {
        let Some(url) = &self.postgres else {
            return open(&self.database(), &self.key).await;
        };
        let vault = Arc::new(Vault::new(VaultKey::from_base64(&self.key).unwrap()));
        let store = PostgresStore::open(url, vault.clone()).await.unwrap();
        (Steps::moved(Arc::new(store), self.clock.clone()), vault)
    }

    /// The database as it is now, to be opened when it has gone on: a backup, or a replica that is behind.
    pub(crate) fn backup(&self) -> PathBuf {
        let backup = self.folder.path().join("backup.db");
        for file in ["", "-wal"] {
            let from = format!("{}{file}", self.database().display());
            if std::path::Path::new(&from).exists() {
                std::fs::copy(&from, format!("{}{file}", backup.display())).unwrap();
            }
        }
        backup
    }

    /// Where lifeboats are kept: all keepers of this world see the same one.
    pub(crate) fn lifeboat(&self) -> PathBuf {
        self.folder.path().join("lifeboat")
    }

    /// A keeper with a store of its own, as another process would have. Its background work does not run.
    pub(crate) async fn keeper(&self) -> Keeper {
        self.keeper_of(self.app()).await
    }

    pub(crate) async fn keeper_of(&self, app: App) -> Keeper {
        let (store, vault) = self.store().await;
        keeper(app, store, vault, self.clock.clone())
    }

    /// A connection to the portal [`HUB`], as fresh as the grant it is made of.
    pub(crate) async fn connected(&self, keeper: &Keeper) -> Connection {
        self.connected_as(keeper, "c1", HUB).await
    }

    pub(crate) async fn connected_as(&self, keeper: &Keeper, id: &str, hub: u64) -> Connection {
        let grant = self.hubspot.grant(CLIENT, hub).unwrap();
        let import = Import {
            id: Some(ConnectionId::parse(id).unwrap()),
            app: AppName::parse("crm").unwrap(),
            customer: Customer::parse("acme").unwrap(),
            tokens: ImportTokens::OAuth {
                refresh_token: RefreshToken::new(grant.refresh_token),
                access_token: Some(AccessToken::new(grant.access_token)),
                expires_at: Some(self.clock.now().after(grant.expires_in)),
                scopes: None,
            },
            account: Some(AccountId::parse(&hub.to_string()).unwrap()),
            labels: vec![],
        };
        keeper.import(import).await.unwrap()
    }

    /// Whether the provider takes this access token.
    pub(crate) async fn accepts(&self, token: &AccessToken) -> bool {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(self.hubspot.address())
            .await
            .unwrap();
        let request = format!(
            "GET /crm/v3/objects/contacts HTTP/1.1\r\nhost: sim\r\nconnection: close\r\nauthorization: Bearer {}\r\n\r\n",
            token.expose()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.starts_with("HTTP/1.1 200")
    }
}

pub(crate) async fn open(database: &std::path::Path, key: &str) -> (Arc<dyn Store>, Arc<Vault>) {
    let vault = Arc::new(Vault::new(VaultKey::from_base64(key).unwrap()));
    let store = SqliteStore::open(database, vault.clone()).await.unwrap();
    (Arc::new(store), vault)
}

pub(crate) fn keeper(app: App, store: Arc<dyn Store>, vault: Arc<Vault>, clock: Arc<dyn Clock>) -> Keeper {
    keeper_with(app, store, vault, clock, None)
}

pub(crate) fn keeper_with(
    app: App,
    store: Arc<dyn Store>,
    vault: Arc<Vault>,
    clock: Arc<dyn Clock>,
    lifeboat: Option<Arc<dyn Lifeboat>>,
) -> Keeper {
    Keeper::new(KeeperParts {
        apps: vec![app],
        store,
        vault,
        endpoint: TokenEndpoint::new(TlsRoots::Native),
        surroundings: Surroundings {
            clock,
            ..Surroundings::default()
        },
        coordination: Arc::new(ByLease),
        lifeboat,
        max_stale: Duration::from_secs(60),
    })
}

/// What every run must hold, whatever happened in it: PROTOCOL's I1 and I2, from the provider's own ledger.
pub(crate) fn assert_redeemed_once(hubspot: &Simulator) {
    let ledger = hubspot.ledger();
    assert_eq!(
        ledger.replays, 0,
        "a refresh token was presented after it had been replaced: {ledger:?}"
    );
    assert!(
        ledger.grant_overlaps_max <= 1,
        "two redemptions of one connection at once: {ledger:?}"
    );
}
