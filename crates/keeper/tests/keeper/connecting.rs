//! How connections come to be, are restored, and end.

use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::refresh_policy::Jitter;
use evergrant_domain::trust::Trust;
use evergrant_domain::{
    AccessToken, AppName, AuthorizationCode, ConnectionId, Customer, ReconnectReason, RefreshPolicy,
    RefreshToken, Timestamp, TokenSet, Version,
};
use evergrant_keeper::{
    Asker, Clock, ConnectError, Consent, Import, ImportTerms, ImportTokens, Imported, KeepError, Keeper,
    OnConflict, Renewal, Verify,
};
use evergrant_store::Store;
use evergrant_store::contract::{Connected, RevocationState, Revoke};
use hubspot_sim::{Fault, FaultKind};

use crate::steps::{Moment, Steps};
use crate::world::{CLIENT, HUB, PAST_EXPIRY, World, assert_redeemed_once};

const REDIRECT_URI: &str = "http://localhost:8484/oauth/callback";

/// The connection `c1` gets a new grant, in the store alone: as another process would do it.
pub(crate) async fn reconnect_behind(
    store: &dyn Store,
    clock: &dyn Clock,
    id: &ConnectionId,
    grant: &hubspot_sim::Grant,
) -> Connected {
    let now = clock.now();
    let tokens = TokenSet {
        access_token: AccessToken::new(grant.access_token.clone()),
        refresh_token: Some(RefreshToken::new(grant.refresh_token.clone())),
        token_type: "bearer".into(),
        scopes: grant.scopes.clone(),
        issued_at: now,
        ends: RefreshPolicy::Queue.ends(now, grant.expires_in, Jitter::NONE),
        unproven: false,
    };
    let event = Event::new(EventKind::Reconnected, "the customer gave consent again");
    store.reconnect(id, None, tokens, event, now).await.unwrap()
}

/// A customer of `portal` consents; the code that comes back.
async fn code(world: &World, portal: u64) -> AuthorizationCode {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let query = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("client_id", CLIENT)
        .append_pair("redirect_uri", REDIRECT_URI)
        .append_pair("scope", "oauth crm.objects.contacts.read")
        .append_pair("_sim_hub_id", &portal.to_string())
        .finish();
    let mut stream = tokio::net::TcpStream::connect(world.hubspot.address())
        .await
        .unwrap();
    let request = format!("GET /oauth/authorize?{query} HTTP/1.1\r\nhost: sim\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let location = answer
        .lines()
        .find_map(|line| line.strip_prefix("location: "))
        .unwrap_or_else(|| panic!("{answer}"));
    let location = url::Url::parse(location.trim()).unwrap();
    let code = location
        .query_pairs()
        .find(|(name, _)| name == "code")
        .unwrap()
        .1
        .into_owned();
    AuthorizationCode::new(code)
}

fn consent(code: AuthorizationCode, connection: Option<&ConnectionId>) -> Consent {
    Consent {
        app: AppName::parse("crm").unwrap(),
        customer: Some(Customer::parse("acme").unwrap()),
        connection: connection.cloned(),
        code,
        redirect_uri: REDIRECT_URI.into(),
        code_verifier: None,
        scopes: vec!["oauth".into()],
    }
}

pub(crate) async fn consented(
    world: &World,
    keeper: &Keeper,
    portal: u64,
    connection: Option<&ConnectionId>,
) -> Result<evergrant_domain::Connection, ConnectError> {
    keeper
        .consent(consent(code(world, portal).await, connection))
        .await
}

#[tokio::test]
async fn a_consent_becomes_a_connection_that_knows_its_account() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let connection = consented(&world, &keeper, HUB, None).await.unwrap();
    let account = connection.account.unwrap();
    assert_eq!(account.id.as_str(), "1001");
    assert!(account.domain.is_some() && account.user.is_some(), "{account:?}");
    let token = keeper.current(&connection.id, None).await.unwrap();
    assert!(world.accepts(&token.access_token).await);
}

#[tokio::test]
async fn a_second_consent_for_the_same_account_restores_the_connection_in_place() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let first = consented(&world, &keeper, HUB, None).await.unwrap();
    world.hubspot.uninstall(CLIENT, HUB);
    world.pass(PAST_EXPIRY);
    assert!(matches!(
        keeper.current(&first.id, None).await,
        Err(KeepError::ReconnectRequired { .. })
    ));
    let again = consented(&world, &keeper, HUB, None).await.unwrap();
    assert_eq!(again.id, first.id);
    assert!(again.version > first.version);
    assert!(keeper.current(&first.id, None).await.is_ok());
    let elsewhere = consented(&world, &keeper, 2002, None).await.unwrap();
    assert_ne!(elsewhere.id, first.id);
}

