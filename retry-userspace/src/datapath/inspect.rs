//! What is pinned, as another process sees it, and how it is ended.

use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::maps::{MapData, MapType};
use nix::fcntl::{Flock, FlockArg};
use retry_common::abi::{self, BUILD_LEN};

use super::pinned::{ReadOnly, Words};
use super::pins::directory::Directory;
use super::pins::{Pins, attached_to, gone, interface_of_name, other_file_system_of};
use super::{DatapathError, map};

/// How long a directory may be held by what only looks at it, or ends.
const HELD_FOR: Duration = Duration::from_millis(500);

/// What one daemon has pinned.
#[derive(Clone, Debug)]
pub(crate) struct PinnedState {
    /// Where.
    pub(crate) directory: PathBuf,
    /// The fabric interface.
    pub(crate) interface: String,
    /// Inode of the network namespace.
    pub(crate) namespace: u64,
    /// True while a daemon holds the directory.
    pub(crate) is_served: bool,
    /// What its settings say; `None` where they cannot be read.
    pub(crate) settings: Option<PinnedSettings>,
    /// The links: interface, and its index; 0 when it is gone.
    pub(crate) links: Vec<(String, u32)>,
    /// Bytes of the frame log's ring.
    pub(crate) ring_bytes: u64,
    /// Bytes of a ring that a daemon took and did not come to use.
    pub(crate) waiting_bytes: u64,
}

/// What the pinned settings say of the daemon that filled them in.
#[derive(Clone, Debug)]
pub(crate) struct PinnedSettings {
    /// Layout of the maps.
    pub(crate) layout: u32,
    /// The rest, where the layout is this build's.
    pub(crate) known: Option<KnownSettings>,
}

/// Build, start and leases.
#[derive(Clone, Debug)]
pub(crate) struct KnownSettings {
    /// Version and commit.
    pub(crate) build: String,
    /// When the daemon began to serve, nanoseconds of Unix time; 0 while it starts.
    pub(crate) since_unix_ns: u64,
    /// Until when the kernel answers, nanoseconds of the monotonic clock.
    pub(crate) lease_until_ns: u64,
    /// Until when it leaves NACKs to the daemon.
    pub(crate) daemon_until_ns: u64,
}

/// What daemons have pinned below `root`, in order of the names. Nothing is changed.
///
/// # Errors
/// The directory is another user's, or cannot be read. One that does not exist holds nothing.
pub(crate) fn states(root: &Path) -> Result<Vec<PinnedState>, DatapathError> {
    let Some(directory) = open_root(root)? else { return Ok(Vec::new()) };
    let mut names = directory.names().map_err(|error| super::pins::pin_error(root, &error))?;
    names.retain(|name| gone::is_directory_of_pins(name));
    names.sort();
    Ok(names.iter().filter_map(|name| state(&directory, name)).collect())
}

/// Whether the daemon could pin below `root`: bpffs is there, and this user may write; false where the daemon would have to mount
/// it. Nothing is made.
///
/// # Errors
/// Why not.
pub(crate) fn can_pin(root: &Path) -> Result<bool, DatapathError> {
    super::pins::can_pin(root)
}

/// Ends what a daemon that is gone left in the directory of this name: detaches the program and removes the pins. False when
/// a daemon holds it.
///
/// # Errors
/// A pin cannot be removed.
pub(crate) fn detach(root: &Path, name: &str) -> Result<bool, DatapathError> {
    let refused = |error: std::io::Error| super::pins::pin_error(&root.join(name), &error);
    let Some(directory) = open_root(root)? else { return Ok(true) };
    let Some(own) = directory.existing(name).map_err(refused)? else { return Ok(true) };
    let Ok(lock) = Flock::lock(own, FlockArg::LockExclusiveNonblock) else { return Ok(false) };
    lock.clear().and_then(|()| directory.remove(name)).map_err(refused)?;
    Ok(true)
}

