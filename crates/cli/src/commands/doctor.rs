//! `evergrant doctor`: what is wrong, why, and what to do.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::api::Api;
use crate::args::Doctor;
use crate::failure::{Exit, Failure};
use crate::output::{Output, Tone, note, print_json, print_line, text};

pub(crate) async fn run(api: Api, doctor: Doctor, output: Output) -> Result<(), Failure> {
    let diagnoses = if let Some(id) = &doctor.id {
        vec![api.get(&format!("/v1/connections/{id}/diagnosis")).await?]
    } else {
        let mut query = Vec::new();
        query.extend(doctor.app.iter().map(|app| ("app", app.as_str())));
        query.extend(
            doctor
                .customer
                .iter()
                .map(|customer| ("customer", customer.as_str())),
        );
        query.extend(doctor.account.iter().map(|account| ("account", account.as_str())));
        let mut answer = api.list("/v1/diagnosis", &query).await?;
        match answer["items"].take() {
            Value::Array(items) => items,
            _ => Vec::new(),
        }
    };
    let mut diagnoses = diagnoses;
    // The worst first; those that are alike stay in their order.
    diagnoses.sort_by_key(|diagnosis| std::cmp::Reverse(severity(diagnosis)));
    if output.json {
        match &doctor.id {
            Some(_) => print_json(&diagnoses[0])?,
            None => print_json(&serde_json::json!({"items": diagnoses, "next_cursor": null}))?,
        }
    } else {
        match diagnoses.as_slice() {
            [] => note("There are no such connections."),
            [one] => show(one, output)?,
            many => show_all(many, output)?,
        }
    }
    match diagnoses.first().map_or(Exit::Done, exit) {
        Exit::Done => Ok(()),
        exit => Err(Failure::silent(exit)),
    }
}

/// The code that a script goes by: what is to be done, for the worst of them.
fn exit(diagnosis: &Value) -> Exit {
    match (diagnosis["verdict"].as_str(), diagnosis["cause"].as_str()) {
        (Some("healthy"), _) => Exit::Done,
        (_, Some(cause @ ("grant_refused" | "wrong_account" | "raced_write")))
            if cause == "grant_refused" || !text(diagnosis, "/reconnect_url").is_empty() =>
        {
            Exit::Reconnect
        }
        (_, Some("app_credentials")) => Exit::AppCredentials,
        // Nobody knows, or it passes: ask again.
        (Some("inconclusive"), _) | (_, Some("provider_outage" | "store_trouble")) => Exit::Unavailable,
        _ => Exit::OtherCause,
    }
}

/// What comes first in a list of many, and decides the exit code.
fn severity(diagnosis: &Value) -> u8 {
    match (exit(diagnosis), diagnosis["verdict"].as_str()) {
        (Exit::AppCredentials, _) => 6,
        (Exit::Reconnect, _) => 5,
        (Exit::Unavailable, Some("cause")) => 4,
        (Exit::OtherCause, _) => 3,
        (Exit::Unavailable, _) => 2,
        _ => 1,
    }
}

/// One connection: the verdict, what to do, and everything that was looked at.
fn show(diagnosis: &Value, output: Output) -> Result<(), Failure> {
    let member = |pointer: &str| text(diagnosis, pointer);
    let (tone, verdict) = headline(diagnosis);
    print_line(output.paint(tone, &format!("{}: {verdict}", member("/connection"))))?;
    print_line("")?;
    print_line(member("/summary"))?;
    print_line("")?;
    print_line(format_args!(
        "{} {}",
        output.paint(Tone::Strong, "Do:"),
        member("/action")
    ))?;
    let link = member("/reconnect_url");
    if !link.is_empty() {
        print_line(format_args!(
            "{} {link}",
            output.paint(Tone::Strong, "Reconnect at:")
        ))?;
    }
    let runbook = member("/runbook_url");
    if !runbook.is_empty() {
        print_line(format_args!(
            "{} {runbook}",
            output.paint(Tone::Strong, "Step by step:")
        ))?;
    }
    print_line("")?;
    let checks = diagnosis["checks"].as_array().map_or(&[][..], Vec::as_slice);
    let width = checks
        .iter()
        .map(|check| text(check, "/id").len())
        .max()
        .unwrap_or(0);
    for check in checks {
        let result = text(check, "/result");
        let tone = match result.as_str() {
            "found" => Tone::Bad,
            "skipped" => Tone::Warning,
            _ => Tone::Faint,
        };
        let id = text(check, "/id");
        let result = output.paint(tone, &format!("{result:7}"));
        print_line(format_args!(
            "{result}  {id:width$}  {}",
            text(check, "/evidence")
        ))?;
    }
    Ok(())
}

