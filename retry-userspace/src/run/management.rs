//! The daemon behind the management API.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use retry_common::key::FrameKey;
use retry_common::wire::frame::Frame;

use super::reload::{Outcome, Reload};
use super::state::State;
use crate::admin::manage::{
    Backend, BackendError, ConfigOutcome, ConfigRefused, Members, PutError, PutOutcome, RedisMembers, RedisNode,
    StoredFrame, Whence,
};
use crate::beacon::registry::SharedRegistry;
use crate::clock::monotonic_ns;
use crate::framelog::{Log, Put, Removed};
use crate::ingress::fill::{Fill, Refused, StoredFrom};
use crate::metrics::{Snapshot, Source};
use crate::settings::Described;
use crate::store::{Node, Store, Unavailable};

/// What the API reaches.
pub(super) struct Management {
    pub(super) state: Arc<State>,
    pub(super) fill: Arc<Fill>,
    pub(super) log: Log,
    pub(super) store: Option<Store>,
    pub(super) registry: Arc<SharedRegistry>,
    pub(super) reload: Arc<Reload>,
    pub(super) instance: String,
}

impl Management {
    fn look_up(&self, key: &FrameKey) -> Option<StoredFrame> {
        let now_ns = monotonic_ns();
        let record = self.log.look_up(key, now_ns)?;
        let mut bytes = Vec::new();
        // Overwritten meanwhile: it is as if it had not been there.
        self.log.copy(&record, &mut bytes).then_some(())?;
        let life_left = Duration::from_nanos(record.header().expires_ns.saturating_sub(now_ns));
        found(bytes.into(), life_left, Whence::Log)
    }
}

fn found(bytes: Bytes, life_left: Duration, whence: Whence) -> Option<StoredFrame> {
    let class = Frame::parse(&bytes).ok()?.head().class()?;
    Some(StoredFrame { bytes, life_left, class, whence })
}

fn unavailable(why: Unavailable) -> BackendError {
    BackendError(format!("the shared store: {why}"))
}

impl Backend for Management {
    fn get(&self, key: FrameKey) -> BoxFuture<'_, Result<Option<StoredFrame>, BackendError>> {
        Box::pin(async move {
            if let Some(frame) = self.look_up(&key) {
                return Ok(Some(frame));
            }
            let Some(store) = &self.store else {
                return Ok(None);
            };
            let stored = store.fetch(&key).await.map_err(unavailable)?;
            Ok(stored.and_then(|stored| found(stored.bytes, stored.life, Whence::Redis)))
        })
    }

    fn put(&self, key: FrameKey, bytes: Bytes, life: Option<Duration>) -> BoxFuture<'_, Result<PutOutcome, PutError>> {
        Box::pin(async move {
            let life_ms = life.map(|life| u32::try_from(life.as_millis()).unwrap_or(u32::MAX));
            let fill = Arc::clone(&self.fill);
            // The log may be locked: a task that waits for it would hold up others.
            let put = tokio::task::spawn_blocking(move || fill.put_for(&key, &bytes, life_ms, StoredFrom::Api));
            let put = put.await.map_err(|error| PutError::Refused(error.to_string()))?;
            match put {
                Ok(Put::Stored) => Ok(PutOutcome::Stored),
                Ok(Put::Replaced) => Ok(PutOutcome::Replaced),
                Ok(Put::Duplicate) => Ok(PutOutcome::Duplicate),
                Ok(Put::Conflict) => Err(PutError::Refused("another frame with this key is held".to_owned())),
                Ok(Put::TooLarge) | Err(Refused::TooLarge) => Err(PutError::TooLarge),
                Ok(Put::Busy) | Err(Refused::Busy) => Err(BackendError(Refused::Busy.to_string()).into()),
                Err(refused) => Err(PutError::Refused(refused.to_string())),
            }
        })
    }

    fn delete(&self, key: FrameKey) -> BoxFuture<'_, Result<bool, BackendError>> {
        Box::pin(async move {
            // The shared store first: when it fails nothing has changed, and the caller may try again.
            let there = match &self.store {
                Some(store) => store.delete(&key).await.map_err(unavailable)?,
                None => false,
            };
            let fill = Arc::clone(&self.fill);
            let removed = tokio::task::spawn_blocking(move || fill.remove(&key)).await;
            match removed.map_err(|error| BackendError(error.to_string()))? {
                Removed::Yes => Ok(true),
                Removed::NotThere => Ok(there),
                Removed::Busy => Err(BackendError(Refused::Busy.to_string())),
            }
        })
    }

    fn stats(&self) -> Snapshot {
        self.state.snapshot()
    }

    fn config(&self) -> Vec<Described> {
        self.reload.in_force().describe().to_vec()
    }

    fn set_config(
        &self,
        values: Option<BTreeMap<String, Option<String>>>,
    ) -> BoxFuture<'_, Result<ConfigOutcome, ConfigRefused>> {
        Box::pin(async move {
            let reload = Arc::clone(&self.reload);
            // Files are read, names may be looked up, and NACKs under way are waited for.
            let done = tokio::task::spawn_blocking(move || match values {
                None => reload.read_again("the management API"),
                Some(values) => reload.set(&values),
            });
            let done = done.await.map_err(|error| ConfigRefused(error.to_string()))?;
            let Outcome { changed, waiting } = done.map_err(|error| ConfigRefused(error.to_string()))?;
            Ok(ConfigOutcome { changed, waiting })
        })
    }

    fn members(&self) -> BoxFuture<'_, Members> {
        Box::pin(async move {
            let redis = match &self.store {
                None => RedisMembers::NotConfigured,
                Some(store) => match store.nodes().await {
                    Ok(nodes) => RedisMembers::Nodes(nodes.into_iter().map(node).collect()),
                    Err(kind) => RedisMembers::Unavailable(match store.why() {
                        Some(why) => format!("{kind}: {why}"),
                        None => kind.to_string(),
                    }),
                },
            };
            Members { instance: self.instance.clone(), endpoints: self.registry.endpoints(), redis }
        })
    }

    fn drain(&self) -> bool {
        self.state.drain()
    }

    fn is_draining(&self) -> bool {
        self.state.is_draining()
    }
}

fn node(node: Node) -> RedisNode {
    let Node { address, role, link, id, master, slots } = node;
    RedisNode { address, role, link, id, master, slots }
}
