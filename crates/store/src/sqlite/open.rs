//! Opening a database: everything that is refused is refused here, before anything is changed.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};

use super::epoch::FileEpoch;
use super::holder::{Alive, Boot, Holders, MIGRATION_LOCK};
use super::record::Db;
use super::threads::Threads;
use crate::contract::Schema;
use crate::record::{is_left_alone, opens_check, seal_check};
use crate::vault::Vault;

mod migrations {
    refinery::embed_migrations!("migrations-sqlite");
}

/// Older ones can corrupt a database in WAL mode (the WAL-reset bug).
const OLDEST_SQLITE: i32 = 3_051_003;
const READERS: usize = 3;

/// Why a database was not opened. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such folder.
    #[error("the folder {} does not exist; make it, or change the store's url", folder.display())]
    NoFolder {
        /// Which.
        folder: PathBuf,
    },
    /// It, or a file beside it, cannot be opened or made.
    #[error("cannot open {}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{} is not a database of Evergrant; name another file in the store's url", path.display())]
    NotADatabase {
        /// Which file.
        path: PathBuf,
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
    /// The program was built with an SQLite that can corrupt databases.
    #[error("SQLite {found} is too old: before 3.51.3 a database in WAL mode can be corrupted")]
    OldSqlite {
        /// Its version.
        found: String,
    },
    /// Locked by another program, disk full, damaged.
    #[error("the database {} is not available: {what}", path.display())]
    Unavailable {
        /// Which file.
        path: PathBuf,
        /// What SQLite said.
        what: String,
    },
}

/// What tests change.
pub(super) struct Settings {
    /// How long to wait for another process that writes.
    pub(super) busy_timeout: Duration,
    pub(super) boot: Boot,
}

pub(super) struct Opened {
    pub(super) writer: Threads,
    pub(super) readers: Threads,
    pub(super) epoch: FileEpoch,
    pub(super) alive: Alive,
}

/// Opens or makes the database at `path`. Blocks.
pub(super) fn open(path: &Path, vault: &Arc<Vault>, settings: Settings) -> Result<Opened, OpenError> {
    if rusqlite::version_number() < OLDEST_SQLITE {
        return Err(OpenError::OldSqlite {
            found: rusqlite::version().to_owned(),
        });
    }
    let path = &make_file(path)?;
    let file_error = |source| OpenError::File {
        path: path.clone(),
        source,
    };
    let mut sql = connect(path, settings.busy_timeout).map_err(|error| explain(path, &error))?;
    refuse_what_is_not_ours(path, &sql)?;
    let mut directory = path.clone().into_os_string();
    directory.push(".holders");
    let (holders, alive) = Holders::join(Path::new(&directory), settings.boot).map_err(file_error)?;
    migrate(path, &mut sql, settings.busy_timeout)?;
    prove_key(path, &sql, vault)?;

    let db = |sql| Db {
        sql,
        vault: Arc::clone(vault),
        holders: holders.clone(),
    };
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let reader = connect(path, settings.busy_timeout)
            .and_then(|reader| reader.pragma_update(None, "query_only", true).map(|()| reader))
            .map_err(|error| explain(path, &error))?;
        readers.push(db(reader));
    }
    Ok(Opened {
        readers: Threads::readers(readers).map_err(file_error)?,
        writer: Threads::writer(db(sql)).map_err(file_error)?,
        epoch: FileEpoch::new(path.clone()),
        alive,
    })
}

/// How far the schema of the database at `path` is; changes nothing. Blocks.
pub(super) fn schema(path: &Path) -> Result<Schema, OpenError> {
    if !path.exists() {
        return Ok(Schema {
            found: 0,
            known: known(),
        });
    }
    let sql = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .map_err(|error| explain(path, &error))?;
    refuse_what_is_not_ours(path, &sql)
}

fn known() -> i64 {
    let runner = migrations::migrations::runner();
    let versions = runner
        .get_migrations()
        .iter()
        .map(|migration| i64::from(migration.version()));
    versions.max().unwrap_or(0)
}

/// Makes the file where there is none, for its owner alone, and resolves links: the holders' folder must be the same for
/// every process, whatever path it came by. SQLite gives its own files beside it the same mode.
fn make_file(path: &Path) -> Result<PathBuf, OpenError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return Err(OpenError::NoFolder {
            folder: folder.to_owned(),
        });
    }
    // Only ever made here, never opened: closing a second descriptor of a database drops every lock that SQLite holds on it
    // in this process (POSIX).
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let resolved = match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => fs::canonicalize(path),
    };
    resolved.map_err(|source| OpenError::File {
        path: path.to_owned(),
        source,
    })
}

