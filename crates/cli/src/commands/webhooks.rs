//! `evergrant webhooks`.

use serde_json::{Value, json};

use crate::api::Api;
use crate::args::Webhooks;
use crate::failure::Failure;
use crate::output::{Output, note, print_json, print_line, text};

pub(crate) async fn run(api: Api, webhooks: Webhooks, output: Output) -> Result<(), Failure> {
    match webhooks {
        Webhooks::List { state, connection } => {
            let states = state.iter().map(|state| ("state", state.as_str()));
            let connections = connection.iter().map(|id| ("connection", id.as_str()));
            let asked: Vec<_> = states.chain(connections).collect();
            list(&api, &asked, output).await
        }
        Webhooks::Resend { id } => resend(&api, &id, output).await,
        Webhooks::SendTest => send_test(&api, output).await,
    }
}

async fn list(api: &Api, asked: &[(&str, &str)], output: Output) -> Result<(), Failure> {
    let answer = api.list("/v1/webhooks/deliveries", asked).await?;
    if output.json {
        return print_json(&answer);
    }
    let row = |delivery: &Value| {
        let members = [
            "/id",
            "/at",
            "/type",
            "/connection",
            "/state",
            "/tries",
            "/last_error",
            "/url",
        ];
        members.map(|member| text(delivery, member))
    };
    let deliveries = answer["items"].as_array().map_or(&[][..], Vec::as_slice);
    output.table(
        [
            "ID",
            "HAPPENED",
            "TYPE",
            "CONNECTION",
            "STATE",
            "TRIES",
            "ERROR",
            "TO",
        ],
        deliveries.iter().map(row).collect(),
    )
}

async fn resend(api: &Api, id: &str, output: Output) -> Result<(), Failure> {
    let path: String = url::form_urlencoded::byte_serialize(id.as_bytes()).collect();
    let delivery = api
        .post(&format!("/v1/webhooks/deliveries/{path}/resend"), &json!({}))
        .await?;
    if output.json {
        return print_json(&delivery);
    }
    print_line(format_args!(
        "{id} is sent again, by the service, within a second or so"
    ))
}

async fn send_test(api: &Api, output: Output) -> Result<(), Failure> {
    let answer = api.post("/v1/webhooks/test", &json!({})).await?;
    if output.json {
        return print_json(&answer);
    }
    let tried = answer["items"].as_array().map_or(&[][..], Vec::as_slice);
    if tried.is_empty() {
        note("There are no [[webhooks]] in the configuration.");
    }
    let row = |tried: &Value| {
        let taken = if tried["delivered"] == true { "yes" } else { "no" };
        [
            text(tried, "/url"),
            taken.to_owned(),
            text(tried, "/status"),
            text(tried, "/error"),
        ]
    };
    output.table(
        ["TO", "TAKEN", "STATUS", "ERROR"],
        tried.iter().map(row).collect(),
    )?;
    if tried.iter().all(|tried| tried["delivered"] == true) {
        Ok(())
    } else {
        Err(Failure::failed("not every receiver took the test"))
    }
}
