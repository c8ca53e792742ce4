//! Fills the frame log from the multicast groups.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use retry_common::abi::KERNEL_FRAME_MAX;
use retry_common::counter::{Counter, Counters};
use retry_common::group::Sharding;
use retry_common::key::FrameKey;
use retry_common::wire::frame::{Class, Frame};

use super::class_ages::ClassAges;
use super::subscription::Subscription;
use crate::acl::Acl;
use crate::clock::{monotonic_ns, nanoseconds};
use crate::counters::{SourceCounts, UserCounters};
use crate::fabric::Fabric;
use crate::framelog::{self, Followed, LaneUse, Lives, NewFrame, Put, Removed, Writer, lives_ms};
use crate::latency::{UserLatency, Wait};
use crate::net::batch::{Batch, LONGEST_DATAGRAM, Readiness};
use crate::settings::Settings;
use crate::stop_flag::StopFlag;

/// Datagrams taken in one system call.
const BATCH: usize = 64;
/// How long a shutdown may go unseen.
const PATIENCE: Duration = Duration::from_millis(100);
/// Records of the kernel's followed in one go, a lane.
const FOLLOW: usize = 16_384;
/// Between two looks at what the kernel stored.
const FOLLOW_PAUSE: Duration = Duration::from_millis(1);
/// The same where it stores nothing.
const FOLLOW_PAUSE_IDLE: Duration = Duration::from_millis(8);
/// Records dropped in one go, a lane, to keep room free ahead of the kernel.
const DROPPED: u32 = 16_384;
/// System calls that read a leaving socket empty: more than its buffer holds, so that a source that goes on sending into it
/// does not hold up the others.
const LAST_ROUNDS: usize = 1_024;
/// Frames stored before others get at the log.
const TURN: usize = 256;
/// Expired records dropped in one go, so that the fill waits for no long sweep.
const SWEEP: usize = 4_096;
/// Between two sweeps.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// What decides about a received frame.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// How frames map to groups.
    pub sharding: Sharding,
    /// Life of each class in milliseconds at the start, in the order of `Class::ALL`.
    pub life_ms: [u32; Class::ALL.len()],
    /// The longest frame that the kernel sends; longer ones are the daemon's.
    pub kernel_max: usize,
    /// Sources and port of our own multicast repairs.
    pub own_sources: HashSet<Ipv6Addr>,
    /// Source port of our own multicast repairs.
    pub own_port: u16,
    /// How long the first frame of a key stays when another with other bytes comes; zero: the newest wins.
    pub replace_after: Duration,
}

impl Config {
    /// As the settings ask, on these interfaces.
    #[must_use]
    pub(crate) fn from(settings: &Settings, fabric: &Fabric) -> Self {
        Self {
            sharding: Sharding { shard: settings.ingress.shard_bits, beef: settings.ingress.beef.unwrap_or_default() },
            life_ms: lives_ms(&settings.cache),
            // Whether it fits the interfaces is asked when it leaves: their MTUs change.
            kernel_max: KERNEL_FRAME_MAX,
            own_sources: fabric.egress.iter().map(|egress| egress.source).collect(),
            own_port: settings.nack.port,
            replace_after: settings.cache.replace_after,
        }
    }
}

/// How full the log is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct LogUse {
    /// Frames that can be found.
    pub frames: u64,
    /// The lanes: short-lived classes, long-lived classes.
    pub lanes: [LaneUse; 2],
}

impl LogUse {
    /// As it is now.
    #[must_use]
    pub(crate) fn of(writer: &Writer, now_ns: u64) -> Self {
        Self { frames: writer.live(), lanes: writer.lane_use(now_ns) }
    }
}

/// How a frame came to us.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum StoredFrom {
    /// By multicast.
    Multicast,
    /// By the tee socket.
    Tee,
    /// From the shared store.
    Store,
    /// From an upstream endpoint.
    Upstream,
    /// Through the management API.
    Api,
}

