//! The settings as an operator meets them: what is written, what comes of it, and the line when it cannot stand.

mod docs;
mod files;
mod forms;
mod refusals;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::time::Duration;

use retry_common::group::{BeefBits, Scope, SourceMode};
use retry_common::limits::Rate;
use retry_common::wire::advert::BeaconScope;
use retry_common::wire::frame::Class;

use super::*;

fn words(args: &[&str]) -> impl Iterator<Item = OsString> + use<> {
    ["retry-endpoint"].iter().chain(args).map(OsString::from).collect::<Vec<_>>().into_iter()
}

fn variables<'a>(env: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
    |name| env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
}

fn start(args: &[&str], env: &[(&str, &str)]) -> Result<Settings, Stop> {
    Settings::from_args_and_env(words(args), variables(env))
}

fn started(args: &[&str], env: &[(&str, &str)]) -> Settings {
    start(args, env).unwrap_or_else(|stop| panic!("{args:?} {env:?}: {stop}"))
}

fn refused(args: &[&str], env: &[(&str, &str)]) -> (String, u8) {
    let stop = start(args, env).err().unwrap_or_else(|| panic!("{args:?} {env:?} started"));
    assert!(!stop.to_stdout(), "{stop}");
    (stop.to_string(), stop.code())
}

fn in_force(settings: &Settings, name: &str) -> (String, SetBy) {
    let found = settings.describe().iter().find(|one| one.flag.name == name);
    found.map(|one| (one.value.clone(), one.set_by)).unwrap_or_else(|| panic!("no -{name}"))
}

/// What these are set with does not stand without them.
const PAIRED: [&str; 7] = [
    "redis-tls-cert",
    "redis-tls-key",
    "admin-tls-cert",
    "admin-tls-key",
    "proxy-enabled",
    "upstream-retry-endpoints",
    "proxy-discover",
];

