//! Frames of the fabric, from the wire into the log: the program that `retry_nack` goes on to with multicast.
//!
//! It stores what is plain: a whole frame with a right checksum, from a joined group, whose key is new and whose bucket
//! has an empty place (or its overflow bucket has). Everything else is passed on to the daemon's sockets, which know what
//! to do and count it: frames of sources that are no publishers, duplicates, replaced frames, bundles, datagrams in fragments,
//! bad bytes, a lane without room. Whether a frame fits the interfaces that it leaves by is asked when it leaves.
//!
//! Room is reserved by compare-exchange on the lane's head, within the limit that the daemon has set
//! ([`retry_common::framelog`]). No other writer writes there, and no reader believes it before it is committed. The daemon
//! follows and counts. A frame with a wrong checksum gives its room back.
//!
//! Longer than most files: whether a frame is plain is one question, and each of its checks bounds what the next may read.

use aya_ebpf::btf_maps::{Array, HashMap, ProgramArray};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use retry_common::abi::{KERNEL_STORE_MAX, RecordHeader, Settings, record_flag, setting_flag};
use retry_common::checksum;
use retry_common::counter::Counter;
use retry_common::framelog::{self, Appended, Left};
use retry_common::group::{self, BeefBits, ShardBits, Sharding};
use retry_common::index;
use retry_common::latency::Measured;
use retry_common::wire::frame::{HEAD_LEN, Head};

use crate::packet::{self, ETHERNET_LEN, IP_UDP_LEN, IpUdp};
use crate::{acl, count, latency, log, stored};

/// One bit for each group index: 1 is joined.
#[btf_map]
static JOINED: Array<u64, 1024> = Array::new();
/// Sources that are joined, where they are named.
#[btf_map]
static SOURCES: HashMap<[u8; 16], u8, 8192> = HashMap::new();

/// `retry_fill`, where the kernel stores frames; else empty.
#[btf_map]
static FILL: ProgramArray<1> = ProgramArray::new();

/// UDP (IANA protocol numbers).
const UDP: u8 = 17;
/// Where the frame starts. Tagged frames are other interfaces'.
const FRAME: usize = ETHERNET_LEN + IP_UDP_LEN;

/// Goes on to the program that stores frames, with a packet for an IPv6 group; comes back where there is none.
#[inline(always)]
pub(crate) fn go_on(ctx: &XdpContext) {
    if packet::read(ctx, 0) != Some([0x33u8, 0x33]) {
        return;
    }
    // SAFETY: what holds values in this program has no destructors.
    unsafe { FILL.tail_call(ctx, 0) };
}

/// Stores the frame in the packet; `None` when it is the daemon's.
#[inline(always)]
pub(crate) fn store(ctx: &XdpContext) -> Option<()> {
    let ethertype: [u8; 2] = packet::read(ctx, ETHERNET_LEN - 2)?;
    if ethertype != [0x86, 0xdd] {
        return None;
    }
    let headers: IpUdp = packet::read(ctx, ETHERNET_LEN)?;
    let settings = log::settings()?;
    let length = admit(ctx, &headers, settings)?;
    // Shorter ones are rare; the daemon takes them.
    let bytes: [u8; HEAD_LEN] = packet::read(ctx, FRAME)?;
    let head = Head::parse(&bytes, usize::from(length)).ok()?;
    if head.bundle.is_some() {
        return None;
    }
    let (key, class) = (head.cache_key()?, head.class()?);
    let lane = u32::from(class.lane() == 1);

    let sharding = Sharding { shard: ShardBits::new(settings.shard_bits)?, beef: BeefBits::new(settings.beef_bits)? };
    let group = head.group_index(&sharding)?;
    let life_ms = log::life_ms(settings, class);
    // SAFETY: the helper takes nothing and always succeeds.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    if now_ns >= log::lease_until_ns(settings) {
        return None;
    }
    let frame = Frame {
        ctx,
        headers: &headers,
        settings,
        hash: index::hash(&key, settings.hash_seed),
        lane,
        length,
        header: RecordHeader {
            version: 0,
            expires_ns: now_ns + u64::from(life_ms) * 1_000_000,
            key,
            length: u32::from(length),
            life_ms,
            partial: 0,
            group,
            class: class as u8,
            flags: record_flag::KERNEL,
            reserved: [0; 2],
        },
    };
    match framelog::append(&frame) {
        Appended::Stored => {
            stored::of(headers.source, settings.hash_seed);
            latency::took(Measured::Stored, settings, now_ns);
            Some(())
        }
        Appended::Left(why) => {
            count::one(match why {
                Left::Known => Counter::FillLeftKnown,
                Left::BucketFull => Counter::FillLeftBucket,
                Left::NoRoom => Counter::FillLeftRoom,
                Left::Contended => Counter::FillLeftContended,
            });
            None
        }
        Appended::Wrong => {
            // Not wrong but unfinished, left for hardware to compute: the stack knows that the bytes are right.
            if !seems_unfinished(&headers, length) {
                count::one(Counter::FillRefused);
            }
            None
        }
        Appended::TooLate => {
            count::one(Counter::LogLateCommits);
            None
        }
    }
}

