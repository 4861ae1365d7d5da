//! `POST /v1/connections`: a record that was connected elsewhere, or a code from an app that keeps its own callback.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};
use evergrant_domain::access::Role;
use evergrant_domain::connection::AgainstRecord;
use evergrant_domain::{
    AccessToken, AccountId, AppName, AuthorizationCode, CodeVerifier, Connection, ConnectionId, Customer,
    Kind, RefreshToken,
};
use evergrant_keeper::{
    ConnectError, Consent, Import, ImportTerms, ImportTokens, Imported, OnConflict, Verify,
};
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;

use crate::access::Caller;
use crate::api::connections::{read_customer, read_labels, taken};
use crate::input::{self, Query, parse_id, parse_time};
use crate::problem::{Code, Problem, ProblemView};
use crate::service::Shared;
use crate::views::Record;

/// A connection to be made: from tokens that were issued elsewhere (`refresh_token`, or `access_token` for a static one), or
/// from an authorization code (`code`).
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewConnection {
    app: String,
    /// Your own reference.
    customer: String,
    /// Made where there is none.
    id: Option<String>,
    /// `oauth` or `static`.
    kind: Option<String>,
    #[serde(default, deserialize_with = "secret")]
    #[schema(value_type = Option<String>, write_only)]
    refresh_token: Option<RefreshToken>,
    #[serde(default, deserialize_with = "secret")]
    #[schema(value_type = Option<String>, write_only)]
    access_token: Option<AccessToken>,
    /// When the access token ends. Without it the connection is due at once.
    expires_at: Option<String>,
    scopes: Option<Vec<String>>,
    /// The provider's account; without it one introspection pins it.
    #[schema(value_type = Option<String>)]
    account: Option<AccountText>,
    labels: Option<BTreeMap<String, String>>,
    #[serde(default, deserialize_with = "secret")]
    #[schema(value_type = Option<String>, write_only)]
    code: Option<AuthorizationCode>,
    /// As it was in the authorization request.
    redirect_uri: Option<String>,
    #[serde(default, deserialize_with = "secret")]
    #[schema(value_type = Option<String>, write_only)]
    code_verifier: Option<CodeVerifier>,
}

/// HubSpot's accounts are numbers, and callers keep them as such.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected text or a whole number")]
enum AccountText {
    Text(String),
    Number(u64),
}

/// A secret goes from the wire into its type: what holds it cannot be printed.
fn secret<'de, D: Deserializer<'de>, T: FromText>(deserializer: D) -> Result<Option<T>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?
        .filter(|text| !text.is_empty())
        .map(T::from_text))
}

trait FromText {
    fn from_text(text: String) -> Self;
}

macro_rules! from_text {
    ($($secret:ty),+) => {
        $(impl FromText for $secret {
            fn from_text(text: String) -> Self {
                Self::new(text)
            }
        })+
    };
}
from_text!(RefreshToken, AccessToken, AuthorizationCode, CodeVerifier);

/// The query of the route, read before its body.
pub(crate) struct Asked {
    dry_run: bool,
    terms: ImportTerms,
}

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let mut query = Query::parse(parts.uri.query());
        let dry_run = query.flag("dry_run")?;
        let verify = if query.flag("verify")? {
            Verify::Yes
        } else {
            Verify::No
        };
        let on_conflict = match query.one("on_conflict")?.as_deref() {
            None | Some("fail") => OnConflict::Refuse,
            Some("newer") => OnConflict::ReplaceOlder,
            Some(_) => return Err(Problem::bad_request("`on_conflict`: expected fail or newer")),
        };
        query.done().map(|()| Self {
            dry_run,
            terms: ImportTerms { on_conflict, verify },
        })
    }
}

