//! Recovery from upstream endpoints: a frame that is missing here is asked for elsewhere, by a NACK with the Proxied flag,
//! and comes back by unicast.
//!
//! [`upstreams`] and [`health`] decide who is asked, `flight` which answer belongs to which job, `refresh` when upstreams
//! are looked for, `queue` whose turn it is, [`tails`] what is not asked for: all of them pure. `sockets` moves datagrams, `jobs` ties them together, `members` finds the upstreams
//! and `state_file` remembers them. [`probe`] is the operator's view of one.

mod flight;
pub(crate) mod health;
mod jobs;
mod members;
pub(crate) mod probe;
mod queue;
mod refresh;
pub(crate) mod sockets;
mod state_file;
pub(crate) mod tails;
#[cfg(test)]
mod tests;
pub(crate) mod upstreams;

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use retry_common::counter::Counter;
use retry_common::key::FrameKey;
use retry_common::wire::answer::Answer;
use retry_common::wire::frame::Frame;
use thiserror::Error;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::acl::Acl;
use crate::backoff::Retry;
use crate::clock::{monotonic_ns, nanoseconds};
use crate::counters::UserCounters;
use crate::latency::UserLatency;
use crate::settings::{Proxy, Settings};
use flight::{Answered, Flight, JobReceiver, Join};
use jobs::Ticket;
use members::Members;
use queue::Queue;
use sockets::{Heard, Sockets};
use tails::Tails;
use upstreams::Upstreams;

pub(crate) use upstreams::UpstreamStatus;

/// How recovery works.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The settings.
    pub proxy: Proxy,
    /// Source of NACKs to upstream endpoints: the NACK address.
    pub source: Ipv6Addr,
    /// Each listener that asks gets a copy of a recovered frame.
    pub unicast: bool,
}

impl Config {
    /// As the settings ask, with the NACK address, which they may leave to an interface; `None` without `-proxy-enabled`.
    #[must_use]
    pub(crate) fn from(settings: &Settings, source: Ipv6Addr) -> Option<Self> {
        let proxy = settings.proxy.clone();
        settings.proxy.enabled.then_some(Self { proxy, source, unicast: settings.repair.unicast })
    }
}

/// A frame to recover.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Job {
    /// Its key.
    pub key: FrameKey,
    /// Who asked for it.
    pub asker: SocketAddrV6,
}

/// A frame that came back.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Recovered {
    /// Its key.
    pub key: FrameKey,
    /// Listeners that asked for it, each of which gets a copy in unicast mode; else the first one that asked.
    pub askers: Vec<SocketAddrV6>,
    /// The datagram, which has that key.
    pub frame: Vec<u8>,
}

/// Keeps instances from recovering one frame at the same time.
pub(crate) trait Claims: Send + Sync {
    /// True when the recovery is ours; also when the store cannot be asked, for twice is better than never.
    fn claim<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, bool>;
    /// Gives up a claim whose recovery came to nothing.
    fn release<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, ()>;
}

/// There are no other instances.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoClaims;

impl Claims for NoClaims {
    fn claim<'a>(&'a self, _job: &'a Job) -> BoxFuture<'a, bool> {
        Box::pin(async { true })
    }

    fn release<'a>(&'a self, _job: &'a Job) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }
}

/// Why recovery could not be started.
#[derive(Debug, Error)]
pub enum ProxyError {
    /// The sockets could not be opened.
    #[error("-proxy-enabled: cannot open a socket: {0}")]
    Socket(#[from] io::Error),
}

/// Endpoints heard by beacon.
pub(crate) type Discover = Arc<dyn Fn() -> Vec<SocketAddrV6> + Send + Sync>;
/// Takes a frame that came back.
pub(crate) type OnFrame = Arc<dyn Fn(Recovered) + Send + Sync>;

/// A handle. Clones are the same recovery.
#[derive(Clone)]
pub(crate) struct Recovery {
    waiting: Arc<Waiting>,
    shared: Arc<Shared>,
}

/// The jobs that wait for their turn.
struct Waiting {
    queue: Mutex<Queue<Ticket>>,
    /// Told of each new one.
    new: Notify,
}

impl Waiting {
    fn push(&self, ticket: Ticket) -> Option<Ticket> {
        let asker = *ticket.job.asker.ip();
        let dropped = self.queue.lock().unwrap_or_else(PoisonError::into_inner).push(asker, ticket);
        self.new.notify_one();
        dropped
    }

