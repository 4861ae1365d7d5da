//! The way from a process to its database: it can be cut, and it can fall silent.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

/// What becomes of what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    /// Connections that began before the last cut are gone.
    cuts: u32,
    silent: bool,
}

/// Stands between one process and the database.
pub(crate) struct Proxy {
    port: u16,
    way: Arc<watch::Sender<Way>>,
}

impl Proxy {
    pub(crate) async fn before(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let way = Arc::new(watch::Sender::new(Way {
            cuts: 0,
            silent: false,
        }));
        let its_way = way.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, socket.clone(), its_way.subscribe()));
            }
        });
        Self { port, way }
    }

    pub(crate) fn url(&self, database: &str) -> String {
        format!(
            "postgres://evergrant@127.0.0.1:{}/{database}?sslmode=disable",
            self.port
        )
    }

    /// Ends every connection that there is.
    pub(crate) fn cut(&self) {
        self.way.send_modify(|way| way.cuts += 1);
    }

    /// From now on nothing passes, and nobody is told. What is sent meanwhile arrives late.
    pub(crate) fn silence(&self) {
        self.way.send_modify(|way| way.silent = true);
    }

    pub(crate) fn let_pass(&self) {
        self.way.send_modify(|way| way.silent = false);
    }
}

async fn pass(mut client: TcpStream, socket: PathBuf, mut way: watch::Receiver<Way>) {
    let cuts = way.borrow_and_update().cuts;
    if way.wait_for(|way| !way.silent || way.cuts != cuts).await.is_err() {
        return;
    }
    let Ok(mut server) = UnixStream::connect(&socket).await else {
        return;
    };
    // While nothing passes, the copy is kept and not looked at: dropped, it would lose what its buffers hold.
    let copy = tokio::io::copy_bidirectional(&mut client, &mut server);
    tokio::pin!(copy);
    loop {
        let now = *way.borrow_and_update();
        if now.cuts != cuts {
            return;
        }
        tokio::select! {
            _ = &mut copy, if !now.silent => return,
            changed = way.changed() => if changed.is_err() { return },
        }
    }
}
