//! The wire: requests to token endpoints built, sent once, and their answers handed to the domain to be read.
//!
//! [`authorize_url`] and the requests are built by functions that send nothing. One sender sends them: a fresh connection
//! for each exchange, no pool, no retry, no redirect, so that whether anything was sent is never a guess. It knows nothing
//! about connections, leases, versions or clocks, never decides about another try, and logs nothing. Only `keeper` calls
//! it: whoever else redeemed a refresh token here would do it behind the keeper's back.
//!
//! Start reading at [`TokenEndpoint`]; `request` holds what is sent, `sender` how, and `evergrant_domain::token_answer`
//! what the answers mean.

mod authorize;
mod endpoint;
mod journal;
mod network;
mod request;
mod retry_after;
mod sender;
mod tls;

pub use authorize::{authorize_url, new_code_verifier};
pub use endpoint::{ClientCheck, ClockSeen, Redeemed, TokenEndpoint};
pub use journal::JournalAnswer;
pub use network::{Network, Stream, machine};
pub use request::Introspect;
pub use retry_after::retry_after_from;
pub use tls::TlsRoots;

/// A secret nobody can guess: 32 bytes of the system's randomness, in letters that need no escaping anywhere.
fn random_secret() -> String {
    use base64::Engine as _;

    let mut bytes = zeroize::Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(bytes.as_mut()).expect("the system gives random numbers");
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes.as_slice())
}
