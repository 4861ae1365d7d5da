//! The CRM of a portal: contacts, companies, deals and any other type, as far as callers can tell a
//! difference. Contacts are unique by e-mail, every type by the properties that were declared so; nothing else is
//! deduplicated.

use std::collections::{BTreeMap, HashMap};

use http::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::answer::{self, Answer};
use crate::associations::Associations;
use crate::clock::iso;
use crate::serve::Call;

/// HubSpot's limit for one batch.
const BATCH_MAX: usize = 100;
const LIST_LIMIT_DEFAULT: usize = 10;
const LIST_LIMIT_MAX: usize = 100;
const SEARCH_LIMIT_MAX: usize = 200;
/// Paging through more search results than this is refused.
const SEARCH_RESULTS_MAX: usize = 10_000;

/// What can be done with objects of a type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operation {
    List,
    Create,
    Search,
    BatchRead,
    BatchCreate,
    BatchUpdate,
    BatchUpsert,
    BatchArchive,
    Read(String),
    Update(String),
    Archive(String),
}

impl Operation {
    /// From what follows the type in the path.
    pub(crate) fn of(method: &Method, rest: &[&str]) -> Option<Self> {
        Some(match (method.as_str(), rest) {
            ("GET", []) => Self::List,
            ("POST", []) => Self::Create,
            ("POST", ["search"]) => Self::Search,
            ("POST", ["batch", "read"]) => Self::BatchRead,
            ("POST", ["batch", "create"]) => Self::BatchCreate,
            ("POST", ["batch", "update"]) => Self::BatchUpdate,
            ("POST", ["batch", "upsert"]) => Self::BatchUpsert,
            ("POST", ["batch", "archive"]) => Self::BatchArchive,
            ("GET", [id]) => Self::Read((*id).to_owned()),
            ("PATCH", [id]) => Self::Update((*id).to_owned()),
            ("DELETE", [id]) => Self::Archive((*id).to_owned()),
            _ => return None,
        })
    }

    pub(crate) fn is_search(&self) -> bool {
        *self == Self::Search
    }

    pub(crate) fn writes(&self) -> bool {
        !matches!(self, Self::List | Self::Search | Self::BatchRead | Self::Read(_))
    }
}

/// The records of one portal.
#[derive(Debug, Default)]
pub(crate) struct Records {
    collections: HashMap<String, Collection>,
    ids_given: u64,
    pub(crate) associations: Associations,
}

#[derive(Debug, Default)]
struct Collection {
    objects: BTreeMap<u64, Object>,
    archived: Vec<Object>,
    /// Who has which value, for each property by which these objects are unique.
    unique: BTreeMap<String, HashMap<String, u64>>,
}

/// A property by which the objects of a type are unique.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct UniqueProperty {
    object_type: String,
    property: String,
}

impl UniqueProperty {
    pub(crate) fn new(object_type: &str, property: &str) -> Self {
        Self {
            object_type: type_name(object_type),
            property: property.to_owned(),
        }
    }
}

/// HubSpot takes a type by its name, in the singular, too, or by its number.
pub(crate) fn type_name(named: &str) -> String {
    match named {
        "contact" | "0-1" => "contacts",
        "company" | "0-2" => "companies",
        "deal" | "0-3" => "deals",
        "ticket" | "0-5" => "tickets",
        named => named,
    }
    .to_owned()
}

#[derive(Debug, Clone)]
struct Object {
    id: u64,
    properties: BTreeMap<String, String>,
    created_with: BTreeMap<String, String>,
    created_at: Timestamp,
    updated_at: Timestamp,
}

/// What became of a request.
pub(crate) struct Done {
    pub(crate) answer: Answer,
    /// Records that came into being.
    pub(crate) created: u64,
}

/// Why a single record was not written or found.
pub(crate) enum Failure {
    /// Another contact has the e-mail.
    Conflict {
        existing_id: u64,
    },
    /// Another object has this value of a property that is unique.
    NotUnique {
        existing_id: u64,
        property: String,
        value: String,
    },
    NotFound(String),
    Invalid(String),
}

