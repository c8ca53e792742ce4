//! What became of packets after the role program: the only place where the kernel says whether a device took them.
//!
//! A redirect succeeds when its packet is queued. The device gets the queue in bulks, later: [`crate::role`] runs over the
//! bulk, then the driver takes it, or a part of it, or nothing; then the kernel tells the tracepoint `xdp_devmap_xmit`.
//! All of this happens on one CPU without a break. So the role program notes what it let through, and the bulk that is
//! told of next on this CPU is the one that it was in; bulks of other programs are told of without a note.

use aya_ebpf::btf_maps::{DevMap, HashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::{RawTracePointContext, XdpContext};
use retry_common::abi::{Bulk, PROBE_ETHERTYPE, PROBE_INDEX, Sent};

use crate::atomic::add;
use crate::packet::{self, ETHERNET_LEN};

/// Our packets in the bulk that the role program runs over.
#[btf_map]
static BULK: PerCpuArray<Bulk, 1> = PerCpuArray::new();
/// What devices took, by index; the daemon makes an entry for each of our interfaces.
#[btf_map]
static SENT: HashMap<u32, Sent, 32> = HashMap::new();
/// What was lost before it came to a device, by index. No program looks at it: it is here so that it outlives the daemon.
#[btf_map]
static LOST: HashMap<u32, u64, 32> = HashMap::new();
/// Our interfaces, for the daemon's probes.
#[btf_map]
static PROBE: DevMap<32> = DevMap::new();

/// Notes that the role program let a packet through to this interface.
#[inline(always)]
pub(crate) fn note(ifindex: u32) {
    let Some(bulk) = BULK.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's own value; nothing else runs on it between the packets of a bulk.
    let bulk = unsafe { &mut *bulk };
    if bulk.ifindex != ifindex {
        *bulk = Bulk { ifindex, packets: 0 };
    }
    bulk.packets += 1;
}

/// Counts what became of a bulk. Arguments of the tracepoint (include/trace/events/xdp.h): the two devices, packets that
/// the driver took, those that it did not, and its error.
#[inline(always)]
pub(crate) fn told(ctx: &RawTracePointContext) {
    let Some(bulk) = BULK.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's own value, as above.
    let bulk = unsafe { &mut *bulk };
    let Bulk { ifindex, packets } = *bulk;
    if packets == 0 {
        return;
    }
    bulk.packets = 0;
    let Some(sent) = SENT.get_ptr_mut(ifindex) else {
        return;
    };
    let taken: i32 = ctx.arg(2);
    let taken = u32::try_from(taken).unwrap_or(0).min(packets);
    let (packets_word, drops_word) = (sent.cast::<u64>(), sent.cast::<u64>().wrapping_add(1));
    // SAFETY: the first field of a live map value; several CPUs count here.
    unsafe { add(packets_word, u64::from(taken)) };
    // SAFETY: the second field, as above.
    unsafe { add(drops_word, u64::from(packets - taken)) };
}

/// True for a frame of the daemon that only finds out whether an interface takes packets.
#[inline(always)]
pub(crate) fn is_probe(ctx: &XdpContext) -> bool {
    packet::read(ctx, ETHERNET_LEN - 2) == Some(PROBE_ETHERTYPE)
}

/// Sends a probe to the interface that it names.
#[inline(always)]
pub(crate) fn probe(ctx: &XdpContext) -> Option<()> {
    let index: u8 = packet::read(ctx, PROBE_INDEX)?;
    PROBE.redirect(u32::from(index), 0).ok().map(drop)
}