/// Makes a connection.
///
/// With `dry_run=true` tokens are looked at and nothing is stored or asked: 204 where they would be taken, as far as that shows here.
///
/// With `verify=true` the provider is asked first, once and in its turn, whether the refresh token lives and is of the account that is
/// named; also with `dry_run`. With `on_conflict=newer` a connection that is here already gets the record's tokens (200) where those that
/// it holds end before: by `id`, else by app, customer and account, else by the grant. Otherwise nothing changes (409 `not_newer`).
///
/// Role: `tokens`.
#[utoipa::path(
    post, path = "/v1/connections", operation_id = "createConnection", tag = "connections", request_body = NewConnection,
    params(("dry_run" = Option<bool>, Query), ("verify" = Option<bool>, Query), ("on_conflict" = Option<String>, Query, description = "`fail` (the default) or `newer`.")),
    responses(
        (status = 200, body = Record, description = "It was here, with tokens that ended before."),
        (status = 201, body = Record), (status = 204, description = "It would be taken."),
        (status = "default", body = ProblemView<'_>, content_type = "application/problem+json")
    )
)]
pub(crate) async fn create(
    State(shared): State<Shared>,
    caller: Caller,
    Asked { dry_run, terms }: Asked,
    input::Json(new): input::Json<NewConnection>,
) -> Result<Response, Problem> {
    caller.require(Role::Tokens)?;
    let app = AppName::parse(&new.app).map_err(|error| Problem::bad_request(format!("`app`: {error}")))?;
    let customer = read_customer(&new.customer)?;
    let id = new.id.as_deref().map(parse_id).transpose()?;
    require_within(&shared, &caller, &app, &customer, id.as_ref())?;
    let work: Work = if new.code.is_some() {
        if terms != ImportTerms::default() {
            return Err(Problem::bad_request(
                "`verify` and `on_conflict` do not go with `code`",
            ));
        }
        Work::Consent(new.consent(app, customer, id)?)
    } else {
        Work::Import(new.import(app, customer, id)?)
    };
    if dry_run {
        return look(&shared, &caller, &work, terms).await;
    }
    let made = {
        let (shared, caller) = (shared.clone(), caller.clone());
        async move {
            match work {
                Work::Consent(consent) => {
                    let made = shared.keeper().consent_for(caller.asked(), consent).await;
                    made.map(Imported::Made)
                }
                Work::Import(import) => shared.keeper().import_on(caller.asked(), import, terms).await,
            }
        }
    };
    match shared
        .to_the_end::<Result<Imported, ConnectError>, _>(made)
        .await?
    {
        Ok(Imported::Made(connection)) => {
            let record = Json(shared.record(connection));
            Ok((StatusCode::CREATED, record).into_response())
        }
        Ok(Imported::Replaced(connection)) => Ok(Json(shared.record(connection)).into_response()),
        Err(ConnectError::AccountTaken { by }) => Err(taken(&shared, &caller, Code::AccountTaken, &by).await),
        Err(ConnectError::GrantTaken { by }) => Err(taken(&shared, &caller, Code::GrantTaken, &by).await),
        Err(ConnectError::NotNewer { by }) => Err(taken(&shared, &caller, Code::NotNewer, &by).await),
        Err(error) => Err(error.into()),
    }
}

