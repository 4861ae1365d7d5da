//! Deliveries are sent, and tried again.

use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::webhook::{Reception, next_try};
use evergrant_domain::{Timestamp, refresh_policy::Jitter};
use evergrant_metrics::Delivery as Counted;
use evergrant_store::StoreError;
use evergrant_store::contract::{Delivery, TriedDelivery, TryEnd};
use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::making::LINK;
use crate::signature::signature;
use crate::{Receiver, Webhooks};

/// At a time to one receiver: one that hangs takes so many tasks, and holds up no other.
const AT_ONCE: u32 = 4;
/// How long one try may take, connecting included.
pub(crate) const DEADLINE: Duration = Duration::from_secs(15);
/// How far a claim pushes the next try on: past this one, so that no other process sends it, too.
const PUSH: Duration = Duration::from_secs(60);

impl Webhooks {
    /// Sends what is due, a few at a time for each receiver, and does not wait for it.
    pub(crate) async fn send_due(&self) -> Result<(), StoreError> {
        let receivers = self.inner.receivers.load_full();
        for receiver in receivers.iter() {
            let room = {
                let on_their_way = self.inner.on_their_way.lock();
                AT_ONCE.saturating_sub(on_their_way.get(&receiver.id).copied().unwrap_or(0))
            };
            if room == 0 {
                continue;
            }
            let now = self.inner.keeper.clock().now();
            let claimed = self
                .inner
                .keeper
                .store()
                .claim_deliveries(&receiver.id, room, PUSH, now)
                .await?;
            // There may be more of them: looked for when one of these has ended, for then there is room.
            let may_be_more = u32::try_from(claimed.len()) == Ok(room);
            for delivery in claimed {
                *self
                    .inner
                    .on_their_way
                    .lock()
                    .entry(receiver.id.clone())
                    .or_default() += 1;
                let (webhooks, receiver) = (self.clone(), receiver.clone());
                self.inner.tasks.spawn(async move {
                    webhooks.send(&receiver, delivery).await;
                    if let Some(count) = webhooks.inner.on_their_way.lock().get_mut(&receiver.id) {
                        *count -= 1;
                    }
                    if may_be_more {
                        webhooks.inner.more.notify_one();
                    }
                    webhooks.inner.ended.notify_one();
                });
            }
        }
        Ok(())
    }

    async fn send(&self, receiver: &Arc<Receiver>, delivery: Delivery) {
        let clock = self.inner.keeper.clock();
        let now = clock.now();
        let body = self.body(&delivery);
        let headers = headers(receiver, &delivery.id, now, &body);
        let answer = self
            .inner
            .courier
            .post(&receiver.endpoint.url, headers, body, DEADLINE, now)
            .await;
        let (status, retry_after, error) = match answer {
            Ok(answer) => {
                let error = (Reception::of(answer.status) != Reception::Taken)
                    .then(|| format!("status {}", answer.status));
                (Some(answer.status), answer.retry_after, error)
            }
            Err(word) => (None, None, Some(word.to_owned())),
        };
        let now = clock.now();
        let end = match status.map(Reception::of) {
            Some(Reception::Taken) => TryEnd::Delivered,
            Some(Reception::Gone) => TryEnd::Dead,
            Some(Reception::NotTaken) | None => {
                let again = next_try(delivery.tries, delivery.began_at, now, retry_after, jitter());
                again.map_or(TryEnd::Dead, |at| TryEnd::Again { at })
            }
        };
        self.tell_of(&delivery, end, error.as_deref());
        let tried = TriedDelivery {
            id: delivery.id.clone(),
            tries: delivery.tries,
            status,
            error,
        };
        // What could not be noted is sent once more: at least once is what receivers are promised.
        if let Err(error) = self.inner.keeper.store().end_try(tried, end, now).await {
            tracing::warn!(event = "store_error", delivery = %delivery.id, %error, "what came of a webhook could not be noted; it is sent again");
        }
    }

