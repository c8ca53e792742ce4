//! Names, variables and defaults.

use super::*;

/// Flag, variable, default: those of the field's program, then ours.
const SURFACE: &[(&str, &str, &str)] = &[
    ("mc-iface", "MC_IFACE", "eth0"),
    ("listen-port", "LISTEN_PORT", "9001"),
    ("scope", "MC_SCOPE", "site"),
    ("mc-group-id", "MC_GROUP_ID", "0x000B"),
    ("source-mode", "SOURCE_MODE", "asm"),
    ("bind-source", "BIND_SOURCE", ""),
    ("ssm-bootstrap-manifest", "SSM_BOOTSTRAP_MANIFEST", ""),
    ("ssm-bootstrap-beacon", "SSM_BOOTSTRAP_BEACON", ""),
    ("ssm-bootstrap-subtree-announce", "SSM_BOOTSTRAP_SUBTREE_ANNOUNCE", ""),
    ("ssm-publishers-static", "SSM_PUBLISHERS_STATIC", ""),
    ("ssm-bootstrap-refresh", "SSM_BOOTSTRAP_REFRESH", "30s"),
    ("shard-bits", "SHARD_BITS", "2"),
    ("subtree-data-enabled", "SUBTREE_DATA_ENABLED", "false"),
    ("beef-enabled", "BEEF_ENABLED", "false"),
    ("beef-shard-bits", "BEEF_SHARD_BITS", "0"),
    ("cache-backend", "CACHE_BACKEND", "memory"),
    ("redis-addr", "REDIS_ADDR", ""),
    ("cache-dial-timeout", "CACHE_DIAL_TIMEOUT", "1s"),
    ("cache-op-timeout", "CACHE_OP_TIMEOUT", "1s"),
    ("cache-ttl", "CACHE_TTL", "60s"),
    ("cache-ttl-tx", "CACHE_TTL_TX", "60s"),
    ("cache-ttl-block", "CACHE_TTL_BLOCK", "10m"),
    ("cache-ttl-subtree", "CACHE_TTL_SUBTREE", "5m"),
    ("cache-ttl-anchor", "CACHE_TTL_ANCHOR", "2m"),
    ("cache-ttl-beef", "CACHE_TTL_BEEF", "60s"),
    ("cache-max-keys", "CACHE_MAX_KEYS", "0"),
    ("nack-port", "NACK_PORT", "9300"),
    ("nack-addr", "NACK_ADDR", ""),
    ("nack-workers", "NACK_WORKERS", ""),
    ("suppress-ack", "SUPPRESS_ACK", "false"),
    ("suppress-miss", "SUPPRESS_MISS", "false"),
    ("egress-iface", "EGRESS_IFACE", "eth0"),
    ("egress-port", "EGRESS_PORT", "9001"),
    ("egress-multicast-loop", "EGRESS_MULTICAST_LOOP", "false"),
    ("dedup-window", "DEDUP_WINDOW", "60s"),
    ("proxy-enabled", "PROXY_ENABLED", "false"),
    ("upstream-retry-endpoints", "UPSTREAM_RETRY_ENDPOINTS", ""),
    ("proxy-timeout", "PROXY_TIMEOUT", "300ms"),
    ("proxy-max-endpoints", "PROXY_MAX_ENDPOINTS", "0"),
    ("proxy-dedup-window", "PROXY_DEDUP_WINDOW", "60s"),
    ("proxy-workers", "PROXY_WORKERS", "4"),
    ("proxy-queue", "PROXY_QUEUE", "1024"),
    ("rl-ip-rate", "RL_IP_RATE", "100"),
    ("rl-ip-burst", "RL_IP_BURST", "10"),
    ("rl-chain-rate", "RL_CHAIN_RATE", "500"),
    ("rl-chain-window", "RL_CHAIN_WINDOW", "1m"),
    ("rl-sequence-max", "RL_SEQUENCE_MAX", "100"),
    ("rl-sequence-window", "RL_SEQUENCE_WINDOW", "1m"),
    ("rl-group-rate", "RL_GROUP_RATE", "200"),
    ("rl-group-burst", "RL_GROUP_BURST", "50"),
    ("rl-throttle-response", "RL_THROTTLE_RESPONSE", "false"),
    ("beacon-enabled", "BEACON_ENABLED", "true"),
    ("beacon-tier", "BEACON_TIER", "0"),
    ("beacon-preference", "BEACON_PREFERENCE", "128"),
    ("beacon-interval", "BEACON_INTERVAL", "60s"),
    ("beacon-scope", "BEACON_SCOPE", "site"),
    ("beacon-flags-multicast", "BEACON_FLAGS_MULTICAST", "true"),
    ("beacon-flags-unicast", "BEACON_FLAGS_UNICAST", "false"),
    ("beacon-flags-draining", "BEACON_FLAGS_DRAINING", "false"),
    ("tee-listen", "TEE_LISTEN", ""),
    ("mc-join-enabled", "MC_JOIN_ENABLED", "true"),
    ("drain-timeout", "DRAIN_TIMEOUT", "0s"),
    ("metrics-addr", "METRICS_ADDR", ":9400"),
    ("instance", "INSTANCE_ID", ""),
    ("log-format", "LOG_FORMAT", "text"),
    ("log-level", "LOG_LEVEL", "info"),
    ("debug", "DEBUG", "false"),
    ("otlp-endpoint", "OTLP_ENDPOINT", ""),
    ("otlp-interval", "OTLP_INTERVAL", "30s"),
    ("trace-sampling", "TRACE_SAMPLING", "0"),
    // Ours.
    ("repair-holddown", "REPAIR_HOLDDOWN", "10ms"),
    ("dedup-mode", "DEDUP_MODE", "eventual"),
    ("dedup-repeat-after", "DEDUP_REPEAT_AFTER", "1s"),
    ("egress-hoplimit", "EGRESS_HOPLIMIT", "1"),
    ("xdp", "XDP", "auto"),
    ("xdp-lease", "XDP_LEASE", "10s"),
    ("bpffs", "BPFFS", "/sys/fs/bpf/retry-endpoint"),
    ("cache-memory", "CACHE_MEMORY", "256m"),
    ("cache-memory-long", "CACHE_MEMORY_LONG", "64m"),
    ("limit-table-entries", "LIMIT_TABLE_ENTRIES", "65536"),
];

