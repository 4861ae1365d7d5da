//! What `[apps.NAME]` may say, and what each provider makes of it.

use std::time::Duration;

use evergrant_domain::app::{ClientAuth, Dialect};
use evergrant_domain::call_budget::{Limit, Setting};
use evergrant_domain::{App, AppName, ClientSecret, KeepFresh, Provider, RefreshPolicy, Rotation};
use url::Url;

use crate::duration;
use crate::secret_file;
use crate::section::Section;
use crate::settings::endpoint_url;

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// The longest that a call waits for budget, whoever asks for it.
const MAX_WAIT_MAX: Duration = Duration::from_secs(60);

const HUBSPOT_AUTHORIZE: &str = "https://app.hubspot.com/oauth/authorize";
const HUBSPOT_API: &str = "https://api.hubapi.com/";
/// Of the dated versions the newest that is known here. `v1` is switched off on 2027-02-16.
///
/// Source: HubSpot's changelog, "v1 OAuth API deprecation", and its migration guide.
const HUBSPOT_OAUTH_VERSION: &str = "2026-09";

/// Keys that only one provider has; for the other they are a mix-up rather than a slip of the pen.
const HUBSPOT_ONLY: [&str; 4] = ["oauth_base", "oauth_version", "optional_scopes", "journal"];
const GENERIC_ONLY: [&str; 8] = [
    "token_url",
    "revoke_url",
    "introspect_url",
    "client_auth",
    "pkce",
    "rotation",
    "rotation_grace",
    "account_claim",
];

const NO_SCOPES: &str = "HubSpot installs no app without scopes: list what the app asks for";

/// Reads one app, and whether its provider's journal is read; `None` only where a problem was noted.
pub(crate) fn read(name: &str, section: &mut Section<'_>, public_url: &Url) -> (Option<App>, bool) {
    let app = read_app(name, section, public_url);
    // Asked for last, and of everybody: for another provider it was refused already.
    let journal = section.flag("journal").is_some_and(|at| at.value);
    (app, journal)
}

fn read_app(name: &str, section: &mut Section<'_>, public_url: &Url) -> Option<App> {
    let reading = section.reading;
    let name = AppName::parse(name)
        .map_err(|error| reading.refuse(&section.place, error.to_string()))
        .ok();
    let dialect = section
        .choice(
            "provider",
            &[("hubspot", Dialect::HubSpot), ("generic", Dialect::Generic)],
        )
        .map_or(Dialect::HubSpot, |at| at.value);
    section.require(
        &["client_id"],
        "is missing: the provider shows it on the app's page",
    );
    let client_id = section.text("client_id").and_then(|client_id| {
        reading.parsed(client_id, |id| {
            let blank = id.contains(|c: char| c.is_whitespace() || c.is_control());
            if blank {
                Err("must not hold white space")
            } else {
                Ok(id.clone())
            }
        })
    });
    let client_secrets = client_secrets(section);
    let redirect_uri = redirect_uri(section, dialect, public_url);
    let (provider, scopes, optional_scopes) = match dialect {
        Dialect::HubSpot => {
            for key in GENERIC_ONLY {
                section.refuse_given(key, "is for provider = \"generic\" only: HubSpot's is known");
            }
            section.require(&["scopes"], NO_SCOPES);
            (
                hubspot(section),
                scopes(section, "scopes", 1),
                scopes(section, "optional_scopes", 0),
            )
        }
        Dialect::Generic => {
            for key in HUBSPOT_ONLY {
                section.refuse_given(key, "is for provider = \"hubspot\" only");
            }
            (generic(section), scopes(section, "scopes", 0), Vec::new())
        }
    };
    // What may be missing comes last: everything before it is read, and thereby checked, in any case.
    Some(App {
        refresh_policy: refresh_policy(section),
        keep_fresh: section
            .choice(
                "keep_fresh",
                &[
                    ("off", KeepFresh::Off),
                    ("used", KeepFresh::Used),
                    ("always", KeepFresh::Always),
                ],
            )
            .map_or(KeepFresh::Used, |at| at.value),
        return_urls: return_urls(section),
        display_name: section.text("display_name").map(|at| at.value),
        support_url: support_url(section),
        public_install: section.flag("public_install").is_some_and(|at| at.value),
        budget: budget(section),
        max_wait: section
            .duration("max_wait", Duration::ZERO..=MAX_WAIT_MAX)
            .map(|at| at.value),
        name: name?,
        provider: provider?,
        client_id: client_id?.value,
        client_secrets,
        redirect_uri,
        scopes,
        optional_scopes,
    })
}

