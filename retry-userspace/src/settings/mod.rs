//! Settings: flags, environment, cross-checks. A field is a sentence, a default and a consequence; they stand in
//! [`FLAGS`], which `-help` and docs/configuration.md share.

mod checks;
mod flags;
mod source;
mod stop;
#[cfg(test)]
mod tests;
mod values;

use std::ffi::OsString;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use retry_common::group::{BeefBits, ShardBits};
use retry_common::wire::frame::Class;

use crate::beacon::Scope as BeaconScope;

pub use flags::{FLAGS, Flag};
pub use source::SetBy;
use source::Values;
pub use stop::Stop;

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

impl Settings {
    /// The settings of a command line and an environment.
    ///
    /// # Errors
    /// [`Stop`]: help, or one line that names the setting, its value and what is accepted.
    pub fn from_args_and_env<E: Into<OsString>>(
        args: impl Iterator<Item = OsString>,
        env: impl Fn(&str) -> Option<E>,
    ) -> Result<Self, Stop> {
        let values = Values::collect(args, env)?;
        if let Some(flag) = FLAGS.iter().find(|flag| flag.later && !values::same(flag, values.text(flag.name))) {
            let only = if flag.default.is_empty() { "no value" } else { flag.default };
            return Err(values.refuse(flag.name, &format!("not available yet, only {only} is accepted")));
        }
        let settings = Self {
            ingress: checks::ingress(&values)?,
            cache: checks::cache(&values)?,
            nack: Nack {
                port: checks::port(&values, "nack-port")?,
                addr: values.get("nack-addr", values::optional_address)?,
                workers: values.get("nack-workers", checks::workers)?,
                suppress_ack: values.get("suppress-ack", values::boolean)?,
                suppress_miss: values.get("suppress-miss", values::boolean)?,
            },
            egress: Egress {
                ifaces: values.get("egress-iface", values::interfaces)?,
                port: checks::port(&values, "egress-port")?,
                multicast_loop: values.get("egress-multicast-loop", values::boolean)?,
                hop_limit: values.get("egress-hoplimit", |text| values::number(text, 1..=255))?,
            },
            repair: Repair {
                multicast: values.get("beacon-flags-multicast", values::boolean)?,
                unicast: values.get("beacon-flags-unicast", values::boolean)?,
                holddown: values
                    .get("repair-holddown", |text| values::duration_in(text, (Duration::ZERO, "0"), HOUR))?,
            },
            limits: checks::limits(&values)?,
            beacon: checks::beacon(&values)?,
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
                bpffs: values.get("bpffs", values::directory)?,
            },
            admin: Admin { metrics_addr: values.get("metrics-addr", values::listen_address)? },
            telemetry: checks::telemetry(&values)?,
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
            return Err(values.refuse(
                "beacon-flags-multicast",
                "with -beacon-flags-unicast false no repair would leave: true for one of them is accepted",
            ));
        }
        Ok(settings)
    }

    /// Every setting as it is in force.
    pub fn describe(&self) -> &[Described] {
        &self.described
    }
}
