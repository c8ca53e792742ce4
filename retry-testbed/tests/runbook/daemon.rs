//! The daemon itself: the way round it, its upstreams, its log, and what is not there.

use std::net::UdpSocket;
use std::sync::Arc;

use aya::maps::{Array, Map, MapData};
use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{Fabric, NACK_PORT, group};
use retry_testbed::peers::answer::nack;
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{ask, asker, binary, counted, eventually, flags, frame, two_hosts};
use retry_userspace::parts::datapath::pinned::{PinnedLog, Words as _};

use super::sources::while_sending;
use crate::document::{Section, sections};

const FLOW: u64 = 0xdae;

sections! {
    "Before you begin" => begin: before_you_begin;
    "An upstream is lost" => upstream: an_upstream_is_lost;
    "The daemon is not ready" => not_ready: the_daemon_is_not_ready;
    "The frame log is damaged" => damaged: the_frame_log_is_damaged;
    "Restart and upgrade" => restart: restart_and_upgrade;
}

/// No fault: a daemon that works, frames of which XDP takes all, and a drain.
fn begin(section: &Section) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("retry.toml");
    std::fs::write(&file, "suppress-miss = false\n").expect("a file");
    let name = file.to_str().expect("UTF-8");
    let more =
        ["-admin-addr", "[::1]:9401", "-drain-timeout", "3s", "-fill", "kernel", "-instance", "here", "-config", name];
    let mut daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &more)).expect("a daemon");
    section.run(&endpoint.ns, "readyz").shows(&[r#""status":"ready""#, "native"]);
    let checked = section.run(&endpoint.ns, "retry-endpoint check");
    assert_eq!(checked.code, Some(0), "{checked:?}");
    checked.shows(&["green    xdp_program", "that of a daemon that runs"]);
    section.run(&endpoint.ns, "-check-config").shows(&["the settings can stand"]);
    section.run(&endpoint.ns, "grep '^bre_'").shows(&["bre_ready 1\n"]);
    let config = section.run(&endpoint.ns, "v1/config");
    config.shows(&["cache-memory", "drain-timeout"]);
    assert!(!config.out.contains("cache-ttl"), "what is the default stays out: {}", config.out);
    assert_eq!(section.run(&endpoint.ns, "loglevel").code, Some(0));
    std::fs::write(&file, "suppress-miss = true\nnack-port = 9399\n").expect("a file");
    let read = section.run(&endpoint.ns, "/v1/config\" | jq -c");
    read.shows(&[
        r#"{"from":"false","name":"suppress-miss","to":"true"}"#,
        r#"{"from":"9300","name":"nack-port","to":"9399"}"#,
    ]);
    section.run(&endpoint.ns, "-d '{").shows(&[r#"{"from":"10","name":"rl-ip-burst","to":"50"}"#]);
    section.run(&endpoint.ns, "after_restart").shows(&[r#""after_restart": "9399""#, "nack-port"]);
    section.run(&endpoint.ns, "^bre_config_").shows(&[r#"bre_config_reloads_total{result="ok"} 2"#, "last_success"]);
    // The next daemon of this test has the NACK port of the first.
    std::fs::write(&file, "suppress-miss = false\n").expect("a file");
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    // To a group that is joined, and to one that is not.
    let seen = while_sending(&[(&publish, group(0)), (&publish, group(9))], || {
        counted(&daemon, "bre_fill_kernel_frames_total", &[], 2);
        section.run_with(&endpoint.ns, "seen", &[("seen 10", "seen 1")])
    });
    seen.shows(&["fd10::2\tff05::b:9\t9001"]);
    let held = FrameKey::new(0x0123_4567_89ab_cdef, 42);
    publish.send(group(0), &frame(held, 300, 1)).expect("a frame leaves");
    let here = endpoint.addr.to_string();
    eventually("the frame", || section.run_with(&client.ns, " nack ", &[("fd10::20", &here)]).code == Some(0));
    section.run_with(&client.ns, " nack ", &[("fd10::20", &here)]).shows(&["ACK  ", "frame      by multicast", "ok: "]);
    assert_eq!(seen.out.lines().count(), 1, "what XDP takes is not seen: {}", seen.out);
    section.run(&endpoint.ns, "members");
    section.run(&endpoint.ns, "v1/drain");
    section.run(&endpoint.ns, "readyz").shows(&["draining"]);
    assert!(daemon.wait().expect("it ends by itself").success());
    drop(daemon);
    let _again = Daemon::start(&binary(), &endpoint.ns, &flags("native", &more)).expect("a daemon");
    section.run(&endpoint.ns, "readyz").shows(&[r#""status":"ready""#]);
    let here = endpoint.addr.to_string();
    let probe = section.run_with(&client.ns, "probe", &[("fd10::20", &here)]);
    assert_eq!(probe.code, Some(0), "{probe:?}");
    probe.shows(&["ok"]);
}

/// No program takes NACKs there, then one that says nothing, then an endpoint.
fn upstream(section: &Section) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let there = client.nack_address().to_string();
    let more = [
        "-proxy-enabled",
        "-upstream-retry-endpoints",
        &there,
        "-proxy-timeout",
        "100ms",
        "-proxy-retry-policy",
        "none",
        "-fill",
        "kernel",
    ];
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &more)).expect("a daemon");
    let examples = [("[fd20::20]:9300", there.as_str()), ("-count 20", "-count 3")];
    let probe = |words: &str| {
        let said = section.run_with(&endpoint.ns, "probe", &examples);
        said.shows(&[words]);
        said.code
    };
    // Of as many flows: the numbers ahead of one are asked for one at a time.
    let missed = |flows: std::ops::Range<u64>| {
        let socket = asker(client);
        for flow in flows {
            assert_eq!(ask(&socket, endpoint.nack_address(), &nack(FrameKey::new(FLOW + flow, 1)), 1).len(), 1);
        }
    };
    missed(1..6);
    counted(&daemon, "bre_proxy_failed_total", &[], 5);
    eventually("it counts as lost", || {
        let shown = section.run(&endpoint.ns, "bre_(upstream");
        shown.out.lines().any(|line| line.starts_with("bre_upstream_up{") && line.ends_with(" 0"))
    });
    assert_ne!(probe("unreachable (ICMP)"), Some(0));
    let silent = client.ns.enter(|| UdpSocket::bind((client.addr, NACK_PORT))).expect("a socket");
    assert_ne!(probe("no answer"), Some(0));
    missed(6..9);
    counted(&daemon, "bre_proxy_failed_total", &[], 8);
    drop(silent);
    let _up = Daemon::start(&binary(), &client.ns, &flags("native", &[])).expect("an upstream");
    assert_eq!(probe("ok"), Some(0));
}

/// Its interface is down.
fn not_ready(section: &Section) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let _daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &["-fill", "kernel"])).expect("a daemon");
    endpoint.ns.run(&["ip", "link", "set", "eth0", "down"]).expect("it goes down");
    eventually("the reason", || section.run(&endpoint.ns, "readyz").out.contains("is down"));
    section.run(&endpoint.ns, "readyz").shows(&["not_ready"]);
    section.run(&endpoint.ns, "ip -d link").shows(&["state DOWN"]);
    let checked = section.run(&endpoint.ns, "retry-endpoint check");
    assert_eq!(checked.code, Some(2), "{checked:?}");
    checked.shows(&["red      fabric", "#the-daemon-is-not-ready"]);
    for key in ["accept_dad", "dad_transmits"] {
        endpoint.ns.sysctl(&format!("net/ipv6/conf/eth0/{key}"), "1").expect("a sysctl");
    }
    section.run(&endpoint.ns, "ip link set dev eth0 up");
    let address = endpoint.addr.to_string();
    section.run_with(&endpoint.ns, "ip -6 addr add", &[("ADDRESS", &address)]);
    let tentative = || section.run(&endpoint.ns, "tentative").out;
    assert!(tentative().contains(&address));
    eventually("the end of the detection", || !tentative().contains(&address));
    eventually("ready again", || section.run(&endpoint.ns, "readyz").out.contains("\"ready\""));
}

/// A key has two entries.
fn damaged(section: &Section) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let settings = flags("native", &["-fill", "kernel"]);
    let mut daemon = Daemon::start(&binary(), &endpoint.ns, &settings).expect("a daemon");
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    for seq_num in 1..=20 {
        publish.send(group(0), &frame(FrameKey::new(FLOW, seq_num), 300, 1)).expect("a frame leaves");
    }
    counted(&daemon, "bre_frames_cached_total", &[], 20);
    let all = ["verify-log  ", "verify-log eth0", "verify-log -sums", "verify-log -json"];
    let codes = || all.map(|words| section.run(&endpoint.ns, words).code);
    assert_eq!(codes(), [Some(0); 4]);
    let log = PinnedLog::open(daemon.pins()).expect("pins");
    let at = (0..log.index.len()).step_by(8).find(|at| log.index.word(*at) != 0).expect("an entry");
    let map = MapData::from_pin(daemon.pins().join("INDEX")).expect("a pin");
    let mut index: Array<_, [u64; 8]> = Map::Array(map).try_into().expect("an array");
    let bucket = u32::try_from(at / 64).expect("small");
    let right = index.get(&bucket, 0).expect("a bucket");
    let mut wrong = right;
    let free = right.iter().rposition(|entry| *entry == 0).expect("a place");
    wrong[free] = log.index.word(at);
    index.set(bucket, wrong, 0).expect("the kernel takes it");
    // The last is jq's code: it prints the findings.
    let found = codes();
    section.run(&endpoint.ns, "verify-log -json").shows(&["doubled_tag"]);
    index.set(bucket, right, 0).expect("the kernel takes it");
    assert_eq!(found[..3], [Some(1); 3]);
    // Without this the next one would go on with the log.
    assert!(daemon.end().expect("it ends").success());
    assert_eq!(section.run(&endpoint.ns, "detach eth0").code, Some(0));
    let next = Daemon::start(&binary(), &endpoint.ns, &settings).expect("a daemon");
    assert_eq!(next.metrics().expect("a scrape").count("bre_cache_size", &[]), 0);
}

/// A daemon with frames is stopped, and the next one serves them; then it is ended for good.
fn restart(section: &Section) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let all = flags("native", &["-fill", "kernel"]);
    let mut daemon = Daemon::start(&binary(), &endpoint.ns, &all).expect("a daemon");
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    publish.send(group(0), &frame(FrameKey::new(FLOW, 1), 300, 1)).expect("a frame leaves");
    counted(&daemon, "bre_frames_cached_total", &[], 1);
    section.run(&endpoint.ns, "status eth0").shows(&["a daemon serves", env!("CARGO_PKG_VERSION")]);
    daemon.leave();
    assert!(daemon.end().expect("it ends").success());
    section.run(&endpoint.ns, "status eth0").shows(&["no daemon", "-bpf-lease: 5", "-daemon-lease: over"]);
    let mut next = Daemon::start(&binary(), &endpoint.ns, &all).expect("a daemon");
    let told = section.run(&endpoint.ns, "bre_(start_mode");
    told.shows(&[r#"bre_start_mode{mode="adopted"} 1"#, "bre_cache_size 1\n", r#"{result="adopted"} 1"#]);
    let probe = section.run_with(&client.ns, "probe", &[("fd10::20", &endpoint.addr.to_string())]);
    assert_eq!(probe.code, Some(0), "{probe:?}");
    assert_eq!(section.run(&endpoint.ns, "detach eth0").code, Some(1), "a daemon runs there");
    assert!(next.end().expect("it ends").success());
    assert_eq!(section.run(&endpoint.ns, "detach eth0").code, Some(0));
    assert!(!next.pins().exists());
}
