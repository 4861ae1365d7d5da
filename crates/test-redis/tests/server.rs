//! What tests rely on when they stop and empty a server.

use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use test_redis::Server;

fn answers(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

#[test]
fn a_server_is_found_where_it_says_and_forgets_with_a_flush_and_with_a_restart() {
    let redis = Server::new();
    assert_eq!(redis.url(), format!("redis://127.0.0.1:{}/", redis.port()));
    assert!(answers(redis.port()));
    for forget in [Server::flush, Server::restart] {
        redis.run(&["SET", "lock:a", "1"]);
        assert_eq!(redis.run(&["GET", "lock:a"]), "1");
        forget(&redis);
        assert_eq!(redis.run(&["KEYS", "*"]), "");
    }
}

#[test]
fn a_stopped_server_answers_nobody_until_it_is_started_in_the_same_place() {
    let redis = Server::new();
    let url = redis.url();
    redis.stop();
    assert!(!answers(redis.port()));
    redis.start();
    assert!(answers(redis.port()));
    assert_eq!(redis.url(), url);
}

#[test]
fn a_frozen_server_forgets_nothing() {
    let redis = Server::new();
    redis.run(&["SET", "lock:a", "1"]);
    redis.freeze();
    redis.thaw();
    assert_eq!(redis.run(&["GET", "lock:a"]), "1");
}

/// Run by the next test in a process of its own, and harmless where it is run like any other.
#[test]
fn owner() {
    let redis = Server::new();
    assert!(answers(redis.port()));
    if std::env::var_os("STAYS").is_some() {
        println!("\n{}", redis.port());
        std::thread::park();
    }
}

#[test]
fn a_server_is_gone_with_its_owner_even_if_that_is_killed() {
    let mut owner = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "owner", "--nocapture"])
        .env("STAYS", "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program runs");
    let lines = BufReader::new(owner.stdout.take().expect("it is piped")).lines();
    let mut numbers = lines.filter_map(|line| line.expect("text").parse::<u16>().ok());
    let port = numbers.next().expect("it says where it listens");
    assert!(answers(port));
    owner.kill().expect("it runs");
    owner.wait().expect("it was killed");
    while answers(port) {
        std::thread::yield_now();
    }
}
