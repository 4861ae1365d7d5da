//! Guarded writes: reserved, sent, ended. Each statement stands alone and says in itself what it found: an owner is a value of one
//! try, so a row that is still this owner's in this state is the row that was looked at.

use evergrant_domain::Timestamp;

use super::db::{Db, Failure, Tried};
use crate::contract::{Reserved, StoreError, WriteReservation, WriteTicket};
use crate::record::{Columns as _, Follows, FoundWrite, SealedAnswer, read_found, ticket, ticket_of};

/// How often a place is looked at that changes each time under the look.
const LOOKS: u32 = 8;

/// How many rows one transaction erases at most: its statements must end before the server ends them.
const SWEPT_AT_ONCE: i64 = 5_000;

/// How a guarded write ended, sealed once: so a try that is repeated knows what the one before it has written.
pub(super) enum SealedEnd {
    NotApplied,
    Done(SealedAnswer),
    Unknown,
}

impl Db {
    pub(super) async fn reserve_write(
        &self,
        reservation: &WriteReservation,
        now: Timestamp,
    ) -> Tried<Reserved> {
        for _ in 0..LOOKS {
            if self.first_to_reserve(reservation, now).await? {
                return Ok(Reserved::Yours(ticket(reservation)));
            }
            let Some(found) = self.write_found(reservation, now).await? else {
                // Whoever had it was done with it in between.
                continue;
            };
            match found.follows {
                Follows::Own => return Ok(Reserved::Yours(ticket(reservation))),
                Follows::Free => {
                    if self.take_over(&found, reservation, now).await? {
                        return Ok(Reserved::Yours(ticket(reservation)));
                    }
                }
                Follows::Overdue => {
                    if self.judge_unknown(&found, reservation, now).await? {
                        return Ok(Reserved::Unknown(ticket_of(reservation, found.owner)));
                    }
                }
                Follows::Unknown => return Ok(Reserved::Unknown(ticket_of(reservation, found.owner))),
                Follows::Met(meeting, answer) => return Ok(Reserved::Met(meeting, answer)),
            }
        }
        Err(Failure::Again(StoreError::Unavailable {
            what: "others were always faster".into(),
            outcome_unknown: false,
        }))
    }

    async fn first_to_reserve(&self, reservation: &WriteReservation, now: Timestamp) -> Tried<bool> {
        let inserted = self
            .execute(
                "INSERT INTO writes (connection, key, request, owner, state, deadline, keep_until, changed_at)
                 VALUES ($1, $2, $3, $4, 'reserved', $5, $6, $7)
                 ON CONFLICT (connection, key) DO NOTHING",
                &[
                    &reservation.connection.as_str(),
                    &reservation.key,
                    &reservation.request,
                    &reservation.owner,
                    &reservation.deadline.millis(),
                    &reservation.keep_until.millis(),
                    &now.millis(),
                ],
            )
            .await?;
        Ok(inserted > 0)
    }

    async fn write_found(&self, reservation: &WriteReservation, now: Timestamp) -> Tried<Option<FoundWrite>> {
        let row = self
            .row(
                "SELECT * FROM writes WHERE connection = $1 AND key = $2",
                &[&reservation.connection.as_str(), &reservation.key],
            )
            .await?;
        Ok(row
            .map(|row| read_found(&self.vault, &row, reservation, now))
            .transpose()?)
    }

    async fn take_over(
        &self,
        found: &FoundWrite,
        reservation: &WriteReservation,
        now: Timestamp,
    ) -> Tried<bool> {
        let taken = self
            .execute(
                "UPDATE writes
                    SET request = $5, owner = $6, state = 'reserved', deadline = $7, keep_until = $8, changed_at = $9,
                        answer = NULL, body = NULL, body_bytes = NULL
                  WHERE connection = $1 AND key = $2 AND owner = $3 AND state = $4",
                &[
                    &reservation.connection.as_str(),
                    &reservation.key,
                    &found.owner,
                    &found.state.as_str(),
                    &reservation.request,
                    &reservation.owner,
                    &reservation.deadline.millis(),
                    &reservation.keep_until.millis(),
                    &now.millis(),
                ],
            )
            .await?;
        Ok(taken > 0)
    }

    async fn judge_unknown(
        &self,
        found: &FoundWrite,
        reservation: &WriteReservation,
        now: Timestamp,
    ) -> Tried<bool> {
        let judged = self
            .execute(
                "UPDATE writes SET state = 'unknown', deadline = NULL, changed_at = $5
                  WHERE connection = $1 AND key = $2 AND owner = $3 AND state = $4",
                &[
                    &reservation.connection.as_str(),
                    &reservation.key,
                    &found.owner,
                    &found.state.as_str(),
                    &now.millis(),
                ],
            )
            .await?;
        Ok(judged > 0)
    }

