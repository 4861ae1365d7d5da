//! `evergrant connections import` and `export`: connections as records, one a line.
//!
//! A line is a body of `POST /v1/connections`, so what a record may hold and when it is refused is decided there, once. Each is stored
//! by itself; running an import again is harmless.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use evergrant::Keeper;
use evergrant_domain::ConnectionId;
use evergrant_domain::event::{Circumstances, Event, EventKind};
use evergrant_store::StoreError;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use tokio::time::sleep;

use crate::api::{Api, whole};
use crate::args::{Export, Import, OnConflict};
use crate::failure::{Exit, Failure, Problem};
use crate::output::{Output, count, note, print_bytes, print_json, print_line, text};

/// What a record says of a connection, but for its labels.
const MEMBERS: [&str; 7] = ["id", "app", "customer", "kind", "account", "expires_at", "scopes"];
/// What it holds of it.
const TOKENS: [&str; 2] = ["access_token", "refresh_token"];

/// Longer than any record.
const LINE_MAX: usize = 256 * 1024;

/// The columns of a file with commas, in the order in which they are written.
fn columns() -> impl Iterator<Item = &'static str> {
    MEMBERS.into_iter().chain(TOKENS)
}

/// Why a line was not taken.
struct Refused {
    line: u64,
    code: String,
    reason: String,
}

/// What came of all lines.
#[derive(Default)]
struct Taken {
    imported: u64,
    replaced: u64,
    skipped: u64,
    refused: u64,
}

pub(crate) async fn import(api: &Api, import: &Import, output: Output) -> Result<(), Failure> {
    let mut report = import.report.as_deref().map(Report::create).transpose()?;
    let shown = ProgressBar::new_spinner();
    shown.set_style(
        ProgressStyle::with_template("{spinner} {pos} lines ({elapsed})").expect("a literal template"),
    );
    let mut taken = Taken::default();
    for (line, record) in records(&import.file)? {
        shown.inc(1);
        let refused = match record? {
            Err(reason) => ("bad_request".to_owned(), reason),
            Ok(record) => match bring(api, &record, import).await? {
                Ok(StatusCode::OK) => {
                    taken.replaced += 1;
                    continue;
                }
                Ok(_) => {
                    taken.imported += 1;
                    continue;
                }
                Err(problem) if is_passed_over(&problem.code, import.on_conflict) => {
                    taken.skipped += 1;
                    continue;
                }
                Err(problem) => (problem.code, problem.detail),
            },
        };
        taken.refused += 1;
        let (code, reason) = refused;
        let refused = Refused { line, code, reason };
        match &mut report {
            Some(report) => report.add(&refused)?,
            None => {
                shown.suspend(|| note(format_args!("line {line}: {} ({})", refused.reason, refused.code)));
            }
        }
    }
    shown.finish_and_clear();
    if let Some(report) = report {
        report.end()?;
    }
    taken.say(import.dry_run, output)?;
    if taken.refused > 0 {
        return Err(Failure::silent(Exit::Failed));
    }
    Ok(())
}

impl Taken {
    fn say(&self, dry_run: bool, output: Output) -> Result<(), Failure> {
        let Self {
            imported,
            replaced,
            skipped,
            refused,
        } = self;
        if output.json {
            return print_json(
                &json!({"imported": imported, "replaced": replaced, "skipped": skipped, "refused": refused, "dry_run": dry_run}),
            );
        }
        let imported = count(*imported, "record");
        if dry_run {
            print_line(format_args!(
                "{imported} would be imported, {skipped} are here already, {refused} would be refused; nothing was changed"
            ))
        } else {
            let replaced = match replaced {
                0 => String::new(),
                replaced => format!(", {replaced} replaced older ones"),
            };
            print_line(format_args!(
                "{imported} imported{replaced}, {skipped} were here already, {refused} refused"
            ))
        }
    }
}

