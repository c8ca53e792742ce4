//! The bytes on the wire: parse and write, nothing else. Big-endian, UDP over IPv6.

pub mod advert;
pub mod answer;
pub mod frame;
pub mod nack;

/// First four bytes of every datagram of the fabric (BRC-12).
pub const MAGIC: u32 = 0xE3E1_F3E8;
/// Protocol version: written, not checked on receive (BRC-12).
pub const PROTO_VER: u16 = 0x02BF;

/// The first six bytes of what we write.
pub(crate) const HEAD: [u8; 6] = {
    let [a, b, c, d] = MAGIC.to_be_bytes();
    let [e, f] = PROTO_VER.to_be_bytes();
    [a, b, c, d, e, f]
};
