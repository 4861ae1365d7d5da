//! How many calls an app may make to an account: one budget, shared by every worker of the fleet.
//!
//! Providers count calls in a window that rolls on. So does this: by the second, over the window and one second more, so that no
//! window that the provider may look at holds more than it allows. Processes take slices of at most a second's rate, which lapse
//! soon; what they did not use they give back with the next claim.
//!
//! What a budget is comes from the provider's own words. They may lower it, never raise it.
//!
//! Source: HubSpot, usage guidelines (110 calls in 10 s for each installing account; searches 5 a second for each account).

use std::time::Duration;

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

/// One second's calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Seconds since the Unix epoch.
    pub second: i64,
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

/// What a process asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// So many calls.
    pub wanted: u32,
    /// The most urgent of those that wait.
    pub lane: Lane,
    /// So many of the last slice were not used.
    pub returned: u32,
    /// What answers have said since the last claim.
    pub learnt: Learnt,
}

/// What it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// So many calls; all that were wanted where no limit is known.
    pub granted: u32,
    /// The limit, where one is known.
    pub limit: Option<Limit>,
    /// When more may be had, where not all was granted.
    pub again_at: Timestamp,
}

impl Budget {
    /// Takes what may be taken of the budget at `now`.
    pub fn claim(&mut self, claim: Claim, now: Timestamp) -> Grant {
        self.learn(claim.learnt, now);
        let second = now.millis().div_euclid(1000);
        self.give_back(claim.returned, second);
        let Some(limit) = self.limit else {
            let rests = self.rest_until.filter(|until| now < *until);
            return Grant {
                granted: if rests.is_some() { 0 } else { claim.wanted },
                limit: None,
                again_at: rests.unwrap_or(now),
            };
        };
        // One second more than the window: a second's calls may have been made at its very end.
        let first = second - i64::try_from(limit.per.as_secs().max(1)).unwrap_or(i64::MAX);
        self.used.retain(|used| used.second >= first && used.calls > 0);
        if let Some(until) = self.rest_until.filter(|until| now < *until) {
            return Grant {
                granted: 0,
                limit: Some(limit),
                again_at: until,
            };
        }
        self.rest_until = None;
        let spent: u32 = self.used.iter().map(|used| used.calls).sum();
        let free = claim.lane.share_of(limit.calls).saturating_sub(spent);
        let granted = claim.wanted.min(free).min(a_seconds_rate(limit));
        self.add(second, granted);
        let again_at = match self.used.first() {
            // The oldest second leaves the window.
            Some(oldest) if granted == 0 => Timestamp::from_millis(
                (oldest.second + 1 + i64::try_from(limit.per.as_secs().max(1)).unwrap_or(i64::MAX))
                    .saturating_mul(1000),
            )
            .max(now),
            _ => now,
        };
        Grant {
            granted,
            limit: Some(limit),
            again_at,
        }
    }

    fn learn(&mut self, learnt: Learnt, now: Timestamp) {
        if let Some(said) = learnt.limit.filter(|said| said.calls > 0 && !said.per.is_zero()) {
            self.limit = Some(match self.limit {
                Some(known) if rate(known) <= rate(said) => known,
                _ => said,
            });
        }
        if let (Some(limit), Some(remaining)) = (self.limit, learnt.remaining) {
            // Whoever shares the account with us, unknown to us, has used it, too.
            let spent: u32 = self.used.iter().map(|used| used.calls).sum();
            let seen = limit.calls.saturating_sub(remaining);
            self.add(now.millis().div_euclid(1000), seen.saturating_sub(spent));
        }
        self.rest_until = self.rest_until.max(learnt.rest_until);
    }

    fn give_back(&mut self, returned: u32, second: i64) {
        let mut left = returned;
        for used in self.used.iter_mut().rev().filter(|used| used.second <= second) {
            let given = used.calls.min(left);
            used.calls -= given;
            left -= given;
        }
    }

    fn add(&mut self, second: i64, calls: u32) {
        match self.used.last_mut() {
            Some(last) if last.second >= second => last.calls = last.calls.saturating_add(calls),
            _ if calls > 0 => self.used.push(Used { second, calls }),
            _ => {}
        }
    }
}

/// The most that is granted at once.
fn a_seconds_rate(limit: Limit) -> u32 {
    let seconds = limit.per.as_secs().max(1);
    u32::try_from(u64::from(limit.calls) / seconds)
        .unwrap_or(limit.calls)
        .max(1)
}

/// Calls in a million seconds: fine enough to compare.
fn rate(limit: Limit) -> u128 {
    u128::from(limit.calls) * 1_000_000_000 / limit.per.as_millis().max(1)
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
            returned: 0,
            learnt: Learnt::default(),
        }
    }

    #[test]
    fn no_window_of_the_providers_ever_holds_more_than_the_limit() {
        let mut budget = budget();
        let mut granted: Vec<i64> = Vec::new();
        for millis in (0..60_000).step_by(70) {
            let grant = budget.claim(claim(50, Lane::Interactive), at(millis));
            // The slice may be used up to a second later.
            granted.extend(std::iter::repeat_n(millis, grant.granted as usize));
        }
        for start in (0..60_000).step_by(100) {
            let within = granted
                .iter()
                .filter(|at| (start..start + 10_000).contains(*at))
                .count();
            assert!(within <= 110, "{within} calls from {start} ms on");
        }
        assert!(granted.len() > 500, "only {} calls in a minute", granted.len());
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
            let spent: u32 = budget.used.iter().map(|used| used.calls).sum();
            assert_eq!(spent, fills, "{lane:?}");
        }
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
                returned: if second == 0 { 0 } else { 10 },
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
