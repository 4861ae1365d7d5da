//! The caller's end of a connection: bytes as they are.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use serde_json::Value;

use crate::upstream::find;

/// Nothing here takes a tenth of it, on a machine that does nothing else.
const PATIENCE: Duration = Duration::from_secs(30);

/// An answer as it came.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Whether it came to its end.
    pub(crate) is_whole: bool,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map_or("", |(_, value)| value)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The code where it is an answer of Evergrant's own, and it is then one in every respect; empty for the provider's.
    pub(crate) fn code(&self) -> String {
        let code = self.header("evergrant-error").to_owned();
        if !code.is_empty() {
            let shown = format!("{:?} {}", self.headers, self.text());
            assert_eq!(self.header("content-type"), "application/problem+json", "{shown}");
            assert!(
                ["true", "false"].contains(&self.header("x-should-retry")),
                "{shown}"
            );
            // To a HEAD request there is none.
            if !self.body.is_empty() {
                let problem: Value = serde_json::from_slice(&self.body).unwrap();
                assert_eq!(problem["code"], code.as_str(), "{shown}");
                assert_eq!(problem["status"], self.status, "{shown}");
                assert_eq!(
                    problem["request_id"],
                    self.header("evergrant-request-id"),
                    "{shown}"
                );
            }
        }
        code
    }
}

pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
    is_over: bool,
}

impl Wire {
    pub(crate) fn to(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream,
            buffer: Vec::new(),
            is_over: false,
        }
    }

    /// Whoever refuses early does not read on: that is no failure.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    pub(crate) fn end_sending(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The next final answer; `None` where the connection ends before one begins.
    pub(crate) fn answer(&mut self, to_head: bool) -> Option<Answer> {
        loop {
            let end = self.fill(|bytes| find(bytes, b"\r\n\r\n"))?;
            let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
            let head = String::from_utf8_lossy(&head[..end]).into_owned();
            let mut lines = head.split("\r\n");
            let line = lines.next().unwrap();
            assert!(line.starts_with("HTTP/1."), "no answer: {line:?}");
            let status: u16 = line.split(' ').nth(1).unwrap().parse().unwrap();
            let headers: Vec<(String, String)> = lines
                .map(|line| line.split_once(": ").unwrap_or((line, "")))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect();
            if (100..200).contains(&status) {
                continue;
            }
            let mut answer = Answer {
                status,
                headers,
                body: Vec::new(),
                is_whole: true,
            };
            if to_head || status == 204 || status == 304 {
                return Some(answer);
            }
            if answer.header("transfer-encoding") == "chunked" {
                answer.is_whole = self.chunked(&mut answer.body);
            } else {
                let length = answer.header("content-length").to_owned();
                let length = length.parse().unwrap_or(usize::MAX);
                let whole = self.fill(|bytes| (bytes.len() >= length).then_some(length));
                let length = whole.unwrap_or(self.buffer.len());
                answer.body = self.buffer.drain(..length).collect();
                answer.is_whole = whole.is_some();
            }
            return Some(answer);
        }
    }

    /// The next answer, of which the first bytes were taken already: they are the status line's.
    pub(crate) fn answer_begun_with(&mut self, taken: usize) -> Answer {
        let begun = b"HTTP/1.1"[..taken].to_vec();
        self.buffer.splice(..0, begun);
        self.answer(false).unwrap()
    }

    fn chunked(&mut self, body: &mut Vec<u8>) -> bool {
        loop {
            let Some(end) = self.fill(|bytes| find(bytes, b"\r\n")) else {
                return false;
            };
            let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
            let size = usize::from_str_radix(std::str::from_utf8(&line[..end]).unwrap(), 16).unwrap();
            let Some(_) = self.fill(|bytes| (bytes.len() >= size + 2).then_some(0)) else {
                return false;
            };
            body.extend(self.buffer.drain(..size));
            self.buffer.drain(..2);
            if size == 0 {
                return true;
            }
        }
    }

    /// Whether nothing more comes before the other side ends the connection.
    pub(crate) fn ends(&mut self) -> bool {
        self.fill(|bytes| (!bytes.is_empty()).then_some(0)).is_none()
    }

    pub(crate) fn fill(&mut self, end: impl Fn(&[u8]) -> Option<usize>) -> Option<usize> {
        loop {
            if let Some(end) = end(&self.buffer) {
                return Some(end);
            }
            if self.is_over {
                return None;
            }
            let mut piece = [0; 16 * 1024];
            match self.stream.read(&mut piece) {
                Ok(0) => self.is_over = true,
                Ok(length) => self.buffer.extend_from_slice(&piece[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    panic!("nothing comes: {:?}", String::from_utf8_lossy(&self.buffer))
                }
                // A connection that is reset has ended, too.
                Err(_) => self.is_over = true,
            }
        }
    }

    /// The next so many bytes.
    pub(crate) fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        self.fill(|bytes| (bytes.len() >= length).then_some(length))?;
        Some(self.buffer.drain(..length).collect())
    }
}
