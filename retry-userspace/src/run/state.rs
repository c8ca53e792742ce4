//! What HTTP shows and the timers touch.

use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant, SystemTime};

use retry_common::counter::{Counter, Counters};
use retry_common::latency::Histogram;
use retry_common::wire::frame::Class;
use tokio::sync::Notify;

use super::StartError;
use super::handover::StartMode;
use crate::admin::status::InterfaceUse;
use crate::clock::{monotonic_ns, nanoseconds};
use crate::counters::{SourceCounts, StoredBySource, UserCounters};
use crate::datapath::{Datapath, Delivered};
use crate::fabric::Fabric;
use crate::framelog::{LaneUse, Lives, Writer};
use crate::ingress::class_ages::ClassAges;
use crate::ingress::fill::LogUse;
use crate::ingress::subscription;
use crate::interfaces::delivery::{Ledger, Part};
use crate::latency::{UserLatency, Wait};
use crate::limits::KnownListeners;
use crate::metrics::{ClassUse, Host, Latency, Process, Snapshot, Source, StoreUse, Upstream, XdpReason};
use crate::net::nack_socket::NackSocket;
use crate::recovery::{Recovery, UpstreamStatus};
use crate::settings::{Settings, Xdp};
use crate::store::Store;
use crate::talkers::Talkers;

/// Looks at a log that is locked, before what was last seen of it is shown.
const LOOKS: usize = 64;

/// The parts whose numbers are shown.
pub(super) struct Observed {
    pub(super) counters: Arc<UserCounters>,
    /// How long the daemon's own work took.
    pub(super) latency: Arc<UserLatency>,
    /// Who asks most, unless that is not counted.
    pub(super) talkers: Option<Arc<Talkers>>,
    /// Frames that the daemon stored, by their source.
    pub(super) sources: Arc<SourceCounts>,
    pub(super) ages: Arc<ClassAges>,
    pub(super) lives: Arc<Lives>,
    pub(super) nack_socket: Arc<NackSocket>,
    pub(super) writer: Arc<Mutex<Writer>>,
    pub(super) workers_ready: Arc<AtomicUsize>,
    pub(super) recovery: Option<Recovery>,
    pub(super) store: Option<Store>,
    /// What the data groups hold: sources and sockets come and go.
    pub(super) joined: Arc<subscription::Status>,
    pub(super) tee_sockets: usize,
    /// Who is served although others have used up a frame's window.
    pub(super) known: Arc<KnownListeners>,
    pub(super) instance: String,
    /// What the log held at the start.
    pub(super) start: StartMode,
}

/// The path that answers NACKs.
#[derive(Clone, Debug)]
pub(super) struct Mode {
    /// `native`, `skb` or `off`.
    pub(super) name: &'static str,
    /// Why it is that.
    pub(super) reason: XdpReason,
    /// The same in full.
    pub(super) why: String,
}

/// The daemon's state, shared by threads and tasks.
pub(super) struct State {
    observed: Observed,
    /// How full the log was when it was last looked at.
    log_use: Mutex<LogUse>,
    datapath: Mutex<Option<Datapath>>,
    /// What the kernel side had counted at its end.
    last_kernel: Mutex<Counters>,
    /// How long it had taken.
    last_latency: Mutex<Vec<Histogram>>,
    /// What it had stored, by source.
    last_stored: Mutex<StoredBySource>,
    /// What interfaces had been given at its end.
    last_delivered: Mutex<Vec<Delivered>>,
    /// What was lost on the way to them.
    ledger: Mutex<Ledger>,
    /// What the NACK socket had dropped when that was last counted.
    socket_dropped: Mutex<u32>,
    /// What does not keep the daemon from serving, but from serving well.
    warnings: Mutex<Vec<String>>,
    xdp: Mutex<Mode>,
    /// Addresses that repairs leave from.
    own_sources: Mutex<Vec<Ipv6Addr>>,
    /// The interfaces in use.
    interfaces: Mutex<Vec<InterfaceUse>>,
    /// What keeps the daemon from serving.
    problems: Mutex<Vec<String>>,
    /// A thread that makes no progress.
    hung: Mutex<Option<String>>,
    /// Told when an ADVERT is to leave at once.
    pub(super) announce: Notify,
    pub(super) workers_total: AtomicUsize,
    draining: AtomicBool,
    /// When settings were last read and could stand, seconds of Unix time.
    settings_read_s: AtomicU64,
    /// Told when the order to drain comes.
    pub(super) drain_ordered: Notify,
}

