//! A browser small enough to read: one request a connection.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

/// An answer, whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Answer {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> &str {
        let mut headers = self.head.lines().filter_map(|line| line.split_once(": "));
        let found = headers.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.unwrap_or_else(|| panic!("no {name} in {}", self.head)).1
    }
}

/// Sends one request. Plain HTTP/1.0: no chunks, and the answer ends with the connection.
pub(crate) fn send(method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let rest = url.strip_prefix("http://").expect("a plain http URL");
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut stream = TcpStream::connect(host).unwrap_or_else(|error| panic!("{url}: {error}"));
    let mut head = vec![
        format!("{method} /{path} HTTP/1.0"),
        format!("Host: {host}"),
        format!("Content-Length: {}", body.len()),
    ];
    head.extend(headers.iter().map(|(name, value)| format!("{name}: {value}")));
    let request = format!("{}\r\n\r\n{body}", head.join("\r\n"));
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("{url}: no answer but {answer:?}"));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .expect("a status line");
    Answer {
        status,
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

/// A customer's way through consent, from the link to the last page.
pub(crate) fn consent(link: &str, hub_id: u64) -> Answer {
    let page = send("GET", link, &[], "");
    assert_eq!(page.status, 200, "{page:?}");
    let cookie = page.header("set-cookie").split(';').next().unwrap().to_owned();
    let to_provider = send("POST", link, &[("Cookie", &cookie)], "");
    assert_eq!(to_provider.status, 303, "{to_provider:?}");
    let authorize = format!("{}&_sim_hub_id={hub_id}", to_provider.header("location"));
    let back = send("GET", &authorize, &[], "");
    assert_eq!(back.status, 302, "{back:?}");
    send("GET", back.header("location"), &[("Cookie", &cookie)], "")
}
