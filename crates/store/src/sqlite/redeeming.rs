//! Who may redeem a refresh token, and what becomes of the answer: PROTOCOL.md, rules 2 to 5 and 11 to 16.

use std::time::Duration;

use evergrant_domain::connection::{Account, RefreshTrouble};
use evergrant_domain::event::Event;
use evergrant_domain::rejection::Cooldown;
use evergrant_domain::{ConnectionId, ConnectionStatus, ReconnectReason, Timestamp, Version};
use rusqlite::{OptionalExtension, named_params, params};

use super::holder::LeaseRow;
use super::record::Db;
use crate::contract::{
    CooldownAnswer, Landed, Lease, LeaseAnswer, LeaseOn, Presented, Refreshed, RevocationState,
};
use crate::record::{Before, LandsAs, Stored, list, read_taken, told_of_landing};

/// No answer of a transaction is lost here, so none is asked for again.
const ONLY_ASKING: i64 = 0;

impl Db {
    pub(super) fn take_lease(
        &self,
        id: &ConnectionId,
        version: Version,
        lasts: Duration,
        on: LeaseOn,
        now: Timestamp,
    ) -> Stored<LeaseAnswer> {
        let Some(before) = self.held(id)? else {
            return Ok(LeaseAnswer::Missing);
        };
        if before.connection.version != version || !on.allows(&before.connection.status) {
            return Ok(LeaseAnswer::Moved(Box::new(before)));
        }
        // Time: the store alone judges, by whether the holder lives and by the boot-time clock. `now` moves no lease.
        if self
            .lease_row(id)?
            .is_some_and(|lease| self.holders.holds(&lease))
        {
            return Ok(LeaseAnswer::Busy);
        }
        // Rule 2: an attempt of its own beside those of earlier holders, so a takeover adds and never replaces.
        let mut statement = self.sql.prepare_cached(
            "UPDATE connections
                SET fence = fence + 1, lease_holder = :me, lease_boot = :boot, lease_until = :until,
                    lease_shown_until = :shown_until,
                    attempts = json_insert(attempts, '$[#]', json_array(
                        fence + 1, :now, :me, json(iif(lease_holder IS NULL, 'false', 'true')), :asking))
              WHERE id = :id
              RETURNING *",
        )?;
        let mut rows = statement.query(named_params! {
            ":id": id.as_str(),
            ":me": self.holders.me(),
            ":boot": self.holders.boot(),
            ":until": self.holders.in_millis(lasts),
            ":shown_until": now.after(lasts).millis(),
            ":now": now.millis(),
            ":asking": ONLY_ASKING,
        })?;
        let taken = rows
            .next()?
            .map(|row| read_taken(&self.vault, row, self.holders.me(), ONLY_ASKING));
        Ok(taken.transpose()?.flatten().unwrap_or(LeaseAnswer::Missing))
    }

    /// Rule 5: only under this very lease. The version may have moved: who still speaks with the provider keeps others away.
    pub(super) fn renew_lease(&self, lease: &Lease, lasts: Duration) -> Stored<bool> {
        let until = self.holders.in_millis(lasts);
        let renewed = self
            .sql
            .prepare_cached(
                "UPDATE connections
                    SET lease_until = max(lease_until, :until),
                        lease_shown_until = lease_shown_until + max(lease_until, :until) - lease_until
                  WHERE id = :id AND fence = :fence AND lease_holder = :me AND lease_boot = :boot AND :now < lease_until",
            )?
            .execute(named_params! {
                ":id": lease.connection().as_str(),
                ":fence": lease.fence().number(),
                ":me": self.holders.me(),
                ":boot": self.holders.boot(),
                ":now": self.holders.in_millis(Duration::ZERO),
                ":until": until,
            })?;
        Ok(renewed > 0)
    }

