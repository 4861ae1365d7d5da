//! The rules of this repository that no compiler knows: which crate may know which, and what must not be found where.

use std::fs;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::promises::Promises;
use crate::runbooks;
use crate::shell::{self, cargo, program};

const FILE_SIZE_MAX: u64 = 1_000_000;

/// The product from the ground up. A crate knows only crates of the layers below its own.
const LAYERS: [&[&str]; 7] = [
    &["evergrant-domain"],
    &[
        "evergrant-oauth",
        "evergrant-store",
        "evergrant-metrics",
        "evergrant-config",
        "evergrant-dashboard",
    ],
    &["evergrant-keeper"],
    &["evergrant-gateway", "evergrant-doctor", "evergrant-webhooks"],
    &["evergrant"],
    &["evergrant-server"],
    &["evergrant-cli"],
];
/// Knows nothing of the product, or both would be wrong alike. Any test may use it; besides, the commands that start it.
const SIMULATOR: &str = "hubspot-sim";
const STARTS_THE_SIMULATOR: &str = "evergrant-cli";
/// They start servers that tests need, and are no part of the product.
const FOR_TESTS: [&str; 2] = ["test-postgres", "test-redis"];
/// They try the product out, from inside or from outside. Nobody knows them.
const TRIALS: [&str; 2] = ["evergrant-scale", "evergrant-simulation"];
/// Only the service and the command line have a configuration file.
const CONFIG: &str = "evergrant-config";
const READS_CONFIG: [&str; 2] = ["evergrant-server", "evergrant-cli"];

/// A text that must not stand in Rust code in some folder, but for the places named.
struct Absence {
    text: &'static str,
    under: &'static str,
    except: &'static [&'static str],
    because: &'static str,
}

const ABSENCES: [Absence; 9] = [
    Absence {
        text: ".redeem(",
        under: "crates/",
        except: &["crates/keeper/", "crates/oauth/", "crates/hubspot-sim/"],
        because: "only the keeper redeems refresh tokens",
    },
    Absence {
        text: ".bearer",
        under: "crates/",
        except: &["crates/gateway/", "crates/keeper/"],
        because: "only the gateway puts an access token on a request",
    },
    Absence {
        text: "SystemTime::now",
        under: "crates/",
        // HTTP's `Date` tells the machine's time, and nothing is decided by it.
        except: &["crates/server/src/short/write.rs"],
        because: "wall time comes from the keeper's `Clock`",
    },
    Absence {
        text: ".await",
        under: "crates/domain/",
        except: &[],
        because: "the domain waits for nothing",
    },
    Absence {
        text: "Serialize",
        under: "crates/domain/",
        except: &[],
        because: "the domain is no wire format",
    },
    Absence {
        text: "std::fs",
        under: "crates/domain/",
        except: &[],
        because: "the domain touches no file",
    },
    Absence {
        text: "todo!",
        under: "crates/",
        except: &[],
        because: "what is committed is whole",
    },
    Absence {
        text: "dbg!",
        under: "crates/",
        except: &[],
        because: "what is committed is whole",
    },
    Absence {
        // Written so that it is not found here.
        text: concat!("#[", "ignore"),
        under: "crates/",
        except: &[],
        because: "a test that does not run proves nothing",
    },
];

/// What the domain must not even depend on.
const NOT_FOR_THE_DOMAIN: [&str; 3] = ["tokio", "tracing", "log"];

pub(crate) fn check() -> Result<()> {
    let mut broken = Vec::new();
    let mut promises = Promises::default();
    for path in files()? {
        check_file(&path, &mut broken, &mut promises).with_context(|| format!("cannot read {path}"))?;
    }
    broken.extend(promises.broken());
    runbooks::check(&mut broken)?;
    let metadata =
        shell::output(cargo().args(["metadata", "--no-deps", "--locked", "--format-version", "1"]))?;
    check_arrows(&arrows(&serde_json::from_str(&metadata)?), &mut broken);
    if !broken.is_empty() {
        bail!("{} broken:\n{}", broken.len(), broken.join("\n"));
    }
    Ok(())
}

