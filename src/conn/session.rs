//! The inbound half of a connection, sans I/O: bytes in, messages and control frames out.
//!
//! A driver owns the buffer it read into and hands it over with [`Session::feed`]; the session unmasks in place and
//! lends the message back from there when it lies whole in the input. Only a message that spans reads, or is
//! fragmented or compressed, is assembled in a buffer of the session's own, which grows with the bytes received and
//! never with a length that a header merely claims (RFC 6455 §5.4, §5.5, §6.2, §8.1; RFC 7692 §6.2). What is to come of
//! a large frame may be read straight into that buffer, see [`Session::room`].
//!
//! The session knows no socket, no clock and no peer to answer: what to send is the driver's and the endpoint's part.

use core::ops::Range;

use crate::{
    buffer::Buffer,
    limits::memory::Budget,
    proto::{
        Kind, Version, Violation,
        close::CloseReason,
        deflate::{Inflater, Params, most_compressed},
        draft,
        frame::{Deframer, Opcode, PayloadPiece, Rules},
        mask::Mask,
        utf8::{self, Validator},
    },
};

/// An assembled message's buffer larger than this is given back when the connection rests.
const KEEP: usize = 512;
/// From so many missing bytes on, a frame is worth a read of its own; tests get there with fewer.
const DIRECT: u64 = if cfg!(any(test, fuzzing)) { 40 } else { 64 * 1024 };
/// How much is read at a time then: what is unmasked and validated next should still be in the processor's cache.
const DIRECT_MOST: u64 = 256 * 1024;

/// The bounds that a session enforces.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The protocol version, which decides how frames look.
    pub version: Version,
    /// The most bytes of an assembled (and inflated) message, and of a control frame's payload.
    pub max_message: usize,
    /// Let a client close with a code of 1000–2999 that is reserved for future use.
    pub allow_reserved: bool,
    /// Where the memory of unfinished messages is taken from.
    pub memory: &'static Budget,
}

/// What a client said.
#[derive(Debug, Eq, PartialEq)]
pub enum Event<'b> {
    /// A whole message. The buffer is the reader's to scribble on.
    Message {
        /// Text is valid UTF-8.
        kind: Kind,
        /// The payload, assembled and inflated.
        data: &'b mut [u8],
    },
    /// A Ping, to be answered with a Pong of the same payload.
    Ping(&'b [u8]),
    /// A Pong.
    Pong(&'b [u8]),
    /// The client's Close; nothing follows it.
    Close(CloseReason<'b>),
}

/// What [`Session::feed`] did with its input.
#[derive(Debug, Eq, PartialEq)]
pub struct Progress<'b> {
    /// How many bytes of the input were taken; all of them if there is no event.
    pub consumed: usize,
    /// What they amounted to.
    pub event: Option<Event<'b>>,
}

/// The state of a connection's inbound half.
#[derive(Debug)]
pub struct Session {
    limits: Limits,
    deframer: Deframer,
    /// What cuts frames in its place, if the client speaks draft 76 or 75.
    draft: Option<Box<draft::Deframer>>,
    /// What permessage-deflate needs, if it was negotiated.
    inflater: Option<Box<Inflater>>,
    /// The message that is being assembled; its bytes are in `buffer`.
    message: Option<Assembly>,
    /// The bytes of `message`, or of the message lent last.
    buffer: Buffer,
    /// The payload of a control frame that spans reads; empty otherwise, or lent.
    control: Vec<u8>,
    phase: Phase,
    /// Messages mean nothing any more.
    discards: bool,
}

/// What the input means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// Frames of RFC 6455.
    Frames,
    /// Frames of draft 76 or 75.
    Draft,
    /// None: whatever the client of a stream of events sends means nothing.
    Nothing,
    /// A Close or a violation has been seen: the rest means nothing.
    Finished,
}

/// A data message of which more is to come.
#[derive(Clone, Copy, Debug)]
struct Assembly {
    kind: Kind,
    compressed: bool,
    utf8: Validator,
}

impl Session {
    /// A session at its first frame. `deflate` is what the handshake agreed on.
    pub fn new(limits: Limits, deflate: Option<&Params>) -> Self {
        let draft = match limits.version {
            Version::Draft(draft) => Some(Box::new(draft::Deframer::new(draft))),
            _ => None,
        };
        Self {
            limits,
            deframer: Deframer::default(),
            phase: match limits.version {
                Version::Draft(_) => Phase::Draft,
                Version::EventStream => Phase::Nothing,
                _ => Phase::Frames,
            },
            draft,
            inflater: deflate.map(|params| Box::new(Inflater::new(params, limits.memory))),
            message: None,
            buffer: Buffer::new(limits.memory),
            control: Vec::new(),
            discards: false,
        }
    }

