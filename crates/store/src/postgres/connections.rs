//! Connections made, restored, changed, disconnected and listed.

use evergrant_domain::connection::Account;
use evergrant_domain::event::Event;
use evergrant_domain::{
    AppName, Connection, ConnectionId, ConnectionStatus, Customer, RefreshToken, Timestamp, TokenSet, Version,
};

use super::conditions::Conditions;
use super::db::{Db, Failure, Told, Tried, recorded, storable, told};
use super::history::{FIRST_ATTEMPT, within};
use crate::contract::{
    Connected, ConnectionFilter, Held, NewConnection, RecordSays, Replaced, RevocationState, Revoke, SortBy,
    SortKey, StoreError,
};
use crate::record::{
    Before, Columns as _, SELECT_CONNECTION, SealedTokens, account_to_pin, fingerprint, health, judged,
    label_list, list, may_be_restored_as, read_connection, read_held,
};

impl Db {
    pub(super) async fn create(&self, new: &NewConnection, now: Timestamp) -> Tried<Connected> {
        if self.connection(&new.id).await?.is_some() {
            return Ok(Connected::IdTaken);
        }
        let account = new.account.as_ref();
        if let Some(taken) = self
            .taken(&new.id, &new.app, &new.customer, account, &new.tokens)
            .await?
        {
            return Ok(taken);
        }
        if let Some(account) = account {
            self.lock_account(account).await?;
        }
        let sealed = self.seal(&new.id, Version::FIRST, &new.tokens);
        self.execute(
            "INSERT INTO connections (
                 id, app, customer, kind, account_id, account_domain, account_user, status, version, fence,
                 access_token, refresh_token, refresh_token_fingerprint, token_type, scopes, issued_at,
                 soft_end, hard_end, expires_at, unproven, labels, created_at, connected_at, updated_at)
             VALUES (
                 $1, $2, $3, $4, $5, $6, $7, 'active', $8, 0,
                 $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $20, $20)",
            &[
                &new.id.as_str(),
                &new.app.as_str(),
                &new.customer.as_str(),
                &new.kind.as_str(),
                &account.map(|account| account.id.as_str()),
                &account
                    .and_then(|account| account.domain.as_deref())
                    .map(storable),
                &account.and_then(|account| account.user.as_deref()).map(storable),
                &Version::FIRST.number(),
                &sealed.access_token,
                &sealed.refresh_token,
                &sealed.fingerprint,
                &storable(&new.tokens.token_type),
                &list(new.tokens.scopes.iter().map(String::as_str)),
                &new.tokens.issued_at.millis(),
                &new.tokens.ends.soft.millis(),
                &new.tokens.ends.hard.millis(),
                &new.tokens.ends.expires.millis(),
                &new.tokens.unproven,
                &label_list(&new.labels),
                &now.millis(),
            ],
        )
        .await?;
        self.spare_from_revocation(&new.app, &new.tokens).await?;
        self.record_change(&new.id, Before::Nothing, &new.event, now)
            .await?;
        Ok(Connected::Stored(self.written(&new.id).await?))
    }

    /// Unconditional: version and fence grow, so whoever still redeems the old grant finds another version, and lease,
    /// intent, trouble and cooldown of the old grant are void.
    pub(super) async fn reconnect(
        &self,
        id: &ConnectionId,
        account: Option<&Account>,
        tokens: &TokenSet,
        event: &Event,
        now: Timestamp,
    ) -> Tried<Connected> {
        self.lock(id).await?;
        let Some(old) = self.connection(id).await? else {
            return Ok(Connected::Missing);
        };
        let account = account.or(old.account.as_ref());
        if let Some(taken) = self.taken(id, &old.app, &old.customer, account, tokens).await? {
            return Ok(taken);
        }
        if let Some(account) = account {
            self.lock_account(account).await?;
        }
        let version = old.version.next();
        let sealed = self.seal(id, version, tokens);
        self.execute(
            "UPDATE connections
                SET account_id = $2, account_domain = $3, account_user = $4,
                    status = 'active', status_reason = NULL, status_since = NULL, superseded_by = NULL,
                    revocation = NULL, version = $5, fence = fence + 1,
                    access_token = $6, refresh_token = $7, refresh_token_fingerprint = $8, token_type = $9, scopes = $10,
                    issued_at = $11, soft_end = $12, hard_end = $13, expires_at = $14,
                    unproven = $15, connected_at = $16, updated_at = $16, attempts = '[]',
                    lease_holder = NULL, lease_until = NULL, lease_shown_until = NULL,
                    trouble_failed_at = NULL, trouble_code = NULL, trouble_failures = NULL,
                    trouble_next_attempt_at = NULL, cooldown_began_at = NULL, cooldown_ms = NULL,
                    forced_at = NULL, claimed_until = 0
              WHERE id = $1",
            &[
                &id.as_str(),
                &account.map(|account| account.id.as_str()),
                &account.and_then(|account| account.domain.as_deref()).map(storable),
                &account.and_then(|account| account.user.as_deref()).map(storable),
                &version.number(),
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
                &now.millis(),
            ],
        )
        .await?;
        self.spare_from_revocation(&old.app, tokens).await?;
        self.record_change(id, Before::Version(old.version), event, now)
            .await?;
        Ok(Connected::Stored(self.written(id).await?))
    }

    /// Looked at under its row's lock and replaced in the same transaction: nobody redeems or lands in between.
    pub(super) async fn replace_older(
        &self,
        new: &NewConnection,
        says: RecordSays,
        replaced: &Event,
        now: Timestamp,
    ) -> Tried<Replaced> {
        let of_its_id = self.connection(&new.id).await?;
        let meant = match of_its_id {
            Some(old) => Some(old.id),
            None if says.names_id => None,
            None => self.meant_without_id(new).await?,
        };
        let Some(id) = meant else {
            return Ok(Replaced::Made(self.create(new, now).await?));
        };
        self.lock(&id).await?;
        // It may be another one by now, or purged.
        let Some(old) = self.connection(&id).await? else {
            return Ok(Replaced::Made(self.create(new, now).await?));
        };
        if let Err(refused) = judged(&old, new, says) {
            return Ok(refused);
        }
        let account = account_to_pin(&old, new);
        let connected = self
            .reconnect(&old.id, account, &new.tokens, replaced, now)
            .await?;
        Ok(Replaced::Replaced(connected))
    }

    async fn meant_without_id(&self, new: &NewConnection) -> Tried<Option<ConnectionId>> {
        let of_the_account = match &new.account {
            Some(account) => {
                self.live(&new.app, &new.customer, account.id.as_str(), &new.id)
                    .await?
            }
            None => None,
        };
        match of_the_account {
            Some(id) => Ok(Some(id)),
            None => self.grant_holder(&new.id, &new.app, &new.tokens).await,
        }
    }

    /// The old one ends before the new one begins: of both, only one may have the account and the grant. Those that take over the
    /// same account go one after another, each finding what the one before it left; both rows are locked before the account is, as
    /// everywhere.
    pub(super) async fn supersede(
        &self,
        new: &NewConnection,
        retired: &Event,
        now: Timestamp,
    ) -> Tried<Connected> {
        if let Some(account) = &new.account {
            let place = format!("{}\n{}\n{}", new.app, new.customer, account.id);
            self.row("SELECT pg_advisory_xact_lock(17752, hashtext($1))", &[&place])
                .await?;
        }
        self.lock(&new.id).await?;
        let old = self.connection(&new.id).await?;
        if old.as_ref().is_some_and(|old| !may_be_restored_as(old, new)) {
            return Ok(Connected::IdTaken);
        }
        let rival = match &new.account {
            Some(account) => {
                self.live(&new.app, &new.customer, account.id.as_str(), &new.id)
                    .await?
            }
            None => None,
        };
        // Looked at first: what is refused must not have ended anything.
        if let Some(by) = self.grant_holder(&new.id, &new.app, &new.tokens).await?
            && rival.as_ref() != Some(&by)
        {
            return Ok(Connected::GrantTaken { by });
        }
        if let Some(rival) = rival {
            self.lock(&rival).await?;
            // It may have ended while its row was waited for.
            let lives = self
                .connection(&rival)
                .await?
                .is_some_and(|rival| !matches!(rival.status, ConnectionStatus::Disconnected { .. }));
            if lives {
                let state = RevocationState::of_retired(self.grant_of(&rival).await?.is_some());
                self.end(&rival, state, Some(&new.id), retired, now).await?;
            }
        }
        let made = match old {
            Some(_) => {
                self.reconnect(&new.id, new.account.as_ref(), &new.tokens, &new.event, now)
                    .await?
            }
            None => self.create(new, now).await?,
        };
        match made {
            Connected::Stored(held) => Ok(Connected::Stored(held)),
            // Somebody else came between: nothing may have ended for what was not made.
            _ => Err(Failure::Again(StoreError::Unavailable {
                what: "another connection took the account at the same moment".into(),
                outcome_unknown: false,
            })),
        }
    }

    /// Rule 18: only over the version that was looked at, so of two processes that hold newer sets one restores. The fence
    /// grows as for a new grant: whoever redeemed under what was lost does so no more.
    pub(super) async fn restore(
        &self,
        id: &ConnectionId,
        shown: Version,
        version: Version,
        tokens: &TokenSet,
        event: &Event,
        now: Timestamp,
    ) -> Tried<Option<Held>> {
        let sealed = self.seal(id, version, tokens);
        let told = Told::new(event, &self.process)?;
        let restored = self
            .feed(
                concat!(
                    "WITH changed AS (
                         UPDATE connections c
                            SET status = 'active', status_reason = NULL, status_since = NULL,
                                version = $7, fence = fence + 1, attempts = '[]',
                                access_token = $8, refresh_token = $9, refresh_token_fingerprint = $10,
                                token_type = $11, scopes = $12,
                                issued_at = $13, soft_end = $14, hard_end = $15, expires_at = $16,
                                unproven = $17, updated_at = $2,
                                lease_holder = NULL, lease_until = NULL, lease_shown_until = NULL,
                                trouble_failed_at = NULL, trouble_code = NULL, trouble_failures = NULL,
                                trouble_next_attempt_at = NULL, cooldown_began_at = NULL, cooldown_ms = NULL,
                                claimed_until = 0
                          WHERE id = $1 AND version = $6 AND version < $7 AND status <> 'disconnected'
                            AND NOT EXISTS (SELECT 1 FROM connections other
                                             WHERE other.app = c.app AND other.id <> c.id
                                               AND other.refresh_token_fingerprint = $10)
                          RETURNING *), ",
                    recorded!("$6::bigint"),
                    " SELECT * FROM changed"
                ),
                &[
                    &id.as_str(),
                    &now.millis(),
                    &told.kind,
                    &told.detail,
                    &told.rest,
                    &shown.number(),
                    &version.number(),
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
                ],
            )
            .await?;
        Ok(restored
            .first()
            .map(|row| read_held(&self.vault, row))
            .transpose()?)
    }

    pub(super) async fn patch(
        &self,
        id: &ConnectionId,
        customer: Option<&Customer>,
        labels: Option<&[(String, String)]>,
        now: Timestamp,
    ) -> Tried<Connected> {
        self.lock(id).await?;
        let Some(old) = self.connection(id).await? else {
            return Ok(Connected::Missing);
        };
        if old.status.as_str() != "disconnected"
            && let (Some(customer), Some(account)) = (customer, &old.account)
            && let Some(by) = self.live(&old.app, customer, account.id.as_str(), id).await?
        {
            return Ok(Connected::AccountTaken { by });
        }
        self.execute(
            "UPDATE connections
                SET customer = coalesce($2, customer), labels = coalesce($3, labels), updated_at = $4
              WHERE id = $1",
            &[
                &id.as_str(),
                &customer.map(Customer::as_str),
                &labels.map(label_list),
                &now.millis(),
            ],
        )
        .await?;
        // Other processes judge what a key may see by the customer that they remember.
        self.feed_connection(id).await?;
        Ok(Connected::Stored(self.written(id).await?))
    }

    /// The owner's word is final: version and fence grow, so that no answer on its way finds the row as it left it.
    pub(super) async fn disconnect(
        &self,
        id: &ConnectionId,
        revoke: Revoke,
        superseded_by: Option<&ConnectionId>,
        event: &Event,
        now: Timestamp,
    ) -> Tried<Option<(Connection, RevocationState)>> {
        self.lock(id).await?;
        let Some(connection) = self.connection(id).await? else {
            return Ok(None);
        };
        if let ConnectionStatus::Disconnected { .. } = connection.status {
            let state = self.revocation_state(id).await?;
            return Ok(Some((connection, state)));
        }
        let shared = revoke == Revoke::Auto && self.shares_its_account(&connection).await?;
        let state = match self.grant_of(id).await? {
            Some(_) if shared => RevocationState::Shared,
            Some(token) if revoke != Revoke::Never => {
                self.queue_revocation(id, &connection.app, &token, now).await?;
                RevocationState::Pending
            }
            _ => RevocationState::Unsupported,
        };
        self.end(id, state, superseded_by, event, now).await?;
        Ok(self.connection(id).await?.map(|connection| (connection, state)))
    }

    /// The refresh token that is to be revoked. What does not open cannot be, and must not keep its owner from leaving.
    async fn grant_of(&self, id: &ConnectionId) -> Tried<Option<RefreshToken>> {
        match self.held(id).await {
            Ok(held) => Ok(held
                .and_then(|held| held.tokens)
                .and_then(|tokens| tokens.refresh_token)),
            Err(Failure::Final(error @ StoreError::Unreadable { .. })) => {
                tracing::warn!(connection.id = %id, %error, "a refresh token was erased without being revoked");
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }

    async fn end(
        &self,
        id: &ConnectionId,
        state: RevocationState,
        superseded_by: Option<&ConnectionId>,
        event: &Event,
        now: Timestamp,
    ) -> Tried<()> {
        self.execute(
            "UPDATE connections
                SET status = 'disconnected', status_reason = NULL, status_since = $2, superseded_by = $3,
                    revocation = $4, version = version + 1, fence = fence + 1,
                    access_token = NULL, refresh_token = NULL, refresh_token_fingerprint = NULL, attempts = '[]',
                    lease_holder = NULL, lease_until = NULL, lease_shown_until = NULL,
                    trouble_failed_at = NULL, trouble_code = NULL, trouble_failures = NULL,
                    trouble_next_attempt_at = NULL, cooldown_began_at = NULL, cooldown_ms = NULL, updated_at = $2
              WHERE id = $1",
            &[
                &id.as_str(),
                &now.millis(),
                &superseded_by.map(ConnectionId::as_str),
                &state.as_str(),
            ],
        )
        .await?;
        self.record_change(id, Before::OneLess, event, now).await
    }

    pub(super) async fn purge(&self, id: &ConnectionId) -> Tried<()> {
        self.feed_connection(id).await?;
        // Its history goes with it: the references say ON DELETE CASCADE.
        self.execute(
            "DELETE FROM connections WHERE id = $1 AND status = 'disconnected'",
            &[&id.as_str()],
        )
        .await?;
        self.execute(
            "DELETE FROM writes
              WHERE connection = $1 AND NOT EXISTS (SELECT 1 FROM connections WHERE id = $1)",
            &[&id.as_str()],
        )
        .await?;
        self.execute(
            "DELETE FROM tallies
              WHERE connection = $1 AND NOT EXISTS (SELECT 1 FROM connections WHERE id = $1)",
            &[&id.as_str()],
        )
        .await?;
        // What is still to be told is told.
        self.execute(
            "DELETE FROM webhook_deliveries
              WHERE connection = $1 AND state <> 'pending'
                AND NOT EXISTS (SELECT 1 FROM connections WHERE id = $1)",
            &[&id.as_str()],
        )
        .await?;
        // Whoever has it locked still leaves an empty row behind.
        self.execute(
            "DELETE FROM turns WHERE connection IN
                 (SELECT connection FROM turns WHERE connection = $1 FOR UPDATE SKIP LOCKED)",
            &[&id.as_str()],
        )
        .await?;
        Ok(())
    }

    pub(super) async fn find(
        &self,
        app: &AppName,
        customer: &Customer,
        account: &str,
    ) -> Tried<Option<Connection>> {
        let row = self
            .row(
                &format!(
                    "{SELECT_CONNECTION}
                      WHERE c.app = $1 AND c.customer = $2 AND c.account_id = $3 AND c.status <> 'disconnected'"
                ),
                &[&app.as_str(), &customer.as_str(), &account],
            )
            .await?;
        Ok(row.map(|row| read_connection(&row)).transpose()?)
    }

    pub(super) async fn list(&self, filter: &ConnectionFilter) -> Tried<Vec<Connection>> {
        let mut conditions = Conditions::default();
        conditions.one_of("c.app", filter.apps.iter().map(AppName::as_str));
        conditions.one_of("c.customer", filter.customers.iter().map(Customer::as_str));
        conditions.one_of("c.account_id", filter.accounts.iter().map(String::as_str));
        conditions.one_of("c.status", filter.statuses.iter().map(String::as_str));
        within(&filter.limits, &mut conditions);
        if let Some(asked) = &filter.healths {
            let lost = conditions.value(asked.now.before(asked.quiet_time).millis());
            let health = health(&format!("{lost}::bigint"), FIRST_ATTEMPT);
            conditions.one_of(
                &format!("({health})"),
                asked.any_of.iter().map(|health| health.as_str()),
            );
        }
        if let Some(q) = &filter.q {
            let q = conditions.value(storable(q).to_ascii_lowercase());
            // Looked through in one go: none of them holds a line's end.
            conditions.hold(format!(
                r#"strpos(lower(concat_ws(E'\n', c.id, c.customer, c.account_id, c.account_domain) COLLATE "C"), {q}::text) > 0"#
            ));
        }
        // As the indexes have it.
        let by = match filter.sort.by {
            SortBy::Created => "c.created_at",
            SortBy::Customer => r#"c.customer COLLATE "C""#,
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
                SortKey::Time(at) => format!("{}::bigint", conditions.value(at.millis())),
                SortKey::Text(text) => format!("{}::text", conditions.value(storable(text))),
            };
            let id = conditions.value(id.as_str().to_owned());
            conditions.hold(format!("({by}, c.id) {behind} ({key}, {id}::text)"));
        }
        let limit = conditions.value(i64::from(filter.limit));
        let rows = self
            .rows_once(
                &format!(
                    "{SELECT_CONNECTION}{} ORDER BY {by} {order}, c.id {order} LIMIT {limit}",
                    conditions.clause()
                ),
                &conditions.values(),
            )
            .await?;
        Ok(rows.iter().map(read_connection).collect::<Result<_, _>>()?)
    }

    /// Whether another live connection stands in the way. The unique indexes say the same again, also between two that come
    /// at once; this says which one.
    async fn taken(
        &self,
        id: &ConnectionId,
        app: &AppName,
        customer: &Customer,
        account: Option<&Account>,
        tokens: &TokenSet,
    ) -> Tried<Option<Connected>> {
        if let Some(account) = account
            && let Some(by) = self.live(app, customer, account.id.as_str(), id).await?
        {
            return Ok(Some(Connected::AccountTaken { by }));
        }
        let by = self.grant_holder(id, app, tokens).await?;
        Ok(by.map(|by| Connected::GrantTaken { by }))
    }

    /// The other connection of this app that holds this refresh token.
    pub(super) async fn grant_holder(
        &self,
        id: &ConnectionId,
        app: &AppName,
        tokens: &TokenSet,
    ) -> Tried<Option<ConnectionId>> {
        let Some(token) = &tokens.refresh_token else {
            return Ok(None);
        };
        let row = self
            .row(
                "SELECT id FROM connections WHERE app = $1 AND refresh_token_fingerprint = $2 AND id <> $3",
                &[&app.as_str(), &fingerprint(&self.vault, token), &id.as_str()],
            )
            .await?;
        Ok(row.map(|row| row.parsed("id")).transpose()?)
    }

    /// The live connection of an app, customer and account that is not this one.
    async fn live(
        &self,
        app: &AppName,
        customer: &Customer,
        account: &str,
        other_than: &ConnectionId,
    ) -> Tried<Option<ConnectionId>> {
        let found = self.find(app, customer, account).await?;
        Ok(found
            .map(|connection| connection.id)
            .filter(|id| id != other_than))
    }

    async fn shares_its_account(&self, connection: &Connection) -> Tried<bool> {
        let Some(account) = &connection.account else {
            return Ok(false);
        };
        self.lock_account(account).await?;
        let other = self
            .row(
                "SELECT 1 FROM connections
                  WHERE app = $1 AND account_id = $2 AND status <> 'disconnected' AND id <> $3 LIMIT 1",
                &[
                    &connection.app.as_str(),
                    &account.id.as_str(),
                    &connection.id.as_str(),
                ],
            )
            .await?;
        Ok(other.is_some())
    }

    /// Until this transaction ends, no other connection enters or leaves this account: of two that leave together, exactly
    /// one is the last, and its grant is revoked. Taken after the connection's own row, always.
    pub(super) async fn lock_account(&self, account: &Account) -> Tried<()> {
        self.row(
            "SELECT pg_advisory_xact_lock(17751, hashtext($1))",
            &[&account.id.as_str()],
        )
        .await?;
        Ok(())
    }

    /// Seals a token set for the version that it is stored with.
    pub(super) fn seal(&self, id: &ConnectionId, version: Version, tokens: &TokenSet) -> SealedTokens {
        SealedTokens::new(&self.vault, id, version, tokens)
    }
}
