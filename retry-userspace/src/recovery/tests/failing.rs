//! What is given up, when, and what is left of it.

use super::*;
use crate::acl::testing::deny;

fn three_attempts(proxy: Proxy) -> Proxy {
    let retry = RetrySettings { policy: RetryPolicy::Exponential, attempts: 3, ..proxy.retry };
    Proxy { retry, ..proxy }
}

/// An address of this host where no socket listens.
async fn closed_port() -> SocketAddr {
    Upstream::open().await.address
}

#[tokio::test]
async fn a_miss_of_everybody_stands() {
    let ([first, second], addresses) = upstreams().await;
    let mut rig = Rig::start(three_attempts(settings(&addresses)));
    rig.ask(1);
    first.miss(&first.nack().await).await;
    second.miss(&second.nack().await).await;
    rig.counts(Counter::ProxyFailedMiss, 1).await;
    assert_eq!(rig.count(Counter::ProxyNacks), 2, "never tried again");
    until("the claim is given back", || *rig.claims.released.lock().expect("no panic") == [job(1).key]).await;
    // Asked for again, it is looked for again.
    until("the job is over", || !rig.recovery.shared.flight().is_under_way(&job(1).key)).await;
    rig.ask(1);
    first.send_frame(&first.nack().await).await;
    assert_eq!(rig.recovered().await, 1);
}

#[tokio::test]
async fn silence_is_tried_again() {
    let ([upstream], addresses) = upstreams().await;
    let rig = Rig::start(three_attempts(Proxy { timeout: Duration::from_millis(20), ..settings(&addresses) }));
    rig.ask(1);
    for _ in 0..3 {
        upstream.nack().await;
    }
    rig.counts(Counter::ProxyFailedTimeout, 1).await;
    assert_eq!(rig.count(Counter::ProxyNacks), 3);
    assert!(!rig.recovery.upstreams()[0].healthy, "three unanswered in a row");
    until("the claim is given back", || rig.claims.released.lock().expect("no panic").len() == 1).await;
}

#[tokio::test]
async fn icmp_goes_to_the_next_at_once_and_three_errors_are_enough() {
    let closed = closed_port().await;
    let other = Upstream::open().await;
    let mut rig = Rig::start(settings(&[closed, other.address]));
    for seq_num in 1..=3 {
        rig.ask(seq_num);
        other.send_frame(&other.nack().await).await;
        assert_eq!(rig.recovered().await, seq_num);
    }
    let healthy = |rig: &Rig| rig.recovery.upstreams().iter().map(|one| one.healthy).collect::<Vec<_>>();
    assert_eq!(healthy(&rig), [false, true]);
    // From now on the other is asked first.
    let requests = rig.count(Counter::ProxyNacks);
    rig.ask(4);
    other.send_frame(&other.nack().await).await;
    assert_eq!(rig.recovered().await, 4);
    assert_eq!(rig.count(Counter::ProxyNacks), requests + 1);
}

#[tokio::test]
async fn no_upstream_can_be_reached() {
    let v4 = Upstream::at("127.0.0.1:0").await.address;
    let rig = Rig::start(settings(&[closed_port().await, v4]));
    rig.ask(1);
    rig.counts(Counter::ProxyFailedUnreachable, 1).await;
}

#[tokio::test]
async fn a_dead_upstream_makes_no_miss_uncertain() {
    let closed = closed_port().await;
    let other = Upstream::open().await;
    let rig = Rig::start(settings(&[closed, other.address]));
    until("both are known", || rig.recovery.upstreams().len() == 2).await;
    for _ in 0..3 {
        rig.recovery.shared.upstreams().unreachable(closed, monotonic_ns());
    }
    rig.ask(1);
    other.miss(&other.nack().await).await;
    rig.counts(Counter::ProxyFailedMiss, 1).await;
}

#[tokio::test]
async fn what_is_not_the_frame_is_not_taken() {
    let ([upstream], addresses) = upstreams().await;
    let stranger = Upstream::open().await;
    let mut rig = Rig::start(settings(&addresses));
    rig.ask(1);
    let got = upstream.nack().await;
    let mut forged = frame_of(1);
    forged.truncate(200);
    // Cut short, too short, of no frame asked for, of another frame, from another host.
    upstream.send(&got, &forged).await;
    upstream.send(&got, b"?").await;
    upstream.send(&got, &[]).await;
    upstream.send(&got, &frame_of(2)).await;
    stranger.send(&got, &frame_of(1)).await;
    stranger.send(&got, &Answer::Miss.to_bytes()).await;
    rig.counts(Counter::ProxyBadDatagrams, 3).await;
    assert!(rig.frames.try_recv().is_err());
    upstream.send_frame(&got).await;
    assert_eq!(rig.recovered().await, 1);
    assert_eq!(rig.count(Counter::ProxyRecovered), 1);
}

#[tokio::test]
async fn an_upstream_that_is_refused_is_not_believed() {
    let ([upstream], addresses) = upstreams().await;
    let mut rig = Rig::start(settings(&addresses));
    rig.ask(1);
    let got = upstream.nack().await;
    deny(&rig.acl, &[Ipv6Addr::LOCALHOST]);
    upstream.send_frame(&got).await;
    upstream.miss(&got).await;
    rig.counts(Counter::UpstreamDenied, 2).await;
    assert!(rig.frames.try_recv().is_err());
    deny(&rig.acl, &[]);
    upstream.send_frame(&got).await;
    assert_eq!(rig.recovered().await, 1);
}

#[tokio::test]
async fn a_cancellation_ends_it_at_once() {
    let ([upstream], addresses) = upstreams().await;
    let mut rig = Rig::start(Proxy { workers: 1, ..settings(&addresses) });
    let at_a_time = u64::try_from(jobs::AT_A_TIME).expect("few");
    for seq_num in 1..=at_a_time {
        rig.ask(seq_num);
        upstream.nack().await;
    }
    let waits = at_a_time + 1;
    rig.ask(waits);
    rig.cancel.cancel();
    until("the claims are given back", || rig.claims.released.lock().expect("no panic").len() == jobs::AT_A_TIME).await;
    let is_under_way = |seq_num| rig.recovery.shared.flight().is_under_way(&job(seq_num).key);
    until("no job is left", || !is_under_way(1) && !is_under_way(waits)).await;
    let failed = Counter::ALL.iter().filter(|counter| counter.series().name == "bre_proxy_failed_total");
    assert_eq!(failed.map(|counter| rig.count(*counter)).sum::<u64>(), 0);
    assert!(rig.frames.try_recv().is_err());
    // What comes now has no receiver, and is no panic.
    rig.ask(waits + 1);
    assert!(upstream.is_quiet());
}