    /// The bounds it enforces.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether a Close or a violation has ended the conversation.
    pub fn is_finished(&self) -> bool {
        self.phase == Phase::Finished
    }

    /// Messages that come in parts are not kept any more, since a Close of ours is on its way.
    pub fn discard(&mut self) {
        if !core::mem::replace(&mut self.discards, true) {
            self.buffer = self.buffer.another();
            if let Some(inflater) = &mut self.inflater {
                inflater.release();
            }
        }
    }

    /// Nothing more is expected of the client, nor kept.
    #[cold]
    pub fn finish(&mut self) {
        (self.phase, self.message) = (Phase::Finished, None);
        self.buffer = self.buffer.another();
        self.inflater = None;
    }

    /// Takes bytes until they amount to an event or are used up.
    ///
    /// Call it again with the rest of the input until no event comes back. After an error or a Close everything is
    /// consumed without effect.
    #[inline]
    pub fn feed<'b>(&'b mut self, input: &'b mut [u8]) -> Result<Progress<'b>, Violation> {
        let mut consumed = 0;
        while self.phase == Phase::Frames {
            if self.message.is_some() {
                let middle = self.take_middle(&mut input[consumed..]);
                consumed += middle.inspect_err(|_| self.finish())?;
            }
            let rules = self.rules();
            let step = self.deframer.next(&mut input[consumed..], rules);
            let (used, piece) = step.inspect_err(|_| self.finish())?;
            let base = consumed;
            consumed += used;
            let Some(piece) = piece else { return Ok(Progress { consumed, event: None }) };
            let data = &input[base..][piece.range.clone()];
            let taken = if piece.header.opcode.is_control() {
                Ok(self.take_control(&piece, data))
            } else {
                self.take_data(&piece, data)
            };
            let event = match taken.inspect_err(|_| self.finish())? {
                Taken::Nothing => continue,
                Taken::Whole(kind) => {
                    Event::Message { kind, data: &mut input[base..][piece.range] }
                }
                Taken::Assembled(kind) => Event::Message { kind, data: self.buffer.content() },
                Taken::Control => {
                    let payload = if self.control.is_empty() {
                        &input[base..][piece.range]
                    } else {
                        &self.control
                    };
                    match piece.header.opcode {
                        Opcode::Ping => Event::Ping(payload),
                        Opcode::Pong => Event::Pong(payload),
                        _ => {
                            (self.phase, self.message) = (Phase::Finished, None);
                            (self.buffer, self.inflater) = (self.buffer.another(), None);
                            let reason = CloseReason::parse(payload, self.limits.allow_reserved)?;
                            Event::Close(reason)
                        }
                    }
                }
            };
            return Ok(Progress { consumed, event: Some(event) });
        }
        if self.phase == Phase::Draft {
            let (consumed, found) = self.next_of_draft(input)?;
            let event = found.map(|found| match found {
                Found::Here(kind, range) => Event::Message { kind, data: &mut input[range] },
                Found::Assembled(kind) => Event::Message { kind, data: self.buffer.content() },
                Found::Close => Event::Close(CloseReason { code: None, text: "" }),
            });
            return Ok(Progress { consumed, event });
        }
        Ok(Progress { consumed: input.len(), event: None })
    }

    /// What a client that speaks draft 76 or 75 says next, and how many bytes it took.
    #[cold]
    fn next_of_draft(&mut self, input: &[u8]) -> Result<(usize, Option<Found>), Violation> {
        let mut consumed = 0;
        while let Some(deframer) = &mut self.draft {
            let step = deframer.next(&input[consumed..], self.limits.max_message as u64);
            let (used, piece) = step.inspect_err(|_| self.finish())?;
            let base = consumed;
            consumed += used;
            let found = match piece {
                None => break,
                Some(draft::DraftPiece::Close) => {
                    self.finish();
                    Found::Close
                }
                Some(draft::DraftPiece::Data { kind, starts, ends, range }) => {
                    let range = base + range.start..base + range.end;
                    let taken = self.take_draft(kind, starts, ends, &input[range.clone()]);
                    match taken.inspect_err(|_| self.finish())? {
                        Taken::Whole(kind) => Found::Here(kind, range),
                        Taken::Assembled(kind) => Found::Assembled(kind),
                        Taken::Nothing | Taken::Control => continue,
                    }
                }
            };
            return Ok((consumed, Some(found)));
        }
        Ok((consumed, None))
    }

