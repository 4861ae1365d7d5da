//! The store for simulations: the very same statements on one database in memory that all simulated processes share.
//!
//! No threads and no time of its own. Every operation is one transaction, done whole when its future is first polled, so a
//! run on a paused clock comes out the same each time. What the machine knows comes from the simulation:
//!
//! ```
//! # use std::sync::Arc;
//! # use evergrant_store::sqlite::simulated::{Clocks, Like, SimulatedDatabase};
//! # use evergrant_store::{SqliteStore, Vault, VaultKey};
//! # fn main() -> Result<(), evergrant_store::OpenError> {
//! # let vault = Arc::new(Vault::new(VaultKey::generate()));
//! let clocks = Clocks {
//!     boot: Arc::new(|| 0),
//!     wall: Arc::new(|| 1_700_000_000_000),
//! };
//! let database = SimulatedDatabase::new(clocks, Like::Sqlite)?;
//! let (first, second) = (database.holder("first"), database.holder("second"));
//! let store = SqliteStore::simulated(&database, Arc::clone(&vault), &first)?;
//! let other = SqliteStore::simulated(&database, vault, &second)?;
//! first.die(); // Its leases are free at once, and nothing of it is written any more.
//! let replica = database.snapshot();
//! database.restore_snapshot(&replica); // A failover that loses what was committed between.
//! # drop((store, other));
//! # Ok(())
//! # }
//! ```

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use evergrant_domain::Timestamp;
use parking_lot::Mutex;
use rusqlite::functions::FunctionFlags;
use rusqlite::{Connection, MAIN_DB};

use super::holder::{Boot, Holders};
use super::open::{OpenError, explain, make_schema, prove_key};
use super::record::Db;
use super::transaction::{gone, job, read, write_group};
use super::{Runner, SqliteStore};
use crate::contract::StoreError;
use crate::vault::Vault;

/// A clock that the simulation moves, in milliseconds.
pub type Millis = Arc<dyn Fn() -> i64 + Send + Sync>;

/// The clocks of the machine that the database is on.
#[derive(Clone)]
pub struct Clocks {
    /// What leases are judged by. Nothing sets it back.
    pub boot: Millis,
    /// Since the Unix epoch, UTC.
    pub wall: Millis,
}

impl fmt::Debug for Clocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clocks(..)")
    }
}

/// Which store it behaves like where the two differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Like {
    /// A holder's death is seen at once; each process goes by its machine's clock.
    Sqlite,
    /// A dead holder keeps its leases until they end; the database's clock is everybody's.
    Postgres,
}

/// One database in memory. Clones are the same one.
#[derive(Clone)]
pub struct SimulatedDatabase(Arc<Shared>);

struct Shared {
    /// Away only while an operation has it.
    sql: Mutex<Option<Connection>>,
    clocks: Clocks,
    like: Like,
    dead: Mutex<HashSet<Arc<str>>>,
    failovers: Mutex<u64>,
}

/// A process as the database knows it.
#[derive(Clone)]
pub struct SimulatedHolder {
    name: Arc<str>,
    database: SimulatedDatabase,
}

/// The whole database as it was at one moment.
#[derive(Clone)]
pub struct Snapshot(Arc<[u8]>);

impl SimulatedDatabase {
    /// An empty database with this version's schema.
    pub fn new(clocks: Clocks, like: Like) -> Result<Self, OpenError> {
        let sql = copy(&empty()?, &clocks);
        Ok(Self(Arc::new(Shared {
            sql: Mutex::new(Some(sql)),
            clocks,
            like,
            dead: Mutex::default(),
            failovers: Mutex::new(0),
        })))
    }

    /// A process called `name`. Each start of a process has a name of its own.
    pub fn holder(&self, name: &str) -> SimulatedHolder {
        SimulatedHolder {
            name: name.into(),
            database: self.clone(),
        }
    }

    /// What a replica has that got every commit so far.
    pub fn snapshot(&self) -> Snapshot {
        self.with(copied)
    }

    /// That replica takes over: commits since then are lost, and [`crate::Store::pulse`] tells another epoch.
    pub fn restore_snapshot(&self, snapshot: &Snapshot) {
        self.with(|sql| *sql = copy(snapshot, &self.0.clocks));
        *self.0.failovers.lock() += 1;
    }

    /// Runs `ask` on the database itself.
    fn with<T>(&self, ask: impl FnOnce(&mut Connection) -> T) -> T {
        let mut place = self.0.sql.lock();
        ask(place.as_mut().expect("every operation puts the database back"))
    }

    fn lives(&self, holder: &str) -> bool {
        match self.0.like {
            Like::Sqlite => !self.is_dead(holder),
            Like::Postgres => true,
        }
    }

    fn is_dead(&self, holder: &str) -> bool {
        self.0.dead.lock().contains(holder)
    }
}

