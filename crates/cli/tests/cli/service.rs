//! `serve` as whoever runs it meets it: ready, drained, reconfigured.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::process::Stdio;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::Signal;

use crate::web;
use crate::world::{Home, Running, World, app};

#[test]
fn a_service_without_apps_starts_and_says_what_to_add() {
    let home = Home::empty();
    home.run("init").ends_with(0);
    let mut serve = home.command(["serve"]);
    serve.env("EVERGRANT_SERVER__LISTEN", "127.0.0.1:0");
    let mut serving = Running::begin("serve", &mut serve);
    assert!(
        serving
            .first_line
            .starts_with("evergrant listens on http://127.0.0.1:"),
        "{}",
        serving.first_line
    );
    let line = serving.wait_for("no_apps");
    let line: serde_json::Value = serde_json::from_str(&line).expect("a JSON line");
    assert_eq!(line["level"], "warn");
    assert!(
        line["message"].as_str().unwrap().contains("[apps.NAME]"),
        "{line}"
    );
    assert_eq!(
        web::send("GET", &format!("{}/healthz", serving.address()), &[], "").status,
        200
    );
    serving.signal(Signal::INT);
    let (status, out, _) = serving.wait();
    assert_eq!((status.code(), out.as_str()), (Some(0), ""));
}

/// Serves with this as standard error, is called several hundred times and asked to stop.
#[track_caller]
fn check_that_no_call_needs_the_log(log: impl Into<Stdio>, once_it_serves: impl FnOnce()) {
    let world = World::new();
    let serving = Running::with_log(&mut world.home.command(["serve"]), log);
    once_it_serves();
    let apps = format!("{}/v1/apps", world.url);
    // Each is a line in the log.
    for _ in 0..300 {
        assert_eq!(web::send("GET", &apps, &[], "").status, 401);
    }
    serving.signal(Signal::TERM);
    let (status, ..) = serving.wait();
    assert!(status.success(), "{status}");
}

#[test]
fn a_log_that_nobody_reads_any_more_stops_no_call() {
    let (reader, log) = std::io::pipe().unwrap();
    check_that_no_call_needs_the_log(log, || drop(reader));
}

#[test]
fn a_log_whose_reader_is_stuck_stops_no_call_and_not_the_end() {
    let (_reader, log) = std::io::pipe().unwrap();
    // Full to the last byte, and such that whoever writes one more waits.
    let before = fcntl_getfl(&log).unwrap();
    fcntl_setfl(&log, before | OFlags::NONBLOCK).unwrap();
    while (&log).write(b"\n").is_ok() {}
    fcntl_setfl(&log, before).unwrap();
    check_that_no_call_needs_the_log(log, || {});
}

#[test]
fn a_log_on_a_full_device_stops_no_call() {
    let log = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    check_that_no_call_needs_the_log(log, || {});
}

#[test]
fn a_port_in_use_is_said_and_ends_with_1() {
    let world = World::new();
    let port = world.url.rsplit_once(':').unwrap().1;
    let _taken = TcpListener::bind(format!("127.0.0.1:{port}")).unwrap();
    let done = world.home.run("serve").ends_with(1);
    assert!(
        done.err.contains(&format!("127.0.0.1:{port} is in use")),
        "{done:?}"
    );
    assert_eq!(done.out, "");
}

