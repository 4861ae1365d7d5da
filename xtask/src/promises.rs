//! What is promised is kept by something: each rule of redeeming is named where it is kept, and each test that the
//! guarantees name is there.

use std::collections::BTreeSet;

/// The rules of redeeming, as they are numbered.
const RULES: std::ops::RangeInclusive<u32> = 1..=18;
/// Where they are kept.
const KEPT_IN: [&str; 4] = [
    "crates/domain/src/",
    "crates/oauth/src/",
    "crates/store/src/",
    "crates/keeper/src/",
];
/// What names tests, each with underscores between at least this many words.
pub(crate) const GUARANTEES: &str = "docs/guarantees.md";
const WORDS_OF_A_CLAIM: usize = 5;

/// Gathers from file after file what is to be there.
#[derive(Default)]
pub(crate) struct Promises {
    rules_named: BTreeSet<u32>,
    functions: BTreeSet<String>,
    tests_named: BTreeSet<String>,
}

impl Promises {
    pub(crate) fn read(&mut self, path: &str, text: &str) {
        if path == GUARANTEES {
            self.tests_named.extend(claims(text));
        }
        if std::path::Path::new(path)
            .extension()
            .is_none_or(|extension| extension != "rs")
        {
            return;
        }
        self.functions.extend(functions(text));
        if KEPT_IN.iter().any(|folder| path.starts_with(folder)) {
            self.rules_named.extend(rules(text));
        }
    }

    pub(crate) fn broken(&self) -> Vec<String> {
        let nowhere = RULES
            .filter(|rule| !self.rules_named.contains(rule))
            .map(|rule| format!("rule {rule} of redeeming is named nowhere in the code that keeps it"));
        let missing = self
            .tests_named
            .difference(&self.functions)
            .map(|test| format!("{GUARANTEES}: there is no test {test}"));
        nowhere.chain(missing).collect()
    }
}

/// The numbers in `Rule 4`, `rules 2 to 5`, `rules 7, 8`, `rules 14 and 15`.
fn rules(text: &str) -> BTreeSet<u32> {
    let mut named = BTreeSet::new();
    let lower = text.to_lowercase();
    for (at, word) in lower.match_indices("rule") {
        let mut range_from = None;
        let words = lower[at + word.len()..]
            .trim_start_matches('s')
            .split_whitespace();
        for word in words {
            let number: String = word.chars().take_while(char::is_ascii_digit).collect();
            match (number.parse::<u32>(), word) {
                (Ok(number), _) => {
                    named.extend(range_from.take().unwrap_or(number)..=number);
                    // A range begins only where `to` follows.
                    if !word.ends_with(',') {
                        range_from = Some(number);
                    }
                }
                (Err(_), "to") => {}
                (Err(_), "and") => range_from = None,
                (Err(_), _) => break,
            }
        }
    }
    named
}

/// Names in backticks that read as claims.
fn claims(text: &str) -> impl Iterator<Item = String> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| {
            name.split('_').count() >= WORDS_OF_A_CLAIM
                && name
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        })
        .map(str::to_owned)
}

fn functions(text: &str) -> impl Iterator<Item = String> {
    text.split("fn ").skip(1).map(|rest| {
        rest.chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_found_alone_in_lists_and_in_ranges() {
        let check = |text: &str, expected: &[u32]| {
            assert_eq!(rules(text), expected.iter().copied().collect(), "{text}");
        };
        check("// Rule 4: under the lease", &[4]);
        check(
            "PROTOCOL.md, rules 2 to 5 and 11 to 16.",
            &[2, 3, 4, 5, 11, 12, 13, 14, 15, 16],
        );
        check("PROTOCOL rules 4, 7, 8.", &[4, 7, 8]);
        check("the rules of ids, 12 of them", &[]);
    }

    #[test]
    fn what_is_named_and_not_there_is_told() {
        let mut promises = Promises::default();
        promises.read("crates/keeper/src/a.rs", "// Rules 1 to 17.");
        promises.read("crates/cli/src/a.rs", "// Rule 18.");
        promises.read(
            "crates/keeper/tests/a.rs",
            "async fn a_late_answer_is_stored() {}",
        );
        promises.read(
            GUARANTEES,
            "`a_late_answer_is_stored`, `a_late_answer_is_lost_again`, `cargo xtask test`",
        );
        assert_eq!(
            promises.broken(),
            [
                "rule 18 of redeeming is named nowhere in the code that keeps it",
                "docs/guarantees.md: there is no test a_late_answer_is_lost_again",
            ]
        );
    }
}
