//! The jobs: each asks one upstream after the other, until the frame comes or no upstream is left.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use retry_common::counter::Counter;
use retry_common::key::FrameKey;
use retry_common::wire::nack::{FLAG_PROXIED, Nack};
use thiserror::Error;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::flight::{JobReceiver, Reply, Says};
use super::upstreams::{Choice, bare};
use super::{Job, Recovered, Shared, Waiting};
use crate::backoff::{Failure, GaveUp};
use crate::clock::monotonic_ns;

/// Recoveries that one worker keeps under way: each waits for answers nearly all of its time.
pub(super) const AT_A_TIME: usize = 256;
/// Recoveries begun in one [`SLICE`] at most, 4,000 per second: a flood of NACKs for frames that do not exist goes no further.
const MOST_IN_A_SLICE: u32 = 40;
/// See [`MOST_IN_A_SLICE`].
const SLICE: Duration = Duration::from_millis(10);

/// Why no frame came.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
enum NoFrame {
    /// Every upstream that was asked and usually answers said MISS.
    #[error("every upstream said MISS")]
    Miss,
    /// An upstream did not answer in time.
    #[error("no upstream sent it in time")]
    Timeout,
    /// An upstream told us to hold, and none was silent.
    #[error("the upstreams throttle us")]
    Throttled,
    /// An upstream could not be reached, and none was silent or told us to hold.
    #[error("no upstream can be reached")]
    Unreachable,
    /// There is no upstream to ask.
    #[error("no upstream is known")]
    NoUpstream,
}

/// A job that waits for its turn, or is under way. Its frame is under way until this is dropped.
pub(super) struct Ticket {
    pub(super) job: Job,
    pub(super) ear: JobReceiver,
    pub(super) shared: Arc<Shared>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.shared.flight().end(&self.job.key, monotonic_ns());
    }
}

/// Takes jobs from the queue, as many at a time as the workers keep under way.
pub(super) async fn work(shared: Arc<Shared>, waiting: Arc<Waiting>) {
    let under_way = Arc::new(Semaphore::new(shared.config.proxy.workers.saturating_mul(AT_A_TIME)));
    let (mut slice_ends, mut begun) = (Instant::now() + SLICE, 0);
    let mut next = async || {
        let permit = Arc::clone(&under_way).acquire_owned().await.ok()?;
        if begun >= MOST_IN_A_SLICE {
            sleep_until(slice_ends).await;
        }
        let ticket = loop {
            match waiting.pop() {
                Some(ticket) => break ticket,
                None => waiting.new.notified().await,
            }
        };
        if Instant::now() >= slice_ends {
            (slice_ends, begun) = (Instant::now() + SLICE, 0);
        }
        begun += 1;
        Some((ticket, permit))
    };
    while let Some(Some((ticket, permit))) = shared.cancel.run_until_cancelled(next()).await {
        tokio::spawn(async move {
            recover(ticket).await;
            drop(permit);
        });
    }
    // The end: what waits is under way no more.
    while waiting.pop().is_some() {}
}

async fn recover(mut ticket: Ticket) {
    let shared = Arc::clone(&ticket.shared);
    let job = ticket.job;
    shared.counters.one(Counter::ProxyRequests);
    match shared.cancel.run_until_cancelled(shared.claims.claim(&job.key)).await {
        None => return,
        Some(false) => {
            shared.counters.one(Counter::ProxyInflightDedup);
            return;
        }
        Some(true) => {}
    }
    match rounds(&shared, &job.key, &mut ticket.ear).await {
        Ok(frame) => {
            shared.counters.one(Counter::ProxyRecovered);
            (shared.on_frame)(Recovered { job, frame });
        }
        Err(gave_up) => {
            if let Some(counter) = counter(&gave_up) {
                shared.counters.one(counter);
                tracing::debug!(key = %job.key, %gave_up, "a recovery was given up");
            }
            shared.claims.release(&job.key).await;
        }
    }
}

/// What a recovery that was given up counts as; nothing at the end of the daemon.
const fn counter(gave_up: &GaveUp<NoFrame>) -> Option<Counter> {
    let last = match gave_up {
        GaveUp::Cancelled { .. } => return None,
        GaveUp::Definitive { error, .. } => *error,
        GaveUp::Exhausted { last, .. } | GaveUp::BreakerOpen { last: Some(last), .. } => *last,
        // The breaker opens for upstreams that do not answer.
        GaveUp::BreakerOpen { last: None, .. } => NoFrame::Timeout,
    };
    Some(match last {
        NoFrame::Miss => Counter::ProxyFailedMiss,
        NoFrame::Timeout => Counter::ProxyFailedTimeout,
        NoFrame::Throttled => Counter::ProxyFailedThrottled,
        NoFrame::Unreachable => Counter::ProxyFailedUnreachable,
        NoFrame::NoUpstream => Counter::ProxyFailedNone,
    })
}