/// For every setting a value that is not its default, and what has to be set with it.
const SAMPLES: &[(&str, &str, &[&str])] = &[
    ("mc-iface", "fabric0", &[]),
    ("listen-port", "9101", &[]),
    ("scope", "org", &[]),
    ("mc-group-id", "0x0C", &[]),
    ("source-mode", "ssm", &["-ssm-publishers-static=fd10::1"]),
    ("bind-source", "fd10::20", &[]),
    ("shard-bits", "5", &[]),
    ("subtree-data-enabled", "true", &[]),
    ("beef-enabled", "true", &[]),
    ("beef-shard-bits", "3", &["-beef-enabled"]),
    ("tee-listen", "[::1]:9002", &[]),
    ("mc-join-enabled", "false", &["-tee-listen=[::1]:9002"]),
    ("ingress-workers", "3", &[]),
    ("mc-rejoin-interval", "5s", &[]),
    ("ssm-bootstrap-manifest", "fd10::1,m.example", &[]),
    ("ssm-bootstrap-beacon", "fd10::1", &[]),
    ("ssm-bootstrap-subtree-announce", "fd10::1", &[]),
    ("ssm-publishers-static", "fd10::1", &[]),
    ("ssm-bootstrap-refresh", "10s", &[]),
    ("cache-memory", "1g", &[]),
    ("cache-memory-long", "128m", &[]),
    ("cache-max-keys", "1000", &[]),
    ("cache-ttl", "30s", &[]),
    ("cache-ttl-tx", "31s", &[]),
    ("cache-ttl-block", "11m", &[]),
    ("cache-ttl-subtree", "6m", &[]),
    ("cache-ttl-anchor", "3m", &[]),
    ("cache-ttl-beef", "1.5m", &[]),
    ("replace-after", "10s", &[]),
    ("cache-backend", "redis", &["-redis-addr=r:6379"]),
    ("aerospike-hosts", "aero-0:3000", &[]),
    ("aerospike-namespace", "frames", &[]),
    ("aerospike-set", "bre", &[]),
    ("nack-port", "9301", &[]),
    ("nack-addr", "fd10::20", &[]),
    ("nack-port-shared", "true", &[]),
    ("nack-workers", "1000", &[]),
    ("suppress-ack", "true", &[]),
    ("suppress-miss", "true", &[]),
    ("acl-allow", "fd10::/16,fd11::1", &[]),
    ("acl-deny", "fd10:0:0:1::/64", &[]),
    ("acl-file", "/etc/retry-endpoint/acl", &[]),
    ("proxied-from", "fd20::/16", &[]),
    ("publishers", "fd30::/16", &[]),
    ("hop-limit-min", "255", &[]),
    ("egress-iface", "eth1,eth2", &[]),
    ("egress-port", "9102", &[]),
    ("egress-multicast-loop", "true", &[]),
    ("egress-hoplimit", "8", &[]),
    ("beacon-flags-multicast", "false", &["-beacon-flags-unicast"]),
    ("beacon-flags-unicast", "true", &[]),
    ("repair-holddown", "20ms", &[]),
    ("rl-ip-rate", "1000", &[]),
    ("rl-ip-burst", "100", &[]),
    ("rl-chain-rate", "5000", &[]),
    ("rl-chain-window", "2m", &[]),
    ("rl-sequence-max", "1000", &[]),
    ("rl-sequence-window", "3m", &[]),
    ("rl-group-rate", "2000", &[]),
    ("rl-group-burst", "500", &[]),
    ("rl-source-bytes", "100000", &[]),
    ("rl-total-bytes", "1000000", &[]),
    ("unproven-factor", "3", &[]),
    ("rl-throttle-response", "true", &[]),
    ("known-listeners", "1000", &[]),
    ("limit-table-entries", "4096", &[]),
    ("redis-addr", "r:6379", &[]),
    ("cache-dial-timeout", "2s", &[]),
    ("cache-op-timeout", "200ms", &[]),
    ("redis-tls-ca", "/etc/ca.pem", &["-redis-addr=rediss://r"]),
    ("redis-tls-cert", "/etc/c.pem", &["-redis-addr=rediss://r", "-redis-tls-key=/etc/k.pem"]),
    ("redis-tls-key", "/etc/k.pem", &["-redis-addr=rediss://r", "-redis-tls-cert=/etc/c.pem"]),
    ("redis-retry-policy", "none", &[]),
    ("redis-retry-attempts", "4", &[]),
    ("redis-retry-delay", "1s", &[]),
    ("redis-retry-factor", "1.5", &[]),
    ("redis-retry-max-delay", "6s", &[]),
    ("redis-retry-jitter", "false", &[]),
    ("redis-retry-breaker", "7", &[]),
    ("redis-retry-breaker-open", "8s", &[]),
    ("dedup-window", "30s", &[]),
    ("dedup-mode", "strict", &[]),
    ("dedup-repeat-after", "2s", &[]),
    ("proxy-enabled", "true", &["-upstream-retry-endpoints=up:9300"]),
    ("upstream-retry-endpoints", "up:9300,[fd10::1]:9300", &["-proxy-enabled"]),
    ("proxy-discover", "true", &["-proxy-enabled"]),
    ("proxy-select", "rtt", &[]),
    ("state-dir", "/var/lib/retry-endpoint", &[]),
    ("proxy-timeout", "100ms", &[]),
    ("proxy-max-endpoints", "2", &[]),
    ("proxy-dedup-window", "30s", &[]),
    ("proxy-workers", "8", &[]),
    ("proxy-queue", "2048", &[]),
    ("proxy-retry-policy", "none", &[]),
    ("proxy-retry-attempts", "4", &[]),
    ("proxy-retry-delay", "1s", &[]),
    ("proxy-retry-factor", "1.5", &[]),
    ("proxy-retry-max-delay", "6s", &[]),
    ("proxy-retry-jitter", "false", &[]),
    ("proxy-retry-breaker", "7", &[]),
    ("proxy-retry-breaker-open", "8s", &[]),
    ("beacon-enabled", "false", &[]),
    ("beacon-tier", "1", &[]),
    ("beacon-preference", "200", &[]),
    ("beacon-interval", "5s", &[]),
    ("beacon-scope", "both", &[]),
    ("control-group-compat", "both", &[]),
    ("beacon-flags-draining", "true", &[]),
    ("xdp", "skb", &[]),
    ("fill", "daemon", &[]),
    ("bpf-handover", "false", &[]),
    ("daemon-lease", "300ms", &[]),
    ("bpf-lease", "3s", &[]),
    ("bpffs", "/sys/fs/bpf/other", &[]),
    ("bpf-object", "/run/retry-ebpf.o", &[]),
    ("metrics-addr", "[::1]:9401", &[]),
    ("admin-addr", "[::1]:9401", &[]),
    ("admin-token-file", concat!(env!("CARGO_MANIFEST_DIR"), "/src/settings/tests/token"), &[]),
    ("admin-tls-cert", "/etc/c.pem", &["-admin-addr=[::1]:1", "-admin-tls-key=/etc/k.pem"]),
    ("admin-tls-key", "/etc/k.pem", &["-admin-addr=[::1]:1", "-admin-tls-cert=/etc/c.pem"]),
    (
        "admin-tls-client-ca",
        "/etc/ca.pem",
        &["-admin-addr=[::1]:1", "-admin-tls-cert=/etc/c.pem", "-admin-tls-key=/etc/k.pem"],
    ),
    ("drain-timeout", "5s", &[]),
    ("shutdown-grace", "5s", &[]),
    ("instance", "endpoint-1", &[]),
    ("log-format", "json", &[]),
    ("log-level", "warn", &[]),
    ("debug", "true", &[]),
    ("latency-histograms", "false", &[]),
    ("top-talkers", "20", &[]),
    ("otlp-endpoint", "http://collector:4317", &[]),
    ("otlp-interval", "10s", &[]),
    ("trace-sampling", "0.1", &[]),
    ("seccomp", "log", &[]),
    ("config", concat!(env!("CARGO_MANIFEST_DIR"), "/src/settings/tests/settings.toml"), &[]),
    ("env-file", concat!(env!("CARGO_MANIFEST_DIR"), "/src/settings/tests/variables.env"), &[]),
];