#[tokio::test]
async fn an_install_under_a_new_id_takes_the_place_of_the_old_one_in_one_step() {
    let world = World::new().await;
    let (keeper, elsewhere) = (world.keeper().await, world.keeper().await);
    let old = consented(&world, &keeper, HUB, None).await.unwrap();
    elsewhere.current(&old.id, None).await.unwrap();
    let new_id = ConnectionId::parse("new").unwrap();
    let new = consented(&world, &elsewhere, HUB, Some(&new_id)).await.unwrap();
    assert_eq!(new.id, new_id);
    for keeper in [&elsewhere, &keeper] {
        assert!(
            world
                .accepts(&keeper.current(&new_id, None).await.unwrap().access_token)
                .await
        );
    }
    let error = elsewhere.current(&old.id, None).await.unwrap_err();
    assert!(
        matches!(&error, KeepError::Superseded { by } if *by == new_id),
        "{error:?}"
    );
    assert_eq!(
        world.hubspot.ledger().revocations,
        0,
        "the account is connected still"
    );
}

#[tokio::test]
async fn of_two_first_consents_for_one_account_at_once_both_lead_to_one_connection() {
    let world = World::new().await;
    let (a, b) = (world.keeper().await, world.keeper().await);
    let (first, second) = tokio::join!(consented(&world, &a, HUB, None), consented(&world, &b, HUB, None));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.id, second.id);
    a.current(&first.id, None).await.unwrap();
}

#[tokio::test]
async fn an_uninstall_stops_redeeming_until_the_customer_is_back() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let connection = consented(&world, &keeper, HUB, None).await.unwrap();
    let past = connection.connected_at.before(Duration::from_secs(60));
    assert!(
        !keeper
            .uninstalled(&connection.id, past, "long ago")
            .await
            .unwrap()
    );
    keeper.current(&connection.id, None).await.unwrap();
    world.hubspot.uninstall(CLIENT, HUB);
    world.pass(Duration::from_secs(1));
    assert!(
        keeper
            .uninstalled(&connection.id, world.clock.now(), "a test")
            .await
            .unwrap()
    );
    let requests = world.hubspot.ledger().token_requests;
    world.pass(PAST_EXPIRY);
    let error = keeper.current(&connection.id, None).await.unwrap_err();
    assert!(
        matches!(
            error,
            KeepError::ReconnectRequired {
                reason: ReconnectReason::Uninstalled,
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(
        world.hubspot.ledger().token_requests,
        requests,
        "nothing was presented"
    );
    consented(&world, &keeper, HUB, Some(&connection.id))
        .await
        .unwrap();
    keeper.current(&connection.id, None).await.unwrap();
}

#[tokio::test]
async fn a_different_account_is_refused_on_reconnecting_and_both_are_named() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let connection = consented(&world, &keeper, HUB, None).await.unwrap();
    let error = consented(&world, &keeper, 2002, Some(&connection.id))
        .await
        .unwrap_err();
    let ConnectError::AccountMismatch { expected, got } = &error else {
        panic!("{error:?}")
    };
    assert_ne!(expected, got);
    let events = keeper.store().events(&connection.id, 1).await.unwrap();
    assert_eq!(events[0].kind, "account_mismatch");
    // What was there still serves.
    assert!(keeper.current(&connection.id, None).await.is_ok());
    assert_eq!(
        keeper
            .store()
            .connection(&connection.id)
            .await
            .unwrap()
            .unwrap()
            .version,
        connection.version
    );
}

#[tokio::test]
async fn a_reconnect_in_mid_refresh_wins_and_the_old_grants_answer_changes_nothing() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let connection = world.connected(&keeper).await;
    world.pass(PAST_EXPIRY);
    world
        .hubspot
        .arm(hubspot_sim::Fault::token(hubspot_sim::FaultKind::HoldAfterIssue));
    let caller = tokio::spawn({
        let (keeper, id) = (keeper.clone(), connection.id.clone());
        async move { keeper.current(&id, None).await }
    });
    world.hubspot.wait_for_held(1).await;
    let grant = world.hubspot.grant(CLIENT, HUB).unwrap();
    reconnect_behind(&**keeper.store(), &*world.clock, &connection.id, &grant).await;
    world.hubspot.release_held();
    let token = caller.await.unwrap().unwrap();
    assert_eq!(token.access_token.expose(), grant.access_token);
    assert_eq!(token.version, connection.version.next());
}

