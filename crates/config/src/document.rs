//! File and environment as one tree that remembers where each value was written.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

/// What a variable that is a setting begins with.
const PREFIX: &str = "EVERGRANT_";
/// What separates section and key in its name. Variables without it, like `EVERGRANT_URL`, are no settings.
const SEPARATOR: &str = "__";

/// The settings of a section by their keys.
pub(crate) type Table = BTreeMap<String, Written>;

/// A value as somebody wrote it, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

/// Where a value was written. Ordered as problems are shown: the file from top to bottom, then variables.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// In the file at this line, counted from 1.
    Line(usize),
    /// In this variable of the environment.
    Variable(String),
}

/// What was written. Variables hold texts only; whoever reads one as something else takes it apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Text(String),
    Number(String),
    Flag(bool),
    List(Vec<Written>),
    Table(Table),
    Time,
}

impl Value {
    /// What it is, for a message.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Number(_) => "a number",
            Self::Flag(_) => "true or false",
            Self::List(_) => "a list",
            Self::Table(_) => "a section",
            Self::Time => "a date or time",
        }
    }
}

/// Reads TOML. What is no TOML is told by line, with a reason that does not quote the file.
pub(crate) fn parse(text: &str) -> Result<Table, Vec<(usize, String)>> {
    let lines = Lines::of(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(lines.table(table.get_ref()));
    }
    let line_of = |error: &toml::de::Error| error.span().map_or(1, |span| lines.at(span.start));
    Err(errors
        .iter()
        .map(|error| (line_of(error), error.message().to_owned()))
        .collect())
}

/// Lays the variables of the environment over what the file says: they win.
pub(crate) fn overlay(table: &mut Table, environment: &BTreeMap<String, String>) {
    for (name, text) in environment {
        if let Some(path) = setting_path(name) {
            let written = Written {
                value: Value::Text(text.clone()),
                origin: Origin::Variable(name.clone()),
            };
            insert(table, &path, written);
        }
    }
}

/// `EVERGRANT_SERVER__LISTEN` is `server.listen`. An app's name may hold the separator itself: between the section and
/// the key everything is the name.
fn setting_path(variable: &str) -> Option<Vec<String>> {
    let name = variable.strip_prefix(PREFIX)?.to_lowercase();
    let (section, rest) = name.split_once(SEPARATOR)?;
    let path = match (section, rest.rsplit_once(SEPARATOR)) {
        ("apps", Some((app, key))) => vec![section, app, key],
        _ => std::iter::once(section).chain(rest.split(SEPARATOR)).collect(),
    };
    Some(path.into_iter().map(str::to_owned).collect())
}

fn insert(table: &mut Table, path: &[String], written: Written) {
    let [section, rest @ ..] = path else { return };
    if rest.is_empty() {
        table.insert(section.clone(), written);
        return;
    }
    let empty = || Written {
        value: Value::Table(Table::new()),
        origin: written.origin.clone(),
    };
    let below = table.entry(section.clone()).or_insert_with(empty);
    if !matches!(below.value, Value::Table(_)) {
        *below = empty();
    }
    if let Value::Table(below) = &mut below.value {
        insert(below, rest, written);
    }
}

/// Where lines begin, to tell the line of a position.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(
            text.bytes()
                .enumerate()
                .filter(|(_, byte)| *byte == b'\n')
                .map(|(at, _)| at)
                .collect(),
        )
    }

    fn at(&self, position: usize) -> usize {
        self.0.partition_point(|newline| *newline < position) + 1
    }

    fn table(&self, table: &DeTable<'_>) -> Table {
        let entries = table.iter().map(|(key, value)| {
            // The line of the key, not of the value: a section's value begins wherever its first key does.
            let origin = Origin::Line(self.at(key.span().start));
            (
                key.get_ref().to_string(),
                Written {
                    value: self.value(value.get_ref()),
                    origin,
                },
            )
        });
        entries.collect()
    }

    fn value(&self, value: &DeValue<'_>) -> Value {
        match value {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(number) => Value::Number(number.to_string()),
            DeValue::Float(number) => Value::Number(number.to_string()),
            DeValue::Boolean(flag) => Value::Flag(*flag),
            DeValue::Datetime(_) => Value::Time,
            DeValue::Array(items) => Value::List(
                items
                    .iter()
                    .map(|item| Written {
                        value: self.value(item.get_ref()),
                        origin: Origin::Line(self.at(item.span().start)),
                    })
                    .collect(),
            ),
            DeValue::Table(table) => Value::Table(self.table(table)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_with_a_separator_is_a_setting_and_no_other_is() {
        let check = |variable: &str, path: &[&str]| {
            let found = setting_path(variable).unwrap_or_default();
            assert_eq!(found, path, "{variable}");
        };
        check("EVERGRANT_SERVER__LISTEN", &["server", "listen"]);
        check(
            "EVERGRANT_SERVER__TLS__CERT_FILE",
            &["server", "tls", "cert_file"],
        );
        check("EVERGRANT_APPS__CRM__CLIENT_ID", &["apps", "crm", "client_id"]);
        check(
            "EVERGRANT_APPS__CRM__EU__CLIENT_ID",
            &["apps", "crm__eu", "client_id"],
        );
        check("EVERGRANT_APPS__CRM", &["apps", "crm"]);
        check("EVERGRANT_URL", &[]);
        check("EVERGRANT_API_KEY", &[]);
        check("OTHER_SERVER__LISTEN", &[]);
    }

    #[test]
    fn every_value_knows_its_line() {
        let table = parse("[server]\nlisten = \"x\"\n\n[apps.crm]\nscopes = [\n  \"a\",\n  \"b\",\n]\n")
            .expect("TOML");
        let Value::Table(server) = &table["server"].value else {
            panic!("a section")
        };
        let Value::Table(apps) = &table["apps"].value else {
            panic!("a section")
        };
        let Value::Table(crm) = &apps["crm"].value else {
            panic!("a section")
        };
        let Value::List(scopes) = &crm["scopes"].value else {
            panic!("a list")
        };
        let lines = [
            &table["server"],
            &server["listen"],
            &apps["crm"],
            &crm["scopes"],
            &scopes[1],
        ]
        .map(|w| w.origin.clone());
        assert_eq!(lines, [1, 2, 4, 5, 7].map(Origin::Line));
    }

    #[test]
    fn every_error_of_syntax_is_told_at_once() {
        let errors = parse("a = \nb = 1\nb = 2\n").expect_err("no TOML");
        assert_eq!(
            errors.iter().map(|(line, _)| *line).collect::<Vec<_>>(),
            [1, 3],
            "{errors:?}"
        );
    }
}
