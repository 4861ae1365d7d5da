//! Who may redeem a refresh token, and what becomes of the answer: PROTOCOL.md, rules 2 to 5 and 11 to 16.
//!
//! What every redemption does is one statement each: an `UPDATE` that waited for another one judges its `WHERE` anew, by the
//! row as that left it. A transaction of several locks its connection's row first and reads it afterwards: what it read stands
//! until it commits.

use std::time::Duration;

use evergrant_domain::connection::{Account, Landing, RefreshTrouble};
use evergrant_domain::event::Event;
use evergrant_domain::rejection::Cooldown;
use evergrant_domain::{Connection, ConnectionId, ConnectionStatus, ReconnectReason, Timestamp, Version};

use super::db::{Db, Told, Tried, recorded, storable, told};
use crate::contract::{
    CooldownAnswer, Held, Landed, Lease, LeaseAnswer, LeaseOn, Presented, Refreshed, RevocationState,
};
use crate::record::{list, read_held, read_taken, told_of_landing};

impl Db {
    /// Rule 2: one statement takes the lease and adds an attempt beside those of earlier holders, so a takeover adds and never
    /// replaces. `asking` tells it from any other asking of this instance: asked again because the answer was lost, it finds
    /// what it took.
    pub(super) async fn take_lease(
        &self,
        id: &ConnectionId,
        version: Version,
        lasts: Duration,
        on: LeaseOn,
        asking: i64,
        now: Timestamp,
    ) -> Tried<LeaseAnswer> {
        // Time: this database's clock alone judges, as it is inside the statement; `now()` would be the transaction's start.
        let taken = self
            .row(
                "UPDATE connections
                    SET fence = fence + 1, lease_holder = $4, lease_shown_until = $5,
                        lease_until = clock_timestamp() + $6::bigint * interval '1 millisecond',
                        attempts = (attempts::jsonb || jsonb_build_array(jsonb_build_array(
                                        fence + 1, $7::bigint, $4::text, lease_holder IS NOT NULL, $8::bigint)))::text
                  WHERE id = $1 AND version = $2
                    AND (status = 'active' OR ($3 AND status_reason = 'redemption_outcome_lost'))
                    AND (lease_until IS NULL OR lease_until <= clock_timestamp())
                  RETURNING *",
                &[
                    &id.as_str(),
                    &version.number(),
                    &(on == LeaseOn::LostOutcome),
                    &&*self.me,
                    &now.after(lasts).millis(),
                    &millis(lasts),
                    &now.millis(),
                    &asking,
                ],
            )
            .await?;
        let row = match taken {
            Some(row) => row,
            None => match self.connection_row(id).await? {
                Some(row) => row,
                None => return Ok(LeaseAnswer::Missing),
            },
        };
        if let Some(taken) = read_taken(&self.vault, &row, &self.me, asking)? {
            return Ok(taken);
        }
        let held = read_held(&self.vault, &row)?;
        if held.connection.version != version || !on.allows(&held.connection.status) {
            return Ok(LeaseAnswer::Moved(Box::new(held)));
        }
        Ok(LeaseAnswer::Busy)
    }

    /// Rule 5: only under this very lease. The version may have moved: who still speaks with the provider keeps others away.
    pub(super) async fn renew_lease(&self, lease: &Lease, lasts: Duration) -> Tried<bool> {
        let renewed = self
            .execute(
                "UPDATE connections
                    SET lease_until = greatest(lease_until, clock_timestamp() + $4::bigint * interval '1 millisecond'),
                        lease_shown_until = lease_shown_until + greatest(0, $4::bigint
                            - (extract(epoch FROM lease_until - clock_timestamp()) * 1000)::bigint)
                  WHERE id = $1 AND fence = $2 AND lease_holder = $3 AND clock_timestamp() < lease_until",
                &[
                    &lease.connection().as_str(),
                    &lease.fence().number(),
                    &&*self.me,
                    &millis(lasts),
                ],
            )
            .await?;
        Ok(renewed > 0)
    }

    pub(super) async fn lease_lasts(&self, lease: &Lease, at_least: Duration) -> Tried<bool> {
        // Rule 4: the version, too. A late answer may have landed since: then this refresh token has been redeemed. And the
        // holder: a replica that takes over without the last commits gives fences out again.
        let lasts = self
            .row(
                "SELECT 1 FROM connections
                  WHERE id = $1 AND version = $2 AND fence = $3 AND lease_holder = $4
                    AND (status = 'active' OR status_reason = 'redemption_outcome_lost')
                    AND clock_timestamp() + $5::bigint * interval '1 millisecond' <= lease_until",
                &[
                    &lease.connection().as_str(),
                    &lease.version().number(),
                    &lease.fence().number(),
                    &&*self.me,
                    &millis(at_least),
                ],
            )
            .await?;
        Ok(lasts.is_some())
    }

