//! The messages, in memory that all children share: written by one at a time, read by all without a lock.
//!
//! A ring of 64-bit words, in which a record lies at its *position*, a number that only grows: the position modulo the
//! size is where it is. What is between `tail` and `head` is there; the oldest records make room for the newest, and that
//! is how they expire. For history each record names the one before it in its *bucket*, a part of the channels by their
//! hash; who reads compares names.
//!
//! **Readers** look whether the record is still behind `tail` after they have copied, and believe nothing of it before:
//! whoever writes moves `tail` on before it overwrites. Whatever the words say, a reader stays within the ring.
//!
//! **Writers** may die at any moment. A record counts from the moment at which `head` is behind it; `last` is stored
//! before that, so that the next writer can put right what comes after it, the bucket's head ([`Ring::repair`]).

use core::hash::Hasher as _;

use siphasher::sip::SipHasher13;

use super::{Kind, Message, broker::NewMessage};
use crate::sync::{AtomicU64, Ordering, fence};

/// How many buckets history has.
pub const BUCKETS: usize = if cfg!(any(loom, fuzzing)) { 2 } else { 1 << 16 };
/// The words before a record's strings.
const HEADER: u64 = 5;
/// The part of the ring that a record may take at most.
const PART: u64 = if cfg!(loom) { 2 } else { 8 };
/// How many bytes are kept for a record's media type and its channel's name.
const STRINGS: u64 = if cfg!(loom) { 8 } else { 2 * 256 };

/// How many messages are looked at for history.
pub const LOOKS: usize = 1 << 16;

/// Where records are. Those of a new ring begin at 1: at 0 there is none.
#[derive(Debug)]
#[repr(C)]
pub struct Positions {
    /// Behind the newest one.
    head: AtomicU64,
    /// The oldest one.
    tail: AtomicU64,
    /// The newest one.
    last: AtomicU64,
}

impl Default for Positions {
    fn default() -> Self {
        Self { head: AtomicU64::new(1), tail: AtomicU64::new(1), last: AtomicU64::new(0) }
    }
}

#[cfg(any(test, fuzzing))]
impl Positions {
    /// Its words, for who tests what becomes of any values: head, tail, last.
    pub fn words(&self) -> [&AtomicU64; 3] {
        [&self.head, &self.tail, &self.last]
    }
}

/// The ring, as a process sees it.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    positions: &'static Positions,
    /// The newest record of each bucket; 0 if there was none.
    buckets: &'static [AtomicU64],
    /// A power of two of them.
    words: &'static [AtomicU64],
    seed: [u64; 2],
}

/// What was written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Written {
    /// Its place.
    pub at: u64,
    /// The hash of its channel.
    pub hash: u64,
    /// Everybody should look, whatever they wait for: who sleeps on would be overtaken.
    pub wake_all: bool,
}

/// What is known of a record without its strings.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Header {
    /// Its place.
    pub at: u64,
    /// Behind it.
    pub next: u64,
    /// The hash of its channel.
    pub hash: u64,
    /// When it was published.
    pub time: u64,
    /// What it is.
    pub kind: Kind,
    /// The one before it in its bucket.
    before: u64,
    media: u64,
    name: u64,
    body: u64,
}

impl Header {
    /// How many bytes its body has.
    pub fn body_len(&self) -> usize {
        self.body as usize
    }
}

/// The record is not there any more, or never was.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Missed;

/// The first 255 bytes of a text, or less, so that no character is cut.
fn cut(text: &str) -> &str {
    let mut len = text.len().min(255);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    &text[..len]
}

/// How many words so many bytes take.
const fn words(bytes: u64) -> u64 {
    bytes.div_ceil(8)
}

impl Ring {
    /// A ring over memory that is new, all zero but for the positions, or was used by one of the same build and sizes.
    pub fn new(
        positions: &'static Positions,
        buckets: &'static [AtomicU64],
        words: &'static [AtomicU64],
        seed: [u64; 2],
    ) -> Self {
        assert!(words.len().is_power_of_two() && buckets.len() == BUCKETS);
        Self { positions, buckets, words, seed }
    }

