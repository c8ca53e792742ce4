//! Conversations with upstreams, in a time of their own.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const MS: u64 = 1_000_000;

fn upstream(host: u16) -> SocketAddr {
    SocketAddr::from(([0xfd10, 0, 0, 0, 0, 0, 0, host], 9300))
}

fn key(flow: u64, seq_num: u64) -> FrameKey {
    FrameKey::new(flow, seq_num)
}

fn begin(flight: &mut Flight, key: FrameKey) -> JobReceiver {
    flight.begin(key).expect("no job for it is under way")
}

/// A job for `key` that has asked `upstream(1)`.
fn asked(flight: &mut Flight, key: FrameKey, now_ns: u64) -> JobReceiver {
    let ear = begin(flight, key);
    flight.sent(key, upstream(1), now_ns);
    ear
}

fn said(ear: &mut JobReceiver) -> Vec<Says> {
    std::iter::from_fn(|| ear.replies.try_recv().ok()).map(|reply| reply.says).collect()
}

fn frame(ear: &JobReceiver) -> Option<Vec<u8>> {
    ear.frame.borrow().clone()
}

const fn at(sent_ns: u64) -> Option<Answered> {
    Some(Answered { sent_ns: Some(sent_ns) })
}

const UNSURE: Option<Answered> = Some(Answered { sent_ns: None });

#[test]
fn one_job_a_frame() {
    let mut flight = Flight::default();
    let _first = begin(&mut flight, key(1, 1));
    assert!(flight.begin(key(1, 1)).is_none());
    let _other = begin(&mut flight, key(1, 2));
    flight.end(&key(1, 1), 0);
    let _again = begin(&mut flight, key(1, 1));
}

#[test]
fn a_frame_is_taken_for_its_job_whoever_sends_it() {
    let mut flight = Flight::default();
    let (first, second) = (asked(&mut flight, key(1, 1), 0), asked(&mut flight, key(1, 2), 0));
    assert_eq!(flight.frame(&key(1, 2), upstream(9), b"two", 9), None);
    assert_eq!((frame(&first), frame(&second)), (None, Some(b"two".to_vec())));
    assert_eq!(flight.frame(&key(1, 1), upstream(1), b"one", 9), at(0));
    assert_eq!(frame(&first), Some(b"one".to_vec()));
    // No job waits for it.
    assert_eq!(flight.frame(&key(9, 9), upstream(1), b"?", 9), None);
}

#[test]
fn a_miss_for_the_only_nack_is_certain() {
    let mut flight = Flight::default();
    let mut ear = asked(&mut flight, key(1, 1), 7);
    assert_eq!(flight.miss(upstream(2), 8), None);
    assert_eq!(flight.miss(upstream(1), 8), at(7));
    assert_eq!(said(&mut ear), [Says::Miss]);
    assert_eq!(flight.miss(upstream(1), 9), None);
    assert_eq!(said(&mut ear), []);
}

#[test]
fn as_many_misses_as_nacks_are_certain() {
    let mut flight = Flight::default();
    let mut ears: Vec<JobReceiver> = (1..=3).map(|seq_num| asked(&mut flight, key(1, seq_num), 0)).collect();
    for _ in 0..2 {
        assert_eq!(flight.miss(upstream(1), 1), UNSURE);
    }
    let told: Vec<_> = ears.iter_mut().map(said).collect();
    assert_eq!(told, [vec![Says::Perhaps], vec![Says::Perhaps], vec![]]);
    assert_eq!(flight.miss(upstream(1), 1), UNSURE);
    for ear in &mut ears {
        assert_eq!(said(ear), [Says::Miss]);
    }
}

#[test]
fn a_miss_that_overtakes_a_frame_is_handed_on() {
    for acked in [false, true] {
        let mut flight = Flight::default();
        let mut held = asked(&mut flight, key(1, 1), 0);
        let mut missed = asked(&mut flight, key(1, 2), 0);
        flight.miss(upstream(1), 1);
        assert_eq!((said(&mut held), said(&mut missed)), (vec![Says::Perhaps], vec![]));
        if acked {
            assert_eq!(flight.ack(1, upstream(1)), at(0));
            assert_eq!((said(&mut held), said(&mut missed)), (vec![Says::Sent], vec![Says::Miss]));
        }
        assert_eq!(flight.frame(&key(1, 1), upstream(1), b"one", 9), if acked { None } else { at(0) });
        assert_eq!(frame(&held), Some(b"one".to_vec()));
        assert_eq!(said(&mut missed), if acked { vec![] } else { vec![Says::Miss] });
    }
}

