//! The shard manifest (BRC-139; BRC-148 for the planes): a participant says which groups and sources it stands for.
//!
//! An endpoint reads manifests for their sources and writes none; the writer is for tests and publishers.

use crate::crc32c;
use crate::wire::{HEAD, MAGIC, chunk, put};

/// Length of the header, bytes: no manifest is shorter.
pub const MANIFEST_HEADER_LEN: usize = 64;
/// Length of the successor block, bytes.
pub const SUCCESSOR_LEN: usize = 24;

/// The sender speaks for the operator.
pub const FLAG_AUTHORITATIVE: u8 = 0x02;
/// The sender is about to go.
pub const FLAG_SHUTDOWN: u8 = 0x04;
/// The data plane uses source-specific multicast.
pub const FLAG_SSM: u8 = 0x08;
/// The groups are what others shall join, not what the sender has joined.
pub const FLAG_PILOT: u8 = 0x20;
/// [`Manifest::rest`] begins with the planes (BRC-148).
pub const FLAG_DOMAINS: u8 = 0x80;

const FLAG_GROUPS: u8 = 0x01;
const FLAG_SOURCES: u8 = 0x10;
const FLAG_SUCCESSOR: u8 = 0x40;
/// Flags that say which sections there are: found from them, and never told twice.
const SECTIONS: u8 = FLAG_GROUPS | FLAG_SOURCES | FLAG_SUCCESSOR;

const TYPE: u8 = 0x40;
const CRC_AT: usize = 44;

/// An announcement.
///
/// ```
/// use std::net::Ipv6Addr;
/// use retry_common::wire::manifest::{FLAG_SSM, Groups, Manifest};
///
/// let publisher = "fd10::1".parse::<Ipv6Addr>()?.octets();
/// let manifest = Manifest {
///     flags: FLAG_SSM,
///     source: publisher,
///     instance_id: 1,
///     epoch_s: 1_700_000_000,
///     ttl_s: 0,
///     interval_s: 30,
///     shard_bits: 2,
///     role: 4,
///     generation_id: [0; 16],
///     groups: Groups::Bitmap(&[0b0000_1010]),
///     sources: &[publisher],
///     successor: None,
///     rest: &[],
/// };
/// let mut datagram = [0; 128];
/// let len = manifest.write(&mut datagram).ok_or("too long")?;
///
/// let read = Manifest::parse(&datagram[..len])?;
/// assert_eq!(read.sources, [publisher]);
/// assert_eq!(read.groups().collect::<Vec<_>>(), [1, 3]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Manifest<'a> {
    /// `FLAG_` bits; those of the groups, sources and successor are the fields below.
    pub flags: u8,
    /// The sender's address; informational.
    pub source: [u8; 16],
    /// [`instance_id`](crate::wire::advert::instance_id) of the sender.
    pub instance_id: u32,
    /// When it was made, seconds of Unix time.
    pub epoch_s: u32,
    /// How long it holds, seconds; 0 = three intervals.
    pub ttl_s: u16,
    /// Seconds between announcements.
    pub interval_s: u16,
    /// Shard bits of the transactions' plane.
    pub shard_bits: u8,
    /// 0 generic, 1 proxy, 2 listener, 3 retry endpoint, 4 producer, 5 manifest only; informational.
    pub role: u8,
    /// Changes with the shard bits.
    pub generation_id: [u8; 16],
    /// The groups.
    pub groups: Groups<'a>,
    /// IPv6 addresses that publish: their union over the live manifests is the data plane's source set in SSM.
    pub sources: &'a [[u8; 16]],
    /// The generation to come.
    pub successor: Option<Successor>,
    /// What follows the successor block: kept, not read.
    pub rest: &'a [u8],
}

