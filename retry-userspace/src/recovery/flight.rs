//! What is under way: jobs by the frame's key, and for each upstream the NACKs that it has not answered, in the order of
//! sending. Pure.
//!
//! A frame carries its key, an ACK and a THROTTLED the SeqNum, a MISS neither (docs/wire-format.md). So:
//!
//! * A frame is taken for the job that waits for its key, whichever upstream sends it and however late.
//! * A MISS is taken for the oldest NACK that its sender has not answered, and that job goes on to the next upstream. It is
//!   *certain*, so that the job may be given up, only when as many MISSes came as NACKs could be meant. NACKs whose time is
//!   over still could be, for a while.
//! * An upstream that answers a NACK with the frame has not answered it with a MISS: the MISS taken for it was another's,
//!   and is handed on.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{SocketAddr, SocketAddrV6};

use retry_common::key::FrameKey;
use tokio::sync::{mpsc, watch};

use super::upstreams::{MOST, bare};

/// Listeners that one frame is copied to at most: 2 KiB per job.
pub(super) const MOST_ASKERS: usize = 64;
/// How long after its time an answer may still come and be taken for another's.
const LATE_NS: u64 = 2_000_000_000;
/// Most NACKs of one upstream that no job waits for any more; the oldest make way.
const MOST_ABANDONED: usize = 256;

/// What an upstream says other than the frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Reply {
    /// Who.
    pub(super) from: SocketAddr,
    /// What.
    pub(super) says: Says,
}

/// What an upstream says other than the frame, or the network says of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Says {
    /// ACK: it has the frame, and has sent it.
    Sent,
    /// MISS: it has not the frame.
    Miss,
    /// MISS or THROTTLED, perhaps to another NACK of ours.
    Perhaps,
    /// THROTTLED: it is not to be asked for a while.
    Throttled,
    /// ICMP: it cannot be reached.
    Unreachable,
}

/// What becomes of a listener that asks for a frame whose job is under way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Join {
    /// It gets a copy too.
    Added,
    /// It gets a copy already.
    Known,
    /// [`MOST_ASKERS`] others get one.
    Full,
}

/// What a job hears.
pub(super) struct JobReceiver {
    /// The frame, once it is there.
    pub(super) frame: watch::Receiver<Option<Vec<u8>>>,
    /// Everything else; no more than a few for each NACK.
    pub(super) replies: mpsc::UnboundedReceiver<Reply>,
}

/// An answer that fits a NACK.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Answered {
    /// When the NACK was sent, when it is sure which one it was.
    pub(super) sent_ns: Option<u64>,
}

struct Waiter {
    /// Listeners that get a copy.
    askers: Vec<SocketAddrV6>,
    frame: watch::Sender<Option<Vec<u8>>>,
    replies: mpsc::UnboundedSender<Reply>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// Nothing was heard.
    Open,
    /// A MISS was taken for it, which may be another's.
    Missed,
    /// It was answered with an ACK: the frame is on its way, or lost. No MISS can be meant for it.
    Acked,
    /// It was answered with the frame then: the ACK is on its way, or lost.
    Framed(u64),
    /// No job waits for it any more since then; its answer may still come.
    Abandoned(u64),
}

#[derive(Clone, Copy)]
struct Asked {
    key: FrameKey,
    sent_ns: u64,
    state: State,
}

/// What one upstream was asked, oldest first.
#[derive(Default)]
struct Line {
    asked: Vec<Asked>,
    /// MISSes that came, less those that are certain of their NACK.
    misses: usize,
}

/// The table.
#[derive(Default)]
pub(super) struct Flight {
    jobs: HashMap<FrameKey, Waiter>,
    lines: HashMap<SocketAddr, Line>,
}

impl Flight {
    /// Begins a job; `None` when one for the key is under way.
    pub(super) fn begin(&mut self, key: FrameKey) -> Option<JobReceiver> {
        match self.jobs.entry(key) {
            Entry::Occupied(_) => None,
            Entry::Vacant(place) => {
                let (frame, frames) = watch::channel(None);
                let (sender, replies) = mpsc::unbounded_channel();
                place.insert(Waiter { askers: Vec::new(), frame, replies: sender });
                Some(JobReceiver { frame: frames, replies })
            }
        }
    }

    /// No job is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Adds a listener that gets a copy of the frame of a job that is under way; `None` when there is no such job.
    pub(super) fn join(&mut self, key: &FrameKey, asker: SocketAddrV6) -> Option<Join> {
        let askers = &mut self.jobs.get_mut(key)?.askers;
        if askers.contains(&asker) {
            return Some(Join::Known);
        }
        if askers.len() >= MOST_ASKERS {
            return Some(Join::Full);
        }
        askers.push(asker);
        Some(Join::Added)
    }