type Properties = BTreeMap<String, Option<String>>;

/// One request about objects of one type.
pub(crate) struct Request<'a> {
    pub(crate) now: Timestamp,
    pub(crate) object_type: &'a str,
    pub(crate) call: &'a Call,
}

impl Request<'_> {
    pub(crate) fn perform(&self, records: &mut Records, operation: &Operation) -> Done {
        let mut created = 0;
        let result = match operation {
            Operation::List => self.list(records),
            Operation::Search => self.search(records),
            Operation::Read(id) => self.read(records, id),
            Operation::Create => self.create(records).inspect(|_| created = 1),
            Operation::Update(id) => self.update(records, id),
            Operation::Archive(id) => {
                // Deleting what is not there is no error.
                if let Ok(id) = id.parse() {
                    records.archive(self.object_type, id);
                }
                Ok(Answer::empty(StatusCode::NO_CONTENT))
            }
            Operation::BatchRead => self.batch_read(records),
            Operation::BatchCreate => self.batch_write(records, &mut created, |records, input| {
                let object = records.create(self.now, self.object_type, properties_of(input)?)?;
                Ok((object, None, true))
            }),
            Operation::BatchUpdate => self.batch_write(records, &mut created, |records, input| {
                let id_property = id_property_of(input);
                if id_property == Some("hs_object_id") {
                    return Err(self.not_unique_by("hs_object_id"));
                }
                let id = self.find(records, text(input, "id")?, id_property)?;
                Ok((
                    records.update(self.now, self.object_type, id, properties_of(input)?)?,
                    None,
                    false,
                ))
            }),
            Operation::BatchUpsert => self.batch_write(records, &mut created, |records, input| {
                let (object, is_new) = self.upsert(records, input)?;
                Ok((object, Some(is_new), is_new))
            }),
            Operation::BatchArchive => self.batch_archive(records),
        };
        let answer = result.unwrap_or_else(|failure| self.refuse(&failure));
        Done { answer, created }
    }

    fn list(&self, records: &mut Records) -> Result<Answer, Failure> {
        let limit = match self.call.query("limit") {
            Some(limit) => limit
                .parse()
                .ok()
                .filter(|limit| (1..=LIST_LIMIT_MAX).contains(limit))
                .ok_or_else(|| {
                    Failure::Invalid(format!(
                        "limit must be a number from 1 to {LIST_LIMIT_MAX}, not {limit:?}"
                    ))
                })?,
            None => LIST_LIMIT_DEFAULT,
        };
        let after: u64 = match self.call.query("after") {
            Some(after) => after
                .parse()
                .map_err(|_| Failure::Invalid(format!("after is not a paging cursor: {after:?}")))?,
            None => 0,
        };
        if self.call.query("archived") == Some("true") {
            return Ok(Answer::json(StatusCode::OK, &json!({"results": []})));
        }
        let objects = &records.collection(self.object_type).objects;
        let mut following = objects.range(after.saturating_add(1)..).map(|(_, object)| object);
        let page: Vec<_> = following.by_ref().take(limit).collect();
        let mut body = json!({"results": page.iter().map(|object| self.view(object)).collect::<Vec<_>>()});
        if following.next().is_some()
            && let Some(last) = page.last()
        {
            body["paging"] = self.paging(&last.id.to_string(), Some(limit));
        }
        Ok(Answer::json(StatusCode::OK, &body))
    }

    fn read(&self, records: &mut Records, id: &str) -> Result<Answer, Failure> {
        let id = self.find(records, id, self.call.query("idProperty"))?;
        let object = records.object(self.object_type, id)?;
        Ok(Answer::json(StatusCode::OK, &self.view(object)))
    }

    fn create(&self, records: &mut Records) -> Result<Answer, Failure> {
        let object = records.create(self.now, self.object_type, properties_of(&self.body()?)?)?;
        Ok(Answer::json(StatusCode::CREATED, &self.view(&object)))
    }

    fn update(&self, records: &mut Records, id: &str) -> Result<Answer, Failure> {
        let id = self.find(records, id, self.call.query("idProperty"))?;
        let object = records.update(self.now, self.object_type, id, properties_of(&self.body()?)?)?;
        Ok(Answer::json(StatusCode::OK, &self.view(&object)))
    }

    fn search(&self, records: &mut Records) -> Result<Answer, Failure> {
        let body = self.body()?;
        let limit = match &body["limit"] {
            Value::Null => LIST_LIMIT_DEFAULT,
            limit => limit
                .as_u64()
                .and_then(|limit| usize::try_from(limit).ok())
                .filter(|limit| *limit <= SEARCH_LIMIT_MAX)
                .ok_or_else(|| Failure::Invalid(format!("limit must be at most {SEARCH_LIMIT_MAX}")))?,
        };
        let after = match &body["after"] {
            Value::Null => 0,
            Value::String(after) if after.is_empty() => 0,
            after => scalar(after)
                .and_then(|after| after.parse::<usize>().ok())
                .filter(|after| *after <= SEARCH_RESULTS_MAX)
                .ok_or_else(|| Failure::Invalid("after is not a paging cursor".to_owned()))?,
        };
        let search = Search::of(&body)?;
        let collection = records.collection(self.object_type);
        let mut found: Vec<_> = collection
            .objects
            .values()
            .filter(|object| search.finds(object))
            .collect();
        search.sort(&mut found);
        let page: Vec<_> = found
            .iter()
            .skip(after)
            .take(limit)
            .map(|object| self.view(object))
            .collect();
        let mut body = json!({"total": found.len(), "results": page});
        if after + limit < found.len() {
            // Search pages carry a cursor and no link.
            body["paging"] = json!({"next": {"after": (after + limit).to_string()}});
        }
        Ok(Answer::json(StatusCode::OK, &body))
    }

    fn upsert(&self, records: &mut Records, input: &Value) -> Result<(Object, bool), Failure> {
        let (id, id_property) = (text(input, "id")?, id_property_of(input));
        let mut properties = properties_of(input)?;
        match self.find(records, id, id_property) {
            Ok(id) => return Ok((records.update(self.now, self.object_type, id, properties)?, false)),
            Err(Failure::NotFound(_)) => {}
            Err(failure) => return Err(failure),
        }
        if let Some(id_property) = id_property {
            properties
                .entry(id_property.to_owned())
                .or_insert_with(|| Some(id.to_owned()));
        }
        Ok((records.create(self.now, self.object_type, properties)?, true))
    }

    fn batch_read(&self, records: &mut Records) -> Result<Answer, Failure> {
        let body = self.body()?;
        let mut results = Vec::new();
        let mut missing = Vec::new();
        for input in inputs_of(&body)? {
            let id = text(input, "id")?;
            match self.find(records, id, id_property_of(&body)) {
                Ok(id) => results.push(self.view(records.object(self.object_type, id)?)),
                Err(Failure::NotFound(_)) => missing.push(id.to_owned()),
                Err(failure) => return Err(failure),
            }
        }
        let mut errors = Vec::new();
        if !missing.is_empty() {
            let message = format!(
                "Could not get some {} objects, they may be deleted or not exist. Check that ids are valid.",
                self.object_type.to_uppercase()
            );
            errors.push(item_error("OBJECT_NOT_FOUND", &message, &json!({"ids": missing})));
        }
        Ok(self.batch_answer(StatusCode::OK, &results, &errors))
    }

    /// Writes input by input; what fails is reported beside what was written (207).
    fn batch_write(
        &self,
        records: &mut Records,
        created: &mut u64,
        mut write: impl FnMut(&mut Records, &Value) -> Result<(Object, Option<bool>, bool), Failure>,
    ) -> Result<Answer, Failure> {
        let body = self.body()?;
        let mut results = Vec::new();
        let mut errors = Vec::new();
        for input in inputs_of(&body)? {
            match write(records, input) {
                Ok((object, is_new, was_created)) => {
                    let mut view = self.view(&object);
                    if let Some(is_new) = is_new {
                        view["new"] = json!(is_new);
                    }
                    results.push(view);
                    *created += u64::from(was_created);
                }
                Err(failure) => {
                    let mut context = Map::new();
                    if let Some(trace_id) = input["objectWriteTraceId"].as_str() {
                        context.insert("objectWriteTraceId".to_owned(), json!([trace_id]));
                    }
                    let (category, message) = self.words(&failure);
                    errors.push(item_error(category, &message, &Value::Object(context)));
                }
            }
        }
        let status = if self.call.path.ends_with("/create") {
            StatusCode::CREATED
        } else {
            StatusCode::OK
        };
        Ok(self.batch_answer(status, &results, &errors))
    }

    fn batch_archive(&self, records: &mut Records) -> Result<Answer, Failure> {
        let body = self.body()?;
        for input in inputs_of(&body)? {
            if let Ok(id) = text(input, "id")?.parse() {
                records.archive(self.object_type, id);
            }
        }
        Ok(Answer::empty(StatusCode::NO_CONTENT))
    }

    fn batch_answer(&self, status: StatusCode, results: &[Value], errors: &[Value]) -> Answer {
        let mut body = json!({
            "status": "COMPLETE",
            "results": results,
            "startedAt": iso(self.now),
            "completedAt": iso(self.now),
        });
        if errors.is_empty() {
            return Answer::json(status, &body);
        }
        body["numErrors"] = json!(errors.len());
        body["errors"] = json!(errors);
        Answer::json(StatusCode::MULTI_STATUS, &body)
    }

    /// The id of the object with this id, or with this value of `id_property`.
    fn find(&self, records: &mut Records, id: &str, id_property: Option<&str>) -> Result<u64, Failure> {
        match id_property {
            None | Some("hs_object_id") => records.known(self.object_type, id),
            Some(property) => match records.collection(self.object_type).unique.get(property) {
                Some(holders) => holders
                    .get(&unique_value(property, id))
                    .copied()
                    .ok_or_else(|| Failure::NotFound(id.to_owned())),
                None => Err(self.not_unique_by(property)),
            },
        }
    }

    /// Source: segmentio/action-destinations, pull request 3957 (for updates; the wording for reads is not known).
    fn not_unique_by(&self, property: &str) -> Failure {
        Failure::Invalid(format!(
            "Unable to perform update/upsert by non-unique {} property {property}",
            self.object_type
        ))
    }

    fn body(&self) -> Result<Value, Failure> {
        match serde_json::from_slice(&self.call.body) {
            Ok(Value::Object(body)) => Ok(Value::Object(body)),
            Ok(_) => Err(Failure::Invalid(
                "Invalid input JSON: an object is expected".to_owned(),
            )),
            Err(error) => Err(Failure::Invalid(format!(
                "Invalid input JSON on line {}, column {}",
                error.line(),
                error.column()
            ))),
        }
    }

    fn view(&self, object: &Object) -> Value {
        let mut properties: BTreeMap<_, _> = object
            .properties
            .iter()
            .map(|(name, value)| (name.as_str(), json!(value)))
            .collect();
        let wanted: Vec<_> = self
            .call
            .query_all("properties")
            .flat_map(|names| names.split(','))
            .collect();
        if !wanted.is_empty() {
            properties.retain(|name, _| wanted.contains(name));
            for name in wanted {
                properties.entry(name).or_insert(Value::Null);
            }
        }
        let modified = if self.object_type == "contacts" {
            "lastmodifieddate"
        } else {
            "hs_lastmodifieddate"
        };
        properties.insert("createdate", json!(iso(object.created_at)));
        properties.insert(modified, json!(iso(object.updated_at)));
        properties.insert("hs_object_id", json!(object.id.to_string()));
        json!({
            "id": object.id.to_string(),
            "properties": properties,
            "createdAt": iso(object.created_at),
            "updatedAt": iso(object.updated_at),
            "archived": false,
        })
    }

    /// The link is absolute and leads to HubSpot itself, whatever stands in between.
    fn paging(&self, after: &str, limit: Option<usize>) -> Value {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        for (name, value) in &self.call.query {
            if name != "after" && name != "limit" {
                query.append_pair(name, value);
            }
        }
        if let Some(limit) = limit {
            query.append_pair("limit", &limit.to_string());
        }
        query.append_pair("after", after);
        let link = format!("https://api.hubapi.com{}?{}", self.call.path, query.finish());
        json!({"next": {"after": after, "link": link}})
    }

    fn refuse(&self, failure: &Failure) -> Answer {
        let correlation_id = self.call.correlation_id.as_str();
        let (category, message) = self.words(failure);
        match failure {
            Failure::Conflict { .. } => {
                answer::api_error(StatusCode::CONFLICT, category, &message, correlation_id)
            }
            Failure::NotFound(_) => answer::not_found(correlation_id),
            Failure::NotUnique { .. } | Failure::Invalid(_) => {
                answer::validation_error(&message, correlation_id)
            }
        }
    }

    /// Category and message.
    fn words(&self, failure: &Failure) -> (&'static str, String) {
        match failure {
            Failure::Conflict { existing_id } => (
                "CONFLICT",
                format!("Contact already exists. Existing ID: {existing_id}"),
            ),
            // From memory of HubSpot's answers, unverified but for `CONFLICTING_UNIQUE_VALUE`.
            Failure::NotUnique {
                existing_id,
                property,
                value,
            } => {
                let errors = json!([{
                    "isValid": false,
                    "message": format!("Cannot set {property} to {value}. {existing_id} already has that value."),
                    "error": "CONFLICTING_UNIQUE_VALUE",
                    "name": property,
                }]);
                (
                    "VALIDATION_ERROR",
                    format!("Property values were not valid: {errors}"),
                )
            }
            Failure::NotFound(id) => (
                "OBJECT_NOT_FOUND",
                format!("No {} with ID {id} exists", self.object_type),
            ),
            Failure::Invalid(message) => ("VALIDATION_ERROR", message.clone()),
        }
    }
}

