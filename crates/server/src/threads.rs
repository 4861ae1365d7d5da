//! Threads that serve connections, each with a runtime of its own.
//!
//! A call then stays on one thread with its sockets: no lock between threads, no thread that wakes another. What the engine does by
//! itself does not run here but on the runtime that the engine was made in.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use tokio::runtime::{Builder, Handle};
use tokio::task::spawn_blocking;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The threads of one listener. They end with it.
pub(crate) struct Threads {
    all: Vec<Thread>,
    stop: DropGuard,
}

pub(crate) struct Thread {
    runtime: Handle,
    /// How many connections it has.
    busy: Arc<AtomicUsize>,
    ended: JoinHandle<()>,
}

impl Threads {
    /// Starts so many. Where the system allows fewer, it is fewer.
    pub(crate) fn start(count: usize) -> Self {
        let stop = CancellationToken::new();
        let mut all = Vec::with_capacity(count);
        for number in 0..count {
            match Thread::start(number, stop.clone()) {
                Ok(thread) => all.push(thread),
                Err(error) => {
                    tracing::warn!(
                        event = "thread_failed",
                        %error,
                        "connections are served on {} threads instead of {count}",
                        all.len()
                    );
                    break;
                }
            }
        }
        Self {
            all,
            stop: stop.drop_guard(),
        }
    }

    /// The one with the fewest connections, if there is any.
    pub(crate) fn least_busy(&self) -> Option<&Thread> {
        self.all
            .iter()
            .min_by_key(|thread| thread.busy.load(Ordering::Relaxed))
    }

    /// Ends them all, with whatever still runs there.
    pub(crate) async fn stop(self) {
        drop(self.stop);
        for thread in self.all {
            let _ = spawn_blocking(move || thread.ended.join()).await;
        }
    }
}

impl Thread {
    fn start(number: usize, stop: CancellationToken) -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let ended = thread::Builder::new()
            .name(format!("serve-{number}"))
            .spawn(move || {
                runtime.block_on(stop.cancelled());
                // A provider's name that is still being looked up is not waited for.
                runtime.shutdown_background();
            })?;
        Ok(Self {
            runtime: handle,
            busy: Arc::default(),
            ended,
        })
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Counts one connection for as long as it lives.
    pub(crate) fn busy(&self) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(self.busy.clone())
    }
}

/// One connection of a thread.
pub(crate) struct Busy(Arc<AtomicUsize>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use tokio::sync::oneshot;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_look_up_that_hangs_holds_nobody_who_stops() {
        let threads = Threads::start(1);
        let (tell, told) = oneshot::channel();
        let (end, hangs) = mpsc::channel::<()>();
        let runtime = threads.least_busy().expect("there is one").runtime();
        runtime.spawn_blocking(move || {
            tell.send(()).expect("the test waits for it");
            let _ = hangs.recv();
        });
        told.await.expect("it runs");
        timeout(Duration::from_secs(20), threads.stop())
            .await
            .expect("nothing is waited for");
        drop(end);
    }
}
