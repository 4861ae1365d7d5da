//! How a connection to a token endpoint comes to be. Nothing of a request has left when it stands.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use url::{Host, Url};

use crate::tls::{Tls, TlsRoots};

pub(crate) const TIMEOUT: &str = "timeout";
pub(crate) const UNUSABLE_URL: &str = "unusable_url";

/// Two ways of bytes.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Makes connections: the machine's network, or a simulated one, so that everything above it can be tried without any.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// A fresh connection to where `url` points, or the word for why there is none.
    async fn connect(&self, url: &Url, deadline: Instant) -> Result<Box<dyn Stream>, &'static str>;
}

/// The machine's network, with TLS where the URL says so, for whoever sends something else than a token request. No connection is
/// made to an address that is refused, whatever name leads to it.
pub fn machine(roots: TlsRoots, refuses: fn(IpAddr) -> bool) -> Arc<dyn Network> {
    Arc::new(Machine {
        tls: Tls::new(roots),
        refuses,
    })
}

/// The machine's network, with TLS where the URL says so.
pub(crate) struct Machine {
    tls: Tls,
    refuses: fn(IpAddr) -> bool,
}

impl Machine {
    pub(crate) fn new(tls: Tls) -> Self {
        Self {
            tls,
            refuses: |_| false,
        }
    }
}

#[async_trait]
impl Network for Machine {
    async fn connect(&self, url: &Url, deadline: Instant) -> Result<Box<dyn Stream>, &'static str> {
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return Err(UNUSABLE_URL);
        };
        let mut addresses: Vec<SocketAddr> = match host {
            Host::Domain(name) => tokio::net::lookup_host((name, port))
                .await
                .map_err(|_| "name_not_resolved")?
                .collect(),
            Host::Ipv4(ip) => vec![(ip, port).into()],
            Host::Ipv6(ip) => vec![(ip, port).into()],
        };
        if !addresses.is_empty() {
            addresses.retain(|address| !(self.refuses)(address.ip()));
            if addresses.is_empty() {
                return Err("address_refused");
            }
        }
        match url.scheme() {
            "https" => {
                let stream = connect_in_turn(&addresses, deadline).await?;
                Ok(Box::new(self.tls.connect(host, stream).await?))
            }
            "http" => {
                // The configuration refuses such URLs. Should one slip through, no secret leaves this machine in clear.
                addresses.retain(|address| address.ip().is_loopback());
                if addresses.is_empty() {
                    return Err("plain_http_refused");
                }
                Ok(Box::new(connect_in_turn(&addresses, deadline).await?))
            }
            _ => Err(UNUSABLE_URL),
        }
    }
}

/// The first address that takes us. Nothing was sent yet, so to try the next is no retry.
///
/// Each is given its share of the time that is left: one that swallows everything must not use it all up.
async fn connect_in_turn(addresses: &[SocketAddr], deadline: Instant) -> Result<TcpStream, &'static str> {
    let mut word = UNREACHABLE;
    for (address, to_try) in addresses.iter().zip((1..=addresses.len()).rev()) {
        let now = Instant::now();
        let left = deadline.saturating_duration_since(now);
        let share = left / u32::try_from(to_try).unwrap_or(u32::MAX);
        match timeout_at(now + share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // A request is one small packet; where this cannot be set, it only waits a little.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(_)) => word = UNREACHABLE,
            Err(_) => word = TIMEOUT,
        }
    }
    Err(word)
}

const UNREACHABLE: &str = "unreachable";

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(9);

    async fn listener() -> TcpListener {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap()
    }

    async fn closed() -> SocketAddr {
        listener().await.local_addr().unwrap()
    }

    /// An address that answers nothing: its queue is full, so the kernel drops whoever knocks.
    struct BlackHole {
        address: SocketAddr,
        _queue: (TcpListener, Vec<TcpStream>),
    }

    impl BlackHole {
        async fn new() -> Self {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
            let listener = socket.listen(1).unwrap();
            let address = listener.local_addr().unwrap();
            let mut queued = Vec::new();
            let patience = Duration::from_secs(1);
            while let Ok(stream) = tokio::time::timeout(patience, TcpStream::connect(address)).await {
                queued.push(stream.unwrap());
            }
            Self {
                address,
                _queue: (listener, queued),
            }
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_to_a_refused_address_leads_nowhere() {
        let network = machine(TlsRoots::Only(vec![]), |address| address.is_loopback());
        for url in ["http://localhost:9/", "http://127.0.0.1:9/", "http://[::1]:9/"] {
            let parsed = Url::parse(url).unwrap();
            let connected = network.connect(&parsed, Instant::now() + DEADLINE).await;
            assert_eq!(connected.err(), Some("address_refused"), "{url}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_address_is_tried_where_one_refuses_or_swallows() {
        let alive = listener().await;
        let hole = BlackHole::new().await;
        let addresses = [closed().await, hole.address, alive.local_addr().unwrap()];
        let begun = Instant::now();
        let stream = connect_in_turn(&addresses, begun + DEADLINE).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), addresses[2]);
        // Half of what was left to two addresses.
        assert!(
            begun.elapsed() <= DEADLINE / 2 + Duration::from_millis(2),
            "{:?}",
            begun.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_to_connect_says_whether_it_was_refused_or_swallowed() {
        let deadline = Instant::now() + DEADLINE;
        assert_eq!(
            connect_in_turn(&[closed().await], deadline).await.err(),
            Some("unreachable")
        );
        let hole = BlackHole::new().await;
        assert_eq!(
            connect_in_turn(&[hole.address], deadline).await.err(),
            Some("timeout")
        );
        assert_eq!(connect_in_turn(&[], deadline).await.err(), Some("unreachable"));
    }
}
