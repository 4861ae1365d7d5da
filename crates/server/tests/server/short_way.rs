//! The short way of plain requests and the way through hyper: whichever a request takes, its answer is the same.
//!
//! An empty line before a request says nothing, and makes it one that is not plain. So each request is sent twice, without it and
//! with it.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::House;

/// Far longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client that shows what comes back, but for what differs from one answer to the next.
struct Wire {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    async fn to(address: SocketAddr) -> Self {
        Self {
            stream: TcpStream::connect(address).await.unwrap(),
            read: Vec::new(),
        }
    }

    async fn say(&mut self, bytes: &str) {
        // What has been closed meanwhile shows when it is read.
        let _ = self.stream.write_all(bytes.as_bytes()).await;
    }

    /// The next answer; `None` where the connection has ended.
    async fn answer(&mut self, is_head: bool) -> Option<String> {
        let end = loop {
            match find(&self.read, b"\r\n\r\n") {
                Some(end) => break end + 4,
                None => self.more().await?,
            }
        };
        let head = String::from_utf8(self.read.drain(..end).collect()).unwrap();
        let said = |name: &str| {
            let line = head.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim_start_matches(": ").to_owned())
        };
        let mut body = Vec::new();
        if !is_head && said("transfer-encoding").is_some() {
            loop {
                let line = loop {
                    match find(&self.read, b"\r\n") {
                        Some(line) => break line,
                        None => self.more().await?,
                    }
                };
                let size = std::str::from_utf8(&self.read[..line]).unwrap();
                let size = usize::from_str_radix(size, 16).unwrap();
                while self.read.len() < line + 2 + size + 2 {
                    self.more().await?;
                }
                body.extend_from_slice(&self.read[line + 2..line + 2 + size]);
                self.read.drain(..line + 2 + size + 2);
                if size == 0 {
                    break;
                }
            }
        } else if !is_head && let Some(length) = said("content-length") {
            let length: usize = length.parse().unwrap();
            while self.read.len() < length {
                self.more().await?;
            }
            body = self.read.drain(..length).collect();
        }
        let mut head: Vec<_> = head
            .lines()
            .filter(|line| {
                // When it was, how long it took, how much is left.
                ["date:", "server-timing:", "evergrant-token-ttl:", "x-hubspot-"]
                    .iter()
                    .all(|differs| !line.starts_with(differs))
            })
            // What was no request has a number of its own.
            .map(|line| match line.split_once("evergrant-request-id: ") {
                Some((_, id)) if !id.starts_with("request-") => "evergrant-request-id",
                _ => line,
            })
            .collect();
        head[1..].sort_unstable();
        let body = String::from_utf8_lossy(&body).into_owned();
        let differs = ["\"expires_in\":", "\"request_id\":", "\"correlationId\":"];
        let end = differs.iter().filter_map(|differs| body.find(differs)).min();
        let body = &body[..end.unwrap_or(body.len())];
        Some(format!("{}\n{body}", head.join("\n")))
    }

    async fn more(&mut self) -> Option<()> {
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.read))
            .await
            .expect("it is answered or ended");
        read.is_ok_and(|read| read > 0).then_some(())
    }
}

/// Whether the connection ends with this answer.
fn is_last(answer: &str) -> bool {
    answer.contains("\nconnection: close")
        || (answer.starts_with("HTTP/1.0") && !answer.contains("\nconnection: keep-alive"))
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|found| found == what)
}

/// The same choices in each run.
struct Choice(u64);

impl Choice {
    fn of<T: Copy>(&mut self, from: &[T]) -> T {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        from[usize::try_from(self.0 % from.len() as u64).unwrap()]
    }
}

