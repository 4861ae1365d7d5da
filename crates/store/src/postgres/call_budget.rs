//! Budgets of calls that the whole fleet shares.

use evergrant_domain::call_budget::{Claim, Grant, Standing};

use super::db::{Db, Tried};
use crate::contract::BudgetName;
use crate::record::{BudgetColumns, Columns as _, budget_key, read_budget, strange};

impl Db {
    /// Two messages. Claims come one after the other, and so do the seconds they count: the clock is read once the row is locked.
    pub(super) async fn claim_calls(&self, name: &BudgetName, claim: Claim) -> Tried<Grant> {
        let (kind, app, account) = budget_key(name);
        let row = self
            .begin_with(
                "INSERT INTO budgets AS b (kind, app, account, used, touched_at) VALUES ($1, $2, $3, '[]', 0)
                 ON CONFLICT (kind, app, account) DO UPDATE SET touched_at = b.touched_at
                 RETURNING *, (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now",
                &[&kind, &app, &account],
            )
            .await?
            .ok_or_else(|| strange("budgets"))?;
        let now = row.time("now")?;
        let mut budget = read_budget(&row)?;
        let grant = budget.claim(claim, now);
        let columns = BudgetColumns::new(&budget);
        self.commit_with(
            "UPDATE budgets SET limit_calls = $4, limit_ms = $5, rest_until = $6, used = $7, touched_at = $8
              WHERE kind = $1 AND app = $2 AND account = $3",
            &[
                &kind,
                &app,
                &account,
                &columns.limit_calls,
                &columns.limit_ms,
                &columns.rest_until,
                &columns.used,
                &now.millis(),
            ],
        )
        .await?;
        Ok(grant)
    }

    /// By the clock that claims are counted by.
    pub(super) async fn budget_standing(&self, name: &BudgetName) -> Tried<Option<Standing>> {
        let (kind, app, account) = budget_key(name);
        let row = self
            .row(
                "SELECT *, (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now FROM budgets
                  WHERE kind = $1 AND app = $2 AND account = $3",
                &[&kind, &app, &account],
            )
            .await?;
        let Some(row) = row else {
            return Ok(None);
        };
        Ok(read_budget(&row)?.standing(row.time("now")?))
    }
}
