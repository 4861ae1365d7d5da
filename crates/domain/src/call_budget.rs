//! How many calls an app may make to an account: one budget, shared by every worker of the fleet.
//!
//! Providers count calls in a window that rolls on. So does this, over the window and a little more, so that no window that the
//! provider may look at holds more than it allows. Processes take slices of at most a second's rate, which lapse soon; what they
//! did not use they give back with the next claim.
//!
//! What a budget is comes from the provider's own words. They may lower it, never raise it.
//!
//! Source: HubSpot, usage guidelines (110 calls in 10 s for each installing account; searches 5 a second for each account).

use std::time::Duration;

use crate::app::Dialect;
use crate::time::Timestamp;

/// So many calls in any window of this length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// How many.
    pub calls: u32,
    /// In how long.
    pub per: Duration,
}

/// HubSpot's searches, for each account and across all apps.
pub const HUBSPOT_SEARCHES: Limit = Limit {
    calls: 5,
    per: Duration::from_secs(1),
};

/// What an app's operator says of its calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Setting {
    /// As many as the provider says.
    #[default]
    Learnt,
    /// As many as the provider says, and never more than this.
    AtMost(Limit),
    /// As many as anybody makes.
    Off,
}

/// Which budget a call is counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Counted {
    /// The app's calls to the account.
    Calls,
    /// Everybody's searches in the account, and nothing else.
    Searches,
    /// None.
    Not,
}

/// Which budget the call of `method` on `path` (without query) is counted by.
///
/// Source: HubSpot, usage guidelines; the exemptions in its API specifications.
pub fn counted(dialect: Dialect, method: &str, path: &str) -> Counted {
    if dialect != Dialect::HubSpot {
        return Counted::Calls;
    }
    let path = path.trim_end_matches('/');
    let is_search = path
        .rsplit('/')
        .next()
        .is_some_and(|last| last.eq_ignore_ascii_case("search"));
    if method == "POST" && is_search {
        Counted::Searches
    } else if path.starts_with("/webhooks-journal/") {
        Counted::Not
    } else {
        Counted::Calls
    }
}

/// How long nothing may be sent after a 429. `None`: nobody says, and nothing follows for other calls.
///
/// HubSpot documents no `Retry-After` for it; its `policyName` says which window is full, and `window` how long that is.
pub fn rest(
    policy: Option<&str>,
    retry_after: Option<Duration>,
    window: Option<Duration>,
) -> Option<Duration> {
    /// Then it is worth another look: a day's budget is refilled at midnight of the account's, wherever that is.
    const DAILY: Duration = Duration::from_secs(60);
    /// Longer than this nobody keeps an account silent on the word of one answer.
    const REST_MAX: Duration = Duration::from_secs(300);
    let by_policy = match policy {
        Some("TEN_SECONDLY_ROLLING") => Some(window.unwrap_or(Duration::from_secs(10))),
        Some("SECONDLY") => Some(Duration::from_secs(1)),
        Some("DAILY") => Some(DAILY),
        Some(_) | None => None,
    };
    retry_after.or(by_policy).map(|rest| rest.min(REST_MAX))
}

/// How urgent a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Lane {
    /// A person waits.
    Interactive,
    /// A program does.
    #[default]
    Sync,
    /// Nobody does.
    Backfill,
}

impl Lane {
    /// Every lane, the most urgent first.
    pub const ALL: [Self; 3] = [Self::Interactive, Self::Sync, Self::Backfill];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Sync => "sync",
            Self::Backfill => "backfill",
        }
    }

    /// The lane of this name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|lane| lane.as_str() == text)
    }

    /// How much of a window it may fill: what is left is for those who are more urgent, whichever process they come to.
    fn share_of(self, calls: u32) -> u32 {
        let percent = match self {
            Self::Interactive => 100,
            Self::Sync => 90,
            Self::Backfill => 80,
        };
        (u64::from(calls) * percent / 100)
            .max(1)
            .try_into()
            .unwrap_or(calls)
    }
}

