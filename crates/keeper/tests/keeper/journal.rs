//! Uninstalls that HubSpot's journal tells of.

use std::time::Duration;

use evergrant_domain::{AppName, Connection, ConnectionStatus, ReconnectReason};
use evergrant_keeper::{KeepError, Keeper};

use crate::connecting::consented;
use crate::world::{CLIENT, HUB, PAST_EXPIRY, World};

/// Past one process's turn at a journal.
const PAST_TURN: Duration = Duration::from_secs(31);

async fn reader(world: &World) -> Keeper {
    let keeper = world.keeper().await;
    keeper.read_journals_of(vec![AppName::parse("crm").unwrap()]);
    keeper
}

async fn read(world: &World, keeper: &Keeper) {
    world.pass(PAST_TURN);
    keeper.read_journals().await.unwrap();
}

async fn stored(keeper: &Keeper, connection: &Connection) -> Connection {
    keeper.store().connection(&connection.id).await.unwrap().unwrap()
}

#[tokio::test]
async fn an_uninstall_that_the_journal_tells_of_ends_the_grant_without_a_redemption() {
    let world = World::new().await;
    let keeper = reader(&world).await;
    let connection = consented(&world, &keeper, HUB, None).await.unwrap();
    let elsewhere = consented(&world, &keeper, 2002, None).await.unwrap();
    read(&world, &keeper).await;
    assert_eq!(world.hubspot.ledger().journal_subscriptions, 1);
    world.hubspot.uninstall(CLIENT, HUB);
    read(&world, &keeper).await;
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
    keeper
        .current(&elsewhere.id, None)
        .await
        .expect("another account's");
    world.pass(PAST_EXPIRY);
    keeper.current(&connection.id, None).await.unwrap_err();
    let ledger = world.hubspot.ledger();
    assert_eq!((ledger.refreshes_accepted, ledger.refreshes_refused), (0, 0));
    assert_eq!(
        (ledger.journal_subscriptions, ledger.journal_pages),
        (1, 1),
        "once each"
    );
    consented(&world, &keeper, HUB, Some(&connection.id))
        .await
        .unwrap();
    keeper
        .current(&connection.id, None)
        .await
        .expect("the customer is back");
}

#[tokio::test]
async fn an_uninstall_that_the_customer_came_back_after_changes_nothing() {
    let world = World::new().await;
    let keeper = reader(&world).await;
    let connection = consented(&world, &keeper, HUB, None).await.unwrap();
    read(&world, &keeper).await;
    world.hubspot.uninstall(CLIENT, HUB);
    world.pass(Duration::from_secs(60));
    let back = consented(&world, &keeper, HUB, None).await.unwrap();
    assert_eq!(back.id, connection.id);
    world.pass(Duration::from_secs(24 * 3600));
    read(&world, &keeper).await;
    assert_eq!(world.hubspot.ledger().journal_pages, 1, "it was told of");
    assert_eq!(
        stored(&keeper, &connection).await.status,
        ConnectionStatus::Active
    );
}

#[tokio::test]
async fn a_clock_that_runs_behind_the_providers_gives_no_living_grant_up() {
    let world = World::new().await;
    let keeper = reader(&world).await;
    consented(&world, &keeper, HUB, None).await.unwrap();
    read(&world, &keeper).await;
    // From here on the provider's clock is an hour ahead of ours.
    world.hubspot.advance(Duration::from_secs(3600));
    world.hubspot.uninstall(CLIENT, HUB);
    let back = consented(&world, &keeper, HUB, None).await.unwrap();
    // By the provider's clock the journal's own token has ended: it is refused once, and another one is asked for.
    read(&world, &keeper).await;
    assert_eq!(world.hubspot.ledger().journal_pages, 0);
    read(&world, &keeper).await;
    assert_eq!(world.hubspot.ledger().journal_pages, 1);
    assert_eq!(
        stored(&keeper, &back).await.status,
        ConnectionStatus::Active,
        "its refresh token lives"
    );
}

#[tokio::test]
async fn one_process_reads_and_the_next_goes_on_where_it_was() {
    let world = World::new().await;
    let (a, b) = (reader(&world).await, reader(&world).await);
    consented(&world, &a, HUB, None).await.unwrap();
    read(&world, &a).await;
    b.read_journals().await.unwrap();
    assert_eq!(
        world.hubspot.ledger().journal_reads,
        1,
        "it is the first one's turn"
    );
    world.hubspot.uninstall(CLIENT, HUB);
    read(&world, &a).await;
    read(&world, &b).await;
    assert_eq!(
        world.hubspot.ledger().journal_pages,
        1,
        "the other one has read it"
    );
    world.hubspot.uninstall(CLIENT, 2002);
    read(&world, &b).await;
    assert_eq!(world.hubspot.ledger().journal_pages, 2);
}

#[tokio::test]
async fn a_place_that_is_past_what_is_kept_is_given_up_for_the_beginning() {
    let world = World::new().await;
    let keeper = reader(&world).await;
    let connection = consented(&world, &keeper, HUB, None).await.unwrap();
    read(&world, &keeper).await;
    world.hubspot.uninstall(CLIENT, 2002);
    read(&world, &keeper).await;
    world.pass(Duration::from_secs(4 * 24 * 3600));
    world.hubspot.uninstall(CLIENT, HUB);
    read(&world, &keeper).await;
    let status = stored(&keeper, &connection).await.status;
    assert!(
        matches!(
            status,
            ConnectionStatus::ReconnectRequired {
                reason: ReconnectReason::Uninstalled,
                ..
            }
        ),
        "{status:?}"
    );
}

#[tokio::test]
async fn a_journal_that_may_not_be_read_is_left_alone_for_a_while() {
    let world = World::new().await;
    let keeper = reader(&world).await;
    world.hubspot.set_client_secret(CLIENT, "another");
    read(&world, &keeper).await;
    let asked = world.hubspot.ledger().token_requests;
    assert_eq!(asked, 1);
    read(&world, &keeper).await;
    assert_eq!(world.hubspot.ledger().token_requests, asked);
    world.hubspot.set_client_secret(CLIENT, "sim-secret");
    world.pass(Duration::from_secs(16 * 60));
    keeper.read_journals().await.unwrap();
    assert_eq!(world.hubspot.ledger().journal_subscriptions, 1);
}
