//! What is wrong with a connection: the causes in their order, and which of them the evidence names.
//!
//! [`diagnose`] walks every [`Cause`] and says of each, in one sentence with numbers and times, whether it is clear, found, or
//! could not be looked at. The verdict is the first one found, with one exception: what weighs more goes first. Where something stops
//! every call, what merely hurts does not explain it; and what hurts now is not explained by what came hours ago. Whoever gathers the
//! evidence does so elsewhere; here nothing is asked, awaited or guessed.
//!
//! What is said is plain text that reads alike in a terminal, on a page and in JSON: no markup, and times as people say them.
//!
//! Start reading at [`diagnose`]; what is known comes in as [`Evidence`].

mod calling;
mod evidence;
mod grant;
mod outside;
#[cfg(test)]
mod tests;
mod words;

use std::fmt::Write as _;
use std::time::Duration;

use crate::connection::{ConnectionStatus, Kind};
use crate::event::EventKind;
use crate::time::Timestamp;
pub use evidence::{
    AppStanding, BUCKETS, Calls, Evidence, Gap, Happened, Hour, Known, LOOKS_BACK, Offset, Relative,
    TokenLife,
};
pub use words::times;

/// Why a connection does not do what it should. The order is that of the walk: what callers and processes do wrong among
/// themselves first, because it looks like everything that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// A caller goes on using an access token that was replaced or has ended.
    StaleTokenReuse,
    /// The token set belongs to another account than the one that was connected.
    WrongAccount,
    /// Somebody else wrote the record, or holds the same grant and redeems it.
    RacedWrite,
    /// A clock is off by more than the refresh buffer forgives.
    ClockSkew,
    /// Jobs wait for longer than a token is sure to live.
    QueueDelay,
    /// The refresh token is redeemed far more often than its lifetime asks for.
    RefreshStampede,
    /// A 403 is taken for an ended token.
    MisreadPermission,
    /// A 429 is taken for an ended token.
    MisreadRateLimit,
    /// The customer's grant is gone.
    GrantRefused,
    /// The provider refuses the app itself.
    AppCredentials,
    /// The grant lacks a scope that calls need.
    MissingScopes,
    /// The provider limits the rate of calls.
    RateLimited,
    /// The provider does not answer, or answers with its own trouble.
    ProviderOutage,
    /// Our own store does not answer, or has lost something.
    StoreTrouble,
    /// All is well, and calls that used to come have stopped coming.
    NoTraffic,
}

impl Cause {
    /// Every cause, in the order of the walk.
    pub const ALL: [Self; 15] = [
        Self::StaleTokenReuse,
        Self::WrongAccount,
        Self::RacedWrite,
        Self::ClockSkew,
        Self::QueueDelay,
        Self::RefreshStampede,
        Self::MisreadPermission,
        Self::MisreadRateLimit,
        Self::GrantRefused,
        Self::AppCredentials,
        Self::MissingScopes,
        Self::RateLimited,
        Self::ProviderOutage,
        Self::StoreTrouble,
        Self::NoTraffic,
    ];

    /// The word in the API, the command line and the names of the runbooks.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StaleTokenReuse => "stale_token_reuse",
            Self::WrongAccount => "wrong_account",
            Self::RacedWrite => "raced_write",
            Self::ClockSkew => "clock_skew",
            Self::QueueDelay => "queue_delay",
            Self::RefreshStampede => "refresh_stampede",
            Self::MisreadPermission => "misread_permission",
            Self::MisreadRateLimit => "misread_rate_limit",
            Self::GrantRefused => "grant_refused",
            Self::AppCredentials => "app_credentials",
            Self::MissingScopes => "missing_scopes",
            Self::RateLimited => "rate_limited",
            Self::ProviderOutage => "provider_outage",
            Self::StoreTrouble => "store_trouble",
            Self::NoTraffic => "no_traffic",
        }
    }

    /// Reads that word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.as_str() == word)
    }

    /// What it is, in a few words for a heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::StaleTokenReuse => "An old access token is used again",
            Self::WrongAccount => "The token belongs to another account",
            Self::RacedWrite => "Somebody else holds or wrote this grant",
            Self::ClockSkew => "A clock is off",
            Self::QueueDelay => "Jobs wait longer than a token is sure to live",
            Self::RefreshStampede => "The token is refreshed far too often",
            Self::MisreadPermission => "A missing permission is taken for an ended token",
            Self::MisreadRateLimit => "A rate limit is taken for an ended token",
            Self::GrantRefused => "The customer's grant is gone",
            Self::AppCredentials => "The provider refuses the app's credentials",
            Self::MissingScopes => "A permission is missing",
            Self::RateLimited => "The provider limits the calls",
            Self::ProviderOutage => "The provider is in trouble",
            Self::StoreTrouble => "The store is in trouble",
            Self::NoTraffic => "No calls come",
        }
    }
}

