//! An installation in a folder of its own: what `evergrant init` makes, an app at the simulator, services as processes.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hubspot_sim::{SimConfig, Simulator};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

pub(crate) const CLIENT: &str = "sim-client";

pub(crate) struct Installation {
    pub(crate) hubspot: Simulator,
    pub(crate) admin_key: String,
    folder: tempfile::TempDir,
    port: u16,
    client: Client<HttpConnector, Full<Bytes>>,
    printed: Arc<Mutex<String>>,
}

/// A running `evergrant serve`. Killed when dropped.
pub(crate) struct Service {
    process: Child,
    pub(crate) address: String,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: http::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Installation {
    /// With an app at the simulator, as HubSpot's.
    pub(crate) async fn new(config: SimConfig) -> Self {
        Self::with_app(config, |base| {
            format!("provider = \"hubspot\"\noauth_base = \"{base}\"\n")
        })
        .await
    }

    /// With an app at the simulator of whatever kind `kind` says, which is given the simulator's address.
    pub(crate) async fn with_app(config: SimConfig, kind: impl FnOnce(&str) -> String) -> Self {
        let hubspot = Simulator::start(config).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let made = Command::new(env!("CARGO_BIN_EXE_evergrant"))
            .args(["init", "--json", "--dir"])
            .arg(folder.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let made: Value = serde_json::from_slice(&made.stdout).unwrap();
        let base = hubspot.base_url();
        let app = format!(
            "\n[apps.crm]\nclient_id = \"{CLIENT}\"\nclient_secret_env = \"CRM_SECRET\"\n\
             scopes = [\"oauth\", \"crm.objects.contacts.read\", \"crm.objects.contacts.write\"]\n\
             authorize_url = \"{base}/oauth/authorize\"\napi_base = \"{base}\"\nrefresh_profile = \"queue\"\n\
             return_urls = [\"https://app.example.com/*\"]\ndisplay_name = \"Acme Sync\"\n{}",
            kind(&base)
        );
        let installation = Self {
            hubspot,
            admin_key: made["admin_key"].as_str().unwrap().to_owned(),
            folder,
            port: free_port(),
            client: Client::builder(TokioExecutor::new()).build_http(),
            printed: Arc::default(),
        };
        installation.configure(&app);
        installation
    }

    /// Adds to the configuration.
    pub(crate) fn configure(&self, more: &str) {
        let file = self.folder.path().join("evergrant.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text + more).unwrap();
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn public_url(&self) -> String {
        format!("http://localhost:{}", self.port)
    }

    /// `evergrant` with this installation's configuration.
    pub(crate) fn evergrant(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_evergrant"));
        command
            .current_dir(self.folder.path())
            .env("CRM_SECRET", "sim-secret")
            .env("EVERGRANT_SERVER__PUBLIC_URL", self.public_url())
            .env("EVERGRANT_LOG__CALLS", "all")
            .env_remove("EVERGRANT_URL")
            .env_remove("EVERGRANT_API_KEY");
        command
    }

    /// The service that customers' links lead to.
    pub(crate) fn serve(&self) -> Service {
        self.serve_on(self.port)
    }

    /// One more service on the same store.
    pub(crate) fn serve_another(&self) -> Service {
        self.serve_on(free_port())
    }

    fn serve_on(&self, port: u16) -> Service {
        let mut command = self.evergrant();
        command.env("EVERGRANT_SERVER__LISTEN", format!("127.0.0.1:{port}"));
        self.try_serve(&mut command, port)
            .unwrap_or_else(|said| panic!("not ready: {said:?}\n{}", self.printed()))
    }

    /// Starts `evergrant serve` with what is set in `command`, and waits for the one line that says that it is ready.
    pub(crate) fn try_serve(&self, command: &mut Command, port: u16) -> Result<Service, String> {
        let mut process = command
            .arg("serve")
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
        let stdout = process.stdout.take().unwrap();
        let service = Service {
            process,
            address: format!("http://127.0.0.1:{port}"),
        };
        let mut ready = String::new();
        BufReader::new(stdout).read_line(&mut ready).unwrap();
        if ready.contains(&port.to_string()) {
            Ok(service)
        } else {
            Err(ready)
        }
    }

    /// Everything that the services printed so far.
    pub(crate) fn printed(&self) -> String {
        self.printed.lock().unwrap().clone()
    }

    /// An API key of a role.
    pub(crate) async fn key(&self, service: &Service, role: &str) -> String {
        let body = json!({"name": format!("test {role}"), "role": role});
        let made = self
            .send(service, Method::POST, "/v1/keys", &self.admin_key, Some(body))
            .await;
        assert_eq!(made.status, 201, "{made:?}");
        made.json()["key"].as_str().unwrap().to_owned()
    }

    /// A connection to `portal`, made of a grant that the provider issues straight away.
    pub(crate) async fn connected(&self, service: &Service, id: &str, portal: u64) {
        let grant = self.hubspot.grant(CLIENT, portal).unwrap();
        let record = json!({
            "id": id, "app": "crm", "customer": format!("customer-{portal}"), "refresh_token": grant.refresh_token,
        });
        let made = self
            .send(
                service,
                Method::POST,
                "/v1/connections",
                &self.admin_key,
                Some(record),
            )
            .await;
        assert_eq!(made.status, 201, "{made:?}");
    }

    pub(crate) async fn send(
        &self,
        service: &Service,
        method: Method,
        path: &str,
        key: &str,
        body: Option<Value>,
    ) -> Answer {
        self.try_send(service, method, path, key, body).await.unwrap()
    }

    pub(crate) async fn try_send(
        &self,
        service: &Service,
        method: Method,
        path: &str,
        key: &str,
        body: Option<Value>,
    ) -> Result<Answer, String> {
        self.ask(&service.address, method, path, key, body).await
    }

    /// One request to whatever runs at an address.
    pub(crate) async fn ask(
        &self,
        address: &str,
        method: Method,
        path: &str,
        key: &str,
        body: Option<Value>,
    ) -> Result<Answer, String> {
        self.ask_with(address, method, path, key, &[], body).await
    }

    /// The same with headers.
    pub(crate) async fn ask_with(
        &self,
        address: &str,
        method: Method,
        path: &str,
        key: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Result<Answer, String> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{address}{path}"))
            .header("authorization", format!("Bearer {key}"));
        for &(name, value) in headers {
            request = request.header(name, value);
        }
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = Bytes::from(body.map(|body| body.to_string()).unwrap_or_default());
        let request = request.body(Full::new(body)).unwrap();
        let answer = self
            .client
            .request(request)
            .await
            .map_err(|error| error.to_string())?;
        let (parts, body) = answer.into_parts();
        let body = body
            .collect()
            .await
            .map_err(|error| error.to_string())?
            .to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            text,
        })
    }
}

impl Service {
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits until it has ended, and says how.
    pub(crate) fn ended(mut self) -> std::process::ExitStatus {
        self.process.wait().unwrap()
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}
