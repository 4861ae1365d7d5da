//! Every alert and every cause of the doctor has its page in `docs/runbooks`, and each page ends in a stop condition.
//!
//! What there has to be is read where it comes from: the causes in the domain, the alerts in the rules for Prometheus. A page that
//! neither of the two asks for, or that the index does not name, is one that nobody finds.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, ensure};

use crate::shell;

const FOLDER: &str = "docs/runbooks";
const INDEX: &str = "README.md";
const CAUSES: &str = "crates/domain/src/diagnosis.rs";
const RULES: &str = "deploy/prometheus/rules.yaml";

/// What each page consists of, in this order.
const PARTS: [&str; 4] = ["## What it means", "## See it", "## Do", "## Stop when"];

/// Reads the pages and what asks for them.
pub(crate) fn check(broken: &mut Vec<String>) -> Result<()> {
    let read = |path: &str| {
        fs::read_to_string(shell::root().join(path)).with_context(|| format!("cannot read {path}"))
    };
    let causes = causes(&read(CAUSES)?);
    ensure!(!causes.is_empty(), "no cause is found in {CAUSES}");
    let alerts = if shell::root().join(RULES).exists() {
        alerts(&read(RULES)?)
    } else {
        Vec::new()
    };
    let mut pages = Vec::new();
    for entry in fs::read_dir(shell::root().join(FOLDER))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != INDEX {
            pages.push((name.clone(), read(&format!("{FOLDER}/{name}"))?));
        }
    }
    broken.extend(judge(
        &causes,
        &alerts,
        &read(&format!("{FOLDER}/{INDEX}"))?,
        &pages,
    ));
    Ok(())
}

/// An alert and the page that it leads to.
struct Alert {
    name: String,
    page: Option<String>,
}

/// The words of `Cause::as_str`.
fn causes(diagnosis: &str) -> Vec<String> {
    let Some((_, rest)) = diagnosis.split_once("impl Cause {") else {
        return Vec::new();
    };
    let Some((_, rest)) = rest.split_once("fn as_str(self)") else {
        return Vec::new();
    };
    let body = rest.split("\n    }").next().unwrap_or(rest);
    body.lines()
        .filter_map(|line| line.trim().strip_prefix("Self::")?.split('"').nth(1))
        .map(str::to_owned)
        .collect()
}

/// The alerts of the rules, which name their pages by their address.
fn alerts(rules: &str) -> Vec<Alert> {
    let mut alerts: Vec<Alert> = Vec::new();
    for line in rules.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("- alert:") {
            alerts.push(Alert {
                name: name.trim().to_owned(),
                page: None,
            });
        } else if let (Some(address), Some(alert)) = (line.strip_prefix("runbook_url:"), alerts.last_mut()) {
            let page = address.trim().trim_matches(['"', '\'']).rsplit('/').next();
            alert.page = page.map(str::to_owned);
        }
    }
    alerts
}

