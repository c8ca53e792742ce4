//! Steady traffic beside a daemon that comes and goes: a publisher, a listener that asks for frames that are held, and the
//! account of every answer.

use std::{
    collections::VecDeque,
    io::{self, IoSliceMut},
    net::{Ipv6Addr, SocketAddrV6, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, setsockopt,
    sockopt::{RcvBufForce, ReceiveTimestampns},
};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use retry_common::key::FrameKey;

use super::exchange::frame;
use crate::{
    net::fabric::{DATA_PORT, Host, group},
    peers::{answer::nack, journal::Journal, publish::Publisher},
    scheduling::urgent,
};

/// The flow that is published and asked for.
const FLOW: u64 = 0x57ead;
/// Bytes of a frame's payload; with its header the frame has 400.
const PAYLOAD: usize = 308;
/// How long what is published may be on its way to the log.
const SETTLES: Duration = Duration::from_millis(100);
/// From then on a NACK has not been answered.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);
/// Sequence numbers whose NACKs are told apart.
const SLOTS: usize = 1 << 20;
/// Between two turns of a sender.
const TURN: Duration = Duration::from_millis(1);
/// Datagrams of one turn: a veth's ring has 256 places, and what comes while it is full is lost.
const BURST: u32 = 32;
/// Room for answers that the listener has not come to.
const BUFFER: usize = 64 << 20;

/// How much traffic.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// NACKs per second.
    pub nacks: u32,
    /// Frames per second.
    pub frames: u32,
    /// The newest frames that are asked for, as many as the log surely holds.
    pub held: u64,
    /// How repairs come.
    pub repairs: Repairs,
    /// No more frames than these are published: of many, some share a word of the hold-down table.
    pub most: u64,
}

/// How repairs come.
#[derive(Clone, Copy, Debug)]
pub enum Repairs {
    /// To the listener.
    Unicast,
    /// To all, once in this hold-down.
    Multicast(Duration),
}

/// What became of the NACKs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Account {
    /// NACKs sent.
    pub asked: u64,
    /// ACKs.
    pub acked: u64,
    /// Copies of the right frame.
    pub copies: u64,
    /// MISSes: of frames that are held.
    pub missed: u64,
    /// THROTTLEDs.
    pub throttled: u64,
    /// Datagrams that are neither an answer nor a frame as it was published.
    pub wrong: u64,
    /// NACKs without an ACK within a second.
    pub unanswered: u64,
    /// ACKs that promise a copy that did not come, and had not come within the hold-down.
    pub without_copy: u64,
    /// Multicast repairs of a frame within the hold-down of the one before.
    pub repeated: u64,
    /// Longest time from a NACK to its ACK, as the kernel received it.
    pub longest_wait: Duration,
}

impl Account {
    /// True when each NACK was answered by an ACK and the right frame.
    #[must_use]
    pub const fn is_gapless(&self) -> bool {
        self.missed + self.throttled + self.wrong + self.unanswered + self.without_copy + self.repeated == 0
    }
}

#[derive(Debug)]
struct Shared {
    rates: Rates,
    to: SocketAddrV6,
    stop: AtomicBool,
    published: AtomicU64,
    /// When each sequence number was asked for, nanoseconds of Unix time; 0 when its ACK has come.
    ack_due: Vec<AtomicU64>,
    /// Not 0 while its copy has not come; only of unicast copies.
    copy_due: Vec<AtomicU64>,
    /// When its last multicast repair came, nanoseconds of Unix time.
    repaired: Vec<AtomicU64>,
}

impl Shared {
    fn slot(seq_num: u64) -> usize {
        usize::try_from(seq_num).unwrap_or(0) % SLOTS
    }

    fn runs(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
}

/// Traffic that goes on until [`Steady::stop`].
#[derive(Debug)]
pub struct Steady {
    shared: Arc<Shared>,
    publisher: JoinHandle<()>,
    asker: JoinHandle<u64>,
    listener: JoinHandle<Account>,
    repairs: Option<JoinHandle<Account>>,
}

impl Steady {
    /// Publishes from a host, and asks the endpoint from it too, once as many frames are out as are asked for.
    ///
    /// # Panics
    /// The namespace gives no sockets.
    #[must_use]
    pub fn start(host: &Host, to: SocketAddrV6, rates: Rates) -> Self {
        let words = || (0..SLOTS).map(|_| AtomicU64::new(0)).collect();
        let shared = Arc::new(Shared {
            rates,
            to,
            stop: AtomicBool::new(false),
            published: AtomicU64::new(0),
            ack_due: words(),
            copy_due: words(),
            repaired: words(),
        });
        let publisher = Publisher::open(&host.ns, Arc::new(Journal::new())).expect("a publisher");
        let socket = host.ns.enter(|| UdpSocket::bind(SocketAddrV6::new(host.addr, 0, 0, 0))).expect("a socket");
        let socket = Arc::new(hearing(socket));
        let repairs = matches!(rates.repairs, Repairs::Multicast(_)).then(|| hearing(joined(host)));
        let of = |work: fn(&Shared, &UdpSocket) -> u64| {
            let (shared, socket) = (Arc::clone(&shared), Arc::clone(&socket));
            thread::spawn(move || work(&shared, &socket))
        };
        let asker = of(ask);
        let (sharing, heard) = (Arc::clone(&shared), Arc::clone(&socket));
        let listener = thread::spawn(move || listen(&sharing, &heard));
        let sharing = Arc::clone(&shared);
        let repairs = repairs.map(|socket| thread::spawn(move || hear_repairs(&sharing, &socket)));
        let sharing = Arc::clone(&shared);
        let publisher = thread::spawn(move || publish(&sharing, &publisher));
        let steady = Self { shared, publisher, asker, listener, repairs };
        while steady.shared.published.load(Ordering::Relaxed) < rates.held {
            thread::sleep(TURN);
        }
        steady
    }

