//! Which records of a portal belong together: the associations API, v4 and dated alike.
//!
//! An association has one or more types, each with a number; it is seen from both of its ends. Associating twice is the
//! same as once. Limits on their number and the management of labels are left out.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use http::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::answer::{self, Answer};
use crate::clock::iso;
use crate::crm::{self, Failure, Records, scalar};
use crate::serve::Call;

/// HubSpot's limit for one page, and what it is without a `limit`.
const PAGE_MAX: usize = 500;
/// HubSpot's limit for one batch of reads.
const BATCH_READ_MAX: usize = 1000;

/// What can be done with associations of objects of a type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Associates without a label.
    Default(Pair),
    /// Associates with the types in the body.
    Label(Pair),
    /// Takes every association of the two away.
    Remove(Pair),
    List {
        from_id: String,
        to_type: String,
    },
    BatchRead {
        to_type: String,
    },
}

/// Two records, but for the type of the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    from_id: String,
    to_type: String,
    to_id: String,
}

impl Operation {
    /// From what follows the first type in the path of an object.
    pub(crate) fn of(method: &Method, rest: &[&str]) -> Option<Self> {
        let pair = |from_id: &str, to_type: &str, to_id: &str| Pair {
            from_id: from_id.to_owned(),
            to_type: crm::type_name(to_type),
            to_id: to_id.to_owned(),
        };
        Some(match (method.as_str(), rest) {
            ("PUT", [from_id, "associations", "default", to_type, to_id]) => {
                Self::Default(pair(from_id, to_type, to_id))
            }
            ("PUT", [from_id, "associations", to_type, to_id]) => Self::Label(pair(from_id, to_type, to_id)),
            ("DELETE", [from_id, "associations", to_type, to_id]) => {
                Self::Remove(pair(from_id, to_type, to_id))
            }
            ("GET", [from_id, "associations", to_type]) => Self::List {
                from_id: (*from_id).to_owned(),
                to_type: crm::type_name(to_type),
            },
            _ => return None,
        })
    }

    /// From what follows both types in a path of its own.
    pub(crate) fn of_types(method: &Method, to_type: &str, rest: &[&str]) -> Option<Self> {
        (method == Method::POST && rest == ["batch", "read"]).then(|| Self::BatchRead {
            to_type: crm::type_name(to_type),
        })
    }

    pub(crate) fn writes(&self) -> bool {
        matches!(self, Self::Default(_) | Self::Label(_) | Self::Remove(_))
    }
}

/// One end's view: what its record is associated with, and how.
#[derive(Debug, Default)]
pub(crate) struct Associations {
    ends: HashMap<End, BTreeMap<u64, BTreeSet<Kind>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct End {
    from_type: String,
    from_id: u64,
    to_type: String,
}

/// A type of association, as seen from one end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    category: String,
    type_id: u64,
}

impl Kind {
    /// The one without a label. Source: HubSpot, "association type id values"; other pairs of types get numbers made up here.
    fn unlabelled(from_type: &str, to_type: &str) -> Self {
        let type_id = match (from_type, to_type) {
            ("contacts", "companies") => 279,
            ("companies", "contacts") => 280,
            ("deals", "contacts") => 3,
            ("contacts", "deals") => 4,
            ("deals", "companies") => 341,
            ("companies", "deals") => 342,
            _ => 9_000 + u64::from(from_type > to_type),
        };
        Self {
            category: "HUBSPOT_DEFINED".to_owned(),
            type_id,
        }
    }

    fn view(&self) -> Value {
        json!({"category": self.category, "typeId": self.type_id, "label": null})
    }
}

/// One request about associations of objects of one type.
pub(crate) struct Request<'a> {
    pub(crate) now: Timestamp,
    pub(crate) from_type: &'a str,
    pub(crate) call: &'a Call,
}

