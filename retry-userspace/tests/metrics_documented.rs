//! docs/metrics.md lists what a scrape holds, and nothing else.

#![expect(clippy::panic, reason = "a test's panic is its message")]

use retry_common::counter::Counter;
use retry_userspace::parts::metrics::Snapshot;
use retry_userspace::parts::metrics::prometheus::{self, Format};

const DOCUMENT: &str = include_str!("../../docs/metrics.md");

/// A label, and its value where that tells series apart in the table.
type Labels = Vec<(String, Option<String>)>;

/// A row of the document: `| name | type | labels | meaning |`.
struct Row {
    name: String,
    kind: String,
    labels: Labels,
    meaning: String,
}

/// A line of the scrape.
#[derive(Debug)]
struct Series {
    name: String,
    labels: Labels,
}

fn rows() -> Vec<Row> {
    let lines = DOCUMENT.lines().filter(|line| line.starts_with("| `bre_") || line.starts_with("| `process_"));
    lines
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [name, kind, labels, meaning] = cells[..] else { panic!("four cells: {line}") };
            let labels = labels.split(", ").map(|label| label.trim_matches('`')).filter(|label| !label.is_empty());
            Row {
                name: name.trim_matches('`').to_owned(),
                kind: kind.to_owned(),
                labels: labels.map(label_of).collect(),
                meaning: meaning.to_owned(),
            }
        })
        .collect()
}

fn label_of(text: &str) -> (String, Option<String>) {
    match text.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.trim_matches('"').to_owned())),
        None => (text.to_owned(), None),
    }
}

fn series(scrape: &str) -> Vec<Series> {
    let lines = scrape.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (series, _value) = line.rsplit_once(' ').expect("series and value");
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
            // A histogram is one row.
            let parts = ["_bucket", "_sum", "_count"].iter().filter_map(|part| name.strip_suffix(part));
            let whole = parts.into_iter().find(|whole| scrape.contains(&format!("# TYPE {whole} histogram")));
            let labels = labels.filter(|label| whole.is_none() || !label.starts_with("le="));
            Series { name: whole.unwrap_or(name).to_owned(), labels: labels.map(label_of).collect() }
        })
        .collect()
}

fn describes(row: &Row, series: &Series) -> bool {
    row.name == series.name
        && row.labels.len() == series.labels.len()
        && row.labels.iter().zip(&series.labels).all(|((name, value), (scraped_name, scraped))| {
            name == scraped_name && (value.is_none() || value == scraped)
        })
}

fn scrape() -> String {
    String::from_utf8(prometheus::encode(&Snapshot::complete(), Format::Text).expect("a snapshot becomes text"))
        .expect("UTF-8")
}

#[test]
fn every_series_has_one_row_and_every_row_a_series() {
    let (rows, series) = (rows(), series(&scrape()));
    assert!(series.len() > 60, "the scrape is not empty: {}", series.len());
    for one in &series {
        assert_eq!(rows.iter().filter(|row| describes(row, one)).count(), 1, "rows of {one:?}");
    }
    for row in &rows {
        assert!(series.iter().any(|one| describes(row, one)), "{} {:?} is not scraped", row.name, row.labels);
    }
}

#[test]
fn meanings_and_types_are_those_of_the_code() {
    let scrape = scrape();
    for row in rows() {
        let kind = format!("# TYPE {} {}", row.name, row.kind);
        assert!(scrape.lines().any(|line| line == kind), "{kind}");
        let own: Vec<_> =
            row.labels.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_deref()?))).collect();
        let counter = Counter::ALL
            .iter()
            .map(|counter| counter.series())
            .find(|series| series.name == row.name && series.labels.iter().copied().eq(own.iter().copied()));
        let help = match counter {
            Some(series) => series.help,
            None => {
                let start = format!("# HELP {} ", row.name);
                scrape.lines().find_map(|line| line.strip_prefix(&start)).expect("a help line")
            }
        };
        assert_eq!(row.meaning, help, "{} {own:?}", row.name);
    }
}
