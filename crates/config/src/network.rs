//! Networks by address and prefix, for saying whose word is trusted.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// All addresses that begin with the same bits: `10.0.0.0/8`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    first: IpAddr,
    prefix: u8,
}

/// The text is not a network; the message says how one is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a network: write an address and how many of its bits count, like \"10.0.0.0/8\" or \"fd00::/8\""
)]
pub struct BadNetwork;

impl Network {
    /// Whether the address lies in it. An IPv4 address that came in through an IPv6 socket counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.first.is_ipv4() && leading_bits(address, self.prefix) == bits(self.first)
    }
}

impl FromStr for Network {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| BadNetwork)?;
        let prefix = match prefix {
            Some(prefix) => prefix.parse().map_err(|_| BadNetwork)?,
            None => width(address),
        };
        // Bits that do not count but are set are a slip of the pen, and nobody can tell which half was meant.
        if prefix > width(address) || leading_bits(address, prefix) != bits(address) {
            return Err(BadNetwork);
        }
        Ok(Self {
            first: address,
            prefix,
        })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn leading_bits(address: IpAddr, prefix: u8) -> u128 {
    let ignored = u32::from(width(address) - prefix);
    bits(address)
        .checked_shr(ignored)
        .map_or(0, |kept| kept.checked_shl(ignored).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_contains_what_begins_with_its_bits() {
        let check = |network: &str, address: &str, contained: bool| {
            let network: Network = network.parse().expect("a literal network");
            assert_eq!(
                network.contains(address.parse().expect("a literal address")),
                contained,
                "{network} {address}"
            );
        };
        check("10.0.0.0/8", "10.255.0.1", true);
        check("10.0.0.0/8", "11.0.0.0", false);
        check("10.0.0.0/8", "::ffff:10.1.2.3", true);
        check("192.168.1.7", "192.168.1.7", true);
        check("192.168.1.7", "192.168.1.6", false);
        check("0.0.0.0/0", "203.0.113.9", true);
        check("0.0.0.0/0", "::1", false);
        check("::/0", "2001:db8::1", true);
        check("fd00::/8", "fdff::1", true);
        check("fd00::/8", "fe00::1", false);
    }

    #[test]
    fn a_text_that_is_no_network_is_refused() {
        for text in [
            "",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "10.0.0.0/",
            "fd00::/129",
            "example.com",
            "10.0.0.0/-1",
        ] {
            assert_eq!(text.parse::<Network>(), Err(BadNetwork), "{text:?}");
        }
    }
}
