//! The live table on stderr: redrawn on a terminal, a line a second elsewhere.

use std::{
    cell::Cell,
    io::{IsTerminal as _, Write as _},
    time::Duration,
};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use retry_testbed::peers::listener::Stats;

use super::report::Sample;
use crate::table::{Column, figures, lines, words};

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

/// What a terminal shows of each listener.
const LISTENERS: [Column; 9] = [
    words("", 12),
    figures("received", 8),
    figures("lost", 7),
    figures("NACKs", 7),
    figures("recovered", 9),
    figures("open", 5),
    figures("p50", 8),
    figures("p99", 8),
    figures("max", 8),
];
/// A second, where there is no terminal.
const SECONDS: [Column; 12] = [
    figures("time", 6),
    figures("published", 9),
    figures("lost", 7),
    figures("NACKs", 7),
    figures("by XDP", 7),
    figures("by daemon", 9),
    figures("recovered", 9),
    figures("open", 5),
    figures("p50", 8),
    figures("p99", 8),
    figures("max", 8),
    words("CPU", 0),
];

pub(crate) struct View {
    seconds: u32,
    mode: String,
    cost: String,
    /// The picture on a terminal; `None` elsewhere.
    picture: Option<ProgressBar>,
    has_head: Cell<bool>,
}

impl View {
    pub(crate) fn new(seconds: u32, mode: Option<&str>, cpu_us_per_nack: Option<f64>) -> Result<Self> {
        let picture =
            std::io::stderr().is_terminal().then(|| ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()));
        if let Some(picture) = &picture {
            picture.set_style(ProgressStyle::with_template("{msg}")?);
        }
        Ok(Self {
            seconds,
            mode: mode.unwrap_or("unknown").to_owned(),
            cost: cpu_us_per_nack.map_or_else(|| "-".to_owned(), |cost| format!("{cost:.2} µs per NACK")),
            picture,
            has_head: Cell::new(false),
        })
    }

    /// Time between two pictures.
    pub(crate) const fn interval(&self) -> Duration {
        Duration::from_millis(if self.picture.is_some() { 250 } else { 1000 })
    }

    /// Shows the numbers as they are now.
    pub(crate) fn show(&self, now: &Sample, start: &Sample) {
        match &self.picture {
            Some(picture) => picture.set_message(self.table(now, start).join("\n")),
            None => {
                let text = self.second(now, start).join("\n") + "\n";
                // A closed stderr ends the view and not the run.
                let _ = std::io::stderr().lock().write_all(text.as_bytes());
            }
        }
    }

    /// Leaves the last picture standing.
    pub(crate) fn end(&self) {
        if let Some(picture) = &self.picture {
            picture.abandon();
            say("");
        }
    }

    fn table(&self, now: &Sample, start: &Sample) -> Vec<String> {
        let elapsed = now.at.duration_since(start.at).as_secs();
        let listeners = now.listeners.iter().zip(1..).map(|(stats, number)| row(&format!("listener {number}"), stats));
        let rows = listeners.chain([row("together", &now.together)]);
        let mut all = vec![format!(
            "{elapsed:>4} s of {}     published {:>9}     XDP {}",
            self.seconds, now.published, self.mode
        )];
        all.extend(lines(&LISTENERS, rows));
        all.push(format!(
            "answered by XDP {}, by the daemon {}     {}     daemon {:.1} % of a core",
            now.answered_xdp,
            now.answered_user,
            self.cost,
            now.daemon_percent(start)
        ));
        all
    }

    /// The head before the first, and the line of this second.
    fn second(&self, now: &Sample, start: &Sample) -> Vec<String> {
        let all = &now.together;
        let row = [
            format!("{} s", now.at.duration_since(start.at).as_secs()),
            now.published.to_string(),
            all.lost.to_string(),
            all.nacks.to_string(),
            now.answered_xdp.to_string(),
            now.answered_user.to_string(),
            all.recovered().to_string(),
            all.open.to_string(),
            time(all.latency.quantile(0.5)),
            time(all.latency.quantile(0.99)),
            time(all.latency.max()),
            self.cost.clone(),
        ];
        lines(&SECONDS, [row]).into_iter().skip(usize::from(self.has_head.replace(true))).collect()
    }
}

fn row(name: &str, stats: &Stats) -> [String; 9] {
    [
        name.to_owned(),
        stats.received.to_string(),
        stats.lost.to_string(),
        stats.nacks.to_string(),
        stats.recovered().to_string(),
        stats.open.to_string(),
        time(stats.latency.quantile(0.5)),
        time(stats.latency.quantile(0.99)),
        time(stats.latency.max()),
    ]
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
