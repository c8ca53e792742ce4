//! Finds out whom to listen to, from names and manifests, and tells the sockets.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use retry_common::counter::Counter;
use retry_common::group::SourceMode;
use retry_common::wire::manifest::Manifest;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::resolve::{self, Names};
use super::sources::{Outcome, Sources, successor_advice};
use crate::clock::monotonic_ns;
use crate::counters::UserCounters;
use crate::settings::{Host, Settings, Ssm};

/// How often manifests are looked at for the end of their life, which they tell in seconds.
const TICK: Duration = Duration::from_secs(1);

/// What the control goes by.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The names.
    pub ssm: Ssm,
    /// `bind-source`.
    pub own: Option<Ipv6Addr>,
    /// `shard-bits`.
    pub shard_bits: u8,
    /// `-source-mode ssm`: without it manifests are only counted.
    pub is_ssm: bool,
}

impl From<&Settings> for Config {
    fn from(settings: &Settings) -> Self {
        Self {
            ssm: settings.ssm.clone(),
            own: settings.ingress.bind_source,
            shard_bits: settings.ingress.shard_bits.get(),
            is_ssm: settings.ingress.source_mode == SourceMode::Ssm,
        }
    }
}

/// What is known of the sources. The beacon listener tells it manifests, on a thread of its own; [`Control::keep`] does the rest.
#[derive(Debug)]
pub(crate) struct Control {
    config: Config,
    counters: Arc<UserCounters>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    sources: Sources,
    /// The last advice given: a manifest comes again and again.
    advice: Option<String>,
    /// It was told that there are too many sources.
    told_full: bool,
    told_ahead: bool,
}

impl Control {
    /// Knows the addresses of the settings, and no names yet.
    #[must_use]
    pub(crate) fn new(config: Config, counters: Arc<UserCounters>) -> Self {
        let state = State { sources: Sources::new(config.own), advice: None, told_full: false, told_ahead: false };
        let control = Self { config, counters, state: Mutex::new(state), changed: Notify::new() };
        control.know(&Names::default(), monotonic_ns());
        control
    }

    /// The sources to join now: what to start with, before any name is resolved.
    #[must_use]
    pub(crate) fn wanted(&self) -> BTreeSet<Ipv6Addr> {
        if self.config.is_ssm { self.state().sources.wanted(monotonic_ns()) } else { BTreeSet::new() }
    }

    /// Takes a manifest from the address `from`, received at `now_ns`. Those that are not followed are counted; of one that
    /// asks for too much the operator is told once besides.
    pub(crate) fn hear(&self, manifest: &Manifest<'_>, from: Ipv6Addr, now_ns: u64) {
        let mut state = self.state();
        let unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if state.sources.is_ahead(manifest, from, now_ns, unix_s) {
            if !std::mem::replace(&mut state.told_ahead, true) {
                tracing::warn!(
                    %from, epoch_s = manifest.epoch_s, now_s = unix_s,
                    "a shard manifest is not followed: it says that it was made more than five minutes from now; is this host's clock right?"
                );
            }
            return self.counters.one(Counter::ManifestsAhead);
        }
        match state.sources.handle_manifest(manifest, from, now_ns) {
            Outcome::Taken | Outcome::Shutdown => {}
            Outcome::Foreign => return self.counters.one(Counter::ManifestsForeign),
            Outcome::Stale => return self.counters.one(Counter::ManifestsStale),
            Outcome::Full => {
                if !state.told_full {
                    tracing::error!(%from, "a manifest is not followed: all together name too many sources");
                }
                state.told_full = true;
                return self.counters.one(Counter::ManifestsFull);
            }
        }
        let successor = manifest.successor.as_ref();
        let advice = successor.and_then(|next| successor_advice(next, self.config.shard_bits, self.config.is_ssm));
        if advice != state.advice {
            if let Some(advice) = &advice {
                tracing::warn!(%from, "{advice}");
            }
            state.advice = advice;
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Resolves names and keeps the sockets up to date until `cancel`: the sources of the data groups go to `data`, those
    /// of the beacon groups to `beacons`. Every `ssm-bootstrap-refresh` they are told anew, so that what could not be joined is
    /// tried again.
    pub(crate) async fn keep(
        self: Arc<Self>,
        data: Sender<BTreeSet<Ipv6Addr>>,
        beacons: Sender<BTreeSet<Ipv6Addr>>,
        cancel: CancellationToken,
    ) {
        if !self.config.is_ssm {
            return cancel.cancelled().await;
        }
        let (answers, mut names) = watch::channel(Names::default());
        let resolving = resolve::keep(self.names(), self.config.ssm.refresh, Arc::clone(&self.counters), answers);
        tokio::pin!(resolving);
        let mut tick = tokio::time::interval(TICK);
        let (mut told, mut told_beacons) = (None, None);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = &mut resolving => return,
                _ = names.changed() => {
                    self.know(&names.borrow_and_update(), monotonic_ns());
                    (told, told_beacons) = (None, None);
                }
                () = self.changed.notified() => {}
                _ = tick.tick() => {}
            }
            // At the end no receiver is left.
            drop(tell(&data, &mut told, self.wanted()));
            drop(tell(&beacons, &mut told_beacons, self.beacon_sources(&names.borrow())));
        }
    }

    /// Takes in what names resolve to.
    fn know(&self, names: &Names, now_ns: u64) {
        let ssm = &self.config.ssm;
        let mut state = self.state();
        if self.config.is_ssm {
            state.sources.set_publishers(names.of(&ssm.publishers));
            state.sources.set_senders(names.of(&ssm.manifests), now_ns);
        }
    }

    /// Whose beacons, manifests and announcements are wanted.
    fn beacon_sources(&self, names: &Names) -> BTreeSet<Ipv6Addr> {
        let ssm = &self.config.ssm;
        let all = [&ssm.beacons, &ssm.manifests, &ssm.subtree_announcers];
        let mut sources: BTreeSet<Ipv6Addr> = all.into_iter().flat_map(|hosts| names.of(hosts)).collect();
        if let Some(own) = self.config.own {
            sources.remove(&own);
        }
        sources
    }

    fn names(&self) -> BTreeSet<String> {
        let ssm = &self.config.ssm;
        let all = [&ssm.publishers, &ssm.manifests, &ssm.beacons, &ssm.subtree_announcers];
        all.into_iter()
            .flatten()
            .filter_map(|host| match host {
                Host::Name(name) => Some(name.clone()),
                Host::Address(_) => None,
            })
            .collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends a set that has not just been sent.
fn tell(
    to: &Sender<BTreeSet<Ipv6Addr>>,
    told: &mut Option<BTreeSet<Ipv6Addr>>,
    now: BTreeSet<Ipv6Addr>,
) -> Result<(), std::sync::mpsc::SendError<BTreeSet<Ipv6Addr>>> {
    if told.as_ref() == Some(&now) {
        return Ok(());
    }
    *told = Some(now.clone());
    to.send(now)
}

#[cfg(test)]
mod tests;
