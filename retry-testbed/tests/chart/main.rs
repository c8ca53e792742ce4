//! The Helm charts: the field's, whose values the daemon takes, and the project's own (`deploy/helm`), in `ours` and
//! `document`.
//!
//! The field's Helm chart (0.5.3, for program 1.9.2): every value that its schema allows, rendered to its environment
//! variable, starts the real binary, or is refused for a reason that is the operator's own. `field/` holds the chart's
//! values, its schema and the environment that it renders for one instance.
//!
//! Several starts run at a time, each alone in its namespace. Rings are small, and XDP is off where a case is not about it,
//! so that a start costs little.

mod document;
mod helm;
mod migration;
mod ours;
mod start;
mod values;

use start::{Case, run_all};

/// What the chart renders by default, for a fabric whose manifests come from fd10::11.
const RENDERED: &str = include_str!("field/rendered-default.env");

/// The variables of a file in the form of an environment file.
fn rendered() -> Vec<(String, String)> {
    let lines = RENDERED.lines().filter_map(|line| line.split_once('='));
    lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The chart's own defaults, as root with XDP where it can be had, and as the user of its pod, who has no rights.
#[test]
fn the_defaults_together() {
    if !retry_testbed::scene::is_root("the_defaults_together") {
        return;
    }
    run_all(vec![
        Case::new("as root").in_default_mode(),
        Case::new("as uid 65532 without capabilities").in_default_mode().without_rights(),
    ]);
}

/// Each enumerated value, each boolean, the minimum and the maximum of each number in the schema.
#[test]
fn every_value_of_the_schema() {
    if !retry_testbed::scene::is_root("every_value_of_the_schema") {
        return;
    }
    let cases = values::of_the_schema();
    assert!(cases.len() > 50, "the schema has been read: {} cases", cases.len());
    run_all(cases);
}

/// What the schema leaves open, as operators and Helm write it.
#[test]
fn values_that_the_schema_leaves_open() {
    if !retry_testbed::scene::is_root("values_that_the_schema_leaves_open") {
        return;
    }
    let ssm_by = |name: &'static str, value: &'static str| {
        Case::new(&format!("ssm with {name} alone")).with("SSM_BOOTSTRAP_MANIFEST", "").with(name, value)
    };
    let proxied = |case: Case| case.with("PROXY_ENABLED", "true").with("UPSTREAM_RETRY_ENDPOINTS", "[fd10::9]:9300,");
    let with_redis = |case: Case| case.with("REDIS_ADDR", "[::1]:6379");
    run_all(vec![
        Case::of("NACK_WORKERS", "0"),
        Case::of("NACK_WORKERS", "2"),
        proxied(Case::of("PROXY_WORKERS", "0")),
        proxied(Case::of("PROXY_QUEUE", "2e+06")),
        proxied(Case::of("PROXY_MAX_ENDPOINTS", "100000")),
        Case::of("EGRESS_HOPLIMIT", "0"),
        Case::of("EGRESS_HOPLIMIT", "255"),
        Case::of("EGRESS_HOPLIMIT", "256").refused("-egress-hoplimit (from EGRESS_HOPLIMIT) 256: "),
        Case::of("EGRESS_HOPLIMIT", "-1").refused("-egress-hoplimit (from EGRESS_HOPLIMIT) -1: "),
        // Token buckets and windows of less than one a second, in the kernel too.
        Case::of("RL_IP_RATE", "0.5").with("RL_GROUP_RATE", "0.25").with("RL_CHAIN_RATE", "1.5").in_default_mode(),
        Case::of("RL_IP_RATE", "1e+06").with("RL_GROUP_RATE", "1e+06").with("RL_CHAIN_RATE", "2.5e+06"),
        Case::of("RL_IP_BURST", "2e+06").with("RL_GROUP_BURST", "5000000").with("RL_SEQUENCE_MAX", "1.5e+06"),
        Case::of("RL_IP_RATE", "0").with("RL_GROUP_RATE", "0").with("RL_CHAIN_RATE", "0").with("RL_SEQUENCE_MAX", "0"),
        Case::of("CACHE_MAX_KEYS", "1e+06"),
        Case::of("CACHE_MAX_KEYS", "-1"),
        Case::of("CACHE_MAX_KEYS", "1e+10"),
        Case::of("METRICS_ADDR", "localhost:9400"),
        Case::of("METRICS_ADDR", "[::1]:9400"),
        Case::of("METRICS_ADDR", "no-such-host.invalid:9400")
            .refused("-metrics-addr (from METRICS_ADDR) no-such-host.invalid:9400: "),
        ssm_by("SSM_BOOTSTRAP_BEACON", "fd10::11"),
        ssm_by("SSM_BOOTSTRAP_SUBTREE_ANNOUNCE", "fd10::11"),
        ssm_by("SSM_PUBLISHERS_STATIC", "fd10::11"),
        Case::of("SSM_BOOTSTRAP_MANIFEST", "").refused("-source-mode ssm needs it"),
        Case::new("a tee without the fabric's interface")
            .with("MC_JOIN_ENABLED", "false")
            .with("TEE_LISTEN", "[::1]:9002")
            .with("MC_IFACE", "absent0"),
        Case::of("MC_IFACE", "absent0").refused("-mc-iface absent0: "),
        Case::new("neither multicast nor unicast")
            .with("BEACON_FLAGS_MULTICAST", "false")
            .with("BEACON_FLAGS_UNICAST", "false")
            .in_default_mode(),
        Case::of("SSM_BOOTSTRAP_MANIFEST", "fd10::11,"),
        Case::of("SSM_PUBLISHERS_STATIC", "fd10::11,fd10::12,"),
        Case::of("EGRESS_IFACE", "eth0,"),
        Case::of("EGRESS_IFACE", ",").refused("-egress-iface (from EGRESS_IFACE) ,: "),
        Case::of("AEROSPIKE_HOSTS", "aero-0:3000,aero-1:3000")
            .with("AEROSPIKE_NAMESPACE", "cache")
            .with("AEROSPIKE_SET", "bre"),
        Case::of("CONTROL_GROUP_COMPAT", "asm-only"),
        Case::of("CONTROL_GROUP_COMPAT", "both"),
        Case::of("CONTROL_GROUP_COMPAT", "derived"),
        Case::of("BIND_SOURCE", "fd10::20"),
        Case::of("TRACE_SAMPLING", "1e-05"),
        // Durations are texts without bounds there.
        with_redis(Case::of("DEDUP_WINDOW", "24h")),
        with_redis(Case::of("DEDUP_WINDOW", "8760h")).with("DEDUP_MODE", "strict"),
        with_redis(Case::of("DEDUP_WINDOW", "0")),
        Case::of("RL_CHAIN_WINDOW", "24h").with("RL_SEQUENCE_WINDOW", "168h").in_default_mode(),
        Case::of("RL_CHAIN_WINDOW", "8760h").with("RL_CHAIN_RATE", "0.5").with("RL_SEQUENCE_WINDOW", "8760h"),
        proxied(Case::of("PROXY_TIMEOUT", "2h").with("PROXY_DEDUP_WINDOW", "24h")),
        proxied(Case::of("PROXY_DEDUP_WINDOW", "8760h")),
        with_redis(Case::of("CACHE_DIAL_TIMEOUT", "2h").with("CACHE_OP_TIMEOUT", "24h")),
        Case::of("SSM_BOOTSTRAP_REFRESH", "24h"),
        Case::of("SSM_BOOTSTRAP_REFRESH", "500ms"),
        Case::of("OTLP_INTERVAL", "500ms").with("OTLP_ENDPOINT", "[::1]:4317"),
        Case::of("OTLP_INTERVAL", "24h").with("OTLP_ENDPOINT", "[::1]:4317"),
        Case::of("CACHE_TTL", "168h").with("CACHE_TTL_TX", "1176h").in_default_mode(),
        // What a record or a datagram has no room for.
        Case::of("CACHE_TTL_BLOCK", "8760h")
            .refused("-cache-ttl-block (from CACHE_TTL_BLOCK) 8760h: 1ms to 1176h is accepted"),
        Case::of("BEACON_INTERVAL", "18h"),
        Case::of("BEACON_INTERVAL", "24h")
            .refused("-beacon-interval (from BEACON_INTERVAL) 24h: 1s to 18h is accepted"),
        Case::of("DEDUP_WINDOW", "87600h").refused("-dedup-window (from DEDUP_WINDOW) 87600h: 0 to 8760h is accepted"),
    ]);
}

/// Every value of the chart has a setting: none is left without effect in silence.
#[test]
fn every_value_of_the_chart_is_a_setting() {
    let known: Vec<&str> = retry_userspace::parts::settings::all().map(|flag| flag.env).collect();
    let unknown: Vec<_> = values::all().into_iter().filter(|name| !known.contains(&name.as_str())).collect();
    assert!(unknown.is_empty(), "no setting: {unknown:?}");
    for (name, _) in rendered() {
        assert!(known.contains(&name.as_str()), "no setting: {name}");
    }
}
