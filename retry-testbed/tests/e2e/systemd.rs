//! systemd keeps memberships and NACK socket of its unit: the real one, as the first process of a namespace of processes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use retry_testbed::daemon::{METRICS, Metrics, http};
use retry_testbed::net::capture::Capture;
use retry_testbed::net::fabric::{Fabric, INTERFACE, group};
use retry_testbed::net::netns::{ChildGuard, Netns, host_command};
use retry_testbed::scene::{binary, eventually, flags, is_root, two_hosts};

use crate::memberships::{REPORTED, leaves, members};

/// Where Debian and others have it.
const SYSTEMD: &str = "/usr/lib/systemd/systemd";
/// Makes a control group and becomes the first process of new namespaces in it; `$1` is a directory, `$2` a name.
const BOOT: &str = r#"
mkdir -p "$1/cgroup" && mount -t cgroup2 none "$1/cgroup" && mkdir "$1/cgroup/$2"
echo $$ > "$1/cgroup/$2/cgroup.procs" && umount "$1/cgroup"
exec unshare -p -C -u -i -f --kill-child --mount-proc sh -ec '
    mount -t tmpfs none /run
    umount -l /sys/fs/cgroup || true
    mount -t cgroup2 none /sys/fs/cgroup
    exec env -i container=test PATH="$PATH" SYSTEMD_UNIT_PATH="$0/units" SYSTEMD_LOG_TARGET=console "$1" --system
' "$1" "$3"
"#;
/// Removes the control group.
const REMOVE: &str = r#"
mount -t cgroup2 none "$1/cgroup" && find "$1/cgroup/$2" -depth -type d -exec rmdir {} ';'
"#;

/// A systemd that has nothing to do but one unit, `retry.service`.
struct Systemd {
    directory: tempfile::TempDir,
    name: String,
    unshare: ChildGuard,
}

impl Systemd {
    fn boot(ns: &Netns, unit: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let units = directory.path().join("units");
        fs::create_dir(&units).expect("a directory");
        fs::write(units.join("default.target"), "[Unit]\nDescription=test\n").expect("written");
        let log = directory.path().join("log");
        let unit = format!("{unit}\nStandardOutput=append:{0}\nStandardError=append:{0}\n", log.display());
        fs::write(units.join("retry.service"), unit).expect("written");
        // Not by a process id: tests that run at the same time have namespaces of processes of their own.
        let name = format!("retry-test{}", directory.path().file_name().unwrap_or_default().display());
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-ec", BOOT, "sh"]).arg(directory.path()).args([&name, SYSTEMD]);
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        let unshare = ns.spawn(command).expect("a process");
        let systemd = Self { directory, name, unshare };
        eventually("systemd is up", || {
            systemd.control(&["is-system-running"]).is_some_and(|out| out.contains("running"))
        });
        systemd
    }

    /// Its process id out here.
    fn pid(&self) -> Option<String> {
        let parent = self.unshare.id();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
        children.split_whitespace().next().map(str::to_owned)
    }

    /// Runs systemctl where it belongs.
    fn control(&self, arguments: &[&str]) -> Option<String> {
        let pid = self.pid()?;
        let mut argv = vec!["nsenter", "-t", &pid, "-m", "-p", "-C", "systemctl"];
        argv.extend(arguments);
        host_command(&argv).ok()
    }

