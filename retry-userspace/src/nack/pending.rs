//! What a NACK may have to wait for: the shared store's answer, its claim of a repair, an upstream endpoint's frame. No
//! worker waits: a task does, and hands what came of it to one thread that goes on from there.

use std::collections::HashMap;
use std::net::SocketAddrV6;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender as Replies};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use retry_common::counter::Counter;
use retry_common::decide::Repair;
use retry_common::key::FrameKey;
use retry_common::wire::nack::Nack;
use tokio::runtime::Handle;

use super::{PATIENCE, Server};
use crate::clock::{monotonic_ns, nanoseconds};
use crate::engine::Admitted;
use crate::framelog::Record;
use crate::ingress::fill::{Fill, StoredFrom};
use crate::recovery::{Job, Recovered, Recovery};
use crate::store::{Claim, Store, Stored, Unavailable};
use crate::telemetry::trace::Traced;

/// NACKs that wait for the store, and repairs that wait for a claim, at most. More are answered as if it were down.
const MOST_WAITING: usize = 4_096;

/// A NACK that waits.
#[derive(Clone, Copy, Debug)]
pub struct PendingNack {
    /// The NACK.
    pub nack: Nack,
    /// Who sent it.
    pub to: SocketAddrV6,
    /// Who charged its limits.
    pub admitted: Admitted,
    /// Set when it is traced.
    pub traced: Option<Traced>,
}

/// What came of a wait.
pub enum Reply {
    /// The store answered for a frame, or did not.
    Fetched(FrameKey, Result<Option<Stored>, Unavailable>),
    /// The store answered for a claim, or did not.
    Claimed(Claimed, Result<Claim, Unavailable>),
    /// An upstream endpoint sent a frame.
    Recovered(Recovered),
}

/// A repair that waits for its claim.
pub struct Claimed {
    record: Record,
    plan: Repair,
    to: SocketAddrV6,
}

/// What may have a frame that this endpoint has not, or a claim to it.
#[derive(Clone, Default)]
pub struct Backends {
    /// The shared store.
    pub store: Option<Store>,
    /// `-dedup-mode strict`: no multicast repair without a claim.
    pub strict: bool,
    /// Instances are told of our multicast repairs (`-dedup-mode eventual`).
    pub announces: bool,
    /// Recovery from upstream.
    pub recovery: Option<Recovery>,
}

/// Where a claim or a frame may come from, beyond this instance, and who waits for it.
pub struct Pending {
    backends: Backends,
    /// The runtime that waits.
    runtime: Handle,
    /// Takes the frames that come back.
    fill: Arc<Fill>,
    replies: Replies<Reply>,
    waiting: Mutex<HashMap<FrameKey, Vec<PendingNack>>>,
    asking: AtomicUsize,
    claiming: Arc<AtomicUsize>,
}

impl Pending {
    /// Nothing waits yet. What comes of a wait goes to `replies`, for [`Server::serve_replies`].
    pub fn new(runtime: Handle, fill: Arc<Fill>, replies: Replies<Reply>, backends: Backends) -> Self {
        Self {
            backends,
            runtime,
            fill,
            replies,
            waiting: Mutex::default(),
            asking: AtomicUsize::new(0),
            claiming: Arc::default(),
        }
    }

    /// True when a multicast repair needs a claim.
    pub const fn is_strict(&self) -> bool {
        self.backends.strict && self.backends.store.is_some()
    }

    /// Tells other instances of a multicast repair.
    pub fn announce(&self, key: &FrameKey) {
        if let Some(store) = self.backends.store.as_ref().filter(|_| self.backends.announces) {
            store.announce(*key);
        }
    }

    /// Queues a recovery from upstream.
    pub fn recover(&self, job: Job) {
        if let Some(recovery) = &self.backends.recovery {
            recovery.submit(job);
        }
    }

