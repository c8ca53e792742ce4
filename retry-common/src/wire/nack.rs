//! The NACK: a listener asks for one frame (BRC-126).

use crate::key::FrameKey;
use crate::wire::{HEAD, MAGIC};

/// Length of a NACK, bytes.
pub const NACK_LEN: usize = 64;

const TYPE: u8 = 0x10;
/// Flag of a NACK that an endpoint sends: to be served from the own cache only, with a unicast copy.
pub const FLAG_PROXIED: u8 = 0x01;
/// Mark of a NACK whose sender is no peer, see [`Nack::of_no_peer`]. Not of the wire: there the bit says nothing.
const MARK_NO_PEER: u8 = 0x80;

/// A request for one frame.
///
/// ```
/// use retry_common::key::FrameKey;
/// use retry_common::wire::nack::{Nack, NackError};
///
/// let nack = Nack { flags: 0, key: FrameKey::new(0xfeed, 42), subtree_id: [0; 32] };
/// let mut datagram = nack.to_bytes();
/// assert_eq!(Nack::parse(&datagram), Ok(nack));
///
/// // EndSeq is the last eight bytes before the SubtreeID; ranges are reserved.
/// datagram[31] = 43;
/// assert_eq!(Nack::parse(&datagram), Err(NackError::Range));
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Nack {
    /// Bit 0 is Proxied; the highest bit is a mark of ours; other bits are ignored.
    pub flags: u8,
    /// The frame.
    pub key: FrameKey,
    /// Informational.
    pub subtree_id: [u8; 32],
}

/// Why bytes are no NACK.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NackError {
    /// Not 64 bytes.
    #[error("a NACK has 64 bytes")]
    Size,
    /// Another magic.
    #[error("the magic is not the fabric's")]
    Magic,
    /// Another type than 0x10.
    #[error("the type is not NACK")]
    Type,
    /// EndSeq differs from StartSeq: ranges are reserved.
    #[error("EndSeq differs from StartSeq")]
    Range,
}

impl Nack {
    /// The NACK of a datagram.
    #[inline(always)]
    pub fn parse(datagram: &[u8]) -> Result<Self, NackError> {
        let bytes = <&[u8; NACK_LEN]>::try_from(datagram).map_err(|_| NackError::Size)?;
        Self::from_array(bytes)
    }

    /// The NACK of 64 bytes. Without bounds checks, so that the kernel's verifier is content.
    #[inline(always)]
    #[rustfmt::skip]
    pub const fn from_array(bytes: &[u8; NACK_LEN]) -> Result<Self, NackError> {
        let [
            m0, m1, m2, m3, _, _, kind, flags,
            h0, h1, h2, h3, h4, h5, h6, h7,
            s0, s1, s2, s3, s4, s5, s6, s7,
            e0, e1, e2, e3, e4, e5, e6, e7,
            subtree_id @ ..,
        ] = *bytes;
        if u32::from_be_bytes([m0, m1, m2, m3]) != MAGIC {
            return Err(NackError::Magic);
        }
        if kind != TYPE {
            return Err(NackError::Type);
        }
        let start_seq = u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        if start_seq != u64::from_be_bytes([e0, e1, e2, e3, e4, e5, e6, e7]) {
            return Err(NackError::Range);
        }
        let hash_key = u64::from_be_bytes([h0, h1, h2, h3, h4, h5, h6, h7]);
        Ok(Self { flags: flags & !MARK_NO_PEER, key: FrameKey::new(hash_key, start_seq), subtree_id })
    }

    /// The datagram of this NACK.
    pub fn to_bytes(&self) -> [u8; NACK_LEN] {
        let key = self.key.to_bytes();
        let seq_num = self.key.seq_num().to_be_bytes();
        let kind = [TYPE, self.flags & !MARK_NO_PEER];
        let parts = HEAD.iter().chain(&kind).chain(&key).chain(&seq_num).chain(&self.subtree_id);
        let mut bytes = [0; NACK_LEN];
        for (to, from) in bytes.iter_mut().zip(parts) {
            *to = *from;
        }
        bytes
    }

    /// True when another endpoint asks: it is served from our own cache only, and with a unicast copy if it is a peer.
    #[inline(always)]
    pub const fn proxied(&self) -> bool {
        self.flags & FLAG_PROXIED != 0
    }

    /// The same NACK from a sender that is no peer: what it gets is what a listener gets.
    #[must_use]
    #[inline(always)]
    pub const fn of_no_peer(self) -> Self {
        Self { flags: self.flags | MARK_NO_PEER, ..self }
    }

    /// True when the sender gets a unicast copy whatever listeners get: another endpoint, and a peer.
    #[inline(always)]
    pub const fn is_peers(&self) -> bool {
        self.flags & (FLAG_PROXIED | MARK_NO_PEER) == FLAG_PROXIED
    }
}
