//! One fault at a time: which cause it is, and what a healthy connection looks like.

use std::time::Duration;

use super::*;
use crate::app::tests::app;
use crate::app::{App, AppHealth};
use crate::breaker::Breaker;
use crate::connection::tests::connection;
use crate::connection::{Account, Connection, ReconnectReason, RefreshTrouble};
use crate::id::{AccountId, AppName, ConnectionId, Version};
use crate::redemption::Intent;
use crate::refresh_policy::{Jitter, RefreshPolicy};
use crate::time::Timestamp;

/// Noon of some day, in seconds.
const NOON: i64 = 1_764_072_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis((NOON + seconds) * 1000)
}

fn account(id: &str) -> AccountId {
    AccountId::parse(id).expect("a literal account")
}

/// Everything that a test changes before it asks.
struct Case {
    connection: Connection,
    app: Option<App>,
    standing: Known<AppStanding>,
    history: Vec<Happened>,
    hours: Vec<Hour>,
    /// What of it could not be read.
    history_gap: Option<Gap>,
    hours_gap: Option<Gap>,
    fingerprint: Option<String>,
    machine_ahead_ms: Known<Option<i64>>,
    provider_clock: Known<Offset>,
    refresh_token: Known<TokenLife>,
    access_token: Known<TokenLife>,
    relatives: Vec<Relative>,
    store_took: Duration,
    afloat: Known<u64>,
}

impl Case {
    fn diagnosis(&self) -> Diagnosis {
        diagnose(&Evidence {
            now: at(0),
            connection: &self.connection,
            app: self.app.as_ref(),
            standing: self.standing.clone(),
            history: self.history_gap.clone().map_or(Ok(self.history.clone()), Err),
            hours: self.hours_gap.clone().map_or(Ok(self.hours.clone()), Err),
            fingerprint: self.fingerprint.clone(),
            machine_ahead_ms: self.machine_ahead_ms.clone(),
            provider_clock: self.provider_clock.clone(),
            refresh_token: self.refresh_token.clone(),
            access_token: self.access_token.clone(),
            relatives: self.relatives.clone(),
            store_took: self.store_took,
            afloat: self.afloat.clone(),
        })
    }

    /// Appends to the history, with what the last line left.
    fn told(&mut self, seconds: i64, kind: &str, version: i64) -> &mut Happened {
        self.history.push(Happened {
            at: at(seconds),
            kind: kind.to_owned(),
            detail: String::new(),
            version: Version::new(version),
            fingerprint: None,
            process: None,
            reason: None,
            class: None,
            status_code: None,
            token_version: None,
            seconds_remaining: None,
        });
        self.history.last_mut().expect("just pushed")
    }

    fn hour(&mut self, hours_ago: i64, calls: Calls) {
        self.hours.push(Hour {
            began_at: at(-hours_ago * 3600),
            calls,
        });
        self.hours.sort_by_key(|hour| hour.began_at);
    }
}

fn alive(id: &str) -> TokenLife {
    TokenLife::Active {
        account: Some(account(id)),
    }
}

fn calls(all: u64) -> Calls {
    let mut calls = Calls {
        all,
        ok: all,
        ..Calls::default()
    };
    calls.by_life[5] = all;
    calls
}

/// Connected this morning, refreshed twice since, in use until half a minute ago.
fn well() -> Case {
    let mut connection = connection();
    connection.connected_at = at(-3 * 3600);
    connection.created_at = at(-3 * 3600);
    connection.version = Version::new(3);
    connection.issued_at = at(-600);
    connection.ends = RefreshPolicy::Queue.ends(at(-600), Duration::from_secs(1800), Jitter::NONE);
    connection.account = Some(Account {
        id: account("7"),
        domain: None,
        user: None,
    });
    connection.scopes = vec!["oauth".into()];
    connection.last.call_at = Some(at(-30));
    connection.last.success_at = Some(at(-30));
    connection.last.refresh_at = Some(at(-600));
    let mut case = Case {
        connection,
        app: Some(app()),
        standing: Ok(AppStanding {
            health: AppHealth::Ok,
            endpoint: None,
            rotates_since: None,
        }),
        history: Vec::new(),
        hours: Vec::new(),
        history_gap: None,
        hours_gap: None,
        fingerprint: Some("f3".into()),
        machine_ahead_ms: Ok(None),
        provider_clock: Ok(Offset {
            ahead_ms: 120,
            give_or_take_ms: 510,
        }),
        refresh_token: Ok(alive("7")),
        access_token: Ok(alive("7")),
        relatives: Vec::new(),
        store_took: Duration::from_millis(1),
        afloat: Ok(0),
    };
    case.told(-3 * 3600, "connected", 1).fingerprint = Some("f1".into());
    case.told(-2100, "refreshed", 2).fingerprint = Some("f2".into());
    case.told(-600, "refreshed", 3).fingerprint = Some("f3".into());
    for hours_ago in [2, 1, 0] {
        case.hour(hours_ago, calls(40));
    }
    case
}

/// Plain text, whole sentences, no times as machines write them.
fn is_readable(diagnosis: &Diagnosis) {
    let check = |text: &str| {
        assert!(
            !text.is_empty() && !text.contains('`') && !text.contains("  "),
            "{text:?}"
        );
        let is_for_machines = text.split(' ').any(|word| {
            let word = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
            word.ends_with('Z') && word.contains('T') && word.contains(':')
        });
        assert!(!is_for_machines, "{text:?}");
    };
    for text in [&diagnosis.summary, &diagnosis.action] {
        check(text);
        assert!(text.ends_with(['.', '?']), "{text:?}");
    }
    for one in &diagnosis.checks {
        check(&one.evidence);
        assert!(!one.evidence.ends_with('.'), "{:?}", one.evidence);
    }
}

fn check(plant: impl FnOnce(&mut Case), cause: Cause, said: &str) -> Diagnosis {
    let mut subject = well();
    plant(&mut subject);
    let diagnosis = subject.diagnosis();
    assert_eq!(diagnosis.verdict, Verdict::Cause(cause), "{diagnosis:#?}");
    is_readable(&diagnosis);
    let evidence = &diagnosis
        .checks
        .iter()
        .find(|check| check.cause == cause)
        .expect("every cause is checked")
        .evidence;
    let all = format!("{evidence}\n{}\n{}", diagnosis.summary, diagnosis.action);
    assert!(all.contains(said), "{said:?} is not said in:\n{all}");
    diagnosis
}