    /// Checks and collects a piece of a message of draft 76 or 75, whose deframer sees to the size.
    fn take_draft(
        &mut self,
        kind: Kind,
        starts: bool,
        ends: bool,
        data: &[u8],
    ) -> Result<Taken, Violation> {
        if starts {
            // The message lent last is over.
            self.buffer.clear();
            if ends {
                if kind == Kind::Text && utf8::whole(data).is_none() {
                    return Err(Violation::Text);
                }
                return Ok(Taken::Whole(kind));
            }
            self.message = Some(Assembly { kind, compressed: false, utf8: Validator::default() });
        }
        let Some(message) = &mut self.message else { return Ok(Taken::Nothing) };
        if self.discards {
            self.message = self.message.filter(|_| !ends);
            return Ok(Taken::Nothing);
        }
        let most = self.limits.max_message.saturating_sub(self.buffer.len() + data.len());
        self.buffer.extend(data, if ends { 0 } else { most })?;
        if kind == Kind::Text {
            let valid = message.utf8.push(data);
            if !valid || ends && !message.utf8.is_complete() {
                return Err(Violation::Text);
            }
        }
        if !ends {
            return Ok(Taken::Nothing);
        }
        self.message = None;
        Ok(Taken::Assembled(kind))
    }

    /// Collects the fragments at the front of `input` that neither start nor end their message, if they are small and
    /// whole, and says how long they are. What is different in any way is left as it is: nothing but speed depends on
    /// this.
    fn take_middle(&mut self, input: &mut [u8]) -> Result<usize, Violation> {
        let Some(message) = &mut self.message else { return Ok(0) };
        if message.compressed || self.discards || !self.deframer.is_idle() {
            return Ok(0);
        }
        let mut consumed = 0;
        // A first byte of 0: a continuation without FIN or reserved bits. Then MASK and a length of up to 125.
        while let [0, second @ 0x80..=0xfd, a, b, c, d, rest @ ..] = &mut input[consumed..] {
            let len = usize::from(*second & 0x7f);
            let mut mask = Mask::new([*a, *b, *c, *d]);
            let room = self.limits.max_message - self.buffer.len();
            let Some(data) = rest.get_mut(..len).filter(|_| len <= room) else { break };
            let ascii = mask.apply(data);
            message.check(data, ascii, false)?;
            self.buffer.extend(data, room - len)?;
            consumed += 6 + len;
        }
        Ok(consumed)
    }

    /// What the next header is judged by.
    #[inline(always)]
    fn rules(&self) -> Rules {
        let most = self.limits.max_message;
        let max_data = match &self.message {
            None => most as u64,
            Some(Assembly { compressed: true, .. }) => {
                most_compressed((most - self.buffer.len()) as u64)
            }
            Some(_) => (most - self.buffer.len()) as u64,
        };
        let (deflate, open) = (self.inflater.is_some(), self.message.is_some());
        Rules { deflate, open, max_control: most as u64, max_data }
    }

    /// Collects a control frame that spans reads.
    fn take_control(&mut self, piece: &PayloadPiece, data: &[u8]) -> Taken {
        if piece.starts {
            self.control.clear();
            if piece.ends {
                return Taken::Control;
            }
        }
        self.control.extend_from_slice(data);
        if piece.ends { Taken::Control } else { Taken::Nothing }
    }

    /// Checks and collects a piece of a data message.
    #[inline]
    fn take_data(&mut self, piece: &PayloadPiece, data: &[u8]) -> Result<Taken, Violation> {
        let header = &piece.header;
        if piece.starts && header.opcode != Opcode::Continuation {
            // The message lent last is over.
            self.buffer.clear();
            let kind = if header.opcode == Opcode::Text { Kind::Text } else { Kind::Binary };
            let compressed = header.compressed;
            // The common case: one frame, all here, as it is.
            if header.fin && piece.ends && !compressed {
                if kind == Kind::Text && !piece.ascii && utf8::whole(data).is_none() {
                    return Err(Violation::Text);
                }
                return Ok(Taken::Whole(kind));
            }
            self.message = Some(Assembly { kind, compressed, utf8: Validator::default() });
        }
        let Some(message) = &mut self.message else { return Ok(Taken::Nothing) };
        let last = header.fin && piece.ends;
        if self.discards {
            self.message = self.message.filter(|_| !last);
            return Ok(Taken::Nothing);
        }
        match &mut self.inflater {
            Some(inflater) if message.compressed => {
                let before = self.buffer.len();
                inflater.push(data, &mut self.buffer, self.limits.max_message)?;
                if last {
                    inflater.finish(&mut self.buffer, self.limits.max_message)?;
                }
                message.check(&self.buffer.content()[before..], false, last)?;
            }
            _ => {
                message.check(data, piece.ascii, last)?;
                let most = self.limits.max_message.saturating_sub(self.buffer.len() + data.len());
                let more = if last { 0 } else { self.deframer.missing_message().min(most) };
                self.buffer.extend(data, more)?;
            }
        }
        if !last {
            return Ok(Taken::Nothing);
        }
        let kind = message.kind;
        self.message = None;
        Ok(Taken::Assembled(kind))
    }