/// Has one record taken: with which status, or why not. What passes by itself is waited for.
async fn bring(
    api: &Api,
    record: &Map<String, Value>,
    import: &Import,
) -> Result<Result<StatusCode, Problem>, Failure> {
    const TRIES: u32 = 5;
    let body = Bytes::from(serde_json::to_vec(record).map_err(Failure::failed)?);
    // What a service does not know it refuses: only what was asked for is said.
    let mut path = format!("/v1/connections?dry_run={}", import.dry_run);
    if import.verify {
        path.push_str("&verify=true");
    }
    if import.on_conflict == OnConflict::Newer {
        path.push_str("&on_conflict=newer");
    }
    let mut tries = 0;
    loop {
        let request = Request::post(path.as_str())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::from(body.clone()))
            .map_err(Failure::failed)?;
        let answer = whole(api.send(request).await?).await?;
        if answer.status().is_success() {
            return Ok(Ok(answer.status()));
        }
        let Ok(problem) = serde_json::from_slice::<Problem>(answer.body()) else {
            return Err(Failure::foreign(answer.status()));
        };
        tries += 1;
        match problem.code.as_str() {
            // The other lines would be answered alike.
            "invalid_api_key" => return Err(problem.into()),
            "store_unavailable" | "overloaded" | "provider_unavailable" if tries < TRIES => {
                sleep(pause(&answer)).await;
            }
            _ => return Ok(Err(problem)),
        }
    }
}

fn pause(answer: &Response<Bytes>) -> Duration {
    const PAUSE_MAX: u64 = 30;
    let seconds = answer
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    Duration::from_secs(seconds.unwrap_or(1).clamp(1, PAUSE_MAX))
}

fn is_passed_over(code: &str, on_conflict: OnConflict) -> bool {
    match on_conflict {
        OnConflict::Fail => false,
        OnConflict::Skip => matches!(code, "id_taken" | "account_taken" | "grant_taken"),
        // What is another's stays a conflict.
        OnConflict::Newer => code == "not_newer",
    }
}

/// A record as it stands in its line, or what is wrong with that; the outer error ends the import.
type Line = Result<Result<Map<String, Value>, String>, Failure>;

/// With the numbers of their lines.
type Lines = Box<dyn Iterator<Item = (u64, Line)>>;

/// The records of a file.
fn records(file: &Path) -> Result<Lines, Failure> {
    let name = file.display().to_string();
    let source: Box<dyn Read> = if file.as_os_str() == "-" {
        Box::new(io::stdin())
    } else {
        let file = File::open(file);
        Box::new(file.map_err(|error| Failure::usage(format!("{name} cannot be read: {error}")))?)
    };
    if is_csv(file) {
        of_commas(source, &name)
    } else {
        Ok(Box::new(of_json(source, name)))
    }
}

fn is_csv(file: &Path) -> bool {
    file.extension()
        .is_some_and(|end| end.eq_ignore_ascii_case("csv"))
}

fn of_json(source: impl Read + 'static, name: String) -> impl Iterator<Item = (u64, Line)> {
    let mut source = BufReader::new(source);
    let mut number = 0;
    std::iter::from_fn(move || {
        loop {
            number += 1;
            let mut line = Vec::new();
            let limit = u64::try_from(LINE_MAX).unwrap_or(u64::MAX);
            match source.by_ref().take(limit).read_until(b'\n', &mut line) {
                Err(error) => {
                    let failure = Failure::usage(format!("{name} cannot be read: {error}"));
                    return Some((number, Err(failure)));
                }
                Ok(0) => return None,
                Ok(LINE_MAX) if !line.ends_with(b"\n") => {
                    let failure = Failure::usage(format!(
                        "{name}: line {number} is longer than any record: is it one JSON object a line?"
                    ));
                    return Some((number, Err(failure)));
                }
                Ok(_) if line.trim_ascii().is_empty() => {}
                // The parser's own words could repeat what stands there, and that may be a token.
                Ok(_) => {
                    let record = serde_json::from_slice::<Map<String, Value>>(&line)
                        .map_err(|_| "the line is no JSON object".to_owned());
                    return Some((number, Ok(record)));
                }
            }
        }
    })
}

