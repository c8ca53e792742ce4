//! Sends wait for no neighbour.
//!
//! The kernel keeps a datagram to a neighbour that it has not resolved for up to three seconds and charges it to the send
//! buffer all that time: a few hundred NACKs per second from addresses that do not exist would fill the buffer of the one
//! NACK socket. So a [`Gate`] is asked first. What would wait in the kernel waits here instead, as a few words and not as
//! packets, in a bounded queue of its own; the kernel is asked to resolve the neighbour, and when it says that it has,
//! what waited is let go.

mod held;
mod kernel;
mod table;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use self::held::{Held, PATIENCE};
use self::kernel::{Asked, Change, Kernel};
use self::table::Table;
use super::batch::Readiness;
use crate::clock::{monotonic_ns, nanoseconds};
use crate::stop_flag::StopFlag;

pub(crate) use self::table::Hop;

/// Neighbours that the kernel resolves for us at a time: half of what its table holds by default (gc_thresh3).
const MOST_RESOLVING: usize = 512;
/// How long a shutdown may go unseen.
const IDLE: Duration = Duration::from_millis(100);
/// The same while something waits, for its patience is to end in time.
const BUSY: Duration = Duration::from_millis(20);
/// Between two readings of all routes, however often they change.
const ROUTES_PAUSE: Duration = Duration::from_millis(200);
/// Between two readings of all neighbours without an occasion.
const NEIGHBOURS_PAUSE: Duration = Duration::from_secs(10);
/// Before netlink is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// The discard port (RFC 863): where a datagram goes that is only to make the kernel resolve a neighbour.
const DISCARD: u16 = 9;

/// What became of an item that waited.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Release<T> {
    /// Its neighbour is resolved.
    Go(T),
    /// Its neighbour was not resolved in time.
    Unresolved(T),
}

/// Says whether a datagram would leave at once, and keeps what belongs to one that would not.
pub(crate) struct Gate<T> {
    /// None while it is not known: then everything is open, as it is without a gate.
    table: RwLock<Option<Table>>,
    held: Mutex<Held<T>>,
    awake: AtomicBool,
    wake: UnixStream,
    woken: UnixStream,
}

impl<T> Gate<T> {
    /// An open gate: it closes for neighbours that are not resolved once [`Gate::run`] has read the kernel's tables.
    ///
    /// # Errors
    /// What the system returns.
    pub(crate) fn new() -> io::Result<Self> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        Ok(Self { table: RwLock::default(), held: Mutex::default(), awake: AtomicBool::new(false), wake, woken })
    }

    /// The neighbour that a datagram to `to` would wait for; `None` when it leaves at once.
    #[must_use]
    pub(crate) fn waits_for(&self, to: SocketAddrV6) -> Option<Hop> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).as_ref()?.waits_for(to)
    }

    /// Lets an item wait for its neighbour. Never waits itself; returns what had to make way.
    #[must_use]
    pub(crate) fn hold(&self, hop: Hop, item: T) -> Vec<T> {
        let gone = self.held().push(hop, item, monotonic_ns());
        if !self.awake.swap(true, Ordering::Relaxed) {
            // A full pipe wakes as well.
            let _ = (&self.wake).write(&[0]);
        }
        gone
    }

    /// Follows the kernel's tables and lets go what waited, until `stop`.
    ///
    /// # Errors
    /// What a poll returns.
    pub(crate) fn run(&self, stop: &StopFlag, mut release: impl FnMut(Release<T>)) -> io::Result<()> {
        let (mut told, mut next) = (false, Instant::now());
        while !stop.is_asked() {
            if Instant::now() >= next {
                match self.follow(stop, &mut release) {
                    Ok(()) => break,
                    Err(error) if !told => {
                        tracing::warn!(%error, "netlink: neighbours cannot be followed; answers to addresses that do \
                            not exist may fill the send buffer");
                        told = true;
                    }
                    Err(_) => {}
                }
                self.set(None);
                next = Instant::now() + AGAIN;
            }
            let all = self.held().take_all();
            all.into_iter().for_each(|item| release(Release::Go(item)));
            std::thread::sleep(IDLE);
        }
        let all = self.held().take_all();
        all.into_iter().for_each(|item| release(Release::Unresolved(item)));
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, Held<T>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, table: Option<Table>) {
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = table;
    }

    fn change(&self, change: impl FnOnce(&mut Table)) {
        if let Some(table) = self.table.write().unwrap_or_else(PoisonError::into_inner).as_mut() {
            change(table);
        }
    }

    fn is_resolved(&self, hop: &Hop) -> bool {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.as_ref().is_none_or(|table| table.is_resolved(hop))
    }

    fn let_go(&self, hop: &Hop, release: &mut impl FnMut(Release<T>)) {
        let items = self.held().take(hop);
        items.into_iter().for_each(|item| release(Release::Go(item)));
    }

    fn follow(&self, stop: &StopFlag, release: &mut impl FnMut(Release<T>)) -> io::Result<()> {
        let mut kernel = Kernel::open()?;
        let mut table = Table::default();
        let (routes, plain) = kernel.routes()?;
        table.set_routes(&routes, plain);
        table.set_neighbours(kernel.neighbours()?);
        self.set(Some(table));
        let (mut routes_read, mut neighbours_read) = (Instant::now(), Instant::now());
        let (mut routes_changed, mut lost) = (false, false);
        let mut resolver = Resolver::default();
        while !stop.is_asked() {
            let wait = if self.held().is_empty() && resolver.begun.is_empty() { IDLE } else { BUSY };
            Readiness::new([self.woken.as_fd(), kernel.as_fd()]).wait(wait)?;
            while (&self.woken).read(&mut [0; 64]).is_ok_and(|read| read > 0) {}
            // What is held from here on wakes again.
            self.awake.store(false, Ordering::SeqCst);
            for change in kernel.changes()? {
                match change {
                    Change::Neighbour(hop, is_resolved) => {
                        self.change(|table| table.set_neighbour(hop, is_resolved));
                        if is_resolved {
                            resolver.ended(&hop);
                            self.let_go(&hop, release);
                        }
                    }
                    Change::Routes => routes_changed = true,
                    Change::Lost => lost = true,
                }
            }
            if routes_changed && routes_read.elapsed() >= ROUTES_PAUSE {
                let (routes, plain) = kernel.routes()?;
                let mut fresh = Table::default();
                fresh.set_routes(&routes, plain);
                self.change(|table| table.swap_routes(&mut fresh));
                (routes_changed, routes_read) = (false, Instant::now());
            }
            if lost || neighbours_read.elapsed() >= NEIGHBOURS_PAUSE {
                let all = kernel.neighbours()?;
                let mut fresh = Table::default();
                fresh.set_neighbours(all.iter().copied());
                self.change(|table| table.swap_neighbours(&mut fresh));
                all.iter().for_each(|hop| self.let_go(hop, release));
                (lost, neighbours_read) = (false, Instant::now());
            }
            self.resolve(&mut kernel, &mut resolver, release);
            let expired = self.held().expired(monotonic_ns());
            expired.into_iter().for_each(|item| release(Release::Unresolved(item)));
        }
        Ok(())
    }

    /// Asks the kernel for the neighbours that something waits for.
    fn resolve(&self, kernel: &mut Kernel, resolver: &mut Resolver, release: &mut impl FnMut(Release<T>)) {
        resolver.give_up(kernel, monotonic_ns());
        while resolver.begun.len() < MOST_RESOLVING {
            let Some(hop) = self.held().next_unasked() else {
                return;
            };
            // It may have been resolved since it was looked at.
            if self.is_resolved(&hop) || resolver.ask(kernel, hop) {
                self.change(|table| table.set_neighbour(hop, true));
                self.let_go(&hop, release);
            }
        }
    }
}

