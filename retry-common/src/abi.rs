//! What crosses the kernel boundary: fixed-width integers and byte arrays at asserted offsets.
//!
//! The kernel programs and the daemon are built from one tree; [`LAYOUT`] in the settings shows a program that maps are of
//! another layout.
//!
//! Longer than most files: every struct that both sides map stands above the one block of asserts that holds its offsets.

use core::mem::offset_of;

use crate::acl;
use crate::holddown::HoldDown;
use crate::key::FrameKey;
use crate::latency::Histogram;
use crate::limits::{ByteLimits, TokenBucket, Window, table};

/// Version of everything in this file. Raised by any change that makes old maps unreadable.
pub const LAYOUT: u32 = 10;

/// Most known listeners: those that the window of a frame, which all who ask share, does not keep from an answer.
pub const KNOWN_LISTENERS: usize = 65_536;

/// Bytes of one entry of the ring map. No record straddles two segments.
pub const SEGMENT_LEN: usize = 1 << 24;
/// Records start at multiples of this: a slot. Bytes.
pub const SLOT_LEN: usize = 64;
/// Slots of a segment.
pub const SEGMENT_SLOTS: u32 = 1 << 18;
/// No record starts in the last page of a segment, so that a bounded read never leaves it. Bytes.
pub const SEGMENT_TAIL: usize = 4096;
/// No record of a frame above [`KERNEL_FRAME_MAX`] starts in what is behind this in a segment, for the same reason. Bytes.
pub const SEGMENT_LONG_TAIL: usize = 16_384;
/// Longest frame that XDP sends: a page less headroom, shared info and headers. Bytes.
pub const KERNEL_FRAME_MAX: usize = 3392;
/// Longest frame that XDP stores: one packet of the largest MTU that network cards commonly take, 9,216. Bytes.
pub const KERNEL_STORE_MAX: usize = 9168;
/// Length of [`RecordHeader`]. Bytes.
pub const RECORD_HEADER_LEN: usize = size_of::<RecordHeader>();

/// One entry of the ring map.
#[repr(C, align(64))]
pub struct Segment {
    /// Records back to back in steps of [`SLOT_LEN`].
    pub bytes: [u8; SEGMENT_LEN],
}

/// One entry of the index map: a cache line of [`crate::index`] entries.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Bucket {
    /// Tag ∥ slot, 0 = empty.
    pub entries: [u64; crate::index::BUCKET_ENTRIES],
}

/// What stands before each frame in the ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RecordHeader {
    /// Seqlock: even and unchanged before and after the copy, or the copy is void. It follows from the record's place
    /// ([`crate::position::version`]), so no version comes twice. 0 = never written, or dropped.
    pub version: u64,
    /// End of life, nanoseconds of the monotonic clock.
    pub expires_ns: u64,
    /// The frame's key.
    pub key: FrameKey,
    /// Bytes of the frame.
    pub length: u32,
    /// Life given at the start, milliseconds: `expires_ns − life_ms` is when the frame was stored.
    pub life_ms: u32,
    /// Ones'-complement sum of the frame's bytes, folded.
    pub partial: u16,
    /// Index of the group that a multicast repair goes to.
    pub group: u16,
    /// [`crate::wire::frame::Class`].
    pub class: u8,
    /// [`record_flag`] bits.
    pub flags: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

/// Bits of [`RecordHeader::flags`].
pub mod record_flag {
    /// Too long for XDP: the daemon sends it. Whether it fits the interfaces' MTUs is asked when it is sent.
    pub const DAEMON_ONLY: u8 = 0x01;
    /// No frame: what is left of a segment that the next record did not fit in.
    pub const FILLER: u8 = 0x02;
    /// Written by the kernel: the daemon has yet to count it.
    pub const KERNEL: u8 = 0x04;
    /// A filler in the place of what a writer has reserved and never committed.
    pub const HOLE: u8 = 0x08;
}

