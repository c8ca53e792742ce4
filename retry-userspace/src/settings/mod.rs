//! Settings: flags, environment, cross-checks. A field is a sentence, a default and a consequence; they stand in
//! [`FLAGS`], which `-help` and docs/configuration.md share.

mod flags;
mod source;
#[cfg(test)]
mod tests;
mod values;

use std::ffi::OsString;
use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use retry_common::group::{self, BeefBits, Scope, ShardBits, SourceMode};
use retry_common::wire::frame::Class;

use crate::beacon::Scope as BeaconScope;

pub use flags::{FLAGS, Flag};
pub use source::SetBy;
use source::Values;

const HOUR: (Duration, &str) = (Duration::from_secs(3600), "1h");
const MILLISECOND: (Duration, &str) = (Duration::from_millis(1), "1ms");

/// All settings, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where frames come from.
    pub ingress: Ingress,
    /// How they are kept.
    pub cache: Cache,
    /// How NACKs are taken.
    pub nack: Nack,
    /// How multicast leaves.
    pub egress: Egress,
    /// What a hit gets.
    pub repair: Repair,
    /// Who may ask how often.
    pub limits: Limits,
    /// How the endpoint is announced.
    pub beacon: Beacon,
    /// Where NACKs are answered.
    pub xdp: Xdp,
    /// HTTP.
    pub admin: Admin,
    /// Logs.
    pub telemetry: Telemetry,
    described: Vec<Described>,
}

/// One setting as it is in force.
#[derive(Clone, Debug)]
pub struct Described {
    /// The setting.
    pub flag: &'static Flag,
    /// Its value as text.
    pub value: String,
    /// Who set it.
    pub set_by: SetBy,
}

/// `mc-*`, `scope`, `shard-bits` and the planes.
#[derive(Clone, Debug)]
pub struct Ingress {
    /// `mc-iface`.
    pub mc_iface: String,
    /// `listen-port`.
    pub listen_port: u16,
    /// `mc-group-id`.
    pub group_id: u16,
    /// `bind-source`.
    pub bind_source: Option<Ipv6Addr>,
    /// `shard-bits`.
    pub shard_bits: ShardBits,
    /// `subtree-data-enabled`.
    pub subtree_data: bool,
    /// `beef-shard-bits`, with `beef-enabled`.
    pub beef: Option<BeefBits>,
    /// First two bytes of the group addresses, from `scope` and `source-mode`.
    pub group_prefix: u16,
}

/// `cache-*`.
#[derive(Clone, Debug)]
pub struct Cache {
    /// `cache-memory`, bytes.
    pub memory: u64,
    /// `cache-memory-long`, bytes.
    pub memory_long: u64,
    /// `cache-max-keys`; 0 is no bound.
    pub max_keys: u64,
    ttl: [Duration; 5],
}

impl Cache {
    /// Life of a class.
    pub fn ttl(&self, class: Class) -> Duration {
        self.ttl[class as usize]
    }
}

/// `nack-*`, `suppress-*`.
#[derive(Clone, Debug)]
pub struct Nack {
    /// `nack-port`.
    pub port: u16,
    /// `nack-addr`.
    pub addr: Option<Ipv6Addr>,
    /// `nack-workers`.
    pub workers: usize,
    /// `suppress-ack`.
    pub suppress_ack: bool,
    /// `suppress-miss`.
    pub suppress_miss: bool,
}

/// `egress-*`.
#[derive(Clone, Debug)]
pub struct Egress {
    /// `egress-iface`.
    pub ifaces: Vec<String>,
    /// `egress-port`.
    pub port: u16,
    /// `egress-multicast-loop`.
    pub multicast_loop: bool,
    /// `egress-hoplimit`.
    pub hop_limit: u8,
}

/// What a hit gets.
#[derive(Clone, Debug)]
pub struct Repair {
    /// `beacon-flags-multicast`.
    pub multicast: bool,
    /// `beacon-flags-unicast`.
    pub unicast: bool,
    /// `repair-holddown`; zero is off.
    pub holddown: Duration,
}

/// `rl-*`; a rate or count of 0 is off.
#[derive(Clone, Debug)]
pub struct Limits {
    /// `rl-ip-rate`, NACKs a second.
    pub ip_rate: u32,
    /// `rl-ip-burst`.
    pub ip_burst: u32,
    /// `rl-chain-rate`, NACKs a window.
    pub chain_rate: u32,
    /// `rl-chain-window`.
    pub chain_window: Duration,
    /// `rl-sequence-max`, answers a window.
    pub sequence_max: u32,
    /// `rl-sequence-window`.
    pub sequence_window: Duration,
    /// `rl-group-rate`, hits a second.
    pub group_rate: u32,
    /// `rl-group-burst`.
    pub group_burst: u32,
    /// `rl-throttle-response`.
    pub throttle_response: bool,
    /// `limit-table-entries`.
    pub table_entries: u32,
}

/// `beacon-*`.
#[derive(Clone, Debug)]
pub struct Beacon {
    /// `beacon-enabled`.
    pub enabled: bool,
    /// `beacon-tier`.
    pub tier: u8,
    /// `beacon-preference`.
    pub preference: u8,
    /// `beacon-interval`.
    pub interval: Duration,
    /// `beacon-scope`.
    pub scope: BeaconScope,
    /// `beacon-flags-draining`.
    pub draining: bool,
}

/// Where NACKs are answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum XdpMode {
    /// Native, else off, and the reason told.
    Auto,
    /// In the driver or not at all.
    Native,
    /// In the stack.
    Skb,
    /// By the daemon's socket.
    Off,
}

