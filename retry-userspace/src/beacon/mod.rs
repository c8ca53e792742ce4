//! The ADVERT beacon (BRC-126, docs/wire-format.md): tells listeners that this endpoint is here, where to send NACKs, and when it drains.

pub mod registry;
#[cfg(test)]
mod tests;

use std::io;
use std::net::Ipv6Addr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use retry_common::group::{self, SourceMode};
use retry_common::wire::advert::{self, ADVERT_LEN, Advert, BeaconScope};
use socket2::Socket;

use crate::net::multicast::{self, Egress};
use crate::net::options;

/// UDP port of the beacon groups. It is a fact of the fabric: `nack-port` is announced inside the ADVERT.
pub const BEACON_PORT: u16 = 9300;

/// The groups that ADVERTs of a scope go to.
///
/// With sources named, ADVERTs go to the source-specific beacon groups, whose source is `bind-source`: listeners that have
/// us in their list join (S,G), and a network that carries nothing else carries that. They go to the any-source groups as
/// well: a listener that has not heard of us cannot name us, and hearing of endpoints that are not configured is what the
/// beacon is for. Who hears both keeps one entry, by instance id (BRC-126). The scope org has no source-specific groups on
/// this fabric ([`group::prefix`]): there, ADVERTs go to the any-source group alone.
#[must_use]
pub fn groups(scope: BeaconScope, mode: SourceMode, group_id: u16) -> Vec<Ipv6Addr> {
    let modes: &[SourceMode] = match mode {
        SourceMode::Asm => &[SourceMode::Asm],
        SourceMode::Ssm => &[SourceMode::Asm, SourceMode::Ssm],
    };
    let prefixes = modes.iter().flat_map(|mode| scope.scopes().iter().filter_map(|&scope| group::prefix(scope, *mode)));
    prefixes.map(|prefix| Ipv6Addr::from(group::address(prefix, group_id, group::BEACON))).collect()
}

/// What is announced, and how it leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
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

/// The ADVERT of these settings; `draining` announces a shutdown whatever the settings say.
#[must_use]
pub fn advert(settings: &Settings, draining: bool) -> [u8; ADVERT_LEN] {
    let flag = |on, bit| if on { bit } else { 0 };
    // A part of a second counts as a whole one: listeners must not forget us early.
    let seconds = settings.interval.as_nanos().div_ceil(1_000_000_000);
    Advert {
        scope: settings.scope.byte(),
        nack_addr: settings.nack_address.octets(),
        nack_port: settings.nack_port,
        tier: settings.tier,
        preference: settings.preference,
        interval_s: u16::try_from(seconds).unwrap_or(u16::MAX),
        flags: flag(settings.has_parent, advert::FLAG_HAS_PARENT)
            | flag(settings.draining || draining, advert::FLAG_DRAINING)
            | flag(settings.unicast, advert::FLAG_UNICAST)
            | flag(settings.multicast, advert::FLAG_MULTICAST),
        instance_id: advert::instance_id(&settings.instance),
    }
    .to_bytes()
}

/// Sends ADVERTs; when is up to the caller: at once at start, then every interval, and with `draining` before a shutdown.
#[derive(Debug)]
pub struct BeaconSender {
    settings: Settings,
    /// Index of the interface that ADVERTs leave by, and their source: both may change.
    way: Mutex<(u32, Ipv6Addr)>,
    groups: Vec<Ipv6Addr>,
    socket: Socket,
}

impl BeaconSender {
    /// Opens the socket; its port is a free one, as in the field's program.
    ///
    /// # Errors
    /// What the system returns.
    pub fn open(settings: &Settings) -> io::Result<Self> {
        let socket = options::udp_socket()?;
        // A listener on this host hears its own endpoint's ADVERTs.
        socket.set_multicast_loop_v6(true)?;
        let groups = groups(settings.scope, SourceMode::Asm, settings.group_id);
        let way = Mutex::new((settings.interface, settings.source));
        Ok(Self { groups, settings: settings.clone(), way, socket })
    }

    /// ADVERTs leave by this interface and from this source from now on.
    pub fn leave_by(&self, interface: u32, source: Ipv6Addr) {
        *self.way.lock().unwrap_or_else(PoisonError::into_inner) = (interface, source);
    }

    /// Sends to the [`groups`] of this source mode: any-source ones as opened, with `ssm` the source-specific ones too.
    #[must_use]
    pub fn in_mode(mut self, mode: SourceMode) -> Self {
        self.groups = groups(self.settings.scope, mode, self.settings.group_id);
        let without = |scope: &&group::Scope| group::prefix(**scope, mode).is_none();
        if let Some(scope) = self.settings.scope.scopes().iter().find(without) {
            tracing::warn!(
                ?scope,
                "-source-mode ssm: -beacon-scope has a scope without source-specific groups; there, ADVERTs go to the \
                 any-source group alone"
            );
        }
        self
    }

    /// Sends one ADVERT to each group and returns how many left.
    ///
    /// # Errors
    /// Those of [`multicast::send`], when none left. Each group is tried; one that fails beside others that do not is logged.
    pub fn send(&self, draining: bool) -> io::Result<usize> {
        let bytes = advert(&self.settings, draining);
        let (interface, source) = *self.way.lock().unwrap_or_else(PoisonError::into_inner);
        let egress = Egress { interface, source, port: BEACON_PORT, hop_limit: self.settings.hop_limit };
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
