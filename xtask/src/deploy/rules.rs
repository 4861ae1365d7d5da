//! What the files of a deployment owe each other, the binary and the machine they run on.

mod containers;
mod kubernetes;

use serde_json::Value;

/// How long saving what is being redeemed may take after `drain_timeout`: the keeper's `FLIGHT_LASTS`, a lease and one
/// exchange with the provider.
const SAVING_SECONDS: u64 = 45;

/// Where the state of a container is, and of the service under systemd: everything that is written lies below.
const STATE: &str = "/var/lib/evergrant";

/// A way of running the service, with what it hands over to it.
pub(super) struct Deployment<'a> {
    pub(super) name: &'static str,
    /// The folder that the secrets are in.
    pub(super) secrets_at: &'static str,
    pub(super) secrets: Vec<&'a str>,
    pub(super) environment: Vec<(&'a str, &'a str)>,
}

pub(super) fn deployments(shipped: &Value) -> [Deployment<'_>; 3] {
    let credentials = list(at(shipped, "/unit/Service/LoadCredential")).into_iter();
    let container = at(
        shipped,
        "/kubernetes/manifests/StatefulSet.evergrant/spec/template/spec/containers/0",
    );
    [
        Deployment {
            name: "compose",
            secrets_at: "/run/secrets",
            secrets: texts(at(shipped, "/compose/services/evergrant/secrets")),
            environment: entries(at(shipped, "/compose/services/evergrant/environment"))
                .filter_map(|(name, value)| Some((name, value.as_str()?)))
                .collect(),
        },
        Deployment {
            name: "kubernetes",
            secrets_at: "/run/secrets",
            secrets: entries(at(shipped, "/kubernetes/manifests/Secret.evergrant/stringData"))
                .map(|(name, _)| name)
                .collect(),
            environment: list(&container["env"])
                .into_iter()
                .filter_map(|variable| Some((variable["name"].as_str()?, variable["value"].as_str()?)))
                .collect(),
        },
        Deployment {
            name: "systemd",
            secrets_at: "/run/credentials/evergrant.service",
            secrets: credentials
                .filter_map(|credential| Some(credential.as_str()?.split_once(':')?.0))
                .collect(),
            environment: texts(at(shipped, "/unit/Service/Environment"))
                .into_iter()
                .filter_map(|variable| variable.split_once('='))
                .collect(),
        },
    ]
}

/// Every rule that does not hold, in a sentence.
pub(super) fn broken(shipped: &Value) -> Vec<String> {
    let mut rules = Rules {
        shipped,
        broken: Vec::new(),
    };
    rules.image();
    rules.compose();
    rules.kubernetes();
    rules.unit();
    rules.configurations();
    rules.broken
}

struct Rules<'a> {
    shipped: &'a Value,
    broken: Vec<String>,
}

impl<'a> Rules<'a> {
    fn at(&self, pointer: &str) -> &'a Value {
        at(self.shipped, pointer)
    }

    fn text(&self, pointer: &str) -> &'a str {
        self.at(pointer).as_str().unwrap_or_default()
    }

    fn manifest(&self, name: &str) -> &'a Value {
        self.at(&format!("/kubernetes/manifests/{name}"))
    }

    fn holds(&mut self, it_does: bool, rule: &str) {
        if !it_does {
            self.broken.push(rule.to_owned());
        }
    }

    fn is(&mut self, what: &str, found: &Value, expected: impl Into<Value>) {
        let expected = expected.into();
        if *found != expected {
            self.broken
                .push(format!("{what}: is {found} and has to be {expected}"));
        }
    }

    fn unit(&mut self) {
        let service = self.at("/unit/Service");
        let value = |key: &str| service[key][0].clone();
        self.is(
            "evergrant.service: ExecStart",
            &value("ExecStart"),
            "/usr/local/bin/evergrant serve",
        );
        self.is("evergrant.service: KillSignal", &value("KillSignal"), "SIGTERM");
        self.is("evergrant.service: User", &value("User"), "evergrant");
        self.is(
            "evergrant.service: StateDirectory",
            &value("StateDirectory"),
            "evergrant",
        );
        self.is(
            "evergrant.service: WorkingDirectory",
            &value("WorkingDirectory"),
            STATE,
        );
        self.is(
            "evergrant.service: RestartPreventExitStatus",
            &value("RestartPreventExitStatus"),
            "2",
        );
        // It would take /proc/sys away, and the boot id with it.
        self.holds(
            value("ProcSubset").is_null(),
            "evergrant.service: /proc/sys stays readable",
        );
        let stops_in = seconds(&value("TimeoutStopSec"));
        let needed = self.seconds_to_stop("systemd");
        self.holds(
            stops_in >= needed,
            "evergrant.service: TimeoutStopSec is longer than draining and saving take",
        );
    }

    fn configurations(&mut self) {
        for Deployment {
            name,
            secrets_at,
            secrets,
            ..
        } in deployments(self.shipped)
        {
            let config = self.at(&format!("/configuration/{name}"));
            let lifeboat = config["lifeboat"]["dir"].as_str().unwrap_or_default();
            self.holds(
                lifeboat.starts_with(&format!("{STATE}/")),
                &format!("{name}: the lifeboat is among the state, below its root"),
            );
            self.is(
                &format!("{name}: a vault key"),
                self.at(&format!("/loaded/{name}/has_vault_key")),
                "true",
            );
            let url = config["store"]["url"].as_str().unwrap_or_default();
            let is_safe = match url.split_once("://") {
                Some(("sqlite", path)) => path.starts_with(&format!("{STATE}/")),
                Some(("postgres", _)) => !config["store"]["password_file"].is_null(),
                _ => false,
            };
            self.holds(
                is_safe,
                &format!("{name}: the store is among the state, or has its password in a file"),
            );
            let mut used = vec![
                &config["vault"]["key_file"],
                &config["store"]["password_file"],
                &config["apps"]["crm"]["client_secret_file"],
            ];
            used.retain(|file| !file.is_null());
            let mut used: Vec<_> = used
                .iter()
                .filter_map(|file| file.as_str()?.strip_prefix(secrets_at)?.strip_prefix('/'))
                .collect();
            let mut given = secrets;
            used.sort_unstable();
            given.sort_unstable();
            self.holds(
                used == given,
                &format!("{name}: the secrets that it is given are those that its configuration names"),
            );
        }
    }

    /// From SIGTERM to the end, at the longest.
    fn seconds_to_stop(&self, deployment: &str) -> Option<u64> {
        let drain = self.text(&format!("/loaded/{deployment}/drain_seconds"));
        Some(drain.parse::<u64>().ok()? + SAVING_SECONDS)
    }
}

fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

fn list(value: &Value) -> Vec<&Value> {
    value.as_array().into_iter().flatten().collect()
}

fn texts(value: &Value) -> Vec<&str> {
    list(value).into_iter().filter_map(Value::as_str).collect()
}

fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.as_str(), value))
}

fn is_secret(name: &str) -> bool {
    ["PASSWORD", "SECRET", "KEY", "URL"]
        .iter()
        .any(|word| name.contains(word))
}

/// Written in seconds, like `90s`.
fn seconds(value: &Value) -> Option<u64> {
    value.as_str()?.strip_suffix('s')?.parse().ok()
}
