//! What a run comes to: I7, I8, and what the store holds.

use evergrant_domain::ConnectionStatus;
use evergrant_store::Store as _;

use super::World;
use crate::process::connection_id;
use crate::scenario::Class;
use crate::violation::Oracle;

impl World {
    /// What stands in the way of "every connection works or says why not, and nothing is left behind".
    pub(super) async fn what_is_not_well(&self) -> Vec<String> {
        let mut not_well = Vec::new();
        let now = self.now();
        for connection in 0..self.shared.scenario.connections {
            let held = self.eye.held(&connection_id(connection)).await;
            let Ok(Some(held)) = held else {
                continue;
            };
            let seen = self.shared.witness.seen();
            let tokens = held.tokens.as_ref();
            let refresh_token = tokens.and_then(|tokens| tokens.refresh_token.as_ref());
            match &held.connection.status {
                ConnectionStatus::Active => {
                    let redeems = refresh_token.is_some_and(|token| seen.grants.redeems(token.expose(), now));
                    let serves =
                        tokens.is_some_and(|tokens| seen.grants.serves(tokens.access_token.expose(), now));
                    if !redeems || !serves {
                        not_well.push(format!(
                            "connection {connection} is active; its refresh token redeems: {redeems}, its access token serves: {serves}, trouble: {:?}",
                            held.connection.trouble
                        ));
                    }
                }
                ConnectionStatus::ReconnectRequired { .. } => {}
                // A consent that the database lost is lost: what was disconnected before it stays so.
                ConnectionStatus::Disconnected { .. } if seen.lost_commits_at.is_some() => {}
                ConnectionStatus::Disconnected { .. } => {
                    for token in seen.held_and_alive(connection, now) {
                        not_well.push(format!(
                            "connection {connection} is disconnected, and {token} still redeems"
                        ));
                    }
                }
            }
            let open = held
                .connection
                .intent
                .as_ref()
                .is_some_and(|intent| intent.attempts > 0);
            if open && held.connection.status == ConnectionStatus::Active {
                not_well.push(format!(
                    "connection {connection} has an open intent: {:?}",
                    held.connection.intent
                ));
            }
        }
        let kept: usize = self.slots.iter().map(|slot| slot.disk.names().len()).sum();
        if kept > 0 {
            not_well.push(format!("{kept} entries lie in lifeboats"));
        }
        not_well
    }

    /// I7, and what panicked.
    pub(super) async fn judge_the_history(&self) {
        let witness = &self.shared.witness;
        for process in self.processes.iter().flatten() {
            if process.gate.panics() > 0 {
                witness.blame(Oracle::NoPanic, format!("a task of {} panicked", process.name));
            }
        }
        for connection in 0..self.shared.scenario.connections {
            let events = self
                .eye
                .events(&connection_id(connection), 10_000)
                .await
                .unwrap_or_default();
            if let Some(event) = events
                .iter()
                .find(|event| event.detail.contains(crate::grants::CANARY))
            {
                witness.blame(Oracle::Secrets, format!("an event says {:?}", event.detail));
            }
            let history = {
                let seen = witness.seen();
                let watched = &seen.connections[connection];
                if watched.purged || self.shared.scenario.class == Class::Failover {
                    continue;
                }
                watched.history.clone()
            };
            for stored in &history {
                let told = events.iter().any(|event| {
                    let tells: &[&str] = match stored.status {
                        ConnectionStatus::Active => &["connected", "refreshed", "reconnected"],
                        ConnectionStatus::ReconnectRequired { .. } => {
                            &["reconnect_required", "account_mismatch"]
                        }
                        ConnectionStatus::Disconnected { .. } => &["disconnected"],
                    };
                    event.version == Some(stored.version) && tells.contains(&event.kind.as_str())
                });
                if !told {
                    let what = format!(
                        "no event tells that connection {connection} came to version {} ({})",
                        stored.version,
                        stored.status.as_str()
                    );
                    witness.blame(Oracle::History, what);
                }
            }
        }
    }

    pub(super) async fn look(&self, lost_commits: bool) {
        for connection in 0..self.shared.scenario.connections {
            if let Ok(held) = self.eye.held(&connection_id(connection)).await {
                self.shared
                    .witness
                    .stores(connection, held.as_ref(), "database", lost_commits);
            }
        }
    }
}
