//! A connection: one install of an app in one account, and its life here.

use std::time::Duration;

use crate::id::{AccountId, AppName, ConnectionId, Customer, Version};
use crate::redemption::Intent;
use crate::refresh_policy::Ends;
use crate::time::Timestamp;

/// One install of an app in one account, for one customer. Holds no token: see [`crate::TokenSet`].
#[derive(Debug, Clone)]
pub struct Connection {
    /// Its stable id.
    pub id: ConnectionId,
    /// The app it belongs to.
    pub app: AppName,
    /// The caller's own reference.
    pub customer: Customer,
    /// Whether there is anything to refresh.
    pub kind: Kind,
    /// The provider's account. `None` only until an imported record has been pinned.
    pub account: Option<Account>,
    /// Where it stands.
    pub status: ConnectionStatus,
    /// Grows with every change of who holds what.
    pub version: Version,
    /// What was granted.
    pub scopes: Vec<String>,
    /// As the provider wrote it.
    pub token_type: String,
    /// When the stored token set was issued.
    pub issued_at: Timestamp,
    /// When the stored token set is due.
    pub ends: Ends,
    /// See [`crate::TokenSet::unproven`].
    pub unproven: bool,
    /// The caller's own labels.
    pub labels: Vec<(String, String)>,
    /// When the record was made.
    pub created_at: Timestamp,
    /// When a customer last gave consent.
    pub connected_at: Timestamp,
    /// When anything about the record last changed.
    pub updated_at: Timestamp,
    /// What happened last, and when.
    pub last: LastSeen,
    /// Trouble with refreshing that may pass; shared by all processes.
    pub trouble: Option<RefreshTrouble>,
    /// The open attempt to redeem this version's refresh token, if any.
    pub intent: Option<Intent>,
    /// Until when the lease on redeeming runs, by wall time and for showing only: the store judges leases by its own clock.
    pub refresh_in_progress_until: Option<Timestamp>,
}

/// The provider's account; for HubSpot the portal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// For HubSpot `hub_id`.
    pub id: AccountId,
    /// For HubSpot `hub_domain`.
    pub domain: Option<String>,
    /// Who installed the app.
    pub user: Option<String>,
}

/// Whether there is anything to refresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Tokens come from OAuth and are refreshed.
    OAuth,
    /// A private-app token or service key: nothing to refresh.
    Static,
}

impl Kind {
    /// The word in the store, the API and the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OAuth => "oauth",
            Self::Static => "static",
        }
    }

    /// Reads that word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::OAuth, Self::Static]
            .into_iter()
            .find(|kind| kind.as_str() == word)
    }
}

/// Where a connection stands. Each state carries only what is valid in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectionStatus {
    /// The grant is alive as far as anyone knows.
    Active,
    /// The customer must install the app again.
    ReconnectRequired {
        /// Why.
        reason: ReconnectReason,
        /// Since when.
        since: Timestamp,
    },
    /// Disconnected by its owner; tokens are erased.
    Disconnected {
        /// Since when.
        since: Timestamp,
        /// The connection that took its account over, if that is why.
        superseded_by: Option<ConnectionId>,
    },
}

impl ConnectionStatus {
    /// The word in the store, the API and the command line.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::ReconnectRequired { .. } => "reconnect_required",
            Self::Disconnected { .. } => "disconnected",
        }
    }

    /// The status once a token set of the stored version has landed.
    ///
    /// New tokens prove that the grant is alive, whatever was believed before, with two exceptions: the customer's word is
    /// final, and a set that belongs to another account never serves.
    pub fn after_token_set_landed(&self) -> Landing {
        match self {
            Self::Active => Landing::Active,
            Self::ReconnectRequired { reason, .. } => match reason {
                ReconnectReason::GrantRefused | ReconnectReason::RedemptionOutcomeLost => {
                    Landing::ActiveUnproven
                }
                ReconnectReason::WrongClient
                | ReconnectReason::AccountMismatch
                | ReconnectReason::NoRefreshToken
                | ReconnectReason::Uninstalled => Landing::StaysAsItIs,
            },
            Self::Disconnected { .. } => Landing::Refused,
        }
    }
}

/// What a token set does to the status it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landing {
    /// Stored; the connection is active.
    Active,
    /// Stored; active again, but marked unproven.
    ActiveUnproven,
    /// Stored; the status does not change.
    StaysAsItIs,
    /// Not stored.
    Refused,
}

