//! The kernel's table of this host's own addresses, and the filter before it.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData};
use retry_common::limits::table::{self, OWN_BITS};

use super::{DatapathError, chain, fill, map, taken};

/// Table and filter.
pub(super) struct OwnAddresses {
    table: HashMap<MapData, [u8; 16], u8>,
    filter: Array<MapData, u64>,
    seed: u64,
}

impl OwnAddresses {
    /// Takes the maps, which are empty. `seed` is the hash seed in the settings.
    pub(super) fn new(ebpf: &mut Ebpf, seed: u64) -> Result<Self, DatapathError> {
        Ok(Self {
            table: HashMap::try_from(taken(ebpf, map::OWN)?).map_err(|_| DatapathError::Map(map::OWN))?,
            filter: Array::try_from(taken(ebpf, map::OWN_FILTER)?).map_err(|_| DatapathError::Map(map::OWN_FILTER))?,
            seed,
        })
    }

    /// Makes them say `own`.
    pub(super) fn set(&mut self, own: &BTreeSet<Ipv6Addr>) -> Result<(), DatapathError> {
        fill::set_addresses(&mut self.table, map::OWN, own)?;
        for (place, word) in (0u32..).zip(filter(own, self.seed)) {
            self.filter
                .set(place, word, 0)
                .map_err(|error| DatapathError::Fill { map: map::OWN_FILTER, why: chain(&error) })?;
        }
        Ok(())
    }
}

fn filter(own: &BTreeSet<Ipv6Addr>, seed: u64) -> [u64; OWN_BITS / 64] {
    let mut words = [0; OWN_BITS / 64];
    for address in own {
        let bit = table::own_bit(table::address_hash(&address.octets(), seed));
        words[bit as usize / 64] |= 1 << (bit % 64);
    }
    words
}
