//! The limit of the machine: the shortest program that answers at all.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

use crate::nack::PACKET_LEN;

/// Packets sent back.
#[btf_map]
static REFLECTED: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Attached to the server's interface in place of the product: swaps addresses and ports and sends back.
#[xdp(frags)]
fn bench_reflect(ctx: XdpContext) -> u32 {
    let start = ctx.data();
    if start + PACKET_LEN > ctx.data_end() {
        return xdp_action::XDP_PASS;
    }
    let (macs, addresses, ports) =
        (start as *mut [[u8; 6]; 2], (start + 22) as *mut [u128; 2], (start + 54) as *mut [u16; 2]);
    // SAFETY: inside the packet, as just checked.
    let [destination, source] = unsafe { macs.read_unaligned() };
    // SAFETY: as above.
    unsafe { macs.write_unaligned([source, destination]) };
    // SAFETY: as above.
    let [from, to] = unsafe { addresses.read_unaligned() };
    // SAFETY: as above.
    unsafe { addresses.write_unaligned([to, from]) };
    // SAFETY: as above.
    let [from, to] = unsafe { ports.read_unaligned() };
    // SAFETY: as above.
    unsafe { ports.write_unaligned([to, from]) };
    let Some(reflected) = REFLECTED.get_ptr_mut(0) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: this CPU's own word.
    unsafe { *reflected += 1 };
    xdp_action::XDP_TX
}
