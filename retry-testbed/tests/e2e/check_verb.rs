//! `retry-endpoint check`: what would keep a daemon from its work is told before it starts, and no longer once it is mended. Each
//! fault here is a real one, on a host of its own.

use std::net::{SocketAddrV6, UdpSocket};
use std::process::{Command, Output};

use aya::programs::XdpMode;
use retry_testbed::daemon::{Daemon, mount_bpffs};
use retry_testbed::net::fabric::{Fabric, Host, INTERFACE};
use retry_testbed::scene::{Pins, binary, flags, is_root, two_hosts};
use serde_json::Value;

use super::changes::{stranger, xdp};

/// Small rings and no variables of the machine.
const SMALL: [&str; 4] = ["-cache-memory", "16m", "-cache-memory-long", "16m"];

/// What the verb says.
#[derive(Debug)]
struct Told {
    code: Option<i32>,
    checks: Vec<Value>,
}

impl Told {
    fn of(output: &Output) -> Self {
        let told = serde_json::from_slice(&output.stdout).map_err(|error| (error, output));
        let told: Value = told.expect("one JSON object");
        let worst = match output.status.code() {
            Some(0) => "green",
            Some(1) => "yellow",
            _ => "red",
        };
        assert_eq!(told["worst"], worst, "{told:#}");
        Self { code: output.status.code(), checks: told["checks"].as_array().expect("a list").clone() }
    }

    /// The only line of this name.
    fn line(&self, name: &str) -> &Value {
        let found: Vec<&Value> = self.checks.iter().filter(|check| check["name"] == name).collect();
        assert_eq!(found.len(), 1, "{name}: {self:#?}");
        found[0]
    }

    /// The line of this name has this level, these words, and, unless it is green, something to do.
    fn says(&self, name: &str, level: &str, words: &str) {
        let line = self.line(name);
        let found = line["found"].as_str().expect("text");
        assert!(line["level"] == level && found.contains(words), "{name} {level} {words:?}: {line:#}\n{self:#?}");
        assert_eq!(line["do"] == "", level == "green", "{line:#}");
        assert!(!matches!(level, "green" | "unknown") || line["runbook"].is_null(), "{line:#}");
    }
}

/// The tests have a bpffs of their own over the host's.
const NO_BPFFS: &str = "while mountpoint -q /sys/fs/bpf; do umount -l /sys/fs/bpf; done";

/// Runs the verb by a command that starts with these words, on a host.
fn run_by(host: &Host, words: &[&str], more: &[&str]) -> Output {
    let binary = binary();
    let all: Vec<&str> = words.iter().copied().chain([binary.to_str().expect("a path"), "check", "-json"]).collect();
    let mut command = host.ns.command(all[0]).expect("a command");
    command.args(&all[1..]).args(SMALL).args(more);
    command.output().expect("it runs")
}

fn check_by(host: &Host, words: &[&str], more: &[&str]) -> Told {
    Told::of(&run_by(host, words, more))
}

fn check(host: &Host, more: &[&str]) -> Told {
    check_by(host, &[], more)
}

/// A fabric whose endpoint has nothing that could be better; the names of tests that need it.
fn fabric(name: &str) -> Option<Fabric> {
    if !is_root(name) {
        return None;
    }
    mount_bpffs().expect("bpffs");
    Some(Fabric::flat(1500).expect("a fabric"))
}

fn ip(host: &Host, words: &str) {
    let all: Vec<&str> = ["ip"].into_iter().chain(words.split(' ')).collect();
    host.ns.run(&all).expect("ip does it");
}

