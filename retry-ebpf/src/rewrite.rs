//! Writes the packets that leave: headers, checksums, answers and frames, into packets whose room has been made.

use aya_ebpf::programs::XdpContext;
use retry_common::checksum;
use retry_common::wire::answer::{ANSWER_LEN, Answer};

use crate::log::{self, Record};
use crate::packet::{self, IP_UDP_LEN, IpUdp};

/// Addresses and ports of a packet.
pub(crate) struct Ends {
    pub(crate) source: [u8; 16],
    pub(crate) destination: [u8; 16],
    pub(crate) source_port: [u8; 2],
    pub(crate) destination_port: [u8; 2],
}

impl Ends {
    /// Those of an answer to the packet with these headers.
    #[inline(always)]
    pub(crate) const fn back(headers: &IpUdp) -> Self {
        Self {
            source: headers.destination,
            destination: headers.source,
            source_port: headers.destination_port,
            destination_port: headers.source_port,
        }
    }
}

/// Length of a packet whose UDP payload is a frame of `frame_len` bytes.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "below 4 KiB")]
pub(crate) fn packet_len(frame_len: u32) -> i32 {
    (packet::IP + IP_UDP_LEN) as i32 + (frame_len & 0xfff) as i32
}

/// Makes the sender the receiver.
#[inline(always)]
pub(crate) fn swap_macs(ctx: &XdpContext) -> Option<()> {
    let destination: [u8; 6] = packet::read(ctx, 0)?;
    let source: [u8; 6] = packet::read(ctx, 6)?;
    packet::write(ctx, 0, source)?;
    packet::write(ctx, 6, destination)
}

#[inline(always)]
fn write_headers(ctx: &XdpContext, ends: &Ends, hop_limit: u8, payload_len: u16, partial: u16) -> Option<()> {
    let checksum = checksum::udp_ipv6(
        &ends.source,
        &ends.destination,
        u16::from_be_bytes(ends.source_port),
        u16::from_be_bytes(ends.destination_port),
        payload_len,
        partial,
    );
    let length = (payload_len + 8).to_be_bytes();
    packet::write(
        ctx,
        packet::IP,
        IpUdp {
            version: [0x60, 0, 0, 0],
            payload_length: length,
            next_header: 17,
            hop_limit,
            source: ends.source,
            destination: ends.destination,
            source_port: ends.source_port,
            destination_port: ends.destination_port,
            udp_length: length,
            checksum: checksum.to_be_bytes(),
        },
    )
}

/// An answer in the place of what was there, back to where that came from.
#[inline(always)]
pub(crate) fn write_answer(ctx: &XdpContext, ends: &Ends, hop_limit: u8, answer: &Answer) -> Option<()> {
    const LEN: u16 = 16;
    const _: () = assert!(LEN as usize == ANSWER_LEN);
    let bytes = answer.to_bytes();
    if !packet::resize(ctx, packet_len(u32::from(LEN))) {
        return None;
    }
    swap_macs(ctx)?;
    write_headers(ctx, ends, hop_limit, LEN, checksum::partial_16(&bytes))?;
    packet::write(ctx, packet::IP + IP_UDP_LEN, bytes)
}

/// Headers and frame into a packet whose room has been made.
#[inline(always)]
pub(crate) fn write_frame(ctx: &XdpContext, ends: &Ends, hop_limit: u8, record: &Record) -> Option<()> {
    let length = u16::try_from(record.length).ok()?;
    write_headers(ctx, ends, hop_limit, length, record.partial)?;
    log::copy_frame(ctx, record, packet::IP + IP_UDP_LEN).then_some(())
}
