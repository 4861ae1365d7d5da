//! One budget in this process: what is at hand of it, who waits for more, and the one flight that asks the store.
//!
//! An account begins *unknown*: a few calls at a time, until its first answer comes. An answer that names no limit makes it *free*,
//! and from then on nothing is counted, nobody waits and no store is asked. One that names a limit makes it *limited*: calls take
//! from a slice at hand; when that is empty they wait in the queue while one task claims the next. A claim that the store does not
//! answer soon holds nobody: calls go on with this process's own share, while it is waited for behind them.

use std::collections::VecDeque;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use evergrant_domain::call_budget::{Claim, Grant, HUBSPOT_SEARCHES, Lane, Learnt, Limit, Unused, lower};
use evergrant_domain::trust::STORE_ANSWERS_WITHIN;
use evergrant_keeper::Clock;
use evergrant_store::contract::{BudgetName, Store};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::queue::{Place, Queue};
use super::{Ask, Exhausted, Heard, Permit};

/// Where nothing can be had, it is asked for again this often: others may have given something back.
const ASK_AGAIN_EVERY: Duration = Duration::from_secs(1);
/// Clocks differ: what is said to be over by now is over a little later.
const ASK_AGAIN_MIN: Duration = Duration::from_millis(20);
/// How long a claim holds the calls that it is for. A store that takes longer counts as away until it answers.
const CLAIM_HOLDS: Duration = Duration::from_millis(250);
/// After a first claim: whoever learnt of the limit at the same moment has reported by then what it had sent before.
const OTHERS_LEARN: Duration = Duration::from_millis(100);
/// While no answer has come, a few more calls leave this often.
const UNANSWERED: Duration = Duration::from_secs(1);

/// What is needed to ask the store.
pub(super) struct World {
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Arc<dyn Clock>,
}

pub(super) struct Account {
    name: BudgetName,
    /// So many calls at a time until an answer has come.
    at_first: u32,
    stance: AtomicU8,
    /// Milliseconds since the beginning, for who drops what is idle.
    pub(super) used_at: AtomicU64,
    state: Mutex<State>,
    changed: Notify,
}

const FREE: u8 = 0;
const UNKNOWN: u8 = 1;
const LIMITED: u8 = 2;

/// On which ground a call leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Nobody counts.
    Free,
    /// Nobody knows yet whether anybody does.
    Blind,
    /// It was granted, with this slice.
    Granted(u64),
}

struct Waiter {
    deadline: Instant,
    tell: oneshot::Sender<Result<Way, Exhausted>>,
}

struct State {
    queue: Queue<Waiter>,
    /// Calls that left while nobody knew, and are not answered.
    blind: u32,
    /// So many of them may be under way.
    blind_max: u32,
    blind_since: Instant,
    /// So many have left lately, answered or not.
    blind_made: u32,
    limit: Option<Limit>,
    /// The least that answers said to be left, and when.
    remaining: Option<(u32, Instant)>,
    rest: Option<Rest>,
    /// The fleet does not know of the rest yet.
    untold: bool,
    /// The limit was only just learnt, maybe by others, too, of whose calls nobody knows yet.
    new: bool,
    /// Calls that left without being granted.
    unasked: u32,
    slice: Slice,
    dry: Option<Dry>,
    /// What was granted within the last window.
    shares: VecDeque<(Instant, u32)>,
    /// The store is away: so many calls a second meanwhile.
    away: Option<u32>,
    /// Since when it is being asked.
    asking: Option<Instant>,
    flying: bool,
}

/// A 429 said that nothing should be sent.
struct Rest {
    until: Instant,
    policy: Option<&'static str>,
}

/// What was granted last.
#[derive(Clone, Copy)]
struct Slice {
    number: u64,
    size: u32,
    left: u32,
    /// For whom: what is kept for the urgent is not for the others.
    lane: Lane,
    until: Instant,
    /// By the store's clock; nothing where the store is away and nobody granted it.
    granted_at: Option<evergrant_domain::Timestamp>,
}

/// Nothing could be had.
struct Dry {
    lane: Lane,
    until: Instant,
    ask_again: Instant,
}

enum Step {
    Done,
    Wait(Instant),
    Claim(Claim),
}

