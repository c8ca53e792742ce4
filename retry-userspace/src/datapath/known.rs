//! The kernel's table of known listeners.

use std::net::Ipv6Addr;

use aya::Ebpf;
use aya::maps::{HashMap, MapData};

use super::{DatapathError, map, taken};
use crate::limits::Change;

/// The table, which an earlier daemon may have filled.
pub(crate) struct KernelKnown(HashMap<MapData, [u8; 16], u8>);

impl KernelKnown {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        let map = HashMap::try_from(taken(ebpf, map::KNOWN)?).map_err(|_| DatapathError::Map(map::KNOWN))?;
        Ok(Self(map))
    }

    /// Who is in it. What cannot be read is left out.
    pub(crate) fn listeners(&self) -> Vec<Ipv6Addr> {
        self.0.keys().filter_map(Result::ok).map(Ipv6Addr::from).collect()
    }

    /// Takes over a change. A listener that finds no room is known to the socket path alone.
    pub(crate) fn take(&mut self, change: Change) {
        let (listener, done) = match change {
            Change::Known(listener) => (listener, self.0.insert(listener.octets(), 1, 0)),
            Change::Forgotten(listener) => (listener, self.0.remove(&listener.octets())),
        };
        if let Err(error) = done {
            tracing::debug!(%listener, %error, "the kernel's table of known listeners refuses a change");
        }
    }
}
