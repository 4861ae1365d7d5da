//! The wire: one request over a fresh connection, no redirect, little of the answer.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use evergrant_domain::Timestamp;
use evergrant_oauth::{Network, retry_after_from};
use http::{HeaderMap, HeaderValue, Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout_at};
use url::{Position, Url};

/// How much of an answer is read: its status says it all, and a body is read only so that the receiver can end in peace.
const ANSWER_MAX: usize = 4 * 1024;

/// Sends notices.
pub(crate) struct Courier {
    network: Arc<dyn Network>,
}

/// What a receiver answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) retry_after: Option<Duration>,
}

impl Courier {
    pub(crate) fn new(network: Arc<dyn Network>) -> Self {
        Self { network }
    }

    /// Posts a body. The error is a word for why there is no answer. `deadline` covers the whole exchange.
    pub(crate) async fn post(
        &self,
        url: &Url,
        headers: HeaderMap,
        body: String,
        deadline: Duration,
        now: Timestamp,
    ) -> Result<Answer, &'static str> {
        let deadline = Instant::now() + deadline;
        let exchange = async {
            let stream = self.network.connect(url, deadline).await?;
            let request = request(url, headers, body).ok_or("unusable_url")?;
            let (mut sender, connection) = http1::Builder::new()
                .max_header_size(64 * 1024)
                .handshake(TokioIo::new(stream))
                .await
                .map_err(|_| "connection_lost")?;
            let mut answer = pin!(async {
                let response = sender.send_request(request).await.map_err(|error| {
                    if error.is_parse() {
                        "unreadable"
                    } else {
                        "connection_lost"
                    }
                })?;
                let answer = Answer {
                    status: response.status().as_u16(),
                    retry_after: retry_after_from(response.headers(), now),
                };
                read_a_little(response.into_body(), deadline).await;
                Ok(answer)
            });
            // Nothing is spawned: who drops the exchange closes the connection.
            tokio::select! {
                biased;
                answer = &mut answer => answer,
                _ = connection => answer.await,
            }
        };
        timeout_at(deadline, exchange).await.unwrap_or(Err("timeout"))
    }
}

fn request(url: &Url, mut headers: HeaderMap, body: String) -> Option<Request<Full<Bytes>>> {
    let authority = match (url.host_str()?, url.port()) {
        (host, Some(port)) => format!("{host}:{port}"),
        (host, None) => host.to_owned(),
    };
    headers.insert(header::HOST, HeaderValue::from_str(&authority).ok()?);
    headers.insert(
        header::USER_AGENT,
        HeaderValue::from_static(concat!("evergrant/", env!("CARGO_PKG_VERSION"))),
    );
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // The connection serves this one exchange.
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    let mut request = Request::post(&url[Position::BeforePath..Position::AfterQuery])
        .body(Full::new(Bytes::from(body)))
        .ok()?;
    *request.headers_mut() = headers;
    Some(request)
}

/// What comes of the body is of no interest, and whoever sends one without end is not waited for.
async fn read_a_little(mut body: Incoming, deadline: Instant) {
    const PATIENCE: Duration = Duration::from_secs(1);
    let until = deadline.min(Instant::now() + PATIENCE);
    let mut read = 0;
    while read < ANSWER_MAX
        && let Ok(Some(Ok(frame))) = timeout_at(until, body.frame()).await
    {
        read += frame.data_ref().map_or(0, Bytes::len);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use async_trait::async_trait;
    use evergrant_oauth::Stream;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;
    use crate::sending::DEADLINE;

    /// Every address leads to somebody who answers this and then says nothing more.
    struct Says(&'static str);

    #[async_trait]
    impl Network for Says {
        async fn connect(&self, _: &Url, _: Instant) -> Result<Box<dyn Stream>, &'static str> {
            let (ours, mut theirs) = duplex(64 * 1024);
            let answer = self.0;
            tokio::spawn(async move {
                theirs.read_u8().await.expect("it is asked");
                theirs.write_all(answer.as_bytes()).await.expect("there is room");
                pending::<()>().await;
            });
            Ok(Box::new(ours))
        }
    }

    /// What comes of posting to it, and after how many seconds.
    async fn post(answer: &'static str) -> (Result<u16, &'static str>, u64) {
        let courier = Courier::new(Arc::new(Says(answer)));
        let url = Url::parse("http://localhost/in").expect("a literal URL");
        let began = Instant::now();
        let now = Timestamp::from_millis(0);
        let answer = courier
            .post(&url, HeaderMap::new(), "{}".to_owned(), DEADLINE, now)
            .await;
        (answer.map(|answer| answer.status), began.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_waited_for_as_long_as_was_promised() {
        assert_eq!(post("").await, (Err("timeout"), 15));
        assert_eq!(post("HTTP/1.1 200 OK\r\ncontent-").await, (Err("timeout"), 15));
    }

    #[tokio::test(start_paused = true)]
    async fn a_status_is_enough_where_the_body_does_not_end() {
        let unfinished = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nx";
        assert_eq!(post(unfinished).await, (Ok(200), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_answer_is_none() {
        assert_eq!(post("SSH-2.0-OpenSSH\r\n").await, (Err("unreadable"), 0));
    }
}