    pub(super) fn lease_lasts(&self, lease: &Lease, at_least: Duration) -> Stored<bool> {
        // Rule 4: the version, too. A late answer may have landed since: then this refresh token has been redeemed. And the
        // holder: a backup that was put back gives fences out again.
        let until: Option<i64> = self.value(
            "SELECT lease_until FROM connections
              WHERE id = ?1 AND version = ?2 AND fence = ?3 AND lease_holder = ?4 AND lease_boot = ?5
                AND (status = 'active' OR status_reason = 'redemption_outcome_lost')",
            params![
                lease.connection().as_str(),
                lease.version().number(),
                lease.fence().number(),
                self.holders.me(),
                self.holders.boot(),
            ],
        )?;
        Ok(until.is_some_and(|until| self.holders.in_millis(at_least) <= until))
    }

    /// Rules 14 to 16.
    pub(super) fn land(&self, lease: &Lease, refreshed: &Refreshed, now: Timestamp) -> Stored<Landed> {
        let id = lease.connection();
        let Some(found) = self.connection(id)? else {
            return Ok(Landed::Purged);
        };
        let tokens = &refreshed.tokens;
        let version = lease.version().next();
        if found.version == lease.version()
            && let Some(by) = self.grant_holder(id, &found.app, tokens)?
        {
            return Ok(Landed::GrantTaken { by });
        }
        let sealed = self.seal(id, version, tokens);
        let lands = LandsAs::new(&found, refreshed, now);
        // Rule 15: the lease is freed only where it is still this one.
        let stored = self
            .sql
            .prepare_cached(
                "UPDATE connections
                    SET version = version + 1, access_token = :access_token, refresh_token = :refresh_token,
                        refresh_token_fingerprint = :fingerprint, token_type = :token_type, scopes = :scopes,
                        issued_at = :issued_at, soft_end = :soft_end, hard_end = :hard_end, expires_at = :expires_at,
                        unproven = :unproven, status = :status, status_reason = :reason, status_since = :since,
                        attempts = '[]',
                        trouble_failed_at = NULL, trouble_code = NULL, trouble_failures = NULL,
                        trouble_next_attempt_at = NULL, claimed_until = 0, last_refresh_at = :now, updated_at = :now,
                        lease_holder = iif(fence = :fence, NULL, lease_holder),
                        lease_boot = iif(fence = :fence, NULL, lease_boot),
                        lease_until = iif(fence = :fence, NULL, lease_until),
                        lease_shown_until = iif(fence = :fence, NULL, lease_shown_until)
                  WHERE id = :id AND version = :version AND status <> 'disconnected'",
            )?
            .execute(named_params! {
                ":id": id.as_str(),
                ":version": lease.version().number(),
                ":fence": lease.fence().number(),
                ":access_token": sealed.access_token,
                ":refresh_token": sealed.refresh_token,
                ":fingerprint": sealed.fingerprint,
                ":token_type": tokens.token_type,
                ":scopes": list(tokens.scopes.iter().map(String::as_str)),
                ":issued_at": tokens.issued_at.millis(),
                ":soft_end": tokens.ends.soft.millis(),
                ":hard_end": tokens.ends.hard.millis(),
                ":expires_at": tokens.ends.expires.millis(),
                ":unproven": lands.unproven,
                ":status": lands.status,
                ":reason": lands.reason.map(ReconnectReason::as_str),
                ":since": lands.since.map(Timestamp::millis),
                ":now": now.millis(),
            })?;
        if stored == 0 {
            return self.refuse_answer(lease, refreshed, now);
        }
        if let Some(account) = &refreshed.account {
            self.pin_account(id, account)?;
        }
        let event = told_of_landing(&found, &refreshed.event);
        self.record_change(id, Before::Version(found.version), &event, now)?;
        Ok(Landed::Stored(self.written(id)?))
    }

