//! The directory of the pins: one per interface and network namespace, locked, on bpffs.
//!
//! Other users of the machine may be able to write to the BPF file system. So the directories are the daemon's own and closed
//! to other users, every path is opened component by component without following symbolic links, everything after that
//! is relative to a descriptor, and only names that the daemon makes are ever removed.

pub(super) mod directory;
pub(super) mod gone;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, fstatfs, statfs};
use nix::unistd::{AccessFlags, access};

use super::{DatapathError, adopt};
use directory::Directory;
pub(super) use gone::attached_to;

/// Where bpffs is mounted by convention (Documentation/bpf).
const BPFFS: &str = "/sys/fs/bpf";
/// How long a lock is tried for: another daemon that removes what is left of a dead one holds it for a moment, and one that ends
/// holds it until its last export is done, which takes three seconds at most.
const LOCK_PATIENCE: Duration = Duration::from_secs(4);
/// Pause between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// The daemon's directory of pins. Dropping it removes the pins and the directory, unless they are to stay.
#[derive(Debug)]
pub(super) struct Pins {
    root: Directory,
    name: String,
    lock: Flock<Directory>,
    stays: AtomicBool,
}

impl Pins {
    /// Takes the directory of `interface` in this network namespace below `root`, with what an earlier daemon left there, and
    /// removes what others left whose interfaces are gone.
    pub(super) fn take(root: &Path, interface: &str) -> Result<Self, DatapathError> {
        mount_bpffs(root)?;
        let directory = Directory::walk(root)?;
        other_file_system_of(&directory, root)?;
        let name = directory_name(root, interface)?;
        let lock = lock(&directory, &name, interface)?;
        let pins = Self { root: directory, name, lock, stays: AtomicBool::new(false) };
        gone::remove(&pins.root, &pins.name);
        Ok(pins)
    }

    /// Where to pin `name`, whatever happens to the path of the directory.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.lock.through_descriptor().join(name)
    }

    /// The names of what is pinned.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        self.lock.names()
    }

    /// Removes what is pinned.
    pub(super) fn clear(&self) -> io::Result<()> {
        self.lock.clear()
    }

    /// From here on the pins stay when this is dropped, or they go.
    pub(super) fn stay(&self, stays: bool) {
        self.stays.store(stays, Ordering::Relaxed);
    }

    /// True for the name of a link's pin.
    pub(super) fn is_link(name: &str) -> bool {
        name.starts_with(directory::LINK)
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
        if *self.stays.get_mut() {
            // What this daemon did not come to put in force.
            if let Err(error) = adopt::settle(self) {
                tracing::warn!(directory = %self.lock.path().display(), %error, "could not remove the pins that wait");
            }
            return;
        }
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

/// The name of the directory of an interface in this network namespace.
///
/// By name and not by index: an interface that is made anew gets another index, and its frames are to stay.
pub(super) fn directory_name(root: &Path, interface: &str) -> Result<String, DatapathError> {
    Ok(format!("{}-{}", safe(interface), namespace(root)?))
}

/// Inode of this network namespace.
pub(super) fn namespace(root: &Path) -> Result<u64, DatapathError> {
    Ok(fs::metadata("/proc/thread-self/ns/net").map_err(|error| pin_error(root, &error))?.ino())
}

/// Interface and namespace of a directory's name.
pub(super) fn interface_of_name(name: &str) -> Option<(String, u64)> {
    let (interface, inode) = name.rsplit_once('-')?;
    Some((unsafe_name(interface), inode.parse().ok()?))
}

/// Interface of the name of a link's pin.
pub(super) fn interface_of_link(name: &str) -> String {
    unsafe_name(name.strip_prefix(directory::LINK).unwrap_or(name))
}

/// What [`safe`] was made of.
fn unsafe_name(name: &str) -> String {
    name.replace("%2E", ".").replace("%25", "%")
}

/// An interface's name in the name of a pin: bpffs refuses dots.
pub(super) fn safe(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2E")
}

/// Makes sure that `root` lies on bpffs, mounting it in its usual place if need be.
///
/// # Errors
/// It does not, and cannot be mounted: that takes CAP_SYS_ADMIN.
pub(crate) fn mount_bpffs(root: &Path) -> Result<(), DatapathError> {
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

/// Whether pins can be made below `root`; false where bpffs has yet to be mounted, as the daemon does at its start.
///
/// # Errors
/// They cannot.
pub(super) fn can_pin(root: &Path) -> Result<bool, DatapathError> {
    if !is_bpffs(root) {
        let is_conventional = root.starts_with(BPFFS) && Path::new(BPFFS).is_dir();
        return if is_conventional { Ok(false) } else { Err(other_file_system(root)) };
    }
    let there = root.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(root);
    access(there, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|error| pin_error(there, &error))?;
    Ok(true)
}

/// Refuses a directory that is on no BPF file system.
pub(super) fn other_file_system_of(directory: &Directory, root: &Path) -> Result<(), DatapathError> {
    let found = fstatfs(directory).map_err(|error| pin_error(root, &error))?;
    if found.filesystem_type() == BPF_FS_MAGIC { Ok(()) } else { Err(other_file_system(root)) }
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

pub(super) fn pin_error(path: &Path, error: &dyn std::fmt::Display) -> DatapathError {
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
        for name in ["eth0", "eth0.100", "eth0%2E1", "my-eth.1"] {
            assert_eq!(interface_of_name(&format!("{}-7", safe(name))), Some((name.to_owned(), 7)));
            assert_eq!(interface_of_link(&Pins::link_name(name)), name);
        }
    }
}
