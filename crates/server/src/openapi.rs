//! The description of the API for machines, and the page that shows it to people.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use askama::Template;
use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use serde_json::Value;
use utoipa::openapi::RefOr;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use crate::pages;
use crate::problem::Code;

/// The whole of it.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Evergrant",
        description = "Keeps OAuth 2.0 grants alive. Every answer carries Evergrant-Request-Id; a caller's valid X-Request-Id is taken over. Times are RFC 3339 in UTC, durations are seconds. Errors are problem documents (RFC 9457): match on `code`.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    servers((url = "/")),
    security(("api_key" = [])),
    modifiers(&ApiKeyScheme, &AnyMethod, &Described),
    paths(
        crate::api::gateway::call,
        crate::api::sessions::create,
        crate::api::sessions::read,
        crate::api::connections::list,
        crate::api::import::create,
        crate::api::connections::read,
        crate::api::connections::patch,
        crate::api::connections::disconnect,
        crate::api::history::of_connection,
        crate::api::history::tallies,
        crate::api::history::export,
        crate::api::history::all,
        crate::api::history::overview,
        crate::api::connections::reconnect_link,
        crate::api::diagnosis::one,
        crate::api::diagnosis::many,
        crate::api::tokens::refresh,
        crate::api::tokens::token,
        crate::api::tokens::rejected,
        crate::api::tokens::batch,
        crate::api::apps::list,
        crate::api::apps::check,
        crate::api::explain::answer,
        crate::api::keys::create,
        crate::api::keys::list,
        crate::api::keys::revoke,
        crate::api::webhooks::list,
        crate::api::webhooks::resend,
        crate::api::webhooks::test,
        crate::connect::open,
        crate::connect::begin,
        crate::connect::install,
        crate::connect::begin_install,
        crate::connect::callback::callback,
        crate::help::index,
        crate::help::reconnect,
        crate::help::class,
        crate::help::error,
        crate::metrics::answer,
        crate::health::healthz,
        crate::health::readyz,
    )
)]
struct Description;

struct ApiKeyScheme;

impl Modify for ApiKeyScheme {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("An API key, `evg_…`: `evergrant keys create` makes one."))
            .build();
        openapi
            .components
            .get_or_insert_with(Default::default)
            .add_security_scheme("api_key", SecurityScheme::Http(scheme));
    }
}

/// The gateway takes all the methods that APIs are called with, which a description says one by one.
struct AnyMethod;

impl Modify for AnyMethod {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let gateway = openapi
            .paths
            .paths
            .iter_mut()
            .filter(|(path, _)| path.starts_with("/gateway/"));
        for (_, item) in gateway {
            let Some(get) = item.get.clone() else { continue };
            // Ids of operations are unique: the one that clients are generated for is the plain one.
            let named = |method: &str| {
                let mut operation = get.clone();
                operation.operation_id = operation.operation_id.map(|id| format!("{id}{method}"));
                Some(operation)
            };
            item.post = named("Post");
            item.put = named("Put");
            item.patch = named("Patch");
            item.delete = named("Delete");
            item.head = named("Head");
            item.options = named("Options");
        }
    }
}

/// Gives each answer the words that OpenAPI asks for, where its route has none of its own.
struct Described;

impl Modify for Described {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        for item in openapi.paths.paths.values_mut() {
            let operations = [
                &mut item.get,
                &mut item.put,
                &mut item.post,
                &mut item.delete,
                &mut item.options,
                &mut item.head,
                &mut item.patch,
            ];
            for operation in operations.into_iter().flatten() {
                for (status, response) in &mut operation.responses.responses {
                    if let RefOr::T(response) = response
                        && response.description.is_empty()
                    {
                        default_words(status).clone_into(&mut response.description);
                    }
                }
            }
        }
    }
}

fn default_words(status: &str) -> &'static str {
    match status {
        "200" => "As asked.",
        "201" => "Made.",
        "202" => "Begun: it goes on to its end.",
        "204" => "Done; there is nothing to show.",
        "303" => "On to the page that `Location` names.",
        "503" => "Not now.",
        _ => "A problem document; match on `code`.",
    }
}

