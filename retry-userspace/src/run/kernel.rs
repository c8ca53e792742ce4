//! The kernel side, as the settings ask for it, or plain memory.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::sync::Arc;

use retry_common::abi;
use tokio_util::sync::CancellationToken;

use super::StartError;
use super::handover::{self, Opened, StartMode};
use super::state::Mode;
use crate::acl;
use crate::counters::{SourceCounts, UserCounters};
use crate::datapath::{
    self, Datapath, DatapathError, DrawnNacks, Events, Found, KernelFill, KernelKnown, KernelSources, LogLines, Parts,
    inspect,
};
use crate::fabric::{Fabric, FabricError};
use crate::framelog::{self, Pages, Sizes};
use crate::latency::UserLatency;
use crate::limits::{AddressTable, ByteTables, GroupTable};
use crate::metrics::XdpReason;
use crate::net::interface;
use crate::settings::{FillMode, Settings, XdpMode};

/// What answers NACKs, and its parts; of the kernel side's there is none when the daemon's socket answers.
pub(super) struct Kernel {
    pub(super) mode: Mode,
    /// The frame log.
    pub(super) log: Opened,
    /// Seed of all hashes.
    pub(super) hash_seed: u64,
    /// The daemon's counters.
    pub(super) counters: UserCounters,
    /// The daemon's histograms.
    pub(super) latency: UserLatency,
    /// Frames that the daemon stored.
    pub(super) stored: SourceCounts,
    /// The tables of who may ask; none is in force.
    pub(super) acl: acl::Tables,
    pub(super) datapath: Option<Datapath>,
    pub(super) events: Option<Events>,
    pub(super) drawn: Option<DrawnNacks>,
    pub(super) groups: Option<GroupTable>,
    /// The states of the budgets in bytes.
    pub(super) bytes: Option<ByteTables>,
    /// Who has asked, as the kernel has it, and its table of known listeners.
    pub(super) known: Option<(AddressTable, KernelKnown)>,
    pub(super) sources: Option<KernelSources>,
    pub(super) fill: Option<KernelFill>,
    pub(super) log_lines: Option<LogLines>,
}

impl Kernel {
    /// Opens the kernel side as asked for; with `-xdp auto`, plain memory where it cannot be had.
    pub(super) fn open(
        settings: &Settings,
        fabric: &Fabric,
        answers: abi::Settings,
        told: &CancellationToken,
    ) -> Result<Self, StartError> {
        let Some(config) = datapath::Config::from(settings, fabric, answers) else {
            tracing::info!(xdp = "off", reason = "-xdp off", "the daemon's socket answers NACKs");
            return Self::off(settings, fabric, &answers, XdpReason::Asked, "-xdp off".to_owned());
        };
        let asked = settings.xdp.mode.name();
        let reason = if settings.xdp.mode == XdpMode::Auto { XdpReason::Auto } else { XdpReason::Asked };
        let own = interface::own_addresses(&interface::list().map_err(FabricError::List)?, fabric.nack.index);
        match Self::attached(settings, &config, &own, told) {
            Ok((parts, log)) => {
                let mode = Mode { name: config.mode.name(), reason, why: format!("-xdp {asked}") };
                tracing::info!(xdp = mode.name, reason = mode.why, "the kernel answers NACKs");
                tracing::info!(
                    "NACKs that the kernel program answers do not come to the host's firewall: -acl-deny, -acl-allow and \
                     -acl-file refuse sources, and `retry-endpoint firewall` makes such a file of nftables' rules"
                );
                Ok(Self::on(mode, parts, log))
            }
            Err(source @ DatapathError::GivenUp) => Err(StartError::Datapath { mode: asked, source }),
            Err(error) if settings.xdp.mode == XdpMode::Auto && settings.xdp.fill != FillMode::Kernel => {
                tracing::warn!(xdp = "off", reason = %error, "the daemon's socket answers NACKs");
                Self::off(settings, fabric, &answers, XdpReason::from(&error), error.to_string())
            }
            Err(source) => Err(StartError::Datapath { mode: asked, source }),
        }
    }

