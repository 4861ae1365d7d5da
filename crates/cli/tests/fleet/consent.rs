//! A customer who consents again to a connection that stays.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::json;

use crate::fleet::{Fleet, id, portal};

/// Walks from the link to the callback, all at one process; says whether the connection holds the new grant for sure.
pub(crate) async fn consents(fleet: &Fleet, process: usize, connection: usize) -> bool {
    let path = format!("/v1/connections/{}/reconnect-link", id(connection));
    let wish = json!({"return_url": "https://app.example.com/done"});
    let Ok(link) = fleet.ask(process, Method::POST, &path, Some(wish)).await else {
        return false;
    };
    if link.status != StatusCode::OK {
        return false;
    }
    let url = link.json()["url"].as_str().unwrap().to_owned();
    let page = fleet.address_of(process, &url);
    let Some((cookie, provider)) = begin(page).await else {
        return false;
    };
    let decision = format!("{provider}&_sim_hub_id={}", portal(connection));
    let Some(callback) = visit(Method::GET, decision, None)
        .await
        .and_then(|headers| location(&headers))
    else {
        return false;
    };
    fleet.books.consents(portal(connection));
    let callback = fleet.address_of(process, &callback);
    let answer = visit(Method::GET, callback, Some(cookie)).await;
    let connected = answer
        .and_then(|headers| location(&headers))
        .is_some_and(|location| location.contains("result=connected"));
    if !connected {
        // Maybe exchanged, maybe stored: nobody knows.
        fleet.books.consents(portal(connection));
    }
    connected
}

/// Opens the page and sends its form: the customer's cookie, and where the provider asks.
async fn begin(page: String) -> Option<(String, String)> {
    let headers = visit(Method::GET, page.clone(), None).await?;
    let cookie = headers.get(header::SET_COOKIE)?.to_str().ok()?;
    let cookie = cookie.split(';').next()?.to_owned();
    let provider = location(&visit(Method::POST, page, Some(cookie.clone())).await?)?;
    Some((cookie, provider))
}

async fn visit(method: Method, url: String, cookie: Option<String>) -> Option<HeaderMap> {
    let mut request = Request::builder().method(method).uri(url);
    if let Some(cookie) = cookie {
        request = request.header(header::COOKIE, cookie);
    }
    let client = Client::builder(TokioExecutor::new()).build_http();
    let answer = client
        .request(request.body(Empty::<Bytes>::new()).unwrap())
        .await
        .ok()?;
    let (parts, body) = answer.into_parts();
    body.collect().await.ok()?;
    Some(parts.headers)
}

fn location(headers: &HeaderMap) -> Option<String> {
    Some(headers.get(header::LOCATION)?.to_str().ok()?.to_owned())
}
