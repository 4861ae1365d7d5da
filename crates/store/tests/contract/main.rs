//! What every store keeps, whichever database it stands on. PROTOCOL.md's rules that live in the store are named where
//! they are proven.
//!
//! A claim is a function over a [`fixture::Fixture`]; `every_claim!` at the foot of this file turns each into a test of each store.

#![expect(clippy::unwrap_used, reason = "a claim that cannot be made ends its test")]

mod access;
mod apps;
mod budgets;
mod connections;
mod fixture;
mod history;
mod landing;
mod leases;
#[cfg(feature = "postgres")]
mod postgres;
mod restoring;
#[cfg(feature = "simulation")]
mod simulated;
#[cfg(feature = "sqlite")]
mod sqlite;
mod upkeep;
mod webhooks;
mod writes;

/// Makes a test of each claim for one store.
macro_rules! claims {
    ($store:ident = $fixture:ty: $($group:ident { $($claim:ident)+ })+) => {
        mod $store {
            $(mod $group {
                $(#[tokio::test]
                async fn $claim() {
                    $crate::$group::$claim(&<$fixture as $crate::fixture::Fixture>::fresh()).await;
                })+
            })+
        }
    };
}

/// Every claim, for one store.
macro_rules! every_claim {
    ($store:ident = $fixture:ty) => {
        claims! { $store = $fixture:
            leases {
                one_of_two_processes_gets_the_lease
                a_takeover_adds_its_attempt_and_keeps_the_first_ones_time
                stepping_back_takes_back_ones_own_attempt_and_no_other
                an_attempt_of_unknown_outcome_is_seen_by_the_next_holder
                an_intent_counts_only_for_its_version
                fences_only_grow
                a_lease_is_given_for_the_stored_version_of_an_active_connection_only
                a_jump_of_the_wall_clock_moves_no_lease
                a_lease_lasts_as_long_as_it_was_taken_for
                a_lease_ends_with_the_version_it_was_taken_for
                giving_up_frees_ones_own_lease_and_no_other
                trouble_is_kept_only_where_the_version_stands
                a_cooldown_allows_one_redemption_and_grows
                a_forced_refresh_is_claimed_once_in_its_time
                a_lease_that_is_still_held_is_renewed_and_nothing_else
                a_lease_is_its_holders_alone
                a_lost_outcome_may_be_tried_once_more_where_a_person_asks
                one_more_try_ends_as_any_other
            }
            landing {
                a_refreshed_set_is_stored_whole_and_settles_everything
                an_answer_for_another_version_changes_nothing
                a_late_answer_whose_version_stands_is_stored_unproven_beside_the_newer_lease
                an_answer_of_the_old_grant_does_not_survive_a_reconnect
                a_late_answer_revives_what_was_condemned_for_want_of_it
                a_set_that_lands_is_told_of_with_the_failures_that_it_ends
                a_set_that_brings_a_connection_back_is_told_of_as_the_end_of_a_failure
                an_answer_for_another_account_is_stored_and_never_serves
                an_answer_for_a_disconnected_connection_goes_into_the_revocation_queue
                an_answer_for_an_erased_connection_is_the_callers_to_revoke
                an_answer_does_not_revoke_a_grant_that_was_to_stay_alive
                an_account_is_pinned_where_none_was_and_nobody_else_has_it
                a_verdict_holds_only_for_the_version_it_was_made_on
                a_verdict_holds_only_under_its_own_lease
                a_verdict_holds_only_for_an_active_connection
                an_uninstall_counts_against_the_consent_before_it_alone
                an_answer_on_its_way_is_stored_and_does_not_undo_an_uninstall
                an_uninstall_changes_nothing_for_who_has_left_or_must_reconnect_already
                of_an_uninstall_and_a_consent_at_once_the_consent_stands
            }
            connections {
                what_is_created_is_read_back_whole
                two_live_connections_never_share_an_account
                two_live_connections_of_an_app_never_share_a_refresh_token
                an_id_is_taken_once
                a_static_connection_has_an_access_token_and_nothing_else
                a_reconnect_voids_what_belonged_to_the_old_grant
                a_reconnect_keeps_the_rules_of_one_account_and_one_grant
                a_newer_record_replaces_what_is_stored_once_and_an_older_one_never
                a_record_replaces_nothing_while_a_redemption_is_under_way
                a_record_means_the_connection_of_its_id_or_of_its_account_or_of_its_grant
                of_many_records_at_once_the_newest_stands
                what_takes_anothers_account_over_ends_it_and_is_named_by_it
                a_restored_connection_takes_its_account_over_too
                what_may_not_take_an_account_over_ends_nothing
                of_many_that_take_an_account_over_at_once_one_lives
                a_patch_changes_what_it_names_and_keeps_the_account_rule
                disconnecting_erases_the_tokens_and_queues_the_refresh_token
                disconnecting_twice_is_disconnecting_once
                a_grant_that_others_use_is_not_revoked_unless_asked_for
                a_grant_that_serves_again_is_not_revoked
                a_purge_erases_the_disconnected_with_their_history_only
                lists_run_by_creation_and_keep_filters_and_limits
                every_change_of_state_is_in_the_history
            }
            upkeep {
                a_due_connection_is_claimed_once
                only_what_is_due_is_claimed
                a_revocation_is_claimed_once_and_erased_when_done
                use_is_merged_and_the_later_time_wins
                the_change_feed_tells_every_process_what_changed
                a_sweep_forgets_what_has_ended_and_never_turns_the_feed_back
            }
            history {
                an_event_tells_who_why_and_what_stood_around_it
                an_event_names_the_version_before_and_after
                events_are_found_by_what_is_asked_for
                pages_of_events_make_up_the_whole_in_both_directions
                an_apps_health_changes_with_its_event_and_no_event_without_a_change
                what_did_not_happen_is_not_in_the_history
                history_is_kept_by_age_and_by_count
                refreshes_are_counted_from_the_history
                what_is_counted_adds_up_over_all_processes
                connections_are_counted_and_found_by_the_health_that_their_records_show
                pages_of_connections_make_up_the_whole_in_every_order
            }
            apps {
                a_refusal_of_an_app_keeps_its_first_time_until_accepted
                one_process_is_the_first_to_see_an_app_rotate
                one_probe_in_its_time_each_time_by_another_connection
                a_success_ends_what_was_probed
                failures_of_an_endpoint_are_counted_over_all_processes
                an_endpoint_that_works_has_nothing_counted_against_it
                exchanges_of_a_second_are_shared_by_all_processes
            }
            restoring {
                a_set_that_the_store_lost_is_put_back_whole
                nothing_is_put_back_over_what_moved_meanwhile
                what_is_put_back_needs_no_reconnecting
                an_epoch_stands_as_long_as_nothing_is_lost
            }
            writes {
                one_of_many_at_once_gets_a_place
                one_of_many_at_once_takes_over_a_place
                another_request_under_a_key_is_a_mismatch
                the_same_key_of_another_connection_is_another_place
                an_answer_is_replayed_byte_for_byte_by_every_process
                an_answer_without_its_body_keeps_status_and_headers
                what_was_taken_over_cannot_leave_and_its_owner_cannot_end_it
                what_leaves_leaves_once
                what_was_sent_and_is_late_is_unknown_until_its_owner_settles_it
                whoever_meets_an_unknown_write_may_settle_it
                what_is_done_stays_done
                what_was_not_applied_may_run_again
                what_is_over_its_time_may_run_again
                a_write_that_is_under_way_is_waited_for
                whoever_is_still_at_work_holds_on_to_its_place
                a_sweep_erases_what_is_over_its_time_alone
                a_sweep_drops_the_oldest_bodies_and_keeps_what_was_said
                a_purge_erases_a_connections_writes_and_a_disconnect_does_not
            }
            budgets {
                a_budget_is_shared_by_all_processes_and_never_overdrawn
                what_one_learns_counts_for_all
                what_was_not_used_is_given_back
                the_less_urgent_leave_room
                budgets_of_different_names_are_different_ones
                a_sweep_forgets_a_budget_that_nobody_uses
                a_look_at_a_budget_takes_nothing_of_it
            }
            webhooks {
                deliveries_are_kept_with_how_far_the_events_were_read_or_not_at_all
                a_delivery_is_claimed_by_one_process_and_again_when_that_is_gone
                a_try_ends_once_and_not_by_an_older_one
                what_is_sent_again_begins_anew
                deliveries_are_listed_within_limits_page_by_page
                dead_letters_are_counted_within_limits_from_the_first_on
                a_sweep_forgets_what_is_old_and_gives_up_what_is_for_nobody
                a_purge_erases_what_was_told_and_leaves_what_is_to_be_told
                a_journal_is_read_by_one_process_at_a_time
                a_page_of_a_journal_counts_once_and_with_its_place
            }
            access {
                a_key_is_found_by_its_hash_until_and_after_it_is_revoked
                a_session_that_connected_stays_connected
                a_state_is_spent_once
            }
        }
    };
}

#[cfg(feature = "sqlite")]
every_claim!(on_sqlite = crate::sqlite::SqliteFile);
#[cfg(feature = "simulation")]
every_claim!(on_a_simulated_sqlite = crate::simulated::LikeSqlite);
#[cfg(feature = "simulation")]
every_claim!(on_a_simulated_postgres = crate::simulated::LikePostgres);
#[cfg(feature = "postgres")]
every_claim!(on_postgres = crate::postgres::PostgresDatabase);