    /// The kernel side and the log in its maps: that of an earlier daemon if there is one, else a new one.
    fn attached(
        settings: &Settings,
        config: &datapath::Config,
        own: &BTreeSet<Ipv6Addr>,
        told: &CancellationToken,
    ) -> Result<(Parts, Opened), DatapathError> {
        let open = || {
            let mut parts = Datapath::open(config, own, &|| told.is_cancelled())?;
            let found = std::mem::replace(&mut parts.found, Found::Nothing);
            let log = handover::open_log(&parts.pages, found, parts.hash_seed, settings.cache.max_keys);
            if log.is_err() {
                parts.datapath.give_up();
            }
            Ok::<_, DatapathError>((parts, log))
        };
        let (parts, log) = open()?;
        let unusable = match log {
            Ok(log) => return Ok((parts, log)),
            Err(unusable) => unusable,
        };
        tracing::warn!(reason = %unusable, "the frame log that an earlier daemon left is of no use: a fresh start");
        // Before the directory is opened again.
        drop(parts);
        let (parts, log) = open()?;
        let log = log.map_err(|unusable| DatapathError::Load(unusable.to_string()))?;
        Ok((parts, Opened { start: StartMode::Unfit, ..log }))
    }

    fn on(mode: Mode, parts: Parts, log: Opened) -> Self {
        let Parts {
            datapath,
            hash_seed,
            counters,
            latency,
            sources_stored,
            acl,
            events,
            drawn,
            groups,
            bytes,
            addresses,
            known,
            sources,
            fill,
            log_lines,
            ..
        } = parts;
        Self {
            mode,
            log,
            hash_seed,
            counters: UserCounters::over(counters),
            latency: UserLatency::over(latency),
            stored: SourceCounts::over(sources_stored),
            acl,
            datapath: Some(datapath),
            events: Some(events),
            drawn: Some(drawn),
            groups: Some(groups),
            bytes: Some(bytes),
            known: Some((addresses, known)),
            // Where the daemon stores all frames, their sources are its sockets' matter.
            sources: fill.is_some().then_some(sources),
            fill,
            log_lines,
        }
    }

    fn off(
        settings: &Settings,
        fabric: &Fabric,
        answers: &abi::Settings,
        reason: XdpReason,
        why: String,
    ) -> Result<Self, StartError> {
        end_what_is_left(settings, fabric);
        let sizes = Sizes::from(settings);
        let pages = Pages::plain(sizes).map_err(|source| StartError::Memory { bytes: sizes.ring_len(), source })?;
        let pages = Arc::new(pages);
        let (writer, log) = framelog::open(Arc::clone(&pages), answers.hash_seed, settings.cache.max_keys);
        Ok(Self {
            mode: Mode { name: "off", reason, why },
            log: Opened { writer, log, start: StartMode::Fresh, old: None },
            hash_seed: answers.hash_seed,
            counters: UserCounters::default(),
            latency: UserLatency::default(),
            stored: SourceCounts::default(),
            acl: acl::Tables::plain(acl::Size::from(settings)).map_err(acl::RulesError::Memory)?,
            datapath: None,
            events: None,
            drawn: None,
            groups: None,
            bytes: None,
            known: None,
            sources: None,
            fill: None,
            log_lines: None,
        })
    }
}

/// Ends the kernel programs of earlier daemons on these interfaces: they would go on answering from logs that this daemon does
/// not fill.
fn end_what_is_left(settings: &Settings, fabric: &Fabric) {
    let indexes: Vec<u32> = fabric.attach_to().into_iter().map(|(_, index)| index).collect();
    match inspect::end_on(&settings.xdp.bpffs, &indexes, None) {
        Ok(ended) => {
            for interface in ended {
                tracing::warn!(interface, "the kernel program and the frames of an earlier daemon are given up");
            }
        }
        Err(error) => tracing::warn!(%error, "what an earlier daemon left in the kernel cannot be ended"),
    }
}
