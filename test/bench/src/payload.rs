//! What the messages say.

use serde::Deserialize;

/// The kinds of payload.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Payload {
    /// Arbitrary bytes.
    Binary,
    /// Text of one byte a character.
    Ascii,
    /// Text of one to four bytes a character.
    Multibyte,
    /// What applications send: an object with a list of records.
    Json,
}

impl Payload {
    /// Whether messages of it are text.
    pub fn is_text(self) -> bool {
        self != Self::Binary
    }

    /// The payload of message number `n`, `size` bytes long, JSON about so.
    pub fn make(self, size: usize, n: usize) -> Vec<u8> {
        match self {
            Self::Binary => {
                let mut x = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(n as u64 + 1);
                let mut bytes = Vec::with_capacity(size + 8);
                while bytes.len() < size {
                    x ^= x << 13;
                    x ^= x >> 7;
                    x ^= x << 17;
                    bytes.extend_from_slice(&x.to_le_bytes());
                }
                bytes.truncate(size);
                bytes
            }
            Self::Ascii => {
                let text = format!("{n}: the quick brown fox jumps over the lazy dog. ");
                text.into_bytes().into_iter().cycle().take(size).collect()
            }
            Self::Multibyte => {
                let text =
                    format!("{n} Zwölf Boxkämpfer – Съешь ещё этих булок, いろはにほへと 🦀 ");
                let mut bytes = Vec::with_capacity(size);
                for c in text.chars().cycle() {
                    let mut four = [0; 4];
                    let c = c.encode_utf8(&mut four).as_bytes();
                    if bytes.len() + c.len() > size {
                        break;
                    }
                    bytes.extend_from_slice(c);
                }
                bytes.resize(size, b'.');
                bytes
            }
            Self::Json => {
                let mut text = format!("{{\"sequence\":{n},\"type\":\"update\",\"records\":[");
                let mut i = n * 7919;
                while text.len() < size {
                    i += 1;
                    let price = (i * 7_368_787) % 100_000;
                    text += &format!(
                        "{{\"id\":{i},\"symbol\":\"SYM{:03}\",\"price\":{}.{:02},\"side\":\"{}\",\
                         \"note\":\"order accepted\"}},",
                        i % 500,
                        price / 100,
                        price % 100,
                        if i % 3 == 0 { "sell" } else { "buy" }
                    );
                }
                text.pop();
                (text + "]}").into_bytes()
            }
        }
    }
}
