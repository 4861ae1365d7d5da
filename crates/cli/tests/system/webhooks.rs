//! What receivers are told by `serve`, and checked by the packages that Standard Webhooks gives out for them.

use std::io::Write as _;
use std::process::{Command, Stdio};

use http::{Method, StatusCode};
use hubspot_sim::SimConfig;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::installation::Installation;
use crate::prepared::{client_script, prepared};

const NEW: &str = "whsec_bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3";
const OLD: &str = "whsec_b2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xk";

/// Takes everything that it is told.
struct Receiver {
    address: String,
    told: mpsc::UnboundedReceiver<Value>,
}

impl Receiver {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (tell, told) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let tell = tell.clone();
                tokio::spawn(async move {
                    let arrived = arrived(&mut stream).await;
                    tell.send(arrived).unwrap();
                    let answer = "HTTP/1.1 204 No Content\r\n\r\n";
                    stream.write_all(answer.as_bytes()).await.unwrap();
                });
            }
        });
        Self { address, told }
    }

    /// The next that it is told of this connection, as it arrived, and what it says.
    async fn next(&mut self) -> (Value, Value) {
        let arrived = self.told.recv().await.unwrap();
        let body = serde_json::from_str(arrived["body"].as_str().unwrap()).unwrap();
        (arrived, body)
    }
}

/// Headers and body of one request.
async fn arrived(stream: &mut tokio::net::TcpStream) -> Value {
    let mut bytes = Vec::new();
    loop {
        let read = stream.read_buf(&mut bytes).await.unwrap();
        assert!(read > 0, "it ended early");
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let headers: serde_json::Map<String, Value> = head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), json!(value)))
            .collect();
        let length: usize = headers["content-length"].as_str().unwrap().parse().unwrap();
        if body.len() >= length {
            return json!({"headers": headers, "body": body});
        }
    }
}

fn node() -> Command {
    // The packages lie beside the script, where Node looks for them.
    prepared("EVERGRANT_TEST_NODE_MODULES");
    let mut node = Command::new("node");
    node.arg(client_script("node/webhooks.mjs"));
    node
}

fn python() -> Command {
    let mut python = Command::new(prepared("EVERGRANT_TEST_PYTHON"));
    python.arg(client_script("python/webhooks.py"));
    python
}

/// What a package says to each of these.
async fn checked(mut package: Command, secret: &'static str, arrived: Vec<Value>) -> Vec<String> {
    let output = tokio::task::spawn_blocking(move || {
        let mut package = package
            .env("SECRET", secret)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = package.stdin.take().unwrap();
        stdin.write_all(json!(arrived).to_string().as_bytes()).unwrap();
        drop(stdin);
        package.wait_with_output().unwrap()
    });
    let output = output.await.unwrap();
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_process_did_is_told_by_the_next_and_checked_by_the_packages_of_receivers() {
    let installation = Installation::new(SimConfig::default()).await;
    let mut receiver = Receiver::start().await;
    for (file, secret) in [("new.secret", NEW), ("old.secret", OLD)] {
        let path = installation.folder().join(file);
        std::fs::write(&path, secret).unwrap();
        rustix::fs::chmod(&path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
    }
    let file = installation.folder().join("evergrant.toml");
    let without = std::fs::read_to_string(&file).unwrap();
    installation.configure(&format!(
        "\n[[webhooks]]\nurl = \"http://{}/in?key=canary-query\"\nsecret_file = [\"new.secret\", \"old.secret\"]\n",
        receiver.address
    ));
    let with = std::fs::read_to_string(&file).unwrap();
    // From its first answer on everything is told.
    let first = installation.serve();
    installation.key(&first, "gateway").await;
    first.signal(Signal::KILL);
    first.ended();
    // One that tells nobody acknowledges a change, and is killed.
    std::fs::write(&file, without).unwrap();
    let killed = installation.serve();
    installation.connected(&killed, "acme", 1001).await;
    killed.signal(Signal::KILL);
    killed.ended();
    std::fs::write(&file, with).unwrap();
    let service = installation.serve();
    let (connected, told) = receiver.next().await;
    assert_eq!(told["type"], "connection.connected");
    assert_eq!(told["data"]["connection"]["id"], "acme");
    // The customer uninstalls the app, and is back by the link that was sent along.
    let answer = installation
        .send(
            &service,
            Method::DELETE,
            "/gateway/acme/appinstalls/2026-03/external-install",
            &installation.admin_key,
            None,
        )
        .await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT, "{answer:?}");
    let (uninstalled, told) = receiver.next().await;
    assert_eq!(told["type"], "connection.reconnect_required");
    assert_eq!(told["data"]["connection"]["status_reason"], "uninstalled");
    let link = told["data"]["reconnect_url"].as_str().unwrap();
    let path = link.strip_prefix(&installation.public_url()).unwrap();
    let page = installation.send(&service, Method::GET, path, "", None).await;
    assert_eq!(page.status, StatusCode::OK, "{page:?}");
    assert!(page.text.contains("has lost its access"), "{page:?}");

    let mut changed = uninstalled.clone();
    changed["body"] = json!(changed["body"].as_str().unwrap().replace("acme", "evil"));
    let mut renamed = uninstalled.clone();
    renamed["headers"]["webhook-id"] = json!("msg_another");
    let arrived = vec![connected, uninstalled, changed, renamed];
    for package in [node, python] {
        // A receiver that has changed over, and one that has not yet.
        for secret in [NEW, OLD] {
            let checked = checked(package(), secret, arrived.clone()).await;
            assert_eq!(
                checked[..2],
                ["connection.connected", "connection.reconnect_required"]
            );
            assert!(
                checked[2..].iter().all(|said| said.starts_with("refused: ")),
                "{checked:?}"
            );
        }
        let other = "whsec_b3RoZXJvdGhlcm90aGVyb3RoZXJvdGhl";
        let checked = checked(package(), other, arrived.clone()).await;
        assert!(
            checked.iter().all(|said| said.starts_with("refused: ")),
            "{checked:?}"
        );
    }
    let printed = installation.printed();
    for secret in ["canary-query", NEW, OLD] {
        assert!(!printed.contains(secret), "{printed}");
    }
}
