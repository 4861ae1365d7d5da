//! What may be depended on: `deny.toml`, judged by cargo-deny.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::clients;
use crate::shell::{self, cargo, program};

/// `deny.toml` is written for this line of versions.
const VERSION_LINE: &str = "cargo-deny 0.20.";
const VERSION: &str = "0.20.2";

pub(crate) fn check() -> Result<()> {
    let cargo_deny = cargo_deny()?;
    shell::run(deny(&cargo_deny).args(["check", "--hide-inclusion-graph", "bans", "licenses", "sources"]))?;
    let database = advisory_databases();
    if database.is_dir() {
        // What is there is used as it is: a run must not depend on what was published a minute ago.
        return shell::run(deny(&cargo_deny).args(["--offline", "check", "advisories"]));
    }
    println!(
        "advisories were LEFT OUT: there is no database at {}; `cargo deny fetch` brings one",
        database.display()
    );
    Ok(())
}

fn deny(cargo_deny: &Path) -> Command {
    let mut command = program(cargo_deny);
    command.args(["--locked", "--all-features"]);
    command
}

/// The tool, brought beside our own builds where the machine has none of the right version.
fn cargo_deny() -> Result<PathBuf> {
    let tools = shell::target().join("tools");
    let ours = tools.join("bin/cargo-deny");
    for candidate in [PathBuf::from("cargo-deny"), ours.clone()] {
        if shell::is_there(&candidate)
            && shell::output(program(&candidate).arg("--version"))
                .is_ok_and(|version| version.starts_with(VERSION_LINE))
        {
            return Ok(candidate);
        }
    }
    if cfg!(all(
        target_os = "linux",
        target_arch = "x86_64",
        target_env = "gnu"
    )) {
        // The only machine that there is a built one for; its hash is in the file.
        let requirements = shell::root().join("xtask/policy/requirements.txt");
        return Ok(clients::python("policy", &requirements)?.with_file_name("cargo-deny"));
    }
    let install = [
        "install",
        "--locked",
        "cargo-deny",
        "--version",
        VERSION,
        "--root",
    ];
    // What it is released with costs two minutes more than it saves in the second that it runs.
    let quick = [
        ("CARGO_PROFILE_RELEASE_LTO", "off"),
        ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
        ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
    ];
    shell::run(cargo().args(install).arg(&tools).envs(quick))?;
    Ok(ours)
}

/// Where cargo-deny keeps the databases of advisories that it has fetched.
fn advisory_databases() -> PathBuf {
    let home = env::var_os("HOME").unwrap_or_default();
    let cargo_home =
        env::var_os("CARGO_HOME").map_or_else(|| PathBuf::from(home).join(".cargo"), PathBuf::from);
    cargo_home.join("advisory-dbs")
}
