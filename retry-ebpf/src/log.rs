//! The only file with map-value pointers into the frame log: settings, index, records, hold-down table.
//!
//! The steps of the log's protocol are `retry_common::framelog`'s; this file gives them the memory. The kernel reads records
//! that are whole and never writes into them: its store could land in a record that the daemon has dropped. It writes new
//! ones, at positions that it has reserved in a lane's free room.
//!
//! x86 orders loads with loads and stores with stores. Where the processor does not (arm64), the daemon sets [`WEAK_ORDER`]
//! before the program is verified, and [`order`] takes an atomic step that the processor treats as a full barrier.
//!
//! Longer than most files, because it is the only one: reading and appending rest on the same versions and the same bounds.

use core::hint::black_box;
use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::btf_maps::{Array, RingBuf};
use aya_ebpf::helpers::generated::bpf_csum_diff;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use retry_common::abi::{
    Bucket, Event, KERNEL_FRAME_MAX, KERNEL_STORE_MAX, LAYOUT, Lane, RECORD_HEADER_LEN, RecordHeader, SEGMENT_LEN,
    SEGMENT_LONG_TAIL, SEGMENT_SLOTS, SEGMENT_TAIL, SLOT_LEN, Segment, Settings, record_flag,
};
use retry_common::checksum;
use retry_common::framelog;
use retry_common::holddown::{Claim, HoldDown};
use retry_common::index;
use retry_common::key::FrameKey;
use retry_common::limits::{ByteBudget, TokenBucket, Window};
use retry_common::wire::frame::Class;

use crate::atomic::compare_exchange;
use crate::packet;

/// Below the shortest header of a frame that is cached. Bytes.
const SHORTEST_FRAME: u64 = 64;

/// Bytes that the kernel sums in one call (Linux before 6.12 takes no more).
const SUM_STEP: usize = 512;

/// `BPF_F_MMAPABLE` (linux/bpf.h).
const MMAPABLE: usize = 1024;

#[btf_map]
static SETTINGS: Array<Settings, 1, MMAPABLE> = Array::new();
/// Segments of the ring; the daemon sets how many.
#[btf_map]
static RING: Array<Segment, 1, MMAPABLE> = Array::new();
/// Buckets of the index; the daemon sets how many, a power of two and the overflow buckets.
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
    // SAFETY: array values live as long as the program. The daemon fills the value before it attaches. Afterwards it
    // changes whole words of the leases, the longest frame, the interfaces' indexes and what operators change while programs
    // run, which are read by the functions below, and nothing else.
    let settings = unsafe { &*settings };
    if settings.generation == 0 || settings.layout != LAYOUT { None } else { Some(settings) }
}

/// Until when the kernel may answer, nanoseconds of the monotonic clock.
#[inline(always)]
pub(crate) fn lease_until_ns(settings: &Settings) -> u64 {
    // SAFETY: a field of a live value; volatile because the daemon renews it.
    unsafe { (&raw const settings.lease_until_ns).read_volatile() }
}

/// Until when NACKs may be left to the daemon, nanoseconds of the monotonic clock.
#[inline(always)]
pub(crate) fn daemon_until_ns(settings: &Settings) -> u64 {
    // SAFETY: as above.
    unsafe { (&raw const settings.daemon_until_ns).read_volatile() }
}

/// Until when NACKs are watched, nanoseconds of the monotonic clock.
#[inline(always)]
pub(crate) fn watch_until_ns(settings: &Settings) -> u64 {
    // SAFETY: as above; a watcher renews it.
    unsafe { (&raw const settings.watch_until_ns).read_volatile() }
}

/// Of how many NACKs one is watched, and what of it.
#[inline(always)]
pub(crate) fn watch(settings: &Settings) -> (u32, u32) {
    // SAFETY: as above; a watcher writes it.
    let one_in = unsafe { (&raw const settings.watch_one_in).read_volatile() };
    // SAFETY: as above.
    (one_in, unsafe { (&raw const settings.watch_flags).read_volatile() })
}

/// Which table says who may ask: its number plus one; 0: none.
#[inline(always)]
pub(crate) fn acl(settings: &Settings) -> u64 {
    // SAFETY: as above; the daemon changes the word when the other table is filled.
    unsafe { (&raw const settings.acl).read_volatile() }
}

/// Longest frame that the kernel sends, bytes: it follows the interfaces' MTUs.
#[inline(always)]
pub(crate) fn max_frame(settings: &Settings) -> u32 {
    // SAFETY: as above; the daemon changes the word when an MTU changes.
    unsafe { (&raw const settings.max_frame).read_volatile() }
}

