//! Tokens at rest, and everything else that is made from the one vault key.
//!
//! A sealed value opens only with the same key and only in its place: table, record, field and version are part of what
//! is authenticated, so a value that was moved, or put back from an older backup of its row, is refused. The key itself
//! never seals: keys for sealing, fingerprints and signatures are derived from it (HKDF, RFC 5869).

#![expect(
    clippy::missing_panics_doc,
    reason = "every `expect` here states an invariant that no caller can break"
)]

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::{hkdf, hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use evergrant_domain::RefreshToken;
use zeroize::{Zeroize, Zeroizing};

/// The length of the vault key, in bytes.
const KEY_LEN: usize = 32;
/// `AES_256_GCM_SIV` (RFC 8452): a nonce that repeats, after a snapshot of a machine say, costs nothing but the knowledge
/// that two equal values are equal. The number leaves room for another algorithm beside it.
const ALGORITHM: u8 = 1;
const KEY_ID_LEN: usize = 8;
const HEADER_LEN: usize = 1 + KEY_ID_LEN + NONCE_LEN;
const TAG_LEN: usize = 16;

/// Why a text is no vault key. Never shows the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    /// Not base64.
    #[error("the vault key is not base64 (RFC 4648, with padding); make one with `openssl rand -base64 32`")]
    NotBase64,
    /// Not 32 bytes.
    #[error("the vault key has {bytes} bytes, it needs 32; make one with `openssl rand -base64 32`")]
    WrongLength {
        /// How many it has.
        bytes: usize,
    },
    /// A placeholder.
    #[error("the vault key is all zeros, which everybody knows; make one with `openssl rand -base64 32`")]
    AllZero,
}

/// The one key that everything else is derived from: 32 random bytes. Wiped from memory when dropped.
#[derive(Clone)]
pub struct VaultKey(Zeroizing<[u8; KEY_LEN]>);

impl VaultKey {
    /// A new key from the system's generator.
    pub fn generate() -> Self {
        let mut key = Zeroizing::new([0; KEY_LEN]);
        fill(key.as_mut());
        Self(key)
    }

    /// Reads a key as configured: 32 bytes in base64.
    pub fn from_base64(text: &str) -> Result<Self, VaultError> {
        let bytes = Zeroizing::new(STANDARD.decode(text).map_err(|_| VaultError::NotBase64)?);
        let mut key = Zeroizing::new([0; KEY_LEN]);
        if bytes.len() != KEY_LEN {
            return Err(VaultError::WrongLength { bytes: bytes.len() });
        }
        key.copy_from_slice(&bytes);
        if key.iter().all(|byte| *byte == 0) {
            return Err(VaultError::AllZero);
        }
        Ok(Self(key))
    }

    /// The key as it is configured.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0.as_slice()))
    }
}

impl fmt::Debug for VaultKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VaultKey(..)")
    }
}

/// Where a sealed value lives. It opens nowhere else.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The table.
    pub table: &'a str,
    /// The record in it.
    pub record: &'a str,
    /// The field of the record.
    pub field: &'static str,
    /// The record's version, so that an older value of the same field is refused; zero where records have none.
    pub version: i64,
}

/// A value that does not open: changed, moved, or sealed with another key. Says no more, on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sealed value does not open with the vault key")]
pub struct DoesNotOpen;

/// Seals and opens values, and makes fingerprints and signatures.
pub struct Vault {
    key_id: [u8; KEY_ID_LEN],
    sealing: RandomizedNonceKey,
    fingerprints: hmac::Key,
    signing: hmac::Key,
}

