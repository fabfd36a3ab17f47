//! The frames of drafts 76 and 75.

use mod_websocket::proto::{
    Kind, Violation,
    draft::{Deframer, Draft, DraftPiece},
    frame::Opcode,
};

/// The messages in `bytes`, and how they end: with a violation, with a Close (`Ok(true)`) or neither.
pub type Heard = (Vec<(Kind, Vec<u8>)>, Result<bool, Violation>);

/// Deframes arbitrary bytes in arbitrary cuts: the same messages as a second, simpler reading of the drafts finds in
/// them, the same end, and what is sent back reads the same.
pub fn fuzz_draft_deframe(data: &[u8]) {
    let Some((&[flags, size], bytes)) = data.split_first_chunk::<2>() else { return };
    let draft = if flags & 1 == 0 { Draft::Hixie76 } else { Draft::Hixie75 };
    let max = [0, 1, 5, 127, 128, 1000, 1 << 20, u64::MAX >> 1][usize::from(flags >> 5)];
    let expected = read_simply(draft, bytes, max);
    for size in [usize::from(size) + 1, bytes.len().max(1)] {
        assert_eq!(read_in_pieces(draft, bytes, max, size), expected);
    }
    let mut sent = Vec::new();
    for (kind, payload) in &expected.0 {
        if *kind == Kind::Binary || core::str::from_utf8(payload).is_ok() {
            let opcode = if *kind == Kind::Text { Opcode::Text } else { Opcode::Binary };
            draft.encode(&mut sent, opcode, payload);
        }
    }
    let valid = |(kind, payload): &(Kind, Vec<u8>)| {
        *kind == Kind::Binary || core::str::from_utf8(payload).is_ok()
    };
    let again: Vec<_> = expected.0.iter().filter(|m| valid(m)).cloned().collect();
    assert_eq!(read_in_pieces(draft, &sent, max, 7).0, again);
}

/// What the deframer makes of `bytes` that come in pieces of `size`.
pub fn read_in_pieces(draft: Draft, bytes: &[u8], max: u64, size: usize) -> Heard {
    let mut deframer = Deframer::new(draft);
    let (mut messages, mut payload) = (Vec::new(), Vec::new());
    for chunk in bytes.chunks(size) {
        let mut at = 0;
        loop {
            match deframer.next(&chunk[at..], max) {
                Err(violation) => return (messages, Err(violation)),
                Ok((used, None)) => {
                    assert_eq!(at + used, chunk.len());
                    break;
                }
                Ok((_, Some(DraftPiece::Close))) => return (messages, Ok(true)),
                Ok((used, Some(DraftPiece::Data { kind, starts, ends, range }))) => {
                    assert!(used > 0);
                    if starts {
                        payload.clear();
                    }
                    payload.extend_from_slice(&chunk[at..][range]);
                    at += used;
                    assert!(payload.len() as u64 <= max);
                    if ends {
                        messages.push((kind, payload.clone()));
                    }
                }
            }
        }
    }
    (messages, Ok(false))
}

/// The drafts read aloud, with all bytes at hand.
pub fn read_simply(draft: Draft, mut bytes: &[u8], max: u64) -> Heard {
    let mut messages = Vec::new();
    while let Some((&kind, mut rest)) = bytes.split_first() {
        let payload;
        if kind < 0x80 {
            let end = rest.iter().position(|&b| b == 0xff);
            if end.unwrap_or(rest.len()) as u64 > max {
                return (messages, Err(Violation::TooBig));
            }
            let Some(end) = end else { break };
            (payload, bytes) = (&rest[..end], &rest[end + 1..]);
        } else {
            let mut len = 0_u128;
            let mut digits = 0;
            loop {
                let Some((&digit, after)) = rest.split_first() else {
                    return (messages, Ok(false));
                };
                digits += 1;
                if digits > 9 {
                    return (messages, Err(Violation::LengthNotMinimal));
                }
                len = len * 128 + u128::from(digit % 128);
                if len > max.into() {
                    return (messages, Err(Violation::TooBig));
                }
                rest = after;
                if digit < 128 {
                    break;
                }
            }
            if kind == 0xff && len == 0 && draft == Draft::Hixie76 {
                return (messages, Ok(true));
            }
            if rest.len() < len as usize {
                break;
            }
            (payload, bytes) = rest.split_at(len as usize);
        }
        match kind {
            0x00 => messages.push((Kind::Text, payload.to_vec())),
            0x80 => messages.push((Kind::Binary, payload.to_vec())),
            _ => {}
        }
    }
    (messages, Ok(false))
}
