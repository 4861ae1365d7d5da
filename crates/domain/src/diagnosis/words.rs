//! Times, lengths and counts, as sentences show them.

use std::time::Duration;

use crate::time::Timestamp;

/// A point in time to the second, in UTC: `2026-11-30T14:02:11Z`.
pub fn shown(at: Timestamp) -> String {
    jiff::Timestamp::from_second(at.millis().div_euclid(1000))
        .unwrap_or(jiff::Timestamp::MAX)
        .to_string()
}

/// A length of time, as coarse as is still true: `850 ms`, `42 s`, `12 min`, `3 h 20 min`.
pub fn lasting(length: Duration) -> String {
    let seconds = length.as_secs();
    match seconds {
        0 => format!("{} ms", length.as_millis()),
        1..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        _ if seconds < 48 * 3600 && seconds % 3600 >= 60 => {
            format!("{} h {} min", seconds / 3600, seconds % 3600 / 60)
        }
        _ if seconds < 48 * 3600 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / (24 * 3600)),
    }
}

/// A number and its thing: `1 call`, `3 calls`.
pub(super) fn count(number: u64, thing: &str) -> String {
    if number == 1 {
        format!("1 {thing}")
    } else {
        format!("{number} {thing}s")
    }
}

/// `once`, `twice`, `5 times`.
pub(super) fn times(number: u64) -> String {
    match number {
        1 => "once".to_owned(),
        2 => "twice".to_owned(),
        _ => format!("{number} times"),
    }
}

/// Milliseconds of a clock against another: `42 s ahead of`, `3 min behind`, `850 ms ahead of`.
pub(super) fn ahead(millis: i64) -> String {
    let length = lasting(Duration::from_millis(millis.unsigned_abs()));
    if millis < 0 {
        format!("{length} behind")
    } else {
        format!("{length} ahead of")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_as_coarse_as_is_still_true() {
        for (millis, text) in [
            (850, "850 ms"),
            (42_900, "42 s"),
            (725_000, "12 min"),
            (12_000_000, "3 h 20 min"),
            (10_800_000, "3 h"),
            (259_200_000, "3 days"),
        ] {
            assert_eq!(lasting(Duration::from_millis(millis)), text);
        }
        assert_eq!(
            shown(Timestamp::from_millis(1_764_000_000_999)),
            "2025-11-24T16:00:00Z"
        );
        assert_eq!(
            (ahead(-180_000), ahead(500)),
            ("3 min behind".into(), "500 ms ahead of".into())
        );
    }
}
