//! `evergrant connections`: looked at, taken over and ended.

use serde_json::Value;

use crate::api::Api;
use crate::args::{Connections, Disconnect, Filters};
use crate::commands::records;
use crate::failure::Failure;
use crate::output::{Output, note, print_json, print_line, text};

pub(crate) async fn run(api: Api, connections: Connections, output: Output) -> Result<(), Failure> {
    match connections {
        Connections::List(filters) => list(&api, &filters, output).await,
        Connections::Show { id } => {
            let record = api.get(&format!("/v1/connections/{id}")).await?;
            if output.json {
                print_json(&record)
            } else {
                show(&record, output)
            }
        }
        Connections::Import(import) => records::import(&api, &import, output).await,
        Connections::Export(export) => records::export(&api, &export, output).await,
        Connections::Disconnect(disconnect) => end(&api, &disconnect, output).await,
    }
}

async fn list(api: &Api, filters: &Filters, output: Output) -> Result<(), Failure> {
    let mut query = Vec::new();
    query.extend(filters.app.iter().map(|app| ("app", app.as_str())));
    query.extend(
        filters
            .customer
            .iter()
            .map(|customer| ("customer", customer.as_str())),
    );
    query.extend(
        filters
            .account
            .iter()
            .map(|account| ("account", account.as_str())),
    );
    query.extend(filters.status.iter().map(|status| ("status", status.as_str())));
    query.extend(filters.health.iter().map(|health| ("health", health.as_str())));
    query.extend(filters.query.iter().map(|part| ("q", part.as_str())));
    let answer = api.list("/v1/connections", &query).await?;
    if output.json {
        return print_json(&answer);
    }
    let records = answer["items"].as_array().map_or(&[][..], Vec::as_slice);
    if records.is_empty() {
        note("There are no such connections.");
    }
    let row = |record: &Value| {
        let health = text(record, "/health");
        let health = if health.is_empty() {
            text(record, "/status")
        } else {
            health
        };
        let [id, app, customer, account, expires, seen] = [
            "/id",
            "/app",
            "/customer",
            "/account/id",
            "/expires_at",
            "/last_success_at",
        ]
        .map(|member| text(record, member));
        [id, app, customer, account, health, expires, seen]
    };
    let headings = [
        "ID",
        "APP",
        "CUSTOMER",
        "ACCOUNT",
        "HEALTH",
        "TOKEN EXPIRES",
        "LAST SUCCESS",
    ];
    output.table(headings, records.iter().map(row).collect())
}

/// Prints a record.
pub(crate) fn show(record: &Value, output: Output) -> Result<(), Failure> {
    let member = |pointer: &str| text(record, pointer);
    let with = |text: String, addition: String| match addition.as_str() {
        "" => text,
        addition => format!("{text} ({addition})"),
    };
    output.fields(&[
        ("id", member("/id")),
        ("app", member("/app")),
        ("customer", member("/customer")),
        ("kind", member("/kind")),
        ("account", with(member("/account/id"), member("/account/domain"))),
        ("installed by", member("/account/user")),
        ("status", member("/status")),
        ("reason", member("/status_reason")),
        ("since", member("/status_since")),
        ("health", member("/health")),
        ("why", member("/why")),
        ("scopes", member("/scopes")),
        ("missing scopes", member("/missing_scopes")),
        ("version", member("/version")),
        ("token expires", member("/expires_at")),
        ("last call", member("/last_call_at")),
        ("last success", member("/last_success_at")),
        ("last refresh", member("/last_refresh_at")),
        (
            "refresh failed",
            with(
                member("/last_refresh_error/at"),
                member("/last_refresh_error/code"),
            ),
        ),
        ("last 401", member("/last_401_at")),
        ("last 403", member("/last_403_at")),
        ("last 429", member("/last_429_at")),
        ("reconnect at", member("/reconnect_url")),
    ])
}

async fn end(api: &Api, disconnect: &Disconnect, output: Output) -> Result<(), Failure> {
    let Disconnect { id, revoke, purge } = disconnect;
    let answer = api
        .delete(&format!(
            "/v1/connections/{id}?revoke={}&purge={purge}",
            revoke.as_str()
        ))
        .await?;
    if output.json {
        return print_json(&answer);
    }
    let revocation = match text(&answer, "/revocation").as_str() {
        "pending" => "the provider is being told to forget the grant",
        "done" => "the provider has forgotten the grant",
        "unsupported" if revoke.as_str() == "never" => {
            "the provider was not told, as you asked; its side of the grant lives on"
        }
        "unsupported" => "the provider has no way to be told; its side of the grant may live on",
        "shared" => "the grant lives on at the provider: another connection has this app and account",
        _ => "the provider was not told",
    };
    print_line(format_args!(
        "{id} is disconnected: its tokens are erased here, {revocation}"
    ))?;
    match text(&answer, "/access_tokens_valid_until").as_str() {
        "" => Ok(()),
        until => print_line(format_args!(
            "Access tokens that were handed out may work until {until}."
        )),
    }
}
