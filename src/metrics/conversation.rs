//! A connection among those that are counted: from the answer to its handshake to its end.

use super::{Line, Metric};

/// Which threads serve a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Those of the module.
    Detached,
    /// One of httpd's, or of mod_http2's.
    Blocking,
}

impl Mode {
    fn value(self) -> &'static str {
        Metric::Connections.row().label.values[self as usize]
    }
}

/// A connection that is counted as one that is open, until the value is dropped.
#[derive(Debug)]
pub struct Conversation {
    line: &'static Line,
    mode: Mode,
}

impl Conversation {
    /// Its handshake is answered with `status`.
    pub fn begin(line: &'static Line, mode: Mode, status: u32) -> Self {
        line.count(Metric::Handshakes, &status.to_string());
        line.count(Metric::Connections, mode.value());
        Self { line, mode }
    }

    /// It is served otherwise than it was to be.
    pub fn serve(&mut self, mode: Mode) {
        if mode != self.mode {
            self.line.count(Metric::Connections, mode.value());
            self.line.uncount(Metric::Connections, self.mode.value());
            self.mode = mode;
        }
    }

    /// It has ended with this close code.
    pub fn end(self, code: u16) {
        self.line.count(Metric::Closes, &code.to_string());
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.line.uncount(Metric::Connections, self.mode.value());
    }
}

/// What a connection has carried.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Carried {
    /// Data messages received.
    pub messages_in: u64,
    /// Data messages sent.
    pub messages_out: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
}

impl Carried {
    /// Adds what is more than this, which was told, to the line; and takes note of it.
    pub fn tell(&mut self, now: Self, line: &Line) {
        let tell = |metric, told: &mut u64, now: u64| {
            // Of two who tell at a time the later one may know less.
            line.add(metric, now.saturating_sub(*told));
            *told = now.max(*told);
        };
        tell(Metric::MessagesIn, &mut self.messages_in, now.messages_in);
        tell(Metric::MessagesOut, &mut self.messages_out, now.messages_out);
        tell(Metric::BytesIn, &mut self.bytes_in, now.bytes_in);
        tell(Metric::BytesOut, &mut self.bytes_out, now.bytes_out);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn line() -> &'static Line {
        Box::leak(Box::default())
    }

    #[test]
    fn a_connection_is_counted_by_its_mode_until_its_end() {
        let line = line();
        let open = || Metric::Connections.words().map(|word| line.numbers()[word]);
        let closed = |code| line.numbers()[Metric::Closes.word(code)];
        let mut one = Conversation::begin(line, Mode::Detached, 101);
        let other = Conversation::begin(line, Mode::Blocking, 200);
        assert_eq!(open().collect::<Vec<_>>(), [1, 1]);
        one.serve(Mode::Blocking);
        one.serve(Mode::Blocking);
        assert_eq!(open().collect::<Vec<_>>(), [0, 2]);
        one.end(1001);
        // One that gets nowhere has no code.
        drop(other);
        assert_eq!(open().collect::<Vec<_>>(), [0, 0]);
        assert_eq!((closed("1001"), line.total(Metric::Closes)), (1, 1));
        let answered = |status| line.numbers()[Metric::Handshakes.word(status)];
        assert_eq!((answered("101"), answered("200"), answered("other")), (1, 1, 0));
    }

    #[test]
    fn what_is_carried_is_told_once() {
        let (line, mut told) = (line(), Carried::default());
        let now = Carried { messages_in: 2, messages_out: 3, bytes_in: 50, bytes_out: 60 };
        told.tell(now, line);
        told.tell(now, line);
        told.tell(Carried { bytes_in: 49, ..now }, line);
        told.tell(Carried { bytes_out: 61, ..now }, line);
        let of = [Metric::MessagesIn, Metric::MessagesOut, Metric::BytesIn, Metric::BytesOut];
        assert_eq!(of.map(|metric| line.total(metric)), [2, 3, 50, 61]);
    }
}
