//! Everything that can happen to a connection while its refresh token is with the provider, in every order of arrival.

use std::time::Duration;

use evergrant_domain::{Connection, ConnectionId, ConnectionStatus, ReconnectReason, Rotation};
use evergrant_keeper::{KeepError, Keeper};
use evergrant_store::contract::{Connected, Revoke};
use hubspot_sim::{Fault, FaultKind};

use crate::connecting::reconnect_behind;
use crate::steps::Steps;
use crate::world::{self, CLIENT, PAST_EXPIRY, World};

/// What arrives while the answer is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arrival {
    /// The answer of the first process, which is stopped for longer than its lease.
    Answer,
    /// Another process finds the lease free and goes on.
    Takeover,
    /// The customer consents again.
    Reconnect,
    Disconnect,
    /// Disconnected, and erased with its history.
    Purge,
}

/// Every sequence that holds the answer once, and each of the others at most once.
fn orders() -> Vec<Vec<Arrival>> {
    use Arrival::{Answer, Disconnect, Purge, Reconnect, Takeover};
    fn go_on(so_far: &[Arrival], orders: &mut Vec<Vec<Arrival>>) {
        if so_far.contains(&Answer) {
            orders.push(so_far.to_vec());
        }
        for next in [Answer, Takeover, Reconnect, Disconnect, Purge] {
            let leaves = |arrival: &Arrival| matches!(arrival, Disconnect | Purge);
            // Who has left leaves no second time, and what was erased cannot be restored.
            let too_late = match next {
                Disconnect | Purge => so_far.iter().any(leaves),
                Reconnect => so_far.contains(&Purge),
                Answer | Takeover => false,
            };
            if !so_far.contains(&next) && !too_late {
                go_on(&[so_far, &[next]].concat(), orders);
            }
        }
    }
    let mut orders = Vec::new();
    go_on(&[], &mut orders);
    orders
}

struct Run<'a> {
    world: &'a World,
    second: &'a Keeper,
    connection: &'a Connection,
    hub: u64,
    purged: bool,
    left: bool,
    reconnected: bool,
}

impl Run<'_> {
    fn id(&self) -> &ConnectionId {
        &self.connection.id
    }

    async fn goes_on(&mut self, arrival: Arrival, answered: &mut Option<Answered>) {
        match arrival {
            Arrival::Answer => {
                self.world.hubspot.release_held();
                // Whatever its caller is told: what counts is what is stored.
                let _ = answered.take().unwrap().await.unwrap();
            }
            Arrival::Takeover => {
                let _ = self.second.current(self.id(), None).await;
            }
            Arrival::Reconnect => {
                let grant = self.world.hubspot.grant(CLIENT, self.hub).unwrap();
                let store = &**self.second.store();
                let connected = reconnect_behind(store, &*self.world.clock, self.id(), &grant).await;
                assert_eq!(
                    matches!(connected, Connected::Missing),
                    self.purged,
                    "{connected:?}"
                );
                if !self.purged {
                    (self.left, self.reconnected) = (false, true);
                }
            }
            Arrival::Disconnect | Arrival::Purge => {
                self.second.disconnect(self.id(), Revoke::Auto).await.unwrap();
                self.left = true;
                if arrival == Arrival::Purge {
                    self.second.store().purge(self.id()).await.unwrap();
                    self.purged = true;
                }
            }
        }
    }

    /// Long after it all, when nothing is on its way any more: the connection works, or says why not.
    async fn ends_well(&self, refused: bool) {
        self.world.pass(PAST_EXPIRY);
        let ended = self.second.current(self.id(), None).await;
        match &ended {
            Err(KeepError::Unknown) => assert!(self.purged),
            Err(KeepError::Disconnected) => assert!(self.left && !self.purged),
            Err(KeepError::ReconnectRequired { reason, .. }) => {
                let said = [
                    ReconnectReason::GrantRefused,
                    ReconnectReason::RedemptionOutcomeLost,
                ];
                assert!(
                    refused && !self.left && !self.reconnected && said.contains(reason),
                    "{reason:?}"
                );
            }
            Err(error) => panic!("{error:?}"),
            Ok(token) => {
                assert!(!self.left && !self.purged && (self.reconnected || !refused));
                assert!(self.world.accepts(&token.access_token).await);
            }
        }
        let stored = self.second.store().connection(self.id()).await.unwrap();
        let status = stored.map(|connection| connection.status);
        assert_eq!(
            matches!(status, Some(ConnectionStatus::Active)),
            ended.is_ok(),
            "{status:?}"
        );
    }
}

