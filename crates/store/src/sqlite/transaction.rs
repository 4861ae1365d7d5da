//! What runs in one transaction, wherever it runs.
//!
//! Writes that wait while another commits share the next commit: one fsync for all of them. Each has a savepoint of its
//! own and answers only after the commit.

use rusqlite::ErrorCode;
use tokio::sync::oneshot;

use super::record::Db;
use crate::contract::StoreError;

/// How many writes share one commit at most; beyond that a larger group gains little.
const GROUP: usize = 64;

/// Work on a connection; `Err` where there was none to be had.
pub(super) type Job = Box<dyn FnOnce(Result<&Db, StoreError>) -> Done + Send>;

/// Work that was done, and is to be told of once it is known whether it was committed.
pub(super) struct Done {
    kept: bool,
    tell: Box<dyn FnOnce(Result<(), StoreError>)>,
}

/// `work` as a job, and where its answer comes once its transaction has ended.
pub(super) fn job<T: Send + 'static>(
    work: impl FnOnce(&Db) -> Result<T, StoreError> + Send + 'static,
) -> (Job, oneshot::Receiver<Result<T, StoreError>>) {
    let (reply, answer) = oneshot::channel();
    let job: Job = Box::new(move |db| {
        let result = db.and_then(work);
        Done {
            kept: result.is_ok(),
            // Nobody may be waiting any more; the work stands all the same.
            tell: Box::new(move |ended| drop(reply.send(result.and_then(|value| ended.map(|()| value))))),
        }
    });
    (job, answer)
}

/// A job that changes nothing.
pub(super) fn read(db: &Db, job: Job) {
    // A transaction, so that a job which reads twice reads one state.
    let begun = db.sql.execute_batch("BEGIN");
    let done = job(begun.map(|()| db).map_err(StoreError::from));
    if !db.sql.is_autocommit() {
        let _ = db.sql.execute_batch("ROLLBACK");
    }
    (done.tell)(Ok(()));
}

/// Jobs that write, with one commit for as many as wait.
pub(super) fn write_group(db: &Db, first: Job, mut waiting: impl FnMut() -> Option<Job>) {
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
            .then(&mut waiting)
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

/// Nobody is there to do it.
pub(super) fn gone(outcome_unknown: bool) -> StoreError {
    StoreError::Unavailable {
        what: "the store is closed".into(),
        outcome_unknown,
    }
}
