//! The top talkers: the sources and flows that asked most in the last minute, in memory of fixed size.
//!
//! Both paths draw NACKs by one rule ([`retry_common::talkers`]) and tell of those: the kernel program over a BPF ring buffer, the
//! daemon's workers over a queue. One thread ([`Talkers::run`]) counts them in a [`window::Window`]. No worker waits for it: what
//! finds the queue full is dropped and counted.

mod window;

use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use retry_common::abi::ticket_role;
use retry_common::counter::Counter;
use retry_common::key::FrameKey;
use retry_common::latency::Measured;
use retry_common::talkers::{Drawn, draw};

use crate::clock::monotonic_ns;
use crate::counters::UserCounters;
use crate::stop_flag::StopFlag;
use window::Window;

/// Between two looks for NACKs that were told of.
const PAUSE: Duration = Duration::from_millis(100);
/// NACKs of the daemon's own path that wait to be counted.
const QUEUE: usize = 4_096;
/// An IPv6 header and a UDP header, bytes.
const HEADERS: u64 = 48;
/// An ACK, MISS or THROTTLED with its headers, bytes.
const ANSWER: u64 = 16 + HEADERS;

/// Why a NACK was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Refusal {
    /// The limit per source address.
    Ip,
    /// The limit per source address and flow.
    Chain,
    /// The limit per frame.
    Sequence,
    /// The limit per source address and group.
    Group,
    /// It is no NACK.
    Malformed,
    /// Anything else.
    Other,
}

/// Number of [`Refusal`]s.
pub(crate) const REFUSALS: usize = 6;

impl Refusal {
    /// All of them.
    pub(crate) const ALL: [Self; REFUSALS] =
        [Self::Ip, Self::Chain, Self::Sequence, Self::Group, Self::Malformed, Self::Other];

    /// Its word in JSON and tables: for limits the label `level` of `bre_rate_limit_drops_total`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Chain => "chain",
            Self::Sequence => "sequence",
            Self::Group => "group",
            Self::Malformed => "malformed",
            Self::Other => "other",
        }
    }

    /// The refusal that a counter tells of, if a limit or the form of the datagram was the reason.
    const fn of(counter: Counter) -> Option<Self> {
        match counter {
            Counter::LimitedAddress => Some(Self::Ip),
            Counter::LimitedChain => Some(Self::Chain),
            Counter::LimitedSequence => Some(Self::Sequence),
            Counter::LimitedGroup => Some(Self::Group),
            Counter::NackWrongSize
            | Counter::NackWrongMagic
            | Counter::NackWrongType
            | Counter::NackRange
            | Counter::NackWrongLength
            | Counter::NackWrongChecksum
            | Counter::NackUnanswerable => Some(Self::Malformed),
            _ => None,
        }
    }
}

/// What became of a NACK.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// Nothing yet, or nothing that is counted here.
    None,
    /// The frame or an ACK left for it.
    Answered,
    /// The frame is not held.
    Missed,
    /// It was refused.
    Refused(Refusal),
}

/// What is told of a NACK that was drawn.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Told {
    source: Ipv6Addr,
    /// 0: none, or not known.
    flow: u64,
    /// How many NACKs it stands for.
    weight: u64,
    /// It is told of for the first time.
    is_asked: bool,
    outcome: Outcome,
    /// Bytes of the IPv6 packets that left for it.
    bytes: u64,
}

impl Told {
    /// What the kernel program tells; nothing of a NACK that comes to the daemon's socket and is told of there.
    fn of(drawn: &Drawn) -> Option<Self> {
        let reason = drawn.reason.checked_sub(1).and_then(|number| Counter::ALL.get(usize::from(number)).copied());
        let refusal = reason.and_then(Refusal::of);
        let frame = u64::from(drawn.length) + HEADERS;
        let sent = |role: u8, bytes: u64| if drawn.sent & role != 0 { bytes } else { 0 };
        let measured = Measured::ALL.get(usize::from(drawn.verdict));
        let (outcome, bytes) = match (measured, refusal) {
            (Some(Measured::PassedOn), _) => return None,
            (Some(Measured::Throttled), refusal) => (Outcome::Refused(refusal.unwrap_or(Refusal::Other)), ANSWER),
            (Some(_), Some(refusal)) => (Outcome::Refused(refusal), 0),
            (Some(Measured::InPlace), None) => (Outcome::Answered, frame),
            (Some(Measured::Ack), None) => (Outcome::Answered, ANSWER),
            (Some(Measured::Clones), None) => {
                let copies = sent(ticket_role::UNICAST, frame) + sent(ticket_role::MULTICAST_HERE, frame);
                (Outcome::Answered, copies + sent(ticket_role::ACK, ANSWER))
            }
            (Some(Measured::Miss), None) => (Outcome::Missed, ANSWER),
            (Some(Measured::Silence), None) if reason == Some(Counter::CacheMisses) => (Outcome::Missed, 0),
            (Some(_), None) => (Outcome::None, 0),
            (None, refusal) => (Outcome::Refused(refusal.unwrap_or(Refusal::Other)), 0),
        };
        let (source, weight) = (Ipv6Addr::from(drawn.source), u64::from(drawn.weight));
        Some(Self { source, flow: drawn.flow, weight, is_asked: true, outcome, bytes })
    }
}

