//! Events become deliveries.

use std::collections::HashMap;

use evergrant_domain::event::EventKind;
use evergrant_domain::webhook::{Notice, TRIED_FOR};
use evergrant_domain::{Connection, ConnectionId, Kind, Timestamp};
use evergrant_store::StoreError;
use evergrant_store::contract::{EventOrder, EventQuery, NewDelivery, StoredEvent};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::Webhooks;

/// How many events one look reads at most.
const EVENTS_READ: u32 = 500;
/// So many events without a notice are passed over before that is kept: a look costs a read, not a write.
const PASSED_OVER_MAX: i64 = 2_000;

/// The kinds of events that make notices.
const TOLD: [EventKind; 9] = [
    EventKind::Connected,
    EventKind::Refreshed,
    EventKind::RefreshFailed,
    EventKind::ReconnectRequired,
    EventKind::Reconnected,
    EventKind::Disconnected,
    EventKind::AccountMismatch,
    EventKind::CredentialsRejected,
    EventKind::CredentialsAccepted,
];

/// Stands in what is kept where the link will be that is made when it is sent.
pub(crate) const LINK: &str = "reconnect_url";

impl Webhooks {
    /// Makes deliveries of everything that happened since the last time, whichever process did that. Where nothing was ever made, of
    /// everything that happens from now on.
    pub async fn make(&self) -> Result<(), StoreError> {
        if self.is_idle() {
            return Ok(());
        }
        let store = self.inner.keeper.store();
        loop {
            let now = self.inner.keeper.clock().now();
            let Some(position) = self.position().await? else {
                return Ok(());
            };
            let from = match *self.inner.read.lock() {
                (from, to) if from == position => to,
                _ => position,
            };
            let query = EventQuery {
                kinds: TOLD.iter().map(|kind| kind.as_str().to_owned()).collect(),
                ..EventQuery::all(EventOrder::OldestFirst { after: from }, EVENTS_READ)
            };
            let page = store.find_events(query).await?;
            let to = page.read_on.unwrap_or(from);
            if to <= from {
                return Ok(());
            }
            let deliveries = self.of(&page.events, now).await?;
            if deliveries.is_empty() && to - position < PASSED_OVER_MAX {
                *self.inner.read.lock() = (position, to);
                continue;
            }
            // Where another process has moved on meanwhile, it has kept the same.
            store.add_deliveries(Some(position), to, deliveries, now).await?;
        }
    }

    /// How far the events were read; `None` where nobody was ever told, and then what happens from now on is.
    pub(crate) async fn position(&self) -> Result<Option<i64>, StoreError> {
        let store = self.inner.keeper.store();
        let position = store.webhook_position().await?;
        if position.is_none() && !self.is_idle() {
            let (head, now) = (store.event_head().await?, self.inner.keeper.clock().now());
            store.add_deliveries(None, head, Vec::new(), now).await?;
        }
        Ok(position)
    }

    async fn of(&self, events: &[StoredEvent], now: Timestamp) -> Result<Vec<NewDelivery>, StoreError> {
        let receivers = self.inner.receivers.load_full();
        let mut records: HashMap<&ConnectionId, Option<Connection>> = HashMap::new();
        let mut deliveries = Vec::new();
        for event in events {
            let Some(notice) = Notice::of(&event.kind, event.circumstances.failures_before) else {
                continue;
            };
            // What could not be told for so long is old news: receivers that were taken out and put back are spared it.
            if event.at.after(TRIED_FOR) < now {
                continue;
            }
            if !receivers
                .iter()
                .any(|receiver| receiver.endpoint.wants(notice, &event.app))
            {
                continue;
            }
            let record = match &event.connection {
                None => None,
                Some(id) => {
                    if !records.contains_key(id) {
                        records.insert(id, self.inner.keeper.store().connection(id).await?);
                    }
                    match records.get(id) {
                        Some(Some(record)) => Some(record),
                        // Erased, with all that was to be told of it.
                        _ => continue,
                    }
                }
            };
            let data = self.data(notice, event, record).to_string();
            for receiver in receivers.iter() {
                if receiver.endpoint.wants(notice, &event.app) {
                    deliveries.push(NewDelivery {
                        id: format!("msg_{}", Uuid::now_v7().simple()),
                        endpoint: receiver.id.clone(),
                        url: receiver.endpoint.shown(),
                        event: event.id,
                        kind: notice.as_str().to_owned(),
                        app: event.app.clone(),
                        customer: record.map(|record| record.customer.clone()),
                        connection: event.connection.clone(),
                        at: event.at,
                        data: data.clone(),
                    });
                }
            }
        }
        Ok(deliveries)
    }

    fn data(&self, notice: Notice, event: &StoredEvent, record: Option<&Connection>) -> Value {
        let mut data = json!({
            "event": event.id,
            "why": event.detail,
            "action": notice.action(),
        });
        if let Some(record) = record {
            data["connection"] = self.inner.describe.connection(record);
            let has_link = record.kind == Kind::OAuth && notice != Notice::Disconnected;
            data[LINK] = json!(has_link);
        } else {
            let app = self.inner.keeper.app(&event.app);
            data["app"] = self.inner.describe.app(&event.app, app.as_deref());
        }
        data
    }
}