/// Bits of [`Settings::flags`].
pub mod setting_flag {
    /// Repairs are multicast.
    pub const MULTICAST: u32 = 0x01;
    /// Repairs are unicast to the NACK's sender.
    pub const UNICAST: u32 = 0x02;
    /// No ACKs.
    pub const SUPPRESS_ACK: u32 = 0x04;
    /// No MISSes.
    pub const SUPPRESS_MISS: u32 = 0x08;
    /// THROTTLED instead of silence.
    pub const THROTTLE_RESPONSE: u32 = 0x10;
    /// A shared store may have what the log has not.
    pub const STORE: u32 = 0x20;
    /// Upstream endpoints may have what the log has not.
    pub const RECOVERY: u32 = 0x40;
    /// Multicast repairs are the daemon's (loop-back wanted, or strict dedup).
    pub const DAEMON_MULTICAST: u32 = 0x80;
    /// Multicast repairs leave by the NACK interface too, not only by others.
    pub const EGRESS_HERE: u32 = 0x100;
    /// Frames are the daemon's, because packets cannot grow here: clones of generic XDP have no room.
    pub const DAEMON_FRAMES: u32 = 0x200;
    /// The daemon is told of each multicast repair, for other instances to know of it.
    pub const ANNOUNCE: u32 = 0x400;
    /// Frames are stored from named sources only.
    pub const NAMED_SOURCES: u32 = 0x800;
    /// How long NACKs and frames take is measured.
    pub const LATENCY: u32 = 0x1000;
    /// NACKs are drawn for the top talkers.
    pub const TALKERS: u32 = 0x8000;
    /// A budget in bytes is on ([`super::Settings::bytes`]).
    pub const BYTE_BUDGETS: u32 = 0x1_0000;

    /// The bits that an operator changes while programs run.
    pub const LIVE: u32 = MULTICAST
        | UNICAST
        | SUPPRESS_ACK
        | SUPPRESS_MISS
        | THROTTLE_RESPONSE
        | DAEMON_MULTICAST
        | ANNOUNCE
        | BYTE_BUDGETS;
}

/// The four limits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Limits {
    /// Per source address.
    pub address: TokenBucket,
    /// Per (source address, group index), after the look-up.
    pub group: TokenBucket,
    /// Per (HashKey, SeqNum).
    pub sequence: Window,
    /// Per (source address, HashKey).
    pub chain: Window,
}