/// The groups of a manifest, in the form in which they were told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Groups<'a> {
    /// Nothing is said of groups.
    None,
    /// Indices, big-endian, ascending.
    List(&'a [[u8; 2]]),
    /// Bit `i % 8`, from the lowest, of byte `i / 8` stands for index `i`.
    Bitmap(&'a [u8]),
}

/// The generation that takes over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Successor {
    /// Its generation id.
    pub generation_id: [u8; 16],
    /// Its shard bits.
    pub shard_bits: u8,
    /// Bit 0: its data plane uses source-specific multicast.
    pub flags: u8,
    /// When it takes over, seconds of Unix time.
    pub transition_s: u32,
}

/// Why bytes are no manifest.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ManifestError {
    /// Shorter than its header, or than the sections that the header tells of.
    #[error("shorter than its sections")]
    Size,
    /// Another magic.
    #[error("the magic is not the fabric's")]
    Magic,
    /// Another type than 0x40.
    #[error("the type is not shard manifest")]
    Type,
    /// The CRC is not that of the bytes.
    #[error("the CRC is wrong")]
    Crc,
    /// Both forms of groups, or neither although their flag is set, or one although it is not: then no reader could say
    /// where the sources begin.
    #[error("not exactly one form of groups")]
    Groups,
    /// The flag of the sources without sources, or sources without it.
    #[error("the flag of the sources and their number disagree")]
    Sources,
}

impl<'a> Manifest<'a> {
    /// The manifest of a datagram.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, ManifestError> {
        let (header, sections) = datagram.split_first_chunk::<MANIFEST_HEADER_LEN>().ok_or(ManifestError::Size)?;
        if u32::from_be_bytes(field(header, 0)?) != MAGIC {
            return Err(ManifestError::Magic);
        }
        let [kind, flags] = field(header, 6)?;
        if kind != TYPE {
            return Err(ManifestError::Type);
        }
        if crc_of(datagram) != Some(u32::from_be_bytes(field(header, CRC_AT)?)) {
            return Err(ManifestError::Crc);
        }
        let [shard_bits, role] = field(header, 36)?;
        let count = |offset| field(header, offset).map(|count| usize::from(u16::from_be_bytes(count)));
        let (group_count, bitmap_len, source_count) = (count(38)?, count(40)?, count(42)?);

