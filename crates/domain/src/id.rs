//! Names that must not be swapped for one another, each with its one parsing constructor.

use std::fmt;
use std::sync::Arc;

/// Why a text is not a valid id; the message says which rule it breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// Not `[A-Za-z0-9][A-Za-z0-9._~-]{0,127}`.
    #[error(
        "a connection id is 1 to 128 letters, digits, '.', '_', '~' or '-', and begins with a letter or digit"
    )]
    Connection,
    /// Not `[a-z][a-z0-9_]*`, at most 64 long.
    #[error("an app name is 1 to 64 lower-case letters, digits or '_', and begins with a letter")]
    App,
    /// Empty, over 255 bytes, or with control characters.
    #[error("a customer is 1 to 255 bytes of text without control characters")]
    Customer,
    /// Empty, over 255 bytes, or with control characters.
    #[error("an account id is 1 to 255 bytes of text without control characters")]
    Account,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $error:expr, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Accepts a text that keeps the rules of this name.
            ///
            /// # Errors
            ///
            /// [`InvalidId`], which says what the rules are.
            pub fn parse(text: &str) -> Result<Self, InvalidId> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) { Ok(Self(text.into())) } else { Err($error) }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::parse(text)
            }
        }
    };
}

name!(
    /// The stable id of a connection; the caller's own or made by Evergrant. Safe in a URL path as it is.
    ConnectionId,
    InvalidId::Connection,
    |text| {
        let mut bytes = text.bytes();
        text.len() <= 128
            && bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
            && bytes.all(|b| b.is_ascii_alphanumeric() || b"._~-".contains(&b))
    }
);

name!(
    /// The name of an app in the configuration.
    AppName,
    InvalidId::App,
    |text| {
        let mut bytes = text.bytes();
        text.len() <= 64
            && bytes.next().is_some_and(|b| b.is_ascii_lowercase())
            && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    }
);

name!(
    /// The caller's own reference for the customer a connection belongs to. Opaque.
    Customer,
    InvalidId::Customer,
    plain_text
);

name!(
    /// The provider's id of the account that was connected; for HubSpot the portal id (`hub_id`).
    AccountId,
    InvalidId::Account,
    plain_text
);

fn plain_text(text: &str) -> bool {
    !text.is_empty() && text.len() <= 255 && !text.chars().any(char::is_control)
}

/// Grows by one with every change of who holds what: token set stored, reconnect, disconnect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(i64);

impl Version {
    /// The version of a connection's first token set.
    pub const FIRST: Self = Self(1);

    /// A version as read from the store or from a caller.
    pub fn new(number: i64) -> Self {
        Self(number)
    }

    /// The bare number.
    pub fn number(self) -> i64 {
        self.0
    }

    /// The version after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a lease. Comes from the store and only grows, so an old holder is known by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(i64);

impl Fence {
    /// A fence as read from the store.
    pub fn new(number: i64) -> Self {
        Self(number)
    }

    /// The bare number.
    pub fn number(self) -> i64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_ids_keep_their_grammar() {
        let longest = format!("a{}", "b".repeat(127));
        for good in [
            "a",
            "0",
            "A-b.c_d~e",
            "0198c6e2-7a5b-7000-8000-000000000000",
            longest.as_str(),
        ] {
            assert!(ConnectionId::parse(good).is_ok(), "{good}");
        }
        let too_long = format!("{longest}x");
        for bad in [
            "", "-", ".", "..", "_a", "a/b", "a%2fb", "a b", "a\n", "ä", "а", "a@evil", "a;b", "a'or'1",
            &too_long,
        ] {
            assert_eq!(ConnectionId::parse(bad), Err(InvalidId::Connection), "{bad:?}");
        }
    }

    #[test]
    fn app_names_keep_their_grammar() {
        for good in ["crm", "a", "crm_2"] {
            assert!(AppName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "2crm", "CRM", "crm-eu", "_crm", "crm.eu"] {
            assert_eq!(AppName::parse(bad), Err(InvalidId::App), "{bad:?}");
        }
    }

    #[test]
    fn customers_are_opaque_text_without_control_characters() {
        for good in ["acme", "Müller & Söhne", "team:42/eu"] {
            assert!(Customer::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "a\nb", "a\u{0}", &"x".repeat(256)] {
            assert_eq!(Customer::parse(bad), Err(InvalidId::Customer), "{bad:?}");
        }
    }
}
