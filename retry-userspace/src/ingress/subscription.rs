//! The sockets of a set of groups: any-source ones that stay, and those of sources that come and go.
//!
//! Joining thousands of groups takes its time, so a thread of its own joins and leaves, while the receiving thread goes on
//! receiving: it sees new sockets when they have joined, and reads the old ones empty when they have left.
//!
//! Several threads can receive: each has a share of the groups, with sockets of its own.
//!
//! An interface that comes back under another index, or has lost its memberships, is joined anew by [`Rejoin`].
//!
//! On request the joiner keeps membership sockets beside them ([`Rejoin::keep_memberships`]), for a descriptor store that
//! outlives the daemon.

use std::collections::{BTreeSet, HashSet};
use std::net::Ipv6Addr;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use retry_common::group::{self, SourceMode};
use socket2::Socket;

use super::joins::{Delivery, JoinError, Joins};
use super::ssm::SourceJoins;
use crate::fabric::Fabric;
use crate::net::mld::Membership;
use crate::settings::Settings;

/// What is wrong when membership sockets cannot join.
const UNKEPT: &str = "-bpf-handover: a membership ends with this daemon, for no membership socket holds it";

/// What the data groups are joined by.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The groups.
    pub groups: GroupSet,
    /// Threads that they are spread over, at least one; no more than there are groups are of use.
    pub shares: usize,
}

impl Config {
    /// As the settings ask, on these interfaces; `None` with `-mc-join-enabled=false`.
    #[must_use]
    pub(crate) fn from(settings: &Settings, fabric: &Fabric) -> Option<Self> {
        if !settings.ingress.join {
            return None;
        }
        let groups = data_groups(settings);
        let cpus = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let shares = shares(settings.ingress.workers, groups.len(), cpus);
        let (any_source, by_source) = match settings.ingress.source_mode {
            SourceMode::Asm => (groups, Vec::new()),
            SourceMode::Ssm => (Vec::new(), groups),
        };
        let groups = GroupSet {
            delivery: Delivery::Merged,
            interface: fabric.ingress.index,
            port: settings.ingress.listen_port,
            any_source,
            by_source,
        };
        Some(Self { groups, shares })
    }
}

/// Every data group that the settings imply.
#[must_use]
pub(crate) fn data_groups(settings: &Settings) -> Vec<Ipv6Addr> {
    let ingress = &settings.ingress;
    group::joined(ingress.shard_bits, ingress.subtree_data, ingress.beef)
        .map(|index| Ipv6Addr::from(group::address(ingress.group_prefix, ingress.group_id, index)))
        .collect()
}

/// Threads that the groups are spread over; `asked` 0 leaves it to us.
///
/// One thread needs 1.4 to 1.7 µs of CPU for a frame of 400 bytes, two need 2.1 to 2.3 µs and three 2.7 µs (batches are
/// smaller, and all append to one log). So a fabric has to be spread over many groups, and the host have CPUs to spare,
/// before a second one brings more than it costs.
fn shares(asked: usize, groups: usize, cpus: usize) -> usize {
    let wanted = match asked {
        0 if groups <= 16 => 1,
        0 => (cpus / 4).clamp(1, 4),
        asked => asked,
    };
    wanted.clamp(1, groups.max(1))
}

