//! What outlives the daemon on a descriptor: memberships and the NACK socket.
//!
//! A group is left when the last socket that has joined it closes. So the daemon opens *membership sockets*, which have joined
//! what its other sockets have joined, are bound to no port and receive nothing, and gives them to a *descriptor store*: the
//! [`service_manager`]'s, or a small process of its own, the [`holder`]. The NACK socket goes with them: what arrives while no
//! daemon runs waits in its queue.
//!
//! At the start, [`Found::look`] finds what an earlier daemon left. Once the new daemon has joined by itself, [`Keeping`]
//! replaces it. At a change the store gets the whole set anew, before anything of the old one is closed, so that nothing is left
//! that stays joined.

mod holder;
mod last_run;
mod link;
mod protocol;
mod service_manager;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddrV6;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Child;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use socket2::{SockRef, Socket};

use crate::fabric::Fabric;
use crate::settings::Settings;
use crate::stop_flag::StopFlag;
use last_run::LastRun;
use link::Link;
use protocol::Kind;
use service_manager::ServiceManager;

pub use holder::main as hold;
pub(crate) use link::LinkError;
pub use link::has_hold_verb;
pub(crate) use protocol::interfaces;

/// Between two looks at the holder, and two writes of the time.
const LOOK: Duration = Duration::from_millis(100);
/// From a failure to the next attempt, and the longest time between two.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A NACK that has waited longer is not answered: its listener has asked another endpoint meanwhile.
const STALE: Duration = Duration::from_secs(1);

/// What is kept, and for how long.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// `-bpf-handover`: keep it at all.
    pub handover: bool,
    /// `-bpf-lease`: how long the holder goes on without a daemon.
    pub lease: Duration,
    /// The interface of the groups: one holder for each, in a network namespace.
    pub interface: String,
}

impl Config {
    /// As the settings ask, for the fabric's interface.
    #[must_use]
    pub(crate) fn from(settings: &Settings, fabric: &Fabric) -> Self {
        Self { handover: settings.xdp.handover, lease: settings.xdp.bpf_lease, interface: fabric.ingress.name.clone() }
    }
}

/// What an earlier daemon has left.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// From the service manager, by name.
    inherited: Vec<(String, OwnedFd)>,
    /// The holder; it holds on while this is open.
    link: Option<Link>,
    nack: Option<Socket>,
    /// Since the earlier daemon last ran, where that is known.
    gone_for: Option<Duration>,
    /// The interface, if its holder is of another version: it may hold the port of NACKs, and cannot be asked for it.
    outdated: Option<String>,
}

impl Found {
    /// Looks, and changes nothing. What cannot be had is not there.
    pub(crate) fn look(config: &Config) -> Self {
        let inherited = service_manager::inherited();
        let mut found = Self { inherited, ..Self::default() };
        let copies: Vec<(Kind, OwnedFd)> = found
            .inherited
            .iter()
            .filter_map(|(name, fd)| Some((service_manager::kind(name)?, fd.try_clone().ok()?)))
            .filter(|(kind, _)| *kind != Kind::Membership)
            .collect();
        found.sort(copies);
        match Link::find(&config.interface) {
            Ok(link) => found.take_from(link),
            Err(LinkError::Version) => found.outdated = Some(config.interface.clone()),
            // The keeping thread tries again, and tells.
            Err(error) => tracing::debug!(%error, "no holder is found at the start"),
        }
        found
    }

    fn take_from(&mut self, link: Link) {
        match link.take() {
            Ok(taken) => {
                self.sort(taken);
                self.link = Some(link);
            }
            Err(error) => tracing::warn!(%error, "the holder of memberships does not answer"),
        }
    }

    fn sort(&mut self, taken: Vec<(Kind, OwnedFd)>) {
        for (kind, fd) in taken {
            match kind {
                Kind::Membership => {}
                Kind::Nack => self.nack = Some(Socket::from(fd)),
                Kind::LastRun => self.gone_for = LastRun::age(fd).ok(),
            }
        }
    }

    /// The NACK socket of an earlier daemon, if it is bound to this address and port. A holder of another version ends here, or the
    /// port would stay its own: until this daemon has joined, the host may leave groups.
    pub(crate) fn nack_socket(&mut self, wanted: SocketAddrV6) -> Option<Socket> {
        if let Some(interface) = self.outdated.take() {
            match release(&interface) {
                Ok(_) => tracing::warn!(interface, "the holder of memberships was of another version, and has ended"),
                Err(error) => tracing::warn!(%error, interface, "the holder of memberships is of another version"),
            }
        }
        self.nack.take().filter(|socket| is_bound_to(socket, wanted))
    }

