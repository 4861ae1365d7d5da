//! What callers do with tokens and answers, and whether they call at all.

use std::time::Duration;

use super::evidence::{BUCKETS, Evidence, Happened, Hour};
use super::words::{count, lasting, times};
use super::{Look, Weight};
use crate::connection::{ConnectionStatus, Kind};
use crate::event::EventKind;
use crate::id::Version;
use crate::time::Timestamp;

/// A call that was under way while its token was replaced is over by then; for short-lived tokens a tenth of their life.
const UNDER_WAY_MAX: Duration = Duration::from_secs(10);

/// The oldest causes are blamed on what stopped the connection, not on what callers did before.
fn is_stopped(evidence: &Evidence<'_>) -> bool {
    evidence.connection.status != ConnectionStatus::Active
}

/// An access token that was replaced, or that had ended, was presented all the same.
pub(super) fn stale_token_reuse(evidence: &Evidence<'_>) -> Look {
    let history = match &evidence.history {
        Ok(history) => history,
        Err(gap) => return Look::Open(format!("the history could not be read: {}", gap.why())),
    };
    let under_way = UNDER_WAY_MAX.min(evidence.lifetime() / 10);
    // What callers report is all that shows it. A 401 that the gateway itself met with an older version is no caller's doing: the
    // call was under way, or that process had not heard of the newer one yet, and it is repeated.
    let reports = evidence.of_kind(history, EventKind::TokenReported.as_str());
    let late: Vec<_> = reports
        .iter()
        .filter(|line| line.status_code == Some(401))
        .filter_map(|line| stale(history, line, under_way))
        .collect();
    let handed_out = match &evidence.hours {
        Ok(hours) => count(evidence.calls(hours).handed_out, "token"),
        Err(_) => "an unknown number of tokens".to_owned(),
    };
    let Some(last) = late.iter().max_by_key(|stale| stale.at) else {
        return Look::Clear(format!(
            "no token was presented late since {}: {} of a rejected token, none of them for one that had been replaced or had ended; {handed_out} handed out",
            evidence.when(evidence.since()),
            count(reports.len() as u64, "report"),
        ));
    };
    let mut who: Vec<&str> = late.iter().filter_map(|stale| stale.who).collect();
    who.sort_unstable();
    who.dedup();
    let what = format!(
        "a token was presented late {}, last at {}: version {} {}; version {} stands now, and {handed_out} handed out since {}{}",
        times(late.len() as u64),
        evidence.when(last.at),
        last.version.number(),
        last.how,
        evidence.connection.version.number(),
        evidence.when(evidence.since()),
        if who.is_empty() {
            String::new()
        } else {
            format!("; told by {}", who.join(", "))
        },
    );
    if is_stopped(evidence) {
        return Look::Clear(format!("{what}; that ends no grant"));
    }
    Look::found(
        Weight::Hurts,
        what,
        format!(
            "A caller keeps an access token and goes on using it after it was replaced or had ended: version {} {}, at {}. Evergrant holds a newer one; the grant is alive.",
            last.version.number(),
            last.how,
            evidence.when(last.at),
        ),
        format!(
            "Let that caller ask for the token right before each call (GET /v1/connections/{}/token), or call through the gateway, which chooses it itself; it must not keep one in a variable, a job or a client that was made once.",
            evidence.connection.id
        ),
    )
    .met_last(Some(last.at), evidence.now)
}

struct Stale<'h> {
    at: Timestamp,
    version: Version,
    how: String,
    who: Option<&'h str>,
}