#[test]
fn every_setting_has_a_sample() {
    let names: Vec<&str> = all().map(|flag| flag.name).collect();
    let once: BTreeSet<&str> = names.iter().copied().collect();
    assert_eq!(once.len(), names.len(), "a setting stands twice");
    assert_eq!(SAMPLES.iter().map(|(name, ..)| *name).collect::<Vec<_>>(), names);
    for (name, value, _) in SAMPLES {
        assert_ne!(rows::find(name).expect("a setting").default, *value, "{name}");
    }
}

#[test]
fn a_flag_beats_the_variable_and_the_variable_the_default() {
    for (name, value, with) in SAMPLES {
        let flag = rows::find(name).expect("a setting");
        if !PAIRED.contains(name) {
            let default = in_force(&started(with, &[]), name);
            assert_eq!(default.1, SetBy::Default, "{name}");
            assert_ne!(default.0, *value, "{name}");
        }

        let env = flag.env;
        assert_eq!(in_force(&started(with, &[(env, value)]), name), ((*value).to_owned(), SetBy::Env), "{env}");

        let written = format!("-{name}={value}");
        let args: Vec<&str> = with.iter().copied().chain([written.as_str()]).collect();
        assert_eq!(in_force(&started(&args, &[]), name), ((*value).to_owned(), SetBy::Flag), "{name}");
        // What the variable says does not count then, not even when it is nonsense.
        assert_eq!(in_force(&started(&args, &[(env, "no\nsense")]), name).1, SetBy::Flag, "{name}");
    }
}

/// No row without a field, but those that are accepted and unused: the typed settings differ once a setting has another
/// value.
#[test]
fn every_setting_fills_a_field() {
    let fields = |mut settings: Settings| {
        settings.described.clear();
        format!("{settings:?}")
    };
    let samples = SAMPLES.iter().filter(|(name, ..)| !name.starts_with("aerospike-"));
    for (name, value, with) in samples {
        let written = format!("-{name}={value}");
        let args: Vec<&str> = with.iter().copied().chain([written.as_str()]).collect();
        let without = started(if PAIRED.contains(name) { &[] } else { with }, &[]);
        assert_ne!(fields(started(&args, &[])), fields(without), "{name}");
    }
}

#[test]
fn an_idle_value_is_accepted_however_it_is_written() {
    for arg in [
        "-source-mode=asm",
        "-ssm-bootstrap-refresh=0.5m",
        "-ssm-publishers-static=",
        "-cache-backend=memory",
        "-redis-addr=",
        "-dedup-mode=eventual",
        "-proxy-enabled=F",
        "-mc-join-enabled=1",
        "-drain-timeout=0",
        "-trace-sampling=0.0",
        "-otlp-endpoint=",
    ] {
        started(&[arg], &[]);
    }
}

