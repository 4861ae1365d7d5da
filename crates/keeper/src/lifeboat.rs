//! Where an answer goes that is in hand and that the store does not take: PROTOCOL rule 17.

mod entry;
mod folder;

use std::io;

use async_trait::async_trait;

pub(crate) use entry::{Entry, Unreadable};
pub use folder::{LifeboatFolder, LifeboatRefused};

/// A place for a few small things that must outlive the process. It knows nothing of what it keeps: that is sealed.
#[async_trait]
pub trait Lifeboat: Send + Sync + 'static {
    /// Keeps `sealed` under `name` until it is removed. Once this returns, it survives the loss of power.
    async fn keep(&self, name: &str, sealed: &[u8]) -> io::Result<()>;

    /// Everything that is kept, by name.
    async fn entries(&self) -> io::Result<Vec<(String, Vec<u8>)>>;

    /// Forgets what is kept under `name`, if anything is.
    async fn remove(&self, name: &str) -> io::Result<()>;
}
