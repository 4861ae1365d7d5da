//! `evergrant serve`: the service, from start to drained.

use std::num::NonZero;
use std::path::PathBuf;

use evergrant::Evergrant;
use evergrant_config::Config;
use evergrant_server::{BindError, ListenSettings, MetricsServer, Server, Service};
use tokio_util::sync::CancellationToken;

use crate::args::Globals;
use crate::failure::{Exit, Failure};
use crate::output::print_line;
use crate::signals::{self, Hangups};
use crate::{local, log};

pub(crate) async fn run(globals: &Globals) -> Result<(), Failure> {
    let _log = log::start(Some("info"))?;
    raise_open_files_limit();
    let config = local::configuration(globals)?;
    let asked_to_stop = signals::stop()?;
    let hangups = Hangups::listen()?;
    let service = local::open(&config).await?;
    let engine = service.engine().clone();
    let (server, metrics) = match bind(service, &config).await {
        Ok(bound) => bound,
        Err(failure) => {
            engine.shutdown().await;
            return Err(failure);
        }
    };
    say_what_is_missing(&config);
    let scheme = if config.server.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let ready = format!("evergrant listens on {scheme}://{}", server.address());
    // A service whose starter does not listen is a service all the same.
    if let Err(failure) = print_line(ready)
        && failure.exit != Exit::Done
    {
        tracing::warn!(event = "output_failed", "{failure}");
    }
    tracing::info!(
        event = "started",
        address = %server.address(),
        public_url = %config.server.public_url,
        apps = config.apps.len(),
        version = env!("CARGO_PKG_VERSION"),
        "the service takes calls"
    );
    // Until the end of the drain, and one can see how it goes.
    let metrics = metrics.map(|metrics| {
        tracing::info!(event = "metrics", address = %metrics.address(), "metrics are read here, without a key");
        tokio::spawn(metrics.run(CancellationToken::new()))
    });
    let stop = CancellationToken::new();
    let reloading = tokio::spawn(reload_when_asked(hangups, globals.config.clone(), config, engine));
    let stopping = stop.clone();
    tokio::spawn(async move {
        asked_to_stop.await;
        tracing::info!(
            event = "stopping",
            "asked to stop: calls and redemptions in flight finish first"
        );
        stopping.cancel();
    });
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    server.on_threads(threads).run(stop).await;
    reloading.abort();
    if let Some(metrics) = metrics {
        metrics.abort();
    }
    tracing::info!(
        event = "stopped",
        "everything in flight has finished and is saved"
    );
    Ok(())
}

/// The service's listener, and the one for metrics where there is one.
async fn bind(service: Service, config: &Config) -> Result<(Server, Option<MetricsServer>), Failure> {
    let metrics = match config.metrics.listen {
        Some(address) => {
            let bound = MetricsServer::bind(service.clone(), address).await;
            Some(bound.map_err(Failure::failed)?)
        }
        None => None,
    };
    Ok((
        Server::bind(service, ListenSettings::from(&config.server)).await?,
        metrics,
    ))
}

/// A call takes two files, its caller's connection and the provider's. What systems begin with, 1,024 mostly, is there for programs
/// that cannot take more; this one may as well take what it is allowed.
#[cfg(unix)]
fn raise_open_files_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let allowed = getrlimit(Resource::Nofile).maximum;
    // Where this is refused, the system's own limit stays.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: allowed,
            maximum: allowed,
        },
    );
}

/// Elsewhere there is no such limit.
#[cfg(not(unix))]
fn raise_open_files_limit() {}

impl From<BindError> for Failure {
    fn from(error: BindError) -> Self {
        match error {
            BindError::InUse { .. } | BindError::Address { .. } => Self::failed(error),
            BindError::Tls(error) => Self::usage(error),
        }
    }
}

fn say_what_is_missing(config: &Config) {
    if config.apps.is_empty() {
        let file = config
            .path
            .as_ref()
            .map_or_else(|| "evergrant.toml".to_owned(), |file| file.display().to_string());
        tracing::warn!(
            event = "no_apps",
            "there are no apps yet: add an [apps.NAME] section with client_id and client_secret_file to {file}, then send SIGHUP"
        );
    }
    if config.server.listen.port() == 0 && config.server.public_url.port() == Some(0) {
        tracing::warn!(
            event = "no_public_url",
            "links cannot name the port that was picked: give [server] public_url"
        );
    }
}

/// Reads the configuration again at each hangup. Apps change at once; a configuration that is broken, or has lost all its apps,
/// changes nothing.
async fn reload_when_asked(
    mut hangups: Hangups,
    file: Option<PathBuf>,
    started_with: Config,
    engine: Evergrant,
) {
    while hangups.next().await.is_some() {
        match local::configuration_at(file.as_deref()) {
            // Half a file reads like this, too: its apps come last, and whoever writes it may not have got there yet.
            Ok(config) if config.apps.is_empty() && !engine.keeper().apps().is_empty() => {
                tracing::error!(
                    event = "configuration_refused",
                    "the configuration names no app any more and changes nothing: the file may be empty or cut off; to run without apps, restart"
                );
            }
            Ok(config) => {
                let changed = needs_a_restart(&started_with, &config);
                if !changed.is_empty() {
                    tracing::warn!(
                        event = "restart_needed",
                        "{} changed, which takes effect at the next start",
                        changed.join(", ")
                    );
                }
                let apps = config.apps.len();
                engine.keeper().set_apps(config.apps);
                tracing::info!(
                    event = "configuration_read",
                    apps,
                    "the configuration was read again"
                );
            }
            Err(failure) => {
                tracing::error!(
                    event = "configuration_refused",
                    "the configuration is broken and changes nothing: {failure}"
                );
            }
        }
    }
}

/// The sections whose settings are only read at the start. Their `Debug` texts hold all of their settings
/// and no secret; where there may be a password in a URL, it is seen by comparing.
fn needs_a_restart(before: &Config, after: &Config) -> Vec<&'static str> {
    let sections = |config: &Config| {
        [
            ("[server]", format!("{:?}", config.server)),
            ("[vault]", format!("{:?}", config.vault)),
            ("[lifeboat]", format!("{:?}", config.lifeboat)),
            ("[log]", format!("{:?}", config.log)),
            ("[metrics]", format!("{:?}", config.metrics)),
        ]
    };
    let pairs = sections(before).into_iter().zip(sections(after));
    let changed = pairs
        .filter(|(before, after)| before != after)
        .map(|((name, _), _)| name);
    let store = (before.store != after.store).then_some("[store]");
    let coordination = (before.coordination != after.coordination).then_some("[coordination]");
    changed.chain(store).chain(coordination).collect()
}

#[cfg(all(test, unix))]
mod tests {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    use super::*;

    #[test]
    fn it_takes_as_many_files_as_it_is_allowed() {
        let maximum = getrlimit(Resource::Nofile).maximum;
        let current = Some(512);
        setrlimit(Resource::Nofile, Rlimit { current, maximum }).expect("fewer are allowed");
        raise_open_files_limit();
        assert_eq!(getrlimit(Resource::Nofile).current, maximum);
    }
}
