//! An installation in a folder of its own, connected to the independent server, and its services as processes.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use http::Method;
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use crate::provider::{Provider, Rotation};
use crate::web::{Answer, Web, eventually};

const EVERGRANT: &str = env!("CARGO_BIN_EXE_evergrant");

/// Where connections are kept.
#[derive(Debug, Clone)]
pub(crate) enum Store {
    Sqlite,
    /// By URL: a database that is empty so far.
    Postgres(String),
}

impl Store {
    /// A database of its own on the server that all tests share.
    pub(crate) fn postgres() -> Self {
        let server = test_postgres::Server::shared();
        Self::Postgres(server.url(&server.database()))
    }
}

/// Whether the provider can be asked about refresh tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Introspection {
    On,
    Off,
}

pub(crate) struct Site {
    pub(crate) provider: Provider,
    pub(crate) web: Web,
    admin_key: String,
    folder: tempfile::TempDir,
    env: Vec<(String, String)>,
    printed: Arc<Mutex<String>>,
}

/// A running `evergrant serve`. Killed when dropped.
pub(crate) struct Service {
    process: Mutex<Child>,
    pid: Pid,
    pub(crate) address: String,
}

impl Drop for Service {
    fn drop(&mut self) {
        let process = self.process.get_mut().unwrap();
        let _ = process.kill();
        let _ = process.wait();
    }
}

