//! core: placeholder
fn main() {}
