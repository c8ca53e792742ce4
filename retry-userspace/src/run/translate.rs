//! From the settings to what each part works by.

use std::collections::HashSet;
use std::net::Ipv6Addr;

use retry_common::abi;
use retry_common::group::{self, Sharding};

use crate::beacon;
use crate::fabric::Fabric;
use crate::framelog::lives_ms;
use crate::ingress::fill::FillRules;
use crate::settings::Settings;

/// Every group that the settings imply.
pub(super) fn groups(settings: &Settings) -> Vec<Ipv6Addr> {
    let ingress = &settings.ingress;
    group_indexes(settings)
        .into_iter()
        .map(|index| Ipv6Addr::from(group::address(ingress.group_prefix, ingress.group_id, index)))
        .collect()
}

/// Their indexes.
fn group_indexes(settings: &Settings) -> Vec<u16> {
    let ingress = &settings.ingress;
    group::joined(ingress.shard_bits, ingress.subtree_data, ingress.beef).collect()
}

/// Threads that the groups are spread over; `asked` 0 leaves it to us.
///
/// One thread needs 1.4 to 1.7 µs of CPU for a frame of 400 bytes, two need 2.1 to 2.3 µs and three 2.7 µs (batches are
/// smaller, and all append to one log). So a fabric has to be spread over many groups, and the host have CPUs to spare,
/// before a second one brings more than it costs.
pub(super) fn ingress_workers(asked: usize, groups: usize, cpus: usize) -> usize {
    let wanted = match asked {
        0 if groups <= 16 => 1,
        0 => (cpus / 4).clamp(1, 4),
        asked => asked,
    };
    wanted.clamp(1, groups.max(1))
}

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

/// What decides about a received frame.
pub(super) fn fill_rules(settings: &Settings, fabric: &Fabric) -> FillRules {
    FillRules {
        sharding: Sharding { shard: settings.ingress.shard_bits, beef: settings.ingress.beef.unwrap_or_default() },
        life_ms: lives_ms(&settings.cache),
        // Whether it fits the interfaces is asked when it leaves: their MTUs change.
        kernel_max: abi::KERNEL_FRAME_MAX,
        own_sources: fabric.egress.iter().map(|egress| egress.source).collect::<HashSet<_>>(),
        own_port: settings.nack.port,
    }
}

#[cfg(test)]
mod tests {
    use super::ingress_workers;

    #[test]
    fn a_second_receiving_thread_needs_groups_and_cpus() {
        // A fabric of 16 shards has more groups than that: those of blocks too.
        let cases = [((0, 16, 64), 1), ((0, 17, 7), 1), ((0, 17, 8), 2), ((0, 4_098, 96), 4), ((0, 0, 8), 1)];
        for ((asked, groups, cpus), workers) in cases {
            assert_eq!(ingress_workers(asked, groups, cpus), workers, "{groups} groups, {cpus} CPUs");
        }
    }

    #[test]
    fn who_asks_for_threads_gets_them_while_there_are_groups() {
        for ((asked, groups, cpus), workers) in [((1, 4_098, 96), 1), ((3, 5, 1), 3), ((64, 5, 2), 5)] {
            assert_eq!(
                ingress_workers(asked, groups, cpus),
                workers,
                "{asked} asked for, {groups} groups, {cpus} CPUs"
            );
        }
    }
}
