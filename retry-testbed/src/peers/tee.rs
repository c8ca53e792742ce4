//! A program on the daemon's host that hands it frames over the loopback, in an envelope or as they are.

use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};

use anyhow::{Context, Result};
use retry_common::key::FrameKey;

use crate::{net::netns::Netns, peers::journal::Journal};

/// Sends to a daemon's `-tee-listen`.
#[derive(Debug)]
pub struct TeeSender<'a> {
    socket: UdpSocket,
    to: SocketAddrV6,
    journal: &'a Journal,
}

impl<'a> TeeSender<'a> {
    /// A sender in the daemon's namespace; frames are noted in the journal.
    ///
    /// # Errors
    /// No loopback in the namespace.
    pub fn open(ns: &Netns, to: SocketAddrV6, journal: &'a Journal) -> Result<Self> {
        let socket = ns.enter(|| UdpSocket::bind(SocketAddrV6::new(Ipv6Addr::LOCALHOST, 0, 0, 0)))?;
        Ok(Self { socket, to, journal })
    }

    /// Hands over a frame as it is.
    ///
    /// # Errors
    /// Too long for UDP.
    pub fn raw(&self, frame: &[u8]) -> Result<Option<FrameKey>> {
        let key = self.journal.record(frame);
        self.send(frame)?;
        Ok(key)
    }

    /// Hands over a frame in an envelope that says where it came from.
    ///
    /// # Errors
    /// As [`TeeSender::raw`].
    pub fn encapsulated(&self, source: SocketAddrV6, frame: &[u8]) -> Result<Option<FrameKey>> {
        let key = self.journal.record(frame);
        self.send(&envelope(source, frame))?;
        Ok(key)
    }

    fn send(&self, datagram: &[u8]) -> Result<()> {
        self.socket.send_to(datagram, self.to).with_context(|| format!("tee {} bytes", datagram.len()))?;
        Ok(())
    }
}

/// "TEE1", version 1, no flags, source address and port, then the datagram.
fn envelope(source: SocketAddrV6, datagram: &[u8]) -> Vec<u8> {
    let mut bytes = b"TEE1\x01\x00".to_vec();
    bytes.extend(source.ip().octets());
    bytes.extend(source.port().to_be_bytes());
    bytes.extend(datagram);
    bytes
}

#[cfg(test)]
mod tests {
    use retry_common::wire::tee::Tee;

    use super::envelope;

    #[test]
    fn the_endpoints_parser_reads_the_envelope() {
        let source = "[fd10::7]:4711".parse().expect("an address");
        let bytes = envelope(source, b"frame");
        let read = Tee::Encap { source: source.ip().octets(), source_port: 4711, datagram: b"frame" };
        assert_eq!(Tee::parse(&bytes), Ok(read));
    }
}
