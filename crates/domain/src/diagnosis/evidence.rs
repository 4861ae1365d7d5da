//! What the doctor goes by: plain values, gathered elsewhere.

use std::time::Duration;

use super::words::when;
use crate::app::{App, AppHealth};
use crate::breaker::Breaker;
use crate::connection::Connection;
use crate::id::{AccountId, AppName, ConnectionId, Version};
use crate::refresh_policy::Jitter;
use crate::time::Timestamp;

/// How far back what callers did counts. What is older has been mended or been lived with.
pub const LOOKS_BACK: Duration = Duration::from_secs(12 * 3600);

/// The upper ends, in seconds, of the buckets that remaining lifetimes and delays are counted in; one more is beyond the last.
pub const BUCKETS: [u64; 6] = [0, 30, 120, 300, 600, 1800];

/// A piece of evidence, or why there is none.
pub type Known<T> = Result<T, Gap>;

/// Why a piece of evidence is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gap {
    /// It was not asked for, and why, as half a sentence: `the provider introspects no tokens`.
    NotAsked(String),
    /// Whoever was asked gave no usable answer: a code of theirs, or a word of ours.
    Silent(String),
    /// The provider refused our client credentials instead of answering: its code.
    ClientRefused(String),
}

/// All that is known of one connection.
#[derive(Debug, Clone)]
pub struct Evidence<'a> {
    /// When it was gathered.
    pub now: Timestamp,
    /// The record, with what this process has seen and not yet written.
    pub connection: &'a Connection,
    /// Its app; `None` where the configuration has none of that name.
    pub app: Option<&'a App>,
    /// What is known of the app beyond its configuration.
    pub standing: Known<AppStanding>,
    /// Its history, oldest first, as far back as [`LOOKS_BACK`] or further.
    pub history: Known<Vec<Happened>>,
    /// What its calls did, oldest hour first, as far back as it is kept (two days).
    pub hours: Known<Vec<Hour>>,
    /// The keyed fingerprint of the refresh token that is stored.
    pub fingerprint: Option<String>,
    /// By how many milliseconds the machine's clock is ahead of the store's; `None` where the store has no clock of its own.
    pub machine_ahead_ms: Known<Option<i64>>,
    /// Our time against the provider's.
    pub provider_clock: Known<Offset>,
    /// What the provider says of the stored refresh token.
    pub refresh_token: Known<TokenLife>,
    /// What the provider says of the stored access token.
    pub access_token: Known<TokenLife>,
    /// The same customer's other live connections.
    pub relatives: Vec<Relative>,
    /// How long the store took to answer.
    pub store_took: Duration,
    /// Answers of the token endpoint that wait in the lifeboat for the store to take them; not asked for where there is none.
    pub afloat: Known<u64>,
}

/// What is known of an app beyond its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppStanding {
    /// Whether the provider accepts its credentials.
    pub health: AppHealth,
    /// Its token endpoint fails, for no reason of a connection.
    pub endpoint: Option<Breaker>,
    /// The provider was seen to replace refresh tokens.
    pub rotates_since: Option<Timestamp>,
}

/// One line of the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happened {
    /// When.
    pub at: Timestamp,
    /// [`crate::event::EventKind`] as a word.
    pub kind: String,
    /// Why, for a person.
    pub detail: String,
    /// The version that stood after it.
    pub version: Version,
    /// The keyed fingerprint of the refresh token that stood after it, where it was noted.
    pub fingerprint: Option<String>,
    /// The process that wrote it, where it was noted.
    pub process: Option<String>,
    /// Why a refresh was made, as a word: `due`, `waited_for`, `rejected`, `forced`.
    pub reason: Option<String>,
    /// The class of the call's end, as a word.
    pub class: Option<String>,
    /// The status that came back.
    pub status_code: Option<u16>,
    /// The version that a call was sent with.
    pub token_version: Option<Version>,
    /// Whole seconds that the token still lived; negative where it had ended.
    pub seconds_remaining: Option<i64>,
}

/// What the calls of one hour did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hour {
    /// When it began.
    pub began_at: Timestamp,
    /// The counts.
    pub calls: Calls,
}

