//! One UDP socket for each kind of address that an upstream may have, whatever the number of jobs and upstreams.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use nix::libc::sock_extended_err;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendto, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::net::batch::LONGEST_DATAGRAM;
use crate::net::options::{set_receive_buffer, set_send_buffer};

/// Receive buffer asked for, bytes: what hundreds of jobs may get at once.
const BUFFER: usize = 4 << 20;
/// Send buffer asked for, bytes: NACKs to upstreams whose neighbour does not resolve leave room for those to others.
const SEND_BUFFER: usize = 2 << 20;

/// What a socket tells.
#[derive(Debug)]
pub(super) enum Heard<'a> {
    /// A datagram.
    Datagram(&'a [u8], SocketAddr),
    /// A datagram of ours to this address came to nothing (RFC 4443 section 3.1, RFC 792).
    Unreachable(SocketAddr),
}

/// The sockets.
///
/// A bound address may go away and come back: the socket stays bound to it, as that of the NACK port does.
pub(super) struct Sockets {
    /// Bound to the NACK address: firewalls between domains know no other.
    v6: UdpSocket,
    /// For link-local upstreams, which need no route to the NACK address: the system takes the link's own source.
    link_local: UdpSocket,
    /// None on a host without IPv4.
    v4: Option<UdpSocket>,
}

impl Sockets {
    /// Opens them; NACKs over IPv6 leave from `source`.
    pub(super) fn open(source: Ipv6Addr) -> io::Result<Self> {
        let v4 = match open((Ipv4Addr::UNSPECIFIED, 0).into()) {
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            other => Some(other?),
        };
        Ok(Self { v6: open((source, 0).into())?, link_local: open((Ipv6Addr::UNSPECIFIED, 0).into())?, v4 })
    }

    /// Sends one NACK. Never waits.
    pub(super) fn send(&self, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
        let socket = match to {
            SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => &self.link_local,
            SocketAddr::V6(_) => &self.v6,
            SocketAddr::V4(_) => self.v4.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))?,
        };
        let to = SockaddrStorage::from(to);
        let send =
            || -> io::Result<()> { Ok(sendto(socket.as_raw_fd(), bytes, &to, MsgFlags::MSG_DONTWAIT).map(drop)?) };
        match send() {
            // Perhaps the ICMP error of an earlier datagram, which the next call gets.
            Err(error) if is_unreachable(&error) => send(),
            other => other,
        }
    }

    /// Hands everything that is heard to `take`, for ever.
    pub(super) async fn listen(&self, take: impl Fn(Heard<'_>)) {
        let v4 = async {
            match &self.v4 {
                Some(v4) => hear(v4, &take).await,
                None => std::future::pending().await,
            }
        };
        tokio::join!(hear(&self.v6, &take), hear(&self.link_local, &take), v4);
    }
}

fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    set_receive_buffer(&socket, BUFFER)?;
    set_send_buffer(&socket, SEND_BUFFER)?;
    tell_errors(&socket, address.is_ipv6())?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

async fn hear(socket: &UdpSocket, take: &impl Fn(Heard<'_>)) {
    let mut buffer = vec![0; LONGEST_DATAGRAM];
    // Fails when the runtime ends.
    while socket.ready(Interest::READABLE | Interest::ERROR).await.is_ok() {
        loop {
            match socket.try_recv_from(&mut buffer) {
                Ok((length, from)) => take(Heard::Datagram(&buffer[..length], from)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An ICMP error; the queue says whose.
                Err(_) => {}
            }
        }
        // Ends with "would block": that is how tokio learns that there is no more.
        let _: io::Result<()> = socket.try_io(Interest::ERROR, || {
            loop {
                if let Some(to) = next_unreachable(socket)? {
                    take(Heard::Unreachable(to));
                }
            }
        });
    }
}

/// Asks for the ICMP errors that come back for datagrams of this socket.
pub(crate) fn tell_errors(socket: &impl AsFd, is_v6: bool) -> io::Result<()> {
    if is_v6 {
        setsockopt(socket, sockopt::Ipv6RecvErr, &true)?;
    } else {
        setsockopt(socket, sockopt::Ipv4RecvErr, &true)?;
    }
    Ok(())
}

/// Takes the next message off the error queue: the address that cannot be reached, `None` when it says something else.
///
/// # Errors
/// `WouldBlock` when the queue is empty.
pub(crate) fn next_unreachable(socket: &impl AsRawFd) -> io::Result<Option<SocketAddr>> {
    let mut control = nix::cmsg_space!([u8; 128]);
    let mut bytes = [0; 64];
    let mut vectors = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    // The message's address is the one that our datagram was sent to.
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut vectors, Some(&mut control), flags)?;
    let tells = |error: &sock_extended_err| {
        i32::try_from(error.ee_errno).is_ok_and(|code| is_unreachable(&io::Error::from_raw_os_error(code)))
    };
    let is_one = message.cmsgs()?.any(|one| match one {
        ControlMessageOwned::Ipv6RecvErr(error, _) | ControlMessageOwned::Ipv4RecvErr(error, _) => tells(&error),
        _ => false,
    });
    Ok(message.address.filter(|_| is_one).as_ref().and_then(address))
}

fn address(raw: &SockaddrStorage) -> Option<SocketAddr> {
    let v6 = raw.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into()));
    v6.or_else(|| raw.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into())))
}

/// What the stack makes of an ICMP "destination unreachable" of whatever code.
pub(crate) fn is_unreachable(error: &io::Error) -> bool {
    let codes = [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::ENETUNREACH, libc::EACCES, libc::ENOPROTOOPT];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}
