//! The tee: frames that a program on this host hands on over the loopback, each in an envelope that tells where it came
//! from, or as it is.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::time::Duration;

use nix::errno::Errno;
use retry_common::counter::Counter;
use retry_common::wire::tee::Tee;
use thiserror::Error;

use super::fill::{Fill, StoredFrom};
use super::joins::RECEIVE_BUFFER;
use crate::clock::monotonic_ns;
use crate::net::batch::LONGEST_DATAGRAM;
use crate::net::options;
use crate::settings::Settings;
use crate::stop_flag::StopFlag;

/// How long a shutdown may go unseen.
const PATIENCE: Duration = Duration::from_millis(100);

/// Datagrams after which the kernel is asked how many it dropped.
const LOOK_FOR_LOSS: u64 = 4_096;

/// Where the tee listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    /// `tee-listen`: a loopback address and port.
    pub listen: SocketAddr,
}

impl Config {
    /// As the settings ask; `None` without `-tee-listen`.
    #[must_use]
    pub(crate) fn from(settings: &Settings) -> Option<Self> {
        settings.ingress.tee.map(|listen| Self { listen })
    }
}

/// The tee socket could not be had.
#[derive(Debug, Error)]
pub enum TeeError {
    /// Other hosts could reach it, and write envelopes with any source.
    #[error("-tee-listen {0}: a loopback address and port is accepted")]
    NotLoopback(SocketAddr),
    /// The system refused it.
    #[error("-tee-listen {address}: {source}")]
    Socket {
        /// The address asked for.
        address: SocketAddr,
        /// The system's words.
        source: io::Error,
    },
}

/// The socket of `-tee-listen`. Only programs on this host reach it, so that its envelopes are believed.
#[derive(Debug)]
pub(crate) struct TeeSocket(UdpSocket);

impl TeeSocket {
    /// Binds to a loopback address.
    ///
    /// # Errors
    /// [`TeeError`]: the address is another one, or another program has the port.
    pub(crate) fn open(config: Config) -> Result<Self, TeeError> {
        let address = config.listen;
        if !address.ip().is_loopback() {
            return Err(TeeError::NotLoopback(address));
        }
        let fail = |source| TeeError::Socket { address, source };
        let socket = UdpSocket::bind(address).map_err(fail)?;
        socket.set_read_timeout(Some(PATIENCE)).map_err(fail)?;
        options::set_receive_buffer(&socket, RECEIVE_BUFFER).map_err(fail)?;
        Ok(Self(socket))
    }
}

impl Fill {
    /// Fills from the tee socket until `stop`.
    ///
    /// # Errors
    /// What the receive returns.
    pub(crate) fn run_tee(&self, socket: &TeeSocket, stop: &StopFlag) -> io::Result<()> {
        let mut buffer = vec![0; LONGEST_DATAGRAM];
        let (mut received, mut lost) = (0_u64, 0);
        while !stop.is_asked() {
            let is_quiet = match socket.0.recv_from(&mut buffer) {
                Ok((length, from)) => {
                    self.take_tee(buffer.get(..length).unwrap_or_default(), from);
                    received += 1;
                    false
                }
                Err(error) if is_quiet(&error) => true,
                Err(error) => return Err(error),
            };
            if is_quiet || received.is_multiple_of(LOOK_FOR_LOSS) {
                let dropped = options::dropped(&socket.0)?;
                self.counters.add(Counter::FrameSocketOverflow, u64::from(dropped.wrapping_sub(lost)));
                lost = dropped;
            }
        }
        Ok(())
    }

    fn take_tee(&self, bytes: &[u8], from: SocketAddr) {
        let local = match from {
            SocketAddr::V6(v6) => v6,
            SocketAddr::V4(v4) => SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0),
        };
        let (datagram, source, origin) = match Tee::parse(bytes) {
            Ok(Tee::Encap { source, source_port, datagram }) => {
                self.counters.one(Counter::TeeEncap);
                let source = Ipv6Addr::from(source);
                (datagram, SocketAddrV6::new(source, source_port, 0, 0), Some(source))
            }
            Ok(Tee::Raw(datagram)) => {
                self.counters.one(Counter::TeeRaw);
                (datagram, local, None)
            }
            // Begins like an envelope and is none: no frame either, and counted as such.
            Err(_) => {
                self.counters.one(Counter::TeeRaw);
                (bytes, local, None)
            }
        };
        self.store_now(datagram, source, origin, StoredFrom::Tee, monotonic_ns());
    }
}

