//! A Redis server for tests, from Debian's package: in a folder of its own, on a free port of 127.0.0.1, gone with the process
//! that started it.
//!
//! Knows nothing of what is kept in it. It keeps nothing on disk, so that a restart loses everything, like a cache's. Start
//! reading at [`Server::shared`], then `server.sh`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

/// A running server. It stops when this is dropped, or its process ends.
#[derive(Debug)]
pub struct Server {
    folder: PathBuf,
    port: u16,
    control: Mutex<Control>,
}

#[derive(Debug)]
struct Control {
    // Closed first: then the child ends by itself.
    words: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    child: Child,
}

impl Drop for Control {
    fn drop(&mut self) {
        self.words = None;
        let _ = self.child.wait();
    }
}

impl Server {
    /// The one that all tests of a process share.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(Self::new)
    }

    /// One for a test that stops or empties it.
    ///
    /// # Panics
    ///
    /// Where Redis is not installed; it says what to do.
    #[expect(clippy::new_without_default, reason = "no server is a default")]
    pub fn new() -> Self {
        for program in ["redis-server", "redis-cli"] {
            let found = Command::new(program).arg("--version").output();
            assert!(
                found.is_ok_and(|found| found.status.success()),
                "there is no {program}: run `cargo xtask test`, or install redis-server"
            );
        }
        let port = free_port();
        let mut child = Command::new("sh")
            .args(["-c", include_str!("server.sh"), "server"])
            .env("PORT", port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let words = child.stdin.take();
        let mut answers = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut folder = String::new();
        answers.read_line(&mut folder).expect("what a shell writes");
        assert!(folder.ends_with('\n'), "Redis did not start");
        Self {
            folder: folder.trim_end().into(),
            port,
            control: Mutex::new(Control {
                words,
                answers,
                child,
            }),
        }
    }

    /// Where it is found.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// The port that it listens on, at 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The socket that it listens on besides.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    /// Runs one command, a word for each argument, and says what came back: a list has a line for each of its members, and
    /// what is missing is an empty one.
    ///
    /// # Panics
    ///
    /// Where the server is stopped, or refuses the command.
    pub fn run(&self, words: &[&str]) -> String {
        let output = Command::new("redis-cli")
            .arg("-s")
            .arg(self.socket())
            .arg("-e")
            .args(words)
            .output()
            .expect("a program of Redis");
        let said = String::from_utf8(output.stdout).expect("text");
        assert!(
            output.status.success(),
            "{words:?}: {said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        said.trim_end_matches('\n').to_owned()
    }

    /// Forgets everything.
    pub fn flush(&self) {
        self.run(&["FLUSHALL"]);
    }

    /// Stops it at once: everybody's connection is cut, and everything is forgotten.
    pub fn stop(&self) {
        self.say("stop");
    }

    /// Starts it again, empty, where it was.
    pub fn start(&self) {
        self.say("start");
    }

    /// Stops it and starts it again, empty.
    pub fn restart(&self) {
        self.stop();
        self.start();
    }

    /// From now on it answers nobody, and nobody is told. Nothing is forgotten.
    pub fn freeze(&self) {
        self.say("freeze");
    }

    /// Lets it go on, with everything that was asked meanwhile.
    pub fn thaw(&self) {
        self.say("thaw");
    }

    fn say(&self, word: &str) {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let words = control.words.as_mut().expect("it is closed on dropping alone");
        writeln!(words, "{word}").expect("the shell reads");
        let mut answer = String::new();
        control.answers.read_line(&mut answer).expect("the shell answers");
        assert_eq!(answer, "done\n", "the server did not {word}");
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").port()
}