/// Whether this line tells of a token that was presented long after it was replaced, or after its end.
fn stale<'h>(history: &[Happened], line: &'h Happened, under_way: Duration) -> Option<Stale<'h>> {
    let version = line.token_version?;
    let found = |how| {
        Some(Stale {
            at: line.at,
            version,
            how,
            // As the report was noted: "API key … says that …".
            who: line.detail.split_once(" says that ").map(|(who, _)| who),
        })
    };
    // How long the token that is reported had to live is known where it is the one that stood then, and its end was known at all.
    if let Some(seconds) = line.seconds_remaining
        && seconds < 0
        && !under_way.is_zero()
        && seconds.unsigned_abs() > under_way.as_secs()
    {
        return found(format!(
            "was presented {} after it had ended",
            lasting(Duration::from_secs(seconds.unsigned_abs()))
        ));
    }
    if version >= line.version {
        return None;
    }
    let replaced_at = history
        .iter()
        .find(|other| other.version > version)
        .map(|other| other.at);
    match replaced_at {
        Some(at) if line.at.since(at) <= under_way => None,
        Some(at) => found(format!(
            "was presented {} after it had been replaced",
            lasting(line.at.since(at))
        )),
        None => found("had been replaced long before".to_owned()),
    }
}

/// Jobs wait for longer than the buffer, so a token that was fetched with them is dead when they run.
pub(super) fn queue_delay(evidence: &Evidence<'_>) -> Look {
    let hours = match &evidence.hours {
        Ok(hours) => hours,
        Err(gap) => return Look::Open(format!("what calls did could not be read: {}", gap.why())),
    };
    let calls = evidence.calls(hours);
    let told: u64 = calls.by_delay.iter().sum();
    let buffer = evidence.buffer();
    let dead: u64 = calls.by_life[0];
    let near: u64 = calls.by_life[..3].iter().sum();
    let lives = format!(
        "of {}, {near} left with less than 120 s of the token's life and {dead} after its end",
        count(calls.by_life.iter().sum(), "call")
    );
    let late = later_than(&calls.by_delay, buffer);
    let is_late = late > 0 && late * 20 >= told;
    if told == 0 && dead == 0 {
        return Look::Clear(format!(
            "{lives}; none said when its job was enqueued (header Evergrant-Enqueued-At)"
        ));
    }
    let delays = if told == 0 {
        "none said when its job was enqueued (header Evergrant-Enqueued-At)".to_owned()
    } else {
        format!(
            "{} said when their jobs were enqueued, {late} of them more than the buffer of {} before, 95 of 100 at most {}",
            count(told, "call"),
            lasting(buffer),
            slowest(&calls.by_delay)
        )
    };
    let evidence_said = format!("since {}: {delays}; {lives}", evidence.when(evidence.since()));
    if evidence.connection.kind == Kind::Static || (!is_late && dead == 0) {
        return Look::Clear(evidence_said);
    }
    if is_stopped(evidence) {
        return Look::Clear(format!("{evidence_said}; that ends no grant"));
    }
    let summary = if is_late {
        format!(
            "Jobs wait in their queue for longer than a token is sure to live: {late} of {told} calls came more than {} after their job was enqueued. A token that was fetched when the job was enqueued has ended when it runs.",
            lasting(buffer)
        )
    } else {
        format!(
            "{} left with a token that had ended already.",
            count(dead, "call")
        )
    };
    Look::found(
        Weight::Hurts,
        evidence_said,
        summary,
        buffer_asked_for(evidence, &calls.by_delay),
    )
    .met_last(last_late(evidence, hours), evidence.now)
}

/// The end of the last hour in which a call came too late for its token, for all that is known of it.
fn last_late(evidence: &Evidence<'_>, hours: &[Hour]) -> Option<Timestamp> {
    hours
        .iter()
        .filter(|hour| later_than(&hour.calls.by_delay, evidence.buffer()) > 0 || hour.calls.by_life[0] > 0)
        .map(|hour| hour.began_at.after(HOUR).min(evidence.now))
        .max()
}