impl StoredFrom {
    const fn counter(self) -> Counter {
        match self {
            Self::Multicast => Counter::StoredMulticast,
            Self::Tee => Counter::StoredTee,
            Self::Store => Counter::StoredStore,
            Self::Upstream => Counter::StoredUpstream,
            Self::Api => Counter::StoredApi,
        }
    }
}

/// Why bytes are not stored.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Refused {
    /// They are no frame.
    #[error("no frame")]
    Undecodable,
    /// The frame has no sequence number.
    #[error("a frame without a sequence number")]
    Unnumbered,
    /// The frame has another key than the one asked for.
    #[error("a frame with another key")]
    OtherKey,
    /// It is a bundle that names a group other than the shard groups that are joined: its repair would go there.
    #[error("a bundle of a group that is no joined shard")]
    OtherGroup,
    /// No record can hold it.
    #[error("too large for the frame log")]
    TooLarge,
    /// The kernel is writing a frame with the same key.
    #[error("the kernel is writing a frame with the same key: try again")]
    Busy,
}

impl Refused {
    const fn counter(self) -> Counter {
        match self {
            Self::Undecodable => Counter::FrameUndecodable,
            Self::Unnumbered | Self::OtherKey => Counter::FrameUnnumbered,
            Self::OtherGroup => Counter::FrameOtherGroup,
            Self::TooLarge => Counter::FrameTooLarge,
            Self::Busy => Counter::FrameLogBusy,
        }
    }
}

/// Told of every frame that is new in the log and did not come from the shared store: key, life in milliseconds, bytes.
/// It is called while the log is locked, so it copies and returns.
pub(crate) type OnStored = Box<dyn Fn(FrameKey, u32, &[u8]) + Send + Sync>;

/// Told of every frame that is new in the log, from wherever it came: key, life in milliseconds, time. As [`OnStored`], it copies and
/// returns.
pub(crate) type OnNumber = Box<dyn Fn(&FrameKey, u32, u64) + Send + Sync>;

/// Receives frames and appends them.
pub(crate) struct Fill {
    config: Config,
    /// The log's only writer, shared with the parts that store what did not come by multicast.
    pub writer: Arc<Mutex<Writer>>,
    /// Counts.
    pub counters: Arc<UserCounters>,
    /// Frames that the daemon stored, by their source; the kernel counts its own.
    pub sources: Arc<SourceCounts>,
    /// How long frames take.
    latency: Arc<UserLatency>,
    /// How old the oldest frame of each class is.
    pub ages: Arc<ClassAges>,
    /// How long frames are kept that are stored from now on.
    pub lives: Arc<Lives>,
    on_stored: Option<OnStored>,
    on_number: Option<OnNumber>,
    /// Whose frames are stored; `None`: those of every source.
    acl: Option<Arc<Acl>>,
}

impl Fill {
    /// A fill of the log of `writer`; `on_stored` is told of new frames.
    pub(crate) fn new(
        config: Config,
        mut writer: Writer,
        counters: Arc<UserCounters>,
        on_stored: Option<OnStored>,
    ) -> Self {
        let lives = Arc::new(Lives::new(config.life_ms));
        writer.keep_first(nanoseconds(config.replace_after));
        Self {
            config,
            lives,
            writer: Arc::new(Mutex::new(writer)),
            counters,
            sources: Arc::default(),
            latency: Arc::default(),
            ages: Arc::default(),
            on_stored,
            on_number: None,
            acl: None,
        }
    }

    /// As it is, and goes on from these counts.
    #[must_use]
    pub(crate) fn counting_on(self, sources: SourceCounts) -> Self {
        Self { sources: Arc::new(sources), ..self }
    }

    /// As it is, and measures there how long frames take.
    #[must_use]
    pub(crate) fn measuring(self, latency: Arc<UserLatency>) -> Self {
        Self { latency, ..self }
    }

