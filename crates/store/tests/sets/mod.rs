//! The token sets of tests that have no use for their ends.

use evergrant_domain::refresh_policy::Ends;
use evergrant_domain::{AccessToken, RefreshToken, Timestamp, TokenSet};

pub(crate) const NOW: Timestamp = Timestamp::from_millis(0);

pub(crate) fn tokens(name: &str) -> TokenSet {
    TokenSet {
        access_token: AccessToken::new(format!("canary-access-{name}")),
        refresh_token: Some(RefreshToken::new(format!("canary-refresh-{name}"))),
        token_type: "bearer".into(),
        scopes: vec![],
        issued_at: NOW,
        ends: Ends {
            soft: NOW,
            hard: NOW,
            expires: NOW,
        },
        unproven: false,
    }
}
