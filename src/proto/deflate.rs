//! permessage-deflate (RFC 7692): negotiation as a pure function, and the codec of each direction.
//!
//! Terms are the RFC's, seen from a server: *server* parameters govern what we compress, *client* ones what
//! we inflate. A direction *with context takeover* keeps its codec, and with it the window, from one message to
//! the next; one without borrows a codec from a process-wide pool for the length of a message, so an idle
//! connection holds neither.

use core::fmt;
use std::sync::Mutex;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::Violation;
use crate::{
    buffer::Buffer,
    limits::memory::{Budget, Claim},
    sync::Lock as _,
};

/// The extension's name.
const NAME: &str = "permessage-deflate";
/// What ends the output of a sync flush, and what a receiver has to put back (RFC 7692 §7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];
/// The largest LZ77 window, and the one in force when a parameter is absent.
const WINDOW_MAX: u8 = 15;
/// The smallest window the deflate library can be held to; the RFC's 8 is below it.
const WINDOW_MIN: u8 = 9;
/// How many idle codecs of each direction the process keeps.
const POOL: usize = 16;
/// What a decompressor takes, to within a few KiB (measured); it always has the largest window.
const INFLATER: usize = 47 << 10;

/// What the configuration allows in a negotiation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Policy {
    /// Keep our compression context from message to message.
    pub server_takeover: bool,
    /// Let the client keep its context, which costs us an inflation window per connection.
    pub client_takeover: bool,
    /// The largest window we compress with, 9 to 15 bits.
    pub server_window: u8,
    /// The largest window we ask a client to use, 9 to 15 bits; honoured by clients that can be asked.
    pub client_window: u8,
}

/// What was agreed, as the answer names it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Params {
    /// RFC 7692 §7.1.1.1: we forget our context after each message.
    pub server_no_context_takeover: bool,
    /// RFC 7692 §7.1.1.2: the client forgets its context after each message.
    pub client_no_context_takeover: bool,
    /// RFC 7692 §7.1.2.1: the window we compress with, in bits; 15 if it is not named.
    pub server_max_window_bits: Option<u8>,
    /// RFC 7692 §7.1.2.2: the window the client compresses with, in bits; 15 if it is not named.
    pub client_max_window_bits: Option<u8>,
}

impl fmt::Display for Params {
    /// The answer as `Sec-WebSocket-Extensions` carries it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAME)?;
        if self.server_no_context_takeover {
            f.write_str("; server_no_context_takeover")?;
        }
        if self.client_no_context_takeover {
            f.write_str("; client_no_context_takeover")?;
        }
        if let Some(bits) = self.server_max_window_bits {
            write!(f, "; server_max_window_bits={bits}")?;
        }
        if let Some(bits) = self.client_max_window_bits {
            write!(f, "; client_max_window_bits={bits}")?;
        }
        Ok(())
    }
}

impl Params {
    /// How many bytes the kept contexts of a connection take, to within a few KiB.
    pub fn kept_bytes(&self) -> usize {
        let bits = |bits: Option<u8>| u32::from(bits.unwrap_or(WINDOW_MAX));
        // Measured: the compressor's window and hash chains grow with its bits, its hash heads and pending
        // output do not.
        let server = (1 << (bits(self.server_max_window_bits) + 2)) + (188 << 10);
        usize::from(!self.server_no_context_takeover) * server
            + usize::from(!self.client_no_context_takeover) * INFLATER
    }
}

/// One offer of a client, as far as its parameters are known and legal.
#[derive(Clone, Copy, Debug, Default)]
struct Offer {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_max_window_bits: Option<u8>,
    /// `Some(None)`: offered without a value, so a value may be asked for.
    client_max_window_bits: Option<Option<u8>>,
}

