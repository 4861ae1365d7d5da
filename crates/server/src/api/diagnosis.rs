//! What is wrong, and what to do: the doctor's routes.

use axum::Json;
use axum::extract::State;
use evergrant_doctor::{Doctor, Examined, STORE_ANSWERS_WITHIN};
use evergrant_domain::access::{Limits, Role};
use evergrant_domain::diagnosis::{Diagnosis, Remedy};
use evergrant_domain::{AppName, Connection, ConnectionId, Customer, Kind};
use evergrant_store::contract::{ConnectionFilter, Sort};
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;

use crate::access::Caller;
use crate::api::connections::{read_place, write_place};
use crate::connect::link;
use crate::input::{NoQuery, PathId, Query};
use crate::lists::limit;
use crate::problem::{Code, Problem, ProblemView};
use crate::service::{Inner, Shared};
use crate::views::List;

/// What is wrong with a connection.
#[derive(Serialize, ToSchema)]
#[schema(as = Diagnosis)]
pub(crate) struct DiagnosisView {
    /// Which.
    connection: String,
    /// `null` where the store did not say.
    app: Option<String>,
    customer: Option<String>,
    /// The account's id at the provider.
    account: Option<String>,
    /// `healthy`, `cause` or `inconclusive`: nothing was found, and something that matters could not be looked at.
    verdict: &'static str,
    /// The cause, as one word; `null` where none was found.
    cause: Option<&'static str>,
    /// The same as a heading.
    title: Option<&'static str>,
    /// One or two sentences.
    summary: String,
    /// The one thing to do.
    action: String,
    /// Where the customer restores the connection, where that is what mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    reconnect_url: Option<String>,
    /// The page with the steps, and with when to stop; `null` where nothing was found.
    runbook_url: Option<String>,
    /// Everything that was looked at, in its order.
    checks: Vec<CheckView>,
}

/// Where the runbooks are.
const RUNBOOKS: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/docs/runbooks");

/// One step of the walk.
#[derive(Serialize, ToSchema)]
#[schema(as = Check)]
pub(crate) struct CheckView {
    /// The cause that was looked for.
    id: &'static str,
    /// `clear`, `found` or `skipped`.
    result: &'static str,
    /// One sentence with numbers and times; for a skipped one, why.
    evidence: String,
}

impl DiagnosisView {
    fn new(id: &ConnectionId, connection: Option<&Connection>, diagnosis: Diagnosis) -> Self {
        let cause = diagnosis.verdict.cause();
        Self {
            connection: id.to_string(),
            app: connection.map(|connection| connection.app.to_string()),
            customer: connection.map(|connection| connection.customer.to_string()),
            account: connection
                .and_then(|connection| connection.account.as_ref())
                .map(|account| account.id.to_string()),
            verdict: diagnosis.verdict.as_str(),
            cause: cause.map(evergrant_domain::diagnosis::Cause::as_str),
            title: cause.map(evergrant_domain::diagnosis::Cause::title),
            summary: diagnosis.summary,
            action: diagnosis.action,
            reconnect_url: None,
            runbook_url: cause.map(|cause| format!("{RUNBOOKS}/{}.md", cause.as_str())),
            checks: diagnosis
                .checks
                .into_iter()
                .map(|check| CheckView {
                    id: check.cause.as_str(),
                    result: check.finding.as_str(),
                    evidence: check.evidence,
                })
                .collect(),
        }
    }

    /// With the link, where that is the remedy.
    fn of(shared: &Inner, examined: Examined) -> Self {
        let Examined {
            connection,
            diagnosis,
        } = examined;
        let reconnects = diagnosis.remedy == Remedy::Reconnect
            && connection.kind == Kind::OAuth
            && shared.keeper().app(&connection.app).is_some();
        let mut view = Self::new(&connection.id, Some(&connection), diagnosis);
        view.reconnect_url = reconnects.then(|| shared.reconnect_url(&connection.id, link::LASTS, None));
        view
    }
}

