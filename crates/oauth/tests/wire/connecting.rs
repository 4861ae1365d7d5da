//! Everything before the first byte: whatever goes wrong there, nothing was issued.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use evergrant_domain::RefreshToken;
use evergrant_domain::token_answer::TokenAnswer;
use evergrant_oauth::{Redeemed, TlsRoots, TokenEndpoint};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

use crate::server::{Identity, Script, Server, answer};
use crate::{DEADLINE, app, endpoint, redeem, secret, shown};

fn tokens() -> Script {
    Script::Say(answer("200 OK", &[], r#"{"access_token":"a"}"#))
}

/// Redeems with this check before the first byte.
async fn redeem_with<G: Future<Output = bool> + Send>(
    endpoint: &TokenEndpoint,
    base: &str,
    before_first_byte: impl FnOnce() -> G + Send,
) -> String {
    let refresh_token = RefreshToken::new("r");
    match endpoint
        .redeem(&app(base), &secret(), &refresh_token, DEADLINE, before_first_byte)
        .await
    {
        Redeemed::SteppedBack => "stepped back".to_owned(),
        Redeemed::Answered(answer) => shown(&answer),
    }
}

#[tokio::test]
async fn a_refused_connection_issued_nothing_and_asks_nobody() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let asked = AtomicBool::new(false);
    let redeemed = redeem_with(&endpoint(), &base, async || {
        asked.store(true, Ordering::Relaxed);
        true
    })
    .await;
    assert_eq!(redeemed, "not issued: unreachable");
    assert!(!asked.into_inner());
}

#[tokio::test]
async fn a_name_that_does_not_resolve_issued_nothing() {
    // Refused by the resolver itself: a label has at most 63 characters.
    let base = format!("https://{}.example", "a".repeat(64));
    assert_eq!(shown(&redeem(&base).await), "not issued: name_not_resolved");
}

#[tokio::test]
async fn plain_http_reaches_only_this_machine() {
    for base in ["http://192.0.2.1", "http://[2001:db8::1]:8080", "http://0.0.0.0"] {
        assert_eq!(
            shown(&redeem(base).await),
            "not issued: plain_http_refused",
            "{base}"
        );
    }
    let server = Server::start(tokens()).await;
    let by_name = server.base().replace("127.0.0.1", "localhost");
    assert_eq!(shown(&redeem(&by_name).await), "issued");
}

#[tokio::test]
async fn only_http_is_spoken() {
    for base in ["ftp://127.0.0.1", "unix:/run/as.sock"] {
        assert_eq!(shown(&redeem(base).await), "not issued: unusable_url", "{base}");
    }
}

#[tokio::test]
async fn nothing_is_sent_to_whom_nobody_vouches_for() {
    let identity = Identity::of("127.0.0.1");
    let elsewhere = Identity::of("as.example.com");
    for (identity, roots) in [
        (&identity, TlsRoots::Only(vec![elsewhere.certificate()])),
        // Vouched for, but under another name.
        (&elsewhere, TlsRoots::Only(vec![elsewhere.certificate()])),
    ] {
        let server = Server::with_tls(tokens(), identity).await;
        let redeemed = redeem_with(&TokenEndpoint::new(roots), server.base(), async || true).await;
        assert_eq!(redeemed, "not issued: certificate_refused");
        server.saw(|log| log.handshakes_failed == 1).await;
        assert_eq!((server.log().connections, server.log().bytes), (0, 0));
    }
}

#[tokio::test]
async fn the_platforms_roots_do_not_vouch_for_a_stranger() {
    let server = Server::with_tls(tokens(), &Identity::of("127.0.0.1")).await;
    let answer = shown(&redeem(server.base()).await);
    // The second where the platform has none.
    assert!(
        ["not issued: certificate_refused", "not issued: no_tls_roots"].contains(&answer.as_str()),
        "{answer}"
    );
    assert_eq!(server.log().bytes, 0);
}

#[tokio::test]
async fn without_roots_nobody_is_believed() {
    let server = Server::with_tls(tokens(), &Identity::of("127.0.0.1")).await;
    let endpoint = TokenEndpoint::new(TlsRoots::Only(vec![]));
    assert_eq!(
        redeem_with(&endpoint, server.base(), async || true).await,
        "not issued: no_tls_roots"
    );
}

#[tokio::test]
async fn a_server_that_is_vouched_for_is_spoken_to_in_http_1_1_each_time_anew() {
    let identity = Identity::of("127.0.0.1");
    let server = Server::with_tls(tokens(), &identity).await;
    let endpoint = TokenEndpoint::new(TlsRoots::Only(vec![identity.certificate()]));
    for _ in 0..2 {
        assert_eq!(
            redeem_with(&endpoint, server.base(), async || true).await,
            "issued"
        );
    }
    assert_eq!(server.log().connections, 2);
    assert_eq!(server.log().protocols, vec![Some(b"http/1.1".to_vec()); 2]);
    assert_eq!(server.log().requests.len(), 2);
}

#[tokio::test]
async fn what_speaks_no_tls_issued_nothing() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let base = format!("https://{}", listener.local_addr().unwrap());
    let (answer, _stream) = tokio::join!(redeem(&base), async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
        stream
    });
    assert_eq!(shown(&answer), "not issued: tls_failed");
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_never_ends_issued_nothing() {
    let server = Server::silent().await;
    let begun = tokio::time::Instant::now();
    assert_eq!(shown(&redeem(server.base()).await), "not issued: timeout");
    assert!(begun.elapsed() < DEADLINE + Duration::from_secs(1));
    assert!(server.log().requests.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_last_check_comes_after_connecting_and_before_the_first_byte() {
    let identity = Identity::of("127.0.0.1");
    let endpoint = TokenEndpoint::new(TlsRoots::Only(vec![identity.certificate()]));
    for server in [
        Server::start(tokens()).await,
        Server::with_tls(tokens(), &identity).await,
    ] {
        let redeemed = redeem_with(&endpoint, server.base(), async || {
            // Would wait for ever, were there no connection yet.
            server.saw(|log| log.connections == 1).await;
            server.log().bytes == 0
        })
        .await;
        assert_eq!(redeemed, "issued");
    }
}

#[tokio::test]
async fn stepping_back_writes_nothing() {
    let identity = Identity::of("127.0.0.1");
    let endpoint = TokenEndpoint::new(TlsRoots::Only(vec![identity.certificate()]));
    for server in [
        Server::start(tokens()).await,
        Server::with_tls(tokens(), &identity).await,
    ] {
        let redeemed = redeem_with(&endpoint, server.base(), async || false).await;
        assert_eq!(redeemed, "stepped back");
        server.saw(|log| log.left == 1).await;
        assert_eq!(server.log().bytes, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_check_that_takes_too_long_issued_nothing() {
    let server = Server::start(tokens()).await;
    let redeemed = redeem_with(&endpoint(), server.base(), std::future::pending).await;
    assert_eq!(redeemed, "not issued: timeout");
    server.saw(|log| log.left == 1).await;
    assert_eq!(server.log().bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn a_yes_that_comes_at_the_deadline_comes_too_late() {
    let server = Server::start(tokens()).await;
    let redeemed = redeem_with(&endpoint(), server.base(), async || {
        tokio::time::advance(DEADLINE).await;
        true
    })
    .await;
    assert_eq!(redeemed, "not issued: timeout");
    server.saw(|log| log.left == 1).await;
    assert_eq!(server.log().bytes, 0);
}

#[tokio::test]
async fn whoever_gives_up_takes_the_connection_along() {
    let server = Server::start(Script::SayAndHang(vec![])).await;
    tokio::select! {
        answer = redeem(server.base()) => panic!("{}", shown(&answer)),
        () = server.saw(|log| log.requests.len() == 1) => {}
    }
    server.saw(|log| log.left == 1).await;
    assert_eq!(server.log().connections, 1);
}

#[tokio::test]
async fn a_peer_that_leaves_or_speaks_before_the_first_byte_issued_nothing() {
    for greeting in ["", "220 mail.example.com ESMTP\r\n"] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let redeemed = redeem_with(&endpoint(), &base, async || {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(greeting.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            // The runtime hears of it once it looks at its sockets again.
            tokio::task::yield_now().await;
            true
        })
        .await;
        assert_eq!(redeemed, "not issued: connection_lost", "{greeting:?}");
    }
}

#[tokio::test]
async fn an_exchange_may_move_between_threads() {
    let server = Server::start(tokens()).await;
    let app = app(server.base());
    let answer = tokio::spawn(async move {
        let refresh_token = RefreshToken::new("r");
        endpoint()
            .redeem(&app, &secret(), &refresh_token, DEADLINE, || async {
                !app.client_id.is_empty()
            })
            .await
    });
    assert!(matches!(
        answer.await.unwrap(),
        Redeemed::Answered(TokenAnswer::Issued(_))
    ));
}

/// A process that is stopped (SIGSTOP, a paused container) while its answer is on the way.
#[tokio::test]
async fn an_answer_that_came_while_the_process_was_stopped_is_not_lost() {
    // What is looked at first after waking is left to chance, so once proves little.
    for _ in 0..4 {
        // On a thread of its own, as the provider is another process.
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let provider = std::thread::spawn(move || {
            use std::io::{Read as _, Write as _};
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            stream
                .write_all(&answer("200 OK", &[], r#"{"access_token":"a"}"#))
                .unwrap();
        });
        let refresh_token = RefreshToken::new("r");
        let deadline = Duration::from_millis(400);
        let redeemed = endpoint()
            .redeem(&app(&base), &secret(), &refresh_token, deadline, || async {
                // Runs once the exchange waits for its answer, and lets nothing else run until long past the deadline.
                tokio::spawn(async { std::thread::sleep(Duration::from_millis(700)) });
                true
            })
            .await;
        provider.join().unwrap();
        let Redeemed::Answered(answer) = redeemed else {
            panic!("it was sent");
        };
        assert_eq!(shown(&answer), "issued");
    }
}