    /// Where the next bytes belong, if they are the middle of a large data frame: a driver that reads into it tells so with
    /// [`filled`](Self::filled), and has them neither copied nor cut. It may as well read elsewhere and call
    /// [`feed`](Self::feed).
    pub fn room(&mut self) -> Option<&mut [u8]> {
        let missing = self.deframer.missing_data();
        let message = self.message.as_ref()?;
        if missing < DIRECT || message.compressed || self.discards || self.phase != Phase::Frames {
            return None;
        }
        // Without memory the bytes come as others do, and are refused.
        let most = self.limits.max_message.saturating_sub(self.buffer.len());
        let more = self.deframer.missing_message().min(most);
        self.buffer.room(missing.min(DIRECT_MOST) as usize, more).ok()
    }

    /// `len` bytes were read into the [`room`](Self::room). They may complete a message.
    pub fn filled(&mut self, len: usize) -> Result<Option<(Kind, &mut [u8])>, Violation> {
        let rules = self.rules();
        let filled = self.take_filled(len, rules).inspect_err(|_| self.finish())?;
        Ok(filled.map(|kind| (kind, self.buffer.content())))
    }

    fn take_filled(&mut self, len: usize, rules: Rules) -> Result<Option<Kind>, Violation> {
        let data = &mut self.buffer.room(len, len)?[..len];
        let (_, piece) = self.deframer.next(data, rules)?;
        let (Some(piece), Some(message)) = (piece, &mut self.message) else { return Ok(None) };
        let last = piece.header.fin && piece.ends;
        message.check(data, piece.ascii, last)?;
        self.buffer.advance(len);
        if !last {
            return Ok(None);
        }
        let kind = message.kind;
        self.message = None;
        Ok(Some(kind))
    }

    /// The message that came last, if it was assembled, until more is [fed](Self::feed).
    pub fn lent(&mut self) -> &mut [u8] {
        self.buffer.content()
    }

    /// Whether neither a message nor a frame has begun that has not ended.
    #[inline]
    pub fn is_between_frames(&self) -> bool {
        self.message.is_none() && self.deframer.is_idle()
    }

    /// How many bytes of an unfinished message there are.
    #[inline]
    pub fn unfinished(&self) -> usize {
        if self.message.is_some() { self.buffer.len() } else { 0 }
    }

    /// Whether a message that must be assembled would have to ask for memory.
    #[inline]
    pub fn wants_memory(&self) -> bool {
        self.message.is_none() && self.buffer.capacity() <= KEEP
    }

    /// Has the next message that must be assembled use the memory of `spare`. Only if it
    /// [wants](Self::wants_memory) some: what it holds is dropped.
    pub fn lend(&mut self, spare: Buffer) {
        debug_assert!(self.wants_memory());
        self.buffer = spare;
        self.buffer.clear();
    }

    /// Gives back what a large message left behind, for other connections to use; a driver calls it before the connection
    /// rests. A message that has only begun does not keep the memory of a large one.
    #[inline]
    pub fn trim(&mut self) -> Option<Buffer> {
        if self.buffer.capacity() <= KEEP {
            return None;
        }
        let mut rest = self.buffer.another();
        if self.message.is_some() {
            let len = self.buffer.len();
            if len as u64 >= DIRECT || self.buffer.capacity() <= 2 * DIRECT as usize {
                return None;
            }
            rest.extend(self.buffer.content(), usize::MAX).ok()?;
        }
        Some(core::mem::replace(&mut self.buffer, rest))
    }
}

