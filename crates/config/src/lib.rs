//! The configuration: one file, overlaid by the environment, checked as a whole, explained line by line.
//!
//! It knows what the settings mean and what may be said together, and nothing about what is done with them: no store is
//! opened here, no address bound, no provider asked. What it does touch is the files that it names, because a secret that
//! cannot be read should be found out at the start and not at the first refresh.
//!
//! Start reading at [`load`]; `document` turns file and environment into one tree that remembers where each value was
//! written, `section` reads that tree and collects what is wrong with it, `settings` and `apps` say what is allowed.

mod config;
pub mod duration;
mod error;
pub mod network;

pub use config::{Config, Coordination, Log, LogCalls, Server, Store, TlsFiles, Vault, VaultKeyText};
pub use error::{ConfigError, Problem};
