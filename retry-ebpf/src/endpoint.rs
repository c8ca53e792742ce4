//! The truth table's view of the kernel side: limits in maps, the frame log, and the room in the packet.

use aya_ebpf::programs::XdpContext;
use retry_common::abi::setting_flag;
use retry_common::counter::Counter;
use retry_common::decide::{Endpoint, Multicast};
use retry_common::holddown::Claim;
use retry_common::limits;
use retry_common::limits::bytes::{Afforded, Leaving};

use crate::classify::Request;
use crate::log::{self, Record};
use crate::rewrite::packet_len;
use crate::{admit, bytes, count, packet};

/// One NACK, as the truth table sees it from here.
pub(crate) struct Kernel<'a> {
    /// The packet.
    pub(crate) ctx: &'a XdpContext,
    /// The NACK.
    pub(crate) request: &'a Request,
    /// Hash of its key.
    pub(crate) hash: u64,
    /// Number of the counter that was last counted, plus one: why the verdict is what it is.
    pub(crate) reason: u16,
}

impl Kernel<'_> {
    #[inline(always)]
    const fn source(&self) -> admit::Source<'_> {
        let Request { headers, settings, now_ns, source_hash, .. } = self.request;
        admit::Source { address: &headers.source, hash: *source_hash, settings, now_ns: *now_ns }
    }
}

impl Endpoint for Kernel<'_> {
    type Frame = Record;

    #[inline(always)]
    fn take_address(&mut self) -> bool {
        admit::take_address(&self.source())
    }

    #[inline(always)]
    fn sequence_is_over(&mut self) -> bool {
        admit::sequence_is_over(self.hash, self.request.settings, self.request.now_ns)
    }

    #[inline(always)]
    fn take_sequence(&mut self) -> bool {
        let Request { nack, settings, now_ns, .. } = self.request;
        admit::take_sequence(nack.key, self.hash, settings, *now_ns)
    }

    #[inline(always)]
    fn is_known(&mut self) -> bool {
        let Request { headers, settings, now_ns, .. } = self.request;
        // The daemon goes on with it.
        log::daemon_until_ns(settings) > *now_ns && admit::is_known(&{ headers.source })
    }

    #[inline(always)]
    fn take_chain(&mut self) -> bool {
        admit::take_chain(&self.source(), self.request.nack.key.hash_key())
    }

    #[inline(always)]
    fn look_up(&mut self) -> Option<Record> {
        let Request { nack, settings, now_ns, .. } = self.request;
        log::look_up(&nack.key, self.hash, settings, *now_ns)
    }

    #[inline(always)]
    fn take_group(&mut self, group: u16) -> bool {
        admit::take_group(&self.source(), group)
    }

    /// A frame without an ACK leaves in the packet itself, whose room is proved by taking it. With an ACK there is a clone,
    /// which always has room.
    #[inline(always)]
    fn can_send(&mut self, record: &Record, multicast: bool, ack: bool) -> bool {
        let settings = self.request.settings;
        if !record.fits(log::max_frame(settings))
            || log::flags(settings) & setting_flag::DAEMON_FRAMES != 0
            || (multicast && log::flags(settings) & setting_flag::DAEMON_MULTICAST != 0)
        {
            return false;
        }
        if ack {
            return true;
        }
        let before = packet::length(self.ctx);
        if !packet::resize(self.ctx, packet_len(record.length)) {
            return false;
        }
        // A frame alone is written in place, so it keeps its room.
        !multicast || packet::resize(self.ctx, before)
    }

    #[inline(always)]
    fn claim_multicast(&mut self) -> Multicast {
        let Request { settings, now_ns, .. } = self.request;
        if log::hold_down(settings).is_off() {
            return Multicast::Claimed;
        }
        who(log::claim(self.hash, settings, *now_ns))
    }

    #[inline(always)]
    fn peek_multicast(&mut self) -> Multicast {
        let Request { settings, now_ns, .. } = self.request;
        if log::hold_down(settings).is_off() {
            return Multicast::Claimed;
        }
        who(log::peek(self.hash, settings, *now_ns))
    }

    /// What this program sends is one packet.
    #[inline(always)]
    fn packet_bytes(&self, record: &Record) -> u32 {
        limits::bytes::packet(record.length, u32::MAX)
    }

    #[inline(always)]
    fn egress_interfaces(&self) -> u32 {
        u32::from(self.request.settings.egress_interfaces)
    }

    #[inline(always)]
    fn afford(&mut self, leaving: &Leaving) -> Afforded {
        bytes::afford(leaving.to_source, leaving.all)
    }

    #[inline(always)]
    fn count(&mut self, counter: Counter) {
        count::one(counter);
        self.reason = counter as u16 + 1;
    }
}

#[inline(always)]
const fn who(claim: Claim) -> Multicast {
    match claim {
        Claim::Free(_) => Multicast::Claimed,
        Claim::Ours => Multicast::HeldByUs,
        Claim::Others => Multicast::HeldByAnother,
    }
}
