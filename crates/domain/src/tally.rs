//! What calls did, added up: the evidence of a history that keeps no line per call.
//!
//! A call adds to a tally in memory; tallies are added together and written every now and then, per connection and hour and per
//! app and minute.

use crate::api_answer::Class;

/// One thing that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Counted {
    /// A call of the gateway that ended like this: with an answer of the provider's, or because the provider gave none.
    Class(Class),
    /// A call that was refused here before anything of it was sent, for a reason that says nothing of the provider: a store that
    /// is away, a limit of ours, the call itself. Its class is what its caller was told.
    Refused(Class),
    /// A call that left with a token which lived so much longer.
    Ttl(Seconds),
    /// A call that left so long after its job was put into a queue, as its caller said.
    Delay(Seconds),
    /// A call that the provider answered with this status, from 400 on.
    Status(u16),
    /// An access token that was handed to a caller.
    HandedOut,
    /// A caller said that the provider answered a token of ours with this status.
    RejectedReport(u16),
    /// A refresh that was forced.
    RefreshForced,
    /// A refresh token that was presented to the provider.
    Redeemed,
    /// A token set that a refresh brought and the store has.
    Stored,
}

/// A number of seconds, by the buckets that calls are counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Seconds {
    /// Below 0.
    BelowZero,
    /// Below 30.
    Below30,
    /// Below 120.
    Below120,
    /// Below 300.
    Below300,
    /// Below 600.
    Below600,
    /// Below 1800.
    Below1800,
    /// 1800 and more.
    More,
}

impl Seconds {
    /// Every bucket, from the smallest.
    pub const ALL: [Self; 7] = [
        Self::BelowZero,
        Self::Below30,
        Self::Below120,
        Self::Below300,
        Self::Below600,
        Self::Below1800,
        Self::More,
    ];

    /// The bucket of so many seconds.
    pub fn of(seconds: i64) -> Self {
        match seconds {
            ..0 => Self::BelowZero,
            0..30 => Self::Below30,
            30..120 => Self::Below120,
            120..300 => Self::Below300,
            300..600 => Self::Below600,
            600..1800 => Self::Below1800,
            1800.. => Self::More,
        }
    }

    /// The word in the store and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BelowZero => "below_0",
            Self::Below30 => "below_30",
            Self::Below120 => "below_120",
            Self::Below300 => "below_300",
            Self::Below600 => "below_600",
            Self::Below1800 => "below_1800",
            Self::More => "more",
        }
    }
}

impl Counted {
    /// The word in the store and the API.
    pub fn word(self) -> String {
        match self {
            Self::Class(class) => format!("class:{}", class.as_str()),
            Self::Refused(class) => format!("refused:{}", class.as_str()),
            Self::Ttl(seconds) => format!("ttl:{}", seconds.as_str()),
            Self::Delay(seconds) => format!("delay:{}", seconds.as_str()),
            Self::Status(status) => format!("status:{status}"),
            Self::HandedOut => "handed_out".to_owned(),
            Self::RejectedReport(status) => format!("rejected_report:{status}"),
            Self::RefreshForced => "refresh_forced".to_owned(),
            Self::Redeemed => "redeemed".to_owned(),
            Self::Stored => "stored".to_owned(),
        }
    }

    /// Reads that word.
    pub fn from_word(word: &str) -> Option<Self> {
        let class = |word: &str| Class::ALL.into_iter().find(|class| class.as_str() == word);
        let bucket = |word: &str| Seconds::ALL.into_iter().find(|seconds| seconds.as_str() == word);
        match word.split_once(':') {
            None => [Self::HandedOut, Self::RefreshForced, Self::Redeemed, Self::Stored]
                .into_iter()
                .find(|counted| counted.word() == word),
            Some(("class", word)) => class(word).map(Self::Class),
            Some(("refused", word)) => class(word).map(Self::Refused),
            Some(("ttl", seconds)) => bucket(seconds).map(Self::Ttl),
            Some(("delay", seconds)) => bucket(seconds).map(Self::Delay),
            Some(("status", status)) => status.parse().ok().map(Self::Status),
            Some(("rejected_report", status)) => status.parse().ok().map(Self::RejectedReport),
            Some(_) => None,
        }
    }
}