fn client_secrets(section: &mut Section<'_>) -> Vec<ClientSecret> {
    let reading = section.reading;
    section.refuse_given(
        "client_secret",
        "a secret does not belong in a configuration: give client_secret_file or client_secret_env",
    );
    section.require(
        &["client_secret_file", "client_secret_env"],
        "is missing: name a file with the secret, or give client_secret_env",
    );
    let files = section.text_or_texts("client_secret_file");
    let variables = section.text_or_texts("client_secret_env");
    let secrets = match reading.one_of_two(files, variables) {
        (Some(files), _) => {
            let place = files.place.clone();
            reading.parsed(files, |files| {
                files
                    .iter()
                    .map(|file| secret_file::read_one(&reading.path(&place, file)))
                    .collect::<Result<Vec<_>, _>>()
            })
        }
        (None, Some(variables)) => reading.parsed(variables, |names| {
            let one = |name: &String| match reading.variable(name).map(str::trim) {
                None => Err(format!("the variable {name} is not set")),
                Some("") => Err(format!("the variable {name} is empty")),
                Some(secret) => Ok(secret.to_owned()),
            };
            names.iter().map(one).collect()
        }),
        (None, None) => None,
    };
    let secrets = secrets.and_then(|secrets| {
        reading.parsed(secrets, |secrets| {
            if secrets.is_empty() {
                Err("names no secret")
            } else {
                Ok(secrets.clone())
            }
        })
    });
    secrets.map_or_else(Vec::new, |secrets| {
        secrets.value.into_iter().map(ClientSecret::new).collect()
    })
}

/// Kept as written, because providers compare it as text.
fn redirect_uri(section: &mut Section<'_>, dialect: Dialect, public_url: &Url) -> String {
    let reading = section.reading;
    if let Some(given) = section.text("redirect_uri") {
        let checked = reading.parsed(given, |uri| allowed_redirect(uri, dialect).map(|()| uri.clone()));
        return checked.map_or_else(String::new, |uri| uri.value);
    }
    let uri = format!("{}/oauth/callback", public_url.as_str().trim_end_matches('/'));
    if let Err(reason) = allowed_redirect(&uri, dialect) {
        section.refuse_absent(
            "redirect_uri",
            format!("{reason} (it follows from server.public_url)"),
        );
    }
    uri
}

/// HubSpot registers https, and http on the very name `localhost`; 127.0.0.1 it refuses.
fn allowed_redirect(uri: &str, dialect: Dialect) -> Result<(), String> {
    let url = endpoint_url(uri)?;
    match dialect {
        Dialect::HubSpot if url.scheme() == "http" && url.host_str() != Some("localhost") => Err(format!(
            "{uri:?} cannot be registered: HubSpot takes https, or http on \"localhost\" only"
        )),
        Dialect::HubSpot | Dialect::Generic => Ok(()),
    }
}

fn scopes(section: &mut Section<'_>, key: &'static str, least: usize) -> Vec<String> {
    let reading = section.reading;
    let scopes = section.texts(key).and_then(|scopes| {
        reading.parsed(scopes, |scopes| {
            match scopes.iter().find(|scope| !is_scope(scope)) {
                Some(wrong) => Err(format!(
                    "{wrong:?} is no scope: one name an item, without spaces and quotes"
                )),
                None if scopes.len() < least => Err(NO_SCOPES.to_owned()),
                None => Ok(scopes.clone()),
            }
        })
    });
    scopes.map_or_else(Vec::new, |scopes| scopes.value)
}

