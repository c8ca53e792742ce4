//! The interfaces and addresses that the settings name, looked up at start and whenever something changes.

use std::net::Ipv6Addr;
use std::ops::Range;

use retry_common::abi::KERNEL_FRAME_MAX;

use crate::net::interface::{self, Interface, InterfaceError};
use crate::settings::Settings;

/// IPv6 and UDP headers.
const HEADERS: u32 = 48;

/// What the settings name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Names {
    /// `mc-iface`.
    pub ingress: String,
    /// `egress-iface`.
    pub egress: Vec<String>,
    /// `nack-addr`.
    pub nack_addr: Option<Ipv6Addr>,
    /// `bind-source`.
    pub bind_source: Option<Ipv6Addr>,
    /// No `mc-join-enabled`: `mc-iface` may be absent, and the first egress interface stands in for it.
    pub tee_only: bool,
}

impl From<&Settings> for Names {
    fn from(settings: &Settings) -> Self {
        Self {
            ingress: settings.ingress.mc_iface.clone(),
            egress: settings.egress.ifaces.clone(),
            nack_addr: settings.nack.addr,
            bind_source: settings.ingress.bind_source,
            tee_only: !settings.ingress.join,
        }
    }
}

/// One interface that multicast repairs leave by, and their source address there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Egress {
    /// The interface.
    pub interface: Interface,
    /// Source of repairs and beacons.
    pub source: Ipv6Addr,
}

/// What the settings name, as it is on this host.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fabric {
    /// Where frames come in.
    pub ingress: Interface,
    /// Where NACKs come in: the holder of the NACK address.
    pub nack: Interface,
    /// Where NACKs are sent to.
    pub nack_addr: Ipv6Addr,
    /// Where multicast repairs leave; the first carries beacons.
    pub egress: Vec<Egress>,
}

/// Why the settings do not fit this host: the setting, its value, what is there.
#[derive(Debug, thiserror::Error)]
pub enum FabricError {
    /// An interface is not there.
    #[error("-{setting} {value}: {source}")]
    Interface {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: String,
        /// What there is.
        source: InterfaceError,
    },
    /// An interface has no address that could be a source.
    #[error(
        "-{setting}: not set, and {interface} has no global unicast IPv6 address to take: set it, or give the interface one"
    )]
    NoAddress {
        /// The setting.
        setting: &'static str,
        /// The interface that was looked at.
        interface: String,
    },
    /// No interface holds the address.
    #[error("-{setting} {address}: no interface of this host has this address")]
    NotOurs {
        /// The setting.
        setting: &'static str,
        /// Its value.
        address: Ipv6Addr,
    },
    /// The list of interfaces cannot be read.
    #[error("cannot list the interfaces: {0}")]
    List(#[from] InterfaceError),
}

impl Fabric {
    /// Looks everything up.
    ///
    /// # Errors
    /// As [`Fabric::among`], and [`FabricError::List`].
    pub fn find(names: &Names) -> Result<Self, FabricError> {
        Self::among(&interface::list()?, names)
    }

    /// Looks everything up among the interfaces of this host.
    ///
    /// # Errors
    /// [`FabricError`] names the setting that does not fit.
    pub fn among(all: &[Interface], names: &Names) -> Result<Self, FabricError> {
        let Names { ingress, egress, nack_addr, bind_source, tee_only } = names;
        let by_name = |setting, name: &str| by_name(all, setting, name);
        let ingress = match by_name("mc-iface", ingress) {
            Err(_) if *tee_only => by_name("egress-iface", egress.first().map_or("", String::as_str))?,
            found => found?,
        };
        let interfaces = egress.iter().map(|name| by_name("egress-iface", name)).collect::<Result<Vec<_>, _>>()?;
        let nack_addr = match (*nack_addr, interfaces.first()) {
            (Some(address), _) => address,
            (None, Some(first)) => interface::first_global_unicast(first)
                .ok_or_else(|| FabricError::NoAddress { setting: "nack-addr", interface: first.name.clone() })?,
            (None, None) => {
                return Err(FabricError::NoAddress { setting: "nack-addr", interface: "no interface".to_owned() });
            }
        };
        let nack = interface::holder_among(all, nack_addr)
            .cloned()
            .ok_or(FabricError::NotOurs { setting: "nack-addr", address: nack_addr })?;
        if let Some(address) = *bind_source
            && interface::holder_among(all, address).is_none()
        {
            return Err(FabricError::NotOurs { setting: "bind-source", address });
        }
        let egress = interfaces
            .into_iter()
            .map(|interface| {
                let source = match bind_source {
                    Some(address) => *address,
                    None if interface.index == nack.index => nack_addr,
                    None => interface::first_global_unicast(&interface).ok_or_else(|| FabricError::NoAddress {
                        setting: "bind-source",
                        interface: interface.name.clone(),
                    })?,
                };
                Ok(Egress { interface, source })
            })
            .collect::<Result<Vec<_>, FabricError>>()?;
        Ok(Self { ingress, nack, nack_addr, egress })
    }

    /// Interfaces to attach the kernel program to, each once.
    pub fn attach_to(&self) -> Vec<(String, u32)> {
        let mut found: Vec<(String, u32)> = Vec::new();
        let all = [&self.ingress, &self.nack].into_iter().chain(self.egress.iter().map(|egress| &egress.interface));
        for interface in all {
            if !found.iter().any(|(_, index)| *index == interface.index) {
                found.push((interface.name.clone(), interface.index));
            }
        }
        found
    }

    /// The longest frame that leaves in one packet by every interface, bytes.
    pub fn max_frame(&self) -> u32 {
        let most = u32::try_from(KERNEL_FRAME_MAX).unwrap_or(u32::MAX);
        self.leaving().map(|interface| interface.reach().saturating_sub(HEADERS)).fold(most, u32::min)
    }

    /// The longest packet that is to leave where the other end of a veth pair takes less than this end's MTU, bytes.
    pub fn packet_limit(&self) -> Option<u32> {
        self.narrow().map(Interface::reach).min()
    }

    /// Lengths of frames that are lost there: too long for the other end, and not so long that this end makes fragments.
    pub fn lost_lengths(&self) -> Range<usize> {
        let length = |packet: u32| usize::try_from(packet.saturating_sub(HEADERS)).unwrap_or(0);
        let (reach, mtu) = (self.packet_limit(), self.narrow().map(|interface| interface.mtu).max());
        reach.zip(mtu).map_or(0..0, |(reach, mtu)| length(reach) + 1..length(mtu) + 1)
    }

    /// Interfaces that answers and repairs leave by, and whose other end takes less than they send.
    pub fn narrow(&self) -> impl Iterator<Item = &Interface> {
        self.leaving().filter(|interface| interface.reach() < interface.mtu)
    }

    /// Interfaces that answers and repairs leave by.
    fn leaving(&self) -> impl Iterator<Item = &Interface> {
        [&self.nack].into_iter().chain(self.egress.iter().map(|egress| &egress.interface))
    }
}

fn by_name(all: &[Interface], setting: &'static str, name: &str) -> Result<Interface, FabricError> {
    Interface::among(all, name).cloned().map_err(|source| FabricError::Interface {
        setting,
        value: name.to_owned(),
        source,
    })
}
