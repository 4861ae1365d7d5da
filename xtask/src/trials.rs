//! What takes longer than CI has time, or says more on a quiet machine. Each hands its arguments on.

use anyhow::{Result, bail};

use crate::clients;
use crate::shell::{self, cargo};

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
    let run = [
        "run",
        "--quiet",
        "--locked",
        "--package",
        "evergrant-simulation",
        "--",
    ];
    shell::run(cargo().args(run).args(arguments))
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