    /// Ends a job: nothing is taken for it any more. Returns the listeners that get a copy.
    pub(super) fn end(&mut self, key: &FrameKey, now_ns: u64) -> Vec<SocketAddrV6> {
        for line in self.lines.values_mut() {
            line.abandon(key, now_ns);
        }
        self.jobs.remove(key).map(|job| job.askers).unwrap_or_default()
    }

    /// A NACK for `key` is about to be sent to `to`.
    pub(super) fn sent(&mut self, key: FrameKey, to: SocketAddr, now_ns: u64) {
        if self.lines.len() > MOST {
            // Upstreams come and go.
            self.lines.values_mut().for_each(|line| line.prune(now_ns));
            self.lines.retain(|_, line| !line.asked.is_empty());
        }
        let line = self.lines.entry(bare(to)).or_default();
        line.prune(now_ns);
        line.asked.push(Asked { key, sent_ns: now_ns, state: State::Open });
    }

    /// The NACK for `key` did not leave for `to`.
    pub(super) fn unsent(&mut self, key: &FrameKey, to: SocketAddr) {
        if let Some(line) = self.lines.get_mut(&bare(to))
            && let Some(at) = line.asked.iter().rposition(|one| one.key == *key)
        {
            line.asked.remove(at);
        }
    }

    /// The time of `to` for `key` is over.
    pub(super) fn give_up(&mut self, key: &FrameKey, to: SocketAddr, now_ns: u64) {
        if let Some(line) = self.lines.get_mut(&bare(to)) {
            line.abandon(key, now_ns);
        }
    }

    /// A frame came.
    pub(super) fn frame(&mut self, key: &FrameKey, from: SocketAddr, bytes: &[u8], now_ns: u64) -> Option<Answered> {
        if let Some(job) = self.jobs.get(key) {
            job.frame.send_replace(Some(bytes.to_vec()));
        }
        let line = self.lines.get_mut(&bare(from))?;
        let is_meant = |one: &Asked| one.key == *key && !one.is_framed();
        let sure = line.count(is_meant) == 1;
        let at = line.asked.iter().position(is_meant)?;
        let Asked { sent_ns, state, .. } = line.asked[at];
        if state == State::Acked {
            // It was counted as answered then.
            line.asked.remove(at);
            return None;
        }
        line.asked[at].state = State::Framed(now_ns);
        self.settle(from, state == State::Missed);
        Some(Answered { sent_ns: sure.then_some(sent_ns) })
    }

    /// An ACK came.
    pub(super) fn ack(&mut self, seq_num: u64, from: SocketAddr) -> Option<Answered> {
        let line = self.lines.get_mut(&bare(from))?;
        let fits = |one: &Asked| one.key.seq_num() == seq_num && (one.may_miss() || one.is_framed());
        let Some((at, sent_ns)) = line.meant(fits)? else {
            // Two flows have this number: the frame tells.
            return Some(Answered { sent_ns: None });
        };
        let Asked { key, state, .. } = line.asked[at];
        match state {
            State::Open | State::Missed => {
                line.asked[at].state = State::Acked;
                self.tell(&key, from, Says::Sent);
            }
            State::Abandoned(_) => drop(line.asked.remove(at)),
            State::Framed(_) | State::Acked => {
                line.asked.remove(at);
                return None;
            }
        }
        self.settle(from, state == State::Missed);
        Some(Answered { sent_ns })
    }

    /// A THROTTLED came.
    pub(super) fn throttled(&mut self, seq_num: u64, from: SocketAddr) -> Option<Answered> {
        let line = self.lines.get_mut(&bare(from))?;
        let fits = |one: &Asked| one.key.seq_num() == seq_num && one.may_miss();
        let Some((at, sent_ns)) = line.meant(fits)? else {
            let keys: Vec<FrameKey> = line.asked.iter().filter(|one| fits(one)).map(|one| one.key).collect();
            for key in keys {
                self.tell(&key, from, Says::Perhaps);
            }
            return Some(Answered { sent_ns: None });
        };
        let asked = line.asked.remove(at);
        if asked.is_waited_for() {
            self.tell(&asked.key, from, Says::Throttled);
        }
        self.settle(from, asked.state == State::Missed);
        Some(Answered { sent_ns })
    }

    /// A MISS came.
    pub(super) fn miss(&mut self, from: SocketAddr, now_ns: u64) -> Option<Answered> {
        let line = self.lines.get_mut(&bare(from))?;
        line.prune(now_ns);
        let first = line.asked.iter().find(|one| one.may_miss())?;
        let sent_ns = (line.count(Asked::may_miss) == 1).then_some(first.sent_ns);
        line.misses += 1;
        self.settle(from, true);
        Some(Answered { sent_ns })
    }