impl Records {
    /// Ids start well above what tests write by hand.
    const FIRST_ID: u64 = 10_001;

    fn collection(&mut self, object_type: &str) -> &mut Collection {
        if !self.collections.contains_key(object_type) {
            let mut collection = Collection::default();
            if object_type == "contacts" {
                collection.unique.insert("email".to_owned(), HashMap::new());
            }
            self.collections.insert(object_type.to_owned(), collection);
        }
        self.collections
            .get_mut(object_type)
            .expect("the collection was inserted above")
    }

    pub(crate) fn declare_unique(&mut self, unique: &UniqueProperty) {
        let UniqueProperty {
            object_type,
            property,
        } = unique;
        let collection = self.collection(object_type);
        let holders = collection.objects.values().filter_map(|object| {
            let value = object.properties.get(property)?;
            Some((unique_value(property, value), object.id))
        });
        let holders = holders.collect();
        collection.unique.insert(property.clone(), holders);
    }

    /// How many objects were created with this value of a property, those that were archived since included.
    pub(crate) fn created(&mut self, object_type: &str, property: &str, value: &str) -> usize {
        let collection = self.collection(&type_name(object_type));
        collection
            .objects
            .values()
            .chain(&collection.archived)
            .filter(|object| {
                object
                    .created_with
                    .get(property)
                    .is_some_and(|found| found == value)
            })
            .count()
    }

