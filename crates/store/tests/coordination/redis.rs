//! What `redis` promises besides: order, and that whatever becomes of Redis costs waiting and nothing else.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use evergrant_domain::Version;
use evergrant_store::ByRedis;
use evergrant_store::contract::LeaseAnswer;
use evergrant_store::coordination::{Coordination, Turn};
use futures_util::future::join_all;
use test_redis::Server;
use tokio::task::{block_in_place, yield_now};
use tokio::time::{Instant, timeout};

use crate::database::id;
use crate::fleet::{Fleet, LONG, Mode, Process, SHORT};
use crate::proxy::Proxy;

/// How long a turn may take at most where Redis does not answer: what is waited for an answer, and a busy machine.
const BOUND: Duration = Duration::from_secs(5);
const NEVER: Duration = Duration::from_secs(3600);

fn run(redis: &Server, words: &[&str]) -> String {
    block_in_place(|| redis.run(words))
}

/// Returns once so many wait in line for a connection's turn.
async fn until_so_many_wait(redis: &Server, name: &str, many: usize) {
    while run(redis, &["ZCARD", &format!("evergrant:queue:{{{name}}}")]) != many.to_string() {
        yield_now().await;
    }
}

/// Returns once a turn that is held keeps others out: the mode works.
async fn until_turns_exclude(one: &Process, other: &Process) {
    loop {
        let guard = one.turn_at_last().await;
        if matches!(other.turn(SHORT).await, Turn::NotYet) {
            drop(guard);
            return;
        }
        drop(guard);
    }
}

