//! Where a service has its connections: each in a slot, whose token comes back with the events of its descriptors.

use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use slotmap::{DefaultKey, Key as _, KeyData, SlotMap};

use super::entry::Entry;

/// Which connection, and which of its descriptors, an event is for. A slot that is taken again has another token, so an
/// event for an earlier connection finds nobody.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Token(u64);

impl Token {
    /// That of the descriptor that wakes a thread. No slot has it.
    pub(super) const WAKER: Self = Self(u64::MAX);
    /// What the token of a peer's descriptor has besides. Slots are numbered below it.
    const PEER: u64 = 1 << 31;

    /// The one that came back with an event.
    pub(super) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// What the kernel keeps of it.
    pub(super) fn bits(self) -> u64 {
        self.0
    }

    /// The same connection's, for the descriptor of its peer.
    pub(super) fn of_peer(self) -> Self {
        Self(self.0 | Self::PEER)
    }

    /// Whether it is for that descriptor.
    pub(super) fn is_peer(self) -> bool {
        self.0 & Self::PEER != 0
    }

    fn key(self) -> DefaultKey {
        KeyData::from_ffi(self.0 & !Self::PEER).into()
    }
}

/// The connections of a service.
#[derive(Default)]
pub(super) struct Slots(RwLock<SlotMap<DefaultKey, Arc<Entry>>>);

/// The connections, which stay as they are while this lives.
pub(super) struct Found<'s>(RwLockReadGuard<'s, SlotMap<DefaultKey, Arc<Entry>>>);

impl Found<'_> {
    /// The connection with this token, if it is still there.
    pub(super) fn get(&self, token: Token) -> Option<&Arc<Entry>> {
        self.0.get(token.key())
    }
}

impl Slots {
    /// Makes a connection, which knows its token, and puts it into a slot; and says how many there are now.
    pub(super) fn insert(
        &self,
        make: impl FnOnce(Weak<Entry>, Token) -> Entry,
    ) -> (Arc<Entry>, usize) {
        let mut slots = self.write();
        let new =
            |key: DefaultKey| Arc::new_cyclic(|me| make(me.clone(), Token(key.data().as_ffi())));
        let key = slots.insert_with_key(new);
        (slots[key].clone(), slots.len())
    }

    /// Frees a connection's slot.
    pub(super) fn remove(&self, token: Token) {
        // The last reference must not go under the lock: what the connection owns ends with it.
        let entry = self.write().remove(token.key());
        drop(entry);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.read().len()
    }

    /// For looking some of them up.
    pub(super) fn look_up(&self) -> Found<'_> {
        Found(self.read())
    }

    /// All of them, at this moment.
    pub(super) fn all(&self) -> Vec<Arc<Entry>> {
        self.read().values().cloned().collect()
    }

    // A panic under this lock would be a bug that leaves the slots as they were.

    fn read(&self) -> RwLockReadGuard<'_, SlotMap<DefaultKey, Arc<Entry>>> {
        self.0.read().unwrap_or_else(|e| e.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, SlotMap<DefaultKey, Arc<Entry>>> {
        self.0.write().unwrap_or_else(|e| e.into_inner())
    }
}
