//! The threads that speak to SQLite: one that writes, a few that read.
//!
//! SQLite blocks, so it never runs on the async runtime.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::record::Db;
use super::transaction::{Job, gone, job, read, write_group};
use crate::contract::StoreError;

/// How many jobs wait before whoever asks has to wait, too.
const QUEUE: usize = 1024;

/// A queue of jobs with the threads behind it.
pub(super) struct Threads {
    jobs: Option<mpsc::Sender<Job>>,
    handles: Vec<JoinHandle<()>>,
}

impl Drop for Threads {
    /// Waits for what was asked for before: after this the database is closed, and nothing is written any more.
    fn drop(&mut self) {
        self.jobs = None;
        for handle in self.handles.drain(..) {
            let _ = handle.join();
        }
    }
}

impl Threads {
    /// The one thread that writes.
    pub(super) fn writer(db: Db) -> io::Result<Self> {
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        let work = move || {
            while let Some(first) = queue.blocking_recv() {
                write_group(&db, first, || queue.try_recv().ok());
            }
        };
        Ok(Self {
            jobs: Some(jobs),
            handles: vec![thread::Builder::new().name("store-write".into()).spawn(work)?],
        })
    }

    /// One thread for each of these connections.
    pub(super) fn readers(connections: Vec<Db>) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>(QUEUE);
        let queue = Arc::new(Mutex::new(queue));
        let mut handles = Vec::new();
        for db in connections {
            let queue = Arc::clone(&queue);
            let work = move || {
                loop {
                    // One waits for the next job, the others wait to wait.
                    let next = queue.lock().blocking_recv();
                    let Some(job) = next else { break };
                    read(&db, job);
                }
            };
            handles.push(thread::Builder::new().name("store-read".into()).spawn(work)?);
        }
        Ok(Self {
            jobs: Some(jobs),
            handles,
        })
    }

    /// Runs `work` on one of the threads, in a transaction, and answers once that has ended.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Db) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (job, answer) = job(work);
        let jobs = self.jobs.as_ref().ok_or_else(|| gone(false))?;
        jobs.send(job).await.map_err(|_| gone(false))?;
        answer.await.map_err(|_| gone(true))?
    }
}