/// Interface on which the kernel answers: it follows the holder of the NACK address.
#[inline(always)]
pub(crate) fn nack_ifindex(settings: &Settings) -> u32 {
    // SAFETY: as above; the daemon changes the word when the interface has come back under another index.
    unsafe { (&raw const settings.nack_ifindex).read_volatile() }
}

/// Interface whose frames the kernel stores.
#[inline(always)]
pub(crate) fn ingress_ifindex(settings: &Settings) -> u32 {
    // SAFETY: as above; the daemon changes the word when the interface has come back under another index.
    unsafe { (&raw const settings.ingress_ifindex).read_volatile() }
}

/// The [`retry_common::abi::setting_flag`] bits.
#[inline(always)]
pub(crate) fn flags(settings: &Settings) -> u32 {
    // SAFETY: as above; the daemon changes the word when an operator changes a policy.
    unsafe { (&raw const settings.flags).read_volatile() }
}

/// The token bucket at `bucket`, in the settings. A NACK that meets a change may see the old value of one word beside the new one of
/// the other; the daemon lets every key of the limit begin anew once such NACKs are over.
#[inline(always)]
pub(crate) fn token_bucket(bucket: &TokenBucket) -> TokenBucket {
    let words = (&raw const *bucket).cast::<[u64; 2]>();
    // SAFETY: two words of a live value; volatile because the daemon changes them.
    TokenBucket::from_words(unsafe { words.read_volatile() })
}

/// The window at `window`, in the settings; a change is met as one of [`token_bucket`] is.
#[inline(always)]
pub(crate) fn window(window: &Window) -> Window {
    let words = (&raw const *window).cast::<[u64; 4]>();
    // SAFETY: four words of a live value; volatile because the daemon changes them.
    Window::from_words(unsafe { words.read_volatile() })
}

/// The budget in bytes at `budget`, in the settings; a change is met as one of [`token_bucket`] is.
#[inline(always)]
pub(crate) fn byte_budget(budget: &ByteBudget) -> ByteBudget {
    let words = (&raw const *budget).cast::<[u64; 2]>();
    // SAFETY: two words of a live value; volatile because the daemon changes them.
    ByteBudget::from_words(unsafe { words.read_volatile() })
}

/// How many times the bytes of its NACK a source gets that has not shown that it hears us; 0: that is not asked.
#[inline(always)]
pub(crate) fn unproven_factor(settings: &Settings) -> u64 {
    // SAFETY: a field of a live value; volatile because the daemon changes it.
    unsafe { (&raw const settings.bytes.unproven_factor).read_volatile() }
}

/// The hold-down.
#[inline(always)]
pub(crate) fn hold_down(settings: &Settings) -> HoldDown {
    // SAFETY: a field of a live value; volatile because the daemon changes it.
    let ours_ns = unsafe { (&raw const settings.hold_down.ours_ns).read_volatile() };
    // SAFETY: as above.
    HoldDown { ours_ns, others_ns: unsafe { (&raw const settings.hold_down.others_ns).read_volatile() } }
}

