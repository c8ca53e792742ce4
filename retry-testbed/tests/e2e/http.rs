//! HTTP under strain and under strangers: silent connections take nothing from others, and who may change the log level.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, SocketAddrV6, TcpStream};
use std::time::{Duration, Instant};

use retry_testbed::daemon::{Daemon, METRICS, http};
use retry_testbed::net::fabric::{Fabric, Host};
use retry_testbed::scene::{PATIENCE, binary, flags, is_root, two_hosts};

/// More than the daemon has room for.
const SILENT: usize = 339;

fn connect(host: &Host, address: SocketAddr) -> TcpStream {
    let stream = host.ns.enter(|| TcpStream::connect_timeout(&address, PATIENCE)).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("an option");
    stream
}

/// With as few files as a container may have, connections that say nothing stop neither `/healthz` nor the API.
#[test]
fn silent_connections_stop_no_one() {
    if !is_root("silent_connections_stop_no_one") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let api = "[::1]:9401";
    let mut daemon = Daemon::start(&binary(), &endpoint.ns, &flags("off", &["-admin-addr", api])).expect("a daemon");
    let pid = daemon.pid().to_string();
    retry_testbed::net::netns::host_command(&["prlimit", "--nofile=256:256", "--pid", &pid]).expect("a limit");
    for (address, path) in [(METRICS, "/healthz"), (api, "/v1/config")] {
        let address: SocketAddr = address.parse().expect("an address");
        let silent: Vec<_> = (0..SILENT)
            .map(|number| {
                let mut stream = connect(endpoint, address);
                // Some say half a word.
                if number % 2 == 0 {
                    let _ = stream.write_all(b"GET /he");
                }
                stream
            })
            .collect();
        for _ in 0..5 {
            let asked = Instant::now();
            let (code, body) = http::get(&endpoint.ns, address, path).expect("an answer");
            assert_eq!(code, 200, "{body}");
            assert!(asked.elapsed() < Duration::from_secs(2), "{path} took {:?}", asked.elapsed());
        }
        drop(silent);
    }
    assert!(daemon.end().expect("it ends").success());
}

/// A connection that sends no head, or no second one, is closed.
#[test]
fn idle_connections_are_closed() {
    if !is_root("idle_connections_are_closed") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let _daemon = Daemon::start(&binary(), &endpoint.ns, &flags("off", &[])).expect("a daemon");
    let address: SocketAddr = METRICS.parse().expect("an address");
    let sent: [&[u8]; 3] = [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"];
    let mut streams = sent.map(|bytes| {
        let mut stream = connect(endpoint, address);
        stream.write_all(bytes).expect("sent");
        (bytes, stream)
    });
    for (bytes, stream) in &mut streams {
        let mut all = Vec::new();
        let read = stream.read_to_end(&mut all);
        assert!(read.is_ok(), "{:?} is kept open", String::from_utf8_lossy(bytes));
        assert_eq!(all.starts_with(b"HTTP/1.1 200"), bytes.ends_with(b"\r\n\r\n"), "{}", String::from_utf8_lossy(&all));
    }
}

/// `POST /loglevel` from another host needs the token of the management API.
#[test]
fn the_log_level_is_this_hosts_or_the_tokens() {
    if !is_root("the_log_level_is_this_hosts_or_the_tokens") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "let-me-in").expect("written");
    let token = file.path().to_string_lossy();
    let anywhere = SocketAddr::from(SocketAddrV6::new(endpoint.addr, 9400, 0, 0));
    for more in [&[][..], &["-admin-token-file", &token]] {
        let all = flags("off", &[&["-metrics-addr", ":9400"], more].concat());
        let daemon = Daemon::start(&binary(), &endpoint.ns, &all).expect("a daemon");
        let post = |host: &Host, to, token| {
            let (code, body) =
                http::exchange(&host.ns, to, "POST", "/loglevel?level=debug", token, &[]).expect("an answer");
            (code, String::from_utf8_lossy(&body).into_owned())
        };
        let (code, body) = post(client, anywhere, None);
        assert_eq!(code, 403, "{body}");
        assert!(body.contains("loopback") && body.contains("-admin-token-file"), "{body}");
        assert_eq!(post(client, anywhere, Some("let-me-inn")).0, 403);
        let expected = if more.is_empty() { 403 } else { 200 };
        assert_eq!(post(client, anywhere, Some("let-me-in")).0, expected);
        assert_eq!(post(endpoint, METRICS.parse().expect("an address"), None).0, 200);
        // What only reads is open.
        assert_eq!(http::get(&client.ns, anywhere, "/metrics").expect("an answer").0, 200);
        assert!(!daemon.log().contains("let-me-in"));
    }
}
