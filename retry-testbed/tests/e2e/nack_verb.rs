//! `retry-endpoint nack`: an operator asks as a listener does, and is told what came, how, and what is wrong with it.

use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::thread;

use retry_common::crc32c;
use retry_common::key::FrameKey;
use retry_testbed::both_paths;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::capture::RawSender;
use retry_testbed::net::fabric::{Fabric, Host, INTERFACE, group};
use retry_testbed::net::packet::{Checksum, PacketBuilder};
use retry_testbed::peers::frames::{Flow, Kind};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{binary, counted, flags, frame, is_root, two_hosts};
use serde_json::{Value, json};

const KEY: FrameKey = FrameKey::new(0x0123_4567_89ab_cdef, 7);

/// Runs the verb on a host.
fn run(host: &Host, arguments: &[&str]) -> Output {
    let mut command = host.ns.command(binary()).expect("a command");
    command.args(["nack"]).args(arguments).stdin(Stdio::null());
    command.output().expect("it runs")
}

/// Asks on a host for a frame; the exit code and the JSON.
fn asked(host: &Host, to: &str, key: FrameKey, more: &[&str]) -> (i32, Value) {
    let (flow, number) = (format!("{:x}", key.hash_key()), key.seq_num().to_string());
    let output = run(host, &[&[to, &flow, &number, "-json"], more].concat());
    let code = output.status.code().expect("it ends by itself");
    let told = serde_json::from_slice(&output.stdout).map_err(|error| (error, output));
    (code, told.expect("one JSON object"))
}

/// The events of one type, and of one way where one is named.
fn events<'a>(told: &'a Value, kind: &str, via: Option<&str>) -> Vec<&'a Value> {
    let all = told["events"].as_array().expect("a list");
    all.iter().filter(|one| one["type"] == kind && via.is_none_or(|via| one["via"] == via)).collect()
}

/// Frames of every version, by both ways: the bytes, where they come from and where to.
fn every_frame(xdp: &str) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &["-beacon-flags-unicast"])).expect("a daemon");
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    let to = endpoint.addr.to_string();
    let from = SocketAddrV6::new(endpoint.addr, 9300, 0, 0).to_string();
    for (stored, kind) in (1..).zip(Kind::CACHED) {
        let mut flow = Flow::new(kind, 1, 2, 300..=300);
        let (key, index) = (flow.next_key(), flow.group_index());
        let bytes = flow.next_frame();
        publish.send(group(index), &bytes).expect("a frame leaves");
        counted(&daemon, "bre_frames_cached_total", &[], stored);
        let (code, told) = asked(client, &to, key, &["-iface", INTERFACE]);
        assert_eq!((code, &told["outcome"], &told["problems"]), (0, &json!("frame"), &json!([])), "{kind:?}: {told:#}");
        assert!(told["joined_groups"].as_u64() >= Some(7), "{told:#}");
        let acks = events(&told, "ack", Some("unicast"));
        assert_eq!(acks.len(), 1, "{kind:?}: {told:#}");
        assert_eq!((&acks[0]["unicast"], &acks[0]["multicast"]), (&json!(true), &json!(true)), "{told:#}");
        for via in ["unicast", "multicast"] {
            let frames = events(&told, "frame", Some(via));
            assert_eq!(frames.len(), 1, "{kind:?} by {via}: {told:#}");
            let one = frames[0];
            assert_eq!((&one["bytes"], &one["version"]), (&json!(bytes.len()), &json!(bytes[6])), "{told:#}");
            assert_eq!(one["crc32c"], format!("{:08x}", crc32c::of(&[&bytes])), "{kind:?}: {told:#}");
            assert_eq!(one["from"], from, "{told:#}");
            let after = one["after_ms"].as_f64().expect("a time");
            assert!(0.0 < after && after < 1_000.0, "{told:#}");
        }
        assert_eq!(events(&told, "frame", Some("multicast"))[0]["group"], group(index).to_string(), "{told:#}");
    }
}

