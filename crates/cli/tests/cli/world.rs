//! A folder with a configuration, a simulator, and the commands that run in it.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::web;

/// Nothing here takes a tenth of it, on a machine that does nothing else.
const PATIENCE: Duration = Duration::from_secs(60);

/// A user's folder.
pub(crate) struct Home {
    folder: TempDir,
}

impl Home {
    pub(crate) fn empty() -> Self {
        Self {
            folder: TempDir::new().unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The binary, with nothing of the environment that runs the test.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("evergrant"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .env("HOME", self.folder.path());
        command.stdin(Stdio::null());
        command
    }

    /// Runs to the end.
    pub(crate) fn run(&self, line: &str) -> Done {
        Done::of(line, self.command(line.split_whitespace()).output().unwrap())
    }

    /// Starts and waits for the first line on standard output.
    pub(crate) fn start(&self, line: &str) -> Running {
        Running::begin(line, &mut self.command(line.split_whitespace()))
    }
}

/// What a command that ended said.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Done {
    pub(crate) fn of(line: &str, output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        let code = output
            .status
            .code()
            .unwrap_or_else(|| panic!("{line}: {}", output.status));
        let done = Self {
            code,
            out: text(output.stdout),
            err: text(output.stderr),
        };
        assert!(!done.err.contains("panicked"), "{line}: {done:?}");
        done
    }

    #[track_caller]
    pub(crate) fn ends_with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A command that goes on.
pub(crate) struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
    lines: Receiver<String>,
    log: Vec<String>,
    /// What it said first.
    pub(crate) first_line: String,
}

impl Running {
    /// Starts and waits for the first line on standard output.
    pub(crate) fn begin(line: &str, command: &mut Command) -> Self {
        let mut running = Self::quiet(command);
        running.first_line = running.next_line();
        assert!(
            !running.first_line.is_empty(),
            "{line}: {}",
            running.rest_of_log()
        );
        running
    }

    /// Starts what has nothing to say yet.
    pub(crate) fn quiet(command: &mut Command) -> Self {
        let mut running = Self::spawn(command.stderr(Stdio::piped()));
        let err = BufReader::new(running.child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            err.lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        running.lines = lines;
        running
    }

    /// Starts with a log that goes elsewhere, and waits for the first line on standard output.
    pub(crate) fn with_log(command: &mut Command, log: impl Into<Stdio>) -> Self {
        let mut running = Self::spawn(command.stderr(log));
        // It would keep the log open here.
        command.stderr(Stdio::null());
        running.first_line = running.next_line();
        running
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            out,
            // Nobody sends.
            lines: channel().1,
            log: Vec::new(),
            first_line: String::new(),
        }
    }

    /// The URL in its first line.
    pub(crate) fn address(&self) -> String {
        let address = self
            .first_line
            .split(' ')
            .find(|word| word.starts_with("http"))
            .unwrap();
        address.to_owned()
    }

    pub(crate) fn next_line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Waits for a line of the log.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, part: &str) -> String {
        loop {
            let Ok(line) = self.lines.recv_timeout(PATIENCE) else {
                panic!("{part} never came: {:?}", self.log);
            };
            self.log.push(line.clone());
            if line.contains(part) {
                return line;
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Reads to the end and says how it ended.
    pub(crate) fn wait(mut self) -> (ExitStatus, String, String) {
        let mut out = String::new();
        std::io::Read::read_to_string(&mut self.out, &mut out).unwrap();
        let status = self.child.wait().unwrap();
        (status, out, self.rest_of_log())
    }

    fn rest_of_log(&mut self) -> String {
        self.log.extend(self.lines.iter());
        self.log.join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder after `init`, with an app that points at a simulator of its own.
pub(crate) struct World {
    pub(crate) home: Home,
    pub(crate) hubspot: Running,
    pub(crate) admin_key: String,
    /// Where the service is, or would be.
    pub(crate) url: String,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with("sim")
    }

    /// As [`World::new`], with a simulator that `sim` starts.
    pub(crate) fn with(sim: &str) -> Self {
        let home = Home::empty();
        let hubspot = home.start(sim);
        let made = home.run("init --json").ends_with(0).json();
        let port = free_port();
        let url = format!("http://localhost:{port}");
        let file = home.path("evergrant.toml");
        let template = fs::read_to_string(&file).unwrap();
        let listen = "#listen = \"127.0.0.1:8484\"";
        assert!(template.contains(listen), "{template}");
        let config = template.replace(listen, &format!("listen = \"127.0.0.1:{port}\""))
            + &app("crm", &hubspot.address());
        fs::write(file, config).unwrap();
        fs::write(home.path("crm.secret"), "sim-secret").unwrap();
        restrict(&home.path("crm.secret"));
        Self {
            home,
            hubspot,
            admin_key: made["admin_key"].as_str().unwrap().to_owned(),
            url,
        }
    }

    /// Connects portal 1001 as `acme`, by a listener of `connect` itself or a service that runs.
    pub(crate) fn connect_acme(&self) -> String {
        let line = "connect --app crm --customer acme --id acme --no-browser";
        let connecting = self.home.start(line);
        let page = web::consent(&connecting.first_line, 1001);
        assert_eq!(page.status, 200, "{page:?}");
        let (status, out, log) = connecting.wait();
        assert!(status.success(), "{status}: {log}");
        out
    }

    /// Steers the simulator.
    pub(crate) fn steer(&self, path: &str, wish: &str) -> Value {
        let answer = web::send(
            "POST",
            &format!("{}/_sim/{path}", self.hubspot.address()),
            &[],
            wish,
        );
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_str(&answer.body).unwrap()
    }

    /// Waits until the simulator holds a request that a fault caught.
    pub(crate) fn wait_for_held(&self) {
        let faults = format!("{}/_sim/faults", self.hubspot.address());
        while !web::send("GET", &faults, &[], "").body.contains("\"held\":1") {
            std::thread::yield_now();
        }
    }

    /// A command over HTTP, with the admin's key.
    pub(crate) fn remote(&self, line: &str) -> Done {
        let mut command = self.home.command(line.split_whitespace());
        command
            .env("EVERGRANT_URL", &self.url)
            .env("EVERGRANT_API_KEY", &self.admin_key);
        Done::of(line, command.output().unwrap())
    }
}

/// The section of an app at a simulator.
pub(crate) fn app(name: &str, hubspot: &str) -> String {
    format!(
        "\n[apps.{name}]\nprovider = \"hubspot\"\nclient_id = \"sim-client\"\nclient_secret_file = \"crm.secret\"\n\
         authorize_url = \"{hubspot}/oauth/authorize\"\noauth_base = \"{hubspot}\"\napi_base = \"{hubspot}\"\n\
         scopes = [\"oauth\", \"crm.objects.contacts.read\", \"crm.objects.contacts.write\"]\n"
    )
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn restrict(file: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
}
