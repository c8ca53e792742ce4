//! The interfaces and addresses that the settings name, looked up once at start.

use std::net::Ipv6Addr;

use retry_common::abi::KERNEL_FRAME_MAX;

use crate::net::interface::{self, Interface, InterfaceError};

/// IPv6 and UDP headers.
const HEADERS: u32 = 48;

/// One interface that multicast repairs leave by, and their source address there.
#[derive(Clone, Debug)]
pub struct Egress {
    /// The interface.
    pub interface: Interface,
    /// Source of repairs and beacons.
    pub source: Ipv6Addr,
}

/// What the settings name, as it is on this host.
#[derive(Clone, Debug)]
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
    /// Nobody holds the address.
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
    pub fn find(
        ingress: &str,
        egress: &[String],
        nack_addr: Option<Ipv6Addr>,
        bind_source: Option<Ipv6Addr>,
    ) -> Result<Self, FabricError> {
        let ingress = by_name("mc-iface", ingress)?;
        let interfaces = egress.iter().map(|name| by_name("egress-iface", name)).collect::<Result<Vec<_>, _>>()?;
        let nack_addr = match (nack_addr, interfaces.first()) {
            (Some(address), _) => address,
            (None, Some(first)) => interface::first_global_unicast(first)
                .ok_or_else(|| FabricError::NoAddress { setting: "nack-addr", interface: first.name.clone() })?,
            (None, None) => {
                return Err(FabricError::NoAddress { setting: "nack-addr", interface: "no interface".to_owned() });
            }
        };
        let nack = interface::holder_of(nack_addr)?
            .ok_or(FabricError::NotOurs { setting: "nack-addr", address: nack_addr })?;
        if let Some(address) = bind_source
            && interface::holder_of(address)?.is_none()
        {
            return Err(FabricError::NotOurs { setting: "bind-source", address });
        }
        let egress = interfaces
            .into_iter()
            .map(|interface| {
                let source = match bind_source {
                    Some(address) => address,
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
        [&self.nack]
            .into_iter()
            .chain(self.egress.iter().map(|egress| &egress.interface))
            .map(|interface| interface.mtu.saturating_sub(HEADERS))
            .fold(most, u32::min)
    }
}

fn by_name(setting: &'static str, name: &str) -> Result<Interface, FabricError> {
    Interface::by_name(name).map_err(|source| FabricError::Interface { setting, value: name.to_owned(), source })
}
