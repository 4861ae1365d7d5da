//! What is asked once, however many connections are examined: clocks, apps, the lifeboat.

use std::collections::BTreeMap;
use std::time::Duration;

use evergrant_domain::diagnosis::{AppStanding, Gap, Known, Offset};
use evergrant_domain::{AppName, Connection};
use evergrant_keeper::Keeper;
use futures_util::future::{join, join_all, join3};
use tokio::time::{Instant, timeout};

use crate::STORE_ANSWERS_WITHIN;

/// How long a provider may take to say what time it is.
const PROVIDER_ANSWERS_WITHIN: Duration = Duration::from_secs(3);

/// One examination.
pub(crate) struct Round<'k> {
    pub(crate) keeper: &'k Keeper,
    /// When all must be over.
    pub(crate) until: Instant,
    pub(crate) machine_ahead_ms: Known<Option<i64>>,
    pub(crate) afloat: Known<u64>,
    apps: BTreeMap<AppName, OfApp>,
}

/// What is known of an app.
pub(crate) struct OfApp {
    pub(crate) standing: Known<AppStanding>,
    pub(crate) clock: Known<Offset>,
}

impl<'k> Round<'k> {
    /// Asks all of it at once.
    pub(crate) async fn begin(keeper: &'k Keeper, connections: &[Connection], until: Instant) -> Self {
        let mut names: Vec<&AppName> = connections.iter().map(|connection| &connection.app).collect();
        names.sort();
        names.dedup();
        let apps = join_all(names.into_iter().map(async |name| {
            let (standing, clock) = join(standing(keeper, name), clock(keeper, name)).await;
            (name.clone(), OfApp { standing, clock })
        }));
        let machine = asked(keeper.machine_clock());
        let (apps, machine_ahead_ms, afloat) = join3(apps, machine, afloat(keeper)).await;
        Self {
            keeper,
            until,
            machine_ahead_ms,
            afloat,
            apps: apps.into_iter().collect(),
        }
    }

    pub(crate) fn app(&self, name: &AppName) -> Option<&OfApp> {
        self.apps.get(name)
    }

    /// How long one more look at the store may take.
    pub(crate) fn patience(&self) -> Duration {
        STORE_ANSWERS_WITHIN.min(self.until.saturating_duration_since(Instant::now()))
    }
}

/// How many answers lie in the lifeboat. A folder that cannot be read is not an empty one.
async fn afloat(keeper: &Keeper) -> Known<u64> {
    match timeout(STORE_ANSWERS_WITHIN, keeper.afloat()).await {
        Ok(None) => Err(Gap::NotAsked("there is none".to_owned())),
        Ok(Some(Ok(entries))) => Ok(entries as u64),
        Ok(Some(Err(error))) => Err(Gap::Silent(error.to_string())),
        Err(_) => Err(Gap::Silent(format!(
            "no answer within {} s",
            STORE_ANSWERS_WITHIN.as_secs()
        ))),
    }
}

/// An answer of the store, or why there is none.
pub(crate) async fn asked<T, E: std::fmt::Display>(question: impl Future<Output = Result<T, E>>) -> Known<T> {
    asked_within(STORE_ANSWERS_WITHIN, question).await
}

/// The same with a patience of its own.
pub(crate) async fn asked_within<T, E: std::fmt::Display>(
    patience: Duration,
    question: impl Future<Output = Result<T, E>>,
) -> Known<T> {
    match timeout(patience, question).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Gap::Silent(error.to_string())),
        Err(_) => Err(Gap::Silent(format!("no answer within {} s", patience.as_secs()))),
    }
}

async fn standing(keeper: &Keeper, name: &AppName) -> Known<AppStanding> {
    if keeper.app(name).is_none() {
        return Err(Gap::NotAsked("the app is not in the configuration".to_owned()));
    }
    let (health, state) = join(
        asked(keeper.app_health(name)),
        asked(keeper.store().app_state(name)),
    )
    .await;
    let state = state?;
    Ok(AppStanding {
        health: health?,
        endpoint: state.endpoint,
        rotates_since: state.single_use_since,
    })
}

async fn clock(keeper: &Keeper, name: &AppName) -> Known<Offset> {
    let Some(app) = keeper.app(name) else {
        return Err(Gap::NotAsked("the app is not in the configuration".to_owned()));
    };
    keeper
        .provider_clock(&app, PROVIDER_ANSWERS_WITHIN)
        .await
        .map_err(|word| match word {
            // An answer all the same: it says nothing about an outage.
            "no_date" => Gap::NotAsked("the provider's answer has no `Date`".to_owned()),
            word => Gap::Silent(word.to_owned()),
        })
}
