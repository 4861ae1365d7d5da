//! A service with one connection, in front of a provider that writes down what it is sent.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::upstream::{Seen, Upstream};
use crate::wire::{Answer, Wire};

/// The access token of the connection `c1`.
pub(crate) const TOKEN: &str = "the-token-of-c1";

/// What must never be seen beyond the gateway; attacks are written with it.
const NOT_FOR_THE_PROVIDER: [&str; 3] = ["evg_", "evil", "smuggled"];

pub(crate) struct Site {
    pub(crate) upstream: Upstream,
    pub(crate) address: String,
    pub(crate) key: String,
    child: Child,
    folder: TempDir,
}

impl Drop for Site {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One attack: what is sent, what of it may reach the provider, and what comes back.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    /// Method and target of each request that arrives.
    pub(crate) arrives: &'static [&'static str],
    /// Status and code of each answer; no code for the provider's.
    pub(crate) answers: &'static [(u16, &'static str)],
    /// Whether a request may have begun to arrive whose end never does.
    pub(crate) may_begin: bool,
}

/// A line of a table. `{key}` stands for a valid API key, `{auth}` for the header with it.
pub(crate) fn case(
    name: &'static str,
    bytes: impl AsRef<[u8]>,
    arrives: &'static [&'static str],
    answers: &'static [(u16, &'static str)],
) -> Case {
    Case {
        name,
        bytes: bytes.as_ref().to_vec(),
        arrives,
        answers,
        may_begin: false,
    }
}

pub(crate) const BAD: &[(u16, &str)] = &[(400, "bad_request")];
pub(crate) const OK: &[(u16, &str)] = &[(200, "")];

impl Site {
    pub(crate) fn new() -> Self {
        Self::with("")
    }

    /// With more in its configuration.
    pub(crate) fn with(more: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let upstream = Upstream::start();
        let command = |line: &str| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_evergrant"));
            command
                .args(line.split(' '))
                .current_dir(folder.path())
                .env_clear();
            command
        };
        let made = command("init --json").output().unwrap();
        let made: Value = serde_json::from_slice(&made.stdout).unwrap();
        let port = TcpListener::bind(("127.0.0.1", 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let provider = upstream.address;
        let config = format!(
            "[server]\nlisten = \"127.0.0.1:{port}\"\n[store]\nurl = \"sqlite://evergrant.db\"\n[vault]\nkey_file = \
             \"evergrant.key\"\n{more}\n[apps.crm]\nprovider = \"generic\"\nclient_id = \"id\"\nclient_secret_file = \
             \"crm.secret\"\nauthorize_url = \"http://{provider}/authorize\"\ntoken_url = \"http://{provider}/token\"\n\
             api_base = \"http://{provider}/base/\"\n"
        );
        fs::write(folder.path().join("evergrant.toml"), config).unwrap();
        fs::write(folder.path().join("crm.secret"), "secret").unwrap();
        fs::set_permissions(
            folder.path().join("crm.secret"),
            fs::Permissions::from_mode(0o600),
        )
        .unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let mut child = command("serve")
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut ready)
            .unwrap();
        let site = Self {
            upstream,
            address: format!("127.0.0.1:{port}"),
            key: made["admin_key"].as_str().unwrap().to_owned(),
            child,
            folder,
        };
        assert!(ready.contains("listens"), "{ready:?} {}", site.log());
        let record = json!({
            "app": "crm", "id": "c1", "customer": "acme", "kind": "static", "access_token": TOKEN, "account": "1",
        });
        let imported = site.api("POST", "/v1/connections", &record);
        assert_eq!(imported.status, 201, "{}", imported.text());
        site.probe("ready");
        site.upstream.taken();
        site
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// How it ended.
    pub(crate) fn ended(&mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }

    pub(crate) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    pub(crate) fn configuration(&self) -> std::path::PathBuf {
        self.folder.path().join("evergrant.toml")
    }

    pub(crate) fn wire(&self) -> Wire {
        Wire::to(&self.address)
    }

    /// Fills in what stands for the key.
    pub(crate) fn filled(&self, bytes: &[u8]) -> Vec<u8> {
        let mut filled = bytes.to_vec();
        for (name, value) in [
            ("{auth}", format!("Authorization: Bearer {}", self.key)),
            ("{key}", self.key.clone()),
        ] {
            while let Some(at) = crate::upstream::find(&filled, name.as_bytes()) {
                filled.splice(at..at + name.len(), value.bytes());
            }
        }
        filled
    }

    /// One call of the API.
    pub(crate) fn api(&self, method: &str, path: &str, body: &Value) -> Answer {
        let body = body.to_string();
        let mut wire = self.wire();
        wire.send(
            format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: \
                 application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                self.key,
                body.len()
            )
            .as_bytes(),
        );
        wire.answer(false).unwrap()
    }

