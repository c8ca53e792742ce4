//! The bytes on the wire: parse and write, nothing else. Big-endian, UDP over IPv6.

pub mod advert;
pub mod answer;
pub mod frame;
pub mod manifest;
pub mod nack;
pub mod tee;

/// First four bytes of every datagram of the fabric (BRC-12).
pub const MAGIC: u32 = 0xE3E1_F3E8;
/// Protocol version: written, not checked on receive (BRC-12).
pub const PROTO_VER: u16 = 0x02BF;

/// UDP port of multicast frames and repairs, unless set otherwise.
pub const DATA_PORT: u16 = 9001;
/// UDP port of NACKs, unless set otherwise, and of beacons.
pub const NACK_PORT: u16 = 9300;

/// The first six bytes of what we write.
pub(crate) const HEAD: [u8; 6] = {
    let [a, b, c, d] = MAGIC.to_be_bytes();
    let [e, f] = PROTO_VER.to_be_bytes();
    [a, b, c, d, e, f]
};

/// `N` bytes at `offset`; `None` when there are fewer.
pub(crate) fn chunk<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

/// Writes `bytes` at `offset`; `None` when there is no room.
pub(crate) fn put(out: &mut [u8], offset: usize, bytes: &[u8]) -> Option<()> {
    out.get_mut(offset..)?.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(())
}
