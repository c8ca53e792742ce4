//! From the settings to what each part works by.

use std::collections::HashSet;
use std::net::Ipv6Addr;
use std::time::Duration;

use retry_common::abi::{self, setting_flag};
use retry_common::group::{self, Sharding, SourceMode};
use retry_common::holddown::HoldDown;
use retry_common::limits::table;
use retry_common::limits::{TokenBucket, Window};
use retry_common::wire::frame::Class;

use crate::beacon;
use crate::clock::nanoseconds;
use crate::fabric::Fabric;
use crate::framelog::Sizes;
use crate::ingress::fill::FillRules;
use crate::net::multicast;
use crate::repair::Route;
use crate::settings::{Backend, DedupMode, Settings, XdpMode};

/// What the kernel program and the engine go by.
pub(super) fn kernel_settings(settings: &Settings, fabric: &Fabric, hash_seed: u64) -> abi::Settings {
    let sizes = Sizes::new(settings.cache.memory, settings.cache.memory_long);
    let here = fabric.egress.iter().any(|egress| egress.interface.index == fabric.nack.index);
    let flags = [
        (settings.repair.multicast, setting_flag::MULTICAST),
        (settings.repair.unicast, setting_flag::UNICAST),
        (settings.nack.suppress_ack, setting_flag::SUPPRESS_ACK),
        (settings.nack.suppress_miss, setting_flag::SUPPRESS_MISS),
        (settings.limits.throttle_response, setting_flag::THROTTLE_RESPONSE),
        // Such repairs go through the stack, which alone can loop them back; and the daemon alone can claim before it sends.
        (settings.egress.multicast_loop || dedups(settings, DedupMode::Strict), setting_flag::DAEMON_MULTICAST),
        (dedups(settings, DedupMode::Eventual), setting_flag::ANNOUNCE),
        (settings.cache.backend == Backend::Redis, setting_flag::STORE),
        (settings.proxy.enabled, setting_flag::RECOVERY),
        (here, setting_flag::EGRESS_HERE),
        (settings.xdp.mode == XdpMode::Skb, setting_flag::DAEMON_FRAMES),
        (settings.ingress.source_mode == SourceMode::Ssm, setting_flag::NAMED_SOURCES),
    ]
    .into_iter()
    .fold(0, |flags, (on, flag)| if on { flags | flag } else { flags });
    let limits = &settings.limits;
    abi::Settings {
        generation: 1,
        lease_until_ns: 0,
        hash_seed,
        limits: abi::Limits {
            address: TokenBucket::new(limits.ip_rate, limits.ip_burst),
            group: TokenBucket::new(limits.group_rate, limits.group_burst),
            sequence: Window::new(limits.sequence_max, nanoseconds(limits.sequence_window)),
            chain: Window::new(limits.chain_rate, nanoseconds(limits.chain_window)),
        },
        hold_down: HoldDown {
            ours_ns: nanoseconds(settings.repair.holddown),
            others_ns: if is_deduped(settings) { nanoseconds(repeat_after(settings)) } else { 0 },
        },
        layout: abi::LAYOUT,
        flags,
        nack_ifindex: fabric.nack.index,
        bucket_mask: sizes.buckets - 1,
        hold_down_mask: sizes.hold_down_words - 1,
        limit_mask: table::buckets(limits.table_entries) - 1,
        max_frame: fabric.max_frame(),
        nack_addr: fabric.nack_addr.octets(),
        nack_port: settings.nack.port.to_be_bytes(),
        egress_port: settings.egress.port.to_be_bytes(),
        life_ms: Class::ALL.map(|class| life_ms(settings, class)),
        ingress_ifindex: fabric.ingress.index,
        ingress_port: settings.ingress.listen_port.to_be_bytes(),
        group_prefix: settings.ingress.group_prefix.to_be_bytes(),
        group_id: settings.ingress.group_id.to_be_bytes(),
        unicast_hop_limit: fabric.nack.unicast_hop_limit().unwrap_or(64),
        multicast_hop_limit: settings.egress.hop_limit,
        shard_bits: settings.ingress.shard_bits.get(),
        beef_bits: settings.ingress.beef.unwrap_or_default().get(),
        nack_mac: fabric.nack.mac.unwrap_or_default(),
    }
}

/// True when instances keep out of each other's way.
pub(super) fn is_deduped(settings: &Settings) -> bool {
    !settings.redis.nodes.is_empty() && !settings.dedup.window.is_zero() && settings.repair.multicast
}

/// True when they do it so.
pub(super) fn dedups(settings: &Settings, mode: DedupMode) -> bool {
    is_deduped(settings) && settings.dedup.mode == mode
}

/// How long another instance's claim silences us.
pub(super) const fn repeat_after(settings: &Settings) -> Duration {
    if settings.dedup.repeat_after.is_zero() { settings.dedup.window } else { settings.dedup.repeat_after }
}

/// Every group that the settings imply.
pub(super) fn groups(settings: &Settings) -> Vec<Ipv6Addr> {
    let ingress = &settings.ingress;
    group_indexes(settings)
        .into_iter()
        .map(|index| Ipv6Addr::from(group::address(ingress.group_prefix, ingress.group_id, index)))
        .collect()
}

/// Their indexes.
pub(super) fn group_indexes(settings: &Settings) -> Vec<u16> {
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

/// Where multicast repairs go.
pub(super) fn route(settings: &Settings, fabric: &Fabric) -> Route {
    Route {
        group_prefix: settings.ingress.group_prefix,
        group_id: settings.ingress.group_id,
        lost: fabric.lost_lengths(),
        egress: fabric
            .egress
            .iter()
            .map(|egress| multicast::Egress {
                interface: egress.interface.index,
                source: egress.source,
                port: settings.egress.port,
                hop_limit: settings.egress.hop_limit,
            })
            .collect(),
    }
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
        life_ms: Class::ALL.map(|class| life_ms(settings, class)),
        // Whether it fits the interfaces is asked when it leaves: their MTUs change.
        kernel_max: abi::KERNEL_FRAME_MAX,
        own_sources: fabric.egress.iter().map(|egress| egress.source).collect::<HashSet<_>>(),
        own_port: settings.nack.port,
    }
}

fn life_ms(settings: &Settings, class: Class) -> u32 {
    u32::try_from(settings.cache.ttl(class).as_millis()).unwrap_or(u32::MAX)
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
