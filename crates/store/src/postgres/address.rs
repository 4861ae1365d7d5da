//! Which database a URL names, and how it is spoken to. The URL may hold a password: no error here quotes it.

use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, TargetSessionAttrs};
use url::form_urlencoded;

use super::tls::Protection;

/// Where the server is and how to reach it.
pub(super) struct Address {
    pub(super) config: Config,
    pub(super) protection: Protection,
    /// Certificates to trust in place of the system's.
    pub(super) roots: Option<PathBuf>,
}

/// What a session of ours is asked to keep to. A transaction that stops half way, because its process is frozen say, is
/// ended by the server and blocks nobody for longer than that.
const SESSION: &str = "-c statement_timeout=5s -c lock_timeout=2s -c idle_in_transaction_session_timeout=5s";

impl Address {
    /// Reads `postgres://user:password@host:port/database?sslmode=…`. Further parameters are libpq's.
    pub(super) fn from_url(text: &str) -> Result<Self, String> {
        // Not taken apart by a URL's grammar: several hosts, each with its port, are none.
        let (server, query) = text.split_once('?').unwrap_or((text, ""));
        if !matches!(server.split_once("://"), Some(("postgres" | "postgresql", _))) {
            return Err("it must begin with postgres://".to_owned());
        }
        // What the driver does not know is read here and taken out; the rest stays as it was written.
        let mut protection = None;
        let mut roots = None;
        let mut others = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match form_urlencoded::parse(pair.as_bytes()).next() {
                Some((name, value)) if name == "sslmode" => {
                    let known = Protection::from_word(&value);
                    protection =
                        Some(known.ok_or("its sslmode must be disable, prefer, require or verify-full")?);
                }
                Some((name, value)) if name == "sslrootcert" => roots = Some(PathBuf::from(&*value)),
                _ => others.push(pair),
            }
        }
        let mut config: Config = format!("{server}?{}", others.join("&"))
            .parse()
            .map_err(|_| "its host, port, user or a parameter cannot be read".to_owned())?;
        if config.get_hosts().is_empty() {
            return Err("it names no host".to_owned());
        }
        if config.get_dbname().is_none() {
            return Err("it names no database, like postgres://user@host/evergrant".to_owned());
        }
        // Nothing but the machine itself is trusted without proof, unless the URL says so.
        let protection = protection.unwrap_or(if config.get_hosts().iter().all(is_local) {
            Protection::Prefer
        } else {
            Protection::VerifyFull
        });
        let options = config
            .get_options()
            .map_or_else(|| SESSION.to_owned(), |options| format!("{SESSION} {options}"));
        config.ssl_mode(protection.ssl_mode()).options(options);
        if config.get_application_name().is_none() {
            config.application_name("evergrant");
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(Duration::from_secs(5));
        }
        config
            // Of several hosts the one that takes writes: after a failover that is another one.
            .target_session_attrs(TargetSessionAttrs::ReadWrite)
            .keepalives_idle(Duration::from_secs(30))
            .tcp_user_timeout(Duration::from_secs(10));
        Ok(Self {
            config,
            protection,
            roots,
        })
    }

    /// Who and where, without the password: for people.
    pub(super) fn shown(&self) -> String {
        let hosts: Vec<String> = self.config.get_hosts().iter().map(shown_host).collect();
        let database = self.config.get_dbname().unwrap_or_default();
        match self.config.get_user() {
            Some(user) => format!("{database} on {} as {user}", hosts.join(", ")),
            None => format!("{database} on {}", hosts.join(", ")),
        }
    }
}

fn shown_host(host: &Host) -> String {
    match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) => path.display().to_string(),
    }
}

fn is_local(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost"
                || name
                    .parse::<std::net::IpAddr>()
                    .is_ok_and(|address| address.is_loopback())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str, why: &str) {
        let Err(said) = Address::from_url(url) else {
            panic!("{url} was taken");
        };
        assert!(said.contains(why), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }

    #[test]
    fn a_server_elsewhere_must_prove_itself_unless_the_url_says_otherwise() {
        let protection = |url: &str| Address::from_url(url).unwrap().protection;
        assert_eq!(protection("postgres://db.example/e"), Protection::VerifyFull);
        assert_eq!(protection("postgres://localhost/e"), Protection::Prefer);
        assert_eq!(protection("postgres://127.0.0.1/e"), Protection::Prefer);
        assert_eq!(
            protection("postgresql://%2Frun%2Fpostgresql/e"),
            Protection::Prefer
        );
        assert_eq!(
            protection("postgres://db.example/e?sslmode=disable"),
            Protection::Disable
        );
        assert_eq!(
            protection("postgres://localhost/e?sslmode=require"),
            Protection::Require
        );
    }

    #[test]
    fn a_url_that_cannot_be_used_is_explained_without_being_quoted() {
        refused("hunter2", "must begin with postgres://");
        refused("mysql://u:hunter2@h/e", "must begin with postgres://");
        refused("postgres://u:hunter2@h/e?sslmode=hunter2", "sslmode");
        refused("postgres://u:hunter2@h/e?hunter2=1", "cannot be read");
        refused("postgres://u:hunter2@h", "names no database");
    }

    #[test]
    fn of_several_servers_the_one_that_takes_writes_is_used() {
        let address = Address::from_url("postgres://keeper@a.example:5432,b.example:5433/e").unwrap();
        assert_eq!(address.config.get_ports(), [5432, 5433]);
        assert_eq!(
            address.config.get_target_session_attrs(),
            TargetSessionAttrs::ReadWrite
        );
        assert_eq!(address.shown(), "e on a.example, b.example as keeper");
    }

    #[test]
    fn the_password_is_never_shown() {
        let address = Address::from_url("postgres://keeper:hunter2@db.example:6432/evergrant").unwrap();
        assert_eq!(address.shown(), "evergrant on db.example as keeper");
        assert!(!format!("{:?}", address.config).contains("hunter2"));
    }

    #[test]
    fn a_session_keeps_its_limits_and_takes_further_options() {
        let url = "postgres://h/e?sslmode=prefer&options=-c%20search_path%3Dours";
        let address = Address::from_url(url).unwrap();
        let options = address.config.get_options().unwrap().to_owned();
        assert!(options.starts_with(SESSION), "{options}");
        assert!(options.ends_with("-c search_path=ours"), "{options}");
    }
}
