//! A lease while it is used: renewed, and looked at right before the first byte. PROTOCOL rules 4 and 5.

use std::pin::pin;
use std::time::Duration;

use evergrant_domain::redemption::{LEASE, LEASE_MAX, RENEW_EVERY};
use evergrant_store::contract::Lease;
use parking_lot::Mutex;

use crate::keeper::Keeper;

/// A lease that this process holds, by the boot-time clock, which runs through suspend.
#[derive(Debug)]
pub(crate) struct Tenure {
    lease: Lease,
    taken_at: Duration,
    lasts_until: Mutex<Duration>,
}

impl Tenure {
    /// `asked_at` is when the lease was asked for, so that it is never overrated.
    pub(crate) fn new(lease: Lease, asked_at: Duration) -> Self {
        Self {
            lease,
            taken_at: asked_at,
            lasts_until: Mutex::new(asked_at + LEASE),
        }
    }

    /// Whether nobody can have taken it over, as far as this process can know alone.
    pub(crate) fn lasts(&self, boot: Duration) -> bool {
        boot < *self.lasts_until.lock()
    }

    fn ends(&self) -> Duration {
        self.taken_at + LEASE_MAX
    }
}

/// What a renewal came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Renewed {
    Yes,
    /// The store says no, or does not answer.
    No,
}

impl Keeper {
    /// Rule 5: does `work`, and renews the lease while it is done, under an absolute cap. A renewal that fails aborts it where it
    /// has not `begun` to send: `None`. After that it changes nothing, for what was sent cannot be taken back.
    pub(crate) async fn under_renewal<T>(
        &self,
        tenure: &Tenure,
        begun: impl Fn() -> bool,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut work = pin!(work);
        loop {
            let renewed = tokio::select! {
                biased;
                done = &mut work => return Some(done),
                renewed = self.renew_in_time(tenure) => renewed,
            };
            match renewed {
                Renewed::Yes => {}
                Renewed::No if begun() => return Some(work.await),
                Renewed::No => return None,
            }
        }
    }

    /// The next renewal. Never returns once the cap is reached.
    async fn renew_in_time(&self, tenure: &Tenure) -> Renewed {
        let boot = || self.inner.clock.boot();
        let lasts_until = *tenure.lasts_until.lock();
        if lasts_until >= tenure.ends() {
            return std::future::pending().await;
        }
        let due = (lasts_until + RENEW_EVERY).saturating_sub(LEASE);
        tokio::time::sleep(due.saturating_sub(boot())).await;
        let asked_at = boot();
        let lasts = LEASE.min(tenure.ends().saturating_sub(asked_at));
        match self.inner.store.renew_lease(&tenure.lease, lasts).await {
            Ok(true) => {
                *tenure.lasts_until.lock() = asked_at + lasts;
                Renewed::Yes
            }
            Ok(false) | Err(_) => Renewed::No,
        }
    }

    /// Rule 4, right before the first byte: the lease is still ours and lasts at least as long as is `left` for the exchange. The
    /// store knows whether it was taken away; the boot-time clock knows how long this process was stopped since.
    pub(crate) async fn lease_is_enough(&self, tenure: &Tenure, left: impl Fn() -> Duration) -> bool {
        let ours = self
            .inner
            .store
            .lease_lasts(&tenure.lease, left())
            .await
            .unwrap_or(false);
        ours && self.inner.clock.boot() + left() <= *tenure.lasts_until.lock()
    }
}