/// Why a customer must install the app again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReconnectReason {
    /// The provider refused the refresh token (`invalid_grant`, `BAD_REFRESH_TOKEN`, `BAD_HUB`).
    GrantRefused,
    /// A redemption's answer was lost, and with it, perhaps, the only valid refresh token.
    RedemptionOutcomeLost,
    /// The refresh token belongs to another client id.
    WrongClient,
    /// The provider answered for another account than the pinned one.
    AccountMismatch,
    /// There is no refresh token to redeem.
    NoRefreshToken,
    /// The app was uninstalled in the account.
    Uninstalled,
}

impl ReconnectReason {
    /// Every reason, in the order of the story.
    pub const ALL: [Self; 6] = [
        Self::GrantRefused,
        Self::RedemptionOutcomeLost,
        Self::WrongClient,
        Self::AccountMismatch,
        Self::NoRefreshToken,
        Self::Uninstalled,
    ];

    /// The word in the store, the API and the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GrantRefused => "grant_refused",
            Self::RedemptionOutcomeLost => "redemption_outcome_lost",
            Self::WrongClient => "wrong_client",
            Self::AccountMismatch => "account_mismatch",
            Self::NoRefreshToken => "no_refresh_token",
            Self::Uninstalled => "uninstalled",
        }
    }

    /// Reads that word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == word)
    }

    /// What it means, for a person: what is known, and what is no more than likely as such.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::GrantRefused => {
                "the provider refused the refresh token and does not say why: most likely the app was uninstalled, the grant revoked or the account deleted"
            }
            Self::RedemptionOutcomeLost => {
                "an answer of the token endpoint was lost, and most likely the refresh token that replaced this one with it"
            }
            Self::WrongClient => "the refresh token belongs to another client id than this app's",
            Self::AccountMismatch => {
                "the provider answered for another account than the one that was connected"
            }
            Self::NoRefreshToken => "the provider issued no refresh token and the access token has ended",
            Self::Uninstalled => "the app was uninstalled in the account",
        }
    }
}

/// What a record from elsewhere is to the connection that it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgainstRecord {
    /// The stored token set ends before the record's: the record replaces it.
    Older,
    /// It does not, or the record names no end: nobody can say that the record is the newer one.
    NotOlder,
    /// Its refresh token is being redeemed, or nobody knows yet how that ended: what comes of it may be newer than both.
    UnderWay,
    /// Its owner ended it, or it was given another account's tokens: no record brings it back.
    Closed,
}

impl Connection {
    /// What a record that was exported elsewhere may do to this connection. `ends_at` is when the record's access token ends, where
    /// the record says so and is believed.
    pub fn against_record(&self, ends_at: Option<Timestamp>) -> AgainstRecord {
        /// Stored lifetimes are whole seconds: the same record twice is no newer one.
        const WHOLE: Duration = Duration::from_secs(1);
        match self.status {
            ConnectionStatus::Disconnected { .. }
            | ConnectionStatus::ReconnectRequired {
                reason: ReconnectReason::AccountMismatch,
                ..
            } => AgainstRecord::Closed,
            ConnectionStatus::Active | ConnectionStatus::ReconnectRequired { .. } => match ends_at {
                Some(ends_at) if ends_at.since(self.ends.expires) >= WHOLE => {
                    // A verdict settles an intent; an open one is still to be heard of.
                    if self.status == ConnectionStatus::Active && self.intent.is_some() {
                        AgainstRecord::UnderWay
                    } else {
                        AgainstRecord::Older
                    }
                }
                Some(_) | None => AgainstRecord::NotOlder,
            },
        }
    }
}

/// What happened last, and when.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LastSeen {
    /// A call left through the gateway, or a token was handed out.
    pub call_at: Option<Timestamp>,
    /// A call came back with 2xx.
    pub success_at: Option<Timestamp>,
    /// A token set was stored by a refresh.
    pub refresh_at: Option<Timestamp>,
    /// A call came back 401.
    pub unauthorized_at: Option<Timestamp>,
    /// A call came back 403.
    pub forbidden_at: Option<Timestamp>,
    /// A call came back 429.
    pub rate_limited_at: Option<Timestamp>,
}