/// Ends what daemons that are gone left on interfaces of these indexes in this network namespace, but for the one of the fabric
/// interface `except`; the fabric interfaces of those that are ended. What a daemon holds for longer than a moment stays.
///
/// # Errors
/// The directory is another user's, or a pin cannot be removed.
pub(crate) fn end_on(root: &Path, indexes: &[u32], except: Option<&str>) -> Result<Vec<String>, DatapathError> {
    let here = namespace()?;
    let mut ended = Vec::new();
    for state in states(root)? {
        let serves = state.links.iter().any(|(_, index)| indexes.contains(index));
        if state.namespace != here || !serves || except == Some(state.interface.as_str()) {
            continue;
        }
        let name = directory_name(root, &state.interface)?;
        let deadline = Instant::now() + HELD_FOR;
        loop {
            if detach(root, &name)? {
                ended.push(state.interface);
                break;
            }
            if Instant::now() > deadline {
                tracing::warn!(interface = state.interface, "another daemon serves an interface of this one too");
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(ended)
}

/// The name of the directory of an interface in this network namespace.
///
/// # Errors
/// This namespace has no name in `/proc`.
pub(crate) fn directory_name(root: &Path, interface: &str) -> Result<String, DatapathError> {
    super::pins::directory_name(root, interface)
}

/// Inode of this network namespace.
///
/// # Errors
/// It has no name in `/proc`.
pub(crate) fn namespace() -> Result<u64, DatapathError> {
    super::pins::namespace(Path::new("/proc"))
}

fn open_root(root: &Path) -> Result<Option<Directory>, DatapathError> {
    if !root.exists() {
        return Ok(None);
    }
    let directory = Directory::walk_to_inspect(root)?;
    other_file_system_of(&directory, root)?;
    Ok(Some(directory))
}

fn state(root: &Directory, name: &str) -> Option<PinnedState> {
    let own = root.existing(name).ok()??;
    let (interface, namespace) = interface_of_name(name)?;
    let path = own.through_descriptor();
    let names = own.names().ok()?;
    let links = names.iter().filter(|name| Pins::is_link(name)).map(|link| {
        let index = attached_to(&path.join(link)).ok().flatten().unwrap_or(0);
        (super::pins::interface_of_link(link), index)
    });
    let links = links.collect();
    let bytes = |name: &str| {
        MapData::from_pin(path.join(name)).and_then(|map| map.info()).map_or(0, |info| {
            let is_ring = matches!(info.map_type(), Ok(MapType::Array));
            if is_ring { u64::from(info.value_size()) * u64::from(info.max_entries()) } else { 0 }
        })
    };
    let (ring_bytes, waiting_bytes) = (bytes(map::RING), bytes(&format!("{}{}", map::RING, super::NEXT)));
    let settings = settings(&path);
    // A daemon that starts at this moment tries again for longer than this takes.
    let is_served = Flock::lock(own, FlockArg::LockSharedNonblock).is_err();
    Some(PinnedState {
        directory: root.path().join(name),
        interface,
        namespace,
        is_served,
        settings,
        links,
        ring_bytes,
        waiting_bytes,
    })
}

fn settings(directory: &Path) -> Option<PinnedSettings> {
    let pages = ReadOnly::of_one(&directory.join(map::SETTINGS)).ok()?;
    if pages.len() < offset_of!(abi::Settings, layout) + size_of::<u32>() {
        return None;
    }
    let mut layout = [0; 4];
    pages.copy(offset_of!(abi::Settings, layout), &mut layout);
    let layout = u32::from_ne_bytes(layout);
    let known = (layout == abi::LAYOUT && pages.len() == size_of::<abi::Settings>()).then(|| {
        let mut build = [0; BUILD_LEN];
        pages.copy(offset_of!(abi::Settings, build), &mut build);
        KnownSettings {
            build: String::from_utf8_lossy(&build).trim_end_matches('\0').to_owned(),
            since_unix_ns: pages.word(offset_of!(abi::Settings, since_unix_ns)),
            lease_until_ns: pages.word(offset_of!(abi::Settings, lease_until_ns)),
            daemon_until_ns: pages.word(offset_of!(abi::Settings, daemon_until_ns)),
        }
    });
    Some(PinnedSettings { layout, known })
}
