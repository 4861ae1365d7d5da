//! Words and marks: what stands for a health, a time, a span, a kind of event.

use jiff::Timestamp;

/// How something is to be taken. Each has a colour and a mark of its own, and always stands beside a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Warn,
    Bad,
    Unsure,
    Quiet,
}

impl Tone {
    /// The name of its class and of its mark.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Warn => "warn",
            Self::Bad => "bad",
            Self::Unsure => "unsure",
            Self::Quiet => "quiet",
        }
    }
}

/// A health in words, in the order in which lists of them are shown: what needs somebody first.
pub(crate) const HEALTHS: [(&str, &str, Tone); 5] = [
    ("reconnect_required", "Reconnect needed", Tone::Bad),
    ("ambiguous", "Outcome unknown", Tone::Unsure),
    ("degraded", "Degraded", Tone::Warn),
    ("unverified", "Not yet verified", Tone::Quiet),
    ("healthy", "Healthy", Tone::Good),
];

/// What a health, or what stands where there is none, is called and how it looks.
pub(crate) fn health(word: Option<&str>) -> (&'static str, Tone) {
    match word {
        None => ("Disconnected", Tone::Quiet),
        Some(word) => HEALTHS
            .iter()
            .find(|(known, ..)| *known == word)
            .map_or(("Unknown", Tone::Unsure), |(_, name, tone)| (name, *tone)),
    }
}

/// A kind of event in words, and how it is to be taken.
pub(crate) fn event(kind: &str) -> (String, Tone) {
    let (name, tone) = match kind {
        "connected" => ("Connected", Tone::Good),
        "refreshed" => ("Refreshed", Tone::Good),
        "refresh_failed" => ("Refresh failed", Tone::Warn),
        "call_unauthorized" => ("Call answered 401", Tone::Warn),
        "permission_denied" => ("Call answered 403", Tone::Warn),
        "rate_limited" => ("Call answered 429", Tone::Warn),
        "outcome_unknown" => ("Write of unknown outcome", Tone::Unsure),
        "write_suppressed" => ("Second write held back", Tone::Quiet),
        "reconnect_required" => ("Reconnect needed", Tone::Bad),
        "reconnected" => ("Reconnected", Tone::Good),
        "disconnected" => ("Disconnected", Tone::Quiet),
        "account_mismatch" => ("Wrong account", Tone::Bad),
        "lease_taken_over" => ("Lease taken over", Tone::Unsure),
        "store_regressed" => ("Store fell back", Tone::Unsure),
        "token_handed_out" => ("Token handed out", Tone::Quiet),
        "token_reported" => ("Token reported as refused", Tone::Warn),
        "refresh_forced" => ("Refresh asked for", Tone::Quiet),
        "uninstall_ignored" => ("Old uninstall ignored", Tone::Quiet),
        "revoked" => ("Grant revoked", Tone::Quiet),
        "credentials_rejected" => ("App credentials refused", Tone::Bad),
        "credentials_accepted" => ("App credentials accepted", Tone::Good),
        "double_redemption" => ("Redeemed twice", Tone::Bad),
        _ => return (name_of(kind), Tone::Quiet),
    };
    (name.to_owned(), tone)
}

/// `stale_token` as it reads at the head of a line.
pub(crate) fn name_of(word: &str) -> String {
    let mut name = word.replace('_', " ");
    if let Some(first) = name.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    name
}

/// A text as a sentence: a capital first, a full stop last, its times as people read them.
pub(crate) fn sentence(text: &str) -> String {
    with_readable_times(&full_sentence(text))
}

/// A capital first, a full stop last.
fn full_sentence(text: &str) -> String {
    let mut characters = text.trim().chars();
    let mut sentence: String = match characters.next() {
        Some(first) => first.to_uppercase().chain(characters).collect(),
        None => return String::new(),
    };
    if !sentence.ends_with(['.', '!', '?', '…']) {
        sentence.push('.');
    }
    sentence
}

/// A word that is a time as machines write it, and what stands behind it: a comma, a bracket.
fn time_in(word: &str) -> Option<(Timestamp, &str)> {
    let bare = word.trim_end_matches([',', '.', ';', ':', ')']);
    let at = bare.ends_with('Z').then(|| bare.parse().ok())??;
    Some((at, &word[bare.len()..]))
}

/// Times as machines write them, as people read them.
fn with_readable_times(text: &str) -> String {
    let readable = |word: &str| {
        time_in(word).map(|(at, rest)| format!("{} UTC{rest}", at.strftime("%Y-%m-%d %H:%M:%S")))
    };
    let words = text
        .split(' ')
        .map(|word| readable(word).unwrap_or_else(|| word.to_owned()));
    words.collect::<Vec<_>>().join(" ")
}

/// A part of a text that is shown: what was written, or a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    Words(String),
    /// As it stands, and how far away it is.
    Time(When),
    /// How far away it is.
    Ago(When),
}

/// A sentence of ours that tells how far away something is.
pub(crate) fn told(before: &str, at: Timestamp, after: &str, now: Timestamp) -> Vec<Piece> {
    vec![
        Piece::Words(before.to_owned()),
        Piece::Ago(When::new(at, now)),
        Piece::Words(after.to_owned()),
    ]
}

