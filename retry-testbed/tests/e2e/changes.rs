//! What changes underneath a running daemon: interfaces, MTUs, addresses, MACs and attachments. The daemon follows, or says
//! that it is not ready and why; it is never restarted here.

use std::ffi::CString;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::programs::{Xdp, XdpMode};
use retry_common::key::FrameKey;
use retry_testbed::daemon::{BPFFS, Daemon};
use retry_testbed::net::capture::{Capture, Captured, is_udp};
use retry_testbed::net::fabric::{Fabric, Host, INTERFACE, group};
use retry_testbed::net::packet::Packet;
use retry_testbed::peers::answer::nack;
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{ask, asker, await_count, binary, flags, frame, is_root, two_hosts};
use serde_json::Value;

const KEY: FrameKey = FrameKey::new(0xc4a9, 1);
const NEXT: FrameKey = FrameKey::new(0xc4a9, 2);
/// Longer than the daemon needs to notice anything, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(20);
/// Unicast repairs: what comes back can be counted at the asker's socket.
const UNICAST: [&str; 2] = ["-beacon-flags-unicast", "-beacon-flags-multicast=false"];

/// Looks until `found` finds something; panics with the daemon's state when it does not.
pub(crate) fn eventually<T>(daemon: &Daemon<'_>, what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(Instant::now() < deadline, "not in {PATIENCE:?}: {what}\n/readyz: {:?}", daemon.get("/readyz"));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Status and body of `/readyz`.
pub(crate) fn readiness(daemon: &Daemon<'_>) -> (u16, Value) {
    let (status, body) = daemon.get("/readyz").expect("an answer");
    (status, serde_json::from_str(&body).expect("JSON"))
}

/// Waits until `/readyz` refuses with a reason that holds all of `words`.
pub(crate) fn await_refusal(daemon: &Daemon<'_>, words: &[&str]) -> Value {
    eventually(daemon, &format!("not ready: {words:?}"), || {
        let (status, body) = readiness(daemon);
        let reasons = body["reasons"].to_string();
        (status == 503 && words.iter().all(|word| reasons.contains(word))).then_some(body)
    })
}

/// Waits until the daemon is ready in this mode.
pub(crate) fn await_ready(daemon: &Daemon<'_>, mode: &str) {
    eventually(daemon, &format!("ready, {mode}"), || {
        let (status, body) = readiness(daemon);
        (status == 200 && body["xdp"]["mode"] == mode).then_some(())
    });
    assert_eq!(daemon.metrics().expect("a scrape").get("bre_ready"), Some(1.0));
}

pub(crate) fn publish(daemon: &Daemon<'_>, from: &Host, bytes: &[u8], frames: u64) {
    let publisher = Publisher::open(&from.ns, Arc::new(Journal::new())).expect("a publisher");
    publisher.send(group(0), bytes).expect("a frame leaves");
    let metrics = await_count(daemon, "bre_frames_cached_total", &[], frames);
    assert_eq!(metrics.count("bre_frames_cached_total", &[]), frames, "{}", daemon.log());
}

/// True when both the frame and its ACK came.
pub(crate) fn is_answered(socket: &UdpSocket, endpoint: &Host, key: FrameKey, bytes: &[u8]) -> bool {
    while socket.set_nonblocking(true).is_ok() && socket.recv(&mut [0; 2048]).is_ok() {}
    socket.set_nonblocking(false).expect("an option");
    let answers = ask(socket, endpoint.nack_address(), &nack(key), 2);
    answers.len() == 2 && answers.iter().any(|answer| answer == bytes)
}

pub(crate) fn served(daemon: &Daemon<'_>, path: &str) -> u64 {
    daemon.metrics().expect("a scrape").count("bre_unicast_retransmits_total", &[("path", path)])
}

pub(crate) fn run(host: &Host, line: &str) {
    host.ns.run(&line.split(' ').collect::<Vec<_>>()).expect(line);
}

fn link_pin(host: &Host) -> PathBuf {
    let directory = format!("{INTERFACE}-{}", host.ns.inode().expect("an inode"));
    Path::new(BPFFS).join("retry-endpoint").join(directory).join(format!("link-{INTERFACE}"))
}

/// What `bpftool link detach pinned …` does: the link stays, and holds on to nothing.
fn detach(pin: &Path) {
    const BPF_OBJ_GET: libc::c_long = 7;
    const BPF_LINK_DETACH: libc::c_long = 34;
    let path = CString::new(pin.as_os_str().as_bytes()).expect("no zero in it");
    // The first fields of `union bpf_attr` (linux/bpf.h): the kernel takes what is missing for zero.
    let call = |command: libc::c_long, attributes: [u64; 2]| {
        // SAFETY: the attributes, and the path that they may point at, outlive the call and are as long as said.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(&attributes)) };
        (result >= 0).then_some(result).ok_or_else(std::io::Error::last_os_error)
    };
    let fd = call(BPF_OBJ_GET, [path.as_ptr() as u64, 0]).expect("the daemon pins its link");
    let fd = i32::try_from(fd).expect("a descriptor");
    // SAFETY: the kernel has just opened it for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let attributes = [u64::try_from(fd.as_raw_fd()).expect("a descriptor"), 0];
    call(BPF_LINK_DETACH, attributes).expect("it is attached");
}

/// Another program that passes on what it sees.
pub(crate) fn stranger() -> Ebpf {
    let object = std::env::var("RETRY_BENCH_OBJECT").expect("xtask names it");
    let mut stranger = Ebpf::load_file(object).expect("an object");
    xdp(&mut stranger).load().expect("it loads");
    stranger
}

pub(crate) fn xdp(ebpf: &mut Ebpf) -> &mut Xdp {
    ebpf.program_mut("bench_count").expect("the object has it").try_into().expect("an XDP program")
}

/// The interface is deleted and made anew: not ready meanwhile, then as before, with the frames of before.
#[test]
fn a_deleted_interface_comes_back() {
    if !is_root("a_deleted_interface_comes_back") {
        return;
    }
    for mode in ["auto", "off"] {
        let shown = if mode == "auto" { "native" } else { "off" };
        let path = if mode == "auto" { "xdp" } else { "user" };
        let fabric = Fabric::flat(1500).expect("a fabric");
        let (endpoint, client) = two_hosts(&fabric);
        let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(mode, &UNICAST)).expect("a daemon");
        let (held, next) = (frame(KEY, 700, 0), frame(NEXT, 700, 1));
        publish(&daemon, client, &held, 1);
        assert!(is_answered(&asker(client), endpoint, KEY, &held));

        // More than once: nothing is used up by it.
        for round in 1..=3 {
            fabric.unplug().expect("deleted");
            let body = await_refusal(&daemon, &[INTERFACE]);
            assert_eq!((&body["status"], &body["xdp"]["mode"]), (&"not_ready".into(), &"off".into()), "{body}");
            assert_eq!(daemon.metrics().expect("a scrape").get("bre_ready"), Some(0.0));

            fabric.replug(1500).expect("made anew");
            let capture = Capture::start(&client.ns, INTERFACE).expect("a capture");
            await_ready(&daemon, shown);
            let before = served(&daemon, path);
            // The daemon's table of neighbours learns a moment later of those of a new interface.
            eventually(&daemon, &format!("an answer in round {round}"), || {
                is_answered(&asker(client), endpoint, KEY, &held).then_some(())
            });
            assert_eq!(served(&daemon, path), before + 1, "round {round}");
            // The beacon's interval is a minute: these leave because of the change.
            eventually(&daemon, "an ADVERT", || {
                let adverts = capture.seen().iter().filter(|packet| is_advert(packet)).count();
                (adverts > 0).then_some(())
            });
        }
        publish(&daemon, client, &next, 2);
        assert!(is_answered(&asker(client), endpoint, NEXT, &next), "{}", daemon.log());
    }
}

