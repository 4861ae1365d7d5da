//! What a 401 may cost: one redemption per connection and cooldown, not one per request.

use std::time::Duration;

use crate::time::Timestamp;

const COOLDOWN_FIRST: Duration = Duration::from_secs(60);
const COOLDOWN_MAX: Duration = Duration::from_secs(600);

/// How long a token set younger than this is given out as it is by an unforced refresh.
pub const YOUNG: Duration = Duration::from_secs(60);

/// The cooldown that the last redemption because of a 401 began. Stored, so that all processes share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cooldown {
    /// When it began.
    pub began_at: Timestamp,
    /// How long it lasts.
    pub lasts: Duration,
}

impl Cooldown {
    /// Whether no 401 may cost a redemption now.
    pub fn holds(self, now: Timestamp) -> bool {
        now < self.began_at.after(self.lasts)
    }

    /// Whether a 401 for a token set issued at `issued_at` may cost no redemption now: the one that this cooldown allows has
    /// brought that very set. One that was tried and brought nothing is not used up.
    pub fn forbids(self, issued_at: Timestamp, now: Timestamp) -> bool {
        self.holds(now) && issued_at >= self.began_at
    }

    /// The cooldown that a redemption because of a 401 begins: 60 s, doubled up to 10 min while rejections follow each
    /// other, and 60 s again once one whole cooldown has passed in peace.
    pub fn next(last: Option<Self>, now: Timestamp) -> Self {
        let lasts = match last {
            Some(last) if now < last.began_at.after(last.lasts * 2) => (last.lasts * 2).min(COOLDOWN_MAX),
            _ => COOLDOWN_FIRST,
        };
        Self { began_at: now, lasts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    #[test]
    fn a_cooldown_forbids_only_what_its_own_redemption_has_brought() {
        let cooldown = Cooldown::next(None, at(100));
        for (issued_at, now, forbidden) in [
            (99, 100, false),
            (99, 159, false),
            (100, 159, true),
            (101, 159, true),
            (101, 160, false),
        ] {
            assert_eq!(
                cooldown.forbids(at(issued_at), at(now)),
                forbidden,
                "issued at {issued_at}, judged at {now}"
            );
        }
    }

    #[test]
    fn cooldowns_double_while_rejections_go_on_and_start_over_after_a_quiet_one() {
        let mut cooldown = Cooldown::next(None, at(0));
        let mut lengths = vec![cooldown.lasts.as_secs()];
        for _ in 0..5 {
            let end = cooldown.began_at.after(cooldown.lasts);
            assert!(cooldown.holds(end.before(Duration::from_millis(1))) && !cooldown.holds(end));
            cooldown = Cooldown::next(Some(cooldown), end);
            lengths.push(cooldown.lasts.as_secs());
        }
        assert_eq!(lengths, [60, 120, 240, 480, 600, 600]);
        let quiet = cooldown.began_at.after(Duration::from_secs(1200));
        assert_eq!(Cooldown::next(Some(cooldown), quiet).lasts, COOLDOWN_FIRST);
    }
}