fn of_commas(source: impl Read + 'static, name: &str) -> Result<Lines, Failure> {
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .flexible(true)
        .from_reader(source);
    let unread =
        |error: &csv::Error| Failure::usage(format!("{name} cannot be read: {}", without_content(error)));
    let headings: Vec<String> = reader
        .headers()
        .map_err(|error| unread(&error))?
        .iter()
        .map(|heading| heading.trim_start_matches('\u{feff}').to_ascii_lowercase())
        .collect();
    if let Some(strange) = headings
        .iter()
        .find(|heading| !columns().any(|column| column == *heading))
    {
        let known = columns().collect::<Vec<_>>().join(", ");
        return Err(
            Failure::usage(format!("{name}: `{strange}` is no column of a record"))
                .advise(format!("The first line names the columns: {known}.")),
        );
    }
    Ok(Box::new(reader.into_records().map(move |row| match row {
        Err(error) => {
            let line = error.position().map_or(0, csv::Position::line);
            (line, Ok(Err(without_content(&error))))
        }
        Ok(row) => {
            let line = row.position().map_or(0, csv::Position::line);
            (line, Ok(record_of(&headings, &row)))
        }
    })))
}

/// Its own words could repeat a field.
fn without_content(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Io(error) => error.to_string(),
        csv::ErrorKind::Utf8 { .. } => "the line is not UTF-8".to_owned(),
        _ => "the line cannot be read".to_owned(),
    }
}

/// What is empty was left out.
fn record_of(headings: &[String], row: &csv::StringRecord) -> Result<Map<String, Value>, String> {
    if row.len() != headings.len() {
        return Err(format!(
            "the line has {} fields, and the first line names {}",
            row.len(),
            headings.len()
        ));
    }
    let fields: HashMap<_, _> = headings
        .iter()
        .zip(row)
        .filter(|(_, field)| !field.is_empty())
        .collect();
    Ok(fields
        .into_iter()
        .map(|(heading, field)| {
            let value = match heading.as_str() {
                "scopes" => field.split_whitespace().collect::<Vec<_>>().into(),
                _ => field.into(),
            };
            (heading.clone(), value)
        })
        .collect())
}

/// The refused lines, in a file.
struct Report {
    name: String,
    file: BufWriter<File>,
}

impl Report {
    fn create(file: &Path) -> Result<Self, Failure> {
        let name = file.display().to_string();
        match File::create(file) {
            Ok(file) => Ok(Self {
                name,
                file: BufWriter::new(file),
            }),
            Err(error) => Err(Failure::usage(format!("{name} cannot be written: {error}"))),
        }
    }

    fn add(&mut self, refused: &Refused) -> Result<(), Failure> {
        let Refused { line, code, reason } = refused;
        let refused = json!({"line": line, "code": code, "reason": reason});
        writeln!(self.file, "{refused}").map_err(|error| self.unwritten(&error))
    }

    fn end(mut self) -> Result<(), Failure> {
        self.file.flush().map_err(|error| self.unwritten(&error))
    }

    fn unwritten(&self, error: &io::Error) -> Failure {
        Failure::failed(format!("{} cannot be written: {error}", self.name))
    }
}

