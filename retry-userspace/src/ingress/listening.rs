//! The sockets of a set of groups: any-source ones that stay, and those of sources that come and go.
//!
//! Joining thousands of groups takes its time, so a thread of its own joins and leaves, while whoever receives goes on
//! receiving: it sees new sockets when they have joined, and reads the old ones empty when they have left.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use socket2::Socket;

use super::joins::{JoinError, Joins};
use super::ssm::SourceJoins;

/// Where is listened.
#[derive(Clone, Debug)]
pub struct Place {
    /// Index of the interface.
    pub interface: u32,
    /// UDP port.
    pub port: u16,
    /// Groups joined from any source.
    pub any_source: Vec<Ipv6Addr>,
    /// Groups joined from each source that is wanted.
    pub by_source: Vec<Ipv6Addr>,
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

    /// Sockets, any-source ones too.
    #[must_use]
    pub fn sockets(&self) -> usize {
        self.sockets.load(Ordering::Relaxed)
    }
}

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
        let Place { interface, port, any_source, by_source } = place;
        let fixed = if any_source.is_empty() { None } else { Some(Joins::open(interface, port, &any_source)?) };
        let board = Arc::new(Board::default());
        let mut keeper = Keeper {
            joins: SourceJoins::new(interface, port, &by_source),
            fixed: fixed.as_ref().map_or(0, |joins| joins.fds().len()),
            refused: BTreeSet::new(),
            board: Arc::clone(&board),
        };
        for source in first {
            keeper.joins.join(*source)?;
        }
        keeper.publish();
        if !by_source.is_empty() {
            let keep = move || keeper.keep(&wanted);
            thread::Builder::new().name(format!("joins-{port}")).spawn(keep).map_err(JoinError::Thread)?;
        }
        let mut listening = Self { fixed, by_source: Vec::new(), board, seen: 0 };
        listening.reconcile(|_| {});
        Ok(listening)
    }

    /// What is joined, also later.
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
struct Keeper {
    joins: SourceJoins,
    /// Any-source sockets.
    fixed: usize,
    /// Sources wanted that could not be joined; each is told once in the log.
    refused: BTreeSet<Ipv6Addr>,
    board: Arc<Board>,
}

impl Keeper {
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
        let leaving: Vec<_> = self.joins.sources().filter(|source| !wanted.contains(source)).collect();
        for source in &leaving {
            self.joins.leave(*source);
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
            if self.joins.contains(source) {
                continue;
            }
            match self.joins.join(*source) {
                Ok(()) => tracing::info!(%source, "source joined"),
                Err(error) => refused.push((*source, error)),
            }
        }
        refused
    }

    fn publish(&self) {
        let status = &self.board.status;
        status.sources.store(self.joins.sources().count(), Ordering::Relaxed);
        let mut sockets = self.board.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        status.sockets.store(self.fixed + self.joins.sockets().count(), Ordering::Relaxed);
        if !sockets.iter().map(Arc::as_ptr).eq(self.joins.sockets().map(Arc::as_ptr)) {
            *sockets = self.joins.sockets().cloned().collect();
            self.board.edition.fetch_add(1, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests;
