//! The directory of the pins: one per interface and network namespace, locked, on bpffs.
//!
//! Other users of the machine may be able to write to the BPF file system. So the directories are the daemon's own and closed
//! to other users, every path is opened component by component without following symbolic links, everything after that
//! is relative to a descriptor, and only names that the daemon makes are ever removed.

mod directory;
mod gone;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, fstatfs, statfs};

use super::DatapathError;
use directory::Directory;

/// Where bpffs is mounted by convention (Documentation/bpf).
const BPFFS: &str = "/sys/fs/bpf";
/// How long a lock is tried for: another daemon that removes what is left of a dead one holds it for a moment.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
/// Pause between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// The daemon's directory of pins. Dropping it removes the pins and the directory.
#[derive(Debug)]
pub(super) struct Pins {
    root: Directory,
    name: String,
    lock: Flock<Directory>,
}

impl Pins {
    /// Takes the directory of `interface` in this network namespace below `root`, and removes what dead daemons left: one that
    /// served this interface, and those whose interfaces are gone.
    pub(super) fn take(root: &Path, interface: &str) -> Result<Self, DatapathError> {
        mount_bpffs(root)?;
        let directory = Directory::walk(root)?;
        if fstatfs(&directory).map_err(|error| pin_error(root, &error))?.filesystem_type() != BPF_FS_MAGIC {
            return Err(other_file_system(root));
        }
        let namespace = fs::metadata("/proc/thread-self/ns/net").map_err(|error| pin_error(root, &error))?.ino();
        let name = format!("{}-{namespace}", safe(interface));
        let lock = lock(&directory, &name, interface)?;
        let pins = Self { root: directory, name, lock };
        pins.lock.clear().map_err(|error| pin_error(pins.lock.path(), &error))?;
        gone::remove(&pins.root, &pins.name);
        Ok(pins)
    }

    /// Where to pin `name`, whatever happens to the path of the directory.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.lock.through_descriptor().join(name)
    }

    /// The path of the pin of the link of an interface.
    pub(super) fn link_name(interface: &str) -> String {
        format!("{}{}", directory::LINK, safe(interface))
    }

    /// What is told when `name` cannot be pinned.
    pub(super) fn error(&self, name: &str, error: &dyn std::fmt::Display) -> DatapathError {
        pin_error(&self.lock.path().join(name), error)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = self.lock.clear().and_then(|()| self.root.remove(&self.name)) {
            tracing::warn!(directory = %self.lock.path().display(), %error, "could not remove the pins");
        }
    }
}

/// Makes and locks the directory `name`.
fn lock(root: &Directory, name: &str, interface: &str) -> Result<Flock<Directory>, DatapathError> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        let directory = root.make(name)?;
        let path = directory.path().to_owned();
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            // A daemon that ended, or one that removed what was left, may have removed the directory before the lock was had.
            Ok(lock) if root.holds(name, &lock) => return Ok(lock),
            Ok(_) => {}
            Err((_, Errno::EWOULDBLOCK)) => {}
            Err((_, error)) => return Err(pin_error(&path, &error)),
        }
        if Instant::now() > deadline {
            return Err(DatapathError::Locked {
                directory: path.display().to_string(),
                interface: interface.to_owned(),
            });
        }
        thread::sleep(LOCK_PAUSE);
    }
}

/// An interface's name in the name of a pin: bpffs refuses dots.
pub(super) fn safe(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2E")
}

/// Makes sure that `root` lies on bpffs, mounting it in its usual place if need be.
fn mount_bpffs(root: &Path) -> Result<(), DatapathError> {
    if is_bpffs(root) {
        return Ok(());
    }
    if root.starts_with(BPFFS) && Path::new(BPFFS).is_dir() {
        // By default every user may write there.
        mount(Some("bpffs"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700")).map_err(|error| {
            DatapathError::NoBpffs { path: root.display().to_string(), why: format!("mounting it failed: {error}") }
        })?;
        if is_bpffs(root) {
            return Ok(());
        }
    }
    Err(other_file_system(root))
}

fn other_file_system(root: &Path) -> DatapathError {
    DatapathError::NoBpffs { path: root.display().to_string(), why: "it is on another file system".to_owned() }
}

/// True when the nearest directory that exists lies on bpffs. Only says whether to mount: what is used is checked when it is open.
fn is_bpffs(path: &Path) -> bool {
    path.ancestors()
        .find(|ancestor| ancestor.symlink_metadata().is_ok_and(|found| found.is_dir()))
        .and_then(|ancestor| statfs(ancestor).ok())
        .is_some_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

fn pin_error(path: &Path, error: &dyn std::fmt::Display) -> DatapathError {
    DatapathError::Pin { path: path.display().to_string(), why: error.to_string() }
}

fn from_errno(error: Errno) -> io::Error {
    error.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_interfaces_stay_apart() {
        assert_eq!(safe("eth0"), "eth0");
        assert_eq!(safe("eth0.100"), "eth0%2E100");
        assert_ne!(safe("eth0.1"), safe("eth0%2E1"));
    }
}
