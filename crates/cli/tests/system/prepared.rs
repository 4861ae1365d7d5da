//! What is ready for these tests: what `cargo xtask test` has installed, and a simulator's settings.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hubspot_sim::SimConfig;

/// A folder or program that `cargo xtask test` prepares and names in the environment.
pub(crate) fn prepared(variable: &str) -> PathBuf {
    std::env::var_os(variable)
        .unwrap_or_else(|| {
            panic!("{variable} is not set: run `cargo xtask test`, which installs what these tests need")
        })
        .into()
}

pub(crate) fn client_script(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/clients")
        .join(path)
}

/// Short enough that a test sees many expiries, long enough that a slow machine can use one.
pub(crate) fn short_lived() -> SimConfig {
    SimConfig {
        seed: 11,
        token_ttl: Duration::from_secs(2),
        ..SimConfig::default()
    }
}