impl fmt::Debug for SimulatedDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimulatedDatabase(..)")
    }
}

impl SimulatedHolder {
    /// The process is killed: from now on nothing that it asks for is done.
    pub fn die(&self) {
        self.database.0.dead.lock().insert(Arc::clone(&self.name));
    }
}

impl fmt::Debug for SimulatedHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimulatedHolder({})", self.name)
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Snapshot(..)")
    }
}

impl SqliteStore {
    /// The store of one simulated process. Dropped, the process is dead.
    pub fn simulated(
        database: &SimulatedDatabase,
        vault: Arc<Vault>,
        holder: &SimulatedHolder,
    ) -> Result<Self, OpenError> {
        database.with(|sql| prove_key(in_memory(), sql, &vault))?;
        let boot = Boot {
            id: "simulated".into(),
            millis: Arc::clone(&database.0.clocks.boot),
        };
        let judge = database.clone();
        let lives = Arc::new(move |holder: &str| judge.lives(holder));
        Ok(Self {
            runner: Runner::Inline(Inline {
                holders: Holders::new(Arc::clone(&holder.name), boot, lives),
                vault,
                holder: holder.clone(),
            }),
        })
    }
}

/// Does the work where it is asked for, before it returns.
pub(super) struct Inline {
    holder: SimulatedHolder,
    holders: Holders,
    vault: Arc<Vault>,
}

impl Drop for Inline {
    fn drop(&mut self) {
        self.holder.die();
    }
}

impl Inline {
    pub(super) fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Db) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (job, mut answer) = job(work);
        self.with(|db| write_group(db, job, || None))?;
        answer.try_recv().map_err(|_| gone(true))?
    }

    pub(super) fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Db) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (job, mut answer) = job(work);
        self.with(|db| read(db, job))?;
        answer.try_recv().map_err(|_| gone(true))?
    }

    pub(super) fn epoch(&self) -> Result<String, StoreError> {
        self.refuse_the_dead()?;
        Ok(self.holder.database.0.failovers.lock().to_string())
    }

    pub(super) fn clock_of_its_own(&self) -> Option<Timestamp> {
        let shared = &self.holder.database.0;
        (shared.like == Like::Postgres).then(|| Timestamp::from_millis((shared.clocks.wall)()))
    }

    fn with(&self, act: impl FnOnce(&Db)) -> Result<(), StoreError> {
        self.refuse_the_dead()?;
        let mut place = self.holder.database.0.sql.lock();
        let db = Db {
            sql: place.take().ok_or_else(|| gone(false))?,
            vault: Arc::clone(&self.vault),
            holders: self.holders.clone(),
        };
        act(&db);
        *place = Some(db.sql);
        Ok(())
    }

    fn refuse_the_dead(&self) -> Result<(), StoreError> {
        if self.holder.database.is_dead(&self.holder.name) {
            return Err(gone(false));
        }
        Ok(())
    }
}

fn in_memory() -> &'static Path {
    Path::new(":memory:")
}

/// An empty database with the schema. Made once: a run of a simulation needs one in no time.
fn empty() -> Result<Snapshot, OpenError> {
    static EMPTY: OnceLock<Snapshot> = OnceLock::new();
    if let Some(made) = EMPTY.get() {
        return Ok(made.clone());
    }
    let mut sql = Connection::open_in_memory().map_err(|error| explain(in_memory(), &error))?;
    make_schema(in_memory(), &mut sql)?;
    Ok(EMPTY.get_or_init(|| copied(&mut sql)).clone())
}

fn copied(sql: &mut Connection) -> Snapshot {
    let bytes = sql
        .serialize(MAIN_DB)
        .expect("a database in memory can be copied");
    Snapshot(Arc::from(&*bytes))
}

fn copy(snapshot: &Snapshot, clocks: &Clocks) -> Connection {
    let make = || -> rusqlite::Result<Connection> {
        let mut sql = Connection::open_in_memory()?;
        sql.deserialize_read_exact(MAIN_DB, &*snapshot.0, snapshot.0.len(), false)?;
        sql.set_prepared_statement_cache_capacity(128);
        sql.pragma_update(None, "synchronous", "OFF")?;
        sql.pragma_update(None, "foreign_keys", true)?;
        // The schema asks the system's clock how old an entry of the feed is. Here that is the simulation's.
        let wall = Arc::clone(&clocks.wall);
        let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_INNOCUOUS;
        sql.create_scalar_function("unixepoch", 1, flags, move |_| {
            #[expect(
                clippy::cast_precision_loss,
                reason = "a float is exact for longer than there are clocks"
            )]
            Ok(wall() as f64 / 1000.0)
        })?;
        Ok(sql)
    };
    make().expect("a copy of a database is one, and fits into memory")
}
