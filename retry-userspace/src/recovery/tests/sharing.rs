//! Many jobs, one socket.

use std::collections::HashSet;

use super::*;

#[tokio::test]
async fn a_frame_is_recovered_once_at_a_time() {
    let ([upstream], addresses) = upstreams().await;
    let mut rig = Rig::start(Proxy { workers: 1, ..settings(&addresses) });
    for seq_num in [1, 2, 1, 2, 1] {
        rig.ask(seq_num);
    }
    assert_eq!(rig.count(Counter::ProxyInflightDedup), 3, "also those that wait for their turn");
    for seq_num in 1..=2 {
        upstream.send_frame(&upstream.nack().await).await;
        assert_eq!(rig.recovered().await, seq_num);
    }
    assert_eq!((rig.count(Counter::ProxyRequests), rig.count(Counter::ProxyNacks)), (2, 2));
}

#[tokio::test]
async fn each_listener_that_asks_meanwhile_has_its_copy() {
    let ([upstream], addresses) = upstreams().await;
    let mut rig = Rig::start(settings(&addresses));
    let listeners: Vec<SocketAddrV6> =
        (0..100).map(|port| SocketAddrV6::new(*job(1).asker.ip(), 5_000 + port, 0, 0)).collect();
    let ask = |asker| rig.recovery.submit(Job { asker, ..job(1) });
    ask(listeners[0]);
    let got = upstream.nack().await;
    // Those that ask twice get it once.
    listeners.iter().chain(&listeners[..10]).for_each(|asker| ask(*asker));
    assert_eq!(rig.count(Counter::ProxyInflightDedup), 110);
    assert_eq!(rig.count(Counter::ProxySkippedAskers), 100 - 64, "more than a job keeps in mind");
    upstream.send_frame(&got).await;
    assert_eq!(rig.recovered_for().await, (1, listeners[..64].to_vec()));
    // The next job begins with none of them.
    rig.recovery.submit(Job { asker: listeners[99], ..job(1) });
    upstream.send_frame(&upstream.nack().await).await;
    assert_eq!(rig.recovered_for().await, (1, vec![listeners[99]]));
}

#[tokio::test]
async fn a_tail_is_asked_for_again_only_when_no_upstream_has_denied_it() {
    let ([upstream], addresses) = upstreams().await;
    let proxy = Proxy { timeout: Duration::from_millis(50), ..settings(&addresses) };
    let tails = Tails::new(1);
    tails.stored(&FrameKey::new(FLOW, 4), 60_000, monotonic_ns());
    let rig = Rig::knowing(proxy, Ledger::default(), Arc::new(Vec::new), tails);
    let is_over = || !rig.recovery.shared.flight().is_under_way(&job(5).key);
    // Silence says nothing.
    for silence in 1..=2 {
        rig.ask(5);
        upstream.nack().await;
        rig.counts(Counter::ProxyFailedTimeout, silence).await;
        until("the job is over", is_over).await;
    }
    rig.ask(5);
    upstream.miss(&upstream.nack().await).await;
    rig.counts(Counter::ProxyFailedMiss, 1).await;
    until("the job is over", is_over).await;
    for skipped in 1..=3 {
        rig.ask(5);
        assert_eq!(rig.count(Counter::ProxySkippedAhead), skipped);
    }
    assert!(upstream.is_quiet());
    // What is not ahead is asked for each time.
    for missed in 2..=3 {
        rig.ask(4);
        upstream.miss(&upstream.nack().await).await;
        rig.counts(Counter::ProxyFailedMiss, missed).await;
        until("the job is over", || !rig.recovery.shared.flight().is_under_way(&job(4).key)).await;
    }
    assert_eq!((rig.count(Counter::ProxySkippedAhead), rig.count(Counter::ProxyNacks)), (3, 5));
}

/// Of a flow of which nothing was stored: what an upstream has may be followed by more that it has.
#[tokio::test]
async fn a_frame_that_an_upstream_had_leads_to_the_next_number() {
    let ([upstream], addresses) = upstreams().await;
    let mut rig = Rig::knowing(settings(&addresses), Ledger::default(), Arc::new(Vec::new), Tails::new(1));
    for seq_num in 5..=7 {
        rig.ask(seq_num);
        // Without its ACK, which may come later than the frame.
        upstream.send_frame(&upstream.nack().await).await;
        assert_eq!(rig.recovered().await, seq_num);
    }
    assert_eq!(rig.count(Counter::ProxySkippedAhead), 0);
}

#[tokio::test]
async fn more_than_the_queue_holds_is_dropped_and_counted() {
    let ([upstream], addresses) = upstreams().await;
    let mut rig = Rig::start(Proxy { workers: 1, queue: 2, ..settings(&addresses) });
    let at_a_time = u64::try_from(jobs::AT_A_TIME).expect("few");
    let mut under_way = Vec::new();
    for seq_num in 1..=at_a_time {
        rig.ask(seq_num);
        under_way.push(upstream.nack().await);
    }
    for seq_num in 1..=8 {
        rig.ask(at_a_time + seq_num);
    }
    rig.counts(Counter::ProxyQueueDropped, 6).await;
    assert!(upstream.is_quiet(), "those that wait are not asked for");
    for (seq_num, got) in (1..=2).zip(&under_way) {
        upstream.send_frame(got).await;
        assert_eq!(rig.recovered().await, seq_num);
        assert_eq!(upstream.nack().await.seq_num(), at_a_time + seq_num, "the one that waited");
    }
    upstream.send_frame(&under_way[2]).await;
    assert_eq!(rig.recovered().await, 3);
    // One that was dropped may come again.
    rig.ask(at_a_time + 8);
    upstream.send_frame(&upstream.nack().await).await;
    assert_eq!(rig.recovered().await, at_a_time + 8);
}

