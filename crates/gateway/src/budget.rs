//! How many calls may leave: a budget for each account, shared with the whole fleet through the store.
//!
//! What a budget is comes from the provider's answers (`learning`). Where they say nothing, nothing is counted. The rules are
//! [`evergrant_domain::call_budget`]'s; what is at hand in this process, who waits, and when the store is asked is in `account`.

mod account;
mod learning;
mod queue;

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use evergrant_domain::AppName;
use evergrant_domain::app::Dialect;
use evergrant_domain::call_budget::{Counted, Lane, Limit, Setting};
use evergrant_keeper::{Current, Keeper};
use evergrant_store::contract::BudgetName;
use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use self::account::{Account, Way, World};
pub(crate) use self::learning::{Heard, window};

/// How long a call waits where nobody says it.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// The longest anybody waits.
pub(crate) const MAX_WAIT_MAX: Duration = Duration::from_secs(60);
/// Calls at a time to an account of which no answer has come yet. HubSpot has a limit, and a fleet of sixteen may begin at once.
const AT_FIRST: u32 = 32;
const AT_FIRST_HUBSPOT: u32 = 4;
/// Longer than anybody waits.
const IDLE: Duration = Duration::from_secs(120);
/// Shorter than any turn lasts.
const HELD_UP: Duration = Duration::from_millis(50);

/// The budgets in use.
pub(crate) struct Budgets {
    accounts: papaya::HashMap<Key, Arc<Account>>,
    world: Arc<World>,
    began: Instant,
    swept_at: AtomicU64,
}

/// On whose terms a call waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience<'a> {
    pub(crate) lane: Lane,
    pub(crate) caller: Option<&'a Arc<str>>,
    pub(crate) max_wait: Duration,
}

/// A question for one call.
pub(crate) struct Ask<'a> {
    lane: Lane,
    caller: Option<&'a Arc<str>>,
    max_wait: Duration,
    at_most: Option<Limit>,
}

/// There is no budget for a call within its patience.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exhausted {
    pub(crate) retry_after: Duration,
    /// HubSpot's word for the limit.
    pub(crate) policy: &'static str,
}

/// A call may leave. What did not leave is given back.
pub(crate) struct Permit {
    /// Nothing where nobody counts.
    taken: Option<Taken>,
    /// Whether it had to be waited for.
    waited: bool,
}

struct Taken {
    account: Arc<Account>,
    way: Way,
    /// When it was.
    at: Instant,
    left: bool,
    answered: bool,
}

/// How long a call may wait: what it asks for within what its key allows, within what its app does.
pub(crate) fn max_wait(call: Option<Duration>, key: Option<Duration>, app: Option<Duration>) -> Duration {
    let asked = call.or(key).or(app).unwrap_or(MAX_WAIT);
    [key, app]
        .into_iter()
        .flatten()
        .fold(asked.min(MAX_WAIT_MAX), Duration::min)
}

impl Budgets {
    pub(crate) fn new(keeper: &Keeper) -> Self {
        Self {
            accounts: papaya::HashMap::new(),
            world: Arc::new(World {
                store: keeper.store().clone(),
                clock: keeper.clock().clone(),
            }),
            began: Instant::now(),
            swept_at: AtomicU64::new(0),
        }
    }

    /// Waits until a call with this token may leave.
    pub(crate) async fn admit(
        &self,
        token: &Current,
        counted: Counted,
        patience: &Patience<'_>,
        now: Instant,
    ) -> Result<Permit, Exhausted> {
        let at_most = match token.app.budget {
            Setting::Off => return Ok(Permit::NONE),
            Setting::AtMost(limit) => Some(limit).filter(|_| counted == Counted::Calls),
            Setting::Learnt => None,
        };
        let Some(key) = KeyRef::of(token, counted) else {
            return Ok(Permit::NONE);
        };
        let Some(account) = self.account(&key, token.app.provider.dialect, at_most, now) else {
            return Ok(Permit::NONE);
        };
        let ask = Ask {
            lane: patience.lane,
            caller: patience.caller,
            max_wait: patience.max_wait,
            at_most,
        };
        // In a place of its own: most calls belong to no budget, and need not carry the room that this takes.
        Box::pin(account.admit(&ask, &self.world)).await
    }