/// Calls, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Calls {
    /// All of them.
    pub all: u64,
    /// Those that were refused here before anything was sent, for a reason that says nothing of the provider.
    pub refused: u64,
    /// Those that ended well.
    pub ok: u64,
    /// Those that the provider answered with 429.
    pub rate_limited: u64,
    /// Those answered 404.
    pub not_found: u64,
    /// Those that the provider's own trouble ended: 423, 477, 5xx, no answer in time.
    pub unavailable: u64,
    /// By the remaining lifetime of the token they left with: see [`BUCKETS`].
    pub by_life: [u64; BUCKETS.len() + 1],
    /// By the time from being enqueued to being called, where the caller said: see [`BUCKETS`].
    pub by_delay: [u64; BUCKETS.len() + 1],
    /// Access tokens handed out.
    pub handed_out: u64,
    /// Refreshes that somebody forced.
    pub refresh_forced: u64,
}

impl Calls {
    /// Those that speak of the provider: it answered them, or failed to.
    pub(super) fn of_the_provider(&self) -> u64 {
        self.all.saturating_sub(self.refused)
    }

    /// Adds another count to this one.
    pub fn add(&mut self, other: &Self) {
        self.all += other.all;
        self.refused += other.refused;
        self.ok += other.ok;
        self.rate_limited += other.rate_limited;
        self.not_found += other.not_found;
        self.unavailable += other.unavailable;
        self.handed_out += other.handed_out;
        self.refresh_forced += other.refresh_forced;
        for (sum, one) in self.by_life.iter_mut().zip(other.by_life) {
            *sum += one;
        }
        for (sum, one) in self.by_delay.iter_mut().zip(other.by_delay) {
            *sum += one;
        }
    }
}

/// Our time against another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offset {
    /// By how many milliseconds ours is ahead; negative where it is behind.
    pub ahead_ms: i64,
    /// By how many milliseconds that may be wrong: the round trip, and the whole seconds of a `Date` header.
    pub give_or_take_ms: i64,
}

/// What a provider says of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenLife {
    /// It lives, and belongs to this account.
    Active {
        /// The account, where the answer names one.
        account: Option<AccountId>,
    },
    /// The provider does not know it, or not any more.
    Inactive,
}

/// Another live connection of the same customer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relative {
    /// Its id.
    pub id: ConnectionId,
    /// Its app.
    pub app: AppName,
    /// Its account.
    pub account: Option<AccountId>,
    /// What was granted to it.
    pub scopes: Vec<String>,
}

impl Evidence<'_> {
    /// From when on what callers and processes did counts: what came before the last consent is another story.
    pub(super) fn since(&self) -> Timestamp {
        self.now.before(LOOKS_BACK).max(self.connection.connected_at)
    }

    /// A time as a sentence has it.
    pub(super) fn when(&self, at: Timestamp) -> String {
        when(at, self.now)
    }

    /// What happened since then, of one kind, oldest first.
    pub(super) fn of_kind<'h>(&self, history: &'h [Happened], kind: &str) -> Vec<&'h Happened> {
        let since = self.since();
        history
            .iter()
            .filter(|line| line.at >= since && line.kind == kind)
            .collect()
    }

    /// What the calls since then did, counted together. The hour that it began in counts as a whole.
    pub(super) fn calls(&self, hours: &[Hour]) -> Calls {
        let since = self.since().before(Duration::from_secs(3600));
        let mut sum = Calls::default();
        for hour in hours.iter().filter(|hour| hour.began_at > since) {
            sum.add(&hour.calls);
        }
        sum
    }

    /// How long the stored token set lives in all.
    pub(super) fn lifetime(&self) -> Duration {
        self.connection.ends.expires.since(self.connection.issued_at)
    }

    /// How early it is renewed, as its app is set; each single set a little earlier, so that not all are due at once.
    pub(super) fn buffer(&self) -> Duration {
        let ends = self.connection.ends;
        match self.app {
            Some(app) => {
                let ends = app
                    .refresh_policy
                    .ends(self.connection.issued_at, self.lifetime(), Jitter::NONE);
                ends.expires.since(ends.soft)
            }
            None => ends.expires.since(ends.soft),
        }
    }

    /// Whether the stored token set has done what it is for: a call with it succeeded.
    pub(super) fn is_proven(&self) -> bool {
        let last = &self.connection.last;
        last.success_at.is_some_and(|at| {
            at >= self.connection.issued_at && last.unauthorized_at.is_none_or(|no| no < at)
        })
    }
}

impl Gap {
    /// Half a sentence: why nothing is known.
    pub(super) fn why(&self) -> String {
        match self {
            Self::NotAsked(why) => why.clone(),
            Self::Silent(code) => format!("no usable answer came ({code})"),
            Self::ClientRefused(code) => format!("the provider refuses the app's credentials ({code})"),
        }
    }
}
