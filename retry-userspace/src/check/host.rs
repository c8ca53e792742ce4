//! The host: kernel, rights, file systems, memory, limits, firewall.

use std::fs;
use std::path::Path;
use std::process::Command;

use procfs::process::Process;
use retry_common::group;
use serde_json::Value;

use super::finding::Finding;
use crate::datapath::inspect;
use crate::ingress::joins::RECEIVE_BUFFER;
use crate::metrics::Host;
use crate::run::memory;
use crate::settings::{Settings, XdpMode};

/// The first kernel whose verifier takes the programs.
const KERNEL: (u32, u32) = (6, 1);
/// Bytes of option memory that the kernel takes per group and socket (`struct ipv6_mc_socklist` and its list, measured: 2,340
/// joins fit 128 KiB).
const JOIN_BYTES: u64 = 56;

/// A capability (linux/capability.h) and what for.
struct Capability {
    name: &'static str,
    bit: u32,
}

const NET_ADMIN: Capability = Capability { name: "CAP_NET_ADMIN", bit: 12 };
const NET_RAW: Capability = Capability { name: "CAP_NET_RAW", bit: 13 };
const SYS_ADMIN: Capability = Capability { name: "CAP_SYS_ADMIN", bit: 21 };
const PERFMON: Capability = Capability { name: "CAP_PERFMON", bit: 38 };
const BPF: Capability = Capability { name: "CAP_BPF", bit: 39 };

/// Everything about the host.
pub(super) fn look(settings: &Settings) -> Vec<Finding> {
    let host = Host::here(&settings.telemetry.instance);
    let held = held();
    let mut findings = vec![kernel(settings, &host.kernel)];
    if settings.xdp.mode != XdpMode::Off {
        findings.push(btf(Path::new("/sys/kernel/btf/vmlinux")));
    }
    findings.push(capabilities(settings, held));
    if settings.xdp.mode != XdpMode::Off {
        findings.push(bpffs(settings, held));
    }
    findings.push(match memory::check(settings) {
        Ok(()) => Finding::green("memory", format!("{} for the frame log is there", mib(settings))),
        Err(error) => {
            Finding::red("memory", error.to_string(), "set smaller sizes, or give the host or its cgroup more")
                .see("The cache is shorter than the TTL")
        }
    });
    findings.extend([optmem(settings), msf(settings), receive_buffer(held)]);
    if settings.xdp.mode != XdpMode::Off {
        findings.push(firewall());
    }
    findings
}

/// What cannot be had for XDP: the daemon does not start, or goes on without it.
pub(super) fn no_xdp(settings: &Settings, name: &'static str, found: String, advice: &str) -> Finding {
    let finding = if settings.xdp.mode == XdpMode::Auto {
        Finding::yellow(name, format!("{found}: with -xdp auto the daemon's socket answers"), advice)
    } else {
        Finding::red(name, found, advice)
    };
    finding.see("XDP fell back")
}

fn kernel(settings: &Settings, release: &str) -> Finding {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = numbers.next().zip(numbers.next());
    match version {
        Some(version) if version >= KERNEL => Finding::green("kernel", format!("Linux {release}")),
        None => Finding::unknown("kernel", format!("{release:?} is no version"), "Linux 6.1 or later is needed"),
        Some(_) if settings.xdp.mode == XdpMode::Off => Finding::yellow(
            "kernel",
            format!("Linux {release}: nothing before 6.1 is tested"),
            "install Linux 6.1 or later",
        ),
        Some(_) => {
            no_xdp(settings, "kernel", format!("Linux {release} is older than 6.1"), "install Linux 6.1 or later")
        }
    }
}

fn btf(file: &Path) -> Finding {
    if file.exists() {
        Finding::green("btf", "the kernel has its types at hand")
    } else {
        Finding::yellow(
            "btf",
            format!("{} is missing", file.display()),
            "a kernel with CONFIG_DEBUG_INFO_BTF, and /sys mounted: else bpftool shows maps without names of fields",
        )
    }
}

