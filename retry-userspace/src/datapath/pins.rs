//! The directory of the pins: one for each interface and network namespace, locked, on bpffs.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::DatapathError;

/// Where bpffs is mounted by convention (Documentation/bpf).
const BPFFS: &str = "/sys/fs/bpf";

/// Our directory of pins. Dropping it removes the pins and the directory.
#[derive(Debug)]
pub(super) struct Pins {
    directory: PathBuf,
    _lock: Flock<File>,
}

impl Pins {
    /// Takes the directory of `interface` in this network namespace below `root`, and removes what a dead daemon left.
    pub(super) fn take(root: &Path, interface: &str) -> Result<Self, DatapathError> {
        mount_bpffs(root)?;
        let namespace = fs::metadata("/proc/thread-self/ns/net").map_err(|error| pin_error(root, &error))?.ino();
        let directory = root.join(format!("{interface}-{namespace}"));
        fs::create_dir_all(&directory).map_err(|error| pin_error(&directory, &error))?;
        let handle = File::open(&directory).map_err(|error| pin_error(&directory, &error))?;
        let lock = Flock::lock(handle, FlockArg::LockExclusiveNonblock).map_err(|_| DatapathError::Locked {
            directory: directory.display().to_string(),
            interface: interface.to_owned(),
        })?;
        let pins = Self { directory, _lock: lock };
        pins.clear().map_err(|error| pin_error(&pins.directory, &error))?;
        Ok(pins)
    }

    /// The path of one pin.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn clear(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            fs::remove_file(entry?.path())?;
        }
        Ok(())
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = self.clear().and_then(|()| fs::remove_dir(&self.directory)) {
            tracing::warn!(directory = %self.directory.display(), %error, "could not remove the pins");
        }
    }
}

/// Makes sure that `root` lies on bpffs, mounting it in its usual place if need be.
fn mount_bpffs(root: &Path) -> Result<(), DatapathError> {
    if is_bpffs(root) {
        return Ok(());
    }
    if root.starts_with(BPFFS) && Path::new(BPFFS).is_dir() {
        mount(Some("bpffs"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>).map_err(|error| {
            DatapathError::NoBpffs { path: root.display().to_string(), why: format!("mounting it failed: {error}") }
        })?;
        if is_bpffs(root) {
            return Ok(());
        }
    }
    Err(DatapathError::NoBpffs { path: root.display().to_string(), why: "it is on another file system".to_owned() })
}

/// True when the nearest directory that exists lies on bpffs.
fn is_bpffs(path: &Path) -> bool {
    path.ancestors()
        .find(|ancestor| ancestor.exists())
        .and_then(|ancestor| statfs(ancestor).ok())
        .is_some_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

pub(super) fn pin_error(path: &Path, error: &dyn std::fmt::Display) -> DatapathError {
    DatapathError::Pin { path: path.display().to_string(), why: error.to_string() }
}
