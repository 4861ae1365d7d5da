//! From a few settings to a running engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::ConnectionId;
use evergrant_gateway::{Gateway, GatewayLimits};
use evergrant_keeper::{Keeper, KeeperParts, Lifeboat, LifeboatFolder, Surroundings};
use evergrant_oauth::{TlsRoots, TokenEndpoint};
use evergrant_store::{Store, Vault, VaultKey};
use url::Url;

use crate::app::App;
use crate::coordination::Coordination;
use crate::engine::Evergrant;
use crate::error::BuildError;

/// How long cached tokens serve while the store does not answer.
const MAX_STALE: Duration = Duration::from_secs(60);

/// What an [`Evergrant`] is made of; see [`Evergrant::builder`].
pub struct Builder {
    store: Option<String>,
    key: Option<Key>,
    apps: Vec<App>,
    public_url: Option<Url>,
    coordination: Coordination,
    lifeboat: Option<PathBuf>,
    max_stale: Duration,
    limits: GatewayLimits,
    counted_apart: Vec<ConnectionId>,
}

enum Key {
    Given(VaultKey),
    File(PathBuf),
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            store: None,
            key: None,
            apps: Vec::new(),
            public_url: None,
            coordination: Coordination::default(),
            lifeboat: None,
            max_stale: MAX_STALE,
            limits: GatewayLimits::default(),
            counted_apart: Vec::new(),
        }
    }
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            // What follows may hold a password.
            .field("store", &self.store.as_deref().and_then(scheme))
            .field("apps", &self.apps)
            .field("coordination", &self.coordination)
            .finish_non_exhaustive()
    }
}

impl Builder {
    /// Where connections are kept: `sqlite://` and a path, or a bare path, or `postgres://user:password@host/database`. A
    /// file is created where there is none; a database must exist. Each kind is a feature of this crate.
    #[must_use]
    pub fn store(mut self, store: impl Into<String>) -> Self {
        self.store = Some(store.into());
        self
    }

