//! Budgets of calls.

use std::time::Duration;

use evergrant_domain::Timestamp;
use evergrant_domain::call_budget::{Budget, Limit, Used};

use super::{Columns, Stored, strange};
use crate::contract::BudgetName;

/// A budget's name as its columns hold it: what kind, which app, which account.
pub(crate) fn budget_key(name: &BudgetName) -> (&'static str, &str, &str) {
    match name {
        BudgetName::Calls { app, account } => ("calls", app.as_str(), account),
        BudgetName::Searches { account } => ("searches", "", account),
    }
}

pub(crate) fn read_budget(row: &impl Columns) -> Stored<Budget> {
    let limit = match row.maybe_number("limit_calls")? {
        Some(calls) => Some(Limit {
            calls: u32::try_from(calls).map_err(|_| strange("limit_calls"))?,
            per: Duration::from_millis(
                u64::try_from(row.number("limit_ms")?).map_err(|_| strange("limit_ms"))?,
            ),
        }),
        None => None,
    };
    let used: Vec<(i64, u32)> = serde_json::from_str(&row.text("used")?).map_err(|_| strange("used"))?;
    Ok(Budget {
        limit,
        used: used
            .into_iter()
            .map(|(at, calls)| Used {
                at: Timestamp::from_millis(at),
                calls,
            })
            .collect(),
        rest_until: row.maybe_time("rest_until")?,
    })
}

/// A budget as its columns hold it.
pub(crate) struct BudgetColumns {
    pub(crate) limit_calls: Option<i64>,
    pub(crate) limit_ms: Option<i64>,
    pub(crate) rest_until: Option<i64>,
    pub(crate) used: String,
}

impl BudgetColumns {
    pub(crate) fn new(budget: &Budget) -> Self {
        let used: serde_json::Value = budget
            .used
            .iter()
            .map(|used| vec![used.at.millis(), i64::from(used.calls)])
            .collect();
        Self {
            limit_calls: budget.limit.map(|limit| i64::from(limit.calls)),
            limit_ms: budget
                .limit
                .map(|limit| i64::try_from(limit.per.as_millis()).unwrap_or(i64::MAX)),
            rest_until: budget.rest_until.map(Timestamp::millis),
            used: used.to_string(),
        }
    }
}
