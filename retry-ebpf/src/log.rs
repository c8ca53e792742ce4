//! The only file with map-value pointers into the frame log: settings, index, records, hold-down table.
//!
//! The kernel reads records that stand and never writes into them: its store could land in a record that the writer has
//! lapped. It writes new ones, at places that it has taken from a lane's free room.
//!
//! Longer than most files, because it is the only one: reading and appending rest on the same versions and the same bounds.

use core::hint::black_box;
use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::btf_maps::{Array, RingBuf};
use aya_ebpf::helpers::generated::bpf_csum_diff;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use retry_common::abi::{
    Bucket, Event, KERNEL_FRAME_MAX, LAYOUT, Lane, RECORD_HEADER_LEN, RecordHeader, SEGMENT_LEN, SEGMENT_SLOTS,
    SEGMENT_TAIL, SLOT_LEN, Segment, Settings, record_flag,
};
use retry_common::checksum;
use retry_common::holddown::Claim;
use retry_common::index;
use retry_common::key::FrameKey;
use retry_common::place;

use crate::atomic::{compare_exchange, exchange};
use crate::packet;

/// Below the shortest header of a frame that is cached. Bytes.
const SHORTEST_FRAME: u64 = 64;

/// Bytes that the kernel sums in one call (Linux before 6.12 takes no more).
const SUM_STEP: usize = 512;
/// Calls that the longest frame takes.
const SUM_STEPS: usize = KERNEL_FRAME_MAX.div_ceil(SUM_STEP);

/// `BPF_F_MMAPABLE` (linux/bpf.h).
const MMAPABLE: usize = 1024;

#[btf_map]
static SETTINGS: Array<Settings, 1, MMAPABLE> = Array::new();
/// Segments of the ring; the daemon sets how many.
#[btf_map]
static RING: Array<Segment, 1, MMAPABLE> = Array::new();
/// Buckets of the index; the daemon sets how many, a power of two.
#[btf_map]
static INDEX: Array<Bucket, 1, MMAPABLE> = Array::new();
/// Words of the hold-down table; the daemon sets how many, a power of two.
#[btf_map]
static HOLD_DOWN: Array<u64, 1, MMAPABLE> = Array::new();
/// Where those who write stand, one entry a lane.
#[btf_map]
static LANES: Array<Lane, 2, MMAPABLE> = Array::new();
/// NACKs for the daemon.
#[btf_map]
static EVENTS: RingBuf<Event, 262_144> = RingBuf::new();

/// The settings, if the daemon has filled them in.
#[inline(always)]
pub(crate) fn settings() -> Option<&'static Settings> {
    let settings = SETTINGS.get_ptr(0)?;
    // SAFETY: array values live as long as the program. The daemon fills the value before it attaches and changes
    // nothing but the lease afterwards, which is read by `lease_until_ns`.
    let settings = unsafe { &*settings };
    if settings.generation == 0 || settings.layout != LAYOUT { None } else { Some(settings) }
}

/// Until when the kernel may answer, nanoseconds of the monotonic clock.
#[inline(always)]
pub(crate) fn lease_until_ns(settings: &Settings) -> u64 {
    // SAFETY: a field of a live value; volatile because the daemon renews it.
    unsafe { (&raw const settings.lease_until_ns).read_volatile() }
}

/// A record that was valid when it was looked up.
#[derive(Clone, Copy)]
pub(crate) struct Record {
    /// Where it stands.
    pub(crate) slot: u32,
    /// Its version then.
    pub(crate) version: u64,
    /// Bytes of the frame.
    pub(crate) length: u32,
    /// Ones'-complement sum of the frame.
    pub(crate) partial: u16,
    /// Group index.
    pub(crate) group: u16,
    /// [`record_flag`] bits.
    pub(crate) flags: u8,
}

impl retry_common::decide::Found for Record {
    #[inline(always)]
    fn group(&self) -> u16 {
        self.group
    }
}

impl Record {
    /// True when XDP may send it.
    #[inline(always)]
    pub(crate) fn fits(&self, max_frame: u32) -> bool {
        self.flags & record_flag::DAEMON_ONLY == 0 && self.length <= max_frame
    }
}

