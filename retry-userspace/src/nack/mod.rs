//! Serves NACKs that the kernel did not: the socket of the NACK port, and the kernel's events. Both hand a NACK to the
//! engine and carry out its verdict. What needs an answer from elsewhere first waits in [`pending`], and holds no worker up.

pub mod pending;

use std::io;
use std::net::SocketAddrV6;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use retry_common::abi::{Event, EventKind};
use retry_common::counter::Counter;
use retry_common::decide::Verdict;
use retry_common::wire::answer::Answer;
use retry_common::wire::nack::{NACK_LEN, Nack, NackError};

use crate::clock::monotonic_ns;
use crate::counters::UserCounters;
use crate::datapath::Events;
use crate::engine::{Admitted, Engine};
use crate::framelog::Record;
use crate::net::batch::{Batch, Readiness};
use crate::net::nack_socket::NackSocket;
use crate::net::neighbours::Gate;
use crate::recovery::Job;
use crate::repair::{Held, Sender};
use crate::telemetry::trace::NackTracer;
use pending::{Pending, PendingNack};

/// Datagrams taken in one system call.
const BATCH: usize = 32;
/// A NACK is 64 bytes; one byte more shows a longer one.
const BUFFER_LEN: usize = NACK_LEN + 1;
/// Batches that a worker takes at most after a shutdown: what a full receive buffer holds.
const LAST_BATCHES: usize = 40_000 / BATCH;
/// How long a shutdown may go unseen.
const PATIENCE: Duration = Duration::from_millis(100);

/// What every worker of the NACK port shares.
pub struct Server {
    /// Decides.
    pub engine: Engine,
    /// Sends.
    pub sender: Sender,
    /// Asks the backends that may have a frame.
    pub pending: Pending,
    /// Traces some of the NACKs.
    pub tracer: NackTracer,
    /// Counts.
    pub counters: Arc<UserCounters>,
}

impl Server {
    /// Serves the socket until `shutdown`.
    pub fn serve_socket(&self, socket: &NackSocket, shutdown: &AtomicBool) -> io::Result<()> {
        let mut batch = Batch::new(BATCH, BUFFER_LEN);
        let mut frame = Vec::new();
        let mut last_batches = LAST_BATCHES;
        loop {
            // Asked before the look: what came in before a shutdown is still answered.
            let last = shutdown.load(Ordering::Relaxed);
            let received = if last { batch.recv_now(socket)? } else { batch.recv_next(socket)? };
            last_batches -= usize::from(last);
            if last && (received == 0 || last_batches == 0) {
                return Ok(());
            }
            for datagram in batch.datagrams() {
                if let Some(nack) = self.parse(datagram.bytes) {
                    let traced = self.tracer.begin();
                    let verdict = self.engine.handle_nack(&nack, *datagram.source.ip(), monotonic_ns());
                    let asked = PendingNack { nack, to: datagram.source, admitted: Admitted::Here, traced };
                    self.carry_out(&asked, verdict, &mut frame);
                }
            }
        }
    }

    /// Goes on where an answer had to wait for a neighbour, until `shutdown`.
    ///
    /// # Errors
    /// What a poll returns.
    pub fn serve_held(&self, gate: &Gate<Held>, shutdown: &AtomicBool) -> io::Result<()> {
        let mut frame = Vec::new();
        gate.run(shutdown, |release| {
            if let Some(job) = self.sender.release(release, &mut frame) {
                self.pending.recover(job);
            }
        })
    }

    /// Serves the kernel's events until `shutdown`.
    pub fn serve_events(&self, events: &mut Events, shutdown: &AtomicBool) -> io::Result<()> {
        let mut frame = Vec::new();
        loop {
            let last = shutdown.load(Ordering::Relaxed);
            Readiness::new([events.as_fd()]).wait(if last { Duration::ZERO } else { PATIENCE })?;
            while let Some(event) = events.take() {
                self.serve_event(&event, &mut frame);
            }
            if last {
                return Ok(());
            }
        }
    }