/// The one value of the settings map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Settings {
    /// Not 0 once the daemon has filled the settings in; at 0 nothing is answered. While programs run, the daemon changes
    /// only the words that say so, each by one aligned store.
    pub generation: u64,
    /// The kernel answers hits and stores frames until then, nanoseconds of the monotonic clock. The daemon renews it, or makes
    /// it 0. Changes while programs run.
    pub lease_until_ns: u64,
    /// Seed of [`crate::index::hash`].
    pub hash_seed: u64,
    /// The limits. Changes while programs run, word by word.
    pub limits: Limits,
    /// The hold-down. Changes while programs run.
    pub hold_down: HoldDown,
    /// [`LAYOUT`].
    pub layout: u32,
    /// [`setting_flag`] bits. Those of [`setting_flag::LIVE`] change while programs run.
    pub flags: u32,
    /// Interface on which the kernel answers. Changes while programs run.
    pub nack_ifindex: u32,
    /// Number of index buckets less one.
    pub bucket_mask: u32,
    /// Number of hold-down words less one.
    pub hold_down_mask: u32,
    /// Longest frame that the kernel sends, bytes: the smallest MTU less headers, at most [`KERNEL_FRAME_MAX`]. Changes while
    /// programs run: a packet in between meets the old length or the new one.
    pub max_frame: u32,
    /// NACK address.
    pub nack_addr: [u8; 16],
    /// NACK port, big-endian.
    pub nack_port: [u8; 2],
    /// Port of multicast repairs, big-endian.
    pub egress_port: [u8; 2],
    /// Life of each class in milliseconds, in the order of [`crate::wire::frame::Class`]. Changes while programs run, for frames
    /// that are stored from then on.
    pub life_ms: [u32; 5],
    /// Interface whose frames the kernel stores. Changes while programs run.
    pub ingress_ifindex: u32,
    /// Number of buckets of each limit table less one.
    pub limit_mask: u32,
    /// Port that frames come to, big-endian.
    pub ingress_port: [u8; 2],
    /// First two bytes of group addresses.
    pub group_prefix: [u8; 2],
    /// Group id, big-endian.
    pub group_id: [u8; 2],
    /// Hop limit of unicast answers.
    pub unicast_hop_limit: u8,
    /// Hop limit of multicast repairs.
    pub multicast_hop_limit: u8,
    /// Shard bits of transactions.
    pub shard_bits: u8,
    /// Shard bits of BEEF objects.
    pub beef_bits: u8,
    /// MAC of the NACK interface; all zero where it has none, and the destination of NACKs is then not checked. The daemon
    /// changes it when the interface's changes.
    pub nack_mac: [u8; 6],
    /// The kernel leaves NACKs to the daemon until then, nanoseconds of the monotonic clock. The daemon renews it while all of
    /// its threads make progress, or makes it 0. Changes while programs run.
    pub daemon_until_ns: u64,
    /// Records for `retry-endpoint watch` are written until then, nanoseconds of the monotonic clock. The watcher renews it, and
    /// makes it 0. Changes while programs run.
    pub watch_until_ns: u64,
    /// When the daemon that filled this in began to serve, nanoseconds of Unix time.
    pub since_unix_ns: u64,
    /// Its version and commit, text padded with zeros.
    pub build: [u8; BUILD_LEN],
    /// Of so many NACKs one is watched; 0 and 1: each. The watcher's, as [`Settings::watch_until_ns`].
    pub watch_one_in: u32,
    /// [`watch_flag`] bits. The watcher's.
    pub watch_flags: u32,
    /// Which table says who may ask ([`crate::acl`]): its number plus one; 0: every source may. Changes while programs run.
    pub acl: u64,
    /// NACKs with a lower hop limit are dropped; 0: none.
    pub hop_limit_min: u8,
    /// How many interfaces a multicast repair leaves by.
    pub egress_interfaces: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// Number of buckets of the table of [`ByteLimits::source`] less one: 0 where that was off at the start.
    pub byte_mask: u32,
    /// The budgets in bytes. Changes while programs run, word by word.
    pub bytes: ByteLimits,
}

/// Bytes of [`Settings::build`].
pub const BUILD_LEN: usize = 32;

impl Settings {
    /// The eight-byte word that holds [`Settings::nack_mac`], with another MAC in it: it is changed in one store.
    #[must_use]
    pub const fn nack_mac_word(&self, mac: [u8; 6]) -> u64 {
        let [a, b, c, d, e, f] = mac;
        u64::from_ne_bytes([self.shard_bits, self.beef_bits, a, b, c, d, e, f])
    }
}

/// Where the word of [`Settings::nack_mac_word`] stands in [`Settings`], bytes.
pub const NACK_MAC_WORD: usize = offset_of!(Settings, shard_bits);

/// How multicast repairs leave by one interface; key of its map is the interface's index.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Egress {
    /// Source address.
    pub source: [u8; 16],
    /// Source MAC.
    pub mac: [u8; 6],
    /// Zero.
    pub reserved: [u8; 2],
}

/// What the kernel tells the daemon of a NACK that it admitted, see [`EventKind`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Event {
    /// Key asked for.
    pub key: FrameKey,
    /// Source address of the NACK.
    pub source: [u8; 16],
    /// Source port, big-endian.
    pub source_port: [u8; 2],
    /// [`EventKind`].
    pub kind: u8,
    /// Flags of the NACK.
    pub nack_flags: u8,
    /// Interface that the NACK came in by.
    pub ifindex: u32,
    /// When the kernel told of it, nanoseconds of the monotonic clock: events outlive the daemon that they were meant for.
    pub at_ns: u64,
}