#[test]
fn a_miss_is_handed_on_to_the_oldest_that_is_open() {
    let mut flight = Flight::default();
    let mut ears: Vec<JobReceiver> = (1..=3).map(|seq_num| asked(&mut flight, key(1, seq_num), 0)).collect();
    flight.miss(upstream(1), 1);
    flight.frame(&key(1, 1), upstream(1), b"one", 2);
    let told: Vec<_> = ears.iter_mut().map(said).collect();
    assert_eq!(told, [vec![Says::Perhaps], vec![Says::Perhaps], vec![]]);
}

#[test]
fn a_frame_settles_the_misses_before_it() {
    let mut flight = Flight::default();
    let mut missed = asked(&mut flight, key(1, 1), 0);
    let _held = asked(&mut flight, key(1, 2), 0);
    flight.miss(upstream(1), 1);
    assert_eq!(said(&mut missed), [Says::Perhaps]);
    flight.frame(&key(1, 2), upstream(1), b"two", 9);
    assert_eq!(said(&mut missed), [Says::Miss]);
}

#[test]
fn no_miss_is_meant_for_what_was_acked() {
    let mut flight = Flight::default();
    let mut acked = asked(&mut flight, key(1, 1), 0);
    let mut missed = asked(&mut flight, key(1, 2), 5);
    assert_eq!(flight.ack(1, upstream(1)), at(0));
    assert_eq!(flight.miss(upstream(1), 9), at(5));
    assert_eq!((said(&mut acked), said(&mut missed)), (vec![Says::Sent], vec![Says::Miss]));
}

#[test]
fn a_late_miss_costs_no_asker_a_frame() {
    let mut flight = Flight::default();
    let mut late = asked(&mut flight, key(1, 1), 0);
    flight.give_up(&key(1, 1), upstream(1), 300 * MS);
    flight.end(&key(1, 1), 300 * MS);
    let mut waiting = asked(&mut flight, key(1, 2), 310 * MS);
    assert_eq!(flight.miss(upstream(1), 320 * MS), UNSURE);
    assert_eq!((said(&mut late), said(&mut waiting)), (vec![], vec![Says::Perhaps]));
    flight.frame(&key(1, 2), upstream(1), b"two", 9);
    assert_eq!(frame(&waiting), Some(b"two".to_vec()));
    // When nothing can come any more, a MISS is certain again.
    let now_ns = 300 * MS + LATE_NS;
    let mut next = asked(&mut flight, key(1, 3), now_ns);
    assert_eq!(flight.miss(upstream(1), now_ns + 1), at(now_ns));
    assert_eq!(said(&mut next), [Says::Miss]);
}

#[test]
fn a_miss_is_no_proof_once_another_that_it_may_have_meant_is_forgotten() {
    let mut flight = Flight::default();
    let mut waiting = asked(&mut flight, key(1, 1), 0);
    let _late = asked(&mut flight, key(1, 2), 0);
    flight.end(&key(1, 2), 0);
    flight.miss(upstream(1), 1);
    assert_eq!(said(&mut waiting), [Says::Perhaps]);
    // The other NACK's time is over: whose MISS it was is not known.
    flight.sent(key(1, 3), upstream(1), LATE_NS);
    flight.frame(&key(1, 3), upstream(1), b"three", 9);
    assert_eq!(said(&mut waiting), []);
}