/// The kinds of events that are looked at; a history is read for these.
pub const LOOKED_FOR: [EventKind; 13] = [
    EventKind::Connected,
    EventKind::Reconnected,
    EventKind::Refreshed,
    EventKind::ReconnectRequired,
    EventKind::PermissionDenied,
    EventKind::RateLimited,
    EventKind::AccountMismatch,
    EventKind::LeaseTakenOver,
    EventKind::StoreRegressed,
    EventKind::TokenReported,
    EventKind::RefreshForced,
    EventKind::DoubleRedemption,
    EventKind::Revoked,
];

/// What the doctor came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Every check that matters is clear.
    Healthy,
    /// This is why.
    Cause(Cause),
    /// Nothing was found, and something that matters could not be looked at.
    Inconclusive,
}

impl Verdict {
    /// The word in the API and the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Cause(_) => "cause",
            Self::Inconclusive => "inconclusive",
        }
    }

    /// The cause, where one was found.
    pub fn cause(self) -> Option<Cause> {
        match self {
            Self::Cause(cause) => Some(cause),
            Self::Healthy | Self::Inconclusive => None,
        }
    }
}

/// What one check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// Not this.
    Clear,
    /// This.
    Found,
    /// It could not be looked at.
    Skipped,
}

impl Finding {
    /// The word in the API and the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Clear => "clear",
            Self::Found => "found",
            Self::Skipped => "skipped",
        }
    }
}

/// One step of the walk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked for.
    pub cause: Cause,
    /// What came of it.
    pub finding: Finding,
    /// One sentence with numbers and times; for a skipped one, why. Never a token.
    pub evidence: String,
}

/// What mends it, as far as the product itself can offer it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// The customer installs the app again: a reconnect link belongs to it.
    Reconnect,
    /// What the action says.
    AsSaid,
}

/// What is wrong with one connection, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// What it came to.
    pub verdict: Verdict,
    /// One or two sentences for somebody who has never seen the code.
    pub summary: String,
    /// The one thing to do.
    pub action: String,
    /// Whether that is reconnecting.
    pub remedy: Remedy,
    /// All of them, in their order.
    pub checks: Vec<Check>,
}

/// What a check says before the verdict is known.
enum Look {
    Clear(String),
    Found(Box<Found>),
    /// It could not be looked at, and without it nobody can call the connection healthy.
    Open(String),
    /// It could not be looked at, and other things say as much.
    PassedOver(String),
}

/// A cause that was found.
struct Found {
    weight: Weight,
    evidence: String,
    summary: String,
    action: String,
    remedy: Remedy,
    /// When it was met last, for what comes and goes.
    last_at: Option<Timestamp>,
}

/// How much a cause explains. Of two, the heavier one is the verdict; of equals, the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    /// It came earlier and has not come again for [`LATELY`], or no call has met it yet.
    Past,
    /// Calls go wrong, and others do not.
    Hurts,
    /// No call can succeed, now or from the end of the token at hand on.
    Stops,
}

/// What came so lately is still going on, for all that anybody can see.
const LATELY: Duration = Duration::from_secs(3600);

impl Look {
    fn found(weight: Weight, evidence: String, summary: String, action: String) -> Self {
        Self::Found(Box::new(Found {
            weight,
            evidence,
            summary,
            action,
            remedy: Remedy::AsSaid,
            last_at: None,
        }))
    }

    /// The same where the customer has to install the app again.
    fn reconnect(evidence: String, summary: String, action: String) -> Self {
        let mut look = Self::found(Weight::Stops, evidence, summary, action);
        if let Self::Found(found) = &mut look {
            found.remedy = Remedy::Reconnect;
        }
        look
    }