/// Nothing is wrong: nothing is yellow. Nothing was attached, joined or pinned by the look.
#[test]
fn a_host_that_is_ready_is_green() {
    let Some(fabric) = fabric("a_host_that_is_ready_is_green") else { return };
    let (endpoint, client) = two_hosts(&fabric);
    let pins = Pins::new("check");
    let before = endpoint.ns.run(&["ip", "maddr", "show"]).expect("memberships");
    let told = check(endpoint, &["-xdp", "native", "-bpffs", pins.name()]);
    assert_eq!(told.code, Some(0), "{told:#?}");
    told.says("xdp_load", "green", "takes the programs");
    told.says("xdp_driver", "green", "driver veth, MTU 1500: native XDP");
    told.says("xdp_program", "green", "none is attached");
    told.says("fabric", "green", &endpoint.addr.to_string());
    told.says("optmem_max", "green", "5 groups fit");
    told.says("redis", "green", "not used");
    told.says("mld_querier", "unknown", "is not told here");
    assert_eq!(endpoint.ns.run(&["ip", "maddr", "show"]).expect("memberships"), before);
    assert!(!std::path::Path::new(pins.name()).exists(), "nothing is pinned");

    // With a daemon: its program and its port are no strangers; and once it is gone, its program still is not.
    let flags = flags("native", &["-bpffs", pins.name()]);
    let mut daemon = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");
    daemon.leave();
    let told = check(endpoint, &["-xdp", "native", "-bpffs", pins.name()]);
    told.says("xdp_program", "green", "of a daemon that runs");
    told.says("nack_port", "green", "by a daemon that runs");
    assert_eq!(told.code, Some(0), "{told:#?}");
    // Upstream of another.
    let upstream = format!("[{}]:9300", endpoint.addr);
    let more = ["-proxy-enabled", "-upstream-retry-endpoints", &upstream];
    check(client, &more).says("upstream", "green", &upstream);
    assert!(daemon.end().expect("it ends").success());
    let told = check(endpoint, &["-xdp", "native", "-bpffs", pins.name()]);
    told.says("xdp_program", "green", "of an earlier daemon");
    daemon.run("detach", &[]).expect("it runs");
    let told = check(client, &more);
    told.says("upstream", "yellow", "unreachable (ICMP)");
    assert_eq!(told.code, Some(1), "{told:#?}");
}

/// Interfaces: address, MTU, a foreign program, a peer that takes no redirects, the port, the link's switch.
#[test]
fn faults_of_the_interface_are_told_until_they_end() {
    let Some(fabric) = fabric("faults_of_the_interface_are_told_until_they_end") else { return };
    let (endpoint, client) = two_hosts(&fabric);
    let native = ["-xdp", "native"];
    let address = format!("{}/64 dev {INTERFACE}", endpoint.addr);
    ip(endpoint, &format!("addr del {address}"));
    let told = check(endpoint, &native);
    told.says("fabric", "red", "no global unicast IPv6 address");
    assert_eq!(told.code, Some(2));
    ip(endpoint, &format!("addr add {address} nodad"));
    check(endpoint, &native).says("fabric", "green", "takes NACKs");
    check(endpoint, &["-mc-iface", "nowhere0"]).says("fabric", "red", "nowhere0");

    let mut other = stranger();
    let program = xdp(&mut other);
    let index = endpoint.ifindex;
    endpoint.ns.enter(|| program.attach_to_if_index(index, XdpMode::Driver)).expect("it is attached");
    check(endpoint, &native).says("xdp_program", "red", "of another owner");
    let told = check(endpoint, &["-xdp", "auto"]);
    told.says("xdp_program", "yellow", "the daemon's socket answers");
    assert_eq!(told.code, Some(1), "{told:#?}");
    drop(other);
    check(endpoint, &native).says("xdp_program", "green", "none");

    for host in [endpoint, client] {
        ip(host, &format!("link set {INTERFACE} mtu 9000"));
    }
    check(endpoint, &native).says("xdp_driver", "green", "MTU 9000: native XDP, packets of several buffers");
    check(endpoint, &["-xdp", "skb"]).says("xdp_driver", "green", "MTU 9000");
    ip(client, &format!("link set {INTERFACE} mtu 1400"));
    ip(endpoint, &format!("link set {INTERFACE} mtu 1500"));
    check(endpoint, &native).says("fabric", "yellow", "takes 1400 bytes of 1500");
    ip(client, &format!("link set {INTERFACE} mtu 1500"));
    check(endpoint, &native).says("fabric", "green", "takes NACKs");
    check(endpoint, &native).says("xdp_driver", "green", "MTU 1500");

    client.ns.run(&["ethtool", "-K", INTERFACE, "gro", "off"]).expect("it is taken");
    check(endpoint, &native).says("xdp_driver", "yellow", "takes no redirected packets");
    client.ns.run(&["ethtool", "-K", INTERFACE, "gro", "on"]).expect("it is taken");
    check(endpoint, &native).says("xdp_driver", "green", "redirects");

    let bind = || UdpSocket::bind(SocketAddrV6::new(endpoint.addr, 9300, 0, 0)).expect("bound");
    let taken = endpoint.ns.enter(bind);
    check(endpoint, &native).says("nack_port", "red", "bound by another program");
    drop(taken);
    check(endpoint, &native).says("nack_port", "green", "is free");
}

