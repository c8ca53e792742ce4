//! When the daemon last ran: eight bytes in memory that is kept with the sockets, written several times per second.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::clock::monotonic_ns;

/// The time, by the monotonic clock.
#[derive(Debug)]
pub(super) struct LastRun(File);

impl LastRun {
    /// Now.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn new() -> io::Result<Self> {
        let file = Self(File::from(memfd_create(c"retry-last-run", MFdFlags::MFD_CLOEXEC)?));
        file.write()?;
        Ok(file)
    }

    /// Sets it to now.
    ///
    /// # Errors
    /// No memory: only the first time.
    pub(super) fn write(&self) -> io::Result<()> {
        self.0.write_all_at(&monotonic_ns().to_ne_bytes(), 0)
    }

    /// How long ago it was that the daemon wrote to this file.
    ///
    /// # Errors
    /// The descriptor is not one of [`LastRun::new`].
    pub(super) fn age(fd: OwnedFd) -> io::Result<Duration> {
        let mut bytes = [0; 8];
        File::from(fd).read_exact_at(&mut bytes, 0)?;
        Ok(Duration::from_nanos(monotonic_ns().saturating_sub(u64::from_ne_bytes(bytes))))
    }
}

impl AsFd for LastRun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_is_that_of_the_last_write() {
        let file = LastRun::new().expect("memory");
        let copy = || file.as_fd().try_clone_to_owned().expect("a descriptor");
        std::thread::sleep(Duration::from_millis(50));
        assert!(LastRun::age(copy()).expect("a time") >= Duration::from_millis(50));
        file.write().expect("written");
        assert!(LastRun::age(copy()).expect("a time") < Duration::from_millis(50));
        let other = tempfile::tempfile().expect("a file");
        LastRun::age(other.into()).expect_err("no time in it");
    }
}
