//! Pins of daemons that were killed, and whose interfaces are gone: with their namespaces or without.
//!
//! Whether a namespace is gone cannot be known from `/proc`: a container does not see all processes, a namespace may be held by
//! a descriptor, a mount or a thread, and inode numbers come again. The kernel knows what counts: a link to an interface that
//! is gone is attached to nothing. A directory without a living daemon and without an attached link is of no use.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use std::ffi::CString;

use nix::fcntl::{Flock, FlockArg};

use super::directory::{Directory, LINK};

/// `BPF_OBJ_GET` of linux/bpf.h.
const BPF_OBJ_GET: libc::c_int = 7;

/// Removes those directories in `root`, but for `own`. What cannot be judged stays.
pub(super) fn remove(root: &Directory, own: &str) {
    for name in root.names().unwrap_or_default() {
        if name == own || !is_directory_of_pins(&name) {
            continue;
        }
        let directory = root.path().join(&name);
        match remove_one(root, &name) {
            Ok(true) => tracing::info!(
                directory = %directory.display(),
                "removed the pins of a daemon that was killed: its interfaces are gone"
            ),
            Ok(false) => {}
            Err(error) => {
                tracing::debug!(directory = %directory.display(), %error, "the pins of another daemon are left alone");
            }
        }
    }
}

/// `<interface>-<inode>`.
pub(in crate::datapath) fn is_directory_of_pins(name: &str) -> bool {
    name.rsplit_once('-').is_some_and(|(interface, inode)| !interface.is_empty() && inode.parse::<u64>().is_ok())
}

/// Removes the directory `name` if its daemon is dead and its links are attached to nothing.
fn remove_one(root: &Directory, name: &str) -> io::Result<bool> {
    let Some(directory) = root.existing(name)? else { return Ok(false) };
    // A living daemon holds the lock.
    let Ok(lock) = Flock::lock(directory, FlockArg::LockExclusiveNonblock) else { return Ok(false) };
    for link in lock.names()?.iter().filter(|name| name.starts_with(LINK)) {
        if attached_to(&lock.through_descriptor().join(link))? != Some(0) {
            return Ok(false);
        }
    }
    lock.clear()?;
    root.remove(name)?;
    Ok(true)
}

/// Index of the interface that the pinned link is attached to, 0 when that is gone; `None` where the kernel does not say.
pub(in crate::datapath) fn attached_to(path: &Path) -> io::Result<Option<u32>> {
    let link = pinned(path)?;
    let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", link.as_raw_fd()))?;
    Ok(interface_of(&about))
}

/// The interface's index in what the kernel tells about a link: 0 when the interface is gone.
fn interface_of(about: &str) -> Option<u32> {
    about.lines().find_map(|line| line.strip_prefix("ifindex:"))?.trim().parse().ok()
}

/// Opens what is pinned at `path`. The library tells of a link neither its descriptor nor its interface.
fn pinned(path: &Path) -> io::Result<OwnedFd> {
    /// The members of `union bpf_attr` that the command reads.
    #[repr(C)]
    struct Request {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let request = Request { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    let length = size_of::<Request>();
    // SAFETY: the request and the path that it points to outlive the call, which reads `length` bytes of it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const request, length) };
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened this descriptor for us, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_gone_is_0() {
        let about = |index| format!("pos:\t0\nlink_type:\txdp\nlink_id:\t7\nprog_id:\t9\nifindex:\t{index}\n");
        assert_eq!(interface_of(&about(0)), Some(0));
        assert_eq!(interface_of(&about(12)), Some(12));
        assert_eq!(interface_of("link_type:\txdp\n"), None);
    }

    #[test]
    fn only_directories_of_pins_are_looked_at() {
        assert!(is_directory_of_pins("eth0-4026531840") && is_directory_of_pins("my-eth%2E1-1"));
        for other in ["eth0", "-1", "eth0-", "eth0-x", "eth0-1x", "tc"] {
            assert!(!is_directory_of_pins(other), "{other}");
        }
    }
}
