//! The ADVERT beacon (BRC-126, docs/wire-format.md): tells listeners that this endpoint is here, where to send NACKs, and when it drains.

pub(crate) mod registry;
#[cfg(test)]
mod tests;

use std::io;
use std::net::Ipv6Addr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use retry_common::group::{self, SourceMode};
use retry_common::wire::advert::{self, ADVERT_LEN, Advert, BeaconScope};
use socket2::Socket;

use crate::fabric::Fabric;
use crate::net::multicast::{self, Egress};
use crate::net::options;
use crate::settings::{ControlGroupCompat, Settings};

/// UDP port of the beacon groups. It is a fact of the fabric: `nack-port` is announced inside the ADVERT.
pub(crate) const BEACON_PORT: u16 = 9300;

/// The groups that ADVERTs of a scope may come to.
///
/// With sources named, that is the any-source group and the source-specific one: the field's endpoints send to either, by
/// their `control-group-compat`. The scope org has no source-specific groups on this fabric ([`group::prefix`]).
#[must_use]
pub(crate) fn groups(scope: BeaconScope, mode: SourceMode, group_id: u16) -> Vec<Ipv6Addr> {
    let modes: &[SourceMode] = match mode {
        SourceMode::Asm => &[SourceMode::Asm],
        SourceMode::Ssm => &[SourceMode::Asm, SourceMode::Ssm],
    };
    let prefixes = modes.iter().flat_map(|mode| scope.scopes().iter().filter_map(|&scope| group::prefix(scope, *mode)));
    prefixes.map(|prefix| Ipv6Addr::from(group::address(prefix, group_id, group::BEACON))).collect()
}

/// The groups that ADVERTs of a scope go to.
///
/// With sources named, a listener that has this endpoint in its list joins (S,G) of the source-specific groups, and the
/// source is `bind-source`; a network may carry nothing else. A listener that has not heard of this endpoint cannot name
/// it, and joins the any-source groups. A listener that hears both keeps one entry, by instance id (BRC-126). Where a scope
/// has no source-specific group, ADVERTs go to the any-source group.
#[must_use]
pub(crate) fn announced(
    scope: BeaconScope,
    mode: SourceMode,
    compat: ControlGroupCompat,
    group_id: u16,
) -> Vec<Ipv6Addr> {
    let any_source = groups(scope, SourceMode::Asm, group_id);
    let modes = match (mode, compat) {
        (SourceMode::Asm, _) | (SourceMode::Ssm, ControlGroupCompat::AsmOnly) => return any_source,
        (SourceMode::Ssm, ControlGroupCompat::Both) => return groups(scope, SourceMode::Ssm, group_id),
        (SourceMode::Ssm, ControlGroupCompat::Derived) => [SourceMode::Ssm, SourceMode::Asm],
    };
    let first = |scope: &group::Scope| modes.iter().find_map(|mode| group::prefix(*scope, *mode));
    let prefixes = scope.scopes().iter().filter_map(first);
    prefixes.map(|prefix| Ipv6Addr::from(group::address(prefix, group_id, group::BEACON))).collect()
}

/// What is announced, and how it leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// `nack-addr`.
    pub nack_address: Ipv6Addr,
    /// `nack-port`.
    pub nack_port: u16,
    /// `beacon-tier`, 0 to 254: lower is asked first.
    pub tier: u8,
    /// `beacon-preference`: higher is asked first within a tier.
    pub preference: u8,
    /// `beacon-interval`: listeners forget an endpoint after three of them.
    pub interval: Duration,
    /// `beacon-scope`.
    pub scope: BeaconScope,
    /// `source-mode`.
    pub source_mode: SourceMode,
    /// `control-group-compat`: which groups ADVERTs go to with sources named.
    pub control_groups: ControlGroupCompat,
    /// `mc-group-id`.
    pub group_id: u16,
    /// `beacon-flags-multicast`: repairs go by multicast.
    pub multicast: bool,
    /// `beacon-flags-unicast`: repairs go by unicast.
    pub unicast: bool,
    /// `beacon-flags-draining`: every ADVERT says Draining.
    pub draining: bool,
    /// `proxy-enabled`: the endpoint asks others for what it does not have.
    pub has_parent: bool,
    /// `instance`: listeners know the endpoint by this name's CRC32c.
    pub instance: String,
    /// Index of the first egress interface.
    pub interface: u32,
    /// `bind-source`, else the interface's address; unspecified leaves the choice to the kernel.
    pub source: Ipv6Addr,
    /// `egress-hoplimit`.
    pub hop_limit: u8,
}