#[tokio::test]
async fn a_token_set_that_took_anothers_place_and_has_ended_is_redeemed_like_any_other() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let connection = world.connected(&keeper).await;
    world.hubspot.arm(Fault::token(FaultKind::HoldAfterIssue));
    let asked = tokio::spawn({
        let (keeper, id) = (keeper.clone(), connection.id.clone());
        async move { keeper.refresh(&id, None, Renewal::Forced).await }
    });
    world.hubspot.wait_for_held(1).await;
    let grant = world.hubspot.grant(CLIENT, HUB).unwrap();
    reconnect_behind(&**keeper.store(), &*world.clock, &connection.id, &grant).await;
    world.pass(PAST_EXPIRY);
    world.hubspot.release_held();
    assert_eq!(asked.await.unwrap().unwrap().version.number(), 3);
}

#[tokio::test]
async fn a_code_is_good_once_and_a_refused_one_makes_no_connection() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let code = code(&world, HUB).await;
    keeper.consent(consent(code.clone(), None)).await.unwrap();
    let error = keeper.consent(consent(code, None)).await.unwrap_err();
    assert!(matches!(error, ConnectError::CodeRefused { .. }), "{error:?}");
}

#[tokio::test]
async fn an_import_without_an_access_token_is_due_at_once_and_pinned_to_its_account() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let grant = world.hubspot.grant(CLIENT, HUB).unwrap();
    let import = |refresh_token: &str, id: &str| Import {
        id: Some(ConnectionId::parse(id).unwrap()),
        app: AppName::parse("crm").unwrap(),
        customer: Customer::parse("acme").unwrap(),
        tokens: ImportTokens::OAuth {
            refresh_token: RefreshToken::new(refresh_token),
            access_token: None,
            expires_at: None,
            scopes: None,
        },
        account: None,
        labels: vec![("team".into(), "eu".into())],
    };
    let connection = keeper.import(import(&grant.refresh_token, "c1")).await.unwrap();
    assert_eq!(
        connection.account.map(|account| account.id.as_str().to_owned()),
        Some("1001".into())
    );
    let token = keeper.current(&connection.id, None).await.unwrap();
    assert!(world.accepts(&token.access_token).await);
    assert_eq!(token.version, Version::FIRST.next());

    let refused = keeper
        .import(import(&grant.refresh_token, "c2"))
        .await
        .unwrap_err();
    assert!(
        matches!(
            refused,
            ConnectError::AccountTaken { .. } | ConnectError::GrantTaken { .. }
        ),
        "{refused:?}"
    );
    let dead = keeper.import(import("na1-never-issued", "c3")).await.unwrap_err();
    assert!(matches!(dead, ConnectError::GrantInactive), "{dead:?}");
    let unsendable = keeper.import(import("with space", "c4")).await.unwrap_err();
    assert!(
        matches!(unsendable, ConnectError::Invalid { .. }),
        "{unsendable:?}"
    );
    assert_redeemed_once(&world.hubspot);
}

#[tokio::test]
async fn an_import_whose_access_token_never_ends_is_not_believed() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let grant = world.hubspot.grant(CLIENT, HUB).unwrap();
    for (id, ahead, believed) in [
        ("never", Duration::from_secs(8_000 * 365 * 24 * 3600), 600),
        ("soon", Duration::from_secs(60), 60),
        ("over", Duration::ZERO, 0),
    ] {
        let import = Import {
            id: Some(ConnectionId::parse(id).unwrap()),
            app: AppName::parse("crm").unwrap(),
            customer: Customer::parse(id).unwrap(),
            tokens: ImportTokens::OAuth {
                refresh_token: RefreshToken::new(format!("{}-{id}", grant.refresh_token)),
                access_token: Some(AccessToken::new("imported")),
                expires_at: Some(world.clock.now().after(ahead)),
                scopes: None,
            },
            account: Some(evergrant_domain::AccountId::parse("1001").unwrap()),
            labels: vec![],
        };
        let connection = keeper.import(import).await.unwrap();
        let lifetime = connection.ends.expires.since(connection.issued_at);
        assert!(lifetime.as_secs().abs_diff(believed) <= 1, "{id}: {lifetime:?}");
    }
}

fn record(grant: &hubspot_sim::Grant, refresh_token: &str, expires_at: Option<Timestamp>) -> Import {
    Import {
        id: Some(ConnectionId::parse("c1").unwrap()),
        app: AppName::parse("crm").unwrap(),
        customer: Customer::parse("acme").unwrap(),
        tokens: ImportTokens::OAuth {
            refresh_token: RefreshToken::new(refresh_token),
            access_token: Some(AccessToken::new(&*grant.access_token)),
            expires_at,
            scopes: None,
        },
        account: Some(evergrant_domain::AccountId::parse("1001").unwrap()),
        labels: vec![],
    }
}