    fn tell_of(&self, delivery: &Delivery, end: TryEnd, error: Option<&str>) {
        let error = error.unwrap_or_default();
        let (id, url, attempt) = (&delivery.id, &delivery.url, delivery.tries);
        let counted = match end {
            TryEnd::Delivered => {
                tracing::debug!(event = "webhook_delivered", delivery = %id, %url, attempt, "a webhook was taken");
                Counted::Delivered
            }
            TryEnd::Again { .. } => {
                tracing::warn!(event = "webhook_failed", delivery = %id, %url, attempt, error, "a webhook was not taken; it is tried again");
                Counted::Failed
            }
            TryEnd::Dead => {
                tracing::error!(
                    event = "webhook_dead",
                    delivery = %id,
                    %url,
                    attempt,
                    error,
                    "a webhook was not taken and is not tried again; `evergrant webhooks resend {id}` does"
                );
                Counted::Dead
            }
        };
        self.inner.keeper.metrics().webhook_delivery(counted);
    }

    /// The body, with a link that is made now: it lasts longer than the tries do.
    fn body(&self, delivery: &Delivery) -> String {
        let mut data: Value = serde_json::from_str(&delivery.data).unwrap_or_default();
        if let Some(link) = data.get_mut(LINK) {
            *link = match (link.as_bool(), &delivery.connection) {
                (Some(true), Some(id)) => json!(self.inner.describe.reconnect_url(id)),
                _ => Value::Null,
            };
        }
        json!({"type": delivery.kind, "timestamp": rfc3339(delivery.at), "data": data}).to_string()
    }
}

/// What a receiver answered to a notice that was sent for trying it out.
#[derive(Debug)]
pub struct TriedOut {
    /// Where to, without its query.
    pub url: String,
    /// The status that was answered.
    pub status: Option<u16>,
    /// Why it was not taken.
    pub error: Option<String>,
}

impl Webhooks {
    /// Sends every receiver a notice that tells of nothing, signed like any other, and says what each answered.
    pub async fn try_out(&self) -> Vec<TriedOut> {
        let receivers = self.inner.receivers.load_full();
        let mut sent = Vec::with_capacity(receivers.len());
        for receiver in receivers.iter() {
            let (webhooks, receiver) = (self.clone(), receiver.clone());
            sent.push(tokio::spawn(async move { webhooks.try_one(&receiver).await }));
        }
        let mut tried = Vec::with_capacity(sent.len());
        for one in sent {
            tried.extend(one.await);
        }
        tried
    }

    async fn try_one(&self, receiver: &Receiver) -> TriedOut {
        let now = self.inner.keeper.clock().now();
        let body = json!({
            "type": "evergrant.test",
            "timestamp": rfc3339(now),
            "data": {"why": "somebody tries out whether webhooks arrive", "action": null},
        })
        .to_string();
        let id = format!("msg_{}", Uuid::now_v7().simple());
        let headers = headers(receiver, &id, now, &body);
        let url = &receiver.endpoint.url;
        let (status, error) = match self.inner.courier.post(url, headers, body, DEADLINE, now).await {
            Ok(answer) => {
                let error = (Reception::of(answer.status) != Reception::Taken)
                    .then(|| format!("status {}", answer.status));
                (Some(answer.status), error)
            }
            Err(word) => (None, Some(word.to_owned())),
        };
        TriedOut {
            url: receiver.endpoint.shown(),
            status,
            error,
        }
    }
}

fn headers(receiver: &Receiver, id: &str, now: Timestamp, body: &str) -> HeaderMap {
    let seconds = now.millis().div_euclid(1000);
    let signature = signature(&receiver.endpoint.secrets, id, seconds, body);
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("webhook-id", id),
        ("webhook-timestamp", &seconds.to_string()),
        ("webhook-signature", &signature),
    ] {
        // Ids, numbers and base64 are visible ASCII.
        headers.insert(name, HeaderValue::from_str(value).expect("visible ASCII"));
    }
    headers
}

fn rfc3339(at: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(at.millis())
        .unwrap_or(jiff::Timestamp::MAX)
        .to_string()
}

fn jitter() -> Jitter {
    let mut bytes = [0; 4];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => Jitter::new(f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)),
        Err(_) => Jitter::NONE,
    }
}
