//! The settings, once they are known to be sound.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use evergrant_domain::webhook::Endpoint;
use evergrant_domain::{App, AppName, ConnectionId};
use secrecy::{ExposeSecret, SecretString};
use url::{Url, form_urlencoded};

use crate::network::Network;

/// The whole configuration, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file that was read; `None` where there is none and defaults and environment had to do.
    pub path: Option<PathBuf>,
    /// `[server]`
    pub server: Server,
    /// `[store]`
    pub store: Store,
    /// `[vault]`
    pub vault: Vault,
    /// `[coordination]`
    pub coordination: Coordination,
    /// `[events]`
    pub events: Events,
    /// `[lifeboat]`
    pub lifeboat: Lifeboat,
    /// `[log]`
    pub log: Log,
    /// `[metrics]`
    pub metrics: Metrics,
    /// `[tracing]`
    pub tracing: Tracing,
    /// `[limits]`
    pub limits: Limits,
    /// `[apps.NAME]`, by name.
    pub apps: Vec<App>,
    /// The apps whose provider's journal is read for uninstalls.
    pub journals: Vec<AppName>,
    /// `[[webhooks]]`, in their order.
    pub webhooks: Vec<Endpoint>,
}

/// Where the service is reached.
#[derive(Debug, Clone)]
pub struct Server {
    /// The address to bind. Beyond loopback it is served with TLS, or stands behind a proxy that does.
    pub listen: SocketAddr,
    /// What redirect URIs and links begin with. Without a path it ends in `/`, as URLs do.
    ///
    /// Where nothing is said it is `http://localhost` with the port of `listen`, be that port 0.
    pub public_url: Url,
    /// How long calls in flight may take to finish once the service was told to stop.
    pub drain_timeout: Duration,
    /// On how many threads connections are served; `None` leaves it to the machine.
    pub threads: Option<usize>,
    /// The certificate and its key; `None` means plain HTTP.
    pub tls: Option<TlsFiles>,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<Network>,
}

impl Server {
    /// The other address that `localhost` may stand for: a service on 127.0.0.1 is also served on `::1` and the reverse,
    /// because clients differ in which of them they try. `None` for any other address.
    pub fn other_loopback(&self) -> Option<IpAddr> {
        match self.listen.ip() {
            IpAddr::V4(Ipv4Addr::LOCALHOST) => Some(Ipv6Addr::LOCALHOST.into()),
            IpAddr::V6(Ipv6Addr::LOCALHOST) => Some(Ipv4Addr::LOCALHOST.into()),
            _ => None,
        }
    }
}

/// Where metrics are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metrics {
    /// A listener for them alone, where nobody needs a key; `None` means that they are on the main one, for keys of the role
    /// `metrics`.
    pub listen: Option<SocketAddr>,
    /// Those that have series of their own, with a label `connection`.
    pub connections: Vec<ConnectionId>,
}

/// Where traces of calls go.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tracing {
    /// Where they are sent to, by OTLP over HTTP. `None` means that this file says nothing of it, and the standard variables of
    /// OpenTelemetry decide.
    pub otlp_endpoint: Option<Url>,
    /// Which share of the traces that begin here is kept; `None` means that nothing was said.
    pub sample_ratio: Option<f64>,
}

/// A certificate chain and its private key, both PEM. They are read anew when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate chain, the service's own first.
    pub cert_file: PathBuf,
    /// The private key; not readable by everyone.
    pub key_file: PathBuf,
}

/// Where connections are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Store {
    /// In an SQLite file. It need not exist yet.
    Sqlite {
        /// Which.
        path: PathBuf,
    },
    /// In a PostgreSQL database, which must exist.
    Postgres {
        /// Which.
        url: DatabaseUrl,
    },
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite { path } => path.display().fmt(f),
            Self::Postgres { url } => url.fmt(f),
        }
    }
}

/// The URL of a database as it was written, with the password that may be in it. Whoever opens the store reads the rest.
#[derive(Clone)]
pub struct DatabaseUrl(SecretString);

impl DatabaseUrl {
    pub(crate) fn new(text: &str) -> Self {
        Self(SecretString::from(text.to_owned()))
    }

