//! `evergrant connect`: the consent link, and what comes of it.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use evergrant_domain::ConnectionId;
use evergrant_server::{ListenSettings, Server};
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full, Limited};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};
use url::Url;

use crate::api::{Api, Store};
use crate::args::Connect;
use crate::commands::connections;
use crate::failure::{Exit, Failure};
use crate::output::{Output, Tone, note, print_json, print_line, text};
use crate::{browser, network};

const ASK_EVERY: Duration = Duration::from_millis(500);
const LOOK_FOR: Duration = Duration::from_secs(3);
/// Our own answer takes a tenth of it.
const HEALTH_MAX: usize = 1024;

pub(crate) async fn run(api: Api, connect: Connect, output: Output) -> Result<(), Failure> {
    let _listening = match &api {
        // A service answers its own links.
        Api::Network(_) => None,
        Api::Store(store) => listen_unless_served(store).await?,
    };
    let record = until_connected(&api, &connect, output).await?;
    if output.json {
        return print_json(&record);
    }
    print_line("")?;
    connections::show(&record, output)?;
    suggest_a_call(&api, &record, output).await
}

/// Prints the link and waits. Returns the record of the connection.
async fn until_connected(api: &Api, connect: &Connect, output: Output) -> Result<Value, Failure> {
    let session = api
        .post(
            "/v1/connect-sessions",
            &json!({
                "app": connect.app.as_str(),
                "customer": connect.customer.as_str(),
                "connection_id": connect.id.as_ref().map(ConnectionId::as_str),
            }),
        )
        .await?;
    let url = text(&session, "/url");
    // With --json standard output is one document, which comes at the end.
    if output.json {
        note(&url);
    } else {
        print_line(&url)?;
    }
    if !connect.no_browser {
        browser::open(&url);
    }
    let waiting = ProgressBar::new_spinner();
    waiting.set_style(
        ProgressStyle::with_template("{spinner} waiting for the customer's consent ({elapsed})")
            .expect("a literal template"),
    );
    waiting.enable_steady_tick(Duration::from_millis(120));
    let session = format!("/v1/connect-sessions/{}", text(&session, "/id"));
    let session = loop {
        tokio::time::sleep(ASK_EVERY).await;
        let session = api.get(&session).await?;
        if session["status"] != "pending" {
            break session;
        }
    };
    waiting.finish_and_clear();
    if session["status"] != "connected" {
        let (code, detail) = (text(&session, "/code"), text(&session, "/detail"));
        return Err(Failure::failed(format!("not connected: {detail} ({code})"))
            .advise("Run the command again for another link."));
    }
    match api
        .get(&format!("/v1/connections/{}", text(&session, "/connection")))
        .await
    {
        // A key of the role `tokens` may connect customers and not read records.
        Err(failure) if failure.exit == Exit::Usage => Ok(json!({
            "id": session["connection"], "app": session["app"], "customer": session["customer"], "status": "active",
        })),
        record => record,
    }
}

async fn suggest_a_call(api: &Api, record: &Value, output: Output) -> Result<(), Failure> {
    let id = text(record, "/id");
    let app = text(record, "/app");
    // Only to name a path that the provider has: without an answer the general one will do.
    let apps = api.list("/v1/apps", &[]).await.unwrap_or_default();
    let apps = apps["items"].as_array().map_or(&[][..], Vec::as_slice);
    let is_hubspot = apps
        .iter()
        .any(|known| known["name"] == *app && known["provider"] == "hubspot");
    let path = if is_hubspot {
        "/crm/v3/objects/contacts?limit=1"
    } else {
        "/"
    };
    let base = match api {
        Api::Network(network) => network.base().to_owned(),
        Api::Store(store) => store
            .service
            .engine()
            .public_url()
            .as_str()
            .trim_end_matches('/')
            .to_owned(),
    };
    print_line(format_args!(
        "\n{}\n  evergrant call {id} GET '{path}'\n{}\n  curl -H \"Authorization: Bearer $EVERGRANT_API_KEY\" '{base}/gateway/{id}{path}'",
        output.paint(Tone::Faint, "Try it:"),
        output.paint(Tone::Faint, "or, while `evergrant serve` runs, with an API key:"),
    ))
}

/// Links lead to `public_url`: where no service answers there, this process does, if the address is this machine's. It does
/// so until the guard is dropped; a consent that is being taken then is taken to its end.
async fn listen_unless_served(store: &Store) -> Result<Option<DropGuard>, Failure> {
    let public_url = store.service.engine().public_url();
    if is_served(public_url).await? {
        return Ok(None);
    }
    let port = public_url.port_or_known_default().unwrap_or(0);
    if !is_this_machine(public_url) || port == 0 {
        return Err(Failure::new(
            Exit::Unavailable,
            format!("no service answers at {public_url}, where the link would lead"),
        )
        .advise("Start `evergrant serve` there, or correct [server] public_url."));
    }
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let listen = ListenSettings {
        address,
        ..store.listen.clone()
    };
    let server = Server::bind(store.service.clone(), listen).await?;
    let stop = CancellationToken::new();
    store.background.spawn(server.run(stop.clone()));
    Ok(Some(stop.drop_guard()))
}

async fn is_served(public_url: &Url) -> Result<bool, Failure> {
    let health = format!("{}/healthz", public_url.as_str().trim_end_matches('/'));
    let request = Request::builder()
        .method(Method::GET)
        .uri(health)
        .body(Full::default())
        .map_err(Failure::usage)?;
    let client = network::client()?;
    let look = async {
        let answer = client.request(request).await.ok()?;
        let body = Limited::new(answer.into_body(), HEALTH_MAX)
            .collect()
            .await
            .ok()?
            .to_bytes();
        let health: Value = serde_json::from_slice(&body).ok()?;
        (health["status"] == "ok").then_some(())
    };
    Ok(matches!(tokio::time::timeout(LOOK_FOR, look).await, Ok(Some(()))))
}

fn is_this_machine(url: &Url) -> bool {
    matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"))
}
