//! The subprotocols that a connection keeps for its plugin.
//!
//! They outlive the request, and a plugin is given them as strings of C. The names lie in one block of memory and their
//! places in another, so that a name takes two bytes more than the client has sent for it, however many there are.

use core::ffi::CStr;

use crate::proto::handshake::Offered;

/// The names of subprotocols, in the client's order.
#[derive(Debug, Default)]
pub struct Protocols {
    /// Each with a NUL behind it.
    names: Box<[u8]>,
    /// Where each begins.
    starts: Box<[u16]>,
}

impl Protocols {
    /// Copies what the client offers.
    pub fn copy(offered: Offered<'_>) -> Self {
        let (mut names, mut starts) = (Vec::new(), Vec::new());
        for name in offered.iter() {
            // A list that is longer has been refused.
            let Ok(start) = u16::try_from(names.len()) else { break };
            starts.push(start);
            names.extend_from_slice(name.as_bytes());
            names.push(0);
        }
        Self { names: names.into(), starts: starts.into() }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.starts.len()
    }

    /// The name with this number, from 0. It stays where it is as long as the value lives.
    pub fn get(&self, index: usize) -> Option<&CStr> {
        let start = usize::from(*self.starts.get(index)?);
        CStr::from_bytes_until_nul(&self.names[start..]).ok()
    }

    /// The name that is the same as `name`.
    pub fn find(&self, name: &CStr) -> Option<&CStr> {
        (0..self.count()).filter_map(|index| self.get(index)).find(|&offered| offered == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(list: &str) -> Protocols {
        Protocols::copy(Offered::parse(list.as_bytes(), ',', |_| true).unwrap())
    }

    #[test]
    fn names_keep_their_order() {
        let protocols = copy("chat, superchat,,a ,chat");
        assert_eq!(protocols.count(), 4);
        for (index, name) in [c"chat", c"superchat", c"a", c"chat"].into_iter().enumerate() {
            assert_eq!(protocols.get(index), Some(name));
        }
        assert_eq!(protocols.get(4), None);
        assert_eq!(protocols.find(c"a"), Some(c"a"));
        for name in [c"", c"super", c"superchat2", c"CHAT"] {
            assert_eq!(protocols.find(name), None);
        }
        assert_eq!((Protocols::default().count(), Protocols::default().get(0)), (0, None));
    }

    #[test]
    fn no_list_takes_more_than_twice_its_bytes() {
        for name in ["a,", "ab,", "a-long-name-with-thirty-letters,"] {
            let list = name.repeat(65_534 / name.len());
            let protocols = copy(&list);
            assert_eq!(protocols.count(), list.len() / name.len());
            let last = protocols.get(protocols.count() - 1).unwrap();
            assert_eq!(last.to_bytes(), &name.as_bytes()[..name.len() - 1]);
            let kept = size_of_val(&*protocols.names) + size_of_val(&*protocols.starts);
            assert!(kept <= 2 * list.len(), "{kept} for {}", list.len());
        }
    }
}
