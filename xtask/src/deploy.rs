//! What is shipped beside the binary: image, Compose file, Kubernetes manifests, systemd unit, rules and dashboard that watch it.
//!
//! No container is started and nothing is fetched but tools. Each file is read by a parser of its kind and held against its
//! schema (`deploy/read.py`, hadolint, systemd-analyze); its configuration is given to the loader that the service has; and
//! `rules` says what the files owe each other, `monitoring` tries alerts and queries. Then each rule is broken once, to see that it would be noticed.

mod monitoring;
mod planted;
mod rules;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};

use crate::clients;
use crate::shell::{self, WHOLE, cargo, program};

const UNIT: &str = "deploy/systemd/evergrant.service";
/// Out of 100 tenths of "exposed", as systemd counts. What is left is the network, which is the service's trade.
const EXPOSED_AT_MOST: &str = "20";

pub(crate) fn check() -> Result<()> {
    let python = clients::python("deploy", &shell::root().join("xtask/deploy/requirements.txt"))?;
    let read = shell::output(program(&python).arg("xtask/deploy/read.py").arg(shell::root()))?;
    let mut shipped: Value = serde_json::from_str(&read).context("what read.py printed")?;
    println!("every file parses, and is as its schema says");
    if shipped["kubernetes"]["rendered"].is_null() {
        println!("rendering the kustomization was LEFT OUT: there is a kubectl for Linux on x86-64 only");
    }

    let hadolint = python.with_file_name("hadolint");
    shell::run(program(hadolint).args(["--failure-threshold", "style", "Dockerfile"]))?;
    unit()?;

    let loaded = configurations(&shipped)?;
    shipped["loaded"] = loaded;
    println!("every configuration is one that the service takes");

    monitoring::check()?;

    let broken = rules::broken(&shipped);
    if !broken.is_empty() {
        bail!("{} broken:\n{}", broken.len(), broken.join("\n"));
    }
    planted::all_are_noticed(&shipped)
}

/// systemd's own view of the unit.
fn unit() -> Result<()> {
    clients::need("systemd-analyze", &["systemd"])?;
    let text = fs::read_to_string(shell::root().join(UNIT))?;
    // The binary is not installed here, and one that is missing is all that would be said.
    let text = text.replace("/usr/local/bin/evergrant", "/bin/true");
    let folder = shell::target().join("deploy");
    fs::create_dir_all(&folder)?;
    let copy = folder.join("evergrant.service");
    fs::write(&copy, text)?;

    let verified = program("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&copy)
        .stdout(Stdio::piped())
        .output()?;
    // A key that it does not know is a warning to it, and no protection to anyone.
    let said = String::from_utf8_lossy(&verified.stderr);
    if !verified.status.success() || !said.trim().is_empty() {
        bail!("{UNIT}: {said}");
    }
    let security = [
        "security",
        "--offline=yes",
        "--no-pager",
        "--threshold",
        EXPOSED_AT_MOST,
    ];
    let exposed = shell::output(program("systemd-analyze").args(security).arg(&copy))
        .context("systemd-analyze finds it more exposed than is allowed")?;
    println!("{}", exposed.lines().last().unwrap_or_default());
    Ok(())
}

/// What the service makes of each configuration, with the secrets that its deployment hands over and no others.
fn configurations(shipped: &Value) -> Result<Value> {
    shell::run(
        cargo()
            .args(["build", "--quiet"])
            .args(WHOLE)
            .args(["--example", "accepts"]),
    )?;
    let accepts = shell::target().join("debug/examples/accepts");
    let mut loaded = Map::new();
    for deployment in rules::deployments(shipped) {
        let name = deployment.name;
        let folder = shell::target().join("deploy").join(name);
        let secrets = folder.join("secrets");
        fs::create_dir_all(&secrets)?;
        for entry in fs::read_dir(&secrets)? {
            fs::remove_file(entry?.path())?;
        }
        for secret in &deployment.secrets {
            // No key to anything: 32 times zero.
            write(
                &secrets.join(secret),
                "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
                0o440,
            )?;
        }
        let source = format!("deploy/{name}/config.toml");
        let text = fs::read_to_string(shell::root().join(&source))?;
        let file = folder.join("evergrant.toml");
        let here = format!("{}/", secrets.display());
        write(
            &file,
            &text.replace(&format!("{}/", deployment.secrets_at), &here),
            0o644,
        )?;

        let said = shell::output(program(&accepts).arg(&file).envs(deployment.environment))
            .with_context(|| format!("the service would refuse {source}"))?;
        let settings: Map<String, Value> = said
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(name, value)| (name.to_owned(), json!(value)))
            .collect();
        loaded.insert(name.to_owned(), settings.into());
    }
    Ok(loaded.into())
}

fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}
