//! What takes longer than CI has time, or says more on a quiet machine. Each hands its arguments on.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::clients;
use crate::shell::{self, WHOLE, cargo, program};

/// The checks of RELIABILITY.md against a server that others wrote, those that CI leaves out, too, with `--long`.
pub(crate) fn independent(arguments: &[String]) -> Result<()> {
    let mut test = cargo();
    test.args([
        "test",
        "--locked",
        "--package",
        "evergrant-cli",
        "--test",
        "independent",
    ])
    .envs(clients::prepare()?);
    match arguments {
        [] => {}
        [long] if long == "--long" => {
            test.env("EVERGRANT_TEST_LONG", "1");
        }
        _ => bail!("cargo xtask independent [--long]"),
    }
    shell::run(&mut test)
}

/// Seeds of the simulation, as many as are asked for.
pub(crate) fn simulate(arguments: &[String]) -> Result<()> {
    shell::run(&mut build_simulation())?;
    shell::run(program(simulation_built()).args(arguments))
}

/// The build of the simulation. Optimized a little: a run is nothing but computing, and a thousand of them take a third of the time.
pub(crate) fn build_simulation() -> Command {
    let mut build = cargo();
    build
        .args(["build", "--quiet"])
        .args(WHOLE)
        .args(["--bin", "evergrant-simulate", "--test", "simulation"])
        .args(["--config", "profile.dev.opt-level=1"]);
    build
}

/// Where that leaves it.
pub(crate) fn simulation_built() -> PathBuf {
    shell::target().join("debug/evergrant-simulate")
}

/// Many connections on one PostgreSQL, by the binary as it is built for users.
pub(crate) fn scale(arguments: &[String]) -> Result<()> {
    shell::run(cargo().args(["build", "--release", "--locked"]))?;
    let run = [
        "run",
        "--release",
        "--locked",
        "--package",
        "evergrant-scale",
        "--",
    ];
    shell::run(cargo().args(run).args(arguments))
}
