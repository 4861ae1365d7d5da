//! Standard output: tables and colour for people, plain text for pipes, JSON for programs.

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;

use crate::failure::{Exit, Failure};

/// Where a command's result goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// JSON was asked for.
    pub(crate) json: bool,
    /// Somebody looks at standard output.
    pub(crate) is_terminal: bool,
    is_coloured: bool,
}

/// What a text is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Bad,
    Warning,
    Faint,
    Strong,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        let is_terminal = io::stdout().is_terminal();
        Self {
            json,
            is_terminal,
            is_coloured: is_terminal && !is_set("NO_COLOR") && !is_dumb(),
        }
    }

    /// Prints rows under headings: a table on a terminal, else tab-separated lines.
    pub(crate) fn table<const N: usize>(
        self,
        headings: [&str; N],
        rows: Vec<[String; N]>,
    ) -> Result<(), Failure> {
        if !self.is_terminal {
            let lines =
                std::iter::once(headings.join("\t")).chain(rows.into_iter().map(|row| row.join("\t")));
            return print_line(lines.collect::<Vec<_>>().join("\n"));
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_content_arrangement(ContentArrangement::Dynamic);
        // Colours are the cells' own: escape codes in their texts would count as width.
        table.set_header(headings.map(|heading| self.cell(heading, Some(Tone::Faint))));
        for row in rows {
            table.add_row(row.map(|text| self.cell(&text, tone_of(&text))));
        }
        print_line(table.trim_fmt())
    }

    /// Prints names and values, one a line; what is empty is left out.
    pub(crate) fn fields(self, fields: &[(&str, String)]) -> Result<(), Failure> {
        let shown: Vec<_> = fields.iter().filter(|(_, value)| !value.is_empty()).collect();
        let width = shown.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let line = |(name, value): &&(&str, String)| {
            let name = format!("{name:width$}");
            let value = tone_of(value).map_or_else(|| value.clone(), |tone| self.paint(tone, value));
            format!("{}  {value}", self.paint(Tone::Faint, &name))
        };
        print_line(shown.iter().map(line).collect::<Vec<_>>().join("\n"))
    }

    /// Colours a text, where colours are wanted.
    pub(crate) fn paint(self, tone: Tone, text: &str) -> String {
        if !self.is_coloured {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Good => 32,
            Tone::Bad => 31,
            Tone::Warning => 33,
            Tone::Faint => 2,
            Tone::Strong => 1,
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }

    fn cell(self, text: &str, tone: Option<Tone>) -> Cell {
        let cell = Cell::new(to_the_second(text));
        match tone.filter(|_| self.is_coloured) {
            None => cell,
            Some(Tone::Good) => cell.fg(Color::DarkGreen),
            Some(Tone::Bad) => cell.fg(Color::DarkRed),
            Some(Tone::Warning) => cell.fg(Color::DarkYellow),
            Some(Tone::Faint) => cell.add_attribute(Attribute::Dim),
            Some(Tone::Strong) => cell.add_attribute(Attribute::Bold),
        }
    }
}

/// A time as people read it, where the text is one: 80 columns have no room for milliseconds.
pub(crate) fn to_the_second(text: &str) -> String {
    match (text.parse::<jiff::Timestamp>(), text.get(..10), text.get(11..19)) {
        (Ok(_), Some(day), Some(time)) => format!("{day} {time}Z"),
        _ => text.to_owned(),
    }
}

/// The words of status and health have colours of their own.
fn tone_of(word: &str) -> Option<Tone> {
    match word {
        "healthy" | "active" | "ok" | "accepted" => Some(Tone::Good),
        "reconnect_required" | "credentials_rejected" | "refused" => Some(Tone::Bad),
        "degraded" | "ambiguous" => Some(Tone::Warning),
        "unverified" | "disconnected" => Some(Tone::Faint),
        _ => None,
    }
}

/// Prints one line.
pub(crate) fn print_line(text: impl fmt::Display) -> Result<(), Failure> {
    print_bytes(format!("{text}\n").as_bytes())
}

/// Prints what is there as it is, and does not keep it back.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(|error| unwritten(&error))
}

/// Prints a JSON document.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    print_line(serde_json::to_string_pretty(value).map_err(Failure::failed)?)
}

/// Says something on standard error, for people: progress, hints.
pub(crate) fn note(text: impl fmt::Display) {
    // Nobody may be listening.
    let _ = writeln!(io::stderr(), "{text}");
}

/// A number of things in words.
pub(crate) fn count(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// A member of an answer as text; empty where there is none.
pub(crate) fn text(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| text(item, ""))
            .collect::<Vec<_>>()
            .join(", "),
        Some(other) => other.to_string(),
    }
}

fn unwritten(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::silent(Exit::Done),
        _ => Failure::failed(format!("standard output cannot be written: {error}")),
    }
}

fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}

fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_member_reads_as_people_would_write_it() {
        let record =
            json!({"id": "acme", "version": 3, "account": {"id": "1001"}, "scopes": ["a", "b"], "why": null});
        let check = |pointer: &str, shown: &str| assert_eq!(text(&record, pointer), shown, "{pointer}");
        check("/id", "acme");
        check("/version", "3");
        check("/account/id", "1001");
        check("/scopes", "a, b");
        check("/why", "");
        check("/nothing/there", "");
    }

    #[test]
    fn a_table_shows_times_to_the_second_and_leaves_other_texts_alone() {
        assert_eq!(to_the_second("2026-11-24T18:11:01.587Z"), "2026-11-24 18:11:01Z");
        assert_eq!(to_the_second("2026-11-24T18:11:01Z"), "2026-11-24 18:11:01Z");
        for text in ["", "acme", "2026-11-24", "Ärger"] {
            assert_eq!(to_the_second(text), text);
        }
    }

    #[test]
    fn nothing_is_coloured_for_a_pipe() {
        let output = Output {
            json: false,
            is_terminal: false,
            is_coloured: false,
        };
        assert_eq!(output.paint(Tone::Good, "healthy"), "healthy");
        let terminal = Output {
            is_terminal: true,
            is_coloured: true,
            ..output
        };
        assert_eq!(
            terminal.paint(Tone::Good, "healthy"),
            "\u{1b}[32mhealthy\u{1b}[0m"
        );
    }
}
