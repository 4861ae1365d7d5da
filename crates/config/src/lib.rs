//! The configuration: one file, overlaid by the environment, checked as a whole, explained line by line.
//!
//! It knows what the settings mean and what may be said together, and nothing about what is done with them: no store is
//! opened here, no address bound, no provider asked. What it does touch is the files that it names, because a secret that
//! cannot be read should be found out at the start and not at the first refresh.
//!
//! Start reading at [`load`]; `document` turns file and environment into one tree that remembers where each value was
//! written, `section` reads that tree and collects what is wrong with it, `settings`, `apps` and `webhooks` say what is
//! allowed.

mod apps;
mod config;
mod document;
pub mod duration;
mod error;
pub mod network;
mod secret_file;
mod section;
mod settings;
mod webhooks;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

pub use config::{
    Config, Coordination, CoordinationMode, DatabaseUrl, Events, Lifeboat, Limits, Log, LogCalls, Metrics,
    Server, Store, TlsFiles, Tracing, Vault, VaultKeyText,
};
pub use error::{ConfigError, Problem};
pub use network::Network;

/// What the file is called wherever it is looked for.
pub const FILE_NAME: &str = "evergrant.toml";

/// Reads the configuration: the file `explicit`, else the first of `./evergrant.toml`,
/// `$XDG_CONFIG_HOME/evergrant/evergrant.toml` and `/etc/evergrant/evergrant.toml` that exists, else none; then whatever
/// `environment` has to say in `EVERGRANT_SECTION__KEY`, which wins.
///
/// # Errors
///
/// [`ConfigError`] with everything that is wrong, not only the first of it. Where the file is no TOML its settings are
/// not looked at.
pub fn load(
    explicit: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    let environment: BTreeMap<String, String> = environment.into_iter().collect();
    let file = explicit.map(Path::to_owned).or_else(|| usual_file(&environment));
    let mut table = match &file {
        Some(file) => read_file(file)?,
        None => document::Table::new(),
    };
    document::overlay(&mut table, &environment);
    let reading = section::Reading::new(file.clone(), environment);
    let config = reading.root(table, settings::read);
    match reading.problems() {
        problems if problems.is_empty() => Ok(Config { path: file, ..config }),
        problems => Err(ConfigError::new(problems)),
    }
}

/// The commented file that `evergrant init` writes: everything that can be said, with what holds where nothing is said.
pub fn template() -> &'static str {
    include_str!("template.toml")
}

fn usual_file(environment: &BTreeMap<String, String>) -> Option<PathBuf> {
    let folder = |variable: &str| {
        environment
            .get(variable)
            .filter(|folder| !folder.is_empty())
            .map(PathBuf::from)
    };
    let home = folder("XDG_CONFIG_HOME").or_else(|| folder("HOME").map(|home| home.join(".config")));
    let folders = [
        Some(PathBuf::new()),
        home.map(|home| home.join("evergrant")),
        Some("/etc/evergrant".into()),
    ];
    folders
        .into_iter()
        .flatten()
        .map(|folder| folder.join(FILE_NAME))
        .find(|file| file.exists())
}

fn read_file(file: &Path) -> Result<document::Table, ConfigError> {
    let problem = |place: String, reason: String| Problem {
        place,
        key: String::new(),
        reason,
    };
    let text = std::fs::read_to_string(file).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => "; `evergrant init` writes one",
            _ => "",
        };
        ConfigError::new(vec![problem(
            file.display().to_string(),
            format!("cannot be read: {error}{hint}"),
        )])
    })?;
    document::parse(&text).map_err(|errors| {
        let errors = errors.into_iter();
        ConfigError::new(
            errors
                .map(|(line, why)| problem(format!("{}:{line}", file.display()), why))
                .collect(),
        )
    })
}
