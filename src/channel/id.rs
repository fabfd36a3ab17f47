//! The ids of messages, by which clients come back: when, where in the ring, and a proof that we have given it.
//!
//! The proof is keyed with the ring's seed and goes over the channel, too. So nobody reads on from an id that was guessed,
//! or that another channel gave; and one that a ring gave which is gone means nothing.

use core::hash::Hasher as _;

use siphasher::sip::SipHasher24;

/// Where a message was.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Id {
    /// When it was published, in milliseconds since 1970.
    pub time: u64,
    /// Its place in the ring.
    pub at: u64,
    proof: u64,
}

fn proof(seed: [u64; 2], time: u64, at: u64, hash: u64) -> u64 {
    let mut hasher = SipHasher24::new_with_keys(seed[0], !seed[1]);
    for part in [time, at, hash] {
        hasher.write_u64(part);
    }
    hasher.finish()
}

impl Id {
    /// That of a message in the channel of this hash.
    pub fn new(seed: [u64; 2], time: u64, at: u64, hash: u64) -> Self {
        Self { time, at, proof: proof(seed, time, at, hash) }
    }

    /// One that stands for all that comes from a place of the ring on.
    pub fn from_here(seed: [u64; 2], at: u64, hash: u64) -> Self {
        Self::new(seed, 0, at, hash)
    }

    /// The one that a client has sent.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('-');
        let number = |text: &str, radix| {
            let is_plain = text.len() <= 20 && text.bytes().all(|b| b.is_ascii_alphanumeric());
            u64::from_str_radix(text, radix).ok().filter(|_| is_plain)
        };
        let (time, at) = (number(parts.next()?, 10)?, number(parts.next()?, 10)?);
        let proof = number(parts.next()?, 16)?;
        parts.next().is_none().then_some(Self { time, at, proof })
    }

    /// Whether we gave it, for a message in the channel of this hash.
    pub fn is_of(&self, seed: [u64; 2], hash: u64) -> bool {
        // In the same time wherever they differ.
        proof(seed, self.time, self.at, hash) ^ self.proof == 0
    }
}

impl core::fmt::Display for Id {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}-{}-{:016x}", self.time, self.at, self.proof)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_id_comes_back_and_no_other_is_taken() {
        let id = Id::new([1, 2], 1_700_000_000_000, 77, 5);
        assert_eq!(Id::parse(&id.to_string()), Some(id));
        assert!(id.is_of([1, 2], 5) && !id.is_of([1, 2], 6) && !id.is_of([1, 3], 5));
        let text = id.to_string();
        let other = Id::parse(&text.replace("-77-", "-78-")).unwrap();
        assert!(!other.is_of([1, 2], 5));
        for bad in ["", "1", "1-2", "1-2-3-4", "a-2-3", "1-2-x", "-1-2-3", "1-+2-3", "1--2"] {
            assert_eq!(Id::parse(bad), None, "{bad}");
        }
    }
}
