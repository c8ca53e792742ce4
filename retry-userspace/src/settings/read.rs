//! From texts to typed groups: each setting is read once, within its bounds.

use std::time::Duration;

use retry_common::group::{self, BeefBits, Scope, ShardBits, SourceMode};
use retry_common::wire::advert::BeaconScope;

use super::error::SettingsError;
use super::model::{
    Admin, AdminToken, Backend, Beacon, Cache, Dedup, DedupMode, Egress, FillMode, Ingress, Limits, LogFormat, Nack,
    Otlp, Proxy, ProxySelect, Redis, Repair, Retry, RetryPolicy, Settings, Ssm, Telemetry, Xdp, XdpMode,
};
use super::source::Values;
use super::{hosts, values};

type Read<T> = Result<T, SettingsError>;
type Bound = (Duration, &'static str);

const ZERO: Bound = (Duration::ZERO, "0");
const MILLISECOND: Bound = (Duration::from_millis(1), "1ms");
const SECOND: Bound = (Duration::from_secs(1), "1s");
const HOUR: Bound = (Duration::from_secs(3600), "1h");
/// The interval of a beacon has two bytes of seconds on the wire.
const LONGEST_INTERVAL: Bound = (Duration::from_secs(18 * 3600), "18h");
/// A record of the frame log counts its life in 32 bits of milliseconds.
const LONGEST_LIFE: Bound = (Duration::from_secs(1176 * 3600), "1176h");
/// A limit's word has 20 bits for a count.
const MOST_COUNTED: u32 = 1_000_000;
/// A token must take at least a nanosecond to come back.
const HIGHEST_RATE: u32 = 1_000_000_000;

/// The settings as they stand alone; `checks` has the rules between them.
pub(super) fn settings(values: &Values) -> Read<Settings> {
    Ok(Settings {
        ingress: ingress(values)?,
        ssm: ssm(values)?,
        cache: cache(values)?,
        nack: nack(values)?,
        egress: egress(values)?,
        repair: Repair {
            multicast: switch(values, "beacon-flags-multicast")?,
            unicast: switch(values, "beacon-flags-unicast")?,
            holddown: time(values, "repair-holddown", ZERO, HOUR)?,
        },
        limits: limits(values)?,
        redis: redis(values)?,
        dedup: dedup(values)?,
        proxy: proxy(values)?,
        beacon: beacon(values)?,
        xdp: xdp(values)?,
        admin: admin(values)?,
        telemetry: telemetry(values)?,
        described: Vec::new(),
    })
}

fn ingress(values: &Values) -> Read<Ingress> {
    let words = [("link", Scope::Link), ("site", Scope::Site), ("org", Scope::Org), ("global", Scope::Global)];
    let scope = values.get("scope", |text| values::word(text, &words))?;
    let modes = [("asm", SourceMode::Asm), ("ssm", SourceMode::Ssm)];
    let source_mode = values.get("source-mode", |text| values::word(text, &modes))?;
    let group_prefix = group::prefix(scope, source_mode)
        .ok_or_else(|| values.refusal("scope", "with -source-mode ssm, site or global is accepted"))?;
    let shard_bits = |text: &str| {
        let bits = values::number(text, 1..=12)?;
        ShardBits::new(bits).ok_or_else(|| "1 to 12 is accepted".to_owned())
    };
    let beef_bits = values.get("beef-shard-bits", |text| values::number(text, 0..=12))?;
    let beef = switch(values, "beef-enabled")?;
    Ok(Ingress {
        mc_iface: values.get("mc-iface", |text| values::filled(text, "the name of an interface"))?,
        listen_port: port(values, "listen-port")?,
        scope,
        source_mode,
        group_prefix,
        group_id: values.get("mc-group-id", values::hex_or_decimal)?,
        bind_source: values.get("bind-source", hosts::optional_address)?,
        shard_bits: values.get("shard-bits", shard_bits)?,
        subtree_data: switch(values, "subtree-data-enabled")?,
        beef: BeefBits::new(beef_bits).filter(|_| beef),
        tee: values.get("tee-listen", hosts::loopback_address)?,
        join: switch(values, "mc-join-enabled")?,
        workers: values.get("ingress-workers", |text| values::number(text, 0..=64))?,
    })
}

fn ssm(values: &Values) -> Read<Ssm> {
    Ok(Ssm {
        manifests: values.get("ssm-bootstrap-manifest", hosts::hosts)?,
        beacons: values.get("ssm-bootstrap-beacon", hosts::hosts)?,
        subtree_announcers: values.get("ssm-bootstrap-subtree-announce", hosts::hosts)?,
        publishers: values.get("ssm-publishers-static", hosts::hosts)?,
        refresh: time(values, "ssm-bootstrap-refresh", SECOND, HOUR)?,
    })
}

fn cache(values: &Values) -> Read<Cache> {
    let life = |name| time(values, name, MILLISECOND, LONGEST_LIFE);
    let fallback = life("cache-ttl")?;
    let of = |name| {
        let own = life(name)?;
        Ok(if ttl_source(values, name) == name { own } else { fallback })
    };
    let backends = [("memory", Backend::Memory), ("redis", Backend::Redis)];
    Ok(Cache {
        memory: values.get("cache-memory", values::ring_size)?,
        memory_long: values.get("cache-memory-long", values::ring_size)?,
        max_keys: values.get("cache-max-keys", |text| values::number(text, 0..=u64::from(u32::MAX)))?,
        backend: values.get("cache-backend", |text| values::word(text, &backends))?,
        ttl: [
            of("cache-ttl-tx")?,
            of("cache-ttl-block")?,
            of("cache-ttl-subtree")?,
            of("cache-ttl-anchor")?,
            of("cache-ttl-beef")?,
        ],
    })
}

/// The setting that decides the life of a class: its own, or `cache-ttl` when that one alone is set (not for BEEF).
pub(super) fn ttl_source(values: &Values, of_class: &'static str) -> &'static str {
    let falls_back = of_class != "cache-ttl-beef" && !values.is_set(of_class) && values.is_set("cache-ttl");
    if falls_back { "cache-ttl" } else { of_class }
}

fn nack(values: &Values) -> Read<Nack> {
    let workers = |text: &str| match text {
        "" => Ok(std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)),
        text => values::number(text, 1..=1024),
    };
    Ok(Nack {
        port: port(values, "nack-port")?,
        addr: values.get("nack-addr", hosts::optional_address)?,
        port_shared: switch(values, "nack-port-shared")?,
        workers: values.get("nack-workers", workers)?,
        suppress_ack: switch(values, "suppress-ack")?,
        suppress_miss: switch(values, "suppress-miss")?,
    })
}

fn egress(values: &Values) -> Read<Egress> {
    Ok(Egress {
        ifaces: values.get("egress-iface", values::interfaces)?,
        port: port(values, "egress-port")?,
        multicast_loop: switch(values, "egress-multicast-loop")?,
        hop_limit: values.get("egress-hoplimit", |text| values::number(text, 1..=255))?,
    })
}

fn limits(values: &Values) -> Read<Limits> {
    let up_to = |name, most| values.get(name, |text| values::number(text, 0..=most));
    let window = |name| time(values, name, MILLISECOND, HOUR);
    Ok(Limits {
        ip_rate: up_to("rl-ip-rate", HIGHEST_RATE)?,
        ip_burst: up_to("rl-ip-burst", MOST_COUNTED)?,
        chain_rate: up_to("rl-chain-rate", MOST_COUNTED)?,
        chain_window: window("rl-chain-window")?,
        sequence_max: up_to("rl-sequence-max", MOST_COUNTED)?,
        sequence_window: window("rl-sequence-window")?,
        group_rate: up_to("rl-group-rate", HIGHEST_RATE)?,
        group_burst: up_to("rl-group-burst", MOST_COUNTED)?,
        throttle_response: switch(values, "rl-throttle-response")?,
        table_entries: values.get("limit-table-entries", |text| values::number(text, 1024..=1 << 24))?,
    })
}

fn redis(values: &Values) -> Read<Redis> {
    let file = |name| values.get(name, values::optional_path);
    let tls_client = match (file("redis-tls-cert")?, file("redis-tls-key")?) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => return Err(values.refusal("redis-tls-key", "-redis-tls-cert needs it: a file is accepted")),
        (None, Some(_)) => return Err(values.refusal("redis-tls-cert", "-redis-tls-key needs it: a file is accepted")),
    };
    Ok(Redis {
        nodes: values.get("redis-addr", hosts::redis_nodes)?,
        dial_timeout: time(values, "cache-dial-timeout", MILLISECOND, HOUR)?,
        op_timeout: time(values, "cache-op-timeout", MILLISECOND, HOUR)?,
        tls_ca: file("redis-tls-ca")?,
        tls_client,
        retry: retry(values, &REDIS_RETRY)?,
    })
}

