//! What became of the grant, and who may have had a hand in it.

use std::time::Duration;

use super::evidence::{Evidence, Gap, Happened, TokenLife};
use super::words::{count, lasting, shown, times};
use super::{Cause, Check, Diagnosis, Finding, Look, Remedy, Verdict, Weight};
use crate::app::AppHealth;
use crate::connection::{ConnectionStatus, Kind, ReconnectReason};
use crate::event::EventKind;
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
        shown(since)
    );
    let (summary, action) = match successor {
        Some(id) => (
            format!(
                "This connection was retired at {}: {id} has taken its place.",
                shown(since)
            ),
            format!("Use {id} instead."),
        ),
        None => (
            format!(
                "This connection was disconnected at {}. Its tokens are erased, and no call can be made with it.",
                shown(since)
            ),
            format!(
                "If that was not meant, connect the customer {} anew: a disconnected connection does not come back.",
                connection.customer
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
                shown(*since)
            ),
            format!(
                "The token that came at {} belongs to another account than {name}, which this connection is pinned to. It is kept and never used.",
                shown(*since)
            ),
            format!(
                "Send the customer the reconnect link and have them choose account {name}; for the other account make a connection of its own."
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
                    "Stop what calls it, then send the customer the reconnect link and have them choose account {pinned}."
                ),
            );
        }
    }
    let confirmed = seen.iter().any(
        |(_, life)| matches!(life, Ok(TokenLife::Active { account: Some(found) }) if Some(found) == pinned),
    );
    if confirmed {
        return Look::Clear(format!(
            "the provider says that the token belongs to account {name}, as the record does"
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
        let at = shown(told.at);
        if told.version > connection.version {
            return overwritten(format!(
                "the record holds version {stored}, and the history told of version {} at {at} already",
                told.version.number()
            ));
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
            return overwritten(format!(
                "version {stored} was stored at {} with refresh token {before} (fingerprint), and the record holds {held} now: no event tells who wrote that",
                shown(noted.at)
            ));
        }
    }
    let lost = evidence.of_kind(history, EventKind::StoreRegressed.as_str());
    if let Some(last) = lost.last() {
        return Look::found(
            Weight::Hurts,
            format!("the store showed an older version than a process held {}, last at {}", times(lost.len() as u64), shown(last.at)),
            format!("The store went back in time: at {} it showed an older version than a process of ours held, which put the newer one back. A failover to a lagging replica, a restored backup, or a program that writes the table does this.", shown(last.at)),
            "Find out what set the database back (failover without synchronous commit, a restore, two databases behind one name) and keep it from happening again; what was lost has been put back.".to_owned(),
        );
    }
    if let Some(look) = shared_grant(evidence) {
        return look;
    }
    let token = evidence.fingerprint.as_deref().map_or(String::new(), |held| {
        format!(", refresh token {} (fingerprint)", short(held))
    });
    Look::Clear(format!(
        "version {stored}{token} is what the history says, and nobody else seems to hold the grant"
    ))
}

/// As much of a fingerprint as tells two of them apart.
fn short(fingerprint: &str) -> String {
    fingerprint.chars().take(10).collect()
}

fn overwritten(evidence: String) -> Look {
    Look::found(
        Weight::Stops,
        evidence,
        "The record was changed by something that is not Evergrant, or was set back: what is stored is not what the history says was stored last.".to_owned(),
        "Stop whatever else writes this database (a migration script, a restored backup, a second program), then refresh the connection once; if the provider refuses it, send the reconnect link.".to_owned(),
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
    let dead = reason.is_some() || evidence.refresh_token == Ok(TokenLife::Inactive);
    let lives_now = matches!(evidence.access_token, Ok(TokenLife::Active { .. }));
    if !dead || !lives_now {
        return None;
    }
    let since = reason.map_or(String::new(), |since| format!(" since {}", shown(since)));
    Some(Look::reconnect(
        format!("the refresh token of version {} is dead{since}, and the access token that was issued with it lives still: the app was not uninstalled", evidence.connection.version.number()),
        "Somebody else holds the same grant: the refresh token was redeemed, replaced or revoked elsewhere, while the access token that came with it lived on. An uninstalled app would have lost both. Two environments (staging and production, an old server, a developer's machine) share one grant.".to_owned(),
        "Find the other holder and give each environment its own connection (its own consent, best its own app); then send the customer the reconnect link. Reconnecting alone lasts until the other one refreshes again.".to_owned(),
    ))
}

/// So many unusual redemptions within [`SHORT`] are a stampede.
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
            format!("one refresh token was redeemed twice {}, last at {}{by}; {} stored since {}", times(doubled.len() as u64), shown(last.at), count(stored.len() as u64, "token set"), shown(evidence.since())),
            format!("The same refresh token was redeemed more than once, last at {}: whoever refreshes does so without waiting for the others. With a provider that replaces refresh tokens this loses the grant.", shown(last.at)),
            "Let all processes work on one store, with the same `[coordination]` and one version of Evergrant, and let nothing but Evergrant redeem this grant.".to_owned(),
        );
    }
    // A set that is replaced in the first quarter of its life was not replaced because it was due.
    let early: Vec<Timestamp> = stored
        .windows(2)
        .filter(|pair| pair[1].at.since(pair[0].at) < evidence.lifetime() / 4)
        .map(|pair| pair[1].at)
        .collect();
    let burst = crowded(&early);
    let overtaken = crowded(&taken_over.iter().map(|line| line.at).collect::<Vec<_>>());
    let asked = evidence
        .hours
        .iter()
        .flatten()
        .filter(|hour| hour.began_at.after(Duration::from_secs(3600)) > evidence.since())
        .map(|hour| hour.calls.refresh_forced)
        .max()
        .unwrap_or(0);
    let numbers = format!(
        "since {}: {} stored by refreshes, {} of them in the first quarter of the last one's life ({}), {} taken over, {} forced ({asked} asked for in the busiest hour), none redeemed twice",
        shown(evidence.since()),
        count(stored.len() as u64, "token set"),
        early.len(),
        lasting(evidence.lifetime()),
        count(taken_over.len() as u64, "lease"),
        count(forced.len() as u64, "refresh").replace("refreshs", "refreshes"),
    );
    if burst.is_none() && overtaken.is_none() && asked < FORCED_MANY {
        return Look::Clear(numbers);
    }
    let summary = match (burst, overtaken) {
        (Some(at), _) => format!(
            "The token is refreshed far more often than it has to be: {} or more times within {} around {}, although each token lives for {}.",
            MANY,
            lasting(SHORT),
            shown(at),
            lasting(evidence.lifetime())
        ),
        (None, Some(at)) => format!(
            "Processes take the right to refresh from each other, {} or more times within {} around {}: their holders die, hang, or are stopped.",
            MANY,
            lasting(SHORT),
            shown(at)
        ),
        (None, None) => format!(
            "Somebody asks for a forced refresh all the time, {asked} times within an hour. Evergrant makes few of them; each that it makes is one too many."
        ),
    };
    Look::found(
        weight,
        numbers,
        summary,
        "Find who forces refreshes or reports good tokens as rejected (the events name the key) and let it ask for the token instead: Evergrant refreshes by itself, in time and once.".to_owned(),
    )
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
            let refresh = match &evidence.refresh_token {
                Ok(TokenLife::Inactive) => "; the provider says that the refresh token is dead",
                Ok(TokenLife::Active { .. }) => "; the provider says that the refresh token lives",
                Err(_) => "",
            };
            return Look::reconnect(
                format!("{} at {}{refresh}", reason.meaning(), shown(*since)),
                format!("The customer's grant is gone since {}: {}.", shown(*since), reason.meaning()),
                "Send the customer the reconnect link; the connection keeps its id, and works again once they have agreed.".to_owned(),
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
        Ok(TokenLife::Active { .. }) => Look::Clear("the provider says that the refresh token lives".to_owned()),
        // Seen before any refresh met it.
        Ok(TokenLife::Inactive) => Look::reconnect(
            format!("the provider says that the refresh token of version {} is dead; the access token at hand ends at {}", connection.version.number(), shown(connection.ends.expires)),
            "The customer's grant is gone: the provider does not know its refresh token any more. The app was uninstalled, or the grant revoked.".to_owned(),
            "Send the customer the reconnect link; the connection keeps its id, and works again once they have agreed.".to_owned(),
        ),
        Err(gap) if evidence.is_proven() => Look::PassedOver(format!(
            "the provider was not heard about the refresh token ({}); a call with this token set succeeded at {}",
            gap.why(),
            connection.last.success_at.map_or("no time".to_owned(), shown)
        )),
        Err(gap) => unasked(evidence, format!("the provider was not heard about the refresh token: {}", gap.why())),
    }
}

