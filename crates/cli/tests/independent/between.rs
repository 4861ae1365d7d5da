//! Between a service and its database: what stores a token set and the answer to it get lost, and everything falls silent.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

/// What the history is told, in the same transaction, of a token set that is stored.
const STORES: &[u8] = b"a new access token was issued and stored";

/// What becomes of what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Passes,
    /// Nothing that stores a token set reaches the server; its connection ends.
    LosesTokenSets,
    /// The server stores token sets, and says so to nobody; the connection ends.
    LosesAnswers,
    /// Connections end, and no new one leads anywhere.
    Cut,
    /// Nothing arrives, and nobody is told.
    Silent,
}

pub(crate) struct Between {
    port: u16,
    mood: Arc<watch::Sender<Mood>>,
    lost: watch::Receiver<u32>,
}

impl Between {
    pub(crate) async fn before(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mood = Arc::new(watch::Sender::new(Mood::Passes));
        let (losing, lost) = watch::channel(0);
        let (its_mood, losing) = (mood.clone(), Arc::new(losing));
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                if *its_mood.borrow() != Mood::Cut {
                    tokio::spawn(pass(client, socket.clone(), its_mood.subscribe(), losing.clone()));
                }
            }
        });
        Self { port, mood, lost }
    }

    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://evergrant@127.0.0.1:{}/{database}", self.port)
    }

    pub(crate) fn set(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// Waits until so many token sets, or answers to them, were lost.
    pub(crate) async fn has_lost(&self, times: u32) {
        let mut lost = self.lost.clone();
        lost.wait_for(|lost| *lost >= times).await.unwrap();
    }
}

async fn pass(
    mut client: TcpStream,
    socket: PathBuf,
    mut mood: watch::Receiver<Mood>,
    lost: Arc<watch::Sender<u32>>,
) {
    let mut server = UnixStream::connect(socket).await.unwrap();
    let (mut asked, mut answered) = ([0; 16 * 1024], [0; 16 * 1024]);
    loop {
        let now = *mood.borrow_and_update();
        if now == Mood::Cut {
            return;
        }
        tokio::select! {
            changed = mood.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            read = client.read(&mut asked), if now != Mood::Silent => {
                let Ok(length @ 1..) = read else { return };
                let asked = &asked[..length];
                let stores = asked.windows(STORES.len()).any(|word| word == STORES);
                if stores && now == Mood::LosesTokenSets {
                    lost.send_modify(|lost| *lost += 1);
                    return;
                }
                if server.write_all(asked).await.is_err() {
                    return;
                }
                if stores && now == Mood::LosesAnswers {
                    // Waits for it, so that the server has done it, and keeps it.
                    let _ = server.read(&mut answered).await;
                    lost.send_modify(|lost| *lost += 1);
                    return;
                }
            }
            read = server.read(&mut answered), if now != Mood::Silent => {
                let Ok(length @ 1..) = read else { return };
                if client.write_all(&answered[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}
