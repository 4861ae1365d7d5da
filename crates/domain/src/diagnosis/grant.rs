//! What became of the grant, and who may have had a hand in it.

use std::time::Duration;

use super::evidence::{Evidence, Gap, Happened, Hour, TokenLife};
use super::words::{count, lasting, times};
use super::{Cause, Check, Diagnosis, Finding, Look, Remedy, Verdict, Weight};
use crate::app::AppHealth;
use crate::connection::{Connection, ConnectionStatus, Kind, ReconnectReason};
use crate::event::{EventKind, RefreshReason};
use crate::time::Timestamp;

/// A connection that its owner disconnected is neither well nor ill; it says so, and nothing is looked at.
pub(super) fn disconnected(evidence: &Evidence<'_>) -> Diagnosis {
    let connection = evidence.connection;
    let (since, successor) = match &connection.status {
        ConnectionStatus::Disconnected { since, superseded_by } => (*since, superseded_by.as_ref()),
        ConnectionStatus::Active | ConnectionStatus::ReconnectRequired { .. } => (evidence.now, None),
    };
    let said = format!(
        "it was disconnected at {}, and its tokens were erased",
        evidence.when(since)
    );
    let (summary, action) = match successor {
        Some(id) => (
            format!(
                "This connection was retired at {}: {id} has taken its place.",
                evidence.when(since)
            ),
            format!("Use {id} instead."),
        ),
        None => (
            format!(
                "This connection was disconnected at {}. Its tokens are erased, and no call can be made with it.",
                evidence.when(since)
            ),
            format!(
                "If that was not meant, connect the customer anew, because a disconnected connection does not come back: evergrant connect --app {} --customer {}.",
                connection.app, connection.customer
            ),
        ),
    };
    let checks = Cause::ALL
        .into_iter()
        .map(|cause| Check {
            cause,
            finding: match cause {
                Cause::GrantRefused => Finding::Found,
                _ => Finding::Skipped,
            },
            evidence: said.clone(),
        })
        .collect();
    Diagnosis {
        verdict: Verdict::Cause(Cause::GrantRefused),
        summary,
        action,
        remedy: Remedy::AsSaid,
        checks,
    }
}

/// The token set is another account's.
pub(super) fn wrong_account(evidence: &Evidence<'_>) -> Look {
    let connection = evidence.connection;
    let pinned = connection.account.as_ref().map(|account| &account.id);
    let name = pinned.map_or("none".to_owned(), ToString::to_string);
    if let ConnectionStatus::ReconnectRequired {
        reason: ReconnectReason::AccountMismatch,
        since,
    } = &connection.status
    {
        let told = evidence
            .history
            .iter()
            .flatten()
            .rfind(|line| line.kind == EventKind::AccountMismatch.as_str())
            .map_or(String::new(), |line| format!(" ({})", line.detail));
        return Look::reconnect(
            format!(
                "the provider answered for another account than {name} at {}{told}",
                evidence.when(*since)
            ),
            format!(
                "The token that came at {} belongs to another account than {name}, which this connection is pinned to. It is kept and never used.",
                evidence.when(*since)
            ),
            format!(
                "Send the customer the reconnect link (evergrant reconnect {}) and have them choose account {name}; for the other account make a connection of its own.",
                connection.id
            ),
        );
    }
    let seen = [
        ("refresh", &evidence.refresh_token),
        ("access", &evidence.access_token),
    ];
    for (which, life) in seen {
        if let (Ok(TokenLife::Active { account: Some(found) }), Some(pinned)) = (life, pinned)
            && found != pinned
        {
            return Look::reconnect(
                format!(
                    "the provider says that the stored {which} token belongs to account {found}, and the record says {pinned}"
                ),
                format!(
                    "The record says account {pinned}, and the provider says that the stored token belongs to {found}: every call reaches the wrong customer's data."
                ),
                format!(
                    "Stop what calls it, then send the customer the reconnect link (evergrant reconnect {}) and have them choose account {pinned}.",
                    connection.id
                ),
            );
        }
    }
    let confirmed = seen.iter().any(
        |(_, life)| matches!(life, Ok(TokenLife::Active { account: Some(found) }) if Some(found) == pinned),
    );
    if confirmed {
        let hint = many_not_found(evidence).map_or(String::new(), |said| format!("; {said}"));
        return Look::Clear(format!(
            "the provider says that the token belongs to account {name}, as the record does{hint}"
        ));
    }
    let Some(pinned) = pinned else {
        return Look::PassedOver("no account is known of it yet, so there is none to compare".to_owned());
    };
    let gap = match (&evidence.refresh_token, &evidence.access_token) {
        (Err(gap), _) | (_, Err(gap)) => gap.why(),
        _ => "its answer names no account".to_owned(),
    };
    unasked(
        evidence,
        format!("the provider was not heard about account {pinned}: {gap}"),
    )
}