impl Account {
    pub(super) fn new(name: BudgetName, at_first: u32) -> Self {
        let searches = matches!(name, BudgetName::Searches { .. });
        let now = Instant::now();
        Self {
            name,
            at_first,
            stance: AtomicU8::new(if searches { LIMITED } else { UNKNOWN }),
            used_at: AtomicU64::new(0),
            state: Mutex::new(State {
                queue: Queue::default(),
                blind: 0,
                blind_max: at_first,
                blind_since: now,
                blind_made: 0,
                limit: searches.then_some(HUBSPOT_SEARCHES),
                remaining: None,
                rest: None,
                untold: false,
                new: false,
                unasked: 0,
                slice: Slice {
                    number: 0,
                    size: 0,
                    left: 0,
                    lane: Lane::Backfill,
                    until: now,
                    granted_at: None,
                },
                dry: None,
                shares: VecDeque::new(),
                away: None,
                asking: None,
                flying: false,
            }),
            changed: Notify::new(),
        }
    }

    /// Whether calls need not ask.
    pub(super) fn is_free(&self) -> bool {
        self.stance.load(Ordering::Acquire) == FREE
    }

    /// Waits for a call's turn.
    pub(super) async fn admit(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        world: &Arc<World>,
    ) -> Result<Permit, Exhausted> {
        let asked = Instant::now();
        let deadline = asked + ask.max_wait;
        let mut waiting = {
            let state = &mut *self.state.lock();
            if ask.at_most.is_some() {
                state.limit = lower(state.limit, ask.at_most);
                self.stance.store(LIMITED, Ordering::Release);
            }
            if let Some(way) = self.at_once(state, ask.lane, asked) {
                return Ok(Permit::at_once(self, way, asked));
            }
            if let Some(until) = state.clearly_too_late(ask, asked, deadline) {
                return Err(self.exhausted(state, until, asked));
            }
            let (tell, told) = oneshot::channel();
            let waiter = Waiter { deadline, tell };
            let Some(place) = state.queue.push(ask.lane, ask.caller.cloned(), waiter) else {
                return Err(self.exhausted(state, deadline, asked));
            };
            self.fly(state, world);
            Waiting {
                account: self,
                place,
                told,
                over: false,
            }
        };
        // Whether anything can be had is a question to the store, and not yet a wait for budget.
        let patience = deadline.max(asked + STORE_ANSWERS_WITHIN);
        let told = timeout_at(patience, &mut waiting.told).await;
        if let Ok(Ok(verdict)) = told {
            waiting.over = true;
            return verdict.map(|way| Permit::after_waiting(self, way, Instant::now()));
        }
        drop(waiting);
        let state = &*self.state.lock();
        let now = Instant::now();
        let until = state.shut_until(now).unwrap_or(now);
        Err(self.exhausted(state, until, now))
    }

    fn at_once(&self, state: &mut State, lane: Lane, now: Instant) -> Option<Way> {
        match self.stance.load(Ordering::Acquire) {
            FREE => Some(Way::Free),
            _ if !state.queue.is_empty() => None,
            UNKNOWN => state.blindly(now),
            _ => state.take(lane, now).then_some(Way::Granted(state.slice.number)),
        }
    }

    /// Begins the one flight of this process, where none is under way, and wakes it where one is.
    fn fly(self: &Arc<Self>, state: &mut State, world: &Arc<World>) {
        self.changed.notify_one();
        if !state.flying {
            state.flying = true;
            let flight = Flight {
                account: self.clone(),
                landed: false,
            };
            tokio::spawn(flight.fly(world.clone()));
        }
    }

    fn next(&self, state: &mut State, world: &World, now: Instant) -> Step {
        if state.untold && state.may_ask(now) {
            state.untold = false;
            return state.claim(0, Lane::Interactive, world, now);
        }
        let step = match self.stance.load(Ordering::Acquire) {
            FREE => {
                while let Some(waiter) = state.queue.pop() {
                    waiter.go(Way::Free);
                }
                Step::Done
            }
            UNKNOWN => {
                if now >= state.blind_since + UNANSWERED {
                    state.blind_max = state.blind + self.at_first;
                    state.blind_since = now;
                }
                while state.blind < state.blind_max
                    && let Some(waiter) = state.queue.pop()
                {
                    if waiter.go(Way::Blind) {
                        state.blind += 1;
                        state.blind_made = state.blind_made.saturating_add(1);
                    }
                }
                Step::Wait(state.blind_since + UNANSWERED)
            }
            _ => state.serve(world, now),
        };
        let tell_again = match &state.dry {
            Some(dry) if state.untold && state.asking.is_none() => Some(dry.ask_again),
            _ => None,
        };
        match step {
            Step::Claim(_) => step,
            Step::Wait(until) if !state.queue.is_empty() => {
                Step::Wait(tell_again.map_or(until, |at| at.min(until)))
            }
            // What it brings is for whoever comes next.
            _ if state.asking.is_some() => Step::Wait(now + ASK_AGAIN_EVERY),
            _ => {
                if let Some(at) = tell_again {
                    return Step::Wait(at);
                }
                state.flying = false;
                Step::Done
            }
        }
    }

