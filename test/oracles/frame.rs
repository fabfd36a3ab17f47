//! Frames (RFC 6455 §5.2).

use mod_websocket::proto::frame::{Deframer, Header, Opcode, Rules};

/// Deframes arbitrary bytes in arbitrary cuts: same frames, nothing panics, and a header that is not refused can still
/// become a valid one.
pub fn fuzz_deframe(data: &[u8]) {
    let Some((&cut, bytes)) = data.split_first() else { return };
    let mut rules =
        Rules { deflate: cut & 0x80 != 0, open: false, max_control: u64::MAX, max_data: u64::MAX };
    let mut run = |size: usize| {
        let mut deframer = Deframer::default();
        let mut frames = Vec::new();
        let mut payload = Vec::new();
        rules.open = false;
        for chunk in bytes.chunks(size) {
            let mut chunk = chunk.to_vec();
            let mut at = 0;
            loop {
                match deframer.next(&mut chunk[at..], rules) {
                    Err(violation) => return (frames, Some(violation)),
                    Ok((used, None)) => {
                        assert_eq!(at + used, chunk.len());
                        break;
                    }
                    Ok((used, Some(piece))) => {
                        payload.extend_from_slice(&chunk[at..][piece.range.clone()]);
                        at += used;
                        if piece.ends {
                            frames.push((piece.header.opcode, core::mem::take(&mut payload)));
                            if !piece.header.opcode.is_control() {
                                rules.open = !piece.header.fin;
                            }
                        }
                    }
                }
            }
        }
        let header = deframer.partial();
        assert!(matches!(Header::parse(&completed(header), rules), Ok(Some(_))), "{header:x?}");
        (frames, None)
    };
    let whole = run(bytes.len().max(1));
    assert_eq!(run(usize::from(cut & 0x7f) % 19 + 1), whole);
}

/// The highest bit of a header's first byte: it ends its message; and of its second: its payload is masked.
const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;

/// The front of a header with the rest that has the best prospects: a mask, the least length that its form allows.
fn completed(front: &[u8]) -> Vec<u8> {
    let mut header = front.to_vec();
    if header.is_empty() {
        header.push(FIN | Opcode::Ping as u8);
    }
    if header.len() < 2 {
        header.push(MASKED);
    }
    let least: &[u8] = match header[1] & !MASKED {
        126 => &[0, 126],
        127 => &[0, 0, 0, 0, 0, 1, 0, 0],
        _ => &[],
    };
    let here = header.len() - 2;
    if here < least.len() {
        let zeros = header[2..] != least[..here];
        header.extend(least[here..].iter().map(|&byte| if zeros { 0 } else { byte }));
    }
    header.extend([0; 4]);
    header
}