/// `xdp`, `bpffs`.
#[derive(Clone, Debug)]
pub struct Xdp {
    /// `xdp`.
    pub mode: XdpMode,
    /// `xdp-lease`.
    pub lease: Duration,
    /// `bpffs`.
    pub bpffs: PathBuf,
}

/// `metrics-addr`.
#[derive(Clone, Debug)]
pub struct Admin {
    /// `metrics-addr`.
    pub metrics_addr: SocketAddr,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    /// On stderr, for people.
    Text,
    /// On stdout, one object a line.
    Json,
}

/// `log-*`, `debug`, `instance`.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// `instance`.
    pub instance: String,
    /// `log-format`.
    pub format: LogFormat,
    /// `log-level`, or debug with `debug`.
    pub level: tracing::Level,
    /// `debug`.
    pub debug: bool,
}

/// Why the program ends before it starts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stop {
    text: String,
    code: u8,
}

impl Stop {
    fn text(text: String) -> Self {
        Self { text, code: 0 }
    }

    fn usage(line: &str) -> Self {
        Self { text: format!("{line} (-help lists all settings)"), code: 2 }
    }

    fn bad_value(name: &str, value: &str, accepted: &str) -> Self {
        let value = if value.is_empty() { "is not set" } else { value };
        Self { text: format!("-{name} {value}: {accepted}"), code: 1 }
    }

    /// Exit code: 0 for help and version, 2 for usage, 1 for a value.
    pub const fn code(&self) -> u8 {
        self.code
    }

    /// True when the text is what was asked for.
    pub const fn to_stdout(&self) -> bool {
        self.code == 0
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Settings {
    /// The settings of a command line and an environment.
    ///
    /// # Errors
    /// [`Stop`]: help, or one line that names the setting, its value and what is accepted.
    pub fn from_args_and_env(
        args: impl Iterator<Item = OsString>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Stop> {
        let values = Values::collect(args, env)?;
        for flag in FLAGS.iter().filter(|flag| flag.later) {
            let text = values.text(flag.name);
            if text != flag.default && !(flag.switch && values::boolean(text) == values::boolean(flag.default)) {
                return Err(Stop::bad_value(flag.name, text, "not available yet"));
            }
        }
        let settings = Self {
            ingress: ingress(&values)?,
            cache: cache(&values)?,
            nack: Nack {
                port: port(&values, "nack-port")?,
                addr: values.get("nack-addr", values::optional_address)?,
                workers: values.get("nack-workers", workers)?,
                suppress_ack: values.get("suppress-ack", values::boolean)?,
                suppress_miss: values.get("suppress-miss", values::boolean)?,
            },
            egress: Egress {
                ifaces: values.get("egress-iface", values::interfaces)?,
                port: port(&values, "egress-port")?,
                multicast_loop: values.get("egress-multicast-loop", values::boolean)?,
                hop_limit: values.get("egress-hoplimit", |text| values::number(text, 1..=255))?,
            },
            repair: Repair {
                multicast: values.get("beacon-flags-multicast", values::boolean)?,
                unicast: values.get("beacon-flags-unicast", values::boolean)?,
                holddown: values
                    .get("repair-holddown", |text| values::duration_in(text, (Duration::ZERO, "0"), HOUR))?,
            },
            limits: limits(&values)?,
            beacon: beacon(&values)?,
            xdp: Xdp {
                mode: values.get("xdp", |text| {
                    let words = [
                        ("auto", XdpMode::Auto),
                        ("native", XdpMode::Native),
                        ("skb", XdpMode::Skb),
                        ("off", XdpMode::Off),
                    ];
                    values::word(text, &words)
                })?,
                lease: values
                    .get("xdp-lease", |text| values::duration_in(text, (Duration::from_secs(1), "1s"), HOUR))?,
                bpffs: values.text("bpffs").into(),
            },
            admin: Admin { metrics_addr: values.get("metrics-addr", values::listen_address)? },
            telemetry: telemetry(&values)?,
            described: FLAGS
                .iter()
                .map(|flag| Described {
                    flag,
                    value: values.text(flag.name).to_owned(),
                    set_by: values.set_by(flag.name),
                })
                .collect(),
        };
        if !settings.repair.multicast && !settings.repair.unicast {
            return Err(Stop::bad_value(
                "beacon-flags-multicast",
                "false",
                "with -beacon-flags-unicast false no repair would leave: one of them must be true",
            ));
        }
        Ok(settings)
    }

    /// Every setting as it is in force.
    pub fn describe(&self) -> &[Described] {
        &self.described
    }
}

fn ingress(values: &Values) -> Result<Ingress, Stop> {
    let scope = values.get("scope", |text| {
        let words = [("link", Scope::Link), ("site", Scope::Site), ("org", Scope::Org), ("global", Scope::Global)];
        values::word(text, &words)
    })?;
    let group_prefix = group::prefix(scope, SourceMode::Asm)
        .ok_or_else(|| Stop::bad_value("scope", values.text("scope"), "no group address has this scope"))?;
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

fn cache(values: &Values) -> Result<Cache, Stop> {
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

fn limits(values: &Values) -> Result<Limits, Stop> {
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

fn beacon(values: &Values) -> Result<Beacon, Stop> {
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

fn telemetry(values: &Values) -> Result<Telemetry, Stop> {
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
            .map_err(|error| {
                Stop::bad_value("instance", "", &format!("the host name cannot be read ({error}): set one"))
            })?
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

fn port(values: &Values, name: &str) -> Result<u16, Stop> {
    values.get(name, |text| values::number(text, 1..=u16::MAX))
}

fn workers(text: &str) -> Result<usize, String> {
    match text {
        "" => Ok(std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)),
        text => values::number(text, 1..=1024),
    }
}
