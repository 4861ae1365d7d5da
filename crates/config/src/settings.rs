//! What the sections of the configuration may say, apps apart.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use evergrant_domain::{App, ConnectionId};
use url::{Host, Url};

use crate::config::{
    Coordination, CoordinationMode, DatabaseUrl, Events, Lifeboat, Limits, Log, LogCalls, Metrics, Server,
    Store, TlsFiles, Tracing, Vault, VaultKeyText,
};
use crate::network::Network;
use crate::section::{At, Section};
use crate::{Config, apps, secret_file, webhooks};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// So many connections may have series of their own.
const COUNTED_APART_MAX: usize = 100;

/// Reads everything. What is returned is only sound where no problem was noted.
pub(crate) fn read(root: &mut Section<'_>) -> Config {
    let server = root.section("server", server);
    let store = root.section("store", store);
    let vault = root.section("vault", vault);
    let coordination = root.section("coordination", |section| coordination(section, &store));
    let events = root.section("events", events);
    let lifeboat = root.section("lifeboat", lifeboat);
    let log = root.section("log", log);
    let metrics = root.section("metrics", |section| metrics(section, server.listen));
    let tracing = root.section("tracing", tracing);
    let limits = root.section("limits", limits);
    let mut journals = Vec::new();
    let apps: Vec<App> = root.section("apps", |apps| {
        let mut one = |name: &str, app: &mut Section<'_>| {
            let (app, reads_journal) = apps::read(name, app, &server.public_url);
            journals.extend(app.as_ref().filter(|_| reads_journal).map(|app| app.name.clone()));
            app
        };
        apps.sections(&mut one).into_iter().flatten().collect()
    });
    let webhooks = webhooks::read(root, &apps);
    Config {
        path: None,
        server,
        store,
        vault,
        coordination,
        events,
        lifeboat,
        log,
        metrics,
        tracing,
        limits,
        apps,
        journals,
        webhooks,
    }
}

fn server(section: &mut Section<'_>) -> Server {
    let reading = section.reading;
    let listen = section
        .text("listen")
        .and_then(|text| reading.parsed(text, |text| listen_address(text)));
    let plain_http = section.choice("plain_http", &[("behind-proxy", ())]);
    let tls = section.section("tls", tls_files);
    let (tls, plain_http) = reading.one_of_two(tls, plain_http);

    if let Some(listen) = &listen
        && !listen.value.ip().is_loopback()
        && tls.is_none()
        && plain_http.is_none()
    {
        let reason = format!(
            "{} can be reached from other machines, and tokens would cross the network in clear: \
             give tls = {{ cert_file = \"…\", key_file = \"…\" }}, \
             or plain_http = \"behind-proxy\" where a proxy in front of it speaks TLS",
            listen.value
        );
        reading.refuse(&listen.place, reason);
    }

    let listen = listen.map_or_else(default_listen, |listen| listen.value);
    let public_url = section
        .text("public_url")
        .and_then(|text| reading.parsed(text, |text| public_url(text)));
    let trusted_proxies = section.texts("trusted_proxies").and_then(|texts| {
        reading.parsed(texts, |texts| {
            texts
                .iter()
                .map(|text| text.parse())
                .collect::<Result<Vec<Network>, _>>()
        })
    });
    Server {
        listen,
        public_url: public_url.map_or_else(|| default_public_url(listen, tls.is_some()), |url| url.value),
        drain_timeout: section
            .duration("drain_timeout", SECOND..=HOUR)
            .map_or(Duration::from_secs(25), |at| at.value),
        threads: section
            .number("threads", 1..=256)
            .and_then(|at| usize::try_from(at.value).ok()),
        tls: tls.and_then(|tls| tls.value),
        trusted_proxies: trusted_proxies.map_or_else(Vec::new, |networks| networks.value),
    }
}

fn default_listen() -> SocketAddr {
    ([127, 0, 0, 1], 8484).into()
}

fn listen_address(text: &str) -> Result<SocketAddr, &'static str> {
    let numeric = match text.strip_prefix("localhost:") {
        Some(port) => &format!("127.0.0.1:{port}"),
        None => text,
    };
    numeric
        .parse()
        .map_err(|_| "not an address and a port: write it like \"127.0.0.1:8484\" or \"[::1]:8484\"")
}

