//! How a connection comes to be, is restored, and ends.

use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::connection::Account;
use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::redemption::DEADLINE;
use evergrant_domain::refresh_policy::lifetime_from_wire;
use evergrant_domain::token_answer::{Failure, Introspected, Issued, TokenAnswer, TokenFacts};
use evergrant_domain::{
    AccessToken, AccountId, App, AppName, AuthorizationCode, CodeVerifier, Connection, ConnectionId,
    ConnectionStatus, Customer, Kind, RefreshToken, Timestamp, TokenSet,
};
use evergrant_metrics::{Metrics, Source};
use evergrant_oauth::Introspect;
use evergrant_store::StoreError;
use evergrant_store::contract::{Connected, NewConnection, RecordSays, Replaced, RevocationState, Revoke};
use tokio::time::{Instant, timeout};

use crate::asker::Asker;
use crate::error::{ConnectError, KeepError};
use crate::gate::WaitedFor;
use crate::keeper::Keeper;

/// How long a static token is taken to serve: nothing says when it ends.
const FOR_EVER: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// A customer's consent, as it came back from the provider.
#[derive(Debug)]
pub struct Consent {
    /// The app that was consented to.
    pub app: AppName,
    /// For this customer. `None` for an install that nobody announced: the customer is named after the account that was
    /// chosen, `install:<account>`, so that installing again restores the same connection.
    pub customer: Option<Customer>,
    /// The connection to be made under this id, or to be restored. Without one, the customer's connection to the account
    /// that was chosen is restored where there is one.
    pub connection: Option<ConnectionId>,
    /// The code.
    pub code: AuthorizationCode,
    /// As it was in the authorization request.
    pub redirect_uri: String,
    /// RFC 7636, where it was used.
    pub code_verifier: Option<CodeVerifier>,
    /// What was asked for: what was granted, where the answer does not say (RFC 6749 §5.1).
    pub scopes: Vec<String>,
}

/// A connection whose tokens were issued elsewhere.
#[derive(Debug)]
pub struct Import {
    /// Its id; made where there is none.
    pub id: Option<ConnectionId>,
    /// The app that its tokens were issued to.
    pub app: AppName,
    /// The caller's reference.
    pub customer: Customer,
    /// Its tokens.
    pub tokens: ImportTokens,
    /// The account, where it is known; else one introspection pins it.
    pub account: Option<AccountId>,
    /// The caller's labels.
    pub labels: Vec<(String, String)>,
}

/// What an import brings.
#[derive(Debug)]
pub enum ImportTokens {
    /// A grant.
    OAuth {
        /// The refresh token.
        refresh_token: RefreshToken,
        /// The access token, where there is one. Without it, or without its end, the connection is due at once.
        access_token: Option<AccessToken>,
        /// When the access token ends.
        expires_at: Option<Timestamp>,
        /// What was granted; the app's scopes where nothing is said.
        scopes: Option<Vec<String>>,
    },
    /// A private-app token or service key.
    Static {
        /// The token.
        access_token: AccessToken,
    },
}

/// How a record is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImportTerms {
    /// What becomes of one that is here already.
    pub on_conflict: OnConflict,
    /// Whether the provider is asked first.
    pub verify: Verify,
}

/// What becomes of a record that is here already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnConflict {
    /// It is refused.
    #[default]
    Refuse,
    /// It replaces what is stored, where that ends before it.
    ReplaceOlder,
}

/// Whether the provider is asked about a record before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// Only for an account that the record does not name.
    #[default]
    No,
    /// Whether its refresh token lives, and whose it is: one introspection, in its turn among the app's exchanges.
    Yes,
}

/// What came of an import.
#[derive(Debug)]
pub enum Imported {
    /// There was none.
    Made(Connection),
    /// What was stored ended before.
    Replaced(Connection),
}

