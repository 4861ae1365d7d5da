//! One command for everything CI runs: `cargo xtask test`.
//!
//! What it does is the list [`STEPS`], in that order, stopping at the first that fails; each step can be run on its own by
//! its name. Start reading there. `house` holds the rules of this repository that no compiler knows, `policy` those about
//! dependencies, `deploy` judges what is shipped beside the binary, `clients` brings what the whole-system tests need,
//! `trials`, `faults` and `backlog` what takes longer than CI has time, `bench` measures what a call costs, `shell` runs programs.

mod backlog;
mod bench;
mod clients;
mod deploy;
mod faults;
mod house;
mod planted;
mod policy;
mod promises;
mod runbooks;
mod shell;
mod trials;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::shell::{WHOLE, cargo};

/// A step: its name on the command line, what it proves, and how.
struct Step {
    name: &'static str,
    proves: &'static str,
    run: fn() -> Result<()>,
}

/// Everything, the quick before the slow.
const STEPS: [Step; 11] = [
    Step {
        name: "format",
        proves: "the code is formatted",
        run: format,
    },
    Step {
        name: "house",
        proves: "the repository keeps its own rules",
        run: house::check,
    },
    Step {
        name: "clippy",
        proves: "the lints are silent",
        run: clippy,
    },
    Step {
        name: "features",
        proves: "each feature of the library builds without the others",
        run: features,
    },
    Step {
        name: "policy",
        proves: "dependencies keep the policy",
        run: policy::check,
    },
    Step {
        name: "deploy",
        proves: "what is shipped is sound",
        run: deploy::check,
    },
    Step {
        name: "clients",
        proves: "what the whole-system tests need is there",
        run: prepare_clients,
    },
    Step {
        name: "tests",
        proves: "the tests pass, those in the docs too",
        run: tests,
    },
    Step {
        name: "simulation",
        proves: "thousands of simulated runs keep the invariants",
        run: simulation,
    },
    Step {
        name: "planted",
        proves: "the simulation catches each bug that is planted for it",
        run: planted_bugs,
    },
    Step {
        name: "docs",
        proves: "the docs build and link",
        run: docs,
    },
];

/// What runs for longer than CI has time, with arguments of its own.
struct Trial {
    name: &'static str,
    does: &'static str,
    run: fn(&[String]) -> Result<()>,
}

const TRIALS: [Trial; 7] = [
    Trial {
        name: "backlog",
        does: "replay 50,000 jobs of an hour ago by 16 processes with HubSpot's own client",
        run: backlog::run,
    },
    Trial {
        name: "bench",
        does: "measure what a call costs, against nginx",
        run: bench::run,
    },
    Trial {
        name: "faults",
        does: "kill, stop and cut off real processes, and see what they lose",
        run: faults::run,
    },
    Trial {
        name: "independent",
        does: "check against an authorization server that others wrote; --long waits for leases to end",
        run: trials::independent,
    },
    Trial {
        name: "simulate",
        does: "run the whole refresh path in simulated time; --help says more",
        run: trials::simulate,
    },
    Trial {
        name: "planted",
        does: "see that the simulation catches each bug that is planted for it",
        run: planted::run,
    },
    Trial {
        name: "scale",
        does: "measure 100,000 connections on one PostgreSQL and four processes",
        run: trials::scale,
    },
];

const USAGE: &str = "\
cargo xtask test      everything CI runs
cargo xtask lint      format, house and clippy
cargo xtask STEP…     single steps:";

