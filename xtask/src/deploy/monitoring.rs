//! What watches the service: Prometheus's own tool reads the rules and tries each alert, and reads every query of the dashboard.
//!
//! That the series they name exist, a test of the service says; that each alert leads to a page, `runbooks`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::shell::{self, is_there, program};

const RULES: &str = "deploy/prometheus/rules.yaml";
const TRIALS: &str = "deploy/prometheus/rules.test.yaml";
const DASHBOARD: &str = "deploy/grafana/evergrant.json";

pub(super) fn check() -> Result<()> {
    let promtool = promtool()?;
    let promtool = || program(&promtool);
    shell::run(promtool().args(["check", "rules", RULES]))?;
    shell::run(promtool().args(["test", "rules", TRIALS]))?;
    alerts(&read(RULES)?, &read(TRIALS)?)?;

    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)?).context(DASHBOARD)?;
    let queries = queries(&dashboard);
    if queries.is_empty() {
        bail!("{DASHBOARD} asks for nothing");
    }
    let folder = shell::target().join("deploy");
    fs::create_dir_all(&folder)?;
    let file = folder.join("dashboard.yaml");
    let recorded = queries.iter().enumerate();
    let recorded =
        recorded.map(|(index, query)| json!({"record": format!("dashboard:query_{index}"), "expr": query}));
    // JSON is YAML.
    let rules = json!({"groups": [{"name": "dashboard", "rules": recorded.collect::<Vec<_>>()}]});
    fs::write(&file, rules.to_string())?;
    shell::run(promtool().args(["check", "rules", "--lint=none"]).arg(&file))
        .with_context(|| format!("a query of {DASHBOARD} is none"))
}

fn read(file: &str) -> Result<String> {
    fs::read_to_string(shell::root().join(file)).with_context(|| format!("cannot read {file}"))
}

/// Each alert is tried as it fires and as it stays silent.
fn alerts(rules: &str, trials: &str) -> Result<()> {
    let mut alerts = 0;
    let mut missing = Vec::new();
    for alert in rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
    {
        alerts += 1;
        for trial in ["fires", "stays silent"] {
            if !trials.contains(&format!("- name: {alert} {trial}\n")) {
                missing.push(format!("{TRIALS}: {alert} {trial}"));
            }
        }
    }
    if alerts == 0 || !missing.is_empty() {
        bail!("{alerts} alerts, and missing are:\n{}", missing.join("\n"));
    }
    println!("{alerts} alerts are tried");
    Ok(())
}

/// Every query, with what Grafana puts into it.
fn queries(value: &Value) -> Vec<String> {
    match value {
        Value::Object(members) => {
            let own = members.get("expr").and_then(Value::as_str);
            let own = own.map(|query| {
                query
                    .replace("$__rate_interval", "5m")
                    .replace("$__interval", "1m")
                    .replace("$app", ".*")
                    .replace("$instance", ".*")
            });
            let below = members.values().flat_map(queries);
            own.into_iter().chain(below).collect()
        }
        Value::Array(items) => items.iter().flat_map(queries).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    }
}

/// Debian's, unpacked beside our own builds: the package itself would start a server.
fn promtool() -> Result<PathBuf> {
    let folder = shell::target().join("tools/promtool");
    let ours = folder.join("usr/bin/promtool");
    for candidate in ["promtool".into(), ours.clone()] {
        if is_there(&candidate) {
            return Ok(candidate);
        }
    }
    if !is_there("apt-get") || !is_there("dpkg-deb") {
        bail!("promtool: please install it; Debian has it in the package prometheus");
    }
    fs::create_dir_all(&folder)?;
    let apt_get = || {
        let mut command = program("apt-get");
        command.arg("-qq").current_dir(&folder);
        command
    };
    let download = || shell::run(apt_get().args(["download", "prometheus"]));
    if download().is_err() {
        // The lists of a machine that nothing was installed on yet are empty, or old.
        shell::run(apt_get().arg("update"))?;
        download()?;
    }
    for entry in fs::read_dir(&folder)? {
        let package = entry?.path();
        if package.extension().is_some_and(|extension| extension == "deb") {
            shell::run(program("dpkg-deb").arg("--extract").arg(&package).arg(&folder))?;
            fs::remove_file(package)?;
        }
    }
    Ok(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_that_is_not_tried_is_noticed() {
        let said = alerts(
            "- alert: A\n    - alert: B\n",
            "- name: A fires\n- name: B fires\n- name: B stays silent\n",
        );
        let said = said.expect_err("A is tried once").to_string();
        assert!(
            said.contains("A stays silent") && !said.contains("A fires") && !said.contains('B'),
            "{said}"
        );
        assert!(alerts("groups: []\n", "").is_err());
    }

    #[test]
    fn queries_are_found_however_deep_they_are() {
        let dashboard = json!({"panels": [{"targets": [{"expr": "a{app=~\"$app\"}"}], "panels": [{"expr": "b[$__interval]"}]}]});
        assert_eq!(queries(&dashboard), ["b[1m]", "a{app=~\".*\"}"]);
    }
}
