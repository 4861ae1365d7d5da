//! Looking first whether what a write would bring is already there.
//!
//! Only for writes whose end state can be looked up and compared whole: the creation of one object that a unique property names,
//! and associations. Where anything is left to guess, the write is sent and the provider decides.
//!
//! Source: HubSpot, CRM objects API (`idProperty`), associations API v4.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::app::Dialect;
use crate::strict_json;
use crate::write_lookup::{LookUp, Objects, associations_of, encoded, scalar};

/// What a write would bring, and how to look for it.
#[derive(Clone)]
pub struct Wanted(Kind);

#[derive(Clone)]
enum Kind {
    Object {
        prefix: String,
        property: String,
        value: String,
        properties: Map<String, Value>,
        /// Associations that would be made with it cannot be compared.
        with_associations: bool,
    },
    Association {
        list_path: String,
        from: (String, String),
        to: (String, String),
        /// `None`: the one without a label.
        types: Option<Vec<(String, u64)>>,
    },
}

impl fmt::Debug for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wanted(..)")
    }
}

/// What a look-up says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// All of it is there: the answer that the write would have got.
    There(AsAnswered),
    /// It is not there, or not like that.
    NotThere,
    /// There is more to look through.
    More(LookUp),
    /// The provider says that it does not look these objects up by that property.
    CannotTell,
    /// Not an answer to the question: an edge's page, or something that nobody expects. The same look may be answered later.
    Unclear,
}

/// A status and a body.
#[derive(Clone, PartialEq, Eq)]
pub struct AsAnswered {
    /// The status.
    pub status: u16,
    /// The body, JSON.
    pub body: Vec<u8>,
}

impl fmt::Debug for AsAnswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsAnswered")
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl Wanted {
    /// What `method` on `path` with `body` would bring. `property` is the unique one that the caller names.
    ///
    /// # Errors
    ///
    /// Why it cannot be looked for: one sentence.
    pub fn of(
        dialect: Dialect,
        method: &str,
        path: &str,
        property: Option<&str>,
        body: &[u8],
    ) -> Result<Self, &'static str> {
        const ONLY: &str =
            "read-before-write fits the creation of one object by a unique property, and associations (PUT)";
        if dialect != Dialect::HubSpot {
            return Err("read-before-write is not known for this provider");
        }
        match method {
            "POST" => match Objects::parse(path) {
                Some(objects) if objects.rest.is_empty() => Self::object(objects.prefix, property, body),
                _ => Err(ONLY),
            },
            "PUT" => Self::association(path, body).unwrap_or(Err(ONLY)),
            _ => Err(ONLY),
        }
    }

    fn object(prefix: &str, property: Option<&str>, body: &[u8]) -> Result<Self, &'static str> {
        /// What a path of bounded length can ask for.
        const PROPERTIES_MAX: usize = 100;
        const NAMES_MAX: usize = 4096;
        let property = property.ok_or("read-before-write needs the unique property: ;property=email")?;
        let body = strict_json::parse(body).ok_or("the body is not JSON that can be compared")?;
        let Value::Object(properties) = &body["properties"] else {
            return Err("the body has no properties");
        };
        let value = properties
            .get(property)
            .and_then(scalar)
            .filter(|value| !value.is_empty())
            .ok_or("the body has no value of the property that the guard names")?;
        if properties
            .values()
            .any(|value| value.is_array() || value.is_object())
        {
            return Err("a property of the body is no text, number or boolean");
        }
        let names: usize = properties.keys().map(|name| name.len() + 1).sum();
        if properties.len() > PROPERTIES_MAX || names > NAMES_MAX {
            return Err("the body has too many properties to be looked up");
        }
        let none = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        Ok(Self(Kind::Object {
            prefix: prefix.to_owned(),
            property: property.to_owned(),
            value,
            properties: properties.clone(),
            with_associations: !none(&body["associations"]),
        }))
    }

    fn association(path: &str, body: &[u8]) -> Option<Result<Self, &'static str>> {
        let of = associations_of(path)?;
        let types = if of.default {
            None
        } else {
            let Some(types) = types_of(body) else {
                return Some(Err("the body does not name the types of the association"));
            };
            Some(types)
        };
        Some(Ok(Self(Kind::Association {
            list_path: of.list_path(),
            from: (of.from_type.to_owned(), of.from_id.to_owned()),
            to: (of.to_type.to_owned(), of.to_id.to_owned()),
            types,
        })))
    }

    /// What to ask first.
    pub fn look_up(&self) -> LookUp {
        match &self.0 {
            Kind::Object {
                prefix,
                property,
                value,
                properties,
                ..
            } => {
                let names: Vec<String> = properties.keys().map(|name| encoded(name)).collect();
                LookUp::get(format!(
                    "{prefix}/{}?idProperty={}&properties={}",
                    encoded(value),
                    encoded(property),
                    names.join(",")
                ))
            }
            Kind::Association { list_path, .. } => LookUp::get(format!("{list_path}?limit=500")),
        }
    }

    /// What an answer to the look-up says; `None` for one that says nothing about it: 401, 403, 423, 429, 477, 5xx. `at` is the
    /// time to be named in an answer that names one.
    ///
    /// Only what HubSpot itself says counts: its "not found" is JSON. Pages of whoever stands before it are not its word.
    pub fn found(&self, status: u16, body: &[u8], at: &str) -> Option<Found> {
        if let 401 | 403 | 423 | 429 | 477 | 500.. = status {
            return None;
        }
        let Some(body_read) = strict_json::parse(body).filter(Value::is_object) else {
            return Some(Found::Unclear);
        };
        match status {
            200 => {}
            404 if says_not_found(&body_read) => return Some(Found::NotThere),
            400 if self.is_not_looked_up_by(&body_read) => return Some(Found::CannotTell),
            _ => return Some(Found::Unclear),
        }
        Some(match &self.0 {
            Kind::Object {
                properties,
                with_associations,
                ..
            } => {
                let there = &body_read["properties"];
                if !there.is_object() {
                    return Some(Found::Unclear);
                }
                let all = properties
                    .iter()
                    .all(|(name, wanted)| is_equal(name, wanted, &there[name]));
                if all && !with_associations {
                    // Clients take a create that is answered otherwise for a failure.
                    Found::There(AsAnswered {
                        status: 201,
                        body: body.to_vec(),
                    })
                } else {
                    Found::NotThere
                }
            }
            Kind::Association {
                list_path,
                from,
                to,
                types,
            } => associated(&body_read, list_path, from, to, types.as_deref(), at),
        })
    }

    /// Whether a 400 says that the property names none of these objects. How HubSpot words that for reads is not documented, so it
    /// must speak of the property and of what is wrong with it; any other 400 may be about the value, or about something else.
    fn is_not_looked_up_by(&self, said: &Value) -> bool {
        let Kind::Object { property, .. } = &self.0 else {
            return false;
        };
        let message = said["message"].as_str().unwrap_or_default().to_ascii_lowercase();
        let wrong = [
            "unique",
            "does not exist",
            "doesn't exist",
            "not a valid property",
        ];
        message.contains(&property.to_ascii_lowercase()) && wrong.iter().any(|words| message.contains(words))
    }
}