impl Offer {
    /// Reads one extension of the list; `None` if it is not one of ours or must be declined
    /// (RFC 7692 §7.1: unknown, duplicate and invalid parameters).
    fn parse(extension: &str) -> Option<Self> {
        let mut parts = split_quoted(extension, b';').map(str::trim);
        // RFC 6455 §9.1: extension names are tokens; registered ones are matched as httpd matches
        // tokens, without regard to case.
        if !parts.next()?.eq_ignore_ascii_case(NAME) {
            return None;
        }
        let mut offer = Self::default();
        for part in parts {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name.trim_end(), Some(unquote(value.trim_start())?)),
                None => (part, None),
            };
            match (name, value) {
                ("server_no_context_takeover", None) if !offer.server_no_context_takeover => {
                    offer.server_no_context_takeover = true;
                }
                ("client_no_context_takeover", None) if !offer.client_no_context_takeover => {
                    offer.client_no_context_takeover = true;
                }
                ("server_max_window_bits", Some(value))
                    if offer.server_max_window_bits.is_none() =>
                {
                    offer.server_max_window_bits = Some(window_bits(value)?);
                }
                ("client_max_window_bits", value) if offer.client_max_window_bits.is_none() => {
                    offer.client_max_window_bits = Some(match value {
                        Some(value) => Some(window_bits(value)?),
                        None => None,
                    });
                }
                _ => return None,
            }
        }
        Some(offer)
    }

    /// Our answer, or `None` if we cannot do what is asked.
    fn answer(self, policy: &Policy) -> Option<Params> {
        // §7.1.2.1: an offer that names it is accepted by naming it; we may name it on our own.
        let server_max_window_bits = match self.server_max_window_bits {
            Some(bits) if bits < WINDOW_MIN => return None,
            Some(bits) => Some(bits.min(policy.server_window)),
            None => Some(policy.server_window).filter(|&bits| bits < WINDOW_MAX),
        };
        // §7.1.2.2: a client that does not mention it cannot be asked. A window below ours
        // is only a hint: it lies inside the largest one.
        let client_max_window_bits = self
            .client_max_window_bits
            .map(|bits| policy.client_window.min(bits.unwrap_or(WINDOW_MAX)))
            .filter(|bits| (WINDOW_MIN..WINDOW_MAX).contains(bits));
        Some(Params {
            server_no_context_takeover: self.server_no_context_takeover || !policy.server_takeover,
            client_no_context_takeover: self.client_no_context_takeover || !policy.client_takeover,
            server_max_window_bits,
            client_max_window_bits,
        })
    }
}

/// Chooses the first acceptable offer in the value of `Sec-WebSocket-Extensions`.
///
/// Several header fields are one list (RFC 6455 §9.1), joined with commas as httpd does.
pub fn negotiate(extensions: &str, policy: &Policy) -> Option<Params> {
    split_quoted(extensions, b',').find_map(|offer| Offer::parse(offer.trim())?.answer(policy))
}

/// As [`negotiate`], but without context takeover where half of `budget` has no room for kept contexts.
pub fn negotiate_within(
    extensions: &str,
    policy: &Policy,
    budget: &'static Budget,
) -> Option<(Params, Claim)> {
    let params = negotiate(extensions, policy)?;
    if let Some(reserved) = budget.reserve(params.kept_bytes()) {
        return Some((params, reserved));
    }
    let frugal = Policy { server_takeover: false, client_takeover: false, ..*policy };
    Some((negotiate(extensions, &frugal)?, budget.claim()))
}

/// The longest payload to which a compressor that means no harm makes `len` bytes: stored blocks of a small one, and
/// the end of a sync flush.
pub fn most_compressed(len: u64) -> u64 {
    len.saturating_add(len / 8 + len / 64 + 64)
}

/// Splits at `separator` outside quoted strings (RFC 9110 §5.6.4).
fn split_quoted(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    core::iter::from_fn(move || {
        let text = rest?;
        let (mut quoted, mut escaped) = (false, false);
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                _ if byte == separator && !quoted => {
                    rest = Some(&text[at + 1..]);
                    return Some(&text[..at]);
                }
                _ => {}
            }
        }
        rest = None;
        Some(text)
    })
}

/// The value of a parameter without its quotes. After unquoting it must be a token
/// (RFC 6455 §9.1), so an escape is of no use and refuses it.
fn unquote(value: &str) -> Option<&str> {
    match value.strip_prefix('"') {
        Some(quoted) => quoted.strip_suffix('"'),
        None => Some(value),
    }
}

/// A window size: 8 to 15 in decimal without leading zeros (RFC 7692 §7.1.2).
fn window_bits(value: &str) -> Option<u8> {
    let bits = value.parse().ok().filter(|bits| (8..=WINDOW_MAX).contains(bits))?;
    (value == ["8", "9", "10", "11", "12", "13", "14", "15"][usize::from(bits) - 8]).then_some(bits)
}

