//! Bodies that are larger than anybody wants to hold, and TLS.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use evergrant_oauth::TlsRoots;
use http::{Request, Response, Version};
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use rustls::HandshakeKind;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::world::{Settings, World, body, gist, text};

type NoError = std::convert::Infallible;

/// A body of unknown length that comes as it is fed.
pub(crate) fn fed() -> (
    mpsc::UnboundedSender<Bytes>,
    impl Body<Data = Bytes, Error = NoError> + Send + Unpin + 'static,
) {
    let (feed, mut food) = mpsc::unbounded_channel();
    let stream = futures_util::stream::poll_fn(move |cx| {
        food.poll_recv(cx)
            .map(|data: Option<Bytes>| data.map(|data| Ok(Frame::data(data))))
    });
    (feed, StreamBody::new(stream))
}

const PIECE: usize = 64 * 1024;
const PIECES: usize = 1024;

/// What the sockets and buffers between two ends may hold; far from the whole.
const IN_BETWEEN: usize = 256;

/// 64 MiB in pieces; `made` counts them as they are asked for.
fn large(made: Arc<AtomicUsize>) -> impl Body<Data = Bytes, Error = NoError> + Send + Unpin + 'static {
    let stream = futures_util::stream::iter(std::iter::from_fn(move || {
        let number = made.fetch_add(1, Ordering::SeqCst);
        let piece = Bytes::from(vec![number.to_le_bytes()[0]; PIECE]);
        (number < PIECES).then(|| Ok(Frame::data(piece)))
    }));
    StreamBody::new(stream)
}

/// Reads a large body to its end; never may more than a part of it have been made than was read.
async fn read_slowly<B>(mut body: B, made: &AtomicUsize)
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Debug,
{
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        let data = frame.unwrap().into_data().unwrap();
        let piece_at = |byte: usize| (byte / PIECE).to_le_bytes()[0];
        assert_eq!(data[0], piece_at(read));
        assert_eq!(data[data.len() - 1], piece_at(read + data.len() - 1));
        read += data.len();
        // Whoever could run ahead may do so now.
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        let ahead = made.load(Ordering::SeqCst).saturating_sub(read / PIECE);
        assert!(ahead < IN_BETWEEN, "{ahead} pieces are held somewhere");
    }
    assert_eq!(read, PIECE * PIECES);
}

/// A hyper server.
async fn serve<F, G, B>(answer: F) -> String
where
    F: Fn(Request<Incoming>) -> G + Clone + Send + 'static,
    G: Future<Output = Result<Response<B>, NoError>> + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                let service = service_fn(answer);
                // A client that leaves is no failure of the server.
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    format!("http://localhost:{}/", address.port())
}

#[tokio::test]
async fn a_large_answer_flows_through_and_is_held_nowhere() {
    let made = Arc::new(AtomicUsize::new(0));
    let making = made.clone();
    let base = serve(move |_| {
        let body = large(making.clone());
        async move { Ok(Response::new(body)) }
    })
    .await;
    let world = World::at(&base).await;
    let answer = world.get("/x").await.unwrap();
    assert_eq!(gist(&answer), (200, "ok", 1));
    read_slowly(answer.response.into_body(), &made).await;
}

#[tokio::test]
async fn a_large_call_flows_through_and_is_held_nowhere() {
    let made = Arc::new(AtomicUsize::new(0));
    let making = made.clone();
    let base = serve(move |request: Request<Incoming>| {
        let made = making.clone();
        async move {
            read_slowly(request.into_body(), &made).await;
            Ok(Response::new(Full::new(Bytes::from_static(b"read"))))
        }
    })
    .await;
    let world = World::at(&base).await;
    let request = Request::post("/").body(large(made.clone())).unwrap();
    let answer = world.gateway.call(&world.id, "/x", request).await.unwrap();
    assert_eq!(gist(&answer), (200, "ok", 1));
    assert_eq!(body(answer).await, "read");
}

/// A hyper server with TLS that would speak HTTP/2, too. It ends each connection after two calls, and tells of each whether its
/// handshake was short, because the client remembered the one before.
async fn serve_tls() -> (String, CertificateDer<'static>, Arc<Mutex<Vec<bool>>>) {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = CertificateDer::from(key.cert.der().to_vec());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.clone()],
            PrivatePkcs8KeyDer::from(key.signing_key.serialize_der()).into(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let tls = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
    let were_short = Arc::new(Mutex::new(Vec::new()));
    let seen = were_short.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Whoever does not trust it goes away.
            let Ok(stream) = tls.accept(stream).await else {
                continue;
            };
            let kind = stream.get_ref().1.handshake_kind();
            seen.lock().push(kind == Some(HandshakeKind::Resumed));
            let calls = AtomicUsize::new(0);
            let service = service_fn(move |request: Request<Incoming>| {
                let is_last = calls.fetch_add(1, Ordering::SeqCst) == 1;
                async move {
                    assert_eq!(request.version(), Version::HTTP_11);
                    let sent = request.into_body().collect().await.unwrap().to_bytes();
                    let response = Response::builder().header("x-length", sent.len());
                    let response = if is_last {
                        response.header("connection", "close")
                    } else {
                        response
                    };
                    Ok::<_, NoError>(response.body(Full::new(sent)).unwrap())
                }
            });
            tokio::spawn(
                auto::Builder::new(TokioExecutor::new())
                    .serve_connection_with_upgrades(TokioIo::new(stream), service)
                    .into_owned(),
            );
        }
    });
    (base, certificate, were_short)
}

#[tokio::test]
async fn tls_to_a_provider_is_kept_and_resumed() {
    let (base, certificate, were_short) = serve_tls().await;
    let settings = Settings {
        roots: TlsRoots::Only(vec![certificate]),
        ..Settings::default()
    };
    let world = World::with(Some(&base), settings).await;
    for _ in 0..4 {
        let answer = world.send("POST", "/x", "hello").await.unwrap();
        assert_eq!(gist(&answer), (200, "ok", 1));
        assert_eq!(text(answer.response.headers(), "x-length"), "5");
        assert_eq!(body(answer).await, "hello");
    }
    assert_eq!(*were_short.lock(), [false, true]);
    let stranger = World::at(&base).await;
    let refusal = stranger.send("POST", "/x", "hello").await.unwrap_err();
    assert!(
        format!("{:?}", refusal.kind).starts_with("UpstreamUnreachable"),
        "{refusal:?}"
    );
}
