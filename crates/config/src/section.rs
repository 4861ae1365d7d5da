//! Reads the tree section by section, and collects everything that is wrong with it.
//!
//! A key that nobody asks for is unknown: there is no second list of keys that could drift from what is read.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::document::{Origin, Table, Value, Written};
use crate::duration;
use crate::error::Problem;

/// One reading of a configuration: what it may look at, and what it found wrong.
pub(crate) struct Reading {
    file: Option<PathBuf>,
    environment: BTreeMap<String, String>,
    problems: RefCell<Vec<(Origin, Problem)>>,
}

impl Reading {
    pub(crate) fn new(file: Option<PathBuf>, environment: BTreeMap<String, String>) -> Self {
        Self {
            file,
            environment,
            problems: RefCell::default(),
        }
    }

    /// Reads the whole tree with `read`.
    pub(crate) fn root<T>(&self, table: Table, read: impl FnOnce(&mut Section<'_>) -> T) -> T {
        let place = Place {
            key: String::new(),
            origin: Origin::Line(1),
        };
        Section {
            reading: self,
            place,
            given: true,
            entries: table,
            asked: Vec::new(),
        }
        .read_with(read)
    }

    /// Notes a problem.
    pub(crate) fn refuse(&self, place: &Place, reason: impl Into<String>) {
        let named = match (&place.origin, &self.file) {
            (Origin::Line(line), Some(file)) => format!("{}:{line}", file.display()),
            (Origin::Line(_), None) => "configuration".to_owned(),
            (Origin::Variable(name), _) => name.clone(),
        };
        let problem = Problem {
            place: named,
            key: place.key.clone(),
            reason: reason.into(),
        };
        self.problems.borrow_mut().push((place.origin.clone(), problem));
    }

    /// What `parse` makes of a value; a problem where it makes nothing of it.
    pub(crate) fn parsed<T, U, E: Display>(
        &self,
        written: At<T>,
        parse: impl FnOnce(&T) -> Result<U, E>,
    ) -> Option<At<U>> {
        match parse(&written.value) {
            Ok(value) => Some(At {
                value,
                place: written.place,
            }),
            Err(reason) => {
                self.refuse(&written.place, reason.to_string());
                None
            }
        }
    }

    /// Two settings of which only one may be given. One from the environment wins over one from the file; two from the
    /// same hand are refused.
    pub(crate) fn one_of_two<A, B>(
        &self,
        first: Option<At<A>>,
        second: Option<At<B>>,
    ) -> (Option<At<A>>, Option<At<B>>) {
        match (first, second) {
            (Some(a), Some(b)) => match (a.place.is_variable(), b.place.is_variable()) {
                (true, false) => (Some(a), None),
                (false, true) => (None, Some(b)),
                _ => {
                    let later = if a.place.origin > b.place.origin {
                        &a.place
                    } else {
                        &b.place
                    };
                    let names = format!("{} and {}", a.place.name(), b.place.name());
                    self.refuse(later, format!("{names} are both given: keep one of them"));
                    (Some(a), None)
                }
            },
            one => one,
        }
    }

    /// A variable of the environment.
    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(String::as_str)
    }

    /// A path as the file would mean it: relative to the file.
    pub(crate) fn beside_file(&self, path: &Path) -> PathBuf {
        match self.file.as_deref().and_then(Path::parent) {
            Some(folder) => folder.join(path),
            None => path.to_owned(),
        }
    }

    /// A path as whoever wrote it meant it: in the file relative to the file, in a variable to the working directory.
    pub(crate) fn path(&self, place: &Place, path: &str) -> PathBuf {
        if place.is_variable() {
            PathBuf::from(path)
        } else {
            self.beside_file(Path::new(path))
        }
    }

    /// Everything that was refused, in the order of [`Origin`].
    pub(crate) fn problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by(|(a, _), (b, _)| a.cmp(b));
        problems.into_iter().map(|(_, problem)| problem).collect()
    }
}

/// What a message about a value names.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    key: String,
    origin: Origin,
}

impl Place {
    /// Whether it was written in the environment.
    pub(crate) fn is_variable(&self) -> bool {
        matches!(self.origin, Origin::Variable(_))
    }

    /// The key without its section.
    fn name(&self) -> &str {
        self.key.rsplit('.').next().unwrap_or(&self.key)
    }
}

/// A value that was read, and where it was written.
#[derive(Debug)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) place: Place,
}

/// A section that is being read.
pub(crate) struct Section<'a> {
    pub(crate) reading: &'a Reading,
    /// Where the section itself was begun.
    pub(crate) place: Place,
    given: bool,
    entries: Table,
    asked: Vec<&'static str>,
}