    /// What hurts and was met last at this time weighs less once it has not come again for a while.
    fn met_last(mut self, at: Option<Timestamp>, now: Timestamp) -> Self {
        if let Self::Found(found) = &mut self
            && found.weight == Weight::Hurts
            && at.is_none_or(|at| now.since(at) > LATELY)
        {
            found.weight = Weight::Past;
            found.last_at = at;
        }
        self
    }

    /// Where the customer has to agree again for it to be mended.
    fn mended_by_reconnecting(mut self) -> Self {
        if let Self::Found(found) = &mut self {
            found.remedy = Remedy::Reconnect;
        }
        self
    }
}

/// Says what is wrong with a connection, from what is known of it.
pub fn diagnose(evidence: &Evidence<'_>) -> Diagnosis {
    if let ConnectionStatus::Disconnected { .. } = evidence.connection.status {
        return grant::disconnected(evidence);
    }
    let mut looks: Vec<(Cause, Look)> = Cause::ALL
        .into_iter()
        .map(|cause| (cause, look(cause, evidence)))
        .collect();
    // "It is not us" is for a connection that nothing else is found about now.
    let elsewhere = looks.iter().any(|(cause, look)| {
        *cause != Cause::NoTraffic && matches!(look, Look::Found(found) if found.weight > Weight::Past)
    });
    if let Some((_, look)) = looks.last_mut()
        && elsewhere
        && let Look::Found(found) = look
    {
        *look = Look::Clear(format!("{}; what was found explains it", found.evidence));
    }
    conclude(evidence, looks)
}

/// The store does not answer, so nothing is known but that. `why` says what it did instead.
pub fn without_store(why: &str) -> Diagnosis {
    let checks = Cause::ALL
        .into_iter()
        .map(|cause| match cause {
            Cause::StoreTrouble => Check {
                cause,
                finding: Finding::Found,
                evidence: format!("the store does not answer: {why}"),
            },
            _ => Check {
                cause,
                finding: Finding::Skipped,
                evidence: "the store does not answer, so nothing is known of it".to_owned(),
            },
        })
        .collect();
    Diagnosis {
        verdict: Verdict::Cause(Cause::StoreTrouble),
        summary: format!("Evergrant's own store does not answer: {why}. Tokens at hand serve for a while; nothing is refreshed, and nothing more can be said of a connection."),
        action: "Bring the database back: see whether it runs, can be reached, and has space and connections left. No connection is lost by it, and nobody has to reconnect.".to_owned(),
        remedy: Remedy::AsSaid,
        checks,
    }
}

/// The record is there, and what is sealed in it does not open. `field` names it.
pub fn unreadable(field: &str) -> Diagnosis {
    let checks = Cause::ALL
        .into_iter()
        .map(|cause| match cause {
            Cause::StoreTrouble => Check {
                cause,
                finding: Finding::Found,
                evidence: format!("the stored {field} does not open with the vault key"),
            },
            _ => Check {
                cause,
                finding: Finding::Skipped,
                evidence: "the record does not open, so nothing was asked".to_owned(),
            },
        })
        .collect();
    Diagnosis {
        verdict: Verdict::Cause(Cause::StoreTrouble),
        summary: "The stored tokens of this connection do not open with the vault key: they were changed, moved from another row, or sealed with another key.".to_owned(),
        action: "Put the right vault key or a backup of the database back; where neither is left, send the customer the reconnect link.".to_owned(),
        remedy: Remedy::Reconnect,
        checks,
    }
}

fn look(cause: Cause, evidence: &Evidence<'_>) -> Look {
    match cause {
        Cause::StaleTokenReuse => calling::stale_token_reuse(evidence),
        Cause::WrongAccount => grant::wrong_account(evidence),
        Cause::RacedWrite => grant::raced_write(evidence),
        Cause::ClockSkew => outside::clock_skew(evidence),
        Cause::QueueDelay => calling::queue_delay(evidence),
        Cause::RefreshStampede => grant::refresh_stampede(evidence),
        Cause::MisreadPermission => calling::misread(evidence, calling::Misread::Permission),
        Cause::MisreadRateLimit => calling::misread(evidence, calling::Misread::RateLimit),
        Cause::GrantRefused => grant::grant_refused(evidence),
        Cause::AppCredentials => grant::app_credentials(evidence),
        Cause::MissingScopes => grant::missing_scopes(evidence),
        Cause::RateLimited => outside::rate_limited(evidence),
        Cause::ProviderOutage => outside::provider_outage(evidence),
        Cause::StoreTrouble => outside::store_trouble(evidence),
        Cause::NoTraffic => calling::no_traffic(evidence),
    }
}

