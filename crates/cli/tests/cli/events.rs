//! `evergrant events`: what happened, and what happens.

use rustix::process::Signal;
use serde_json::Value;

use crate::world::{Running, World};

fn kinds(out: &str) -> Vec<String> {
    out.lines()
        .map(|line| {
            let event: Value = serde_json::from_str(line).expect("an event a line");
            event["type"].as_str().unwrap().to_owned()
        })
        .collect()
}

#[test]
fn events_are_told_one_a_line_the_newest_last() {
    let world = World::new();
    world.connect_acme();
    world.home.run("refresh acme --force").ends_with(0);
    let all = world.home.run("events --json").ends_with(0);
    assert_eq!(kinds(&all.out), ["connected", "refresh_forced", "refreshed"]);
    let told = world.home.run("events --connection acme --limit 1").ends_with(0);
    let line = told.out.trim_end();
    assert!(!line.contains('\n'), "{told:?}");
    for part in ["Z  refreshed", "  acme  ", "a new access token", "(by operator)"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let of = |line: &str| kinds(&world.home.run(line).ends_with(0).out);
    assert_eq!(of("events --json --kind connected"), ["connected"]);
    assert_eq!(
        of("events --json --customer acme --since 1h --kind refreshed"),
        ["refreshed"]
    );
    assert_eq!(of("events --json --customer globex"), [""; 0]);
    assert_eq!(of("events --json --since 2200-01-01T00:00:00Z"), [""; 0]);
    let wrong = world.home.run("events --kind nonsense").ends_with(2);
    assert!(wrong.err.contains("reconnect_required"), "{wrong:?}");
}

#[test]
fn what_is_followed_goes_on_over_a_restart_without_gap_or_double() {
    let world = World::new();
    let mut serve = world.home.command(["serve"]);
    let first = Running::begin("serve", &mut serve);
    world.connect_acme();
    let mut command = world.home.command(["events", "--follow", "--json"]);
    command
        .env("EVERGRANT_URL", &world.url)
        .env("EVERGRANT_API_KEY", &world.admin_key);
    let mut following = Running::begin("events", &mut command);
    assert_eq!(
        kinds(&following.first_line),
        ["connected"],
        "what was there already"
    );
    world.remote("refresh acme --force").ends_with(0);
    assert_eq!(kinds(&following.next_line()), ["refresh_forced"]);
    assert_eq!(kinds(&following.next_line()), ["refreshed"]);

    first.signal(Signal::TERM);
    assert!(first.wait().0.success());
    following.wait_for("asking again");
    // It happens while nobody serves, and is told all the same.
    world
        .home
        .run("connections disconnect acme --revoke never")
        .ends_with(0);
    let _second = Running::begin("serve", &mut serve);
    assert_eq!(kinds(&following.next_line()), ["disconnected"]);
    following.signal(Signal::INT);
    let (status, out, _) = following.wait();
    assert_eq!(
        (status.code(), out.as_str()),
        (Some(130), ""),
        "and nothing twice"
    );
}

#[test]
fn who_may_not_read_on_is_told_so() {
    let world = World::new();
    let _serving = Running::begin("serve", &mut world.home.command(["serve"]));
    let mut command = world.home.command(["events", "--follow"]);
    command
        .env("EVERGRANT_URL", &world.url)
        .env("EVERGRANT_API_KEY", "evg_nobody");
    let (status, _, log) = Running::quiet(&mut command).wait();
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("invalid_api_key"), "{log}");
}
