//! Chance, decided by the seed. What comes out is test data: nothing here is a secret worth guessing.

/// The length of an access token varies in this range, as HubSpot's does.
const ACCESS_TOKEN_LENGTH: std::ops::RangeInclusive<u64> = 60..=640;

/// A splitmix64 generator.
#[derive(Debug, Clone)]
pub(crate) struct Random {
    state: u64,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.state)
    }

    /// An opaque string of 60 to 640 characters.
    pub(crate) fn access_token(&mut self) -> String {
        const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let choices = ACCESS_TOKEN_LENGTH.end() - ACCESS_TOKEN_LENGTH.start() + 1;
        let length = ACCESS_TOKEN_LENGTH.start() + self.next() % choices;
        let mut token = String::from("C");
        for _ in 1..length {
            token.push(char::from(
                ALPHABET[usize::from(self.next().to_le_bytes()[0] & 63)],
            ));
        }
        token
    }

    /// Shaped like HubSpot's refresh tokens and codes: `na1-xxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
    pub(crate) fn grant_token(&mut self, prefix: &str) -> String {
        let (high, low) = (self.next(), self.next());
        format!(
            "{prefix}-{:04x}-{:04x}-{:04x}-{:04x}-{:012x}",
            high >> 48,
            (high >> 32) & 0xffff,
            (high >> 16) & 0xffff,
            high & 0xffff,
            low & 0xffff_ffff_ffff,
        )
    }
}

/// A UUID made of a seed and a number: the same pair always gives the same one.
pub(crate) fn uuid(seed: u64, number: u64) -> String {
    let high = mix(seed ^ mix(number));
    let low = mix(high ^ number);
    format!(
        "{:08x}-{:04x}-7{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        0x8000 | (low >> 48) & 0x3fff,
        low & 0xffff_ffff_ffff,
    )
}

fn mix(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    state ^ (state >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_decides_every_token() {
        let tokens = |seed| {
            let mut random = Random::new(seed);
            (0..50).map(|_| random.access_token()).collect::<Vec<_>>()
        };
        assert_eq!(tokens(7), tokens(7));
        assert_ne!(tokens(7), tokens(8));
    }

    #[test]
    fn access_tokens_vary_in_length_from_60_to_beyond_600() {
        let mut random = Random::new(1);
        let lengths: Vec<_> = (0..2000).map(|_| random.access_token().len()).collect();
        assert!(lengths.iter().all(|length| (60..=640).contains(length)));
        assert!(lengths.iter().any(|length| *length < 100));
        assert!(lengths.iter().any(|length| *length > 600));
    }

    #[test]
    fn refresh_tokens_look_like_hubspots() {
        let token = Random::new(1).grant_token("na1");
        let parts: Vec<_> = token.split('-').map(str::len).collect();
        assert_eq!(parts, [3, 4, 4, 4, 4, 12]);
    }
}
