//! Times, lengths and counts, as sentences show them.

use std::time::Duration;

use crate::time::Timestamp;

/// A point in time as a sentence has it: on the clock in UTC, and how long ago: `14:02 UTC (3 h ago)`, `30 Nov, 14:02 UTC (26 h ago)`,
/// `14:02:11 UTC (40 s ago)`, `14:30 UTC (in 28 min)`. The day is there where it is another one, the seconds where they matter.
pub(super) fn when(at: Timestamp, now: Timestamp) -> String {
    const DAY: i64 = 24 * 3600 * 1000;
    const FAR: Duration = Duration::from_secs(300 * 24 * 3600);
    let apart = Duration::from_millis(now.millis().abs_diff(at.millis()));
    let is_today = at.millis().div_euclid(DAY) == now.millis().div_euclid(DAY);
    let clock = match (is_today, apart) {
        (true, apart) if apart < Duration::from_secs(600) => "%H:%M:%S UTC",
        (true, _) => "%H:%M UTC",
        (false, apart) if apart < FAR => "%-d %b, %H:%M UTC",
        (false, _) => "%-d %b %Y, %H:%M UTC",
    };
    let at_clock = jiff::Timestamp::from_second(at.millis().div_euclid(1000))
        .unwrap_or(jiff::Timestamp::MAX)
        .strftime(clock);
    if apart < Duration::from_secs(1) {
        format!("{at_clock} (just now)")
    } else if at > now {
        format!("{at_clock} (in {})", lasting(apart))
    } else {
        format!("{at_clock} ({} ago)", lasting(apart))
    }
}

/// A length of time, as coarse as is still true: `850 ms`, `42 s`, `12 min`, `3 h 20 min`.
pub(super) fn lasting(length: Duration) -> String {
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
pub fn times(number: u64) -> String {
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
            (ahead(-180_000), ahead(500)),
            ("3 min behind".into(), "500 ms ahead of".into())
        );
    }

    #[test]
    fn a_time_is_on_the_clock_and_so_long_ago() {
        let now = 1_764_072_000_000;
        let check = |seconds: i64, text: &str| {
            let at = Timestamp::from_millis(now + seconds * 1000);
            assert_eq!(when(at, Timestamp::from_millis(now)), text);
        };
        check(0, "12:00:00 UTC (just now)");
        check(-40, "11:59:20 UTC (40 s ago)");
        check(-599, "11:50:01 UTC (9 min ago)");
        check(-600, "11:50 UTC (10 min ago)");
        check(1680, "12:28 UTC (in 28 min)");
        check(-12_600, "08:30 UTC (3 h 30 min ago)");
        check(-12 * 3600, "00:00 UTC (12 h ago)");
        check(-12 * 3600 - 1, "24 Nov, 23:59 UTC (12 h ago)");
        check(-400 * 24 * 3600, "21 Oct 2024, 12:00 UTC (400 days ago)");
    }
}