    pub(crate) fn exists(&self, object_type: &str, id: u64) -> bool {
        self.collections
            .get(object_type)
            .is_some_and(|collection| collection.objects.contains_key(&id))
    }

    /// The id that this text is, if there is such an object.
    pub(crate) fn known(&self, object_type: &str, id: &str) -> Result<u64, Failure> {
        id.parse()
            .ok()
            .filter(|id| self.exists(object_type, *id))
            .ok_or_else(|| Failure::NotFound(id.to_owned()))
    }

    fn object(&mut self, object_type: &str, id: u64) -> Result<&Object, Failure> {
        self.collection(object_type)
            .objects
            .get(&id)
            .ok_or_else(|| Failure::NotFound(id.to_string()))
    }

    fn create(
        &mut self,
        now: Timestamp,
        object_type: &str,
        properties: Properties,
    ) -> Result<Object, Failure> {
        let id = Self::FIRST_ID + self.ids_given;
        let properties = properties
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect::<BTreeMap<_, _>>();
        let collection = self.collection(object_type);
        collection.claim(&properties, id)?;
        let object = Object {
            id,
            created_with: properties.clone(),
            properties,
            created_at: now,
            updated_at: now,
        };
        collection.objects.insert(id, object.clone());
        self.ids_given += 1;
        Ok(object)
    }