/// A switch that snoops MLD where no router asks.
#[test]
fn a_link_without_a_querier_is_told() {
    let Some(fabric) = fabric("a_link_without_a_querier_is_told") else { return };
    let (endpoint, client) = two_hosts(&fabric);
    ip(endpoint, "link add br0 type bridge mcast_snooping 1 mcast_querier 0");
    let off = ["-xdp", "off"];
    ip(endpoint, &format!("link set {INTERFACE} master br0"));
    check(endpoint, &off).says("mld_querier", "yellow", "bridge br0 snoops MLD and does not ask");
    ip(endpoint, "link set br0 type bridge mcast_querier 1");
    check(endpoint, &off).says("mld_querier", "green", "bridge br0 asks itself");
    ip(endpoint, "link set br0 type bridge mcast_querier 0 mcast_snooping 0");
    check(endpoint, &off).says("mld_querier", "green", "does not snoop");
    // The bridge itself as the fabric interface.
    ip(endpoint, "link set br0 type bridge mcast_snooping 1");
    ip(endpoint, "link set br0 up");
    ip(endpoint, "addr add fd10::99/64 dev br0 nodad");
    let on_bridge = ["-xdp", "off", "-mc-iface", "br0", "-egress-iface", "br0"];
    check(endpoint, &on_bridge).says("mld_querier", "yellow", "bridge br0 snoops");
    ip(endpoint, "link del br0");

    // Heard, or not.
    let listen = |time| check(endpoint, &["-listen", time, "-xdp", "off"]);
    listen("500ms").says("mld_querier", "yellow", "no MLD query within 0 s");
    ip(client, "link add br1 type bridge mcast_snooping 1 mcast_querier 1 mcast_startup_query_interval 50");
    ip(client, &format!("link set {INTERFACE} master br1"));
    ip(client, "link set br1 up");
    listen("20s").says("mld_querier", "green", "asks for memberships");
}

/// The host: rights, file systems, memory, limits, firewall.
#[test]
fn faults_of_the_host_are_told_until_they_end() {
    let Some(fabric) = fabric("faults_of_the_host_are_told_until_they_end") else { return };
    let (endpoint, _) = two_hosts(&fabric);
    let native = ["-xdp", "native"];
    let without = |capabilities: &str| format!("--bounding-set={capabilities}");
    let bpf = without("-bpf,-perfmon,-sys_admin");
    let told = check_by(endpoint, &["setpriv", &bpf], &native);
    told.says("capabilities", "red", "CAP_BPF, CAP_PERFMON missing for XDP");
    told.says("xdp_load", "red", "the kernel refused the program");
    let told = check_by(endpoint, &["setpriv", &bpf], &["-xdp", "auto"]);
    told.says("capabilities", "yellow", "the daemon's socket answers");
    let raw = without("-net_raw");
    check_by(endpoint, &["setpriv", &raw], &native).says("capabilities", "yellow", "CAP_NET_RAW");
    check(endpoint, &native).says("capabilities", "green", "are held");

    // In a mount namespace of its own, which ends with it.
    let mounted = |script: &str, words: &[&str]| {
        let script = format!("{script}; exec \"$@\"");
        let all = ["unshare", "-m", "sh", "-ec", &script, "sh"].into_iter().chain(words.iter().copied());
        check_by(endpoint, &all.collect::<Vec<_>>(), &native)
    };
    mounted("mount -t tmpfs none /sys/kernel/btf", &[]).says("btf", "yellow", "vmlinux is missing");
    mounted(NO_BPFFS, &[]).says("bpffs", "yellow", "the daemon mounts it");
    let no_mount = without("-sys_admin");
    mounted(NO_BPFFS, &["setpriv", &no_mount]).says("bpffs", "red", "no right to mount it");
    check(endpoint, &["-xdp", "native", "-bpffs", "/tmp/pins"]).says("bpffs", "red", "another file system");
    let told = mounted("mount -t tmpfs none /sys/fs/cgroup; echo 20971520 > /sys/fs/cgroup/memory.max", &[]);
    told.says("memory", "red", "/sys/fs/cgroup/memory.max leaves 20 MiB");
    let told = check(endpoint, &native);
    for name in ["btf", "bpffs", "memory"] {
        assert_eq!(told.line(name)["level"], "green", "{told:#?}");
    }
    check(endpoint, &["-cache-memory", "64g"]).says("memory", "red", "MemAvailable");

    endpoint.ns.sysctl("net/core/optmem_max", "200").expect("it is taken");
    check(endpoint, &native).says("optmem_max", "yellow", "5 groups take 2 sockets");
    endpoint.ns.sysctl("net/core/optmem_max", "40").expect("it is taken");
    check(endpoint, &native).says("optmem_max", "red", "no socket can join");
    endpoint.ns.sysctl("net/core/optmem_max", "131072").expect("it is taken");
    check(endpoint, &native).says("optmem_max", "green", "fit one socket");

    let table = "table inet own { chain in { type filter hook input priority 0; udp dport 9300 drop; }; }";
    endpoint.ns.feed(&["nft", "-f", "-"], table).expect("it is taken");
    check(endpoint, &native).says("firewall", "yellow", "1 rules on arriving packets");
    check_by(endpoint, &["env", "PATH=/nonexistent"], &native).says("firewall", "unknown", "cannot be told");
    endpoint.ns.run(&["nft", "delete", "table", "inet", "own"]).expect("it is taken");
    check(endpoint, &native).says("firewall", "green", "no rule");
}