impl LastSeen {
    /// Whether a call came back 401 and nothing since says that its token is taken again.
    fn was_rejected(&self) -> bool {
        self.unauthorized_at.is_some_and(|at| {
            self.success_at.is_none_or(|success| success < at)
                && self.refresh_at.is_none_or(|refresh| refresh < at)
        })
    }
}

/// Refreshing fails for a reason that may pass. Stores what happened; when to try next was decided with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefreshTrouble {
    /// When the last attempt failed.
    pub failed_at: Timestamp,
    /// What failed, one word: a code of the provider or a class of ours.
    pub code: String,
    /// How often in a row.
    pub failures: u32,
    /// No attempt before this.
    pub next_attempt_at: Timestamp,
}

/// How a connection does. Derived, never stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// In use and fine.
    Healthy,
    /// Refreshing fails, though the token still serves, or may again; or the last call came back 401.
    Degraded,
    /// The customer must install the app again.
    ReconnectRequired,
    /// A redemption is past its deadline and nobody knows how it ended.
    Ambiguous,
    /// Never used since it was connected: grey, not green.
    Unverified,
}

impl Health {
    /// Every one, from well to ill, and what nobody knows.
    pub const ALL: [Self; 5] = [
        Self::Healthy,
        Self::Degraded,
        Self::ReconnectRequired,
        Self::Ambiguous,
        Self::Unverified,
    ];

    /// Reads its word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|health| health.as_str() == word)
    }

    /// The word in the API and the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::ReconnectRequired => "reconnect_required",
            Self::Ambiguous => "ambiguous",
            Self::Unverified => "unverified",
        }
    }
}