/// The description as JSON, as it is served and as it is committed beside the code.
///
/// # Panics
///
/// Never: a description is plain data.
pub fn description() -> String {
    let mut text = Description::openapi()
        .to_pretty_json()
        .expect("a description is plain data");
    text.push('\n');
    text
}

static TEXT: LazyLock<String> = LazyLock::new(description);

/// `GET /openapi.json`
pub(crate) async fn json() -> Response {
    let mut response = Response::new(Body::from(TEXT.as_str()));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

#[derive(Template)]
#[template(path = "docs.html")]
struct DocsPage {
    description: Vec<Piece>,
    groups: Vec<Group>,
    codes: &'static [Code],
}

struct Group {
    name: String,
    routes: Vec<Route>,
}

struct Route {
    method: String,
    path: String,
    text: Vec<Piece>,
    members: Vec<Member>,
}

/// A part of a text: as it is, or, between backticks, something to be typed.
struct Piece {
    text: String,
    is_code: bool,
}

fn pieces(text: &str) -> Vec<Piece> {
    let parts = text.split('`').enumerate();
    parts
        .map(|(number, part)| Piece {
            text: part.to_owned(),
            is_code: number % 2 == 1,
        })
        .collect()
}

struct Member {
    name: String,
    place: String,
    about: Vec<Piece>,
}

/// `GET /docs`
pub(crate) async fn docs() -> Response {
    pages::answer(StatusCode::OK, &docs_page(&TEXT), "'none'")
}

fn docs_page(text: &str) -> DocsPage {
    let spec: Value = serde_json::from_str(text).unwrap_or_default();
    let mut groups: BTreeMap<String, Vec<Route>> = BTreeMap::new();
    for (path, methods) in spec["paths"].as_object().into_iter().flatten() {
        // One entry for all methods of the gateway: they are the same.
        let is_gateway = path.starts_with("/gateway/");
        let shown = if is_gateway { 1 } else { usize::MAX };
        for (method, operation) in methods.as_object().into_iter().flatten().take(shown) {
            groups
                .entry(word(&operation["tags"][0]))
                .or_default()
                .push(Route {
                    method: if is_gateway {
                        "ANY".to_owned()
                    } else {
                        method.to_uppercase()
                    },
                    path: path.clone(),
                    text: pieces(&format!(
                        "{} {}",
                        word(&operation["summary"]),
                        word(&operation["description"])
                    )),
                    members: members(&spec, operation),
                });
        }
    }
    let groups = groups
        .into_iter()
        .map(|(name, routes)| Group { name, routes })
        .collect();
    DocsPage {
        description: pieces(&word(&spec["info"]["description"])),
        groups,
        codes: Code::ALL,
    }
}

fn members(spec: &Value, operation: &Value) -> Vec<Member> {
    let parameters = operation["parameters"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|parameter| Member {
            name: word(&parameter["name"]),
            place: word(&parameter["in"]),
            about: pieces(&word(&parameter["description"])),
        });
    let body = &operation["requestBody"]["content"]["application/json"]["schema"];
    let schema = match body["$ref"]
        .as_str()
        .and_then(|reference| reference.strip_prefix('#'))
    {
        Some(pointer) => spec.pointer(pointer).unwrap_or(&Value::Null),
        None => body,
    };
    let required: Vec<_> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let members = schema["properties"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, member)| Member {
            name: name.clone(),
            place: if required.contains(&name.as_str()) {
                "body, required".to_owned()
            } else {
                "body".to_owned()
            },
            about: pieces(&word(&member["description"])),
        });
    parameters.chain(members).collect()
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SNAPSHOT: &str = include_str!("../openapi.json");

    /// Writes the snapshot anew where `UPDATE_SNAPSHOTS` is set; the change is then read in the diff.
    #[test]
    fn the_committed_description_is_the_served_one() {
        let current = description();
        if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
            std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json"), &current)
                .expect("a writable tree");
        } else {
            assert!(
                SNAPSHOT == current,
                "openapi.json is out of date: run this test with UPDATE_SNAPSHOTS=1"
            );
        }
    }

    #[test]
    fn it_is_openapi_3_1_and_names_a_key_for_every_route_that_takes_one() {
        let spec: Value = serde_json::from_str(&description()).expect("JSON");
        assert!(
            spec["openapi"]
                .as_str()
                .is_some_and(|version| version.starts_with("3.1")),
            "{}",
            spec["openapi"]
        );
        assert_eq!(spec["security"][0]["api_key"], serde_json::json!([]));
        let mut operations = std::collections::HashSet::new();
        for (path, methods) in spec["paths"].as_object().expect("paths") {
            for operation in methods.as_object().expect("methods").values() {
                let takes_a_key =
                    path.starts_with("/v1/") || path.starts_with("/gateway/") || path == "/metrics";
                assert_eq!(operation["security"].is_array(), !takes_a_key, "{path}");
                assert!(!word(&operation["summary"]).is_empty(), "{path}");
                assert!(
                    operations.insert(word(&operation["operationId"])),
                    "{path}: its operationId is taken"
                );
            }
        }
    }

    #[test]
    fn every_response_has_a_description() {
        let spec: Value = serde_json::from_str(&description()).expect("JSON");
        let mut seen = 0;
        for (path, methods) in spec["paths"].as_object().expect("paths") {
            for (method, operation) in methods.as_object().expect("methods") {
                for (status, response) in operation["responses"].as_object().expect("responses") {
                    assert!(
                        !word(&response["description"]).is_empty(),
                        "{method} {path} {status}"
                    );
                    seen += 1;
                }
            }
        }
        assert!(seen > 50, "{seen}");
    }

    #[test]
    fn the_gateway_is_described_for_every_method_and_shown_once() {
        let text = description();
        let spec: Value = serde_json::from_str(&text).expect("JSON");
        let methods = spec["paths"]["/gateway/{connection_id}/{path}"].as_object();
        let methods: std::collections::BTreeSet<_> =
            methods.expect("methods").keys().map(String::as_str).collect();
        assert_eq!(
            methods.into_iter().collect::<Vec<_>>(),
            ["delete", "get", "head", "options", "patch", "post", "put"]
        );
        let page = docs_page(&text).render().expect("a page");
        assert_eq!(page.matches("/gateway/{connection_id}/{path}").count(), 1);
    }

    #[test]
    fn the_gateway_s_headers_are_all_described() {
        let spec: Value = serde_json::from_str(&description()).expect("JSON");
        let call = &spec["paths"]["/gateway/{connection_id}/{path}"]["post"];
        let taken: std::collections::BTreeSet<_> = call["parameters"]
            .as_array()
            .expect("parameters")
            .iter()
            .filter(|parameter| parameter["in"] == "header")
            .map(|parameter| word(&parameter["name"]))
            .collect();
        for name in [
            "Evergrant-Connection",
            "Evergrant-Min-Ttl",
            "Evergrant-Enqueued-At",
            "Evergrant-Lane",
            "Evergrant-Max-Wait",
            "Idempotency-Key",
            "Evergrant-Dedupe",
            "Evergrant-Guard",
        ] {
            assert!(taken.contains(name), "{name}");
        }
        let given = &call["responses"]["default"]["headers"];
        for name in [
            "Evergrant-Error",
            "Evergrant-Class",
            "Evergrant-Attempts",
            "Evergrant-Token-Version",
            "Evergrant-Token-Ttl",
            "Evergrant-Replayed",
            "Evergrant-Not-Repeated",
            "Evergrant-Outcome",
            "Evergrant-Request-Id",
            "Retry-After",
            "Server-Timing",
            "x-should-retry",
        ] {
            assert!(!word(&given[name]["description"]).is_empty(), "{name}");
        }
    }

    #[test]
    fn the_page_shows_every_route_and_code() {
        let page = docs_page(&description()).render().expect("a page");
        for part in [
            "/v1/connections/{id}/token",
            "ANY",
            "/gateway/{connection_id}/{path}",
            "outcome_unknown",
            "min_ttl",
        ] {
            assert!(page.contains(part), "{part}");
        }
        assert!(!page.contains("<script") && !page.contains("style="));
    }
}
