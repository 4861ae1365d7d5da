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
    Ok(text(&bytes))
}

/// The text; some shells write UTF-16 into files, with a mark that says in which order its bytes are.
fn text(bytes: &[u8]) -> String {
    let wide = |rest: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = rest.as_chunks::<2>().0.iter().map(|pair| unit(*pair)).collect();
        String::from_utf16_lossy(&units)
    };
    match bytes {
        [0xFF, 0xFE, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xFE, 0xFF, rest @ ..] => wide(rest, u16::from_be_bytes),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_a_shell_that_writes_utf_16_is_read() {
        let little: Vec<u8> = "\u{feff}HTTP 401 ü"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        let big: Vec<u8> = "\u{feff}HTTP 401 ü"
            .encode_utf16()
            .flat_map(u16::to_be_bytes)
            .collect();
        for bytes in [little.as_slice(), big.as_slice(), "HTTP 401 ü".as_bytes()] {
            assert_eq!(text(bytes), "HTTP 401 ü");
        }
        assert_eq!(text(&[0xFF, 0xFE, b'a']), "");
        assert_eq!(text(&[b'a', 0xFF]), "a\u{fffd}");
    }
}
