//! Server-Sent Events (WHATWG HTML §9.2): messages as lines of text, in a response that does not end.

use std::hash::{BuildHasher as _, RandomState};

use super::{close::CloseCode, frame::Opcode};

/// What the body of the response is.
pub const MEDIA_TYPE: &str = "text/event-stream";

/// An event: its id, its type if it is no message, and its data. Lines of the data end with CR, LF or CRLF, each of which
/// would end a field; a client makes LF of all.
pub fn event(id: Option<&str>, kind: Option<&str>, data: &str) -> String {
    let mut event = String::with_capacity(data.len() + 100);
    let mut field = |name: &str, value: &str| {
        event.extend([name, ": ", value, "\n"]);
    };
    if let Some(id) = id {
        field("id", id);
    }
    if let Some(kind) = kind {
        field("event", kind);
    }
    let mut rest = data;
    while let Some(at) = rest.find(['\r', '\n']) {
        let (line, behind) = rest.split_at(at);
        field("data", line);
        let end = if behind.starts_with("\r\n") { 2 } else { 1 };
        rest = &behind[end..];
    }
    field("data", rest);
    event.push('\n');
    event
}

/// Has the client come back after so many milliseconds, if its connection ends.
pub fn retry(milliseconds: u32) -> String {
    format!("retry: {milliseconds}\n\n")
}

/// Appends what an outbox sends: a message is an event, as it is; a Ping is a comment, by which proxies see that the
/// connection lives; a Close says, by its code, what the client is to do, which would come back otherwise.
pub fn encode(bytes: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    match opcode {
        Opcode::Ping => bytes.extend_from_slice(b":\n\n"),
        Opcode::Close => bytes.extend_from_slice(farewell(payload).as_bytes()),
        Opcode::Pong => {}
        _ => bytes.extend_from_slice(payload),
    }
}

/// What a client is told that is sent away with this payload of a Close.
fn farewell(payload: &[u8]) -> String {
    let code = payload.first_chunk().map(|&code| CloseCode(u16::from_be_bytes(code)));
    match code {
        Some(CloseCode::NORMAL) => event(None, Some("close"), ""),
        // All of a child's clients are sent away at once, and should not come back at once.
        Some(CloseCode::GOING_AWAY) => {
            retry(500 + RandomState::new().hash_one(payload) as u32 % 2000)
        }
        _ => String::new(),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// What a client makes of a stream: the data of each event (§9.2.6).
    fn parse(stream: &str) -> Vec<(String, String, String)> {
        let (mut events, mut id, mut kind, mut data) =
            (Vec::new(), String::new(), String::new(), None::<String>);
        let stream = stream.replace("\r\n", "\n").replace('\r', "\n");
        for line in stream.split('\n') {
            if line.is_empty() {
                if let Some(data) = data.take() {
                    events.push((id.clone(), core::mem::take(&mut kind), data));
                }
                continue;
            }
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match name {
                "id" => id = value.to_owned(),
                "event" => kind = value.to_owned(),
                "data" => {
                    data =
                        Some(data.map_or_else(
                            || value.to_owned(),
                            |before| format!("{before}\n{value}"),
                        ));
                }
                _ => {}
            }
        }
        events
    }

    #[test]
    fn data_stays_data() {
        for data in [
            "",
            "hello",
            "a\nb",
            "a\r\nb",
            "a\rb",
            "\n",
            "\r\n\r\n",
            "a\rid: 7",
            "a\nevent: close",
            " a",
            ":a",
            "data: x",
        ] {
            let parsed = parse(&event(Some("1-2-3"), Some("binary"), data));
            let lines = data.replace("\r\n", "\n").replace('\r', "\n");
            assert_eq!(parsed, [("1-2-3".into(), "binary".into(), lines)], "{data:?}");
        }
    }

    #[test]
    fn what_an_outbox_sends() {
        let sent = |opcode, payload: &[u8]| {
            let mut bytes = Vec::new();
            encode(&mut bytes, opcode, payload);
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(sent(Opcode::Text, b"data: x\n\n"), "data: x\n\n");
        assert_eq!((&*sent(Opcode::Ping, b""), &*sent(Opcode::Pong, b"x")), (":\n\n", ""));
        assert_eq!(sent(Opcode::Close, b"\x03\xe8"), "event: close\ndata: \n\n");
        assert!(sent(Opcode::Close, b"\x03\xe9").starts_with("retry: "));
        assert_eq!((&*sent(Opcode::Close, b"\x03\xf5"), &*sent(Opcode::Close, b"")), ("", ""));
    }
}
