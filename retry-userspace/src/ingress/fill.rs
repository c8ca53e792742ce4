//! Fills the frame log from the multicast groups.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use retry_common::counter::Counter;
use retry_common::group::Sharding;
use retry_common::key::FrameKey;
use retry_common::wire::frame::{Class, Frame};

use super::listening::Listening;
use crate::clock::monotonic_ns;
use crate::counters::UserCounters;
use crate::framelog::{Followed, NewFrame, Put, Writer};
use crate::net::batch::{Batch, Readiness};

/// Datagrams taken in one system call.
const BATCH: usize = 64;
/// The longest UDP datagram.
const BUFFER_LEN: usize = 65_536;
/// How long a shutdown may go unseen.
const PATIENCE: Duration = Duration::from_millis(100);
/// Records of the kernel's followed in one go, a lane.
const FOLLOW: usize = 16_384;
/// Between two looks at what the kernel stored.
const FOLLOW_PAUSE: Duration = Duration::from_millis(1);
/// The same where it stores nothing.
const FOLLOW_PAUSE_IDLE: Duration = Duration::from_millis(8);
/// Slots kept free ahead of the kernel, at most a sixteenth of a lane: 8 MiB are 12 ms of frames of 400 bytes at 1.5 million a second.
const AHEAD_SLOTS: u32 = (8 << 20) / 64;
/// System calls that read a leaving socket empty: more than its buffer holds, so that a source that goes on sending into it
/// does not hold up the others.
const LAST_ROUNDS: usize = 1_024;
/// Expired records dropped in one go, so that the fill waits for no long sweep.
const SWEEP: usize = 4_096;

/// What decides about a received frame.
#[derive(Clone, Debug)]
pub struct FillRules {
    /// How frames map to groups.
    pub sharding: Sharding,
    /// Life of each class in milliseconds, in the order of [`Class`].
    pub life_ms: [u32; 5],
    /// The longest frame that the kernel sends; longer ones are the daemon's.
    pub kernel_max: usize,
    /// Sources and port of our own multicast repairs.
    pub own_sources: HashSet<Ipv6Addr>,
    /// Source port of our own multicast repairs.
    pub own_port: u16,
}

/// How a frame came to us.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StoredFrom {
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
pub enum Refused {
    /// They are no frame.
    #[error("no frame")]
    Undecodable,
    /// The frame has no sequence number.
    #[error("a frame without a sequence number")]
    Unnumbered,
    /// The frame has another key than the one asked for.
    #[error("a frame with another key")]
    OtherKey,
    /// No record can hold it.
    #[error("too large for the frame log")]
    TooLarge,
}

impl Refused {
    const fn counter(self) -> Counter {
        match self {
            Self::Undecodable => Counter::FrameUndecodable,
            Self::Unnumbered | Self::OtherKey => Counter::FrameUnnumbered,
            Self::TooLarge => Counter::FrameTooLarge,
        }
    }
}

/// Told of every frame that is new in the log and did not come from the shared store: key, life in milliseconds, bytes.
/// It is called while the log is locked, so it copies and returns.
pub type OnStored = Box<dyn Fn(FrameKey, u32, &[u8]) + Send + Sync>;

/// Receives frames and appends them.
pub struct Fill {
    /// The rules.
    pub rules: FillRules,
    /// The log's only writer, shared with whoever stores what did not come by multicast.
    pub writer: Arc<Mutex<Writer>>,
    /// Counts.
    pub counters: Arc<UserCounters>,
    /// Told of new frames.
    pub on_stored: Option<OnStored>,
}

impl Fill {
    /// Fills from the joined sockets until `shutdown`.
    ///
    /// # Errors
    /// What a receive returns.
    pub fn run(&self, listening: &mut Listening, shutdown: &AtomicBool) -> io::Result<()> {
        let mut batch = Batch::new(BATCH, BUFFER_LEN);
        let mut lost = HashMap::new();
        while !shutdown.load(Ordering::Relaxed) {
            listening.reconcile(|leaving| {
                let lost_there = lost.entry(leaving.as_raw_fd()).or_default();
                let mut rounds = 0..LAST_ROUNDS;
                while rounds.next().is_some() && batch.recv_now(leaving).is_ok_and(|received| received > 0) {
                    self.take(&batch, lost_there);
                }
                // The number may be that of another socket next.
                lost.remove(&leaving.as_raw_fd());
            });
            self.run_unchanged(listening, &mut batch, &mut lost, shutdown)?;
        }
        Ok(())
    }

