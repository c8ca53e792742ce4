//! The service manager's file descriptor store (sd_notify(3), `FDSTORE=1`): systemd's, or another's with the same protocol.
//!
//! What the daemon stores comes back at its next start (sd_listen_fds(3)), and stays stored until the daemon removes it or the
//! service has stopped for good. A descriptor is stored once, under a name of its own: its kind and inode.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::stat::fstat;
use sd_notify::NotifyState;

use super::protocol::Kind;

/// The service manager's words to the daemon (systemd 254 and later): how many descriptors it stores.
const ROOM: &str = "FDSTORE";

/// The store.
#[derive(Debug)]
pub(super) struct ServiceManager {
    room: usize,
    /// Names of what it has of ours.
    stored: BTreeSet<String>,
}

/// Why a set is not stored.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// There is too little room.
    #[error(
        "the service manager stores {room} descriptors, and a change takes up to {wanted} at once: set \
         FileDescriptorStoreMax={wanted} in the unit"
    )]
    Room {
        /// `FileDescriptorStoreMax=`.
        room: usize,
        /// Descriptors of the old set and the new one.
        wanted: usize,
    },
    /// The service manager does not take it.
    #[error("the service manager takes no descriptors: {0}")]
    Notify(#[from] io::Error),
}

impl ServiceManager {
    /// The one that has started this process, if it stores descriptors.
    pub(super) fn from_environment(inherited: &[(String, OwnedFd)]) -> Option<Self> {
        std::env::var_os("NOTIFY_SOCKET")?;
        let room = std::env::var(ROOM).ok()?.parse().ok().filter(|room| *room > 0)?;
        Some(Self { room, stored: inherited.iter().map(|(name, _)| name.clone()).collect() })
    }

    /// Stores what is new, then removes what is not in the set.
    ///
    /// # Errors
    /// [`StoreError`]; then what was stored before is still.
    pub(super) fn replace(&mut self, set: &[(Kind, BorrowedFd<'_>)]) -> Result<(), StoreError> {
        let named = set.iter().map(|(kind, fd)| Ok((name(*kind, *fd)?, *fd))).collect::<io::Result<Vec<_>>>()?;
        let new = named.iter().filter(|(name, _)| !self.stored.contains(name));
        let wanted = self.stored.len() + new.clone().count();
        if wanted > self.room {
            return Err(StoreError::Room { room: self.room, wanted });
        }
        for (name, fd) in new {
            // The service manager would watch it for an error or a hang-up, and then forget it.
            let state = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
            sd_notify::notify_with_fds(&state, &[*fd])?;
        }
        self.stored.extend(named.iter().map(|(name, _)| name.clone()));
        let gone: Vec<String> =
            self.stored.iter().filter(|name| !named.iter().any(|one| one.0 == **name)).cloned().collect();
        for name in gone {
            sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(&name)])?;
            self.stored.remove(&name);
        }
        Ok(())
    }
}

/// What the service manager gives back at the start, ours by their names. Once per process; later calls find nothing.
pub(super) fn inherited() -> Vec<(String, OwnedFd)> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let all = match sd_notify::listen_fds_with_names() {
        Ok(all) => all,
        Err(error) => {
            tracing::warn!(%error, "what the service manager gave back is not taken");
            return Vec::new();
        }
    };
    let ours = all.filter(|(_, name)| kind(name).is_some());
    // SAFETY: the service manager opened these descriptors for this process, and the flag above lets them be owned once.
    ours.map(|(fd, name)| (name, unsafe { OwnedFd::from_raw_fd(fd) })).collect()
}

/// What a stored descriptor is for.
pub(super) fn kind(name: &str) -> Option<Kind> {
    let (word, _) = name.strip_prefix("retry-")?.split_once('-')?;
    Kind::ALL.into_iter().find(|kind| self::word(*kind) == word)
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Membership => "membership",
        Kind::Nack => "nack",
        Kind::LastRun => "lastrun",
    }
}

fn name(kind: Kind, fd: BorrowedFd<'_>) -> io::Result<String> {
    Ok(format!("retry-{}-{}", word(kind), fstat(fd)?.st_ino))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_name_tells_the_kind() {
        let file = tempfile::tempfile().expect("a file");
        for wanted in Kind::ALL {
            assert_eq!(kind(&name(wanted, file.as_fd()).expect("a name")), Some(wanted));
        }
        assert_eq!(kind("http"), None);
        assert_eq!(kind("retry-http-1"), None);
    }

    #[test]
    fn what_does_not_fit_is_refused_before_anything_is_removed() {
        let file = tempfile::tempfile().expect("a file");
        let mut manager = ServiceManager { room: 1, stored: BTreeSet::from(["retry-nack-1".to_owned()]) };
        let error = manager.replace(&[(Kind::Nack, file.as_fd())]).expect_err("no room");
        assert!(error.to_string().contains("FileDescriptorStoreMax=2"), "{error}");
        assert_eq!(manager.stored.len(), 1);
    }
}
