//! What an API key may do: a role, and limits to apps, customers and connections.

use crate::connection::Connection;
use crate::id::{AppName, ConnectionId, Customer};

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Call through the gateway.
    Gateway,
    /// Also fetch access tokens and connect customers.
    Tokens,
    /// Read records, history and diagnosis, refresh, make reconnect links. Never sees a token.
    Support,
    /// Read metrics.
    Metrics,
    /// Everything.
    Admin,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] = [
        Self::Gateway,
        Self::Tokens,
        Self::Support,
        Self::Metrics,
        Self::Admin,
    ];

    /// The word in the store, the API and the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Tokens => "tokens",
            Self::Support => "support",
            Self::Metrics => "metrics",
            Self::Admin => "admin",
        }
    }

    /// Reads that word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == word)
    }

    /// Whether a key of this role may do what `needed` may do.
    pub fn includes(self, needed: Self) -> bool {
        match self {
            Self::Admin => true,
            Self::Tokens => matches!(needed, Self::Tokens | Self::Gateway),
            Self::Gateway | Self::Support | Self::Metrics => self == needed,
        }
    }
}

/// What a key is limited to: AND between the kinds, OR within one; an empty kind limits nothing.
///
/// What lies outside is answered exactly like what does not exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Only these apps.
    pub apps: Vec<AppName>,
    /// Only these customers.
    pub customers: Vec<Customer>,
    /// Only these connections.
    pub connections: Vec<ConnectionId>,
}

impl Limits {
    /// Whether the connection lies within.
    pub fn admit(&self, connection: &Connection) -> bool {
        self.admit_parts(&connection.app, &connection.customer, &connection.id)
    }

    /// Whether a connection of this app, customer and id lies within.
    pub fn admit_parts(&self, app: &AppName, customer: &Customer, id: &ConnectionId) -> bool {
        within(&self.apps, app) && within(&self.customers, customer) && within(&self.connections, id)
    }

    /// Whether a connection of this app and customer, yet without an id, may come to lie within. A key that is limited to
    /// named connections cannot make new ones.
    pub fn admit_new(&self, app: &AppName, customer: &Customer) -> bool {
        within(&self.apps, app) && within(&self.customers, customer) && self.connections.is_empty()
    }

    /// Whether the app as such lies within.
    pub fn admit_app(&self, app: &AppName) -> bool {
        within(&self.apps, app)
    }
}

fn within<T: PartialEq>(allowed: &[T], value: &T) -> bool {
    allowed.is_empty() || allowed.contains(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::tests::connection;

    #[test]
    fn roles_include_what_the_table_says() {
        let included = |role: Role| -> Vec<&str> {
            Role::ALL
                .into_iter()
                .filter(|needed| role.includes(*needed))
                .map(Role::as_str)
                .collect()
        };
        assert_eq!(included(Role::Gateway), ["gateway"]);
        assert_eq!(included(Role::Tokens), ["gateway", "tokens"]);
        assert_eq!(included(Role::Support), ["support"]);
        assert_eq!(included(Role::Metrics), ["metrics"]);
        assert_eq!(
            included(Role::Admin),
            ["gateway", "tokens", "support", "metrics", "admin"]
        );
    }

    #[test]
    fn limits_are_and_between_kinds_and_or_within_one() {
        let app = |name: &str| AppName::parse(name).expect("a literal name");
        let customer = |name: &str| Customer::parse(name).expect("a literal customer");
        let id = |name: &str| ConnectionId::parse(name).expect("a literal id");
        let check =
            |limits: Limits, admitted: bool| assert_eq!(limits.admit(&connection()), admitted, "{limits:?}");
        check(Limits::default(), true);
        check(
            Limits {
                apps: vec![app("other"), app("crm")],
                ..Limits::default()
            },
            true,
        );
        check(
            Limits {
                apps: vec![app("crm")],
                customers: vec![customer("other")],
                ..Limits::default()
            },
            false,
        );
        check(
            Limits {
                connections: vec![id("c1")],
                ..Limits::default()
            },
            true,
        );
        check(
            Limits {
                connections: vec![id("c2")],
                ..Limits::default()
            },
            false,
        );
        let named = Limits {
            connections: vec![id("c1")],
            ..Limits::default()
        };
        assert!(!named.admit_new(&app("crm"), &customer("acme")));
    }
}
