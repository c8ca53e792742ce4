//! Who may ask: listeners that are refused get nothing, on every path, whatever changes; others are served all the while.

use std::fs;
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use retry_common::key::FrameKey;
use retry_testbed::both_paths;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{Fabric, Host, INTERFACE, group};
use retry_testbed::peers::answer::{Answer, nack, nack_with_flags};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{ask, binary, counted, eventually, flags, frame, is_root, path, read_answers, two_hosts};

const KEY: FrameKey = FrameKey::new(0xAC1, 1);
const UNICAST: [&str; 2] = ["-beacon-flags-unicast", "-beacon-flags-multicast=false"];
/// Two more addresses of the client.
const FIRST: Ipv6Addr = Ipv6Addr::new(0xFD10, 0, 0, 0, 0, 0, 0xAC1, 1);
const SECOND: Ipv6Addr = Ipv6Addr::new(0xFD10, 0, 0, 0, 0, 0, 0xAC1, 2);
const PROXIED: u8 = 0x01;

fn bytes() -> Vec<u8> {
    frame(KEY, 300, 7)
}

/// A socket at an address of the client.
fn socket(client: &Host, address: Ipv6Addr) -> UdpSocket {
    let socket = client.ns.enter(|| UdpSocket::bind(SocketAddrV6::new(address, 0, 0, 0))).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
    socket
}

/// True when a NACK gets the frame and its ACK, false when it gets nothing.
fn is_served(socket: &UdpSocket, endpoint: &Host) -> bool {
    let answers = ask(socket, endpoint.nack_address(), &nack(KEY), 2);
    let (answers, has_frame) = read_answers(&answers, KEY.seq_num(), &bytes());
    let is_served = has_frame && matches!(answers[..], [Answer::Ack { unicast: true, .. }]);
    assert!(is_served || (answers.is_empty() && !has_frame), "{answers:?}, and a frame: {has_frame}");
    is_served
}

/// A fabric whose client has two more addresses.
fn fabric() -> Fabric {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (_, client) = two_hosts(&fabric);
    for address in [FIRST, SECOND] {
        client.add_address(address).expect("an address");
    }
    fabric
}

fn start<'a>(endpoint: &'a Host, xdp: &str, more: &[&str]) -> Daemon<'a> {
    let all = [&UNICAST[..], more].concat();
    Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &all)).expect("a daemon")
}

fn publish(daemon: &Daemon<'_>, client: &Host) {
    let publisher = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    publisher.send(group(0), &bytes()).expect("a frame leaves");
    counted(daemon, "bre_frames_cached_total", &[], 1);
}

/// Lists on the command line: denied, allowed, and in neither.
fn lists(xdp: &str) {
    let fabric = fabric();
    let (endpoint, client) = two_hosts(&fabric);
    let lists = ["-acl-allow", "fd10::ac1:0/112", "-acl-deny", &format!("{FIRST}")];
    let daemon = start(endpoint, xdp, &lists);
    publish(&daemon, client);
    let [first, second, third] = [FIRST, SECOND, client.addr].map(|address| socket(client, address));
    assert!(!is_served(&first, endpoint), "denied");
    assert!(is_served(&second, endpoint), "allowed\n{}", daemon.log());
    assert!(!is_served(&third, endpoint), "in neither list");
    let metrics = daemon.metrics().expect("a scrape");
    for reason in ["denied", "not_listed"] {
        let labels = [("reason", reason), ("path", path(xdp))];
        assert_eq!(metrics.count("bre_nack_refused_total", &labels), 1, "{reason}");
    }
    assert_eq!(metrics.count("bre_nack_requests_total", &[]), 1, "what is refused is not read");
    assert_eq!(metrics.count("bre_acl_loads_total", &[("result", "loaded")]), 1);
    // `watch` tells why, on both paths.
    let seen = thread::scope(|scope| {
        let asking = Asking::start(scope, client, endpoint, FIRST);
        let seen = daemon.run("watch", &["--refused", "--json", "--count", "1", "--seconds", "10"]).expect("it runs");
        drop(asking);
        seen
    });
    let seen: serde_json::Value = serde_json::from_slice(&seen.stdout).expect("one object");
    assert_eq!(
        (&seen["verdict"], &seen["reason"], &seen["path"]),
        (&"refused".into(), &"denied".into(), &path(xdp).into())
    );
    let warns = daemon.log().contains("do not come to the host's firewall");
    assert_eq!(warns, xdp != "off", "{}", daemon.log());
}

both_paths! {
    lists: lists_native, lists_off;
}

#[test]
fn lists_skb() {
    if is_root("lists_skb") {
        lists("skb");
    }
}

