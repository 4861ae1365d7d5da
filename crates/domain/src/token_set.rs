//! A token set: what one answer of the token endpoint issued, with its ends.

use crate::refresh_policy::Ends;
use crate::secret::{AccessToken, RefreshToken};
use crate::time::Timestamp;

/// Access token, refresh token, expiry and scopes, as last issued (RFC 6749 §5.1). A static connection has one too,
/// without a refresh token and with ends that never come.
#[derive(Debug, Clone)]
pub struct TokenSet {
    /// The access token.
    pub access_token: AccessToken,
    /// The refresh token; `None` where the provider issued none.
    pub refresh_token: Option<RefreshToken>,
    /// As the provider wrote it, usually `bearer`.
    pub token_type: String,
    /// What was granted.
    pub scopes: Vec<String>,
    /// When the request that brought it was sent.
    pub issued_at: Timestamp,
    /// When it is due.
    pub ends: Ends,
    /// Whether it was stored after more than one attempt on its version, or over a lost outcome: nobody can be sure that
    /// its refresh token is the newest. A refusal of such a set reads as a lost outcome, not as a revoked grant.
    pub unproven: bool,
}

impl TokenSet {
    /// What `now` asks of this set.
    pub fn due(&self, now: Timestamp) -> Due {
        if now < self.ends.soft {
            Due::Fresh
        } else if now < self.ends.hard {
            Due::Soft
        } else {
            Due::Hard
        }
    }
}

/// What the clock says about a token set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// It serves.
    Fresh,
    /// It serves, and a refresh runs behind it.
    Soft,
    /// It does not serve any more.
    Hard,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::refresh_policy::{Jitter, RefreshPolicy};

    #[test]
    fn a_token_set_is_due_to_the_millisecond() {
        let start = Timestamp::from_millis(0);
        let ends = RefreshPolicy::Queue.ends(start, Duration::from_secs(1800), Jitter::NONE);
        let set = TokenSet {
            access_token: AccessToken::new("a"),
            refresh_token: None,
            token_type: "bearer".into(),
            scopes: vec![],
            issued_at: start,
            ends,
            unproven: false,
        };
        for (millis, due) in [
            (0, Due::Fresh),
            (1_499_999, Due::Fresh),
            (1_500_000, Due::Soft),
            (1_794_999, Due::Soft),
            (1_795_000, Due::Hard),
        ] {
            assert_eq!(set.due(Timestamp::from_millis(millis)), due, "at {millis} ms");
        }
    }
}
