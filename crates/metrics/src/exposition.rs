//! Prometheus's text format, version 0.0.4: what every reader of metrics understands.

use std::fmt::{Display, Write as _};

use crate::histogram::Counted;

/// What the numbers of a family are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How often something took how long.
    Histogram,
}

/// A text that is being written, family by family.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

impl Exposition {
    /// How HTTP calls the format.
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a family: the samples that follow have its name. `help` is one line.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    /// One number of the family.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(name);
        self.labels(labels);
        self.line(format_args!(" {value}"));
    }

    /// A histogram of the family.
    pub(crate) fn histogram(&mut self, name: &str, labels: &[(&str, &str)], counted: &Counted) {
        let mut count = 0;
        let mut bucket = |text: &mut Self, bound: &str, within: u64| {
            count += within;
            let mut labels = labels.to_vec();
            labels.push(("le", bound));
            text.text.push_str(name);
            text.text.push_str("_bucket");
            text.labels(&labels);
            text.line(format_args!(" {count}"));
            count
        };
        for (bound, within) in &counted.within {
            bucket(self, &bound.to_string(), *within);
        }
        let count = bucket(self, "+Inf", counted.beyond);
        for (suffix, value) in [("_sum", &counted.sum as &dyn Display), ("_count", &count)] {
            self.text.push_str(name);
            self.text.push_str(suffix);
            self.labels(labels);
            self.line(format_args!(" {value}"));
        }
    }

    /// All of it.
    pub fn into_text(self) -> String {
        self.text
    }

    fn labels(&mut self, labels: &[(&str, &str)]) {
        for (index, (name, value)) in labels.iter().enumerate() {
            self.text.push(if index == 0 { '{' } else { ',' });
            self.text.push_str(name);
            self.text.push_str("=\"");
            for letter in value.chars() {
                match letter {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    letter => self.text.push(letter),
                }
            }
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        self.text.write_fmt(line).expect("a string takes everything");
        self.text.push('\n');
    }
}
