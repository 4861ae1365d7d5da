//! One row of an answer, whichever database gave it.

use std::str::FromStr;

use evergrant_domain::Timestamp;

use super::{Attempt, Stored};
use crate::contract::StoreError;

/// The columns of a row. Numbers are 64 bits wide, times are milliseconds since the Unix epoch, lists are JSON.
pub(crate) trait Columns {
    /// A text, or NULL.
    fn maybe_text(&self, column: &'static str) -> Stored<Option<String>>;
    /// A number, or NULL.
    fn maybe_number(&self, column: &'static str) -> Stored<Option<i64>>;
    /// Bytes, or NULL.
    fn maybe_bytes(&self, column: &'static str) -> Stored<Option<Vec<u8>>>;
    /// Yes or no.
    fn flag(&self, column: &'static str) -> Stored<bool>;

    fn text(&self, column: &'static str) -> Stored<String> {
        self.maybe_text(column)?.ok_or_else(|| strange(column))
    }

    fn number(&self, column: &'static str) -> Stored<i64> {
        self.maybe_number(column)?.ok_or_else(|| strange(column))
    }

    fn bytes(&self, column: &'static str) -> Stored<Vec<u8>> {
        self.maybe_bytes(column)?.ok_or_else(|| strange(column))
    }

    /// A number of things.
    fn count(&self, column: &'static str) -> Stored<u32> {
        u32::try_from(self.number(column)?).map_err(|_| strange(column))
    }

    /// A name.
    fn parsed<T: FromStr>(&self, column: &'static str) -> Stored<T> {
        self.maybe_parsed(column)?.ok_or_else(|| strange(column))
    }

    /// A name, or NULL.
    fn maybe_parsed<T: FromStr>(&self, column: &'static str) -> Stored<Option<T>> {
        self.maybe_text(column)?
            .map(|text| text.parse().map_err(|_| strange(column)))
            .transpose()
    }

    /// One of our words.
    fn word<T>(&self, column: &'static str, read: fn(&str) -> Option<T>) -> Stored<T> {
        read(&self.text(column)?).ok_or_else(|| strange(column))
    }

    fn time(&self, column: &'static str) -> Stored<Timestamp> {
        self.number(column).map(Timestamp::from_millis)
    }

    fn maybe_time(&self, column: &'static str) -> Stored<Option<Timestamp>> {
        Ok(self.maybe_number(column)?.map(Timestamp::from_millis))
    }

    /// A list of texts.
    fn texts(&self, column: &'static str) -> Stored<Vec<String>> {
        serde_json::from_str(&self.text(column)?).map_err(|_| strange(column))
    }

    /// A list of names.
    fn names<T: FromStr>(&self, column: &'static str) -> Stored<Vec<T>> {
        self.texts(column)?
            .iter()
            .map(|text| text.parse().map_err(|_| strange(column)))
            .collect()
    }

    /// A list of attempts.
    fn attempts(&self, column: &'static str) -> Stored<Vec<Attempt>> {
        serde_json::from_str(&self.text(column)?).map_err(|_| strange(column))
    }

    /// A list of pairs.
    fn pairs(&self, column: &'static str) -> Stored<Vec<(String, String)>> {
        serde_json::from_str(&self.text(column)?).map_err(|_| strange(column))
    }
}

/// A list as its column holds it.
pub(crate) fn list<'a>(items: impl IntoIterator<Item = &'a str>) -> String {
    items.into_iter().collect::<serde_json::Value>().to_string()
}

/// Labels as their column holds them.
pub(crate) fn label_list(labels: &[(String, String)]) -> String {
    let pairs = labels
        .iter()
        .map(|(key, value)| vec![key.as_str(), value.as_str()]);
    pairs.collect::<serde_json::Value>().to_string()
}

pub(crate) fn strange(column: &'static str) -> StoreError {
    StoreError::Corrupt {
        what: format!("column {column} holds what nobody here wrote"),
    }
}
