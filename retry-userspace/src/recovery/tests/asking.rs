//! Who is asked, in which order, and what ends it.

use std::time::Instant;

use super::*;

#[tokio::test]
async fn a_frame_comes_back() {
    let ([upstream], addresses) = upstreams().await;
    let mut rig = Rig::start(settings(&addresses));
    rig.ask(5);
    let got = upstream.nack().await;
    assert_eq!(got.nack.key, job(5).key);
    upstream.ack(&got).await;
    upstream.send_frame(&got).await;
    assert_eq!(rig.recovered().await, 5);
    assert_eq!((rig.count(Counter::ProxyNacks), rig.count(Counter::ProxyRecovered)), (1, 1));
    assert_eq!(*rig.claims.claimed.lock().expect("no panic"), [job(5).key]);
    assert!(rig.claims.released.lock().expect("no panic").is_empty(), "others need not recover it too");
    let status = rig.recovery.upstreams();
    assert_eq!((status[0].address, status[0].pinned, status[0].healthy), (upstream.address, true, true));
    assert!(status[0].rtt.is_some() && status[0].last_answer.is_some());
}

#[tokio::test]
async fn a_miss_goes_to_the_next_at_once() {
    let ([first, second, third], addresses) = upstreams().await;
    let mut rig = Rig::start(settings(&addresses));
    rig.ask(1);
    first.miss(&first.nack().await).await;
    second.miss(&second.nack().await).await;
    third.send_frame(&third.nack().await).await;
    assert_eq!(rig.recovered().await, 1);
    assert_eq!((rig.count(Counter::ProxyRequests), rig.count(Counter::ProxyNacks)), (1, 3), "one job, three NACKs");
    assert!(first.is_quiet() && second.is_quiet());
}

#[tokio::test]
async fn silence_goes_to_the_next_after_its_time_and_the_late_frame_is_taken() {
    let ([silent, other], addresses) = upstreams().await;
    let mut rig = Rig::start(Proxy { timeout: Duration::from_millis(300), ..settings(&addresses) });
    rig.ask(1);
    let late = silent.nack().await;
    // Asked because the first one's time was over.
    let _waiting = other.nack().await;
    silent.send_frame(&late).await;
    assert_eq!(rig.recovered().await, 1);
}

#[tokio::test]
async fn a_frame_that_comes_between_two_attempts_is_taken_at_once() {
    let ([upstream], addresses) = upstreams().await;
    let mut proxy = settings(&addresses);
    proxy.timeout = Duration::from_millis(100);
    proxy.retry =
        RetrySettings { policy: RetryPolicy::Exponential, attempts: 2, delay: HOUR, max_delay: HOUR, ..proxy.retry };
    let mut rig = Rig::start(proxy);
    rig.ask(1);
    let got = upstream.nack().await;
    // Its silence is noticed when the attempt is over.
    until("the attempt is over", || rig.recovery.shared.flight().is_given_up(&job(1).key)).await;
    upstream.send_frame(&got).await;
    assert_eq!(rig.recovered().await, 1);
}

#[tokio::test]
async fn as_many_as_the_operator_allows() {
    let ([first, second, third], addresses) = upstreams().await;
    let rig = Rig::start(Proxy { max_endpoints: 2, ..settings(&addresses) });
    rig.ask(1);
    first.miss(&first.nack().await).await;
    second.miss(&second.nack().await).await;
    rig.counts(Counter::ProxyFailedMiss, 1).await;
    assert!(third.is_quiet());
}

#[tokio::test]
async fn an_upstream_by_ipv4() {
    let upstream = Upstream::at("127.0.0.1:0").await;
    let mut rig = Rig::start(settings(&[upstream.address]));
    rig.ask(1);
    upstream.send_frame(&upstream.nack().await).await;
    assert_eq!(rig.recovered().await, 1);
}

/// Both are known, and were asked just now: neither is sent a copy to measure it.
async fn all_known(rig: &Rig, addresses: &[SocketAddr]) {
    until("all are known", || rig.recovery.upstreams().len() == addresses.len()).await;
    addresses.iter().for_each(|one| rig.recovery.shared.upstreams().sent(*one, monotonic_ns()));
}

#[tokio::test]
async fn the_flow_decides_who_is_asked() {
    let ([a, b], addresses) = upstreams().await;
    let rig = Rig::start(Proxy { select: ProxySelect::Hash, ..settings(&addresses) });
    all_known(&rig, &addresses).await;
    let order = |flow| rig.recovery.shared.upstreams().order(ProxySelect::Hash, flow, monotonic_ns()).ask;
    for (first, second) in [(&a, &b), (&b, &a)] {
        let flow = (0..).find(|flow| order(*flow)[0].address == first.address).expect("each has its flows");
        let key = FrameKey::new(flow, 1);
        rig.recovery.submit(Job { key, ..job(1) });
        let got = first.nack().await;
        assert_eq!(got.nack.key, key);
        assert!(second.is_quiet());
    }
}

