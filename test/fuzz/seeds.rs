//! Writes first inputs for the fuzz targets, so that short runs reach deep: `seeds DIR` fills `DIR/<target>/`.
//!
//! A program of its own without dependencies, since what it needs of the protocol is a page.

use std::{env, fs, path::Path};

/// "Hello" as RFC 7692 §7.2.3 compresses it: fixed codes, stored, with BFINAL, in two blocks; then as a reference.
const HELLO: [&[u8]; 5] = [
    &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00],
    &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
    &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
    &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00],
    &[0xf2, 0x00, 0x11, 0x00, 0x00],
];
const KAPPA: &[u8] = "κόσμε".as_bytes();
/// The shortest and the longest characters of each length, and what lies just outside (RFC 3629 §3).
const CHARACTERS: [&[u8]; 13] = [
    b"\x00\x7f",
    b"\xc2\x80\xdf\xbf",
    b"\xe0\xa0\x80\xef\xbf\xbf",
    b"\xed\x9f\xbf\xee\x80\x80",
    b"\xf0\x90\x80\x80\xf4\x8f\xbf\xbf",
    b"\xc1\xbf",
    b"\xe0\x9f\xbf",
    b"\xed\xa0\x80",
    b"\xf0\x8f\xbf\xbf",
    b"\xf4\x90\x80\x80",
    b"\xf5",
    b"ab\xce",
    KAPPA,
];

/// A frame whose mask is zeros, so that the fuzzer sees what it changes.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = match payload.len() {
        len @ 0..=125 => vec![0x80 | len as u8],
        len @ 126..=0xffff => [&[0xfe][..], &(len as u16).to_be_bytes()].concat(),
        len => [&[0xff][..], &(len as u64).to_be_bytes()].concat(),
    };
    [&[first][..], &length, &[0; 4], payload].concat()
}

/// What a client may send: conversations and slips.
fn streams() -> Vec<Vec<u8>> {
    let mut streams = vec![
        [frame(0x81, b"Hello"), frame(0x82, b""), frame(0x89, b"?"), frame(0x88, b"")].concat(),
        [frame(0x01, &KAPPA[..3]), frame(0x8a, b""), frame(0x80, &KAPPA[3..])].concat(),
        [frame(0x82, &[7; 126]), frame(0x88, b"\x03\xe8bye")].concat(),
        frame(0x82, &[7; 0xffff]),
        frame(0x82, &[7; 0x1_0000]),
        frame(0x88, &[&[0x0b, 0xb8][..], KAPPA].concat()),
        frame(0x88, &[0x03]),
        frame(0x88, &[0x03, 0xec]),
        frame(0x88, &[0x03, 0xed]),
        [frame(0x02, &[7; 100]), frame(0x00, &[7; 20]), frame(0x80, &[7; 10])].concat(),
        frame(0x89, &[0; 126]),
        frame(0x83, b""),
        frame(0x80, b""),
        [frame(0x01, b""), frame(0x81, b"")].concat(),
        vec![0x81, 0x01, b'x'],
        vec![0x82, 0xfe, 0, 1, 0, 0, 0, 0, b'x'],
        vec![0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        vec![0x82, 0xff, 0, 0, 0, 0, 0, 1],
        [frame(0xc1, HELLO[0]), frame(0xc1, HELLO[4])].concat(),
        [frame(0x41, &HELLO[0][..2]), frame(0x89, b""), frame(0x80, &HELLO[0][2..])].concat(),
    ];
    streams.extend(HELLO.map(|hello| frame(0xc2, hello)));
    streams.extend(CHARACTERS.map(|text| frame(0x81, text)));
    streams
}

/// What a client of draft 76 or 75 may send.
fn draft_streams() -> Vec<Vec<u8>> {
    let binary = |kind: u8, digits: &[u8], payload: &[u8]| [&[kind], digits, payload].concat();
    let texts = CHARACTERS.map(|text| [&[0][..], text, &[0xff]].concat());
    let mut streams = vec![
        [&b"\0Hello\xff"[..], &binary(0x80, &[3], b"abc"), b"\0\xff\xff\0\0late\xff"].concat(),
        [&b"\x01skipped\xff"[..], &binary(0x81, &[2], b"\0\xff"), b"\0heard\xff"].concat(),
        binary(0x80, &[0x81, 0], &[7; 128]),
        binary(0xff, &[3], b"\xff\0\xff"),
        binary(0x80, &[0], b"\0"),
        binary(0x80, &[0x80, 0x80, 0x05], b"five."),
        binary(0x80, &[0x80; 12], b""),
        binary(0x80, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], b""),
        b"\0no end".to_vec(),
    ];
    streams.extend(texts);
    streams
}