fn connect(path: &Path, busy_timeout: Duration) -> rusqlite::Result<Connection> {
    // No SQLITE_OPEN_URI: a path is a path, whatever characters it has.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let sql = Connection::open_with_flags(path, flags)?;
    sql.busy_timeout(busy_timeout)?;
    sql.set_prepared_statement_cache_capacity(64);
    // FULL: a commit that was answered survives the loss of power. A rotated refresh token exists nowhere else.
    sql.pragma_update(None, "synchronous", "FULL")?;
    sql.pragma_update(None, "foreign_keys", true)?;
    Ok(sql)
}

fn refuse_what_is_not_ours(path: &Path, sql: &Connection) -> Result<Schema, OpenError> {
    let known = known();
    let read = || -> rusqlite::Result<Option<i64>> {
        // One statement, one state: another process may be making the schema right now.
        let (ours, tables): (bool, i64) = sql.query_row(
            "SELECT count(*) FILTER (WHERE name = 'refinery_schema_history'), count(*) FROM sqlite_schema",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        if !ours {
            return Ok((tables == 0).then_some(0));
        }
        let version: Option<i64> =
            sql.query_row("SELECT max(version) FROM refinery_schema_history", [], |row| {
                row.get(0)
            })?;
        Ok(Some(version.unwrap_or(0)))
    };
    let explain = |error| explain(path, &error);
    let Some(found) = read().map_err(explain)? else {
        return Err(OpenError::NotADatabase {
            path: path.to_owned(),
        });
    };
    let schema = Schema { found, known };
    if schema.is_newer() {
        let oldest = sql.query_row("SELECT oldest FROM schema_use", [], |row| row.get(0));
        let oldest = oldest.map_err(explain)?;
        if oldest > known {
            return Err(OpenError::NewerSchema { found, oldest, known });
        }
    }
    Ok(schema)
}

fn migrate(path: &Path, sql: &mut Connection, patience: Duration) -> Result<(), OpenError> {
    // One process at a time: two that begin together would both believe that they come first.
    let _turn = take_turn(path, patience)?;
    // Whoever had the turn before may have been newer.
    if is_left_alone(refuse_what_is_not_ours(path, sql)?) {
        return Ok(());
    }
    sql.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))
        .map_err(|error| explain(path, &error))?;
    make_schema(path, sql)
}

/// Whoever calls this is the only one to do so now.
pub(super) fn make_schema(path: &Path, sql: &mut Connection) -> Result<(), OpenError> {
    migrations::migrations::runner()
        // A step and its line in the history are two transactions otherwise: a stop in between would leave tables that the
        // next process tries to make again.
        .set_grouped(true)
        .run(sql)
        .map_err(|error| match error.kind() {
            refinery::error::Kind::Connection(_, cause)
                if let Some(cause) = cause.downcast_ref::<rusqlite::Error>() =>
            {
                explain(path, cause)
            }
            _ => OpenError::Unavailable {
                path: path.to_owned(),
                what: error.to_string(),
            },
        })?;
    Ok(())
}

fn take_turn(path: &Path, patience: Duration) -> Result<File, OpenError> {
    const STEP: Duration = Duration::from_millis(20);
    let file_error = |source| OpenError::File {
        path: path.to_owned(),
        source,
    };
    let mut lock = path.to_owned().into_os_string();
    lock.push(".holders/");
    lock.push(MIGRATION_LOCK);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(lock)
        .map_err(file_error)?;
    let mut waited = Duration::ZERO;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if waited < patience => {
                thread::sleep(STEP);
                waited += STEP;
            }
            Err(TryLockError::WouldBlock) => {
                return Err(OpenError::Unavailable {
                    path: path.to_owned(),
                    what: "another process is changing its schema".into(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(file_error(source)),
        }
    }
}

/// The first key to open a database is its key. Another one would seal new tokens beside old ones that it cannot open.
pub(super) fn prove_key(path: &Path, sql: &Connection, vault: &Vault) -> Result<(), OpenError> {
    let read = || {
        sql.query_row("SELECT sealed FROM vault_check", [], |row| {
            row.get::<_, Vec<u8>>(0)
        })
        .optional()
        .map_err(|error| explain(path, &error))
    };
    let mut sealed = read()?;
    if sealed.is_none() {
        // Two processes with two keys may come first together: one of them reads what the other one wrote.
        sql.execute(
            "INSERT INTO vault_check (only_row, sealed) VALUES (1, ?1) ON CONFLICT DO NOTHING",
            [seal_check(vault)],
        )
        .map_err(|error| explain(path, &error))?;
        sealed = read()?;
    }
    if opens_check(vault, &sealed.unwrap_or_default()) {
        Ok(())
    } else {
        Err(OpenError::WrongKey)
    }
}

pub(super) fn explain(path: &Path, error: &rusqlite::Error) -> OpenError {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => OpenError::NotADatabase {
            path: path.to_owned(),
        },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => OpenError::Unavailable {
            path: path.to_owned(),
            what: "another program has locked it".into(),
        },
        _ => OpenError::Unavailable {
            path: path.to_owned(),
            what: match error {
                // Without the statement, which may be a whole schema.
                rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
                other => other.to_string(),
            },
        },
    }
}
