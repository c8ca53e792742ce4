//! The listeners of one host: each with an address, a socket in the group and a socket that asks; one thread serves them.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
    net::{Ipv6Addr, SocketAddrV6, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use retry_common::key::FrameKey;

use super::{Asking, Counts, SHARD};
use crate::{
    net::{
        fabric::{DATA_PORT, INTERFACE, group},
        netns::Netns,
    },
    peers::{
        answer::{Answer, nack},
        journal::{Journal, Verdict, key_of},
        listener::join,
    },
};

/// A frame that did not come this long after a NACK is asked for again; doubles each time, up to four times as long.
const BACKOFF: Duration = Duration::from_millis(200);
/// NACKs for one frame after which it is given up.
const ATTEMPTS: u32 = 8;
/// Complaints that are kept.
const KEPT: usize = 20;

/// What a crowd does in one round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan<'a> {
    /// All listeners miss these.
    pub(super) frames: &'a [FrameKey],
    pub(super) asking: Asking,
    /// Of a thousand, each listener on its own.
    pub(super) lost_repairs: u32,
}

/// When a crowd, or several, sent its NACKs and had its answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// Before the first one left.
    first: Instant,
    /// After the last answer came.
    answered: Instant,
    /// After the last one of all left.
    pub(super) last: Instant,
}

impl Asked {
    /// How long it took until every listener had an answer: the endpoint had read all NACKs by then.
    pub(super) fn took(&self) -> Duration {
        self.answered - self.first
    }

    /// This crowd's and another's.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            first: self.first.min(other.first),
            answered: self.answered.max(other.answered),
            last: self.last.max(other.last),
        }
    }
}

/// A frame that a listener misses.
#[derive(Clone, Copy, Debug, Default)]
struct Gap {
    asks: u32,
    acked: bool,
    heard: bool,
    given_up: bool,
}

/// One listener.
#[derive(Debug)]
struct Member {
    /// Joined to the group.
    group: UdpSocket,
    /// Bound to the listener's address.
    asks: UdpSocket,
    heard: HashSet<FrameKey>,
    /// In the order of the plan's frames.
    gaps: Vec<Gap>,
    random: SmallRng,
}

/// The listeners of a host.
#[derive(Debug)]
pub(super) struct Listeners {
    members: Vec<Member>,
    epoll: Epoll,
    endpoint: SocketAddrV6,
    journal: Arc<Journal>,
    buffer: Vec<u8>,
    counts: Counts,
}

impl Listeners {
    /// Opens the sockets of one listener for each address, all of which the host has.
    pub(super) fn gather(
        ns: &Netns,
        addresses: &[Ipv6Addr],
        endpoint: SocketAddrV6,
        journal: Arc<Journal>,
    ) -> Result<Self> {
        let index = ns.interface_index(INTERFACE)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut members = Vec::with_capacity(addresses.len());
        for (number, address) in (0..).zip(addresses) {
            let (group, asks) = ns.enter(|| -> Result<_> {
                let asks = UdpSocket::bind(SocketAddrV6::new(*address, 0, 0, 0)).context("a listener's address")?;
                asks.set_nonblocking(true)?;
                Ok((join(&[group(SHARD)], index, DATA_PORT)?, asks))
            })?;
            epoll.add(&group, EpollEvent::new(EpollFlags::EPOLLIN, 2 * number))?;
            epoll.add(&asks, EpollEvent::new(EpollFlags::EPOLLIN, 2 * number + 1))?;
            // The same losses in every run.
            let random = SmallRng::seed_from_u64(u64::from_be_bytes(address.octets()[8..].try_into()?));
            members.push(Member { group, asks, heard: HashSet::new(), gaps: Vec::new(), random });
        }
        Ok(Self { members, epoll, endpoint, journal, buffer: vec![0; 65_536], counts: Counts::default() })
    }

    /// Reads what has come. Whether every listener has heard two frames or more.
    pub(super) fn hears_the_last(&mut self) -> Result<bool> {
        for at in 0..self.members.len() {
            self.read_group(at, 0)?;
        }
        Ok(self.members.iter().all(|member| member.heard.len() >= 2))
    }

