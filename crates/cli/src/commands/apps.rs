//! `evergrant apps`: what is configured, and whether the provider accepts it.

use serde_json::{Value, json};

use crate::api::Api;
use crate::args::Apps;
use crate::failure::{Exit, Failure};
use crate::output::{Output, Tone, note, print_json, print_line, text};

pub(crate) async fn run(api: Api, apps: Apps, output: Output) -> Result<(), Failure> {
    match apps {
        Apps::List => list(&api, output).await,
        Apps::Check { app } => check(&api, app.as_str(), output).await,
    }
}

async fn list(api: &Api, output: Output) -> Result<(), Failure> {
    let answer = api.list("/v1/apps", &[]).await?;
    if output.json {
        return print_json(&answer);
    }
    let apps = answer["items"].as_array().map_or(&[][..], Vec::as_slice);
    if apps.is_empty() {
        note("There are no apps yet: add an [apps.NAME] section to the configuration.");
    }
    if output.is_terminal {
        // URIs are there to be copied: a table would break them.
        return apps.iter().try_for_each(|app| show(app, output));
    }
    let row = |app: &Value| COLUMNS.map(|(_, member)| text(app, member));
    output.table(
        COLUMNS.map(|(heading, _)| heading),
        apps.iter().map(row).collect(),
    )
}

/// New columns come last: what reads the lines counts them.
const COLUMNS: [(&str, &str); 10] = [
    ("APP", "/name"),
    ("PROVIDER", "/provider"),
    ("HEALTH", "/health/status"),
    ("REDIRECT URI", "/redirect_uri"),
    ("API", "/api_base"),
    ("SCOPES", "/scopes"),
    ("CONSENT PAGE", "/authorize_url"),
    ("TOKEN ENDPOINT", "/token_url"),
    ("INTROSPECTION", "/introspect_url"),
    ("REVOCATION", "/revoke_url"),
];

fn show(app: &Value, output: Output) -> Result<(), Failure> {
    let member = |pointer: &str| text(app, pointer);
    print_line(output.paint(Tone::Strong, &member("/name")))?;
    output.fields(&[
        ("provider", member("/provider")),
        ("health", member("/health/status")),
        ("since", member("/health/since")),
        ("redirect URI", member("/redirect_uri")),
        ("install URL", member("/install_url")),
        ("client id", member("/client_id")),
        ("consent page", member("/authorize_url")),
        ("token endpoint", member("/token_url")),
        ("introspection", member("/introspect_url")),
        ("revocation", member("/revoke_url")),
        ("API", member("/api_base")),
        ("scopes", member("/scopes")),
        ("optional scopes", member("/optional_scopes")),
    ])?;
    print_line("")
}

async fn check(api: &Api, app: &str, output: Output) -> Result<(), Failure> {
    let answer = api.post(&format!("/v1/apps/{app}/check"), &json!({})).await?;
    if output.json {
        print_json(&answer)?;
    }
    let code = text(&answer, "/code");
    match text(&answer, "/result").as_str() {
        "accepted" if output.json => Ok(()),
        "accepted" => print_line(format_args!("{app}: the provider accepts the app's credentials")),
        "refused" => Err(Failure::new(
            Exit::AppCredentials,
            format!("{app}: the provider refuses the app's credentials ({code})"),
        )
        .advise("Correct client_id and client_secret in the configuration.")),
        _ => Err(Failure::new(
            Exit::Unavailable,
            format!("{app}: the provider did not say ({code})"),
        )
        .advise("Try again later; check the app's addresses in the configuration.")),
    }
}