fn check_verdict(plant: impl FnOnce(&mut Case), verdict: Verdict) -> Diagnosis {
    let mut subject = well();
    plant(&mut subject);
    let diagnosis = subject.diagnosis();
    assert_eq!(diagnosis.verdict, verdict, "{diagnosis:#?}");
    is_readable(&diagnosis);
    diagnosis
}

fn condemned(case: &mut Case, reason: ReconnectReason) {
    case.connection.status = ConnectionStatus::ReconnectRequired {
        reason,
        since: at(-60),
    };
    case.told(-60, "reconnect_required", 3);
    case.refresh_token = Ok(TokenLife::Inactive);
    case.access_token = Ok(TokenLife::Inactive);
}

#[test]
fn every_cause_has_one_word_and_is_checked_in_its_order() {
    for cause in Cause::ALL {
        assert_eq!(Cause::from_word(cause.as_str()), Some(cause));
    }
    let checked: Vec<_> = well()
        .diagnosis()
        .checks
        .iter()
        .map(|check| check.cause)
        .collect();
    assert_eq!(checked, Cause::ALL);
}

#[test]
fn a_healthy_connection_has_no_cause_and_every_check_says_why_not() {
    let diagnosis = check_verdict(|_| {}, Verdict::Healthy);
    for check in &diagnosis.checks {
        assert_eq!(check.finding, Finding::Clear, "{check:?}");
        assert!(
            !check.evidence.is_empty() && !check.evidence.ends_with('.'),
            "{check:?}"
        );
    }
}

#[test]
fn one_that_was_just_connected_and_never_called_is_healthy_and_told_to_make_a_first_call() {
    let diagnosis = check_verdict(
        |case| {
            case.connection.last = crate::connection::LastSeen::default();
            case.connection.connected_at = at(-5);
            case.hours.clear();
        },
        Verdict::Healthy,
    );
    assert!(
        diagnosis.action.contains("evergrant call c1"),
        "{}",
        diagnosis.action
    );
}

#[test]
fn a_version_that_was_presented_long_after_it_was_replaced_is_reused() {
    let report = |case: &mut Case, seconds| {
        let line = case.told(seconds, EventKind::TokenReported.as_str(), 3);
        line.status_code = Some(401);
        line.token_version = Some(Version::new(2));
    };
    check(
        |case| report(case, -60),
        Cause::StaleTokenReuse,
        "version 2 was presented 9 min after it had been replaced",
    );
    // A call that was under way while its token was replaced is nobody's fault.
    check_verdict(|case| report(case, -592), Verdict::Healthy);
    check(|case| report(case, -589), Cause::StaleTokenReuse, "11 s after");
    // What stopped the connection is not that.
    check(
        |case| {
            report(case, -120);
            condemned(case, ReconnectReason::GrantRefused);
        },
        Cause::GrantRefused,
        "reconnect link",
    );
}

#[test]
fn the_token_that_stands_is_reused_once_it_is_presented_after_its_end() {
    let report = |remaining| {
        move |case: &mut Case| {
            let line = case.told(-10, EventKind::TokenReported.as_str(), 3);
            line.status_code = Some(401);
            line.token_version = Some(Version::new(3));
            line.seconds_remaining = Some(remaining);
        }
    };
    check(
        report(-95),
        Cause::StaleTokenReuse,
        "was presented 95 s after it had ended",
    );
    // "Expired 0 seconds ago": a call that had left in time.
    check_verdict(report(-10), Verdict::Healthy);
    check_verdict(report(95), Verdict::Healthy);
}

#[test]
fn another_account_is_named_before_and_after_it_was_noticed() {
    let diagnosis = check(
        |case| condemned(case, ReconnectReason::AccountMismatch),
        Cause::WrongAccount,
        "another account than 7",
    );
    assert_eq!(diagnosis.remedy, Remedy::Reconnect);
    check(
        |case| case.refresh_token = Ok(alive("8")),
        Cause::WrongAccount,
        "belongs to account 8, and the record says 7",
    );
    check(
        |case| case.access_token = Ok(alive("8")),
        Cause::WrongAccount,
        "account 8",
    );
}

#[test]
fn a_record_that_is_not_what_the_history_says_was_written_by_somebody_else() {
    check(
        |case| case.fingerprint = Some("x".into()),
        Cause::RacedWrite,
        "refresh token f3 (fingerprint), and the record holds x",
    );
    check(
        |case| case.connection.version = Version::new(2),
        Cause::RacedWrite,
        "holds version 2, and the history told of version 3",
    );
    check(
        |case| {
            case.told(-30, "store_regressed", 3);
        },
        Cause::RacedWrite,
        "went back in time",
    );
}

#[test]
fn a_dead_refresh_token_whose_access_token_lives_is_shared_with_somebody_else() {
    check(
        |case| {
            condemned(case, ReconnectReason::GrantRefused);
            case.access_token = Ok(alive("7"));
        },
        Cause::RacedWrite,
        "the access token that was issued with it lives still",
    );
    check(
        |case| case.refresh_token = Ok(TokenLife::Inactive),
        Cause::RacedWrite,
        "Two environments",
    );
    // An uninstalled app loses both, a lost answer explains itself.
    check(
        |case| condemned(case, ReconnectReason::GrantRefused),
        Cause::GrantRefused,
        "is gone since",
    );
    check(
        |case| {
            condemned(case, ReconnectReason::RedemptionOutcomeLost);
            case.access_token = Ok(alive("7"));
        },
        Cause::GrantRefused,
        "Try once whether the refresh token lives still: evergrant refresh c1.",
    );
}

