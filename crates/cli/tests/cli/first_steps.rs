//! From nothing to a call, as the README says it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use rustix::process::Signal;

use crate::web;
use crate::world::{Done, Home, Running, World};

#[test]
fn init_makes_what_serve_needs_and_shows_the_key_once() {
    let home = Home::empty();
    let made = home.run("init --dir made/here --json").ends_with(0).json();
    assert_eq!(made["config"], "made/here/evergrant.toml");
    assert_eq!(made["key_file"], "made/here/evergrant.key");
    let key = made["admin_key"].as_str().unwrap();
    assert!(key.starts_with("evg_"), "{key}");
    let permissions = |name: &str| fs::metadata(home.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(permissions("made/here/evergrant.key"), 0o600);
    assert_eq!(
        permissions("made/here/evergrant.db") & 0o077,
        0,
        "others can read the store"
    );
    for file in ["evergrant.toml", "evergrant.key", "evergrant.db"] {
        let content = fs::read(home.path("made/here").join(file)).unwrap();
        assert!(
            !content.windows(key.len()).any(|part| part == key.as_bytes()),
            "{file} holds the API key"
        );
    }
    let checked = home.run("migrate --check --json --config made/here/evergrant.toml");
    let checked = checked.ends_with(0).json();
    assert!(checked["schema_version"].is_u64(), "{checked}");
    assert_eq!(checked["schema_version"], checked["schema_version_known"]);
    let said = home.run("init --dir other").ends_with(0).out;
    assert!(
        said.contains("http://localhost:8484/oauth/callback") && said.contains("evg_"),
        "{said}"
    );
}

#[test]
fn init_overwrites_nothing_and_leaves_nothing_half_done() {
    for there in ["evergrant.toml", "evergrant.key", "evergrant.db"] {
        let home = Home::empty();
        fs::write(home.path(there), "mine").unwrap();
        let refused = home.run("init").ends_with(2);
        assert!(refused.err.contains(there), "{refused:?}");
        let left: Vec<_> = fs::read_dir(home.path(""))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, [there], "something else was written");
        assert_eq!(fs::read_to_string(home.path(there)).unwrap(), "mine");
    }
}

#[test]
fn an_init_that_fails_takes_back_what_it_wrote() {
    let home = Home::empty();
    // A file where the store wants a folder.
    fs::write(home.path("evergrant.db.holders"), "").unwrap();
    assert_ne!(home.run("init").code, 0);
    let left: Vec<_> = fs::read_dir(home.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["evergrant.db.holders"]);
}

