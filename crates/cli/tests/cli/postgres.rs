//! A PostgreSQL database as the store of several services.

use std::fs;

use test_postgres::Server;

use crate::web;
use crate::world::{Done, Home, Running, World};

#[test]
fn services_on_one_database_serve_what_one_of_them_connected() {
    let server = Server::shared();
    let world = World::new();
    let file = world.home.path("evergrant.toml");
    let config = fs::read_to_string(&file).unwrap();
    let sqlite = "url = \"sqlite://evergrant.db\"";
    assert!(config.contains(sqlite), "{config}");
    let postgres = format!("url = \"{}\"", server.url(&server.database()));
    fs::write(&file, config.replace(sqlite, &postgres)).unwrap();

    let known = world.home.run("migrate --check --json").ends_with(1).json()["schema_version_known"].clone();
    let checked = world.home.run("migrate --check").ends_with(1);
    assert!(
        checked.out.ends_with(&format!("schema version 0 of {known}\n")),
        "{checked:?}"
    );
    for line in ["migrate", "migrate --check"] {
        let done = world.home.run(line).ends_with(0);
        assert!(
            done.out
                .ends_with(&format!("schema version {known} of {known}\n")),
            "{done:?}"
        );
    }

    world.connect_acme();
    let key = world
        .home
        .run("keys create --name all --role admin")
        .ends_with(0)
        .out;
    let authorization = format!("Bearer {}", key.trim());
    let mut another = world.home.command(["serve"]);
    another.env("EVERGRANT_SERVER__LISTEN", "127.0.0.1:0");
    let services = [world.home.start("serve"), Running::begin("serve", &mut another)];
    let tokens = services.each_ref().map(|service| {
        let answer = web::send(
            "GET",
            &format!("{}/v1/connections/acme/token", service.address()),
            &[("Authorization", &authorization)],
            "",
        );
        assert_eq!(answer.status, 200, "{answer:?}");
        let answer: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        answer["access_token"].as_str().unwrap().to_owned()
    });
    assert_eq!(tokens[0], tokens[1]);
    assert_eq!(world.home.run("token acme").ends_with(0).out.trim(), tokens[0]);
}

#[test]
fn a_database_that_cannot_be_used_is_explained_without_its_password() {
    let home = Home::empty();
    home.run("init").ends_with(0);
    let check = |url: &str, code: i32, said: &str| {
        let mut command = home.command(["apps", "list"]);
        command.env("EVERGRANT_STORE__URL", url);
        let done = Done::of(url, command.output().unwrap()).ends_with(code);
        assert!(done.err.contains(said), "{done:?}");
        assert!(!format!("{done:?}").contains("hunter2"), "{done:?}");
    };
    check("postgres://e:hunter2@127.0.0.1:1/e", 5, "cannot be reached");
    check("postgres://e:hunter2@db/e?sslmode=off", 2, "sslmode");
    check("postgres://e:hunter2@localhost", 2, "names no database");
    check("mysql://e:hunter2@db/e", 2, "EVERGRANT_STORE__URL");
}
