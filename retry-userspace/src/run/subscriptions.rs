//! Who is listened to, as the settings ask.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use tokio_util::sync::CancellationToken;

use super::StartError;
use crate::beacon::registry::SharedRegistry;
use crate::counters::UserCounters;
use crate::datapath::KernelSources;
use crate::fabric::Fabric;
use crate::ingress::beacon_listener::{self, BeaconListener};
use crate::ingress::joins::JoinError;
use crate::ingress::source_discovery::Control;
use crate::ingress::subscription::{self, OnJoined, Subscription};
use crate::settings::Settings;

/// A set of sources, on its way.
type Wanted = Receiver<BTreeSet<Ipv6Addr>>;

/// The data groups, a share for each receiving thread. Sources that are known by address are joined at once.
pub(super) fn data(
    settings: &Settings,
    fabric: &Fabric,
    control: &Control,
    wanted: Wanted,
    kernel: Option<KernelSources>,
) -> Result<Vec<Subscription>, JoinError> {
    let Some(config) = subscription::Config::from(settings, fabric) else {
        return Ok(Vec::new());
    };
    let tell = kernel.map(|mut kernel| -> OnJoined {
        Box::new(move |sources| {
            if let Err(error) = kernel.set(sources) {
                tracing::error!(%error, "-fill: the kernel leaves frames of some sources to the daemon");
            }
        })
    });
    Subscription::open_shares(config, &control.wanted(), wanted, tell)
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
    let advert_registry = Arc::clone(registry);
    let beacons = BeaconListener::open(
        beacon_listener::Config::from(settings, fabric),
        wanted,
        Box::new(move |bytes, from| advert_registry.hear(bytes, from)),
        Arc::clone(&control),
        Arc::clone(counters),
    )?;
    tokio::spawn(control.keep(data, beacon_sources, cancel.clone()));
    Ok(beacons)
}
