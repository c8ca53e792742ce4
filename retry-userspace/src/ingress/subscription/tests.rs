use std::fs;
use std::sync::mpsc;
use std::time::Duration;

use retry_common::counter::Counter;
use retry_common::key::FrameKey;

use super::*;
use crate::clock::monotonic_ns;
use crate::ingress::fill::Fill;
use crate::ingress::testing::{
    PORT, Publisher, add_sources, count, drain, eventually, fill, fill_and_log, frame, group, source,
};
use crate::net::testing::{Pair, in_namespace, ip};
use crate::stop_flag::StopFlag;

fn group_set(pair: &Pair) -> GroupSet {
    GroupSet {
        delivery: Delivery::Single,
        interface: pair.far.index,
        port: PORT,
        any_source: Vec::new(),
        by_source: (0..64).map(group).collect(),
    }
}

fn set(last: impl IntoIterator<Item = u16>) -> BTreeSet<Ipv6Addr> {
    last.into_iter().map(source).collect()
}

/// Ends a thread's loop however the test ends.
struct AskAtEnd<'a>(&'a StopFlag);

impl Drop for AskAtEnd<'_> {
    fn drop(&mut self) {
        self.0.ask();
    }
}

fn is_stored(fill: &Fill, frames: u64) -> bool {
    count(&fill.counters, Counter::FramesCached) == frames
}

#[test]
fn sources_that_stay_lose_nothing_while_others_come_and_go() {
    in_namespace("sources_that_stay_lose_nothing_while_others_come_and_go", |pair| {
        add_sources(80);
        let (sender, wanted) = mpsc::channel();
        let mut subscription = Subscription::open(group_set(&pair), &set([1]), wanted).expect("joined");
        let (status, fill) = (subscription.status(), fill());
        let (stop_sending, stop) = (StopFlag::default(), StopFlag::default());
        let publisher = Publisher::new(&pair, PORT);
        let sent = thread::scope(|scope| {
            let _stop = (AskAtEnd(&stop_sending), AskAtEnd(&stop));
            let filling = scope.spawn(|| fill.run(&mut subscription, &stop));
            let sending = scope.spawn(|| {
                let mut sent = 0;
                while !stop_sending.is_asked() {
                    sent += 1;
                    publisher.send(source(1), group(u16::try_from(sent % 4).expect("small")), &frame(1, sent));
                    thread::sleep(Duration::from_micros(50));
                }
                sent
            });
            // Beside it in its row of sockets, and beyond it in another; then they go again.
            for others in [2..3, 2..81, 60..81, 2..60, 2..2, 70..72, 2..81, 2..2] {
                sender.send(set(others.clone().chain([1]))).expect("listened to");
                eventually("joined and left", || status.sources() == others.len() + 1);
            }
            stop_sending.ask();
            let sent = sending.join().expect("no panic");
            eventually("all is stored", || is_stored(&fill, sent));
            // Who has left is not heard; who stays is the only one that takes kernel memory.
            publisher.send(source(2), group(0), &frame(2, 1));
            publisher.send(source(1), group(0), &frame(1, sent + 1));
            eventually("the next is stored", || is_stored(&fill, sent + 1));
            stop.ask();
            filling.join().expect("no panic").expect("no error");
            sent
        });
        assert!(sent > 20, "{sent}");
        assert_eq!(count(&fill.counters, Counter::FramesReceived), sent + 1, "once each");
        assert_eq!(count(&fill.counters, Counter::FrameSocketOverflow), 0);
        assert_eq!((status.sources(), status.sockets()), (1, subscription.fds().count()));
    });
}

/// As [`position`], for frames.
fn merged(pair: &Pair) -> GroupSet {
    GroupSet { delivery: Delivery::Merged, ..group_set(pair) }
}

/// What several threads stored, in the words of [`several_threads_store_what_one_would`].
#[derive(Debug, PartialEq)]
struct Stored {
    whole: usize,
    counts: [u64; 6],
}

