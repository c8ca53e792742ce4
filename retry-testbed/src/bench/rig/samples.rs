//! Every 4096th answer and the three behind it, as the counting program kept them during a run: bytes, checksums, order.

use std::net::Ipv6Addr;

use anyhow::{Result, ensure};
use aya::Pod;
use retry_testbed::{
    net::{
        fabric::{DATA_PORT, Host, group},
        packet::{Packet, ParsedPacket},
    },
    peers::answer::Answer,
};

use super::template::{LOAD_PORT, frame};

/// The longest that is kept.
const LONGEST: usize = 2048;

/// As the counting program writes it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    /// Its place among all that came.
    pub(crate) number: u64,
    length: u64,
    bytes: [u8; LONGEST],
}
// SAFETY: words and bytes without padding.
unsafe impl Pod for Sample {}

/// What a right answer is in this run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Right {
    /// Length of the frames.
    pub(crate) length: usize,
    /// Flows that they belong to.
    pub(crate) flows: u64,
    /// The SeqNums asked for.
    pub(crate) first: u64,
    /// How many there are.
    pub(crate) count: u64,
    /// Whether an ACK goes before its frame: in the kernel, where the frame's room is proved first, and in the plain server.
    /// The daemon's socket sends the frame first, for its ACK says what has left.
    pub(crate) ack_leads: bool,
    /// The source may be another host than the client.
    pub(crate) spoofed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Ack(u64),
    Miss,
    Frame(u64),
    Reflected,
}

/// How many samples were looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checked {
    /// Packets.
    pub(crate) packets: u64,
    /// Pairs of ACK and frame for one NACK, whose order was seen.
    pub(crate) pairs: u64,
}

/// Looks at all samples since packet `since`.
///
/// # Errors
/// One answer is not what it has to be.
pub(crate) fn check(samples: &[Sample], since: u64, right: &Right, from: &Host, to: &Host) -> Result<Checked> {
    let mut checked = Checked::default();
    let mut before: Option<(u64, What)> = None;
    for sample in samples.iter().filter(|sample| sample.length > 0 && sample.number >= since) {
        let bytes = usize::try_from(sample.length).ok().and_then(|length| sample.bytes.get(..length));
        let Some(bytes) = bytes else { anyhow::bail!("an answer of {} bytes", sample.length) };
        let packet = Packet::check(bytes).map_err(|error| anyhow::anyhow!("a broken answer: {error}: {bytes:02x?}"))?;
        let what = read(&packet, right, from.addr, to.addr)?;
        checked.packets += 1;
        if let Some((number, earlier)) = before
            && number + 1 == sample.number
        {
            match (earlier, what) {
                (What::Frame(a), What::Ack(b)) if a == b => {
                    ensure!(!right.ack_leads, "the frame of SeqNum {a} led its ACK");
                    checked.pairs += 1;
                }
                (What::Ack(a), What::Frame(b)) if a == b => {
                    ensure!(right.ack_leads, "the ACK of SeqNum {a} led its frame");
                    checked.pairs += 1;
                }
                _ => {}
            }
        }
        before = Some((sample.number, what));
    }
    Ok(checked)
}

fn read(packet: &ParsedPacket, right: &Right, endpoint: Ipv6Addr, client: Ipv6Addr) -> Result<What> {
    let source = packet.src;
    ensure!(*source.ip() == endpoint, "an answer from {source}");
    let asked = |seq: u64| seq >= right.first && seq - right.first < right.count;
    if packet.dst.port() == DATA_PORT {
        ensure!(*packet.dst.ip() == group(0), "a repair to {}", packet.dst);
    } else {
        ensure!(right.spoofed || *packet.dst.ip() == client, "an answer to {}", packet.dst);
        ensure!(packet.dst.port() == LOAD_PORT && source.port() == 9300, "an answer from {source} to {}", packet.dst);
    }
    match packet.payload.len() {
        16 => {
            let number = word(&packet.payload[8..16]);
            let answer = Answer::parse(&packet.payload, number).map_err(anyhow::Error::msg)?;
            if answer == Answer::Miss {
                return Ok(What::Miss);
            }
            ensure!(matches!(answer, Answer::Ack { .. }) && asked(number), "{answer:?} of SeqNum {number}");
            Ok(What::Ack(number))
        }
        64 if packet.payload[6] == 0x10 => Ok(What::Reflected),
        length => {
            ensure!(length == right.length, "a frame of {length} bytes");
            let number = word(&packet.payload[48..56]);
            ensure!(asked(number), "the frame of SeqNum {number} was not asked for");
            ensure!(
                packet.payload == frame(number, length, right.flows),
                "wrong bytes in the frame of SeqNum {number}"
            );
            Ok(What::Frame(number))
        }
    }
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| (value << 8) | u64::from(*byte))
}
