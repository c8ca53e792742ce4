//! What the endpoint has joined stays joined while it restarts: no MLD leave leaves its host, whatever ended the daemon. NACKs
//! that arrive meanwhile wait for the next daemon, for a second.

use std::collections::BTreeSet;
use std::io::IoSliceMut;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::Pid;
use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::capture::{Capture, without_tags};
use retry_testbed::net::fabric::{Fabric, Host, INTERFACE, NACK_PORT, group, group_in};
use retry_testbed::net::netns::Netns;
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::frames::{Flow, Kind};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{asker, binary, counted, eventually, flags, is_root, two_hosts};

/// Site scope, sources named.
const SITE_SSM: u16 = 0xFF35;
/// A report of a change leaves up to a second late, and then once more (RFC 3810, section 9.11).
pub(crate) const REPORTED: Duration = Duration::from_millis(2_500);
/// A publisher that is named and then not.
const SECOND: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 0x12);

/// A group that was left, and the sources: none for all of them.
pub(crate) type Leave = (Ipv6Addr, Vec<Ipv6Addr>);

/// What MLD packets that an interface sent say to be left: Done of version 1; TO_IN and BLOCK of version 2.
pub(crate) fn leaves(capture: &Capture) -> BTreeSet<Leave> {
    let seen = capture.seen();
    seen.iter().filter(|packet| packet.outgoing).filter_map(|packet| mld(&packet.bytes)).flat_map(left).collect()
}

/// ICMPv6 behind the header that MLD has.
fn mld(bytes: &[u8]) -> Option<&[u8]> {
    let packet = without_tags(bytes)?;
    // Next header, and then that of the hop-by-hop options of 8 bytes.
    (packet.get(6) == Some(&0) && packet.get(40) == Some(&58)).then(|| packet.get(48..)).flatten()
}

fn left(mld: &[u8]) -> Vec<Leave> {
    let address = |at: usize| {
        let octets: [u8; 16] = mld.get(at..at + 16).and_then(|bytes| bytes.try_into().ok()).expect("a whole packet");
        Ipv6Addr::from(octets)
    };
    let number = |at: usize| usize::from(u16::from_be_bytes([mld[at], mld[at + 1]]));
    match mld[0] {
        132 => vec![(address(8), Vec::new())],
        143 => {
            let (mut at, mut found) = (8, Vec::new());
            for _ in 0..number(6) {
                let sources = number(at + 2);
                let kind = mld[at];
                if kind == 6 || (kind == 3 && sources == 0) {
                    found.push((address(at + 4), (0..sources).map(|one| address(at + 20 + 16 * one)).collect()));
                }
                at += 20 + 16 * sources + 4 * usize::from(mld[at + 1]);
            }
            found
        }
        _ => Vec::new(),
    }
}

/// The groups that an interface of this namespace is a member of.
pub(crate) fn members(ns: &Netns, interface: &str) -> BTreeSet<Ipv6Addr> {
    let table = ns.enter(|| std::fs::read_to_string("/proc/thread-self/net/igmp6")).expect("a table");
    let of_interface = table.lines().filter(|line| line.split_whitespace().nth(1) == Some(interface));
    let groups = of_interface.filter_map(|line| u128::from_str_radix(line.split_whitespace().nth(2)?, 16).ok());
    groups.map(Ipv6Addr::from).collect()
}

/// The holders of a namespace: their process ids.
fn holders(ns: &Netns) -> Vec<Pid> {
    let inside = retry_testbed::net::netns::host_command(&["ip", "netns", "pids", ns.name()]).expect("a list");
    let is_holder = |pid: &i32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.split(|byte| *byte == 0).nth(1) == Some(b"hold")
    };
    inside.lines().filter_map(|line| line.trim().parse().ok()).filter(is_holder).map(Pid::from_raw).collect()
}

/// Until the memberships of this daemon are kept.
fn await_kept(daemon: &Daemon<'_>) {
    eventually("memberships are kept", || daemon.log().contains("keeps memberships"));
}

/// Flags by which the log tells of the holder.
fn kept<'a>(xdp: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut all = flags(xdp, &["-log-level", "debug", "-bpf-lease", "20s"]);
    all.extend(more);
    all
}

/// Ends a daemon; the holder goes on.
fn end(daemon: &mut Daemon<'_>, signal: Signal) {
    if signal == Signal::SIGTERM {
        daemon.end().expect("it ends");
    } else {
        daemon.child().signal(signal).expect("it runs");
        daemon.wait().expect("it ends");
    }
}