/// So many calls, and so large a part of them, come back 404 where a caller has the ids of another account.
const NOT_FOUND_MIN: u64 = 10;

/// The one sign of a caller that means another account than its connection's: the ids that it names do not exist there. No more than
/// a hint, because bodies are not read and no path says whose ids it has in it.
pub(super) fn many_not_found(evidence: &Evidence<'_>) -> Option<String> {
    let calls = evidence.calls(evidence.hours.as_ref().ok()?);
    (calls.not_found >= NOT_FOUND_MIN && calls.not_found * 2 >= calls.of_the_provider()).then(|| {
        let account = &evidence.connection.account;
        let account = account
            .as_ref()
            .map_or("this account".to_owned(), |account| format!("account {}", account.id));
        format!(
            "{} of {} since {} came back 404, as they do where a caller has the ids of another account: see whether it means {account}",
            calls.not_found,
            count(calls.of_the_provider(), "call"),
            evidence.when(evidence.since())
        )
    })
}

/// What the provider was to be asked: without it nothing is certain, but where a call has succeeded with this very token set, or
/// there is no such question to ask, that says as much.
fn unasked(evidence: &Evidence<'_>, sentence: String) -> Look {
    let cannot = [&evidence.refresh_token, &evidence.access_token]
        .into_iter()
        .all(|life| matches!(life, Err(Gap::NotAsked(_))));
    if evidence.is_proven()
        || (cannot
            && evidence
                .app
                .is_some_and(|app| app.provider.introspect_url.is_none()))
    {
        Look::PassedOver(sentence)
    } else {
        Look::Open(sentence)
    }
}

/// Somebody else wrote the record, or redeems the same grant.
pub(super) fn raced_write(evidence: &Evidence<'_>) -> Look {
    let connection = evidence.connection;
    let history = match &evidence.history {
        Ok(history) => history,
        Err(gap) => return Look::Open(format!("the history could not be read: {}", gap.why())),
    };
    let stored = connection.version.number();
    if let Some(told) = history
        .iter()
        .filter(|line| line.at >= connection.connected_at)
        .max_by_key(|line| line.version)
    {
        let at = evidence.when(told.at);
        if told.version > connection.version {
            return overwritten(
                connection,
                format!(
                    "the record holds version {stored}, and the history told of version {} at {at} already",
                    told.version.number()
                ),
            );
        }
        let same = told.version == connection.version;
        let noted = history
            .iter()
            .rfind(|line| line.version == connection.version && line.fingerprint.is_some());
        if let (Some(noted), Some(held)) = (noted, &evidence.fingerprint)
            && same
            && noted.fingerprint.as_ref() != Some(held)
        {
            let before = short(noted.fingerprint.as_deref().unwrap_or_default());
            let held = short(held);
            return overwritten(
                connection,
                format!(
                    "version {stored} was stored at {} with refresh token {before} (fingerprint), and the record holds {held} now: no event tells who wrote that",
                    evidence.when(noted.at)
                ),
            );
        }
    }
    let lost = evidence.of_kind(history, EventKind::StoreRegressed.as_str());
    if let Some(last) = lost.last() {
        return Look::found(
            Weight::Hurts,
            format!("the store showed an older version than a process held {}, last at {}", times(lost.len() as u64), evidence.when(last.at)),
            format!("The store went back in time: at {} it showed an older version than a process of ours held, which put the newer one back. A failover to a lagging replica, a restored backup, or a program that writes the table does this.", evidence.when(last.at)),
            "Find out what set the database back (failover without synchronous commit, a restore, two databases behind one name) and keep it from happening again; what was lost has been put back.".to_owned(),
        )
        .met_last(Some(last.at), evidence.now);
    }
    if let Some(look) = shared_grant(evidence) {
        return look;
    }
    let token = evidence.fingerprint.as_deref().map_or(String::new(), |held| {
        format!(", refresh token {} (fingerprint)", short(held))
    });
    let told = format!("version {stored}{token} is what the history says");
    // Only the two together tell it.
    match evidence
        .refresh_token
        .as_ref()
        .and(evidence.access_token.as_ref())
    {
        Err(gap) if connection.status == ConnectionStatus::Active && connection.kind == Kind::OAuth => {
            unasked(
                evidence,
                format!(
                    "{told}; whether somebody else holds the grant could not be asked: {}",
                    gap.why()
                ),
            )
        }
        _ => Look::Clear(format!("{told}, and nobody else seems to hold the grant")),
    }
}

