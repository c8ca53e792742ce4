//! HTTP under strain and under strangers: silent connections take nothing from others, and who may change the log level.

use std::collections::BTreeSet;
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

/// Who is served at a route from another host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Admits {
    /// Every host.
    All,
    /// Who has the token.
    Token,
}

/// Every route of docs/openapi.json. What shows numbers and state is open on `-metrics-addr`; what shows frames or settings, or changes
/// something, is not.
const ROUTES: [(&str, &str, Admits); 16] = [
    ("GET", "/metrics", Admits::All),
    ("GET", "/healthz", Admits::All),
    ("GET", "/readyz", Admits::All),
    ("GET", "/", Admits::All),
    ("GET", "/status.css", Admits::All),
    ("GET", "/status.js", Admits::All),
    ("GET", "/v1/status", Admits::All),
    ("POST", "/loglevel", Admits::Token),
    ("GET", "/v1/frames/{hashkey}/{seq}", Admits::Token),
    ("PUT", "/v1/frames/{hashkey}/{seq}", Admits::Token),
    ("DELETE", "/v1/frames/{hashkey}/{seq}", Admits::Token),
    ("GET", "/v1/stats", Admits::Token),
    ("GET", "/v1/config", Admits::Token),
    ("POST", "/v1/config", Admits::Token),
    ("GET", "/v1/cluster/members", Admits::Token),
    ("POST", "/v1/drain", Admits::Token),
];

/// Method, path and listener of every route of the document; those of the metrics address name a server of their own.
fn documented() -> Vec<(String, String, bool)> {
    let text = include_str!("../../../docs/openapi.json");
    let document: serde_json::Value = serde_json::from_str(text).expect("JSON");
    let paths = document["paths"].as_object().expect("paths").iter();
    let each = paths.flat_map(|(path, item)| {
        let methods = item.as_object().expect("an object").keys();
        let methods = methods.filter(|key| ["get", "put", "post", "delete"].contains(&key.as_str()));
        let is_metrics = item.get("servers").is_some();
        methods.map(move |method| (method.to_uppercase(), path.clone(), is_metrics)).collect::<Vec<_>>()
    });
    each.collect()
}

/// From another host each route is open or asks for the token, as the table has it; and the table has every route.
#[test]
fn each_route_admits_whom_it_is_to_admit() {
    if !is_root("each_route_admits_whom_it_is_to_admit") {
        return;
    }
    let documented = documented();
    let of_document: BTreeSet<_> = documented.iter().map(|(method, path, _)| (&**method, &**path)).collect();
    assert_eq!(of_document, ROUTES.iter().map(|(method, path, _)| (*method, *path)).collect());
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "let-me-in").expect("written");
    let token = file.path().to_string_lossy();
    // The order to drain is given, too.
    let more = ["-metrics-addr", ":9400", "-admin-addr", ":9401", "-admin-token-file", &token, "-drain-timeout", "1m"];
    let _daemon = Daemon::start(&binary(), &endpoint.ns, &flags("off", &more)).expect("a daemon");
    for (method, path, is_metrics) in &documented {
        let (.., admits) =
            ROUTES.iter().find(|(of, route, _)| (of, route) == (&&**method, &&**path)).expect("it is in the table");
        let port = if *is_metrics { 9400 } else { 9401 };
        let address = SocketAddr::from(SocketAddrV6::new(endpoint.addr, port, 0, 0));
        let concrete = path.replace("{hashkey}", "00feedface000001").replace("{seq}", "7");
        let concrete = if path == "/loglevel" { format!("{concrete}?level=info") } else { concrete };
        let status = |token| http::exchange(&client.ns, address, method, &concrete, token, &[]).expect("an answer").0;
        let is_open = |status: u16| !matches!(status, 401 | 403);
        for refused in [None, Some("let-me-inn"), Some("")] {
            let status = status(refused);
            assert_eq!(is_open(status), *admits == Admits::All, "{method} {path} with {refused:?}: {status}");
        }
        let status = status(Some("let-me-in"));
        assert!(is_open(status), "{method} {path} with the token: {status}");
        // The other listener has it not.
        let other = SocketAddr::from(SocketAddrV6::new(endpoint.addr, 9400 + 9401 - port, 0, 0));
        let (status, _) =
            http::exchange(&client.ns, other, method, &concrete, Some("let-me-in"), &[]).expect("an answer");
        assert!(matches!(status, 404 | 405), "{method} {path} at the other address: {status}");
    }
}

/// A page of another host in a browser on this one is no program of this host.
#[test]
fn a_web_page_changes_no_log_level() {
    if !is_root("a_web_page_changes_no_log_level") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let _daemon = Daemon::start(&binary(), &endpoint.ns, &flags("off", &[])).expect("a daemon");
    for (origin, expected) in [("", "HTTP/1.1 200"), ("Origin: https://example.org\r\n", "HTTP/1.1 403")] {
        let mut stream = connect(endpoint, METRICS.parse().expect("an address"));
        let request = format!(
            "POST /loglevel?level=info HTTP/1.1\r\nHost: x\r\n{origin}Content-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with(expected), "{origin}: {answer}");
    }
}
