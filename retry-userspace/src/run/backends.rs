//! What lies beyond this instance, started as the settings ask: the shared store, and recovery from upstream.

use std::net::SocketAddrV6;
use std::sync::Arc;
use std::sync::mpsc::Sender as Replies;
use std::time::Duration;

use retry_common::key::FrameKey;
use tokio_util::sync::CancellationToken;

use super::StartError;
use crate::beacon::registry::SharedRegistry;
use crate::clock::{monotonic_ns, nanoseconds};
use crate::counters::UserCounters;
use crate::framelog::Log;
use crate::nack::pending::Reply;
use crate::recovery::{self, BoxFuture, Claims, NoClaims, Recovery};
use crate::settings::Settings;
use crate::store::{self, Store};

/// The shared store, when there is a `-redis-addr`.
pub(super) fn store(
    settings: &Settings,
    counters: &Arc<UserCounters>,
    log: &Log,
    cancel: &CancellationToken,
) -> Result<Option<Store>, StartError> {
    let Some(config) = store::Config::from(settings) else {
        return Ok(None);
    };
    let log = log.clone();
    let heard = move |key: FrameKey, age: Duration| {
        log.repaired_by_another(&key, monotonic_ns().saturating_sub(nanoseconds(age)));
    };
    Ok(Some(Store::start(config, Arc::clone(counters), heard, cancel.clone())?))
}

/// Recovery from upstream, with `-proxy-enabled`.
pub(super) fn recovery(
    settings: &Settings,
    counters: &Arc<UserCounters>,
    store: Option<&Store>,
    registry: &Arc<SharedRegistry>,
    replies: Replies<Reply>,
    cancel: &CancellationToken,
) -> Result<Option<Recovery>, StartError> {
    let Some(config) = recovery::Config::from(settings) else {
        return Ok(None);
    };
    let claims: Arc<dyn Claims> = match store {
        Some(store) => Arc::new(StoreClaims(store.clone())),
        None => Arc::new(NoClaims),
    };
    let (registry, discovers) = (Arc::clone(registry), settings.proxy.discover);
    let discover = move || -> Vec<SocketAddrV6> {
        if !discovers {
            return Vec::new();
        }
        // One that drains is on its way out, and is asked for nothing new.
        registry.endpoints().iter().filter(|one| !one.is_draining()).map(|one| one.nack).collect()
    };
    let on_frame = move |recovered| {
        // At the end no thread takes replies any more.
        let _ = replies.send(Reply::Recovered(recovered));
    };
    Ok(Some(Recovery::start(
        config,
        Arc::clone(counters),
        claims,
        Arc::new(discover),
        Arc::new(on_frame),
        cancel.clone(),
    )?))
}

/// Claims of recoveries in the shared store.
struct StoreClaims(Store);

impl Claims for StoreClaims {
    fn claim<'a>(&'a self, key: &'a FrameKey) -> BoxFuture<'a, bool> {
        Box::pin(async { self.0.claim_recovery(key).await.unwrap_or(true) })
    }

    fn release<'a>(&'a self, key: &'a FrameKey) -> BoxFuture<'a, ()> {
        Box::pin(self.0.release_recovery(key))
    }
}
