//! Whom we believe to be the provider: TLS by rustls, HTTP/1.1 and nothing else.

use std::io;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use url::Host;

/// Which certificate authorities may vouch for a token endpoint.
#[derive(Debug, Clone)]
pub enum TlsRoots {
    /// The platform's, read from disk when the first connection needs them.
    Native,
    /// These and no others.
    Only(Vec<CertificateDer<'static>>),
}

/// Makes TLS connections. Its settings are put together once, by the first one.
pub(crate) struct Tls {
    roots: TlsRoots,
    connector: OnceCell<TlsConnector>,
}

impl Tls {
    pub(crate) fn new(roots: TlsRoots) -> Self {
        Self {
            roots,
            connector: OnceCell::new(),
        }
    }

    /// The error is the word for it.
    pub(crate) async fn connect(
        &self,
        host: Host<&str>,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, &'static str> {
        let name = match host {
            Host::Domain(name) => ServerName::try_from(name.to_owned()).map_err(|_| "unusable_url")?,
            Host::Ipv4(ip) => ServerName::from(std::net::IpAddr::from(ip)),
            Host::Ipv6(ip) => ServerName::from(std::net::IpAddr::from(ip)),
        };
        let connector = self.connector.get_or_try_init(|| self.connector()).await?;
        connector
            .connect(name, stream)
            .await
            .map_err(|error| word_for(&error))
    }

    async fn connector(&self) -> Result<TlsConnector, &'static str> {
        let certificates = match &self.roots {
            TlsRoots::Only(certificates) => certificates.clone(),
            // Files are read, so not on a thread that serves others. What cannot be read of them is left out.
            TlsRoots::Native => {
                tokio::task::spawn_blocking(rustls_native_certs::load_native_certs)
                    .await
                    .map_err(|_| NO_ROOTS)?
                    .certs
            }
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates);
        if roots.is_empty() {
            return Err(NO_ROOTS);
        }
        // The provider is named, not looked up in the process: whoever embeds us may have installed another.
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("aws-lc-rs speaks TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// Not kept: the next exchange looks again.
const NO_ROOTS: &str = "no_tls_roots";

fn word_for(error: &io::Error) -> &'static str {
    match error
        .get_ref()
        .and_then(|error| error.downcast_ref::<rustls::Error>())
    {
        Some(rustls::Error::InvalidCertificate(_)) => "certificate_refused",
        _ => "tls_failed",
    }
}
