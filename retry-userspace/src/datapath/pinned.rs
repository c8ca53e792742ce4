//! The frame log of a daemon that runs, through its pins: opened for reading, so that nothing of it can be changed.

use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{Map, MapData, MapError, MapType, PerCpuArray};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use retry_common::abi;
use retry_common::latency::{Histogram, Measured};

use super::pins::{interface_of_name, safe};
use super::{chain, map};

/// What a mapping of a map is rounded to.
const PAGE: usize = 4096;

/// Why a frame log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PinnedError {
    /// A pin is missing or refused.
    #[error(
        "cannot open the pin {path}: {why} (run as root, while the daemon runs; a daemon with -xdp off has no pins, and its \
         log cannot be checked from outside)"
    )]
    Open {
        /// The path.
        path: String,
        /// The system's words.
        why: String,
    },
    /// A pin is no array of ours.
    #[error("{path} is not a map of retry-endpoint: {why} (name the directory that `retry-endpoint` has made)")]
    Foreign {
        /// The path.
        path: String,
        /// What is different.
        why: String,
    },
    /// The directories cannot be listed.
    #[error("cannot list {path}: {why} (run as root, or name the daemon's -bpffs directory with -bpffs)")]
    List {
        /// The directory.
        path: String,
        /// The system's words.
        why: String,
    },
}

/// Memory that others write.
pub trait Words {
    /// Bytes.
    fn len(&self) -> usize;

    /// True without a byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The word at byte `offset`, a multiple of eight, loaded with acquire ordering.
    ///
    /// # Panics
    /// When it does not lie inside: callers look first.
    fn word(&self, offset: usize) -> u64;

    /// Copies the bytes at `offset`. They may be torn: callers check versions.
    ///
    /// # Panics
    /// When they do not lie inside: callers look first.
    fn copy(&self, offset: usize, out: &mut [u8]);
}

/// The four maps of a frame log.
#[derive(Debug)]
pub struct PinnedLog {
    /// The settings.
    pub settings: ReadOnly,
    /// The segments.
    pub ring: ReadOnly,
    /// The buckets.
    pub index: ReadOnly,
    /// The lane table.
    pub lanes: ReadOnly,
}

impl PinnedLog {
    /// Opens the pins in `directory`.
    ///
    /// # Errors
    /// A pin is not there, may not be read, or is another map.
    pub fn open(directory: &Path) -> Result<Self, PinnedError> {
        let open = |name: &str, value_size: usize| ReadOnly::open(&directory.join(name), value_size);
        Ok(Self {
            settings: open(map::SETTINGS, size_of::<abi::Settings>())?,
            ring: open(map::RING, size_of::<abi::Segment>())?,
            index: open(map::INDEX, size_of::<abi::Bucket>())?,
            lanes: open(map::LANES, size_of::<abi::Lane>())?,
        })
    }
}

/// The directory below `root` that holds the pins of the daemon on `interface`, in this network namespace.
///
/// # Errors
/// This namespace has no name in `/proc`.
pub(crate) fn pin_directory(root: &Path, interface: &str) -> Result<PathBuf, PinnedError> {
    Ok(root.join(format!("{}{}", safe(interface), suffix(root)?)))
}

/// How long the kernel program of the daemon with these pins took, in the order of [`Measured::ALL`], all CPUs summed.
///
/// # Errors
/// The pin is not there, may not be read, or is another map.
pub fn latency(directory: &Path) -> Result<Vec<Histogram>, PinnedError> {
    let path = directory.join(map::LATENCY);
    let shown = || path.display().to_string();
    let foreign = |error: MapError| PinnedError::Foreign { path: shown(), why: chain(&error) };
    let data = MapData::from_pin(&path).map_err(|error| PinnedError::Open { path: shown(), why: chain(&error) })?;
    let map = PerCpuArray::try_from(Map::PerCpuArray(data)).map_err(foreign)?;
    let of = |one: &Measured| super::summed(&map, *one).map_err(foreign);
    Measured::ALL.iter().map(of).collect()
}

/// The interface of a directory of pins.
pub(crate) fn interface_of(directory: &Path) -> Option<String> {
    Some(interface_of_name(directory.file_name()?.to_str()?)?.0)
}