/// A text as a sentence whose times are marked as such.
pub(crate) fn prose(text: &str, now: Timestamp) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut words = String::new();
    for (index, word) in full_sentence(text).split(' ').enumerate() {
        if index > 0 {
            words.push(' ');
        }
        match time_in(word) {
            Some((at, rest)) => {
                pieces.push(Piece::Words(std::mem::take(&mut words)));
                pieces.push(Piece::Time(When::new(at, now)));
                words.push_str(rest);
            }
            None => words.push_str(word),
        }
    }
    pieces.push(Piece::Words(words));
    pieces.retain(|piece| *piece != Piece::Words(String::new()));
    pieces
}

/// A span in its two largest units: `4 min 20 s`, `3 h`, `2 d 4 h`.
pub(crate) fn span(seconds: i64) -> String {
    let seconds = seconds.unsigned_abs();
    let two = |large: u64, unit: &str, small: u64, small_unit: &str| {
        if small == 0 {
            format!("{large} {unit}")
        } else {
            format!("{large} {unit} {small} {small_unit}")
        }
    };
    match seconds {
        0..60 => format!("{seconds} s"),
        60..600 => two(seconds / 60, "min", seconds % 60, "s"),
        600..3600 => format!("{} min", seconds / 60),
        3600..86_400 => two(seconds / 3600, "h", seconds % 3600 / 60, "min"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3600, "h"),
    }
}

/// A time, as far away as it is and as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct When {
    /// `4 min ago`, `in 20 s`.
    pub(crate) relative: String,
    /// `16:40:05 UTC` on the day itself, else with its date.
    pub(crate) short: String,
    /// `2026-11-24 16:40:05 UTC`
    pub(crate) absolute: String,
    /// As machines read it.
    pub(crate) machine: String,
}

impl When {
    pub(crate) fn new(at: Timestamp, now: Timestamp) -> Self {
        let seconds = at.as_second() - now.as_second();
        let relative = match seconds {
            -4..=4 => "just now".to_owned(),
            5.. => format!("in {}", span(seconds)),
            _ => format!("{} ago", rough(-seconds)),
        };
        let is_today = at.as_second().div_euclid(86_400) == now.as_second().div_euclid(86_400);
        let short = if is_today {
            "%H:%M:%S UTC"
        } else {
            "%Y-%m-%d %H:%M UTC"
        };
        Self {
            relative,
            short: at.strftime(short).to_string(),
            absolute: at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
            machine: at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        }
    }

    pub(crate) fn maybe(at: Option<Timestamp>, now: Timestamp) -> Option<Self> {
        at.map(|at| Self::new(at, now))
    }
}

/// What has passed, in its largest unit: nobody asks more of the past.
fn rough(seconds: i64) -> String {
    match seconds {
        ..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Whole numbers as people read them: `12 480`.
pub(crate) fn number(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// `1 connection`, `2 connections`.
pub(crate) fn counted(count: u64, one: &str) -> String {
    format!("{} {one}{}", number(count), if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_in_two_units_at_most() {
        for (seconds, expected) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (260, "4 min 20 s"),
            (1799, "29 min"),
            (3600, "1 h"),
            (5400, "1 h 30 min"),
            (187_200, "2 d 4 h"),
            (-20, "20 s"),
        ] {
            assert_eq!(span(seconds), expected);
        }
    }

    #[test]
    fn times_read_as_far_away_as_they_are() {
        let now = Timestamp::from_second(1_764_000_000).expect("a literal time");
        let check = |seconds: i64, expected: &str| {
            let at = Timestamp::from_second(1_764_000_000 + seconds).expect("a literal time");
            assert_eq!(When::new(at, now).relative, expected);
        };
        check(0, "just now");
        check(-30, "30 s ago");
        check(-3599, "59 min ago");
        check(-90_000, "25 h ago");
        check(-259_200, "3 d ago");
        check(95, "in 1 min 35 s");
        assert_eq!(When::new(now, now).machine, "2025-11-24T16:00:00Z");
    }

    #[test]
    fn every_health_has_a_word_of_its_own_beside_its_mark() {
        let names: Vec<_> = HEALTHS.iter().map(|(_, name, _)| name).collect();
        let mut distinct = names.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), names.len());
        assert_eq!(health(None).0, "Disconnected");
        assert_eq!(health(Some("of tomorrow")).0, "Unknown");
    }

    #[test]
    fn texts_become_sentences() {
        assert_eq!(sentence("the grant is gone"), "The grant is gone.");
        assert_eq!(sentence("Ask again."), "Ask again.");
        assert_eq!(sentence(" "), "");
        assert_eq!(
            sentence("the next try is at 2026-11-24T12:01:10.123Z; Z"),
            "The next try is at 2026-11-24 12:01:10 UTC; Z."
        );
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().expect("a literal time");
        let read: Vec<String> = prose(
            "since 2026-11-24T11:58:00Z: 2 of 3 (last 2026-11-23T10:00:00Z)",
            now,
        )
        .into_iter()
        .map(|piece| match piece {
            Piece::Words(words) => words,
            Piece::Time(at) | Piece::Ago(at) => format!("<{}|{}|{}>", at.machine, at.short, at.relative),
        })
        .collect();
        assert_eq!(
            read.concat(),
            "Since <2026-11-24T11:58:00Z|11:58:00 UTC|2 min ago>: 2 of 3 (last <2026-11-23T10:00:00Z|2026-11-23 10:00 UTC|26 h ago>)."
        );
        assert_eq!(name_of("clock_skew"), "Clock skew");
        assert_eq!(name_of("äh"), "äh");
        assert_eq!(number(1_234_567), "1\u{202f}234\u{202f}567");
    }
}
