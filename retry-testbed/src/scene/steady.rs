//! Steady traffic beside a daemon that comes and goes: a publisher, a listener that asks for frames that are held, and the
//! account of every answer.

use std::{
    io::{self, IoSliceMut},
    net::{SocketAddrV6, UdpSocket},
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
    net::fabric::{Host, group},
    peers::{answer::nack, journal::Journal, publish::Publisher},
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
    /// ACKs that promise a copy that did not come.
    pub without_copy: u64,
    /// Longest time from a NACK to its ACK, as the kernel received it.
    pub longest_wait: Duration,
}

impl Account {
    /// True when each NACK was answered by an ACK and the right frame.
    #[must_use]
    pub const fn is_gapless(&self) -> bool {
        self.missed + self.throttled + self.wrong + self.unanswered + self.without_copy == 0
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
    /// Not 0 while its copy has not come.
    copy_due: Vec<AtomicU64>,
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
        });
        let publisher = Publisher::open(&host.ns, Arc::new(Journal::new())).expect("a publisher");
        let socket = host.ns.enter(|| UdpSocket::bind(SocketAddrV6::new(host.addr, 0, 0, 0))).expect("a socket");
        setsockopt(&socket, RcvBufForce, &BUFFER).expect("root");
        setsockopt(&socket, ReceiveTimestampns, &true).expect("times of arrival");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        let socket = Arc::new(socket);
        let of = |work: fn(&Shared, &UdpSocket) -> u64| {
            let (shared, socket) = (Arc::clone(&shared), Arc::clone(&socket));
            thread::spawn(move || work(&shared, &socket))
        };
        let asker = of(ask);
        let (sharing, heard) = (Arc::clone(&shared), Arc::clone(&socket));
        let listener = thread::spawn(move || listen(&sharing, &heard));
        let sharing = Arc::clone(&shared);
        let publisher = thread::spawn(move || publish(&sharing, &publisher));
        let steady = Self { shared, publisher, asker, listener };
        while steady.shared.published.load(Ordering::Relaxed) < rates.held {
            thread::sleep(TURN);
        }
        steady
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
        account.asked = asked;
        account.unanswered = u64::try_from(left(&self.shared.ack_due)).unwrap_or(u64::MAX);
        account.without_copy = u64::try_from(left(&self.shared.copy_due)).unwrap_or(u64::MAX) - account.unanswered;
        account
    }
}

/// Calls `step` as often per second as `rate` says, until the end.
fn pace(shared: &Shared, rate: u32, mut step: impl FnMut()) {
    let start = Instant::now();
    let mut done = 0.0;
    while shared.runs() {
        let due = start.elapsed().as_secs_f64() * f64::from(rate);
        while done < due {
            step();
            done += 1.0;
        }
        thread::sleep(TURN);
    }
}

fn publish(shared: &Shared, publisher: &Publisher) {
    let mut seq_num = 0;
    pace(shared, shared.rates.frames, || {
        seq_num += 1;
        publisher.send(group(0), &bytes_of(seq_num)).expect("a frame leaves");
        shared.published.store(seq_num, Ordering::Relaxed);
    });
}

fn bytes_of(seq_num: u64) -> Vec<u8> {
    frame(FrameKey::new(FLOW, seq_num), PAYLOAD, u8::try_from(seq_num % 251).unwrap_or(0))
}

fn ask(shared: &Shared, socket: &UdpSocket) -> u64 {
    let Rates { nacks, frames, held } = shared.rates;
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
        let newest = shared.published.load(Ordering::Relaxed).saturating_sub(unsettled);
        let seq_num = random.random_range(newest.saturating_sub(held - unsettled).max(1)..=newest);
        let slot = Shared::slot(seq_num);
        if shared.ack_due[slot].load(Ordering::Relaxed) != 0 || shared.copy_due[slot].load(Ordering::Relaxed) != 0 {
            return;
        }
        shared.ack_due[slot].store(unix_ns(), Ordering::Relaxed);
        shared.copy_due[slot].store(1, Ordering::Relaxed);
        socket.send_to(&nack(FrameKey::new(FLOW, seq_num)), shared.to).expect("a NACK leaves");
        asked += 1;
    });
    asked
}

fn listen(shared: &Shared, socket: &UdpSocket) -> Account {
    let mut account = Account::default();
    let mut ended: Option<Instant> = None;
    let mut buffer = [0; 2048];
    while ended.is_none_or(|ended| ended.elapsed() < ANSWERED_WITHIN) {
        if ended.is_none() && !shared.runs() {
            ended = Some(Instant::now());
        }
        if let Ok((length, at_ns)) = receive(socket, &mut buffer) {
            judge(shared, &buffer[..length], at_ns, &mut account);
        }
    }
    account
}

fn judge(shared: &Shared, bytes: &[u8], at_ns: u64, account: &mut Account) {
    let number = |from: usize| -> Option<u64> { Some(u64::from_be_bytes(bytes.get(from..from + 8)?.try_into().ok()?)) };
    match (bytes.len(), bytes.get(6)) {
        (16, Some(0x12)) => {
            let due = number(8).map_or(0, |seq_num| shared.ack_due[Shared::slot(seq_num)].swap(0, Ordering::Relaxed));
            account.acked += 1;
            if due == 0 {
                account.wrong += 1;
            }
            let wait = if due == 0 { 0 } else { at_ns.saturating_sub(due) };
            account.longest_wait = account.longest_wait.max(Duration::from_nanos(wait));
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
}

/// One datagram, and when the kernel received it, nanoseconds of Unix time.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, u64)> {
    let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty())?;
    let at = message.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
        _ => None,
    });
    let at = at.unwrap_or_default();
    Ok((message.bytes, u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)))
}

fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
