//! Carries out a verdict: answers, repairs, or hands the NACK to [`Pending`] until a backend has said more.

use std::net::SocketAddrV6;
use std::sync::Arc;

use retry_common::abi::{Watched, ticket_role};
use retry_common::counter::Counter;
use retry_common::decide::{Repair, Verdict};
use retry_common::key::FrameKey;
use retry_common::latency::Measured;
use retry_common::wire::answer::Answer;

use super::pending::{Claimed, Pending, PendingNack};
use crate::acl::Acl;
use crate::clock::monotonic_ns;
use crate::counters::UserCounters;
use crate::engine::{Admitted, Engine, Judged};
use crate::feed::Feed;
use crate::framelog::Record;
use crate::recovery::Job;
use crate::repair::{Asker, Held, Sender};
use crate::talkers::Talkers;
use crate::telemetry::trace::NackTracer;

/// What every worker of the NACK port shares.
pub(crate) struct Server {
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
    /// Tells those that watch.
    pub feed: Arc<Feed>,
    /// Whose NACKs are looked at.
    pub acl: Arc<Acl>,
    /// Counts who asks most, unless `-top-talkers 0`.
    pub talkers: Option<Arc<Talkers>>,
}

impl Server {
    /// Nothing waits for a backend. What came of the last wait may still be on its way to [`Server::serve_replies`].
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_idle()
    }

    /// Does what the verdict says, and ends the NACK's trace once it has its answer.
    pub(super) fn carry_out(&self, asked: &PendingNack, (verdict, reason): Judged, frame: &mut Vec<u8>) {
        let PendingNack { nack, to, traced, .. } = *asked;
        let name = name_of(&verdict);
        let watched = self.feed.is_watched().then(|| record_of(asked, &verdict, reason));
        self.count(asked, &verdict, reason);
        self.answer(asked, verdict, frame);
        if let Some(watched) = watched {
            self.tell(asked, watched);
        }
        // One that waits for the store is told of when it has its answer.
        if let (Some(traced), Some(name)) = (traced, name) {
            self.tracer.end(traced, &nack, to, name);
        }
    }

    /// Tells those that watch of a NACK that has come this far.
    fn tell(&self, asked: &PendingNack, record: Watched) {
        if self.feed.wants_packets() && !asked.is_handed_over {
            let came = Watched { kind: Watched::ASKED, at_ns: asked.began_ns, cpu: Watched::DAEMON, ..Watched::NONE };
            self.feed.tell_packet(&came, asked.to, self.sender.local_addr(), &asked.nack.to_bytes());
        }
        let took_ns = u32::try_from(monotonic_ns().saturating_sub(asked.began_ns)).unwrap_or(u32::MAX);
        self.feed.tell(&Watched { took_ns, ..record });
    }

    /// Tells those that watch, and counts for the top talkers, a datagram that is no NACK.
    pub(super) fn tell_refused(&self, source: SocketAddrV6, reason: Counter) {
        if let Some(talkers) = &self.talkers {
            talkers.refused(source.ip(), reason);
        }
        if self.feed.is_watched() {
            self.feed.tell(&Watched {
                kind: Watched::REFUSED,
                at_ns: monotonic_ns(),
                cpu: Watched::DAEMON,
                reason: reason as u16 + 1,
                source: source.ip().octets(),
                source_port: source.port().to_be_bytes(),
                ..Watched::NONE
            });
        }
    }

    /// Tells those that watch of a frame that a backend had. Returns the time by which they know it.
    pub(super) fn tell_fetched(&self, key: &FrameKey, from: Counter) -> u64 {
        let at_ns = monotonic_ns();
        if self.feed.is_watched() {
            self.feed.tell(&Watched {
                kind: Watched::FETCHED,
                at_ns,
                cpu: Watched::DAEMON,
                reason: from as u16 + 1,
                key: *key,
                ..Watched::NONE
            });
        }
        at_ns
    }

    fn answer(&self, asked: &PendingNack, verdict: Verdict<Record>, frame: &mut Vec<u8>) {
        let PendingNack { nack, to, .. } = *asked;
        let asker = asked.asker();
        match verdict {
            Verdict::Silence => {}
            Verdict::Throttled(bucket) => {
                self.sender.answer(&Answer::Throttled { bucket, seq_num: nack.key.seq_num() }, asker);
            }
            Verdict::Miss => self.sender.answer(&Answer::Miss, asker),
            Verdict::Recover { say } => {
                if say {
                    self.sender.answer(&Answer::Miss, asker);
                }
                self.recover(Job { key: nack.key, asker: to });
            }
            Verdict::AskStore => self.ask(asked, frame),
            Verdict::Repair(record, plan) if plan.multicast && self.pending.is_strict() => {
                self.claim(record, plan, asker, frame);
            }
            Verdict::Repair(record, plan) => self.repair(&record, plan, asker, frame),
            Verdict::HandOver(_) | Verdict::Relieve => tracing::trace!("a socket hands nothing over"),
        }
    }

    /// Asks upstream, for a listener that exists as far as the neighbour table knows.
    pub(super) fn recover(&self, job: Job) {
        if !self.sender.hold(job.asker, Held::Recovery(job)) {
            self.pending.recover(job);
        }
    }

    /// Asks the store, or goes on without.
    pub(super) fn ask(&self, asked: &PendingNack, frame: &mut Vec<u8>) {
        // It may have come since the look-up that missed: with an answer of the store, or by multicast.
        if self.sender.log().look_up(&asked.nack.key, monotonic_ns()).is_some() {
            self.go_on(asked, frame);
            return;
        }
        if self.feed.is_watched() && asked.admitted == Admitted::Kernel {
            self.tell(asked, record_of(asked, &Verdict::AskStore, None));
        }
        if !self.pending.ask(asked) {
            self.counters.one(Counter::StoreLate);
            self.go_on(asked, frame);
        }
    }

    /// What a NACK gets now that the store has answered, or is not waited for.
    pub(super) fn go_on(&self, asked: &PendingNack, frame: &mut Vec<u8>) {
        let judged = self.engine.judge_asked(&asked.nack, *asked.to.ip(), asked.admitted, monotonic_ns());
        self.carry_out(asked, judged, frame);
    }

    /// Claims a multicast repair before it is sent. Without an answer it is sent: two repairs are better than none.
    pub(super) fn claim(&self, record: Record, plan: Repair, to: Asker, frame: &mut Vec<u8>) {
        if let Err(Claimed { record, plan, to }) = self.pending.claim(Claimed { record, plan, to }) {
            self.counters.one(Counter::DedupFailedOpen);
            self.repair(&record, plan, to, frame);
        }
    }

    /// Sends the frame of `record` as `plan` says.
    pub(super) fn repair(&self, record: &Record, plan: Repair, to: Asker, frame: &mut Vec<u8>) {
        if let Some(talkers) = &self.talkers {
            let header = record.header();
            let copies = u64::from(plan.multicast) + u64::from(plan.unicast);
            let has_ack = plan.ack_flags(plan.multicast, plan.unicast).is_some();
            talkers.repaired(to.to.ip(), &header.key, header.length, copies, has_ack);
        }
        self.sender.repair(record, plan, to, frame);
    }

    /// Counts a NACK that gets no frame, for the top talkers.
    fn count(&self, asked: &PendingNack, verdict: &Verdict<Record>, reason: Option<Counter>) {
        let is_said = match verdict {
            Verdict::Throttled(_) | Verdict::Miss | Verdict::Recover { say: true } => true,
            Verdict::Silence | Verdict::Recover { say: false } => false,
            Verdict::Repair(..) | Verdict::AskStore | Verdict::HandOver(_) | Verdict::Relieve => return,
        };
        if let Some(talkers) = &self.talkers {
            talkers.decided(asked.to.ip(), &asked.nack.key, reason, is_said);
        }
    }
}

