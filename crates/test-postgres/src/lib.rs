//! A PostgreSQL server for tests, from Debian's package: in a folder of its own, reached by a Unix socket, gone with the
//! process that started it.
//!
//! Knows nothing of what is kept in it. Start reading at [`Server::shared`], then `server.sh`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Where Debian puts each major version.
const VERSIONS: &str = "/usr/lib/postgresql";
/// What the name of a socket ends with where no port is said.
const SOCKET_PORT: u16 = 5432;

/// A running server. It stops when this is dropped, or its process ends.
#[derive(Debug)]
pub struct Server {
    folder: PathBuf,
    bin: PathBuf,
    port: u16,
    control: Mutex<Control>,
    databases: AtomicU32,
}

/// Somebody who keeps every table locked. Lets go when dropped.
#[derive(Debug)]
pub struct TablesLocked(Child);

impl Drop for TablesLocked {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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

    /// One for a test that stops it.
    #[expect(clippy::new_without_default, reason = "no server is a default")]
    pub fn new() -> Self {
        Self::start_with("", None)
    }

    /// One that also listens on 127.0.0.1 and speaks TLS there, with this certificate and its key, both PEM.
    pub fn with_tls(certificate: &str, key: &str) -> Self {
        Self::start_with("", Some((certificate, key)))
    }

    /// Where it listens on 127.0.0.1, if it does.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Another one, to which everything goes that this one commits, before it says so.
    #[must_use]
    pub fn standby(&self) -> Self {
        let standby = Self::start_with(&self.folder.display().to_string(), None);
        self.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = '*'");
        self.sql("postgres", "SELECT pg_reload_conf()");
        while self.sql("postgres", "SHOW synchronous_standby_names") != "*" {}
        standby
    }

    /// Another one, to which this one's commits go sometime after it said so. Lacks them once it is [cut off](Self::cut_off).
    #[must_use]
    pub fn asynchronous_standby(&self) -> Self {
        Self::start_with(&self.folder.display().to_string(), None)
    }

    /// Lets a standby have what its `primary` has committed until now, and nothing from then on.
    pub fn cut_off(&self, primary: &Self) {
        let committed = primary.sql("postgres", "SELECT pg_current_wal_flush_lsn()");
        let has_it = format!("SELECT pg_last_wal_replay_lsn() >= '{committed}'");
        while self.sql("postgres", &has_it) != "t" {}
        self.sql("postgres", "ALTER SYSTEM SET primary_conninfo = ''");
        self.sql("postgres", "SELECT pg_reload_conf()");
        while self.sql("postgres", "SELECT count(*) FROM pg_stat_wal_receiver") != "0" {}
    }

    fn start_with(primary: &str, tls: Option<(&str, &str)>) -> Self {
        let (certificate, key) = tls.unwrap_or_default();
        // The socket's name has the port in it, too.
        let port = if tls.is_some() { free_port() } else { SOCKET_PORT };
        let bin = newest().expect("there is no PostgreSQL: run `cargo xtask test`, or install postgresql");
        let mut child = as_nobody_special()
            .args(["sh", "-c", include_str!("server.sh"), "server"])
            .arg(&bin)
            .arg(primary)
            .env("PGPORT", port.to_string())
            .env("TLS_CERTIFICATE", certificate)
            .env("TLS_KEY", key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let words = child.stdin.take();
        let mut answers = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut folder = String::new();
        answers.read_line(&mut folder).expect("what a shell writes");
        assert!(folder.ends_with('\n'), "PostgreSQL did not start");
        Self {
            folder: folder.trim_end().into(),
            bin,
            port,
            control: Mutex::new(Control {
                words,
                answers,
                child,
            }),
            databases: AtomicU32::new(0),
        }
    }

    /// A new, empty database, by its name.
    pub fn database(&self) -> String {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        name
    }

    /// Where a database is found.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://evergrant@{}/{database}", self.host())
    }

    /// The server in a URL.
    pub fn host(&self) -> String {
        self.folder.display().to_string().replace('/', "%2F")
    }

    /// The socket that it listens on.
    pub fn socket(&self) -> PathBuf {
        self.folder.join(format!(".s.PGSQL.{}", self.port))
    }

    /// Runs statements, each in a transaction of its own, and says what came back.
    pub fn sql(&self, database: &str, statements: &str) -> String {
        self.run(
            "psql",
            &["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", statements],
        )
    }

    /// Keeps every table of a database locked until what this returns is dropped. Returns before they are.
    ///
    /// # Panics
    ///
    /// When `psql` cannot be started.
    pub fn lock_every_table(&self, database: &str) -> TablesLocked {
        let lock = "DO $$ BEGIN EXECUTE (SELECT 'LOCK TABLE ' || string_agg(quote_ident(tablename), ', ') \
                    FROM pg_tables WHERE schemaname = 'public'); END $$";
        let psql = Command::new(self.bin.join("psql"))
            .arg(self.url(database))
            .args(["-Xq", "-c", &format!("BEGIN; {lock}; SELECT pg_sleep(600)")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a program of PostgreSQL");
        TablesLocked(psql)
    }

    /// Everything that is in a database, as text; the same for the same content.
    pub fn dump(&self, database: &str) -> String {
        let dump = self.run("pg_dump", &[database]);
        // Newer ones put a random word around it.
        let lines = dump.lines().filter(|line| !line.contains("restrict "));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new(self.bin.join(program))
            .env("PGHOST", &self.folder)
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "evergrant")
            .args(arguments)
            .output()
            .expect("a program of PostgreSQL");
        assert!(
            output.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout)
            .expect("text")
            .trim_end()
            .to_owned()
    }

    /// Stops it, cutting every session.
    pub fn stop(&self) {
        self.say("stop");
    }

    /// Stops it at once, as a crash would.
    pub fn crash(&self) {
        self.say("crash");
    }

    /// Starts it again.
    pub fn start(&self) {
        self.say("start");
    }

    /// Makes a standby a server of its own, once it has all that reached it.
    pub fn promote(&self) {
        self.say("promote");
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
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

fn newest() -> Option<PathBuf> {
    let versions = std::fs::read_dir(VERSIONS).ok()?;
    versions
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version: u32 = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .filter(|(_, bin)| bin.join("initdb").exists())
        .max()
        .map(|(_, bin)| bin)
}

/// PostgreSQL refuses to run as root; its package brings a user for it.
fn as_nobody_special() -> Command {
    let root = std::os::unix::fs::MetadataExt::uid(
        &Path::new("/proc/self")
            .metadata()
            .expect("Linux tells of processes"),
    ) == 0;
    if !root {
        return Command::new("env");
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]);
    command
}
