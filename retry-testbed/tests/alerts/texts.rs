//! What can be told of rules, dashboard and runbook without a daemon.

use std::{collections::BTreeSet, process::Command};

use super::files::{alerts, directory, grouped, metrics, panels, tools};

const METRICS: &str = include_str!("../../../docs/metrics.md");
const RUNBOOK: &str = include_str!("../../../docs/operations.md");
const HOW_TO: &str = include_str!("../../../docs/monitoring.md");
const BASE: &str = "https://github.com/retry-endpoint/retry-endpoint/blob/main/docs/operations.md#";

/// Reads a dashboard with the schema of Grafana's own library and writes it again: what the library does not know is gone,
/// and what it takes for something else has changed.
const ROUND_TRIP: &str = "
import json, sys
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
register_default_plugins()
def differences(here, there, path):
    if isinstance(here, dict) and isinstance(there, dict):
        for key in here:
            if key in there:
                yield from differences(here[key], there[key], path + '/' + key)
            else:
                yield path + '/' + key + ' is not in the schema'
    elif isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        for at, (one, other) in enumerate(zip(here, there)):
            yield from differences(one, other, path + '/' + str(at))
    elif here != there:
        yield path + ' is read as ' + repr(there)
dashboard = json.load(open(sys.argv[1]))
again = json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))
found = list(differences(dashboard, again, ''))
print(*found, sep='\\n')
sys.exit(1 if found else 0)
";

fn promtool(arguments: &[&str]) -> String {
    let mut command = Command::new(tools().join("prometheus/usr/bin/promtool"));
    let output = command.args(arguments).current_dir(directory("deploy/prometheus")).output().expect("promtool starts");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}");
    said
}

#[test]
fn promtool_takes_rules_and_configuration() {
    let count = alerts().len();
    let said = promtool(&["check", "rules", "--lint=all", "--lint-fatal", "retry-endpoint.rules.yml"]);
    assert!(said.contains("rules found") && count > 20, "{count} alerts: {said}");
    promtool(&["check", "config", "prometheus.yml"]);
}

/// The unit tests beside the rules, of which every alert has one in which it fires.
#[test]
fn the_unit_tests_of_the_rules_pass() {
    promtool(&["test", "rules", "retry-endpoint.test.yml"]);
    let tests = std::fs::read_to_string(directory("deploy/prometheus/retry-endpoint.test.yml")).expect("the tests");
    for alert in alerts() {
        let case = format!("alertname: {}\n        exp_alerts:\n          - exp_labels:", alert.name);
        assert!(tests.contains(&case), "no case in which {} fires", alert.name);
    }
}

/// A heading of the runbook, as its link names it.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    kept.chars().filter(|letter| letter.is_alphanumeric() || *letter == ' ').collect::<String>().replace(' ', "-")
}

/// The table of the runbook is the rules: name, severity, expression, time, and the section that the alert leads to.
#[test]
fn the_runbooks_table_is_the_rules() {
    let headings: Vec<&str> = RUNBOOK.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let mut table =
        String::from("| alert | true means: act | for | severity | section |\n| --- | --- | --- | --- | --- |\n");
    for alert in alerts() {
        let fragment = alert.runbook.strip_prefix(BASE).unwrap_or_else(|| panic!("{}: {}", alert.name, alert.runbook));
        let heading = headings.iter().find(|heading| anchor(heading) == fragment);
        let heading = heading.unwrap_or_else(|| panic!("{}: no section {fragment}", alert.name));
        let expression = alert.expression.replace('\n', " ").replace('|', "\\|");
        table += &format!(
            "| `{}` | `{expression}` | {} | {} | [{heading}](#{fragment}) |\n",
            alert.name, alert.lasting, alert.severity
        );
    }
    assert!(RUNBOOK.contains(&table), "docs/operations.md lacks this table:\n{table}");
}

/// Every metric that rules and dashboard name is one of docs/metrics.md.
#[test]
fn every_metric_is_documented() {
    let expressions =
        alerts().into_iter().map(|alert| alert.expression).chain(panels().into_iter().map(|(_, one)| one));
    let named: BTreeSet<String> = expressions.flat_map(|expression| metrics(&expression)).collect();
    assert!(named.len() > 40, "{named:?}");
    let unknown: Vec<_> = named.iter().filter(|name| !METRICS.contains(&format!("| `{name}` |"))).collect();
    assert!(unknown.is_empty(), "not in docs/metrics.md: {unknown:?}");
}

/// Nothing is grouped by a label whose values strangers choose: `source` is shown by its ten largest alone.
#[test]
fn no_panel_has_a_series_per_stranger() {
    let bounded =
        ["instance", "path", "type", "level", "reason", "interface", "class", "kind", "result", "outcome", "last"];
    for (title, expression) in panels() {
        for label in grouped(&expression).into_keys() {
            let is_bounded =
                bounded.contains(&label.as_str()) || (label == "source" && expression.starts_with("topk(10, "));
            assert!(is_bounded, "{title}: by {label}");
        }
    }
}

#[test]
fn grafanas_schema_knows_every_part_of_the_dashboard() {
    let mut command = Command::new("python3");
    command.args(["-c", ROUND_TRIP]).arg(directory("deploy/grafana/retry-endpoint.json"));
    let output = command.env("PYTHONPATH", tools().join("python")).output().expect("python3 starts");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

/// The commands of docs/monitoring.md, with directories of the test in place of the system's.
#[test]
fn the_how_tos_commands_run() {
    let there = tempfile::tempdir().expect("a directory");
    std::fs::create_dir_all(there.path().join("etc/prometheus")).expect("a directory");
    let root = there.path().display();
    let path = std::env::var("PATH").unwrap_or_default();
    let blocks = HOW_TO.split("```sh\n").skip(1).filter_map(|rest| rest.split_once("```"));
    let mut count = 0;
    for line in blocks.flat_map(|(block, _)| block.lines()) {
        count += 1;
        let command = line.replace(" /etc/", &format!(" {root}/etc/")).replace(" /var/", &format!(" {root}/var/"));
        let mut shell = Command::new("sh");
        shell.args(["-ec", &command]).current_dir(directory("."));
        let output = shell.env("PATH", format!("{}:{path}", tools().join("prometheus/usr/bin").display())).output();
        let output = output.expect("sh starts");
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&said));
    }
    assert!(count > 4, "{count} commands");
    for file in ["etc/prometheus/retry-endpoint.rules.yml", "var/lib/grafana/dashboards/retry-endpoint.json"] {
        assert!(there.path().join(file).is_file(), "{file}");
    }
}
