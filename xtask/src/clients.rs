//! What the whole-system tests call the service with: HubSpot's official clients for Node and Python, and a browser.
//!
//! The tests find them by three variables; one that is set already is believed, and nothing is installed for it.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::shell::{self, is_there, program};

const NODE_MODULES: &str = "EVERGRANT_TEST_NODE_MODULES";
const PYTHON: &str = "EVERGRANT_TEST_PYTHON";
const CHROMIUM: &str = "EVERGRANT_TEST_CHROMIUM";

/// Installs what is missing, and says by which variables the tests find it.
pub(crate) fn prepare() -> Result<Vec<(&'static str, OsString)>> {
    let mut variables = Vec::new();
    let mut provide = |name: &'static str, install: fn() -> Result<PathBuf>| {
        let value = match env::var_os(name) {
            Some(value) => value,
            None => install()
                .with_context(|| format!("{name} is not set, and what it would name is missing"))?
                .into(),
        };
        println!("{name}={}", value.to_string_lossy());
        variables.push((name, value));
        anyhow::Ok(())
    };
    provide(NODE_MODULES, node_modules)?;
    provide(PYTHON, python)?;
    provide(CHROMIUM, chromium)?;
    Ok(variables)
}

/// The packages of `tests/clients/node`, exactly as its lockfile says.
fn node_modules() -> Result<PathBuf> {
    need("npm", &["nodejs", "npm"])?;
    install_once(
        "node",
        &["package-lock.json", "package.json", ".npmrc"],
        "node_modules",
        |folder| shell::run(program("npm").arg("ci").current_dir(folder)),
    )
}

/// A virtual environment with the packages of `tests/clients/python`, exactly as its hashes say.
fn python() -> Result<PathBuf> {
    need("python3", &["python3", "python3-venv"])?;
    install_once("python", &["requirements.txt"], "venv/bin/python", |folder| {
        let make_venv = || {
            shell::run(
                program("python3")
                    .args(["-m", "venv", "--clear", "venv"])
                    .current_dir(folder),
            )
        };
        if make_venv().is_err() {
            // Debian's python3 has the module, but not what the module needs.
            install_packages(&["python3-venv"])?;
            make_venv()?;
        }
        let pip = "-m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all: \
                   --requirement requirements.txt";
        shell::run(
            program(folder.join("venv/bin/python"))
                .args(pip.split_whitespace())
                .current_dir(folder),
        )
    })
}

/// Debian's browser: playwright's own would come from a host that not every machine reaches.
fn chromium() -> Result<PathBuf> {
    let chromium = PathBuf::from("/usr/bin/chromium");
    if !chromium.exists() {
        install_packages(&["chromium"])?;
    }
    Ok(chromium)
}

/// Copies the files of `tests/clients/CLIENT` to where builds leave things, installs there, and returns where `result`
/// lies. Nothing is done where it was done before with the same files.
fn install_once(
    client: &str,
    files: &[&str],
    result: &str,
    install: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let source = shell::root().join("tests/clients").join(client);
    let folder = shell::target().join("clients").join(client);
    let mut wanted = Vec::new();
    for file in files {
        let path = source.join(file);
        wanted.push((
            file,
            fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?,
        ));
    }
    let (result, installed) = (folder.join(result), folder.join("installed"));
    let state: Vec<u8> = wanted.iter().flat_map(|(_, text)| text.clone()).collect();
    if result.exists() && fs::read(&installed).is_ok_and(|state_before| state_before == state) {
        return Ok(result);
    }
    fs::create_dir_all(&folder)?;
    for (file, text) in wanted {
        fs::write(folder.join(file), text)?;
    }
    install(&folder)?;
    // Written last, so that an install that failed is not taken for one that was done.
    fs::write(installed, state)?;
    Ok(result)
}

fn need(name: &str, packages: &[&str]) -> Result<()> {
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
