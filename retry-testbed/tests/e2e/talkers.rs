//! The top talkers: who asks most, and what it gets, on both paths; and that spoofed sources hide no heavy one.

use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::capture::RawSender;
use retry_testbed::net::fabric::{Fabric, Host, INTERFACE, group};
use retry_testbed::net::packet::PacketBuilder;
use retry_testbed::peers::answer::nack;
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{ask, await_count, binary, counted, eventually, flags, frame, is_root, two_hosts};
use serde_json::Value;

const HELD: FrameKey = FrameKey::new(0x7a1c, 1);
const LACKED: FrameKey = FrameKey::new(0x7a1d, 1);
const FRAME: usize = 300;
/// Sources, by how many NACKs per round they send.
const RATES: [u64; 3] = [9, 3, 1];
/// Rounds.
const ROUNDS: u64 = 20;

/// What the daemon says of its top talkers.
fn talkers(daemon: &Daemon<'_>) -> Value {
    let status = daemon.get("/v1/status").expect("a status").1;
    let status: Value = serde_json::from_str(&status).expect("JSON");
    status["talkers"].clone()
}

fn number(row: &Value, field: &str) -> u64 {
    row[field].as_u64().unwrap_or_else(|| unreachable!("{field} of {row}"))
}

/// A socket of the host at an address of its own.
fn source(host: &Host, number: usize) -> (Ipv6Addr, UdpSocket) {
    let address = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0x7a, 1 + u16::try_from(number).expect("few"));
    host.ns.run(&["ip", "addr", "add", &format!("{address}/64"), "dev", INTERFACE, "nodad"]).expect("an address");
    let socket = host.ns.enter(|| UdpSocket::bind((address, 0))).expect("it binds");
    socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
    (address, socket)
}

fn order(xdp: &str) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let more = ["-beacon-flags-unicast", "-beacon-flags-multicast=false", "-top-talkers", "2"];
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &more)).expect("a daemon");
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    publish.send(group(0), &frame(HELD, FRAME, 1)).expect("a frame leaves");
    counted(&daemon, "bre_frames_cached_total", &[], 1);
    assert_eq!(talkers(&daemon)["sources"], Value::Array(Vec::new()), "none asked");

    let sources: Vec<_> = (0..RATES.len()).map(|number| source(client, number)).collect();
    for _ in 0..ROUNDS {
        for ((_, socket), rate) in sources.iter().zip(RATES) {
            for turn in 0..rate {
                let key = if turn % 3 == 2 { LACKED } else { HELD };
                let wanted = if key == HELD { 2 } else { 1 };
                assert_eq!(ask(socket, endpoint.nack_address(), &nack(key), wanted).len(), wanted, "{}", daemon.log());
                // So few are all told of, each as it came and as it was answered.
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
    // One that is no NACK.
    sources[0].1.send_to(&[0; 64], endpoint.nack_address()).expect("it leaves");
    let all = ROUNDS * RATES.iter().sum::<u64>();
    let seen =
        || talkers(&daemon)["flows"].as_array().map_or(0, |all| all.iter().map(|row| number(row, "asked")).sum());
    eventually("all NACKs are counted", || seen() == all);

    let top = talkers(&daemon);
    let rows = top["sources"].as_array().expect("a list");
    assert_eq!(rows.len(), 2, "-top-talkers: {top}");
    for (((row, rate), (address, _)), malformed) in rows.iter().zip(RATES).zip(&sources).zip([1, 0]) {
        let (asked, missed) = (ROUNDS * rate, ROUNDS * (rate / 3));
        let answered = asked - missed;
        assert_eq!(row["name"], address.to_string(), "{top}");
        let numbers = ["asked", "error", "answered", "missed"].map(|field| number(row, field));
        assert_eq!(numbers, [asked + malformed, 0, answered, missed], "{xdp}: {row}");
        // A unicast copy with its ACK, or a MISS, with their headers.
        let length = u64::try_from(frame(HELD, FRAME, 1).len()).expect("small") + 48;
        assert_eq!(number(row, "bytes_out"), answered * (length + 64) + missed * 64, "{xdp}: {row}");
        assert_eq!(row["refused"].get("malformed").and_then(Value::as_u64).unwrap_or(0), malformed, "{xdp}: {row}");
    }
    let flows: Vec<_> = top["flows"].as_array().expect("a list").iter().map(|row| row["name"].clone()).collect();
    assert_eq!(flows, ["0000000000007a1c", "0000000000007a1d"], "{top}");

    let metrics = daemon.metrics().expect("a scrape");
    let series = |name: &str| metrics.iter().filter(|(one, _)| one.starts_with(&format!("{name}{{"))).count();
    assert_eq!((series("bre_top_source_nacks"), series("bre_top_flow_nacks")), (2, 2), "-top-talkers");
    let first = metrics.count("bre_top_source_nacks", &[("source", &sources[0].0.to_string())]);
    assert_eq!(first, number(&rows[0], "asked"));
    assert_eq!(metrics.count("bre_talkers_dropped_total", &[]), 0);
}

#[test]
fn those_that_ask_most_come_first_native() {
    if is_root("those_that_ask_most_come_first_native") {
        order("native");
    }
}

#[test]
fn those_that_ask_most_come_first_off() {
    if is_root("those_that_ask_most_come_first_off") {
        order("off");
    }
}

/// What a limit refuses is told with the limit; and without top talkers nothing is.
#[test]
fn refusals_are_told_with_their_limit() {
    if !is_root("refusals_are_told_with_their_limit") {
        return;
    }
    for xdp in ["native", "off"] {
        let fabric = Fabric::flat(1500).expect("a fabric");
        let (endpoint, client) = two_hosts(&fabric);
        let mut daemon =
            Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &["-rl-ip-rate", "1", "-rl-ip-burst", "4"]));
        let running = daemon.as_ref().expect("a daemon");
        let (_, socket) = source(client, 0);
        for _ in 0..24 {
            socket.send_to(&nack(LACKED), endpoint.nack_address()).expect("it leaves");
            std::thread::sleep(Duration::from_millis(2));
        }
        eventually("20 are over the limit of the address", || {
            let top = talkers(running);
            let row = &top["sources"][0];
            row["asked"] == 24 && row["refused"]["ip"].as_u64().is_some_and(|over| (18..=20).contains(&over))
        });
        assert!(daemon.as_mut().expect("a daemon").end().expect("it ends").success());
        drop(daemon);
        let off = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &["-top-talkers", "0"])).expect("a daemon");
        socket.send_to(&nack(LACKED), endpoint.nack_address()).expect("it leaves");
        let metrics = await_count(&off, "bre_cache_misses_total", &[], 1);
        assert_eq!(talkers(&off), Value::Null);
        assert!(metrics.iter().all(|(name, _)| !name.starts_with("bre_top_")), "{metrics:?}");
    }
}