/// `localhost` and not the address: HubSpot takes no other host over plain HTTP.
fn default_public_url(listen: SocketAddr, tls: bool) -> Url {
    let scheme = if tls { "https" } else { "http" };
    Url::parse(&format!("{scheme}://localhost:{}", listen.port())).expect("a port makes no URL invalid")
}

fn public_url(text: &str) -> Result<Url, String> {
    let url = endpoint_url(text)?;
    match url.query() {
        Some(_) => Err(format!(
            "{text:?} has a query: links are made by adding a path to it"
        )),
        None => Ok(url),
    }
}

/// A URL that credentials may be sent to or come back on: https, or http to this machine itself.
pub(crate) fn endpoint_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("{text:?} is not a URL: {error}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user name or password".to_owned());
    }
    if url.fragment().is_some() {
        return Err(format!(
            "{text:?} has a fragment (#…), which is never sent: remove it"
        ));
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_loopback(&url) => Ok(url),
        "http" => Err(format!(
            "{text:?} would send secrets in clear: plain http is for loopback only, use https"
        )),
        _ => Err(format!(
            "{text:?} must begin with https://, or http:// on loopback"
        )),
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// The two files, where TLS was asked for: `None` inside where a problem was noted about them.
fn tls_files(section: &mut Section<'_>) -> Option<At<Option<TlsFiles>>> {
    let reading = section.reading;
    for key in ["cert_file", "key_file"] {
        section.require(&[key], "is missing: tls needs cert_file and key_file, both PEM");
    }
    let cert_file = section.path("cert_file").and_then(|file| {
        reading.parsed(file, |path| {
            secret_file::read(path)?;
            Ok::<_, String>(path.clone())
        })
    });
    let key_file = section.path("key_file").and_then(|file| {
        reading.parsed(file, |path| {
            secret_file::read(path)?;
            secret_file::refuse_open(path)?;
            Ok::<_, String>(path.clone())
        })
    });
    let files = cert_file.zip(key_file).map(|(cert, key)| TlsFiles {
        cert_file: cert.value,
        key_file: key.value,
    });
    section.is_given().then(|| At {
        value: files,
        place: section.place.clone(),
    })
}

fn store(section: &mut Section<'_>) -> Store {
    let reading = section.reading;
    let url = section.text("url");
    let has_url = url.is_some();
    let store = url.and_then(|text| {
        let place = text.place.clone();
        reading.parsed(text, |url| match kind_of_store(url)? {
            Kind::Sqlite(path) => Ok::<_, String>(Store::Sqlite {
                path: reading.path(&place, path),
            }),
            Kind::Postgres => Ok(Store::Postgres {
                url: DatabaseUrl::new(url),
            }),
        })
    });
    let password_file = section.path("password_file");
    let store = match (store, password_file) {
        (Some(store), Some(file)) => {
            let with_password = reading.parsed(file, |file| match &store.value {
                Store::Postgres { url } => {
                    let with_password = url.with_password(&secret_file::read_one(file)?)?;
                    secret_file::refuse_open(file)?;
                    Ok(Store::Postgres { url: with_password })
                }
                Store::Sqlite { .. } => Err(NO_PASSWORD.to_owned()),
            });
            with_password.or(Some(store))
        }
        (None, Some(file)) => {
            // A url that was refused has been told about already.
            if !has_url {
                reading.refuse(&file.place, NO_PASSWORD);
            }
            None
        }
        (store, None) => store,
    };
    store.map_or_else(
        || Store::Sqlite {
            path: reading.beside_file("evergrant.db".as_ref()),
        },
        |store| store.value,
    )
}

const NO_PASSWORD: &str = "is for a url that begins with postgres://: SQLite asks for no password";

enum Kind<'a> {
    Sqlite(&'a str),
    Postgres,
}

/// `sqlite://evergrant.db` is beside the file, `sqlite:///var/lib/evergrant.db` is where it says. No message quotes the URL:
/// it may hold a password.
fn kind_of_store(url: &str) -> Result<Kind<'_>, String> {
    match url.split_once("://") {
        Some(("sqlite", "")) => Err("names no file: write \"sqlite://evergrant.db\"".to_owned()),
        Some(("sqlite", path)) if path.contains(['?', '#']) => {
            Err("takes no parameters: write \"sqlite://\" and a path".to_owned())
        }
        Some(("sqlite", path)) => Ok(Kind::Sqlite(path)),
        Some(("postgres" | "postgresql", "")) => {
            Err("names no database: write \"postgres://user:password@host/database\"".to_owned())
        }
        Some(("postgres" | "postgresql", _)) => Ok(Kind::Postgres),
        _ => Err(
            "must be \"sqlite://\" and a path, like \"sqlite://evergrant.db\", or \"postgres://user:password@host/database\""
                .to_owned(),
        ),
    }
}

