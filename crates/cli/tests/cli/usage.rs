//! Wrong use and wrong configuration: exit code 2, and a line that says where.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::process::Stdio;

use crate::world::{Done, Home};

#[track_caller]
fn check(home: &Home, line: &str, code: i32, said: &str) {
    let done = home.run(line).ends_with(code);
    assert!(
        done.err.contains(said),
        "{line}: {said:?} is not in {:?}",
        done.err
    );
}

#[test]
fn wrong_use_ends_with_2_and_says_what_is_right() {
    let home = Home::empty();
    check(&home, "", 2, "Usage");
    check(&home, "sevre", 2, "serve");
    check(&home, "token", 2, "<ID>");
    check(&home, "token ../etc", 2, "a connection id is");
    check(&home, "keys create --name n --role boss", 2, "gateway");
    check(&home, "keys create --name n --role admin --expires 90", 2, "90s");
    check(
        &home,
        "call acme GET /x -H Authorization:x",
        2,
        "leave Authorization out",
    );
    check(
        &home,
        "call acme GET https://api.hubapi.com/crm/v3/x",
        2,
        "the path alone",
    );
    check(
        &home,
        "token acme --server http://me:secret@localhost",
        2,
        "must not hold",
    );
    check(&home, "connect --app Crm --customer x", 2, "an app name is");
    check(
        &home,
        "serve --server http://localhost:1",
        2,
        "leave --server out",
    );
    check(
        &home,
        "token acme --server http://localhost:1",
        2,
        "EVERGRANT_API_KEY",
    );
    check(&home, "token acme --server ftp://localhost", 2, "http or https");
}

#[test]
fn without_a_configuration_a_command_names_init() {
    check(&Home::empty(), "token acme", 2, "evergrant init");
    check(&Home::empty(), "serve --config no.toml", 2, "no.toml");
}

#[test]
fn a_typo_in_the_configuration_is_named_with_its_line() {
    let home = Home::empty();
    home.run("init").ends_with(0);
    fs::write(
        home.path("evergrant.toml"),
        "[server]\nlisten = \"127.0.0.1:0\"\nlissten = \"x\"\n",
    )
    .unwrap();
    for line in ["serve", "apps list"] {
        check(&home, line, 2, "evergrant.toml:3");
        check(&home, line, 2, "lissten");
    }
}

#[test]
fn a_service_that_is_not_there_ends_with_5() {
    let home = Home::empty();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    fs::write(home.path("key"), "evg_x\n").unwrap();
    check(
        &home,
        &format!("token acme --server http://{address} --api-key-file key"),
        5,
        "does not answer",
    );
}

#[test]
fn help_and_version_end_with_0() {
    let home = Home::empty();
    assert!(home.run("--version").ends_with(0).out.starts_with("evergrant 0."));
    let help = home.run("--help").ends_with(0).out;
    for command in [
        "demo",
        "init",
        "serve",
        "migrate",
        "apps",
        "connect",
        "connections",
        "token",
        "call",
        "refresh",
        "reconnect",
        "explain",
        "keys",
        "sim",
    ] {
        assert!(
            help.contains(&format!("\n  {command} ")),
            "{command} is not in {help}"
        );
    }
}

#[test]
fn a_pasted_answer_is_explained_without_any_configuration() {
    let home = Home::empty();
    let pasted = r#"{"status":"error","message":"This app hasn't been granted all required scopes","category":"MISSING_SCOPES"}"#;
    fs::write(home.path("answer"), format!("HTTP/1.1 403 Forbidden\n\n{pasted}")).unwrap();
    let by_file = home.run("explain answer --json").ends_with(0).json();
    assert_eq!(
        (&by_file["class"], &by_file["refresh_helps"]),
        (&"permission_denied".into(), &false.into())
    );
    assert!(by_file["documentation_url"].is_string(), "{by_file}");

    let mut explaining = home
        .command(["explain"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    explaining
        .stdin
        .take()
        .unwrap()
        .write_all(b"HTTP/1.1 429 Too Many Requests\n\n")
        .unwrap();
    let by_stdin = Done::of("explain", explaining.wait_with_output().unwrap()).ends_with(0);
    assert!(by_stdin.out.contains("rate_limited"), "{by_stdin:?}");

    check(&home, "explain nothing-there", 2, "nothing-there");
    fs::write(home.path("poem"), "roses are red").unwrap();
    check(&home, "explain poem", 1, "Paste the whole answer");
}