    /// As it is, and `on_number` is told of the numbers of new frames.
    #[must_use]
    pub(crate) fn telling_numbers(self, on_number: Option<OnNumber>) -> Self {
        Self { on_number, ..self }
    }

    /// As it is, and stores frames of the publishers that `acl` names.
    #[must_use]
    pub(crate) fn admitting(self, acl: Arc<Acl>) -> Self {
        Self { acl: Some(acl), ..self }
    }

    /// Where it is measured how long things take.
    pub(crate) fn latency(&self) -> Arc<UserLatency> {
        Arc::clone(&self.latency)
    }

    /// Fills from the joined sockets until `stop`.
    ///
    /// # Errors
    /// What a receive returns.
    pub(crate) fn run(&self, subscription: &mut Subscription, stop: &StopFlag) -> io::Result<()> {
        let mut batch = Batch::new(BATCH, LONGEST_DATAGRAM);
        let mut lost = HashMap::new();
        while !stop.is_asked() {
            subscription.reconcile(|leaving| {
                let lost_there = lost.entry(leaving.as_raw_fd()).or_default();
                let mut rounds = 0..LAST_ROUNDS;
                while rounds.next().is_some() && batch.recv_now(leaving).is_ok_and(|received| received > 0) {
                    self.take(&batch, lost_there);
                }
                // The number may be that of another socket next.
                lost.remove(&leaving.as_raw_fd());
            });
            self.run_unchanged(subscription, &mut batch, &mut lost, stop)?;
        }
        Ok(())
    }

    /// Fills until the sockets have to change.
    fn run_unchanged(
        &self,
        subscription: &Subscription,
        batch: &mut Batch,
        lost: &mut HashMap<RawFd, u32>,
        stop: &StopFlag,
    ) -> io::Result<()> {
        let sockets: Vec<BorrowedFd<'_>> = subscription.fds().collect();
        let mut readiness = Readiness::new(sockets.iter().copied());
        while !stop.is_asked() && !subscription.has_news() {
            readiness.wait(PATIENCE)?;
            for i in readiness.ready() {
                batch.recv_now(&sockets[i])?;
                self.take(batch, lost.entry(sockets[i].as_raw_fd()).or_default());
            }
        }
        Ok(())
    }

