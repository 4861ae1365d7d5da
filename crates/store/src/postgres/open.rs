//! Opening a database: everything that is refused is refused here, before anything is changed.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::address::Address;
use super::db::describe;
use super::tls::connector;
use crate::contract::Schema;
use crate::record::{is_left_alone, opens_check, seal_check};
use crate::vault::Vault;

mod migrations {
    refinery::embed_migrations!("migrations-postgres");
}

/// How many connections this process holds at most.
const CONNECTIONS: usize = 16;
/// How long to wait for a connection from the pool, and for a new one.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where the schema's history is kept: other programs have such a table, too.
const HISTORY: &str = "evergrant_schema_history";

/// Why a database was not opened. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL names no database that can be spoken to.
    #[error("the store's url cannot be used: {what}")]
    Url {
        /// What is wrong with it, without quoting it.
        what: String,
    },
    /// The certificates to be trusted cannot be read.
    #[error("cannot read the certificates that the store's server is judged by{}: {source}", named(path.as_ref()))]
    Roots {
        /// The file that the URL names, if it does.
        path: Option<PathBuf>,
        /// Why.
        source: io::Error,
    },
    /// Nobody answers, or not as a PostgreSQL that can serve now.
    #[error("the database {database} is not available: {what}")]
    Unavailable {
        /// Which, without the password.
        database: String,
        /// What went wrong.
        what: String,
    },
    /// The server cannot be trusted, or has no TLS.
    #[error(
        "no protected connection to {database}: {what}; the store's url chooses how the server is judged, \
         with sslmode=verify-full, require, prefer or disable and sslrootcert=FILE"
    )]
    Tls {
        /// Which, without the password.
        database: String,
        /// What went wrong.
        what: String,
    },
    /// The server refuses user or password.
    #[error(
        "the server of {database} refuses the login: check user and password in the store's url, and pg_hba.conf"
    )]
    LoginRefused {
        /// Which, without the password.
        database: String,
    },
    /// The server has no such database.
    #[error(
        "the server has no database {database}; create it with createdb, or name another one in the store's url"
    )]
    NoDatabase {
        /// Which, without the password.
        database: String,
    },
    /// The user may not make or change the tables.
    #[error(
        "the user of {database} may not change its schema: grant it CREATE on the schema, or make it the owner"
    )]
    NotAllowed {
        /// Which, without the password.
        database: String,
    },
    /// Tables of the same names belong to another program.
    #[error(
        "{database} holds tables of another program under Evergrant's names; give Evergrant a database of its own"
    )]
    NotOurs {
        /// Which, without the password.
        database: String,
    },
    /// A commit that was answered might be lost with the server, and a rotated refresh token with it.
    #[error(
        "synchronous_commit is off in {database}, so a crash of the server would lose refresh tokens; \
         turn it on: ALTER DATABASE … SET synchronous_commit = on"
    )]
    NotDurable {
        /// Which, without the password.
        database: String,
    },
    /// A newer Evergrant has changed the schema in a way that this one cannot live with.
    #[error(
        "the database has schema version {found}, for programs that know version {oldest} or later, \
         this Evergrant knows versions up to {known}; \
         use the newer Evergrant, or restore the backup from before the upgrade"
    )]
    NewerSchema {
        /// The database's.
        found: i64,
        /// The one that a program must know to use it.
        oldest: i64,
        /// The newest one known here.
        known: i64,
    },
    /// The tokens in it were sealed with another key.
    #[error(
        "the vault key is not the one that this database was sealed with; \
         configure that key, or start with a new database and connect every customer again"
    )]
    WrongKey,
}

fn named(path: Option<&PathBuf>) -> String {
    path.map(|path| format!(" in {}", path.display()))
        .unwrap_or_default()
}

/// Opens the database that the URL names, and brings its schema up to date.
pub(super) async fn open(url: &str, vault: &Vault) -> Result<(Pool, Door), OpenError> {
    let (address, tls) = read(url)?;
    prepare(&address, tls.clone(), vault).await?;
    let pool = pool(&address, tls.clone(), CONNECTIONS)?;
    Ok((pool, Door { address, tls }))
}