pub(crate) async fn export(api: &Api, export: &Export, output: Output) -> Result<(), Failure> {
    let Export {
        file,
        include_secrets,
    } = export;
    let is_printed = file.as_os_str() == "-";
    let keeper = match api {
        _ if !include_secrets => None,
        Api::Network(_) => {
            return Err(Failure::usage(
                "--include-secrets works on the configured store: leave --server out",
            ));
        }
        Api::Store(_) if is_printed && output.is_terminal => {
            return Err(Failure::usage("tokens are not shown on a terminal: name a file"));
        }
        Api::Store(store) => Some(store.service.engine().keeper().clone()),
    };
    if is_printed {
        return print_bytes(&gathered(api, keeper.as_ref(), file).await?.0);
    }
    // Before anything is taken: what cannot be written is not on record as taken.
    let name = file.display();
    let cannot = |error: io::Error| Failure::failed(format!("{name} cannot be written: {error}"));
    let mut new = as_new(file).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Failure::usage(format!("{name} is there already"))
            .advise("Nothing is written over: name another file."),
        _ => cannot(error),
    })?;
    let filled = async {
        let (written, records) = gathered(api, keeper.as_ref(), file).await?;
        new.write_all(&written)
            .and_then(|()| new.sync_all())
            .map_err(cannot)?;
        Ok(records)
    };
    let records = match filled.await {
        Ok(records) => count(u64::try_from(records).unwrap_or(u64::MAX), "record"),
        Err(failure) => {
            // Half an export is none, and would be in the way of the next.
            let _ = fs::remove_file(file);
            return Err(failure);
        }
    };
    let with = if *include_secrets {
        "with their tokens in clear: erase it when you are done"
    } else {
        "without tokens"
    };
    note(format_args!(
        "{records} written to {name}, {with}. What was disconnected is left out."
    ));
    Ok(())
}

/// What is written, and how many records that is. With tokens where there is a keeper to take them from.
async fn gathered(api: &Api, keeper: Option<&Keeper>, file: &Path) -> Result<(Vec<u8>, usize), Failure> {
    let answer = api.list("/v1/connections", &[]).await?;
    let listed = answer["items"].as_array().map_or(&[][..], Vec::as_slice);
    let mut kept = Vec::new();
    for record in listed.iter().filter(|record| record["status"] != "disconnected") {
        let mut exported = exported(record);
        if let Some(keeper) = keeper {
            add_tokens(keeper, &mut exported).await?;
        }
        kept.push(exported);
    }
    let written = if is_csv(file) {
        with_commas(&kept)?
    } else {
        let mut lines = Vec::new();
        for record in &kept {
            serde_json::to_writer(&mut lines, record).map_err(Failure::failed)?;
            lines.push(b'\n');
        }
        lines
    };
    Ok((written, kept.len()))
}

/// A file of this user's alone.
fn as_new(file: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    options.open(file)
}

/// Adds what the connection holds. That somebody took it is on record before it is written anywhere.
async fn add_tokens(keeper: &Keeper, record: &mut Map<String, Value>) -> Result<(), Failure> {
    let id = record["id"].as_str().unwrap_or_default();
    let id = ConnectionId::parse(id).map_err(Failure::failed)?;
    let store = keeper.store();
    let unavailable = |error: StoreError| Failure::new(Exit::Unavailable, format!("{id}: {error}"));
    let Some(held) = store.held(&id).await.map_err(unavailable)? else {
        return Ok(());
    };
    let Some(tokens) = held.tokens else { return Ok(()) };
    let event =
        Event::new(EventKind::TokenHandedOut, "its tokens were written to an export").during(Circumstances {
            by: Some("operator".to_owned()),
            token_version: Some(held.connection.version),
            ..Circumstances::default()
        });
    let now = keeper.clock().now();
    store.note_event(&id, event, now).await.map_err(unavailable)?;
    if !tokens.access_token.expose().is_empty() {
        record.insert("access_token".to_owned(), tokens.access_token.expose().into());
    }
    if let Some(token) = &tokens.refresh_token {
        record.insert("refresh_token".to_owned(), token.expose().into());
    }
    Ok(())
}

/// A record, as far as an import takes it. What names no token.
fn exported(record: &Value) -> Map<String, Value> {
    let member = |name: &str| match name {
        "account" => record["account"]["id"].clone(),
        name => record[name].clone(),
    };
    MEMBERS
        .into_iter()
        .chain(["labels"])
        .map(|name| (name.to_owned(), member(name)))
        .filter(|(_, value)| !value.is_null() && value.as_object().is_none_or(|labels| !labels.is_empty()))
        .collect()
}