fn conclude(evidence: &Evidence<'_>, looks: Vec<(Cause, Look)>) -> Diagnosis {
    let mut checks = Vec::with_capacity(looks.len());
    let mut first: Option<(Cause, Box<Found>)> = None;
    let mut open: Vec<Cause> = Vec::new();
    let mut also: Vec<Cause> = Vec::new();
    for (cause, look) in looks {
        let (finding, sentence) = match look {
            Look::Clear(sentence) => (Finding::Clear, sentence),
            Look::PassedOver(sentence) => (Finding::Skipped, sentence),
            Look::Open(sentence) => {
                open.push(cause);
                (Finding::Skipped, sentence)
            }
            Look::Found(found) => {
                let sentence = found.evidence.clone();
                let outweighs = first
                    .as_ref()
                    .is_none_or(|(_, first)| found.weight > first.weight);
                also.push(cause);
                if outweighs {
                    first = Some((cause, found));
                }
                (Finding::Found, sentence)
            }
        };
        checks.push(Check {
            cause,
            finding,
            evidence: sentence,
        });
    }
    if let Some((cause, found)) = first {
        also.retain(|other| *other != cause);
        return Diagnosis {
            verdict: Verdict::Cause(cause),
            summary: summary(evidence, &found, &also),
            action: found.action,
            remedy: found.remedy,
            checks,
        };
    }
    let (verdict, summary, action) = if open.is_empty() {
        let (summary, action) = well(evidence);
        (Verdict::Healthy, summary, action)
    } else {
        let unseen = open
            .iter()
            .map(|cause| cause.as_str())
            .collect::<Vec<_>>()
            .join(", ");
        (
            Verdict::Inconclusive,
            format!("Nothing was found, but this could not be looked at: {unseen}. The checks say why."),
            format!(
                "Ask again in a minute: evergrant doctor {}. If the same checks are skipped then, follow what they say.",
                evidence.connection.id
            ),
        )
    };
    Diagnosis {
        verdict,
        summary,
        action,
        remedy: Remedy::AsSaid,
        checks,
    }
}

/// What a cause says, whether it is over, and what else was found: whoever reads no more than this must not miss the second one.
fn summary(evidence: &Evidence<'_>, found: &Found, also: &[Cause]) -> String {
    let mut summary = found.summary.clone();
    if let Some(at) = found.last_at {
        let _ = write!(summary, " It has not come again since {}.", evidence.when(at));
    }
    if !also.is_empty() {
        let titles: Vec<_> = also.iter().map(|cause| cause.title()).collect();
        let _ = write!(summary, " Found beside it: {}.", titles.join("; "));
    }
    summary
}

/// What there is to say of a connection that is well.
fn well(evidence: &Evidence<'_>) -> (String, String) {
    let connection = evidence.connection;
    let token = match connection.kind {
        Kind::Static => "it holds a static token".to_owned(),
        Kind::OAuth => format!(
            "its grant is alive and version {} of its token serves until {}",
            connection.version.number(),
            evidence.when(connection.ends.expires)
        ),
    };
    match connection.last.success_at {
        Some(at) if at >= connection.connected_at => {
            let well = format!(
                "Nothing is wrong: {token}; the last call that succeeded came at {}.",
                evidence.when(at)
            );
            match grant::many_not_found(evidence) {
                None => (well, "Nothing to do.".to_owned()),
                Some(said) => (
                    format!("{well} But {said}."),
                    format!(
                        "If what is called should be there, compare the account that the caller means with this connection's: evergrant connections show {}.",
                        connection.id
                    ),
                ),
            }
        }
        _ => (
            format!(
                "Nothing is wrong: {token}; no call has succeeded since it was connected at {}.",
                evidence.when(connection.connected_at)
            ),
            format!(
                "Make the first call through it, with a path of the provider's API: evergrant call {} GET PATH.",
                connection.id
            ),
        ),
    }
}
