//! docs/operations.md names series, labels and settings that the program has, and its links lead somewhere.

use std::collections::{BTreeMap, BTreeSet};

use retry_userspace::parts::metrics::Snapshot;
use retry_userspace::parts::metrics::prometheus::{self, Format};
use retry_userspace::parts::{command_lines, settings};

const DOCUMENT: &str = include_str!("../../docs/operations.md");

/// Words behind which a list of labels stands in parentheses.
const GROUPINGS: [&str; 5] = ["by", "without", "on", "ignoring", "group_left"];

/// Labels and values of one series of the scrape.
type Labels = BTreeMap<String, String>;

/// The series of the program, by name.
fn scraped() -> BTreeMap<String, Vec<Labels>> {
    let text =
        String::from_utf8(prometheus::encode(&Snapshot::complete(), Format::Text).expect("a snapshot becomes text"))
            .expect("UTF-8");
    let mut all: BTreeMap<String, Vec<Labels>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, _value) = line.rsplit_once(' ').expect("series and value");
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = matchers(labels.trim_end_matches('}')).into_iter().map(|one| (one.label, one.value)).collect();
        all.entry(name.to_owned()).or_default().push(labels);
    }
    all
}

/// `label="value"`, with any of the operators of PromQL.
#[derive(Clone, Debug)]
struct Matcher {
    label: String,
    value: String,
}

impl Matcher {
    /// One of its values is the series'. What a daemon fills in when it runs is empty in the snapshot.
    fn is_met(&self, series: &Labels) -> bool {
        series.get(&self.label).is_some_and(|has| has.is_empty() || self.value.split('|').any(|value| value == has))
    }
}

/// Everything between the braces of a selector.
fn matchers(text: &str) -> Vec<Matcher> {
    let mut all = Vec::new();
    let mut rest = text;
    while let Some((label, value)) = rest.split_once('"') {
        let (value, after) = value.split_once('"').expect("a value ends with a quote");
        let label = label.trim_matches([',', ' ']).trim_end_matches(['=', '!', '~']);
        // In a table a bar is written `\|`.
        all.push(Matcher { label: label.to_owned(), value: value.replace("\\|", "|") });
        rest = after;
    }
    all
}

/// A series as the document names it: its name, and what stands in braces behind it.
fn named() -> Vec<(String, Vec<Matcher>)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let starts = DOCUMENT.match_indices("bre_").map(|(at, _)| at);
    starts
        // Recording rules have colons in their names.
        .filter(|&at| !DOCUMENT[..at].ends_with(|c| is_name(c) || c == ':'))
        .map(|at| {
            let text = &DOCUMENT[at..];
            let (name, rest) = text.split_at(text.find(|c| !is_name(c)).unwrap_or(text.len()));
            let inside = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(inside, _)| inside);
            (name.to_owned(), matchers(inside))
        })
        // The beginning of names, for grep.
        .filter(|(name, _)| !name.ends_with('_'))
        .collect()
}

/// What stands between backticks in the text and its tables, not in blocks of commands.
fn spans() -> Vec<&'static str> {
    let mut is_block = false;
    let lines = DOCUMENT.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        is_block ^= is_fence;
        !is_block && !is_fence
    });
    lines.flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-')).collect::<String>().replace(' ', "-")
}

/// Labels that Prometheus gives what it scrapes.
const OF_TARGETS: [&str; 2] = ["instance", "job"];

#[test]
fn every_series_is_the_programs() {
    let (scraped, named) = (scraped(), named());
    assert!(named.len() > 60, "the document names series: {}", named.len());
    for (name, matchers) in &named {
        let series = scraped.get(name);
        assert!(series.is_some(), "{name} is no series of the program");
        for asked in matchers {
            for value in asked.value.split('|') {
                let asked = Matcher { value: value.to_owned(), ..asked.clone() };
                let found = series
                    .into_iter()
                    .flatten()
                    .any(|one| asked.is_met(one) && matchers.iter().all(|all| all.is_met(one)));
                assert!(found, "{name} has no {}=\"{value}\" among {matchers:?}", asked.label);
            }
        }
    }
}

#[test]
fn every_grouping_is_by_labels_of_the_program() {
    let labels: BTreeSet<String> = scraped().into_values().flatten().flat_map(Labels::into_keys).collect();
    let mut found = 0;
    let code = DOCUMENT.lines().filter(|line| line.contains("bre_"));
    for (line, grouping) in code.flat_map(|line| GROUPINGS.map(|grouping| (line, grouping))) {
        let start = format!(" {grouping} (");
        for (at, _) in line.match_indices(&start) {
            let (list, _) = line[at + start.len()..].split_once(')').expect("a list ends");
            for label in list.split(',').map(str::trim) {
                assert!(labels.contains(label) || OF_TARGETS.contains(&label), "{label} in {line}");
                found += 1;
            }
        }
    }
    assert!(found > 5, "the expressions group: {found}");
}

#[test]
fn every_option_is_the_programs() {
    let mut names: BTreeSet<String> = settings::all()
        .flat_map(|flag| flag.aliases.iter().map(|alias| alias.flag).chain([flag.name]))
        .map(str::to_owned)
        .collect();
    // Options of verbs (those of `check` stand before settings), and the flag in place of one.
    let commands = command_lines();
    let options = commands.iter().flat_map(clap::Command::get_arguments).filter_map(clap::Arg::get_long);
    names.extend(options.map(str::to_owned).chain(["check-config", "json", "listen"].map(str::to_owned)));
    let mut found = 0;
    for span in spans() {
        let Some(flag) = span.strip_prefix('-').filter(|flag| flag.starts_with(|c: char| c.is_ascii_lowercase()))
        else {
            continue;
        };
        let name = flag.split([' ', '=']).next().unwrap_or(flag);
        assert!(names.contains(name), "-{name} is no setting");
        found += 1;
    }
    assert!(found > 60, "the document names settings: {found}");
}

#[test]
fn every_link_leads_to_a_section() {
    let headings = DOCUMENT.lines().filter_map(|line| line.strip_prefix("## "));
    let sections: BTreeSet<String> = headings.map(anchor).collect();
    let links: Vec<&str> =
        DOCUMENT.split("](#").skip(1).map(|rest| rest.split_once(')').expect("a link ends").0).collect();
    assert!(links.len() > 11, "{links:?}");
    for link in &links {
        assert!(sections.contains(*link), "#{link} is no section");
    }
    let table = DOCUMENT.split_once("\n## ").expect("a section").0;
    for section in sections.iter().filter(|section| *section != "before-you-begin") {
        assert!(table.contains(&format!("](#{section})")), "no alert leads to #{section}");
    }
}