    fn granted(&self, state: &mut State, claim: Claim, grant: Grant, asked: Instant, world: &World) {
        let now = Instant::now();
        state.asking = None;
        state.away = None;
        state.limit = lower(state.limit, grant.limit);
        if claim.wanted == 0 {
            return;
        }
        if state.slice.granted_at.is_none() {
            // What this process allowed itself counts no more.
            state.slice.left = 0;
        }
        let hold = state.limit.map_or(ASK_AGAIN_EVERY, Limit::hold);
        if grant.granted == 0 {
            let until = now + grant.again_at.since(world.clock.now()).max(ASK_AGAIN_MIN);
            state.dry = Some(Dry {
                lane: claim.lane,
                until,
                ask_again: until.min(now + ASK_AGAIN_EVERY),
            });
            self.refuse_the_late(state, until, now);
            return;
        }
        if state.limit.is_none() {
            // There was only a rest, and that is over.
            self.stance.store(FREE, Ordering::Release);
        }
        state.dry = std::mem::take(&mut state.new).then(|| Dry {
            lane: Lane::Interactive,
            until: now,
            ask_again: now + OTHERS_LEARN,
        });
        state.slice = Slice {
            number: state.slice.number + 1,
            size: grant.granted,
            left: grant.granted,
            lane: claim.lane,
            until: asked + hold,
            granted_at: Some(grant.at),
        };
        state.shares.push_back((now, grant.granted));
        state.forget_old_shares(now);
        state.hand_out();
    }

    /// Refuses those who would wait in vain. However free the windows from `until` on will be, they hold no more than they hold.
    fn refuse_the_late(&self, state: &mut State, until: Instant, now: Instant) {
        let limit = state.limit;
        let late = state.queue.take_if(|ahead, waiter| {
            waiter.deadline < until || limit.is_some_and(|limit| ahead >= fit(limit, until, waiter.deadline))
        });
        for waiter in late {
            let until = until.max(waiter.deadline);
            let exhausted = self.exhausted(state, until, now);
            let _ = waiter.tell.send(Err(exhausted));
        }
    }

    fn exhausted(&self, state: &State, until: Instant, now: Instant) -> Exhausted {
        let said = state.resting(now).and_then(|rest| rest.policy);
        let own = match self.name {
            BudgetName::Calls { .. } => "TEN_SECONDLY_ROLLING",
            BudgetName::Searches { .. } => "SECONDLY",
        };
        Exhausted {
            retry_after: until.saturating_duration_since(now),
            policy: said.unwrap_or(own),
        }
    }

    /// An answer named a limit.
    pub(super) fn heard(&self, heard: Heard) {
        let state = &mut *self.state.lock();
        state.limit = lower(state.limit, Some(heard.limit));
        let now = Instant::now();
        let least = state.remaining.filter(|(_, at)| is_recent(*at, now));
        state.remaining = match (heard.remaining, least) {
            (Some(said), Some((least, _))) => Some((said.min(least), now)),
            (Some(said), None) => Some((said, now)),
            (None, least) => least,
        };
        if self.stance.swap(LIMITED, Ordering::AcqRel) != LIMITED {
            state.new = true;
            // Now all that left before counts.
            state.unasked = state
                .unasked
                .saturating_add(std::mem::take(&mut state.blind_made));
            self.changed.notify_one();
        }
    }

    /// An answer named none.
    pub(super) fn heard_of_none(&self) {
        let state = self.state.lock();
        let unknown = self.stance.load(Ordering::Acquire) == UNKNOWN;
        if unknown {
            self.stance.store(FREE, Ordering::Release);
            self.changed.notify_one();
        }
        drop(state);
    }

