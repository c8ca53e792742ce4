//! `retry-endpoint watch`: NACKs and what was decided on them, as an operator sees them beside a daemon that runs.

use std::fs::File;
use std::net::UdpSocket;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pcap_file::pcap::PcapReader;
use retry_common::abi::Settings;
use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{DATA_PORT, Fabric, Host, group};
use retry_testbed::net::packet::Packet;
use retry_testbed::peers::answer::nack;
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::relay::{End, Relay};
use retry_testbed::scene::{ask, asker, await_count, binary, eventually, flags, frame, is_root, two_hosts};
use retry_testbed::xdp::fixture::monotonic_ns;
use retry_userspace::parts::datapath::pinned::{PinnedLog, Words as _};
use serde_json::Value;

const KEY: FrameKey = FrameKey::new(0x3a7c, 1);
const LACKS: FrameKey = FrameKey::new(0x3a7c, 2);

/// The bytes of the frame that is held.
fn held() -> Vec<u8> {
    frame(KEY, 300, 1)
}

/// A daemon that holds one frame.
fn with_frame<'a>(endpoint: &'a Host, client: &Host, xdp: &str, more: &[&str]) -> Daemon<'a> {
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, more)).expect("a daemon");
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    publish.send(group(0), &held()).expect("a frame leaves");
    await_count(&daemon, "bre_frames_cached_total", &[], 1);
    daemon
}

/// What the verb says while `asks` goes on; it ends by itself.
fn watch(daemon: &Daemon<'_>, args: &[&str], mut asks: impl FnMut()) -> Output {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let verb = scope.spawn(|| {
            let all = [&["--seconds", "20"], args].concat();
            let output = daemon.run("watch", &all).expect("it runs");
            ended.store(true, Ordering::Relaxed);
            output
        });
        while !ended.load(Ordering::Relaxed) {
            asks();
            std::thread::sleep(Duration::from_millis(5));
        }
        verb.join().expect("no panic")
    })
}

fn lines(output: &Output) -> Vec<Value> {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{}: {said}", output.status);
    let text = String::from_utf8(output.stdout.clone()).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("an object per line")).collect()
}

fn send(socket: &UdpSocket, endpoint: &Host, key: FrameKey) {
    socket.send_to(&nack(key), endpoint.nack_address()).expect("it leaves");
}

/// Hits and misses, on both paths: source, flow, number, verdict, what left, and how long it took.
#[test]
fn nacks_are_seen_with_their_verdicts() {
    if !is_root("nacks_are_seen_with_their_verdicts") {
        return;
    }
    for xdp in ["native", "off"] {
        let fabric = Fabric::flat(1500).expect("a fabric");
        let (endpoint, client) = two_hosts(&fabric);
        let daemon = with_frame(endpoint, client, xdp, &["-beacon-flags-unicast"]);
        let socket = asker(client);
        let output = watch(&daemon, &["--json", "--count", "20"], || {
            send(&socket, endpoint, KEY);
            send(&socket, endpoint, LACKS);
        });
        let lines = lines(&output);
        assert_eq!(lines.len(), 20, "{xdp}");
        let port = socket.local_addr().expect("bound").port();
        for line in &lines {
            let is_hit = line["number"] == 1;
            assert_eq!(line["path"], if xdp == "off" { "user" } else { "xdp" }, "{line}");
            assert_eq!((&line["source"], &line["port"]), (&client.addr.to_string().into(), &port.into()), "{line}");
            assert_eq!(
                (&line["flow"], &line["interface"]),
                (&"0000000000003a7c".into(), &if xdp == "off" { Value::Null } else { "eth0".into() })
            );
            assert_eq!(line["verdict"], if is_hit { "hit" } else { "miss" }, "{line}");
            assert!(line["took_ns"].as_u64().is_some_and(|took| (100..1_000_000_000).contains(&took)), "{line}");
            let sent: Vec<_> = line["sent"].as_array().expect("a list").iter().map(ToString::to_string).collect();
            let said = |what: &str| sent.iter().any(|one| one.starts_with(&format!("\"{what}")));
            assert_eq!((said("ack"), said("unicast"), said("miss")), (is_hit, is_hit, !is_hit), "{line}");
        }
        assert!(lines.iter().any(|line| line["number"] == 1) && lines.iter().any(|line| line["number"] == 2));

        // Filters.
        let seen = |args: &[&str]| {
            let output = watch(&daemon, &[&["--json", "--count", "3"], args].concat(), || {
                send(&socket, endpoint, KEY);
                send(&socket, endpoint, LACKS);
            });
            self::lines(&output).iter().map(|line| line["number"].as_u64()).collect::<Vec<_>>()
        };
        assert_eq!(
            seen(&["--verdict", "miss", "--flow", "3a7c", "--source", &format!("{}/64", client.addr)]),
            [Some(2); 3]
        );
        let nothing = watch(&daemon, &["--seconds", "1", "--source", "fd99::/64"], || send(&socket, endpoint, KEY));
        assert_eq!(lines_of(&nothing), 0, "{xdp}");
    }
}

