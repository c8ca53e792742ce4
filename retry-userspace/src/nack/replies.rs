//! Goes on with a NACK whose wait has ended: a backend replied, or the listener's neighbour was resolved.

use std::io;
use std::net::SocketAddrV6;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use retry_common::counter::Counter;
use retry_common::decide::Repair;
use retry_common::key::FrameKey;

use super::pending::{Claimed, Reply};
use super::{PATIENCE, Server};
use crate::clock::{monotonic_ns, nanoseconds};
use crate::ingress::fill::StoredFrom;
use crate::net::neighbours::Gate;
use crate::recovery::Recovered;
use crate::repair::{Asker, Held};
use crate::stop_flag::StopFlag;
use crate::store::{Claim, Stored, Unavailable};

impl Server {
    /// Goes on where an answer had to wait for a neighbour, until `stop`.
    ///
    /// # Errors
    /// What a poll returns.
    pub(crate) fn serve_held(&self, gate: &Gate<Held>, stop: &StopFlag) -> io::Result<()> {
        let mut frame = Vec::new();
        gate.run(stop, |release| {
            if let Some(job) = self.sender.release(release, &mut frame) {
                self.pending.recover(job);
            }
        })
    }

    /// Goes on where a NACK had to wait, until `stop`.
    pub(crate) fn serve_replies(&self, replies: &Receiver<Reply>, stop: &StopFlag) {
        let mut frame = Vec::new();
        loop {
            let last = stop.is_asked();
            match replies.recv_timeout(PATIENCE) {
                Ok(Reply::Fetched(key, answer)) => self.fetched(&key, answer, &mut frame),
                Ok(Reply::Claimed(claimed, answer)) => self.claimed(claimed, answer, &mut frame),
                Ok(Reply::Recovered(recovered)) => self.recovered(&recovered, &mut frame),
                // What came before the shutdown has been gone on with; what still waits was given up.
                Err(RecvTimeoutError::Timeout) if last => return,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn fetched(&self, key: &FrameKey, answer: Result<Option<Stored>, Unavailable>, frame: &mut Vec<u8>) {
        let waiters = self.pending.waiters(key);
        match answer {
            Ok(Some(stored)) => {
                self.tell_fetched(key, Counter::StoredStore);
                let life_ms = u32::try_from(stored.life.as_millis()).unwrap_or(u32::MAX);
                if let Err(refused) = self.pending.fill.put_for(key, &stored.bytes, Some(life_ms), StoredFrom::Store) {
                    tracing::debug!(%refused, "what the shared store holds is not the frame");
                }
            }
            Ok(None) => {}
            Err(_) => self.counters.add(Counter::StoreLate, u64::try_from(waiters.len()).unwrap_or(0)),
        }
        for asked in &waiters {
            self.go_on(asked, frame);
        }
    }

    fn claimed(&self, claimed: Claimed, answer: Result<Claim, Unavailable>, frame: &mut Vec<u8>) {
        let Claimed { record, mut plan, to } = claimed;
        match answer {
            Ok(Claim::Ours) => {}
            Ok(Claim::Others { age }) => {
                self.counters.one(Counter::RetransmitDedup);
                self.another_repaired(&record.header().key, age);
                plan.multicast = false;
                plan.held = true;
            }
            Err(_) => self.counters.one(Counter::DedupFailedOpen),
        }
        self.repair(&record, plan, to, frame);
    }

    fn another_repaired(&self, key: &FrameKey, age: Duration) {
        self.sender.log().repaired_by_another(key, monotonic_ns().saturating_sub(nanoseconds(age)));
    }

    fn recovered(&self, recovered: &Recovered, frame: &mut Vec<u8>) {
        let Recovered { key, askers, frame: bytes } = recovered;
        let began_ns = self.tell_fetched(key, Counter::StoredUpstream);
        let asker = |to: &SocketAddrV6| Asker { to: *to, began_ns };
        if let Err(refused) = self.pending.fill.put_for(key, bytes, None, StoredFrom::Upstream) {
            tracing::debug!(%refused, "what an upstream endpoint sent is not the frame");
            return;
        }
        let Some((record, plan)) = self.engine.handle_recovered(key, monotonic_ns()) else {
            return;
        };
        let Some((first, others)) = askers.split_first() else {
            return;
        };
        let affords = |to: &SocketAddrV6| self.engine.affords_copy(&record, *to.ip(), monotonic_ns());
        let is_copied = plan.unicast;
        let plan = Repair { unicast: plan.unicast && affords(first), ..plan };
        if plan.multicast && self.pending.is_strict() {
            self.claim(record, plan, asker(first), frame);
        } else if plan.multicast || plan.unicast {
            self.repair(&record, plan, asker(first), frame);
        }
        if is_copied {
            let copy = Repair { unicast: true, ..Repair::default() };
            for to in others.iter().filter(|to| affords(to)) {
                self.repair(&record, copy, asker(to), frame);
            }
        }
    }
}
