//! Connections made, restored, changed, disconnected and listed.

use evergrant_domain::connection::Account;
use evergrant_domain::event::Event;
use evergrant_domain::{
    AppName, Connection, ConnectionId, ConnectionStatus, Customer, RefreshToken, Timestamp, TokenSet, Version,
};
use rusqlite::{named_params, params};

use super::conditions::Conditions;
use super::history::{FIRST_ATTEMPT, within};
use super::record::Db;
use crate::contract::{
    Connected, ConnectionFilter, Held, NewConnection, RecordSays, Replaced, RevocationState, Revoke, SortBy,
    SortKey, StoreError,
};
use crate::record::{
    Before, Columns as _, SELECT_CONNECTION, Stored, account_to_pin, fingerprint, health, judged, label_list,
    list, may_be_restored_as, read_connection,
};

impl Db {
    pub(super) fn create(&self, new: &NewConnection, now: Timestamp) -> Stored<Connected> {
        if self.connection(&new.id)?.is_some() {
            return Ok(Connected::IdTaken);
        }
        if let Some(taken) = self.taken(
            &new.id,
            &new.app,
            &new.customer,
            new.account.as_ref(),
            &new.tokens,
        )? {
            return Ok(taken);
        }
        let sealed = self.seal(&new.id, Version::FIRST, &new.tokens);
        self.sql
            .prepare_cached(
                "INSERT INTO connections (
                     id, app, customer, kind, account_id, account_domain, account_user, status, version, fence,
                     access_token, refresh_token, refresh_token_fingerprint, token_type, scopes, issued_at,
                     soft_end, hard_end, expires_at, unproven, labels, created_at, connected_at, updated_at)
                 VALUES (
                     :id, :app, :customer, :kind, :account_id, :account_domain, :account_user, 'active', :version, 0,
                     :access_token, :refresh_token, :fingerprint, :token_type, :scopes, :issued_at,
                     :soft_end, :hard_end, :expires_at, :unproven, :labels, :now, :now, :now)",
            )?
            .execute(named_params! {
                ":id": new.id.as_str(),
                ":app": new.app.as_str(),
                ":customer": new.customer.as_str(),
                ":kind": new.kind.as_str(),
                ":account_id": new.account.as_ref().map(|account| account.id.as_str()),
                ":account_domain": new.account.as_ref().and_then(|account| account.domain.as_ref()),
                ":account_user": new.account.as_ref().and_then(|account| account.user.as_ref()),
                ":version": Version::FIRST.number(),
                ":access_token": sealed.access_token,
                ":refresh_token": sealed.refresh_token,
                ":fingerprint": sealed.fingerprint,
                ":token_type": new.tokens.token_type,
                ":scopes": list(new.tokens.scopes.iter().map(String::as_str)),
                ":issued_at": new.tokens.issued_at.millis(),
                ":soft_end": new.tokens.ends.soft.millis(),
                ":hard_end": new.tokens.ends.hard.millis(),
                ":expires_at": new.tokens.ends.expires.millis(),
                ":unproven": new.tokens.unproven,
                ":labels": label_list(&new.labels),
                ":now": now.millis(),
            })?;
        self.spare_from_revocation(&new.app, &new.tokens)?;
        self.record_change(&new.id, Before::Nothing, &new.event, now)?;
        Ok(Connected::Stored(self.written(&new.id)?))
    }

    /// Unconditional: version and fence grow, so whoever still redeems the old grant finds another version, and lease,
    /// intent, trouble and cooldown of the old grant are void.
    pub(super) fn reconnect(
        &self,
        id: &ConnectionId,
        account: Option<&Account>,
        tokens: &TokenSet,
        event: &Event,
        now: Timestamp,
    ) -> Stored<Connected> {
        let Some(old) = self.connection(id)? else {
            return Ok(Connected::Missing);
        };
        let account = account.or(old.account.as_ref());
        if let Some(taken) = self.taken(id, &old.app, &old.customer, account, tokens)? {
            return Ok(taken);
        }
        let version = old.version.next();
        let sealed = self.seal(id, version, tokens);
        self.sql
            .prepare_cached(
                "UPDATE connections
                    SET account_id = :account_id, account_domain = :account_domain, account_user = :account_user,
                        status = 'active', status_reason = NULL, status_since = NULL, superseded_by = NULL,
                        revocation = NULL, version = :version, fence = fence + 1,
                        access_token = :access_token, refresh_token = :refresh_token,
                        refresh_token_fingerprint = :fingerprint, token_type = :token_type, scopes = :scopes,
                        issued_at = :issued_at, soft_end = :soft_end, hard_end = :hard_end, expires_at = :expires_at,
                        unproven = :unproven, connected_at = :now, updated_at = :now, attempts = '[]',
                        lease_holder = NULL, lease_boot = NULL, lease_until = NULL, lease_shown_until = NULL,
                        trouble_failed_at = NULL, trouble_code = NULL, trouble_failures = NULL,
                        trouble_next_attempt_at = NULL, cooldown_began_at = NULL, cooldown_ms = NULL,
                        forced_at = NULL, claimed_until = 0
                  WHERE id = :id",
            )?
            .execute(named_params! {
                ":id": id.as_str(),
                ":account_id": account.map(|account| account.id.as_str()),
                ":account_domain": account.and_then(|account| account.domain.as_ref()),
                ":account_user": account.and_then(|account| account.user.as_ref()),
                ":version": version.number(),
                ":access_token": sealed.access_token,
                ":refresh_token": sealed.refresh_token,
                ":fingerprint": sealed.fingerprint,
                ":token_type": tokens.token_type,
                ":scopes": list(tokens.scopes.iter().map(String::as_str)),
                ":issued_at": tokens.issued_at.millis(),
                ":soft_end": tokens.ends.soft.millis(),
                ":hard_end": tokens.ends.hard.millis(),
                ":expires_at": tokens.ends.expires.millis(),
                ":unproven": tokens.unproven,
                ":now": now.millis(),
            })?;
        self.spare_from_revocation(&old.app, tokens)?;
        self.record_change(id, Before::Version(old.version), event, now)?;
        Ok(Connected::Stored(self.written(id)?))
    }

    /// Looked at and replaced in one transaction: nobody redeems or lands in between.
    pub(super) fn replace_older(
        &self,
        new: &NewConnection,
        says: RecordSays,
        replaced: &Event,
        now: Timestamp,
    ) -> Stored<Replaced> {
        let of_its_id = self.connection(&new.id)?;
        let meant = match of_its_id {
            Some(old) => Some(old),
            None if says.names_id => None,
            None => self.meant_without_id(new)?,
        };
        let Some(old) = meant else {
            return Ok(Replaced::Made(self.create(new, now)?));
        };
        if let Err(refused) = judged(&old, new, says) {
            return Ok(refused);
        }
        let account = account_to_pin(&old, new);
        let connected = self.reconnect(&old.id, account, &new.tokens, replaced, now)?;
        Ok(Replaced::Replaced(connected))
    }

    fn meant_without_id(&self, new: &NewConnection) -> Stored<Option<Connection>> {
        let of_the_account = match &new.account {
            Some(account) => self.find(&new.app, &new.customer, account.id.as_str())?,
            None => None,
        };
        match of_the_account {
            Some(old) => Ok(Some(old)),
            None => match self.grant_holder(&new.id, &new.app, &new.tokens)? {
                Some(by) => self.connection(&by),
                None => Ok(None),
            },
        }
    }

    /// The old one ends before the new one begins: of both, only one may have the account and the grant.
    pub(super) fn supersede(
        &self,
        new: &NewConnection,
        retired: &Event,
        now: Timestamp,
    ) -> Stored<Connected> {
        let old = self.connection(&new.id)?;
        if old.as_ref().is_some_and(|old| !may_be_restored_as(old, new)) {
            return Ok(Connected::IdTaken);
        }
        let rival = match &new.account {
            Some(account) => self.live(&new.app, &new.customer, account.id.as_str(), &new.id)?,
            None => None,
        };
        // Looked at first: what is refused must not have ended anything.
        if let Some(by) = self.grant_holder(&new.id, &new.app, &new.tokens)?
            && rival.as_ref() != Some(&by)
        {
            return Ok(Connected::GrantTaken { by });
        }
        if let Some(rival) = rival {
            let state = RevocationState::of_retired(self.grant_of(&rival)?.is_some());
            self.end(&rival, state, Some(&new.id), retired, now)?;
        }
        match old {
            Some(_) => self.reconnect(&new.id, new.account.as_ref(), &new.tokens, &new.event, now),
            None => self.create(new, now),
        }
    }

    /// Rule 18: only over the version that was looked at, so of two processes that hold newer sets one restores. The fence
    /// grows as for a new grant: whoever redeemed under what was lost does so no more.
    pub(super) fn restore(
        &self,
        id: &ConnectionId,
        shown: Version,
        version: Version,
        tokens: &TokenSet,
        event: &Event,
        now: Timestamp,
    ) -> Stored<Option<Held>> {
        let sealed = self.seal(id, version, tokens);
        let restored = self
            .sql
            .prepare_cached(
                "UPDATE connections
                    SET status = 'active', status_reason = NULL, status_since = NULL,
                        version = :version, fence = fence + 1, attempts = '[]',
                        access_token = :access_token, refresh_token = :refresh_token,
                        refresh_token_fingerprint = :fingerprint, token_type = :token_type, scopes = :scopes,
                        issued_at = :issued_at, soft_end = :soft_end, hard_end = :hard_end, expires_at = :expires_at,
                        unproven = :unproven, updated_at = :now,
                        lease_holder = NULL, lease_boot = NULL, lease_until = NULL, lease_shown_until = NULL,
                        trouble_failed_at = NULL, trouble_code = NULL, trouble_failures = NULL,
                        trouble_next_attempt_at = NULL, cooldown_began_at = NULL, cooldown_ms = NULL, claimed_until = 0
                  WHERE id = :id AND version = :shown AND version < :version AND status <> 'disconnected'
                    AND NOT EXISTS (SELECT 1 FROM connections other
                                     WHERE other.app = connections.app AND other.id <> connections.id
                                       AND other.refresh_token_fingerprint = :fingerprint)",
            )?
            .execute(named_params! {
                ":id": id.as_str(),
                ":shown": shown.number(),
                ":version": version.number(),
                ":access_token": sealed.access_token,
                ":refresh_token": sealed.refresh_token,
                ":fingerprint": sealed.fingerprint,
                ":token_type": tokens.token_type,
                ":scopes": list(tokens.scopes.iter().map(String::as_str)),
                ":issued_at": tokens.issued_at.millis(),
                ":soft_end": tokens.ends.soft.millis(),
                ":hard_end": tokens.ends.hard.millis(),
                ":expires_at": tokens.ends.expires.millis(),
                ":unproven": tokens.unproven,
                ":now": now.millis(),
            })?;
        if restored == 0 {
            return Ok(None);
        }
        self.record_change(id, Before::Version(shown), event, now)?;
        self.held(id)
    }

    pub(super) fn patch(
        &self,
        id: &ConnectionId,
        customer: Option<&Customer>,
        labels: Option<&[(String, String)]>,
        now: Timestamp,
    ) -> Stored<Connected> {
        let Some(old) = self.connection(id)? else {
            return Ok(Connected::Missing);
        };
        if old.status.as_str() != "disconnected"
            && let (Some(customer), Some(account)) = (customer, &old.account)
            && let Some(by) = self.live(&old.app, customer, account.id.as_str(), id)?
        {
            return Ok(Connected::AccountTaken { by });
        }
        self.sql
            .prepare_cached(
                "UPDATE connections
                    SET customer = coalesce(?2, customer), labels = coalesce(?3, labels), updated_at = ?4
                  WHERE id = ?1",
            )?
            .execute(params![
                id.as_str(),
                customer.map(Customer::as_str),
                labels.map(label_list),
                now.millis(),
            ])?;
        // Other processes judge what a key may see by the customer that they remember.
        self.feed_connection(id)?;
        Ok(Connected::Stored(self.written(id)?))
    }

    /// The owner's word is final: version and fence grow, so that no answer on its way finds the row as it left it.
    pub(super) fn disconnect(
        &self,
        id: &ConnectionId,
        revoke: Revoke,
        superseded_by: Option<&ConnectionId>,
        event: &Event,
        now: Timestamp,
    ) -> Stored<Option<(Connection, RevocationState)>> {
        let Some(connection) = self.connection(id)? else {
            return Ok(None);
        };
        if let ConnectionStatus::Disconnected { .. } = connection.status {
            let state = self.revocation_state(id)?;
            return Ok(Some((connection, state)));
        }
        let shared = revoke == Revoke::Auto && self.shares_its_account(&connection)?;
        let state = match self.grant_of(id)? {
            Some(_) if shared => RevocationState::Shared,
            Some(token) if revoke != Revoke::Never => {
                self.queue_revocation(id, &connection.app, &token, now)?;
                RevocationState::Pending
            }
            _ => RevocationState::Unsupported,
        };
        self.end(id, state, superseded_by, event, now)?;
        Ok(self.connection(id)?.map(|connection| (connection, state)))
    }

    /// The refresh token that is to be revoked. What does not open cannot be, and must not keep its owner from leaving.
    fn grant_of(&self, id: &ConnectionId) -> Stored<Option<RefreshToken>> {
        match self.held(id) {
            Ok(held) => Ok(held
                .and_then(|held| held.tokens)
                .and_then(|tokens| tokens.refresh_token)),
            Err(error @ StoreError::Unreadable { .. }) => {
                tracing::warn!(connection.id = %id, %error, "a refresh token was erased without being revoked");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn end(
        &self,
        id: &ConnectionId,
        state: RevocationState,
        superseded_by: Option<&ConnectionId>,
        event: &Event,
        now: Timestamp,
    ) -> Stored<()> {
        self.sql
            .prepare_cached(
                "UPDATE connections
                    SET status = 'disconnected', status_reason = NULL, status_since = ?2, superseded_by = ?3,
                        revocation = ?4, version = version + 1, fence = fence + 1,
                        access_token = NULL, refresh_token = NULL, refresh_token_fingerprint = NULL, attempts = '[]',
                        lease_holder = NULL, lease_boot = NULL, lease_until = NULL, lease_shown_until = NULL,
                        trouble_failed_at = NULL, trouble_code = NULL, trouble_failures = NULL,
                        trouble_next_attempt_at = NULL, cooldown_began_at = NULL, cooldown_ms = NULL, updated_at = ?2
                  WHERE id = ?1",
            )?
            .execute(params![
                id.as_str(),
                now.millis(),
                superseded_by.map(ConnectionId::as_str),
                state.as_str(),
            ])?;
        self.record_change(id, Before::OneLess, event, now)
    }

    pub(super) fn purge(&self, id: &ConnectionId) -> Stored<()> {
        self.feed_connection(id)?;
        // Its history goes with it: the references say ON DELETE CASCADE.
        self.sql
            .prepare_cached("DELETE FROM connections WHERE id = ?1 AND status = 'disconnected'")?
            .execute([id.as_str()])?;
        self.sql
            .prepare_cached(
                "DELETE FROM writes
                  WHERE connection = ?1 AND NOT EXISTS (SELECT 1 FROM connections WHERE id = ?1)",
            )?
            .execute([id.as_str()])?;
        self.sql
            .prepare_cached(
                "DELETE FROM tallies
                  WHERE connection = ?1 AND NOT EXISTS (SELECT 1 FROM connections WHERE id = ?1)",
            )?
            .execute([id.as_str()])?;
        // What is still to be told is told.
        self.sql
            .prepare_cached(
                "DELETE FROM webhook_deliveries
                  WHERE connection = ?1 AND state <> 'pending'
                    AND NOT EXISTS (SELECT 1 FROM connections WHERE id = ?1)",
            )?
            .execute([id.as_str()])?;
        Ok(())
    }

    pub(super) fn find(
        &self,
        app: &AppName,
        customer: &Customer,
        account: &str,
    ) -> Stored<Option<Connection>> {
        let mut statement = self.sql.prepare_cached(&format!(
            "{SELECT_CONNECTION}
              WHERE c.app = ?1 AND c.customer = ?2 AND c.account_id = ?3 AND c.status <> 'disconnected'"
        ))?;
        let mut rows = statement.query(params![app.as_str(), customer.as_str(), account])?;
        rows.next()?.map(read_connection).transpose()
    }

    pub(super) fn list(&self, filter: &ConnectionFilter) -> Stored<Vec<Connection>> {
        let mut conditions = Conditions::default();
        conditions.one_of("c.app", filter.apps.iter().map(AppName::as_str));
        conditions.one_of("c.customer", filter.customers.iter().map(Customer::as_str));
        conditions.one_of("c.account_id", filter.accounts.iter().map(String::as_str));
        conditions.one_of("c.status", filter.statuses.iter().map(String::as_str));
        within(&filter.limits, &mut conditions);
        if let Some(asked) = &filter.healths {
            let lost = conditions.value(asked.now.before(asked.quiet_time).millis());
            let health = health(&lost, FIRST_ATTEMPT);
            conditions.one_of(
                &format!("({health})"),
                asked.any_of.iter().map(|health| health.as_str()),
            );
        }
        if let Some(q) = &filter.q {
            let q = conditions.value(q.to_ascii_lowercase());
            conditions.hold(format!(
                "(instr(lower(c.id), {q}) > 0 OR instr(lower(c.customer), {q}) > 0
                  OR instr(lower(c.account_id), {q}) > 0 OR instr(lower(c.account_domain), {q}) > 0)"
            ));
        }
        // As the indexes have it.
        let by = match filter.sort.by {
            SortBy::Created => "c.created_at",
            SortBy::Customer => "c.customer",
            SortBy::ExpiresAt => "c.expires_at",
            SortBy::LastCallAt => "coalesce(c.last_call_at, 0)",
            SortBy::StatusSince => "coalesce(c.status_since, 0)",
        };
        let (order, behind) = if filter.sort.descending {
            ("DESC", "<")
        } else {
            ("ASC", ">")
        };
        if let Some((key, id)) = &filter.after {
            let key = match key {
                SortKey::Time(at) => conditions.value(at.millis()),
                SortKey::Text(text) => conditions.value(text.clone()),
            };
            let id = conditions.value(id.as_str().to_owned());
            conditions.hold(format!("({by}, c.id) {behind} ({key}, {id})"));
        }
        let limit = conditions.value(filter.limit);
        let mut statement = self.sql.prepare(&format!(
            "{SELECT_CONNECTION}{} ORDER BY {by} {order}, c.id {order} LIMIT {limit}",
            conditions.clause()
        ))?;
        let mut rows = statement.query(conditions.values())?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(read_connection(row)?);
        }
        Ok(found)
    }

    /// Whether another live connection stands in the way. The unique indexes say the same again; this says which one.
    fn taken(
        &self,
        id: &ConnectionId,
        app: &AppName,
        customer: &Customer,
        account: Option<&Account>,
        tokens: &TokenSet,
    ) -> Stored<Option<Connected>> {
        if let Some(account) = account
            && let Some(by) = self.live(app, customer, account.id.as_str(), id)?
        {
            return Ok(Some(Connected::AccountTaken { by }));
        }
        Ok(self
            .grant_holder(id, app, tokens)?
            .map(|by| Connected::GrantTaken { by }))
    }

    /// The other connection of this app that holds this refresh token.
    pub(super) fn grant_holder(
        &self,
        id: &ConnectionId,
        app: &AppName,
        tokens: &TokenSet,
    ) -> Stored<Option<ConnectionId>> {
        let Some(token) = &tokens.refresh_token else {
            return Ok(None);
        };
        let mut statement = self.sql.prepare_cached(
            "SELECT id FROM connections WHERE app = ?1 AND refresh_token_fingerprint = ?2 AND id <> ?3",
        )?;
        let mut rows = statement.query(params![
            app.as_str(),
            fingerprint(&self.vault, token),
            id.as_str(),
        ])?;
        rows.next()?.map(|row| row.parsed("id")).transpose()
    }

    /// The live connection of an app, customer and account that is not this one.
    fn live(
        &self,
        app: &AppName,
        customer: &Customer,
        account: &str,
        other_than: &ConnectionId,
    ) -> Stored<Option<ConnectionId>> {
        let found = self.find(app, customer, account)?;
        Ok(found
            .map(|connection| connection.id)
            .filter(|id| id != other_than))
    }

    fn shares_its_account(&self, connection: &Connection) -> Stored<bool> {
        let Some(account) = &connection.account else {
            return Ok(false);
        };
        let others: Option<i64> = self.value(
            "SELECT 1 FROM connections
              WHERE app = ?1 AND account_id = ?2 AND status <> 'disconnected' AND id <> ?3 LIMIT 1",
            params![
                connection.app.as_str(),
                account.id.as_str(),
                connection.id.as_str()
            ],
        )?;
        Ok(others.is_some())
    }
}
