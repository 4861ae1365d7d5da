//! The way to an app's token endpoint: so many exchanges at a time, so many a second in the whole fleet, and first those that
//! somebody waits for. PROTOCOL rule 1: its permit is taken before the lease.
//!
//! The budget is leased from the store in slices as large as what waits here, so that a burst costs few looks at the store, and a
//! process that dies takes no more with it than a second's rate.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use evergrant_domain::redemption::EXCHANGES_PER_SECOND;
use evergrant_domain::{AppName, ConnectionId};
use evergrant_store::StoreError;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::error::KeepError;
use crate::keeper::Keeper;

/// Exchanges with one app's token endpoint that one process has under way at a time.
const AT_A_TIME: u32 = 32;

/// How long a slice may be used: the second that it was taken out of is over by then.
const SLICE_LASTS: Duration = Duration::from_secs(1);

/// How long to wait where this second's budget is spent, before asking for the next one's.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Whether anybody waits for a flight: then it goes first, from whenever they began to.
pub(crate) type WaitedFor = Arc<AtomicBool>;

type Answer = Result<Permit, StoreError>;

/// The gates, by app.
#[derive(Default)]
pub(crate) struct Gates {
    by_app: Mutex<BTreeMap<AppName, Arc<Gate>>>,
}

struct Gate {
    app: AppName,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    next: u64,
    /// By the order in which they came: those that somebody waits for, and the others.
    first: BTreeMap<u64, oneshot::Sender<Answer>>,
    behind: BTreeMap<u64, (ConnectionId, oneshot::Sender<Answer>)>,
    /// Where a connection stands in `behind`.
    places: HashMap<ConnectionId, u64>,
    under_way: u32,
    slice: u32,
    /// By the boot-time clock.
    slice_ends: Duration,
    /// Whether the store is being asked for the next slice.
    asking: bool,
}

impl Queue {
    fn join(&mut self, id: &ConnectionId, waited_for: &WaitedFor) -> oneshot::Receiver<Answer> {
        let (tell, told) = oneshot::channel();
        self.next += 1;
        // Read under the lock that `hurry` takes after it was set: one of the two sees the other.
        if waited_for.load(Ordering::SeqCst) {
            self.first.insert(self.next, tell);
        } else {
            self.behind.insert(self.next, (id.clone(), tell));
            self.places.insert(id.clone(), self.next);
        }
        told
    }

    fn hurry(&mut self, id: &ConnectionId) {
        if let Some(place) = self.places.remove(id)
            && let Some((_, tell)) = self.behind.remove(&place)
        {
            self.first.insert(place, tell);
        }
    }

    /// Whoever is next; callers go before what nobody waits for.
    fn pop(&mut self) -> Option<oneshot::Sender<Answer>> {
        if let Some((_, tell)) = self.first.pop_first() {
            return Some(tell);
        }
        let (_, (id, tell)) = self.behind.pop_first()?;
        self.places.remove(&id);
        Some(tell)
    }

    /// How many could go if there were budget.
    fn wanted(&self) -> u32 {
        let waiting = self.first.len() + self.behind.len();
        let room = AT_A_TIME.saturating_sub(self.under_way);
        u32::try_from(waiting).unwrap_or(u32::MAX).min(room)
    }
}

/// The right to one exchange. Dropped, the next one has its place.
pub(crate) struct Permit {
    keeper: Keeper,
    gate: Arc<Gate>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.queue.lock().under_way -= 1;
        self.keeper.admit(&self.gate);
    }
}

impl Keeper {
    /// Waits for the permit of a connection's redemption.
    ///
    /// # Errors
    ///
    /// Where the store does not answer, or this process is going down: nothing is begun then.
    pub(crate) async fn permit(
        &self,
        app: &AppName,
        id: &ConnectionId,
        waited_for: &WaitedFor,
    ) -> Result<Permit, KeepError> {
        let gate = self.gate(app);
        let told = gate.queue.lock().join(id, waited_for);
        self.admit(&gate);
        tokio::select! {
            biased;
            answer = told => match answer {
                Ok(answer) => Ok(answer?),
                Err(_) => Err(KeepError::Overloaded { retry_after: SLICE_LASTS }),
            },
            () = self.inner.stopping.cancelled() => Err(KeepError::Overloaded { retry_after: SLICE_LASTS }),
        }
    }

