//! `retry-endpoint status` and `retry-endpoint detach`: what is left is seen and ended from outside.

use std::process::Output;
use std::time::Duration;

use nix::sys::signal::Signal;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{Fabric, Host, INTERFACE};
use retry_testbed::scene::{Pins, await_detached, binary, flags, is_root, two_hosts};
use serde_json::Value;

fn start<'a>(host: &'a Host, pins: &Pins, more: &[&str]) -> Daemon<'a> {
    let mut all = vec!["-bpffs", pins.name()];
    all.extend(more);
    let mut daemon = Daemon::start(&binary(), &host.ns, &flags("native", &all)).expect("a daemon");
    daemon.leave();
    daemon
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn status(daemon: &Daemon<'_>) -> Value {
    let output = daemon.run("status", &["-json"]).expect("it runs");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn detach(daemon: &Daemon<'_>, more: &[&str]) -> Output {
    daemon.run("detach", more).expect("it runs")
}

fn has_program(host: &Host) -> bool {
    host.ns.run(&["ip", "link", "show", INTERFACE]).expect("a link").contains("xdp")
}

/// While a daemon serves, after its end, and once nothing is left.
#[test]
fn what_is_pinned_is_told_and_ended() {
    if !is_root("what_is_pinned_is_told_and_ended") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let pins = Pins::new("verbs");
    let mut daemon = start(endpoint, &pins, &["-bpf-lease", "30s", "-daemon-lease", "2s"]);
    let told = status(&daemon);
    assert_eq!((&told["daemon"], &told["interface"]), (&true.into(), &INTERFACE.into()), "{told}");
    assert_eq!(told["attached"][INTERFACE], endpoint.ifindex, "{told}");
    assert_eq!(told["ring_bytes"], 32 << 20, "{told}");
    let build = told["build"].as_str().expect("a build");
    assert!(build.starts_with(env!("CARGO_PKG_VERSION")), "{told}");
    let left = |told: &Value, lease: &str| told[format!("{lease}_lease_left_seconds")].as_f64().expect("a number");
    assert!(left(&told, "bpf") > 25.0 && left(&told, "daemon") > 1.0, "{told}");
    let output = detach(&daemon, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    assert!(text(&output.stderr).contains("stop it first"), "{}", text(&output.stderr));
    assert!(has_program(endpoint));

    assert!(daemon.end().expect("it ends").success());
    let told = status(&daemon);
    assert_eq!(told["daemon"], false, "{told}");
    assert!(left(&told, "bpf") > 25.0 && left(&told, "daemon") <= 0.0, "{told}");
    assert!(has_program(endpoint));
    let text_of = daemon.run("status", &[]).expect("it runs");
    let shown = text(&text_of.stdout);
    assert!(shown.contains("no daemon") && shown.contains("-daemon-lease: over"), "{shown}");

    // What is attached is not stale.
    assert_eq!(detach(&daemon, &["-stale"]).status.code(), Some(0));
    assert!(has_program(endpoint));
    assert_eq!(detach(&daemon, &[]).status.code(), Some(0));
    assert!(!daemon.pins().exists());
    await_detached(endpoint);
    assert_eq!(daemon.run("status", &[]).expect("it runs").status.code(), Some(1));
    // Again: there is nothing to be done.
    assert_eq!(detach(&daemon, &[]).status.code(), Some(0));
}

/// Pins of a daemon that was killed together with its namespace.
#[test]
fn what_is_stale_is_found_from_another_namespace() {
    if !is_root("what_is_stale_is_found_from_another_namespace") {
        return;
    }
    let pins = Pins::new("stale");
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let gone = {
        let fabric = Fabric::flat(1500).expect("a fabric");
        let (endpoint, _) = two_hosts(&fabric);
        let mut daemon = start(endpoint, &pins, &[]);
        daemon.child().signal(Signal::SIGKILL).expect("it dies");
        daemon.wait().expect("it has ended");
        daemon.pins().to_owned()
    };
    assert!(gone.join("RING").exists(), "nothing has looked yet");
    let other = start(endpoint, &Pins::new("stale-other"), &[]);
    let stale = || {
        let mut command = std::process::Command::new(binary());
        command.args(["detach", "-stale", "-bpffs", pins.name()]);
        command.output().expect("it runs")
    };
    // The namespace ends when the kernel comes to it.
    for _ in 0..100 {
        let output = stale();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        if !gone.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(!gone.exists());
    assert!(has_program(endpoint), "another daemon's is left alone");
    detach(&other, &[]);
}
