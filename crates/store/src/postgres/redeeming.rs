//! Who may redeem a refresh token, and what becomes of the answer: PROTOCOL.md, rules 2 to 5 and 11 to 16.
//!
//! Every transaction here locks its connection's row first and reads it afterwards: what it read stands until it commits.

use std::time::Duration;

use evergrant_domain::connection::{Account, RefreshTrouble};
use evergrant_domain::event::Event;
use evergrant_domain::rejection::Cooldown;
use evergrant_domain::{ConnectionId, ConnectionStatus, Fence, ReconnectReason, Timestamp, Version};

use super::db::{Db, Tried, storable};
use crate::contract::{
    CooldownAnswer, Landed, Lease, LeaseAnswer, LeaseOn, Presented, Refreshed, RevocationState,
};
use crate::record::{Columns as _, LandsAs, list};

impl Db {
    pub(super) async fn take_lease(
        &self,
        id: &ConnectionId,
        version: Version,
        lasts: Duration,
        on: LeaseOn,
        now: Timestamp,
    ) -> Tried<LeaseAnswer> {
        let locked = self
            .row(
                "SELECT lease_until IS NOT NULL AS leased FROM connections WHERE id = $1 FOR NO KEY UPDATE",
                &[&id.as_str()],
            )
            .await?;
        let (Some(locked), Some(before)) = (locked, self.held(id).await?) else {
            return Ok(LeaseAnswer::Missing);
        };
        if before.connection.version != version || !on.allows(&before.connection.status) {
            return Ok(LeaseAnswer::Moved(Box::new(before)));
        }
        // Time: this database's clock alone judges, as it is inside the statement; `now()` would be the transaction's start.
        let taken = self
            .row(
                "UPDATE connections
                    SET fence = fence + 1, lease_holder = $2, lease_shown_until = $3,
                        lease_until = clock_timestamp() + $4::bigint * interval '1 millisecond'
                  WHERE id = $1 AND (lease_until IS NULL OR lease_until <= clock_timestamp())
                  RETURNING fence",
                &[
                    &id.as_str(),
                    &&*self.me,
                    &now.after(lasts).millis(),
                    &millis(lasts),
                ],
            )
            .await?;
        let Some(taken) = taken else {
            return Ok(LeaseAnswer::Busy);
        };
        let fence = taken.number("fence")?;
        // Rule 2: an attempt of its own beside those of earlier holders, so a takeover adds and never replaces.
        self.execute(
            "INSERT INTO attempts (connection, fence, version, began_at) VALUES ($1, $2, $3, $4)",
            &[&id.as_str(), &fence, &version.number(), &now.millis()],
        )
        .await?;
        Ok(LeaseAnswer::Taken {
            lease: Lease::new(id.clone(), version, Fence::new(fence)),
            earlier: before.connection.intent,
            held: self.written(id).await?,
            took_over: locked.flag("leased")?,
        })
    }

    pub(super) async fn lease_lasts(&self, lease: &Lease, at_least: Duration) -> Tried<bool> {
        // Rule 4: the version, too. A late answer may have landed since: then this refresh token has been redeemed.
        let lasts = self
            .row(
                "SELECT 1 FROM connections
              WHERE id = $1 AND version = $2 AND fence = $3 AND status <> 'disconnected'
                AND clock_timestamp() + $4::bigint * interval '1 millisecond' <= lease_until",
                &[
                    &lease.connection().as_str(),
                    &lease.version().number(),
                    &lease.fence().number(),
                    &millis(at_least),
                ],
            )
            .await?;
        Ok(lasts.is_some())
    }

    /// Rules 14 to 16.
    pub(super) async fn land(&self, lease: &Lease, refreshed: &Refreshed, now: Timestamp) -> Tried<Landed> {
        let id = lease.connection();
        self.lock(id).await?;
        let Some(found) = self.connection(id).await? else {
            // Purged, which only a disconnected connection can be.
            return Ok(Landed::Disconnected);
        };
        let tokens = &refreshed.tokens;
        let sealed = self.seal(id, lease.version().next(), tokens);
        let attempts = self.attempts(id, lease.version()).await?;
        let lands = LandsAs::new(&found.status, refreshed, attempts, now);
        // Rule 15: the lease is freed only where it is still this one.
        let stored = self
            .execute(
                "UPDATE connections
                    SET version = version + 1, access_token = $4, refresh_token = $5,
                        refresh_token_fingerprint = $6, token_type = $7, scopes = $8,
                        issued_at = $9, soft_end = $10, hard_end = $11, expires_at = $12,
                        unproven = $13, status = $14, status_reason = $15, status_since = $16,
                        trouble_failed_at = NULL, trouble_code = NULL, trouble_failures = NULL,
                        trouble_next_attempt_at = NULL, claimed_until = 0, last_refresh_at = $17, updated_at = $17,
                        lease_holder = CASE WHEN fence = $3 THEN NULL ELSE lease_holder END,
                        lease_until = CASE WHEN fence = $3 THEN NULL ELSE lease_until END,
                        lease_shown_until = CASE WHEN fence = $3 THEN NULL ELSE lease_shown_until END
                  WHERE id = $1 AND version = $2 AND status <> 'disconnected'",
                &[
                    &id.as_str(),
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
                    &lands.unproven,
                    &lands.status,
                    &lands.reason.map(ReconnectReason::as_str),
                    &lands.since.map(Timestamp::millis),
                    &now.millis(),
                ],
            )
            .await?;
        if stored == 0 {
            return self.refuse_answer(lease, refreshed, now).await;
        }
        if let Some(account) = &refreshed.account {
            self.pin_account(id, account).await?;
        }
        self.forget_attempts(id).await?;
        self.record_change(id, &refreshed.event, now).await?;
        Ok(Landed::Stored(self.written(id).await?))
    }