impl Keeper {
    /// Redeems an authorization code and stores what it brings: a new connection, or an old one restored in place.
    pub async fn consent(&self, consent: Consent) -> Result<Connection, ConnectError> {
        self.consent_for(Asker::CUSTOMER, consent).await
    }

    /// The same for somebody, whom the history names.
    pub async fn consent_for(&self, asker: Asker<'_>, consent: Consent) -> Result<Connection, ConnectError> {
        let app = self
            .configured(&consent.app)
            .map_err(|_| ConnectError::AppNotConfigured {
                app: consent.app.clone(),
            })?;
        self.be_on_time().await?;
        let sent_at = self.inner.clock.now();
        let issued = self.exchange(&app, &consent).await?;
        let facts = match self
            .introspect(&app, Introspect::Access(&issued.access_token))
            .await
        {
            Introspected::Active(facts) => *facts,
            // The tokens are in hand; what else the provider could tell about the account is not worth losing them.
            Introspected::Inactive | Introspected::ClientRefused(_) | Introspected::Unknown(_) => {
                TokenFacts::default()
            }
        };
        let account = account_of(&issued, &facts, consent.customer.as_ref())?;
        let customer = match consent.customer {
            Some(customer) => customer,
            None => {
                Customer::parse(&format!("install:{}", account.id)).map_err(|_| ConnectError::Invalid {
                    what: "the account cannot stand for a customer",
                })?
            }
        };
        let tokens = TokenSet {
            access_token: issued.access_token,
            refresh_token: issued.refresh_token,
            token_type: issued.token_type,
            scopes: issued.scopes.or(facts.scopes).unwrap_or(consent.scopes),
            issued_at: sent_at,
            ends: app.refresh_policy.ends(sent_at, issued.lifetime, self.jitter()),
            unproven: false,
        };
        self.connect(asker, &app, customer, consent.connection, account, tokens)
            .await
    }

    /// Takes over a connection whose tokens were issued elsewhere.
    pub async fn import(&self, import: Import) -> Result<Connection, ConnectError> {
        self.import_for(Asker::UNKNOWN, import).await
    }

    /// The same for somebody, whom the history names.
    pub async fn import_for(&self, asker: Asker<'_>, import: Import) -> Result<Connection, ConnectError> {
        match self.import_on(asker, import, ImportTerms::default()).await? {
            Imported::Made(connection) | Imported::Replaced(connection) => Ok(connection),
        }
    }

    /// Whether the provider says that a record's refresh token lives and is of the account that the record names. Stores nothing.
    pub async fn verify(&self, import: &Import) -> Result<(), ConnectError> {
        let app = self.app_of(import)?;
        self.be_on_time().await?;
        self.verified(&app, import).await.map(drop)
    }

