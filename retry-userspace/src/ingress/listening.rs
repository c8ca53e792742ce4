//! The sockets of a set of groups: any-source ones that stay, and those of sources that come and go.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;

use super::joins::{JoinError, Joins};

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

/// The sockets, and the sources wanted.
#[derive(Debug)]
pub struct Listening {
    place: Place,
    fixed: Option<Joins>,
    sources: BTreeMap<Ipv6Addr, Joins>,
    wanted: Receiver<BTreeSet<Ipv6Addr>>,
    /// The newest set that came.
    news: RefCell<Option<BTreeSet<Ipv6Addr>>>,
    refused: BTreeSet<Ipv6Addr>,
    /// How many sockets there are, for whoever shows it.
    count: Arc<AtomicUsize>,
    /// How many sources are joined, likewise.
    joined: Arc<AtomicUsize>,
}

impl Listening {
    /// Joins the any-source groups; sources are joined as they come out of `wanted`.
    ///
    /// # Errors
    /// [`JoinError`].
    pub fn open(place: Place, wanted: Receiver<BTreeSet<Ipv6Addr>>) -> Result<Self, JoinError> {
        let fixed = if place.any_source.is_empty() {
            None
        } else {
            Some(Joins::open(place.interface, place.port, &place.any_source)?)
        };
        let count = Arc::new(AtomicUsize::new(fixed.as_ref().map_or(0, |joins| joins.fds().len())));
        Ok(Self {
            count,
            joined: Arc::default(),
            place,
            fixed,
            sources: BTreeMap::new(),
            wanted,
            news: RefCell::default(),
            refused: BTreeSet::new(),
        })
    }

    /// Joins one source now, so that a limit of the kernel ends the start and not the day.
    ///
    /// # Errors
    /// [`JoinError`].
    pub fn join(&mut self, source: Ipv6Addr) -> Result<(), JoinError> {
        let joins = Joins::open_source(self.place.interface, self.place.port, &self.place.by_source, source)?;
        self.sources.insert(source, joins);
        self.count();
        Ok(())
    }

    /// How many sockets there are, now and later.
    pub fn sockets(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.count)
    }

    /// How many sources are joined, now and later.
    pub fn joined(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.joined)
    }

    fn count(&self) {
        self.joined.store(self.sources.len(), Ordering::Relaxed);
        self.count.store(self.fds().count(), Ordering::Relaxed);
    }

    /// The sources joined.
    pub fn sources(&self) -> impl Iterator<Item = &Ipv6Addr> {
        self.sources.keys()
    }

    /// All sockets.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.fixed.iter().chain(self.sources.values()).flat_map(Joins::fds)
    }

    /// True when a set of sources has come that [`Listening::reconcile`] has not seen.
    pub fn has_news(&self) -> bool {
        let mut news = self.news.borrow_mut();
        if let Some(newest) = self.wanted.try_iter().last() {
            *news = Some(newest);
        }
        news.is_some()
    }

    /// Takes the newest set of sources, if one came: new ones are joined, then `last` gets the sockets of those that
    /// leave, for what is still queued there, and they are closed. Those that stay are not touched. True when something
    /// changed.
    pub fn reconcile(&mut self, mut last: impl FnMut(&Joins)) -> bool {
        if !self.has_news() {
            return false;
        }
        let wanted = self.news.take().unwrap_or_default();
        let mut changed = false;
        for source in &wanted {
            if self.sources.contains_key(source) {
                continue;
            }
            match self.join(*source) {
                Ok(()) => {
                    tracing::info!(%source, "source joined");
                    self.refused.remove(source);
                    changed = true;
                }
                // Tried again with the next set; told once.
                Err(error) => {
                    if self.refused.insert(*source) {
                        tracing::error!(%source, %error, "a source cannot be joined");
                    }
                }
            }
        }
        let leaving: Vec<Ipv6Addr> = self.sources.keys().filter(|source| !wanted.contains(source)).copied().collect();
        for source in leaving {
            if let Some(joins) = self.sources.remove(&source) {
                last(&joins);
                tracing::info!(%source, "source left");
                changed = true;
            }
        }
        self.count();
        changed
    }
}