/// The record of `key`, if the log holds it and its life is not over.
#[inline(always)]
pub(crate) fn look_up(key: &FrameKey, hash: u64, settings: &Settings, now_ns: u64) -> Option<Record> {
    let bucket = INDEX.get_ptr(index::bucket(hash, settings.bucket_mask))?;
    let tag = index::tag(hash);
    let mut found = 0;
    for i in 0..index::BUCKET_ENTRIES {
        // SAFETY: `i` stays inside the bucket; volatile because the daemon writes it.
        let place = unsafe { bucket.cast::<u64>().add(i) };
        // SAFETY: as above.
        let entry = unsafe { place.read_volatile() };
        if index::has_tag(entry, tag) {
            found = entry;
            break;
        }
    }
    if found == 0 {
        return None;
    }
    let slot = index::slot(found);
    let record = read(slot)?;
    if record.1 != *key || now_ns >= record.2 { None } else { Some(record.0) }
}

/// Fetches the cache lines of this `hash`: the index's, and that of the last multicast where there are any.
#[inline(always)]
pub(crate) fn touch(hash: u64, settings: &Settings, multicasts: bool) {
    if multicasts && let Some(word) = HOLD_DOWN.get_ptr(index::bucket(hash, settings.hold_down_mask)) {
        // SAFETY: a live map value; volatile, or nothing would be loaded.
        unsafe { word.read_volatile() };
    }
    if let Some(bucket) = INDEX.get_ptr(index::bucket(hash, settings.bucket_mask)) {
        // SAFETY: the first entry; volatile, or nothing would be loaded.
        unsafe { bucket.cast::<u64>().read_volatile() };
    }
}

/// The record at `slot` with its key and its end of life, unless it is being written.
#[inline(always)]
pub(crate) fn read(slot: u32) -> Option<(Record, FrameKey, u64)> {
    let header = header(slot)?;
    let version = version(header);
    if version == 0 || version & 1 != 0 {
        return None;
    }
    compiler_fence(Ordering::SeqCst);
    // SAFETY: `header` points to a whole header; what is torn is found out below.
    let copy = unsafe { header.read_volatile() };
    compiler_fence(Ordering::SeqCst);
    if self::version(header) != version {
        return None;
    }
    let record =
        Record { slot, version, length: copy.length, partial: copy.partial, group: copy.group, flags: copy.flags };
    Some((record, copy.key, copy.expires_ns))
}

/// Copies the frame of `record` into the packet at `offset`, where its room has been made; false when the record was
/// overwritten before the copy ended.
#[inline(always)]
pub(crate) fn copy_frame(ctx: &XdpContext, record: &Record, offset: usize) -> bool {
    let Some(header) = header(record.slot) else {
        return false;
    };
    // The verifier wants to see both bounds of what it hands to the helper. LLVM would make one compare of the two checks,
    // on another register, or drop the mask: the black boxes keep them apart.
    let length = black_box(u64::from(record.length) & 0xfff);
    if length > KERNEL_FRAME_MAX as u64 {
        return false;
    }
    let length = black_box(length);
    // Not `== 0`: the verifier of Linux 6.1 learns nothing from that. No frame is shorter than its header.
    if length < SHORTEST_FRAME {
        return false;
    }
    // SAFETY: `header` leaves a page less than its own length behind it, and a frame is shorter than that.
    let frame = unsafe { header.cast::<u8>().add(RECORD_HEADER_LEN) };
    // SAFETY: as above.
    let stored = unsafe { packet::store(ctx, offset, frame, length) };
    compiler_fence(Ordering::SeqCst);
    stored && version(header) == record.version
}

/// Claims the multicast of the frame with this `hash`.
#[inline(always)]
pub(crate) fn claim(hash: u64, settings: &Settings, now_ns: u64) -> Claim {
    let hold_down = &settings.hold_down;
    let place = HOLD_DOWN.get_ptr_mut(index::bucket(hash, settings.hold_down_mask));
    let Some(place) = place else {
        return Claim::Free(0);
    };
    // SAFETY: a live map value of eight aligned bytes; volatile because other CPUs and the daemon write it.
    let old = unsafe { place.read_volatile() };
    match hold_down.claim(old, hash, now_ns) {
        // SAFETY: as above.
        Claim::Free(new) if !unsafe { compare_exchange(place, old, new) } => {
            // Somebody was quicker: most likely for the same frame. Ask what the word says now.
            // SAFETY: as above.
            hold_down.claim(unsafe { place.read_volatile() }, hash, now_ns)
        }
        claim => claim,
    }
}