/// All directories below `root` that hold pins of this network namespace, in order of their names.
///
/// # Errors
/// `root` cannot be listed. One that does not exist holds none.
pub(crate) fn pin_directories(root: &Path) -> Result<Vec<PathBuf>, PinnedError> {
    let suffix = suffix(root)?;
    let list = |error: io::Error| PinnedError::List { path: root.display().to_string(), why: error.to_string() };
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(list(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(list)?.path();
        let ours = path.file_name().is_some_and(|name| name.as_bytes().ends_with(suffix.as_bytes()));
        if ours && path.join(map::INDEX).exists() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// What the name of each directory of this network namespace ends with.
fn suffix(root: &Path) -> Result<String, PinnedError> {
    let namespace = fs::metadata("/proc/thread-self/ns/net")
        .map_err(|error| PinnedError::List { path: root.display().to_string(), why: error.to_string() })?;
    Ok(format!("-{}", namespace.ino()))
}

/// A whole array map, mapped for reading; unmapped on drop.
#[derive(Debug)]
pub struct ReadOnly {
    start: NonNull<libc::c_void>,
    mapped: usize,
    entries: u32,
    len: usize,
}

// SAFETY: the mapping belongs to no thread; it is read by atomic or volatile loads alone.
unsafe impl Send for ReadOnly {}
// SAFETY: as above.
unsafe impl Sync for ReadOnly {}

impl ReadOnly {
    /// The only value of an array, whatever its size.
    pub(super) fn of_one(path: &Path) -> Result<Self, PinnedError> {
        let foreign = |error: &dyn std::error::Error| PinnedError::Foreign {
            path: path.display().to_string(),
            why: chain(error),
        };
        let info = MapData::from_pin(path).and_then(|map| map.info()).map_err(|error| foreign(&error))?;
        Self::open(path, usize::try_from(info.value_size()).unwrap_or(0))
    }

    fn open(path: &Path, value_size: usize) -> Result<Self, PinnedError> {
        let shown = || path.display().to_string();
        let foreign = |why: String| PinnedError::Foreign { path: shown(), why };
        // Not with BPF_F_RDONLY: the kernel does not map what such a descriptor names (seen on 6.18). The mapping is for
        // reading alone.
        let data = MapData::from_pin(path).map_err(|error| PinnedError::Open { path: shown(), why: chain(&error) })?;
        let info = data.info().map_err(|error| foreign(chain(&error)))?;
        if !matches!(info.map_type(), Ok(MapType::Array)) {
            return Err(foreign("it is no array".to_owned()));
        }
        if usize::try_from(info.value_size()) != Ok(value_size) {
            return Err(foreign(format!(
                "its values have {} bytes, those of this program {value_size}; use the program that runs",
                info.value_size()
            )));
        }
        let entries = info.max_entries();
        let len = usize::try_from(entries).unwrap_or(0).saturating_mul(value_size);
        Self::map(data.fd().as_fd(), entries, len)
            .map_err(|error| PinnedError::Open { path: shown(), why: format!("mmap: {error}") })
    }

    fn map(fd: BorrowedFd<'_>, entries: u32, len: usize) -> io::Result<Self> {
        let pages = NonZeroUsize::new(len.next_multiple_of(PAGE)).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping of a descriptor that is open; nothing else is replaced.
        let start = unsafe { mmap(None, pages, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, fd, 0) }?;
        Ok(Self { start, mapped: pages.get(), entries, len })
    }

    /// Entries of the map.
    pub const fn entries(&self) -> u32 {
        self.entries
    }

    fn at(&self, offset: usize, len: usize) -> *const u8 {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "{offset} + {len} lies outside {}",
            self.len
        );
        // SAFETY: inside the mapping, as just checked.
        unsafe { self.start.as_ptr().cast::<u8>().add(offset) }
    }
}

impl Words for ReadOnly {
    fn len(&self) -> usize {
        self.len
    }

    fn word(&self, offset: usize) -> u64 {
        assert!(offset.is_multiple_of(8), "{offset} is no place for a word");
        let place = self.at(offset, 8).cast_mut().cast::<u64>();
        // SAFETY: eight aligned bytes of a mapping that lives as long as `self`; others write it as an atomic, and it is
        // only loaded here.
        unsafe { AtomicU64::from_ptr(place) }.load(Ordering::Acquire)
    }

    fn copy(&self, offset: usize, out: &mut [u8]) {
        let from = self.at(offset, out.len());
        // SAFETY: both ranges are valid and apart: one is a mapping of ours, the other a caller's slice. What others write
        // meanwhile is found out by the record's version.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing borrows from it any more. That it stays when the kernel refuses is no
        // harm: this process only reads.
        let _ = unsafe { munmap(self.start, self.mapped) };
    }
}
