//! What a client puts on the wire and expects there (RFC 6455, RFC 7692).

use base64::{Engine as _, prelude::BASE64_STANDARD};
use flate2::{Compress, Compression, FlushCompress};
use sha1::{Digest as _, Sha1};

/// The key of every handshake, that of RFC 6455 §1.3.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// The opening request.
pub fn request(host: &str, path: &str, deflate: bool) -> Vec<u8> {
    let extension = if deflate { "Sec-WebSocket-Extensions: permessage-deflate\r\n" } else { "" };
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{extension}\r\n"
    )
    .into_bytes()
}

/// Checks the head of the answer, up to the empty line.
pub fn check_answer(head: &str, deflate: bool) -> Result<(), String> {
    let accept = Sha1::digest(format!("{KEY}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"));
    let accept = BASE64_STANDARD.encode(accept);
    let field = |name: &str| {
        head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    };
    if !head.starts_with("HTTP/1.1 101 ") {
        return Err(format!("not a 101: {head:?}"));
    }
    if field("Sec-WebSocket-Accept") != Some(&accept) {
        return Err(format!("a wrong Sec-WebSocket-Accept: {head:?}"));
    }
    if field("Sec-WebSocket-Extensions").is_some() != deflate {
        return Err(format!("permessage-deflate wanted: {deflate}; got: {head:?}"));
    }
    Ok(())
}

/// Appends a frame with payload; masked if there is a key.
pub fn frame(out: &mut Vec<u8>, first: u8, payload: &[u8], key: Option<[u8; 4]>) {
    let masked = if key.is_some() { 0x80 } else { 0 };
    match payload.len() {
        len @ 0..=125 => out.extend_from_slice(&[first, masked | len as u8]),
        len @ 126..=0xffff => {
            out.extend_from_slice(&[first, masked | 126]);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.extend_from_slice(&[first, masked | 127]);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    match key {
        None => out.extend_from_slice(payload),
        Some(key) => {
            out.extend_from_slice(&key);
            out.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
        }
    }
}

/// Appends a client's message, in frames of at most `fragment` bytes unless that is 0.
pub fn message(out: &mut Vec<u8>, text: bool, payload: &[u8], fragment: usize, n: usize) {
    let opcode = if text { 0x1 } else { 0x2 };
    let key = |i: usize| Some((0x1234_5678_u32.wrapping_mul((n + i) as u32 | 1)).to_be_bytes());
    if fragment == 0 {
        return frame(out, 0x80 | opcode, payload, key(0));
    }
    let last = payload.len().div_ceil(fragment) - 1;
    for (i, piece) in payload.chunks(fragment).enumerate() {
        let fin = if i == last { 0x80 } else { 0 };
        frame(out, fin | if i == 0 { opcode } else { 0 }, piece, key(i));
    }
}

/// A payload as RFC 7692 §7.2.1 compresses it, without context.
pub fn deflated(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 64);
    let mut compress = Compress::new(Compression::default(), false);
    compress.compress_vec(payload, &mut out, FlushCompress::Sync).expect("it has room");
    out.truncate(out.len() - 4);
    out
}
