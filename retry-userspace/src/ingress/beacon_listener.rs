//! The listener on the beacon groups: manifests are [`Control`]'s, ADVERTs are others' business.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddrV6};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use retry_common::counter::Counter;
use retry_common::group::{self, SourceMode};
use retry_common::wire::advert::Advert;
use retry_common::wire::manifest::{Manifest, ManifestError};

use super::joins::{Delivery, JoinError};
use super::source_discovery::Control;
use super::subscription::{GroupSet, Subscription};
use crate::acl::Acl;
use crate::beacon::{self, BEACON_PORT};
use crate::clock::monotonic_ns;
use crate::counters::UserCounters;
use crate::fabric::Fabric;
use crate::net::batch::{Batch, LONGEST_DATAGRAM, Readiness};
use crate::settings::Settings;
use crate::stop_flag::StopFlag;

/// Datagrams taken in one system call.
const BATCH: usize = 32;
/// How long a shutdown, or a change of the sockets, may go unseen.
const PATIENCE: Duration = Duration::from_millis(100);
/// Type byte of a manifest.
const MANIFEST: u8 = 0x40;

/// Takes ADVERTs, and who sent them.
pub(crate) type OnAdvert = Box<dyn Fn(&[u8], SocketAddrV6) + Send>;

/// Where beacons and manifests are heard.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The beacon groups and, with sources named, that of subtree announcements.
    pub groups: GroupSet,
}

impl Config {
    /// As the settings ask, on these interfaces.
    #[must_use]
    pub(crate) fn from(settings: &Settings, fabric: &Fabric) -> Self {
        let ingress = &settings.ingress;
        let beacon_groups = |mode| beacon::groups(settings.beacon.scope, mode, ingress.group_id);
        let any_source = beacon_groups(SourceMode::Asm);
        let by_source = match ingress.source_mode {
            SourceMode::Asm => Vec::new(),
            SourceMode::Ssm => {
                let announced = group::address(ingress.group_prefix, ingress.group_id, group::SUBTREE_GROUPS);
                let mut groups: Vec<Ipv6Addr> =
                    beacon_groups(SourceMode::Ssm).into_iter().filter(|group| !any_source.contains(group)).collect();
                // Subtree announcements concern listeners; joined, they pass switches that snoop on this link.
                groups.push(Ipv6Addr::from(announced));
                groups
            }
        };
        let (delivery, interface) = (Delivery::Single, fabric.ingress.index);
        Self { groups: GroupSet { delivery, interface, port: BEACON_PORT, any_source, by_source } }
    }
}

/// Hears beacons and manifests. It shares its port with the NACK socket, which keeps what is sent to its address: an exact address goes first.
pub(crate) struct BeaconListener {
    /// Its sockets.
    pub subscription: Subscription,
    on_advert: OnAdvert,
    /// Takes manifests.
    control: Arc<Control>,
    /// Whose are believed.
    acl: Arc<Acl>,
    counters: Arc<UserCounters>,
}

impl BeaconListener {
    /// Joins the groups; those by source from the newest set out of `wanted`, so from none at first.
    ///
    /// # Errors
    /// [`JoinError`]; none of the joins stays.
    pub(crate) fn open(
        config: Config,
        wanted: Receiver<BTreeSet<Ipv6Addr>>,
        on_advert: OnAdvert,
        control: Arc<Control>,
        acl: Arc<Acl>,
        counters: Arc<UserCounters>,
    ) -> Result<Self, JoinError> {
        let subscription = Subscription::open(config.groups, &BTreeSet::new(), wanted)?;
        Ok(Self { subscription, on_advert, control, acl, counters })
    }

    /// Listens until `stop`.
    ///
    /// # Errors
    /// What a receive returns.
    pub(crate) fn run(mut self, stop: &StopFlag) -> io::Result<()> {
        let mut batch = Batch::new(BATCH, LONGEST_DATAGRAM);
        while !stop.is_asked() {
            // What is still queued of a source that leaves says nothing any more.
            self.subscription.reconcile(|_| {});
            let sockets: Vec<_> = self.subscription.fds().collect();
            let mut readiness = Readiness::new(sockets.iter().copied());
            readiness.wait(PATIENCE)?;
            for at in readiness.ready() {
                batch.recv_now(&sockets[at])?;
                for datagram in batch.datagrams() {
                    // What was sent to one of our other addresses is no beacon, and what announces subtrees is for
                    // listeners: both say nothing to us.
                    if datagram.destination.is_some_and(is_beacon_group) {
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
        if self.acl.refuses(IpAddr::V6(*from.ip())) {
            let is_manifest = bytes.get(6) == Some(&MANIFEST);
            self.counters.one(if is_manifest { Counter::ManifestsDenied } else { Counter::AdvertsDenied });
            return;
        }
        if Advert::parse(bytes).is_ok() {
            (self.on_advert)(bytes, from);
            return;
        }
        match Manifest::parse(bytes) {
            Ok(manifest) => {
                self.counters.one(Counter::ManifestsHeard);
                self.control.hear(&manifest, *from.ip(), monotonic_ns());
            }
            Err(ManifestError::Magic | ManifestError::Type) => self.counters.one(Counter::AdvertsRefused),
            Err(ManifestError::Size) if bytes.get(6) != Some(&MANIFEST) => self.counters.one(Counter::AdvertsRefused),
            Err(_) => self.counters.one(Counter::ManifestsRefused),
        }
    }
}

fn is_beacon_group(destination: Ipv6Addr) -> bool {
    destination.is_multicast() && destination.segments()[7] == group::BEACON
}

#[cfg(test)]
mod tests;
