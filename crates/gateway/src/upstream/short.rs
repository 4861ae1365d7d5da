//! The short way of a short call to a short answer: one write, one read, no state between the two.
//!
//! Most calls are such. Of all that HTTP/1.1 allows, only what can be read in one way is read here: a whole head of HTTP/1.1 with a
//! final status and one plain length, or plain chunks that have come to their end already. Whatever else comes is for hyper to read,
//! from its first byte on ([`Replay`]), so that nothing odd is judged twice and differently.

use std::future::{Future as _, poll_fn};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

use crate::transport::Leaving;
use crate::upstream::connect::Stream;

/// The longest body of a call that is sent here, in bytes. Longer ones seldom have come by then, and hyper sends them as they do.
pub(crate) const SENT_MAX: u64 = 16 * 1024;
/// Most answers fit into this with their heads.
const READ_FIRST: usize = 4 * 1024;
/// The longest head that is read here.
const HEAD_MAX: usize = 32 * 1024;
/// The longest body. Longer ones are for hyper, which reads them in larger and larger pieces.
const BODY_MAX: usize = 64 * 1024;
/// As many as hyper takes.
const HEADERS_MAX: usize = 100;
/// Room for the headers that are said of most calls: five here, and what the service calls the request.
const SAID: usize = 6;

/// What came back.
pub(crate) enum Heard {
    /// An answer.
    Answer(Response<ShortBody>),
    /// Something else, of which so much was read.
    Odd(BytesMut),
}

/// No answer came.
pub(crate) enum Unheard {
    /// The connection had ended or spoken by itself before anything was written.
    Before,
    /// It ended afterwards.
    After(io::Error),
}

/// Whether the connection is there and silent, as far as is known by now. Whoever `cx` wakes is woken when it speaks or ends.
pub(crate) fn is_silent(stream: &mut Stream, cx: &mut Context<'_>) -> bool {
    let mut unasked = [0; 1];
    Pin::new(stream)
        .poll_read(cx, &mut ReadBuf::new(&mut unasked))
        .is_pending()
}

/// Sends a call with this as its whole body, and hears what comes first.
pub(crate) async fn ask(
    stream: &mut Stream,
    host: &HeaderValue,
    call: &Leaving<'_>,
    body: &[u8],
) -> Result<Heard, Unheard> {
    let whole = written(host, call, body);
    let mut left = &whole[..];
    let mut buffer = BytesMut::new();
    let (mut has_begun, mut is_sent) = (false, false);
    poll_fn(|cx| {
        let begins = !has_begun;
        if begins && !is_silent(stream, cx) {
            return Poll::Ready(Err(Unheard::Before));
        }
        has_begun = true;
        if !is_sent {
            // An answer may come to what has not been written to its end; then that is all that will come.
            is_sent = poll_write(stream, cx, &mut left)
                .map_err(Unheard::After)?
                .is_ready();
        }
        if begins {
            // It was silent a moment ago, and since that look whatever comes wakes us.
            return Poll::Pending;
        }
        loop {
            if buffer.is_empty() {
                buffer.reserve(READ_FIRST);
            }
            ready!(poll_read(stream, cx, &mut buffer)).map_err(Unheard::After)?;
            match read(&mut buffer, call.method) {
                Read::Partial if buffer.len() <= HEAD_MAX => {}
                Read::Partial | Read::Odd if is_sent => {
                    return Poll::Ready(Ok(Heard::Odd(std::mem::take(&mut buffer))));
                }
                Read::Partial | Read::Odd => {
                    let odd = io::Error::from(io::ErrorKind::InvalidData);
                    return Poll::Ready(Err(Unheard::After(odd)));
                }
                Read::Whole { head, length, stays } => {
                    let answer = head.map(|()| ShortBody {
                        read: std::mem::take(&mut buffer),
                        left: length,
                        stays: stays && is_sent,
                    });
                    return Poll::Ready(Ok(Heard::Answer(answer)));
                }
            }
        }
    })
    .await
}

/// Writes all of it.
fn poll_write(stream: &mut Stream, cx: &mut Context<'_>, left: &mut &[u8]) -> Poll<io::Result<()>> {
    while !left.is_empty() {
        let written = ready!(Pin::new(&mut *stream).poll_write(cx, left))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        *left = &left[written..];
    }
    Pin::new(stream).poll_flush(cx)
}

