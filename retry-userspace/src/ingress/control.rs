//! Finds out whom to listen to: names are resolved again and again, and an ear on the beacon groups hears manifests (and
//! ADVERTs, which are others' business).

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::net::NetError;
use retry_common::counter::Counter;
use retry_common::wire::advert::Advert;
use retry_common::wire::manifest::{Manifest, ManifestError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::listening::Listening;
use super::sources::{Outcome, Sources, successor_advice};
use crate::clock::monotonic_ns;
use crate::counters::UserCounters;
use crate::net::batch::{Batch, Readiness};
use crate::settings::{Host, Ssm};

/// Datagrams taken in one system call.
const BATCH: usize = 32;
/// The longest datagram.
const LONGEST: usize = 65_536;
/// How long a shutdown, or a new set of sources, may go unseen.
const PATIENCE: Duration = Duration::from_millis(100);
/// How often manifests are looked at for the end of their life.
const TICK: Duration = Duration::from_secs(1);

/// Takes ADVERTs, and who sent them.
pub type OnAdvert = Box<dyn Fn(&[u8], SocketAddrV6) + Send>;
/// A manifest, and who sent it.
pub type Heard = (Vec<u8>, Ipv6Addr);

/// The ear on the beacon groups.
pub struct Ear {
    /// Its sockets.
    pub listening: Listening,
    /// Takes ADVERTs, and who sent them.
    pub on_advert: OnAdvert,
    /// Where manifests go.
    pub manifests: mpsc::UnboundedSender<Heard>,
    /// Counts.
    pub counters: Arc<UserCounters>,
}

impl Ear {
    /// Listens until `shutdown`.
    ///
    /// # Errors
    /// What a receive returns.
    pub fn run(mut self, shutdown: &AtomicBool) -> io::Result<()> {
        let mut batch = Batch::new(BATCH, LONGEST);
        while !shutdown.load(Ordering::Relaxed) {
            // What is still queued of a source that leaves says nothing any more.
            self.listening.reconcile(|_| {});
            let sockets: Vec<_> = self.listening.fds().collect();
            let mut readiness = Readiness::new(sockets.iter().copied());
            readiness.wait(PATIENCE)?;
            for at in readiness.ready() {
                batch.recv_now(&sockets[at])?;
                for datagram in batch.datagrams() {
                    // A NACK that was sent to this port is the NACK socket's.
                    if datagram.destination.is_some_and(|to| to.is_multicast()) {
                        let mut from = datagram.source;
                        // A link-local NACK address needs the interface that it was heard on.
                        from.set_scope_id(datagram.interface.unwrap_or(from.scope_id()));
                        self.take(datagram.bytes, from);
                    }
                }
            }
        }
        Ok(())
    }

    fn take(&self, bytes: &[u8], from: SocketAddrV6) {
        if Advert::parse(bytes).is_ok() {
            (self.on_advert)(bytes, from);
            return;
        }
        match Manifest::parse(bytes) {
            Ok(_) => {
                self.counters.one(Counter::ManifestsHeard);
                // Nobody takes them any more at the end.
                let _ = self.manifests.send((bytes.to_vec(), *from.ip()));
            }
            Err(ManifestError::Magic | ManifestError::Type) => self.counters.one(Counter::AdvertsRefused),
            Err(ManifestError::Size) if bytes.get(6) != Some(&0x40) => self.counters.one(Counter::AdvertsRefused),
            Err(_) => self.counters.one(Counter::ManifestsRefused),
        }
    }
}

/// What the control task goes by.
pub struct Config {
    /// The names.
    pub ssm: Ssm,
    /// `bind-source`.
    pub own: Option<Ipv6Addr>,
    /// `shard-bits`.
    pub shard_bits: u8,
    /// `-source-mode ssm`: without it manifests are only counted.
    pub is_ssm: bool,
}

/// Keeps the sources up to date until `cancel`: those of the data groups go to `data`, those of the beacon groups to `ear`.
pub async fn keep(
    config: Config,
    mut manifests: mpsc::UnboundedReceiver<Heard>,
    data: Sender<BTreeSet<Ipv6Addr>>,
    ear: Sender<BTreeSet<Ipv6Addr>>,
    counters: Arc<UserCounters>,
    cancel: CancellationToken,
) {
    let mut control = Control {
        sources: Sources::new(config.own),
        names: Names::default(),
        told: BTreeSet::new(),
        told_ear: BTreeSet::new(),
        advice: None,
        config,
        data,
        ear,
        counters,
    };
    let mut refresh = tokio::time::interval(control.config.ssm.refresh);
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = refresh.tick() => control.resolve().await,
            _ = tick.tick() => {}
            heard = manifests.recv() => match heard {
                Some((bytes, from)) => control.take(&bytes, from),
                None => return,
            },
        }
        control.tell();
    }
}