/// What is tracked, or would be with the next `git add`.
fn files() -> Result<Vec<String>> {
    let listed = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let listed = shell::output(program("git").args(listed))?;
    // One that was deleted but not committed yet is still listed.
    Ok(listed
        .split_terminator('\0')
        .filter(|path| shell::root().join(path).is_file())
        .map(str::to_owned)
        .collect())
}

fn check_file(path: &str, broken: &mut Vec<String>, promises: &mut Promises) -> Result<()> {
    let file = shell::root().join(path);
    let size = file.metadata()?.len();
    if size > FILE_SIZE_MAX {
        broken.push(format!("{path}: {size} bytes, and {FILE_SIZE_MAX} is the most"));
    }
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("rs") => {
            let text = fs::read_to_string(file)?;
            check_absences(path, &text, broken);
            promises.read(path, &text);
        }
        Some("md") => promises.read(path, &fs::read_to_string(file)?),
        Some("json") => {
            if let Err(error) = serde_json::from_slice::<Value>(&fs::read(file)?) {
                broken.push(format!(
                    "{path}: no JSON ({error}); a fixture that is broken on purpose is a .txt"
                ));
            }
        }
        _ => {}
    }
    Ok(())
}

fn check_absences(path: &str, text: &str, broken: &mut Vec<String>) {
    let here = ABSENCES.iter().filter(|absence| {
        path.starts_with(absence.under) && !absence.except.iter().any(|except| path.starts_with(except))
    });
    for absence in here {
        for (index, _) in text
            .lines()
            .enumerate()
            .filter(|(_, line)| holds(line, absence.text))
        {
            broken.push(format!(
                "{path}:{}: {}: {}",
                index + 1,
                absence.text,
                absence.because
            ));
        }
    }
}

/// Whether a line holds the text as a word of its own: `.bearer` is not in `.bearer_of`.
fn holds(line: &str, text: &str) -> bool {
    let goes_on = |rest: &str| rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    let is_word = text.ends_with(|c: char| c.is_alphanumeric());
    line.match_indices(text)
        .any(|(at, _)| !(is_word && goes_on(&line[at + text.len()..])))
}

/// One crate of the workspace depends on another crate, in its tests alone or as such.
struct Arrow {
    from: String,
    to: String,
    for_tests: bool,
}

fn arrows(metadata: &Value) -> Vec<Arrow> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let arrows_of = |package: &Value| {
        let from = text(&package["name"]);
        list(&package["dependencies"])
            .into_iter()
            .map(move |dependency| Arrow {
                from: from.clone(),
                to: text(&dependency["name"]),
                for_tests: dependency["kind"] == "dev",
            })
    };
    list(&metadata["packages"]).iter().flat_map(arrows_of).collect()
}

fn check_arrows(arrows: &[Arrow], broken: &mut Vec<String>) {
    for arrow in arrows {
        if let Err(why) = judge(arrow) {
            broken.push(format!("{} depends on {}: {why}", arrow.from, arrow.to));
        }
    }
}