    /// Asks the store for the frame of a NACK; false when it is not asked, because there is none or too many wait.
    ///
    /// Listeners that miss one frame ask for it at the same time: the store is asked once for all of them.
    fn ask(&self, asked: &PendingNack) -> bool {
        let Some(store) = &self.backends.store else {
            return false;
        };
        if self.asking.fetch_add(1, Ordering::Relaxed) >= MOST_WAITING {
            self.asking.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        self.fill.counters.one(Counter::StoreAsked);
        let key = asked.nack.key;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let others = waiting.entry(key).or_default();
        others.push(*asked);
        if others.len() > 1 {
            return true;
        }
        drop(waiting);
        let (store, replies) = (store.clone(), self.replies.clone());
        self.runtime.spawn(async move {
            let answer = store.fetch(&key).await;
            // At the end no thread takes replies any more.
            let _ = replies.send(Reply::Fetched(key, answer));
        });
        true
    }

    /// No NACK and no repair is pending.
    fn is_idle(&self) -> bool {
        self.asking.load(Ordering::Relaxed) == 0 && self.claiming.load(Ordering::Relaxed) == 0
    }

    /// Every pending NACK for `key`.
    fn waiters(&self, key: &FrameKey) -> Vec<PendingNack> {
        let waiters = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(key).unwrap_or_default();
        self.asking.fetch_sub(waiters.len(), Ordering::Relaxed);
        waiters
    }

    /// Asks for the claim of a repair; gives it back when it is not asked for.
    fn claim(&self, claimed: Claimed) -> Result<(), Claimed> {
        let Some(store) = &self.backends.store else {
            return Err(claimed);
        };
        if self.claiming.fetch_add(1, Ordering::Relaxed) >= MOST_WAITING {
            self.claiming.fetch_sub(1, Ordering::Relaxed);
            return Err(claimed);
        }
        let (store, replies, claiming) = (store.clone(), self.replies.clone(), Arc::clone(&self.claiming));
        self.runtime.spawn(async move {
            let key = claimed.record.header().key;
            let answer = store.claim_repair(&key).await;
            let _ = replies.send(Reply::Claimed(claimed, answer));
            claiming.fetch_sub(1, Ordering::Relaxed);
        });
        Ok(())
    }
}

impl Server {
    /// Goes on where a NACK had to wait, until `shutdown`.
    pub fn serve_replies(&self, replies: &Receiver<Reply>, shutdown: &AtomicBool) {
        let mut frame = Vec::new();
        loop {
            let last = shutdown.load(Ordering::Relaxed);
            match replies.recv_timeout(PATIENCE) {
                Ok(Reply::Fetched(key, answer)) => self.fetched(&key, answer, &mut frame),
                Ok(Reply::Claimed(claimed, answer)) => self.claimed(claimed, answer, &mut frame),
                Ok(Reply::Recovered(recovered)) => self.recovered(&recovered, &mut frame),
                // A pending NACK still gets its answer, which no wait keeps longer than a listener's patience.
                Err(RecvTimeoutError::Timeout) if last && self.pending.is_idle() => return,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Asks the store, or goes on without.
    pub(super) fn ask(&self, asked: &PendingNack, frame: &mut Vec<u8>) {
        // It may have come since the look-up that missed: with an answer of the store, or by multicast.
        if self.sender.log().look_up(&asked.nack.key, monotonic_ns()).is_some() {
            self.go_on(asked, frame);
            return;
        }
        if !self.pending.ask(asked) {
            self.counters.one(Counter::StoreLate);
            self.go_on(asked, frame);
        }
    }

    /// What a NACK gets now that the store has answered, or is not waited for.
    fn go_on(&self, asked: &PendingNack, frame: &mut Vec<u8>) {
        let verdict = self.engine.handle_asked(&asked.nack, *asked.to.ip(), asked.admitted, monotonic_ns());
        self.carry_out(asked, verdict, frame);
    }

    fn fetched(&self, key: &FrameKey, answer: Result<Option<Stored>, Unavailable>, frame: &mut Vec<u8>) {
        let waiters = self.pending.waiters(key);
        match answer {
            Ok(Some(stored)) => {
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

    /// Claims a multicast repair before it is sent. Without an answer it is sent: two repairs are better than none.
    pub(super) fn claim(&self, record: Record, plan: Repair, to: SocketAddrV6, frame: &mut Vec<u8>) {
        if let Err(Claimed { record, plan, to }) = self.pending.claim(Claimed { record, plan, to }) {
            self.counters.one(Counter::DedupFailedOpen);
            self.sender.repair(&record, plan, to, frame);
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
        self.sender.repair(&record, plan, to, frame);
    }

    fn another_repaired(&self, key: &FrameKey, age: Duration) {
        self.sender.log().repaired_by_another(key, monotonic_ns().saturating_sub(nanoseconds(age)));
    }

    fn recovered(&self, recovered: &Recovered, frame: &mut Vec<u8>) {
        let Recovered { job, frame: bytes } = recovered;
        if let Err(refused) = self.pending.fill.put_for(&job.key, bytes, None, StoredFrom::Upstream) {
            tracing::debug!(%refused, "what an upstream endpoint sent is not the frame");
            return;
        }
        match self.engine.handle_recovered(&job.key, monotonic_ns()) {
            Some((record, plan)) if plan.multicast && self.pending.is_strict() => {
                self.claim(record, plan, job.asker, frame);
            }
            Some((record, plan)) => self.sender.repair(&record, plan, job.asker, frame),
            None => {}
        }
    }
}
