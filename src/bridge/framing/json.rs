//! `json`: each JSON value (RFC 8259) is a text message, white space before it included.
//!
//! The scanner reads the grammar byte by byte and keeps its state between reads, so a value may be cut anywhere. What is
//! not JSON goes out as one binary message with everything behind it that has arrived; then a new value may begin.

use super::{all_binary, bytes, kind};
use crate::{
    bridge::{Framing, Piece},
    proto::Kind,
};

/// How deep arrays and objects may nest; what nests deeper is taken for no JSON.
const DEPTH: usize = 1024;

/// What may come next.
#[derive(Clone, Copy, Debug)]
enum JsonState {
    /// A value.
    Value,
    /// A value, or the end of the array.
    FirstElement,
    /// A member's name, or the end of the object.
    FirstName,
    /// A member's name.
    Name,
    /// The colon behind a name.
    Colon,
    /// A comma, or the end of the array or object.
    Comma,
    /// More of a string.
    Text(Text),
    /// More of a number.
    Number(Number),
    /// The rest of `true`, `false` or `null`.
    Word(&'static [u8]),
}

/// A place in a string.
#[derive(Clone, Copy, Debug)]
enum Text {
    Plain,
    /// Behind a backslash.
    Escape,
    /// So many of the four digits behind `\u` are missing.
    Digits(u8),
}

/// A place in a number.
#[derive(Clone, Copy, Debug)]
enum Number {
    Minus,
    Zero,
    Whole,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

/// What a byte means for the value at the front.
enum Step {
    /// It belongs to the value.
    More,
    /// It is the last one of the value.
    Last,
    /// The value, a number, has ended before it.
    Before,
    /// It makes the value invalid.
    Wrong,
}

/// `json`.
struct Json {
    state: JsonState,
    /// The open arrays and objects, outermost first; objects are true.
    open: Vec<bool>,
    /// The string at hand is a member's name.
    name: bool,
    /// How many bytes of the buffer have been read.
    read: usize,
}

/// `json`; it has no configuration.
pub(super) fn json(_config: &str) -> Result<Box<dyn Framing>, String> {
    Ok(Box::new(Json::new()))
}

impl Json {
    fn new() -> Self {
        Self { state: JsonState::Value, open: Vec::new(), name: false, read: 0 }
    }

    /// Forgets the value at the front, whose end is found.
    fn reset(&mut self) {
        self.state = JsonState::Value;
        self.open.clear();
        self.read = 0;
    }

    fn step(&mut self, byte: u8) -> Step {
        match self.state {
            JsonState::Text(place) => self.text(place, byte),
            JsonState::Number(place) => self.number(place, byte),
            JsonState::Word(rest) => match rest.split_first() {
                Some((&expected, rest)) if expected == byte && rest.is_empty() => self.ended(),
                Some((&expected, rest)) if expected == byte => self.become_(JsonState::Word(rest)),
                _ => Step::Wrong,
            },
            _ => match (self.state, byte) {
                (_, b' ' | b'\t' | b'\n' | b'\r') => Step::More,
                (JsonState::FirstElement, b']') | (JsonState::FirstName, b'}') => self.closed(),
                (JsonState::Comma, b']') if !self.in_object() => self.closed(),
                (JsonState::Comma, b'}') if self.in_object() => self.closed(),
                (JsonState::Comma, b',') if self.in_object() => self.become_(JsonState::Name),
                (JsonState::Comma, b',') => self.become_(JsonState::Value),
                (JsonState::Colon, b':') => self.become_(JsonState::Value),
                (JsonState::FirstName | JsonState::Name, b'"') => {
                    self.name = true;
                    self.become_(JsonState::Text(Text::Plain))
                }
                (JsonState::Value | JsonState::FirstElement, _) => self.value(byte),
                _ => Step::Wrong,
            },
        }
    }