    /// As [`Found::nack_socket`], from a holder that an earlier daemon has left on another interface and no daemon uses. The
    /// holder ends: its memberships are of groups that no daemon wants there.
    pub(crate) fn nack_socket_elsewhere(&mut self, config: &Config, wanted: SocketAddrV6) -> Option<Socket> {
        // Without /proc there is no list.
        let others = interfaces().unwrap_or_default();
        for interface in others.iter().filter(|interface| **interface != config.interface) {
            let Ok(link) = Link::find(interface) else { continue };
            let mut other = Self::default();
            other.take_from(link);
            if let Some(socket) = other.nack_socket(wanted) {
                self.gone_for = other.gone_for;
                if let Some(Err(error)) = other.link.map(Link::release) {
                    tracing::warn!(%error, interface, "a holder of an earlier daemon did not end");
                }
                return Some(socket);
            }
        }
        None
    }

    /// True when NACKs have waited too long in the socket that is taken over.
    #[must_use]
    pub(crate) fn is_stale(&self) -> bool {
        self.gone_for.is_none_or(|gone| gone > STALE)
    }

    /// Gives up what an earlier daemon has left, with `-bpf-handover=false`: the daemon has joined by itself.
    pub(crate) fn release(self) {
        if let Some(mut manager) = ServiceManager::from_environment(&self.inherited)
            && let Err(error) = manager.replace(&[])
        {
            tracing::warn!(%error, "what the service manager keeps is not given up");
        }
        if let Some(Err(error)) = self.link.map(Link::release) {
            tracing::warn!(%error, "the holder of memberships did not end");
        }
    }
}

/// Whether a daemon of this process with `-bpf-handover` starts a holder: no service manager keeps descriptors for it, and it is not
/// the first process of a container.
pub(crate) fn starts_holder(handover: bool) -> bool {
    handover && std::process::id() != 1 && ServiceManager::from_environment(&[]).is_none()
}

fn is_bound_to(socket: &Socket, wanted: SocketAddrV6) -> bool {
    let local = SockRef::from(socket).local_addr().ok().and_then(|address| address.as_socket_ipv6());
    local.is_some_and(|local| (local.ip(), local.port()) == (wanted.ip(), wanted.port()))
}

