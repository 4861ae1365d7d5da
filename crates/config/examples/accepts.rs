//! Whether the service would take a configuration file, with the environment it is run in: for checks of what is shipped.
//!
//! Prints the settings that a deployment has to agree with, one `name value` a line, or what is wrong on standard error.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(file) = std::env::args_os().nth(1) else {
        eprintln!("usage: accepts FILE");
        return ExitCode::from(2);
    };
    match evergrant_config::load(Some(Path::new(&file)), std::env::vars()) {
        Ok(config) => {
            println!("port {}", config.server.listen.port());
            println!("drain_seconds {}", config.server.drain_timeout.as_secs());
            println!("has_vault_key {}", config.vault.key.is_some());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}