    /// Rules 14 to 16, where nothing stands in the way; `None` where something does: another token set, another holder of the
    /// grant, or more or fewer failures before than the event tells of.
    pub(super) async fn land_at_once(
        &self,
        lease: &Lease,
        refreshed: &Refreshed,
        now: Timestamp,
    ) -> Tried<Option<Box<Held>>> {
        let tokens = &refreshed.tokens;
        let sealed = self.seal(lease.connection(), lease.version().next(), tokens);
        let told = Told::new(&refreshed.event, &self.process)?;
        // Rule 14: a mismatch is stored with its reason, rule 15: the lease is freed only where it is still this one, rule 16:
        // $19 are the reasons that a token set which landed takes away.
        let landed = self
            .feed(
                concat!(
                    "WITH changed AS (
                         UPDATE connections c
                            SET version = version + 1, access_token = $8, refresh_token = $9,
                                refresh_token_fingerprint = $10, token_type = $11, scopes = $12,
                                issued_at = $13, soft_end = $14, hard_end = $15, expires_at = $16,
                                unproven = $17 OR jsonb_array_length(attempts::jsonb) > 1
                                        OR coalesce(status_reason = ANY ($19), false),
                                status = CASE WHEN $18::text IS NOT NULL OR status_reason <> ALL ($19)
                                              THEN 'reconnect_required' ELSE 'active' END,
                                status_reason = CASE WHEN $18 IS NOT NULL THEN $18
                                                     WHEN status_reason <> ALL ($19) THEN status_reason END,
                                status_since = CASE WHEN $18 <> coalesce(status_reason, '') THEN $2
                                                    WHEN $18 IS NOT NULL OR status_reason <> ALL ($19)
                                                    THEN status_since END,
                                attempts = '[]',
                                trouble_failed_at = NULL, trouble_code = NULL, trouble_failures = NULL,
                                trouble_next_attempt_at = NULL, claimed_until = 0,
                                last_refresh_at = $2, updated_at = $2,
                                lease_holder = CASE WHEN fence = $7 THEN NULL ELSE lease_holder END,
                                lease_until = CASE WHEN fence = $7 THEN NULL ELSE lease_until END,
                                lease_shown_until = CASE WHEN fence = $7 THEN NULL ELSE lease_shown_until END
                          WHERE id = $1 AND version = $6 AND status <> 'disconnected'
                            AND greatest(coalesce(trouble_failures, 0),
                                         CASE WHEN status_reason = ANY ($19) THEN 1 ELSE 0 END) = $20::bigint
                            AND NOT EXISTS (SELECT 1 FROM connections other
                                             WHERE other.app = c.app AND other.id <> c.id
                                               AND other.refresh_token_fingerprint = $10)
                          RETURNING *), ",
                    recorded!("version - 1"),
                    " SELECT * FROM changed"
                ),
                &[
                    &lease.connection().as_str(),
                    &now.millis(),
                    &told.kind,
                    &told.detail,
                    &told.rest,
                    &lease.version().number(),
                    &lease.fence().number(),
                    &sealed.access_token,
                    &sealed.refresh_token,
                    &sealed.fingerprint,
                    &storable(&tokens.token_type),
                    &list(tokens.scopes.iter().map(String::as_str)),
                    &tokens.issued_at.millis(),
                    &tokens.ends.soft.millis(),
                    &tokens.ends.hard.millis(),
                    &tokens.ends.expires.millis(),
                    &tokens.unproven,
                    &refreshed
                        .mismatch
                        .as_ref()
                        .map(|_| ReconnectReason::AccountMismatch.as_str()),
                    &reasons_that_a_token_set_takes_away(),
                    &refreshed
                        .event
                        .circumstances
                        .failures_before
                        .map_or(-1, i64::from),
                ],
            )
            .await?;
        let held = landed
            .first()
            .map(|row| read_held(&self.vault, row))
            .transpose()?;
        Ok(held.map(Box::new))
    }

    /// The same, and what stands in the way.
    pub(super) async fn land(&self, lease: &Lease, refreshed: &Refreshed, now: Timestamp) -> Tried<Landed> {
        let id = lease.connection();
        if !self.lock(id).await? {
            return Ok(Landed::Purged);
        }
        let Some(found) = self.connection(id).await? else {
            return Ok(Landed::Purged);
        };
        let refreshed = &Refreshed {
            event: told_of_landing(&found, &refreshed.event),
            ..refreshed.clone()
        };
        if self.land_at_once(lease, refreshed, now).await?.is_some() {
            if let Some(account) = &refreshed.account {
                self.pin_account(id, account).await?;
            }
            return Ok(Landed::Stored(self.written(id).await?));
        }
        let held = self.written(id).await?;
        if let ConnectionStatus::Disconnected { .. } = held.connection.status {
            return self.refuse_answer(&held.connection, refreshed, now).await;
        }
        if held.connection.version == lease.version()
            && let Some(by) = self
                .grant_holder(id, &held.connection.app, &refreshed.tokens)
                .await?
        {
            return Ok(Landed::GrantTaken { by });
        }
        Ok(Landed::Moved(held))
    }

    /// Whoever left wanted the grant to end, and this is its newest token; unless it was to stay alive for others.
    async fn refuse_answer(
        &self,
        connection: &Connection,
        refreshed: &Refreshed,
        now: Timestamp,
    ) -> Tried<Landed> {
        if matches!(
            self.revocation_state(&connection.id).await?,
            RevocationState::Pending | RevocationState::Done
        ) && let Some(token) = &refreshed.tokens.refresh_token
        {
            self.queue_revocation(&connection.id, &connection.app, token, now)
                .await?;
        }
        Ok(Landed::Disconnected)
    }

    /// Pins the account where none was, and where no other live connection has it: the tokens are stored in any case.
    async fn pin_account(&self, id: &ConnectionId, account: &Account) -> Tried<()> {
        self.lock_account(account).await?;
        self.execute(
            "UPDATE connections SET account_id = $2, account_domain = $3, account_user = $4
              WHERE id = $1 AND account_id IS NULL
                AND NOT EXISTS (SELECT 1 FROM connections other
                                 WHERE other.app = connections.app AND other.customer = connections.customer
                                   AND other.account_id = $2 AND other.status <> 'disconnected')",
            &[
                &id.as_str(),
                &account.id.as_str(),
                &account.domain.as_deref().map(storable),
                &account.user.as_deref().map(storable),
            ],
        )
        .await?;
        Ok(())
    }

    pub(super) async fn give_up(
        &self,
        lease: &Lease,
        presented: Presented,
        trouble: Option<&RefreshTrouble>,
        event: Option<&Event>,
        now: Timestamp,
    ) -> Tried<()> {
        let told = event.map(|event| Told::new(event, &self.process)).transpose()?;
        let troubled = "$10::bigint IS NOT NULL AND version = $6 AND status = 'active'";
        // Rule 2: its own attempt and no other's, however often it says so.
        self.execute(
            &format!(
                "WITH changed AS (
                     UPDATE connections
                        SET attempts = CASE WHEN $8 THEN (
                                SELECT coalesce(jsonb_agg(attempt), '[]') FROM jsonb_array_elements(attempts::jsonb) attempt
                                 WHERE (attempt ->> 0)::bigint <> $7 OR attempt ->> 2 <> $9)::text ELSE attempts END,
                            lease_holder = CASE WHEN fence = $7 AND lease_holder = $9 THEN NULL ELSE lease_holder END,
                            lease_until = CASE WHEN fence = $7 AND lease_holder = $9 THEN NULL ELSE lease_until END,
                            lease_shown_until = CASE WHEN fence = $7 AND lease_holder = $9 THEN NULL ELSE lease_shown_until END,
                            trouble_failed_at = CASE WHEN {troubled} THEN $10 ELSE trouble_failed_at END,
                            trouble_code = CASE WHEN {troubled} THEN $11 ELSE trouble_code END,
                            trouble_failures = CASE WHEN {troubled} THEN $12 ELSE trouble_failures END,
                            trouble_next_attempt_at =
                                CASE WHEN {troubled} THEN $13 ELSE trouble_next_attempt_at END,
                            claimed_until = CASE WHEN {troubled} THEN 0 ELSE claimed_until END,
                            updated_at = CASE WHEN {troubled} THEN $2 ELSE updated_at END
                      WHERE id = $1
                      RETURNING *), {}
                 SELECT 1",
                told!("version")
            ),
            &[
                &lease.connection().as_str(),
                &now.millis(),
                &told.as_ref().map(|told| told.kind),
                &told.as_ref().map(|told| &told.detail),
                &told.as_ref().map(|told| &told.rest),
                &lease.version().number(),
                &lease.fence().number(),
                &(presented == Presented::No),
                &&*self.me,
                &trouble.map(|trouble| trouble.failed_at.millis()),
                &trouble.map(|trouble| storable(&trouble.code)),
                &trouble.map(|trouble| i64::from(trouble.failures)),
                &trouble.map(|trouble| trouble.next_attempt_at.millis()),
            ],
        )
        .await?;
        Ok(())
    }

    /// Rule 11: evidence becomes a verdict only where nothing has moved since, and under the very lease that it was gathered
    /// under.
    pub(super) async fn condemn(
        &self,
        lease: &Lease,
        reason: ReconnectReason,
        event: &Event,
        now: Timestamp,
    ) -> Tried<bool> {
        let told = Told::new(event, &self.process)?;
        let condemned = self
            .feed(
                concat!(
                    "WITH changed AS (
                         UPDATE connections
                            SET status = 'reconnect_required', status_reason = $9, updated_at = $2,
                                status_since = CASE WHEN status_reason = $9 THEN status_since ELSE $2 END,
                                trouble_failed_at = NULL, trouble_code = NULL, trouble_failures = NULL,
                                trouble_next_attempt_at = NULL, claimed_until = 0,
                                lease_holder = NULL, lease_until = NULL, lease_shown_until = NULL
                          WHERE id = $1 AND version = $6 AND fence = $7 AND lease_holder = $8
                            AND (status = 'active' OR status_reason = 'redemption_outcome_lost')
                          RETURNING *), ",
                    recorded!("version"),
                    " SELECT 1 FROM changed"
                ),
                &[
                    &lease.connection().as_str(),
                    &now.millis(),
                    &told.kind,
                    &told.detail,
                    &told.rest,
                    &lease.version().number(),
                    &lease.fence().number(),
                    &&*self.me,
                    &reason.as_str(),
                ],
            )
            .await?;
        if condemned.is_empty() {
            self.give_up(lease, Presented::Unknown, None, None, now).await?;
        }
        Ok(!condemned.is_empty())
    }

    /// The lease stays with its holder: what it may do still, it finds out by the status.
    pub(super) async fn mark_uninstalled(
        &self,
        id: &ConnectionId,
        at: Timestamp,
        event: &Event,
        now: Timestamp,
    ) -> Tried<bool> {
        let told = Told::new(event, &self.process)?;
        let marked = self
            .feed(
                concat!(
                    "WITH changed AS (
                         UPDATE connections
                            SET status = 'reconnect_required', status_reason = $7,
                                status_since = coalesce(status_since, $2), updated_at = $2,
                                trouble_failed_at = NULL, trouble_code = NULL, trouble_failures = NULL,
                                trouble_next_attempt_at = NULL, claimed_until = 0
                          WHERE id = $1 AND connected_at < $6 AND kind = 'oauth'
                            AND (status = 'active' OR status_reason = 'redemption_outcome_lost')
                          RETURNING *), ",
                    recorded!("version"),
                    " SELECT 1 FROM changed"
                ),
                &[
                    &id.as_str(),
                    &now.millis(),
                    &told.kind,
                    &told.detail,
                    &told.rest,
                    &at.millis(),
                    &ReconnectReason::Uninstalled.as_str(),
                ],
            )
            .await?;
        Ok(!marked.is_empty())
    }

    /// A 401 redeems at most once per connection and cooldown, over all processes.
    pub(super) async fn begin_cooldown(
        &self,
        id: &ConnectionId,
        version: Version,
        now: Timestamp,
    ) -> Tried<CooldownAnswer> {
        self.lock(id).await?;
        let last = match self.held(id).await? {
            Some(held) if held.connection.version == version => held.cooldown,
            _ => return Ok(CooldownAnswer::Moved),
        };
        if let Some(last) = last.filter(|cooldown| cooldown.holds(now)) {
            return Ok(CooldownAnswer::Holds(last));
        }
        let next = Cooldown::next(last, now);
        self.execute(
            "UPDATE connections SET cooldown_began_at = $2, cooldown_ms = $3 WHERE id = $1",
            &[&id.as_str(), &next.began_at.millis(), &millis(next.lasts)],
        )
        .await?;
        Ok(CooldownAnswer::Began(next))
    }

    pub(super) async fn claim_forced_refresh(
        &self,
        id: &ConnectionId,
        every: Duration,
        event: &Event,
        now: Timestamp,
    ) -> Tried<bool> {
        let told = Told::new(event, &self.process)?;
        let claimed = self
            .row(
                concat!(
                    "WITH changed AS (
                         UPDATE connections SET forced_at = $2
                          WHERE id = $1 AND (forced_at IS NULL OR forced_at <= $6)
                          RETURNING *), ",
                    told!("version"),
                    " SELECT 1 FROM changed"
                ),
                &[
                    &id.as_str(),
                    &now.millis(),
                    &told.kind,
                    &told.detail,
                    &told.rest,
                    &now.before(every).millis(),
                ],
            )
            .await?;
        Ok(claimed.is_some())
    }
}

/// Rule 16, for the statement that applies it.
fn reasons_that_a_token_set_takes_away() -> Vec<&'static str> {
    let since = Timestamp::from_millis(0);
    let takes_away = |reason: &ReconnectReason| {
        let status = ConnectionStatus::ReconnectRequired {
            reason: *reason,
            since,
        };
        status.after_token_set_landed() == Landing::ActiveUnproven
    };
    let reasons = ReconnectReason::ALL.into_iter().filter(takes_away);
    reasons.map(ReconnectReason::as_str).collect()
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
