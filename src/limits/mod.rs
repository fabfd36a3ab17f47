//! Limits on connections, memory and workers, counted where they are taken.
//!
//! | file | counts | across |
//! |---|---|---|
//! | [`connections`] | the connections of each kind | all children |
//! | [`workers`] | the threads of httpd's, and of mod_http2's, that WebSockets hold | one child; on prefork all processes |
//! | [`memory`] | the bytes that clients make a child hold | one child |
//! | [`presence`] | which children are there, so that those that died do not count | all children |

pub mod connections;
pub mod memory;
pub mod presence;
pub mod workers;
