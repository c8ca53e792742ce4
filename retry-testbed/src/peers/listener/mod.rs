//! A listener as the field's are: it joins groups, sees gaps in the SeqNums of each flow, and asks the endpoint for what it missed.
//!
//! One thread a listener, event-driven: thousands of open gaps are as many sockets in one epoll set. It is stricter than
//! the field's listeners in two ways: a repair is compared byte by byte with what was published, and an ACK that promises
//! a frame which does not come is counted and the frame asked for again.

mod endpoints;
mod stats;
mod worker;

use std::{
    net::{Ipv6Addr, SocketAddrV6, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    sched::{CloneFlags, setns},
    sys::resource::{Resource, getrlimit, setrlimit},
};
use retry_common::key::FrameKey;
use socket2::{Domain, Socket, Type};

pub use self::stats::Stats;
use crate::{
    daemon::in_user_namespace,
    net::{
        fabric::{DATA_PORT, INTERFACE},
        netns::Netns,
    },
    peers::{announce::BEACON_PORT, journal::Journal},
};

/// Groups that one socket joins: the kernel's option memory ends a little above two thousand.
const JOINS_A_SOCKET: usize = 1_000;

/// How a listener behaves. The defaults are the field's times.
#[derive(Clone, Debug)]
pub struct ListenerSettings {
    /// Groups to join on `eth0`.
    pub groups: Vec<Ipv6Addr>,
    /// Endpoints known from the start; those heard by beacon are asked before them.
    pub seeds: Vec<SocketAddrV6>,
    /// Beacon groups to join on `eth0`, for endpoints that announce themselves.
    pub beacons: Vec<Ipv6Addr>,
    /// Whether gaps are asked for at all; otherwise they are only counted.
    pub ask: bool,
    /// How long a gap may fill by itself before it is asked for: packets overtake each other between two CPUs.
    pub patience: Duration,
    /// How long a NACK waits for its first answer.
    pub answer_wait: Duration,
    /// How long a NACK's socket is read after an ACK that says unicast, and after the frame.
    pub drain: Duration,
    /// Asks per gap before it is given up, the first included.
    pub attempts: u32,
    /// Rounds of asking every known endpoint after which a MISS is final; 1 takes the first MISS of the last for an answer.
    pub miss_attempts: u32,
    /// First pause after silence; doubles each time, four times at most.
    pub backoff: Duration,
    /// Flows are known to start at SeqNum 1: what is missing before the first frame is a gap as well.
    pub from_one: bool,
}

impl ListenerSettings {
    /// The field's behaviour towards one endpoint.
    #[must_use]
    pub fn new(groups: Vec<Ipv6Addr>, endpoint: SocketAddrV6) -> Self {
        Self { seeds: vec![endpoint], ..Self::discovering(groups, Vec::new()) }
    }

    /// The field's behaviour towards the endpoints that announce themselves on these beacon groups.
    #[must_use]
    pub const fn discovering(groups: Vec<Ipv6Addr>, beacons: Vec<Ipv6Addr>) -> Self {
        Self {
            groups,
            seeds: Vec::new(),
            beacons,
            ask: true,
            patience: Duration::from_millis(2),
            answer_wait: Duration::from_millis(300),
            drain: Duration::from_millis(80),
            attempts: 6,
            miss_attempts: 1,
            backoff: Duration::from_millis(100),
            from_one: true,
        }
    }
}

/// What a listener's thread shares with its owner.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    expected: Mutex<Vec<FrameKey>>,
    stats: Mutex<Stats>,
}

/// A running listener.
#[derive(Debug)]
pub struct Listener {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Listener {
    /// Joins the groups and starts to listen in a namespace; repairs are compared with the journal.
    ///
    /// # Errors
    /// Too many groups for the kernel's memory, or no such interface.
    pub fn start(ns: &Netns, settings: ListenerSettings, journal: Arc<Journal>) -> Result<Self> {
        raise_descriptor_limit();
        let index = ns.interface_index(INTERFACE)?;
        let groups = ns.enter(|| {
            settings
                .groups
                .chunks(JOINS_A_SOCKET)
                .map(|chunk| join(chunk, index, DATA_PORT))
                .collect::<Result<Vec<_>>>()
        })?;
        let beacons = match settings.beacons.as_slice() {
            [] => None,
            groups => Some(ns.enter(|| join(groups, index, BEACON_PORT))?),
        };
        let shared = Arc::new(Shared::default());
        let worker = worker::Worker::new(settings, journal, groups, beacons, Arc::clone(&shared))?;
        let handle = ns.handle()?;
        let thread = thread::spawn(move || {
            // The sockets of later NACKs are made on this thread.
            setns(&handle, CloneFlags::CLONE_NEWNET).context("enter the namespace")?;
            worker.run()
        });
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Counts so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells the listener what was published: what it has not received becomes a gap, also at the end of a flow.
    pub fn expect(&self, keys: impl IntoIterator<Item = FrameKey>) {
        self.shared.expected.lock().unwrap_or_else(PoisonError::into_inner).extend(keys);
    }

    /// Waits until no gap is open, at most `patience`. Returns whether that is so.
    #[must_use]
    pub fn settle(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            let told = self.shared.expected.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
            if told && self.stats().open == 0 {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it and returns its last counts.
    ///
    /// # Errors
    /// Its thread failed: the error is the thread's.
    pub fn stop(mut self) -> Result<Stats> {
        self.join()?;
        Ok(self.stats())
    }

    fn join(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("a listener failed: {error:#}");
        }
    }
}

/// A socket on a port that is a member of these groups and hears no others.
pub(crate) fn join(groups: &[Ipv6Addr], index: u32, port: u16) -> Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    match nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(16 << 20)) {
        // Only the host's root may pass its limit; in a user namespace the limit has to do.
        Err(nix::Error::EPERM) if in_user_namespace()? => socket.set_recv_buffer_size(16 << 20)?,
        result => result?,
    }
    hear_own_groups_only(&socket)?;
    for group in groups {
        socket
            .join_multicast_v6(group, index)
            .with_context(|| format!("join {group} (sysctl net.core.optmem_max limits joins)"))?;
    }
    socket.bind(&SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0).into())?;
    Ok(socket.into())
}

fn hear_own_groups_only(socket: &Socket) -> Result<()> {
    use std::os::fd::AsRawFd as _;
    let off: libc::c_int = 0;
    let length = libc::socklen_t::try_from(size_of_val(&off))?;
    // SAFETY: the pointer and the length describe `off`, which outlives the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_MULTICAST_ALL,
            (&raw const off).cast(),
            length,
        )
    };
    nix::errno::Errno::result(set)?;
    Ok(())
}

/// Every open gap holds a socket.
pub(crate) fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        // Without it, gaps beyond the limit fail loudly when their socket is made.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