/// RFC 6749 §3.3, `scope-token`.
fn is_scope(scope: &str) -> bool {
    scope
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\')
}

fn hubspot(section: &mut Section<'_>) -> Option<Provider> {
    let known = |text| Url::parse(text).expect("a literal URL");
    let authorize_url = url_or(section, "authorize_url", &known(HUBSPOT_AUTHORIZE));
    let api_base = url_or(section, "api_base", &known(HUBSPOT_API));
    let oauth_base = url_or(
        section,
        "oauth_base",
        api_base.as_ref().unwrap_or(&known(HUBSPOT_API)),
    );
    let version = section.text("oauth_version").and_then(|version| {
        section.reading.parsed(version, |version| {
            if is_oauth_version(version) {
                return Ok(version.clone());
            }
            Err(format!("{version:?} is no version of HubSpot's OAuth API: write a dated one like \"2026-09\", or v3, v1"))
        })
    });
    let version = version.map_or_else(|| HUBSPOT_OAUTH_VERSION.to_owned(), |version| version.value);
    let token_url = below(&oauth_base?, &format!("oauth/{version}/token"));
    // The first version takes the token to look at or to revoke in the path, where every log on the way would keep it.
    let has_others = version != "v1";
    Some(Provider {
        dialect: Dialect::HubSpot,
        authorize_url: authorize_url?,
        introspect_url: has_others.then(|| below(&token_url, "introspect")),
        revoke_url: has_others.then(|| below(&token_url, "revoke")),
        token_url,
        api_base: api_base?,
        client_auth: ClientAuth::Post,
        pkce: false,
        rotation: Rotation::Never,
        account_claim: "hub_id".to_owned(),
    })
}

fn is_oauth_version(version: &str) -> bool {
    let digits = |text: &str, count| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    matches!(version, "v1" | "v3")
        || version
            .split_once('-')
            .is_some_and(|(year, month)| digits(year, 4) && digits(month, 2))
}

/// The URL with more path. A `/` between them, wherever the first ended.
fn below(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}/{path}", base.path().trim_end_matches('/')));
    url
}

fn generic(section: &mut Section<'_>) -> Option<Provider> {
    for key in ["authorize_url", "token_url", "api_base"] {
        section.require(
            &[key],
            "is missing: provider = \"generic\" needs authorize_url, token_url and api_base",
        );
    }
    let authorize_url = url(section, "authorize_url");
    let token_url = url(section, "token_url");
    let api_base = url(section, "api_base");
    Some(Provider {
        dialect: Dialect::Generic,
        introspect_url: url(section, "introspect_url"),
        revoke_url: url(section, "revoke_url"),
        client_auth: section
            .choice(
                "client_auth",
                &[("basic", ClientAuth::Basic), ("post", ClientAuth::Post)],
            )
            .map_or(ClientAuth::Basic, |at| at.value),
        pkce: section.flag("pkce").is_none_or(|at| at.value),
        rotation: rotation(section),
        account_claim: section
            .text("account_claim")
            .map_or_else(|| "sub".to_owned(), |at| at.value),
        authorize_url: authorize_url?,
        token_url: token_url?,
        api_base: api_base?,
    })
}

fn url(section: &mut Section<'_>, key: &'static str) -> Option<Url> {
    let text = section.text(key)?;
    section
        .reading
        .parsed(text, |text| endpoint_url(text))
        .map(|at| at.value)
}