fn lines_of(output: &Output) -> usize {
    String::from_utf8_lossy(&output.stdout).lines().count()
}

/// The NACK as it came, then the ACK and the copy of the frame as they left, byte for byte.
#[test]
fn the_pcap_file_has_the_nack_and_the_answers() {
    if !is_root("the_pcap_file_has_the_nack_and_the_answers") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = with_frame(endpoint, client, "native", &["-beacon-flags-unicast", "-beacon-flags-multicast=false"]);
    let socket = asker(client);
    let place = tempfile::tempdir().expect("a directory");
    let file = place.path().join("nacks.pcap");
    let path = file.to_str().expect("text");
    let output = watch(&daemon, &["--pcap", path, "--count", "1", "--verdict", "hit"], || send(&socket, endpoint, KEY));
    assert_eq!(lines_of(&output), 1, "{}", String::from_utf8_lossy(&output.stderr));
    let mut reader = PcapReader::new(File::open(&file).expect("written")).expect("a pcap file");
    let mut packets = Vec::new();
    while let Some(packet) = reader.next_packet() {
        let packet = packet.expect("whole");
        assert_eq!(packet.orig_len as usize, packet.data.len(), "whole");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        assert!(now.saturating_sub(packet.timestamp) < Duration::from_secs(60), "{:?}", packet.timestamp);
        packets.push(Packet::check(&packet.data).expect("a datagram with a right checksum"));
    }
    // Which of the two answers leaves first depends on the room in the packet.
    packets[1..].sort_by_key(|packet| packet.payload.len());
    let [asked, ack, copy] = packets.as_slice() else { panic!("{packets:?}") };
    assert_eq!((asked.dst, asked.payload.as_slice()), (endpoint.nack_address(), &nack(KEY)[..]));
    assert_eq!((ack.payload.len(), ack.src, ack.dst), (16, asked.dst, asked.src));
    assert!(copy.payload == held() && copy.dst == asked.src, "the frame, byte for byte");
}

/// What tshark reads from a file: source, destination, port and length of each datagram, which has to have a right checksum.
fn read_by_tshark(file: &std::path::Path) -> Vec<[String; 4]> {
    let mut command = std::process::Command::new("tshark");
    command.args(["-o", "udp.check_checksum:TRUE", "-T", "fields", "-e", "udp.checksum.status", "-e", "ipv6.src"]);
    command.args(["-e", "ipv6.dst", "-e", "udp.dstport", "-e", "udp.length", "-r"]).arg(file);
    let output = command.output().expect("tshark");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let text = String::from_utf8(output.stdout).expect("text");
    let fields = |line: &str| {
        let fields: Vec<String> = line.split('\t').map(str::to_owned).collect();
        let (checksum, rest) = fields.split_first().expect("fields");
        assert_eq!(checksum, "1", "a right checksum: {line}");
        rest.to_vec().try_into().expect("four fields")
    };
    text.lines().map(fields).collect()
}

/// What the daemon's socket takes and sends is there as well: the NACK, the ACK, the copy and the multicast repair, as Wireshark
/// reads them.
#[test]
fn the_pcap_file_has_what_the_daemon_sent() {
    if !is_root("the_pcap_file_has_what_the_daemon_sent") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = with_frame(endpoint, client, "off", &["-beacon-flags-unicast"]);
    let socket = asker(client);
    let place = tempfile::tempdir().expect("a directory");
    let file = place.path().join("nacks.pcap");
    let path = file.to_str().expect("text");
    let port = socket.local_addr().expect("bound").port().to_string();
    let (here, there) = (endpoint.addr.to_string(), client.addr.to_string());
    let udp = |payload: usize| (payload + 8).to_string();
    let is_to = |packet: &[String; 4], to: &str, port: &str, length: usize| {
        packet[1] == to && packet[2] == port && packet[3] == udp(length)
    };

    let args = ["--pcap", path, "--count", "1", "--verdict", "hit"];
    let output = watch(&daemon, &args, || send(&socket, endpoint, KEY));
    assert_eq!(lines_of(&output), 1, "{}", String::from_utf8_lossy(&output.stderr));
    let packets = read_by_tshark(&file);
    let [asked, sent @ ..] = packets.as_slice() else { panic!("{packets:?}") };
    assert_eq!(asked[0], there);
    assert!(is_to(asked, &here, "9300", nack(KEY).len()), "{asked:?}");
    assert!(sent.iter().all(|packet| packet[0] == here), "{sent:?}");
    let frame = held().len();
    let has = |to: &str, port: &str, length| sent.iter().filter(|packet| is_to(packet, to, port, length)).count();
    // Of the first NACKs within the hold-down one alone is repaired by multicast.
    assert_eq!((has(&there, &port, 16), has(&there, &port, frame)), (1, 1), "{sent:?}");
    let multicast = has(&group(0).to_string(), &DATA_PORT.to_string(), frame);
    assert_eq!(sent.len(), 2 + multicast, "{sent:?}");

    // Packets of events that are not shown are not written.
    let args = ["--pcap", path, "--count", "2", "--verdict", "miss"];
    watch(&daemon, &args, || {
        send(&socket, endpoint, KEY);
        send(&socket, endpoint, LACKS);
    });
    let packets = read_by_tshark(&file);
    assert_eq!(packets.len(), 4, "{packets:?}");
    assert!(packets.iter().all(|packet| packet[3] != udp(frame)), "{packets:?}");
}

