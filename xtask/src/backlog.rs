//! A backlog that a fleet works through, as long as one likes: what the target `backlog` of the command line's tests does in short.

use anyhow::{Context as _, Result, anyhow, bail};

use crate::clients;
use crate::shell::{self, cargo};

const USAGE: &str = "\
cargo xtask backlog …   jobs of an hour ago, Python processes with HubSpot's own client, services on one PostgreSQL, real limits
  --jobs N          how many (50000)
  --processes N     worker processes (16)
  --threads N       what each does at a time (4)
  --services N      how many `evergrant serve` (3)
  --connections N   whose jobs they are; each takes 11 calls a second for long (16)
  --token-ttl S     how long an access token lives (60)
  --calls-max N     the provider's limit in 10 s, for each connection (110)
  --seed N          decides the order of the jobs (1)";

/// What a run is told unless its arguments say otherwise.
const LONG: [(&str, u64); 8] = [
    ("jobs", 50_000),
    ("processes", 16),
    ("threads", 4),
    ("services", 3),
    ("connections", 16),
    ("token-ttl", 60),
    ("calls-max", 110),
    ("seed", 1),
];

/// Runs it.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    if arguments.iter().any(|argument| argument == "--help") {
        println!("{USAGE}");
        return Ok(());
    }
    let told = told(arguments).map_err(|error| anyhow!("{error:#}\n\n{USAGE}"))?;
    let target = [
        "test",
        "--locked",
        "--package",
        "evergrant-cli",
        "--test",
        "backlog",
        "--",
        "--nocapture",
        "a_backlog",
    ];
    shell::run(
        cargo()
            .args(target)
            .envs(clients::prepare()?)
            .env("EVERGRANT_TEST_BACKLOG", told),
    )
}

fn told(arguments: &[String]) -> Result<String> {
    let mut told = LONG;
    let mut words = arguments.iter().map(String::as_str);
    while let Some(key) = words.next() {
        let value = words.next().with_context(|| format!("{key} has no value"))?;
        let number = value
            .parse::<u32>()
            .ok()
            .filter(|number| *number > 0)
            .with_context(|| format!("{key} is no number above 0: {value}"))?;
        let name = key.strip_prefix("--").unwrap_or_default();
        match told.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count = number.into(),
            None => bail!("there is no {key}"),
        }
    }
    let words = told.map(|(name, count)| format!("{name}={count}"));
    Ok(words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn what_a_failure_prints_is_understood() {
        let long =
            "jobs=50000 processes=16 threads=4 services=3 connections=16 token-ttl=60 calls-max=110 seed=1";
        assert_eq!(told(&[]).unwrap(), long);
        let short = "--jobs 1000 --processes 4 --threads 2 --services 2 --connections 4 --token-ttl 8 --calls-max 190 --seed 7";
        assert_eq!(
            told(&words(short)).unwrap(),
            "jobs=1000 processes=4 threads=2 services=2 connections=4 token-ttl=8 calls-max=190 seed=7"
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason() {
        for (line, reason) in [
            ("--job 5", "there is no --job"),
            ("jobs 5", "there is no jobs"),
            ("--jobs", "--jobs has no value"),
            ("--jobs many", "--jobs is no number above 0: many"),
            ("--connections 0", "--connections is no number above 0: 0"),
        ] {
            assert_eq!(told(&words(line)).expect_err(line).to_string(), reason);
        }
    }
}
