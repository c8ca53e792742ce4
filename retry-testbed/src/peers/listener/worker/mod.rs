//! The listener's thread: sockets and timers in, NACKs out. One state a gap.

mod asking;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
    io,
    net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket},
    sync::{Arc, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use retry_common::key::FrameKey;

use super::{ListenerSettings, Shared, Stats, endpoints::Endpoints};
use crate::peers::journal::{Journal, Verdict, key_of};

/// Tokens below are group sockets, those from here on belong to NACKs.
const FIRST_NACK: u64 = 1 << 32;
/// The token of the beacons' socket.
const BEACONS: u64 = FIRST_NACK - 1;
/// A jump of more frames than this is a new start of the flow and not a gap.
const LONGEST_GAP: u64 = 100_000;
/// Longest sleep: the stop flag and new expectations are looked at this often.
const LOOK_AROUND: Duration = Duration::from_millis(10);

/// What a gap waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The frame may come by itself.
    Patient,
    /// A NACK is out.
    Asked,
    /// An ACK came, and the frame must follow.
    Promised,
    /// A pause after silence, THROTTLED or a broken promise.
    Paused,
}

#[derive(Debug)]
struct Gap {
    state: State,
    /// Distinguishes the timer that counts from those that were overtaken.
    round: u64,
    attempts: u32,
    /// How many of the known endpoints have been asked in vain this round.
    rank: usize,
    first_asked: Option<Instant>,
    /// The socket of the NACK that is out.
    token: u64,
}

#[derive(Debug)]
struct NackSocket {
    socket: UdpSocket,
    key: FrameKey,
    endpoint: SocketAddrV6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Gap { key: [u8; 16], round: u64 },
    Close { token: u64 },
}

/// How a frame came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrival {
    Original,
    Multicast,
    Unicast,
}

pub(super) struct Worker {
    settings: ListenerSettings,
    journal: Arc<Journal>,
    shared: Arc<Shared>,
    epoll: Epoll,
    groups: Vec<UdpSocket>,
    beacons: Option<UdpSocket>,
    known: Endpoints,
    next_of_flow: HashMap<u64, u64>,
    seen: HashSet<FrameKey>,
    given_up: HashSet<FrameKey>,
    gaps: HashMap<FrameKey, Gap>,
    sockets: HashMap<u64, NackSocket>,
    timers: BinaryHeap<Reverse<(Instant, Timer)>>,
    next_token: u64,
    next_round: u64,
}