    /// Frames published so far.
    #[must_use]
    pub fn published(&self) -> u64 {
        self.shared.published.load(Ordering::Relaxed)
    }

    /// Ends the traffic, waits for the last answers, and returns the account.
    ///
    /// # Panics
    /// One of its threads did.
    #[must_use]
    pub fn stop(self) -> Account {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.publisher.join().expect("the publisher");
        let asked = self.asker.join().expect("the asker");
        let mut account = self.listener.join().expect("the listener");
        let left = |due: &[AtomicU64]| due.iter().filter(|word| word.load(Ordering::Relaxed) != 0).count();
        if let Some(repairs) = self.repairs {
            let heard = repairs.join().expect("the listener to repairs");
            account.copies = heard.copies;
            account.repeated = heard.repeated;
            account.wrong += heard.wrong;
        }
        account.asked = asked;
        account.unanswered = u64::try_from(left(&self.shared.ack_due)).unwrap_or(u64::MAX);
        if matches!(self.shared.rates.repairs, Repairs::Unicast) {
            let due = self.shared.copy_due.iter().zip(&self.shared.ack_due);
            let broken =
                due.filter(|(copy, ack)| copy.load(Ordering::Relaxed) != 0 && ack.load(Ordering::Relaxed) == 0);
            account.without_copy = u64::try_from(broken.count()).unwrap_or(u64::MAX);
        }
        account
    }
}

/// Calls `step` as often per second as `rate` says, until the end. What a busy machine has held up is made up for in later turns.
fn pace(shared: &Shared, rate: u32, mut step: impl FnMut()) {
    let start = Instant::now();
    let mut done = 0.0;
    while shared.runs() {
        let due = start.elapsed().as_secs_f64() * f64::from(rate);
        for _ in 0..BURST {
            if done >= due {
                break;
            }
            step();
            done += 1.0;
        }
        thread::sleep(TURN);
    }
}

fn publish(shared: &Shared, publisher: &Publisher) {
    let mut seq_num = 0;
    pace(shared, shared.rates.frames, || {
        if seq_num == shared.rates.most {
            return;
        }
        seq_num += 1;
        publisher.send_unnoted(group(0), &bytes_of(seq_num)).expect("a frame leaves");
        shared.published.store(seq_num, Ordering::Relaxed);
    });
}

fn bytes_of(seq_num: u64) -> Vec<u8> {
    frame(FrameKey::new(FLOW, seq_num), PAYLOAD, u8::try_from(seq_num % 251).unwrap_or(0))
}

fn ask(shared: &Shared, socket: &UdpSocket) -> u64 {
    let Rates { nacks, frames, held, repairs, most } = shared.rates;
    // The listener stands for a host of its own: a daemon that starts takes no core from it between a NACK's time and the NACK.
    urgent(0, true).expect("root");
    let unsettled = (f64::from(frames) * SETTLES.as_secs_f64()).ceil();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number of frames")]
    let unsettled = unsettled as u64 + 1;
    let (mut random, mut asked) = (SmallRng::seed_from_u64(7), 0);
    while shared.runs() && shared.published.load(Ordering::Relaxed) < held {
        thread::sleep(TURN);
    }
    // What was published first may have come before the daemon had joined.
    thread::sleep(SETTLES);
    pace(shared, nacks, || {
        let published = shared.published.load(Ordering::Relaxed);
        let unsettled = if published == most { 0 } else { unsettled };
        let newest = published - unsettled;
        let seq_num = random.random_range(newest.saturating_sub(held - unsettled).max(1)..=newest);
        let slot = Shared::slot(seq_num);
        if shared.ack_due[slot].load(Ordering::Relaxed) != 0 || shared.copy_due[slot].load(Ordering::Relaxed) != 0 {
            return;
        }
        shared.ack_due[slot].store(unix_ns(), Ordering::Relaxed);
        shared.copy_due[slot].store(u64::from(matches!(repairs, Repairs::Unicast)), Ordering::Relaxed);
        socket.send_to(&nack(FrameKey::new(FLOW, seq_num)), shared.to).expect("a NACK leaves");
        asked += 1;
    });
    asked
}

fn listen(shared: &Shared, socket: &UdpSocket) -> Account {
    let mut account = Account::default();
    let mut ended: Option<Instant> = None;
    let mut buffer = [0; 2048];
    let mut promised = VecDeque::new();
    while ended.is_none_or(|ended| ended.elapsed() < ANSWERED_WITHIN) {
        if ended.is_none() && !shared.runs() {
            ended = Some(Instant::now());
        }
        if let Ok((length, at_ns)) = receive(socket, &mut buffer) {
            promised.extend(judge(shared, &buffer[..length], at_ns, &mut account));
        }
        if let Repairs::Multicast(hold_down) = shared.rates.repairs {
            account.without_copy += broken(shared, hold_down, &mut promised);
        }
    }
    account
}

/// How many of these ACKs, a slot and a time each, promised a repair that neither came after them nor within the hold-down
/// before. Those that are still young are left.
fn broken(shared: &Shared, hold_down: Duration, promised: &mut VecDeque<(usize, u64)>) -> u64 {
    let nanoseconds = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let mut broken = 0;
    while let Some((slot, at_ns)) = promised.front().copied() {
        if unix_ns() < at_ns + nanoseconds(SETTLES * 2) {
            break;
        }
        promised.pop_front();
        let since = at_ns.saturating_sub(nanoseconds(hold_down + SETTLES));
        broken += u64::from(shared.repaired[slot].load(Ordering::Relaxed) < since);
    }
    broken
}

/// Takes times of arrival, and keeps what comes meanwhile.
fn hearing(socket: UdpSocket) -> UdpSocket {
    setsockopt(&socket, RcvBufForce, &BUFFER).expect("root");
    setsockopt(&socket, ReceiveTimestampns, &true).expect("times of arrival");
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
    socket
}

/// A socket that hears the repairs of the flow.
fn joined(host: &Host) -> UdpSocket {
    let socket = host.ns.enter(|| UdpSocket::bind(SocketAddrV6::new(group(0), DATA_PORT, 0, host.ifindex)));
    let socket = socket.expect("a socket");
    socket.join_multicast_v6(&group(0), host.ifindex).expect("a member");
    socket
}

/// Counts multicast repairs until the end. What this host publishes is looped back to it too: it leaves by another port.
fn hear_repairs(shared: &Shared, socket: &UdpSocket) -> Account {
    let Repairs::Multicast(hold_down) = shared.rates.repairs else { return Account::default() };
    // A repair may have waited longer on its way than the one after it.
    let hold_down = u64::try_from(hold_down.mul_f64(0.9).as_nanos()).unwrap_or(u64::MAX);
    let mut account = Account::default();
    let mut buffer = [0; 2048];
    let mut ended: Option<Instant> = None;
    while ended.is_none_or(|ended| ended.elapsed() < ANSWERED_WITHIN) {
        if ended.is_none() && !shared.runs() {
            ended = Some(Instant::now());
        }
        let Ok((length, at_ns, from)) = receive_from(socket, &mut buffer) else { continue };
        if from != Some(*shared.to.ip()) {
            continue;
        }
        let bytes = &buffer[..length];
        let seq_num = bytes.get(48..56).and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)));
        match seq_num {
            Some(seq_num) if bytes == bytes_of(seq_num) => {
                account.copies += 1;
                let before = shared.repaired[Shared::slot(seq_num)].swap(at_ns, Ordering::Relaxed);
                account.repeated += u64::from(before != 0 && at_ns < before + hold_down);
            }
            _ => account.wrong += 1,
        }
    }
    account
}

