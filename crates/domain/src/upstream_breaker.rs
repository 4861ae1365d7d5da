//! When no more calls are sent to a host that answers none: a breaker for each host, in each process.
//!
//! It opens after many failures in a row that took a while, with no answer between: not because of one bad endpoint beside good
//! ones, nor of one burst of calls. While it is open one call after each pause goes through; its answer closes it.
//!
//! Times are durations since a moment that does not change.

use std::time::Duration;

/// So many failures in a row open it, …
const FAILURES: u32 = 20;
/// … if the first of them is this old: a process that restarts behind its balancer is back by then.
const OVER: Duration = Duration::from_secs(2);
/// How long it is open at first. Each probe that fails doubles it.
const PAUSE: Duration = Duration::from_secs(2);
/// The longest pause: what callers are told to wait, too.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What became of a call that was sent to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// It answered.
    Yes,
    /// It was not reached, did not answer in time, or what stands before it says that it does not: 502, 503, 504.
    No,
}

impl Reached {
    /// What this status says.
    pub fn by(status: u16) -> Self {
        if matches!(status, 502..=504) {
            Self::No
        } else {
            Self::Yes
        }
    }
}

/// Whether a call may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    /// Like any other.
    Open,
    /// As the one that finds out whether the host is back.
    Probe,
    /// Not before this much time has passed.
    Closed(Duration),
}

/// What is known of a host that failed lately. A host without trouble has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpstreamBreaker {
    failures: u32,
    first_at: Duration,
    /// Nothing while it is shut: then calls go through.
    open: Option<Open>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Open {
    until: Duration,
    pause: Duration,
    /// Whether a probe is on its way.
    probing: bool,
}

impl UpstreamBreaker {
    /// One for a host whose first failure is about to be told.
    pub fn new(now: Duration) -> Self {
        Self {
            failures: 0,
            first_at: now,
            open: None,
        }
    }

    /// Whether a call may be sent now. After [`Passage::Probe`] its fate must be told, by [`Self::failed`] or
    /// [`Self::given_up`], or the breaker's end.
    pub fn passage(&mut self, now: Duration) -> Passage {
        match &mut self.open {
            None => Passage::Open,
            Some(open) if now < open.until => Passage::Closed(open.until.saturating_sub(now)),
            Some(open) if open.probing => Passage::Closed(PAUSE.min(open.pause)),
            Some(open) => {
                open.probing = true;
                Passage::Probe
            }
        }
    }

    /// How long calls are refused at least, without asking to be let through.
    pub fn closed_for(&self, now: Duration) -> Option<Duration> {
        let open = self.open?;
        let left = open.until.saturating_sub(now);
        (!left.is_zero()).then_some(left)
    }

    /// A call failed. `as_probe`: the one that was let through as such.
    pub fn failed(&mut self, as_probe: bool, now: Duration) {
        self.failures = self.failures.saturating_add(1);
        match &mut self.open {
            Some(open) if as_probe => {
                let pause = (open.pause * 2).min(PAUSE_MAX);
                *open = Open {
                    until: now + pause,
                    pause,
                    probing: false,
                };
            }
            None if self.failures >= FAILURES && now.saturating_sub(self.first_at) >= OVER => {
                self.open = Some(Open {
                    until: now + PAUSE,
                    pause: PAUSE,
                    probing: false,
                });
            }
            // Not yet; or it left before it opened.
            None | Some(_) => {}
        }
    }

    /// The probe ended without telling anything: its caller hung up.
    pub fn given_up(&mut self) {
        if let Some(open) = &mut self.open {
            open.probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Fails this often, evenly over this long.
    fn failing(times: u32, over_ms: u64) -> UpstreamBreaker {
        let mut breaker = UpstreamBreaker::new(ms(0));
        for n in 0..times {
            breaker.failed(false, ms(over_ms * u64::from(n) / u64::from(times.max(2) - 1)));
        }
        breaker
    }

    #[test]
    fn it_opens_after_many_failures_that_took_a_while() {
        for (times, over_ms, expected) in [
            (19, 60_000, Passage::Open),
            (1000, 1999, Passage::Open),
            (20, 2000, Passage::Closed(PAUSE)),
        ] {
            assert_eq!(
                failing(times, over_ms).passage(ms(over_ms)),
                expected,
                "{times} failures in {over_ms} ms"
            );
        }
    }

    #[test]
    fn after_its_pause_one_call_goes_through_and_the_others_wait_for_it() {
        let mut breaker = failing(20, 2000);
        assert_eq!(breaker.passage(ms(3999)), Passage::Closed(ms(1)));
        assert_eq!(breaker.closed_for(ms(3999)), Some(ms(1)));
        assert_eq!(breaker.closed_for(ms(4000)), None);
        assert_eq!(breaker.passage(ms(4000)), Passage::Probe);
        assert_eq!(breaker.passage(ms(4000)), Passage::Closed(PAUSE));
        // Those that left before it opened change nothing.
        breaker.failed(false, ms(4001));
        assert_eq!(breaker.passage(ms(4001)), Passage::Closed(PAUSE));
    }

    #[test]
    fn each_probe_that_fails_doubles_the_pause_up_to_half_a_minute() {
        let mut breaker = failing(20, 2000);
        let mut now = ms(4000);
        for expected in [4, 8, 16, 30, 30] {
            assert_eq!(breaker.passage(now), Passage::Probe);
            breaker.failed(true, now);
            let pause = Duration::from_secs(expected);
            assert_eq!(breaker.passage(now), Passage::Closed(pause));
            now += pause;
        }
    }

    #[test]
    fn a_probe_whose_caller_hangs_up_makes_room_for_the_next() {
        let mut breaker = failing(20, 2000);
        assert_eq!(breaker.passage(ms(4000)), Passage::Probe);
        breaker.given_up();
        assert_eq!(breaker.passage(ms(4000)), Passage::Probe);
    }

    #[test]
    fn a_status_tells_whether_the_host_was_reached() {
        for (status, expected) in [
            (200, Reached::Yes),
            (404, Reached::Yes),
            (429, Reached::Yes),
            (500, Reached::Yes),
            (501, Reached::Yes),
            (502, Reached::No),
            (503, Reached::No),
            (504, Reached::No),
            (505, Reached::Yes),
        ] {
            assert_eq!(Reached::by(status), expected, "{status}");
        }
    }
}
