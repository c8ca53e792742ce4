//! The socket of the NACK port: NACKs come in, answers and repairs leave.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockaddrIn6, sendto};
use socket2::Socket;
use thiserror::Error;

use super::batch::{Batch, SHUTDOWN_POLL};
use super::bound;
use super::multicast::{self, Egress};
use super::options;
use crate::settings::Settings;

/// Bytes of send buffer to ask for: no send waits, so what a burst of answers needs has to have room.
const SEND_BUFFER: usize = 4 << 20;
/// Bytes of receive buffer that the daemon asks for: 40,000 NACKs.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Datagrams that one system call drops.
const DROPPED_AT_ONCE: usize = 256;
/// Datagrams dropped at most: more than the receive buffer holds, for they may go on coming.
const MOST_DROPPED: usize = 65_536;

/// What the socket is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// `nack-addr`: answers and unicast repairs have it as their source.
    pub address: Ipv6Addr,
    /// `nack-port`: source port of everything that leaves by this socket. 0 takes a free one.
    pub port: u16,
    /// Bytes of receive buffer to ask for.
    pub receive_buffer: usize,
    /// `nack-port-shared`: other programs may bind the port after us.
    pub shared: bool,
    /// `egress-multicast-loop`: listeners on this host get multicast repairs too.
    pub multicast_loop: bool,
}

impl Config {
    /// As the settings ask, at the NACK address, which they may leave to the interface.
    #[must_use]
    pub(crate) fn from(settings: &Settings, address: Ipv6Addr) -> Self {
        Self {
            address,
            port: settings.nack.port,
            receive_buffer: RECEIVE_BUFFER,
            shared: settings.nack.port_shared,
            multicast_loop: settings.egress.multicast_loop,
        }
    }

    /// Where the socket is bound to.
    #[must_use]
    pub(crate) fn wanted(&self) -> SocketAddrV6 {
        SocketAddrV6::new(self.address, self.port, 0, 0)
    }
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
    /// Another program is bound to exactly this address and port: it would get NACKs in our place.
    #[error(
        "another program is bound to {address}, opened by user {user}: find it with `ss -uapne` (inode {inode}) and stop it"
    )]
    Rival {
        /// Address and port.
        address: SocketAddrV6,
        /// The user that opened its socket.
        user: u32,
        /// Its socket's inode.
        inode: u64,
    },
    /// The system refused the socket or one of its options.
    #[error("cannot set up the NACK socket: {0}")]
    Setup(#[from] io::Error),
}

/// The socket of the NACK port. Threads may share it: every method takes `&self`.
#[derive(Debug)]
pub(crate) struct NackSocket {
    socket: UdpSocket,
    local: SocketAddrV6,
}

impl NackSocket {
    /// Opens and binds the socket beside listeners on this host that share the port.
    ///
    /// # Errors
    /// [`OpenError::Bind`] when the address cannot be had, [`OpenError::Rival`] when another program has it as well, else
    /// [`OpenError::Setup`].
    pub(crate) fn open(config: &Config) -> Result<Self, OpenError> {
        let socket = options::udp_socket()?;
        set_up(&socket, config)?;
        let local = bind(&socket, config.wanted(), config.shared)?;
        Ok(Self { socket: UdpSocket::from(socket), local })
    }

    /// Takes over a socket of an earlier daemon, which is bound to [`Config::wanted`], with what waits in its queue.
    ///
    /// # Errors
    /// As [`NackSocket::open`].
    pub(crate) fn take_over(config: &Config, socket: Socket) -> Result<Self, OpenError> {
        set_up(&socket, config)?;
        socket.set_reuse_address(config.shared)?;
        let local = check_rival(config.wanted())?;
        Ok(Self { socket: UdpSocket::from(socket), local })
    }

    /// Drops what is queued; returns how many datagrams that were.
    ///
    /// # Errors
    /// What the receive returns.
    pub(crate) fn drop_queued(&self) -> io::Result<u64> {
        let mut batch = Batch::new(DROPPED_AT_ONCE, 1);
        let mut dropped = 0;
        for _ in 0..MOST_DROPPED / DROPPED_AT_ONCE {
            match batch.recv_now(self)? {
                0 => break,
                some => dropped += u64::try_from(some).unwrap_or(0),
            }
        }
        Ok(dropped)
    }

    /// Address and port that the socket is bound to.
    #[must_use]
    pub(crate) fn local_addr(&self) -> SocketAddrV6 {
        self.local
    }

