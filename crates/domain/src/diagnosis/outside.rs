//! What lies outside the grant: clocks, the provider, our own store.

use std::time::Duration;

use super::evidence::{Calls, Evidence, Gap, Hour};
use super::words::{ahead, count, lasting, times};
use super::{Look, Weight};
use crate::connection::Health;
use crate::event::EventKind;
use crate::redemption::QUIET_TIME;
use crate::time::Timestamp;

/// A clock may always be off by so much.
const OFFSET_ALWAYS: Duration = Duration::from_secs(5);
/// More is wrong however large the buffer.
const OFFSET_NEVER: Duration = Duration::from_secs(30);

/// A clock is off by more than a quarter of the refresh buffer, at least 5 s, at most 30 s.
pub(super) fn clock_skew(evidence: &Evidence<'_>) -> Look {
    let limit = (evidence.buffer() / 4).clamp(OFFSET_ALWAYS, OFFSET_NEVER);
    let limit_ms = i64::try_from(limit.as_millis()).unwrap_or(i64::MAX);
    let store = match &evidence.machine_ahead_ms {
        Ok(Some(by)) => format!("this machine's clock is {} the database's", ahead(*by)),
        Ok(None) => "the store has no clock of its own".to_owned(),
        Err(gap) => format!("the database's clock was not read: {}", gap.why()),
    };
    let provider = match &evidence.provider_clock {
        Ok(offset) => format!(
            "Evergrant's time is {} the provider's (by its Date header, give or take {})",
            ahead(offset.ahead_ms),
            lasting(Duration::from_millis(offset.give_or_take_ms.unsigned_abs()))
        ),
        Err(gap) => format!("the provider's clock was not read: {}", gap.why()),
    };
    let said = format!("{provider}; {store}; {} is forgiven here", lasting(limit));
    let action = "Set the clocks right: let the machines of Evergrant and of its database follow a time service (NTP, chrony), and look why they do not. Nobody has to reconnect.";
    if let Ok(offset) = &evidence.provider_clock
        && offset.ahead_ms.abs().saturating_sub(offset.give_or_take_ms) > limit_ms
    {
        return Look::found(
            Weight::Hurts,
            said,
            format!(
                "Evergrant's time is {} the provider's. Tokens are renewed too early or too late by that, times in records and logs are off, and what a job says of when it was enqueued is misread.",
                ahead(offset.ahead_ms)
            ),
            action.to_owned(),
        );
    }
    if let Ok(Some(by)) = evidence.machine_ahead_ms
        && by.abs() > limit_ms
    {
        return Look::found(
            Weight::Hurts,
            said,
            format!(
                "The clock of the machine that Evergrant runs on is {} the database's. Evergrant itself goes by the database's; whoever compares expires_at with this machine's clock takes live tokens for ended ones, or the other way round.",
                ahead(by)
            ),
            action.to_owned(),
        );
    }
    match (&evidence.provider_clock, &evidence.machine_ahead_ms) {
        (Ok(_), Ok(_)) => Look::Clear(said),
        // One of the two is enough to go on with, and not enough to call the other right.
        (Ok(_), Err(_)) | (Err(_), Ok(Some(_))) => Look::PassedOver(said),
        (Err(_), Ok(None) | Err(_)) if evidence.is_proven() => Look::PassedOver(said),
        (Err(_), Ok(None) | Err(_)) => Look::Open(said),
    }
}

/// A limit that was met so lately is still being met.
const STILL: Duration = Duration::from_secs(15 * 60);

/// The calls of the hour that is running and of the one before.
fn lately(hours: &[Hour], now: Timestamp) -> Calls {
    let since = now.before(Duration::from_secs(2 * 3600));
    let mut sum = Calls::default();
    for hour in hours.iter().filter(|hour| hour.began_at > since) {
        sum.add(&hour.calls);
    }
    sum
}