/// Says what is wrong with a connection.
///
/// The causes are looked at in their order, each with its evidence; the first one found is the verdict, unless a later one stops
/// every call and it does not. A few seconds bound it: what does not answer is what it finds.
///
/// Role: `support`.
#[utoipa::path(
    get, path = "/v1/connections/{id}/diagnosis", operation_id = "diagnoseConnection", tag = "diagnosis",
    params(("id" = String, Path)),
    responses((status = 200, body = DiagnosisView), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn one(
    State(shared): State<Shared>,
    caller: Caller,
    _: NoQuery,
    PathId(id): PathId,
) -> Result<Json<DiagnosisView>, Problem> {
    let doctor = Doctor::new(shared.keeper().clone());
    doctor.catch_up().await;
    let found = timeout(
        STORE_ANSWERS_WITHIN,
        caller.connection(shared.keeper(), &id, Role::Support),
    )
    .await;
    let connection = match found {
        Ok(Ok(connection)) => connection,
        Ok(Err(problem)) if problem.code() != Code::StoreUnavailable => return Err(problem),
        Ok(Err(_)) => return without_store(&shared, &caller, &id, "it cannot be reached"),
        Err(_) => {
            let seconds = STORE_ANSWERS_WITHIN.as_secs();
            return without_store(&shared, &caller, &id, &format!("no answer within {seconds} s"));
        }
    };
    let mut examined = doctor.examine(vec![connection], &caller.filter()).await;
    let examined = examined.pop().ok_or_else(|| Problem::new(Code::Internal))?;
    Ok(Json(DiagnosisView::of(&shared, examined)))
}

/// A store that does not answer is a diagnosis for those who would have been answered.
fn without_store(
    shared: &Inner,
    caller: &Caller,
    id: &ConnectionId,
    why: &str,
) -> Result<Json<DiagnosisView>, Problem> {
    caller.require(Role::Support)?;
    let is_theirs = caller.limits().is_none_or(|limits| {
        shared
            .keeper()
            .at_hand(id)
            .is_some_and(|known| limits.admit_parts(&known.app.name, &known.customer, id))
    });
    if !is_theirs {
        return Err(Problem::new(Code::StoreUnavailable));
    }
    Ok(Json(DiagnosisView::new(id, None, Doctor::without_store(why))))
}

/// Says what is wrong with many connections.
///
/// By connection, customer, account and app; a repeated filter means OR, different filters AND. Connections that were
/// disconnected are left out, unless they are named.
///
/// Role: `support`.
#[utoipa::path(
    get, path = "/v1/diagnosis", operation_id = "diagnose", tag = "diagnosis",
    params(
        ("connection" = Option<Vec<String>>, Query), ("customer" = Option<Vec<String>>, Query),
        ("account" = Option<Vec<String>>, Query), ("app" = Option<Vec<String>>, Query),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000), ("cursor" = Option<String>, Query),
    ),
    responses((status = 200, body = List<DiagnosisView>), (status = "default", body = ProblemView<'_>, content_type = "application/problem+json"))
)]
pub(crate) async fn many(
    State(shared): State<Shared>,
    caller: Caller,
    mut query: Query,
) -> Result<Json<List<DiagnosisView>>, Problem> {
    caller.require(Role::Support)?;
    let limit = limit(&mut query)?;
    let named = query.each("connection", ConnectionId::parse)?;
    let is_named = !named.is_empty();
    let statuses = ["active", "reconnect_required"].map(str::to_owned).to_vec();
    let filter = ConnectionFilter {
        apps: query.each("app", AppName::parse)?,
        customers: query.each("customer", Customer::parse)?,
        accounts: query.all("account"),
        statuses: if is_named { Vec::new() } else { statuses },
        limits: match within(caller.filter(), named) {
            Some(limits) => limits,
            None => {
                return Ok(Json(List {
                    items: Vec::new(),
                    next_cursor: None,
                }));
            }
        },
        // One more than shown says whether there is a next page.
        limit: limit + 1,
        after: query
            .one("cursor")?
            .as_deref()
            .map(|cursor| read_place(Sort::default(), cursor))
            .transpose()?,
        ..ConnectionFilter::default()
    };
    query.done()?;
    let doctor = Doctor::new(shared.keeper().clone());
    doctor.catch_up().await;
    let found = timeout(STORE_ANSWERS_WITHIN, shared.keeper().store().list(filter)).await;
    let mut found = found.map_err(|_| Problem::new(Code::StoreUnavailable))??;
    let limit = limit as usize;
    let is_last = found.len() <= limit;
    found.truncate(limit);
    let next_cursor = found
        .last()
        .filter(|_| !is_last)
        .map(|last| write_place(Sort::default(), last));
    let examined = doctor.examine(found, &caller.filter()).await;
    let items = examined
        .into_iter()
        .map(|examined| DiagnosisView::of(&shared, examined))
        .collect();
    Ok(Json(List { items, next_cursor }))
}

/// A key's limits and the connections that were named; `None` where they have nothing in common.
fn within(mut limits: Limits, named: Vec<ConnectionId>) -> Option<Limits> {
    if named.is_empty() {
        return Some(limits);
    }
    let own = std::mem::take(&mut limits.connections);
    limits.connections = named
        .into_iter()
        .filter(|id| own.is_empty() || own.contains(id))
        .collect();
    (!limits.connections.is_empty()).then_some(limits)
}
