//! The bytes of a message that arrives in parts.
//!
//! The spare room of a [`Buffer`] is initialised, so a transport may read straight into it; a buffer that is used again
//! for the next large message costs neither the kernel's fresh pages nor zeroes.
#![deny(unsafe_code)]

/// Bytes that are appended to; memory grows geometrically, with the bytes there are.
#[derive(Debug, Default)]
pub struct Buffer {
    /// The first `filled` are content, the others spare.
    bytes: Vec<u8>,
    filled: usize,
}

impl Buffer {
    /// How many bytes it holds.
    #[inline]
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// How much memory it takes.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// The content.
    #[inline]
    pub fn content(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.filled]
    }

    /// Forgets the content and keeps the memory.
    #[inline]
    pub fn clear(&mut self) {
        self.filled = 0;
    }

    /// Appends `data`.
    #[inline]
    pub fn extend(&mut self, data: &[u8]) {
        let end = self.filled + data.len();
        if end > self.bytes.len() {
            self.grow(end);
        }
        let room = &mut self.bytes[self.filled..end];
        match (&mut *room, data) {
            // Messages in the smallest fragments come a byte at a time, which is not worth a call.
            ([to], [from]) => *to = *from,
            _ => room.copy_from_slice(data),
        }
        self.filled = end;
    }

    /// Room for up to `most` more bytes, at least some; not more than there are, unless that is little or the memory is
    /// there anyway. [`advance`](Self::advance) makes content of it.
    pub fn room(&mut self, most: usize) -> &mut [u8] {
        if self.filled == self.bytes.len() {
            self.grow(self.filled + 1);
        }
        let end = self.bytes.len().min(self.filled + most);
        &mut self.bytes[self.filled..end]
    }

    /// The first `len` bytes of the room are content now.
    pub fn advance(&mut self, len: usize) {
        self.filled += len;
        debug_assert!(self.filled <= self.bytes.len());
    }

    /// Has `f` append to the content as a vector.
    pub fn append_with<R>(&mut self, f: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        self.bytes.truncate(self.filled);
        let result = f(&mut self.bytes);
        self.filled = self.bytes.len();
        result
    }

    #[cold]
    fn grow(&mut self, least: usize) {
        const FIRST: usize = 512;
        let double = (2 * self.bytes.len()).max(self.bytes.capacity());
        self.bytes.resize(least.max(double).max(FIRST), 0);
    }
}
