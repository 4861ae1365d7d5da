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

/// One kind of thing that a chart stacks: what it is called and the class that colours it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Series {
    /// In legend and table.
    pub(crate) name: &'static str,
    /// The name of its class.
    pub(crate) class: &'static str,
}

/// Columns over time, one beside the other, each a stack of what was counted then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Columns {
    pub(crate) series: Vec<Total>,
    pub(crate) bars: Vec<Bar>,
    /// Lines to read heights by, from the top: where, and how much.
    pub(crate) lines: Vec<(u32, String)>,
    /// The times below it, from the left.
    pub(crate) times: Vec<String>,
    /// The same numbers, newest first. Times at which nothing was counted are left out.
    pub(crate) rows: Vec<(String, Vec<String>)>,
    pub(crate) is_empty: bool,
}

/// A series with what it comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Total {
    pub(crate) name: &'static str,
    pub(crate) class: &'static str,
    pub(crate) count: String,
}

/// One part of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bar {
    pub(crate) x: u32,
    pub(crate) y: u32,
    pub(crate) height: u32,
    pub(crate) class: &'static str,
}

impl Columns {
    /// A column and the room beside it, in the units of its places; the template makes the column itself 8 wide.
    pub(crate) const STEP: u32 = 10;
    /// The room for the highest column.
    pub(crate) const HEIGHT: u32 = 120;

    /// Draws counts by time: `columns` are in order of time, and each holds a count for every series.
    pub(crate) fn new(series: &[Series], columns: &[(Timestamp, Vec<u64>)]) -> Self {
        let sum = |counts: &[u64]| counts.iter().sum::<u64>();
        let top = round_up(columns.iter().map(|(_, counts)| sum(counts)).max().unwrap_or(0));
        let height =
            |count: u64| u32::try_from(count * u64::from(Self::HEIGHT) / top.max(1)).unwrap_or(Self::HEIGHT);
        let mut bars = Vec::new();
        for (place, (_, counts)) in (0_u32..).zip(columns) {
            // The first series stands at the foot. Places are taken from sums, so that roundings do not add up.
            let mut below = 0;
            for (series, count) in series.iter().zip(counts) {
                let foot = height(below);
                below += count;
                // What was counted at all is to be seen.
                let tall = (height(below) - foot).max(u32::from(*count > 0));
                if tall > 0 {
                    bars.push(Bar {
                        x: place * Self::STEP,
                        y: Self::HEIGHT.saturating_sub(foot + tall),
                        height: tall,
                        class: series.class,
                    });
                }
            }
        }
        let hour = |at: &Timestamp| at.strftime("%H:%M").to_string();
        let number = crate::words::number;
        Self {
            series: series
                .iter()
                .enumerate()
                .map(|(index, series)| Total {
                    name: series.name,
                    class: series.class,
                    count: number(columns.iter().filter_map(|(_, counts)| counts.get(index)).sum()),
                })
                .collect(),
            lines: if top == 0 {
                Vec::new()
            } else {
                vec![(0, number(top)), (Self::HEIGHT / 2, number(top / 2))]
            },
            times: match columns {
                [] => Vec::new(),
                [(only, _)] => vec![hour(only)],
                [(first, _), .., (last, _)] => {
                    let (middle, _) = &columns[columns.len() / 2];
                    vec![hour(first), hour(middle), hour(last)]
                }
            },
            rows: columns
                .iter()
                .rev()
                .filter(|(_, counts)| sum(counts) > 0)
                .map(|(at, counts)| (hour(at), counts.iter().map(|count| number(*count)).collect()))
                .collect(),
            is_empty: top == 0,
            bars,
        }
    }

    /// How wide it is.
    pub(crate) fn width(columns: usize) -> u32 {
        u32::try_from(columns).unwrap_or(u32::MAX / Self::STEP) * Self::STEP
    }
}

/// The next number that halves well: 2, 4, 10, 20, 40, 100, …
fn round_up(count: u64) -> u64 {
    if count == 0 {
        return 0;
    }
    let mut unit = 1_u64;
    loop {
        for step in [2, 4, 10] {
            if count <= step * unit {
                return step * unit;
            }
        }
        unit = unit.saturating_mul(10);
    }
}

/// Parts of a whole, one beside the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) x: u32,
    pub(crate) width: u32,
    pub(crate) class: &'static str,
}

/// Divides a bar of [`SHARES`] by counts. What there is at all is to be seen.
pub(crate) fn shares(counts: &[(u64, &'static str)]) -> Vec<Share> {
    let whole: u64 = counts.iter().map(|(count, _)| count).sum();
    let place = |count: u64| u32::try_from(count * u64::from(SHARES) / whole.max(1)).unwrap_or(SHARES);
    let mut below = 0;
    let mut shares = Vec::new();
    for (count, class) in counts.iter().filter(|(count, _)| *count > 0) {
        let x = place(below).min(SHARES - SLIVER);
        below += count;
        shares.push(Share {
            x,
            width: (place(below).saturating_sub(x)).max(SLIVER),
            class,
        });
    }
    shares
}

/// The width of a bar of shares, in the units of its places.
pub(crate) const SHARES: u32 = 1000;
/// The least that a share is wide.
const SLIVER: u32 = 6;

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

    #[test]
    fn columns_stack_up_to_what_was_counted_and_tell_it_in_a_table() {
        let series = [
            Series {
                name: "good",
                class: "a",
            },
            Series {
                name: "bad",
                class: "b",
            },
        ];
        let chart = Columns::new(
            &series,
            &[(at(0), vec![30, 10]), (at(60), vec![0, 0]), (at(120), vec![1, 0])],
        );
        let bar = |x, y, height, class| Bar { x, y, height, class };
        assert_eq!(
            chart.bars,
            [bar(0, 30, 90, "a"), bar(0, 0, 30, "b"), bar(20, 117, 3, "a")]
        );
        assert_eq!(chart.lines, [(0, "40".to_owned()), (60, "20".to_owned())]);
        assert_eq!(chart.times, ["16:00", "16:01", "16:02"]);
        assert_eq!(
            chart.rows[0],
            ("16:02".to_owned(), vec!["1".to_owned(), "0".to_owned()])
        );
        assert_eq!(chart.rows.len(), 2, "a minute without calls takes no row");
        assert_eq!(chart.series[0].count, "31");
        assert!(Columns::new(&series, &[(at(0), vec![0, 0])]).is_empty);
        assert!(Columns::new(&series, &[]).is_empty);
    }

    #[test]
    fn one_among_many_is_still_to_be_seen() {
        let series = [
            Series {
                name: "good",
                class: "a",
            },
            Series {
                name: "bad",
                class: "b",
            },
        ];
        let chart = Columns::new(&series, &[(at(0), vec![1_000_000, 1])]);
        assert!(chart.bars.iter().any(|bar| bar.class == "b" && bar.height >= 1));
        let shares = shares(&[(100_000, "a"), (0, "b"), (1, "c")]);
        assert_eq!(shares.len(), 2);
        assert!(
            shares
                .iter()
                .all(|share| share.width >= SLIVER && share.x + share.width <= SHARES),
            "{shares:?}"
        );
    }

    #[test]
    fn scales_end_at_round_numbers() {
        for (count, expected) in [
            (0, 0),
            (1, 2),
            (3, 4),
            (5, 10),
            (11, 20),
            (40, 40),
            (41, 100),
            (1001, 2000),
        ] {
            assert_eq!(round_up(count), expected);
        }
    }
}
