//! A simulated HubSpot, a PostgreSQL, and processes that serve.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hubspot_sim::{SimConfig, Simulator};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use test_postgres::Server;

const CLIENT: &str = "sim-client";
/// Imports at a time.
const IMPORTS: usize = 64;
/// Moved to where it is wanted once all are there.
const FAR_AWAY: &str = "2099-01-01T00:00:00Z";

pub(crate) struct Installation {
    hubspot: Simulator,
    postgres: Server,
    database: String,
    admin_key: String,
    services: Vec<Service>,
    client: Client<HttpConnector, Full<Bytes>>,
    _folder: tempfile::TempDir,
}

/// Killed when dropped.
struct Service {
    process: Child,
    address: String,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Installation {
    pub(crate) async fn start(
        evergrant: &Path,
        processes: usize,
        buffer: u64,
        logs: Option<&Path>,
    ) -> Result<Self> {
        let evergrant = std::path::absolute(evergrant)?;
        ensure!(
            evergrant.exists(),
            "{} is not there: cargo build --release",
            evergrant.display()
        );
        let hubspot = Simulator::start(SimConfig::default()).await?;
        let postgres = Server::new();
        let database = postgres.database();
        let folder = tempfile::tempdir()?;
        let command = || {
            let mut command = Command::new(&evergrant);
            command
                .current_dir(folder.path())
                .env("EVERGRANT_STORE__URL", postgres.url(&database))
                .env("CRM_SECRET", "sim-secret");
            command
        };
        run(command().args(["init", "--json", "--dir", "."]))?;
        let base = hubspot.base_url();
        let file = folder.path().join("evergrant.toml");
        let app = format!(
            "\n[apps.crm]\nprovider = \"hubspot\"\nclient_id = \"{CLIENT}\"\nclient_secret_env = \"CRM_SECRET\"\n\
             scopes = [\"oauth\"]\nauthorize_url = \"{base}/oauth/authorize\"\noauth_base = \"{base}\"\n\
             api_base = \"{base}\"\nrefresh_buffer = \"{buffer}s\"\nkeep_fresh = \"always\"\n"
        );
        std::fs::write(&file, std::fs::read_to_string(&file)? + &app)?;
        // In the database, which `init` does not know of.
        let made = run(command().args(["keys", "create", "--role", "admin", "--name", "scale", "--json"]))?;
        let admin_key = made["key"].as_str().context("a key was made")?.to_owned();
        let services = (0..processes)
            .map(|number| serve(command(), logs, number))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            hubspot,
            database,
            postgres,
            admin_key,
            services,
            client: Client::builder(TokioExecutor::new()).build_http(),
            _folder: folder,
        })
    }

    /// One connection for each of so many portals, through all processes.
    pub(crate) async fn import(&self, connections: u64) -> Result<()> {
        stream::iter(0..connections)
            .map(|portal| async move {
                let grant = self
                    .hubspot
                    .grant(CLIENT, portal + 1)
                    .context("the simulator knows its client")?;
                let record = json!({
                    "id": id_of(portal), "app": "crm", "customer": id_of(portal), "refresh_token": grant.refresh_token,
                    "access_token": grant.access_token, "expires_at": FAR_AWAY,
                    "account": (portal + 1).to_string(),
                });
                let (status, answer) = self.send(portal, Method::POST, "/v1/connections", Some(record)).await?;
                ensure!(status == 201, "an import was answered {status}: {answer}");
                Ok(())
            })
            .buffer_unordered(IMPORTS)
            .try_collect()
            .await
    }

    /// Behind the services' back, as nothing else makes so many tokens due at one second.
    pub(crate) fn make_all_due_in(&self, lead: Duration) {
        let lead = lead.as_millis();
        self.sql(&format!(
            "UPDATE connections SET
                expires_at = expires_at - soft_end + due.at, hard_end = hard_end - soft_end + due.at, soft_end = due.at
               FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint + {lead} AS at) due"
        ));
    }

    pub(crate) fn refreshed(&self) -> u64 {
        let count = self.sql("SELECT count(*) FROM connections WHERE version > 1");
        count.parse().unwrap_or_default()
    }

    /// What the provider says to it.
    pub(crate) fn check(&self, connections: u64) -> Result<()> {
        let versions: u64 = self.sql("SELECT sum(version - 1) FROM connections").parse()?;
        let ledger = self.hubspot.ledger();
        ensure!(
            ledger.refreshes_accepted == versions && versions >= connections,
            "{} redemptions for {versions} new versions of {connections} connections",
            ledger.refreshes_accepted
        );
        ensure!(
            ledger.grant_overlaps_max <= 1 && ledger.replays == 0,
            "{} at once, {} replays",
            ledger.grant_overlaps_max,
            ledger.replays
        );
        Ok(())
    }

    /// Asks one of the processes, each in its turn.
    pub(crate) async fn send(
        &self,
        turn: u64,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<(StatusCode, String)> {
        let turn = usize::try_from(turn).unwrap_or_default() % self.services.len();
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.services[turn].address))
            .header("authorization", format!("Bearer {}", self.admin_key))
            .header("content-type", "application/json")
            .body(Full::from(body.map(|body| body.to_string()).unwrap_or_default()))?;
        let answer = self.client.request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    fn sql(&self, statement: &str) -> String {
        self.postgres.sql(&self.database, statement)
    }
}

pub(crate) fn id_of(portal: u64) -> String {
    format!("c{portal}")
}

/// Runs to the end and reads what it says.
fn run(command: &mut Command) -> Result<Value> {
    let output = command.output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn serve(mut command: Command, logs: Option<&Path>, number: usize) -> Result<Service> {
    let log = match logs {
        Some(folder) => File::create(folder.join(format!("serve-{number}.log")))?.into(),
        None => Stdio::null(),
    };
    let mut process = command
        .arg("serve")
        .env("EVERGRANT_SERVER__LISTEN", "127.0.0.1:0")
        .env("EVERGRANT_LOG__CALLS", "off")
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()?;
    let mut ready = String::new();
    BufReader::new(process.stdout.take().context("it is piped")?).read_line(&mut ready)?;
    let address = ready
        .split_whitespace()
        .find(|word| word.starts_with("http"))
        .with_context(|| format!("the service says where it listens: {ready:?}"))?;
    Ok(Service {
        address: address.trim_end_matches(['/', '.', ',']).to_owned(),
        process,
    })
}
