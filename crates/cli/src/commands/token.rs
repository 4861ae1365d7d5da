//! `evergrant token`, `refresh` and `reconnect`: what one connection is asked for.

use serde_json::json;

use crate::api::Api;
use crate::args::{Reconnect, Refresh, Token};
use crate::failure::Failure;
use crate::output::{Output, print_json, print_line, text};

/// The one command that prints an access token.
pub(crate) async fn token(api: Api, token: Token, output: Output) -> Result<(), Failure> {
    let query = token
        .min_ttl
        .map(|seconds| format!("?min_ttl={seconds}"))
        .unwrap_or_default();
    let answer = api
        .get(&format!("/v1/connections/{}/token{query}", token.id))
        .await?;
    if output.json {
        print_json(&answer)
    } else {
        print_line(text(&answer, "/access_token"))
    }
}

pub(crate) async fn refresh(api: Api, refresh: Refresh, output: Output) -> Result<(), Failure> {
    let Refresh { id, force } = refresh;
    let answer = api
        .post(&format!("/v1/connections/{id}/refresh"), &json!({"force": force}))
        .await?;
    if output.json {
        return print_json(&answer);
    }
    let [before, now, why] = ["/version_before", "/version", "/why"].map(|member| text(&answer, member));
    if answer["redeemed"].as_bool() == Some(true) {
        return print_line(format_args!(
            "{id}: one refresh token redeemed, version {before} → {now}"
        ));
    }
    let why = if why.is_empty() { "nobody said why" } else { &why };
    print_line(format_args!("{id}: nothing redeemed, version {now} stays: {why}"))
}

pub(crate) async fn reconnect(api: Api, reconnect: Reconnect, output: Output) -> Result<(), Failure> {
    let wish = match reconnect.days {
        Some(days) => json!({"expires_in": u32::from(days) * 24 * 3600}),
        None => json!({}),
    };
    let answer = api
        .post(&format!("/v1/connections/{}/reconnect-link", reconnect.id), &wish)
        .await?;
    if output.json {
        print_json(&answer)
    } else {
        print_line(text(&answer, "/url"))
    }
}
