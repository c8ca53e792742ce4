use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use nix::unistd::pipe;
use socket2::{Domain, Type};

use super::holder::Holder;
use super::*;
use crate::net::testing::SOON;

/// Longer than any step of a test.
const LONG: Duration = Duration::from_secs(60);

/// A holder on a thread, under a name of its own.
fn holder(lease: Duration) -> (String, JoinHandle<()>) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let listener = holder::listen(&name).expect("a name");
    (name, std::thread::spawn(move || Holder::new(lease).serve(&listener)))
}

/// What is kept, and where its end is seen.
fn kept() -> (OwnedFd, File) {
    let (reader, writer) = pipe().expect("a pipe");
    (writer, File::from(reader))
}

/// True when no process has the other end any more.
fn is_closed(reader: &mut File) -> bool {
    let mut wait = [nix::poll::PollFd::new(reader.as_fd(), nix::poll::PollFlags::POLLIN)];
    nix::poll::poll(&mut wait, nix::poll::PollTimeout::ZERO).expect("a poll") > 0
}

fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !so() {
        assert!(Instant::now() < deadline, "never came: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_is_held_outlives_its_daemon_and_is_handed_to_the_next() {
    let (name, thread) = holder(LONG);
    let ((membership, mut membership_end), (nack, mut nack_end)) = (kept(), kept());
    let link = Link::find(&name).expect("it listens");
    let set = [(Kind::Nack, nack.as_fd()), (Kind::Membership, membership.as_fd())];
    link.replace(&set, LONG).expect("kept");
    drop((link, membership, nack));
    let link = Link::find(&name).expect("it goes on");
    let taken = link.take().expect("handed out");
    assert_eq!(taken.iter().map(|one| one.0).collect::<Vec<_>>(), [Kind::Nack], "memberships are of no use to it");
    drop(taken);
    assert!(!is_closed(&mut membership_end) && !is_closed(&mut nack_end));
    link.release().expect("released");
    thread.join().expect("no panic");
    assert!(is_closed(&mut membership_end) && is_closed(&mut nack_end));
    assert!(matches!(Link::find(&name), Err(LinkError::Absent)));
}

#[test]
fn a_new_set_replaces_the_old_one_whole_or_not_at_all() {
    let (name, _thread) = holder(LONG);
    let ((old, mut old_end), (new, mut new_end)) = (kept(), kept());
    let link = Link::find(&name).expect("it listens");
    let many: Vec<_> = (0..protocol::MOST_AT_ONCE + 1).map(|_| (Kind::Membership, old.as_fd())).collect();
    link.replace(&many, LONG).expect("kept");
    drop(old);
    // A daemon that dies before it says that the set is complete.
    let half = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
    drop(link);
    half.connect(&protocol::address(&name).expect("a name")).expect("it listens");
    assert!(protocol::receive(&half).expect("a greeting").is_some());
    protocol::send(&half, &[protocol::KEEP, Kind::Membership.byte()], &[new.as_fd()]).expect("sent");
    drop((half, new));
    eventually("half a set is closed", || is_closed(&mut new_end));
    assert!(!is_closed(&mut old_end));
    let link = Link::find(&name).expect("it goes on");
    link.replace(&[], LONG).expect("replaced");
    assert!(is_closed(&mut old_end));
    link.release().expect("released");
}

#[test]
fn the_lease_runs_while_no_daemon_is_connected() {
    let (name, thread) = holder(LONG);
    let (membership, mut end) = kept();
    let link = Link::find(&name).expect("it listens");
    link.replace(&[(Kind::Membership, membership.as_fd())], Duration::from_millis(300)).expect("kept");
    drop(membership);
    std::thread::sleep(Duration::from_millis(600));
    assert!(link.is_open() && !is_closed(&mut end), "a daemon is connected");
    let start = Instant::now();
    drop(link);
    thread.join().expect("no panic");
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(290) && took < SOON, "{took:?}");
    let mut nothing = Vec::new();
    assert_eq!(end.read_to_end(&mut nothing).expect("the end"), 0);
}

#[test]
fn a_second_daemon_is_told_so() {
    let (name, _thread) = holder(LONG);
    let first = Link::find(&name).expect("it listens");
    assert!(matches!(Link::find(&name), Err(LinkError::Busy)));
    let error = release(&name).expect_err("a daemon is connected");
    assert!(error.to_string().contains("another daemon"), "{error}");
    assert!(first.is_open(), "the first one is not disturbed");
    first.release().expect("released");
    assert!(matches!(release(&name), Ok(false)), "none runs");
}

#[test]
fn a_holder_of_another_version_is_found_out() {
    let name = format!("test-{}-version", std::process::id());
    let listener = holder::listen(&name).expect("a name");
    listener.set_nonblocking(false).expect("an option");
    let thread = std::thread::spawn(move || {
        let greet = || {
            let (daemon, _) = listener.accept().expect("a daemon");
            protocol::send(&daemon, &[protocol::SERVED, protocol::VERSION + 1], &[]).expect("sent");
            daemon
        };
        let found = greet();
        drop(found);
        let ended = greet();
        protocol::receive(&ended).expect("a packet").expect("a word").bytes().to_vec()
    });
    // Nothing is changed before the port of NACKs is wanted; then the holder ends, or it would keep the port.
    let mut found = Found::look(&Config { handover: true, lease: LONG, interface: name.clone() });
    assert!(!thread.is_finished());
    assert!(found.nack_socket(SocketAddrV6::new(std::net::Ipv6Addr::LOCALHOST, 9, 0, 0)).is_none());
    assert_eq!(thread.join().expect("no panic"), [protocol::RELEASE]);
}

#[test]
fn only_the_wanted_nack_socket_is_taken() {
    let (name, _thread) = holder(LONG);
    let socket = std::net::UdpSocket::bind("[::1]:0").expect("loopback");
    let SocketAddr::V6(local) = socket.local_addr().expect("bound") else { return };
    let last_run = LastRun::new().expect("memory");
    let config = Config { handover: true, lease: LONG, interface: name.clone() };
    Link::find(&name)
        .expect("it listens")
        .replace(&[(Kind::Nack, socket.as_fd()), (Kind::LastRun, last_run.as_fd())], LONG)
        .expect("kept");
    drop(socket);
    let mut found = Found::default();
    found.take_from(Link::find(&name).expect("it goes on"));
    assert!(!found.is_stale());
    let other = SocketAddrV6::new(*local.ip(), local.port() ^ 1, 0, 0);
    assert!(found.nack_socket(other).is_none());
    drop(found);
    // From the holder of another interface, which ends.
    let mut found = Found::default();
    let elsewhere = Config { interface: "elsewhere".to_owned(), ..config };
    eventually("it is taken", || found.nack_socket_elsewhere(&elsewhere, local).is_some());
    assert!(!found.is_stale());
    assert!(matches!(Link::find(&name), Err(LinkError::Absent)));
}

#[test]
fn a_holder_that_holds_nothing_does_not_stay() {
    let start = Instant::now();
    let (name, never_used) = holder(LONG);
    never_used.join().expect("no panic");
    assert!(start.elapsed() < SOON, "not for the lease");
    let (name_of_used, used) = holder(LONG);
    let link = Link::find(&name_of_used).expect("it listens");
    std::thread::sleep(Duration::from_millis(1_200));
    assert!(link.is_open(), "a daemon is connected");
    drop(link);
    used.join().expect("no panic");
    assert!(matches!(Link::find(&name), Err(LinkError::Absent)));
}
