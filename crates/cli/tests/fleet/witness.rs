//! What callers saw, and whether it had to be like that.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::fleet::{Fleet, LIFETIME, connection_of};
use crate::installation::Answer;
use crate::plan::{PROCESSES, Rotation};

/// How long after it came back a store may still be out of reach: a statement that was on its way waits for 8 s.
pub(crate) const AFTERSHOCK: Duration = Duration::from_secs(9);
/// How long after a fault its connection may have no token: a dead holder's lease, 30 s, and an exchange, 15 s.
pub(crate) const STANDSTILL: Duration = Duration::from_secs(45);
/// A moment in which a process is not quite there or gone yet.
const MOMENT: Duration = Duration::from_millis(500);
/// How long it takes at most until a process knows what another one stored: the feed is read every 500 ms.
const FEED: Duration = Duration::from_secs(5);
/// A call that took longer has waited for its turn.
const TURN: Duration = Duration::from_millis(500);
/// For how long a store may be away and what is at hand still serves: `max_stale` is 60 s, counted from the last look at the feed.
const SERVES_WITHOUT_STORE: Duration = Duration::from_secs(55);

/// What a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Gateway,
    Token,
    Refresh,
}

/// A call under way.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) process: usize,
    kind: Kind,
    sent: Instant,
    /// When the last token ends that was seen before.
    ends: Option<Instant>,
    /// The least version that may come back, and what said so.
    least: i64,
    because: String,
}

/// What was seen of one connection.
#[derive(Debug, Default)]
pub(crate) struct Seen(Mutex<Sights>);

#[derive(Debug, Default)]
struct Sights {
    /// When each new version was seen first.
    versions: Vec<(i64, Instant)>,
    /// The access token of each version, and which process served it first, when.
    tokens: BTreeMap<i64, (String, usize, Instant)>,
    /// When the last token ends, to be on the safe side.
    ends: Option<Instant>,
    /// The last of each process.
    of: [Option<Sight>; PROCESSES],
}

#[derive(Debug, Clone, Copy)]
struct Sight {
    kind: Kind,
    version: i64,
    at: Instant,
    ends: Option<Instant>,
}

/// Numbers of a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts {
    pub(crate) gateway: u64,
    pub(crate) tokens: u64,
    pub(crate) refreshes: u64,
    pub(crate) connected: u64,
    pub(crate) consents: u64,
    pub(crate) disconnected: u64,
    pub(crate) dead: u64,
    pub(crate) no_store: u64,
    pub(crate) no_token: u64,
    pub(crate) no_grant: u64,
    pub(crate) avoidable: u64,
    pub(crate) went_back: u64,
    pub(crate) longest_wait: Duration,
}

/// The numbers so far, what must not be, and what happened.
#[derive(Debug)]
pub(crate) struct Tally {
    began: Instant,
    pub(crate) diary: Mutex<Vec<String>>,
    pub(crate) counts: Mutex<Counts>,
    pub(crate) wrong: Mutex<Vec<String>>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            diary: Mutex::default(),
            counts: Mutex::default(),
            wrong: Mutex::default(),
        }
    }
}

impl Tally {
    pub(crate) fn count(&self, count: impl FnOnce(&mut Counts)) {
        count(&mut self.counts.lock().unwrap());
    }

    /// Something must not be.
    pub(crate) fn wrong(&self, what: String) {
        self.write_down(&what);
        self.wrong.lock().unwrap().push(what);
    }

    /// Something happens, for whoever reads of a failure.
    pub(crate) fn write_down(&self, what: &str) {
        let line = format!("{:>7.2} s  {what}", self.began.elapsed().as_secs_f64());
        self.diary.lock().unwrap().push(line);
    }
}

/// What an answer says of the token that was used.
struct Served {
    version: i64,
    token: Option<String>,
    ends: Option<Instant>,
}

impl Seen {
    pub(crate) fn begin(&self, process: usize, kind: Kind, fleet: &Fleet) -> Call {
        let sent = Instant::now();
        let sights = self.0.lock().unwrap();
        let (mut least, mut because) = sights.of[process].map_or_else(Default::default, |sight| {
            let ago = sent.duration_since(sight.at).as_millis();
            (sight.version, format!("{:?} there {ago} ms before", sight.kind))
        });
        // What anybody saw a while ago everybody knows, unless the news could not reach it.
        let news_came = !fleet.troubles.store_since(process, sent, FEED + AFTERSHOCK);
        if news_came
            && let Some((known, _)) = sights
                .versions
                .iter()
                .rev()
                .find(|(_, at)| sent.duration_since(*at) > FEED)
            && *known > least
        {
            (least, because) = (*known, format!("somebody more than {} s before", FEED.as_secs()));
        }
        Call {
            process,
            kind,
            sent,
            ends: sights.ends,
            least,
            because,
        }
    }