    async fn refuse_answer(&self, lease: &Lease, refreshed: &Refreshed, now: Timestamp) -> Tried<Landed> {
        let held = self.written(lease.connection()).await?;
        let ConnectionStatus::Disconnected { .. } = held.connection.status else {
            return Ok(Landed::Moved(held));
        };
        // Whoever left wanted the grant to end, and this is its newest token; unless it was to stay alive for others.
        if matches!(
            self.revocation_state(lease.connection()).await?,
            RevocationState::Pending | RevocationState::Done
        ) && let Some(token) = &refreshed.tokens.refresh_token
        {
            self.queue_revocation(lease.connection(), &held.connection.app, token, now)
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
        let id = lease.connection().as_str();
        self.lock(lease.connection()).await?;
        if presented == Presented::No {
            // Rule 2: its own attempt and no other's, however often it says so.
            self.execute(
                "DELETE FROM attempts WHERE connection = $1 AND fence = $2",
                &[&id, &lease.fence().number()],
            )
            .await?;
        }
        self.execute(
            "UPDATE connections SET lease_holder = NULL, lease_until = NULL, lease_shown_until = NULL
              WHERE id = $1 AND fence = $2",
            &[&id, &lease.fence().number()],
        )
        .await?;
        if let Some(trouble) = trouble {
            self.execute(
                "UPDATE connections
                    SET trouble_failed_at = $3, trouble_code = $4, trouble_failures = $5,
                        trouble_next_attempt_at = $6, claimed_until = 0, updated_at = $7
                  WHERE id = $1 AND version = $2 AND status = 'active'",
                &[
                    &id,
                    &lease.version().number(),
                    &trouble.failed_at.millis(),
                    &storable(&trouble.code),
                    &i64::from(trouble.failures),
                    &trouble.next_attempt_at.millis(),
                    &now.millis(),
                ],
            )
            .await?;
        }
        if let Some(event) = event {
            self.record_event(lease.connection(), event, now).await?;
        }
        Ok(())
    }

    /// Rule 11: evidence becomes a verdict only where nothing has moved since.
    pub(super) async fn condemn(
        &self,
        lease: &Lease,
        reason: ReconnectReason,
        event: &Event,
        now: Timestamp,
    ) -> Tried<bool> {
        let condemned = self
            .execute(
                "UPDATE connections
                    SET status = 'reconnect_required', status_reason = $4, status_since = $5, updated_at = $5,
                        trouble_failed_at = NULL, trouble_code = NULL, trouble_failures = NULL,
                        trouble_next_attempt_at = NULL, claimed_until = 0,
                        lease_holder = NULL, lease_until = NULL, lease_shown_until = NULL
                  WHERE id = $1 AND version = $2 AND fence = $3 AND status = 'active'",
                &[
                    &lease.connection().as_str(),
                    &lease.version().number(),
                    &lease.fence().number(),
                    &reason.as_str(),
                    &now.millis(),
                ],
            )
            .await?;
        if condemned == 0 {
            self.give_up(lease, Presented::Unknown, None, None, now).await?;
            return Ok(false);
        }
        self.record_change(lease.connection(), event, now).await?;
        Ok(true)
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
        now: Timestamp,
    ) -> Tried<bool> {
        let claimed = self.execute(
            "UPDATE connections SET forced_at = $2 WHERE id = $1 AND (forced_at IS NULL OR forced_at <= $3)",
            &[&id.as_str(), &now.millis(), &now.before(every).millis()],
        ).await?;
        Ok(claimed > 0)
    }

    async fn attempts(&self, id: &ConnectionId, version: Version) -> Tried<u32> {
        let counted = self
            .row(
                "SELECT count(*) AS attempts FROM attempts WHERE connection = $1 AND version = $2",
                &[&id.as_str(), &version.number()],
            )
            .await?;
        Ok(counted.map_or(Ok(0), |row| row.count("attempts"))?)
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
