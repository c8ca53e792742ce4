//! Where a NACK waits for a backend: the shared store's frame, its claim of a repair, an upstream endpoint's frame. No worker
//! waits: a task of the runtime does, and hands the [`Reply`] to the one thread that goes on from there
//! ([`super::Server::serve_replies`]).

use std::collections::HashMap;
use std::net::SocketAddrV6;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender as Replies;
use std::sync::{Arc, Mutex, PoisonError};

use retry_common::counter::Counter;
use retry_common::decide::Repair;
use retry_common::key::FrameKey;
use retry_common::wire::nack::Nack;
use tokio::runtime::Handle;

use super::Config;
use crate::clock::monotonic_ns;
use crate::engine::Admitted;
use crate::framelog::Record;
use crate::ingress::fill::Fill;
use crate::latency::Wait;
use crate::recovery::{Job, Recovered, Recovery};
use crate::repair::Asker;
use crate::store::{Claim, Store, Stored, Unavailable};
use crate::telemetry::trace::Traced;

/// NACKs that wait for the store, and repairs that wait for a claim, at most. More are answered as if it were down.
const MOST_WAITING: usize = 4_096;

/// A NACK that waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingNack {
    /// The NACK.
    pub nack: Nack,
    /// Who sent it.
    pub to: SocketAddrV6,
    /// Who charged its limits.
    pub admitted: Admitted,
    /// Set when it is traced.
    pub traced: Option<Traced>,
    /// When it was taken up, nanoseconds of the monotonic clock.
    pub began_ns: u64,
    /// Interface that it came in by; 0: not known.
    pub ifindex: u32,
    /// The kernel program handed it over, and has told watchers of its packet.
    pub is_handed_over: bool,
}

impl PendingNack {
    /// The listener.
    pub(crate) const fn asker(&self) -> Asker {
        Asker { to: self.to, began_ns: self.began_ns }
    }
}

/// What came of a wait.
pub(crate) enum Reply {
    /// The store answered for a frame, or did not.
    Fetched(FrameKey, Result<Option<Stored>, Unavailable>),
    /// The store answered for a claim, or did not.
    Claimed(Claimed, Result<Claim, Unavailable>),
    /// An upstream endpoint sent a frame.
    Recovered(Recovered),
}

/// A repair that waits for its claim.
pub(crate) struct Claimed {
    pub(super) record: Record,
    pub(super) plan: Repair,
    pub(super) to: Asker,
}

/// What may have a frame that this endpoint has not, or a claim to it.
#[derive(Clone, Default)]
pub(crate) struct Backends {
    /// The shared store.
    pub store: Option<Store>,
    /// Recovery from upstream.
    pub recovery: Option<Recovery>,
}

/// The backends, and the NACKs and repairs that wait for them.
pub(crate) struct Pending {
    config: Config,
    backends: Backends,
    /// The runtime that waits.
    runtime: Handle,
    /// Takes the frames that come back.
    pub(super) fill: Arc<Fill>,
    replies: Replies<Reply>,
    waiting: Mutex<HashMap<FrameKey, Vec<PendingNack>>>,
    asking: AtomicUsize,
    claiming: Arc<AtomicUsize>,
}

impl Pending {
    /// Nothing waits yet. What comes of a wait goes to `replies`, for [`super::Server::serve_replies`].
    pub(crate) fn new(
        config: Config,
        runtime: Handle,
        fill: Arc<Fill>,
        replies: Replies<Reply>,
        backends: Backends,
    ) -> Self {
        Self {
            config,
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
    pub(crate) const fn is_strict(&self) -> bool {
        self.config.strict && self.backends.store.is_some()
    }

    /// Tells other instances of a multicast repair.
    pub(crate) fn announce(&self, key: &FrameKey) {
        if let Some(store) = self.backends.store.as_ref().filter(|_| self.config.announces) {
            store.announce(*key);
        }
    }

    /// Queues a recovery from upstream.
    pub(crate) fn recover(&self, job: Job) {
        if let Some(recovery) = &self.backends.recovery {
            recovery.submit(job);
        }
    }

    /// Asks the store for the frame of a NACK; false when it is not asked, because there is none or too many wait.
    ///
    /// Listeners that miss one frame ask for it at the same time: the store is asked once for all of them.
    pub(super) fn ask(&self, asked: &PendingNack) -> bool {
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
        let (store, replies, latency) = (store.clone(), self.replies.clone(), self.fill.latency());
        self.runtime.spawn(async move {
            let asked_ns = monotonic_ns();
            let answer = store.fetch(&key).await;
            latency.took(Wait::StoreAsked, monotonic_ns().saturating_sub(asked_ns), 1);
            // At the end no thread takes replies any more.
            let _ = replies.send(Reply::Fetched(key, answer));
        });
        true
    }

    /// No NACK and no repair is pending, and no recovery is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.asking.load(Ordering::Relaxed) == 0
            && self.claiming.load(Ordering::Relaxed) == 0
            && self.backends.recovery.as_ref().is_none_or(Recovery::is_idle)
    }

    /// Every pending NACK for `key`.
    pub(super) fn waiters(&self, key: &FrameKey) -> Vec<PendingNack> {
        let waiters = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(key).unwrap_or_default();
        self.asking.fetch_sub(waiters.len(), Ordering::Relaxed);
        waiters
    }

    /// Asks for the claim of a repair; gives it back when it is not asked for.
    pub(super) fn claim(&self, claimed: Claimed) -> Result<(), Claimed> {
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