/// Where is listened.
#[derive(Clone, Debug)]
pub(crate) struct GroupSet {
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

impl GroupSet {
    /// This place's groups dealt out to `shares` places, one after the other; to fewer when there are fewer groups.
    fn split(self, shares: usize) -> Vec<Self> {
        let Self { delivery, interface, port, any_source, by_source } = self;
        let shares = shares.clamp(1, any_source.len().max(by_source.len()).max(1));
        let mut places =
            vec![Self { delivery, interface, port, any_source: Vec::new(), by_source: Vec::new() }; shares];
        deal(any_source, &mut places, |group_set| &mut group_set.any_source);
        deal(by_source, &mut places, |group_set| &mut group_set.by_source);
        places
    }
}

fn deal(groups: Vec<Ipv6Addr>, places: &mut [GroupSet], to: impl Fn(&mut GroupSet) -> &mut Vec<Ipv6Addr>) {
    // In two shares, a group's datagrams would arrive twice.
    let mut seen = HashSet::with_capacity(groups.len());
    let shares = places.len();
    for (number, group) in groups.into_iter().filter(|group| seen.insert(*group)).enumerate() {
        to(&mut places[number % shares]).push(group);
    }
}

/// What is joined by source, for metrics.
#[derive(Debug, Default)]
pub(crate) struct Status {
    sources: Mutex<BTreeSet<Ipv6Addr>>,
    sockets: AtomicUsize,
}

impl Status {
    /// Number of [`Status::joined`].
    #[must_use]
    pub(crate) fn sources(&self) -> usize {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Sources joined; none where any source is.
    #[must_use]
    pub(crate) fn joined(&self) -> BTreeSet<Ipv6Addr> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sockets, any-source ones too, of all shares.
    #[must_use]
    pub(crate) fn sockets(&self) -> usize {
        self.sockets.load(Ordering::Relaxed)
    }
}

/// Told of the sources that are joined.
pub(crate) type OnJoined = Box<dyn FnMut(&BTreeSet<Ipv6Addr>) + Send>;

/// Told of the membership sockets after each change of them.
pub(crate) type OnMemberships = Box<dyn FnMut(Vec<Arc<Socket>>) + Send>;

/// The sockets to receive on.
pub(crate) struct Subscription {
    sockets: Vec<Arc<Socket>>,
    board: Arc<Board>,
    seen: u64,
    joiner: Arc<Mutex<Joiner>>,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").field("sockets", &self.sockets).finish_non_exhaustive()
    }
}

/// Joins everything anew, of all shares.
#[derive(Clone)]
pub(crate) struct Rejoin(Arc<Mutex<Joiner>>);

impl Rejoin {
    /// The groups that have to be joined: those by source while there are sources.
    #[must_use]
    pub(crate) fn groups(&self) -> BTreeSet<Ipv6Addr> {
        self.joiner().groups()
    }

    /// What is joined, by interface index.
    #[must_use]
    pub(crate) fn memberships(&self) -> Vec<(u32, Vec<Membership>)> {
        self.joiner().shares.iter().map(Share::memberships).collect()
    }

    /// Joins every group on the interface of this index, by new sockets, and gives up the old ones.
    ///
    /// # Errors
    /// [`JoinError`]; then the sockets are those of before. They have left the groups if they were on this interface.
    pub(crate) fn on(&self, interface: u32) -> Result<(), JoinError> {
        self.joiner().rejoin(interface)
    }

    /// Opens membership sockets, which join what is joined, and from now on join and leave with the others. `tell` gets all of
    /// them now and after each change; what has joined is theirs before it is left by the others.
    pub(crate) fn keep_memberships(&self, tell: OnMemberships) {
        let mut joiner = self.joiner();
        joiner.memberships = Some(Memberships { tell, shares: Vec::new(), told: Vec::new() });
        joiner.open_memberships();
        joiner.tell_memberships();
    }

    fn joiner(&self) -> MutexGuard<'_, Joiner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the joining thread puts its sockets for the receiving one.
#[derive(Debug, Default)]
struct Board {
    sockets: Mutex<Vec<Arc<Socket>>>,
    /// Changes after each change of `sockets`.
    edition: AtomicU64,
    status: Arc<Status>,
}

impl Subscription {
    /// Joins the any-source groups, and the others from each source in `first`: what the kernel cannot hold then ends the
    /// start and not the day. Afterwards the newest set out of `wanted` holds, until its sender is gone.
    ///
    /// # Errors
    /// [`JoinError`]; none of the joins stays.
    pub(crate) fn open(
        group_set: GroupSet,
        first: &BTreeSet<Ipv6Addr>,
        wanted: Receiver<BTreeSet<Ipv6Addr>>,
    ) -> Result<Self, JoinError> {
        let config = Config { groups: group_set, shares: 1 };
        let mut all = Self::open_shares(config, first, wanted, None)?;
        // There is always one.
        Ok(all.swap_remove(0))
    }