/// HubSpot's own 404. Observed with and without a category; always with a status word and a correlation id.
fn says_not_found(said: &Value) -> bool {
    said["category"] == "OBJECT_NOT_FOUND" || (said["status"] == "error" && said["correlationId"].is_string())
}

/// As HubSpot keeps it: everything is text, nothing is the same as no text, and e-mail addresses are in small letters.
fn is_equal(name: &str, wanted: &Value, there: &Value) -> bool {
    let [wanted, there] = [wanted, there].map(|value| scalar(value).unwrap_or_default());
    if name == "email" {
        wanted.trim().eq_ignore_ascii_case(&there)
    } else {
        wanted == there
    }
}

fn types_of(body: &[u8]) -> Option<Vec<(String, u64)>> {
    let body = strict_json::parse(body)?;
    let types: Option<Vec<_>> = body
        .as_array()?
        .iter()
        .map(|one| {
            let category = one["associationCategory"].as_str()?.to_owned();
            Some((category, one["associationTypeId"].as_u64()?))
        })
        .collect();
    types.filter(|types| !types.is_empty())
}

fn associated(
    page: &Value,
    list_path: &str,
    from: &(String, String),
    to: &(String, String),
    types: Option<&[(String, u64)]>,
    at: &str,
) -> Found {
    let Some(results) = page["results"].as_array() else {
        return Found::Unclear;
    };
    let Some(result) = results
        .iter()
        .find(|result| scalar(&result["toObjectId"]).as_deref() == Some(to.1.as_str()))
    else {
        return match page["paging"]["next"]["after"].as_str() {
            Some(after) => Found::More(LookUp::get(format!(
                "{list_path}?limit=500&after={}",
                encoded(after)
            ))),
            None => Found::NotThere,
        };
    };
    let there = result["associationTypes"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let has = |one: &Value, category: &str, id: u64| {
        one["category"].as_str() == Some(category) && one["typeId"].as_u64() == Some(id)
    };
    let id = |text: &str| text.parse::<u64>().map_or_else(|_| json!(text), |id| json!(id));
    match types {
        None => {
            let plain = there
                .iter()
                .find(|one| one["label"].is_null() && one["category"] == "HUBSPOT_DEFINED");
            let Some(plain) = plain else {
                return Found::NotThere;
            };
            let body = json!({
                "status": "COMPLETE",
                "results": [{
                    "from": {"id": from.1},
                    "to": {"id": to.1},
                    "associationSpec": {"associationCategory": plain["category"], "associationTypeId": plain["typeId"]},
                }],
                "startedAt": at,
                "completedAt": at,
            });
            Found::There(AsAnswered {
                status: 200,
                body: body.to_string().into_bytes(),
            })
        }
        Some(types) => {
            let all = types
                .iter()
                .all(|(category, id)| there.iter().any(|one| has(one, category, *id)));
            if !all {
                return Found::NotThere;
            }
            let labels: Vec<&Value> = there
                .iter()
                .filter(|one| types.iter().any(|(category, id)| has(one, category, *id)))
                .map(|one| &one["label"])
                .filter(|label| label.is_string())
                .collect();
            let body = json!({
                "fromObjectTypeId": type_id(&from.0),
                "fromObjectId": id(&from.1),
                "toObjectTypeId": type_id(&to.0),
                "toObjectId": id(&to.1),
                "labels": labels,
            });
            Found::There(AsAnswered {
                status: 201,
                body: body.to_string().into_bytes(),
            })
        }
    }
}

/// HubSpot's number for a kind of objects; one that we do not know stays as it was written.
fn type_id(name: &str) -> &str {
    match name {
        "contact" | "contacts" => "0-1",
        "company" | "companies" => "0-2",
        "deal" | "deals" => "0-3",
        "ticket" | "tickets" => "0-5",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: &str = "2026-03-10T00:00:00Z";

    fn create(body: &str) -> Result<Wanted, &'static str> {
        Wanted::of(
            Dialect::HubSpot,
            "POST",
            "/crm/v3/objects/contacts",
            Some("email"),
            body.as_bytes(),
        )
    }

    fn put(path: &str, body: &str) -> Result<Wanted, &'static str> {
        Wanted::of(Dialect::HubSpot, "PUT", path, None, body.as_bytes())
    }

    #[test]
    fn a_create_is_there_only_when_every_property_is() {
        let wanted =
            create(r#"{"properties":{"email":"Ada@example.com","age":36,"vip":true,"note":""}}"#).unwrap();
        assert_eq!(
            wanted.look_up().path,
            "/crm/v3/objects/contacts/Ada%40example.com?idProperty=email&properties=age,email,note,vip"
        );
        let check = |status, body: &str, expected: Option<&str>| {
            let found = wanted
                .found(status, body.as_bytes(), AT)
                .map(|found| match found {
                    Found::There(answer) => {
                        assert_eq!((answer.status, answer.body.as_slice()), (201, body.as_bytes()));
                        "there"
                    }
                    Found::NotThere => "not there",
                    Found::More(_) => "more",
                    Found::CannotTell => "cannot tell",
                    Found::Unclear => "unclear",
                });
            assert_eq!(found, expected, "{status} {body}");
        };
        let there =
            r#"{"id":"7","properties":{"email":"ada@example.com","age":"36","vip":"true","note":null}}"#;
        check(200, there, Some("there"));
        check(200, &there.replace("36", "37"), Some("not there"));
        check(200, &there.replace("null", "\"x\""), Some("not there"));
        check(
            200,
            r#"{"id":"7","properties":{"email":"ada@example.com"}}"#,
            Some("not there"),
        );
        for not_found in [
            r#"{"status":"error","message":"resource not found","correlationId":"c"}"#,
            r#"{"message":"Object not found.","category":"OBJECT_NOT_FOUND"}"#,
        ] {
            check(404, not_found, Some("not there"));
        }
        let says = |message: &str| {
            format!(r#"{{"status":"error","message":"{message}","category":"VALIDATION_ERROR"}}"#)
        };
        check(400, &says("email is not a unique property"), Some("cannot tell"));
        check(
            400,
            &says(r#"Property \"EMAIL\" does not exist"#),
            Some("cannot tell"),
        );
        // About the value, or about something else: not about whether it can be looked up by that.
        check(400, &says("Email address x is invalid"), Some("unclear"));
        check(400, &says("limit must be unique"), Some("unclear"));
    }

    #[test]
    fn what_hubspot_does_not_say_is_nobodys_word() {
        let wanted = create(r#"{"properties":{"email":"a@b.c"}}"#).unwrap();
        let association = put("/crm/v4/objects/contacts/7/associations/default/companies/9", "").unwrap();
        for status in [200, 204, 302, 400, 404, 405, 409] {
            for body in [
                "",
                "<html>not found</html>",
                "[]",
                "null",
                "{}",
                r#"{"results":7}"#,
                r#"{"a":1,"a":1}"#,
            ] {
                for wanted in [&wanted, &association] {
                    assert_eq!(
                        wanted.found(status, body.as_bytes(), AT),
                        Some(Found::Unclear),
                        "{status} {body}"
                    );
                }
            }
        }
        for status in [401, 403, 423, 429, 477, 500, 503] {
            assert_eq!(wanted.found(status, b"", AT), None, "{status}");
        }
    }

    #[test]
    fn a_create_with_associations_is_never_taken_to_be_there() {
        let wanted =
            create(r#"{"properties":{"email":"a@b.c"},"associations":[{"to":{"id":"9"}}]}"#).unwrap();
        let there = br#"{"properties":{"email":"a@b.c"}}"#;
        assert_eq!(wanted.found(200, there, AT), Some(Found::NotThere));
        let none = create(r#"{"properties":{"email":"a@b.c"},"associations":[]}"#).unwrap();
        assert!(matches!(none.found(200, there, AT), Some(Found::There(_))));
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        for body in [
            "",
            "[]",
            "{}",
            r#"{"properties":{}}"#,
            r#"{"properties":{"email":""}}"#,
            r#"{"properties":{"email":"a@b.c","x":{}}}"#,
            r#"{"properties":{"email":"a@b.c","email":"d@e.f"}}"#,
        ] {
            assert!(create(body).is_err(), "{body}");
        }
        let body = br#"{"properties":{"email":"a@b.c"}}"#;
        let check = |dialect, method, path, property| {
            assert!(
                Wanted::of(dialect, method, path, property, body).is_err(),
                "{method} {path}"
            );
        };
        let contacts = "/crm/v3/objects/contacts";
        check(Dialect::HubSpot, "POST", contacts, None);
        check(Dialect::Generic, "POST", contacts, Some("email"));
        check(Dialect::HubSpot, "PATCH", contacts, Some("email"));
        check(
            Dialect::HubSpot,
            "POST",
            "/crm/v3/objects/contacts/batch/create",
            Some("email"),
        );
        check(
            Dialect::HubSpot,
            "PUT",
            "/crm/v3/objects/contacts/7",
            Some("email"),
        );
    }

    #[test]
    fn an_association_is_there_with_its_label_or_not_at_all() {
        let default = put("/crm/v4/objects/contacts/7/associations/default/companies/9", "").unwrap();
        assert_eq!(
            default.look_up().path,
            "/crm/v4/objects/contacts/7/associations/companies?limit=500"
        );
        let page = |label: &str| {
            format!(
                r#"{{"results":[{{"toObjectId":8,"associationTypes":[]}},{{"toObjectId":9,"associationTypes":[{{"category":"HUBSPOT_DEFINED","typeId":279,"label":{label}}}]}}]}}"#
            )
        };
        let Some(Found::There(answer)) = default.found(200, page("null").as_bytes(), AT) else {
            panic!("there");
        };
        assert_eq!(answer.status, 200);
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(body["results"][0]["associationSpec"]["associationTypeId"], 279);
        assert_eq!(
            default.found(200, page("\"Primary\"").as_bytes(), AT),
            Some(Found::NotThere)
        );

        let labelled = put(
            "/crm/v4/objects/contacts/7/associations/companies/9",
            r#"[{"associationCategory":"HUBSPOT_DEFINED","associationTypeId":279}]"#,
        )
        .unwrap();
        let Some(Found::There(answer)) = labelled.found(200, page("\"Primary\"").as_bytes(), AT) else {
            panic!("there");
        };
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(
            (answer.status, body),
            (
                201,
                json!({"fromObjectTypeId": "0-1", "fromObjectId": 7, "toObjectTypeId": "0-2", "toObjectId": 9, "labels": ["Primary"]})
            )
        );
        let other = page("null").replace("279", "280");
        assert_eq!(labelled.found(200, other.as_bytes(), AT), Some(Found::NotThere));
        assert!(put("/crm/v4/objects/contacts/7/associations/companies/9", "[]").is_err());
    }

    #[test]
    fn associations_are_looked_through_page_by_page() {
        let wanted = put("/crm/v4/objects/contacts/7/associations/default/companies/9", "").unwrap();
        let page = br#"{"results":[],"paging":{"next":{"after":"a/b"}}}"#;
        let Some(Found::More(next)) = wanted.found(200, page, AT) else {
            panic!("more");
        };
        assert_eq!(
            next.path,
            "/crm/v4/objects/contacts/7/associations/companies?limit=500&after=a%2Fb"
        );
    }
}
