//! Interfaces, neighbours and ports.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::Arc;

use aya::Ebpf;
use aya::programs::Xdp;
use nix::sys::signal::Signal;
use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::capture::RawSender;
use retry_testbed::net::fabric::{Fabric, Host, INTERFACE, NACK_PORT, group};
use retry_testbed::net::netns::host_command;
use retry_testbed::net::packet::{Checksum, PacketBuilder};
use retry_testbed::peers::answer::nack;
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{ask, asker, binary, counted, eventually, flags, frame, two_hosts};
use socket2::{Domain, Socket, Type};

use crate::document::{Section, sections};

const FLOW: u64 = 0x114;
const UNICAST: [&str; 4] = ["-beacon-flags-unicast", "-beacon-flags-multicast=false", "-fill", "kernel"];

sections! {
    "Answers are lost at an interface" => lost: answers_are_lost_at_an_interface;
    "XDP fell back" => fell_back: xdp_fell_back;
    "Another program has the NACK port" => port: another_program_has_the_nack_port;
    "Answers do not leave" => leave: answers_do_not_leave;
    "A listener gets no answer" => listener: a_listener_gets_no_answer;
}

/// A NACK as raw bytes, from an address of the test's choice.
fn raw(from: Ipv6Addr, client: &Host, endpoint: &Host, key: FrameKey) -> PacketBuilder {
    let packet = PacketBuilder::udp(SocketAddrV6::new(from, 40_000, 0, 0), endpoint.nack_address(), &nack(key));
    PacketBuilder { dst_mac: endpoint.mac, src_mac: client.mac, ..packet }
}

/// The other end of the veth pair takes no redirected packets.
fn lost(section: &Section) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &UNICAST)).expect("a daemon");
    let key = FrameKey::new(FLOW, 1);
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    publish.send(group(0), &frame(key, 700, 1)).expect("a frame leaves");
    counted(&daemon, "bre_frames_cached_total", &[], 1);
    section.run(&client.ns, "generic-receive-offload").shows(&["generic-receive-offload: on"]);
    client.ns.run(&["ethtool", "-K", INTERFACE, "gro", "off"]).expect("it goes off");
    let socket = asker(client);
    for _ in 0..3 {
        assert_eq!(ask(&socket, endpoint.nack_address(), &nack(key), 1).len(), 0, "no answer");
    }
    section.run(&client.ns, "generic-receive-offload").shows(&["generic-receive-offload: off"]);
    eventually("the drops", || {
        section.run(&endpoint.ns, "bre_xdp_xmit_").out.contains("bre_xdp_xmit_drops_total{interface=\"eth0\"} 6\n")
    });
    eventually("not ready", || section.run(&endpoint.ns, "readyz").out.contains("not_ready"));
    section.run(&endpoint.ns, "readyz").shows(&["GRO"]);
    let on = section.run_with(&client.ns, "gro on", &[("IFACE", INTERFACE)]);
    assert_eq!(on.code, Some(0), "{on:?}");
    eventually("ready again", || section.run(&endpoint.ns, "readyz").out.starts_with("ready\n"));
}

