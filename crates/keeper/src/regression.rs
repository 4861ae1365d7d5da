//! A store that shows less than was stored in it: after a failover that lost the last commits, or from a restored backup.
//!
//! PROTOCOL rule 18: whoever holds the newer token set gives it back to the store.

use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::{ConnectionId, ConnectionStatus, TokenSet, Version};
use evergrant_store::StoreError;
use evergrant_store::contract::Held;

use crate::cache::Current;
use crate::error::KeepError;
use crate::keeper::Keeper;
use crate::landing::Late;

/// How often a record is read again that moves at every look.
const LOOKS: usize = 4;

/// How many records are compared in one go.
const COMPARE_AT_ONCE: usize = 256;

impl Keeper {
    /// The record with its tokens, as far as this process knows better than the store: with the answer that is in hand, and
    /// with the token set that the store has lost.
    pub(crate) async fn held(&self, id: &ConnectionId) -> Result<Held, KeepError> {
        self.be_on_time().await?;
        for _ in 0..LOOKS {
            // In this order: what lands between the two lines is read, and what is cached was stored before it was.
            let newest = self.inner.cache.newest(id);
            let shown = self.inner.store.held(id).await?.ok_or(KeepError::Unknown)?;
            if let Some((answer, tenure)) = self.inner.afloat.of(id)
                && let Some(ahead) = answer.ahead_of(&shown)
            {
                if tenure.lasts(self.inner.clock.boot()) {
                    return Ok(ahead);
                }
                // Past its lease somebody else may store another set under the number that this one would have.
                self.land(&answer, Late::Yes).await?;
                continue;
            }
            let Some(newest) = newest.filter(|newest| is_lost(newest, &shown)) else {
                return Ok(shown);
            };
            if let Some(restored) = self.restore(&shown, newest.version, newest.token_set()).await? {
                return Ok(*restored);
            }
        }
        Err(StoreError::Unavailable {
            what: "the record moved at every look".to_owned(),
            outcome_unknown: false,
        }
        .into())
    }

    /// Gives a token set back to a store that shows an older one. `None` where the record moved meanwhile.
    pub(crate) async fn restore(
        &self,
        shown: &Held,
        version: Version,
        tokens: TokenSet,
    ) -> Result<Option<Box<Held>>, StoreError> {
        let connection = &shown.connection;
        let event = Event::new(
            EventKind::StoreRegressed,
            format!(
                "the store showed version {} although version {version} had been stored; the newer token set was put back",
                connection.version
            ),
        );
        let restored = self
            .inner
            .store
            .restore(
                &connection.id,
                connection.version,
                version,
                tokens,
                event,
                self.inner.clock.now(),
            )
            .await?;
        if restored.is_some() {
            tracing::error!(
                event = "store_regressed",
                connection_id = %connection.id,
                shown_version = connection.version.number(),
                version = version.number(),
                "the store had lost a token set, which was put back: it was restored from a backup, or failed over without its last commits"
            );
        }
        Ok(restored.map(Box::new))
    }

    /// Compares with the store what is waiting for it, until nothing is.
    pub(crate) async fn compare_with_store(&self) -> Result<(), StoreError> {
        while !self.inner.stopping.is_cancelled() {
            let mut ids = self.inner.cache.next_to_compare(COMPARE_AT_ONCE).into_iter();
            if ids.len() == 0 {
                break;
            }
            while let Some(id) = ids.next() {
                if let Err(error) = self.read_again(&id).await {
                    self.inner.cache.compare_later(ids.chain([id]));
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    async fn read_again(&self, id: &ConnectionId) -> Result<(), StoreError> {
        let sight = self.inner.cache.sight(id);
        match self.held(id).await {
            Ok(held) => {
                if let Ok(token) = self.usable(&held) {
                    self.inner.cache.keep(&token, sight);
                }
                Ok(())
            }
            Err(KeepError::StoreUnavailable { .. }) => Err(StoreError::Unavailable {
                what: "a record could not be read again".to_owned(),
                outcome_unknown: false,
            }),
            Err(_) => {
                self.inner.cache.forget(id);
                Ok(())
            }
        }
    }
}

/// Whether what the store shows is an earlier state of what this process has. Not where the customer disconnected, not where they
/// gave a newer consent, and not where the id stands for another connection now: what the store shows counts then.
fn is_lost(newest: &Current, shown: &Held) -> bool {
    let connection = &shown.connection;
    match connection.status {
        ConnectionStatus::Disconnected { .. } => false,
        ConnectionStatus::Active | ConnectionStatus::ReconnectRequired { .. } => {
            connection.version < newest.version
                && connection.created_at == newest.rest.created_at
                && connection.connected_at <= newest.rest.connected_at
        }
    }
}