    fn pop(&self) -> Option<Ticket> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

/// What jobs and sockets share.
struct Shared {
    config: Config,
    /// As in the configuration; it changes while the daemon runs.
    unicast: AtomicBool,
    retry: Retry,
    upstreams: Mutex<Upstreams>,
    flight: Mutex<Flight>,
    sockets: Sockets,
    tails: Arc<Tails>,
    /// A permit for each job that may be under way.
    under_way: Arc<Semaphore>,
    /// A permit for each job that may wait because an upstream told it to hold.
    holding: Semaphore,
    counters: Arc<UserCounters>,
    latency: Arc<UserLatency>,
    /// Whose answers are believed.
    acl: Arc<Acl>,
    claims: Arc<dyn Claims>,
    on_frame: OnFrame,
    cancel: CancellationToken,
}

/// `-state-dir` names no directory that can be written.
#[derive(Debug, Error)]
#[error("-state-dir {directory}: {why}: {advice}")]
pub struct StateDirectoryError {
    directory: String,
    why: String,
    advice: String,
}

/// Looks whether discovered upstreams can be kept in `directory`.
///
/// # Errors
/// [`StateDirectoryError`]: it is not there, or no directory, or cannot be written.
pub(crate) fn check_directory(directory: &Path) -> Result<(), StateDirectoryError> {
    let name = directory.display();
    let fail = |why: String, advice: String| StateDirectoryError { directory: name.to_string(), why, advice };
    match std::fs::metadata(directory) {
        Ok(found) if !found.is_dir() => Err(fail("it is no directory".to_owned(), "name one".to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(fail(
            "there is no such directory".to_owned(),
            format!("make it with `mkdir -p {name}`, or name another"),
        )),
        Err(error) => Err(fail(error.to_string(), "let this user search it, or name another".to_owned())),
        Ok(_) => nix::unistd::access(directory, nix::unistd::AccessFlags::W_OK)
            .map_err(|error| fail(error.desc().to_owned(), "let this user write there, or name another".to_owned())),
    }
}

impl Recovery {
    /// Starts its tasks on the current runtime; they end with `cancel`. The caller tells `tails` of the frames that are stored.
    ///
    /// # Errors
    /// [`ProxyError`]: no socket. Upstreams that do not resolve are no error: their names are asked for again.
    pub(crate) fn start(
        config: Config,
        (counters, latency, acl): (Arc<UserCounters>, Arc<UserLatency>, Arc<Acl>),
        claims: Arc<dyn Claims>,
        discover: Discover,
        tails: Arc<Tails>,
        on_frame: OnFrame,
        cancel: CancellationToken,
    ) -> Result<Self, ProxyError> {
        let waiting = Arc::new(Waiting { queue: Mutex::new(Queue::new(config.proxy.queue)), new: Notify::new() });
        let shared = Arc::new(Shared {
            retry: Retry::new(&config.proxy.retry),
            upstreams: Mutex::default(),
            flight: Mutex::default(),
            sockets: Sockets::open(config.source)?,
            tails,
            under_way: Arc::new(Semaphore::new(config.proxy.workers.saturating_mul(jobs::AT_A_TIME))),
            holding: Semaphore::new(jobs::MOST_HOLDING),
            unicast: AtomicBool::new(config.unicast),
            config,
            counters: Arc::clone(&counters),
            latency,
            acl,
            claims,
            on_frame,
            cancel: cancel.clone(),
        });
        let (listening, listens) = (Arc::clone(&shared), cancel.clone());
        tokio::spawn(async move {
            listens.run_until_cancelled(listening.sockets.listen(|heard| listening.take(heard))).await;
        });
        let (working, tickets) = (Arc::clone(&shared), Arc::clone(&waiting));
        tokio::spawn(async move {
            let mut members = Members::new(&working.config.proxy, discover, counters);
            // The first members are known before the first job is taken.
            if cancel.run_until_cancelled(members.look(&working.upstreams)).await.is_some() {
                tokio::spawn(jobs::work(Arc::clone(&working), tickets));
                cancel.run_until_cancelled(members.keep(&working.upstreams)).await;
            }
        });
        Ok(Self { waiting, shared })
    }

    /// Queues a recovery; never waits. Any thread may call it.
    ///
    /// A frame whose recovery waits or is under way is not queued again: listeners that miss one frame ask together. Nor is one that
    /// is ahead of its flow and was asked for just now (see [`tails`]).
    pub(crate) fn submit(&self, job: Job) {
        let Some(receiver) = self.begin(&job) else {
            return;
        };
        let ticket = Ticket::new(job, receiver, Arc::clone(&self.shared));
        if self.shared.cancel.is_cancelled() {
            return;
        }
        if self.waiting.push(ticket).is_some() {
            self.shared.counters.one(Counter::ProxyQueueDropped);
        }
    }

    /// Whether each listener that asked gets a copy, from now on.
    pub(crate) fn set_unicast(&self, unicast: bool) {
        self.shared.unicast.store(unicast, Ordering::Relaxed);
    }

    /// No recovery waits or is under way.
    #[must_use]
    pub(crate) fn is_idle(&self) -> bool {
        self.shared.flight().is_idle()
    }

    /// `None`, and counted, where no job is to begin.
    fn begin(&self, job: &Job) -> Option<JobReceiver> {
        let Shared { unicast, tails, counters, .. } = &*self.shared;
        let mut flight = self.shared.flight();
        if flight.is_under_way(&job.key) {
            counters.one(Counter::ProxyInflightDedup);
            if unicast.load(Ordering::Relaxed) && flight.join(&job.key, job.asker) == Some(Join::Full) {
                counters.one(Counter::ProxySkippedAskers);
            }
            return None;
        }
        if !tails.take(&job.key, monotonic_ns()) {
            counters.one(Counter::ProxySkippedAhead);
            return None;
        }
        let receiver = flight.begin(job.key);
        flight.join(&job.key, job.asker);
        receiver
    }

    /// What is known of each upstream.
    #[must_use]
    pub(crate) fn upstreams(&self) -> Vec<UpstreamStatus> {
        self.shared.upstreams().status(monotonic_ns())
    }
}

impl Shared {
    fn upstreams(&self) -> MutexGuard<'_, Upstreams> {
        self.upstreams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flight(&self) -> MutexGuard<'_, Flight> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what a socket tells.
    fn take(&self, heard: Heard<'_>) {
        let now_ns = monotonic_ns();
        let (bytes, from) = match heard {
            Heard::Datagram(bytes, from) => (bytes, from),
            Heard::Unreachable(to) => {
                self.upstreams().unreachable(to, now_ns);
                self.flight().unreachable(to, now_ns);
                return;
            }
        };
        if self.acl.refuses(from.ip()) {
            self.counters.one(Counter::UpstreamDenied);
            return;
        }
        if !self.upstreams().has(from) {
            tracing::trace!(%from, "a datagram from a host that is no upstream");
            return;
        }
        let answered = match Answer::parse(bytes) {
            Ok(Answer::Ack { seq_num, .. }) => self.flight().ack(seq_num, from),
            Ok(Answer::Miss) => self.flight().miss(from, now_ns),
            Ok(Answer::Throttled { bucket, seq_num }) => {
                let hold_ns = nanoseconds(jobs::hold(bucket));
                self.upstreams().hold(from, now_ns.saturating_add(hold_ns));
                self.flight().throttled(seq_num, from)
            }
            Err(_) => match Frame::parse(bytes).ok().and_then(|frame| frame.head().cache_key()) {
                Some(key) => self.flight().frame(&key, from, bytes, now_ns),
                None => {
                    self.counters.one(Counter::ProxyBadDatagrams);
                    return;
                }
            },
        };
        if let Some(Answered { sent_ns }) = answered {
            let rtt_ns = sent_ns.map(|sent_ns| now_ns.saturating_sub(sent_ns));
            self.upstreams().answered(from, rtt_ns, now_ns);
        }
    }
}
