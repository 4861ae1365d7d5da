//! How long a connection of HTTP/1.1 is waited on for its next request's headers, which is all that is timed here.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};
use hyper_util::rt::TokioTimer;
use parking_lot::Mutex;
use tokio::time::sleep_until;

use crate::guest::Guest;

/// How much longer than the configured time for headers a connection may be idle once somebody in it has shown a valid API key,
/// or where a trusted proxy keeps it: 75 s in all where nothing is configured, longer than clients and proxies are used to keep
/// idle ones. They are better ended at their side: a request that meets the end of its connection is lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ends the wait for headers by who is known to be at the other side.
///
/// hyper wants a timer for each request and drops it as soon as the headers are there, which is nearly always at once. So a
/// connection has one alarm: it is left as it was set, and set anew only when it rings and a wait goes on beyond it.
#[derive(Clone)]
pub(crate) struct Patience {
    guest: Arc<Guest>,
    waits: Arc<Mutex<Waits>>,
}

/// One connection's waits. There is one at a time, so nobody ever waits for the lock.
#[derive(Default)]
struct Waits {
    /// Set to some moment, or not at all yet.
    alarm: Option<Pin<Box<tokio::time::Sleep>>>,
    /// Whom it wakes, since it was set.
    wakes: Option<Waker>,
    /// How many waits hyper has begun since the connection was handed to it, and whether one is under way.
    begun: usize,
    under_way: usize,
    /// When the first of them ends: it had begun before.
    not_beyond: Option<tokio::time::Instant>,
}

impl Patience {
    pub(crate) fn with(guest: Arc<Guest>) -> Self {
        Self {
            guest,
            waits: Arc::default(),
        }
    }

    /// When a wait ends that began then and may last so long.
    pub(crate) fn until(&self, began: tokio::time::Instant, lasts: Duration) -> tokio::time::Instant {
        began + lasts + self.added()
    }

    /// Whether it is over.
    pub(crate) fn poll_over(&self, until: tokio::time::Instant, cx: &mut Context<'_>) -> Poll<()> {
        self.waits.lock().poll_over(until, cx)
    }

    /// hyper has the connection from here on. A head that has begun must be there by then.
    pub(crate) fn hand_over(&self, head: Option<tokio::time::Instant>) {
        let mut waits = self.waits.lock();
        waits.begun = 0;
        waits.not_beyond = head;
    }

    /// Whether hyper waits for a request, and has read one before.
    pub(crate) fn waits_for_another(&self) -> bool {
        let waits = self.waits.lock();
        waits.begun > 1 && waits.under_way > 0
    }

    fn added(&self) -> Duration {
        if self.guest.is_known() {
            PATIENCE
        } else {
            Duration::ZERO
        }
    }
}

impl Waits {
    fn poll_over(&mut self, until: tokio::time::Instant, cx: &mut Context<'_>) -> Poll<()> {
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if alarm.deadline() > until {
            alarm.as_mut().reset(until);
            self.wakes = None;
        }
        // Looking costs less than setting it to what it is set to.
        let is_set = self
            .wakes
            .as_ref()
            .is_some_and(|wakes| wakes.will_wake(cx.waker()));
        if is_set && !alarm.is_elapsed() {
            return Poll::Pending;
        }
        self.wakes = None;
        loop {
            if alarm.as_mut().poll(cx).is_pending() {
                self.wakes = Some(cx.waker().clone());
                return Poll::Pending;
            }
            if alarm.deadline() >= until {
                return Poll::Ready(());
            }
            // It rang for a wait before this one.
            alarm.as_mut().reset(until);
        }
    }
}

impl Timer for Patience {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        TokioTimer::new().sleep(duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        let mut until = (deadline + self.added()).into();
        let mut waits = self.waits.lock();
        waits.begun += 1;
        waits.under_way += 1;
        if let Some(earlier) = waits.not_beyond.take() {
            until = earlier.min(until);
        }
        Box::pin(Wait {
            until,
            waits: self.waits.clone(),
        })
    }

    fn now(&self) -> Instant {
        TokioTimer::new().now()
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn Sleep>>, deadline: Instant) {
        *sleep = self.sleep_until(deadline);
    }
}

/// One wait of hyper's.
struct Wait {
    until: tokio::time::Instant,
    waits: Arc<Mutex<Waits>>,
}

