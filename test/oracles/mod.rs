//! What the protocol core is compared with: second, simpler statements of the same rules. Each function takes arbitrary
//! bytes and panics if the two disagree. Unit tests call them with bytes of their own, the fuzz targets of test/fuzz with
//! whatever comes.

pub mod channel;
pub mod close;
pub mod deflate;
pub mod draft;
pub mod frame;
pub mod framing;
pub mod handshake;
pub mod mask;
pub mod session;
pub mod utf8;