/// What answers said about a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Learnt {
    /// The limit.
    pub limit: Option<Limit>,
    /// How many calls of the current window are left.
    pub remaining: Option<u32>,
    /// Nothing may be sent before this: a 429 said so.
    pub rest_until: Option<Timestamp>,
}

/// The calls of a short while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// When that while began; it is as long as [`Limit::tick`].
    pub at: Timestamp,
    /// How many calls were granted in it, or seen.
    pub calls: u32,
}

/// A budget, as the whole fleet shares it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Budget {
    /// `None`: nobody has said one yet.
    pub limit: Option<Limit>,
    /// The window's calls, the oldest first.
    pub used: Vec<Used>,
    /// Nothing is granted before this.
    pub rest_until: Option<Timestamp>,
}

/// What of a slice was not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unused {
    /// So many calls.
    pub calls: u32,
    /// When the slice was granted: [`Grant::at`].
    pub granted_at: Option<Timestamp>,
}

/// How a budget stands, for who looks at it and takes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The limit; `None` where only a rest is known.
    pub limit: Option<Limit>,
    /// How many calls may still be granted now, to the most urgent; `None` where no limit is known.
    pub left: Option<u32>,
    /// Nothing is granted before this, for a 429 said so.
    pub rest_until: Option<Timestamp>,
}

/// What a process asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// So many calls.
    pub wanted: u32,
    /// The most urgent of those that wait.
    pub lane: Lane,
    /// What of earlier slices was not used.
    pub returned: Unused,
    /// So many were made since the last claim without having been granted: before a limit was known, while the store was away.
    pub unasked: u32,
    /// What answers have said since the last claim.
    pub learnt: Learnt,
}

/// What it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// So many calls, all that were wanted where no limit is known. They may leave until [`Limit::hold`] after the claim.
    pub granted: u32,
    /// The limit, where one is known.
    pub limit: Option<Limit>,
    /// When the claim was made.
    pub at: Timestamp,
    /// When more may be had: later than the claim where nothing was granted.
    pub again_at: Timestamp,
}

impl Limit {
    /// What calls are counted by: a fortieth of the window, so that a budget's record stays short whatever its window.
    pub fn tick(self) -> Duration {
        const TICK_MIN: Duration = Duration::from_millis(50);
        (self.per / 40).max(TICK_MIN)
    }

    /// How long after the claim a granted call may leave.
    pub fn hold(self) -> Duration {
        const HOLD_MAX: Duration = Duration::from_secs(1);
        (self.tick() * 3).min(HOLD_MAX)
    }

    /// How long a call counts from the beginning of its tick: it may have been granted at the end of that, left at the end of
    /// its hold, and then it is the provider's for a whole window.
    pub fn counts_for(self) -> Duration {
        self.per + self.tick() + self.hold()
    }

    /// The most that is granted at once.
    pub fn a_seconds_rate(self) -> u32 {
        let seconds = self.per.as_secs().max(1);
        u32::try_from(u64::from(self.calls) / seconds)
            .unwrap_or(self.calls)
            .max(1)
    }

    /// Calls in a million seconds: fine enough to compare.
    fn rate(self) -> u128 {
        u128::from(self.calls) * 1_000_000_000 / self.per.as_millis().max(1)
    }

    fn is_one(self) -> bool {
        self.calls > 0 && !self.per.is_zero()
    }
}