impl Sleep for Wait {}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.waits.lock().poll_over(self.until, cx)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.waits.lock().under_way -= 1;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::time::{Instant, advance, sleep};

    use super::*;
    use crate::guest::Strangers;

    const HEADERS: Duration = Duration::from_secs(15);

    /// A wait that begins now, looked at once as hyper does.
    fn begin(patience: &Patience, lasts: Duration) -> Pin<Box<dyn Sleep>> {
        let mut wait = patience.sleep_until(patience.now() + lasts);
        assert!(wait.as_mut().now_or_never().is_none());
        wait
    }

    #[tokio::test(start_paused = true)]
    async fn each_wait_ends_by_its_own_time_whatever_the_alarm_was_set_to() {
        let patience = Patience::with(Arc::default());
        let began = Instant::now();
        begin(&patience, HEADERS).await;
        assert_eq!(began.elapsed(), HEADERS, "nothing came");

        drop(begin(&patience, HEADERS));
        sleep(Duration::from_secs(10)).await;
        let began = Instant::now();
        begin(&patience, HEADERS).await;
        assert_eq!(began.elapsed(), HEADERS, "the alarm rings for the one before");

        drop(begin(&patience, HEADERS));
        sleep(Duration::from_secs(100)).await;
        let began = Instant::now();
        begin(&patience, HEADERS).await;
        assert_eq!(began.elapsed(), HEADERS, "the alarm has rung while nobody waited");

        drop(begin(&patience, HEADERS));
        let began = Instant::now();
        begin(&patience, Duration::from_secs(1)).await;
        assert_eq!(
            began.elapsed(),
            Duration::from_secs(1),
            "the alarm is set to later"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_known_is_waited_for_longer() {
        let stay = Arc::new(Strangers::default()).welcome(false);
        let patience = Patience::with(stay.guest.clone());
        drop(begin(&patience, HEADERS));
        stay.is_known_now();
        let began = Instant::now();
        begin(&patience, HEADERS).await;
        assert_eq!(began.elapsed(), HEADERS + PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn hyper_has_no_more_time_for_a_head_than_was_left_and_that_once() {
        let patience = Patience::with(Arc::default());
        let until = patience.until(Instant::now(), HEADERS);
        sleep(Duration::from_secs(10)).await;
        patience.hand_over(Some(until));
        let began = Instant::now();
        begin(&patience, HEADERS).await;
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        let began = Instant::now();
        begin(&patience, HEADERS).await;
        assert_eq!(began.elapsed(), HEADERS, "the next one is another");
    }

    #[tokio::test]
    async fn hyper_waits_for_another_while_it_waits_for_the_second() {
        let patience = Patience::with(Arc::default());
        for _ in 0..2 {
            patience.hand_over(None);
            assert!(!patience.waits_for_another());
            let first = begin(&patience, HEADERS);
            assert!(!patience.waits_for_another(), "it has read none");
            drop(first);
            let second = begin(&patience, HEADERS);
            assert!(patience.waits_for_another());
            drop(second);
            assert!(!patience.waits_for_another(), "it is reading or answering it");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_now_is_woken() {
        let patience = Patience::with(Arc::default());
        let until = patience.until(Instant::now(), HEADERS);
        // Looked at by another task before.
        let other = patience.clone();
        let looked = tokio::spawn(std::future::poll_fn(move |cx| {
            std::task::Poll::Ready(other.poll_over(until, cx).is_pending())
        }));
        assert!(looked.await.unwrap());
        let over = std::future::poll_fn(|cx| patience.poll_over(until, cx));
        let woken = tokio::time::timeout(2 * HEADERS, over).await;
        assert!(woken.is_ok() && Instant::now() == until);
    }

    #[tokio::test(start_paused = true)]
    async fn the_alarm_is_left_alone_while_requests_come() {
        let patience = Patience::with(Arc::default());
        let rings = || patience.waits.lock().alarm.as_ref().map(|alarm| alarm.deadline());
        drop(begin(&patience, HEADERS));
        let first = rings();
        for _ in 0..14 {
            advance(Duration::from_secs(1)).await;
            drop(begin(&patience, HEADERS));
        }
        assert_eq!(rings(), first);
    }
}