/// What no frame comes for: each has its exit code.
fn every_other_end(xdp: &str) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let limits = ["-rl-throttle-response", "-rl-sequence-max", "2", "-rl-sequence-window", "1h"];
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &limits)).expect("a daemon");
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    publish.send(group(0), &frame(KEY, 300, 1)).expect("a frame leaves");
    counted(&daemon, "bre_frames_cached_total", &[], 1);
    let to = endpoint.addr.to_string();
    // By multicast alone, which is not listened for.
    let (code, told) = asked(client, &to, KEY, &[]);
    assert_eq!((code, &told["outcome"], &told["joined_groups"]), (4, &json!("ack"), &Value::Null), "{told:#}");
    assert_eq!(told["events"].as_array().map(Vec::len), Some(1), "{told:#}");
    // Flag Proxied asks for a unicast copy, whatever the daemon's settings.
    let (code, told) = asked(client, &to, KEY, &["-proxied"]);
    assert_eq!((code, &told["flags"], events(&told, "frame", Some("unicast")).len()), (0, &json!(1), 1), "{told:#}");
    // The third within the window.
    let (code, told) = asked(client, &to, KEY, &[]);
    assert_eq!((code, &told["outcome"]), (3, &json!("throttled")), "{told:#}");
    assert_eq!(events(&told, "throttled", None)[0]["hold_ms"], 500, "{told:#}");
    let (code, told) = asked(client, &to, FrameKey::new(KEY.hash_key(), 8), &["-subtree", &"ab".repeat(32)]);
    assert_eq!((code, &told["outcome"], &told["subtree_id"]), (1, &json!("miss"), &json!("ab".repeat(32))), "{told:#}");
    let (code, told) = asked(client, &format!("[{to}]:9"), KEY, &[]);
    assert_eq!(
        (code, &told["outcome"], events(&told, "unreachable", None).len()),
        (5, &json!("silence"), 1),
        "{told:#}"
    );
}

/// `probe` asks for a frame that is held, and for one that is not.
fn probe_asks_for_a_frame(xdp: &str) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &[])).expect("a daemon");
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    publish.send(group(0), &frame(KEY, 1_300, 1)).expect("a frame leaves");
    counted(&daemon, "bre_frames_cached_total", &[], 1);
    let probed = |frame: &str| {
        let mut command = client.ns.command(binary()).expect("a command");
        command.args([
            "probe",
            &endpoint.addr.to_string(),
            "-count",
            "3",
            "-interval",
            "1ms",
            "-json",
            "-frame",
            frame,
        ]);
        let output = command.output().expect("it runs");
        let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        (output.status.code(), told)
    };
    let (code, told) = probed(&KEY.to_string());
    assert_eq!(
        (code, &told["report"]["answered"], &told["report"]["frames"]),
        (Some(0), &json!(3), &json!(3)),
        "{told}"
    );
    let (code, told) = probed("feed:1");
    assert_eq!(
        (code, &told["report"]["answered"], &told["report"]["frames"]),
        (Some(1), &json!(3), &json!(0)),
        "{told}"
    );
    assert!(told["verdict"].as_str().is_some_and(|verdict| verdict.contains("0 of 3 NACKs")), "{told}");
}

both_paths! {
    probe_asks_for_a_frame: native_probe_asks_for_a_frame, off_probe_asks_for_a_frame;
    every_frame: native_every_frame_is_shown_by_both_ways, off_every_frame_is_shown_by_both_ways;
    every_other_end: native_every_other_end_has_its_exit_code, off_every_other_end_has_its_exit_code;
}

/// With `-suppress-ack` a frame alone is all that comes.
#[test]
fn a_frame_without_an_ack_is_a_frame() {
    if !is_root("a_frame_without_an_ack_is_a_frame") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let flags = flags("native", &["-suppress-ack", "-beacon-flags-unicast"]);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    publish.send(group(0), &frame(KEY, 300, 1)).expect("a frame leaves");
    counted(&daemon, "bre_frames_cached_total", &[], 1);
    let (code, told) = asked(client, &endpoint.addr.to_string(), KEY, &["-wait", "300ms"]);
    assert_eq!((code, told["events"].as_array().map(Vec::len)), (0, Some(1)), "{told:#}");
    assert!(told["verdict"].as_str().is_some_and(|verdict| verdict.contains("no ACK did")), "{told:#}");
}