/// Idle codecs of directions without context takeover.
struct Pool<C>(Mutex<Vec<((u8, u32), C)>>);

static COMPRESSORS: Pool<Compress> = Pool(Mutex::new(Vec::new()));
static DECOMPRESSORS: Pool<Decompress> = Pool(Mutex::new(Vec::new()));

impl<C> Pool<C> {
    /// An idle codec of this window and level, if there is one.
    fn take(&self, key: (u8, u32)) -> Option<C> {
        let mut idle = self.0.acquire();
        let at = idle.iter().position(|(k, _)| *k == key)?;
        Some(idle.swap_remove(at).1)
    }

    /// Gives a codec back that is reset; the oldest goes when there are too many.
    fn put(&self, key: (u8, u32), codec: C) {
        let mut idle = self.0.acquire();
        let surplus = (idle.len() >= POOL).then(|| idle.remove(0));
        idle.push((key, codec));
        drop(idle);
        drop(surplus);
    }
}

/// How messages are compressed that several connections get.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Packing {
    /// The window, in bits.
    pub window: u8,
    /// The effort, 1 (fast) to 9 (small).
    pub level: u8,
}

impl Packing {
    /// What a connection with these parameters may get.
    pub fn of(params: &Params, level: u8) -> Self {
        Self { window: params.server_max_window_bits.unwrap_or(WINDOW_MAX), level }
    }
}

/// Compresses what the server sends.
#[derive(Debug)]
pub struct Deflater {
    takeover: bool,
    window: u8,
    level: u32,
    /// Kept between messages with context takeover only.
    codec: Option<Compress>,
}

impl Deflater {
    /// A compressor for the server's direction; `level` is 1 (fast) to 9 (small).
    pub fn new(params: &Params, level: u8) -> Self {
        let takeover = !params.server_no_context_takeover;
        Self { takeover, ..Self::without_context(Packing::of(params, level)) }
    }

    /// One for messages each of which any client may inflate, whatever it has got before.
    pub fn without_context(Packing { window, level }: Packing) -> Self {
        Self { takeover: false, window, level: level.into(), codec: None }
    }

    /// Appends the compressed payload of a message to `out` (RFC 7692 §7.2.1).
    ///
    /// `false`, with `out` as it was, when compressing gains nothing and the context allows sending the
    /// message as it is. `message` must not be empty.
    pub fn compress(&mut self, message: &[u8], out: &mut Vec<u8>) -> bool {
        let key = (self.window, self.level);
        let mut codec = self.codec.take().or_else(|| COMPRESSORS.take(key)).unwrap_or_else(|| {
            Compress::new_with_window_bits(Compression::new(self.level), false, self.window)
        });
        let start = out.len();
        let begun = codec.total_in();
        out.reserve(message.len() / 2 + 64);
        loop {
            let done = (codec.total_in() - begun) as usize;
            // The output buffer always has room, the only error deflate knows here.
            let status = codec.compress_vec(&message[done..], out, FlushCompress::Sync);
            debug_assert!(matches!(status, Ok(Status::Ok | Status::BufError)));
            // A sync flush is complete when it leaves room in the output (zlib's manual).
            if out.len() < out.capacity() {
                break;
            }
            out.reserve(out.len() - start);
        }
        debug_assert_eq!((codec.total_in() - begun) as usize, message.len());
        debug_assert!(out.ends_with(&TAIL));
        out.truncate(out.len() - TAIL.len());
        if self.takeover {
            self.codec = Some(codec);
            return true;
        }
        codec.reset();
        COMPRESSORS.put(key, codec);
        let gains = out.len() - start < message.len();
        if !gains {
            out.truncate(start);
        }
        gains
    }
}

/// Inflates what a client sends.
#[derive(Debug)]
pub struct Inflater {
    takeover: bool,
    window: u8,
    /// A deflate stream has begun, or goes on, and not ended by itself.
    open: bool,
    /// Kept between messages with context takeover; else held while a message is arriving.
    codec: Option<Decompress>,
    /// The memory of a codec that is not kept.
    claim: Claim,
}