    fn serve_event(&self, event: &Event, frame: &mut Vec<u8>) {
        let nack = Nack { flags: event.nack_flags, key: event.key, subtree_id: [0; 32] };
        let scope = if event.source[0] == 0xfe && event.source[1] & 0xc0 == 0x80 { event.ifindex } else { 0 };
        let to = SocketAddrV6::new(event.source.into(), u16::from_be_bytes(event.source_port), 0, scope);
        // A job and an announcement are no NACK that waits for an answer.
        let traced = match EventKind::from_u8(event.kind) {
            Some(EventKind::Send | EventKind::Store) => self.tracer.begin(),
            Some(EventKind::Recover | EventKind::Repaired) | None => None,
        };
        let asked = PendingNack { nack, to, admitted: Admitted::Kernel, traced };
        match EventKind::from_u8(event.kind) {
            Some(EventKind::Send) => {
                let verdict = self.engine.handle_send(&nack, *to.ip(), monotonic_ns());
                self.carry_out(&asked, verdict, frame);
            }
            Some(EventKind::Store) => self.ask(&asked, frame),
            Some(EventKind::Recover) => self.recover(Job { key: nack.key, asker: to }),
            Some(EventKind::Repaired) => self.pending.announce(&nack.key),
            None => tracing::trace!(kind = event.kind, "an event of no kind"),
        }
    }

    fn parse(&self, bytes: &[u8]) -> Option<Nack> {
        if bytes.len() == NACK_LEN {
            self.counters.one(Counter::NackRequests);
        }
        let reason = match Nack::parse(bytes) {
            Ok(nack) => return Some(nack),
            Err(NackError::Size) => Counter::NackWrongSize,
            Err(NackError::Magic) => Counter::NackWrongMagic,
            Err(NackError::Type) => Counter::NackWrongType,
            Err(NackError::Range) => Counter::NackRange,
        };
        self.counters.one(reason);
        None
    }

    fn carry_out(&self, asked: &PendingNack, verdict: Verdict<Record>, frame: &mut Vec<u8>) {
        let PendingNack { nack, to, traced, .. } = *asked;
        let name = name_of(&verdict);
        self.answer(asked, verdict, frame);
        // One that waits for the store is told of when it has its answer.
        if let (Some(traced), Some(name)) = (traced, name) {
            self.tracer.end(traced, &nack, to, name);
        }
    }

    /// Asks upstream, for a listener that exists as far as the neighbour table knows.
    fn recover(&self, job: Job) {
        if !self.sender.hold(job.asker, Held::Recovery(job)) {
            self.pending.recover(job);
        }
    }

    fn answer(&self, asked: &PendingNack, verdict: Verdict<Record>, frame: &mut Vec<u8>) {
        let PendingNack { nack, to, .. } = *asked;
        match verdict {
            Verdict::Silence => {}
            Verdict::Throttled(bucket) => {
                self.sender.answer(&Answer::Throttled { bucket, seq_num: nack.key.seq_num() }, to);
            }
            Verdict::Miss => self.sender.answer(&Answer::Miss, to),
            Verdict::Recover { say } => {
                if say {
                    self.sender.answer(&Answer::Miss, to);
                }
                self.recover(Job { key: nack.key, asker: to });
            }
            Verdict::AskStore => self.ask(asked, frame),
            Verdict::Repair(record, plan) if plan.multicast && self.pending.is_strict() => {
                self.claim(record, plan, to, frame);
            }
            Verdict::Repair(record, plan) => self.sender.repair(&record, plan, to, frame),
            Verdict::HandOver(_) => tracing::trace!("a socket hands nothing over"),
        }
    }
}

/// What a trace says of a verdict; nothing while the answer is still to come.
const fn name_of(verdict: &Verdict<Record>) -> Option<&'static str> {
    match verdict {
        Verdict::Silence => Some("silence"),
        Verdict::Throttled(_) => Some("throttled"),
        Verdict::Miss => Some("miss"),
        Verdict::Recover { .. } => Some("recover"),
        Verdict::Repair(..) => Some("repair"),
        Verdict::AskStore | Verdict::HandOver(_) => None,
    }
}