#[test]
fn a_clock_is_off_by_more_than_a_quarter_of_the_buffer_at_most_half_a_minute() {
    let off = |ahead_ms| {
        move |case: &mut Case| {
            case.provider_clock = Ok(Offset {
                ahead_ms,
                give_or_take_ms: 500,
            });
        }
    };
    check(off(30_501), Cause::ClockSkew, "30 s ahead of the provider's");
    check(off(-3_600_000), Cause::ClockSkew, "60 min behind the provider's");
    check_verdict(off(30_500), Verdict::Healthy);
    check(
        |case| case.machine_ahead_ms = Ok(Some(31_000)),
        Cause::ClockSkew,
        "31 s ahead of the database's",
    );
    check_verdict(|case| case.machine_ahead_ms = Ok(Some(29_000)), Verdict::Healthy);
    // Short-lived tokens forgive less.
    check(
        |case| {
            case.connection.issued_at = at(-5);
            case.connection.ends = RefreshPolicy::Queue.ends(at(-5), Duration::from_secs(40), Jitter::NONE);
            case.provider_clock = Ok(Offset {
                ahead_ms: 6_000,
                give_or_take_ms: 500,
            });
        },
        Cause::ClockSkew,
        "5 s is forgiven",
    );
}

#[test]
fn delays_beyond_the_buffer_name_the_buffer_that_they_ask_for() {
    let delayed = |bucket: usize, late: u64, all: u64| {
        move |case: &mut Case| {
            let mut calls = calls(all);
            calls.by_delay[bucket] = late;
            calls.by_delay[1] = all - late;
            case.hour(0, calls);
        }
    };
    check(
        delayed(4, 30, 100),
        Cause::QueueDelay,
        "refresh_buffer = \"10m\" in [apps.crm]",
    );
    check(
        delayed(5, 30, 100),
        Cause::QueueDelay,
        "No buffer covers such delays",
    );
    check(
        delayed(6, 5, 100),
        Cause::QueueDelay,
        "5 of 100 calls came more than 5 min after",
    );
    check_verdict(delayed(6, 4, 100), Verdict::Healthy);
    check_verdict(delayed(3, 100, 100), Verdict::Healthy);
    check(
        |case| {
            case.app.as_mut().expect("an app").refresh_policy = RefreshPolicy::Realtime;
            delayed(3, 100, 100)(case);
        },
        Cause::QueueDelay,
        "refresh_profile = \"queue\"",
    );
    check(
        |case| {
            let mut calls = calls(10);
            calls.by_life[0] = 1;
            case.hour(0, calls);
        },
        Cause::QueueDelay,
        "1 call left with a token that had ended",
    );
}

#[test]
fn redemptions_beyond_what_a_lifetime_asks_for_are_a_stampede() {
    check(
        |case| {
            case.told(-30, EventKind::DoubleRedemption.as_str(), 3).process = Some("a/1".into());
        },
        Cause::RefreshStampede,
        "redeemed again once, last at 11:59:30 UTC (30 s ago) by a/1",
    );
    let burst = |kind: &'static str, count: i64| {
        move |case: &mut Case| {
            for number in 1..=count {
                let version = if kind == "refreshed" { 3 + number } else { 3 };
                case.told(-400 + number * 15, kind, version).fingerprint = Some(format!("f{version}"));
            }
            let last = case.history.last().expect("a line");
            case.connection.version = last.version;
            case.fingerprint.clone_from(&last.fingerprint);
        }
    };
    check(
        burst("refreshed", 3),
        Cause::RefreshStampede,
        "3 or more times within 10 min",
    );
    check_verdict(burst("refreshed", 2), Verdict::Healthy);
    check(
        burst("lease_taken_over", 3),
        Cause::RefreshStampede,
        "Processes take the right to refresh from each other",
    );
    check_verdict(burst("lease_taken_over", 2), Verdict::Healthy);
    check(
        |case| {
            let mut calls = calls(1);
            calls.refresh_forced = 20;
            case.hour(0, calls);
        },
        Cause::RefreshStampede,
        "20 times within an hour",
    );
    // It may have cost the grant.
    check(
        |case| {
            case.told(-70, EventKind::DoubleRedemption.as_str(), 3);
            condemned(case, ReconnectReason::GrantRefused);
        },
        Cause::RefreshStampede,
        "loses the grant",
    );
}

#[test]
fn a_person_who_tries_twice_beside_a_reported_token_is_no_stampede_and_one_who_goes_on_is() {
    // Refreshed so, every two minutes until a minute ago.
    let refreshed = |reasons: &'static [&'static str]| {
        move |case: &mut Case| {
            let first = -60 - 120 * i64::try_from(reasons.len()).expect("few");
            case.told(first, "refreshed", 3).fingerprint = Some("f3".into());
            for (nth, reason) in (1_i64..).zip(reasons) {
                let line = case.told(first + nth * 120, "refreshed", 3 + nth);
                line.reason = Some((*reason).to_owned());
                line.fingerprint = Some(format!("f{}", 3 + nth));
            }
            let last = case.history.last().expect("a line");
            case.connection.version = last.version;
            case.fingerprint.clone_from(&last.fingerprint);
        }
    };
    check_verdict(refreshed(&["rejected", "forced", "forced"]), Verdict::Healthy);
    check_verdict(refreshed(&["forced", "rejected", "asked"]), Verdict::Healthy);
    for reasons in [
        &["forced", "forced", "forced"][..],
        &["forced", "asked", "rejected", "forced"],
        &["rejected", "rejected", "rejected"],
        &["waited_for", "due", "rejected"],
    ] {
        check(
            refreshed(reasons),
            Cause::RefreshStampede,
            "3 or more times within 10 min",
        );
    }
    // The one more try after a lost outcome is none of them.
    check_verdict(
        |case| {
            refreshed(&["forced", "forced", "forced"])(case);
            let at = case.history[case.history.len() - 2].at;
            let last = case.history.pop().expect("a line");
            let version = last.version.number() - 1;
            let line = case.told(0, "reconnect_required", version);
            line.at = Timestamp::from_millis(at.millis() + 1000);
            case.history.push(last);
        },
        Verdict::Healthy,
    );
}

#[test]
fn a_403_or_429_that_leads_to_a_refresh_is_misread() {
    for (status, kind, cause) in [
        (403, "permission_denied", Cause::MisreadPermission),
        (429, "rate_limited", Cause::MisreadRateLimit),
    ] {
        check(
            |case| {
                let line = case.told(-20, EventKind::TokenReported.as_str(), 3);
                line.status_code = Some(status);
                line.token_version = Some(Version::new(3));
            },
            cause,
            "Let the caller refresh on 401 alone",
        );
        let forced_after = |pause: i64| {
            move |case: &mut Case| {
                case.told(-300, kind, 3);
                case.told(-300 + pause, EventKind::RefreshForced.as_str(), 3);
            }
        };
        check(
            forced_after(60),
            cause,
            "followed by a forced refresh within 60 s once",
        );
        check_verdict(forced_after(61), Verdict::Healthy);
        check_verdict(forced_after(-1), Verdict::Healthy);
    }
}