/// The resolutions that we asked for.
#[derive(Default)]
struct Resolver {
    /// Oldest first; true for those that the kernel did not know before.
    begun: VecDeque<(Hop, u64, bool)>,
    told: bool,
    /// Without CAP_NET_ADMIN: a socket whose datagrams make the kernel resolve.
    prod: Option<UdpSocket>,
}

impl Resolver {
    /// Asks for one; true when it is resolved already.
    fn ask(&mut self, kernel: &mut Kernel, hop: Hop) -> bool {
        let asked = match kernel.resolve(&hop) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                self.prod(&hop);
                Ok(Asked::Known)
            }
            other => other,
        };
        match asked {
            Ok(Asked::Begun) => self.begun.push_back((hop, monotonic_ns(), true)),
            Ok(Asked::Known) => {
                if kernel.is_resolved(&hop).unwrap_or(false) {
                    return true;
                }
                self.begun.push_back((hop, monotonic_ns(), false));
            }
            // The kernel's table is full, or the interface is gone: what waits ends with its patience.
            Err(error) => tracing::trace!(%error, ?hop, "a neighbour cannot be resolved"),
        }
        false
    }

    fn prod(&mut self, hop: &Hop) {
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(
                "netlink: without CAP_NET_ADMIN neighbours are resolved by an empty datagram to their port {DISCARD}"
            );
        }
        if self.prod.is_none() {
            self.prod = UdpSocket::bind("[::]:0").and_then(|one| one.set_nonblocking(true).map(|()| one)).ok();
        }
        if let Some(socket) = &self.prod {
            let to = SocketAddr::V6(SocketAddrV6::new(hop.address, DISCARD, 0, hop.interface));
            // A full buffer is one that waits for many others.
            let _ = socket.send_to(&[], to);
        }
    }

    fn ended(&mut self, hop: &Hop) {
        self.begun.retain(|(one, _, _)| one != hop);
    }

    /// Ends the resolutions that took too long, so that the kernel's table has room for others.
    fn give_up(&mut self, kernel: &mut Kernel, now_ns: u64) {
        while let Some((hop, since_ns, is_ours)) = self.begun.front().copied() {
            if now_ns.saturating_sub(since_ns) < nanoseconds(PATIENCE) {
                return;
            }
            self.begun.pop_front();
            // Resolved at this moment, or known before us, it stays.
            if is_ours && !kernel.is_resolved(&hop).unwrap_or(true) {
                let _ = kernel.forget(&hop);
            }
        }
    }
}