/// Effective capabilities of this process, as bits; none when they cannot be read.
fn held() -> u64 {
    Process::myself().and_then(|process| process.status()).map_or(0, |status| status.capeff)
}

fn has(held: u64, wanted: &Capability) -> bool {
    let is_held = |bit: u32| held & (1 << bit) != 0;
    // Before CAP_BPF and CAP_PERFMON there was CAP_SYS_ADMIN alone, and it still has both.
    is_held(wanted.bit) || (wanted.bit >= PERFMON.bit && is_held(SYS_ADMIN.bit))
}

fn capabilities(settings: &Settings, held: u64) -> Finding {
    const NAME: &str = "capabilities";
    let missing = |all: &[&'static Capability]| -> Vec<&'static str> {
        all.iter().filter(|one| !has(held, one)).map(|one| one.name).collect()
    };
    let xdp: &[&'static Capability] =
        if settings.xdp.mode == XdpMode::Off { &[] } else { &[&NET_ADMIN, &BPF, &PERFMON] };
    let for_xdp = missing(xdp);
    if !for_xdp.is_empty() {
        let found = format!("{} missing for XDP", for_xdp.join(", "));
        return no_xdp(settings, NAME, found, "start as root, or grant them (AmbientCapabilities= of systemd)");
    }
    let mut costs = Vec::new();
    if !settings.ingress.rejoin_interval.is_zero() && settings.ingress.join && !has(held, &NET_RAW) {
        costs.push("CAP_NET_RAW missing: memberships are not said again (-mc-rejoin-interval)");
    }
    if !has(held, &NET_ADMIN) {
        costs.push(
            "CAP_NET_ADMIN missing: receive buffers are limited by net.core.rmem_max, neighbours resolve by a datagram",
        );
    }
    if costs.is_empty() {
        Finding::green(NAME, "all that are needed are held")
    } else {
        Finding::yellow(NAME, costs.join("; "), "grant them (AmbientCapabilities= of systemd)")
    }
}

fn bpffs(settings: &Settings, held: u64) -> Finding {
    const NAME: &str = "bpffs";
    let root = settings.xdp.bpffs.display();
    match inspect::can_pin(&settings.xdp.bpffs) {
        Ok(true) => Finding::green(NAME, format!("{root} is on bpffs, or can be made there")),
        Ok(false) if has(held, &SYS_ADMIN) => Finding::yellow(
            NAME,
            "no bpffs at /sys/fs/bpf: the daemon mounts it, and in a container it goes with the container",
            "mount -t bpf bpffs /sys/fs/bpf, on the host",
        ),
        Ok(false) => no_xdp(
            settings,
            NAME,
            "no bpffs at /sys/fs/bpf, and no right to mount it (CAP_SYS_ADMIN)".to_owned(),
            "mount -t bpf bpffs /sys/fs/bpf, on the host",
        ),
        Err(error) => {
            no_xdp(settings, NAME, error.to_string(), "mount -t bpf bpffs /sys/fs/bpf, or name another -bpffs")
        }
    }
}

fn mib(settings: &Settings) -> String {
    format!("{} MiB", settings.cache.memory.saturating_add(settings.cache.memory_long) >> 20)
}

/// A number of /proc/sys, of this network namespace where there is one per namespace.
fn sysctl(name: &str) -> Option<u64> {
    fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()?.trim().parse().ok()
}

fn optmem(settings: &Settings) -> Finding {
    const NAME: &str = "optmem_max";
    let ingress = &settings.ingress;
    let groups = group::joined(ingress.shard_bits, ingress.subtree_data, ingress.beef).count() as u64;
    match sysctl("net.core.optmem_max") {
        _ if !ingress.join => Finding::green(NAME, "no group is joined (-mc-join-enabled=false)"),
        None => Finding::unknown(NAME, "net.core.optmem_max cannot be read", "mount /proc"),
        Some(bytes) if bytes < JOIN_BYTES => Finding::red(
            NAME,
            format!("net.core.optmem_max is {bytes} bytes: no socket can join a group"),
            "sysctl -w net.core.optmem_max=131072",
        ),
        Some(bytes) if bytes / JOIN_BYTES < groups => Finding::yellow(
            NAME,
            format!(
                "net.core.optmem_max is {bytes} bytes: {groups} groups take {} sockets, and the kernel walks them per datagram",
                groups.div_ceil(bytes / JOIN_BYTES)
            ),
            format!("sysctl -w net.core.optmem_max={}", (groups * JOIN_BYTES).next_power_of_two().max(131_072)),
        )
        .see("The receive buffer overflows"),
        Some(bytes) => Finding::green(NAME, format!("{bytes} bytes: {groups} groups fit one socket")),
    }
}

fn msf(settings: &Settings) -> Finding {
    const NAME: &str = "mld_max_msf";
    let ssm = &settings.ssm;
    let named = ssm.publishers.len().max(ssm.beacons.len()).max(ssm.manifests.len());
    match sysctl("net.ipv6.mld_max_msf") {
        _ if named == 0 => Finding::green(NAME, "no sources are named"),
        None => Finding::unknown(NAME, "net.ipv6.mld_max_msf cannot be read", "mount /proc"),
        Some(most) if most < named as u64 => Finding::yellow(
            NAME,
            format!("net.ipv6.mld_max_msf is {most}: {named} named sources take several sets of sockets"),
            format!("sysctl -w net.ipv6.mld_max_msf={}", named.next_power_of_two().max(64)),
        )
        .see("A source is not heard"),
        Some(most) => Finding::green(NAME, format!("{most}: the {named} named sources fit, manifests may name more")),
    }
}

fn receive_buffer(held: u64) -> Finding {
    const NAME: &str = "rmem_max";
    let wanted = RECEIVE_BUFFER as u64;
    if has(held, &NET_ADMIN) {
        return Finding::green(NAME, format!("with CAP_NET_ADMIN sockets take {} MiB whatever it is", wanted >> 20));
    }
    match sysctl("net.core.rmem_max") {
        None => Finding::unknown(
            NAME,
            "net.core.rmem_max cannot be read in this network namespace",
            "read it in the host's: sockets ask for 16 MiB",
        ),
        Some(bytes) if bytes < wanted => Finding::yellow(
            NAME,
            format!("net.core.rmem_max is {bytes} bytes, sockets ask for {wanted}: bursts overflow them"),
            format!("sysctl -w net.core.rmem_max={wanted}, or grant CAP_NET_ADMIN"),
        )
        .see("The receive buffer overflows"),
        Some(bytes) => Finding::green(NAME, format!("{bytes} bytes")),
    }
}

fn firewall() -> Finding {
    const NAME: &str = "firewall";
    const BYPASS: &str = "XDP answers NACKs before any rule of the host sees them";
    let listed = Command::new("nft").args(["-j", "list", "ruleset"]).output();
    let rules = listed.ok().filter(|output| output.status.success());
    let rules = rules.and_then(|output| serde_json::from_slice::<Value>(&output.stdout).ok());
    match rules.as_ref().map(arriving) {
        None => Finding::unknown(
            NAME,
            format!("{BYPASS}; which rules there are cannot be told"),
            "install nftables and run this as root; limit askers by -rl-ip-rate, or filter before this host",
        ),
        Some(0) => Finding::green(NAME, "no rule of nftables that XDP would bypass"),
        Some(count) => Finding::yellow(
            NAME,
            format!("{BYPASS}: {count} rules on arriving packets do not count for them"),
            "limit askers by -rl-ip-rate, filter before this host, or use -xdp off",
        )
        .see("Before you begin"),
    }
}

/// Rules in base chains that arriving packets of IPv6 meet.
fn arriving(ruleset: &Value) -> usize {
    let items = ruleset["nftables"].as_array().map_or(&[][..], Vec::as_slice);
    let id = |one: &Value| [&one["family"], &one["table"], &one["chain"]].map(Value::to_string);
    let chains: Vec<[String; 3]> = items
        .iter()
        .filter_map(|item| item.get("chain"))
        .filter(|chain| matches!(chain["hook"].as_str(), Some("ingress" | "prerouting" | "input")))
        .filter(|chain| chain["family"] != "ip" && chain["family"] != "arp")
        .map(|chain| [&chain["family"], &chain["table"], &chain["name"]].map(Value::to_string))
        .collect();
    items.iter().filter_map(|item| item.get("rule")).filter(|rule| chains.contains(&id(rule))).count()
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::finding::Level;
    use super::*;
    use crate::settings::Stop;

    pub(in super::super) fn settings(flags: &[&str]) -> Settings {
        let args = std::iter::once("retry-endpoint").chain(flags.iter().copied()).map(Into::into);
        let none = |_: &str| None::<String>;
        Settings::from_args_and_env(args, none).unwrap_or_else(|stop: Stop| panic!("{stop}"))
    }

    #[test]
    fn old_kernels_are_told() {
        let level = |mode: &str, release: &str| kernel(&settings(&["-xdp", mode]), release).level;
        assert_eq!(level("native", "6.1.0-9-amd64"), Level::Green);
        assert_eq!(level("native", "10.0"), Level::Green);
        assert_eq!(level("native", "5.15.0"), Level::Red);
        assert_eq!(level("auto", "6.0.12"), Level::Yellow);
        assert_eq!(level("off", "5.15.0"), Level::Yellow);
        assert_eq!(level("native", "unknown"), Level::Unknown);
    }

    #[test]
    fn capabilities_are_judged_by_what_needs_them() {
        let bits = |all: &[&Capability]| all.iter().map(|one| 1_u64 << one.bit).sum::<u64>();
        let level = |mode: &str, held| capabilities(&settings(&["-xdp", mode]), held).level;
        let all = bits(&[&NET_ADMIN, &NET_RAW, &BPF, &PERFMON]);
        assert_eq!(level("native", all), Level::Green);
        assert_eq!(level("native", bits(&[&NET_ADMIN, &NET_RAW, &SYS_ADMIN])), Level::Green);
        assert_eq!(level("native", all & !bits(&[&PERFMON])), Level::Red);
        assert_eq!(level("auto", all & !bits(&[&BPF])), Level::Yellow);
        assert_eq!(level("native", all & !bits(&[&NET_RAW])), Level::Yellow);
        assert_eq!(level("off", bits(&[&NET_ADMIN, &NET_RAW])), Level::Green);
        assert_eq!(level("off", bits(&[&NET_RAW])), Level::Yellow);
    }

    #[test]
    fn rules_count_where_arriving_packets_meet_them() {
        let chain = |family: &str, name: &str, hook: Option<&str>| serde_json::json!({ "chain": { "family": family, "table": "t", "name": name, "hook": hook } });
        let rule = |family: &str, chain: &str| serde_json::json!({ "rule": { "family": family, "table": "t", "chain": chain } });
        let all = serde_json::json!({ "nftables": [
            chain("inet", "in", Some("input")), chain("inet", "out", Some("output")), chain("inet", "sub", None),
            chain("ip", "in", Some("input")), chain("netdev", "early", Some("ingress")),
            rule("inet", "in"), rule("inet", "in"), rule("inet", "out"), rule("inet", "sub"), rule("ip", "in"),
            rule("netdev", "early"),
        ]});
        assert_eq!(arriving(&all), 3);
        assert_eq!(arriving(&serde_json::json!({})), 0);
    }
}