const CLASSES: usize = Class::ALL.len();
const BUCKETS: usize = Seconds::ALL.len();

/// How often each thing was counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    classes: [u32; CLASSES],
    ttl: [u32; BUCKETS],
    delay: [u32; BUCKETS],
    /// What is not counted on every call: few kinds at a time.
    others: Vec<(Counted, u32)>,
}

/// Whose doing it is that a call ended as it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndedBy {
    /// The provider answered, or failed to.
    Provider,
    /// It was refused here before anything was sent, for a reason that says nothing of the provider.
    Us,
}

/// A call of the gateway that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedCall {
    /// How.
    pub class: Class,
    /// Whose doing that was.
    pub ended_by: EndedBy,
    /// The provider's last status, where it answered.
    pub status: Option<u16>,
    /// How many seconds its token had left when it was sent; `None` where it was not.
    pub seconds_remaining: Option<i64>,
    /// How many seconds it was sent after its job was put into a queue, where its caller said when that was.
    pub enqueued_for: Option<i64>,
}

impl Tally {
    /// Counts a call. A few additions: this is on the way of every call.
    pub fn call(&mut self, call: &EndedCall) {
        if call.ended_by == EndedBy::Us {
            self.add(Counted::Refused(call.class), 1);
        } else {
            bump(&mut self.classes[call.class as usize], 1);
        }
        if let Some(seconds) = call.seconds_remaining {
            bump(&mut self.ttl[Seconds::of(seconds) as usize], 1);
        }
        if let Some(seconds) = call.enqueued_for {
            bump(&mut self.delay[Seconds::of(seconds) as usize], 1);
        }
        if let Some(status @ 400..) = call.status {
            self.add(Counted::Status(status), 1);
        }
    }

    /// Counts one thing `times` over.
    pub fn add(&mut self, counted: Counted, times: u32) {
        if times == 0 {
            return;
        }
        let place = match counted {
            Counted::Class(class) => &mut self.classes[class as usize],
            Counted::Ttl(seconds) => &mut self.ttl[seconds as usize],
            Counted::Delay(seconds) => &mut self.delay[seconds as usize],
            Counted::Refused(_)
            | Counted::Status(_)
            | Counted::HandedOut
            | Counted::RejectedReport(_)
            | Counted::RefreshForced
            | Counted::Redeemed
            | Counted::Stored => {
                let Some(place) = self.others.iter().position(|(other, _)| *other == counted) else {
                    self.others.push((counted, times));
                    return;
                };
                &mut self.others[place].1
            }
        };
        bump(place, times);
    }

    /// Adds another tally to this one.
    pub fn merge(&mut self, other: &Self) {
        for (counted, times) in other.iter() {
            self.add(counted, times);
        }
    }

    /// How often one thing was counted.
    pub fn times(&self, counted: Counted) -> u32 {
        self.iter()
            .find(|(other, _)| *other == counted)
            .map_or(0, |(_, times)| times)
    }

    /// What was counted at all, and how often.
    pub fn iter(&self) -> impl Iterator<Item = (Counted, u32)> + '_ {
        let buckets = |of: fn(Seconds) -> Counted| Seconds::ALL.into_iter().map(of);
        Class::ALL
            .into_iter()
            .map(Counted::Class)
            .zip(self.classes)
            .chain(buckets(Counted::Ttl).zip(self.ttl))
            .chain(buckets(Counted::Delay).zip(self.delay))
            .chain(self.others.iter().copied())
            .filter(|(_, times)| *times > 0)
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// How many calls were counted, those that were refused here among them.
    pub fn calls(&self) -> u64 {
        self.classes.iter().copied().map(u64::from).sum::<u64>() + self.refused()
    }

