//! Persistence: what the engine asks of it, with SQLite and PostgreSQL as answers, each a feature of its own.
//!
//! [`contract::Store`] is what everything above knows. Tokens, and the answers to guarded writes, are sealed by the [`vault`] before
//! they reach a statement.
//! This crate knows nothing of HTTP, providers or when a token is due; it keeps what it is told, whole or not at all.
//! Start reading at [`contract`], then at `sqlite` or `postgres`; `record` is what both share.

mod circumstances;
pub mod contract;
pub mod coordination;
mod methods;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod record;
#[cfg(feature = "sqlite")]
pub mod sqlite;
pub mod vault;

pub use circumstances::KeptCircumstances;
pub use contract::{Store, StoreError};
#[cfg(feature = "redis")]
pub use coordination::ByRedis;
#[cfg(feature = "postgres")]
pub use coordination::ByRowLock;
pub use coordination::{ByLease, Coordination};
#[cfg(feature = "postgres")]
pub use postgres::PostgresStore;
#[cfg(feature = "sqlite")]
pub use sqlite::{OpenError, SqliteStore};
pub use vault::{Vault, VaultError, VaultKey};
