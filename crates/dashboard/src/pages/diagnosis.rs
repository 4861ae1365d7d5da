//! Many connections examined at once: what the doctor finds in each, those with a cause first.

use askama::Template;

use super::{Frame, Query, Reply, Visitor, query_of, show};
use crate::api::{Api, get};
use crate::records::{Diagnosis, List};
use crate::words::{Piece, Tone, counted, name_of, prose};

/// Connections on one page. The provider is asked about each of them.
const ROWS: &str = "25";

#[derive(Template)]
#[template(path = "diagnosis.html")]
struct Page<'a> {
    frame: Frame<'a>,
    app: &'a str,
    /// What was found on this page, in one sentence.
    says: String,
    rows: Vec<Row>,
    first: Option<String>,
    next: Option<String>,
}

struct Row {
    id: String,
    customer: String,
    app: String,
    account: Option<String>,
    verdict: String,
    tone: Tone,
    summary: Vec<Piece>,
    action: Option<Vec<Piece>>,
}

/// How a verdict reads, and how it is to be taken.
pub(crate) fn verdict(diagnosis: &Diagnosis) -> (String, Tone) {
    match (diagnosis.verdict.as_str(), &diagnosis.cause) {
        ("healthy", _) => ("Healthy".to_owned(), Tone::Good),
        ("inconclusive", _) => ("Inconclusive".to_owned(), Tone::Unsure),
        (_, Some(cause)) => (
            diagnosis.title.clone().unwrap_or_else(|| name_of(cause)),
            Tone::Bad,
        ),
        (other, None) => (name_of(other), Tone::Unsure),
    }
}

/// What to do about it; nothing where nothing is wrong.
pub(crate) fn action(diagnosis: &Diagnosis, now: jiff::Timestamp) -> Option<Vec<Piece>> {
    diagnosis
        .action
        .as_deref()
        .filter(|action| !action.trim().is_empty() && diagnosis.verdict != "healthy")
        .map(|action| prose(action, now))
}

pub(crate) async fn page(api: &impl Api, visitor: &Visitor<'_>, query: &Query) -> Reply {
    let app = query.one("app").unwrap_or_default();
    let cursor = query.one("cursor").unwrap_or_default();
    let path = query_of([("app", app), ("limit", ROWS), ("cursor", cursor)]);
    let list: List<Diagnosis> = match get(api, &format!("/v1/diagnosis?{path}")).await {
        Ok(list) => list,
        Err(refused) => return refused.page(visitor),
    };
    let here = |cursor: &str| {
        format!(
            "/dashboard/diagnosis?{}",
            query_of([("app", app), ("cursor", cursor)])
        )
    };
    let next = list.next_cursor.as_deref().map(here);
    let mut rows: Vec<Row> = list
        .items
        .into_iter()
        .map(|diagnosis| {
            let (verdict, tone) = verdict(&diagnosis);
            Row {
                verdict,
                tone,
                summary: prose(&diagnosis.summary, visitor.now),
                action: action(&diagnosis, visitor.now),
                customer: diagnosis.customer.unwrap_or_else(|| diagnosis.connection.clone()),
                id: diagnosis.connection,
                app: diagnosis.app.unwrap_or_default(),
                account: diagnosis.account,
            }
        })
        .collect();
    let of = |tone: Tone| rows.iter().filter(|row| row.tone == tone).count() as u64;
    let says = match (of(Tone::Bad), of(Tone::Unsure)) {
        (0, 0) => "None of them has a cause to be mended.".to_owned(),
        (0, unsure) => format!("No cause was found; {unsure} could not be judged."),
        (bad, 0) => format!("{bad} with a cause."),
        (bad, unsure) => format!("{bad} with a cause, {unsure} that could not be judged."),
    };
    let says = format!("{} examined. {says}", counted(rows.len() as u64, "connection"));
    // The API's order among equals.
    rows.sort_by_key(|row| match row.tone {
        Tone::Bad => 0,
        Tone::Unsure | Tone::Warn | Tone::Quiet => 1,
        Tone::Good => 2,
    });
    show(&Page {
        frame: Frame::new(visitor, "connections", "Examined connections"),
        app,
        says,
        rows,
        first: (!cursor.is_empty()).then(|| here("")),
        next,
    })
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::json;

    use super::super::Rights;
    use super::super::tests::{Fake, ask, html};

    #[test]
    fn those_with_a_cause_come_first_each_with_what_to_do() {
        let api = Fake::default().with(
            "GET /v1/diagnosis?app=crm&limit=25",
            200,
            json!({"items": [
                {"connection": "c1", "customer": "<b>acme</b>", "app": "crm", "verdict": "healthy", "summary": "nothing is wrong", "action": "Nothing to do."},
                {"connection": "c2", "customer": "globex", "app": "crm", "verdict": "inconclusive", "summary": "the provider did not answer", "action": "Ask again."},
                {"connection": "c3", "customer": "wonka", "app": "crm", "verdict": "cause", "cause": "queue_delay", "title": "Jobs wait", "summary": "since 2026-11-24T11:58:00Z", "action": "Put the id into the job."},
            ], "next_cursor": "NEXT"}),
        );
        let page = html(ask(&api, Rights::Support, Method::GET, "/diagnosis?app=crm"), 200);
        let places: Vec<_> = [
            "3 connections examined. 1 with a cause, 1 that could not be judged.",
            "/dashboard/connections/c3/diagnosis",
            "Jobs wait",
            "datetime=\"2026-11-24T11:58:00Z\"",
            "Put the id into the job.",
            "Inconclusive",
            "/dashboard/connections/c1/diagnosis",
            "app=crm&#38;cursor=NEXT",
        ]
        .iter()
        .map(|text| page.find(text).unwrap_or_else(|| panic!("{text}: {page}")))
        .collect();
        assert!(places.is_sorted(), "{places:?}");
        assert!(
            !page.contains("<b>acme") && !page.contains("Nothing to do"),
            "{page}"
        );
    }
}