    /// A 429 came: nothing is sent for this long, by nobody.
    pub(super) fn rest(self: &Arc<Self>, rest: Duration, policy: Option<&'static str>, world: &Arc<World>) {
        let state = &mut *self.state.lock();
        let now = Instant::now();
        let until = now + rest;
        if state.rest.as_ref().is_none_or(|known| known.until < until) {
            state.rest = Some(Rest { until, policy });
        }
        self.stance.store(LIMITED, Ordering::Release);
        state.untold = true;
        self.refuse_the_late(state, until, now);
        self.fly(state, world);
    }

    /// A call leaves a second time: nobody waits for that, but it counts.
    pub(super) fn leaves_again(&self) {
        let state = &mut *self.state.lock();
        if self.stance.load(Ordering::Acquire) == LIMITED && !state.take(Lane::Interactive, Instant::now()) {
            state.unasked = state.unasked.saturating_add(1);
        }
    }

    /// A call leaves that was held up since it was granted. Past its turn the window that it was counted in may be over for it: it
    /// counts once more, in the one that it leaves in.
    pub(super) fn leaves_late(&self, held_up: Duration) {
        let hold = self.state.lock().limit.map(Limit::hold);
        if hold.is_some_and(|hold| hold < held_up) {
            self.leaves_again();
        }
    }

    /// A call that left blindly was answered, or given up.
    pub(super) fn came_back(&self) {
        let state = &mut *self.state.lock();
        state.blind = state.blind.saturating_sub(1);
        if !state.queue.is_empty() {
            self.changed.notify_one();
        }
    }

    /// A call that might have left did not.
    pub(super) fn give_back(&self, way: Way) {
        self.give_back_in(&mut self.state.lock(), way);
    }

    fn give_back_in(&self, state: &mut State, way: Way) {
        match way {
            Way::Free => {}
            Way::Blind => state.blind = state.blind.saturating_sub(1),
            Way::Granted(number) => {
                let slice = &mut state.slice;
                // What an earlier slice held counts as used: it was counted when that was granted.
                if number == slice.number && Instant::now() < slice.until && slice.left < slice.size {
                    slice.left += 1;
                    if slice.granted_at.is_none() {
                        state.unasked = state.unasked.saturating_sub(1);
                    }
                }
            }
        }
        if !state.queue.is_empty() {
            self.changed.notify_one();
        }
    }
}

impl State {
    fn blindly(&mut self, now: Instant) -> Option<Way> {
        /// Longer ago than any window that is counted before it is known.
        const LATELY: Duration = Duration::from_secs(10);
        if self.blind == 0 {
            if now.saturating_duration_since(self.blind_since) > LATELY {
                self.blind_made = 0;
            }
            self.blind_since = now;
        }
        (self.blind < self.blind_max).then(|| {
            self.blind += 1;
            self.blind_made = self.blind_made.saturating_add(1);
            Way::Blind
        })
    }

    /// Takes one call of the slice at hand.
    fn take(&mut self, lane: Lane, now: Instant) -> bool {
        let fits = self.slice.left > 0
            && now < self.slice.until
            && lane <= self.slice.lane
            && self.resting(now).is_none();
        if fits {
            self.spend();
        }
        fits
    }

    fn spend(&mut self) {
        self.slice.left -= 1;
        if self.slice.granted_at.is_none() {
            self.unasked = self.unasked.saturating_add(1);
        }
    }

    /// Gives what was granted to those who wait. That the answer may have taken long does not count: whoever asks a slow store
    /// would never get anything.
    fn hand_out(&mut self) {
        while self.slice.left > 0
            && let Some(waiter) = self.queue.pop()
        {
            if waiter.go(Way::Granted(self.slice.number)) {
                self.spend();
            }
        }
    }

    /// What is to be done for those who wait for a limited budget.
    fn serve(&mut self, world: &World, now: Instant) -> Step {
        if let Some(rest) = self.resting(now) {
            return Step::Wait(rest.until);
        }
        if let Some(lane) = self.queue.most_urgent()
            && lane <= self.slice.lane
            && now < self.slice.until
        {
            self.hand_out();
        }
        let Some(lane) = self.queue.most_urgent() else {
            return Step::Done;
        };
        let holds_until = self.asking.map(|asked| asked + CLAIM_HOLDS);
        if self.away.is_some() || holds_until.is_some_and(|until| until <= now) {
            let own_share_ends = self.go_on_alone(now);
            // Somebody must find out whether it is back, though nobody waits for that.
            if !self.may_ask(now) {
                return Step::Wait(own_share_ends);
            }
        } else if let Some(until) = holds_until {
            return Step::Wait(until);
        } else if let Some(dry) = &self.dry
            && now < dry.ask_again
            && dry.lane <= lane
        {
            return Step::Wait(dry.ask_again);
        }
        let rate = self.limit.map_or(u32::MAX, Limit::a_seconds_rate);
        let urgent = self.queue.len_of(lane);
        // Their turns come, too.
        let others = (self.queue.len() - urgent).div_ceil(8).min(urgent.div_ceil(7));
        let waiting = u32::try_from(urgent + others).unwrap_or(u32::MAX);
        let wanted = if self.new {
            1
        } else {
            waiting.max(self.appetite(now)).clamp(1, rate)
        };
        self.claim(wanted, lane, world, now)
    }

