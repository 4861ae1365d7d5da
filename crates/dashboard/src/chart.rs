//! Charts as the server draws them: numbers in, places and sizes out, which a template writes as SVG. No script is needed to see
//! one, and each has the same numbers beside it as a table.

use jiff::Timestamp;

use crate::words::span;

/// What is left of a token, as a gauge: full when it was issued, empty when it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gauge {
    /// How much of it is filled, of [`Gauge::WIDTH`].
    pub(crate) fill: u32,
    /// Where the soft end lies: from there on a refresh runs behind the calls.
    pub(crate) soft: Option<u32>,
    /// Where the hard end lies: from there on calls wait for a refresh.
    pub(crate) hard: Option<u32>,
    /// `fresh`, `soft`, `hard`, `over`: which of the marks it has passed.
    pub(crate) stage: &'static str,
    /// `21 min left`
    pub(crate) text: String,
    /// The same with its marks, for who cannot see it.
    pub(crate) spoken: String,
}

impl Gauge {
    /// Its width in the units of its places.
    pub(crate) const WIDTH: u32 = 120;

    /// Draws what is left at `now` of a token set that was issued and ends then.
    pub(crate) fn new(
        issued: Option<Timestamp>,
        soft: Option<Timestamp>,
        hard: Option<Timestamp>,
        expires: Timestamp,
        now: Timestamp,
    ) -> Self {
        let left = expires.as_millisecond() - now.as_millisecond();
        // Where nobody says when it was issued, half an hour is what most tokens live.
        let whole = issued
            .map_or(1_800_000, |issued| {
                expires.as_millisecond() - issued.as_millisecond()
            })
            .max(1);
        let place = |millis: i64| {
            let millis = millis.clamp(0, whole);
            u32::try_from(millis * i64::from(Self::WIDTH) / whole).unwrap_or(Self::WIDTH)
        };
        let before_the_end =
            |at: Option<Timestamp>| at.map(|at| expires.as_millisecond() - at.as_millisecond());
        let (soft, hard) = (before_the_end(soft), before_the_end(hard));
        let stage = match left {
            ..=0 => "over",
            left if hard.is_some_and(|hard| left <= hard) => "hard",
            left if soft.is_some_and(|soft| left <= soft) => "soft",
            _ => "fresh",
        };
        let text = if left > 0 {
            format!("{} left", span(left / 1000))
        } else {
            format!("ended {} ago", span(left / 1000))
        };
        let mut spoken = text.clone();
        if let Some(soft) = soft {
            spoken = format!("{spoken}; refreshed from {} before its end", span(soft / 1000));
        }
        if let Some(hard) = hard {
            spoken = format!("{spoken}, waited for from {} before", span(hard / 1000));
        }
        Self {
            // A sliver is left to be seen while there is any.
            fill: place(left).max(u32::from(left > 0) * 2),
            soft: soft.map(place),
            hard: hard.map(place),
            stage,
            text,
            spoken,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_764_000_000 + seconds).expect("a literal time")
    }

    #[test]
    fn a_gauge_empties_from_issue_to_end_and_names_the_mark_that_is_passed() {
        let check = |now: i64, fill: u32, stage: &str, text: &str| {
            let gauge = Gauge::new(Some(at(0)), Some(at(1500)), Some(at(1795)), at(1800), at(now));
            assert_eq!(
                (gauge.fill, gauge.stage, gauge.text.as_str()),
                (fill, stage, text)
            );
            assert_eq!((gauge.soft, gauge.hard), (Some(20), Some(0)));
        };
        check(0, 120, "fresh", "30 min left");
        check(900, 60, "fresh", "15 min left");
        check(1499, 20, "fresh", "5 min 1 s left");
        check(1500, 20, "soft", "5 min left");
        check(1795, 2, "hard", "5 s left");
        check(1800, 0, "over", "ended 0 s ago");
        check(5400, 0, "over", "ended 1 h ago");
    }

    #[test]
    fn a_gauge_of_odd_times_stays_within_its_bounds() {
        for (issued, expires, now) in [(0, 0, 0), (100, 0, -50), (0, 1, 1_000_000), (0, 10, -500)] {
            let gauge = Gauge::new(
                Some(at(issued)),
                Some(at(expires - 700)),
                None,
                at(expires),
                at(now),
            );
            assert!(
                gauge.fill <= Gauge::WIDTH && gauge.soft <= Some(Gauge::WIDTH),
                "{gauge:?}"
            );
        }
    }
}
