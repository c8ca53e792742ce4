//! The file of `--pcap`: Ethernet packets with times of nanoseconds, as Wireshark reads them.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::{DataLink, TsResolution};

use super::WatchError;
use super::join::Packet;
use super::show::unix_ns;

/// A pcap file that is written, without a buffer: whatever ends the verb, what it has shown is there.
pub(super) struct Writer {
    writer: PcapWriter<File>,
    path: String,
}

impl Writer {
    /// A new file, or over an old one.
    ///
    /// # Errors
    /// [`WatchError::Pcap`].
    pub(super) fn create(path: &Path) -> Result<Self, WatchError> {
        let shown = path.display().to_string();
        let refused = |source: io::Error| WatchError::Pcap { path: shown.clone(), source };
        let file = File::create(path).map_err(refused)?;
        let header = PcapHeader {
            datalink: DataLink::ETHERNET,
            ts_resolution: TsResolution::NanoSecond,
            ..PcapHeader::default()
        };
        let writer = PcapWriter::with_header(file, header).map_err(|error| refused(io::Error::other(error)))?;
        Ok(Self { writer, path: shown })
    }

    /// Writes a packet.
    ///
    /// # Errors
    /// [`WatchError::Pcap`].
    pub(super) fn write(&mut self, packet: &Packet) -> Result<(), WatchError> {
        let Packet { at_ns, length, bytes } = packet;
        let one = PcapPacket {
            timestamp: Duration::from_nanos(unix_ns(*at_ns)),
            orig_len: (*length).into(),
            data: Cow::Borrowed(bytes),
        };
        let written = self.writer.write_packet(&one);
        written.map(drop).map_err(|error| self.error(io::Error::other(error)))
    }

    fn error(&self, source: io::Error) -> WatchError {
        WatchError::Pcap { path: self.path.clone(), source }
    }
}