fn is_quiet(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EAGAIN | Errno::EINTR))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use retry_common::wire::tee::ENVELOPE_LEN;

    use super::*;
    use crate::ingress::testing::{OWN_PORT, count, eventually, fill, frame};

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn at(listen: &str) -> Config {
        Config { listen: address(listen) }
    }

    fn enveloped(source: &str, source_port: u16, datagram: &[u8]) -> Vec<u8> {
        let source = source.parse::<Ipv6Addr>().expect("an address").octets();
        let mut bytes = vec![0; ENVELOPE_LEN + datagram.len()];
        Tee::Encap { source, source_port, datagram }.write(&mut bytes).expect("room");
        bytes
    }

    fn with_tee(listen: &str, test: impl FnOnce(&Fill, &UdpSocket)) {
        let socket = TeeSocket::open(at(listen)).expect("opened");
        let sender = UdpSocket::bind(SocketAddr::new(address(listen).ip(), 0)).expect("loopback");
        sender.connect(socket.0.local_addr().expect("bound")).expect("loopback");
        let (fill, stop) = (fill(), StopFlag::default());
        let (filling, stopped) = (Arc::clone(&fill), stop.clone());
        let thread = thread::spawn(move || filling.run_tee(&socket, &stopped));
        test(&fill, &sender);
        stop.ask();
        thread.join().expect("no panic").expect("no error");
    }

    #[test]
    fn both_forms_are_stored_and_our_own_repairs_are_not() {
        // Over IPv4 too: no frame is of IPv4, its way to us may be.
        for listen in ["[::1]:0", "127.0.0.1:0"] {
            with_tee(listen, |fill, sender| {
                let count = |counter| count(&fill.counters, counter);
                let mut broken = enveloped("fd01::1", 9_000, &frame(3, 1));
                broken[4] = 9;
                for bytes in [
                    &frame(1, 1)[..],
                    &enveloped("fd01::1", 9_000, &frame(2, 1)),
                    // Ours: the envelope tells. From our address alone it is another program's.
                    &enveloped("fd02::1", OWN_PORT, &frame(2, 2)),
                    &enveloped("fd02::1", 9_000, &frame(2, 3)),
                    &enveloped("fd01::1", 9_000, &frame(2, 1)),
                    &broken,
                    b"x",
                ] {
                    sender.send(bytes).expect("sent");
                }
                eventually("all are received", || count(Counter::FramesReceived) == 7);
                eventually("all are counted", || count(Counter::FrameUndecodable) == 2);
                assert_eq!((count(Counter::TeeRaw), count(Counter::TeeEncap)), (3, 4));
                assert_eq!((count(Counter::StoredTee), count(Counter::FramesCached)), (3, 3));
                assert_eq!((count(Counter::FrameOwnRepair), count(Counter::FrameDuplicate)), (1, 1));
                assert_eq!((count(Counter::StoredMulticast), count(Counter::FrameSocketOverflow)), (0, 0));
            });
        }
    }

    #[test]
    fn what_the_kernel_drops_is_counted() {
        let socket = TeeSocket::open(at("[::1]:0")).expect("opened");
        options::set_receive_buffer(&socket.0, 4_096).expect("an option");
        let sender = UdpSocket::bind("[::1]:0").expect("loopback");
        for seq in 1..=200 {
            sender.send_to(&frame(1, seq), socket.0.local_addr().expect("bound")).expect("sent");
        }
        let (fill, stop) = (fill(), StopFlag::default());
        let (filling, stopped) = (Arc::clone(&fill), stop.clone());
        let thread = thread::spawn(move || filling.run_tee(&socket, &stopped));
        eventually("none is lost without a trace", || {
            let count = |counter| count(&fill.counters, counter);
            count(Counter::FrameSocketOverflow) > 0
                && count(Counter::FramesReceived) + count(Counter::FrameSocketOverflow) == 200
        });
        stop.ask();
        thread.join().expect("no panic").expect("no error");
    }

    #[test]
    fn an_address_that_others_reach_is_refused() {
        for wrong in ["[::]:9002", "0.0.0.0:9002", "[fd00::1]:9002", "192.0.2.1:9002"] {
            let error = TeeSocket::open(at(wrong)).expect_err("no loopback").to_string();
            assert_eq!(error, format!("-tee-listen {wrong}: a loopback address and port is accepted"));
        }
        let taken = UdpSocket::bind("[::1]:0").expect("loopback");
        let taken = taken.local_addr().map(|address| (address, taken)).expect("bound");
        let error = TeeSocket::open(Config { listen: taken.0 }).expect_err("taken").to_string();
        assert!(error.starts_with(&format!("-tee-listen {}: ", taken.0)), "{error}");
    }
}
