//! A guarded write's place in the ledger.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use evergrant_keeper::{KeepError, Keeper};
use evergrant_store::contract::{Reserved, StoredAnswer, WriteEnd, WriteReservation, WriteTicket};
use evergrant_store::vault::random_token;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::call::Call;
use crate::gateway::Inner;
use crate::guard::asked::Guards;
use crate::guard::fingerprint::{of_key, of_request};
use crate::record::RefusalKind;
use crate::transport::Transport;

/// How long a place lasts that nobody holds on to. Whoever is killed keeps the same write waiting for that long; a store that does
/// not answer meanwhile costs nothing but an outcome that counts as unknown until its owner says it.
const LASTS: Duration = Duration::from_secs(30);
/// How often it is held on to: two tries may fail.
const HELD_EVERY: Duration = Duration::from_secs(10);
/// A key's outcome is kept for so long.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// A store that takes longer is away.
const STORE_ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// So many ends of writes wait for a store that is away.
const ENDS_MAX: usize = 1024;
/// With so many bytes of answers' bodies among them.
const END_BODIES_MAX: usize = 32 * 1024 * 1024;

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
    pub(crate) fn reservation(&self, call: &Call<'_>, guards: &Guards, body: &[u8]) -> WriteReservation {
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
            deadline: now.after(LASTS),
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
        // It may have been taken all the same. Nobody is kept from it by a call that was refused; where too many ends wait already,
        // it is free again at its deadline.
        if let Some(waits) = self.ends.enter(None) {
            self.end_behind(Arc::new(ticket), WriteEnd::NotApplied, waits);
        }
        Err(why)
    }

    /// Puts on record that the call leaves now. Nothing may leave unless this returns.
    pub(crate) async fn leaves(&self, place: &Place) -> Result<(), RefusalKind> {
        let now = self.keeper.clock().now();
        let on_record = timeout(
            STORE_ANSWERS_WITHIN,
            self.keeper
                .store()
                .write_leaves(&place.ticket, now.after(LASTS), now),
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

    /// Holds on to a place while its write is under way, until it is dropped. Where it was judged or taken over meanwhile, that shows
    /// when the write leaves or ends.
    pub(crate) async fn hold(&self, place: &Place) -> Infallible {
        loop {
            sleep(HELD_EVERY).await;
            let deadline = self.keeper.clock().now().after(LASTS);
            let holding = self.keeper.store().hold_write(&place.ticket, deadline);
            // Without an answer it is tried again.
            let _ = timeout(STORE_ANSWERS_WITHIN, holding).await;
        }
    }

    /// Puts on record how it ended. Where the store does not take it soon, the caller is not kept waiting for that: it is tried
    /// on for a while. What is never taken counts as unknown after its deadline, and is not sent again.
    pub(crate) async fn end(&self, place: &Place, end: WriteEnd) {
        const WAIT: Duration = Duration::from_secs(2);
        let ticket = place.ticket.clone();
        if let Some(waits) = self.ends.enter(body_of(&end)) {
            let _ = timeout(WAIT, self.end_behind(ticket, end, waits)).await;
            return;
        }
        // As many wait already as may: this one is tried once, while the call still counts as one in flight.
        let end = without_body(end);
        if let Err(why) = note_end(&self.keeper, &ticket, &end).await {
            not_noted(&ticket, &why);
        }
    }

    fn end_behind(&self, ticket: Arc<WriteTicket>, end: WriteEnd, waits: Waits) -> oneshot::Receiver<()> {
        const PAUSES: [u64; 8] = [1, 1, 2, 4, 8, 15, 30, 30];
        let end = if waits.with_body { end } else { without_body(end) };
        let (tell, told) = oneshot::channel();
        let keeper = self.keeper.clone();
        self.keeper.spawn(async move {
            let mut pauses = PAUSES.iter();
            while let Err(why) = note_end(&keeper, &ticket, &end).await {
                let Some(&pause) = pauses.next() else {
                    return not_noted(&ticket, &why);
                };
                // A process that goes down tries once more, and no longer.
                if timeout(Duration::from_secs(pause), keeper.stops()).await.is_ok() {
                    pauses = [].iter();
                }
            }
            drop(waits);
            let _ = tell.send(());
        });
        told
    }
}

/// The ends of guarded writes that the store has not taken yet. Those that wait keep their places: they are nearer to their
/// deadlines, and one that finds no place is tried once.
#[derive(Clone, Default)]
pub(crate) struct Ends(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    ends: usize,
    body_bytes: usize,
}

/// One of them, until it is dropped.
struct Waits {
    among: Ends,
    body_bytes: usize,
    /// Whether there was room for its answer's body. Without, the answer is given again by its status.
    with_body: bool,
}

impl Ends {
    fn enter(&self, body: Option<&[u8]>) -> Option<Waits> {
        let mut waiting = self.0.lock();
        if waiting.ends >= ENDS_MAX {
            return None;
        }
        waiting.ends += 1;
        let body_bytes = body.map_or(0, <[u8]>::len);
        let with_body = waiting.body_bytes + body_bytes <= END_BODIES_MAX;
        let body_bytes = if with_body { body_bytes } else { 0 };
        waiting.body_bytes += body_bytes;
        drop(waiting);
        Some(Waits {
            among: self.clone(),
            body_bytes,
            with_body,
        })
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        let mut waiting = self.among.0.lock();
        waiting.ends -= 1;
        waiting.body_bytes -= self.body_bytes;
    }
}

/// One try.
async fn note_end(keeper: &Keeper, ticket: &WriteTicket, end: &WriteEnd) -> Result<(), String> {
    let now = keeper.clock().now();
    let ending = keeper.store().end_write(ticket, end.clone(), now);
    match timeout(STORE_ANSWERS_WITHIN, ending).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer".to_owned()),
    }
}

fn not_noted(ticket: &WriteTicket, why: &str) {
    tracing::warn!(event = "store_error", connection_id = %ticket.connection, error = why, "how a guarded write ended could not be noted: it counts as unknown");
}

fn body_of(end: &WriteEnd) -> Option<&[u8]> {
    match end {
        WriteEnd::Done(answer) => answer.body.as_deref(),
        WriteEnd::NotApplied | WriteEnd::Unknown => None,
    }
}

fn without_body(end: WriteEnd) -> WriteEnd {
    match end {
        WriteEnd::Done(answer) => WriteEnd::Done(StoredAnswer { body: None, ..answer }),
        WriteEnd::NotApplied | WriteEnd::Unknown => end,
    }
}

fn store_unavailable() -> RefusalKind {
    RefusalKind::Keep(KeepError::StoreUnavailable {
        retry_after: Duration::from_secs(1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_wait_within_a_bound_and_bodies_within_another() {
        let ends = Ends::default();
        let body = vec![0; END_BODIES_MAX / 2];
        let mut waiting: Vec<_> = (0..2).map(|_| ends.enter(Some(&body)).unwrap()).collect();
        assert!(waiting.iter().all(|waits| waits.with_body));
        let late = ends.enter(Some(b"x")).unwrap();
        assert!(!late.with_body);
        waiting.push(late);
        while let Some(waits) = ends.enter(None) {
            waiting.push(waits);
        }
        assert_eq!(waiting.len(), ENDS_MAX);
        waiting.remove(0);
        assert!(ends.enter(Some(b"x")).is_some_and(|waits| waits.with_body));
    }
}
