//! The numbers of all children as OpenMetrics text, which Prometheus and others read.
//!
//! <https://prometheus.io/docs/specs/om/open_metrics_spec/>

use core::fmt::Write as _;

use super::{
    line::Numbers,
    table::{Kind, Metric, Row, TABLE},
};

/// What all children together have counted.
#[derive(Clone, Debug)]
pub struct Sums {
    /// The numbers.
    pub numbers: Numbers,
    /// Metrics of which nothing is to be said now.
    pub left_out: Vec<Metric>,
}

impl Sums {
    /// Says what a metric is that no child has in its line.
    pub fn set(&mut self, metric: Metric, number: u64) {
        debug_assert!(metric.row().kind == Kind::Common);
        self.numbers[metric.words().start] = number;
    }

    /// Each metric with its numbers, in the order of the values of its label.
    pub fn rows(&self) -> impl Iterator<Item = (&'static Row, &[u64])> {
        let told = TABLE.iter().filter(|row| !self.left_out.contains(&row.metric));
        told.map(|row| (row, &self.numbers[row.metric.words()]))
    }

    /// The page.
    pub fn page(&self) -> String {
        let mut page = String::new();
        for (row, numbers) in self.rows() {
            // Writing to a String cannot fail.
            let _ = write_metric(&mut page, row, numbers);
        }
        page + "# EOF\n"
    }
}

fn write_metric(page: &mut String, row: &Row, numbers: &[u64]) -> core::fmt::Result {
    let (name, label) = (row.name, row.label);
    let (kind, end) = match row.kind {
        Kind::Counter => ("counter", "_total"),
        Kind::Gauge | Kind::Common => ("gauge", ""),
    };
    writeln!(page, "# TYPE websocket_{name} {kind}")?;
    if let Some(unit) = row.unit() {
        writeln!(page, "# UNIT websocket_{name} {unit}")?;
    }
    writeln!(page, "# HELP websocket_{name} {}.", row.help)?;
    for (value, number) in label.values.iter().zip(numbers) {
        write!(page, "websocket_{name}{end}")?;
        if !label.name.is_empty() {
            write!(page, "{{{}=\"{value}\"}}", label.name)?;
        }
        writeln!(page, " {number}")?;
    }
    Ok(())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::metrics::Line;

    #[test]
    fn a_page() {
        let line = Line::new();
        line.count(Metric::Connections, "blocking");
        line.add(Metric::BytesIn, 1 << 53);
        let mut sums = Sums { numbers: line.numbers(), left_out: vec![Metric::ChannelOldest] };
        sums.set(Metric::ChannelMemory, 7);
        let page = sums.page();
        for part in [
            "# TYPE websocket_connections gauge\n\
             # HELP websocket_connections WebSockets and event streams that are open.\n\
             websocket_connections{mode=\"detached\"} 0\nwebsocket_connections{mode=\"blocking\"} 1\n",
            "# TYPE websocket_received_bytes counter\n# UNIT websocket_received_bytes bytes\n",
            "\nwebsocket_received_bytes_total 9007199254740992\n",
            "\nwebsocket_channel_memory_bytes 7\n",
        ] {
            assert!(page.contains(part), "{part}\nin\n{page}");
        }
        assert!(!page.contains("oldest") && page.ends_with("\n# EOF\n"));
    }
}
