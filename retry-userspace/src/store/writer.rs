//! Frames on their way to the store: queued by the fill, written in batches by one task.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use retry_common::counter::Counter;
use retry_common::key::FrameKey;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::claims::millis;
use super::fault::{Fault, is_refusal, judge};
use super::frame_name;
use super::link::Link;
use crate::backoff::{Failure, GaveUp};
use crate::counters::UserCounters;

/// Frames that may wait: a second of a busy fabric, or a failover of a quiet one.
const MOST_FRAMES: usize = 65_536;
/// Bytes that may wait.
const MOST_BYTES: usize = 64 << 20;
/// Frames written in one go, pipelined on the connection.
const BATCH: usize = 256;
/// How long a batch is kept back while the breaker is open.
const PAUSE: Duration = Duration::from_millis(100);

struct Frame {
    key: FrameKey,
    bytes: Bytes,
    ends: Instant,
}

/// The queue.
pub(super) struct Writer {
    queue: mpsc::Sender<Frame>,
    bytes: Arc<AtomicUsize>,
    counters: Arc<UserCounters>,
    waiting: Arc<AtomicUsize>,
}

impl Writer {
    /// Starts the task; one write may take `limit`.
    pub(super) fn start(
        link: Arc<Link>,
        limit: Duration,
        counters: Arc<UserCounters>,
        cancel: CancellationToken,
    ) -> Self {
        let (queue, frames) = mpsc::channel(MOST_FRAMES);
        let (bytes, waiting) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let task = Task {
            link,
            counters: Arc::clone(&counters),
            bytes: Arc::clone(&bytes),
            waiting: Arc::clone(&waiting),
            limit,
            cancel,
        };
        tokio::spawn(task.run(frames));
        Self { queue, bytes, counters, waiting }
    }

    /// Takes a frame; counts it when there is no room.
    pub(super) fn queue(&self, key: FrameKey, life: Duration, bytes: &[u8]) {
        if self.bytes.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len() > MOST_BYTES {
            self.bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
            self.counters.one(Counter::StoreQueueFull);
            return;
        }
        let frame = Frame { key, bytes: Bytes::copy_from_slice(bytes), ends: Instant::now() + life };
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if self.queue.try_send(frame).is_err() {
            self.bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.counters.one(Counter::StoreQueueFull);
        }
    }

    /// Frames that wait or are under way.
    pub(super) fn queued(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

struct Task {
    link: Arc<Link>,
    counters: Arc<UserCounters>,
    bytes: Arc<AtomicUsize>,
    waiting: Arc<AtomicUsize>,
    limit: Duration,
    cancel: CancellationToken,
}

impl Task {
    async fn run(self, mut frames: mpsc::Receiver<Frame>) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let got = tokio::select! {
                () = self.cancel.cancelled() => return,
                got = frames.recv_many(&mut batch, BATCH) => got,
            };
            if got == 0 {
                return;
            }
            let (frames, bytes) = (batch.len(), batch.iter().map(|frame: &Frame| frame.bytes.len()).sum());
            self.write(&mut batch).await;
            self.counters.add(Counter::StoreWriteFailed, u64::try_from(batch.len()).unwrap_or(0));
            batch.clear();
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.waiting.fetch_sub(frames, Ordering::Relaxed);
        }
    }

    /// Writes all of `batch`; what is left in it could not be written.
    async fn write(&self, batch: &mut Vec<Frame>) {
        loop {
            let left = tokio::sync::Mutex::new(&mut *batch);
            let outcome = self.link.retry.run(&self.cancel, |_| self.attempt(&left)).await;
            match outcome {
                // What one frame is refused for, the next would be: they wait until the operator mends it.
                Err(GaveUp::Definitive { error: Fault::Redis(error), .. }) if is_refusal(&error) => {
                    tokio::select! {
                        () = self.cancel.cancelled() => {}
                        () = tokio::time::sleep(PAUSE * 10) => {}
                    }
                    return;
                }
                Ok(()) | Err(GaveUp::Definitive { .. } | GaveUp::Cancelled { .. }) => return,
                // Down, or a master is being replaced: what still has a life when it is over is written then.
                Err(GaveUp::Exhausted { .. } | GaveUp::BreakerOpen { .. }) => {
                    tokio::select! {
                        () = self.cancel.cancelled() => return,
                        () = async { self.link.connected().await; tokio::time::sleep(PAUSE).await } => {}
                        () = tokio::time::sleep(PAUSE * 10) => {}
                    }
                    if batch.is_empty() {
                        return;
                    }
                }
            }
        }
    }

    /// One go at what is left.
    async fn attempt(&self, left: &tokio::sync::Mutex<&mut Vec<Frame>>) -> Result<(), Failure<Fault>> {
        let mut batch = left.lock().await;
        let (before, now) = (batch.len(), Instant::now());
        // Over while they waited.
        batch.retain(|frame| frame.ends > now);
        self.counters.add(Counter::StoreWriteFailed, u64::try_from(before - batch.len()).unwrap_or(0));
        // Nothing is tried, so that no operation fails.
        if !batch.is_empty() && !self.link.has_connection() {
            return Err(Failure::Transient(Fault::NotConnected));
        }
        let outcomes = join_all(batch.iter().map(|frame| async move {
            let mut set = redis::cmd("SET");
            let life = frame.ends.saturating_duration_since(now);
            set.arg(frame_name(&frame.key)).arg(&frame.bytes[..]).arg("PX").arg(millis(life));
            self.link.send(&set, self.limit).await
        }))
        .await;
        let mut outcomes = outcomes.into_iter();
        let mut worst = None;
        batch.retain(|_| match outcomes.next() {
            Some(Err(fault)) => {
                self.counters.one(Counter::CacheErrors);
                if !matches!(worst, Some(Failure::Definitive(_))) {
                    worst = Some(judge(fault));
                }
                true
            }
            Some(Ok(_)) | None => {
                self.counters.one(Counter::StoreWritten);
                false
            }
        });
        worst.map_or(Ok(()), Err)
    }
}