/// As much of a fingerprint as tells two of them apart.
fn short(fingerprint: &str) -> String {
    fingerprint.chars().take(10).collect()
}

fn overwritten(connection: &Connection, evidence: String) -> Look {
    Look::found(
        Weight::Stops,
        evidence,
        "The record was changed by something that is not Evergrant, or was set back: what is stored is not what the history says was stored last.".to_owned(),
        format!("Stop whatever else writes this database (a migration script, a restored backup, a second program), then refresh the connection once (evergrant refresh {0}); if the provider refuses it, send the reconnect link (evergrant reconnect {0}).", connection.id),
    )
}

/// The refresh token is dead and the access token that came with it lives: it was not the customer, who ends both.
fn shared_grant(evidence: &Evidence<'_>) -> Option<Look> {
    let reason = match &evidence.connection.status {
        ConnectionStatus::Active => None,
        ConnectionStatus::ReconnectRequired {
            reason: ReconnectReason::GrantRefused,
            since,
        } => Some(*since),
        ConnectionStatus::ReconnectRequired { .. } | ConnectionStatus::Disconnected { .. } => return None,
    };
    // Refused once, and alive when it is asked about: that was the provider's mistake, or the grant is not what is wrong.
    let lives = matches!(evidence.refresh_token, Ok(TokenLife::Active { .. }));
    let dead = !lives && (reason.is_some() || evidence.refresh_token == Ok(TokenLife::Inactive));
    let lives_now = matches!(evidence.access_token, Ok(TokenLife::Active { .. }));
    if !dead || !lives_now {
        return None;
    }
    let since = reason.map_or(String::new(), |since| format!(" since {}", evidence.when(since)));
    Some(Look::reconnect(
        format!("the refresh token of version {} is dead{since}, and the access token that was issued with it lives still: the app was not uninstalled", evidence.connection.version.number()),
        "Somebody else holds the same grant: the refresh token was redeemed, replaced or revoked elsewhere, while the access token that came with it lived on. An uninstalled app would have lost both. Two environments (staging and production, an old server, a developer's machine) most likely share one grant.".to_owned(),
        format!("Find the other holder and give each environment its own connection (its own consent, best its own app); then send the customer the reconnect link (evergrant reconnect {}). Reconnecting alone lasts until the other one refreshes again.", evidence.connection.id),
    ))
}

/// So many unusual redemptions within [`SHORT`] are a stampede: of those that somebody asked for, or of those that came by themselves.
/// One of each kind and another try have a reason each: a 401 may cost one redemption in a cooldown, and a person may ask for one.
const MANY: usize = 3;
const SHORT: Duration = Duration::from_secs(600);
/// So many forced refreshes in an hour, too, however few of them were made.
const FORCED_MANY: u64 = 20;

