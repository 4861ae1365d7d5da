//! Spans of time as people write them: a whole number and its unit.

use std::time::Duration;

/// Why a text is not a duration; the message says how one is written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDuration {
    /// A number alone: nobody can tell seconds from minutes.
    #[error("{0} has no unit: write \"{0}s\" for seconds, or m, h, d")]
    NoUnit(u64),
    /// Not a number and a unit.
    #[error("not a duration: write a whole number and its unit, like \"300s\", \"5m\", \"1h\" or \"90d\"")]
    Unreadable,
}

/// Reads `300s`, `5m`, `1h` or `90d`. Zero is read as zero: what is too short or too long is the caller's to say.
pub fn parse(text: &str) -> Result<Duration, BadDuration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let number: u64 = number.parse().map_err(|_| BadDuration::Unreadable)?;
    let unit_s = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        "" => return Err(BadDuration::NoUnit(number)),
        _ => return Err(BadDuration::Unreadable),
    };
    number
        .checked_mul(unit_s)
        .map(Duration::from_secs)
        .ok_or(BadDuration::Unreadable)
}

/// Writes a duration the way [`parse`] reads it, in the largest unit that loses nothing; fractions of a second are cut.
pub fn write(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        s if s != 0 && s.is_multiple_of(24 * 3600) => format!("{}d", s / (24 * 3600)),
        s if s != 0 && s.is_multiple_of(3600) => format!("{}h", s / 3600),
        s if s != 0 && s.is_multiple_of(60) => format!("{}m", s / 60),
        s => format!("{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_number_and_a_unit() {
        let check = |text: &str, seconds: Result<u64, BadDuration>| {
            assert_eq!(parse(text), seconds.map(Duration::from_secs), "{text:?}");
        };
        check("300s", Ok(300));
        check("5m", Ok(300));
        check("1h", Ok(3600));
        check("90d", Ok(7_776_000));
        check("0s", Ok(0));
        check("25", Err(BadDuration::NoUnit(25)));
        for unreadable in [
            "",
            "s",
            "-5s",
            "+5s",
            "1.5h",
            "5 m",
            "5M",
            "1h30m",
            "5min",
            "99999999999999999999s",
        ] {
            check(unreadable, Err(BadDuration::Unreadable));
        }
        check("999999999999999999d", Err(BadDuration::Unreadable));
    }

    #[test]
    fn a_written_duration_reads_as_the_same() {
        for text in ["0s", "1s", "90s", "5m", "90m", "1h", "36h", "90d"] {
            assert_eq!(write(parse(text).expect("a literal duration")), text);
        }
    }
}
