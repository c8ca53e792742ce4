//! Multicast repairs told between instances (`-dedup-mode eventual`): ours are announced in batches, the others' are
//! listened for. One message is the instance's name, then for each repair its key and its age in milliseconds when the message
//! was written: the wall clocks of instances differ, so no message tells a time. What a message itself takes is not part of
//! the age.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use redis::{RedisResult, Value};
use retry_common::counter::Counter;
use retry_common::key::FrameKey;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::claims::{claim_value, millis};
use super::fault::is_forbidden;
use super::link::{Link, PULSE};
use super::target::{Target, within};
use super::{Config, dedup_name};
use crate::backoff::{Exponential, Policy};
use crate::counters::UserCounters;
use crate::settings::Redis;

/// The channel of announcements.
const CHANNEL: &str = "bre:repairs";
/// Repairs that may wait to be announced.
const MOST: usize = 65_536;
/// Repairs announced in one go.
const BATCH: usize = 512;
/// Key and age.
const ENTRY: usize = 24;

/// Our own repairs, on their way.
pub(super) struct Announcer {
    queue: mpsc::Sender<(FrameKey, Instant)>,
    counters: Arc<UserCounters>,
}

impl Announcer {
    pub(super) fn start(
        config: &Config,
        link: Arc<Link>,
        counters: Arc<UserCounters>,
        cancel: CancellationToken,
    ) -> Self {
        let (queue, repairs) = mpsc::channel(MOST);
        let task = Task {
            link,
            counters: Arc::clone(&counters),
            instance: config.instance.clone(),
            window: config.dedup_window,
            limit: config.redis.op_timeout,
        };
        tokio::spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = task.run(repairs) => {}
            }
        });
        Self { queue, counters }
    }

    pub(super) fn queue(&self, key: FrameKey) {
        if self.queue.try_send((key, Instant::now())).is_err() {
            self.counters.one(Counter::DedupNotAnnounced);
        }
    }
}

struct Task {
    link: Arc<Link>,
    counters: Arc<UserCounters>,
    instance: String,
    window: Duration,
    limit: Duration,
}

impl Task {
    async fn run(&self, mut repairs: mpsc::Receiver<(FrameKey, Instant)>) {
        let mut batch = Vec::with_capacity(BATCH);
        while repairs.recv_many(&mut batch, BATCH).await > 0 {
            // The claim stands for instances that claim before they send; the message is for those that listen.
            let mut publish = redis::cmd("PUBLISH");
            let aged: Vec<_> = batch.iter().map(|(key, at)| (*key, at.elapsed())).collect();
            publish.arg(CHANNEL).arg(message(&self.instance, &aged));
            let claims = join_all(aged.iter().map(async |(key, age)| {
                let mut set = redis::cmd("SET");
                set.arg(dedup_name(key)).arg(claim_value(&self.instance, self.window));
                // What is left of its life tells its age.
                set.arg("PX").arg(millis(self.window.saturating_sub(*age)));
                self.link.ask(&set, self.limit).await
            }));
            let (told, claims) = tokio::join!(self.link.ask(&publish, self.limit), claims);
            let failed = claims.iter().filter(|claim| claim.is_err()).count() + usize::from(told.is_err());
            self.counters.add(Counter::CacheErrors, u64::try_from(failed).unwrap_or(0));
            // Other instances are not told again later: by then it says nothing.
            let outcome = if told.is_ok() { Counter::DedupAnnounced } else { Counter::DedupNotAnnounced };
            self.counters.add(outcome, u64::try_from(batch.len()).unwrap_or(0));
            batch.clear();
        }
    }
}

/// The other instances' repairs.
pub(super) struct Listener {
    pub(super) target: Arc<Target>,
    pub(super) instance: String,
    /// Longest wait for an answer.
    pub(super) limit: Duration,
    /// Repairs of this age or more say nothing any more.
    pub(super) oldest: Duration,
    pub(super) counters: Arc<UserCounters>,
    pub(super) on_repair: Box<dyn Fn(FrameKey, Duration) + Send + Sync>,
}