type Answered = tokio::task::JoinHandle<Result<(), KeepError>>;

/// Runs every order for one kind of rotation, with an answer that issues and with one that refuses.
async fn check(theirs: hubspot_sim::Rotation, ours: Rotation) {
    let world = World::with(theirs).await;
    let mut app = world.app();
    app.provider.rotation = ours;
    let (store, vault) = world.store().await;
    let first = world::keeper(app.clone(), Steps::stopped(store), vault, world.clock.clone());
    let second = world.keeper_of(app).await;
    let mut hub = 5000;
    for refused in [false, true] {
        for order in orders() {
            hub += 1;
            println!("{ours:?}, refused {refused}, portal {hub}: {order:?}");
            let connection = world.connected_as(&second, &format!("c{hub}"), hub).await;
            if refused {
                world.hubspot.uninstall(CLIENT, hub);
            }
            world.pass(PAST_EXPIRY);
            world
                .hubspot
                .arm(Fault::token(FaultKind::HoldAfterIssue).hub(hub));
            let mut answered = Some(tokio::spawn({
                let (first, id) = (first.clone(), connection.id.clone());
                async move { first.current(&id, None).await.map(drop) }
            }));
            world.hubspot.wait_for_held(1).await;
            let mut run = Run {
                world: &world,
                second: &second,
                connection: &connection,
                hub,
                purged: false,
                left: false,
                reconnected: false,
            };
            for arrival in order {
                run.goes_on(arrival, &mut answered).await;
            }
            run.ends_well(refused).await;
            // What was replaced by another consent is not revoked: it may be the same grant to the provider.
            if run.left && !run.reconnected {
                until_nothing_is_left(&world, hub).await;
            }
            let ledger = world.hubspot.ledger();
            for token in ledger.refresh_tokens_of(hub) {
                assert!(
                    matches!(ours, Rotation::Grace(_)) || token.replays == 0,
                    "presented again after it was replaced: {token:?}"
                );
            }
        }
    }
}

/// Waits until nothing of a portal's grant is alive any more: revocations are worked off behind whoever caused them.
///
/// Whoever presents a token again in its grace window may get a second successor, and of the two only one is stored. The other one
/// was never served and is left to end by itself: to revoke it could cost the first.
async fn until_nothing_is_left(world: &World, hub: u64) {
    let nothing = async {
        loop {
            let ledger = world.hubspot.ledger();
            let tokens: Vec<_> = ledger.refresh_tokens_of(hub).collect();
            let alive = tokens
                .iter()
                .filter(|token| !token.dead && !token.superseded)
                .count();
            let twins: u64 = tokens.iter().map(|token| token.accepted_after_superseded).sum();
            if alive as u64 <= twins {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let within = tokio::time::timeout(Duration::from_secs(20), nothing).await;
    let tokens = world.hubspot.ledger();
    let tokens: Vec<_> = tokens.refresh_tokens_of(hub).collect();
    assert!(within.is_ok(), "something is left alive: {tokens:?}");
}

#[tokio::test]
async fn where_refresh_tokens_never_rotate_every_order_of_arrival_ends_well() {
    check(hubspot_sim::Rotation::Never, Rotation::Never).await;
}

#[tokio::test]
async fn where_an_old_refresh_token_has_grace_every_order_of_arrival_ends_well() {
    let grace = Duration::from_secs(3600);
    check(hubspot_sim::Rotation::Grace(grace), Rotation::Grace(grace)).await;
}

#[tokio::test]
async fn where_refresh_tokens_are_single_use_every_order_of_arrival_ends_well() {
    check(hubspot_sim::Rotation::Always, Rotation::SingleUse).await;
}