/// The names of one policy's settings, in the order of [`Retry`].
type RetryNames = [&'static str; 8];

const REDIS_RETRY: RetryNames = [
    "redis-retry-policy",
    "redis-retry-attempts",
    "redis-retry-delay",
    "redis-retry-factor",
    "redis-retry-max-delay",
    "redis-retry-jitter",
    "redis-retry-breaker",
    "redis-retry-breaker-open",
];

const PROXY_RETRY: RetryNames = [
    "proxy-retry-policy",
    "proxy-retry-attempts",
    "proxy-retry-delay",
    "proxy-retry-factor",
    "proxy-retry-max-delay",
    "proxy-retry-jitter",
    "proxy-retry-breaker",
    "proxy-retry-breaker-open",
];

fn retry(values: &Values, names: &RetryNames) -> Read<Retry> {
    let [policy, attempts, delay, factor, max_delay, jitter, breaker, breaker_open] = *names;
    let policies = [("none", RetryPolicy::None), ("exponential", RetryPolicy::Exponential)];
    Ok(Retry {
        policy: values.get(policy, |text| values::word(text, &policies))?,
        attempts: values.get(attempts, |text| values::number(text, 1..=100))?,
        delay: time(values, delay, MILLISECOND, HOUR)?,
        factor: values.get(factor, values::factor)?,
        max_delay: time(values, max_delay, MILLISECOND, HOUR)?,
        jitter: switch(values, jitter)?,
        breaker: values.get(breaker, |text| values::number(text, 0..=1000))?,
        breaker_open: time(values, breaker_open, MILLISECOND, HOUR)?,
    })
}

fn admin(values: &Values) -> Read<Admin> {
    let address = |text: &str| match text {
        "" => Ok(None),
        text => hosts::listen_address(text).map(Some),
    };
    let token = match values.get("admin-token-file", values::optional_path)? {
        Some(file) => {
            let text = std::fs::read_to_string(&file)
                .map_err(|error| values.refusal("admin-token-file", format!("a readable file is accepted: {error}")))?;
            Some(token(&text).ok_or_else(|| {
                values.refusal("admin-token-file", "a file with one line, the token, without spaces is accepted")
            })?)
        }
        None => match values.admin_token() {
            Some(text) => Some(token(text).ok_or_else(|| SettingsError::Value {
                setting: "ADMIN_TOKEN ***".to_owned(),
                accepted: "a token without spaces is accepted".to_owned(),
            })?),
            None => None,
        },
    };
    Ok(Admin {
        metrics_addr: values.get("metrics-addr", hosts::listen_address)?,
        addr: values.get("admin-addr", address)?,
        token,
        drain_timeout: time(values, "drain-timeout", ZERO, HOUR)?,
    })
}

/// What an `Authorization` header can carry (RFC 6750, section 2.1); editors end the line.
fn token(text: &str) -> Option<AdminToken> {
    let text = text.trim_end_matches(['\r', '\n']);
    (!text.is_empty() && text.bytes().all(|c| c.is_ascii_graphic())).then(|| AdminToken(text.to_owned()))
}

fn dedup(values: &Values) -> Read<Dedup> {
    let window = time(values, "dedup-window", ZERO, HOUR)?;
    let modes = [("eventual", DedupMode::Eventual), ("strict", DedupMode::Strict)];
    let repeat_after = time(values, "dedup-repeat-after", ZERO, HOUR)?;
    // The Go program has no such setting: a short window that it takes must not fail for our default.
    let clamp = !values.is_set("dedup-repeat-after");
    Ok(Dedup {
        window,
        mode: values.get("dedup-mode", |text| values::word(text, &modes))?,
        repeat_after: if clamp { repeat_after.min(window) } else { repeat_after },
    })
}

fn proxy(values: &Values) -> Read<Proxy> {
    let selections = [("order", ProxySelect::Order), ("hash", ProxySelect::Hash), ("rtt", ProxySelect::Rtt)];
    let state_dir = |text: &str| match text {
        "" => Ok(None),
        text => values::absolute_path(text).map(Some),
    };
    Ok(Proxy {
        enabled: switch(values, "proxy-enabled")?,
        upstreams: values.get("upstream-retry-endpoints", hosts::host_ports)?,
        discover: switch(values, "proxy-discover")?,
        select: values.get("proxy-select", |text| values::word(text, &selections))?,
        state_dir: values.get("state-dir", state_dir)?,
        timeout: time(values, "proxy-timeout", MILLISECOND, HOUR)?,
        max_endpoints: values.get("proxy-max-endpoints", |text| values::number(text, 0..=1000))?,
        dedup_window: time(values, "proxy-dedup-window", MILLISECOND, HOUR)?,
        workers: values.get("proxy-workers", |text| values::number(text, 1..=1024))?,
        queue: values.get("proxy-queue", |text| values::number(text, 1..=1_000_000))?,
        retry: retry(values, &PROXY_RETRY)?,
    })
}

fn beacon(values: &Values) -> Read<Beacon> {
    let scopes = [
        ("site", BeaconScope::Site),
        ("org", BeaconScope::Org),
        ("global", BeaconScope::Global),
        ("both", BeaconScope::All),
    ];
    Ok(Beacon {
        enabled: switch(values, "beacon-enabled")?,
        tier: values.get("beacon-tier", |text| values::number(text, 0..=254))?,
        preference: values.get("beacon-preference", |text| values::number(text, 0..=255))?,
        interval: time(values, "beacon-interval", SECOND, LONGEST_INTERVAL)?,
        scope: values.get("beacon-scope", |text| values::word(text, &scopes))?,
        draining: switch(values, "beacon-flags-draining")?,
    })
}

fn xdp(values: &Values) -> Read<Xdp> {
    let modes = [("auto", XdpMode::Auto), ("native", XdpMode::Native), ("skb", XdpMode::Skb), ("off", XdpMode::Off)];
    let fills = [("auto", FillMode::Auto), ("kernel", FillMode::Kernel), ("daemon", FillMode::Daemon)];
    Ok(Xdp {
        mode: values.get("xdp", |text| values::word(text, &modes))?,
        fill: values.get("fill", |text| values::word(text, &fills))?,
        lease: time(values, "xdp-lease", SECOND, HOUR)?,
        bpffs: values.get("bpffs", values::absolute_path)?,
    })
}

fn telemetry(values: &Values) -> Read<Telemetry> {
    use tracing::Level;
    let levels = [
        ("trace", Level::TRACE),
        ("debug", Level::DEBUG),
        ("info", Level::INFO),
        ("warn", Level::WARN),
        ("error", Level::ERROR),
    ];
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let name = |text: &str| match text {
        "" => nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().into_owned())
            .map_err(|error| format!("the host name cannot be read ({error}): a name is accepted")),
        text => values::filled(text, "a name"),
    };
    let debug = switch(values, "debug")?;
    let level = values.get("log-level", |text| values::word(text, &levels))?;
    Ok(Telemetry {
        instance: values.get("instance", name)?,
        format: values.get("log-format", |text| values::word(text, &formats))?,
        level: if debug { level.max(Level::DEBUG) } else { level },
        debug,
        otlp: Otlp {
            endpoint: values.get("otlp-endpoint", hosts::collector)?,
            interval: time(values, "otlp-interval", SECOND, HOUR)?,
            sampling: values.get("trace-sampling", values::share)?,
        },
    })
}

fn switch(values: &Values, name: &str) -> Read<bool> {
    values.get(name, values::boolean)
}

fn port(values: &Values, name: &str) -> Read<u16> {
    values.get(name, |text| values::number(text, 1..=u16::MAX))
}

fn time(values: &Values, name: &str, least: Bound, most: Bound) -> Read<Duration> {
    values.get(name, |text| values::duration_in(text, least, most))
}
