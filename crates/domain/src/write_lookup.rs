//! The look-up that settles whether a write was carried out, for whoever has no answer to it.
//!
//! What can be asked is knowledge about a provider's paths. Source: HubSpot, CRM objects, search and associations APIs.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::app::Dialect;
use crate::strict_json;

/// A request that only reads. It may hold what the write held, so it is told to the caller alone.
#[derive(Clone, PartialEq, Eq)]
pub struct LookUp {
    /// `GET`, or `POST` for a search.
    pub method: &'static str,
    /// Path and query, percent-encoded.
    pub path: String,
    /// The body of a search, where what to search for is known.
    pub body: Option<String>,
}

impl fmt::Debug for LookUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LookUp")
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}

impl LookUp {
    pub(crate) fn get(path: String) -> Self {
        Self {
            method: "GET",
            path,
            body: None,
        }
    }

    fn post(path: String, body: Option<Value>) -> Self {
        Self {
            method: "POST",
            path,
            body: body.map(|body| body.to_string()),
        }
    }
}

/// What to ask to find out whether `method` on `target` (path and query) was carried out. `body` as far as it is at hand. `None`
/// where nothing is known to ask.
pub fn look_up(dialect: Dialect, method: &str, target: &str, body: Option<&[u8]>) -> Option<LookUp> {
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    let body = body.and_then(strict_json::parse).unwrap_or(Value::Null);
    if dialect == Dialect::HubSpot {
        if let Some(of) = associations_of(path) {
            return Some(LookUp::get(of.list_path()));
        }
        if let Some(objects) = Objects::parse(path)
            && method == "POST"
        {
            return objects.posted(&body);
        }
    }
    // What a write by its address has left behind is at that address (RFC 9110 §9.3.1).
    matches!(method, "PUT" | "PATCH" | "DELETE").then(|| LookUp::get(target.to_owned()))
}

/// A path among a kind of CRM objects.
pub(crate) struct Objects<'a> {
    /// Until the kind: `/crm/v3/objects/contacts`.
    pub(crate) prefix: &'a str,
    pub(crate) object_type: &'a str,
    /// What follows.
    pub(crate) rest: &'a str,
}

impl<'a> Objects<'a> {
    /// `/crm/v3/objects/{type}…` or `/crm/objects/2026-03/{type}…`.
    pub(crate) fn parse(path: &'a str) -> Option<Self> {
        let mut segments = path.strip_prefix("/crm/")?.splitn(4, '/');
        let (first, second, object_type) = (segments.next()?, segments.next()?, segments.next()?);
        let fits = (is_version(first) && second == "objects") || (first == "objects" && is_version(second));
        if !fits || object_type.is_empty() {
            return None;
        }
        let length = "/crm/".len() + first.len() + 1 + second.len() + 1 + object_type.len();
        let (prefix, rest) = path.split_at(length);
        Some(Self {
            prefix,
            object_type,
            rest: rest.trim_matches('/'),
        })
    }

    fn is_contacts(&self) -> bool {
        matches!(self.object_type, "contacts" | "contact" | "0-1")
    }

    fn posted(&self, body: &Value) -> Option<LookUp> {
        match self.rest {
            "" => Some(self.created(&body["properties"])),
            "batch/create" => Some(self.created_together(&body["inputs"])),
            "batch/update" | "batch/archive" | "batch/upsert" => self.named_together(body),
            "merge" => {
                let primary = scalar(&body["primaryObjectId"])?;
                Some(LookUp::get(format!("{}/{}", self.prefix, encoded(&primary))))
            }
            _ => None,
        }
    }

    fn created(&self, properties: &Value) -> LookUp {
        let properties = properties.as_object();
        if let Some(email) = properties.and_then(email_of).filter(|_| self.is_contacts()) {
            return LookUp::get(format!("{}/{}?idProperty=email", self.prefix, encoded(&email)));
        }
        let filters: Vec<Value> = properties
            .into_iter()
            .flat_map(|properties| self.telling(properties))
            .map(|(name, value)| json!({"propertyName": name, "operator": "EQ", "value": value}))
            .collect();
        let body = (!filters.is_empty()).then(|| json!({"filterGroups": [{"filters": filters}]}));
        LookUp::post(format!("{}/search", self.prefix), body)
    }