/// What the kernel tells outside of namespaces only; the fabric interface does not matter there.
#[test]
fn limits_of_the_machine_are_told() {
    if !is_root("limits_of_the_machine_are_told") {
        return;
    }
    let publishers = |count: usize| (1..=count).map(|host| format!("fd10::{host:x}")).collect::<Vec<_>>().join(",");
    let run = |words: &[&str], more: &[&str]| {
        let binary = binary();
        let all: Vec<&str> = words.iter().copied().chain([binary.to_str().expect("a path")]).collect();
        let mut command = Command::new(all[0]);
        command.args(&all[1..]).args(["check", "-json", "-mc-iface", "nowhere0"]).args(SMALL).args(more);
        Told::of(&command.output().expect("it runs"))
    };
    let ssm = |count| {
        let names = publishers(count);
        run(&[], &["-source-mode", "ssm", "-ssm-publishers-static", &names, "-ssm-bootstrap-manifest", "fd10::1"])
    };
    ssm(2_000).says("mld_max_msf", "yellow", "2000 named sources");
    ssm(2).says("mld_max_msf", "green", "the 2 named sources fit");
    let most: u64 =
        std::fs::read_to_string("/proc/sys/net/core/rmem_max").expect("a sysctl").trim().parse().expect("bytes");
    let level = if most < 16 << 20 { "yellow" } else { "green" };
    run(&["setpriv", "--bounding-set=-net_admin"], &[]).says("rmem_max", level, &format!("{most} bytes"));
    run(&[], &[]).says("rmem_max", "green", "CAP_NET_ADMIN");
}

/// The text, and the settings alone.
#[test]
fn settings_are_checked_alone_and_together() {
    let Some(fabric) = fabric("settings_are_checked_alone_and_together") else { return };
    let (endpoint, _) = two_hosts(&fabric);
    let said = |words: &[&str]| {
        let output = endpoint.ns.command(binary()).expect("a command").args(words).output().expect("it runs");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    };
    let (code, text) = said(&["-check-config", "-shard-bits", "5", "-xdp=off"]);
    assert!(code == Some(0) && text.starts_with("the settings can stand: 2 set, "), "{text}");
    let (code, text) = said(&["-check-config", "-shard-bits", "13"]);
    assert!(code == Some(1) && text.contains("-shard-bits 13"), "{text}");
    assert_eq!(said(&["-check-config", "-no-such-setting"]).0, Some(2));

    let (code, text) = said(&["check", "-shard-bits", "13"]);
    assert!(code == Some(2) && text.starts_with("red      settings       -shard-bits 13"), "{text}");
    ip(endpoint, &format!("link set {INTERFACE} down"));
    let (code, text) = said(&["check", "-xdp", "off"]);
    assert!(code == Some(2) && text.contains("red      fabric         "), "{text}");
    assert!(text.contains("see docs/operations.md#the-daemon-is-not-ready"), "{text}");
    assert_eq!(said(&["check", "-listen", "soon"]).0, Some(2));
    assert!(said(&["check", "-help"]).1.contains("-listen TIME"));
}
