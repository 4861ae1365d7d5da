//! That no more requests are taken, as each connection hears of it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::watch;

use crate::rarely::Rarely;

/// Says it once. It holds the receiver, and by that up the end of a drain, as long as it is kept.
pub(crate) struct Draining {
    hears: Rarely<Pin<Box<dyn Future<Output = watch::Receiver<()>> + Send>>>,
    /// The receiver once it was said.
    has_heard: Option<watch::Receiver<()>>,
}

impl Draining {
    pub(crate) fn heard_by(mut receiver: watch::Receiver<()>) -> Self {
        Self {
            hears: Rarely::new(Box::pin(async move {
                // Nobody left to say it is as good as said.
                let _ = receiver.changed().await;
                receiver
            })),
            has_heard: None,
        }
    }

    /// Whether it has been said. If not, whoever `cx` wakes is woken when it is.
    pub(crate) fn is_said(&mut self, cx: &mut Context<'_>) -> bool {
        if self.has_heard.is_none()
            && let Poll::Ready(receiver) = Pin::new(&mut self.hears).poll(cx)
        {
            self.has_heard = Some(receiver);
        }
        self.has_heard.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn it_is_heard_and_holds_up_the_end_until_it_is_dropped() {
        let (says, hears) = watch::channel(());
        let mut draining = Draining::heard_by(hears);
        assert!(!poll_fn(|cx| Poll::Ready(draining.is_said(cx))).await);
        says.send_replace(());
        for _ in 0..2 {
            assert!(poll_fn(|cx| Poll::Ready(draining.is_said(cx))).await);
            assert_eq!(says.receiver_count(), 1);
        }
        drop(draining);
        assert_eq!(says.receiver_count(), 0);
    }
}
