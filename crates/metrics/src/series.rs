//! What is counted for one app.

use std::array;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use evergrant_domain::api_answer::Class;
use evergrant_domain::call_budget::Lane;

use crate::exposition::{Exposition, Kind};
use crate::histogram::{Counted, Histogram};
use crate::shards::{Apart, Shards};

const MICROS: u64 = 1_000_000;

/// From what a cache answers to the longest that a provider is waited for.
static TOOK: [u64; 15] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 30_000_000, 60_000_000,
];
/// Up to the longest that a call may wait for budget, and a bound for those that need not wait.
static WAITED: [u64; 11] = [
    0, 10_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000, 60_000_000,
];
/// Below 120 s a token is later than it should be; 1,800 s is a whole one of HubSpot's.
static TTL: [u64; 6] = [0, 30, 120, 300, 600, 1800];

type Took = Histogram<15, MICROS>;
type Waited = Histogram<11, MICROS>;
type Ttl = Histogram<6, 1>;

/// By its first digit; what is no answer of the provider's has none.
const CODE_CLASSES: [&str; 7] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx", "other"];

/// What a call was when it ended.
#[derive(Debug, Clone, Copy)]
pub struct CallSeen {
    /// Why it failed or was repeated.
    pub class: Class,
    /// The provider's status; `None` where it gave no answer.
    pub status_code: Option<u16>,
    /// From when it came to the head of its answer.
    pub took: Duration,
    /// How much of that was the provider's; `None` where nothing was sent.
    pub upstream_took: Option<Duration>,
    /// How long its access token still lived when it was sent; what had ended counts as zero. `None` where nothing was sent, or
    /// nobody knows.
    pub token_ttl: Option<Duration>,
}

/// What came of presenting a refresh token once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redemption {
    /// A token set was issued.
    Issued,
    /// No answer came that can be read: nobody knows.
    Lost,
    /// The provider refused the grant.
    GrantRefused,
    /// The provider refused the app's credentials.
    ClientRefused,
    /// The provider answered that it did not carry it out, or cannot at present.
    NotIssued,
}

impl Redemption {
    const ALL: [Self; 5] = [
        Self::Issued,
        Self::Lost,
        Self::GrantRefused,
        Self::ClientRefused,
        Self::NotIssued,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Issued => "issued",
            Self::Lost => "lost",
            Self::GrantRefused => "grant_refused",
            Self::ClientRefused => "client_refused",
            Self::NotIssued => "not_issued",
        }
    }
}

/// The series of an app. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct AppSeries(Arc<Shards<Counts>>);

/// The part of an app's series that belongs to the thread which asked for it. To be held while a call lasts.
pub struct Series(Arc<Apart<Counts>>);

struct Counts {
    calls: [[AtomicU64; CODE_CLASSES.len()]; Class::ALL.len()],
    took: Took,
    upstream_took: Took,
    token_ttl: Ttl,
    budget_waited: [Waited; Lane::ALL.len()],
    redemptions: [AtomicU64; Redemption::ALL.len()],
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            calls: array::from_fn(|_| array::from_fn(|_| AtomicU64::new(0))),
            took: Histogram::new(&TOOK),
            upstream_took: Histogram::new(&TOOK),
            token_ttl: Histogram::new(&TTL),
            budget_waited: array::from_fn(|_| Histogram::new(&WAITED)),
            redemptions: array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl AppSeries {
    /// The part of this thread. Taken where the look at the app's token is at hand, and used until the call has ended, on
    /// whichever thread that is.
    pub fn here(&self) -> Series {
        Series(self.0.here().clone())
    }
}

impl std::fmt::Debug for AppSeries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppSeries").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Series {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Series").finish_non_exhaustive()
    }
}

impl Series {
    /// A call ended.
    pub fn call(&self, call: &CallSeen) {
        let counts = &self.0.0;
        let code_class = call
            .status_code
            .map_or(0, |code| usize::from(code / 100).min(CODE_CLASSES.len() - 1));
        counts.calls[call.class as usize][code_class].fetch_add(1, Ordering::Relaxed);
        counts.took.observe(call.took);
        if let Some(took) = call.upstream_took {
            counts.upstream_took.observe(took);
        }
        if let Some(ttl) = call.token_ttl {
            counts.token_ttl.observe(ttl);
        }
    }