impl Request<'_> {
    pub(crate) fn perform(&self, records: &mut Records, operation: &Operation) -> Answer {
        let result = match operation {
            Operation::Default(pair) => self.associate(records, pair),
            Operation::Label(pair) => self.label(records, pair),
            Operation::Remove(pair) => self.remove(records, pair),
            Operation::List { from_id, to_type } => self.list(records, from_id, to_type),
            Operation::BatchRead { to_type } => self.batch_read(records, to_type),
        };
        result.unwrap_or_else(|failure| match failure {
            Failure::NotFound(_) => answer::not_found(&self.call.correlation_id),
            Failure::Invalid(message) => answer::validation_error(&message, &self.call.correlation_id),
            Failure::Conflict { .. } | Failure::NotUnique { .. } => {
                unreachable!("associations hold no properties")
            }
        })
    }

    fn associate(&self, records: &mut Records, pair: &Pair) -> Result<Answer, Failure> {
        let (from_id, to_id) = self.ids(records, pair)?;
        let there = Kind::unlabelled(self.from_type, &pair.to_type);
        let back = Kind::unlabelled(&pair.to_type, self.from_type);
        let result = |from: u64, to: u64, kind: &Kind| {
            json!({
                "from": {"id": from.to_string()},
                "to": {"id": to.to_string()},
                "associationSpec": {"associationCategory": kind.category, "associationTypeId": kind.type_id},
            })
        };
        let body = json!({
            "status": "COMPLETE",
            "results": [result(from_id, to_id, &there), result(to_id, from_id, &back)],
            "startedAt": iso(self.now),
            "completedAt": iso(self.now),
        });
        self.link(records, (from_id, &there), (&pair.to_type, to_id, &back));
        Ok(Answer::json(StatusCode::OK, &body))
    }

    fn label(&self, records: &mut Records, pair: &Pair) -> Result<Answer, Failure> {
        let (from_id, to_id) = self.ids(records, pair)?;
        let kinds: Vec<Value> = serde_json::from_slice(&self.call.body)
            .map_err(|_| Failure::Invalid("Invalid input JSON: a list is expected".to_owned()))?;
        let kinds = kinds.iter().map(|kind| {
            let category = kind["associationCategory"].as_str();
            let type_id = kind["associationTypeId"].as_u64();
            Some(Kind {
                category: category?.to_owned(),
                type_id: type_id?,
            })
        });
        let kinds = kinds
            .collect::<Option<Vec<_>>>()
            .filter(|kinds| !kinds.is_empty());
        let kinds = kinds.ok_or_else(|| {
            Failure::Invalid("associationCategory and associationTypeId are needed".to_owned())
        })?;
        let unlabelled = Kind::unlabelled(self.from_type, &pair.to_type);
        for kind in kinds {
            let back = if kind == unlabelled {
                Kind::unlabelled(&pair.to_type, self.from_type)
            } else {
                kind.clone()
            };
            self.link(records, (from_id, &kind), (&pair.to_type, to_id, &back));
        }
        let body = json!({
            "fromObjectTypeId": type_id(self.from_type),
            "fromObjectId": from_id.to_string(),
            "toObjectTypeId": type_id(&pair.to_type),
            "toObjectId": to_id.to_string(),
            "labels": [],
        });
        Ok(Answer::json(StatusCode::CREATED, &body))
    }

    fn remove(&self, records: &mut Records, pair: &Pair) -> Result<Answer, Failure> {
        let (from_id, to_id) = self.ids(records, pair)?;
        let ends = &mut records.associations.ends;
        for (end, other) in [
            (end(self.from_type, from_id, &pair.to_type), to_id),
            (end(&pair.to_type, to_id, self.from_type), from_id),
        ] {
            if let Some(associated) = ends.get_mut(&end) {
                associated.remove(&other);
            }
        }
        Ok(Answer::empty(StatusCode::NO_CONTENT))
    }

    fn list(&self, records: &mut Records, from_id: &str, to_type: &str) -> Result<Answer, Failure> {
        let from_id = records.known(self.from_type, from_id)?;
        let number = |name: &str| match self.call.query(name).map(str::parse::<u64>) {
            None => Ok(None),
            Some(Ok(number)) => Ok(Some(number)),
            Some(Err(_)) => Err(Failure::Invalid(format!("{name} must be a number"))),
        };
        let limit = number("limit")?.map_or(PAGE_MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        if !(1..=PAGE_MAX).contains(&limit) {
            return Err(Failure::Invalid(format!(
                "limit must be a number from 1 to {PAGE_MAX}"
            )));
        }
        let after = number("after")?.unwrap_or(0);
        let associated = records.associated(self.from_type, from_id, to_type);
        let mut following = associated.filter(|(to_id, _)| *to_id > after);
        let page: Vec<_> = following.by_ref().take(limit).collect();
        let results: Vec<_> = page.iter().map(|(to_id, kinds)| view(*to_id, kinds)).collect();
        let mut body = json!({"results": results});
        if following.next().is_some()
            && let Some((last, _)) = page.last()
        {
            // Absolute and to HubSpot itself, as in lists of objects.
            let link = format!(
                "https://api.hubapi.com{}?limit={limit}&after={last}",
                self.call.path
            );
            body["paging"] = json!({"next": {"after": last.to_string(), "link": link}});
        }
        Ok(Answer::json(StatusCode::OK, &body))
    }

    fn batch_read(&self, records: &mut Records, to_type: &str) -> Result<Answer, Failure> {
        let body: Value = serde_json::from_slice(&self.call.body)
            .map_err(|_| Failure::Invalid("Invalid input JSON".to_owned()))?;
        let inputs = body["inputs"]
            .as_array()
            .filter(|inputs| inputs.len() <= BATCH_READ_MAX)
            .ok_or_else(|| Failure::Invalid(format!("inputs is needed, at most {BATCH_READ_MAX}")))?;
        let mut results = Vec::new();
        let mut missing = Vec::new();
        for input in inputs {
            let id = scalar(&input["id"])
                .ok_or_else(|| Failure::Invalid("id is missing or no text".to_owned()))?;
            let to: Vec<_> = match records.known(self.from_type, &id) {
                Ok(from_id) => records
                    .associated(self.from_type, from_id, to_type)
                    .map(|(to_id, kinds)| view(to_id, kinds))
                    .collect(),
                Err(_) => Vec::new(),
            };
            // A record without associations is reported as if it were not there, as one that is not.
            if to.is_empty() {
                missing.push(id);
            } else {
                results.push(json!({"from": {"id": id}, "to": to}));
            }
        }
        let mut body = json!({
            "status": "COMPLETE",
            "results": results,
            "startedAt": iso(self.now),
            "completedAt": iso(self.now),
        });
        if missing.is_empty() {
            return Ok(Answer::json(StatusCode::OK, &body));
        }
        body["numErrors"] = json!(missing.len());
        body["errors"] = missing
            .iter()
            .map(|id| {
                let message = format!("No {to_type} is associated with {} {id}.", self.from_type);
                crm::item_error(
                    "OBJECT_NOT_FOUND",
                    &message,
                    &json!({"fromObjectId": [id], "toObjectType": [to_type]}),
                )
            })
            .collect();
        Ok(Answer::json(StatusCode::MULTI_STATUS, &body))
    }

    fn ids(&self, records: &mut Records, pair: &Pair) -> Result<(u64, u64), Failure> {
        Ok((
            records.known(self.from_type, &pair.from_id)?,
            records.known(&pair.to_type, &pair.to_id)?,
        ))
    }

    fn link(&self, records: &mut Records, from: (u64, &Kind), to: (&str, u64, &Kind)) {
        let ((from_id, there), (to_type, to_id, back)) = (from, to);
        let ends = &mut records.associations.ends;
        for (end, other, kind) in [
            (end(self.from_type, from_id, to_type), to_id, there),
            (end(to_type, to_id, self.from_type), from_id, back),
        ] {
            let kinds = ends.entry(end).or_default().entry(other).or_default();
            kinds.insert(kind.clone());
        }
    }
}

