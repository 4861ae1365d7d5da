//! Records in and out, one a line.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::world::World;

/// A refresh token that the simulator issued for this portal.
fn grant(world: &World, portal: u32) -> String {
    let grant = world.steer("grants", &json!({"hub_id": portal}).to_string());
    grant["refresh_token"].as_str().unwrap().to_owned()
}

fn lines(records: &[Value]) -> String {
    records
        .iter()
        .map(Value::to_string)
        .collect::<Vec<_>>()
        .join("\n")
        + "\n"
}

fn ids(listed: &Value) -> Vec<&str> {
    let items = listed["items"].as_array().unwrap();
    items
        .iter()
        .map(|record| record["id"].as_str().unwrap())
        .collect()
}

#[test]
fn records_are_taken_over_line_by_line_and_again_without_harm() {
    let world = World::new();
    let (one, two) = (grant(&world, 1001), grant(&world, 1002));
    let file = lines(&[
        json!({"app": "crm", "customer": "a", "id": "one", "refresh_token": one, "account": 1001}),
        json!({"app": "nope", "customer": "b", "refresh_token": "canary"}),
        json!({"app": "crm", "customer": "b", "id": "dead", "refresh_token": "canary"}),
        json!({"app": "crm", "customer": "b", "id": "two", "refresh_token": two}),
    ]);
    fs::write(world.home.path("grants.jsonl"), format!("{file}canary\n")).unwrap();
    let outcome = |line: &str, code| {
        let done = world
            .home
            .run(&format!("connections import --json {line}"))
            .ends_with(code);
        assert!(
            !done.err.contains("canary") && !done.out.contains("canary"),
            "{done:?}"
        );
        let [imported, skipped, refused] =
            ["imported", "skipped", "refused"].map(|member| done.json()[member].as_u64().unwrap());
        (imported, skipped, refused)
    };
    let listed = || world.home.run("connections list --json").ends_with(0).json();

    // Whether a refresh token lives is not asked.
    assert_eq!(outcome("--dry-run grants.jsonl", 1), (3, 0, 2));
    assert!(ids(&listed()).is_empty());
    assert_eq!(outcome("grants.jsonl --report refused.jsonl", 1), (2, 0, 3));
    let report = fs::read_to_string(world.home.path("refused.jsonl")).unwrap();
    assert!(!report.contains("canary"), "{report}");
    let refused: Vec<(u64, String)> = report
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|line| {
            (
                line["line"].as_u64().unwrap(),
                line["code"].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    let expected = [(2, "unknown_app"), (3, "grant_inactive"), (5, "bad_request")];
    assert_eq!(refused, expected.map(|(line, code)| (line, code.to_owned())));
    assert_eq!(outcome("grants.jsonl", 1), (0, 0, 5));
    assert_eq!(outcome("grants.jsonl --on-conflict skip", 1), (0, 2, 3));
    assert_eq!(ids(&listed()), ["one", "two"]);
    for id in ["one", "two"] {
        world
            .home
            .run(&format!("call {id} GET /crm/v3/objects/contacts"))
            .ends_with(0);
    }
}

#[test]
fn newer_records_replace_older_ones_and_dead_ones_are_found_before_they_are_stored() {
    let world = World::new();
    let (one, two) = (grant(&world, 1001), grant(&world, 1002));
    let ends = |minutes: i64| (jiff::Timestamp::now() + jiff::SignedDuration::from_mins(minutes)).to_string();
    let record = |id: &str, refresh_token: &str, portal: u32, minutes: i64| json!({"app": "crm", "customer": id, "id": id, "refresh_token": refresh_token, "access_token": "imported", "account": portal, "expires_at": ends(minutes)});
    let write = |name: &str, records: &[Value]| fs::write(world.home.path(name), lines(records)).unwrap();
    write(
        "first.jsonl",
        &[
            record("one", "was-there", 1001, 10),
            record("two", &two, 1002, 20),
        ],
    );
    write(
        "second.jsonl",
        &[
            record("one", &one, 1001, 15),
            record("two", "canary", 1002, 15),
            record("three", "canary-dead", 1003, 15),
        ],
    );
    let outcome = |line: &str, code| {
        let done = world
            .home
            .run(&format!("connections import --json {line}"))
            .ends_with(code);
        assert!(!done.err.contains("canary"), "{done:?}");
        ["imported", "replaced", "skipped", "refused"].map(|member| done.json()[member].as_u64().unwrap())
    };
    assert_eq!(outcome("first.jsonl --on-conflict newer", 0), [2, 0, 0, 0]);
    // A line whose refresh token is dead is refused, whether it is newer or not.
    let verified = "second.jsonl --on-conflict newer --verify --report refused.jsonl";
    assert_eq!(outcome(&format!("{verified} --dry-run"), 1), [1, 0, 0, 2]);
    assert_eq!(outcome(verified, 1), [0, 1, 0, 2]);
    let report = fs::read_to_string(world.home.path("refused.jsonl")).unwrap();
    assert!(!report.contains("canary"), "{report}");
    for (line, said) in report.lines().zip([2, 3]) {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(
            (&line["line"], &line["code"]),
            (&json!(said), &json!("grant_inactive")),
            "{report}"
        );
    }
    // Again, it is there already; without being asked about, what is older is passed over and what is new is taken.
    assert_eq!(outcome(verified, 1), [0, 0, 1, 2]);
    assert_eq!(outcome("second.jsonl --on-conflict newer", 0), [1, 0, 2, 0]);
    let version = |id: &str| {
        let shown = world
            .home
            .run(&format!("connections show {id} --json"))
            .ends_with(0);
        shown.json()["version"].as_u64().unwrap()
    };
    assert_eq!((version("one"), version("two"), version("three")), (2, 1, 1));
    let said = world
        .home
        .run("connections import first.jsonl --on-conflict newer")
        .ends_with(0);
    assert_eq!(
        said.out.trim(),
        "0 records imported, 2 were here already, 0 refused"
    );
}

#[test]
fn an_export_holds_no_token_and_reads_as_an_import_does() {
    let world = World::new();
    let token = grant(&world, 1001);
    let commas = format!(
        "app,customer,id,refresh_token,scopes,account\ncrm,\"a, b\",one,{token},oauth crm.objects.contacts.read,1001\n"
    );
    fs::write(world.home.path("grants.csv"), commas).unwrap();
    world.home.run("connections import grants.csv").ends_with(0);
    world
        .home
        .run("call one GET /crm/v3/objects/contacts")
        .ends_with(0);
    let done = world.home.run("connections export -").ends_with(0);
    let record: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(
        (&record["id"], &record["customer"], &record["account"]),
        (&json!("one"), &json!("a, b"), &json!("1001"))
    );
    world.home.run("connections export out.csv").ends_with(0);
    let written = fs::read_to_string(world.home.path("out.csv")).unwrap();
    assert!(!done.out.contains(&token) && !written.contains(&token));
    let access = world.home.run("token one").ends_with(0).out;
    assert!(!done.out.contains(access.trim()) && !written.contains(access.trim()));
    // With the tokens: for another store, and only from the store itself.
    world
        .home
        .run("connections export secrets.jsonl --include-secrets")
        .ends_with(0);
    let secrets = fs::read_to_string(world.home.path("secrets.jsonl")).unwrap();
    assert!(secrets.contains(&token) && secrets.contains(access.trim()));
    let mode = fs::metadata(world.home.path("secrets.jsonl"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    world
        .home
        .run("connections export secrets.jsonl --include-secrets")
        .ends_with(2);
    let told = world.home.run("events --connection one --json").ends_with(0).out;
    let exports = told.matches("written to an export").count();
    assert_eq!(exports, 1, "what was not written was not taken: {told}");
    fs::write(world.home.path("key"), "evg_x\n").unwrap();
    world
        .home
        .run("connections export x --include-secrets --server http://localhost:1 --api-key-file key")
        .ends_with(2);
    world
        .home
        .run("connections disconnect one --revoke never --purge")
        .ends_with(0);
    world.home.run("connections import secrets.jsonl").ends_with(0);
    assert_eq!(
        world.home.run("token one").ends_with(0).out,
        access,
        "nothing was redeemed"
    );
    // What is there is not written over, and is the same record to an import.
    world.home.run("connections export out.csv").ends_with(2);
    let dry = world
        .home
        .run("connections import --dry-run out.csv")
        .ends_with(1);
    assert!(dry.err.contains("refresh_token"), "{dry:?}");
}
