//! The OAuth endpoints besides consent: token, introspection, revocation, in every version.
//!
//! Sources: HubSpot, OAuth API v1, v3, 2026-03; the error bodies are those since January 2026, or the older
//! ones when switched.

use std::sync::Arc;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::Shared;
use crate::answer::{self, Answer, Cut};
use crate::faults::{self, Circumstances, FaultKind, Place, Target};
use crate::serve::{Call, form_fields, is_form};
use crate::world::{AccessToken, Holder, Issued, Presented, World, hub_domain, hublet, user, user_id};

/// The versions that the routes exist in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// Switched off by HubSpot on 2027-02-16.
    V1,
    V3,
    /// 2026-03 and 2026-09.
    Dated,
}

impl Version {
    pub(crate) fn from_segment(segment: &str) -> Option<Self> {
        match segment {
            "v1" => Some(Self::V1),
            "v3" => Some(Self::V3),
            "2026-03" | "2026-09" => Some(Self::Dated),
            _ => None,
        }
    }
}

/// Why the token endpoint refuses. The names are HubSpot's `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    BadGrantType,
    BadClientId,
    BadClientSecret,
    BadAuthCode,
    ExpiredAuthCode,
    MismatchRedirectUriAuthCode,
    BadCodeVerifier,
    BadRefreshToken,
    MismatchRefreshTokenClient,
    BadHub,
    BadScopes,
}

impl Refusal {
    /// HubSpot's `status`.
    pub(crate) fn status(self) -> &'static str {
        match self {
            Self::BadGrantType => "BAD_GRANT_TYPE",
            Self::BadClientId => "BAD_CLIENT_ID",
            Self::BadClientSecret => "BAD_CLIENT_SECRET",
            Self::BadAuthCode => "BAD_AUTH_CODE",
            Self::ExpiredAuthCode => "EXPIRED_AUTH_CODE",
            Self::MismatchRedirectUriAuthCode => "MISMATCH_REDIRECT_URI_AUTH_CODE",
            Self::BadCodeVerifier => "BAD_CODE_VERIFIER",
            Self::BadRefreshToken => "BAD_REFRESH_TOKEN",
            Self::MismatchRefreshTokenClient => "MISMATCH_REFRESH_TOKEN_CLIENT",
            Self::BadHub => "BAD_HUB",
            Self::BadScopes => "BAD_SCOPES",
        }
    }

    /// RFC 6749 §5.2. Seen at HubSpot for `BAD_REFRESH_TOKEN`, `BAD_CLIENT_ID` and `BAD_HUB` only; the others
    /// are what the RFC would say.
    pub(crate) fn error(self) -> &'static str {
        match self {
            Self::BadGrantType => "unsupported_grant_type",
            Self::BadClientId | Self::BadClientSecret => "invalid_client",
            Self::BadAuthCode
            | Self::ExpiredAuthCode
            | Self::MismatchRedirectUriAuthCode
            | Self::BadCodeVerifier
            | Self::BadRefreshToken
            | Self::MismatchRefreshTokenClient => "invalid_grant",
            Self::BadHub => "access_denied",
            Self::BadScopes => "invalid_scope",
        }
    }

    pub(crate) fn message(self) -> &'static str {
        match self {
            Self::BadGrantType => "missing or unknown grant type",
            Self::BadClientId => "missing or unknown client id",
            Self::BadClientSecret => "missing or invalid client secret",
            Self::BadAuthCode => "missing or unknown auth code",
            Self::ExpiredAuthCode => "auth code is expired",
            Self::MismatchRedirectUriAuthCode => "redirect URI does not match initial auth code URI",
            Self::BadCodeVerifier => "missing or invalid code verifier",
            Self::BadRefreshToken => "refresh token is invalid, expired or revoked",
            Self::MismatchRefreshTokenClient => "refresh token was not issued to this client",
            Self::BadHub => "missing or unknown hub id",
            Self::BadScopes => "missing or invalid scopes",
        }
    }

    fn answer(self, world: &World, correlation_id: &str) -> Answer {
        if !world.settings.old_error_format {
            return Answer::json(
                StatusCode::BAD_REQUEST,
                &json!({
                    "error": self.error(),
                    "error_description": self.message(),
                    "status": self.status(),
                    "message": self.message(),
                }),
            );
        }
        let message = match self {
            Self::BadRefreshToken => "missing or invalid refresh token",
            _ => self.message(),
        };
        // Older reports have 403 for a hub that is gone.
        let status = if self == Self::BadHub {
            StatusCode::FORBIDDEN
        } else {
            StatusCode::BAD_REQUEST
        };
        Answer::json(
            status,
            &json!({"status": self.status(), "message": message, "correlationId": correlation_id}),
        )
    }
}

