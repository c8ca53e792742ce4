use proptest::prelude::*;

use super::*;

fn endpoints(hosts: &[u16]) -> Vec<SocketAddr> {
    hosts.iter().map(|host| SocketAddr::from(([0xfd10, 0, 0, 0, 0, 0, 0, *host], 9300))).collect()
}

fn hearing(hosts: &[u16]) -> Seen {
    Seen { heard: endpoints(hosts), unresolved: false }
}

fn step(state: &mut State, seen: &Seen, now_s: u64) -> Option<bool> {
    let Step { state: next, save } = state.step(seen, now_s * SECOND_NS, 0)?;
    *state = next;
    Some(save)
}

#[test]
fn at_once_then_every_minute() {
    let mut state = State::default();
    let steps: Vec<u64> = (0..200).filter(|now_s| step(&mut state, &Seen::default(), *now_s).is_some()).collect();
    assert_eq!(steps, [0, 60, 120, 180]);
}

#[test]
fn the_jitter_is_added_and_bounded() {
    let next = |jitter_ns| {
        let Step { state, .. } = State::default().step(&Seen::default(), 0, jitter_ns).expect("the first time");
        (0..1_000).find(|tick| state.step(&Seen::default(), tick * SECOND_NS / 10, 0).is_some()).map(|tick| tick / 10)
    };
    assert_eq!(next(7 * SECOND_NS), Some(67));
    assert_eq!(next(JITTER_NS), Some(70));
    assert_eq!(next(u64::MAX), Some(70));
}

#[test]
fn the_first_endpoint_heard_does_not_wait() {
    for mut state in [State::default(), State::remembering(endpoints(&[9]))] {
        assert_eq!(step(&mut state, &Seen::default(), 0), Some(false));
        assert_eq!(step(&mut state, &hearing(&[1]), 1), Some(true));
        assert_eq!(state.discovered, endpoints(&[1]));
        assert_eq!(step(&mut state, &hearing(&[1, 2]), 2), None, "the second does");
        assert_eq!(step(&mut state, &hearing(&[1, 2]), 61), Some(true));
    }
}

#[test]
fn a_name_without_an_address_is_asked_for_again_soon() {
    let unresolved = Seen { heard: Vec::new(), unresolved: true };
    let mut state = State::default();
    let steps: Vec<u64> = (0..14).filter(|now_s| step(&mut state, &unresolved, *now_s).is_some()).collect();
    assert_eq!(steps, [0, 5, 10]);
}

#[test]
fn a_cold_start_asks_those_of_the_last_run_until_it_hears_others() {
    let mut state = State::remembering(endpoints(&[4, 5]));
    assert_eq!(step(&mut state, &Seen::default(), 0), Some(false), "nothing new to save");
    assert_eq!(state.discovered, endpoints(&[4, 5]));
    assert_eq!(step(&mut state, &hearing(&[6, 5]), 3), Some(true));
    assert_eq!(state.discovered, endpoints(&[5, 6]), "those that stay keep their places");
    assert_eq!(step(&mut state, &Seen::default(), 70), Some(false));
    assert_eq!(state.discovered, endpoints(&[5, 6]), "silence of the beacons is no word of the endpoints");
}

#[test]
fn what_is_saved_stays_young() {
    let mut state = State::default();
    let saved: Vec<u64> =
        (0..7_300).step_by(10).filter(|now_s| step(&mut state, &hearing(&[1]), *now_s) == Some(true)).collect();
    assert_eq!(saved, [0, 3_600, 7_200]);
}

proptest! {
    #[test]
    fn places_are_kept_and_no_upstream_comes_twice(
        before in prop::collection::vec(0..20_u16, 0..20), now in prop::collection::vec(0..20_u16, 1..20),
    ) {
        let mut state = State::remembering(endpoints(&before));
        step(&mut state, &hearing(&now), 0);
        let mut sorted: Vec<SocketAddr> = state.discovered.clone();
        sorted.sort();
        let mut expected = endpoints(&now);
        expected.sort();
        expected.dedup();
        prop_assert_eq!(&sorted, &expected);
        let place = |one: &SocketAddr| endpoints(&before).iter().position(|other| other == one).unwrap_or(usize::MAX);
        prop_assert!(state.discovered.is_sorted_by_key(place));
        // Heard again in whatever order, nothing changes.
        let mut again = hearing(&now);
        again.heard.reverse();
        let Step { state: same, .. } = state.step(&again, 100 * SECOND_NS, 0).expect("it is time");
        prop_assert_eq!(same.discovered, state.discovered);
    }
}
