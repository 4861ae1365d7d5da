//! Stands between store and server, and cuts where a test says.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};

const LETS_PASS: u8 = 0;
const LOSES_COMMITS: u8 = 1;
const LOSES_ANSWERS_TO_COMMITS: u8 = 2;

pub(crate) struct Proxy {
    port: u16,
    mood: Arc<AtomicU8>,
    /// Connections up to this one are silent.
    silent: Arc<AtomicU32>,
}

impl Proxy {
    pub(crate) async fn before(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mood = Arc::new(AtomicU8::new(LETS_PASS));
        let silent = Arc::new(AtomicU32::new(0));
        let (its_mood, its_silent) = (Arc::clone(&mood), Arc::clone(&silent));
        tokio::spawn(async move {
            for number in 1.. {
                let (client, _) = listener.accept().await.unwrap();
                let server = UnixStream::connect(&socket).await.unwrap();
                let its_silent = Arc::clone(&its_silent);
                let silenced = move || number <= its_silent.load(Ordering::SeqCst);
                tokio::spawn(pass(client, server, Arc::clone(&its_mood), silenced));
            }
        });
        Self { port, mood, silent }
    }

    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://evergrant@127.0.0.1:{}/{database}", self.port)
    }

    /// From now on, nothing passes on the first so many connections, and nobody is told.
    pub(crate) fn silence_the_first(&self, connections: u32) {
        self.silent.store(connections, Ordering::SeqCst);
    }

    /// The next COMMIT does not reach the server.
    pub(crate) fn lose_a_commit(&self) {
        self.mood.store(LOSES_COMMITS, Ordering::SeqCst);
    }

    /// The answer to the next COMMIT does not reach the store.
    pub(crate) fn lose_the_answer_to_a_commit(&self) {
        self.mood.store(LOSES_ANSWERS_TO_COMMITS, Ordering::SeqCst);
    }
}

async fn pass(
    mut client: TcpStream,
    mut server: UnixStream,
    mood: Arc<AtomicU8>,
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
                let lost = if asked.windows(6).any(|word| word == b"COMMIT") {
                    mood.swap(LETS_PASS, Ordering::SeqCst)
                } else {
                    LETS_PASS
                };
                if lost == LOSES_COMMITS || server.write_all(asked).await.is_err() {
                    return;
                }
                if lost == LOSES_ANSWERS_TO_COMMITS {
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