/// However many call, one redeems, whatever Redis does meanwhile, and none waits for longer than its bound.
async fn one_redeems(fleet: &Fleet, version: i64) {
    let processes = join_all((0..3).map(|number| fleet.process(number))).await;
    let redeeming = AtomicUsize::new(0);
    let callers = processes.iter().flat_map(|process| [process; 3]);
    let calls = callers.map(|process| process.call(Version::new(version), &redeeming));
    let redeemed = timeout(3 * BOUND, join_all(calls)).await.unwrap();
    assert_eq!(redeemed.iter().filter(|one| **one).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_wait_are_woken_in_the_order_in_which_they_came() {
    let redis = Server::shared();
    let process = || ByRedis::open(&redis.url()).unwrap().looking_every(NEVER);
    let held = process();
    let name = "woken-in-order";
    let connection = id(name);
    let Turn::Mine(guard) = held.turn(&connection, LONG).await else {
        panic!("nobody else wants it");
    };
    let served = Arc::new(Mutex::new(Vec::new()));
    let mut waiting = Vec::new();
    for number in 0..5 {
        let (turns, connection, served) = (process(), connection.clone(), Arc::clone(&served));
        waiting.push(tokio::spawn(async move {
            let turn = turns.turn(&connection, LONG).await;
            served.lock().unwrap().push(number);
            assert!(matches!(turn, Turn::Mine(_)), "nobody looks by itself: {turn:?}");
        }));
        until_so_many_wait(redis, name, number + 1).await;
    }
    drop(guard);
    for one in waiting {
        one.await.unwrap();
    }
    assert_eq!(*served.lock().unwrap(), [0, 1, 2, 3, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_stops_waiting_wakes_the_next_one() {
    let redis = Server::shared();
    let process = || ByRedis::open(&redis.url()).unwrap().looking_every(NEVER);
    let held = process();
    let name = "leaves-the-line";
    let (turn, queue) = (
        format!("evergrant:turn:{{{name}}}"),
        format!("evergrant:queue:{{{name}}}"),
    );
    let Turn::Mine(guard) = held.turn(&id(name), LONG).await else {
        panic!("nobody else wants it");
    };
    // The first in line is gone, and will be woken in vain.
    run(redis, &["ZADD", &queue, "0", "gone"]);
    let wait = |turns: ByRedis| tokio::spawn(async move { turns.turn(&id(name), LONG).await });
    let leaving = wait(process());
    until_so_many_wait(redis, name, 2).await;
    let staying = wait(process());
    until_so_many_wait(redis, name, 3).await;
    drop(guard);
    until_so_many_wait(redis, name, 2).await;
    assert_eq!(run(redis, &["EXISTS", &turn]), "0", "nobody was woken");
    leaving.abort();
    assert!(leaving.await.unwrap_err().is_cancelled());
    let turn = staying.await.unwrap();
    assert!(matches!(turn, Turn::Mine(_)), "{turn:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_lives_as_long_as_it_is_held() {
    let redis = Server::shared();
    let life = Duration::from_secs(1);
    let turns = ByRedis::open(&redis.url()).unwrap().living(life);
    let connection = id("lives-on");
    let Turn::Mine(guard) = turns.turn(&connection, LONG).await else {
        panic!("nobody else wants it");
    };
    let left = || {
        run(redis, &["PTTL", "evergrant:turn:{lives-on}"])
            .parse::<i64>()
            .unwrap()
    };
    for _ in 0..3 {
        let mut before = left();
        loop {
            let now = left();
            assert!(now > 0, "it has ended while it was held");
            if now > before {
                break;
            }
            before = now;
            yield_now().await;
        }
    }
    drop(guard);
    while left() > 0 {
        yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_forgets_everything_costs_no_more_than_waiting() {
    let redis = block_in_place(Server::new);
    let fleet = Fleet::waiting_in(&redis.url(), &[Mode::Redis]).await;
    let (one, other) = (fleet.process(0).await, Arc::new(fleet.process(1).await));
    let guard = one.turn_at_last().await;
    let LeaseAnswer::Taken { lease, .. } = one.take(Version::FIRST).await else {
        panic!("nobody else wants it");
    };
    let waiting = tokio::spawn({
        let other = Arc::clone(&other);
        async move { other.turn_at_last().await }
    });
    until_so_many_wait(&redis, &fleet.name, 1).await;
    block_in_place(|| redis.flush());
    // Nobody is woken, for who was to be woken is forgotten, too.
    let second = timeout(BOUND, waiting).await.unwrap().unwrap();
    let asked = other.take(Version::FIRST).await;
    assert!(
        matches!(asked, LeaseAnswer::Busy),
        "the store is the judge: {asked:?}"
    );
    one.land(&lease).await;
    // It gives back a turn that is another one's now, and takes nothing from it.
    drop(guard);
    assert!(matches!(one.turn(SHORT).await, Turn::NotYet));
    drop(second);
    one_redeems(&fleet, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_restarts_or_stays_away_costs_no_more_than_waiting() {
    let redis = block_in_place(Server::new);
    let fleet = Fleet::waiting_in(&redis.url(), &[Mode::Redis]).await;
    let (one, other) = (fleet.process(0).await, Arc::new(fleet.process(1).await));
    let guard = one.turn_at_last().await;
    let waiting = tokio::spawn({
        let other = Arc::clone(&other);
        async move { other.turn_at_last().await }
    });
    until_so_many_wait(&redis, &fleet.name, 1).await;
    block_in_place(|| redis.restart());
    let second = timeout(BOUND, waiting).await.unwrap().unwrap();
    drop((guard, second));
    timeout(3 * BOUND, until_turns_exclude(&one, &other))
        .await
        .unwrap();

    let guard = one.turn_at_last().await;
    block_in_place(|| redis.stop());
    let turn = timeout(BOUND, other.turn(LONG)).await.unwrap();
    assert!(matches!(turn, Turn::Mine(_)), "as in the mode lease: {turn:?}");
    one_redeems(&fleet, 1).await;
    // Known to be away, it is not waited for at each call.
    let asked = Instant::now();
    for _ in 0..1000 {
        drop(other.turn(LONG).await);
    }
    assert!(asked.elapsed() < 10 * BOUND, "{:?}", asked.elapsed());
    drop((turn, guard));
    block_in_place(|| redis.start());
    timeout(3 * BOUND, until_turns_exclude(&one, &other))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_answers_nobody_costs_no_more_than_waiting() {
    let redis = block_in_place(Server::new);
    let fleet = Fleet::waiting_in(&redis.url(), &[Mode::Redis]).await;
    let (one, other) = (fleet.process(0).await, fleet.process(1).await);
    let guard = one.turn_at_last().await;
    block_in_place(|| redis.freeze());
    let turn = timeout(BOUND, other.turn(LONG)).await.unwrap();
    assert!(matches!(turn, Turn::Mine(_)), "as in the mode lease: {turn:?}");
    one_redeems(&fleet, 1).await;
    drop((guard, turn));
    block_in_place(|| redis.thaw());
    timeout(3 * BOUND, until_turns_exclude(&one, &other))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_fell_silent_is_left_for_another_one() {
    let redis = block_in_place(Server::new);
    let proxy = Proxy::before(redis.socket()).await;
    let silent = proxy.url("").replace("postgres://evergrant@", "redis://");
    let fleet = Fleet::waiting_in(&silent, &[Mode::Redis]).await;
    let (one, other) = (fleet.process(0).await, fleet.process(1).await);
    until_turns_exclude(&one, &other).await;
    // These two connections are dead, and neither of their ends knows. New ones work.
    proxy.silence_the_first(2);
    timeout(3 * BOUND, until_turns_exclude(&one, &other))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_lets_in_and_without_it_the_mode_is_lease() {
    let redis = block_in_place(Server::new);
    run(&redis, &["CONFIG", "SET", "requirepass", "canary"]);
    let connection = id("c1");
    let turns = |user: &str| ByRedis::open(&format!("redis://{user}127.0.0.1:{}/", redis.port())).unwrap();
    let (knows, knows_too) = (turns(":canary@"), turns("default:canary@"));
    let turn = knows.turn(&connection, LONG).await;
    assert!(matches!(turn, Turn::Mine(_)), "{turn:?}");
    let asked = knows_too.turn(&connection, SHORT).await;
    assert!(matches!(asked, Turn::NotYet), "{asked:?}");
    for stranger in [turns(""), turns(":wrong@")] {
        let asked = timeout(BOUND, stranger.turn(&connection, LONG)).await.unwrap();
        assert!(matches!(asked, Turn::Mine(_)), "{asked:?}");
        assert!(!format!("{stranger:?}").contains("wrong"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_speaks_no_tls_is_as_good_as_away() {
    let turns = ByRedis::open(&format!("rediss://127.0.0.1:{}/", Server::shared().port())).unwrap();
    let turn = timeout(BOUND, turns.turn(&id("no-tls"), LONG)).await.unwrap();
    assert!(matches!(turn, Turn::Mine(_)), "{turn:?}");
    let kept = run(Server::shared(), &["EXISTS", "evergrant:turn:{no-tls}"]);
    assert_eq!(kept, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_redis_is_refused_without_being_quoted() {
    for url in ["canary", "http://canary@host", "redis://"] {
        let error = ByRedis::open(url).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("canary"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_kept_but_who_has_the_turn_and_who_waits() {
    let redis = block_in_place(Server::new);
    let fleet = Fleet::waiting_in(&redis.url(), &[Mode::Redis]).await;
    let (one, other) = (fleet.process(0).await, Arc::new(fleet.process(1).await));
    let guard = one.turn_at_last().await;
    let waiting = tokio::spawn({
        let other = Arc::clone(&other);
        async move { drop(other.turn_at_last().await) }
    });
    until_so_many_wait(&redis, &fleet.name, 1).await;
    let keys = run(&redis, &["KEYS", "*"]);
    let mut keys: Vec<&str> = keys.lines().collect();
    keys.sort_unstable();
    let (turn, queue) = (
        format!("evergrant:turn:{{{}}}", fleet.name),
        format!("evergrant:queue:{{{}}}", fleet.name),
    );
    assert_eq!(keys, [&queue, &turn]);
    drop(guard);
    waiting.await.unwrap();
    while run(&redis, &["DBSIZE"]) != "0" {
        yield_now().await;
    }
}
