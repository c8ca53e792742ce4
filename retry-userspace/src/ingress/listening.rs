//! The sockets of a set of groups: any-source ones that stay, and those of sources that come and go.
//!
//! Joining thousands of groups takes its time, so a thread of its own joins and leaves, while whoever receives goes on
//! receiving: it sees new sockets when they have joined, and reads the old ones empty when they have left.
//!
//! Several threads can receive: each has a share of the groups, with sockets of its own.

use std::collections::{BTreeSet, HashSet};
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use socket2::Socket;

use super::joins::{Delivery, JoinError, Joins};
use super::ssm::SourceJoins;

/// Where is listened.
#[derive(Clone, Debug)]
pub struct Place {
    /// How datagrams are handed over.
    pub delivery: Delivery,
    /// Index of the interface.
    pub interface: u32,
    /// UDP port.
    pub port: u16,
    /// Groups joined from any source.
    pub any_source: Vec<Ipv6Addr>,
    /// Groups joined from each source that is wanted.
    pub by_source: Vec<Ipv6Addr>,
}

impl Place {
    /// This place's groups dealt out to `shares` places, one after the other; to fewer when there are fewer groups.
    fn split(self, shares: usize) -> Vec<Self> {
        let Self { delivery, interface, port, any_source, by_source } = self;
        let shares = shares.clamp(1, any_source.len().max(by_source.len()).max(1));
        let mut places =
            vec![Self { delivery, interface, port, any_source: Vec::new(), by_source: Vec::new() }; shares];
        deal(any_source, &mut places, |place| &mut place.any_source);
        deal(by_source, &mut places, |place| &mut place.by_source);
        places
    }
}

fn deal(groups: Vec<Ipv6Addr>, places: &mut [Place], to: impl Fn(&mut Place) -> &mut Vec<Ipv6Addr>) {
    // In two shares, a group's datagrams would arrive twice.
    let mut seen = HashSet::with_capacity(groups.len());
    let shares = places.len();
    for (number, group) in groups.into_iter().filter(|group| seen.insert(*group)).enumerate() {
        to(&mut places[number % shares]).push(group);
    }
}

/// What is joined by source, for metrics.
#[derive(Debug, Default)]
pub struct Status {
    sources: AtomicUsize,
    sockets: AtomicUsize,
}

impl Status {
    /// Sources joined.
    #[must_use]
    pub fn sources(&self) -> usize {
        self.sources.load(Ordering::Relaxed)
    }

    /// Sockets, any-source ones too, of all shares.
    #[must_use]
    pub fn sockets(&self) -> usize {
        self.sockets.load(Ordering::Relaxed)
    }
}

/// Told of the sources that are joined.
pub type OnJoined = Box<dyn FnMut(&BTreeSet<Ipv6Addr>) + Send>;

/// The sockets to receive on.
#[derive(Debug)]
pub struct Listening {
    fixed: Option<Joins>,
    by_source: Vec<Arc<Socket>>,
    board: Arc<Board>,
    seen: u64,
}

/// Where the joining thread puts its sockets for the receiving one.
#[derive(Debug, Default)]
struct Board {
    sockets: Mutex<Vec<Arc<Socket>>>,
    /// Changes after each change of `sockets`.
    edition: AtomicU64,
    status: Arc<Status>,
}

impl Listening {
    /// Joins the any-source groups, and the others from each source in `first`: what the kernel cannot hold then ends the
    /// start and not the day. Afterwards the newest set out of `wanted` holds, until its sender is gone.
    ///
    /// # Errors
    /// [`JoinError`]; none of the joins stays.
    pub fn open(
        place: Place,
        first: &BTreeSet<Ipv6Addr>,
        wanted: Receiver<BTreeSet<Ipv6Addr>>,
    ) -> Result<Self, JoinError> {
        let (port, has_sources) = (place.port, !place.by_source.is_empty());
        let mut keeper = Keeper::default();
        let mut listening = keeper.open_share(&place)?;
        keeper.start(port, first, has_sources.then_some(wanted))?;
        listening.reconcile(|_| {});
        Ok(listening)
    }

    /// As [`Listening::open`], with the groups dealt out to `shares` threads: at least one, and no more than there are
    /// groups. What arrives by one group arrives at one of them. `on_joined` is told of the sources that are joined, at once
    /// and after each change.
    ///
    /// # Errors
    /// As [`Listening::open`].
    pub fn open_shares(
        place: Place,
        shares: usize,
        first: &BTreeSet<Ipv6Addr>,
        wanted: Receiver<BTreeSet<Ipv6Addr>>,
        on_joined: Option<OnJoined>,
    ) -> Result<Vec<Self>, JoinError> {
        let (port, has_sources) = (place.port, !place.by_source.is_empty());
        let mut keeper = Keeper { on_joined, ..Keeper::default() };
        let opened = place.split(shares).iter().map(|share| keeper.open_share(share)).collect::<Result<Vec<_>, _>>();
        let mut all = opened?;
        keeper.start(port, first, has_sources.then_some(wanted))?;
        for listening in &mut all {
            listening.reconcile(|_| {});
        }
        Ok(all)
    }