/// Ends the holder of an interface, in the calling thread's network namespace. False when none runs.
///
/// # Errors
/// [`LinkError::Busy`] when a daemon uses it; it is another user's, or it does not answer.
pub(crate) fn release(interface: &str) -> Result<bool, LinkError> {
    match link::release(interface) {
        Ok(()) => Ok(true),
        Err(LinkError::Absent) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Told of the membership sockets of one part of the daemon after each change of them.
#[derive(Clone, Debug)]
pub(crate) struct Tell {
    part: usize,
    to: Sender<(usize, Vec<Arc<Socket>>)>,
}

impl Tell {
    /// These are all that this part has now.
    pub(crate) fn tell(&self, sockets: Vec<Arc<Socket>>) {
        // At the end no thread keeps them any more.
        let _ = self.to.send((self.part, sockets));
    }
}

/// Keeps the descriptor store in step with the daemon.
#[derive(Debug)]
pub(crate) struct Keeping {
    config: Config,
    nack: OwnedFd,
    last_run: LastRun,
    parts: Vec<Vec<Arc<Socket>>>,
    told: Receiver<(usize, Vec<Arc<Socket>>)>,
    store: Store,
    /// Holders that have ended or are about to, to be waited for.
    ended: Vec<Child>,
    /// The store has the set as it is.
    is_kept: bool,
    retry: Retry,
}

/// Where the set is.
#[derive(Debug)]
enum Store {
    /// With the service manager. A holder of an earlier daemon is ended once the service manager has the set.
    ServiceManager(ServiceManager, Option<Link>),
    /// With the holder, while it runs.
    Holder(Option<Link>),
}

/// When to try again, and what was said.
#[derive(Debug, Default)]
struct Retry {
    at: Option<Instant>,
    pause: Duration,
    said: Option<String>,
}

impl Keeping {
    /// Keeps the NACK socket and what each of `parts` tells. What an earlier daemon has left is replaced once
    /// [`Keeping::run`] has heard of all that was told before.
    ///
    /// # Errors
    /// The system gives no descriptor or no memory.
    pub(crate) fn new(
        config: Config,
        found: Found,
        nack: BorrowedFd<'_>,
        parts: usize,
    ) -> io::Result<(Self, Vec<Tell>)> {
        let Found { inherited, link, .. } = found;
        let store = match ServiceManager::from_environment(&inherited) {
            Some(manager) => Store::ServiceManager(manager, link),
            None => Store::Holder(link),
        };
        let (to, told) = channel();
        let keeping = Self {
            config,
            nack: nack.try_clone_to_owned()?,
            last_run: LastRun::new()?,
            parts: vec![Vec::new(); parts],
            told,
            store,
            ended: Vec::new(),
            is_kept: false,
            retry: Retry::default(),
        };
        Ok((keeping, (0..parts).map(|part| Tell { part, to: to.clone() }).collect()))
    }

    /// Keeps until `stop`; what the store has then stays there.
    pub(crate) fn run(mut self, stop: &StopFlag) {
        if std::process::id() == 1 {
            // Every process of a container ends with its first one.
            tracing::info!("memberships end with this daemon: it is the first process of its container");
        }
        let by_systemd = std::env::var_os("INVOCATION_ID").is_some();
        if by_systemd && matches!(self.store, Store::Holder(_)) {
            tracing::info!(
                "the unit stores no descriptors (FileDescriptorStoreMax=; before systemd 254 also Environment=FDSTORE=): a \
                 process of this daemon keeps memberships, unless systemd ends it with the unit"
            );
        }
        while !stop.is_asked() {
            while let Ok((part, sockets)) = self.told.try_recv() {
                self.take(part, sockets);
            }
            self.step();
            match self.told.recv_timeout(LOOK) {
                Ok((part, sockets)) => self.take(part, sockets),
                Err(RecvTimeoutError::Timeout) => {}
                // What told is gone: the end is near.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK),
            }
        }
        self.write_time();
    }

    fn take(&mut self, part: usize, sockets: Vec<Arc<Socket>>) {
        if let Some(place) = self.parts.get_mut(part) {
            *place = sockets;
        }
        self.is_kept = false;
    }

    fn write_time(&self) {
        if let Err(error) = self.last_run.write() {
            tracing::debug!(%error, "the time of this daemon's last run is not written");
        }
    }

    fn step(&mut self) {
        self.write_time();
        self.ended.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        if let Store::Holder(link) = &mut self.store
            && link.as_ref().is_some_and(|link| !link.is_open())
        {
            tracing::warn!("the holder of memberships has ended: another one is started");
            self.ended.extend(link.take().and_then(Link::into_child));
            self.is_kept = false;
        }
        if self.is_kept || std::process::id() == 1 || self.retry.at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        match self.replace() {
            Ok(()) => {
                self.is_kept = true;
                self.retry = Retry::default();
            }
            Err(why) => self.retry.failed(why),
        }
    }

    /// Gives the store the set as it is.
    fn replace(&mut self) -> Result<(), String> {
        let memberships = self.parts.iter().flatten().map(|socket| (Kind::Membership, socket.as_fd()));
        let others = [(Kind::Nack, self.nack.as_fd()), (Kind::LastRun, self.last_run.as_fd())];
        let set: Vec<(Kind, BorrowedFd<'_>)> = memberships.chain(others).collect();
        match &mut self.store {
            Store::ServiceManager(manager, earlier) => {
                manager.replace(&set).map_err(|error| error.to_string())?;
                if let Some(Err(error)) = earlier.take().map(Link::release) {
                    tracing::warn!(%error, "the holder of an earlier daemon did not end");
                }
                tracing::debug!(descriptors = set.len(), "the service manager keeps memberships");
            }
            Store::Holder(place) => {
                let link = match place.take() {
                    Some(link) => link,
                    None => Link::find_or_start(&self.config.interface, self.config.lease)
                        .map_err(|error| error.to_string())?,
                };
                if let Err(error) = link.replace(&set, self.config.lease) {
                    self.ended.extend(link.into_child());
                    return Err(format!("the holder does not take them: {error}"));
                }
                *place = Some(link);
                tracing::debug!(descriptors = set.len(), "the holder keeps memberships");
            }
        }
        Ok(())
    }
}

impl Retry {
    /// Waits twice as long as after the failure before; says why unless it has just said so.
    fn failed(&mut self, why: String) {
        let (first, longest) = PAUSES;
        self.pause = (self.pause * 2).clamp(first, longest);
        self.at = Some(Instant::now() + self.pause);
        if self.said.as_ref() != Some(&why) {
            tracing::warn!(
                why,
                "-bpf-handover: memberships end with this daemon: switches and routers stop forwarding until the next one \
                 has joined"
            );
            self.said = Some(why);
        }
    }
}