    /// How many frames each listener has heard, if that is the same number.
    pub(super) fn heard_each(&self) -> Option<usize> {
        let count = self.members.first()?.heard.len();
        self.members.iter().all(|member| member.heard.len() == count).then_some(count)
    }

    /// Asks for the plan's frames until every listener has each, or has given it up.
    pub(super) fn play(&mut self, plan: &Plan<'_>) -> Result<Asked> {
        let now = Instant::now();
        let mut due = BinaryHeap::new();
        for (at, member) in self.members.iter_mut().enumerate() {
            member.gaps = vec![Gap::default(); plan.frames.len()];
            for place in 0..plan.frames.len() {
                let jitter = match plan.asking {
                    Asking::AtOnce => Duration::ZERO,
                    Asking::Spread { over, .. } => over.mul_f64(member.random.random()),
                };
                due.push(Reverse((now + jitter, at, place)));
            }
        }
        let mut round = Playing {
            plan,
            places: plan.frames.iter().copied().zip(0..).collect(),
            due,
            asked: Asked { first: now, answered: now, last: now },
        };
        let mut events = [EpollEvent::empty(); 64];
        while let Some(next) = self.send_what_is_due(&mut round)? {
            let wait = next.saturating_duration_since(Instant::now()).as_millis().min(50) + 1;
            let ready = match self.epoll.wait(&mut events, EpollTimeout::from(u16::try_from(wait)?)) {
                Ok(ready) => ready,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => return Err(error.into()),
            };
            for event in events.iter().take(ready) {
                let at = usize::try_from(event.data() / 2)?;
                if event.data() % 2 == 0 {
                    self.read_repairs(at, &round)?;
                } else {
                    self.read_answers(at, &mut round)?;
                }
            }
        }
        self.settle_counts();
        Ok(round.asked)
    }

    /// Adds what all rounds came to.
    pub(super) fn add_to(&self, sum: &mut Counts) {
        let Counts { missed, recovered, asked, acked, nacks, acks, lost_repairs, complaints, .. } = &self.counts;
        for (sum, more) in [
            (&mut sum.missed, missed),
            (&mut sum.recovered, recovered),
            (&mut sum.asked, asked),
            (&mut sum.acked, acked),
            (&mut sum.nacks, nacks),
            (&mut sum.acks, acks),
            (&mut sum.lost_repairs, lost_repairs),
        ] {
            *sum += more;
        }
        sum.complaints.extend(complaints.iter().cloned());
    }

    /// Sends the NACKs whose time has come, and says when the next one's comes; `None` when nothing is open.
    fn send_what_is_due(&mut self, round: &mut Playing<'_>) -> Result<Option<Instant>> {
        while let Some(&Reverse((when, at, place))) = round.due.peek() {
            let member = self.members.get_mut(at).context("a listener")?;
            let gap = member.gaps.get_mut(place).context("a gap")?;
            if gap.is_closed(round.plan.asking) {
                round.due.pop();
                continue;
            }
            if when > Instant::now() {
                return Ok(Some(when));
            }
            round.due.pop();
            if gap.asks > 0 || round.plan.asking.is_stopped_by_a_repair() {
                // One thread serves many listeners. Without this, one that waits for its turn would ask for what it has
                // already, and the copies that come of that would let all others wait longer.
                self.read_repairs(at, round)?;
                self.read_answers(at, round)?;
            }
            let member = self.members.get_mut(at).context("a listener")?;
            let gap = member.gaps.get_mut(place).context("a gap")?;
            if gap.is_closed(round.plan.asking) {
                continue;
            }
            if gap.asks == ATTEMPTS {
                gap.given_up = true;
                continue;
            }
            let key = round.plan.frames.get(place).copied().context("a frame")?;
            member.asks.send_to(&nack(key), self.endpoint).context("a NACK leaves")?;
            gap.asks += 1;
            let now = Instant::now();
            self.counts.nacks += 1;
            round.asked.last = now;
            // Listeners that lost the same repair do not come back together.
            let backoff = BACKOFF * (1 << (gap.asks - 1).min(2));
            let jitter = backoff.mul_f64(member.random.random_range(0.0..0.5));
            round.due.push(Reverse((now + backoff + jitter, at, place)));
        }
        Ok(None)
    }

