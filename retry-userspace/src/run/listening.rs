//! Who is listened to, as the settings ask.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use retry_common::group::{self, SourceMode};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::StartError;
use super::translate::groups;
use crate::beacon::registry::SharedRegistry;
use crate::beacon::{self, BEACON_PORT};
use crate::counters::UserCounters;
use crate::fabric::Fabric;
use crate::ingress::control::{self, Ear};
use crate::ingress::joins::JoinError;
use crate::ingress::listening::{Listening, Place};
use crate::settings::{Host, Settings};

/// A set of sources, on its way.
type Wanted = Receiver<BTreeSet<Ipv6Addr>>;

/// The data groups. Sources that are known by address are joined at once.
pub(super) fn data(settings: &Settings, fabric: &Fabric, wanted: Wanted) -> Result<Listening, JoinError> {
    let is_ssm = settings.ingress.source_mode == SourceMode::Ssm;
    let groups = groups(settings);
    let (any_source, by_source) = if is_ssm { (Vec::new(), groups) } else { (groups, Vec::new()) };
    let place = Place { interface: fabric.ingress.index, port: settings.ingress.listen_port, any_source, by_source };
    let mut listening = Listening::open(place, wanted)?;
    for host in settings.ssm.publishers.iter().filter(|_| is_ssm) {
        if let Host::Address(address) = host
            && Some(*address) != settings.ingress.bind_source
        {
            listening.join(*address)?;
        }
    }
    Ok(listening)
}

/// Starts the task that finds sources, and opens the ear on the beacon groups.
pub(super) fn start_control(
    settings: &Settings,
    fabric: &Fabric,
    data: Sender<BTreeSet<Ipv6Addr>>,
    registry: &Arc<SharedRegistry>,
    counters: &Arc<UserCounters>,
    cancel: &CancellationToken,
) -> Result<Ear, StartError> {
    let (ear_sources, wanted) = std::sync::mpsc::channel();
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
    let place = Place { interface: fabric.ingress.index, port: BEACON_PORT, any_source, by_source };
    let (manifests, heard) = mpsc::unbounded_channel();
    let advert_registry = Arc::clone(registry);
    let ear = Ear {
        listening: Listening::open(place, wanted)?,
        on_advert: Box::new(move |bytes, from| advert_registry.hear(bytes, from)),
        manifests,
        counters: Arc::clone(counters),
    };
    let config = control::Config {
        ssm: settings.ssm.clone(),
        own: settings.ingress.bind_source,
        shard_bits: settings.ingress.shard_bits.get(),
        is_ssm: settings.ingress.source_mode == SourceMode::Ssm,
    };
    tokio::spawn(control::keep(config, heard, data, ear_sources, Arc::clone(counters), cancel.clone()));
    Ok(ear)
}