    /// Judges the answer to a call; says whether it was what the caller wanted.
    pub(crate) fn end(
        &self,
        fleet: &Fleet,
        portal: u64,
        call: &Call,
        answer: &Result<Answer, String>,
    ) -> bool {
        let now = Instant::now();
        let stood_still = fleet.troubles.stopped[call.process].since(call.sent, MOMENT);
        fleet.tally.count(|counts| {
            *match call.kind {
                Kind::Gateway => &mut counts.gateway,
                Kind::Token => &mut counts.tokens,
                Kind::Refresh => &mut counts.refreshes,
            } += 1;
            if !stood_still && answer.is_ok() {
                counts.longest_wait = counts.longest_wait.max(now - call.sent);
            }
        });
        if let Ok(answer) = answer
            && answer.status == 200
        {
            match served(fleet, call, answer) {
                Some(served) => self.note(fleet, portal, call, now, served),
                None => fleet.tally.wrong(format!("no version in {answer:?}")),
            }
            return true;
        }
        let count: fn(&mut Counts) = match self.judge(fleet, portal, call, answer) {
            Ok(count) => count,
            Err(why) => {
                let shown = match answer {
                    Ok(answer) => format!("{} {}", answer.status, answer.text),
                    Err(error) => error.clone(),
                };
                fleet.tally.wrong(format!(
                    "avoidable: {:?} of portal {portal} at process {}, after {:.1} s: {why}: {shown}",
                    call.kind,
                    call.process,
                    (now - call.sent).as_secs_f64(),
                ));
                |counts| counts.avoidable += 1
            }
        };
        fleet.tally.count(count);
        false
    }

    /// How many versions it has grown by since then, as far as was seen.
    pub(crate) fn grown_since(&self, then: Instant) -> u64 {
        let sights = self.0.lock().unwrap();
        let before = sights.versions.iter().rev().find(|(_, at)| *at <= then);
        let (Some((newest, _)), Some((known, _))) = (sights.versions.last(), before) else {
            return 0;
        };
        newest.abs_diff(*known)
    }

    fn note(&self, fleet: &Fleet, portal: u64, call: &Call, now: Instant, served: Served) {
        let mut sights = self.0.lock().unwrap();
        let version = served.version;
        if version < call.least {
            fleet.tally.count(|counts| counts.went_back += 1);
            fleet.tally.wrong(format!(
                "portal {portal}: process {} answered {:?} with version {version} although {} was seen by {}",
                call.process, call.kind, call.least, call.because,
            ));
        }
        if sights.versions.last().is_none_or(|(last, _)| *last < version) {
            sights.versions.push((version, now));
        }
        if let Some(token) = served.token {
            let first = (token.clone(), call.process, now);
            let (known, by, at) = sights.tokens.entry(version).or_insert(first);
            if *known != token && !fleet.troubles.may_have_lost_its_number(*by, *at) {
                fleet
                    .tally
                    .wrong(format!("portal {portal}: two token sets have version {version}"));
            }
        }
        sights.ends = sights.ends.max(served.ends);
        // What a refresh reports is what the store holds; this process serves it once the feed has told of it.
        if call.kind == Kind::Refresh {
            return;
        }
        let last = &mut sights.of[call.process];
        if last.is_none_or(|last| last.version <= version) {
            *last = Some(Sight {
                kind: call.kind,
                version,
                at: now,
                ends: served.ends.or(last
                    .filter(|last| last.version == version)
                    .and_then(|last| last.ends)),
            });
        }
    }