    fn update(
        &mut self,
        now: Timestamp,
        object_type: &str,
        id: u64,
        properties: Properties,
    ) -> Result<Object, Failure> {
        let collection = self.collection(object_type);
        let Some(object) = collection.objects.get(&id) else {
            return Err(Failure::NotFound(id.to_string()));
        };
        let before = object.properties.clone();
        let mut after = before.clone();
        for (name, value) in properties {
            match value {
                Some(value) => after.insert(name, value),
                None => after.remove(&name),
            };
        }
        collection.claim(&after, id)?;
        collection.free(&before, &after);
        let object = collection
            .objects
            .get_mut(&id)
            .expect("the object was found above");
        object.properties = after;
        object.updated_at = now;
        Ok(object.clone())
    }

    fn archive(&mut self, object_type: &str, id: u64) {
        let collection = self.collection(object_type);
        if let Some(object) = collection.objects.remove(&id) {
            collection.free(&object.properties, &BTreeMap::new());
            collection.archived.push(object);
        }
    }
}

impl Collection {
    /// Takes every unique value among these properties for the object `id`, or none at all.
    fn claim(&mut self, properties: &BTreeMap<String, String>, id: u64) -> Result<(), Failure> {
        for (property, holders) in &self.unique {
            let Some(value) = properties.get(property) else {
                continue;
            };
            match holders.get(&unique_value(property, value)) {
                Some(&existing_id) if existing_id != id => {
                    return Err(if property == "email" {
                        Failure::Conflict { existing_id }
                    } else {
                        Failure::NotUnique {
                            existing_id,
                            property: property.clone(),
                            value: value.clone(),
                        }
                    });
                }
                _ => {}
            }
        }
        for (property, holders) in &mut self.unique {
            if let Some(value) = properties.get(property) {
                holders.insert(unique_value(property, value), id);
            }
        }
        Ok(())
    }

