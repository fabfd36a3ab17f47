//! What is counted: one table of names, for server-status and for the page of metrics.
//!
//! Each child counts in a *line* of numbers of its own, in memory that all children share. Counters only ever rise, also
//! when another process takes the line over; gauges begin anew with each process, and count while it lives. So the sums of
//! counters over all lines never fall. Nothing is counted there for a single message: connections keep that, and it is
//! told once a second and at their end.
//!
//! | file | owns |
//! |---|---|
//! | `table` | what is counted, and what it is called: a metric is a row of it, and a place that counts |
//! | `line` | the numbers of one child |
//! | `lines` | the lines of all children, and who has which |
//! | `conversation` | a connection among those that are counted, and what it has carried |
//! | `page` | the numbers as OpenMetrics text |

mod conversation;
mod line;
mod lines;
mod page;
mod table;

pub use self::{
    conversation::{Carried, Conversation, Mode},
    line::{Line, Numbers},
    lines::{Lines, MOST},
    page::Sums,
    table::{Kind, Label, Metric, Row, TABLE, layout},
};
