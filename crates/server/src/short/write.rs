//! Which answers are plain, and how their heads are written: to the byte as hyper writes them.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Response, StatusCode, Version, header};
use http_body::Body;
use hyper::ext::ReasonPhrase;
use tokio::time::Instant;

use crate::short::read::plain_length;

/// The longest body. Longer ones are for hyper, which writes them as they come.
pub(super) const BODY_MAX: usize = 64 * 1024;

/// What follows a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    Nothing,
    /// So many bytes, at least one.
    Length(usize),
}

/// What a head says about the length of its body.
#[derive(Clone, Copy)]
enum Said {
    /// What the answer says, if anything: nobody is sent it.
    AsItIs,
    /// Nothing, whatever the answer says.
    Nothing,
    Length(u64),
}

/// Appends the head of an answer, and says what follows. `None` if the answer is not plain; then what was appended is worth nothing.
pub(super) fn head<B>(
    out: &mut Vec<u8>,
    response: &Response<B>,
    is_head: bool,
    is_last: bool,
    now: Instant,
) -> Option<Framing>
where
    B: Body<Data = Bytes>,
{
    let status = response.status();
    let said = said(response, is_head)?;
    let is_ours = matches!(response.version(), Version::HTTP_11 | Version::HTTP_2)
        && response.extensions().get::<ReasonPhrase>().is_none();
    if !is_ours {
        return None;
    }
    if status == StatusCode::OK {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    } else {
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(status.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(status.canonical_reason()?.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    let (mut has_length, mut has_date) = (false, false);
    for (name, value) in response.headers() {
        match *name {
            header::CONTENT_LENGTH => match said {
                Said::Nothing => continue,
                _ if has_length => return None,
                Said::Length(length)
                    if plain_length(value.as_bytes()).map(|said| said as u64) != Some(length) =>
                {
                    return None;
                }
                Said::Length(_) | Said::AsItIs => has_length = true,
            },
            header::TRANSFER_ENCODING | header::CONNECTION | header::TRAILER => return None,
            header::DATE => has_date = true,
            _ => {}
        }
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    if is_last {
        out.extend_from_slice(b"connection: close\r\n");
    }
    if let Said::Length(length) = said
        && !has_length
    {
        out.extend_from_slice(b"content-length: ");
        digits(out, length);
        out.extend_from_slice(b"\r\n");
    }
    if !has_date {
        date(out, now);
    }
    out.extend_from_slice(b"\r\n");
    Some(match said {
        Said::Length(length) if length > 0 && !is_head => Framing::Length(usize::try_from(length).ok()?),
        _ => Framing::Nothing,
    })
}

/// What the head says of the length, where the body is plainly framed and short (RFC 9110 §8.6).
fn said<B: Body>(response: &Response<B>, is_head: bool) -> Option<Said> {
    let status = response.status();
    let body = response.body();
    if status.is_informational() {
        return None;
    }
    if body.is_end_stream() {
        return Some(match status {
            _ if is_head => Said::AsItIs,
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED => Said::Nothing,
            _ => Said::Length(0),
        });
    }
    if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return None;
    }
    let length = body.size_hint().exact()?;
    (is_head || length <= BODY_MAX as u64).then_some(Said::Length(length))
}

fn digits(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + u8::try_from(number % 10).expect("a digit");
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[first..]);
}

thread_local! {
    /// The header, and the end of the second that it names.
    static DATE: RefCell<Option<(Instant, String)>> = const { RefCell::new(None) };
}

/// The header that says when this was written. The machine's clock is asked once a second.
#[expect(
    clippy::disallowed_methods,
    reason = "HTTP tells the machine's time, as hyper does; nothing is decided by it"
)]
fn date(out: &mut Vec<u8>, now: Instant) {
    DATE.with_borrow_mut(|date| {
        let (_, line) = match date {
            Some(known) if now < known.0 => known,
            _ => {
                let time = SystemTime::now();
                let past = time.duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
                let left = Duration::from_secs(1).saturating_sub(Duration::from_nanos(past.into()));
                date.insert((now + left, format!("date: {}\r\n", httpdate::fmt_http_date(time))))
            }
        };
        out.extend_from_slice(line.as_bytes());
    });
}
