//! Callers, and how long they waited.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Method;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::installation::{Installation, id_of};

/// The first say what it is.
const FAILURES_SHOWN: u64 = 3;

pub(crate) struct Load {
    waits: Arc<Mutex<Waits>>,
    callers: JoinHandle<()>,
}

#[derive(Default)]
struct Waits {
    answered: Vec<Duration>,
    failed: u64,
}

/// What callers met.
pub(crate) struct Calls {
    made: usize,
    pub(crate) failed: u64,
    half: Duration,
    most: Duration,
    pub(crate) longest: Duration,
}

impl Load {
    /// So many calls a second, each as a task of its own: a slow one holds up no other.
    pub(crate) fn start(installation: &Arc<Installation>, connections: u64, calls: u32) -> Self {
        let waits = Arc::<Mutex<Waits>>::default();
        let (installation, noted) = (installation.clone(), waits.clone());
        let callers = tokio::spawn(async move {
            let mut ticks = interval(Duration::from_secs(1) / calls.max(1));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut on_their_way = JoinSet::new();
            loop {
                ticks.tick().await;
                while on_their_way.try_join_next().is_some() {}
                let (installation, noted) = (installation.clone(), noted.clone());
                on_their_way.spawn(async move {
                    let portal = fastrand::u64(..connections);
                    let path = format!("/gateway/{}/crm/v3/objects/contacts?limit=1", id_of(portal));
                    let began = Instant::now();
                    let answer = installation
                        .send(fastrand::u64(..), Method::GET, &path, None)
                        .await;
                    let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
                    match answer {
                        Ok((status, _)) if status.is_success() => noted.answered.push(began.elapsed()),
                        other => {
                            if noted.failed < FAILURES_SHOWN {
                                eprintln!("a call failed: {other:?}");
                            }
                            noted.failed += 1;
                        }
                    }
                });
            }
        });
        Self { waits, callers }
    }

    pub(crate) fn so_far(&self) -> Calls {
        let waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sorted = waits.answered.clone();
        sorted.sort_unstable();
        let part = |thousandths: usize| sorted.get(sorted.len() * thousandths / 1000).copied();
        Calls {
            made: sorted.len(),
            failed: waits.failed,
            half: part(500).unwrap_or_default(),
            most: part(999).unwrap_or_default(),
            longest: sorted.last().copied().unwrap_or_default(),
        }
    }

    pub(crate) async fn stop(self) -> Calls {
        self.callers.abort();
        let calls = self.so_far();
        let _ = self.callers.await;
        calls
    }
}

impl fmt::Display for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} calls, {} failed, p50 {:.1?}, p99.9 {:.1?}, longest {:.1?}",
            self.made, self.failed, self.half, self.most, self.longest
        )
    }
}