/// Which buffer the measured delays ask for, or that none does.
fn buffer_asked_for(evidence: &Evidence<'_>, by_delay: &[u64; BUCKETS.len() + 1]) -> String {
    let most = evidence.lifetime() / 2;
    let when_it_runs = "put the connection's id into the job and let it ask for its token when it runs, or call through the gateway";
    let app = &evidence.connection.app;
    match slowest_bound(by_delay) {
        Some(asked) if asked <= most && asked > evidence.buffer() => {
            let setting = match asked.as_secs() {
                0..=120 => "refresh_profile = \"realtime\"".to_owned(),
                121..=300 => "refresh_profile = \"queue\"".to_owned(),
                seconds => format!("refresh_buffer = \"{}m\"", seconds.div_ceil(60)),
            };
            format!(
                "Set {setting} in [apps.{app}]: the measured delays ask for {}. Better still, {when_it_runs}.",
                lasting(asked)
            )
        }
        _ => format!(
            "No buffer covers such delays (it is at most half of a token's life, {} here): {when_it_runs}.",
            lasting(most)
        ),
    }
}

/// How many were delayed by more than `length` for certain.
fn later_than(by_delay: &[u64; BUCKETS.len() + 1], length: Duration) -> u64 {
    by_delay
        .iter()
        .enumerate()
        .filter(|(place, _)| *place > 0 && BUCKETS[place - 1] >= length.as_secs())
        .map(|(_, number)| number)
        .sum()
}

/// The upper end of the bucket that the slowest but 5 of 100 lie in; `None` beyond the last.
fn slowest_bound(by_delay: &[u64; BUCKETS.len() + 1]) -> Option<Duration> {
    let all: u64 = by_delay.iter().sum();
    let mut seen = 0;
    for (number, bound) in by_delay.iter().zip(BUCKETS) {
        seen += number;
        if seen * 20 >= all * 19 {
            return Some(Duration::from_secs(bound));
        }
    }
    None
}

fn slowest(by_delay: &[u64; BUCKETS.len() + 1]) -> String {
    match slowest_bound(by_delay) {
        Some(bound) => lasting(bound),
        None => "more than 30 min".to_owned(),
    }
}

/// Which answer is taken for an ended token.
#[derive(Clone, Copy)]
pub(super) enum Misread {
    /// 403.
    Permission,
    /// 429.
    RateLimit,
}

/// A refresh that is forced so soon after such an answer is meant to mend it.
const SOON: Duration = Duration::from_secs(60);

