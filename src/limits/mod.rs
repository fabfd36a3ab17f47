//! What there may be so much of and no more, counted where it is taken.
//!
//! | file | counts | across |
//! |---|---|---|
//! | [`connections`] | the connections of each kind | all children |
//! | [`workers`] | the workers of httpd's that WebSockets hold | all children on prefork |
//! | [`memory`] | the bytes that clients make a child hold | one child |
//! | [`presence`] | which children are there, so that those that died do not count | all children |

pub mod connections;
pub mod memory;
pub mod presence;
pub mod workers;