/// A source that stays sends [`FRAMES`] frames to eight groups, each other 16 of them so that they arrive as one, while others
/// come and go.
fn stored_by(pair: &Pair, threads: usize) -> Stored {
    let (sender, wanted) = mpsc::channel();
    let shares = Subscription::open_shares(Config { groups: merged(pair), shares: threads }, &set([1]), wanted, None)
        .expect("joined");
    assert_eq!(shares.len(), threads);
    let (status, (fill, log)) = (shares[0].status(), fill_and_log());
    let stop = StopFlag::default();
    let publisher = Publisher::new(pair, PORT);
    let bytes = |seq: u64| {
        let mut bytes = frame(1, seq);
        bytes[92..].copy_from_slice(&seq.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes());
        bytes
    };
    thread::scope(|scope| {
        let _stop = AskAtEnd(&stop);
        for mut share in shares {
            let (fill, stop) = (&fill, &stop);
            scope.spawn(move || fill.run(&mut share, stop).expect("no error"));
        }
        let sending = scope.spawn(|| {
            for first in (1..=FRAMES).step_by(32) {
                for seq in first..first + 16 {
                    publisher.send(source(1), group(u16::try_from(seq % 8).expect("small")), &bytes(seq));
                }
                let train: Vec<u8> = (first + 16..first + 32).flat_map(bytes).collect();
                publisher.send_train(source(1), group(u16::try_from(first / 32 % 8).expect("small")), &train, 100);
                thread::sleep(Duration::from_millis(1));
            }
        });
        for others in [2..3, 2..40, 30..40, 2..2] {
            sender.send(set(others.clone().chain([1]))).expect("listened to");
            eventually("joined and left", || status.sources() == others.len() + 1);
        }
        sending.join().expect("no panic");
        // A repetition, and what is no frame.
        publisher.send(source(1), group(1), &bytes(9));
        publisher.send(source(1), group(2), b"no frame");
        eventually("all is received", || count(&fill.counters, Counter::FramesReceived) == FRAMES + 2);
        eventually("all is stored", || is_stored(&fill, FRAMES));
        eventually("all is decided", || count(&fill.counters, Counter::FrameDuplicate) == 1);
    });
    let mut copy = Vec::new();
    let whole = (1..=FRAMES).filter(|seq| {
        let record = log.look_up(&FrameKey::new(1, *seq), monotonic_ns());
        record.is_some_and(|record| {
            copy.clear();
            log.copy(&record, &mut copy) && copy == bytes(*seq)
        })
    });
    let counters = [
        Counter::FramesReceived,
        Counter::FramesCached,
        Counter::StoredMulticast,
        Counter::FrameDuplicate,
        Counter::FrameUndecodable,
        Counter::FrameSocketOverflow,
    ];
    Stored { whole: whole.count(), counts: counters.map(|counter| count(&fill.counters, counter)) }
}

/// Frames of the test below.
const FRAMES: u64 = 4_000;

#[test]
fn several_threads_store_what_one_would() {
    in_namespace("several_threads_store_what_one_would", |pair| {
        add_sources(40);
        for threads in [1, 3] {
            let all = Stored { whole: 4_000, counts: [FRAMES + 2, FRAMES, FRAMES, 1, 1, 0] };
            assert_eq!(stored_by(&pair, threads), all, "{threads} threads");
        }
    });
}