    /// The same with a password that stood elsewhere, as the parameter that libpq's URLs have for it.
    pub(crate) fn with_password(&self, password: &str) -> Result<Self, &'static str> {
        let url = self.expose();
        let (server, parameters) = url.split_once('?').unwrap_or((url, ""));
        let user = server.rsplit_once('@').map_or("", |(user, _)| user);
        let (_, user) = user.split_once("://").unwrap_or_default();
        let named = |parameter: &str| parameter.starts_with("password=");
        if user.contains(':') || parameters.split('&').any(named) {
            return Err("there is a password in url, too: keep one of them");
        }
        // A form's `+` for a space is none in such a URL.
        let password = form_urlencoded::byte_serialize(password.as_bytes()).collect::<String>();
        let password = password.replace('+', "%20");
        let and = if url.contains('?') { '&' } else { '?' };
        Ok(Self(SecretString::from(format!("{url}{and}password={password}"))))
    }

    /// The whole URL, for whoever opens the store.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

/// Shows hosts and database, and neither user nor password nor parameters, where there can be another password.
impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.expose();
        let server = url.split_once('?').map_or(url, |(server, _)| server);
        let (scheme, server) = server.split_once("://").unwrap_or_default();
        let scheme = if scheme == "postgresql" {
            "postgres"
        } else {
            scheme
        };
        let hosts = server.rsplit_once('@').map_or(server, |(_, hosts)| hosts);
        write!(f, "{scheme}://{hosts}")
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

impl PartialEq for DatabaseUrl {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for DatabaseUrl {}

/// What the tokens are sealed with.
#[derive(Debug, Clone)]
pub struct Vault {
    /// The key; `None` where none was named and there is none at `key_file`.
    pub key: Option<VaultKeyText>,
    /// Where the key lies, or would lie.
    pub key_file: PathBuf,
}

/// A vault key as it was written, base64 presumably. Whoever opens the vault decides whether it is one.
#[derive(Clone)]
pub struct VaultKeyText {
    text: SecretString,
    source: String,
}

impl VaultKeyText {
    pub(crate) fn new(text: &str, source: String) -> Self {
        Self {
            text: SecretString::from(text.trim().to_owned()),
            source,
        }
    }

    /// The bare text, without white space around it.
    pub fn expose(&self) -> &str {
        self.text.expose_secret()
    }

    /// Where it was read, for messages: a path or the name of a variable.
    pub fn source(&self) -> &str {
        &self.source
    }
}

impl fmt::Debug for VaultKeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VaultKeyText(.. from {})", self.source)
    }
}

/// How much history is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Events {
    /// For how long.
    pub keep: Duration,
    /// How many events of each connection.
    pub keep_per_connection: u32,
}

/// How processes that share a store stay in step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coordination {
    /// Who waits how for their turn at a connection.
    pub mode: CoordinationMode,
    /// How long cached tokens serve while the store cannot be reached.
    pub max_stale: Duration,
}

/// A way of waiting. Processes with different ones are one fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CoordinationMode {
    /// Whoever finds a lease taken looks again a little later.
    Lease,
    /// In a queue before a row of the store's PostgreSQL database.
    RowLock,
    /// In a queue in Redis.
    Redis {
        /// Which.
        url: DatabaseUrl,
    },
}

/// Where answers are kept that the store does not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lifeboat {
    /// A folder that outlives the process. It need not exist yet.
    pub dir: PathBuf,
}

/// What is logged.
#[derive(Debug, Clone)]
pub struct Log {
    /// Which calls through the gateway get a line.
    pub calls: LogCalls,
}

/// Which calls through the gateway get a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogCalls {
    /// None.
    Off,
    /// Those that got 401, 403, 429 or 5xx, were repeated, or left with an expired token.
    Failures,
    /// Every one.
    All,
}

/// How much of it one caller, or all of them, may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections of callers at a time.
    pub connections: usize,
    /// Calls through the gateway at a time, until the last byte of their answers.
    pub in_flight: usize,
    /// The same for one API key.
    pub in_flight_per_key: usize,
    /// The largest headers of a request, names and values together, in bytes.
    pub header_bytes: usize,
    /// The largest body of a call through the gateway, in bytes; `None` for any.
    pub body_bytes: Option<u64>,
    /// How long a request's headers may take.
    pub header_timeout: Duration,
    /// How long a call's body may keep the gateway waiting for more of it.
    pub body_timeout: Duration,
    /// How long a provider may take until the first byte of its answer.
    pub upstream_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 8192,
            in_flight: 8192,
            in_flight_per_key: 4096,
            header_bytes: 64 * 1024,
            body_bytes: None,
            header_timeout: Duration::from_secs(15),
            body_timeout: Duration::from_secs(30),
            upstream_timeout: Duration::from_secs(60),
        }
    }
}
