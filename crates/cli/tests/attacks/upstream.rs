//! A provider that writes down every byte it is sent, and answers as it is told.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// Method, target and version.
    pub(crate) line: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Whether its end came.
    pub(crate) is_whole: bool,
}

impl Seen {
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers
            .iter()
            .filter(move |(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Method and target.
    pub(crate) fn what(&self) -> &str {
        self.line.rsplit_once(' ').unwrap().0
    }
}

/// Answers by the last part of the path after `/answer/`. What is closed afterwards says so.
type Script = HashMap<String, (Vec<u8>, After)>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    KeepOpen,
    Close,
}

pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    script: Arc<Mutex<Script>>,
    gate: Arc<Gate>,
}

/// What asks for `/hold` waits here.
#[derive(Default)]
struct Gate {
    /// How many came, and whether they may go on.
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Gate {
    fn wait(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |(_, is_open)| !*is_open).unwrap());
    }
}

impl Upstream {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let upstream = Self {
            address: listener.local_addr().unwrap(),
            seen: Arc::default(),
            script: Arc::default(),
            gate: Arc::default(),
        };
        let (seen, script, gate) = (
            upstream.seen.clone(),
            upstream.script.clone(),
            upstream.gate.clone(),
        );
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (seen, script, gate) = (seen.clone(), script.clone(), gate.clone());
                std::thread::spawn(move || serve(stream, &seen, &script, &gate));
            }
        });
        upstream
    }

    /// What arrived since it was last asked.
    pub(crate) fn taken(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    /// Waits until so many have asked for `/hold`.
    pub(crate) fn wait_for_held(&self, count: usize) {
        let state = self.gate.state.lock().unwrap();
        drop(
            self.gate
                .changed
                .wait_while(state, |(came, _)| *came < count)
                .unwrap(),
        );
    }

    /// Lets them go on, and all that follow.
    pub(crate) fn release(&self) {
        self.gate.state.lock().unwrap().1 = true;
        self.gate.changed.notify_all();
    }

    pub(crate) fn answers(&self, name: &str, bytes: &[u8], after: After) {
        let answer = (bytes.to_vec(), after);
        self.script.lock().unwrap().insert(name.to_owned(), answer);
    }
}

fn serve(mut stream: TcpStream, seen: &Mutex<Vec<Seen>>, script: &Mutex<Script>, gate: &Gate) {
    let mut buffer = Vec::new();
    loop {
        let Some(end) = fill(&mut stream, &mut buffer, |bytes| find(bytes, b"\r\n\r\n")) else {
            // What came before an end that never came was no request, but it came.
            if !buffer.is_empty() {
                note(seen, &buffer);
            }
            return;
        };
        let head: Vec<u8> = buffer.drain(..end + 4).collect();
        let (request, number) = note(seen, &head[..end]);
        let length = request
            .all("content-length")
            .next()
            .map(|length| length.parse().unwrap());
        let body = if request.all("transfer-encoding").next().is_some() {
            chunked(&mut stream, &mut buffer)
        } else {
            let length = length.unwrap_or(0);
            fill(&mut stream, &mut buffer, |bytes| {
                (bytes.len() >= length).then_some(length)
            })
            .map(|length| buffer.drain(..length).collect())
        };
        let Some(body) = body else { return };
        // It may have been taken meanwhile; then it counts as it was.
        if let Some(noted) = seen.lock().unwrap().get_mut(number)
            && noted.line == request.line
        {
            noted.body = body;
            noted.is_whole = true;
        }
        let target = request.line.split(' ').nth(1).unwrap_or_default();
        if target.ends_with("/hold") {
            gate.wait();
        }
        let scripted = target
            .split_once("/answer/")
            .and_then(|(_, name)| script.lock().unwrap().get(name).cloned());
        let (answer, after) = scripted.unwrap_or_else(|| (echo(&request, target), After::KeepOpen));
        if stream.write_all(&answer).is_err() || after == After::Close {
            return;
        }
    }
}

/// The default answer says what was asked for, so that nobody can be given another one's.
fn echo(request: &Seen, target: &str) -> Vec<u8> {
    let body = format!("{{\"asked\":{target:?}}}");
    let length = body.len();
    let body = if request.line.starts_with("HEAD ") {
        ""
    } else {
        &body
    };
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

fn note(seen: &Mutex<Vec<Seen>>, head: &[u8]) -> (Seen, usize) {
    let text = String::from_utf8_lossy(head).into_owned();
    let mut lines = text.split("\r\n");
    let line = lines.next().unwrap().to_owned();
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(": ").unwrap_or((line, "<no colon>"));
        (name.to_owned(), value.to_owned())
    });
    let request = Seen {
        line,
        headers: headers.collect(),
        body: Vec::new(),
        is_whole: false,
    };
    let mut seen = seen.lock().unwrap();
    seen.push(request.clone());
    (request, seen.len() - 1)
}

/// Reads on until `end` finds what it looks for; `None` where the other side ends before.
fn fill(stream: &mut TcpStream, buffer: &mut Vec<u8>, end: impl Fn(&[u8]) -> Option<usize>) -> Option<usize> {
    loop {
        if let Some(end) = end(buffer) {
            return Some(end);
        }
        let mut piece = [0; 16 * 1024];
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return None,
            Ok(length) => buffer.extend_from_slice(&piece[..length]),
        }
    }
}

/// Strictly: sizes in hexadecimal, nothing beside them, no trailers.
fn chunked(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = fill(stream, buffer, |bytes| find(bytes, b"\r\n"))?;
        let line: Vec<u8> = buffer.drain(..end + 2).collect();
        let size = std::str::from_utf8(&line[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap_or_else(|_| panic!("a chunk of size {size:?}"));
        fill(stream, buffer, |bytes| (bytes.len() >= size + 2).then_some(0))?;
        body.extend(buffer.drain(..size));
        let end: Vec<u8> = buffer.drain(..2).collect();
        assert_eq!(end, b"\r\n", "after a chunk, or in place of trailers");
        if size == 0 {
            return Some(body);
        }
    }
}

pub(crate) fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
