//! What is under way: jobs by the frame's key, and for each upstream the NACKs that it has not answered, in the order of
//! sending. Pure.
//!
//! A frame carries its key, an ACK and a THROTTLED the SeqNum, a MISS neither. So a frame is taken for whichever job waits
//! for its key, whoever sends it and however late; a MISS is taken for the oldest NACK that its sender has not answered,
//! and is certain only when there is no other.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use retry_common::key::FrameKey;
use tokio::sync::mpsc::UnboundedSender;

use super::upstreams::is_same;

/// What comes back for a job.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Reply {
    /// The frame, from any upstream.
    Frame(Vec<u8>),
    /// The upstream has it, and says that it sent it.
    Ack(SocketAddr),
    /// The upstream has it not; when not `certain`, another job's MISS may have been taken for this one's.
    Miss {
        /// Who says so.
        from: SocketAddr,
        /// No other NACK of ours was unanswered there.
        certain: bool,
    },
    /// The upstream wants us to hold: 125 ms << bucket.
    Throttled(SocketAddr, u8),
    /// The network says that the upstream cannot be reached.
    Unreachable(SocketAddr),
}

struct Asked {
    key: FrameKey,
    sent_ns: u64,
}

/// The table.
#[derive(Default)]
pub(super) struct Flight {
    jobs: HashMap<FrameKey, UnboundedSender<Reply>>,
    asked: Vec<(SocketAddr, VecDeque<Asked>)>,
}

impl Flight {
    /// Begins a job; false when one for the key is under way.
    pub(super) fn begin(&mut self, key: FrameKey, replies: UnboundedSender<Reply>) -> bool {
        match self.jobs.entry(key) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(replies);
                true
            }
        }
    }

    /// Ends a job: nothing is taken for it any more.
    pub(super) fn end(&mut self, key: &FrameKey) {
        self.jobs.remove(key);
        for (_, asked) in &mut self.asked {
            asked.retain(|one| one.key != *key);
        }
        self.asked.retain(|(_, asked)| !asked.is_empty());
    }

    /// A NACK for `key` was sent to `to`.
    pub(super) fn sent(&mut self, key: FrameKey, to: SocketAddr, now_ns: u64) {
        let asked = Asked { key, sent_ns: now_ns };
        match self.asked.iter_mut().find(|(address, _)| is_same(*address, to)) {
            Some((_, queue)) => queue.push_back(asked),
            None => self.asked.push((to, VecDeque::from([asked]))),
        }
    }

    /// The time of `to` for `key` is over.
    pub(super) fn forget(&mut self, key: &FrameKey, to: SocketAddr) {
        self.take(to, |one| one.key == *key);
    }

    /// A frame came: true when a job waits for it. With the time of sending, when `from` was asked for it.
    pub(super) fn frame(&mut self, key: &FrameKey, from: SocketAddr, bytes: &[u8]) -> (bool, Option<u64>) {
        let sent = self.take(from, |one| one.key == *key);
        let taken = self.jobs.get(key).is_some_and(|job| job.send(Reply::Frame(bytes.to_vec())).is_ok());
        (taken, sent)
    }

    /// An ACK came. Returns the time of sending, when it fits a NACK.
    pub(super) fn ack(&mut self, seq_num: u64, from: SocketAddr) -> Option<u64> {
        let (key, sent) = self.peek(from, |one| one.key.seq_num() == seq_num)?;
        self.tell(&key, Reply::Ack(from));
        Some(sent)
    }

    /// A THROTTLED came. Returns the time of sending, when it fits a NACK.
    pub(super) fn throttled(&mut self, seq_num: u64, bucket: u8, from: SocketAddr) -> Option<u64> {
        let (key, _) = self.peek(from, |one| one.key.seq_num() == seq_num)?;
        let sent = self.take(from, |one| one.key == key);
        self.tell(&key, Reply::Throttled(from, bucket));
        sent
    }

    /// A MISS came. Returns the time of sending of the NACK that it is taken for.
    pub(super) fn miss(&mut self, from: SocketAddr) -> Option<u64> {
        let waiting =
            self.asked.iter().find(|(address, _)| is_same(*address, from)).map_or(0, |(_, asked)| asked.len());
        let (key, _) = self.peek(from, |_| true)?;
        let sent = self.take(from, |one| one.key == key);
        self.tell(&key, Reply::Miss { from, certain: waiting == 1 });
        sent
    }

    /// An ICMP error came for `to`: everything asked there is.
    pub(super) fn unreachable(&mut self, to: SocketAddr) {
        let Some(at) = self.asked.iter().position(|(address, _)| is_same(*address, to)) else {
            return;
        };
        let (_, asked) = self.asked.swap_remove(at);
        for one in asked {
            self.tell(&one.key, Reply::Unreachable(to));
        }
    }

    fn tell(&self, key: &FrameKey, reply: Reply) {
        if let Some(job) = self.jobs.get(key) {
            // A job that ends at this moment hears nothing more.
            let _ = job.send(reply);
        }
    }

    fn peek(&self, from: SocketAddr, fits: impl Fn(&Asked) -> bool) -> Option<(FrameKey, u64)> {
        let (_, asked) = self.asked.iter().find(|(address, _)| is_same(*address, from))?;
        asked.iter().find(|one| fits(one)).map(|one| (one.key, one.sent_ns))
    }

    fn take(&mut self, from: SocketAddr, fits: impl Fn(&Asked) -> bool) -> Option<u64> {
        let at = self.asked.iter().position(|(address, _)| is_same(*address, from))?;
        let asked = &mut self.asked[at].1;
        let sent = asked.iter().position(fits).and_then(|place| asked.remove(place)).map(|one| one.sent_ns);
        if self.asked[at].1.is_empty() {
            self.asked.swap_remove(at);
        }
        sent
    }
}
