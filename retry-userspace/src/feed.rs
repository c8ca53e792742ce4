//! What the daemon tells `retry-endpoint watch`: the records of the kernel program's ring, over a Unix socket, while a watcher is
//! connected and at no other time.
//!
//! A sequenced-packet socket with an abstract name, in the network namespace of the daemon: one packet is one record. Both ends
//! check that the other has their own user. No send waits: a watcher that reads too slowly misses records, which are counted.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Uid;
use retry_common::abi::Watched;
use retry_common::counter::Counter;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

use crate::counters::UserCounters;

/// What the names of all feeds begin with.
const NAMES: &str = "retry-endpoint/watch/";
/// What the names of watchers begin with.
const WATCHERS: &str = "retry-endpoint/watcher/";
/// Watchers at a time.
const MOST: usize = 8;
/// After a connection that could not be taken.
const PAUSE: Duration = Duration::from_millis(100);

/// Where a daemon tells what it does.
#[derive(Debug)]
pub(crate) struct Feed {
    /// True while a watcher is connected, as far as is known.
    is_watched: AtomicBool,
    watchers: Mutex<Vec<Socket>>,
    counters: Arc<UserCounters>,
}

/// The address of the feed of the daemon on an interface, in the calling thread's network namespace.
///
/// # Errors
/// None for names that the kernel gives interfaces (15 bytes at most).
pub(crate) fn address(interface: &str) -> io::Result<SockAddr> {
    SockAddr::unix(format!("\0{NAMES}{interface}"))
}

/// Interfaces whose daemons have a feed in the calling thread's network namespace.
///
/// # Errors
/// No /proc.
pub(crate) fn interfaces() -> io::Result<Vec<String>> {
    let table = std::fs::read_to_string("/proc/thread-self/net/unix")?;
    let name = |line: &str| Some(line.split_whitespace().nth(7)?.strip_prefix('@')?.strip_prefix(NAMES)?.to_owned());
    let mut found: Vec<String> = table.lines().filter_map(name).collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Connects to the feed of the daemon on an interface.
///
/// # Errors
/// There is none, or another user's.
pub(crate) fn connect(interface: &str) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.connect(&address(interface)?)?;
    if !is_own(&socket) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "another user's process has the name"));
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Takes the name of the only watcher of the daemon on an interface; it is given back when the socket is dropped.
///
/// # Errors
/// Another process has it.
pub(crate) fn watcher(interface: &str) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.bind(&SockAddr::unix(format!("\0{WATCHERS}{interface}"))?)?;
    Ok(socket)
}

/// True when the process at the other end has this process's user, or is root's.
fn is_own(socket: &Socket) -> bool {
    getsockopt(socket, PeerCredentials).is_ok_and(|peer| peer.uid() == Uid::effective().as_raw() || peer.uid() == 0)
}

impl Feed {
    /// A feed without watchers.
    pub(crate) fn new(counters: Arc<UserCounters>) -> Self {
        Self { is_watched: AtomicBool::new(false), watchers: Mutex::default(), counters }
    }

    /// Takes watchers of the daemon on `interface` until `cancel`.
    ///
    /// # Errors
    /// The name is taken: by a daemon that is ending, or another user.
    pub(crate) fn listen(self: &Arc<Self>, interface: &str, cancel: CancellationToken) -> io::Result<()> {
        let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        listener.bind(&address(interface)?)?;
        listener.listen(8)?;
        listener.set_nonblocking(true)?;
        // SAFETY: the socket owns its descriptor, and keeps the same one until the registration is dropped with it.
        let registered = unsafe { AsyncFd::register(listener) };
        let (listener, feed) = (registered.map_err(io::Error::from)?, Arc::clone(self));
        tokio::spawn(cancel.run_until_cancelled_owned(async move {
            loop {
                let accepted = match listener.readable().await {
                    Ok(mut ready) => ready.try_io(|listener| listener.get_ref().accept()),
                    Err(error) => Ok(Err(error)),
                };
                match accepted {
                    Ok(Ok((socket, _))) => feed.enter(socket),
                    Ok(Err(_)) => tokio::time::sleep(PAUSE).await,
                    Err(_would_block) => {}
                }
            }
        }));
        Ok(())
    }

    fn enter(&self, socket: Socket) {
        if !is_own(&socket) || socket.set_nonblocking(true).is_err() {
            return;
        }
        let mut watchers = self.watchers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if watchers.len() < MOST {
            watchers.push(socket);
            self.is_watched.store(true, Ordering::Relaxed);
        }
    }

    /// True while a watcher is connected: then [`Feed::tell`] is worth its record.
    pub(crate) fn is_watched(&self) -> bool {
        self.is_watched.load(Ordering::Relaxed)
    }

    /// Tells each watcher. Never waits.
    pub(crate) fn tell(&self, record: &Watched) {
        let bytes = record.to_bytes();
        let mut watchers = match self.watchers.try_lock() {
            Ok(watchers) => watchers,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return self.counters.one(Counter::WatchDropped),
        };
        watchers.retain(|watcher| match watcher.send_with_flags(&bytes, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) {
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.counters.one(Counter::WatchDropped);
                true
            }
            Err(_) => false,
        });
        self.is_watched.store(!watchers.is_empty(), Ordering::Relaxed);
    }
}