/// Through a bridge that forwards a group's frames only to members.
fn restart(xdp: &str, version: u8, mode: &str, signal: Signal) {
    let fabric = Fabric::bridged(&["endpoint", "publisher"], 1500).expect("a fabric");
    let (endpoint, from) = (fabric.host("endpoint").expect("a host"), fabric.host("publisher").expect("a host"));
    endpoint.ns.sysctl("net/ipv6/conf/eth0/force_mld_version", &version.to_string()).expect("a sysctl");
    let source = from.addr.to_string();
    let (data, more): (Ipv6Addr, &[&str]) = match mode {
        "ssm" => (group_in(SITE_SSM, 1), &["-source-mode", "ssm", "-scope", "site", "-ssm-publishers-static", &source]),
        _ => (group(1), &[]),
    };
    let flags = kept(xdp, more);
    let wanted = [data, group(0xFFFD)];
    let mut first = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");
    fabric.await_members("endpoint", &wanted).expect("members");
    await_kept(&first);
    let joined = members(&endpoint.ns, INTERFACE);
    assert!(wanted.iter().all(|group| joined.contains(group)), "{joined:?}");
    std::thread::sleep(REPORTED);
    let capture = Capture::start_with(&endpoint.ns, INTERFACE, true).expect("a capture");

    end(&mut first, signal);
    // Longer than a leave needs.
    std::thread::sleep(REPORTED);
    assert_eq!(members(&endpoint.ns, INTERFACE), joined, "while no daemon runs");
    assert_eq!(leaves(&capture), BTreeSet::new(), "while no daemon runs");
    let holder = holders(&endpoint.ns);
    assert_eq!(holder.len(), 1);

    let second = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");
    await_kept(&second);
    std::thread::sleep(REPORTED);
    assert_eq!(leaves(&capture), BTreeSet::new(), "with the next daemon");
    assert_eq!(members(&endpoint.ns, INTERFACE), joined, "with the next daemon");
    assert_eq!(holders(&endpoint.ns), holder, "the next daemon uses it");
    // The groups are joined, not only held.
    let publish = Publisher::open(&from.ns, Arc::new(Journal::new())).expect("a publisher");
    let mut flow = Flow::new(Kind::Tx, 1, 2, 300..=300);
    for _ in 0..20 {
        publish.send(data, &flow.next_frame()).expect("a frame leaves");
    }
    counted(&second, "bre_frames_cached_total", &[], 20);
    drop(second);
    drop(first);
    assert_eq!(holders(&endpoint.ns), [], "the testbed leaves none behind");
}

#[test]
fn a_restart_leaves_no_any_source_group() {
    if is_root("a_restart_leaves_no_any_source_group") {
        restart("native", 2, "asm", Signal::SIGTERM);
    }
}

#[test]
fn a_restart_leaves_no_source() {
    if is_root("a_restart_leaves_no_source") {
        restart("off", 2, "ssm", Signal::SIGTERM);
    }
}

#[test]
fn a_killed_daemon_leaves_no_any_source_group() {
    if is_root("a_killed_daemon_leaves_no_any_source_group") {
        restart("off", 2, "asm", Signal::SIGKILL);
    }
}

#[test]
fn a_killed_daemon_leaves_no_source() {
    if is_root("a_killed_daemon_leaves_no_source") {
        restart("native", 2, "ssm", Signal::SIGKILL);
    }
}

#[test]
fn a_killed_daemon_sends_no_done_of_version_1() {
    if is_root("a_killed_daemon_sends_no_done_of_version_1") {
        restart("off", 1, "asm", Signal::SIGKILL);
    }
}

/// Without a next daemon the memberships end with the lease, and so does the holder.
#[test]
fn after_the_lease_the_groups_are_left() {
    if !is_root("after_the_lease_the_groups_are_left") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let mut daemon = Daemon::start(&binary(), &endpoint.ns, &kept("off", &["-bpf-lease", "2s"])).expect("a daemon");
    await_kept(&daemon);
    let capture = Capture::start_with(&endpoint.ns, INTERFACE, true).expect("a capture");
    std::thread::sleep(REPORTED);
    assert_eq!(holders(&endpoint.ns).len(), 1, "the lease does not run while the daemon does");
    let ended = Instant::now();
    end(&mut daemon, Signal::SIGKILL);
    std::thread::sleep(Duration::from_millis(1_200).saturating_sub(ended.elapsed()));
    assert!(members(&endpoint.ns, INTERFACE).contains(&group(1)));
    eventually("the holder ends", || holders(&endpoint.ns).is_empty());
    assert!(!members(&endpoint.ns, INTERFACE).contains(&group(1)));
    eventually("the leave is reported", || leaves(&capture).contains(&(group(1), Vec::new())));
}

