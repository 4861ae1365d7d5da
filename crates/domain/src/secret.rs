//! Secrets that cannot be printed, compared or serialized by accident.
//!
//! Searching for `expose` lists every place that sees one.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

macro_rules! secret {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $name(SecretString);

        impl $name {
            /// Wraps the bare value; it is wiped from memory when dropped.
            pub fn new(value: impl Into<String>) -> Self {
                Self(SecretString::from(value.into()))
            }

            /// The bare value.
            pub fn expose(&self) -> &str {
                self.0.expose_secret()
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }
    };
}

secret!(
    /// An access token (RFC 6749 §1.4).
    AccessToken
);
secret!(
    /// An access token among what is said with it each time that it is handed out.
    ShownToken
);
secret!(
    /// A refresh token (RFC 6749 §1.5).
    RefreshToken
);
secret!(
    /// A client secret (RFC 6749 §2.3.1). Apps may hold several while one replaces another.
    ClientSecret
);
secret!(
    /// An authorization code (RFC 6749 §1.3.1). Single use.
    AuthorizationCode
);
secret!(
    /// A code verifier (RFC 7636 §4.1).
    CodeVerifier
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_shows_in_debug_output() {
        let shown = format!(
            "{:?} {:?} {:?} {:?} {:?} {:?}",
            AccessToken::new("canary"),
            ShownToken::new("canary"),
            RefreshToken::new("canary"),
            ClientSecret::new("canary"),
            AuthorizationCode::new("canary"),
            CodeVerifier::new("canary"),
        );
        assert!(!shown.contains("canary"), "{shown}");
        assert!(shown.contains("RefreshToken(..)"));
    }
}
