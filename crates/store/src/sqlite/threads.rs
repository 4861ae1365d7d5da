//! The threads that speak to SQLite: one that writes, a few that read.
//!
//! SQLite blocks, so it never runs on the async runtime. Writes that wait while another commits share the next commit:
//! one fsync for all of them. Each has a savepoint of its own and answers only after the commit.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;
use rusqlite::ErrorCode;
use tokio::sync::{mpsc, oneshot};

use super::record::Db;
use crate::contract::StoreError;

/// How many jobs wait before whoever asks has to wait, too.
const QUEUE: usize = 1024;
/// How many writes share one commit at most; beyond that a larger group gains little.
const GROUP: usize = 64;

/// Work on a connection; `Err` where there was none to be had.
type Job = Box<dyn FnOnce(Result<&Db, StoreError>) -> Done + Send>;

/// Work that was done, and is to be told of once it is known whether it was committed.
struct Done {
    kept: bool,
    tell: Box<dyn FnOnce(Result<(), StoreError>)>,
}

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
                write_group(&db, first, &mut queue);
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
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |db| {
            let result = db.and_then(work);
            Done {
                kept: result.is_ok(),
                // Nobody may be waiting any more; the work stands all the same.
                tell: Box::new(move |ended| drop(reply.send(result.and_then(|value| ended.map(|()| value))))),
            }
        });
        let jobs = self.jobs.as_ref().ok_or_else(|| gone(false))?;
        jobs.send(job).await.map_err(|_| gone(false))?;
        answer.await.map_err(|_| gone(true))?
    }
}

fn read(db: &Db, job: Job) {
    // A transaction, so that a job which reads twice reads one state.
    let begun = db.sql.execute_batch("BEGIN");
    let done = job(begun.map(|()| db).map_err(StoreError::from));
    if !db.sql.is_autocommit() {
        let _ = db.sql.execute_batch("ROLLBACK");
    }
    (done.tell)(Ok(()));
}

fn write_group(db: &Db, first: Job, queue: &mut mpsc::Receiver<Job>) {
    if let Err(error) = db.sql.execute_batch("BEGIN IMMEDIATE") {
        (first(Err(error.into())).tell)(Ok(()));
        return;
    }
    let mut group = Vec::new();
    let mut next = Some(first);
    while let Some(job) = next {
        group.push(write_one(db, job));
        // After a full disk or a failed write SQLite may have rolled back everything, the others of the group included.
        next = (group.len() < GROUP && !db.sql.is_autocommit())
            .then(|| queue.try_recv().ok())
            .flatten();
    }
    let ended = commit(&db.sql);
    for done in group {
        (done.tell)(ended.clone());
    }
}

fn write_one(db: &Db, job: Job) -> Done {
    let begun = db.sql.execute_batch("SAVEPOINT one");
    let done = job(begun.map(|()| db).map_err(StoreError::from));
    let undo = if done.kept { "" } else { "ROLLBACK TO one;" };
    if !db.sql.is_autocommit()
        && let Err(error) = db.sql.execute_batch(&format!("{undo} RELEASE one"))
    {
        let error = StoreError::from(error);
        let _ = db.sql.execute_batch("ROLLBACK");
        return Done {
            kept: false,
            tell: Box::new(move |_| (done.tell)(Err(error))),
        };
    }
    done
}

fn commit(sql: &rusqlite::Connection) -> Result<(), StoreError> {
    if sql.is_autocommit() {
        return Err(StoreError::Unavailable {
            what: "the write was rolled back together with another one that failed".into(),
            outcome_unknown: false,
        });
    }
    let committed = sql.execute_batch("COMMIT");
    if !sql.is_autocommit() {
        let _ = sql.execute_batch("ROLLBACK");
    }
    committed.map_err(|error| {
        // A full disk and a busy database are known to have kept nothing. After any other failure, an fsync's above all,
        // the frames may be on the disk or not.
        let kept_nothing = matches!(
            error.sqlite_error_code(),
            Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
        );
        match StoreError::from(error) {
            StoreError::Unavailable { what, .. } => StoreError::Unavailable {
                what,
                outcome_unknown: !kept_nothing,
            },
            other => other,
        }
    })
}

fn gone(outcome_unknown: bool) -> StoreError {
    StoreError::Unavailable {
        what: "the store's thread has ended".into(),
        outcome_unknown,
    }
}
