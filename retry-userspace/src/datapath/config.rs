//! What the kernel side is asked to be, and what it goes by.

use std::path::PathBuf;

use retry_common::abi::{self, setting_flag};
use retry_common::group::{self, SourceMode};
use retry_common::holddown::HoldDown;
use retry_common::limits::{ByteBudget, ByteLimits, TokenBucket, Window, table};

use super::Mode;
use crate::acl;
use crate::clock::nanoseconds;
use crate::dedup;
use crate::fabric::{Egress, Fabric};
use crate::framelog::{Sizes, lives_ms};
use crate::limits::byte_mask;
use crate::settings::{Backend, FillMode, Limits, Settings, XdpMode};

/// What the kernel side is asked to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// How to attach.
    pub mode: Mode,
    /// Directory of the pins, on bpffs.
    pub bpffs: PathBuf,
    /// Object file with the programs; `None`: the one inside.
    pub object: Option<PathBuf>,
    /// The fabric interface; it names the pins.
    pub fabric: String,
    /// The interfaces at the start: the program is attached to all of them.
    pub interfaces: Interfaces,
    /// Sizes of the frame log.
    pub sizes: Sizes,
    /// The groups whose frames the kernel stores, by index; `None` leaves them to the daemon.
    pub fill: Option<Vec<u16>>,
    /// The settings; the leases in them are replaced by [`super::Datapath::renew_leases`].
    pub settings: abi::Settings,
    /// Room for the lists of who may ask.
    pub acl: acl::Size,
    /// True for log lines from the kernel.
    pub debug: bool,
    /// True when what an earlier daemon left is gone on with, and left to the next one.
    pub handover: bool,
}

impl Config {
    /// As the settings ask, `None` with `-xdp off`; `answers` is what `kernel_settings` made of them.
    #[must_use]
    pub fn from(settings: &Settings, fabric: &Fabric, answers: abi::Settings) -> Option<Self> {
        let mode = match settings.xdp.mode {
            XdpMode::Off => return None,
            XdpMode::Native | XdpMode::Auto => Mode::Native,
            XdpMode::Skb => Mode::Skb,
        };
        let ingress = &settings.ingress;
        let groups = || group::joined(ingress.shard_bits, ingress.subtree_data, ingress.beef).collect();
        Some(Self {
            mode,
            bpffs: settings.xdp.bpffs.clone(),
            object: settings.xdp.object.clone(),
            fabric: fabric.ingress.name.clone(),
            interfaces: Interfaces::from(fabric),
            sizes: Sizes::from(settings),
            fill: kernel_fills(settings).then(groups),
            settings: answers,
            acl: acl::Size::from(settings),
            debug: settings.telemetry.debug,
            handover: settings.xdp.handover,
        })
    }
}

/// True when the kernel is to store frames.
fn kernel_fills(settings: &Settings) -> bool {
    settings.ingress.join
        && match settings.xdp.fill {
            FillMode::Kernel => true,
            FillMode::Daemon => false,
            FillMode::Auto => matches!(settings.xdp.mode, XdpMode::Native | XdpMode::Auto),
        }
}

/// One interface that multicast repairs leave by.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EgressInterface {
    /// Its index.
    pub ifindex: u32,
    /// Source MAC and address of repairs.
    pub egress: abi::Egress,
}

/// What the kernel side goes by of the interfaces, which come and go and change.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Interfaces {
    /// All of them, each once: name and index. At most 32.
    pub all: Vec<(String, u32)>,
    /// Index of the interface that holds the NACK address.
    pub nack: u32,
    /// Its MAC.
    pub nack_mac: Option<[u8; 6]>,
    /// Index of the interface that frames come in by.
    pub ingress: u32,
    /// Interfaces that multicast repairs leave by, as many as at the start.
    pub egress: Vec<EgressInterface>,
    /// Longest frame that leaves in one packet by each of them, bytes.
    pub max_frame: u32,
}

impl From<&Fabric> for Interfaces {
    fn from(fabric: &Fabric) -> Self {
        let egress = |egress: &Egress| EgressInterface {
            ifindex: egress.interface.index,
            egress: abi::Egress {
                source: egress.source.octets(),
                mac: egress.interface.mac.unwrap_or_default(),
                reserved: [0; 2],
            },
        };
        Self {
            all: fabric.attach_to(),
            nack: fabric.nack.index,
            nack_mac: fabric.nack.mac,
            ingress: fabric.ingress.index,
            egress: fabric.egress.iter().map(egress).collect(),
            max_frame: fabric.max_frame(),
        }
    }
}

/// What operators change of [`abi::Settings`] while programs run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Changeable {
    /// The limits.
    pub limits: abi::Limits,
    /// The budgets in bytes.
    pub bytes: ByteLimits,
    /// The hold-down.
    pub hold_down: HoldDown,
    /// Bits of [`setting_flag::LIVE`].
    pub flags: u32,
    /// Life of each class in milliseconds.
    pub life_ms: [u32; 5],
}

impl Changeable {
    /// `settings` with this in it.
    #[must_use]
    pub(crate) const fn within(&self, settings: abi::Settings) -> abi::Settings {
        let Self { limits, bytes, hold_down, flags, life_ms } = *self;
        let flags = settings.flags & !setting_flag::LIVE | flags;
        abi::Settings { limits, bytes, hold_down, flags, life_ms, ..settings }
    }
}