    /// A harmless call, which finds everything as it was.
    pub(crate) fn probe(&self, name: &str) {
        let mut wire = self.wire();
        wire.send(&self.filled(
            format!("GET /gateway/c1/probe/{name} HTTP/1.1\r\nHost: localhost\r\n{{auth}}\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        ));
        let answer = wire
            .answer(false)
            .unwrap_or_else(|| panic!("no answer to the probe after {name}"));
        assert_eq!(answer.status, 200, "the probe after {name}: {}", answer.text());
        assert_eq!(
            answer.text(),
            format!("{{\"asked\":\"/base/probe/{name}\"}}"),
            "somebody else's answer"
        );
        assert!(wire.ends(), "more than one answer to the probe after {name}");
    }

    /// What arrived since, each of it clean, without the probe that was the last.
    pub(crate) fn arrived(&self, name: &str) -> Vec<Seen> {
        self.probe(name);
        let mut seen = self.upstream.taken();
        for request in &seen {
            self.judge(name, request);
        }
        let probe = format!("GET /base/probe/{name}");
        let at = seen.iter().position(|request| request.what() == probe);
        seen.remove(at.unwrap_or_else(|| panic!("the probe after {name} did not arrive: {seen:?}")));
        seen
    }

    /// Whatever else it is, it is one request to the base with our token.
    pub(crate) fn judge(&self, name: &str, request: &Seen) {
        let shown = format!("{name}: {request:?}");
        let parts: Vec<&str> = request.line.split(' ').collect();
        assert_eq!(parts.len(), 3, "{shown}");
        assert!(parts[0].bytes().all(|byte| byte.is_ascii_uppercase()), "{shown}");
        assert!(
            parts[1].starts_with("/base/") && parts[2] == "HTTP/1.1",
            "{shown}"
        );
        assert!(parts[1].bytes().all(|byte| byte.is_ascii_graphic()), "{shown}");
        let one = |header: &str| {
            let mut values = request.all(header);
            let value = values.next().map(str::to_owned);
            assert!(values.next().is_none(), "{header} twice: {shown}");
            value
        };
        assert_eq!(one("host"), Some(self.upstream.address.to_string()), "{shown}");
        assert_eq!(one("authorization"), Some(format!("Bearer {TOKEN}")), "{shown}");
        let framings = [one("content-length"), one("transfer-encoding")];
        assert!(framings.iter().flatten().count() <= 1, "framed twice: {shown}");
        for (key, value) in &request.headers {
            let key = key.to_ascii_lowercase();
            let is_token = !key.is_empty()
                && key
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
            assert!(is_token && !value.contains(['\r', '\n', '\0']), "{key}: {shown}");
            let is_ours_or_of_one_connection = key.starts_with("evergrant-")
                || key.starts_with("x-forwarded-")
                || key.starts_with("proxy-")
                || [
                    "cookie",
                    "forwarded",
                    "x-real-ip",
                    "x-original-url",
                    "x-rewrite-url",
                    "x-http-method-override",
                    "te",
                    "trailer",
                    "upgrade",
                    "expect",
                    "keep-alive",
                    "http2-settings",
                    "connection",
                    "idempotency-key",
                ]
                .contains(&key.as_str());
            assert!(!is_ours_or_of_one_connection, "{key}: {shown}");
        }
        let body = String::from_utf8_lossy(&request.body);
        for word in NOT_FOR_THE_PROVIDER {
            let in_head = request.headers.iter().any(|(_, value)| value.contains(word));
            assert!(!in_head, "{word}: {shown}");
            assert!(word != "evg_" || !body.contains(word), "{word}: {shown}");
        }
    }

    /// Carries out a table of attacks, each on a connection of its own.
    pub(crate) fn check(&self, cases: &[Case]) {
        // What was broken off on its way may be told of only after the next case has begun.
        let mut may_have_begun = 0;
        let wrong: Vec<String> = cases
            .iter()
            .filter_map(|case| self.check_one(case, &mut may_have_begun).err())
            .collect();
        assert!(
            wrong.is_empty(),
            "{} of {}:\n{}",
            wrong.len(),
            cases.len(),
            wrong.join("\n")
        );
    }

    fn check_one(&self, case: &Case, may_have_begun: &mut usize) -> Result<(), String> {
        let name = case.name;
        let mut wire = self.wire();
        wire.send(&self.filled(&case.bytes));
        let to_head = case.bytes.starts_with(b"HEAD ");
        let mut answers = Vec::new();
        while answers.len() < case.answers.len() {
            let Some(answer) = wire.answer(to_head) else { break };
            answers.push(answer);
        }
        wire.end_sending();
        while let Some(answer) = wire.answer(to_head) {
            answers.push(answer);
        }
        let shown = |answer: &Answer| format!("{} {:?} {}", answer.status, answer.headers, answer.text());
        let all: Vec<String> = answers.iter().map(shown).collect();
        let got: Vec<(u16, String)> = answers
            .iter()
            .map(|answer| (answer.status, answer.code()))
            .collect();
        let got: Vec<(u16, &str)> = got
            .iter()
            .map(|(status, code)| (*status, code.as_str()))
            .collect();
        let seen = self.arrived(&name.replace(' ', "-"));
        let (whole, begun): (Vec<&Seen>, Vec<&Seen>) = seen.iter().partition(|seen| seen.is_whole);
        let arrived: Vec<&str> = whole.into_iter().map(Seen::what).collect();
        *may_have_begun += usize::from(case.may_begin);
        let is_more = begun.len() > *may_have_begun;
        *may_have_begun = may_have_begun.saturating_sub(begun.len());
        let is_right = (&got[..], &arrived[..]) == (case.answers, case.arrives)
            && !is_more
            && answers
                .iter()
                .all(|answer| answer.is_whole && !answer.text().contains(TOKEN));
        let expected = (case.answers, case.arrives);
        if is_right {
            Ok(())
        } else {
            Err(format!(
                "{name}: expected {expected:?}, not {got:?} {arrived:?}: {all:?} {seen:?}"
            ))
        }
    }
}