impl Worker {
    pub(super) fn new(
        settings: ListenerSettings,
        journal: Arc<Journal>,
        groups: Vec<UdpSocket>,
        beacons: Option<UdpSocket>,
        shared: Arc<Shared>,
    ) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for (socket, token) in groups.iter().zip(0u64..) {
            epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        }
        if let Some(socket) = &beacons {
            epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, BEACONS))?;
        }
        Ok(Self {
            known: Endpoints::new(settings.seeds.clone()),
            settings,
            journal,
            shared,
            epoll,
            groups,
            beacons,
            next_of_flow: HashMap::new(),
            seen: HashSet::new(),
            given_up: HashSet::new(),
            gaps: HashMap::new(),
            sockets: HashMap::new(),
            timers: BinaryHeap::new(),
            next_token: FIRST_NACK,
            next_round: 0,
        })
    }

    pub(super) fn run(mut self) -> Result<()> {
        let mut events = [EpollEvent::empty(); 256];
        let mut buffer = vec![0; 65_536];
        while !self.shared.stop.load(Ordering::Relaxed) {
            let ready = match self.epoll.wait(&mut events, self.timeout()?) {
                Ok(ready) => ready,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => return Err(error.into()),
            };
            for event in events.iter().take(ready) {
                let token = event.data();
                if token == BEACONS {
                    self.read_beacons(&mut buffer)?;
                } else if token < FIRST_NACK {
                    self.read_group(usize::try_from(token)?, &mut buffer)?;
                } else {
                    self.read_answers(token, &mut buffer)?;
                }
            }
            self.hear_expectations()?;
            self.fire_timers()?;
            self.stats().open = u64::try_from(self.gaps.len())?;
        }
        Ok(())
    }

    fn stats(&self) -> MutexGuard<'_, Stats> {
        self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn timeout(&self) -> Result<EpollTimeout> {
        let until = self
            .timers
            .peek()
            .map_or(LOOK_AROUND, |Reverse((at, _))| at.saturating_duration_since(Instant::now()).min(LOOK_AROUND));
        // Rounded up: a timer that is almost due must not spin.
        let milliseconds = u16::try_from(until.as_micros().div_ceil(1_000))?;
        Ok(EpollTimeout::from(milliseconds))
    }

    fn read_group(&mut self, at: usize, buffer: &mut [u8]) -> Result<()> {
        // Bounded, so that timers are looked at under any load.
        for _ in 0..512 {
            let socket = self.groups.get(at).context("an unknown group socket")?;
            let Some((length, from)) = read(socket, buffer)? else {
                return Ok(());
            };
            let frame = buffer.get(..length).unwrap_or_default();
            self.stats().received += 1;
            let Some(key) = key_of(frame) else {
                continue;
            };
            let way = if self.known.contains(from) { Arrival::Multicast } else { Arrival::Original };
            self.take_frame(key, frame, way);
            self.follow(key);
        }
        Ok(())
    }

    /// Compares a frame, and closes its gap if there is one.
    fn take_frame(&mut self, key: FrameKey, frame: &[u8], way: Arrival) {
        let verdict = self.journal.compare(key, frame);
        if verdict != Verdict::Same {
            let mut stats = self.stats();
            stats.wrong_bytes += 1;
            let length = frame.len();
            stats.complain(format!("{key} by {way:?}, {length} bytes: {verdict:?}"));
            return;
        }
        let new = self.seen.insert(key);
        let Some(gap) = self.gaps.remove(&key) else {
            if !new {
                self.stats().duplicates += 1;
            }
            return;
        };
        let close = self.settings.drain;
        self.arm(close, Timer::Close { token: gap.token });
        let mut stats = self.stats();
        match (way, gap.first_asked) {
            (Arrival::Original, _) => {
                stats.late += 1;
                if gap.state != State::Patient {
                    stats.lost -= 1;
                }
            }
            // Another listener asked first, and the repair went to the group.
            (_, None) => {
                stats.lost += 1;
                stats.recovered_multicast += 1;
            }
            (_, Some(asked)) => {
                let time = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
                stats.latency.record(time);
                if way == Arrival::Unicast {
                    stats.recovered_unicast += 1;
                } else {
                    stats.recovered_multicast += 1;
                }
            }
        }
    }

    /// Opens the gaps that a frame on the group shows.
    fn follow(&mut self, key: FrameKey) {
        let first = if self.settings.from_one { 1 } else { key.seq_num() };
        let next = *self.next_of_flow.get(&key.hash_key()).unwrap_or(&first);
        if key.seq_num() < next {
            return;
        }
        self.next_of_flow.insert(key.hash_key(), key.seq_num() + 1);
        if key.seq_num() - next > LONGEST_GAP {
            return;
        }
        for seq_num in next..key.seq_num() {
            self.open_gap(FrameKey::new(key.hash_key(), seq_num));
        }
    }

    fn open_gap(&mut self, key: FrameKey) {
        let known = self.seen.contains(&key) || self.given_up.contains(&key);
        if known || self.gaps.contains_key(&key) {
            return;
        }
        let gap = Gap { state: State::Patient, round: 0, attempts: 0, rank: 0, first_asked: None, token: 0 };
        self.gaps.insert(key, gap);
        self.enter(key, State::Patient, self.settings.patience);
    }

    fn hear_expectations(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let mut expected = shared.expected.lock().unwrap_or_else(PoisonError::into_inner);
        if expected.is_empty() {
            return Ok(());
        }
        for key in expected.drain(..) {
            self.open_gap(key);
        }
        // Still under the lock, so that no reader sees an empty list and nothing open in between.
        self.stats().open = u64::try_from(self.gaps.len())?;
        Ok(())
    }

    fn enter(&mut self, key: FrameKey, state: State, time: Duration) {
        self.next_round += 1;
        let round = self.next_round;
        if let Some(gap) = self.gaps.get_mut(&key) {
            gap.state = state;
            gap.round = round;
            self.arm(time, Timer::Gap { key: key.to_bytes(), round });
        }
    }

    fn arm(&mut self, time: Duration, timer: Timer) {
        self.timers.push(Reverse((Instant::now() + time, timer)));
    }

    fn fire_timers(&mut self) -> Result<()> {
        let now = Instant::now();
        while self.timers.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            match self.timers.pop() {
                Some(Reverse((_, Timer::Close { token }))) => {
                    // Dropping the socket takes it out of the epoll set.
                    self.sockets.remove(&token);
                }
                Some(Reverse((_, Timer::Gap { key, round }))) => {
                    let key = FrameKey::from_bytes(key);
                    let Some(gap) = self.gaps.get(&key).filter(|gap| gap.round == round) else {
                        continue;
                    };
                    let (state, attempts) = (gap.state, gap.attempts);
                    self.time_is_up(key, state, attempts)?;
                }
                None => {}
            }
        }
        Ok(())
    }

    fn time_is_up(&mut self, key: FrameKey, state: State, attempts: u32) -> Result<()> {
        match state {
            State::Patient => {
                self.stats().lost += 1;
                if self.settings.ask {
                    return self.ask(key);
                }
                self.give_up(key);
            }
            State::Paused => return self.ask(key),
            State::Asked | State::Promised => {
                if state == State::Asked {
                    self.stats().silent += 1;
                } else {
                    self.stats().broken_promises += 1;
                }
                if attempts >= self.settings.attempts {
                    self.give_up(key);
                } else {
                    if let Some(gap) = self.gaps.get_mut(&key) {
                        gap.rank += 1;
                    }
                    let pause = self.settings.backoff * (1 << (attempts - 1).min(4));
                    self.enter(key, State::Paused, pause);
                }
            }
        }
        Ok(())
    }

    fn give_up(&mut self, key: FrameKey) {
        if let Some(gap) = self.gaps.remove(&key) {
            self.arm(self.settings.drain, Timer::Close { token: gap.token });
        }
        self.given_up.insert(key);
        let mut stats = self.stats();
        stats.unrecovered += 1;
        stats.give_up(key);
    }
}

fn read(socket: &UdpSocket, buffer: &mut [u8]) -> Result<Option<(usize, Ipv6Addr)>> {
    Ok(read_from(socket, buffer)?.map(|(length, from)| (length, *from.ip())))
}

fn read_from(socket: &UdpSocket, buffer: &mut [u8]) -> Result<Option<(usize, SocketAddrV6)>> {
    match socket.recv_from(buffer) {
        Ok((length, SocketAddr::V6(from))) => Ok(Some((length, from))),
        Ok((_, SocketAddr::V4(from))) => anyhow::bail!("IPv4 from {from}"),
        // An ICMP error ends no listener.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    }
}