fn is_advert(packet: &Captured) -> bool {
    is_udp(&packet.bytes)
        && Packet::check(&packet.bytes).is_ok_and(|packet| packet.dst.ip().is_multicast() && packet.dst.port() == 9300)
}

/// Packets on the wire are never longer than the MTU that the interface has now, and whole again once it allows.
#[test]
fn the_mtu_is_followed() {
    if !is_root("the_mtu_is_followed") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("auto", &UNICAST)).expect("a daemon");
    let held = frame(KEY, 1_300, 0);
    publish(&daemon, client, &held, 1);
    let socket = asker(client);
    let capture = Capture::start(&client.ns, INTERFACE).expect("a capture");
    // The longest packet of one answer, without its Ethernet header.
    let longest = || {
        drop(capture.take());
        assert!(is_answered(&socket, endpoint, KEY, &held), "{}", daemon.log());
        let all = capture.wait(2, Duration::from_secs(1), |packet| packet.bytes.len() > 100);
        all.iter().map(|packet| packet.bytes.len() - 14).max().unwrap_or(0)
    };
    assert_eq!(longest(), 1_300 + 92 + 48);
    for round in 0..2 {
        run(endpoint, "ip link set dev eth0 mtu 1300");
        eventually(&daemon, "packets of 1300 bytes", || (longest() <= 1_300).then_some(()));
        await_ready(&daemon, "native");
        // A frame that comes meanwhile and fits into no packet of now.
        let key = FrameKey::new(0xc4a9, 10 + round);
        let bytes = frame(key, 1_310, 3);
        run(client, "ip link set dev eth0 mtu 1300");
        publish(&daemon, client, &bytes, 2 + round);
        run(client, "ip link set dev eth0 mtu 1500");
        assert!(is_answered(&socket, endpoint, key, &bytes));
        run(endpoint, "ip link set dev eth0 mtu 1500");
        eventually(&daemon, "packets of 1440 bytes", || (longest() == 1_440).then_some(()));
        // So does that one: it is the kernel's from now on.
        eventually(&daemon, "an answer of the kernel's", || {
            let before = served(&daemon, "xdp");
            assert!(is_answered(&socket, endpoint, key, &bytes));
            (served(&daemon, "xdp") == before + 1).then_some(())
        });
    }
}

