//! Reads the lists at the start, when their file has changed, and on SIGHUP.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use retry_common::counter::Counter;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::rules::{RulesError, Stamp};
use super::{Acl, Rules};
use crate::counters::UserCounters;

/// Between two looks at the file. One that changes is read when two looks in a row have found the same of it: a program that
/// writes to it has ended by then.
const LOOK: Duration = Duration::from_millis(500);

/// Puts the lists in force as they are now, and says in which state the file was.
///
/// # Errors
/// They cannot be read, or cannot stand.
pub(crate) fn load(acl: &Acl, counters: &UserCounters) -> Result<Option<Stamp>, RulesError> {
    let loaded = acl.source().read().and_then(|(rules, stamp)| acl.replace(&rules).map(|()| (rules, stamp)));
    let (rules, stamp) = loaded.inspect_err(|error| {
        if !matches!(error, RulesError::Unsteady { .. }) {
            counters.one(Counter::AclRefused);
        }
    })?;
    counters.one(Counter::AclLoaded);
    tell(&rules);
    Ok(stamp)
}

fn tell(rules: &Rules) {
    if rules.is_empty() {
        tracing::info!("-acl-allow, -acl-deny, -acl-file: none is set or has a rule: every source may ask");
        return;
    }
    let peers = rules.peers.as_ref().map_or_else(|| "all".to_owned(), |peers| peers.len().to_string());
    let others = if rules.allow.is_empty() { "may ask" } else { "are refused" };
    tracing::info!(
        allowed = rules.allow.len(),
        denied = rules.deny.len(),
        others,
        peers,
        "the lists of who may ask are in force"
    );
}

/// Follows the file, which was read in the state `done`, until `cancel`. Without one there is nothing to read.
pub(crate) async fn follow(
    acl: Arc<Acl>,
    mut done: Option<Stamp>,
    counters: Arc<UserCounters>,
    cancel: CancellationToken,
) {
    let Ok(mut hangups) = signal(SignalKind::hangup()) else {
        tracing::error!("-acl-file: no signal can be heard: the file is not followed");
        return;
    };
    let mut looks = tokio::time::interval(LOOK);
    let mut seen = done;
    loop {
        let is_told = tokio::select! {
            () = cancel.cancelled() => return,
            _ = hangups.recv() => true,
            _ = looks.tick() => false,
        };
        let Some(file) = acl.source().file else { continue };
        let now = stamp(&file).await;
        let is_steady = seen == now;
        seen = now;
        if !is_told && (done == now || !is_steady) {
            continue;
        }
        let (acl, counters) = (Arc::clone(&acl), Arc::clone(&counters));
        let loaded = tokio::task::spawn_blocking(move || load(&acl, &counters)).await;
        match loaded {
            Ok(Err(error @ RulesError::Unsteady { .. })) => tracing::debug!(%error, "the lists before stay in force"),
            Ok(Err(error)) => {
                tracing::error!(%error, "the lists of who may ask are not changed: those before stay in force");
                done = now;
            }
            Ok(Ok(stamp)) => done = stamp,
            // The runtime ends.
            Err(_) => return,
        }
    }
}

/// What is seen of the file; `None` when there is none.
async fn stamp(file: &Path) -> Option<Stamp> {
    let file = file.to_owned();
    tokio::task::spawn_blocking(move || Stamp::of(&file).ok()).await.ok().flatten()
}
