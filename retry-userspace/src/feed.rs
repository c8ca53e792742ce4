//! What the daemon tells `retry-endpoint watch`: the records of the kernel program's ring, over a Unix socket, while a watcher is
//! connected and at no other time. With `--pcap` the packets that its NACK socket took and sent, too.
//!
//! A sequenced-packet socket with an abstract name, in the network namespace of the daemon: one packet is one record. Both ends
//! check that the other has their own user. No send waits: a watcher that reads too slowly misses records, which are counted.

mod packet;

use std::io::{self, Read as _};
use std::net::SocketAddrV6;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Uid;
use retry_common::abi::{Watched, watch_flag};
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
/// How often a new watcher is asked what it wants, and how long the daemon waits before it asks again.
const HELLO: (usize, Duration) = (50, Duration::from_millis(2));

/// Where a daemon tells what it does.
#[derive(Debug)]
pub(crate) struct Feed {
    /// True while a watcher is connected, as far as is known.
    is_watched: AtomicBool,
    /// The same of a watcher that wants packets.
    wants_packets: AtomicBool,
    watchers: Mutex<Vec<Watcher>>,
    counters: Arc<UserCounters>,
}

/// A process that is told.
#[derive(Debug)]
struct Watcher {
    socket: Socket,
    wants_packets: bool,
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

/// Connects to the feed of the daemon on an interface, and says what is wanted, as [`watch_flag`] bits.
///
/// # Errors
/// There is none, or another user's.
pub(crate) fn connect(interface: &str, flags: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.connect(&address(interface)?)?;
    if !is_own(&socket) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "another user's process has the name"));
    }
    socket.set_nonblocking(true)?;
    socket.send(&flags.to_ne_bytes())?;
    Ok(socket)
}

/// What a new watcher wants; nothing where it does not say.
async fn wanted(socket: &Socket) -> u32 {
    let (times, pause) = HELLO;
    for _ in 0..times {
        let mut flags = [0; size_of::<u32>()];
        match (&mut &*socket).read(&mut flags) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(pause).await,
            Err(_) => break,
            Ok(_) => return u32::from_ne_bytes(flags),
        }
    }
    0
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
        let [is_watched, wants_packets] = [(); 2].map(|()| AtomicBool::new(false));
        Self { is_watched, wants_packets, watchers: Mutex::default(), counters }
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
                    Ok(Ok((socket, _))) if is_own(&socket) && socket.set_nonblocking(true).is_ok() => {
                        let flags = wanted(&socket).await;
                        feed.enter(socket, flags & watch_flag::PACKETS != 0);
                    }
                    Ok(Ok(_)) => {}
                    Ok(Err(_)) => tokio::time::sleep(PAUSE).await,
                    Err(_would_block) => {}
                }
            }
        }));
        Ok(())
    }

    fn enter(&self, socket: Socket, wants_packets: bool) {
        let mut watchers = self.watchers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if watchers.len() < MOST {
            watchers.push(Watcher { socket, wants_packets });
            self.note(&watchers);
        }
    }

    fn note(&self, watchers: &[Watcher]) {
        self.is_watched.store(!watchers.is_empty(), Ordering::Relaxed);
        self.wants_packets.store(watchers.iter().any(|one| one.wants_packets), Ordering::Relaxed);
    }

    /// True while a watcher is connected: then [`Feed::tell`] is worth its record.
    pub(crate) fn is_watched(&self) -> bool {
        self.is_watched.load(Ordering::Relaxed)
    }

    /// True while a watcher wants packets: then they are worth being copied.
    pub(crate) fn wants_packets(&self) -> bool {
        self.wants_packets.load(Ordering::Relaxed)
    }

    /// Tells each watcher. Never waits.
    pub(crate) fn tell(&self, record: &Watched) {
        self.send(&record.to_bytes(), false);
    }

    /// Tells each watcher that wants packets of a datagram that has come to the NACK socket or left it: with the headers that it
    /// has on the wire, as far as the daemon knows them.
    pub(crate) fn tell_packet(
        &self,
        record: &Watched,
        source: SocketAddrV6,
        destination: SocketAddrV6,
        payload: &[u8],
    ) {
        let packet = packet::ethernet(source, destination, payload);
        let length = u16::try_from(packet.len()).unwrap_or(u16::MAX);
        let mut bytes = Watched { length, captured: length, ..*record }.to_bytes().to_vec();
        bytes.extend(packet.iter().take(usize::from(length)));
        self.send(&bytes, true);
    }

    fn send(&self, bytes: &[u8], is_packet: bool) {
        let mut watchers = match self.watchers.try_lock() {
            Ok(watchers) => watchers,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return self.counters.one(Counter::WatchDropped),
        };
        let send = |socket: &Socket| socket.send_with_flags(bytes, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
        watchers.retain(|watcher| match (!is_packet || watcher.wants_packets).then(|| send(&watcher.socket)) {
            None | Some(Ok(_)) => true,
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                self.counters.one(Counter::WatchDropped);
                true
            }
            Some(Err(_)) => false,
        });
        self.note(&watchers);
    }
}