    /// What ids are proved with.
    pub fn seed(&self) -> [u64; 2] {
        self.seed
    }

    /// The hash of a channel; never 0.
    pub fn hash(&self, channel: &str) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.seed[0], self.seed[1]);
        hasher.write(channel.as_bytes());
        hasher.finish().max(1)
    }

    fn len(&self) -> u64 {
        self.words.len() as u64
    }

    /// The most bytes that a message may have.
    pub fn most(&self) -> usize {
        (8 * (self.len() / PART).saturating_sub(HEADER)).saturating_sub(STRINGS) as usize
    }

    /// How many bytes there are.
    pub fn size(&self) -> usize {
        8 * self.words.len()
    }

    /// Has the memory say anything.
    #[cfg(all(test, not(loom)))]
    pub(super) fn scramble(&self, mut random: impl FnMut() -> u64) {
        for word in self.words {
            word.store(random(), Ordering::Relaxed);
        }
    }

    fn word(&self, at: u64) -> &'static AtomicU64 {
        &self.words[(at & (self.len() - 1)) as usize]
    }

    fn bucket(&self, hash: u64) -> &'static AtomicU64 {
        &self.buckets[hash as usize % BUCKETS]
    }

    /// Behind the newest record, and the oldest one. If what the memory says cannot be, there is none.
    pub fn bounds(&self) -> (u64, u64) {
        // Acquire: what was written before the head was moved on is there.
        let head = self.positions.head.load(Ordering::Acquire);
        let tail = self.positions.tail.load(Ordering::Acquire);
        // The tail may have been moved on since.
        let tail = if head.saturating_sub(tail) <= self.len() { tail.min(head) } else { head };
        (head, tail)
    }

    /// Behind the newest record.
    pub fn head(&self) -> u64 {
        self.bounds().0
    }

    // --- readers -----------------------------------------------------------------------------------

    /// Whether what was just read at a place was still there.
    fn is_there(&self, at: u64) -> bool {
        // Acquire: a writer's word that was read comes after the tail that it moved on before.
        fence(Ordering::Acquire);
        self.positions.tail.load(Ordering::Relaxed) <= at
    }

    /// The record at a place that [`bounds`](Self::bounds), or another record, has given.
    pub fn header(&self, at: u64) -> Result<Header, Missed> {
        let head = self.head();
        let load = |n| self.word(at.wrapping_add(n)).load(Ordering::Relaxed);
        let [shape, before, hash, time, body] = [0, 1, 2, 3, 4].map(load);
        if at >= head || !self.is_there(at) {
            return Err(Missed);
        }
        let (len, media, name) = (shape & 0xffff_ffff, (shape >> 40) & 0xff, (shape >> 48) & 0xff);
        let kind = match (shape >> 32) & 0xff {
            1 => Kind::Text,
            2 => Kind::Binary,
            3 => Kind::End,
            _ => return Err(Missed),
        };
        let fits = body <= 8 * self.len()
            && len == HEADER + words(media + name + body)
            && len <= (head - at).min(self.len() / PART);
        if !fits || hash == 0 {
            return Err(Missed);
        }
        Ok(Header { at, next: at + len, hash, time, kind, before, media, name, body })
    }

    /// The whole of a record.
    pub fn message(&self, header: &Header) -> Result<Message, Missed> {
        let (media, name) = (header.media as usize, header.name as usize);
        let copied = self.strings(header, header.media + header.name + header.body)?;
        let text = |bytes: &[u8]| core::str::from_utf8(bytes).map(Into::into).map_err(|_| Missed);
        let (media, rest) = copied.split_at(media);
        let (channel, body) = rest.split_at(name);
        if header.kind == Kind::Text && core::str::from_utf8(body).is_err() {
            return Err(Missed);
        }
        Ok(Message {
            kind: header.kind,
            channel: text(channel)?,
            media: text(media)?,
            body: body.into(),
            time: header.time,
            at: header.at,
            hash: header.hash,
        })
    }

    /// The first so many bytes of a record's strings.
    fn strings(&self, header: &Header, bytes: u64) -> Result<Vec<u8>, Missed> {
        let mut copied = Vec::with_capacity(8 * words(bytes) as usize);
        for n in 0..words(bytes) {
            let word = self.word(header.at + HEADER + n).load(Ordering::Relaxed);
            copied.extend_from_slice(&word.to_ne_bytes());
        }
        if !self.is_there(header.at) {
            return Err(Missed);
        }
        copied.truncate(bytes as usize);
        Ok(copied)
    }

    /// Whether the record at `header` is of this channel. Its body, which may be long, is not read.
    fn is_of(&self, header: &Header, hash: u64, channel: &str) -> bool {
        if header.hash != hash || header.name as usize != channel.len() {
            return false;
        }
        let strings = self.strings(header, header.media + header.name);
        strings.is_ok_and(|strings| strings.ends_with(channel.as_bytes()))
    }

    /// The places of a channel's messages, the newest first, as far as they are there; and no further than [`LOOKS`]
    /// messages of the channels in its bucket, so that it does not take long.
    pub fn history<'r>(&'r self, channel: &'r str) -> impl Iterator<Item = Header> + 'r {
        let hash = self.hash(channel);
        // Acquire: the record was written before.
        let mut at = self.bucket(hash).load(Ordering::Acquire);
        let mut looks = LOOKS;
        core::iter::from_fn(move || {
            loop {
                looks = looks.checked_sub(1)?;
                let header = self.header(at).ok().filter(|_| at != 0)?;
                // It goes back only, whatever the memory says.
                at = if header.before < at { header.before } else { 0 };
                if header.kind != Kind::End && self.is_of(&header, hash, channel) {
                    return Some(header);
                }
            }
        })
    }

    /// The oldest message that is there. It does not take long, as that of [`history`](Self::history).
    pub fn oldest(&self) -> Option<Header> {
        let (head, mut at) = self.bounds();
        for _ in 0..LOOKS {
            if at >= head {
                return None;
            }
            at = match self.header(at) {
                Ok(header) if header.kind != Kind::End => return Some(header),
                Ok(header) => header.next,
                // It was overwritten meanwhile: what is oldest now lies further on.
                Err(Missed) => Some(self.bounds().1).filter(|&tail| tail > at)?,
            };
        }
        None
    }

    // --- writers: the callers hold the lock ----------------------------------------------------------

    /// Writes a message at this time, in milliseconds since 1970. Its body has at most [`most`](Self::most) bytes; of its
    /// media type and its channel's name 255 each are kept. For who holds the lock of the ring.
    pub fn write(&self, message: &NewMessage<'_>, time: u64) -> Written {
        let Positions { head: head_word, tail: tail_word, last } = self.positions;
        let (media, name, body) = (cut(message.media), cut(message.channel), message.body);
        assert!(body.len() <= self.most());
        let bytes = (media.len() + name.len() + body.len()) as u64;
        let len = HEADER + words(bytes);
        let (at, mut tail) = self.writable();
        while at + len - tail > self.len() {
            // What is not a record cannot be skipped: all of it goes.
            tail = self.header(tail).map_or(at, |oldest| oldest.next);
        }
        // Before anything is overwritten: who has read a word of the new record finds that the old one is gone.
        tail_word.store(tail, Ordering::Relaxed);
        fence(Ordering::Release);
        let hash = self.hash(name);
        let bucket = self.bucket(hash);
        let kind = match message.kind {
            Kind::Text => 1,
            Kind::Binary => 2,
            Kind::End => 3,
        };
        let shape = len | (kind << 32) | ((media.len() as u64) << 40) | ((name.len() as u64) << 48);
        let before = bucket.load(Ordering::Relaxed);
        let header = [shape, before, hash, time, body.len() as u64];
        let strings = Chunks::new([media.as_bytes(), name.as_bytes(), body]);
        for (word, n) in header.into_iter().chain(strings).zip(at..) {
            self.word(n).store(word, Ordering::Relaxed);
        }
        last.store(at, Ordering::Relaxed);
        // Release: what is behind the tail was written.
        head_word.store(at + len, Ordering::Release);
        bucket.store(at, Ordering::Release);
        let part = self.len() / 4;
        Written { at, hash, wake_all: part == 0 || at / part != (at + len) / part }
    }

    /// Where the next record goes, and the oldest one. What cannot be becomes an empty ring.
    fn writable(&self) -> (u64, u64) {
        let Positions { head, tail, last } = self.positions;
        let (at, oldest) = (head.load(Ordering::Relaxed), tail.load(Ordering::Relaxed));
        let fits = 0 < oldest && oldest <= at && at - oldest <= self.len() && at < 1 << 62;
        if fits {
            return (at, oldest);
        }
        for bucket in self.buckets {
            bucket.store(0, Ordering::Relaxed);
        }
        // No record is at 0.
        last.store(0, Ordering::Relaxed);
        tail.store(1, Ordering::Relaxed);
        head.store(1, Ordering::Release);
        (1, 1)
    }

    /// Puts right what a writer that died has left: its last record counts, and is to be found. Everybody has to be woken
    /// then. For who holds the lock of the ring.
    pub fn repair(&self) {
        let last = self.positions.last.load(Ordering::Relaxed);
        if let (1.., Ok(header)) = (last, self.header(last)) {
            self.bucket(header.hash).store(last, Ordering::Release);
        }
    }
}

