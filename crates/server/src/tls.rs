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
pub struct Certificates {
    state: Mutex<State>,
}

struct State {
    files: TlsFiles,
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
        let state = State {
            files: files.clone(),
            acceptor,
            changed,
            looked_at: Instant::now(),
        };
        Ok(Self {
            state: Mutex::new(state),
        })
    }

    /// Takes these files from the next connection on. Connections that are open keep what they were greeted with.
    ///
    /// # Errors
    ///
    /// They cannot be used; then those before stay in use.
    pub fn replace(&self, files: &TlsFiles) -> Result<(), TlsError> {
        let replaced = Self::load(files)?.state.into_inner();
        *self.state.lock() = replaced;
        Ok(())
    }

    /// The acceptor for the next connection. Files that were changed to something unusable change nothing.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let mut state = self.state.lock();
        if state.looked_at.elapsed() >= LOOK_EVERY {
            state.looked_at = Instant::now();
            let changed = changed(&state.files);
            if changed != state.changed {
                state.changed = changed;
                match acceptor(&state.files) {
                    Ok(acceptor) => {
                        tracing::info!(
                            event = "certificate_read",
                            "the certificate has changed and is in use"
                        );
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
    let modified = |path: &Path| {
        std::fs::metadata(path)
            .and_then(|metadata| metadata.modified())
            .ok()
    };
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
    let key =
        PrivateKeyDer::from_pem_file(&files.key_file).map_err(|error| unreadable(&files.key_file, error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;

    use super::*;

    fn write(files: &TlsFiles, age: Duration) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let key = made.signing_key.serialize_der();
        for (path, label, der) in [
            (&files.cert_file, "CERTIFICATE", made.cert.der().as_ref()),
            (&files.key_file, "PRIVATE KEY", key.as_slice()),
        ] {
            let text = base64::engine::general_purpose::STANDARD.encode(der);
            std::fs::write(
                path,
                format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n"),
            )
            .expect("a folder");
            touch(path, age);
        }
    }

    /// File systems tell moments apart more or less finely; so the files' times are said.
    fn touch(path: &Path, age: Duration) {
        let file = std::fs::File::options().write(true).open(path).expect("a file");
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000) + age)
            .expect("a file's time");
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_certificate_is_taken_up_and_a_broken_one_is_not() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let files = TlsFiles {
            cert_file: folder.path().join("cert.pem"),
            key_file: folder.path().join("key.pem"),
        };
        write(&files, Duration::ZERO);
        let certificates = Certificates::load(&files).expect("a certificate");
        let in_use = async || {
            tokio::time::advance(2 * LOOK_EVERY).await;
            certificates.acceptor().config().clone()
        };
        let first = in_use().await;
        assert!(Arc::ptr_eq(&first, &in_use().await));
        write(&files, Duration::from_secs(1));
        let second = in_use().await;
        assert!(!Arc::ptr_eq(&first, &second));
        std::fs::write(&files.cert_file, "nothing").expect("a file");
        touch(&files.cert_file, Duration::from_secs(2));
        assert!(Arc::ptr_eq(&second, &in_use().await));
        write(&files, Duration::from_secs(3));
        let third = in_use().await;
        assert!(!Arc::ptr_eq(&second, &third));
        let elsewhere = TlsFiles {
            cert_file: folder.path().join("other.pem"),
            key_file: folder.path().join("other-key.pem"),
        };
        certificates.replace(&elsewhere).expect_err("they are not there");
        assert!(Arc::ptr_eq(&third, &in_use().await));
        write(&elsewhere, Duration::ZERO);
        certificates.replace(&elsewhere).expect("they are there");
        assert!(!Arc::ptr_eq(&third, certificates.acceptor().config()));
    }
}
