//! A directory that no other user can change, reached without following a symbolic link.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flockable, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{Uid, UnlinkatFlags, unlinkat};

use super::{DatapathError, from_errno, pin_error};

/// What the pins of links begin with.
pub(in crate::datapath) const LINK: &str = "link-";
/// What the pins of programs begin with.
const PROGRAM: &str = "retry_";
/// Permissions of all users but the owner.
const OTHERS: u32 = 0o077;
/// Permissions to write of all users but the owner.
const OTHERS_WRITE: u32 = 0o022;

/// An open directory.
#[derive(Debug)]
pub(in crate::datapath) struct Directory {
    fd: OwnedFd,
    /// As told in errors.
    path: PathBuf,
    /// The user whose directories are taken for the daemon's.
    owner: Uid,
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Directory {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

// SAFETY: the descriptor is owned, so it stays open as long as the value, and a directory can be locked.
unsafe impl Flockable for Directory {}

impl Directory {
    /// Opens `path`, and makes what is missing of it. Each directory on the way belongs to root or to the daemon's user and
    /// cannot be changed by others; the last is the daemon's own and closed to others.
    pub(in crate::datapath) fn walk(path: &Path) -> Result<Self, DatapathError> {
        Self::walk_as(path, Uid::effective())
    }

    /// As [`Directory::walk`], for another process than the daemon: root's takes the pins of a daemon of any user.
    pub(in crate::datapath) fn walk_to_inspect(path: &Path) -> Result<Self, DatapathError> {
        let found = fs::metadata(path).map_err(|error| pin_error(path, &error))?;
        let own = Uid::effective();
        Self::walk_as(path, if own.is_root() { Uid::from_raw(found.uid()) } else { own })
    }

    fn walk_as(path: &Path, owner: Uid) -> Result<Self, DatapathError> {
        let root = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|error| pin_error(Path::new("/"), &error))?;
        let mut here = Self { fd: root, path: PathBuf::from("/"), owner };
        let mut steps = path.components().filter(|step| matches!(step, Component::Normal(_) | Component::ParentDir));
        let mut next = steps.next();
        while let Some(step) = next {
            next = steps.next();
            let parent = here.stat()?;
            here.check_ancestor(&parent, path)?;
            let kind = if next.is_some() { OFlag::O_PATH } else { OFlag::O_RDONLY };
            here = here.step(step.as_os_str(), kind, path)?;
            if next.is_none() {
                // A mount's own root has other users, such as other programs that pin there.
                let is_mount = here.stat()?.st_dev != parent.st_dev;
                if is_mount {
                    here.check_ancestor(&here.stat()?, path)?;
                } else {
                    here.close_to_others(path)?;
                }
            }
        }
        Ok(here)
    }

    /// Opens the directory `name` in this one, which it makes if need be, and closes it to other users.
    pub(in crate::datapath) fn make(&self, name: &str) -> Result<Self, DatapathError> {
        let directory = self.step(OsStr::new(name), OFlag::O_RDONLY, &self.path)?;
        directory.close_to_others(&self.path)?;
        Ok(directory)
    }

    /// Opens the directory `name` in this one if it is there and the daemon's own.
    pub(in crate::datapath) fn existing(&self, name: &str) -> io::Result<Option<Self>> {
        match self.open(OsStr::new(name), OFlag::O_RDONLY) {
            Ok(directory) => {
                let is_ours = fstat(&directory).map_err(from_errno)?.st_uid == self.owner.as_raw();
                Ok(is_ours.then_some(directory))
            }
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// True when `name` in this directory is `directory`.
    pub(in crate::datapath) fn holds(&self, name: &str, directory: &Self) -> bool {
        let named = fstatat(self, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        matches!((named, fstat(directory)), (Ok(named), Ok(open)) if (named.st_dev, named.st_ino) == (open.st_dev, open.st_ino))
    }

    /// Its path, as it was opened: for messages.
    pub(in crate::datapath) fn path(&self) -> &Path {
        &self.path
    }

    /// A path that leads to this very directory, whatever its own path leads to by now.
    pub(in crate::datapath) fn through_descriptor(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }

    /// The names in it.
    pub(in crate::datapath) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.through_descriptor())? {
            // What is no text is nothing that the daemon made.
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    /// Removes the pins that are the daemon's by their names, and nothing else.
    pub(in crate::datapath) fn clear(&self) -> io::Result<()> {
        for name in self.names()?.iter().filter(|name| is_pin(name)) {
            match unlinkat(self, name.as_str(), UnlinkatFlags::NoRemoveDir) {
                // A directory is nothing that the daemon makes here.
                Ok(()) | Err(Errno::EISDIR | Errno::EPERM | Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Removes the empty directory `name` in it.
    pub(in crate::datapath) fn remove(&self, name: &str) -> io::Result<()> {
        unlinkat(self, name, UnlinkatFlags::RemoveDir).map_err(from_errno)
    }

    fn stat(&self) -> Result<FileStat, DatapathError> {
        fstat(self).map_err(|error| pin_error(&self.path, &error))
    }

    fn open(&self, name: &OsStr, kind: OFlag) -> nix::Result<Self> {
        let flags = kind | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(self, name, flags, Mode::empty())?;
        Ok(Self { fd, path: self.path.join(name), owner: self.owner })
    }

    /// Opens the directory `name` in this one, which it makes if need be.
    fn step(&self, name: &OsStr, kind: OFlag, bpffs: &Path) -> Result<Self, DatapathError> {
        let path = self.path.join(name);
        loop {
            match self.open(name, kind) {
                Err(Errno::ENOENT) => {}
                Err(Errno::ENOTDIR | Errno::ELOOP) => {
                    let found = fstatat(self, name, AtFlags::AT_SYMLINK_NOFOLLOW);
                    let is_link = found.is_ok_and(|found| SFlag::from_bits_truncate(found.st_mode) == SFlag::S_IFLNK);
                    let why = if is_link { "is a symbolic link, which is not followed" } else { "is no directory" };
                    return Err(refused(bpffs, &path, why.to_owned(), "remove it, or name another directory"));
                }
                other => return other.map_err(|error| pin_error(&path, &error)),
            }
            match mkdirat(self, name, Mode::S_IRWXU) {
                // Another daemon may have been quicker, or have removed it meanwhile.
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => return Err(pin_error(&path, &error)),
            }
        }
    }

    /// Makes sure that no other user can put another directory in the place of one in this.
    fn check_ancestor(&self, found: &FileStat, bpffs: &Path) -> Result<(), DatapathError> {
        let is_sticky = found.st_mode & Mode::S_ISVTX.bits() != 0;
        if found.st_uid != 0 && found.st_uid != self.owner.as_raw() {
            let why = format!("belongs to user {}, who could change what is in it", found.st_uid);
            return Err(refused(bpffs, &self.path, why, "name another directory"));
        }
        if found.st_mode & OTHERS_WRITE != 0 && !is_sticky {
            let why = "can be changed by other users".to_owned();
            return Err(refused(
                bpffs,
                &self.path,
                why,
                "take their right to write (chmod go-w), or name another directory",
            ));
        }
        Ok(())
    }

    /// Makes sure that it belongs to the daemon's user and that no other user can open it: also not to lock it.
    fn close_to_others(&self, bpffs: &Path) -> Result<(), DatapathError> {
        let found = self.stat()?;
        let own = self.owner.as_raw();
        if found.st_uid != own {
            let why = format!("belongs to user {} and not to the daemon's, {own}", found.st_uid);
            return Err(refused(bpffs, &self.path, why, "remove it, or name another directory"));
        }
        if found.st_mode & OTHERS != 0 {
            fchmod(self, Mode::S_IRWXU).map_err(|error| pin_error(&self.path, &error))?;
        }
        Ok(())
    }
}

/// True for the names that the daemon gives its pins: maps, programs, links.
fn is_pin(name: &str) -> bool {
    let is_map = name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
    is_map || name.starts_with(PROGRAM) || name.starts_with(LINK)
}

fn refused(bpffs: &Path, directory: &Path, why: String, advice: &'static str) -> DatapathError {
    DatapathError::Directory {
        path: bpffs.display().to_string(),
        directory: directory.display().to_string(),
        why,
        advice,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn only_names_of_pins_are_removed() {
        let place = tempfile::tempdir().expect("a directory");
        for name in ["RING", "LIMITS_2", "retry_nack", "link-eth0%2E1", "notes", "Ring", "eth0-1"] {
            fs::write(place.path().join(name), "x").expect("a file");
        }
        fs::create_dir(place.path().join("MAPS")).expect("a directory");
        let directory = Directory::walk(place.path()).expect("ours");
        directory.clear().expect("cleared");
        let mut left = directory.names().expect("readable");
        left.sort();
        assert_eq!(left, ["MAPS", "Ring", "eth0-1", "notes"]);
    }

    #[test]
    fn a_way_that_others_can_change_is_refused() {
        let place = tempfile::tempdir().expect("a directory");
        let open = place.path().join("open");
        fs::create_dir(&open).expect("a directory");
        for (mode, accepted) in [(0o755, true), (0o1777, true), (0o777, false), (0o775, false)] {
            fs::set_permissions(&open, fs::Permissions::from_mode(mode)).expect("ours");
            let walked = Directory::walk(&open.join(format!("pins{mode:o}"))).map(drop);
            assert_eq!(walked.is_ok(), accepted, "{mode:o}: {walked:?}");
            if let Err(error) = walked {
                assert!(error.to_string().contains("chmod go-w"), "{error}");
            }
        }
        let made = fs::metadata(open.join("pins755")).expect("made");
        assert_eq!(made.permissions().mode() & 0o7777, 0o700);
    }

    #[test]
    fn no_link_on_the_way_is_followed() {
        let place = tempfile::tempdir().expect("a directory");
        fs::create_dir(place.path().join("real")).expect("a directory");
        symlink("real", place.path().join("link")).expect("a link");
        fs::write(place.path().join("file"), "x").expect("a file");
        for (wrong, why) in [("link", "symbolic link"), ("link/pins", "symbolic link"), ("file/pins", "no directory")] {
            let error = Directory::walk(&place.path().join(wrong)).map(drop).expect_err("refused").to_string();
            assert!(error.contains(why) && error.contains("remove it"), "{wrong}: {error}");
        }
        assert!(!place.path().join("real/pins").exists());
    }
}