    /// Packets longer than this leave as fragments, whatever the MTU of their interface; `None` leaves it to that.
    ///
    /// # Errors
    /// What `setsockopt` returns: EINVAL below IPv6's 1280 bytes.
    pub(crate) fn limit_packets(&self, length: Option<u32>) -> io::Result<()> {
        options::limit_packets(&self.socket, length.unwrap_or(0))
    }

    /// Datagrams that the kernel dropped here since the socket was opened: the receive buffer was full, or the checksum was wrong.
    ///
    /// # Errors
    /// What `getsockopt` returns.
    pub(crate) fn dropped(&self) -> io::Result<u32> {
        options::dropped(&self.socket)
    }

    /// Sends one datagram by the routing table, with the system's hop limit. Never waits.
    ///
    /// # Errors
    /// What the send returns; EAGAIN when the send buffer is full.
    pub(crate) fn send_unicast(&self, to: SocketAddrV6, bytes: &[u8]) -> io::Result<()> {
        let to = SockaddrIn6::from(to);
        loop {
            match sendto(self.socket.as_raw_fd(), bytes, &to, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EINTR) => {}
                other => return Ok(other.map(drop)?),
            }
        }
    }

    /// Sends one datagram to a group out of one interface.
    ///
    /// # Errors
    /// Those of [`multicast::send`].
    pub(crate) fn send_multicast(&self, egress: &Egress, group: Ipv6Addr, bytes: &[u8]) -> io::Result<()> {
        multicast::send(&self.socket, egress, group, bytes)
    }
}

/// Binds the socket, alone at its address unless it is `shared`.
///
/// The kernel lets two sockets have one port when both set SO_REUSEADDR, and looks at it when the later one binds. So a listener
/// that was there first and shares its port, on every address, is no hindrance; afterwards the option is taken back, and no
/// program can bind the port any more: not even one that shares it, which is what `shared` is for. Other sockets of ours get in
/// by SO_REUSEPORT, which asks for the same user.
fn bind(socket: &Socket, address: SocketAddrV6, shared: bool) -> Result<SocketAddrV6, OpenError> {
    options::share_with_own(socket)?;
    socket.bind(&address.into()).map_err(|source| OpenError::Bind { address, source })?;
    socket.set_reuse_address(shared)?;
    let port = socket.local_addr()?.as_socket_ipv6().map_or(address.port(), |local| local.port());
    check_rival(SocketAddrV6::new(*address.ip(), port, 0, 0))
}

/// Everything but the address.
fn set_up(socket: &Socket, config: &Config) -> io::Result<()> {
    options::tell_destination(socket)?;
    options::tell_hop_limit(socket)?;
    options::tell_dropped(socket)?;
    options::allow_fragments(socket)?;
    socket.set_multicast_loop_v6(config.multicast_loop)?;
    options::set_send_buffer(socket, SEND_BUFFER)?;
    socket.set_read_timeout(Some(SHUTDOWN_POLL))?;
    options::check_before_queueing(socket)?;
    options::set_receive_buffer(socket, config.receive_buffer)?;
    Ok(())
}

/// The address, unless another program is bound to it as well.
fn check_rival(local: SocketAddrV6) -> Result<SocketAddrV6, OpenError> {
    // Who was there first. Without /proc there is nothing to ask, and nothing to lose: such a host is not for several users.
    match bound::rival(local) {
        Ok(Some(rival)) => Err(OpenError::Rival { address: local, user: rival.user, inode: rival.inode }),
        Ok(None) => Ok(local),
        Err(error) => {
            tracing::warn!(%error, "-nack-port: cannot see who else is bound to the address and port of NACKs");
            Ok(local)
        }
    }
}

