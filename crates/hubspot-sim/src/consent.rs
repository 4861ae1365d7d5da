//! The consent page: `GET /oauth/authorize` for a browser, and shortcuts for scripts.
//!
//! - A browser gets a page, chooses a portal and presses "Connect app" or "Cancel".
//! - A script posts the page's fields: those of the query, `hub_id`, and `decision` (`grant` or `deny`).
//! - A script that wants it in one step adds `_sim_hub_id=1001` (and `_sim_decision=deny`) to the query.
//!
//! What HubSpot shows as an error on its page is an error page with status 400 here. HubSpot's own page
//! answers 200 whatever it is asked, which a script could not tell from consent.

use std::fmt::Write as _;

use http::{Method, StatusCode};
use url::Url;

use crate::Shared;
use crate::answer::Answer;
use crate::serve::{Call, form_fields, is_form};
use crate::world::{Consent, World, hub_domain};

/// The portals that the page offers; any other can be typed in.
const PORTALS_OFFERED: [(u64, &str); 4] = [
    (1001, "Acme Ltd"),
    (1002, "Globex"),
    (1003, "Initech"),
    (100_000_001, "Umbrella Europe"),
];

/// Answers the authorize routes. `account` is the portal named in the path, if it is.
pub(crate) fn answer(shared: &Shared, call: &Call, account: Option<&str>) -> Answer {
    let mut fields = call.query.clone();
    match call.method {
        Method::GET | Method::HEAD => {}
        Method::POST if is_form(&call.headers) => fields.splice(0..0, form_fields(&call.body)).for_each(drop),
        _ => {
            return refusal(
                "Send this page's form, or GET it.",
                StatusCode::METHOD_NOT_ALLOWED,
            );
        }
    }
    let fields = Fields { fields, account };
    let mut world = shared.world.lock();
    let wish = match Wish::of(&fields, &world) {
        Ok(wish) => wish,
        Err(reason) => return refusal(&reason, StatusCode::BAD_REQUEST),
    };
    let (decision, hub_id) = if call.method == Method::POST {
        (fields.get("decision").unwrap_or("grant"), fields.hub_id("hub_id"))
    } else if fields.get("_sim_hub_id").is_some() || fields.get("_sim_decision").is_some() {
        (
            fields.get("_sim_decision").unwrap_or("grant"),
            fields.hub_id("_sim_hub_id"),
        )
    } else {
        return Answer::html(StatusCode::OK, page(&wish, &fields));
    };
    match decision {
        "deny" => wish.redirect(&[
            ("error", "access_denied"),
            ("error_description", "the user did not authorize the app"),
        ]),
        "grant" => {
            let Some(hub_id) = hub_id.filter(|hub_id| world.portal_exists(*hub_id)) else {
                return refusal(
                    "Choose a portal that exists: its id is a number.",
                    StatusCode::BAD_REQUEST,
                );
            };
            let code = world.issue_code(shared.clock.now(), wish.consent(hub_id));
            wish.redirect(&[("code", &code)])
        }
        unknown => refusal(
            &format!("Unknown decision {unknown:?}: grant or deny."),
            StatusCode::BAD_REQUEST,
        ),
    }
}

struct Fields<'a> {
    fields: Vec<(String, String)>,
    account: Option<&'a str>,
}

impl Fields<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self
            .fields
            .iter()
            .find(|(key, value)| key == name && !value.is_empty())?;
        Some(value)
    }

    /// The portal; the one in the path wins.
    fn hub_id(&self, name: &str) -> Option<u64> {
        self.account
            .or_else(|| self.get("other_hub_id"))
            .or_else(|| self.get(name))?
            .trim()
            .parse()
            .ok()
    }
}

/// What the app asks the portal for, checked.
struct Wish {
    client_id: String,
    redirect_uri: Url,
    redirect_uri_as_sent: String,
    scopes: Vec<String>,
    optional_scopes: Vec<String>,
    state: Option<String>,
    code_challenge: Option<String>,
}