#[test]
fn a_grant_that_is_gone_asks_for_reconnecting_also_before_a_refresh_meets_it() {
    for (reason, said) in [
        (
            ReconnectReason::GrantRefused,
            "the refresh token was refused at 11:59:00 UTC",
        ),
        (
            ReconnectReason::RedemptionOutcomeLost,
            ReconnectReason::RedemptionOutcomeLost.meaning(),
        ),
        (
            ReconnectReason::NoRefreshToken,
            ReconnectReason::NoRefreshToken.meaning(),
        ),
        (
            ReconnectReason::Uninstalled,
            ReconnectReason::Uninstalled.meaning(),
        ),
    ] {
        let diagnosis = check(|case| condemned(case, reason), Cause::GrantRefused, said);
        assert_eq!(diagnosis.remedy, Remedy::Reconnect);
    }
    check(
        |case| {
            case.refresh_token = Ok(TokenLife::Inactive);
            case.access_token = Ok(TokenLife::Inactive);
        },
        Cause::GrantRefused,
        "the access token at hand was to end at 12:20 UTC (in 20 min)",
    );
    check(
        |case| {
            case.connection.kind = Kind::Static;
            case.connection.last.unauthorized_at = Some(at(-10));
        },
        Cause::GrantRefused,
        "Make a new token",
    );
}

#[test]
fn a_disconnected_connection_says_so_and_who_took_its_place() {
    let gone = |superseded_by: Option<&'static str>| {
        move |case: &mut Case| {
            case.connection.status = ConnectionStatus::Disconnected {
                since: at(-60),
                superseded_by: superseded_by.map(|id| ConnectionId::parse(id).expect("a literal id")),
            };
        }
    };
    check(
        gone(None),
        Cause::GrantRefused,
        "evergrant connect --app crm --customer acme",
    );
    check(gone(Some("c2")), Cause::GrantRefused, "Use c2 instead");
}

#[test]
fn what_the_provider_has_against_the_app_is_never_blamed_on_the_customer() {
    let rejected = |case: &mut Case| {
        case.standing = Ok(AppStanding {
            health: AppHealth::CredentialsRejected {
                code: "BAD_CLIENT_SECRET".into(),
                since: at(-90),
            },
            endpoint: None,
            rotates_since: None,
        });
    };
    check(rejected, Cause::AppCredentials, "Nobody has to reconnect");
    check(
        |case| case.refresh_token = Err(Gap::ClientRefused("BAD_CLIENT_ID".into())),
        Cause::AppCredentials,
        "BAD_CLIENT_ID",
    );
    check(|case| case.app = None, Cause::AppCredentials, "[apps.crm]");
    check(
        |case| condemned(case, ReconnectReason::WrongClient),
        Cause::AppCredentials,
        "another client id",
    );
    // It stops every refresh, so what merely hurts does not hide it.
    check(
        |case| {
            rejected(case);
            case.told(-20, EventKind::TokenReported.as_str(), 3).status_code = Some(403);
        },
        Cause::AppCredentials,
        "BAD_CLIENT_SECRET",
    );
}

#[test]
fn a_missing_scope_is_named_with_the_connection_of_the_customer_that_has_it() {
    let denied = |case: &mut Case| {
        case.told(-20, "permission_denied", 3).detail =
            "a call came back 403: missing scopes: deals.read; add it to the app's scopes".into();
    };
    check(
        denied,
        Cause::MissingScopes,
        "Add deals.read to the scopes of [apps.crm]",
    );
    check(
        |case| {
            denied(case);
            case.app
                .as_mut()
                .expect("an app")
                .optional_scopes
                .push("deals.read".into());
        },
        Cause::MissingScopes,
        "agreeing again grants deals.read",
    );
    check(
        |case| {
            denied(case);
            case.relatives.push(Relative {
                id: ConnectionId::parse("c9").expect("a literal id"),
                app: AppName::parse("sales").expect("a literal name"),
                account: None,
                scopes: vec!["deals.read".into()],
            });
        },
        Cause::MissingScopes,
        "connection c9 of the same customer (app sales) has it",
    );
    check(
        |case| {
            let app = case.app.as_mut().expect("an app");
            app.scopes.push("contacts.write".into());
        },
        Cause::MissingScopes,
        "no call came back 403 yet",
    );
    check(
        |case| case.connection.last.forbidden_at = Some(at(-5)),
        Cause::MissingScopes,
        "names no scope that is missing",
    );
    check_verdict(
        |case| {
            denied(case);
            case.connection.scopes.push("deals.read".into());
        },
        Verdict::Healthy,
    );
}

#[test]
fn a_limit_that_was_met_lately_is_a_limit_and_one_of_this_morning_is_none() {
    check(
        |case| case.connection.last.rate_limited_at = Some(at(-899)),
        Cause::RateLimited,
        "Retry-After",
    );
    check_verdict(
        |case| case.connection.last.rate_limited_at = Some(at(-901)),
        Verdict::Healthy,
    );
}

#[test]
fn the_providers_trouble_is_named_however_it_shows() {
    check(
        |case| {
            case.connection.trouble = Some(RefreshTrouble {
                failed_at: at(-5),
                code: "503".into(),
                failures: 2,
                next_attempt_at: at(20),
            });
        },
        Cause::ProviderOutage,
        "failed twice in a row, last at 11:59:55 UTC (5 s ago) with 503",
    );
    check(
        |case| {
            case.connection.intent = Some(Intent {
                version: Version::new(3),
                first_at: at(-100),
                last_at: at(-100),
                attempts: 1,
            });
        },
        Cause::ProviderOutage,
        "nobody knows how it ended",
    );
    check(
        |case| {
            case.standing = Ok(AppStanding {
                health: AppHealth::Ok,
                endpoint: Some(Breaker {
                    failures: 7,
                    code: "404".into(),
                    rest_until: at(30),
                }),
                rotates_since: None,
            });
        },
        Cause::ProviderOutage,
        "left alone until",
    );
    check(
        |case| case.refresh_token = Err(Gap::Silent("timeout".into())),
        Cause::ProviderOutage,
        "timeout",
    );
    check(
        |case| {
            let mut calls = calls(10);
            calls.unavailable = 40;
            case.hour(0, calls);
        },
        Cause::ProviderOutage,
        "40 of 90 calls",
    );
}