    /// How many of them were refused here before anything was sent.
    pub fn refused(&self) -> u64 {
        self.others
            .iter()
            .filter(|(counted, _)| matches!(counted, Counted::Refused(_)))
            .map(|(_, times)| u64::from(*times))
            .sum()
    }
}

fn bump(place: &mut u32, times: u32) {
    *place = place.saturating_add(times);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_reads_back() {
        let counted = Class::ALL
            .map(Counted::Class)
            .into_iter()
            .chain(Class::ALL.map(Counted::Refused))
            .chain(Seconds::ALL.map(Counted::Ttl))
            .chain(Seconds::ALL.map(Counted::Delay))
            .chain([
                Counted::Status(403),
                Counted::HandedOut,
                Counted::RejectedReport(401),
                Counted::RefreshForced,
                Counted::Redeemed,
                Counted::Stored,
            ]);
        for counted in counted {
            assert_eq!(Counted::from_word(&counted.word()), Some(counted));
        }
        for word in [
            "",
            "class:",
            "class:nothing",
            "refused:nothing",
            "ttl:",
            "status:x",
            "else:1",
        ] {
            assert_eq!(Counted::from_word(word), None, "{word}");
        }
    }

    #[test]
    fn a_bucket_ends_before_the_second_that_it_is_named_by() {
        let words: Vec<_> = [-1, 0, 29, 30, 119, 120, 299, 300, 599, 600, 1799, 1800]
            .into_iter()
            .map(|seconds| Seconds::of(seconds).as_str())
            .collect();
        assert_eq!(
            words,
            [
                "below_0",
                "below_30",
                "below_30",
                "below_120",
                "below_120",
                "below_300",
                "below_300",
                "below_600",
                "below_600",
                "below_1800",
                "below_1800",
                "more"
            ]
        );
    }

    #[test]
    fn tallies_add_up() {
        let mut tally = Tally::default();
        assert!(tally.is_empty());
        tally.call(&EndedCall {
            class: Class::PermissionDenied,
            ended_by: EndedBy::Provider,
            status: Some(403),
            seconds_remaining: Some(-1),
            enqueued_for: Some(300),
        });
        tally.call(&EndedCall {
            class: Class::Ok,
            ended_by: EndedBy::Provider,
            status: Some(200),
            seconds_remaining: Some(1700),
            enqueued_for: None,
        });
        let mut both = Tally::default();
        both.add(Counted::HandedOut, 3);
        both.merge(&tally);
        both.merge(&tally);
        assert_eq!(both.calls(), 4);
        let words: Vec<_> = both
            .iter()
            .map(|(counted, times)| format!("{} {times}", counted.word()))
            .collect();
        assert_eq!(
            words,
            [
                "class:ok 2",
                "class:permission_denied 2",
                "ttl:below_0 2",
                "ttl:below_1800 2",
                "delay:below_600 2",
                "handed_out 3",
                "status:403 2"
            ]
        );
        assert_eq!(both.times(Counted::Status(403)), 2);
        assert_eq!(both.times(Counted::Status(404)), 0);
    }

    #[test]
    fn what_was_refused_here_is_a_call_and_none_of_the_providers_classes() {
        let mut tally = Tally::default();
        tally.call(&EndedCall {
            class: Class::Unavailable,
            ended_by: EndedBy::Us,
            status: None,
            seconds_remaining: None,
            enqueued_for: Some(31),
        });
        assert_eq!((tally.calls(), tally.refused()), (1, 1));
        assert_eq!(tally.times(Counted::Class(Class::Unavailable)), 0);
        assert_eq!(tally.times(Counted::Refused(Class::Unavailable)), 1);
        assert_eq!(tally.times(Counted::Delay(Seconds::Below120)), 1);
    }
}
