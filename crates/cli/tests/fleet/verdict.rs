//! The provider's books held against the fleet's.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use hubspot_sim::{Ledger, Simulator};
use tokio::time::Instant;

use crate::witness::Counts;

/// How long it takes at most until a version that is stored is seen by a caller.
const SEEN_WITHIN: Duration = Duration::from_secs(1);

/// When the provider accepted what, and how many of it may have been lost.
#[derive(Debug, Default)]
pub(crate) struct Books(Mutex<BTreeMap<u64, Page>>);

/// What is known of one account.
#[derive(Debug, Default)]
struct Page {
    /// When a refresh or a consent was seen to be accepted.
    accepted: Vec<Instant>,
    in_flight: u64,
    in_flight_max: u64,
    /// When a holder was lost that may have had an answer, or was about to get one.
    holders_lost: Vec<Instant>,
    /// How many answers the simulator was told to lose.
    answers_lost: u64,
    /// When a customer consented again: what was being redeemed comes to nothing, or the consent does.
    consents: Vec<Instant>,
    /// How often the fleet gave the connection up.
    given_up: u64,
    /// Whether it was disconnected, and its grant is to be revoked.
    disconnected: bool,
    /// When there were two redemptions at a time.
    overlaps: Vec<Instant>,
}

impl Page {
    /// How often there were two redemptions at a time that nothing explains. A lost holder does, while what it sent is still
    /// with the provider.
    fn unexplained_overlaps(&self) -> usize {
        /// The slowest answer, and a little.
        const STILL_THERE: Duration = Duration::from_secs(4);
        /// Holders are noted a little after they are lost.
        const NOTED: Duration = Duration::from_secs(1);
        let explains = |lost: Instant, at: Instant| lost <= at + NOTED && at <= lost + STILL_THERE;
        let lost = || self.holders_lost.iter().chain(&self.consents);
        let unexplained = |at: &&Instant| !lost().any(|lost| explains(*lost, **at));
        self.overlaps.iter().filter(unexplained).count()
    }

    fn may_be_lost(&self) -> u64 {
        self.answers_lost + self.holders_lost.len() as u64
    }

    fn explained(&self) -> u64 {
        self.may_be_lost() + self.consents.len() as u64
    }
}

impl Books {
    /// Copies what is new.
    pub(crate) fn look(&self, hubspot: &Simulator) -> Ledger {
        let mut pages = self.0.lock().unwrap();
        let ledger = hubspot.ledger();
        let now = Instant::now();
        for grant in &ledger.grants {
            let page = pages.entry(grant.hub_id).or_default();
            let (in_flight, max) = (grant.refreshes_in_flight, grant.refreshes_in_flight_max);
            if max > page.in_flight_max.max(1) || (in_flight > 1 && page.in_flight <= 1) {
                page.overlaps.push(now);
            }
            (page.in_flight, page.in_flight_max) = (in_flight, max);
            while (page.accepted.len() as u64) < grant.refreshes_accepted + grant.installs {
                page.accepted.push(now);
            }
        }
        ledger
    }

    pub(crate) fn is_in_flight(&self, hubspot: &Simulator, portal: u64) -> bool {
        self.look(hubspot);
        self.0
            .lock()
            .unwrap()
            .get(&portal)
            .is_some_and(|page| page.in_flight > 0)
    }

    /// When something was accepted last.
    pub(crate) fn last_accepted(&self, hubspot: &Simulator, portal: u64) -> Option<Instant> {
        self.look(hubspot);
        let pages = self.0.lock().unwrap();
        pages.get(&portal)?.accepted.last().copied()
    }

    /// The portals whose refresh token is at the provider, or was accepted within this time; with the moments of that. What was
    /// accepted shortly before is among them: its version may be seen only after the last acceptance, and is not that one's.
    pub(crate) fn hot(&self, hubspot: &Simulator, within: Duration) -> BTreeMap<u64, Vec<Instant>> {
        self.look(hubspot);
        let pages = self.0.lock().unwrap();
        let hot = pages.iter().filter_map(|(portal, page)| {
            if page.in_flight > 0 {
                return Some((*portal, Vec::new()));
            }
            let last = page.accepted.last().filter(|at| at.elapsed() <= within)?;
            let mut run = vec![*last];
            for earlier in page.accepted.iter().rev().skip(1) {
                if run[0].duration_since(*earlier) > SEEN_WITHIN {
                    break;
                }
                run.insert(0, *earlier);
            }
            Some((*portal, run))
        });
        hot.collect()
    }

