//! core: what the protocol core takes in cache, without a socket.
//!
//! Each figure is the best of some rounds, which on a busy machine says most about the code.
#![forbid(unsafe_code)]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use mod_websocket::{proto::{Kind, Version, utf8, mask::Mask}, conn::session::{Event, Limits, Session}};
use mod_websocket_bench::{payload::Payload, wire};

const BLOCK: usize = 16 * 1024;
const MIB: usize = 1 << 20;
const ROUNDS: usize = 40;
const ROUND: Duration = Duration::from_millis(10);

/// Nanoseconds that `f` takes.
fn time(mut f: impl FnMut()) -> f64 {
    let mut calls = 1;
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..calls {
            f();
        }
        let took = start.elapsed();
        best = best.min(took.as_nanos() as f64 / f64::from(calls));
        if took < ROUND / 2 {
            calls *= 2;
        }
    }
    best
}

fn session() -> Session {
    let limits = Limits { version: Version::V13, max_message: 32 << 20, allow_reserved: false, memory: &mod_websocket::limits::memory::UNLIMITED };
    Session::new(limits, None)
}

/// Feeds `input` as a driver does, in pieces of `read` bytes, and counts the messages, of which none may be other than
/// `kind`.
fn feed(session: &mut Session, input: &mut [u8], read: usize, kind: Kind) -> usize {
    let mut messages = 0;
    for piece in input.chunks_mut(read) {
        let mut at = 0;
        loop {
            let progress = session.feed(&mut piece[at..]).expect("a valid stream");
            at += progress.consumed;
            match progress.event {
                Some(Event::Message { kind: k, data }) if k == kind => {
                    black_box(data);
                    messages += 1;
                }
                Some(_) => unreachable!("a message of another kind"),
                None => break,
            }
        }
        session.trim();
    }
    messages
}

/// Nanoseconds to handle a prepared stream, the copy that makes it fresh not counted.
fn stream(bytes: &[u8], read: usize, kind: Kind, messages: usize) -> f64 {
    let mut session = session();
    let mut fresh = bytes.to_vec();
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        fresh.copy_from_slice(bytes);
        let start = Instant::now();
        let n = feed(&mut session, &mut fresh, read, kind);
        best = best.min(start.elapsed().as_nanos() as f64);
        assert_eq!(n, messages);
    }
    best
}

fn show(what: &str, value: f64, unit: &str, target: &str) {
    println!("| {what} | {value:.2} {unit} | {target} |");
}

fn main() {
    println!("| in cache | | target |\n|---|---|---|");
    let from = Payload::Ascii.make(BLOCK, 1);
    let mut to = vec![0; BLOCK];
    let copy = time(|| black_box(&mut to).copy_from_slice(black_box(&from)));
    show("memcpy of 16 KiB", BLOCK as f64 / copy, "GB/s", "");

    // Masked twice is as it was, so the text stays valid under an all-zero key.
    let unmask = time(|| {
        black_box(Mask::new(black_box([1, 2, 3, 4])).apply(black_box(&mut to)));
    });
    show("unmask, GB/s over memcpy's", copy / unmask, "", "≥ 0.70");
    for (what, payload, target) in [
        ("unmask and validate ASCII, GB/s over memcpy's", Payload::Ascii, "≥ 0.47"),
        ("unmask and validate multi-byte text, GB/s over memcpy's", Payload::Multibyte, "≥ 0.15"),
    ] {
        let mut text = payload.make(BLOCK, 1);
        let took = time(|| {
            let text = black_box(&mut text[..]);
            let ascii = Mask::new(black_box([0; 4])).apply(text);
            assert!(ascii || utf8::whole(text).is_some());
        });
        show(what, copy / took, "", target);
    }

    let count = 3000;
    let mut frames = Vec::new();
    for n in 0..count {
        wire::message(&mut frames, true, &Payload::Ascii.make(16, n), 0, n);
    }
    let took = stream(&frames, 64 * 1024, Kind::Text, count) / count as f64;
    show("a text frame of 16 bytes", took, "ns", "≤ 9");

    for (payload, kind) in [(Payload::Binary, Kind::Binary), (Payload::Ascii, Kind::Text)] {
        for (size, target) in [(64, "≤ 0.4"), (1, "≤ 8")] {
            let mut frames = Vec::new();
            let text = payload.is_text();
            wire::message(&mut frames, text, &payload.make(MIB, 1), size, 1);
            let took = stream(&frames, 64 * 1024, kind, 1) / 1e6;
            show(&format!("1 MiB, {kind:?}, in {size}-byte fragments"), took, "ms", target);
        }
    }
}
