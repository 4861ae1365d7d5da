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
    let (before, now) = (text(&answer, "/version_before"), text(&answer, "/version"));
    match (answer["redeemed"].as_bool(), before == now) {
        (Some(true), _) => print_line(format_args!(
            "{id}: one refresh token redeemed, version {before} → {now}"
        )),
        (_, true) => print_line(format_args!(
            "{id}: nothing redeemed, version {now} is younger than a minute; --force redeems all the same"
        )),
        (_, false) => print_line(format_args!(
            "{id}: nothing redeemed, another worker had brought version {now} (was {before})"
        )),
    }
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
