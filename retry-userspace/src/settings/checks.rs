//! The groups of settings, each value checked.

use std::time::Duration;

use retry_common::group::{self, BeefBits, Scope, ShardBits, SourceMode};

use super::source::Values;
use super::{Beacon, BeaconScope, Cache, HOUR, Ingress, Limits, LogFormat, MILLISECOND, Stop, Telemetry, values};

pub(super) fn ingress(values: &Values) -> Result<Ingress, Stop> {
    let scope = values.get("scope", |text| {
        let words = [("link", Scope::Link), ("site", Scope::Site), ("org", Scope::Org), ("global", Scope::Global)];
        values::word(text, &words)
    })?;
    let group_prefix = group::prefix(scope, SourceMode::Asm)
        .ok_or_else(|| values.refuse("scope", "no group address has this scope"))?;
    let beef_bits = values.get("beef-shard-bits", |text| values::number(text, 0..=12))?;
    let beef_enabled = values.get("beef-enabled", values::boolean)?;
    let mc_iface = values.get("mc-iface", |text| match text {
        "" => Err("the name of an interface is accepted".to_owned()),
        name => Ok(name.to_owned()),
    })?;
    Ok(Ingress {
        mc_iface,
        listen_port: port(values, "listen-port")?,
        group_id: values.get("mc-group-id", values::hex_or_decimal)?,
        bind_source: values.get("bind-source", values::optional_address)?,
        shard_bits: values.get("shard-bits", |text| {
            values::number(text, 1..=12)
                .and_then(|bits| ShardBits::new(bits).ok_or_else(|| "1 to 12 is accepted".to_owned()))
        })?,
        subtree_data: values.get("subtree-data-enabled", values::boolean)?,
        beef: BeefBits::new(beef_bits).filter(|_| beef_enabled),
        group_prefix,
    })
}

pub(super) fn cache(values: &Values) -> Result<Cache, Stop> {
    let life = |text: &str| {
        // The record counts milliseconds in 32 bits.
        values::duration_in(text, MILLISECOND, (Duration::from_secs(49 * 86_400), "1176h"))
    };
    let fallback = values.get("cache-ttl", life)?;
    let of = |name: &str| {
        let own = values.get(name, life)?;
        Ok(if !values.is_set(name) && values.is_set("cache-ttl") { fallback } else { own })
    };
    Ok(Cache {
        memory: values.get("cache-memory", values::ring_size)?,
        memory_long: values.get("cache-memory-long", values::ring_size)?,
        max_keys: values.get("cache-max-keys", |text| values::number(text, 0..=u64::from(u32::MAX)))?,
        ttl: [
            of("cache-ttl-tx")?,
            of("cache-ttl-block")?,
            of("cache-ttl-subtree")?,
            of("cache-ttl-anchor")?,
            values.get("cache-ttl-beef", life)?,
        ],
    })
}

pub(super) fn limits(values: &Values) -> Result<Limits, Stop> {
    let rate = |name| values.get(name, |text| values::number(text, 0..=1_000_000_000));
    let burst = |name| values.get(name, |text| values::number(text, 1..=1_000_000));
    // The tables pack counts in 20 bits.
    let count = |name| values.get(name, |text| values::number(text, 0..=1_000_000));
    let window = |name| values.get(name, |text| values::duration_in(text, MILLISECOND, HOUR));
    Ok(Limits {
        ip_rate: rate("rl-ip-rate")?,
        ip_burst: burst("rl-ip-burst")?,
        chain_rate: count("rl-chain-rate")?,
        chain_window: window("rl-chain-window")?,
        sequence_max: count("rl-sequence-max")?,
        sequence_window: window("rl-sequence-window")?,
        group_rate: rate("rl-group-rate")?,
        group_burst: burst("rl-group-burst")?,
        throttle_response: values.get("rl-throttle-response", values::boolean)?,
        table_entries: values.get("limit-table-entries", |text| values::number(text, 1024..=1 << 24))?,
    })
}

pub(super) fn beacon(values: &Values) -> Result<Beacon, Stop> {
    Ok(Beacon {
        enabled: values.get("beacon-enabled", values::boolean)?,
        tier: values.get("beacon-tier", |text| values::number(text, 0..=254))?,
        preference: values.get("beacon-preference", |text| values::number(text, 0..=255))?,
        interval: values.get("beacon-interval", |text| {
            // Two bytes of seconds on the wire.
            values::duration_in(text, (Duration::from_secs(1), "1s"), (Duration::from_secs(18 * 3600), "18h"))
        })?,
        scope: values.get("beacon-scope", |text| {
            let words = [
                ("site", BeaconScope::Site),
                ("org", BeaconScope::Org),
                ("global", BeaconScope::Global),
                ("both", BeaconScope::All),
            ];
            values::word(text, &words)
        })?,
        draining: values.get("beacon-flags-draining", values::boolean)?,
    })
}

pub(super) fn telemetry(values: &Values) -> Result<Telemetry, Stop> {
    let debug = values.get("debug", values::boolean)?;
    let level = values.get("log-level", |text| {
        use tracing::Level;
        let words = [
            ("trace", Level::TRACE),
            ("debug", Level::DEBUG),
            ("info", Level::INFO),
            ("warn", Level::WARN),
            ("error", Level::ERROR),
        ];
        values::word(text, &words)
    })?;
    let instance = match values.text("instance") {
        "" => nix::unistd::gethostname()
            .map_err(|error| values.refuse("instance", &format!("the host name cannot be read ({error}): set one")))?
            .to_string_lossy()
            .into_owned(),
        name => name.to_owned(),
    };
    Ok(Telemetry {
        instance,
        format: values
            .get("log-format", |text| values::word(text, &[("text", LogFormat::Text), ("json", LogFormat::Json)]))?,
        level: if debug { level.max(tracing::Level::DEBUG) } else { level },
        debug,
    })
}

pub(super) fn port(values: &Values, name: &str) -> Result<u16, Stop> {
    values.get(name, |text| values::number(text, 1..=u16::MAX))
}

pub(super) fn workers(text: &str) -> Result<usize, String> {
    match text {
        "" => Ok(std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)),
        text => values::number(text, 1..=1024),
    }
}