/// Below 1280 bytes the kernel takes IPv6 off an interface, with its addresses and memberships.
#[test]
fn an_mtu_without_ipv6_is_told_and_survived() {
    if !is_root("an_mtu_without_ipv6_is_told_and_survived") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    // The kernel's fill needs no memberships on a link without a switch; the daemon's sockets do.
    for (mode, shown) in [("auto", "native"), ("off", "off")] {
        let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(mode, &UNICAST)).expect("a daemon");
        let held = frame(KEY, 700, 0);
        publish(&daemon, client, &held, 1);
        run(endpoint, "ip link set dev eth0 mtu 1200");
        await_refusal(&daemon, &["1200", "1280"]);
        run(endpoint, "ip link set dev eth0 mtu 1500");
        run(endpoint, "ip -6 addr add fd10::1/64 dev eth0 nodad");
        run(endpoint, "ip -6 neigh replace fd10::2 lladdr 02:00:00:00:00:02 dev eth0 nud permanent");
        await_ready(&daemon, shown);
        assert!(is_answered(&asker(client), endpoint, KEY, &held), "{mode}: {}", daemon.log());
        publish(&daemon, client, &frame(NEXT, 700, 1), 2);
        let joined = endpoint.ns.run(&["ip", "maddr", "show", "dev", INTERFACE]).expect("memberships");
        assert!(joined.contains("ff05::b:0") || joined.contains("ff05::b:fffe"), "{joined}");
    }
}

/// A link that was detached is attached again; while another program keeps it out, the mode says so.
#[test]
fn a_detached_link_is_attached_again() {
    if !is_root("a_detached_link_is_attached_again") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("auto", &UNICAST)).expect("a daemon");
    let held = frame(KEY, 700, 0);
    publish(&daemon, client, &held, 1);
    let has_program = || endpoint.ns.run(&["ip", "link", "show", INTERFACE]).expect("a link").contains("xdp");
    assert!(has_program());
    detach(&link_pin(endpoint));
    eventually(&daemon, "a program on eth0", || has_program().then_some(()));
    await_ready(&daemon, "native");
    let before = served(&daemon, "xdp");
    assert!(is_answered(&asker(client), endpoint, KEY, &held), "{}", daemon.log());
    assert_eq!(served(&daemon, "xdp"), before + 1);

    let mut stranger = stranger();
    let index = endpoint.ifindex;
    eventually(&daemon, "another program on eth0", || {
        if has_program() {
            detach(&link_pin(endpoint));
        }
        let program = xdp(&mut stranger);
        endpoint.ns.enter(|| program.attach_to_if_index(index, XdpMode::Driver)).ok()
    });
    eventually(&daemon, "mode off", || {
        let (_, body) = readiness(&daemon);
        let reason = body["xdp"]["reason"].to_string();
        (body["xdp"]["mode"] == "off" && reason.contains("another XDP program")).then_some(())
    });
    let before = served(&daemon, "user");
    assert!(is_answered(&asker(client), endpoint, KEY, &held), "{}", daemon.log());
    assert_eq!(served(&daemon, "user"), before + 1);
    drop(stranger);
    await_ready(&daemon, "native");
    assert!(is_answered(&asker(client), endpoint, KEY, &held), "{}", daemon.log());
}

