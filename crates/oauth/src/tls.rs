//! Whom we trust to be the provider.

use rustls::pki_types::CertificateDer;

/// Which certificate authorities may vouch for a token endpoint.
#[derive(Debug, Clone)]
pub enum TlsRoots {
    /// The platform's.
    Native,
    /// These and no others.
    Only(Vec<CertificateDer<'static>>),
}
