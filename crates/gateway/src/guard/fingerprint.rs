//! What a write is known by: keyed fingerprints, of which nobody learns anything without the vault key.

use std::fmt::Write as _;

use evergrant_store::Vault;
use http::header::CONTENT_TYPE;

use crate::call::Call;
use crate::guard::asked::Key;

/// What the request itself is known by: method, path, query, content type and body. Equal for equal requests of one connection.
pub(crate) fn of_request(vault: &Vault, call: &Call<'_>, body: &[u8]) -> String {
    // Path and query are one part: no path holds a question mark.
    let content_type = call.headers.get(CONTENT_TYPE);
    let parts = [
        call.id.as_str().as_bytes(),
        call.method.as_str().as_bytes(),
        call.target.as_bytes(),
        if content_type.is_some() { b"typed" } else { b"" },
        content_type.map_or(&b""[..], http::HeaderValue::as_bytes),
        body,
    ];
    fingerprint(vault, "guarded request", &parts)
}

/// What a caller's key is known by.
pub(crate) fn of_key(vault: &Vault, call: &Call<'_>, key: &Key) -> String {
    let parts = [call.id.as_str().as_bytes(), key.as_bytes()];
    format!("key:{}", fingerprint(vault, "idempotency key", &parts))
}

/// Length-prefixed: no two lists of parts read alike.
fn fingerprint(vault: &Vault, purpose: &str, parts: &[&[u8]]) -> String {
    let mut message = Vec::with_capacity(parts.iter().map(|part| 8 + part.len()).sum());
    for part in parts {
        message.extend_from_slice(&(part.len() as u64).to_be_bytes());
        message.extend_from_slice(part);
    }
    let mut hex = String::with_capacity(64);
    for byte in vault.sign(purpose, &message) {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}