/// The next daemon wants fewer sources: these are left, and nothing else.
#[test]
fn what_the_next_daemon_does_not_want_is_left() {
    if !is_root("what_the_next_daemon_does_not_want_is_left") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let (one, both) = (client.addr.to_string(), format!("{},{SECOND}", client.addr));
    let ssm = |sources: &'_ str| -> Vec<String> {
        let all = kept("off", &["-source-mode", "ssm", "-scope", "site", "-ssm-publishers-static", sources]);
        all.into_iter().map(str::to_owned).collect()
    };
    let mut first = Daemon::start(&binary(), &endpoint.ns, &ssm(&both)).expect("a daemon");
    await_kept(&first);
    std::thread::sleep(REPORTED);
    let capture = Capture::start_with(&endpoint.ns, INTERFACE, true).expect("a capture");
    end(&mut first, Signal::SIGTERM);
    let second = Daemon::start(&binary(), &endpoint.ns, &ssm(&one)).expect("a daemon");
    await_kept(&second);
    std::thread::sleep(REPORTED);
    let left = leaves(&capture);
    assert!(left.contains(&(group_in(SITE_SSM, 1), vec![SECOND])), "{left:?}");
    assert!(left.iter().all(|(_, sources)| *sources == [SECOND]), "{left:?}");
}

/// A holder that is ended is replaced.
#[test]
fn a_holder_that_ends_is_replaced() {
    if !is_root("a_holder_that_ends_is_replaced") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let mut daemon = Daemon::start(&binary(), &endpoint.ns, &kept("off", &[])).expect("a daemon");
    await_kept(&daemon);
    let first = holders(&endpoint.ns);
    assert_eq!(first.len(), 1);
    kill(first[0], Signal::SIGTERM).expect("it runs");
    eventually("another one", || {
        let now = holders(&endpoint.ns);
        now.len() == 1 && now != first
    });
    eventually("it has them", || daemon.log().matches("keeps memberships").count() >= 2);
    assert!(daemon.log().contains("the holder of memberships has ended"), "{}", daemon.log());
    let joined = members(&endpoint.ns, INTERFACE);
    end(&mut daemon, Signal::SIGKILL);
    assert_eq!(members(&endpoint.ns, INTERFACE), joined);
}

/// A process of another user has the holder's name: the daemon trusts it with nothing, says so once, and serves.
#[test]
fn a_name_of_another_user_is_not_trusted() {
    if !is_root("a_name_of_another_user_is_not_trusted") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let squatter = endpoint.ns.enter(|| {
        // SAFETY: the bare system call changes the user of this thread alone, and takes integers.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) };
        assert_eq!(changed, 0);
        squat()
    });
    let mut daemon = Daemon::start(&binary(), &endpoint.ns, &kept("off", &[])).expect("a daemon");
    eventually("it says so", || daemon.log().contains("user 65534 has the name of the holder"));
    std::thread::sleep(Duration::from_millis(3_500));
    assert_eq!(
        daemon.log().matches("user 65534 has the name").count(),
        1 + 1,
        "a debug line at the start\n{}",
        daemon.log()
    );
    assert_eq!(answer(client, endpoint), Some(Answer::Miss));
    end(&mut daemon, Signal::SIGTERM);
    drop(squatter);
    assert!(!members(&endpoint.ns, INTERFACE).contains(&group(1)), "no process holds it");
}

/// A listener at the holder's name, of the kind that the holder is.
fn squat() -> socket2::Socket {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::SEQPACKET, None).expect("a socket");
    let address = socket2::SockAddr::unix(format!("\0retry-endpoint/hold/{INTERFACE}")).expect("an address");
    socket.bind(&address).expect("a free name");
    socket.listen(8).expect("it listens");
    socket
}

/// What a NACK for a frame that is not there gets.
fn answer(client: &Host, endpoint: &Host) -> Option<Answer> {
    let socket = asker(client);
    send_nack(&socket, endpoint);
    read_answer(&socket)
}

