//! The jobs: each asks one upstream after the other, until the frame comes or no upstream is left.

use std::net::{SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use retry_common::counter::Counter;
use retry_common::key::FrameKey;
use retry_common::wire::nack::{FLAG_PROXIED, Nack};
use thiserror::Error;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Mutex, OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::flight::{JobReceiver, Reply, Says};
use super::upstreams::{Choice, bare};
use super::{Job, Recovered, Shared, Waiting};
use crate::backoff::{Failure, GaveUp};
use crate::clock::monotonic_ns;
use crate::latency::Wait;

/// Recoveries that one worker keeps under way: each waits for answers nearly all of its time.
pub(super) const AT_A_TIME: usize = 256;
/// Recoveries begun in one [`SLICE`] at most, 4,000 per second: a flood of NACKs for frames that do not exist goes no further.
const MOST_IN_A_SLICE: u32 = 40;
/// See [`MOST_IN_A_SLICE`].
const SLICE: Duration = Duration::from_millis(10);
/// What one THROTTLED holds at most: twice the largest bucket that endpoints send. A forged one must not silence an upstream.
const LONGEST_HOLD: Duration = Duration::from_secs(4);
/// How long one job holds in all: two of the longest. Listeners have asked again by then, or given up.
const HOLDS: Duration = Duration::from_secs(8);
/// Jobs that hold at the same time. They are not under way meanwhile: others are.
pub(super) const MOST_HOLDING: usize = 1024;

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
    receiver: JobReceiver,
    shared: Arc<Shared>,
    /// How it ended; `None`: no upstream has said that it has not the frame.
    ended: Option<Ended>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ended {
    Missed,
    Recovered,
}

impl Ticket {
    pub(super) const fn new(job: Job, receiver: JobReceiver, shared: Arc<Shared>) -> Self {
        Self { job, receiver, shared, ended: None }
    }

    /// The frame came: the listeners that get a copy.
    fn recovered(mut self) -> Vec<SocketAddrV6> {
        self.ended = Some(Ended::Recovered);
        // The upstream may have what follows it as well.
        self.shared.tails.give_back(&self.job.key);
        self.shared.flight().end(&self.job.key, monotonic_ns())
    }

    /// It was given up.
    fn gave_up(mut self, why: &GaveUp<NoFrame>) {
        if matches!(why, GaveUp::Definitive { error: NoFrame::Miss, .. }) {
            self.ended = Some(Ended::Missed);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Another job for the frame may be under way once this one was ended.
        if self.ended != Some(Ended::Recovered) {
            self.shared.flight().end(&self.job.key, monotonic_ns());
        }
        if self.ended.is_none() {
            self.shared.tails.give_back(&self.job.key);
        }
    }
}

/// A job's place among those under way.
struct Place<'a> {
    replies: &'a mut UnboundedReceiver<Reply>,
    /// None while it holds.
    permit: Option<OwnedSemaphorePermit>,
    /// When it holds no longer.
    holds_until: Instant,
}

impl Place<'_> {
    /// Waits, and is not under way meanwhile. False when it must not: too many jobs hold, or it has held for long enough.
    async fn hold(&mut self, shared: &Shared, wait: Duration) -> bool {
        let Ok(_holding) = shared.holding.try_acquire() else {
            return false;
        };
        if Instant::now() + wait > self.holds_until {
            return false;
        }
        self.permit = None;
        sleep(wait).await;
        self.permit = Arc::clone(&shared.under_way).acquire_owned().await.ok();
        // What is still to be read was said before.
        while self.replies.try_recv().is_ok() {}
        true
    }
}

/// Takes jobs from the queue, as many at a time as the workers keep under way.
pub(super) async fn work(shared: Arc<Shared>, waiting: Arc<Waiting>) {
    let (mut slice_ends, mut begun) = (Instant::now() + SLICE, 0);
    let mut next = async || {
        let permit = Arc::clone(&shared.under_way).acquire_owned().await.ok()?;
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
        tokio::spawn(recover(ticket, permit));
    }
    // The end: what waits is under way no more.
    while waiting.pop().is_some() {}
}

