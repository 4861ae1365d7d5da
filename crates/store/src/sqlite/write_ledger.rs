//! Guarded writes: reserved, sent, ended.

use evergrant_domain::Timestamp;
use rusqlite::params;

use super::record::Db;
use crate::contract::{Reserved, WriteEnd, WriteReservation, WriteTicket};
use crate::record::{Follows, FoundWrite, SealedAnswer, Stored, read_found, ticket, ticket_of};

/// How many rows one transaction erases at most, so that nobody waits long for it.
const SWEPT_AT_ONCE: isize = 5_000;

impl Db {
    /// Nobody else writes between the look and what follows from it.
    pub(super) fn reserve_write(&self, reservation: &WriteReservation, now: Timestamp) -> Stored<Reserved> {
        let (owner, follows) = match self.write_found(reservation, now)? {
            Some(found) => (found.owner, found.follows),
            None => (String::new(), Follows::Free),
        };
        match follows {
            Follows::Own | Follows::Free => {
                self.sql
                    .prepare_cached(
                        "REPLACE INTO writes (connection, key, request, owner, state, deadline, keep_until, changed_at)
                         VALUES (?1, ?2, ?3, ?4, 'reserved', ?5, ?6, ?7)",
                    )?
                    .execute(params![
                        reservation.connection.as_str(),
                        reservation.key,
                        reservation.request,
                        reservation.owner,
                        reservation.deadline.millis(),
                        reservation.keep_until.millis(),
                        now.millis(),
                    ])?;
                Ok(Reserved::Yours(ticket(reservation)))
            }
            Follows::Overdue => {
                self.sql
                    .prepare_cached(
                        "UPDATE writes SET state = 'unknown', deadline = NULL, changed_at = ?3
                          WHERE connection = ?1 AND key = ?2",
                    )?
                    .execute(params![
                        reservation.connection.as_str(),
                        reservation.key,
                        now.millis()
                    ])?;
                Ok(Reserved::Unknown(ticket_of(reservation, owner)))
            }
            Follows::Unknown => Ok(Reserved::Unknown(ticket_of(reservation, owner))),
            Follows::Met(meeting, answer) => Ok(Reserved::Met(meeting, answer)),
        }
    }

    fn write_found(&self, reservation: &WriteReservation, now: Timestamp) -> Stored<Option<FoundWrite>> {
        let mut statement = self
            .sql
            .prepare_cached("SELECT * FROM writes WHERE connection = ?1 AND key = ?2")?;
        let mut rows = statement.query(params![reservation.connection.as_str(), reservation.key])?;
        rows.next()?
            .map(|row| read_found(&self.vault, row, reservation, now))
            .transpose()
    }

    pub(super) fn write_leaves(
        &self,
        ticket: &WriteTicket,
        deadline: Timestamp,
        now: Timestamp,
    ) -> Stored<bool> {
        let left = self
            .sql
            .prepare_cached(
                "UPDATE writes SET state = 'sent', deadline = ?4, changed_at = ?5
                  WHERE connection = ?1 AND key = ?2 AND owner = ?3 AND state = 'reserved'",
            )?
            .execute(params![
                ticket.connection.as_str(),
                ticket.key,
                ticket.owner,
                deadline.millis(),
                now.millis(),
            ])?;
        Ok(left > 0)
    }

    pub(super) fn hold_write(&self, ticket: &WriteTicket, deadline: Timestamp) -> Stored<bool> {
        let held = self
            .sql
            .prepare_cached(
                "UPDATE writes SET deadline = ?4
                  WHERE connection = ?1 AND key = ?2 AND owner = ?3 AND state IN ('reserved', 'sent')",
            )?
            .execute(params![
                ticket.connection.as_str(),
                ticket.key,
                ticket.owner,
                deadline.millis(),
            ])?;
        Ok(held > 0)
    }

    /// What is done stays done.
    pub(super) fn end_write(&self, ticket: &WriteTicket, end: &WriteEnd, now: Timestamp) -> Stored<bool> {
        let (connection, key, owner) = (ticket.connection.as_str(), &ticket.key, &ticket.owner);
        let ended = match end {
            WriteEnd::NotApplied => self
                .sql
                .prepare_cached(
                    "DELETE FROM writes WHERE connection = ?1 AND key = ?2 AND owner = ?3 AND state <> 'done'",
                )?
                .execute(params![connection, key, owner])?,
            WriteEnd::Done(answer) => {
                let sealed = SealedAnswer::new(&self.vault, ticket, answer)?;
                self.sql
                    .prepare_cached(
                        "UPDATE writes
                            SET state = 'done', deadline = NULL, changed_at = ?4, answer = ?5, body = ?6, body_bytes = ?7
                          WHERE connection = ?1 AND key = ?2 AND owner = ?3 AND state <> 'done'",
                    )?
                    .execute(params![
                        connection,
                        key,
                        owner,
                        now.millis(),
                        sealed.answer,
                        sealed.body,
                        sealed.body_bytes,
                    ])?
            }
            WriteEnd::Unknown => self
                .sql
                .prepare_cached(
                    "UPDATE writes SET state = 'unknown', deadline = NULL, changed_at = ?4
                      WHERE connection = ?1 AND key = ?2 AND owner = ?3 AND state <> 'done'",
                )?
                .execute(params![connection, key, owner, now.millis()])?,
        };
        Ok(ended > 0)
    }

    /// Says whether there is more to do: others write in between.
    pub(super) fn sweep_writes(&self, now: Timestamp, bodies_max: u64) -> Stored<bool> {
        let erased = self
            .sql
            .prepare_cached(
                "DELETE FROM writes
                  WHERE rowid IN (SELECT rowid FROM writes
                                   WHERE keep_until <= ?1 AND (deadline IS NULL OR deadline <= ?1)
                                   ORDER BY keep_until LIMIT ?2)",
            )?
            .execute(params![now.millis(), SWEPT_AT_ONCE])?;
        let room: Option<i64> = self.value(
            "SELECT coalesce(sum(body_bytes), 0) FROM writes WHERE body_bytes IS NOT NULL",
            [],
        )?;
        let bodies_max = i64::try_from(bodies_max).unwrap_or(i64::MAX);
        let too_much = room.unwrap_or(0).saturating_sub(bodies_max);
        let mut dropped = 0;
        if too_much > 0 {
            dropped = self
                .sql
                .prepare_cached(
                    "UPDATE writes SET body = NULL, body_bytes = NULL
                      WHERE rowid IN (SELECT id
                                        FROM (SELECT id, sum(body_bytes) OVER before_it AS before_it
                                                FROM (SELECT rowid AS id, changed_at, body_bytes
                                                        FROM writes WHERE body_bytes IS NOT NULL
                                                       ORDER BY changed_at, body_bytes LIMIT ?2)
                                              WINDOW before_it AS (ORDER BY changed_at, body_bytes, id
                                                                   ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING))
                                       WHERE coalesce(before_it, 0) < ?1)",
                )?
                .execute(params![too_much, SWEPT_AT_ONCE])?;
        }
        Ok(erased.max(dropped) >= SWEPT_AT_ONCE.unsigned_abs())
    }
}
