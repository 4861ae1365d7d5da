//! Who may present a refresh token, and when.
//!
//! A refresh token is presented once. These rules say what follows when nobody knows whether it was: the answer was lost,
//! or whoever presented it is gone.

use std::time::Duration;

use crate::app::Rotation;
use crate::connection::ReconnectReason;
use crate::id::Version;
use crate::refresh_policy::Jitter;
use crate::time::Timestamp;

/// How long one exchange with the token endpoint may take, connecting included.
pub const DEADLINE: Duration = Duration::from_secs(15);

/// What a lease lasts beyond the deadline: for the way to the store and back.
pub const LEASE_MARGIN: Duration = Duration::from_secs(15);

/// How long a lease is taken for. Longer than the exchange may take, so that it cannot run out during one.
pub const LEASE: Duration = Duration::from_secs(DEADLINE.as_secs() + LEASE_MARGIN.as_secs());

/// How long a lease may be held, renewals included: whoever is not done by then is not going to be.
pub const LEASE_MAX: Duration = Duration::from_secs(2 * LEASE.as_secs());

/// How often a lease is renewed while it is used: two renewals may fail before it runs out.
pub const RENEW_EVERY: Duration = Duration::from_secs(LEASE.as_secs() / 3);

/// How long after its beginning an attempt's answer may still arrive and be stored.
pub const QUIET_TIME: Duration = LEASE;

/// Exchanges with one app's token endpoint in a second, over the whole fleet.
///
/// No provider publishes a number (HubSpot: "rate limited", no more). A million connections whose tokens live for half an hour
/// need 670; this leaves room for them, and flattens what would come in one second otherwise.
pub const EXCHANGES_PER_SECOND: u32 = 1000;

/// The open attempts at redeeming one version's refresh token. Counts only while that version is the stored one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// The version whose refresh token is presented.
    pub version: Version,
    /// When the first attempt began.
    pub first_at: Timestamp,
    /// How many attempts may have reached the provider. Takeovers add; who steps back before the first byte takes its
    /// attempt back.
    pub attempts: u32,
    /// When the last of them began.
    pub last_at: Timestamp,
}

/// What a holder of the lease may do with the refresh token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presenting {
    /// Present it.
    Now,
    /// Ask the provider first whether it still lives: active, present it; inactive, the outcome is lost.
    AfterIntrospection,
    /// Present it once more, but not before this: a late answer may still land.
    NotBefore(Timestamp),
    /// It may have been accepted twice already. Nobody presents it by itself; once the token ends, the outcome is lost.
    Exhausted,
}

/// Decides what may follow `earlier` attempts of unknown outcome.
///
/// `hard_end` is when the access token at hand stops serving: while it does, nothing is urgent.
pub fn presenting(
    earlier: Option<&Intent>,
    rotation: Rotation,
    can_introspect: bool,
    hard_end: Timestamp,
    now: Timestamp,
) -> Presenting {
    let Some(earlier) = earlier.filter(|intent| intent.attempts > 0) else {
        return Presenting::Now;
    };
    match rotation {
        Rotation::Never => return Presenting::Now,
        Rotation::Grace(window) if now < earlier.first_at.after(window) => return Presenting::Now,
        Rotation::Grace(_) | Rotation::SingleUse => {}
    }
    // From the last attempt, not the first: its request may be on its way still, whatever became of the one that sent it.
    let quiet_until = earlier.last_at.after(QUIET_TIME).max(hard_end);
    if now < quiet_until {
        Presenting::NotBefore(quiet_until)
    } else if can_introspect {
        Presenting::AfterIntrospection
    } else if earlier.attempts == 1 {
        Presenting::Now
    } else {
        Presenting::Exhausted
    }
}

/// Decides whether a person may have the refresh token of a lost outcome presented once more; `lost_at` is when it was given up.
///
/// The engine presents nothing by itself any more then. One try, on top of those before: if its answer is lost, too, no other
/// follows for this version. One that ended definitely was taken back, and may be repeated. Like any other it waits until the
/// answers before it can have landed.
pub fn presenting_once_more(earlier: Option<&Intent>, lost_at: Timestamp, now: Timestamp) -> Presenting {
    let Some(earlier) = earlier.filter(|intent| intent.attempts > 0) else {
        return Presenting::Now;
    };
    // It was given up after the quiet time of the last attempt, or for a definite answer.
    let quiet_until = earlier.first_at.after(QUIET_TIME);
    if earlier.last_at > lost_at {
        Presenting::Exhausted
    } else if now < quiet_until {
        Presenting::NotBefore(quiet_until)
    } else {
        Presenting::Now
    }
}

