//! What becomes of an answer that is in hand: stored before anything else, and not let go until it is.
//!
//! PROTOCOL rules 14 to 17. The store is asked first. Where it does not take the answer at once, the answer goes into the
//! lifeboat beside, and whoever waits gets the token; landing goes on in a task of its own.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use evergrant_domain::connection::{Account, Landing};
use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::tally::Counted;
use evergrant_domain::token_answer::Issued;
use evergrant_domain::{
    AppName, ConnectionId, ConnectionStatus, ReconnectReason, Rotation, Timestamp, TokenSet,
};
use evergrant_metrics::Source;
use evergrant_store::StoreError;
use evergrant_store::contract::{Held, Landed, Lease, Refreshed};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tracing::Instrument as _;

use crate::cache::Sight;
use crate::error::KeepError;
use crate::flight::Outcome;
use crate::keeper::Keeper;
use crate::lifeboat::Entry;
use crate::redeem::{Holding, Turn};
use crate::tenure::Tenure;

/// Between two tries at storing an answer that is in hand.
const STORE_AGAIN: Duration = Duration::from_millis(100);
const STORE_AGAIN_MAX: Duration = Duration::from_secs(5);

/// Rule 17: how long the commit alone may take before the lifeboat is written, too.
const STORE_TAKES: Duration = Duration::from_secs(1);

/// How long one try at storing may take before the next one begins; nobody knows then whether it was stored.
const TRY_LASTS: Duration = Duration::from_secs(10);

/// How long one try at writing the lifeboat may take.
const BOARDING_LASTS: Duration = Duration::from_secs(5);

/// What a redemption brought, with all that is needed to store it, by whichever process and whenever.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Which attempt brought it: its name in the lifeboat. The same for the same answer and for no other.
    pub(crate) name: String,
    pub(crate) app: AppName,
    /// The right under which the refresh token was presented; its version is the one that was redeemed.
    pub(crate) lease: Lease,
    pub(crate) tokens: TokenSet,
    /// The account that was answered for, where it is not the pinned one.
    pub(crate) mismatch: Option<String>,
    /// The account to be pinned, where none was.
    pub(crate) account: Option<Account>,
    pub(crate) event: Event,
    /// The provider replaced the refresh token and was not expected to.
    pub(crate) rotated: bool,
    /// Which life of the connection's id it belongs to, and which consent.
    pub(crate) created_at: Timestamp,
    pub(crate) connected_at: Timestamp,
    pub(crate) tried: Tried,
}

/// What is known of the tries at storing an answer.
#[derive(Debug, Default)]
pub(crate) struct Tried {
    /// One may have stored it without saying so. From then on an answer that is not there may have been there.
    may_have_been_stored: AtomicBool,
    /// It was counted.
    counted: AtomicBool,
}

impl Tried {
    /// Of an answer whose first tries were others'.
    pub(crate) fn by_others() -> Self {
        Self {
            may_have_been_stored: AtomicBool::new(true),
            counted: AtomicBool::new(false),
        }
    }
}

impl Answer {
    fn refreshed(&self) -> Refreshed {
        Refreshed {
            tokens: self.tokens.clone(),
            mismatch: self.mismatch.clone(),
            account: self.account.clone(),
            event: self.event.clone(),
        }
    }

    /// Whether it is what stands there, or something came after it.
    fn is_settled_in(&self, held: &Held) -> bool {
        held.connection.version > self.lease.version()
    }

    /// Another token set was stored for the version that this answer was issued for, so two were issued for one. Where it may have
    /// been stored itself, only the very next version says so: a later one may have come from this answer.
    fn was_issued_twice(&self, held: &Held) -> bool {
        let next = held.connection.version == self.lease.version().next();
        let may_have_been_stored = self.tried.may_have_been_stored.load(Ordering::Relaxed);
        self.is_of_the_consent_of(held) && (next || !may_have_been_stored)
    }

    /// Whether no newer consent is there, and no other connection under this id.
    fn is_of_the_consent_of(&self, held: &Held) -> bool {
        let connection = &held.connection;
        connection.created_at == self.created_at && connection.connected_at <= self.connected_at
    }

