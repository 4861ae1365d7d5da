//! Questions that are put together from what is asked: only what is asked stands in the statement, so an index can serve it.

use rusqlite::types::Value;

use crate::record::list;

/// Conditions that all must hold, and their values.
#[derive(Default)]
pub(super) struct Conditions {
    sql: Vec<String>,
    values: Vec<Value>,
}

impl Conditions {
    /// One that needs no value.
    pub(super) fn hold(&mut self, condition: impl Into<String>) {
        self.sql.push(condition.into());
    }

    /// A value, as it stands in a condition.
    pub(super) fn value(&mut self, value: impl Into<Value>) -> String {
        self.values.push(value.into());
        format!("?{}", self.values.len())
    }

    /// What is one of these; nothing where there is none of them.
    pub(super) fn one_of<'a>(&mut self, what: &str, items: impl IntoIterator<Item = &'a str>) {
        let items: Vec<&str> = items.into_iter().collect();
        match items.as_slice() {
            [] => {}
            [one] => {
                let one = self.value((*one).to_owned());
                self.hold(format!("{what} = {one}"));
            }
            several => {
                let several = self.value(list(several.iter().copied()));
                self.hold(format!("{what} IN (SELECT value FROM json_each({several}))"));
            }
        }
    }

    /// Whether none was put yet.
    pub(super) fn is_empty(&self) -> bool {
        self.sql.is_empty()
    }

    /// The conditions, as they follow a table's name.
    pub(super) fn clause(&self) -> String {
        if self.sql.is_empty() {
            String::new()
        } else {
            format!(" WHERE {}", self.sql.join(" AND "))
        }
    }

    /// The values, in their order.
    pub(super) fn values(&self) -> impl rusqlite::Params + '_ {
        rusqlite::params_from_iter(&self.values)
    }
}
