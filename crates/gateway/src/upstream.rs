//! The connections to providers, and what is known when no answer came: whether the call left.
//!
//! Kept apart, so that a pool of our own can take the place of this one. Redirects are answers like any other here.

use std::error::Error as _;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use evergrant_oauth::TlsRoots;
use http::uri::Scheme;
use http::{Request, Response, Uri};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tower::Service;

use crate::answer_body::Rest;
use crate::call_body::{BoxError, Outgoing};
use crate::transport::{NoAnswer, Transport};

/// Sends calls. One pool of connections for all providers.
pub struct Upstream {
    client: Client<Connector, Outgoing>,
}

impl Upstream {
    /// `patience` is how long a provider may take until the head of its answer.
    pub fn new(roots: TlsRoots, patience: Duration) -> Self {
        /// Shorter than providers and what stands before them close idle connections, as a rule: a call must seldom meet a
        /// connection that is just being closed.
        const IDLE_MAX: Duration = Duration::from_secs(45);
        const IDLE_AT_ONCE: usize = 256;
        const PING_EVERY: Duration = Duration::from_secs(30);
        const PONG_WITHIN: Duration = Duration::from_secs(10);
        /// What a connection reads ahead at most while its caller is slow; larger brings little, and many are slow at once.
        const BUFFER_MAX: usize = 128 * 1024;
        const CONNECT_MAX: Duration = Duration::from_secs(10);
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(IDLE_AT_ONCE)
            // Only what is given back by a connection that never began to write it.
            .retry_canceled_requests(true)
            .http1_max_buf_size(BUFFER_MAX)
            .http2_adaptive_window(true)
            .http2_keep_alive_interval(PING_EVERY)
            .http2_keep_alive_timeout(PONG_WITHIN)
            // Well before patience ends: what ran out of time while connecting is known not to have left.
            .build(Connector::new(roots, CONNECT_MAX.min(patience / 2)));
        Self { client }
    }
}

impl Transport for Upstream {
    async fn send(&self, request: Request<Outgoing>) -> Result<Response<Rest>, NoAnswer> {
        match self.client.request(request).await {
            Ok(response) => Ok(response.map(Rest::Own)),
            Err(error) => Err(told_by(&error)),
        }
    }
}

/// What an error says about whether the call left. In doubt it did.
///
/// hyper says "canceled" of a request only where it hands it back unwritten (hyper 1.12, `client::dispatch` and
/// `proto::h1::dispatch`); whatever happens once writing began is another kind.
fn told_by(error: &Error) -> NoAnswer {
    let unwritten = error
        .source()
        .and_then(|source| source.downcast_ref::<hyper::Error>())
        .is_some_and(hyper::Error::is_canceled);
    tracing::debug!(
        error = error as &dyn std::error::Error,
        "no answer from the provider"
    );
    if error.is_connect() || unwritten {
        NoAnswer::NotSent
    } else {
        NoAnswer::Cut
    }
}

/// Makes connections: TLS with the given roots, plain HTTP to this machine only.
#[derive(Clone)]
struct Connector {
    plain: HttpConnector<Resolver>,
    roots: TlsRoots,
    tls: Arc<OnceCell<HttpsConnector<HttpConnector<Resolver>>>>,
    within: Duration,
}

type Stream = MaybeHttpsStream<TokioIo<TcpStream>>;

impl Connector {
    fn new(roots: TlsRoots, within: Duration) -> Self {
        Self {
            plain: tcp(Reach::ThisMachine),
            roots,
            tls: Arc::default(),
            within,
        }
    }

    async fn connect(mut self, to: Uri) -> Result<Stream, BoxError> {
        if to.scheme() == Some(&Scheme::HTTP) {
            // The configuration refuses plain providers elsewhere. Should one slip through, no bearer leaves this machine in clear.
            // Addresses are not resolved, so the resolver does not see them.
            let host = to.host().unwrap_or_default().trim_matches(['[', ']']);
            if host.parse().is_ok_and(|address: IpAddr| !address.is_loopback()) {
                return Err(PLAIN_REFUSED.into());
            }
            return Ok(MaybeHttpsStream::Http(self.plain.call(to).await?));
        }
        let roots = &self.roots;
        let mut tls = self.tls.get_or_try_init(|| tls(roots)).await?.clone();
        tls.call(to).await
    }
}

const PLAIN_REFUSED: &str = "plain HTTP is spoken with this machine only";

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { timeout(connector.within, connector.connect(to)).await? })
    }
}

fn tcp(reach: Reach) -> HttpConnector<Resolver> {
    const ALIVE_AFTER: Duration = Duration::from_secs(60);
    let mut tcp = HttpConnector::new_with_resolver(Resolver {
        system: GaiResolver::new(),
        reach,
    });
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(ALIVE_AFTER));
    tcp
}

/// Put together once, by the first call that needs it.
async fn tls(roots: &TlsRoots) -> Result<HttpsConnector<HttpConnector<Resolver>>, BoxError> {
    let certificates = match roots {
        TlsRoots::Only(certificates) => certificates.clone(),
        // Files are read, so not on a thread that serves others. What cannot be read of them is left out.
        TlsRoots::Native => {
            tokio::task::spawn_blocking(rustls_native_certs::load_native_certs)
                .await?
                .certs
        }
    };
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(certificates);
    if store.is_empty() {
        return Err("this machine has no root certificates".into());
    }
    // The provider is named, not looked up in the process: whoever embeds us may have installed another.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(store)
        .with_no_client_auth();
    Ok(hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_only()
        .enable_http1()
        .enable_http2()
        .wrap_connector(tcp(Reach::Everywhere)))
}

/// Which addresses may be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Everywhere,
    ThisMachine,
}

/// The system's resolver. What counts is the address that is connected to, not the name that was asked for.
#[derive(Clone)]
struct Resolver {
    system: GaiResolver,
    reach: Reach,
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.system.poll_ready(cx)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let addresses = self.system.call(name);
        let reach = self.reach;
        Box::pin(async move {
            let mut addresses: Vec<SocketAddr> = addresses.await?.collect();
            if reach == Reach::ThisMachine {
                addresses.retain(|address| address.ip().is_loopback());
                if addresses.is_empty() {
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, PLAIN_REFUSED));
                }
            }
            Ok(addresses.into_iter())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_known_by_the_addresses_it_leads_to() {
        let mut plain = Resolver {
            system: GaiResolver::new(),
            reach: Reach::ThisMachine,
        };
        let mut reaches = async |name: &str| plain.call(name.parse().unwrap()).await.is_ok();
        assert!(reaches("127.1").await && reaches("localhost").await);
        // 192.0.2.1 and 0.0.0.0, as no parser of URLs writes them.
        assert!(!reaches("0xc0000201").await && !reaches("0").await);
    }
}
