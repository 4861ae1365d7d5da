//! Many at once, and slow ones: those who behave go on.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::site::Site;
use crate::upstream::After;
use crate::wire::{Answer, Wire};

/// Far less than any of the times that a slow client is given.
const PROMPT: Duration = Duration::from_secs(10);

fn call(site: &Site, key: &str, path: &str) -> Wire {
    let mut wire = site.wire();
    wire.send(
        format!(
            "GET /gateway/c1/{path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n"
        )
        .as_bytes(),
    );
    wire
}

fn another_key(site: &Site) -> String {
    let made = site.api("POST", "/v1/keys", &json!({"name": "n", "role": "gateway"}));
    let made: Value = serde_json::from_slice(&made.body).unwrap();
    made["key"].as_str().unwrap().to_owned()
}

fn assert_overloaded(answer: &Answer) {
    let shown = format!("{:?} {}", answer.headers, answer.text());
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (503, "overloaded"),
        "{shown}"
    );
    assert_eq!(answer.header("x-should-retry"), "true", "{shown}");
    let seconds: u64 = answer.header("retry-after").parse().unwrap();
    assert!((1..=30).contains(&seconds), "{shown}");
}

#[test]
fn a_key_that_floods_is_refused_at_once_and_the_others_go_on() {
    let site = Site::with("[limits]\nin_flight_per_key = 3\nin_flight = 5");
    let (flooding, healthy) = (another_key(&site), another_key(&site));
    let held: Vec<Wire> = (0..3).map(|_| call(&site, &flooding, "hold")).collect();
    site.upstream.wait_for_held(3);
    let begun = Instant::now();
    for _ in 0..20 {
        assert_overloaded(&call(&site, &flooding, "x").answer(false).unwrap());
    }
    assert_eq!(call(&site, &healthy, "x").answer(false).unwrap().status, 200);
    // All together may be no more than five.
    let more: Vec<Wire> = (0..2).map(|_| call(&site, &healthy, "hold")).collect();
    site.upstream.wait_for_held(5);
    assert_overloaded(&call(&site, &site.key, "x").answer(false).unwrap());
    assert!(begun.elapsed() < PROMPT, "{:?}", begun.elapsed());
    // A limit that is raised holds for the calls that follow.
    site.upstream.release();
    for mut wire in held.into_iter().chain(more) {
        assert_eq!(wire.answer(false).unwrap().status, 200);
    }
    assert_eq!(call(&site, &flooding, "x").answer(false).unwrap().status, 200);
    let seen = site.upstream.taken();
    assert_eq!(seen.len(), 5 + 2, "what was refused was not sent: {seen:?}");
}

#[test]
fn who_hangs_up_gives_the_place_back() {
    let site = Site::with("[limits]\nin_flight_per_key = 2");
    let held: Vec<Wire> = (0..2).map(|_| call(&site, &site.key, "hold")).collect();
    site.upstream.wait_for_held(2);
    assert_overloaded(&call(&site, &site.key, "x").answer(false).unwrap());
    drop(held);
    let begun = Instant::now();
    while call(&site, &site.key, "x").answer(false).unwrap().status != 200 {
        assert!(begun.elapsed() < PROMPT, "the places are not given back");
        std::thread::yield_now();
    }
    site.upstream.release();
}

#[test]
fn who_is_there_and_asks_for_nothing_makes_room() {
    let site = Site::with("[limits]\nconnections = 20");
    let begun = Instant::now();
    // Half of them have begun a request that never ends.
    let mut idle: Vec<Wire> = (0..60)
        .map(|n| {
            let mut wire = site.wire();
            if n % 2 == 0 {
                wire.send(b"GET /healthz HTTP/1.1\r\nHost: loc");
            }
            wire
        })
        .collect();
    for round in 0..5 {
        site.probe(&format!("idle-{round}"));
    }
    assert!(
        begun.elapsed() < PROMPT,
        "they waited for the idle ones: {:?}",
        begun.elapsed()
    );
    assert!(idle[0].ends(), "the one that was there longest has left");
}

