//! The live table on stderr: redrawn on a terminal, a line a second elsewhere.

use std::{
    cell::Cell,
    io::{IsTerminal as _, Write as _},
    time::Duration,
};

use retry_testbed::peers::listener::Stats;

use super::report::Sample;

/// Prints a paragraph to stderr.
pub(crate) fn say(text: &str) {
    eprintln!("{text}");
}

/// Microseconds as a person reads them.
pub(crate) fn time(microseconds: u64) -> String {
    let (whole, thousandths) = (microseconds / 1000, microseconds % 1000);
    match microseconds {
        0..1_000 => format!("{microseconds} µs"),
        1_000..100_000 => format!("{whole}.{} ms", thousandths / 100),
        100_000..1_000_000 => format!("{whole} ms"),
        _ => format!("{}.{} s", whole / 1000, whole % 1000 / 100),
    }
}

pub(crate) struct View {
    seconds: u32,
    mode: String,
    cost: String,
    terminal: bool,
    drawn: Cell<usize>,
}

impl View {
    pub(crate) fn new(seconds: u32, mode: Option<&str>, cpu_us_per_nack: Option<f64>) -> Self {
        Self {
            seconds,
            mode: mode.unwrap_or("unknown").to_owned(),
            cost: cpu_us_per_nack.map_or_else(|| "-".to_owned(), |cost| format!("{cost:.2} µs a NACK")),
            terminal: std::io::stderr().is_terminal(),
            drawn: Cell::new(0),
        }
    }

    /// Time between two pictures.
    pub(crate) const fn interval(&self) -> Duration {
        Duration::from_millis(if self.terminal { 250 } else { 1000 })
    }

    /// Shows the numbers as they are now.
    pub(crate) fn show(&self, now: &Sample, start: &Sample) {
        let lines = if self.terminal { self.table(now, start) } else { self.line(now, start) };
        let mut text = String::new();
        if self.terminal && self.drawn.get() > 0 {
            // Up to the first line of the picture, and away with it.
            text += &format!("\x1b[{}A\x1b[J", self.drawn.get());
        }
        text += &lines.join("\n");
        text.push('\n');
        self.drawn.set(lines.len());
        // A closed stderr ends the view and not the run.
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }

    /// Leaves the last picture standing.
    pub(crate) fn end(&self) {
        if self.terminal {
            say("");
        }
    }

    fn table(&self, now: &Sample, start: &Sample) -> Vec<String> {
        let elapsed = now.at.duration_since(start.at).as_secs();
        let mut lines = vec![
            format!("{elapsed:>4} s of {}     published {:>9}     XDP {}", self.seconds, now.published, self.mode),
            format!(
                "{:<12}{:>10}{:>9}{:>9}{:>11}{:>7}{:>10}{:>10}{:>10}",
                "", "received", "lost", "NACKs", "recovered", "open", "p50", "p99", "max"
            ),
        ];
        for (stats, number) in now.listeners.iter().zip(1..) {
            lines.push(row(&format!("listener {number}"), stats));
        }
        lines.push(row("together", &now.together));
        lines.push(format!(
            "answered by XDP {}, by the daemon {}     {}     daemon {:.1} % of a core",
            now.answered_xdp,
            now.answered_user,
            self.cost,
            now.daemon_percent(start)
        ));
        lines
    }

    fn line(&self, now: &Sample, start: &Sample) -> Vec<String> {
        let elapsed = now.at.duration_since(start.at).as_secs();
        let all = &now.together;
        let mut lines = Vec::new();
        if self.drawn.get() == 0 {
            lines.push(format!(
                "{:>6}{:>11}{:>9}{:>9}{:>9}{:>11}{:>11}{:>7}{:>10}{:>10}{:>10}  CPU",
                "time", "published", "lost", "NACKs", "by XDP", "by daemon", "recovered", "open", "p50", "p99", "max"
            ));
        }
        lines.push(format!(
            "{:>6}{:>11}{:>9}{:>9}{:>9}{:>11}{:>11}{:>7}{:>10}{:>10}{:>10}  {}",
            format!("{elapsed} s"),
            now.published,
            all.lost,
            all.nacks,
            now.answered_xdp,
            now.answered_user,
            all.recovered(),
            all.open,
            time(all.latency.quantile(0.5)),
            time(all.latency.quantile(0.99)),
            time(all.latency.max()),
            self.cost
        ));
        lines
    }
}

fn row(name: &str, stats: &Stats) -> String {
    format!(
        "{name:<12}{:>10}{:>9}{:>9}{:>11}{:>7}{:>10}{:>10}{:>10}",
        stats.received,
        stats.lost,
        stats.nacks,
        stats.recovered(),
        stats.open,
        time(stats.latency.quantile(0.5)),
        time(stats.latency.quantile(0.99)),
        time(stats.latency.max())
    )
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn times_read_well() {
        let cases = [
            (7, "7 µs"),
            (999, "999 µs"),
            (1_049, "1.0 ms"),
            (99_999, "99.9 ms"),
            (300_123, "300 ms"),
            (2_150_000, "2.1 s"),
        ];
        for (microseconds, text) in cases {
            assert_eq!(time(microseconds), text);
        }
    }
}