/// Enters a datagram in the account; the slot and the time of an ACK.
fn judge(shared: &Shared, bytes: &[u8], at_ns: u64, account: &mut Account) -> Option<(usize, u64)> {
    let number = |from: usize| -> Option<u64> { Some(u64::from_be_bytes(bytes.get(from..from + 8)?.try_into().ok()?)) };
    match (bytes.len(), bytes.get(6)) {
        (16, Some(0x12)) => {
            let slot = number(8).map(Shared::slot);
            let due = slot.map_or(0, |slot| shared.ack_due[slot].swap(0, Ordering::Relaxed));
            account.acked += 1;
            if due == 0 {
                account.wrong += 1;
            }
            let wait = if due == 0 { 0 } else { at_ns.saturating_sub(due) };
            account.longest_wait = account.longest_wait.max(Duration::from_nanos(wait));
            return slot.map(|slot| (slot, at_ns));
        }
        (16, Some(0x11)) => account.missed += 1,
        (16, Some(0x13)) => account.throttled += 1,
        _ => match number(48) {
            Some(seq_num) if bytes == bytes_of(seq_num) => {
                account.copies += 1;
                shared.copy_due[Shared::slot(seq_num)].store(0, Ordering::Relaxed);
            }
            _ => account.wrong += 1,
        },
    }
    None
}

/// One datagram, and when the kernel received it, nanoseconds of Unix time.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, u64)> {
    receive_from(socket, buffer).map(|(length, at_ns, _)| (length, at_ns))
}

/// As [`receive`], and the address that it came from.
fn receive_from(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, u64, Option<Ipv6Addr>)> {
    let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty())?;
    let at = message.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
        _ => None,
    });
    let at = at.unwrap_or_default();
    let at_ns = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
    Ok((message.bytes, at_ns, message.address.map(|from| from.ip())))
}

fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