impl Budget {
    /// Takes what may be taken of the budget at `now`.
    pub fn claim(&mut self, claim: Claim, now: Timestamp) -> Grant {
        self.limit = lower(self.limit, claim.learnt.limit);
        self.rest_until = self
            .rest_until
            .max(claim.learnt.rest_until)
            .filter(|until| now < *until);
        let Some(limit) = self.limit else {
            return Grant {
                granted: if self.rest_until.is_some() {
                    0
                } else {
                    claim.wanted
                },
                limit: None,
                at: now,
                again_at: self.rest_until.unwrap_or(now),
            };
        };
        self.used
            .retain(|used| now < used.at.after(limit.counts_for()) && used.calls > 0);
        self.give_back(limit, claim.returned);
        self.add(limit, now, claim.unasked);
        if let Some(remaining) = claim.learnt.remaining {
            // Whoever shares the account with us, unknown to us, has used it, too.
            let seen = limit.calls.saturating_sub(remaining);
            self.add(limit, now, seen.saturating_sub(self.spent()));
        }
        if let Some(until) = self.rest_until {
            return Grant {
                granted: 0,
                limit: Some(limit),
                at: now,
                again_at: until,
            };
        }
        let share = claim.lane.share_of(limit.calls);
        let granted = claim
            .wanted
            .min(share.saturating_sub(self.spent()))
            .min(limit.a_seconds_rate());
        self.add(limit, now, granted);
        Grant {
            granted,
            limit: Some(limit),
            at: now,
            again_at: if granted == 0 {
                self.below(share, limit).unwrap_or(now).max(now)
            } else {
                now
            },
        }
    }

    /// How it stands at `now`. `None` where nobody has said a limit and nothing rests: calls are not counted then.
    pub fn standing(&self, now: Timestamp) -> Option<Standing> {
        let rest_until = self.rest_until.filter(|until| now < *until);
        let Some(limit) = self.limit else {
            return rest_until.map(|_| Standing {
                limit: None,
                left: None,
                rest_until,
            });
        };
        let spent = self
            .used
            .iter()
            .filter(|used| now < used.at.after(limit.counts_for()))
            .fold(0, |spent: u32, used| spent.saturating_add(used.calls));
        let left = match rest_until {
            Some(_) => 0,
            None => limit.calls.saturating_sub(spent),
        };
        Some(Standing {
            limit: Some(limit),
            left: Some(left),
            rest_until,
        })
    }

    fn spent(&self) -> u32 {
        self.used
            .iter()
            .fold(0, |spent: u32, used| spent.saturating_add(used.calls))
    }

    /// Taken off where it was counted, and nowhere else: what others were granted since must count on.
    fn give_back(&mut self, limit: Limit, returned: Unused) {
        let Some(at) = returned.granted_at else {
            return;
        };
        let same = |used: &&mut Used| used.at <= at && at < used.at.after(limit.tick());
        if let Some(used) = self.used.iter_mut().rev().find(same) {
            used.calls -= returned.calls.min(used.calls);
        }
    }

    fn add(&mut self, limit: Limit, now: Timestamp, calls: u32) {
        let tick = i64::try_from(limit.tick().as_millis()).unwrap_or(i64::MAX);
        let at = Timestamp::from_millis(now.millis().div_euclid(tick) * tick);
        match self.used.last_mut() {
            Some(last) if last.at >= at => last.calls = last.calls.saturating_add(calls),
            _ if calls > 0 => self.used.push(Used { at, calls }),
            _ => {}
        }
    }

    /// When less than `share` will count, if nobody claims meanwhile.
    fn below(&self, share: u32, limit: Limit) -> Option<Timestamp> {
        let mut spent = self.spent();
        self.used.iter().find_map(|used| {
            spent -= used.calls.min(spent);
            (spent < share).then(|| used.at.after(limit.counts_for()))
        })
    }
}