impl Inflater {
    /// A decompressor for the client's direction. What it holds is taken from `budget`, but for a kept context, which the
    /// handshake has [reserved](negotiate_within).
    pub fn new(params: &Params, budget: &'static Budget) -> Self {
        Self {
            takeover: !params.client_no_context_takeover,
            window: params.client_max_window_bits.unwrap_or(WINDOW_MAX),
            open: false,
            codec: None,
            claim: budget.claim(),
        }
    }

    /// Inflates the next piece of a message behind `out`, which never holds more than `limit` + 1 bytes.
    pub fn push(&mut self, piece: &[u8], out: &mut Buffer, limit: usize) -> Result<(), Violation> {
        let codec = match &mut self.codec {
            Some(codec) => codec,
            none => {
                if !self.takeover {
                    self.claim.cover(INFLATER)?;
                }
                none.insert(
                    DECOMPRESSORS
                        .take((self.window, 0))
                        .unwrap_or_else(|| Decompress::new_with_window_bits(false, self.window)),
                )
            }
        };
        let mut rest = piece;
        self.open |= !piece.is_empty();
        loop {
            let missing = limit + 1 - out.len();
            let room = out.room(missing, missing)?;
            let (size, taken, given) = (room.len(), codec.total_in(), codec.total_out());
            let status = codec
                .decompress(rest, room, FlushDecompress::Sync)
                .map_err(|_| Violation::Deflate)?;
            rest = &rest[(codec.total_in() - taken) as usize..];
            let filled = (codec.total_out() - given) as usize;
            out.advance(filled);
            if out.len() > limit {
                return Err(Violation::TooBig);
            }
            if status == Status::StreamEnd {
                // §7.2.3.4: a message may end its deflate stream; what follows is a new one.
                codec.reset(false);
                if rest.is_empty() {
                    self.open = false;
                    return Ok(());
                }
            } else if filled < size {
                return if rest.is_empty() { Ok(()) } else { Err(Violation::Deflate) };
            }
        }
    }

    /// Ends a message: what the sender cut off is put back (RFC 7692 §7.2.2).
    pub fn finish(&mut self, out: &mut Buffer, limit: usize) -> Result<(), Violation> {
        if self.open {
            let before = out.len();
            self.push(&TAIL, out, limit)?;
            self.open = false;
            // An empty block has no content; what gave some was the middle of another block.
            if out.len() != before {
                return Err(Violation::Deflate);
            }
        }
        if !self.takeover {
            self.release();
        }
        Ok(())
    }

    /// Gives the codec back to the pool: what follows is not inflated, or begins anew.
    pub fn release(&mut self) {
        if let Some(mut codec) = self.codec.take() {
            codec.reset(false);
            DECOMPRESSORS.put((self.window, 0), codec);
        }
        self.claim.release();
    }
}

impl Drop for Inflater {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::memory::UNLIMITED;

    const OPEN: Policy = Policy {
        server_takeover: true,
        client_takeover: true,
        server_window: 15,
        client_window: 15,
    };

    fn buffer() -> Buffer {
        Buffer::new(&UNLIMITED)
    }

    fn answer(extensions: &str, policy: &Policy) -> Option<String> {
        negotiate(extensions, policy).map(|params| params.to_string())
    }