fn upstream(status: UpstreamStatus) -> Upstream {
    Upstream { name: status.name, up: status.healthy, rtt: status.rtt }
}

/// What each interface is used for.
fn uses(fabric: &Fabric) -> Vec<InterfaceUse> {
    let with_role = |(name, index): (String, u32)| {
        let is_egress = fabric.egress.iter().any(|egress| egress.interface.index == index);
        let roles =
            [(fabric.ingress.index == index, "frames"), (fabric.nack.index == index, "NACKs"), (is_egress, "repairs")];
        InterfaceUse { name, roles: roles.into_iter().filter_map(|(is, role)| is.then_some(role)).collect() }
    };
    fabric.attach_to().into_iter().map(with_role).collect()
}

impl State {
    /// Of a daemon that is being built: the kernel side, if there is one, and what [`State::mode`] says.
    pub(super) fn new(observed: Observed, datapath: Option<Datapath>, mode: Mode) -> Self {
        let mut ledger = Ledger::default();
        for (interface, lost) in datapath.iter().flat_map(Datapath::lost) {
            ledger.begin(&interface, lost);
        }
        // What a socket dropped before it was this daemon's, the one before has counted.
        let socket_dropped = Mutex::new(observed.nack_socket.dropped().unwrap_or(0));
        Self {
            observed,
            log_use: Mutex::default(),
            datapath: Mutex::new(datapath),
            last_kernel: Mutex::default(),
            last_latency: Mutex::default(),
            last_stored: Mutex::default(),
            last_delivered: Mutex::default(),
            ledger: Mutex::new(ledger),
            socket_dropped,
            warnings: Mutex::default(),
            xdp: Mutex::new(mode),
            own_sources: Mutex::default(),
            interfaces: Mutex::default(),
            problems: Mutex::default(),
            hung: Mutex::default(),
            announce: Notify::new(),
            workers_total: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            settings_read_s: AtomicU64::new(0),
            drain_ordered: Notify::new(),
        }
    }