/// A frame that is to be stored.
struct Frame<'a> {
    ctx: &'a XdpContext,
    headers: &'a IpUdp,
    settings: &'a Settings,
    hash: u64,
    lane: u32,
    /// Bytes of the frame.
    length: u16,
    /// Its record's header, but for version and sum.
    header: RecordHeader,
}

impl framelog::Append for Frame<'_> {
    type Word = log::MapWord;
    type Bucket = log::MapBucket;

    #[inline(always)]
    fn length(&self) -> u32 {
        u32::from(self.length)
    }

    #[inline(always)]
    fn hash(&self) -> u64 {
        self.hash
    }

    #[inline(always)]
    fn bucket(&self) -> Option<log::MapBucket> {
        log::bucket(self.hash, self.settings)
    }

    #[inline(always)]
    fn overflow(&self) -> Option<log::MapBucket> {
        log::overflow(self.hash, self.settings)
    }

    #[inline(always)]
    fn head(&self) -> Option<log::MapWord> {
        log::head(self.lane)
    }

    #[inline(always)]
    fn limit(&self) -> Option<log::MapWord> {
        log::limit(self.lane)
    }

    #[inline(always)]
    fn lane(&self) -> Option<(u32, u32)> {
        log::lane_slots(self.lane)
    }

    #[inline(always)]
    fn version(&self, slot: u32) -> Option<log::MapWord> {
        log::version_word(slot)
    }

    #[inline(always)]
    fn fill_in(&self, slot: u32, version: u64) -> bool {
        let Some(partial) = log::copy_in(self.ctx, slot, FRAME, u64::from(self.length)) else {
            return false;
        };
        self.headers.checksum == checksum(self.headers, self.length, partial).to_be_bytes()
            && log::write_header(slot, &RecordHeader { version, partial, ..self.header }).is_some()
    }

    #[inline(always)]
    fn write_filler(&self, slot: u32, position: u64, version: u64, length: u32) {
        log::write_filler(slot, position, version, length);
    }
}

/// The UDP checksum of a frame with this sum.
#[inline(always)]
fn checksum(headers: &IpUdp, length: u16, sum: u16) -> u16 {
    let (source_port, port) = (u16::from_be_bytes(headers.source_port), u16::from_be_bytes(headers.destination_port));
    checksum::udp_ipv6(&headers.source, &headers.destination, source_port, port, length, sum)
}

/// Length of the datagram's payload, if it is one that a joined socket would receive.
#[inline(always)]
fn admit(ctx: &XdpContext, headers: &IpUdp, settings: &Settings) -> Option<u16> {
    if headers.version[0] >> 4 != 6
        || headers.next_header != UDP
        || headers.destination_port != settings.ingress_port
        // Repairs, ours and others': the daemon tells them apart.
        || headers.source_port == settings.nack_port
        || u32::try_from(ctx.ingress_ifindex()) != Ok(log::ingress_ifindex(settings))
    {
        return None;
    }
    let destination = u128::from_be_bytes(headers.destination);
    let index = joined_index(destination, settings)?;
    let mac: [u8; 6] = packet::read(ctx, 0)?;
    if mac != group::multicast_mac(&headers.destination) {
        return None;
    }
    let word = JOINED.get(u32::from(index >> 6))?;
    if word >> (index & 63) & 1 == 0 {
        return None;
    }
    let source = u128::from_be_bytes(headers.source);
    if source >> 120 == 0xff || source == 0 {
        return None;
    }
    // SAFETY: the value is not looked at; an entry that goes meanwhile has just been left.
    if log::flags(settings) & setting_flag::NAMED_SOURCES != 0 && unsafe { SOURCES.get(headers.source) }.is_none() {
        return None;
    }
    if !acl::publishes(source, settings) {
        return None;
    }
    let udp_length = u16::from_be_bytes(headers.udp_length);
    let length = udp_length.checked_sub(8)?;
    if headers.udp_length != headers.payload_length
        || usize::from(length) > KERNEL_STORE_MAX
        || packet::length(ctx) < i32::from(udp_length) + 54
    {
        return None;
    }
    // RFC 8200, section 8.1: no checksum is no UDP over IPv6.
    if headers.checksum == [0, 0] { None } else { Some(length) }
}

/// Whether the checksum is what stands where a virtual interface leaves it for hardware to compute. One right checksum in
/// 65,536 is the same; so such a frame is summed like any other, and stored if it is right.
#[inline(always)]
fn seems_unfinished(headers: &IpUdp, length: u16) -> bool {
    let unfinished = checksum::udp_ipv6_unfinished(&headers.source, &headers.destination, length);
    headers.checksum == unfinished.to_be_bytes()
}

/// The index of one of our groups.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the lowest 16 bits are the index")]
fn joined_index(destination: u128, settings: &Settings) -> Option<u16> {
    let (prefix, id) = (u16::from_be_bytes(settings.group_prefix), u16::from_be_bytes(settings.group_id));
    let index = destination as u16;
    if destination == u128::from_be_bytes(group::address(prefix, id, index)) { Some(index) } else { None }
}
