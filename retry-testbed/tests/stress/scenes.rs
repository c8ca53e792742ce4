//! The scenes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use retry_common::key::FrameKey;

use retry_testbed::scene::is_root;

use super::material::{Kind, Material, mix};
use super::scene::{Stage, Wanted, share, small};
use super::sender::{Order, Path};

/// At full speed.
const ALL: u32 = 0;
/// What a production fabric delivers on each of its paths, frames a second.
const RATE: u32 = 50_000;
/// Frames a second that the log has already: each goes through the daemon's socket, and before each the daemon looks for what
/// the kernel has stored up to now.
const KNOWN: u32 = 150_000;
/// Numbers of the flow that these belong to.
const KNOWN_NUMBERS: u64 = 500;

/// Sends these orders, each on a path of its own, by turns from CPU 0 and CPU 1.
fn send(stage: &Stage, material: &Material, orders: &[(Order<'_>, u32)], time: Duration, stop: &AtomicBool) {
    let sent: Vec<u64> = thread::scope(|scope| {
        let paths: Vec<_> = orders
            .iter()
            .zip(0u16..)
            .map(|((order, rate), number)| {
                let path = Path::open(stage.publisher(), 4_001 + number, material);
                scope.spawn(move || path.run(usize::from(number % 2), *order, *rate, time, stop))
            })
            .collect();
        paths.into_iter().map(|path| path.join().expect("a path")).collect()
    });
    println!("sent {sent:?} in {time:?}");
}

/// Frames of a few numbers, again and again: duplicates, but for the first and those that a lap has overwritten.
fn known(number: u64) -> (FrameKey, u8) {
    (FrameKey::new(Kind::Tx.flow(0x7e), 1 + number % KNOWN_NUMBERS), 0)
}

/// Two paths deliver each frame, and the publisher starts again with the same numbers and the same bytes. All settings are
/// the defaults.
#[test]
fn a_publisher_starts_again() {
    if !is_root("a_publisher_starts_again") {
        return;
    }
    let material = Material::random(48..=508);
    let order = |number: u64| (FrameKey::new(Kind::Tx.flow(0x77), 1 + number), 0);
    let stage = Stage::new();
    let daemon = stage.daemon(&[]);
    for hundredths in [14, 21] {
        stage
            .watch(&daemon, |stop| send(&stage, &material, &[(&order, RATE), (&order, RATE)], share(hundredths), stop));
        daemon.verify_log(true).expect("a right log");
    }
    stage.end(daemon, &material, &Wanted { generations: 1, most: u64::MAX, lives_last: false });
}

/// Everything at full speed on small rings: duplicates, the same numbers with other bytes, laps, and lives that end; frames
/// that the daemon alone stores, and listeners that ask.
#[test]
fn everything_at_once() {
    if !is_root("everything_at_once") {
        return;
    }
    let generations = 3;
    let material = Material::random(48..=1_308);
    let (flow, most) = (Kind::Tx.flow(0x78), 40_000);
    // Rounds of 10,000 numbers stay in the ring, rounds of 40,000 do not. Each round comes twice before its bytes change.
    let order = move |number: u64| {
        let (period, into) = (number / 160_000, number % 160_000);
        let numbers = if period % 2 == 0 { 10_000 } else { most };
        let generation = (period + into / numbers / 2) % u64::from(generations);
        (FrameKey::new(flow, 1 + into % numbers), u8::try_from(generation).expect("small"))
    };
    let stage = Stage::new();
    let daemon = stage.daemon(&small(&["-cache-ttl-tx", "1500ms", "-cache-ttl-block", "500ms"]));
    let time = share(27);
    stage.watch(&daemon, |stop| {
        thread::scope(|scope| {
            let others = scope.spawn(|| {
                let path = Path::open(stage.publisher(), 4_003, &material);
                let (start, mut number) = (Instant::now(), 0);
                // Some thousand a second: most of these go through the daemon's sockets.
                while !stop.load(Ordering::Relaxed) && start.elapsed() < time {
                    number += 1;
                    for step in 0..16u64 {
                        let kind = [Kind::Bundle, Kind::Block, Kind::Bundle, Kind::Large]
                            [usize::try_from(step % 4).expect("small")];
                        let seq_num = 1 + mix(number * 16 + step) % 3_000;
                        let generation = u8::try_from(number / 500 % u64::from(generations)).expect("small");
                        path.send(FrameKey::new(kind.flow(0x79), seq_num), generation);
                    }
                    thread::sleep(Duration::from_millis(3));
                }
            });
            let listener = scope.spawn(|| stage.listen(&material, flow, most, generations, time, stop));
            let orders: [(Order<'_>, u32); 3] = [(&order, ALL), (&known, KNOWN), (&order, RATE)];
            send(&stage, &material, &orders, time, stop);
            others.join().expect("the other kinds");
            let frames = listener.join().expect("a listener");
            println!("{frames} frames came back");
        });
    });
    stage.end(daemon, &material, &Wanted { generations, most: u64::MAX, lives_last: false });
}

/// With a bound on the number of frames.
#[test]
fn a_bound_of_keys() {
    if !is_root("a_bound_of_keys") {
        return;
    }
    let material = Material::random(48..=700);
    let flow = Kind::Tx.flow(0x7a);
    let order = |number: u64| {
        let generation = u8::try_from(number / 100_000 % 2).expect("small");
        (FrameKey::new(flow, 1 + number % 8_000), generation)
    };
    let stage = Stage::new();
    let daemon = stage.daemon(&small(&["-cache-max-keys", "5000"]));
    stage.watch(&daemon, |stop| send(&stage, &material, &[(&order, ALL), (&known, KNOWN)], share(10), stop));
    stage.end(daemon, &material, &Wanted { generations: 2, most: 5_000, lives_last: true });
}

/// Payloads of a stranger who knows how the ring is laid out: wherever a slot begins there is a header of a record, with the
/// key of another frame. First beside
/// frames that the log has already, then on one path alone.
#[test]
fn payloads_that_look_like_records() {
    if !is_root("payloads_that_look_like_records") {
        return;
    }
    let (flow, numbers) = (Kind::Tx.flow(0x7b), 30_000);
    let material = Material::of_headers(flow, numbers, 100..=1_308);
    let order = move |number: u64| {
        let generation = u8::try_from(number / numbers / 3 % 2).expect("small");
        (FrameKey::new(flow, 1 + number % numbers), generation)
    };
    let stage = Stage::new();
    let daemon = stage.daemon(&small(&[]));
    stage.watch(&daemon, |stop| {
        send(&stage, &material, &[(&order, ALL), (&known, KNOWN)], share(16), stop);
        let path = Path::open(stage.publisher(), 4_004, &material);
        thread::scope(|scope| {
            let listener = scope.spawn(|| stage.listen(&material, flow, numbers, 2, share(12), stop));
            let sent = path.run(0, &order, ALL, share(12), stop);
            println!("sent {sent} on one path, {} frames came back", listener.join().expect("a listener"));
        });
    });
    stage.end(daemon, &material, &Wanted { generations: 2, most: u64::MAX, lives_last: true });
}