#[test]
fn our_own_store_is_named_when_it_is_slow_behind_or_away() {
    check(|case| case.afloat = Ok(1), Cause::StoreTrouble, "lifeboat");
    check(
        |case| case.store_took = Duration::from_millis(1500),
        Cause::StoreTrouble,
        "one read took 1 s",
    );
    let away = without_store("no answer within 2 s");
    assert_eq!(away.verdict, Verdict::Cause(Cause::StoreTrouble));
    assert_eq!(away.checks.len(), Cause::ALL.len());
}

#[test]
fn what_of_the_store_could_not_be_read_is_named_and_nothing_that_hangs_on_it_is_called_clear() {
    let hangs_on_it = |plant: fn(&mut Case), unread: &str, causes: &[Cause]| {
        let diagnosis = check(plant, Cause::StoreTrouble, unread);
        for cause in causes {
            let check = diagnosis.checks.iter().find(|check| check.cause == *cause);
            let finding = check.map(|check| check.finding);
            assert_eq!(finding, Some(Finding::Skipped), "{unread}: {cause:?}");
        }
    };
    hangs_on_it(
        |case| case.history_gap = Some(Gap::Silent("busy".into())),
        "not its history: no usable answer came (busy)",
        &[
            Cause::StaleTokenReuse,
            Cause::RacedWrite,
            Cause::RefreshStampede,
            Cause::MisreadPermission,
            Cause::MisreadRateLimit,
            Cause::MissingScopes,
        ],
    );
    hangs_on_it(
        |case| case.hours_gap = Some(Gap::Silent("busy".into())),
        "not what its calls did",
        &[
            Cause::QueueDelay,
            Cause::RefreshStampede,
            Cause::ProviderOutage,
            Cause::NoTraffic,
        ],
    );
    hangs_on_it(
        |case| case.standing = Err(Gap::Silent("busy".into())),
        "not its app's state",
        &[Cause::AppCredentials, Cause::ProviderOutage],
    );
}

#[test]
fn a_probe_that_fails_is_skipped_with_its_reason_and_never_clear() {
    let skipped = |plant: fn(&mut Case), verdict: Verdict, cause: Cause, why: &str| {
        let diagnosis = check_verdict(plant, verdict);
        let check = diagnosis.checks.iter().find(|check| check.cause == cause);
        let check = check.expect("every cause is checked");
        assert_eq!(check.finding, Finding::Skipped, "{check:?}");
        assert!(check.evidence.contains(why), "{check:?}");
    };

    // The lifeboat may hold the only copy of a token: that nobody could look is no good news.
    skipped(
        |case| case.afloat = Err(Gap::Silent("EIO".into())),
        Verdict::Inconclusive,
        Cause::StoreTrouble,
        "the lifeboat was not looked into: no usable answer came (EIO)",
    );
    check_verdict(
        |case| case.afloat = Err(Gap::NotAsked("there is none".into())),
        Verdict::Healthy,
    );
    skipped(
        |case| case.machine_ahead_ms = Err(Gap::Silent("EIO".into())),
        Verdict::Healthy,
        Cause::ClockSkew,
        "the database's clock was not read",
    );
    skipped(
        |case| case.provider_clock = Err(Gap::NotAsked("no Date came".into())),
        Verdict::Healthy,
        Cause::ClockSkew,
        "the provider's clock was not read: no Date came",
    );
    // Neither clock, and no call that says that they agree.
    skipped(
        |case| {
            case.provider_clock = Err(Gap::NotAsked("no Date came".into()));
            case.connection.last.success_at = None;
        },
        Verdict::Inconclusive,
        Cause::ClockSkew,
        "the store has no clock of its own",
    );
    for cause in [Cause::WrongAccount, Cause::RacedWrite, Cause::GrantRefused] {
        skipped(
            |case| {
                case.refresh_token = Err(Gap::NotAsked("its turn did not come".into()));
                case.access_token = case.refresh_token.clone();
            },
            Verdict::Healthy,
            cause,
            "its turn did not come",
        );
    }
    // One of the two is not enough to say who holds the grant.
    skipped(
        |case| case.access_token = Err(Gap::NotAsked("its turn did not come".into())),
        Verdict::Healthy,
        Cause::RacedWrite,
        "whether somebody else holds the grant could not be asked",
    );
    // A provider that does not answer is what is found, not a gap.
    check(
        |case| case.provider_clock = Err(Gap::Silent("unreachable".into())),
        Cause::ProviderOutage,
        "unreachable",
    );
}

#[test]
fn of_two_that_hurt_the_first_is_the_verdict_and_names_the_other() {
    let diagnosis = check(
        |case| {
            case.told(-20, "permission_denied", 3).detail =
                "a call came back 403: missing scopes: deals.read; add it to the app's scopes".into();
            case.connection.last.rate_limited_at = Some(at(-10));
        },
        Cause::MissingScopes,
        "Found beside it: The provider limits the calls.",
    );
    assert_eq!(diagnosis.remedy, Remedy::Reconnect);
}

#[test]
fn what_came_earlier_and_not_again_does_not_hide_what_hurts_now() {
    let stale = |seconds: i64| {
        move |case: &mut Case| {
            case.connection.connected_at = at(-20 * 3600);
            case.history.clear();
            case.told(-20 * 3600, "connected", 1);
            case.told(-19 * 3600, "refreshed", 2);
            let line = case.told(seconds, EventKind::TokenReported.as_str(), 2);
            line.detail = "API key k1 says that the provider answered 401 to the token of version 1".into();
            line.status_code = Some(401);
            line.token_version = Some(Version::new(1));
            case.told(-600, "refreshed", 3).fingerprint = Some("f3".into());
        }
    };
    // Within the hour it is still going on.
    let now = check(stale(-3600), Cause::StaleTokenReuse, "told by API key k1");
    assert!(!now.summary.contains("not come again"), "{}", now.summary);
    let over = check(
        stale(-3601),
        Cause::StaleTokenReuse,
        "It has not come again since 10:59 UTC (60 min ago).",
    );
    assert_eq!(over.remedy, Remedy::AsSaid);
    check(
        |case| {
            stale(-3600)(case);
            limited(case);
        },
        Cause::StaleTokenReuse,
        "Found beside it: The provider limits the calls",
    );
    check(
        |case| {
            stale(-3601)(case);
            limited(case);
        },
        Cause::RateLimited,
        "Found beside it: An old access token is used again",
    );
    // So does a silence that began afterwards.
    check(
        |case| {
            case.hours.clear();
            for hours_ago in [8, 7, 6] {
                case.hour(hours_ago, calls(40));
            }
            stale(-6 * 3600)(case);
            case.connection.last.call_at = Some(at(-6 * 3600));
        },
        Cause::NoTraffic,
        "No call has come since",
    );
}