/// The values of the Go program, by name, against typed fields.
#[test]
fn defaults_are_the_field_programs() {
    let s = started(&[], &[]);
    let secs = Duration::from_secs;
    assert_eq!((s.ingress.mc_iface.as_str(), s.ingress.listen_port, s.ingress.group_id), ("eth0", 9001, 0x000B));
    assert_eq!(
        (s.ingress.scope, s.ingress.source_mode, s.ingress.group_prefix),
        (Scope::Site, SourceMode::Asm, 0xFF05)
    );
    assert_eq!((s.ingress.shard_bits.get(), s.ingress.subtree_data, s.ingress.beef), (2, false, None));
    assert_eq!((s.ingress.bind_source, s.ingress.tee, s.ingress.join), (None, None, true));
    assert!(s.ssm.manifests.is_empty() && s.ssm.beacons.is_empty() && s.ssm.subtree_announcers.is_empty());
    assert_eq!((s.ssm.publishers.len(), s.ssm.refresh), (0, secs(30)));
    assert_eq!((s.cache.backend, s.redis.nodes.len(), s.cache.max_keys), (Backend::Memory, 0, 0));
    assert_eq!((s.redis.dial_timeout, s.redis.op_timeout), (secs(1), secs(1)));
    assert_eq!((s.cache.memory, s.cache.memory_long), (256 << 20, 64 << 20));
    assert_eq!(Class::ALL.map(|class| s.cache.ttl(class).as_secs()), [60, 600, 300, 120, 60]);
    assert_eq!((s.nack.port, s.nack.addr, s.nack.suppress_ack, s.nack.suppress_miss), (9300, None, false, false));
    assert_eq!(s.nack.workers, std::thread::available_parallelism().expect("a CPU").get());
    assert_eq!((s.egress.ifaces, s.egress.port, s.egress.multicast_loop), (vec!["eth0".to_owned()], 9001, false));
    assert_eq!((s.egress.hop_limit, s.repair.holddown), (1, Duration::from_millis(10)));
    assert_eq!((s.repair.multicast, s.repair.unicast), (true, false));
    assert_eq!(
        (s.limits.ip_rate, s.limits.ip_burst, s.limits.group_rate, s.limits.group_burst),
        (100.into(), 10, 200.into(), 50)
    );
    assert_eq!((s.limits.chain_rate, s.limits.chain_window), (500, secs(60)));
    assert_eq!((s.limits.sequence_max, s.limits.sequence_window), (100, secs(60)));
    assert_eq!((s.limits.throttle_response, s.limits.table_entries), (false, 65_536));
    assert_eq!(s.limits.known_listeners, 16_384);
    assert_eq!((s.dedup.window, s.dedup.mode, s.dedup.repeat_after), (secs(60), DedupMode::Eventual, secs(1)));
    assert_eq!((s.proxy.enabled, s.proxy.upstreams.len(), s.proxy.timeout), (false, 0, Duration::from_millis(300)));
    assert_eq!((s.proxy.max_endpoints, s.proxy.dedup_window, s.proxy.workers, s.proxy.queue), (0, secs(60), 4, 1024));
    assert_eq!((s.beacon.enabled, s.beacon.tier, s.beacon.preference), (true, 0, 128));
    assert_eq!((s.beacon.interval, s.beacon.scope, s.beacon.draining), (secs(60), BeaconScope::Site, false));
    assert_eq!((s.xdp.mode, s.xdp.handover), (XdpMode::Auto, true));
    assert_eq!((s.xdp.daemon_lease, s.xdp.bpf_lease), (secs(1), secs(60)));
    assert_eq!(s.xdp.bpffs.to_str(), Some("/sys/fs/bpf/retry-endpoint"));
    assert_eq!((s.admin.metrics_addr.to_string().as_str(), s.admin.drain_timeout), ("[::]:9400", secs(0)));
    assert_eq!(s.telemetry.instance, nix::unistd::gethostname().expect("a host name").to_string_lossy());
    assert_eq!(
        (s.telemetry.format, s.telemetry.level, s.telemetry.debug),
        (LogFormat::Text, tracing::Level::INFO, false)
    );
    assert_eq!((s.telemetry.otlp.endpoint, s.telemetry.otlp.interval), (None, secs(30)));
    assert_eq!(s.telemetry.otlp.sampling, 0.0);
}

#[test]
fn the_life_of_a_class() {
    let lives = |args: &[&str], env: &[(&str, &str)]| {
        let settings = started(args, env);
        Class::ALL.map(|class| settings.cache.ttl(class).as_secs())
    };
    // Transactions, blocks, subtrees, anchors, BEEF.
    assert_eq!(lives(&["-cache-ttl=7s"], &[]), [7, 7, 7, 7, 60]);
    assert_eq!(lives(&[], &[("CACHE_TTL", "7s")]), [7, 7, 7, 7, 60]);
    assert_eq!(lives(&["-cache-ttl=60s"], &[]), [60, 60, 60, 60, 60], "set to its own default is set");
    assert_eq!(lives(&["-cache-ttl=7s", "-cache-ttl-block=9s"], &[]), [7, 9, 7, 7, 60]);
    assert_eq!(lives(&["-cache-ttl=7s"], &[("CACHE_TTL_BLOCK", "9s")]), [7, 9, 7, 7, 60], "a variable is explicit");
    assert_eq!(lives(&["-cache-ttl=7s"], &[("CACHE_TTL_BLOCK", "")]), [7, 7, 7, 7, 60], "an empty one is not");
    assert_eq!(lives(&["-cache-ttl-beef=8s"], &[("CACHE_TTL", "7s")]), [7, 7, 7, 7, 8]);

    let settings = started(&["-cache-ttl=7s"], &[("CACHE_TTL_ANCHOR", "9s")]);
    assert_eq!(in_force(&settings, "cache-ttl-tx"), ("7s".to_owned(), SetBy::Flag));
    assert_eq!(in_force(&settings, "cache-ttl-anchor"), ("9s".to_owned(), SetBy::Env));
    assert_eq!(in_force(&settings, "cache-ttl-beef"), ("60s".to_owned(), SetBy::Default));
}