impl AsFd for NackSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::net::testing::{SOON, in_namespace};

    fn config() -> Config {
        Config { address: Ipv6Addr::LOCALHOST, port: 0, receive_buffer: 64 << 10, shared: false, multicast_loop: false }
    }

    #[test]
    fn answers_come_from_the_nack_port() {
        let socket = NackSocket::open(&config()).expect("loopback");
        // The kernel keeps twice what it is asked for.
        let room = socket2::SockRef::from(&socket.socket).recv_buffer_size().expect("an option");
        assert_eq!(room, 128 << 10);
        let listener = UdpSocket::bind("[::1]:0").expect("loopback");
        listener.send_to(b"nack", socket.local_addr()).expect("sent");
        let mut batch = Batch::new(4, 256);
        assert_eq!(batch.recv(&socket, SOON).expect("received"), 1);
        let nack = batch.datagrams().next().expect("one");
        assert_eq!((nack.bytes, nack.destination), (&b"nack"[..], Some(Ipv6Addr::LOCALHOST)));
        socket.send_unicast(nack.source, b"frame").expect("sent");
        socket.send_unicast(nack.source, b"ack").expect("sent");
        socket.send_unicast(nack.source, b"single").expect("sent");
        let mut answers = Batch::new(4, 256);
        assert_eq!(answers.recv(&listener, SOON).expect("received"), 3);
        let got: Vec<_> = answers.datagrams().map(|one| (one.bytes, one.source)).collect();
        let from = socket.local_addr();
        assert_eq!(got, [(&b"frame"[..], from), (b"ack", from), (b"single", from)]);
    }

    /// Another socket that shares its port with all that do so too.
    fn sharing(address: Ipv6Addr, port: u16) -> io::Result<Socket> {
        let socket = options::udp_socket()?;
        socket.bind(&SocketAddrV6::new(address, port, 0, 0).into())?;
        Ok(socket)
    }

    /// Whether a NACK goes to the socket and to no other.
    fn gets_its_nacks(socket: &NackSocket, other: &impl AsFd) -> bool {
        UdpSocket::bind("[::1]:0").expect("loopback").send_to(b"nack", socket.local_addr()).expect("sent");
        let mut batch = Batch::new(4, 256);
        batch.recv(socket, SOON).expect("received") == 1 && batch.recv_now(other).expect("no error") == 0
    }

    #[test]
    fn no_other_socket_gets_the_port_afterwards() {
        let socket = NackSocket::open(&config()).expect("loopback");
        let port = socket.local_addr().port();
        for address in [Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED] {
            let error = sharing(address, port).expect_err("taken");
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{address}");
        }
        // But another socket of ours.
        let own = options::udp_socket().expect("a socket");
        options::share_with_own(&own).expect("an option");
        own.bind(&SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0).into()).expect("of the same user");
        assert!(gets_its_nacks(&socket, &own));
    }

    #[test]
    fn a_listener_that_was_there_first_leaves_us_our_nacks() {
        let listener = sharing(Ipv6Addr::UNSPECIFIED, 0).expect("a free port");
        let port = listener.local_addr().expect("bound").as_socket().expect("IPv6").port();
        let socket = NackSocket::open(&Config { port, ..config() }).expect("the port is shared");
        assert!(gets_its_nacks(&socket, &listener));
    }

    #[test]
    fn a_shared_port_can_be_had_afterwards() {
        let socket = NackSocket::open(&Config { shared: true, ..config() }).expect("loopback");
        let listener = sharing(Ipv6Addr::UNSPECIFIED, socket.local_addr().port()).expect("the port is shared");
        assert!(gets_its_nacks(&socket, &listener));
    }

    #[test]
    fn a_full_send_buffer_is_told_at_once() {
        in_namespace("a_full_send_buffer_is_told_at_once", |_| {
            let socket =
                NackSocket::open(&Config { address: address("fd01::1"), port: 9300, ..config() }).expect("this host's");
            // The kernel keeps some 200 KiB for each neighbour that it has not resolved.
            let send = |number: u16| {
                let absent = Ipv6Addr::new(0xfd01, 0, 0, 0, 0xdead, 0, 0, number);
                socket.send_unicast(SocketAddrV6::new(absent, 9, 0, 0), &[0; 60_000])
            };
            let is_full = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS));
            let full =
                (0..400).map_while(|number| send(number).err().is_none_or(|error| !is_full(&error)).then_some(number));
            assert!(full.count() < 400, "the buffer was to be full");
            let start = Instant::now();
            let refused = (400..500).filter(|number| send(*number).is_err_and(|error| is_full(&error))).count();
            assert!(refused > 50, "{refused}");
            // Each would wait for the end of a neighbour's resolution, or for a timeout.
            assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        });
    }

    fn address(text: &str) -> Ipv6Addr {
        text.parse().expect("an address")
    }

    #[test]
    fn an_address_of_another_host_is_named() {
        let foreign = Config { address: "2001:db8::dead".parse().expect("an address"), port: 9300, ..config() };
        let error = NackSocket::open(&foreign).expect_err("not this host's").to_string();
        assert!(error.starts_with("cannot bind the NACK socket to [2001:db8::dead]:9300: "), "{error}");
        // A program that does not share the port.
        let taken = UdpSocket::bind("[::1]:0").expect("loopback");
        let port = taken.local_addr().expect("bound").port();
        let error = NackSocket::open(&Config { port, ..config() }).expect_err("taken");
        assert!(matches!(error, OpenError::Bind { .. }), "{error}");
    }
}
