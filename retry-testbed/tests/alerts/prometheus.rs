//! Prometheus itself, with a network of its own to the daemons.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use retry_testbed::{
    daemon::http,
    net::{
        fabric::Host,
        netns::{ChildGuard, Netns},
    },
};
use serde_json::Value;

use super::files::{RULES, tools};

/// By how much every time of the rules is shortened: `for`, the ranges of rates, and offsets. Five minutes are five seconds.
pub(crate) const SHORTENED: u32 = 60;
/// Between two scrapes, and between two evaluations.
const INTERVAL: &str = "500ms";
/// Where it answers.
const ADDRESS: &str = "[::1]:9090";

/// The host of Prometheus, with a link to each daemon that does not lead over the fabric.
pub(crate) struct Watch {
    ns: Netns,
    targets: Vec<String>,
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self { ns: Netns::new("watch").expect("a namespace"), targets: Vec::new() }
    }

    /// Joins a host, whose daemon is scraped as this instance.
    pub(crate) fn join(&mut self, host: &Host, instance: &str) {
        let number = self.targets.len() + 1;
        let (here, there) = (format!("to{number}"), "watch0");
        self.ns.run(&["ip", "link", "add", &here, "type", "veth", "peer", "name", there]).expect("a link");
        self.ns.run(&["ip", "link", "set", there, "netns", host.ns.name()]).expect("its other end");
        for (ns, interface, end) in [(&self.ns, here.as_str(), 1), (&host.ns, there, 2)] {
            let address = format!("fd99:{number}::{end}/64");
            ns.run(&["ip", "link", "set", interface, "up"]).expect("it is up");
            ns.run(&["ip", "address", "add", &address, "dev", interface, "nodad"]).expect("an address");
        }
        self.targets
            .push(format!("      - targets: ['[fd99:{number}::2]:9400']\n        labels: {{instance: {instance}}}\n"));
    }

    /// Starts Prometheus with the project's rules, shortened, and with more arguments.
    pub(crate) fn start(&self, directory: &Path, more: &[&str]) -> Prometheus<'_> {
        fs::write(directory.join("rules.yml"), shortened(RULES)).expect("written");
        let mut configuration = format!(
            "global: {{scrape_interval: {INTERVAL}, scrape_timeout: {INTERVAL}, evaluation_interval: {INTERVAL}}}\n\
             rule_files: [rules.yml]\nscrape_configs:\n  - job_name: retry-endpoint\n    static_configs:\n"
        );
        self.targets.iter().for_each(|target| configuration.push_str(target));
        let file = directory.join("prometheus.yml");
        fs::write(&file, configuration).expect("written");
        let mut command = Command::new(tools().join("prometheus/usr/bin/prometheus"));
        command.arg("--config.file").arg(file).arg("--storage.tsdb.path").arg(directory.join("data"));
        command.args(["--web.listen-address", ADDRESS, "--log.level=warn"]).args(more);
        let log = fs::File::create(directory.join("log")).expect("a file");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let process = self.ns.spawn(command).expect("Prometheus starts");
        let prometheus = Prometheus { ns: &self.ns, _process: process };
        let deadline = Instant::now() + Duration::from_secs(30);
        while prometheus.get("/-/ready").is_none() {
            let log = || fs::read_to_string(directory.join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "it is not ready: {}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        prometheus
    }
}

/// Prometheus, until this is dropped.
pub(crate) struct Prometheus<'a> {
    ns: &'a Netns,
    _process: ChildGuard,
}

impl Prometheus<'_> {
    fn get(&self, path: &str) -> Option<String> {
        let address: SocketAddr = ADDRESS.parse().expect("an address");
        http::get(self.ns, address, path).ok().filter(|(status, _)| *status == 200).map(|(_, body)| body)
    }

    fn api(&self, path: &str) -> Value {
        let body = self.get(path).expect("an answer");
        serde_json::from_str::<Value>(&body).expect("JSON")["data"].take()
    }

    /// The series that an expression returns now.
    pub(crate) fn query(&self, expression: &str) -> Vec<Value> {
        let data = self.api(&format!("/api/v1/query?query={}", encoded(expression)));
        data["result"].as_array().cloned().unwrap_or_default()
    }

    /// The alerts that fire: name, and instance where the alert has one.
    pub(crate) fn firing(&self) -> BTreeSet<(String, String)> {
        let data = self.api("/api/v1/alerts");
        let alerts = data["alerts"].as_array().cloned().unwrap_or_default();
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        let label = |alert: &Value, name: &str| alert["labels"][name].as_str().unwrap_or_default().to_owned();
        firing.map(|alert| (label(alert, "alertname"), label(alert, "instance"))).collect()
    }
}

/// The rules with every time of theirs divided by [`SHORTENED`].
fn shortened(rules: &str) -> String {
    let mut text = String::new();
    for line in rules.lines() {
        let mut rest = line;
        // Ranges, as in `[5m]`, and the time of an alert, as in `for: 5m`.
        while let Some((before, after)) = rest.split_once('[').or_else(|| rest.split_once("for: ")) {
            let end = after.find(']').unwrap_or(after.len());
            let opening = if rest[before.len()..].starts_with('[') { "[" } else { "for: " };
            text += &format!("{before}{opening}{}", shorter(&after[..end]));
            rest = &after[end..];
        }
        text += rest;
        text.push('\n');
    }
    text
}

/// A duration in one unit, divided.
fn shorter(duration: &str) -> String {
    let (number, unit) = duration.split_at(duration.len() - 1);
    let seconds = [("m", 60), ("h", 3600), ("d", 86_400)].into_iter().find(|(name, _)| *name == unit);
    let (_, seconds) = seconds.expect("minutes, hours or days");
    format!("{}ms", number.parse::<u64>().expect("a number") * seconds * 1000 / u64::from(SHORTENED))
}

/// As a query's value.
fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[test]
fn every_time_is_shortened() {
    let short = shortened("expr: rate(a[5m]) > max_over_time(b[1d])\nfor: 10m\nfor: 0m\n");
    assert_eq!(short, "expr: rate(a[5000ms]) > max_over_time(b[1440000ms])\nfor: 10000ms\nfor: 0ms\n");
}
