//! The fuzz targets that need a second implementation of the other side. The bodies of all others are those of
//! `test/oracles`; `src/bin` has a line for each.

pub mod deflate;
mod input;
#[path = "../../oracles/mod.rs"]
pub mod oracles;
pub mod session;
