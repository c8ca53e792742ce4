//! What the daemon's process may do: its capabilities, no new privileges, and its system calls, of every thread.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};

use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::Fabric;
use retry_testbed::scene::{binary, eventually, flags, is_root, two_hosts};
use serde_json::Value;

/// Numbers of linux/capability.h.
const DAC_OVERRIDE: u64 = 1 << 1;
const DAC_READ_SEARCH: u64 = 1 << 2;
const NET_BIND_SERVICE: u64 = 1 << 10;
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;

/// Fields of a `status` of /proc.
fn status_of(path: &str) -> Option<BTreeMap<String, String>> {
    let text = fs::read_to_string(format!("{path}/status")).ok()?;
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    Some(lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
}

/// Every thread of a process, by name.
fn threads(pid: u32) -> Vec<(String, BTreeMap<String, String>)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    // A thread may end while the directory is read.
    let each = tasks.filter_map(|task| status_of(&task.ok()?.path().to_string_lossy()));
    each.map(|status| (status["Name"].clone(), status)).collect()
}

fn set(status: &BTreeMap<String, String>, name: &str) -> u64 {
    u64::from_str_radix(&status[name], 16).expect("a mask")
}

/// The processes that the daemon has started.
fn children(pid: u32) -> Vec<BTreeMap<String, String>> {
    let all =
        fs::read_dir("/proc").expect("/proc").filter_map(|entry| status_of(&entry.ok()?.path().to_string_lossy()));
    all.filter(|status| status.get("PPid").is_some_and(|parent| *parent == pid.to_string())).collect()
}

fn privileges(daemon: &Daemon<'_>) -> Value {
    let (code, body) = daemon.get("/v1/status").expect("an answer");
    assert_eq!(code, 200, "{body}");
    serde_json::from_str::<Value>(&body).expect("JSON")["privileges"].take()
}

/// Started by root with all of root's capabilities, each thread has those alone that the settings need; so has the holder, which
/// needs none; and the status says so.
#[test]
fn every_thread_holds_what_the_settings_need() {
    if !is_root("every_thread_holds_what_the_settings_need") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let all = ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON", "CAP_BPF"];
    for (xdp, more, mask, names) in [
        ("native", &["-mc-rejoin-interval", "30s"][..], NET_ADMIN | NET_RAW | PERFMON | BPF, &all[..]),
        ("off", &["-mc-rejoin-interval", "0"], NET_ADMIN, &["CAP_NET_ADMIN"]),
        (
            "off",
            &["-mc-rejoin-interval", "0", "-admin-addr", "[::1]:443"],
            NET_BIND_SERVICE | NET_ADMIN,
            &["CAP_NET_BIND_SERVICE", "CAP_NET_ADMIN"],
        ),
    ] {
        let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, more)).expect("a daemon");
        let mut holders = Vec::new();
        eventually("the holder runs", || {
            holders = children(daemon.pid());
            holders.iter().any(|one| one["Name"] == "retry-hold")
        });
        let threads = threads(daemon.pid());
        assert!(threads.len() > 3, "{threads:?}");
        for (name, status) in &threads {
            for held in ["CapEff", "CapPrm", "CapBnd"] {
                assert_eq!(set(status, held), mask, "{held} of {name}: {xdp} {more:?}");
            }
            for none in ["CapInh", "CapAmb"] {
                assert_eq!(set(status, none), 0, "{none} of {name}");
            }
            assert_eq!((status["NoNewPrivs"].as_str(), status["Seccomp"].as_str()), ("1", "2"), "{name}");
        }
        for holder in &holders {
            for none in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
                assert_eq!(set(holder, none), 0, "{none} of the holder");
            }
            assert_eq!((holder["NoNewPrivs"].as_str(), holder["Seccomp"].as_str()), ("1", "2"), "the holder");
        }
        let told = privileges(&daemon);
        assert_eq!(told["capabilities"], serde_json::json!(names), "{told}");
        assert_eq!((&told["no_new_privileges"], &told["seccomp"]), (&true.into(), &"on".into()), "{told}");
        assert!(!daemon.log().contains("WARN"), "{}", daemon.log());
    }
}

/// Root starts with files that another user alone may read, as it does without capabilities to lose, and says what it keeps for them.
#[test]
fn files_of_another_user_are_read() {
    if !is_root("files_of_another_user_are_read") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let directory = tempfile::tempdir().expect("a directory");
    let (list, state) = (directory.path().join("acl"), directory.path().join("state"));
    fs::write(&list, "deny fd66::/16\n").expect("a file");
    fs::create_dir(&state).expect("a directory");
    for (path, mode) in [(&list, 0o400), (&state, 0o755)] {
        chown(path, Some(999), Some(999)).expect("root may");
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("root may");
    }
    let (list, state) = (list.to_str().expect("a name"), state.to_str().expect("a name"));
    let upstream = ["-proxy-enabled", "-upstream-retry-endpoints", "[fd10::2]:9300", "-state-dir", state];
    for (more, kept, named) in
        [(&["-acl-file", list][..], DAC_READ_SEARCH, "-acl-file"), (&upstream, DAC_OVERRIDE, "-state-dir")]
    {
        let all = [more, &["-mc-rejoin-interval", "0"]].concat();
        let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("off", &all)).expect("a daemon");
        for (name, status) in threads(daemon.pid()) {
            assert_eq!(set(&status, "CapEff"), kept | NET_ADMIN, "{name}: {more:?}");
        }
        let log = daemon.log();
        assert!(log.lines().any(|line| line.contains("WARN") && line.contains(named)), "{log}");
    }
}

/// `-seccomp log` and `off` are what they say: two filters, one that refuses nothing, none.
#[test]
fn the_filter_is_the_one_asked_for() {
    if !is_root("the_filter_is_the_one_asked_for") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    for (mode, filters) in [("on", "2"), ("log", "1"), ("off", "0")] {
        let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &["-seccomp", mode])).expect("a daemon");
        for (name, status) in threads(daemon.pid()) {
            assert_eq!(status["Seccomp_filters"], filters, "{name}: {mode}");
        }
        assert_eq!(privileges(&daemon)["seccomp"], mode);
    }
}