fn static_token(evidence: &Evidence<'_>) -> Look {
    let last = &evidence.connection.last;
    match (last.unauthorized_at, last.success_at) {
        (Some(refused), success) if success.is_none_or(|at| at < refused) => Look::found(
            Weight::Stops,
            format!("the last call came back 401 at {}, and a static token has nothing to refresh", shown(refused)),
            format!("The provider does not accept the static token any more: the last call came back 401 at {}.", shown(refused)),
            "Make a new token at the provider and import it in the old one's place.".to_owned(),
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
            format!("{} (refused at {})", reason.meaning(), shown(*since)),
            format!(
                "The refresh token was issued to another client id than the one that the configuration gives for {name}, so the provider refuses the pair."
            ),
            format!(
                "Look whether [apps.{name}] has the client id that the grant was given to. If it has, the token was imported for the wrong app: send the customer the reconnect link."
            ),
        );
    }
    let rejected = |code: &str, since: Option<Timestamp>| {
        let since = since.map_or(String::new(), |since| format!(" since {}", shown(since)));
        Look::found(
            Weight::Stops,
            format!("the provider refuses client id or secret of the app {name}{since} ({code})"),
            format!(
                "The provider refuses the credentials of the app {name}{since} ({code}). No token of any of its connections can be refreshed; those at hand serve until they end. The customers' grants are not touched."
            ),
            format!(
                "Correct `client_id` or the client secret of [apps.{name}] and reload (SIGHUP); `evergrant apps check {name}` says whether they are right. Nobody has to reconnect."
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
            shown(evidence.since())
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
            shown(at)
        ),
        None => "no call came back 403 yet".to_owned(),
    };
    if missing.is_empty() {
        return Look::found(
            Weight::Hurts,
            format!("{denied_said}, and the answer named no scope that is not granted"),
            "The provider refuses what is called, and names no scope that is missing: the user who installed the app may lack the right, or the account's plan the feature.".to_owned(),
            "Ask the provider's answer (its message, and the correlation id in the history) what right it wants; refreshing brings no other rights.".to_owned(),
        );
    }
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
                "Look at the mapping first: connection {} of the same customer has {names}, so the caller may simply use the wrong connection. Otherwise have the customer reconnect to grant it.",
                other.id
            ),
        ),
        None if is_asked_for => (
            said,
            format!("Send the customer the reconnect link: agreeing again grants {names}."),
        ),
        None => (
            said,
            format!(
                "Add {names} to the scopes of [apps.{}], reload, and send the customer the reconnect link.",
                connection.app
            ),
        ),
    };
    Look::Found(Box::new(super::Found {
        weight: Weight::Hurts,
        evidence: evidence_said,
        summary: format!(
            "The token is valid and lacks a permission: {names}. Calls that need it come back 403, and no refresh changes that."
        ),
        action,
        remedy: Remedy::Reconnect,
    }))
}
