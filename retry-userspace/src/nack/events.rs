//! NACKs from the kernel's event ring: those that the kernel program admitted, and whose answer is the daemon's to give.

use std::io;
use std::net::SocketAddrV6;
use std::os::fd::AsFd;
use std::time::Duration;

use retry_common::abi::{Event, EventKind};
use retry_common::counter::Counter;
use retry_common::wire::nack::Nack;

use super::pending::PendingNack;
use super::{PATIENCE, Server};
use crate::clock::monotonic_ns;
use crate::datapath::Events;
use crate::engine::Admitted;
use crate::net::batch::Readiness;
use crate::recovery::Job;
use crate::stop_flag::StopFlag;

/// Events served between two looks whether to end.
const ROUND: usize = 1_024;
/// Age from which an event is not answered any more, nanoseconds.
const EVENT_LIFE_NS: u64 = 1_000_000_000;

impl Server {
    /// Serves the kernel's events until `stop`.
    pub(crate) fn serve_events(&self, events: &mut Events, stop: &StopFlag) -> io::Result<()> {
        let mut frame = Vec::new();
        loop {
            let last = stop.is_asked();
            Readiness::new([events.as_fd()]).wait(if last { Duration::ZERO } else { PATIENCE })?;
            // At the end all that is there, for nothing more comes; else so many that a full ring is no hung thread.
            for _ in 0..if last { usize::MAX } else { ROUND } {
                let Some(event) = events.take() else { break };
                self.serve_event(&event, &mut frame);
            }
            if last {
                return Ok(());
            }
        }
    }

    fn serve_event(&self, event: &Event, frame: &mut Vec<u8>) {
        // One that an earlier daemon did not come to: its listener has asked again, or another endpoint.
        if monotonic_ns().saturating_sub(event.at_ns) > EVENT_LIFE_NS {
            self.counters.one(Counter::EventsStale);
            return;
        }
        let nack = Nack { flags: event.nack_flags, key: event.key, subtree_id: [0; 32] };
        let scope = if event.source[0] == 0xfe && event.source[1] & 0xc0 == 0x80 { event.ifindex } else { 0 };
        let to = SocketAddrV6::new(event.source.into(), u16::from_be_bytes(event.source_port), 0, scope);
        // A job and an announcement are no NACK that waits for an answer.
        let traced = match EventKind::from_u8(event.kind) {
            Some(EventKind::Send | EventKind::Store | EventKind::Known) => self.tracer.begin(),
            Some(EventKind::Recover | EventKind::Repaired) | None => None,
        };
        let (began_ns, ifindex) = (monotonic_ns(), event.ifindex);
        let asked =
            PendingNack { nack, to, admitted: Admitted::Kernel, traced, began_ns, ifindex, is_handed_over: true };
        match EventKind::from_u8(event.kind) {
            Some(EventKind::Send) => {
                let judged = self.engine.judge_send(&nack, *to.ip(), monotonic_ns());
                self.carry_out(&asked, judged, frame);
            }
            Some(EventKind::Known) => {
                let judged = self.engine.judge_known(&nack, *to.ip(), monotonic_ns());
                // What a store is asked for later is charged in the daemon's tables too.
                self.carry_out(&PendingNack { admitted: Admitted::Here, ..asked }, judged, frame);
            }
            Some(EventKind::Store) => self.ask(&asked, frame),
            Some(EventKind::Recover) => self.recover(Job { key: nack.key, asker: to }),
            Some(EventKind::Repaired) => self.pending.announce(&nack.key),
            None => tracing::trace!(kind = event.kind, "an event of no kind"),
        }
    }
}