const NEWER: ImportTerms = ImportTerms {
    on_conflict: OnConflict::ReplaceOlder,
    verify: Verify::No,
};
const VERIFIED: ImportTerms = ImportTerms {
    on_conflict: OnConflict::Refuse,
    verify: Verify::Yes,
};

#[tokio::test]
async fn a_newer_record_serves_at_once_and_again_changes_nothing() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let (old, new) = (
        world.hubspot.grant(CLIENT, HUB).unwrap(),
        world.hubspot.grant(CLIENT, HUB).unwrap(),
    );
    let now = world.clock.now();
    let ends_in = |seconds| Some(now.after(Duration::from_secs(seconds)));
    let bring = async |grant: &hubspot_sim::Grant, ends_at| {
        let record = record(grant, &grant.refresh_token, ends_at);
        keeper.import_on(Asker::UNKNOWN, record, NEWER).await
    };
    let made = bring(&old, ends_in(900)).await.unwrap();
    assert!(matches!(made, Imported::Made(_)), "{made:?}");
    let id = ConnectionId::parse("c1").unwrap();
    let held = keeper.current(&id, None).await.unwrap();
    assert_eq!(held.access_token.expose(), old.access_token);
    let replaced = bring(&new, ends_in(1800)).await.unwrap();
    assert!(
        matches!(&replaced, Imported::Replaced(connection) if connection.version == Version::new(2)),
        "{replaced:?}"
    );
    // What this process held before is served no more.
    let held = keeper.current(&id, None).await.unwrap();
    assert_eq!(held.access_token.expose(), new.access_token);
    for (grant, ends_at) in [
        (&new, ends_in(1800)),
        (&old, ends_in(900)),
        (&old, None),
        // An end that no token has is no claim to be newer.
        (&old, ends_in(8_000 * 365 * 24 * 3600)),
    ] {
        let refused = bring(grant, ends_at).await.unwrap_err();
        assert!(matches!(refused, ConnectError::NotNewer { .. }), "{refused:?}");
    }
    assert_eq!(keeper.current(&id, None).await.unwrap().version, Version::new(2));
    assert!(
        world
            .hubspot
            .ledger()
            .refresh_tokens
            .iter()
            .all(|token| token.presented == 0),
        "nothing was redeemed"
    );
}

#[tokio::test]
async fn a_record_that_is_verified_is_asked_about_once_and_stored_only_if_it_lives() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let grant = world.hubspot.grant(CLIENT, HUB).unwrap();
    let of_another = world.hubspot.grant(CLIENT, HUB + 1).unwrap();
    let ends_at = Some(world.clock.now().after(Duration::from_secs(900)));
    let bring = async |refresh_token: &str| {
        keeper
            .import_on(Asker::UNKNOWN, record(&grant, refresh_token, ends_at), VERIFIED)
            .await
    };
    let stored = async || {
        let id = ConnectionId::parse("c1").unwrap();
        keeper.store().connection(&id).await.unwrap().is_some()
    };
    let asked = || world.hubspot.ledger().introspections;
    let before = asked();
    let dead = bring("na1-never-issued").await.unwrap_err();
    assert!(matches!(dead, ConnectError::GrantInactive), "{dead:?}");
    let foreign = bring(&of_another.refresh_token).await.unwrap_err();
    assert!(
        matches!(foreign, ConnectError::RecordOfAnotherAccount { .. }),
        "{foreign:?}"
    );
    assert_eq!(asked(), before + 2);
    world.hubspot.arm(
        Fault::token(FaultKind::Status {
            code: 503,
            location: None,
        })
        .path("/oauth/2026-09/token/introspect")
        .times(1),
    );
    let silent = bring(&grant.refresh_token).await.unwrap_err();
    assert!(matches!(silent, ConnectError::Unverified { .. }), "{silent:?}");
    assert!(!stored().await);
    let before = asked();
    keeper
        .verify(&record(&grant, &grant.refresh_token, ends_at))
        .await
        .unwrap();
    assert!(!stored().await, "looking stores nothing");
    bring(&grant.refresh_token).await.unwrap();
    assert!(stored().await);
    assert_eq!(asked(), before + 2);
    let fixed = Import {
        id: None,
        tokens: ImportTokens::Static {
            access_token: AccessToken::new("static"),
        },
        ..record(&grant, "unused", None)
    };
    let fixed = keeper
        .import_on(Asker::UNKNOWN, fixed, VERIFIED)
        .await
        .unwrap_err();
    assert!(matches!(fixed, ConnectError::Invalid { .. }), "{fixed:?}");
}

