//! `evergrant explain`: needs no configuration, no store and no service.

use std::io::{self, IsTerminal as _, Read};

use evergrant_domain::explain::explain;
use evergrant_server::Code;
use serde_json::json;

use crate::args::Explain;
use crate::failure::Failure;
use crate::output::{Output, note, print_json};

/// More than any log worth pasting, of which only the two ends are looked at; what is read from elsewhere must end some time.
const READ_MAX: u64 = 64 * 1024 * 1024;

pub(crate) fn run(explain_: &Explain, output: Output) -> Result<(), Failure> {
    let pasted = read(explain_)?;
    let explained = explain(&pasted, Code::about).ok_or_else(|| {
        Failure::failed("there is no HTTP status, JSON error or known message in this text")
            .advise("Paste the whole answer, with its status and body.")
    })?;
    if output.json {
        return print_json(&json!({
            "class": explained.class.as_str(),
            "problem": explained.problem,
            "cause": explained.cause,
            "refresh_helps": explained.refresh_helps,
            "action": explained.action,
            "status": explained.status,
            "code": explained.code,
            "missing_scopes": explained.missing_scopes,
            "retry_after": explained.retry_after.map(|wait| wait.as_secs()),
            "provider_correlation_id": explained.correlation_id,
            "documentation_url": explained.documentation_url,
        }));
    }
    output.fields(&[
        ("class", explained.class.as_str().to_owned()),
        ("problem", explained.problem.unwrap_or_default()),
        ("cause", explained.cause),
        (
            "refresh helps",
            if explained.refresh_helps { "yes" } else { "no" }.to_owned(),
        ),
        ("action", explained.action),
        (
            "status",
            explained
                .status
                .map_or_else(String::new, |status| status.to_string()),
        ),
        ("code", explained.code.unwrap_or_default()),
        ("missing scopes", explained.missing_scopes.join(", ")),
        (
            "retry after",
            explained
                .retry_after
                .map_or_else(String::new, |wait| format!("{} s", wait.as_secs())),
        ),
        ("correlation id", explained.correlation_id.unwrap_or_default()),
        ("documented at", explained.documentation_url.to_owned()),
    ])
}

fn read(explain: &Explain) -> Result<String, Failure> {
    let name = explain.file.display();
    let source: Box<dyn Read> = if explain.file.as_os_str() == "-" {
        if io::stdin().is_terminal() {
            note("Paste the answer, then press Ctrl-D.");
        }
        Box::new(io::stdin())
    } else {
        let file = std::fs::File::open(&explain.file);
        Box::new(file.map_err(|error| Failure::usage(format!("{name} cannot be read: {error}")))?)
    };
    let mut bytes = Vec::new();
    let read = source.take(READ_MAX).read_to_end(&mut bytes);
    read.map_err(|error| Failure::usage(format!("{name} cannot be read: {error}")))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