    /// The account's state; none where calls need not ask.
    fn account(
        &self,
        key: &KeyRef<'_>,
        dialect: Dialect,
        at_most: Option<Limit>,
        now: Instant,
    ) -> Option<Arc<Account>> {
        let now = u64::try_from((now - self.began).as_millis()).unwrap_or(u64::MAX);
        let accounts = self.accounts.pin();
        let account = if let Some(known) = accounts.get(key) {
            known
        } else {
            self.sweep(now);
            let at_first = match dialect {
                Dialect::HubSpot => AT_FIRST_HUBSPOT,
                Dialect::Generic => AT_FIRST,
            };
            let name = key.name();
            accounts.get_or_insert_with(Key(name.clone()), || Arc::new(Account::new(name, at_first)))
        };
        account.used_at.store(now, Ordering::Relaxed);
        (at_most.is_some() || !account.is_free()).then(|| account.clone())
    }

    /// Forgets what nobody has used for a while. Called where something is added, so that what is forgotten makes room.
    fn sweep(&self, now: u64) {
        let idle = u64::try_from(IDLE.as_millis()).unwrap_or(u64::MAX);
        let swept_at = self.swept_at.load(Ordering::Relaxed);
        if now < swept_at + idle / 4 {
            return;
        }
        self.swept_at.store(now, Ordering::Relaxed);
        self.accounts.pin().retain(|_, account| {
            Arc::strong_count(account) > 1 || now < account.used_at.load(Ordering::Relaxed) + idle
        });
    }

    /// What an answer's head says. `permit` is the call's own.
    pub(crate) fn heard(
        &self,
        permit: &mut Permit,
        token: &Current,
        counted: Counted,
        status: StatusCode,
        headers: &HeaderMap,
    ) {
        let heard = Heard::from(headers);
        match &mut permit.taken {
            Some(own) => {
                own.answer();
                match heard {
                    Some(heard) => own.account.heard(heard),
                    // A proxy's error page says nothing about the API behind it.
                    None if is_failure(status) => {}
                    None => own.account.heard_of_none(),
                }
            }
            None => {
                if let Some(heard) = heard
                    && token.app.budget != Setting::Off
                    && let Some(account) = self.known(token, counted)
                {
                    account.heard(heard);
                }
            }
        }
    }

    /// A 429 asks for a rest.
    pub(crate) fn rest(&self, token: &Current, counted: Counted, rest: Duration, policy: Option<&str>) {
        let policy = match policy {
            Some("TEN_SECONDLY_ROLLING") => Some("TEN_SECONDLY_ROLLING"),
            Some("SECONDLY") => Some("SECONDLY"),
            Some("DAILY") => Some("DAILY"),
            Some(_) | None => None,
        };
        if token.app.budget != Setting::Off
            && let Some(account) = self.known(token, counted)
        {
            account.rest(rest, policy, &self.world);
        }
    }

    fn known(&self, token: &Current, counted: Counted) -> Option<Arc<Account>> {
        let key = KeyRef::of(token, counted)?;
        self.accounts.pin().get(&key).cloned()
    }
}

fn is_failure(status: StatusCode) -> bool {
    status.is_client_error() || status.is_server_error()
}

impl Permit {
    /// For a call that nobody counts, or that has not asked yet.
    pub(crate) const NONE: Self = Self {
        taken: None,
        waited: false,
    };

    fn at_once(account: &Arc<Account>, way: Way, at: Instant) -> Self {
        Self {
            taken: (way != Way::Free).then(|| Taken {
                account: account.clone(),
                way,
                at,
                left: false,
                answered: false,
            }),
            waited: false,
        }
    }

    fn after_waiting(account: &Arc<Account>, way: Way, at: Instant) -> Self {
        Self {
            waited: true,
            ..Self::at_once(account, way, at)
        }
    }