fn judge(causes: &[String], alerts: &[Alert], index: &str, pages: &[(String, String)]) -> Vec<String> {
    let mut broken = Vec::new();
    let mut wanted: BTreeSet<String> = BTreeSet::new();
    let is_there = |page: &str| pages.iter().any(|(name, _)| name == page);
    for cause in causes {
        let page = format!("{cause}.md");
        if !is_there(&page) {
            broken.push(format!(
                "{FOLDER}/{page}: the doctor names {cause}, and there is no page"
            ));
        }
        wanted.insert(page);
    }
    for alert in alerts {
        match &alert.page {
            None => broken.push(format!("{RULES}: {} leads to no runbook", alert.name)),
            Some(page) => {
                match pages.iter().find(|(name, _)| name == page) {
                    None => broken.push(format!(
                        "{FOLDER}/{page}: {} leads to it, and there is none",
                        alert.name
                    )),
                    Some((_, text)) if !text.contains(&format!("`{}`", alert.name)) => {
                        broken.push(format!(
                            "{FOLDER}/{page}: does not name its alert, {}",
                            alert.name
                        ));
                    }
                    Some(_) => {}
                }
                wanted.insert(page.clone());
            }
        }
    }
    for (name, text) in pages {
        if !alerts.is_empty() && !wanted.contains(name) {
            broken.push(format!("{FOLDER}/{name}: no alert and no cause leads to it"));
        }
        if !index.contains(&format!("({name})")) {
            broken.push(format!("{FOLDER}/{name}: {INDEX} does not name it"));
        }
        let parts: Vec<&str> = text.lines().filter(|line| line.starts_with("## ")).collect();
        if parts != PARTS {
            broken.push(format!(
                "{FOLDER}/{name}: has the parts {parts:?} and not {PARTS:?}"
            ));
        } else if !text
            .split_once(PARTS[3])
            .is_some_and(|(_, end)| end.trim_start().starts_with("- "))
        {
            broken.push(format!("{FOLDER}/{name}: does not say when to stop"));
        }
        for linked in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let is_page = !linked.contains(['/', '#']) && linked != INDEX;
            if is_page && !is_there(linked) {
                broken.push(format!("{FOLDER}/{name}: leads to {linked}, which is not there"));
            }
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# T\n\nAlert `A`.\n\n## What it means\n\nx\n\n## See it\n\nx\n\n## Do\n\n1. x\n\n## Stop when\n\n- x\n";

    fn check(alert_page: Option<&str>, index: &str, pages: &[(&str, &str)], expected: &str) {
        let pages: Vec<_> = pages
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect();
        let alert = Alert {
            name: "A".to_owned(),
            page: alert_page.map(str::to_owned),
        };
        let broken = judge(&["c".to_owned()], &[alert], index, &pages).join("; ");
        assert!(
            broken.contains(expected) && broken.is_empty() == expected.is_empty(),
            "{broken}"
        );
    }

    #[test]
    fn a_page_is_missed_and_so_is_its_end() {
        let index = "(a.md) (c.md)";
        let both = [("a.md", PAGE), ("c.md", PAGE)];
        check(Some("a.md"), index, &both, "");
        check(None, index, &both, "A leads to no runbook");
        check(Some("a.md"), index, &both[..1], "the doctor names c");
        check(Some("b.md"), index, &both, "b.md: A leads to it");
        check(Some("a.md"), "(a.md)", &both, "c.md: README.md does not name it");
        let endless = PAGE.replace("- x", "Never.");
        check(
            Some("a.md"),
            index,
            &[("a.md", PAGE), ("c.md", &endless)],
            "when to stop",
        );
        let shorter = PAGE.replace("## See it\n\nx\n\n", "");
        check(
            Some("a.md"),
            index,
            &[("a.md", &shorter), ("c.md", PAGE)],
            "has the parts",
        );
        let nameless = PAGE.replace("`A`", "B");
        check(
            Some("a.md"),
            index,
            &[("a.md", &nameless), ("c.md", PAGE)],
            "does not name its alert",
        );
        let astray = PAGE.replace("1. x", "1. [x](gone.md)");
        check(
            Some("a.md"),
            index,
            &[("a.md", PAGE), ("c.md", &astray)],
            "leads to gone.md",
        );
        let lonely = [both[0], both[1], ("d.md", PAGE)];
        check(
            Some("a.md"),
            "(a.md) (c.md) (d.md)",
            &lonely,
            "no alert and no cause",
        );
    }

    #[test]
    fn causes_and_alerts_are_read_where_they_come_from() {
        let diagnosis = fs::read_to_string(shell::root().join(CAUSES)).unwrap();
        let causes = causes(&diagnosis);
        assert_eq!(causes.first().map(String::as_str), Some("stale_token_reuse"));
        assert_eq!(causes.last().map(String::as_str), Some("no_traffic"));
        let rules = "rules:\n  - alert: A\n    annotations:\n      runbook_url: https://x/docs/runbooks/a.md\n  - alert: B\n";
        let found: Vec<_> = alerts(rules)
            .into_iter()
            .map(|alert| (alert.name, alert.page))
            .collect();
        let expected = [("A".to_owned(), Some("a.md".to_owned())), ("B".to_owned(), None)];
        assert_eq!(found, expected);
    }
}
