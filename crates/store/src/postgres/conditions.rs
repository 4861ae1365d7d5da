//! Questions that are put together from what is asked: only what is asked stands in the statement, so an index can serve it.

use tokio_postgres::types::ToSql;

type Value = Box<dyn ToSql + Sync + Send>;

/// Conditions that all must hold, and their values.
#[derive(Default)]
pub(super) struct Conditions {
    sql: Vec<String>,
    values: Vec<Value>,
}

impl Conditions {
    /// One more.
    pub(super) fn hold(&mut self, condition: impl Into<String>) {
        self.sql.push(condition.into());
    }

    /// A value, as it stands in a condition.
    pub(super) fn value(&mut self, value: impl ToSql + Sync + Send + 'static) -> String {
        self.values.push(Box::new(value));
        format!("${}", self.values.len())
    }

    /// What is one of these; nothing where there is none of them.
    pub(super) fn one_of<'a>(&mut self, what: &str, items: impl IntoIterator<Item = &'a str>) {
        let items: Vec<String> = items.into_iter().map(super::db::storable).collect();
        match items.as_slice() {
            [] => {}
            [one] => {
                let one = self.value(one.clone());
                self.hold(format!("{what} = {one}::text"));
            }
            _ => {
                let several = self.value(items);
                self.hold(format!("{what} = ANY ({several}::text[])"));
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
    pub(super) fn values(&self) -> Vec<&(dyn ToSql + Sync)> {
        self.values
            .iter()
            .map(|value| &**value as &(dyn ToSql + Sync))
            .collect()
    }
}
