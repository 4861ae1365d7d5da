//! What a failed answer means: read as far as that needs, unpacked for reading only, judged by the domain.

use std::io::Read as _;

use evergrant_domain::Timestamp;
use evergrant_domain::api_answer::{ApiAnswer, Judgement, judge};
use evergrant_oauth::retry_after_from;
use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::header::{CONTENT_ENCODING, WWW_AUTHENTICATE};
use http::{HeaderMap, Response};

use crate::answer_body::GatewayBody;

/// Judges a failed answer that came at `now`. Its body stays whole.
pub(crate) async fn verdict(response: &mut Response<GatewayBody>, now: Timestamp) -> Judgement {
    let body = response.body_mut().read_ahead().await;
    let headers = response.headers();
    let body = body.and_then(|body| {
        let Some(coding) = headers.get(CONTENT_ENCODING) else {
            return Some(body);
        };
        unpacked(coding.as_bytes(), &body).map(Into::into)
    });
    let mut judged = judge(ApiAnswer {
        status: response.status().as_u16(),
        www_authenticate: headers
            .get(WWW_AUTHENTICATE)
            .and_then(|value| value.to_str().ok()),
        retry_after: retry_after_from(headers, now),
        body: body.as_deref().unwrap_or_default(),
    });
    if judged.correlation_id.is_none() {
        judged.correlation_id = correlation_id(headers);
    }
    judged
}

fn correlation_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get("x-hubspot-correlation-id")?.to_str().ok()?;
    (id.len() <= 128).then(|| id.to_owned())
}

/// Unpacks what an error body can be; `None` for what we cannot unpack, and for what would be a bomb.
fn unpacked(coding: &[u8], body: &[u8]) -> Option<Vec<u8>> {
    const UNPACKED_MAX: u64 = 256 * 1024;
    let read = |packed: &mut dyn std::io::Read| {
        let mut plain = Vec::new();
        packed.take(UNPACKED_MAX + 1).read_to_end(&mut plain).ok()?;
        (plain.len() as u64 <= UNPACKED_MAX).then_some(plain)
    };
    match coding.to_ascii_lowercase().as_slice() {
        b"identity" => Some(body.to_vec()),
        b"gzip" | b"x-gzip" => read(&mut MultiGzDecoder::new(body)),
        // RFC 9110 §8.4.1.2 means zlib; some send the bare stream.
        b"deflate" => read(&mut ZlibDecoder::new(body)).or_else(|| read(&mut DeflateDecoder::new(body))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::*;

    #[test]
    fn packed_bodies_are_read_and_bombs_are_not() {
        let plain = b"{\"category\":\"EXPIRED_AUTHENTICATION\"}";
        let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
        gzip.write_all(plain).unwrap();
        let gzip = gzip.finish().unwrap();
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
        zlib.write_all(plain).unwrap();
        let mut bare = DeflateEncoder::new(Vec::new(), Compression::default());
        bare.write_all(plain).unwrap();
        assert_eq!(unpacked(b"gzip", &gzip).as_deref(), Some(&plain[..]));
        assert_eq!(unpacked(b"GZIP", &gzip).as_deref(), Some(&plain[..]));
        assert_eq!(
            unpacked(b"deflate", &zlib.finish().unwrap()).as_deref(),
            Some(&plain[..])
        );
        assert_eq!(
            unpacked(b"deflate", &bare.finish().unwrap()).as_deref(),
            Some(&plain[..])
        );
        assert_eq!(unpacked(b"br", plain), None);
        assert_eq!(unpacked(b"gzip", &gzip[..gzip.len() / 2]), None);
        let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
        bomb.write_all(&vec![b' '; 8 * 1024 * 1024]).unwrap();
        let bomb = bomb.finish().unwrap();
        assert!(bomb.len() < 64 * 1024);
        assert_eq!(unpacked(b"gzip", &bomb), None);
    }
}
