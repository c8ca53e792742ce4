//! Who else may bind the NACK port: listeners on the endpoint's host, and a user who wants the NACKs.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::time::{Duration, Instant};

use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::capture::RawSender;
use retry_testbed::net::fabric::{Fabric, Host, INTERFACE, NACK_PORT, group};
use retry_testbed::net::packet::PacketBuilder;
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::scene::{ask, asker, await_count, binary, flags, is_root, two_hosts};
use socket2::{Domain, Socket, Type};

const KEY: FrameKey = FrameKey::new(0xb1d, 1);
/// Another user of the machine.
const USER: u32 = 65_534;
/// Long enough for a busy machine; nothing waits so long when it works.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a program sets before it binds.
#[derive(Clone, Copy, Debug)]
struct Shares {
    address: bool,
    port: bool,
}

const ADDRESS: Shares = Shares { address: true, port: false };

/// A socket of a user on the NACK port of a host.
fn bind(host: &Host, user: u32, address: Ipv6Addr, shares: Shares) -> io::Result<UdpSocket> {
    host.ns.enter(|| {
        // SAFETY: the bare system call changes the user of this thread alone, which ends right away, and takes integers.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) };
        assert_eq!(result, 0, "root may");
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
        socket.set_only_v6(true)?;
        socket.set_reuse_address(shares.address)?;
        socket.set_reuse_port(shares.port)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.bind(&SocketAddrV6::new(address, NACK_PORT, 0, 0).into())?;
        Ok(socket.into())
    })
}

/// A listener of beacons on the endpoint's host.
fn listener(host: &Host) -> io::Result<UdpSocket> {
    let socket = bind(host, USER, Ipv6Addr::UNSPECIFIED, ADDRESS)?;
    socket.join_multicast_v6(&group(0xFFFD), host.ifindex)?;
    Ok(socket)
}

/// Whether the endpoint answers a NACK for a frame that it does not have.
fn answers(client: &Host, endpoint: &Host) -> bool {
    let answers = ask(&asker(client), endpoint.nack_address(), &nack(KEY), 1);
    answers.first().map(|bytes| Answer::parse(bytes, KEY.seq_num())) == Some(Ok(Answer::Miss))
}

fn hears_a_beacon(listener: &UdpSocket) -> bool {
    let mut buffer = [0; 2_048];
    listener.recv(&mut buffer).is_ok_and(|length| length == 56 && buffer[6] == 0x20)
}

/// Once the endpoint runs no other user gets its port, whatever he sets.
#[test]
fn another_user_cannot_take_the_nacks() {
    if !is_root("another_user_cannot_take_the_nacks") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let _daemon = Daemon::start(&binary(), &endpoint.ns, &flags("off", &[])).expect("a daemon");
    for address in [endpoint.addr, Ipv6Addr::UNSPECIFIED] {
        for (share_address, port) in [(true, false), (false, true), (true, true)] {
            let shares = Shares { address: share_address, port };
            let bound = bind(endpoint, USER, address, shares);
            assert!(answers(client, endpoint), "a socket at {address} has the NACK ({shares:?}: {bound:?})");
            let error = bound.expect_err("taken");
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{address}, {shares:?}");
        }
    }
}

/// A listener that was there first hears beacons, and the endpoint its NACKs.
#[test]
fn a_listener_that_was_there_first() {
    if !is_root("a_listener_that_was_there_first") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let listener = listener(endpoint).expect("a free port");
    let _daemon = Daemon::start(&binary(), &endpoint.ns, &flags("off", &["-beacon-interval", "1s"])).expect("a daemon");
    assert!(hears_a_beacon(&listener));
    assert!(answers(client, endpoint));
}

/// Who has the very address before the endpoint would get its NACKs: the endpoint does not start, and names him.
#[test]
fn a_rival_that_was_there_first_is_named() {
    if !is_root("a_rival_that_was_there_first_is_named") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let _rival = bind(endpoint, USER, endpoint.addr, ADDRESS).expect("a free port");
    for more in [&[][..], &["-nack-port-shared"]] {
        let error =
            Daemon::start(&binary(), &endpoint.ns, &flags("off", more)).map(drop).expect_err("refused").to_string();
        assert!(error.contains("-nack-addr, -nack-port: another program is bound to [fd10::1]:9300"), "{error}");
        assert!(error.contains("opened by user 65534"), "{error}");
    }
}

/// With `-nack-port-shared`, a listener may come later; a rival may too, which is told and counted while he is there.
#[test]
fn a_shared_port_is_watched() {
    if !is_root("a_shared_port_is_watched") {
        return;
    }
    let contended =
        |daemon: &Daemon<'_>| daemon.metrics().expect("a scrape").count("bre_nack_port_contended_total", &[]);
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let flags = flags("off", &["-nack-port-shared", "-beacon-interval", "1s"]);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");
    let listener = listener(endpoint).expect("a port that is shared");
    assert!(hears_a_beacon(&listener));
    assert!(answers(client, endpoint));
    assert_eq!(contended(&daemon), 0);
    let rival = bind(endpoint, USER, endpoint.addr, ADDRESS).expect("a port that is shared");
    await_count(&daemon, "bre_nack_port_contended_total", &[], 2);
    assert!(contended(&daemon) >= 2);
    let told = daemon.log().lines().filter(|line| line.contains("may take them") && line.contains("65534")).count();
    assert_eq!(told, 1, "{}", daemon.log());
    drop(rival);
    let deadline = Instant::now() + PATIENCE;
    while !daemon.log().contains("no other program is bound") {
        assert!(Instant::now() < deadline, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(answers(client, endpoint));
}

/// What a host sends from the unspecified address is not answered: the answer would go to a socket of the endpoint's own host.
fn an_answer_stays_off_this_host(xdp: &str) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &[])).expect("a daemon");
    let local = endpoint.ns.enter(|| UdpSocket::bind((Ipv6Addr::LOCALHOST, 0))).expect("a socket");
    let port = local.local_addr().expect("bound").port();
    let sender = RawSender::open(&client.ns, INTERFACE).expect("a raw socket");
    for (from, number) in [(Ipv6Addr::UNSPECIFIED, 1), (client.addr, 2)] {
        let from = SocketAddrV6::new(from, if number == 1 { port } else { 0 }, 0, 0);
        let mut packet = PacketBuilder::udp(from, endpoint.nack_address(), &nack(KEY));
        (packet.src_mac, packet.dst_mac) = (client.mac, endpoint.mac);
        sender.send(&packet.build()).expect("it leaves");
        await_count(&daemon, "bre_nack_dropped_total", &[("reason", "source")], number);
    }
    assert!(answers(client, endpoint), "others are served");
    local.set_nonblocking(true).expect("an option");
    let got = local.recv(&mut [0; 64]);
    assert_eq!(got.map_err(|error| error.kind()), Err(io::ErrorKind::WouldBlock));
}

#[test]
fn an_answer_stays_off_this_host_native() {
    if is_root("an_answer_stays_off_this_host_native") {
        an_answer_stays_off_this_host("native");
    }
}

#[test]
fn an_answer_stays_off_this_host_off() {
    if is_root("an_answer_stays_off_this_host_off") {
        an_answer_stays_off_this_host("off");
    }
}
