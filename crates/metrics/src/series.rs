//! What is counted for one app.

use std::array;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use evergrant_domain::api_answer::Class;
use evergrant_domain::call_budget::Lane;
use evergrant_domain::tally::EndedBy;

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

/// By its first digit; what is no answer of the provider's has none, and what was never asked of it is told apart.
const CODE_CLASSES: [&str; 8] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx", "other", "refused"];
const NONE: usize = 0;
const OTHER: usize = 6;
const REFUSED: usize = 7;

/// The answers that calls of a class usually have, as indexes of [`CODE_CLASSES`]. They are there from zero: Prometheus sees that a
/// number rose only where it saw it before, and the first calls of an outage are many.
fn usual_code_classes(class: Class) -> &'static [usize] {
    match class {
        Class::Ok | Class::StaleToken => &[2],
        Class::Expired | Class::Rejected => &[NONE, 2, 4],
        Class::RejectedAfterRefresh | Class::MalformedToken | Class::StaticRejected => &[NONE, 4],
        Class::RateLimited | Class::ClientError => &[REFUSED, 4],
        Class::PermissionDenied => &[4],
        // 423 and 477 are of it.
        Class::Unavailable => &[NONE, REFUSED, 4, 5],
        Class::Timeout => &[NONE],
    }
}

/// What a call was when it ended.
#[derive(Debug, Clone, Copy)]
pub struct CallSeen {
    /// Why it failed or was repeated.
    pub class: Class,
    /// Whose doing that was.
    pub ended_by: EndedBy,
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

    /// The word in metrics and traces.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Issued => "issued",
            Self::Lost => "lost",
            Self::GrantRefused => "grant_refused",
            Self::ClientRefused => "client_refused",
            Self::NotIssued => "not_issued",
        }
    }
}

/// What came of a refresh: of all that one process does at a time to get a connection a token that serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refresh {
    /// It redeemed the refresh token, and a new token set is there.
    Refreshed,
    /// Another process had just done so: its token set is used.
    Found,
    /// What was there served after all.
    NotNeeded,
    /// Nothing new came, now or a moment ago; the token at hand goes on serving.
    PutOff,
    /// The customer must reconnect.
    ReconnectRequired,
    /// The connection was disconnected, or there is none.
    Disconnected,
    /// The provider refuses the app's credentials.
    AppCredentialsRejected,
    /// The provider issued nothing, and no token serves.
    ProviderUnavailable,
    /// The store did not answer.
    StoreUnavailable,
    /// It took longer than anybody may wait.
    Overloaded,
    /// The connection's record does not open, or its app is not configured.
    Unusable,
}

impl Refresh {
    const ALL: [Self; 11] = [
        Self::Refreshed,
        Self::Found,
        Self::NotNeeded,
        Self::PutOff,
        Self::ReconnectRequired,
        Self::Disconnected,
        Self::AppCredentialsRejected,
        Self::ProviderUnavailable,
        Self::StoreUnavailable,
        Self::Overloaded,
        Self::Unusable,
    ];

    /// The word in metrics and traces.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refreshed => "refreshed",
            Self::Found => "found",
            Self::NotNeeded => "not_needed",
            Self::PutOff => "put_off",
            Self::ReconnectRequired => "reconnect_required",
            Self::Disconnected => "disconnected",
            Self::AppCredentialsRejected => "app_credentials_rejected",
            Self::ProviderUnavailable => "provider_unavailable",
            Self::StoreUnavailable => "store_unavailable",
            Self::Overloaded => "overloaded",
            Self::Unusable => "unusable",
        }
    }
}

/// Where a token set that was stored came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A customer's consent, the first or another one.
    Connect,
    /// Elsewhere: its record was imported.
    Import,
    /// A refresh token that was redeemed.
    Refresh,
}

impl Source {
    const ALL: [Self; 3] = [Self::Connect, Self::Import, Self::Refresh];

    fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Import => "import",
            Self::Refresh => "refresh",
        }
    }
}