/// What the hold-down says of the frame with this `hash`, and changes nothing.
#[inline(always)]
pub(crate) fn peek(hash: u64, settings: &Settings, now_ns: u64) -> Claim {
    match HOLD_DOWN.get_ptr_mut(index::bucket(hash, settings.hold_down_mask)) {
        // SAFETY: a live map value of eight aligned bytes; volatile because other CPUs and the daemon write it.
        Some(place) => settings.hold_down.claim(unsafe { place.read_volatile() }, hash, now_ns),
        None => Claim::Free(0),
    }
}

/// Hands an admitted NACK to the daemon; false when the ring buffer is full.
#[inline(always)]
pub(crate) fn hand_over(event: &Event) -> bool {
    EVENTS.output(event, 0).is_ok()
}

/// A place in a lane that this packet has taken.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// Its slot in the ring.
    pub(crate) slot: u32,
    /// The version that its record will have.
    version: u64,
}

#[expect(clippy::cast_possible_truncation, reason = "64")]
const SLOT_LEN_32: u32 = SLOT_LEN as u32;
#[expect(clippy::cast_possible_truncation, reason = "48")]
const HEADER_LEN_32: u32 = RECORD_HEADER_LEN as u32;
/// How often a head that other CPUs keep moving is tried again.
const ATTEMPTS: usize = 4;

/// Takes room for a frame of `length` bytes in a lane; `None` when the daemon has made none.
#[inline(always)]
pub(crate) fn reserve(lane: u32, length: u32) -> Option<Place> {
    let lane = LANES.get_ptr_mut(lane)?;
    // SAFETY: a field of a live map value.
    let limit_at = unsafe { &raw const (*lane).limit };
    // SAFETY: as above.
    let head_at = unsafe { &raw mut (*lane).head };
    // SAFETY: a live map value; the field never changes.
    let first_slot = unsafe { (*lane).first_slot };
    // SAFETY: as above.
    let lane_slots = unsafe { (*lane).slots };
    let slots = (HEADER_LEN_32 + length).div_ceil(SLOT_LEN_32);
    for _ in 0..ATTEMPTS {
        // The limit first: it only grows, so it is good for any head that comes later.
        // SAFETY: fields of a live value; volatile because others write them.
        let limit = unsafe { limit_at.read_volatile() };
        // SAFETY: as above.
        let head = unsafe { head_at.read_volatile() };
        let taken = place::reserve(head, limit, slots, lane_slots)?;
        // SAFETY: as above.
        if unsafe { compare_exchange(head_at, head, taken.end) } {
            if taken.filler != 0 {
                let rest = taken.filler * SLOT_LEN_32 - HEADER_LEN_32;
                let header = RecordHeader { length: rest, flags: record_flag::FILLER, ..RecordHeader::default() };
                let filler = Place { slot: first_slot + place::slot(head), version: place::version(head) };
                commit(&filler, &header);
            }
            let slot = first_slot + place::slot(taken.start);
            return Some(Place { slot, version: place::version(taken.start) });
        }
    }
    None
}

/// Copies `length` bytes of the packet at `offset` behind the header at `place`, and returns their sum.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "lengths are below 4096")]
pub(crate) fn copy_in(ctx: &XdpContext, place: &Place, offset: usize, length: u64) -> Option<u16> {
    let header = header(place.slot)?;
    // As in `copy_frame`.
    let length = black_box(length & 0xfff);
    if length > KERNEL_FRAME_MAX as u64 {
        return None;
    }
    let length = black_box(length);
    if length < SHORTEST_FRAME {
        return None;
    }
    // Linux 6.1 forgets what it learnt of a register when a copy of it stands on the stack.
    let length = black_box(length);
    // SAFETY: `header` leaves a page less than its own length behind it, and a frame is shorter than that.
    let to = unsafe { header.cast_mut().cast::<u8>().add(RECORD_HEADER_LEN) };
    // What is summed are whole words: of the last one, zeros are to stay where the frame has ended.
    // SAFETY: as above; nobody else writes or reads there, and the word begins inside the frame.
    let last = unsafe { to.add(black_box((length - 1) & 0xffc) as usize) }.cast::<u32>();
    // SAFETY: as above; a record's bytes are aligned to 16.
    unsafe { last.write(0) };
    // SAFETY: as above.
    if !unsafe { packet::load(ctx, offset, to, length) } {
        return None;
    }
    sum(to, length as u32)
}