    /// How much is likely to be used of the next slice: twice what was used up, else as much as was used of the last.
    fn appetite(&self, now: Instant) -> u32 {
        let slice = self.slice;
        if !is_recent(slice.until, now) {
            1
        } else if slice.left == 0 {
            slice.size.saturating_mul(2)
        } else {
            slice.size - slice.left
        }
    }

    /// Whether the store may be asked: not twice at a time, nor all the time where it does not answer.
    fn may_ask(&self, now: Instant) -> bool {
        let rests = self.away.is_some() && self.dry.as_ref().is_some_and(|dry| now < dry.ask_again);
        self.asking.is_none() && !rests
    }

    fn claim(&mut self, wanted: u32, lane: Lane, world: &World, now: Instant) -> Step {
        self.asking = Some(now);
        let granted_at = self.slice.granted_at;
        let returned = Unused {
            // What nobody granted is given back to nobody, and serves on.
            calls: granted_at.map_or(0, |_| std::mem::take(&mut self.slice.left)),
            granted_at,
        };
        let remaining = self.remaining.take().filter(|(_, at)| is_recent(*at, now));
        let claim = Claim {
            wanted,
            lane,
            returned,
            unasked: std::mem::take(&mut self.unasked),
            learnt: Learnt {
                limit: self.limit,
                remaining: remaining.map(|(remaining, _)| remaining),
                rest_until: self
                    .resting(now)
                    .map(|rest| world.clock.now().after(rest.until - now)),
            },
        };
        Step::Claim(claim)
    }

    /// The store did not take the claim.
    fn unanswered(&mut self, claim: Claim, now: Instant) {
        self.asking = None;
        self.unasked = self.unasked.saturating_add(claim.unasked);
        // The fleet knows of the rest when the store has been told.
        self.untold |= claim.learnt.rest_until.is_some() && self.resting(now).is_some();
        if self.resting(now).is_none() {
            self.go_on_alone(now);
        }
        if self.away.is_none() {
            self.away = Some(self.half_the_share(now));
        }
        let ask_again = now + ASK_AGAIN_EVERY;
        match &mut self.dry {
            Some(dry) => dry.ask_again = ask_again,
            None => {
                self.dry = Some(Dry {
                    lane: Lane::Interactive,
                    until: now,
                    ask_again,
                });
            }
        }
    }

    /// The store does not answer: this process goes on with half of what it was granted lately, as if the others had done as much.
    /// So much at a time, until the returned instant.
    fn go_on_alone(&mut self, now: Instant) -> Instant {
        let slice = self.slice;
        let serves = slice.granted_at.is_none() && slice.number > 0 && now < slice.until;
        if !serves {
            let share = match self.away {
                Some(share) => share,
                None => self.half_the_share(now),
            };
            self.away = Some(share);
            let until = now + ASK_AGAIN_EVERY;
            self.slice = Slice {
                number: slice.number + 1,
                size: share,
                left: share,
                lane: Lane::Backfill,
                until,
                granted_at: None,
            };
            let ask_again = self.dry.as_ref().map_or(now, |dry| dry.ask_again);
            self.dry = Some(Dry {
                lane: Lane::Interactive,
                until,
                ask_again,
            });
        }
        self.hand_out();
        self.slice.until
    }

    fn half_the_share(&mut self, now: Instant) -> u32 {
        let Some(limit) = self.limit else {
            return u32::MAX;
        };
        self.forget_old_shares(now);
        let granted: u32 = self.shares.iter().map(|(_, calls)| *calls).sum();
        let seconds = u32::try_from(limit.per.as_secs()).unwrap_or(u32::MAX).max(1);
        (granted / 2 / seconds).max(1)
    }

