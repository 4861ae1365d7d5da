//! What callers do with tokens and answers, and whether they call at all.

use std::time::Duration;

use super::evidence::{BUCKETS, Evidence, Happened, Hour};
use super::words::{count, lasting, shown, times};
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
    let reports = evidence.of_kind(history, EventKind::TokenReported.as_str());
    let calls = evidence.of_kind(history, EventKind::CallUnauthorized.as_str());
    let late: Vec<_> = reports
        .iter()
        .filter(|line| line.status_code == Some(401))
        .chain(&calls)
        .filter_map(|line| stale(history, line, under_way))
        .collect();
    let handed_out = evidence
        .hours
        .as_ref()
        .map_or(0, |hours| evidence.calls(hours).handed_out);
    let Some(last) = late.iter().max_by_key(|stale| stale.at) else {
        return Look::Clear(format!(
            "no token was presented late since {}: {} of a rejected token, none of them for one that had been replaced or had ended; {} handed out",
            shown(evidence.since()),
            count(reports.len() as u64, "report"),
            count(handed_out, "token"),
        ));
    };
    let what = format!(
        "a token was presented late {}, last at {}: version {} {}; version {} stands now, and {} handed out since {}",
        times(late.len() as u64),
        shown(last.at),
        last.version.number(),
        last.how,
        evidence.connection.version.number(),
        count(handed_out, "token"),
        shown(evidence.since()),
    );
    if is_stopped(evidence) {
        return Look::Clear(format!("{what}; that ends no grant"));
    }
    Look::found(
        Weight::Hurts,
        what,
        format!(
            "A caller keeps an access token and goes on using it after it was replaced or had ended: version {} {}. Evergrant holds a newer one; the grant is alive.",
            last.version.number(),
            last.how
        ),
        "Let that caller ask for the token right before each call (`GET /v1/connections/{id}/token`), or call through the gateway, which chooses it itself; it must not keep one in a variable, a job or a client that was made once."
            .to_owned(),
    )
}

struct Stale {
    at: Timestamp,
    version: Version,
    how: String,
}

/// Whether this line tells of a token that was presented long after it was replaced, or after its end.
fn stale(history: &[Happened], line: &Happened, under_way: Duration) -> Option<Stale> {
    let version = line.token_version?;
    let found = |how| {
        Some(Stale {
            at: line.at,
            version,
            how,
        })
    };
    // Only a caller that chose its token itself can be late: the gateway waits for a new one. How long the token that is reported
    // had to live is known where it is the one that stood then, and its end was known at all.
    if let Some(seconds) = line.seconds_remaining
        && seconds < 0
        && !under_way.is_zero()
        && seconds.unsigned_abs() > under_way.as_secs()
        && line.kind == EventKind::TokenReported.as_str()
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
            "{lives}; none said when its job was enqueued (`Evergrant-Enqueued-At`)"
        ));
    }
    let delays = if told == 0 {
        "none said when its job was enqueued (`Evergrant-Enqueued-At`)".to_owned()
    } else {
        format!(
            "{} said when their jobs were enqueued, {late} of them more than the buffer of {} before, 95 of 100 at most {}",
            count(told, "call"),
            lasting(buffer),
            slowest(&calls.by_delay)
        )
    };
    let evidence_said = format!("since {}: {delays}; {lives}", shown(evidence.since()));
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
        format!("{dead} calls left with a token that had ended already.")
    };
    Look::found(
        Weight::Hurts,
        evidence_said,
        summary,
        buffer_asked_for(evidence, &calls.by_delay),
    )
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
                "Set `{setting}` for the app {app}: the measured delays ask for {}. Better still, {when_it_runs}.",
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
            shown(evidence.since()),
            count(answers.len() as u64, "answer"),
            asked.len(),
        ));
    };
    let what = format!(
        "a {status} was reported as a rejected token {} and followed by a forced refresh within {} {}, last at {}",
        times(reported.len() as u64),
        lasting(SOON),
        times(forced.len() as u64),
        shown(last)
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
                format!("A caller takes 403 for an ended token and asks for a new one, {} since {}. The token is valid; what it lacks is a permission ({scopes}), and a new token has the same ones.", times((reported.len() + forced.len()) as u64), shown(evidence.since())),
                format!("Let the caller refresh on 401 alone, and never on 403. Then get the permission: reconnect with {scopes} in the app's scopes."),
            )
        }
        Misread::RateLimit => (
            format!("A caller takes 429 for an ended token and asks for a new one, {} since {}. The token is valid; the provider only wants fewer calls, and a refresh is one more.", times((reported.len() + forced.len()) as u64), shown(evidence.since())),
            "Let the caller refresh on 401 alone; on 429 it waits for as long as `Retry-After` says, or the limit's interval, and tries again with the same token.".to_owned(),
        ),
    };
    Look::found(Weight::Hurts, what, summary, action)
}

/// Calls that were the rule and have stopped. Quiet is measured against the connection's own rhythm:
///
/// - one that was never called, or in fewer than [`HOURS_MIN`] different hours, has no rhythm that could break;
/// - else the longest pause between two hours with calls is its usual one, and quiet means more than twice as long, and never
///   less than [`QUIET_MIN`], because within an hour nobody knows when its calls came.
pub(super) fn no_traffic(evidence: &Evidence<'_>) -> Look {
    let connection = evidence.connection;
    let Some(last) = connection.last.call_at else {
        return Look::Clear(format!(
            "no call has ever come, so none has stopped coming (connected at {})",
            shown(connection.connected_at)
        ));
    };
    let hours = match &evidence.hours {
        Ok(hours) => hours,
        Err(gap) => return Look::Open(format!("what calls did could not be read: {}", gap.why())),
    };
    let quiet = evidence.now.since(last);
    let Some(usual) = usual_pause(hours) else {
        return Look::Clear(format!(
            "the last call came at {}, {} ago; it is called too seldom to say that this is unusual",
            shown(last),
            lasting(quiet)
        ));
    };
    let allowed = (usual * 2).max(QUIET_MIN);
    let calls: u64 = hours.iter().map(|hour| hour.calls.all).sum();
    let rhythm = format!(
        "the last call came at {}, {} ago; {} in the two days before, never more than {} apart",
        shown(last),
        lasting(quiet),
        count(calls, "call"),
        lasting(usual.max(HOUR)),
    );
    if quiet <= allowed || is_stopped(evidence) {
        return Look::Clear(rhythm);
    }
    Look::found(
        Weight::Hurts,
        rhythm,
        format!(
            "No call has come since {}, and calls used to come: {calls} in the two days before. The grant is healthy, so it is not Evergrant and not the customer's consent.",
            shown(last)
        ),
        "Look at whatever makes the calls: is the worker running, does its schedule or webhook still fire, does it still use this connection's id and a key that is valid?".to_owned(),
    )
}

const HOUR: Duration = Duration::from_secs(3600);
const HOURS_MIN: usize = 3;
const QUIET_MIN: Duration = Duration::from_secs(2 * 3600);

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