fn judge(Arrow { from, to, for_tests }: &Arrow) -> Result<(), &'static str> {
    let layer = |name: &str| LAYERS.iter().position(|layer| layer.contains(&name));
    if from == "evergrant-domain" && !for_tests && NOT_FOR_THE_DOMAIN.contains(&to.as_str()) {
        return Err("the domain neither waits nor logs");
    }
    if TRIALS.contains(&from.as_str()) {
        return Ok(());
    }
    if to == SIMULATOR {
        return if *for_tests || from == STARTS_THE_SIMULATOR {
            Ok(())
        } else {
            Err("the simulator is for tests")
        };
    }
    if FOR_TESTS.contains(&to.as_str()) && !for_tests {
        return Err("it is for tests");
    }
    if to == CONFIG && !READS_CONFIG.contains(&from.as_str()) {
        return Err("only the service and the command line have a configuration file");
    }
    if TRIALS.contains(&to.as_str()) {
        return Err("a trial is nobody's part");
    }
    match (layer(from), layer(to)) {
        (Some(from), Some(to)) if to < from => Ok(()),
        (Some(_), Some(_)) => Err("arrows point down; see LAYERS in xtask"),
        (None, Some(_)) if from == SIMULATOR => Err("the simulator shares no code with the product"),
        (None, Some(_)) => Err("this crate has no layer yet; see LAYERS in xtask"),
        (_, None) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_arrow(from: &str, to: &str, for_tests: bool, allowed: bool) {
        let arrow = Arrow {
            from: from.to_owned(),
            to: to.to_owned(),
            for_tests,
        };
        assert_eq!(
            judge(&arrow).is_ok(),
            allowed,
            "{from} -> {to}, for tests: {for_tests}"
        );
    }

    #[test]
    fn arrows_point_down() {
        check_arrow("evergrant-keeper", "evergrant-domain", false, true);
        check_arrow("evergrant-server", "evergrant-keeper", false, true);
        check_arrow("evergrant-keeper", "evergrant-gateway", false, false);
        check_arrow("evergrant-oauth", "evergrant-store", false, false);
        check_arrow("evergrant-store", "evergrant-keeper", true, false);
        check_arrow("evergrant-domain", "serde", false, true);
        check_arrow("evergrant-domain", "tokio", false, false);
        check_arrow("evergrant", "evergrant-config", false, false);
        check_arrow("evergrant-cli", "evergrant-config", false, true);
        check_arrow("evergrant-dashboard", "evergrant-keeper", false, false);
        check_arrow("evergrant-server", "evergrant-dashboard", false, true);
        check_arrow("evergrant-newcomer", "evergrant-domain", false, false);
    }

    #[test]
    fn the_simulator_stands_apart() {
        check_arrow("hubspot-sim", "evergrant-domain", false, false);
        check_arrow("hubspot-sim", "evergrant-domain", true, false);
        check_arrow("evergrant-keeper", "hubspot-sim", false, false);
        check_arrow("evergrant-keeper", "hubspot-sim", true, true);
        check_arrow("evergrant-cli", "hubspot-sim", false, true);
    }

    #[test]
    fn servers_for_tests_are_for_tests() {
        check_arrow("evergrant-store", "test-postgres", true, true);
        check_arrow("evergrant-store", "test-postgres", false, false);
        check_arrow("evergrant-keeper", "test-redis", true, true);
        check_arrow("evergrant-keeper", "test-redis", false, false);
    }

    #[test]
    fn trials_know_everybody_and_nobody_knows_them() {
        check_arrow("evergrant-simulation", "evergrant-keeper", false, true);
        check_arrow("evergrant-scale", "hubspot-sim", false, true);
        check_arrow("evergrant-scale", "test-postgres", false, true);
        check_arrow("evergrant-keeper", "evergrant-simulation", true, false);
    }

    #[test]
    fn what_must_be_absent_is_found_as_a_word() {
        assert!(holds("let header = current.bearer;", ".bearer"));
        assert!(!holds("let header = sim.bearer_of(id);", ".bearer"));
        assert!(holds("endpoint.redeem(app)", ".redeem("));
        assert!(!holds("a redeemed token", ".redeem("));

        let check = |path: &str, text: &str, expected: &[&str]| {
            let mut broken = Vec::new();
            check_absences(path, text, &mut broken);
            assert_eq!(broken, expected);
        };
        let redeems = "\nendpoint.redeem(app);\n";
        check("crates/keeper/src/redeem.rs", redeems, &[]);
        check(
            "crates/server/src/api.rs",
            redeems,
            &["crates/server/src/api.rs:2: .redeem(: only the keeper redeems refresh tokens"],
        );
    }

    #[test]
    fn cargo_says_who_depends_on_whom() {
        let metadata = serde_json::json!({"packages": [
            {"name": "a", "dependencies": [{"name": "b", "kind": null}, {"name": "c", "kind": "dev"}]},
        ]});
        let found: Vec<_> = arrows(&metadata)
            .into_iter()
            .map(|arrow| (arrow.from, arrow.to, arrow.for_tests))
            .collect();
        assert_eq!(
            found,
            [
                ("a".to_owned(), "b".to_owned(), false),
                ("a".to_owned(), "c".to_owned(), true)
            ]
        );
    }
}
