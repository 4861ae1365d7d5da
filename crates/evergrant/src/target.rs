//! Where a program's request may go: what its URL asks of the connection's provider.

use std::sync::Arc;

use evergrant_domain::{App, ConnectionId};
use evergrant_keeper::KeepError;
use http::Uri;
use url::Url;

use crate::engine::Evergrant;
use crate::error::Error;

impl Evergrant {
    /// What a URL asks of the connection's provider: path and query below the app's API base. Without a host they are that already.
    ///
    /// # Errors
    ///
    /// [`Error::OutsideApiBase`] where it lies anywhere else: no token leaves for there.
    pub(crate) async fn target(&self, connection: &ConnectionId, uri: &Uri) -> Result<String, Error> {
        if uri.authority().is_none() && uri.scheme().is_none() {
            return Ok(uri
                .path_and_query()
                .map_or_else(|| "/".to_owned(), ToString::to_string));
        }
        let app = self.app_of(connection).await?;
        let api_base = &app.provider.api_base;
        below(api_base, uri).ok_or_else(|| Error::OutsideApiBase {
            api_base: api_base.to_string(),
        })
    }

    /// The app is asked for before the token: a request that is refused costs none.
    async fn app_of(&self, connection: &ConnectionId) -> Result<Arc<App>, Error> {
        let keeper = self.keeper();
        if let Some(current) = keeper.at_hand(connection) {
            return Ok(current.app.clone());
        }
        let record = keeper.store().connection(connection).await;
        let record = record.map_err(KeepError::from)?.ok_or(Error::UnknownConnection)?;
        keeper
            .app(&record.app)
            .ok_or(Error::AppNotConfigured { app: record.app })
    }
}

/// Path and query of a URL below an API base; `None` where it does not lie there.
///
/// The origin is compared as it was parsed, the path as it was written. What is left is looked through by the gateway once more,
/// which refuses whatever could lead out of the base again.
fn below(api_base: &Url, uri: &Uri) -> Option<String> {
    let parsed = Url::parse(&uri.to_string()).ok()?;
    let names_somebody = !parsed.username().is_empty() || parsed.password().is_some();
    if parsed.origin() != api_base.origin() || names_somebody {
        return None;
    }
    let path = uri.path().strip_prefix(api_base.path().trim_end_matches('/'))?;
    let path = match path {
        "" => "/",
        path if path.starts_with('/') => path,
        // Another path that begins alike.
        _ => return None,
    };
    Some(match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_on_the_api_base_is_known_by_its_parsed_origin_and_its_written_path() {
        let check = |base: &str, uri: &str, expected: Option<&str>| {
            let base = Url::parse(base).expect("a literal URL");
            let uri: Uri = uri.parse().expect("a literal URI");
            assert_eq!(below(&base, &uri).as_deref(), expected, "{uri} below {base}");
        };
        let hubspot = "https://api.hubapi.com/";
        check(
            hubspot,
            "https://api.hubapi.com/crm/v3?a=%2F",
            Some("/crm/v3?a=%2F"),
        );
        check(hubspot, "https://API.hubapi.com:443/x", Some("/x"));
        check(hubspot, "https://api.hubapi.com", Some("/"));
        for elsewhere in [
            "http://api.hubapi.com/x",
            "https://api.hubapi.com:8443/x",
            "https://api.hubapi.com.evil.test/x",
            "https://evil.test/https://api.hubapi.com/x",
            "https://api.hubapi.com@evil.test/x",
            "https://user@api.hubapi.com/x",
            "https://user:api.hubapi.com@api.hubapi.com/x",
            "api.hubapi.com:443",
        ] {
            check(hubspot, elsewhere, None);
        }
        let below_a_path = "http://127.0.0.1:8080/base/v1/";
        check(below_a_path, "http://127.0.0.1:8080/base/v1/x", Some("/x"));
        check(below_a_path, "http://127.0.0.1:8080/base/v1?x", Some("/?x"));
        check(below_a_path, "http://2130706433:8080/base/v1/x", Some("/x"));
        // Refused by the gateway, which looks at what is left.
        check(below_a_path, "http://127.0.0.1:8080/base/v1/../x", Some("/../x"));
        for elsewhere in ["/", "/base/v10", "/base", "/x", "/BASE/v1/x", "/base/%76%31/x"] {
            check(below_a_path, &format!("http://127.0.0.1:8080{elsewhere}"), None);
        }
    }
}
