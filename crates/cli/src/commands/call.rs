//! `evergrant call`: one API call through the gateway's own code path.

use std::io::Read as _;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};

use crate::api::{Api, Body, whole};
use crate::args::Call;
use crate::failure::{Exit, Failure};
use crate::output::{Output, note, print_bytes};

/// On answers that are Evergrant's own, not the provider's.
const EVERGRANT_ERROR: &str = "evergrant-error";

pub(crate) async fn run(api: Api, call: Call, output: Output) -> Result<(), Failure> {
    let answer = api.send(request(&call)?).await?;
    if call.include {
        show_head(answer.status(), answer.headers());
    }
    if answer.headers().contains_key(EVERGRANT_ERROR) {
        return refused(answer, output).await;
    }
    let status = answer.status();
    print(answer, output).await?;
    if !status.is_client_error() && !status.is_server_error() {
        return Ok(());
    }
    let failure = Failure::failed(format!("the provider answered {status}"));
    Err(match status {
        // A refresh that could have helped was tried: why it did not is in the record.
        StatusCode::UNAUTHORIZED => failure.advise(format_args!(
            "`evergrant connections show {}` says where the connection stands.",
            call.id
        )),
        _ => {
            failure.advise("Its answer is on standard output; `evergrant explain` says what an answer means.")
        }
    })
}

fn request(call: &Call) -> Result<Request<Full<Bytes>>, Failure> {
    let path = call.path.strip_prefix('/').unwrap_or(&call.path);
    let uri = format!("/gateway/{}/{path}", call.id);
    let mut request = Request::new(Full::default());
    *request.method_mut() = call.method.clone();
    *request.uri_mut() = uri.parse().map_err(|error| {
        Failure::usage(format!("{:?} cannot be a path: {error}", call.path))
            .advise("Percent-encode what is no ASCII.")
    })?;
    if let Some(data) = &call.data {
        *request.body_mut() = Full::from(body(data)?);
        request
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    let mut given = HeaderMap::new();
    for (name, value) in &call.headers {
        given.append(name, value.clone());
    }
    request.headers_mut().extend(given);
    Ok(request)
}

/// The body as it is, from a file, or from standard input.
fn body(data: &str) -> Result<Bytes, Failure> {
    let mut bytes = Vec::new();
    let (name, read) = match (data, data.strip_prefix('@')) {
        ("-" | "@-", _) => ("standard input", std::io::stdin().read_to_end(&mut bytes)),
        (_, Some(file)) => (
            file,
            std::fs::File::open(file).and_then(|mut file| file.read_to_end(&mut bytes)),
        ),
        (text, None) => return Ok(Bytes::copy_from_slice(text.as_bytes())),
    };
    read.map_err(|error| Failure::usage(format!("{name} cannot be read: {error}")))?;
    Ok(bytes.into())
}

/// Prints the body as it arrives, and ends a line that somebody looks at.
async fn print(answer: Response<Body>, output: Output) -> Result<(), Failure> {
    let mut body = answer.into_body();
    let mut last = b'\n';
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Failure::new(
                Exit::Unavailable,
                format!("the provider's answer broke off: {error}"),
            )
        })?;
        if let Some(data) = frame.data_ref() {
            print_bytes(data)?;
            last = data.last().copied().unwrap_or(last);
        }
    }
    if output.is_terminal && last != b'\n' {
        print_bytes(b"\n")
    } else {
        Ok(())
    }
}

/// Programs get the problem document, people its sentences.
async fn refused(answer: Response<Body>, output: Output) -> Result<(), Failure> {
    let answer = whole(answer).await?;
    if output.json {
        print_bytes(answer.body())?;
        print_bytes(b"\n")?;
    }
    Err(Failure::answered(&answer))
}

/// Status and headers, as they came.
fn show_head(status: StatusCode, headers: &HeaderMap) {
    note(format_args!("HTTP {status}"));
    for (name, value) in headers {
        note(format_args!(
            "{name}: {}",
            String::from_utf8_lossy(value.as_bytes())
        ));
    }
}
