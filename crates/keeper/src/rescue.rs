//! Landing what other processes, or earlier lives of this one, left in the lifeboat: PROTOCOL rule 17.

use std::collections::BTreeSet;

use evergrant_domain::ConnectionId;
use evergrant_store::StoreError;
use parking_lot::Mutex;

use crate::error::KeepError;
use crate::keeper::Keeper;
use crate::landing::{Answer, Ashore, Late};
use crate::lifeboat::{Entry, Unreadable};

/// The entries that somebody was told of.
#[derive(Debug, Default)]
pub(crate) struct Alarmed(Mutex<BTreeSet<String>>);

impl Alarmed {
    /// Whether nobody was told of this entry yet; now somebody is.
    pub(crate) fn is_first_of(&self, entry: &str) -> bool {
        self.0.lock().insert(entry.to_owned())
    }

    /// An entry that is gone is told of again should it come back.
    fn forget_unless(&self, is_there: impl Fn(&str) -> bool) {
        self.0.lock().retain(|entry| is_there(entry));
    }
}

impl Keeper {
    /// Lands the entries of the lifeboat, or those of one connection, and says how many it could let go. Landing is the ordinary
    /// statement, so it does not matter who else finds them.
    ///
    /// To be done before an open intent is judged: what is in the lifeboat is the answer that was waited for.
    ///
    /// # Errors
    ///
    /// Where an entry may be left that could be landed: the lifeboat cannot be read, or the store does not answer.
    pub async fn land_lifeboats(&self, of: Option<&ConnectionId>) -> Result<usize, KeepError> {
        let Some(lifeboat) = &self.inner.lifeboat else {
            return Ok(0);
        };
        let entries = lifeboat.entries().await.map_err(|error| {
            tracing::error!(event = "lifeboat_not_read", %error, "the lifeboat cannot be read; no open redemption is judged until it can");
            KeepError::StoreUnavailable {
                retry_after: std::time::Duration::from_secs(1),
            }
        })?;
        let is_there = |name: &str| entries.iter().any(|(entry, _)| entry == name);
        self.inner.alarmed.forget_unless(is_there);
        let mut let_go = 0;
        for (name, bytes) in entries {
            match self.rescue(&name, &bytes, of).await {
                Ok(gone) => let_go += usize::from(gone),
                Err(error @ StoreError::Unavailable { .. }) => return Err(error.into()),
                // Only its record is affected, and only while it stays as it is.
                Err(error) => self.alarm(&name, &error),
            }
        }
        Ok(let_go)
    }

    /// How many answers are in the lifeboat; `None` where there is none, or it cannot be read.
    pub async fn lifeboat_entries(&self) -> Option<usize> {
        self.afloat().await?.ok()
    }

    /// The same for whoever has to know the one from the other; `None` where there is none.
    ///
    /// # Errors
    ///
    /// Where its folder cannot be read.
    pub async fn afloat(&self) -> Option<std::io::Result<usize>> {
        let entries = self.inner.lifeboat.as_ref()?.entries().await;
        Some(entries.map(|entries| entries.len()))
    }

    async fn rescue(&self, name: &str, bytes: &[u8], of: Option<&ConnectionId>) -> Result<bool, StoreError> {
        let entry = match Entry::parse(bytes) {
            Ok(entry) if of.is_some_and(|id| !entry.is_of(id)) => return Ok(false),
            entry => entry,
        };
        let answer = match entry.and_then(|entry| entry.open(&self.inner.vault)) {
            Ok(answer) => answer,
            Err(why @ (Unreadable::Damaged | Unreadable::OtherKey { .. })) => {
                self.alarm(name, &why);
                return Ok(false);
            }
        };
        let id = answer.lease.connection();
        if self.inner.afloat.has(id, name) {
            return Ok(false);
        }
        let ashore = self.land(&answer, Late::Yes).await?;
        if !self.disembark(name, &answer).await {
            return Ok(false);
        }
        self.told_ashore(&answer, &ashore).await;
        Ok(true)
    }

    async fn told_ashore(&self, answer: &Answer, ashore: &Ashore) {
        let id = answer.lease.connection();
        let became = match ashore {
            Ashore::Stored(_) => "is stored",
            Ashore::Superseded => "was superseded",
            Ashore::Disconnected => "is revoked, because the connection was disconnected since",
        };
        tracing::info!(
            event = "lifeboat_landed",
            connection_id = %id,
            "a token set that was in the lifeboat {became}"
        );
        self.inner.cache.doubt(id, answer.lease.version().next());
        self.note_rotation(answer).await;
    }

    fn alarm(&self, entry: &str, why: &dyn std::error::Error) {
        if self.inner.alarmed.is_first_of(entry) {
            tracing::error!(
                event = "lifeboat_entry_unreadable",
                entry,
                %why,
                "an entry of the lifeboat cannot be landed; it is kept: {why}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_told_of_once_for_as_long_as_it_is_there() {
        let alarmed = Alarmed::default();
        assert!(alarmed.is_first_of("gone") && alarmed.is_first_of("there"));
        alarmed.forget_unless(|entry| entry == "there");
        assert!(alarmed.is_first_of("gone") && !alarmed.is_first_of("there"));
    }
}