    /// Whether a call had to fail like that: what to count, or why not.
    fn judge(
        &self,
        fleet: &Fleet,
        portal: u64,
        call: &Call,
        answer: &Result<Answer, String>,
    ) -> Result<fn(&mut Counts), &'static str> {
        let troubles = &fleet.troubles;
        let (process, sent) = (call.process, call.sent);
        let Ok(answer) = answer else {
            let was_there =
                !troubles.down[process].since(sent, MOMENT) && !troubles.stopped[process].since(sent, MOMENT);
            return if was_there {
                Err("the process was there all the time")
            } else {
                Ok(|counts| counts.dead += 1)
            };
        };
        if answer.status == 424 && fleet.plan.rotation == Rotation::SingleUse {
            return if fleet.books.may_be_lost(portal) {
                Ok(|counts| counts.no_grant += 1)
            } else {
                Err("no answer of this connection was lost")
            };
        }
        // Without its store a process has half of the budget that it used: whoever waits for a turn may find none, or find its token
        // past its end by then.
        let is_thrifty = troubles.store_since(process, sent, AFTERSHOCK);
        if answer.status == 429 && problem(answer).as_deref() == Some("budget_exhausted") {
            return if is_thrifty {
                Ok(|counts| counts.no_store += 1)
            } else {
                Err("there was budget enough")
            };
        }
        if answer.status != 503 {
            return Err("only 503 says that there is no token now");
        }
        if !answer.headers.contains_key("retry-after") {
            return Err("it does not say when to come again");
        }
        match problem(answer).as_deref() {
            Some("store_unavailable") if !troubles.store_since(process, sent, AFTERSHOCK) => {
                Err("the store was there all the time")
            }
            Some("store_unavailable")
                if call.kind == Kind::Gateway && is_thrifty && sent.elapsed() > TURN =>
            {
                Ok(|counts| counts.no_store += 1)
            }
            Some("store_unavailable")
                if call.kind != Kind::Refresh && self.is_at_hand(fleet, portal, call) =>
            {
                Err("the process had a token that still served")
            }
            Some("store_unavailable") => Ok(|counts| counts.no_store += 1),
            Some("provider_unavailable" | "overloaded") => {
                // What was seen only meanwhile came too late for this call, and nobody's clock is read to the millisecond.
                let serves = call.ends.is_some_and(|ends| ends > Instant::now() + MOMENT);
                let stood_still = troubles.stopped[process].since(sent, MOMENT);
                if call.kind != Kind::Refresh && serves && !stood_still {
                    return Err("a token that was seen still served");
                }
                let endpoint = connection_of(portal)
                    .is_some_and(|connection| troubles.endpoint[connection].since(sent, STANDSTILL));
                if !endpoint
                    && !troubles.any_down_since(sent, STANDSTILL)
                    && !troubles.any_stopped_since(sent, STANDSTILL)
                    && !troubles.store_since(process, sent, STANDSTILL)
                {
                    return Err("nothing kept the fleet from another token");
                }
                Ok(|counts| counts.no_token += 1)
            }
            _ => Err("this code says that something is wrong for good"),
        }
    }

    /// Whether the process certainly had a token in memory that served when the call came.
    fn is_at_hand(&self, fleet: &Fleet, portal: u64, call: &Call) -> bool {
        /// Before that it may have read of a change and not of what it is.
        const READ: Duration = Duration::from_millis(1500);
        let accepted = fleet.books.last_accepted(&fleet.installation.hubspot, portal);
        let sights = self.0.lock().unwrap();
        let (Some(sight), Some((_, newest_since))) = (sights.of[call.process], sights.versions.last()) else {
            return false;
        };
        // What was issued since, or is not stored yet, is news that may have come; so is what this process has stored itself.
        let no_news =
            accepted.is_none_or(|accepted| accepted < *newest_since) && *newest_since + READ < sight.at;
        let troubles = &fleet.troubles;
        no_news
            && sight.ends.is_some_and(|ends| ends > call.sent + MOMENT)
            && !troubles.down[call.process].since(sight.at, MOMENT)
            && !troubles.stopped[call.process].since(sight.at, MOMENT)
            && troubles
                .store_away_since(call.process)
                .is_none_or(|since| since.elapsed() < SERVES_WITHOUT_STORE)
    }
}

/// The code of a problem.
fn problem(answer: &Answer) -> Option<String> {
    let problem: serde_json::Value = serde_json::from_str(&answer.text).ok()?;
    Some(problem["code"].as_str()?.to_owned())
}

fn served(fleet: &Fleet, call: &Call, answer: &Answer) -> Option<Served> {
    // Nobody is given a token in the last tenth of its life.
    let margin = LIFETIME / 10;
    match call.kind {
        Kind::Gateway => {
            let number = |name: &str| answer.headers.get(name)?.to_str().ok()?.parse::<i64>().ok();
            let ttl = u64::try_from(number("evergrant-token-ttl")?).unwrap_or(0);
            Some(Served {
                version: number("evergrant-token-version")?,
                token: None,
                ends: (call.sent + Duration::from_secs(ttl)).checked_sub(margin),
            })
        }
        Kind::Token => {
            let token: serde_json::Value = serde_json::from_str(&answer.text).ok()?;
            let expires: jiff::Timestamp = token["expires_at"].as_str()?.parse().ok()?;
            let left = expires.duration_since(fleet.installation.hubspot.now());
            Some(Served {
                version: token["version"].as_i64()?,
                token: Some(token["access_token"].as_str()?.to_owned()),
                ends: (Instant::now() + Duration::try_from(left).unwrap_or_default()).checked_sub(margin),
            })
        }
        Kind::Refresh => {
            let report: serde_json::Value = serde_json::from_str(&answer.text).ok()?;
            Some(Served {
                version: report["version"].as_i64()?,
                token: None,
                ends: None,
            })
        }
    }
}
