//! Socket options that the standard library does not reach.

use std::io;
use std::mem::size_of_val;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::message;

/// `IPV6_MULTICAST_ALL` of linux/in6.h, which the libc crate lacks on this platform.
const IPV6_MULTICAST_ALL: libc::c_int = 29;

/// What a receive buffer was set to, in bytes of `SO_RCVBUF` (the kernel keeps twice that, for its own overhead).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReceiveBuffer {
    /// Bytes asked for.
    pub asked: usize,
    /// Bytes that the kernel granted: fewer when the process lacks CAP_NET_ADMIN and `net.core.rmem_max` is lower.
    pub got: usize,
}

/// An IPv6 UDP socket that shares its port with other sockets that allow it, and takes no IPv4.
pub(crate) fn udp_socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_only_v6(true)?;
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// Asks for a receive buffer of `asked` bytes, beyond `net.core.rmem_max` where the process may.
///
/// # Errors
/// What `setsockopt` refuses, other than the missing privilege to go beyond `net.core.rmem_max`.
pub(crate) fn set_receive_buffer(socket: &impl AsFd, asked: usize) -> io::Result<ReceiveBuffer> {
    let value = libc::c_int::try_from(asked).unwrap_or(libc::c_int::MAX);
    match set(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, value) {
        Err(refused) if refused.raw_os_error() == Some(libc::EPERM) => {
            set(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, value)?;
        }
        other => other?,
    }
    let doubled: libc::c_int = get(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, 0)?;
    Ok(ReceiveBuffer { asked, got: usize::try_from(doubled).unwrap_or_default() / 2 })
}

/// Asks for a send buffer of `asked` bytes, beyond `net.core.wmem_max` where the process may.
///
/// # Errors
/// What `setsockopt` refuses, other than the missing privilege to go beyond `net.core.wmem_max`.
pub(crate) fn set_send_buffer(socket: &impl AsFd, asked: usize) -> io::Result<()> {
    let value = libc::c_int::try_from(asked).unwrap_or(libc::c_int::MAX);
    match set(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, value) {
        Err(refused) if refused.raw_os_error() == Some(libc::EPERM) => {
            set(socket, libc::SOL_SOCKET, libc::SO_SNDBUF, value)
        }
        other => other,
    }
}

/// Datagrams that the kernel dropped at this socket since it was opened, mostly for a full receive buffer; wraps at 2^32.
///
/// Unlike [`crate::net::batch::Datagram::dropped`] it needs no later datagram to tell.
///
/// # Errors
/// What `getsockopt(SO_MEMINFO)` returns.
pub(crate) fn dropped(socket: &impl AsFd) -> io::Result<u32> {
    // Linux has nine entries; a longer array takes what later kernels add.
    let memory = get(socket, libc::SOL_SOCKET, libc::SO_MEMINFO, [0_u32; 16])?;
    Ok(memory[usize::try_from(libc::SK_MEMINFO_DROPS).unwrap_or_default()])
}

/// A datagram with a wrong checksum is dropped when it comes, not within the receiving call, where the kernel would begin to wait anew
/// after each and so, under a flood of them, never return.
///
/// Linux does so for sockets that have a filter; this one takes everything.
///
/// # Errors
/// What `setsockopt(SO_ATTACH_FILTER)` returns.
pub(crate) fn check_before_queueing(socket: &Socket) -> io::Result<()> {
    const TAKE_ALL: u32 = u32::MAX;
    let code = u16::try_from(libc::BPF_RET | libc::BPF_K).map_err(io::Error::other)?;
    socket.attach_filter(&[SockFilter::new(code, 0, 0, TAKE_ALL)])
}

/// Each datagram brings its destination address and arrival interface (RFC 3542, section 6.1).
pub(crate) fn tell_destination(socket: &impl AsFd) -> io::Result<()> {
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)
}

/// Each datagram brings its hop limit (RFC 3542, section 6.3).
pub(crate) fn tell_hop_limit(socket: &impl AsFd) -> io::Result<()> {
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 1)
}

/// Datagrams bring the count of those dropped before them (socket(7), SO_RXQ_OVFL).
pub(crate) fn tell_dropped(socket: &impl AsFd) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1)
}

/// Neighbours of one sender to one address may come as one, with their length (udp(7), UDP_GRO).
pub(crate) fn take_merged(socket: &impl AsFd) -> io::Result<()> {
    set(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// What is sent goes out as datagrams of this length, the last one shorter (udp(7), UDP_SEGMENT); 0 is off.
#[cfg(test)]
pub(crate) fn send_segments(socket: &impl AsFd, length: libc::c_int) -> io::Result<()> {
    set(socket, libc::SOL_UDP, libc::UDP_SEGMENT, length)
}

/// The socket may be bound beside other sockets of this user that have this option too, whatever else they share (SO_REUSEPORT).
pub(crate) fn share_with_own(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_port(true)
}

/// The socket receives only the groups that it joined itself, not those of every socket of the host.
pub(crate) fn own_groups_only(socket: &impl AsFd) -> io::Result<()> {
    set(socket, libc::IPPROTO_IPV6, IPV6_MULTICAST_ALL, 0)
}

/// The socket receives only what arrives by this interface.
pub(crate) fn bind_to_interface(socket: &impl AsFd, interface: u32) -> io::Result<()> {
    let index = libc::c_int::try_from(interface).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
    set(socket, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, index)
}

/// Datagrams above the path MTU leave as IPv6 fragments, to unicast and multicast alike.
///
/// A host-wide or inherited setting of "do not fragment" would turn an oversize repair into EMSGSIZE.
pub(crate) fn allow_fragments(socket: &impl AsFd) -> io::Result<()> {
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0)?;
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_WANT)
}

