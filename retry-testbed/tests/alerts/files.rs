//! The files that an operator installs.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde_json::Value;

/// The rules, as text.
pub(crate) const RULES: &str = include_str!("../../../deploy/prometheus/retry-endpoint.rules.yml");
/// The dashboard.
pub(crate) const DASHBOARD: &str = include_str!("../../../deploy/grafana/retry-endpoint.json");

/// An alert of the rules.
#[derive(Debug)]
pub(crate) struct Alert {
    /// Its name.
    pub(crate) name: String,
    /// When it is so, for as long as `lasting`.
    pub(crate) expression: String,
    /// `for`.
    pub(crate) lasting: String,
    /// The label `severity`.
    pub(crate) severity: String,
    /// The annotation `runbook_url`.
    pub(crate) runbook: String,
}

/// A directory of the repository.
pub(crate) fn directory(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(path)
}

/// What `xtask` has installed.
pub(crate) fn tools() -> PathBuf {
    std::env::var_os("RETRY_TOOLS").expect("xtask names the tools' directory").into()
}

fn rules() -> Vec<Value> {
    let file: Value = serde_saphyr::from_str(RULES).expect("YAML");
    let groups = file["groups"].as_array().expect("groups").clone();
    groups.iter().flat_map(|group| group["rules"].as_array().expect("rules").clone()).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Every alert, in the order of the file.
pub(crate) fn alerts() -> Vec<Alert> {
    let rules = rules().into_iter().filter(|rule| rule["alert"].is_string());
    let alert = |rule: Value| Alert {
        name: text(&rule["alert"]),
        expression: text(&rule["expr"]),
        lasting: text(&rule["for"]),
        severity: text(&rule["labels"]["severity"]),
        runbook: text(&rule["annotations"]["runbook_url"]),
    };
    rules.map(alert).collect()
}

/// The expressions of all panels, each by its panel's title.
pub(crate) fn panels() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").clone();
    let targets = |panel: &Value| {
        let title = text(&panel["title"]);
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        targets.into_iter().map(move |target| (title.clone(), text(&target["expr"])))
    };
    panels.iter().flat_map(targets).collect()
}

/// The metrics that an expression names.
pub(crate) fn metrics(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|letter: char| !(letter.is_alphanumeric() || letter == '_' || letter == ':'));
    words.filter(|word| word.starts_with("bre_") || word.starts_with("process_")).map(str::to_owned).collect()
}

/// The labels that an expression groups its result by.
pub(crate) fn grouped(expression: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for part in expression.split(" by (").skip(1) {
        let labels = part.split(')').next().unwrap_or_default();
        for label in labels.split(", ") {
            *found.entry(label.to_owned()).or_default() += 1;
        }
    }
    found
}