/// What an [`Event`] asks of the daemon.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum EventKind {
    /// The log has the frame, the daemon alone can send it: all limits are charged.
    Send = 1,
    /// Not in the log; a shared store may have it. Every limit is charged but that of the group, which is not known yet.
    Store = 2,
    /// Not in the log, MISS is said unless it is suppressed; upstream endpoints may have it.
    Recover = 3,
    /// No NACK to answer: the kernel multicast this frame, and other instances are to be told.
    Repaired = 4,
    /// The window of the frame is full, and the source is a known listener. Its address is charged, and nothing else.
    Known = 5,
}

impl EventKind {
    /// The kind of an event's byte.
    pub const fn from_u8(kind: u8) -> Option<Self> {
        match kind {
            1 => Some(Self::Send),
            2 => Some(Self::Store),
            3 => Some(Self::Recover),
            4 => Some(Self::Repaired),
            5 => Some(Self::Known),
            _ => None,
        }
    }
}

/// Key of the (HashKey, SeqNum) window is [`FrameKey`]; of the address bucket, this.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct AddressKey {
    /// Source address of NACKs.
    pub address: [u8; 16],
}

/// Key of the chain window.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct ChainKey {
    /// Source address of NACKs.
    pub address: [u8; 16],
    /// The flow, big-endian.
    pub hash_key: [u8; 8],
}

/// Key of the group bucket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct GroupKey {
    /// Source address of NACKs.
    pub address: [u8; 16],
    /// The group index, big-endian.
    pub group: [u8; 2],
    /// Zero.
    pub reserved: [u8; 2],
}

/// One way of a bucket of a limit table, see [`crate::limits::table`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct LimitWay {
    /// Hash of the key; 0 = the way is free.
    pub tag: u64,
    /// The state word of [`crate::limits`].
    pub state: u64,
}

/// State of [`ByteLimits::total`], which the kernel programs and the daemon charge.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TotalBytes {
    /// The state word of [`crate::limits::ByteBudget`].
    pub state: u64,
    /// Zero.
    pub reserved: [u64; 7],
}

/// One entry of a limit table: what decides in one cache line, and whose it is behind it, for who reads the table.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct LimitBucket<K> {
    /// The ways.
    pub ways: [LimitWay; table::WAYS],
    /// Their keys, as the last writer of the way wrote them: no decision rests on these.
    pub keys: [K; table::WAYS],
}

/// What the main program leaves in the NACK's SubtreeID for the role program that rewrites each clone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Ticket {
    /// Names the NACK on this CPU.
    pub nonce: u64,
    /// Version of the record when it was looked up.
    pub version: u64,
    /// Slot of the record.
    pub slot: u32,
    /// Sends of [`crate::decide::Repair`] as [`ticket_role`] bits.
    pub roles: u8,
    /// Flags of the ACK.
    pub ack_flags: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// When the NACK was looked at, for what watches it; nanoseconds of the monotonic clock.
    pub at_ns: u64,
}

/// Bits of [`Ticket::roles`].
pub mod ticket_role {
    /// An ACK leaves by the NACK's interface.
    pub const ACK: u8 = 0x01;
    /// A unicast copy leaves by the NACK's interface.
    pub const UNICAST: u8 = 0x02;
    /// A multicast repair leaves by the NACK's interface.
    pub const MULTICAST_HERE: u8 = 0x04;
    /// The original has room for the frame, so the ACK leads; else the clones carry frames and the ACK comes last.
    pub const ACK_LEADS: u8 = 0x08;
}

/// Bits of [`Settings::watch_flags`].
pub mod watch_flag {
    /// The watcher wants packets as they left.
    pub const PACKETS: u32 = 0x01;
}

/// Bytes of a packet in a short record: a NACK with its headers has 126.
pub const WATCH_SHORT: usize = 128;
/// Bytes of a packet in a long record: the longest frame that the kernel sends, with its headers, has 3,454.
pub const WATCH_LONG: usize = 3456;