    /// The first byte of a value.
    fn value(&mut self, byte: u8) -> Step {
        match byte {
            b'"' => {
                self.name = false;
                self.become_(JsonState::Text(Text::Plain))
            }
            b'[' | b'{' if self.open.len() == DEPTH => Step::Wrong,
            b'[' => {
                self.open.push(false);
                self.become_(JsonState::FirstElement)
            }
            b'{' => {
                self.open.push(true);
                self.become_(JsonState::FirstName)
            }
            b'-' => self.become_(JsonState::Number(Number::Minus)),
            b'0' => self.become_(JsonState::Number(Number::Zero)),
            b'1'..=b'9' => self.become_(JsonState::Number(Number::Whole)),
            b't' => self.become_(JsonState::Word(b"rue")),
            b'f' => self.become_(JsonState::Word(b"alse")),
            b'n' => self.become_(JsonState::Word(b"ull")),
            _ => Step::Wrong,
        }
    }

    fn text(&mut self, place: Text, byte: u8) -> Step {
        let place = match (place, byte) {
            (Text::Plain, b'"') if self.name => return self.become_(JsonState::Colon),
            (Text::Plain, b'"') => return self.ended(),
            (Text::Plain, b'\\') => Text::Escape,
            (Text::Plain, 0x20..) => Text::Plain,
            (Text::Escape, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Text::Plain,
            (Text::Escape, b'u') => Text::Digits(4),
            (Text::Digits(1), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => Text::Plain,
            (Text::Digits(n), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => Text::Digits(n - 1),
            _ => return Step::Wrong,
        };
        self.become_(JsonState::Text(place))
    }

    fn number(&mut self, place: Number, byte: u8) -> Step {
        use Number::{Exponent, ExponentDigits, ExponentSign, Fraction, Minus, Point, Whole, Zero};
        let place = match (place, byte) {
            (Minus, b'0') => Zero,
            (Minus, b'1'..=b'9') | (Whole, b'0'..=b'9') => Whole,
            (Zero | Whole, b'.') => Point,
            (Point | Fraction, b'0'..=b'9') => Fraction,
            (Zero | Whole | Fraction, b'e' | b'E') => Exponent,
            (Exponent, b'+' | b'-') => ExponentSign,
            (Exponent | ExponentSign | ExponentDigits, b'0'..=b'9') => ExponentDigits,
            (Minus | Point | Exponent | ExponentSign, _) => return Step::Wrong,
            (_, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9') => return Step::Wrong,
            _ if self.open.is_empty() => return Step::Before,
            _ => {
                self.state = JsonState::Comma;
                return self.step(byte);
            }
        };
        self.become_(JsonState::Number(place))
    }

    fn become_(&mut self, state: JsonState) -> Step {
        self.state = state;
        Step::More
    }

    fn in_object(&self) -> bool {
        self.open.last() == Some(&true)
    }

    /// An array or object has ended.
    fn closed(&mut self) -> Step {
        self.open.pop();
        self.ended()
    }

    /// A value has ended.
    fn ended(&mut self) -> Step {
        if self.open.is_empty() { Step::Last } else { self.become_(JsonState::Comma) }
    }
}

impl Framing for Json {
    fn next(&mut self, data: &mut [u8], _fresh: usize) -> Piece {
        let bytes = bytes(data);
        while let Some(&byte) = bytes.get(self.read) {
            let length = match self.step(byte) {
                Step::More => {
                    self.read += 1;
                    continue;
                }
                Step::Last => self.read + 1,
                Step::Before => self.read,
                Step::Wrong => {
                    self.reset();
                    return Piece::Message(Kind::Binary, bytes.len());
                }
            };
            self.reset();
            return Piece::Message(kind(&bytes[..length]), length);
        }
        Piece::Wait
    }

    /// The end ends a number, and white space is worth no message.
    fn finish(&mut self, data: &mut [u8]) -> Piece {
        use Number::{ExponentDigits, Fraction, Whole, Zero};
        let length = bytes(data).len();
        match self.state {
            JsonState::Number(Zero | Whole | Fraction | ExponentDigits) if self.open.is_empty() => {
                Piece::Message(Kind::Text, length)
            }
            JsonState::Value if self.open.is_empty() && length > 0 => Piece::Discard(length),
            _ => all_binary(data),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::framing::tests::{check, messages};

    #[test]
    fn each_value_is_a_text_message() {
        let values = [
            "{}",
            "[]",
            r#"{"a":1,"b":[true,false,null],"c":{"d":""}}"#,
            "[ [ ], { }, -0, 1.5e+10, 2E9, 3e-1, 0.0 ]",
            r#""a \"b\" \\""#,
            r#""\u00e9\/\b\f\n\r\t""#,
            "\"é€🂡\"",
            "{\"ключ\":\"значение\"}",
            r#""[{]}""#,
            "true",
            "false",
            "null",
        ];
        for value in values {
            check("json", "", value.as_bytes(), &[('t', value.as_bytes())]);
            let two = [value, " \r\n\t", value].concat();
            let second = [" \r\n\t", value].concat();
            check("json", "", two.as_bytes(), &[('t', value.as_bytes()), ('t', second.as_bytes())]);
        }
        check(
            "json",
            "",
            br#"{"a":1}[2]"3"nulltrue"#,
            &[
                ('t', br#"{"a":1}"#),
                ('t', b"[2]"),
                ('t', br#""3""#),
                ('t', b"null"),
                ('t', b"true"),
            ],
        );
    }

    #[test]
    fn a_number_ends_where_something_else_begins() {
        check("json", "", b"123 45\n-6.7e8", &[('t', b"123"), ('t', b" 45"), ('t', b"\n-6.7e8")]);
        check(
            "json",
            "",
            b"1[2]0\"3\"",
            &[('t', b"1"), ('t', b"[2]"), ('t', b"0"), ('t', b"\"3\"")],
        );
        let reads: [&[u8]; 3] = [b"12", b"34", b" "];
        assert_eq!(messages("json", "", &reads), [('t', b"1234".to_vec())]);
    }

    #[test]
    fn white_space_alone_is_no_message() {
        check("json", "", b" \r\n\t", &[]);
        check("json", "", b"{}\n", &[('t', b"{}")]);
    }

    #[test]
    fn what_is_no_json_is_binary() {
        let wrong: [&[u8]; 30] = [
            b"foo",
            b"}",
            b"]",
            b",",
            b":",
            b"{]",
            b"[}",
            b"[1,]",
            b"[,1]",
            b"[1 2]",
            b"{1:2}",
            b"{\"a\"}",
            b"{\"a\":}",
            b"{\"a\":1,}",
            b"{,}",
            b"'a'",
            b"\"\n\"",
            b"\"\\x\"",
            b"\"\\u12g4\"",
            b"01 ",
            b"1. ",
            b"1.e5 ",
            b"-a",
            b"1e ",
            b"1e+ ",
            b"--1",
            b"+1",
            b"trua",
            b"nul ",
            b"/* */",
        ];
        for stream in wrong {
            let read = [stream, b" more"].concat();
            assert_eq!(messages("json", "", &[&read]), [('b', read.clone())], "{read:?}");
        }
        // What has arrived up to then is given up, and a value may follow.
        let reads: [&[u8]; 3] = [b"{\"a\":1", b"]xyz", b"[1]"];
        let expected = [('b', b"{\"a\":1]xyz".to_vec()), ('t', b"[1]".to_vec())];
        assert_eq!(messages("json", "", &reads), expected);
    }

    #[test]
    fn text_that_is_not_utf8_is_binary() {
        check(
            "json",
            "",
            b"\"\xff\"[\"\xc3\"][1]",
            &[('b', b"\"\xff\""), ('b', b"[\"\xc3\"]"), ('t', b"[1]")],
        );
    }

    #[test]
    fn an_unfinished_value_is_binary_at_the_end() {
        for stream in [&b"{"[..], b"[1", b"\"a", b"tru", b"-", b"1.", b"2e", b"[1]  {"] {
            let messages = messages("json", "", &[stream]);
            assert_eq!(messages.last().map(|(kind, _)| *kind), Some('b'), "{stream:?}");
        }
    }

    #[test]
    fn nesting_has_a_limit() {
        let deep = |depth| [vec![b'['; depth], vec![b']'; depth]].concat();
        assert_eq!(messages("json", "", &[&deep(DEPTH)]), [('t', deep(DEPTH))]);
        assert_eq!(messages("json", "", &[&deep(DEPTH + 1)]), [('b', deep(DEPTH + 1))]);
        let hostile = vec![b'['; 1 << 20];
        assert_eq!(messages("json", "", &[&hostile]), [('b', hostile.clone())]);
    }
}
