//! The wire: requests to token endpoints built, sent once, and their answers handed to the domain to be read.

mod authorize;
mod endpoint;
mod tls;

pub use authorize::{authorize_url, new_code_verifier};
pub use endpoint::{ClientCheck, Introspect, Redeemed, TokenEndpoint};
pub use tls::TlsRoots;