/// Bytes as words, the last one filled up with zeroes.
struct Chunks<'c, const N: usize> {
    parts: [&'c [u8]; N],
    part: usize,
}

impl<'c, const N: usize> Chunks<'c, N> {
    fn new(parts: [&'c [u8]; N]) -> Self {
        Self { parts, part: 0 }
    }
}

impl<const N: usize> Iterator for Chunks<'_, N> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        if let Some(&last) = self.parts.last().filter(|_| self.part == N - 1) {
            if let Some((word, rest)) = last.split_first_chunk::<8>() {
                self.parts[N - 1] = rest;
                return Some(u64::from_ne_bytes(*word));
            }
        }
        let (mut word, mut len) = ([0; 8], 0);
        while self.part < N && len < 8 {
            let (now, rest) =
                self.parts[self.part].split_at((8 - len).min(self.parts[self.part].len()));
            word[len..len + now.len()].copy_from_slice(now);
            len += now.len();
            self.parts[self.part] = rest;
            if rest.is_empty() && len < 8 {
                self.part += 1;
            }
        }
        (len > 0).then(|| u64::from_ne_bytes(word))
    }
}

#[cfg(all(test, loom))]
pub(super) mod loom_tests {
    use loom::thread;

    use super::*;
    use crate::sync::check;

