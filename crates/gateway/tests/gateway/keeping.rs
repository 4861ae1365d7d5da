//! What a call finds at hand: which connection serves the next one, and which never may.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::scripted::{Reply, Scripted, ok, reply};
use crate::streaming::fed;
use crate::world::{World, body, gist};

/// A call whose answer is read to its end.
async fn whole(world: &World, path: &str) -> Bytes {
    let answer = world.get(path).await.unwrap();
    assert_eq!(gist(&answer), (200, "ok", 1), "{path}");
    body(answer).await
}

#[tokio::test]
async fn one_connection_serves_one_call_after_another_and_many_at_once_have_one_each() {
    let provider = Scripted::new(|nth, _| match nth % 3 {
        0 => ok(),
        1 => Reply::Bytes(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfine\r\n0\r\n\r\n".to_vec(),
        ),
        _ => Reply::Bytes(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()),
    })
    .await;
    let world = World::at(&provider.base).await;
    for nth in 0..9 {
        let answer = world.get("/x").await.unwrap();
        let expected = if nth % 3 == 2 { "" } else { "fine" };
        assert_eq!(body(answer).await, expected);
    }
    assert_eq!(provider.connections(), 1);
    let (one, other) = tokio::join!(world.get("/x"), world.get("/x"));
    assert_eq!(provider.connections(), 2);
    drop((body(one.unwrap()).await, body(other.unwrap()).await));
    tokio::join!(whole_of(&world), whole_of(&world));
    assert_eq!(provider.connections(), 2);
}

async fn whole_of(world: &World) {
    body(world.get("/x").await.unwrap()).await;
}

#[tokio::test]
async fn what_is_answered_in_an_unusual_way_was_sent_once_all_the_same() {
    for unusual in [
        "200 Fine\r\nContent-Length: 4\r\n\r\nfine",
        "200 OK\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nfine",
        "200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;x=y\r\nfine\r\n0\r\n\r\n",
        "103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine",
    ] {
        for sent in [["", "", ""], ["{}", "", "and on"]] {
            let bytes = format!("HTTP/1.1 {unusual}").into_bytes();
            let provider = Scripted::new(move |_, _| Reply::Bytes(bytes.clone())).await;
            let world = World::at(&provider.base).await;
            for sent in sent {
                let method = if sent.is_empty() { "GET" } else { "POST" };
                let answer = world.send(method, "/x", sent).await.unwrap();
                assert_eq!(gist(&answer), (200, "ok", 1), "{unusual}");
                assert_eq!(body(answer).await, "fine", "{unusual}");
                // Until what comes late has come.
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
            }
            let seen: Vec<_> = provider.seen().into_iter().map(|seen| seen.body).collect();
            assert_eq!(seen, sent.map(str::as_bytes), "{unusual}");
            assert_eq!(provider.connections(), 1, "{unusual}");
        }
    }
}