/// Asks every upstream, as often as the policy has it. The frame ends it whenever it comes, and from whom.
async fn rounds(shared: &Shared, key: &FrameKey, ear: &mut JobReceiver) -> Result<Vec<u8>, GaveUp<NoFrame>> {
    let frame = ear.frame.clone();
    // Attempts come one after the other; the lock is never waited for.
    let replies = Mutex::new(&mut ear.replies);
    let attempts = shared.retry.run(&shared.cancel, |_| async {
        let mut replies = replies.lock().await;
        tokio::select! {
            biased;
            frame = arrival(frame.clone()) => Ok(frame),
            why = round(shared, key, &mut replies) => Err(match why {
                NoFrame::Miss | NoFrame::NoUpstream => Failure::Definitive(why),
                NoFrame::Timeout | NoFrame::Throttled | NoFrame::Unreachable => Failure::Transient(why),
            }),
        }
    });
    tokio::select! {
        // An attempt that succeeds is told to the breaker; only between two attempts is this the one to hear.
        biased;
        outcome = attempts => outcome,
        frame = arrival(frame.clone()) => Ok(frame),
    }
}

/// The frame, once it is there.
async fn arrival(mut frame: watch::Receiver<Option<Vec<u8>>>) -> Vec<u8> {
    let arrived = frame.wait_for(Option::is_some).await.ok().and_then(|frame| frame.clone());
    match arrived {
        Some(frame) => frame,
        // The table lets go of a job when its ticket does.
        None => std::future::pending().await,
    }
}

/// Asks the upstreams once, in their order. Ends when the frame can come no more.
async fn round(shared: &Shared, key: &FrameKey, replies: &mut UnboundedReceiver<Reply>) -> NoFrame {
    // What was said between two rounds.
    while replies.try_recv().is_ok() {}
    let proxy = &shared.config.proxy;
    let (is_empty, mut order) = {
        let upstreams = shared.upstreams();
        (upstreams.is_empty(), upstreams.order(proxy.select, key.hash_key(), monotonic_ns()))
    };
    if is_empty {
        return NoFrame::NoUpstream;
    }
    if proxy.max_endpoints > 0 {
        order.ask.truncate(usize::try_from(proxy.max_endpoints).unwrap_or(usize::MAX));
    }
    measure_another(shared, key, &order.ask);
    let mut round = Round { shared, key, replies, doubtful: Vec::new() };
    let mut reasons = Vec::new();
    let is_any_healthy = order.ask.iter().any(|one| one.healthy);
    for upstream in &order.ask {
        // One that does not answer usually is tried by a few at a time, and holds up only these.
        let trial = if upstream.healthy || !is_any_healthy { None } else { Trial::begin(shared, upstream.address) };
        if !upstream.healthy && is_any_healthy && trial.is_none() {
            continue;
        }
        match round.ask(upstream.address).await {
            // It is not waited for; what it does not say changes nothing.
            NoFrame::Timeout | NoFrame::Unreachable if !upstream.healthy && is_any_healthy => {}
            why => reasons.push(why),
        }
    }
    round.wait_for_doubtful().await;
    if order.held {
        reasons.push(NoFrame::Throttled);
    }
    let gravest = [NoFrame::Timeout, NoFrame::Throttled, NoFrame::Unreachable];
    gravest.into_iter().find(|why| reasons.contains(why)).unwrap_or(NoFrame::Miss)
}

/// Leave to ask an upstream that does not answer usually.
struct Trial<'a> {
    shared: &'a Shared,
    upstream: SocketAddr,
}

impl<'a> Trial<'a> {
    /// None when enough others have asked it, and wait.
    fn begin(shared: &'a Shared, upstream: SocketAddr) -> Option<Self> {
        // The lock is let go before there is a value whose end takes it.
        let may = shared.upstreams().begin_trial(upstream);
        may.then(|| Self { shared, upstream })
    }
}

/// Also when the frame came from another.
impl Drop for Trial<'_> {
    fn drop(&mut self) {
        self.shared.upstreams().end_trial(self.upstream);
    }
}