impl From<&Settings> for Changeable {
    fn from(settings: &Settings) -> Self {
        let dedup = dedup::Config::from(settings);
        Self {
            limits: limits(&settings.limits),
            bytes: byte_limits(&settings.limits),
            hold_down: HoldDown {
                ours_ns: nanoseconds(settings.repair.holddown),
                others_ns: nanoseconds(dedup.repeat_after),
            },
            flags: changeable_flags(settings, &dedup),
            life_ms: lives_ms(&settings.cache),
        }
    }
}

/// What the kernel program goes by, and the daemon's engine with it. No lease: the kernel answers nothing yet.
#[must_use]
pub(crate) fn kernel_settings(settings: &Settings, fabric: &Fabric, hash_seed: u64) -> abi::Settings {
    let (sizes, changeable) = (Sizes::from(settings), Changeable::from(settings));
    abi::Settings {
        generation: 1,
        lease_until_ns: 0,
        hash_seed,
        limits: changeable.limits,
        hold_down: changeable.hold_down,
        layout: abi::LAYOUT,
        flags: lasting_flags(settings, fabric) | changeable.flags,
        nack_ifindex: fabric.nack.index,
        bucket_mask: sizes.buckets - 1,
        hold_down_mask: sizes.hold_down_words - 1,
        limit_mask: table::buckets(settings.limits.table_entries) - 1,
        max_frame: fabric.max_frame(),
        nack_addr: fabric.nack_addr.octets(),
        nack_port: settings.nack.port.to_be_bytes(),
        egress_port: settings.egress.port.to_be_bytes(),
        life_ms: changeable.life_ms,
        ingress_ifindex: fabric.ingress.index,
        ingress_port: settings.ingress.listen_port.to_be_bytes(),
        group_prefix: settings.ingress.group_prefix.to_be_bytes(),
        group_id: settings.ingress.group_id.to_be_bytes(),
        unicast_hop_limit: fabric.nack.unicast_hop_limit().unwrap_or(64),
        multicast_hop_limit: settings.egress.hop_limit,
        shard_bits: settings.ingress.shard_bits.get(),
        beef_bits: settings.ingress.beef.unwrap_or_default().get(),
        nack_mac: fabric.nack.mac.unwrap_or_default(),
        daemon_until_ns: 0,
        watch_until_ns: 0,
        watch_one_in: 0,
        watch_flags: 0,
        since_unix_ns: 0,
        build: build(),
        acl: 0,
        hop_limit_min: settings.acl.hop_limit_min,
        egress_interfaces: u8::try_from(fabric.egress.len()).unwrap_or(u8::MAX),
        reserved: [0; 2],
        byte_mask: byte_mask(&changeable.bytes, settings.limits.table_entries),
        bytes: changeable.bytes,
    }
}

/// Version and commit of this build.
fn build() -> [u8; abi::BUILD_LEN] {
    let mut build = [0; abi::BUILD_LEN];
    let text = format!("{} {}", env!("CARGO_PKG_VERSION"), env!("RETRY_COMMIT"));
    for (place, byte) in build.iter_mut().zip(text.bytes()) {
        *place = byte;
    }
    build
}

fn limits(limits: &Limits) -> abi::Limits {
    abi::Limits {
        address: TokenBucket::new(limits.ip_rate, limits.ip_burst),
        group: TokenBucket::new(limits.group_rate, limits.group_burst),
        sequence: Window::new(limits.sequence_max, nanoseconds(limits.sequence_window)),
        chain: Window::new(limits.chain_rate, nanoseconds(limits.chain_window)),
    }
}

fn byte_limits(limits: &Limits) -> ByteLimits {
    ByteLimits {
        source: ByteBudget::new(limits.source_bytes),
        total: ByteBudget::new(limits.total_bytes),
        unproven_factor: u64::from(limits.unproven_factor),
    }
}

/// The flags that change while programs run.
fn changeable_flags(settings: &Settings, dedup: &dedup::Config) -> u32 {
    let multicasts = settings.repair.multicast;
    joined([
        (multicasts, setting_flag::MULTICAST),
        (settings.repair.unicast, setting_flag::UNICAST),
        (settings.nack.suppress_ack, setting_flag::SUPPRESS_ACK),
        (settings.nack.suppress_miss, setting_flag::SUPPRESS_MISS),
        (settings.limits.throttle_response, setting_flag::THROTTLE_RESPONSE),
        // Such repairs go through the stack, which alone can loop them back; and the daemon alone can claim before it sends.
        (settings.egress.multicast_loop || multicasts && dedup.is_strict(), setting_flag::DAEMON_MULTICAST),
        (multicasts && dedup.announces(), setting_flag::ANNOUNCE),
        (!byte_limits(&settings.limits).is_off(), setting_flag::BYTE_BUDGETS),
    ])
}

/// The flags that last as long as the daemon.
fn lasting_flags(settings: &Settings, fabric: &Fabric) -> u32 {
    let here = fabric.egress.iter().any(|egress| egress.interface.index == fabric.nack.index);
    joined([
        (settings.cache.backend == Backend::Redis, setting_flag::STORE),
        (settings.proxy.enabled, setting_flag::RECOVERY),
        (here, setting_flag::EGRESS_HERE),
        (settings.xdp.mode == XdpMode::Skb, setting_flag::DAEMON_FRAMES),
        (settings.ingress.source_mode == SourceMode::Ssm, setting_flag::NAMED_SOURCES),
        (settings.telemetry.latency_histograms, setting_flag::LATENCY),
        (settings.telemetry.top_talkers > 0, setting_flag::TALKERS),
    ])
}

fn joined<const N: usize>(flags: [(bool, u32); N]) -> u32 {
    flags.into_iter().fold(0, |flags, (on, flag)| if on { flags | flag } else { flags })
}