fn vault(section: &mut Section<'_>) -> Vault {
    let reading = section.reading;
    let key = section.text("key");
    let named = section.path("key_file");
    let key_file = match &named {
        Some(named) => named.value.clone(),
        None => reading.beside_file("evergrant.key".as_ref()),
    };
    if let Some(key) = &key
        && !key.place.is_variable()
    {
        let reason =
            "a key does not belong in this file: give key_file, or EVERGRANT_VAULT__KEY in the environment";
        reading.refuse(&key.place, reason);
        return Vault { key: None, key_file };
    }
    let key = match reading.one_of_two(key, named) {
        (Some(key), _) => Some(VaultKeyText::new(&key.value, "EVERGRANT_VAULT__KEY".to_owned())),
        (None, Some(named)) => reading.parsed(named, |path| key_from(path)).map(|key| key.value),
        // Where nobody named a file there may be none: before `init`, or for commands that work over the network.
        (None, None) if !key_file.exists() => None,
        (None, None) => match key_from(&key_file) {
            Ok(key) => Some(key),
            Err(reason) => {
                section.refuse_absent("key_file", reason);
                None
            }
        },
    };
    Vault { key, key_file }
}

fn key_from(path: &Path) -> Result<VaultKeyText, String> {
    let text = secret_file::read_one(path)?;
    secret_file::refuse_open(path)?;
    Ok(VaultKeyText::new(&text, path.display().to_string()))
}

fn coordination(section: &mut Section<'_>, store: &Store) -> Coordination {
    let reading = section.reading;
    // It may be given whatever the mode, so that one environment serves processes of several modes.
    let redis_url = section
        .text("redis_url")
        .map(|url| reading.parsed(url, |url| redis_url(url)));
    let mode = section.text("mode").and_then(|mode| {
        reading.parsed(mode, |mode| match (mode.as_str(), store, &redis_url) {
            ("row_lock", Store::Postgres { .. }, _) => Ok(CoordinationMode::RowLock),
            ("row_lock", Store::Sqlite { .. }, _) => {
                Err("locks rows of PostgreSQL, and the store is an SQLite \
                 file: give a store.url that begins with postgres://, or leave it at \"lease\""
                    .to_owned())
            }
            ("redis", _, Some(Some(url))) => Ok(CoordinationMode::Redis {
                url: url.value.clone(),
            }),
            // What is wrong with the URL is told there.
            ("lease", ..) | ("redis", _, Some(None)) => Ok(CoordinationMode::Lease),
            ("redis", _, None) => {
                Err("needs redis_url, like \"redis://host:6379\", or leave it at \"lease\"".to_owned())
            }
            (other, ..) => Err(format!(
                "must be \"lease\" or \"row_lock\" or \"redis\", not {other:?}"
            )),
        })
    });
    let max_stale = section.duration("max_stale", SECOND..=24 * HOUR);
    Coordination {
        mode: mode.map_or(CoordinationMode::Lease, |mode| mode.value),
        max_stale: max_stale.map_or(Duration::from_secs(60), |at| at.value),
    }
}

fn events(section: &mut Section<'_>) -> Events {
    let keep = section.duration("keep", HOUR..=3650 * 24 * HOUR);
    let keep_per_connection = section.number("keep_per_connection", 10..=1_000_000);
    Events {
        keep: keep.map_or(90 * 24 * HOUR, |at| at.value),
        keep_per_connection: keep_per_connection
            .and_then(|at| u32::try_from(at.value).ok())
            .unwrap_or(1000),
    }
}

/// No message quotes the URL: it may hold a password.
fn redis_url(text: &str) -> Result<DatabaseUrl, &'static str> {
    let hint = "must be \"redis://\" or, with TLS, \"rediss://\" and a host, like \"rediss://user:password@host:6379\"";
    let url = Url::parse(text).map_err(|_| hint)?;
    let named = url.host_str().is_some_and(|host| !host.is_empty());
    match url.scheme() {
        "redis" | "rediss" if named => Ok(DatabaseUrl::new(text)),
        _ => Err(hint),
    }
}