/// A source or a flow, and what became of the NACKs that it stands for. Numbers are estimates where there were many NACKs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Talker {
    /// The IPv6 address, or the HashKey in 16 hexadecimal digits.
    pub name: String,
    /// Datagrams to the NACK port.
    pub asked: u64,
    /// NACKs for which the frame or an ACK left.
    pub answered: u64,
    /// NACKs for frames that are not held.
    pub missed: u64,
    /// Those refused, in the order of the reasons `ip`, `chain`, `sequence`, `group`, `malformed`, `other`.
    pub refused: [u64; REFUSALS],
    /// Bytes of the IPv6 packets that left; a multicast repair counts once.
    pub bytes_out: u64,
    /// `asked` differs from what was asked by at most this much, in 95 of 100 cases.
    pub error: u64,
}

/// The top talkers of a window.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Top {
    /// How far back they are counted: a minute, less up to ten seconds.
    pub window: Duration,
    /// Sources, the one that asked most first.
    pub sources: Vec<Talker>,
    /// Flows, likewise.
    pub flows: Vec<Talker>,
}

/// Counts the top talkers.
#[derive(Debug)]
pub(crate) struct Talkers {
    /// `-top-talkers`.
    most: usize,
    /// The state of the draw of the daemon's own path.
    draw: AtomicU64,
    queue: SyncSender<Told>,
    told: Mutex<Option<Receiver<Told>>>,
    window: Mutex<Window>,
    counters: Arc<UserCounters>,
}

impl Talkers {
    /// Counts, and shows the `most` that asked most. Nothing is counted before [`Talkers::run`].
    pub(crate) fn new(most: usize, counters: Arc<UserCounters>) -> Self {
        let (queue, told) = sync_channel(QUEUE);
        Self {
            most,
            draw: AtomicU64::new(0),
            queue,
            told: Mutex::new(Some(told)),
            window: Mutex::new(Window::new(monotonic_ns())),
            counters,
        }
    }

    /// Tells of a NACK that came to the daemon's socket.
    pub(crate) fn asked(&self, source: &Ipv6Addr, key: &FrameKey, now_ns: u64) {
        self.tell(source, key.hash_key(), now_ns, true, Outcome::None, 0);
    }

    /// Tells of a datagram that came to the daemon's socket and is no NACK.
    pub(crate) fn refused(&self, source: &Ipv6Addr, reason: Counter) {
        let refusal = Refusal::of(reason).unwrap_or(Refusal::Other);
        self.tell(source, 0, monotonic_ns(), true, Outcome::Refused(refusal), 0);
    }

    /// Tells what the daemon decided on a NACK, and whether a MISS or THROTTLED leaves.
    pub(crate) fn decided(&self, source: &Ipv6Addr, key: &FrameKey, reason: Option<Counter>, is_said: bool) {
        let outcome = match reason.and_then(Refusal::of) {
            Some(refusal) => Outcome::Refused(refusal),
            None if reason == Some(Counter::CacheMisses) => Outcome::Missed,
            None => return,
        };
        self.tell(source, key.hash_key(), monotonic_ns(), false, outcome, if is_said { ANSWER } else { 0 });
    }

    /// Tells of a frame of `length` bytes that the daemon sends: copies of it, and an ACK.
    pub(crate) fn repaired(&self, source: &Ipv6Addr, key: &FrameKey, length: u32, copies: u64, has_ack: bool) {
        let bytes = copies * (u64::from(length) + HEADERS) + if has_ack { ANSWER } else { 0 };
        self.tell(source, key.hash_key(), monotonic_ns(), false, Outcome::Answered, bytes);
    }

