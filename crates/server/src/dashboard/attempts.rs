//! Logins that failed, by address: nobody guesses a key of 256 bits, but every try costs the store a look.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// What one address may get wrong in a minute.
const FAILED_MAX: u32 = 10;
const MINUTE: Duration = Duration::from_secs(60);
/// How many addresses are remembered at a time. While all are in use, new ones count as one.
const ADDRESSES_MAX: usize = 4096;

/// What went wrong in the last minute, and from where.
#[derive(Default)]
pub(crate) struct Attempts(Mutex<HashMap<Option<IpAddr>, (Instant, u32)>>);

impl Attempts {
    /// Whether this address may try, or for how long it has to wait.
    pub(crate) fn may_try(&self, address: IpAddr) -> Result<(), Duration> {
        let failed = self.0.lock();
        let counted = failed.get(&Some(network(address))).or_else(|| {
            let is_full = failed.len() >= ADDRESSES_MAX;
            is_full.then(|| failed.get(&None)).flatten()
        });
        match counted {
            Some((since, count)) if *count >= FAILED_MAX && since.elapsed() < MINUTE => {
                Err(MINUTE.saturating_sub(since.elapsed()))
            }
            _ => Ok(()),
        }
    }

    /// Counts a key that does not exist.
    pub(crate) fn failed(&self, address: IpAddr) {
        let mut failed = self.0.lock();
        let mut from = Some(network(address));
        if failed.len() >= ADDRESSES_MAX && !failed.contains_key(&from) {
            failed.retain(|_, (since, _)| since.elapsed() < MINUTE);
            if failed.len() >= ADDRESSES_MAX {
                from = None;
            }
        }
        let counted = failed.entry(from).or_insert_with(|| (Instant::now(), 0));
        if counted.0.elapsed() >= MINUTE {
            *counted = (Instant::now(), 0);
        }
        counted.1 += 1;
    }
}

/// Whoever has one address of IPv6 has the 64 bits behind its network.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & !u128::from(u64::MAX)).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("a literal address")
    }

    #[tokio::test(start_paused = true)]
    async fn ten_wrong_keys_in_a_minute_shut_an_address_out_until_it_is_over() {
        let attempts = Attempts::default();
        let (one, other) = (address("203.0.113.9"), address("203.0.113.10"));
        for _ in 0..FAILED_MAX {
            assert!(attempts.may_try(one).is_ok());
            attempts.failed(one);
        }
        assert_eq!(attempts.may_try(one), Err(MINUTE));
        assert!(attempts.may_try(other).is_ok());
        tokio::time::advance(MINUTE).await;
        assert!(attempts.may_try(one).is_ok());
        attempts.failed(one);
        assert!(attempts.may_try(one).is_ok(), "it counts anew");
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_without_end_take_no_memory_without_end() {
        let attempts = Attempts::default();
        for number in 0..u32::try_from(ADDRESSES_MAX * 2).expect("a small number") {
            attempts.failed(IpAddr::V4(number.into()));
        }
        assert!(attempts.0.lock().len() <= ADDRESSES_MAX + 1);
        assert!(
            attempts.may_try(address("203.0.113.9")).is_err(),
            "what is new counts as one crowd"
        );
        assert!(
            attempts.may_try(address("0.0.0.1")).is_ok(),
            "who was there before is counted by himself"
        );
    }

    #[test]
    fn a_network_of_ipv6_is_one_visitor() {
        assert_eq!(
            network(address("2001:db8::1")),
            network(address("2001:db8::ffff:2"))
        );
        assert_ne!(
            network(address("2001:db8:0:1::1")),
            network(address("2001:db8:0:2::1"))
        );
        assert_eq!(network(address("::ffff:203.0.113.9")), address("203.0.113.9"));
    }
}