/// Limited a minute ago.
fn limited(case: &mut Case) {
    case.connection.last.rate_limited_at = Some(at(-60));
}

#[test]
fn each_of_those_that_come_and_go_has_its_time() {
    let long_ago = -3 * 3600;
    let fades = |plant: &dyn Fn(&mut Case), cause: Cause| {
        let diagnosis = check(
            |case| {
                case.connection.connected_at = at(-20 * 3600);
                plant(case);
            },
            cause,
            "not come again since",
        );
        assert_eq!(diagnosis.verdict, Verdict::Cause(cause));
        check(
            |case| {
                case.connection.connected_at = at(-20 * 3600);
                plant(case);
                limited(case);
            },
            Cause::RateLimited,
            cause.title(),
        );
    };
    fades(
        &|case| {
            case.told(long_ago, EventKind::DoubleRedemption.as_str(), 1);
        },
        Cause::RefreshStampede,
    );
    fades(
        &|case| {
            for number in 0..3 {
                case.told(long_ago + number, EventKind::LeaseTakenOver.as_str(), 1);
            }
        },
        Cause::RefreshStampede,
    );
    fades(
        &|case| {
            case.told(long_ago, EventKind::StoreRegressed.as_str(), 1);
        },
        Cause::RacedWrite,
    );
    fades(
        &|case| {
            case.told(long_ago, EventKind::TokenReported.as_str(), 1)
                .status_code = Some(403);
        },
        Cause::MisreadPermission,
    );
    fades(
        &|case| {
            let mut late = calls(10);
            late.by_delay[6] = 10;
            case.hour(4, late);
        },
        Cause::QueueDelay,
    );
    fades(
        &|case| {
            let mut forced = calls(10);
            forced.refresh_forced = 30;
            case.hour(4, forced);
        },
        Cause::RefreshStampede,
    );
    fades(
        &|case| {
            case.told(long_ago, "permission_denied", 1).detail =
                "a call came back 403: missing scopes: deals.read; add it".into();
        },
        Cause::MissingScopes,
    );
}

#[test]
fn one_report_is_counted_once_and_what_the_gateway_met_is_no_callers_doing() {
    // The report, and the call that is noted because of it.
    let told = |case: &mut Case, kind: EventKind| {
        let line = case.told(-60, kind.as_str(), 3);
        line.status_code = Some(401);
        line.token_version = Some(Version::new(2));
    };
    check(
        |case| {
            told(case, EventKind::TokenReported);
            told(case, EventKind::CallUnauthorized);
        },
        Cause::StaleTokenReuse,
        "a token was presented late once",
    );
    check_verdict(|case| told(case, EventKind::CallUnauthorized), Verdict::Healthy);
}

#[test]
fn a_refused_grant_says_who_may_have_ended_it_as_far_as_anybody_can_know() {
    let refused = |case: &mut Case| condemned(case, ReconnectReason::GrantRefused);
    // Both tokens are dead by now, which tells nothing.
    let either = check(refused, Cause::GrantRefused, "somebody else holds the same grant");
    assert!(
        either.summary.contains("the app was uninstalled") && either.action.contains("Ask them whether"),
        "{either:#?}"
    );
    check(
        refused,
        Cause::GrantRefused,
        "the last refresh succeeded at 11:50 UTC (10 min ago)",
    );
    // Nobody could be asked at all.
    check(
        |case| {
            refused(case);
            case.refresh_token = Err(Gap::NotAsked("the provider introspects no tokens".into()));
            case.access_token = case.refresh_token.clone();
        },
        Cause::GrantRefused,
        "Either the customer's side ended it",
    );
    // A call met the access token dead before its end, which no other holder brings about.
    let together = check(
        |case| {
            refused(case);
            case.connection.last.unauthorized_at = Some(at(-61));
        },
        Cause::GrantRefused,
        "the access token was refused before its end, and the refresh token with it",
    );
    assert!(!together.summary.contains("somebody else"), "{together:#?}");
    for seconds in [-60 - 121, -60 + 121] {
        check(
            |case| {
                refused(case);
                case.connection.last.unauthorized_at = Some(at(seconds));
            },
            Cause::GrantRefused,
            "Either the customer's side ended it",
        );
    }
    // It had ended by itself when the call met it.
    check(
        |case| {
            refused(case);
            case.connection.ends =
                RefreshPolicy::Queue.ends(at(-1900), Duration::from_secs(1800), Jitter::NONE);
            case.connection.last.unauthorized_at = Some(at(-61));
        },
        Cause::GrantRefused,
        "Either the customer's side ended it",
    );
    // A second time within a week.
    let again = |days: i64| {
        move |case: &mut Case| {
            case.told(-days * 24 * 3600, "reconnect_required", 0);
            case.history.rotate_right(1);
            condemned(case, ReconnectReason::GrantRefused);
        }
    };
    check(again(7), Cause::GrantRefused, "and not for the first time");
    check(
        again(8),
        Cause::GrantRefused,
        "Either the customer's side ended it",
    );
    // The provider contradicts itself.
    let contradicts = check(
        |case| {
            refused(case);
            case.refresh_token = Ok(alive("7"));
            case.access_token = Ok(alive("7"));
        },
        Cause::GrantRefused,
        "says now that it lives",
    );
    assert_eq!(contradicts.remedy, Remedy::Reconnect);
    // Seen before a refresh met it, and only half of it could be asked.
    check(
        |case| {
            case.refresh_token = Ok(TokenLife::Inactive);
            case.access_token = Err(Gap::NotAsked("its turn did not come".into()));
        },
        Cause::GrantRefused,
        "Either the customer's side ended it",
    );
}

