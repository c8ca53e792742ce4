//! The NACKs that the kernel admitted and the daemon answers.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use aya::maps::{MapData, RingBuf};
use retry_common::abi::Event;

/// NACKs that the kernel hands over.
pub struct Events(pub(super) RingBuf<MapData>);

impl Events {
    /// The next one, if there is one.
    pub fn take(&mut self) -> Option<Event> {
        let item = self.0.next()?;
        let bytes: &[u8] = &item;
        if bytes.len() < size_of::<Event>() {
            return None;
        }
        // SAFETY: long enough, as just checked, and made of integers.
        Some(unsafe { bytes.as_ptr().cast::<Event>().read_unaligned() })
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor lives as long as the ring buffer, which `self` owns.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
