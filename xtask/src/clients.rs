//! What the whole-system tests call the service with: HubSpot's official clients for Node and Python, and a browser; and what
//! it needs there itself, PostgreSQL and Redis; and the tools that disturb it.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::shell::{self, is_there, program};

/// Installs what is missing, and says by which variables the tests find it.
pub(crate) fn prepare() -> Result<[(&'static str, OsString); 3]> {
    servers()?;
    for tool in ["strace", "faketime"] {
        need(tool, &[tool])?;
    }
    let requirements = shell::root().join("tests/clients/python/requirements.txt");
    let variables = [
        ("EVERGRANT_TEST_NODE_MODULES", node_modules()?.into()),
        ("EVERGRANT_TEST_PYTHON", python("clients", &requirements)?.into()),
        (CHROMIUM, chromium()?),
    ];
    for (name, value) in &variables {
        println!("{name}={}", value.display());
    }
    Ok(variables)
}

/// The packages of `tests/clients/node`, exactly as its lockfile says, in that folder: a module script is offered
/// packages of the folders above it and nowhere else.
fn node_modules() -> Result<PathBuf> {
    let source = shell::root().join("tests/clients/node");
    let modules = source.join("node_modules");
    need("npm", &["nodejs", "npm"])?;
    install_once(
        &modules,
        &[&source.join("package.json"), &source.join("package-lock.json")],
        || shell::run(program("npm").arg("ci").current_dir(&source)),
    )?;
    Ok(modules)
}

/// A virtual environment of that name, with the packages in `requirements`, exactly as their hashes say.
pub(crate) fn python(name: &str, requirements: &Path) -> Result<PathBuf> {
    let venv = shell::target().join(name).join("python");
    let python = venv.join("bin/python");
    need("python3", &["python3", "python3-venv"])?;
    install_once(&venv, &[requirements], || {
        let make_venv = || shell::run(program("python3").args(["-m", "venv", "--clear"]).arg(&venv));
        if make_venv().is_err() {
            // Debian's python3 has the module, but not what the module needs.
            install_packages(&["python3-venv"])?;
            make_venv()?;
        }
        let pip = "-m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all: -r";
        shell::run(program(&python).args(pip.split_whitespace()).arg(requirements))
    })?;
    Ok(python)
}

/// A browser of another place may be named by the variable itself.
const CHROMIUM: &str = "EVERGRANT_TEST_CHROMIUM";

/// Debian's browser: playwright's own would come from a host that not every machine reaches.
fn chromium() -> Result<OsString> {
    const DEBIANS: &str = "/usr/bin/chromium";
    if let Some(named) = env::var_os(CHROMIUM) {
        return Ok(named);
    }
    if !Path::new(DEBIANS).exists() {
        install_packages(&["chromium"])?;
    }
    Ok(DEBIANS.into())
}

/// Debian's, where `test-postgres` and `test-redis` look for them.
pub(crate) fn servers() -> Result<()> {
    const POSTGRESQL: &str = "/usr/lib/postgresql";
    if !Path::new(POSTGRESQL).is_dir() {
        install_packages(&["postgresql"])?;
    }
    need("redis-server", &["redis-server"])
}

/// Installs into `folder` what `files` say, unless it was done before with the same files.
fn install_once(folder: &Path, files: &[&Path], install: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut wanted = Vec::new();
    for file in files {
        wanted.extend(fs::read(file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    let installed = folder.join(".installed-for-tests");
    if fs::read(&installed).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    install()?;
    // Written last, so that an install that failed is not taken for one that was done.
    Ok(fs::write(installed, wanted)?)
}

/// Installs packages that bring a program, where it is not there.
pub(crate) fn need(name: &str, packages: &[&str]) -> Result<()> {
    if is_there(name) {
        Ok(())
    } else {
        install_packages(packages)
    }
}

/// Installs packages of the system, where it is Debian's kind and we may.
fn install_packages(packages: &[&str]) -> Result<()> {
    let names = packages.join(" ");
    if !is_there("apt-get") {
        bail!("{names}: please install what provides it on this system");
    }
    if shell::output(program("id").arg("-u"))?.trim() != "0" {
        bail!("{names}: please run `apt-get install {names}` as root");
    }
    let apt_get = || {
        let mut command = program("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").arg("-qq");
        command
    };
    shell::run(apt_get().arg("update"))?;
    shell::run(
        apt_get()
            .args(["install", "--yes", "--no-install-recommends"])
            .args(packages),
    )
}
