//! What a `[[webhooks]]` section may say.

use evergrant_domain::App;
use evergrant_domain::webhook::{Endpoint, Notice, WebhookSecret, refusal_in};
use url::Url;

use crate::secret_file;
use crate::section::Section;
use crate::settings::endpoint_url;

/// Reads them all.
pub(crate) fn read(root: &mut Section<'_>, apps: &[App]) -> Vec<Endpoint> {
    let mut seen: Vec<Url> = Vec::new();
    root.each("webhooks", |section| one(section, apps, &mut seen))
        .into_iter()
        .flatten()
        .collect()
}

/// Reads one; `None` only where a problem was noted.
fn one(section: &mut Section<'_>, apps: &[App], seen: &mut Vec<Url>) -> Option<Endpoint> {
    let reading = section.reading;
    section.require(&["url"], "is missing: where are the notices sent?");
    section.refuse_given(
        "secret",
        "a secret does not belong in a configuration: give secret_file",
    );
    section.require(
        &["secret_file"],
        "is missing: name a file with the secret that the receiver checks signatures with",
    );
    let url = section.text("url").and_then(|text| {
        reading.parsed(text, |text| {
            let url = endpoint_url(text)?;
            if let Some(why) = refusal_in(&url) {
                return Err(format!("names an address that {why}: nothing is sent there"));
            }
            if seen.contains(&url) {
                return Err("is there already: give each receiver one section".to_owned());
            }
            seen.push(url.clone());
            Ok(url)
        })
    });
    let secrets = section.text_or_texts("secret_file").and_then(|files| {
        let place = files.place.clone();
        reading.parsed(files, |files| {
            if files.is_empty() {
                return Err("names no secret".to_owned());
            }
            let secret = |file: &String| {
                let path = reading.path(&place, file);
                let text = secret_file::read_one(&path)?;
                secret_file::refuse_open(&path)?;
                WebhookSecret::parse(&text).map_err(|why| format!("{} {why}", path.display()))
            };
            files.iter().map(secret).collect::<Result<Vec<_>, _>>()
        })
    });
    let notices = section.texts("events").and_then(|patterns| {
        reading.parsed(patterns, |patterns| {
            let mut notices = Vec::new();
            for pattern in patterns {
                let matching = Notice::matching(pattern);
                if matching.is_empty() {
                    let words: Vec<_> = Notice::ALL.iter().map(|notice| notice.as_str()).collect();
                    return Err(format!(
                        "{pattern:?} is no event: there are {}; or write \"*\", \"connection.*\", \"app.*\"",
                        words.join(", ")
                    ));
                }
                notices.extend(matching);
            }
            if notices.is_empty() {
                return Err("names no event: leave it out for all of them".to_owned());
            }
            Ok(notices)
        })
    });
    let only = section.texts("apps").and_then(|names| {
        reading.parsed(names, |names| {
            let app = |name: &String| {
                apps.iter()
                    .map(|app| &app.name)
                    .find(|known| known.as_str() == name)
                    .cloned()
                    .ok_or_else(|| format!("{name:?} is no app of this configuration"))
            };
            names.iter().map(app).collect::<Result<Vec<_>, _>>()
        })
    });
    Some(Endpoint {
        notices: notices.map_or_else(|| Notice::ALL.to_vec(), |notices| notices.value),
        apps: only.map_or_else(Vec::new, |apps| apps.value),
        url: url?.value,
        secrets: secrets?.value,
    })
}