/// Reads some more, and takes an end for an error: nobody asks for more than must still come.
fn poll_read(stream: &mut Stream, cx: &mut Context<'_>, buffer: &mut BytesMut) -> Poll<io::Result<()>> {
    match ready!(pin!(stream.read_buf(buffer)).poll(cx))? {
        0 => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
        _ => Poll::Ready(Ok(())),
    }
}

/// A call as it is sent.
fn written(host: &HeaderValue, call: &Leaving<'_>, body: &[u8]) -> Vec<u8> {
    let method = call.method.as_str();
    let path = call.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut length = method.len() + path.len() + host.len() + call.bearer.len() + body.len() + FIXED;
    for (name, value) in call.headers {
        length += name.as_str().len() + value.len() + 4;
    }
    let mut whole = Vec::with_capacity(length);
    for part in [
        method.as_bytes(),
        b" ",
        path.as_bytes(),
        b" HTTP/1.1\r\nhost: ",
        host.as_bytes(),
        b"\r\nauthorization: ",
        call.bearer.as_bytes(),
        b"\r\n",
    ] {
        whole.extend_from_slice(part);
    }
    // That there is none is said among the headers, where it must be.
    if !body.is_empty() {
        whole.extend_from_slice(b"content-length: ");
        whole.extend_from_slice(body.len().to_string().as_bytes());
        whole.extend_from_slice(b"\r\n");
    }
    for (name, value) in call.headers {
        // There is one of each.
        if name == HOST || name == AUTHORIZATION {
            continue;
        }
        whole.extend_from_slice(name.as_str().as_bytes());
        whole.extend_from_slice(b": ");
        whole.extend_from_slice(value.as_bytes());
        whole.extend_from_slice(b"\r\n");
    }
    whole.extend_from_slice(b"\r\n");
    whole.extend_from_slice(body);
    whole
}

/// What a head has besides what differs.
const FIXED: usize = 64;

/// What was made of the bytes so far.
enum Read {
    /// A head, which is taken out of them, and how long the body after it is.
    Whole {
        head: Response<()>,
        length: usize,
        /// Whether there may be another answer on this connection.
        stays: bool,
    },
    /// There is more to come.
    Partial,
    /// It is none that is read here.
    Odd,
}

fn read(buffer: &mut BytesMut, method: &Method) -> Read {
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut answer = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut answer,
        buffer,
        &mut headers,
    );
    let end = match parsed {
        Ok(httparse::Status::Complete(end)) => end,
        Ok(httparse::Status::Partial) => return Read::Partial,
        Err(_) => return Read::Odd,
    };
    let Some((status, framing)) = understood(&answer, method) else {
        return Read::Odd;
    };
    let (length, chunks) = match framing.body {
        Body::OfLength(length) => (length, None),
        Body::InChunks => match joined(&buffer[end..]) {
            Some(body) => (body.len(), Some(body)),
            None => return Read::Odd,
        },
    };
    // Said by where they lie: they are taken out of the buffer without a copy.
    let start = buffer.as_ptr().addr();
    let place = |part: &[u8]| {
        let from = part.as_ptr().addr() - start;
        Some((u16::try_from(from).ok()?, u16::try_from(from + part.len()).ok()?))
    };
    let (mut lines, mut count) = ([((0, 0), (0, 0)); HEADERS_MAX], 0);
    for line in answer.headers.iter().filter(|line| !is_settled(line)) {
        let (Some(name), Some(value)) = (place(line.name.as_bytes()), place(line.value)) else {
            return Read::Odd;
        };
        lines[count] = (name, value);
        count += 1;
    }
    let whole = buffer.split_to(end).freeze();
    let mut head = Response::new(());
    *head.status_mut() = status;
    let headers = head.headers_mut();
    headers.reserve(count + SAID);
    for &(name, value) in &lines[..count] {
        // What the parser takes for a header is one (RFC 9110 §5): both know the same characters.
        if let Ok(name) = HeaderName::from_bytes(&whole[range(name)])
            && let Ok(value) = HeaderValue::from_maybe_shared(whole.slice(range(value)))
        {
            headers.append(name, value);
        }
    }
    if let Some(body) = chunks {
        *buffer = body;
    }
    let stays = framing.stays;
    Read::Whole { head, length, stays }
}

