//! A ring whose memory others have written to, among them those that died in the midst of it.

use std::cell::OnceCell;

use mod_websocket::{
    channel::{
        Kind,
        broker::NewMessage,
        id::Id,
        ring::{BUCKETS, Positions, Ring},
    },
    sync::{AtomicU64, Ordering},
};

/// How many words the ring has: so many that a message may have some bytes.
const WORDS: usize = 1 << 10;

struct Memory {
    positions: [&'static AtomicU64; 3],
    buckets: &'static [AtomicU64],
    words: &'static [AtomicU64],
    ring: Ring,
}

impl Memory {
    fn new() -> Self {
        let zeroes = |n: usize| -> &'static [AtomicU64] {
            Box::leak((0..n).map(|_| AtomicU64::new(0)).collect())
        };
        let positions: &'static Positions = Box::leak(Box::default());
        let (buckets, words) = (zeroes(BUCKETS), zeroes(WORDS));
        let ring = Ring::new(positions, buckets, words, [1, 2]);
        Self { positions: positions.words(), buckets, words, ring }
    }
}

/// What the input says to do.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte
    }

    fn word(&mut self) -> u64 {
        u64::from_le_bytes(core::array::from_fn(|_| self.byte()))
    }

    /// Any number, or one that lies near another.
    fn near(&mut self, other: u64) -> u64 {
        match self.byte() {
            0 => self.word(),
            by @ 1..128 => other.wrapping_add(by.into()),
            by => other.wrapping_sub(u64::from(by) - 128),
        }
    }
}

/// Publishes, overwrites, repairs and reads as the input says. Whoever reads stays within the ring and comes to an end, and
/// what was written is read.
pub fn fuzz_ring(input: &[u8]) {
    thread_local!(static MEMORY: OnceCell<Memory> = const { OnceCell::new() });
    MEMORY.with(|memory| in_memory(memory.get_or_init(Memory::new), Input(input)));
}

fn in_memory(memory: &Memory, mut input: Input<'_>) {
    let Memory { positions, buckets, words, ring } = memory;
    for word in words.iter().chain(*buckets) {
        word.store(0, Ordering::Relaxed);
    }
    for (word, value) in positions.iter().zip([1, 1, 0]) {
        word.store(value, Ordering::Relaxed);
    }
    while !input.0.is_empty() {
        let head = positions[0].load(Ordering::Relaxed);
        match input.byte() % 8 {
            0..=2 => write(*ring, &mut input),
            3 => {
                let at = input.near(head) as usize % WORDS;
                words[at].store(input.near(words[at].load(Ordering::Relaxed)), Ordering::Relaxed);
            }
            4 => {
                let which = &positions[usize::from(input.byte()) % 3];
                which.store(input.near(head), Ordering::Relaxed);
            }
            5 => {
                let which = &buckets[usize::from(input.byte()) % BUCKETS];
                which.store(input.near(head), Ordering::Relaxed);
            }
            6 => ring.repair(),
            _ => read(*ring, input.near(head)),
        }
    }
    read(*ring, 0);
    let _ = Id::parse(&String::from_utf8_lossy(input.0));
}

fn write(ring: Ring, input: &mut Input<'_>) {
    let kind = [Kind::Text, Kind::Binary, Kind::End][usize::from(input.byte()) % 3];
    let channel = ["a", "b", "a longer name"][usize::from(input.byte()) % 3];
    let media = "x".repeat(input.byte().into());
    let body = vec![b'.'; (2 * usize::from(input.byte())).min(ring.most())];
    let written = ring.write(&NewMessage { kind, channel, media: &media, body: &body }, 7);
    let header = ring.header(written.at).expect("it was just written");
    let message = ring.message(&header).expect("it is there");
    assert_eq!((message.kind, &*message.channel, &*message.media), (kind, channel, &*media));
    assert_eq!((&*message.body, message.time, header.hash), (&*body, 7, written.hash));
    let (head, tail) = ring.bounds();
    assert!(tail <= written.at && head == header.next && head - tail <= WORDS as u64);
    if kind != Kind::End {
        assert_eq!(ring.history(channel).next(), Some(header));
    }
}

fn read(ring: Ring, at: u64) {
    let (head, mut next) = ring.bounds();
    assert!(next <= head && head - next <= WORDS as u64);
    for at in [at, at.wrapping_add(1), u64::MAX] {
        if let Ok(header) = ring.header(at) {
            let _ = ring.message(&header);
        }
    }
    while let Ok(header) = ring.header(next) {
        assert!(header.at == next && next < header.next && header.next <= head);
        let _ = ring.message(&header);
        next = header.next;
    }
    for channel in ["a", "b", "nobody's"] {
        let (mut before, mut looked_at) = (u64::MAX, 0);
        for header in ring.history(channel) {
            assert!(header.at < before && header.hash == ring.hash(channel));
            (before, looked_at) = (header.at, looked_at + 1);
        }
        assert!(looked_at <= WORDS);
    }
}