/// The provider answers 429.
pub(super) fn rate_limited(evidence: &Evidence<'_>) -> Look {
    let last = evidence.connection.last.rate_limited_at;
    let said = match (last, &evidence.hours) {
        (None, _) => "no call has ever come back 429".to_owned(),
        (Some(at), Ok(hours)) => {
            let calls = lately(hours, evidence.now);
            format!(
                "the last 429 came at {}; {} of {} in this hour and the last one came back 429",
                evidence.when(at),
                calls.rate_limited,
                count(calls.of_the_provider(), "call"),
            )
        }
        (Some(at), Err(_)) => format!("the last 429 came at {}", evidence.when(at)),
    };
    let Some(at) = last.filter(|at| *at >= evidence.since() && evidence.now.since(*at) <= STILL) else {
        return Look::Clear(said);
    };
    let told = evidence
        .history
        .iter()
        .flatten()
        .rfind(|line| line.kind == EventKind::RateLimited.as_str())
        .map_or(String::new(), |line| format!(" ({})", line.detail));
    Look::found(
        Weight::Hurts,
        format!("{said}{told}"),
        format!("The provider limits this account's calls: the last 429 came at {}. The token is valid and the grant is alive.", evidence.when(at)),
        "Wait for as long as the answers' Retry-After says, then call less: batch reads, spread backfills (with the header Evergrant-Lane: backfill), and let every caller of this account go through the gateway, so that they share one budget.".to_owned(),
    )
}

/// So many calls of a hundred may end in the provider's own trouble before it counts as one.
const TROUBLED_SHARE: u64 = 20;
/// And at least so many.
const TROUBLED_MIN: u64 = 3;

const WAIT: &str = "Wait: Evergrant tries again by itself, and backs off meanwhile. Look at the provider's status page, and whether this machine reaches it. Nobody has to reconnect.";

/// The provider does not answer, or answers with its own trouble.
pub(super) fn provider_outage(evidence: &Evidence<'_>) -> Look {
    let connection = evidence.connection;
    let now = evidence.now;
    let (weight, serves) = if now >= connection.ends.hard {
        (
            Weight::Stops,
            format!(
                "the token at hand ended at {}",
                evidence.when(connection.ends.expires)
            ),
        )
    } else {
        (
            Weight::Hurts,
            format!(
                "the token at hand serves until {}",
                evidence.when(connection.ends.expires)
            ),
        )
    };
    if let Some(look) = refreshing_fails(evidence, weight, &serves) {
        return look;
    }
    let silent = [
        evidence.provider_clock.as_ref().err(),
        evidence.refresh_token.as_ref().err(),
        evidence.access_token.as_ref().err(),
    ]
    .into_iter()
    .flatten()
    .find_map(|gap| match gap {
        Gap::Silent(code) => Some(code),
        Gap::NotAsked(_) | Gap::ClientRefused(_) => None,
    });
    if let Some(code) = silent {
        return Look::found(
            weight,
            format!(
                "the provider gave no usable answer when it was asked at {} ({code}); {serves}",
                evidence.when(now)
            ),
            format!(
                "The provider does not answer as it should: asked at {}, it gave no usable answer ({code}); {serves}.",
                evidence.when(now)
            ),
            WAIT.to_owned(),
        );
    }
    let hours = match &evidence.hours {
        Ok(hours) => hours,
        Err(gap) => return Look::Open(format!("what calls did could not be read: {}", gap.why())),
    };
    if let Err(gap) = &evidence.standing {
        return Look::Open(format!(
            "what is known of its token endpoint could not be read: {}",
            gap.why()
        ));
    }
    let calls = lately(hours, now);
    let asked = calls.of_the_provider();
    let refused = match calls.refused {
        0 => String::new(),
        number => format!(
            "; {} more {} refused here before anything was sent, which says nothing of the provider",
            number,
            if number == 1 { "was" } else { "were" }
        ),
    };
    let said = format!(
        "{} of {} in this hour and the last one ended in the provider's own trouble, and no refresh has failed since the last one that succeeded{refused}",
        calls.unavailable,
        count(asked, "call")
    );
    if calls.unavailable >= TROUBLED_MIN && calls.unavailable * 100 >= asked * TROUBLED_SHARE {
        return Look::found(
            Weight::Hurts,
            said,
            format!(
                "The provider is in trouble: {} of {} in this hour and the last one got 5xx, 423, 477 or no answer.",
                calls.unavailable,
                count(asked, "call")
            ),
            WAIT.to_owned(),
        );
    }
    Look::Clear(said)
}