    #[test]
    fn negotiation_table() {
        for (offer, expected) in [
            ("", None),
            ("x-webkit-deflate-frame", None),
            ("permessage-deflate", Some("permessage-deflate")),
            ("Permessage-Deflate", Some("permessage-deflate")),
            (" permessage-deflate ; client_max_window_bits ", Some("permessage-deflate")),
            ("foo, permessage-deflate", Some("permessage-deflate")),
            ("foo; x=\"a,permessage-deflate\", bar", None),
            (
                "permessage-deflate; server_no_context_takeover",
                Some("permessage-deflate; server_no_context_takeover"),
            ),
            (
                "permessage-deflate; client_no_context_takeover",
                Some("permessage-deflate; client_no_context_takeover"),
            ),
            (
                "permessage-deflate; server_max_window_bits=10",
                Some("permessage-deflate; server_max_window_bits=10"),
            ),
            (
                "permessage-deflate; server_max_window_bits=\"10\"",
                Some("permessage-deflate; server_max_window_bits=10"),
            ),
            (
                "permessage-deflate; client_max_window_bits=10",
                Some("permessage-deflate; client_max_window_bits=10"),
            ),
            (
                "permessage-deflate; server_max_window_bits=15",
                Some("permessage-deflate; server_max_window_bits=15"),
            ),
            ("permessage-deflate; client_max_window_bits=8", Some("permessage-deflate")),
            // What must be declined: values out of range or form, unknown and duplicate parameters.
            ("permessage-deflate; server_max_window_bits", None),
            ("permessage-deflate; server_max_window_bits=8", None),
            ("permessage-deflate; server_max_window_bits=7", None),
            ("permessage-deflate; server_max_window_bits=16", None),
            ("permessage-deflate; server_max_window_bits=010", None),
            ("permessage-deflate; server_max_window_bits=+9", None),
            ("permessage-deflate; server_max_window_bits=", None),
            ("permessage-deflate; server_max_window_bits=\"10", None),
            ("permessage-deflate; client_max_window_bits=16", None),
            ("permessage-deflate; client_max_window_bits=", None),
            ("permessage-deflate; server_no_context_takeover=1", None),
            ("permessage-deflate; server_no_context_takeover; server_no_context_takeover", None),
            ("permessage-deflate; client_max_window_bits; client_max_window_bits=9", None),
            ("permessage-deflate; server_max_window_bits=9; server_max_window_bits=9", None),
            ("permessage-deflate; unknown", None),
            ("permessage-deflate;", None),
            // A declined offer gives way to the next one (RFC 7692 §5.1).
            (
                "permessage-deflate; server_max_window_bits=8, permessage-deflate; \
                 server_no_context_takeover, permessage-deflate",
                Some("permessage-deflate; server_no_context_takeover"),
            ),
            ("permessage-deflate; unknown, permessage-deflate", Some("permessage-deflate")),
        ] {
            assert_eq!(answer(offer, &OPEN).as_deref(), expected, "{offer}");
        }
    }

    #[test]
    fn without_room_for_contexts_they_are_not_kept() {
        let budget = Box::leak(Box::new(Budget::new(1_000_000)));
        let first = negotiate_within("permessage-deflate", &OPEN, budget).unwrap();
        assert_eq!(first.0.to_string(), "permessage-deflate");
        let second = negotiate_within("permessage-deflate", &OPEN, budget).unwrap();
        assert!(second.0.server_no_context_takeover && second.0.client_no_context_takeover);
        drop(first);
        let third = negotiate_within("permessage-deflate", &OPEN, budget).unwrap();
        assert_eq!(third.0.to_string(), "permessage-deflate");
        assert_eq!(second.0.kept_bytes(), 0);
    }

    #[test]
    fn the_configuration_narrows_the_answer() {
        let narrow = Policy {
            server_takeover: false,
            client_takeover: false,
            server_window: 12,
            client_window: 11,
        };
        for (offer, expected) in [
            // A client that does not mention its window cannot be asked to narrow it.
            (
                "permessage-deflate",
                "permessage-deflate; server_no_context_takeover; client_no_context_takeover; \
                 server_max_window_bits=12",
            ),
            (
                "permessage-deflate; client_max_window_bits; server_max_window_bits=10",
                "permessage-deflate; server_no_context_takeover; client_no_context_takeover; \
                 server_max_window_bits=10; client_max_window_bits=11",
            ),
        ] {
            assert_eq!(answer(offer, &narrow).as_deref(), Some(expected), "{offer}");
        }
    }

    fn params(takeover: bool, bits: u8) -> Params {
        Params {
            server_no_context_takeover: !takeover,
            client_no_context_takeover: !takeover,
            server_max_window_bits: Some(bits),
            client_max_window_bits: Some(bits),
        }
    }

    #[test]
    fn the_samples_of_rfc_7692_section_7_2_3() {
        let inflate = |inflater: &mut Inflater, bytes: &[u8]| {
            let mut out = buffer();
            inflater.push(bytes, &mut out, 100).unwrap();
            inflater.finish(&mut out, 100).unwrap();
            out.content().to_vec()
        };
        let mut inflater = Inflater::new(&params(true, 15), &UNLIMITED);
        let hello = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        assert_eq!(inflate(&mut inflater, &hello), b"Hello");
        // §7.2.3.2: the second Hello refers to the first.
        assert_eq!(inflate(&mut inflater, &[0xf2, 0x00, 0x11, 0x00, 0x00]), b"Hello");
        // §7.2.3.3: a block without compression.
        let stored = [0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00];
        assert_eq!(inflate(&mut inflater, &stored), b"Hello");
        // §7.2.3.4: a block with BFINAL set.
        let last = [0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00];
        assert_eq!(inflate(&mut inflater, &last), b"Hello");
        // §7.2.3.5: two blocks.
        let two = [0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00];
        assert_eq!(inflate(&mut inflater, &two), b"Hello");
        // §7.2.3.6: an empty message.
        assert_eq!(inflate(&mut inflater, &[0x00]), b"");
    }

