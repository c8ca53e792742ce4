//! Sends one datagram to a group, out of a chosen interface with a chosen source and hop limit.

use std::io;
use std::mem::zeroed;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

use super::message;

/// How multicast leaves by one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Egress {
    /// Index of the interface.
    pub interface: u32,
    /// Source address, which this host must hold; unspecified leaves the choice to the kernel.
    pub source: Ipv6Addr,
    /// UDP destination port.
    pub port: u16,
    /// Hop limit: 1 stays on the link.
    pub hop_limit: u8,
}

/// Sends `bytes` to `group` (RFC 3542: IPV6_PKTINFO and IPV6_HOPLIMIT of this datagram alone); the source port is the socket's.
///
/// Above the MTU the kernel makes IPv6 fragments. Success means that all of them were accepted for transmission.
///
/// # Errors
/// What `sendmsg` returns: EINVAL for a source that this host does not hold, ENODEV or ENETUNREACH for an interface that is gone or
/// down, EMSGSIZE above 65,527 bytes, EAGAIN when the send buffer is full: no send waits.
pub(crate) fn send(socket: &impl AsFd, egress: &Egress, group: Ipv6Addr, bytes: &[u8]) -> io::Result<()> {
    // The scope matters for link-local groups only.
    let mut to = message::to_raw(SocketAddrV6::new(group, egress.port, 0, egress.interface));
    let mut control = message::egress(egress.source, egress.interface, egress.hop_limit);
    let mut vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is integers and raw pointers only, for which zero is a value.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_name = (&raw mut to).cast();
    header.msg_namelen = message::ADDRESS;
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = message::length(control.len());
    loop {
        // SAFETY: the header points at an address, a vector of `bytes` and control messages, which outlive the call and are only read.
        let result = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const header, libc::MSG_DONTWAIT) };
        if result >= 0 {
            return Ok(());
        }
        match Errno::last() {
            Errno::EINTR => {}
            errno => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;

    use super::*;
    use crate::ingress::joins::Joins;
    use crate::net::batch::{Batch, LONGEST_DATAGRAM};
    use crate::net::nack_socket::{Config, NackSocket};
    use crate::net::options;
    use crate::net::testing::{Pair, QUIET, SOON, in_namespace};

    const PORT: u16 = 9001;

    fn address(text: &str) -> Ipv6Addr {
        text.parse().expect("an address")
    }

    fn nack_socket(multicast_loop: bool) -> NackSocket {
        NackSocket::open(&Config {
            address: address("fd01::1"),
            port: 9300,
            receive_buffer: 1 << 20,
            shared: false,
            multicast_loop,
        })
        .expect("the address is this host's")
    }

    fn egress(pair: &Pair, source: &str, hop_limit: u8) -> Egress {
        Egress { interface: pair.near.index, source: address(source), port: PORT, hop_limit }
    }

    fn joined(interface: u32, group: Ipv6Addr) -> Joins {
        let joins = Joins::open(interface, PORT, &[group]).expect("joined");
        options::tell_hop_limit(&only(&joins)).expect("an option");
        joins
    }

    fn only(joins: &Joins) -> BorrowedFd<'_> {
        joins.fds().next().expect("at least one")
    }

    #[test]
    fn source_port_hop_limit_and_interface_are_the_chosen_ones() {
        in_namespace("source_port_hop_limit_and_interface_are_the_chosen_ones", |pair| {
            let group = address("ff05::b:1");
            let joins = joined(pair.far.index, group);
            let socket = nack_socket(false);
            let mut batch = Batch::new(8, 2048);
            // fd01::2 is on the same interface, fd02::1 on another one of this host; neither is the socket's own address.
            for (source, hop_limit) in [("fd01::1", 1), ("fd01::2", 7), ("fd02::1", 64), ("fd01::2", 255)] {
                let egress = egress(&pair, source, hop_limit);
                socket.send_multicast(&egress, group, source.as_bytes()).expect("sent");
                assert_eq!(batch.recv(&only(&joins), SOON).expect("received"), 1, "{source}");
                let one = batch.datagrams().next().expect("one");
                assert_eq!(one.bytes, source.as_bytes());
                assert_eq!(one.source, SocketAddrV6::new(address(source), 9300, 0, 0));
                assert_eq!(one.hop_limit, Some(hop_limit));
                assert_eq!((one.destination, one.interface), (Some(group), Some(pair.far.index)));
            }
            // Answers by unicast keep the socket's own address and the system's hop limit.
            let receiver = std::net::UdpSocket::bind("[fd02::1]:0").expect("bound");
            options::tell_hop_limit(&receiver).expect("an option");
            let to = SocketAddrV6::new(address("fd02::1"), receiver.local_addr().expect("bound").port(), 0, 0);
            socket.send_unicast(to, b"answer").expect("sent");
            assert_eq!(batch.recv(&receiver, SOON).expect("received"), 1);
            let one = batch.datagrams().next().expect("one");
            assert_eq!((one.source, one.hop_limit), (socket.local_addr(), Some(64)));
        });
    }

    #[test]
    fn a_source_that_is_not_ours_is_refused() {
        in_namespace("a_source_that_is_not_ours_is_refused", |pair| {
            let socket = nack_socket(false);
            let send = |egress: &Egress| socket.send_multicast(egress, address("ff05::b:1"), b"x");
            let error = send(&egress(&pair, "fd09::9", 1)).expect_err("not this host's");
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
            let gone = Egress { interface: 9_999, ..egress(&pair, "fd01::1", 1) };
            assert_eq!(send(&gone).expect_err("no such interface").raw_os_error(), Some(libc::ENODEV));
        });
    }

    #[test]
    fn a_frame_above_the_mtu_arrives_whole() {
        in_namespace("a_frame_above_the_mtu_arrives_whole", |pair| {
            assert_eq!((pair.near.mtu, pair.far.mtu), (1500, 1500));
            let group = address("ff05::b:fffe");
            let joins = joined(pair.far.index, group);
            let socket = nack_socket(false);
            let fragments = || {
                let table = std::fs::read_to_string("/proc/thread-self/net/snmp6").expect("a table");
                let line = table.lines().find(|line| line.starts_with("Ip6FragCreates")).expect("a counter");
                line.split_ascii_whitespace().last().and_then(|count| count.parse::<u32>().ok()).expect("a count")
            };
            let mut batch = Batch::new(2, LONGEST_DATAGRAM);
            for (length, created) in [(1_452_u32, 0), (1_453, 2), (5_000, 4), (65_527, 46)] {
                let frame: Vec<u8> = (0..length).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
                let before = fragments();
                socket.send_multicast(&egress(&pair, "fd01::1", 1), group, &frame).expect("sent");
                assert_eq!(batch.recv(&only(&joins), SOON).expect("received"), 1, "{length}");
                let one = batch.datagrams().next().expect("one");
                assert!(one.bytes == frame && !one.truncated, "{length}");
                assert_eq!(one.hop_limit, Some(1));
                assert_eq!(fragments() - before, created, "{length}");
            }
            // Unicast above the MTU, by the way that answers take.
            let receiver = std::net::UdpSocket::bind("[fd02::1]:0").expect("bound");
            let to = SocketAddrV6::new(address("fd02::1"), receiver.local_addr().expect("bound").port(), 0, 0);
            socket.send_unicast(to, &[5; 5_000]).expect("sent");
            assert_eq!(batch.recv(&receiver, SOON).expect("received"), 1);
            assert_eq!(batch.datagrams().next().map(|one| one.bytes), Some(&[5; 5_000][..]));
        });
    }

    #[test]
    fn a_listener_on_this_host_hears_it_only_with_the_loop_on() {
        in_namespace("a_listener_on_this_host_hears_it_only_with_the_loop_on", |pair| {
            let group = address("ff05::b:1");
            let local = joined(pair.near.index, group);
            let mut batch = Batch::new(8, 2048);
            for (multicast_loop, heard, wait) in [(false, 0, QUIET), (true, 1, SOON)] {
                let socket = nack_socket(multicast_loop);
                socket.send_multicast(&egress(&pair, "fd01::1", 1), group, b"x").expect("sent");
                assert_eq!(batch.recv(&only(&local), wait).expect("no error"), heard);
            }
        });
    }
}
