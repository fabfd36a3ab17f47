//! The fuzz targets that need a second implementation of the other side. The bodies of all others live beside the
//! code they test, as `fuzz_*`; `src/bin` has a line for each.

pub mod deflate;
mod input;
pub mod session;