/// Another value that is accepted, for each setting that can be set by now.
const OTHERS: &[(&str, &str)] = &[
    ("mc-iface", "fabric0"),
    ("listen-port", "9002"),
    ("scope", "org"),
    ("mc-group-id", "0x00FF"),
    ("bind-source", "fd10::20"),
    ("shard-bits", "12"),
    ("subtree-data-enabled", "true"),
    ("beef-enabled", "true"),
    ("beef-shard-bits", "4"),
    ("cache-ttl", "30s"),
    ("cache-ttl-tx", "31s"),
    ("cache-ttl-block", "32s"),
    ("cache-ttl-subtree", "33s"),
    ("cache-ttl-anchor", "34s"),
    ("cache-ttl-beef", "35s"),
    ("cache-max-keys", "1000"),
    ("nack-port", "9301"),
    ("nack-addr", "fd10::21"),
    ("nack-workers", "3"),
    ("suppress-ack", "true"),
    ("suppress-miss", "true"),
    ("egress-iface", "fabric0,fabric1"),
    ("egress-port", "9003"),
    ("egress-multicast-loop", "true"),
    ("rl-ip-rate", "0"),
    ("rl-ip-burst", "11"),
    ("rl-chain-rate", "501"),
    ("rl-chain-window", "2m"),
    ("rl-sequence-max", "101"),
    ("rl-sequence-window", "3m"),
    ("rl-group-rate", "201"),
    ("rl-group-burst", "51"),
    ("rl-throttle-response", "true"),
    ("beacon-enabled", "false"),
    ("beacon-tier", "254"),
    ("beacon-preference", "255"),
    ("beacon-interval", "1s"),
    ("beacon-scope", "both"),
    ("beacon-flags-multicast", "true"),
    ("beacon-flags-unicast", "true"),
    ("beacon-flags-draining", "true"),
    ("metrics-addr", "127.0.0.1:9401"),
    ("instance", "one"),
    ("log-format", "json"),
    ("log-level", "warn"),
    ("debug", "true"),
    ("repair-holddown", "0"),
    ("egress-hoplimit", "8"),
    ("xdp", "off"),
    ("xdp-lease", "1s"),
    ("bpffs", "/run/bpf"),
    ("cache-memory", "64m"),
    ("cache-memory-long", "16m"),
    ("limit-table-entries", "1024"),
];

