//! The framings, by name.
#![forbid(unsafe_code)]

use super::{Framing, Piece};
use crate::proto::Kind;

/// Makes the framing of a name for one connection; the error says what is wrong with the name or the configuration.
pub fn make(name: &str, _config: &str) -> Result<Box<dyn Framing>, String> {
    match name {
        "auto" | "binary" => Ok(Box::new(Binary)),
        _ => Err(format!("there is no framing '{name}'")),
    }
}

/// Everything as it comes.
struct Binary;

impl Framing for Binary {
    fn next(&mut self, data: &mut [u8], _fresh: usize) -> Piece {
        Piece::Message(Kind::Binary, data.len() - 1)
    }

    fn finish(&mut self, data: &mut [u8]) -> Piece {
        self.next(data, 0)
    }

    fn datagram(&self, _data: &[u8]) -> Kind {
        Kind::Binary
    }
}