/// What is told to `retry-endpoint watch`, by the kernel program over a BPF ring buffer and by the daemon over a socket. Packet
/// bytes follow it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Watched {
    /// When the NACK was looked at, nanoseconds of the monotonic clock. With the CPU it names the NACK.
    pub at_ns: u64,
    /// Time until now, nanoseconds.
    pub took_ns: u32,
    /// Interface that the packet came in by, or left by ([`Watched::LEFT`]).
    pub ifindex: u32,
    /// The CPU; the daemon's records have [`Watched::DAEMON`].
    pub cpu: u32,
    /// Number of the [`crate::counter::Counter`] that says why, plus one; 0: none.
    pub reason: u16,
    /// One of the kinds.
    pub kind: u8,
    /// [`crate::latency::Measured`] of a [`Watched::DECIDED`].
    pub verdict: u8,
    /// What left, as [`ticket_role`] bits.
    pub sent: u8,
    /// Flags of the NACK; the daemon's records alone.
    pub nack_flags: u8,
    /// Bytes of the packet.
    pub length: u16,
    /// Bytes of it that follow.
    pub captured: u16,
    /// Port that the NACK came from, big-endian; the daemon's records alone.
    pub source_port: [u8; 2],
    /// Address that it came from; the daemon's records alone.
    pub source: [u8; 16],
    /// What it asks for; the daemon's records alone.
    pub key: FrameKey,
    /// Zero.
    pub reserved: [u8; 8],
}

impl Watched {
    /// A NACK, as it came.
    pub const ASKED: u8 = 1;
    /// What was decided on it.
    pub const DECIDED: u8 = 2;
    /// A packet that leaves for it.
    pub const LEFT: u8 = 3;
    /// A packet to the NACK port that is no NACK.
    pub const REFUSED: u8 = 4;
    /// A packet to the NACK port that was left to the stack.
    pub const PASSED: u8 = 5;
    /// The daemon: the NACK waits for a backend.
    pub const WAITS: u8 = 6;
    /// The daemon: a frame came back from a backend.
    pub const FETCHED: u8 = 7;
    /// In the place of a CPU's number.
    pub const DAEMON: u32 = u32::MAX;

    /// With nothing in it.
    pub const NONE: Self = Self {
        at_ns: 0,
        took_ns: 0,
        ifindex: 0,
        cpu: 0,
        reason: 0,
        kind: 0,
        verdict: 0,
        sent: 0,
        nack_flags: 0,
        length: 0,
        captured: 0,
        source_port: [0; 2],
        source: [0; 16],
        key: FrameKey::new(0, 0),
        reserved: [0; 8],
    };
}

/// Bytes of a [`Watched`].
pub const WATCHED_LEN: usize = size_of::<Watched>();

impl Watched {
    /// Its bytes, as they stand in memory.
    pub fn to_bytes(&self) -> [u8; WATCHED_LEN] {
        let mut out = [0; WATCHED_LEN];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            if let Some(place) = out.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
            at += bytes.len();
        };
        put(&self.at_ns.to_ne_bytes());
        put(&self.took_ns.to_ne_bytes());
        put(&self.ifindex.to_ne_bytes());
        put(&self.cpu.to_ne_bytes());
        put(&self.reason.to_ne_bytes());
        put(&[self.kind, self.verdict, self.sent, self.nack_flags]);
        put(&self.length.to_ne_bytes());
        put(&self.captured.to_ne_bytes());
        put(&self.source_port);
        put(&self.source);
        put(&self.key.to_bytes());
        put(&self.reserved);
        out
    }

    /// The record at the start of these bytes, and the bytes of the packet behind it; `None` when they are too few.
    pub fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (record, packet) = bytes.split_first_chunk::<WATCHED_LEN>()?;
        let two = |at: usize| Some(u16::from_ne_bytes(*record.get(at..)?.first_chunk()?));
        let four = |at: usize| Some(u32::from_ne_bytes(*record.get(at..)?.first_chunk()?));
        let sixteen = |at: usize| record.get(at..)?.first_chunk::<16>().copied();
        let one = |at: usize| record.get(at).copied();
        let parsed = Self {
            at_ns: u64::from_ne_bytes(*record.first_chunk()?),
            took_ns: four(8)?,
            ifindex: four(12)?,
            cpu: four(16)?,
            reason: two(20)?,
            kind: one(22)?,
            verdict: one(23)?,
            sent: one(24)?,
            nack_flags: one(25)?,
            length: two(26)?,
            captured: two(28)?,
            source_port: *record.get(30..)?.first_chunk()?,
            source: sixteen(32)?,
            key: FrameKey::from_bytes(sixteen(48)?),
            reserved: *record.get(64..)?.first_chunk()?,
        };
        Some((parsed, packet.get(..usize::from(parsed.captured))?))
    }
}