    /// Takes over a connection whose tokens were issued elsewhere, on these terms.
    pub async fn import_on(
        &self,
        asker: Asker<'_>,
        import: Import,
        terms: ImportTerms,
    ) -> Result<Imported, ConnectError> {
        let app = self.app_of(&import)?;
        self.be_on_time().await?;
        let mut verified = match terms.verify {
            Verify::Yes => Some(self.verified(&app, &import).await?),
            Verify::No => None,
        };
        let names_id = import.id.is_some();
        let mut ends_at = None;
        let now = self.inner.clock.now();
        let jitter = self.jitter();
        let mut account = import.account.map(|id| Account {
            id,
            domain: None,
            user: None,
        });
        let (kind, tokens) = match import.tokens {
            ImportTokens::Static { access_token } => {
                require_sendable(access_token.expose())?;
                let tokens = TokenSet {
                    access_token,
                    refresh_token: None,
                    token_type: "bearer".to_owned(),
                    scopes: Vec::new(),
                    issued_at: now,
                    ends: app.refresh_policy.ends(now, FOR_EVER, jitter),
                    unproven: false,
                };
                (Kind::Static, tokens)
            }
            ImportTokens::OAuth {
                refresh_token,
                access_token,
                expires_at,
                scopes,
            } => {
                require_sendable(refresh_token.expose())?;
                if let Some(token) = &access_token {
                    require_sendable(token.expose())?;
                }
                let facts = match verified.take() {
                    Some(facts) => facts,
                    None if account.is_none() && app.provider.introspect_url.is_some() => {
                        self.facts_of(&app, &refresh_token).await?
                    }
                    None => TokenFacts::default(),
                };
                if let (None, Some(id)) = (&account, facts.account) {
                    account = Some(Account {
                        id,
                        domain: facts.domain,
                        user: facts.user,
                    });
                }
                // Without an access token, or without its end, it is due at once: its lifetime is nothing. An end that no token
                // has is taken for nonsense, as it would be from the provider.
                let lifetime = match (&access_token, expires_at) {
                    (Some(_), Some(expires_at)) if expires_at.since(now) >= Duration::from_secs(1) => {
                        lifetime_from_wire(Some(expires_at.since(now).as_secs_f64()))
                    }
                    _ => Duration::ZERO,
                };
                let ends = app.refresh_policy.ends(now, lifetime, jitter);
                ends_at = believed(access_token.as_ref(), expires_at, ends.expires);
                let tokens = TokenSet {
                    access_token: access_token.unwrap_or_else(|| AccessToken::new("")),
                    refresh_token: Some(refresh_token),
                    token_type: "bearer".to_owned(),
                    scopes: scopes.or(facts.scopes).unwrap_or_else(|| app.scopes.clone()),
                    issued_at: now,
                    ends,
                    unproven: false,
                };
                (Kind::OAuth, tokens)
            }
        };
        let new = NewConnection {
            id: import.id.unwrap_or_else(new_id),
            app: import.app,
            customer: import.customer,
            kind,
            account,
            tokens,
            labels: import.labels,
            event: Event::new(EventKind::Connected, "a record was imported").during(asker.circumstances()),
        };
        match terms.on_conflict {
            OnConflict::Refuse => {
                let made = self.inner.store.create(new, now).await?;
                announce(&self.inner.metrics, made, Source::Import).map(Imported::Made)
            }
            OnConflict::ReplaceOlder => {
                let says = RecordSays { names_id, ends_at };
                self.replace_older(asker, new, says, now).await
            }
        }
    }

    async fn replace_older(
        &self,
        asker: Asker<'_>,
        new: NewConnection,
        says: RecordSays,
        now: Timestamp,
    ) -> Result<Imported, ConnectError> {
        let event =
            Event::new(EventKind::Reconnected, "a newer record was imported").during(asker.circumstances());
        match self.inner.store.replace_older(new, says, event, now).await? {
            Replaced::Made(made) => announce(&self.inner.metrics, made, Source::Import).map(Imported::Made),
            Replaced::Replaced(replaced) => {
                // What this process holds of it is the older one.
                if let Connected::Stored(held) = &replaced {
                    self.inner.cache.forget(&held.connection.id);
                }
                announce(&self.inner.metrics, replaced, Source::Import).map(Imported::Replaced)
            }
            Replaced::NotOlder { by } => Err(ConnectError::NotNewer { by }),
            Replaced::UnderWay { by } => Err(ConnectError::RedemptionUnderWay { by }),
        }
    }

    fn app_of(&self, import: &Import) -> Result<Arc<App>, ConnectError> {
        self.configured(&import.app)
            .map_err(|_| ConnectError::AppNotConfigured {
                app: import.app.clone(),
            })
    }