/// A hop limit that a NACK from farther away cannot have.
fn hops(xdp: &str) {
    let fabric = fabric();
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = start(endpoint, xdp, &["-hop-limit-min", "255"]);
    publish(&daemon, client);
    let socket = socket(client, FIRST);
    let set = |hops| socket2::SockRef::from(&socket).set_unicast_hops_v6(hops).expect("an option");
    for (hops, wanted) in [(254, false), (255, true), (64, false)] {
        set(hops);
        assert_eq!(is_served(&socket, endpoint), wanted, "{hops} hops\n{}", daemon.log());
    }
    counted(&daemon, "bre_nack_refused_total", &[("reason", "hop_limit"), ("path", path(xdp))], 2);
}

both_paths! {
    hops: hops_native, hops_off;
}

/// The Proxied flag brings a copy to peers alone.
fn peers(xdp: &str) {
    let fabric = fabric();
    let (endpoint, client) = two_hosts(&fabric);
    let more = ["-beacon-flags-multicast", "-beacon-flags-unicast=false", "-proxied-from", &format!("{FIRST}/128")];
    let daemon = start(endpoint, xdp, &more);
    publish(&daemon, client);
    let proxied = nack_with_flags(KEY, PROXIED);
    for (address, wanted) in [(FIRST, true), (SECOND, false)] {
        let answers = ask(&socket(client, address), endpoint.nack_address(), &proxied, 1 + usize::from(wanted));
        let (answers, has_frame) = read_answers(&answers, KEY.seq_num(), &bytes());
        assert_eq!(has_frame, wanted, "{address}\n{}", daemon.log());
        assert!(matches!(answers[..], [Answer::Ack { unicast, .. }] if unicast == wanted), "{answers:?}");
    }
    counted(&daemon, "bre_nack_no_peer_total", &[("path", path(xdp))], 1);
}

both_paths! {
    peers: peers_native, peers_off;
}

/// Puts a file in the place of another in one step.
fn write(file: &Path, text: &str) {
    let beside = file.with_extension("new");
    fs::write(&beside, text).expect("written");
    fs::rename(&beside, file).expect("renamed");
}

/// Asks from an address over and over.
struct Asking<'scope> {
    done: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    _thread: thread::ScopedJoinHandle<'scope, ()>,
}

