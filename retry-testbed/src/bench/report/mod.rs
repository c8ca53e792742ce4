//! The report: a table for the terminal, a JSON object, and a page.

mod page;
mod svg;
mod table;

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::model::{Case, Measurement, Row};

/// What a run found.
#[derive(Debug)]
pub(crate) struct Report {
    machine: String,
    cases: Vec<(&'static Case, Measurement)>,
}

/// As it stands in report.json.
#[derive(Serialize)]
struct Json<'a> {
    machine: &'a str,
    cases: Vec<&'a Row>,
}

impl Report {
    /// An empty one.
    pub(crate) const fn new(machine: String) -> Self {
        Self { machine, cases: Vec::new() }
    }

    /// Adds what a case found.
    pub(crate) fn add(&mut self, case: &'static Case, found: Measurement) {
        self.cases.push((case, found));
    }

    /// Whether every target was met.
    pub(crate) fn met(&self) -> bool {
        self.rows().all(|row| row.met)
    }

    /// One JSON object, in one line.
    pub(crate) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string(&Json { machine: &self.machine, cases: self.rows().collect() })?)
    }

    /// For a terminal.
    pub(crate) fn table(&self) -> String {
        table::table(&self.machine, &self.cases)
    }

    /// Writes report.json and report.html.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        let write = |name: &str, text: String| {
            let path = directory.join(name);
            std::fs::write(&path, text).with_context(|| path.display().to_string())
        };
        write("report.json", self.json()? + "\n")?;
        write("report.html", page::page(&self.machine, &self.cases)?)
    }

    fn rows(&self) -> impl Iterator<Item = &Row> {
        self.cases.iter().flat_map(|(_, found)| &found.rows)
    }
}
