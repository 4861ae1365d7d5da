//! What receivers check: the signature of Standard Webhooks, and what a receiver is known by.
//!
//! Source: Standard Webhooks, specification 1.0, "Signature scheme".

use aws_lc_rs::{digest, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use evergrant_domain::webhook::WebhookSecret;
use url::Url;

/// The header `webhook-signature`: one signature for each secret, so that a receiver may check with any of them.
///
/// `seconds` is what `webhook-timestamp` says, since the Unix epoch.
pub fn signature(secrets: &[WebhookSecret], id: &str, seconds: i64, body: &str) -> String {
    let signed = format!("{id}.{seconds}.{body}");
    let one = |secret: &WebhookSecret| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose());
        format!("v1,{}", STANDARD.encode(hmac::sign(&key, signed.as_bytes())))
    };
    secrets.iter().map(one).collect::<Vec<_>>().join(" ")
}

/// What the deliveries to this address are known by. The address itself may hold a secret.
pub(crate) fn fingerprint(url: &Url) -> String {
    use std::fmt::Write as _;
    let hash = digest::digest(&digest::SHA256, url.as_str().as_bytes());
    hash.as_ref()[..12].iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> WebhookSecret {
        WebhookSecret::parse(text).expect("a sound secret")
    }

    #[test]
    fn the_specifications_own_example_is_signed_alike() {
        // Standard Webhooks, the example of its specification and the vector of its libraries' tests.
        let signed = signature(
            &[secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")],
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            "{\"test\": 2432232314}",
        );
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn each_secret_signs_and_every_part_counts() {
        let (new, old) = (
            secret("012345678901234567890123"),
            secret("abcdefghijabcdefghijabcd"),
        );
        let both = signature(&[new.clone(), old.clone()], "msg_1", 1, "{}");
        let alone = |secret: &WebhookSecret| signature(std::slice::from_ref(secret), "msg_1", 1, "{}");
        assert_eq!(both, format!("{} {}", alone(&new), alone(&old)));
        for other in [
            signature(std::slice::from_ref(&new), "msg_2", 1, "{}"),
            signature(std::slice::from_ref(&new), "msg_1", 2, "{}"),
            signature(std::slice::from_ref(&new), "msg_1", 1, "{ }"),
        ] {
            assert_ne!(other, alone(&new));
        }
    }

    #[test]
    fn a_receiver_is_known_by_its_whole_address_which_the_fingerprint_does_not_show() {
        let url = |text: &str| Url::parse(text).expect("a literal URL");
        let known = fingerprint(&url("https://hooks.example.com/?key=canary"));
        assert!(!known.contains("canary") && known.len() == 24);
        assert_ne!(known, fingerprint(&url("https://hooks.example.com/?key=other")));
    }
}
