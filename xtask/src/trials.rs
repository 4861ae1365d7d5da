//! What takes longer than CI has time, or says more on a quiet machine. Each hands its arguments on.

use anyhow::Result;

use crate::shell::{self, cargo};

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