    /// A file with the vault key: 32 bytes in base64, readable by its owner alone.
    #[must_use]
    pub fn vault_key_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.key = Some(Key::File(path.into()));
        self
    }

    /// The vault key itself.
    #[must_use]
    pub fn vault_key(mut self, key: VaultKey) -> Self {
        self.key = Some(Key::Given(key));
        self
    }

    /// Adds an app: [`App`] or [`evergrant_domain::App`].
    #[must_use]
    pub fn app(mut self, app: impl Into<App>) -> Self {
        self.apps.push(app.into());
        self
    }

    /// Adds several apps.
    #[must_use]
    pub fn apps<I: IntoIterator<Item = A>, A: Into<App>>(mut self, apps: I) -> Self {
        self.apps.extend(apps.into_iter().map(Into::into));
        self
    }

    /// Where the service that answers connect links is reached; `http://localhost:8484` where nothing is said.
    #[must_use]
    pub fn public_url(mut self, public_url: Url) -> Self {
        self.public_url = Some(public_url);
        self
    }

    /// Who waits how for their turn at a connection; [`Coordination::Lease`] where nothing is said.
    #[must_use]
    pub fn coordination(mut self, coordination: Coordination) -> Self {
        self.coordination = coordination;
        self
    }

    /// A folder where new tokens wait, sealed, when the store does not take them, until it does: it must survive a restart, and
    /// is better on another disk than the store. Made where it does not exist. Without one they wait in memory alone, and a
    /// refresh token that rotated meanwhile is lost with the process.
    #[must_use]
    pub fn lifeboat(mut self, folder: impl Into<PathBuf>) -> Self {
        self.lifeboat = Some(folder.into());
        self
    }

    /// How long cached tokens serve while the store does not answer; 60 s where nothing is said.
    #[must_use]
    pub fn max_stale(mut self, max_stale: Duration) -> Self {
        self.max_stale = max_stale;
        self
    }

    /// Connections whose counts have a label `connection` of their own; none where nothing is said. A few: each has the series of
    /// an app.
    #[must_use]
    pub fn counted_apart(mut self, connections: impl IntoIterator<Item = ConnectionId>) -> Self {
        self.counted_apart = connections.into_iter().collect();
        self
    }

    /// The limits of calls through the gateway.
    #[must_use]
    pub fn limits(mut self, limits: GatewayLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Opens the store and starts the engine. Needs a Tokio runtime, on which its background work runs.
    pub async fn build(self) -> Result<Evergrant, BuildError> {
        let store = self.store.ok_or(BuildError::NoStore)?;
        if store.is_empty() || store == "sqlite://" {
            return Err(BuildError::NoStore);
        }
        let key = match self.key.ok_or(BuildError::NoVaultKey)? {
            Key::Given(key) => key,
            Key::File(path) => read_key(&path)?,
        };
        let public_url = self.public_url.unwrap_or_else(default_public_url);
        let mut apps: Vec<evergrant_domain::App> = Vec::with_capacity(self.apps.len());
        for app in self.apps {
            let app = app.build(&public_url)?;
            if apps.iter().any(|earlier| earlier.name == app.name) {
                return Err(BuildError::App {
                    app: app.name.to_string(),
                    what: "another app has this name".to_owned(),
                });
            }
            apps.push(app);
        }
        let vault = Arc::new(Vault::new(key));
        let lifeboat = self.lifeboat.map(LifeboatFolder::open).transpose()?;
        let coordination = self.coordination.before(&store)?;
        let store = open_store(&store, vault.clone()).await?;
        let keeper = Keeper::new(KeeperParts {
            apps,
            store,
            vault,
            endpoint: TokenEndpoint::new(TlsRoots::Native),
            surroundings: Surroundings::default(),
            coordination,
            lifeboat: lifeboat.map(|lifeboat| Arc::new(lifeboat) as Arc<dyn Lifeboat>),
            max_stale: self.max_stale,
        });
        keeper.metrics().name_connections(self.counted_apart);
        keeper.start();
        let gateway = Gateway::new(keeper.clone(), self.limits);
        Ok(Evergrant::new(keeper, gateway, public_url))
    }
}

fn default_public_url() -> Url {
    Url::parse("http://localhost:8484").expect("a literal URL")
}

/// What stands before `://`.
fn scheme(store: &str) -> Option<&str> {
    store.split_once("://").map(|(scheme, _)| scheme)
}

async fn open_store(store: &str, vault: Arc<Vault>) -> Result<Arc<dyn Store>, BuildError> {
    match scheme(store).unwrap_or("sqlite") {
        #[cfg(feature = "sqlite")]
        "sqlite" => {
            let path = PathBuf::from(store.strip_prefix("sqlite://").unwrap_or(store));
            let opened = evergrant_store::SqliteStore::open(&path, vault).await;
            Ok(Arc::new(
                opened.map_err(|source| BuildError::Open { path, source })?,
            ))
        }
        #[cfg(feature = "postgres")]
        "postgres" | "postgresql" => Ok(Arc::new(
            evergrant_store::PostgresStore::open(store, vault).await?,
        )),
        scheme => Err(BuildError::UnknownStore {
            scheme: scheme.to_owned(),
        }),
    }
}

fn read_key(path: &Path) -> Result<VaultKey, BuildError> {
    let unreadable = |source| BuildError::KeyFile {
        path: path.to_owned(),
        source,
    };
    refuse_what_others_can_read(path)?;
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    VaultKey::from_base64(text.trim()).map_err(|source| BuildError::Key {
        path: path.to_owned(),
        source,
    })
}

