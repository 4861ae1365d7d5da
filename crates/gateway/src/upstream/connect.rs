//! Makes connections: TLS with the given roots, plain HTTP to this machine only.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use evergrant_oauth::TlsRoots;
use http::Uri;
use http::uri::Scheme;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower::Service;

use crate::call_body::BoxError;

/// Makes connections.
pub(crate) struct Connector {
    plain: HttpConnector<Resolver>,
    everywhere: HttpConnector<Resolver>,
    roots: TlsRoots,
    tls: OnceCell<TlsConnector>,
}

impl Connector {
    pub(crate) fn new(roots: TlsRoots) -> Self {
        Self {
            plain: tcp(Reach::ThisMachine),
            everywhere: tcp(Reach::Everywhere),
            roots,
            tls: OnceCell::new(),
        }
    }

    /// Connects to where the URI says. How long to wait is the caller's to decide.
    pub(crate) async fn connect(&self, to: Uri) -> Result<Stream, BoxError> {
        let host = to.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        if to.scheme() == Some(&Scheme::HTTP) {
            // The configuration refuses plain providers elsewhere. Should one slip through, no bearer leaves this machine in clear.
            // Addresses are not resolved, so the resolver does not see them.
            if host.parse().is_ok_and(|address: IpAddr| !address.is_loopback()) {
                return Err(PLAIN_REFUSED.into());
            }
            return Ok(Stream::Plain(self.plain.clone().call(to).await?.into_inner()));
        }
        let tls = self.tls.get_or_try_init(|| tls(&self.roots)).await?;
        let stream = self.everywhere.clone().call(to).await?.into_inner();
        let name = ServerName::try_from(host)?;
        let stream = tls.connect(name, stream).await?;
        Ok(Stream::Tls(Box::new(stream)))
    }
}

const PLAIN_REFUSED: &str = "plain HTTP is spoken with this machine only";

/// The bytes of a connection.
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
        }
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

/// Put together once, by the first call that needs it. It remembers sessions, so that a second connection to a provider costs less.
async fn tls(roots: &TlsRoots) -> Result<TlsConnector, BoxError> {
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
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
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