    /// Reads a listener's group and returns the frames that it had not heard; some get lost on the way, by chance.
    fn read_group(&mut self, at: usize, lost_per_mille: u32) -> Result<Vec<FrameKey>> {
        let member = self.members.get_mut(at).context("a listener")?;
        let mut new = Vec::new();
        while let Ok((length, _)) = member.group.recv_from(&mut self.buffer) {
            let frame = self.buffer.get(..length).unwrap_or_default();
            if lost_per_mille > 0 && member.random.random_range(0..1000) < lost_per_mille {
                self.counts.lost_repairs += 1;
                continue;
            }
            match key_of(frame).map(|key| (key, self.journal.compare(key, frame))) {
                Some((key, Verdict::Same)) => {
                    if member.heard.insert(key) {
                        new.push(key);
                    }
                }
                other => complain(&mut self.counts, format!("a frame that was not published: {other:?}")),
            }
        }
        Ok(new)
    }

    /// Reads a listener's group and closes what it asked for.
    fn read_repairs(&mut self, at: usize, round: &Playing<'_>) -> Result<()> {
        for key in self.read_group(at, round.plan.lost_repairs)? {
            self.close(at, round.places.get(&key), |gap| gap.heard = true);
        }
        Ok(())
    }

    fn read_answers(&mut self, at: usize, round: &mut Playing<'_>) -> Result<()> {
        loop {
            let member = self.members.get(at).context("a listener")?;
            let Ok((length, from)) = member.asks.recv_from(&mut self.buffer) else { return Ok(()) };
            let bytes = self.buffer.get(..length).unwrap_or_default();
            let seq_num = bytes.get(8..16).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes);
            let answer = Answer::parse(bytes, seq_num);
            // One flow: the SeqNum tells the frame.
            let key = round.plan.frames.iter().find(|key| key.seq_num() == seq_num);
            let place = key.and_then(|key| round.places.get(key));
            if from == self.endpoint.into() && answer == Ok(Answer::Ack { multicast: true, unicast: false }) {
                self.counts.acks += 1;
                round.asked.answered = Instant::now();
                self.close(at, place, |gap| gap.acked = true);
            } else {
                complain(&mut self.counts, format!("{answer:?} from {from} for SeqNum {seq_num}"));
            }
        }
    }

    fn close(&mut self, at: usize, place: Option<&usize>, change: impl FnOnce(&mut Gap)) {
        let member = self.members.get_mut(at);
        if let Some(gap) = member.zip(place).and_then(|(member, place)| member.gaps.get_mut(*place)) {
            change(gap);
        }
    }

    fn settle_counts(&mut self) {
        for gap in self.members.iter().flat_map(|member| &member.gaps) {
            self.counts.missed += 1;
            self.counts.recovered += u64::from(gap.heard);
            self.counts.asked += u64::from(gap.asks > 0);
            self.counts.acked += u64::from(gap.acked);
        }
    }
}

impl Gap {
    /// Whether there is nothing more to wait for.
    const fn is_closed(&self, asking: Asking) -> bool {
        self.given_up || (self.heard && (self.acked || (asking.is_stopped_by_a_repair() && self.asks == 0)))
    }
}

/// A round that is going on.
#[derive(Debug)]
struct Playing<'a> {
    plan: &'a Plan<'a>,
    /// Where each frame stands in the plan.
    places: HashMap<FrameKey, usize>,
    /// When which listener asks for which frame of the plan, unless that is closed by then.
    due: BinaryHeap<Reverse<(Instant, usize, usize)>>,
    asked: Asked,
}

fn complain(counts: &mut Counts, words: String) {
    if counts.complaints.len() < KEPT {
        counts.complaints.push(words);
    }
}
