//! Who is listened to, as the settings ask.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use retry_common::group::{self, SourceMode};
use tokio_util::sync::CancellationToken;

use super::StartError;
use super::translate::{groups, ingress_workers};
use crate::beacon::registry::SharedRegistry;
use crate::beacon::{self, BEACON_PORT};
use crate::counters::UserCounters;
use crate::datapath::KernelSources;
use crate::fabric::Fabric;
use crate::ingress::beacon_listener::BeaconListener;
use crate::ingress::joins::{Delivery, JoinError};
use crate::ingress::source_discovery::{self, Control};
use crate::ingress::subscription::{GroupSet, OnJoined, Subscription};
use crate::settings::Settings;

/// A set of sources, on its way.
type Wanted = Receiver<BTreeSet<Ipv6Addr>>;

/// What finds the sources out. It knows the addresses of the settings at once.
pub(super) fn control(settings: &Settings, counters: &Arc<UserCounters>) -> Arc<Control> {
    let config = source_discovery::Config {
        ssm: settings.ssm.clone(),
        own: settings.ingress.bind_source,
        shard_bits: settings.ingress.shard_bits.get(),
        is_ssm: settings.ingress.source_mode == SourceMode::Ssm,
    };
    Arc::new(Control::new(config, Arc::clone(counters)))
}

/// The data groups, a share for each receiving thread. Sources that are known by address are joined at once.
pub(super) fn data(
    settings: &Settings,
    fabric: &Fabric,
    control: &Control,
    wanted: Wanted,
    kernel: Option<KernelSources>,
) -> Result<Vec<Subscription>, JoinError> {
    let groups = groups(settings);
    let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let workers = ingress_workers(settings.ingress.workers, groups.len(), cpus);
    let (any_source, by_source) = match settings.ingress.source_mode {
        SourceMode::Asm => (groups, Vec::new()),
        SourceMode::Ssm => (Vec::new(), groups),
    };
    let delivery = Delivery::Merged;
    let group_set = GroupSet {
        delivery,
        interface: fabric.ingress.index,
        port: settings.ingress.listen_port,
        any_source,
        by_source,
    };
    let tell = kernel.map(|mut kernel| -> OnJoined {
        Box::new(move |sources| {
            if let Err(error) = kernel.set(sources) {
                tracing::error!(%error, "-fill: the kernel leaves frames of some sources to the daemon");
            }
        })
    });
    Subscription::open_shares(group_set, workers, &control.wanted(), wanted, tell)
}

/// Starts the task that finds sources, and opens the listener on the beacon groups.
pub(super) fn start_control(
    settings: &Settings,
    fabric: &Fabric,
    control: Arc<Control>,
    data: Sender<BTreeSet<Ipv6Addr>>,
    registry: &Arc<SharedRegistry>,
    counters: &Arc<UserCounters>,
    cancel: &CancellationToken,
) -> Result<BeaconListener, StartError> {
    let (beacon_sources, wanted) = std::sync::mpsc::channel();
    let beacon_groups = |mode| beacon::groups(settings.beacon.scope, mode, settings.ingress.group_id);
    let any_source = beacon_groups(SourceMode::Asm);
    let by_source = match settings.ingress.source_mode {
        SourceMode::Asm => Vec::new(),
        SourceMode::Ssm => {
            let index = group::SUBTREE_GROUPS;
            let announced = group::address(settings.ingress.group_prefix, settings.ingress.group_id, index);
            let mut groups: Vec<Ipv6Addr> =
                beacon_groups(SourceMode::Ssm).into_iter().filter(|group| !any_source.contains(group)).collect();
            // Subtree announcements concern listeners; joined, they pass switches that snoop on this link.
            groups.push(Ipv6Addr::from(announced));
            groups
        }
    };
    let delivery = Delivery::Single;
    let group_set = GroupSet { delivery, interface: fabric.ingress.index, port: BEACON_PORT, any_source, by_source };
    let advert_registry = Arc::clone(registry);
    let beacons = BeaconListener {
        subscription: Subscription::open(group_set, &BTreeSet::new(), wanted)?,
        on_advert: Box::new(move |bytes, from| advert_registry.hear(bytes, from)),
        control: Arc::clone(&control),
        counters: Arc::clone(counters),
    };
    tokio::spawn(control.keep(data, beacon_sources, cancel.clone()));
    Ok(beacons)
}
