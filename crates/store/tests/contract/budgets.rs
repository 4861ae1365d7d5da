//! Budgets of calls: what a fleet shares. The rules are proven where they stand, in the domain's `call_budget`.

use std::time::Duration;

use evergrant_domain::Timestamp;
use evergrant_domain::call_budget::{Claim, Grant, Lane, Learnt, Limit, Unused};
use evergrant_store::Store;
use evergrant_store::contract::BudgetName;
use futures_util::future::join_all;

use crate::fixture::*;

/// So few that they are not over before a test is.
const LIMIT: Limit = Limit {
    calls: 100,
    per: Duration::from_secs(3600),
};

fn calls(account: &str) -> BudgetName {
    BudgetName::Calls {
        app: app("crm"),
        account: account.into(),
    }
}

fn searches(account: &str) -> BudgetName {
    BudgetName::Searches {
        account: account.into(),
    }
}

fn wanted(wanted: u32) -> Claim {
    Claim {
        wanted,
        lane: Lane::Interactive,
        returned: Unused::default(),
        unasked: 0,
        learnt: Learnt::default(),
    }
}

fn learnt(limit: Limit) -> Claim {
    Claim {
        learnt: Learnt {
            limit: Some(limit),
            ..Learnt::default()
        },
        ..wanted(0)
    }
}

async fn claim(store: &impl Store, name: &BudgetName, claim: Claim) -> Grant {
    store.claim_calls(name, claim, at(1000)).await.unwrap()
}

/// The time that budgets go by.
async fn now(store: &impl Store) -> Timestamp {
    store.pulse().await.unwrap().now.unwrap_or(at(1000))
}

pub(crate) async fn a_budget_is_shared_by_all_processes_and_never_overdrawn(fixture: &impl Fixture) {
    let slices = Limit {
        calls: 300,
        per: Duration::from_secs(60),
    };
    let stores = [fixture.open().await, fixture.open().await];
    let name = calls("1");
    claim(&stores[0], &name, learnt(slices)).await;
    warm(&stores).await;
    let claims = (0..90).map(|number| claim(&stores[number % 2], &name, wanted(7)));
    let granted: Vec<u32> = join_all(claims).await.iter().map(|grant| grant.granted).collect();
    assert_eq!(granted.iter().sum::<u32>(), 300, "{granted:?}");
    let none = claim(&stores[1], &calls("1"), wanted(7)).await;
    assert_eq!((none.granted, none.limit), (0, Some(slices)));
    let waits = none.again_at.since(now(&stores[0]).await);
    assert!(
        waits > Duration::from_secs(5) && waits <= slices.counts_for(),
        "until the first of them is over: {waits:?}"
    );
}

pub(crate) async fn what_one_learns_counts_for_all(fixture: &impl Fixture) {
    let (a, b) = (fixture.open().await, fixture.open().await);
    let name = calls("1");
    let unknown = claim(&a, &name, wanted(1000)).await;
    assert_eq!((unknown.granted, unknown.limit), (1000, None));
    claim(&a, &name, learnt(LIMIT)).await;
    assert_eq!(claim(&b, &name, wanted(0)).await.limit, Some(LIMIT));
    let generous = Limit { calls: 500, ..LIMIT };
    claim(&b, &name, learnt(generous)).await;
    assert_eq!(claim(&a, &name, wanted(0)).await.limit, Some(LIMIT));

    let rest_until = now(&a).await.after(Duration::from_secs(300));
    let told_to_rest = Claim {
        learnt: Learnt {
            rest_until: Some(rest_until),
            ..Learnt::default()
        },
        ..wanted(1)
    };
    claim(&a, &name, told_to_rest).await;
    let rests = claim(&b, &name, wanted(1)).await;
    assert_eq!((rests.granted, rests.again_at), (0, rest_until));
}