#[tokio::test]
async fn a_connection_whose_answer_was_not_read_to_its_end_is_not_used_again() {
    let provider = Scripted::new(|nth, _| match nth {
        0 => Reply::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf".to_vec()),
        1 => Reply::Bytes(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n".to_vec()),
        _ => ok(),
    })
    .await;
    let world = World::at(&provider.base).await;
    for _ in 0..2 {
        let mut begun = world.get("/x").await.unwrap().response.into_body();
        assert_eq!(begun.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
        drop(begun);
    }
    // Not even looked at: the whole answer is there, and none of it was wanted.
    drop(world.get("/x").await.unwrap());
    assert_eq!(whole(&world, "/x").await, "fine");
    assert_eq!(provider.connections(), 4);
}

#[tokio::test]
async fn what_comes_after_an_answer_is_never_taken_for_the_next_one() {
    let smuggled = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let provider = Scripted::new(move |nth, _| {
        let Reply::Bytes(mut bytes) = reply("200 OK", "", format!("{nth}")) else {
            unreachable!()
        };
        bytes.extend_from_slice(smuggled.as_bytes());
        Reply::Bytes(bytes)
    })
    .await;
    let world = World::at(&provider.base).await;
    for nth in 0..5 {
        assert_eq!(whole(&world, "/x").await, nth.to_string());
        // Until what comes late has come.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(provider.connections(), 5);
}

#[tokio::test]
async fn a_connection_that_waited_for_long_is_not_used_again() {
    let provider = Scripted::new(|_, _| ok()).await;
    let world = World::at(&provider.base).await;
    whole(&world, "/x").await;
    for (waits_s, connections) in [(40, 1), (40, 1), (50, 2)] {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(waits_s)).await;
        tokio::time::resume();
        whole(&world, "/x").await;
        assert_eq!(provider.connections(), connections, "after {waits_s} s");
    }
    // Nobody calls again, and it is closed all the same.
    let ended = provider.wait_for_ends(2);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(70)).await;
    tokio::time::resume();
    tokio::time::timeout(Duration::from_secs(20), ended)
        .await
        .unwrap();
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_call_lets_the_call_end_and_its_connection_go_on_only_then() {
    let provider = Scripted::hasty(|nth, _| reply("200 OK", "", format!("{nth}"))).await;
    let world = World::at(&provider.base).await;
    let (feed, stream) = fed();
    feed.send(Bytes::from_static(b"half ")).unwrap();
    let request = Request::post("/").body(stream).unwrap();
    let answer = world.gateway.call(&world.id, "/x", request).await.unwrap();
    assert_eq!(body(answer).await, "0");
    // Its connection still sends.
    assert_eq!(whole(&world, "/x").await, "1");
    assert_eq!(provider.connections(), 2);
    assert!(
        feed.send(Bytes::from_static(b"and half")).is_ok(),
        "nobody broke it off"
    );
}

#[tokio::test]
async fn a_call_with_a_fresh_token_asks_nothing_of_the_store() {
    let provider = Scripted::new(|_, _| ok()).await;
    let world = World::at(&provider.base).await;
    whole(&world, "/x").await;
    let asked = world.faults.asked_in_all();
    assert!(asked > 0, "the first one does");
    for _ in 0..20 {
        whole(&world, "/x").await;
    }
    assert_eq!(world.faults.asked_in_all(), asked);
}

#[tokio::test]
async fn a_connection_that_ends_while_it_waits_hands_its_call_to_another() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/", listener.local_addr().unwrap());
    let (end, told) = oneshot::channel();
    let provider = tokio::spawn(async move {
        let mut told = Some(told);
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n{}") {
                stream.read_buf(&mut head).await.unwrap();
            }
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine";
            stream.write_all(answer).await.unwrap();
            match told.take() {
                Some(told) => told.await.unwrap(),
                None => return,
            }
        }
    });
    let world = World::at(&base).await;
    assert_eq!(body(world.send("POST", "/x", "{}").await.unwrap()).await, "fine");
    end.send(()).unwrap();
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
    let answer = world.send("POST", "/x", "{}").await.unwrap();
    assert_eq!(gist(&answer), (200, "ok", 1));
    assert_eq!(body(answer).await, "fine");
    provider.await.unwrap();
}

#[tokio::test]
async fn a_connection_that_spoke_or_ended_unasked_while_it_waited_takes_no_call_with_it() {
    const EVIL: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    for unasked in [Some(EVIL), None] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/", listener.local_addr().unwrap());
        let (tell, told) = oneshot::channel::<()>();
        let provider = tokio::spawn(async move {
            let asked = async || {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    assert_ne!(
                        stream.read_buf(&mut head).await.unwrap(),
                        0,
                        "it asked for nothing"
                    );
                }
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine";
                stream.write_all(answer).await.unwrap();
                stream
            };
            let mut first = asked().await;
            told.await.unwrap();
            let first = if let Some(unasked) = unasked {
                first.write_all(unasked).await.unwrap();
                Some(first)
            } else {
                drop(first);
                None
            };
            asked().await;
            first
        });
        let world = World::at(&base).await;
        assert_eq!(whole(&world, "/x").await, "fine");
        tell.send(()).unwrap();
        // Until the runtime has heard of it.
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
        // Sent once: not sent over the one, and sent again when that went wrong.
        assert_eq!(whole(&world, "/x").await, "fine", "{unasked:?}");
        if let Some(mut first) = provider.await.unwrap() {
            let mut more = Vec::new();
            let read = first.read_to_end(&mut more).await;
            assert!(read.is_err() || more.is_empty(), "nothing more was sent over it");
        }
    }
}