/// A watcher goes on over a restart: with the kernel program, which never stops, and with the next daemon.
#[test]
fn a_watcher_goes_on_with_the_next_daemon() {
    if !is_root("a_watcher_goes_on_with_the_next_daemon") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let all = flags("native", &["-beacon-flags-unicast"]);
    let mut relay = Relay::start(&binary(), endpoint, &all).expect("a daemon");
    // Above the MTU: the daemon sends it.
    let long = FrameKey::new(0x3a7c, 3);
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    publish.send(group(0), &frame(long, 5_000, 1)).expect("a frame leaves");
    await_count(relay.daemon(), "bre_frames_cached_total", &[], 1);
    let place = tempfile::tempdir().expect("a directory");
    let (out, err) = (place.path().join("out"), place.path().join("err"));
    let mut command = std::process::Command::new(binary());
    command.args(["watch", "eth0", "--json", "-bpffs"]).arg(relay.daemon().pins().parent().expect("a root"));
    command.stdout(File::create(&out).expect("a file")).stderr(File::create(&err).expect("a file"));
    let mut watcher = endpoint.ns.spawn(command).expect("it starts");
    let socket = asker(client);
    let seen = |path: &str, verdict: &str| {
        let text = std::fs::read_to_string(&out).expect("text");
        let whole = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        whole.filter(|line| line["path"] == path && line["verdict"] == verdict).count()
    };
    let until_more = || {
        let before = (seen("xdp", "miss"), seen("user", "hit"));
        eventually("events of the kernel program and of the daemon", || {
            send(&socket, endpoint, LACKS);
            send(&socket, endpoint, long);
            seen("xdp", "miss") > before.0 + 3 && seen("user", "hit") > before.1 + 3
        });
    };
    until_more();
    for end in [End::Told, End::Killed] {
        relay.hand_over(end, &all).expect("the next one goes on");
        until_more();
    }
    watcher.kill();
    assert_eq!(std::fs::read_to_string(&err).expect("text"), "");
    relay.end().expect("nothing is left");
}

/// What is no NACK is told with its reason and its bytes, on both paths by the side that refused it.
#[test]
fn what_is_refused_is_seen() {
    if !is_root("what_is_refused_is_seen") {
        return;
    }
    for (xdp, path) in [("native", "xdp"), ("off", "user")] {
        let fabric = Fabric::flat(1500).expect("a fabric");
        let (endpoint, client) = two_hosts(&fabric);
        let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &[])).expect("a daemon");
        let socket = asker(client);
        let output = watch(&daemon, &["--refused", "--json", "--count", "1"], || {
            socket.send_to(b"no NACK at all", endpoint.nack_address()).expect("it leaves");
            send(&socket, endpoint, LACKS);
        });
        let lines = lines(&output);
        assert_eq!(
            (&lines[0]["verdict"], &lines[0]["reason"], &lines[0]["path"]),
            (&"refused".into(), &"size".into(), &path.into())
        );
        if xdp == "native" {
            let bytes = lines[0]["bytes"].as_str().expect("text");
            assert!(bytes.ends_with(&b"no NACK at all".map(|byte| format!("{byte:02x}")).concat()), "{bytes}");
        }
    }
}

/// A watcher that is killed leaves nothing on: its lease ends. A second one is refused meanwhile.
#[test]
fn a_killed_watcher_ends_with_its_lease() {
    if !is_root("a_killed_watcher_ends_with_its_lease") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &[])).expect("a daemon");
    let pins = PinnedLog::open(daemon.pins()).expect("pinned");
    let is_on = || pins.settings.word(std::mem::offset_of!(Settings, watch_until_ns)) > monotonic_ns();
    assert!(!is_on());
    let mut command = std::process::Command::new(binary());
    command.args(["watch", "eth0", "-bpffs"]).arg(daemon.pins().parent().expect("a root"));
    command.stdout(std::process::Stdio::null());
    let mut first = endpoint.ns.spawn(command).expect("it starts");
    eventually("the watcher asks", is_on);
    let second = daemon.run("watch", &["--seconds", "1"]).expect("it runs");
    assert_eq!(second.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another"), "{second:?}");
    first.kill();
    let killed = Instant::now();
    eventually("its lease ends", || !is_on());
    assert!(killed.elapsed() < Duration::from_secs(3), "{:?}", killed.elapsed());
    assert_eq!(ask(&asker(client), endpoint.nack_address(), &nack(LACKS), 1).len(), 1);
}
