//! The end: by a signal or by `POST /v1/drain`, with what is in flight carried out, and with a second signal at once.

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket};
use std::process::ExitStatus;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use retry_common::key::FrameKey;
use retry_testbed::daemon::{Daemon, http};
use retry_testbed::net::capture::Capture;
use retry_testbed::net::fabric::{Fabric, Host, INTERFACE};
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::scene::{
    PATIENCE, ask, asker, binary, counted, eventually, flags, frame, is_root, repairs, two_hosts,
};

const API: &str = "[::1]:9401";
/// Longer than the two seconds that threads have to end.
const LONG: Duration = Duration::from_secs(4);
/// Nothing that does not wait takes as long.
const PROMPT: Duration = Duration::from_secs(2);

fn api() -> SocketAddr {
    API.parse().expect("an address")
}

fn ended(daemon: &mut Daemon<'_>) -> ExitStatus {
    let mut status = None;
    eventually("the daemon ends", || {
        status = daemon.child().try_wait().expect("a status");
        status.is_some()
    });
    status.expect("it has ended")
}

/// A PUT whose body has not been sent, and that the daemon has begun to read.
fn put_without_body(host: &Host, key: FrameKey, bytes: &[u8]) -> TcpStream {
    let mut stream = host.ns.enter(|| TcpStream::connect(api())).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("an option");
    let length = bytes.len();
    let (flow, number) = (key.hash_key(), key.seq_num());
    let head = format!("PUT /v1/frames/{flow:016x}/{number} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("sent");
    sleep(Duration::from_millis(300));
    stream
}

#[test]
fn an_order_to_drain_ends_the_daemon() {
    if !is_root("an_order_to_drain_ends_the_daemon") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    for (xdp, time, shortest) in [("native", "2s", Duration::from_secs(2)), ("off", "0s", Duration::ZERO)] {
        let flags = flags(xdp, &["-admin-addr", API, "-drain-timeout", time]);
        let mut daemon = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");
        let asked = Instant::now();
        let (code, body) = http::request(&endpoint.ns, api(), "POST", "/v1/drain").expect("an answer");
        assert_eq!(code, 202, "{body}");
        if !shortest.is_zero() {
            let (code, body) = daemon.get("/readyz").expect("it still answers");
            assert!(code == 503 && body.contains("draining"), "{code} {body}");
        }
        assert_eq!(ended(&mut daemon).code(), Some(0), "{}", daemon.log());
        let took = asked.elapsed();
        assert!(took >= shortest && took < shortest + PROMPT, "-drain-timeout {time}: it ended after {took:?}");
    }
}

#[test]
fn a_drain_without_time_is_logged() {
    if !is_root("a_drain_without_time_is_logged") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let mut daemon =
        Daemon::start(&binary(), &endpoint.ns, &flags("off", &["-drain-timeout", "0s"])).expect("a daemon");
    assert!(daemon.end().expect("it ends").success());
    let log = daemon.log();
    let place = |words: &str| log.find(words).unwrap_or_else(|| panic!("no line says {words:?}:\n{log}"));
    assert!(place("the drain has begun") < place("the drain has ended"), "{log}");
}

#[test]
fn a_request_in_flight_gets_its_answer() {
    if !is_root("a_request_in_flight_gets_its_answer") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let mut daemon = Daemon::start(&binary(), &endpoint.ns, &flags("off", &["-admin-addr", API])).expect("a daemon");
    let key = FrameKey::new(0x5d0, 1);
    let bytes = frame(key, 300, 0);
    let mut stream = put_without_body(endpoint, key, &bytes);
    daemon.child().signal(Signal::SIGTERM).expect("it is told");
    sleep(LONG);
    assert!(daemon.child().try_wait().expect("a status").is_none(), "it ended before the request:\n{}", daemon.log());
    let told = Instant::now();
    stream.write_all(&bytes).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    assert_eq!(ended(&mut daemon).code(), Some(0), "{}", daemon.log());
    assert!(told.elapsed() < PROMPT, "with nothing in flight it ended only after {:?}", told.elapsed());
}

#[test]
fn a_second_signal_or_the_grace_ends_a_request() {
    if !is_root("a_second_signal_or_the_grace_ends_a_request") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let key = FrameKey::new(0x5d1, 1);
    for (grace, signals) in [("30s", 2), ("3s", 1)] {
        let flags = flags("native", &["-admin-addr", API, "-shutdown-grace", grace]);
        let mut daemon = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");
        let stream = put_without_body(endpoint, key, &frame(key, 300, 0));
        let mut told = Instant::now();
        daemon.child().signal(Signal::SIGTERM).expect("it is told");
        sleep(Duration::from_millis(1_500));
        assert!(daemon.child().try_wait().expect("a status").is_none(), "{grace}: too early\n{}", daemon.log());
        if signals == 2 {
            told = Instant::now();
            daemon.child().signal(Signal::SIGTERM).expect("it is told");
        }
        assert_eq!(ended(&mut daemon).code(), Some(0), "{}", daemon.log());
        let (took, most) = (told.elapsed(), if signals == 2 { PROMPT } else { Duration::from_secs(3) + PROMPT });
        assert!(took < most, "-shutdown-grace {grace}, {signals} signals: it ended after {took:?}");
        drop(stream);
    }
}

/// The upstream endpoint answers long after the signal: the listener still gets its repair.
#[test]
fn a_recovery_in_flight_ends_with_its_repair() {
    if !is_root("a_recovery_in_flight_ends_with_its_repair") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let upstream = client.ns.enter(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 9_555))).expect("a socket");
    upstream.set_read_timeout(Some(PATIENCE)).expect("an option");
    let name = SocketAddrV6::new(client.addr, 9_555, 0, 0).to_string();
    let flags = flags(
        "native",
        &["-proxy-enabled", "-upstream-retry-endpoints", &name, "-proxy-timeout", "8s", "-proxy-retry-policy", "none"],
    );
    let mut daemon = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");
    let capture = Capture::start(&client.ns, INTERFACE).expect("a capture");
    let key = FrameKey::new(0x5d2, 7);
    let answers = ask(&asker(client), endpoint.nack_address(), &nack(key), 1);
    assert_eq!(answers.first().map(|bytes| Answer::parse(bytes, 7)), Some(Ok(Answer::Miss)));
    let (_, from) = upstream.recv_from(&mut [0; 2048]).expect("a NACK comes upstream");
    counted(&daemon, "bre_proxy_requests_total", &[], 1);
    daemon.child().signal(Signal::SIGTERM).expect("it is told");
    sleep(LONG);
    assert!(daemon.child().try_wait().expect("a status").is_none(), "it ended before the frame\n{}", daemon.log());
    upstream.send_to(&frame(key, 300, 0), from).expect("the frame leaves");
    let seen = capture.wait(1, PATIENCE, |packet| repairs(packet, key));
    assert!(seen.iter().any(|packet| repairs(packet, key)), "no repair\n{}", daemon.log());
    assert_eq!(ended(&mut daemon).code(), Some(0), "{}", daemon.log());
}
