//! Certificate and key, read anew when they change: certificates are renewed more often than services are restarted.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use evergrant_config::TlsFiles;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is not PEM.
    #[error("{file} cannot be read as PEM: {why}")]
    File {
        /// Which file.
        file: String,
        /// Why.
        why: String,
    },
    /// They do not make a server's identity.
    #[error("certificate and key do not go together: {0}")]
    Mismatch(#[from] rustls::Error),
}

/// The certificate in use.
pub(crate) struct Certificates {
    files: TlsFiles,
    state: Mutex<State>,
}

struct State {
    acceptor: TlsAcceptor,
    changed: Changed,
    looked_at: Instant,
}

/// When the two files last changed, as far as their file system says.
type Changed = (Option<SystemTime>, Option<SystemTime>);

impl Certificates {
    pub(crate) fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let changed = changed(files);
        let acceptor = acceptor(files)?;
        let state = State { acceptor, changed, looked_at: Instant::now() };
        Ok(Self { files: files.clone(), state: Mutex::new(state) })
    }

    /// The acceptor for the next connection. Files that were changed to something unusable change nothing.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let mut state = self.state.lock();
        if state.looked_at.elapsed() >= LOOK_EVERY {
            state.looked_at = Instant::now();
            let changed = changed(&self.files);
            if changed != state.changed {
                state.changed = changed;
                match acceptor(&self.files) {
                    Ok(acceptor) => {
                        tracing::info!(event = "certificate_read", "the certificate has changed and is in use");
                        state.acceptor = acceptor;
                    }
                    Err(error) => {
                        tracing::error!(event = "certificate_refused", %error, "the certificate has changed and cannot be used; the one before stays");
                    }
                }
            }
        }
        state.acceptor.clone()
    }
}

fn changed(files: &TlsFiles) -> Changed {
    let modified = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    (modified(&files.cert_file), modified(&files.key_file))
}

fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, TlsError> {
    let unreadable = |path: &Path, error: rustls::pki_types::pem::Error| TlsError::File {
        file: path.display().to_string(),
        why: error.to_string(),
    };
    let certificates = CertificateDer::pem_file_iter(&files.cert_file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unreadable(&files.cert_file, error))?;
    let key = PrivateKeyDer::from_pem_file(&files.key_file).map_err(|error| unreadable(&files.key_file, error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
