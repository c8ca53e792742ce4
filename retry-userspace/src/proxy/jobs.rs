//! The jobs: each asks one upstream after the other, until the frame comes or nobody is left.

use std::net::SocketAddr;
use std::sync::Arc;

use retry_common::counter::Counter;
use retry_common::key::FrameKey;
use retry_common::wire::nack::{FLAG_PROXIED, Nack};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout_at};

use super::flight::Reply;
use super::{Job, Recovered, Shared, hold_ns};
use crate::clock::monotonic_ns;
use crate::retry::{Failure, GaveUp};

/// Why a round over the upstreams brought no frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum NoFrame {
    /// Everybody asked said MISS.
    Miss,
    /// Somebody did not answer in time.
    Timeout,
    /// Somebody told us to hold, and nobody was silent.
    Throttled,
    /// Nobody could be sent to.
    Unreachable,
    /// There is nobody to ask.
    Nobody,
}

impl std::fmt::Display for NoFrame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Miss => "every upstream said MISS",
            Self::Timeout => "no upstream answered in time",
            Self::Throttled => "the upstreams throttle us",
            Self::Unreachable => "no upstream can be reached",
            Self::Nobody => "no upstream is known",
        })
    }
}

/// Takes jobs from the queue, as many at a time as there are workers.
pub(super) async fn work(shared: Arc<Shared>, mut queue: mpsc::Receiver<Job>) {
    let workers = Arc::new(Semaphore::new(shared.config.proxy.workers));
    loop {
        let next = async {
            let permit = Arc::clone(&workers).acquire_owned().await.ok()?;
            Some((queue.recv().await?, permit))
        };
        let Some(Some((job, permit))) = shared.cancel.run_until_cancelled(next).await else {
            return;
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            recover(&shared, job).await;
            drop(permit);
        });
    }
}

async fn recover(shared: &Shared, job: Job) {
    let (replies, mut heard) = mpsc::unbounded_channel();
    if !shared.flight().begin(job.key, replies) {
        shared.counters.one(Counter::ProxyInflightDedup);
        return;
    }
    let _end = End { shared, key: job.key };
    if !shared.claims.claim(&job.key).await {
        shared.counters.one(Counter::ProxyInflightDedup);
        return;
    }
    let heard = tokio::sync::Mutex::new(&mut heard);
    let outcome = shared
        .retry
        .run(&shared.cancel, |_| async {
            round(shared, &job.key, &mut **heard.lock().await).await.map_err(|why| match why {
                NoFrame::Miss | NoFrame::Nobody => Failure::Definitive(why),
                NoFrame::Timeout | NoFrame::Throttled | NoFrame::Unreachable => Failure::Transient(why),
            })
        })
        .await;
    match outcome {
        Ok(frame) => {
            shared.counters.one(Counter::ProxyRecovered);
            (shared.on_frame)(Recovered { job, frame });
        }
        Err(GaveUp::Cancelled { .. }) => shared.claims.release(&job.key).await,
        Err(gave_up) => {
            shared.counters.one(match gave_up.last() {
                Some(NoFrame::Miss) => Counter::ProxyFailedMiss,
                Some(NoFrame::Timeout) | None => Counter::ProxyFailedTimeout,
                Some(NoFrame::Throttled) => Counter::ProxyFailedThrottled,
                Some(NoFrame::Unreachable) => Counter::ProxyFailedUnreachable,
                Some(NoFrame::Nobody) => Counter::ProxyFailedNone,
            });
            tracing::debug!(key = %job.key, %gave_up, "a recovery was given up");
            shared.claims.release(&job.key).await;
        }
    }
}

/// Forgets the job however it ends.
struct End<'a> {
    shared: &'a Shared,
    key: FrameKey,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.shared.flight().end(&self.key);
    }
}

/// What one upstream said.
enum Said {
    Frame(Vec<u8>),
    No(NoFrame),
    /// A MISS that may be another job's: it is believed once its time is over.
    Perhaps(Instant),
}

