//! `evergrant keys`.

use serde_json::{Value, json};

use crate::api::Api;
use crate::args::{CreateKey, Keys};
use crate::failure::Failure;
use crate::output::{Output, note, print_json, print_line, text};

pub(crate) async fn run(api: Api, keys: Keys, output: Output) -> Result<(), Failure> {
    match keys {
        Keys::Create(new) => create(&api, new, output).await,
        Keys::List => list(&api, output).await,
        Keys::Revoke { id } => revoke(&api, &id, output).await,
    }
}

async fn create(api: &Api, new: CreateKey, output: Output) -> Result<(), Failure> {
    fn words<T: ToString>(limits: &[T]) -> Vec<String> {
        limits.iter().map(ToString::to_string).collect()
    }
    let made = api
        .post(
            "/v1/keys",
            &json!({
                "name": new.name,
                "role": new.role.as_str(),
                "apps": words(&new.app),
                "customers": words(&new.customer),
                "connections": words(&new.connection),
                "expires_in": new.expires.map(|expires| expires.as_secs()),
                "lane": new.lane,
                "max_wait": new.max_wait,
            }),
        )
        .await?;
    if output.json {
        return print_json(&json!({"id": made["id"], "key": made["key"]}));
    }
    // The key alone on standard output, so that `$(evergrant keys create …)` holds nothing else.
    print_line(text(&made, "/key"))?;
    note(format_args!(
        "This is {}; it is not shown again.",
        text(&made, "/id")
    ));
    Ok(())
}

async fn list(api: &Api, output: Output) -> Result<(), Failure> {
    let answer = api.list("/v1/keys", &[]).await?;
    if output.json {
        return print_json(&answer);
    }
    let row = |key: &Value| {
        let kinds = [
            ("app", "/apps"),
            ("customer", "/customers"),
            ("connection", "/connections"),
        ];
        let limits = kinds
            .iter()
            .map(|(kind, member)| (kind, text(key, member)))
            .filter(|(_, limit)| !limit.is_empty())
            .map(|(kind, limit)| format!("{kind} {limit}"))
            .collect::<Vec<_>>();
        let [id, name, role, created, expires, revoked] = [
            "/id",
            "/name",
            "/role",
            "/created_at",
            "/expires_at",
            "/revoked_at",
        ]
        .map(|member| text(key, member));
        [id, name, role, limits.join(" and "), created, expires, revoked]
    };
    let keys = answer["items"].as_array().map_or(&[][..], Vec::as_slice);
    output.table(
        [
            "ID",
            "NAME",
            "ROLE",
            "LIMITED TO",
            "CREATED",
            "EXPIRES",
            "REVOKED",
        ],
        keys.iter().map(row).collect(),
    )
}

async fn revoke(api: &Api, id: &str, output: Output) -> Result<(), Failure> {
    let path: String = url::form_urlencoded::byte_serialize(id.as_bytes()).collect();
    api.delete(&format!("/v1/keys/{path}")).await?;
    if output.json {
        return print_json(&json!({"id": id, "revoked": true}));
    }
    print_line(format_args!(
        "{id} is revoked: it is refused everywhere within a second"
    ))
}