#[test]
fn many_calls_that_find_nothing_hint_at_a_caller_that_means_another_account() {
    let not_found = |number: u64, all: u64| {
        move |case: &mut Case| {
            case.hours.clear();
            let mut calls = calls(all);
            calls.not_found = number;
            case.hour(0, calls);
        }
    };
    let diagnosis = check_verdict(not_found(10, 20), Verdict::Healthy);
    assert!(
        diagnosis
            .summary
            .contains("10 of 20 calls since 09:00 UTC (3 h ago) came back 404")
            && diagnosis.summary.contains("whether it means account 7")
            && diagnosis.action.contains("evergrant connections show c1"),
        "{}",
        diagnosis.summary
    );
    let told = &diagnosis.checks[1];
    assert_eq!((told.cause, told.finding), (Cause::WrongAccount, Finding::Clear));
    assert!(told.evidence.contains("came back 404"), "{told:?}");
    for few in [not_found(9, 9), not_found(10, 21)] {
        let diagnosis = check_verdict(few, Verdict::Healthy);
        assert!(!diagnosis.summary.contains("404"), "{}", diagnosis.summary);
    }
}

/// Called all the time, in each hour of the last 30 so often, until `seconds` ago; `came` calls in the hour in which it stopped.
fn busy(each_hour: u64, seconds: i64, came: u64) -> impl Fn(&mut Case) {
    move |case: &mut Case| {
        case.hours.clear();
        let last = at(-seconds);
        let stopped_in = seconds.div_euclid(3600) + i64::from(seconds.rem_euclid(3600) > 0);
        for hours_ago in stopped_in + 1..=30 {
            case.hour(hours_ago, calls(each_hour));
        }
        case.hour(stopped_in, calls(came));
        case.connection.connected_at = at(-50 * 3600);
        case.connection.last.call_at = Some(last);
        case.connection.last.success_at = Some(last);
    }
}

#[test]
fn a_busy_connection_is_quiet_sooner() {
    // Round the clock, a few in each hour.
    check(
        busy(12, 4501, 3),
        Cause::NoTraffic,
        "about 12 an hour at this time of day, yesterday and today",
    );
    check_verdict(busy(12, 4500, 3), Verdict::Healthy);
    check_verdict(busy(11, 4501, 3), Verdict::Healthy);
    // Evenly over the hour, many: stopped 21 min ago, when 39 of 60 min had gone by.
    check(
        busy(600, 21 * 60, 390),
        Cause::NoTraffic,
        "No call has come since 11:39 UTC",
    );
    check(busy(600, 21 * 60, 280), Cause::NoTraffic, "since 11:39 UTC");
    check_verdict(busy(600, 20 * 60, 390), Verdict::Healthy);
    // All that come in an hour had come: a burst that is over. So few that they began late: a burst that was to come.
    check_verdict(busy(600, 21 * 60, 600), Verdict::Healthy);
    check_verdict(busy(600, 21 * 60, 250), Verdict::Healthy);
    // Too little of the hour had gone by, or too much, to tell.
    check_verdict(busy(600, 50 * 60, 100), Verdict::Healthy);
    check_verdict(busy(600, 46 * 60, 140), Verdict::Healthy);
    check(busy(600, 44 * 60, 160), Cause::NoTraffic, "since 11:16 UTC");
    // Too few, or too different from hour to hour, to be even.
    check_verdict(busy(59, 21 * 60, 39), Verdict::Healthy);
    check_verdict(
        |case| {
            busy(600, 21 * 60, 390)(case);
            case.hours.retain(|hour| hour.began_at != at(-2 * 3600));
            case.hour(2, calls(1300));
        },
        Verdict::Healthy,
    );
}

#[test]
fn a_pause_that_yesterday_had_at_this_time_of_day_is_usual() {
    for quiet_then in [23, 24, 25, 26, 27] {
        check_verdict(
            |case| {
                busy(600, 80 * 60, 400)(case);
                case.hours.retain(|hour| hour.began_at != at(-quiet_then * 3600));
            },
            Verdict::Healthy,
        );
    }
    // It worked today for less than three hours.
    check_verdict(
        |case| {
            busy(600, 80 * 60, 400)(case);
            case.hours.retain(|hour| hour.began_at != at(-5 * 3600));
        },
        Verdict::Healthy,
    );
    check(
        busy(600, 80 * 60, 400),
        Cause::NoTraffic,
        "since 10:40 UTC (80 min ago)",
    );
}

#[test]
fn calls_have_stopped_when_the_pause_is_twice_the_usual_one_and_two_hours_at_least() {
    let quiet = |seconds: i64, active: &'static [i64]| {
        move |case: &mut Case| {
            case.hours.clear();
            for hours_ago in active {
                case.hour(*hours_ago, calls(40));
            }
            case.connection.connected_at = at(-50 * 3600);
            case.connection.last.call_at = Some(at(-seconds));
            case.connection.last.success_at = Some(at(-seconds));
        }
    };
    check(
        quiet(7201, &[5, 4, 3]),
        Cause::NoTraffic,
        "No call has come since 09:59 UTC (2 h ago)",
    );
    check_verdict(quiet(7200, &[5, 4, 3]), Verdict::Healthy);
    // Every six hours is a rhythm, too.
    check_verdict(quiet(10 * 3600, &[22, 16, 10]), Verdict::Healthy);
    check(
        quiet(10 * 3600 + 1, &[22, 16, 10]),
        Cause::NoTraffic,
        "never more than 5 h apart",
    );
    // Too seldom to speak of a rhythm.
    check_verdict(quiet(40 * 3600, &[44, 40]), Verdict::Healthy);
}

#[test]
fn silence_is_not_blamed_on_the_worker_where_something_else_was_found() {
    let diagnosis = check(
        |case| {
            case.hours.clear();
            for hours_ago in [6, 5, 4] {
                case.hour(hours_ago, calls(40));
            }
            case.connection.connected_at = at(-50 * 3600);
            case.connection.last.call_at = Some(at(-4 * 3600));
            case.connection.last.rate_limited_at = Some(at(-60));
        },
        Cause::RateLimited,
        "limits this account's calls",
    );
    assert_eq!(
        diagnosis.checks.last().map(|check| check.finding),
        Some(Finding::Clear)
    );
}

