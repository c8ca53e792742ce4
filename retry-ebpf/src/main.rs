//! The XDP programs of retry-endpoint, in the order in which a packet meets them:
//! [`mod@classify`] → [`retry_common::decide`] over [`endpoint`] ([`admit`], [`log`]) → [`reply`] → [`role`].
//!
//! This file alone chooses XDP actions. `retry_nack` is attached to interfaces. `retry_role` is attached
//! to devmap entries and rewrites each clone into what it is to be: the ACK, the unicast copy or the multicast repair.
//! `retry_fill` ([`ingress`]) stores the fabric's frames in the log.
//!
//! The crate builds on the host too (as an empty program), so that clippy and editors see it.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// The atomics of BPF are not in `core::sync` on this target.
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(target_arch = "bpf", expect(internal_features, reason = "see above"))]
#![cfg_attr(not(target_arch = "bpf"), allow(dead_code, reason = "the entries exist on the BPF target only"))]

mod acl;
mod admit;
mod atomic;
mod bytes;
mod classify;
mod count;
mod endpoint;
mod ingress;
mod latency;
mod log;
mod packet;
mod reply;
mod rewrite;
mod role;
mod sample;
mod sent;
mod stored;
mod talkers;
mod watch;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::{raw_tracepoint, xdp};
use aya_ebpf::programs::{RawTracePointContext, XdpContext};
use retry_common::abi::Watched;

use crate::classify::{NotOurs, classify};
use crate::reply::Outcome;

/// Attached to every interface of the endpoint: answers NACKs, passes everything else.
#[cfg_attr(not(feature = "linear"), xdp(frags))]
#[cfg_attr(feature = "linear", xdp)]
fn retry_nack(ctx: XdpContext) -> u32 {
    let way = match classify(&ctx) {
        Ok(request) => {
            watch::asked(&ctx, request.settings, request.now_ns);
            talkers::asked(&request);
            let done = reply::answer(&ctx, &request);
            latency::took(done.measured, request.settings, request.now_ns);
            talkers::decided(request.settings, &done);
            reply::tell(&ctx, &request, &done);
            done.outcome
        }
        Err(NotOurs::Unknown) => {
            ingress::go_on(&ctx);
            Outcome::Pass
        }
        Err(NotOurs::PassedOn(counter)) => {
            count::one(counter);
            watch::refused(&ctx, Watched::PASSED, counter);
            Outcome::Pass
        }
        Err(NotOurs::Refused(counter)) => {
            count::one(counter);
            talkers::refused(&ctx, counter);
            sample::refused(&ctx, counter);
            watch::refused(&ctx, Watched::REFUSED, counter);
            Outcome::Drop
        }
    };
    match way {
        Outcome::Pass => xdp_action::XDP_PASS,
        Outcome::Drop => xdp_action::XDP_DROP,
        Outcome::Redirected => xdp_action::XDP_REDIRECT,
        Outcome::Failed(counter) => {
            count::one(counter);
            xdp_action::XDP_DROP
        }
    }
}

/// Where `retry_nack` goes on with multicast when the kernel fills the log: stores a frame, or leaves it to the daemon.
#[cfg_attr(not(feature = "linear"), xdp(frags))]
#[cfg_attr(feature = "linear", xdp)]
fn retry_fill(ctx: XdpContext) -> u32 {
    if ingress::store(&ctx).is_some() { xdp_action::XDP_DROP } else { xdp_action::XDP_PASS }
}

/// Attached to devmap entries: makes a clone what its turn says.
#[cfg_attr(not(feature = "linear"), xdp(frags, map = "devmap"))]
#[cfg_attr(feature = "linear", xdp(map = "devmap"))]
fn retry_role(ctx: XdpContext) -> u32 {
    match role::play(&ctx) {
        Ok(asked_ns) => {
            watch::left(&ctx, asked_ns);
            // SAFETY: the kernel fills the field for programs of devmap entries.
            sent::note(unsafe { (*ctx.ctx).egress_ifindex });
            xdp_action::XDP_PASS
        }
        Err(counter) => {
            count::one(counter);
            xdp_action::XDP_DROP
        }
    }
}

/// Attached to the tracepoint `xdp_devmap_xmit`: counts what devices took of what the role program let through.
#[raw_tracepoint(tracepoint = "xdp_devmap_xmit")]
fn retry_sent(ctx: RawTracePointContext) -> i32 {
    sent::told(&ctx);
    0
}

/// Run by the daemon over a frame of its own: sends it by the interface that it names.
#[cfg_attr(not(feature = "linear"), xdp(frags))]
#[cfg_attr(feature = "linear", xdp)]
fn retry_probe(ctx: XdpContext) -> u32 {
    if sent::probe(&ctx).is_some() { xdp_action::XDP_REDIRECT } else { xdp_action::XDP_DROP }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // No path leads here: the verifier refuses a program that could.
    loop {}
}

/// Of our two licences the one that the kernel knows: helpers used here are offered to GPL-compatible programs only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 7] = *b"GPL v2\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
