//! The bugs, and where they are planted. `on!(name)` in an edit is whether that bug is on; in SQL it is `planted('name')`.

/// A rule taken out.
pub(super) struct Bug {
    pub(super) name: &'static str,
    /// What is taken out.
    pub(super) rule: &'static str,
    /// In which runs of the simulation it is looked for.
    pub(super) class: &'static str,
}

/// A place where something is planted.
pub(super) struct Edit {
    pub(super) file: &'static str,
    pub(super) find: &'static str,
    pub(super) replace: &'static str,
}

const fn bug(name: &'static str, class: &'static str, rule: &'static str) -> Bug {
    Bug { name, rule, class }
}

pub(super) const BUGS: &[Bug] = &[
    bug("lease_skipped", "wire", "3: without a lease nothing is redeemed"),
    bug(
        "reread_skipped",
        "storm",
        "4: what was read before the lease does not count",
    ),
    bug(
        "last_check_dropped",
        "stops",
        "4: the lease is looked at right before the first byte",
    ),
    bug(
        "wall_clock_lease",
        "clocks",
        "time: a jump of the wall clock moves no lease",
    ),
    bug(
        "intent_replaced",
        "kills",
        "2: a takeover adds to the intent and never replaces it",
    ),
    bug(
        "attempt_not_taken_back",
        "wire",
        "2: who sent nothing takes its attempt back",
    ),
    bug(
        "attempt_taken_back_late",
        "wire",
        "2: who sent something does not",
    ),
    bug(
        "lost_as_not_issued",
        "wire",
        "8: nobody knows what a lost answer was",
    ),
    bug(
        "server_error_refuses",
        "wire",
        "8: no 5xx says that nothing was issued",
    ),
    bug(
        "verdict_without_condition",
        "stops",
        "11: the verdict holds only where nothing has moved",
    ),
    bug("stored_last", "store", "14: stored before anything that can fail"),
    bug(
        "land_without_version",
        "leaving",
        "14: an answer lands only on the version it came from",
    ),
    bug(
        "late_answer_refused",
        "stops",
        "15: a late answer whose version stands is the newest",
    ),
    bug(
        "unproven_dropped",
        "stops",
        "16: what lands over a lost outcome is unproven",
    ),
    bug(
        "unproven_condemned",
        "stops",
        "16: the refusal of an unproven set is a lost outcome",
    ),
    bug(
        "lifeboat_not_written",
        "storm",
        "17: what the store does not take is kept elsewhere",
    ),
    bug(
        "lifeboat_emptied_early",
        "storm",
        "17: an entry is kept until it has landed",
    ),
    bug(
        "restore_skipped",
        "failover",
        "18: what the store has lost is given back",
    ),
    bug(
        "quiet_time_skipped",
        "kills",
        "lost answers: nobody presents before the quiet time is over",
    ),
    bug(
        "introspection_skipped",
        "wire",
        "lost answers: where the provider can be asked, it is asked first",
    ),
    bug(
        "third_attempt",
        "wire",
        "lost answers: no third attempt by itself",
    ),
    bug(
        "rotation_not_noted",
        "wire",
        "lost answers: the first rotation is noted, durably",
    ),
    bug(
        "refresh_token_erased",
        "calm",
        "RFC 6749 §6: no new refresh token means that the old one stays",
    ),
    bug(
        "counted_from_the_answer",
        "wire",
        "time: expires_at counts from the sending",
    ),
    bug(
        "served_past_its_end",
        "store",
        "time: nothing serves past its hard end",
    ),
    bug(
        "disconnect_without_version",
        "leaving",
        "disconnect: the version grows",
    ),
    bug(
        "reconnect_keeps_the_intent",
        "leaving",
        "reconnect: voids lease and intent",
    ),
    bug(
        "late_answer_not_revoked",
        "kills",
        "disconnect: what comes afterwards is revoked, too",
    ),
    bug(
        "feed_ignored",
        "leaving",
        "between processes: truth is the change feed",
    ),
    bug(
        "caller_takes_it_along",
        "wire",
        "a caller that goes away does not take a redemption with it",
    ),
    bug(
        "no_event",
        "calm",
        "I7: every change of version is in the history",
    ),
    bug("secret_in_a_log", "calm", "I6: no secret in logs"),
];