    /// The properties by which an object is found: what it is called, else a few of those that were sent.
    fn telling(&self, properties: &Map<String, Value>) -> Vec<(String, String)> {
        /// A filter group takes six; fewer say as much.
        const FILTERS_MAX: usize = 3;
        let named: &[&str] = match self.object_type {
            "companies" | "company" | "0-2" => &["domain", "name"],
            "deals" | "deal" | "0-3" => &["dealname"],
            "tickets" | "ticket" | "0-5" => &["subject"],
            _ => &["name"],
        };
        let text = |name: &str| {
            properties
                .get(name)
                .and_then(scalar)
                .filter(|value| !value.is_empty())
        };
        if let Some(found) = named
            .iter()
            .find_map(|&name| Some((name.to_owned(), text(name)?)))
        {
            return vec![found];
        }
        properties
            .keys()
            .filter_map(|name| Some((name.clone(), text(name)?)))
            .take(FILTERS_MAX)
            .collect()
    }

    fn created_together(&self, inputs: &Value) -> LookUp {
        let inputs = inputs.as_array().map(Vec::as_slice).unwrap_or_default();
        let emails: Option<Vec<String>> = inputs
            .iter()
            .map(|input| input["properties"].as_object().and_then(email_of))
            .collect();
        match emails {
            Some(emails) if self.is_contacts() && !emails.is_empty() => {
                let ids: Vec<Value> = emails.into_iter().map(|email| json!({"id": email})).collect();
                let body = json!({"idProperty": "email", "properties": ["email"], "inputs": ids});
                LookUp::post(format!("{}/batch/read", self.prefix), Some(body))
            }
            _ => LookUp::post(format!("{}/search", self.prefix), None),
        }
    }

    fn named_together(&self, body: &Value) -> Option<LookUp> {
        let inputs = body["inputs"].as_array()?;
        let ids: Option<Vec<Value>> = inputs
            .iter()
            .map(|input| Some(json!({"id": scalar(&input["id"])?})))
            .collect();
        let mut asked = json!({"properties": [], "inputs": ids?});
        if let Some(id_property) = inputs.first().and_then(|input| input["idProperty"].as_str()) {
            asked["idProperty"] = id_property.into();
        }
        Some(LookUp::post(format!("{}/batch/read", self.prefix), Some(asked)))
    }
}

/// The associations of one object with those of a kind.
pub(crate) struct AssociationsOf<'a> {
    prefix: &'a str,
    pub(crate) from_type: &'a str,
    pub(crate) from_id: &'a str,
    pub(crate) to_type: &'a str,
    pub(crate) to_id: &'a str,
    /// Whether it is the one without a label.
    pub(crate) default: bool,
}

impl AssociationsOf<'_> {
    pub(crate) fn list_path(&self) -> String {
        format!("{}/{}/associations/{}", self.prefix, self.from_id, self.to_type)
    }
}

/// `/crm/v4/objects/{from}/{id}/associations/[default/]{to}/{toId}`, or the same under a date. Version 3 lists others.
pub(crate) fn associations_of(path: &str) -> Option<AssociationsOf<'_>> {
    let objects = Objects::parse(path)?;
    if !path.starts_with("/crm/v4/") && !path.starts_with("/crm/objects/") {
        return None;
    }
    let segments: Vec<&str> = objects.rest.split('/').collect();
    let (from_id, to_type, to_id, default) = match segments.as_slice() {
        [id, "associations", "default", to, to_id] => (id, to, to_id, true),
        [id, "associations", to, to_id] => (id, to, to_id, false),
        _ => return None,
    };
    let whole = [from_id, to_type, to_id]
        .iter()
        .all(|segment| !segment.is_empty());
    whole.then_some(AssociationsOf {
        prefix: objects.prefix,
        from_type: objects.object_type,
        from_id,
        to_type,
        to_id,
        default,
    })
}

fn email_of(properties: &Map<String, Value>) -> Option<String> {
    scalar(properties.get("email")?).filter(|email| !email.is_empty())
}

/// `v3` or `2026-03`.
fn is_version(segment: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    segment.strip_prefix('v').is_some_and(is_number)
        || segment
            .split_once('-')
            .is_some_and(|(year, month)| is_number(year) && is_number(month))
}