/// What comes from another source or to another group does not come up at all, to sockets that take datagrams merged too.
#[test]
fn only_what_is_joined_is_stored() {
    in_namespace("only_what_is_joined_is_stored", |pair| {
        let any_source = GroupSet { any_source: merged(&pair).by_source, by_source: Vec::new(), ..merged(&pair) };
        for (group_set, stranger_is_heard) in [(merged(&pair), false), (any_source, true)] {
            let (_sender, wanted) = mpsc::channel();
            let mut subscription = Subscription::open(group_set, &set([1]), wanted).expect("joined");
            let (fill, publisher) = (fill(), Publisher::new(&pair, PORT));
            publisher.send(source(1), group(99), &frame(1, 1));
            publisher.send(source(2), group(0), &frame(2, 1));
            let train: Vec<u8> = (1..=16).flat_map(|seq| frame(4, seq)).collect();
            publisher.send_train(source(1), group(0), &train, 100);
            publisher.send(source(1), group(0), &frame(5, 1));
            let stop = StopFlag::default();
            thread::scope(|scope| {
                let _stop = AskAtEnd(&stop);
                scope.spawn(|| fill.run(&mut subscription, &stop).expect("no error"));
                eventually("all is stored", || is_stored(&fill, 17 + u64::from(stranger_is_heard)));
            });
            assert_eq!(count(&fill.counters, Counter::FramesReceived), 17 + u64::from(stranger_is_heard));
        }
    });
}

#[test]
fn a_group_is_in_one_share() {
    in_namespace("a_group_is_in_one_share", |pair| {
        let groups: Vec<_> = (0..7).chain([3]).map(group).collect();
        let by_source = GroupSet { by_source: groups.clone(), ..group_set(&pair) };
        let any_source = GroupSet { any_source: groups, by_source: Vec::new(), ..group_set(&pair) };
        for group_set in [by_source, any_source] {
            let (_sender, wanted) = mpsc::channel();
            let shares = Subscription::open_shares(Config { groups: group_set, shares: 3 }, &set([1]), wanted, None)
                .expect("joined");
            let publisher = Publisher::new(&pair, PORT);
            for index in 0..7 {
                publisher.send(source(1), group(index), b"x");
            }
            let got: Vec<BTreeSet<_>> = shares.iter().map(|share| drain(share.fds()).into_iter().collect()).collect();
            let wanted = |indices: &[u16]| indices.iter().map(|index| (source(1), group(*index))).collect();
            assert_eq!(got, [wanted(&[0, 3, 6]), wanted(&[1, 4]), wanted(&[2, 5])]);
            assert_eq!(shares[0].status().sockets(), 3);
        }
        // No thread without a group, and one for no group at all.
        let few = |shares| {
            let (_sender, wanted) = mpsc::channel();
            let group_set = GroupSet { by_source: vec![group(0), group(1)], ..group_set(&pair) };
            Subscription::open_shares(Config { groups: group_set, shares }, &set([1]), wanted, None)
                .expect("joined")
                .len()
        };
        assert_eq!([few(0), few(1), few(5)], [1, 1, 2]);
    });
}

#[test]
fn a_source_is_joined_in_every_share_or_in_none() {
    in_namespace("a_source_is_joined_in_every_share_or_in_none", |pair| {
        let mut joiner = Joiner::default();
        // There is no such interface: the second share can join nothing.
        for interface in [pair.far.index, 9_999] {
            joiner.open_share(GroupSet { interface, ..group_set(&pair) }).expect("no group of any source");
        }
        joiner.reconcile(&set([2]));
        assert_eq!(joiner.refused, set([2]));
        assert!(joiner.shares.iter().all(|share| share.joins.sources().next().is_none()));
        assert_eq!((joiner.status.sources(), joiner.status.sockets()), (0, 0));
        joiner.shares.pop();
        joiner.reconcile(&set([2]));
        assert_eq!((joiner.refused.len(), joiner.status.sources()), (0, 1));
    });
}

#[test]
fn what_a_leaving_source_had_sent_is_stored() {
    in_namespace("what_a_leaving_source_had_sent_is_stored", |pair| {
        let (sender, wanted) = mpsc::channel();
        let mut subscription = Subscription::open(merged(&pair), &set([1]), wanted).expect("joined");
        let (fill, publisher) = (fill(), Publisher::new(&pair, PORT));
        for seq in 1..=200 {
            publisher.send(source(1), group(0), &frame(1, seq));
        }
        sender.send(BTreeSet::new()).expect("listened to");
        eventually("its socket is to go", || subscription.status().sockets() == 0);
        let stop = StopFlag::default();
        thread::scope(|scope| {
            let _stop = AskAtEnd(&stop);
            scope.spawn(|| fill.run(&mut subscription, &stop));
            eventually("all is stored", || is_stored(&fill, 200));
        });
    });
}

