//! From the settings to what each part works by.

use crate::beacon;
use crate::fabric::Fabric;
use crate::settings::Settings;

/// What the beacon says; `None` without an egress interface.
pub(super) fn beacon_settings(settings: &Settings, fabric: &Fabric) -> Option<beacon::Settings> {
    let first = fabric.egress.first()?;
    Some(beacon::Settings {
        nack_address: fabric.nack_addr,
        nack_port: settings.nack.port,
        tier: settings.beacon.tier,
        preference: settings.beacon.preference,
        interval: settings.beacon.interval,
        scope: settings.beacon.scope,
        group_id: settings.ingress.group_id,
        multicast: settings.repair.multicast,
        unicast: settings.repair.unicast,
        draining: settings.beacon.draining,
        has_parent: settings.proxy.enabled,
        instance: settings.telemetry.instance.clone(),
        interface: first.interface.index,
        source: first.source,
        hop_limit: settings.egress.hop_limit,
    })
}