pub(super) const EDITS: &[Edit] = &[
    Edit {
        file: "crates/store/src/sqlite/simulated.rs",
        find: "        // The schema asks the system's clock",
        replace: r#"        sql.create_scalar_function("planted", 1, FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_INNOCUOUS, |context| {
            let bug: String = context.get(0)?;
            Ok(std::env::var("EVERGRANT_PLANTED").is_ok_and(|on| on == bug))
        })?;
        // The schema asks the system's clock"#,
    },
    Edit {
        file: "crates/store/src/sqlite/simulated.rs",
        find: "            millis: Arc::clone(&database.0.clocks.boot),",
        replace: "            millis: if on!(wall_clock_lease) { Arc::clone(&database.0.clocks.wall) } else { Arc::clone(&database.0.clocks.boot) },",
    },
    Edit {
        file: "crates/store/src/sqlite/redeeming.rs",
        find: "if before.connection.version != version || !on.allows",
        replace: "if (before.connection.version != version && !on!(reread_skipped)) || !on.allows",
    },
    Edit {
        file: "crates/store/src/sqlite/redeeming.rs",
        find: ".is_some_and(|lease| self.holders.holds(&lease))",
        replace: ".is_some_and(|lease| self.holders.holds(&lease) && !on!(lease_skipped))",
    },
    Edit {
        file: "crates/store/src/sqlite/redeeming.rs",
        find: "attempts = json_insert(attempts, '$[#]'",
        replace: "attempts = json_insert(iif(planted('intent_replaced'), '[]', attempts), '$[#]'",
    },
    Edit {
        file: "crates/store/src/sqlite/redeeming.rs",
        find: "                  WHERE id = :id AND version = :version AND status <> 'disconnected'\",",
        replace: "                  WHERE id = :id AND (version = :version OR planted('land_without_version')) AND status <> 'disconnected'
                    AND (fence = :fence OR NOT planted('late_answer_refused'))\",",
    },
    Edit {
        file: "crates/store/src/sqlite/redeeming.rs",
        find: "        self.record_change(id, Before::Version(found.version), &event, now)?;",
        replace: "        if on!(no_event) { self.feed_connection(id)?; } else { self.record_change(id, Before::Version(found.version), &event, now)?; }",
    },
    Edit {
        file: "crates/store/src/sqlite/redeeming.rs",
        find: "        ) && let Some(token) = &refreshed.tokens.refresh_token",
        replace: "        ) && !on!(late_answer_not_revoked) && let Some(token) = &refreshed.tokens.refresh_token",
    },
    Edit {
        file: "crates/store/src/sqlite/redeeming.rs",
        find: "        if presented == Presented::No {",
        replace: "        if (presented == Presented::No && !on!(attempt_not_taken_back)) || on!(attempt_taken_back_late) {",
    },
    Edit {
        file: "crates/store/src/sqlite/redeeming.rs",
        find: "WHERE id = ?1 AND version = ?2 AND fence = ?3 AND lease_holder = ?6",
        replace: "WHERE id = ?1 AND ((version = ?2 AND fence = ?3 AND lease_holder = ?6) OR planted('verdict_without_condition'))",
    },
    Edit {
        file: "crates/store/src/sqlite/connections.rs",
        find: "revocation = ?4, version = version + 1, fence = fence + 1,",
        replace: "revocation = ?4, version = version + iif(planted('disconnect_without_version'), 0, 1), fence = fence + 1,",
    },
    Edit {
        file: "crates/store/src/sqlite/connections.rs",
        find: "connected_at = :now, updated_at = :now, attempts = '[]',",
        replace: "connected_at = :now, updated_at = :now, attempts = iif(planted('reconnect_keeps_the_intent'), attempts, '[]'),",
    },
    Edit {
        file: "crates/store/src/record/landing.rs",
        find: "unproven: refreshed.tokens.unproven || landing == Landing::ActiveUnproven || attempts > 1,",
        replace: "unproven: !on!(unproven_dropped) && (refreshed.tokens.unproven || landing == Landing::ActiveUnproven || attempts > 1),",
    },
    Edit {
        file: "crates/domain/src/redemption.rs",
        find: "    if unproven || earlier.is_some_and(|intent| intent.attempts > 0) {",
        replace: "    if (unproven && !on!(unproven_condemned)) || earlier.is_some_and(|intent| intent.attempts > 0) {",
    },
    Edit {
        file: "crates/domain/src/redemption.rs",
        find: "    let quiet_until = earlier.last_at.after(QUIET_TIME).max(hard_end);",
        replace: "    let quiet_until = if on!(quiet_time_skipped) { earlier.first_at } else { earlier.last_at.after(QUIET_TIME).max(hard_end) };",
    },
    Edit {
        file: "crates/domain/src/redemption.rs",
        find: "    } else if can_introspect {",
        replace: "    } else if can_introspect && !on!(introspection_skipped) {",
    },
    Edit {
        file: "crates/domain/src/redemption.rs",
        find: "    } else if earlier.attempts == 1 {",
        replace: "    } else if earlier.attempts == 1 || on!(third_attempt) {",
    },
    Edit {
        file: "crates/domain/src/token_answer.rs",
        find: "        500..=599 => return TokenAnswer::Lost(failure(\"server_error\")),",
        replace: "        500..=599 if on!(server_error_refuses) => return TokenAnswer::GrantRefused(failure(\"server_error\")),
        500..=599 => return TokenAnswer::Lost(failure(\"server_error\")),",
    },
    Edit {
        file: "crates/keeper/src/redeem.rs",
        find: "        let asked_at = self.inner.clock.boot();
        let now = self.inner.clock.now();
        match self",
        replace: "        let asked_at = self.inner.clock.boot();
        let now = self.inner.clock.now();
        let before = held.clone();
        match self",
    },
    Edit {
        file: "crates/keeper/src/redeem.rs",
        find: "                let tenure = Arc::new(Tenure::new(lease.clone(), asked_at));",
        replace: "                let tenure = Arc::new(Tenure::new(lease.clone(), asked_at));
                let held = if on!(reread_skipped) { Box::new(before) } else { held };",
    },
    Edit {
        file: "crates/keeper/src/redeem.rs",
        find: "TokenAnswer::Lost(failure) => self.lost(holding, tokens, failure).await,",
        replace: "TokenAnswer::Lost(failure) if on!(lost_as_not_issued) => self.unfinished(holding, Presented::No, failure).await,
                TokenAnswer::Lost(failure) => self.lost(holding, tokens, failure).await,",
    },
    Edit {
        file: "crates/keeper/src/redeem.rs",
        find: "                let sent_at = *sent_at.lock();",
        replace: "                let sent_at = if on!(counted_from_the_answer) { None } else { *sent_at.lock() };",
    },
    Edit {
        file: "crates/keeper/src/tenure.rs",
        find: "        ours && self.inner.clock.boot()",
        replace: "        on!(last_check_dropped) || ours && self.inner.clock.boot()",
    },
    Edit {
        file: "crates/keeper/src/landing.rs",
        find: "        let answer = Arc::new(self.answer(holding, old, issued, sent_at, rotation));",
        replace: "        if on!(stored_last) { self.inner.store.ping().await?; }
        let answer = Arc::new(self.answer(holding, old, issued, sent_at, rotation));",
    },
    Edit {
        file: "crates/keeper/src/landing.rs",
        find: "refresh_token: issued.refresh_token.or_else(|| old.refresh_token.clone()),",
        replace: "refresh_token: issued.refresh_token.or_else(|| old.refresh_token.clone().filter(|_| !on!(refresh_token_erased))),",
    },
    Edit {
        file: "crates/keeper/src/landing.rs",
        find: "        let sealed = Entry::seal(answer, &self.inner.vault);",
        replace: "        if on!(lifeboat_not_written) { return true; }
        let sealed = Entry::seal(answer, &self.inner.vault);",
    },
    Edit {
        file: "crates/keeper/src/landing.rs",
        find: "            event = \"refreshed\",
            connection_id = %held.connection.id,",
        replace: "            event = \"refreshed\",
            token = on!(secret_in_a_log).then(|| token.access_token.expose()),
            connection_id = %held.connection.id,",
    },
    Edit {
        file: "crates/keeper/src/rescue.rs",
        find: "        let ashore = self.land(&answer, Late::Yes).await?;",
        replace: "        if on!(lifeboat_emptied_early) && let Some(lifeboat) = &self.inner.lifeboat {
            let _ = lifeboat.remove(name).await;
        }
        let ashore = self.land(&answer, Late::Yes).await?;",
    },
    Edit {
        file: "crates/keeper/src/regression.rs",
        find: "newest.filter(|newest| is_lost(newest, &shown))",
        replace: "newest.filter(|newest| is_lost(newest, &shown) && !on!(restore_skipped))",
    },
    Edit {
        file: "crates/keeper/src/landing.rs",
        find: "        if answer.rotated",
        replace: "        if answer.rotated && !on!(rotation_not_noted)",
    },
    Edit {
        file: "crates/keeper/src/keeper.rs",
        find: "            boot < token.hard && (min_ttl",
        replace: "            (boot < token.hard || on!(served_past_its_end)) && (min_ttl",
    },
    Edit {
        file: "crates/keeper/src/feed.rs",
        find: "Change::Connection { id, version } => self.inner.cache.doubt(&id, version),",
        replace: "Change::Connection { .. } if on!(feed_ignored) => {}
                        Change::Connection { id, version } => self.inner.cache.doubt(&id, version),",
    },
    Edit {
        file: "crates/keeper/src/flight.rs",
        find: "        let flight = self.join(asker, id, why);",
        replace: "        if on!(caller_takes_it_along) {
            return self.redeem(&asker.kept(), id, why, &WaitedFor::default()).await;
        }
        let flight = self.join(asker, id, why);",
    },
];