#[test]
fn flows_share_numbers_and_the_frame_tells_them_apart() {
    let mut flight = Flight::default();
    let mut ears = [asked(&mut flight, key(1, 5), 0), asked(&mut flight, key(2, 5), 0)];
    assert_eq!(flight.ack(5, upstream(1)), UNSURE);
    assert_eq!(flight.ack(6, upstream(1)), None);
    assert_eq!(flight.throttled(6, upstream(1)), None);
    assert_eq!(ears.each_mut().map(said), [vec![], vec![]]);
    assert_eq!(flight.throttled(5, upstream(1)), UNSURE);
    assert_eq!(ears.each_mut().map(said), [vec![Says::Perhaps], vec![Says::Perhaps]]);
    flight.frame(&key(2, 5), upstream(1), b"two", 9);
    assert_eq!(flight.throttled(5, upstream(1)), at(0));
    assert_eq!(ears.each_mut().map(said), [vec![Says::Throttled], vec![]]);
}

#[test]
fn an_ack_behind_its_frame_is_not_anothers() {
    let mut flight = Flight::default();
    let first = asked(&mut flight, key(1, 5), 0);
    assert_eq!(flight.frame(&key(1, 5), upstream(1), b"one", 9), at(0));
    flight.end(&key(1, 5), 9);
    drop(first);
    let mut second = asked(&mut flight, key(2, 5), 10);
    assert_eq!(flight.ack(5, upstream(1)), UNSURE);
    assert_eq!(said(&mut second), []);
    flight.end(&key(2, 5), 10);
    // Without another flow it is the end of the exchange, and no further answer.
    flight.sent(key(3, 6), upstream(1), 11);
    assert_eq!(flight.frame(&key(3, 6), upstream(1), b"three", 12), at(11));
    assert_eq!(flight.ack(6, upstream(1)), None);
}

#[test]
fn a_second_nack_for_a_frame_is_answered_for_its_job() {
    let mut flight = Flight::default();
    let mut ear = asked(&mut flight, key(1, 1), 0);
    flight.give_up(&key(1, 1), upstream(1), 300 * MS);
    flight.sent(key(1, 1), upstream(1), 400 * MS);
    // Which of the two was answered is not known, so neither is the round trip.
    assert_eq!(flight.ack(1, upstream(1)), UNSURE);
    assert_eq!(said(&mut ear), [Says::Sent]);
}

#[test]
fn who_cannot_be_reached_is_told_to_all_who_asked_it() {
    let mut flight = Flight::default();
    let mut first = asked(&mut flight, key(1, 1), 0);
    let mut second = asked(&mut flight, key(1, 2), 0);
    let mut elsewhere = begin(&mut flight, key(1, 3));
    flight.sent(key(1, 3), upstream(2), 0);
    flight.unreachable(upstream(1), 1);
    flight.unreachable(upstream(7), 1);
    assert_eq!((said(&mut first), said(&mut second)), (vec![Says::Unreachable], vec![Says::Unreachable]));
    assert_eq!(said(&mut elsewhere), []);
}

#[test]
fn a_nack_that_did_not_leave_is_not_waited_for() {
    let mut flight = Flight::default();
    let _unsent = asked(&mut flight, key(1, 1), 0);
    flight.unsent(&key(1, 1), upstream(1));
    let mut ear = asked(&mut flight, key(1, 2), 0);
    flight.miss(upstream(1), 1);
    assert_eq!(said(&mut ear), [Says::Miss]);
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut flight = Flight::default();
    for seq_num in 0..5_000 {
        let _ear = asked(&mut flight, key(1, seq_num), seq_num);
        flight.end(&key(1, seq_num), seq_num);
    }
    assert!(flight.lines.values().all(|line| line.asked.len() <= MOST_ABANDONED + 1));
    for host in 0..1_000 {
        flight.sent(key(1, 1), upstream(host), 10 * LATE_NS);
        flight.end(&key(1, 1), 10 * LATE_NS);
    }
    flight.sent(key(1, 1), upstream(1), 20 * LATE_NS);
    assert_eq!(flight.lines.len(), 1);
    assert!(flight.jobs.is_empty());
}

/// What an upstream does with one NACK.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Hit,
    Miss,
    Throttled,
}

#[derive(Clone, Debug)]
struct Exchange {
    sent_ms: u64,
    fate: Fate,
    /// When its one or two answers come, counted from the NACK; `None` when one is lost.
    after_ms: [Option<u64>; 2],
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Send,
    /// The frame or the ACK, the MISS, the THROTTLED.
    Answer(usize),
    Over,
}

