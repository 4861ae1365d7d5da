//! Reconnect links: signed, expiring, made without touching the store.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use evergrant_domain::{ConnectionId, Timestamp};
use evergrant_store::Vault;
use serde::{Deserialize, Serialize};

/// How long a link lasts where nothing is said.
pub(crate) const LASTS: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long it may last at most.
pub(crate) const LASTS_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

const PURPOSE: &str = "reconnect";
/// Tells a link from a session's id, which has no dot in it.
const PREFIX: &str = "r.";

/// What a link says. Whoever holds it can restore this connection, to the account it is pinned to, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReconnectLink {
    /// Which connection.
    pub(crate) connection: ConnectionId,
    /// Until when.
    pub(crate) expires_at: Timestamp,
    /// Where the browser goes afterwards.
    pub(crate) return_url: Option<String>,
}

/// As it stands in the link.
#[derive(Serialize, Deserialize)]
struct Payload {
    c: String,
    /// Seconds since the epoch.
    e: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    u: Option<String>,
}

impl ReconnectLink {
    /// The last part of the link's path.
    pub(crate) fn sign(&self, vault: &Vault) -> String {
        let payload = Payload {
            c: self.connection.to_string(),
            e: self.expires_at.millis().div_euclid(1000),
            u: self.return_url.clone(),
        };
        let payload = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&payload).expect("a payload is plain data"));
        let signature = URL_SAFE_NO_PAD.encode(vault.sign(PURPOSE, payload.as_bytes()));
        format!("{PREFIX}{payload}.{signature}")
    }

    /// Reads a link that this installation signed. `None` for anything else; whether it has expired is not asked here.
    pub(crate) fn read(text: &str, vault: &Vault) -> Option<Self> {
        let (payload, signature) = text.strip_prefix(PREFIX)?.split_once('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        if !vault.verify(PURPOSE, payload.as_bytes(), &signature) {
            return None;
        }
        let payload: Payload = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        Some(Self {
            connection: ConnectionId::parse(&payload.c).ok()?,
            expires_at: Timestamp::from_millis(payload.e.checked_mul(1000)?),
            return_url: payload.u,
        })
    }

    /// Whether a text looks like a link rather than a session's id.
    pub(crate) fn is_one(text: &str) -> bool {
        text.starts_with(PREFIX)
    }
}

#[cfg(test)]
mod tests {
    use evergrant_store::VaultKey;

    use super::*;

    #[test]
    fn a_link_reads_as_it_was_signed_and_no_other_does() {
        let vault = Vault::new(VaultKey::generate());
        let link = ReconnectLink {
            connection: ConnectionId::parse("c1").expect("a literal id"),
            expires_at: Timestamp::from_millis(1_764_000_000_000),
            return_url: Some("https://app.example.com/done?a=b".to_owned()),
        };
        let text = link.sign(&vault);
        assert_eq!(ReconnectLink::read(&text, &vault), Some(link.clone()));
        assert_eq!(
            ReconnectLink::read(&text, &Vault::new(VaultKey::generate())),
            None
        );
        let other = ReconnectLink {
            connection: ConnectionId::parse("c2").expect("a literal id"),
            ..link
        };
        let other = other.sign(&vault);
        let (mine, theirs) = (
            text.rsplit_once('.').expect("a dot"),
            other.rsplit_once('.').expect("a dot"),
        );
        assert_eq!(
            ReconnectLink::read(&format!("{}.{}", theirs.0, mine.1), &vault),
            None
        );
        for broken in [
            "",
            "r.",
            "r..",
            "r.x.y",
            &text[1..],
            &text[..text.len() - 1],
            &format!("{text}.{text}"),
        ] {
            assert_eq!(ReconnectLink::read(broken, &vault), None, "{broken}");
        }
    }
}