    /// As [`Subscription::open`], with the groups dealt out to several threads: at least one, and no more than there are
    /// groups. What arrives by one group arrives at one of them. `on_joined` is told of the sources that are joined, at once
    /// and after each change.
    ///
    /// # Errors
    /// As [`Subscription::open`].
    pub(crate) fn open_shares(
        config: Config,
        first: &BTreeSet<Ipv6Addr>,
        wanted: Receiver<BTreeSet<Ipv6Addr>>,
        on_joined: Option<OnJoined>,
    ) -> Result<Vec<Self>, JoinError> {
        let Config { groups, shares } = config;
        let (port, has_sources) = (groups.port, !groups.by_source.is_empty());
        let mut joiner = Joiner { on_joined, ..Joiner::default() };
        for share in groups.split(shares) {
            joiner.open_share(share)?;
        }
        let mut all = Self::of(&Joiner::start(joiner, port, first, has_sources.then_some(wanted))?);
        for subscription in &mut all {
            subscription.reconcile(|_| {});
        }
        Ok(all)
    }

    /// One for each share.
    fn of(joiner: &Arc<Mutex<Joiner>>) -> Vec<Self> {
        let kept = joiner.lock().unwrap_or_else(PoisonError::into_inner);
        let open = |share: &Share| Self {
            sockets: Vec::new(),
            board: Arc::clone(&share.board),
            seen: 0,
            joiner: Arc::clone(joiner),
        };
        kept.shares.iter().map(open).collect()
    }

    /// What joins everything anew, for all shares.
    #[must_use]
    pub(crate) fn rejoin(&self) -> Rejoin {
        Rejoin(Arc::clone(&self.joiner))
    }

    /// What is joined, by all shares, also later.
    #[must_use]
    pub(crate) fn status(&self) -> Arc<Status> {
        Arc::clone(&self.board.status)
    }

    /// All sockets.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(|socket| socket.as_fd())
    }

    /// True when the sockets have changed since [`Subscription::reconcile`].
    #[must_use]
    pub(crate) fn has_news(&self) -> bool {
        self.board.edition.load(Ordering::Acquire) != self.seen
    }

    /// Takes the sockets as they are now. `last` gets each that is no longer needed, for what is still queued there, before
    /// it is closed. Those that stay are not touched.
    pub(crate) fn reconcile(&mut self, mut last: impl FnMut(&Socket)) {
        if !self.has_news() {
            return;
        }
        let sockets = {
            let sockets = self.board.sockets.lock().unwrap_or_else(PoisonError::into_inner);
            // Under the lock, so that it belongs to these sockets.
            self.seen = self.board.edition.load(Ordering::Acquire);
            sockets.clone()
        };
        let old = std::mem::replace(&mut self.sockets, sockets);
        for socket in old.iter().filter(|old| !self.sockets.iter().any(|now| Arc::ptr_eq(now, old))) {
            last(socket);
        }
    }
}

/// The joining thread.
#[derive(Default)]
struct Joiner {
    /// At least one. All hold the same sources.
    shares: Vec<Share>,
    /// The sources to join from.
    wanted: BTreeSet<Ipv6Addr>,
    /// Sources wanted that could not be joined; each is told once in the log.
    refused: BTreeSet<Ipv6Addr>,
    status: Arc<Status>,
    on_joined: Option<OnJoined>,
    memberships: Option<Memberships>,
}

/// The memberships of all shares, on sockets that receive nothing.
struct Memberships {
    tell: OnMemberships,
    shares: Vec<Share>,
    /// The sockets that were told last.
    told: Vec<Arc<Socket>>,
}

impl Memberships {
    fn of_interface(&self, interface: u32) -> impl Iterator<Item = &Share> {
        self.shares.iter().filter(move |share| share.group_set.interface == interface)
    }
}

/// What one receiving thread gets.
struct Share {
    group_set: GroupSet,
    /// Any-source sockets.
    fixed: Vec<Arc<Socket>>,
    joins: SourceJoins,
    board: Arc<Board>,
}

impl Joiner {
    /// Joins the any-source groups of one more share.
    fn open_share(&mut self, group_set: GroupSet) -> Result<(), JoinError> {
        let board = Arc::new(Board { status: Arc::clone(&self.status), ..Board::default() });
        self.shares.push(Share::open(group_set, board)?);
        Ok(())
    }

