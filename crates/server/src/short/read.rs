//! Which requests are plain, and what they say.

use std::mem::MaybeUninit;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::Full;

/// More headers than this are for hyper, which takes 100.
const HEADERS_MAX: usize = 64;
/// The longest body. Longer ones are for hyper, which hands them on in pieces.
pub(super) const BODY_MAX: usize = 16 * 1024;
/// Room for the headers that the service puts on a request.
const PUT_ON: usize = 4;

/// What was made of the bytes so far.
pub(super) enum Read {
    /// A request, which is taken out of them.
    Whole(Plain),
    /// There is more to come of its head, as far as can be seen.
    Partial,
    /// It is none that is read here.
    Odd,
}

/// A plain request.
pub(super) struct Plain {
    /// Where it stays, whoever has it in hand.
    pub(super) head: Box<Parts>,
    pub(super) body: Full<Bytes>,
    /// Its bytes, first to last.
    pub(super) whole: Bytes,
    /// Whether its answer has no body, whatever its head says.
    pub(super) is_head: bool,
}

/// Where a header lies in the bytes.
#[derive(Clone, Copy)]
struct Line {
    name: (u16, u16),
    value: (u16, u16),
}

/// Reads a request, if it is a plain one, into `headers`, which is empty.
pub(super) fn read(buffer: &mut BytesMut, headers: &mut HeaderMap) -> Read {
    // An empty line before a request is none of it, and whoever sends one is not plain.
    match buffer.first() {
        None => return Read::Partial,
        Some(byte) if !byte.is_ascii_uppercase() => return Read::Odd,
        Some(_) => {}
    }
    let mut found = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    let end = match parsed.parse_with_uninit_headers(buffer, &mut found) {
        Ok(httparse::Status::Complete(end)) => end,
        Ok(httparse::Status::Partial) => return Read::Partial,
        Err(_) => return Read::Odd,
    };
    let Some((method, length)) = understood(&parsed) else {
        return Read::Odd;
    };
    let end_of_body = end + length;
    if buffer.len() < end_of_body || !buffer[..end].ends_with(b"\r\n\r\n") {
        return Read::Odd;
    }
    // Said by where they lie: they are taken out of the buffer without a copy.
    let start = buffer.as_ptr().addr();
    let place = |part: &[u8]| {
        let from = part.as_ptr().addr() - start;
        Some((u16::try_from(from).ok()?, u16::try_from(from + part.len()).ok()?))
    };
    let mut lines = [Line {
        name: (0, 0),
        value: (0, 0),
    }; HEADERS_MAX];
    let count = parsed.headers.len();
    for (line, header) in lines.iter_mut().zip(parsed.headers.iter()) {
        let (Some(name), Some(value)) = (place(header.name.as_bytes()), place(header.value)) else {
            return Read::Odd;
        };
        // The parser takes a line feed alone for the end of a line, too.
        if !buffer[..usize::from(name.0)].ends_with(b"\r\n") {
            return Read::Odd;
        }
        *line = Line { name, value };
    }
    let Some(target) = parsed.path.and_then(|path| place(path.as_bytes())) else {
        return Read::Odd;
    };
    let whole = buffer.split_to(end_of_body).freeze();
    let Some(uri) = into(&whole, &lines[..count], target, headers) else {
        // As it was.
        let mut again = BytesMut::with_capacity(whole.len() + buffer.len());
        again.extend_from_slice(&whole);
        again.extend_from_slice(buffer);
        *buffer = again;
        headers.clear();
        return Read::Odd;
    };
    let is_head = method == Method::HEAD;
    let (mut head, ()) = Request::new(()).into_parts();
    head.method = method;
    head.uri = uri;
    head.headers = std::mem::take(headers);
    Read::Whole(Plain {
        head: Box::new(head),
        body: Full::new(whole.slice(end..)),
        whole,
        is_head,
    })
}

/// Method and length of the body, where all that HTTP itself goes by can be read in one way only.
fn understood(request: &httparse::Request<'_, '_>) -> Option<(Method, usize)> {
    if request.version? != 1 || !request.path?.starts_with('/') {
        return None;
    }
    let method = Method::from_bytes(request.method?.as_bytes()).ok()?;
    if method == Method::CONNECT {
        return None;
    }
    let (mut hosts, mut length) = (0, None);
    for line in request.headers.iter() {
        // By their lengths first: few have one of these.
        match line.name.len() {
            4 if line.name.eq_ignore_ascii_case("host") => hosts += 1,
            6 if line.name.eq_ignore_ascii_case("expect") => return None,
            7 if line.name.eq_ignore_ascii_case("upgrade") => return None,
            10 if line.name.eq_ignore_ascii_case("connection")
                && !line.value.eq_ignore_ascii_case(b"keep-alive") =>
            {
                return None;
            }
            14 if line.name.eq_ignore_ascii_case("content-length") => {
                if length.is_some() {
                    return None;
                }
                length = Some(plain_length(line.value).filter(|length| *length <= BODY_MAX)?);
            }
            17 if line.name.eq_ignore_ascii_case("transfer-encoding") => return None,
            _ => {}
        }
    }
    (hosts == 1).then_some((method, length.unwrap_or(0)))
}

/// Digits and nothing else.
pub(super) fn plain_length(value: &[u8]) -> Option<usize> {
    let is_plain = (1..=15).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    is_plain.then(|| {
        value
            .iter()
            .fold(0, |length, digit| length * 10 + usize::from(digit - b'0'))
    })
}

/// Takes the target, and the headers into their map. What the parser takes for them nearly always is; if not, that is odd.
fn into(whole: &Bytes, lines: &[Line], target: (u16, u16), headers: &mut HeaderMap) -> Option<Uri> {
    let uri = Uri::from_maybe_shared(whole.slice(range(target))).ok()?;
    headers.reserve(lines.len() + PUT_ON);
    for line in lines {
        let name = HeaderName::from_bytes(&whole[range(line.name)]).ok()?;
        let value = HeaderValue::from_maybe_shared(whole.slice(range(line.value))).ok()?;
        headers.append(name, value);
    }
    Some(uri)
}

fn range((from, to): (u16, u16)) -> Range<usize> {
    usize::from(from)..usize::from(to)
}