impl Vault {
    /// A vault over this key.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "whoever makes the vault gives the key away; it is wiped here"
    )]
    pub fn new(key: VaultKey) -> Self {
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, b"evergrant vault").extract(key.0.as_slice());
        let mut key_id = [0; KEY_ID_LEN];
        key_id.copy_from_slice(&subkey(&root, "key id")[..KEY_ID_LEN]);
        Self {
            key_id,
            sealing: RandomizedNonceKey::new(&AES_256_GCM_SIV, subkey(&root, "sealing").as_slice())
                .expect("a key of 32 bytes fits AES-256-GCM-SIV"),
            fingerprints: hmac::Key::new(hmac::HMAC_SHA256, subkey(&root, "fingerprints").as_slice()),
            signing: hmac::Key::new(hmac::HMAC_SHA256, subkey(&root, "signing").as_slice()),
        }
    }

    /// Seals a secret for its place: algorithm, key id, nonce, ciphertext, tag.
    pub fn seal(&self, place: Place<'_>, secret: &str) -> Vec<u8> {
        self.seal_bytes(place, secret.as_bytes())
    }

    /// [`Vault::seal`], for what need not be text.
    pub fn seal_bytes(&self, place: Place<'_>, secret: &[u8]) -> Vec<u8> {
        // Room for the tag, so that the clear text is overwritten in place and never left behind by a growing vector.
        let mut text = Vec::with_capacity(secret.len() + TAG_LEN);
        text.extend_from_slice(secret);
        let nonce = self
            .sealing
            .seal_in_place_append_tag(Aad::from(self.bound_to(place)), &mut text)
            .expect("sealing fails only for values of many gigabytes");
        let mut sealed = Vec::with_capacity(HEADER_LEN + text.len());
        sealed.push(ALGORITHM);
        sealed.extend_from_slice(&self.key_id);
        sealed.extend_from_slice(nonce.as_ref());
        sealed.extend_from_slice(&text);
        sealed
    }

    /// Opens what [`Vault::seal`] sealed for the same place.
    pub fn open(&self, place: Place<'_>, sealed: &[u8]) -> Result<Zeroizing<String>, DoesNotOpen> {
        let mut opened = self.open_bytes(place, sealed)?;
        String::from_utf8(std::mem::take(&mut *opened))
            .map(Zeroizing::new)
            .map_err(|error| {
                error.into_bytes().zeroize();
                DoesNotOpen
            })
    }

    /// [`Vault::open`], for what need not be text.
    pub fn open_bytes(&self, place: Place<'_>, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, DoesNotOpen> {
        let (header, text) = sealed.split_at_checked(HEADER_LEN).ok_or(DoesNotOpen)?;
        if header[0] != ALGORITHM || header[1..=KEY_ID_LEN] != self.key_id {
            return Err(DoesNotOpen);
        }
        let nonce = Nonce::try_assume_unique_for_key(&header[1 + KEY_ID_LEN..]).map_err(|_| DoesNotOpen)?;
        let mut buffer = Zeroizing::new(text.to_vec());
        let length = self
            .sealing
            .open_in_place(nonce, Aad::from(self.bound_to(place)), &mut buffer)
            .map_err(|_| DoesNotOpen)?
            .len();
        buffer.truncate(length);
        Ok(buffer)
    }

    /// A keyed fingerprint: equal for equal values of one scope, and worth nothing without the key.
    pub fn fingerprint(&self, scope: &str, value: &str) -> String {
        let parts = length_prefixed(&[scope.as_bytes(), value.as_bytes()]);
        URL_SAFE_NO_PAD.encode(hmac::sign(&self.fingerprints, &Zeroizing::new(parts)))
    }

    /// By this records and histories know a refresh token, and nobody the token by it.
    pub fn refresh_token_fingerprint(&self, token: &RefreshToken) -> String {
        self.fingerprint("refresh_token", token.expose())
    }

    /// Signs a message for one purpose.
    pub fn sign(&self, purpose: &str, message: &[u8]) -> [u8; 32] {
        let tag = hmac::sign(&self.signing, &length_prefixed(&[purpose.as_bytes(), message]));
        tag.as_ref().try_into().expect("HMAC-SHA256 has 32 bytes")
    }

    /// Whether [`Vault::sign`] made this signature for this purpose and message. Takes the same time either way.
    pub fn verify(&self, purpose: &str, message: &[u8], signature: &[u8]) -> bool {
        let signed = length_prefixed(&[purpose.as_bytes(), message]);
        hmac::verify(&self.signing, &signed, signature).is_ok()
    }

    /// What is authenticated beside the secret. Length-prefixed: no two places read alike.
    fn bound_to(&self, place: Place<'_>) -> Vec<u8> {
        length_prefixed(&[
            &[ALGORITHM],
            &self.key_id,
            place.table.as_bytes(),
            place.record.as_bytes(),
            place.field.as_bytes(),
            &place.version.to_be_bytes(),
        ])
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Vault(..)")
    }
}

/// A secret that nobody can guess: so many random bytes in base64url.
pub fn random_token(bytes: usize) -> String {
    let mut random = Zeroizing::new(vec![0; bytes]);
    fill(&mut random);
    URL_SAFE_NO_PAD.encode(random.as_slice())
}

fn fill(bytes: &mut [u8]) {
    rand::fill(bytes).expect("the system's random generator answers");
}

fn subkey(root: &hkdf::Prk, name: &str) -> Zeroizing<[u8; KEY_LEN]> {
    struct Length;
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            KEY_LEN
        }
    }
    let mut key = Zeroizing::new([0; KEY_LEN]);
    root.expand(&[name.as_bytes()], Length)
        .and_then(|okm| okm.fill(key.as_mut()))
        .expect("32 bytes are within HKDF's limits");
    key
}