    fn tell(&self, source: &Ipv6Addr, flow: u64, now_ns: u64, is_asked: bool, outcome: Outcome, bytes: u64) {
        // A worker that changes the state at the same time makes one more or one less of the first ones.
        let (next, weight) = draw(self.draw.load(Ordering::Relaxed), now_ns);
        if weight == 1 {
            self.draw.store(next, Ordering::Relaxed);
        }
        if weight != 0 {
            let told = Told { source: *source, flow, weight: weight.into(), is_asked, outcome, bytes };
            if self.queue.try_send(told).is_err() {
                self.counters.one(Counter::TalkersDropped);
            }
        }
    }

    /// Counts what is told of until `stop`: by the daemon's path, and by the kernel program, from which `take` takes.
    pub(crate) fn run(&self, mut take: impl FnMut() -> Option<Drawn>, stop: &StopFlag) {
        let Some(told) = self.told.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        while !stop.is_asked() {
            let now_ns = monotonic_ns();
            let mut window = self.window();
            let of_kernel = std::iter::from_fn(&mut take).filter_map(|drawn| Told::of(&drawn));
            for told in told.try_iter().take(QUEUE).chain(of_kernel.take(1 << 16)) {
                window.count(&told, now_ns);
            }
            drop(window);
            std::thread::sleep(PAUSE);
        }
    }

    fn window(&self) -> std::sync::MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The top talkers now.
    pub(crate) fn top(&self) -> Top {
        self.window().top(self.most, monotonic_ns())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(measured: Measured, reason: Option<Counter>, length: u16, sent: u8) -> Drawn {
        let reason = reason.map_or(0, |reason| reason as u16 + 1);
        Drawn { weight: 3, flow: 7, reason, length, verdict: measured as u8, sent, ..Drawn::default() }
    }

    #[test]
    fn a_record_of_the_kernel_is_what_it_got() {
        let all = ticket_role::ACK | ticket_role::UNICAST | ticket_role::MULTICAST_HERE;
        let table = [
            (drawn(Measured::InPlace, Some(Counter::CacheHits), 400, 0), Outcome::Answered, 448),
            (drawn(Measured::Clones, Some(Counter::CacheHits), 400, all), Outcome::Answered, 448 * 2 + 64),
            (drawn(Measured::Ack, Some(Counter::RetransmitHeldDown), 0, 0), Outcome::Answered, 64),
            (drawn(Measured::Miss, Some(Counter::CacheMisses), 0, 0), Outcome::Missed, 64),
            (drawn(Measured::Silence, Some(Counter::CacheMisses), 0, 0), Outcome::Missed, 0),
            (drawn(Measured::Silence, Some(Counter::LimitedAddress), 0, 0), Outcome::Refused(Refusal::Ip), 0),
            (drawn(Measured::Throttled, Some(Counter::LimitedGroup), 0, 0), Outcome::Refused(Refusal::Group), 64),
            (drawn(Measured::HandedOver, Some(Counter::CacheHits), 0, 0), Outcome::None, 0),
        ];
        for (drawn, outcome, bytes) in table {
            let told = Told::of(&drawn).expect("told of");
            let seen = (told.outcome, told.bytes, told.weight, told.flow, told.is_asked);
            assert_eq!(seen, (outcome, bytes, 3, 7, true), "{drawn:?}");
        }
        assert_eq!(Told::of(&drawn(Measured::PassedOn, None, 0, 0)), None, "the socket tells of it");
        let refused = Drawn { verdict: Drawn::REFUSED, ..drawn(Measured::Miss, Some(Counter::NackRange), 0, 0) };
        assert_eq!(Told::of(&refused).map(|told| told.outcome), Some(Outcome::Refused(Refusal::Malformed)));
    }

    #[test]
    fn a_queue_that_is_full_holds_no_worker_up_and_is_counted() {
        let counters = Arc::new(UserCounters::default());
        let talkers = Talkers::new(3, Arc::clone(&counters));
        let (source, key) = (Ipv6Addr::LOCALHOST, FrameKey::new(1, 2));
        // Times far apart: each is drawn.
        for number in 0..u64::try_from(QUEUE).expect("small") + 5 {
            talkers.asked(&source, &key, number << 30);
        }
        assert_eq!(counters.snapshot().get(Counter::TalkersDropped), 5);
    }
}
