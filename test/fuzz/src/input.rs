//! The fuzzer's bytes as a source of decisions.

/// Reads decisions from the front of the fuzzer's bytes; zeros when they are used up.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte
    }

    pub(crate) fn word(&mut self) -> usize {
        usize::from(u16::from_le_bytes([self.byte(), self.byte()]))
    }

    /// A number up to and including `most`.
    pub(crate) fn up_to(&mut self, most: usize) -> usize {
        let word = if most < 256 { usize::from(self.byte()) } else { self.word() };
        if most < 1 << 16 { word % (most + 1) } else { (word * most) >> 16 }
    }

    pub(crate) fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (front, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        front
    }

    /// A length up to 131,070, the short ones as likely as the long ones.
    fn length(&mut self) -> usize {
        (self.word() * 2) >> (self.byte() % 16)
    }

    /// A payload: bytes as they are, a pattern that repeats, noise, or text.
    pub(crate) fn payload(&mut self) -> Vec<u8> {
        match self.byte() % 8 {
            0..=3 => {
                let count = usize::from(self.byte());
                self.bytes(count).to_vec()
            }
            4 | 5 => {
                let count = usize::from(self.byte() % 16) + 1;
                let pattern = self.bytes(count);
                let len = self.length();
                pattern.iter().copied().cycle().take(len).collect()
            }
            6 => {
                let mut state = self.word() as u64 + 1;
                let noise = core::iter::repeat_with(|| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state as u8
                });
                noise.take(self.length() / 8).collect()
            }
            _ => {
                let len = self.length();
                "Zwölf Boxkämpfer 😀 jagen κόσμε. ".bytes().cycle().take(len).collect()
            }
        }
    }

    /// Sizes of the pieces that a stream is cut into: from single bytes to thousands.
    pub(crate) fn cuts(&mut self) -> [usize; 4] {
        core::array::from_fn(|_| {
            let byte = usize::from(self.byte());
            byte * byte / 8 + 1
        })
    }
}
