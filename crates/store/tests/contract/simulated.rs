//! The database of simulations: what they prove holds for a store that keeps the contract, too.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

use evergrant_store::sqlite::simulated::{Clocks, Like, SimulatedDatabase};
use evergrant_store::{SqliteStore, Vault, VaultKey};

use crate::fixture::Fixture;

pub(crate) struct LikeSqlite(Simulated);

pub(crate) struct LikePostgres(Simulated);

struct Simulated {
    database: SimulatedDatabase,
    vault: Arc<Vault>,
    opened: AtomicU32,
}

impl Simulated {
    fn fresh(like: Like) -> Self {
        // A millisecond goes by each time somebody looks.
        let millis = AtomicI64::new(0);
        let clocks = Clocks {
            boot: Arc::new(|| 0),
            wall: Arc::new(move || millis.fetch_add(1, Ordering::Relaxed)),
        };
        Self {
            database: SimulatedDatabase::new(clocks, like).unwrap(),
            vault: Arc::new(Vault::new(VaultKey::generate())),
            opened: AtomicU32::new(0),
        }
    }

    fn open(&self) -> SqliteStore {
        let name = format!("process {}", self.opened.fetch_add(1, Ordering::Relaxed));
        let holder = self.database.holder(&name);
        SqliteStore::simulated(&self.database, Arc::clone(&self.vault), &holder).unwrap()
    }
}

impl Fixture for LikeSqlite {
    type Store = SqliteStore;

    fn fresh() -> Self {
        Self(Simulated::fresh(Like::Sqlite))
    }

    async fn open(&self) -> SqliteStore {
        self.0.open()
    }
}

impl Fixture for LikePostgres {
    type Store = SqliteStore;

    fn fresh() -> Self {
        Self(Simulated::fresh(Like::Postgres))
    }

    async fn open(&self) -> SqliteStore {
        self.0.open()
    }
}