#[cfg(unix)]
fn refuse_what_others_can_read(path: &Path) -> Result<(), BuildError> {
    use std::os::unix::fs::PermissionsExt as _;
    let metadata = std::fs::metadata(path).map_err(|source| BuildError::KeyFile {
        path: path.to_owned(),
        source,
    })?;
    let mode = metadata.permissions().mode() & 0o777;
    let others = mode & 0o007;
    if others == 0 {
        Ok(())
    } else {
        Err(BuildError::KeyFileOpen {
            path: path.to_owned(),
            mode,
        })
    }
}

#[cfg(not(unix))]
fn refuse_what_others_can_read(_path: &Path) -> Result<(), BuildError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(store: &str) -> Builder {
        Builder::default().store(store).vault_key(VaultKey::generate())
    }

    #[tokio::test]
    async fn a_store_is_a_path_or_a_url_of_a_known_kind() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str| folder.path().join(name).display().to_string();
        for store in [file("a.db"), format!("sqlite://{}", file("b.db"))] {
            named(&store).build().await.expect("a store that is known");
        }
        let error = named("mysql://canary@host/db")
            .build()
            .await
            .expect_err("unknown");
        assert!(matches!(&error, BuildError::UnknownStore { scheme } if scheme == "mysql"));
        assert!(!error.to_string().contains("canary"), "{error}");
        for nothing in ["", "sqlite://"] {
            let error = named(nothing).build().await.expect_err("nothing is named");
            assert!(matches!(error, BuildError::NoStore), "{error}");
        }
    }

    #[tokio::test]
    async fn a_lifeboat_is_made_and_kept_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("a folder");
        let store = folder.path().join("evergrant.db").display().to_string();
        let lifeboat = folder.path().join("boats/lifeboat");
        let build = || named(&store).lifeboat(&lifeboat).build();
        build().await.expect("it is made");
        let mode = lifeboat.metadata().expect("it is there").permissions().mode() & 0o777;
        assert_eq!(mode, 0o700);
        std::fs::set_permissions(&lifeboat, std::fs::Permissions::from_mode(0o755)).expect("own folder");
        let error = build().await.expect_err("everyone can look into it");
        assert!(matches!(error, BuildError::Lifeboat(_)), "{error}");
        assert!(error.to_string().contains("boats/lifeboat"), "{error}");

        let error = named(&store)
            .lifeboat(&store)
            .build()
            .await
            .expect_err("that is a file");
        assert!(error.to_string().contains("exists"), "it says why: {error}");
    }

    #[cfg(feature = "postgres")]
    #[tokio::test]
    async fn rows_are_locked_in_postgresql_alone() {
        let build = named("evergrant.db").coordination(Coordination::RowLock).build();
        let error = build.await.expect_err("it is a file");
        assert!(matches!(error, BuildError::RowLockWithoutPostgres), "{error}");
    }

    #[cfg(feature = "redis")]
    #[tokio::test]
    async fn a_redis_that_is_away_stops_nobody_and_its_password_is_not_shown() {
        let folder = tempfile::tempdir().expect("a folder");
        let with = |url: &str| {
            named(&folder.path().join("evergrant.db").display().to_string())
                .coordination(Coordination::Redis { url: url.to_owned() })
        };
        let away = with("redis://:canary@127.0.0.1:1");
        assert!(!format!("{away:?}").contains("canary"));
        away.build().await.expect("it need not be there");
        let error = with("http://:canary@127.0.0.1")
            .build()
            .await
            .expect_err("no Redis");
        assert!(matches!(error, BuildError::Redis(_)), "{error}");
        assert!(!format!("{error} {error:?}").contains("canary"), "{error}");
    }

    #[cfg(feature = "postgres")]
    #[tokio::test]
    async fn a_database_that_cannot_be_opened_is_an_error_without_its_password() {
        let url = "postgres://evergrant:canary@127.0.0.1:1/evergrant";
        assert!(!format!("{:?}", named(url)).contains("canary"));
        let error = named(url).build().await.expect_err("nobody listens there");
        assert!(matches!(error, BuildError::OpenPostgres(_)), "{error}");
        assert!(!format!("{error} {error:?}").contains("canary"), "{error}");
    }
}
