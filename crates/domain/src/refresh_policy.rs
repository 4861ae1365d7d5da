//! When a token set is due: from its soft end on it still serves while one refresh runs behind it, from its hard end
//! on callers wait for that refresh.

use std::time::Duration;

use crate::time::Timestamp;

/// The lifetime taken where the provider states none, or nonsense (RFC 6749 §5.1 only recommends `expires_in`).
pub const LIFETIME_WHEN_UNSTATED: Duration = Duration::from_secs(600);

/// The longest lifetime that is believed. Beyond it the number is taken for nonsense: no token is "valid for ever".
const LIFETIME_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

const HARD_MARGIN_MAX: Duration = Duration::from_secs(5);
const HIGH_CONCURRENCY_BUFFER_MAX: Duration = Duration::from_secs(300);

/// How early an app wants its tokens renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefreshPolicy {
    /// Two minutes before the end: interactive calls that are over in seconds.
    Realtime,
    /// Five minutes before the end: jobs that wait in queues.
    Queue,
    /// A tenth of the lifetime, at most five minutes: very many connections, as few redemptions as possible.
    HighConcurrency,
    /// A buffer of the app's own.
    Buffer(Duration),
}

/// Which tokens the scheduler keeps fresh without anyone asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepFresh {
    /// None: a token is refreshed when a call needs it.
    Off,
    /// Those of connections used within the last two token lifetimes.
    Used,
    /// All.
    Always,
}

impl KeepFresh {
    /// The name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Used => "used",
            Self::Always => "always",
        }
    }
}

/// A number in `0.0..1.0`, drawn by the caller; jitter is an argument, so that tests decide it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Jitter(f64);

impl Jitter {
    /// No jitter at all.
    pub const NONE: Self = Self(0.0);

    /// Clamped into `0.0..=1.0`; not-a-number counts as none.
    pub fn new(share: f64) -> Self {
        Self(if share.is_nan() {
            0.0
        } else {
            share.clamp(0.0, 1.0)
        })
    }

    /// This share of `whole`.
    pub fn of(self, whole: Duration) -> Duration {
        whole.mul_f64(self.0)
    }
}

/// When a token set is due. Stored with the set, so that every process agrees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// From here on a refresh runs in the background; the token still serves.
    pub soft: Timestamp,
    /// From here on callers wait for the refresh.
    pub hard: Timestamp,
    /// When the provider says it ends, counted from the moment the request was sent.
    pub expires: Timestamp,
}

impl RefreshPolicy {
    /// The ends of a token set whose request left at `sent_at`.
    ///
    /// The buffer is at most half the lifetime, jitter included, so that no lifetime leads to a refresh loop; the hard
    /// margin is the lesser of 5 s and a tenth of the lifetime.
    pub fn ends(self, sent_at: Timestamp, lifetime: Duration, jitter: Jitter) -> Ends {
        let expires = sent_at.after(lifetime);
        let buffer = match self {
            Self::Realtime => Duration::from_secs(120),
            Self::Queue => Duration::from_secs(300),
            Self::HighConcurrency => (lifetime / 10).min(HIGH_CONCURRENCY_BUFFER_MAX),
            Self::Buffer(buffer) => buffer,
        };
        // Jitter is a fifth of the buffer: enough to spread what was connected together, little of the lifetime.
        let early = (buffer + jitter.of(buffer / 5)).min(lifetime / 2);
        let margin = hard_margin(lifetime);
        Ends {
            soft: expires.before(early.max(margin)),
            hard: expires.before(margin),
            expires,
        }
    }
}

/// What is kept between the hard end and the expiry, for the way of the request.
fn hard_margin(lifetime: Duration) -> Duration {
    HARD_MARGIN_MAX.min(lifetime / 10)
}

/// The lifetime that `expires_in` (seconds, as found on the wire) stands for.
pub fn lifetime_from_wire(expires_in: Option<f64>) -> Duration {
    match expires_in {
        Some(seconds) if seconds >= 1.0 && seconds <= LIFETIME_MAX.as_secs_f64() => {
            Duration::from_secs_f64(seconds.floor())
        }
        _ => LIFETIME_WHEN_UNSTATED,
    }
}