    /// Fills until the sockets have to change.
    fn run_unchanged(
        &self,
        listening: &Listening,
        batch: &mut Batch,
        lost: &mut HashMap<RawFd, u32>,
        shutdown: &AtomicBool,
    ) -> io::Result<()> {
        let sockets: Vec<BorrowedFd<'_>> = listening.fds().collect();
        let mut readiness = Readiness::new(sockets.iter().copied());
        while !shutdown.load(Ordering::Relaxed) && !listening.has_news() {
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
        let mut overflow = 0;
        let admitted = batch.datagrams().filter_map(|datagram| {
            overflow += u64::from(datagram.dropped.wrapping_sub(*lost));
            *lost = datagram.dropped;
            self.admit(datagram.bytes, datagram.source)
        });
        // All that needs no lock is done before it is taken: others receive too.
        let frames: Vec<NewFrame<'_>> = admitted.collect();
        self.counters.add(Counter::FrameSocketOverflow, overflow);
        if frames.is_empty() {
            return;
        }
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let now_ns = monotonic_ns();
        for frame in &frames {
            self.store(&mut writer, frame, StoredFrom::Multicast, now_ns);
        }
        self.count_evictions(&mut writer);
    }

    /// Follows the kernel until `shutdown`.
    pub fn run_follow(&self, shutdown: &AtomicBool) {
        let mut pause = FOLLOW_PAUSE;
        while !shutdown.load(Ordering::Relaxed) {
            pause = if self.follow() { FOLLOW_PAUSE } else { (pause * 2).min(FOLLOW_PAUSE_IDLE) };
            std::thread::sleep(pause);
        }
    }

    /// Follows what the kernel has stored since the last call, and makes room ahead of it. True when there was anything.
    pub fn follow(&self) -> bool {
        let (mut new, mut again) = (0, 0);
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let now_ns = monotonic_ns();
        writer.follow(now_ns, FOLLOW, |followed| {
            if followed.is_new {
                new += 1
            } else {
                again += 1
            }
            self.tell_of(&followed);
        });
        writer.make_ahead(AHEAD_SLOTS, now_ns);
        self.count_evictions(&mut writer);
        self.add_followed(new, again);
        new + again > 0
    }

    fn count_followed(&self, followed: &Followed<'_>) {
        self.add_followed(u64::from(followed.is_new), u64::from(!followed.is_new));
        self.tell_of(followed);
    }

    /// Counts frames that the kernel stored, and copies of such that it stored as well.
    fn add_followed(&self, new: u64, again: u64) {
        for (counter, many) in [
            (Counter::FramesReceived, new + again),
            (Counter::FrameDuplicate, again),
            (Counter::FramesCached, new),
            (Counter::FilledByKernel, new),
            (StoredFrom::Multicast.counter(), new),
        ] {
            self.counters.add(counter, many);
        }
    }

    fn tell_of(&self, followed: &Followed<'_>) {
        if !followed.is_new {
            return;
        }
        if let Some(tell) = &self.on_stored {
            tell(followed.key, followed.life_ms, followed.bytes);
        }
    }

    /// Takes the frame of `key` out; true when there was one.
    pub fn remove(&self, key: &FrameKey) -> bool {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.remove(key, monotonic_ns(), |followed| self.count_followed(&followed))
    }

    /// Drops what has outlived its time; for a timer.
    pub fn sweep(&self) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.expire(monotonic_ns(), SWEEP);
        self.count_evictions(&mut writer);
    }

    /// Takes in one datagram from the network.
    pub(super) fn store_now(&self, bytes: &[u8], source: SocketAddrV6, from: StoredFrom, now_ns: u64) {
        let Some(frame) = self.admit(bytes, source) else { return };
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.store(&mut writer, &frame, from, now_ns);
        self.count_evictions(&mut writer);
    }

    /// What came from the network, if it is to be stored; what is wrong with it is counted.
    fn admit<'a>(&self, bytes: &'a [u8], source: SocketAddrV6) -> Option<NewFrame<'a>> {
        self.counters.one(Counter::FramesReceived);
        if source.port() == self.rules.own_port && self.rules.own_sources.contains(source.ip()) {
            self.counters.one(Counter::FrameOwnRepair);
            return None;
        }
        self.read(bytes, None, None).map_err(|refused| self.counters.one(refused.counter())).ok()
    }

    fn store(&self, writer: &mut Writer, frame: &NewFrame<'_>, from: StoredFrom, now_ns: u64) {
        if let Err(refused) = self.put_in(writer, frame, from, now_ns) {
            self.counters.one(refused.counter());
        }
    }

    /// Stores a frame that came by another way than the network, for `life_ms` or as long as its class has.
    ///
    /// # Errors
    /// [`Refused`]; nothing is counted.
    pub fn put(&self, bytes: &[u8], life_ms: Option<u32>, from: StoredFrom) -> Result<Put, Refused> {
        self.put_locked(None, bytes, life_ms, from)
    }

    /// As [`Fill::put`], when the frame has this key.
    ///
    /// # Errors
    /// As [`Fill::put`], and [`Refused::OtherKey`].
    pub fn put_for(
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
        let frame = self.read(bytes, key, life_ms)?;
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = self.put_in(&mut writer, &frame, from, monotonic_ns());
        self.count_evictions(&mut writer);
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
            (frame.head().cache_key(), frame.head().class(), frame.head().group_index(&self.rules.sharding))
        else {
            return Err(Refused::Unnumbered);
        };
        if wanted.is_some_and(|wanted| *wanted != key) {
            return Err(Refused::OtherKey);
        }
        let life_ms = life_ms.unwrap_or_else(|| self.life_ms(class));
        let daemon_only = bytes.len() > self.rules.kernel_max;
        Ok(NewFrame { key, class, group, life_ms, daemon_only, bytes })
    }

    fn put_in(&self, writer: &mut Writer, frame: &NewFrame<'_>, from: StoredFrom, now_ns: u64) -> Result<Put, Refused> {
        let put = writer.put(frame, now_ns, |followed| self.count_followed(&followed));
        match put {
            Put::Stored | Put::Replaced => {
                self.counters.one(Counter::FramesCached);
                self.counters.one(from.counter());
                if put == Put::Replaced {
                    self.counters.one(Counter::FrameReplaced);
                }
                if let Some(tell) = self.on_stored.as_ref().filter(|_| from != StoredFrom::Store) {
                    tell(frame.key, frame.life_ms, frame.bytes);
                }
            }
            Put::Duplicate => self.counters.one(Counter::FrameDuplicate),
            Put::TooLarge => return Err(Refused::TooLarge),
        }
        Ok(put)
    }

    fn life_ms(&self, class: Class) -> u32 {
        self.rules.life_ms.get(class as usize).copied().unwrap_or(0)
    }

    fn count_evictions(&self, writer: &mut Writer) {
        for reason in writer.drain_evictions() {
            self.counters.one(reason);
        }
    }
}

#[cfg(test)]
mod tests;