#[test]
fn a_source_that_is_refused_is_tried_again() {
    const NAME: &str = "a_source_that_is_refused_is_tried_again";
    in_namespace(NAME, |pair| {
        if fs::write("/proc/sys/net/core/optmem_max", "16").is_err() {
            println!("SKIP {NAME}: needs a kernel with net.core.optmem_max a namespace");
            return;
        }
        let (sender, wanted) = mpsc::channel();
        // At the start it is an error.
        let (_, never) = mpsc::channel();
        let error = Subscription::open(group_set(&pair), &set([1]), never).expect_err("no room");
        assert!(error.to_string().contains("net.core.optmem_max (now 16 bytes)"), "{error}");
        let mut joiner = Joiner::default();
        joiner.open_share(group_set(&pair)).expect("no group of any source");
        joiner.reconcile(&set([1, 2]));
        let refused = joiner.refused.clone();
        let joiner = Arc::new(Mutex::new(joiner));
        let mut subscription = Subscription::of(&joiner).swap_remove(0);
        assert_eq!((refused, subscription.status().sources()), (set([1, 2]), 0));
        fs::write("/proc/sys/net/core/optmem_max", "131072").expect("own namespace");
        let keeping = thread::spawn(move || Joiner::keep(&joiner, &wanted));
        sender.send(set([1, 2])).expect("listened to");
        eventually("joined", || subscription.has_news());
        assert_eq!(subscription.status().sources(), 2);
        subscription.reconcile(|_| {});
        let publisher = Publisher::new(&pair, PORT);
        publisher.send(source(2), group(3), b"x");
        assert_eq!(drain(subscription.fds()), [(source(2), group(3))]);
        // The last set stands when source discovery has ended.
        drop(sender);
        keeping.join().expect("no panic");
        publisher.send(source(1), group(4), b"x");
        assert_eq!(drain(subscription.fds()), [(source(1), group(4))]);
    });
}

/// The interface comes back under another index, or its memberships are lost: new sockets hold what the old ones held.
#[test]
fn everything_is_joined_anew() {
    in_namespace("everything_is_joined_anew", |pair| {
        add_sources(2);
        let (_sender, wanted) = mpsc::channel();
        let group_set = GroupSet { any_source: vec![group(64), group(65)], ..group_set(&pair) };
        let mut all = Subscription::open_shares(Config { groups: group_set, shares: 2 }, &set([1, 2]), wanted, None)
            .expect("joined");
        let rejoin = all[0].rejoin();
        assert_eq!(rejoin.groups(), (0..66).map(group).collect());
        assert!(rejoin.on(9_999).is_err(), "there is no such interface");
        assert!(all.iter().all(|subscription| !subscription.has_news()), "all is as it was");
        let publisher = Publisher::new(&pair, PORT);
        let arrive = |all: &[Subscription]| {
            for to in [0, 1, 64, 65] {
                publisher.send(source(2), group(to), b"x");
            }
            let mut heard: Vec<_> = all.iter().flat_map(|one| drain(one.fds())).map(|(_, group)| group).collect();
            heard.sort_unstable();
            heard
        };
        let groups = [group(0), group(1), group(64), group(65)];
        assert_eq!(arrive(&all), groups);
        // Linux takes IPv6 off an interface, and every membership with it.
        for mtu in [1_200, 1_500] {
            ip(&format!("link set {} mtu {mtu}", pair.far.name));
        }
        assert_eq!(arrive(&all), [] as [Ipv6Addr; 0]);
        rejoin.on(pair.far.index).expect("joined");
        for subscription in &mut all {
            subscription.reconcile(|_| {});
        }
        eventually("the link is up", || arrive(&all) == groups);
        assert_eq!(all[0].status().sources(), 2);
    });
}