    /// A call of this lane waited so long for its turn in the app's budget, whether it got one or not.
    pub fn budget_waited(&self, lane: Lane, waited: Duration) {
        self.0.0.budget_waited[lane as usize].observe(waited);
    }

    /// A refresh token was presented.
    pub fn redemption(&self, outcome: Redemption) {
        self.0.0.redemptions[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// The series of every app, by name. The name is empty for what ended before its app was known.
pub(crate) fn write(apps: &[(&str, AppSeries)], text: &mut Exposition) {
    const CALLS: &str = "evergrant_calls_total";
    const REDEMPTIONS: &str = "evergrant_redemptions_total";
    const BUDGET_WAIT: &str = "evergrant_budget_wait_seconds";
    text.family(
        CALLS,
        Kind::Counter,
        "Calls that ended, by why they failed or were repeated and by the provider's status.",
    );
    for (app, series) in apps {
        for class in Class::ALL {
            for (code_class, word) in CODE_CLASSES.iter().enumerate() {
                let calls = series.sum(|counts| &counts.calls[class as usize][code_class]);
                if calls > 0 {
                    let labels = [("app", *app), ("class", class.as_str()), ("code_class", *word)];
                    text.sample(CALLS, &labels, calls);
                }
            }
        }
    }
    let mut histogram = |name: &str, help: &str, counted: &dyn Fn(&AppSeries) -> Counted| {
        text.family(name, Kind::Histogram, help);
        for (app, series) in apps {
            let counted = counted(series);
            if !counted.is_empty() {
                text.histogram(name, &[("app", *app)], &counted);
            }
        }
    };
    histogram(
        "evergrant_call_duration_seconds",
        "From when a call came to the head of its answer.",
        &|series| Counted::of(series.0.all().map(|counts| &counts.took)),
    );
    histogram(
        "evergrant_upstream_duration_seconds",
        "How much of a call's duration was the provider's, repeats included.",
        &|series| Counted::of(series.0.all().map(|counts| &counts.upstream_took)),
    );
    histogram(
        "evergrant_call_token_ttl_seconds",
        "How long the access token of a call still lived when it was sent; 0 where it had ended.",
        &|series| Counted::of(series.0.all().map(|counts| &counts.token_ttl)),
    );
    text.family(
        BUDGET_WAIT,
        Kind::Histogram,
        "How long calls waited for their turn in the provider's budget.",
    );
    for (app, series) in apps {
        for lane in Lane::ALL {
            let waited = series.0.all().map(|counts| &counts.budget_waited[lane as usize]);
            let waited = Counted::of(waited);
            if !waited.is_empty() {
                text.histogram(BUDGET_WAIT, &[("app", *app), ("lane", lane.as_str())], &waited);
            }
        }
    }
    text.family(
        REDEMPTIONS,
        Kind::Counter,
        "Refresh tokens presented to the provider, by what came of it.",
    );
    for (app, series) in apps {
        for outcome in Redemption::ALL {
            let redemptions = series.sum(|counts| &counts.redemptions[outcome as usize]);
            // A rate of failures begins with the first one only where zero was seen before it.
            if !app.is_empty() {
                text.sample(
                    REDEMPTIONS,
                    &[("app", *app), ("outcome", outcome.as_str())],
                    redemptions,
                );
            }
        }
    }
}

impl AppSeries {
    fn sum(&self, count: impl Fn(&Counts) -> &AtomicU64) -> u64 {
        self.0
            .all()
            .map(|counts| count(counts).load(Ordering::Relaxed))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_where_their_numbers_say() {
        // Arrays are indexed by what the enums are as numbers, and written in the order of these lists.
        for (index, class) in Class::ALL.into_iter().enumerate() {
            assert_eq!(class as usize, index, "{}", class.as_str());
        }
        for (index, lane) in Lane::ALL.into_iter().enumerate() {
            assert_eq!(lane as usize, index, "{}", lane.as_str());
        }
        for (index, outcome) in Redemption::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index, "{}", outcome.as_str());
        }
    }

    #[test]
    fn bounds_ascend() {
        for bounds in [&TOOK[..], &WAITED, &TTL] {
            assert!(bounds.is_sorted());
        }
    }
}