fn lifeboat(section: &mut Section<'_>) -> Lifeboat {
    let dir = section.path("dir").map(|dir| dir.value);
    Lifeboat {
        dir: dir.unwrap_or_else(|| section.reading.beside_file("lifeboat".as_ref())),
    }
}

fn log(section: &mut Section<'_>) -> Log {
    let calls = section.choice(
        "calls",
        &[
            ("off", LogCalls::Off),
            ("failures", LogCalls::Failures),
            ("all", LogCalls::All),
        ],
    );
    Log {
        calls: calls.map_or(LogCalls::Failures, |calls| calls.value),
    }
}

fn metrics(section: &mut Section<'_>, main: SocketAddr) -> Metrics {
    let reading = section.reading;
    let listen = section.text("listen").and_then(|text| {
        reading.parsed(text, |text| match listen_address(text)? {
            address if address == main && address.port() != 0 => Err(
                "is the address of [server] listen: metrics are there anyway, for keys of the role metrics",
            ),
            address => Ok(address),
        })
    });
    let connections = section.texts("connections").and_then(|ids| {
        reading.parsed(ids, |ids| {
            if ids.len() > COUNTED_APART_MAX {
                return Err(format!(
                    "names {} connections, and each has the series of an app: at most {COUNTED_APART_MAX}",
                    ids.len()
                ));
            }
            let id = |id: &String| ConnectionId::parse(id).map_err(|error| format!("{id:?}: {error}"));
            ids.iter().map(id).collect::<Result<Vec<_>, _>>()
        })
    });
    Metrics {
        listen: listen.map(|listen| listen.value),
        connections: connections.map(|ids| ids.value).unwrap_or_default(),
    }
}

fn tracing(section: &mut Section<'_>) -> Tracing {
    let reading = section.reading;
    let endpoint = section.text("otlp_endpoint").and_then(|text| {
        reading.parsed(text, |text| match Url::parse(text) {
            Ok(url) if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() => {
                Err("must be an http or https address, like \"http://localhost:4318/v1/traces\"")
            }
            Ok(url) if !url.username().is_empty() || url.password().is_some() => {
                Err("must not hold a user name or password: OTEL_EXPORTER_OTLP_HEADERS can carry what the collector asks for")
            }
            Ok(url) => Ok(url),
            Err(_) => Err("is no address: write it like \"http://localhost:4318/v1/traces\""),
        })
    });
    let ratio = section.ratio("sample_ratio");
    Tracing {
        otlp_endpoint: endpoint.map(|endpoint| endpoint.value),
        sample_ratio: ratio.map(|ratio| ratio.value),
    }
}

fn limits(section: &mut Section<'_>) -> Limits {
    /// More than any machine has files for.
    const MANY: u64 = 1_000_000;
    const KIB: u64 = 1024;
    let default = Limits::default();
    let mut number = |key, default: usize| {
        let given = section.number(key, 1..=MANY);
        given.map_or(default, |at| usize::try_from(at.value).unwrap_or(default))
    };
    let connections = number("connections", default.connections);
    let in_flight = number("in_flight", default.in_flight);
    let in_flight_per_key = number("in_flight_per_key", default.in_flight_per_key);
    let header_bytes = section.size("header_bytes", KIB..=128 * KIB);
    let header_bytes = header_bytes.and_then(|at| usize::try_from(at.value).ok());
    let body_bytes = section.size("body_bytes", KIB..=KIB.pow(4));
    let mut timeout = |key, default| {
        let given = section.duration(key, SECOND..=HOUR);
        given.map_or(default, |at| at.value)
    };
    Limits {
        connections,
        in_flight,
        in_flight_per_key,
        header_bytes: header_bytes.unwrap_or(default.header_bytes),
        body_bytes: body_bytes.map(|at| at.value).or(default.body_bytes),
        header_timeout: timeout("header_timeout", default.header_timeout),
        body_timeout: timeout("body_timeout", default.body_timeout),
        upstream_timeout: timeout("upstream_timeout", default.upstream_timeout),
    }
}