    /// Joins from the first sources, and then on a thread from those that are wanted, if any ever are.
    fn start(
        mut self,
        port: u16,
        first: &BTreeSet<Ipv6Addr>,
        wanted: Option<Receiver<BTreeSet<Ipv6Addr>>>,
    ) -> Result<Arc<Mutex<Self>>, JoinError> {
        self.wanted.clone_from(first);
        for source in first {
            self.join_one(*source)?;
        }
        self.publish();
        let joiner = Arc::new(Mutex::new(self));
        if let Some(wanted) = wanted {
            let kept = Arc::clone(&joiner);
            let keep = move || Self::keep(&kept, &wanted);
            thread::Builder::new().name(format!("joins-{port}")).spawn(keep).map_err(JoinError::Thread)?;
        }
        Ok(joiner)
    }

    fn keep(joiner: &Mutex<Self>, wanted: &Receiver<BTreeSet<Ipv6Addr>>) {
        while let Ok(set) = wanted.recv() {
            let set = wanted.try_iter().last().unwrap_or(set);
            joiner.lock().unwrap_or_else(PoisonError::into_inner).reconcile(&set);
        }
    }

    fn groups(&self) -> BTreeSet<Ipv6Addr> {
        let has_sources = self.sources().next().is_some();
        let of = |share: &Share| -> Vec<Ipv6Addr> {
            let by_source = share.group_set.by_source.iter().filter(|_| has_sources);
            share.group_set.any_source.iter().chain(by_source).copied().collect()
        };
        self.shares.iter().flat_map(of).collect()
    }

    /// Joins all that is joined on another interface, by new sockets.
    fn rejoin(&mut self, interface: u32) -> Result<(), JoinError> {
        let sources: Vec<Ipv6Addr> = self.sources().collect();
        let kept = self.memberships.iter().flat_map(|memberships| memberships.of_interface(interface));
        for share in self.shares.iter().filter(|share| share.group_set.interface == interface).chain(kept) {
            share.leave_all();
        }
        let open = |old: &Share| {
            let mut share = Share::open(GroupSet { interface, ..old.group_set.clone() }, Arc::clone(&old.board))?;
            sources.iter().try_for_each(|source| share.joins.join(*source))?;
            Ok(share)
        };
        let shares = self.shares.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        self.shares = shares;
        self.open_memberships();
        // What could not be joined before may be now.
        let wanted = std::mem::take(&mut self.wanted);
        self.reconcile(&wanted);
        Ok(())
    }

    /// Joins what is new, then leaves what is not wanted; refused sources are tried again, also with the same set.
    fn reconcile(&mut self, wanted: &BTreeSet<Ipv6Addr>) {
        self.wanted.clone_from(wanted);
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
        } else {
            for share in self.memberships.iter_mut().flat_map(|memberships| &mut memberships.shares) {
                share.keep_source(source);
            }
        }
        joined
    }

    fn leave(&mut self, source: Ipv6Addr) {
        let kept = self.memberships.iter_mut().flat_map(|memberships| &mut memberships.shares);
        for share in self.shares.iter_mut().chain(kept) {
            share.joins.leave(source);
        }
    }

