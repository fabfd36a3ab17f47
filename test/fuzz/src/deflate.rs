//! permessage-deflate with miniz_oxide on the other side (RFC 7692 §7.2).

use miniz_oxide::{
    deflate::core::{
        CompressorOxide, TDEFLFlush, compress_to_output, create_comp_flags_from_zip_params,
    },
    inflate::{
        TINFLStatus,
        core::{DecompressorOxide, decompress, inflate_flags::TINFL_FLAG_HAS_MORE_INPUT},
    },
};
use mod_websocket::proto::deflate::{Deflater, Params};

use crate::input::Input;

/// What a sender cuts off and a receiver puts back.
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// Inflates what the server's compressor makes of a series of messages: each comes out as it went in, and no
/// reference reaches behind the window that was agreed on.
pub fn deflater_vs_miniz_oxide(data: &[u8]) {
    let mut input = Input(data);
    let takeover = input.byte() & 1 != 0;
    let window = 9 + input.byte() % 7;
    let params = Params {
        server_no_context_takeover: !takeover,
        client_no_context_takeover: true,
        server_max_window_bits: Some(window),
        client_max_window_bits: None,
    };
    let mut deflater = Deflater::new(&params, input.byte() % 9 + 1);
    let mut inflater = Inflater::new(window);
    while !input.is_empty() {
        let message = input.payload();
        if message.is_empty() {
            continue;
        }
        // What lies in the output already is no part of the message.
        let mut wire = b"before".to_vec();
        if !deflater.compress(&message, &mut wire) {
            assert!(!takeover, "the context may not forget a message");
            assert_eq!(wire, b"before");
            continue;
        }
        let mut wire = wire.strip_prefix(b"before").expect("the output grows at its end").to_vec();
        assert!(takeover || wire.len() < message.len());
        wire.extend(TAIL);
        if !takeover {
            inflater = Inflater::new(window);
        }
        assert!(inflater.inflate(&wire) == message, "{} bytes", message.len());
    }
}

/// A client's inflater, which has the window that was agreed on and not a byte more.
struct Inflater {
    state: Box<DecompressorOxide>,
    window: Vec<u8>,
    at: usize,
}

impl Inflater {
    fn new(bits: u8) -> Self {
        Self { state: Box::default(), window: vec![0; 1 << bits], at: 0 }
    }

    fn inflate(&mut self, mut wire: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        loop {
            let (status, read, written) = decompress(
                &mut self.state,
                wire,
                &mut self.window,
                self.at,
                TINFL_FLAG_HAS_MORE_INPUT,
            );
            wire = &wire[read..];
            message.extend(&self.window[self.at..self.at + written]);
            self.at = (self.at + written) % self.window.len();
            match status {
                TINFLStatus::HasMoreOutput => {}
                TINFLStatus::NeedsMoreInput => {
                    assert!(wire.is_empty());
                    return message;
                }
                status => panic!("{status:?}"),
            }
        }
    }
}

/// A client's compressor, as whimsical as its input.
pub(crate) struct Client {
    codec: Box<CompressorOxide>,
    flags: u32,
    takeover: bool,
    /// miniz_oxide cannot be held to a window below the largest; messages that fit into it cannot leave it.
    window: usize,
    seen: usize,
}

impl Client {
    /// A compressor and the parameters under which it may be used.
    pub(crate) fn new(input: &mut Input<'_>) -> (Self, Params) {
        let (level, strategy) = (input.byte() % 11, input.byte() % 5);
        let flags = create_comp_flags_from_zip_params(level.into(), -15, strategy.into());
        let choices = input.byte();
        let takeover = choices & 1 != 0;
        let bits = if choices & 2 != 0 { 15 } else { 9 + (choices >> 4) % 7 };
        let params = Params {
            server_no_context_takeover: true,
            client_no_context_takeover: !takeover,
            server_max_window_bits: None,
            client_max_window_bits: (bits < 15 || choices & 4 != 0).then_some(bits),
        };
        let codec = Box::new(CompressorOxide::new(flags));
        (Self { codec, flags, takeover, window: 1 << bits, seen: 0 }, params)
    }

    /// The payload of a compressed message; `None` if it could leave the window.
    pub(crate) fn compress(&mut self, message: &[u8], input: &mut Input<'_>) -> Option<Vec<u8>> {
        if !self.takeover && self.seen > 0 {
            self.restart();
        }
        if self.window < 1 << 15 && self.seen + message.len() > self.window {
            return None;
        }
        self.seen += message.len();
        let mut out = Vec::new();
        let mut push = |codec: &mut CompressorOxide, part: &[u8], flush| {
            let (_, read) = compress_to_output(codec, part, flush, |bytes| {
                out.extend(bytes);
                true
            });
            assert_eq!(read, part.len());
        };
        let mut rest = message;
        // Flushes cut the message into blocks that no compressor would choose.
        for _ in 0..input.byte() % 4 {
            let (part, later) = rest.split_at(input.up_to(rest.len()));
            rest = later;
            let flushes = [TDEFLFlush::None, TDEFLFlush::Sync, TDEFLFlush::Full];
            push(&mut self.codec, part, flushes[usize::from(input.byte() % 3)]);
        }
        if input.byte() % 8 == 0 {
            // §7.2.3.4: a last block, behind which a new stream begins with an empty one.
            push(&mut self.codec, rest, TDEFLFlush::Finish);
            out.push(0x00);
            self.restart();
            return Some(out);
        }
        push(&mut self.codec, rest, TDEFLFlush::Sync);
        match out.strip_suffix(&TAIL) {
            Some(payload) => Some(payload.to_vec()),
            // §7.2.3.6: nothing was there to flush.
            None if out.is_empty() => Some(vec![0x00]),
            None => panic!("miniz_oxide did not flush: {out:x?}"),
        }
    }

    fn restart(&mut self) {
        *self.codec = CompressorOxide::new(self.flags);
        self.seen = 0;
    }
}
