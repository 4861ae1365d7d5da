//! What makes a process out of tasks: all of them stop together, and die together.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use evergrant_keeper::{Runtime, Work};
use parking_lot::Mutex;

use crate::trace::Trace;

/// The one gate that all tasks of a process go through. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Gate(Arc<Shared>);

struct Shared {
    trace: Trace,
    state: Mutex<State>,
    next: AtomicU64,
    panics: AtomicU64,
}

struct State {
    phase: Phase,
    wakers: BTreeMap<u64, Waker>,
    killed_at: Option<Duration>,
    /// When it was stopped, and went on again.
    stops: Vec<(Duration, Option<Duration>)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    Stopped,
    Killed,
}

impl Gate {
    pub(crate) fn new(trace: &Trace) -> Self {
        Self(Arc::new(Shared {
            trace: trace.clone(),
            state: Mutex::new(State {
                phase: Phase::Running,
                wakers: BTreeMap::new(),
                killed_at: None,
                stops: Vec::new(),
            }),
            next: AtomicU64::new(0),
            panics: AtomicU64::new(0),
        }))
    }

    /// SIGKILL: no task of it goes on from where it waits; each is dropped there.
    pub(crate) fn kill(&self) {
        self.enter(Phase::Killed);
    }

    /// SIGSTOP.
    pub(crate) fn stop(&self) {
        let mut state = self.0.state.lock();
        if state.phase == Phase::Running {
            state.phase = Phase::Stopped;
            state.stops.push((self.0.trace.now(), None));
        }
    }

    /// SIGCONT: whatever became due meanwhile is done now.
    pub(crate) fn go_on(&self) {
        self.enter(Phase::Running);
    }

    pub(crate) fn is_running(&self) -> bool {
        self.0.state.lock().phase == Phase::Running
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.0.state.lock().phase == Phase::Stopped
    }

    pub(crate) fn is_killed(&self) -> bool {
        self.0.state.lock().phase == Phase::Killed
    }

    /// Whether it was killed before `until`, the time that it stood still in between not counted.
    pub(crate) fn lived_shorter_than(&self, until: Duration) -> bool {
        let killed_at = self.0.state.lock().killed_at;
        killed_at.is_some_and(|at| {
            at < until + self.stood_still_since(until.saturating_sub(Duration::from_secs(5)))
        })
    }

    /// How long it has stood still since then.
    pub(crate) fn stood_still_since(&self, since: Duration) -> Duration {
        let now = self.0.trace.now();
        let state = self.0.state.lock();
        let stops = state.stops.iter();
        stops
            .map(|(from, to)| to.unwrap_or(now).saturating_sub((*from).max(since)))
            .sum()
    }

    /// Goes on at once, unless the process was stopped or killed a moment ago.
    pub(crate) async fn pass(&self) {
        poll_fn(|_| {
            if self.is_running() {
                Poll::Ready(())
            } else {
                // The task is polled again once the process goes on.
                Poll::Pending
            }
        })
        .await;
    }

    /// How many tasks of it have panicked.
    pub(crate) fn panics(&self) -> u64 {
        self.0.panics.load(Ordering::Relaxed)
    }

    /// Runs `work` as a task of this process.
    pub(crate) fn run(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.spawn(Box::pin(work));
    }

    fn enter(&self, phase: Phase) {
        let wakers = {
            let mut state = self.0.state.lock();
            if state.phase == Phase::Killed || state.phase == phase {
                return;
            }
            state.phase = phase;
            let now = self.0.trace.now();
            if phase == Phase::Killed {
                state.killed_at = Some(now);
            }
            if let Some((_, to @ None)) = state.stops.last_mut() {
                *to = Some(now);
            }
            std::mem::take(&mut state.wakers)
        };
        for waker in wakers.into_values() {
            waker.wake();
        }
    }
}

impl Runtime for Gate {
    fn spawn(&self, work: Work) {
        tokio::spawn(Gated {
            id: self.0.next.fetch_add(1, Ordering::Relaxed),
            gate: self.clone(),
            work: Some(work),
        });
    }
}

/// A task of a process.
struct Gated {
    id: u64,
    gate: Gate,
    work: Option<Work>,
}

impl Gated {
    fn phase(&self, waker: &Waker) -> Phase {
        let mut state = self.gate.0.state.lock();
        if state.phase != Phase::Killed {
            state.wakers.insert(self.id, waker.clone());
        }
        state.phase
    }
}

impl Future for Gated {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let task = &mut *self;
        match task.phase(cx.waker()) {
            Phase::Running => {}
            Phase::Stopped => return Poll::Pending,
            Phase::Killed => {
                task.work = None;
                return Poll::Ready(());
            }
        }
        let Some(work) = &mut task.work else {
            return Poll::Ready(());
        };
        match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
            // Killed in its own middle: what it waits for now, it never sees.
            Ok(Poll::Pending) if task.gate.is_killed() => {}
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(())) => {}
            Err(_) => {
                task.gate.0.panics.fetch_add(1, Ordering::Relaxed);
            }
        }
        task.work = None;
        Poll::Ready(())
    }
}

impl Drop for Gated {
    fn drop(&mut self) {
        self.gate.0.state.lock().wakers.remove(&self.id);
    }
}