    /// A try that is repeated finds what the one before it has written. Its deadline may have been put off meanwhile.
    pub(super) async fn write_leaves(
        &self,
        ticket: &WriteTicket,
        deadline: Timestamp,
        now: Timestamp,
    ) -> Tried<bool> {
        let left = self
            .execute(
                "UPDATE writes SET state = 'sent', deadline = $4, changed_at = $5
                  WHERE connection = $1 AND key = $2 AND owner = $3
                    AND (state = 'reserved' OR (state = 'sent' AND changed_at = $5))",
                &[
                    &ticket.connection.as_str(),
                    &ticket.key,
                    &ticket.owner,
                    &deadline.millis(),
                    &now.millis(),
                ],
            )
            .await?;
        Ok(left > 0)
    }

    pub(super) async fn hold_write(&self, ticket: &WriteTicket, deadline: Timestamp) -> Tried<bool> {
        let held = self
            .execute(
                "UPDATE writes SET deadline = $4
                  WHERE connection = $1 AND key = $2 AND owner = $3 AND state IN ('reserved', 'sent')",
                &[
                    &ticket.connection.as_str(),
                    &ticket.key,
                    &ticket.owner,
                    &deadline.millis(),
                ],
            )
            .await?;
        Ok(held > 0)
    }

    /// What is done stays done.
    pub(super) async fn end_write(
        &self,
        ticket: &WriteTicket,
        end: &SealedEnd,
        now: Timestamp,
    ) -> Tried<bool> {
        let (connection, now) = (ticket.connection.as_str(), now.millis());
        let ended = match end {
            SealedEnd::NotApplied => {
                self.execute(
                    "DELETE FROM writes WHERE connection = $1 AND key = $2 AND owner = $3 AND state <> 'done'",
                    &[&connection, &ticket.key, &ticket.owner],
                )
                .await?
            }
            SealedEnd::Done(sealed) => {
                self.execute(
                    "UPDATE writes
                        SET state = 'done', deadline = NULL, changed_at = $4, answer = $5, body = $6, body_bytes = $7
                      WHERE connection = $1 AND key = $2 AND owner = $3 AND (state <> 'done' OR answer = $5)",
                    &[
                        &connection,
                        &ticket.key,
                        &ticket.owner,
                        &now,
                        &sealed.answer,
                        &sealed.body,
                        &sealed.body_bytes,
                    ],
                )
                .await?
            }
            SealedEnd::Unknown => {
                self.execute(
                    "UPDATE writes SET state = 'unknown', deadline = NULL, changed_at = $4
                      WHERE connection = $1 AND key = $2 AND owner = $3 AND state <> 'done'",
                    &[&connection, &ticket.key, &ticket.owner, &now],
                )
                .await?
            }
        };
        Ok(ended > 0)
    }

    /// Says whether there is more to do. One process at a time: two that count the same room would drop too much.
    pub(super) async fn sweep_writes(&self, now: Timestamp, bodies_max: u64) -> Tried<bool> {
        let turn = self
            .row("SELECT pg_try_advisory_xact_lock(17750, 2) AS mine", &[])
            .await?
            .map_or(Ok(false), |row| row.flag("mine"))?;
        if !turn {
            return Ok(false);
        }
        let erased = self
            .execute(
                "DELETE FROM writes
                  WHERE (connection, key) IN
                            (SELECT connection, key FROM writes
                              WHERE keep_until <= $1 AND (deadline IS NULL OR deadline <= $1)
                              ORDER BY keep_until LIMIT $2 FOR UPDATE SKIP LOCKED)",
                &[&now.millis(), &SWEPT_AT_ONCE],
            )
            .await?;
        let room = self
            .row(
                "SELECT coalesce(sum(body_bytes), 0)::bigint AS room FROM writes WHERE body_bytes IS NOT NULL",
                &[],
            )
            .await?
            .map_or(Ok(0), |row| row.number("room"))?;
        let too_much = room.saturating_sub(i64::try_from(bodies_max).unwrap_or(i64::MAX));
        let mut dropped = 0;
        if too_much > 0 {
            dropped = self
                .execute(
                    "UPDATE writes w SET body = NULL, body_bytes = NULL
                       FROM (SELECT connection, key, owner, sum(body_bytes) OVER before_it AS before_it
                               FROM (SELECT connection, key, owner, changed_at, body_bytes
                                       FROM writes WHERE body_bytes IS NOT NULL
                                      ORDER BY changed_at, body_bytes LIMIT $2) AS oldest
                             WINDOW before_it AS (ORDER BY changed_at, body_bytes, connection, key
                                                  ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)) AS summed
                      WHERE w.connection = summed.connection AND w.key = summed.key AND w.owner = summed.owner
                        AND coalesce(summed.before_it, 0) < $1::bigint",
                    &[&too_much, &SWEPT_AT_ONCE],
                )
                .await?;
        }
        Ok(erased.max(dropped) >= SWEPT_AT_ONCE.unsigned_abs())
    }
}
