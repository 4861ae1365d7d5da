//! A provider that does, byte for byte, what a test says.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// A request as it came over the wire.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// First line and headers.
    pub(crate) head: String,
    /// The body, unframed.
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn first_line(&self) -> &str {
        self.head.lines().next().unwrap()
    }

    /// The value of a header that is there once; empty where it is not there.
    pub(crate) fn header(&self, name: &str) -> &str {
        let mut values = self.head.lines().skip(1).filter_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then_some(value.trim())
        });
        let value = values.next().unwrap_or("");
        assert_eq!(values.next(), None, "{name} more than once");
        value
    }
}

/// What comes back.
pub(crate) enum Reply {
    /// These bytes; the connection stays open.
    Bytes(Vec<u8>),
    /// These bytes, then the end of the connection.
    Last(Vec<u8>),
    /// Nothing, ever.
    Silence,
}

/// An answer with a body and its length.
pub(crate) fn reply(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Reply {
    let body = body.as_ref();
    let mut bytes = format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    Reply::Bytes(bytes)
}

pub(crate) const EXPIRED: &str = "{\"status\":\"error\",\"message\":\"The OAuth token used to make this call expired 0 second(s) ago.\",\
    \"correlationId\":\"cid-1\",\"category\":\"EXPIRED_AUTHENTICATION\",\"context\":{\"expire time\":[\"2026-03-10T23:04:41.164Z\"]}}";

pub(crate) const GARBAGE: &str = "{\"status\":\"error\",\"message\":\"The OAuth token used to make this call expired 20705 day(s) ago.\",\
    \"category\":\"EXPIRED_AUTHENTICATION\",\"context\":{\"expire time\":[\"1970-01-01T00:00:00Z\"]}}";

/// A 401 for a token that has ended.
pub(crate) fn expired() -> Reply {
    reply("401 Unauthorized", "Content-Type: application/json\r\n", EXPIRED)
}

pub(crate) fn ok() -> Reply {
    reply("200 OK", "", "fine")
}

/// When the script is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Head,
    End,
}

pub(crate) struct Scripted {
    pub(crate) base: String,
    shared: Arc<Shared>,
}

/// What answers the n-th request, counted from 0.
type Script = Box<dyn Fn(usize, &Seen) -> Reply + Send + Sync>;

struct Shared {
    seen: Mutex<Vec<Seen>>,
    begun: AtomicUsize,
    ended: Mutex<usize>,
    changed: Notify,
    at: At,
    script: Script,
}

impl Scripted {
    /// Answers each request once it has been read to its end.
    pub(crate) async fn new(script: impl Fn(usize, &Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::start(At::End, Box::new(script)).await
    }

    /// Answers as soon as the head is there, and reads no body.
    pub(crate) async fn hasty(script: impl Fn(usize, &Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::start(At::Head, Box::new(script)).await
    }

    async fn start(at: At, script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            seen: Mutex::default(),
            begun: AtomicUsize::new(0),
            ended: Mutex::default(),
            changed: Notify::new(),
            at,
            script,
        });
        let serving = shared.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let serving = serving.clone();
                serving.begun.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    serving.serve(stream).await;
                    *serving.ended.lock() += 1;
                    serving.changed.notify_waiters();
                });
            }
        });
        Self { base, shared }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().clone()
    }

    /// How many connections were made to it.
    pub(crate) fn connections(&self) -> usize {
        self.shared.begun.load(Ordering::SeqCst)
    }

    /// Returns once this many requests were seen.
    pub(crate) async fn wait_for_requests(&self, count: usize) {
        self.wait(|shared| shared.seen.lock().len() >= count).await;
    }

    /// Returns once this many connections have ended.
    pub(crate) async fn wait_for_ends(&self, count: usize) {
        self.wait(|shared| *shared.ended.lock() >= count).await;
    }

    async fn wait(&self, is_so: impl Fn(&Shared) -> bool) {
        loop {
            let changed = self.shared.changed.notified();
            if is_so(&self.shared) {
                return;
            }
            changed.await;
        }
    }
}

impl Shared {
    async fn serve(&self, mut stream: TcpStream) {
        let mut buffer = Vec::new();
        while let Some(seen) = self.read(&mut stream, &mut buffer).await {
            let nth = {
                let mut all = self.seen.lock();
                all.push(seen.clone());
                all.len() - 1
            };
            self.changed.notify_waiters();
            match (self.script)(nth, &seen) {
                Reply::Bytes(bytes) => {
                    if stream.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                Reply::Last(bytes) => {
                    let _ = stream.write_all(&bytes).await;
                    return;
                }
                Reply::Silence => {
                    // Until the other side leaves.
                    while stream.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {}
                    return;
                }
            }
        }
    }

    async fn read(&self, stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Seen> {
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            more(stream, buffer).await?;
        };
        let head = String::from_utf8(buffer.drain(..end).collect()).unwrap();
        let mut seen = Seen {
            head,
            body: Vec::new(),
        };
        if self.at == At::Head {
            return Some(seen);
        }
        if seen.header("transfer-encoding") == "chunked" {
            loop {
                let line = loop {
                    if let Some(at) = buffer.windows(2).position(|window| window == b"\r\n") {
                        break at;
                    }
                    more(stream, buffer).await?;
                };
                let size = String::from_utf8(buffer.drain(..line + 2).collect()).unwrap();
                let size = usize::from_str_radix(size.trim(), 16).unwrap();
                while buffer.len() < size + 2 {
                    more(stream, buffer).await?;
                }
                seen.body.extend(buffer.drain(..size));
                buffer.drain(..2);
                if size == 0 {
                    return Some(seen);
                }
            }
        }
        let length = seen.header("content-length").parse().unwrap_or(0);
        while buffer.len() < length {
            more(stream, buffer).await?;
        }
        seen.body = buffer.drain(..length).collect();
        Some(seen)
    }
}

async fn more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    let read = stream.read_buf(buffer).await.ok()?;
    (read > 0).then_some(())
}
