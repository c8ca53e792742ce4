//! The tee: frames that a program on this host hands on over the loopback, each in an envelope that tells where it came
//! from, or as it is.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use retry_common::counter::Counter;
use retry_common::wire::tee::Tee;
use thiserror::Error;

use super::fill::{Fill, StoredFrom};
use super::joins::RECEIVE_BUFFER;
use crate::clock::monotonic_ns;
use crate::net::options;

/// The longest datagram.
const LONGEST: usize = 65_536;
/// How long a shutdown may go unseen.
const PATIENCE: Duration = Duration::from_millis(100);

/// The tee socket could not be had.
#[derive(Debug, Error)]
#[error("-tee-listen {address}: {source}")]
pub struct TeeError {
    /// The address asked for.
    pub address: SocketAddr,
    /// The system's words.
    pub source: io::Error,
}

/// The socket of `-tee-listen`. Only programs on this host reach it, so that its envelopes are believed.
#[derive(Debug)]
pub struct TeeSocket(UdpSocket);

impl TeeSocket {
    /// Binds to a loopback address.
    ///
    /// # Errors
    /// [`TeeError`]: another program has the port.
    pub fn open(address: SocketAddr) -> Result<Self, TeeError> {
        let fail = |source| TeeError { address, source };
        let socket = UdpSocket::bind(address).map_err(fail)?;
        socket.set_read_timeout(Some(PATIENCE)).map_err(fail)?;
        options::set_receive_buffer(&socket, RECEIVE_BUFFER).map_err(fail)?;
        Ok(Self(socket))
    }
}

impl Fill {
    /// Fills from the tee socket until `shutdown`.
    ///
    /// # Errors
    /// What the receive returns.
    pub fn run_tee(&self, socket: &TeeSocket, shutdown: &AtomicBool) -> io::Result<()> {
        let mut buffer = vec![0; LONGEST];
        while !shutdown.load(Ordering::Relaxed) {
            match socket.0.recv_from(&mut buffer) {
                Ok((length, from)) => self.take_tee(buffer.get(..length).unwrap_or_default(), from),
                Err(error) if is_quiet(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn take_tee(&self, bytes: &[u8], from: SocketAddr) {
        let local = match from {
            SocketAddr::V6(v6) => v6,
            SocketAddr::V4(v4) => SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0),
        };
        let (datagram, source) = match Tee::parse(bytes) {
            Ok(Tee::Encap { source, source_port, datagram }) => {
                self.counters.one(Counter::TeeEncap);
                (datagram, SocketAddrV6::new(Ipv6Addr::from(source), source_port, 0, 0))
            }
            Ok(Tee::Raw(datagram)) => {
                self.counters.one(Counter::TeeRaw);
                (datagram, local)
            }
            // Begins like an envelope and is none: no frame either, and counted as such.
            Err(_) => {
                self.counters.one(Counter::TeeRaw);
                (bytes, local)
            }
        };
        self.store_now(datagram, source, StoredFrom::Tee, monotonic_ns());
    }
}

fn is_quiet(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EAGAIN | Errno::EINTR))
}