/// A record with room for `N` bytes of a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct WatchedPacket<const N: usize> {
    /// The record.
    pub record: Watched,
    /// The first bytes of the packet.
    pub bytes: [u8; N],
}

/// Packets of one bulk that the role program let through on a CPU, and that the device has not been told to have taken.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Bulk {
    /// The device.
    pub ifindex: u32,
    /// How many.
    pub packets: u32,
}

/// What a device took; key of its map is the interface's index.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Sent {
    /// Packets that the driver took.
    pub packets: u64,
    /// Packets that it did not.
    pub drops: u64,
}

/// EtherType of the frames by which the daemon finds out whether an interface takes packets (IEEE Std 802, local
/// experimental EtherType 1): no host does anything with them.
pub const PROBE_ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// Where such a frame says which of our interfaces is meant.
pub const PROBE_INDEX: usize = 14;

/// What the role program remembers on each CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RoleState {
    /// The NACK last seen.
    pub nonce: u64,
    /// How many of its packets went by.
    pub seen: u64,
    /// The last nonce given out by the main program.
    pub last_nonce: u64,
}

/// Entries of a [`SourceTable`]; a value of a per-CPU map holds at most 32 KiB.
pub const SOURCE_ENTRIES: usize = 512;

/// Frames stored of one source.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SourceCount {
    /// The source's IPv6 address.
    pub address: [u8; 16],
    /// Frames; 0 = the entry is free.
    pub frames: u64,
}

/// Frames that the kernel stored on one CPU, by their source. Filled and read by [`crate::sources`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SourceTable {
    /// The sources, in buckets.
    pub entries: [SourceCount; SOURCE_ENTRIES],
    /// Frames of sources whose bucket was full.
    pub other: u64,
}

/// What the daemon measures, in a map that outlives it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct UserHistograms {
    /// From a frame's arrival at the daemon until it is in the frame log.
    pub stored: Histogram,
    /// From a miss until the shared store has answered, or failed.
    pub store_asked: Histogram,
    /// From a miss until an upstream endpoint has sent the frame, or recovery has given up.
    pub recovered: Histogram,
}

/// Where those who write a lane stand; places are those of [`crate::position`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Lane {
    /// Position of the next record. The writer that changes it by compare-exchange owns what it went by.
    pub head: u64,
    /// Place up to which room has been made: the daemon alone moves it, and only forward.
    pub limit: u64,
    /// Place of the oldest record; the daemon's.
    pub tail: u64,
    /// Place up to which the daemon has read what the kernel wrote; the daemon's.
    pub followed: u64,
    /// Records between tail and followed, fillers included; the daemon's.
    pub records: u32,
    /// Index entries that lead to records of this lane and that the daemon has counted; the daemon's.
    pub live: u32,
    /// First slot of the lane.
    pub first_slot: u32,
    /// Slots of the lane.
    pub slots: u32,
}

