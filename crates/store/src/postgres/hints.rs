//! Hints between processes that the change feed has something new: LISTEN and NOTIFY, on a session of their own.
//!
//! A process tells the others after its commit, and many commits at once. PostgreSQL would send a NOTIFY with the very commit
//! that it tells of, but lets only one such transaction commit at a time: every other one would wait for that one's disk. What
//! is lost here costs nothing but the time until the feed is read anyway.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_postgres::{AsyncMessage, Client};

use super::open::Door;

/// What the channel is called. Each database has its own.
const CHANNEL: &str = "evergrant_changes";
/// How often others are told at most.
const TELL_EVERY: Duration = Duration::from_millis(100);
/// How long to wait before a session that was lost is opened again.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// Tells others, and is told.
pub(super) struct Hints {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    /// Something was committed here.
    to_tell: Notify,
    /// Something was committed elsewhere, or that may have been missed.
    told: Notify,
}

impl Drop for Hints {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Hints {
    /// Begins to listen, and to tell under the name `me`.
    pub(super) fn new(door: Door, me: Arc<str>) -> Self {
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(keep_listening(door, me, Arc::clone(&shared)));
        Self { shared, task }
    }

    /// The others may read the feed.
    pub(super) fn tell(&self) {
        self.shared.to_tell.notify_one();
    }

    /// Returns once another one said so, or may have.
    pub(super) async fn told(&self) {
        self.shared.told.notified().await;
    }
}

async fn keep_listening(door: Door, me: Arc<str>, shared: Arc<Shared>) {
    loop {
        // Why a session ends is told by those that do the work.
        if let Ok((client, listening)) = listen(&door, &me, &shared).await {
            tell_others(&client, listening, &me, &shared).await;
        }
        sleep(REOPEN_AFTER).await;
    }
}

/// A session that listens, and what ends with it.
async fn listen(
    door: &Door,
    me: &Arc<str>,
    shared: &Arc<Shared>,
) -> Result<(Client, JoinHandle<()>), tokio_postgres::Error> {
    let (client, mut connection) = door.address.config.connect(door.tls.clone()).await?;
    let (me, hears) = (Arc::clone(me), Arc::clone(shared));
    let listening = tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            // What this process did it knows.
            if let AsyncMessage::Notification(said) = message
                && said.payload() != &*me
            {
                hears.told.notify_one();
            }
        }
    });
    client.batch_execute(&format!("LISTEN {CHANNEL}")).await?;
    // Nobody knows what was said until now.
    shared.told.notify_one();
    Ok((client, listening))
}

async fn tell_others(client: &Client, mut listening: JoinHandle<()>, me: &str, shared: &Shared) {
    // A name that this process made: nothing in it needs quoting.
    let tell = format!("NOTIFY {CHANNEL}, '{me}'");
    loop {
        tokio::select! {
            () = shared.to_tell.notified() => {}
            _ = &mut listening => return,
        }
        if client.batch_execute(&tell).await.is_err() {
            return;
        }
        sleep(TELL_EVERY).await;
    }
}