fn range((from, to): (u16, u16)) -> Range<usize> {
    usize::from(from)..usize::from(to)
}

/// What an answer's head says about the bytes that follow.
#[derive(Clone, Copy)]
struct Framing {
    body: Body,
    /// Whether there may be another answer after them.
    stays: bool,
}

#[derive(Clone, Copy)]
enum Body {
    OfLength(usize),
    InChunks,
}

/// Status and framing, where both can be read in one way only.
fn understood(answer: &httparse::Response<'_, '_>, method: &Method) -> Option<(StatusCode, Framing)> {
    let status = StatusCode::from_u16(answer.code?).ok()?;
    // An answer in words of its own keeps them; hyper sees to that.
    let is_plain =
        answer.version? == 1 && !status.is_informational() && answer.reason == status.canonical_reason();
    if !is_plain {
        return None;
    }
    let (mut length, mut is_chunked) = (None, false);
    let mut stays = true;
    for line in answer.headers.iter() {
        // By their lengths first: few have one of these.
        match line.name.len() {
            14 if line.name.eq_ignore_ascii_case("content-length") => {
                if length.is_some() {
                    return None;
                }
                length = Some(plain_length(line.value)?);
            }
            17 if line.name.eq_ignore_ascii_case("transfer-encoding") => {
                if is_chunked || !line.value.eq_ignore_ascii_case(b"chunked") {
                    return None;
                }
                is_chunked = true;
            }
            10 if line.name.eq_ignore_ascii_case("connection") => {
                stays &= line.value.eq_ignore_ascii_case(b"keep-alive");
            }
            _ => {}
        }
    }
    // RFC 9112 §6.3.
    let has_no_body =
        *method == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let body = match (length, is_chunked) {
        (_, false) if has_no_body => Body::OfLength(0),
        (Some(length), false) if length <= BODY_MAX => Body::OfLength(length),
        (None, true) if !has_no_body => Body::InChunks,
        _ => return None,
    };
    Some((status, Framing { body, stays }))
}

/// Whether a line says whether the connection stays, or how the body is cut, and nothing else. That is known by now, and nobody
/// else's concern.
fn is_settled(line: &httparse::Header<'_>) -> bool {
    match line.name.len() {
        17 => line.name.eq_ignore_ascii_case("transfer-encoding"),
        10 => {
            line.name.eq_ignore_ascii_case("connection")
                && (line.value.eq_ignore_ascii_case(b"keep-alive")
                    || line.value.eq_ignore_ascii_case(b"close"))
        }
        _ => false,
    }
}

/// The body that these chunks are, where they are all there and nothing else is: no extension, no trailer, no byte after the end.
fn joined(mut chunks: &[u8]) -> Option<BytesMut> {
    const DIGITS_MAX: usize = 5;
    let mut body = BytesMut::with_capacity(chunks.len());
    loop {
        let digits = chunks
            .iter()
            .take(DIGITS_MAX)
            .take_while(|byte| byte.is_ascii_hexdigit())
            .count();
        let (size, rest) = chunks.split_at(digits);
        let size = usize::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()?;
        let (chunk, rest) = rest.strip_prefix(b"\r\n")?.split_at_checked(size)?;
        chunks = rest.strip_prefix(b"\r\n")?;
        if size == 0 {
            return chunks.is_empty().then_some(body);
        }
        body.extend_from_slice(chunk);
    }
}

/// Digits and nothing else.
fn plain_length(value: &[u8]) -> Option<usize> {
    let is_plain = (1..=15).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    is_plain.then(|| {
        value
            .iter()
            .fold(0, |length, digit| length * 10 + usize::from(digit - b'0'))
    })
}

/// The body of a short answer: what of it came with the head, and the rest as it comes.
pub(crate) struct ShortBody {
    read: BytesMut,
    left: usize,
    stays: bool,
}

impl ShortBody {
    /// Whether there may be another call on its connection once it has come: nobody said otherwise, and nothing came after it.
    pub(crate) fn lets_stay(&self) -> bool {
        self.stays && self.read.len() <= self.left
    }

