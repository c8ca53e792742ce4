use super::*;

const FLOW: u64 = 0x5eed;
const LIFE_MS: u32 = 60_000;
const SECOND: u64 = 1_000_000_000;

fn key(number: u64) -> FrameKey {
    FrameKey::new(FLOW, number)
}

/// Tables that know the flow up to this number.
fn knowing(number: u64, now_ns: u64) -> Tails {
    let tails = Tails::new(7);
    tails.stored(&key(number), LIFE_MS, now_ns);
    tails
}

#[test]
fn a_tail_is_asked_for_once_per_interval() {
    let tails = knowing(10, 0);
    let asked = [0, 1, 2, 29].map(|second| tails.take(&key(11), second * SECOND));
    assert_eq!(asked, [true, false, false, false]);
    assert!(tails.take(&key(11), 30 * SECOND));
    assert!(!tails.take(&key(11), 31 * SECOND));
}

#[test]
fn what_is_not_ahead_is_asked_for_each_time() {
    let tails = knowing(10, 0);
    for number in [10, 9, 1, 10] {
        assert!(tails.take(&key(number), 1) && tails.take(&key(number), 2), "{number}");
    }
    // Frames that come later make it a gap.
    assert!(tails.take(&key(11), 3) && !tails.take(&key(11), 4));
    tails.stored(&key(13), LIFE_MS, 5);
    assert!((0..3).all(|_| tails.take(&key(11), 6) && tails.take(&key(12), 6)));
    // An older one that was recovered changes nothing.
    tails.stored(&key(4), LIFE_MS, 7);
    assert!(tails.take(&key(13), 8));
    assert!(!tails.take(&key(14), 8), "the tail was asked for at 3");
}

#[test]
fn a_flow_of_which_nothing_was_heard_is_asked_for_once_per_interval() {
    let tails = Tails::new(7);
    assert!(tails.take(&key(5), 1));
    assert!([5, 8, 4, 7, 5].iter().all(|number| !tails.take(&key(*number), 2)));
    assert!(tails.take(&key(4), 1 + 30 * SECOND) && !tails.take(&key(5), 2 + 30 * SECOND));
}

#[test]
fn whatever_numbers_are_probed_a_flow_is_asked_for_once_per_interval() {
    let tails = knowing(10, 0);
    let probed = [12, 13, 11, 1_000, u64::MAX, 14].map(|number| tails.take(&key(number), 1));
    assert_eq!(probed, [true, false, false, false, false, false]);
    // Another flow has its own, and the gaps of this one are asked for.
    assert!(tails.take(&FrameKey::new(FLOW + 1, 13), 2) && tails.take(&key(9), 2));
    let later = [11, 12, 13].map(|number| tails.take(&key(number), 1 + 30 * SECOND));
    assert_eq!(later, [true, false, false]);
}

#[test]
fn what_an_upstream_has_leads_to_the_next_number() {
    let tails = knowing(10, 0);
    assert!(tails.take(&key(11), 1) && !tails.take(&key(12), 2));
    tails.give_back(&key(11));
    tails.stored(&key(11), LIFE_MS, 3);
    assert!(tails.take(&key(12), 4) && !tails.take(&key(13), 5));
}

#[test]
fn no_flow_is_no_flow() {
    let tails = Tails::new(7);
    tails.stored(&FrameKey::new(0, 3), LIFE_MS, 0);
    assert!((0..3).all(|_| tails.take(&FrameKey::new(0, 9), 1)));
}

#[test]
fn what_none_has_denied_may_be_asked_for_again() {
    let tails = knowing(10, 0);
    assert!(tails.take(&key(11), 1));
    tails.give_back(&key(12));
    assert!(!tails.take(&key(11), 2), "it was another that was given back");
    tails.give_back(&key(11));
    assert!(tails.take(&key(11), 3));
}

#[test]
fn a_publisher_that_restarts_is_followed_down() {
    let tails = knowing(1_000, 0);
    // While the last frame of before lives, the numbers of before stand.
    tails.stored(&key(1), LIFE_MS, 50 * SECOND);
    assert!(tails.take(&key(500), 50 * SECOND) && tails.take(&key(500), 50 * SECOND));
    tails.stored(&key(2), LIFE_MS, 100 * SECOND);
    assert!(tails.take(&key(3), 101 * SECOND) && !tails.take(&key(3), 102 * SECOND), "2 is the highest");
    tails.stored(&key(3), LIFE_MS, 103 * SECOND);
    assert!(tails.take(&key(3), 104 * SECOND) && tails.take(&key(3), 104 * SECOND));
}

#[test]
fn a_number_out_of_all_bounds_stands_no_longer() {
    let tails = knowing(10, 0);
    tails.stored(&key(u64::MAX), LIFE_MS, SECOND);
    assert!((0..3).all(|_| tails.take(&key(11), 2 * SECOND) && tails.take(&key(u64::MAX), 2 * SECOND)));
    tails.stored(&key(12), LIFE_MS, 100 * SECOND);
    assert!(tails.take(&key(13), 101 * SECOND) && !tails.take(&key(13), 101 * SECOND));
}

#[test]
fn the_end_of_a_life_is_known_for_years() {
    let year = 365 * 24 * 3600 * SECOND;
    for now in [0, year, 3 * year, 20 * year] {
        let tails = knowing(1_000, now);
        assert!(tails.take(&key(900), now + SECOND) && tails.take(&key(900), now + SECOND));
        tails.stored(&key(1), LIFE_MS, now + 3 * year);
        assert!(tails.take(&key(2), now + 3 * year) && !tails.take(&key(2), now + 3 * year));
    }
}

#[test]
fn ten_thousand_idle_flows_are_asked_for_once_each() {
    for seed in 0..8 {
        let tails = Tails::new(seed);
        let flows = 1..=10_000_u64;
        flows.clone().for_each(|flow| tails.stored(&FrameKey::new(flow, 3), LIFE_MS, flow));
        let asked = |at| flows.clone().filter(|flow| tails.take(&FrameKey::new(*flow, 4), at)).count();
        assert_eq!([1, 2, 3].map(|second| asked(second * SECOND)), [10_000, 0, 0]);
    }
}

#[test]
fn strangers_take_no_flow_that_was_heard_and_no_more_memory() {
    let tails = knowing(10, 0);
    for flow in 1..=1_000_000 {
        tails.take(&FrameKey::new(flow << 20, 4), SECOND);
    }
    assert!(tails.take(&key(9), 2 * SECOND) && tails.take(&key(9), 2 * SECOND), "its gaps are asked for");
    assert_eq!(tails.heard.len() * size_of::<Bucket>(), 2 << 20);
    assert_eq!(size_of_val(&**tails.asked()), 3 << 20);
    // Of flows too many to keep, those heard last are known.
    for flow in 1..=1_000_000 {
        tails.stored(&FrameKey::new(flow << 20, 4), LIFE_MS, flow * SECOND / 1_000);
    }
    let known = (900_000..=1_000_000).filter(|flow| tails.highest(flow << 20) == Some(4)).count();
    assert!(known > 80_000, "{known}");
}