    fn refuse_answer(&self, lease: &Lease, refreshed: &Refreshed, now: Timestamp) -> Stored<Landed> {
        let held = self.written(lease.connection())?;
        let ConnectionStatus::Disconnected { .. } = held.connection.status else {
            return Ok(Landed::Moved(held));
        };
        // Whoever left wanted the grant to end, and this is its newest token; unless it was to stay alive for others.
        if matches!(
            self.revocation_state(lease.connection())?,
            RevocationState::Pending | RevocationState::Done
        ) && let Some(token) = &refreshed.tokens.refresh_token
        {
            self.queue_revocation(lease.connection(), &held.connection.app, token, now)?;
        }
        Ok(Landed::Disconnected)
    }

    /// Pins the account where none was, and where no other live connection has it: the tokens are stored in any case.
    fn pin_account(&self, id: &ConnectionId, account: &Account) -> Stored<()> {
        self.sql
            .prepare_cached(
                "UPDATE connections SET account_id = ?2, account_domain = ?3, account_user = ?4
                  WHERE id = ?1 AND account_id IS NULL
                    AND NOT EXISTS (SELECT 1 FROM connections other
                                     WHERE other.app = connections.app AND other.customer = connections.customer
                                       AND other.account_id = ?2 AND other.status <> 'disconnected')",
            )?
            .execute(params![
                id.as_str(),
                account.id.as_str(),
                account.domain,
                account.user
            ])?;
        Ok(())
    }

    pub(super) fn give_up(
        &self,
        lease: &Lease,
        presented: Presented,
        trouble: Option<&RefreshTrouble>,
        event: Option<&Event>,
        now: Timestamp,
    ) -> Stored<()> {
        let id = lease.connection().as_str();
        if presented == Presented::No {
            // Rule 2: its own attempt and no other's, however often it says so.
            self.sql
                .prepare_cached(
                    "UPDATE connections
                        SET attempts = (SELECT json_group_array(json(value)) FROM json_each(attempts)
                                         WHERE value ->> 0 <> ?2 OR value ->> 2 <> ?3)
                      WHERE id = ?1",
                )?
                .execute(params![id, lease.fence().number(), self.holders.me()])?;
        }
        self.sql
            .prepare_cached(
                "UPDATE connections
                    SET lease_holder = NULL, lease_boot = NULL, lease_until = NULL, lease_shown_until = NULL
                  WHERE id = ?1 AND fence = ?2 AND lease_holder = ?3",
            )?
            .execute(params![id, lease.fence().number(), self.holders.me()])?;
        if let Some(trouble) = trouble {
            self.sql
                .prepare_cached(
                    "UPDATE connections
                        SET trouble_failed_at = ?3, trouble_code = ?4, trouble_failures = ?5,
                            trouble_next_attempt_at = ?6, claimed_until = 0, updated_at = ?7
                      WHERE id = ?1 AND version = ?2 AND status = 'active'",
                )?
                .execute(params![
                    id,
                    lease.version().number(),
                    trouble.failed_at.millis(),
                    trouble.code,
                    trouble.failures,
                    trouble.next_attempt_at.millis(),
                    now.millis(),
                ])?;
        }
        if let Some(event) = event {
            self.append_event(lease.connection(), Before::Unchanged, event, now)?;
        }
        Ok(())
    }

    /// Rule 11: evidence becomes a verdict only where nothing has moved since, and under the very lease that it was gathered
    /// under.
    pub(super) fn condemn(
        &self,
        lease: &Lease,
        reason: ReconnectReason,
        event: &Event,
        now: Timestamp,
    ) -> Stored<bool> {
        let condemned = self
            .sql
            .prepare_cached(
                "UPDATE connections
                    SET status = 'reconnect_required', status_reason = ?4, updated_at = ?5,
                        status_since = iif(status_reason = ?4, status_since, ?5),
                        trouble_failed_at = NULL, trouble_code = NULL, trouble_failures = NULL,
                        trouble_next_attempt_at = NULL, claimed_until = 0,
                        lease_holder = NULL, lease_boot = NULL, lease_until = NULL, lease_shown_until = NULL
                  WHERE id = ?1 AND version = ?2 AND fence = ?3 AND lease_holder = ?6
                    AND (status = 'active' OR status_reason = 'redemption_outcome_lost')",
            )?
            .execute(params![
                lease.connection().as_str(),
                lease.version().number(),
                lease.fence().number(),
                reason.as_str(),
                now.millis(),
                self.holders.me(),
            ])?;
        if condemned == 0 {
            self.give_up(lease, Presented::Unknown, None, None, now)?;
            return Ok(false);
        }
        self.record_change(lease.connection(), Before::Unchanged, event, now)?;
        Ok(true)
    }