    /// A commit whose answer was lost had happened: token sets are compared by what they are, not by number alone.
    fn is_stored_in(&self, held: &Held) -> bool {
        held.tokens.as_ref().is_some_and(|stored| {
            stored.access_token.expose() == self.tokens.access_token.expose()
                && stored.issued_at == self.tokens.issued_at
        })
    }

    /// The record as it will stand once this has landed on what `held` shows. `None` where it will not.
    pub(crate) fn ahead_of(&self, held: &Held) -> Option<Held> {
        let mut connection = held.connection.clone();
        let lands = connection.status.after_token_set_landed();
        if connection.version != self.lease.version() {
            return None;
        }
        connection.status = match (&self.mismatch, lands) {
            (_, Landing::Refused | Landing::StaysAsItIs) => return None,
            (None, Landing::Active | Landing::ActiveUnproven) => ConnectionStatus::Active,
            (Some(_), Landing::Active | Landing::ActiveUnproven) => ConnectionStatus::ReconnectRequired {
                reason: ReconnectReason::AccountMismatch,
                since: self.tokens.issued_at,
            },
        };
        connection.version = connection.version.next();
        connection.issued_at = self.tokens.issued_at;
        connection.ends = self.tokens.ends;
        connection.scopes.clone_from(&self.tokens.scopes);
        connection.token_type.clone_from(&self.tokens.token_type);
        connection.trouble = None;
        connection.intent = None;
        connection.refresh_in_progress_until = None;
        Some(Held {
            connection,
            tokens: Some(self.tokens.clone()),
            cooldown: held.cooldown,
        })
    }
}

/// An answer in hand, and the lease under which it came.
type InHand = (Arc<Answer>, Arc<Tenure>);

/// The answers of this process that have not landed yet.
#[derive(Debug, Default)]
pub(crate) struct Afloat(Mutex<HashMap<ConnectionId, InHand>>);

impl Afloat {
    fn put(&self, answer: &Arc<Answer>, tenure: &Arc<Tenure>) {
        let id = answer.lease.connection().clone();
        self.0.lock().insert(id, (answer.clone(), tenure.clone()));
    }

    fn take_off(&self, answer: &Arc<Answer>) {
        let mut answers = self.0.lock();
        let id = answer.lease.connection();
        if answers
            .get(id)
            .is_some_and(|(there, _)| Arc::ptr_eq(there, answer))
        {
            answers.remove(id);
        }
    }

    /// Whether this process is landing the entry of this name anyway.
    pub(crate) fn has(&self, id: &ConnectionId, name: &str) -> bool {
        self.of(id).is_some_and(|(answer, _)| answer.name == name)
    }

    /// What is in hand of a connection. The refresh token that the store still shows was redeemed, and never leaves again.
    pub(crate) fn of(&self, id: &ConnectionId) -> Option<InHand> {
        self.0.lock().get(id).cloned()
    }
}

/// Whether so much time may have passed since an answer came that its connection's id stands for another one now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Late {
    /// It has just come.
    No,
    /// It was tried before, or by another process.
    Yes,
}

/// What a store made of an answer.
pub(crate) enum Ashore {
    /// It is the stored one.
    Stored(Box<Held>),
    /// Something newer is stored.
    Superseded,
    /// The connection was disconnected, or erased.
    Disconnected,
}