/// The daemon gets no CPU for longer than its lease, and the kernel passes NACKs on.
fn fell_back(section: &Section) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let lease = ["-bpf-lease", "1s", "-fill", "kernel"];
    let mut daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &lease)).expect("a daemon");
    section.run(&endpoint.ns, "bpftool net").shows(&["eth0("]);
    section.run(&endpoint.ns, "retry-endpoint status").shows(&["a daemon serves"]);
    assert_eq!(section.run(&endpoint.ns, "detach -stale").code, Some(0));
    section.run(&endpoint.ns, "bpftool net").shows(&["eth0("]);
    // A listener that holds an old entry for the endpoint.
    let at = endpoint.addr.to_string();
    let old =
        ["ip", "-6", "neigh", "replace", &at, "lladdr", "02:00:00:00:00:77", "dev", INTERFACE, "nud", "reachable"];
    client.ns.run(&old).expect("an entry");
    let socket = asker(client);
    assert_eq!(ask(&socket, endpoint.nack_address(), &nack(FrameKey::new(FLOW, 1)), 1).len(), 0, "no answer");
    counted(&daemon, "bre_xdp_passed_total", &[("reason", "mac")], 1);
    section.run_with(&client.ns, "neigh flush", &[("ADDRESS", &at)]);
    eventually("an answer", || !ask(&socket, endpoint.nack_address(), &nack(FrameKey::new(FLOW, 1)), 1).is_empty());
    daemon.child().signal(Signal::SIGSTOP).expect("it stops");
    let is_over = || {
        let shown = section.run(&endpoint.ns, "lease_until_ns");
        let (lease, uptime) = shown.out.trim().rsplit_once('\n').expect("two lines");
        let line = lease.lines().find(|line| line.contains("lease_until_ns")).expect("the lease");
        let until: f64 = line.trim_end_matches(',').rsplit(' ').next().and_then(|word| word.parse().ok()).expect("ns");
        until / 1e9 < uptime.parse::<f64>().expect("seconds")
    };
    eventually("the end of the lease", is_over);
    socket.send_to(&nack(FrameKey::new(FLOW, 1)), endpoint.nack_address()).expect("a NACK leaves");
    daemon.child().signal(Signal::SIGCONT).expect("it goes on");
    counted(&daemon, "bre_xdp_passed_total", &[("reason", "lease")], 1);
    section.run(&endpoint.ns, "bre_xdp_passed_total").shows(&[r#"reason="lease""#]);
    section.run(&endpoint.ns, "jq -c .xdp").shows(&["native"]);
    drop(daemon);
    // Another program is attached, until it is taken off.
    let object = std::env::var("RETRY_BENCH_OBJECT").expect("xtask names it");
    let mut other = Ebpf::load_file(object).expect("an object");
    let program: &mut Xdp = other.program_mut("bench_count").expect("its program").try_into().expect("an XDP program");
    program.load().expect("it loads");
    let id = program.info().expect("it is loaded").id().to_string();
    endpoint.ns.run(&["bpftool", "net", "attach", "xdpdrv", "id", &id, "dev", INTERFACE]).expect("attached");
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("auto", &[])).expect("a daemon");
    section.run(&endpoint.ns, "jq -c .xdp").shows(&[r#""mode":"off""#, "another XDP program is attached"]);
    section.run(&endpoint.ns, "bpftool net").shows(&[&id]);
    assert_eq!(section.run(&endpoint.ns, "xdp off").code, Some(0));
    drop(daemon);
    drop(Daemon::start(&binary(), &endpoint.ns, &flags("native", &[])).expect("a daemon with its program"));
    // A kernel program that cannot be attached says why.
    endpoint.ns.run(&["ip", "link", "set", INTERFACE, "mtu", "9000"]).expect("an MTU");
    client.ns.run(&["ip", "link", "set", INTERFACE, "mtu", "9000"]).expect("an MTU");
    let one_buffer = std::env::var("RETRY_EBPF_LINEAR").expect("xtask names it");
    let options = flags("auto", &["-bpf-object", &one_buffer]);
    let _daemon = Daemon::start(&binary(), &endpoint.ns, &options).expect("a daemon");
    section.run(&endpoint.ns, "jq -c .xdp").shows(&[r#""mode":"off""#, "MTU 9000 is too large"]);
}

/// `-nack-port-shared`, and a second program on the port.
fn port(section: &Section) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let shared = ["-nack-port-shared", "-fill", "kernel"];
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &shared)).expect("a daemon");
    let other = endpoint.ns.enter(|| {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("an option");
        socket.bind(&SocketAddrV6::new(endpoint.addr, NACK_PORT, 0, 0).into()).map(|()| socket)
    });
    let _other = other.expect("the port is shared");
    counted(&daemon, "bre_nack_port_contended_total", &[], 1);
    let here = format!("pid={}", std::process::id());
    section.run(&endpoint.ns, "ss -uapne").shows(&["retry-endpoint", &here, "ino:"]);
}

/// NACKs of an address that no neighbour has, for a frame that the daemon has to send.
fn leave(section: &Section) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &UNICAST)).expect("a daemon");
    let key = FrameKey::new(FLOW, 1);
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    publish.send(group(0), &frame(key, 5_000, 1)).expect("a frame leaves");
    counted(&daemon, "bre_frames_cached_total", &[], 1);
    let stranger = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 0x7777);
    let sender = RawSender::open(&client.ns, INTERFACE).expect("root");
    sender.send(&raw(stranger, client, endpoint, key).build()).expect("it leaves");
    eventually("the neighbour", || section.run(&endpoint.ns, "nud failed").out.contains("fd10::7777"));
    counted(&daemon, "bre_sends_dropped_total", &[("reason", "unresolved")], 1);
    // The kernel shows the size of the table, which all namespaces share, in the host's namespace only.
    let entries = section.run(&endpoint.ns, "gc_thresh3").out.trim().parse::<u32>();
    assert!(entries.is_ok_and(|entries| entries > 0));
    let room = host_command(&["sysctl", "net.ipv6.neigh.default.gc_thresh3"]).expect("it is shown");
    assert!(room.starts_with("net.ipv6.neigh.default.gc_thresh3 = "), "{room}");
    section.run(&endpoint.ns, "qdisc").shows(&["backlog 0b", "dropped 0"]);
}

