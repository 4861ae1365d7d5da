//! PostgreSQL: each fixture is a database of its own on one server.

use std::sync::Arc;

use evergrant_store::{PostgresStore, Vault, VaultKey};
use test_postgres::Server;

use crate::fixture::Fixture;

pub(crate) struct PostgresDatabase {
    url: String,
    vault: Arc<Vault>,
}

impl Fixture for PostgresDatabase {
    type Store = PostgresStore;

    fn fresh() -> Self {
        let server = Server::shared();
        Self {
            url: server.url(&server.database()),
            vault: Arc::new(Vault::new(VaultKey::generate())),
        }
    }

    async fn open(&self) -> PostgresStore {
        PostgresStore::open(&self.url, Arc::clone(&self.vault))
            .await
            .unwrap()
    }
}
