//! The kernel side, as the settings ask for it.

use std::sync::Arc;

use retry_common::abi;

use super::StartError;
use super::translate::group_indexes;
use crate::datapath::{Datapath, EgressInterface, Interfaces, Mode, Request};
use crate::fabric::{Egress, Fabric, FabricError};
use crate::framelog::{Pages, Sizes};
use crate::net::interface;
use crate::settings::{FillMode, Settings, XdpMode};

/// The kernel side as asked for, or plain memory, and the reason for what it is.
#[expect(clippy::type_complexity, reason = "three things that only `run` takes apart")]
pub(super) fn open_datapath(
    settings: &Settings,
    fabric: &Fabric,
    abi: abi::Settings,
) -> Result<(Option<(Datapath, Mode)>, Arc<Pages>, String), StartError> {
    let sizes = Sizes::new(settings.cache.memory, settings.cache.memory_long);
    let plain =
        || Pages::plain(sizes).map(Arc::new).map_err(|source| StartError::Memory { bytes: sizes.ring_len(), source });
    let (mode, asked) = match settings.xdp.mode {
        XdpMode::Off => {
            tracing::info!(xdp = "off", reason = "-xdp off", "the daemon's socket answers NACKs");
            return Ok((None, plain()?, "-xdp off".to_owned()));
        }
        XdpMode::Native => (Mode::Native, "native"),
        XdpMode::Skb => (Mode::Skb, "skb"),
        XdpMode::Auto => (Mode::Native, "auto"),
    };
    let filled = kernel_fills(settings).then(|| group_indexes(settings));
    let (attach_to, now) = (fabric.attach_to(), interfaces(fabric));
    let own = interface::own_addresses(&interface::list().map_err(FabricError::List)?, fabric.nack.index);
    let request = Request {
        mode,
        bpffs: &settings.xdp.bpffs,
        fabric: &fabric.ingress.name,
        interfaces: &attach_to,
        egress: &now.egress,
        sizes,
        fill: filled.as_deref(),
        own: &own,
        settings: abi,
        debug: settings.telemetry.debug,
    };
    match Datapath::open(&request) {
        Ok(datapath) => {
            tracing::info!(xdp = mode_name(mode), reason = format!("-xdp {asked}"), "the kernel answers NACKs");
            let pages = datapath.pages();
            Ok((Some((datapath, mode)), pages, format!("-xdp {asked}")))
        }
        Err(error) if settings.xdp.mode == XdpMode::Auto && settings.xdp.fill != FillMode::Kernel => {
            tracing::warn!(xdp = "off", reason = %error, "the daemon's socket answers NACKs");
            Ok((None, plain()?, error.to_string()))
        }
        Err(source) => Err(StartError::Datapath { mode: asked, source }),
    }
}

/// What the kernel side goes by of the interfaces.
pub(super) fn interfaces(fabric: &Fabric) -> Interfaces {
    let egress = |egress: &Egress| EgressInterface {
        ifindex: egress.interface.index,
        egress: abi::Egress {
            source: egress.source.octets(),
            mac: egress.interface.mac.unwrap_or_default(),
            reserved: [0; 2],
        },
    };
    Interfaces {
        all: fabric.attach_to(),
        nack: fabric.nack.index,
        nack_mac: fabric.nack.mac,
        ingress: fabric.ingress.index,
        egress: fabric.egress.iter().map(egress).collect(),
        max_frame: fabric.max_frame(),
    }
}

/// True when the kernel is to store frames.
pub(super) fn kernel_fills(settings: &Settings) -> bool {
    settings.ingress.join
        && match settings.xdp.fill {
            FillMode::Kernel => true,
            FillMode::Daemon => false,
            FillMode::Auto => matches!(settings.xdp.mode, XdpMode::Native | XdpMode::Auto),
        }
}

pub(super) const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Native => "native",
        Mode::Skb => "skb",
    }
}