/// Whether a record would be taken. Whether its grant is held already shows only when it is, and whether the provider knows it only
/// where that is asked for.
async fn look(
    shared: &Shared,
    caller: &Caller,
    work: &Work,
    terms: ImportTerms,
) -> Result<Response, Problem> {
    let Work::Import(import) = work else {
        return Err(Problem::bad_request(
            "`dry_run` does not go with `code`: it would be spent",
        ));
    };
    if terms.verify == Verify::Yes {
        shared.keeper().verify(import).await?;
    }
    let store = shared.keeper().store();
    if let Some(id) = &import.id
        && let Some(held) = store.connection(id).await?
    {
        return match terms.on_conflict {
            OnConflict::Refuse => Err(taken(shared, caller, Code::IdTaken, id).await),
            OnConflict::ReplaceOlder => compare(shared, caller, import, &held).await,
        };
    }
    if let Some(account) = &import.account {
        let held = store
            .find(&import.app, &import.customer, account.as_str())
            .await?;
        match held {
            None => {}
            Some(held) if terms.on_conflict == OnConflict::ReplaceOlder && import.id.is_none() => {
                return compare(shared, caller, import, &held).await;
            }
            Some(held) => return Err(taken(shared, caller, Code::AccountTaken, &held.id).await),
        }
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Whether a record would replace what this connection holds.
async fn compare(
    shared: &Shared,
    caller: &Caller,
    import: &Import,
    held: &Connection,
) -> Result<Response, Problem> {
    let ends_at = match &import.tokens {
        ImportTokens::OAuth {
            access_token: Some(_),
            expires_at,
            ..
        } => *expires_at,
        ImportTokens::OAuth { .. } | ImportTokens::Static { .. } => None,
    };
    let is_another_account = match (&held.account, &import.account) {
        (Some(pinned), Some(named)) => pinned.id != *named,
        _ => false,
    };
    if held.app != import.app || held.customer != import.customer || is_another_account {
        return Err(taken(shared, caller, Code::IdTaken, &held.id).await);
    }
    match held.against_record(ends_at) {
        AgainstRecord::Older => Ok(StatusCode::NO_CONTENT.into_response()),
        AgainstRecord::NotOlder => Err(taken(shared, caller, Code::NotNewer, &held.id).await),
        AgainstRecord::UnderWay => Err(ConnectError::RedemptionUnderWay { by: held.id.clone() }.into()),
        AgainstRecord::Closed => Err(taken(shared, caller, Code::IdTaken, &held.id).await),
    }
}

enum Work {
    Consent(Consent),
    Import(Import),
}

/// Whether a key may make this connection. An app outside its limits looks like one that does not exist.
pub(crate) fn require_within(
    shared: &Shared,
    caller: &Caller,
    app: &AppName,
    customer: &Customer,
    id: Option<&ConnectionId>,
) -> Result<(), Problem> {
    if !caller.sees_app(app) || shared.keeper().app(app).is_none() {
        return Err(Problem::new(Code::UnknownApp));
    }
    if caller.sees_parts(app, customer, id) {
        Ok(())
    } else {
        Err(Problem::because(
            Code::Forbidden,
            "the key is limited to other customers or connections than this one",
        ))
    }
}

impl NewConnection {
    fn consent(self, app: AppName, customer: Customer, id: Option<ConnectionId>) -> Result<Consent, Problem> {
        let Self {
            code,
            redirect_uri,
            code_verifier,
            ..
        } = self;
        let foreign = [
            ("kind", self.kind.is_some()),
            ("refresh_token", self.refresh_token.is_some()),
            ("access_token", self.access_token.is_some()),
            ("expires_at", self.expires_at.is_some()),
            ("account", self.account.is_some()),
            ("labels", self.labels.is_some()),
        ];
        if let Some((member, _)) = foreign.into_iter().find(|(_, is_there)| *is_there) {
            return Err(Problem::bad_request(format!(
                "`{member}` does not go with `code`"
            )));
        }
        Ok(Consent {
            app,
            customer: Some(customer),
            connection: id,
            code: code.ok_or_else(|| Problem::bad_request("missing field `code`"))?,
            redirect_uri: redirect_uri
                .ok_or_else(|| Problem::bad_request("missing field `redirect_uri`: it goes with `code`"))?,
            code_verifier,
            scopes: self.scopes.unwrap_or_default(),
        })
    }

    fn import(self, app: AppName, customer: Customer, id: Option<ConnectionId>) -> Result<Import, Problem> {
        if self.redirect_uri.is_some() || self.code_verifier.is_some() {
            return Err(Problem::bad_request(
                "`redirect_uri` and `code_verifier` go with `code`",
            ));
        }
        let kind = match self.kind.as_deref() {
            None => Kind::OAuth,
            Some(word) => Kind::from_word(word)
                .ok_or_else(|| Problem::bad_request("`kind`: expected oauth or static"))?,
        };
        let tokens = match kind {
            Kind::OAuth => ImportTokens::OAuth {
                refresh_token: self
                    .refresh_token
                    .ok_or_else(|| Problem::bad_request("missing field `refresh_token` (or `code`)"))?,
                access_token: self.access_token,
                expires_at: self
                    .expires_at
                    .as_deref()
                    .map(|text| parse_time("expires_at", text))
                    .transpose()?,
                scopes: self.scopes,
            },
            Kind::Static => {
                if self.refresh_token.is_some() {
                    return Err(Problem::bad_request(
                        "`refresh_token` does not go with `kind` static",
                    ));
                }
                ImportTokens::Static {
                    access_token: self
                        .access_token
                        .ok_or_else(|| Problem::bad_request("missing field `access_token`"))?,
                }
            }
        };
        let account = match self.account {
            None => None,
            Some(AccountText::Number(number)) => Some(number.to_string()),
            Some(AccountText::Text(text)) => Some(text),
        };
        let account = account
            .map(|text| AccountId::parse(&text))
            .transpose()
            .map_err(|error| Problem::bad_request(format!("`account`: {error}")))?;
        let labels = self.labels.map(read_labels).transpose()?.unwrap_or_default();
        Ok(Import {
            id,
            app,
            customer,
            tokens,
            account,
            labels,
        })
    }
}
