//! Persistence: what the engine asks of it, and SQLite as its first answer.
//!
//! [`contract::Store`] is what everything above knows. Tokens are sealed by the [`vault`] before they reach a statement.
//! This crate knows nothing of HTTP, providers or when a token is due; it keeps what it is told, whole or not at all.
//! Start reading at [`contract`], then [`sqlite`].

pub mod contract;
#[cfg(feature = "postgres")]
pub mod postgres;
mod record;
#[cfg(feature = "sqlite")]
pub mod sqlite;
pub mod vault;

pub use contract::{Store, StoreError};
#[cfg(feature = "postgres")]
pub use postgres::PostgresStore;
#[cfg(feature = "sqlite")]
pub use sqlite::{OpenError, SqliteStore};
pub use vault::{Vault, VaultError, VaultKey};