fn key() -> FrameKey {
    FrameKey::new(0x1234, 1)
}

fn send_nack(socket: &UdpSocket, endpoint: &Host) {
    socket.send_to(&nack(key()), endpoint.nack_address()).expect("a NACK leaves");
}

fn read_answer(socket: &UdpSocket) -> Option<Answer> {
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).ok()?;
    Answer::parse(&buffer[..length], key().seq_num()).ok()
}

/// NACKs that arrive while the daemon restarts are answered by the next one.
#[test]
fn a_nack_waits_for_the_next_daemon() {
    if !is_root("a_nack_waits_for_the_next_daemon") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut first = Daemon::start(&binary(), &endpoint.ns, &kept("off", &[])).expect("a daemon");
        await_kept(&first);
        end(&mut first, signal);
        let socket = asker(client);
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        send_nack(&socket, endpoint);
        let second = Daemon::start(&binary(), &endpoint.ns, &kept("off", &[])).expect("a daemon");
        assert_eq!(read_answer(&socket), Some(Answer::Miss), "{signal}\n{}", second.log());
    }
}

/// A NACK that has waited for longer than a second is dropped and counted.
#[test]
fn a_nack_that_waited_too_long_is_dropped() {
    if !is_root("a_nack_that_waited_too_long_is_dropped") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let mut first = Daemon::start(&binary(), &endpoint.ns, &kept("off", &[])).expect("a daemon");
    await_kept(&first);
    end(&mut first, Signal::SIGKILL);
    let socket = asker(client);
    (0..3).for_each(|_| send_nack(&socket, endpoint));
    std::thread::sleep(Duration::from_millis(1_500));
    let second = Daemon::start(&binary(), &endpoint.ns, &kept("off", &[])).expect("a daemon");
    let metrics = counted(&second, "bre_nack_dropped_total", &[("reason", "stale")], 3);
    assert_eq!(metrics.count("bre_nack_dropped_total", &[("reason", "stale")]), 3);
    assert_eq!(read_answer(&socket), None);
    assert_eq!(answer(client, endpoint), Some(Answer::Miss), "later ones are answered");
}

/// Ports that UDP sockets of a namespace are bound to, at this address.
fn bound(host: &Host) -> BTreeSet<u16> {
    let text = host.ns.run(&["ss", "-Huan6"]).expect("a list");
    let locals = text.lines().filter_map(|line| line.split_whitespace().nth(3)?.parse::<SocketAddr>().ok());
    locals.filter(|local| local.ip() == host.addr).map(|local| local.port()).collect()
}

/// The next daemon has another NACK port, or another interface: it gets its socket, and the old one is closed.
#[test]
fn a_nack_socket_that_is_not_wanted_any_more_is_closed() {
    if !is_root("a_nack_socket_that_is_not_wanted_any_more_is_closed") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let _other = endpoint.second_link("other", 1500).expect("a second link");
    let mut first = Daemon::start(&binary(), &endpoint.ns, &kept("off", &[])).expect("a daemon");
    await_kept(&first);
    end(&mut first, Signal::SIGTERM);
    assert!(bound(endpoint).contains(&NACK_PORT), "it is kept");
    let mut second = Daemon::start(&binary(), &endpoint.ns, &kept("off", &["-nack-port", "9310"])).expect("a daemon");
    await_kept(&second);
    assert_eq!(bound(endpoint), BTreeSet::from([9_310]));
    end(&mut second, Signal::SIGTERM);
    // The holder of eth0 has the NACK socket that the daemon on eth1 needs.
    let address = endpoint.addr.to_string();
    let elsewhere = ["-nack-port", "9310", "-mc-iface", "eth1", "-nack-addr", &address];
    let third = Daemon::start(&binary(), &endpoint.ns, &kept("off", &elsewhere)).expect("a daemon");
    await_kept(&third);
    assert_eq!(bound(endpoint), BTreeSet::from([9_310]));
    assert_eq!(holders(&endpoint.ns).len(), 1, "that of eth0 has ended");
    assert!(!members(&endpoint.ns, INTERFACE).contains(&group(1)));
}