/// The address that is asked from, and how the text and the refusals of the command line look.
#[test]
fn the_own_address_is_chosen() {
    if !is_root("the_own_address_is_chosen") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let _daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &[])).expect("a daemon");
    let to = endpoint.addr.to_string();
    let (_, told) = asked(client, &to, KEY, &[]);
    assert!(told["from"].as_str().expect("text").starts_with(&format!("[{}]:", client.addr)), "{told:#}");
    client.add_address("fd10::77".parse().expect("an address")).expect("it is taken");
    let (code, told) = asked(client, &to, KEY, &["-from", "fd10::77"]);
    assert!(told["from"].as_str().expect("text").starts_with("[fd10::77]:"), "{told:#}");
    assert_eq!(code, 1, "{told:#}");

    let output = run(client, &[&to, "123456789abcdef", "7"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((output.status.code(), lines.len()), (Some(1), 3), "{text}");
    assert!(lines[0].starts_with(&format!("frame 0123456789abcdef:7 asked of [{to}]:9300 from [")), "{text}");
    assert!(lines[1].contains(" ms  MISS, from [") && lines[2].starts_with("MISS: "), "{text}");
    for (refused, word) in [
        (&[to.as_str(), "xyz", "7"][..], "16 hexadecimal digits"),
        (&[&to, "1", "7", "-group", "0"], "-iface"),
        (&[&to, "1", "7", "-iface", "nowhere0"], "nowhere0"),
        (&[&to, "1", "7", "-from", "fd10::99"], "fd10::99"),
        (&[&to, "1"], "<SEQ>"),
    ] {
        let output = run(client, refused);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && text.contains(word), "{refused:?}: {text}");
    }
}

/// What a peer does wrong is told, each in its words.
#[test]
fn what_is_wrong_is_told() {
    if !is_root("what_is_wrong_is_told") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let elsewhere: Ipv6Addr = "fd10::66".parse().expect("an address");
    endpoint.add_address(elsewhere).expect("an address");
    let right = frame(KEY, 300, 1);
    let mut torn = right.clone();
    torn.truncate(200);
    let ack =
        |flags: u8, seq_num: u8| [0xE3, 0xE1, 0xF3, 0xE8, 2, 0xBF, 0x12, flags, 0, 0, 0, 0, 0, 0, 0, seq_num].to_vec();
    let cases: [(&str, bool, Vec<Vec<u8>>); 7] = [
        ("[fd10::66]:", true, vec![ack(2, 7), right.clone()]),
        ("the answer is for frame 8, not 7", false, vec![ack(2, 8), right.clone()]),
        ("unicast copy that the ACK promises did not come", false, vec![ack(2, 7)]),
        (
            "a frame of another key, 0123456789abcdef:8",
            false,
            vec![ack(2, 7), frame(FrameKey::new(KEY.hash_key(), 8), 300, 1)],
        ),
        ("longer than the datagram", false, vec![ack(2, 7), torn]),
        ("two copies of the frame differ", false, vec![ack(2, 7), right.clone(), frame(KEY, 300, 2)]),
        ("that mean nothing", false, vec![ack(0x82, 7), right.clone()]),
    ];
    for (word, from_elsewhere, datagrams) in cases {
        let (code, told) = thread::scope(|scope| {
            let (asked_at, other) = endpoint.ns.enter(|| {
                let bind = |address| UdpSocket::bind(SocketAddrV6::new(address, 9300, 0, 0)).expect("bound");
                (bind(endpoint.addr), bind(elsewhere))
            });
            scope.spawn(move || {
                let (_, asker) = asked_at.recv_from(&mut [0; 64]).expect("a NACK");
                let by = if from_elsewhere { &other } else { &asked_at };
                for datagram in &datagrams {
                    by.send_to(datagram, asker).expect("it leaves");
                }
            });
            asked(client, &endpoint.addr.to_string(), KEY, &["-wait", "300ms"])
        });
        let problems = told["problems"].to_string();
        assert!(code == 6 && problems.contains(word), "{word}: {told:#}");
    }
    a_wrong_checksum_is_told(endpoint, client);
}

/// The stack drops such a datagram; that it did is told, and not taken for silence.
fn a_wrong_checksum_is_told(endpoint: &Host, client: &Host) {
    let (code, told) = thread::scope(|scope| {
        let socket =
            endpoint.ns.enter(|| UdpSocket::bind(SocketAddrV6::new(endpoint.addr, 9300, 0, 0)).expect("bound"));
        scope.spawn(move || {
            let (_, asker) = socket.recv_from(&mut [0; 64]).expect("a NACK");
            let asker = SocketAddrV6::new(client.addr, asker.port(), 0, 0);
            let mut packet = PacketBuilder::udp(endpoint.nack_address(), asker, &frame(KEY, 300, 1));
            (packet.src_mac, packet.dst_mac, packet.checksum) = (endpoint.mac, client.mac, Checksum::Value(0x1234));
            let sender = RawSender::open(&endpoint.ns, INTERFACE).expect("root");
            sender.send(&packet.build()).expect("it leaves");
        });
        asked(client, &endpoint.addr.to_string(), KEY, &["-wait", "300ms"])
    });
    assert_eq!((code, &told["checksum_errors"]), (6, &json!(1)), "{told:#}");
    assert!(told["problems"].to_string().contains("wrong UDP checksum"), "{told:#}");
}