/// The refresh token is redeemed more often than its life asks for.
pub(super) fn refresh_stampede(evidence: &Evidence<'_>) -> Look {
    let history = match &evidence.history {
        Ok(history) => history,
        Err(gap) => return Look::Open(format!("the history could not be read: {}", gap.why())),
    };
    let stored = evidence.of_kind(history, EventKind::Refreshed.as_str());
    let hours = match &evidence.hours {
        Ok(hours) => hours,
        Err(gap) => return Look::Open(format!("what calls did could not be read: {}", gap.why())),
    };
    let doubled = evidence.of_kind(history, EventKind::DoubleRedemption.as_str());
    let taken_over = evidence.of_kind(history, EventKind::LeaseTakenOver.as_str());
    let forced = evidence.of_kind(history, EventKind::RefreshForced.as_str());
    let weight = match evidence.connection.status {
        ConnectionStatus::Active => Weight::Hurts,
        ConnectionStatus::ReconnectRequired { .. } | ConnectionStatus::Disconnected { .. } => Weight::Stops,
    };
    if let Some(last) = doubled.last() {
        let who: Vec<_> = processes(&doubled);
        let by = if who.is_empty() {
            String::new()
        } else {
            format!(" by {}", who.join(" and "))
        };
        return Look::found(
            weight,
            format!("the same refresh token was redeemed again {}, last at {}{by}; {} stored since {}", times(doubled.len() as u64), evidence.when(last.at), count(stored.len() as u64, "token set"), evidence.when(evidence.since())),
            format!("The same refresh token was redeemed more than once, last at {}: whoever refreshes does so without waiting for the others. With a provider that replaces refresh tokens this loses the grant.", evidence.when(last.at)),
            "Let all processes work on one store, with the same [coordination] and one version of Evergrant, and let nothing but Evergrant redeem this grant.".to_owned(),
        )
        .met_last(Some(last.at), evidence.now);
    }
    let given_up = evidence.of_kind(history, EventKind::ReconnectRequired.as_str());
    // A set that is replaced in the first quarter of its life was not replaced because it was due. What came after it had been given
    // up replaces nothing: where an outcome was lost, a person may present the refresh token once more.
    let early: Vec<&Happened> = stored
        .windows(2)
        .filter(|pair| pair[1].at.since(pair[0].at) < evidence.lifetime() / 4)
        .filter(|pair| {
            let between = pair[0].at..=pair[1].at;
            !given_up.iter().any(|line| between.contains(&line.at))
        })
        .map(|pair| pair[1])
        .collect();
    let burst = [true, false]
        .into_iter()
        .filter_map(|asked_for| {
            let of_a_kind = early.iter().filter(|line| is_asked_for(line) == asked_for);
            crowded(&of_a_kind.map(|line| line.at).collect::<Vec<_>>())
        })
        .max();
    let overtaken = crowded(&taken_over.iter().map(|line| line.at).collect::<Vec<_>>());
    let asked_at = |hour: &Hour| hour.began_at.after(Duration::from_secs(3600)).min(evidence.now);
    let counted = || hours.iter().filter(|hour| asked_at(hour) > evidence.since());
    let asked = counted().map(|hour| hour.calls.refresh_forced).max().unwrap_or(0);
    let asked_last = counted()
        .filter(|hour| hour.calls.refresh_forced >= FORCED_MANY)
        .map(asked_at)
        .max();
    let numbers = format!(
        "since {}: {} stored by refreshes, {} of them in the first quarter of the last one's life ({}), {} taken over, {} of the refreshes forced ({asked} asked for in the busiest hour), no refresh token redeemed twice",
        evidence.when(evidence.since()),
        count(stored.len() as u64, "token set"),
        early.len(),
        lasting(evidence.lifetime()),
        count(taken_over.len() as u64, "lease"),
        forced.len(),
    );
    if burst.is_none() && overtaken.is_none() && asked < FORCED_MANY {
        return Look::Clear(numbers);
    }
    let summary = match (burst, overtaken) {
        (Some(at), _) => format!(
            "The token is refreshed far more often than it has to be: {MANY} or more times within {}, the last of them at {}, although each token lives for {}.",
            lasting(SHORT),
            evidence.when(at),
            lasting(evidence.lifetime())
        ),
        (None, Some(at)) => format!(
            "Processes take the right to refresh from each other, {MANY} or more times within {}, the last time at {}: their holders die, hang, or are stopped.",
            lasting(SHORT),
            evidence.when(at)
        ),
        (None, None) => format!(
            "Somebody asks for a forced refresh all the time, {asked} times within an hour. Evergrant makes few of them; each that it makes is one too many."
        ),
    };
    let action = match (burst, overtaken) {
        (None, Some(_)) => "See which processes die or hang (the history names them, so do their logs), and why: memory, a supervisor that stops them, a machine that is suspended.".to_owned(),
        _ => format!("Find who forces refreshes or reports good tokens as rejected (GET /v1/connections/{}/events names the key) and let it ask for the token instead: Evergrant refreshes by itself, in time and once.", evidence.connection.id),
    };
    Look::found(weight, numbers, summary, action).met_last(
        [burst, overtaken, asked_last].into_iter().flatten().max(),
        evidence.now,
    )
}

