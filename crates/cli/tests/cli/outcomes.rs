//! What scripts rely on: the exit code says who must act.

use rustix::process::Signal;

use crate::world::{Done, Running, World};

#[test]
fn a_revoked_grant_ends_with_3_and_names_the_link() {
    let world = World::new();
    world.connect_acme();
    world.steer("uninstall", r#"{"hub_id": 1001}"#);
    // The first call was sent and came back 401; like all that follow it is answered with what is to be done.
    let called = world
        .home
        .run("call acme GET /crm/v3/objects/contacts")
        .ends_with(3);
    assert!(
        called.err.contains(&format!("{}/connect/", world.url)),
        "{called:?}"
    );
    assert!(called.err.contains("reconnect_required"), "{called:?}");
    assert_eq!(called.out, "");
    let json = world
        .home
        .run("call acme GET /crm/v3/objects/contacts --json")
        .ends_with(3)
        .json();
    assert_eq!(json["code"], "reconnect_required");
    world.home.run("token acme").ends_with(3);
    world.home.run("refresh acme").ends_with(3);
    let record = world.home.run("connections show acme --json").ends_with(0).json();
    assert_eq!(record["status"], "reconnect_required");

    // The same id works again once the customer has consented.
    world.connect_acme();
    world
        .home
        .run("call acme GET /crm/v3/objects/contacts")
        .ends_with(0);
}

#[test]
fn credentials_that_the_provider_refuses_end_with_4() {
    let world = World::new();
    world.connect_acme();
    world.steer("secret", r#"{"client_secret": "another"}"#);
    let checked = world.home.run("apps check crm").ends_with(4);
    assert!(checked.err.contains("client_secret"), "{checked:?}");
    let refreshed = world.home.run("refresh acme --force").ends_with(4);
    assert!(
        refreshed.err.contains("app_credentials_rejected"),
        "{refreshed:?}"
    );
    assert_eq!(
        world.home.run("connections show acme --json").ends_with(0).json()["status"],
        "active"
    );
}

#[test]
fn a_provider_that_is_away_ends_with_5() {
    let mut world = World::new();
    world.connect_acme();
    // Another simulator that nobody uses takes the place of the one that goes.
    world.hubspot = world.home.start("sim");
    let called = world
        .home
        .run("call acme GET /crm/v3/objects/contacts")
        .ends_with(5);
    assert!(called.err.contains("upstream_unreachable"), "{called:?}");
    world.home.run("refresh acme --force").ends_with(5);
    world.home.run("apps check crm").ends_with(5);
}

#[test]
fn what_does_not_exist_ends_with_1() {
    let world = World::new();
    for line in [
        "token nobody",
        "call nobody GET /x",
        "connections show nobody",
        "keys revoke key_none",
    ] {
        let done = world.home.run(line).ends_with(1);
        assert!(done.err.contains("unknown_"), "{done:?}");
    }
    world
        .home
        .run("connect --app other --customer acme --no-browser")
        .ends_with(2);
}

#[test]
fn another_server_is_not_taken_for_a_service() {
    let world = World::new();
    let mut command = world
        .home
        .command(["connections", "list", "--server", &world.hubspot.address()]);
    let done = Done::of(
        "connections list",
        command.env("EVERGRANT_API_KEY", "evg_x").output().unwrap(),
    );
    let done = done.ends_with(2);
    assert!(
        done.err.contains("is not Evergrant's") && !done.err.contains("evg_x"),
        "{done:?}"
    );
}

#[test]
fn a_customer_who_says_no_ends_connect_with_1() {
    let world = World::new();
    let connecting = world.home.start("connect --app crm --customer acme --no-browser");
    let page = crate::web::send("GET", &connecting.first_line, &[], "");
    let cookie = page.header("set-cookie").split(';').next().unwrap().to_owned();
    let to_provider = crate::web::send("POST", &connecting.first_line, &[("Cookie", &cookie)], "");
    let denied = format!("{}&_sim_decision=deny", to_provider.header("location"));
    let back = crate::web::send("GET", &denied, &[], "");
    crate::web::send("GET", back.header("location"), &[("Cookie", &cookie)], "");
    let (status, _, err) = connecting.wait();
    assert_eq!(status.code(), Some(1), "{err}");
    assert!(err.contains("not connected"), "{err}");
}

#[test]
fn ctrl_c_waits_until_a_redemption_in_flight_is_saved() {
    // The refresh token that is on its way will be dead: what is not saved is lost.
    let world = World::with("sim --rotate always");
    world.connect_acme();
    world.steer("faults", r#"{"at": "token", "fault": "hold_after_issue"}"#);
    let mut refreshing = Running::quiet(&mut world.home.command(["refresh", "acme", "--force"]));
    world.wait_for_held();
    refreshing.signal(Signal::INT);
    refreshing.wait_for("interrupted");
    // Time enough to be gone, were it not waiting.
    for _ in 0..100 {
        world.wait_for_held();
        assert!(refreshing.is_running(), "it did not wait");
    }
    world.steer("faults/release", "{}");
    let (status, out, _) = refreshing.wait();
    assert_eq!((status.code(), out.as_str()), (Some(130), ""));
    assert_eq!(
        world.home.run("connections show acme --json").ends_with(0).json()["version"],
        2
    );
    world
        .home
        .run("call acme GET /crm/v3/objects/contacts")
        .ends_with(0);
}

#[test]
fn a_consent_that_is_being_taken_survives_ctrl_c() {
    let world = World::new();
    let mut connecting = world
        .home
        .start("connect --app crm --customer acme --id acme --no-browser");
    world.steer("faults", r#"{"at": "token", "fault": "hold_after_issue"}"#);
    let link = connecting.first_line.clone();
    let customer = std::thread::spawn(move || crate::web::consent(&link, 1001));
    world.wait_for_held();
    connecting.signal(Signal::INT);
    connecting.wait_for("interrupted");
    for _ in 0..100 {
        world.wait_for_held();
        assert!(connecting.is_running(), "it did not wait");
    }
    world.steer("faults/release", "{}");
    let (status, ..) = connecting.wait();
    assert_eq!(status.code(), Some(130));
    assert_eq!(customer.join().unwrap().status, 200);
    world
        .home
        .run("call acme GET /crm/v3/objects/contacts")
        .ends_with(0);
}
