//! Deliveries of webhooks, and places in journals.

use super::{Columns, Stored, strange};
use crate::contract::{DeadLetters, Delivery, DeliveryState, Journal, TryEnd};

pub(crate) fn read_delivery(row: &impl Columns) -> Stored<Delivery> {
    Ok(Delivery {
        id: row.text("id")?,
        endpoint: row.text("endpoint")?,
        url: row.text("url")?,
        event: row.number("event")?,
        kind: row.text("type")?,
        app: row.parsed("app")?,
        customer: row.maybe_parsed("customer")?,
        connection: row.maybe_parsed("connection")?,
        at: row.time("at")?,
        data: row.text("data")?,
        state: row.word("state", DeliveryState::from_word)?,
        tries: row.count("tries")?,
        began_at: row.time("began_at")?,
        next_try_at: row.maybe_time("next_try_at")?,
        last_try_at: row.maybe_time("last_try_at")?,
        last_status: row
            .maybe_number("last_status")?
            .map(|status| u16::try_from(status).map_err(|_| strange("last_status")))
            .transpose()?,
        last_error: row.maybe_text("last_error")?,
        finished_at: row.maybe_time("finished_at")?,
    })
}

pub(crate) fn read_dead_letters(row: &impl Columns) -> Stored<DeadLetters> {
    Ok(DeadLetters {
        count: u64::try_from(row.number("count")?).map_err(|_| strange("count"))?,
        oldest_at: row.maybe_time("oldest_at")?,
    })
}

pub(crate) fn read_journal(row: &impl Columns) -> Stored<Journal> {
    Ok(Journal {
        position: row.maybe_text("position")?,
        is_subscribed: row.maybe_time("subscribed_at")?.is_some(),
    })
}

/// How a try ended, as its columns hold it: the state, when the next one is, and when it finished.
pub(crate) struct EndColumns {
    pub(crate) state: &'static str,
    pub(crate) next_try_at: Option<i64>,
    pub(crate) finished_at: Option<i64>,
}

impl EndColumns {
    pub(crate) fn new(end: &TryEnd, now: evergrant_domain::Timestamp) -> Self {
        let (state, next_try_at) = match end {
            TryEnd::Delivered => (DeliveryState::Delivered, None),
            TryEnd::Again { at } => (DeliveryState::Pending, Some(at.millis())),
            TryEnd::Dead => (DeliveryState::Dead, None),
        };
        Self {
            state: state.as_str(),
            finished_at: next_try_at.is_none().then(|| now.millis()),
            next_try_at,
        }
    }
}
