//! A guarded write's place in the ledger.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use evergrant_keeper::KeepError;
use evergrant_store::contract::{Reserved, WriteEnd, WriteReservation, WriteTicket};
use evergrant_store::vault::random_token;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::call::Call;
use crate::gateway::Inner;
use crate::guard::asked::Guards;
use crate::guard::fingerprint::{of_key, of_request};
use crate::record::RefusalKind;
use crate::transport::Transport;

/// How long a write may take from its place to its first byte: the longest wait for budget, and one for a token.
pub(crate) const BEFORE_LEAVING: Duration = Duration::from_secs(100);
/// Beside twice the provider's time, for the refresh between two sendings and for reading the answer.
const AFTER_LEAVING: Duration = Duration::from_secs(45);
/// A key's outcome is kept for so long.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// A store that takes longer is away.
const STORE_ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// A place in the ledger that this call holds.
pub(crate) struct Place {
    ticket: Arc<WriteTicket>,
    state: AtomicU8,
}

const RESERVED: u8 = 0;
/// The store was asked to put on record that it leaves, and said so.
const LEFT: u8 = 1;
/// Somebody else took it over.
const LOST: u8 = 2;

impl Place {
    pub(crate) fn new(ticket: WriteTicket) -> Self {
        Self {
            ticket: Arc::new(ticket),
            state: AtomicU8::new(RESERVED),
        }
    }

    /// Whether the call may have left.
    pub(crate) fn has_left(&self) -> bool {
        self.state.load(Ordering::Relaxed) == LEFT
    }

    /// Whether it is somebody else's by now.
    pub(crate) fn is_lost(&self) -> bool {
        self.state.load(Ordering::Relaxed) == LOST
    }
}

impl<T: Transport> Inner<T> {
    pub(crate) fn reservation(
        &self,
        call: &Call<'_>,
        guards: &Guards,
        body: &[u8],
        patience: Duration,
    ) -> WriteReservation {
        let vault = self.keeper.vault();
        let now = self.keeper.clock().now();
        let request = of_request(vault, call, body);
        WriteReservation {
            connection: call.id.clone(),
            key: match &guards.key {
                Some(key) => of_key(vault, call, key),
                None => format!("request:{request}"),
            },
            request,
            owner: random_token(16),
            deadline: now.after(patience),
            keep_until: now.after(guards.window.unwrap_or(KEPT)),
        }
    }

    pub(crate) async fn reserve(&self, reservation: WriteReservation) -> Result<Reserved, RefusalKind> {
        let now = self.keeper.clock().now();
        let ticket = WriteTicket {
            connection: reservation.connection.clone(),
            key: reservation.key.clone(),
            owner: reservation.owner.clone(),
        };
        let reserving = self.keeper.store().reserve_write(reservation, now);
        let why = match timeout(STORE_ANSWERS_WITHIN, reserving).await {
            Ok(Ok(reserved)) => return Ok(reserved),
            Ok(Err(error)) => RefusalKind::Keep(error.into()),
            Err(_) => store_unavailable(),
        };
        // It may have been taken all the same. Nobody is kept from it by a call that was refused.
        self.end_behind(Arc::new(ticket), WriteEnd::NotApplied);
        Err(why)
    }

    /// Puts on record that the call leaves now. Nothing may leave unless this returns.
    pub(crate) async fn leaves(&self, place: &Place) -> Result<(), RefusalKind> {
        let now = self.keeper.clock().now();
        let deadline = now.after(2 * self.limits().upstream_timeout + AFTER_LEAVING);
        let on_record = timeout(
            STORE_ANSWERS_WITHIN,
            self.keeper.store().write_leaves(&place.ticket, deadline, now),
        );
        match on_record.await {
            Ok(Ok(true)) => {
                place.state.store(LEFT, Ordering::Relaxed);
                Ok(())
            }
            Ok(Ok(false)) => {
                place.state.store(LOST, Ordering::Relaxed);
                Err(RefusalKind::IdempotencyInProgress {
                    retry_after: Duration::from_secs(1),
                })
            }
            Ok(Err(error)) => Err(RefusalKind::Keep(error.into())),
            Err(_) => Err(store_unavailable()),
        }
    }

    /// Puts on record how it ended. Where the store does not take it soon, the caller is not kept waiting for that: it is tried
    /// on for a while. What is never taken counts as unknown after its deadline, and is not sent again.
    pub(crate) async fn end(&self, place: &Place, end: WriteEnd) {
        const WAIT: Duration = Duration::from_secs(2);
        let _ = timeout(WAIT, self.end_behind(place.ticket.clone(), end)).await;
    }

    fn end_behind(&self, ticket: Arc<WriteTicket>, end: WriteEnd) -> oneshot::Receiver<()> {
        const PAUSES: [u64; 8] = [1, 1, 2, 4, 8, 15, 30, 30];
        let (tell, told) = oneshot::channel();
        let keeper = self.keeper.clone();
        self.keeper.spawn(async move {
            let mut pauses = PAUSES.iter();
            loop {
                let now = keeper.clock().now();
                let ending = keeper.store().end_write(&ticket, end.clone(), now);
                let why = match timeout(STORE_ANSWERS_WITHIN, ending).await {
                    Ok(Ok(_)) => break,
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => "no answer".to_owned(),
                };
                let Some(&pause) = pauses.next() else {
                    tracing::warn!(event = "store_error", connection_id = %ticket.connection, error = why, "how a guarded write ended could not be noted: it counts as unknown");
                    return;
                };
                sleep(Duration::from_secs(pause)).await;
            }
            let _ = tell.send(());
        });
        told
    }
}

fn store_unavailable() -> RefusalKind {
    RefusalKind::Keep(KeepError::StoreUnavailable {
        retry_after: Duration::from_secs(1),
    })
}