/// `POST /oauth/{version}/token`.
pub(crate) async fn token(shared: Arc<Shared>, call: Call, version: Version) -> Result<Answer, Cut> {
    if call.method != Method::POST {
        return Ok(method_not_allowed(&call));
    }
    let fields = Fields::of(&call, version);
    let now = shared.clock.now();
    let presentation;
    let fault;
    {
        let mut world = shared.world.lock();
        world.ledger.token_requests += 1;
        let presented = fields
            .get("refresh_token")
            .filter(|_| fields.get("grant_type") == Some("refresh_token"))
            .and_then(|token| world.refresh_token(token));
        let hub_id = presented
            .map(|token| token.hub_id)
            .or_else(|| fields.get("code").and_then(|code| world.hub_of_code(code)));
        let page = presented.map(|token| token.page);
        if let Some(page) = page {
            world.ledger.presentation_begins(page);
        }
        presentation = page.map(|page| Presentation {
            shared: shared.clone(),
            page,
        });
        fault = world.faults.meet(&Target {
            place: Place::Token,
            method: &call.method,
            path: &call.path,
            client_id: fields.get("client_id"),
            hub_id,
            token_valid: true,
            only_by_path: false,
        });
        world.ledger.faults_met += u64::from(fault.is_some());
    }
    let loses_answer = fault.as_ref().is_some_and(FaultKind::loses_answer);
    let circumstances = Circumstances {
        gate: &shared.gate,
        correlation_id: &call.correlation_id,
        now,
    };
    let answer = faults::under(fault, circumstances, || async {
        let mut world = shared.world.lock();
        match issue(&shared, &mut world, &fields) {
            Ok((issued, kind)) => {
                world.ledger.answers_lost += u64::from(loses_answer);
                Answer::json(StatusCode::OK, &token_answer(&issued, kind, version))
            }
            Err(refusal) => {
                if matches!(refusal, Refusal::BadClientId | Refusal::BadClientSecret) {
                    world.ledger.client_refusals += 1;
                }
                refusal.answer(&world, &call.correlation_id)
            }
        }
    })
    .await;
    drop(presentation);
    answer
}

/// `POST /oauth/{version}/token/introspect`, not in v1.
pub(crate) async fn introspect(shared: Arc<Shared>, call: Call) -> Result<Answer, Cut> {
    beside_token(shared, call, |shared, world, fields, correlation_id| {
        world.ledger.introspections += 1;
        let client_id = match authenticate(world, fields) {
            Ok(client_id) => client_id,
            Err(refusal) => return refusal.answer(world, correlation_id),
        };
        // HubSpot's specification says `token`, its guide `access_token` and `refresh_token`.
        let token = ["token", "access_token", "refresh_token"]
            .into_iter()
            .find_map(|name| fields.get(name));
        let known = token.and_then(|token| {
            describe_access_token(shared, world, token)
                .or_else(|| describe_refresh_token(shared, world, token))
        });
        let mut body = match known {
            // Another app's token is as unknown as none.
            Some(body) if body["client_id"] == client_id => body,
            _ => return Answer::json(StatusCode::OK, &json!({"active": false})),
        };
        body["active"] = json!(true);
        body["token_type"] = json!("Bearer");
        Answer::json(StatusCode::OK, &body)
    })
    .await
}

/// `POST /oauth/{version}/token/revoke`, not in v1: 200 whether or not the token is known.
///
/// Only refresh tokens can be revoked; the access tokens already issued live on to their expiry.
pub(crate) async fn revoke(shared: Arc<Shared>, call: Call) -> Result<Answer, Cut> {
    beside_token(shared, call, |_, world, fields, correlation_id| {
        world.ledger.revocations += 1;
        let client_id = match authenticate(world, fields) {
            Ok(client_id) => client_id,
            Err(refusal) => return refusal.answer(world, correlation_id),
        };
        let token = ["token", "refresh_token"]
            .into_iter()
            .find_map(|name| fields.get(name));
        if let Some(token) = token
            && world
                .refresh_token(token)
                .is_some_and(|token| token.client_id == client_id)
        {
            world.revoke_refresh_token(token);
        }
        Answer::empty(StatusCode::OK)
    })
    .await
}