    fn value(&self, property: &str) -> String {
        let shown = self.control(&["show", "-p", property, "--value", "retry.service"]);
        shown.unwrap_or_default().trim().to_owned()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Until this many daemons' memberships were kept.
    fn await_kept(&self, daemons: usize) {
        eventually("memberships are kept", || {
            self.log().matches("the service manager keeps memberships").count() >= daemons
        });
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
        // Everything in its namespace of processes ends with it.
        let _ = self.unshare.signal(Signal::SIGKILL);
        let directory = self.directory.path();
        let removed = || {
            let mut remove = Command::new("unshare");
            remove.args(["-m", "sh", "-ec", REMOVE, "sh"]).arg(directory).arg(&self.name);
            remove.stderr(std::process::Stdio::null()).status().is_ok_and(|status| status.success())
        };
        if !(0..50).any(|_| {
            removed() || {
                std::thread::sleep(Duration::from_millis(20));
                false
            }
        }) {
            eprintln!("the control group {} is left behind", self.name);
        }
    }
}

#[test]
fn a_unit_that_is_restarted_or_killed_leaves_no_group() {
    const NAME: &str = "a_unit_that_is_restarted_or_killed_leaves_no_group";
    if !is_root(NAME) {
        return;
    }
    if !Path::new(SYSTEMD).exists() {
        println!("SKIP {NAME}: needs systemd (Debian package systemd)");
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let flags = flags("off", &["-log-level", "debug"]).join(" ");
    // $FDSTORE as systemd 254 sets it by itself.
    let unit = format!(
        "[Unit]\nDefaultDependencies=no\n[Service]\nNotifyAccess=main\nFileDescriptorStoreMax=64\nEnvironment=FDSTORE=64\n\
         Restart=always\nRestartSec=100ms\nExecStart={} {flags}",
        binary().display()
    );
    let systemd = Systemd::boot(&endpoint.ns, &unit);
    systemd.control(&["start", "retry.service"]).expect("it starts");
    systemd.await_kept(1);
    let kept = systemd.value("NFileDescriptorStore");
    assert_ne!(kept, "0");
    let joined = members(&endpoint.ns, INTERFACE);
    assert!(joined.contains(&group(1)));
    std::thread::sleep(REPORTED);
    let capture = Capture::start_with(&endpoint.ns, INTERFACE, true).expect("a capture");

    systemd.control(&["restart", "retry.service"]).expect("it restarts");
    systemd.await_kept(2);
    systemd.control(&["kill", "-s", "KILL", "retry.service"]).expect("it is killed");
    systemd.await_kept(3);
    std::thread::sleep(REPORTED);
    assert_eq!(leaves(&capture), BTreeSet::new());
    assert_eq!(members(&endpoint.ns, INTERFACE), joined);
    eventually("only the last set is kept", || systemd.value("NFileDescriptorStore") == kept);
    // A service that is stopped is not to come back.
    systemd.control(&["stop", "retry.service"]).expect("it stops");
    assert!(!members(&endpoint.ns, INTERFACE).contains(&group(1)));
    eventually("the leave is reported", || leaves(&capture).contains(&(group(1), Vec::new())));
}

/// `systemctl reload`, by the lines of the packages' unit.
#[test]
fn a_unit_that_is_reloaded_reads_its_variables_again() {
    const NAME: &str = "a_unit_that_is_reloaded_reads_its_variables_again";
    const UNIT: &str = include_str!("../../../deploy/package/retry-endpoint.service");
    const FILE: &str = "/etc/default/retry-endpoint";
    if !is_root(NAME) {
        return;
    }
    if !Path::new(SYSTEMD).exists() {
        println!("SKIP {NAME}: needs systemd (Debian package systemd)");
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("variables");
    fs::write(&file, "RL_IP_BURST=11\n").expect("a file");
    let flags = flags("off", &[]).join(" ");
    let of_package: Vec<String> = UNIT
        .lines()
        .filter(|line| {
            ["Type=", "EnvironmentFile=", "ExecReload=", "Environment=ENV_FILE="]
                .iter()
                .any(|key| line.starts_with(key))
        })
        .map(|line| line.replace(FILE, &file.display().to_string()))
        .collect();
    assert_eq!(of_package.len(), 4, "{of_package:?}");
    let unit = format!(
        "[Unit]\nDefaultDependencies=no\n[Service]\nNotifyAccess=main\n{}\nExecStart={} {flags}",
        of_package.join("\n"),
        binary().display()
    );
    let systemd = Systemd::boot(&endpoint.ns, &unit);
    systemd.control(&["start", "retry.service"]).expect("it starts");
    let pid = systemd.value("MainPID");
    let reloads = |result: &str| {
        let (_, text) = http::get(&endpoint.ns, METRICS.parse().expect("an address"), "/metrics").expect("a scrape");
        Metrics::parse(&text).count("bre_config_reloads_total", &[("result", result)])
    };
    // The variable has left the file, and is still in the daemon's environment.
    for (text, result, told) in [
        ("RL_IP_BURST=12\nLISTEN_PORT=9009\n", "ok", "-listen-port 9001 -> 9009"),
        ("RL_IP_BURST=0x\n", "refused", "RL_IP_BURST in "),
        ("# RL_IP_BURST=12\n", "ok", "-rl-ip-burst 12 -> 10"),
    ] {
        let before = reloads(result);
        fs::write(&file, text).expect("a file");
        systemd.control(&["reload", "retry.service"]).expect("it reloads");
        eventually("it has read them", || reloads(result) > before);
        assert!(systemd.log().contains(told), "{told}: {}", systemd.log());
        eventually("it runs", || systemd.value("SubState") == "running");
    }
    assert_eq!(systemd.value("MainPID"), pid, "no restart");
    systemd.control(&["stop", "retry.service"]).expect("it stops");
}