impl<'a> Section<'a> {
    /// Reads a section below this one; where it is not given, as an empty one. What `read` left over is unknown.
    pub(crate) fn section<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'_>) -> T) -> T {
        let written = self.take(key);
        self.below(key, written).read_with(read)
    }

    /// Reads every section below this one, whatever its name.
    pub(crate) fn sections<T>(&mut self, mut read: impl FnMut(&str, &mut Section<'_>) -> T) -> Vec<T> {
        let entries = std::mem::take(&mut self.entries);
        let one = |(name, written): (String, Written)| {
            self.below(&name, Some(written))
                .read_with(|section| read(&name, section))
        };
        entries.into_iter().map(one).collect()
    }

    /// Reads every section of a list of them, each begun with `[[key]]`.
    pub(crate) fn each<T>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&mut Section<'_>) -> T,
    ) -> Vec<T> {
        let Some(written) = self.take(key) else {
            return Vec::new();
        };
        let place = self.place_of(key, &written);
        if let Value::List(items) = written.value {
            let one = |item| self.below(key, Some(item)).read_with(&mut read);
            return items.into_iter().map(one).collect();
        }
        let reason = format!("must be a list of sections: begin each with [[{key}]]");
        self.reading.refuse(&place, reason);
        Vec::new()
    }

    /// Whether anyone wrote it, and as a section.
    pub(crate) fn is_given(&self) -> bool {
        self.given
    }

    /// A text that is not empty.
    pub(crate) fn text(&mut self, key: &'static str) -> Option<At<String>> {
        let written = self.value(key)?;
        self.reading.parsed(written, |value| match value {
            Value::Text(text) if text.is_empty() => Err("is empty".to_owned()),
            Value::Text(text) => Ok(text.clone()),
            other => Err(format!("must be a text in quotes, not {}", other.kind())),
        })
    }

    /// A list of texts, none of them empty; in a variable separated by commas.
    pub(crate) fn texts(&mut self, key: &'static str) -> Option<At<Vec<String>>> {
        self.list(key, false)
    }

    /// As [`Self::texts`], or one text alone.
    pub(crate) fn text_or_texts(&mut self, key: &'static str) -> Option<At<Vec<String>>> {
        self.list(key, true)
    }

    fn list(&mut self, key: &'static str, or_one: bool) -> Option<At<Vec<String>>> {
        let written = self.value(key)?;
        let from_variable = written.place.is_variable();
        self.reading.parsed(written, |value| match value {
            Value::Text(text) if from_variable => Ok(text
                .split(',')
                .map(|item| item.trim().to_owned())
                .filter(|item| !item.is_empty())
                .collect()),
            Value::Text(text) if or_one && text.is_empty() => Err("is empty".to_owned()),
            Value::Text(text) if or_one => Ok(vec![text.clone()]),
            Value::List(items) => items
                .iter()
                .map(|item| match &item.value {
                    Value::Text(text) if text.is_empty() => Err("holds an empty text".to_owned()),
                    Value::Text(text) => Ok(text.clone()),
                    other => Err(format!("must hold texts in quotes, not {}", other.kind())),
                })
                .collect(),
            other => Err(format!(
                "must be a list of texts, like [\"a\", \"b\"], not {}",
                other.kind()
            )),
        })
    }

    /// `true` or `false`.
    pub(crate) fn flag(&mut self, key: &'static str) -> Option<At<bool>> {
        let written = self.value(key)?;
        let from_variable = written.place.is_variable();
        self.reading.parsed(written, |value| match value {
            Value::Flag(flag) => Ok(*flag),
            Value::Text(text) if from_variable => text.parse().map_err(|_| "must be true or false"),
            _ => Err("must be true or false, without quotes"),
        })
    }

    /// One of a few words.
    pub(crate) fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)]) -> Option<At<T>> {
        let text = self.text(key)?;
        self.reading.parsed(text, |text| {
            let found = choices.iter().find(|(word, _)| word == text);
            found.map(|(_, choice)| *choice).ok_or_else(|| {
                let words: Vec<String> = choices.iter().map(|(word, _)| format!("{word:?}")).collect();
                format!("must be {}, not {text:?}", words.join(" or "))
            })
        })
    }

    /// A duration within bounds.
    pub(crate) fn duration(
        &mut self,
        key: &'static str,
        bounds: RangeInclusive<Duration>,
    ) -> Option<At<Duration>> {
        let written = self.value(key)?;
        self.reading.parsed(written, |value| {
            let text = match value {
                Value::Text(text) | Value::Number(text) => text,
                other => return Err(format!("must be a duration like \"30s\", not {}", other.kind())),
            };
            let duration = duration::parse(text).map_err(|error| error.to_string())?;
            if bounds.contains(&duration) {
                return Ok(duration);
            }
            let (least, most) = (duration::write(*bounds.start()), duration::write(*bounds.end()));
            Err(format!(
                "{text:?} is out of bounds: at least {least}, at most {most}"
            ))
        })
    }

    /// A whole number within bounds.
    pub(crate) fn number(&mut self, key: &'static str, bounds: RangeInclusive<u64>) -> Option<At<u64>> {
        self.counted(key, bounds, "a whole number", |text| text.parse().ok())
    }

    /// A share: a number from 0 to 1.
    pub(crate) fn ratio(&mut self, key: &'static str) -> Option<At<f64>> {
        const WHAT: &str = "must be a number from 0 to 1, like 0.1";
        let written = self.value(key)?;
        let from_variable = written.place.is_variable();
        self.reading.parsed(written, |value| {
            match value {
                Value::Number(text) => text.parse().ok(),
                Value::Text(text) if from_variable => text.parse().ok(),
                _ => None,
            }
            .filter(|ratio| (0.0..=1.0).contains(ratio))
            .ok_or(WHAT)
        })
    }

    /// A number of bytes within bounds: alone, or with `KiB`, `MiB` or `GiB` behind it.
    pub(crate) fn size(&mut self, key: &'static str, bounds: RangeInclusive<u64>) -> Option<At<u64>> {
        self.counted(
            key,
            bounds,
            "a number of bytes, like 65536 or \"64KiB\"",
            |text| {
                let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
                let (number, unit) = text.split_at(unit_at);
                let times: u64 = match unit {
                    "" => 1,
                    "KiB" => 1 << 10,
                    "MiB" => 1 << 20,
                    "GiB" => 1 << 30,
                    _ => return None,
                };
                number.parse::<u64>().ok()?.checked_mul(times)
            },
        )
    }

    fn counted(
        &mut self,
        key: &'static str,
        bounds: RangeInclusive<u64>,
        what: &str,
        parse: impl FnOnce(&str) -> Option<u64>,
    ) -> Option<At<u64>> {
        let written = self.value(key)?;
        self.reading.parsed(written, |value| {
            let text = match value {
                Value::Text(text) | Value::Number(text) => text,
                other => return Err(format!("must be {what}, not {}", other.kind())),
            };
            let number = parse(text).ok_or_else(|| format!("must be {what}, not {text:?}"))?;
            if bounds.contains(&number) {
                return Ok(number);
            }
            let (least, most) = (bounds.start(), bounds.end());
            Err(format!(
                "{text:?} is out of bounds: at least {least}, at most {most}"
            ))
        })
    }

    /// A path, made to stand on its own.
    pub(crate) fn path(&mut self, key: &'static str) -> Option<At<PathBuf>> {
        let At { value, place } = self.text(key)?;
        Some(At {
            value: self.reading.path(&place, &value),
            place,
        })
    }

    /// Refuses a key that is known but not wanted here.
    pub(crate) fn refuse_given(&mut self, key: &str, reason: impl Into<String>) {
        if let Some(written) = self.entries.remove(key) {
            self.reading.refuse(&self.place_of(key, &written), reason);
        }
    }

    /// Refuses that none of these keys is there, before they are asked for; the first one gets the blame. A section that
    /// is not given lacks nothing.
    pub(crate) fn require(&self, keys: &[&str], reason: &str) {
        if self.given && !keys.iter().any(|key| self.entries.contains_key(*key)) {
            self.refuse_absent(keys[0], reason);
        }
    }

    /// Refuses what the absence of a key would mean.
    pub(crate) fn refuse_absent(&self, key: &str, reason: impl Into<String>) {
        let place = Place {
            key: self.key_of(key),
            origin: self.place.origin.clone(),
        };
        self.reading.refuse(&place, reason);
    }

    fn value(&mut self, key: &'static str) -> Option<At<Value>> {
        let written = self.take(key)?;
        let place = self.place_of(key, &written);
        Some(At {
            value: written.value,
            place,
        })
    }

    fn take(&mut self, key: &'static str) -> Option<Written> {
        self.asked.push(key);
        self.entries.remove(key)
    }

    fn below(&self, key: &str, written: Option<Written>) -> Section<'a> {
        let place = match &written {
            Some(written) => self.place_of(key, written),
            None => Place {
                key: self.key_of(key),
                origin: self.place.origin.clone(),
            },
        };
        let (given, entries) = match written.map(|written| written.value) {
            None => (false, Table::new()),
            Some(Value::Table(table)) => (true, table),
            Some(other) => {
                self.reading
                    .refuse(&place, format!("must be a section, not {}", other.kind()));
                (false, Table::new())
            }
        };
        Section {
            reading: self.reading,
            place,
            given,
            entries,
            asked: Vec::new(),
        }
    }

    fn read_with<T>(mut self, read: impl FnOnce(&mut Section<'_>) -> T) -> T {
        let value = read(&mut self);
        for (key, written) in &self.entries {
            let hint = closest(key, &self.asked)
                .map_or_else(String::new, |known| format!(": did you mean {known:?}?"));
            let what = if matches!(written.value, Value::Table(_)) {
                "section"
            } else {
                "key"
            };
            self.reading
                .refuse(&self.place_of(key, written), format!("unknown {what}{hint}"));
        }
        value
    }

    fn place_of(&self, key: &str, written: &Written) -> Place {
        Place {
            key: self.key_of(key),
            origin: written.origin.clone(),
        }
    }

    fn key_of(&self, key: &str) -> String {
        match self.place.key.as_str() {
            "" => key.to_owned(),
            section => format!("{section}.{key}"),
        }
    }
}

/// The known key that someone may have meant: at most a third of it is wrong.
fn closest(key: &str, known: &[&'static str]) -> Option<&'static str> {
    known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(key, known), *known))
        .filter(|(wrong, known)| *wrong <= known.len().div_ceil(3))
        .min()
        .map(|(_, known)| known)
}