    /// A holder is gone that may have had an answer.
    pub(crate) fn holder_lost(&self, portal: u64) {
        let mut pages = self.0.lock().unwrap();
        pages.entry(portal).or_default().holders_lost.push(Instant::now());
    }

    /// The simulator was told to lose an answer.
    pub(crate) fn answer_lost(&self, portal: u64) {
        self.0.lock().unwrap().entry(portal).or_default().answers_lost += 1;
    }

    /// A customer may have consented again.
    pub(crate) fn consents(&self, portal: u64) {
        let mut pages = self.0.lock().unwrap();
        pages.entry(portal).or_default().consents.push(Instant::now());
    }

    /// The fleet gave a connection up: its customer must consent again.
    pub(crate) fn given_up(&self, portal: u64) {
        self.0.lock().unwrap().entry(portal).or_default().given_up += 1;
    }

    /// A connection was disconnected.
    pub(crate) fn disconnected(&self, portal: u64) {
        self.0.lock().unwrap().entry(portal).or_default().disconnected = true;
    }

    /// Whether an answer of this account may have been lost.
    pub(crate) fn may_be_lost(&self, portal: u64) -> bool {
        let pages = self.0.lock().unwrap();
        pages.get(&portal).is_some_and(|page| page.may_be_lost() > 0)
    }

    /// The accounts that are disconnected and have a grant that lives. Where an answer may have been lost, it is enough that one of
    /// the refresh tokens is dead.
    pub(crate) fn unrevoked(&self, ledger: &Ledger) -> Vec<u64> {
        let pages = self.0.lock().unwrap();
        let lives = |(portal, page): &(&u64, &Page)| {
            let mut tokens = ledger.refresh_tokens_of(**portal);
            let revoked = if page.may_be_lost() > 0 {
                tokens.any(|token| token.dead)
            } else {
                tokens.all(|token| token.dead || token.superseded)
            };
            page.disconnected && !revoked
        };
        pages.iter().filter(lives).map(|(portal, _)| *portal).collect()
    }

    /// How often a connection was given up, and how often it may have been.
    fn losses(&self, portal: u64) -> (u64, u64) {
        let pages = self.0.lock().unwrap();
        pages
            .get(&portal)
            .map_or((0, 0), |page| (page.given_up, page.may_be_lost()))
    }

    /// How many answers may have been lost, and how often two redemptions at a time are unexplained.
    fn explained(&self, portal: u64) -> (u64, usize) {
        let pages = self.0.lock().unwrap();
        pages
            .get(&portal)
            .map_or((0, 0), |page| (page.explained(), page.unexplained_overlaps()))
    }
}

/// What a run came to.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) command: String,
    pub(crate) took: Duration,
    pub(crate) healed_in: Duration,
    pub(crate) faults: BTreeMap<&'static str, u32>,
    pub(crate) counts: Counts,
    pub(crate) token_requests: u64,
    pub(crate) accepted: u64,
    pub(crate) stored: u64,
    pub(crate) replays: u64,
    /// Accepted, and no version stands for it.
    pub(crate) lost_answers: u64,
    /// Of those, the ones that something may explain.
    pub(crate) explained: u64,
    pub(crate) double_redemptions: u64,
    pub(crate) lost_grants: u64,
    /// Everything that must not be, in words.
    pub(crate) wrong: Vec<String>,
    /// What happened when.
    pub(crate) diary: String,
    /// The end of what the processes printed.
    pub(crate) printed: String,
}