#[tokio::test]
async fn a_disconnect_revokes_the_grant_at_the_provider_and_is_idempotent() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let connection = world.connected(&keeper).await;
    let (ended, state) = keeper.disconnect(&connection.id, Revoke::Auto).await.unwrap();
    assert_eq!(
        (ended.status.as_str(), state),
        ("disconnected", RevocationState::Pending)
    );
    keeper.shutdown().await;
    assert_eq!(world.hubspot.ledger().grants_revoked, 1);
    let (_, state) = keeper.disconnect(&connection.id, Revoke::Auto).await.unwrap();
    assert_eq!(state, RevocationState::Done);
    assert!(matches!(
        keeper.current(&connection.id, None).await,
        Err(KeepError::Disconnected)
    ));
}

#[tokio::test]
async fn an_answer_that_is_none_to_a_revocation_does_not_end_it() {
    let world = World::new().await;
    let keeper = world.keeper().await;
    let connection = world.connected(&keeper).await;
    // Another server answers for a moment.
    let path = "/oauth/2026-09/token/revoke";
    world
        .hubspot
        .arm(Fault::token(FaultKind::Html { code: 404 }).path(path));
    keeper.disconnect(&connection.id, Revoke::Auto).await.unwrap();
    keeper.shutdown().await;
    let (_, state) = keeper.disconnect(&connection.id, Revoke::Auto).await.unwrap();
    assert_eq!(state, RevocationState::Pending);
    assert_eq!(world.hubspot.ledger().grants_revoked, 0);
    world.pass(Duration::from_secs(61));
    let next = world.keeper().await;
    next.start();
    let revoked = async {
        while world.hubspot.ledger().grants_revoked == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), revoked)
        .await
        .expect("it is tried again");
    next.shutdown().await;
}

#[tokio::test]
async fn what_another_process_disconnected_is_served_no_longer_than_a_second() {
    let world = World::new().await;
    let (store, vault) = world.store().await;
    let read = Arc::new(tokio::sync::Notify::new());
    let reading = read.clone();
    let store = Steps::watched(store, move |step, moment| {
        if step == "changes" && moment == Moment::After {
            reading.notify_one();
        }
        Ok(())
    });
    let first = crate::world::keeper(world.app(), store, vault, world.clock.clone());
    let second = world.keeper().await;
    let connection = world.connected(&first).await;
    first.start();
    // Only now does the feed go on from somewhere; its first look throws away everything at hand.
    read.notified().await;
    first.current(&connection.id, None).await.unwrap();
    second.disconnect(&connection.id, Revoke::Never).await.unwrap();
    let seen = async {
        while first.current(&connection.id, None).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), seen)
        .await
        .expect("the change feed tells of it");
    assert!(matches!(
        first.current(&connection.id, None).await,
        Err(KeepError::Disconnected)
    ));
    first.shutdown().await;
}

#[tokio::test]
async fn a_process_that_was_stopped_serves_nothing_that_was_disconnected_meanwhile() {
    let world = World::new().await;
    let (first, second) = (world.keeper().await, world.keeper().await);
    let connection = world.connected(&first).await;
    first.current(&connection.id, None).await.unwrap();
    second.disconnect(&connection.id, Revoke::Never).await.unwrap();
    // It wakes, and nothing has read the feed yet.
    world.pass(Duration::from_secs(3));
    let error = first.current(&connection.id, None).await.unwrap_err();
    assert!(matches!(error, KeepError::Disconnected), "{error:?}");
    assert_eq!(first.trust(), Trust::AskFirst, "nor do keys at hand");
}

#[tokio::test]
async fn a_connection_that_is_always_kept_fresh_is_refreshed_without_a_call() {
    let world = World::new().await;
    let mut app = world.app();
    app.keep_fresh = evergrant_domain::KeepFresh::Always;
    let keeper = world.keeper_of(app).await;
    let connection = world.connected(&keeper).await;
    world.pass(Duration::from_secs(1600));
    keeper.start();
    let refreshed = async {
        while world.hubspot.ledger().refreshes_accepted == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), refreshed)
        .await
        .expect("the scheduler refreshes it");
    keeper.shutdown().await;
    let held = keeper.store().connection(&connection.id).await.unwrap().unwrap();
    assert_eq!(held.version, Version::FIRST.next());
}