    /// Stores a batch; `lost` is what the socket had dropped before it, as the kernel counts since the socket was opened.
    fn take(&self, batch: &Batch, lost: &mut u32) {
        let mut tally = Counters::default();
        let arrived_ns = monotonic_ns();
        let admitted = batch.datagrams().filter_map(|datagram| {
            *tally.get_mut(Counter::FrameSocketOverflow) += u64::from(datagram.dropped.wrapping_sub(*lost));
            *lost = datagram.dropped;
            if !is_joined(datagram.destination) {
                count(&mut tally, Counter::FramesReceived);
                count(&mut tally, Counter::FrameNotJoined);
                return None;
            }
            let frame = self.admit(datagram.bytes, datagram.source, Some(*datagram.source.ip()), &mut tally)?;
            Some((*datagram.source.ip(), frame))
        });
        // All that needs no lock is done before it is taken: others receive too.
        let frames: Vec<(Ipv6Addr, NewFrame<'_>)> = admitted.collect();
        let mut sources = SourceTally::default();
        for turn in frames.chunks(TURN) {
            let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            let (now_ns, before) = (monotonic_ns(), sources.frames());
            for (source, frame) in turn {
                if self.store(&mut writer, frame, StoredFrom::Multicast, now_ns, &mut tally) {
                    sources.one(Some(*source));
                }
            }
            writer.count_dropped(&mut tally);
            drop(writer);
            let stored = sources.frames() - before;
            self.latency.took(Wait::Stored, monotonic_ns().saturating_sub(arrived_ns), stored);
        }
        self.counters.add_all(&tally);
        self.sources.add_all(&sources.0);
    }

    /// Follows the kernel until `stop`.
    pub(crate) fn run_follow(&self, stop: &StopFlag) {
        let mut pause = FOLLOW_PAUSE;
        while !stop.is_asked() {
            pause = if self.follow() { FOLLOW_PAUSE } else { (pause * 2).min(FOLLOW_PAUSE_IDLE) };
            std::thread::sleep(pause);
        }
    }

    /// Follows what the kernel has stored since the last call, and makes room ahead of it. True when there was anything.
    pub(crate) fn follow(&self) -> bool {
        let mut tally = Counters::default();
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let now_ns = monotonic_ns();
        writer.follow(now_ns, FOLLOW, |followed| self.take_followed(&followed, now_ns, &mut tally));
        writer.make_room(DROPPED, now_ns);
        writer.count_dropped(&mut tally);
        drop(writer);
        self.counters.add_all(&tally);
        tally.get(Counter::FramesReceived) > 0
    }

    /// Makes room for what the kernel stores between the end of this daemon and the start of the next one, which goes on
    /// with the log. Frames that make way for it are lost to listeners from now on: to be called last.
    pub(crate) fn make_room_for_absence(&self) {
        let mut tally = Counters::default();
        let mut is_done = false;
        // The lock is given away in between: threads that store may be at work still.
        while !is_done {
            let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            is_done = writer.make_room_for_absence(DROPPED, monotonic_ns());
            writer.count_dropped(&mut tally);
        }
        self.counters.add_all(&tally);
    }

    /// Copies what the log of `old` holds behind `copied` into this one, and counts and tells of what the kernel has stored there
    /// since it was last followed. Returns how many frames were copied.
    pub(crate) fn read_over(&self, old: &mut Writer, copied: &mut [u64; 2]) -> u64 {
        let mut frames = 0;
        loop {
            let mut tally = Counters::default();
            let before = *copied;
            let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            let now_ns = monotonic_ns();
            old.follow(now_ns, FOLLOW, |followed| self.take_followed(&followed, now_ns, &mut tally));
            let tell = |followed: Followed<'_>| self.take_followed(&followed, now_ns, &mut tally);
            frames += framelog::copy_into(old, &mut writer, copied, FOLLOW, now_ns, tell);
            writer.count_dropped(&mut tally);
            drop(writer);
            // The program of the earlier daemon stores there until this one goes live.
            old.make_room(DROPPED, now_ns);
            self.counters.add_all(&tally);
            if before == *copied {
                return frames;
            }
        }
    }

    /// Counts a frame that the kernel stored, or a copy of such that it stored as well.
    fn take_followed(&self, followed: &Followed<'_>, now_ns: u64, tally: &mut Counters) {
        count(tally, Counter::FramesReceived);
        if !followed.is_new {
            count(tally, Counter::FrameDuplicate);
            return;
        }
        for counter in [Counter::FramesCached, Counter::FilledByKernel, StoredFrom::Multicast.counter()] {
            count(tally, counter);
        }
        if let Some(class) = followed.class {
            self.ages.note(class, followed.life_ms, now_ns);
        }
        self.tell_number(&followed.key, followed.life_ms, now_ns);
        if let Some(tell) = &self.on_stored {
            tell(followed.key, followed.life_ms, followed.bytes);
        }
    }

    /// Takes the frame of `key` out.
    pub(crate) fn remove(&self, key: &FrameKey) -> Removed {
        let mut tally = Counters::default();
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let now_ns = monotonic_ns();
        let removed = writer.remove(key, now_ns, |followed| self.take_followed(&followed, now_ns, &mut tally));
        writer.count_dropped(&mut tally);
        self.counters.add_all(&tally);
        removed
    }

    /// Drops what has outlived its time, again and again until `stop`; `swept` is told how full the log is then.
    ///
    /// On a thread of its own: it waits for the log's lock, and nothing may wait for it.
    pub(crate) fn run_sweep(&self, stop: &StopFlag, swept: impl Fn(LogUse)) {
        while !stop.is_asked() {
            swept(self.sweep());
            let next = Instant::now() + SWEEP_PAUSE;
            while Instant::now() < next && !stop.is_asked() {
                std::thread::sleep(PATIENCE);
            }
        }
    }

    fn sweep(&self) -> LogUse {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let now_ns = monotonic_ns();
        writer.expire(now_ns, SWEEP);
        let mut tally = Counters::default();
        writer.count_dropped(&mut tally);
        self.counters.add_all(&tally);
        LogUse::of(&writer, now_ns)
    }

    /// Takes in one datagram from the network. `origin` is the address of the source that sent it first, where that is known.
    pub(super) fn store_now(
        &self,
        bytes: &[u8],
        source: SocketAddrV6,
        origin: Option<Ipv6Addr>,
        from: StoredFrom,
        now_ns: u64,
    ) {
        let mut tally = Counters::default();
        if let Some(frame) = self.admit(bytes, source, origin, &mut tally) {
            let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            let stored = self.store(&mut writer, &frame, from, now_ns, &mut tally);
            writer.count_dropped(&mut tally);
            drop(writer);
            if stored {
                self.sources.add_all(&[(origin, 1)]);
            }
        }
        self.counters.add_all(&tally);
    }

    /// What came from the network, if it is to be stored; what is wrong with it is counted. `origin` as in [`Fill::store_now`].
    fn admit<'a>(
        &self,
        bytes: &'a [u8],
        source: SocketAddrV6,
        origin: Option<Ipv6Addr>,
        tally: &mut Counters,
    ) -> Option<NewFrame<'a>> {
        count(tally, Counter::FramesReceived);
        if source.port() == self.config.own_port && self.config.own_sources.contains(source.ip()) {
            count(tally, Counter::FrameOwnRepair);
            return None;
        }
        if let (Some(acl), Some(origin)) = (&self.acl, origin)
            && !acl.publishes(origin)
        {
            count(tally, Counter::FrameNoPublisher);
            return None;
        }
        self.read(bytes, None, None).map_err(|refused| count(tally, refused.counter())).ok()
    }

    /// True when the frame was stored.
    fn store(
        &self,
        writer: &mut Writer,
        frame: &NewFrame<'_>,
        from: StoredFrom,
        now_ns: u64,
        tally: &mut Counters,
    ) -> bool {
        match self.put_in(writer, frame, from, now_ns, tally) {
            Ok(put) => put.is_stored(),
            Err(refused) => {
                count(tally, refused.counter());
                false
            }
        }
    }

    /// Stores the frame of `key` that came by another way than the network, for `life_ms` or as long as its class has.
    ///
    /// # Errors
    /// [`Refused`], [`Refused::OtherKey`] where the frame has another key; nothing is counted.
    pub(crate) fn put_for(
        &self,
        key: &FrameKey,
        bytes: &[u8],
        life_ms: Option<u32>,
        from: StoredFrom,
    ) -> Result<Put, Refused> {
        self.put_locked(Some(key), bytes, life_ms, from)
    }

    fn put_locked(
        &self,
        key: Option<&FrameKey>,
        bytes: &[u8],
        life_ms: Option<u32>,
        from: StoredFrom,
    ) -> Result<Put, Refused> {
        let mut frame = self.read(bytes, key, life_ms)?;
        if from != StoredFrom::Api {
            // A backend says how old a frame is, and not how long frames are kept here.
            frame.life_ms = frame.life_ms.min(self.lives.of_ms(frame.class));
        }
        let mut tally = Counters::default();
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = self.put_in(&mut writer, &frame, from, monotonic_ns(), &mut tally);
        writer.count_dropped(&mut tally);
        drop(writer);
        self.counters.add_all(&tally);
        if outcome.is_ok_and(|put| put.is_stored()) {
            // Neither a store nor an upstream endpoint tells the frame's source.
            self.sources.add_all(&[(None, 1)]);
        }
        outcome
    }

    /// What bytes are to the log.
    fn read<'a>(
        &self,
        bytes: &'a [u8],
        wanted: Option<&FrameKey>,
        life_ms: Option<u32>,
    ) -> Result<NewFrame<'a>, Refused> {
        let frame = Frame::parse(bytes).map_err(|_| Refused::Undecodable)?;
        let (Some(key), Some(class), Some(group)) =
            (frame.head().cache_key(), frame.head().class(), frame.head().group_index(&self.config.sharding))
        else {
            return Err(Refused::Unnumbered);
        };
        if wanted.is_some_and(|wanted| *wanted != key) {
            return Err(Refused::OtherKey);
        }
        // All other groups follow from what the frame is, by our own shard bits.
        if frame.head().bundle.is_some() && !self.config.sharding.has_shard(group) {
            return Err(Refused::OtherGroup);
        }
        let life_ms = life_ms.unwrap_or_else(|| self.lives.of_ms(class));
        let daemon_only = bytes.len() > self.config.kernel_max;
        Ok(NewFrame { key, class, group, life_ms, daemon_only, bytes })
    }

    fn tell_number(&self, key: &FrameKey, life_ms: u32, now_ns: u64) {
        if let Some(tell) = &self.on_number {
            tell(key, life_ms, now_ns);
        }
    }

    fn put_in(
        &self,
        writer: &mut Writer,
        frame: &NewFrame<'_>,
        from: StoredFrom,
        now_ns: u64,
        tally: &mut Counters,
    ) -> Result<Put, Refused> {
        let tell = |followed: Followed<'_>| self.take_followed(&followed, now_ns, tally);
        // What an operator puts in is meant to be there.
        let put = match from {
            StoredFrom::Api => writer.put(frame, now_ns, tell),
            _ => writer.put_first(frame, now_ns, tell),
        };
        match put {
            Put::Stored | Put::Replaced => {
                count(tally, Counter::FramesCached);
                count(tally, from.counter());
                self.ages.note(frame.class, frame.life_ms, now_ns);
                if put == Put::Replaced {
                    count(tally, Counter::FrameReplaced);
                }
                self.tell_number(&frame.key, frame.life_ms, now_ns);
                if let Some(tell) = self.on_stored.as_ref().filter(|_| from != StoredFrom::Store) {
                    tell(frame.key, frame.life_ms, frame.bytes);
                }
            }
            Put::Duplicate => count(tally, Counter::FrameDuplicate),
            Put::Conflict => count(tally, Counter::FrameConflict),
            Put::TooLarge => return Err(Refused::TooLarge),
            Put::Busy => return Err(Refused::Busy),
        }
        Ok(put)
    }
}

/// True for what was sent to a group. The sockets get no other groups than those that they joined (IPV6_MULTICAST_ALL is off), from
/// no other sources, but they get everything that is sent to the port by unicast.
fn is_joined(destination: Option<Ipv6Addr>) -> bool {
    destination.is_some_and(|destination| destination.is_multicast())
}

/// Frames that one thread has stored, by their source.
#[derive(Default)]
struct SourceTally(Vec<(Option<Ipv6Addr>, u64)>);

impl SourceTally {
    fn frames(&self) -> u64 {
        self.0.iter().map(|(_, frames)| frames).sum()
    }

    fn one(&mut self, source: Option<Ipv6Addr>) {
        match self.0.iter_mut().find(|(there, _)| *there == source) {
            Some((_, frames)) => *frames += 1,
            None => self.0.push((source, 1)),
        }
    }
}

fn count(tally: &mut Counters, counter: Counter) {
    *tally.get_mut(counter) += 1;
}

#[cfg(test)]
mod tests;