const TIMEOUT_MS: u64 = 300;

fn exchange() -> impl Strategy<Value = Exchange> {
    let fate = prop_oneof![Just(Fate::Hit), Just(Fate::Miss), Just(Fate::Throttled)];
    let after = || prop::option::weighted(0.8, 1..1_500_u64);
    (0..1_000_u64, fate, after(), after()).prop_map(|(sent_ms, fate, a, b)| Exchange {
        sent_ms,
        fate,
        after_ms: [a, b],
    })
}

/// Plays it, one upstream and a job for each exchange, and returns what each job heard.
fn play(exchanges: &[Exchange], end_at_timeout: bool) -> Vec<(Vec<Says>, bool)> {
    let mut events: Vec<(u64, usize, Event)> = Vec::new();
    for (i, one) in exchanges.iter().enumerate() {
        events.push((one.sent_ms, i, Event::Send));
        let answers = if one.fate == Fate::Hit { 2 } else { 1 };
        for (which, after_ms) in one.after_ms.iter().take(answers).enumerate() {
            events.extend(after_ms.map(|after_ms| (one.sent_ms + after_ms, i, Event::Answer(which))));
        }
        if end_at_timeout {
            events.push((one.sent_ms + TIMEOUT_MS, i, Event::Over));
        }
    }
    events.sort_by_key(|(at_ms, i, _)| (*at_ms, *i));
    let mut flight = Flight::default();
    let mut ears: HashMap<usize, JobReceiver> = HashMap::new();
    // Few numbers, so that flows share them.
    let key = |i: usize| key(i as u64, i as u64 % 3);
    for (at_ms, i, event) in events {
        let now_ns = at_ms * MS;
        match (event, exchanges[i].fate) {
            (Event::Send, _) => drop(ears.insert(i, asked(&mut flight, key(i), now_ns))),
            (Event::Over, _) => drop(flight.end(&key(i), now_ns)),
            (Event::Answer(0), Fate::Hit) => drop(flight.frame(&key(i), upstream(1), &i.to_be_bytes(), now_ns)),
            (Event::Answer(_), Fate::Hit) => drop(flight.ack(key(i).seq_num(), upstream(1))),
            (Event::Answer(_), Fate::Miss) => drop(flight.miss(upstream(1), now_ns)),
            (Event::Answer(_), Fate::Throttled) => drop(flight.throttled(key(i).seq_num(), upstream(1))),
        }
    }
    (0..exchanges.len())
        .map(|i| {
            let ear = ears.get_mut(&i).expect("it was begun");
            let frame = frame(ear);
            assert!(frame.is_none() || frame == Some(i.to_be_bytes().to_vec()), "another's frame");
            (said(ear), frame.is_some())
        })
        .collect()
}

proptest! {
    #[test]
    fn whoever_is_told_of_a_miss_was_missed(exchanges in prop::collection::vec(exchange(), 1..12)) {
        for (exchange, (said, _)) in exchanges.iter().zip(play(&exchanges, true)) {
            prop_assert!(exchange.fate == Fate::Miss || !said.contains(&Says::Miss), "{exchange:?} {said:?}");
            prop_assert!(exchange.fate == Fate::Hit || !said.contains(&Says::Sent), "{exchange:?} {said:?}");
        }
    }

    #[test]
    fn when_nothing_is_lost_everybody_is_told(mut exchanges in prop::collection::vec(exchange(), 1..12)) {
        for one in &mut exchanges {
            one.after_ms = one.after_ms.map(|after_ms| after_ms.or(Some(9)));
            if one.fate == Fate::Throttled {
                one.fate = Fate::Hit;
            }
        }
        for (exchange, (said, framed)) in exchanges.iter().zip(play(&exchanges, false)) {
            prop_assert_eq!(framed, exchange.fate == Fate::Hit);
            prop_assert_eq!(said.contains(&Says::Miss), exchange.fate == Fate::Miss, "{:?} {:?}", exchange, said);
        }
    }
}