/// Where nothing is said the refresh token is taken to be dead once redeemed: to be wrong about that costs caution, to
/// be wrong about the contrary costs grants.
fn rotation(section: &mut Section<'_>) -> Rotation {
    const NEVER: &str = "never";
    const GRACE: &str = "grace";
    const SINGLE_USE: &str = "single_use";
    let kind = section
        .choice(
            "rotation",
            &[(NEVER, NEVER), (GRACE, GRACE), (SINGLE_USE, SINGLE_USE)],
        )
        .map_or(SINGLE_USE, |at| at.value);
    if kind == GRACE {
        let grace = section.duration("rotation_grace", SECOND..=DAY);
        return Rotation::Grace(grace.map_or(Duration::from_secs(30), |at| at.value));
    }
    section.refuse_given("rotation_grace", "means something with rotation = \"grace\" only");
    if kind == NEVER {
        Rotation::Never
    } else {
        Rotation::SingleUse
    }
}

fn url_or(section: &mut Section<'_>, key: &'static str, default: &Url) -> Option<Url> {
    match section.text(key) {
        Some(text) => section
            .reading
            .parsed(text, |text| endpoint_url(text))
            .map(|at| at.value),
        None => Some(default.clone()),
    }
}

fn refresh_policy(section: &mut Section<'_>) -> RefreshPolicy {
    let profile = section.choice(
        "refresh_profile",
        &[
            ("realtime", RefreshPolicy::Realtime),
            ("queue", RefreshPolicy::Queue),
            ("high_concurrency", RefreshPolicy::HighConcurrency),
        ],
    );
    let buffer = section.duration("refresh_buffer", SECOND..=DAY);
    match section.reading.one_of_two(profile, buffer) {
        (Some(profile), _) => profile.value,
        (None, Some(buffer)) => RefreshPolicy::Buffer(buffer.value),
        (None, None) => RefreshPolicy::Queue,
    }
}

/// As many as the provider says, or `"110/10s"`, or `"off"`.
fn budget(section: &mut Section<'_>) -> Setting {
    let reading = section.reading;
    let setting = section.text("budget").and_then(|text| {
        reading.parsed(text, |text| {
            if text == "off" {
                return Ok(Setting::Off);
            }
            let limit = text.split_once('/').and_then(|(calls, per)| {
                let calls = calls.trim().parse().ok().filter(|calls| *calls > 0)?;
                let per = duration::parse(per.trim()).ok()?;
                (SECOND..=DAY).contains(&per).then_some(Limit { calls, per })
            });
            limit.map(Setting::AtMost).ok_or_else(|| {
                format!(
                    "{text:?} is no budget: write calls and the time for them, like \"110/10s\" (from 1s to 1d), or \"off\""
                )
            })
        })
    });
    setting.map_or(Setting::Learnt, |at| at.value)
}

fn return_urls(section: &mut Section<'_>) -> Vec<String> {
    let reading = section.reading;
    let patterns = section.texts("return_urls").and_then(|patterns| {
        reading.parsed(patterns, |patterns| {
            patterns
                .iter()
                .map(|pattern| return_pattern(pattern))
                .collect::<Result<Vec<_>, _>>()
        })
    });
    patterns.map_or_else(Vec::new, |patterns| patterns.value)
}

fn return_pattern(pattern: &str) -> Result<String, String> {
    let prefix = pattern.strip_suffix('*').unwrap_or(pattern);
    if prefix.contains('*') {
        return Err(format!("{pattern:?} has a * that is not at its end"));
    }
    let url = endpoint_url(prefix)?;
    // Only origin and path are compared, so a pattern with a query would allow more than it says.
    if prefix != pattern && url.query().is_some() {
        return Err(format!("{pattern:?} has a * in its query: end the path with it"));
    }
    Ok(pattern.to_owned())
}

fn support_url(section: &mut Section<'_>) -> Option<String> {
    let reading = section.reading;
    let text = section.text("support_url")?;
    let checked = reading.parsed(text, |text| match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "https" | "http" | "mailto") => Ok(text.clone()),
        _ => Err(format!("{text:?} must begin with https://, http:// or mailto:")),
    });
    checked.map(|url| url.value)
}
