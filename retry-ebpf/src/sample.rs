//! Log lines from the kernel, off unless the daemon was started with `-debug`: the level is a constant at load time, so
//! the verifier removes what is not wanted.

use aya_ebpf::programs::XdpContext;
use retry_common::counter::Counter;

/// One refused packet in so many is told.
const ONE_IN: u32 = 64;

/// Tells of a refused packet now and then, so that a flood of them is not a flood of lines.
#[inline(always)]
pub(crate) fn refused(ctx: &XdpContext, counter: Counter) {
    if !aya_log_ebpf::macro_support::level_enabled(aya_log_ebpf::macro_support::Level::Debug) {
        return;
    }
    // SAFETY: the helper takes nothing and always succeeds.
    let draw = unsafe { aya_ebpf::helpers::generated::bpf_get_prandom_u32() };
    if draw % ONE_IN == 0 {
        aya_log_ebpf::debug!(
            ctx,
            "refused a packet of {} bytes on interface {}: counter {}",
            ctx.data_end() - ctx.data(),
            ctx.ingress_ifindex(),
            counter as u32
        );
    }
}