/// Longer packets leave as fragments of this length, 1280 bytes or more, whatever the MTU of their interface; 0 is off.
pub(crate) fn limit_packets(socket: &impl AsFd, length: u32) -> io::Result<()> {
    let length = libc::c_int::try_from(length).unwrap_or(0);
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU, length)
}

/// What leaves has the option Router Alert for MLD (RFC 2711), by which routers and switches look into it.
///
/// # Errors
/// What `setsockopt` returns: EPERM without CAP_NET_RAW.
pub(crate) fn alert_routers(socket: &impl AsFd) -> io::Result<()> {
    // Next header, which the kernel fills in, and length beyond eight bytes; Router Alert of value 0; two bytes of padding.
    let header: [u8; 8] = [0, 0, 5, 2, 0, 0, 1, 0];
    let fd = socket.as_fd().as_raw_fd();
    let length = socklen(size_of_val(&header));
    let (level, name) = (libc::IPPROTO_IPV6, libc::IPV6_HOPOPTS);
    // SAFETY: the descriptor is borrowed, so open; the header outlives the call and `length` is its size.
    let result = unsafe { libc::setsockopt(fd, level, name, (&raw const header).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Joins a group on an interface for the datagrams of one source (RFC 3678, section 5.1.1).
///
/// # Errors
/// What `setsockopt` returns: ENOMEM or ENOBUFS when the socket has no room for another join, or for another source of the
/// group.
pub(crate) fn join_source(socket: &impl AsFd, interface: u32, group: Ipv6Addr, source: Ipv6Addr) -> io::Result<()> {
    set_source(socket, libc::MCAST_JOIN_SOURCE_GROUP, interface, group, source)
}

/// Takes one [`join_source`] back; other sources of the group are not touched.
///
/// # Errors
/// What `setsockopt` returns: EADDRNOTAVAIL when the pair was not joined.
pub(crate) fn leave_source(socket: &impl AsFd, interface: u32, group: Ipv6Addr, source: Ipv6Addr) -> io::Result<()> {
    set_source(socket, libc::MCAST_LEAVE_SOURCE_GROUP, interface, group, source)
}

fn set_source(
    socket: &impl AsFd,
    name: libc::c_int,
    interface: u32,
    group: Ipv6Addr,
    source: Ipv6Addr,
) -> io::Result<()> {
    let request = libc::group_source_req {
        gsr_interface: interface,
        gsr_group: message::to_storage(SocketAddrV6::new(group, 0, 0, 0)),
        gsr_source: message::to_storage(SocketAddrV6::new(source, 0, 0, 0)),
    };
    let fd = socket.as_fd().as_raw_fd();
    let length = socklen(size_of_val(&request));
    // SAFETY: the descriptor is borrowed, so open; the request outlives the call and `length` is its size.
    let result = unsafe { libc::setsockopt(fd, libc::IPPROTO_IPV6, name, (&raw const request).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn set(socket: &impl AsFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    let length = socklen(size_of_val(&value));
    // SAFETY: the descriptor is borrowed, so open; the value outlives the call and `length` is its size.
    let result = unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Plain integers, for which any bytes that the kernel writes are a value.
trait Plain: Copy {}
impl Plain for libc::c_int {}
impl Plain for [u32; 16] {}

fn get<T: Plain>(socket: &impl AsFd, level: libc::c_int, name: libc::c_int, mut value: T) -> io::Result<T> {
    let fd: BorrowedFd<'_> = socket.as_fd();
    let mut length = socklen(size_of_val(&value));
    // SAFETY: the kernel writes at most `length` bytes into the value, and `Plain` takes any bytes.
    let result = unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length) };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

fn socklen(bytes: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(bytes).unwrap_or(libc::socklen_t::MAX)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn without_the_privilege_the_buffer_is_what_the_system_allows() {
        let most = std::fs::read_to_string("/proc/sys/net/core/rmem_max").expect("a sysctl");
        let most: usize = most.trim().parse().expect("a number");
        thread::spawn(move || {
            // SAFETY: the bare system call changes the user of this thread alone, and takes integers.
            let result = unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) };
            // Without root it is refused, and there is no privilege to give up.
            assert!(result == 0 || !nix::unistd::geteuid().is_root());
            let socket = udp_socket().expect("a socket");
            let buffer = set_receive_buffer(&socket, most * 2).expect("no error");
            assert_eq!((buffer.asked, buffer.got), (most * 2, most));
        })
        .join()
        .expect("no panic");
    }
}
