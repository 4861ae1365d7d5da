//! How a command ends: its exit code, and what is said on standard error.

use std::fmt;
use std::process::ExitCode;

use bytes::Bytes;
use evergrant_config::ConfigError;
use http::Response;
use serde::Deserialize;

/// The exit codes, which scripts rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Also where the reader of our output had enough of it: `| head -1`.
    Done = 0,
    Failed = 1,
    /// Wrong use or configuration.
    Usage = 2,
    /// The connection needs reconnecting.
    Reconnect = 3,
    /// The provider refuses the app's credentials.
    AppCredentials = 4,
    /// Provider, store or service cannot be reached now.
    Unavailable = 5,
    /// The doctor found a cause that none of the others is for.
    OtherCause = 6,
    /// Ctrl-C, as shells count it.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// What is wrong and where; empty where everything has been said.
    what: String,
    /// What to do.
    action: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, what: impl fmt::Display) -> Self {
        Self {
            exit,
            what: what.to_string(),
            action: None,
        }
    }

    pub(crate) fn failed(what: impl fmt::Display) -> Self {
        Self::new(Exit::Failed, what)
    }

    pub(crate) fn usage(what: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, what)
    }

    /// An exit code about which everything has been said.
    pub(crate) fn silent(exit: Exit) -> Self {
        Self::new(exit, "")
    }

    /// Says what to do.
    #[must_use]
    pub(crate) fn advise(self, action: impl fmt::Display) -> Self {
        Self {
            action: Some(action.to_string()),
            ..self
        }
    }

    /// The answer of a service that did not do what it was asked.
    pub(crate) fn answered(response: &Response<Bytes>) -> Self {
        match serde_json::from_slice::<Problem>(response.body()) {
            Ok(problem) => problem.into(),
            Err(_) => Self::foreign(response.status()),
        }
    }

    /// Whoever answered is no Evergrant service, or a proxy before it.
    pub(crate) fn foreign(status: http::StatusCode) -> Self {
        let exit = if status.is_server_error() {
            Exit::Unavailable
        } else {
            Exit::Usage
        };
        Self::new(exit, format!("the answer ({status}) is not Evergrant's")).advise(
            "Check the address: --server and EVERGRANT_URL take a service's, without a path of its API.",
        )
    }

    /// Prints what is to be said and gives the code to exit with.
    pub(crate) fn report(&self) -> ExitCode {
        use std::io::Write as _;
        if !self.what.is_empty() {
            // Standard error may be closed; the exit code says the same.
            let _ = writeln!(std::io::stderr(), "{self}");
        }
        self.exit.into()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "evergrant: {}", printable(&self.what))?;
        match &self.action {
            Some(action) => write!(f, "\n  {}", printable(action)),
            None => Ok(()),
        }
    }
}

/// What others wrote must not steer the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\n' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error)
    }
}

/// A problem document, as far as the command line needs it.
#[derive(Debug, Deserialize)]
pub(crate) struct Problem {
    pub(crate) code: String,
    pub(crate) detail: String,
    action: String,
    connection: Option<String>,
    reconnect_url: Option<String>,
    request_id: Option<String>,
    provider_correlation_id: Option<String>,
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        let detail = problem.detail.trim_end_matches('.');
        let mut what = match &problem.connection {
            Some(connection) => format!("{connection}: {detail} ({})", problem.code),
            None => format!("{detail} ({})", problem.code),
        };
        if let Some(id) = &problem.provider_correlation_id {
            what = format!("{what}, correlation id {id}");
        }
        let exit = exit_of(&problem.code);
        let action = match (&problem.reconnect_url, &problem.request_id) {
            (Some(url), _) if problem.code == "reconnect_required" => format!("Send the customer to {url}"),
            // It is one way among others.
            (Some(url), _) => format!("{}\n  {url}", problem.action),
            (None, Some(id)) if problem.code == "internal" => format!("{} ({id})", problem.action),
            (None, _) => problem.action,
        };
        Self::new(exit, what).advise(action)
    }
}

/// What a problem's code means for whoever waits for the command. A code of a newer service than this is a failure.
pub(crate) fn exit_of(code: &str) -> Exit {
    match code {
        "reconnect_required" | "disconnected" => Exit::Reconnect,
        "app_credentials_rejected" => Exit::AppCredentials,
        "provider_unavailable"
        | "store_unavailable"
        | "overloaded"
        | "idempotency_in_progress"
        | "upstream_unreachable"
        | "upstream_timeout" => Exit::Unavailable,
        "invalid_api_key" | "forbidden" | "bad_request" | "host_not_allowed" | "unknown_app"
        | "app_not_configured" => Exit::Usage,
        _ => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(code: &str, exit: Exit) {
        let body = format!(
            r#"{{"type":"urn:evergrant:problem:{code}","title":"t","status":424,"detail":"why.","code":"{code}",
                "action":"do this","retryable":false,"connection":"acme"}}"#
        );
        let failure = Failure::answered(&Response::new(Bytes::from(body)));
        assert_eq!(failure.exit, exit, "{code}");
        assert_eq!(
            failure.to_string(),
            format!("evergrant: acme: why ({code})\n  do this")
        );
    }

    #[test]
    fn a_problem_becomes_the_exit_code_of_what_is_to_be_done() {
        check("reconnect_required", Exit::Reconnect);
        check("app_credentials_rejected", Exit::AppCredentials);
        check("provider_unavailable", Exit::Unavailable);
        check("store_unavailable", Exit::Unavailable);
        check("upstream_timeout", Exit::Unavailable);
        check("idempotency_in_progress", Exit::Unavailable);
        check("invalid_api_key", Exit::Usage);
        check("unknown_connection", Exit::Failed);
        check("connection_unreadable", Exit::Failed);
        check("outcome_unknown", Exit::Failed);
        check("of_a_later_version", Exit::Failed);
    }

    #[test]
    fn where_reconnecting_is_one_way_among_others_all_are_named() {
        let advice = |code: &str| {
            let body = format!(
                r#"{{"type":"urn:evergrant:problem:{code}","title":"t","status":424,"detail":"why.","code":"{code}",
                    "action":"Do this or that.","retryable":false,"reconnect_url":"https://here"}}"#
            );
            Failure::answered(&Response::new(Bytes::from(body))).to_string()
        };
        assert!(advice("reconnect_required").ends_with("\n  Send the customer to https://here"));
        assert!(advice("connection_unreadable").ends_with("\n  Do this or that.\n  https://here"));
    }

    #[test]
    fn an_answer_of_somebody_else_is_not_taken_for_a_problem() {
        let answer = |status: u16| {
            let mut response = Response::new(Bytes::from("<html>502</html>"));
            *response.status_mut() = http::StatusCode::from_u16(status).expect("a literal status");
            Failure::answered(&response).exit
        };
        assert_eq!(answer(404), Exit::Usage);
        assert_eq!(answer(502), Exit::Unavailable);
    }

    #[test]
    fn what_others_wrote_does_not_steer_the_terminal() {
        let shown = Failure::failed("\u{1b}[31mred").to_string();
        assert!(!shown.contains('\u{1b}'), "{shown:?}");
    }
}
