//! What holds for every client that is a program's own: which connection is meant, and what is not sent by it.

use bytes::Bytes;
use evergrant_domain::ConnectionId;
use evergrant_gateway::{Gateway, GatewayBody, Transport};
use http::uri::Scheme;
use http::{Request, Response, Uri};
use http_body::Body;

use crate::engine::Evergrant;
use crate::error::Error;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Evergrant {
    /// Sends a request by this gateway, with the token of the connection that lies in its extensions, or else of this one.
    pub(crate) async fn pass<T, B>(
        &self,
        gateway: &Gateway<T>,
        connection: Option<&ConnectionId>,
        request: Request<B>,
    ) -> Result<Response<GatewayBody>, Error>
    where
        T: Transport,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let connection = request.extensions().get::<ConnectionId>().or(connection);
        let connection = connection.ok_or_else(|| Error::Refused {
            what: "no connection is named: put a ConnectionId into its extensions".to_owned(),
        })?;
        let connection = connection.clone();
        if request.uri().authority().is_none() {
            return Err(Error::Refused {
                what: "its URL must be whole, with scheme and host: they are compared with the app's"
                    .to_owned(),
            });
        }
        let target = self.target(&connection, request.uri()).await?;
        let answer = gateway.call(&connection, &target, request.map(Box::pin)).await?;
        Ok(answer.response)
    }
}

/// Whether a request would go through a network in clear, bearer and all. The gateway's own connections refuse that by the
/// address that they lead to; of another client's only the name is known.
pub(crate) fn is_in_clear(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_loopback = host == "localhost"
        || host
            .parse()
            .is_ok_and(|address: std::net::IpAddr| address.is_loopback());
    uri.scheme() != Some(&Scheme::HTTPS) && !is_loopback
}