/// A million sources that ask once, and one that asks for a twentieth of all: it is first, within the error that is shown, and
/// the daemon grows by no more than the room of its tables.
#[test]
fn a_million_spoofed_sources_hide_no_heavy_one() {
    if !is_root("a_million_spoofed_sources_hide_no_heavy_one") {
        return;
    }
    const SPOOFED: u32 = 1_000_000;
    const HONEST: u32 = 20;
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &["-suppress-miss"])).expect("a daemon");
    let to = endpoint.nack_address();
    let sender = RawSender::open(&client.ns, INTERFACE).expect("root");
    let heavy = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 0x4ea);
    let packet = |source: Ipv6Addr| {
        let packet = PacketBuilder::udp(SocketAddrV6::new(source, 40_000, 0, 0), to, &nack(LACKED));
        PacketBuilder { dst_mac: endpoint.mac, src_mac: client.mac, ..packet }.build()
    };
    let honest = packet(heavy);
    let memory = || daemon.metrics().expect("a scrape").sum("process_resident_memory_bytes", &[]);
    // The tables are there from the first NACK of a slot on.
    sender.send(&honest).expect("it leaves");
    eventually("the first one is counted", || talkers(&daemon)["sources"][0]["asked"] == 1);
    let before = memory();
    for number in 0..SPOOFED {
        let [a, b, c, d] = number.to_be_bytes();
        let source = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        sender.send(&packet(source)).expect("it leaves");
        if number % HONEST == 0 {
            sender.send(&honest).expect("it leaves");
        }
    }
    let all = f64::from(SPOOFED + SPOOFED / HONEST);
    let came = daemon.metrics().expect("a scrape").count("bre_nack_requests_total", &[("path", "xdp")]);
    assert!(came as f64 > 0.9 * all, "{came} of {all} came: the machine lost the others");
    std::thread::sleep(Duration::from_millis(300));
    let top = talkers(&daemon);
    let first = &top["sources"][0];
    assert_eq!(first["name"], heavy.to_string(), "{top}");
    let (asked, error) = (number(first, "asked") as f64, number(first, "error") as f64);
    // The error has 95 of 100 cases: twice as much has all but one in ten thousand.
    // All ask for one flow: its number is that of all of the window, which a busy machine makes a part of what was sent.
    let flow = &top["flows"][0];
    let share = |field| number(flow, field) as f64 / f64::from(HONEST + 1);
    let (right, its_error) = (share("asked"), share("error"));
    assert!((asked - right).abs() <= 2.0 * (error + its_error), "{asked} ±{error} for {right} ±{its_error}");
    assert!(error < right / 2.0, "an error that says something: {first}");
    assert!(top["sources"].as_array().is_some_and(|rows| rows.len() <= 10), "{top}");
    let grown = memory() - before;
    assert!(grown < 5.0 * 1024.0 * 1024.0, "{grown} bytes more");
}