#[test]
fn a_thousand_idle_clients_and_fifty_slow_readers_are_no_trouble() {
    let site = Site::new();
    let body = "x".repeat(8 * 1024 * 1024);
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    site.upstream.answers("large", answer.as_bytes(), After::KeepOpen);
    let mut slow: Vec<Wire> = (0..50).map(|_| call(&site, &site.key, "answer/large")).collect();
    let idle: Vec<Wire> = (0..1000).map(|_| site.wire()).collect();
    let begun = Instant::now();
    for round in 0..20 {
        site.probe(&format!("crowd-{round}"));
    }
    assert!(begun.elapsed() < PROMPT, "{:?}", begun.elapsed());
    // What was read slowly is whole.
    for wire in &mut slow[..3] {
        let answer = wire.answer(false).unwrap();
        assert!(answer.is_whole && answer.body.len() == body.len());
    }
    drop(idle);
}

#[test]
fn a_configuration_that_is_read_again_under_load_drops_no_call() {
    let site = Site::with("[limits]\nin_flight_per_key = 100\n[log]\ncalls = \"off\"");
    let file = site.configuration();
    let first = std::fs::read_to_string(&file).unwrap();
    let is_over = AtomicBool::new(false);
    let calls = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let answer = call(&site, &site.key, "x").answer(false).unwrap();
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let read = |log: &str| {
            log.matches("configuration_read").count() + log.matches("configuration_refused").count()
        };
        for round in 0..20 {
            // Every fifth is broken.
            let text = match round % 5 {
                4 => first.replace("[limits]", "[limitz]"),
                _ => first.replace("= 100", &format!("= {}", 100 + round)),
            };
            std::fs::write(&file, text).unwrap();
            kill_process(site.pid(), Signal::HUP).unwrap();
            // Calls go on before it is read and after.
            let enough = calls.load(Ordering::Relaxed) + 10;
            while read(&site.log()) <= round || calls.load(Ordering::Relaxed) < enough {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    // And what is read holds: no call at a time is none.
    std::fs::write(&file, first.replace("= 100", "= 1").replace("\"off\"", "\"all\"")).unwrap();
    kill_process(site.pid(), Signal::HUP).unwrap();
    while site.log().matches("configuration_read").count() < 17 {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(call(&site, &site.key, "x").answer(false).unwrap().status, 200);
    assert!(
        site.log().contains("\"event\":\"call\""),
        "every call gets a line now"
    );
    let held = call(&site, &site.key, "hold");
    site.upstream.wait_for_held(1);
    assert_overloaded(&call(&site, &site.key, "x").answer(false).unwrap());
    site.upstream.release();
    drop(held);
}

#[test]
fn what_is_in_flight_ends_well_when_the_service_is_told_to_stop() {
    let mut site = Site::new();
    let mut held = call(&site, &site.key, "hold");
    site.upstream.wait_for_held(1);
    let body = "x".repeat(8 * 1024 * 1024);
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    site.upstream.answers("large", answer.as_bytes(), After::KeepOpen);
    let mut slow = call(&site, &site.key, "answer/large");
    slow.take(1).unwrap();
    // Idle ones of both versions, which are not waited for.
    let mut idle = site.wire();
    idle.send(&site.filled(b"GET /gateway/c1/x HTTP/1.1\r\nHost: localhost\r\n{auth}\r\n\r\n"));
    assert_eq!(idle.answer(false).unwrap().status, 200);
    let mut idle2 = site.wire();
    idle2.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    idle2.take(9).unwrap();
    kill_process(site.pid(), Signal::TERM).unwrap();
    assert!(idle.ends(), "an idle connection is ended");
    // No new ones: the listener is gone.
    let begun = Instant::now();
    while std::net::TcpStream::connect(&site.address).is_ok() {
        assert!(begun.elapsed() < PROMPT);
        std::thread::yield_now();
    }
    site.upstream.release();
    let answer = held.answer(false).unwrap();
    assert_eq!((answer.status, answer.header("connection")), (200, "close"));
    let answer = slow.answer_begun_with(1);
    assert!(answer.is_whole && answer.body.len() == body.len());
    drop(idle2);
    assert!(site.ended().success(), "{}", site.log());
    assert!(site.log().contains("\"event\":\"stopped\""), "{}", site.log());
}
