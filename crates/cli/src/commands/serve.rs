//! `evergrant serve`: the service, from start to drained.

use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;

use evergrant_config::Config;
use evergrant_server::{BindError, Certificates, ListenSettings, MetricsServer, Server, Service};
use tokio_util::sync::CancellationToken;

use crate::args::Globals;
use crate::failure::{Exit, Failure};
use crate::otlp::Otlp;
use crate::output::print_line;
use crate::signals::{self, Hangups};
use crate::{local, log, otlp};

pub(crate) async fn run(globals: &Globals) -> Result<(), Failure> {
    let config = local::configuration(globals)?;
    let traces = Otlp::asked_for(&config.tracing)?;
    let _log = log::start(Some("info"), traces.as_ref().map(Otlp::tracer))?;
    raise_open_files_limit();
    let mut asked_to_stop = Box::pin(signals::stop()?);
    let hangups = Hangups::listen()?;
    // A store that does not answer is waited for; whoever is asked to stop meanwhile has nothing to finish.
    let service = tokio::select! {
        service = local::open(&config) => service?,
        () = &mut asked_to_stop => {
            tracing::info!(event = "stopped", "asked to stop before the store was open");
            return Ok(());
        }
    };
    if traces.is_some() {
        service.trace_by(otlp::parents());
    }
    let engine = service.engine().clone();
    engine.keeper().read_journals_of(config.journals.clone());
    let (server, metrics) = match bind(service.clone(), &config).await {
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
    let threads = config.server.threads;
    let stop = CancellationToken::new();
    let reload = Reload {
        file: globals.config.clone(),
        started_with: config,
        service,
        certificates: server.certificates(),
    };
    let reloading = tokio::spawn(reload.when_asked(hangups));
    let stopping = stop.clone();
    tokio::spawn(async move {
        asked_to_stop.await;
        tracing::info!(
            event = "stopping",
            "asked to stop: calls and redemptions in flight finish first"
        );
        stopping.cancel();
    });
    // The kernel's own work for them, the engine, the store and the providers' TLS take as much again. On more threads each is woken
    // more often and for less, which costs more than it brings.
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let threads = threads.unwrap_or(processors.div_ceil(2));
    server.on_threads(threads).run(stop).await;
    reloading.abort();
    if let Some(metrics) = metrics {
        metrics.abort();
    }
    tracing::info!(
        event = "stopped",
        "everything in flight has finished and is saved"
    );
    if let Some(traces) = traces {
        traces.flush().await;
    }
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

/// What a hangup reads the configuration again for.
struct Reload {
    file: Option<PathBuf>,
    started_with: Config,
    service: Service,
    certificates: Option<Arc<Certificates>>,
}

impl Reload {
    /// Reads the configuration again at each hangup. Apps, limits, the log and TLS files change at once, and no call is dropped
    /// for it; a configuration that is broken, or has lost all its apps, changes nothing.
    async fn when_asked(self, mut hangups: Hangups) {
        while hangups.next().await.is_some() {
            let taken = local::configuration_at(self.file.as_deref())
                .map_err(|failure| format!("is broken and changes nothing: {failure}"))
                .and_then(|config| self.take(config));
            match taken {
                Ok(apps) => tracing::info!(
                    event = "configuration_read",
                    apps,
                    "the configuration was read again"
                ),
                Err(why) => tracing::error!(event = "configuration_refused", "the configuration {why}"),
            }
        }
    }

    /// Returns how many apps there are.
    fn take(&self, config: Config) -> Result<usize, String> {
        let keeper = self.service.engine().keeper();
        // Half a file reads like this, too: its apps come last, and whoever writes it may not have got there yet.
        if config.apps.is_empty() && !keeper.apps().is_empty() {
            return Err(
                "names no app any more and changes nothing: the file may be empty or cut off; to run without apps, restart"
                    .to_owned(),
            );
        }
        if let (Some(certificates), Some(files)) = (&self.certificates, &config.server.tls) {
            certificates.replace(files).map_err(|error| {
                format!("names TLS files that cannot be used and changes nothing: {error}")
            })?;
        }
        let changed = needs_a_restart(&self.started_with, &config);
        if !changed.is_empty() {
            tracing::warn!(
                event = "restart_needed",
                "{} changed, which takes effect at the next start",
                changed.join(", ")
            );
        }
        self.service.change(local::settings(&config));
        let gateway = self.service.engine().gateway();
        gateway.limit(local::gateway_limits(&config));
        keeper.keep_events(local::events_kept(&config));
        self.service.tell(config.webhooks);
        keeper.read_journals_of(config.journals);
        let apps = config.apps.len();
        keeper.set_apps(config.apps);
        Ok(apps)
    }
}

/// The sections whose settings are only read at the start. Their `Debug` texts hold all of their settings
/// and no secret; where there may be a password in a URL, it is seen by comparing.
fn needs_a_restart(before: &Config, after: &Config) -> Vec<&'static str> {
    let sections = |config: &Config| {
        let server = evergrant_config::Server {
            // Which files they are may change, but not whether there are any.
            tls: None,
            trusted_proxies: Vec::new(),
            ..config.server.clone()
        };
        [
            ("[server]", format!("{server:?} {}", config.server.tls.is_some())),
            ("[vault]", format!("{:?}", config.vault)),
            ("[lifeboat]", format!("{:?}", config.lifeboat)),
            ("[metrics]", format!("{:?}", config.metrics)),
            ("[tracing]", format!("{:?}", config.tracing)),
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