/// Each of `bodies` behind each of `heads`.
fn behind(heads: &[&[u8]], bodies: &[Vec<u8>]) -> Vec<Vec<u8>> {
    heads
        .iter()
        .flat_map(|head| bodies.iter().map(move |body| [head, &body[..]].concat()))
        .collect()
}

/// Scripts of the session target behind its eleven bytes of settings: an operation, its choices, a key, a payload.
fn scripts() -> Vec<Vec<u8>> {
    let message = |choices: u8, payload: &[u8]| {
        [&[5, choices, 0x55, 0, payload.len() as u8][..], payload].concat()
    };
    let control = |choice: u8, payload: &[u8]| {
        [&[2, choice, 0x55, payload.len() as u8][..], payload].concat()
    };
    let repeated = [&[5, 0x12, 0x55, 4, 3][..], b"abcd", &[0xff, 0x7f, 0, 0, 1, 2, 3]].concat();
    let noise = vec![5, 0x0a, 0x55, 6, 1, 2, 0xff, 0xff, 2, 3, 1, 1, 1, 1];
    let prose = vec![5, 0x13, 0x55, 7, 0xff, 0xff, 4, 3, 1, 1, 1, 1];
    let hello = message(0x03, b"Hello");
    vec![
        [hello.clone(), hello.clone(), control(1, b"?"), control(0, b"")].concat(),
        [message(0x0f, KAPPA), message(0x12, &[0xff; 100]), control(0, &[3, 232])].concat(),
        [repeated.clone(), noise, prose.clone(), repeated].concat(),
        [prose.clone(), hello, prose, message(0x03, b"\xff"), control(5, b"")].concat(),
        // Fifteen bytes in each of two fragments.
        [&[5, 0x08, 0x55, 0, 30][..], &[b'z'; 30], &[15]].concat(),
        [&[1, 0, 0x55, 0, 1, b'x'][..], &[1, 4, 0x55, 0, 1, b'y'], &message(0x01, b"z")].concat(),
        [&[1, 0, 0x55, 0, 1, b'x'][..], &[1, 5, 0x55, 0, 1, b'y']].concat(),
        control(0x48, b"..reason"),
    ]
}

