//! When a token endpoint is left alone: what fails for one connection of an app fails for all of them, so one is enough to find
//! out whether it works again.

use std::time::Duration;

use crate::redemption::RETRY_AFTER_MAX;
use crate::refresh_policy::Jitter;
use crate::time::Timestamp;
use crate::token_answer::TokenAnswer;

/// So many failures in a row are no accident any more.
const FAILURES_TO_OPEN: u32 = 5;

const REST_FIRST: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(60);

/// The failures of an app's token endpoint in a row, over the whole fleet. There is none while it works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breaker {
    /// How often in a row. A provider that asks for a pause counts for as many as it takes.
    pub failures: u32,
    /// What failed last, one word.
    pub code: String,
    /// Until when nothing is sent at all.
    pub rest_until: Timestamp,
}

/// What a breaker lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    /// Everything: it did not fail often enough to say anything about the endpoint.
    Closed,
    /// Nothing before this.
    Open(Timestamp),
    /// One probe in the whole fleet, which finds out for all.
    HalfOpen,
}

impl Breaker {
    /// After one more failure.
    ///
    /// What was under way when the breaker opened fails, too, and says nothing new: it makes the rest no longer, except where
    /// the provider asks for more.
    pub fn next(
        last: Option<&Self>,
        code: String,
        retry_after: Option<Duration>,
        jitter: Jitter,
        now: Timestamp,
    ) -> Self {
        let asked = retry_after.map(|pause| now.after(pause.min(RETRY_AFTER_MAX)));
        if let Some(last) = last.filter(|last| matches!(last.lets_through(now), Passage::Open(_))) {
            return Self {
                failures: last.failures,
                code,
                rest_until: last.rest_until.max(asked.unwrap_or(last.rest_until)),
            };
        }
        let in_a_row = last.map_or(0, |last| last.failures).saturating_add(1);
        let failures = match asked {
            Some(_) => in_a_row.max(FAILURES_TO_OPEN),
            None => in_a_row,
        };
        let own = match failures.checked_sub(FAILURES_TO_OPEN) {
            None => Duration::ZERO,
            Some(doublings) => {
                let whole = REST_FIRST.saturating_mul(1 << doublings.min(16)).min(REST_MAX);
                whole / 2 + jitter.of(whole / 2)
            }
        };
        Self {
            failures,
            code,
            rest_until: now.after(own).max(asked.unwrap_or(now)),
        }
    }

    /// What may be sent at `now`.
    pub fn lets_through(&self, now: Timestamp) -> Passage {
        if self.failures < FAILURES_TO_OPEN {
            Passage::Closed
        } else if now < self.rest_until {
            Passage::Open(self.rest_until)
        } else {
            Passage::HalfOpen
        }
    }
}

/// What an answer says about the endpoint, whoever it was for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evidence {
    /// It works: it judged what it was asked, well or ill.
    Works,
    /// It does not. An endpoint that swallows answers is not given the rest of the fleet's refresh tokens.
    Fails {
        /// What failed, one word.
        code: String,
        /// The pause that it asked for.
        retry_after: Option<Duration>,
    },
    /// It speaks of one account alone (HubSpot: 423 locked, 477 migrating).
    Nothing,
}

