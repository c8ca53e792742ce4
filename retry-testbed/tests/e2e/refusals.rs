//! What ends a start, told by its setting, before anything is attached or joined; and the end while memory is taken.

use std::net::{Ipv6Addr, SocketAddrV6, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{Fabric, Host};
use retry_testbed::scene::{await_detached, binary, eventually, flags, is_root, two_hosts};

/// What the daemon said last, which ended with a failure and left nothing.
fn refused(endpoint: &Host, more: &[&str]) -> String {
    let all = flags("native", more);
    let mut daemon = Daemon::launch(&binary(), &endpoint.ns, &all).expect("a process");
    let status = daemon.wait().expect("it ends");
    assert_eq!(status.code(), Some(1), "{more:?}\n{}", daemon.log());
    await_detached(endpoint);
    daemon.log()
}

/// A port that another program has is told by the setting that names it, and XDP was not attached for a moment.
#[test]
fn a_port_that_is_taken_is_named_first() {
    if !is_root("a_port_that_is_taken_is_named_first") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let any = |port| SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0);
    let (_tcp, _udp) = endpoint.ns.enter(|| {
        let tcp = TcpListener::bind(any(9_999)).expect("a port");
        (
            tcp,
            (
                UdpSocket::bind(any(9_998)).expect("a port"),
                UdpSocket::bind((Ipv6Addr::LOCALHOST, 9_997)).expect("a port"),
            ),
        )
    });
    let cases: [(&[&str], &str); 4] = [
        (&["-admin-addr", "[::1]:9999"], "-admin-addr [::1]:9999"),
        (&["-nack-port", "9998"], "-nack-port"),
        (&["-tee-listen", "[::1]:9997"], "-tee-listen"),
        (&["-metrics-addr", "[::1]:9999"], "-metrics-addr [::1]:9999"),
    ];
    for (more, named) in cases {
        let log = refused(endpoint, more);
        let line = log.lines().last().expect("a line");
        assert!(line.contains(named) && line.contains("in use"), "{more:?}: {log}");
        assert!(!log.contains("the kernel answers NACKs"), "{more:?}: XDP was attached before: {log}");
    }
}

#[test]
fn a_state_directory_that_is_not_there_is_named() {
    if !is_root("a_state_directory_that_is_not_there_is_named") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let upstream = endpoint_of(client);
    let proxy = ["-proxy-enabled", "-upstream-retry-endpoints", upstream.as_str()];
    let log = refused(endpoint, &[&proxy[..], &["-state-dir", "/nonexistent/retry"]].concat());
    let line = log.lines().last().expect("a line");
    assert!(line.contains("-state-dir") && line.contains("/nonexistent/retry") && line.contains("mkdir"), "{log}");
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().to_string_lossy();
    let log = refused(endpoint, &[&proxy[..], &["-state-dir", &path]].concat());
    assert!(log.lines().last().expect("a line").contains("-state-dir"), "{log}");
}

fn endpoint_of(host: &Host) -> String {
    SocketAddrV6::new(host.addr, 9_300, 0, 0).to_string()
}

/// More memory than the host has is refused at once, with what there is.
#[test]
fn more_memory_than_there_is_is_refused_at_once() {
    if !is_root("more_memory_than_there_is_is_refused_at_once") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let began = Instant::now();
    let log = refused(endpoint, &["-cache-memory", "64g"]);
    assert!(began.elapsed() < Duration::from_secs(2), "refused after {:?}", began.elapsed());
    let line = log.lines().last().expect("a line");
    assert!(line.contains("-cache-memory") && line.contains("MemAvailable"), "{log}");
    let figure = line.split_whitespace().find_map(|word| word.parse::<u64>().ok());
    assert!(figure.is_some_and(|mib| mib > 64 << 10), "{log}");
}

/// SIGTERM while the rings' memory is taken ends the daemon then, and not when it has been.
/// Whether a process has a handler for a signal.
fn handles(pid: u32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("a mask");
    let mask = u64::from_str_radix(caught.trim(), 16).expect("hexadecimal");
    mask >> (signal as i32 - 1) & 1 == 1
}

#[test]
fn a_signal_is_heeded_while_memory_is_taken() {
    if !is_root("a_signal_is_heeded_while_memory_is_taken") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let all = flags("native", &["-cache-memory", "2g"]);
    for delay in [50, 150, 300] {
        let mut daemon = Daemon::launch(&binary(), &endpoint.ns, &all).expect("a process");
        // Before that the kernel ends it: a busy machine may take longer to come to it than any delay here.
        eventually("it handles signals", || handles(daemon.pid(), Signal::SIGTERM));
        std::thread::sleep(Duration::from_millis(delay));
        let told = Instant::now();
        daemon.child().signal(Signal::SIGTERM).expect("it is told");
        let status = daemon.wait().expect("it ends");
        assert!(status.success(), "{delay} ms: {status}\n{}", daemon.log());
        assert!(told.elapsed() < Duration::from_millis(1_500), "{delay} ms: it ended after {:?}", told.elapsed());
        await_detached(endpoint);
    }
}
