//! Recovery over real sockets. The upstream endpoints are scripts that stand in for other hosts: each test says what they
//! answer, and when.

mod asking;
mod failing;
mod learning;
mod sharing;

use std::net::SocketAddr;
use std::sync::Mutex as StdMutex;
use std::time::Duration;

use retry_common::wire::answer::{AckFlags, Answer};
use retry_common::wire::frame::{Head, Version};
use retry_common::wire::nack::Nack;
use tokio::net::UdpSocket;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::timeout;

use super::*;
use crate::acl::Acl;
use crate::acl::testing::all_admitted;
use crate::net::testing::SOON;
use crate::settings::{HostPort, ProxySelect, Retry as RetrySettings, RetryPolicy};

/// Longer than any test: what ends earlier did not end for lack of time.
const HOUR: Duration = Duration::from_secs(3600);

/// One attempt, four workers, and all the time in the world.
fn settings(upstreams: &[SocketAddr]) -> Proxy {
    let named = upstreams.iter().map(|one| HostPort { host: one.ip().to_string(), port: one.port() });
    Proxy {
        enabled: true,
        upstreams: named.collect(),
        discover: false,
        select: ProxySelect::Order,
        state_dir: None,
        timeout: HOUR,
        max_endpoints: 0,
        dedup_window: HOUR,
        workers: 4,
        queue: 1024,
        retry: RetrySettings {
            policy: RetryPolicy::None,
            attempts: 1,
            delay: Duration::from_millis(1),
            factor: 1.0,
            max_delay: Duration::from_millis(1),
            jitter: false,
            breaker: 0,
            breaker_open: HOUR,
        },
    }
}

/// What was claimed and given back.
#[derive(Default)]
struct Ledger {
    refuses: bool,
    claimed: StdMutex<Vec<FrameKey>>,
    released: StdMutex<Vec<FrameKey>>,
}

impl Claims for Ledger {
    fn claim<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, bool> {
        self.claimed.lock().expect("no panic").push(job.key);
        Box::pin(async { !self.refuses })
    }

    fn release<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, ()> {
        self.released.lock().expect("no panic").push(job.key);
        Box::pin(async {})
    }
}