#[test]
fn a_call_in_flight_finishes_before_the_service_stops() {
    let world = World::new();
    let mut serving = world.home.start("serve");
    world.connect_acme();
    world.steer("faults", r#"{"at": "api", "fault": "hold_before_execute"}"#);
    let mut call = world.home.command([
        "call",
        "acme",
        "GET",
        "/crm/v3/objects/contacts",
        "--server",
        &world.url,
    ]);
    call.env("EVERGRANT_API_KEY", &world.admin_key);
    let calling = call.stdout(Stdio::piped()).spawn().unwrap();
    world.wait_for_held();
    serving.signal(Signal::TERM);
    serving.wait_for("\"event\":\"stopping\"");
    // Time enough to be gone, were it not waiting.
    for _ in 0..100 {
        world.wait_for_held();
        assert!(serving.is_running(), "it did not wait");
    }
    world.steer("faults/release", "{}");
    let called = calling.wait_with_output().unwrap();
    assert!(called.status.success(), "{called:?}");
    let (status, _, log) = serving.wait();
    assert!(
        status.success() && log.contains("\"event\":\"stopped\""),
        "{status}: {log}"
    );
}

#[test]
fn a_broken_or_cut_off_configuration_changes_nothing_and_a_good_one_brings_its_apps() {
    let world = World::new();
    let mut serving = world.home.start("serve");
    let file = world.home.path("evergrant.toml");
    let good = fs::read_to_string(&file).unwrap();

    fs::write(&file, format!("{good}\n[apps.broken]\nprovdier = \"hubspot\"\n")).unwrap();
    serving.signal(Signal::HUP);
    let refused = serving.wait_for("configuration_refused");
    assert!(
        refused.contains("provdier") && refused.contains("evergrant.toml:"),
        "{refused}"
    );
    let apps = world.remote("apps list --json").ends_with(0).json();
    assert_eq!(apps["items"].as_array().unwrap().len(), 1);

    let moved = good.replace("key_file = \"evergrant.key\"", "key_file = \"other.key\"");
    assert_ne!(moved, good);
    fs::copy(world.home.path("evergrant.key"), world.home.path("other.key")).unwrap();
    fs::write(&file, moved).unwrap();
    serving.signal(Signal::HUP);
    let needed = serving.wait_for("restart_needed");
    assert!(needed.contains("[vault] changed"), "{needed}");
    serving.wait_for("configuration_read");

    let (without_apps, _) = good.split_once("\n[apps.crm]").unwrap();
    for cut_off in ["", without_apps] {
        fs::write(&file, cut_off).unwrap();
        serving.signal(Signal::HUP);
        let refused = serving.wait_for("configuration_refused");
        assert!(
            refused.contains("\"level\":\"error\"") && refused.contains("no app any more"),
            "{refused}"
        );
        let apps = world.remote("apps list --json").ends_with(0).json();
        assert_eq!(apps["items"].as_array().unwrap().len(), 1);
    }

    fs::write(&file, good + &app("second", &world.hubspot.address())).unwrap();
    serving.signal(Signal::HUP);
    serving.wait_for("configuration_read");
    let apps = world.remote("apps list --json").ends_with(0).json();
    assert_eq!(apps["items"][1]["name"], "second");
}

#[test]
fn ctrl_c_ends_the_simulator() {
    let hubspot = Home::empty().start("sim --token-ttl 60s --rotate always --seed 7");
    let config = web::send("GET", &format!("{}/_sim/config", hubspot.address()), &[], "");
    assert!(config.body.contains("\"rotation\":\"always\""), "{config:?}");
    hubspot.signal(Signal::INT);
    let (status, out, _) = hubspot.wait();
    assert!(status.success() && out.contains("sim-client"), "{status}: {out}");
}

#[test]
fn who_waits_for_a_store_that_does_not_answer_hears_when_told_to_stop() {
    let world = World::new();
    // It takes connections and says nothing.
    let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = silent.local_addr().unwrap();
    for (line, signal, code) in [("serve", Signal::TERM, 0), ("connections list", Signal::INT, 130)] {
        let mut command = world.home.command(line.split(' '));
        command.env(
            "EVERGRANT_STORE__URL",
            format!("postgres://evergrant:x@{address}/evergrant"),
        );
        let waiting = Running::quiet(command.env("EVERGRANT_LIFEBOAT__DIR", "boats"));
        // By now it is being waited for.
        let (connection, _) = silent.accept().unwrap();
        waiting.signal(signal);
        let (status, _, log) = waiting.wait();
        assert_eq!(status.code(), Some(code), "{line}: {status} {log}");
        drop(connection);
    }
}