impl Config {
    /// As the settings ask, on these interfaces; `None` with `-beacon-enabled=false`, or without an egress interface.
    #[must_use]
    pub(crate) fn from(settings: &Settings, fabric: &Fabric) -> Option<Self> {
        let first = fabric.egress.first().filter(|_| settings.beacon.enabled)?;
        Some(Self {
            nack_address: fabric.nack_addr,
            nack_port: settings.nack.port,
            tier: settings.beacon.tier,
            preference: settings.beacon.preference,
            interval: settings.beacon.interval,
            scope: settings.beacon.scope,
            source_mode: settings.ingress.source_mode,
            control_groups: settings.beacon.control_groups,
            group_id: settings.ingress.group_id,
            multicast: settings.repair.multicast,
            unicast: settings.repair.unicast,
            draining: settings.beacon.draining,
            has_parent: settings.proxy.enabled,
            instance: settings.telemetry.instance.clone(),
            interface: first.interface.index,
            source: first.source,
            hop_limit: settings.egress.hop_limit,
        })
    }
}

/// The ADVERT of this configuration; `draining` announces a shutdown whatever that says.
#[must_use]
pub(crate) fn advert(config: &Config, draining: bool) -> [u8; ADVERT_LEN] {
    let flag = |on, bit| if on { bit } else { 0 };
    // A part of a second counts as a whole one: listeners must not forget us early.
    let seconds = config.interval.as_nanos().div_ceil(1_000_000_000);
    Advert {
        scope: config.scope.byte(),
        nack_addr: config.nack_address.octets(),
        nack_port: config.nack_port,
        tier: config.tier,
        preference: config.preference,
        interval_s: u16::try_from(seconds).unwrap_or(u16::MAX),
        flags: flag(config.has_parent, advert::FLAG_HAS_PARENT)
            | flag(config.draining || draining, advert::FLAG_DRAINING)
            | flag(config.unicast, advert::FLAG_UNICAST)
            | flag(config.multicast, advert::FLAG_MULTICAST),
        instance_id: advert::instance_id(&config.instance),
    }
    .to_bytes()
}

/// Sends ADVERTs; when is up to the caller: at once at start, then every interval, and with `draining` before a shutdown.
#[derive(Debug)]
pub(crate) struct BeaconSender {
    config: Mutex<Config>,
    /// Index of the interface that ADVERTs leave by, and their source: both may change.
    way: Mutex<(u32, Ipv6Addr)>,
    groups: Vec<Ipv6Addr>,
    socket: Socket,
}

impl BeaconSender {
    /// Opens the socket; its port is a free one, as in the field's program. ADVERTs go to the [`announced`] groups.
    ///
    /// # Errors
    /// What the system returns.
    pub(crate) fn open(config: Config) -> io::Result<Self> {
        let socket = options::udp_socket()?;
        // A listener on this host hears its own endpoint's ADVERTs.
        socket.set_multicast_loop_v6(true)?;
        let Config { scope, source_mode, control_groups, group_id, .. } = config;
        let derives = source_mode == SourceMode::Ssm && control_groups != ControlGroupCompat::AsmOnly;
        let without = |scope: &&group::Scope| derives && group::prefix(**scope, source_mode).is_none();
        if let Some(scope) = config.scope.scopes().iter().find(without) {
            tracing::warn!(
                ?scope,
                "-control-group-compat: -beacon-scope has a scope without source-specific groups; there, ADVERTs go to the \
                 any-source group alone"
            );
        }
        let groups = announced(scope, source_mode, control_groups, group_id);
        let way = Mutex::new((config.interface, config.source));
        Ok(Self { config: Mutex::new(config), way, groups, socket })
    }

    /// ADVERTs leave by this interface and from this source from now on.
    pub(crate) fn leave_by(&self, interface: u32, source: Ipv6Addr) {
        *self.way.lock().unwrap_or_else(PoisonError::into_inner) = (interface, source);
    }

    /// ADVERTs say what these settings have of tier, preference and flags from now on; true when that is something else.
    pub(crate) fn announce(&self, settings: &Settings) -> bool {
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let new = Config {
            tier: settings.beacon.tier,
            preference: settings.beacon.preference,
            draining: settings.beacon.draining,
            multicast: settings.repair.multicast,
            unicast: settings.repair.unicast,
            ..config.clone()
        };
        let is_new = *config != new;
        *config = new;
        is_new
    }

    /// Sends one ADVERT to each group and returns how many left.
    ///
    /// # Errors
    /// Those of [`multicast::send`], when none left. Each group is tried; one that fails beside others that do not is logged.
    pub(crate) fn send(&self, draining: bool) -> io::Result<usize> {
        let (bytes, hop_limit) = {
            let config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
            (advert(&config, draining), config.hop_limit)
        };
        let (interface, source) = *self.way.lock().unwrap_or_else(PoisonError::into_inner);
        let egress = Egress { interface, source, port: BEACON_PORT, hop_limit };
        let mut sent = 0;
        let mut failed = None;
        for &group in &self.groups {
            match multicast::send(&self.socket, &egress, group, &bytes) {
                Ok(()) => sent += 1,
                Err(error) => failed = Some((group, error)),
            }
        }
        match failed {
            Some((_, error)) if sent == 0 => Err(error),
            Some((group, error)) => {
                tracing::warn!(%group, %error, "an ADVERT did not leave");
                Ok(sent)
            }
            None => Ok(sent),
        }
    }
}
