//! The bytes of a message that arrives in parts.
//!
//! The spare room of a [`Buffer`] is initialised, so a transport may read straight into it; a buffer that is used again
//! for the next large message costs neither the kernel's fresh pages nor zeroes.

use crate::limits::memory::{Budget, Claim, Exhausted};

/// Bytes that are appended to; memory grows geometrically, with the bytes there are.
#[derive(Debug)]
pub struct Buffer {
    /// The first `filled` are content, the others spare.
    bytes: Vec<u8>,
    filled: usize,
    /// What the memory counts for.
    claim: Claim,
}

impl Buffer {
    /// An empty one, whose memory is taken from `budget`.
    pub fn new(budget: &'static Budget) -> Self {
        Self { bytes: Vec::new(), filled: 0, claim: budget.claim() }
    }

    /// An empty one of the same budget.
    pub fn another(&self) -> Self {
        Self::new(self.budget())
    }

    /// Where its memory is taken from.
    pub fn budget(&self) -> &'static Budget {
        self.claim.budget()
    }

    /// How many bytes it holds.
    #[inline]
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Takes the memory for a message, if there is that much.
    pub fn claim(&mut self) -> bool {
        self.claim.cover(self.capacity()).is_ok()
    }

    /// Nobody's message uses the memory.
    pub fn disclaim(&mut self) {
        self.clear();
        self.claim.release();
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

    /// Appends `data`, behind which at most `more` bytes will come.
    #[inline]
    pub fn extend(&mut self, data: &[u8], more: usize) -> Result<(), Exhausted> {
        let end = self.filled + data.len();
        if end > self.bytes.len() {
            self.grow(end, end.saturating_add(more))?;
        }
        let room = &mut self.bytes[self.filled..end];
        match (&mut *room, data) {
            // Messages in the smallest fragments come a byte at a time, which is not worth a call.
            ([to], [from]) => *to = *from,
            _ => room.copy_from_slice(data),
        }
        self.filled = end;
        Ok(())
    }

    /// Room for up to `most` more bytes, at least some; not more than there are, unless that is little or the memory is
    /// there anyway. [`advance`](Self::advance) makes content of it. At most `more` bytes will come.
    pub fn room(&mut self, most: usize, more: usize) -> Result<&mut [u8], Exhausted> {
        if self.filled == self.bytes.len() {
            self.grow(self.filled + 1, self.filled.saturating_add(more))?;
        }
        let end = self.bytes.len().min(self.filled + most);
        Ok(&mut self.bytes[self.filled..end])
    }

    /// The first `len` bytes of the room are content now.
    pub fn advance(&mut self, len: usize) {
        self.filled += len;
        debug_assert!(self.filled <= self.bytes.len());
    }

    #[cold]
    fn grow(&mut self, least: usize, enough: usize) -> Result<(), Exhausted> {
        const FIRST: usize = 512;
        let double = (2 * self.bytes.len()).max(self.bytes.capacity());
        let mut size = double.max(FIRST).min(enough).max(least);
        if self.claim.cover(size).is_err() {
            // It may do with less.
            size = least;
            self.claim.cover(size)?;
        }
        self.bytes.reserve_exact(size - self.bytes.len());
        self.bytes.resize(size, 0);
        Ok(())
    }
}