fn length_prefixed(parts: &[&[u8]]) -> Vec<u8> {
    // One allocation: parts may be secret, and a growing vector leaves copies behind.
    let mut bytes = Vec::with_capacity(parts.iter().map(|part| 8 + part.len()).sum());
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLACE: Place<'static> = Place {
        table: "connections",
        record: "c1",
        field: "refresh_token",
        version: 7,
    };

    fn vault() -> Vault {
        Vault::new(VaultKey::generate())
    }

    proptest! {
        #[test]
        fn what_was_sealed_opens_in_its_place(secret in ".*", record in ".*", version: i64) {
            let vault = vault();
            let place = Place { record: &record, version, ..PLACE };
            let sealed = vault.seal(place, &secret);
            let opened = vault.open(place, &sealed).unwrap();
            prop_assert_eq!(opened.as_str(), secret.as_str());
            prop_assert_ne!(sealed, vault.seal(place, &secret), "each sealing has its own nonce");
        }

        #[test]
        fn bytes_that_were_sealed_open_as_they_were(secret: Vec<u8>) {
            let vault = vault();
            let opened = vault.open_bytes(PLACE, &vault.seal_bytes(PLACE, &secret)).unwrap();
            prop_assert_eq!(&*opened, &secret);
        }

        #[test]
        fn nothing_else_opens(bytes: Vec<u8>) {
            prop_assert!(vault().open(PLACE, &bytes).is_err());
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_in_a_sealed_value_is_refused() {
        let vault = vault();
        let sealed = vault.seal(PLACE, "a refresh token");
        for byte in 0..sealed.len() {
            for bit in 0..8 {
                let mut changed = sealed.clone();
                changed[byte] ^= 1 << bit;
                assert!(vault.open(PLACE, &changed).is_err(), "byte {byte}, bit {bit}");
            }
            assert!(vault.open(PLACE, &sealed[..byte]).is_err(), "cut at {byte}");
        }
    }

    #[test]
    fn a_sealed_value_opens_in_no_other_place_and_with_no_other_key() {
        let ours = vault();
        let sealed = ours.seal(PLACE, "a refresh token");
        for place in [
            Place {
                table: "revocations",
                ..PLACE
            },
            Place {
                record: "c2",
                ..PLACE
            },
            Place {
                field: "access_token",
                ..PLACE
            },
            Place { version: 6, ..PLACE },
            // The same letters, divided otherwise.
            Place {
                table: "connectionsc",
                record: "1",
                ..PLACE
            },
        ] {
            assert!(ours.open(place, &sealed).is_err(), "{place:?}");
        }
        assert!(vault().open(PLACE, &sealed).is_err());
    }

    #[test]
    fn a_key_is_exactly_32_bytes_in_base64_and_not_all_zero() {
        let key = VaultKey::generate();
        let text = key.to_base64();
        assert_eq!(VaultKey::from_base64(&text).unwrap().0, key.0);
        let check = |text: &str, expected: VaultError| {
            assert_eq!(VaultKey::from_base64(text).unwrap_err(), expected);
        };
        check("not base64!", VaultError::NotBase64);
        check("", VaultError::WrongLength { bytes: 0 });
        check(&STANDARD.encode([7; 31]), VaultError::WrongLength { bytes: 31 });
        check(&STANDARD.encode([7; 33]), VaultError::WrongLength { bytes: 33 });
        check(&STANDARD.encode([0; 32]), VaultError::AllZero);
    }

    #[test]
    fn neither_key_nor_vault_shows_anything() {
        let key = VaultKey::generate();
        assert_eq!(format!("{key:?}"), "VaultKey(..)");
        assert_eq!(format!("{:?}", Vault::new(key)), "Vault(..)");
    }

    #[test]
    fn fingerprints_depend_on_key_scope_and_value_and_show_nothing() {
        let key = VaultKey::generate();
        let vault = Vault::new(key.clone());
        let print = vault.fingerprint("refresh_token", "secret");
        assert_eq!(print, Vault::new(key).fingerprint("refresh_token", "secret"));
        assert_ne!(print, vault.fingerprint("refresh_token", "secret2"));
        assert_ne!(print, vault.fingerprint("refresh_tokens", "ecret"));
        assert_ne!(print, self::vault().fingerprint("refresh_token", "secret"));
    }

    #[test]
    fn a_signature_holds_for_its_purpose_message_and_key_only() {
        let vault = vault();
        let signature = vault.sign("link", b"message");
        assert!(vault.verify("link", b"message", &signature));
        assert!(!vault.verify("cookie", b"message", &signature));
        assert!(!vault.verify("link", b"massage", &signature));
        assert!(!vault.verify("link", b"message", &signature[..31]));
        assert!(!self::vault().verify("link", b"message", &signature));
    }

    #[test]
    fn random_tokens_are_as_long_as_asked_for_and_never_the_same() {
        assert_eq!(URL_SAFE_NO_PAD.decode(random_token(32)).unwrap().len(), 32);
        assert_ne!(random_token(16), random_token(16));
    }
}