#[test]
fn the_nack_address_goes_and_comes() {
    if !is_root("the_nack_address_goes_and_comes") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    for (mode, shown) in [("auto", "native"), ("off", "off")] {
        let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(mode, &UNICAST)).expect("a daemon");
        // One that the kernel sends and one that only the daemon can.
        let (held, large) = (frame(KEY, 700, 0), frame(NEXT, 4_000, 1));
        publish(&daemon, client, &held, 1);
        publish(&daemon, client, &large, 2);
        run(endpoint, "ip -6 addr del fd10::1/64 dev eth0");
        await_refusal(&daemon, &["fd10::1", "-nack-addr"]);
        run(endpoint, "ip -6 addr add fd10::1/64 dev eth0 nodad");
        await_ready(&daemon, shown);
        let socket = asker(client);
        assert!(is_answered(&socket, endpoint, KEY, &held), "{mode}: {}", daemon.log());
        assert!(is_answered(&socket, endpoint, NEXT, &large), "{mode}: {}", daemon.log());
    }
}

/// Multicast repairs carry the MAC that the interface has now.
#[test]
fn a_changed_mac_is_followed() {
    if !is_root("a_changed_mac_is_followed") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let flags = flags("auto", &["-repair-holddown", "0"]);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");
    publish(&daemon, client, &frame(KEY, 700, 0), 1);
    let socket = asker(client);
    let capture = Capture::start(&client.ns, INTERFACE).expect("a capture");
    let repair_from = || {
        drop(capture.take());
        ask(&socket, endpoint.nack_address(), &nack(KEY), 1);
        let is_repair = |packet: &Captured| {
            is_udp(&packet.bytes)
                && Packet::check(&packet.bytes)
                    .is_ok_and(|packet| packet.dst.ip().is_multicast() && packet.dst.port() == 9001)
        };
        let all = capture.wait(1, Duration::from_millis(500), is_repair);
        all.iter().find(|packet| is_repair(packet)).map(|packet| packet.bytes[6..12].to_vec())
    };
    assert_eq!(repair_from(), Some(endpoint.mac.to_vec()));
    run(endpoint, "ip link set dev eth0 address 02:00:00:00:00:77");
    run(client, "ip -6 neigh replace fd10::1 lladdr 02:00:00:00:00:77 dev eth0 nud permanent");
    let by_kernel = || daemon.metrics().expect("a scrape").count("bre_retransmits_total", &[("path", "xdp")]);
    eventually(&daemon, "repairs of the kernel's from the new MAC", || {
        let before = by_kernel();
        (repair_from() == Some(vec![2, 0, 0, 0, 0, 0x77]) && by_kernel() > before).then_some(())
    });
    await_ready(&daemon, "native");
}

/// An interface that is set down, or has lost its carrier, is told.
#[test]
fn down_and_without_carrier_are_told() {
    if !is_root("down_and_without_carrier_are_told") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("auto", &UNICAST)).expect("a daemon");
    let held = frame(KEY, 700, 0);
    publish(&daemon, client, &held, 1);
    run(client, "ip link set dev eth0 down");
    await_refusal(&daemon, &[INTERFACE, "carrier"]);
    run(client, "ip link set dev eth0 up");
    run(client, "ip -6 addr replace fd10::2/64 dev eth0 nodad");
    run(client, "ip -6 neigh replace fd10::1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent");
    await_ready(&daemon, "native");
    eventually(&daemon, "an answer", || is_answered(&asker(client), endpoint, KEY, &held).then_some(()));
}
