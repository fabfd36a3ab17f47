//! Where everything outside `httpd/` writes its log lines, so that it need not know httpd's log.

use core::fmt;

/// How serious a line is, in httpd's terms (`LogLevel`).
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Level {
    /// A request or connection could not be served.
    Error,
    /// Something an administrator should look at.
    Warn,
    /// What is normal but decides much.
    Notice,
    /// What is normal but worth knowing.
    Info,
    /// For tracing a problem.
    Debug,
    /// Each step of a connection.
    Trace,
}

/// A connection's place in the log: whatever writes there adds the connection's name.
pub trait Log: Send + Sync {
    /// Whether lines of this level are written at all.
    fn enabled(&self, level: Level) -> bool;

    /// Writes one line.
    fn write(&self, level: Level, line: fmt::Arguments<'_>);
}
