//! The packages as docs/install.md has them: installed, started, restarted, upgraded, removed, and answering from the kernel all the
//! while.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use retry_testbed::net::fabric::{Fabric, Host, INTERFACE};
use retry_testbed::scene::{eventually, is_root, two_hosts};

use crate::artifacts::{file, said};
use crate::document;
use crate::guest::Guest;
use crate::scene::Listener;
use crate::thread::Stopped;

/// Small rings: what follows the start is not about them.
const SMALL: &str = "printf 'CACHE_MEMORY=16m\\nCACHE_MEMORY_LONG=16m\\n' >> /etc/default/retry-endpoint";
/// Where the daemon pins.
const PINS: &str = "/sys/fs/bpf/retry-endpoint";

/// The Debian package in the later version whose file the commands of an upgrade name.
fn later(upgrade: &str, directory: &Path) -> PathBuf {
    let (_, name) = upgrade.trim().rsplit_once("./").expect("a file");
    let later = name.split('_').nth(1).expect("a version");
    let tree = directory.join("tree").display().to_string();
    said("dpkg-deb", &["--raw-extract", &file("_amd64.deb").display().to_string(), &tree], directory);
    let control = Path::new(&tree).join("DEBIAN/control");
    let text = fs::read_to_string(&control).expect("a control file");
    let version = text.lines().find(|line| line.starts_with("Version: ")).expect("a version");
    fs::write(&control, text.replace(version, &format!("Version: {later}"))).expect("written");
    said("dpkg-deb", &["--root-owner-group", "-Znone", "--build", &tree, name], directory);
    directory.join(name)
}

/// The blocks of a section, which are four: what installs, starts, upgrades and removes.
fn steps(section: &str) -> [String; 4] {
    document::blocks(section).try_into().unwrap_or_else(|blocks| panic!("four blocks in {section}: {blocks:?}"))
}

/// Nothing of the endpoint is left in the kernel.
#[track_caller]
fn is_gone(guest: &Guest, endpoint: &Host) {
    assert!(!guest.succeeds(&format!("test -e {PINS}")));
    let link = endpoint.ns.run(&["ip", "link", "show", INTERFACE]).expect("a link");
    assert!(!link.contains("xdp"), "{link}");
    assert!(!guest.succeeds("systemctl cat retry-endpoint"));
}

#[test]
fn the_debian_package_is_a_service_until_it_is_removed() {
    if !is_root("the_debian_package_is_a_service_until_it_is_removed") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let [install, start, upgrade, remove] = steps("Debian and Ubuntu");
    let guest = Guest::boot(&endpoint.ns, &[file("_amd64.deb"), later(&upgrade, directory.path())]);

    // Before it is configured it does not run.
    guest.run(&install);
    assert_eq!(guest.value("ActiveState"), "inactive");
    guest.run("systemd-analyze verify retry-endpoint.service");
    guest.run(SMALL);
    assert!(guest.run(&start).contains("\"ready\""));

    // A user with these rights and no others.
    let status = guest.run(&format!("cat /proc/{}/status", guest.value("MainPID")));
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).expect("a field").trim().to_owned();
    assert!(!field("Uid:").split_whitespace().any(|uid| uid == "0"), "{status}");
    let rights = guest.run(&format!("capsh --decode={}", field("CapEff:")));
    assert!(rights.trim().ends_with("=cap_net_admin,cap_net_raw,cap_perfmon,cap_bpf"), "{rights}");
    assert_eq!(field("CapEff:"), field("CapBnd:"));

    let listener = Listener::of_a_new_frame(endpoint, client);
    listener.is_answered_by_the_kernel();
    // Root looks at another user's pins.
    assert!(guest.run("retry-endpoint status eth0").contains("a daemon serves"));
    guest.run("retry-endpoint verify-log eth0");
    assert!(!guest.succeeds("retry-endpoint detach"), "a daemon that runs is left alone");

    // A setting that is live, one that is not, and a file that only the service's group may read.
    guest.run("chgrp retry-endpoint /etc/default/retry-endpoint; chmod 0640 /etc/default/retry-endpoint");
    guest.run("printf 'RL_IP_BURST=50\nLISTEN_PORT=9001\nBEACON_INTERVAL=30s\n' >> /etc/default/retry-endpoint");
    let pid = guest.value("MainPID");
    guest.run("systemctl reload retry-endpoint");
    eventually("it has read them", || listener.metrics().count("bre_config_reloads_total", &[("result", "ok")]) == 1);
    let journal = guest.journal();
    assert!(journal.contains("-rl-ip-burst 10 -> 50") && journal.contains("-beacon-interval 60s -> 30s"), "{journal}");
    eventually("it runs", || guest.value("SubState") == "running");
    assert_eq!(guest.value("MainPID"), pid, "no restart");

    let adopted = || listener.metrics().state("bre_start_mode", "mode");
    guest.run("systemctl restart retry-endpoint");
    assert_eq!(adopted().as_deref(), Some("adopted"), "{}", guest.journal());
    listener.is_answered_by_the_kernel();

    let pid = guest.value("MainPID");
    guest.run(&upgrade);
    assert_ne!(guest.value("MainPID"), pid, "the new version runs");
    assert_eq!(adopted().as_deref(), Some("adopted"), "{}", guest.journal());
    listener.is_answered_by_the_kernel();
    assert!(guest.succeeds("grep -q '^CACHE_MEMORY=16m' /etc/default/retry-endpoint"), "the operator's settings stay");

    guest.run("systemctl stop retry-endpoint");
    assert!(listener.is_answered(), "the kernel answers until its lease ends");
    guest.run("systemctl start retry-endpoint");
    guest.run(&remove);
    is_gone(&guest, endpoint);
    assert!(!listener.is_answered());
}

