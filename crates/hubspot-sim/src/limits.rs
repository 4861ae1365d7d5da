//! How many calls HubSpot takes: a rolling limit for each app in each portal, one of searches for each portal.
//!
//! Source: HubSpot, usage guidelines. That refused calls do not count is an assumption; it is documented nowhere.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::world::Holder;

/// The interval of [`RateLimits::calls_max`], a rolling one.
pub(crate) const CALLS_INTERVAL: Duration = Duration::from_secs(10);
/// The interval of [`RateLimits::searches_max`], a rolling one.
const SEARCHES_INTERVAL: Duration = Duration::from_secs(1);

/// The limits, and what a refusal says about the time to wait.
///
/// They are counted and told in headers always, and refuse calls only with [`crate::Switch::EnforceRateLimits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimits {
    /// Calls of one app in one portal in any 10 s, searches aside. HubSpot: 110 for apps of the marketplace.
    pub calls_max: u32,
    /// Searches in one portal in any second, whichever app they come from. HubSpot: 5.
    pub searches_max: u32,
    /// Whether a 429 carries `Retry-After`. HubSpot documents none.
    pub retry_after: RetryAfter,
}

impl Default for RateLimits {
    fn default() -> Self {
        Self {
            calls_max: 110,
            searches_max: 5,
            retry_after: RetryAfter::Absent,
        }
    }
}

/// How an answer says when to come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryAfter {
    /// Not at all.
    #[default]
    Absent,
    /// As a number of seconds.
    Seconds,
    /// As an HTTP date, by the simulator's clock.
    Date,
}

/// Calls and searches of the recent past.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    recent: HashMap<Stream, VecDeque<Timestamp>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Stream {
    Calls(Option<String>, u64),
    Searches(u64),
}

/// A call that does not fit; after this long one would.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OverLimit {
    pub(crate) free_in: Duration,
}

impl Traffic {
    /// Counts one call of an app in a portal, and says how many more would fit now.
    pub(crate) fn call(&mut self, now: Timestamp, holder: &Holder, calls_max: u32) -> Result<u32, OverLimit> {
        let stream = Stream::Calls(
            holder.client_id().map(str::to_owned),
            holder.hub_id().unwrap_or(0),
        );
        self.count(stream, now, calls_max, CALLS_INTERVAL)
    }

    /// Counts one search in a portal.
    pub(crate) fn search(
        &mut self,
        now: Timestamp,
        hub_id: u64,
        searches_max: u32,
    ) -> Result<u32, OverLimit> {
        self.count(Stream::Searches(hub_id), now, searches_max, SEARCHES_INTERVAL)
    }

    fn count(
        &mut self,
        stream: Stream,
        now: Timestamp,
        max: u32,
        interval: Duration,
    ) -> Result<u32, OverLimit> {
        let recent = self.recent.entry(stream).or_default();
        let age = |at: Timestamp| Duration::try_from(now.duration_since(at)).unwrap_or_default();
        while recent.front().is_some_and(|at| age(*at) >= interval) {
            recent.pop_front();
        }
        let count = u32::try_from(recent.len()).unwrap_or(u32::MAX);
        if count < max {
            recent.push_back(now);
            return Ok(max - count - 1);
        }
        // Without enforcement the call is executed all the same; no more than `max` are ever remembered.
        Err(OverLimit {
            free_in: recent
                .front()
                .map_or(interval, |oldest| interval.saturating_sub(age(*oldest))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(1_000_000_000_000 + ms).unwrap()
    }

    fn install(hub_id: u64) -> Holder {
        Holder::Install {
            client_id: "app".to_owned(),
            hub_id,
        }
    }

    #[test]
    fn a_rolling_window_has_no_edge_at_which_twice_as_many_fit() {
        let mut traffic = Traffic::default();
        for left in (0..110).rev() {
            assert_eq!(traffic.call(at(9_900), &install(7), 110), Ok(left));
        }
        let over = |ms| {
            Err(OverLimit {
                free_in: Duration::from_millis(ms),
            })
        };
        assert_eq!(traffic.call(at(10_100), &install(7), 110), over(9_800));
        assert_eq!(traffic.call(at(19_899), &install(7), 110), over(1));
        assert_eq!(traffic.call(at(19_900), &install(7), 110), Ok(109));
    }

    #[test]
    fn each_app_has_its_own_limit_in_each_portal_and_searches_share_one_in_it() {
        let mut traffic = Traffic::default();
        let other = Holder::Install {
            client_id: "other".to_owned(),
            hub_id: 7,
        };
        for holder in [&install(7), &other, &install(8)] {
            assert_eq!(traffic.call(at(0), holder, 1), Ok(0), "{holder:?}");
        }
        assert!(traffic.call(at(0), &install(7), 1).is_err());
        assert_eq!(traffic.search(at(0), 7, 1), Ok(0));
        assert!(traffic.search(at(999), 7, 1).is_err());
        assert_eq!(traffic.search(at(999), 8, 1), Ok(0));
        assert_eq!(traffic.search(at(1_000), 7, 1), Ok(0));
    }
}