/// What `answer` says about the endpoint.
pub fn evidence(answer: &TokenAnswer) -> Evidence {
    let failure = match answer {
        TokenAnswer::Issued(_)
        | TokenAnswer::ClientRefused(_)
        | TokenAnswer::WrongClient(_)
        | TokenAnswer::GrantRefused(_) => return Evidence::Works,
        TokenAnswer::NotIssued(failure) if matches!(failure.http_status, None | Some(429)) => failure,
        TokenAnswer::NotIssued(_) => return Evidence::Nothing,
        TokenAnswer::Lost(failure)
        | TokenAnswer::CodeRefused(failure)
        | TokenAnswer::EndpointFault(failure) => failure,
    };
    Evidence::Fails {
        code: failure.code.clone(),
        retry_after: failure.retry_after,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token_answer::Failure;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn later(seconds: u64) -> Timestamp {
        NOW.after(Duration::from_secs(seconds))
    }

    /// So many failures without a pause between them, none of them while it was open.
    fn failed(times: u32) -> Breaker {
        let mut breaker = Breaker::next(None, "503".into(), None, Jitter::NONE, NOW);
        for _ in 1..times {
            breaker.rest_until = NOW;
            breaker = Breaker::next(Some(&breaker), "503".into(), None, Jitter::new(1.0), NOW);
        }
        breaker
    }

    #[test]
    fn it_opens_with_the_fifth_failure_in_a_row_and_then_lets_one_probe_through() {
        for times in 1..5 {
            assert_eq!(failed(times).lets_through(NOW), Passage::Closed, "{times}");
        }
        assert_eq!(failed(5).lets_through(NOW), Passage::Open(later(1)));
        assert_eq!(failed(5).lets_through(later(1)), Passage::HalfOpen);
    }

    #[test]
    fn each_probe_that_fails_doubles_the_rest_up_to_a_minute() {
        let rests = |times| failed(times).rest_until.since(NOW).as_secs();
        assert_eq!(
            [rests(5), rests(6), rests(7), rests(10), rests(11), rests(99)],
            [1, 2, 4, 32, 60, 60]
        );
        let once_more = Breaker {
            rest_until: NOW,
            ..failed(6)
        };
        let unlucky = Breaker::next(Some(&once_more), "503".into(), None, Jitter::NONE, NOW);
        assert_eq!(unlucky.rest_until, later(2), "half of it is jitter");
    }

    #[test]
    fn a_pause_that_the_provider_asks_for_opens_it_at_once_and_for_a_day_at_most() {
        let asked = |seconds| {
            let pause = Some(Duration::from_secs(seconds));
            Breaker::next(None, "429".into(), pause, Jitter::NONE, NOW).lets_through(NOW)
        };
        assert_eq!(asked(30), Passage::Open(later(30)));
        assert_eq!(asked(999_999), Passage::Open(later(86_400)));
    }

    #[test]
    fn what_was_under_way_when_it_opened_makes_the_rest_no_longer_unless_the_provider_says_so() {
        let open = failed(5);
        let fail = |pause| Breaker::next(Some(&open), "timeout".into(), pause, Jitter::NONE, NOW);
        assert_eq!((fail(None).failures, fail(None).rest_until), (5, later(1)));
        assert_eq!(fail(Some(Duration::from_secs(9))).rest_until, later(9));
    }

    #[test]
    fn only_what_says_something_about_the_endpoint_counts_for_or_against_it() {
        let failure = |http_status| Failure {
            http_status,
            ..Failure::without_answer("x")
        };
        let fails = Evidence::Fails {
            code: "x".into(),
            retry_after: None,
        };
        let check = |answer: TokenAnswer, expected: Evidence| {
            assert_eq!(evidence(&answer), expected, "{answer:?}");
        };
        check(TokenAnswer::NotIssued(failure(None)), fails.clone());
        check(TokenAnswer::NotIssued(failure(Some(429))), fails.clone());
        check(TokenAnswer::NotIssued(failure(Some(423))), Evidence::Nothing);
        check(TokenAnswer::NotIssued(failure(Some(477))), Evidence::Nothing);
        check(TokenAnswer::Lost(failure(Some(503))), fails.clone());
        check(TokenAnswer::Lost(failure(None)), fails.clone());
        check(TokenAnswer::EndpointFault(failure(Some(404))), fails.clone());
        check(TokenAnswer::GrantRefused(failure(Some(400))), Evidence::Works);
        check(TokenAnswer::ClientRefused(failure(Some(401))), Evidence::Works);
        check(TokenAnswer::WrongClient(failure(Some(400))), Evidence::Works);
    }
}