    #[test]
    fn what_goes_in_comes_out_for_each_window() {
        let text: Vec<u8> = (0..50_000u32).flat_map(|i| (i * i % 977).to_le_bytes()).collect();
        for bits in 9..=15 {
            for takeover in [false, true] {
                let params = params(takeover, bits);
                let mut deflater = Deflater::new(&params, 6);
                let mut inflater = Inflater::new(&params, &UNLIMITED);
                for len in [1, 2, 10, 125, 4096, 65_536, text.len()] {
                    let message = &text[..len];
                    let mut wire = vec![7];
                    if !deflater.compress(message, &mut wire) {
                        assert!(!takeover);
                        assert_eq!(wire, [7]);
                        continue;
                    }
                    let mut out = buffer();
                    for piece in wire[1..].chunks(1000) {
                        inflater.push(piece, &mut out, len).unwrap();
                    }
                    inflater.finish(&mut out, len).unwrap();
                    assert_eq!(
                        out.content(),
                        message,
                        "{bits} bits, takeover {takeover}, {len} bytes"
                    );
                }
            }
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let params = params(false, 15);
        let mut bomb = Vec::new();
        assert!(Deflater::new(&params, 9).compress(&vec![0; 50_000_000], &mut bomb));
        let mut out = buffer();
        let result = Inflater::new(&params, &UNLIMITED).push(&bomb, &mut out, 100_000);
        assert_eq!(result, Err(Violation::TooBig));
        assert!(out.capacity() <= 100_001, "{}", out.capacity());
    }

    #[test]
    fn what_is_inflated_is_counted_before_it_is_there() {
        let budget = Box::leak(Box::new(Budget::new(256 << 10)));
        let params = params(false, 15);
        let mut bomb = Vec::new();
        assert!(Deflater::new(&params, 9).compress(&vec![0; 50_000_000], &mut bomb));
        let (mut inflater, mut out) = (Inflater::new(&params, budget), Buffer::new(budget));
        assert_eq!(inflater.push(&bomb, &mut out, 1 << 30), Err(Violation::Memory));
        assert!(out.capacity() <= 256 << 10);
        assert_eq!(budget.used(), out.capacity() + (48 << 10));
        drop((inflater, out));
        assert_eq!(budget.used(), 0);
        // Nor does a message that has only begun have a decompressor for nothing.
        let mut begun = Vec::new();
        for _ in 0..5 {
            let mut inflater = Inflater::new(&params, budget);
            let result = inflater.push(&[0xf2], &mut Buffer::new(budget), 100);
            begun.push((inflater, result));
        }
        let results: Vec<_> = begun.iter().map(|(_, result)| result.is_ok()).collect();
        assert_eq!(results, [true, true, true, true, true]);
        assert!(
            Inflater::new(&params, budget).push(&[0xf2], &mut Buffer::new(budget), 100).is_err()
        );
    }

    #[test]
    fn what_a_compressor_makes_is_not_longer_than_it_may_be() {
        for len in [0_usize, 1, 10, 1000, 16_384, 65_536, 1 << 20] {
            let noise: Vec<u8> =
                (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
            let mut wire = Vec::new();
            if len > 0 && Deflater::new(&params(true, 9), 1).compress(&noise, &mut wire) {
                assert!(wire.len() as u64 <= most_compressed(len as u64), "{len}: {}", wire.len());
            }
        }
        assert_eq!(most_compressed(u64::MAX), u64::MAX);
    }

    #[test]
    fn broken_data_is_a_violation() {
        let mut inflater = Inflater::new(&params(true, 15), &UNLIMITED);
        let mut out = buffer();
        assert_eq!(inflater.push(&[0xff; 20], &mut out, 1000), Err(Violation::Deflate));
    }
}
