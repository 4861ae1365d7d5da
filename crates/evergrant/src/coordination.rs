//! Which way of waiting a program chooses.

use std::fmt;
use std::sync::Arc;

use evergrant_store::ByLease;

use crate::error::BuildError;

/// Who waits how for their turn at a connection while somebody else redeems its refresh token. In every mode the store alone
/// decides who may redeem, so programs and services with different modes are one fleet.
#[derive(Clone, Default)]
pub enum Coordination {
    /// Whoever finds a lease taken looks again a little later. Right unless you know why not.
    #[default]
    Lease,
    /// In order, before a row that is locked in the store's PostgreSQL database.
    #[cfg(feature = "postgres")]
    RowLock,
    /// In order, before a key in Redis. A Redis that is away costs waiting and nothing else.
    #[cfg(feature = "redis")]
    Redis {
        /// Which: `redis://` or, with TLS, `rediss://user:password@host:6379`.
        url: String,
    },
}

/// The URL may hold a password.
impl fmt::Debug for Coordination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lease => "Lease",
            #[cfg(feature = "postgres")]
            Self::RowLock => "RowLock",
            #[cfg(feature = "redis")]
            Self::Redis { .. } => "Redis(..)",
        })
    }
}

impl Coordination {
    /// Gets ready to wait like this, in front of this store.
    #[cfg_attr(
        not(any(feature = "postgres", feature = "redis")),
        expect(clippy::unnecessary_wraps, reason = "the mode lease needs nothing")
    )]
    pub(crate) fn before(
        self,
        #[cfg_attr(
            not(feature = "postgres"),
            expect(unused_variables, reason = "one mode needs it")
        )]
        store: &str,
    ) -> Result<Arc<dyn evergrant_store::Coordination>, BuildError> {
        match self {
            Self::Lease => Ok(Arc::new(ByLease)),
            #[cfg(feature = "postgres")]
            Self::RowLock if !store.starts_with("postgres") => Err(BuildError::RowLockWithoutPostgres),
            #[cfg(feature = "postgres")]
            Self::RowLock => Ok(Arc::new(evergrant_store::ByRowLock::open(store)?)),
            #[cfg(feature = "redis")]
            Self::Redis { url } => Ok(Arc::new(evergrant_store::ByRedis::open(&url)?)),
        }
    }
}