/// Whether somebody asked for this refresh by name.
fn is_asked_for(line: &Happened) -> bool {
    let reason = line.reason.as_deref().and_then(RefreshReason::from_word);
    matches!(reason, Some(RefreshReason::Asked | RefreshReason::Forced))
}

fn processes(lines: &[&Happened]) -> Vec<String> {
    let mut who: Vec<String> = lines.iter().filter_map(|line| line.process.clone()).collect();
    who.sort();
    who.dedup();
    who
}

/// When the last of so many came that they make a crowd.
fn crowded(times: &[Timestamp]) -> Option<Timestamp> {
    times
        .windows(MANY)
        .filter(|crowd| crowd[MANY - 1].since(crowd[0]) <= SHORT)
        .map(|crowd| crowd[MANY - 1])
        .next_back()
}

/// The grant is gone, and only the customer can restore it.
pub(super) fn grant_refused(evidence: &Evidence<'_>) -> Look {
    let connection = evidence.connection;
    match &connection.status {
        ConnectionStatus::ReconnectRequired {
            reason:
                reason @ (ReconnectReason::GrantRefused
                | ReconnectReason::RedemptionOutcomeLost
                | ReconnectReason::NoRefreshToken
                | ReconnectReason::Uninstalled),
            since,
        } => {
            if *reason == ReconnectReason::GrantRefused {
                return refused(evidence, *since);
            }
            return Look::reconnect(
                format!(
                    "{}, at {}{}",
                    reason.meaning(),
                    evidence.when(*since),
                    said_of_refresh_token(evidence)
                ),
                format!(
                    "The customer's grant is gone since {}: {}.",
                    evidence.when(*since),
                    reason.meaning()
                ),
                match reason {
                    // It may live: nobody heard the answer, and nothing presents it again without being asked to.
                    ReconnectReason::RedemptionOutcomeLost => format!(
                        "Try once whether the refresh token lives still: evergrant refresh {}. Otherwise send the customer the reconnect link (evergrant reconnect {}).",
                        connection.id, connection.id
                    ),
                    _ => send_the_link(connection),
                },
            );
        }
        // Each is a check of its own.
        ConnectionStatus::ReconnectRequired {
            reason: ReconnectReason::AccountMismatch | ReconnectReason::WrongClient,
            ..
        } => {
            return Look::Clear("the provider did not refuse the grant itself".to_owned());
        }
        ConnectionStatus::Active | ConnectionStatus::Disconnected { .. } => {}
    }
    if connection.kind == Kind::Static {
        return static_token(evidence);
    }
    match &evidence.refresh_token {
        Ok(TokenLife::Active { .. }) => {
            Look::Clear("the provider says that the refresh token lives".to_owned())
        }
        // Seen before any refresh met it.
        Ok(TokenLife::Inactive) => {
            let both = evidence.access_token == Ok(TokenLife::Inactive);
            Look::reconnect(
                format!(
                    "the provider says that the refresh token of version {} is dead{}; the access token at hand was to end at {}",
                    connection.version.number(),
                    if both { ", and the access token, too" } else { "" },
                    evidence.when(connection.ends.expires)
                ),
                if both {
                    "The customer's grant is gone: the provider knows neither of its tokens any more. The app was uninstalled, or the grant revoked.".to_owned()
                } else {
                    format!(
                        "The customer's grant is gone: the provider does not know its refresh token any more. {EITHER}"
                    )
                },
                if both {
                    send_the_link(connection)
                } else {
                    send_the_link_and_look(connection)
                },
            )
        }
        Err(gap) if evidence.is_proven() => Look::PassedOver(format!(
            "the provider was not heard about the refresh token ({}); a call with this token set succeeded at {}",
            gap.why(),
            connection
                .last
                .success_at
                .map_or("no time".to_owned(), |at| evidence.when(at))
        )),
        Err(gap) => unasked(
            evidence,
            format!(
                "the provider was not heard about the refresh token: {}",
                gap.why()
            ),
        ),
    }
}

