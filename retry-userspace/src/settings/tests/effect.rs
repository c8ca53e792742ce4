//! What settings make of each other, and what a value becomes.

use super::*;

fn lives(args: &[&str], env: &[(&str, &str)]) -> [u64; 5] {
    let settings = parse(args, env).unwrap_or_else(|stop| panic!("{args:?} {env:?}: {stop}"));
    Class::ALL.map(|class| settings.cache.ttl(class).as_secs())
}

/// An explicit class value beats an explicit cache-ttl, which beats the default; BEEF knows no cache-ttl.
#[test]
fn lives_of_classes() {
    // tx, block, subtree, anchor, beef
    for (args, env, expected) in [
        (&[][..], &[][..], [60, 600, 300, 120, 60]),
        (&["-cache-ttl", "7s"], &[], [7, 7, 7, 7, 60]),
        (&[], &[("CACHE_TTL", "7s")], [7, 7, 7, 7, 60]),
        // Set to its own default it is set all the same.
        (&["-cache-ttl", "60s"], &[], [60, 60, 60, 60, 60]),
        (&[], &[("CACHE_TTL", "60s")], [60, 60, 60, 60, 60]),
        (&["-cache-ttl-block", "9s"], &[], [60, 9, 300, 120, 60]),
        (&["-cache-ttl", "7s", "-cache-ttl-block", "9s"], &[], [7, 9, 7, 7, 60]),
        (&["-cache-ttl", "7s"], &[("CACHE_TTL_SUBTREE", "9s")], [7, 7, 9, 7, 60]),
        (&["-cache-ttl-anchor", "9s"], &[("CACHE_TTL", "7s")], [7, 7, 7, 9, 60]),
        (&["-cache-ttl", "7s", "-cache-ttl-tx=60s"], &[], [60, 7, 7, 7, 60]),
        (&["-cache-ttl-beef", "9s"], &[("CACHE_TTL", "7s")], [7, 7, 7, 7, 9]),
        (&["-cache-ttl", "7s"], &[("CACHE_TTL", "8s")], [7, 7, 7, 7, 60]),
    ] {
        assert_eq!(lives(args, env), expected, "{args:?} {env:?}");
    }
}

#[test]
fn group_addresses() {
    for (scope, prefix) in [("link", 0xFF02), ("site", 0xFF05), ("org", 0xFF08), ("global", 0xFF0E)] {
        assert_eq!(of(&["-scope", scope]).ingress.group_prefix, prefix, "{scope}");
    }
    for (text, id) in [("0x000B", 11), ("0X0b", 11), ("11", 11), ("0xFFFF", 0xFFFF), ("65535", 0xFFFF), ("0", 0)] {
        assert_eq!(of(&["-mc-group-id", text]).ingress.group_id, id, "{text}");
    }
    for bits in 1..=12u8 {
        assert_eq!(of(&["-shard-bits", &bits.to_string()]).ingress.shard_bits.get(), bits);
    }
    let beef = |args: &[&str]| of(args).ingress.beef.map(BeefBits::get);
    assert_eq!(beef(&["-beef-enabled"]), Some(0));
    assert_eq!(beef(&["-beef-enabled", "-beef-shard-bits", "12"]), Some(12));
    assert_eq!(beef(&["-beef-shard-bits", "12"]), None, "bits alone join nothing");
}

#[test]
fn words() {
    for (text, mode) in
        [("auto", XdpMode::Auto), ("native", XdpMode::Native), ("skb", XdpMode::Skb), ("off", XdpMode::Off)]
    {
        assert_eq!(of(&["-xdp", text]).xdp.mode, mode);
    }
    assert!(matches!(of(&["-beacon-scope", "site"]).beacon.scope, BeaconScope::Site));
    assert!(matches!(of(&["-beacon-scope", "org"]).beacon.scope, BeaconScope::Org));
    assert!(matches!(of(&["-beacon-scope", "global"]).beacon.scope, BeaconScope::Global));
    assert!(matches!(of(&["-beacon-scope", "both"]).beacon.scope, BeaconScope::All));
    assert_eq!(of(&["-log-format", "json"]).telemetry.format, LogFormat::Json);
}

#[test]
fn debug_lowers_the_log_level_and_never_raises_it() {
    use tracing::Level;
    for (args, level) in [
        (&["-log-level", "warn"][..], Level::WARN),
        (&["-log-level", "error"], Level::ERROR),
        (&["-debug"], Level::DEBUG),
        (&["-debug", "-log-level", "error"], Level::DEBUG),
        (&["-debug", "-log-level", "trace"], Level::TRACE),
        (&["-debug=false", "-log-level", "debug"], Level::DEBUG),
    ] {
        assert_eq!(of(args).telemetry.level, level, "{args:?}");
    }
}

#[test]
fn lists_and_addresses() {
    assert_eq!(of(&["-egress-iface", "a, b,c"]).egress.ifaces, ["a", "b", "c"]);
    assert_eq!(of(&["-bind-source", "fd10::20"]).ingress.bind_source, Some("fd10::20".parse().expect("an address")));
    for (text, expected) in [(":1", "[::]:1"), ("[::1]:9400", "[::1]:9400"), ("127.0.0.1:9400", "127.0.0.1:9400")] {
        assert_eq!(of(&["-metrics-addr", text]).admin.metrics_addr, expected.parse().expect("an address"));
    }
    assert_eq!(of(&["-nack-workers", "1"]).nack.workers, 1);
    assert_eq!(of(&["-bpffs", "/run/x"]).xdp.bpffs.as_os_str(), "/run/x");
    assert_eq!(of(&["-cache-memory", "1g"]).cache.memory, 1 << 30);
    assert_eq!(of(&["-instance", ""]).telemetry.instance, of(&[]).telemetry.instance, "the host name");
}