    /// What the provider says of a record's grant, once it is its turn: after those who wait for a token.
    async fn verified(&self, app: &App, import: &Import) -> Result<TokenFacts, ConnectError> {
        let ImportTokens::OAuth { refresh_token, .. } = &import.tokens else {
            return Err(ConnectError::Invalid {
                what: "a static token cannot be verified: no provider says whether it lives",
            });
        };
        require_sendable(refresh_token.expose())?;
        if app.provider.introspect_url.is_none() {
            return Err(ConnectError::Invalid {
                what: "the record cannot be verified: the provider of its app introspects no tokens",
            });
        }
        let unverified = |code: &str| ConnectError::Unverified {
            code: code.to_owned(),
        };
        let id = import.id.clone().unwrap_or_else(new_id);
        let turn = timeout(DEADLINE, self.permit(&app.name, &id, &WaitedFor::default())).await;
        let _permit = turn
            .map_err(|_| unverified("overloaded"))?
            .map_err(|error| match error {
                KeepError::StoreUnavailable { .. } => unverified("store_unavailable"),
                _ => unverified("overloaded"),
            })?;
        let facts = match self.introspect(app, Introspect::Refresh(refresh_token)).await {
            Introspected::Active(facts) => *facts,
            Introspected::Inactive => return Err(ConnectError::GrantInactive),
            Introspected::ClientRefused(failure) => {
                return Err(ConnectError::AppCredentialsRejected {
                    app: app.name.clone(),
                    code: failure.code,
                });
            }
            Introspected::Unknown(failure) => return Err(unverified(&failure.code)),
        };
        match (&import.account, &facts.account) {
            (Some(named), Some(found)) if named != found => Err(ConnectError::RecordOfAnotherAccount {
                named: named.to_string(),
                found: found.to_string(),
            }),
            _ => Ok(facts),
        }
    }

    /// Ends a connection: its tokens are erased, its refresh token is revoked where that is asked for and possible.
    pub async fn disconnect(
        &self,
        id: &ConnectionId,
        revoke: Revoke,
    ) -> Result<(Connection, RevocationState), KeepError> {
        self.disconnect_for(Asker::UNKNOWN, id, revoke).await
    }

    /// The same for somebody, whom the history names.
    pub async fn disconnect_for(
        &self,
        asker: Asker<'_>,
        id: &ConnectionId,
        revoke: Revoke,
    ) -> Result<(Connection, RevocationState), KeepError> {
        let connection = self.inner.store.connection(id).await?.ok_or(KeepError::Unknown)?;
        let revokes = self
            .app(&connection.app)
            .is_some_and(|app| app.provider.revoke_url.is_some());
        let event =
            Event::new(EventKind::Disconnected, "its owner disconnected it").during(asker.circumstances());
        let ended = self
            .inner
            .store
            .disconnect(
                id,
                if revokes { revoke } else { Revoke::Never },
                None,
                event,
                self.inner.clock.now(),
            )
            .await?
            .ok_or(KeepError::Unknown)?;
        self.inner.cache.forget(id);
        if ended.1 == RevocationState::Pending {
            self.revoke_soon();
        }
        tracing::info!(event = "disconnected", connection_id = %id, app = %connection.app, "its owner disconnected it");
        Ok(ended)
    }

    async fn exchange(&self, app: &App, consent: &Consent) -> Result<Issued, ConnectError> {
        let deadline = Instant::now() + DEADLINE;
        let mut refused = Failure::without_answer("no_client_secret");
        for secret in self.secrets_in_order(app).await? {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = self
                .inner
                .endpoint
                .exchange_code(
                    app,
                    &secret,
                    &consent.code,
                    &consent.redirect_uri,
                    consent.code_verifier.as_ref(),
                    left,
                )
                .await;
            match answer {
                TokenAnswer::Issued(issued) => {
                    self.note_secret_that_worked(app, &secret).await;
                    return Ok(*issued);
                }
                // The client is judged before the code, so the code is not spent.
                TokenAnswer::ClientRefused(failure) => refused = failure,
                TokenAnswer::NotIssued(failure) | TokenAnswer::EndpointFault(failure) => {
                    return Err(ConnectError::ProviderUnavailable { code: failure.code });
                }
                TokenAnswer::Lost(_) => return Err(ConnectError::OutcomeLost),
                TokenAnswer::CodeRefused(failure)
                | TokenAnswer::GrantRefused(failure)
                | TokenAnswer::WrongClient(failure) => {
                    return Err(ConnectError::CodeRefused { code: failure.code });
                }
            }
        }
        self.reject_app(app, &refused).await?;
        Err(ConnectError::AppCredentialsRejected {
            app: app.name.clone(),
            code: refused.code,
        })
    }