/// What a caller's wish for a minimum remaining lifetime comes to for a token set.
///
/// It is capped at half the lifetime, and a token in its first tenth satisfies any wish: otherwise a wish longer than
/// the lifetime would cost a redemption per call.
pub fn satisfies_min_ttl(issued_at: Timestamp, ends: Ends, min_ttl: Duration, now: Timestamp) -> bool {
    let lifetime = ends.expires.since(issued_at);
    let wished = min_ttl.min(lifetime / 2);
    now < issued_at.after(lifetime / 10) || now.after(wished) <= ends.expires
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SENT: Timestamp = Timestamp::from_millis(1_000_000_000);

    fn check(policy: RefreshPolicy, lifetime_s: u64, soft_s: u64, hard_ms: u64) {
        let ends = policy.ends(SENT, Duration::from_secs(lifetime_s), Jitter::NONE);
        assert_eq!(
            ends.soft.since(SENT),
            Duration::from_secs(soft_s),
            "{policy:?} soft end of {lifetime_s} s"
        );
        assert_eq!(
            ends.hard.since(SENT),
            Duration::from_millis(hard_ms),
            "{policy:?} hard end of {lifetime_s} s"
        );
    }

    #[test]
    fn a_half_hour_token_is_due_by_the_profile() {
        check(RefreshPolicy::Realtime, 1800, 1680, 1_795_000);
        check(RefreshPolicy::Queue, 1800, 1500, 1_795_000);
        check(RefreshPolicy::HighConcurrency, 1800, 1620, 1_795_000);
        check(
            RefreshPolicy::Buffer(Duration::from_secs(60)),
            1800,
            1740,
            1_795_000,
        );
    }

    #[test]
    fn a_buffer_never_takes_more_than_half_the_lifetime() {
        check(RefreshPolicy::Queue, 60, 30, 55_000);
        check(RefreshPolicy::Realtime, 10, 5, 9_000);
        check(
            RefreshPolicy::Buffer(Duration::from_secs(3600)),
            1800,
            900,
            1_795_000,
        );
    }

    #[test]
    fn a_buffer_of_nothing_leaves_the_hard_margin() {
        check(RefreshPolicy::Buffer(Duration::ZERO), 1800, 1795, 1_795_000);
    }

    #[test]
    fn nonsense_lifetimes_become_the_safe_default() {
        for nonsense in [
            None,
            Some(0.0),
            Some(-1.0),
            Some(0.4),
            Some(1e18),
            Some(f64::NAN),
            Some(f64::INFINITY),
        ] {
            assert_eq!(
                lifetime_from_wire(nonsense),
                LIFETIME_WHEN_UNSTATED,
                "{nonsense:?}"
            );
        }
        assert_eq!(lifetime_from_wire(Some(3599.9)), Duration::from_secs(3599));
        assert_eq!(lifetime_from_wire(Some(1800.0)), Duration::from_secs(1800));
    }

    #[test]
    fn a_wish_beyond_the_lifetime_does_not_redeem_a_token_that_was_just_issued() {
        let ends = RefreshPolicy::Queue.ends(SENT, Duration::from_secs(1800), Jitter::NONE);
        let wish = Duration::from_secs(100_000);
        assert!(satisfies_min_ttl(SENT, ends, wish, SENT));
        assert!(satisfies_min_ttl(
            SENT,
            ends,
            wish,
            SENT.after(Duration::from_secs(900))
        ));
        assert!(!satisfies_min_ttl(
            SENT,
            ends,
            wish,
            SENT.after(Duration::from_secs(901))
        ));
        assert!(satisfies_min_ttl(
            SENT,
            ends,
            Duration::from_secs(300),
            SENT.after(Duration::from_secs(1500))
        ));
        assert!(!satisfies_min_ttl(
            SENT,
            ends,
            Duration::from_secs(300),
            SENT.after(Duration::from_secs(1501))
        ));
    }

    proptest! {
        #[test]
        fn no_lifetime_leads_to_a_refresh_loop(lifetime_s in 1_u64..100_000, buffer_s in 0_u64..1_000_000, jitter in 0.0..1.0_f64) {
            let lifetime = Duration::from_secs(lifetime_s);
            let ends = RefreshPolicy::Buffer(Duration::from_secs(buffer_s)).ends(SENT, lifetime, Jitter::new(jitter));
            prop_assert!(ends.soft <= ends.hard && ends.hard <= ends.expires);
            prop_assert!(ends.soft.since(SENT) + Duration::from_millis(1) >= lifetime / 2);
        }
    }
}