/// The watchdog belongs to the threads: it lets a daemon be whose threads all make progress, and ends one with a thread that hangs.
#[test]
fn a_daemon_with_a_thread_that_hangs_is_started_anew() {
    if !is_root("a_daemon_with_a_thread_that_hangs_is_started_anew") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let guest = Guest::boot(&endpoint.ns, &[file("_amd64.deb")]);
    let [install, start, ..] = steps("Debian and Ubuntu");
    guest.run(&install);
    guest.run(SMALL);
    guest.run("mkdir /run/systemd/system/retry-endpoint.service.d");
    guest.run("printf '[Service]\\nWatchdogSec=3s\\n' > /run/systemd/system/retry-endpoint.service.d/test.conf");
    guest.run("systemctl daemon-reload");
    guest.run(&start);
    let listener = Listener::of_a_new_frame(endpoint, client);
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(guest.value("NRestarts"), "0", "{}", guest.journal());

    let stopped = Stopped::in_namespace(&endpoint.ns, "nack-0");
    eventually("it is started anew", || {
        stopped.reap();
        guest.value("NRestarts") == "1" && guest.value("ActiveState") == "active"
    });
    assert!(guest.journal().contains("Watchdog timeout"), "{}", guest.journal());
    assert_eq!(listener.metrics().state("bre_start_mode", "mode").as_deref(), Some("adopted"));
    listener.is_answered_by_the_kernel();
}

/// rpm finds no package `systemd` on this machine, whose packages are Debian's: only that is not held against it.
#[test]
fn the_rpm_package_is_a_service_until_it_is_removed() {
    if !is_root("the_rpm_package_is_a_service_until_it_is_removed") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let guest = Guest::boot(&endpoint.ns, &[file(".x86_64.rpm")]);
    let [install, start, upgrade, remove] =
        steps("Fedora, RHEL and SUSE").map(|block| block.replace("rpm --", "rpm --nodeps --"));
    guest.run(&install);
    assert_eq!(guest.value("ActiveState"), "inactive");
    guest.run(SMALL);
    assert!(guest.run(&start).contains("\"ready\""));
    let listener = Listener::of_a_new_frame(endpoint, client);
    listener.is_answered_by_the_kernel();
    let pid = guest.value("MainPID");
    guest.run(&upgrade.replace("--upgrade", "--upgrade --replacepkgs"));
    assert_ne!(guest.value("MainPID"), pid, "the new version runs");
    assert_eq!(listener.metrics().state("bre_start_mode", "mode").as_deref(), Some("adopted"), "{}", guest.journal());
    assert!(guest.succeeds("grep -q '^CACHE_MEMORY=16m' /etc/default/retry-endpoint"), "the operator's settings stay");
    guest.run(&remove);
    is_gone(&guest, endpoint);
}
