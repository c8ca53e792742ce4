//! What `retry-endpoint watch` uses of a running daemon's pins: the words in the settings that ask for records, and the ring that
//! they come by.

use std::mem::offset_of;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use aya::maps::{HashMap, Map, MapData, RingBuf};
use retry_common::abi::{self, Settings, Watched};

use super::pinned::PinnedError;
use super::{EgressValue, chain, map};
use crate::framelog::Memory;

/// The records of one daemon's kernel program. Dropping it ends them.
pub struct PinnedWatch {
    settings: Memory,
    ring: RingBuf<MapData>,
    directory: PathBuf,
    /// Names of the two maps, as long as they live.
    ids: [u32; 2],
}

impl PinnedWatch {
    /// Opens the pins in `directory`.
    ///
    /// # Errors
    /// A pin is not there, may not be opened, or is another build's.
    pub fn open(directory: &Path) -> Result<Self, PinnedError> {
        let shown = |name: &str| directory.join(name).display().to_string();
        let opened = |name: &'static str| {
            let data = MapData::from_pin(directory.join(name));
            data.map_err(|error| PinnedError::Open { path: shown(name), why: chain(&error) })
        };
        let foreign = |name: &str, why: String| PinnedError::Foreign { path: shown(name), why };
        let (settings, ring) = (opened(map::SETTINGS)?, opened(map::WATCH)?);
        let info = |name: &str, data: &MapData| data.info().map_err(|error| foreign(name, chain(&error)));
        let (settings_info, ring_info) = (info(map::SETTINGS, &settings)?, info(map::WATCH, &ring)?);
        if usize::try_from(settings_info.value_size()) != Ok(size_of::<Settings>()) {
            let why = "its values have another size; use the program that runs".to_owned();
            return Err(foreign(map::SETTINGS, why));
        }
        let memory = Memory::of_map(settings.fd().as_fd(), size_of::<Settings>())
            .map_err(|error| PinnedError::Open { path: shown(map::SETTINGS), why: format!("mmap: {error}") })?;
        let there: Settings = memory.read(0);
        if there.layout != abi::LAYOUT {
            let why =
                format!("it has layout {}, this program {}; use the program that runs", there.layout, abi::LAYOUT);
            return Err(foreign(map::SETTINGS, why));
        }
        let ids = [settings_info.id(), ring_info.id()];
        let ring = RingBuf::try_from(Map::RingBuf(ring)).map_err(|error| foreign(map::WATCH, chain(&error)))?;
        Ok(Self { settings: memory, ring, directory: directory.to_owned(), ids })
    }

    /// True while the pins lead to the same maps: a daemon that starts has settings of its own.
    pub fn is_current(&self) -> bool {
        let id = |name| MapData::from_pin(self.directory.join(name)).and_then(|map| map.info()).map(|info| info.id());
        [map::SETTINGS, map::WATCH].map(|name| id(name).ok()) == self.ids.map(Some)
    }

    /// Asks for records of one NACK in `one_in` until `until_ns` of the monotonic clock.
    pub fn renew(&self, until_ns: u64, one_in: u32, flags: u32) {
        const SHAPE: usize = offset_of!(Settings, watch_one_in);
        const _: () = assert!(SHAPE.is_multiple_of(8) && offset_of!(Settings, watch_flags) == SHAPE + 4);
        let (one_in, flags) = (one_in.to_ne_bytes(), flags.to_ne_bytes());
        let mut shape = [0; 8];
        shape[..4].copy_from_slice(&one_in);
        shape[4..].copy_from_slice(&flags);
        self.settings.word(SHAPE).store(u64::from_ne_bytes(shape), Ordering::Relaxed);
        self.settings.word(offset_of!(Settings, watch_until_ns)).store(until_ns, Ordering::Release);
    }

    /// The next record and the bytes of the packet that came with it.
    pub fn take(&mut self) -> Option<(Watched, Vec<u8>)> {
        loop {
            let item = self.ring.next()?;
            if let Some((record, packet)) = Watched::parse(&item) {
                return Some((record, packet.to_vec()));
            }
        }
    }

    /// Interfaces that multicast repairs leave by, by index.
    pub fn egress(&self) -> Vec<u32> {
        let map = MapData::from_pin(self.directory.join(map::EGRESS)).map(Map::HashMap);
        let map = map.and_then(HashMap::<_, u32, EgressValue>::try_from);
        map.map(|map| map.keys().flatten().collect()).unwrap_or_default()
    }

    /// Index of the interface that holds the NACK address.
    pub fn nack_interface(&self) -> u32 {
        self.settings.read::<Settings>(0).nack_ifindex
    }

    /// Readable while there are records.
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor lives as long as the ring, which `self` owns.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl Drop for PinnedWatch {
    fn drop(&mut self) {
        self.settings.word(offset_of!(Settings, watch_until_ns)).store(0, Ordering::Release);
    }
}
