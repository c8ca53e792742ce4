//! NACKs from the socket of the NACK port: those that the kernel program passed on.

use std::io;

use retry_common::counter::Counter;
use retry_common::wire::nack::{NACK_LEN, Nack, NackError};

use super::Server;
use super::pending::PendingNack;
use crate::clock::monotonic_ns;
use crate::engine::Admitted;
use crate::net::batch::{Batch, Datagram};
use crate::net::nack_socket::NackSocket;
use crate::stop_flag::StopFlag;

/// Datagrams taken in one system call.
const BATCH: usize = 32;
/// A NACK is 64 bytes; one byte more shows a longer one.
const BUFFER_LEN: usize = NACK_LEN + 1;
/// Batches that a worker takes at most after a shutdown: what a full receive buffer holds.
const LAST_BATCHES: usize = 40_000 / BATCH;

impl Server {
    /// Serves the socket until `stop`.
    pub(crate) fn serve_socket(&self, socket: &NackSocket, stop: &StopFlag) -> io::Result<()> {
        let mut batch = Batch::new(BATCH, BUFFER_LEN);
        let mut frame = Vec::new();
        let mut last_batches = LAST_BATCHES;
        loop {
            // Asked before the look: what came in before a shutdown is still answered.
            let last = stop.is_asked();
            let received = if last { batch.recv_now(socket)? } else { batch.recv_next(socket)? };
            last_batches -= usize::from(last);
            if last && (received == 0 || last_batches == 0) {
                return Ok(());
            }
            for datagram in batch.datagrams() {
                if let Some(nack) = self.parse(&datagram) {
                    let traced = self.tracer.begin();
                    let (began_ns, ifindex) = (monotonic_ns(), datagram.source.scope_id());
                    if let Some(talkers) = &self.talkers {
                        talkers.asked(datagram.source.ip(), &nack.key, began_ns);
                    }
                    let judged = self.engine.judge_nack(&nack, *datagram.source.ip(), began_ns);
                    let to = datagram.source;
                    let asked = PendingNack {
                        nack,
                        to,
                        admitted: Admitted::Here,
                        traced,
                        began_ns,
                        ifindex,
                        is_handed_over: false,
                    };
                    self.carry_out(&asked, judged, &mut frame);
                }
            }
        }
    }

    fn parse(&self, datagram: &Datagram<'_>) -> Option<Nack> {
        let Datagram { bytes, source, hop_limit, .. } = *datagram;
        let is_peer = match self.acl.admit(*source.ip(), hop_limit) {
            Ok(is_peer) => is_peer,
            Err(reason) => {
                self.counters.one(reason);
                self.tell_refused(source, reason);
                return None;
            }
        };
        if bytes.len() == NACK_LEN {
            self.counters.one(Counter::NackRequests);
        }
        // The stack delivers `::` and sends what is for `::` to ::1: a stranger would reach sockets of this host.
        if source.ip().is_unspecified() || source.port() == 0 {
            self.counters.one(Counter::NackUnanswerable);
            self.tell_refused(source, Counter::NackUnanswerable);
            return None;
        }
        let reason = match Nack::parse(bytes) {
            Ok(nack) if nack.proxied() && !is_peer => {
                self.counters.one(Counter::NackNoPeer);
                return Some(nack.of_no_peer());
            }
            Ok(nack) => return Some(nack),
            Err(NackError::Size) => Counter::NackWrongSize,
            Err(NackError::Magic) => Counter::NackWrongMagic,
            Err(NackError::Type) => Counter::NackWrongType,
            Err(NackError::Range) => Counter::NackRange,
        };
        self.counters.one(reason);
        self.tell_refused(source, reason);
        None
    }
}