impl Wish {
    fn of(fields: &Fields<'_>, world: &World) -> Result<Self, String> {
        let client_id = fields.get("client_id").ok_or("The client_id is missing.")?;
        let app = world
            .apps
            .get(client_id)
            .ok_or_else(|| format!("There is no app with client id {client_id}."))?;
        let redirect_uri = fields.get("redirect_uri").ok_or("The redirect_uri is missing.")?;
        app.takes_redirect_uri(redirect_uri)?;
        if fields.get("response_type").is_some_and(|kind| kind != "code") {
            return Err("The response_type must be code.".to_owned());
        }
        let words = |name| -> Vec<String> {
            fields
                .get(name)
                .unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned)
                .collect()
        };
        let scopes = words("scope");
        if scopes.is_empty() {
            return Err("The scope is missing.".to_owned());
        }
        let missing: Vec<_> = app
            .scopes
            .iter()
            .filter(|scope| !scopes.contains(scope))
            .cloned()
            .collect();
        if !missing.is_empty() {
            return Err(format!(
                "Scope mismatch: the app requires {}, which scope leaves out.",
                missing.join(", ")
            ));
        }
        let code_challenge = fields.get("code_challenge").map(str::to_owned);
        if code_challenge.is_some() && fields.get("code_challenge_method") != Some("S256") {
            return Err("The code_challenge_method must be S256.".to_owned());
        }
        if let Some(account) = fields.account
            && account.parse::<u64>().is_err()
        {
            return Err(format!("The account {account} is no portal id."));
        }
        Ok(Self {
            client_id: client_id.to_owned(),
            redirect_uri: Url::parse(redirect_uri).map_err(|error| error.to_string())?,
            redirect_uri_as_sent: redirect_uri.to_owned(),
            scopes,
            optional_scopes: words("optional_scope"),
            state: fields.get("state").map(str::to_owned),
            code_challenge,
        })
    }

    /// Optional scopes are granted: every simulated portal has the products they need.
    fn consent(&self, hub_id: u64) -> Consent {
        let mut scopes = self.scopes.clone();
        for scope in &self.optional_scopes {
            if !scopes.contains(scope) {
                scopes.push(scope.clone());
            }
        }
        Consent {
            client_id: self.client_id.clone(),
            hub_id,
            redirect_uri: self.redirect_uri_as_sent.clone(),
            scopes,
            code_challenge: self.code_challenge.clone(),
        }
    }

    fn redirect(&self, parameters: &[(&str, &str)]) -> Answer {
        let mut target = self.redirect_uri.clone();
        {
            let mut query = target.query_pairs_mut();
            query.extend_pairs(parameters);
            if let Some(state) = &self.state {
                query.append_pair("state", state);
            }
        }
        Answer::redirect(StatusCode::FOUND, target.as_str())
    }
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;background:#f5f6f8;color:#213343;margin:0;padding:4rem 1rem}\
main{max-width:30rem;margin:auto;background:#fff;border-radius:8px;padding:2rem;box-shadow:0 1px 4px #0002}\
h1{font-size:1.25rem;margin-top:0}code{background:#eef;padding:.1em .3em;border-radius:3px;word-break:break-all}\
label{display:block;margin:.4rem 0}ul{padding-left:1.2rem}input[type=text]{width:9rem;padding:.3rem}\
button{font:inherit;padding:.5rem 1.2rem;border-radius:4px;border:1px solid #cbd6e2;background:#fff;cursor:pointer}\
button.go{background:#ff5c35;border-color:#ff5c35;color:#fff}small{color:#516f90}";

fn page(wish: &Wish, fields: &Fields<'_>) -> String {
    let mut hidden = String::new();
    for name in [
        "client_id",
        "redirect_uri",
        "scope",
        "optional_scope",
        "state",
        "response_type",
        "code_challenge",
        "code_challenge_method",
    ] {
        if let Some(value) = fields.get(name) {
            let _ = write!(
                hidden,
                r#"<input type="hidden" name="{name}" value="{}">"#,
                escape(value)
            );
        }
    }
    let scopes: String = wish
        .scopes
        .iter()
        .map(|scope| format!("<li><code>{}</code></li>", escape(scope)))
        .chain(
            wish.optional_scopes
                .iter()
                .map(|scope| format!("<li><code>{}</code> (optional)</li>", escape(scope))),
        )
        .collect();
    let portals = match fields.account {
        Some(account) => format!("<p>Portal <b>{}</b></p>", escape(account)),
        None => PORTALS_OFFERED
            .iter()
            .enumerate()
            .map(|(index, (hub_id, name))| {
                let checked = if index == 0 { " checked" } else { "" };
                let domain = hub_domain(*hub_id);
                format!(
                    r#"<label><input type="radio" name="hub_id" value="{hub_id}"{checked}> {name} <small>{hub_id}, {domain}</small></label>"#
                )
            })
            .chain(std::iter::once(
                r#"<label>or another portal id: <input type="text" name="other_hub_id" inputmode="numeric" pattern="[0-9]*"></label>"#
                    .to_owned(),
            ))
            .collect(),
    };
    let host = wish.redirect_uri.host_str().unwrap_or_default();
    document(&format!(
        r#"<h1>Connect <code>{client_id}</code> to HubSpot <small>(simulated)</small></h1>
<form method="post" action="authorize">{hidden}
<p>Choose an account:</p>{portals}
<p>The app asks for:</p><ul>{scopes}</ul>
<p><button class="go" name="decision" value="grant">Connect app</button>
<button name="decision" value="deny">Cancel</button></p>
<p><small>You will be taken back to {host}.</small></p></form>"#,
        client_id = escape(&wish.client_id),
        host = escape(host),
    ))
}

fn refusal(reason: &str, status: StatusCode) -> Answer {
    let body = format!("<h1>Authorization failed</h1><p>{}</p>", escape(reason));
    Answer::html(status, document(&body))
}

fn document(body: &str) -> String {
    format!(
        "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>HubSpot (simulated)</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head>\
         <body><main>{body}</main></body></html>"
    )
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            character => escaped.push(character),
        }
    }
    escaped
}