/// The sum of the `length` bytes at `bytes`, and of zeros up to a multiple of four.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "lengths are below 4096")]
fn sum(bytes: *mut u8, length: u32) -> Option<u16> {
    let rounded = length.next_multiple_of(4);
    let mut sum = 0u32;
    for step in 0..SUM_STEPS {
        let done = (step * SUM_STEP) as u32;
        if rounded <= done {
            break;
        }
        let part = black_box(u64::from(rounded - done));
        let part = if part > SUM_STEP as u64 { SUM_STEP as u64 } else { part };
        // SAFETY: less than the longest frame, which `bytes` has room for, and a step more.
        let from = unsafe { bytes.add(step * SUM_STEP) };
        // SAFETY: `part` bytes of the record.
        let next = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, from.cast(), part as u32, sum) };
        // Below zero is an error.
        sum = u32::try_from(next).ok()?;
    }
    // The helper adds words as this machine reads them.
    Some(u16::from_be(checksum::fold(u64::from(sum))))
}

/// Lets the record at `place` stand, with this header but for its version.
#[inline(always)]
pub(crate) fn commit(place: &Place, header: &RecordHeader) {
    let Some(segment) = RING.get_ptr_mut(place.slot / SEGMENT_SLOTS) else {
        return;
    };
    let offset = black_box((place.slot % SEGMENT_SLOTS) as usize * SLOT_LEN);
    // A filler may stand in a segment's last slot.
    if offset > SEGMENT_LEN - SLOT_LEN {
        return;
    }
    // SAFETY: a slot inside the segment, which nobody else writes or reads.
    let there = unsafe { segment.cast::<u8>().add(offset).cast::<RecordHeader>() };
    // SAFETY: as above; slots are aligned to 64 bytes.
    unsafe { there.write_volatile(*header) };
    compiler_fence(Ordering::SeqCst);
    // All that was written before is seen by whoever sees the version.
    // SAFETY: the version is the first field.
    unsafe { exchange(there.cast(), place.version) };
}

/// An entry of a live bucket that was empty when it was looked at.
#[derive(Clone, Copy)]
pub(crate) struct EmptyEntry(*mut u64);

/// The first empty entry of the hash's bucket; `None` when there is none, or one has the hash's tag.
#[inline(always)]
pub(crate) fn empty_entry(hash: u64, settings: &Settings) -> Option<EmptyEntry> {
    let bucket = INDEX.get_ptr_mut(index::bucket(hash, settings.bucket_mask))?;
    let tag = index::tag(hash);
    let mut empty = None;
    for i in 0..index::BUCKET_ENTRIES {
        // SAFETY: `i` stays inside the bucket.
        let place = unsafe { bucket.cast::<u64>().add(i) };
        // SAFETY: as above; volatile because others write it.
        let entry = unsafe { place.read_volatile() };
        if entry == 0 {
            if empty.is_none() {
                empty = Some(i);
            }
        } else if index::has_tag(entry, tag) {
            return None;
        }
    }
    // SAFETY: inside the bucket.
    Some(EmptyEntry(unsafe { bucket.cast::<u64>().add(empty? & (index::BUCKET_ENTRIES - 1)) }))
}

/// Puts `entry` at an empty place of the index, if it still is empty.
#[inline(always)]
pub(crate) fn enter(place: EmptyEntry, entry: u64) {
    // SAFETY: an entry of a live bucket, for `empty_entry` alone makes these.
    unsafe { compare_exchange(place.0, 0, entry) };
}

#[inline(always)]
fn version(header: *const RecordHeader) -> u64 {
    // The version is the first field.
    // SAFETY: `header` points to a whole header; volatile because the daemon writes it.
    unsafe { header.cast::<u64>().read_volatile() }
}

/// A pointer to a whole header with [`KERNEL_FRAME_MAX`] readable bytes behind it.
#[inline(always)]
fn header(slot: u32) -> Option<*const RecordHeader> {
    let segment = RING.get_ptr(slot / SEGMENT_SLOTS)?;
    // Boxed, or LLVM compares the slot number in place of the offset, and older verifiers do not see that these go together.
    let offset = black_box((slot % SEGMENT_SLOTS) as usize * SLOT_LEN);
    if offset > SEGMENT_LEN - SEGMENT_TAIL {
        return None;
    }
    // SAFETY: the offset leaves at least a page inside the segment.
    Some(unsafe { segment.cast::<u8>().add(offset).cast() })
}
