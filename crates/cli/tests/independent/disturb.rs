//! What can happen to a process and to what it asks: system calls that fail or kill, a disk without room, peers that are silent.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Resource, Rlimit};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use crate::site::Service;

/// strace, from Debian's package, at a service: until it is dropped.
pub(crate) struct Strace(Child);

impl Strace {
    /// `what` is what strace calls an injection, such as `fdatasync:error=EIO`.
    pub(crate) fn inject(service: &Service, what: &str) -> Self {
        let calls = what.split(':').next().unwrap();
        let mut strace = Command::new("strace")
            .args(["-f", "-o", "/dev/null"])
            .args(["-e", &format!("trace={calls}"), "-e", &format!("inject={what}")])
            .args(["-p", &service.pid().as_raw_nonzero().to_string()])
            .stderr(Stdio::piped())
            .spawn()
            .expect("there is no strace: run `cargo xtask test`, or install strace");
        let mut said = BufReader::new(strace.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert!(line.contains("attached"), "strace: {line}");
        // It goes on to tell of every thread; nobody may stop listening before it is done.
        std::thread::spawn(move || said.lines().for_each(drop));
        Self(strace)
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        // Not asked: it would wait for a service that it has killed itself, and that nobody has buried yet.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// No file may grow or change from now on. Services that are to live through it ignore the signal for that.
pub(crate) fn fill_disk(service: &Service) {
    limit_files(service, Some(0));
}

/// There is room again.
pub(crate) fn empty_disk(service: &Service) {
    limit_files(service, None);
}

fn limit_files(service: &Service, bytes: Option<u64>) {
    let limit = Rlimit {
        current: bytes,
        maximum: None,
    };
    rustix::process::prlimit(Some(service.pid()), Resource::Fsize, limit).unwrap();
}

/// An address that neither takes connections nor refuses them.
pub(crate) struct Blackhole {
    pub(crate) address: SocketAddr,
    listener: TcpListener,
    waiting: Vec<TcpStream>,
}

impl Blackhole {
    pub(crate) async fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        // Whoever waits fills the queue, until nobody gets in any more.
        while let Ok(connected) =
            tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await
        {
            waiting.push(connected.unwrap());
        }
        Self {
            address,
            listener,
            waiting,
        }
    }

    /// From now on it takes connections, and they lead to `url`.
    pub(crate) fn leads_to(self, url: &str) -> JoinHandle<()> {
        let target = url.strip_prefix("http://").unwrap().to_owned();
        drop(self.waiting);
        tokio::spawn(async move {
            loop {
                let (mut client, _) = self.listener.accept().await.unwrap();
                let target = target.clone();
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(target).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        })
    }
}
