//! The inbound half of a connection.

use mod_websocket::{
    conn::session::{Event, Limits, Progress, Session},
    limits::memory::UNLIMITED,
    proto::{Kind, Version, Violation, close::CloseReason, deflate::Params, draft::Draft},
};

/// Feeds an arbitrary byte stream whole, in the smallest pieces and in arbitrary cuts: the same events and the same end.
///
/// Six bytes configure it: flags, the window of the client's compression, four sizes of pieces. Of the flags, the three
/// highest bits choose a size, the next two a version.
pub fn fuzz_session_chunked(data: &[u8]) {
    let Some((&[flags, window, sizes @ ..], bytes)) = data.split_first_chunk::<6>() else { return };
    let limits = Limits {
        version: match (flags >> 3) & 3 {
            2 => Version::Draft(Draft::Hixie76),
            3 => Version::Draft(Draft::Hixie75),
            _ => Version::V13,
        },
        max_message: [1 << 20, 100_000, 4096, 1000, 125, 64, 1, 0][usize::from(flags >> 5)],
        allow_reserved: flags & 1 != 0,
        memory: &UNLIMITED,
    };
    let compressed = flags & 2 != 0 && limits.version == Version::V13;
    let params = compressed.then_some(Params {
        server_no_context_takeover: true,
        client_no_context_takeover: flags & 4 != 0,
        server_max_window_bits: None,
        client_max_window_bits: Some(9 + window % 7),
    });
    let hear = |sizes: &[usize]| {
        let mut session = Session::new(limits, params.as_ref());
        let mut sizes = sizes.iter().cycle();
        let mut bytes = bytes.to_vec();
        let (mut rest, mut heard, mut violation) = (&mut bytes[..], Vec::new(), None);
        while !rest.is_empty() {
            let cut = rest.len().min(*sizes.next().expect("a cycle"));
            // What belongs to a large frame may be read straight into its message.
            if let Some(room) = session.room() {
                let cut = cut.min(room.len());
                room[..cut].copy_from_slice(&rest[..cut]);
                rest = &mut rest[cut..];
                match session.filled(cut) {
                    Ok(message) => heard.extend(
                        message.map(|(kind, data)| owned(Event::Message { kind, data }, &limits)),
                    ),
                    Err(e) => assert_eq!(violation.replace(e), None),
                }
                continue;
            }
            let (mut piece, later) = rest.split_at_mut(cut);
            rest = later;
            loop {
                let (len, finished) = (piece.len(), session.is_finished());
                match session.feed(piece) {
                    Ok(Progress { consumed, event: None }) => {
                        assert_eq!(consumed, len);
                        break;
                    }
                    Ok(Progress { consumed, event: Some(event) }) => {
                        assert!(!finished);
                        heard.push(owned(event, &limits));
                        piece = &mut piece[consumed..];
                    }
                    Err(e) => assert_eq!(violation.replace(e), None),
                }
            }
            let _ = session.trim();
        }
        assert!(violation.is_none() || session.is_finished());
        (heard, violation)
    };
    let whole = hear(&[bytes.len().max(1)]);
    let sizes = sizes.map(|size| usize::from(size) * usize::from(size) / 16 + 1);
    // Byte by byte, or nearly so where that would take too long.
    for sizes in [&[bytes.len() / 4096 + 1][..], &sizes] {
        let cut = hear(sizes);
        if params.is_none() {
            assert_eq!(cut, whole);
        } else {
            // What is wrong with a compressed piece is found in the order in which its bytes arrive: a broken
            // block may hide invalid text before it, or an excess of it, if both are in the same piece.
            let alike = |v| match v {
                Some(Violation::Text | Violation::TooBig) => Some(Violation::Deflate),
                other => other,
            };
            assert_eq!((cut.0, alike(cut.1)), (whole.0.clone(), alike(whole.1)));
        }
    }
}

/// An event as a tag and its bytes, for comparison.
pub fn owned(event: Event<'_>, limits: &Limits) -> (u8, Vec<u8>) {
    let (tag, bytes) = match event {
        Event::Message { kind: Kind::Text, data } => {
            assert!(core::str::from_utf8(data).is_ok());
            (0x1, data.to_vec())
        }
        Event::Message { kind: Kind::Binary, data } => (0x2, data.to_vec()),
        Event::Ping(data) => (0x9, data.to_vec()),
        Event::Pong(data) => (0xa, data.to_vec()),
        Event::Close(CloseReason { code: None, .. }) => (0x8, Vec::new()),
        Event::Close(CloseReason { code: Some(code), text }) => {
            (0x8, [&code.0.to_be_bytes(), text.as_bytes()].concat())
        }
    };
    assert!(bytes.len() <= limits.max_message);
    (tag, bytes)
}
