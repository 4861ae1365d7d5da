//! The demo: its numbers hold, and it leaves nothing behind.

use rustix::process::Signal;

use crate::web;
use crate::world::Home;

#[test]
fn the_demo_ends_with_numbers_that_hold() {
    let home = Home::empty();
    let done = home.run("demo --exit-after 8 --json").ends_with(0);
    let summary = done.json();
    let number = |member: &str| {
        summary[member]
            .as_u64()
            .unwrap_or_else(|| panic!("{member}: {summary}"))
    };
    assert!(number("calls") > 200, "{summary}");
    assert_eq!(number("failed_calls"), 0, "{summary}");
    assert_eq!(number("failed_otherwise"), 0, "{summary}");
    assert_eq!(number("redeemed_twice"), 0, "{summary}");
    assert!(number("expiries") >= 5, "{summary}");
    assert_eq!(number("redemptions"), number("expiries"), "{summary}");
    assert_eq!(summary["redemptions_per_expiry"], 1.0, "{summary}");
    assert_eq!(
        summary["stampede"]["callers"], summary["stampede"]["answered"],
        "{summary}"
    );
    assert_eq!(summary["stampede"]["redemptions"], 1, "{summary}");
    assert_eq!(summary["revoked"]["connection"], "initech", "{summary}");
    assert_eq!(summary["revoked"]["reason"], "grant_refused", "{summary}");
    assert!(
        summary["revoked"]["reconnect_url"]
            .as_str()
            .unwrap()
            .contains("/connect/"),
        "{summary}"
    );
    assert!(
        summary["revoked"]["calls_refused"].as_u64().unwrap() > 0,
        "{summary}"
    );
    let named: Vec<_> = summary["named"]
        .as_array()
        .unwrap()
        .iter()
        .map(|named| (named["connection"].as_str(), named["cause"].as_str()))
        .collect();
    assert_eq!(
        named,
        [
            (Some("stark"), Some("stale_token_reuse")),
            (Some("wonka"), Some("queue_delay")),
            (Some("wayne"), Some("missing_scopes")),
        ],
        "{summary}"
    );
    assert_eq!(summary["ok"], true, "{summary}");
    assert!(
        std::fs::read_dir(home.path("")).unwrap().next().is_none(),
        "the demo wrote into the user's folder"
    );
}

#[test]
fn ctrl_c_ends_the_demo_with_its_summary() {
    let home = Home::empty();
    let mut demo = home.start("demo");
    let service = demo.address();
    assert!(demo.next_line().contains("8 portals connected"));
    assert_eq!(
        web::send("GET", &format!("{service}/healthz"), &[], "").status,
        200
    );
    demo.signal(Signal::INT);
    let (status, out, log) = demo.wait();
    assert!(status.success(), "{status}: {log}");
    assert!(
        out.contains("failed because of a token") && out.contains("redeemed twice"),
        "{out}"
    );
}