    /// How many bytes of it have not been handed on.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// The next piece; `None` at the end. `stream` is only read where something is missing.
    pub(crate) fn poll_piece(
        &mut self,
        stream: Option<&mut Stream>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Bytes>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        if self.read.is_empty() {
            let Some(stream) = stream else {
                return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())));
            };
            self.read.reserve(self.left);
            ready!(poll_read(stream, cx, &mut self.read))?;
        }
        let piece = self.read.split_to(self.left.min(self.read.len())).freeze();
        self.left -= piece.len();
        Poll::Ready(Some(Ok(piece)))
    }
}

/// A connection as hyper sees it.
///
/// Where the short way did not do, the request has been written and some of the answer read. hyper then writes the same request
/// again, which leads nowhere, and reads the same bytes again.
pub(crate) struct Replay {
    stream: Stream,
    /// What was read already.
    read: BytesMut,
    request: Written,
}

/// How far hyper is with writing a request that has been written.
enum Written {
    NotYet {
        /// Who looked for an answer meanwhile.
        looked: Option<Waker>,
    },
    /// It has not said yet that this was all.
    Begun,
    /// From here on everything is real.
    Done,
}

impl Replay {
    /// Nothing was said on the connection that hyper does not know.
    pub(crate) fn nothing(stream: Stream) -> Self {
        Self {
            stream,
            read: BytesMut::new(),
            request: Written::Done,
        }
    }

    /// The whole request was written, and this was read.
    pub(crate) fn of(stream: Stream, read: BytesMut) -> Self {
        Self {
            stream,
            read,
            request: Written::NotYet { looked: None },
        }
    }

    /// Whether this is written for the second time.
    fn was_written(&mut self) -> bool {
        if let Written::NotYet { looked } = &mut self.request {
            if let Some(looked) = looked.take() {
                looked.wake();
            }
            self.request = Written::Begun;
        }
        matches!(self.request, Written::Begun)
    }
}