    /// Gives the unique values back that an object had `before` and has no more.
    fn free(&mut self, before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) {
        for (property, holders) in &mut self.unique {
            let value = |properties: &BTreeMap<String, String>| {
                properties
                    .get(property)
                    .map(|value| unique_value(property, value))
            };
            if let Some(old) = value(before)
                && value(after).as_ref() != Some(&old)
            {
                holders.remove(&old);
            }
        }
    }
}

/// By what two values of a unique property are compared: e-mails without regard to case.
fn unique_value(property: &str, value: &str) -> String {
    if property == "email" {
        value.to_lowercase()
    } else {
        value.to_owned()
    }
}

/// A search: any group must match, and in it every filter.
struct Search {
    groups: Vec<Vec<Filter>>,
    query: Option<String>,
    /// Property, and whether the greatest comes first.
    sort: Option<(String, bool)>,
}

struct Filter {
    property: String,
    operator: Operator,
}

enum Operator {
    Eq(String),
    Neq(String),
    Less(String),
    LessOrEqual(String),
    Greater(String),
    GreaterOrEqual(String),
    Between(String, String),
    In(Vec<String>),
    NotIn(Vec<String>),
    Has,
    HasNot,
    ContainsToken(String),
    NotContainsToken(String),
}

impl Search {
    fn of(body: &Value) -> Result<Self, Failure> {
        let mut groups = Vec::new();
        for group in body["filterGroups"].as_array().into_iter().flatten() {
            let filters = group["filters"].as_array().into_iter().flatten().map(Filter::of);
            groups.push(filters.collect::<Result<Vec<_>, _>>()?);
        }
        if groups.len() > 5 || groups.iter().any(|group| group.len() > 6) {
            return Err(Failure::Invalid(
                "at most 5 filter groups of 6 filters each".to_owned(),
            ));
        }
        let query = body["query"]
            .as_str()
            .map(str::to_lowercase)
            .filter(|query| !query.is_empty());
        let sort = match body["sorts"].get(0) {
            Some(Value::String(property)) => match property.strip_prefix('-') {
                Some(property) => Some((property.to_owned(), true)),
                None => Some((property.clone(), false)),
            },
            Some(sort) => sort["propertyName"]
                .as_str()
                .map(|property| (property.to_owned(), sort["direction"] == "DESCENDING")),
            None => None,
        };
        Ok(Self { groups, query, sort })
    }