impl Connection {
    /// How it does at `now`; `None` for a connection that its owner disconnected, which can be neither well nor ill.
    ///
    /// `quiet_time` is how long after an attempt's beginning its answer may still arrive.
    pub fn health(&self, now: Timestamp, quiet_time: Duration) -> Option<Health> {
        match &self.status {
            ConnectionStatus::Disconnected { .. } => None,
            ConnectionStatus::ReconnectRequired { .. } => Some(Health::ReconnectRequired),
            ConnectionStatus::Active => {
                let lost = self
                    .intent
                    .as_ref()
                    .is_some_and(|i| i.attempts > 0 && now > i.first_at.after(quiet_time));
                Some(if lost {
                    Health::Ambiguous
                } else if self.trouble.is_some() || self.last.was_rejected() {
                    Health::Degraded
                } else if self.last.success_at.is_none_or(|at| at < self.connected_at) {
                    Health::Unverified
                } else {
                    Health::Healthy
                })
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::refresh_policy::{Jitter, RefreshPolicy};

    pub(crate) fn connection() -> Connection {
        let at = Timestamp::from_millis(0);
        Connection {
            id: ConnectionId::parse("c1").expect("a literal id"),
            app: AppName::parse("crm").expect("a literal name"),
            customer: Customer::parse("acme").expect("a literal customer"),
            kind: Kind::OAuth,
            account: None,
            status: ConnectionStatus::Active,
            version: Version::FIRST,
            scopes: vec![],
            token_type: "bearer".into(),
            issued_at: at,
            ends: RefreshPolicy::Queue.ends(at, Duration::from_secs(1800), Jitter::NONE),
            unproven: false,
            labels: vec![],
            created_at: at,
            connected_at: at,
            updated_at: at,
            last: LastSeen::default(),
            trouble: None,
            intent: None,
            refresh_in_progress_until: None,
        }
    }

    fn check(change: impl FnOnce(&mut Connection), health: Option<Health>) {
        let mut subject = connection();
        change(&mut subject);
        let now = Timestamp::from_millis(600_000);
        assert_eq!(
            subject.health(now, Duration::from_secs(30)),
            health,
            "{subject:?}"
        );
    }

    #[test]
    fn health_is_derived_from_what_happened() {
        let at = Timestamp::from_millis(1);
        let intent = |first_at| Intent {
            version: Version::FIRST,
            first_at,
            last_at: first_at,
            attempts: 1,
        };
        let trouble = || {
            Some(RefreshTrouble {
                failed_at: at,
                code: "503".into(),
                failures: 1,
                next_attempt_at: at,
            })
        };
        check(|_| {}, Some(Health::Unverified));
        check(|c| c.last.success_at = Some(at), Some(Health::Healthy));
        check(|c| c.trouble = trouble(), Some(Health::Degraded));
        let later = Timestamp::from_millis(2);
        check(|c| c.last.unauthorized_at = Some(at), Some(Health::Degraded));
        check(
            |c| {
                c.last.success_at = Some(at);
                c.last.unauthorized_at = Some(later);
            },
            Some(Health::Degraded),
        );
        check(
            |c| {
                c.last.unauthorized_at = Some(at);
                c.last.success_at = Some(later);
            },
            Some(Health::Healthy),
        );
        check(|c| c.intent = Some(intent(at)), Some(Health::Ambiguous));
        check(
            |c| {
                c.intent = Some(intent(Timestamp::from_millis(590_000)));
                c.last.success_at = Some(at);
            },
            Some(Health::Healthy),
        );
        check(
            |c| {
                c.status = ConnectionStatus::ReconnectRequired {
                    reason: ReconnectReason::GrantRefused,
                    since: at,
                }
            },
            Some(Health::ReconnectRequired),
        );
        check(
            |c| {
                c.status = ConnectionStatus::Disconnected {
                    since: at,
                    superseded_by: None,
                }
            },
            None,
        );
    }

    #[test]
    fn a_success_before_the_last_consent_does_not_make_a_reconnected_one_healthy() {
        check(
            |c| {
                c.last.success_at = Some(Timestamp::from_millis(1));
                c.connected_at = Timestamp::from_millis(2);
            },
            Some(Health::Unverified),
        );
    }

    #[test]
    fn a_late_token_set_revives_a_condemned_connection_but_never_a_disconnected_or_foreign_one() {
        let since = Timestamp::from_millis(0);
        assert_eq!(ConnectionStatus::Active.after_token_set_landed(), Landing::Active);
        for reason in ReconnectReason::ALL {
            let expected = match reason {
                ReconnectReason::GrantRefused | ReconnectReason::RedemptionOutcomeLost => {
                    Landing::ActiveUnproven
                }
                _ => Landing::StaysAsItIs,
            };
            let status = ConnectionStatus::ReconnectRequired { reason, since };
            assert_eq!(status.after_token_set_landed(), expected, "{reason:?}");
            assert_eq!(ReconnectReason::from_word(reason.as_str()), Some(reason));
        }
        let gone = ConnectionStatus::Disconnected {
            since,
            superseded_by: None,
        };
        assert_eq!(gone.after_token_set_landed(), Landing::Refused);
    }

    #[test]
    fn what_nobody_can_know_of_a_grant_that_is_gone_is_said_to_be_likely() {
        for reason in ReconnectReason::ALL {
            let is_a_guess = matches!(
                reason,
                ReconnectReason::GrantRefused | ReconnectReason::RedemptionOutcomeLost
            );
            assert_eq!(
                reason.meaning().contains("most likely"),
                is_a_guess,
                "{}",
                reason.meaning()
            );
        }
    }

    #[test]
    fn a_record_replaces_what_ends_before_it_and_nothing_that_may_be_newer() {
        let mut connection = connection();
        let ends = connection.ends.expires;
        let after = |seconds| Some(ends.after(Duration::from_millis(seconds)));
        let intent = Intent {
            version: connection.version,
            first_at: ends,
            attempts: 1,
            last_at: ends,
        };
        let check = |connection: &Connection, ends_at, expected| {
            assert_eq!(connection.against_record(ends_at), expected, "{ends_at:?}");
        };
        check(&connection, after(1000), AgainstRecord::Older);
        check(&connection, after(999), AgainstRecord::NotOlder);
        check(
            &connection,
            Some(ends.before(Duration::from_secs(9))),
            AgainstRecord::NotOlder,
        );
        check(&connection, None, AgainstRecord::NotOlder);
        connection.intent = Some(intent);
        check(&connection, after(1000), AgainstRecord::UnderWay);
        check(&connection, after(0), AgainstRecord::NotOlder);
        for reason in ReconnectReason::ALL {
            let since = ends;
            connection.status = ConnectionStatus::ReconnectRequired { reason, since };
            let expected = if reason == ReconnectReason::AccountMismatch {
                AgainstRecord::Closed
            } else {
                AgainstRecord::Older
            };
            check(&connection, after(1000), expected);
        }
        connection.status = ConnectionStatus::Disconnected {
            since: ends,
            superseded_by: None,
        };
        check(&connection, after(1000), AgainstRecord::Closed);
    }
}
