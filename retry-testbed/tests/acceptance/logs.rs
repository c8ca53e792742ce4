//! Log lines: who wrote each, one event for the inventory, and a level that changes while the daemon runs.

use nix::sys::signal::Signal;
use retry_common::key::FrameKey;
use retry_testbed::answer::nack;
use retry_testbed::daemon::Daemon;
use retry_testbed::fabric::Fabric;
use serde_json::Value;

use super::scene::{ask, asker, binary, flags, is_root, two_hosts};
use super::tools::eventually;

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
    std::thread::sleep(std::time::Duration::from_millis(50));
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
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(daemon.stdout(), Vec::<String>::new(), "text goes to stderr");
    let log = daemon.log();
    assert!(log.lines().count() > 1, "{log}");
    for line in log.lines() {
        assert!(line.contains("retry-endpoint") && line.contains("retry-8"), "{line}");
        assert!(IDENTITY.iter().all(|name| line.contains(name)), "{line}");
    }
    assert_eq!(log.matches("host.inventory").count(), 1, "{log}");
}

/// The level can be heard: at `trace` each NACK that the socket serves writes a line, at the others none does.
#[test]
fn the_level_changes_while_it_runs() {
    if !is_root("the_level_changes_while_it_runs") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("off", &["-log-format", "json"])).expect("a daemon");
    let count = |level: &str| {
        let is = |line: &&String| serde_json::from_str::<Value>(line).is_ok_and(|line| line["level"] == level);
        daemon.stdout().iter().filter(is).count()
    };
    let traffic = || {
        for _ in 0..5 {
            ask(&asker(client), endpoint.nack_address(), &nack(FrameKey::new(1, 1)), 1);
        }
    };
    traffic();
    assert_eq!((count("DEBUG"), count("TRACE")), (0, 0), "{}", daemon.log());
    assert_eq!(daemon.post("/loglevel?level=trace").expect("an answer").0, 200);
    eventually("lines at trace", || {
        traffic();
        count("TRACE") > 0
    });
    assert_eq!(daemon.post("/loglevel?level=info").expect("an answer").0, 200);
    std::thread::sleep(std::time::Duration::from_millis(100));
    let before = count("TRACE");
    traffic();
    assert_eq!(count("TRACE"), before);
    assert_eq!(daemon.post("/loglevel?level=loud").expect("an answer").0, 400);
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