        let (groups, sections) = match (flags & FLAG_GROUPS != 0, group_count, bitmap_len) {
            (false, 0, 0) => (Groups::None, sections),
            (true, 1.., 0) => {
                let (list, sections) = split(sections, group_count.saturating_mul(2))?;
                (Groups::List(list.as_chunks().0), sections)
            }
            (true, 0, 1..) => {
                let (bitmap, sections) = split(sections, bitmap_len)?;
                (Groups::Bitmap(bitmap), sections)
            }
            _ => return Err(ManifestError::Groups),
        };
        if (flags & FLAG_SOURCES != 0) != (source_count > 0) {
            return Err(ManifestError::Sources);
        }
        let (sources, sections) = split(sections, source_count.saturating_mul(16))?;
        let (successor, rest) = if flags & FLAG_SUCCESSOR != 0 {
            let (block, rest) = sections.split_first_chunk().ok_or(ManifestError::Size)?;
            (Some(Successor::from_array(block)), rest)
        } else {
            (None, sections)
        };
        Ok(Self {
            flags: flags & !SECTIONS,
            source: field(header, 8)?,
            instance_id: u32::from_be_bytes(field(header, 24)?),
            epoch_s: u32::from_be_bytes(field(header, 28)?),
            ttl_s: u16::from_be_bytes(field(header, 32)?),
            interval_s: u16::from_be_bytes(field(header, 34)?),
            shard_bits,
            role,
            generation_id: field(header, 48)?,
            groups,
            sources: sources.as_chunks().0,
            successor,
            rest,
        })
    }

    /// The group indices, in ascending order where the sender kept to it. Bits of a bitmap beyond the shard bits are
    /// ignored (BRC-139).
    pub fn groups(&self) -> impl Iterator<Item = u16> + Clone + use<'a> {
        let (list, bitmap): (&[[u8; 2]], &[u8]) = match self.groups {
            Groups::None => (&[], &[]),
            Groups::List(list) => (list, &[]),
            Groups::Bitmap(bitmap) => (&[], bitmap),
        };
        let last = 1u32
            .checked_shl(u32::from(self.shard_bits))
            .map_or(u16::MAX, |count| u16::try_from(count - 1).unwrap_or(u16::MAX));
        let set = (0..=last).zip(bitmap.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 != 0)));
        list.iter().map(|index| u16::from_be_bytes(*index)).chain(set.filter_map(|(index, set)| set.then_some(index)))
    }

    /// Writes this manifest with its CRC into `out` and returns its length. Flags of sections are set by what there is.
    ///
    /// `None` when `out` is too short, a section is longer than its count can tell, or the list or bitmap is empty.
    pub fn write(&self, out: &mut [u8]) -> Option<usize> {
        let (group_flag, list, bitmap): (u8, &[[u8; 2]], &[u8]) = match self.groups {
            Groups::None => (0, &[], &[]),
            Groups::List([]) | Groups::Bitmap([]) => return None,
            Groups::List(list) => (FLAG_GROUPS, list, &[]),
            Groups::Bitmap(bitmap) => (FLAG_GROUPS, &[], bitmap),
        };
        let source_flag = if self.sources.is_empty() { 0 } else { FLAG_SOURCES };
        let successor_flag = if self.successor.is_some() { FLAG_SUCCESSOR } else { 0 };
        let flags = self.flags & !SECTIONS | group_flag | source_flag | successor_flag;
        let count = |len: usize| u16::try_from(len).ok().map(u16::to_be_bytes);

        let mut to = Cursor { out, len: 0 };
        to.put(&HEAD)?;
        to.put(&[TYPE, flags])?;
        to.put(&self.source)?;
        to.put(&self.instance_id.to_be_bytes())?;
        to.put(&self.epoch_s.to_be_bytes())?;
        to.put(&self.ttl_s.to_be_bytes())?;
        to.put(&self.interval_s.to_be_bytes())?;
        to.put(&[self.shard_bits, self.role])?;
        to.put(&count(list.len())?)?;
        to.put(&count(bitmap.len())?)?;
        to.put(&count(self.sources.len())?)?;
        to.put(&[0; 4])?;
        to.put(&self.generation_id)?;
        to.put(list.as_flattened())?;
        to.put(bitmap)?;
        to.put(self.sources.as_flattened())?;
        if let Some(successor) = &self.successor {
            to.put(&successor.generation_id)?;
            to.put(&[successor.shard_bits, successor.flags, 0, 0])?;
            to.put(&successor.transition_s.to_be_bytes())?;
        }
        to.put(self.rest)?;

        let Cursor { out, len } = to;
        let datagram = out.get_mut(..len)?;
        let crc = crc_of(datagram)?;
        put(datagram, CRC_AT, &crc.to_be_bytes())?;
        Some(len)
    }
}

impl Successor {
    fn from_array(block: &[u8; SUCCESSOR_LEN]) -> Self {
        let [generation_id @ .., shard_bits, flags, _, _, t0, t1, t2, t3] = *block;
        Self { generation_id, shard_bits, flags, transition_s: u32::from_be_bytes([t0, t1, t2, t3]) }
    }
}

/// The CRC of a datagram as if its own four bytes were zero.
fn crc_of(datagram: &[u8]) -> Option<u32> {
    let (head, rest) = datagram.split_at_checked(CRC_AT)?;
    Some(crc32c::of(&[head, &[0; 4], rest.get(4..)?]))
}

fn field<const N: usize>(header: &[u8], offset: usize) -> Result<[u8; N], ManifestError> {
    chunk(header, offset).ok_or(ManifestError::Size)
}

fn split(sections: &[u8], len: usize) -> Result<(&[u8], &[u8]), ManifestError> {
    sections.split_at_checked(len).ok_or(ManifestError::Size)
}

/// Writes one field behind the other.
struct Cursor<'a> {
    out: &'a mut [u8],
    len: usize,
}

impl Cursor<'_> {
    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        put(self.out, self.len, bytes)?;
        self.len = self.len.checked_add(bytes.len())?;
        Some(())
    }
}