/// The kept socket is the same: a port that no other program got in between.
#[test]
fn no_other_program_gets_the_nack_port_meanwhile() {
    if !is_root("no_other_program_gets_the_nack_port_meanwhile") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let mut first = Daemon::start(&binary(), &endpoint.ns, &kept("off", &[])).expect("a daemon");
    await_kept(&first);
    end(&mut first, Signal::SIGKILL);
    let address = SocketAddrV6::new(endpoint.addr, NACK_PORT, 0, 0);
    endpoint.ns.enter(|| UdpSocket::bind(address)).expect_err("it is bound");
    let second = Daemon::start(&binary(), &endpoint.ns, &kept("off", &[])).expect("a daemon");
    std::thread::sleep(Duration::from_millis(1_500));
    let metrics = second.metrics().expect("a scrape");
    assert_eq!(metrics.count("bre_nack_port_contended_total", &[]), 0, "the kept socket is no rival\n{}", second.log());
}

/// With hand-over off no process is left; what an earlier daemon kept is given up, and nothing that stays joined is left.
#[test]
fn without_hand_over_nothing_is_kept() {
    if !is_root("without_hand_over_nothing_is_kept") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let mut first = Daemon::start(&binary(), &endpoint.ns, &kept("off", &[])).expect("a daemon");
    await_kept(&first);
    std::thread::sleep(REPORTED);
    let capture = Capture::start_with(&endpoint.ns, INTERFACE, true).expect("a capture");
    end(&mut first, Signal::SIGTERM);
    let mut second = Daemon::start(&binary(), &endpoint.ns, &kept("off", &["-bpf-handover=false"])).expect("a daemon");
    eventually("the holder ends", || holders(&endpoint.ns).is_empty());
    std::thread::sleep(REPORTED);
    assert_eq!(leaves(&capture), BTreeSet::new());
    assert!(members(&endpoint.ns, INTERFACE).contains(&group(1)));
    end(&mut second, Signal::SIGTERM);
    assert_eq!(holders(&endpoint.ns), []);
    assert!(!members(&endpoint.ns, INTERFACE).contains(&group(1)));
}

/// `detach` leaves the groups that an earlier daemon had joined; beside a daemon that runs it does nothing.
#[test]
fn detach_leaves_the_groups() {
    if !is_root("detach_leaves_the_groups") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let mut daemon = Daemon::start(&binary(), &endpoint.ns, &kept("off", &[])).expect("a daemon");
    await_kept(&daemon);
    let refused = daemon.run("detach", &[]).expect("it runs");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(text.contains("memberships on eth0: another daemon on this interface uses the holder"), "{text}");
    end(&mut daemon, Signal::SIGKILL);
    let done = daemon.run("detach", &[]).expect("it runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(String::from_utf8_lossy(&done.stdout).contains("memberships are kept no longer"));
    assert!(holders(&endpoint.ns).is_empty() && !members(&endpoint.ns, INTERFACE).contains(&group(1)));
}

/// A service manager as far as its descriptor store goes (sd_notify(3), sd_listen_fds(3)).
struct ServiceManager {
    directory: tempfile::TempDir,
    socket: UnixDatagram,
    stored: Vec<(String, OwnedFd)>,
}

impl ServiceManager {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = UnixDatagram::bind(directory.path().join("notify")).expect("a socket");
        socket.set_nonblocking(true).expect("an option");
        Self { directory, socket, stored: Vec::new() }
    }

    /// Takes what daemons have sent, in its order.
    fn listen(&mut self) {
        let (mut text, mut space) = ([0; 1_024], cmsg_space!([RawFd; 4]));
        loop {
            let mut vectors = [IoSliceMut::new(&mut text)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let Ok(packet) = recvmsg::<()>(self.socket.as_raw_fd(), &mut vectors, Some(&mut space), flags) else {
                return;
            };
            let mut fds = Vec::new();
            for control in packet.cmsgs().expect("whole") {
                if let ControlMessageOwned::ScmRights(raw) = control {
                    // SAFETY: the kernel has just opened these for this process, and nothing else owns them.
                    fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                }
            }
            let length = packet.bytes;
            let text = String::from_utf8_lossy(&text[..length]).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            let name = lines.iter().find_map(|line| line.strip_prefix("FDNAME=")).map(str::to_owned);
            if lines.contains(&"FDSTORE=1") {
                assert!(lines.contains(&"FDPOLL=0"), "{text}");
                for fd in fds {
                    let file = |fd: &OwnedFd| nix::sys::stat::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
                    // One that is stored already keeps its name.
                    if !self.stored.iter().any(|one| file(&one.1) == file(&fd)) {
                        self.stored.push((name.clone().expect("a name"), fd));
                    }
                }
            } else if lines.contains(&"FDSTOREREMOVE=1") {
                self.stored.retain(|one| Some(&one.0) != name.as_ref());
            }
        }
    }

    /// The names of what is stored that begin so.
    fn names(&mut self, prefix: &str) -> BTreeSet<String> {
        self.listen();
        self.stored.iter().map(|one| one.0.clone()).filter(|name| name.starts_with(prefix)).collect()
    }

    fn start<'a>(&self, endpoint: &'a Host, flags: &[&str]) -> Daemon<'a> {
        // The shell becomes the daemon: its own process id is known to it alone.
        let mut command = Command::new("sh");
        command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""]).arg(binary());
        let names: Vec<&str> = self.stored.iter().map(|one| one.0.as_str()).collect();
        command
            .env("NOTIFY_SOCKET", self.directory.path().join("notify"))
            .env("FDSTORE", "64")
            .env("LISTEN_FDS", names.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"));
        // Beyond the numbers that they get.
        let copies: Vec<OwnedFd> = self.stored.iter().map(|one| high(&one.1)).collect();
        let hook = move || {
            for (fd, number) in copies.iter().zip(3..) {
                // SAFETY: takes two numbers; what has the second one is closed, and nothing of this child uses it.
                Errno::result(unsafe { libc::dup2(fd.as_raw_fd(), number) })?;
            }
            Ok(())
        };
        // SAFETY: the hook runs between fork and exec and makes system calls, without allocation or locks.
        unsafe { command.pre_exec(hook) };
        Daemon::start_by(command, &binary(), &endpoint.ns, flags).expect("a daemon")
    }
}

