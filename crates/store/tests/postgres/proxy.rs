//! Stands between store and server, and cuts where a test says.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};

/// What is to be lost, with its session.
#[derive(Clone, Copy)]
pub(crate) enum Lost {
    /// The message does not reach the server.
    Message,
    /// The server does what the message asks for, and its answer does not reach the store.
    Answer,
}

/// The first message with this text in it, and what is lost of it.
type Aim = Arc<Mutex<Option<(&'static str, Lost)>>>;

pub(crate) struct Proxy {
    port: u16,
    aim: Aim,
    /// How many messages came.
    asked: Arc<AtomicU32>,
    /// Connections up to this one are silent.
    silent: Arc<AtomicU32>,
}

impl Proxy {
    pub(crate) async fn before(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (aim, asked) = (Aim::default(), Arc::new(AtomicU32::new(0)));
        let silent = Arc::new(AtomicU32::new(0));
        let (its_aim, its_asked, its_silent) = (Arc::clone(&aim), Arc::clone(&asked), Arc::clone(&silent));
        tokio::spawn(async move {
            for number in 1.. {
                let (client, _) = listener.accept().await.unwrap();
                let server = UnixStream::connect(&socket).await.unwrap();
                let its_silent = Arc::clone(&its_silent);
                let silenced = move || number <= its_silent.load(Ordering::SeqCst);
                let (aim, asked) = (Arc::clone(&its_aim), Arc::clone(&its_asked));
                tokio::spawn(pass(client, server, aim, asked, silenced));
            }
        });
        Self {
            port,
            aim,
            asked,
            silent,
        }
    }

    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://evergrant@127.0.0.1:{}/{database}", self.port)
    }

    /// From now on, nothing passes on the first so many connections, and nobody is told.
    pub(crate) fn silence_the_first(&self, connections: u32) {
        self.silent.store(connections, Ordering::SeqCst);
    }

    /// Loses the next message with this text in it, or its answer.
    pub(crate) fn lose(&self, lost: Lost, of: &'static str) {
        *self.aim.lock().unwrap() = Some((of, lost));
    }

    /// How often the store has asked the server for something and waited for the answer.
    pub(crate) fn round_trips(&self) -> u32 {
        self.asked.load(Ordering::SeqCst)
    }
}

async fn pass(
    mut client: TcpStream,
    mut server: UnixStream,
    aim: Aim,
    round_trips: Arc<AtomicU32>,
    silenced: impl Fn() -> bool,
) {
    let (mut asked, mut answered) = ([0; 16 * 1024], [0; 16 * 1024]);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(length @ 1..) = read else { return };
                if silenced() {
                    continue;
                }
                let asked = &asked[..length];
                round_trips.fetch_add(1, Ordering::SeqCst);
                let lost = aim
                    .lock()
                    .unwrap()
                    .take_if(|(of, _)| asked.windows(of.len()).any(|word| word == of.as_bytes()));
                if matches!(lost, Some((_, Lost::Message))) || server.write_all(asked).await.is_err() {
                    return;
                }
                if matches!(lost, Some((_, Lost::Answer))) {
                    // Waits for it, so that the server has done it, and keeps it.
                    let _ = server.read(&mut answered).await;
                    return;
                }
            }
            read = server.read(&mut answered) => {
                let Ok(length @ 1..) = read else { return };
                if client.write_all(&answered[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}
