//! Fills the frame log from the multicast groups.

use std::collections::HashSet;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use retry_common::counter::Counter;
use retry_common::group::Sharding;
use retry_common::wire::frame::{Class, Frame};

use super::joins::Joins;
use crate::clock::monotonic_ns;
use crate::counters::UserCounters;
use crate::framelog::{NewFrame, Put, Writer};
use crate::net::batch::{Batch, Readiness};

/// Datagrams taken in one system call.
const BATCH: usize = 64;
/// The longest UDP datagram.
const BUFFER_LEN: usize = 65_536;
/// How long a shutdown may go unseen.
const PATIENCE: Duration = Duration::from_millis(100);
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

/// Receives frames and appends them.
#[derive(Debug)]
pub struct Fill {
    /// The rules.
    pub rules: FillRules,
    /// The log's only writer, shared with whoever stores what did not come by multicast.
    pub writer: Arc<Mutex<Writer>>,
    /// Counts.
    pub counters: Arc<UserCounters>,
}

impl Fill {
    /// Fills from the joined sockets until `shutdown`.
    pub fn run(&self, joins: &Joins, shutdown: &AtomicBool) -> io::Result<()> {
        let mut batch = Batch::new(BATCH, BUFFER_LEN);
        let sockets: Vec<BorrowedFd<'_>> = joins.fds().collect();
        let mut readiness = Readiness::new(sockets.iter().copied());
        let mut lost = vec![0u32; sockets.len()];
        while !shutdown.load(Ordering::Relaxed) {
            readiness.wait(PATIENCE)?;
            for i in readiness.ready() {
                batch.recv_now(&sockets[i])?;
                let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
                let now_ns = monotonic_ns();
                for datagram in batch.datagrams() {
                    // The kernel tells the sum since the socket was opened.
                    let newly = datagram.dropped.wrapping_sub(lost[i]);
                    self.counters.add(Counter::FrameSocketOverflow, u64::from(newly));
                    lost[i] = datagram.dropped;
                    let own = datagram.source.port() == self.rules.own_port
                        && self.rules.own_sources.contains(datagram.source.ip());
                    self.store(&mut writer, datagram.bytes, own, now_ns);
                }
                self.count_evictions(&mut writer);
            }
        }
        Ok(())
    }

    /// Drops what has outlived its time; for a timer.
    pub fn sweep(&self) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.expire(monotonic_ns(), SWEEP);
        self.count_evictions(&mut writer);
    }

    fn store(&self, writer: &mut Writer, bytes: &[u8], own: bool, now_ns: u64) {
        self.counters.one(Counter::FramesReceived);
        if own {
            self.counters.one(Counter::FrameOwnRepair);
            return;
        }
        let Ok(frame) = Frame::parse(bytes) else {
            self.counters.one(Counter::FrameUndecodable);
            return;
        };
        let (Some(key), Some(class), Some(group)) =
            (frame.head().cache_key(), frame.head().class(), frame.head().group_index(&self.rules.sharding))
        else {
            self.counters.one(Counter::FrameUnnumbered);
            return;
        };
        let put = writer.put(
            &NewFrame {
                key,
                class,
                group,
                life_ms: self.life_ms(class),
                daemon_only: bytes.len() > self.rules.kernel_max,
                bytes,
            },
            now_ns,
        );
        match put {
            Put::Stored => {
                self.counters.one(Counter::FramesCached);
                self.counters.one(Counter::StoredMulticast);
            }
            Put::Replaced => {
                self.counters.one(Counter::FramesCached);
                self.counters.one(Counter::StoredMulticast);
                self.counters.one(Counter::FrameReplaced);
            }
            Put::Duplicate => self.counters.one(Counter::FrameDuplicate),
            Put::TooLarge => self.counters.one(Counter::FrameTooLarge),
        }
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