/// `GET /oauth/v1/access-tokens/{token}`: no client credentials needed.
pub(crate) fn v1_access_token(shared: &Shared, call: &Call, token: &str) -> Answer {
    if call.method != Method::GET {
        return method_not_allowed(call);
    }
    let mut world = shared.world.lock();
    world.ledger.introspections += 1;
    let Some(described) = describe_access_token(shared, &world, token) else {
        return answer::not_found(&call.correlation_id);
    };
    let mut body = json!({"token_type": "access"});
    for key in [
        "token",
        "user",
        "hub_domain",
        "scopes",
        "signed_access_token",
        "hub_id",
        "app_id",
        "expires_in",
        "user_id",
        "is_private_distribution",
    ] {
        body[key] = described[key].clone();
    }
    Answer::json(StatusCode::OK, &body)
}

/// `GET` and `DELETE /oauth/v1/refresh-tokens/{token}`: no client credentials needed.
pub(crate) fn v1_refresh_token(shared: &Shared, call: &Call, token: &str) -> Answer {
    let mut world = shared.world.lock();
    if call.method == Method::DELETE {
        world.ledger.revocations += 1;
        world.revoke_refresh_token(token);
        return Answer::empty(StatusCode::NO_CONTENT);
    }
    if call.method != Method::GET {
        return method_not_allowed(call);
    }
    world.ledger.introspections += 1;
    let Some(described) = describe_refresh_token(shared, &world, token) else {
        return answer::not_found(&call.correlation_id);
    };
    let mut body = json!({"token_type": "refresh"});
    for key in [
        "token",
        "user",
        "hub_domain",
        "scopes",
        "hub_id",
        "client_id",
        "user_id",
    ] {
        body[key] = described[key].clone();
    }
    Answer::json(StatusCode::OK, &body)
}

/// The body of a token answer; also what the control API returns for a grant.
pub(crate) fn token_answer(issued: &Issued, kind: TokenUse, version: Version) -> Value {
    let mut body = json!({
        "token_type": "bearer",
        "access_token": issued.access_token,
        "expires_in": issued.expires_in.as_secs(),
    });
    if let Some(refresh_token) = &issued.refresh_token {
        body["refresh_token"] = json!(refresh_token);
    }
    if let Some(hub_id) = issued.hub_id {
        body["hub_id"] = json!(hub_id);
        body["scopes"] = json!(issued.scopes);
    }
    match kind {
        TokenUse::ClientCredentials => body["token_use"] = json!("client_credentials"),
        TokenUse::AccessToken if version == Version::Dated => body["token_use"] = json!("access_token"),
        TokenUse::AccessToken => {}
    }
    body
}

/// What an issued access token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenUse {
    /// An install of the app.
    AccessToken,
    /// The app itself.
    ClientCredentials,
}

/// The parameters of a token request.
struct Fields {
    fields: Vec<(String, String)>,
}

impl Fields {
    /// Reads the form. A body that is no form reads as empty, which HubSpot calls a bad grant type.
    /// v1 also takes parameters from the query string.
    fn of(call: &Call, version: Version) -> Self {
        let mut fields = if is_form(&call.headers) {
            form_fields(&call.body)
        } else {
            Vec::new()
        };
        if version == Version::V1 {
            fields.extend(call.query.iter().cloned());
        }
        Self { fields }
    }

    /// An empty value is a missing one.
    fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.fields.iter().find(|(key, _)| key == name)?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }
}

/// A refresh token on the table, until the answer is ready to leave.
struct Presentation {
    shared: Arc<Shared>,
    page: usize,
}

impl Drop for Presentation {
    fn drop(&mut self) {
        self.shared.world.lock().ledger.presentation_ends(self.page);
    }
}

fn issue(shared: &Shared, world: &mut World, fields: &Fields) -> Result<(Issued, TokenUse), Refusal> {
    let now = shared.clock.now();
    let grant_type = fields.get("grant_type").unwrap_or_default();
    if !["authorization_code", "refresh_token", "client_credentials"].contains(&grant_type) {
        return Err(Refusal::BadGrantType);
    }
    let client_id = authenticate(world, fields)?;
    match grant_type {
        "authorization_code" => {
            let code = fields.get("code").ok_or(Refusal::BadAuthCode)?;
            let redirect_uri = fields
                .get("redirect_uri")
                .ok_or(Refusal::MismatchRedirectUriAuthCode)?;
            let verifier = fields.get("code_verifier");
            let issued = world.exchange_code(now, &client_id, code, redirect_uri, verifier)?;
            Ok((issued, TokenUse::AccessToken))
        }
        "refresh_token" => {
            let refresh_token = fields.get("refresh_token").ok_or(Refusal::BadRefreshToken)?;
            Ok((
                world.redeem(now, &client_id, refresh_token)?,
                TokenUse::AccessToken,
            ))
        }
        _ => {
            let scopes = fields.get("scope").unwrap_or_default();
            let scopes = scopes.split_whitespace().map(str::to_owned).collect();
            Ok((
                world.client_credentials(now, &client_id, scopes)?,
                TokenUse::ClientCredentials,
            ))
        }
    }
}

