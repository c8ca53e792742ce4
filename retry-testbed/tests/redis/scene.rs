//! What the tests have in common: hosts, a store on one of them, frames, waiting.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use retry_common::key::FrameKey;
use retry_testbed::net::fabric::{Fabric, Host};
use retry_userspace::parts::counters::UserCounters;
use retry_userspace::parts::settings::{Redis, RedisNode, Retry, RetryPolicy};
use retry_userspace::parts::store::{Claim, Config, Store};
use tokio_util::sync::CancellationToken;

/// Longest wait for what must come: a busy machine is not a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// `cache-op-timeout` of these tests.
pub(crate) const OP_TIMEOUT: Duration = Duration::from_millis(500);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);

/// One host for the store, and these for Redis.
pub(crate) fn fabric(redis: &[&str]) -> Fabric {
    let names: Vec<&str> = ["store"].iter().chain(redis).copied().collect();
    Fabric::bridged(&names, 1500).expect("a fabric")
}

pub(crate) fn host<'a>(fabric: &'a Fabric, name: &str) -> &'a Host {
    fabric.host(name).expect("a host")
}

/// Settings that reach these URLs.
pub(crate) fn redis(urls: &[&str]) -> Redis {
    Redis {
        nodes: urls.iter().map(|url| RedisNode { url: (*url).to_owned() }).collect(),
        dial_timeout: Duration::from_secs(2),
        op_timeout: OP_TIMEOUT,
        tls_ca: None,
        tls_client: None,
        retry: Retry {
            policy: RetryPolicy::Exponential,
            attempts: 3,
            delay: Duration::from_millis(20),
            factor: 2.0,
            max_delay: Duration::from_millis(200),
            jitter: true,
            breaker: 5,
            breaker_open: Duration::from_millis(300),
        },
    }
}

/// A store that keeps frames and takes claims, for the instance of this name.
pub(crate) fn config(redis: Redis, instance: &str) -> Config {
    Config {
        redis,
        instance: instance.to_owned(),
        keep_frames: true,
        announces: true,
        dedup_window: MINUTE,
        repeat_after: Duration::from_secs(2),
        recovery_window: MINUTE,
    }
}

/// A store, and what it counts.
pub(crate) struct Started {
    pub(crate) store: Store,
    pub(crate) counters: Arc<UserCounters>,
}

/// Starts a store that hears of repairs by `on_repair`.
pub(crate) fn start_with(config: Config, on_repair: impl Fn(FrameKey, Duration) + Send + Sync + 'static) -> Started {
    // Shown when a test fails.
    let _ = tracing_subscriber::fmt().with_test_writer().try_init();
    let counters = Arc::new(UserCounters::default());
    let store = Store::start(config, Arc::clone(&counters), on_repair, CancellationToken::new()).expect("a store");
    Started { store, counters }
}

/// Starts a store and waits until it is connected.
pub(crate) async fn connected(config: Config) -> Started {
    let started = start_with(config, |_, _| {});
    until("connected", || started.store.status().connected).await;
    started
}

/// One instance claims a frame's repair, and another learns how old the claim is: also one with another `dedup-window`.
pub(crate) async fn claims(redis: Redis, key: FrameKey) {
    const PAUSE: Duration = Duration::from_millis(300);
    let one = connected(config(redis.clone(), "one")).await;
    let mut other = config(redis, "other");
    (other.dedup_window, other.repeat_after) = (10 * MINUTE, MINUTE);
    let other = connected(other).await;
    let began = Instant::now();
    assert_eq!(one.store.claim_repair(&key).await, Ok(Claim::Ours));
    tokio::time::sleep(PAUSE).await;
    let claim = other.store.claim_repair(&key).await;
    let age = match claim {
        Ok(Claim::Others { age }) => Some(age),
        _ => None,
    };
    // Redis counts whole milliseconds, and looks at its clock now and then.
    let slack = Duration::from_millis(50);
    assert!(age.is_some_and(|age| age + slack >= PAUSE && age <= began.elapsed() + slack), "{key}: {claim:?}");
    assert_eq!(one.store.claim_repair(&key).await, Ok(Claim::Ours));
}

/// Runs the test's part that lives on the store's host.
pub(crate) fn on(host: &Host, work: impl Future<Output = ()> + Send) {
    host.ns.enter(|| {
        // Its threads are born in the namespace of the one that makes them.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(work);
    });
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The frame of a key, as far as the store cares.
pub(crate) fn bytes(key: FrameKey) -> Vec<u8> {
    key.to_bytes().repeat(20)
}

/// Writes a frame and waits until the store gives it back.
pub(crate) async fn keeps(started: &Started, key: FrameKey) {
    started.store.write(key, MINUTE, &bytes(key));
    let deadline = Instant::now() + PATIENCE;
    loop {
        match started.store.fetch(&key).await {
            Ok(Some(stored)) => {
                assert_eq!(stored.bytes, bytes(key));
                assert!(stored.life <= MINUTE && stored.life > Duration::from_secs(20), "{:?}", stored.life);
                return;
            }
            other => assert!(Instant::now() < deadline, "{key}: {other:?}, {:?}", started.store.status()),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