#[test]
fn an_init_that_fails_leaves_tokens_alone_that_wait_in_a_lifeboat() {
    let home = Home::empty();
    let waiting = home.path("lifeboat/c1.7.2.x.entry");
    fs::create_dir(home.path("lifeboat")).unwrap();
    fs::set_permissions(home.path("lifeboat"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(&waiting, "sealed\n").unwrap();
    fs::write(home.path("evergrant.db.holders"), "").unwrap();
    assert_ne!(home.run("init").code, 0);
    assert_eq!(fs::read_to_string(waiting).unwrap(), "sealed\n");
}

#[test]
fn init_makes_its_api_key_in_the_store_that_the_environment_names() {
    let home = Home::empty();
    fs::create_dir(home.path("elsewhere")).unwrap();
    let run = |line: &str| {
        let mut command = home.command(line.split_whitespace());
        command.env("EVERGRANT_STORE__URL", "sqlite://elsewhere/shared.db");
        Done::of(line, command.output().unwrap()).ends_with(0)
    };
    let said = run("init").out;
    assert!(said.contains("elsewhere/shared.db"), "{said}");
    assert!(!home.path("evergrant.db").exists());
    let keys = run("keys list --json").json();
    assert_eq!(keys["items"][0]["name"], "admin", "{keys}");
}

#[test]
fn a_new_user_gets_from_init_to_calls_and_no_log_holds_a_secret() {
    let world = World::new();
    let mut serve = world.home.command(["serve"]);
    serve
        .env("EVERGRANT_LOG", "trace")
        .env("EVERGRANT_LOG__CALLS", "all");
    let serving = Running::begin("serve", &mut serve);

    // Beside the running service, on the store itself.
    let made = world
        .home
        .run("keys create --name app --role tokens --app crm --json")
        .ends_with(0)
        .json();
    let key = made["key"].as_str().unwrap();
    let shown = world.connect_acme();
    assert!(
        shown.contains("1001") && shown.contains("evergrant call acme GET"),
        "{shown}"
    );

    calls(&world, key);
    let tokens = tokens(&world);
    looks(&world);
    world
        .remote(&format!("keys revoke {}", made["id"].as_str().unwrap()))
        .ends_with(0);
    let mut revoked = world.home.command(["token", "acme", "--server", &world.url]);
    let revoked = Done::of("token", revoked.env("EVERGRANT_API_KEY", key).output().unwrap()).ends_with(2);
    assert!(revoked.err.contains("invalid_api_key"), "{revoked:?}");

    let ended = world.remote("connections disconnect acme").ends_with(0).out;
    assert!(ended.contains("acme is disconnected"), "{ended}");
    world.remote("token acme").ends_with(3);

    serving.signal(Signal::TERM);
    let (status, _, log) = serving.wait();
    assert!(status.success(), "{status}: {log}");
    assert!(log.contains("\"event\":\"call\""), "calls are not logged: {log}");
    for secret in tokens
        .iter()
        .map(String::as_str)
        .chain([key, &world.admin_key, "sim-secret", "evg_"])
    {
        assert!(!log.contains(secret), "a log line holds {secret}: {log}");
    }
}

/// Calls through the gateway: as an application would, and by command.
fn calls(world: &World, key: &str) {
    let gateway = format!("{}/gateway/acme/crm/v3/objects/contacts", world.url);
    let authorization = format!("Bearer {key}");
    let direct = web::send(
        "GET",
        &format!("{gateway}?limit=1"),
        &[("Authorization", &authorization)],
        "",
    );
    assert_eq!(direct.status, 200, "{direct:?}");

    let mut create = world
        .home
        .command(["call", "acme", "post", "/crm/v3/objects/contacts", "-i", "-d"]);
    create.arg(r#"{"properties":{"email":"ada@example.com"}}"#);
    let created = Done::of("call", create.output().unwrap()).ends_with(0);
    let id = created.json()["id"].as_str().unwrap().to_owned();
    assert!(
        created.err.contains("HTTP 201") && created.err.contains("evergrant-token-version: 1"),
        "{created:?}"
    );
    let read = world
        .remote(&format!(
            "call acme GET /crm/v3/objects/contacts/{id}?properties=email"
        ))
        .ends_with(0);
    assert_eq!(read.json()["properties"]["email"], "ada@example.com");
    let missing = world
        .remote("call acme GET /crm/v3/objects/contacts/404")
        .ends_with(1);
    assert!(missing.err.contains("the provider answered 404"), "{missing:?}");
    let refused = world.remote("call acme POST /oauth/v1/token").ends_with(1);
    assert!(refused.err.contains("use_evergrant"), "{refused:?}");
}

/// Tokens and their refresh; returns those that were shown.
fn tokens(world: &World) -> [String; 2] {
    let token = world.remote("token acme").ends_with(0).out;
    assert_eq!(token.lines().count(), 1);
    let answer = world
        .home
        .run("token acme --min-ttl 300 --json")
        .ends_with(0)
        .json();
    assert_eq!(answer["access_token"].as_str().unwrap(), token.trim_end());
    let young = world.remote("refresh acme").ends_with(0).out;
    assert!(
        young.contains("nothing redeemed") && young.contains("younger than"),
        "{young}"
    );
    let forced = world.home.run("refresh acme --force").ends_with(0).out;
    assert!(
        forced.contains("one refresh token redeemed, version 1 → 2"),
        "{forced}"
    );
    let again = world.home.run("refresh acme --force").ends_with(0).out;
    assert!(
        again.contains("nothing redeemed") && again.contains("10 s"),
        "{again}"
    );
    let newer = world.home.run("token acme").ends_with(0).out;
    assert_ne!(newer, token);
    [token, newer].map(|token| token.trim_end().to_owned())
}

/// What is there, as tables and as JSON.
fn looks(world: &World) {
    let listed = world
        .remote("connections list --app crm --status active --json")
        .ends_with(0)
        .json();
    assert_eq!(listed["items"][0]["account"]["id"], "1001");
    let plain = world.home.run("connections list -q nobody").ends_with(0).out;
    assert_eq!(
        plain,
        "ID\tAPP\tCUSTOMER\tACCOUNT\tHEALTH\tTOKEN EXPIRES\tLAST SUCCESS\n"
    );
    assert_eq!(
        world.remote("connections show acme --json").ends_with(0).json()["version"],
        2
    );
    assert!(
        world
            .home
            .run("apps list")
            .ends_with(0)
            .out
            .contains("/oauth/callback")
    );
    assert_eq!(
        world.remote("apps check crm --json").ends_with(0).json()["result"],
        "accepted"
    );
    let link = world.remote("reconnect acme --days 2").ends_with(0).out;
    assert!(link.starts_with(&format!("{}/connect/", world.url)), "{link}");
    let keys = world.remote("keys list --json").ends_with(0).json();
    assert_eq!(keys["items"].as_array().unwrap().len(), 2);
}

#[test]
fn lines_for_people_say_what_is_meant() {
    let world = World::new();
    world.connect_acme();
    world
        .home
        .run("keys create --name jobs --role gateway --app crm --customer a1 --connection a1 --connection a2")
        .ends_with(0);
    let keys = world.home.run("keys list").ends_with(0).out;
    assert!(
        keys.contains("app crm and customer a1 and connection a1, a2"),
        "{keys}"
    );
    let apps = world.home.run("apps list").ends_with(0).out;
    for endpoint in ["/oauth/authorize", "/token", "/introspect", "/revoke"] {
        assert!(apps.contains(endpoint), "{endpoint}: {apps}");
    }
    let kept = world
        .home
        .run("connections disconnect acme --revoke never")
        .ends_with(0)
        .out;
    assert!(kept.contains("not told, as you asked"), "{kept}");
}

#[test]
fn a_list_is_whole_however_many_pages_it_has() {
    let world = World::new();
    let serving = world.home.start("serve");
    let bearer = format!("Bearer {}", world.admin_key);
    let headers = [
        ("Authorization", bearer.as_str()),
        ("Content-Type", "application/json"),
    ];
    for _ in 0..101 {
        let made = web::send(
            "POST",
            &format!("{}/v1/keys", world.url),
            &headers,
            r#"{"name":"n","role":"gateway"}"#,
        );
        assert_eq!(made.status, 201);
    }
    drop(serving);
    let keys = world.home.run("keys list --json").ends_with(0).json();
    assert_eq!(keys["items"].as_array().unwrap().len(), 102);
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let world = World::new();
    world.connect_acme();
    for line in [
        "connections list",
        "connections list --json",
        "keys list",
        "explain --help",
    ] {
        let mut command = world.home.command(line.split_whitespace());
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = String::new();
        let mut out = BufReader::with_capacity(1, child.stdout.take().unwrap());
        out.read_line(&mut first).unwrap();
        drop(out);
        let ended = Done::of(line, child.wait_with_output().unwrap()).ends_with(0);
        assert_eq!(ended.err, "", "{line}");
    }
}

#[test]
fn a_key_that_may_connect_and_not_read_records_connects_over_http() {
    let world = World::new();
    let _serving = world.home.start("serve");
    let key = world
        .home
        .run("keys create --name app --role tokens")
        .ends_with(0)
        .out;
    std::fs::write(world.home.path("key"), key).unwrap();
    let line = format!(
        "connect --app crm --customer acme --id acme --no-browser --server {} --api-key-file key",
        world.url
    );
    let connecting = world.home.start(&line);
    assert!(
        connecting.first_line.starts_with(&world.url),
        "{}",
        connecting.first_line
    );
    web::consent(&connecting.first_line, 1001);
    let (status, out, log) = connecting.wait();
    assert!(
        status.success() && out.contains("evergrant call acme GET"),
        "{status}: {out} {log}"
    );

    // The service reaches the provider for whoever has the key.
    let token = world
        .home
        .run(&format!("token acme --server {} --api-key-file key", world.url))
        .ends_with(0)
        .out;
    assert!(token.len() > 20, "{token}");
    world
        .home
        .run(&format!(
            "connections list --server {} --api-key-file key",
            world.url
        ))
        .ends_with(2);
}