/// What those that watch are told of a verdict.
fn record_of(asked: &PendingNack, verdict: &Verdict<Record>, reason: Option<Counter>) -> Watched {
    let bit = |condition: bool, bit: u8| if condition { bit } else { 0 };
    let (kind, measured, sent) = match verdict {
        Verdict::Silence => (Watched::DECIDED, Measured::Silence, 0),
        Verdict::Throttled(_) => (Watched::DECIDED, Measured::Throttled, 0),
        Verdict::Miss | Verdict::Recover { say: true } => (Watched::DECIDED, Measured::Miss, 0),
        Verdict::Recover { say: false } => (Watched::DECIDED, Measured::Silence, 0),
        Verdict::AskStore | Verdict::HandOver(_) | Verdict::Relieve => (Watched::WAITS, Measured::Silence, 0),
        Verdict::Repair(_, plan) => {
            let sent = bit(plan.unicast, ticket_role::UNICAST)
                | bit(plan.multicast, ticket_role::MULTICAST_HERE)
                | bit(plan.ack_flags(plan.multicast, plan.unicast).is_some(), ticket_role::ACK);
            (Watched::DECIDED, Measured::Clones, sent)
        }
    };
    Watched {
        kind,
        at_ns: asked.began_ns,
        ifindex: asked.ifindex,
        cpu: Watched::DAEMON,
        reason: reason.map_or(0, |reason| reason as u16 + 1),
        verdict: measured as u8,
        sent,
        nack_flags: asked.nack.flags,
        source_port: asked.to.port().to_be_bytes(),
        source: asked.to.ip().octets(),
        key: asked.nack.key,
        ..Watched::NONE
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
        Verdict::AskStore | Verdict::HandOver(_) | Verdict::Relieve => None,
    }
}