impl Site {
    pub(crate) async fn new(store: Store, rotation: Rotation, introspection: Introspection) -> Self {
        let provider = Provider::start(rotation).await;
        let folder = tempfile::tempdir().unwrap();
        let url = &provider.url;
        let mut app = format!(
            "\n[apps.crm]\nprovider = \"generic\"\nclient_id = \"{}\"\nclient_secret_env = \"CRM_SECRET\"\n\
             authorize_url = \"{url}/authorize\"\ntoken_url = \"{url}/token\"\nrevoke_url = \"{url}/revoke\"\n\
             api_base = \"{url}/api\"\nrotation = \"{}\"\nscopes = [\"things\"]\n",
            provider.client_id,
            rotation.word(),
        );
        if rotation == Rotation::Grace {
            // Longer than a lease: who waits for one can still recover what a killed process was not told.
            app += "rotation_grace = \"10m\"\n";
            provider.settings(json!({"grace": 600})).await;
        }
        if introspection == Introspection::On {
            app.extend(["introspect_url = \"", url, "/introspect\"\n"]);
        }
        let mut site = Self {
            web: Web::new(),
            admin_key: String::new(),
            env: vec![("CRM_SECRET".to_owned(), provider.client_secret.clone())],
            printed: Arc::default(),
            provider,
            folder,
        };
        let made = site.run(&["init", "--json", "--dir", "."]);
        let file = site.path("evergrant.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text + &app).unwrap();
        made["admin_key"]
            .as_str()
            .unwrap()
            .clone_into(&mut site.admin_key);
        if let Store::Postgres(url) = store {
            site.set("EVERGRANT_STORE__URL", &url);
            let made = site.run(&["keys", "create", "--json", "--name", "test", "--role", "admin"]);
            made["key"].as_str().unwrap().clone_into(&mut site.admin_key);
        }
        site
    }

    /// A setting of every process that is started from now on.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `evergrant` with this installation's configuration.
    pub(crate) fn evergrant(&self) -> Command {
        self.program(EVERGRANT)
    }

    fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.folder.path())
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .env_remove("EVERGRANT_URL")
            .env_remove("EVERGRANT_API_KEY");
        command
    }

    fn run(&self, arguments: &[&str]) -> Value {
        let done = self.evergrant().args(arguments).output().unwrap();
        assert!(
            done.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        serde_json::from_slice(&done.stdout).unwrap()
    }

    pub(crate) fn serve(&self) -> Service {
        self.serve_as(self.evergrant())
    }

    /// A service with settings of its own.
    pub(crate) fn serve_with(&self, settings: &[(&str, &str)]) -> Service {
        let mut command = self.evergrant();
        command.envs(settings.iter().copied());
        self.serve_as(command)
    }

    /// A service that is told of a full disk as of any other failure: writing past a limit would end it by a signal.
    pub(crate) fn serve_with_patience_for_full_disks(&self) -> Service {
        let mut shell = self.program("sh");
        shell.args(["-c", r#"trap "" XFSZ; exec "$0" "$@""#, EVERGRANT]);
        self.serve_as(shell)
    }

    /// `evergrant migrate` as a child of `parent`.
    pub(crate) fn migrate_under(&self, parent: &Command) -> ExitStatus {
        let mut command = self.program(parent.get_program());
        let done = command
            .args(parent.get_args())
            .args([EVERGRANT, "migrate"])
            .output()
            .unwrap();
        done.status
    }

    fn serve_as(&self, mut command: Command) -> Service {
        let port = free_port();
        let mut process = command
            .arg("serve")
            .env("EVERGRANT_SERVER__LISTEN", format!("127.0.0.1:{port}"))
            .env("EVERGRANT_SERVER__PUBLIC_URL", format!("http://localhost:{port}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(process.stderr.take().unwrap());
        let printed = self.printed.clone();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut printed = printed.lock().unwrap();
                printed.push_str(&line);
                printed.push('\n');
            }
        });
        // The one line that says it is ready.
        let mut ready = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut ready)
            .unwrap();
        assert!(
            ready.contains(&port.to_string()),
            "not ready: {ready:?}\n{}",
            self.printed()
        );
        Service {
            pid: Pid::from_child(&process),
            process: Mutex::new(process),
            address: format!("http://127.0.0.1:{port}"),
        }
    }

    /// Everything that the services printed so far.
    pub(crate) fn printed(&self) -> String {
        self.printed.lock().unwrap().clone()
    }

    /// A connection, named like its customer, whose access token has just ended.
    pub(crate) async fn connect(&self, service: &Service, customer: &str) {
        let grant = self.provider.grant(customer).await;
        self.import(service, customer, &grant, json!({})).await;
    }

    /// A connection whose access token lives for another hour.
    pub(crate) async fn connect_fresh(&self, service: &Service, customer: &str) {
        let grant = self.provider.grant(customer).await;
        let token = json!({"access_token": grant["access_token"], "expires_at": in_an_hour()});
        self.import(service, customer, &grant, token).await;
    }

    pub(crate) async fn import(&self, service: &Service, customer: &str, grant: &Value, more: Value) {
        let mut record = json!({
            "id": customer, "app": "crm", "customer": customer, "account": customer,
            "refresh_token": grant["refresh_token"],
        });
        record
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let made = self
            .send(service, Method::POST, "/v1/connections", Some(record))
            .await;
        assert_eq!(made.status, 201, "{made:?}");
    }

    /// A redemption of another customer that works: who counts an endpoint's failures in a row begins anew.
    pub(crate) async fn one_redemption_works(&self, service: &Service, customer: &str) {
        self.connect(service, customer).await;
        let answer = self.call(service, customer).await;
        assert_eq!(answer.status, 200, "{customer}: {answer:?}\n{}", self.printed());
    }

    /// One API call through the gateway.
    pub(crate) async fn call(&self, service: &Service, customer: &str) -> Answer {
        self.try_call(service, customer, "").await.unwrap()
    }

    /// One API call that can be told from others in the server's ledger.
    pub(crate) async fn try_call(
        &self,
        service: &Service,
        customer: &str,
        request: &str,
    ) -> Result<Answer, String> {
        let url = format!("{}/gateway/{customer}/things", service.address);
        let authorization = format!("Bearer {}", self.admin_key);
        let headers = [("authorization", authorization.as_str()), ("x-req-id", request)];
        self.web.send(Method::GET, &url, &headers, None).await
    }

    /// Calls until the provider's answer comes.
    pub(crate) async fn call_until_served(&self, service: &Service, customer: &str) {
        eventually("a call is served", async || {
            self.call(service, customer).await.status == 200
        })
        .await;
    }

    pub(crate) async fn refresh(&self, service: &Service, customer: &str, force: bool) -> Answer {
        let path = format!("/v1/connections/{customer}/refresh");
        self.send(service, Method::POST, &path, Some(json!({"force": force})))
            .await
    }

    pub(crate) async fn record(&self, service: &Service, customer: &str) -> Value {
        let path = format!("/v1/connections/{customer}");
        let answer = self.send(service, Method::GET, &path, None).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// `active`, or why not.
    pub(crate) async fn status(&self, service: &Service, customer: &str) -> String {
        let record = self.record(service, customer).await;
        let word = |name: &str| record[name].as_str().map(str::to_owned);
        word("status_reason").or(word("status")).unwrap()
    }

    pub(crate) async fn send(
        &self,
        service: &Service,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Answer {
        let url = format!("{}{path}", service.address);
        let authorization = format!("Bearer {}", self.admin_key);
        let headers = [("authorization", authorization.as_str())];
        self.web
            .send(method, &url, &headers, body.as_ref())
            .await
            .unwrap()
    }
}

impl Service {
    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid, signal).unwrap();
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits until it has ended, and says how.
    pub(crate) fn ended(&self) -> ExitStatus {
        self.process.lock().unwrap().wait().unwrap()
    }
}

fn in_an_hour() -> String {
    (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1)).to_string()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}