    fn finds(&self, object: &Object) -> bool {
        let in_groups = self.groups.is_empty()
            || self
                .groups
                .iter()
                .any(|group| group.iter().all(|filter| filter.fits(object)));
        let in_query = self.query.as_ref().is_none_or(|query| {
            object
                .properties
                .values()
                .any(|value| value.to_lowercase().contains(query.as_str()))
        });
        in_groups && in_query
    }

    fn sort(&self, found: &mut [&Object]) {
        let Some((property, descending)) = &self.sort else {
            return;
        };
        found.sort_by(|one, other| {
            let order = match (one.value(property), other.value(property)) {
                (Some(one), Some(other)) => compare(&one, &other),
                (one, other) => one.is_some().cmp(&other.is_some()),
            };
            if *descending { order.reverse() } else { order }
        });
    }
}

impl Filter {
    fn of(filter: &Value) -> Result<Self, Failure> {
        let property = text(filter, "propertyName")?.to_owned();
        let value = || {
            scalar(&filter["value"])
                .ok_or_else(|| Failure::Invalid(format!("filter on {property} needs a value")))
        };
        let values = || {
            let values = filter["values"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(scalar);
            values.collect::<Vec<_>>()
        };
        let operator = match text(filter, "operator")? {
            "EQ" => Operator::Eq(value()?),
            "NEQ" => Operator::Neq(value()?),
            "LT" => Operator::Less(value()?),
            "LTE" => Operator::LessOrEqual(value()?),
            "GT" => Operator::Greater(value()?),
            "GTE" => Operator::GreaterOrEqual(value()?),
            "BETWEEN" => {
                let high = scalar(&filter["highValue"]);
                Operator::Between(
                    value()?,
                    high.ok_or_else(|| Failure::Invalid("highValue is missing".into()))?,
                )
            }
            "IN" => Operator::In(values()),
            "NOT_IN" => Operator::NotIn(values()),
            "HAS_PROPERTY" => Operator::Has,
            "NOT_HAS_PROPERTY" => Operator::HasNot,
            "CONTAINS_TOKEN" => Operator::ContainsToken(value()?.to_lowercase()),
            "NOT_CONTAINS_TOKEN" => Operator::NotContainsToken(value()?.to_lowercase()),
            unknown => return Err(Failure::Invalid(format!("unknown operator {unknown:?}"))),
        };
        Ok(Self { property, operator })
    }

    fn fits(&self, object: &Object) -> bool {
        let value = object.value(&self.property);
        let than = |limit: &str| value.as_deref().map(|value| compare(value, limit));
        let equals = |wanted: &String| {
            value
                .as_ref()
                .is_some_and(|value| value.to_lowercase() == wanted.to_lowercase())
        };
        match &self.operator {
            Operator::Eq(wanted) => equals(wanted),
            Operator::Neq(unwanted) => !equals(unwanted),
            Operator::Less(limit) => than(limit).is_some_and(std::cmp::Ordering::is_lt),
            Operator::LessOrEqual(limit) => than(limit).is_some_and(std::cmp::Ordering::is_le),
            Operator::Greater(limit) => than(limit).is_some_and(std::cmp::Ordering::is_gt),
            Operator::GreaterOrEqual(limit) => than(limit).is_some_and(std::cmp::Ordering::is_ge),
            Operator::Between(low, high) => {
                than(low).is_some_and(std::cmp::Ordering::is_ge)
                    && than(high).is_some_and(std::cmp::Ordering::is_le)
            }
            Operator::In(wanted) => wanted.iter().any(equals),
            Operator::NotIn(unwanted) => !unwanted.iter().any(equals),
            Operator::Has => value.is_some(),
            Operator::HasNot => value.is_none(),
            Operator::ContainsToken(wanted) => contains_token(value.as_deref(), wanted),
            Operator::NotContainsToken(unwanted) => !contains_token(value.as_deref(), unwanted),
        }
    }
}

impl Object {
    fn value(&self, property: &str) -> Option<String> {
        match property {
            "hs_object_id" => Some(self.id.to_string()),
            "createdate" => Some(iso(self.created_at)),
            "lastmodifieddate" | "hs_lastmodifieddate" => Some(iso(self.updated_at)),
            _ => self.properties.get(property).cloned(),
        }
    }
}

/// Numbers by value, everything else by its text.
fn compare(one: &str, other: &str) -> std::cmp::Ordering {
    match (one.parse::<f64>(), other.parse::<f64>()) {
        (Ok(one), Ok(other)) => one.total_cmp(&other),
        _ => one.cmp(other),
    }
}

/// A whole word, or with `*` at either end a part of one.
fn contains_token(value: Option<&str>, token: &str) -> bool {
    let Some(value) = value.map(str::to_lowercase) else {
        return false;
    };
    let wanted = token.trim_matches('*');
    if wanted.len() != token.len() {
        return value.contains(wanted);
    }
    value == wanted
        || value
            .split(|c: char| !c.is_alphanumeric())
            .any(|word| word == wanted)
}

fn inputs_of(body: &Value) -> Result<&[Value], Failure> {
    let inputs = body["inputs"]
        .as_array()
        .ok_or_else(|| Failure::Invalid("inputs is missing".to_owned()))?;
    if inputs.len() > BATCH_MAX {
        return Err(Failure::Invalid(format!(
            "a batch takes at most {BATCH_MAX} inputs, not {}",
            inputs.len()
        )));
    }
    Ok(inputs)
}

fn properties_of(input: &Value) -> Result<Properties, Failure> {
    let properties = input["properties"]
        .as_object()
        .ok_or_else(|| Failure::Invalid("properties is missing".to_owned()))?;
    properties
        .iter()
        .map(|(name, value)| match value {
            Value::Null => Ok((name.clone(), None)),
            value => match scalar(value) {
                Some(text) => Ok((name.clone(), Some(text).filter(|text| !text.is_empty()))),
                None => Err(Failure::Invalid(format!(
                    "property {name} must be a text, a number or a boolean"
                ))),
            },
        })
        .collect()
}

fn id_property_of(value: &Value) -> Option<&str> {
    value["idProperty"]
        .as_str()
        .filter(|property| !property.is_empty())
}

fn text<'a>(value: &'a Value, name: &str) -> Result<&'a str, Failure> {
    value[name]
        .as_str()
        .ok_or_else(|| Failure::Invalid(format!("{name} is missing or no text")))
}

/// Properties are texts, whatever they were sent as.
pub(crate) fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

/// An entry of `errors` in a 207; the official clients insist on every one of these fields.
pub(crate) fn item_error(category: &str, message: &str, context: &Value) -> Value {
    json!({
        "status": "error", "category": category, "message": message, "context": context, "errors": [], "links": {},
    })
}
