//! SQLite: each fixture is a file of its own.

use std::sync::Arc;

use evergrant_store::{SqliteStore, Vault, VaultKey};
use tempfile::TempDir;

use crate::fixture::Fixture;

pub(crate) struct SqliteFile {
    folder: TempDir,
    vault: Arc<Vault>,
}

impl Fixture for SqliteFile {
    type Store = SqliteStore;

    fn fresh() -> Self {
        Self {
            folder: TempDir::new().unwrap(),
            vault: Arc::new(Vault::new(VaultKey::generate())),
        }
    }

    async fn open(&self) -> SqliteStore {
        let path = self.folder.path().join("evergrant.db");
        SqliteStore::open(&path, Arc::clone(&self.vault)).await.unwrap()
    }
}
