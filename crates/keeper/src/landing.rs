//! What becomes of an answer that is in hand: stored before anything else, and not let go until it is.
//!
//! PROTOCOL rules 14 to 18.

use std::time::Duration;

use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::token_answer::Issued;
use evergrant_domain::{Rotation, Timestamp, TokenSet};
use evergrant_store::StoreError;
use evergrant_store::contract::{Held, Landed, Refreshed};

use crate::cache::Sight;
use crate::error::KeepError;
use crate::flight::Outcome;
use crate::keeper::Keeper;
use crate::redeem::{Holding, Turn};

/// Between two tries at storing an answer that is in hand.
const STORE_AGAIN: Duration = Duration::from_millis(100);
const STORE_AGAIN_MAX: Duration = Duration::from_secs(1);

impl Keeper {
    /// Rule 14: stored first, in one statement, before anything that can fail; tried again until the store has answered.
    pub(crate) async fn store_answer(
        &self,
        holding: &Holding,
        old: &TokenSet,
        issued: Issued,
        sent_at: Timestamp,
        rotation: Rotation,
    ) -> Result<Turn, KeepError> {
        let app = &holding.app;
        let connection = &holding.held.connection;
        let rotated = match (&issued.refresh_token, &old.refresh_token) {
            (Some(new), Some(old)) => new.expose() != old.expose(),
            _ => false,
        };
        let mismatch = match (&connection.account, &issued.account) {
            (Some(pinned), Some(answered)) if pinned.id != *answered => Some(answered.as_str().to_owned()),
            _ => None,
        };
        let account = match (&connection.account, issued.account) {
            (None, Some(id)) => Some(evergrant_domain::connection::Account {
                id,
                domain: None,
                user: None,
            }),
            _ => None,
        };
        let tokens = TokenSet {
            access_token: issued.access_token,
            refresh_token: issued.refresh_token.or_else(|| old.refresh_token.clone()),
            token_type: issued.token_type,
            scopes: issued.scopes.unwrap_or_else(|| old.scopes.clone()),
            issued_at: sent_at,
            ends: app.refresh_policy.ends(sent_at, issued.lifetime, self.jitter()),
            unproven: false,
        };
        let refreshed = || Refreshed {
            tokens: tokens.clone(),
            event: match &mismatch {
                None => Event::new(EventKind::Refreshed, "a new access token was issued and stored"),
                Some(got) => Event::new(
                    EventKind::AccountMismatch,
                    format!(
                        "the provider answered for account {got}, which is not the one that was connected"
                    ),
                ),
            },
            mismatch: mismatch.clone(),
            account: account.clone(),
        };
        let mut pause = STORE_AGAIN;
        let sight = self.inner.cache.sight(&connection.id);
        let landed = loop {
            match self
                .inner
                .store
                .land(&holding.lease, refreshed(), self.inner.clock.now())
                .await
            {
                Ok(landed) => break landed,
                Err(error @ StoreError::Unavailable { .. }) => {
                    // The provider may have killed the old refresh token: what is in hand is the only one there is.
                    tracing::error!(
                        event = "token_set_not_stored",
                        connection_id = %connection.id,
                        %error,
                        "a new token set is in hand and the store does not take it; trying again until it does"
                    );
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(STORE_AGAIN_MAX);
                }
                Err(error) => return Err(error.into()),
            }
        };
        // The alarm follows the storing: nothing may stand between an answer and its place in the store.
        if rotated && rotation == Rotation::Never {
            self.expect_rotation(app).await;
        }
        Ok(match landed {
            Landed::Stored(held) => Turn::Over(self.landed(&held, sight)),
            // A commit whose answer was lost had happened: what stands there is ours.
            Landed::Moved(held) if is_same_set(&held, &tokens) => Turn::Over(self.landed(&held, sight)),
            Landed::Moved(_) => Turn::LookAgain,
            Landed::Disconnected => {
                self.revoke_soon();
                Turn::Over(Err(KeepError::Disconnected))
            }
        })
    }

    fn landed(&self, held: &Held, sight: Sight) -> Outcome {
        let token = self.usable(held)?;
        self.inner.cache.keep(&token, sight);
        tracing::info!(
            event = "refreshed",
            connection_id = %held.connection.id,
            app = %held.connection.app,
            version = held.connection.version.number(),
            seconds_remaining = token.seconds_remaining(self.inner.clock.now()),
            "a new access token was issued and stored"
        );
        Ok(token)
    }
}

fn is_same_set(held: &Held, tokens: &TokenSet) -> bool {
    held.tokens.as_ref().is_some_and(|stored| {
        stored.access_token.expose() == tokens.access_token.expose() && stored.issued_at == tokens.issued_at
    })
}
