//! `evergrant apps`: what is configured, and whether the provider accepts it.

use serde_json::{Value, json};

use crate::api::Api;
use crate::args::Apps;
use crate::failure::{Exit, Failure};
use crate::output::{Output, note, print_json, print_line, text};

pub(crate) async fn run(api: Api, apps: Apps, output: Output) -> Result<(), Failure> {
    match apps {
        Apps::List => list(&api, output).await,
        Apps::Check { app } => check(&api, app.as_str(), output).await,
    }
}

async fn list(api: &Api, output: Output) -> Result<(), Failure> {
    let answer = api.get("/v1/apps").await?;
    if output.json {
        return print_json(&answer);
    }
    let apps = answer["items"].as_array().map_or(&[][..], Vec::as_slice);
    if apps.is_empty() {
        note("There are no apps yet: add an [apps.NAME] section to the configuration.");
    }
    let row = |app: &Value| {
        [
            "/name",
            "/provider",
            "/health/status",
            "/redirect_uri",
            "/api_base",
            "/scopes",
        ]
        .map(|member| text(app, member))
    };
    let headings = ["APP", "PROVIDER", "HEALTH", "REDIRECT URI", "API", "SCOPES"];
    output.table(headings, apps.iter().map(row).collect())
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