#[test]
fn typed_values() {
    let s = started(
        &[
            "-scope=global",
            "-mc-group-id=12",
            "-beef-enabled",
            "-beef-shard-bits=12",
            "-egress-iface",
            "a, b",
            "-debug",
        ],
        &[("LOG_LEVEL", "error")],
    );
    assert_eq!((s.ingress.group_prefix, s.ingress.group_id, s.ingress.beef), (0xFF0E, 12, BeefBits::new(12)));
    assert_eq!(s.egress.ifaces, ["a", "b"]);
    assert_eq!(s.telemetry.level, tracing::Level::DEBUG);
    assert_eq!(in_force(&s, "log-level").0, "debug");
    assert_eq!(started(&["-beef-shard-bits=3"], &[]).ingress.beef, None, "the band is not joined");
    assert_eq!(started(&["-debug", "-log-level=trace"], &[]).telemetry.level, tracing::Level::TRACE);
    let limitless = started(&["-rl-ip-rate=0", "-rl-ip-burst=0"], &[]).limits;
    assert_eq!((limitless.ip_rate, limitless.ip_burst), (Rate::OFF, 0));
    let short = started(&["-dedup-window=500ms"], &[]);
    assert_eq!(short.dedup.repeat_after, Duration::from_millis(500), "the default gives way");
    assert_eq!(in_force(&short, "dedup-repeat-after").0, "500ms");
    assert_eq!(started(&["-dedup-window=0", "-dedup-repeat-after=1s"], &[]).dedup.window, Duration::ZERO);
}

/// What 0 and an empty part stand for in the field's program and its chart.
#[test]
fn values_of_the_fields_chart() {
    let s = started(&[], &[("NACK_WORKERS", "0"), ("PROXY_WORKERS", "0"), ("EGRESS_HOPLIMIT", "0")]);
    let cpus = std::thread::available_parallelism().expect("a CPU").get();
    assert_eq!((s.nack.workers, s.proxy.workers, s.egress.hop_limit), (cpus, 4, 1));
    let shown = ["nack-workers", "proxy-workers", "egress-hoplimit"].map(|name| in_force(&s, name).0);
    assert_eq!(shown, [cpus.to_string(), "4".to_owned(), "1".to_owned()]);
    for (text, keys) in [("1e+06", 1_000_000), ("-1", 0), ("-1e+02", 0), ("1e+10", 10_000_000_000)] {
        assert_eq!(started(&[], &[("CACHE_MAX_KEYS", text)]).cache.max_keys, keys, "{text}");
    }
    assert_eq!(started(&[], &[("BEACON_SCOPE", "all")]).beacon.scope, BeaconScope::All);
    let s = started(&[], &[("EGRESS_IFACE", "eth0,eth1,"), ("SSM_PUBLISHERS_STATIC", "fd10::1,,fd10::2,")]);
    assert_eq!((s.egress.ifaces.len(), s.ssm.publishers.len()), (2, 2));
    let s = started(&[], &[("RL_IP_RATE", "0.5"), ("RL_GROUP_RATE", "1e+06"), ("RL_CHAIN_RATE", "0.5")]);
    assert_eq!((s.limits.ip_rate, s.limits.group_rate), (Rate::every(2_000_000_000), Rate::every(1_000)));
    assert_eq!((s.limits.chain_rate, s.limits.chain_window), (1, Duration::from_secs(120)));
    assert_eq!(started(&["-rl-ip-burst=5000000"], &[]).limits.ip_burst, 5_000_000);
    for source in ["manifest", "beacon", "subtree-announce"] {
        started(&["-source-mode=ssm", &format!("-ssm-bootstrap-{source}=fd10::1")], &[]);
    }
    let s = started(&["-beacon-flags-multicast=false"], &[]);
    assert_eq!((s.repair.multicast, s.repair.unicast), (false, false));
}