/// One round over the upstreams.
struct Round<'a> {
    shared: &'a Shared,
    key: &'a FrameKey,
    replies: &'a mut UnboundedReceiver<Reply>,
    /// Upstreams whose MISS may have been another job's, and until when the frame may come from them.
    doubtful: Vec<(SocketAddr, Instant)>,
}

impl Round<'_> {
    /// Asks one upstream, and waits until it is of no use to wait.
    async fn ask(&mut self, upstream: SocketAddr) -> NoFrame {
        let timeout = self.shared.config.proxy.timeout;
        let deadline = Instant::now() + timeout;
        match send(self.shared, self.key, upstream) {
            Left::Yes => {}
            Left::NoRoom => return NoFrame::Timeout,
            Left::Unreachable => return NoFrame::Unreachable,
        }
        let mut has_it = false;
        loop {
            match self.hear(deadline).await {
                None => {
                    let now_ns = monotonic_ns();
                    self.shared.flight().give_up(self.key, upstream, now_ns);
                    if !has_it {
                        self.shared.upstreams().silent(upstream, now_ns);
                    }
                    return NoFrame::Timeout;
                }
                Some(reply) if bare(reply.from) != bare(upstream) => {}
                Some(Reply { says: Says::Sent, .. }) => has_it = true,
                Some(Reply { says: Says::Miss, .. }) => return NoFrame::Miss,
                Some(Reply { says: Says::Perhaps, .. }) => {
                    self.doubtful.push((upstream, deadline));
                    return NoFrame::Miss;
                }
                Some(Reply { says: Says::Throttled, .. }) => return NoFrame::Throttled,
                Some(Reply { says: Says::Unreachable, .. }) => return NoFrame::Unreachable,
            }
        }
    }

    /// Gives those whose MISS may have been another's the rest of their time. The caller listens for the frame.
    async fn wait_for_doubtful(&mut self) {
        while let Some(last) = self.doubtful.iter().map(|(_, until)| *until).max() {
            if self.hear(last).await.is_none() {
                return;
            }
        }
    }

    /// The next thing said; `None` after `until`.
    async fn hear(&mut self, until: Instant) -> Option<Reply> {
        let reply = timeout_at(until, self.replies.recv()).await.ok()??;
        match reply.says {
            // Now it is sure.
            Says::Miss | Says::Throttled | Says::Unreachable => {
                self.doubtful.retain(|(from, _)| bare(*from) != bare(reply.from));
            }
            Says::Sent | Says::Perhaps => {}
        }
        Some(reply)
    }
}

/// What became of a NACK to an upstream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Left {
    /// It left.
    Yes,
    /// The send buffer is full, which says nothing of the upstream.
    NoRoom,
    /// It cannot be sent there.
    Unreachable,
}

/// Sends the NACK. Never waits.
fn send(shared: &Shared, key: &FrameKey, to: SocketAddr) -> Left {
    let nack = Nack { flags: FLAG_PROXIED, key: *key, subtree_id: [0; 32] }.to_bytes();
    let now_ns = monotonic_ns();
    shared.flight().sent(*key, to, now_ns);
    shared.upstreams().sent(to, now_ns);
    match shared.sockets.send(&nack, to) {
        Ok(()) => {
            shared.counters.one(Counter::ProxyNacks);
            Left::Yes
        }
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS)) => {
            shared.counters.one(Counter::SendsBufferFull);
            shared.flight().unsent(key, to);
            Left::NoRoom
        }
        Err(error) => {
            tracing::trace!(%error, %to, "a NACK to an upstream did not leave");
            shared.flight().unsent(key, to);
            shared.upstreams().unreachable(to, now_ns);
            Left::Unreachable
        }
    }
}

/// Sends a copy to one upstream that was not asked for a while, so that its state is known when it is needed. What it
/// answers is welcome, and not waited for.
fn measure_another(shared: &Shared, key: &FrameKey, order: &[Choice]) {
    let idle = shared.upstreams().take_idle(shared.config.proxy.select, monotonic_ns());
    if let Some(idle) = idle.filter(|idle| order.first().is_none_or(|first| bare(first.address) != bare(*idle))) {
        send(shared, key, idle);
    }
}

/// How long a THROTTLED of this bucket holds (docs/wire-format.md).
pub(super) const fn hold(bucket: u8) -> Duration {
    Duration::from_millis(125 << (bucket & 0x0f))
}
