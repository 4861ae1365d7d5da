//! Something that comes to pass rarely, waited for beside what goes on all the time.
//!
//! A task that waits for several things looks at all of them whenever it is woken, whichever it was. What is wrapped here is looked at
//! only when it was this that woke the task.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

/// A future that is polled when it has something to say.
pub(crate) struct Rarely<F> {
    future: Pin<Box<F>>,
    bell: Arc<Bell>,
    waker: Waker,
    /// Whose task it wakes. A task that moves on is another one.
    task: Option<Waker>,
}

/// What it is woken by.
struct Bell {
    has_rung: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.has_rung.store(true, Ordering::Release);
        let task = self.task.lock().clone();
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl<F: Future> Rarely<F> {
    pub(crate) fn new(future: F) -> Self {
        let bell = Arc::new(Bell {
            // It is looked at once, to begin with.
            has_rung: AtomicBool::new(true),
            task: Mutex::new(None),
        });
        Self {
            future: Box::pin(future),
            waker: bell.clone().into(),
            bell,
            task: None,
        }
    }
}

impl<F: Future> Future for Rarely<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        if !this.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            this.task = Some(cx.waker().clone());
            // Before it is seen whether it rang: what rings from here on wakes this task.
            *this.bell.task.lock() = Some(cx.waker().clone());
        }
        if !this.bell.has_rung.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        this.future.as_mut().poll(&mut Context::from_waker(&this.waker))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn it_is_looked_at_when_it_rings_and_not_when_others_do() {
        let looks = AtomicUsize::new(0);
        let (rings, others) = (Notify::new(), Notify::new());
        let mut told = std::pin::pin!(rings.notified());
        let mut rarely = Rarely::new(poll_fn(|cx| {
            looks.fetch_add(1, Ordering::Relaxed);
            told.as_mut().poll(cx)
        }));
        for _ in 0..5 {
            others.notify_one();
            tokio::select! {
                biased;
                () = &mut rarely => panic!("nobody rang"),
                () = others.notified() => {}
            }
        }
        assert_eq!(looks.load(Ordering::Relaxed), 1);
        // It wakes a task that waits for nothing else.
        let somebody = async {
            tokio::task::yield_now().await;
            rings.notify_one();
        };
        tokio::join!(rarely, somebody);
        assert_eq!(looks.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn it_wakes_the_task_that_waits_now() {
        let rings = Arc::new(Notify::new());
        let waits = rings.clone();
        let mut rarely = Rarely::new(async move { waits.notified().await });
        assert!(futures_util::poll!(&mut rarely).is_pending());
        let moved = tokio::spawn(rarely);
        tokio::task::yield_now().await;
        rings.notify_one();
        moved.await.expect("it was woken");
    }
}
