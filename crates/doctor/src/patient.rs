//! What is asked of each connection, and the diagnosis that comes of it.

use std::time::Duration;

use evergrant_domain::access::Limits;
use evergrant_domain::diagnosis::{self, Evidence, Gap, Happened, Known, Relative, TokenLife};
use evergrant_domain::token_answer::Introspected;
use evergrant_domain::{Connection, Kind};
use evergrant_keeper::{AskedAbout, KeepError};
use evergrant_store::StoreError;
use evergrant_store::contract::{ConnectionFilter, Held};
use futures_util::future::join4;
use tokio::time::{Instant, timeout};

use crate::Examined;
use crate::read::{history, hours};
use crate::round::{Round, asked_within};

/// How often record and history are read anew where something was written between them.
const READS: usize = 3;

/// How many of a customer's connections are looked at for one that has a missing scope.
const RELATIVES: u32 = 50;

/// How long a provider may take to say what it knows of the tokens.
const PROVIDER_ANSWERS_WITHIN: Duration = Duration::from_secs(4);

impl Round<'_> {
    /// Examines one connection.
    pub(crate) async fn examine(&self, connection: Connection, limits: &Limits) -> Examined {
        let patience = self.patience();
        let asked = Instant::now();
        let read = timeout(patience, self.keeper.store().held(&connection.id)).await;
        let store_took = asked.elapsed();
        let diagnosis = match read {
            Ok(Ok(Some(held))) => return self.examine_held(held, store_took, limits).await,
            // Erased since it was asked about.
            Ok(Ok(None)) => diagnosis::without_store("the record was erased meanwhile"),
            Ok(Err(StoreError::Unreadable { field, .. })) => diagnosis::unreadable(field),
            Ok(Err(error)) => diagnosis::without_store(&error.to_string()),
            Err(_) => diagnosis::without_store(&format!("no answer within {} s", patience.as_secs())),
        };
        Examined {
            connection,
            diagnosis,
        }
    }

    async fn examine_held(&self, held: Held, store_took: Duration, limits: &Limits) -> Examined {
        let keeper = self.keeper;
        let patience = self.patience();
        let id = held.connection.id.clone();
        let ((held, history), hours, relatives, (refresh_token, access_token)) = join4(
            self.with_history(&held),
            asked_within(patience, hours(keeper.store(), &id)),
            self.relatives(&held.connection, limits),
            self.lives(&held),
        )
        .await;
        let mut connection = held.connection;
        keeper.look_at(&mut connection);
        let app = keeper.app(&connection.app);
        let of_app = self.app(&connection.app);
        let unknown = || Gap::NotAsked("the app is not in the configuration".to_owned());
        let evidence = Evidence {
            now: keeper.clock().now(),
            connection: &connection,
            app: app.as_deref(),
            standing: of_app.map_or_else(|| Err(unknown()), |of| of.standing.clone()),
            history,
            hours,
            fingerprint: held
                .tokens
                .as_ref()
                .and_then(|tokens| tokens.refresh_token.as_ref())
                .map(|token| keeper.vault().refresh_token_fingerprint(token)),
            machine_ahead_ms: self.machine_ahead_ms.clone(),
            provider_clock: of_app.map_or_else(|| Err(unknown()), |of| of.clock.clone()),
            refresh_token,
            access_token,
            relatives,
            store_took,
            afloat: self.afloat.clone(),
        };
        let diagnosis = diagnosis::diagnose(&evidence);
        Examined {
            connection,
            diagnosis,
        }
    }

    /// Record and history of one moment: whoever refreshes between the two reads has not raced anybody.
    async fn with_history(&self, held: &Held) -> (Held, Known<Vec<Happened>>) {
        let store = self.keeper.store();
        let mut held = held.clone();
        let mut told = Err(Gap::NotAsked("it is being written all the time".to_owned()));
        for _ in 0..READS {
            told = asked_within(self.patience(), history(store, &held.connection.id)).await;
            let again = timeout(self.patience(), store.held(&held.connection.id)).await;
            let Ok(Ok(Some(again))) = again else { break };
            let stood = again.connection.version == held.connection.version;
            held = again;
            if stood {
                break;
            }
            told = Err(Gap::NotAsked("it is being written all the time".to_owned()));
        }
        (held, told)
    }

    async fn relatives(&self, connection: &Connection, limits: &Limits) -> Vec<Relative> {
        let filter = ConnectionFilter {
            customers: vec![connection.customer.clone()],
            statuses: vec!["active".to_owned()],
            limits: limits.clone(),
            limit: RELATIVES,
            ..ConnectionFilter::default()
        };
        // A hint and no more: without an answer there is none.
        let found = timeout(self.patience(), self.keeper.store().list(filter)).await;
        let found = found.ok().and_then(Result::ok).unwrap_or_default();
        found
            .into_iter()
            .filter(|other| other.id != connection.id)
            .map(|other| Relative {
                id: other.id,
                app: other.app,
                account: other.account.map(|account| account.id),
                scopes: other.scopes,
            })
            .collect()
    }

    /// What the provider says of both tokens.
    async fn lives(&self, held: &Held) -> (Known<TokenLife>, Known<TokenLife>) {
        let left = self.until.saturating_duration_since(Instant::now());
        let both = |gap: Gap| (Err(gap.clone()), Err(gap));
        if held.connection.kind == Kind::Static {
            return both(Gap::NotAsked("a static token is not introspected".to_owned()));
        }
        match self
            .keeper
            .ask_about(held, left.min(PROVIDER_ANSWERS_WITHIN))
            .await
        {
            Ok(AskedAbout {
                refresh_token,
                access_token,
            }) => (life(refresh_token), life(access_token)),
            Err(KeepError::AppNotConfigured { .. }) => {
                both(Gap::NotAsked("the app is not in the configuration".to_owned()))
            }
            Err(_) => both(Gap::NotAsked(
                "its turn to ask the provider did not come in time".to_owned(),
            )),
        }
    }
}

fn life(said: Option<Introspected>) -> Known<TokenLife> {
    match said {
        None => Err(Gap::NotAsked("the provider introspects no tokens".to_owned())),
        Some(Introspected::Active(facts)) => Ok(TokenLife::Active {
            account: facts.account,
        }),
        Some(Introspected::Inactive) => Ok(TokenLife::Inactive),
        Some(Introspected::ClientRefused(failure)) => Err(Gap::ClientRefused(failure.code)),
        Some(Introspected::Unknown(failure)) => Err(Gap::Silent(failure.code)),
    }
}