    pub(in crate::channel) fn ring(words: usize) -> Ring {
        let memory = |n: usize| Box::leak((0..n).map(|_| AtomicU64::new(0)).collect::<Box<_>>());
        Ring::new(Box::leak(Box::default()), memory(BUCKETS), memory(words), [1, 2])
    }

    fn write(ring: Ring, channel: &str, body: &[u8]) -> Written {
        ring.write(&NewMessage { kind: Kind::Binary, channel, media: "", body }, 1)
    }

    /// Eight words, of which the last three are strings: all of it is of one byte.
    fn write_long(ring: Ring, n: u8) -> Written {
        let (media, body) = ([b'0' + n; 7], [n; 16]);
        let media = core::str::from_utf8(&media).unwrap();
        let time = u64::from(n);
        ring.write(&NewMessage { kind: Kind::Binary, channel: "a", media, body: &body }, time)
    }

    /// What is read at a place, if it is there, is what was written there, `n`, and all of it.
    fn is_whole(ring: Ring, header: &Header, n: u8) {
        assert_eq!((header.hash, header.time), (ring.hash("a"), u64::from(n)));
        if let Ok(message) = ring.message(header) {
            assert_eq!((&*message.channel, message.media.as_bytes()), ("a", &[b'0' + n; 7][..]));
            assert!(message.body.iter().all(|&byte| byte == n));
        }
    }