    /// The lease stays with its holder: what it may do still, it finds out by the status.
    pub(super) fn mark_uninstalled(
        &self,
        id: &ConnectionId,
        at: Timestamp,
        event: &Event,
        now: Timestamp,
    ) -> Stored<bool> {
        let marked = self
            .sql
            .prepare_cached(
                "UPDATE connections
                    SET status = 'reconnect_required', status_reason = ?4,
                        status_since = coalesce(status_since, ?3), updated_at = ?3,
                        trouble_failed_at = NULL, trouble_code = NULL, trouble_failures = NULL,
                        trouble_next_attempt_at = NULL, claimed_until = 0
                  WHERE id = ?1 AND connected_at < ?2 AND kind = 'oauth'
                    AND (status = 'active' OR status_reason = 'redemption_outcome_lost')",
            )?
            .execute(params![
                id.as_str(),
                at.millis(),
                now.millis(),
                ReconnectReason::Uninstalled.as_str(),
            ])?;
        if marked > 0 {
            self.record_change(id, Before::Unchanged, event, now)?;
        }
        Ok(marked > 0)
    }

    /// A 401 redeems at most once per connection and cooldown, over all processes.
    pub(super) fn begin_cooldown(
        &self,
        id: &ConnectionId,
        version: Version,
        now: Timestamp,
    ) -> Stored<CooldownAnswer> {
        let last = match self.held(id)? {
            Some(held) if held.connection.version == version => held.cooldown,
            _ => return Ok(CooldownAnswer::Moved),
        };
        if let Some(last) = last.filter(|cooldown| cooldown.holds(now)) {
            return Ok(CooldownAnswer::Holds(last));
        }
        let next = Cooldown::next(last, now);
        self.sql
            .prepare_cached("UPDATE connections SET cooldown_began_at = ?2, cooldown_ms = ?3 WHERE id = ?1")?
            .execute(params![
                id.as_str(),
                next.began_at.millis(),
                i64::try_from(next.lasts.as_millis()).unwrap_or(i64::MAX),
            ])?;
        Ok(CooldownAnswer::Began(next))
    }

    pub(super) fn claim_forced_refresh(
        &self,
        id: &ConnectionId,
        every: Duration,
        event: &Event,
        now: Timestamp,
    ) -> Stored<bool> {
        let claimed = self
            .sql
            .prepare_cached(
                "UPDATE connections SET forced_at = ?2 WHERE id = ?1 AND (forced_at IS NULL OR forced_at <= ?3)",
            )?
            .execute(params![id.as_str(), now.millis(), now.before(every).millis()])?;
        if claimed > 0 {
            self.append_event(id, Before::Unchanged, event, now)?;
        }
        Ok(claimed > 0)
    }

    fn lease_row(&self, id: &ConnectionId) -> Stored<Option<LeaseRow>> {
        Ok(self
            .sql
            .prepare_cached(
                "SELECT lease_holder, lease_boot, lease_until FROM connections
                  WHERE id = ?1 AND lease_holder IS NOT NULL",
            )?
            .query_row([id.as_str()], |row| {
                Ok(LeaseRow {
                    holder: row.get(0)?,
                    boot: row.get(1)?,
                    until: row.get(2)?,
                })
            })
            .optional()?)
    }
}