    fn forget_old_shares(&mut self, now: Instant) {
        let window = self.limit.map_or(ASK_AGAIN_EVERY, |limit| limit.per);
        while self.shares.front().is_some_and(|(at, _)| *at + window < now) {
            self.shares.pop_front();
        }
    }

    fn resting(&self, now: Instant) -> Option<&Rest> {
        self.rest.as_ref().filter(|rest| now < rest.until)
    }

    /// Until when nothing can be had, as far as anybody knows.
    fn shut_until(&self, now: Instant) -> Option<Instant> {
        let rest = self.resting(now).map(|rest| rest.until);
        let dry = self
            .dry
            .as_ref()
            .map(|dry| dry.until)
            .filter(|until| now < *until);
        rest.max(dry)
    }

    /// When it is clear now that a newcomer would wait in vain: when to come again.
    fn clearly_too_late(&self, ask: &Ask<'_>, now: Instant, deadline: Instant) -> Option<Instant> {
        let may_overtake = |dry: &Dry| ask.lane < dry.lane;
        let shut = match (&self.dry, self.resting(now)) {
            (Some(dry), None) if may_overtake(dry) => None,
            _ => self.shut_until(now),
        }?;
        if shut > deadline {
            return Some(shut);
        }
        let limit = self.limit?;
        (self.queue.ahead_of(ask.lane, ask.caller) >= fit(limit, shut, deadline)).then_some(deadline)
    }
}

impl Waiter {
    /// `false` where nobody waits any more.
    fn go(self, way: Way) -> bool {
        self.tell.send(Ok(way)).is_ok()
    }
}

/// How many calls may leave at most, from when something can be had to then.
fn fit(limit: Limit, from: Instant, until: Instant) -> usize {
    let windows = until.saturating_duration_since(from).as_millis() / limit.per.as_millis().max(1) + 1;
    usize::try_from(windows * u128::from(limit.calls)).unwrap_or(usize::MAX)
}

fn is_recent(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < ASK_AGAIN_EVERY
}

/// A place in the queue. Whoever gives it up leaves the queue, and what was just granted to it is somebody else's.
struct Waiting<'a> {
    account: &'a Arc<Account>,
    place: Place,
    told: oneshot::Receiver<Result<Way, Exhausted>>,
    over: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let state = &mut *self.account.state.lock();
        if !state.queue.leave(&self.place)
            && let Ok(Ok(way)) = self.told.try_recv()
        {
            self.account.give_back_in(state, way);
        }
    }
}

/// The one task of an account that asks the store. It ends when nobody waits.
struct Flight {
    account: Arc<Account>,
    landed: bool,
}

impl Flight {
    async fn fly(mut self, world: Arc<World>) {
        let account = self.account.clone();
        let mut asking = None;
        loop {
            let step = account.next(&mut account.state.lock(), &world, Instant::now());
            match step {
                Step::Done => {
                    self.landed = true;
                    return;
                }
                Step::Wait(until) => {
                    tokio::select! {
                        biased;
                        answered = answer_to(&mut asking) => {
                            asking = None;
                            let (claim, asked, grant) = answered;
                            let state = &mut *account.state.lock();
                            match grant {
                                Some(grant) => account.granted(state, claim, grant, asked, &world),
                                None => state.unanswered(claim, Instant::now()),
                            }
                        }
                        () = account.changed.notified() => {}
                        () = sleep_until(until) => {}
                    }
                }
                Step::Claim(claim) => {
                    let (world, account) = (world.clone(), account.clone());
                    asking = Some(Box::pin(async move {
                        let asked = Instant::now();
                        let claimed = world.store.claim_calls(&account.name, claim, world.clock.now());
                        let answer = timeout(STORE_ANSWERS_WITHIN, claimed).await;
                        (claim, asked, answer.ok().and_then(Result::ok))
                    }));
                }
            }
        }
    }
}

/// What comes of the claim that is under way, where one is.
async fn answer_to<F: Future>(asking: &mut Option<Pin<Box<F>>>) -> F::Output {
    match asking {
        Some(asking) => asking.await,
        None => pending().await,
    }
}

/// A runtime that ends takes its tasks with it: the next caller begins another.
impl Drop for Flight {
    fn drop(&mut self) {
        if !self.landed {
            let state = &mut *self.account.state.lock();
            state.flying = false;
            state.asking = None;
        }
    }
}