impl Records {
    /// What a record is associated with that is still there.
    fn associated<'a>(
        &'a self,
        from_type: &str,
        from_id: u64,
        to_type: &'a str,
    ) -> impl Iterator<Item = (u64, &'a BTreeSet<Kind>)> {
        self.associations
            .ends
            .get(&end(from_type, from_id, to_type))
            .into_iter()
            .flatten()
            .map(|(to_id, kinds)| (*to_id, kinds))
            .filter(|(to_id, _)| self.exists(to_type, *to_id))
    }
}

fn view(to_id: u64, kinds: &BTreeSet<Kind>) -> Value {
    let kinds: Vec<_> = kinds.iter().map(Kind::view).collect();
    json!({"toObjectId": to_id.to_string(), "associationTypes": kinds})
}

fn end(from_type: &str, from_id: u64, to_type: &str) -> End {
    End {
        from_type: from_type.to_owned(),
        from_id,
        to_type: to_type.to_owned(),
    }
}

/// HubSpot's number of a type; for types of the portal's own one that is made up.
fn type_id(object_type: &str) -> String {
    match object_type {
        "contacts" => "0-1",
        "companies" => "0-2",
        "deals" => "0-3",
        "tickets" => "0-5",
        _ => "2-1",
    }
    .to_owned()
}
