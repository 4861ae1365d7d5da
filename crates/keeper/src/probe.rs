//! What can be found out about a connection without touching its grant: whether its tokens live, what time it is elsewhere.
//! For whoever looks for a cause; nothing here changes anything.

use std::time::Duration;

use evergrant_domain::diagnosis::Offset;
use evergrant_domain::token_answer::{Failure, Introspected};
use evergrant_domain::{App, Kind};
use evergrant_oauth::Introspect;
use evergrant_store::StoreError;
use evergrant_store::contract::Held;
use futures_util::future::join;
use tokio::time::{Instant, timeout_at};

use crate::error::KeepError;
use crate::gate::WaitedFor;
use crate::keeper::{Keeper, millis};

/// What the provider said of a connection's tokens; `None` where there is no such token, or nobody to ask.
#[derive(Debug, Clone)]
pub struct AskedAbout {
    /// Of the refresh token.
    pub refresh_token: Option<Introspected>,
    /// Of the access token, which says nothing about the grant.
    pub access_token: Option<Introspected>,
}

impl Keeper {
    /// Asks the provider whether the stored tokens live. Both questions take a place in the app's budget of exchanges, as a
    /// redemption does; `deadline` covers waiting for it, too.
    ///
    /// # Errors
    ///
    /// Where no place could be had in time, so that nobody was asked.
    pub async fn ask_about(&self, held: &Held, deadline: Duration) -> Result<AskedAbout, KeepError> {
        let connection = &held.connection;
        let app = self.configured(&connection.app)?;
        let until = Instant::now() + deadline;
        let (Some(tokens), Kind::OAuth, true) = (
            &held.tokens,
            connection.kind,
            app.provider.introspect_url.is_some(),
        ) else {
            return Ok(AskedAbout {
                refresh_token: None,
                access_token: None,
            });
        };
        let asked = async |token| {
            let waited_for = WaitedFor::default();
            waited_for.store(true, std::sync::atomic::Ordering::SeqCst);
            let place = timeout_at(until, self.permit(&app.name, &connection.id, &waited_for)).await;
            let _permit = place.map_err(|_| KeepError::Overloaded {
                retry_after: Duration::from_secs(1),
            })??;
            let answered = timeout_at(until, self.introspect(&app, token)).await;
            Ok::<_, KeepError>(
                answered.unwrap_or_else(|_| Introspected::Unknown(Failure::without_answer("timeout"))),
            )
        };
        let (refresh_token, access_token) = join(
            async {
                match &tokens.refresh_token {
                    Some(token) => asked(Introspect::Refresh(token)).await.map(Some),
                    None => Ok(None),
                }
            },
            asked(Introspect::Access(&tokens.access_token)),
        )
        .await;
        Ok(AskedAbout {
            refresh_token: refresh_token?,
            access_token: Some(access_token?),
        })
    }

    /// Our time against the provider's, by the `Date` of its answer. The error is a word of the token endpoint's for why not.
    pub async fn provider_clock(&self, app: &App, deadline: Duration) -> Result<Offset, &'static str> {
        let (asked, asked_boot) = (self.inner.clock.now(), self.inner.clock.boot());
        let theirs = self.inner.endpoint.date(app, deadline).await?;
        let round_trip = self.inner.clock.boot().saturating_sub(asked_boot);
        // It showed a whole second, half a second ago on average, half-way of the round trip.
        let ours = asked.after(round_trip / 2);
        let theirs = theirs.after(Duration::from_millis(500));
        Ok(Offset {
            ahead_ms: ours.millis().saturating_sub(theirs.millis()),
            give_or_take_ms: i64::try_from(millis(round_trip / 2))
                .unwrap_or(i64::MAX)
                .saturating_add(500),
        })
    }

    /// By how many milliseconds this machine's clock is ahead of the store's, asked anew; `None` where the store has none of its
    /// own.
    pub async fn machine_clock(&self) -> Result<Option<i64>, StoreError> {
        self.take_pulse().await?;
        Ok(self.clock_offset_ms())
    }
}