#[test]
fn every_setting_exists_with_its_variable_and_its_default() {
    let defaults = of(&[]);
    for (name, env, default) in SURFACE {
        let flag = FLAGS.iter().find(|flag| flag.name == *name).unwrap_or_else(|| panic!("-{name} exists"));
        assert_eq!((flag.env().as_str(), flag.default), (*env, *default), "-{name}");
        assert_eq!(text(&defaults, name), (*default, SetBy::Default), "-{name}");
    }
    let unknown: Vec<_> =
        FLAGS.iter().map(|flag| flag.name).filter(|name| !SURFACE.iter().any(|(known, ..)| known == name)).collect();
    assert_eq!(unknown, [""; 0], "settings that the surface does not have");
    assert_eq!(FLAGS.len(), SURFACE.len(), "a setting stands twice");
}

#[test]
fn the_defaults_in_force_are_those_of_the_table() {
    let s = of(&[]);
    assert_eq!((s.ingress.mc_iface.as_str(), s.ingress.listen_port, s.ingress.group_id), ("eth0", 9001, 11));
    assert_eq!((s.ingress.group_prefix, s.ingress.shard_bits.get()), (0xFF05, 2));
    assert_eq!((s.ingress.bind_source, s.ingress.subtree_data, s.ingress.beef), (None, false, None));
    let lives = Class::ALL.map(|class| s.cache.ttl(class).as_secs());
    assert_eq!(lives, [60, 600, 300, 120, 60], "tx, block, subtree, anchor, beef");
    assert_eq!((s.cache.memory, s.cache.memory_long, s.cache.max_keys), (256 << 20, 64 << 20, 0));
    assert_eq!((s.nack.port, s.nack.addr, s.nack.suppress_ack, s.nack.suppress_miss), (9300, None, false, false));
    assert_eq!(s.nack.workers, std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get));
    assert_eq!((&s.egress.ifaces[..], s.egress.port), (&["eth0".to_owned()][..], 9001));
    assert_eq!((s.egress.multicast_loop, s.egress.hop_limit), (false, 1));
    assert_eq!((s.repair.multicast, s.repair.unicast, s.repair.holddown.as_millis()), (true, false, 10));
    let l = &s.limits;
    assert_eq!((l.ip_rate, l.ip_burst, l.chain_rate, l.chain_window.as_secs()), (100, 10, 500, 60));
    assert_eq!((l.sequence_max, l.sequence_window.as_secs(), l.group_rate, l.group_burst), (100, 60, 200, 50));
    assert_eq!((l.throttle_response, l.table_entries), (false, 65_536));
    let b = &s.beacon;
    assert_eq!((b.enabled, b.tier, b.preference, b.interval.as_secs(), b.draining), (true, 0, 128, 60, false));
    assert!(matches!(b.scope, BeaconScope::Site));
    assert_eq!((s.xdp.mode, s.xdp.lease.as_secs()), (XdpMode::Auto, 10));
    assert_eq!(s.xdp.bpffs.as_os_str(), "/sys/fs/bpf/retry-endpoint");
    assert_eq!(s.admin.metrics_addr, "[::]:9400".parse().expect("an address"));
    assert_eq!(
        (s.telemetry.format, s.telemetry.level, s.telemetry.debug),
        (LogFormat::Text, tracing::Level::INFO, false)
    );
    assert!(!s.telemetry.instance.is_empty(), "the host name");
}

/// Each setting by its flag alone and by its variable alone.
#[test]
fn every_setting_can_be_set_by_flag_and_by_variable() {
    for (name, env, _) in SURFACE {
        let later = FLAGS.iter().any(|flag| flag.name == *name && flag.later);
        let other = OTHERS.iter().find(|(known, _)| known == name);
        assert_eq!(other.is_some(), !later, "-{name}: another value stands in OTHERS unless it is for later");
        let Some((_, value)) = other else { continue };
        assert_eq!(text(&of(&[&format!("-{name}={value}")]), name), (*value, SetBy::Flag));
        let by_env = parse(&[], &[(env, value)]).unwrap_or_else(|stop| panic!("{env}={value}: {stop}"));
        assert_eq!(text(&by_env, name), (*value, SetBy::Env));
    }
}

