//! The messages that this child's subscribers read last: each is read, put into a form and compressed once, for all.
#![forbid(unsafe_code)]

use core::ops::Deref;
use std::sync::{Arc, Mutex, OnceLock};

use super::{
    Message,
    format::Format,
    ring::{Header, Missed, Ring},
};
use crate::{
    proto::deflate::{Deflater, Packing},
    sync::Lock as _,
};

/// How many messages are kept, and how large one may be.
const MESSAGES: usize = 16;
const SIZE: usize = 64 * 1024;
/// How large one more may be, of which each takes the place of the one before it.
const LARGE: usize = 4 << 20;

/// A message, and what it is on the wire.
#[derive(Debug)]
pub struct Kept {
    message: Message,
    /// It is there for others, too.
    shared: bool,
    forms: [OnceLock<Option<Vec<u8>>>; Format::ALL.len()],
    packed: [OnceLock<Packed>; Format::ALL.len()],
}

/// A form, compressed as the first one wanted it who asked.
#[derive(Debug)]
struct Packed {
    window: u8,
    /// `None` if that gains nothing.
    payload: Option<Vec<u8>>,
}

impl Deref for Kept {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.message
    }
}

impl Kept {
    /// One that nobody else gets.
    pub fn alone(message: Message) -> Self {
        Self { message, shared: false, forms: Default::default(), packed: Default::default() }
    }

    /// What is sent in this form; `seed` is the ring's.
    pub fn form(&self, format: Format, seed: [u64; 2]) -> &[u8] {
        let form = self.forms[format as usize].get_or_init(|| format.wrap(&self.message, seed));
        form.as_deref().unwrap_or(&self.message.body)
    }

    /// The same without context (RFC 7692 §7.2.3.3), for an inflater with this window or a larger one; `None` if it is to be
    /// sent as it is. For one alone nothing is compressed.
    pub fn packed(&self, format: Format, seed: [u64; 2], packing: Packing) -> Option<&[u8]> {
        if !self.shared {
            return None;
        }
        let packed = self.packed[format as usize].get_or_init(|| {
            let mut payload = Vec::new();
            let gains =
                Deflater::without_context(packing).compress(self.form(format, seed), &mut payload);
            payload.shrink_to_fit();
            Packed { window: packing.window, payload: gains.then_some(payload) }
        });
        packed.payload.as_deref().filter(|_| packed.window <= packing.window)
    }
}

/// What is kept.
#[derive(Default)]
pub struct KeptMessages {
    recent: [Mutex<Option<Arc<Kept>>>; MESSAGES],
    large: Mutex<Option<Arc<Kept>>>,
}

impl KeptMessages {
    /// The message of a record, from here or from the ring.
    pub fn get(&self, ring: Ring, header: &Header) -> Result<Arc<Kept>, Missed> {
        let len = header.body_len();
        if len > LARGE {
            return ring.message(header).map(Kept::alone).map(Arc::new);
        }
        let recent = &self.recent[header.at as usize % MESSAGES];
        let mut place = if len <= SIZE { recent } else { &self.large }.acquire();
        let is_it = |kept: &&Arc<Kept>| {
            (kept.at, kept.hash, kept.time) == (header.at, header.hash, header.time)
        };
        if let Some(kept) = place.as_ref().filter(is_it) {
            return Ok(kept.clone());
        }
        let kept = Arc::new(Kept { shared: true, ..Kept::alone(ring.message(header)?) });
        *place = Some(kept.clone());
        Ok(kept)
    }

    /// Nobody is subscribed any more.
    pub fn clear(&self) {
        for place in self.recent.iter().chain([&self.large]) {
            *place.acquire() = None;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{
        buffer::Buffer,
        channel::{
            Kind,
            store::{self, Store},
        },
        limits::memory::UNLIMITED,
        proto::deflate::{Inflater, Params},
    };

    const PACKING: Packing = Packing { window: 12, level: 1 };

    fn published(store: Store, body: &[u8]) -> Header {
        let at = store.put(Kind::Text, "a", "text/plain", body).unwrap().at;
        store.ring().header(at).unwrap()
    }

    fn inflated(packed: &[u8]) -> Vec<u8> {
        let params = Params {
            server_no_context_takeover: true,
            client_no_context_takeover: true,
            server_max_window_bits: None,
            client_max_window_bits: Some(PACKING.window),
        };
        let mut inflater = Inflater::new(&params, &UNLIMITED);
        let mut out = Buffer::new(&UNLIMITED);
        inflater.push(packed, &mut out, 1 << 20).unwrap();
        inflater.finish(&mut out, 1 << 20).unwrap();
        out.content().to_vec()
    }

    #[test]
    fn a_message_is_there_once_for_all() {
        let (store, kept) = (store::for_test(), KeptMessages::default());
        let get = |header: &Header| kept.get(store.ring(), header).unwrap();
        for size in [10, SIZE, SIZE + 1, 100_000] {
            let header = published(store, &vec![b'a'; size]);
            let first = get(&header);
            assert!(first.body.len() == size && Arc::ptr_eq(&first, &get(&header)));
            // Another one does not take it for itself.
            let next = published(store, &vec![b'b'; size]);
            assert_eq!(get(&next).body[0], b'b');
            kept.clear();
            assert_eq!(Arc::strong_count(&first), 1);
        }
    }

    #[test]
    fn forms_are_made_and_compressed_once() {
        let (store, kept) = (store::for_test(), KeptMessages::default());
        let (ring, seed) = (store.ring(), store.ring().seed());
        let header = published(store, &b"what is said again and again, ".repeat(100));
        let message = kept.get(ring, &header).unwrap();
        for format in Format::ALL {
            let form = message.form(format, seed);
            let expected = format.wrap(&message, seed);
            assert_eq!(form, expected.as_deref().unwrap_or(&message.body));
            let packed = message.packed(format, seed, PACKING).unwrap();
            assert!(packed.len() < 500 && inflated(packed) == form);
            let again = message.packed(format, seed, Packing { window: 15, level: 9 }).unwrap();
            assert!(
                core::ptr::eq(form, message.form(format, seed)) && core::ptr::eq(packed, again)
            );
            // Its client could not look back as far.
            assert_eq!(message.packed(format, seed, Packing { window: 11, level: 1 }), None);
        }
    }

    #[test]
    fn what_does_not_become_shorter_is_sent_as_it_is() {
        let (store, kept) = (store::for_test(), KeptMessages::default());
        let message = kept.get(store.ring(), &published(store, b"short")).unwrap();
        assert_eq!(message.packed(Format::Plain, [0; 2], PACKING), None);
        // For one alone it does not pay.
        let alone = Kept::alone(store.ring().message(&published(store, &[b'a'; 1000])).unwrap());
        assert_eq!(alone.packed(Format::Plain, [0; 2], PACKING), None);
        assert_eq!(alone.form(Format::Plain, [0; 2]).len(), 1000);
    }
}