/// Once the access token has ended, too, nobody can tell the two apart.
const EITHER: &str = "Either the customer's side ended it (the app was uninstalled, the grant revoked, the account deleted), or somebody else holds the same grant (staging beside production, an old server, a developer's machine) and its refresh token was replaced there.";

fn send_the_link(connection: &Connection) -> String {
    format!(
        "Send the customer the reconnect link (evergrant reconnect {}); the connection keeps its id, and works again once they have agreed.",
        connection.id
    )
}

fn send_the_link_and_look(connection: &Connection) -> String {
    format!(
        "{} Ask them whether they removed the app: if they did not, look for another holder of this grant before it happens again.",
        send_the_link(connection)
    )
}

/// What the provider says of the refresh token now, to be appended.
fn said_of_refresh_token(evidence: &Evidence<'_>) -> &'static str {
    match &evidence.refresh_token {
        Ok(TokenLife::Inactive) => "; the provider says that the refresh token is dead",
        Ok(TokenLife::Active { .. }) => "; the provider says that the refresh token lives",
        Err(_) => "",
    }
}

/// An access token that is refused so shortly before the refresh token was sent for by a call that met it dead.
const TOGETHER: Duration = Duration::from_secs(120);
/// A grant that was refused before in so many days is refused for a reason that reconnecting does not take away.
const AGAIN: Duration = Duration::from_secs(7 * 24 * 3600);

/// The provider refused the refresh token. An uninstall ends the access token with it, another holder of the grant does not; while the
/// access token lives that is asked (see [`shared_grant`]), and afterwards there is what calls met at that time, or nothing.
fn refused(evidence: &Evidence<'_>, since: Timestamp) -> Look {
    let connection = evidence.connection;
    let at = evidence.when(since);
    let last_refresh = connection
        .last
        .refresh_at
        .filter(|refreshed| *refreshed >= connection.connected_at)
        .map_or(
            "it has never been refreshed since it was connected".to_owned(),
            |refreshed| format!("the last refresh succeeded at {}", evidence.when(refreshed)),
        );
    let before = evidence
        .history
        .iter()
        .flatten()
        .filter(|line| {
            line.kind == EventKind::ReconnectRequired.as_str()
                && line.at < connection.connected_at
                && evidence.now.since(line.at) <= AGAIN
        })
        .count() as u64;
    let again = match before {
        0 => String::new(),
        _ => format!(
            "; it had to be reconnected {} in the 7 days before",
            times(before)
        ),
    };
    let said = format!(
        "the refresh token was refused at {at}{}; {last_refresh}{again}",
        said_of_refresh_token(evidence)
    );
    if matches!(evidence.refresh_token, Ok(TokenLife::Active { .. })) {
        return Look::reconnect(
            said,
            format!(
                "The provider refused the refresh token at {at}, and says now that it lives: one of the two was its mistake. Evergrant does not present a refused token again by itself."
            ),
            send_the_link(connection),
        );
    }
    let died_together = connection.last.unauthorized_at.is_some_and(|refused_at| {
        refused_at.since(since) <= TOGETHER
            && since.since(refused_at) <= TOGETHER
            && refused_at < connection.ends.hard
    });
    if before > 0 {
        return Look::reconnect(
            said,
            format!(
                "The customer's grant is gone since {at}, and not for the first time: it had to be reconnected {} in the 7 days before. Where nobody removes the app, somebody else holds the same grant (staging beside production, an old server, a developer's machine) and replaces its refresh token.",
                times(before)
            ),
            format!(
                "Look for the other holder first, or it will be gone again. Then: {}",
                send_the_link(connection)
            ),
        );
    }
    if died_together {
        return Look::reconnect(
            format!("{said}; the access token was refused before its end, too"),
            format!(
                "The customer's grant is gone since {at}: the access token was refused before its end, and the refresh token with it, so the app was uninstalled, the grant revoked or the account deleted."
            ),
            send_the_link(connection),
        );
    }
    Look::reconnect(
        said,
        format!("The customer's grant is gone since {at}: the provider refuses the refresh token. {EITHER}"),
        send_the_link_and_look(connection),
    )
}

fn static_token(evidence: &Evidence<'_>) -> Look {
    let last = &evidence.connection.last;
    match (last.unauthorized_at, last.success_at) {
        (Some(refused), success) if success.is_none_or(|at| at < refused) => Look::found(
            Weight::Stops,
            format!("the last call came back 401 at {}, and a static token has nothing to refresh", evidence.when(refused)),
            format!("The provider does not accept the static token any more: the last call came back 401 at {}.", evidence.when(refused)),
            format!("Make a new token at the provider, then replace the old one: DELETE /v1/connections/{0}?purge=true, and import the new one under the same id (evergrant connections import FILE).", evidence.connection.id),
        ),
        _ => Look::Clear("a static token has no grant that could be refused, and none of its calls came back 401 since the last success".to_owned()),
    }
}

/// The provider refuses the app, not the customer.
pub(super) fn app_credentials(evidence: &Evidence<'_>) -> Look {
    let name = &evidence.connection.app;
    if evidence.app.is_none() {
        return Look::found(
            Weight::Stops,
            format!("the configuration has no app {name}"),
            format!(
                "The app {name} that this connection belongs to is not in the configuration, so its tokens can be neither used nor refreshed."
            ),
            format!(
                "Put [apps.{name}] back into the configuration, with its client id and secret. Nobody has to reconnect."
            ),
        );
    }
    if let ConnectionStatus::ReconnectRequired {
        reason: reason @ ReconnectReason::WrongClient,
        since,
    } = &evidence.connection.status
    {
        return Look::reconnect(
            format!("{} (refused at {})", reason.meaning(), evidence.when(*since)),
            format!(
                "The refresh token was issued to another client id than the one that the configuration gives for {name}, so the provider refuses the pair."
            ),
            format!(
                "Look whether [apps.{name}] has the client id that the grant was given to. If it has, the token was imported for the wrong app: send the customer the reconnect link (evergrant reconnect {}).",
                evidence.connection.id
            ),
        );
    }
    let rejected = |code: &str, since: Option<Timestamp>| {
        let since = since.map_or(String::new(), |since| format!(" since {}", evidence.when(since)));
        Look::found(
            Weight::Stops,
            format!("the provider refuses client id or secret of the app {name}{since}, with {code}"),
            format!(
                "The provider refuses the credentials of the app {name}{since}, with {code}. No token of any of its connections can be refreshed; those at hand serve until they end. The customers' grants are not touched."
            ),
            format!(
                "Correct client_id or the client secret in [apps.{name}], reload the configuration (SIGHUP), and see whether they are right: evergrant apps check {name}. Nobody has to reconnect."
            ),
        )
    };
    if let Ok(standing) = &evidence.standing
        && let AppHealth::CredentialsRejected { code, since } = &standing.health
    {
        return rejected(code, Some(*since));
    }
    for life in [&evidence.refresh_token, &evidence.access_token] {
        if let Err(Gap::ClientRefused(code)) = life {
            return rejected(code, None);
        }
    }
    match &evidence.standing {
        Ok(_) => {
            let asked = if evidence.refresh_token.is_ok() {
                ", and it answered when it was asked just now"
            } else {
                ""
            };
            Look::Clear(format!(
                "the provider has not refused the credentials of the app {name}{asked}"
            ))
        }
        Err(gap) => Look::Open(format!(
            "what is known of the app {name} could not be read: {}",
            gap.why()
        )),
    }
}

/// What recent calls were refused for and the grant still lacks.
pub(super) fn missing_now(evidence: &Evidence<'_>, history: &[Happened]) -> Vec<String> {
    let mut missing = Vec::new();
    let denied = evidence.of_kind(history, EventKind::PermissionDenied.as_str());
    for line in denied {
        for scope in scopes_named(&line.detail) {
            if !evidence.connection.scopes.contains(&scope) && !missing.contains(&scope) {
                missing.push(scope);
            }
        }
    }
    missing
}

/// The scopes that the event of a 403 names, as the gateway writes it.
fn scopes_named(detail: &str) -> Vec<String> {
    let named = detail
        .split_once("missing scopes: ")
        .map_or("", |(_, named)| named);
    // What may follow is advice.
    let named = named.split_once(';').map_or(named, |(named, _)| named);
    named.split_whitespace().map(str::to_owned).collect()
}

/// Calls need a scope that was not granted.
pub(super) fn missing_scopes(evidence: &Evidence<'_>) -> Look {
    let connection = evidence.connection;
    let history = match &evidence.history {
        Ok(history) => history,
        Err(gap) => return Look::Open(format!("the history could not be read: {}", gap.why())),
    };
    let ungranted: Vec<String> = match (connection.kind, evidence.app) {
        (Kind::OAuth, Some(app)) => app
            .scopes
            .iter()
            .filter(|scope| !connection.scopes.contains(scope))
            .cloned()
            .collect(),
        // Nobody knows what a static token may do.
        _ => Vec::new(),
    };
    let denied = evidence.of_kind(history, EventKind::PermissionDenied.as_str());
    let wanted = missing_now(evidence, history);
    let last = denied.last();
    // A 403 that names no scope, or one that was granted since, counts until a call succeeds.
    let refused_since = connection.last.forbidden_at.filter(|at| {
        *at >= evidence.since() && connection.last.success_at.is_none_or(|success| success < *at)
    });
    if wanted.is_empty() && ungranted.is_empty() && refused_since.is_none() {
        return Look::Clear(format!(
            "all {} that the app asks for are granted, and {} came back 403 since {} for one that is not",
            count(evidence.app.map_or(0, |app| app.scopes.len()) as u64, "scope"),
            if denied.is_empty() {
                "no call"
            } else {
                "none of the last calls"
            },
            evidence.when(evidence.since())
        ));
    }
    let missing: Vec<String> = if wanted.is_empty() {
        ungranted.clone()
    } else {
        wanted
    };
    let at = last.map(|line| line.at).or(refused_since);
    let denied_said = match at {
        Some(at) => format!(
            "{} came back 403, last at {}",
            count(denied.len().max(1) as u64, "call"),
            evidence.when(at)
        ),
        None => "no call came back 403 yet".to_owned(),
    };
    if missing.is_empty() {
        return Look::found(
            Weight::Hurts,
            format!("{denied_said}, and the answer named no scope that is not granted"),
            "The provider refuses what is called, and names no scope that is missing: the user who installed the app may lack the right, or the account's plan the feature.".to_owned(),
            format!("Read in the provider's answer what right it wants (evergrant explain reads it, too), or ask its support with the correlation id in the history (GET /v1/connections/{}/events); refreshing brings no other rights.", connection.id),
        )
        .met_last(at, evidence.now);
    }
    lacks(evidence, &missing, &denied_said, at)
}

/// These scopes are missing, and where they are to be had.
fn lacks(evidence: &Evidence<'_>, missing: &[String], denied_said: &str, at: Option<Timestamp>) -> Look {
    let connection = evidence.connection;
    let names = missing.join(", ");
    let said = format!(
        "{denied_said}; granted are {} of the scopes, not granted: {names}",
        connection.scopes.len()
    );
    let hint = evidence
        .relatives
        .iter()
        .find(|relative| missing.iter().all(|scope| relative.scopes.contains(scope)));
    let is_asked_for = evidence.app.is_some_and(|app| {
        missing
            .iter()
            .all(|scope| app.scopes.contains(scope) || app.optional_scopes.contains(scope))
    });
    let (evidence_said, action) = match hint {
        Some(other) => (
            format!(
                "{said}; connection {} of the same customer (app {}) has it",
                other.id, other.app
            ),
            format!(
                "Look at the mapping first: connection {} of the same customer has {names}, so the caller may simply use the wrong connection. Otherwise have the customer reconnect to grant it (evergrant reconnect {}).",
                other.id, connection.id
            ),
        ),
        None if is_asked_for => (
            said,
            format!(
                "Send the customer the reconnect link (evergrant reconnect {}): agreeing again grants {names}.",
                connection.id
            ),
        ),
        None => (
            said,
            format!(
                "Add {names} to the scopes of [apps.{}], reload, and send the customer the reconnect link (evergrant reconnect {}).",
                connection.app, connection.id
            ),
        ),
    };
    Look::found(
        Weight::Hurts,
        evidence_said,
        match at {
            Some(_) => format!(
                "The token is valid and lacks a permission: {names}. Calls that need it come back 403, and no refresh changes that."
            ),
            None => format!(
                "The token is valid and lacks a permission that the app asks for: {names}. No call has needed it yet; one that does will come back 403."
            ),
        },
        action,
    )
    .mended_by_reconnecting()
    .met_last(at, evidence.now)
}
