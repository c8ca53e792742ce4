//! The tee envelope (loopback only): a datagram handed on by another process of this host, with the source it came from.
//!
//! The reader vouches that its socket is bound to a loopback address: the envelope says who sent the datagram,
//! and anyone could write one.

use crate::wire::{chunk, put};

/// Length of the envelope, bytes; the datagram follows.
pub const ENVELOPE_LEN: usize = 24;

/// "TEE1".
const TEE_MAGIC: u32 = 0x5445_4531;
const VERSION: u8 = 1;

/// What arrived on a tee socket.
///
/// ```
/// use retry_common::wire::tee::{ENVELOPE_LEN, Tee};
///
/// let mut buffer = [0; 64];
/// let sent = Tee::Encap { source: [0xfd; 16], source_port: 9001, datagram: b"a frame" };
/// let len = sent.write(&mut buffer).ok_or("too long")?;
/// assert_eq!(len, ENVELOPE_LEN + 7);
/// assert_eq!(Tee::parse(&buffer[..len])?, sent);
///
/// // Without an envelope the datagram is the frame itself.
/// assert_eq!(Tee::parse(b"a frame")?, Tee::Raw(b"a frame"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Tee<'a> {
    /// A datagram in its envelope.
    Encap {
        /// IPv6 address that the datagram came from.
        source: [u8; 16],
        /// Port that it came from.
        source_port: u16,
        /// The datagram itself.
        datagram: &'a [u8],
    },
    /// A datagram without an envelope: a frame as it is.
    Raw(&'a [u8]),
}

/// Why bytes that begin like an envelope are none.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TeeError {
    /// Fewer than 24 bytes.
    #[error("a tee envelope has 24 bytes")]
    Size,
    /// Another version than 1.
    #[error("unknown version of the tee envelope")]
    Version,
}

impl<'a> Tee<'a> {
    /// Takes the envelope off, where there is one. Its flags are not looked at: none are defined.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, TeeError> {
        if chunk(bytes, 0).map(u32::from_be_bytes) != Some(TEE_MAGIC) {
            return Ok(Self::Raw(bytes));
        }
        let (envelope, datagram) = bytes.split_first_chunk::<ENVELOPE_LEN>().ok_or(TeeError::Size)?;
        let [_, _, _, _, version, _flags, address @ .., p0, p1] = *envelope;
        if version != VERSION {
            return Err(TeeError::Version);
        }
        Ok(Self::Encap { source: address, source_port: u16::from_be_bytes([p0, p1]), datagram })
    }

    /// The datagram, with or without an envelope around it.
    pub const fn datagram(&self) -> &'a [u8] {
        match self {
            Self::Encap { datagram, .. } | Self::Raw(datagram) => datagram,
        }
    }

    /// Writes what goes over the loopback into `out` and returns its length; `None` when `out` is too short.
    pub fn write(&self, out: &mut [u8]) -> Option<usize> {
        let start = match self {
            Self::Encap { source, source_port, .. } => {
                put(out, 0, &TEE_MAGIC.to_be_bytes())?;
                put(out, 4, &[VERSION, 0])?;
                put(out, 6, source)?;
                put(out, 22, &source_port.to_be_bytes())?;
                ENVELOPE_LEN
            }
            Self::Raw(_) => 0,
        };
        put(out, start, self.datagram())?;
        start.checked_add(self.datagram().len())
    }
}
