//! The kernel side, as the settings ask for it, or plain memory.

use std::sync::Arc;

use retry_common::abi;
use tokio_util::sync::CancellationToken;

use super::StartError;
use super::state::Mode;
use crate::counters::UserCounters;
use crate::datapath::{self, Datapath, DatapathError, Events, Found, KernelFill, KernelSources, LogLines, Parts};
use crate::fabric::{Fabric, FabricError};
use crate::framelog::{Pages, Sizes};
use crate::limits::GroupTable;
use crate::metrics::XdpReason;
use crate::net::interface;
use crate::settings::{FillMode, Settings, XdpMode};

/// What answers NACKs, and its parts; of the kernel side's there is none when the daemon's socket answers.
pub(super) struct Kernel {
    pub(super) mode: Mode,
    pub(super) pages: Arc<Pages>,
    /// What stands in the pages.
    pub(super) found: Found,
    /// Seed of all hashes.
    pub(super) hash_seed: u64,
    /// The daemon's counters.
    pub(super) counters: UserCounters,
    pub(super) datapath: Option<Datapath>,
    pub(super) events: Option<Events>,
    pub(super) groups: Option<GroupTable>,
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
            return Self::off(settings, &answers, XdpReason::Asked, "-xdp off".to_owned());
        };
        let asked = settings.xdp.mode.name();
        let reason = if settings.xdp.mode == XdpMode::Auto { XdpReason::Auto } else { XdpReason::Asked };
        let own = interface::own_addresses(&interface::list().map_err(FabricError::List)?, fabric.nack.index);
        match Datapath::open(&config, &own, &|| told.is_cancelled()) {
            Ok(parts) => {
                let mode = Mode { name: config.mode.name(), reason, why: format!("-xdp {asked}") };
                tracing::info!(xdp = mode.name, reason = mode.why, "the kernel answers NACKs");
                Ok(Self::on(mode, parts))
            }
            Err(source @ DatapathError::GivenUp) => Err(StartError::Datapath { mode: asked, source }),
            Err(error) if settings.xdp.mode == XdpMode::Auto && settings.xdp.fill != FillMode::Kernel => {
                tracing::warn!(xdp = "off", reason = %error, "the daemon's socket answers NACKs");
                Self::off(settings, &answers, XdpReason::from(&error), error.to_string())
            }
            Err(source) => Err(StartError::Datapath { mode: asked, source }),
        }
    }

    fn on(mode: Mode, parts: Parts) -> Self {
        let Parts { datapath, pages, found, hash_seed, counters, events, groups, sources, fill, log_lines } = parts;
        Self {
            mode,
            pages,
            found,
            hash_seed,
            counters: UserCounters::over(counters),
            datapath: Some(datapath),
            events: Some(events),
            groups: Some(groups),
            // Where the daemon stores all frames, their sources are its sockets' matter.
            sources: fill.is_some().then_some(sources),
            fill,
            log_lines,
        }
    }

    fn off(settings: &Settings, answers: &abi::Settings, reason: XdpReason, why: String) -> Result<Self, StartError> {
        let sizes = Sizes::from(settings);
        let pages = Pages::plain(sizes).map_err(|source| StartError::Memory { bytes: sizes.ring_len(), source })?;
        Ok(Self {
            mode: Mode { name: "off", reason, why },
            pages: Arc::new(pages),
            found: Found::Nothing,
            hash_seed: answers.hash_seed,
            counters: UserCounters::default(),
            datapath: None,
            events: None,
            groups: None,
            sources: None,
            fill: None,
            log_lines: None,
        })
    }
}
