//! Real faults on real processes, for as long as one likes: what the target `fleet` of the command line's tests does in short.

use anyhow::{Context as _, Result, anyhow, bail};

use crate::clients;
use crate::shell::{self, cargo};

const USAGE: &str = "\
cargo xtask faults …   several services on one store, under load, while processes, database and provider fail
  --minutes N              for how long things fail (10); 0 for as long as in CI
  --store postgres|sqlite  where connections are kept (first one, then the other)
  --mode lease|row_lock|redis|mixed
                           who waits how for their turn (lease); mixed: every process another one;
                           row_lock: on PostgreSQL only
  --rotation never|grace|single_use
                           what the provider does with refresh tokens (grace on PostgreSQL, never on SQLite)
  --seed N                 decides what fails when (1)";

/// The tests that do it, by the name of the store.
const TESTS: [(&str, &str); 2] = [
    ("postgres", "a_fleet_on_postgresql_survives_what_happens_to_it"),
    ("sqlite", "a_fleet_on_sqlite_survives_what_happens_to_it"),
];

/// Runs it on each store that was asked for.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    if arguments.iter().any(|argument| argument == "--help") {
        println!("{USAGE}");
        return Ok(());
    }
    let Wish { store, told } = wish(arguments).map_err(|error| anyhow!("{error:#}\n\n{USAGE}"))?;
    clients::servers()?;
    for (_, test) in TESTS
        .iter()
        .filter(|(name, _)| store.is_none_or(|store| store == *name))
    {
        let target = [
            "test",
            "--locked",
            "--package",
            "evergrant-cli",
            "--test",
            "fleet",
        ];
        shell::run(
            cargo()
                .args(target)
                .args(["--", "--nocapture", "--exact", test])
                .env("EVERGRANT_TEST_FAULTS", &told),
        )?;
    }
    Ok(())
}

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    /// `None` for every one.
    store: Option<&'static str>,
    /// What the tests are told.
    told: String,
}

fn wish(arguments: &[String]) -> Result<Wish> {
    let mut store = None;
    let mut told = vec!["minutes=10".to_owned()];
    let mut words = arguments.iter().map(String::as_str);
    while let Some(key) = words.next() {
        let value = words.next().with_context(|| format!("{key} has no value"))?;
        let is_one_of = |known: &[&str]| {
            if known.contains(&value) {
                return Ok(());
            }
            bail!("{key} is none of {}: {value}", known.join(", "))
        };
        match key {
            "--store" => {
                let known = TESTS.map(|(name, _)| name);
                is_one_of(&known)?;
                store = known.into_iter().find(|name| *name == value);
                continue;
            }
            "--mode" => is_one_of(&["lease", "row_lock", "redis", "mixed"])?,
            "--rotation" => is_one_of(&["never", "grace", "single_use"])?,
            "--minutes" | "--seed" => {
                value
                    .parse::<u64>()
                    .with_context(|| format!("{key} is no number: {value}"))?;
            }
            _ => bail!("there is no {key}"),
        }
        if value == "row_lock" {
            store = store.or(Some("postgres"));
        }
        told.push(format!("{}={value}", key.trim_start_matches('-')));
    }
    if store == Some("sqlite") && told.iter().any(|word| word == "mode=row_lock") {
        bail!("row_lock locks rows of PostgreSQL");
    }
    Ok(Wish {
        store,
        told: told.join(" "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    fn check(line: &str, store: Option<&'static str>, told: &str) {
        let expected = Wish {
            store,
            told: told.to_owned(),
        };
        assert_eq!(wish(&words(line)).expect(line), expected);
    }

    #[test]
    fn what_a_failure_prints_is_understood() {
        check("", None, "minutes=10");
        check("--mode row_lock", Some("postgres"), "minutes=10 mode=row_lock");
        check(
            "--minutes 0 --store sqlite --mode lease --rotation never --seed 7",
            Some("sqlite"),
            "minutes=10 minutes=0 mode=lease rotation=never seed=7",
        );
        check(
            "--minutes 4 --store postgres --mode lease --rotation single_use --seed 7",
            Some("postgres"),
            "minutes=10 minutes=4 mode=lease rotation=single_use seed=7",
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason() {
        for (line, reason) in [
            ("--minuets 5", "there is no --minuets"),
            ("--minutes", "--minutes has no value"),
            ("--minutes ten", "--minutes is no number: ten"),
            ("--store mysql", "--store is none of postgres, sqlite: mysql"),
            ("postgres --seed", "there is no postgres"),
            (
                "--mode row_lock --store sqlite",
                "row_lock locks rows of PostgreSQL",
            ),
        ] {
            let error = wish(&words(line)).expect_err(line).to_string();
            assert_eq!(error, reason);
        }
    }
}
