//! Log lines: who wrote each, one event for the inventory, and a level that changes while the daemon runs.

use std::time::Duration;

use nix::sys::signal::Signal;
use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::Fabric;
use retry_testbed::peers::answer::nack;
use retry_testbed::scene::{ask, asker, binary, eventually, flags, is_root, two_hosts};
use serde_json::Value;

const IDENTITY: [&str; 3] = ["service.name", "service.instance.id", "service.version"];

/// A field of a JSON log line, at its top or in one of its objects.
fn field<'a>(line: &'a Value, name: &str) -> Option<&'a Value> {
    let object = line.as_object()?;
    object.get(name).or_else(|| object.values().find_map(|inner| field(inner, name)))
}

fn text_of(line: &Value) -> String {
    line.to_string()
}

#[test]
fn json_lines_say_who_wrote_them() {
    if !is_root("json_lines_say_who_wrote_them") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let more = ["-log-format", "json", "-instance", "retry-7", "-log-level", "debug"];
    let mut daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &more)).expect("a daemon");
    ask(&asker(client), endpoint.nack_address(), &nack(FrameKey::new(1, 1)), 1);
    let status = daemon.end().expect("it ends");
    assert!(status.success(), "{status}");
    let lines = daemon.stdout();
    assert!(!lines.is_empty() && lines.join("\n") == daemon.log(), "something on stderr:\n{}", daemon.log());
    let lines: Vec<Value> =
        lines.iter().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
    for line in &lines {
        let found = IDENTITY.map(|name| field(line, name).and_then(Value::as_str));
        assert_eq!(found[..2], [Some("retry-endpoint"), Some("retry-7")], "{line}");
        assert!(found[2].is_some_and(|version| version.starts_with(|first: char| first.is_ascii_digit())), "{line}");
        assert!(field(line, "level").is_some(), "{line}");
    }
    let inventory: Vec<_> = lines.iter().filter(|line| text_of(line).contains("host.inventory")).collect();
    assert_eq!(inventory.len(), 1, "{}", daemon.log());
}

#[test]
fn text_lines_say_who_wrote_them() {
    if !is_root("text_lines_say_who_wrote_them") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let mut daemon =
        Daemon::start(&binary(), &endpoint.ns, &flags("off", &["-instance", "retry-8"])).expect("a daemon");
    assert!(daemon.end().expect("it ends").success());
    assert_eq!(daemon.stdout(), Vec::<String>::new(), "text goes to stderr");
    let log = daemon.log();
    assert!(log.lines().count() > 1, "{log}");
    for line in log.lines() {
        assert!(line.contains("retry-endpoint") && line.contains("retry-8"), "{line}");
        assert!(IDENTITY.iter().all(|name| line.contains(name)), "{line}");
    }
    assert_eq!(log.lines().filter(|line| line.contains("host.inventory")).count(), 1, "{log}");
}

/// The level can be heard: that the shutdown begins is told at `info`, and not at `error`.
#[test]
fn the_level_changes_while_it_runs() {
    if !is_root("the_level_changes_while_it_runs") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let flags = flags("off", &["-log-format", "json", "-log-level", "error", "-drain-timeout", "300ms"]);
    for (level, told) in [("info", true), ("debug", true), ("error", false)] {
        let mut daemon = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");
        // Twice, so that it is the last one that counts.
        for level in ["warn", level] {
            assert_eq!(daemon.post(&format!("/loglevel?level={level}")).expect("an answer").0, 200);
        }
        assert_eq!(daemon.post("/loglevel?level=loud").expect("an answer").0, 400, "and nothing changes");
        std::thread::sleep(Duration::from_millis(100));
        let before = daemon.stdout().len();
        assert!(daemon.end().expect("it ends").success());
        let lines: Vec<Value> =
            daemon.stdout().split_off(before).iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
        assert_eq!(lines.iter().any(|line| line["level"] == "INFO"), told, "{level}: {lines:?}");
    }
}

#[test]
fn sighup_toggles_debug() {
    if !is_root("sighup_toggles_debug") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let mut daemon = Daemon::start(&binary(), &endpoint.ns, &flags("off", &[])).expect("a daemon");
    for (number, level) in [(1, "debug"), (2, "info"), (3, "debug")] {
        daemon.child().signal(Signal::SIGHUP).expect("it is told");
        eventually("a line that tells the new level", || {
            let log = daemon.log().to_lowercase();
            log.lines()
                .filter(|line| line.contains("log level"))
                .nth(number - 1)
                .is_some_and(|line| line.contains(level))
        });
    }
    assert!(daemon.child().try_wait().expect("a status").is_none(), "SIGHUP ends nothing");
}