/// What a session needs that is not the pool's.
pub(super) struct Door {
    pub(super) address: Address,
    pub(super) tls: MakeRustlsConnect,
}

/// Sessions for other purposes than the store's own, so that neither waits for the other.
pub(crate) fn sessions(url: &str, at_most: usize) -> Result<Pool, OpenError> {
    let (address, tls) = read(url)?;
    pool(&address, tls, at_most)
}

fn pool(address: &Address, tls: MakeRustlsConnect, at_most: usize) -> Result<Pool, OpenError> {
    let manager = Manager::from_config(
        address.config.clone(),
        tls,
        ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        },
    );
    Pool::builder(manager)
        .max_size(at_most)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(PATIENCE))
        .create_timeout(Some(PATIENCE))
        .build()
        .map_err(|error| OpenError::Unavailable {
            database: address.shown(),
            what: error.to_string(),
        })
}

/// How far the schema of the database that the URL names is; changes nothing.
pub(super) async fn schema(url: &str) -> Result<Schema, OpenError> {
    let (address, tls) = read(url)?;
    let (client, driver) = connect(&address, tls).await?;
    let schema = refuse_what_is_not_ours(&address, &client).await;
    drop(client);
    let _ = driver.await;
    schema
}

fn read(url: &str) -> Result<(Address, MakeRustlsConnect), OpenError> {
    let address = Address::from_url(url).map_err(|what| OpenError::Url { what })?;
    let tls = connector(address.protection, address.roots.as_deref()).map_err(|source| OpenError::Roots {
        path: address.roots.clone(),
        source,
    })?;
    Ok((address, tls))
}

/// A connection of its own, and what drives it: that ends with the client, or with an error that the client's next statement
/// tells of.
async fn connect(
    address: &Address,
    tls: MakeRustlsConnect,
) -> Result<(Client, JoinHandle<Result<(), tokio_postgres::Error>>), OpenError> {
    let connected = address.config.connect(tls).await;
    let (client, connection) = connected.map_err(|error| explain(address, &error))?;
    Ok((client, tokio::spawn(connection)))
}

/// What is checked and changed on a connection of its own, before the pool opens any.
async fn prepare(address: &Address, tls: MakeRustlsConnect, vault: &Vault) -> Result<(), OpenError> {
    let (mut client, driver) = connect(address, tls).await?;
    let checked = async {
        refuse_what_loses_commits(address, &client).await?;
        refuse_what_is_not_ours(address, &client).await?;
        migrate(address, &mut client).await?;
        prove_key(address, &client, vault).await
    }
    .await;
    drop(client);
    // Waits until the session, and with it its lock, has ended.
    let _ = driver.await;
    checked
}

/// PROTOCOL.md, rule 18: `synchronous_commit` is checked at the start.
async fn refuse_what_loses_commits(address: &Address, client: &Client) -> Result<(), OpenError> {
    let settings = only(
        client,
        "SELECT current_setting('synchronous_commit'), current_setting('synchronous_standby_names') <> ''",
    );
    let settings = settings.await.map_err(|error| explain(address, &error))?;
    let (commit, standbys): (String, bool) = (settings.get(0), settings.get(1));
    match commit.as_str() {
        "off" => {
            return Err(OpenError::NotDurable {
                database: address.shown(),
            });
        }
        // Whoever has no standby, or an asynchronous one, knows what a failover loses; here somebody believes otherwise.
        "local" | "remote_write" if standbys => tracing::warn!(
            event = "failover_may_lose_commits",
            synchronous_commit = commit,
            "there are synchronous standbys, but synchronous_commit is {commit} in {}: a failover may lose commits that were \
             confirmed, and all that saves a refresh token then is a process that lives and still holds it; \
             turn it on: ALTER DATABASE … SET synchronous_commit = on",
            address.shown()
        ),
        _ => {}
    }
    Ok(())
}