fn high(fd: &OwnedFd) -> OwnedFd {
    let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(500)).expect("a number");
    // SAFETY: the kernel has just opened it, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(copy) }
}

/// Where a service manager stores descriptors it keeps memberships and NACK socket, and no process is started.
#[test]
fn a_service_manager_keeps_them() {
    if !is_root("a_service_manager_keeps_them") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let source = client.addr.to_string();
    let flags = kept("off", &["-source-mode", "ssm", "-scope", "site", "-ssm-publishers-static", &source]);
    let mut manager = ServiceManager::new();
    let mut first = manager.start(endpoint, &flags);
    await_kept(&first);
    let memberships = manager.names("retry-membership-");
    let nack_socket = manager.names("retry-nack-");
    assert!(!memberships.is_empty() && nack_socket.len() == 1 && manager.names("retry-lastrun-").len() == 1);
    assert_eq!(holders(&endpoint.ns), []);
    let joined = members(&endpoint.ns, INTERFACE);
    assert!(joined.contains(&group_in(SITE_SSM, 1)));
    std::thread::sleep(REPORTED);
    let capture = Capture::start_with(&endpoint.ns, INTERFACE, true).expect("a capture");

    end(&mut first, Signal::SIGKILL);
    std::thread::sleep(REPORTED);
    assert_eq!(members(&endpoint.ns, INTERFACE), joined, "while no daemon runs");
    let second = manager.start(endpoint, &flags);
    await_kept(&second);
    std::thread::sleep(REPORTED);
    assert_eq!(leaves(&capture), BTreeSet::new());
    assert_eq!(members(&endpoint.ns, INTERFACE), joined, "with the next daemon");
    assert_eq!(manager.names("retry-nack-"), nack_socket, "it is the same socket");
    let now = manager.names("retry-membership-");
    assert!(now.len() == memberships.len() && now.is_disjoint(&memberships), "{now:?}, {memberships:?}");
    assert_eq!(manager.names("retry-lastrun-").len(), 1);

    // A restart in time: what waits in the socket is answered.
    let mut second = second;
    end(&mut second, Signal::SIGTERM);
    let socket = asker(client);
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    send_nack(&socket, endpoint);
    manager.listen();
    let mut third = manager.start(endpoint, &flags);
    assert_eq!(read_answer(&socket), Some(Answer::Miss), "{}", third.log());
    await_kept(&third);
    // Without a store, the groups end with the daemon: nothing else holds them.
    end(&mut third, Signal::SIGKILL);
    manager.listen();
    assert!(members(&endpoint.ns, INTERFACE).contains(&group_in(SITE_SSM, 1)));
    drop(manager);
    assert!(!members(&endpoint.ns, INTERFACE).contains(&group_in(SITE_SSM, 1)));
}
