//! Budgets of calls that all processes share.

use evergrant_domain::Timestamp;
use evergrant_domain::call_budget::{Claim, Grant, Standing};
use rusqlite::params;

use super::record::Db;
use crate::contract::BudgetName;
use crate::record::{BudgetColumns, Stored, budget_key, read_budget};

impl Db {
    pub(super) fn claim_calls(&self, name: &BudgetName, claim: Claim, now: Timestamp) -> Stored<Grant> {
        let (kind, app, account) = budget_key(name);
        let mut statement = self
            .sql
            .prepare_cached("SELECT * FROM budgets WHERE kind = ?1 AND app = ?2 AND account = ?3")?;
        let mut rows = statement.query(params![kind, app, account])?;
        let mut budget = rows.next()?.map(read_budget).transpose()?.unwrap_or_default();
        let grant = budget.claim(claim, now);
        let columns = BudgetColumns::new(&budget);
        self.sql
            .prepare_cached(
                "REPLACE INTO budgets (kind, app, account, limit_calls, limit_ms, rest_until, used, touched_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                kind,
                app,
                account,
                columns.limit_calls,
                columns.limit_ms,
                columns.rest_until,
                columns.used,
                now.millis(),
            ])?;
        Ok(grant)
    }

    pub(super) fn budget_standing(&self, name: &BudgetName, now: Timestamp) -> Stored<Option<Standing>> {
        let (kind, app, account) = budget_key(name);
        let mut statement = self
            .sql
            .prepare_cached("SELECT * FROM budgets WHERE kind = ?1 AND app = ?2 AND account = ?3")?;
        let mut rows = statement.query(params![kind, app, account])?;
        let budget = rows.next()?.map(read_budget).transpose()?;
        Ok(budget.and_then(|budget| budget.standing(now)))
    }
}