    /// The kernel side, while there is one.
    pub(super) fn datapath(&self) -> MutexGuard<'_, Option<Datapath>> {
        self.datapath.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The path that answers NACKs, and why it does.
    pub(super) fn mode(&self) -> Mode {
        self.xdp.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets what [`State::mode`] says; true when it said something else.
    pub(super) fn set_mode(&self, name: &'static str, reason: XdpReason, why: &str) -> bool {
        let mut xdp = self.xdp.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = xdp.name != name || xdp.why != why;
        if is_new {
            *xdp = Mode { name, reason, why: why.to_owned() };
        }
        is_new
    }

    /// Repairs leave by the interfaces of `fabric` from now on.
    pub(super) fn leave_from(&self, fabric: &Fabric) {
        *self.interfaces.lock().unwrap_or_else(PoisonError::into_inner) = uses(fabric);
        let mut sources: Vec<Ipv6Addr> = fabric.egress.iter().map(|egress| egress.source).collect();
        sources.sort_unstable();
        sources.dedup();
        *self.own_sources.lock().unwrap_or_else(PoisonError::into_inner) = sources;
    }

    /// The interfaces in use: those of the last fabric that was whole.
    pub(super) fn interfaces(&self) -> Vec<InterfaceUse> {
        self.interfaces.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Frames stored, by source.
    fn stored(&self) -> StoredBySource {
        let mut kernel = StoredBySource::default();
        match self.datapath().as_ref().map(|datapath| datapath.stored(&mut kernel)) {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::warn!(%error, "the kernel's sources cannot be read"),
            None => kernel.clone_from(&self.last_stored.lock().unwrap_or_else(PoisonError::into_inner)),
        }
        self.observed.sources.name(&self.observed.joined.joined());
        self.observed.sources.with_kernel(&kernel)
    }

    /// How long things took; `None` where that is not measured.
    fn latency(&self) -> Option<Latency> {
        let user = &self.observed.latency;
        let kernel = match self.datapath().as_ref().map(Datapath::latency) {
            Some(Ok(kernel)) => kernel,
            Some(Err(error)) => {
                tracing::warn!(%error, "the kernel's histograms cannot be read");
                Vec::new()
            }
            None => self.last_latency.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        };
        user.is_on().then(|| Latency { kernel, user: Wait::ALL.map(|what| (what, user.snapshot(what))) })
    }

    /// Life and oldest age of each class.
    fn classes(&self, lanes: &[LaneUse; 2]) -> [ClassUse; Class::ALL.len()] {
        let now_ns = monotonic_ns();
        Class::ALL.map(|class| {
            let lane_age = Duration::from_millis(lanes[class.lane()].oldest_age_ms);
            ClassUse {
                life: Duration::from_millis(self.observed.lives.of_ms(class).into()),
                oldest_age: self.observed.ages.oldest(class, lane_age, now_ns),
            }
        })
    }

    /// Counts `many` on the daemon's path.
    pub(super) fn count(&self, counter: Counter, many: usize) {
        self.observed.counters.add(counter, u64::try_from(many).unwrap_or(0));
    }

    /// Counters of the daemon's path.
    fn user(&self) -> Counters {
        let mut counted = self.socket_dropped.lock().unwrap_or_else(PoisonError::into_inner);
        match self.observed.nack_socket.dropped() {
            Ok(dropped) => {
                let more = dropped.wrapping_sub(*counted);
                self.observed.counters.add(Counter::NackSocketOverflow, more.into());
                *counted = dropped;
            }
            Err(error) => tracing::debug!(%error, "the NACK socket does not tell what it dropped"),
        }
        drop(counted);
        self.observed.counters.snapshot()
    }

    /// What became of packets that the kernel program redirected to interfaces.
    pub(super) fn delivered(&self) -> Vec<Delivered> {
        let now = self.datapath().as_ref().map(Datapath::delivered);
        match now {
            Some(now) => self.with_losses(now),
            None => self.last_delivered.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Adds what was lost before it came to a driver.
    fn with_losses(&self, mut delivered: Vec<Delivered>) -> Vec<Delivered> {
        let ledger = self.ledger();
        for (interface, sent) in &mut delivered {
            sent.drops += ledger.lost(interface);
        }
        delivered
    }

    /// What was lost on the way to interfaces.
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds out what was lost on the way to the interfaces of `fabric`.
    pub(super) fn reckon(&self, fabric: &Fabric) {
        // Counters first: what they count comes to the driver later.
        let read =
            self.datapath().as_ref().and_then(|datapath| Some((datapath.counters().ok()?, datapath.delivered())));
        let Some((counters, delivered)) = read else {
            return;
        };
        let (now, mut ledger, mut lost) = (Instant::now(), self.ledger(), Vec::new());
        for (interface, sent) in delivered {
            let part = Part {
                answers: fabric.nack.name == interface,
                repairs: fabric.egress.iter().any(|egress| egress.interface.name == interface),
            };
            ledger.enter(&interface, part, now, &counters, sent);
            lost.push((interface.clone(), ledger.lost(&interface)));
        }
        // The ledger's lock comes after the datapath's, never before it.
        drop(ledger);
        let mut datapath = self.datapath();
        let kept = datapath.as_mut().map_or(Ok(()), |datapath| {
            lost.iter().try_for_each(|(interface, lost)| datapath.keep_lost(interface, *lost))
        });
        if let Err(error) = kept {
            tracing::debug!(%error, "what was lost is not kept for the next daemon");
        }
    }

    /// Sets what keeps the daemon from serving well.
    pub(super) fn set_warnings(&self, warnings: Vec<String>) {
        let mut now = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        for warning in warnings.iter().filter(|warning| !now.contains(warning)) {
            tracing::warn!(reason = warning, "degraded");
        }
        *now = warnings;
    }

    /// Sets what keeps the daemon from serving; true when nothing does any more.
    pub(super) fn set_problems(&self, problems: Vec<String>) -> bool {
        let mut now = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        if *now == problems {
            return false;
        }
        for problem in problems.iter().filter(|problem| !now.contains(problem)) {
            tracing::warn!(reason = problem, "not ready");
        }
        *now = problems;
        if now.is_empty() {
            tracing::info!("ready again");
        }
        now.is_empty()
    }

    /// Sets which thread makes no progress; true when all do.
    pub(super) fn set_hung(&self, thread: Option<&str>) -> bool {
        let mut hung = self.hung.lock().unwrap_or_else(PoisonError::into_inner);
        if hung.as_deref() != thread {
            match thread {
                Some(thread) => tracing::error!(thread, "makes no progress: the leases are not renewed"),
                None => tracing::info!("all threads make progress again: the leases are renewed"),
            }
            *hung = thread.map(str::to_owned);
        }
        hung.is_none()
    }

    /// What keeps the daemon from serving.
    fn problems(&self) -> Vec<String> {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let hung = self.hung.lock().unwrap_or_else(PoisonError::into_inner);
        problems.extend(hung.as_ref().map(|thread| format!("the thread {thread} makes no progress")));
        problems
    }

    /// Settings have been read now, and can stand.
    pub(super) fn read_settings(&self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.settings_read_s.store(now.as_secs(), Ordering::Relaxed);
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

    /// Puts this daemon's kernel program in the place of that of the daemon before.
    pub(super) fn go_live(&self, settings: &Settings) -> Result<(), StartError> {
        let mode = settings.xdp.mode.name();
        match self.datapath().as_mut().map(Datapath::go_live) {
            Some(Err(source)) => Err(StartError::Datapath { mode, source }),
            Some(Ok(())) | None => Ok(()),
        }
    }

    /// Leaves the kernel side to the next daemon for `lease`, if hand-over is on. Until it is ended too, this daemon finishes
    /// what it has begun.
    pub(super) fn leave_datapath(&self, lease: Duration) -> bool {
        let until_ns = monotonic_ns().saturating_add(nanoseconds(lease));
        self.datapath().as_mut().is_some_and(|datapath| datapath.leave(until_ns))
    }

    /// Ends the kernel side, or what has been left of it but for its lock; what it counted is kept, for the last export.
    pub(super) fn end_datapath(&self) {
        let ended = take(&self.datapath, |datapath| {
            let delivered = self.with_losses(datapath.delivered());
            *self.last_delivered.lock().unwrap_or_else(PoisonError::into_inner) = delivered;
            let mut stored = StoredBySource::default();
            if datapath.stored(&mut stored).is_ok() {
                *self.last_stored.lock().unwrap_or_else(PoisonError::into_inner) = stored;
            }
            if let Ok(latency) = datapath.latency() {
                *self.last_latency.lock().unwrap_or_else(PoisonError::into_inner) = latency;
            }
            if let Ok(counters) = datapath.counters() {
                *self.last_kernel.lock().unwrap_or_else(PoisonError::into_inner) = counters;
            }
        });
        match ended {
            Some(left) if left.is_left() => left.stay_locked(),
            ended => drop(ended),
        }
    }

    /// How full the log is; as it was last seen, while the log is locked.
    fn log_use(&self) -> LogUse {
        for _ in 0..LOOKS {
            let writer = match self.observed.writer.try_lock() {
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

    /// Lets the kernel answer, and leave NACKs to this daemon, for their leases from now.
    pub(super) fn renew_leases(&self, xdp: &Xdp) {
        let now_ns = monotonic_ns();
        let until_ns = |lease: Duration| now_ns.saturating_add(nanoseconds(lease));
        if let Some(datapath) = self.datapath().as_ref() {
            datapath.renew_leases(until_ns(xdp.bpf_lease), until_ns(xdp.daemon_lease));
        }
    }
}

/// Takes what is locked, after a last look at it.
fn take<T>(locked: &Mutex<Option<T>>, last_look: impl FnOnce(&T)) -> Option<T> {
    let mut part = locked.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(part) = part.as_ref() {
        last_look(part);
    }
    // It is ended without this lock: the follower holds the attachments, which the end of the datapath waits for, while it asks
    // for this one.
    part.take()
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
        let Mode { name: xdp_mode, reason: xdp_reason, why: xdp_why } = self.mode();
        Snapshot {
            kernel,
            user: self.user(),
            stored: self.stored(),
            latency: self.latency(),
            talkers: self.observed.talkers.as_ref().map(|talkers| talkers.top()),
            frames,
            lanes,
            classes: self.classes(&lanes),
            xdp_mode,
            xdp_reason,
            xdp_why,
            own_sources: self.own_sources.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            warnings: self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            delivered: self.delivered(),
            problems: self.problems(),
            workers_ready: self.observed.workers_ready.load(Ordering::Relaxed),
            workers_total: self.workers_total.load(Ordering::Relaxed),
            store: self.observed.store.as_ref().map(|store| {
                let status = store.status();
                StoreUse { up: status.connected && !status.breaker_open, queued: status.queued }
            }),
            upstreams: self
                .observed
                .recovery
                .as_ref()
                .map(Recovery::upstreams)
                .unwrap_or_default()
                .into_iter()
                .map(upstream)
                .collect(),
            ssm_sources: self.observed.joined.sources(),
            known_listeners: self.observed.known.count(),
            ingress_sockets: self.observed.joined.sockets() + self.observed.tee_sockets,
            host: Host::here(&self.observed.instance),
            process: Process::here(),
            draining: self.draining.load(Ordering::Relaxed),
            start_mode: self.observed.start.name(),
            settings_read_s: self.settings_read_s.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    /// Stands for a datapath: its end waits for the attachments.
    struct Attached(Arc<Mutex<()>>);

    impl Drop for Attached {
        fn drop(&mut self) {
            drop(self.0.lock());
        }
    }

    /// The follower holds the attachments while it asks for the datapath, and the end comes in between.
    #[test]
    fn the_end_waits_for_no_thread_that_waits_for_its_lock() {
        let attachments = Arc::new(Mutex::new(()));
        let locked = Arc::new(Mutex::new(Some(Attached(Arc::clone(&attachments)))));
        let (tell, ended) = mpsc::channel();
        let follower = attachments.lock().expect("no panic");
        let ends = Arc::clone(&locked);
        thread::spawn(move || {
            drop(take(&ends, |_| tell.send(()).expect("the test waits")));
            tell.send(()).expect("the test waits");
        });
        ended.recv().expect("the last look, under the lock");
        // A deadlock would keep this thread here for good.
        let deadline = Instant::now() + Duration::from_secs(5);
        let is_gone = loop {
            match locked.try_lock() {
                Ok(part) => break part.is_none(),
                Err(_) => {
                    assert!(Instant::now() < deadline, "the end keeps its lock while it waits for the attachments")
                }
            }
            thread::yield_now();
        };
        assert!(is_gone, "nothing is left to attach to");
        drop(follower);
        assert_eq!(ended.recv_timeout(Duration::from_secs(5)), Ok(()), "the end");
    }
}
