//! The framings of the bridge.

use mod_websocket::{
    bridge::{Framing, Piece, framing::make},
    proto::Kind,
};

/// Checks that the messages do not depend on how the stream is split over reads.
pub fn fuzz_framing_splits(data: &[u8]) {
    const FRAMINGS: [(&str, &str); 8] = [
        ("separator", r"\r\n\r\n"),
        ("separator", "aabaaa"),
        ("newline", "crlf"),
        ("newline", "lf"),
        ("fixedlength", "7"),
        ("dynamic32", ""),
        ("dynamic32", "offset=2,static=-1,endian=big"),
        ("json", ""),
    ];
    let Some((&[which, first, second], stream)) = data.split_first_chunk() else { return };
    let (name, config) = FRAMINGS[usize::from(which) % FRAMINGS.len()];
    let mut framing = make(name, Some(config)).expect("the configuration is right");
    let mut other = make(name, Some(config)).expect("the configuration is right");
    let whole = cut(&mut *framing, [stream]);
    let step = usize::from(first % 31) + 1;
    let (front, back) = stream.split_at(stream.len().min(usize::from(second)));
    let split = cut(&mut *other, front.chunks(step).chain(back.chunks(5 * step)));
    if name == "json" {
        // What is no JSON is passed on in the pieces in which it came: all is well up to there.
        let valid = |messages: &Result<Vec<(Kind, Vec<u8>)>, _>| -> Vec<Vec<u8>> {
            let messages = messages.as_ref().expect("it takes everything").iter();
            let texts = messages.take_while(|(kind, _)| *kind == Kind::Text);
            texts.map(|(_, bytes)| bytes.clone()).collect()
        };
        let (whole, split) = (valid(&whole), valid(&split));
        let common = whole.len().min(split.len());
        assert_eq!(whole[..common], split[..common]);
    } else {
        assert_eq!(whole, split, "{name} {config}");
    }
}

/// Cuts `data`, arriving in these reads, the way a connection does; the rest goes to `finish`.
pub fn cut<'a>(
    framing: &mut dyn Framing,
    reads: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Vec<(Kind, Vec<u8>)>, &'static str> {
    let mut buffer = Vec::new();
    let mut messages = Vec::new();
    let mut take = |buffer: &mut Vec<u8>, piece| match piece {
        Piece::Wait => Ok(false),
        Piece::Message(kind, n) => {
            assert!(n >= 1 && n <= buffer.len(), "{n} of {}", buffer.len());
            messages.push((kind, buffer.drain(..n).collect()));
            Ok(true)
        }
        Piece::Discard(n) => {
            assert!(n >= 1 && n <= buffer.len(), "{n} of {}", buffer.len());
            drop(buffer.drain(..n));
            Ok(true)
        }
        Piece::Broken(reason) => Err(reason),
    };
    let mut ask = |buffer: &mut Vec<u8>, fresh: Option<usize>| {
        buffer.push(0);
        let piece = match fresh {
            Some(fresh) => framing.next(buffer, fresh),
            None => framing.finish(buffer),
        };
        buffer.pop();
        take(buffer, piece)
    };
    for read in reads.into_iter().filter(|read| !read.is_empty()) {
        buffer.extend_from_slice(read);
        let mut fresh = read.len();
        while !buffer.is_empty() && ask(&mut buffer, Some(fresh))? {
            fresh = 0;
        }
    }
    while !buffer.is_empty() && ask(&mut buffer, None)? {}
    Ok(messages)
}