/// Asks the upstreams once, in their order.
async fn round(
    shared: &Shared,
    key: &FrameKey,
    heard: &mut mpsc::UnboundedReceiver<Reply>,
) -> Result<Vec<u8>, NoFrame> {
    let proxy = &shared.config.proxy;
    let mut order = shared.upstreams().order(proxy.select, key.hash_key(), monotonic_ns());
    if order.is_empty() {
        return Err(if shared.upstreams().is_empty() { NoFrame::Nobody } else { NoFrame::Throttled });
    }
    if proxy.max_endpoints > 0 {
        order.truncate(usize::try_from(proxy.max_endpoints).unwrap_or(usize::MAX));
    }
    try_another(shared, key, &order).await;
    let (mut worst, mut patience) = (None, None);
    for upstream in order {
        match ask(shared, key, upstream, heard).await {
            Said::Frame(frame) => return Ok(frame),
            Said::No(why) => worst = Some(worst.map_or(why, |worst| graver(worst, why))),
            Said::Perhaps(until) => {
                worst = Some(worst.map_or(NoFrame::Miss, |worst| graver(worst, NoFrame::Miss)));
                patience = patience.max(Some(until));
            }
        }
    }
    if let Some(until) = patience {
        while let Ok(Some(reply)) = timeout_at(until, heard.recv()).await {
            if let Reply::Frame(frame) = reply {
                return Ok(frame);
            }
        }
    }
    Err(worst.unwrap_or(NoFrame::Nobody))
}

/// Of two reasons the one that says more of what another attempt can do.
fn graver(a: NoFrame, b: NoFrame) -> NoFrame {
    [NoFrame::Timeout, NoFrame::Throttled, NoFrame::Unreachable]
        .into_iter()
        .find(|why| a == *why || b == *why)
        .unwrap_or(NoFrame::Miss)
}

/// Asks one upstream, and waits for it.
async fn ask(
    shared: &Shared,
    key: &FrameKey,
    upstream: SocketAddr,
    heard: &mut mpsc::UnboundedReceiver<Reply>,
) -> Said {
    let deadline = Instant::now() + shared.config.proxy.timeout;
    if !send(shared, key, upstream).await {
        return Said::No(NoFrame::Unreachable);
    }
    let mut acked = false;
    loop {
        match timeout_at(deadline, heard.recv()).await {
            // A late frame of an upstream asked before is as good.
            Ok(Some(Reply::Frame(frame))) => return Said::Frame(frame),
            Ok(Some(Reply::Ack(from))) if from == upstream => acked = true,
            Ok(Some(Reply::Miss { from, certain })) if from == upstream => {
                return if certain { Said::No(NoFrame::Miss) } else { Said::Perhaps(deadline) };
            }
            Ok(Some(Reply::Throttled(from, bucket))) => {
                shared.upstreams().hold(from, monotonic_ns().saturating_add(hold_ns(bucket)));
                if from == upstream {
                    return Said::No(NoFrame::Throttled);
                }
            }
            Ok(Some(Reply::Unreachable(from))) if from == upstream => return Said::No(NoFrame::Unreachable),
            // Of one that was asked before, and is no longer waited for.
            Ok(Some(Reply::Ack(_) | Reply::Miss { .. } | Reply::Unreachable(_))) => {}
            Ok(None) | Err(_) => {
                shared.flight().forget(key, upstream);
                if !acked {
                    shared.upstreams().silent(upstream, monotonic_ns());
                }
                return Said::No(NoFrame::Timeout);
            }
        }
    }
}

/// Sends the NACK; false when it did not leave.
async fn send(shared: &Shared, key: &FrameKey, to: SocketAddr) -> bool {
    let nack = Nack { flags: FLAG_PROXIED, key: *key, subtree_id: [0; 32] }.to_bytes();
    let now_ns = monotonic_ns();
    shared.flight().sent(*key, to, now_ns);
    shared.upstreams().sent(to, now_ns);
    match shared.sockets.send(&nack, to).await {
        Ok(()) => {
            shared.counters.one(Counter::ProxyRequests);
            true
        }
        Err(error) => {
            tracing::trace!(%error, %to, "a NACK to an upstream did not leave");
            shared.flight().forget(key, to);
            shared.upstreams().unreachable(to, now_ns);
            false
        }
    }
}

/// Sends a copy to one upstream that was not asked for a while, so that its state is known when it is needed. What it
/// answers is welcome, and not waited for.
async fn try_another(shared: &Shared, key: &FrameKey, order: &[SocketAddr]) {
    let idle = shared.upstreams().take_idle(shared.config.proxy.select, monotonic_ns());
    if let Some(idle) = idle.filter(|idle| order.first() != Some(idle)) {
        send(shared, key, idle).await;
        tracing::trace!(%idle, "tried an idle upstream");
    }
}
