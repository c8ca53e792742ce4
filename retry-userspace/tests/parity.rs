//! docs/parity.md names a test for every setting, series and route: the tables hold what the program has, and the tests
//! that they name are there.

#![expect(clippy::panic, reason = "a test's panic is its message")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use retry_common::counter::{Counter, Side};
use retry_userspace::parts::admin::{self, manage};
use retry_userspace::parts::metrics::Snapshot;
use retry_userspace::parts::metrics::prometheus::{self, Format};
use retry_userspace::parts::settings;

const DOCUMENT: &str = include_str!("../../docs/parity.md");
const CONFIGURATION: &str = include_str!("../../docs/configuration.md");
/// What stands in the place of tests that are not written.
const NONE: &str = "not yet";

/// The routes of the Go program.
const GO_ROUTES: [&str; 4] = ["GET /metrics", "GET /healthz", "GET /readyz", "POST /loglevel"];

/// The rows of the table under a heading, as cells.
fn table(heading: &str) -> Vec<Vec<String>> {
    let start = format!("## {heading}\n");
    let (_, section) = DOCUMENT.split_once(&start).unwrap_or_else(|| panic!("a section {heading}"));
    let section = section.split("\n## ").next().unwrap_or_default();
    let lines = section.lines().filter(|line| line.starts_with("| `"));
    let rows: Vec<Vec<String>> =
        lines.map(|line| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect()).collect();
    assert!(!rows.is_empty() && rows.iter().all(|row| row.len() == 4), "four cells a row: {heading}");
    rows
}

fn bare(cell: &str) -> &str {
    cell.trim_matches('`')
}

/// The tests that a row names: file and function.
fn tests_of(row: &[String]) -> Vec<(&str, &str)> {
    match row[3].as_str() {
        NONE => Vec::new(),
        tests => tests.split(", ").map(|test| bare(test).split_once("::").expect("file::test")).collect(),
    }
}

/// The settings that the Go program does not have, as docs/configuration.md lists them: names, and beginnings of names.
fn is_new(name: &str) -> bool {
    let (_, list) = CONFIGURATION.split_once("Settings that the Go program does not have are").expect("the list");
    let list = list.split("\n\n").next().unwrap_or_default();
    let mut words = list.split('`').skip(1).step_by(2);
    words.any(|word| word == name || word.ends_with('-') && name.starts_with(word))
}

#[test]
fn every_setting_has_its_row() {
    let rows = table("Settings");
    let documented: Vec<_> =
        rows.iter().map(|row| (bare(&row[0]).to_owned(), bare(&row[1]).to_owned(), row[2].clone())).collect();
    let own: Vec<_> = settings::all()
        .map(|flag| {
            let whose = if is_new(flag.name) { "new" } else { "Go" };
            (flag.name.to_owned(), flag.env.to_owned(), whose.to_owned())
        })
        .collect();
    assert_eq!(documented, own);
}

/// Name and the label that tells series of one name apart, as the tables write it.
type Series = (String, String);

/// The series of the program: those of the counters, and what else a scrape describes.
fn own_series() -> BTreeSet<Series> {
    let mut own: BTreeSet<Series> = Counter::ALL
        .iter()
        .map(|counter| {
            let series = counter.series();
            let labels = series.labels.iter().map(|(label, value)| format!("`{label}=\"{value}\"`"));
            (series.name.to_owned(), labels.collect::<Vec<_>>().join(", "))
        })
        .collect();
    let counters: BTreeSet<String> = own.iter().map(|(name, _)| name.clone()).collect();
    let scrape =
        String::from_utf8(prometheus::encode(&Snapshot::complete(), Format::Text).expect("a snapshot becomes text"))
            .expect("UTF-8");
    for line in scrape.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        let name = line.split(' ').next().unwrap_or_default();
        if !counters.contains(name) {
            own.insert((name.to_owned(), String::new()));
        }
    }
    own
}

#[test]
fn every_series_has_its_row() {
    assert!(Counter::ALL.iter().any(|counter| counter.series().side == Side::Kernel), "the kernel's are among them");
    let rows = table("Metrics");
    let own = own_series();
    let mut documented = BTreeMap::new();
    for row in &rows {
        let name = bare(&row[0]).to_owned();
        // Of gauges, labels do not tell one row from another.
        let labels = if row[1].contains('=') { row[1].clone() } else { String::new() };
        assert!(["Go", "new"].contains(&row[2].as_str()), "{row:?}");
        assert!(documented.insert((name, labels), row).is_none(), "twice: {row:?}");
    }
    let documented: BTreeSet<_> = documented.into_keys().collect();
    let (missing, foreign): (Vec<_>, Vec<_>) =
        (own.difference(&documented).collect(), documented.difference(&own).collect());
    assert!(missing.is_empty() && foreign.is_empty(), "without a row: {missing:?}; not scraped: {foreign:?}");
}

#[test]
fn every_route_has_its_row() {
    let rows = table("HTTP");
    let documented: BTreeSet<_> = rows.iter().map(|row| (bare(&row[0]).to_owned(), bare(&row[1]).to_owned())).collect();
    let named = |(method, path): (axum::http::Method, &str)| format!("{method} {path}");
    let own: BTreeSet<_> = admin::routes()
        .map(|route| (named(route), "metrics-addr".to_owned()))
        .chain(manage::routes().map(|route| (named(route), "admin-addr".to_owned())))
        .collect();
    assert_eq!((documented, rows.len()), (own.clone(), own.len()));
    for row in &rows {
        let is_gos = GO_ROUTES.contains(&bare(&row[0])) && row[1] == "`metrics-addr`";
        assert_eq!(row[2], if is_gos { "Go" } else { "new" }, "{row:?}");
        assert_ne!(row[3], NONE, "{row:?}");
    }
}

/// True when `source` has a test of this name: a function with a test's attribute, or a row of a macro that makes tests.
fn has_test(source: &str, name: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    lines.iter().enumerate().any(|(at, line)| {
        let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        if function.is_some_and(|rest| rest.strip_prefix(name).is_some_and(|rest| rest.starts_with('('))) {
            let above = lines[..at].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("//"));
            return above.into_iter().any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"));
        }
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(": ")) && line.ends_with(';')
    })
}

#[test]
fn every_test_named_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut sources = BTreeMap::new();
    for row in ["Settings", "Metrics", "HTTP"].into_iter().flat_map(table) {
        assert!(row[3] == NONE || !tests_of(&row).is_empty(), "{row:?}");
        for (file, name) in tests_of(&row) {
            let source = sources.entry(file.to_owned()).or_insert_with(|| {
                fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
            });
            assert!(has_test(source, name), "{}: no test {name} in {file}", row[0]);
        }
    }
}

#[test]
fn a_test_is_known_by_its_attribute_or_its_row() {
    let source = "#[test]\n/// Why.\nfn one() {}\n\n#[tokio::test(start_paused = true)]\nasync fn two() {}\n\n\
                  fn helper() {}\n\nboth! {\n    three: three_native, three_off;\n}\nstruct X { four: u8 }\n";
    for (name, there) in
        [("one", true), ("two", true), ("three", true), ("helper", false), ("four", false), ("on", false)]
    {
        assert_eq!(has_test(source, name), there, "{name}");
    }
}