/// Until when nobody may present the refresh token again, once the answer to an attempt of `version` that began at `now` is
/// lost. `None` where it may be presented after the ordinary backoff.
pub fn quiet_until(
    earlier: Option<&Intent>,
    version: Version,
    rotation: Rotation,
    can_introspect: bool,
    hard_end: Timestamp,
    now: Timestamp,
) -> Option<Timestamp> {
    let lost = Intent {
        version,
        first_at: earlier.map_or(now, |intent| intent.first_at),
        attempts: earlier.map_or(0, |intent| intent.attempts).saturating_add(1),
        last_at: now,
    };
    match presenting(Some(&lost), rotation, can_introspect, hard_end, now) {
        Presenting::NotBefore(at) => Some(at),
        Presenting::Now | Presenting::AfterIntrospection | Presenting::Exhausted => None,
    }
}

/// What the refusal of a refresh token says about its connection.
///
/// That of an unproven one, or of one that may have been accepted before, says that an answer was lost, not that the customer
/// took the grant back. That a provider was never seen to rotate does not make it certain.
pub fn reason_of_refusal(unproven: bool, earlier: Option<&Intent>) -> ReconnectReason {
    if unproven || earlier.is_some_and(|intent| intent.attempts > 0) {
        ReconnectReason::RedemptionOutcomeLost
    } else {
        ReconnectReason::GrantRefused
    }
}

const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// The longest pause that a provider is granted: HubSpot announces up to 24 h with 477 (account migrating).
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);