pub(crate) async fn what_was_not_used_is_given_back(fixture: &impl Fixture) {
    let few = Limit {
        calls: 3,
        per: Duration::from_secs(1000),
    };
    let (a, b) = (fixture.open().await, fixture.open().await);
    let name = calls("1");
    claim(&a, &name, learnt(few)).await;
    let mut granted_at = None;
    for _ in 0..3 {
        let grant = claim(&a, &name, wanted(5)).await;
        assert_eq!(grant.granted, 1);
        granted_at = Some(grant.at);
    }
    assert_eq!(claim(&b, &name, wanted(1)).await.granted, 0);
    let unused = Claim {
        returned: Unused { calls: 1, granted_at },
        ..wanted(0)
    };
    claim(&a, &name, unused).await;
    assert_eq!(claim(&b, &name, wanted(1)).await.granted, 1);
    assert_eq!(claim(&b, &name, wanted(1)).await.granted, 0);
}

pub(crate) async fn the_less_urgent_leave_room(fixture: &impl Fixture) {
    let ten = Limit {
        calls: 10,
        per: Duration::from_secs(100),
    };
    let store = fixture.open().await;
    claim(&store, &calls("1"), learnt(ten)).await;
    let mut granted = Vec::new();
    for lane in [Lane::Backfill, Lane::Sync, Lane::Interactive] {
        let mut of_lane = 0;
        while claim(&store, &calls("1"), Claim { lane, ..wanted(5) })
            .await
            .granted
            > 0
        {
            of_lane += 1;
        }
        granted.push(of_lane);
    }
    assert_eq!(granted, [8, 1, 1]);
}

pub(crate) async fn budgets_of_different_names_are_different_ones(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let of_another_app = BudgetName::Calls {
        app: app("other"),
        account: "1".into(),
    };
    let names = [
        calls("1"),
        calls("2"),
        calls(":1"),
        of_another_app,
        searches("1"),
        searches("crm:1"),
        searches(""),
    ];
    let one = Limit { calls: 1, ..LIMIT };
    for name in &names {
        claim(&store, name, learnt(one)).await;
        assert_eq!(claim(&store, name, wanted(1)).await.granted, 1, "{name:?}");
        assert_eq!(claim(&store, name, wanted(1)).await.granted, 0, "{name:?}");
    }
}

pub(crate) async fn a_sweep_forgets_a_budget_that_nobody_uses(fixture: &impl Fixture) {
    let store = fixture.open().await;
    claim(&store, &calls("1"), learnt(LIMIT)).await;
    let touched = now(&store).await;
    let day = Duration::from_secs(24 * 3600);
    store.sweep(touched.before(day)).await.unwrap();
    assert_eq!(claim(&store, &calls("1"), wanted(0)).await.limit, Some(LIMIT));
    store.sweep(touched.after(day)).await.unwrap();
    assert_eq!(claim(&store, &calls("1"), wanted(0)).await.limit, None);
}

pub(crate) async fn a_look_at_a_budget_takes_nothing_of_it(fixture: &impl Fixture) {
    let (store, other) = (fixture.open().await, fixture.open().await);
    let look = async |name: &BudgetName| other.budget_standing(name, at(1000)).await.unwrap();
    assert_eq!(look(&calls("1")).await, None, "nobody has claimed of it");
    claim(&store, &calls("1"), wanted(7)).await;
    assert_eq!(look(&calls("1")).await, None, "nobody has said a limit");
    claim(&store, &calls("1"), learnt(LIMIT)).await;
    claim(&store, &calls("1"), wanted(1)).await;
    for _ in 0..3 {
        let standing = look(&calls("1")).await.expect("there is a limit");
        assert_eq!((standing.limit, standing.left), (Some(LIMIT), Some(99)));
        assert_eq!(standing.rest_until, None);
    }
    assert_eq!(look(&searches("1")).await, None, "another budget");
    let rests = Claim {
        learnt: Learnt {
            rest_until: Some(now(&store).await.after(Duration::from_secs(600))),
            ..Learnt::default()
        },
        ..wanted(0)
    };
    claim(&store, &calls("1"), rests).await;
    let resting = look(&calls("1")).await.expect("there is a limit");
    assert_eq!(resting.left, Some(0));
    assert_eq!(resting.rest_until, rests.learnt.rest_until);
}