/// The token endpoint's part of it.
fn refreshing_fails(evidence: &Evidence<'_>, weight: Weight, serves: &str) -> Option<Look> {
    let connection = evidence.connection;
    let now = evidence.now;
    if let Some(trouble) = &connection.trouble {
        let times = times(trouble.failures.into());
        let (code, failed_at) = (&trouble.code, evidence.when(trouble.failed_at));
        return Some(Look::found(
            weight,
            format!(
                "refreshing failed {times} in a row, last at {failed_at} with {code}; the next try is at {}; {serves}",
                evidence.when(trouble.next_attempt_at)
            ),
            format!(
                "The provider's token endpoint is in trouble: refreshing failed {times} in a row ({code}), last at {failed_at}; {serves}."
            ),
            WAIT.to_owned(),
        ));
    }
    if connection.health(now, QUIET_TIME) == Some(Health::Ambiguous) {
        let since = evidence.when(connection.intent.as_ref().map_or(now, |intent| intent.first_at));
        return Some(Look::found(
            weight,
            format!(
                "a redemption that began at {since} got no answer, and nobody knows how it ended; {serves}"
            ),
            format!(
                "A redemption that began at {since} never got an answer: the connection to the provider was cut, or a process died; {serves}."
            ),
            format!(
                "Wait for the next refresh, which finds out by itself; to try at once: evergrant refresh {}.",
                connection.id
            ),
        ));
    }
    let standing = evidence.standing.as_ref().ok()?;
    let breaker = standing
        .endpoint
        .as_ref()
        .filter(|breaker| breaker.rest_until > now)?;
    let (code, until) = (&breaker.code, evidence.when(breaker.rest_until));
    Some(Look::found(
        weight,
        format!(
            "the app's token endpoint failed {} in a row ({code}) and is left alone until {until}; {serves}",
            times(breaker.failures.into())
        ),
        format!(
            "The provider's token endpoint fails for every connection of this app ({code}), so it is left alone until {until}; {serves}."
        ),
        WAIT.to_owned(),
    ))
}

/// A store that takes longer for one read is in trouble.
const STORE_SLOW: Duration = Duration::from_secs(1);

/// Our own store.
pub(super) fn store_trouble(evidence: &Evidence<'_>) -> Look {
    let lifeboat = match &evidence.afloat {
        Ok(1) => "1 answer waits for it in the lifeboat".to_owned(),
        Ok(number) => format!("{number} answers wait for it in the lifeboat"),
        Err(gap) => format!("the lifeboat was not looked into: {}", gap.why()),
    };
    let said = format!(
        "the store answered within {}, and {lifeboat}",
        lasting(evidence.store_took),
    );
    if let Ok(afloat @ 1..) = evidence.afloat {
        return Look::found(
            Weight::Hurts,
            said,
            match afloat {
                1 => "1 answer of the provider's could not be stored and lies in the lifeboat: the token in it serves, and is lost if this machine is.".to_owned(),
                _ => format!("{afloat} answers of the provider's could not be stored and lie in the lifeboat: the tokens in them serve, and are lost if this machine is."),
            },
            "Bring the database back (disk, connections, permissions); what lies in the lifeboat is stored by itself then. Do not delete the lifeboat folder.".to_owned(),
        );
    }
    if evidence.store_took > STORE_SLOW {
        return Look::found(
            Weight::Hurts,
            said,
            format!(
                "Evergrant's own store is slow: one read took {}. Refreshes and connecting wait for it.",
                lasting(evidence.store_took)
            ),
            "Look at the database: load, locks, disk, network. Nobody has to reconnect.".to_owned(),
        );
    }
    let gaps: Vec<_> = [
        evidence.history.as_ref().err().map(|gap| ("its history", gap)),
        evidence
            .hours
            .as_ref()
            .err()
            .map(|gap| ("what its calls did", gap)),
        evidence
            .standing
            .as_ref()
            .err()
            .map(|gap| ("its app's state", gap)),
    ]
    .into_iter()
    .flatten()
    .collect();
    if let Some((what, gap)) = gaps.first() {
        return Look::found(
            Weight::Hurts,
            format!("the store gave the record and not {what}: {}", gap.why()),
            format!("Evergrant's own store answers in part only: {what} could not be read ({}).", gap.why()),
            "Look at the database: load, locks, disk, network, and whether its schema is the current one (evergrant migrate --check).".to_owned(),
        );
    }
    match &evidence.afloat {
        // A process that has no lifeboat has nothing in it.
        Ok(_) | Err(Gap::NotAsked(_)) => Look::Clear(said),
        Err(_) => Look::Open(said),
    }
}