impl AsyncRead for Replay {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Written::NotYet { looked } = &mut self.request {
            // An answer before its request would be none.
            *looked = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if self.read.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let length = self.read.len().min(buffer.remaining());
        buffer.put_slice(&self.read[..length]);
        self.read.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Replay {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.was_written() {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes when nothing is left to be written, and so perhaps before it has written anything.
        if matches!(self.request, Written::Begun) {
            self.request = Written::Done;
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.was_written() {
            return Poll::Ready(Ok(bytes.iter().map(|part| part.len()).sum()));
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Uri};
    use http_body_util::Empty;

    use super::*;
    use crate::call_body::CallBody;

    /// What is made of an answer to this method: status, the body's length, whether the connection stays, what is left; or a word.
    fn made_of(method: &Method, bytes: &str) -> String {
        let mut buffer = BytesMut::from(bytes);
        match read(&mut buffer, method) {
            Read::Whole { head, length, stays } => {
                let stays = if stays { "stays" } else { "goes" };
                let left = String::from_utf8_lossy(&buffer);
                format!("{} {length} {stays} {left}", head.status().as_u16())
            }
            Read::Partial => {
                assert_eq!(buffer, bytes);
                "partial".into()
            }
            Read::Odd => {
                assert_eq!(buffer, bytes, "hyper reads it from its beginning");
                "odd".into()
            }
        }
    }

    #[test]
    fn what_can_be_read_in_one_way_is_read() {
        let check = |method: Method, bytes: &str, expected: &str| {
            assert_eq!(made_of(&method, bytes), expected, "{bytes:?}");
        };
        let get = |bytes: &str, expected: &str| check(Method::GET, bytes, expected);
        get("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfi", "200 4 stays fi");
        get(
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            "404 0 stays ",
        );
        get(
            "HTTP/1.1 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 1\r\n\r\nx",
            "200 1 stays x",
        );
        for goes in ["close", "close, x-once", "upgrade", ""] {
            let bytes = format!("HTTP/1.1 200 OK\r\nConnection: {goes}\r\nContent-Length: 1\r\n\r\nx");
            get(&bytes, "200 1 goes x");
        }
        get("HTTP/1.1 204 No Content\r\n\r\n", "204 0 stays ");
        get(
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
            "304 0 stays ",
        );
        check(
            Method::HEAD,
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
            "200 0 stays ",
        );
        get(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n4\r\nfine\r\n00b\r\n and dandie\r\n0\r\n\r\n",
            "200 15 stays fine and dandie",
        );
        for partial in ["", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n", "HTT"] {
            get(partial, "partial");
        }
    }

    #[test]
    fn anything_else_is_for_hyper() {
        for odd in [
            // Framed otherwise, or in two ways.
            "200 OK\r\n\r\n",
            "200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfine\r\n0\r\n\r\n",
            "200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 4\r\n\r\n",
            "204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
            "200 OK\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\n",
            "200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n",
            "200 OK\r\nContent-Length: 4, 4\r\n\r\n",
            "200 OK\r\nContent-Length: +4\r\n\r\n",
            "200 OK\r\nContent-Length: 0x4\r\n\r\n",
            "200 OK\r\nContent-Length:\r\n\r\n",
            "200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            // Long.
            "200 OK\r\nContent-Length: 65537\r\n\r\n",
            // Not the last word, or in other words.
            "100 Continue\r\n\r\n",
            "101 Switching Protocols\r\nContent-Length: 4\r\n\r\n",
            "200 Fine\r\nContent-Length: 4\r\n\r\n",
            "200\r\nContent-Length: 4\r\n\r\n",
            // No HTTP.
            "200 OK\r\nContent-Length : 4\r\n\r\n",
            "200 OK\r\nContent-Length: 4\r\n folded\r\n\r\n",
            "2000 OK\r\n\r\n",
        ] {
            assert_eq!(
                made_of(&Method::GET, &format!("HTTP/1.1 {odd}")),
                "odd",
                "{odd:?}"
            );
        }
        // In chunks that have not all come, or that could be read in another way.
        for odd in [
            "",
            "4\r\nfine\r\n",
            "4\r\nfine\r\n0\r\n",
            "4\r\nfin",
            "4;x=y\r\nfine\r\n0\r\n\r\n",
            "4 \r\nfine\r\n0\r\n\r\n",
            "+4\r\nfine\r\n0\r\n\r\n",
            "0x4\r\nfine\r\n0\r\n\r\n",
            "000004\r\nfine\r\n0\r\n\r\n",
            "4\nfine\r\n0\r\n\r\n",
            "4\r\nfine\n0\r\n\r\n",
            "3\r\nfine\r\n0\r\n\r\n",
            "5\r\nfine\r\n0\r\n\r\n",
            "\r\nfine\r\n0\r\n\r\n",
            "4\r\nfine\r\n0\r\nx-sum: 1\r\n\r\n",
            "4\r\nfine\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        ] {
            let bytes = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{odd}");
            assert_eq!(made_of(&Method::GET, &bytes), "odd", "{odd:?}");
        }
        let older = "HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nfine";
        assert_eq!(made_of(&Method::GET, older), "odd");
        let many = "x-many: 1\r\n".repeat(HEADERS_MAX);
        let many = format!("HTTP/1.1 200 OK\r\n{many}Content-Length: 4\r\n\r\n");
        assert_eq!(made_of(&Method::GET, &many), "odd");
    }

    #[test]
    fn a_call_is_written_as_it_is_with_one_host_and_one_bearer() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-one", "1"),
            ("host", "evil.test"),
            ("x-one", "2"),
            ("authorization", "Basic x"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let call = Leaving {
            at: tokio::time::Instant::now(),
            method: &Method::DELETE,
            uri: &Uri::from_static("http://ignored.test/a?b=%20c"),
            headers: &headers,
            bearer: &HeaderValue::from_static("Bearer t"),
            body: CallBody::new(Empty::<Bytes>::new(), 0, None).unwrap().send(),
        };
        let as_sent = |body| {
            let whole = written(&HeaderValue::from_static("example.com:81"), &call, body);
            String::from_utf8(whole).unwrap()
        };
        let line = "DELETE /a?b=%20c HTTP/1.1\r\nhost: example.com:81\r\nauthorization: Bearer t\r\n";
        let own = "x-one: 1\r\nx-one: 2\r\n\r\n";
        assert_eq!(as_sent(b""), format!("{line}{own}"));
        assert_eq!(as_sent(b"{}"), format!("{line}content-length: 2\r\n{own}{{}}"));
    }
}