/// The series of an app, or of one of its connections that was named. Cheap to clone; all clones are one.
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
    refreshes: [AtomicU64; Refresh::ALL.len()],
    token_sets: [AtomicU64; Source::ALL.len()],
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
            refreshes: array::from_fn(|_| AtomicU64::new(0)),
            token_sets: array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl AppSeries {
    /// The part of this thread. Taken where the look at the app's token is at hand, and used until the call has ended, on
    /// whichever thread that is.
    pub fn here(&self) -> Series {
        Series(self.0.held_here().clone())
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
        let code_class = match call.status_code {
            Some(code) => usize::from(code / 100).min(OTHER),
            None if call.ended_by == EndedBy::Us => REFUSED,
            None => NONE,
        };
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

    /// A refresh ended.
    pub fn refresh(&self, outcome: Refresh) {
        self.0.0.refreshes[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A token set was stored.
    pub fn token_set_stored(&self, source: Source) {
        self.0.0.token_sets[source as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// Whose series these are, as their labels say it.
pub(crate) struct Labelled<'a> {
    /// Empty for what ended before its app was known.
    pub(crate) app: &'a str,
    /// One that was named in the configuration.
    pub(crate) connection: Option<&'a str>,
    pub(crate) series: &'a AppSeries,
}

impl Labelled<'_> {
    /// Whether these are an app's: not one connection's, and not those of what ended before its app was known.
    fn is_whole_app(&self) -> bool {
        !self.app.is_empty() && self.connection.is_none()
    }

    /// All labels of a series, these among them, by name.
    fn with<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let mut labels = vec![("app", self.app)];
        labels.extend_from_slice(more);
        labels.extend(self.connection.map(|id| ("connection", id)));
        labels
    }
}

/// The series of every app.
pub(crate) fn write(apps: &[Labelled<'_>], text: &mut Exposition) {
    const CALLS: &str = "evergrant_calls_total";
    const BUDGET_WAIT: &str = "evergrant_budget_wait_seconds";
    text.family(
        CALLS,
        Kind::Counter,
        "Calls that ended, by why they failed or were repeated and by the provider's status.",
    );
    for app in apps {
        for class in Class::ALL {
            for (code_class, word) in CODE_CLASSES.iter().enumerate() {
                let calls = app.series.sum(|counts| &counts.calls[class as usize][code_class]);
                let is_usual = usual_code_classes(class).contains(&code_class);
                if calls > 0 || is_usual && app.is_whole_app() {
                    let labels = app.with(&[("class", class.as_str()), ("code_class", word)]);
                    text.sample(CALLS, &labels, calls);
                }
            }
        }
    }
    let mut histogram = |name: &str, help: &str, counted: &dyn Fn(&AppSeries) -> Counted| {
        text.family(name, Kind::Histogram, help);
        for app in apps {
            let counted = counted(app.series);
            if !counted.is_empty() {
                text.histogram(name, &app.with(&[]), &counted);
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
    for app in apps {
        for lane in Lane::ALL {
            let waited = app.series.0.all();
            let waited = Counted::of(waited.map(|counts| &counts.budget_waited[lane as usize]));
            if !waited.is_empty() {
                text.histogram(BUDGET_WAIT, &app.with(&[("lane", lane.as_str())]), &waited);
            }
        }
    }
    let refreshes = Refresh::ALL.map(Refresh::as_str);
    counters(
        apps,
        text,
        "evergrant_refreshes_total",
        "Refreshes that ended, by what came of them.",
        ("outcome", &refreshes),
        |counts| &counts.refreshes,
    );
    let redemptions = Redemption::ALL.map(Redemption::as_str);
    counters(
        apps,
        text,
        "evergrant_redemptions_total",
        "Refresh tokens presented to the provider, by what came of it.",
        ("outcome", &redemptions),
        |counts| &counts.redemptions,
    );
    let sources = Source::ALL.map(Source::as_str);
    counters(
        apps,
        text,
        "evergrant_token_sets_stored_total",
        "Token sets that the store has taken, by where they came from.",
        ("source", &sources),
        |counts| &counts.token_sets,
    );
}

/// One counter for each of an app's words, those at zero too: a rate of failures begins with the first one only where zero was
/// seen before it.
fn counters<const N: usize>(
    apps: &[Labelled<'_>],
    text: &mut Exposition,
    name: &str,
    help: &str,
    (label, words): (&str, &[&str; N]),
    counters: impl Fn(&Counts) -> &[AtomicU64; N],
) {
    text.family(name, Kind::Counter, help);
    for app in apps {
        for (index, word) in words.iter().enumerate() {
            let count = app.series.sum(|counts| &counters(counts)[index]);
            if count > 0 || !app.app.is_empty() {
                text.sample(name, &app.with(&[(label, word)]), count);
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
        for (index, outcome) in Refresh::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index, "{}", outcome.as_str());
        }
        for (index, source) in Source::ALL.into_iter().enumerate() {
            assert_eq!(source as usize, index, "{}", source.as_str());
        }
    }

    #[test]
    fn what_an_alert_asks_for_is_there_before_it_happens() {
        let series = AppSeries::default();
        series.here().call(&CallSeen {
            class: Class::Unavailable,
            ended_by: EndedBy::Provider,
            status_code: Some(302),
            took: Duration::ZERO,
            upstream_took: None,
            token_ttl: None,
        });
        let written = |app, connection| {
            let mut text = Exposition::new();
            let series = &series;
            let labelled = Labelled {
                app,
                connection,
                series,
            };
            write(&[labelled], &mut text);
            let text = text.into_text();
            let calls = text
                .lines()
                .filter(|line| line.starts_with("evergrant_calls_total{"))
                .map(str::to_owned);
            calls.collect::<Vec<_>>()
        };
        let of_app = written("crm", None);
        for line in [
            r#"evergrant_calls_total{app="crm",class="ok",code_class="2xx"} 0"#,
            r#"evergrant_calls_total{app="crm",class="unavailable",code_class="5xx"} 0"#,
            r#"evergrant_calls_total{app="crm",class="unavailable",code_class="3xx"} 1"#,
            r#"evergrant_calls_total{app="crm",class="timeout",code_class="none"} 0"#,
            r#"evergrant_calls_total{app="crm",class="rate_limited",code_class="refused"} 0"#,
            r#"evergrant_calls_total{app="crm",class="unavailable",code_class="refused"} 0"#,
        ] {
            assert!(of_app.iter().any(|there| there == line), "{line}: {of_app:?}");
        }
        assert_eq!(of_app.len(), 25, "and no pair that makes no sense: {of_app:?}");
        // Each connection that is named would bring as many.
        assert_eq!(written("crm", Some("acme")).len(), 1);
        assert_eq!(written("", None).len(), 1);
    }

    #[test]
    fn bounds_ascend() {
        for bounds in [&TOOK[..], &WAITED, &TTL] {
            assert!(bounds.is_sorted());
        }
    }
}
