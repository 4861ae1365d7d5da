//! What is true at the provider: which grants live, which refresh tokens redeem them, what was issued.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::scenario::Kind;

/// Every token's text begins with this, so that one that shows where it must not is found.
pub(crate) const CANARY: &str = "canary-";

/// Why a grant is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The customer uninstalled the app.
    Customer,
    /// A dead refresh token was presented: the family was revoked (RFC 9700 §4.14.2).
    Replay,
    /// The app revoked it (RFC 7009).
    Revoked,
}

/// A customer's consent.
#[derive(Debug, Clone)]
pub(crate) struct Grant {
    /// For which of the simulated connections.
    pub(crate) connection: usize,
    pub(crate) ended: Option<(Duration, End)>,
    issued: u64,
}

/// What is known about a refresh token.
#[derive(Debug, Clone)]
pub(crate) struct Refresh {
    pub(crate) grant: usize,
    /// When it was first accepted.
    pub(crate) accepted_at: Option<Duration>,
    /// How often it was presented after it was dead.
    pub(crate) replays: u32,
    /// How often a person asked for it to be presented once more.
    pub(crate) tries_of_persons: u32,
    /// Whether it was revoked.
    revoked: bool,
}

/// What was issued.
#[derive(Debug, Clone)]
pub(crate) struct Issue {
    pub(crate) refresh_token: String,
    pub(crate) access_token: String,
}

/// What a presentation comes to.
#[derive(Debug, Clone)]
pub(crate) enum Presented {
    Accepted(Issue),
    Refused,
}

/// The provider's own books.
#[derive(Debug)]
pub(crate) struct Grants {
    kind: Kind,
    family: bool,
    lifetime: Duration,
    pub(crate) all: Vec<Grant>,
    pub(crate) refresh: BTreeMap<String, Refresh>,
    /// Whose, and when it ends.
    pub(crate) access: BTreeMap<String, (usize, Duration)>,
}

impl Grants {
    pub(crate) fn new(kind: Kind, family: bool, lifetime: Duration) -> Self {
        Self {
            kind,
            family,
            lifetime,
            all: Vec::new(),
            refresh: BTreeMap::new(),
            access: BTreeMap::new(),
        }
    }

    /// A customer consents.
    pub(crate) fn consent(&mut self, connection: usize, now: Duration) -> Issue {
        self.all.push(Grant {
            connection,
            ended: None,
            issued: 0,
        });
        let grant = self.all.len() - 1;
        let refresh_token = self.new_refresh_token(grant);
        self.issue(grant, refresh_token, now)
    }

    /// A refresh token is presented.
    pub(crate) fn present(&mut self, token: &str, now: Duration) -> Presented {
        let Some(known) = self.refresh.get(token).cloned() else {
            return Presented::Refused;
        };
        if !self.redeems(token, now) {
            // Only what was spent tells of a theft.
            if known.accepted_at.is_some() && self.family {
                self.end(known.grant, End::Replay, now);
            }
            return Presented::Refused;
        }
        if let Some(refresh) = self.refresh.get_mut(token) {
            refresh.accepted_at.get_or_insert(now);
        }
        let next = match self.kind {
            Kind::Never => token.to_owned(),
            Kind::Grace(_) | Kind::SingleUse => self.new_refresh_token(known.grant),
        };
        Presented::Accepted(self.issue(known.grant, next, now))
    }

    /// Whether the provider would accept it now.
    pub(crate) fn redeems(&self, token: &str, now: Duration) -> bool {
        let Some(refresh) = self.refresh.get(token) else {
            return false;
        };
        let alive = self.all[refresh.grant].ended.is_none() && !refresh.revoked;
        alive
            && match (self.kind, refresh.accepted_at) {
                (Kind::Never, _) | (_, None) => true,
                (Kind::Grace(window), Some(at)) => now < at + window,
                (Kind::SingleUse, Some(_)) => false,
            }
    }

    /// Whether the provider would accept this access token now.
    pub(crate) fn serves(&self, token: &str, now: Duration) -> bool {
        self.access
            .get(token)
            .is_some_and(|(grant, ends)| now < *ends && self.all[*grant].ended.is_none())
    }

    /// Whether the app itself had this very token revoked.
    pub(crate) fn was_revoked(&self, token: &str) -> bool {
        self.refresh.get(token).is_some_and(|refresh| refresh.revoked)
    }

    /// RFC 7009. Where spent tokens are watched, one token stands for the whole family; else for itself alone.
    pub(crate) fn revoke(&mut self, token: &str, now: Duration) {
        let Some(refresh) = self.refresh.get_mut(token) else {
            return;
        };
        refresh.revoked = true;
        let grant = refresh.grant;
        if self.family || self.kind == Kind::Never {
            self.end(grant, End::Revoked, now);
        }
    }

    pub(crate) fn end(&mut self, grant: usize, why: End, now: Duration) {
        self.all[grant].ended.get_or_insert((now, why));
    }

    /// The grant that a refresh token redeems.
    pub(crate) fn grant_of(&self, refresh_token: &str) -> Option<usize> {
        self.refresh.get(refresh_token).map(|refresh| refresh.grant)
    }

    fn new_refresh_token(&mut self, grant: usize) -> String {
        self.all[grant].issued += 1;
        let token = format!("{CANARY}refresh-{grant}-{}", self.all[grant].issued);
        let refresh = Refresh {
            grant,
            accepted_at: None,
            replays: 0,
            tries_of_persons: 0,
            revoked: false,
        };
        self.refresh.insert(token.clone(), refresh);
        token
    }

    fn issue(&mut self, grant: usize, refresh_token: String, now: Duration) -> Issue {
        let access_token = format!("{CANARY}access-{grant}-{}", self.access.len());
        self.access
            .insert(access_token.clone(), (grant, now + self.lifetime));
        Issue {
            refresh_token,
            access_token,
        }
    }
}
