//! The configured store, worked on by this process: one more worker beside whatever runs on it.

use std::path::Path;

use evergrant::{BuildError, Coordination, EventsKept, Evergrant, GatewayLimits, VaultKey};
use evergrant_config::{Config, CoordinationMode, Store};
use evergrant_server::{Service, ServiceSettings};
use evergrant_store::{OpenError, postgres};

use crate::args::Globals;
use crate::failure::{Exit, Failure};

/// Reads the configuration that the command line and the environment name.
pub(crate) fn configuration(globals: &Globals) -> Result<Config, Failure> {
    configuration_at(globals.config.as_deref())
}

/// Reads the configuration again, from where it was read before.
pub(crate) fn configuration_at(file: Option<&Path>) -> Result<Config, Failure> {
    // What is not UTF-8 is no setting of ours.
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Ok(evergrant_config::load(file, environment)?)
}

/// Opens the store and puts engine and service on it.
pub(crate) async fn open(config: &Config) -> Result<Service, Failure> {
    let key = config.vault.key.as_ref().ok_or_else(|| {
        Failure::usage(format!("there is no vault key: {} does not exist", config.vault.key_file.display()))
            .advise("`evergrant init` writes one, with a configuration and a store; --config names another configuration.")
    })?;
    let key = VaultKey::from_base64(key.expose())
        .map_err(|error| Failure::usage(format!("{}: {error}", key.source())))?;
    let store = match &config.store {
        Store::Sqlite { path } => {
            let path = path
                .to_str()
                .ok_or_else(|| Failure::usage("the path of the store is not UTF-8"))?;
            format!("sqlite://{path}")
        }
        Store::Postgres { url } => url.expose().to_owned(),
    };
    let engine = Evergrant::builder()
        .store(store)
        .vault_key(key)
        .apps(config.apps.clone())
        .public_url(config.server.public_url.clone())
        .coordination(match &config.coordination.mode {
            CoordinationMode::Lease => Coordination::Lease,
            CoordinationMode::RowLock => Coordination::RowLock,
            CoordinationMode::Redis { url } => Coordination::Redis {
                url: url.expose().to_owned(),
            },
        })
        .lifeboat(&config.lifeboat.dir)
        .max_stale(config.coordination.max_stale)
        .limits(gateway_limits(config))
        .counted_apart(config.metrics.connections.clone())
        .build()
        .await?;
    engine.keeper().keep_events(events_kept(config));
    let service = Service::new(engine, settings(config));
    service.tell(config.webhooks.clone());
    Ok(service)
}

/// What of a configuration a running service goes by, and takes up anew when it is read again.
pub(crate) fn settings(config: &Config) -> ServiceSettings {
    ServiceSettings {
        calls: config.log.calls,
        trusted_proxies: config.server.trusted_proxies.clone(),
        limits: config.limits,
    }
}

/// How much history is kept.
pub(crate) fn events_kept(config: &Config) -> EventsKept {
    EventsKept {
        keep: config.events.keep,
        per_connection: config.events.keep_per_connection,
    }
}

/// The gateway's part of the limits.
pub(crate) fn gateway_limits(config: &Config) -> GatewayLimits {
    GatewayLimits {
        body_max: config.limits.body_bytes,
        headers_max: config.limits.header_bytes,
        upstream_timeout: config.limits.upstream_timeout,
        ..GatewayLimits::default()
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        let exit = match &error {
            BuildError::Open { source, .. } => match source {
                OpenError::NoFolder { .. }
                | OpenError::File { .. }
                | OpenError::NotADatabase { .. }
                | OpenError::NewerSchema { .. }
                | OpenError::WrongKey => Exit::Usage,
                OpenError::Unavailable { .. } => Exit::Unavailable,
                OpenError::OldSqlite { .. } => Exit::Failed,
            },
            BuildError::OpenPostgres(postgres::OpenError::Unavailable { .. }) => Exit::Unavailable,
            // Whoever watches over the service starts it again.
            BuildError::Lifeboat(refused) if refused.may_pass() => Exit::Unavailable,
            BuildError::OpenPostgres(_)
            | BuildError::NoStore
            | BuildError::UnknownStore { .. }
            | BuildError::NoVaultKey
            | BuildError::KeyFile { .. }
            | BuildError::KeyFileOpen { .. }
            | BuildError::Key { .. }
            | BuildError::RowLockWithoutPostgres
            | BuildError::Redis(_)
            | BuildError::Lifeboat(_)
            | BuildError::App { .. } => Exit::Usage,
        };
        Self::new(exit, error)
    }
}