    /// Whether anybody counts the call, or may do so.
    pub(crate) fn counts(&self) -> bool {
        self.waited || self.taken.is_some()
    }

    /// Whether it had to be waited for.
    pub(crate) fn has_waited(&self) -> bool {
        self.waited
    }

    /// The call leaves, once more where it did before. One that was held up for longer than its turn lasts counts anew.
    pub(crate) fn leaves(&mut self, now: Instant) {
        if let Some(taken) = &mut self.taken {
            if taken.left {
                taken.account.leaves_again();
            } else {
                let held_up = now.saturating_duration_since(taken.at);
                if held_up > HELD_UP {
                    taken.account.leaves_late(held_up);
                }
            }
            taken.left = true;
        }
    }
}

impl Taken {
    fn answer(&mut self) {
        if self.way == Way::Blind && !self.answered {
            self.account.came_back();
        }
        self.answered = true;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if self.left {
            self.answer();
        } else {
            self.account.give_back(self.way);
        }
    }
}

/// A budget's name, as the map knows it.
#[derive(PartialEq, Eq)]
struct Key(BudgetName);

/// The same, borrowed: a call makes none of its own.
#[derive(PartialEq, Eq)]
struct KeyRef<'a> {
    /// Nothing for searches, which are counted over all apps.
    app: Option<&'a AppName>,
    account: &'a str,
}

impl<'a> KeyRef<'a> {
    fn of(token: &'a Current, counted: Counted) -> Option<Self> {
        let account = match &token.account {
            Some(account) => account.as_str(),
            None => token.connection.as_str(),
        };
        let app = match counted {
            Counted::Calls => Some(&token.app.name),
            Counted::Searches => None,
            Counted::Not => return None,
        };
        Some(Self { app, account })
    }

    fn name(&self) -> BudgetName {
        let account = self.account.to_owned();
        match self.app {
            Some(app) => BudgetName::Calls {
                app: app.clone(),
                account,
            },
            None => BudgetName::Searches { account },
        }
    }
}

impl<'a> From<&'a Key> for KeyRef<'a> {
    fn from(Key(name): &'a Key) -> Self {
        match name {
            BudgetName::Calls { app, account } => Self {
                app: Some(app),
                account,
            },
            BudgetName::Searches { account } => Self { app: None, account },
        }
    }
}

impl Hash for KeyRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.app.map(AppName::as_str).hash(state);
        self.account.hash(state);
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        KeyRef::from(self).hash(state);
    }
}

impl papaya::Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        *self == KeyRef::from(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_waits_within_what_its_key_allows_and_a_key_within_what_its_app_does() {
        let seconds = |seconds: Option<u64>| seconds.map(Duration::from_secs);
        for (call, key, app, expected) in [
            (None, None, None, 10),
            (Some(0), None, None, 0),
            (Some(30), None, None, 30),
            (Some(99), None, None, 60),
            (None, Some(20), None, 20),
            (Some(30), Some(20), None, 20),
            (Some(5), Some(20), None, 5),
            (None, None, Some(40), 40),
            (Some(50), None, Some(40), 40),
            (Some(50), Some(45), Some(40), 40),
            (None, Some(45), Some(5), 5),
        ] {
            assert_eq!(
                max_wait(seconds(call), seconds(key), seconds(app)),
                Duration::from_secs(expected),
                "{call:?} {key:?} {app:?}"
            );
        }
    }

    #[test]
    fn a_borrowed_name_finds_its_budget() {
        let app = AppName::parse("crm").expect("a literal name");
        let name = |app| KeyRef { app, account: "1001" }.name();
        let (calls, searches) = (Key(name(Some(&app))), Key(name(None)));
        let map = papaya::HashMap::<Key, u8>::new();
        map.pin().insert(calls, 1);
        map.pin().insert(searches, 2);
        let find = |app, account: &str| map.pin().get(&KeyRef { app, account }).copied();
        assert_eq!(find(Some(&app), "1001"), Some(1));
        assert_eq!(find(None, "1001"), Some(2));
        assert_eq!(find(Some(&app), "1002"), None);
    }
}
