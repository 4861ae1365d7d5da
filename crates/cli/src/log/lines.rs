//! Lines on their way to standard error.
//!
//! Whoever logs neither waits nor fails, whatever has become of standard error: a file on a full device, a pipe whose reader
//! is stuck or gone. A thread of its own writes. What it cannot write, or keep up with, is lost and counted.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

/// What may wait to be written: thousands of lines, so that a reader may be away for a moment.
const WAITING_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long the end of the process waits for the last lines.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Takes lines, one a `write`.
#[derive(Clone)]
pub(super) struct Lines {
    messages: Sender<Message>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    waiting_bytes: AtomicUsize,
    lost: AtomicU64,
}

enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

impl Lines {
    /// Writes what comes to `out`. `tell` is told how many lines were lost since the start, each time after more were lost and
    /// `out` could be written again; it may log.
    pub(super) fn to(
        out: impl Write + Send + 'static,
        tell: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, messages) = channel();
        let state = Arc::new(State::default());
        let writer = Writer {
            out,
            is_torn: false,
            state: state.clone(),
        };
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || writer.run(&messages, tell))?;
        Ok(Self {
            messages: sender,
            state,
        })
    }

    /// Waits until everything so far is written, but not long.
    pub(super) fn flush(&self) {
        let (done, is_done) = sync_channel(1);
        if self.messages.send(Message::Flush(done)).is_ok() {
            let _ = is_done.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let waiting = self.state.waiting_bytes.fetch_add(line.len(), Ordering::Relaxed);
        if waiting + line.len() > WAITING_BYTES_MAX
            || self.messages.send(Message::Line(line.to_vec())).is_err()
        {
            self.state.waiting_bytes.fetch_sub(line.len(), Ordering::Relaxed);
            self.state.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Writer<W> {
    out: W,
    /// Whether `out` ends within a line.
    is_torn: bool,
    state: Arc<State>,
}

impl<W: Write> Writer<W> {
    fn run(mut self, messages: &Receiver<Message>, tell: impl Fn(u64)) {
        let mut told = 0;
        for message in messages {
            let line = match message {
                Message::Line(line) => line,
                Message::Flush(done) => {
                    let _ = done.send(());
                    continue;
                }
            };
            let length = line.len();
            let is_written = self.write(line).is_ok();
            let waiting = self.state.waiting_bytes.fetch_sub(length, Ordering::Relaxed) - length;
            if !is_written {
                self.state.lost.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            // The number counts from the start: should this be lost as well, the next one makes up for it.
            let lost = self.state.lost.load(Ordering::Relaxed);
            if lost > told && waiting < WAITING_BYTES_MAX / 2 {
                told = lost;
                tell(lost);
            }
        }
    }

    /// Writes a line that begins at the beginning of one, though the one before was cut off.
    fn write(&mut self, mut line: Vec<u8>) -> io::Result<()> {
        if self.is_torn {
            line.insert(0, b'\n');
        }
        let mut left = line.as_slice();
        while !left.is_empty() {
            match self.out.write(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.is_torn = left[written - 1] != b'\n';
                    left = &left[written..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Takes what it is allowed to; `None` is an error.
    struct Reluctant {
        allowed: Receiver<Option<usize>>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Reluctant {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let allowed = self.allowed.recv().expect("the test goes on");
            let length = allowed.ok_or(io::ErrorKind::StorageFull)?.min(bytes.len());
            self.written
                .lock()
                .expect("nobody panics")
                .extend_from_slice(&bytes[..length]);
            Ok(length)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Log {
        lines: Lines,
        allow: Sender<Option<usize>>,
        told: Receiver<u64>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Log {
        fn new() -> Self {
            let (allow, allowed) = channel();
            let (tell, told) = channel();
            let written = Arc::default();
            let out = Reluctant {
                allowed,
                written: Arc::clone(&written),
            };
            let tell = move |lost| tell.send(lost).expect("the test goes on");
            Self {
                lines: Lines::to(out, tell).expect("a thread"),
                allow,
                told,
                written,
            }
        }

        fn log(&mut self, line: &str) {
            self.lines.write_all(line.as_bytes()).expect("it never fails");
        }

        fn allow(&self, each: &[Option<usize>]) {
            for &allowed in each {
                self.allow.send(allowed).expect("the thread lives");
            }
        }

        fn written(&self) -> String {
            self.lines.flush();
            String::from_utf8(self.written.lock().expect("nobody panics").clone()).expect("UTF-8")
        }
    }

    const ALL: Option<usize> = Some(usize::MAX);

    #[test]
    fn who_logs_does_not_wait_for_a_reader_that_is_stuck_and_lost_lines_are_counted() {
        let mut log = Log::new();
        let line = "x".repeat(1023) + "\n";
        let fit = WAITING_BYTES_MAX / line.len();
        for _ in 0..fit + 3 {
            log.log(&line);
        }
        log.allow(&vec![ALL; fit]);
        assert_eq!(log.told.recv(), Ok(3));
        assert_eq!(log.written().len(), fit * line.len());
    }

    #[test]
    fn a_line_that_cannot_be_written_is_counted_and_does_not_tear_the_next() {
        let mut log = Log::new();
        log.log("one\n");
        log.log("two\n");
        log.log("three\n");
        log.log("four\n");
        log.allow(&[Some(2), None, None, Some(1), ALL, ALL]);
        assert_eq!(log.told.recv(), Ok(2));
        assert_eq!(log.written(), "on\nthree\nfour\n");
        assert!(log.told.try_recv().is_err(), "it was told twice");
    }
}
