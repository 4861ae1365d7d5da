//! Where a request ends: lengths, chunks, and what hides behind them.

use crate::site::{BAD, Case, OK, Site, case};

/// A second request that must never be seen, unless it is sent as one.
const SMUGGLED: &str = "GET /gateway/c1/smuggled HTTP/1.1\r\nHost: localhost\r\n{auth}\r\n\r\n";

fn post(
    name: &'static str,
    framing: &str,
    body: &str,
    arrives: &'static [&'static str],
    answers: &'static [(u16, &'static str)],
) -> Case {
    let bytes =
        format!("POST /gateway/c1/x HTTP/1.1\r\nHost: localhost\r\n{{auth}}\r\n{framing}\r\n\r\n{body}");
    case(name, bytes, arrives, answers)
}

const X: &[&str] = &["POST /base/x"];

#[test]
fn a_request_has_one_end_or_is_none() {
    let cl_te = |name, framing: &str, answers| {
        // By the length the body ends within the smuggled request, by the chunks before it.
        post(name, framing, &format!("0\r\n\r\n{SMUGGLED}"), X, answers)
    };
    Site::new().check(&[
        post("length", "Content-Length: 3", "abc", X, OK),
        post("chunks", "Transfer-Encoding: chunked", "3\r\nabc\r\n0\r\n\r\n", X, OK),
        // RFC 9112 §6.3: the chunks count, and nothing after them is a request.
        cl_te("length and chunks", "Content-Length: 4\r\nTransfer-Encoding: chunked", OK),
        cl_te("chunks and length", "Transfer-Encoding: chunked\r\nContent-Length: 4", OK),
        cl_te("length between chunks", "Content-Length: 200\r\nTransfer-Encoding: chunked\r\nContent-Length: 4", OK),
        post("length twice", "Content-Length: 3\r\nContent-Length: 4", "abcd", &[], BAD),
        post("length twice alike", "Content-Length: 3\r\nContent-Length: 3", "abc", X, OK),
        post("length in a list", "Content-Length: 3, 3", "abc", &[], BAD),
        post("length in a list of two", "Content-Length: 3, 4", "abcd", &[], BAD),
        post("length with a sign", "Content-Length: +3", "abc", &[], BAD),
        post("negative length", "Content-Length: -1", "", &[], BAD),
        post("hexadecimal length", "Content-Length: 0x3", "abc", &[], BAD),
        post("length with a space inside", "Content-Length: 1 0", "abcdefghij", &[], BAD),
        post("fractional length", "Content-Length: 3.0", "abc", &[], BAD),
        post("empty length", "Content-Length:", "", &[], BAD),
        post("endless length", "Content-Length: 99999999999999999999", "", &[], BAD),
        post("the largest length", "Content-Length: 18446744073709551615", "", &[], &[(431, "headers_too_large")]),
        post("length with a space before the colon", "Content-Length : 3", "abc", &[], BAD),
        post("length that is folded", "Content-Length:\r\n 3", "abc", &[], BAD),
        post("length by another name", "Content_Length: 100\r\nContent-Length: 3", "abc", X, OK),
        post("chunks in capitals", "Transfer-Encoding: CHUNKED", "0\r\n\r\n", X, OK),
        post("chunks and tab", "Transfer-Encoding:\tchunked", "0\r\n\r\n", X, OK),
        post("coding twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "0\r\n\r\n", &[], BAD),
        post("coding twice in a list", "Transfer-Encoding: chunked, chunked", "0\r\n\r\n", &[], BAD),
        post("identity", "Transfer-Encoding: identity", "", &[], BAD),
        post("identity and length", "Transfer-Encoding: identity\r\nContent-Length: 3", "abc", &[], BAD),
        post("gzip below chunks", "Transfer-Encoding: gzip, chunked", "0\r\n\r\n", &[], BAD),
        post("chunks below gzip", "Transfer-Encoding: chunked, gzip", "0\r\n\r\n", &[], BAD),
        post("unknown coding", "Transfer-Encoding: xchunked", "0\r\n\r\n", &[], BAD),
        post("coding in quotes", "Transfer-Encoding: \"chunked\"", "0\r\n\r\n", &[], BAD),
        post("coding with a parameter", "Transfer-Encoding: chunked;a=b", "0\r\n\r\n", &[], BAD),
        post("coding with a vertical tab", "Transfer-Encoding: \x0bchunked", "0\r\n\r\n", &[], BAD),
        post("coding with a space before the colon", "Transfer-Encoding : chunked", "0\r\n\r\n", &[], BAD),
        post("coding that is folded", "Transfer-Encoding:\r\n chunked", "0\r\n\r\n", &[], BAD),
        post("coding behind a bare line feed", "X: y\nTransfer-Encoding: chunked", "0\r\n\r\n", X, OK),
        post("coding behind a bare carriage return", "X: y\rTransfer-Encoding: chunked", "0\r\n\r\n", &[], BAD),
        case(
            "chunks in http 1.0",
            "POST /gateway/c1/x HTTP/1.0\r\nHost: localhost\r\n{auth}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            &[],
            BAD,
        ),
    ]);
}

#[test]
fn chunks_are_read_by_the_letter() {
    let chunks = |name, body: &str, arrives, answers| {
        let case = post(name, "Transfer-Encoding: chunked", body, arrives, answers);
        // Whether the head has left by then is a matter of time; its end never does.
        Case {
            may_begin: answers == BAD,
            ..case
        }
    };
    Site::new().check(&[
        chunks("control", "3\r\nabc\r\n0\r\n\r\n", X, OK),
        chunks("chunk extension", "3;a=b\r\nabc\r\n0;c\r\n\r\n", X, OK),
        chunks("leading zeros", "0003\r\nabc\r\n0\r\n\r\n", X, OK),
        chunks("size in capitals", "A\r\n0123456789\r\n0\r\n\r\n", X, OK),
        chunks(
            "size that overflows",
            "fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
            &[],
            BAD,
        ),
        chunks(
            "size that wraps",
            "10000000000000003\r\nabc\r\n0\r\n\r\n",
            &[],
            BAD,
        ),
        chunks("no size", "\r\nabc\r\n0\r\n\r\n", &[], BAD),
        chunks("size with a prefix", "0x3\r\nabc\r\n0\r\n\r\n", &[], BAD),
        chunks("size with a sign", "+3\r\nabc\r\n0\r\n\r\n", &[], BAD),
        chunks("negative size", "-3\r\nabc\r\n0\r\n\r\n", &[], BAD),
        chunks("no end of a chunk", "3\r\nabcdef0\r\n\r\n", &[], BAD),
        chunks("bare line feed after the size", "3\nabc\r\n0\r\n\r\n", &[], BAD),
        chunks(
            "bare carriage return after the size",
            "3\rabc\r\n0\r\n\r\n",
            &[],
            BAD,
        ),
        chunks("bare line feed after a chunk", "3\r\nabc\n0\r\n\r\n", &[], BAD),
        chunks(
            "line feed in an extension",
            "3;a\nb\r\nabc\r\n0\r\n\r\n",
            &[],
            BAD,
        ),
        chunks(
            "endless extension",
            &format!("3;{}\r\nabc\r\n0\r\n\r\n", "a".repeat(100_000)),
            &[],
            BAD,
        ),
        chunks(
            "trailers",
            "0\r\nAuthorization: Bearer evil\r\nX-Evil: evil\r\n\r\n",
            X,
            OK,
        ),
        chunks(
            "trailer that frames",
            "0\r\nContent-Length: 100\r\nTransfer-Encoding: chunked\r\n\r\n",
            X,
            OK,
        ),
        chunks(
            "endless trailers",
            &format!("0\r\n{}\r\n", "X-A: b\r\n".repeat(20_000)),
            &[],
            BAD,
        ),
    ]);
}

#[test]
fn a_second_request_is_one_of_its_own_or_none() {
    let then =
        |name, first: &str, arrives, answers| case(name, format!("{first}{SMUGGLED}"), arrives, answers);
    let get = "GET /gateway/c1/x HTTP/1.1\r\nHost: localhost\r\n{auth}\r\n";
    let body = SMUGGLED.len() + 200;
    Site::new().check(&[
        then(
            "pipelined",
            &format!("{get}\r\n"),
            &["GET /base/x", "GET /base/smuggled"],
            &[(200, ""), (200, "")],
        ),
        then(
            "after an end",
            &format!("{get}Connection: close\r\n\r\n"),
            &["GET /base/x"],
            OK,
        ),
        then(
            "after a refusal",
            "GET  /x HTTP/1.1\r\nHost: localhost\r\n\r\n",
            &[],
            BAD,
        ),
        then(
            "in the body of a get",
            &format!("{get}Content-Length: 3\r\n\r\nabc"),
            &["GET /base/x", "GET /base/smuggled"],
            &[(200, ""), (200, "")],
        ),
        then(
            "after a refused post",
            "POST /gateway/c2/x HTTP/1.1\r\nHost: localhost\r\n{auth}\r\nContent-Length: 3\r\n\r\nabc",
            &["GET /base/smuggled"],
            &[(424, "unknown_connection"), (200, "")],
        ),
        then(
            "within a refused post",
            &format!(
                "POST /gateway/c2/x HTTP/1.1\r\nHost: localhost\r\n{{auth}}\r\nContent-Length: {body}\r\n\r\n"
            ),
            &[],
            &[(424, "unknown_connection")],
        ),
        then(
            "malformed after one that is not",
            &format!("{get}\r\nGET /a b HTTP/1.1\r\n\r\n"),
            &["GET /base/x"],
            &[(200, ""), (400, "bad_request")],
        ),
        then(
            "after http 1.0",
            "GET /gateway/c1/x HTTP/1.0\r\nHost: localhost\r\n{auth}\r\n\r\n",
            &["GET /base/x"],
            OK,
        ),
    ]);
}