/// Life of a class, in milliseconds.
#[inline(always)]
pub(crate) fn life_ms(settings: &Settings, class: Class) -> u32 {
    let lives = (&raw const settings.life_ms).cast::<[u32; 5]>();
    // SAFETY: a field of a live value; volatile because the daemon changes its words.
    class.of(&unsafe { lives.read_volatile() })
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

impl retry_common::decide::CachedFrame for Record {
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
    let overflow = || overflow(hash, settings);
    let (bucket, i, entry) = framelog::find_either(bucket(hash, settings)?, overflow, index::tag(hash))?;
    let slot = index::slot(entry);
    let record = read(slot)?;
    // Only then is the header that of a record: the entry goes before its record's room is used again.
    if !framelog::still_leads(&bucket, i, entry) || record.1 != *key || now_ns >= record.2 {
        return None;
    }
    Some(record.0)
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
    order();
    // SAFETY: `header` points to a whole header; what is torn is found out below.
    let copy = unsafe { header.read_volatile() };
    order();
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
    order();
    stored && version(header) == record.version
}

/// Claims the multicast of the frame with this `hash`.
#[inline(always)]
pub(crate) fn claim(hash: u64, settings: &Settings, now_ns: u64) -> Claim {
    let hold_down = hold_down(settings);
    let place = HOLD_DOWN.get_ptr_mut(index::bucket(hash, settings.hold_down_mask));
    let Some(place) = place else {
        return Claim::Free(0);
    };
    // SAFETY: a live map value of eight aligned bytes; volatile because other CPUs and the daemon write it.
    let old = unsafe { place.read_volatile() };
    match hold_down.claim(old, hash, now_ns) {
        // SAFETY: as above.
        Claim::Free(new) if !unsafe { compare_exchange(place, old, new) } => {
            // Another CPU was quicker: most likely for the same frame. Ask what the word says now.
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
        Some(place) => hold_down(settings).claim(unsafe { place.read_volatile() }, hash, now_ns),
        None => Claim::Free(0),
    }
}

/// Hands an admitted NACK to the daemon; false when the ring buffer is full.
#[inline(always)]
pub(crate) fn hand_over(event: Event) -> bool {
    // Written where it is read: on the program's stack, which has 512 bytes, it would need its place beside all else.
    let Some(mut place) = EVENTS.reserve(0) else {
        return false;
    };
    place.write(event);
    place.submit(0);
    true
}

/// A word of a lane.
#[inline(always)]
pub(crate) fn head(lane: u32) -> Option<MapWord> {
    let lane = LANES.get_ptr_mut(lane)?;
    // SAFETY: a field of a live map value.
    Some(MapWord(unsafe { &raw mut (*lane).head }))
}

/// As [`head`].
#[inline(always)]
pub(crate) fn limit(lane: u32) -> Option<MapWord> {
    let lane = LANES.get_ptr_mut(lane)?;
    // SAFETY: a field of a live map value.
    Some(MapWord(unsafe { &raw mut (*lane).limit }))
}

/// First slot of a lane, and the number of its slots.
#[inline(always)]
pub(crate) fn lane_slots(lane: u32) -> Option<(u32, u32)> {
    let lane = LANES.get_ptr(lane)?;
    // SAFETY: a live map value; the field never changes.
    let first_slot = unsafe { (*lane).first_slot };
    // SAFETY: as above.
    Some((first_slot, unsafe { (*lane).slots }))
}

/// The version of the record at `slot`.
#[inline(always)]
pub(crate) fn version_word(slot: u32) -> Option<MapWord> {
    Some(MapWord(header(slot)?.cast_mut().cast()))
}

/// Copies `length` bytes of the packet at `offset` behind the header at `slot`, which this packet has reserved,
/// and returns their sum.
#[inline(always)]
pub(crate) fn copy_in(ctx: &XdpContext, slot: u32, offset: usize, length: u64) -> Option<u16> {
    // Twice the same with other bounds: the verifier knows no bound that depends on another.
    if length > KERNEL_FRAME_MAX as u64 {
        copy_in_up_to::<KERNEL_STORE_MAX, SEGMENT_LONG_TAIL>(ctx, slot, offset, length)
    } else {
        copy_in_up_to::<KERNEL_FRAME_MAX, SEGMENT_TAIL>(ctx, slot, offset, length)
    }
}

/// The same for frames of at most `MOST` bytes, in records that do not start in the last `TAIL` bytes of a segment.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "lengths are below 16384")]
fn copy_in_up_to<const MOST: usize, const TAIL: usize>(
    ctx: &XdpContext,
    slot: u32,
    offset: usize,
    length: u64,
) -> Option<u16> {
    let header = header_before::<TAIL>(slot)?;
    let mask = MOST.next_power_of_two() as u64 - 1;
    // As in `copy_frame`.
    let length = black_box(length & mask);
    if length > MOST as u64 {
        return None;
    }
    let length = black_box(length);
    if length < SHORTEST_FRAME {
        return None;
    }
    // Linux 6.1 forgets what it learnt of a register when a copy of it stands on the stack.
    let length = black_box(length);
    // SAFETY: `header` leaves more than its own length and `MOST` behind it, and a frame is not longer than that.
    let to = unsafe { header.cast_mut().cast::<u8>().add(RECORD_HEADER_LEN) };
    // What is summed are whole words: of the last one, zeros are to stay where the frame has ended.
    // SAFETY: as above; no other writer writes there, no reader believes it, and the word begins inside the frame.
    let last = unsafe { to.add(black_box((length - 1) & (mask - 3)) as usize) }.cast::<u32>();
    // SAFETY: as above; a record's bytes are aligned to 16.
    unsafe { last.write(0) };
    // SAFETY: as above.
    if !unsafe { packet::load(ctx, offset, to, length) } {
        return None;
    }
    sum::<MOST>(to, length as u32)
}

/// The sum of the `length` bytes, at most `MOST`, at `bytes`, and of zeros up to a multiple of four.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "lengths are below 16384")]
fn sum<const MOST: usize>(bytes: *mut u8, length: u32) -> Option<u16> {
    let rounded = length.next_multiple_of(4);
    let mut sum = 0u32;
    for step in 0..MOST.div_ceil(SUM_STEP) {
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

/// Writes the header of a record at `slot`, which this packet has reserved.
#[inline(always)]
pub(crate) fn write_header(slot: u32, header: &RecordHeader) -> Option<()> {
    let there = self::header(slot)?;
    // SAFETY: a header that this packet has reserved: no other writer writes it, and no reader believes it yet.
    unsafe { there.cast_mut().write_volatile(*header) };
    Some(())
}

/// Makes what this packet has reserved at `slot`, with `length` bytes behind the header, a filler.
#[inline(always)]
pub(crate) fn write_filler(slot: u32, position: u64, version: u64, length: u32) {
    let Some(segment) = RING.get_ptr_mut(slot / SEGMENT_SLOTS) else {
        return;
    };
    let offset = black_box((slot % SEGMENT_SLOTS) as usize * SLOT_LEN);
    // A filler may stand in a segment's last slot.
    if offset > SEGMENT_LEN - SLOT_LEN {
        return;
    }
    // SAFETY: a slot inside the segment.
    let there = unsafe { segment.cast::<u8>().add(offset).cast::<RecordHeader>() };
    let header = RecordHeader { version, length, flags: record_flag::FILLER, ..RecordHeader::default() };
    // SAFETY: as above; slots are aligned to 64 bytes, and no other writer writes what this packet has reserved.
    unsafe { there.write_volatile(header) };
    framelog::commit(&MapWord(there.cast()), position);
}

/// The bucket of a hash.
#[inline(always)]
pub(crate) fn bucket(hash: u64, settings: &Settings) -> Option<MapBucket> {
    INDEX.get_ptr_mut(index::bucket(hash, settings.bucket_mask)).map(|bucket| MapBucket(bucket.cast()))
}

/// The bucket for the entry of a hash whose own is full.
#[inline(always)]
pub(crate) fn overflow(hash: u64, settings: &Settings) -> Option<MapBucket> {
    INDEX.get_ptr_mut(index::overflow(hash, settings.bucket_mask)).map(|bucket| MapBucket(bucket.cast()))
}

/// A bucket of the index.
#[derive(Clone, Copy)]
pub(crate) struct MapBucket(*mut u64);

impl framelog::Bucket for MapBucket {
    type Word = MapWord;

    #[inline(always)]
    fn entry(&self, i: usize) -> MapWord {
        // SAFETY: inside the bucket, as the mask says.
        MapWord(unsafe { self.0.add(i & (index::BUCKET_ENTRIES - 1)) })
    }
}

/// A word of a live map value.
#[derive(Clone, Copy)]
pub(crate) struct MapWord(*mut u64);

impl framelog::Word for MapWord {
    #[inline(always)]
    fn load(&self) -> u64 {
        // SAFETY: eight aligned bytes of a live map value; volatile because other CPUs and the daemon write them.
        unsafe { self.0.read_volatile() }
    }

    #[inline(always)]
    fn store(&self, value: u64) {
        // What this makes visible was written before an atomic step of this program, which is a full barrier.
        compiler_fence(Ordering::SeqCst);
        // SAFETY: as above.
        unsafe { self.0.write_volatile(value) };
    }

    #[inline(always)]
    fn replace(&self, old: u64, new: u64) -> bool {
        compiler_fence(Ordering::SeqCst);
        // SAFETY: as above.
        let done = unsafe { compare_exchange(self.0, old, new) };
        compiler_fence(Ordering::SeqCst);
        done
    }

    #[inline(always)]
    fn fence(&self) {
        order();
    }
}

/// Not 0 where the processor may order loads otherwise than the program does. The verifier knows the value and drops the
/// branch, so that x86 pays nothing.
#[unsafe(no_mangle)]
static WEAK_ORDER: u8 = 0;

/// Orders what was read before with what is read after.
#[inline(always)]
fn order() {
    compiler_fence(Ordering::SeqCst);
    // SAFETY: a value of the object's read-only data; volatile because the daemon sets it before the program is loaded.
    if unsafe { (&raw const WEAK_ORDER).read_volatile() } != 0 {
        let mut word = 0u64;
        // SAFETY: a word of this program's stack. The kernel makes it a fully ordered atomic step (BPF_FETCH).
        unsafe { compare_exchange(&raw mut word, 0, 0) };
        compiler_fence(Ordering::SeqCst);
    }
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
    header_before::<SEGMENT_TAIL>(slot)
}

/// A pointer to a whole header with at least `TAIL` readable bytes from its start.
#[inline(always)]
fn header_before<const TAIL: usize>(slot: u32) -> Option<*const RecordHeader> {
    let segment = RING.get_ptr(slot / SEGMENT_SLOTS)?;
    // Boxed, or LLVM compares the slot number in place of the offset, and older verifiers do not see that these go together.
    let offset = black_box((slot % SEGMENT_SLOTS) as usize * SLOT_LEN);
    if offset > SEGMENT_LEN - TAIL {
        return None;
    }
    // SAFETY: the offset leaves `TAIL` bytes, which are more than a header, inside the segment.
    Some(unsafe { segment.cast::<u8>().add(offset).cast() })
}