/// Somebody took a 403 or a 429 for an ended token: reported it as one, or forced a refresh right after it.
pub(super) fn misread(evidence: &Evidence<'_>, misread: Misread) -> Look {
    let (status, kind) = match misread {
        Misread::Permission => (403, EventKind::PermissionDenied),
        Misread::RateLimit => (429, EventKind::RateLimited),
    };
    let history = match &evidence.history {
        Ok(history) => history,
        Err(gap) => return Look::Open(format!("the history could not be read: {}", gap.why())),
    };
    let answers = evidence.of_kind(history, kind.as_str());
    let reports = evidence.of_kind(history, EventKind::TokenReported.as_str());
    let reported: Vec<_> = reports
        .iter()
        .filter(|line| line.status_code == Some(status))
        .collect();
    let is_after = |line: &&&Happened| {
        answers
            .iter()
            .any(|answer| answer.at <= line.at && line.at.since(answer.at) <= SOON)
    };
    let asked = evidence.of_kind(history, EventKind::RefreshForced.as_str());
    let forced: Vec<_> = asked.iter().filter(is_after).collect();
    let Some(last) = reported
        .iter()
        .map(|line| line.at)
        .chain(forced.iter().map(|line| line.at))
        .max()
    else {
        return Look::Clear(format!(
            "since {}: {} with {status}, and neither a report of a rejected token nor a forced refresh because of it ({} forced in all)",
            evidence.when(evidence.since()),
            count(answers.len() as u64, "answer"),
            asked.len(),
        ));
    };
    let mut ways = Vec::new();
    if !reported.is_empty() {
        ways.push(format!(
            "reported as a rejected token {}",
            times(reported.len() as u64)
        ));
    }
    if !forced.is_empty() {
        ways.push(format!(
            "followed by a forced refresh within {} {}",
            lasting(SOON),
            times(forced.len() as u64)
        ));
    }
    let what = format!(
        "a {status} was {}, last at {}",
        ways.join(" and "),
        evidence.when(last)
    );
    if is_stopped(evidence) {
        return Look::Clear(format!("{what}; that ends no grant"));
    }
    let (summary, action) = match misread {
        Misread::Permission => {
            let missing = super::grant::missing_now(evidence, history);
            let scopes = if missing.is_empty() {
                "the right that its answer names".to_owned()
            } else {
                missing.join(", ")
            };
            (
                format!("A caller takes 403 for an ended token and asks for a new one, {} since {}. The token is valid; what it lacks is a permission ({scopes}), and a new token has the same ones.", times((reported.len() + forced.len()) as u64), evidence.when(evidence.since())),
                format!("Let the caller refresh on 401 alone, and never on 403. Then get the permission: have {scopes} in the scopes of [apps.{}], and let the customer agree again (evergrant reconnect {}).", evidence.connection.app, evidence.connection.id),
            )
        }
        Misread::RateLimit => (
            format!("A caller takes 429 for an ended token and asks for a new one, {} since {}. The token is valid; the provider only wants fewer calls, and a refresh is one more.", times((reported.len() + forced.len()) as u64), evidence.when(evidence.since())),
            "Let the caller refresh on 401 alone; on 429 it waits for as long as Retry-After says, or the limit's interval, and tries again with the same token.".to_owned(),
        ),
    };
    Look::found(Weight::Hurts, what, summary, action).met_last(Some(last), evidence.now)
}

/// Calls that were the rule and have stopped. Quiet is measured against the connection's own rhythm:
///
/// - one that was never called, or in fewer than [`HOURS_MIN`] different hours, has no rhythm that could break;
/// - else the longest pause between two hours with calls is its usual one, and quiet means more than twice as long, and never
///   less than [`QUIET_MIN`], because within an hour nobody knows when its calls came;
/// - but where it is called all the time at this time of day, yesterday and today, quiet means [`QUIET_BUSY`], and [`QUIET_EVEN`] where
///   calls are many and came evenly over the hour in which they stopped (see [`busy_rhythm`]).
pub(super) fn no_traffic(evidence: &Evidence<'_>) -> Look {
    let connection = evidence.connection;
    let Some(last) = connection.last.call_at else {
        return Look::Clear(format!(
            "no call has ever come, so none has stopped coming (connected at {})",
            evidence.when(connection.connected_at)
        ));
    };
    let hours = match &evidence.hours {
        Ok(hours) => hours,
        Err(gap) => return Look::Open(format!("what calls did could not be read: {}", gap.why())),
    };
    let quiet = evidence.now.since(last);
    let Some(usual) = usual_pause(hours) else {
        return Look::Clear(format!(
            "the last call came at {}; it is called too seldom to say that this is unusual",
            evidence.when(last),
        ));
    };
    let calls: u64 = hours.iter().map(|hour| hour.calls.all).sum();
    let calls = count(calls, "call");
    let (allowed, rhythm) = match busy_rhythm(hours, last, evidence.now) {
        Some((allowed, hourly)) => (
            allowed,
            format!(
                "the last call came at {}; {calls} in two days, and about {hourly} an hour at this time of day, yesterday and today",
                evidence.when(last),
            ),
        ),
        None => (
            (usual * 2).max(QUIET_MIN),
            format!(
                "the last call came at {}; {calls} in two days, never more than {} apart",
                evidence.when(last),
                lasting(usual.max(HOUR)),
            ),
        ),
    };
    if quiet <= allowed || is_stopped(evidence) {
        return Look::Clear(rhythm);
    }
    Look::found(
        Weight::Hurts,
        rhythm,
        format!(
            "No call has come since {}, and calls used to come: {calls} in two days. The grant is healthy, so it is not Evergrant and not the customer's consent.",
            evidence.when(last)
        ),
        format!(
            "Look at whatever makes the calls: is the worker running, does its schedule or webhook still fire, does it still use the id {} and a key that is valid (evergrant keys list)?",
            connection.id
        ),
    )
}