async fn recover(mut ticket: Ticket, permit: OwnedSemaphorePermit) {
    let shared = Arc::clone(&ticket.shared);
    let job = ticket.job;
    shared.counters.one(Counter::ProxyRequests);
    match shared.cancel.run_until_cancelled(shared.claims.claim(&job)).await {
        None => return,
        Some(false) => {
            shared.counters.one(Counter::ProxyInflightDedup);
            return;
        }
        Some(true) => {}
    }
    // The claim has to outlive what is done under it.
    let holds_until = Instant::now() + HOLDS.min(shared.config.proxy.dedup_window);
    let JobReceiver { frame, replies } = &mut ticket.receiver;
    let mut place = Place { replies, permit: Some(permit), holds_until };
    let asked_ns = monotonic_ns();
    let outcome = rounds(&shared, &job.key, frame, &mut place).await;
    shared.latency.took(Wait::Recovered, monotonic_ns().saturating_sub(asked_ns), 1);
    match outcome {
        Ok(frame) => {
            shared.counters.one(Counter::ProxyRecovered);
            let askers = ticket.recovered();
            (shared.on_frame)(Recovered { key: job.key, askers, frame });
        }
        Err(gave_up) => {
            if let Some(counter) = counter(&gave_up) {
                shared.counters.one(counter);
                tracing::debug!(key = %job.key, %gave_up, "a recovery was given up");
            }
            shared.claims.release(&job).await;
            ticket.gave_up(&gave_up);
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
async fn rounds(
    shared: &Shared,
    key: &FrameKey,
    frame: &watch::Receiver<Option<Vec<u8>>>,
    place: &mut Place<'_>,
) -> Result<Vec<u8>, GaveUp<NoFrame>> {
    // Attempts come one after the other; the lock is never waited for.
    let place = Mutex::new(place);
    let attempts = shared.retry.run(&shared.cancel, |_| async {
        let mut place = place.lock().await;
        tokio::select! {
            biased;
            frame = arrival(frame.clone()) => Ok(frame),
            why = round(shared, key, &mut place) => Err(match why {
                // A round has waited for those that throttle us as long as it may.
                NoFrame::Miss | NoFrame::NoUpstream | NoFrame::Throttled => Failure::Definitive(why),
                NoFrame::Timeout | NoFrame::Unreachable => Failure::Transient(why),
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

/// Asks the upstreams once, in their order; those that tell us to hold again when their time has come. Ends when the frame can
/// come no more.
async fn round(shared: &Shared, key: &FrameKey, place: &mut Place<'_>) -> NoFrame {
    // What was said between two rounds.
    while place.replies.try_recv().is_ok() {}
    let proxy = &shared.config.proxy;
    let (is_empty, mut order) = {
        let upstreams = shared.upstreams();
        (upstreams.is_empty(), upstreams.order(proxy.select, key.hash_key(), monotonic_ns()))
    };
    if is_empty {
        return NoFrame::NoUpstream;
    }
    let most = match proxy.max_endpoints {
        0 => usize::MAX,
        most => usize::try_from(most).unwrap_or(usize::MAX),
    };
    order.ask.truncate(most);
    measure_another(shared, key, &order.ask);
    let mut reasons = Vec::new();
    if order.held.len() > most - order.ask.len() {
        reasons.push(NoFrame::Throttled);
        order.held.truncate(most - order.ask.len());
    }
    let is_any_healthy = order.ask.iter().any(|one| one.healthy);
    let mut round = Round { shared, key, place, is_any_healthy, reasons, doubtful: Vec::new(), held: order.held };
    for upstream in order.ask {
        round.try_one(upstream).await;
    }
    round.wait_for_doubtful().await;
    round.ask_held().await;
    let gravest = [NoFrame::Timeout, NoFrame::Throttled, NoFrame::Unreachable];
    gravest.into_iter().find(|why| round.reasons.contains(why)).unwrap_or(NoFrame::Miss)
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
struct Round<'a, 'b> {
    shared: &'a Shared,
    key: &'a FrameKey,
    place: &'a mut Place<'b>,
    is_any_healthy: bool,
    /// Why the frame did not come from those that were asked.
    reasons: Vec<NoFrame>,
    /// Upstreams whose MISS may have been another job's, and until when the frame may come from them.
    doubtful: Vec<(SocketAddr, Instant)>,
    /// Upstreams that told us to hold.
    held: Vec<Choice>,
}

impl Round<'_, '_> {
    /// Asks one upstream, and notes why the frame did not come.
    async fn try_one(&mut self, upstream: Choice) {
        let shared = self.shared;
        let is_usual = upstream.healthy || !self.is_any_healthy;
        // One that does not answer usually is tried by a few at a time, and holds up only these.
        let trial = if is_usual { None } else { Trial::begin(shared, upstream.address) };
        if !is_usual && trial.is_none() {
            return;
        }
        match self.ask(upstream.address).await {
            // It is not waited for; what it does not say changes nothing.
            NoFrame::Timeout | NoFrame::Unreachable if !is_usual => {}
            NoFrame::Throttled => self.held.push(upstream),
            why => self.reasons.push(why),
        }
    }

    /// Waits for those that told us to hold, and asks each again when its time has come.
    async fn ask_held(&mut self) {
        while !self.held.is_empty() {
            let shortest = {
                let (upstreams, now_ns) = (self.shared.upstreams(), monotonic_ns());
                self.held.iter().map(|one| upstreams.hold_left(one.address, now_ns)).min().unwrap_or_default()
            };
            // All jobs that it told to hold would ask it at the same time.
            let wait = shortest + rand::rng().random_range(Duration::ZERO..=shortest / 8);
            if !self.place.hold(self.shared, wait).await {
                self.reasons.push(NoFrame::Throttled);
                return;
            }
            let now_ns = monotonic_ns();
            let held = std::mem::take(&mut self.held);
            let (still, due): (Vec<Choice>, Vec<Choice>) = {
                let upstreams = self.shared.upstreams();
                held.into_iter().partition(|one| !upstreams.hold_left(one.address, now_ns).is_zero())
            };
            self.held = still;
            for upstream in due {
                self.try_one(upstream).await;
            }
            self.wait_for_doubtful().await;
        }
    }

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
                Some(Reply { says: Says::Sent, .. }) => {
                    has_it = true;
                    // Should the frame be lost on its way, it is asked for again.
                    self.shared.tails.give_back(self.key);
                }
                Some(Reply { says: Says::Miss, .. }) => return NoFrame::Miss,
                Some(Reply { says: Says::Perhaps, .. }) => {
                    self.doubtful.push((upstream, deadline));
                    let is_held = !self.shared.upstreams().hold_left(upstream, monotonic_ns()).is_zero();
                    return if is_held { NoFrame::Throttled } else { NoFrame::Miss };
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
        let reply = timeout_at(until, self.place.replies.recv()).await.ok()??;
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

/// How long a THROTTLED of this bucket holds (docs/wire-format.md), [`LONGEST_HOLD`] at most.
pub(super) fn hold(bucket: u8) -> Duration {
    Duration::from_millis(125 << (bucket & 0x0f)).min(LONGEST_HOLD)
}