/// What whoever waits for a redemption is told of its answer.
enum News {
    Ashore(Ashore),
    /// Not stored yet; the token serves.
    Afloat,
    /// The store will not take it, however often it is asked.
    Refused(StoreError),
}

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
        let id = &holding.held.connection.id;
        let answer = Arc::new(self.answer(holding, old, issued, sent_at, rotation));
        let sight = self.inner.cache.sight(id);
        let (tell, told) = oneshot::channel();
        self.inner.afloat.put(&answer, &holding.tenure);
        let keeper = self.clone();
        self.inner.tasks.redeem({
            let (answer, tenure) = (answer.clone(), holding.tenure.clone());
            let span = tracing::debug_span!("store", otel.kind = "internal");
            let work = async move {
                // Rule 5: renewed while it is afloat, so that nobody presents what was redeemed; it lands in any case.
                let landing = keeper.bring_ashore(&answer, tell);
                keeper.under_renewal(&tenure, || true, landing).await;
            };
            work.instrument(span)
        });
        Ok(match told.await {
            Ok(News::Ashore(Ashore::Stored(held))) => Turn::Over(self.landed(&held, sight)),
            Ok(News::Ashore(Ashore::Superseded)) => Turn::Moved,
            Ok(News::Ashore(Ashore::Disconnected)) => Turn::Over(Err(KeepError::Disconnected)),
            // Past its lease somebody else may have redeemed, and stored another set under the number that this one would have.
            Ok(News::Afloat) if !holding.tenure.lasts(self.inner.clock.boot()) => Turn::LookAgain,
            Ok(News::Afloat) => match answer.ahead_of(&holding.held) {
                Some(ahead) => Turn::Over(self.landed(&ahead, sight)),
                None => Turn::LookAgain,
            },
            Ok(News::Refused(error)) => return Err(error.into()),
            // The task is gone: it panicked, or the runtime is going down.
            Err(_) => Turn::LookAgain,
        })
    }

    fn answer(
        &self,
        holding: &Holding,
        old: &TokenSet,
        issued: Issued,
        sent_at: Timestamp,
        rotation: Rotation,
    ) -> Answer {
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
            (None, Some(id)) => Some(Account {
                id,
                domain: None,
                user: None,
            }),
            _ => None,
        };
        let event = match &mismatch {
            None => Event::new(EventKind::Refreshed, "a new access token was issued and stored"),
            Some(got) => Event::new(
                EventKind::AccountMismatch,
                format!("the provider answered for account {got}, which is not the one that was connected"),
            ),
        }
        .during(holding.circumstances(None, sent_at));
        let print = self
            .inner
            .vault
            .fingerprint("lifeboat", issued.access_token.expose());
        let ends = holding
            .app
            .refresh_policy
            .ends(sent_at, issued.lifetime, self.jitter());
        Answer {
            name: format!(
                "{}.{}.{}.{print}",
                connection.id,
                holding.lease.version(),
                holding.lease.fence().number()
            ),
            app: holding.app.name.clone(),
            lease: holding.lease.clone(),
            tokens: TokenSet {
                access_token: issued.access_token,
                refresh_token: issued.refresh_token.or_else(|| old.refresh_token.clone()),
                token_type: issued.token_type,
                scopes: issued.scopes.unwrap_or_else(|| old.scopes.clone()),
                issued_at: sent_at,
                ends,
                unproven: false,
            },
            mismatch,
            account,
            event,
            rotated: rotated && rotation == Rotation::Never,
            created_at: connection.created_at,
            connected_at: connection.connected_at,
            tried: Tried::default(),
        }
    }

    /// Goes on until the store has the answer, or something newer; ends sooner only where the lifeboat has it and the process
    /// is going down. Whoever waits is told as soon as nothing more can be done for them.
    async fn bring_ashore(&self, answer: &Arc<Answer>, tell: oneshot::Sender<News>) {
        let id = answer.lease.connection();
        let mut waiting = Some(tell);
        let mut tell = |news| {
            if let Some(waiting) = waiting.take() {
                // Nobody waits any more: the answer is stored all the same.
                let _ = waiting.send(news);
            }
        };
        let stopping = &self.inner.stopping;
        let mut aboard = false;
        let mut pause = STORE_AGAIN;
        let mut late = Late::No;
        loop {
            let mut landing = pin!(timeout(TRY_LASTS, self.land(answer, late)));
            let landed = loop {
                tokio::select! {
                    biased;
                    landed = &mut landing => break landed.unwrap_or_else(|_| Err(too_slow())),
                    () = stopping.cancelled(), if aboard => return,
                    () = sleep(STORE_TAKES), if !aboard => {
                        aboard = self.board(answer).await;
                        tell(News::Afloat);
                    }
                }
            };
            match landed {
                Ok(ashore) => {
                    if !matches!(ashore, Ashore::Stored(_)) {
                        self.inner.cache.forget(id);
                    }
                    tell(News::Ashore(ashore));
                    if !aboard || self.disembark(&answer.name, answer).await {
                        // The alarm follows the storing: nothing may stand between an answer and its place in the store.
                        self.note_rotation(answer).await;
                        self.inner.afloat.take_off(answer);
                        return;
                    }
                }
                Err(error) => {
                    aboard = aboard || self.board(answer).await;
                    report(answer, &error, aboard);
                    let passes = matches!(error, StoreError::Unavailable { .. });
                    tell(if passes {
                        News::Afloat
                    } else {
                        News::Refused(error)
                    });
                    if !passes && aboard {
                        self.inner.afloat.take_off(answer);
                        return;
                    }
                }
            }
            let wait = pause / 2 + self.jitter().of(pause / 2);
            tokio::select! {
                biased;
                () = stopping.cancelled(), if aboard => return,
                () = sleep(wait) => {}
            }
            pause = (pause * 2).min(STORE_AGAIN_MAX);
            late = Late::Yes;
        }
    }

    /// One try at storing an answer, with what follows from where the store stands.
    pub(crate) async fn land(&self, answer: &Answer, late: Late) -> Result<Ashore, StoreError> {
        let now = self.inner.clock.now();
        let store = &self.inner.store;
        let id = answer.lease.connection();
        if late == Late::Yes
            && let Some(shown) = store.connection(id).await?
            && shown.created_at != answer.created_at
        {
            return self.revoke_erased(answer).await;
        }
        // Whoever waits may give up on it and try again: what it does then, nobody is told.
        let definite = !answer.tried.may_have_been_stored.swap(true, Ordering::Relaxed);
        let landed = store.land(&answer.lease, answer.refreshed(), now).await?;
        answer
            .tried
            .may_have_been_stored
            .store(!definite, Ordering::Relaxed);
        Ok(match landed {
            Landed::Stored(held) => {
                self.count_stored(answer);
                Ashore::Stored(held)
            }
            Landed::Moved(held) if answer.is_stored_in(&held) => {
                // Where it came from another process, or an earlier life of this one, it was counted there.
                if self.inner.afloat.has(id, &answer.name) {
                    self.count_stored(answer);
                }
                Ashore::Stored(held)
            }
            Landed::Moved(held) if answer.is_settled_in(&held) => {
                if answer.was_issued_twice(&held) {
                    self.tell_of_double_redemption(answer, &held);
                } else if answer.is_of_the_consent_of(&held) && self.inner.afloat.has(id, &answer.name) {
                    // It was stored without saying so, and what came of it is there by now.
                    self.count_stored(answer);
                }
                Ashore::Superseded
            }
            // Rule 18: it has lost even what this answer came from. A newer consent counts all the same.
            Landed::Moved(held) => {
                if answer.mismatch.is_some() || held.connection.connected_at > answer.connected_at {
                    return Ok(Ashore::Superseded);
                }
                let version = answer.lease.version().next();
                let restored = self.restore(&held, version, answer.tokens.clone()).await?;
                let restored = restored.ok_or_else(moved)?;
                self.count_stored(answer);
                Ashore::Stored(restored)
            }
            Landed::Purged => return self.revoke_erased(answer).await,
            Landed::GrantTaken { by } => {
                return Err(StoreError::Corrupt {
                    what: format!("connection {by} already holds the refresh token that was issued to {id}"),
                });
            }
            Landed::Disconnected => {
                self.revoke_soon();
                Ashore::Disconnected
            }
        })
    }

    /// Each answer once, however often it was tried.
    fn count_stored(&self, answer: &Answer) {
        if !answer.tried.counted.swap(true, Ordering::Relaxed) {
            let series = self.inner.metrics.of(&answer.app, answer.lease.connection());
            series.here().token_set_stored(Source::Refresh);
            self.note_counted(answer.lease.connection(), &answer.app, Counted::Stored);
        }
    }

    /// Two processes redeemed one version's refresh token, and both were given a token set. One of them is lost, and which one the
    /// provider still accepts, only the next redemption tells.
    fn tell_of_double_redemption(&self, answer: &Answer, held: &Held) {
        // An entry that cannot be removed is found again and again.
        if answer.tried.counted.swap(true, Ordering::Relaxed) || !self.inner.alarmed.is_first_of(&answer.name)
        {
            return;
        }
        self.inner.metrics.double_redemption();
        let detail = format!(
            "two token sets were issued for version {}; the other one is stored",
            answer.lease.version()
        );
        let event = Event::new(EventKind::DoubleRedemption, detail);
        self.event(answer.lease.connection(), event);
        tracing::error!(
            event = "double_redemption",
            connection_id = %answer.lease.connection(),
            app = %answer.app,
            version_before = answer.lease.version().number(),
            version = held.connection.version.number(),
            "two token sets were issued for one version: its refresh token was redeemed twice, and the other set is the stored one"
        );
    }

    /// The connection was erased since: nobody is left who uses the grant, or who could say whether to revoke it.
    async fn revoke_erased(&self, answer: &Answer) -> Result<Ashore, StoreError> {
        if let Some(token) = answer.tokens.refresh_token.clone() {
            let id = answer.lease.connection();
            let now = self.inner.clock.now();
            self.inner
                .store
                .queue_revocation(id, &answer.app, token, now)
                .await?;
            self.revoke_soon();
        }
        Ok(Ashore::Disconnected)
    }

    /// Writes the answer into the lifeboat; `false` where it is not there.
    async fn board(&self, answer: &Answer) -> bool {
        let Some(lifeboat) = &self.inner.lifeboat else {
            return false;
        };
        let sealed = Entry::seal(answer, &self.inner.vault);
        let kept = match timeout(BOARDING_LASTS, lifeboat.keep(&answer.name, &sealed)).await {
            Ok(kept) => kept,
            Err(elapsed) => Err(elapsed.into()),
        };
        match kept {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(
                    event = "lifeboat_not_written",
                    connection_id = %answer.lease.connection(),
                    %error,
                    "neither the store nor the lifeboat takes a new token set: mend one of them, and do not kill this process"
                );
                false
            }
        }
    }

    /// Rule 17: an entry is kept until a read shows its set or a later version. `false` where it must stay.
    pub(crate) async fn disembark(&self, entry: &str, answer: &Answer) -> bool {
        let Some(lifeboat) = &self.inner.lifeboat else {
            return true;
        };
        let settled = match self.inner.store.connection(answer.lease.connection()).await {
            Ok(None) => true,
            Ok(Some(shown)) => {
                shown.version > answer.lease.version() || shown.created_at != answer.created_at
            }
            Err(_) => false,
        };
        if !settled {
            return false;
        }
        if let Err(error) = lifeboat.remove(entry).await {
            tracing::warn!(event = "lifeboat_not_cleared", entry, %error, "an entry that has landed could not be removed; the next look does it");
        }
        true
    }

    pub(crate) async fn note_rotation(&self, answer: &Answer) {
        if answer.rotated
            && let Some(app) = self.app(&answer.app)
        {
            self.expect_rotation(&app).await;
        }
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
            "a new access token was issued"
        );
        Ok(token)
    }
}

fn report(answer: &Answer, error: &StoreError, aboard: bool) {
    let connection_id = answer.lease.connection();
    if aboard {
        tracing::warn!(
            event = "token_set_in_lifeboat",
            %connection_id,
            %error,
            "a new token set is in the lifeboat and the store does not take it yet; trying again until it does"
        );
    } else {
        // The provider may have killed the old refresh token: what is in hand is the only one there is.
        tracing::error!(
            event = "token_set_not_stored",
            %connection_id,
            %error,
            "a new token set is in hand and the store does not take it; trying again until it does"
        );
    }
}

fn too_slow() -> StoreError {
    StoreError::Unavailable {
        what: "it did not answer in time".to_owned(),
        outcome_unknown: true,
    }
}

fn moved() -> StoreError {
    StoreError::Unavailable {
        what: "the record moved at the same moment".to_owned(),
        outcome_unknown: false,
    }
}