#[test]
fn a_second_receiving_thread_needs_groups_and_cpus() {
    // A fabric of 16 shards has more groups than that: those of blocks too.
    let cases = [((0, 16, 64), 1), ((0, 17, 7), 1), ((0, 17, 8), 2), ((0, 4_098, 96), 4), ((0, 0, 8), 1)];
    for ((asked, groups, cpus), workers) in cases {
        assert_eq!(shares(asked, groups, cpus), workers, "{groups} groups, {cpus} CPUs");
    }
}

#[test]
fn who_asks_for_threads_gets_them_while_there_are_groups() {
    for ((asked, groups, cpus), workers) in [((1, 4_098, 96), 1), ((3, 5, 1), 3), ((64, 5, 2), 5)] {
        assert_eq!(shares(asked, groups, cpus), workers, "{asked} asked for, {groups} groups, {cpus} CPUs");
    }
}

/// Sockets by which this source of the first group is joined on the far interface.
fn members_from(last: u16) -> usize {
    let table = fs::read_to_string("/proc/thread-self/net/mcfilter6").expect("a table");
    let hex = |address: Ipv6Addr| format!("{:032x}", u128::from(address));
    let is_it = |fields: &Vec<&str>| fields[1..4] == ["far", &hex(group(0)), &hex(source(last))];
    let found = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(is_it);
    found.map_or(0, |fields| fields[4].parse().expect("a count"))
}

/// Membership sockets of a subscription, as they are told.
fn keep(subscription: &Subscription) -> Receiver<Vec<Arc<Socket>>> {
    let (tell, told) = mpsc::channel();
    subscription.rejoin().keep_memberships(Box::new(move |sockets| drop(tell.send(sockets))));
    told
}

#[test]
fn membership_sockets_join_and_leave_with_the_others_and_outlive_them() {
    in_namespace("membership_sockets_join_and_leave_with_the_others_and_outlive_them", |pair| {
        let (sender, wanted) = mpsc::channel();
        let subscription = Subscription::open(group_set(&pair), &set([1]), wanted).expect("joined");
        let told = keep(&subscription);
        let sockets = told.recv().expect("told at once");
        assert!(!sockets.is_empty());
        for socket in &sockets {
            let local = socket.local_addr().expect("an address").as_socket_ipv6().expect("IPv6");
            assert_eq!(local.port(), 0, "it is bound to no port");
        }
        assert_eq!(members_from(1), 2);
        sender.send(set([1, 2])).expect("it listens");
        eventually("it joins", || members_from(2) == 2);
        sender.send(set([2])).expect("it listens");
        eventually("it leaves", || members_from(1) == 0);
        drop((subscription, sender));
        eventually("the membership socket is left", || members_from(2) == 1);
        drop((sockets, told));
        eventually("nothing is left", || members_from(2) == 0);
    });
}

#[test]
fn kept_sockets_of_before_take_nothing_from_an_interface_that_is_joined_anew() {
    in_namespace("kept_sockets_of_before_take_nothing_from_an_interface_that_is_joined_anew", |pair| {
        let (_sender, wanted) = mpsc::channel();
        let subscription = Subscription::open(group_set(&pair), &set([1]), wanted).expect("joined");
        let told = keep(&subscription);
        let before = told.recv().expect("told at once");
        // Too small for IPv6: the kernel forgets its memberships, and the sockets do not.
        ip("link set far mtu 1000");
        ip("link set far mtu 1500");
        assert_eq!(members_from(1), 0);
        subscription.rejoin().on(pair.far.index).expect("joined");
        let now = told.recv().expect("told");
        assert_eq!(members_from(1), 2);
        drop(before);
        assert_eq!(members_from(1), 2);
        assert!(!now.is_empty());
    });
}