struct Control {
    config: Config,
    sources: Sources,
    names: Names,
    told: BTreeSet<Ipv6Addr>,
    told_ear: BTreeSet<Ipv6Addr>,
    advice: Option<String>,
    data: Sender<BTreeSet<Ipv6Addr>>,
    ear: Sender<BTreeSet<Ipv6Addr>>,
    counters: Arc<UserCounters>,
}

impl Control {
    async fn resolve(&mut self) {
        if !self.config.is_ssm {
            return;
        }
        let ssm = &self.config.ssm;
        let all = [&ssm.publishers, &ssm.manifests, &ssm.beacons, &ssm.subtree_announcers];
        self.names.resolve(all.into_iter().flatten(), &self.counters).await;
        self.sources.set_publishers(self.names.of(&ssm.publishers));
        self.sources.set_senders(self.names.of(&ssm.manifests));
    }

    fn take(&mut self, bytes: &[u8], from: Ipv6Addr) {
        let Ok(manifest) = Manifest::parse(bytes) else { return };
        match self.sources.handle_manifest(&manifest, from, monotonic_ns()) {
            Outcome::Taken | Outcome::Shutdown => {}
            Outcome::Foreign => return self.counters.one(Counter::ManifestsForeign),
            Outcome::Stale | Outcome::Full => return self.counters.one(Counter::ManifestsStale),
        }
        let successor = manifest.successor.as_ref();
        let advice = successor.and_then(|next| successor_advice(next, self.config.shard_bits, self.config.is_ssm));
        if advice != self.advice {
            if let Some(advice) = &advice {
                tracing::warn!(%from, "{advice}");
            }
            self.advice = advice;
        }
    }

    /// Tells the sockets what has changed.
    fn tell(&mut self) {
        if !self.config.is_ssm {
            return;
        }
        let wanted = self.sources.wanted(monotonic_ns());
        if wanted != self.told {
            // Nobody listens any more at the end.
            let _ = self.data.send(wanted.clone());
            self.told = wanted;
        }
        let ssm = &self.config.ssm;
        let mut ear = self.names.of(&ssm.beacons);
        ear.extend(self.names.of(&ssm.manifests));
        ear.extend(self.names.of(&ssm.subtree_announcers));
        if ear != self.told_ear {
            let _ = self.ear.send(ear.clone());
            self.told_ear = ear;
        }
    }
}

/// The last answer for each name.
#[derive(Default)]
struct Names(BTreeMap<String, BTreeSet<Ipv6Addr>>);

impl Names {
    /// Asks for every name once. Where there is no answer the last one stands.
    async fn resolve<'a>(&mut self, hosts: impl Iterator<Item = &'a Host>, counters: &UserCounters) {
        let names: BTreeSet<&String> = hosts
            .filter_map(|host| match host {
                Host::Name(name) => Some(name),
                Host::Address(_) => None,
            })
            .collect();
        if names.is_empty() {
            return;
        }
        // Made anew each time: it follows a changed resolv.conf, and remembers no old answers.
        let resolver = TokioResolver::builder_tokio().and_then(|builder| builder.build());
        for name in names {
            match answer(resolver.as_ref(), name).await {
                Ok(addresses) => {
                    self.0.insert(name.clone(), addresses);
                }
                Err(error) => {
                    counters.one(Counter::ResolveErrors);
                    tracing::warn!(name, error, "a name does not resolve: its last answer stands");
                }
            }
        }
    }

    /// The addresses of these hosts, as far as they are known.
    fn of(&self, hosts: &[Host]) -> BTreeSet<Ipv6Addr> {
        let mut all = BTreeSet::new();
        for host in hosts {
            match host {
                Host::Address(address) => {
                    all.insert(*address);
                }
                Host::Name(name) => all.extend(self.0.get(name).into_iter().flatten()),
            }
        }
        all
    }
}

async fn answer(resolver: Result<&TokioResolver, &NetError>, name: &str) -> Result<BTreeSet<Ipv6Addr>, String> {
    let resolver = resolver.map_err(ToString::to_string)?;
    let found = resolver.lookup_ip(name).await.map_err(|error| error.to_string())?;
    let addresses: BTreeSet<Ipv6Addr> = found
        .iter()
        .filter_map(|address| match address {
            std::net::IpAddr::V6(v6) => Some(v6),
            std::net::IpAddr::V4(_) => None,
        })
        .collect();
    if addresses.is_empty() { Err("no IPv6 address".to_owned()) } else { Ok(addresses) }
}