    /// Somebody waits for this connection's flight now: it goes before those that nobody waits for.
    pub(crate) fn hurry(&self, id: &ConnectionId) {
        for gate in self.inner.gates.by_app.lock().values() {
            gate.queue.lock().hurry(id);
        }
    }

    /// How many redemptions that nobody waits for stand in line.
    pub(crate) fn standing_behind(&self) -> u32 {
        let gates = self.inner.gates.by_app.lock();
        let standing: usize = gates.values().map(|gate| gate.queue.lock().behind.len()).sum();
        u32::try_from(standing).unwrap_or(u32::MAX)
    }

    fn gate(&self, app: &AppName) -> Arc<Gate> {
        let mut gates = self.inner.gates.by_app.lock();
        let gate = gates.entry(app.clone()).or_insert_with(|| {
            Arc::new(Gate {
                app: app.clone(),
                queue: Mutex::default(),
            })
        });
        gate.clone()
    }

    /// Lets through whoever may go, and asks the store for more where there is room for more.
    fn admit(&self, gate: &Arc<Gate>) {
        let mut admitted = Vec::new();
        let asks = {
            let mut queue = gate.queue.lock();
            if self.inner.clock.boot() >= queue.slice_ends {
                queue.slice = 0;
            }
            while queue.slice > 0
                && queue.wanted() > 0
                && let Some(tell) = queue.pop()
            {
                queue.slice -= 1;
                queue.under_way += 1;
                admitted.push(tell);
            }
            let asks = queue.wanted() > 0 && !queue.asking;
            queue.asking |= asks;
            asks
        };
        for tell in admitted {
            let permit = Permit {
                keeper: self.clone(),
                gate: gate.clone(),
            };
            // Who does not wait any more gives it back by this.
            drop(tell.send(Ok(permit)));
        }
        if asks {
            let (keeper, gate) = (self.clone(), gate.clone());
            self.inner
                .tasks
                .redeem(async move { keeper.ask_for_slice(&gate).await });
        }
    }

    /// Leases the next slice. With the store away no redemption begins, so everybody who waits is told so.
    async fn ask_for_slice(&self, gate: &Arc<Gate>) {
        let told = loop {
            let wanted = gate.queue.lock().wanted().clamp(1, EXCHANGES_PER_SECOND);
            let asked_at = self.inner.clock.boot();
            let now = self.inner.clock.now();
            let claim = self
                .inner
                .store
                .claim_exchanges(&gate.app, wanted, EXCHANGES_PER_SECOND, now);
            match claim.await {
                Ok(0) => {
                    tokio::time::sleep(ASK_AGAIN / 2 + self.jitter().of(ASK_AGAIN)).await;
                }
                Ok(slice) => {
                    let mut queue = gate.queue.lock();
                    queue.slice = slice;
                    queue.slice_ends = asked_at + SLICE_LASTS;
                    queue.asking = false;
                    break Vec::new();
                }
                Err(error) => {
                    let mut queue = gate.queue.lock();
                    queue.asking = false;
                    let mut told = Vec::new();
                    while let Some(tell) = queue.pop() {
                        told.push((tell, error.clone()));
                    }
                    break told;
                }
            }
        };
        for (tell, error) in told {
            drop(tell.send(Err(error)));
        }
        self.admit(gate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_never_empties_remembers_nobody_who_has_left_it() {
        let mut queue = Queue::default();
        let id = |n: u32| ConnectionId::parse(&format!("c{n}")).expect("a literal id");
        for n in 0..100 {
            drop(queue.join(&id(n), &WaitedFor::default()));
            if n > 0 {
                assert!(queue.pop().is_some());
            }
        }
        queue.hurry(&id(0));
        assert!(queue.first.is_empty(), "it went long ago");
        assert_eq!(queue.places.len(), 1);
        queue.hurry(&id(99));
        assert_eq!(
            (queue.first.len(), queue.behind.len(), queue.places.len()),
            (1, 0, 0)
        );
    }
}