    /// What is joined, by all shares, also later.
    #[must_use]
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.board.status)
    }

    /// All sockets.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.fixed.iter().flat_map(Joins::fds).chain(self.by_source.iter().map(|socket| socket.as_fd()))
    }

    /// True when the sockets have changed since [`Listening::reconcile`].
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.board.edition.load(Ordering::Acquire) != self.seen
    }

    /// Takes the sockets as they are now. `last` gets each that is no longer needed, for what is still queued there, before
    /// it is closed. Those that stay are not touched.
    pub fn reconcile(&mut self, mut last: impl FnMut(&Socket)) {
        if !self.has_news() {
            return;
        }
        let sockets = {
            let sockets = self.board.sockets.lock().unwrap_or_else(PoisonError::into_inner);
            // Under the lock, so that it belongs to these sockets.
            self.seen = self.board.edition.load(Ordering::Acquire);
            sockets.clone()
        };
        let old = std::mem::replace(&mut self.by_source, sockets);
        for socket in old.iter().filter(|old| !self.by_source.iter().any(|now| Arc::ptr_eq(now, old))) {
            last(socket);
        }
    }
}

/// The joining thread.
#[derive(Default)]
struct Keeper {
    /// At least one. All hold the same sources.
    shares: Vec<Share>,
    /// Any-source sockets.
    fixed: usize,
    /// Sources wanted that could not be joined; each is told once in the log.
    refused: BTreeSet<Ipv6Addr>,
    status: Arc<Status>,
    on_joined: Option<OnJoined>,
}

/// What one receiving thread gets.
struct Share {
    joins: SourceJoins,
    board: Arc<Board>,
}

impl Keeper {
    /// Joins the any-source groups of one more share.
    fn open_share(&mut self, place: &Place) -> Result<Listening, JoinError> {
        let Place { delivery, interface, port, any_source, by_source } = place;
        let fixed =
            if any_source.is_empty() { None } else { Some(Joins::open_for(*delivery, *interface, *port, any_source)?) };
        self.fixed += fixed.as_ref().map_or(0, |joins| joins.fds().len());
        let board = Arc::new(Board { status: Arc::clone(&self.status), ..Board::default() });
        let joins = SourceJoins::new(*delivery, *interface, *port, by_source);
        self.shares.push(Share { joins, board: Arc::clone(&board) });
        Ok(Listening { fixed, by_source: Vec::new(), board, seen: 0 })
    }

    /// Joins from the first sources, and then on a thread from those that are wanted, if any ever are.
    fn start(
        mut self,
        port: u16,
        first: &BTreeSet<Ipv6Addr>,
        wanted: Option<Receiver<BTreeSet<Ipv6Addr>>>,
    ) -> Result<(), JoinError> {
        for source in first {
            self.join_one(*source)?;
        }
        self.publish();
        if let Some(wanted) = wanted {
            let keep = move || self.keep(&wanted);
            thread::Builder::new().name(format!("joins-{port}")).spawn(keep).map_err(JoinError::Thread)?;
        }
        Ok(())
    }

    fn keep(mut self, wanted: &Receiver<BTreeSet<Ipv6Addr>>) {
        while let Ok(set) = wanted.recv() {
            self.reconcile(&wanted.try_iter().last().unwrap_or(set));
        }
    }

    /// Joins what is new, then leaves what is not wanted; refused sources are tried again, also with the same set.
    fn reconcile(&mut self, wanted: &BTreeSet<Ipv6Addr>) {
        let refused = self.join(wanted);
        // Those that are new are received from before the others are left.
        self.publish();
        let leaving: Vec<_> = self.sources().filter(|source| !wanted.contains(source)).collect();
        for source in &leaving {
            self.leave(*source);
            tracing::info!(%source, "source left");
        }
        // Those that have left made room.
        let refused = if leaving.is_empty() { refused } else { self.join(wanted) };
        for (source, error) in &refused {
            if !self.refused.contains(source) {
                tracing::error!(%source, %error, "a source cannot be joined: tried again later");
            }
        }
        self.refused = refused.into_iter().map(|(source, _)| source).collect();
        self.publish();
    }

    /// Joins what is not joined yet, and returns what could not be.
    fn join(&mut self, wanted: &BTreeSet<Ipv6Addr>) -> Vec<(Ipv6Addr, JoinError)> {
        let mut refused = Vec::new();
        for source in wanted {
            if self.sources().any(|joined| joined == *source) {
                continue;
            }
            match self.join_one(*source) {
                Ok(()) => tracing::info!(%source, "source joined"),
                Err(error) => refused.push((*source, error)),
            }
        }
        refused
    }

    /// Joins a source in every share, or in none.
    fn join_one(&mut self, source: Ipv6Addr) -> Result<(), JoinError> {
        let joined = self.shares.iter_mut().try_for_each(|share| share.joins.join(source));
        if joined.is_err() {
            self.leave(source);
        }
        joined
    }

    fn leave(&mut self, source: Ipv6Addr) {
        for share in &mut self.shares {
            share.joins.leave(source);
        }
    }

    fn sources(&self) -> impl Iterator<Item = Ipv6Addr> {
        self.shares.first().into_iter().flat_map(|share| share.joins.sources())
    }

    fn publish(&mut self) {
        let sources = self.sources().collect();
        if let Some(tell) = &mut self.on_joined {
            tell(&sources);
        }
        let by_source: usize = self.shares.iter().map(|share| share.joins.sockets().count()).sum();
        self.status.sources.store(self.sources().count(), Ordering::Relaxed);
        self.status.sockets.store(self.fixed + by_source, Ordering::Relaxed);
        for share in &self.shares {
            share.publish();
        }
    }
}

impl Share {
    fn publish(&self) {
        let mut sockets = self.board.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        if !sockets.iter().map(Arc::as_ptr).eq(self.joins.sockets().map(Arc::as_ptr)) {
            *sockets = self.joins.sockets().cloned().collect();
            self.board.edition.fetch_add(1, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests;