#[tokio::test]
async fn the_fastest_is_asked_first() {
    let ([slow, fast], addresses) = upstreams().await;
    let mut rig = Rig::start(Proxy { select: ProxySelect::Rtt, ..settings(&addresses) });
    all_known(&rig, &addresses).await;
    let measure =
        |address, ms: u64| rig.recovery.shared.upstreams().answered(address, Some(ms * 1_000_000), monotonic_ns());
    measure(slow.address, 50);
    measure(fast.address, 1);
    rig.ask(1);
    fast.send_frame(&fast.nack().await).await;
    assert_eq!(rig.recovered().await, 1);
    assert!(slow.is_quiet());
}

#[tokio::test]
async fn who_throttles_is_left_alone() {
    let ([busy, other], addresses) = upstreams().await;
    let mut rig = Rig::start(settings(&addresses));
    rig.ask(1);
    busy.throttle(&busy.nack().await, 15).await;
    other.send_frame(&other.nack().await).await;
    assert_eq!(rig.recovered().await, 1);
    rig.ask(2);
    other.send_frame(&other.nack().await).await;
    assert_eq!(rig.recovered().await, 2);
    assert!(busy.is_quiet());
    // It may have what the other has not: it is asked when its time has come.
    rig.ask(3);
    other.miss(&other.nack().await).await;
    busy.send_frame(&busy.nack().await).await;
    assert_eq!(rig.recovered().await, 3);
    assert_eq!(failures(&rig), 0);
}

fn failures(rig: &Rig) -> u64 {
    let failed = Counter::ALL.iter().filter(|counter| counter.series().name == "bre_proxy_failed_total");
    failed.map(|counter| rig.count(*counter)).sum()
}

#[tokio::test]
async fn a_throttled_is_waited_for_and_asked_again() {
    let ([busy], addresses) = upstreams().await;
    let mut rig = Rig::start(settings(&addresses));
    rig.ask(1);
    let mut got = busy.nack().await;
    // One attempt, whatever the upstream says how often.
    for bucket in [1, 2] {
        let said = Instant::now();
        busy.throttle(&got, bucket).await;
        got = busy.nack().await;
        assert!(said.elapsed() >= jobs::hold(bucket), "asked again after {:?}", said.elapsed());
    }
    busy.send_frame(&got).await;
    assert_eq!(rig.recovered().await, 1);
    assert_eq!((failures(&rig), rig.count(Counter::ProxyNacks)), (0, 3));
}

#[tokio::test]
async fn other_upstreams_are_asked_before_a_throttled_is_waited_for() {
    let ([busy, other], addresses) = upstreams().await;
    let mut rig = Rig::start(settings(&addresses));
    rig.ask(1);
    let said = Instant::now();
    busy.throttle(&busy.nack().await, 2).await;
    let got = other.nack().await;
    assert!(said.elapsed() < jobs::hold(2));
    other.miss(&got).await;
    // When it says MISS too, that stands.
    busy.miss(&busy.nack().await).await;
    rig.counts(Counter::ProxyFailedMiss, 1).await;
    assert!(said.elapsed() >= jobs::hold(2));
    // A frame that comes meanwhile ends the wait.
    rig.ask(2);
    let late = busy.nack().await;
    busy.throttle(&late, 4).await;
    other.miss(&other.nack().await).await;
    let said = Instant::now();
    busy.send_frame(&late).await;
    assert_eq!(rig.recovered().await, 2);
    assert!(said.elapsed() < jobs::hold(4));
}

#[tokio::test]
async fn an_upstream_that_always_throttles_is_given_up() {
    let ([busy], addresses) = upstreams().await;
    let rig = Rig::start(Proxy { dedup_window: Duration::from_secs(2), ..settings(&addresses) });
    let began = Instant::now();
    rig.ask(1);
    // 0.5 s each: the claim is over after 2 s.
    while rig.count(Counter::ProxyFailedThrottled) == 0 {
        if let Ok(got) = timeout(Duration::from_millis(100), busy.nack()).await {
            busy.throttle(&got, 2).await;
        }
    }
    let (took, asked) = (began.elapsed(), rig.count(Counter::ProxyNacks));
    assert!(took > Duration::from_secs(1) && took < Duration::from_secs(4), "{took:?}");
    assert!((3..=4).contains(&asked), "{asked} NACKs");
    assert_eq!(failures(&rig), 1);
}

#[tokio::test]
async fn jobs_that_hold_keep_no_other_waiting() {
    let ([busy, other], addresses) = upstreams().await;
    let mut rig = Rig::start(Proxy { workers: 1, ..settings(&addresses) });
    let at_a_time = u64::try_from(jobs::AT_A_TIME).expect("few");
    rig.ask(1);
    busy.throttle(&busy.nack().await, 15).await;
    other.miss(&other.nack().await).await;
    for seq_num in 2..=at_a_time {
        rig.ask(seq_num);
        other.miss(&other.nack().await).await;
    }
    let next = at_a_time + 1;
    rig.ask(next);
    other.send_frame(&other.nack().await).await;
    assert_eq!(rig.recovered().await, next);
    assert!(busy.is_quiet());
    assert_eq!(failures(&rig), 0, "the others hold");
}

#[test]
fn how_long_a_throttled_holds() {
    let ms: Vec<u128> = [2, 3, 4, 15].into_iter().map(|bucket| jobs::hold(bucket).as_millis()).collect();
    assert_eq!(ms, [500, 1_000, 2_000, 4_000]);
}