impl Assembly {
    /// Checks the next bytes of a text; `ascii` says that they are known to be ASCII, `last` that it ends with them.
    #[inline]
    fn check(&mut self, data: &[u8], ascii: bool, last: bool) -> Result<(), Violation> {
        if self.kind == Kind::Text {
            let valid = ascii && self.utf8.is_complete() || self.utf8.push(data);
            if !valid || last && !self.utf8.is_complete() {
                return Err(Violation::Text);
            }
        }
        Ok(())
    }
}

/// What a piece led to.
enum Taken {
    /// More has to come.
    Nothing,
    /// A message that lies whole in the input.
    Whole(Kind),
    /// A message in the session's buffer.
    Assembled(Kind),
    /// A control frame: in `control` if that is not empty, else in the input.
    Control,
}

/// What a client of draft 76 or 75 has said.
enum Found {
    /// A message that lies there in the input.
    Here(Kind, Range<usize>),
    /// A message in the session's buffer.
    Assembled(Kind),
    /// Its Close.
    Close,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        limits::memory::UNLIMITED,
        oracles::session::{fuzz_session_chunked, owned},
    };

    static LIMITS: Limits = Limits {
        version: Version::V13,
        max_message: 1000,
        allow_reserved: false,
        memory: &UNLIMITED,
    };

    /// Messages of the drafts, in any cuts; `fuzz_session_chunked` compares them.
    #[test]
    fn the_messages_of_the_drafts_are_the_same_however_the_bytes_are_cut() {
        let text = "κόσμε 🂡".as_bytes();
        let long = [&b"\x80\x82\x2c"[..], &[7; 300]].concat();
        for end in [&b"\xff\x00\x00late\xff"[..], b"\x00\xc3\xff", b"\x00\xed\xa0\x80", b"\x80\xff"]
        {
            let stream =
                [b"\0", text, b"\xff\x80\0\0\xff\x01no\xff\x81\x02no", &long, end].concat();
            for flags in [0x10, 0x18, 0x50, 0x70, 0x98, 0xf0] {
                for size in 0..=20 {
                    let head = [flags, 0, size, 4, 9, 200];
                    fuzz_session_chunked(&[&head[..], &stream].concat());
                }
            }
        }
    }

    #[test]
    fn only_a_data_frame_is_read_straight_into_its_message() {
        let limits = LIMITS;
        let mut session = Session::new(limits, None);
        // The first fragment of a text, then the header of a Ping and half of its payload.
        let mut bytes = [&b"\x01\x82\0\0\0\0\xce\xba\x89\xfd\0\0\0\0"[..], &[0xff; 60]].concat();
        assert_eq!(session.feed(&mut bytes), Ok(Progress { consumed: 74, event: None }));
        assert!(session.room().is_none());
        let ping =
            session.feed(&mut [0xff; 65]).map(|p| p.event == Some(Event::Ping(&[0xff; 125])));
        assert_eq!(ping, Ok(true));
        // The last fragment, which is as long.
        let mut bytes = [&b"\x80\xfd\0\0\0\0"[..], &[b'k'; 60]].concat();
        assert_eq!(session.feed(&mut bytes), Ok(Progress { consumed: 66, event: None }));
        session.room().expect("room for 65 bytes")[..65].fill(b'k');
        let text = [&b"\xce\xba"[..], &[b'k'; 125]].concat();
        let whole = session.filled(65).map(|message| {
            message.map(|(kind, data)| owned(Event::Message { kind, data }, &limits))
        });
        assert_eq!(whole, Ok(Some((1, text))));
    }

    #[test]
    fn a_draft_has_the_limit_and_the_utf8_of_rfc_6455() {
        let version = Version::Draft(draft::Draft::Hixie76);
        let limits = Limits { version, max_message: 3, ..LIMITS };
        for (bytes, expected) in [
            (&b"\0abcd"[..], Violation::TooBig),
            (b"\x80\x04", Violation::TooBig),
            (b"\0\xc3\xff", Violation::Text),
            (b"\0\xff\0\xc0", Violation::Text),
        ] {
            let mut bytes = bytes.to_vec();
            let mut session = Session::new(limits, None);
            let (mut at, mut violation) = (0, None);
            while violation.is_none() && at < bytes.len() {
                match session.feed(&mut bytes[at..]) {
                    Ok(progress) => at += progress.consumed,
                    Err(e) => violation = Some(e),
                }
            }
            assert_eq!(violation, Some(expected), "{bytes:x?}");
            assert!(session.is_finished());
        }
    }
}