#[tokio::test]
async fn what_another_instance_recovers_is_left_to_it() {
    let ([upstream], addresses) = upstreams().await;
    let claims = Ledger { refuses: true, ..Ledger::default() };
    let rig = Rig::with(settings(&addresses), claims, Arc::new(Vec::new));
    rig.ask(1);
    rig.counts(Counter::ProxyInflightDedup, 1).await;
    assert!(upstream.is_quiet());
    assert!(rig.claims.released.lock().expect("no panic").is_empty(), "it is not ours to give back");
}

#[tokio::test]
async fn a_miss_of_one_job_costs_another_no_frame() {
    let ([first, second], addresses) = upstreams().await;
    let mut rig = Rig::start(Proxy { workers: 2, ..settings(&addresses) });
    rig.ask(1);
    let held = first.nack().await;
    rig.ask(2);
    let missed = first.nack().await;
    // Taken for the first job, which goes on, and is told by its frame that the MISS was not its own.
    first.miss(&missed).await;
    let asked = second.nack().await;
    assert_eq!(asked.seq_num(), 1);
    second.miss(&asked).await;
    first.send_frame(&held).await;
    assert_eq!(rig.recovered().await, 1);
    // And so the second job goes on.
    let asked = second.nack().await;
    assert_eq!(asked.seq_num(), 2);
    second.miss(&asked).await;
    rig.counts(Counter::ProxyFailedMiss, 1).await;
}

#[tokio::test]
async fn with_no_other_upstream_the_rest_of_its_time_is_waited_for() {
    let ([upstream], addresses) = upstreams().await;
    let mut rig = Rig::start(Proxy { workers: 2, ..settings(&addresses) });
    rig.ask(1);
    let held = upstream.nack().await;
    rig.ask(2);
    let missed = upstream.nack().await;
    upstream.miss(&missed).await;
    until("the MISS was heard", || rig.recovery.upstreams()[0].last_answer.is_some()).await;
    assert_eq!(rig.count(Counter::ProxyFailedMiss), 0, "it may be either's");
    upstream.send_frame(&held).await;
    assert_eq!(rig.recovered().await, 1);
    rig.counts(Counter::ProxyFailedMiss, 1).await;
}

#[tokio::test]
async fn hundreds_at_a_time_by_one_socket() {
    const MANY: u64 = 600;
    let ([upstream], addresses) = upstreams().await;
    let mut rig = Rig::start(Proxy { workers: 1_000, ..settings(&addresses) });
    (1..=MANY).for_each(|seq_num| rig.ask(seq_num));
    let mut all = Vec::new();
    for _ in 0..MANY {
        all.push(upstream.nack().await);
    }
    let sources: HashSet<SocketAddr> = all.iter().map(|got| got.from).collect();
    assert_eq!(sources.len(), 1, "one socket, however many jobs");
    // Answered in another order; every third frame is not there.
    let (missing, there): (Vec<&Got>, Vec<&Got>) = all.iter().rev().partition(|got| got.seq_num() % 3 == 0);
    let mut recovered = HashSet::new();
    for (at, got) in there.iter().enumerate() {
        if let Some(missed) = missing.get(at) {
            upstream.miss(missed).await;
        }
        upstream.send_frame(got).await;
        upstream.ack(got).await;
        recovered.insert(rig.recovered().await);
    }
    assert_eq!(recovered, (1..=MANY).filter(|seq_num| seq_num % 3 != 0).collect());
    rig.counts(Counter::ProxyFailedMiss, MANY / 3).await;
    assert_eq!(rig.count(Counter::ProxyRecovered), MANY - MANY / 3);
}

#[tokio::test]
async fn asking_for_a_frame_that_is_nowhere_delays_no_other() {
    const HONEST: u64 = 20;
    let ([silent, good], addresses) = upstreams().await;
    let patient = Duration::from_millis(300);
    let mut rig = Rig::start(Proxy { timeout: patient, ..settings(&addresses) });
    // The first upstream says nothing, the second has a few frames and says MISS of the rest.
    let good = tokio::spawn(async move {
        loop {
            let got = good.nack().await;
            if got.seq_num() <= HONEST { good.send_frame(&got).await } else { good.miss(&got).await }
        }
    });
    // A thousand per second from many askers, for longer than a job takes.
    let pause = Duration::from_millis(10);
    let mut flood = 1_000_000;
    let mut honest = 0;
    for round in 0..400_u64 {
        for _ in 0..10 {
            flood += 1;
            rig.recovery.submit(Job {
                asker: SocketAddrV6::new(Ipv6Addr::from_bits(u128::from(flood)), 9, 0, 0),
                ..job(flood)
            });
        }
        if round % 20 == 19 {
            honest += 1;
            rig.ask(honest);
        }
        tokio::time::sleep(pause).await;
    }
    assert_eq!(honest, HONEST);
    let mut recovered = HashSet::new();
    while let Ok(Some(one)) = timeout(Duration::from_secs(2), rig.frames.recv()).await {
        recovered.insert(one.key.seq_num());
    }
    assert!(recovered.len() >= 19, "{recovered:?}, {:?}", rig.counters.snapshot());
    let asked = rig.count(Counter::ProxyNacks);
    // One NACK upstream for each that came, and a few to find out whether the silent one is back.
    assert!(asked <= (4_000 + HONEST) * 3 / 2, "{asked} NACKs upstream");
    good.abort();
    drop(silent);
}