#[test]
fn what_could_not_be_looked_at_keeps_a_verdict_open_unless_a_success_says_as_much() {
    let unasked = || Err(Gap::NotAsked("there was no time to".into()));
    let blind = |case: &mut Case| {
        case.refresh_token = unasked();
        case.access_token = unasked();
    };
    check_verdict(blind, Verdict::Healthy);
    let diagnosis = check_verdict(
        |case| {
            blind(case);
            case.connection.last.success_at = None;
        },
        Verdict::Inconclusive,
    );
    assert!(
        diagnosis
            .summary
            .contains("wrong_account, raced_write, grant_refused"),
        "{}",
        diagnosis.summary
    );
    // A provider that cannot be asked never answers more than that.
    check_verdict(
        |case| {
            blind(case);
            case.connection.last.success_at = None;
            case.app.as_mut().expect("an app").provider.introspect_url = None;
        },
        Verdict::Healthy,
    );
}

#[test]
fn what_came_before_the_last_consent_is_another_story() {
    check_verdict(
        |case| {
            let line = case.told(-60, EventKind::TokenReported.as_str(), 3);
            line.status_code = Some(403);
            case.told(-59, EventKind::DoubleRedemption.as_str(), 3);
            case.connection.connected_at = at(-30);
            case.connection.last.rate_limited_at = Some(at(-60));
            case.connection.last.forbidden_at = Some(at(-60));
        },
        Verdict::Healthy,
    );
}

#[test]
fn just_under_each_bound_nothing_is_found() {
    let unavailable = |troubled: u64, all: u64| {
        move |case: &mut Case| {
            case.hours.clear();
            let mut calls = calls(all);
            calls.unavailable = troubled;
            case.hour(0, calls);
        }
    };
    check(unavailable(20, 100), Cause::ProviderOutage, "20 of 100 calls");
    check_verdict(unavailable(19, 100), Verdict::Healthy);
    check(unavailable(3, 3), Cause::ProviderOutage, "3 of 3 calls");
    // What was refused here dilutes nothing either.
    check(
        |case| {
            unavailable(20, 100)(case);
            case.hours[0].calls.all += 1000;
            case.hours[0].calls.refused += 1000;
        },
        Cause::ProviderOutage,
        "20 of 100 calls",
    );
    check_verdict(
        |case| {
            unavailable(2, 2)(case);
            case.hours[0].calls.all += 1000;
            case.hours[0].calls.refused += 1000;
        },
        Verdict::Healthy,
    );
    check_verdict(unavailable(2, 2), Verdict::Healthy);
    check_verdict(
        |case| {
            let mut calls = calls(1);
            calls.refresh_forced = 19;
            case.hour(0, calls);
        },
        Verdict::Healthy,
    );
    // A breaker that has rested.
    check_verdict(
        |case| {
            case.standing = Ok(AppStanding {
                health: AppHealth::Ok,
                endpoint: Some(Breaker {
                    failures: 7,
                    code: "404".into(),
                    rest_until: at(-1),
                }),
                rotates_since: None,
            });
        },
        Verdict::Healthy,
    );
    // A 403 that a success came after.
    check_verdict(
        |case| case.connection.last.forbidden_at = Some(at(-60)),
        Verdict::Healthy,
    );
    // What is over for more than half a day.
    for (seconds, verdict) in [
        (-12 * 3600, Verdict::Cause(Cause::RefreshStampede)),
        (-12 * 3600 - 1, Verdict::Healthy),
    ] {
        check_verdict(
            |case| {
                case.connection.connected_at = at(-20 * 3600);
                case.told(seconds, EventKind::DoubleRedemption.as_str(), 1);
            },
            verdict,
        );
    }
}

#[test]
fn a_report_of_another_status_is_no_stale_token() {
    let diagnosis = check(
        |case| {
            let line = case.told(-60, EventKind::TokenReported.as_str(), 3);
            line.status_code = Some(403);
            line.token_version = Some(Version::new(2));
        },
        Cause::MisreadPermission,
        "reported as a rejected token once",
    );
    assert_eq!(diagnosis.checks[0].finding, Finding::Clear);
}

#[test]
fn a_static_token_is_refused_also_where_it_never_worked() {
    for success_at in [None, Some(at(-20))] {
        check(
            |case| {
                case.connection.kind = Kind::Static;
                case.connection.last.success_at = success_at;
                case.connection.last.unauthorized_at = Some(at(-10));
            },
            Cause::GrantRefused,
            "Make a new token",
        );
    }
    check_verdict(
        |case| {
            case.connection.kind = Kind::Static;
            case.connection.last.success_at = Some(at(-5));
            case.connection.last.unauthorized_at = Some(at(-10));
        },
        Verdict::Healthy,
    );
}

#[test]
fn an_outage_stops_calls_once_the_token_at_hand_has_ended() {
    let troubled = |issued: i64| {
        move |case: &mut Case| {
            case.connection.issued_at = at(issued);
            case.connection.ends =
                RefreshPolicy::Queue.ends(at(issued), Duration::from_secs(1800), Jitter::NONE);
            case.connection.trouble = Some(RefreshTrouble {
                failed_at: at(-5),
                code: "503".into(),
                failures: 2,
                next_attempt_at: at(20),
            });
            let line = case.told(-60, EventKind::TokenReported.as_str(), 3);
            line.status_code = Some(403);
        }
    };
    check(
        troubled(-600),
        Cause::MisreadPermission,
        "Found beside it: The provider is in trouble",
    );
    check(
        troubled(-1900),
        Cause::ProviderOutage,
        "the token at hand ended at",
    );
}

#[test]
fn a_success_proves_the_token_set_that_it_came_with_until_a_401() {
    let blind = |success: i64, refused: Option<i64>| {
        move |case: &mut Case| {
            case.refresh_token = Err(Gap::NotAsked("there was no time to".into()));
            case.access_token = case.refresh_token.clone();
            case.connection.last.success_at = Some(at(success));
            case.connection.last.unauthorized_at = refused.map(at);
        }
    };
    check_verdict(blind(-600, None), Verdict::Healthy);
    check_verdict(blind(-601, None), Verdict::Inconclusive);
    check_verdict(blind(-30, Some(-31)), Verdict::Healthy);
    check_verdict(blind(-30, Some(-30)), Verdict::Inconclusive);
}
