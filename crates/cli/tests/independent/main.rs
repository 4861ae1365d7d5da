//! RELIABILITY.md's checks 1 to 32 against an authorization server that others wrote: Authlib, as
//! `tests/clients/python/authserver.py` serves it, with refresh tokens that rotate. The services are processes of the binary, on
//! SQLite and on PostgreSQL; what they are asked and what they answer stands in INTERFACE.md. HTTP 200s prove nothing here: the
//! judge is the server's own ledger of what was presented, accepted, refused and presented again.
//!
//! `provider` starts that server, `site` an installation and its services, `clock`, `disturb` and `between` do harm to them. Start
//! reading at `refresh`.
//!
//! What takes longer than a lease (30 s) is waited for with `cargo xtask independent --long` only.
//!
//! | check | test |
//! |---|---|
//! | 1 | `refresh::two_hundred_callers_at_an_expiry_cost_one_redemption` |
//! | 2 | `refresh::two_hundred_callers_of_three_services_on_one_file_cost_one_redemption`, `…_on_one_database_…` |
//! | 3 | `refresh::a_token_that_dies_before_its_time_costs_one_redemption_and_one_repeat_a_call` |
//! | 4 | `crash::where_there_is_grace_no_kill_at_any_step_loses_a_grant`, `crash::where_there_is_none_a_kill_loses_a_grant_between_answer_and_commit_only_and_says_so`; each single step in the long form |
//! | 5 | `refresh::when_a_service_is_killed_as_it_redeems_those_who_wait_go_on_at_once_on_one_file`; on PostgreSQL, `…_after_its_lease_on_one_database`, in the long form |
//! | 6 | `refresh::a_service_that_is_told_to_stop_stores_what_it_redeems_and_begins_nothing_new` |
//! | 7 | `refresh::a_caller_that_hangs_up_does_not_take_the_redemption_with_it` |
//! | 8 | `time::a_service_that_slept_past_its_lease_before_it_asked_presents_nothing`, in the long form; the keeper's `a_holder_that_was_stopped_between_its_lease_and_the_first_byte_presents_nothing` moves the clocks instead |
//! | 9 | `time::a_service_that_slept_past_its_lease_after_the_answer_overwrites_nothing`, in the long form; the keeper's `a_stopped_holder_is_passed_over_and_its_late_answer_judged_by_the_lease` moves the clocks instead |
//! | 10 | `endpoint::no_exchange_outlasts_its_deadline_however_slow_the_wire_is` |
//! | 11 | `time::a_clock_that_is_an_hour_off_costs_no_storm_and_no_call` |
//! | 12 | `time::clocks_that_are_further_apart_than_a_token_lives_cost_one_redemption_a_lifetime` |
//! | 13 | `time::after_a_sleep_there_is_one_redemption_and_no_call_fails_on_a_dead_connection` |
//! | 14 | `time::after_thirty_days_off_every_connection_is_refreshed_once_and_not_all_at_once` |
//! | 15 | `database::a_commit_whose_answer_is_lost_is_found_to_be_done` |
//! | 16 | `database::a_commit_that_never_arrives_is_made_again_until_it_is_done_and_loudly` |
//! | 17 | `disk::on_a_full_disk_tokens_serve_and_no_redemption_is_begun`, `disk::what_was_redeemed_as_the_disk_filled_up_is_stored_when_there_is_room` |
//! | 18 | `disk::while_the_disk_does_not_confirm_nothing_counts_as_stored` |
//! | 19 | `disk::a_torn_end_of_the_log_costs_nothing_that_was_committed`, `disk::a_bit_that_flips_in_a_sealed_token_costs_that_connection_only` |
//! | 20 | `database::a_database_that_restarts_is_found_again_and_one_that_forgot_a_commit_is_told_again` |
//! | 21 | `consent::a_refusal_of_what_has_been_replaced_meanwhile_condemns_nobody` |
//! | 22 | `database::without_the_database_fresh_tokens_serve_and_nothing_is_redeemed`; Redis: `coordination` of the store's tests, and `fleet` |
//! | 23 | `database::slow_redemptions_take_nothing_from_those_who_have_tokens` |
//! | 24 | `database::whoever_keeps_the_tables_locked_delays_redemptions_and_doubles_none`, `disk::whoever_keeps_the_file_locked_delays_redemptions_and_doubles_none`; deadlocks and serialization failures: `faults` of the store's PostgreSQL tests, for nobody outside can cause one |
//! | 25 | `crash::a_migration_that_is_killed_half_way_is_done_by_the_next`; two versions side by side: the store's `an_old_process_restarts_beside_a_new_one` and `a_database_of_a_newer_schema_is_refused_and_not_touched`, as there is no second version of the binary |
//! | 26 | `lost::within_grace_a_lost_answer_is_asked_for_again_and_recovered`, `lost::a_single_use_token_whose_answer_was_lost_is_asked_about_and_not_presented_again`, `lost::a_single_use_token_that_never_arrived_is_asked_about_and_then_presented`, `lost::without_introspection_a_lost_answer_costs_one_replay_and_never_a_loop`, `lost::after_two_attempts_of_unknown_outcome_only_a_person_presents_the_token_again`, `lost::while_the_old_token_serves_nobody_presents_again_after_a_lost_answer` |
//! | 27 | `endpoint::when_the_token_endpoint_is_down_the_old_token_serves_and_nobody_insists`, `endpoint::whoever_asks_for_a_pause_gets_it_in_seconds_or_as_a_date`, `endpoint::pauses_grow_while_an_endpoint_goes_on_refusing`; the breaker: the keeper's tests |
//! | 28 | `endpoint::an_endpoint_that_is_not_reached_costs_nothing_but_time_and_is_found_again`, and with 10 a peer that never answers |
//! | 29 | `endpoint::a_body_without_end_is_neither_read_nor_unpacked`, and with 10 one byte a second |
//! | 30 | `lost::an_answer_that_cannot_be_read_is_lost_and_never_stored` |
//! | 31 | `endpoint::a_lifetime_that_makes_sense_is_believed_and_any_other_is_ten_minutes`, `endpoint::where_no_new_refresh_token_comes_the_old_one_is_kept`, `endpoint::strange_words_in_an_answer_are_taken_for_what_they_mean`; what must not be stored: with 30 |
//! | 32 | `endpoint::a_redirect_of_the_token_endpoint_is_not_followed_and_its_target_gets_nothing` |

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop where it is"
)]

mod between;
mod clock;
mod consent;
mod crash;
mod database;
mod disk;
mod disturb;
mod endpoint;
mod lost;
mod provider;
mod refresh;
mod site;
mod time;
mod web;

/// Whether to wait for as long as a lease lasts, too. Says what is left out, past what keeps the words of a test that passes.
fn long(what: &str) -> bool {
    use std::io::Write as _;

    let long = std::env::var_os("EVERGRANT_TEST_LONG").is_some();
    if !long {
        let said = writeln!(
            std::io::stderr(),
            "LEFT OUT: {what}. `cargo xtask independent --long` has time for it."
        );
        assert!(said.is_ok());
    }
    long
}
