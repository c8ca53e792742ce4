//! The sockets: one NACK leaves, and all that comes back is read until it is whole or the time is over.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use retry_common::group::Sharding;
use retry_common::wire::nack::Nack;

use super::report::{Came, Event, Report, Via};
use crate::ingress::joins::{Delivery, JoinError, Joins};
use crate::net::batch::{Batch, LONGEST_DATAGRAM};
use crate::net::interface::{Interface, InterfaceError};
use crate::net::readiness::Readiness;
use crate::recovery::sockets::{is_unreachable, tell_errors};

/// How long a listener goes on reading once it has what was promised: a second copy shows by then.
const DRAIN: Duration = Duration::from_millis(80);
/// What switches that snoop MLD get to learn of the joins.
const JOINED: Duration = Duration::from_millis(100);
/// Frames of the fabric that one call takes while a repair is waited for.
const FRAMES: usize = 16;

/// What is asked.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// The endpoint.
    pub(super) to: SocketAddr,
    /// Own address.
    pub(super) from: Option<IpAddr>,
    /// The NACK.
    pub(super) nack: Nack,
    /// How the fabric is cut into groups.
    pub(super) sharding: Sharding,
    /// Where multicast repairs are listened for.
    pub(super) listening: Option<Listening>,
    /// How long to wait for all of it.
    pub(super) wait: Duration,
    /// How long to wait after a MISS for a frame that the endpoint recovers from upstream.
    pub(super) recovery: Duration,
}

/// Where multicast repairs are listened for.
#[derive(Clone, Debug)]
pub(super) struct Listening {
    /// Name of the interface.
    pub(super) iface: String,
    /// The groups.
    pub(super) groups: Vec<Ipv6Addr>,
    /// Their one source, with source-specific multicast.
    pub(super) source: Option<Ipv6Addr>,
    /// UDP port.
    pub(super) port: u16,
}

/// Why no NACK left.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// A socket cannot be had, or fails otherwise than by an ICMP error.
    #[error("{0}")]
    Socket(#[from] io::Error),
    /// The own address is not this host's.
    #[error("-from {address}: {source}")]
    From {
        /// The address.
        address: IpAddr,
        /// The system's words.
        source: io::Error,
    },
    /// The interface of the groups.
    #[error("-iface: {0}")]
    Interface(#[from] InterfaceError),
    /// The groups cannot be joined.
    #[error("-iface: {0}")]
    Join(#[from] JoinError),
}

/// Asks once, and reads what comes.
///
/// # Errors
/// [`AskError`]: nothing was asked.
pub(super) fn ask(request: &Request) -> Result<Report, AskError> {
    let Request { to, nack, listening, .. } = request;
    let joins = listening.as_ref().map(joined).transpose()?;
    let socket = bound(request)?;
    tell_errors(&socket, to.is_ipv6())?;
    socket.set_nonblocking(true)?;
    let mut report = Report::new(*to, socket.local_addr()?, *nack, request.sharding);
    report.joined = listening.as_ref().map(|listening| listening.groups.len());
    let refused_before = checksum_errors();
    let mut watched = Watched { socket: &socket, joins: joins.as_ref(), batch: Batch::new(FRAMES, LONGEST_DATAGRAM) };
    // What came before the NACK is no answer to it.
    watched.read(&mut |_| {})?;
    let start = Instant::now();
    match socket.send_to(&nack.to_bytes(), to) {
        Ok(_) => {}
        Err(error) if is_unreachable(&error) => {
            report.take(Event {
                after: start.elapsed(),
                from: None,
                to: None,
                via: Via::Unicast,
                came: Came::Unreachable,
            });
        }
        Err(error) => return Err(error.into()),
    }
    let mut deadline = start + request.wait;
    let (mut is_whole, mut is_recovering) = (false, false);
    loop {
        if !is_whole && report.is_whole() {
            is_whole = true;
            deadline = deadline.min(Instant::now() + DRAIN);
            if report.may_be_recovered() {
                is_recovering = true;
                deadline = deadline.max(Instant::now() + request.recovery);
            }
        }
        if is_recovering && !report.may_be_recovered() {
            is_recovering = false;
            deadline = deadline.min(Instant::now() + DRAIN);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        watched.wait(left)?;
        let after = start.elapsed();
        watched.read(&mut |heard| report.hear(after, heard))?;
    }
    report.checksum_errors = checksum_errors().saturating_sub(refused_before);
    Ok(report)
}

/// What a socket gave.
pub(super) enum Heard<'a> {
    /// To the socket that asked.
    Unicast(&'a [u8], SocketAddr),
    /// To a group.
    Multicast(&'a [u8], SocketAddr, Ipv6Addr),
    /// An ICMP error.
    Unreachable,
}

struct Watched<'a> {
    socket: &'a UdpSocket,
    joins: Option<&'a Joins>,
    batch: Batch,
}

impl Watched<'_> {
    fn wait(&self, patience: Duration) -> io::Result<()> {
        let joined = self.joins.into_iter().flat_map(Joins::fds);
        Readiness::new([self.socket.as_fd()].into_iter().chain(joined)).wait(patience).map(drop)
    }

    /// Takes all that is there.
    fn read(&mut self, take: &mut dyn FnMut(Heard<'_>)) -> io::Result<()> {
        let mut buffer = vec![0; LONGEST_DATAGRAM];
        loop {
            match self.socket.recv_from(&mut buffer) {
                Ok((length, from)) => take(Heard::Unicast(&buffer[..length], from)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_unreachable(&error) => take(Heard::Unreachable),
                Err(error) => return Err(error),
            }
        }
        for socket in self.joins.into_iter().flat_map(Joins::fds) {
            // One call per socket: a busy fabric must not keep the unicast answer waiting.
            self.batch.recv_now(&socket)?;
            for datagram in self.batch.datagrams() {
                if let Some(group) = datagram.destination.filter(Ipv6Addr::is_multicast) {
                    take(Heard::Multicast(datagram.bytes, datagram.source.into(), group));
                }
            }
        }
        Ok(())
    }
}

fn joined(listening: &Listening) -> Result<Joins, AskError> {
    let interface = Interface::by_name(&listening.iface)?.index;
    let Listening { groups, port, .. } = listening;
    let joins = match listening.source {
        None => Joins::open_for(Delivery::Single, interface, *port, groups)?,
        Some(source) => Joins::open_from(Delivery::Single, interface, *port, groups, source)?,
    };
    std::thread::sleep(JOINED);
    Ok(joins)
}

/// A socket of the address that a listener would ask from. Not connected: an answer from elsewhere is to be seen.
fn bound(request: &Request) -> Result<UdpSocket, AskError> {
    let Request { to, from, .. } = request;
    if let Some(address) = *from {
        return UdpSocket::bind((address, 0)).map_err(|source| AskError::From { address, source });
    }
    let any = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let finder = UdpSocket::bind(any)?;
    match finder.connect(to).and_then(|()| finder.local_addr()) {
        Ok(mut own) => {
            own.set_port(0);
            Ok(UdpSocket::bind(own)?)
        }
        // There is no way there: the send tells.
        Err(_) => Ok(UdpSocket::bind(any)?),
    }
}

/// UDP datagrams that this network namespace dropped for a wrong checksum; such a datagram reaches no socket.
fn checksum_errors() -> u64 {
    // Of this thread: in tests, threads have namespaces of their own.
    let table = fs::read_to_string("/proc/thread-self/net/snmp6").unwrap_or_default();
    let line = table.lines().find_map(|line| line.strip_prefix("Udp6InCsumErrors"));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or_default()
}