/// A request, and whether it is a HEAD.
fn request(choice: &mut Choice, keys: &[&str], number: usize) -> (String, bool) {
    let method = choice.of(&[
        "GET", "GET", "GET", "GET", "HEAD", "POST", "OPTIONS", "BREW", "PUT",
    ]);
    let target = choice.of(&[
        "/v1/connections/c1/token",
        "/v1/connections/nobody/token",
        "/v1/connections/c%31/token?min_ttl=5",
        "/v1/connections/c1/token?min_ttl=x",
        "/v1/connections/c1",
        "/v1/connections?limit=x",
        "/v1/explain",
        "/v1/tokens/batch",
        "/v1/nothing",
        "/gateway/c1/crm/v3/objects/nothing?a=%20b",
        "/gateway/nobody/x",
        "/gateway/c1",
        "/gateway/c1//x#y",
        "//gateway/c1/x",
        "/v1",
        "/healthz",
        "/nothing",
        "/docs",
        "/openapi.json",
        "/dashboard",
        "/",
    ]);
    let version = choice.of(&["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0"]);
    let host = choice.of(&[
        "Host: localhost\r\n",
        "Host: localhost\r\n",
        "Host: localhost\r\n",
        "host: LOCALHOST:80\r\n",
        "Host: evil.test\r\n",
        "Host:\r\n",
        "",
        "Host: localhost\r\nHost: localhost\r\n",
    ]);
    let key = choice.of(keys);
    let more = choice.of(&[
        "",
        "",
        "",
        "Accept: */*\r\nUser-Agent: a client\r\n",
        "Connection: keep-alive\r\n",
        "Connection: close\r\n",
        "Connection: x-hop\r\nX-Hop: 1\r\n",
        "Evergrant-Connection: c1\r\n",
        "Evergrant-Connection: c2\r\n",
        "Evergrant-Min-Ttl: x\r\n",
        "X-Many: 1\r\nx-many: 2\r\nX-Empty:\r\n",
        "X-Latin: \u{e9}\r\n",
        "X-Long: 0123456789012345678901234567890123456789012345678901234567890123456789\r\n",
        "Accept: text/html\r\nAccept-Encoding: gzip\r\n",
        "Expect: 200-ok\r\n",
        "TE: trailers\r\n",
        "Content-Type: application/json\r\n",
    ]);
    let body = choice.of(&[
        "\r\n",
        "\r\n",
        "\r\n",
        "\r\n",
        "Content-Length: 0\r\n\r\n",
        "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
        "Content-Type: application/json\r\nContent-Length: 24\r\n\r\n{\"connection_ids\":[\"a\"]}",
        "Content-Type: application/json\r\nContent-Length: 3\r\n\r\n{\"a",
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ]);
    let request =
        format!("{method} {target} {version}\r\n{host}{key}X-Request-Id: request-{number}\r\n{more}{body}");
    (request, method == "HEAD")
}

#[tokio::test]
async fn a_request_is_answered_the_same_by_either_way() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let narrow = house
        .key(json!({"name": "n", "role": "tokens", "customers": ["acme"]}))
        .await;
    let (admin, narrow) = (
        format!("Authorization: Bearer {}\r\n", house.admin),
        format!("Authorization: Bearer {narrow}\r\n"),
    );
    let keys = [
        &admin,
        &admin,
        &admin,
        &narrow,
        "",
        "Authorization: Bearer evg_made-up\r\n",
        "Authorization: Basic eDp5\r\n",
    ];
    let mut choice = Choice(0x5eed_5eed_5eed_5eed);
    let (mut short, mut other) = (Wire::to(house.address).await, Wire::to(house.address).await);
    for number in 0..600 {
        let (request, is_head) = request(&mut choice, &keys, number);
        short.say(&request).await;
        other.say(&format!("\r\n{request}")).await;
        let (one, another) = (short.answer(is_head).await, other.answer(is_head).await);
        assert!(one.is_some(), "{request:?}");
        assert_eq!(one, another, "{request:?}");
        // Whether the connection stays is the same, too.
        if one.is_none_or(|answer| is_last(&answer)) {
            assert_eq!(short.answer(false).await, None, "{request:?}");
            assert_eq!(other.answer(false).await, None, "{request:?}");
            (short, other) = (Wire::to(house.address).await, Wire::to(house.address).await);
        }
    }
}

#[tokio::test]
async fn requests_that_come_together_are_answered_in_their_order_by_either_way() {
    let house = House::build().await;
    house.import("c1", "acme", 1001).await;
    let key = format!("Authorization: Bearer {}\r\n", house.admin);
    let keys = [key.as_str(), key.as_str(), ""];
    let mut choice = Choice(0x0dd5_eed0_dd5e_ed00);
    for round in 0..40 {
        let requests: Vec<_> = (0..6)
            .map(|number| request(&mut choice, &keys, 6 * round + number))
            .collect();
        // Of the one half some take the short way, whichever are plain; of the other none does.
        let (mut short, mut other) = (Wire::to(house.address).await, Wire::to(house.address).await);
        let together: String = requests.iter().map(|(request, _)| request.as_str()).collect();
        short.say(&together).await;
        for (request, _) in &requests {
            other.say(&format!("\r\n{request}")).await;
        }
        for (request, is_head) in requests {
            let (one, another) = (short.answer(is_head).await, other.answer(is_head).await);
            assert_eq!(one, another, "{request:?} of {together:?}");
            if one.is_none_or(|answer| is_last(&answer)) {
                break;
            }
        }
    }
}