fn main() -> ExitCode {
    let names: Vec<String> = std::env::args().skip(1).collect();
    let trial = TRIALS
        .iter()
        .find(|trial| names.first().is_some_and(|name| name == trial.name));
    let outcome = match trial {
        Some(trial) => (trial.run)(&names[1..]),
        None => steps_named(&names).and_then(|steps| run(&steps)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\n{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn steps_named(names: &[String]) -> Result<Vec<&'static Step>> {
    let words: Vec<&str> = names.iter().map(String::as_str).collect();
    let wanted = match words.as_slice() {
        ["test"] => return Ok(STEPS.iter().collect()),
        ["lint"] => vec!["format", "house", "clippy"],
        _ => words,
    };
    let unknown = wanted
        .iter()
        .find(|name| !STEPS.iter().any(|step| step.name == **name));
    if wanted.is_empty() || unknown.is_some() {
        let steps = STEPS
            .iter()
            .map(|step| format!("\n  {:<10} {}", step.name, step.proves))
            .collect::<Vec<_>>();
        let problem = unknown.map_or_else(String::new, |name| format!("there is no step {name:?}\n\n"));
        let trials = TRIALS
            .iter()
            .map(|trial| format!("\n  {:<10} {}", trial.name, trial.does))
            .collect::<Vec<_>>();
        bail!(
            "{problem}{USAGE}{}\n\ncargo xtask TRIAL …   longer ones, with arguments (--help):{}",
            steps.concat(),
            trials.concat()
        );
    }
    Ok(STEPS.iter().filter(|step| wanted.contains(&step.name)).collect())
}

/// Runs the steps until one fails, and says at the end what each took.
#[expect(
    clippy::disallowed_methods,
    reason = "a stopwatch for people; no decision hangs on it"
)]
fn run(steps: &[&Step]) -> Result<()> {
    let mut summary: Vec<(&str, Duration)> = Vec::new();
    let mut outcome = Ok(());
    for (index, step) in steps.iter().enumerate() {
        println!(
            "\n=== {}/{} {}: {}",
            index + 1,
            steps.len(),
            step.name,
            step.proves
        );
        let started = Instant::now();
        outcome = (step.run)().with_context(|| format!("{} failed", step.name));
        summary.push((step.name, started.elapsed()));
        if outcome.is_err() {
            break;
        }
    }
    println!();
    for (index, (name, took)) in summary.iter().enumerate() {
        let failed = outcome.is_err() && index + 1 == summary.len();
        println!(
            "{:<6} {name:<10} {:>7.1} s",
            if failed { "FAILED" } else { "ok" },
            took.as_secs_f64()
        );
    }
    for step in &steps[summary.len()..] {
        println!("{:<6} {}", "-", step.name);
    }
    outcome
}

fn format() -> Result<()> {
    shell::run(cargo().args(["fmt", "--all", "--check"])).context("`cargo fmt --all` mends it")
}

fn clippy() -> Result<()> {
    shell::run(
        cargo()
            .arg("clippy")
            .args(WHOLE)
            .args(["--all-targets", "--", "-D", "warnings"]),
    )
}

/// The library's features, one by one; everything else knows them only together.
fn features() -> Result<()> {
    for features in [
        "sqlite",
        "postgres",
        "sqlite,redis",
        "sqlite,tower",
        "sqlite,reqwest",
    ] {
        let clippy = ["clippy", "-p", "evergrant", "--locked", "--no-default-features"];
        shell::run(
            cargo()
                .args(clippy)
                .args(["--features", features, "--", "-D", "warnings"]),
        )?;
    }
    Ok(())
}

fn prepare_clients() -> Result<()> {
    clients::prepare().map(drop)
}

fn tests() -> Result<()> {
    let clients = clients::prepare()?;
    // One that fails hides no other.
    shell::run(
        cargo()
            .arg("test")
            .args(WHOLE)
            .arg("--no-fail-fast")
            .envs(clients),
    )
}

fn simulation() -> Result<()> {
    trials::simulate(&["--seeds".to_owned(), "2000".to_owned()])
}

fn planted_bugs() -> Result<()> {
    planted::run(&[])
}

fn docs() -> Result<()> {
    let doc = ["doc", "--no-deps"];
    shell::run(cargo().args(doc).args(WHOLE).env("RUSTDOCFLAGS", "-D warnings"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(names: &[&str], expected: &[&str]) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let steps = steps_named(&names).expect("known names");
        assert_eq!(steps.iter().map(|step| step.name).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn steps_run_in_their_own_order_however_they_are_named() {
        check(
            &["test"],
            &[
                "format",
                "house",
                "clippy",
                "features",
                "policy",
                "deploy",
                "clients",
                "tests",
                "simulation",
                "planted",
                "docs",
            ],
        );
        check(&["lint"], &["format", "house", "clippy"]);
        check(&["docs", "format"], &["format", "docs"]);
    }

    #[test]
    fn an_unknown_step_is_told_with_all_there_are() {
        let error = steps_named(&["tset".to_owned()])
            .err()
            .expect("no such step")
            .to_string();
        assert!(error.starts_with("there is no step \"tset\""), "{error}");
        assert!(STEPS.iter().all(|step| error.contains(step.name)), "{error}");
    }
}