    /// Opens the membership sockets of what is joined now, if there are to be any.
    fn open_memberships(&mut self) {
        let sources: Vec<Ipv6Addr> = self.sources().collect();
        let Some(memberships) = &mut self.memberships else { return };
        let open = |share: &Share| {
            let group_set = GroupSet { delivery: Delivery::None, ..share.group_set.clone() };
            let opened = Share::open(group_set, Arc::default());
            let opened = opened.inspect_err(|error| tracing::warn!(%error, "{}", UNKEPT));
            let mut opened = opened.ok()?;
            sources.iter().for_each(|source| opened.keep_source(*source));
            Some(opened)
        };
        // Those of before are closed where they are kept, once these are.
        memberships.shares = self.shares.iter().filter_map(open).collect();
    }

    fn tell_memberships(&mut self) {
        let Some(memberships) = &mut self.memberships else { return };
        let now: Vec<Arc<Socket>> = memberships.shares.iter().flat_map(Share::sockets).cloned().collect();
        if !now.iter().map(Arc::as_ptr).eq(memberships.told.iter().map(Arc::as_ptr)) {
            memberships.told.clone_from(&now);
            (memberships.tell)(now);
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
        let sockets: usize = self.shares.iter().map(|share| share.sockets().count()).sum();
        *self.status.sources.lock().unwrap_or_else(PoisonError::into_inner) = sources;
        self.status.sockets.store(sockets, Ordering::Relaxed);
        for share in &self.shares {
            share.publish();
        }
        self.tell_memberships();
    }
}

impl Share {
    /// Joins the any-source groups.
    fn open(group_set: GroupSet, board: Arc<Board>) -> Result<Self, JoinError> {
        let GroupSet { delivery, interface, port, any_source, by_source } = &group_set;
        let fixed = if any_source.is_empty() {
            Vec::new()
        } else {
            Joins::open_for(*delivery, *interface, *port, any_source)?.into_sockets()
        };
        let joins = SourceJoins::new(*delivery, *interface, *port, by_source);
        Ok(Self { fixed: fixed.into_iter().map(Arc::new).collect(), joins, board, group_set })
    }

    /// Leaves what the sockets think that they have joined.
    ///
    /// Linux counts the sockets of a group on an interface. When it has lost the memberships, a socket that still has them
    /// on its list would take one off that count as it closes: that of the socket which has joined anew.
    fn leave_all(&self) {
        for group in &self.group_set.any_source {
            for socket in &self.fixed {
                // It is on one of them at most, and perhaps on no interface.
                let _ = socket.leave_multicast_v6(group, self.group_set.interface);
            }
        }
        self.joins.leave_all();
    }

    /// Joins one more source, of membership sockets.
    fn keep_source(&mut self, source: Ipv6Addr) {
        if let Err(error) = self.joins.join(source) {
            tracing::warn!(%source, %error, "{}", UNKEPT);
        }
    }

    fn memberships(&self) -> (u32, Vec<Membership>) {
        let GroupSet { interface, any_source, by_source, .. } = &self.group_set;
        let sources: Vec<Ipv6Addr> = self.joins.sources().collect();
        let named = by_source.iter().filter(|_| !sources.is_empty()).map(|group| (*group, Some(sources.clone())));
        (*interface, any_source.iter().map(|group| (*group, None)).chain(named).collect())
    }

    fn sockets(&self) -> impl Iterator<Item = &Arc<Socket>> {
        self.fixed.iter().chain(self.joins.sockets())
    }

    fn publish(&self) {
        let mut sockets = self.board.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        if !sockets.iter().map(Arc::as_ptr).eq(self.sockets().map(Arc::as_ptr)) {
            *sockets = self.sockets().cloned().collect();
            self.board.edition.fetch_add(1, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests;
