//! One UDP socket for each address family, whatever the number of jobs and upstreams.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Receive buffer asked for, bytes: what hundreds of jobs may get at once.
const BUFFER: usize = 4 << 20;
/// The longest datagram.
const LONGEST: usize = 65_536;

/// What a socket tells.
#[derive(Debug)]
pub(super) enum Heard<'a> {
    /// A datagram.
    Datagram(&'a [u8], SocketAddr),
    /// A datagram of ours to this address came to nothing (RFC 4443 type 1, RFC 792 type 3).
    Unreachable(SocketAddr),
}

/// The sockets.
pub(super) struct Sockets {
    v6: UdpSocket,
    /// None on a host without IPv4.
    v4: Option<UdpSocket>,
}

impl Sockets {
    pub(super) fn open() -> io::Result<Self> {
        let v6 = open(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, 0).into())?;
        let v4 = match open(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, 0).into()) {
            Ok(v4) => Some(v4),
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { v6, v4 })
    }

    /// Sends one NACK.
    pub(super) async fn send(&self, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
        let socket = match to {
            SocketAddr::V6(_) => &self.v6,
            SocketAddr::V4(_) => self.v4.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))?,
        };
        match socket.send_to(bytes, to).await {
            // Perhaps the ICMP error of an earlier datagram, which is told to whoever calls next.
            Err(error) if pending_unreachable(&error) => socket.send_to(bytes, to).await.map(drop),
            other => other.map(drop),
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
        tokio::join!(hear(&self.v6, &take), v4);
    }
}

fn open(domain: Domain, address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.set_recv_buffer_size(BUFFER)?;
    socket.bind(&address.into())?;
    tell_errors(&socket, domain == Domain::IPV6)?;
    UdpSocket::from_std(socket.into())
}

async fn hear(socket: &UdpSocket, take: &impl Fn(Heard<'_>)) {
    let mut buffer = vec![0; LONGEST];
    loop {
        let ready = socket.ready(Interest::READABLE | Interest::ERROR).await;
        if ready.is_err() {
            // The runtime ends.
            return;
        }
        loop {
            match socket.try_recv_from(&mut buffer) {
                Ok((length, from)) => take(Heard::Datagram(&buffer[..length], from)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {}
            }
        }
        drain_errors(socket, take);
    }
}

/// Reads the error queue: its addresses are those that our datagrams were sent to.
fn drain_errors(socket: &UdpSocket, take: &impl Fn(Heard<'_>)) {
    let _: io::Result<()> = socket.try_io(Interest::ERROR, || {
        let mut control = nix::cmsg_space!([u8; 128]);
        let mut bytes = [0; 128];
        loop {
            let mut vectors = [io::IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
            let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut vectors, Some(&mut control), flags)?;
            if let Some(to) = message.address.as_ref().and_then(address) {
                take(Heard::Unreachable(to));
            }
        }
    });
}

fn address(raw: &SockaddrStorage) -> Option<SocketAddr> {
    let v6 = raw.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into()));
    v6.or_else(|| raw.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into())))
}

/// Asks for the ICMP errors that come back for datagrams of this socket.
pub(super) fn tell_errors(socket: &impl AsFd, is_v6: bool) -> io::Result<()> {
    if is_v6 {
        setsockopt(socket, sockopt::Ipv6RecvErr, &true)?
    } else {
        setsockopt(socket, sockopt::Ipv4RecvErr, &true)?
    };
    Ok(())
}

/// An ICMP error that came back for an earlier datagram.
pub(super) fn pending_unreachable(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EPROTO))
}
