use std::fs;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::time::Duration;

use retry_common::counter::Counter;

use super::*;
use crate::ingress::fill::Fill;
use crate::ingress::testing::{PORT, Publisher, add_sources, count, drain, eventually, fill, frame, group, source};
use crate::net::testing::{Pair, in_namespace};

fn place(pair: &Pair) -> Place {
    Place { interface: pair.far.index, port: PORT, any_source: Vec::new(), by_source: (0..64).map(group).collect() }
}

fn set(last: impl IntoIterator<Item = u16>) -> BTreeSet<Ipv6Addr> {
    last.into_iter().map(source).collect()
}

/// Ends a thread's loop however the test ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
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
        let mut listening = Listening::open(place(&pair), &set([1]), wanted).expect("joined");
        let (status, fill) = (listening.status(), fill());
        let (stop_sending, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        let publisher = Publisher::new(&pair, PORT);
        let sent = thread::scope(|scope| {
            let _stop = (Stop(&stop_sending), Stop(&stop));
            let filling = scope.spawn(|| fill.run(&mut listening, &stop));
            let sending = scope.spawn(|| {
                let mut sent = 0;
                while !stop_sending.load(Ordering::Relaxed) {
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
            stop_sending.store(true, Ordering::Relaxed);
            let sent = sending.join().expect("no panic");
            eventually("all is stored", || is_stored(&fill, sent));
            // Who has left is not heard; who stays is the only one that takes kernel memory.
            publisher.send(source(2), group(0), &frame(2, 1));
            publisher.send(source(1), group(0), &frame(1, sent + 1));
            eventually("the next is stored", || is_stored(&fill, sent + 1));
            stop.store(true, Ordering::Relaxed);
            filling.join().expect("no panic").expect("no error");
            sent
        });
        assert!(sent > 100, "{sent}");
        assert_eq!(count(&fill.counters, Counter::FramesReceived), sent + 1, "once each");
        assert_eq!(count(&fill.counters, Counter::FrameSocketOverflow), 0);
        assert_eq!((status.sources(), status.sockets()), (1, listening.fds().count()));
    });
}

#[test]
fn what_a_leaving_source_had_sent_is_stored() {
    in_namespace("what_a_leaving_source_had_sent_is_stored", |pair| {
        let (sender, wanted) = mpsc::channel();
        let mut listening = Listening::open(place(&pair), &set([1]), wanted).expect("joined");
        let (fill, publisher) = (fill(), Publisher::new(&pair, PORT));
        for seq in 1..=200 {
            publisher.send(source(1), group(0), &frame(1, seq));
        }
        sender.send(BTreeSet::new()).expect("listened to");
        eventually("its socket is to go", || listening.status().sockets() == 0);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let _stop = Stop(&stop);
            scope.spawn(|| fill.run(&mut listening, &stop));
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
        let error = Listening::open(place(&pair), &set([1]), never).expect_err("no room");
        assert!(error.to_string().contains("net.core.optmem_max (now 16 bytes)"), "{error}");
        let Place { interface, port, by_source, .. } = place(&pair);
        let mut keeper = Keeper {
            joins: SourceJoins::new(interface, port, &by_source),
            fixed: 0,
            refused: BTreeSet::new(),
            board: Arc::default(),
        };
        let board = Arc::clone(&keeper.board);
        keeper.reconcile(&set([1, 2]));
        assert_eq!((&keeper.refused, board.status.sources()), (&set([1, 2]), 0));
        fs::write("/proc/sys/net/core/optmem_max", "131072").expect("own namespace");
        let keeping = thread::spawn(move || keeper.keep(&wanted));
        sender.send(set([1, 2])).expect("listened to");
        let mut listening = Listening { fixed: None, by_source: Vec::new(), board, seen: 0 };
        eventually("joined", || listening.has_news());
        assert_eq!(listening.status().sources(), 2);
        listening.reconcile(|_| {});
        let publisher = Publisher::new(&pair, PORT);
        publisher.send(source(2), group(3), b"x");
        assert_eq!(drain(listening.fds()), [(source(2), group(3))]);
        // The last set stands when nobody finds out sources any more.
        drop(sender);
        keeping.join().expect("no panic");
        publisher.send(source(1), group(4), b"x");
        assert_eq!(drain(listening.fds()), [(source(1), group(4))]);
    });
}