/// The lower of two limits. What says nothing changes nothing.
pub fn lower(known: Option<Limit>, said: Option<Limit>) -> Option<Limit> {
    match (known, said.filter(|said| said.is_one())) {
        (Some(known), Some(said)) if known.rate() <= said.rate() => Some(known),
        (known, said) => said.or(known),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN_SECONDLY: Limit = Limit {
        calls: 110,
        per: Duration::from_secs(10),
    };

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(1_000_000_000_000 + millis)
    }

    fn budget() -> Budget {
        Budget {
            limit: Some(TEN_SECONDLY),
            ..Budget::default()
        }
    }

    fn claim(wanted: u32, lane: Lane) -> Claim {
        Claim {
            wanted,
            lane,
            returned: Unused::default(),
            unasked: 0,
            learnt: Learnt::default(),
        }
    }

    /// Numbers that are the same in every run.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, sides: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.0 >> 33) % sides
        }
    }

    /// Processes that claim at their own times, use what they get at any time they may, and give back the rest.
    #[test]
    fn no_window_of_the_providers_ever_holds_more_than_the_limit() {
        for (limit, seed) in [TEN_SECONDLY, HUBSPOT_SEARCHES]
            .into_iter()
            .flat_map(|limit| (0..8).map(move |seed| (limit, seed)))
        {
            let hold = i64::try_from(limit.hold().as_millis()).expect("short");
            let per = i64::try_from(limit.per.as_millis()).expect("short");
            let mut dice = Dice(seed);
            let mut budget = Budget {
                limit: Some(limit),
                ..Budget::default()
            };
            let mut left: Vec<i64> = Vec::new();
            // What each process has not used.
            let mut slices = [Unused::default(); 4];
            for millis in (0..per * 12).step_by(20) {
                let unused = &mut slices[usize::try_from(dice.below(4)).expect("four of them")];
                let claim = Claim {
                    returned: *unused,
                    ..claim(7, Lane::ALL[usize::try_from(dice.below(3)).expect("three")])
                };
                let Grant { granted, at, .. } = budget.claim(claim, at(millis));
                let used = u32::try_from(dice.below(u64::from(granted) + 1)).expect("few");
                for _ in 0..used {
                    left.push(millis + i64::try_from(dice.below(hold.unsigned_abs())).expect("short"));
                }
                *unused = Unused {
                    calls: granted - used,
                    granted_at: Some(at),
                };
            }
            left.sort_unstable();
            for (index, first) in left.iter().enumerate() {
                let within = left[index..].iter().take_while(|at| **at < first + per).count();
                assert!(
                    within <= limit.calls as usize,
                    "seed {seed}: {within} calls from {first} ms on"
                );
            }
            let fair = usize::try_from(limit.calls).expect("few") * 6;
            assert!(
                left.len() > fair,
                "seed {seed}: only {} calls in 12 windows",
                left.len()
            );
        }
    }

    #[test]
    fn those_who_use_all_they_get_lose_little_to_caution() {
        for (limit, in_a_minute) in [(TEN_SECONDLY, 590), (HUBSPOT_SEARCHES, 235)] {
            let mut budget = Budget {
                limit: Some(limit),
                ..Budget::default()
            };
            let granted: u32 = (0..60_000)
                .step_by(50)
                .map(|millis| budget.claim(claim(50, Lane::Interactive), at(millis)).granted)
                .sum();
            assert!(granted >= in_a_minute, "{granted} calls in a minute");
        }
    }

    #[test]
    fn a_burst_is_let_through_and_the_next_one_waits_for_the_window() {
        let mut budget = budget();
        let mut granted = 0;
        while let grant = budget.claim(claim(110, Lane::Interactive), at(0))
            && grant.granted > 0
        {
            assert!(grant.granted <= 11, "a slice is at most a second's rate");
            granted += grant.granted;
        }
        assert_eq!(granted, 110);
        assert_eq!(
            budget.claim(claim(1, Lane::Interactive), at(0)).again_at,
            at(11_000)
        );
        assert_eq!(budget.claim(claim(1, Lane::Interactive), at(10_999)).granted, 0);
        assert_eq!(budget.claim(claim(1, Lane::Interactive), at(11_000)).granted, 1);
    }

    #[test]
    fn the_less_urgent_leave_room_for_the_more_urgent() {
        let mut budget = budget();
        for (lane, fills) in [(Lane::Backfill, 88), (Lane::Sync, 99), (Lane::Interactive, 110)] {
            while budget.claim(claim(7, lane), at(0)).granted > 0 {}
            assert_eq!(budget.spent(), fills, "{lane:?}");
        }
    }

    #[test]
    fn how_a_budget_stands_is_what_a_claim_would_find() {
        let mut budget = Budget::default();
        assert_eq!(budget.standing(at(0)), None, "nobody has said a limit");
        budget.limit = Some(TEN_SECONDLY);
        let left = |budget: &Budget, millis| budget.standing(at(millis)).and_then(|standing| standing.left);
        assert_eq!(left(&budget, 0), Some(110));
        assert_eq!(budget.claim(claim(7, Lane::Interactive), at(0)).granted, 7);
        assert_eq!(left(&budget, 0), Some(103));
        assert_eq!(left(&budget, 10_999), Some(103), "the window is not over");
        assert_eq!(
            left(&budget, 11_000),
            Some(110),
            "it is, though nobody has claimed since"
        );
        budget.rest_until = Some(at(20_000));
        let resting = budget.standing(at(19_999)).expect("there is a limit");
        assert_eq!((resting.left, resting.rest_until), (Some(0), Some(at(20_000))));
        assert_eq!(left(&budget, 20_000), Some(110));
        budget.limit = None;
        let unlimited = budget.standing(at(0)).expect("it rests");
        assert_eq!((unlimited.limit, unlimited.left), (None, None));
        assert_eq!(budget.standing(at(20_000)), None);
    }

    #[test]
    fn the_providers_words_lower_a_budget_and_never_raise_it() {
        let mut budget = Budget::default();
        let says = |calls| Claim {
            learnt: Learnt {
                limit: Some(Limit {
                    calls,
                    per: Duration::from_secs(10),
                }),
                ..Learnt::default()
            },
            ..claim(0, Lane::Sync)
        };
        for (said, known) in [(110, 110), (190, 110), (100, 100), (0, 100), (110, 100)] {
            assert_eq!(
                budget.claim(says(said), at(0)).limit.map(|limit| limit.calls),
                Some(known),
                "said {said}"
            );
        }
    }

    #[test]
    fn what_others_used_of_the_account_counts() {
        let mut budget = budget();
        let says = Claim {
            learnt: Learnt {
                remaining: Some(3),
                ..Learnt::default()
            },
            ..claim(11, Lane::Interactive)
        };
        assert_eq!(budget.claim(says, at(0)).granted, 3);
    }

    #[test]
    fn what_was_not_used_is_given_back() {
        let mut budget = budget();
        for second in 0..100 {
            let one_of_eleven = Claim {
                returned: Unused {
                    calls: if second == 0 { 0 } else { 10 },
                    granted_at: Some(at((second - 1) * 1000)),
                },
                ..claim(11, Lane::Sync)
            };
            assert_eq!(
                budget.claim(one_of_eleven, at(second * 1000)).granted,
                11,
                "second {second}"
            );
        }
    }

    #[test]
    fn what_others_are_granted_counts_from_when_they_are_granted_it() {
        let mut budget = budget();
        let fill = |budget: &mut Budget, millis| {
            while budget.claim(claim(11, Lane::Interactive), at(millis)).granted > 0 {}
        };
        assert_eq!(budget.claim(claim(11, Lane::Interactive), at(0)).granted, 11);
        fill(&mut budget, 9000);
        let gives_back = Claim {
            returned: Unused {
                calls: 10,
                granted_at: Some(at(0)),
            },
            ..claim(0, Lane::Interactive)
        };
        budget.claim(gives_back, at(9000));
        fill(&mut budget, 9000);
        // One of the first eleven was used, and a hundred and nine at 9 s: one is free when that one is over.
        assert_eq!(budget.claim(claim(11, Lane::Interactive), at(11_000)).granted, 1);
    }

    #[test]
    fn searches_are_counted_by_themselves_and_the_journal_not_at_all() {
        let check = |method: &str, path: &str, expected| {
            assert_eq!(
                counted(Dialect::HubSpot, method, path),
                expected,
                "{method} {path}"
            );
        };
        check("POST", "/crm/v3/objects/contacts/search", Counted::Searches);
        check("POST", "/crm/objects/2026-03/contacts/Search/", Counted::Searches);
        check("GET", "/crm/v3/objects/contacts/search", Counted::Calls);
        check("POST", "/crm/v3/objects/research", Counted::Calls);
        check("GET", "/webhooks-journal/journal/2026-03/earliest", Counted::Not);
        check("GET", "/webhooks-journalist/1", Counted::Calls);
        assert_eq!(counted(Dialect::Generic, "POST", "/search"), Counted::Calls);
    }

    #[test]
    fn after_a_429_the_provider_rests_as_long_as_it_says() {
        let seconds = Duration::from_secs;
        for (policy, retry_after, window, expected) in [
            (Some("TEN_SECONDLY_ROLLING"), None, None, Some(10)),
            (Some("TEN_SECONDLY_ROLLING"), None, Some(7), Some(7)),
            (Some("TEN_SECONDLY_ROLLING"), Some(3), Some(7), Some(3)),
            (Some("SECONDLY"), None, Some(10), Some(1)),
            (Some("DAILY"), None, Some(10), Some(60)),
            (Some("SOMETHING_NEW"), None, Some(10), None),
            (None, None, Some(10), None),
            (None, Some(4), None, Some(4)),
            (Some("DAILY"), Some(86_400), None, Some(300)),
        ] {
            assert_eq!(
                rest(policy, retry_after.map(seconds), window.map(seconds)),
                expected.map(seconds),
                "{policy:?} {retry_after:?} {window:?}"
            );
        }
    }

    #[test]
    fn what_was_made_without_asking_counts() {
        let mut budget = budget();
        let reports = Claim {
            unasked: 105,
            ..claim(11, Lane::Interactive)
        };
        assert_eq!(budget.claim(reports, at(0)).granted, 5);
    }

    #[test]
    fn the_less_urgent_are_told_when_their_own_share_is_free_again() {
        let mut budget = budget();
        while budget.claim(claim(11, Lane::Interactive), at(0)).granted > 0 {}
        budget.used[0].calls = 22;
        budget.used.push(Used {
            at: at(3000),
            calls: 88,
        });
        let again_at = |budget: &mut Budget, lane| budget.claim(claim(1, lane), at(3000)).again_at;
        assert_eq!(again_at(&mut budget, Lane::Interactive), at(11_000));
        // Without the first 22 there are still 88: as many as it may fill.
        assert_eq!(again_at(&mut budget, Lane::Backfill), at(14_000));
    }

    #[test]
    fn a_budget_s_record_stays_short_whatever_its_window() {
        for per in [1, 10, 60, 3600, 86_400] {
            let limit = Limit {
                calls: 1_000_000,
                per: Duration::from_secs(per),
            };
            let mut budget = Budget {
                limit: Some(limit),
                ..Budget::default()
            };
            let step = i64::try_from(per).expect("short");
            for n in 0..3000 {
                budget.claim(claim(1, Lane::Sync), at(n * step));
            }
            assert!(budget.used.len() <= 45, "{per} s: {}", budget.used.len());
        }
    }

    #[test]
    fn after_a_429_nothing_is_granted_before_its_time() {
        for mut budget in [budget(), Budget::default()] {
            let rests = Claim {
                learnt: Learnt {
                    rest_until: Some(at(2500)),
                    ..Learnt::default()
                },
                ..claim(1, Lane::Interactive)
            };
            let grant = budget.claim(rests, at(0));
            assert_eq!((grant.granted, grant.again_at), (0, at(2500)));
            assert_eq!(budget.claim(claim(1, Lane::Interactive), at(2499)).granted, 0);
            assert_eq!(budget.claim(claim(1, Lane::Interactive), at(2500)).granted, 1);
        }
    }

    #[test]
    fn without_a_known_limit_everything_is_granted() {
        let grant = Budget::default().claim(claim(1000, Lane::Backfill), at(0));
        assert_eq!((grant.granted, grant.limit), (1000, None));
    }
}