impl<'scope> Asking<'scope> {
    fn start(
        scope: &'scope thread::Scope<'scope, '_>,
        client: &'scope Host,
        endpoint: &'scope Host,
        from: Ipv6Addr,
    ) -> Self {
        let [served, refused] = [0, 1].map(|_| Arc::new(AtomicU64::new(0)));
        let done = Arc::new(AtomicBool::new(false));
        let socket = socket(client, from);
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        let counts = (Arc::clone(&done), Arc::clone(&served), Arc::clone(&refused));
        let thread = scope.spawn(move || {
            let (done, served, refused) = counts;
            while !done.load(Ordering::Relaxed) {
                let count = if is_served(&socket, endpoint) { &served } else { &refused };
                count.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(2));
            }
        });
        Self { done, served, refused, _thread: thread }
    }

    fn counts(&self) -> (u64, u64) {
        (self.served.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

/// The file changes under traffic: who is denied before and after is never served, and who is not always.
fn file(xdp: &str) {
    let fabric = fabric();
    let (endpoint, client) = two_hosts(&fabric);
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("acl");
    let many =
        |first: u32| -> String { (first..first + 500).map(|number| format!("deny fd99::{number:x}\n")).collect() };
    write(&file, &format!("deny {FIRST} # the denied\n{}", many(0)));
    let daemon = start(endpoint, xdp, &["-acl-file", file.to_str().expect("a name")]);
    publish(&daemon, client);
    let loads = |result: &str| daemon.metrics().expect("a scrape").count("bre_acl_loads_total", &[("result", result)]);
    thread::scope(|scope| {
        let denied = Asking::start(scope, client, endpoint, FIRST);
        let allowed = Asking::start(scope, client, endpoint, SECOND);
        // By a change alone, and at once by a signal.
        write(&file, &format!("{}deny {FIRST}/128\n", many(10_000)));
        eventually("the file is read again", || loads("loaded") == 2);
        for load in 3..5 {
            write(&file, &format!("{}deny fd10::ac1:0/127\n", many(load * 10_000)));
            let pid = nix::unistd::Pid::from_raw(i32::try_from(daemon.pid()).expect("a process"));
            nix::sys::signal::kill(pid, Signal::SIGHUP).expect("a signal");
            eventually("the file is read at once", || loads("loaded") >= load.into());
        }
        // Three files that do not stand, and none.
        for (refused, text) in [(1, "deny fd10::1/16\n"), (2, "allow\n"), (3, "\u{0}")] {
            write(&file, &format!("allow ::/0\n{text}"));
            eventually("the file is refused", || loads("refused") == refused);
        }
        let line = format!("-acl-file {}: line 2: \\\"deny fd10::1/16\\\": an IPv6 address", file.display());
        assert!(daemon.log().contains(&line) || daemon.log().contains(&line.replace("\\\"", "\"")), "{}", daemon.log());
        fs::remove_file(&file).expect("there");
        eventually("a file that is gone is told", || loads("refused") == 4);
        let ((served, refused), (served_too, refused_too)) = (denied.counts(), allowed.counts());
        println!("denied: {served} served, {refused} refused; allowed: {served_too} served, {refused_too} refused");
        assert_eq!((served, refused_too), (0, 0));
        assert!(refused > 20 && served_too > 200, "too little was asked");
        write(&file, &format!("deny {SECOND}\n"));
        eventually("the list of the file is in force", || denied.counts().0 > 0);
        let before = allowed.counts().0;
        eventually("for both", || allowed.counts().1 > 2);
        assert!(allowed.counts().0 <= before + 1, "who is denied now is served");
    });
}

both_paths! {
    file: file_native, file_off;
}

/// A restart with the same list opens no gap, and one with another list applies it before the daemon says that it is ready.
#[test]
fn a_restart_opens_no_gap() {
    if !is_root("a_restart_opens_no_gap") {
        return;
    }
    let fabric = fabric();
    let (endpoint, client) = two_hosts(&fabric);
    let deny =
        |addresses: &str| ["-cache-memory".to_owned(), "16m".to_owned(), "-acl-deny".to_owned(), addresses.to_owned()];
    let run = |addresses: &str| {
        let flags = deny(addresses);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let mut daemon = start(endpoint, "native", &flags);
        daemon.leave();
        daemon
    };
    let mut daemon = run(&FIRST.to_string());
    publish(&daemon, client);
    thread::scope(|scope| {
        let denied = Asking::start(scope, client, endpoint, FIRST);
        let other = Asking::start(scope, client, endpoint, SECOND);
        for kill in [false, true] {
            thread::sleep(Duration::from_millis(300));
            if kill {
                daemon.child().kill();
            } else {
                daemon.end().expect("it ends");
            }
            // The kernel program alone.
            let before = denied.counts().1;
            eventually("it goes on", || denied.counts().1 > before + 3);
            daemon = run(&format!("{FIRST},fd99::{}", u8::from(kill)));
        }
        let before = denied.counts().1;
        eventually("the last one refuses too", || denied.counts().1 > before + 3);
        assert_eq!((denied.counts().0, other.counts().1), (0, 0), "served and refused that must not");
        assert!(other.counts().0 > 100, "{:?}", other.counts());
        daemon.end().expect("it ends");
        daemon = run(&SECOND.to_string());
        let (ready, served) = (Instant::now(), other.counts().0);
        eventually("another list", || other.counts().1 > 2 && denied.counts().0 > 2);
        assert!(other.counts().0 <= served + 1, "served after {:?}", ready.elapsed());
    });
    daemon.child().kill();
    assert!(daemon.run("detach", &[]).expect("it runs").status.success());
}

/// The host's firewall drops a source: the kernel program answers it all the same, until the rules are imported.
#[test]
fn the_firewalls_rules_are_imported() {
    if !is_root("the_firewalls_rules_are_imported") {
        return;
    }
    let fabric = fabric();
    let (endpoint, client) = two_hosts(&fabric);
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("acl");
    fs::write(&file, "# nothing yet\n").expect("written");
    let name = file.to_str().expect("a name");
    let rules = format!(
        "table inet filter {{\n\
           set bad {{ type ipv6_addr; flags interval; elements = {{ fd98::/32, {FIRST} }} }}\n\
           chain input {{ type filter hook input priority 0; policy accept;\n\
             iifname \"lo\" accept\n\
             tcp dport 22 accept\n\
             iifname \"{INTERFACE}\" udp dport {{ 9300-9310 }} ip6 saddr @bad counter drop\n\
             ip6 saddr fd97::1-fd97::4 udp dport 9300 reject\n\
             udp dport 9300 limit rate over 1000000/second drop\n\
           }}\n\
         }}\n"
    );
    endpoint.ns.feed(&["nft", "-f", "-"], &rules).expect("nft takes the rules");
    let daemon = start(endpoint, "native", &["-acl-file", name]);
    publish(&daemon, client);
    let [first, second] = [FIRST, SECOND].map(|address| socket(client, address));
    assert!(is_served(&first, endpoint), "XDP precedes the firewall");
    let dropped = endpoint.ns.run(&["nft", "list", "chain", "inet", "filter", "input"]).expect("a list");
    assert!(dropped.contains("counter packets 0 bytes 0"), "{dropped}");

    let mut command = endpoint.ns.command(binary()).expect("a command");
    command.args(["firewall", "import", "-iface", INTERFACE, "-out", name]);
    let output = command.output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.contains("table inet filter, chain input, handle ") && told.contains("\"limit\""), "{told}");
    let text = fs::read_to_string(&file).expect("written");
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let wanted =
        ["deny fd98::/32", "deny fd97::2/127", &format!("deny {FIRST}/128"), "deny fd97::1/128", "deny fd97::4/128"];
    assert_eq!(lines, wanted, "{text}");
    eventually("the daemon reads it", || !is_served(&first, endpoint));
    assert!(is_served(&second, endpoint));
    counted(&daemon, "bre_nack_refused_total", &[("reason", "denied"), ("path", "xdp")], 1);
}