async fn refuse_what_is_not_ours(address: &Address, client: &Client) -> Result<Schema, OpenError> {
    let explain = |error| explain(address, &error);
    let known = migrations::migrations::runner()
        .get_migrations()
        .iter()
        .map(|migration| i64::from(migration.version()))
        .max()
        .unwrap_or(0);
    let there = only(
        client,
        "SELECT to_regclass('evergrant_schema_history') IS NOT NULL, to_regclass('connections') IS NOT NULL",
    );
    let there = there.await.map_err(explain)?;
    match (there.get(0), there.get(1)) {
        (false, false) => Ok(Schema { found: 0, known }),
        (false, true) => Err(OpenError::NotOurs {
            database: address.shown(),
        }),
        (true, _) => {
            let found = only(
                client,
                "SELECT coalesce(max(version), 0)::bigint FROM evergrant_schema_history",
            );
            let found: i64 = found.await.map_err(explain)?.get(0);
            let schema = Schema { found, known };
            if schema.is_newer() {
                let oldest = only(client, "SELECT oldest FROM schema_use").await;
                let oldest: i64 = oldest.map_err(explain)?.get(0);
                if oldest > known {
                    return Err(OpenError::NewerSchema { found, oldest, known });
                }
            }
            Ok(schema)
        }
    }
}

/// Brings the schema up to date, each step in a transaction of its own. One process at a time: the others wait here and
/// find nothing left to do.
async fn migrate(address: &Address, client: &mut Client) -> Result<(), OpenError> {
    client
        .batch_execute(
            "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0; SET lock_timeout = '60s';
             SELECT pg_advisory_lock(17750, 1)",
        )
        .await
        .map_err(|error| explain(address, &error))?;
    // Whoever had the turn before may have been newer.
    if is_left_alone(refuse_what_is_not_ours(address, client).await?) {
        return Ok(());
    }
    let mut runner = migrations::migrations::runner();
    runner.set_migration_table_name(HISTORY);
    runner
        .run_async(client)
        .await
        .map(drop)
        .map_err(|error| match cause(&error) {
            Some(cause) => explain(address, cause),
            None => OpenError::Unavailable {
                database: address.shown(),
                what: error.to_string(),
            },
        })
}

/// What the database said to a migration.
fn cause(error: &refinery::Error) -> Option<&tokio_postgres::Error> {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(cause) = error.downcast_ref() {
            return Some(cause);
        }
        source = error.source();
    }
    None
}

async fn prove_key(address: &Address, client: &Client, vault: &Vault) -> Result<(), OpenError> {
    let explain = |error| explain(address, &error);
    // Two processes with two keys may come first together: one of them reads what the other one wrote.
    client
        .execute(
            "INSERT INTO vault_check (only_row, sealed) VALUES (1, $1) ON CONFLICT DO NOTHING",
            &[&seal_check(vault)],
        )
        .await
        .map_err(explain)?;
    let sealed = only(client, "SELECT sealed FROM vault_check")
        .await
        .map_err(explain)?;
    if opens_check(vault, sealed.get(0)) {
        Ok(())
    } else {
        Err(OpenError::WrongKey)
    }
}

async fn only(client: &Client, sql: &str) -> Result<Row, tokio_postgres::Error> {
    client.query_one(sql, &[]).await
}

fn explain(address: &Address, error: &tokio_postgres::Error) -> OpenError {
    let database = address.shown();
    match error.code() {
        Some(&SqlState::INVALID_PASSWORD | &SqlState::INVALID_AUTHORIZATION_SPECIFICATION) => {
            OpenError::LoginRefused { database }
        }
        Some(&SqlState::INVALID_CATALOG_NAME) => OpenError::NoDatabase { database },
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => OpenError::NotAllowed { database },
        Some(_) => OpenError::Unavailable {
            database,
            what: describe(error),
        },
        None => {
            let what = describe(error);
            // The driver says which step failed in its text alone.
            if error.to_string().contains("TLS") {
                OpenError::Tls { database, what }
            } else {
                OpenError::Unavailable { database, what }
            }
        }
    }
}
