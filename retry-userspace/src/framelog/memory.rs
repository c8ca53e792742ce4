//! Shared memory of the frame log: a BPF map's pages, or plain pages when there is no BPF. The same code uses both.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicU64;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

const READ_WRITE: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);

/// A mapping of whole pages, unmapped on drop.
#[derive(Debug)]
pub struct Memory {
    start: std::ptr::NonNull<libc::c_void>,
    len: usize,
}

// SAFETY: the mapping belongs to no thread; what is read and written in it is ordered by atomics (see the methods).
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps `len` bytes of a mmapable BPF array.
    pub fn of_map(map: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        let pages = whole_pages(len)?;
        // SAFETY: a new mapping of a descriptor that is open; nothing else is replaced.
        let start = unsafe { mmap(None, pages, READ_WRITE, MapFlags::MAP_SHARED, map, 0) }?;
        Ok(Self { start, len: pages.get() })
    }

    /// Maps `len` bytes of plain zeroed memory.
    pub fn plain(len: usize) -> io::Result<Self> {
        let pages = whole_pages(len)?;
        // SAFETY: a new anonymous mapping; nothing else is replaced.
        let start = unsafe { mmap_anonymous(None, pages, READ_WRITE, MapFlags::MAP_PRIVATE) }?;
        Ok(Self { start, len: pages.get() })
    }

    /// A pointer to `len` bytes at `offset`.
    ///
    /// # Panics
    /// When they do not lie inside the mapping: offsets come from our own arithmetic.
    pub(super) fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "{offset} + {len} lies outside {}",
            self.len
        );
        // SAFETY: inside the mapping, as just checked.
        unsafe { self.start.as_ptr().cast::<u8>().add(offset) }
    }

    /// The word at byte `offset`, a multiple of eight.
    pub fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8), "{offset} is no place for a word");
        let place = self.at(offset, 8).cast::<u64>();
        // SAFETY: eight aligned bytes of a mapping that lives as long as `self`; all share it as an atomic.
        unsafe { AtomicU64::from_ptr(place) }
    }

    /// The `N` words from byte `offset` on, a multiple of eight.
    pub(super) fn words<const N: usize>(&self, offset: usize) -> &[AtomicU64; N] {
        assert!(offset.is_multiple_of(8), "{offset} is no place for a word");
        let place = self.at(offset, N * 8).cast::<[AtomicU64; N]>();
        // SAFETY: aligned words of a mapping that lives as long as `self`; all share them as atomics.
        unsafe { &*place }
    }

    /// Reads a plain value at `offset`. Torn values are possible where another side writes: callers check versions.
    pub(crate) fn read<T: Copy>(&self, offset: usize) -> T {
        let place = self.at(offset, size_of::<T>()).cast::<T>();
        // SAFETY: inside the mapping and aligned as our layout is; `T` is made of integers.
        unsafe { place.read_volatile() }
    }

    /// Asks for the cache line at `offset`, which is soon read. What lies outside is left alone.
    pub(super) fn fetch(&self, offset: usize) {
        if offset < self.len {
            // SAFETY: inside the mapping, as just checked.
            let place = unsafe { self.start.as_ptr().cast::<i8>().add(offset) };
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a hint about an address of ours; SSE is part of this architecture.
            unsafe {
                core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(place);
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = place;
        }
    }

    /// Writes a plain value at `offset`.
    pub fn write<T: Copy>(&self, offset: usize, value: T) {
        let place = self.at(offset, size_of::<T>()).cast::<T>();
        // SAFETY: as above.
        unsafe { place.write_volatile(value) };
    }

    /// Copies `bytes` to `offset`.
    pub(super) fn copy_in(&self, offset: usize, bytes: &[u8]) {
        let place = self.at(offset, bytes.len());
        // SAFETY: both ranges are valid and apart: one is ours, the other a caller's slice.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
    }

    /// Appends `len` bytes at `offset` to `out`.
    pub(super) fn copy_out(&self, offset: usize, len: usize, out: &mut Vec<u8>) {
        let place = self.at(offset, len);
        out.reserve(len);
        // SAFETY: there is room for `len` more.
        let end = unsafe { out.as_mut_ptr().add(out.len()) };
        // SAFETY: both ranges are valid and apart.
        unsafe { std::ptr::copy_nonoverlapping(place, end, len) };
        // SAFETY: just filled.
        unsafe { out.set_len(out.len() + len) };
    }

    /// The `len` bytes at `offset`.
    ///
    /// # Safety
    /// No writer writes there while the slice lives: it is for the writer alone, of a record that is whole and that it has not
    /// dropped.
    pub(super) unsafe fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        let place = self.at(offset, len);
        // SAFETY: inside the mapping, which lives as long as `self`; no writer writes there, says the caller.
        unsafe { std::slice::from_raw_parts(place, len) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing borrows from it any more.
        if let Err(error) = unsafe { munmap(self.start, self.len) } {
            tracing::warn!(%error, "could not unmap the frame log");
        }
    }
}

fn whole_pages(len: usize) -> io::Result<std::num::NonZeroUsize> {
    std::num::NonZeroUsize::new(len.next_multiple_of(4096)).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}
