//! The kernel's fill: its program, its switch, and whose frames it stores.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, MapError, ProgramArray};
use aya::programs::ProgramFd;

use super::{DatapathError, chain, map, program, taken};

/// The switch of the kernel's fill.
pub struct KernelFill {
    programs: ProgramArray<MapData>,
    program: ProgramFd,
}

impl KernelFill {
    /// Lets the kernel store frames, or leaves them to the sockets.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn switch(&mut self, on: bool) -> Result<(), DatapathError> {
        let done = if on { self.programs.set(0, &self.program, 0) } else { self.programs.clear_index(&0) };
        done.map_err(|error| DatapathError::Fill { map: map::FILL, why: chain(&error) })
    }
}

/// The kernel's table of named sources.
pub struct KernelSources(pub(super) HashMap<MapData, [u8; 16], u8>);

impl KernelSources {
    /// Makes the table say `wanted`. Sources that stay are not touched.
    ///
    /// # Errors
    /// The kernel refuses, or there is no room: then frames of that source are left to the sockets.
    pub fn set(&mut self, wanted: &BTreeSet<Ipv6Addr>) -> Result<(), DatapathError> {
        set_addresses(&mut self.0, map::SOURCES, wanted)
    }
}

/// Makes a table of addresses say `wanted`. Addresses that stay are not touched.
pub(super) fn set_addresses(
    table: &mut HashMap<MapData, [u8; 16], u8>,
    name: &'static str,
    wanted: &BTreeSet<Ipv6Addr>,
) -> Result<(), DatapathError> {
    let refused = |error: MapError| DatapathError::Fill { map: name, why: chain(&error) };
    let there: Vec<[u8; 16]> = table.keys().collect::<Result<_, _>>().map_err(refused)?;
    for address in there.iter().filter(|address| !wanted.contains(&Ipv6Addr::from(**address))) {
        table.remove(address).map_err(refused)?;
    }
    for address in wanted.iter().map(Ipv6Addr::octets).filter(|address| !there.contains(address)) {
        table.insert(address, 1, 0).map_err(refused)?;
    }
    Ok(())
}

/// The program that stores frames.
pub(super) const PROGRAM: &str = "retry_fill";

/// Prepares the kernel's fill of these groups; its program is loaded.
pub(super) fn prepare(ebpf: &mut Ebpf, groups: &[u16]) -> Result<KernelFill, DatapathError> {
    let refused = |map| move |error: MapError| DatapathError::Fill { map, why: chain(&error) };
    let mut words = vec![0u64; 1 << 10];
    for group in groups {
        words[usize::from(group >> 6)] |= 1 << (group & 63);
    }
    let map = ebpf.map_mut(map::JOINED).ok_or(DatapathError::Map(map::JOINED))?;
    let mut joined: Array<_, u64> = Array::try_from(map).map_err(|_| DatapathError::Map(map::JOINED))?;
    for (place, word) in (0u32..).zip(words) {
        if word != 0 {
            joined.set(place, word, 0).map_err(refused(map::JOINED))?;
        }
    }
    let program = program(ebpf, PROGRAM)?
        .fd()
        .and_then(|fd| Ok(fd.try_clone()?))
        .map_err(|error| DatapathError::Load(chain(&error)))?;
    let programs = ProgramArray::try_from(taken(ebpf, map::FILL)?).map_err(|_| DatapathError::Map(map::FILL))?;
    Ok(KernelFill { programs, program })
}