    /// What is read while others write is a whole message, in the place where it was written, or nothing.
    #[test]
    fn no_record_is_torn() {
        check(2, || {
            let ring = ring(16);
            // The third one lies where the first one was, and its last words where the first one's last words were.
            let places = [1, 7, 15, 23];
            ring.write(
                &NewMessage { kind: Kind::Binary, channel: "a", media: "1111111", body: &[] },
                1,
            );
            write_long(ring, 2);
            let writer = thread::spawn(move || write_long(ring, 3));
            let (head, mut at) = ring.bounds();
            while at < head {
                let Ok(header) = ring.header(at) else { break };
                let n = places.iter().position(|&place| place == at).expect("a place");
                is_whole(ring, &header, 1 + n as u8);
                at = header.next;
            }
            assert_eq!(writer.join().unwrap().at, 15);
        });
    }

    /// What is known of a record is of one record, also where the next one lies in the very same place.
    #[test]
    fn no_header_is_torn() {
        check(2, || {
            let ring = ring(16);
            for n in [1, 2] {
                write_long(ring, n);
            }
            let writer = thread::spawn(move || write_long(ring, 3));
            if let Ok(header) = ring.header(1) {
                assert_eq!((header.time, header.before, header.next), (1, 0, 9));
            }
            assert_eq!(writer.join().unwrap().at, 17);
        });
    }

    /// History that is looked through meanwhile is a channel's newest messages, without a hole.
    #[test]
    fn history_has_no_holes() {
        check(2, || {
            let ring = ring(16);
            for n in [1, 2] {
                write_long(ring, n);
            }
            let writer = thread::spawn(move || write_long(ring, 3));
            let mut next = None;
            for header in ring.history("a") {
                let n = 1 + ((header.at - 1) / 8) as u8;
                is_whole(ring, &header, n);
                assert!(next.is_none_or(|next| next == n + 1));
                next = Some(n);
            }
            assert!(next.is_none_or(|oldest| oldest <= 3));
            writer.join().unwrap();
        });
    }

