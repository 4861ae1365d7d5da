//! A customer's browser, scripted: the link, our page and its form, the provider's consent, the callback.

use bytes::Bytes;
use http::header::{COOKIE, LOCATION, SET_COOKIE};
use http::{HeaderName, HeaderValue, Method, Response};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use url::Url;

use crate::demo::world::{Customer, World, authorized, request};
use crate::failure::Failure;

/// Connects a customer the way a person does.
pub(crate) async fn connect(world: &World, app: &str, customer: &Customer) -> Result<(), Failure> {
    let wish = json!({"app": app, "customer": customer.name, "connection_id": customer.name});
    let session = send(
        world,
        authorized(world, Method::POST, "/v1/connect-sessions", Some(&wish))?,
    )
    .await?;
    let session: Value = serde_json::from_slice(session.body()).map_err(Failure::failed)?;
    let link = session["url"].as_str().unwrap_or_default();

    let page = send(world, request(Method::GET, link, None)?).await?;
    let cookie = header(&page, &SET_COOKIE)?;
    let cookie = cookie.split(';').next().unwrap_or_default();

    let to_provider = send(world, with_cookie(Method::POST, link, cookie)?).await?;
    let mut consent = Url::parse(&header(&to_provider, &LOCATION)?).map_err(Failure::failed)?;
    // The simulator's way to press "Connect app" without a page.
    consent
        .query_pairs_mut()
        .append_pair("_sim_hub_id", &customer.hub_id.to_string());
    let back = send(world, request(Method::GET, consent.as_str(), None)?).await?;
    send(
        world,
        with_cookie(Method::GET, &header(&back, &LOCATION)?, cookie)?,
    )
    .await?;

    let record = world.record(customer).await?;
    match (record["status"].as_str(), record["version"].as_i64()) {
        (Some("active"), Some(version)) => {
            customer.tally.begin_at(version);
            Ok(())
        }
        _ => Err(Failure::failed(format!(
            "{} could not be connected",
            customer.name
        ))),
    }
}

fn with_cookie(
    method: Method,
    uri: &str,
    cookie: &str,
) -> Result<http::Request<http_body_util::Full<Bytes>>, Failure> {
    let mut request = request(method, uri, None)?;
    request
        .headers_mut()
        .insert(COOKIE, HeaderValue::try_from(cookie).map_err(Failure::failed)?);
    Ok(request)
}

async fn send(
    world: &World,
    request: http::Request<http_body_util::Full<Bytes>>,
) -> Result<Response<Bytes>, Failure> {
    let step = format!("{} {}", request.method(), request.uri().path());
    let failed = |why: String| Failure::failed(format!("connecting a customer failed at {step}: {why}"));
    let answer = world
        .client
        .request(request)
        .await
        .map_err(|error| failed(error.to_string()))?;
    let (parts, body) = answer.into_parts();
    let body = body
        .collect()
        .await
        .map_err(|error| failed(error.to_string()))?
        .to_bytes();
    if parts.status.is_client_error() || parts.status.is_server_error() {
        return Err(failed(parts.status.to_string()));
    }
    Ok(Response::from_parts(parts, body))
}

fn header(response: &Response<Bytes>, name: &HeaderName) -> Result<String, Failure> {
    let value = response.headers().get(name).and_then(|value| value.to_str().ok());
    value
        .map(str::to_owned)
        .ok_or_else(|| Failure::failed(format!("an answer came without {name}")))
}
