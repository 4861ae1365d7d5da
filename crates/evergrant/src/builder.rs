//! From a few settings to a running engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use evergrant_gateway::{Gateway, GatewayLimits};
use evergrant_keeper::{Keeper, KeeperParts, SystemClock};
use evergrant_oauth::{TlsRoots, TokenEndpoint};
use evergrant_store::{SqliteStore, Vault, VaultKey};
use url::Url;

use crate::app::App;
use crate::engine::Evergrant;
use crate::error::BuildError;

/// How long cached tokens serve while the store does not answer.
const MAX_STALE: Duration = Duration::from_secs(60);

/// How the gateway is limited where nothing is said: what it may keep of a body for a repeat, how large the headers may
/// be, and how long the provider may take until the first byte of its answer.
fn default_limits() -> GatewayLimits {
    GatewayLimits {
        body_kept: 2 * 1024 * 1024,
        body_max: None,
        headers_max: 64 * 1024,
        upstream_timeout: Duration::from_secs(60),
    }
}

/// What an [`Evergrant`] is made of; see [`Evergrant::builder`].
pub struct Builder {
    store: Option<String>,
    key: Option<Key>,
    apps: Vec<App>,
    public_url: Option<Url>,
    max_stale: Duration,
    limits: GatewayLimits,
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
            max_stale: MAX_STALE,
            limits: default_limits(),
        }
    }
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("store", &self.store)
            .field("apps", &self.apps)
            .finish_non_exhaustive()
    }
}

impl Builder {
    /// Where connections are kept: `sqlite://` and a path, or a bare path. The file is created where there is none.
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

    /// How long cached tokens serve while the store does not answer; 60 s where nothing is said.
    #[must_use]
    pub fn max_stale(mut self, max_stale: Duration) -> Self {
        self.max_stale = max_stale;
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
        let path = sqlite_path(&store)?;
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
        let store = SqliteStore::open(&path, vault.clone())
            .await
            .map_err(|source| BuildError::Open { path, source })?;
        let keeper = Keeper::new(KeeperParts {
            apps,
            store: Arc::new(store),
            vault,
            endpoint: TokenEndpoint::new(TlsRoots::Native),
            clock: Arc::new(SystemClock),
            max_stale: self.max_stale,
        });
        keeper.start();
        let gateway = Gateway::new(keeper.clone(), self.limits);
        Ok(Evergrant::new(keeper, gateway, public_url))
    }
}

fn default_public_url() -> Url {
    Url::parse("http://localhost:8484").expect("a literal URL")
}

fn sqlite_path(store: &str) -> Result<PathBuf, BuildError> {
    let path = match store.split_once("://") {
        None => store,
        Some(("sqlite", path)) => path,
        Some((scheme, _)) => {
            return Err(BuildError::UnknownStore {
                scheme: scheme.to_owned(),
            });
        }
    };
    if path.is_empty() {
        Err(BuildError::NoStore)
    } else {
        Ok(PathBuf::from(path))
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

    #[test]
    fn a_store_is_a_path_or_a_sqlite_url() {
        let check = |store: &str, path: &str| {
            assert_eq!(
                sqlite_path(store).expect("a store that is known"),
                PathBuf::from(path),
                "{store}"
            );
        };
        check("evergrant.db", "evergrant.db");
        check("sqlite://evergrant.db", "evergrant.db");
        check("sqlite:///var/lib/evergrant.db", "/var/lib/evergrant.db");
        assert!(matches!(
            sqlite_path("mysql://host/db"),
            Err(BuildError::UnknownStore { .. })
        ));
        assert!(matches!(sqlite_path("sqlite://"), Err(BuildError::NoStore)));
    }
}
