//! The apps: whether the provider accepts them, what is registered, whether their endpoints answer.

use askama::Template;
use serde_json::json;

use super::{Frame, Reply, Visitor, show};
use crate::api::{Api, get, post};
use crate::notice::Notice;
use crate::records::{App, Checked, List};
use crate::words::{Tone, When, counted};

#[derive(Template)]
#[template(path = "apps.html")]
struct Page<'a> {
    frame: Frame<'a>,
    apps: Vec<Card>,
}

struct Card {
    app: App,
    shown_name: String,
    tone: Tone,
    health: &'static str,
    why: String,
    since: Option<When>,
    endpoint_until: Option<When>,
}

pub(crate) async fn page(api: &impl Api, visitor: &Visitor<'_>) -> Reply {
    let apps: List<App> = match get(api, "/v1/apps?limit=1000").await {
        Ok(apps) => apps,
        Err(refused) => return refused.page(visitor),
    };
    let apps = apps.items.into_iter().map(|app| card(app, visitor)).collect();
    show(&Page {
        frame: Frame::new(visitor, "apps", "Apps").live("", 15),
        apps,
    })
}

fn card(app: App, visitor: &Visitor<'_>) -> Card {
    let failing = app.endpoint.as_ref().filter(|endpoint| endpoint.failures > 0);
    let (tone, health, why) = if app.health.is_rejected() {
        let code = app.health.code.as_deref().unwrap_or("no code");
        let why = format!(
            "The provider refuses its client id or secret ({code}). No connection of this app can be refreshed until they are right: put the secret in, then check."
        );
        (Tone::Bad, "Credentials refused", why)
    } else if let Some(endpoint) = failing {
        let why = format!(
            "The token endpoint failed {} in a row. Tokens at hand go on serving.",
            counted(endpoint.failures.into(), "time")
        );
        (Tone::Warn, "Token endpoint in trouble", why)
    } else {
        (
            Tone::Good,
            "Accepted",
            "Nothing stands against its credentials.".to_owned(),
        )
    };
    Card {
        shown_name: app.display_name.clone().unwrap_or_else(|| app.name.clone()),
        tone,
        health,
        why,
        since: When::maybe(app.health.since, visitor.now),
        endpoint_until: When::maybe(
            app.endpoint.as_ref().and_then(|endpoint| endpoint.open_until),
            visitor.now,
        ),
        app,
    }
}

/// Asks the provider whether it accepts the app's credentials.
pub(crate) async fn check(api: &impl Api, name: &str) -> Reply {
    let checked = post::<Checked>(api, &format!("/v1/apps/{name}/check"), Some(json!({}))).await;
    let notice = match checked {
        Ok(checked) => {
            let code = checked.code.map(|code| format!(" ({code})")).unwrap_or_default();
            match checked.result.as_str() {
                "accepted" => Notice::done(format!("The provider accepts the credentials of app {name}.")),
                "refused" => Notice::failed(format!(
                    "The provider refuses the credentials of app {name}{code}. Compare client id and secret with what the provider shows."
                )),
                _ => Notice::failed(format!(
                    "The provider did not say whether it accepts the credentials of app {name}{code}. Try again in a minute."
                )),
            }
        }
        Err(refused) => Notice::failed(refused.sentence()),
    };
    Reply::GoTo {
        location: "/dashboard/apps".to_owned(),
        notice,
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::json;

    use super::super::Rights;
    use super::super::tests::{Fake, ask, html};
    use super::*;

    #[test]
    fn refused_credentials_and_a_failing_endpoint_are_told_on_the_apps_page() {
        let api = Fake::default().with(
            "GET /v1/apps?limit=1000",
            200,
            json!({"items": [
                {"name": "crm", "redirect_uri": "https://x.example/oauth/callback", "health": {"status": "credentials_rejected", "code": "invalid_client", "since": "2026-11-24T11:00:00Z"}},
                {"name": "other", "health": {"status": "ok"}, "endpoint": {"failures": 3, "open_until": "2026-11-24T12:00:30Z"}},
            ], "next_cursor": null}),
        );
        let page = html(ask(&api, Rights::Support, Method::GET, "/apps"), 200);
        for expected in [
            "Credentials refused",
            "invalid_client",
            "https://x.example/oauth/callback",
            "failed 3 times in a row",
            "in 30 s",
            "/dashboard/apps/crm/check",
        ] {
            assert!(page.contains(expected), "{expected}: {page}");
        }
    }

    #[test]
    fn a_check_says_what_the_provider_said() {
        let check = |result: &str, good: bool, says: &str| {
            let api = Fake::default().with(
                "POST /v1/apps/crm/check",
                200,
                json!({"app": "crm", "result": result, "code": null}),
            );
            match ask(&api, Rights::Support, Method::POST, "/apps/crm/check") {
                Reply::GoTo { location, notice } => {
                    assert_eq!(location, "/dashboard/apps");
                    assert_eq!(notice.good, good, "{notice:?}");
                    assert!(notice.text.contains(says), "{notice:?}");
                }
                other => panic!("{other:?}"),
            }
        };
        check("accepted", true, "accepts");
        check("refused", false, "refuses");
        check("unknown", false, "did not say");
    }
}