fn with_commas(records: &[Map<String, Value>]) -> Result<Vec<u8>, Failure> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(columns()).map_err(Failure::failed)?;
    for record in records {
        let field = |name: &str| match (name, record.get(name)) {
            (_, None) => String::new(),
            ("scopes", Some(scopes)) => text(scopes, "").replace(", ", " "),
            (_, Some(value)) => text(value, ""),
        };
        writer
            .write_record(columns().map(field))
            .map_err(Failure::failed)?;
    }
    writer.into_inner().map_err(Failure::failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Read = Vec<(u64, Result<Value, String>)>;

    fn read(lines: Lines) -> Read {
        lines
            .map(|(line, record)| (line, record.expect("it can be read").map(Value::Object)))
            .collect()
    }

    fn json_lines(text: &'static str) -> Read {
        read(Box::new(of_json(text.as_bytes(), "x".to_owned())))
    }

    fn commas(text: &'static str) -> Result<Read, Failure> {
        of_commas(text.as_bytes(), "x").map(read)
    }

    #[test]
    fn a_line_is_a_record_and_a_bad_one_stops_no_other() {
        let found = json_lines("{\"app\":\"crm\"}\n\n  \ncanary\n[\"canary\"]\n{\"id\":\"b\"}");
        assert_eq!(found[0], (1, Ok(json!({"app": "crm"}))));
        assert_eq!(found[3], (6, Ok(json!({"id": "b"}))));
        for (at, line) in [(1, 4), (2, 5)] {
            let (number, Err(why)) = &found[at] else {
                panic!("{:?}", found[at]);
            };
            assert_eq!(*number, line);
            assert!(!why.contains("canary"), "{why}");
        }
    }

    #[test]
    fn a_file_without_lines_is_refused_before_it_fills_the_memory() {
        let endless = io::repeat(b'x');
        let (line, record) = of_json(endless, "x".to_owned()).next().expect("a first line");
        assert_eq!(line, 1);
        assert!(
            record
                .expect_err("too long")
                .to_string()
                .contains("longer than any record")
        );
    }

    #[test]
    fn commas_hold_the_same_records() {
        let found = commas(
            "\u{feff}App,customer,scopes,account\ncrm,\"Ada, Ltd\",oauth a.b,1001\ncrm,x,,\ncrm,canary\n",
        )
        .expect("known columns");
        assert_eq!(
            found[0],
            (
                2,
                Ok(
                    json!({"app": "crm", "customer": "Ada, Ltd", "scopes": ["oauth", "a.b"], "account": "1001"})
                )
            )
        );
        assert_eq!(found[1], (3, Ok(json!({"app": "crm", "customer": "x"}))));
        assert!(
            matches!(&found[2], (4, Err(why)) if !why.contains("canary")),
            "{:?}",
            found[2]
        );
        let refused = commas("app,refresh\ncrm,canary\n")
            .expect_err("no such column")
            .to_string();
        assert!(
            refused.contains("`refresh`") && !refused.contains("canary"),
            "{refused}"
        );
    }

    #[test]
    fn an_export_names_what_an_import_takes_and_nothing_else() {
        let record = json!({
            "id": "c1", "app": "crm", "customer": "acme", "kind": "oauth", "account": {"id": "1001", "domain": null, "user": null},
            "scopes": ["oauth", "a.b"], "expires_at": "2026-11-24T16:40:00Z", "labels": {}, "reconnect_url": "https://canary", "version": 3,
        });
        assert_eq!(
            Value::Object(exported(&record)),
            json!({
                "id": "c1", "app": "crm", "customer": "acme", "kind": "oauth", "account": "1001",
                "scopes": ["oauth", "a.b"], "expires_at": "2026-11-24T16:40:00Z",
            })
        );
        let written =
            String::from_utf8(with_commas(&[exported(&record)]).expect("plain text")).expect("UTF-8");
        assert_eq!(
            written,
            "id,app,customer,kind,account,expires_at,scopes,access_token,refresh_token\n\
             c1,crm,acme,oauth,1001,2026-11-24T16:40:00Z,oauth a.b,,\n"
        );
    }
}
