//! What other processes did, and what time it is for all of them: both are the store's to tell.

use std::sync::atomic::Ordering;
use std::time::Duration;

use evergrant_store::StoreError;
use evergrant_store::contract::{Change, Pulse};
use tokio::time::{MissedTickBehavior, interval};

use crate::keeper::{Keeper, millis};

const FEED_EVERY: Duration = Duration::from_millis(500);
/// Often enough that what a failover has lost is noticed within a second, by whoever kept its connection.
const PULSE_EVERY: Duration = Duration::from_millis(500);
/// A feed that was not read for so long may have been swept meanwhile: everything at hand is read again.
const FEED_GAP: Duration = Duration::from_secs(3600);

/// A machine's clock that is further off than this is worth a word, once in a while.
const OFFSET_MAX_MS: u64 = 5000;
const OFFSET_SAID_EVERY: Duration = Duration::from_secs(600);

/// How far the feed was read, and from which store.
#[derive(Debug, Default)]
struct Reader {
    /// `None` where it is to be read anew: then anything may have been missed.
    read_to: Option<i64>,
    epoch: Option<String>,
    /// Boot time.
    pulse_at: Option<Duration>,
}

impl Keeper {
    /// By how many milliseconds this machine's clock is ahead of the store's; negative where it is behind. `None` where the
    /// machine's clock is the only one, or nobody knows yet.
    pub fn clock_offset_ms(&self) -> Option<i64> {
        self.inner.timeline.machine_ahead_ms()
    }

    /// The truth about what other processes did. Begins where the feed stands when the keeper starts.
    pub(crate) fn spawn_watching(&self) {
        let keeper = self.clone();
        self.inner.tasks.spawn(async move {
            let mut reader = Reader::default();
            let mut ticks = interval(FEED_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    biased;
                    () = keeper.inner.stopping.cancelled() => return,
                    _ = ticks.tick() => {}
                    () = keeper.inner.store.hint() => {}
                }
                let read = keeper.read_on(&mut reader).await;
                keeper.inner.store_away.store(read.is_err(), Ordering::Relaxed);
                if let Err(error) = read {
                    // Whoever answers next may be another store than before, and may have lost something.
                    reader = Reader { epoch: reader.epoch, ..Reader::default() };
                    tracing::warn!(event = "store_error", %error, "the change feed could not be read; cached tokens serve for a while");
                }
            }
        });
    }

    async fn read_on(&self, reader: &mut Reader) -> Result<(), StoreError> {
        let began = self.inner.clock.boot();
        if reader
            .pulse_at
            .is_none_or(|at| began.saturating_sub(at) >= PULSE_EVERY)
        {
            let epoch = Some(self.take_pulse().await?.epoch);
            if reader.epoch != epoch {
                reader.read_to = None;
                reader.epoch = epoch;
            }
            reader.pulse_at = Some(began);
        }
        let last = Duration::from_millis(self.inner.feed_read_at.load(Ordering::Relaxed));
        let store = &self.inner.store;
        let head = match reader.read_to {
            Some(read_to) if began.saturating_sub(last) < FEED_GAP => {
                let (changes, head) = store.changes(read_to).await?;
                for change in changes {
                    match change {
                        Change::Connection { id, version } => self.inner.cache.doubt(&id, version),
                        Change::Keys => self.next_keys_generation(),
                        // What else is known about an app is read with every redemption.
                        Change::App(name) => drop(self.inner.at_rest.lock().remove(&name)),
                    }
                }
                head
            }
            // Listening anew: what was missed meanwhile is found by reading everything at hand again.
            _ => {
                let head = store.change_head().await?;
                // Nothing at hand is doubted before the store is seen to answer more than where it stands.
                store.changes(head).await?;
                self.inner.cache.doubt_all();
                self.next_keys_generation();
                head
            }
        };
        reader.read_to = Some(head);
        self.inner.feed_read_at.store(millis(began), Ordering::Relaxed);
        Ok(())
    }

    /// Time: nothing is judged by a machine's clock where the store has one for all.
    pub(crate) async fn be_on_time(&self) -> Result<(), StoreError> {
        if !self.inner.on_time.load(Ordering::Acquire) {
            self.take_pulse().await?;
        }
        Ok(())
    }

    pub(crate) async fn take_pulse(&self) -> Result<Pulse, StoreError> {
        let asked = self.inner.clock.boot();
        let pulse = self.inner.store.pulse().await?;
        if pulse.now.is_none_or(|now| self.inner.timeline.sample(now, asked)) {
            self.inner.on_time.store(true, Ordering::Release);
        }
        self.say_how_far_off();
        Ok(pulse)
    }

    fn say_how_far_off(&self) {
        let Some(offset_ms) = self.clock_offset_ms() else {
            return;
        };
        let boot = self.inner.clock.boot();
        let mut said_at = self.inner.offset_said_at.lock();
        if offset_ms.unsigned_abs() <= OFFSET_MAX_MS
            || said_at.is_some_and(|at| boot < at + OFFSET_SAID_EVERY)
        {
            return;
        }
        *said_at = Some(boot);
        tracing::warn!(
            event = "clock_offset",
            offset_ms,
            "this machine's clock is off by the database's; nothing hangs on it here, but set it right"
        );
    }

    fn next_keys_generation(&self) {
        self.inner.keys_generation.fetch_add(1, Ordering::Release);
    }
}