    /// Restores the connection that is meant, or makes a new one. Where another live connection of the customer has the account
    /// that was chosen, that one is restored if none was named, and ends in favour of the one that was.
    async fn connect(
        &self,
        asker: Asker<'_>,
        app: &App,
        customer: Customer,
        named: Option<ConnectionId>,
        account: Account,
        tokens: TokenSet,
    ) -> Result<Connection, ConnectError> {
        /// Each time somebody else must have connected the same account in between.
        const TRIES: u32 = 4;
        let now = self.inner.clock.now();
        let mut tries = 1;
        loop {
            let existing = self
                .meant(asker, app, &customer, named.as_ref(), &account, now)
                .await?;
            let id = existing
                .as_ref()
                .or(named.as_ref())
                .cloned()
                .unwrap_or_else(new_id);
            let sight = self.inner.cache.sight(&id);
            let event = match existing {
                Some(_) => Event::new(EventKind::Reconnected, "the customer gave consent again"),
                None => Event::new(EventKind::Connected, "a customer gave consent"),
            }
            .during(asker.circumstances());
            let new = NewConnection {
                id: id.clone(),
                app: app.name.clone(),
                customer: customer.clone(),
                kind: Kind::OAuth,
                account: Some(account.clone()),
                tokens: tokens.clone(),
                labels: Vec::new(),
                event,
            };
            let mut connected = self.store_consent(existing.is_some(), new.clone(), now).await?;
            if let (Connected::AccountTaken { by }, Some(_)) = (&connected, &named) {
                let by = by.clone();
                connected = self
                    .inner
                    .store
                    .supersede(new, retired_for(&id).during(asker.circumstances()), now)
                    .await?;
                self.inner.cache.forget(&by);
                if matches!(connected, Connected::Stored(_)) {
                    tracing::info!(
                        event = "superseded",
                        connection_id = %by,
                        app = %app.name,
                        superseded_by = %id,
                        "another connection took its account over"
                    );
                }
            }
            if matches!(connected, Connected::AccountTaken { .. }) && tries < TRIES {
                tries += 1;
                continue;
            }
            // Rule 18: held from now on, used or not. Should the store lose it, nobody but the customer could give it again.
            match &connected {
                Connected::Stored(held) if let Ok(token) = self.usable(held) => {
                    self.inner.cache.keep(&token, sight);
                }
                _ => self.inner.cache.forget(&id),
            }
            return announce(&self.inner.metrics, connected, Source::Connect);
        }
    }

    async fn store_consent(
        &self,
        exists: bool,
        new: NewConnection,
        now: Timestamp,
    ) -> Result<Connected, StoreError> {
        let store = &self.inner.store;
        if exists {
            store
                .reconnect(&new.id, new.account, new.tokens, new.event, now)
                .await
        } else {
            store.create(new, now).await
        }
    }

    /// The connection that a consent restores, where there is one and the consent fits it.
    async fn meant(
        &self,
        asker: Asker<'_>,
        app: &App,
        customer: &Customer,
        named: Option<&ConnectionId>,
        account: &Account,
        now: Timestamp,
    ) -> Result<Option<ConnectionId>, ConnectError> {
        let store = &self.inner.store;
        let existing = match named {
            Some(id) => store.connection(id).await?,
            None => store.find(&app.name, customer, account.id.as_str()).await?,
        };
        let Some(existing) = existing else { return Ok(None) };
        if existing.app != app.name || existing.customer != *customer {
            return Err(ConnectError::IdTaken);
        }
        // A disconnected connection holds nothing any more: its customer may choose anew.
        let ended = matches!(existing.status, ConnectionStatus::Disconnected { .. });
        if let Some(pinned) = &existing.account
            && pinned.id != account.id
            && !ended
        {
            let shown = |account: &Account| account.domain.clone().unwrap_or_else(|| account.id.to_string());
            let (expected, got) = (shown(pinned), shown(account));
            let detail = format!(
                "consent was given for {got}, but the connection belongs to {expected}; nothing was changed"
            );
            let event = Event::new(EventKind::AccountMismatch, detail).during(asker.circumstances());
            store.note_event(&existing.id, event, now).await?;
            return Err(ConnectError::AccountMismatch { expected, got });
        }
        Ok(Some(existing.id))
    }