const _: () = {
    assert!(SEGMENT_SLOTS as usize * SLOT_LEN == SEGMENT_LEN);
    assert!(size_of::<Bucket>() == 64);
    assert!(size_of::<RecordHeader>() == 48);
    assert!(offset_of!(RecordHeader, expires_ns) == 8);
    assert!(offset_of!(RecordHeader, key) == 16);
    assert!(offset_of!(RecordHeader, length) == 32);
    assert!(offset_of!(RecordHeader, life_ms) == 36);
    assert!(offset_of!(RecordHeader, partial) == 40);
    assert!(offset_of!(RecordHeader, group) == 42);
    assert!(offset_of!(RecordHeader, class) == 44);
    assert!(offset_of!(RecordHeader, flags) == 45);
    assert!(size_of::<Limits>() == 96);
    assert!(offset_of!(Settings, lease_until_ns) == 8);
    assert!(offset_of!(Settings, limits) == 24);
    assert!(offset_of!(Settings, hold_down) == 120);
    assert!(offset_of!(Settings, layout) == 136);
    assert!(offset_of!(Settings, nack_addr) == 160);
    assert!(NACK_MAC_WORD == 216);
    assert!(offset_of!(Settings, beef_bits) == 217);
    assert!(offset_of!(Settings, nack_mac) == 218);
    assert!(offset_of!(Settings, daemon_until_ns) == 224);
    assert!(offset_of!(Settings, watch_until_ns) == 232);
    assert!(offset_of!(Settings, watch_one_in) == 280);
    assert!(offset_of!(Settings, acl) == 288);
    assert!(offset_of!(Settings, egress_interfaces) == 297);
    assert!(offset_of!(Settings, byte_mask) == 300);
    assert!(offset_of!(Settings, bytes) == 304);
    assert!(size_of::<ByteLimits>() == 40 && offset_of!(ByteLimits, total) == 16);
    assert!(size_of::<Settings>() == 344);
    assert!(size_of::<TotalBytes>() == 64);
    assert!(size_of::<acl::Head>() == 448 && offset_of!(acl::Head, seed) == 384);
    assert!(size_of::<acl::AclBucket>() == 64);
    assert!(size_of::<Watched>() == 72 && offset_of!(Watched, key) == 48 && offset_of!(Watched, source) == 32);
    assert!(size_of::<WatchedPacket<WATCH_SHORT>>() == 200);
    assert!(size_of::<Egress>() == 24);
    assert!(size_of::<Event>() == 48);
    assert!(size_of::<AddressKey>() == 16);
    assert!(size_of::<ChainKey>() == 24);
    assert!(size_of::<GroupKey>() == 20);
    assert!(size_of::<LimitBucket<AddressKey>>() == 128);
    assert!(size_of::<LimitBucket<FrameKey>>() == 128);
    assert!(size_of::<LimitBucket<ChainKey>>() == 192);
    assert!(size_of::<LimitBucket<GroupKey>>() == 192);
    assert!(offset_of!(LimitBucket<GroupKey>, keys) == 64);
    assert!(size_of::<Bulk>() == 8);
    assert!(size_of::<Sent>() == 16);
    assert!(offset_of!(Sent, drops) == 8);
    assert!(size_of::<SourceCount>() == 24);
    assert!(offset_of!(SourceCount, frames) == 16);
    assert!(offset_of!(SourceTable, other) == SOURCE_ENTRIES * 24);
    assert!(size_of::<SourceTable>() <= 32 << 10);
    assert!(size_of::<Histogram>() == 2056);
    assert!(size_of::<UserHistograms>() == 3 * 2056);
    assert!(size_of::<Ticket>() == 32);
    assert!(size_of::<Lane>() == 48);
    assert!(offset_of!(Lane, limit) == 8);
    assert!(offset_of!(Lane, records) == 32);
    assert!(offset_of!(Lane, first_slot) == 40);
    assert!(RECORD_HEADER_LEN + KERNEL_FRAME_MAX < SEGMENT_TAIL);
    assert!(RECORD_HEADER_LEN + KERNEL_STORE_MAX < SEGMENT_LONG_TAIL);
};