/// A recovery at work.
struct Rig {
    acl: Arc<Acl>,
    recovery: Recovery,
    frames: UnboundedReceiver<Recovered>,
    counters: Arc<UserCounters>,
    claims: Arc<Ledger>,
    cancel: CancellationToken,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Rig {
    fn start(proxy: Proxy) -> Self {
        Self::with(proxy, Ledger::default(), Arc::new(Vec::new))
    }

    fn with(proxy: Proxy, claims: Ledger, discover: Discover) -> Self {
        // Of these flows all has been heard: no number is ahead.
        let tails = Tails::new(1);
        (0..100).for_each(|flow| tails.stored(&FrameKey::new(flow, u64::MAX), u32::MAX, monotonic_ns()));
        tails.stored(&FrameKey::new(FLOW, u64::MAX), u32::MAX, monotonic_ns());
        Self::knowing(proxy, claims, discover, tails)
    }

    fn knowing(proxy: Proxy, claims: Ledger, discover: Discover, tails: Tails) -> Self {
        let (counters, claims) = (Arc::new(UserCounters::default()), Arc::new(claims));
        let (acl, cancel) = (all_admitted(), CancellationToken::new());
        let (sender, frames) = mpsc::unbounded_channel();
        let recovery = Recovery::start(
            Config { proxy, source: Ipv6Addr::UNSPECIFIED, unicast: true },
            (Arc::clone(&counters), Arc::default(), Arc::clone(&acl)),
            Arc::clone(&claims) as Arc<dyn Claims>,
            discover,
            Arc::new(tails),
            Arc::new(move |recovered| drop(sender.send(recovered))),
            cancel.clone(),
        )
        .expect("sockets");
        Self { recovery, acl, frames, counters, claims, cancel }
    }

    fn ask(&self, seq_num: u64) {
        self.recovery.submit(job(seq_num));
    }

    /// The next frame that was recovered: its number.
    async fn recovered(&mut self) -> u64 {
        self.recovered_for().await.0
    }

    /// The next frame that was recovered: its number, and the listeners that get a copy.
    async fn recovered_for(&mut self) -> (u64, Vec<SocketAddrV6>) {
        let recovered = timeout(SOON, self.frames.recv()).await.expect("in time").expect("open");
        let Recovered { key, askers, frame } = recovered;
        assert_eq!(frame, frame_of(key.seq_num()), "byte for byte");
        (key.seq_num(), askers)
    }

    /// Waits until a counter has that value.
    async fn counts(&self, counter: Counter, expected: u64) {
        until(&format!("{counter:?} = {expected}"), || self.count(counter) == expected).await;
    }

    fn count(&self, counter: Counter) -> u64 {
        self.counters.snapshot().get(counter)
    }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(timeout(SOON, waiting).await.is_ok(), "never: {what}");
}

const FLOW: u64 = 0x1122_3344_5566_7788;

fn job(seq_num: u64) -> Job {
    Job { key: FrameKey::new(FLOW, seq_num), asker: "[fd10::77]:4711".parse().expect("an address") }
}

/// A transaction whose bytes tell its number.
fn frame_of(seq_num: u64) -> Vec<u8> {
    let head = Head {
        proto: retry_common::wire::PROTO_VER,
        version: Version::Transaction,
        byte7: 0,
        ident: [7; 32],
        key: FrameKey::new(FLOW, seq_num),
        scope: [0; 32],
        header_len: 0,
        payload_len: 0,
        fragment: None,
        bundle: None,
    };
    let mut bytes = [0; 512];
    let length = head.write_frame(&seq_num.to_be_bytes().repeat(30), &mut bytes).expect("it fits");
    bytes[..length].to_vec()
}

/// An upstream endpoint that does what a test tells it.
struct Upstream {
    socket: UdpSocket,
    address: SocketAddr,
}

/// A NACK that an upstream got.
#[derive(Clone, Copy, Debug)]
struct Got {
    nack: Nack,
    from: SocketAddr,
}

impl Got {
    fn seq_num(&self) -> u64 {
        self.nack.key.seq_num()
    }
}

impl Upstream {
    async fn open() -> Self {
        Self::at("[::1]:0").await
    }

    async fn at(address: &str) -> Self {
        let socket = UdpSocket::bind(address).await.expect("bound");
        let address = socket.local_addr().expect("bound");
        Self { socket, address }
    }

    async fn nack(&self) -> Got {
        let mut bytes = [0; 2048];
        let (length, from) =
            timeout(SOON, self.socket.recv_from(&mut bytes)).await.expect("in time").expect("no error");
        let nack = Nack::parse(&bytes[..length]).expect("a NACK");
        assert!(nack.proxied(), "an upstream must not ask its own upstream");
        Got { nack, from }
    }

    /// No NACK has come.
    fn is_quiet(&self) -> bool {
        self.socket.try_recv_from(&mut [0; 64]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    async fn send(&self, got: &Got, bytes: &[u8]) {
        self.socket.send_to(bytes, got.from).await.expect("sent");
    }

    async fn send_frame(&self, got: &Got) {
        self.send(got, &frame_of(got.seq_num())).await;
    }

    async fn ack(&self, got: &Got) {
        let ack = Answer::Ack { flags: AckFlags::UNICAST, seq_num: got.seq_num() };
        self.send(got, &ack.to_bytes()).await;
    }

    async fn miss(&self, got: &Got) {
        self.send(got, &Answer::Miss.to_bytes()).await;
    }

    async fn throttle(&self, got: &Got, bucket: u8) {
        let throttled = Answer::Throttled { bucket, seq_num: got.seq_num() };
        self.send(got, &throttled.to_bytes()).await;
    }
}

async fn upstreams<const N: usize>() -> ([Upstream; N], Vec<SocketAddr>) {
    let mut all = Vec::new();
    for _ in 0..N {
        all.push(Upstream::open().await);
    }
    let addresses = all.iter().map(|one| one.address).collect();
    (all.try_into().unwrap_or_else(|_| unreachable!("N were opened")), addresses)
}