/// How long to wait after `failures` failures in a row: doubling from 1 s to 5 min, up to half of it jitter; never less
/// than what the provider asked for.
pub fn backoff(failures: u32, retry_after: Option<Duration>, jitter: Jitter) -> Duration {
    let whole = BACKOFF_FIRST
        .saturating_mul(1 << failures.saturating_sub(1).min(16))
        .min(BACKOFF_MAX);
    let own = whole / 2 + jitter.of(whole / 2);
    own.max(retry_after.unwrap_or_default().min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST_AT: Timestamp = Timestamp::from_millis(1_000_000);

    fn check(
        attempts: u32,
        rotation: Rotation,
        can_introspect: bool,
        seconds_later: u64,
        expected: Presenting,
    ) {
        let intent = Intent {
            version: Version::FIRST,
            first_at: FIRST_AT,
            attempts,
            last_at: FIRST_AT,
        };
        let now = FIRST_AT.after(Duration::from_secs(seconds_later));
        let hard_end = FIRST_AT.after(Duration::from_secs(60));
        assert_eq!(
            presenting(Some(&intent), rotation, can_introspect, hard_end, now),
            expected,
            "{attempts} attempts, {rotation:?}, introspection {can_introspect}, {seconds_later} s later"
        );
    }

    #[test]
    fn without_an_open_attempt_the_token_is_presented() {
        let end = FIRST_AT;
        assert_eq!(
            presenting(None, Rotation::SingleUse, false, end, FIRST_AT),
            Presenting::Now
        );
        check(0, Rotation::SingleUse, false, 0, Presenting::Now);
    }

    #[test]
    fn a_refresh_token_that_never_rotates_may_be_presented_again() {
        check(1, Rotation::Never, true, 0, Presenting::Now);
        check(7, Rotation::Never, false, 9, Presenting::Now);
    }

    #[test]
    fn inside_its_grace_window_it_is_repeated_freely_and_afterwards_it_is_single_use() {
        let grace = Rotation::Grace(Duration::from_secs(30));
        let urgent = FIRST_AT.after(Duration::from_secs(60));
        check(3, grace, false, 29, Presenting::Now);
        check(1, grace, false, 30, Presenting::NotBefore(urgent));
        check(1, grace, false, 60, Presenting::Now);
        check(2, grace, false, 60, Presenting::Exhausted);
    }

    #[test]
    fn a_single_use_token_waits_for_late_answers_and_for_the_old_access_token_to_end() {
        let urgent = FIRST_AT.after(Duration::from_secs(60));
        check(1, Rotation::SingleUse, true, 1, Presenting::NotBefore(urgent));
        check(1, Rotation::SingleUse, true, 59, Presenting::NotBefore(urgent));
        let intent = Intent {
            version: Version::FIRST,
            first_at: FIRST_AT,
            attempts: 1,
            last_at: FIRST_AT,
        };
        let already_ended = FIRST_AT;
        assert_eq!(
            presenting(Some(&intent), Rotation::SingleUse, true, already_ended, FIRST_AT),
            Presenting::NotBefore(FIRST_AT.after(QUIET_TIME))
        );
    }

    #[test]
    fn a_single_use_token_is_asked_about_first_where_the_provider_can_be_asked() {
        check(1, Rotation::SingleUse, true, 60, Presenting::AfterIntrospection);
        check(5, Rotation::SingleUse, true, 60, Presenting::AfterIntrospection);
    }

    #[test]
    fn a_single_use_token_gets_one_replay_and_no_third_attempt() {
        check(1, Rotation::SingleUse, false, 60, Presenting::Now);
        check(2, Rotation::SingleUse, false, 60, Presenting::Exhausted);
        check(2, Rotation::SingleUse, false, 100_000, Presenting::Exhausted);
    }

    #[test]
    fn a_person_may_try_once_more_after_a_lost_outcome_and_not_again_if_that_is_lost_too() {
        let at = |seconds| FIRST_AT.after(Duration::from_secs(seconds));
        let check = |last_at: u64, lost_at: u64, now: u64, expected| {
            let earlier = Intent {
                version: Version::FIRST,
                first_at: FIRST_AT,
                attempts: 2,
                last_at: at(last_at),
            };
            assert_eq!(
                presenting_once_more(Some(&earlier), at(lost_at), at(now)),
                expected,
                "last attempt {last_at}, lost at {lost_at}, now {now}"
            );
        };
        check(10, 10, 29, Presenting::NotBefore(FIRST_AT.after(QUIET_TIME)));
        check(10, 10, 30, Presenting::Now);
        check(60, 100, 100, Presenting::Now);
        check(101, 100, 100_000, Presenting::Exhausted);
        assert_eq!(presenting_once_more(None, FIRST_AT, FIRST_AT), Presenting::Now);
    }

    #[test]
    fn the_quiet_time_counts_from_the_last_attempt() {
        let later = |seconds| FIRST_AT.after(Duration::from_secs(seconds));
        let intent = Intent {
            version: Version::FIRST,
            first_at: FIRST_AT,
            attempts: 1,
            last_at: later(50),
        };
        let check = |seconds, expected| {
            let answer = presenting(Some(&intent), Rotation::SingleUse, true, FIRST_AT, later(seconds));
            assert_eq!(answer, expected, "{seconds} s later");
        };
        let quiet = 50 + QUIET_TIME.as_secs();
        check(51, Presenting::NotBefore(later(quiet)));
        check(quiet, Presenting::AfterIntrospection);
    }

    #[test]
    fn after_a_lost_answer_a_single_use_token_rests_and_one_that_never_rotates_does_not() {
        let check = |attempts: u32, rotation, hard_end: u64, expected: Option<u64>| {
            let earlier = Intent {
                version: Version::FIRST,
                first_at: FIRST_AT,
                attempts,
                last_at: FIRST_AT,
            };
            let earlier = (attempts > 0).then_some(&earlier);
            let later = |seconds| FIRST_AT.after(Duration::from_secs(seconds));
            assert_eq!(
                quiet_until(earlier, Version::FIRST, rotation, true, later(hard_end), FIRST_AT),
                expected.map(later),
                "{attempts} attempts, {rotation:?}, hard end after {hard_end} s"
            );
        };
        check(0, Rotation::Never, 60, None);
        check(0, Rotation::SingleUse, 0, Some(QUIET_TIME.as_secs()));
        check(0, Rotation::SingleUse, 60, Some(60));
        check(3, Rotation::SingleUse, 0, Some(QUIET_TIME.as_secs()));
        check(0, Rotation::Grace(Duration::from_secs(30)), 60, None);
    }

    #[test]
    fn a_refusal_is_the_customers_only_where_no_answer_can_have_been_lost() {
        let intent = |attempts| Intent {
            version: Version::FIRST,
            first_at: FIRST_AT,
            attempts,
            last_at: FIRST_AT,
        };
        let lost = ReconnectReason::RedemptionOutcomeLost;
        assert_eq!(reason_of_refusal(false, None), ReconnectReason::GrantRefused);
        assert_eq!(
            reason_of_refusal(false, Some(&intent(0))),
            ReconnectReason::GrantRefused
        );
        assert_eq!(reason_of_refusal(false, Some(&intent(1))), lost);
        assert_eq!(reason_of_refusal(true, None), lost);
    }

    #[test]
    fn backoff_doubles_up_to_five_minutes_and_honours_retry_after() {
        let full = Jitter::new(1.0);
        let seconds = |failures| backoff(failures, None, full).as_secs();
        assert_eq!(
            [
                seconds(0),
                seconds(1),
                seconds(2),
                seconds(3),
                seconds(9),
                seconds(10),
                seconds(99)
            ],
            [1, 1, 2, 4, 256, 300, 300]
        );
        assert_eq!(backoff(3, None, Jitter::NONE), Duration::from_secs(2));
        let asked = |seconds| backoff(1, Some(Duration::from_secs(seconds)), full).as_secs();
        assert_eq!([asked(0), asked(120), asked(999_999)], [1, 120, 86_400]);
    }

    #[test]
    fn a_lease_outlasts_the_exchange_it_protects() {
        assert!(LEASE >= DEADLINE + LEASE_MARGIN);
    }
}