    /// An ICMP error came for `to`: for everything asked there.
    pub(super) fn unreachable(&mut self, to: SocketAddr, now_ns: u64) {
        let Some(line) = self.lines.get_mut(&bare(to)) else {
            return;
        };
        let lost: Vec<FrameKey> = line.asked.iter().filter(|one| one.is_waited_for()).map(|one| one.key).collect();
        for key in lost {
            self.give_up(&key, to, now_ns);
            self.tell(&key, to, Says::Unreachable);
        }
    }

    /// True while a job for it waits or is under way.
    pub(super) fn is_under_way(&self, key: &FrameKey) -> bool {
        self.jobs.contains_key(key)
    }

    /// True when no upstream that was asked for it is waited for.
    #[cfg(test)]
    pub(super) fn is_given_up(&self, key: &FrameKey) -> bool {
        let mut asked = self.lines.values().flat_map(|line| &line.asked).filter(|one| one.key == *key).peekable();
        asked.peek().is_some() && !asked.any(Asked::is_waited_for)
    }

    /// Tells those for whom the MISSes of `from` are certain; else, with `one_more`, takes one for the oldest open NACK.
    fn settle(&mut self, from: SocketAddr, one_more: bool) {
        let Some(line) = self.lines.get_mut(&bare(from)) else {
            return;
        };
        let mut told = Vec::new();
        if line.misses >= line.count(Asked::may_miss) {
            line.misses = 0;
            line.asked.retain(|one| {
                if one.is_waited_for() {
                    told.push((one.key, Says::Miss));
                }
                !one.may_miss()
            });
        } else if one_more
            && line.misses > 0
            && let Some(open) = line.asked.iter_mut().find(|one| one.state == State::Open)
        {
            open.state = State::Missed;
            told.push((open.key, Says::Perhaps));
        }
        for (key, says) in told {
            self.tell(&key, from, says);
        }
    }

    fn tell(&self, key: &FrameKey, from: SocketAddr, says: Says) {
        if let Some(job) = self.jobs.get(key) {
            // A job that ends at this moment hears nothing more.
            let _ = job.replies.send(Reply { from, says });
        }
    }
}

impl Asked {
    const fn is_waited_for(&self) -> bool {
        matches!(self.state, State::Open | State::Missed)
    }

    /// True when a MISS can be meant for it.
    const fn may_miss(&self) -> bool {
        !matches!(self.state, State::Acked | State::Framed(_))
    }

    const fn is_framed(&self) -> bool {
        matches!(self.state, State::Framed(_))
    }
}

impl Line {
    fn count(&self, fits: impl Fn(&Asked) -> bool) -> usize {
        self.asked.iter().filter(|one| fits(one)).count()
    }

    /// Of the NACKs that an answer fits the one that it is meant for, and when that was sent if no other is for the same
    /// frame. `None` when it fits none, `Some(None)` when it may be for one frame or another.
    #[expect(clippy::option_option, reason = "no NACK, and no single one, are two things")]
    fn meant(&self, fits: impl Fn(&Asked) -> bool + Copy) -> Option<Option<(usize, Option<u64>)>> {
        let first = self.asked.iter().find(|one| fits(one))?;
        let mut fitting = self.asked.iter().enumerate().filter(move |(_, one)| fits(one));
        if fitting.clone().any(|(_, one)| one.key != first.key) {
            return Some(None);
        }
        let sent_ns = (fitting.clone().count() == 1).then_some(first.sent_ns);
        let at = fitting.clone().find(|(_, one)| one.is_waited_for()).or_else(|| fitting.next());
        Some(at.map(|(at, _)| (at, sent_ns)))
    }

    /// No job waits any more for what was asked for `key`.
    fn abandon(&mut self, key: &FrameKey, now_ns: u64) {
        self.asked.retain(|one| one.key != *key || one.state != State::Acked);
        for one in self.asked.iter_mut().filter(|one| one.key == *key && one.is_waited_for()) {
            one.state = State::Abandoned(now_ns);
        }
    }

    /// Forgets what no answer comes for any more.
    fn prune(&mut self, now_ns: u64) {
        let is_over = |since_ns: u64| now_ns.saturating_sub(since_ns) >= LATE_NS;
        let abandoned = self.count(|one| matches!(one.state, State::Abandoned(_)));
        let (mut spare, mut forgotten) = (abandoned.saturating_sub(MOST_ABANDONED), 0);
        self.asked.retain(|one| match one.state {
            State::Abandoned(since_ns) if spare > 0 || is_over(since_ns) => {
                spare = spare.saturating_sub(1);
                forgotten += 1;
                false
            }
            State::Framed(since_ns) => !is_over(since_ns),
            State::Abandoned(_) | State::Open | State::Missed | State::Acked => true,
        });
        // A MISS that came may have been theirs: it proves nothing about the others.
        self.misses = self.misses.saturating_sub(forgotten);
    }
}