impl Report {
    /// Holds the ledger against how often each connection's version grew.
    pub(crate) fn judge(&mut self, books: &Books, ledger: &Ledger, grown: &BTreeMap<u64, u64>) {
        self.token_requests = ledger.token_requests;
        self.replays = ledger.replays;
        for (&portal, &grown) in grown {
            let Some(grant) = ledger.grants.iter().find(|grant| grant.hub_id == portal) else {
                continue;
            };
            // The first grant was imported; each further one is a consent.
            let accepted = grant.refreshes_accepted + grant.installs.saturating_sub(1);
            let (given_up, may_be_lost) = books.losses(portal);
            if given_up > may_be_lost {
                self.wrong.push(format!(
                    "portal {portal}: given up {given_up} times, {may_be_lost} answers may have been lost"
                ));
            }
            let (explained, overlaps) = books.explained(portal);
            let lost = accepted.saturating_sub(grown);
            self.accepted += accepted;
            self.stored += grown;
            self.lost_answers += lost;
            self.explained += explained;
            if accepted < grown {
                self.wrong.push(format!(
                    "portal {portal}: {grown} token sets stored, {accepted} issued"
                ));
            }
            if lost > explained {
                self.double_redemptions += lost - explained;
                self.wrong.push(format!(
                    "portal {portal}: {accepted} redemptions accepted, {grown} stored, {explained} may have been lost"
                ));
            }
            let replays: u64 = ledger.refresh_tokens_of(portal).map(|token| token.replays).sum();
            if replays > lost {
                self.double_redemptions += replays - lost;
                self.wrong
                    .push(format!("portal {portal}: {replays} replays, {lost} answers lost"));
            }
            if overlaps > 0 {
                self.double_redemptions += overlaps as u64;
                self.wrong.push(format!(
                    "portal {portal}: {overlaps} times two redemptions at a time"
                ));
            }
            if ledger.refresh_tokens_of(portal).any(|token| token.dead) {
                self.wrong
                    .push(format!("portal {portal}: a refresh token was revoked"));
            }
        }
        // Whoever asks by name for a connection that was given up has its token presented once more.
        let once_more: u64 = grown.keys().map(|portal| books.losses(*portal).0).sum();
        for (what, number) in [
            (
                "refused refreshes",
                ledger.refreshes_refused.saturating_sub(once_more),
            ),
            ("refused clients", ledger.client_refusals),
            ("unknown refresh tokens", ledger.unknown_refresh_tokens),
            ("calls with a killed token", ledger.unauthorized.killed),
            ("calls with a made-up token", ledger.unauthorized.garbage),
            ("calls without a token", ledger.unauthorized.missing),
        ] {
            if number > 0 {
                self.wrong.push(format!("{number} {what}"));
            }
        }
    }

    pub(crate) fn assert_holds(&self) {
        println!("{self}");
        assert!(
            self.wrong.is_empty(),
            "{}\n\nagain: {}\n\n{}\n\n{}",
            self.wrong.join("\n"),
            self.command,
            self.diary,
            self.printed
        );
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        let faults: Vec<_> = self
            .faults
            .iter()
            .map(|(name, times)| format!("{name} {times}"))
            .collect();
        writeln!(f, "{}: {:.1} s", self.command, self.took.as_secs_f64())?;
        writeln!(
            f,
            "  calls      {} gateway, {} tokens, {} refreshes, {} connected, {} consents, {} disconnected; longest wait {:.1} s",
            counts.gateway,
            counts.tokens,
            counts.refreshes,
            counts.connected,
            counts.consents,
            counts.disconnected,
            counts.longest_wait.as_secs_f64()
        )?;
        writeln!(
            f,
            "  refreshes  {} requests, {} accepted, {} stored; {} answers lost, {} could be; {} replays",
            self.token_requests, self.accepted, self.stored, self.lost_answers, self.explained, self.replays
        )?;
        writeln!(f, "  faults     {}", faults.join(", "))?;
        writeln!(
            f,
            "  failed     unavoidably {}: {} dead, {} no store, {} no token, {} no grant; avoidably {}",
            counts.dead + counts.no_store + counts.no_token + counts.no_grant,
            counts.dead,
            counts.no_store,
            counts.no_token,
            counts.no_grant,
            counts.avoidable
        )?;
        write!(
            f,
            "  {} grants lost, {} double redemptions, {} versions went back, healed in {:.1} s",
            self.lost_grants,
            self.double_redemptions,
            counts.went_back,
            self.healed_in.as_secs_f64()
        )
    }
}