/// One listener's card leaves checksums unfinished, another listener has an old MAC.
fn listener(section: &Section) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &UNICAST)).expect("a daemon");
    let sender = RawSender::open(&client.ns, INTERFACE).expect("root");
    let key = FrameKey::new(FLOW, 1);
    let right = || raw(client.addr, client, endpoint, key);
    let wrong = PacketBuilder { checksum: Checksum::Value(0x1234), ..right() };
    let elsewhere = PacketBuilder { dst_mac: [2, 0, 0, 0, 0, 0x77], ..right() };
    for packet in [&wrong, &elsewhere] {
        sender.send(&packet.build()).expect("it leaves");
    }
    counted(&daemon, "bre_nack_dropped_total", &[("reason", "checksum")], 1);
    counted(&daemon, "bre_xdp_passed_total", &[("reason", "mac")], 1);
    section.run(&endpoint.ns, "bre_(nack_dropped").shows(&[r#"reason="checksum""#, r#"reason="mac""#]);
    let packets = [wrong, elsewhere].map(|packet| packet.build());
    let seen = section.run_while(&endpoint.ns, "watch", || {
        for packet in &packets {
            sender.send(packet).expect("it leaves");
        }
    });
    seen.shows(&["verdict=refused reason=checksum", "verdict=passed reason=mac", "bytes=020000000077"]);
    section.run(&endpoint.ns, "Udp6InCsumErrors").shows(&["Udp6InCsumErrors", "\t0"]);
    section.run(&endpoint.ns, "nack_mac").shows(&["02:00:00:00:00:01"]);
    // The listener finishes its checksums itself, and the endpoint's card leaves tags where they are.
    assert_eq!(section.run(&client.ns, "tx off").code, Some(0));
    let strips = || section.run(&endpoint.ns, "rx-vlan-offload");
    strips().shows(&["rx-vlan-offload: on"]);
    assert_eq!(section.run(&endpoint.ns, "rxvlan off").code, Some(0));
    strips().shows(&["rx-vlan-offload: off"]);
    let here = endpoint.addr.to_string();
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    publish.send(group(0), &frame(FrameKey::new(0x0123_4567_89ab_cdef, 42), 300, 1)).expect("a frame leaves");
    counted(&daemon, "bre_frames_cached_total", &[], 1);
    let asked = section.run_with(&client.ns, " nack ", &[("fd10::20", &here)]);
    assert_eq!(asked.code, Some(0), "{asked:?}");
    asked.shows(&["ACK        sent by unicast", "frame      by unicast", "ok: "]);
    let probe = section.run_with(&client.ns, "probe", &[("fd10::20", &here)]);
    assert_eq!(probe.code, Some(0), "{probe:?}");
    probe.shows(&["ok"]);
}
