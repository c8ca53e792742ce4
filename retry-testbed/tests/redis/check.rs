//! `retry-endpoint check` asks the Redis of the settings, once.

use retry_testbed::peers::redis::{PORT, Server};
use retry_testbed::scene::{binary, is_root};
use serde_json::Value;

use super::scene::{fabric, host};

#[test]
fn redis_is_asked_before_a_start() {
    if !is_root("redis_is_asked_before_a_start") {
        return;
    }
    let fabric = fabric(&["redis"]);
    let mut server = Server::start_with(host(&fabric, "redis"), PORT, Some("secret"), &[]).expect("Redis");
    let address = server.address();
    let asked = |user: &str| {
        let url = format!("redis://{user}{address}");
        let mut command = host(&fabric, "store").ns.command(binary()).expect("a command");
        command.args(["check", "-json", "-xdp", "off", "-redis-addr", &url, "-cache-dial-timeout", "1s"]);
        let output = command.output().expect("it runs");
        let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let line = told["checks"].as_array().expect("a list").iter().find(|check| check["name"] == "redis");
        line.expect("a line").clone()
    };
    let line = asked(":secret@");
    assert_eq!(line["level"], "green", "{line:#}");
    assert!(line["found"].as_str().is_some_and(|found| found.ends_with(":6379 answers")), "{line:#}");
    let line = asked(":wrong@");
    assert_eq!(line["level"], "yellow", "{line:#}");
    server.kill().expect("it dies");
    let line = asked(":secret@");
    assert_eq!(
        (&line["level"], &line["runbook"]),
        (&"yellow".into(), &"docs/operations.md#redis-is-dead-or-refuses-us".into())
    );
    server.start_again().expect("it is back");
    assert_eq!(asked(":secret@")["level"], "green");
}