/// Properties are texts, whatever they were sent as.
pub(crate) fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Percent-encoded for one segment of a path, or one value of a query.
pub(crate) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push('%');
            for half in [byte >> 4, byte & 15] {
                out.push(char::from(b"0123456789ABCDEF"[usize::from(half)]));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: &str, target: &str, body: &str, expected: Option<(&str, &str, &str)>) {
        let found = look_up(Dialect::HubSpot, method, target, Some(body.as_bytes()));
        let found = found
            .as_ref()
            .map(|it| (it.method, it.path.as_str(), it.body.as_deref().unwrap_or("")));
        assert_eq!(found, expected, "{method} {target} {body}");
    }

    #[test]
    fn a_created_contact_is_looked_up_by_its_email_under_the_same_version() {
        let ada = r#"{"properties":{"email":"ada+1@example.com","firstname":"Ada"}}"#;
        check(
            "POST",
            "/crm/v3/objects/contacts",
            ada,
            Some((
                "GET",
                "/crm/v3/objects/contacts/ada%2B1%40example.com?idProperty=email",
                "",
            )),
        );
        check(
            "POST",
            "/crm/objects/2026-03/0-1",
            ada,
            Some((
                "GET",
                "/crm/objects/2026-03/0-1/ada%2B1%40example.com?idProperty=email",
                "",
            )),
        );
    }

    #[test]
    fn what_has_no_unique_property_is_searched_by_what_it_is_called() {
        let search = |property: &str, value: &str| {
            json!({"filterGroups": [{"filters": [{"propertyName": property, "operator": "EQ", "value": value}]}]}).to_string()
        };
        check(
            "POST",
            "/crm/v3/objects/companies",
            r#"{"properties":{"name":"Acme","domain":"acme.test"}}"#,
            Some((
                "POST",
                "/crm/v3/objects/companies/search",
                &search("domain", "acme.test"),
            )),
        );
        check(
            "POST",
            "/crm/v3/objects/deals",
            r#"{"properties":{"dealname":"Big","amount":10}}"#,
            Some(("POST", "/crm/v3/objects/deals/search", &search("dealname", "Big"))),
        );
        check(
            "POST",
            "/crm/v3/objects/2-123",
            r#"{"properties":{"colour":"red"}}"#,
            Some(("POST", "/crm/v3/objects/2-123/search", &search("colour", "red"))),
        );
        check(
            "POST",
            "/crm/v3/objects/deals",
            "no json",
            Some(("POST", "/crm/v3/objects/deals/search", "")),
        );
    }

    #[test]
    fn a_batch_is_read_by_what_its_inputs_are_known_by() {
        check(
            "POST",
            "/crm/v3/objects/contacts/batch/create",
            r#"{"inputs":[{"properties":{"email":"a@b.c"}}]}"#,
            Some((
                "POST",
                "/crm/v3/objects/contacts/batch/read",
                &json!({"idProperty": "email", "properties": ["email"], "inputs": [{"id": "a@b.c"}]})
                    .to_string(),
            )),
        );
        check(
            "POST",
            "/crm/v3/objects/contacts/batch/create",
            r#"{"inputs":[{"properties":{"email":"a@b.c"}},{"properties":{"firstname":"Ada"}}]}"#,
            Some(("POST", "/crm/v3/objects/contacts/search", "")),
        );
        check(
            "POST",
            "/crm/v3/objects/deals/batch/archive",
            r#"{"inputs":[{"id":"7"}]}"#,
            Some((
                "POST",
                "/crm/v3/objects/deals/batch/read",
                &json!({"properties": [], "inputs": [{"id": "7"}]}).to_string(),
            )),
        );
    }

    #[test]
    fn a_write_by_id_is_looked_up_at_that_id() {
        let get = |path| Some(("GET", path, ""));
        let contact = "/crm/v3/objects/contacts/7";
        check("PATCH", contact, "{}", get(contact));
        check("DELETE", contact, "", get(contact));
        check(
            "PATCH",
            "/crm/v3/objects/contacts/a%40b.c?idProperty=email",
            "{}",
            get("/crm/v3/objects/contacts/a%40b.c?idProperty=email"),
        );
        check(
            "POST",
            "/crm/v3/objects/contacts/merge",
            r#"{"primaryObjectId":"7","objectIdToMerge":"8"}"#,
            get(contact),
        );
        for path in [
            "/crm/v4/objects/contact/7/associations/default/company/9",
            "/crm/v4/objects/contact/7/associations/company/9",
        ] {
            check(
                "PUT",
                path,
                "",
                get("/crm/v4/objects/contact/7/associations/company"),
            );
        }
        check(
            "PUT",
            "/crm/objects/2026-03/contacts/7/associations/companies/9",
            "[]",
            get("/crm/objects/2026-03/contacts/7/associations/companies"),
        );
        check("PUT", "/settings/v3/users/7", "{}", get("/settings/v3/users/7"));
    }

    #[test]
    fn nothing_is_made_up() {
        check("POST", "/submissions/v3/integration/submit/1/2", "{}", None);
        check("POST", "/crm/v3/objects/contacts/gdpr-delete", "{}", None);
        check("POST", "/crm/v3/lists", "{}", None);
        let generic = look_up(Dialect::Generic, "POST", "/crm/v3/objects/contacts", Some(b"{}"));
        assert_eq!(generic, None);
    }

    #[test]
    fn debug_shows_nothing_of_what_is_looked_for() {
        let body = br#"{"properties":{"email":"canary@example.com"}}"#;
        let found = look_up(Dialect::HubSpot, "POST", "/crm/v3/objects/contacts", Some(body)).unwrap();
        assert!(!format!("{found:?}").contains("canary"));
    }
}
