//! The socket of the NACK port: NACKs come in, answers and repairs leave.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use thiserror::Error;

use super::batch::SHUTDOWN_POLL;
use super::multicast::{self, Egress};
use super::options::{self, ReceiveBuffer};
use super::outbox::Outbox;

/// Longest time that a send waits for room in the send buffer, so that a stalled interface cannot hold a worker for good.
const SEND_TIMEOUT: Duration = Duration::from_millis(100);

/// What the socket is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `nack-addr`: answers and unicast repairs have it as their source.
    pub address: Ipv6Addr,
    /// `nack-port`: source port of everything that leaves by this socket. 0 takes a free one.
    pub port: u16,
    /// Bytes of receive buffer to ask for.
    pub receive_buffer: usize,
    /// `egress-multicast-loop`: listeners on this host get multicast repairs too.
    pub multicast_loop: bool,
}

/// Why the NACK socket could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The address is not this host's, or another program has the port and does not share it.
    #[error("cannot bind the NACK socket to {address}: {source}")]
    Bind {
        /// Address and port.
        address: SocketAddrV6,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused the socket or one of its options.
    #[error("cannot set up the NACK socket: {0}")]
    Setup(#[from] io::Error),
}

/// The socket of the NACK port. Threads may share it: every method takes `&self`.
#[derive(Debug)]
pub struct NackSocket {
    socket: UdpSocket,
    local: SocketAddrV6,
    receive_buffer: ReceiveBuffer,
}

impl NackSocket {
    /// Opens and binds the socket. A listener on this host may share the port (SO_REUSEADDR).
    ///
    /// # Errors
    /// [`OpenError::Bind`] when the address cannot be had, else [`OpenError::Setup`].
    pub fn open(settings: &Settings) -> Result<Self, OpenError> {
        let socket = options::udp_socket()?;
        options::tell_destination(&socket)?;
        options::tell_dropped(&socket)?;
        options::allow_fragments(&socket)?;
        socket.set_multicast_loop_v6(settings.multicast_loop)?;
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        socket.set_read_timeout(Some(SHUTDOWN_POLL))?;
        options::check_before_queueing(&socket)?;
        let receive_buffer = options::set_receive_buffer(&socket, settings.receive_buffer)?;
        let address = SocketAddrV6::new(settings.address, settings.port, 0, 0);
        socket.bind(&address.into()).map_err(|source| OpenError::Bind { address, source })?;
        let socket = UdpSocket::from(socket);
        let port = socket.local_addr()?.port();
        Ok(Self { socket, local: SocketAddrV6::new(settings.address, port, 0, 0), receive_buffer })
    }

    /// Address and port that the socket is bound to.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddrV6 {
        self.local
    }

    /// What the receive buffer was set to.
    #[must_use]
    pub fn receive_buffer(&self) -> ReceiveBuffer {
        self.receive_buffer
    }

    /// Sends one datagram by the routing table, with the system's hop limit.
    ///
    /// # Errors
    /// What the send returns; EAGAIN when the send buffer stayed full for 100 ms.
    pub fn send_unicast(&self, to: SocketAddrV6, bytes: &[u8]) -> io::Result<()> {
        loop {
            match self.socket.send_to(bytes, to) {
                Err(error) if error.raw_os_error() == Some(Errno::EINTR as i32) => {}
                other => return other.map(drop),
            }
        }
    }

    /// Tries each waiting datagram of the outbox once and returns how many left; the outbox keeps the outcome of each.
    pub fn send_answers(&self, outbox: &mut Outbox) -> usize {
        outbox.send(self.socket.as_fd())
    }

    /// Sends one datagram to a group out of one interface.
    ///
    /// # Errors
    /// Those of [`multicast::send`].
    pub fn send_multicast(&self, egress: &Egress, group: Ipv6Addr, bytes: &[u8]) -> io::Result<()> {
        multicast::send(&self.socket, egress, group, bytes)
    }
}

impl AsFd for NackSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::batch::Batch;
    use crate::net::testing::SOON;

    fn settings() -> Settings {
        Settings { address: Ipv6Addr::LOCALHOST, port: 0, receive_buffer: 64 << 10, multicast_loop: false }
    }

    #[test]
    fn answers_come_from_the_nack_port() {
        let socket = NackSocket::open(&settings()).expect("loopback");
        let room = socket.receive_buffer();
        assert_eq!((room.asked, room.got), (64 << 10, 64 << 10));
        let listener = UdpSocket::bind("[::1]:0").expect("loopback");
        listener.send_to(b"nack", socket.local_addr()).expect("sent");
        let mut batch = Batch::new(4, 256);
        assert_eq!(batch.recv(&socket, SOON).expect("received"), 1);
        let nack = batch.datagrams().next().expect("one");
        assert_eq!((nack.bytes, nack.destination), (&b"nack"[..], Some(Ipv6Addr::LOCALHOST)));
        let mut outbox = Outbox::new();
        outbox.push(nack.source, b"frame");
        outbox.push(nack.source, b"ack");
        assert_eq!(socket.send_answers(&mut outbox), 2);
        socket.send_unicast(nack.source, b"single").expect("sent");
        let mut answers = Batch::new(4, 256);
        assert_eq!(answers.recv(&listener, SOON).expect("received"), 3);
        let got: Vec<_> = answers.datagrams().map(|one| (one.bytes, one.source)).collect();
        let from = socket.local_addr();
        assert_eq!(got, [(&b"frame"[..], from), (b"ack", from), (b"single", from)]);
    }

    #[test]
    fn a_listener_that_shares_its_port_leaves_us_our_nacks() {
        let socket = NackSocket::open(&settings()).expect("loopback");
        let port = socket.local_addr().port();
        let listener = options::udp_socket().expect("a socket");
        let any = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0);
        listener.bind(&any.into()).expect("the port is shared");
        UdpSocket::bind("[::1]:0").expect("loopback").send_to(b"nack", socket.local_addr()).expect("sent");
        let mut batch = Batch::new(4, 256);
        assert_eq!(batch.recv(&socket, SOON).expect("received"), 1);
        assert_eq!(batch.recv_now(&listener).expect("no error"), 0);
    }

    #[test]
    fn an_address_of_another_host_is_named() {
        let foreign = Settings { address: "2001:db8::dead".parse().expect("an address"), port: 9300, ..settings() };
        let error = NackSocket::open(&foreign).expect_err("not this host's").to_string();
        assert!(error.starts_with("cannot bind the NACK socket to [2001:db8::dead]:9300: "), "{error}");
        // A program that does not share the port.
        let taken = UdpSocket::bind("[::1]:0").expect("loopback");
        let port = taken.local_addr().expect("bound").port();
        let error = NackSocket::open(&Settings { port, ..settings() }).expect_err("taken");
        assert!(matches!(error, OpenError::Bind { .. }), "{error}");
    }
}