    /// Who finds the head behind a message, or a bucket that names it, can read it.
    #[test]
    fn what_counts_is_there() {
        check(2, || {
            let ring = ring(32);
            let writer = thread::spawn(move || write(ring, "a", b"1"));
            // Its words are there before the head says so, and the head is behind it before the bucket names it.
            let named = ring.bucket(ring.hash("a")).load(Ordering::Acquire);
            let (head, at) = ring.bounds();
            assert!(named == 0 || named == 1 && head > 1);
            if head > at {
                let header = ring.header(at).unwrap();
                assert_eq!(&*ring.message(&header).unwrap().body, b"1");
            }
            if let Some(header) = ring.history("a").next() {
                assert_eq!(header.at, 1);
                assert_eq!(&*ring.message(&header).unwrap().body, b"1");
            }
            writer.join().unwrap();
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::oracles::channel::fuzz_ring;

    fn ring(words: usize) -> Ring {
        let memory = |n: usize| Box::leak((0..n).map(|_| AtomicU64::new(0)).collect::<Box<_>>());
        Ring::new(Box::leak(Box::default()), memory(BUCKETS), memory(words), [1, 2])
    }

    fn write(ring: Ring, channel: &str, body: &[u8]) -> Written {
        ring.write(&NewMessage { kind: Kind::Binary, channel, media: "", body }, 1)
    }

    /// All that is there, the oldest first.
    fn all(ring: Ring) -> Vec<Message> {
        let (head, mut at) = ring.bounds();
        let mut messages = Vec::new();
        while at < head {
            let header = ring.header(at).unwrap();
            messages.push(ring.message(&header).unwrap());
            at = header.next;
        }
        messages
    }

    #[test]
    fn what_was_written_is_read() {
        let ring = ring(1 << 10);
        assert_eq!((all(ring).len(), ring.bounds()), (0, (1, 1)));
        let media = "x".repeat(300);
        let messages = [
            NewMessage { kind: Kind::Text, channel: "a", media: "text/plain", body: b"hello" },
            NewMessage { kind: Kind::Binary, channel: "room/\u{e9}", media: "", body: &[0xff; 17] },
            NewMessage { kind: Kind::End, channel: "a", media: &media, body: b"" },
        ];
        let mut time = 5..;
        let written = messages.map(|message| ring.write(&message, time.next().unwrap()));
        let mut time = 5..;
        for ((message, new), written) in all(ring).iter().zip(&messages).zip(&written) {
            assert_eq!((message.kind, &*message.channel), (new.kind, new.channel));
            assert_eq!((&*message.body, message.time), (new.body, time.next().unwrap()));
            assert_eq!((message.at, message.hash), (written.at, ring.hash(new.channel)));
        }
        assert_eq!(&*all(ring)[0].media, "text/plain");
        assert_eq!(all(ring)[2].media.len(), 255);
        assert_eq!(all(ring).len(), 3);
    }

    #[test]
    fn the_oldest_make_room() {
        let ring = ring(1 << 10);
        assert_eq!(ring.most(), (1 << 10) - 40 - 512);
        let mut woken = 0;
        for n in 0..10_000_u32 {
            let body = n.to_ne_bytes().repeat(1 + n as usize % 50);
            woken += u32::from(write(ring, "a", &body).wake_all);
            let there = all(ring);
            let newest: u32 = n - (there.len() as u32 - 1);
            for (message, n) in there.iter().zip(newest..) {
                assert_eq!(message.body[..4], n.to_ne_bytes());
            }
        }
        let (head, tail) = ring.bounds();
        assert!(head - tail <= 1 << 10 && head - tail > (1 << 10) - 40);
        // Four times a round.
        assert!(u64::from(woken).abs_diff(head >> 8) <= 1);
        assert_eq!(ring.header(tail - 1), Err(Missed));
        assert_eq!(ring.header(head), Err(Missed));
    }

    #[test]
    fn the_largest_message_fits() {
        let ring = ring(1 << 12);
        let body = vec![7; ring.most()];
        let channel = "n".repeat(255);
        let written = ring.write(
            &NewMessage { kind: Kind::Binary, channel: &channel, media: &channel, body: &body },
            1,
        );
        let header = ring.header(written.at).unwrap();
        assert_eq!(*ring.message(&header).unwrap().body, *body);
    }

    #[test]
    fn history_goes_back() {
        let ring = ring(1 << 10);
        let other = (0..).map(|n| format!("other{n}"));
        let collides = |name: &String| {
            ring.bucket(ring.hash(name)).as_ptr() == ring.bucket(ring.hash("a")).as_ptr()
        };
        let other = other.into_iter().find(collides).unwrap();
        for n in 0..3 {
            write(ring, "a", &[n]);
            write(ring, &other, &[9]);
            write(ring, "b", &[9]);
        }
        ring.write(&NewMessage { kind: Kind::End, channel: "a", media: "", body: b"" }, 1);
        let bodies = |channel: &str| {
            let body = |header| ring.message(&header).unwrap().body[0];
            ring.history(channel).map(body).collect::<Vec<_>>()
        };
        assert_eq!((bodies("a"), bodies(&other)), (vec![2, 1, 0], vec![9; 3]));
        assert_eq!(bodies("c"), []);
        for _ in 0..1000 {
            write(ring, "b", &[8]);
        }
        assert_eq!(bodies("a"), []);
    }

    #[test]
    fn the_oldest_message_is_one_that_is_there() {
        let ring = ring(1 << 10);
        let end = NewMessage { kind: Kind::End, channel: "a", media: "", body: b"" };
        let oldest = || ring.oldest().map(|header| header.at);
        assert_eq!(oldest(), None);
        ring.write(&end, 1);
        assert_eq!(oldest(), None);
        let first = write(ring, "a", b"1");
        write(ring, "b", b"2");
        assert_eq!(oldest(), Some(first.at));
        for _ in 0..1000 {
            write(ring, "b", b"3");
        }
        assert_eq!(oldest(), Some(ring.bounds().1));
        // Whatever the memory says, it is found, or not, in the end.
        ring.word(ring.bounds().1).store(0, Ordering::Relaxed);
        assert_eq!(oldest(), None);
    }

    #[test]
    fn a_writer_that_died_is_repaired() {
        // After the record, before the bucket's head.
        let ring = ring(1 << 10);
        let first = write(ring, "a", b"1");
        let second = write(ring, "a", b"2");
        ring.bucket(second.hash).store(first.at, Ordering::Relaxed);
        ring.repair();
        assert_eq!(ring.history("a").count(), 2);
        // Before the head: it does not count, and the next one takes its place.
        ring.positions.head.store(second.at, Ordering::Relaxed);
        ring.bucket(second.hash).store(first.at, Ordering::Relaxed);
        ring.repair();
        assert_eq!(ring.history("a").count(), 1);
        let third = write(ring, "b", b"3");
        assert_eq!(third.at, second.at);
        assert_eq!((ring.history("a").count(), ring.history("b").count()), (1, 1));
    }

    #[test]
    fn bounds_that_others_move_meanwhile_are_in_order() {
        let ring = ring(64);
        // The head that was read first, a tail that has passed it; one that is another ring's.
        for (head, tail, bounds) in [(10, 20, (10, 10)), (200, 20, (200, 200)), (20, 10, (20, 10))]
        {
            ring.positions.head.store(head, Ordering::Relaxed);
            ring.positions.tail.store(tail, Ordering::Relaxed);
            assert_eq!(ring.bounds(), bounds);
        }
    }

    #[test]
    fn whatever_others_do_to_the_memory_who_reads_comes_to_an_end() {
        let mut state = 3_u64;
        let mut random = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 40) as u8
        };
        for _ in 0..300 {
            let script: Vec<u8> = (0..100).map(|_| random()).collect();
            fuzz_ring(&script);
        }
    }

    #[test]
    fn whatever_the_memory_says_nobody_leaves_the_ring() {
        let mut state = 1_u64;
        let mut random = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state >> 20
        };
        for round in 0..2000 {
            let ring = ring(64);
            for word in ring.words {
                let bits = random() % 64;
                word.store(((random() << 24) ^ random()) >> bits, Ordering::Relaxed);
            }
            let Positions { head, tail, last } = ring.positions;
            let base = if round % 4 == 0 { u64::MAX - 70 } else { random() % 200 };
            head.store(base.wrapping_add(random() % 70), Ordering::Relaxed);
            tail.store(base, Ordering::Relaxed);
            last.store(base.wrapping_add(random() % 70), Ordering::Relaxed);
            for bucket in ring.buckets.iter().take(4) {
                bucket.store(base.wrapping_add(random() % 70), Ordering::Relaxed);
            }
            let (end, begin) = ring.bounds();
            for at in begin..end.min(begin.saturating_add(70)) {
                if let Ok(header) = ring.header(at) {
                    let _ = ring.message(&header);
                }
            }
            assert!(ring.history("a").count() <= 64);
            ring.repair();
            let written = write(ring, "a", b"");
            assert!(ring.header(written.at).is_ok());
        }
    }
}