/// The older names of the chain limit.
#[test]
fn aliases() {
    assert_eq!(of(&["-rl-sender-rate", "7"]).limits.chain_rate, 7);
    assert_eq!(of(&["--rl-sender-window=7s"]).limits.chain_window.as_secs(), 7);
    let env = |env: &[(&str, &str)]| parse(&[], env).expect("accepted").limits;
    assert_eq!(env(&[("RL_SENDER_RATE", "8")]).chain_rate, 8);
    assert_eq!(env(&[("RL_SENDER_WINDOW", "8s")]).chain_window.as_secs(), 8);
    assert_eq!(env(&[("RL_SENDER_RATE", "8"), ("RL_CHAIN_RATE", "9")]).chain_rate, 9, "the new name wins");
    assert_eq!(of(&["-rl-chain-rate", "1", "-rl-sender-rate", "2"]).limits.chain_rate, 2, "the last flag wins");
}

/// No field is fed by its neighbour's flag.
#[test]
fn every_flag_reaches_its_own_field() {
    let args: Vec<String> = OTHERS.iter().map(|(name, value)| format!("-{name}={value}")).collect();
    let s = of(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!((s.ingress.mc_iface.as_str(), s.ingress.listen_port, s.ingress.group_id), ("fabric0", 9002, 0xFF));
    assert_eq!((s.ingress.group_prefix, s.ingress.shard_bits.get(), s.ingress.subtree_data), (0xFF08, 12, true));
    assert_eq!(s.ingress.bind_source, Some("fd10::20".parse().expect("an address")));
    assert_eq!(s.ingress.beef.map(BeefBits::get), Some(4));
    assert_eq!((s.cache.memory, s.cache.memory_long, s.cache.max_keys), (64 << 20, 16 << 20, 1000));
    assert_eq!(Class::ALL.map(|class| s.cache.ttl(class).as_secs()), [31, 32, 33, 34, 35]);
    assert_eq!((s.nack.port, s.nack.workers, s.nack.suppress_ack, s.nack.suppress_miss), (9301, 3, true, true));
    assert_eq!(s.nack.addr, Some("fd10::21".parse().expect("an address")));
    assert_eq!(s.egress.ifaces, ["fabric0", "fabric1"]);
    assert_eq!((s.egress.port, s.egress.multicast_loop, s.egress.hop_limit), (9003, true, 8));
    assert_eq!((s.repair.unicast, s.repair.holddown), (true, Duration::ZERO));
    let l = &s.limits;
    assert_eq!((l.ip_rate, l.ip_burst, l.chain_rate, l.chain_window.as_secs()), (0, 11, 501, 120));
    assert_eq!((l.sequence_max, l.sequence_window.as_secs(), l.group_rate, l.group_burst), (101, 180, 201, 51));
    assert_eq!((l.throttle_response, l.table_entries), (true, 1024));
    let b = &s.beacon;
    assert_eq!((b.enabled, b.tier, b.preference, b.interval.as_secs(), b.draining), (false, 254, 255, 1, true));
    assert_eq!((s.xdp.mode, s.xdp.lease.as_secs(), s.xdp.bpffs.as_os_str()), (XdpMode::Off, 1, "/run/bpf".as_ref()));
    assert_eq!(s.admin.metrics_addr, "127.0.0.1:9401".parse().expect("an address"));
    assert_eq!((s.telemetry.instance.as_str(), s.telemetry.format), ("one", LogFormat::Json));
    assert_eq!((s.telemetry.level, s.telemetry.debug), (tracing::Level::DEBUG, true));
    let one = of(&["-suppress-miss"]).nack;
    assert_eq!((one.suppress_ack, one.suppress_miss), (false, true));
    let one = of(&["-beacon-flags-multicast=false", "-beacon-flags-unicast"]);
    assert_eq!((one.repair.multicast, one.repair.unicast, one.beacon.draining), (false, true, false));
}