impl Listener {
    /// Listens until `cancel`, on every server that can be reached.
    pub(super) async fn run(self, redis: Redis, cancel: CancellationToken) {
        let policy = Exponential::new(&redis.retry);
        let mut waits = policy.waits();
        let (mut turn, mut told_refused) = (0, false);
        loop {
            let heard = tokio::select! {
                () = cancel.cancelled() => return,
                heard = self.listen(turn) => heard,
            };
            match heard {
                // It listened for a while before the connection ended.
                Ok(()) => (waits, told_refused) = (policy.waits(), false),
                // No other command would tell: all others may be allowed. A wrong password is told by the connection.
                Err(error) if is_forbidden(&error) && !told_refused => {
                    told_refused = true;
                    tracing::warn!(%error, "-redis-addr: the shared store does not let its user listen to {CHANNEL}: repairs of other instances are not heard of");
                }
                Err(error) => tracing::debug!(%error, "cannot listen for other instances' repairs"),
            }
            turn = turn.wrapping_add(1);
            let wait = waits.next().unwrap_or(redis.retry.max_delay);
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Listens until the connection ends, or the server answers on it no more.
    ///
    /// # Errors
    /// There is no server to listen to.
    async fn listen(&self, turn: usize) -> RedisResult<()> {
        let mut channel = self.target.listen(turn).await?;
        within(self.limit, channel.subscribe(CHANNEL)).await?;
        tracing::debug!("listening for other instances' repairs");
        let (mut asks, mut messages) = channel.split();
        loop {
            match tokio::time::timeout(PULSE, messages.next()).await {
                Ok(Some(message)) => self.take(message.get_payload_bytes()),
                Ok(None) => return Ok(()),
                // A listener sends nothing, so that TCP would never find out that the server is gone.
                Err(_) => {
                    if let Err(error) = within(self.limit, asks.ping::<Value>()).await {
                        tracing::debug!(%error, "other instances' repairs are not heard of any more");
                        return Ok(());
                    }
                }
            }
        }
    }

    fn take(&self, message: &[u8]) {
        let Some((instance, repairs)) = read(message) else {
            tracing::trace!("an announcement that cannot be read");
            return;
        };
        if instance == self.instance.as_bytes() {
            return;
        }
        for (key, age) in repairs {
            if age < self.oldest {
                self.counters.one(Counter::DedupHeard);
                (self.on_repair)(key, age);
            }
        }
    }
}

fn message(instance: &str, repairs: &[(FrameKey, Duration)]) -> Vec<u8> {
    let name = instance.as_bytes();
    let mut bytes = Vec::with_capacity(4 + name.len() + repairs.len() * ENTRY);
    bytes.extend(u32::try_from(name.len()).unwrap_or(0).to_be_bytes());
    bytes.extend(name);
    for (key, age) in repairs {
        bytes.extend(key.to_bytes());
        bytes.extend(u64::try_from(age.as_millis()).unwrap_or(u64::MAX).to_be_bytes());
    }
    bytes
}

fn read(message: &[u8]) -> Option<(&[u8], impl Iterator<Item = (FrameKey, Duration)> + '_)> {
    let (length, rest) = message.split_first_chunk::<4>()?;
    let (name, repairs) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    let entry = |entry: &[u8]| {
        let (key, age) = entry.split_first_chunk::<16>()?;
        Some((FrameKey::from_bytes(*key), Duration::from_millis(u64::from_be_bytes(age.try_into().ok()?))))
    };
    (repairs.len() % ENTRY == 0).then(|| (name, repairs.chunks_exact(ENTRY).filter_map(entry)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_message_is_read_back(instance in ".{0,20}", repairs in prop::collection::vec(any::<(u64, u64, u64)>(), 0..5)) {
            let repairs: Vec<_> = repairs.into_iter().map(|(flow, seq, age)| (FrameKey::new(flow, seq), Duration::from_millis(age))).collect();
            let bytes = message(&instance, &repairs);
            let (name, read) = read(&bytes).expect("our own");
            prop_assert_eq!(name, instance.as_bytes());
            prop_assert_eq!(read.collect::<Vec<_>>(), repairs);
        }

        #[test]
        fn no_message_panics(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some((_, repairs)) = read(&bytes) {
                prop_assert!(repairs.count() <= 4);
            }
        }
    }
}