const HOUR: Duration = Duration::from_secs(3600);
const HOURS_MIN: usize = 3;
const QUIET_MIN: Duration = Duration::from_secs(2 * 3600);

/// A job that runs in each hour runs at least so often, or some hour would be without it.
const QUIET_BUSY: Duration = Duration::from_secs(75 * 60);
/// So many calls in an hour are more than one a few minutes, in whatever order they come.
const BUSY_MIN: u64 = 12;

/// Calls that come all through the hour do not pause for so long.
const QUIET_EVEN: Duration = Duration::from_secs(20 * 60);
const EVEN_MIN: u64 = 60;

/// How long a pause may be, and how many calls come in an hour, for a connection that is called all the time at this time of day:
/// in each of the three hours before the one in which the last call came, and yesterday from an hour before that until an hour
/// after now. A day that ends in the evening, a weekend and a job of the night are no such time.
///
/// Within an hour only a count is known. Calls came evenly if those of the last hour are as many as the part of it that had gone
/// by asks for, give or take three tenths. A burst once or a few times an hour is complete when its hour has hardly begun or long
/// before it ends, so it is not taken for that: the part is a quarter to three quarters.
fn busy_rhythm(hours: &[Hour], last: Timestamp, now: Timestamp) -> Option<(Duration, u64)> {
    const DAY: i64 = 24;
    let length = i64::try_from(HOUR.as_millis()).unwrap_or(i64::MAX);
    let number = |at: Timestamp| at.millis().div_euclid(length);
    let calls_in = |number_of_hour: i64| {
        hours
            .iter()
            .filter(|hour| number(hour.began_at) == number_of_hour)
            .map(|hour| hour.calls.all)
            .sum::<u64>()
    };
    let (stopped_in, runs) = (number(last), number(now));
    let before: Vec<u64> = (stopped_in - 3..stopped_in).map(calls_in).collect();
    let (fewest, most) = (before.iter().copied().min()?, before.iter().copied().max()?);
    let is_busy = fewest >= BUSY_MIN
        && (stopped_in - DAY - 1..=runs - DAY + 1).all(|number_of_hour| calls_in(number_of_hour) >= BUSY_MIN);
    if !is_busy {
        return None;
    }
    let mean = before.iter().sum::<u64>() / 3;
    let gone_by = last.millis().rem_euclid(length).unsigned_abs();
    let whole = length.unsigned_abs();
    // Calls that the part of the hour asks for, times ten.
    let asked_for = mean * gone_by * 10 / whole;
    let came = calls_in(stopped_in) * 10;
    let is_even = fewest >= EVEN_MIN
        && most <= fewest * 2
        && (whole / 4..=whole * 3 / 4).contains(&gone_by)
        && came * 10 >= asked_for * 7
        && came * 10 <= asked_for * 13;
    Some((if is_even { QUIET_EVEN } else { QUIET_BUSY }, mean))
}

/// The longest pause between two hours with calls, from the end of one to the beginning of the next; `None` where there are too
/// few to speak of a rhythm.
fn usual_pause(hours: &[Hour]) -> Option<Duration> {
    let active: Vec<Timestamp> = hours
        .iter()
        .filter(|hour| hour.calls.all > 0)
        .map(|hour| hour.began_at)
        .collect();
    if active.len() < HOURS_MIN {
        return None;
    }
    active
        .windows(2)
        .map(|pair| pair[1].since(pair[0].after(HOUR)))
        .max()
}
