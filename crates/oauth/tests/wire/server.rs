//! A server on a free port that does to each connection what it is told, and notes what it saw.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// What happens once a whole request was read.
#[derive(Clone)]
pub(crate) enum Script {
    /// These bytes, then the end.
    Say(Vec<u8>),
    /// These bytes, then silence until the client goes.
    SayAndHang(Vec<u8>),
    /// One of these bytes each second.
    Trickle(Vec<u8>),
    /// The first, then the second again and again until the client goes.
    Endless(Vec<u8>, Vec<u8>),
}

/// What was seen so far.
#[derive(Default)]
pub(crate) struct Log {
    /// Connections taken; with TLS, once the handshake is over.
    pub(crate) connections: usize,
    /// What was agreed on by ALPN.
    pub(crate) protocols: Vec<Option<Vec<u8>>>,
    /// Bytes of requests, whole or not.
    pub(crate) bytes: usize,
    /// Whole requests.
    pub(crate) requests: Vec<String>,
    /// Connections that the client left before it had its answer.
    pub(crate) left: usize,
    /// Handshakes that failed.
    pub(crate) handshakes_failed: usize,
}

/// Stops when dropped.
pub(crate) struct Server {
    base: String,
    log: watch::Receiver<Log>,
    task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(script: Script) -> Self {
        Self::serve(script, None).await
    }

    pub(crate) async fn with_tls(script: Script, identity: &Identity) -> Self {
        Self::serve(script, Some(identity.acceptor())).await
    }

    /// Takes connections and says nothing, not even a handshake.
    pub(crate) async fn silent() -> Self {
        let mut server = Self::start(Script::Say(vec![])).await;
        server.base = server.base.replace("http:", "https:");
        server
    }

    async fn serve(script: Script, acceptor: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let scheme = if acceptor.is_some() { "https" } else { "http" };
        let base = format!("{scheme}://{}", listener.local_addr().unwrap());
        let (noted, log) = watch::channel(Log::default());
        let task = tokio::spawn(async move {
            let noted = Arc::new(noted);
            while let Ok((stream, _)) = listener.accept().await {
                let (script, noted, acceptor) = (script.clone(), noted.clone(), acceptor.clone());
                tokio::spawn(async move {
                    let Some(acceptor) = acceptor else {
                        noted.send_modify(|log| log.connections += 1);
                        return converse(stream, script, &noted).await;
                    };
                    match acceptor.accept(stream).await {
                        Ok(stream) => {
                            noted.send_modify(|log| {
                                log.connections += 1;
                                log.protocols
                                    .push(stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec));
                            });
                            converse(stream, script, &noted).await;
                        }
                        Err(_) => noted.send_modify(|log| log.handshakes_failed += 1),
                    }
                });
            }
        });
        Self { base, log, task }
    }

    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    pub(crate) fn log(&self) -> watch::Ref<'_, Log> {
        self.log.borrow()
    }

    /// Returns as soon as the server saw that.
    pub(crate) async fn saw(&self, what: impl FnMut(&Log) -> bool) {
        self.log.clone().wait_for(what).await.unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    script: Script,
    noted: &watch::Sender<Log>,
) {
    let mut request = Vec::new();
    while !is_whole(&request) {
        let mut buffer = [0; 4096];
        let Ok(read @ 1..) = stream.read(&mut buffer).await else {
            return noted.send_modify(|log| log.left += 1);
        };
        noted.send_modify(|log| log.bytes += read);
        request.extend_from_slice(&buffer[..read]);
    }
    noted.send_modify(|log| log.requests.push(String::from_utf8(request).unwrap()));
    match script {
        Script::Say(bytes) => {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            return;
        }
        Script::SayAndHang(bytes) => {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.flush().await;
            while matches!(stream.read(&mut [0; 64]).await, Ok(1..)) {}
        }
        Script::Trickle(bytes) => {
            for byte in bytes {
                if stream.write_all(&[byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        Script::Endless(head, again) => {
            let _ = stream.write_all(&head).await;
            while stream.write_all(&again).await.is_ok() {}
        }
    }
    noted.send_modify(|log| log.left += 1);
}

fn is_whole(request: &[u8]) -> bool {
    let request = String::from_utf8_lossy(request);
    let Some((head, body)) = request.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .unwrap_or("0");
    body.len() >= length.parse().unwrap()
}

/// A certificate that signs itself.
pub(crate) struct Identity {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Identity {
    pub(crate) fn of(name: &str) -> Self {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        Self {
            certificate: made.cert.der().clone(),
            key: made.signing_key.serialize_der(),
        }
    }

    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    fn acceptor(&self) -> TlsAcceptor {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.clone()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate()], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

/// A whole answer.
pub(crate) fn answer(status: &str, headers: &[&str], body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n", body.len());
    for header in headers {
        answer.push_str(header);
        answer.push_str("\r\n");
    }
    answer.push_str("\r\n");
    let mut answer = answer.into_bytes();
    answer.extend_from_slice(body);
    answer
}
