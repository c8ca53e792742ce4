//! What HTTP shows and the timers touch.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use retry_common::counter::Counters;
use tokio::sync::Notify;

use crate::admin::{Snapshot, Source, StoreUse, Upstream};
use crate::clock::{monotonic_ns, nanoseconds};
use crate::counters::UserCounters;
use crate::datapath::Datapath;
use crate::framelog::Writer;
use crate::ingress::fill::LogUse;
use crate::ingress::listening;
use crate::proxy::{Recovery, UpstreamStatus};
use crate::store::Store;
use crate::telemetry::inventory::Host;

/// Looks at a log that is locked, before what was last seen of it is shown.
const LOOKS: usize = 64;

/// The daemon's state, shared by threads and tasks.
pub(super) struct State {
    pub(super) counters: Arc<UserCounters>,
    pub(super) writer: Arc<Mutex<Writer>>,
    /// How full the log was when it was last looked at.
    pub(super) log_use: Mutex<LogUse>,
    pub(super) datapath: Mutex<Option<Datapath>>,
    /// What the kernel side had counted at its end.
    pub(super) last_kernel: Mutex<Counters>,
    pub(super) mode: &'static str,
    pub(super) reason: String,
    pub(super) adverts_sent: AtomicU64,
    pub(super) workers_ready: Arc<AtomicUsize>,
    pub(super) workers_total: AtomicUsize,
    pub(super) draining: AtomicBool,
    /// Told when the order to drain comes.
    pub(super) drain_ordered: Notify,
    pub(super) recovery: Option<Recovery>,
    pub(super) store: Option<Store>,
    /// What the data groups hold: sources and sockets come and go.
    pub(super) joined: Arc<listening::Status>,
    pub(super) tee_sockets: usize,
    pub(super) instance: String,
}

fn upstream(status: UpstreamStatus) -> Upstream {
    Upstream { name: status.name, up: status.healthy, rtt: status.rtt }
}

impl State {
    /// The kernel side, while there is one.
    pub(super) fn datapath(&self) -> MutexGuard<'_, Option<Datapath>> {
        self.datapath.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to drain; false when it drains already.
    pub(super) fn drain(&self) -> bool {
        let first = !self.draining.swap(true, Ordering::Relaxed);
        if first {
            self.drain_ordered.notify_one();
        }
        first
    }

    /// True from the order to drain, or the signal, to the end.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Ends the kernel side; what it counted is kept, for the last export.
    pub(super) fn end_datapath(&self) {
        let mut datapath = self.datapath();
        if let Some(Ok(counters)) = datapath.as_ref().map(Datapath::counters) {
            *self.last_kernel.lock().unwrap_or_else(PoisonError::into_inner) = counters;
        }
        drop(datapath.take());
    }

    /// How full the log is; as it was last seen, while the log is locked.
    fn log_use(&self) -> LogUse {
        for _ in 0..LOOKS {
            let writer = match self.writer.try_lock() {
                Ok(writer) => writer,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    // Frames are stored in turns of microseconds.
                    std::thread::yield_now();
                    continue;
                }
            };
            let seen = LogUse::of(&writer, monotonic_ns());
            drop(writer);
            self.saw_log(seen);
            return seen;
        }
        *self.log_use.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps how full the log was seen to be.
    pub(super) fn saw_log(&self, seen: LogUse) {
        *self.log_use.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    /// Lets the kernel answer for `lease` from now.
    pub(super) fn renew_lease(&self, lease: Duration) {
        if let Some(datapath) = self.datapath().as_ref() {
            datapath.renew_lease(monotonic_ns().saturating_add(nanoseconds(lease)));
        }
    }
}

impl Source for State {
    fn snapshot(&self) -> Snapshot {
        let kernel = match self.datapath().as_ref().map(Datapath::counters) {
            Some(Ok(counters)) => counters,
            Some(Err(error)) => {
                tracing::warn!(%error, "the kernel's counters cannot be read");
                Counters::default()
            }
            None => *self.last_kernel.lock().unwrap_or_else(PoisonError::into_inner),
        };
        let LogUse { frames, lanes } = self.log_use();
        Snapshot {
            kernel,
            user: self.counters.snapshot(),
            frames,
            lanes,
            adverts_sent: self.adverts_sent.load(Ordering::Relaxed),
            xdp_mode: self.mode,
            xdp_reason: self.reason.clone(),
            workers_ready: self.workers_ready.load(Ordering::Relaxed),
            workers_total: self.workers_total.load(Ordering::Relaxed),
            store: self.store.as_ref().map(|store| {
                let status = store.status();
                StoreUse { up: status.connected && !status.breaker_open, queued: status.queued }
            }),
            upstreams: self
                .recovery
                .as_ref()
                .map(Recovery::upstreams)
                .unwrap_or_default()
                .into_iter()
                .map(upstream)
                .collect(),
            ssm_sources: self.joined.sources(),
            ingress_sockets: self.joined.sockets() + self.tee_sockets,
            host: Host::here(&self.instance),
            draining: self.draining.load(Ordering::Relaxed),
        }
    }
}