fn authenticate(world: &World, fields: &Fields) -> Result<String, Refusal> {
    let client_id = fields.get("client_id").ok_or(Refusal::BadClientId)?;
    world.authenticate_client(client_id, fields.get("client_secret").unwrap_or_default())?;
    Ok(client_id.to_owned())
}

/// Introspection and revocation: form in, under the faults that name their path.
async fn beside_token(
    shared: Arc<Shared>,
    call: Call,
    execute: impl FnOnce(&Shared, &mut World, &Fields, &str) -> Answer,
) -> Result<Answer, Cut> {
    if call.method != Method::POST {
        return Ok(method_not_allowed(&call));
    }
    let fields = Fields::of(&call, Version::Dated);
    let fault = {
        let mut world = shared.world.lock();
        let fault = world.faults.meet(&Target {
            place: Place::Token,
            method: &call.method,
            path: &call.path,
            client_id: fields.get("client_id"),
            hub_id: None,
            token_valid: true,
            only_by_path: true,
        });
        world.ledger.faults_met += u64::from(fault.is_some());
        fault
    };
    let circumstances = Circumstances {
        gate: &shared.gate,
        correlation_id: &call.correlation_id,
        now: shared.clock.now(),
    };
    faults::under(fault, circumstances, || async {
        execute(&shared, &mut shared.world.lock(), &fields, &call.correlation_id)
    })
    .await
}

fn describe_access_token(shared: &Shared, world: &World, token: &str) -> Option<Value> {
    let now = shared.clock.now();
    let Presented::Valid(access_token) = world.access_token(now, token) else {
        return None;
    };
    let AccessToken {
        holder,
        scopes,
        expires_at,
        ..
    } = access_token;
    let expires_at = expires_at?;
    let client_id = holder.client_id()?;
    let app_id = world.apps.get(client_id).map_or(0, |app| app.app_id);
    let expires_in = (expires_at.as_millisecond() - now.as_millisecond()) / 1000;
    let mut body = json!({
        "token": token,
        "client_id": client_id,
        "app_id": app_id,
        "scopes": scopes,
        "expires_in": expires_in,
        "is_private_distribution": true,
        "token_use": "client_credentials",
    });
    if let Holder::Install { hub_id, .. } = holder {
        body["token_use"] = json!("access_token");
        describe_install(&mut body, hub_id);
        body["signed_access_token"] = json!({
            "expiresAt": expires_at.as_millisecond(), "scopes": "AAEC", "hubId": hub_id, "userId": user_id(hub_id),
            "appId": app_id, "signature": "c2lnbmF0dXJl", "scopeToScopeGroupPks": "AAEC",
            "newSignature": "bmV3LXNpZ25hdHVyZQ==", "hublet": hublet(hub_id), "trialScopes": "",
            "trialScopeToScopeGroupPks": "", "isUserLevel": false, "isPrivateDistribution": true,
            "isServiceAccount": false, "installingUserId": user_id(hub_id), "appInstallId": hub_id + app_id,
            "audience": "",
        });
    }
    Some(body)
}

fn describe_refresh_token(shared: &Shared, world: &World, token: &str) -> Option<Value> {
    if !world.refresh_token_is_usable(shared.clock.now(), token) {
        return None;
    }
    let refresh_token = world.refresh_token(token)?;
    let mut body = json!({
        "token": token,
        "client_id": refresh_token.client_id,
        "app_id": world.apps.get(&refresh_token.client_id).map_or(0, |app| app.app_id),
        "scopes": refresh_token.scopes,
        "token_use": "refresh_token",
    });
    describe_install(&mut body, refresh_token.hub_id);
    Some(body)
}

fn describe_install(body: &mut Value, hub_id: u64) {
    body["hub_id"] = json!(hub_id);
    body["user_id"] = json!(user_id(hub_id));
    body["user"] = json!(user(hub_id));
    body["hub_domain"] = json!(hub_domain(hub_id));
}

fn method_not_allowed(call: &Call) -> Answer {
    answer::api_error(
        StatusCode::METHOD_NOT_ALLOWED,
        "METHOD_NOT_ALLOWED",
        "this method is not allowed here",
        &call.correlation_id,
    )
}
