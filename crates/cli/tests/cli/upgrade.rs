//! A rolling upgrade, as a process of the version before meets it: the schema is newer than what it knows.

use std::fs;

use rustix::process::Signal;
use test_postgres::Server;

use crate::world::{Running, World};

/// What the next version's migration does to a database whose schema has this history.
fn next_version(history: &str, next: i64) -> String {
    format!(
        "ALTER TABLE connections ADD COLUMN of_the_future TEXT NOT NULL DEFAULT 'x';
         CREATE TABLE things_of_the_future (id TEXT PRIMARY KEY);
         INSERT INTO {history} (version, name, applied_on, checksum) VALUES ({next}, 'next', '', '0')"
    )
}

fn meets_the_next_version(world: &World, history: &str, sql: &dyn Fn(&str)) {
    let migrated = world.home.run("migrate --json").ends_with(0).json();
    let known = migrated["schema_version_known"].as_i64().unwrap();
    let next = known + 1;
    world.connect_acme();
    sql(&next_version(history, next));
    for line in ["migrate --check", "migrate"] {
        let done = world.home.run(line).ends_with(0);
        assert!(
            done.out.ends_with(&format!(
                "schema version {next} of {known}, which is newer; this Evergrant may use it as it is\n"
            )),
            "{done:?}"
        );
        let json = world.home.run(&format!("{line} --json")).ends_with(0).json();
        assert_eq!(
            json,
            serde_json::json!({"schema_version": next, "schema_version_known": known})
        );
    }
    let serve = || {
        let mut command = world.home.command(["serve"]);
        command.env("EVERGRANT_SERVER__LISTEN", "127.0.0.1:0");
        Running::begin("serve", &mut command)
    };
    let running = serve();
    world.home.run("token acme").ends_with(0);
    running.signal(Signal::TERM);
    let (status, _, log) = running.wait();
    assert!(status.success(), "{log}");
    assert_eq!(log.matches("\"schema_is_newer\"").count(), 1, "{log}");

    // From now on the next version means to be alone.
    sql(&format!("UPDATE schema_use SET oldest = {next}"));
    for line in ["migrate --check", "migrate", "serve", "token acme"] {
        let refused = world.home.run(line).ends_with(2);
        assert!(
            refused.err.contains(&format!(
                "schema version {next}, for programs that know version {next} or later"
            )) && refused.err.contains("use the newer Evergrant"),
            "{refused:?}"
        );
    }
}

#[test]
fn the_next_versions_file_is_used_until_it_says_that_it_may_not_be() {
    let world = World::new();
    let path = world.home.path("evergrant.db");
    meets_the_next_version(&world, "refinery_schema_history", &|statements| {
        rusqlite::Connection::open(&path)
            .unwrap()
            .execute_batch(statements)
            .unwrap();
    });
}

#[test]
fn the_next_versions_database_is_used_until_it_says_that_it_may_not_be() {
    let server = Server::shared();
    let database = server.database();
    let world = World::new();
    let file = world.home.path("evergrant.toml");
    let config = fs::read_to_string(&file).unwrap();
    let postgres = format!("url = \"{}\"", server.url(&database));
    fs::write(
        &file,
        config.replace("url = \"sqlite://evergrant.db\"", &postgres),
    )
    .unwrap();
    meets_the_next_version(&world, "evergrant_schema_history", &|statements| {
        server.sql(&database, statements);
    });
}