fn main() {
    let dir = env::args_os().nth(1).expect("usage: seeds DIR");
    let write = |target: &str, seeds: &[Vec<u8>]| {
        let dir = Path::new(&dir).join(target);
        fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        for (i, seed) in seeds.iter().enumerate() {
            fs::write(dir.join(format!("seed-{i:03}")), seed).expect("a seed can be written");
        }
    };
    let streams = streams();
    let texts = CHARACTERS.map(<[u8]>::to_vec);
    let peers: [&[u8]; 3] = [
        b"aabaaaabaaab\r\n\r\r\n\r\nx\r\n\n",
        b"\x02\0\0\0ab\0\0\0\0xy\0\0\0\x02ab",
        br#"{"a":[1,-2.5e3,"x\"\u00e9"]} true 12 "\\" [] null"#,
    ];
    let framings: Vec<[u8; 3]> = (0..8).map(|which| [which, 2, 9]).collect();
    let framings: Vec<&[u8]> = framings.iter().map(|head| &head[..]).collect();
    write("framing_splits", &behind(&framings, &peers.map(<[u8]>::to_vec)));
    write("deframe", &behind(&[&[0x01], &[0x92]], &streams));
    write("utf8_vs_std", &behind(&[&[0], &[2], &[16]], &texts));
    write(
        "mask_vs_naive",
        &[b"\x37\xfa\x21\x3d\x03\x0cforty-two bytes of payload, more or less".to_vec()],
    );
    let mut closes = behind(&[b"\x00\x03\xe8", b"\x01\x03\xf8", b"\x00\x0f\xa0"], &texts);
    closes.extend([vec![0], vec![0, 3], vec![1, 3, 0xee]]);
    write("close_payload", &closes);
    write("inflate_bounded", &behind(&[&[0x30], &[0xff], &[0x01]], &HELLO.map(<[u8]>::to_vec)));
    let offers = [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits; server_max_window_bits=10",
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        "permessage-deflate; client_max_window_bits=\"12\", permessage-deflate",
        "foo; x=\"a\\\",permessage-deflate\", permessage-deflate; server_max_window_bits=8",
    ];
    write("deflate_offer", &offers.map(|offer| offer.as_bytes().to_vec()));
    let opening = "13\ndGhlIHNhbXBsZSBub25jZQ==\nchat, superchat\npermessage-deflate\nkeep-alive, Upgrade\n\
                   h2c, WebSocket\nhttp://example.com";
    write("handshake", &[opening, "8\nAAAAAAAAAAAAAAAAAAAAAA==\na/b", "7\nx"].map(|s| s.into()));
    let heads: [&[u8]; 3] =
        [&[0, 0, 1, 9, 80, 255], &[2, 0, 5, 0, 9, 200], &[0x87, 3, 3, 3, 30, 99]];
    let mut chunked = behind(&heads, &streams);
    let drafts = draft_streams();
    chunked.extend(behind(&[&[0x10, 0, 1, 9, 80, 255], &[0x98, 0, 1, 2, 3, 4]], &drafts));
    write("session_chunked", &chunked);
    write("draft_deframe", &behind(&[&[0xc0, 0], &[0xc1, 6], &[0x40, 2]], &drafts));
    let mut sessions =
        behind(&[&[0, 0, 9, 80, 1, 255, 3, 3, 40], &[0xa0, 9, 9, 9, 9, 9, 9, 9, 9]], &streams);
    let plain: &[u8] = &[1, 0, 9, 80, 1, 255, 3, 3, 40];
    let small: &[u8] = &[0xc1, 3, 9, 80, 1, 255, 3, 3, 40];
    let kept: &[u8] = &[2, 0, 9, 80, 1, 255, 3, 3, 40, 6, 0, 3];
    let forgotten: &[u8] = &[2, 0, 9, 80, 1, 255, 3, 3, 40, 9, 4, 0x20];
    sessions.extend(behind(&[plain, small, kept, forgotten], &scripts()));
    write("session_vs_tungstenite", &sessions);
    let messages = [
        b"\x00\x05Hello\x00\x05Hello".to_vec(),
        b"\x04\x03abcd\xff\xff\x03\x06\x01\x02\xff\xff\x05\x07\xff\x7f\x04\x00\x05Hello".to_vec(),
        b"\x07\xff\xff\x02\x07\xff\xff\x00\x06\x05\x00\xff\xff\x00".to_vec(),
    ];
    let heads: [&[u8]; 4] = [&[1, 0, 5], &[0, 6, 0], &[1, 6, 8], &[1, 3, 3]];
    write("deflater_vs_miniz_oxide", &behind(&heads, &messages));
    let rings: [&[u8]; 4] = [
        b"\0\0\0\x05\x03\x01\x01\0\0\x40\x07\x05",
        b"\0\0\0\x05\xff\x01\x01\0\0\xff\x02\x02\x02\xff\xff\x06\x07\xff",
        b"\0\0\0\x05\x03\x03\x85\x7f\x04\x01\xff\x04\0\x05\x06\0\0\0\x05\x03",
        b"\0\0\0\x05\x03\x05\x01\x85\x04\x02\x81\x06\x07\0\xff\xff\xff\xff\xff\xff\xff\xff",
    ];
    write("channel_ring", &rings.map(<[u8]>::to_vec));
}