    async fn facts_of(&self, app: &App, refresh_token: &RefreshToken) -> Result<TokenFacts, ConnectError> {
        match self.introspect(app, Introspect::Refresh(refresh_token)).await {
            Introspected::Active(facts) => Ok(*facts),
            Introspected::Inactive => Err(ConnectError::GrantInactive),
            Introspected::ClientRefused(failure) => Err(ConnectError::AppCredentialsRejected {
                app: app.name.clone(),
                code: failure.code,
            }),
            // The account is pinned by the first refresh then.
            Introspected::Unknown(_) => Ok(TokenFacts::default()),
        }
    }
}

/// When a record says that its access token ends, where that is believed: `expires` is the end that it was given here.
fn believed(
    access_token: Option<&AccessToken>,
    says: Option<Timestamp>,
    expires: Timestamp,
) -> Option<Timestamp> {
    access_token?;
    // Lifetimes are whole seconds here; one that no token has was taken for another.
    says.filter(|says| says.since(expires) < Duration::from_secs(1))
}

fn retired_for(successor: &ConnectionId) -> Event {
    Event::new(
        EventKind::Disconnected,
        format!("connection {successor} took its account over: the customer installed the app again"),
    )
}

fn announce(metrics: &Metrics, connected: Connected, source: Source) -> Result<Connection, ConnectError> {
    match connected {
        Connected::Stored(held) => {
            let connection = held.connection;
            let series = metrics.of(&connection.app, &connection.id);
            series.here().token_set_stored(source);
            tracing::info!(
                event = "connected",
                connection_id = %connection.id,
                app = %connection.app,
                version = connection.version.number(),
                "a connection holds a grant"
            );
            Ok(connection)
        }
        Connected::IdTaken | Connected::Missing => Err(ConnectError::IdTaken),
        Connected::AccountTaken { by } => Err(ConnectError::AccountTaken { by }),
        Connected::GrantTaken { by } => Err(ConnectError::GrantTaken { by }),
    }
}

/// The account that was chosen: of the token answer or its `id_token`, then of the introspection; where none says it, the
/// customer's own reference identifies it.
fn account_of(
    issued: &Issued,
    facts: &TokenFacts,
    customer: Option<&Customer>,
) -> Result<Account, ConnectError> {
    let named = issued.account.clone().or_else(|| facts.account.clone());
    let id = named
        .or_else(|| AccountId::parse(customer?.as_str()).ok())
        .ok_or(ConnectError::Invalid {
            what: "neither the provider nor the customer names the account",
        })?;
    Ok(Account {
        id,
        domain: facts.domain.clone(),
        user: facts.user.clone(),
    })
}

/// RFC 6749 appendix A: a token is visible ASCII. Anything else could not be sent.
fn require_sendable(token: &str) -> Result<(), ConnectError> {
    if !token.is_empty() && token.bytes().all(|byte| (0x21..=0x7e).contains(&byte)) {
        Ok(())
    } else {
        Err(ConnectError::Invalid {
            what: "a token is one or more visible ASCII characters without spaces",
        })
    }
}

fn new_id() -> ConnectionId {
    ConnectionId::parse(&uuid::Uuid::now_v7().to_string()).expect("a UUID keeps the rules of ids")
}