fn headline(diagnosis: &Value) -> (Tone, String) {
    match diagnosis["verdict"].as_str() {
        Some("healthy") => (Tone::Good, "healthy".to_owned()),
        Some("inconclusive") => (Tone::Warning, "inconclusive".to_owned()),
        _ => (
            Tone::Bad,
            format!("{} ({})", text(diagnosis, "/title"), text(diagnosis, "/cause")),
        ),
    }
}

/// Causes that are an app's, the provider's or our own: every connection has them for the same reason.
const OF_ALL: [&str; 4] = [
    "app_credentials",
    "provider_outage",
    "store_trouble",
    "clock_skew",
];

/// Many connections: what they have in common once, then a line for each, the worst first.
fn show_all(diagnoses: &[Value], output: Output) -> Result<(), Failure> {
    let mut common: BTreeMap<(String, String), Vec<&Value>> = BTreeMap::new();
    for diagnosis in diagnoses {
        let cause = text(diagnosis, "/cause");
        if OF_ALL.contains(&cause.as_str()) {
            common
                .entry((text(diagnosis, "/app"), cause))
                .or_default()
                .push(diagnosis);
        }
    }
    common.retain(|_, of| of.len() > 1);
    for ((app, cause), of) in &common {
        let heading = format!(
            "{} ({cause}): {} connections of {app}",
            text(of[0], "/title"),
            of.len()
        );
        print_line(output.paint(Tone::Bad, &heading))?;
        print_line(text(of[0], "/summary"))?;
        print_line(format_args!(
            "{} {}",
            output.paint(Tone::Strong, "Do:"),
            text(of[0], "/action")
        ))?;
        print_line("")?;
    }
    let row = |diagnosis: &Value| {
        let cause = text(diagnosis, "/cause");
        let key = (text(diagnosis, "/app"), cause.clone());
        let action = if common.contains_key(&key) {
            "see above".to_owned()
        } else {
            text(diagnosis, "/action")
        };
        let verdict = if cause.is_empty() {
            text(diagnosis, "/verdict")
        } else {
            cause
        };
        let [id, app, customer] = ["/connection", "/app", "/customer"].map(|member| text(diagnosis, member));
        [id, app, customer, verdict, action]
    };
    let headings = ["CONNECTION", "APP", "CUSTOMER", "VERDICT", "WHAT TO DO"];
    output.table(headings, diagnoses.iter().map(row).collect())?;
    let well = diagnoses.iter().filter(|one| one["verdict"] == "healthy").count();
    note(format_args!(
        "{} examined, {well} healthy.",
        crate::output::count(diagnoses.len() as u64, "connection")
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_exit_code_says_what_is_to_be_done() {
        let check = |verdict: &str, cause: Option<&str>, link: Option<&str>, code: Exit| {
            let diagnosis = json!({"verdict": verdict, "cause": cause, "reconnect_url": link});
            assert_eq!(exit(&diagnosis), code, "{diagnosis}");
        };
        check("healthy", None, None, Exit::Done);
        check("inconclusive", None, None, Exit::Unavailable);
        check("cause", Some("grant_refused"), Some("x"), Exit::Reconnect);
        check("cause", Some("grant_refused"), None, Exit::Reconnect);
        check("cause", Some("wrong_account"), Some("x"), Exit::Reconnect);
        check("cause", Some("raced_write"), Some("x"), Exit::Reconnect);
        check("cause", Some("raced_write"), None, Exit::OtherCause);
        check("cause", Some("app_credentials"), None, Exit::AppCredentials);
        check("cause", Some("app_credentials"), Some("x"), Exit::AppCredentials);
        check("cause", Some("provider_outage"), None, Exit::Unavailable);
        check("cause", Some("store_trouble"), None, Exit::Unavailable);
        // Its reconnecting asks for more; calls that need nothing new go on.
        check("cause", Some("missing_scopes"), Some("x"), Exit::OtherCause);
        check("cause", Some("queue_delay"), None, Exit::OtherCause);
    }

    #[test]
    fn the_worst_comes_first() {
        let of = |verdict: &str, cause: Option<&str>| severity(&json!({"verdict": verdict, "cause": cause}));
        let order = [
            of("cause", Some("app_credentials")),
            of("cause", Some("grant_refused")),
            of("cause", Some("provider_outage")),
            of("cause", Some("queue_delay")),
            of("inconclusive", None),
            of("healthy", None),
        ];
        assert!(order.is_sorted_by(|a, b| a > b), "{order:?}");
    }
}
